//! A log at work on the simulated disk, and what an honest observer knows about it.

use super::Disk;
use super::driver::{Pending, spare_name};
use super::rng::Rng;
use bytes::Bytes;
use replog::batch::{Batch, Fault, Origin, Stamp};
use replog::limits::SPARES;
use replog::log::{Config, Log, Opened, Order, Refused};
use replog::open::{Depth, Floor, Found, Verdict, Walk, examine};
use replog::segment::{Checkpoint, FIRST_POS, Header};
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::collections::BTreeMap;

pub const MS: u64 = 1_000_000;
pub const UUID: u128 = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;
/// What is appended after each recovery, before anything else goes wrong.
const AFTER_RECOVERY: u64 = 1000;

/// What goes wrong besides crashes.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Writes and flushes fail, or are short.
    pub io: bool,
    /// There is no room, now and then.
    pub full: bool,
    /// Flushes are reported and not done, from some moment on.
    pub lies: bool,
    /// A bit changes at rest, between two lives.
    pub rots: bool,
}

/// A record, as far as the observer tells one from another.
pub type Mark = u64;

pub fn mark(record: &Record) -> Mark {
    u64::from(record.op.code()) << 32 | u64::from(crc32fast::hash(&record.value))
}

/// One process that writes the log.
pub struct Writer {
    pub log: Log,
    pub file: usize,
    pub(super) pending: Vec<Pending>,
    /// Cut to its end when the first segment of this life is there.
    pub(super) before: Option<(String, u64)>,
    /// What it gave each seq, and has not taken back.
    pub given: BTreeMap<u64, Vec<Mark>>,
    /// What it acknowledged.
    pub acked: BTreeMap<u64, Mark>,
}

/// How many times what was reached.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub crashes: u64,
    pub refused: u64,
    pub failures: u64,
    pub torn: u64,
    /// Acknowledged records that a lying disk lost: seen by the verdict.
    pub noticed: u64,
    /// The same, where nobody was left who knew.
    pub unnoticed: u64,
    /// What a failed flush had left behind was read as durable by the next process, lost by a power cut, and noticed.
    pub washed: u64,
    /// Flushes of what was seen written, and writes that flushed themselves.
    pub flushes: u64,
    pub through: u64,
}

impl std::ops::Add for Seen {
    type Output = Seen;

    fn add(self, other: Seen) -> Seen {
        Seen {
            crashes: self.crashes + other.crashes,
            refused: self.refused + other.refused,
            failures: self.failures + other.failures,
            torn: self.torn + other.torn,
            noticed: self.noticed + other.noticed,
            unnoticed: self.unnoticed + other.unnoticed,
            washed: self.washed + other.washed,
            flushes: self.flushes + other.flushes,
            through: self.through + other.through,
        }
    }
}

/// A log's disk through several lives.
pub struct World {
    pub rng: Rng,
    pub disk: Disk,
    pub config: Config,
    pub now: u64,
    pub faults: Faults,
    pub seen: Seen,
    hlc: u64,
    serial: u64,
    /// The marks that a seq was given in this life and the crash before it.
    given: BTreeMap<u64, Vec<Mark>>,
    /// Acknowledged, or seen by someone: to be read back for ever.
    pub acked: BTreeMap<u64, Mark>,
    /// Of acknowledged records, by seq; the store knows those that it has applied.
    fences: BTreeMap<u64, (Shard, OwnerEpoch)>,
    /// The store has everything up to here, durably.
    applied: u64,
    /// Nobody needs what is below this seq.
    pub(super) released: u64,
    /// Bytes that are kept of what nobody needs; `None`: nothing is ever let go.
    pub retains: Option<u64>,
    /// The power was cut under a disk that lies, or bits have changed: what it reported as flushed may be gone.
    lied: bool,
    /// An open has read, and flushed, what an earlier flush had failed on: the disk said yes, and has it in no safe place.
    washed: bool,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> World {
        let mut rng = Rng::new(seed);
        let config =
            Config { zone: Zone(1), stream: 2, mirror: rng.one_in(3), segment_bytes: 4096 * (3 + rng.below(24)) };
        let retains = (!rng.one_in(3)).then(|| rng.below(8) * config.segment_bytes);
        World {
            rng,
            retains,
            disk: Disk::default(),
            config,
            now: 1,
            faults,
            seen: Seen::default(),
            hlc: 1,
            serial: 0,
            given: BTreeMap::new(),
            acked: BTreeMap::new(),
            fences: BTreeMap::new(),
            applied: 0,
            released: 0,
            lied: false,
            washed: false,
        }
    }

