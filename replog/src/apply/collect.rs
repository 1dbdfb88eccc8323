//! Which tombstones nobody needs any more.
//!
//! A tombstone keeps an older write of its row from bringing the row back. It may go from this zone's store when
//!
//! - every zone has applied the delete, so that no snapshot and no log lacks it (`everywhere`), and
//! - no older write of the row can still come: what the same ownership wrote came before it in the same log, and every other zone that
//!   owned the shard earlier has ended that ownership by a FENCE that is applied here, with nothing of the shard parked, and
//! - no take-over of the shard is unresolved: the row's owner epoch decides whether it is locked.
//!
//! Age plays no part: a zone may be away for as long as it likes.

use super::Applier;
use crate::store::{Change, Changes, Row};
use bytes::Bytes;
use shardmap::ownership::{Entry as Ownership, Kind};
use shardmap::{OwnerEpoch, Positions, Shard, Zone};
use std::collections::BTreeMap;

impl Applier {
    /// Drops those of `tombstones` (table, key, row) that may go; `everywhere` is, for each zone's log, what every zone has applied of it.
    pub fn collect(&self, tombstones: &[(Bytes, Bytes, Row)], everywhere: &Positions) -> Changes {
        let fences: BTreeMap<(Zone, Shard), OwnerEpoch> = self.fences().map(|(z, s, e)| ((z, s), e)).collect();
        let fence = |zone, shard| fences.get(&(zone, shard)).copied().unwrap_or_default();
        let (parked, mut out) = (self.parked_shards(), Changes::default());
        for (table, key, row) in tombstones {
            let known = everywhere.get(row.version.zone).is_some_and(|seq| row.seq <= seq);
            if row.deleted && known && !parked.contains(&row.shard) && self.is_last(row, &fence) {
                let (table, key) = (table.clone(), key.clone());
                out.list.push(Change::Drop { table, key, version: row.version });
            }
        }
        out
    }

    /// Can nothing older of the shard come any more?
    fn is_last(&self, row: &Row, fence: &impl Fn(Zone, Shard) -> OwnerEpoch) -> bool {
        let Some(history) = self.map.history(row.shard) else { return false };
        let version = row.version;
        let entries = history.entries().iter();
        let mut earlier = entries.filter(|e| e.kind == Kind::Own && e.owner_epoch < version.owner_epoch);
        let ended = |e: &Ownership| e.owner.is_none_or(|o| o == version.zone || fence(o, row.shard) > e.owner_epoch);
        earlier.all(ended) && !history.locked(self.zone, version.owner_epoch, |lost| fence(lost, row.shard))
    }
}
