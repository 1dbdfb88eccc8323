//! A router on a ring that is far too small: what else takes thousands of connections at one moment happens all the time.
//!
//! PITFALLS, "io_uring": multishot requests that end quietly; provided buffers that run out; the submission queue full; CQ
//! overflow; a descriptor closed and reused under a request in flight; buffers freed before their send completed.

#[allow(dead_code)] // the full runs are elsewhere
mod reliability_world;
mod router_table;

use dataplane::router::Limits;
use dataplane::uring::Sizes;
use reliability_world::{Backend, Client, Manner, Router, body, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{sleep, spawn};
use std::time::Duration;

const TINY: Sizes = Sizes { entries: 2, completions: 4, buffers: 2 };

/// Tests that count this process's descriptors take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

/// Open sockets and rings of this process.
fn descriptors() -> usize {
    let target =
        |e: std::fs::DirEntry| std::fs::read_link(e.path()).map(|l| l.display().to_string()).unwrap_or_default();
    let all = std::fs::read_dir("/proc/self/fd").unwrap().map(|e| target(e.unwrap()));
    all.filter(|l| l.starts_with("socket:") || l.starts_with("anon_inode:")).count()
}

/// Numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn new(n: u64) -> Dice {
        let seed = std::env::var("SEED").map_or(1, |s| s.parse().unwrap());
        Dice((seed << 16) + n)
    }
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn on_a_ring_of_two_entries_four_completions_and_two_buffers_all_is_served_and_nothing_mixed_up() {
    let _turn = turn();
    let backend = Backend::start(None, Manner::default());
    let router = Router::sized(&[backend.addr], TINY);
    let clients: Vec<_> = (0..32u64)
        .map(|n| {
            let mut client = Client::connect(router.addr);
            spawn(move || {
                for (i, size) in [0, 100, 9_000, 70_000, 300_000, 20, 8_192, 1].into_iter().enumerate() {
                    let token = n * 100 + i as u64;
                    let method = if size == 0 { "GET" } else { "PUT" };
                    let expected = body(token, if size == 0 { 20 } else { size });
                    let (status, seen) = client.ask(method, token, size).expect("an answer");
                    assert!(status == 200 && seen == expected, "request {token}: {status}, {} bytes", seen.len());
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|t| t.join().unwrap());
    let loops = router.control.shared().loops(0);
    let seen = [&loops.out_of_buffers, &loops.overflows, &loops.completions_max].map(|f| f.get());
    println!("out of buffers {}, overflows {}, completions of the fullest round {}", seen[0], seen[1], seen[2]);
    assert!(seen[0] > 0, "buffers never ran out: the test proves nothing");
    assert!(seen[1] > 0, "completions never found the ring full: the test proves nothing");
    wait_for("clients to be gone", || router.counts().clients == 0);
    router.stop();
}

/// A multishot accept ends when the completion queue is full: who is next has to be accepted all the same.
#[test]
fn an_accept_that_ended_quietly_is_armed_again() {
    let _turn = turn();
    let backend = Backend::start(None, Manner::default());
    let router = Router::sized(&[backend.addr], TINY);
    for round in 0..5 {
        let opened = |_| (0..60).map(|_| Client::connect(router.addr)).collect::<Vec<_>>();
        let mut clients: Vec<Client> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|n| s.spawn(move || opened(n))).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        for (i, client) in clients.iter_mut().enumerate() {
            client.send("PUT", "/a", i as u64, 50);
        }
        for (i, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.receive(), Some((200, body(i as u64, 50))), "round {round}, client {i}");
        }
        drop(clients);
        wait_for("clients to be gone", || router.counts().clients == 0);
    }
    router.stop();
}

/// One request that is broken off at a random point: in its body, in its answer, by an end or a reset.
fn break_off(at: SocketAddr, dice: &mut Dice) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    if dice.below(2) == 0 {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let size = 1 + dice.below(400_000);
    let head =
        format!("PUT /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nx-token: 7\r\nContent-Length: {size}\r\n\r\n");
    let request = [head.as_bytes(), &body(7, size)].concat();
    let part = if dice.below(2) == 0 { request.len() } else { dice.below(request.len()) };
    if stream.write_all(&request[..part]).is_err() {
        return; // the upstream has broken off, and the router with it
    }
    if part == request.len() {
        let mut answer = vec![0; 1 + dice.below(size)];
        let _ = stream.read(&mut answer); // it may be an error, or nothing
    }
    if dice.below(4) == 0 {
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// PITFALLS: a descriptor closed and reused under a request in flight; buffers freed before their send completed. Connections
/// of both sides end at any moment, their descriptors are used again at once, and beside them answers are compared.
#[test]
fn connections_that_end_in_the_middle_of_anything_leave_nothing_behind_and_harm_no_other() {
    let _turn = turn();
    for sizes in [TINY, Sizes { entries: 64, completions: 128, buffers: 16 }] {
        let manner = Manner { closes_of_1000: 100, cuts_of_1000: 60, resets_of_1000: 60 };
        let (bad, good) = (Backend::start(None, manner), Backend::start(None, Manner::default()));
        let before = descriptors();
        let router = Router::sized(&[bad.addr, good.addr], sizes);
        let (at, over, served) = (router.addr, Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let careful: Vec<_> = (0..4u64)
            .map(|n| {
                let (over, served) = (over.clone(), served.clone());
                spawn(move || {
                    let (mut client, mut dice) = (Client::connect(at), Dice::new(100 + n));
                    for token in (n..).step_by(4) {
                        if over.load(Relaxed) {
                            return;
                        }
                        let size = 1 + dice.below(100_000);
                        match client.ask("PUT", token, size) {
                            Some((200, seen)) => {
                                assert!(seen == body(token, size), "request {token}: another's bytes");
                                served.fetch_add(1, Relaxed);
                            }
                            Some((status, _)) => assert!(status >= 500, "{status}"),
                            None => client = Client::connect(at),
                        }
                    }
                })
            })
            .collect();
        let careless: Vec<_> = (0..4)
            .map(|n| {
                spawn(move || {
                    let mut dice = Dice::new(n);
                    (0..150).for_each(|_| break_off(at, &mut dice));
                })
            })
            .collect();
        careless.into_iter().for_each(|t| t.join().unwrap());
        over.store(true, Relaxed);
        careful.into_iter().for_each(|t| t.join().unwrap());
        println!("{sizes:?}: {} answers compared, retried {}", served.load(Relaxed), router.counts().retried_lost);
        assert!(served.load(Relaxed) > 50);
        wait_for("clients to be gone", || router.counts().clients == 0);
        wait_for("nothing in flight", || router.counts().in_flight == 0);
        router.stop();
        drop((bad.kill(), good.kill()));
        // The two listeners of the backends stay: their threads wait in accept.
        wait_for("every descriptor to be closed", || descriptors() <= before);
    }
}

/// Back-pressure: receives are cancelled and armed again while bytes arrive, in both directions.
#[test]
fn a_slow_reader_gets_all_bytes_in_order_while_its_upstream_is_held_back() {
    let _turn = turn();
    const BYTES: usize = 12 << 20;
    for sizes in [TINY, Sizes::default()] {
        let backend = Backend::start(None, Manner::default());
        let router = Router::sized(&[backend.addr], sizes);
        let clients: Vec<_> = (0..2u64)
            .map(|token| {
                let at = router.addr;
                spawn(move || {
                    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                    socket.set_recv_buffer_size(16 * 1024).unwrap();
                    socket.connect(&at.into()).unwrap();
                    let mut stream = TcpStream::from(socket);
                    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    let head = format!(
                        "PUT /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nx-token: {token}\r\nContent-Length: {BYTES}\r\n\r\n"
                    );
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(&body(token, BYTES)).unwrap();
                    let (mut seen, mut part) = (vec![], vec![0; 64 * 1024]);
                    while !seen.ends_with(b"\r\n\r\n") {
                        stream.read_exact(&mut part[..1]).unwrap();
                        seen.push(part[0]);
                    }
                    let (mut left, expected) = (BYTES, body(token, BYTES));
                    while left > 0 {
                        let n = stream.read(&mut part).unwrap();
                        assert!(n > 0 && part[..n] == expected[BYTES - left..BYTES - left + n], "{left} bytes left");
                        left -= n;
                        if left % 5 == 0 {
                            sleep(Duration::from_millis(1));
                        }
                    }
                })
            })
            .collect();
        let mut most = 0;
        while clients.iter().any(|c| !c.is_finished()) {
            most = most.max(router.counts().memory_bytes);
            sleep(Duration::from_millis(1));
        }
        clients.into_iter().for_each(|t| t.join().unwrap());
        println!("{sizes:?}: at most {most} bytes in buffers");
        // What one round can bring, all provided buffers full, with room to grow; not the bodies.
        assert!(most > 0 && most < 10 << 20, "{most} bytes in buffers for two slow readers");
        router.stop();
    }
}

/// What a client does before it goes away.
#[derive(Clone, Copy, Debug)]
struct Leaver {
    /// Bytes that it sends of its request's body of 300,000.
    sends: usize,
    /// Bytes that it reads of the answer.
    reads: usize,
    /// It says that it sends no more, first.
    shuts: bool,
    /// It goes with a reset.
    resets: bool,
}

/// No limit ends these connections: that the client is gone has to be noticed, wherever it shows.
#[test]
fn clients_that_go_away_at_any_point_of_an_exchange_hold_nothing() {
    let _turn = turn();
    const HOUR_MS: u64 = 3_600_000;
    let limits =
        Limits { read_ms: HOUR_MS, answer_ms: HOUR_MS, idle_ms: HOUR_MS, linger_ms: HOUR_MS, ..Limits::default() };
    for sizes in [TINY, Sizes::default()] {
        let backend = Backend::start(None, Manner::default());
        let router = Router::with(&[backend.addr], sizes, limits);
        let leaver = |sends, reads, shuts, resets| Leaver { sends, reads, shuts, resets };
        for leaver in [
            leaver(100_000, 0, false, false),
            leaver(5_000, 0, false, false),
            leaver(100_000, 0, false, true),
            leaver(100_000, 0, true, true),
            leaver(300_000, 0, false, false),
            leaver(300_000, 0, false, true),
            leaver(300_000, 1, false, false),
            leaver(300_000, 1, false, true),
            leaver(300_000, 1, true, false),
            leaver(300_000, 1, true, true),
            leaver(300_000, 300_000, false, false),
        ] {
            for _ in 0..10 {
                let mut stream = TcpStream::connect(router.addr).unwrap();
                if leaver.resets {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
                let head =
                    "PUT /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nx-token: 7\r\nContent-Length: 300000\r\n\r\n";
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&body(7, leaver.sends)).unwrap();
                stream.read_exact(&mut vec![0; leaver.reads]).unwrap();
                if leaver.shuts {
                    stream.shutdown(Shutdown::Write).unwrap();
                }
            }
            wait_for(&format!("clients to be gone: {leaver:?}"), || router.counts().clients == 0);
            wait_for(&format!("nothing in flight: {leaver:?}"), || router.counts().in_flight == 0);
        }
        router.stop();
    }
}