    /// Opens, checks all that was promised, works for a while, and is killed, loses power or closes. `false`: the log was found
    /// to be corrupt, as it must be when a disk has lied.
    pub fn live(&mut self) -> bool {
        let Some(mut w) = self.open() else { return false };
        let faults = std::mem::take(&mut self.faults);
        self.fill(&mut w);
        self.faults = faults;
        let steps = 20 + self.rng.below(200);
        let lies_from = self.faults.lies.then(|| self.rng.below(steps));
        let clean = self.rng.one_in(3);
        for step in 0.. {
            self.disk.lies |= lies_from == Some(step);
            if step == steps && clean {
                w.log.close();
            }
            if step == steps && !clean || w.log.is_closed() {
                break;
            }
            assert!(step < 20_000, "the log does not come to rest");
            if step < steps && self.rng.one_in(3) {
                // Few are flushed by their own write, many by a flush of its own.
                let records = match self.rng.one_in(3) {
                    true => (0..1 + self.rng.below(60)).map(|_| self.small()).collect(),
                    false => (0..1 + self.rng.below(4)).map(|_| self.record()).collect(),
                };
                self.append(&mut w, records);
            }
            self.step(&mut w);
        }
        self.end(w, clean);
        true
    }

    /// How a life ends: whatever was closed, killed or cut off.
    pub fn end(&mut self, w: Writer, clean: bool) {
        self.given = w.given;
        self.acked.extend(w.acked);
        if !clean || w.log.is_stopped() || self.disk.lies {
            self.crash();
        }
        if self.faults.rots && self.rng.one_in(2) {
            self.disk.rot(&mut self.rng);
            self.lied = true;
        }
    }

    fn crash(&mut self) {
        self.seen.crashes += 1;
        self.disk.kill(&mut self.rng);
        if self.disk.lies || !self.rng.one_in(3) {
            self.lied |= self.disk.lies;
            self.disk.cut_power(&mut self.rng);
        }
        self.disk.lies = false;
    }

    /// The records that a recovered log must take, and keep: what was torn must not swallow them.
    fn fill(&mut self, w: &mut Writer) {
        let mut left = AFTER_RECOVERY;
        let from = w.log.next_seq();
        let want = from + left - 1;
        for step in 0.. {
            assert!(step < 20_000, "the recovered log does not take records");
            if left > 0 && self.rng.one_in(2) {
                let count = left.min(20 + self.rng.below(150));
                let records = (0..count).map(|_| self.small()).collect();
                if self.append(w, records) {
                    left -= count;
                }
            }
            self.step(w);
            if left == 0 && w.log.durable_seq() >= want {
                break;
            }
        }
        assert!((from..=want).all(|seq| w.acked.contains_key(&seq)), "durable and not acknowledged");
    }

    /// Time passes, orders come, one step of one of them is done.
    pub fn step(&mut self, w: &mut Writer) {
        self.now += self.rng.below(MS / 2);
        if self.rng.one_in(50) {
            self.now += 200 * MS;
        }
        if self.rng.one_in(20) {
            self.disk.land();
        }
        if self.retains.is_some() && self.rng.one_in(30) {
            self.apply(w);
        }
        while let Some(order) = w.log.next_order(self.now) {
            match order {
                Order::Refuse { from_seq } => self.take_back(w, from_seq),
                Order::Stop => {}
                order => self.submit(w, order),
            }
        }
        if !w.pending.is_empty() && !self.rng.one_in(3) {
            let at = self.rng.below(w.pending.len() as u64) as usize;
            let pending = w.pending.swap_remove(at);
            self.advance(w, pending);
        }
    }

