//! Whole nodes: two zones, two streams, links over loopback, asks over the port, maps stepped as the map's writer does.
#![cfg(feature = "uring")]

mod changes;
mod cluster;
mod commit;
mod damage;
mod history;
mod hold;
mod lease;
mod ledger;
mod mend;
mod mesh;
mod proxy;
mod seed;
mod standing;

use cluster::{A, B, Cluster, Site, next, put};
use replog::port::{Answer, Refused};
use shardmap::map::Map;
use shardmap::ownership::Illegal;
use shardmap::{MapEpoch, Positions, Shard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ONE: MapEpoch = MapEpoch(1);

fn shards(of: &[u16]) -> Vec<Shard> {
    of.iter().copied().map(Shard).collect()
}

/// Drives a move as the map's writer does: moving, the target's report, commit. Returns the last map.
fn move_shards(cluster: &Cluster, map: &Map, moved: &[Shard], to: &Site) -> Arc<Map> {
    let moving = next(map, moved, |_, h, e| h.begin_move(to.zone, e));
    cluster.on_map(&moving);
    cluster.wait("the target has caught up", || {
        to.map_epoch() >= moving.epoch() && to.report(moved, false).iter().all(|r| r.applied.is_some())
    });
    let reports = to.report(moved, false);
    let owned = next(&moving, moved, |s, h, e| {
        let r = reports.iter().find(|r| r.shard == s).ok_or(Illegal::NoPositions)?;
        h.commit_move(r.fence_seq.ok_or(Illegal::NoPositions)?, r.applied.as_ref().ok_or(Illegal::NoPositions)?, e)
    });
    cluster.on_map(&owned);
    cluster.wait("the target has the map", || to.map_epoch() >= owned.epoch());
    owned
}

/// Gives what `lost` owns to `to`, as it reports.
fn take_over(cluster: &Cluster, map: &Map, lost: &[Shard], to: &Site) -> Arc<Map> {
    let owner = map.owner(lost[0]).unwrap();
    let none = next(map, lost, |_, h, e| h.declare_lost(owner, e).map(|entry| entry.unwrap()));
    to.node().on_map(&none);
    cluster.wait("the survivor has reported", || {
        let reports = to.report(lost, true);
        assert_eq!(reports.len(), lost.len(), "an answer for each shard, ready or not");
        to.map_epoch() >= none.epoch() && reports.iter().all(|r| r.applied.is_some())
    });
    let reports = to.report(lost, true);
    let cut = |s: Shard| -> Positions { reports.iter().find(|r| r.shard == s).unwrap().applied.clone().unwrap() };
    let owned = next(&none, lost, |s, h, e| h.finish_take_over(to.zone, &cut(s), e));
    to.node().on_map(&owned);
    cluster.wait("the survivor has the map", || to.map_epoch() >= owned.epoch());
    owned
}

#[test]
fn what_is_acknowledged_is_read_back_at_once_and_reaches_the_other_zone() {
    let (cluster, _) = Cluster::start("reach");
    for i in 0..60u16 {
        let (shard, site) = if i % 2 == 0 { (i / 2 % 4, &cluster.a) } else { (4 + i / 2 % 4, &cluster.b) };
        let key = format!("k{}", i % 20);
        site.put(Shard(shard), ONE, &format!("{shard}-{key}"), &i.to_string()).unwrap();
        assert_eq!(site.get(Shard(shard), &format!("{shard}-{key}")), Some(i.to_string()), "a read after a write");
    }
    assert_eq!(cluster.a.put(Shard(5), ONE, "k", "v"), Err(Refused::NotOwner { map_epoch: ONE, owner: Some(B) }));
    assert_eq!(cluster.a.put(Shard(1), MapEpoch(2), "k", "v"), Err(Refused::Behind { map_epoch: ONE }));
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_zone_that_restarts_goes_on_from_what_its_mirror_holds_and_doubles_nothing() {
    let (cluster, map) = Cluster::start("restart");
    let burst = |from: u32, to: u32| {
        for half in [0, 1] {
            let asks: Vec<_> = (from..to)
                .filter(|i| i % 2 == half)
                .map(|i| put(Shard((i % 4) as u16), ONE, &format!("k{i}"), vec![b'x'; 300]))
                .collect();
            let answers = cluster.a.ask_all(&asks);
            assert!(answers.iter().all(|a| matches!(a, Answer::Written { .. })), "{:?}", answers[0]);
        }
    };
    burst(0, 500);
    for round in 1..=3 {
        cluster.b.stop();
        burst(round * 500, round * 500 + 500);
        cluster.b.start(&map);
        burst(round * 500 + 100, round * 500 + 300);
        cluster.wait("b takes writes again: its links say that nobody has a newer map", || !cluster.b.is_read_only());
    }
    assert_eq!(cluster.b.put(Shard(4), ONE, "k", "after"), Ok(()));
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_planned_move_with_writes_going_on_loses_nothing_and_lists_nothing() {
    let (cluster, map) = Cluster::start("move");
    let (stop, moved) = (AtomicBool::new(false), shards(&[0, 1, 2]));
    let (acked, owned) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut acked, mut site, mut refused) = (vec![], &cluster.a, 0);
            for i in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (shard, key) = (Shard(i % 3), format!("w{i}"));
                match site.put(shard, ONE, &key, &key) {
                    Ok(()) => acked.push((shard, key)),
                    Err(Refused::NotOwner { .. }) => {
                        refused += 1;
                        site = if site.zone == A { &cluster.b } else { &cluster.a };
                    }
                    Err(why) => panic!("refused: {why:?}"),
                }
            }
            assert!(refused > 0, "nothing was refused: the move did not show");
            acked
        });
        let there = move_shards(&cluster, &map, &moved, &cluster.b);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let back = move_shards(&cluster, &there, &moved, &cluster.a);
        std::thread::sleep(std::time::Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), back)
    });
    assert_eq!(cluster.compare(), 0, "a planned move leaves an empty ledger");
    assert!(acked.len() > 10, "{} writes", acked.len());
    for (shard, key) in &acked {
        for site in cluster.sites() {
            assert_eq!(site.get(*shard, key).as_deref(), Some(key.as_str()), "{key} in zone {}", site.zone);
        }
    }
    assert_eq!(cluster.a.put(Shard(0), owned.epoch(), "w0", "again"), Ok(()));
}

