//! What the log writes, and what it does when it cannot.

use super::*;
use crate::router::access::Ended;
use serde_json::Value;
use std::fs;

fn record(path: &[u8]) -> Record {
    Record {
        us: 500,
        whole_us: 1_204,
        upstream_us: Some(1_100),
        held_us: 0,
        bytes_in: 178,
        bytes_out: 512,
        epoch: 7,
        status: 200,
        service: 0,
        shard: Some(341),
        zone: Some(0),
        retries: 0,
        ended: Ended::Ok,
        client: Some("127.0.0.1:51234".parse().unwrap()),
        upstream: Some("[::1]:3000".parse().unwrap()),
        trace: [0; 16],
        method: b"GET".to_vec(),
        path: path.to_vec(),
        reason: vec![],
    }
}

fn names() -> Names {
    let settings = Settings { zone_names: vec![(shardmap::Zone(0), "bj".into())], ..Settings::default() };
    Names { services: vec!["/api/".into()], settings: Some(Arc::new(settings)) }
}

/// 2026-11-21 06:38:44.123 UTC.
const WALL_US: u64 = 1_795_243_124_123_000;

fn in_text(r: &Record) -> String {
    let mut out = String::new();
    text(&mut out, r, WALL_US, &names());
    out
}

struct Dir(PathBuf);
impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("ezone-access-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
}
impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sink(path: PathBuf) -> Sink {
    Sink { path, file: None, torn: false, failing: false, figures: Arc::default() }
}

fn one(text: &str) -> Lines {
    Lines { format: AccessFormat::Text, text: text.into(), records: 1 }
}

#[test]
fn a_line_of_text_is_what_the_head_of_this_file_promises() {
    assert_eq!(
        in_text(&record(b"/api/x")),
        "127.0.0.1:51234 - - [21/Nov/2026:06:38:44.123 +0000] \"GET /api/x\" 200 512 in=178 rt=0.001204 ut=0.001100 \
         held=0.000000 up=[::1]:3000 service=\"/api/\" zone=bj shard=341 epoch=7 retries=0 end=ok why=\"\" trace=-"
    );
    let unread = Record {
        upstream_us: None,
        shard: None,
        zone: None,
        ended: Ended::Refused,
        client: None,
        upstream: None,
        trace: [0xab; 16],
        method: vec![],
        path: vec![],
        reason: b"malformed head".to_vec(),
        ..record(b"")
    };
    let line = in_text(&unread);
    assert!(line.starts_with("- - - [") && line.contains("\"- -\" 200") && line.contains("ut=- "), "{line}");
    assert!(line.contains("zone=none shard=- ") && line.contains("end=refused why=\"malformed head\""), "{line}");
    assert!(line.ends_with(&format!("trace={}", "ab".repeat(16))), "{line}");
}

#[test]
fn no_client_can_begin_a_line_of_its_own_or_end_a_quoted_text() {
    let hostile = b"/a\" 200 0 why=\"x\r\n127.0.0.1 - - forged\\\x00\x7f\xff\xe2\x80\xa8";
    let line = in_text(&record(hostile));
    assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
    assert_eq!(line.matches('"').count(), 6, "{line}");
    let line = in_json(&record(hostile), WALL_US, &names());
    assert!(!line.contains(['\n', '\r', '\0']), "{line}");
    let read: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(read["path"], String::from_utf8_lossy(hostile).into_owned());
    assert_eq!((&read["status"], &read["upstream"]), (&json!(200), &json!("[::1]:3000")));
    assert_eq!(read["time"], "2026-11-21T06:38:44.123Z");
}

