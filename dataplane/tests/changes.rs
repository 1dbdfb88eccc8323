//! `GET /changes` of a real node with two log cores: what is no longer kept, who takes nothing, and streams of both cores in one answer.

mod process_kit;

use process_kit::{Dir, Running, addresses, http, map, read_head, within_or};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Places of zone bj: shard 121, which is of stream 1 and log core 1; shard 132, of stream 0 and log core 0.
const PLACES: [&str; 2] = ["loc=117.20,39.13", "loc=116.40,39.90"];

struct Node {
    _log: Running,
    _router: Running,
    router: SocketAddr,
    router_admin: SocketAddr,
    log_admin: SocketAddr,
    dir: Dir,
}

impl Node {
    fn start(name: &str) -> Node {
        let (dir, at): (_, [_; 5]) = (Dir::new(name), addresses());
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"{}\"\n[map]\nfile = \"{}\"\n[router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\n\
             admin = \"{}\"\ncores = [0]\n[log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0, 1]\nstreams = 2\nsegment_mib = 1\n\
             keep_mib = 0\n[limits]\nanswer_ms_max = 2000\n",
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
            command.args([program, "--config"]).arg(&config).stdin(Stdio::null());
            Running(command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap())
        };
        let (_log, _router) = (start("log"), start("router"));
        Node { _log, _router, router: at[0], router_admin: at[2], log_admin: at[4], dir }
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    fn get(&self, at: SocketAddr, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        self.within(path, || http(at, &request).ok())
    }

    fn put(&self, place: usize, key: &str, value: &str) {
        let (place, len) = (PLACES[place], value.len());
        let head =
            format!("PUT /records/orders/{key} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-shard: {place}\r\n");
        let request = format!("{head}content-length: {len}\r\n\r\n{value}");
        // Not at once at the start, nor if a write takes longer than an answer may here.
        self.within("a write", || http(self.router, &request).ok().filter(|(status, _)| *status == 200));
    }

