//! Seeded simulation of a log on a disk as bad as real ones. `SEED=n` replays one seed, `SEEDS=n` runs so many of each test.

#[allow(dead_code, reason = "each test uses a part of it")]
mod disk;

use disk::Disk;
use disk::rng::Rng;
use disk::world::{Faults, MS, Seen, UUID, World};
use replog::batch::{Batch, Origin};
use replog::log::Order;
use replog::open::{Depth, Floor, Verdict, examine};
use replog::segment::Checkpoint;
use replog::{Hlc, Record};
use shardmap::Zone;
use std::cell::Cell;
use std::panic::AssertUnwindSafe;

fn simulate(seed: u64, faults: Faults) -> Seen {
    let mut world = World::new(seed, faults);
    for _ in 0..3 {
        if !world.live() {
            return world.seen; // corrupt, as it must be: an operator's work begins
        }
    }
    world.open();
    world.seen
}

/// Runs `work` for each of `count` seeds, or `SEEDS` of them, or for the one in `SEED`; a failure names its seed. Tells whether
/// enough were run to count what was reached.
fn seeds(count: u64, work: impl Fn(u64)) -> bool {
    let number = |name| std::env::var(name).ok().map(|s: String| s.parse().expect("a number"));
    let (only, many): (Option<u64>, Option<u64>) = (number("SEED"), number("SEEDS"));
    let count = many.unwrap_or(count);
    for seed in only.map_or(0..count, |s| s..s + 1) {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| work(seed))) {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    only.is_none() && count >= 500
}

/// The same, adding up what was seen.
fn simulated(count: u64, faults: Faults) -> Option<Seen> {
    let sum = Cell::new(Seen::default());
    let all = seeds(count, |seed| sum.set(sum.get() + simulate(seed, faults)));
    all.then_some(sum.get())
}

#[test]
fn no_acknowledged_record_is_lost_by_a_crash_at_any_step() {
    if let Some(seen) = simulated(4000, Faults::default()) {
        assert!(seen.crashes > 500 && seen.torn > 50, "the simulation hardly crashed: {seen:?}");
        assert!(seen.flushes > 500 && seen.through > 500, "one way of flushing was hardly tried: {seen:?}");
    }
}

#[test]
fn nor_by_failing_writes_flushes_and_full_disks() {
    if let Some(seen) = simulated(4000, Faults { io: true, full: true, ..Faults::default() }) {
        assert!(seen.failures > 100 && seen.refused > 100 && seen.torn > 50, "faults were not reached: {seen:?}");
    }
}

#[test]
fn what_a_lying_disk_lost_is_noticed_by_whoever_knew_of_it_and_never_replaced() {
    if let Some(seen) = simulated(2000, Faults { full: true, lies: true, ..Faults::default() }) {
        assert!(seen.noticed > 50 && seen.unnoticed > 5, "the lies were harmless: {seen:?}");
    }
}

#[test]
fn a_bit_that_changes_at_rest_is_noticed_by_whoever_knew_and_never_read_as_a_record() {
    if let Some(seen) = simulated(1000, Faults { rots: true, ..Faults::default() }) {
        assert!(seen.noticed > 50, "no changed bit was noticed: {seen:?}");
    }
}

/// A log after a clean stop, and the file, position and length of each of its batches.
fn stopped(seed: u64) -> (Disk, Vec<(String, u64, u64)>) {
    let mut world = World::new(seed, Faults::default());
    (world.config.mirror, world.retains) = (false, None);
    let mut w = world.open().expect("an empty directory");
    let mut places = Vec::new();
    for step in 0..400 {
        world.now += MS;
        if step < 60 {
            let records = vec![world.record()];
            world.append(&mut w, records);
        } else {
            w.log.close();
        }
        world.carry_out(&mut w, |disk, file, order| {
            if let Order::Write { pos, bytes, .. } = order {
                places.push((disk.name_of(file), *pos, bytes.disk_len() as u64));
            }
        });
    }
    assert!(w.log.is_closed() && places.len() > 50);
    (world.disk, places)
}

fn forget_checkpoints(disk: &mut Disk) {
    Checkpoint::NAMES.iter().for_each(|n| disk.remove(n));
}

