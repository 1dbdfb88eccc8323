//! Clients on records of shards that move to and fro: what the owners acknowledged is linearizable for each key.
//!
//! Every write has a version, and versions have one order. With each operation at its version (a read behind the write that it saw), a
//! history is linearizable if no operation stands before one that had ended when it began. A conditional write must come right
//! behind the version that it named.

use crate::cluster::{A, Cluster, Site};
use crate::{move_shards, shards};
use bytes::Bytes;
use replog::Version;
use replog::commit::{Commit, Condition, Step};
use replog::port::{Answer, Ask, Refused};
use shardmap::{MapEpoch, Shard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What an operation did.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Did {
    /// It saw the write of this token; `None`: there was no row.
    Read(Option<(Version, u64)>),
    /// It wrote this token; if it named a version, right behind that.
    Wrote { version: Version, token: u64, behind: Option<Version> },
}

/// An operation that was answered, and when it was under way.
#[derive(Clone, Debug)]
struct Done {
    key: String,
    from: Instant,
    to: Instant,
    did: Did,
}

impl Did {
    fn version(&self) -> Option<Version> {
        match self {
            Did::Read(seen) => seen.map(|(version, _)| version),
            Did::Wrote { version, .. } => Some(*version),
        }
    }
}

/// Judges the operations on one key.
fn check(mut of: Vec<&Done>) -> Result<(), String> {
    let mut writes: BTreeMap<Version, (u64, Instant)> = BTreeMap::new();
    for done in &of {
        if let Did::Wrote { version, token, .. } = done.did
            && writes.insert(version, (token, done.from)).is_some()
        {
            return Err(format!("two writes have version {version}"));
        }
    }
    for done in &of {
        match done.did {
            Did::Read(Some((version, token))) => match writes.get(&version) {
                Some((wrote, from)) if *wrote == token && *from < done.to => {}
                other => return Err(format!("a read of {token} at {version}: {other:?}")),
            },
            Did::Wrote { version, behind: Some(behind), .. } => {
                let before = writes.range(..version).next_back().map(|(version, _)| *version);
                if before != Some(behind) {
                    return Err(format!("a write behind {behind} came behind {before:?}"));
                }
            }
            Did::Read(None) | Did::Wrote { behind: None, .. } => {}
        }
    }
    let mut ended = of.clone();
    ended.sort_by_key(|d| d.to);
    of.sort_by_key(|d| d.from);
    let (mut ended, mut newest) = (ended.into_iter().peekable(), None);
    for done in of {
        while let Some(before) = ended.next_if(|e| e.to < done.from) {
            newest = newest.max(before.did.version());
        }
        let fits = match done.did {
            Did::Read(_) => done.did.version() >= newest,
            Did::Wrote { version, .. } => Some(version) > newest,
        };
        if !fits {
            return Err(format!("{newest:?} was known when {:?} began", done.did));
        }
    }
    Ok(())
}

/// One client: asks until it is stopped, wherever the shard is.
struct Client<'a> {
    sites: [&'a Site; 2],
    seed: u64,
    tokens: u64,
    at: usize,
    seen: BTreeMap<String, Version>,
    done: Vec<Done>,
    refused: u64,
}

impl Client<'_> {
    fn step(&mut self) {
        let shard = Shard(crate::dice(&mut self.seed, 2) as u16);
        let key = format!("{shard}-{}", crate::dice(&mut self.seed, 2));
        let behind = self.seen.get(&key).copied();
        let (from, what) = (Instant::now(), crate::dice(&mut self.seed, 3));
        let (table, map_epoch) = (Bytes::from_static(b"orders"), MapEpoch(1));
        let ask = if what == 0 {
            Ask::Read { shard, map_epoch, table, key: key.clone().into(), local: false }
        } else {
            self.tokens += 1;
            let only = behind.filter(|_| what == 2).map_or(Condition::Any, Condition::At);
            let value = Some(Bytes::copy_from_slice(&self.tokens.to_le_bytes()));
            let steps = vec![Step { table, key: Some(key.clone().into()), value, only }];
            Ask::Commit(Commit { shard, map_epoch, steps, once: None, remote_ms: None })
        };
        let answer = self.sites[self.at].ask(&ask);
        let did = match answer {
            Answer::Row { version, value, .. } => {
                Did::Read(Some((version, u64::from_le_bytes(value[..].try_into().unwrap()))))
            }
            Answer::Absent => Did::Read(None),
            Answer::Committed(done) => {
                let behind = behind.filter(|_| what == 2);
                Did::Wrote { version: done.rows[0].version, token: self.tokens, behind }
            }
            Answer::Refused(Refused::Unmet { seen, .. }) => {
                self.seen.remove(&key);
                self.seen.extend(seen.map(|version| (key, version)));
                return;
            }
            Answer::Refused(Refused::NotOwner { .. } | Refused::Busy) => {
                // Where it is now, or will be.
                self.refused += 1;
                self.at = 1 - self.at;
                return;
            }
            other => panic!("{other:?}"),
        };
        self.seen.extend(did.version().map(|version| (key.clone(), version)));
        self.done.push(Done { key, from, to: Instant::now(), did });
    }
}

