//! Tombstones that may go, and the conflict ledger as people ask for it.

use super::{End, Keeper, Kept};
use crate::store::{Entry, RESOLVED, Row, Store, conflict_key};
use bytes::Bytes;
use shardmap::{Positions, Zone};

/// How many tombstones are looked at in one job; reads wait behind it.
const COLLECT_MOST: usize = 1000;

/// What is asked of a stream's ledger.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Entries behind this one, by (zone, seq); `None`: from the first.
    pub after: Option<(Zone, u64)>,
    /// So many of them.
    pub most: usize,
}

/// An entry of the ledger beside what became of its row.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// What was written on the wrong side of a change of owner.
    pub listed: Entry,
    /// The row now; `None`: it is gone, and its tombstone too.
    pub now: Option<Row>,
    /// What an operator has settled (`RESOLVED`).
    pub resolved: Option<Bytes>,
}

impl Keeper {
    /// Drops tombstones that may go; are there more to look at?
    pub(super) fn collect(&mut self, stream: u32, everywhere: &Positions) -> Result<bool, End> {
        let at = self.at(stream)?;
        let mut more = false;
        for (zone, seq) in everywhere.iter() {
            let from = self.kept[at].looked.get(&zone).copied().unwrap_or(0);
            let found = self.kept[at].tombstones(zone, from, seq)?;
            // What stays is looked at again in the next round, from the first.
            let next = (found.len() == COLLECT_MOST).then(|| found.last().map_or(0, |(.., row)| row.seq + 1));
            more |= next.is_some();
            self.kept[at].looked.insert(zone, next.unwrap_or(0));
            let changes = self.kept[at].applier.collect(&found, everywhere);
            self.commit(at, &changes)?;
            self.collected += changes.list.len() as u64;
        }
        Ok(more)
    }

    /// Entries of a stream's ledger, each with its row as it is now.
    pub(super) fn conflicts(&self, stream: u32, asked: Asked) -> Result<Vec<Conflict>, String> {
        let store = &self.kept[self.at(stream)?].store;
        let listed = store.ledger_from(asked.after, asked.most).map_err(|e| e.to_string())?;
        let row = |table: &[u8], key: &[u8]| store.row(table, key).map_err(|e| e.to_string());
        listed
            .into_iter()
            .map(|listed| {
                let now = row(&listed.table, &listed.key)?;
                let key = conflict_key(listed.row.version.zone, listed.row.seq);
                let resolved = row(RESOLVED, &key)?.filter(|r| !r.deleted).map(|r| r.value);
                Ok(Conflict { listed, now, resolved })
            })
            .collect()
    }
}

impl Kept {
    fn tombstones(&self, zone: Zone, from: u64, to: u64) -> Result<Vec<(Bytes, Bytes, Row)>, String> {
        let mut found = vec![];
        let keep = &mut |table: &[u8], key: &[u8], row: &Row| {
            found.push((Bytes::copy_from_slice(table), Bytes::copy_from_slice(key), row.clone()));
        };
        if from <= to {
            self.store.tombstones(zone, from..=to, COLLECT_MOST, keep).map_err(|e| e.to_string())?;
        }
        Ok(found)
    }
}
