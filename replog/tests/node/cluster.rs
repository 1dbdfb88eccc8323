//! Two zones' logs in this process: real nodes, links over loopback, asks over their Unix ports, maps from a test's hand.

use crate::proxy::{Tampering, between};
use bytes::{Bytes, BytesMut};
use futures_lite::future::block_on;
use replog::commit::{ANSWER_KEPT_MS, ANSWERS, Commit};
use replog::link::{Frame, take};
use replog::port::{Answer, Ask, Refused, put_ask, take_answer};
use replog::retain::{Policy, WORTH};
use replog::store::Row;
use replog::uring::Reported;
use replog::uring::line::Line;
use replog::uring::node::{self, Adopted, CoreFigures, Node, Options, Peer, Told};
use replog::uring::sqlite::Snapshot;
use replog::uring::stream::Scrub;
use shardmap::fence::{Fence, Fences};
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::ownership::{Entry, History, Illegal};
use shardmap::point::Point;
use shardmap::{MapEpoch, Shard, Zone};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

pub const A: Zone = Zone(0);
pub const B: Zone = Zone(1);
pub const STREAMS: u32 = 2;
/// What anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One test at a time: each executor locks memory, and two cores are all there are.
static ONE: Mutex<()> = Mutex::new(());

/// Whoever has it is the one test that runs.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Shards 0 to 3 belong to A, 4 to 7 to B.
pub fn first_map() -> Map {
    let p = |x, y| Point { lng_e7: x * 10_000_000, lat_e7: y * 10_000_000 };
    let ring = vec![p(0, 0), p(1, 0), p(1, 1), p(0, 1)];
    let fences = Fences::new(vec![Fence { name: "all".into(), shard: Shard(0), rings: vec![ring] }], 10_000, 20);
    let zone = |id, name: &str| ZoneInfo { id: Zone(id), name: name.into() };
    Map::from_parts(Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: Some(Shard(0)),
        zones: vec![zone(0, "a"), zone(1, "b")],
        histories: (0..8).map(|s| (Shard(s), History::new(Zone(u8::from(s >= 4)), MapEpoch(1)))).collect(),
        exceptions: Exceptions { orders: vec![], shops: vec![] },
        globals: Default::default(),
        fences: Arc::new(fences.unwrap()),
    })
    .unwrap()
}

/// The next map: `step` for each of `shards`.
pub fn next(
    map: &Map,
    shards: &[Shard],
    step: impl Fn(Shard, &History, MapEpoch) -> Result<Entry, Illegal>,
) -> Arc<Map> {
    let epoch = map.epoch().next();
    let entries = shards.iter().map(|s| (*s, step(*s, map.history(*s).unwrap(), epoch).unwrap())).collect();
    Arc::new(map.with_entries(entries).unwrap())
}

/// One zone: its directory, its address, and its node while it runs.
pub struct Site {
    pub zone: Zone,
    dir: PathBuf,
    cores: Vec<usize>,
    peer: Peer,
    segment_bytes: u64,
    pub retain: Mutex<Policy>,
    /// How long it keeps first answers.
    pub answers_kept_ms: AtomicU64,
    /// What becomes of the snapshots that it lends.
    pub tampering: Tampering,
    /// How it reads again what was sealed.
    scrub: Scrub,
    node: Arc<Mutex<Option<Arc<Node>>>>,
    pub faults: Arc<Mutex<Vec<String>>>,
}

pub struct Cluster {
    pub a: Site,
    pub b: Site,
    dir: PathBuf,
    _one: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Both zones running with the first map, writable.
    pub fn start(name: &str) -> (Cluster, Arc<Map>) {
        Cluster::start_with(name, 1 << 20)
    }

    /// The same, with segments of another length.
    pub fn start_with(name: &str, segment_bytes: u64) -> (Cluster, Arc<Map>) {
        let retain = Policy { keep_bytes: 0, peers_until: 1.0, worth: WORTH };
        Cluster::of(name, (segment_bytes, retain, Scrub::NEVER))
    }

