//! The record store as a service's developer meets it: a node of real processes, asked over HTTP.

mod process_kit;

use process_kit::{Dir, Running, addresses, map, within};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A place of zone bj in the map that never changes.
const TAG: &str = "x-shard: loc=116.40,39.90\r\n";

/// A node of zone bj, one log core, two streams.
struct Node {
    _log: Running,
    _router: Running,
    router: SocketAddr,
    _dir: Dir,
}

/// An answer: status, head, body.
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// Fails with the whole answer.
    fn is(self, status: u16) -> Got {
        assert_eq!(self.status, status, "{}{}", self.head, self.body);
        self
    }
}

impl Node {
    fn start(name: &str) -> Node {
        let dir = Dir::new(name);
        let at: [_; 5] = addresses();
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"{}\"\n[map]\nfile = \"{}\"\n[router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\n\
             cores = [0]\n[log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 2\nsegment_mib = 1\n",
            dir.join("data").display(),
            map().display(),
            at[0],
            at[1],
            at[2],
            at[3],
            at[4]
        );
        let config = dir.join("node.toml");
        fs::write(&config, text).unwrap();
        let start = |program: &str| {
            let out = fs::File::options().create(true).append(true).open(dir.join("said")).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
            command.args([program, "--stop-with-stdin", "--config"]).arg(&config).stdin(Stdio::piped());
            Running(command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap())
        };
        let (_log, _router) = (start("log"), start("router"));
        let node = Node { _log, _router, router: at[0], _dir: dir };
        let probe = |line: &str, fields: &str| node.try_ask(line, fields, "x").filter(|g| g.status == 200);
        let put = within("the node takes writes", || probe("PUT /records/probe/k", TAG));
        // Durable is not yet applied: a subscription that began in between would be told of this write.
        let applied = format!("{TAG}x-ezone-read: local\r\nx-ezone-after: {}\r\n", put.field("x-ezone-token").unwrap());
        within("it is applied", || probe("GET /records/probe/k", &applied));
        node
    }

    fn ask(&self, line: &str, fields: &str, body: &str) -> Got {
        self.try_ask(line, fields, body).expect("it answers")
    }

    fn try_ask(&self, line: &str, fields: &str, body: &str) -> Option<Got> {
        let mut stream = TcpStream::connect(self.router).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).ok()?;
        let mut answer = vec![];
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Got { status, head: format!("{head}\n"), body: body.to_owned() })
    }
}

#[test]
fn a_version_goes_out_with_each_answer_and_a_condition_on_it_holds_or_is_a_412() {
    let node = Node::start("versions");
    let at = "/records/orders/k";
    let put = |fields: &str, body: &str| node.ask(&format!("PUT {at}"), &format!("{TAG}{fields}"), body);
    let first = put("if-none-match: *\r\n", "1").is(200);
    let tag = first.field("etag").unwrap().to_owned();
    assert_eq!(first.json()["version"].as_str().map(|v| format!("\"{v}\"")), Some(tag.clone()));
    let read = node.ask(&format!("GET {at}"), TAG, "").is(200);
    assert_eq!((read.field("etag"), read.body.as_str()), (Some(tag.as_str()), "1"), "as it was given by the write");
    let again = |known: &str| node.ask(&format!("GET {at}"), &format!("{TAG}if-none-match: {known}\r\n"), "");
    let known = again(&format!("\"other\", {tag}")).is(304);
    assert_eq!((known.field("etag"), known.body.as_str()), (Some(tag.as_str()), ""));
    assert_eq!(again("\"other\"").is(200).body, "1");
    let lost = put("if-none-match: *\r\n", "2").is(412);
    assert_eq!(lost.field("etag"), Some(tag.as_str()));
    assert_eq!(lost.json()["seen"], first.json()["version"]);
    let second = put(&format!("if-match: {tag}\r\n"), "2").is(200);
    let lost = put(&format!("if-match: {tag}\r\n"), "3").is(412);
    assert_eq!(lost.field("etag"), second.field("etag"), "who has won");
    put("if-match: *\r\n", "4").is(200);
    let gone = node.ask(&format!("DELETE {at}"), &format!("{TAG}if-match: *\r\n"), "").is(200);
    node.ask(&format!("GET {at}"), TAG, "").is(404);
    let lost = node.ask(&format!("DELETE {at}"), &format!("{TAG}if-match: *\r\n"), "").is(412);
    assert_eq!((lost.field("etag"), lost.json()["seen"].as_str()), (None, Some("no such record")));
    put(&format!("if-match: {}\r\n", gone.field("etag").unwrap()), "5").is(412);
    put("if-none-match: *\r\n", "6").is(200);
    for bad in ["if-match: 1\r\n", "if-match: W/\"1.1.1.1\"\r\n", "if-match: *\r\nif-none-match: *\r\n"] {
        let refused = put(bad, "7").is(400).json();
        assert!(refused["seen"].is_string() && refused["expected"].is_string(), "{bad}: {refused}");
    }
    assert_eq!(node.ask(&format!("GET {at}"), TAG, "").body, "6");
}

