//! Strangers at a log's link port who say nothing, or a byte a second: how many are kept, for how long, and who gets in meanwhile.

mod pair_kit;
mod process_kit;

use pair_kit::{BJ, Pair, SH, SHARDS};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{scope, sleep};
use std::time::Duration;

const LINES: &str = "cores = [0]\nstreams = 1\nsegment_mib = 1";
/// More than a log hears at once: `HELLOS_MAX` of `control/links.rs` is 256.
const MANY: usize = 300;
const HEARD_MAX: usize = 256;

/// Reads to the end of a connection that the log ends.
fn ended(mut socket: &TcpStream) {
    socket.set_read_timeout(Some(Duration::from_secs(200))).unwrap();
    let mut rest = vec![];
    match socket.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.len() < 100, "{rest:?}"),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset, "the connection is ended: {e}"),
    }
}

/// A handshake's first record that is announced with 512 bytes, a byte each second, until the log has ended it; how many it took.
fn drip(pair: &Pair) -> usize {
    let mut socket = TcpStream::connect(pair.links[BJ]).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let first = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    for (n, byte) in first.into_iter().chain(std::iter::repeat(7)).take(230).enumerate() {
        let ends = socket.write_all(&[byte]).is_err()
            || match socket.read(&mut [0; 64]) {
                Ok(0) => true,
                Ok(_) => false, // an alert
                Err(e) => e.kind() == ErrorKind::ConnectionReset,
            };
        if ends {
            return n;
        }
    }
    panic!("a handshake that drips is heard for ever: {}", pair.dir.said());
}

fn a_hundred_at_a_time(mut pair: Pair, drips: bool) {
    pair.start(BJ);
    pair.link(BJ, 0, "sh is not there", |l| l["failures"].as_u64() > Some(0));
    let (before, base) = (pair.status(BJ)["links_refused"].as_u64().unwrap(), pair.descriptors(BJ));
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(pair.links[BJ]).unwrap()).collect();
    // A real link finds its place beside them.
    pair.start(SH);
    pair.write(SH, SHARDS[SH], 0..20, |k| format!("{k}"));
    pair.link(SH, 0, "sh's link is live", |l| l["state"] == "live");
    pair.agree(1);
    scope(|scope| {
        let dripping: Vec<_> = (0..if drips { 5 } else { 0 }).map(|_| scope.spawn(|| drip(&pair))).collect();
        silent.iter().for_each(ended);
        dripping.into_iter().for_each(|d| assert!(d.join().unwrap() > 0));
    });
    let all = before + 100 + if drips { 5 } else { 0 };
    pair.within("each is counted", || (pair.status(BJ)["links_refused"].as_u64()? >= all).then_some(()));
    assert!(pair.dir.said().contains("no HELLO within 5 s"), "{}", pair.dir.said());
    // More than are heard at once: the others wait in the kernel, and take none of the log's descriptors.
    let many: Vec<_> = (0..MANY).map(|_| TcpStream::connect(pair.links[BJ]).unwrap()).collect();
    for _ in 0..10 {
        let now = pair.descriptors(BJ);
        // Beside them: sh's link, questions of this test, files.
        assert!(now <= base + HEARD_MAX + 30, "{now} descriptors, {base} before");
        sleep(Duration::from_millis(100));
    }
    many.iter().for_each(ended);
    let all = all + MANY as u64;
    pair.within("each is counted", || (pair.status(BJ)["links_refused"].as_u64()? >= all).then_some(()));
    pair.within("nothing of them is left", || (pair.descriptors(BJ) <= base + 30).then_some(()));
    let (_, metrics) = pair.ask(BJ, "GET", "/metrics", "");
    assert!(metrics.contains("ezone_links_refused_total"), "{metrics}");
    pair.write(SH, SHARDS[SH], 20..40, |k| format!("{k}"));
    pair.agree(1);
}

/// Keeps `count` silent connections open: whatever the log ends is opened anew.
fn flood(at: SocketAddr, count: usize, over: &AtomicBool) {
    let mut all: Vec<TcpStream> = vec![];
    while !over.load(Relaxed) {
        let is_open = |socket: &TcpStream| socket.peek(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        all.retain(is_open);
        // A port whose queue is full takes none for a while.
        let more = (all.len()..count).map_while(|_| TcpStream::connect_timeout(&at, Duration::from_millis(100)).ok());
        let more: Vec<_> = more.inspect(|socket| socket.set_nonblocking(true).unwrap()).collect();
        all.extend(more);
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn strangers_who_take_every_place_again_and_again_hold_no_real_link_up() {
    let mut pair = Pair::new("flood", LINES).over_tls();
    pair.start(BJ);
    let (base, at, over) = (pair.descriptors(BJ), pair.links[BJ], AtomicBool::new(false));
    scope(|scope| {
        scope.spawn(|| flood(at, 700, &over));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pair.within("every place is taken", || (pair.descriptors(BJ) > base + HEARD_MAX - 20).then_some(()));
            pair.start(SH);
            pair.write(SH, SHARDS[SH], 0..20, |k| format!("{k}"));
            pair.link(SH, 0, "sh's link is live", |l| l["state"] == "live");
            pair.agree(1);
            assert!(pair.descriptors(BJ) <= base + HEARD_MAX + 30, "{} descriptors", pair.descriptors(BJ));
        }));
        over.store(true, Relaxed); // else the flood, and with it the test, would never end
        outcome.unwrap_or_else(|why| resume_unwind(why));
    });
    assert!(pair.dir.said().contains("gives way"), "{}", pair.dir.said());
}

#[test]
fn who_says_nothing_at_a_port_that_speaks_tls_or_drips_is_let_go_and_counted_and_a_real_link_gets_in() {
    a_hundred_at_a_time(Pair::new("tls", LINES).over_tls(), true);
}

#[test]
fn who_says_nothing_at_a_plain_port_is_let_go_and_counted_and_a_real_link_gets_in() {
    a_hundred_at_a_time(Pair::new("plain", LINES), false);
}
