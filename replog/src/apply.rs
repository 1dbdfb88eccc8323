//! Applies logs, this zone's own and every other's, to the store: by version, whole transactions, each position once.
//!
//! ```text
//! batch of a log ──▶ frozen? ──▶ map new enough? ──▶ park? ──▶ Row, Fence, List ──▶ Applied(seq)    one `Changes`
//!                     stop          stop               Park
//! ```
//!
//! The driver feeds batches in order, stores each `Changes` it gets back before it calls again, and stops the process when
//! that fails. An applied record is never appended to a stream again, and the applier never makes up a version: it has no
//! clock but the `now_ms` that tells it what lies in the future.

mod collect;
mod seed;

pub use seed::{Seed, Unseeded};

use crate::owners::{Owners, get_positions, stream_of};
use crate::store::{Change, Changes, Entry, Fence, Parked, Report, Row, Scan, State, put_or_remove};
use crate::{Op, Record, Version};
use bytes::Bytes;
use shardmap::ownership::{Entry as Ownership, History, Kind};
use shardmap::{MapEpoch, OwnerEpoch, Positions, Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A record whose clock is further ahead than this is parked: one event from the future would win for years.
pub const AHEAD_MAX_MS: u64 = 500;

/// Parked records that are kept; more would not fit a bounded memory.
pub const PARKED_MAX: usize = 16 * 1024;

/// Why a log does not go on being applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// The next record was written under an ownership that this zone's map does not hold yet.
    Map(OwnerEpoch),
    /// This zone has reported its positions for a shard that the log's zone has lost.
    Frozen(Shard),
    /// `PARKED_MAX` records are parked: the rest stays in the log until some are settled.
    Parked,
}

/// A record that no applier of this version can apply: the log is damaged or of a newer version.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unfit {
    /// The log skipped.
    #[error("zone {zone}'s log goes on with seq {seen}, expected {expected}")]
    Skipped {
        /// Whose log.
        zone: Zone,
        /// What came.
        seen: u64,
        /// What is next.
        expected: u64,
    },
    /// A FENCE whose positions cannot be read.
    #[error("the FENCE at seq {seq} of zone {zone}'s log carries no positions")]
    Fence {
        /// Whose log.
        zone: Zone,
        /// Where.
        seq: u64,
    },
}

/// The applier of one stream.
#[derive(Debug)]
pub struct Applier {
    zone: Zone,
    stream: u32,
    streams: u32,
    map: Arc<dyn Owners>,
    state: State,
    /// How many records of a row are parked: later ones queue behind them.
    parked_keys: BTreeMap<(Bytes, Bytes), u32>,
}

impl Applier {
    /// The applier of stream `stream` of `streams` over what the store holds; `map` is the one that it stores.
    pub fn new(zone: Zone, stream: u32, streams: u32, map: Arc<dyn Owners>, state: State) -> Applier {
        let mut parked_keys = BTreeMap::new();
        for p in &state.parked {
            *parked_keys.entry(row_key(&p.record)).or_default() += 1;
        }
        Applier { zone, stream, streams, map, state, parked_keys }
    }

    /// Applies what follows of `zone`'s log: whole batches, in order; what was applied before is passed over. Takes as much as may be
    /// applied now, up to the end of a transaction, and says why it stopped.
    pub fn apply(
        &mut self,
        zone: Zone,
        batch: &[(u64, Record)],
        now_ms: u64,
    ) -> Result<(Changes, Option<Wait>), Unfit> {
        let (mut out, mut wait) = (Changes::default(), self.frozen(zone).map(Wait::Frozen));
        let start = self.applied(zone);
        for unit in batch.chunk_by(|a, b| a.1.transaction == b.1.transaction) {
            let (Some((first, _)), Some((last, _))) = (unit.first(), unit.last()) else { continue };
            if *last <= self.applied(zone) {
                continue;
            }
            if *first != self.applied(zone) + 1 {
                return Err(Unfit::Skipped { zone, seen: *first, expected: self.applied(zone) + 1 });
            }
            wait = wait.or_else(|| self.wants_map(zone, unit)).or_else(|| self.wants_room(zone));
            if wait.is_some() {
                break;
            }
            self.unit(zone, unit, now_ms, &mut out)?;
            self.state.applied.set(zone, *last);
        }
        if self.applied(zone) > start {
            out.list.push(Change::Applied(zone, self.applied(zone)));
        }
        Ok((out, wait))
    }

