//! Three and four zones, each with two streams to each other: whole nodes, full mesh, pauses, limits, and a zone that is away.

use crate::cluster::{STREAMS, adopt};
use bytes::{Bytes, BytesMut};
use futures_lite::future::block_on;
use replog::link::Compress;
use replog::port::{Answer, Ask, put_ask, take_answer};
use replog::retain::{Policy, WORTH};
use replog::uring::line::{Controls, Line};
use replog::uring::node::{Node, Options, Peer, StreamFigures, Told};
use replog::uring::stream::Scrub;
use shardmap::fence::{Fence, Fences};
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::ownership::History;
use shardmap::point::Point;
use shardmap::{MapEpoch, Shard, Zone};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

type Slot = Arc<Mutex<Option<Arc<Node>>>>;

/// `nodes.len()` zones; shard s belongs to zone s / 2, and to stream s % 2.
struct Mesh {
    nodes: Vec<Slot>,
    controls: Vec<Arc<Controls>>,
    at: Vec<SocketAddr>,
    faults: Arc<Mutex<Vec<String>>>,
    map: Arc<Map>,
    dir: PathBuf,
    _one: std::sync::MutexGuard<'static, ()>,
}

fn map(zones: u8) -> Map {
    let p = |x, y| Point { lng_e7: x * 10_000_000, lat_e7: y * 10_000_000 };
    let ring = vec![p(0, 0), p(1, 0), p(1, 1), p(0, 1)];
    let fences = Fences::new(vec![Fence { name: "all".into(), shard: Shard(0), rings: vec![ring] }], 10_000, 20);
    let zone = |id: u8| ZoneInfo { id: Zone(id), name: NAMES[usize::from(id)].into() };
    Map::from_parts(Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: Some(Shard(0)),
        zones: (0..zones).map(zone).collect(),
        histories: (0..2 * u16::from(zones))
            .map(|s| (Shard(s), History::new(Zone((s / 2) as u8), MapEpoch(1))))
            .collect(),
        exceptions: Exceptions { orders: vec![], shops: vec![] },
        globals: Default::default(),
        fences: Arc::new(fences.unwrap()),
    })
    .unwrap()
}

impl Mesh {
    fn start(name: &str, zones: u8) -> Mesh {
        let one = crate::cluster::alone();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (mut nodes, mut at) = (vec![], vec![]);
        for _ in 0..zones {
            let (slot, listener) = (Slot::default(), TcpListener::bind("127.0.0.1:0").unwrap());
            at.push(listener.local_addr().unwrap());
            nodes.push(slot.clone());
            // It ends with the process: a zone keeps its address while its node is down.
            thread::spawn(move || {
                for socket in listener.incoming().flatten() {
                    let node = slot.lock().unwrap().clone();
                    node.into_iter().for_each(|node| adopt(&node, socket.try_clone().unwrap(), &Default::default()));
                }
            });
        }
        let controls = (0..zones).map(|_| Arc::default()).collect();
        let mesh = Mesh { nodes, controls, at, faults: Arc::default(), map: Arc::new(map(zones)), dir, _one: one };
        (0..zones).for_each(|z| mesh.start_zone(z));
        mesh
    }

    fn zones(&self) -> std::ops::Range<u8> {
        0..self.nodes.len() as u8
    }

    fn start_zone(&self, z: u8) {
        let peer = |p: u8| Peer { zone: Zone(p), name: NAMES[usize::from(p)].into(), link: self.at[usize::from(p)] };
        let compress = if z.is_multiple_of(2) { Compress::Always } else { Compress::Auto };
        let controls = self.controls[usize::from(z)].clone();
        let options = Options {
            cluster: "test".into(),
            zone: Zone(z),
            data_dir: self.dir.join(NAMES[usize::from(z)]),
            streams: STREAMS,
            segment_bytes: 1 << 20,
            retain: Policy { keep_bytes: 0, peers_until: 1.0, worth: WORTH },
            scrub: Scrub::NEVER,
            cores: vec![usize::from(z) % 2],
            ports: vec![self.port(z)],
            peers: self.zones().filter(|p| *p != z).map(peer).collect(),
            line: Line { compress, controls, ..Line::default() },
            start_alone: false,
            answers_kept_ms: replog::commit::ANSWER_KEPT_MS,
        };
        let (slot, faults) = (self.nodes[usize::from(z)].clone(), self.faults.clone());
        let tell = move |what| match what {
            Told::Fault(why) => faults.lock().unwrap().push(why),
            Told::Map(_) => {} // the first map is the only one
        };
        let node = Node::start(options, self.map.clone(), tell).unwrap();
        node.on_gzs(self.map.epoch());
        *slot.lock().unwrap() = Some(Arc::new(node));
    }

