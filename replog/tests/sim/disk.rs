//! What a zone of the simulation has on its disk, and what a crash leaves of it.
//!
//! A log keeps what was flushed, and of what was on its way some first batches, never acknowledged: recovery cuts a torn end off at the
//! batch. A store keeps what was committed durably and everything before it; of later transactions a power cut takes the last ones back, whole.

use crate::world::Rng;
use bytes::Bytes;
use replog::store::{Change, Changes, Memory, Store};
use replog::{Batch, Record};
use shardmap::{MapEpoch, Positions, Zone};
use std::collections::BTreeSet;
use std::rc::Rc;

/// A batch with its records.
pub struct Block {
    pub batch: Batch,
    pub records: Vec<(u64, Record)>,
}

impl Block {
    pub fn of(batch: Batch) -> Rc<Block> {
        let records = batch.iter().map(|r| r.expect("parsed or built")).collect();
        Rc::new(Block { batch, records })
    }
}

pub type Blocks = Vec<Rc<Block>>;

pub fn last_seq(blocks: &[Rc<Block>]) -> u64 {
    blocks.last().map_or(0, |b| b.batch.last_seq())
}

/// A store makes everything durable by itself once so many transactions wait for it.
const SINCE_MAX: usize = 48;

/// Batches of a segment.
const SEGMENT: usize = 2;

/// What a crash leaves.
pub struct Disk {
    /// By zone: the own log, and the mirrors.
    pub logs: Vec<Blocks>,
    /// By zone: the first batch that is kept. What is before it is here for the observer alone: what was let go, or never came because
    /// a snapshot stood in for it.
    kept: Vec<usize>,
    /// Values of the `gap` records that are not yet in the own log.
    pub unrecorded: Vec<Bytes>,
    pub store: Memory,
    pub term: u64,
    /// Rows that were handed to the store, to see that none is handed over twice.
    applied_rows: BTreeSet<(Zone, u64)>,
    /// The most that was ever applied.
    pub most: Positions,
    /// The store as a power cut leaves it, and the transactions that it may take back, each with the rows it was the first to bring.
    safe: Memory,
    since: Vec<(Changes, Vec<(Zone, u64)>)>,
}

/// What went with a crash.
#[derive(Clone, Copy, Default, Debug)]
pub struct Lost {
    /// Batches that were written and not flushed.
    pub batches: u64,
    /// Such that are there all the same.
    pub spared: u64,
    /// Transactions of the store.
    pub transactions: u64,
}

impl Disk {
    pub fn new(zones: usize, first: MapEpoch) -> Disk {
        let logs = (0..zones).map(|_| vec![]).collect();
        let (store, safe) = (Memory::default(), Memory::default());
        let (applied_rows, most, since) = (BTreeSet::new(), Positions::default(), vec![]);
        let (kept, unrecorded) = (vec![0; zones], vec![]);
        let mut disk = Disk { logs, kept, unrecorded, store, term: 0, applied_rows, most, safe, since };
        let map = Change::Map(first, Bytes::new());
        disk.commit(&Changes { list: vec![map], durable: true }).expect("nothing is applied");
        disk
    }

    /// Stores changes; an error is a row that was applied before.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), (Zone, u64)> {
        let mut new = vec![];
        for change in &changes.list {
            match change {
                Change::Row { row, .. } => {
                    let at = (row.version.zone, row.seq);
                    if !self.applied_rows.insert(at) {
                        return Err(at);
                    }
                    new.push(at);
                }
                Change::Applied(zone, seq) => self.most.set(*zone, (*seq).max(self.most.get(*zone).unwrap_or(0))),
                _ => {}
            }
        }
        self.store.commit(changes).expect("memory");
        self.since.push((changes.clone(), new));
        if changes.durable || self.since.len() > SINCE_MAX {
            self.settle();
        }
        Ok(())
    }

    /// Stores what a snapshot holds: rows and entries that may be there already, and may come again in a log.
    pub fn merge(&mut self, changes: &Changes) {
        self.store.commit(changes).expect("memory");
        self.since.push((changes.clone(), vec![]));
    }

    /// A snapshot takes the place of `zone`'s log: `changes` say so, `log` is what it stands for.
    pub fn replace(&mut self, zone: Zone, changes: &Changes, log: Blocks) {
        self.commit(changes).expect("it brings no row");
        self.applied_rows.extend(log.iter().flat_map(|b| &b.records).map(|(seq, _)| (zone, *seq)));
        let of = usize::from(zone.0);
        self.kept[of] = log.len();
        self.logs[of] = log;
    }

    /// What there is of a log to be read.
    pub fn held(&self, of: usize) -> &[Rc<Block>] {
        &self.logs[of][self.kept[of]..]
    }

    /// The first seq that is kept of a log.
    pub fn first_kept(&self, of: usize) -> u64 {
        self.held(of).first().map_or(last_seq(&self.logs[of]) + 1, |b| b.batch.first_seq)
    }

    /// What the store has applied of a log with nothing parked, whatever happens now.
    pub fn durably_settled(&self, zone: Zone) -> u64 {
        self.safe.state().expect("memory").settled(zone)
    }

    /// Where the oldest segment of a log ends that is not written any more.
    fn segment_end(&self, of: usize) -> Option<usize> {
        let end = (self.kept[of] / SEGMENT + 1) * SEGMENT;
        (end < self.logs[of].len()).then_some(end)
    }

    /// The last seq of that segment.
    pub fn oldest_sealed(&self, of: usize) -> Option<u64> {
        self.segment_end(of).map(|end| self.logs[of][end - 1].batch.last_seq())
    }

    /// Lets go whole segments below a seq, but for the newest `keep` batches; how many?
    pub fn let_go(&mut self, of: usize, below: u64, keep: usize) -> u64 {
        let mut gone = 0;
        while let Some(end) = self.segment_end(of) {
            if self.logs[of][end - 1].batch.last_seq() >= below || self.logs[of].len() - end < keep {
                break;
            }
            (self.kept[of], gone) = (end, gone + 1);
        }
        gone
    }

    /// How many rows were ever applied, less what a power cut took back.
    pub fn applied_rows(&self) -> usize {
        self.applied_rows.len()
    }

    /// Everything that is committed is durable.
    fn settle(&mut self) {
        for (changes, _) in self.since.drain(..) {
            self.safe.commit(&changes).expect("memory");
        }
    }

    /// The process ends, or the machine: `written` is what waits for its flush, by log.
    pub fn crash(&mut self, mut written: Vec<Blocks>, rng: &mut Rng) -> Lost {
        let mut lost = Lost::default();
        for (log, pending) in self.logs.iter_mut().zip(&mut written) {
            let spared = rng.below(pending.len() as u64 + 1);
            (lost.batches, lost.spared) = (lost.batches + pending.len() as u64 - spared, lost.spared + spared);
            pending.truncate(spared as usize);
            log.append(pending);
        }
        if rng.one_in(2) {
            let left = rng.below(self.since.len() as u64 + 1) as usize;
            lost.transactions = (self.since.len() - left) as u64;
            for (_, rows) in self.since.drain(left..) {
                self.applied_rows.retain(|at| !rows.contains(at));
            }
            self.settle();
            self.store = self.safe.clone();
        }
        lost
    }
}
