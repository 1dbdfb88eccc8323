//! Changes told by real nodes: complete, in the order of each log, from any place that is kept, at both zones.

use crate::cluster::{A, B, Cluster, Site, put};
use crate::commit::{commit, committed, step};
use crate::{ONE, move_shards, shards};
use replog::changes::{Change, Told, Wish};
use replog::commit::{Condition, Token};
use replog::port::{Answer, Ask, Refused};
use shardmap::{Shard, Zone};
use std::collections::BTreeMap;

/// A reader of stream 0 at one zone.
struct Reader {
    after: Option<Vec<Token>>,
    table: Option<&'static str>,
    zone: Option<Zone>,
    seen: Vec<Change>,
}

impl Reader {
    fn new() -> Reader {
        Reader { after: None, table: None, zone: None, seen: vec![] }
    }

    /// Asks once; waits for a change as long as that.
    fn ask(&mut self, site: &Site, wait_ms: u32) -> usize {
        let table = self.table.map(Into::into);
        let wish = Wish { after: self.after.clone(), table, zone: self.zone, values: true, wait_ms };
        match site.ask(&Ask::Changes(wish)) {
            Answer::Changes(Told { changes, after }) => {
                let count = changes.len();
                self.seen.extend(changes);
                self.after = Some(after);
                count
            }
            other => panic!("changes were answered {other:?}"),
        }
    }

    /// Asks until there have been so many.
    fn until(&mut self, site: &Site, count: usize) {
        for _ in 0..10_000 {
            if self.seen.len() >= count {
                return;
            }
            self.ask(site, 5000);
        }
        panic!("{} changes, expected {count}", self.seen.len());
    }

    fn keys(&self) -> Vec<String> {
        self.seen.iter().map(|c| String::from_utf8_lossy(&c.key).into_owned()).collect()
    }
}

#[test]
fn every_change_is_told_once_in_the_order_of_its_log_at_both_zones() {
    // None of its segments is full before the end: a log lets go what nobody needs, and readers of changes do not count.
    let (cluster, map) = Cluster::start_with("changes", 4 << 20);
    let (mut here, mut there) = (Reader::new(), Reader::new());
    let (mut apart, mut other) = (Reader { table: Some("none"), ..Reader::new() }, Reader::new());
    for (reader, site) in [(&mut here, &cluster.a), (&mut there, &cluster.b), (&mut apart, &cluster.a)] {
        assert_eq!(reader.ask(site, 0), 0, "from now on: nothing that was");
    }
    let mut keys = vec![];
    for i in 0..300 {
        let key = format!("k{i}");
        match i % 3 {
            0 => drop(committed(cluster.a.ask(&Ask::Commit(commit(
                Shard(0),
                ONE,
                vec![step(&key, Some("v"), Condition::Absent)],
            ))))),
            1 => drop(committed(cluster.a.ask(&Ask::Commit(commit(
                Shard(2),
                ONE,
                vec![step(&key, None, Condition::Any)],
            ))))),
            _ => cluster.a.put(Shard(0), ONE, &key, &"x".repeat(3000)).unwrap(),
        }
        keys.push(key);
        if i == 150 {
            here.until(&cluster.a, 151);
            // The core there that is asked has stream 0 alone.
            other.after = here.after.clone().map(|all| all.into_iter().filter(|t| t.stream == 0).collect());
        }
    }
    for (reader, site) in [(&mut here, &cluster.a), (&mut there, &cluster.b)] {
        reader.until(site, 300);
        assert_eq!(reader.ask(site, 0), 0, "each once");
        assert_eq!(reader.keys(), keys, "zone {}", site.zone);
        assert!(reader.seen.windows(2).all(|w| w[0].seq < w[1].seq));
    }
    assert_eq!(here.seen, there.seen, "the same versions and places in both zones");
    assert!(here.seen[1].deleted && here.seen[1].value.is_none() && here.seen[0].value.as_deref() == Some(b"v"));
    // A token of one zone is good at the other: it names places of logs, not of a store.
    other.until(&cluster.b, 149);
    assert_eq!(other.keys(), keys[151..]);
    assert_eq!(apart.ask(&cluster.a, 0), 0, "another table's");
    // What another zone writes after a move comes in its own log.
    let map = move_shards(&cluster, &map, &shards(&[0]), &cluster.b);
    cluster.b.put(Shard(0), map.epoch(), "moved", "v").unwrap();
    for (reader, site) in [(&mut here, &cluster.a), (&mut there, &cluster.b)] {
        reader.until(site, 301);
        let last = reader.seen.last().unwrap();
        assert_eq!((&last.key[..], last.version.zone), (&b"moved"[..], B));
    }
    assert_eq!(cluster.compare(), 0);
}

/// The job of one zone: it reads that zone's own log.
fn job(site: &Site) -> Reader {
    Reader { zone: Some(site.zone), ..Reader::new() }
}

