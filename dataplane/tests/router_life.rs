//! Listeners that come and go, connections that are spread, cores that end: over loopback, with clients that connect all the
//! time and count what fails.

mod router_table;
mod router_world;

use dataplane::router::{Routes, Service, Settings, Shared, Side};
use dataplane::uring::{self, Control, Listener};
use router_table::Table;
use router_world::{BJ, GET, SH, World, status_of};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A router of zone bj with a backend, each core with its own listeners.
struct Cores {
    control: Control,
    at: SocketAddr,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Cores {
    /// One core for each entry; so many listeners of one shared address.
    fn start(listeners: &[usize]) -> Cores {
        let backend = backend();
        let settings = Arc::new(Settings {
            zone: Some(BJ),
            zone_names: vec![(BJ, "bj".into()), (SH, "sh".into())],
            services: vec![Service::new("/", &[backend])],
            ..Settings::default()
        });
        let shared = Arc::new(Shared::new(listeners.len()));
        let (control, wakers) = uring::control(shared.clone()).unwrap();
        let map: Arc<dyn Routes> = Arc::new(Table::new(1, &[(1, BJ), (2, SH)]));
        control.set_map(&map);
        let mut at: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut threads = vec![];
        for (number, (count, waker)) in listeners.iter().zip(wakers).enumerate() {
            let own: Vec<Listener> = (0..*count).map(|_| listen(&mut at)).collect();
            let (settings, shared) = (settings.clone(), shared.clone());
            threads.push(spawn(move || uring::run(number, settings, own, waker, shared)));
        }
        Cores { control, at, threads }
    }

    fn counts(&self, core: usize) -> dataplane::router::Counts {
        self.control.shared().counts(core)
    }

    fn total(&self) -> dataplane::router::Counts {
        self.control.shared().total()
    }

    fn end(self) {
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
    }
}

/// A listener at `at`; the first one finds the port.
fn listen(at: &mut SocketAddr) -> Listener {
    let listener = uring::listen(*at, Side::Client).unwrap();
    *at = listener.local_addr().unwrap();
    listener
}

/// Answers every request with `ok`.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            spawn(move || {
                while read_head(&mut stream).is_some() {
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    at
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (vec![], [0u8; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

fn read_answer(stream: &mut TcpStream) -> Option<String> {
    let head = read_head(stream)?;
    let mut body = [0u8; 2];
    stream.read_exact(&mut body).ok()?;
    Some(head)
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(GET.as_bytes()).ok()?;
    read_answer(stream)
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "waited too long for {what}");
        sleep(Duration::from_millis(2));
    }
}

/// Threads that connect, ask once and close, again and again.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(at: SocketAddr, threads: usize) -> Load {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let one = |_| {
            let (stop, served) = (stop.clone(), served.clone());
            spawn(move || {
                let mut failed = vec![];
                while !stop.load(Relaxed) {
                    let answer = connect(at)
                        .map_err(|e| format!("connect: {e}"))
                        .and_then(|mut stream| ask(&mut stream).ok_or("no answer".to_string()));
                    match answer {
                        Ok(head) if status_of(&head) == 200 => drop(served.fetch_add(1, Relaxed)),
                        Ok(head) => failed.push(head),
                        Err(e) => failed.push(e),
                    }
                }
                failed
            })
        };
        let threads = (0..threads).map(one).collect();
        Load { stop, served, threads }
    }

    fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Every failure.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    }
}

fn one_after_the_other(at: SocketAddr) -> Vec<TcpStream> {
    (0..1000).map(|_| connect(at).unwrap()).collect()
}

