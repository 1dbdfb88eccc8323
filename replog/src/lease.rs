//! Leases: until when this zone may write each global service without hearing of the map's writer again.
//!
//! ```text
//! this zone's log   sends, at 1000 ── tells how it is ──▶  the writer stores a grant, then answers "3,000 ms"
//!                   until 4000  ◀──────────────────────    and names nobody else before the stored grant has ended
//! ```
//!
//! A lease counts from the moment at which it was **asked for**, not from that of the answer: however long that took, it ends here before the
//! grant ends there. `steady_ms` is a clock that never steps and does not stand still while the process or the machine sleeps: who wakes up
//! finds the lease gone. A lease belongs to one ownership; the next one needs its own. Nothing of this is stored: a log that
//! restarts has none.

use shardmap::{OwnerEpoch, Shard};
use std::collections::HashMap;

/// A lease, as it was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The global service's shard.
    pub shard: Shard,
    /// The ownership that it is for.
    pub owner_epoch: OwnerEpoch,
    /// When it ends, by this machine's steady clock.
    pub until_ms: u64,
}

/// Whether a global service may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leased {
    /// For so long.
    For {
        /// Milliseconds that are left, at least 1.
        left_ms: u64,
    },
    /// Not any more.
    Ended {
        /// Since so many milliseconds.
        ago_ms: u64,
    },
    /// Not under this ownership, since this start.
    Never,
}

/// Now, by both clocks: records bear the one that people read, leases are judged by the one that never steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Milliseconds since 1970.
    pub wall_ms: u64,
    /// Milliseconds since the machine started, those among them that it slept through.
    pub steady_ms: u64,
}

/// Tests of what needs no lease have one clock.
#[cfg(test)]
impl From<u64> for Now {
    fn from(ms: u64) -> Now {
        Now { wall_ms: ms, steady_ms: ms }
    }
}

/// The leases of one stream's shards: one for each, the newest.
#[derive(Debug, Default)]
pub struct Leases(HashMap<Shard, Lease>);

impl Leases {
    /// A lease was granted. Answers come in any order: none shortens another, and one of an older ownership is worth nothing.
    pub fn on_lease(&mut self, lease: Lease) {
        let known = self.0.entry(lease.shard).or_insert(lease);
        if (lease.owner_epoch, lease.until_ms) > (known.owner_epoch, known.until_ms) {
            *known = lease;
        }
    }

    /// May `shard` be written under this ownership?
    pub fn of(&self, shard: Shard, owner_epoch: OwnerEpoch, steady_ms: u64) -> Leased {
        match self.0.get(&shard).filter(|l| l.owner_epoch == owner_epoch) {
            None => Leased::Never,
            Some(l) if steady_ms < l.until_ms => Leased::For { left_ms: l.until_ms - steady_ms },
            Some(l) => Leased::Ended { ago_ms: steady_ms - l.until_ms },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Shard = Shard(1024);
    const E: OwnerEpoch = OwnerEpoch(3);

    fn lease(owner_epoch: u64, until_ms: u64) -> Lease {
        Lease { shard: S, owner_epoch: OwnerEpoch(owner_epoch), until_ms }
    }

    #[test]
    fn a_lease_ends_at_its_millisecond_and_says_since_when() {
        let mut leases = Leases::default();
        assert_eq!(leases.of(S, E, 0), Leased::Never);
        leases.on_lease(lease(3, 1000));
        assert_eq!(leases.of(S, E, 999), Leased::For { left_ms: 1 });
        assert_eq!(leases.of(S, E, 1000), Leased::Ended { ago_ms: 0 });
        assert_eq!(leases.of(S, E, u64::MAX), Leased::Ended { ago_ms: u64::MAX - 1000 }, "it slept");
    }

    #[test]
    fn a_late_answer_shortens_nothing_and_each_ownership_needs_its_own() {
        let mut leases = Leases::default();
        leases.on_lease(lease(3, 2000));
        leases.on_lease(lease(3, 1000));
        leases.on_lease(lease(2, 9000));
        assert_eq!(leases.of(S, E, 1500), Leased::For { left_ms: 500 });
        assert_eq!(leases.of(S, OwnerEpoch(4), 1500), Leased::Never);
        leases.on_lease(lease(4, 1600));
        assert_eq!(leases.of(S, OwnerEpoch(4), 1500), Leased::For { left_ms: 100 });
        assert_eq!(leases.of(S, E, 1500), Leased::Never, "the older ownership is over");
    }
}