    /// Retries parked transactions: those of zones' clocks that this zone's has caught up with, in their order for each row.
    pub fn retry(&mut self, now_ms: u64) -> Changes {
        let (mut out, mut kept, mut kept_keys) = (Changes::default(), vec![], BTreeSet::new());
        let parked = std::mem::take(&mut self.state.parked);
        for unit in parked.chunk_by(|a, b| (a.zone, a.unit) == (b.zone, b.unit)) {
            if unit.iter().any(|p| ahead(&p.record, now_ms) || kept_keys.contains(&row_key(&p.record))) {
                kept_keys.extend(unit.iter().map(|p| row_key(&p.record)));
                kept.extend_from_slice(unit);
                continue;
            }
            for p in unit {
                out.list.push(Change::Unpark(p.zone, p.seq));
                self.row(p.zone, p.seq, &p.record, &mut out);
                let key = row_key(&p.record);
                let left = self.parked_keys.get(&key).map(|n| n - 1).filter(|n| *n > 0);
                put_or_remove(&mut self.parked_keys, key, left);
            }
        }
        self.state.parked = kept;
        out
    }

    /// A newer map. Its bytes and the scans that its new cuts ask for are stored together, durably, before anyone acts on it;
    /// an older one changes nothing.
    pub fn on_map(&mut self, map: Arc<dyn Owners>, bytes: Bytes) -> Changes {
        let mut out = Changes { list: vec![], durable: true };
        if map.epoch() <= self.map.epoch() && self.state.map.is_some() {
            return out;
        }
        let before = std::mem::replace(&mut self.map, map);
        out.list.push(Change::Map(self.map.epoch(), bytes.clone()));
        self.state.map = Some((self.map.epoch(), bytes));
        let map = Arc::clone(&self.map);
        map.each(&mut |shard, history| {
            let known = before.history(shard).map_or(MapEpoch(0), |h| h.view().epoch);
            for e in self.begun(shard, history, known) {
                self.scan_beyond(e);
            }
            if self.state.reports.get(&shard).is_some_and(|r| history.view().epoch != r.epoch) {
                self.state.reports.remove(&shard);
                out.list.push(Change::Report(shard, None));
            }
        });
        out.list.extend(self.state.scans.iter().map(|(zone, scan)| Change::Scan(*zone, Some(*scan))));
        out
    }

