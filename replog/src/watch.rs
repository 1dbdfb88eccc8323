//! Remembers what is appended to rows that somebody is looking up: the store does not know it yet, and the order of the log does.
//!
//! ```text
//! hold ──▶ wait until the store has all that was appended before ──▶ read it ──▶ judge by the newest of both, append ──▶ release
//!              every append in between is seen here ──────────────────────────────────┘
//! ```
//!
//! Only rows that somebody holds are remembered, so the memory is bounded by who is under way. It never waits and never reads.

use crate::Version;
use crate::commit::Seen;
use crate::record::{Op, Record};
use bytes::Bytes;
use shardmap::Zone;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Table and key.
pub type RowKey = (Bytes, Bytes);

/// The rows of one stream that somebody looks up.
#[derive(Debug)]
pub struct Watches {
    zone: Zone,
    stream: u32,
    rows: HashMap<RowKey, Watch>,
}

#[derive(Debug, Default)]
struct Watch {
    holders: u32,
    newest: Option<Latest>,
}

/// The newest record of a row since it is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Latest {
    /// What it makes of the row.
    pub seen: Seen,
    /// Its place.
    pub seq: u64,
    /// Its value.
    pub value: Bytes,
    /// How often the log had taken appends back by then.
    refusals: u64,
}

impl Watches {
    /// Nobody looks anything up.
    pub fn new(zone: Zone, stream: u32) -> Watches {
        Watches { zone, stream, rows: HashMap::new() }
    }

    /// Somebody looks these rows up from now on.
    pub fn hold(&mut self, rows: &[RowKey]) {
        for row in rows {
            self.rows.entry(row.clone()).or_default().holders += 1;
        }
    }

    /// Somebody who held these rows is done.
    pub fn release(&mut self, rows: &[RowKey]) {
        for row in rows {
            if let Entry::Occupied(mut held) = self.rows.entry(row.clone()) {
                held.get_mut().holders -= 1;
                if held.get().holders == 0 {
                    held.remove();
                }
            }
        }
    }

    /// Does nobody look anything up?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// `record` is appended at `seq`; `refusals` is how often the log has taken appends back so far.
    pub fn on_append(&mut self, seq: u64, record: &Record, refusals: u64) {
        if self.rows.is_empty() {
            return;
        }
        let (zone, stream) = (self.zone, self.stream);
        let Some(watch) = self.rows.get_mut(&(record.table.clone(), record.key.clone())) else { return };
        let version = Version { owner_epoch: record.owner_epoch, hlc: record.hlc, zone, stream };
        let seen = match record.op {
            Op::Put | Op::Answer => Seen::Row(version),
            Op::Delete => Seen::Gone(version),
            Op::Fence | Op::Marker | Op::Gap => return,
        };
        watch.newest = Some(Latest { seen, seq, value: record.value.clone(), refusals });
    }

    /// What was appended to a row last, since the first who holds it does. What the log may have taken back does not count:
    /// whoever held the row before that has to begin again.
    pub fn newest(&self, row: &RowKey, refusals: u64) -> Option<&Latest> {
        self.rows.get(row)?.newest.as_ref().filter(|l| l.refusals == refusals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hlc;
    use shardmap::{OwnerEpoch, Shard};

    fn row(key: &'static str) -> RowKey {
        (Bytes::from_static(b"t"), Bytes::from_static(key.as_bytes()))
    }

    fn record(op: Op, key: &'static str, hlc: u64) -> Record {
        let (table, key) = row(key);
        let (shard, owner_epoch) = (Shard(1), OwnerEpoch(2));
        Record { op, transaction: 0, shard, owner_epoch, hlc: Hlc(hlc), table, key, value: Bytes::new() }
    }

    fn version(hlc: u64) -> Version {
        Version { owner_epoch: OwnerEpoch(2), hlc: Hlc(hlc), zone: Zone(1), stream: 0 }
    }

    #[test]
    fn only_what_is_held_is_remembered_and_nothing_once_all_have_let_go() {
        let mut w = Watches::new(Zone(1), 0);
        w.hold(&[row("a")]);
        w.hold(&[row("a"), row("b")]);
        w.on_append(5, &record(Op::Put, "a", 50), 0);
        w.on_append(6, &record(Op::Delete, "a", 60), 0);
        w.on_append(7, &record(Op::Put, "c", 70), 0);
        let newest = w.newest(&row("a"), 0).unwrap();
        assert_eq!((newest.seen, newest.seq), (Seen::Gone(version(60)), 6));
        assert!(w.newest(&row("b"), 0).is_none() && w.newest(&row("c"), 0).is_none());
        w.release(&[row("a")]);
        assert!(w.newest(&row("a"), 0).is_some(), "somebody holds it still");
        w.release(&[row("a"), row("b")]);
        assert!(w.is_empty() && w.newest(&row("a"), 0).is_none());
    }

    #[test]
    fn what_the_log_may_have_taken_back_does_not_count() {
        let mut w = Watches::new(Zone(1), 0);
        w.hold(&[row("a")]);
        w.on_append(5, &record(Op::Put, "a", 50), 0);
        assert!(w.newest(&row("a"), 1).is_none());
        w.on_append(5, &record(Op::Put, "a", 51), 1);
        assert_eq!(w.newest(&row("a"), 1).unwrap().seen, Seen::Row(version(51)));
    }
}
