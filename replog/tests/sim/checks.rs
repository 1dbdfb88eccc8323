//! What must hold: judged from the logs and the GZS's maps, never from what the machines say of themselves.

use crate::world::{Fail, World};
use crate::zone::{Node, SimMap};
use bytes::Bytes;
use replog::store::Store;
use replog::{Op, Record};
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
}

/// What an all-knowing observer writes down.
#[derive(Default)]
pub struct Truth {
    tokens: u64,
    pub acked: Vec<Acked>,
    /// By token: the tokens of its key that its writer knew.
    bases: BTreeMap<u64, BTreeSet<u64>>,
    pub losses: bool,
}

fn token(record: &Record) -> u64 {
    u64::from_le_bytes(record.value[..].try_into().expect("a token"))
}

impl Truth {
    pub fn next_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// The tokens of a key that a zone knows, and the highest owner epoch among them.
    pub fn known(&self, node: &Node, key: &Bytes) -> (BTreeSet<u64>, Option<OwnerEpoch>) {
        let applied = node.applied_records();
        let all = applied.iter().map(|(_, r)| r).chain(node.own_records());
        let of_key: Vec<&Record> = all.filter(|r| r.op != Op::Fence && r.key == key).collect();
        (of_key.iter().map(|r| token(r)).collect(), of_key.iter().map(|r| r.owner_epoch).max())
    }

    /// A write was accepted: was it legal?
    pub fn appended(
        &mut self,
        node: &Node,
        newest: &Arc<SimMap>,
        record: &Record,
        known: (BTreeSet<u64>, Option<OwnerEpoch>),
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
        let (base, highest) = known;
        if highest.is_some_and(|h| h > record.owner_epoch) {
            return Err(Fail("3: an acknowledged write loses to a row that its zone held".into()));
        }
        let fence = |lost| fence_applied(node, lost, record.shard);
        if highest.is_some_and(|h| history.locked(zone, h, fence)) {
            return Err(Fail(format!("5: {zone} writes a locked row of shard {}", record.shard)));
        }
        self.bases.insert(token(record), base);
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
        for (z, node) in self.nodes.iter().enumerate() {
            for (o, other) in self.nodes.iter().enumerate() {
                let (mine, whole) = (node.disk.logs[o].len(), other.disk.logs[o].len());
                let applied = node.disk.store.state().unwrap().applied.get(Zone(o as u8)).unwrap_or(0);
                if mine != whole || applied != crate::zone::last_seq(&other.disk.logs[o]) {
                    return fail(format!("{z} has {mine} of {o}'s {whole} batches, applied up to {applied}"));
                }
            }
            if node.disk.store.state().unwrap().parked.len() + node.live.as_ref().unwrap().collect.len() > 0 {
                return fail(format!("{z} is not quiet"));
            }
        }
        let copies: Vec<_> = self.nodes.iter().map(|n| n.disk.store.digests().unwrap()).collect();
        if copies.iter().any(|c| c.rows != copies[0].rows) {
            return fail("2: rows differ".into());
        }
        let ledgers: Vec<_> = self.nodes.iter().map(|n| n.disk.store.listed()).collect();
        if copies.iter().any(|c| c.ledger != copies[0].ledger) {
            return fail(format!("2: ledgers differ: {ledgers:?}"));
        }
        if !self.truth.losses && !ledgers[0].is_empty() {
            return fail("4: planned moves alone, and the ledger is not empty".into());
        }
        self.check_acknowledged(&ledgers[0])?;
        self.check_shards()
    }

    fn check_acknowledged(&self, ledger: &BTreeSet<(Zone, u64)>) -> Result<(), Fail> {
        let mut later: BTreeSet<u64> = BTreeSet::new();
        for node in &self.nodes {
            let rows = node.own_records().filter(|r| r.op != Op::Fence);
            later.extend(rows.flat_map(|r| &self.truth.bases[&token(r)]));
        }
        for a in &self.truth.acked {
            let blocks = &self.nodes[usize::from(a.zone.0)].disk.logs[usize::from(a.zone.0)];
            let held = blocks.iter().flat_map(|b| &b.records).find(|(seq, _)| *seq == a.seq);
            if held.is_none_or(|(_, r)| r.op == Op::Fence || token(r) != a.token) {
                return Err(Fail(format!("3: acknowledged write {} is not in {}'s log", a.token, a.zone)));
            }
            let row = self.nodes[0].disk.store.row(b"t", &a.key).unwrap().expect("written");
            let visible = (row.version.zone, row.seq) == (a.zone, a.seq);
            if !visible && !later.contains(&a.token) && !ledger.contains(&(a.zone, a.seq)) {
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
