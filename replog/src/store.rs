//! What a zone has applied of one stream, its own and every other zone's: rows, ledger, parked records, positions, map.
//!
//! The applier decides, a store keeps: it takes a list of changes, all in one transaction or none. The only judgement it
//! makes itself is the one that needs the stored row: **the higher version is the row**. It never reads a clock.

use crate::{Record, Version};
use bytes::Bytes;
use shardmap::{MapEpoch, OwnerEpoch, Positions, Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// A row, or the tombstone of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Who wrote it, when, under which ownership; decides which of two is the row.
    pub version: Version,
    /// Its place in that zone's log.
    pub seq: u64,
    /// Its shard.
    pub shard: Shard,
    /// Deleted: a tombstone, which an older write does not bring back to life.
    pub deleted: bool,
    /// Its value.
    pub value: Bytes,
}

/// A tail record: written beyond the cut of a later ownership. (log zone, seq) is its identity; its image stays with it, since the log
/// it is in is let go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its table.
    pub table: Bytes,
    /// Its key.
    pub key: Bytes,
    /// What it wrote; `version.zone` and `seq` are its place.
    pub row: Row,
}

/// The table in which operators' words on entries of the ledger lie, replicated as any row; no client can name it. The key is
/// `conflict_key`, the value JSON.
pub const RESOLVED: &[u8] = b".resolved";

/// The key of an operator's word on an entry of the ledger of its stream.
pub fn conflict_key(zone: Zone, seq: u64) -> Bytes {
    Bytes::from(format!("{}-{seq}", zone.0))
}

/// A record that could not be applied yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parked {
    /// The zone whose log it is in.
    pub zone: Zone,
    /// Its place there.
    pub seq: u64,
    /// The seq of the first record of its transaction: they are settled together.
    pub unit: u64,
    /// The record.
    pub record: Record,
}

/// A FENCE that has been applied: the highest of its zone and shard, and of equal ones the first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// Its epoch.
    pub epoch: OwnerEpoch,
    /// Its place in its zone's log.
    pub seq: u64,
    /// What its writer had applied of the other zones' logs.
    pub positions: Positions,
}

/// A range of a log that has to be looked through for tail records of a new cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scan {
    /// The next seq to look at.
    pub from: u64,
    /// The last one.
    pub to: u64,
}

/// A report of positions for a lost zone's shard, which freezes that zone's log here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// The lost zone.
    pub lost: Zone,
    /// The map that said so.
    pub epoch: MapEpoch,
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A row, unless the stored one has a higher version.
    Row {
        /// Its table.
        table: Bytes,
        /// Its key.
        key: Bytes,
        /// The row.
        row: Row,
    },
    /// A tombstone that nobody needs any more, unless the stored row has another version.
    Drop {
        /// Its table.
        table: Bytes,
        /// Its key.
        key: Bytes,
        /// Its version.
        version: Version,
    },
    /// An entry of the ledger; listed again, it is the same entry.
    List(Entry),
    /// A record to be applied later.
    Park(Parked),
    /// A parked record was settled.
    Unpark(Zone, u64),
    /// A FENCE.
    Fence(Zone, Shard, Fence),
    /// Everything of that zone's log up to this seq is applied or parked.
    Applied(Zone, u64),
    /// The newest map.
    Map(MapEpoch, Bytes),
    /// A scan that is under way; `None`: it is done.
    Scan(Zone, Option<Scan>),
    /// A report that was made; `None`: the map has answered it.
    Report(Shard, Option<Report>),
}

/// Changes that are stored together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// In order.
    pub list: Vec<Change>,
    /// Must they survive a power cut before anyone acts on them? Others may be redone from the logs.
    pub durable: bool,
}

/// What a store holds beside rows and ledger: what an applier starts from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Applied positions.
    pub applied: Positions,
    /// The newest map.
    pub map: Option<(MapEpoch, Bytes)>,
    /// Parked records, by zone and seq.
    pub parked: Vec<Parked>,
    /// Applied FENCEs.
    pub fences: BTreeMap<(Zone, Shard), Fence>,
    /// Scans under way.
    pub scans: BTreeMap<Zone, Scan>,
    /// Reports without an answer.
    pub reports: BTreeMap<Shard, Report>,
}

impl State {
    /// The last seq of `zone`'s log up to which everything is applied and nothing is parked.
    pub fn settled(&self, zone: Zone) -> u64 {
        let parked = self.parked.iter().filter(|p| p.zone == zone).map(|p| p.seq - 1);
        parked.chain(self.applied.get(zone)).min().unwrap_or(0)
    }
}

/// 32 bytes that are equal when two copies are: BLAKE3 over all rows by (table, key), and over the ledger by (zone, seq). Tombstones
/// are left out: each zone lets go of them in its own time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digests {
    /// Of the rows.
    pub rows: [u8; 32],
    /// Of the ledger.
    pub ledger: [u8; 32],
}

/// A store that failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failed {
    /// Nothing was stored for want of room: the same changes may be tried again when there is some.
    #[error("the record store has no room: {0}")]
    Full(String),
    /// The process stops with this message, since memory and disk no longer agree.
    #[error("the record store: {0}")]
    Broken(String),
}

/// Called with table, key and row.
pub type VisitRow<'a> = &'a mut dyn FnMut(&[u8], &[u8], &Row);

