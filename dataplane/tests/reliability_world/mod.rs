//! What the reliability tests have around a router: misbehaving backends and plain clients, of threads and blocking sockets.

use super::router_table::Table;
use dataplane::router::{Counts, Limits, Routes, Service, Settings, Shared, Side};
use dataplane::uring::{self, Control, Sizes};
use shardmap::Zone;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

const BJ: Zone = Zone(0);
const PATIENCE: Duration = Duration::from_secs(60);

/// Is the full run asked for?
pub fn full() -> bool {
    std::env::var("RELIABILITY").is_ok_and(|v| v == "full")
}

/// Raises the limit of open files, for this process and those that it starts.
pub fn need_files(files: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|now| now < files) {
        let most = limit.maximum.unwrap_or(files);
        assert!(most >= files, "this test needs `ulimit -Hn` of at least {files}, it is {most}");
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }).unwrap();
    }
}

pub fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "waited too long for {what}");
        sleep(Duration::from_millis(5));
    }
}

/// The body that belongs to `token`.
pub fn body(token: u64, size: usize) -> Vec<u8> {
    format!("[{token}]").bytes().cycle().take(size).collect()
}

/// One core of zone bj; shard 1 is its own.
pub struct Router {
    pub control: Control,
    pub addr: SocketAddr,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Router {
    pub fn start(upstreams: &[SocketAddr]) -> Router {
        Router::sized(upstreams, Sizes::default())
    }

    /// On a ring of these sizes.
    pub fn sized(upstreams: &[SocketAddr], sizes: Sizes) -> Router {
        Router::with(upstreams, sizes, Limits::default())
    }

    pub fn with(upstreams: &[SocketAddr], sizes: Sizes, limits: Limits) -> Router {
        let settings = Settings {
            zone: Some(BJ),
            zone_names: vec![(BJ, "bj".into())],
            services: vec![Service::new("/a", upstreams)],
            limits,
            ..Settings::default()
        };
        let shared = Arc::new(Shared::new(1));
        let (control, mut wakers) = uring::control(shared.clone()).unwrap();
        let listener = uring::listen("127.0.0.1:0".parse().unwrap(), Side::Client).unwrap();
        let addr = listener.local_addr().unwrap();
        let waker = wakers.pop().unwrap();
        let thread = spawn(move || uring::run_sized(sizes, 0, Arc::new(settings), vec![listener], waker, shared));
        let router = Router { control, addr, thread };
        router.map(Table::new(1, &[(1, BJ)]));
        router
    }

    fn map(&self, table: Table) {
        let map: Arc<dyn Routes> = Arc::new(table);
        self.control.set_map(&map);
        wait_for("the map to be adopted", || self.counts().map_epoch >= map.epoch().0);
    }

    /// Requests are held from now on.
    pub fn move_away(&self) {
        self.map(Table::new(2, &[(1, BJ)]).moving(1, Zone(1)));
    }

    pub fn move_back(&self) {
        self.map(Table::new(3, &[(1, BJ)]));
    }

    pub fn counts(&self) -> Counts {
        self.control.shared().total()
    }

    pub fn stop(self) {
        self.control.stop();
        self.thread.join().unwrap().unwrap();
    }
}

/// How often, in a thousand answers, a backend misbehaves.
#[derive(Clone, Copy, Default)]
pub struct Manner {
    /// It closes the connection after an answer, without having said so.
    pub closes_of_1000: u64,
    /// It ends in the middle of an answer.
    pub cuts_of_1000: u64,
    /// It resets instead of answering.
    pub resets_of_1000: u64,
}

/// What a backend's connections share.
#[derive(Default)]
struct State {
    dead: AtomicBool,
    conns: Mutex<HashMap<u16, TcpStream>>,
    posted: Arc<Mutex<HashSet<u64>>>,
    twice: AtomicU64,
    dice: AtomicU64,
}

/// Answers each request with its body, or with 20 bytes of its token's.
pub struct Backend {
    pub addr: SocketAddr,
    state: Arc<State>,
}

impl Backend {
    pub fn start(addr: Option<SocketAddr>, manner: Manner) -> Backend {
        Backend::with(addr.unwrap_or("127.0.0.1:0".parse().unwrap()), manner, Arc::default())
    }

    /// At the same address, with what it had done before it died.
    pub fn restart(addr: SocketAddr, manner: Manner, posted: Arc<Mutex<HashSet<u64>>>) -> Backend {
        Backend::with(addr, manner, posted)
    }

