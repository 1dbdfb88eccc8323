//! `ezbench wan`, whole: between two namespaces as root, and as a relay for everybody.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take: machines of tests are loaded.
const PATIENCE: Duration = Duration::from_secs(60);

fn ezbench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ezbench"))
}

/// Namespaces need root. What cannot run says so; the relay's tests and the unit tests need none.
fn root(what: &str) -> bool {
    // The owner of this process's directory is its user.
    let mine = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("procfs is there"));
    if mine != 0 {
        println!("NOT RUN, as this user is not root: {what}");
    }
    mine == 0
}

/// Requests with tokens through the link; the driver's exit code, what it said, and the link's last line.
fn requests(link: &[&str], driver: &[&str]) -> (Output, Value) {
    let me = env!("CARGO_BIN_EXE_ezbench");
    let server = format!("{me} upstream --listen 10.88.0.2:3000 --seconds 120");
    let mut command = ezbench();
    command.args(["wan", "--json", "--at-b", &server]).args(link).arg("--").arg(me);
    command.args(["http", "http://10.88.0.2:3000/", "--allow-remote", "--rate", "0", "--tokens"]).args(driver);
    // The server needs a moment until it listens, and the driver does not wait for it: then once more.
    let until = Instant::now() + PATIENCE;
    loop {
        let run = command.output().expect("ezbench was built with this test");
        let text = String::from_utf8_lossy(&run.stdout).into_owned();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        if text.contains("Connection refused") && Instant::now() < until {
            continue;
        }
        let last = text.lines().last().unwrap_or_else(|| panic!("no report: {said}"));
        return (run, serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}\n{said}")));
    }
}

#[test]
fn answers_over_the_link_take_a_round_trip_at_least() {
    if !root("a round trip between two namespaces") {
        return;
    }
    let begun = Instant::now();
    let (run, seen) =
        requests(&["--each-way-ms", "40"], &["--requests", "20", "--connections", "1", "--duration", "50"]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(begun.elapsed() >= Duration::from_millis(20 * 80), "{:?} for 20 round trips of 80 ms", begun.elapsed());
    let ways = ["a_to_b", "b_to_a"].map(|way| seen[way]["delivered_segments"].as_u64().unwrap());
    assert!(ways.iter().all(|n| *n >= 20), "{seen}");
}

#[test]
fn what_is_lost_comes_again_and_no_answer_is_wrong() {
    if !root("losses between two namespaces") {
        return;
    }
    let load = [
        "--requests",
        "300",
        "--connections",
        "8",
        "--duration",
        "50",
        "--body-bytes",
        "1000..20000",
        "--method",
        "POST",
    ];
    let (run, seen) = requests(&["--each-way-ms", "2", "--loss", "0.02", "--jitter-ms", "1"], &load);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(seen["a_to_b"]["lost"].as_u64().unwrap() > 0, "{seen}");
}

#[test]
fn flipped_bits_reach_the_program_that_receives_them() {
    if !root("corruption between two namespaces") {
        return;
    }
    let load =
        ["--requests", "300", "--connections", "8", "--duration", "20", "--body-bytes", "20000", "--method", "POST"];
    let (run, seen) = requests(&["--each-way-ms", "1", "--corrupt", "0.05"], &load);
    assert!(seen["a_to_b"]["corrupted"].as_u64().unwrap() > 0, "{seen}");
    assert_eq!(run.status.code(), Some(1), "the driver sees answers that are not its own: {run:?}");
}

#[test]
fn a_run_that_was_killed_leaves_what_the_next_one_removes() {
    if !root("namespaces left behind") {
        return;
    }
    let mut killed = Held::start(&["--each-way-ms", "1"]);
    let made = killed.said();
    let names = ["a", "b"].map(|end| made[end]["namespace"].as_str().expect("a name").to_owned());
    let there = |name: &String| PathBuf::from("/run/netns").join(name).exists();
    assert!(names.iter().all(there), "{made}");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let mut next = Held::start(&["--each-way-ms", "1"]);
    let own = next.said()["a"]["namespace"].as_str().expect("a name").to_owned();
    assert!(!names.iter().any(there), "{names:?}");
    drop(next.child.stdin.take());
    assert_eq!(next.child.wait().unwrap().code(), Some(0), "the end of stdin ends it");
    assert!(!there(&own), "{own}");
}

#[test]
fn the_program_runs_at_a_and_its_exit_code_is_that_of_the_run() {
    if !root("a program at a") {
        return;
    }
    let script =
        "test \"$EZWAN_ADDRESS_B\" = 10.88.0.2 && grep -q wan0 /proc/net/dev && test -e /run/netns/$EZWAN_B && exit 7";
    let run = ezbench().args(["wan", "--json", "--", "sh", "-c", script]).output().unwrap();
    assert_eq!(run.status.code(), Some(7), "{run:?}");
    let run = ezbench().args(["wan", "--", "/no/such/program"]).output().unwrap();
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    assert!(String::from_utf8_lossy(&run.stderr).contains("/no/such/program"), "{run:?}");
}

#[test]
fn what_cannot_be_made_is_refused_with_the_reason() {
    for (args, why) in [
        (["--loss", "1.5"].as_slice(), "--loss 1.5: expected 0 to 1"),
        (&["--each-way-ms=-1"], "--each-way-ms -1: expected 0 to 60000"),
        (&["--rate", "fast"], "expected 1kbit to 100gbit"),
        (&["--cut", "9s-3s"], "it ends before it begins"),
        (&["--relay", "127.0.0.1:0=127.0.0.1:9", "--loss", "0.1"], "TCP ends at the relay"),
    ] {
        let run = ezbench().arg("wan").args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(run.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&run.stderr).contains(why), "{args:?}: {run:?}");
    }
}