#[test]
fn each_change_is_told_by_the_job_of_one_zone_however_its_shard_moves_and_however_far_the_job_is_behind() {
    let (cluster, map) = Cluster::start_with("jobs", 4 << 20);
    let (mut at_a, mut at_b) = (job(&cluster.a), job(&cluster.b));
    for (job, site) in [(&mut at_a, &cluster.a), (&mut at_b, &cluster.b)] {
        assert_eq!(job.ask(site, 0), 0, "from now on");
        assert!(job.after.as_ref().unwrap().iter().all(|t| t.zone == site.zone), "places of its own log alone");
    }
    let mut written = vec![];
    let mut write = |site: &Site, epoch, count: usize| {
        for _ in 0..count {
            let key = format!("k{}", written.len());
            site.put(Shard(0), epoch, &key, "v").unwrap();
            written.push(key);
        }
    };
    write(&cluster.a, ONE, 10);
    at_a.until(&cluster.a, 10);
    // These its job has not been told when the shard leaves; the other zone's job has passed them by then.
    write(&cluster.a, ONE, 10);
    let there = move_shards(&cluster, &map, &shards(&[0]), &cluster.b);
    write(&cluster.b, there.epoch(), 10);
    at_b.until(&cluster.b, 10);
    let back = move_shards(&cluster, &there, &shards(&[0]), &cluster.a);
    write(&cluster.a, back.epoch(), 10);
    at_a.until(&cluster.a, 30);
    assert_eq!((at_a.ask(&cluster.a, 0), at_b.ask(&cluster.b, 0)), (0, 0), "each once");
    let mut told: Vec<(u64, String)> = [&at_a, &at_b]
        .iter()
        .flat_map(|job| job.seen.iter().map(|c| (c.version.owner_epoch.0, String::from_utf8_lossy(&c.key).into())))
        .collect();
    told.sort_by_key(|(epoch, key)| (*epoch, key.trim_start_matches('k').parse::<u32>().unwrap()));
    let told: Vec<String> = told.into_iter().map(|(_, key)| key).collect();
    assert_eq!(told, written, "all of them, by one job each, and each ownership's together");
    // The other zone's copy tells the same, for whoever does that zone's work should it never come back.
    let mut heir = Reader { after: Some(vec![]), zone: Some(A), ..Reader::new() };
    heir.until(&cluster.b, 30);
    assert_eq!(heir.seen, at_a.seen);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_reader_that_does_not_ask_holds_nothing_and_is_told_all_later() {
    // Its segments are not full before the end, as above: whoever is slow to ask is told that what went is gone.
    let (cluster, _) = Cluster::start_with("slow-reader", 16 << 20);
    let mut reader = Reader::new();
    reader.ask(&cluster.b, 0);
    // More than a log keeps in memory for whoever follows it.
    let asks: Vec<_> = (0..40).map(|i| put(Shard(0), ONE, &format!("big{i}"), vec![b'x'; 300_000])).collect();
    let written: Vec<_> = asks.iter().map(|ask| cluster.a.ask(ask)).collect();
    assert!(written.iter().all(|a| matches!(a, Answer::Written { .. })));
    cluster.wait("b has applied all", || cluster.b.get(Shard(0), "big39").is_some());
    reader.until(&cluster.b, 40);
    let mut by_key = BTreeMap::new();
    reader.seen.iter().for_each(|c| *by_key.entry(c.key.clone()).or_insert(0) += 1);
    assert!(by_key.len() == 40 && by_key.values().all(|n| *n == 1));
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn what_is_no_longer_kept_is_said_with_the_first_that_is() {
    let (cluster, _) = Cluster::start_with("forgotten", 1 << 16);
    let big = |i: u32| put(Shard(0), ONE, &format!("k{}", i % 7), vec![b'x'; 30_000]);
    let begin = Wish { after: Some(vec![]), table: None, zone: None, values: false, wait_ms: 0 };
    let mut round = 0;
    let refused = loop {
        assert!(round < 2000, "no segment ever went");
        assert!(matches!(cluster.a.ask(&big(round)), Answer::Written { .. }));
        round += 1;
        if round % 20 == 0 {
            match cluster.a.ask(&Ask::Changes(begin.clone())) {
                Answer::Changes(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
                other => break other,
            }
        }
    };
    for odd in [Token { zone: Zone(7), stream: 0, seq: 1 }, Token { zone: A, stream: 8, seq: 1 }] {
        let answer = cluster.a.ask(&Ask::Changes(Wish { after: Some(vec![odd]), ..begin.clone() }));
        assert!(matches!(answer, Answer::Refused(Refused::Invalid(_))), "{odd}: {answer:?}");
    }
    let Answer::Refused(Refused::Forgotten { after, first }) = refused else { panic!("{refused:?}") };
    assert_eq!((after.zone, after.seq), (A, 0));
    let from_first = Wish { after: Some(vec![Token { seq: first - 1, ..after }]), ..begin };
    let answer = cluster.a.ask(&Ask::Changes(from_first));
    let kept = matches!(&answer, Answer::Changes(told) if !told.changes.is_empty());
    // More may have gone meanwhile; then it is said again, and further on.
    assert!(
        kept || matches!(&answer, Answer::Refused(Refused::Forgotten { first: f, .. }) if *f > first),
        "{answer:?}"
    );
}