    /// The store goes on, and what it has applied may go, but for so many bytes.
    fn apply(&mut self, w: &mut Writer) {
        let durable = w.log.durable_seq().max(self.applied);
        self.applied += self.rng.below(durable + 1 - self.applied);
        self.released = self.released.max(self.rng.below(self.applied + 2));
        w.log.release(self.released, self.retains.unwrap_or(u64::MAX));
    }

    /// Does everything at once, in order, shown to `look`: for a test that wants a log and no accident.
    pub fn carry_out(&mut self, w: &mut Writer, mut look: impl FnMut(&Disk, usize, &Order)) {
        while let Some(order) = w.log.next_order(self.now) {
            look(&self.disk, w.file, &order);
            self.submit(w, order);
            while let Some(pending) = w.pending.pop() {
                self.advance(w, pending);
            }
        }
    }

    /// What the driver does before it reads: what it is about to read must be durable. Returns the spares.
    fn settle(&mut self) -> Vec<u64> {
        let mut spares = Vec::new();
        for name in self.disk.names().iter().filter(|n| n.ends_with(".tmp")) {
            let id = name.strip_prefix("reserve-").and_then(|n| n.strip_suffix(".tmp")).and_then(|id| id.parse().ok());
            match id {
                Some(id) if self.disk.len(name) == self.config.segment_bytes && spares.len() < SPARES => {
                    spares.push(id)
                }
                _ => self.disk.remove(name),
            }
        }
        let newest = self.disk.segments().pop();
        for name in
            self.disk.names().iter().filter(|n| Checkpoint::NAMES.contains(&n.as_str()) || Some(*n) == newest.as_ref())
        {
            let file = self.disk.open(name, 0);
            let covered = self.disk.covered(file);
            self.disk.sync(file, &covered, &mut self.rng);
        }
        self.disk.sync_names();
        spares
    }

    /// Spares that an earlier run left: files of anything that was ever written here.
    fn leave_spares(&mut self) {
        for id in [1000, 2000] {
            if self.rng.one_in(3) {
                let used = self.disk.recycled(self.config.segment_bytes as usize, &mut self.rng);
                self.disk.create(&spare_name(id), used);
            }
        }
    }

    /// `None`: corrupt, because the disk had lied.
    pub fn open(&mut self) -> Option<Writer> {
        let acked = self.acked.keys().next_back().copied().unwrap_or(0);
        if self.retains.is_none() {
            self.applied += self.rng.below(acked + 1 - self.applied);
        }
        let peers = if self.lied && self.rng.one_in(2) { 0 } else { self.rng.below(acked + 1) };
        let floor = Floor { applied: self.applied, peers };
        if self.rng.one_in(2) {
            self.disk.land();
        }
        self.leave_spares();
        let spares = self.settle();
        let found = examine(&mut self.disk, floor, Depth::Needed).unwrap();
        if !found.verdict.is_sound() {
            assert!(self.lied || self.washed, "{:?}", found.verdict);
            self.seen.noticed += u64::from(self.lied);
            self.seen.washed += u64::from(self.washed);
            return None;
        }
        let may_lack = self.faults.rots || self.faults.lies || self.washed;
        assert!(found.footers_lost.is_empty() || may_lack, "{:?}", found.footers_lost);
        self.seen.torn += u64::from(matches!(found.verdict, Verdict::Torn(_)));
        let batches = match batches(&mut self.disk, &found) {
            Ok(batches) => batches,
            Err(fault) => {
                let scrubbed = examine(&mut self.disk, floor, Depth::Whole).unwrap();
                assert!(self.lied && !scrubbed.verdict.is_sound(), "{fault}, and the verdict is {}", scrubbed.verdict);
                self.seen.noticed += 1;
                return None;
            }
        };
        if self.lied {
            self.forget(&found, floor);
        }
        assert!(found.last_seq >= acked || self.lied, "ends at {}, {acked} was acknowledged", found.last_seq);
        self.lied = false;
        self.washed |= found.segments.last().is_some_and(|s| !self.disk.is_safe(&s.name, s.end));
        found.expired.iter().for_each(|name| self.disk.remove(name));
        let before = found.segments.last().filter(|s| !s.is_empty());
        let before = before.map(|s| (s.name.clone(), s.used_bytes()));
        let (log, opened) = Log::recovered(self.config, found, &spares, UUID, self.rng.next());
        self.check_opened(&opened, &batches);
        Some(Writer { log, file: 0, pending: Vec::new(), before, given: BTreeMap::new(), acked: BTreeMap::new() })
    }

