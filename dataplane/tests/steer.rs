//! An operator's word about links, with a real log: what holds over a restart, what the configuration limits, what is refused.

mod process_kit;

use process_kit::{Dir, Running, addresses, http, map, within_or};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

struct Log {
    running: Running,
    admin: SocketAddr,
}

fn start(dir: &Dir, [link, admin, far]: [SocketAddr; 3], limits: &str) -> Log {
    let text = format!(
        "[node]\nzone = \"bj\"\ndata_dir = \"data\"\n[map]\nfile = \"{}\"\n[log]\nlisten = \"{link}\"\nadmin = \"{admin}\"\n\
         cores = [0]\nstreams = 2\nsegment_mib = 1\n[zones.sh]\nrouter = \"127.0.0.1:9\"\nlink = \"{far}\"\n{limits}\n",
        map().display()
    );
    fs::write(dir.join("node.toml"), text).unwrap();
    let said = fs::File::options().create(true).append(true).open(dir.join("said")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
    command.args(["log", "--config"]).arg(dir.join("node.toml")).stdin(Stdio::null());
    Log { running: Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()), admin }
}

impl Log {
    fn ask(&self, dir: &Dir, method: &str, path: &str) -> (u16, String) {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        within_or("the log answers", || dir.said(), || http(self.admin, &request).ok())
    }

    /// What `/links` says of one stream's link to sh, once it is there.
    fn link(&self, dir: &Dir, stream: usize, so: impl Fn(&Value) -> bool) -> Value {
        within_or(
            "the link is as expected",
            || dir.said() + &self.ask(dir, "GET", "/links").1,
            || {
                let all: Value = serde_json::from_str(&self.ask(dir, "GET", "/links").1).ok()?;
                let link = all["streams"][stream]["links"]["sh"].clone();
                (link.is_object() && so(&link)).then_some(link)
            },
        )
    }
}

#[test]
fn what_an_operator_says_of_links_holds_over_a_restart_and_what_makes_no_sense_is_refused() {
    let (dir, ports) = (Dir::new("steer"), addresses::<3>());
    let mut log = start(&dir, ports, "");
    let link = log.link(&dir, 0, |l| l["failures"].as_u64() > Some(0));
    assert!(link["state"].as_str().unwrap().contains("cannot be reached") && link["rate_max"].is_null(), "{link}");
    for (path, why) in [
        ("/links/pause", "zone=NAME is missing: this log has links to: sh"),
        ("/links/pause?zone=xx", "this log has links to: sh"),
        ("/links/pause?zone=sh&stream=2", "this log has the streams 0 to 1"),
        ("/links/clear?zone=sh&rate=9", "unknown parameter"),
        ("/links/throttle?zone=sh", "rate= is missing"),
        ("/links/throttle?zone=sh&rate=fast", "expected a rate such as"),
    ] {
        let (status, body) = log.ask(&dir, "POST", path);
        assert!(status == 400 && body.contains(why), "{path}: {status} {body}");
    }
    for (path, said) in [
        ("/links/pause?zone=sh&stream=1", "stream 1 to zone sh: paused, over restarts too"),
        ("/links/throttle?zone=sh&rate=200mbit", "25000000 bytes a second"),
        ("/links/clear?zone=sh", "ask again"),
    ] {
        let (status, body) = log.ask(&dir, "POST", path);
        assert!(status == 200 && body.contains(said), "{path}: {status} {body}");
    }
    log.link(&dir, 1, |l| l["paused"] == true && l["rate_max"] == 25_000_000);
    assert_eq!(log.running.term(), 0, "{}", dir.said());
    // The configuration's limit is lower now, and holds all day.
    log = start(
        &dir,
        ports,
        "limits = [{ from = \"00:00\", to = \"00:00\", rate = \"8mbit\", utc_offset = \"+08:00\" }]",
    );
    log.link(&dir, 1, |l| l["paused"] == true && l["rate_max"] == 1_000_000);
    log.link(&dir, 0, |l| l["paused"] == false);
    let (_, page) = log.ask(&dir, "GET", "/metrics");
    assert!(page.contains("ezone_link_paused{stream=\"1\",zone=\"sh\"} 1"), "{page}");
    assert!(page.contains("ezone_link_rate_max_bytes{stream=\"0\",zone=\"sh\"} 1000000"), "{page}");
    log.ask(&dir, "POST", "/links/resume?zone=sh");
    log.ask(&dir, "POST", "/links/throttle?zone=sh&rate=off");
    log.link(&dir, 1, |l| l["paused"] == false && l["rate_max"] == 1_000_000);
    assert_eq!(fs::read_to_string(dir.join("data/links.json")).unwrap().trim(), "{}");
}