#[test]
fn of_clients_that_count_with_conditions_none_loses_a_step() {
    let node = Node::start("counter");
    node.ask("PUT /records/counters/c", TAG, "0").is(200);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    loop {
                        let read = node.ask("GET /records/counters/c", TAG, "").is(200);
                        let next: u64 = read.body.parse::<u64>().unwrap() + 1;
                        let only = format!("{TAG}if-match: {}\r\n", read.field("etag").unwrap());
                        match node.ask("PUT /records/counters/c", &only, &next.to_string()).status {
                            200 => break,
                            412 => {}
                            other => panic!("{other}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(node.ask("GET /records/counters/c", TAG, "").body, "100");
}

#[test]
fn a_transaction_is_done_whole_or_not_at_all() {
    let node = Node::start("tx");
    let post = |body: &str| node.ask("POST /tx", TAG, body);
    let done = post(
        r#"{"ops":[{"op":"put","table":"orders","key":"a","value":{"n": 1.0}},{"op":"mint","table":"items","text":"é\n"},
            {"op":"put","table":"photos","key":"a/b","base64":"AP8="}]}"#,
    )
    .is(200);
    let rows = done.json()["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 3);
    let id = rows[1]["key"].as_str().unwrap();
    assert_eq!(node.ask("GET /records/orders/a", TAG, "").is(200).body, r#"{"n": 1.0}"#, "as it was sent");
    // An id says itself where it belongs.
    assert_eq!(node.ask(&format!("GET /records/items/{id}"), "", "").is(200).body, "é\n");
    node.ask("GET /records/photos/a%2Fb", TAG, "").is(200);
    let by_id = format!(r#"{{"ops":[{{"op":"put","table":"notes","key":"{id}","value":null,"if_absent":true}}]}}"#);
    node.ask("POST /tx", "", &by_id).is(200);
    assert_eq!(node.ask(&format!("GET /records/notes/{id}"), "", "").body, "null");
    let lost = post(
        r#"{"ops":[{"op":"delete","table":"orders","key":"a"},{"op":"put","table":"orders","key":"b","value":1},
            {"op":"delete","table":"orders","key":"c","if_match":"*"}]}"#,
    )
    .is(412);
    assert_eq!(lost.json()["seen"], "operation 2: no such record");
    node.ask("GET /records/orders/a", TAG, "").is(200);
    node.ask("GET /records/orders/b", TAG, "").is(404);
    let twice = r#"{"ops":[{"op":"delete","table":"o","key":"a"},{"op":"put","table":"o","key":"a","value":1}]}"#;
    assert!(post(twice).is(400).json()["seen"].as_str().unwrap().contains("operation 1: the same row"));
    post(r#"{"ops":[]}"#).is(400);
    for tag in ["", TAG] {
        assert_eq!(node.ask("GET /tx", tag, "").is(405).json()["expected"], "POST to /tx");
    }
    let many = vec![r#"{"op":"mint","table":"o","value":1}"#; 129].join(",");
    assert_eq!(post(&format!(r#"{{"ops":[{many}]}}"#)).is(413).json()["seen"], "129");
    // An order of another shard: its shard stands in its id.
    let far = node.ask("POST /records/items", "x-shard: loc=116.20,40.20\r\n", "x");
    if far.status == 201 && far.field("x-ezone-shard") != done.field("x-ezone-shard") {
        let other = far.json()["id"].as_str().unwrap().to_owned();
        let mixed = format!(
            r#"{{"ops":[{{"op":"delete","table":"items","key":"{id}"}},{{"op":"delete","table":"items","key":"{other}"}}]}}"#
        );
        assert!(post(&mixed).is(400).json()["seen"].as_str().unwrap().contains("operation 1: shard"));
    }
}

#[test]
fn a_repeated_request_is_answered_as_the_first_was_and_another_with_its_key_is_refused() {
    let node = Node::start("once");
    let post =
        |key: &str, body: &str| node.ask("POST /records/orders", &format!("{TAG}idempotency-key: {key}\r\n"), body);
    let first = post("order-1", "{}").is(201);
    assert_eq!(first.field("idempotency-replayed"), None);
    let again = post("order-1", "{}").is(201);
    assert_eq!(again.field("idempotency-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    for name in ["etag", "location", "x-ezone-token"] {
        assert!(first.field(name).is_some() && again.field(name) == first.field(name), "{name}");
    }
    assert_ne!(post("order-2", "{}").is(201).body, first.body);
    let reused = post("order-1", "{\"other\":1}").is(422).json();
    assert!(reused["error"].is_string() && reused["expected"].is_string());
    post(&"k".repeat(256), "{}").is(400);
    // Also for one row under a condition, and for a transaction: what holds no more does not matter to who is told again.
    let put = |body: &str| {
        node.ask("PUT /records/orders/k", &format!("{TAG}if-none-match: *\r\nidempotency-key: put\r\n"), body)
    };
    let first = put("1").is(200);
    assert_eq!(put("1").is(200).body, first.body);
    let tx = r#"{"ops":[{"op":"delete","table":"orders","key":"k","if_match":"*"},{"op":"mint","table":"orders","value":1}]}"#;
    let post = || node.ask("POST /tx", &format!("{TAG}idempotency-key: tx\r\n"), tx);
    let first = post().is(200);
    assert_eq!(post().is(200).body, first.body);
    node.ask("GET /records/orders/k", TAG, "").is(404);
}

#[test]
fn a_token_of_a_write_makes_a_read_wait_for_it_and_a_zone_alone_confirms_nothing() {
    let node = Node::start("token");
    let put = |fields: &str| node.ask("PUT /records/orders/k", &format!("{TAG}{fields}"), "1");
    let token = put("").is(200).field("x-ezone-token").unwrap().to_owned();
    let after = |token: &str, more: &str| {
        node.ask("GET /records/orders/k", &format!("{TAG}x-ezone-after: {token}\r\n{more}"), "")
    };
    assert_eq!(after(&token, "").is(200).body, "1");
    assert_eq!(after(&token, "x-ezone-read: local\r\n").is(200).body, "1");
    let (of, seq) = token.rsplit_once('.').unwrap();
    let beyond = after(&format!("{of}.{}", seq.parse::<u64>().unwrap() + 1000), "").is(504).json();
    assert!(beyond["seen"].as_str().unwrap().contains("seq"), "{beyond}");
    for bad in ["1", "a.b.c", "0.0.0.0", "-1.0.0"] {
        after(bad, "").is(400);
    }
    let alone = put("x-ezone-ack: remote\r\n").is(501).json();
    assert!(alone["expected"].as_str().unwrap().contains("nothing was done"), "{alone}");
    put("x-ezone-ack: everyone\r\n").is(400);
}

/// A reader of `/changes`: lines as they come.
struct Reader {
    stream: std::io::BufReader<TcpStream>,
    left: usize,
}

impl Reader {
    fn new(node: &Node, query: &str) -> Reader {
        let mut stream = TcpStream::connect(node.router).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET /changes{query} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let head = process_kit::read_head(&mut stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("application/x-ndjson"), "{head}");
        Reader { stream: std::io::BufReader::new(stream), left: 0 }
    }

    fn byte(&mut self) -> Option<u8> {
        if self.left == 0 {
            let mut size = String::new();
            while size.trim().is_empty() {
                size.clear();
                std::io::BufRead::read_line(&mut self.stream, &mut size).unwrap();
            }
            self.left = usize::from_str_radix(size.trim(), 16).unwrap();
            if self.left == 0 {
                return None;
            }
        }
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        self.left -= 1;
        Some(byte[0])
    }

    /// The next line; `None`: the answer has ended.
    fn line(&mut self) -> Option<Value> {
        let mut line = vec![];
        while let Some(byte) = self.byte() {
            if byte == b'\n' {
                return Some(serde_json::from_slice(&line).unwrap());
            }
            line.push(byte);
        }
        assert!(line.is_empty(), "half a line at the end");
        None
    }

    /// The next change.
    fn change(&mut self) -> Value {
        loop {
            let line = self.line().expect("it goes on");
            if line["token"].is_null() {
                return line;
            }
        }
    }
}

#[test]
fn changes_come_as_lines_and_go_on_from_a_token() {
    let node = Node::start("changes");
    let mut all = Reader::new(&node, "?values=true");
    assert!(all.line().unwrap()["token"].is_string(), "where it begins is told at once");
    let mut orders = Reader::new(&node, "?table=orders");
    assert!(orders.line().unwrap()["token"].is_string());
    let put = node.ask("PUT /records/orders/a%2Fb", TAG, "{\"n\": 1.0}").is(200).json();
    let change = all.change();
    let first = all.line().unwrap()["token"].as_str().expect("a token follows").to_owned();
    assert_eq!((change["key"].as_str(), change["value"]["n"].as_f64()), (Some("a/b"), Some(1.0)));
    for name in ["version", "seq"] {
        assert_eq!(change[name], put[name], "{name}");
    }
    assert_eq!(
        (change["table"].as_str(), change["zone"].as_str(), change["deleted"].as_bool()),
        (Some("orders"), Some("bj"), Some(false))
    );
    let change = orders.change();
    assert!(change["key"] == "a/b" && change["value"].is_null(), "values are for who asks: {change}");
    node.ask("PUT /records/notes/n", TAG, "two\nlines").is(200);
    node.ask("DELETE /records/orders/a%2Fb", &format!("{TAG}idempotency-key: d\r\n"), "").is(200);
    let change = all.change();
    assert_eq!(change["text"], "two\nlines");
    let change = all.change();
    assert!(change["deleted"] == true && change["value"].is_null(), "{change}");
    let change = orders.change();
    assert_eq!(change["deleted"], true, "another table's change is passed over");
    drop((all, orders));
    let mut again = Reader::new(&node, &format!("?from={first}&values=1"));
    let keys: Vec<_> = (0..2).map(|_| again.line().unwrap()["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(keys, ["n", "a/b"], "what came after the token, no first answers of the store's own, nothing twice");
    for (query, expected) in [
        ("?table=Orders", 400),
        ("?from=1.2", 400),
        ("?from=9.0.1", 400),
        ("?from=0.77.1", 400),
        // Beyond the end of this zone's own log: no zone can have told of it.
        ("?from=0.0.99999999", 400),
        ("?values=maybe", 400),
        ("?what=1", 400),
    ] {
        let refused = node.ask(&format!("GET /changes{query}"), "", "").is(expected).json();
        assert!(refused["seen"].is_string() && refused["expected"].is_string(), "{refused}");
    }
    node.ask("PUT /changes", "", "x").is(405);
}

#[test]
fn a_reader_that_takes_nothing_holds_nobody_up() {
    let node = Node::start("stuck");
    let mut stuck = TcpStream::connect(node.router).unwrap();
    write!(stuck, "GET /changes?values=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut reads = Reader::new(&node, "");
    reads.line().unwrap();
    let value = "x".repeat(100_000);
    for i in 0..200 {
        node.ask(&format!("PUT /records/orders/k{i}"), TAG, &value).is(200);
    }
    // 20 MB went past the one that takes nothing; the other one, the writers and the applier did not notice.
    for i in 0..200 {
        assert_eq!(reads.change()["key"].as_str(), Some(format!("k{i}").as_str()));
    }
    assert_eq!(node.ask("GET /records/orders/k199", TAG, "").is(200).body.len(), value.len());
    drop(stuck);
}
