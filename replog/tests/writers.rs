//! Two processes that write one log: the first has lost its lock, or the file system has none.
//!
//! The lock is what forbids it. Where it fails, this is guaranteed, and no more: what the next open reads without complaint is one
//! chain of records that were given out, the terms in it never fall, and a writer whose acknowledged records are not in it is
//! exposed by its durable seq and the chain there, which is what its peers compare: they are beyond the log's end, or of another
//! chain.

#[allow(dead_code, reason = "each test uses a part of it")]
mod disk;

use disk::world::{Faults, Mark, World, Writer, batches, mark};
use replog::open::{Depth, Floor, examine};
use std::collections::BTreeMap;

/// What came of it.
#[derive(Default, Debug)]
struct Seen {
    corrupt: u64,
    /// A writer's records are not there, and the directory alone does not tell.
    told_by_peers: u64,
    whole: u64,
}

/// `true`: all that it acknowledged is there, as it was.
fn is_kept(w: &Writer, read: &BTreeMap<u64, Mark>) -> bool {
    w.acked.iter().all(|(seq, mark)| read.get(seq) == Some(mark))
}

fn work(world: &mut World, writers: &mut [Writer], steps: u64) {
    for _ in 0..steps {
        let at = world.rng.below(writers.len() as u64) as usize;
        if world.rng.one_in(3) {
            let records = (0..1 + world.rng.below(4)).map(|_| world.record()).collect();
            world.append(&mut writers[at], records);
        }
        world.step(&mut writers[at]);
    }
}

fn simulate(seed: u64, seen: &mut Seen) {
    let mut world = World::new(seed, Faults::default());
    (world.config.mirror, world.retains) = (false, None);
    let mut writers = vec![world.open().expect("an empty directory")];
    let alone = 20 + world.rng.below(100);
    work(&mut world, &mut writers, alone);
    let second = examine(&mut world.disk, Floor::default(), Depth::Whole).unwrap();
    if !second.verdict.is_sound() {
        return; // it was looked at in the middle of the first one's work, and refused
    }
    writers.push(world.open_beside(&writers[0]));
    let together = 50 + world.rng.below(300);
    work(&mut world, &mut writers, together);
    world.disk.kill(&mut world.rng);
    if world.rng.one_in(2) {
        world.disk.cut_power(&mut world.rng);
    }

    let third = examine(&mut world.disk, Floor::default(), Depth::Whole).unwrap();
    if !third.verdict.is_sound() {
        seen.corrupt += 1;
        return;
    }
    let batches = batches(&mut world.disk, &third).unwrap();
    assert!(batches.is_sorted_by_key(|b| b.term), "terms fall");
    let read: BTreeMap<u64, Mark> =
        batches.iter().flat_map(|b| b.iter().map(Result::unwrap)).map(|(seq, r)| (seq, mark(&r))).collect();
    for (seq, mark) in &read {
        let given = writers.iter().any(|w| w.given.get(seq).is_some_and(|g| g.contains(mark)));
        let marker = *mark >> 32 == 4;
        assert!(given || marker, "seq {seq} is nobody's record");
    }
    let mut whole = true;
    for w in &writers {
        let durable = w.log.durable_seq();
        let same = batches.iter().any(|b| b.last_seq() == durable && b.chain == w.log.durable_chain());
        assert_eq!(same || durable == 0, is_kept(w, &read), "chain and records disagree");
        whole &= same || durable == 0;
    }
    if whole {
        seen.whole += 1;
    } else {
        seen.told_by_peers += 1;
    }
}

#[test]
fn a_second_writer_is_exposed_by_the_directory_or_by_the_chain_that_its_peers_have() {
    let only: Option<u64> = std::env::var("SEED").ok().map(|s| s.parse().expect("SEED is a number"));
    let mut seen = Seen::default();
    for seed in only.map_or(0..1000, |s| s..s + 1) {
        let run = std::panic::AssertUnwindSafe(|| simulate(seed, &mut seen));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{seen:?}");
    assert!(only.is_some() || seen.corrupt > 20 && seen.told_by_peers > 20, "the writers hardly met: {seen:?}");
}
