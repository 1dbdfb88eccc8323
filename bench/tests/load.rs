//! The load driver against the backend and against servers that misbehave: counts, not times.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

struct Backend {
    child: Child,
    address: String,
}

impl Backend {
    fn start(args: &[&str]) -> Backend {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ezbench"))
            .args(["upstream", "--seconds", "30"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_string();
        Backend { child, address }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code and the JSON of one run.
fn load(address: &str, args: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_ezbench"))
        .args(["http", &format!("http://{address}/"), "--json"])
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), serde_json::from_str(last).unwrap())
}

/// A server that treats each connection with `serve`; its thread ends with the test's process.
fn server(serve: fn(TcpStream)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || serve(stream)))));
    address
}

#[test]
fn each_request_of_an_even_schedule_is_sent_and_answered() {
    let backend = Backend::start(&["--body", "10"]);
    let (code, seen) = load(&backend.address, &["--rate", "200", "--duration", "0.5", "--connections", "4"]);
    assert_eq!((code, &seen["requests"], &seen["answers"]), (0, &100.into(), &100.into()), "{seen}");
    assert_eq!(seen["status"]["200"], 100);
}

#[test]
fn a_closed_loop_with_large_bodies_both_ways_loses_nothing() {
    let backend = Backend::start(&["--body", "300000"]);
    let body = "x".repeat(100_000);
    let args = ["--rate", "0", "--duration", "0.3", "--connections", "3", "--method", "POST", "--body", &body];
    let (code, seen) = load(&backend.address, &args);
    assert_eq!(code, 0, "{seen}");
    assert_eq!(seen["requests"], seen["answers"]);
    assert!(seen["bytes_read"].as_u64().unwrap() >= seen["answers"].as_u64().unwrap() * 300_000);
}

#[test]
fn announced_closes_are_no_errors() {
    let backend = Backend::start(&["--close-after", "3"]);
    let (code, seen) = load(&backend.address, &["--rate", "300", "--duration", "0.3", "--connections", "2"]);
    assert_eq!((code, &seen["answers"]), (0, &90.into()), "{seen}");
}

