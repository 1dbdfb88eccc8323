//! What must hold: judged from the logs and the GZS's maps, never from what the machines say of themselves.

use crate::disk::{Blocks, last_seq};
use crate::world::{Fail, World};
use crate::zone::{Node, SimMap, is_row};
use bytes::Bytes;
use replog::store::Store;
use replog::{Hlc, Op, Record};
use shardmap::ownership::Kind;
use shardmap::{OwnerEpoch, Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A write that a client was told is durable.
pub struct Acked {
    pub zone: Zone,
    pub seq: u64,
    pub token: u64,
    pub key: Bytes,
    /// Its client asked that one more zone have it.
    pub remote: bool,
}

/// A write: its shard's ownerships have one writer each, and a writer's clock never repeats itself.
type Name = (Shard, OwnerEpoch, Hlc);

/// What an all-knowing observer writes down.
#[derive(Default)]
pub struct Truth {
    tokens: u64,
    /// Its token, its zone, its seq.
    named: BTreeMap<Name, (u64, Zone, u64)>,
    pub acked: Vec<Acked>,
    /// Acknowledged writes that went with a zone's disk, and that no survivor had.
    pub gone: std::cell::Cell<usize>,
    /// By token: the tokens of its key that its writer knew.
    bases: BTreeMap<u64, BTreeSet<u64>>,
    pub losses: bool,
}

fn name(record: &Record) -> Name {
    (record.shard, record.owner_epoch, record.hlc)
}

/// What a zone knew of a row when it wrote it.
pub struct Known {
    tokens: BTreeSet<u64>,
    /// The newest version of it, and whether that deleted it.
    newest: Option<(Name, bool)>,
}

impl Truth {
    fn token(&self, record: &Record) -> u64 {
        self.named[&name(record)].0
    }

    /// Names a write that is about to be judged.
    pub fn name(&mut self, record: &Record, token: u64, zone: Zone, seq: u64) {
        self.named.insert(name(record), (token, zone, seq));
    }

    pub fn next_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// The tokens of a key that a zone knows, and the newest of its records.
    pub fn known(&self, node: &Node, key: &Bytes) -> Known {
        let applied = node.applied_records();
        let all = applied.iter().map(|(_, r)| r).chain(node.own_records());
        let of_key: Vec<&Record> = all.filter(|r| is_row(r) && r.key == key).collect();
        // What a snapshot has brought of other zones' logs than its own is in the store alone.
        let row = node.disk.store.row(b"t", key).expect("memory");
        let stored = row.map(|row| ((row.shard, row.version.owner_epoch, row.version.hlc), row.deleted));
        let names = of_key.iter().map(|r| (name(r), r.op == Op::Delete)).chain(stored);
        let newest = names.clone().max_by_key(|((_, owner_epoch, hlc), _)| (*owner_epoch, *hlc));
        Known { tokens: names.map(|(name, _)| self.named[&name].0).collect(), newest }
    }

    /// A write was accepted: was it legal?
    pub fn appended(
        &mut self,
        node: &Node,
        newest: &Arc<SimMap>,
        record: &Record,
        known: Known,
        everyone: impl Fn(Zone, u64) -> bool,
    ) -> Result<(), Fail> {
        let zone = node.id;
        let begun = newest.shards[&record.shard].entries().iter();
        let begun = begun.filter(|e| e.kind == Kind::Own && e.owner_epoch == record.owner_epoch).map(|e| e.owner);
        if begun.collect::<Vec<_>>() != [Some(zone)] {
            return Err(Fail(format!("1: {zone} writes at owner epoch {}, which is another's", record.owner_epoch)));
        }
        let fenced = node
            .own_records()
            .any(|r| r.op == Op::Fence && r.shard == record.shard && r.owner_epoch > record.owner_epoch);
        if fenced {
            return Err(Fail(format!("7: {zone} writes shard {} beyond its own FENCE", record.shard)));
        }
        let stored = &node.live.as_ref().expect("it wrote").gate;
        let history = stored.map().history(record.shard).expect("a shard of the map");
        if history.view().owner != Some(zone) {
            return Err(Fail(format!("7: {zone} writes shard {}, which it knows it lost", record.shard)));
        }
        let Known { tokens: base, newest } = known;
        let highest = newest.map(|((_, owner_epoch, _), _)| owner_epoch);
        if highest.is_some_and(|h| h > record.owner_epoch) {
            return Err(Fail("3: an acknowledged write loses to a row that its zone held".into()));
        }
        let fence = |lost| fence_applied(node, lost, record.shard);
        // A row that was deleted, as everyone knew, is a new row.
        let deleted = newest.filter(|(_, deleted)| *deleted).map(|(name, _)| self.named[&name]);
        let free = deleted.is_some_and(|(_, zone, seq)| everyone(zone, seq));
        if !free && highest.is_some_and(|h| history.locked(zone, h, fence)) {
            return Err(Fail(format!("5: {zone} writes a locked row of shard {}", record.shard)));
        }
        let token = self.token(record);
        self.bases.insert(token, base);
        Ok(())
    }
}

/// The highest FENCE of `lost` that `node` has applied with nothing of the shard parked, from the logs.
fn fence_applied(node: &Node, lost: Zone, shard: Shard) -> OwnerEpoch {
    let parked = node.disk.store.state().unwrap().parked.iter().any(|p| p.record.shard == shard);
    let applied = node.applied_records();
    let of = applied.iter().filter(|(z, r)| *z == lost && r.op == Op::Fence && r.shard == shard && !parked);
    of.map(|(_, r)| r.owner_epoch).max().unwrap_or_default()
}

impl World {
    /// All is healed and quiet.
    pub fn check(&self) -> Result<(), Fail> {
        let fail = |text: String| Err(Fail(text));
        for (z, node) in self.alive() {
            for o in 0..self.zones {
                let (mine, whole) = (node.disk.logs[o].len(), self.log_of(o).len());
                let applied = node.disk.store.state().unwrap().applied.get(Zone(o as u8)).unwrap_or(0);
                if mine != whole || applied != last_seq(self.log_of(o)) {
                    return fail(format!("{z} has {mine} of {o}'s {whole} batches, applied up to {applied}"));
                }
            }
            if node.disk.store.state().unwrap().parked.len() + node.live.as_ref().unwrap().collect.len() > 0 {
                return fail(format!("{z} is not quiet"));
            }
        }
        // What nobody could look through is what an operator was told of: a volume was full, and a take-over followed.
        let unseen = self.unseen();
        if !unseen.is_empty() && !self.left_behind {
            return fail(format!("10: {unseen:?} could not be looked through"));
        }
        let copies: Vec<_> = self.alive().map(|(_, n)| n.disk.store.digests().unwrap()).collect();
        if copies.iter().any(|c| c.rows != copies[0].rows) {
            return fail("2: rows differ".into());
        }
        let ledgers: Vec<_> = self.alive().map(|(_, n)| n.disk.store.listed()).collect();
        if unseen.is_empty() && copies.iter().any(|c| c.ledger != copies[0].ledger) {
            return fail(format!("2: ledgers differ: {ledgers:?}"));
        }
        if !self.truth.losses && !ledgers[0].is_empty() {
            return fail("4: planned moves alone, and the ledger is not empty".into());
        }
        self.check_acknowledged(&ledgers[0])?;
        self.check_tombstones()?;
        self.check_shards()
    }

    /// All that is left of a zone's log: its own, or the longest mirror of one whose disk is gone.
    fn log_of(&self, zone: usize) -> &Blocks {
        let copies = self.alive().map(|(_, n)| &n.disk.logs[zone]);
        if self.destroyed[zone] {
            copies.max_by_key(|l| l.len()).expect("a zone is alive")
        } else {
            &self.nodes[zone].disk.logs[zone]
        }
    }

    /// Once everyone has everything, no tombstone is needed.
    fn check_tombstones(&self) -> Result<(), Fail> {
        for (z, node) in self.alive().filter(|_| !self.destroyed.contains(&true)) {
            let mut left = 0;
            node.disk.store.rows(&mut |_, _, row| left += u64::from(row.deleted)).unwrap();
            if left > 0 {
                return Err(Fail(format!("8: {left} tombstones stay at {z} for ever")));
            }
        }
        Ok(())
    }

    fn check_acknowledged(&self, ledger: &BTreeSet<(Zone, u64)>) -> Result<(), Fail> {
        let unseen = self.unseen();
        let mut later: BTreeSet<u64> = BTreeSet::new();
        for zone in 0..self.zones {
            let rows = self.log_of(zone).iter().flat_map(|b| &b.records).filter(|(_, r)| is_row(r));
            later.extend(rows.flat_map(|(_, r)| &self.truth.bases[&self.truth.token(r)]));
        }
        let (_, any) = self.alive().next().expect("a zone is alive");
        for a in &self.truth.acked {
            let blocks = self.log_of(usize::from(a.zone.0));
            if self.destroyed[usize::from(a.zone.0)] && a.seq > last_seq(blocks) {
                if a.remote {
                    return Err(Fail(format!(
                        "9: write {} was confirmed by another zone, and no survivor has it",
                        a.token
                    )));
                }
                self.truth.gone.set(self.truth.gone.get() + 1);
                continue;
            }
            let held = blocks.iter().flat_map(|b| &b.records).find(|(seq, _)| *seq == a.seq);
            if held.is_none_or(|(_, r)| !is_row(r) || self.truth.token(r) != a.token) {
                return Err(Fail(format!("3: acknowledged write {} is not in {}'s log", a.token, a.zone)));
            }
            let deletes = held.is_some_and(|(_, r)| r.op == Op::Delete);
            let row = any.disk.store.row(b"t", &a.key).unwrap();
            // A row that is gone is what a delete leaves to be seen.
            let visible = row.map_or(deletes, |row| (row.version.zone, row.seq) == (a.zone, a.seq));
            let unseen = unseen.iter().any(|(zone, s)| *zone == a.zone && (s.from..=s.to).contains(&a.seq));
            if !visible && !later.contains(&a.token) && !ledger.contains(&(a.zone, a.seq)) && !unseen {
                return Err(Fail(format!("3: acknowledged write {} is silently lost", a.token)));
            }
        }
        Ok(())
    }

    /// Every operation has ended, every owner writes, every lock is open.
    fn check_shards(&self) -> Result<(), Fail> {
        let newest = self.maps.last().expect("there is one");
        for (shard, history) in &newest.shards {
            let Some(owner) = history.view().owner.filter(|_| history.view().kind != Kind::Moving) else {
                return Err(Fail(format!("6: shard {shard} is stuck: {:?}", history.view().kind)));
            };
            let node = &self.nodes[usize::from(owner.0)];
            let own = node.own_records().filter(|r| r.op == Op::Fence && r.shard == *shard);
            let own = own.map(|r| r.owner_epoch).max().unwrap_or_default();
            let gate = &node.live.as_ref().expect("healed").gate;
            if gate.is_read_only() || history.may_write(owner, own, false).is_err() {
                return Err(Fail(format!("6: the owner of shard {shard} cannot write")));
            }
            if history.locked(owner, OwnerEpoch(0), |lost| fence_applied(node, lost, *shard)) {
                return Err(Fail(format!("5: a lock of shard {shard} never opens")));
            }
        }
        Ok(())
    }
}