    fn with(addr: SocketAddr, manner: Manner, posted: Arc<Mutex<HashSet<u64>>>) -> Backend {
        let mut listener = TcpListener::bind(addr);
        for _ in 0..200 {
            if listener.is_ok() {
                break;
            }
            sleep(Duration::from_millis(10));
            listener = TcpListener::bind(addr);
        }
        let listener = listener.unwrap();
        let state = Arc::new(State { posted, dice: AtomicU64::new(1), ..State::default() });
        let backend = Backend { addr: listener.local_addr().unwrap(), state: state.clone() };
        spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), state) = (stream, state.clone()) else { continue };
                if state.dead.load(Relaxed) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                let port = stream.peer_addr().map_or(0, |a| a.port());
                state.conns.lock().unwrap().insert(port, stream.try_clone().unwrap());
                spawn(move || {
                    let stream = serve(stream, &state, manner);
                    // The last handle ends the connection: with a reset, if `serve` has asked for one.
                    state.conns.lock().unwrap().remove(&port);
                    drop(stream);
                });
            }
        });
        backend
    }

    pub fn none() -> Backend {
        Backend { addr: "127.0.0.1:1".parse().unwrap(), state: Arc::default() }
    }

    /// Ends it with all its connections, as a killed process does. What it had done is kept.
    pub fn kill(self) -> Arc<Mutex<HashSet<u64>>> {
        self.state.dead.store(true, Relaxed);
        let _ = TcpStream::connect(self.addr);
        for (_, conn) in self.state.conns.lock().unwrap().drain() {
            let _ = socket2::SockRef::from(&conn).set_linger(Some(Duration::ZERO));
            let _ = conn.shutdown(Shutdown::Both);
        }
        assert_eq!(self.state.twice.load(Relaxed), 0, "done twice at one backend");
        self.state.posted.clone()
    }

    /// The tokens of the POSTs that it has done.
    pub fn posted(&self) -> Vec<u64> {
        assert_eq!(self.state.twice.load(Relaxed), 0, "done twice at one backend");
        self.state.posted.lock().unwrap().iter().copied().collect()
    }
}

fn serve(stream: TcpStream, state: &State, manner: Manner) -> BufReader<TcpStream> {
    let mut reader = BufReader::new(stream);
    while let Some((head, sent)) = read_message(&mut reader) {
        let token: u64 = field(&head, "x-token: ").parse().unwrap();
        if head.starts_with("POST") && !state.posted.lock().unwrap().insert(token) {
            state.twice.fetch_add(1, Relaxed);
        }
        let content = if head.starts_with("GET") { body(token, 20) } else { sent };
        let answer =
            [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", content.len()).as_bytes(), &content].concat();
        let dice = state.dice.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let dice = dice % 1000;
        let stream = reader.get_mut();
        if dice < manner.resets_of_1000 {
            let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            break;
        }
        if dice < manner.resets_of_1000 + manner.cuts_of_1000 {
            let _ = stream.write_all(&answer[..answer.len() / 2]);
            break;
        }
        if stream.write_all(&answer).is_err() || dice >= 1000 - manner.closes_of_1000 {
            break;
        }
    }
    reader
}

/// A client that asks one thing at a time.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(to: SocketAddr) -> Client {
        Client::of(TcpStream::connect(to).unwrap())
    }

    pub fn of(stream: TcpStream) -> Client {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::with_capacity(512, stream))
    }

    /// The status and the body of the answer; `None`: it broke off.
    pub fn ask(&mut self, method: &str, token: u64, size: usize) -> Option<(u16, Vec<u8>)> {
        self.send(method, "/a", token, size);
        self.receive()
    }

    pub fn send(&mut self, method: &str, path: &str, token: u64, size: usize) {
        let length = if size > 0 { format!("Content-Length: {size}\r\n") } else { String::new() };
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nx-token: {token}\r\n{length}\r\n");
        // A write that fails is seen by the read that follows.
        let _ = self.0.get_mut().write_all(&[head.as_bytes(), &body(token, size)].concat());
    }

    pub fn receive(&mut self) -> Option<(u16, Vec<u8>)> {
        let (head, body) = read_message(&mut self.0)?;
        Some((head[9..12].parse().unwrap(), body))
    }

    /// Ends the connection.
    pub fn end(&self) {
        let _ = self.0.get_ref().shutdown(Shutdown::Both);
    }
}

fn field<'h>(head: &'h str, name: &str) -> &'h str {
    head.split(name).nth(1).map_or("0", |rest| rest.split("\r\n").next().unwrap())
}

/// A head in lower case but for its first line, and a body of its length.
fn read_message(from: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_string));
    let mut body = vec![0; length.map_or(0, |l| l.parse().unwrap())];
    from.read_exact(&mut body).ok()?;
    Some((head, body))
}