#[test]
fn a_stall_shows_in_every_request_that_was_due_meanwhile() {
    // One connection at a time; the tenth request waits 300 ms.
    let address = server(|mut stream| {
        let mut buffer = [0; 4096];
        let mut count = 0;
        while matches!(stream.read(&mut buffer), Ok(1..)) {
            count += 1;
            if count == 10 {
                thread::sleep(Duration::from_millis(300));
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let (code, seen) = load(&address, &["--rate", "200", "--duration", "0.6", "--connections", "1"]);
    assert_eq!((code, &seen["answers"]), (0, &120.into()), "{seen}");
    assert!(seen["latency_us"]["max"].as_f64().unwrap() >= 300_000.0, "{seen}");
    // 60 of the 120 were due during the stall, so the 90th percentile sees it; the service times hide it.
    assert!(seen["latency_us"]["p90"].as_f64().unwrap() >= 100_000.0, "{seen}");
    assert!(seen["queued"].as_u64().unwrap() >= 50, "{seen}");
}

#[test]
fn each_way_to_fail_has_its_own_count() {
    fn after_request(mut stream: TcpStream, answer: &[u8]) {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(answer);
    }
    let check = |serve: fn(TcpStream), kind: &str| {
        let args = ["--rate", "20", "--duration", "0.2", "--connections", "4", "--timeout-ms", "200"];
        let (code, seen) = load(&server(serve), &args);
        assert_eq!((code, &seen["answers"], &seen["errors"][kind]), (1, &0.into(), &4.into()), "{kind}: {seen}");
    };
    check(|stream| after_request(stream, b""), "reset");
    check(|stream| after_request(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"), "reset");
    check(|stream| after_request(stream, b"\x00garbage"), "parse");
    check(|stream| after_request(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab"), "parse");
    check(
        |stream| (after_request(stream.try_clone().unwrap(), b""), thread::sleep(Duration::from_secs(2))).1,
        "timeout",
    );
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, seen) = load(&refused, &["--rate", "20", "--duration", "0.2", "--connections", "4"]);
    assert_eq!((code, &seen["errors"]["connect"]), (1, &4.into()), "{seen}");
}

#[test]
fn an_answer_that_dribbles_is_still_an_answer() {
    let address = server(|mut stream| {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer), Ok(1..)) {
            for byte in b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" {
                let _ = stream.write_all(&[*byte]);
                thread::yield_now();
            }
        }
    });
    let (code, seen) = load(&address, &["--rate", "50", "--duration", "0.2", "--connections", "2"]);
    assert_eq!((code, &seen["answers"]), (0, &10.into()), "{seen}");
}

#[test]
fn absurd_values_are_refused_before_anything_is_sent() {
    for args in
        [["--rate", "1e9"], ["--rate", "NaN"], ["--connections", "0"], ["--duration", "1e9"], ["--timeout-ms", "0"]]
    {
        let run =
            Command::new(env!("CARGO_BIN_EXE_ezbench")).args(["http", "127.0.0.1:1"]).args(args).output().unwrap();
        assert_eq!(run.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8(run.stderr).unwrap().contains("expected"), "{args:?}");
    }
}

#[test]
fn pipelined_requests_behind_large_answers_are_all_answered() {
    let backend = Backend::start(&["--body", "300000"]);
    let mut stream = TcpStream::connect(&backend.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let last = "GET / HTTP/1.1\r\nconnection: close\r\n\r\n";
    stream.write_all(("GET / HTTP/1.1\r\n\r\n".repeat(19) + last).as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.windows(12).filter(|w| w == b"HTTP/1.1 200").count(), 20);
    assert!(bytes.len() > 20 * 300_000);
}

#[test]
fn answers_after_the_schedule_do_not_raise_the_achieved_rate() {
    // 2 connections at 20 ms an answer: at most 100/s, however many were due.
    let backend = Backend::start(&["--delay-ms", "20"]);
    let args = ["--rate", "500", "--duration", "0.2", "--connections", "2", "--timeout-ms", "400"];
    let (code, seen) = load(&backend.address, &args);
    assert_eq!(code, 1, "{seen}");
    assert!(seen["achieved_per_s"].as_f64().unwrap() <= 101.0, "{seen}");
    assert_eq!(seen["answers"].as_u64().unwrap() + count(&seen, "timeout") + count(&seen, "unsent"), 100, "{seen}");
}

fn count(seen: &Value, kind: &str) -> u64 {
    seen["errors"][kind].as_u64().unwrap()
}

#[test]
fn a_signal_ends_a_run_and_its_rate_is_of_the_time_that_it_ran() {
    let backend = Backend::start(&[]);
    let run = Command::new(env!("CARGO_BIN_EXE_ezbench"))
        .args(["http", &format!("http://{}/", backend.address), "--rate", "100", "--duration", "60", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(1500));
    Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let output = run.wait_with_output().unwrap();
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &seen["interrupted"]), (Some(1), &true.into()), "{seen}");
    let (answers, seconds) = (seen["answers"].as_f64().unwrap(), seen["seconds"].as_f64().unwrap());
    assert!(seconds < 59.0, "{seen}");
    assert!((seen["achieved_per_s"].as_f64().unwrap() - answers / seconds).abs() < 1.0, "{seen}");
}

#[test]
fn requests_with_tokens_get_their_own_answers_in_order_however_they_are_framed() {
    let backend = Backend::start(&["--body", "0..50000", "--chunked", "--close-after", "50"]);
    let args = ["--rate", "0", "--requests", "2000", "--duration", "20", "--connections", "4", "--pipeline", "8"];
    let more = ["--tokens", "--method", "POST", "--body-bytes", "0..20000"];
    let (code, seen) = load(&backend.address, &[args.as_slice(), &more].concat());
    assert_eq!((code, &seen["answers"], &seen["status"]["200"]), (0, &2000.into(), &2000.into()), "{seen}");
}

#[test]
fn another_requests_answer_is_a_mix_up_that_nothing_tolerates() {
    // Each connection is told what the first one asked for.
    let address = server(|mut stream| {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer), Ok(1..)) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-token: 0000000000000001\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let args = ["--rate", "100", "--requests", "5", "--tokens", "--tolerate", "reset,parse,500"];
    let (code, seen) = load(&address, &args);
    assert_eq!((code, &seen["errors"]["mixed"], &seen["answers"]), (1, &5.into(), &0.into()), "{seen}");
}

#[test]
fn a_backend_that_misbehaves_does_so_in_the_way_that_it_was_told() {
    let args = ["--rate", "0", "--requests", "300", "--duration", "20", "--connections", "4", "--tokens"];
    let check = |how: &[&str], kind: &str, timeout_ms: &str| {
        let backend = Backend::start(how);
        let (_, seen) = load(&backend.address, &[args.as_slice(), &["--timeout-ms", timeout_ms]].concat());
        let wrong = if kind == "503" { seen["status"]["503"].as_u64().unwrap() } else { count(&seen, kind) };
        assert!((60..240).contains(&wrong), "{how:?}: {seen}");
        assert_eq!(seen["status"]["200"].as_u64().unwrap() + wrong, 300, "{how:?}: {seen}");
        assert_eq!(count(&seen, "mixed"), 0, "{how:?}: {seen}");
    };
    check(&["--cut-chance", "0.5"], "reset", "5000");
    check(&["--cut-chance", "0.5", "--reset", "--body", "100000"], "reset", "5000");
    check(&["--error-chance", "0.5"], "503", "5000");
    check(&["--stall-chance", "0.5"], "timeout", "100");
}

#[test]
fn closes_between_answers_harm_a_client_only_when_it_has_just_asked() {
    let backend = Backend::start(&["--idle-ms", "20"]);
    let args = ["--rate", "200", "--duration", "1", "--connections", "8", "--tolerate", "reset"];
    let (code, seen) = load(&backend.address, &args);
    assert_eq!(code, 0, "{seen}");
    assert!(seen["closed_idle"].as_u64().unwrap() > 0, "{seen}");
}

#[test]
fn an_answer_in_pieces_takes_its_time_and_is_whole() {
    let backend = Backend::start(&["--body", "1000", "--piece-bytes", "100", "--piece-ms", "10"]);
    let args = ["--rate", "20", "--requests", "4", "--connections", "4", "--tokens"];
    let (code, seen) = load(&backend.address, &args);
    assert_eq!((code, &seen["answers"]), (0, &4.into()), "{seen}");
    assert!(seen["service_us"]["p50"].as_f64().unwrap() >= 100_000.0, "{seen}");
}

#[test]
fn idle_connections_are_held_and_still_serve_at_the_end() {
    let backend = Backend::start(&[]);
    let args = ["--rate", "100", "--duration", "0.2", "--connections", "2", "--idle", "200", "--tokens"];
    let (code, seen) = load(&backend.address, &args);
    assert_eq!((code, &seen["held"], &seen["held_alive"]), (0, &200.into(), &200.into()), "{seen}");
    let backend = Backend::start(&["--idle-ms", "1"]);
    let args = ["--rate", "100", "--duration", "0.5", "--idle", "20", "--tolerate", "reset"];
    let (code, seen) = load(&backend.address, &args);
    assert_eq!(code, 1, "held connections that were closed are errors: {seen}");
    assert!(seen["held_alive"].as_u64().unwrap() < 20, "{seen}");
}