    fn stop_zone(&self, z: u8) {
        let node = self.nodes[usize::from(z)].lock().unwrap().take();
        node.into_iter().for_each(|node| block_on(node.stop()));
    }

    fn node(&self, z: u8) -> Arc<Node> {
        self.nodes[usize::from(z)].lock().unwrap().clone().expect("it runs")
    }

    fn stream(&self, z: u8, number: u32) -> StreamFigures {
        let all = block_on(self.node(z).figures());
        all.into_iter().flat_map(|c| c.streams).find(|s| s.stream == number).unwrap()
    }

    fn wait(&self, what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < PATIENCE, "waiting until {what}; faults: {:?}", self.faults.lock().unwrap());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn port(&self, z: u8) -> PathBuf {
        // A socket's path has 107 bytes at most.
        std::env::temp_dir().join(format!("ezone-mesh-{}-{z}", std::process::id()))
    }

    /// Writes `count` orders at zone `z`, half of them in each stream.
    fn write(&self, z: u8, from: u32, count: u32) {
        for shard in [u16::from(z) * 2, u16::from(z) * 2 + 1] {
            let mut port = UnixStream::connect(self.port(z)).unwrap();
            port.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut out = BytesMut::new();
            for i in from..from + count / 2 {
                let value = format!("{{\"id\":{i},\"status\":\"placed\",\"note\":\"{:0>300}\"}}", i);
                let (table, key) = (Bytes::from_static(b"orders"), Some(Bytes::from(format!("{shard}-{i}"))));
                let value = Some(Bytes::from(value));
                put_ask(
                    &mut out,
                    u64::from(i),
                    &Ask::Write { shard: Shard(shard), map_epoch: MapEpoch(1), table, key, value },
                );
            }
            port.write_all(&out).unwrap();
            let (mut answered, mut inbox, mut part) = (0, BytesMut::new(), vec![0; 1 << 16]);
            while answered < count / 2 {
                let n = port.read(&mut part).unwrap();
                assert!(n > 0, "the port was closed");
                inbox.extend_from_slice(&part[..n]);
                while let Some((_, answer)) = take_answer(&mut inbox).unwrap() {
                    assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
                    answered += 1;
                }
            }
        }
    }