/// A thousand handshakes are under way before the first is awaited.
fn all_at_once(at: SocketAddr) -> Vec<TcpStream> {
    let begin = |_| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let begun = socket.connect(&at.into());
        assert!(begun.as_ref().is_ok() || begun.as_ref().is_err_and(|e| e.raw_os_error() == Some(115)), "{begun:?}");
        TcpStream::from(socket)
    };
    let streams: Vec<TcpStream> = (0..1000).map(begin).collect();
    for stream in &streams {
        wait_for("a handshake", || stream.peer_addr().is_ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    streams
}

/// How a thousand connections are spread over two cores, each of which is then served.
fn thousand(cores: &Cores, open: impl Fn(SocketAddr) -> Vec<TcpStream>) -> [u64; 2] {
    let streams = open(cores.at);
    wait_for("every connection to be in a core's hands", || cores.total().clients == 1000);
    let spread = [cores.counts(0).clients, cores.counts(1).clients];
    for mut stream in streams {
        assert_eq!(status_of(&ask(&mut stream).unwrap()), 200);
    }
    wait_for("the connections to be gone", || cores.total().clients == 0);
    spread
}

#[test]
fn of_a_thousand_connections_no_core_of_two_has_more_than_60_percent() {
    for (how, open) in
        [("one after the other", one_after_the_other as fn(SocketAddr) -> Vec<TcpStream>), ("all at once", all_at_once)]
    {
        let cores = Cores::start(&[1, 1]);
        let spread = thousand(&cores, open);
        eprintln!("spread of 1000 connections, {how}: {spread:?}, handed over: {}", cores.total().handed_over);
        assert!(spread.iter().all(|n| *n <= 600), "{how}: {spread:?}");
        cores.control.stop();
        cores.end();
    }
}

/// Cores that wait for their processor see their queue, and what others have handed them, all at once.
#[test]
fn connections_are_spread_where_cores_do_not_get_to_run_all_the_time() {
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            spawn(move || while !stop.load(Relaxed) {})
        })
        .collect();
    for round in 0..20 {
        let cores = Cores::start(&[1, 1]);
        let streams: Vec<_> = (0..2)
            .map(|_| {
                let at = cores.at;
                spawn(move || (0..100).map(|_| connect(at).unwrap()).collect::<Vec<_>>())
            })
            .collect();
        let streams: Vec<_> = streams.into_iter().flat_map(|t| t.join().unwrap()).collect();
        wait_for("every connection to be in a core's hands", || cores.total().clients == 200);
        let spread = [cores.counts(0).clients, cores.counts(1).clients];
        assert!(spread.iter().all(|n| *n <= 120), "round {round}: {spread:?}");
        drop(streams);
        cores.control.stop();
        cores.end();
    }
    stop.store(true, Relaxed);
    busy.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn connections_that_come_and_go_stay_spread() {
    let cores = Cores::start(&[1, 0]);
    let mut streams = all_at_once(cores.at);
    // Those that one core has end; as many come anew.
    for round in 0..4 {
        wait_for("every connection to be in a core's hands", || cores.total().clients == 1000);
        let mut old = streams.split_off(streams.len() / 2);
        streams.drain(..).for_each(drop);
        wait_for("half of them to be gone", || cores.total().clients == old.len() as u64);
        old.extend((old.len()..1000).map(|_| connect(cores.at).unwrap()));
        streams = old;
        wait_for("every connection to be in a core's hands", || cores.total().clients == 1000);
        let spread = [cores.counts(0).clients, cores.counts(1).clients];
        assert!(spread.iter().all(|n| *n <= 600), "round {round}: {spread:?}");
    }
    drop(streams);
    cores.control.stop();
    cores.end();
}

#[test]
fn connections_that_all_arrive_at_one_listener_are_handed_over_and_served() {
    for open in [one_after_the_other as fn(SocketAddr) -> Vec<TcpStream>, all_at_once] {
        let cores = Cores::start(&[1, 0]);
        let spread = thousand(&cores, open);
        let total = cores.total();
        eprintln!("spread of 1000 connections that came to one core: {spread:?}, handed over: {}", total.handed_over);
        assert!(spread.iter().all(|n| *n <= 600), "{spread:?}");
        assert!(total.handed_over >= 400 && total.handed_over == total.taken_over, "{total:?}");
        assert_eq!(total.answered_2xx_3xx, 1000);
        cores.control.stop();
        cores.end();
    }
}

/// PITFALLS: closing one of several SO_REUSEPORT listeners loses its queue.
#[test]
fn closing_one_of_several_listeners_of_an_address_loses_no_connection() {
    let cores = Cores::start(&[1, 1]);
    let load = Load::start(cores.at, 4);
    for _ in 0..8 {
        let before = load.served();
        wait_for("some load", || load.served() > before + 50);
        // All of the present ones end; others have taken their place before that.
        let mut at = cores.at;
        let fresh = [listen(&mut at), listen(&mut at)];
        cores.control.close(cores.at, Side::Client);
        for (core, listener) in fresh.into_iter().enumerate() {
            cores.control.listen(core, vec![listener]);
        }
    }
    let failed = load.end();
    assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed.first());
    cores.control.stop();
    cores.end();
}

