//! A zone that fell into a gap and is seeded anew: from the command to copies that are equal, and whatever may come between.

use crate::ONE;
use crate::cluster::{A, B, Cluster, Site, next, put};
use crate::proxy::Tamper;
use futures_lite::future::block_on;
use replog::Op;
use replog::open::{Depth, Floor, Verdict, examine};
use replog::port::Answer;
use replog::retain::Policy;
use replog::seed::{Plan, read_gap};
use replog::uring::dir::Dir;
use replog::uring::node::StreamFigures;
use replog::uring::{SeedFigures, Way};
use shardmap::map::Map;
use shardmap::{Positions, Shard, Zone};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Small segments.
fn start(name: &str) -> (Cluster, Arc<Map>) {
    Cluster::start_with(name, 64 << 10)
}

/// Starts a site again, on a volume that is as full as can be, or as empty.
fn again_on(site: &Site, map: &Arc<Map>, full: bool) {
    *site.retain.lock().unwrap() = Policy { keep_bytes: 0, peers_until: if full { 0.0 } else { 1.0 }, worth: 0.0 };
    again(site, map);
}

/// Starts a site again, and waits until it takes writes.
fn again(site: &Site, map: &Arc<Map>) {
    site.stop();
    site.start(map);
    site.node().on_gzs(map.epoch());
    for _ in 0..4000 {
        if !site.is_read_only() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("zone {} does not take writes", site.zone);
}

fn stream(site: &Site, number: u32) -> StreamFigures {
    site.figures().into_iter().flat_map(|c| c.streams).find(|s| s.stream == number).unwrap()
}

fn taken(site: &Site, from: Zone) -> SeedFigures {
    stream(site, 0).seeds.get(&(Way::Taken, from)).cloned().unwrap_or_default()
}

fn seed(site: &Site, from: Zone) -> Result<String, String> {
    block_on(site.node().seed(from, 0))
}

/// Writes `count` rows of shard 0, which is A's and in stream 0, `from` the number in the first key.
fn write(site: &Site, from: u32, count: u32) {
    for at in (from..from + count).step_by(200) {
        let asks: Vec<_> = (at..(at + 200).min(from + count))
            .map(|i| put(Shard(2 * (i % 2) as u16), ONE, &format!("k{i}"), format!("{i:0>400}").into_bytes()))
            .collect();
        let answers = site.ask_all(&asks);
        assert!(answers.iter().all(|a| matches!(a, Answer::Written { .. })), "{:?}", answers[0]);
    }
}

/// B is away while A's volume is full, and A lets go what B lacks; then both have room, and B is there again. Returns what B had.
fn fall_into_a_gap(cluster: &Cluster, map: &Arc<Map>) -> u64 {
    write(&cluster.a, 0, 400);
    cluster.compare();
    let had = stream(&cluster.b, 0).mirrored.get(A).unwrap();
    cluster.b.stop();
    again_on(&cluster.a, map, true);
    write(&cluster.a, 400, 2000);
    cluster.wait("a lets go what b lacks", || stream(&cluster.a, 0).logs[&A].first_kept > had + 100);
    again_on(&cluster.a, map, false);
    again(&cluster.b, map);
    cluster.wait("b sees the gap", || stream(&cluster.b, 0).incoming.get(&A).is_some_and(|w| w.contains("gap")));
    cluster.wait("a sees it", || stream(&cluster.a, 0).links.values().any(|l| l.state.contains("gap")));
    had
}

/// What b's own log says of gaps.
fn recorded(dir: &Path) -> Vec<(Zone, u64, u64)> {
    let found = examine(&mut Dir::new(dir), Floor::default(), Depth::Whole).unwrap();
    let mut all = vec![];
    for segment in &found.segments {
        let mut walk = replog::open::Walk::new(&segment.name, segment.header.salt, segment.end);
        let mut pos = replog::segment::FIRST_POS;
        while pos < segment.end {
            let batch = walk.at(&mut Dir::new(dir), pos).unwrap().unwrap().0;
            pos += batch.disk_len() as u64;
            let records = batch.iter().map(|r| r.unwrap().1).filter(|r| r.op == Op::Gap);
            all.extend(records.map(|r| read_gap(&r.value).unwrap()).map(|(zone, _, from, to)| (zone, from, to)));
        }
    }
    all
}

fn is_clean(dir: &Path) {
    let found = examine(&mut Dir::new(dir), Floor::default(), Depth::Whole).unwrap();
    assert!(matches!(found.verdict, Verdict::Clean | Verdict::Stale(_)), "{}: {:?}", dir.display(), found.verdict);
}

fn wait_seeded(cluster: &Cluster) {
    cluster.wait("it is seeded", || {
        let figures = taken(&cluster.b, A);
        assert_eq!(figures.failed, 0, "{}", figures.state);
        figures.done == 1 && !figures.is_running
    });
}

#[test]
fn a_zone_in_a_gap_is_seeded_while_writes_go_on_and_follows_and_both_copies_are_equal() {
    let (cluster, map) = start("seed");
    let had = fall_into_a_gap(&cluster, &map);
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut at = 10_000;
            while !stop.load(Ordering::Relaxed) {
                write(&cluster.a, at, 20);
                at += 20;
            }
            at - 10_000
        });
        let begun = seed(&cluster.b, A);
        let seeded = || {
            assert!(begun.as_ref().is_ok_and(|text| text.contains("seeding begins")), "{begun:?}");
            wait_seeded(&cluster);
            cluster.wait("the link is live again", || stream(&cluster.a, 0).links.values().all(|l| l.state == "live"));
        };
        let outcome = catch_unwind(AssertUnwindSafe(seeded));
        stop.store(true, Ordering::Relaxed); // else the writer, and with it the test, would never end
        outcome.unwrap_or_else(|why| resume_unwind(why));
        writer.join().unwrap()
    });
    assert!(written > 0);
    assert_eq!(cluster.compare(), 0);
    assert_eq!(cluster.b.get(Shard(0), "k2398"), Some(format!("{:0>400}", 2398)), "from the gap");
    let (b, a) = (stream(&cluster.b, 0), stream(&cluster.a, 0));
    assert_eq!((b.incoming.len(), a.seeds[&(Way::Lent, cluster.b.zone)].done), (0, 1));
    let seeded = taken(&cluster.b, A);
    assert!(seeded.rows >= 2400 && seeded.bytes > 2400 * 400, "{seeded:?}");
    // Both start anew, find what they left, and go on; the segments of before the gap are there for people.
    for site in cluster.sites() {
        site.stop();
    }
    let to = b.logs[&A].first_kept - 1;
    let mirror = cluster.b.mirror_dir("a", 0);
    is_clean(&mirror);
    is_clean(&cluster.b.log_dir(0));
    let gaps = recorded(&cluster.b.log_dir(0));
    // An idle marker may have come behind what b was seen to have.
    let begins = had + 1..=had + 2;
    assert!(matches!(gaps[..], [(A, from, last)] if begins.contains(&from) && last <= to && last > from), "{gaps:?}");
    is_clean(&mirror.with_file_name("quarantine").join(format!("a-0.before-{}-1", gaps[0].2 + 1)));
    for site in cluster.sites() {
        site.start(&map);
        site.node().on_gzs(map.epoch());
    }
    cluster.wait("a takes writes", || !cluster.a.is_read_only());
    write(&cluster.a, 30_000, 1000);
    assert_eq!(cluster.compare(), 0);
    let before = stream(&cluster.b, 0).logs[&A].first_kept;
    cluster.wait("retention goes on in the seeded mirror", || {
        write(&cluster.a, 40_000, 200);
        stream(&cluster.b, 0).logs[&A].first_kept > before
    });
    let why = seed(&cluster.b, A).unwrap_err();
    assert!(why.contains("there is no gap"), "{why}");
}