    /// The logs to look through for tail records of new cuts.
    pub fn scans(&self) -> impl Iterator<Item = (Zone, Scan)> + '_ {
        self.state.scans.iter().map(|(zone, scan)| (*zone, *scan))
    }

    /// The next batch of a scan; it may begin below what the scan asks for and end beyond.
    pub fn scan(&mut self, zone: Zone, batch: &[(u64, Record)]) -> Changes {
        let mut out = Changes::default();
        let (Some(scan), Some((last, _))) = (self.state.scans.get(&zone).copied(), batch.last()) else { return out };
        for (seq, record) in batch.iter().filter(|(seq, _)| (scan.from..=scan.to).contains(seq)) {
            self.list(zone, *seq, record, &mut out);
        }
        let left = Some(Scan { from: scan.from.max(last + 1), to: scan.to }).filter(|s| s.from <= s.to);
        put_or_remove(&mut self.state.scans, zone, left);
        out.list.push(Change::Scan(zone, left));
        out
    }

    /// Applied positions, own log included.
    pub fn positions(&self) -> &Positions {
        &self.state.applied
    }

    /// The last seq of `zone`'s log that is applied or parked; 0: nothing.
    pub fn applied(&self, zone: Zone) -> u64 {
        self.state.applied.get(zone).unwrap_or(0)
    }

    /// The last seq of `zone`'s log below which nothing is parked either: what a cut that this zone reports never goes below, so that it is
    /// this that lets logs go.
    pub fn settled(&self, zone: Zone) -> u64 {
        self.state.settled(zone)
    }

    /// The map that it goes by.
    pub fn map_epoch(&self) -> MapEpoch {
        self.map.epoch()
    }

    /// How many records are parked.
    pub fn parked(&self) -> usize {
        self.state.parked.len()
    }

    /// The highest FENCE of each zone and shard that counts as applied: 0 while something of its shard is parked.
    pub fn fences(&self) -> impl Iterator<Item = (Zone, Shard, OwnerEpoch)> + '_ {
        let parked = self.parked_shards();
        self.state.fences.iter().map(move |((zone, shard), fence)| {
            (*zone, *shard, if parked.contains(shard) { OwnerEpoch(0) } else { fence.epoch })
        })
    }

    /// FENCEs of this zone, whatever is parked: they bar its own writes.
    pub fn own_fences(&self) -> impl Iterator<Item = (Shard, OwnerEpoch)> + '_ {
        let own = self.state.fences.iter().filter(|((zone, _), _)| *zone == self.zone);
        own.map(|((_, shard), fence)| (*shard, fence.epoch))
    }

    /// Step 4 of a move to this zone: has it caught up? The seq of the source's FENCE, and what this zone has applied.
    pub fn caught_up(&self, shard: Shard) -> Option<(u64, Positions)> {
        let history = self.map.history(shard)?;
        let view = history.view();
        let (from, asked) = (view.owner?, history.move_fence()?);
        let fence = self.state.fences.get(&(from, shard))?;
        let mut others = fence.positions.iter().filter(|(zone, _)| *zone != self.zone);
        let caught_up = view.to == Some(self.zone)
            && fence.epoch >= asked
            && others.all(|(zone, seq)| self.applied(zone) >= seq)
            && !self.is_parked(shard);
        caught_up.then(|| (fence.seq, self.cut(history)))
    }

    /// Step 3 of a take-over: this zone's positions for a lost shard, to be sent once the changes are stored; from then on it
    /// applies nothing of the lost zone's log until a map answers. `None`: its map does not say that the shard is lost.
    pub fn report(&mut self, shard: Shard) -> Option<(Positions, Changes)> {
        let history = self.map.history(shard)?;
        let view = history.view();
        let (lost, _) = view.lost.filter(|(zone, _)| view.kind == Kind::Lost && *zone != self.zone)?;
        let report = Report { lost, epoch: view.epoch };
        let mut cut = self.cut(history);
        self.state.reports.insert(shard, report);
        for p in self.state.parked.iter().filter(|p| p.record.shard == shard) {
            cut.set(p.zone, cut.get(p.zone).unwrap_or(0).min(p.seq - 1));
        }
        Some((cut, Changes { list: vec![Change::Report(shard, Some(report))], durable: true }))
    }

    /// What this zone has applied, with **every** earlier owner's log named: one of which it has nothing has a cut of 0, not no
    /// cut, or what that owner wrote could be overwritten unlisted.
    fn cut(&self, history: &History) -> Positions {
        let mut cut = self.state.applied.clone();
        for owner in history.entries().iter().flat_map(|e| [e.owner, e.lost.map(|l| l.0)]).flatten() {
            cut.set(owner, self.applied(owner));
        }
        cut
    }

    fn frozen(&self, zone: Zone) -> Option<Shard> {
        self.state.reports.iter().find(|(_, r)| r.lost == zone).map(|(shard, _)| *shard)
    }

    /// Does this transaction wait for a map? FENCEs do not: they are what the next map waits for.
    fn wants_map(&self, zone: Zone, unit: &[(u64, Record)]) -> Option<Wait> {
        let epochs = unit.iter().filter(|(_, r)| is_row(r)).map(|(_, r)| r.owner_epoch);
        epochs.max().filter(|e| zone != self.zone && e.0 > self.map.epoch().0).map(Wait::Map)
    }

    fn wants_room(&self, zone: Zone) -> Option<Wait> {
        (zone != self.zone && self.state.parked.len() >= PARKED_MAX).then_some(Wait::Parked)
    }

    /// One transaction: parked whole if any of it has to be.
    fn unit(&mut self, zone: Zone, unit: &[(u64, Record)], now_ms: u64, out: &mut Changes) -> Result<(), Unfit> {
        let rows = || unit.iter().filter(|(_, r)| is_row(r));
        let queued = |r: &Record| self.parked_keys.contains_key(&row_key(r));
        // Own records never: this zone acknowledged them, and a read after a write sees it.
        let park = zone != self.zone && rows().any(|(_, r)| queued(r) || ahead(r, now_ms));
        for (seq, record) in unit {
            match record.op {
                Op::Put | Op::Delete | Op::Answer => {
                    self.list(zone, *seq, record, out);
                    if park {
                        self.park(Parked { zone, seq: *seq, unit: unit[0].0, record: record.clone() }, out);
                    } else {
                        self.row(zone, *seq, record, out);
                    }
                }
                Op::Fence => self.fence(zone, *seq, record, out)?,
                Op::Marker | Op::Gap => {}
            }
        }
        Ok(())
    }

    fn park(&mut self, parked: Parked, out: &mut Changes) {
        *self.parked_keys.entry(row_key(&parked.record)).or_default() += 1;
        self.state.parked.push(parked.clone());
        out.list.push(Change::Park(parked));
    }

    fn row(&self, zone: Zone, seq: u64, record: &Record, out: &mut Changes) {
        let (table, key) = (record.table.clone(), record.key.clone());
        out.list.push(Change::Row { table, key, row: self.row_of(zone, seq, record) });
    }

    fn row_of(&self, zone: Zone, seq: u64, record: &Record) -> Row {
        let version = Version { owner_epoch: record.owner_epoch, hlc: record.hlc, zone, stream: self.stream };
        let (deleted, value) = (record.op == Op::Delete, record.value.clone());
        Row { version, seq, shard: record.shard, deleted, value }
    }

    fn fence(&mut self, zone: Zone, seq: u64, record: &Record, out: &mut Changes) -> Result<(), Unfit> {
        let positions = get_positions(&record.value).ok_or(Unfit::Fence { zone, seq })?;
        let fence = Fence { epoch: record.owner_epoch, seq, positions };
        self.keep_fence(zone, record.shard, fence, out);
        Ok(())
    }

    /// Of a zone's FENCEs for a shard the highest counts, and of equal ones the first.
    fn keep_fence(&mut self, zone: Zone, shard: Shard, fence: Fence, out: &mut Changes) {
        let at = (zone, shard);
        if self.state.fences.get(&at).is_none_or(|known| known.epoch < fence.epoch) {
            self.state.fences.insert(at, fence.clone());
            out.list.push(Change::Fence(zone, shard, fence));
        }
    }

    /// Every tail record goes to the ledger, whether it wins or loses.
    fn list(&self, zone: Zone, seq: u64, record: &Record, out: &mut Changes) {
        let history = self.map.history(record.shard).filter(|_| is_row(record));
        if history.is_some_and(|h| h.is_tail(record.owner_epoch, zone, seq)) {
            let (table, key) = (record.table.clone(), record.key.clone());
            out.list.push(Change::List(Entry { table, key, row: self.row_of(zone, seq, record) }));
        }
    }

    /// The ownerships of a shard that began behind the map `known` with a cut of their own, if their cuts count here: a cut's positions are
    /// those of the shard's own stream.
    fn begun<'h>(
        &self,
        shard: Shard,
        history: &'h History,
        known: MapEpoch,
    ) -> impl Iterator<Item = &'h Ownership> + use<'h> {
        let own = stream_of(shard, self.streams) == self.stream;
        let entries = history.entries();
        let new = move |(at, e): &(usize, &Ownership)| {
            own && e.kind == Kind::Own && e.epoch > known && !is_back(&entries[..*at], e)
        };
        entries.iter().enumerate().filter(new).map(|(_, e)| e)
    }

    /// A new ownership's cut makes tail of what other zones' logs hold beyond it: of what is applied already, too.
    fn scan_beyond(&mut self, ownership: &Ownership) {
        for (zone, cut) in ownership.cut.iter().filter(|(zone, _)| Some(*zone) != ownership.owner) {
            let to = self.applied(zone);
            if to > cut {
                let scan = self.state.scans.entry(zone).or_insert(Scan { from: cut + 1, to });
                *scan = Scan { from: scan.from.min(cut + 1), to };
            }
        }
    }

    fn parked_shards(&self) -> BTreeSet<Shard> {
        self.state.parked.iter().map(|p| p.record.shard).collect()
    }

    fn is_parked(&self, shard: Shard) -> bool {
        self.state.parked.iter().any(|p| p.record.shard == shard)
    }
}

/// Is it an abort: the shard back at its owner, with the cut of before? Nobody else has written meanwhile, so all that is tail by it was
/// tail before; and what that cut once had looked through may have been let go since.
fn is_back(before: &[Ownership], ownership: &Ownership) -> bool {
    let last = before.iter().rev().find(|e| e.kind == Kind::Own);
    last.is_some_and(|last| last.owner == ownership.owner && last.cut == ownership.cut)
}

fn is_row(record: &Record) -> bool {
    matches!(record.op, Op::Put | Op::Delete | Op::Answer)
}

fn ahead(record: &Record, now_ms: u64) -> bool {
    record.hlc.ms() > now_ms.saturating_add(AHEAD_MAX_MS)
}

fn row_key(record: &Record) -> (Bytes, Bytes) {
    (record.table.clone(), record.key.clone())
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
