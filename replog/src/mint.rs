//! Mints ids out of the stream's clock: `41 bits ms since 2024-01-01 | 10 bits shard | 4 bits zone | 8 bits counter`.
//!
//! An id takes its milliseconds from the HLC of the record that creates its row. So two ids of one shard can only be equal
//! if they were minted in the same millisecond with the same counter: the counter is kept per shard for the present
//! millisecond, the clock is pushed to the next one when 256 are used up, and a restarted log starts in a millisecond above
//! every HLC it holds. It never mints for shards beyond 1023, and never asks a random number.

use crate::Hlc;
use crate::hlc::Clock;
use shardmap::id::Id;
use shardmap::{SHARDS, Shard, Zone};
use std::collections::HashMap;

/// How far minting may push the clock ahead of the wall; below the 500 ms beyond which other zones park a record.
pub const LEAD_MAX_MS: u64 = 250;

const PER_MS: u16 = 256;

/// A stream's clock and its ids.
#[derive(Debug)]
pub struct Mint {
    clock: Clock,
    /// The highest wall clock seen, or what the log held: a wall that steps back does not stop minting.
    wall_ms: u64,
    /// Ids given per shard in millisecond `ms`.
    used: HashMap<Shard, u16>,
    ms: u64,
}

impl Mint {
    /// A clock above every HLC of the log, in a millisecond of its own: which ids that one has given is not known.
    pub fn above(newest: Hlc) -> Mint {
        let floor = if newest == Hlc::default() { newest } else { Hlc::new(newest.ms(), u16::MAX) };
        Mint { clock: Clock::above(floor), wall_ms: newest.ms(), used: HashMap::new(), ms: 0 }
    }

    /// The time of an event.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.wall_ms = self.wall_ms.max(now_ms);
        self.clock.tick(now_ms)
    }

    /// Another zone's clock was seen at `newest`: the times given from now on are above it.
    pub fn observe(&mut self, newest: Hlc) {
        if newest > self.clock.newest() {
            self.clock = Clock::above(newest);
        }
    }

    /// The newest time given.
    pub fn newest(&self) -> Hlc {
        self.clock.newest()
    }

    /// An id of `shard` and the time of the record that uses it; `None` when ids are asked for faster than 256 a millisecond
    /// for so long that the clock would run ahead, or when 41 bits of milliseconds have run out (in 2093).
    pub fn id(&mut self, shard: Shard, zone: Zone, now_ms: u64) -> Option<(Id, Hlc)> {
        debug_assert!(usize::from(shard.0) < SHARDS, "ids exist for map shards only; the gate refuses others");
        self.wall_ms = self.wall_ms.max(now_ms);
        let next = Clock::above(self.clock.newest()).tick(now_ms);
        let full = next.ms() == self.ms && self.used.get(&shard).is_some_and(|used| *used >= PER_MS);
        let ms = if full { next.ms() + 1 } else { next.ms() };
        let used = if full || next.ms() != self.ms { 0 } else { self.used.get(&shard).copied().unwrap_or(0) };
        let id = Id::new(ms, shard, zone, used as u8)?;
        if ms > self.wall_ms + LEAD_MAX_MS {
            return None;
        }
        let hlc = self.clock.tick(ms.max(now_ms));
        if hlc.ms() != self.ms {
            self.ms = hlc.ms();
            self.used.clear();
        }
        self.used.insert(shard, used + 1);
        Some((id, hlc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const NOW_MS: u64 = 1_790_000_000_000;

    #[test]
    fn ids_are_unique_in_a_burst_across_restarts_and_when_the_wall_steps_back() {
        let (mut seen, mut mint) = (HashSet::new(), Mint::above(Hlc::default()));
        for round in 0..6u64 {
            let now_ms = NOW_MS + [0, 1, 1, 0, 0, 2][round as usize] - 40 * round;
            for i in 0..3000u16 {
                let shard = Shard(i % 3);
                let (id, hlc) = mint.id(shard, Zone(2), now_ms).unwrap();
                assert!(seen.insert(id), "id {id} twice");
                assert_eq!((id.ms(), id.shard(), id.zone()), (hlc.ms(), shard, Zone(2)));
                mint.tick(now_ms);
            }
            mint = Mint::above(mint.newest());
        }
    }

    #[test]
    fn the_clock_never_runs_further_ahead_than_other_zones_tolerate() {
        let mut mint = Mint::above(Hlc::default());
        let given = (0..1_000_000).take_while(|_| mint.id(Shard(1), Zone(0), NOW_MS).is_some()).count();
        assert_eq!(given as u64, 256 * (LEAD_MAX_MS + 1));
        assert!(mint.newest().ms() <= NOW_MS + LEAD_MAX_MS);
        assert!(mint.id(Shard(1), Zone(0), NOW_MS + 1).is_some(), "it goes on with the wall");
        assert!(Mint::above(Hlc::default()).id(Shard(1), Zone(0), 5).is_none(), "a wall before 2024");
    }
}