    /// The same; nodes that read again what was sealed, and keep as much of it as `retain` says.
    pub fn with(name: &str, scrub: Scrub, retain: Policy) -> (Cluster, Arc<Map>) {
        Cluster::of(name, (1 << 20, retain, scrub))
    }

    fn of(name: &str, keeping: (u64, Policy, Scrub)) -> (Cluster, Arc<Map>) {
        let one = alone();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (at_a, at_b) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let peer =
            |zone, name: &str, at: &TcpListener| Peer { zone, name: name.into(), link: at.local_addr().unwrap() };
        let (to_a, to_b) = (peer(A, "a", &at_a), peer(B, "b", &at_b));
        let a = Site::new(A, dir.join("a"), vec![0], to_b, at_a, keeping);
        let b = Site::new(B, dir.join("b"), vec![0, 1], to_a, at_b, keeping);
        let map = Arc::new(first_map());
        let cluster = Cluster { a, b, dir, _one: one };
        for site in cluster.sites() {
            site.start(&map);
            site.node().on_gzs(map.epoch());
        }
        cluster.wait("both are writable", || cluster.sites().iter().all(|s| !s.is_read_only()));
        (cluster, map)
    }

    pub fn sites(&self) -> [&Site; 2] {
        [&self.a, &self.b]
    }

    pub fn on_map(&self, map: &Arc<Map>) {
        self.sites().iter().for_each(|s| s.node().on_map(map));
    }

