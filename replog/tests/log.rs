//! Seeded simulation of a log on a disk that loses, tears and reorders what was not flushed. `SEED=n` replays one seed.

mod disk;

use bytes::Bytes;
use disk::{Disk, Rng};
use replog::batch::{Batch, Origin};
use replog::log::{Config, Failed, Log, Opened, Order, Refused};
use replog::open::{Depth, Floor, Verdict, Walk, examine};
use replog::segment::{Checkpoint, FIRST_POS};
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

const MS: u64 = 1_000_000;
const UUID: u128 = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;

/// A log's disk, and what an honest observer knows about it.
struct World {
    rng: Rng,
    disk: Disk,
    config: Config,
    now: u64,
    hlc: u64,
    serial: u64,
    /// The values that a seq was given in this life and the crash before it.
    given: BTreeMap<u64, Vec<Bytes>>,
    /// Acknowledged, or seen by someone: to be read back for ever.
    acked: BTreeMap<u64, Bytes>,
    /// Of acknowledged records, by seq; the store knows those that it has applied.
    fences: BTreeMap<u64, (Shard, OwnerEpoch)>,
    applied: u64,
    faults: bool,
    refused: u64,
    crashes: u64,
    failures: u64,
}

/// An order under way, and the writes that had been seen complete when it was submitted.
struct Pending(Order, Vec<u64>);

impl World {
    fn new(seed: u64, faults: bool) -> World {
        let mut rng = Rng::new(seed);
        let config =
            Config { zone: Zone(1), stream: 2, mirror: rng.below(3) == 0, segment_bytes: 4096 * (3 + rng.below(30)) };
        World {
            rng,
            disk: Disk::default(),
            config,
            now: 1,
            hlc: 1,
            serial: 0,
            given: BTreeMap::new(),
            acked: BTreeMap::new(),
            fences: BTreeMap::new(),
            applied: 0,
            faults,
            refused: 0,
            crashes: 0,
            failures: 0,
        }
    }

    /// Opens, checks all that was promised, works for a while, and crashes or closes.
    fn live(&mut self) {
        let (mut log, opened) = self.open();
        self.check_opened(&opened);
        let mut pending: Vec<Pending> = Vec::new();
        let mut written: Vec<u64> = Vec::new();
        let steps = 20 + self.rng.below(200);
        let clean = self.rng.below(3) == 0;
        for step in 0.. {
            if step == steps && clean {
                log.close();
            }
            if step == steps && !clean || log.is_closed() {
                break;
            }
            assert!(step < 20_000, "the log does not come to rest");
            self.now += self.rng.below(MS / 2);
            if self.rng.below(50) == 0 {
                self.now += 200 * MS;
            }
            if step < steps && self.rng.below(3) == 0 {
                self.append(&mut log);
            }
            while let Some(order) = log.next_order(self.now) {
                match order {
                    Order::Refuse { from_seq } => self.take_back(from_seq),
                    Order::Stop => {}
                    order => pending.push(self.submit(order, &written)),
                }
            }
            if !pending.is_empty() && self.rng.below(2) == 0 {
                let at = self.rng.below(pending.len() as u64) as usize;
                let done = pending.swap_remove(at);
                self.complete(&mut log, done, &mut written);
            }
        }
        if !clean || log.is_stopped() {
            self.crashes += 1;
            self.disk.crash(&mut self.rng);
        }
    }

    fn open(&mut self) -> (Log, Opened) {
        let acked = self.acked.keys().next_back().copied().unwrap_or(0);
        let floor = Floor { applied: self.rng.below(acked + 1), peers: self.rng.below(acked + 1) };
        self.applied = floor.applied;
        self.disk.flush_all();
        let found = examine(&mut self.disk, floor, Depth::Needed).unwrap();
        assert!(found.verdict.is_sound(), "{:?}", found.verdict);
        assert!(found.last_seq >= acked, "ends at {}, {acked} was acknowledged", found.last_seq);
        let salt = self.rng.next();
        Log::recovered(self.config, found, &[], UUID, salt)
    }