#[test]
fn who_is_connected_when_the_router_stops_is_answered() {
    for round in 0..5 {
        let cores = Cores::start(&[1, 1]);
        let mut idle: Vec<_> = (0..4).map(|_| connect(cores.at).unwrap()).collect();
        assert!(idle.iter_mut().all(|s| ask(s).is_some()));
        let mut streams: Vec<_> = (0..50).map(|_| connect(cores.at).unwrap()).collect();
        for stream in &mut streams {
            stream.write_all(GET.as_bytes()).unwrap();
        }
        cores.control.stop();
        // A connection that was idle may ask once more; all are told that it was the last time.
        for stream in &mut idle {
            let head = ask(stream).unwrap_or_else(|| panic!("round {round}: an idle connection was cut off"));
            assert!(head.contains("connection: close\r\n"), "{head}");
        }
        for stream in &mut streams {
            let head = read_answer(stream).unwrap_or_else(|| panic!("round {round}: a connection was lost"));
            assert_eq!(status_of(&head), 200);
        }
        let (at, total) = (cores.at, cores.control.shared().clone());
        drop((idle, streams));
        cores.end();
        assert_eq!(total.total().cut_off, 0);
        assert!(TcpStream::connect(at).is_err(), "nobody listens any more");
    }
}

#[test]
fn a_core_that_leaves_its_listener_to_another_loses_nobody() {
    let old = Cores::start(&[1]);
    // The next core has the same socket, as after an upgrade.
    let mut load = Load::start(old.at, 4);
    let mut same = old.at;
    let kept = listen(&mut same);
    old.control.listen(0, vec![kept.try_clone().unwrap()]);
    for _ in 0..3 {
        let before = load.served();
        wait_for("some load", || load.served() > before + 50);
        let next = Cores::start(&[1]);
        next.control.listen(0, vec![kept.try_clone().unwrap()]);
        let before = load.served();
        wait_for("both at work", || load.served() > before + 50);
        next.control.hand_over();
        next.end();
    }
    load.stop.store(true, Relaxed);
    let failed: Vec<String> = load.threads.drain(..).flat_map(|t| t.join().unwrap()).collect();
    assert!(failed.is_empty(), "{} failed, such as {:?}", failed.len(), failed.first());
    old.control.stop();
    old.end();
}

// ---- the pure core ----------------------------------------------------------------------------------------------------

#[test]
fn a_stopping_core_answers_one_more_request_of_an_idle_connection_and_says_that_it_is_the_last() {
    let mut w = World::new();
    let (idle, silent) = (w.client(), w.client());
    w.core.on_stop(w.now);
    w.run();
    assert!(w.closed.is_empty() && w.shut.is_empty());
    w.give(idle, GET);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let answer = w.took(idle);
    assert!(status_of(&answer) == 200 && answer.contains("connection: close\r\n"), "{answer}");
    assert!(w.shut.contains(&idle));
    w.pass(1200);
    assert!(w.closed.contains(&silent), "its time to ask is over");
    w.pass(1200);
    assert!(!w.core.busy());
}

#[test]
fn an_answer_whose_head_has_not_been_sent_when_the_core_stops_says_that_it_is_the_last() {
    let mut w = World::new();
    let id = w.client();
    w.give(id, GET);
    w.core.on_stop(w.now);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert!(w.took(id).contains("connection: close\r\n"));
    assert!(w.shut.contains(&id));
}

#[test]
fn an_answer_that_has_begun_when_the_core_stops_is_followed_by_one_more() {
    let mut w = World::new();
    let id = w.client();
    w.give(id, GET);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no");
    w.core.on_stop(w.now);
    w.give(up, "k");
    let answer = w.took(id);
    assert!(answer.ends_with("ok") && !answer.contains("connection: close"), "{answer}");
    assert!(w.shut.is_empty(), "it was not told: it may be about to ask");
    w.give(id, GET);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert!(w.took(id).contains("connection: close\r\n"));
    assert!(w.shut.contains(&id));
}

#[test]
fn who_is_cut_off_at_the_limit_is_counted() {
    let mut w = World::new();
    let (served, _idle) = (w.client(), w.client());
    w.give(served, GET);
    w.core.on_stop(w.now);
    w.core.on_cut_off();
    assert_eq!((w.counts().cut_off, w.counts().clients), (1, 2));
}