/// Of rows and ledger.
type Digest = ([u8; 32], [u8; 32]);

/// The store's copy of both zones' logs, and where they are applied: what must not change.
fn copy(site: &Site) -> (Vec<Digest>, Positions) {
    (site.digests(), stream(site, 0).applied)
}

/// Names in the directory of mirrors that only a seeding makes.
fn left_over(site: &Site) -> Vec<String> {
    let above = site.mirror_dir("a", 0).parent().unwrap().to_owned();
    let names = std::fs::read_dir(above).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(".seed") || n == "quarantine").collect()
}

#[test]
fn a_snapshot_that_is_cut_off_or_garbled_on_its_way_is_refused_and_nothing_is_changed() {
    let (cluster, map) = start("garbled");
    fall_into_a_gap(&cluster, &map);
    let before = copy(&cluster.b);
    let all = [
        Tamper::CutAfter(0),
        Tamper::CutAfter(1),
        Tamper::CutAfter(3),
        Tamper::Garble(0),
        Tamper::Garble(2),
        Tamper::Drop(2),
    ];
    for (at, tamper) in all.into_iter().enumerate() {
        *cluster.a.tampering.lock().unwrap() = tamper.clone();
        let begun = seed(&cluster.b, A);
        cluster.wait("it fails", || taken(&cluster.b, A).failed == at as u64 + 1);
        let state = taken(&cluster.b, A).state;
        assert!(state.contains("seeding failed"), "{tamper:?}: {begun:?} {state}");
        assert_eq!(copy(&cluster.b), before, "{tamper:?}");
        cluster.wait("nothing is left of it", || left_over(&cluster.b).is_empty());
        cluster.wait("the gap is as it was", || stream(&cluster.b, 0).incoming.contains_key(&A));
        cluster.wait("the origin has let it go", || !stream(&cluster.a, 0).seeds[&(Way::Lent, B)].is_running);
    }
    *cluster.a.tampering.lock().unwrap() = Tamper::No;
    seed(&cluster.b, A).unwrap();
    cluster.wait("it is seeded", || taken(&cluster.b, A).done == 1);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn the_origin_keeps_what_follows_a_snapshot_that_takes_its_time_and_a_stop_in_the_midst_leaves_the_gap_as_it_was() {
    let (cluster, map) = start("stall");
    fall_into_a_gap(&cluster, &map);
    let before = copy(&cluster.b);
    let on = Arc::new(AtomicBool::new(false));
    *cluster.a.tampering.lock().unwrap() = Tamper::Stall(2, on.clone());
    seed(&cluster.b, A).unwrap();
    assert!(seed(&cluster.b, A).unwrap_err().contains("under way already"));
    // The peer goes away in the midst of it, and comes back to the same gap.
    cluster.b.stop();
    on.store(true, Ordering::Relaxed);
    cluster.b.start(&map);
    cluster.b.node().on_gzs(map.epoch());
    cluster.wait("b sees the gap again", || stream(&cluster.b, 0).incoming.contains_key(&A));
    assert_eq!((copy(&cluster.b), left_over(&cluster.b)), (before, vec![]));
    cluster.wait("the origin has let it go", || !stream(&cluster.a, 0).seeds[&(Way::Lent, B)].is_running);
    // Once more, and slowly: the volume is as full as can be, and a good many segments are written meanwhile.
    again_on(&cluster.a, &map, true);
    for most in [500_000, 300_000, 150_000] {
        cluster.wait("the log is as short as can be", || stream(&cluster.a, 0).logs[&A].kept_bytes <= most);
    }
    let on = Arc::new(AtomicBool::new(false));
    *cluster.a.tampering.lock().unwrap() = Tamper::Stall(2, on.clone());
    let text = seed(&cluster.b, A).unwrap();
    let last: u64 = text.split(' ').next_back().unwrap().parse().unwrap();
    let durable = stream(&cluster.a, 0).durable_seq;
    write(&cluster.a, 5000, 3000);
    std::thread::sleep(std::time::Duration::from_millis(4500)); // each second one segment goes, if it may
    let kept = stream(&cluster.a, 0).logs[&A].first_kept;
    assert!(kept <= last + 1 && last <= durable, "kept from {kept} on, the snapshot ends with {last}");
    on.store(true, Ordering::Relaxed);
    wait_seeded(&cluster);
    assert_eq!(cluster.compare(), 0);
    cluster.wait("what it held goes behind the peer", || stream(&cluster.a, 0).logs[&A].first_kept > last + 1);
}

#[test]
fn whatever_a_crash_leaves_of_a_seeding_the_next_start_ends_it() {
    let (cluster, map) = start("crash");
    fall_into_a_gap(&cluster, &map);
    // The snapshot ends behind all that the origin's link has ever spoken of.
    write(&cluster.a, 3000, 200);
    seed(&cluster.b, A).unwrap();
    wait_seeded(&cluster);
    cluster.compare();
    cluster.b.stop();
    let (_, from, seq) = recorded(&cluster.b.log_dir(0))[0];
    let mirror = cluster.b.mirror_dir("a", 0);
    let prepared = mirror.with_file_name(".seed-a-0");
    let found = examine(&mut Dir::new(&mirror), Floor::default(), Depth::Whole).unwrap();
    let log_uuid = found.segments[0].header.log_uuid;
    let plan = |seq| Plan { zone: A, stream: 0, log_uuid, from, seq, chain: 0, term: 1 }.encode();
    let again = || {
        cluster.b.start(&map);
        cluster.b.node().on_gzs(map.epoch());
        cluster.compare();
        cluster.b.stop();
        assert!(!prepared.exists() && !mirror.join(Plan::NAME).exists());
        is_clean(&mirror);
        recorded(&cluster.b.log_dir(0)).len()
    };
    // Half prepared, and a snapshot that was not whole.
    std::fs::create_dir(&prepared).unwrap();
    std::fs::write(prepared.join("00000000000000009999.rlog"), "half").unwrap();
    std::fs::write(mirror.with_file_name(".seed-a-0.parts"), "half").unwrap();
    assert_eq!(again(), 1);
    assert!(!mirror.with_file_name(".seed-a-0.parts").exists());
    // Prepared, not committed: the store has not applied so much.
    std::fs::create_dir(&prepared).unwrap();
    std::fs::write(prepared.join(Plan::NAME), plan(seq + 1_000_000)).unwrap();
    assert_eq!(again(), 1);
    // Committed; the old mirror is still in its place.
    let copied = std::process::Command::new("cp").arg("-r").args([&mirror, &prepared]).status().unwrap();
    assert!(copied.success());
    std::fs::write(prepared.join(Plan::NAME), plan(seq)).unwrap();
    assert_eq!(again(), 2);
    // The old one is out of the way.
    std::fs::rename(&mirror, &prepared).unwrap();
    std::fs::write(prepared.join(Plan::NAME), plan(seq)).unwrap();
    assert_eq!(again(), 3);
    // The new one is in its place, and nothing is recorded.
    std::fs::write(mirror.join(Plan::NAME), plan(seq)).unwrap();
    assert_eq!(again(), 4);
    assert_eq!(recorded(&cluster.b.log_dir(0)), [(A, from, seq); 4]);
    cluster.b.start(&map);
    cluster.b.node().on_gzs(map.epoch());
    write(&cluster.a, 60_000, 100);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_seeding_that_must_not_be_is_refused_with_the_reason() {
    let (cluster, map) = start("not");
    fall_into_a_gap(&cluster, &map);
    let why = |stream, zone| block_on(cluster.b.node().seed(zone, stream)).unwrap_err();
    assert!(why(9, A).contains("streams 0 to 1"));
    assert!(why(0, Zone(7)).contains("not among this node's [zones]"));
    assert!(why(0, B).contains("not among this node's [zones]"), "of itself");
    assert!(why(1, A).contains("there is no gap"));
    let moving = next(&map, &[Shard(5)], |_, h, e| h.begin_move(A, e));
    cluster.b.node().on_map(&moving);
    cluster.wait("b has the map", || cluster.b.map_epoch() == moving.epoch());
    assert!(why(0, A).contains("shard 5 is on its way"));
    let settled = next(&moving, &[Shard(5)], |_, h, e| h.abort(e));
    cluster.on_map(&settled);
    cluster.wait("both have the map", || cluster.sites().iter().all(|s| s.map_epoch() == settled.epoch()));
    cluster.a.stop();
    assert!(why(0, A).starts_with("zone 0"), "it is not there");
    assert_eq!(taken(&cluster.b, A).done, 0);
    cluster.a.start(&settled);
    cluster.a.node().on_gzs(settled.epoch());
    seed(&cluster.b, A).unwrap();
    cluster.wait("it is seeded", || taken(&cluster.b, A).done == 1);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_cut_that_a_seeded_mirror_cannot_be_looked_through_for_is_shown_and_seeding_again_ends_it() {
    let (cluster, map) = start("unseen");
    fall_into_a_gap(&cluster, &map);
    // From here on the origin keeps what it has.
    *cluster.a.retain.lock().unwrap() = Policy { keep_bytes: 1 << 40, peers_until: 1.0, worth: 0.0 };
    again(&cluster.a, &map);
    let kept = stream(&cluster.a, 0).logs[&A].first_kept;
    seed(&cluster.b, A).unwrap();
    wait_seeded(&cluster);
    cluster.compare();
    let (lost, cut) = ([Shard(0), Shard(2)], kept + 5);
    let none = next(&map, &lost, |_, h, e| h.declare_lost(A, e).map(|entry| entry.unwrap()));
    cluster.on_map(&none);
    let positions = [(A, cut)].into_iter().collect();
    let owned = next(&none, &lost, |_, h, e| h.finish_take_over(B, &positions, e));
    cluster.on_map(&owned);
    cluster.wait("both have the map", || cluster.sites().iter().all(|s| s.map_epoch() == owned.epoch()));
    let unseen = || stream(&cluster.b, 0).incoming.get(&A).cloned().unwrap_or_default();
    cluster.wait("it is shown", || unseen().contains(&format!("unseen: seq {} to", cut + 1)));
    let ledger = |s: &Site| s.figures().iter().map(|c| c.kept.ledger).sum::<u64>();
    cluster.wait("the origin has listed its tail", || ledger(&cluster.a) > 500);
    assert!(ledger(&cluster.b) < 500, "{} entries", ledger(&cluster.b));
    cluster.b.stop();
    cluster.b.start(&owned);
    cluster.b.node().on_gzs(owned.epoch());
    assert!(unseen().contains("unseen"), "a start does not forget it");
    seed(&cluster.b, A).unwrap();
    wait_seeded(&cluster);
    assert!(cluster.compare() > 500);
    assert_eq!(stream(&cluster.b, 0).incoming.len(), 0);
}

/// An origin at rest whose volume was full: it has let go all but an empty segment, and could lend nothing until somebody wrote.
#[test]
fn an_origin_that_keeps_no_record_seeds_all_the_same() {
    let (cluster, map) = start("seed-bare");
    fall_into_a_gap(&cluster, &map);
    again_on(&cluster.a, &map, true);
    cluster.wait("a keeps no record", || {
        let of_a = stream(&cluster.a, 0);
        of_a.logs[&A].first_kept == of_a.durable_seq + 1
    });
    cluster.wait("b sees the gap", || stream(&cluster.b, 0).incoming.get(&A).is_some_and(|w| w.contains("gap")));
    seed(&cluster.b, A).unwrap();
    wait_seeded(&cluster);
    write(&cluster.a, 9000, 200);
    cluster.compare();
}