    /// Every acknowledged record is there; what else is there was given out and never refused.
    fn check_opened(&mut self, opened: &Opened) {
        assert_eq!(opened.log_uuid, UUID);
        let read = read_all(&mut self.disk);
        assert_eq!(read.len() as u64, opened.durable_seq);
        for (seq, record) in &read {
            match self.acked.get(seq) {
                Some(value) => assert_eq!(&record.value, value, "seq {seq}"),
                None if record.op == Op::Marker => {}
                None => assert!(self.given[seq].contains(&record.value), "seq {seq} was never given this value"),
            }
            self.acked.insert(*seq, record.value.clone());
            self.fence(*seq, record);
        }
        let mut known = opened.fences.clone();
        self.fences.range(..=self.applied).for_each(|(_, fence)| raise(&mut known, *fence));
        let mut all = BTreeMap::new();
        self.fences.values().for_each(|fence| raise(&mut all, *fence));
        assert_eq!(known, all);
        assert!(opened.last_hlc >= read.values().map(|r| r.hlc).max().unwrap_or_default());
        self.given.clear();
    }

    fn append(&mut self, log: &mut Log) {
        let records: Vec<Record> = (0..1 + self.rng.below(4)).map(|_| self.record()).collect();
        let values: Vec<Bytes> = records.iter().map(|r| r.value.clone()).collect();
        let taken = if self.config.mirror {
            let origin = Origin { stream: 2, zone: Zone(1), term: log.term().max(1), log_uuid_lo: UUID as u64 };
            let (next, chain) = (log.next_seq(), log.chain_at_end());
            log.append_batch(Batch::build(&origin, next, chain, self.now, &records)).map(|_| next)
        } else {
            log.append(records, self.now)
        };
        match taken {
            Ok(first) => {
                for (seq, value) in (first..).zip(values) {
                    self.given.entry(seq).or_default().push(value);
                }
            }
            Err(why) => assert!(matches!(why, Refused::Full | Refused::Busy | Refused::Closed), "{why}"),
        }
    }

    fn record(&mut self) -> Record {
        self.serial += 1;
        self.hlc += 1 + self.rng.below(3);
        let len = if self.rng.below(20) == 0 { self.rng.below(40_000) } else { self.rng.below(300) };
        let mut value = self.serial.to_le_bytes().to_vec();
        value.resize(8 + len as usize, self.serial as u8);
        Record {
            op: if self.rng.below(10) == 0 { Op::Fence } else { Op::Put },
            transaction: 0,
            shard: Shard(self.rng.below(4) as u16),
            owner_epoch: OwnerEpoch(self.rng.below(100)),
            hlc: Hlc(self.hlc),
            table: Bytes::from_static(b"orders"),
            key: Bytes::from_static(b"k"),
            value: value.into(),
        }
    }

    fn take_back(&mut self, from_seq: u64) {
        self.refused += 1;
        self.given.retain(|seq, _| *seq < from_seq);
        assert!(self.acked.keys().next_back().is_none_or(|seq| *seq < from_seq), "an acknowledged record was refused");
    }

    fn submit(&mut self, order: Order, written: &[u64]) -> Pending {
        match &order {
            Order::Write { id, pos, bytes } => self.disk.write(*id, *pos, bytes.clone()),
            Order::Seal { pos, bytes } => self.disk.write(u64::MAX, *pos, bytes.clone()),
            _ => {}
        }
        Pending(order, written.to_vec())
    }

    fn complete(&mut self, log: &mut Log, Pending(order, covers): Pending, written: &mut Vec<u64>) {
        let fails = self.faults && self.rng.below(150) == 0;
        let full = self.faults && self.rng.below(5) == 0;
        self.failures += u64::from(fails);
        match order {
            Order::Begin { .. } if full => log.on_segment(Err(Failed::Full), self.now),
            Order::Begin { name, header, bytes, .. } => {
                self.disk.begin(&name, &header, bytes);
                log.on_segment(Ok(()), self.now);
            }
            Order::Spare { .. } => log.on_spare(if full { Err(Failed::Full) } else { Ok(()) }, self.now),
            Order::Retire { .. } => unreachable!("nothing was released"),
            Order::Write { id, .. } => {
                written.push(id);
                log.on_written(id, if fails { Err(Failed::Io) } else { Ok(()) });
            }
            Order::Sync { id } if fails => {
                self.disk.failed_sync(&mut self.rng);
                assert!(log.on_synced(id, Err(Failed::Io), self.now).is_empty());
            }
            Order::Sync { id } => {
                self.disk.sync(&covers);
                for batch in log.on_synced(id, Ok(()), self.now) {
                    self.acknowledge(&batch);
                }
            }
            Order::Seal { .. } => {
                self.disk.sync(&[u64::MAX]);
                log.on_sealed();
            }
            Order::Checkpoint { name, bytes } => {
                self.disk.replace(name, &bytes);
                log.on_checkpoint(Ok(()), self.now);
            }
            Order::Refuse { .. } | Order::Stop => unreachable!("handled where it was drained"),
        }
    }

