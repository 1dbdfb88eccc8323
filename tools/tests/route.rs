//! `ezctl route explain` as a person or a script meets it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

const MAP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data/china.toml");

fn ezctl(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_ezctl")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A router that answers one request with `status` and `body`; gives back what it was asked.
fn router(status: &str, body: &str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut seen, mut byte) = (vec![], [0]);
        let whole = |seen: &[u8]| {
            let text = String::from_utf8_lossy(seen);
            let (head, body) = text.split_once("\r\n\r\n")?;
            let len = head.lines().find_map(|l| l.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
            (body.len() >= len).then(|| body.to_string())
        };
        loop {
            if let Some(body) = whole(&seen) {
                stream.write_all(answer.as_bytes()).unwrap();
                return body;
            }
            stream.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
    });
    (at, asked)
}

#[test]
fn a_map_alone_explains_tag_shard_and_owner() {
    let tag = "x-shard: shopid=999;loc=121.52669,31.2302";
    let (code, out, _) = ezctl(&["route", "explain", "--map", MAP, "--header", tag]);
    assert_eq!(code, 0, "{out}");
    for line in [
        "shard     341 by location",
        "owner     sh (own), map epoch 1",
        "tag       shopid=999: foreign: not an id of ours, and the map does not place it",
        "tag       loc=121.52669,31.2302, shard 341: decided",
        "fence     Shanghai (inside)",
    ] {
        assert!(out.lines().any(|l| l == line), "{line} not in:\n{out}");
    }
    let (code, out, _) = ezctl(&["route", "explain", "--map", MAP, "--header", tag, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["shard"], &json["owner"]), (0, &341.into(), &"sh".into()));
}

#[test]
fn a_router_is_asked_for_what_was_given_and_its_answer_is_told_in_words() {
    let body = r#"{"decision":"serve","why":"the service /api/ of this zone","shard":121,"owner":"bj","kind":"own","map_epoch":7,
        "tag":{"decided_by":"order","parts":[]},"service":"/api/","endpoints":[{"at":"127.0.0.1:3000","weight":1,"healthy":true,
        "draining":false,"tls":false,"chosen":true},{"at":"127.0.0.1:3001","weight":2,"healthy":false,"draining":true}]}"#;
    let (at, asked) = router("200 OK", body);
    let (code, out, err) =
        ezctl(&["route", "explain", "--admin", &at, "--path", "/api/x", "--header", "x-shard: eosid=1", "--peer"]);
    assert_eq!(code, 0, "{out}{err}");
    let asked: serde_json::Value = serde_json::from_str(&asked.join().unwrap()).unwrap();
    assert_eq!((&asked["path"], &asked["peer"]), (&"/api/x".into(), &true.into()));
    assert_eq!(asked["headers"], serde_json::json!([["x-shard", "eosid=1"]]));
    for line in [
        "decision  serve: the service /api/ of this zone",
        "shard     121 by order",
        "endpoint  127.0.0.1:3000 weight 1, healthy, chosen",
        "endpoint  127.0.0.1:3001 weight 2, unhealthy, draining",
    ] {
        assert!(out.lines().any(|l| l == line), "{line} not in:\n{out}");
    }
}

#[test]
fn a_request_that_would_be_refused_or_held_is_exit_1_and_wrong_use_is_exit_2() {
    let refuse = r#"{"decision":"refuse","why":"no service for this path","tag":{},"answer":{"status":404,"body":{}}}"#;
    for (body, decision) in [(refuse, "refuse"), (r#"{"decision":"hold","why":"moving","tag":{}}"#, "hold")] {
        let (at, asked) = router("200 OK", body);
        let (code, out, _) = ezctl(&["route", "explain", "--admin", &at]);
        assert!(code == 1 && out.contains(decision), "{code} {out}");
        asked.join().unwrap();
    }
    let (at, asked) = router("503 Service Unavailable", r#"{"error":"the router has no map yet"}"#);
    let (code, _, err) = ezctl(&["route", "explain", "--admin", &at]);
    assert!(code == 2 && err.contains("no map yet"), "{code} {err}");
    asked.join().unwrap();
    for args in [
        &["route", "explain"][..],
        &["route", "explain", "--admin", "nowhere"],
        &["route", "explain", "--map", MAP, "--header", "no colon"],
        &["route", "explain", "--map", "no-such-file"],
        &["route", "explain", "--map", MAP, "--admin", "127.0.0.1:1"],
    ] {
        let (code, _, err) = ezctl(args);
        assert!(code == 2 && !err.is_empty(), "{args:?}: {code} {err}");
    }
}
