//! An edge router of no zone before two zones, as real processes: it sends everything on to the owner, and stores nothing.

mod process_kit;

use process_kit::{Dir, PATIENCE, Running, addresses, map, within_or};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::spawn;

const BEIJING: &str = "loc=116.40,39.90";
const SHANGHAI: &str = "loc=121.47,31.23";

/// Every process and the directory of the test; gone at its end.
struct Cluster {
    started: Vec<Running>,
    dir: Dir,
}

impl Cluster {
    /// The programs of one node, whose configuration is written once: a second time would empty it while the first program reads.
    fn start(&mut self, programs: &[&str], name: &str, text: &str) {
        let config = self.dir.join(format!("{name}.toml"));
        fs::write(&config, text).unwrap();
        programs.iter().for_each(|program| self.start_one(program, &config));
    }

    fn start_one(&mut self, program: &str, config: &Path) {
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args([program, "--config"]).arg(config).stdin(Stdio::null());
        self.started.push(Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()));
    }
}

/// Answers each request with its zone's name and closes.
fn backend(zone: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0u8; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{zone}").as_bytes(),
            );
        }
    });
    at
}

/// Head and body of the answer.
fn ask(at: SocketAddr, method: &str, path: &str, tag: &str, body: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let tag = if tag.is_empty() { String::new() } else { format!("x-shard: {tag}\r\n") };
    let length = body.len();
    let whole = format!(
        "{method} {path} HTTP/1.1\r\nhost: e\r\nconnection: close\r\n{tag}content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(whole.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(h, b)| (h.to_lowercase(), b.to_owned()))
}

#[test]
fn an_edge_sends_everything_to_the_owner_and_stores_nothing() {
    let port: [_; 12] = addresses();
    let mut cluster = Cluster { started: vec![], dir: Dir::new("two") };
    let dir = cluster.dir.to_path_buf();
    let node = |zone: &str| {
        let (map, data) = (map(), dir.join(zone));
        let (map, data) = (map.display(), data.display());
        format!("[node]\nzone = \"{zone}\"\ndata_dir = \"{data}\"\n[map]\nfile = \"{map}\"\n")
    };
    for (i, (name, other)) in [("bj", "sh"), ("sh", "bj")].into_iter().enumerate() {
        let (own, far) = (&port[i * 5..i * 5 + 5], &port[(1 - i) * 5..(1 - i) * 5 + 5]);
        let text = node(name)
            + &format!(
                "[router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\ncores = [0]\n\
                 [log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 1\nsegment_mib = 1\n\
                 [zones.{other}]\nrouter = \"{}\"\nlink = \"{}\"\n\
                 [[service]]\nname = \"s\"\nprefix = \"/\"\nendpoints = [\"{}\"]\n",
                own[0],
                own[1],
                own[2],
                own[3],
                own[4],
                far[1],
                far[3],
                backend(name)
            );
        cluster.start(&["log", "router"], name, &text);
    }
    let (edge, admin) = (port[10], port[11]);
    let text = node("none")
        + &format!(
            "[router]\nlisten = [\"{edge}\"]\nadmin = \"{admin}\"\ncores = [0]\n\
             [zones.bj]\nrouter = \"{}\"\n[zones.sh]\nrouter = \"{}\"\n",
            port[1], port[6]
        );
    cluster.start(&["router"], "none", &text);
    for (tag, zone) in [(BEIJING, "bj"), (SHANGHAI, "sh")] {
        let (head, body) = within_or(
            "the edge serves",
            || cluster.dir.said(),
            || ask(edge, "GET", "/", tag, "").filter(|(_, b)| b == zone),
        );
        assert!(head.starts_with("http/1.1 200") && head.contains(&format!("x-ezone: {zone}\r\n")), "{head} {body}");
        let made =
            || ask(edge, "POST", "/records/orders", tag, "{\"a\":1}").filter(|(h, _)| h.starts_with("http/1.1 201"));
        let (head, body) = within_or("a record is written by way of the edge", || cluster.dir.said(), made);
        assert!(head.contains(&format!("x-ezone: {zone}\r\n")), "{head}");
        let id = serde_json::from_str::<serde_json::Value>(&body).unwrap()["id"].as_str().unwrap().to_owned();
        // By its id alone: it carries its shard.
        let (head, body) = ask(edge, "GET", &format!("/records/orders/{id}"), "", "").unwrap();
        assert!(head.starts_with("http/1.1 200") && head.contains(&format!("x-ezone: {zone}")), "{head} {body}");
        assert_eq!(body, "{\"a\":1}");
    }
    let (_, status) = ask(admin, "GET", "/status", "", "").unwrap();
    assert!(status.contains("\"zone\":\"none\""), "{status}");
    let kept: Vec<_> = fs::read_dir(dir.join("none")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(kept.iter().all(|f| f == "router.sock" || f == "router.map"), "an edge keeps no data: {kept:?}");
}