    /// A reader, and the token that it begins with.
    fn read(&self, query: &str) -> (Reader, String) {
        let mut stream = TcpStream::connect(self.router).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        write!(stream, "GET /changes{query} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let head = read_head(&mut stream).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut reader = Reader(BufReader::new(stream));
        let first = if query.contains("from") { String::new() } else { token(&reader.line()).unwrap() };
        (reader, first)
    }

    fn cut(&self) -> u64 {
        let (_, page) = self.get(self.router_admin, "/metrics");
        let line = page.lines().find(|l| l.starts_with("ezone_changes_cut_total")).unwrap_or_else(|| panic!("{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// Lines of an answer that comes in chunks of whole lines.
struct Reader(BufReader<TcpStream>);

impl Reader {
    fn line(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the answer ends");
            // Between them lie the lengths of chunks and empty lines.
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            }
        }
    }

    /// So many changes, and the next token behind them.
    fn changes(&mut self, count: usize) -> (Vec<Value>, String) {
        let mut all = vec![];
        loop {
            let line = self.line();
            match token(&line) {
                Some(token) if all.len() >= count => return (all, token),
                Some(_) => {}
                None => all.push(line),
            }
        }
    }
}

fn token(line: &Value) -> Option<String> {
    line["token"].as_str().map(str::to_owned)
}

/// Shard, stream and key of each, sorted.
fn told(all: &[Value]) -> Vec<(u64, u64, String)> {
    let one =
        |c: &Value| (c["shard"].as_u64().unwrap(), c["stream"].as_u64().unwrap(), c["key"].as_str().unwrap().into());
    let mut all: Vec<_> = all.iter().map(one).collect();
    all.sort();
    all
}

#[test]
fn streams_of_both_log_cores_are_told_in_one_answer_and_go_on_from_its_token() {
    let node = Node::start("cores");
    (0..2).for_each(|place| node.put(place, &format!("before{place}"), "x"));
    let (mut reader, begun) = node.read("?table=orders");
    assert_eq!(begun.split(',').count(), 2, "a place in each stream: {begun}");
    for i in 0..10 {
        node.put(i % 2, &format!("k{i}"), "x");
    }
    // Applied is a moment later than durable: what was written before may be told first.
    let mut all = vec![];
    let mut last = begun.clone();
    while all.iter().filter(|c: &&Value| c["key"].as_str().unwrap().starts_with('k')).count() < 10 {
        let (more, token) = reader.changes(1);
        all.extend(more);
        last = token;
    }
    all.retain(|c| c["key"].as_str().unwrap().starts_with('k'));
    let expected: Vec<_> = [(121, 1), (132, 0)]
        .iter()
        .flat_map(|(shard, stream)| {
            (0..10).filter(move |i| i % 2 == *stream).map(|i| (*shard, *stream, format!("k{i}")))
        })
        .collect();
    assert_eq!(told(&all), expected);
    for stream in 0..2 {
        let seqs: Vec<_> = all.iter().filter(|c| c["stream"] == stream).map(|c| c["seq"].as_u64().unwrap()).collect();
        assert!(seqs.is_sorted(), "in the order of its log: {seqs:?}");
    }
    drop(reader);
    (0..2).for_each(|place| node.put(place, &format!("later{place}"), "x"));
    let (mut reader, _) = node.read(&format!("?table=orders&from={last}"));
    let (all, _) = reader.changes(2);
    assert_eq!(told(&all), [(121, 1, "later1".into()), (132, 0, "later0".into())], "nothing twice, nothing left out");
}

#[test]
fn who_asks_for_what_was_let_go_is_told_the_first_place_that_is_kept() {
    let node = Node::start("gone");
    node.put(0, "first", "x");
    let (reader, begun) = node.read("");
    drop(reader);
    let value = "v".repeat(100_000);
    (0..40).for_each(|i| node.put(0, &format!("k{i}"), &value));
    let first = node.within("the log lets go", || {
        let status: Value = serde_json::from_str(&node.get(node.log_admin, "/status").1).unwrap();
        let first = status["streams"][0]["logs"]["bj"]["first_kept"].as_u64()?;
        (first > 20).then_some(first)
    });
    let (status, body) = node.get(node.router, &format!("/changes?from={begun}"));
    let why: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 410, "{why}");
    assert!(begun.split(',').any(|place| why["seen"] == place), "{why} for {begun}");
    let place = why["expected"].as_str().unwrap().split(' ').next().unwrap().to_owned();
    let seq: u64 = place.rsplit('.').next().unwrap().parse().unwrap();
    assert!(seq >= first - 1, "{why}: first kept is {first}");
    // That place is one to go on from, beside the other stream's.
    let mut places: Vec<&str> = begun.split(',').filter(|p| why["seen"] != *p).collect();
    places.push(&place);
    let (mut reader, _) = node.read(&format!("?from={}", places.join(",")));
    let (all, _) = reader.changes(1);
    assert_eq!((all[0]["seq"].as_u64(), all[0]["stream"].as_u64()), (Some(seq + 1), Some(0)), "{}", all[0]);
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off_and_counted() {
    let node = Node::start("cut");
    node.put(0, "first", "x");
    let (stuck, _) = node.read("?values=true");
    assert_eq!(node.cut(), 0);
    let value = "v".repeat(200_000);
    let mut written = 0;
    node.within("it is cut off", || {
        // More than the buffers of both ends hold.
        if written < 150 {
            node.put(written % 2, &format!("k{written}"), &value);
            written += 1;
        }
        (node.cut() == 1).then_some(())
    });
    // What is on its way can still be taken; the end of the connection is behind it.
    let mut rest = vec![];
    let end = { stuck.0 }.read_to_end(&mut rest);
    assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(rest.len() < written * value.len(), "{} bytes of {written} writes", rest.len());
    node.put(0, "last", "x");
}
