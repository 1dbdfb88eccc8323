//! Decides for a log core, before the append, whether a write may be: the only place that can refuse one for good.
//!
//! ```text
//! ask ──▶ map new enough? ──▶ owner, no FENCE, not read-only? ──▶ lease? ──▶ row not locked? ──▶ Append(record)
//!           WaitMap             NotOwner, ReadOnly                WaitLease,   NeedRow, Locked
//!                                                                 Unleased
//! ```
//!
//! One gate serves all shards of one stream. It never touches the store or the log: what it needs of them (a row's owner
//! epoch, applied positions) is handed in, and the records it returns (writes, FENCEs) must be appended in the order
//! in which they were returned. Shards from 1024 on are global services: written under a lease alone, which is asked for before the append
//! here, and again before the acknowledgement (`lease_stands`).

mod commit;

pub use commit::{Found, Known, Ruling};

use crate::lease::{Lease, Leased, Leases, Now};
use crate::limits::{KEY_MAX, TABLE_MAX, VALUE_MAX};
use crate::mint::Mint;
use crate::owners::{Owners, put_positions, stream_of};
use crate::port::Refused;
use crate::stand::{May, Stand};
use crate::{Hlc, Op, Record};
use bytes::Bytes;
use shardmap::map::SHARDS_ALL;
use shardmap::ownership::{History, Kind, Refusal};
use shardmap::{MapEpoch, OwnerEpoch, Positions, Shard, Zone};
use std::collections::HashMap;
use std::sync::Arc;

/// One write, as a router asked for it.
#[derive(Clone, Debug)]
pub struct Write {
    /// The shard that the router found.
    pub shard: Shard,
    /// The map it found it in.
    pub map_epoch: MapEpoch,
    /// The table.
    pub table: Bytes,
    /// The row; `None`: mint an id.
    pub key: Option<Bytes>,
    /// The row's value; `None`: delete it.
    pub value: Option<Bytes>,
}

/// What the driver knows of the row that a write is about: the newest of the appended, not yet applied, and the store's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    /// It has not looked.
    Unknown,
    /// There is none.
    Absent,
    /// It was written, or deleted, under this ownership.
    At(OwnerEpoch),
}

/// What becomes of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Append this; acknowledge when durable.
    Append(Record),
    /// Look the row up and ask again: a take-over of this shard is unresolved.
    NeedRow,
    /// The router knows a newer map: ask again when it has been stored, or refuse as `Behind` after a limit.
    WaitMap,
    /// Its ownership of the global service is new and no lease has come yet: ask again when one has, or refuse like this after a limit.
    WaitLease(Refused),
    /// Nothing is done.
    Refused(Refused),
}

/// What a gate starts from: everything that open has found.
#[derive(Debug)]
pub struct Start {
    /// This zone.
    pub zone: Zone,
    /// The stream, below `streams`.
    pub stream: u32,
    /// The number of streams of every zone.
    pub streams: u32,
    /// The newest map that is stored durably.
    pub map: Arc<dyn Owners>,
    /// Own FENCEs: those that the store has applied, and those in the log beyond its applied position.
    pub fences: Vec<(Shard, OwnerEpoch)>,
    /// FENCEs of other zones that count as applied.
    pub fences_applied: Vec<(Zone, Shard, OwnerEpoch)>,
    /// The highest HLC in the log.
    pub newest: Hlc,
}

/// The gate of one stream.
#[derive(Debug)]
pub struct Gate {
    zone: Zone,
    stream: u32,
    streams: u32,
    map: Arc<dyn Owners>,
    /// The highest FENCE of this zone, appended or not yet durable: it bars writes from the moment it was decided.
    fences: HashMap<Shard, OwnerEpoch>,
    /// What opens locks.
    fences_applied: HashMap<(Zone, Shard), OwnerEpoch>,
    /// True from every start until the zone knows what it still owns.
    read_only: bool,
    /// Of global services.
    leases: Leases,
    mint: Mint,
    /// How long first answers to idempotency keys are kept.
    answers_kept_ms: u64,
}

/// A map older than the one that is stored: nobody goes back an epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("map {offered} offered, map {stored} is stored: nobody goes back an epoch")]
pub struct Older {
    /// The stored map's epoch.
    pub stored: MapEpoch,
    /// The other's.
    pub offered: MapEpoch,
}