    /// A second process opens what the first still writes: the lock has failed. The directory is not corrupt as it stands.
    pub fn open_beside(&mut self, first: &Writer) -> Writer {
        self.settle();
        let found = examine(&mut self.disk, Floor::default(), Depth::Needed).unwrap();
        let hlc = self.hlc;
        let second = self.resume(found);
        self.hlc = hlc;
        Writer { given: first.given.clone(), ..second } // what it reads of the first one's becomes its own
    }

    /// Goes on behind what was found.
    pub fn resume(&mut self, found: Found) -> Writer {
        self.hlc = found.last_hlc.0;
        let (log, _) = Log::recovered(self.config, found, &[], UUID, self.rng.next());
        let (given, acked) = (BTreeMap::new(), BTreeMap::new());
        Writer { log, file: 0, pending: Vec::new(), before: None, given, acked }
    }

    /// A disk has lied, and the verdict is not "corrupt": then nobody who is left knows better.
    fn forget(&mut self, found: &Found, floor: Floor) {
        let last = found.last_seq;
        assert!(last >= floor.applied && last >= floor.peers, "the store or a peer knows more than {last}");
        let known = witnesses(&self.disk, &found.expired).into_iter().max().unwrap_or(0);
        assert!(last >= known, "ends at {last}, {known} is known on this disk to be durable");
        let lost = self.acked.split_off(&(last + 1));
        self.seen.unnoticed += u64::from(!lost.is_empty());
        self.fences.split_off(&(last + 1));
    }

    /// Every acknowledged record is there; what else is there was given out and never refused.
    fn check_opened(&mut self, opened: &Opened, batches: &[Batch]) {
        assert_eq!(opened.log_uuid, UUID);
        let mut next = opened.first_seq;
        for (seq, record) in batches.iter().flat_map(Batch::iter).map(Result::unwrap) {
            assert_eq!(seq, next, "seqs are skipped");
            next += 1;
            let mark = mark(&record);
            match self.acked.get(&seq) {
                Some(acked) => assert_eq!(mark, *acked, "seq {seq} is another record"),
                None if record.op == Op::Marker => {}
                None => assert!(self.given[&seq].contains(&mark), "seq {seq} was never given this value"),
            }
            self.acked.insert(seq, mark);
            self.fence(seq, &record);
            assert!(opened.last_hlc >= record.hlc);
        }
        assert_eq!(next, opened.durable_seq + 1, "what is durable cannot be read");
        assert!(opened.first_seq <= self.released.max(1), "{} was needed yet", opened.first_seq - 1);
        let mut known = opened.fences.clone();
        self.fences.range(..=self.applied).for_each(|(_, fence)| raise(&mut known, *fence));
        let mut all = BTreeMap::new();
        self.fences.values().for_each(|fence| raise(&mut all, *fence));
        assert_eq!(known, all, "a FENCE is forgotten");
        self.given.clear();
    }