    /// Waits until each zone has applied all that any has, then compares their copies.
    fn compare(&self) {
        let applied_everywhere = || {
            (0..STREAMS).all(|number| {
                let all: Vec<_> = self.zones().map(|z| self.stream(z, number)).collect();
                self.zones().all(|origin| {
                    let durable = all[usize::from(origin)].durable_seq;
                    all.iter().all(|s| s.applied.get(Zone(origin)).unwrap_or(0) == durable)
                })
            })
        };
        self.wait("all is applied everywhere", applied_everywhere);
        let digests = |z| block_on(self.node(z).digests()).iter().map(|d| (d.rows, d.ledger)).collect::<Vec<_>>();
        self.wait("copies are equal", || self.zones().all(|z| digests(z) == digests(0)));
        assert_eq!(*self.faults.lock().unwrap(), Vec::<String>::new());
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for z in self.zones() {
            self.stop_zone(z);
            let _ = std::fs::remove_file(self.port(z));
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn three_and_four_zones_with_two_streams_each_have_all_of_each_other() {
    for zones in [3, 4] {
        let mesh = Mesh::start("mesh", zones);
        for round in 0..2 {
            mesh.zones().for_each(|z| mesh.write(z, round * 1000, 200));
        }
        mesh.compare();
        // One is away while the others write, and has all of it when it is back.
        mesh.stop_zone(1);
        mesh.zones().filter(|z| *z != 1).for_each(|z| mesh.write(z, 5000, 400));
        mesh.start_zone(1);
        mesh.compare();
        for z in mesh.zones() {
            for number in 0..STREAMS {
                let links = mesh.stream(z, number).links;
                assert_eq!(links.len(), usize::from(zones) - 1, "a link to each other zone");
            }
        }
    }
}

#[test]
fn a_peer_whose_link_is_paused_or_limited_is_behind_alone_and_has_all_in_the_end() {
    let mesh = Mesh::start("paused", 3);
    mesh.write(0, 0, 100);
    mesh.compare();
    let there = mesh.stream(1, 0);
    let durable = there.logs[&Zone(0)].lag_us.as_ref().map(|us| us.len());
    assert_eq!(durable, there.mirrored.get(Zone(0)), "each record's way is timed once");
    assert!(there.logs[&Zone(1)].lag_us.is_none(), "what is written here has no way");
    mesh.controls[0].pause(Zone(1), Some(0), true);
    let link = |to: u8, number| mesh.stream(0, number).links[&Zone(to)].clone();
    mesh.wait("it is paused", || link(1, 0).state == "paused" && link(1, 0).line.is_paused);
    mesh.write(0, 1000, 400);
    let lag = |to, number| mesh.stream(0, number).durable_seq - link(to, number).durable_seq;
    mesh.wait("the others have all", || lag(2, 0) == 0 && lag(2, 1) == 0 && lag(1, 1) == 0);
    assert!(lag(1, 0) >= 200 && link(1, 0).map_epoch.is_some(), "it is behind, and there");
    // Resumed at a rate: what it lacks takes its time.
    mesh.controls[0].limit(Zone(1), Some(20_000));
    mesh.controls[0].pause(Zone(1), Some(0), false);
    mesh.wait("it is live again", || link(1, 0).state == "live");
    mesh.controls[0].limit(Zone(1), None);
    mesh.compare();
    let shipped = link(1, 0).line.shipped;
    assert!(shipped.packs > 0 && shipped.line_bytes < shipped.log_bytes, "what waited was packed: {shipped:?}");
}

#[test]
fn what_a_lost_zone_had_shipped_to_one_survivor_reaches_the_other_and_is_in_its_report() {
    let mesh = Mesh::start("complete", 3);
    mesh.write(0, 0, 100);
    mesh.compare();
    mesh.controls[0].pause(Zone(1), None, true);
    mesh.write(0, 1000, 400);
    let mirrored = |z, number| mesh.stream(z, number).mirrored.get(Zone(0)).unwrap_or(0);
    let whole = [mesh.stream(0, 0).durable_seq, mesh.stream(0, 1).durable_seq];
    mesh.wait("one survivor has all", || (0..STREAMS).all(|n| mirrored(2, n) >= whole[n as usize]));
    assert!((0..STREAMS).all(|n| mirrored(1, n) < whole[n as usize]), "the other lacks what was written since");
    mesh.stop_zone(0);
    // Zone 1 is to own what was lost: its positions, as it reports them, hold what zone 2 alone had.
    let lost = [Shard(0), Shard(1)];
    let epoch = mesh.map.epoch().next();
    let none = lost.map(|s| (s, mesh.map.history(s).unwrap().declare_lost(Zone(0), epoch).unwrap().unwrap()));
    let none = Arc::new(mesh.map.with_entries(none.into()).unwrap());
    [1, 2].iter().for_each(|z| mesh.node(*z).on_map(&none));
    let reports = || block_on(mesh.node(1).report(&lost, true));
    mesh.wait("it has reported", || reports().iter().all(|r| r.applied.is_some()));
    for r in reports() {
        let number = u32::from(r.shard.0) % STREAMS;
        assert!(r.applied.unwrap().get(Zone(0)) >= Some(whole[number as usize]), "stream {number}");
        assert_eq!(mirrored(1, number), mirrored(2, number));
    }
    assert_eq!(*mesh.faults.lock().unwrap(), Vec::<String>::new());
}
