//! A store in memory: for simulations. What it holds outlives those who use it, as a disk does.

use super::Store;
use crate::api::AuditView;
use crate::change::{Change, Grant, Held, Mark, Unstored};
use crate::op::Op;
use shardmap::Shard;
use shardmap::map::Map;
use std::collections::BTreeMap;

/// What is "on disk".
#[derive(Clone, Default, Debug)]
pub struct Memory {
    map: Option<Map>,
    ops: BTreeMap<u64, Op>,
    marks: BTreeMap<Shard, Mark>,
    grants: BTreeMap<Shard, Grant>,
    audit: Vec<AuditView>,
    digests: Vec<(u64, [u8; 32])>,
}

impl Store for Memory {
    fn load(&mut self) -> Result<Option<Held>, Unstored> {
        let Some(map) = self.map.clone() else { return Ok(None) };
        let ops = self.ops.values().cloned().collect();
        let marks = self.marks.iter().map(|(s, m)| (*s, *m)).collect();
        let grants = self.grants.iter().map(|(s, g)| (*s, *g)).collect();
        Ok(Some(Held { map, ops, marks, grants, digests: self.digests.clone() }))
    }

    fn adopt(&mut self, map: &Map, audit: &AuditView) -> Result<(), Unstored> {
        let holds = self.map.as_ref().map_or(0, |m| m.epoch().0);
        if map.epoch().0 <= holds {
            return Err(overtaken(format!("map {holds}"), format!("one older than {}", map.epoch())));
        }
        self.digests.push((map.epoch().0, map.digest()));
        self.map = Some(map.clone());
        self.audit.push(audit.clone());
        Ok(())
    }

    fn commit(&mut self, change: &Change) -> Result<(), Unstored> {
        let holds = self.map.as_ref().map_or(0, |m| m.epoch().0);
        if holds != change.from_epoch {
            return Err(overtaken(format!("map {holds}"), format!("map {}", change.from_epoch)));
        }
        for (shard, grant) in &change.grants {
            let revision = self.grants.get(shard).map_or(0, |g| g.revision);
            if revision + 1 != grant.revision {
                let of = |revision| format!("the grant of shard {shard} at revision {revision}");
                return Err(overtaken(of(revision), of(grant.revision.saturating_sub(1))));
            }
        }
        if let Some(op) = &change.op {
            let revision = self.ops.get(&op.id).map_or(0, |o| o.revision);
            if revision + 1 != op.revision {
                let of = |revision| format!("operation {} at revision {revision}", op.id);
                return Err(overtaken(of(revision), of(op.revision - 1)));
            }
            self.ops.insert(op.id, op.clone());
        }
        if let Some(map) = &change.map {
            self.digests.push((map.epoch().0, map.digest()));
            self.map = Some(map.clone());
        }
        self.grants.extend(change.grants.iter().copied());
        self.marks.extend(change.marks.iter().copied());
        self.audit.extend(change.audit.iter().cloned());
        Ok(())
    }

    fn audit(&mut self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored> {
        Ok(self.audit.iter().filter(|a| a.epoch > after).take(max).cloned().collect())
    }
}

fn overtaken(holds: String, expected: String) -> Unstored {
    Unstored::Overtaken { holds, expected }
}
