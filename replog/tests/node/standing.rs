//! How zones stand to their shards, told by real nodes: before the first write of an ownership, and once its last is durable.

use crate::cluster::{A, B, Cluster, Site, next};
use crate::{ONE, move_shards, shards};
use bytes::BytesMut;
use replog::port::{Answer, Ask, Refused, put_ask, take_answer};
use replog::stand::{May, Standing};
use shardmap::Shard;
use shardmap::ownership::Kind;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

const S: Shard = Shard(2);
/// Longer than any test waits.
const LONG_MS: u32 = 600_000;

/// A router's core that listens to stream 0.
struct Router {
    port: UnixStream,
    read: BytesMut,
    known: u64,
}

impl Router {
    /// It knows how everything stands, and waits for something else.
    fn of(site: &Site) -> (Router, Standing) {
        let mut router = Router { port: site.connect(0), read: BytesMut::new(), known: 0 };
        router.ask(LONG_MS);
        let first = router.answer();
        router.ask(LONG_MS);
        (router, first)
    }

    /// It has told what it was answered.
    fn ask(&mut self, wait_ms: u32) {
        let mut out = BytesMut::new();
        put_ask(&mut out, 1, &Ask::Standing { known: self.known, wait_ms });
        self.port.write_all(&out).unwrap();
    }

    fn answer(&mut self) -> Standing {
        let mut part = [0; 4096];
        loop {
            match take_answer(&mut self.read).unwrap() {
                Some((_, Answer::Standing(all))) => {
                    assert!(all.revision > self.known, "revision {} after {}", all.revision, self.known);
                    self.known = all.revision;
                    return all;
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            let n = self.port.read(&mut part).unwrap();
            assert!(n > 0, "the port was closed");
            self.read.extend_from_slice(&part[..n]);
        }
    }

    /// Tells on until the shard stands so; it has not told that yet.
    fn until(&mut self, what: &str, so: impl Fn(May, Kind) -> bool) -> Standing {
        for _ in 0..1000 {
            let all = self.answer();
            let s = of(&all, S);
            if so(s.may, s.kind) {
                return all;
            }
            self.ask(LONG_MS);
        }
        panic!("it never stands so: {what}");
    }
}

fn of(all: &Standing, shard: Shard) -> replog::stand::Stand {
    *all.stands.iter().find(|s| s.shard == shard).unwrap()
}

fn untold(site: &Site) -> u64 {
    site.figures().iter().map(|c| c.untold).sum()
}

fn durable(site: &Site, stream: u32) -> u64 {
    site.figures().iter().flat_map(|c| &c.streams).find(|s| s.stream == stream).unwrap().durable_seq
}

#[test]
fn a_write_under_a_new_ownership_waits_until_each_router_has_told_its_readers_and_no_longer_than_it_may() {
    let (cluster, map) = Cluster::start("standing-gain");
    let (mut router, first) = Router::of(&cluster.b);
    assert_eq!(first.map_epoch, ONE);
    let stands: Vec<_> = first.stands.iter().map(|s| (s.shard.0, s.may, s.owner)).collect();
    let theirs = |s| (s, May::Nothing, Some(A));
    assert_eq!(stands, [theirs(0), theirs(2), (4, May::Writes, Some(B)), (6, May::Writes, Some(B))]);
    let written = AtomicBool::new(false);
    let map = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let there = move_shards(&cluster, &map, &[S], &cluster.b);
            cluster.b.put(S, there.epoch(), "first", "v").unwrap();
            written.store(true, SeqCst);
            there
        });
        let gained = router.until("written here", |may, _| may == May::Writes);
        // Far more than a write takes that does not wait, unless the machine is so busy that its time is over.
        std::thread::sleep(Duration::from_millis(150));
        let early = written.load(SeqCst);
        assert!(!early || untold(&cluster.b) > 0, "written before the router has told of it");
        router.ask(LONG_MS);
        let there = mover.join().unwrap();
        assert_eq!((gained.map_epoch, of(&gained, S).own_epoch.0), (there.epoch(), there.epoch().0));
        there
    });
    // It is told once more and does not ask again: the next shard is written all the same, and that is counted.
    let before = untold(&cluster.b);
    let map = move_shards(&cluster, &map, &shards(&[0]), &cluster.b);
    for key in ["second", "third"] {
        cluster.b.put(Shard(0), map.epoch(), key, "v").unwrap();
        assert_eq!(untold(&cluster.b), before + 1, "{key}");
    }
}

#[test]
fn a_zone_says_that_it_has_stopped_only_when_its_fence_is_durable() {
    let (cluster, map) = Cluster::start("standing-lose");
    let (mut router, first) = Router::of(&cluster.a);
    assert_eq!(of(&first, S).may, May::Writes);
    cluster.a.put(S, ONE, "k", "v").unwrap();
    let before = durable(&cluster.a, 0);
    // It runs, and hears from the other zone that it was declared lost.
    cluster.b.node().on_map(&next(&map, &[S], |_, h, e| h.declare_lost(A, e).map(Option::unwrap)));
    let lost = router.until("it has stopped", |may, _| may == May::Nothing);
    assert!(durable(&cluster.a, 0) > before, "the FENCE is in the log");
    assert_eq!((of(&lost, S).kind, of(&lost, S).own_epoch.0), (Kind::Lost, 1));
    assert!(matches!(cluster.a.put(S, lost.map_epoch, "k", "w"), Err(Refused::NotOwner { .. })));
}