    pub fn append(&mut self, w: &mut Writer, records: Vec<Record>) -> bool {
        let marks: Vec<Mark> = records.iter().map(mark).collect();
        let taken = if self.config.mirror {
            let origin = Origin { stream: 2, zone: Zone(1), term: w.log.term().max(1), log_uuid_lo: UUID as u64 };
            let (next, chain) = (w.log.next_seq(), w.log.chain_at_end());
            w.log.append_batch(Batch::build(&origin, next, chain, self.now, &records)).map(|_| next)
        } else {
            w.log.append(records, self.now)
        };
        match &taken {
            Ok(first) => {
                for (seq, mark) in (*first..).zip(marks) {
                    w.given.entry(seq).or_default().push(mark);
                }
            }
            Err(why) => assert!(matches!(why, Refused::Full | Refused::Busy | Refused::Closed), "{why}"),
        }
        taken.is_ok()
    }

    pub fn record(&mut self) -> Record {
        let len = if self.rng.one_in(20) { self.rng.below(40_000) } else { self.rng.below(300) };
        let op = if self.rng.one_in(10) { Op::Fence } else { Op::Put };
        self.make(op, len as usize)
    }

    pub fn small(&mut self) -> Record {
        self.make(Op::Put, 0)
    }

    fn make(&mut self, op: Op, len: usize) -> Record {
        self.serial += 1;
        self.hlc += 1 + self.rng.below(3);
        let mut value = self.serial.to_le_bytes().to_vec();
        value.resize(8 + len, self.serial as u8);
        Record {
            op,
            transaction: 0,
            shard: Shard(self.rng.below(4) as u16),
            owner_epoch: OwnerEpoch(self.rng.below(100)),
            hlc: Hlc(self.hlc),
            table: Bytes::from_static(b"orders"),
            key: Bytes::from_static(b"k"),
            value: value.into(),
        }
    }

    pub(super) fn fence(&mut self, seq: u64, record: &Record) {
        if record.op == Op::Fence {
            self.fences.insert(seq, (record.shard, record.owner_epoch));
        }
    }

    fn take_back(&mut self, w: &mut Writer, from_seq: u64) {
        self.seen.refused += 1;
        w.given.retain(|seq, _| *seq < from_seq);
        let acked = w.acked.keys().chain(self.acked.keys()).max();
        assert!(acked.is_none_or(|seq| *seq < from_seq), "an acknowledged record was refused");
    }
}

fn raise(fences: &mut BTreeMap<Shard, OwnerEpoch>, (shard, epoch): (Shard, OwnerEpoch)) {
    let fence = fences.entry(shard).or_default();
    *fence = epoch.max(*fence);
}

/// Every batch of a log that is not corrupt, or what the reader comes upon in a segment that the open has passed over.
pub fn batches(disk: &mut Disk, found: &Found) -> Result<Vec<Batch>, Fault> {
    let mut all = Vec::new();
    for segment in &found.segments {
        let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
        let mut pos = FIRST_POS;
        while pos < segment.end {
            let (batch, _) = walk.at(disk, pos).unwrap()?;
            pos += batch.disk_len() as u64;
            all.push(batch);
        }
    }
    Ok(all)
}

/// Every seq that something intact on this disk calls durable, found by no code of the log's own recovery.
fn witnesses(disk: &Disk, expired: &[String]) -> Vec<u64> {
    let mut known = Vec::new();
    for name in disk.names().iter().filter(|n| !n.ends_with(".tmp") && !expired.contains(n)) {
        let bytes = Bytes::copy_from_slice(disk.bytes(name));
        if let Ok(checkpoint) = Checkpoint::parse(&bytes)
            && checkpoint.log_uuid == UUID
        {
            known.push(checkpoint.durable_seq);
        }
        let Ok(header) = Header::parse(&bytes) else { continue };
        for pos in (FIRST_POS..bytes.len() as u64).step_by(4096) {
            if let Ok((_, Stamp { local_durable_seq, .. })) =
                Batch::read(&bytes.slice(pos as usize..), header.salt, pos)
            {
                known.push(local_durable_seq);
            }
        }
    }
    known
}