fn judge(disk: &mut Disk, floor: Floor) -> Verdict {
    examine(disk, floor, Depth::Whole).unwrap().verdict
}

#[test]
fn a_flipped_bit_anywhere_in_what_was_acknowledged_is_corrupt_and_never_cut_off() {
    seeds(100, |seed| {
        let (mut disk, places) = stopped(seed);
        let mut rng = Rng::new(seed);
        let (file, pos, len) = &places[rng.below(places.len() as u64) as usize];
        disk.flip(file, pos * 8 + rng.below(len * 8));
        let verdict = judge(&mut disk, Floor::default());
        assert!(matches!(&verdict, Verdict::Corrupt(c) if c.file == *file && c.pos == *pos), "{verdict:?}");
    });
}

#[test]
fn a_missing_file_is_a_gap_and_not_a_shorter_log() {
    let (disk, _) = stopped(1);
    let names: Vec<String> = disk.segments();
    assert!(names.len() > 2);
    for name in &names {
        let mut without = disk.clone();
        without.remove(name);
        let verdict = judge(&mut without, Floor::default());
        assert!(matches!(verdict, Verdict::Gap(_)), "without {name}: {verdict:?}");
    }
    let mut none = disk.clone();
    names.iter().for_each(|n| none.remove(n));
    assert!(matches!(judge(&mut none, Floor::default()), Verdict::Gap(_)));
}

#[test]
fn the_tail_is_torn_only_if_nobody_knows_it_was_durable() {
    let (mut disk, places) = stopped(2);
    let (file, pos, len) = places.last().unwrap();
    forget_checkpoints(&mut disk);
    let whole = examine(&mut disk, Floor::default(), Depth::Whole).unwrap();
    assert_eq!(whole.verdict, Verdict::Clean);
    let floors = [Floor { applied: whole.last_seq, peers: 0 }, Floor { applied: 0, peers: whole.last_seq }];
    for at in [0, 4, 9, 16, 20, 130, 150] {
        let mut torn = disk.clone();
        torn.flip(file, (pos + at) * 8);
        let verdict = judge(&mut torn, Floor::default());
        let Verdict::Torn(t) = verdict else { panic!("byte {at}: {verdict:?}") };
        assert_eq!((&t.file, t.pos, t.seq), (file, *pos, whole.last_seq));
        for floor in floors {
            let verdict = judge(&mut torn, floor);
            assert!(matches!(verdict, Verdict::Corrupt(_)), "byte {at}: {verdict:?}");
        }
    }
    // Zeros in its place, as if it had never been written.
    disk.zero(file, *pos, *len);
    assert_eq!(judge(&mut disk, Floor::default()), Verdict::Clean);
    assert!(matches!(judge(&mut disk, floors[0]), Verdict::Corrupt(_)));
}

#[test]
fn a_block_of_an_earlier_use_of_the_file_is_the_end_of_the_log() {
    let (mut disk, places) = stopped(3);
    let (file, pos, len) = places.last().unwrap();
    forget_checkpoints(&mut disk);
    let origin = Origin { stream: 2, zone: Zone(1), term: 1, log_uuid_lo: UUID as u64 };
    let stale = Batch::build(&origin, 7, 0xbad, 0, &[Record::marker(Hlc(1))]);
    disk.zero(file, *pos, *len);
    disk.put(file, *pos, &stale.place(99, *pos, u64::MAX));
    let verdict = judge(&mut disk, Floor::default());
    assert!(matches!(&verdict, Verdict::Stale(s) if s.pos == *pos), "{verdict:?}");
}

#[test]
fn random_bytes_in_every_file_are_judged_and_never_panic() {
    seeds(80, |seed| {
        let (mut disk, _) = stopped(seed);
        let mut rng = Rng::new(seed);
        for name in disk.segments() {
            for _ in 0..rng.below(30) {
                let at = rng.below(disk.len(&name));
                disk.put(&name, at, &rng.next().to_le_bytes()[..rng.below(8) as usize]);
            }
        }
        examine(&mut disk, Floor::default(), Depth::Whole).unwrap();
    });
}