#[test]
fn dates_are_right_at_their_edges() {
    let day = |days: u64| iso_time(days * 86_400_000_000).split('T').next().unwrap().to_string();
    for (days, expected) in [
        (0, "1970-01-01"),
        (58, "1970-02-28"),
        (59, "1970-03-01"),
        (10_956, "1999-12-31"),
        (11_016, "2000-02-29"),
        (11_017, "2000-03-01"),
        (20_453, "2025-12-31"),
        (20_454, "2026-01-01"),
        (47_540, "2100-02-28"),
        (47_541, "2100-03-01"),
    ] {
        assert_eq!(day(days), expected);
    }
    assert_eq!(common_time(86_399_999_999), "01/Jan/1970:23:59:59.999 +0000");
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_nothing_else() {
    let mut s = sink("/dev/full".into());
    s.write(&mut one("a\n"));
    s.write(&mut one("b\n"));
    assert_eq!((s.figures.lost.load(Relaxed), s.figures.written.load(Relaxed), s.failing), (2, 0, true));
    let dir = Dir::new("full");
    s.path = dir.0.join("log");
    s.reopen();
    s.write(&mut one("c\n"));
    assert_eq!((s.figures.lost.load(Relaxed), s.figures.written.load(Relaxed), s.failing), (2, 1, false));
    assert_eq!(fs::read_to_string(&s.path).unwrap(), "c\n");
}

#[test]
fn a_line_that_was_torn_is_ended_before_the_next() {
    let dir = Dir::new("torn");
    let mut s = sink(dir.0.join("log"));
    s.write(&mut one("torn"));
    s.write(&mut one("whole\n"));
    assert_eq!(fs::read_to_string(&s.path).unwrap(), "torn\nwhole\n");
}

#[test]
fn a_file_that_was_moved_is_opened_anew_under_its_name() {
    let dir = Dir::new("moved");
    let mut s = sink(dir.0.join("log"));
    s.write(&mut one("a\n"));
    assert!(!s.moved());
    fs::rename(&s.path, dir.0.join("log.1")).unwrap();
    assert!(s.moved());
    s.write(&mut one("b\n"));
    s.reopen();
    assert!(!s.moved());
    s.write(&mut one("c\n"));
    assert_eq!(fs::read_to_string(dir.0.join("log.1")).unwrap(), "a\nb\n");
    assert_eq!(fs::read_to_string(&s.path).unwrap(), "c\n");
}

#[test]
fn what_a_core_hands_over_is_in_the_file_when_the_writer_has_ended() {
    use crate::config::Config;
    use crate::router::{Core, Now, Order, Side};
    let dir = Dir::new("whole");
    let text = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\nfile = \"m\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n\
                [access_log]\npath = \"access.log\"\nformat = \"json\"\nbuffer_kib = 512\n";
    let file = dir.0.join("ezone.toml");
    let config = Config::parse(&file.display().to_string(), text).unwrap();
    let log = config.access_log.unwrap();
    assert_eq!(log.path, dir.0.join("access.log"), "beside the file that names it");
    let settings = Arc::new(Settings { access: Some(log.which), map_lookup: false, ..Settings::default() });
    let shared = Arc::new(Shared::new(1));
    let mut core = Core::new(settings.clone());
    shared.show_settings(0, &settings, core.figures());
    let writer = Writer::start(&log, &shared).unwrap();
    let mut ring = shared.take_news(0).access.expect("the core's end of the ring");
    let now = Now { ms: 1, us: 1000, wall_ms: 1 };
    let client = core.on_accept(Side::Client, now).unwrap();
    for i in 0..2000 {
        core.on_bytes(client, format!("GET /{i} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes(), now);
        while let Some(order) = core.next_order() {
            if let Order::Send(id) = order {
                let out = core.take_out(id);
                core.on_sent(id, out, true, now);
            }
        }
        let bytes = core.access().sealed(WALL_US, 2000);
        let until = Instant::now() + Duration::from_secs(20);
        let mut chunk = loop {
            match ring.write_chunk(bytes.len()) {
                Ok(chunk) => break chunk,
                Err(_) => assert!(Instant::now() < until, "nobody reads the ring"),
            }
        };
        let (first, second) = chunk.as_mut_slices();
        let (a, b) = bytes.split_at(first.len());
        first.copy_from_slice(a);
        second.copy_from_slice(b);
        chunk.commit_all();
        core.access().clear(false);
    }
    let figures = writer.figures().clone();
    drop(writer);
    assert_eq!(figures.written.load(Relaxed), 2000);
    let text = fs::read_to_string(&log.path).unwrap();
    for (i, line) in text.lines().enumerate() {
        let read: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&read["path"], &read["status"]), (&json!(format!("/{i}")), &json!(404)), "{line}");
        assert_eq!(
            read["time"], "2026-11-21T06:38:44.122Z",
            "the core's clock stood at 1000 when the wall's was read at 2000"
        );
        assert_eq!((&read["service"], &read["outcome"]), (&json!("none"), &json!("refused")));
    }
    assert_eq!(text.lines().count(), 2000);
}
