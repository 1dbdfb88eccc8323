//! A router on its ring against upstreams that close, reset, die and come back, and against limits that run out.
//!
//! By default each test is a short run of itself. The full ones (10^5 requests over closing connections, 10^6 over a flapping
//! set): `RELIABILITY=full cargo test --release -p dataplane --test reliability -- --nocapture --test-threads 1`.

mod reliability_world;
mod router_table;

use reliability_world::{Backend, Client, Manner, Router, full, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

#[test]
fn an_upstream_that_closes_idle_connections_at_random_costs_clients_no_error() {
    let (clients, each) = (8u64, if full() { 12_500 } else { 1_500 });
    let backend = Backend::start(None, Manner { closes_of_1000: 150, ..Manner::default() });
    let router = Router::start(&[backend.addr]);
    let began = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|n| {
            let mut client = Client::connect(router.addr);
            spawn(move || {
                for i in 0..each {
                    let token = n * each + i;
                    let (status, body) = client.ask("GET", token, 0).expect("an answer");
                    assert_eq!((status, body), (200, reliability_world::body(token, 20)), "request {token}");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let retried = router.counts().retried_lost;
    println!("{} requests, 0 errors, {retried} replayed, {:?}", clients * each, began.elapsed());
    assert!(retried > 0, "no connection was found closed: the test proves nothing");
    router.stop();
}

#[test]
fn over_a_flapping_set_of_upstreams_no_answer_is_anothers_and_nothing_is_done_twice() {
    let (clients, each) = (16u64, if full() { 62_500 } else { 600 });
    let manner = Manner { closes_of_1000: 20, cuts_of_1000: 20, resets_of_1000: 10 };
    let mut backends: Vec<_> = (0..4).map(|_| Backend::start(None, manner)).collect();
    let router = Router::start(&backends.iter().map(|b| b.addr).collect::<Vec<_>>());
    let (at, over) = (router.addr, Arc::new(AtomicBool::new(false)));
    let (good, bad, cut) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|n| {
            let (good, bad, cut) = (good.clone(), bad.clone(), cut.clone());
            spawn(move || {
                let mut client = Client::connect(at);
                for i in 0..each {
                    let (token, size) = (n * each + i, 20 + (i as usize * 97) % 3000);
                    let method = if i % 2 == 0 { "POST" } else { "PUT" };
                    match client.ask(method, token, size) {
                        Some((200, body)) => {
                            assert!(body == reliability_world::body(token, size), "request {token}: another's bytes");
                            good.fetch_add(1, Relaxed);
                        }
                        Some((status, body)) => {
                            assert!(status >= 500 && body.starts_with(b"{\"error\""), "{status}");
                            bad.fetch_add(1, Relaxed);
                        }
                        None => {
                            cut.fetch_add(1, Relaxed);
                            client = Client::connect(at);
                        }
                    }
                }
            })
        })
        .collect();
    let flapper = {
        let over = over.clone();
        spawn(move || {
            for i in (0..backends.len()).cycle() {
                if over.load(Relaxed) {
                    return backends;
                }
                let addr = backends[i].addr;
                let dead = std::mem::replace(&mut backends[i], Backend::none());
                let done = dead.kill();
                sleep(Duration::from_millis(30));
                backends[i] = Backend::restart(addr, manner, done);
                sleep(Duration::from_millis(60));
            }
            backends
        })
    };
    threads.into_iter().for_each(|t| t.join().unwrap());
    over.store(true, Relaxed);
    let backends = flapper.join().unwrap();
    let (good, bad, cut) = (good.load(Relaxed), bad.load(Relaxed), cut.load(Relaxed));
    println!("{good} right, {bad} errors, {cut} broken off, none mixed up, {:?}", began.elapsed());
    assert!(good > clients * each / 3, "{good} of {}", clients * each);
    let mut seen = std::collections::HashSet::new();
    for token in backends.iter().flat_map(|b| b.posted()) {
        assert!(seen.insert(token), "request {token} was done twice");
    }
    wait_for("nothing in flight", || router.counts().in_flight == 0);
    router.stop();
}

/// PITFALLS: the submission queue full; CQ overflow. 5,000 answers are written at once into a ring of 1,024 entries, and 5,000
/// connections, with a send and a receive each, end at once in a ring of 8,192 completions.
#[test]
fn more_at_once_than_the_ring_has_entries_is_served_all_the_same() {
    const CLIENTS: u16 = 5000;
    reliability_world::need_files(2 * u64::from(CLIENTS) + 200);
    let backend = Backend::start(None, Manner::default());
    let router = Router::start(&[backend.addr]);
    router.move_away();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(router.addr)).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send("GET", "/nothing", i as u64, 0);
    }
    wait_for("all to be held", || router.counts().holding == u64::from(CLIENTS));
    router.move_back();
    for client in &mut clients {
        assert_eq!(client.receive().expect("an answer").0, 404);
    }
    clients.iter().for_each(Client::end);
    wait_for("all to be gone", || router.counts().connections <= 1);
    router.stop();
}

// ---- in a process of its own ----------------------------------------------------------------------------------------------

/// Not a test by itself: the router of the tests below, told by its standard input, heard by its standard output.
#[test]
fn child_router() {
    let Ok(upstream) = std::env::var("EZONE_UPSTREAM") else { return };
    if let Ok(files) = std::env::var("EZONE_FILES") {
        let max = files.parse().ok();
        let limit = rustix::process::Rlimit { current: max, maximum: max };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }
    let router = Router::start(&[upstream.parse().unwrap()]);
    println!("\nat {}", router.addr);
    for line in std::io::stdin().lines() {
        let c = router.counts();
        match line.unwrap().as_str() {
            "open" => println!("\nopen {}", c.connections),
            "failed" => println!("\nfailed {}", router.control.shared().loops(0).accepts_failed.get()),
            _ => println!("\nrss {}", resident_bytes()),
        }
    }
    router.stop();
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

struct Process {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(upstream: &Backend, files: Option<u32>) -> (Process, std::net::SocketAddr) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child_router", "--exact", "--nocapture"]).env("EZONE_UPSTREAM", upstream.addr.to_string());
        if let Some(files) = files {
            command.env("EZONE_FILES", files.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut process = Process { child, out };
        let at = process.hear("at ").parse().unwrap();
        (process, at)
    }

    fn hear(&mut self, what: &str) -> String {
        let mut line = String::new();
        while !line.starts_with(what) {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the router's process has ended");
        }
        line[what.len()..].trim().to_string()
    }

    fn ask(&mut self, what: &str) -> u64 {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
        self.hear(&format!("{what} ")).parse().unwrap()
    }

    fn stop(mut self) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

#[test]
fn ten_thousand_idle_connections_cost_at_most_6_kib_each() {
    const CONNECTIONS: u64 = 9_999; // and the one that warms it
    reliability_world::need_files(CONNECTIONS + 200);
    let backend = Backend::start(None, Manner::default());
    let (mut process, at) = Process::start(&backend, None);
    let mut warm = Client::connect(at);
    assert_eq!(warm.ask("PUT", 1, 3000).unwrap().0, 200);
    let before = process.ask("rss");
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| Client::connect(at)).collect();
    while process.ask("open") < CONNECTIONS {
        sleep(Duration::from_millis(10));
    }
    let idle = process.ask("rss").saturating_sub(before) / CONNECTIONS;
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.ask("PUT", i as u64, 3000).unwrap().0, 200);
        // Connections rest after a second, so that the next ones can have their buffers.
        if i % 2500 == 2499 {
            sleep(Duration::from_millis(2100));
        }
    }
    let used = process.ask("rss").saturating_sub(before) / CONNECTIONS;
    println!(
        "{CONNECTIONS} idle connections: {idle} bytes each before their first request, {used} after one of 3,000 bytes"
    );
    assert!(idle <= 6 * 1024, "{idle} bytes for each connection that has asked nothing");
    assert!(used <= 6 * 1024, "{used} bytes for each idle connection that has asked once");
    drop(clients);
    process.stop();
}

/// PITFALLS: descriptors that run out.
#[test]
fn out_of_descriptors_a_router_goes_on_with_those_it_has_and_takes_the_rest_later() {
    let backend = Backend::start(None, Manner::default());
    let (mut process, at) = Process::start(&backend, Some(50));
    let mut clients: Vec<_> = (0..100).map(|_| TcpStream::connect(at).map(Client::of).unwrap()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.send("GET", "/a", i as u64, 0);
    }
    let (mut right, mut refused) = (0, 0);
    for mut client in clients {
        // Each that is answered leaves, so that another one can be accepted.
        match client.receive().expect("an answer").0 {
            200 => right += 1,
            status => {
                assert!(status >= 500, "{status}");
                refused += 1;
            }
        }
    }
    println!("{right} served and {refused} refused for want of descriptors");
    assert!(process.ask("failed") > 0, "no accept failed: the test proves nothing");
    assert_eq!(Client::connect(at).ask("GET", 1, 0).unwrap().0, 200);
    process.stop();
}

/// PITFALLS: completions that outnumber what the ring holds. All of these wait for the core when it runs again.
#[test]
fn a_router_that_was_stopped_for_a_while_finds_everything_at_once_and_serves_it() {
    use rustix::process::{Pid, Signal, kill_process};
    const CLIENTS: u64 = 3000;
    reliability_world::need_files(2 * CLIENTS + 200);
    let backend = Backend::start(None, Manner::default());
    let (mut process, at) = Process::start(&backend, None);
    let pid = Pid::from_raw(process.child.id() as i32).unwrap();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(at)).collect();
    while process.ask("open") < CLIENTS {
        sleep(Duration::from_millis(10));
    }
    let (stay, go) = clients.split_at_mut(CLIENTS as usize * 2 / 3);
    kill_process(pid, Signal::STOP).unwrap();
    for (i, client) in stay.iter_mut().enumerate() {
        client.send("GET", "/nothing", i as u64, 0);
    }
    go.iter().for_each(Client::end);
    let late: Vec<_> = (0..500).map(|_| Client::connect(at)).collect();
    kill_process(pid, Signal::CONT).unwrap();
    for client in stay.iter_mut() {
        assert_eq!(client.receive().expect("an answer").0, 404);
    }
    for (i, mut client) in late.into_iter().enumerate() {
        assert_eq!(client.ask("PUT", i as u64, 100).expect("an answer").0, 200);
    }
    clients.clear();
    process.stop();
}