impl Gate {
    /// A gate after a start of the log: read-only, and with FENCEs and map as they were. `fences_due` must be appended first.
    pub fn new(start: Start) -> Gate {
        let mut gate = Gate {
            zone: start.zone,
            stream: start.stream,
            streams: start.streams,
            map: start.map,
            fences: HashMap::new(),
            fences_applied: HashMap::new(),
            read_only: true,
            leases: Leases::default(),
            mint: Mint::above(start.newest),
            answers_kept_ms: crate::commit::ANSWER_KEPT_MS,
        };
        for (shard, epoch) in start.fences {
            gate.on_own_fence(shard, epoch);
        }
        for (zone, shard, epoch) in start.fences_applied {
            gate.on_fence_applied(zone, shard, epoch);
        }
        gate
    }

    /// Decides one write. Costs no allocation unless it mints.
    pub fn write(&mut self, ask: &Write, row: Row, now: impl Into<Now>) -> Decision {
        let now = now.into();
        if let Some(why) = self.malformed(ask) {
            return Decision::Refused(Refused::Invalid(why.into()));
        }
        if ask.map_epoch > self.map.epoch() {
            return Decision::WaitMap;
        }
        let owner_epoch = match self.owned(ask.shard) {
            Ok(epoch) => epoch,
            Err(why) => return Decision::Refused(why),
        };
        match self.unleased(ask.shard, owner_epoch, now) {
            Some((why, true)) => return Decision::WaitLease(why),
            Some((why, false)) => return Decision::Refused(why),
            None => {}
        }
        if ask.key.is_some() && self.locks(ask.shard, OwnerEpoch(0)) {
            match row {
                Row::Unknown => return Decision::NeedRow,
                Row::At(epoch) if self.locks(ask.shard, epoch) => return Decision::Refused(Refused::Locked),
                Row::At(_) | Row::Absent => {}
            }
        }
        self.record(ask, owner_epoch, now.wall_ms)
    }

    /// May a row be read here? `None`: yes. Of a global service at its owner only under a lease: without one another zone may have
    /// taken over and written.
    pub fn read(&self, shard: Shard, map_epoch: MapEpoch, local: bool, now: impl Into<Now>) -> Option<Decision> {
        if stream_of(shard, self.streams) != self.stream {
            return Some(Decision::Refused(Refused::Invalid("the shard belongs to another stream".into())));
        }
        if local {
            return None;
        }
        if map_epoch > self.map.epoch() {
            return Some(Decision::WaitMap);
        }
        let history = self.map.history(shard);
        let owner = history.and_then(|h| h.view().owner);
        if owner != Some(self.zone) {
            return Some(Decision::Refused(self.not_owner(owner)));
        }
        let history = history.filter(|_| shard.is_global())?;
        let owner_epoch = history.view().owner_epoch;
        // Behind its own FENCE another zone may write, whatever the map of who asks says, and however long the lease runs.
        if self.own_fence(shard) > owner_epoch {
            return Some(Decision::Refused(self.not_owner(fenced_to(history))));
        }
        let (why, waits) = self.unleased(shard, owner_epoch, now.into())?;
        Some(if waits { Decision::WaitLease(why) } else { Decision::Refused(why) })
    }

    /// A newer map that is **stored durably**: returns the FENCEs to append, before anything else is appended. `applied` is
    /// what this zone has applied of the other zones' logs of this stream.
    pub fn on_map(&mut self, map: Arc<dyn Owners>, applied: &Positions, now_ms: u64) -> Result<Vec<Record>, Older> {
        if map.epoch() < self.map.epoch() {
            return Err(Older { stored: self.map.epoch(), offered: map.epoch() });
        }
        self.map = map;
        Ok(self.fences_due(applied, now_ms))
    }

    /// The FENCEs that the present map asks for and that do not stand yet.
    pub fn fences_due(&mut self, applied: &Positions, now_ms: u64) -> Vec<Record> {
        let (map, mut due) = (Arc::clone(&self.map), vec![]);
        map.each(&mut |shard, history| {
            if stream_of(shard, self.streams) == self.stream
                && let Some(epoch) = history.fence_due(self.zone, self.own_fence(shard))
            {
                due.push((shard, epoch));
            }
        });
        let mut others = applied.clone();
        others.clear(self.zone);
        let value = put_positions(&others);
        due.into_iter()
            .map(|(shard, owner_epoch)| {
                self.on_own_fence(shard, owner_epoch);
                Record {
                    op: Op::Fence,
                    transaction: 0,
                    shard,
                    owner_epoch,
                    hlc: self.mint.tick(now_ms),
                    table: Bytes::new(),
                    key: Bytes::new(),
                    value: value.clone(),
                }
            })
            .collect()
    }