/// A link that stays up until this is dropped.
struct Held {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Held {
    fn start(args: &[&str]) -> Held {
        let mut command = ezbench();
        let mut child =
            command.args(["wan", "--json"]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Held { child, out }
    }

    fn said(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    fn order(&mut self, line: &str) -> Value {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.said()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A relay in front of a server that answers every byte with itself.
fn echo_behind(args: &[&str]) -> (Held, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let route = format!("127.0.0.1:0={}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut part = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut part) {
                    if stream.write_all(&part[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let mut held = Held::start(&[&["--relay", &route], args].concat());
    let at = held.said()["listen"][0].as_str().expect("an address").parse().unwrap();
    (held, at)
}

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_relayed_echo_takes_a_round_trip_and_all_bytes_come_back_in_order() {
    let (mut held, at) = echo_behind(&["--each-way-ms", "20", "--rate", "200mbit"]);
    let mut stream = connect(at);
    let mut byte = [0; 1];
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut byte).unwrap();
    let begun = Instant::now();
    stream.write_all(b"y").unwrap();
    stream.read_exact(&mut byte).unwrap();
    assert!(byte == *b"y" && begun.elapsed() >= Duration::from_millis(40), "{:?}", begun.elapsed());
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut back, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let writer = thread::spawn(move || stream.write_all(&bytes).unwrap());
    let mut seen = vec![0; sent.len()];
    back.read_exact(&mut seen).unwrap();
    writer.join().unwrap();
    assert!(seen == sent, "other bytes came back");
    assert_eq!(held.order("counters")["there"]["bytes"], 3_000_002);
}

#[test]
fn a_cut_relay_holds_everything_up_until_it_is_healed_and_loses_nothing() {
    let (mut held, at) = echo_behind(&["--each-way-ms", "1"]);
    let (mut stream, mut byte) = (connect(at), [0; 1]);
    stream.write_all(b"a").unwrap();
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(held.order("cut")["done"], "cut");
    stream.write_all(b"b").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(stream.read_exact(&mut byte).is_err(), "a byte came through a cut link");
    assert_eq!(held.order("heal")["done"], "heal");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"b");
    assert!(held.order("loss 0.5")["error"].is_string());
    assert!(held.order("faster")["error"].as_str().unwrap().contains("expected cut, heal"));
}

#[test]
fn a_relay_that_corrupts_flips_what_it_counts() {
    let (mut held, at) = echo_behind(&["--each-way-ms", "0", "--rate", "none", "--corrupt", "0.5"]);
    let mut stream = connect(at);
    let mut seen = vec![0; 100_000];
    stream.write_all(&seen).unwrap();
    stream.read_exact(&mut seen).unwrap();
    let seen: u64 = seen.iter().map(|b| u64::from(b.count_ones())).sum();
    let counters = held.order("counters");
    let flipped: u64 = ["there", "back"].map(|way| counters[way]["corrupted"].as_u64().unwrap()).iter().sum();
    assert!(flipped > 0 && seen <= flipped && seen % 2 == flipped % 2, "{seen} bits differ, {counters}");
}