    /// Polls until it is so.
    pub fn wait(&self, what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            let faults: Vec<_> = self.sites().iter().map(|s| s.faults.lock().unwrap().clone()).collect();
            assert!(begun.elapsed() < PATIENCE, "waiting until {what}; faults: {faults:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until both have applied all that either has, then compares their copies; returns the length of the ledger.
    pub fn compare(&self) -> u64 {
        self.wait("all is applied everywhere", || {
            let (a, b) = (self.a.figures(), self.b.figures());
            let equal = |of: &[CoreFigures], to: &[CoreFigures], zone| {
                streams(of).iter().all(|(stream, s)| {
                    let there = streams(to).into_iter().find(|(n, _)| n == stream).unwrap().1;
                    [s, there].iter().all(|x| x.applied.get(zone).unwrap_or(0) == s.durable_seq)
                })
            };
            equal(&a, &b, A) && equal(&b, &a, B)
        });
        self.wait("rows and ledgers are equal", || self.a.digests() == self.b.digests());
        let ledger = |s: &Site| s.figures().iter().map(|c| c.kept.ledger).sum::<u64>();
        assert_eq!(ledger(&self.a), ledger(&self.b));
        for site in self.sites() {
            assert_eq!(*site.faults.lock().unwrap(), Vec::<String>::new(), "faults of zone {}", site.zone);
        }
        ledger(&self.a)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for site in self.sites() {
            site.stop();
            (0..site.cores.len()).for_each(|i| drop(std::fs::remove_file(site.port(i))));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn streams(cores: &[CoreFigures]) -> Vec<(u32, &replog::uring::node::StreamFigures)> {
    cores.iter().flat_map(|c| c.streams.iter().map(|s| (s.stream, s))).collect()
}

impl Site {
    fn new(
        zone: Zone,
        dir: PathBuf,
        cores: Vec<usize>,
        peer: Peer,
        links: TcpListener,
        (segment_bytes, retain, scrub): (u64, Policy, Scrub),
    ) -> Site {
        let node: Arc<Mutex<Option<Arc<Node>>>> = Arc::default();
        let (slot, tampering) = (node.clone(), Tampering::default());
        let tamper = tampering.clone();
        // It ends with the process: a zone keeps its address while its node is down, as a host does.
        thread::spawn(move || {
            for socket in links.incoming().flatten() {
                let node = slot.lock().unwrap().clone();
                node.into_iter().for_each(|node| adopt(&node, socket.try_clone().unwrap(), &tamper));
            }
        });
        let retain = Mutex::new(retain);
        Site {
            zone,
            dir,
            cores,
            peer,
            segment_bytes,
            retain,
            answers_kept_ms: AtomicU64::new(ANSWER_KEPT_MS),
            scrub,
            tampering,
            node,
            faults: Arc::default(),
        }
    }

    /// Starts the node; maps that other zones send are taken, as control takes them.
    pub fn start(&self, map: &Arc<Map>) {
        self.try_start(map).unwrap();
    }

    /// Where the zone's own log of `stream` lies.
    pub fn log_dir(&self, stream: u32) -> PathBuf {
        self.dir.join("log").join(stream.to_string())
    }

    /// Where its copy of another zone's `stream` lies.
    pub fn mirror_dir(&self, zone: &str, stream: u32) -> PathBuf {
        self.dir.join("mirror").join(format!("{zone}-{stream}"))
    }

    /// The same, if it can be started.
    pub fn try_start(&self, map: &Arc<Map>) -> Result<(), node::Error> {
        let options = Options {
            cluster: "test".into(),
            zone: self.zone,
            data_dir: self.dir.clone(),
            streams: STREAMS,
            segment_bytes: self.segment_bytes,
            retain: *self.retain.lock().unwrap(),
            scrub: self.scrub,
            cores: self.cores.clone(),
            ports: (0..self.cores.len()).map(|i| self.port(i)).collect(),
            peers: vec![self.peer.clone()],
            line: Line::default(),
            start_alone: false,
            answers_kept_ms: self.answers_kept_ms.load(Ordering::Relaxed),
        };
        let (telling, told) = channel();
        let node = Node::start(options, map.clone(), move |what| drop(telling.send(what)))?;
        *self.node.lock().unwrap() = Some(Arc::new(node));
        let (slot, faults) = (self.node.clone(), self.faults.clone());
        thread::spawn(move || {
            for what in told {
                match what {
                    Told::Fault(why) => faults.lock().unwrap().push(why),
                    Told::Map(bytes) => {
                        let node = slot.lock().unwrap().clone();
                        node.into_iter().for_each(|n| n.on_map(&Arc::new(Map::decode(&bytes).unwrap())));
                    }
                }
            }
        });
        Ok(())
    }

    pub fn stop(&self) {
        let node = self.node.lock().unwrap().take();
        node.into_iter().for_each(|node| block_on(node.stop()));
    }

    pub fn node(&self) -> Arc<Node> {
        self.node.lock().unwrap().clone().expect("it runs")
    }

    pub fn figures(&self) -> Vec<CoreFigures> {
        block_on(self.node().figures())
    }

    pub fn is_read_only(&self) -> bool {
        self.figures().iter().any(|c| c.read_only)
    }

    pub fn map_epoch(&self) -> MapEpoch {
        self.figures().iter().map(|c| c.map_epoch).min().unwrap()
    }

    pub fn report(&self, shards: &[Shard], take_over: bool) -> Vec<Reported> {
        block_on(self.node().report(shards, take_over))
    }

    pub fn digests(&self) -> Vec<([u8; 32], [u8; 32])> {
        let cores = self.cores.len() as u32;
        let all: Vec<_> = block_on(self.node().digests()).iter().map(|d| (d.rows, d.ledger)).collect();
        // Cores in their order, each with its streams: back into the order of streams.
        let order: Vec<u32> = (0..cores).flat_map(|c| (0..STREAMS).filter(move |s| s % cores == c)).collect();
        let mut by_stream: Vec<_> = order.into_iter().zip(all).collect();
        by_stream.sort();
        by_stream.into_iter().map(|(_, d)| d).collect()
    }

    fn port(&self, core: usize) -> PathBuf {
        // A socket's path has 107 bytes at most.
        std::env::temp_dir().join(format!("ezone-{}-{}-{core}", std::process::id(), self.zone))
    }

    /// How many first answers to idempotency keys its store of `stream` holds.
    pub fn answers(&self, stream: u32) -> usize {
        let store = Snapshot::begin(&self.dir.join("store").join(format!("{stream}.db"))).unwrap();
        let mut count = 0;
        let visit = &mut |table: &[u8], _: &[u8], row: &Row| {
            count += usize::from(table == ANSWERS && !row.deleted);
            true
        };
        store.rows(visit).unwrap();
        count
    }

    /// As a router's core connects to a log core.
    pub fn connect(&self, core: usize) -> UnixStream {
        let port = UnixStream::connect(self.port(core)).unwrap();
        port.set_read_timeout(Some(PATIENCE)).unwrap();
        port
    }

    /// Asks the core that has the shard, and waits.
    pub fn ask(&self, ask: &Ask) -> Answer {
        self.ask_all(std::slice::from_ref(ask)).remove(0)
    }

    /// Asks, all in one go, about shards of one stream; answers in the order of the asks.
    pub fn ask_all(&self, asks: &[Ask]) -> Vec<Answer> {
        let stream = match &asks[0] {
            Ask::Write { shard, .. }
            | Ask::Read { shard, .. }
            | Ask::ReadAfter { shard, .. }
            | Ask::Commit(Commit { shard, .. }) => u32::from(shard.0) % STREAMS,
            Ask::Standing { .. } => 0,
            Ask::Changes(wish) => wish.after.as_ref().and_then(|a| a.first()).map_or(0, |t| t.stream),
        };
        let core = stream as usize % self.cores.len();
        let mut port = self.connect(core);
        let mut out = BytesMut::new();
        asks.iter().enumerate().for_each(|(i, ask)| put_ask(&mut out, i as u64, ask));
        let mut writer = port.try_clone().unwrap();
        let sent = thread::spawn(move || writer.write_all(&out));
        let (mut answers, mut from, mut part) = (vec![None; asks.len()], BytesMut::new(), vec![0; 1 << 16]);
        while answers.iter().any(Option::is_none) {
            let n = port.read(&mut part).unwrap();
            assert!(n > 0, "the port was closed");
            from.extend_from_slice(&part[..n]);
            while let Some((corr, answer)) = take_answer(&mut from).unwrap() {
                answers[corr as usize] = Some(answer);
            }
        }
        sent.join().unwrap().unwrap();
        answers.into_iter().flatten().collect()
    }

    pub fn put(&self, shard: Shard, map: MapEpoch, key: &str, value: &str) -> Result<(), Refused> {
        match self.ask(&put(shard, map, key, value.as_bytes().to_vec())) {
            Answer::Written { .. } => Ok(()),
            Answer::Refused(why) => Err(why),
            other => panic!("a write was answered {other:?}"),
        }
    }

    /// The value here, whoever owns the shard.
    pub fn get(&self, shard: Shard, key: &str) -> Option<String> {
        let (table, key) = (Bytes::from_static(b"orders"), Bytes::from(key.to_owned()));
        match self.ask(&Ask::Read { shard, map_epoch: MapEpoch(1), table, key, local: true }) {
            Answer::Row { value, .. } => Some(String::from_utf8(value.to_vec()).unwrap()),
            Answer::Absent => None,
            other => panic!("a read was answered {other:?}"),
        }
    }
}

pub fn put(shard: Shard, map_epoch: MapEpoch, key: &str, value: Vec<u8>) -> Ask {
    let (table, key) = (Bytes::from_static(b"orders"), Some(Bytes::from(key.to_owned())));
    Ask::Write { shard, map_epoch, table, key, value: Some(value.into()) }
}

/// As control does: reads the HELLO to learn whom the connection is for.
pub fn adopt(node: &Node, mut socket: TcpStream, tampering: &Tampering) {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (mut read, mut part) = (BytesMut::new(), [0; 4096]);
    loop {
        let Ok(n @ 1..) = socket.read(&mut part) else { return };
        read.extend_from_slice(&part[..n]);
        let (asks, stream, origin) = match take(&mut read.clone()).unwrap() {
            Some(Frame::Hello(h)) => (false, h.stream, h.origin),
            Some(Frame::Ask(a)) => (true, a.stream, a.origin),
            Some(Frame::Seed(s)) => {
                socket = between(socket, tampering.lock().unwrap().clone());
                (true, s.ask.stream, s.ask.origin)
            }
            Some(other) => panic!("{other:?} begins a connection"),
            None => continue,
        };
        socket.set_read_timeout(None).unwrap();
        socket.set_nonblocking(true).unwrap();
        return node.adopt(Adopted { asks, stream, origin, socket, tls: None, read: read.to_vec() });
    }
}