    /// A FENCE of this zone that is in its log.
    pub fn on_own_fence(&mut self, shard: Shard, epoch: OwnerEpoch) {
        let known = self.fences.entry(shard).or_default();
        *known = epoch.max(*known);
    }

    /// The highest FENCE of `zone` for `shard` that counts as applied here, as the applier reports it: 0 while something of
    /// the shard is parked.
    pub fn on_fence_applied(&mut self, zone: Zone, shard: Shard, epoch: OwnerEpoch) {
        self.fences_applied.insert((zone, shard), epoch);
    }

    /// A lease of a global service was granted.
    pub fn on_lease(&mut self, lease: Lease) {
        self.leases.on_lease(lease);
    }

    /// Is what was written under this ownership still covered, now that it is about to be acknowledged? Else nobody can say whether
    /// the next owner knew of it.
    pub fn lease_stands(&self, shard: Shard, owner_epoch: OwnerEpoch, now: impl Into<Now>) -> bool {
        self.unleased(shard, owner_epoch, now.into()).is_none()
    }

    /// Why a global service may not be written under this ownership, for want of a lease; true: one may be on its way.
    fn unleased(&self, shard: Shard, owner_epoch: OwnerEpoch, now: Now) -> Option<(Refused, bool)> {
        if !shard.is_global() {
            return None;
        }
        match self.leases.of(shard, owner_epoch, now.steady_ms) {
            Leased::For { .. } => None,
            Leased::Ended { ago_ms } => Some((Refused::Unleased { shard, ended_ms: Some(ago_ms) }, false)),
            Leased::Never => Some((Refused::Unleased { shard, ended_ms: None }, true)),
        }
    }

    /// The GZS has answered since this start that its map is `epoch`; ends read-only if that map is stored here.
    pub fn on_gzs(&mut self, epoch: MapEpoch) {
        self.read_only &= self.map.epoch() < epoch;
    }

    /// The links that are live at this moment, each with the map epoch that its zone answered **since this start**; ends
    /// read-only if they lead to every zone that could own a shard of this stream and none has a newer map.
    pub fn on_links(&mut self, live: &[(Zone, MapEpoch)]) {
        let mut sure = live.iter().all(|(_, epoch)| *epoch <= self.map.epoch());
        self.map.each(&mut |shard, history| {
            if stream_of(shard, self.streams) == self.stream {
                let zones = history.entries().iter().flat_map(|e| [e.owner, e.to, e.lost.map(|l| l.0)]);
                sure &= zones.flatten().all(|z| z == self.zone || live.iter().any(|(l, _)| *l == z));
            }
        });
        self.read_only &= !sure;
    }

    /// An operator's word (to be recorded by the caller); overrides neither a standing FENCE nor the stored map.
    pub fn start_alone(&mut self) {
        self.read_only = false;
    }

    /// Does the log refuse writes because it has restarted?
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The ownership under which `shard` may be written here now; `None`: it may not.
    pub fn writes(&self, shard: Shard, now: impl Into<Now>) -> Option<OwnerEpoch> {
        let (ours, now) = (stream_of(shard, self.streams) == self.stream, now.into());
        self.owned(shard).ok().filter(|epoch| ours && self.lease_stands(shard, *epoch, now))
    }

    /// How this zone stands to each shard of this stream. `is_fencing` says of which a FENCE is decided and not durable.
    pub fn stands(&self, now: impl Into<Now>, is_fencing: impl Fn(Shard) -> bool) -> Vec<Stand> {
        let (mut all, now) = (vec![], now.into());
        self.map.each(&mut |shard, history| {
            if stream_of(shard, self.streams) != self.stream {
                return;
            }
            let mut entries = history.entries().iter().rev();
            let mine = entries.find(|e| e.kind == Kind::Own && e.owner == Some(self.zone));
            let may = match history.may_write(self.zone, self.own_fence(shard), self.read_only) {
                Ok(epoch) if !self.lease_stands(shard, epoch, now) => May::Halted,
                Ok(_) => May::Writes,
                Err(Refusal::Fenced | Refusal::ReadOnly) => May::Halted,
                Err(Refusal::NotOwner(_)) if is_fencing(shard) => May::Halted,
                Err(Refusal::NotOwner(_)) => May::Nothing,
            };
            let v = history.view();
            let left_ms = match self.leases.of(shard, v.owner_epoch, now.steady_ms) {
                Leased::For { left_ms } if v.owner == Some(self.zone) => left_ms,
                Leased::For { .. } | Leased::Ended { .. } | Leased::Never => 0,
            };
            let own_epoch = mine.map(|e| e.owner_epoch).unwrap_or_default();
            all.push(Stand {
                shard,
                kind: v.kind,
                owner: v.owner,
                owner_epoch: v.owner_epoch,
                to: v.to,
                may,
                own_epoch,
                lease_ms: u32::try_from(left_ms).unwrap_or(u32::MAX),
            });
        });
        all
    }