    fn acknowledge(&mut self, batch: &Batch) {
        for (seq, record) in batch.iter().map(Result::unwrap) {
            assert!(self.acked.insert(seq, record.value.clone()).is_none(), "seq {seq} was acknowledged twice");
            self.fence(seq, &record);
        }
    }

    fn fence(&mut self, seq: u64, record: &Record) {
        if record.op == Op::Fence {
            self.fences.insert(seq, (record.shard, record.owner_epoch));
        }
    }
}

fn raise(fences: &mut BTreeMap<Shard, OwnerEpoch>, (shard, epoch): (Shard, OwnerEpoch)) {
    let fence = fences.entry(shard).or_default();
    *fence = epoch.max(*fence);
}

fn read_all(disk: &mut Disk) -> BTreeMap<u64, Record> {
    let found = examine(disk, Floor::default(), Depth::Whole).unwrap();
    let mut all = BTreeMap::new();
    for segment in &found.segments {
        let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
        let mut pos = FIRST_POS;
        while pos < segment.end {
            let (batch, _) = walk.at(disk, pos).unwrap().unwrap();
            all.extend(batch.iter().map(Result::unwrap));
            pos += batch.disk_len() as u64;
        }
    }
    all
}

fn simulate(seed: u64, faults: bool) -> World {
    let mut world = World::new(seed, faults);
    for _ in 0..4 {
        world.live();
    }
    let (_, opened) = world.open();
    world.check_opened(&opened);
    world
}

/// Runs `work` for each seed, or for the one in `SEED`; a failure names its seed. Tells whether all were run.
fn seeds(count: u64, work: impl Fn(u64)) -> bool {
    let only: Option<u64> = std::env::var("SEED").ok().map(|s| s.parse().expect("SEED is a number"));
    for seed in only.map_or(0..count, |s| s..s + 1) {
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| work(seed))) {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    only.is_none()
}

#[test]
fn no_acknowledged_record_is_lost_by_a_crash_at_any_step() {
    let crashes = Cell::new(0);
    let all = seeds(600, |seed| crashes.set(crashes.get() + simulate(seed, false).crashes));
    assert!(!all || crashes.get() > 600, "the simulation hardly crashed: it proves nothing");
}

#[test]
fn nor_by_failing_writes_flushes_and_full_disks() {
    let seen = Cell::new((0, 0));
    let all = seeds(600, |seed| {
        let world = simulate(seed, true);
        seen.set((seen.get().0 + world.failures, seen.get().1 + world.refused));
    });
    assert!(!all || seen.get().0 > 100 && seen.get().1 > 100, "faults were not reached: {:?}", seen.get());
}

/// A log after a clean stop, and the file, position and length of each of its batches.
fn stopped(seed: u64) -> (Disk, Vec<(String, u64, u64)>) {
    let mut world = World::new(seed, false);
    world.config.mirror = false;
    let (mut log, _) = world.open();
    let (mut places, mut written) = (Vec::new(), Vec::new());
    for step in 0..400 {
        world.now += MS;
        if step < 60 {
            world.append(&mut log);
        } else {
            log.close();
        }
        while let Some(order) = log.next_order(world.now) {
            if let Order::Write { pos, bytes, .. } = &order {
                places.push((world.disk.current(), *pos, bytes.len() as u64));
            }
            let pending = world.submit(order, &written);
            world.complete(&mut log, pending, &mut written);
        }
    }
    assert!(log.is_closed() && places.len() > 50);
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