#[test]
fn a_fence_bars_writes_at_once_and_waits_for_room_behind_a_burst() {
    let (cluster, map) = Cluster::start("fence");
    let moving = next(&map, &shards(&[0, 2]), |_, h, e| h.begin_move(B, e));
    let burst: Vec<_> = (0..30).map(|i| put(Shard(2), ONE, &format!("k{i}"), vec![b'x'; 1_000_000])).collect();
    let answers = std::thread::scope(|scope| {
        let writer = scope.spawn(|| cluster.a.ask_all(&burst));
        std::thread::sleep(std::time::Duration::from_millis(10));
        cluster.on_map(&moving);
        writer.join().unwrap()
    });
    let legal = |a: &Answer| match a {
        Answer::Written { .. } => true,
        Answer::Refused(why) => matches!(why, Refused::Busy | Refused::NotOwner { owner: Some(B), .. }),
        Answer::Row { .. } | Answer::Absent | Answer::Committed(_) | Answer::Changes(_) | Answer::Standing(_) => false,
    };
    assert!(answers.iter().all(legal), "{answers:?}");
    cluster.wait("a has the map", || cluster.a.map_epoch() == moving.epoch());
    let refused = Err(Refused::NotOwner { map_epoch: moving.epoch(), owner: Some(B) });
    assert_eq!(cluster.a.put(Shard(0), ONE, "late", "late"), refused);
    let ready = || cluster.b.report(&shards(&[0, 2]), false).iter().all(|r| r.applied.is_some());
    cluster.wait("the FENCE has arrived", ready);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_lost_zone_returns_fences_and_has_its_tail_listed_alike_everywhere() {
    let (cluster, map) = Cluster::start("lost");
    let lost = shards(&[0, 1, 2, 3]);
    cluster.a.put(Shard(1), ONE, "old", "before").unwrap();
    cluster.a.put(Shard(0), ONE, "both", "before").unwrap();
    cluster.compare();
    // What A writes while B is away never reaches it.
    cluster.b.stop();
    for i in 0..20 {
        cluster.a.put(Shard(i % 4), ONE, &format!("tail{i}"), "tail").unwrap();
    }
    cluster.a.put(Shard(0), ONE, "both", "tail").unwrap();
    cluster.a.stop();
    cluster.b.start(&map);
    cluster.b.node().on_gzs(ONE);
    cluster.wait("b takes writes", || !cluster.b.is_read_only());
    let owned = take_over(&cluster, &map, &lost, &cluster.b);
    assert_eq!(cluster.b.put(Shard(1), owned.epoch(), "old", "after"), Err(Refused::Locked));
    assert_eq!(cluster.b.put(Shard(0), owned.epoch(), "new", "after"), Ok(()));
    // It comes back with its old map, and hears of the new one by the link alone.
    cluster.a.start(&map);
    cluster.wait("a has the map", || cluster.a.map_epoch() == owned.epoch());
    let refused = Err(Refused::NotOwner { map_epoch: owned.epoch(), owner: Some(B) });
    assert_eq!(cluster.a.put(Shard(1), ONE, "old", "stale"), refused);
    cluster.wait("the lock opens", || cluster.b.put(Shard(1), owned.epoch(), "old", "after") == Ok(()));
    assert_eq!(cluster.compare(), 21, "each write beyond the cut is listed, once");
    for site in cluster.sites() {
        assert_eq!(site.get(Shard(1), "old").as_deref(), Some("after"));
        assert_eq!(site.get(Shard(3), "tail3").as_deref(), Some("tail"), "a tail record without a rival is visible");
        assert_eq!(site.get(Shard(0), "both").as_deref(), Some("tail"));
    }
    // And it may have its shards again.
    let back = move_shards(&cluster, &owned, &lost, &cluster.a);
    assert_eq!(cluster.a.put(Shard(1), back.epoch(), "old", "home"), Ok(()));
    assert_eq!(cluster.compare(), 21);
}

#[test]
fn a_map_that_only_the_gzs_named_ends_read_only_once_it_is_stored() {
    let (cluster, map) = Cluster::start("gzs");
    let newer = next(&map, &shards(&[4]), |_, h, e| h.unlock(e));
    cluster.b.stop();
    cluster.a.stop();
    cluster.a.start(&map);
    // The map and the answer come together, and the answer is judged while the map is still on its way to the disk.
    cluster.a.node().on_map(&newer);
    cluster.a.node().on_gzs(newer.epoch());
    cluster.wait("a takes writes", || !cluster.a.is_read_only());
    cluster.b.start(&newer);
    cluster.compare();
}

#[test]
fn a_map_travels_over_a_link_and_an_older_one_is_refused_at_start() {
    let (cluster, map) = Cluster::start("travel");
    let newer = next(&map, &shards(&[0]), |_, h, e| h.unlock(e));
    cluster.a.node().on_map(&newer);
    cluster.wait("b has it from a", || cluster.b.map_epoch() == newer.epoch());
    cluster.b.stop();
    let why = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.b.start(&map))).unwrap_err();
    let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(why.contains("Map"), "{why}");
    cluster.b.start(&newer);
    cluster.compare();
}