/// Where a zone keeps what it has applied of one stream.
pub trait Store {
    /// Stores all changes, or none.
    fn commit(&mut self, changes: &Changes) -> Result<(), Failed>;
    /// One row, or its tombstone.
    fn row(&self, table: &[u8], key: &[u8]) -> Result<Option<Row>, Failed>;
    /// Everything but rows and ledger.
    fn state(&self) -> Result<State, Failed>;
    /// Visits every row by (table, key).
    fn rows(&self, visit: VisitRow<'_>) -> Result<(), Failed>;
    /// Visits every entry of the ledger by (zone, seq).
    fn ledger(&self, visit: &mut dyn FnMut(&Entry)) -> Result<(), Failed>;
    /// Visits the first `most` tombstones that `zone` wrote at `seqs`, by seq.
    fn tombstones(&self, zone: Zone, seqs: RangeInclusive<u64>, most: usize, visit: VisitRow<'_>)
    -> Result<(), Failed>;
    /// Compares two copies by 64 bytes.
    fn digests(&self) -> Result<Digests, Failed> {
        let (mut rows, mut ledger) = (blake3::Hasher::new(), blake3::Hasher::new());
        self.rows(&mut |table, key, row| {
            if !row.deleted {
                hash_row(&mut rows, table, key, row);
            }
        })?;
        self.ledger(&mut |entry| hash_entry(&mut ledger, entry))?;
        Ok(Digests { rows: rows.finalize().into(), ledger: ledger.finalize().into() })
    }
}

impl Changes {
    /// Is there nothing to store?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

fn hash_row(to: &mut blake3::Hasher, table: &[u8], key: &[u8], row: &Row) {
    let v = &row.version;
    hash_strings(to, &[table, key, &row.value]);
    for number in [v.owner_epoch.0, v.hlc.0, v.zone.0.into(), v.stream.into(), row.seq, row.shard.0.into()] {
        to.update(&number.to_le_bytes());
    }
}

fn hash_entry(to: &mut blake3::Hasher, entry: &Entry) {
    hash_strings(to, &[&entry.table, &entry.key]);
    for number in [entry.row.version.zone.0.into(), entry.row.seq, entry.row.shard.0.into()] {
        to.update(&number.to_le_bytes());
    }
}

/// Each with its length before it, so that no two lists of strings hash alike.
fn hash_strings(to: &mut blake3::Hasher, strings: &[&[u8]]) {
    for s in strings {
        to.update(&(s.len() as u64).to_le_bytes());
        to.update(s);
    }
}

/// A store in memory, for simulations and tests: what a disk would hold.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    rows: BTreeMap<(Bytes, Bytes), Row>,
    ledger: BTreeMap<(Zone, u64), Entry>,
    parked: BTreeMap<(Zone, u64), Parked>,
    state: State,
}

impl Memory {
    fn change(&mut self, change: &Change) {
        match change.clone() {
            Change::Row { table, key, row } => {
                let held = self.rows.entry((table, key)).or_insert_with(|| row.clone());
                if row.version > held.version {
                    *held = row;
                }
            }
            Change::Drop { table, key, version } => {
                let at = (table, key);
                if self.rows.get(&at).is_some_and(|held| held.deleted && held.version == version) {
                    self.rows.remove(&at);
                }
            }
            Change::List(entry) => {
                self.ledger.entry((entry.row.version.zone, entry.row.seq)).or_insert(entry);
            }
            Change::Park(parked) => {
                self.parked.insert((parked.zone, parked.seq), parked);
            }
            Change::Unpark(zone, seq) => {
                self.parked.remove(&(zone, seq));
            }
            Change::Fence(zone, shard, fence) => {
                self.state.fences.insert((zone, shard), fence);
            }
            Change::Applied(zone, seq) => self.state.applied.set(zone, seq),
            Change::Map(epoch, bytes) => self.state.map = Some((epoch, bytes)),
            Change::Scan(zone, scan) => put_or_remove(&mut self.state.scans, zone, scan),
            Change::Report(shard, report) => put_or_remove(&mut self.state.reports, shard, report),
        }
    }

    /// The identities in the ledger.
    pub fn listed(&self) -> BTreeSet<(Zone, u64)> {
        self.ledger.keys().copied().collect()
    }
}

pub(crate) fn put_or_remove<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Store for Memory {
    fn commit(&mut self, changes: &Changes) -> Result<(), Failed> {
        changes.list.iter().for_each(|c| self.change(c));
        Ok(())
    }

    fn row(&self, table: &[u8], key: &[u8]) -> Result<Option<Row>, Failed> {
        let key = (Bytes::copy_from_slice(table), Bytes::copy_from_slice(key));
        Ok(self.rows.get(&key).cloned())
    }

    fn state(&self) -> Result<State, Failed> {
        Ok(State { parked: self.parked.values().cloned().collect(), ..self.state.clone() })
    }

    fn rows(&self, visit: VisitRow<'_>) -> Result<(), Failed> {
        self.rows.iter().for_each(|((table, key), row)| visit(table, key, row));
        Ok(())
    }

    fn ledger(&self, visit: &mut dyn FnMut(&Entry)) -> Result<(), Failed> {
        self.ledger.values().for_each(visit);
        Ok(())
    }

    fn tombstones(
        &self,
        zone: Zone,
        seqs: RangeInclusive<u64>,
        most: usize,
        visit: VisitRow<'_>,
    ) -> Result<(), Failed> {
        let wanted = |r: &Row| r.deleted && r.version.zone == zone && seqs.contains(&r.seq);
        let mut found: Vec<_> = self.rows.iter().filter(|(_, r)| wanted(r)).collect();
        found.sort_by_key(|(_, r)| r.seq);
        found.into_iter().take(most).for_each(|((table, key), row)| visit(table, key, row));
        Ok(())
    }
}
