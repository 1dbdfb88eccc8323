//! How long other zones' changes took until they were durable, and visible, here: for each zone, and for each of its shards.

use crate::batch::Batch;
use crate::store::Change;
use hdrhistogram::Histogram;
use shardmap::{Shard, Zone};
use std::collections::BTreeMap;

/// Bounds of the histograms, in microseconds: up to an hour. To two digits, since each look at the figures copies them.
const MOST_US: u64 = 3_600_000_000;
const DIGITS: u8 = 2;

/// Nothing yet.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MOST_US, DIGITS).expect("these bounds are legal")
}

/// These batches of another zone became durable, or visible, here now.
pub(super) fn record<'b>(us: &mut Histogram<u64>, batches: impl Iterator<Item = &'b Batch>, now_ns: u64) {
    for batch in batches {
        us.saturating_record_n(now_ns.saturating_sub(batch.append_ns) / 1000, u64::from(batch.records));
    }
}

/// Of one zone's log, since the start.
#[derive(Clone, Debug)]
pub struct ZoneLag {
    /// Microseconds from the commit of a record there until it was visible here.
    pub us: Histogram<u64>,
    /// Each shard of which something was applied.
    pub shards: BTreeMap<Shard, ShardLag>,
}

/// Of one shard of a zone's log, since the start. Times are to the millisecond, and as good as the two zones' clocks agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardLag {
    /// Rows that were applied.
    pub rows: u64,
    /// Milliseconds from the write of the newest of them until it was visible here.
    pub last_ms: u64,
    /// The longest.
    pub max_ms: u64,
    /// When the newest was applied, by this zone's wall clock.
    pub applied_ms: u64,
}

impl Default for ZoneLag {
    fn default() -> ZoneLag {
        ZoneLag { us: histogram(), shards: BTreeMap::new() }
    }
}

impl ZoneLag {
    /// `batches` became visible now, and with them `changes`.
    pub(super) fn on_applied<'b>(
        &mut self,
        zone: Zone,
        batches: impl Iterator<Item = &'b Batch>,
        changes: &[Change],
        now_ns: u64,
    ) {
        record(&mut self.us, batches, now_ns);
        let now_ms = now_ns / 1_000_000;
        for change in changes {
            let Change::Row { row, .. } = change else { continue };
            if row.version.zone == zone {
                let lag = self.shards.entry(row.shard).or_default();
                let ms = now_ms.saturating_sub(row.version.hlc.ms());
                *lag = ShardLag { rows: lag.rows + 1, last_ms: ms, max_ms: lag.max_ms.max(ms), applied_ms: now_ms };
            }
        }
    }

    /// Those of another core, which has other streams, are added.
    pub fn add(&mut self, other: &ZoneLag) {
        self.us.add(&other.us).expect("all have the same bounds");
        self.shards.extend(&other.shards);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Row;
    use crate::{Hlc, Version};
    use bytes::Bytes;
    use shardmap::OwnerEpoch;

    #[test]
    fn each_shards_newest_and_longest_lag_are_known() {
        let change = |zone: u8, shard, ms| {
            let version = Version { owner_epoch: OwnerEpoch(1), hlc: Hlc::new(ms, 0), zone: Zone(zone), stream: 0 };
            let row = Row { version, seq: 1, shard: Shard(shard), deleted: false, value: Bytes::new() };
            Change::Row { table: Bytes::new(), key: Bytes::new(), row }
        };
        let (mut lag, ms) = (ZoneLag::default(), 1_000_000);
        let changes = [change(1, 5, 1000 - 70), change(1, 5, 1000 - 20), change(1, 6, 2000), change(2, 7, 1000)];
        lag.on_applied(Zone(1), [].iter(), &changes, 1000 * ms);
        lag.on_applied(Zone(1), [].iter(), &[change(1, 5, 1001)], 1010 * ms);
        let of = |rows, last_ms, max_ms, applied_ms| ShardLag { rows, last_ms, max_ms, applied_ms };
        let expected = [(Shard(5), of(3, 9, 70, 1010)), (Shard(6), of(1, 0, 0, 1000))];
        assert_eq!(lag.shards.into_iter().collect::<Vec<_>>(), expected, "a clock that is ahead is no lag");
    }
}