    /// The map that the gate decides by.
    pub fn map(&self) -> &Arc<dyn Owners> {
        &self.map
    }

    /// A snapshot has brought records up to this time: what is written here from now on is later.
    pub fn observe(&mut self, newest: Hlc) {
        self.mint.observe(newest);
    }

    /// The time of a record that the driver appends by itself (a marker, a gap).
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.mint.tick(now_ms)
    }

    /// The ownership under which a shard is written here now, or why it may not be.
    fn owned(&self, shard: Shard) -> Result<OwnerEpoch, Refused> {
        let Some(history) = self.map.history(shard) else { return Err(self.not_owner(None)) };
        history.may_write(self.zone, self.own_fence(shard), self.read_only).map_err(|why| match why {
            Refusal::NotOwner(owner) => self.not_owner(owner),
            Refusal::Fenced => self.not_owner(fenced_to(history)),
            Refusal::ReadOnly => Refused::ReadOnly,
        })
    }

    fn record(&mut self, ask: &Write, owner_epoch: OwnerEpoch, now_ms: u64) -> Decision {
        let record = self.row_record(ask, owner_epoch, now_ms);
        record.map_or(Decision::Refused(Refused::Busy), Decision::Append)
    }

    /// `None`: ids are asked for faster than they can be minted.
    fn row_record(&mut self, ask: &Write, owner_epoch: OwnerEpoch, now_ms: u64) -> Option<Record> {
        let (key, hlc) = match &ask.key {
            Some(key) => (key.clone(), self.mint.tick(now_ms)),
            None => {
                let (id, hlc) = self.mint.id(ask.shard, self.zone, now_ms)?;
                (Bytes::from(id.0.to_string()), hlc)
            }
        };
        let op = if ask.value.is_some() { Op::Put } else { Op::Delete };
        let (table, value) = (ask.table.clone(), ask.value.clone().unwrap_or_default());
        Some(Record { op, transaction: 0, shard: ask.shard, owner_epoch, hlc, table, key, value })
    }

    fn malformed(&self, ask: &Write) -> Option<String> {
        let too_long = |what: &str, seen: usize, most: usize| {
            (seen > most).then(|| format!("{what} of {seen} bytes, at most {most}"))
        };
        if usize::from(ask.shard.0) >= SHARDS_ALL || stream_of(ask.shard, self.streams) != self.stream {
            return Some(format!("shard {} on stream {} of {}", ask.shard, self.stream, self.streams));
        }
        if ask.table.is_empty() || ask.key.as_ref().is_some_and(Bytes::is_empty) {
            return Some("an empty table or key".to_owned());
        }
        // An operator's word comes by control; a router lets no such table by.
        if ask.table.starts_with(b".") && ask.table != crate::store::RESOLVED {
            return Some("a table whose name begins with a point is the log's own".to_owned());
        }
        if ask.key.is_none() && ask.shard.is_global() {
            return Some("an id to be minted for a global service, whose shard is in no id; expected a key".to_owned());
        }
        if ask.key.is_none() && ask.value.is_none() {
            return Some("a delete without a key".to_owned());
        }
        too_long("table", ask.table.len(), TABLE_MAX)
            .or_else(|| too_long("key", ask.key.as_ref().map_or(0, Bytes::len), KEY_MAX))
            .or_else(|| too_long("value", ask.value.as_ref().map_or(0, Bytes::len), VALUE_MAX))
    }

    fn locks(&self, shard: Shard, row: OwnerEpoch) -> bool {
        let applied = |zone| self.fences_applied.get(&(zone, shard)).copied().unwrap_or_default();
        self.map.history(shard).is_some_and(|h| h.locked(self.zone, row, applied))
    }

    fn own_fence(&self, shard: Shard) -> OwnerEpoch {
        self.fences.get(&shard).copied().unwrap_or_default()
    }

    fn not_owner(&self, owner: Option<Zone>) -> Refused {
        Refused::NotOwner { map_epoch: self.map.epoch(), owner }
    }
}

/// Whom a fenced zone names: the target of the move if there is one; never itself.
fn fenced_to(history: &History) -> Option<Zone> {
    history.view().to
}

#[cfg(test)]
mod lease_tests;
#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