/// splitmix64
fn dice(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % n
}

/// `SEED=n` replays one.
#[test]
fn whatever_the_order_of_writes_moves_and_restarts_both_copies_agree() {
    let seeds = std::env::var("SEED").map_or(vec![1, 2, 3], |s| vec![s.parse().unwrap()]);
    for seed in seeds {
        println!("SEED={seed}");
        let (mut state, (cluster, mut map)) = (seed, Cluster::start("random"));
        let mut newest = std::collections::BTreeMap::new();
        for step in 0..25 {
            let shard = Shard(dice(&mut state, 8) as u16);
            let site = if map.owner(shard) == Some(A) { &cluster.a } else { &cluster.b };
            match dice(&mut state, 8) {
                0 => {
                    let to = if site.zone == A { &cluster.b } else { &cluster.a };
                    map = move_shards(&cluster, &map, &[shard], to);
                    cluster.wait("both have the map", || cluster.sites().iter().all(|s| s.map_epoch() == map.epoch()));
                }
                1 => {
                    site.stop();
                    site.start(&map);
                    cluster.wait("it takes writes", || !site.is_read_only());
                }
                _ => {
                    for key in 0..20 {
                        let (key, value) = (format!("{shard}-{}", key % 7), format!("{step}-{key}"));
                        site.put(shard, map.epoch(), &key, &value).unwrap();
                        newest.insert((shard, key), value);
                    }
                }
            }
        }
        assert_eq!(cluster.compare(), 0);
        for ((shard, key), value) in &newest {
            assert_eq!(cluster.a.get(*shard, key).as_ref(), Some(value), "{key}");
        }
    }
}