#[test]
fn what_owners_acknowledge_while_shards_move_to_and_fro_is_linearizable_for_each_key() {
    let (cluster, mut map) = Cluster::start("history");
    let (stop, count, all) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new((vec![], 0)));
    std::thread::scope(|scope| {
        for n in 0..4u64 {
            let (stop, count, all, sites) = (&stop, &count, &all, cluster.sites());
            scope.spawn(move || {
                let sites = [sites[0], sites[1]];
                let (seed, tokens) = (n + 7, n << 32);
                let mut client = Client { sites, seed, tokens, at: 0, seen: BTreeMap::new(), done: vec![], refused: 0 };
                while !stop.load(Ordering::Relaxed) {
                    let before = client.done.len();
                    client.step();
                    count.fetch_add((client.done.len() - before) as u64, Ordering::Relaxed);
                }
                let mut all = all.lock().unwrap();
                all.0.extend(client.done);
                all.1 += client.refused;
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..6u16 {
                let moved = shards(&[round % 2]);
                let to = if map.owner(moved[0]) == Some(A) { &cluster.b } else { &cluster.a };
                map = Arc::clone(&move_shards(&cluster, &map, &moved, to));
                let enough = (u64::from(round) + 1) * 200;
                cluster.wait("clients have gone on", || count.load(Ordering::Relaxed) > enough);
            }
        }));
        stop.store(true, Ordering::Relaxed); // else the clients, and with them the test, would never end
        outcome.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    let (all, refused) = all.into_inner().unwrap();
    for key in ["0-0", "0-1", "1-0", "1-1"] {
        let of: Vec<&Done> = all.iter().filter(|d| d.key == key).collect();
        let zones: std::collections::BTreeSet<_> = of.iter().filter_map(|d| Some(d.did.version()?.zone)).collect();
        assert!(of.len() > 20 && zones.len() == 2, "{key}: {} operations, written in {zones:?}", of.len());
        check(of).unwrap_or_else(|why| panic!("{key}: {why}"));
    }
    let conditional = all.iter().filter(|d| matches!(d.did, Did::Wrote { behind: Some(_), .. })).count();
    println!("{} operations, {conditional} conditional, {refused} refused on the way", all.len());
    assert!(conditional > 20 && refused > 0);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_history_that_is_not_linearizable_is_found() {
    use replog::Hlc;
    use shardmap::OwnerEpoch;
    let version = |n| Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(n), zone: A, stream: 0 };
    let begin = Instant::now();
    let at = |ms| begin + std::time::Duration::from_millis(ms);
    let done = |from, to, did| Done { key: "k".into(), from: at(from), to: at(to), did };
    let wrote = |n: u64| Did::Wrote { version: version(n), token: n, behind: None };
    let behind = |n: u64, b| Did::Wrote { version: version(n), token: n, behind: Some(version(b)) };
    let read = |n: u64| Did::Read(Some((version(n), n)));
    let judge = |all: &[Done]| check(all.iter().collect()).is_ok();
    let two = [done(0, 1, wrote(1)), done(2, 3, wrote(2))];
    let with = |last| judge(&[two[0].clone(), two[1].clone(), last]);
    assert!(with(done(4, 5, read(2))) && with(done(2, 5, read(1))) && with(done(0, 5, Did::Read(None))));
    assert!(!with(done(4, 5, read(1))), "a stale read");
    assert!(!with(done(4, 5, Did::Read(None))), "a write that is lost");
    assert!(!with(done(4, 5, read(3))), "a read of what nobody wrote");
    assert!(!with(done(0, 1, read(2))), "a read from the future");
    assert!(!judge(&[done(0, 1, wrote(2)), done(2, 3, wrote(1))]), "a write that went below an earlier one");
    assert!(!judge(&[done(0, 1, wrote(1)), done(0, 1, wrote(1))]), "one version for two");
    assert!(with(done(4, 5, behind(3, 2))) && !with(done(4, 5, behind(3, 1))), "a condition that did not hold");
    assert!(
        !judge(&[done(0, 9, wrote(1)), done(1, 2, wrote(2)), done(3, 4, read(2)), done(5, 6, read(1))]),
        "back again"
    );
}
