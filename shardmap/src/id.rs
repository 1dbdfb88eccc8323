//! Ids that carry their shard: 63 bits, made by the shard's log core, readable by everyone.
//!
//! ```text
//!  62                    22 21      12 11   8 7      0
//!  | ms since 2024-01-01   | shard    | zone | counter |
//! ```
//! The shard in an id never changes; who owns it now is asked of the map, never read off the zone bits.

use crate::types::{SHARDS, Shard, ZONES, Zone};
use std::fmt;

/// 2024-01-01T00:00:00Z in milliseconds since 1970.
pub const BEGIN_MS: u64 = 1_704_067_200_000;
/// 2025-01-01T00:00:00Z: nothing was minted before, so every number below 1.3e17 is somebody else's. Without this bound
/// a foreign `156427001` would read as an id of the first 38 milliseconds of 2024.
pub const FIRST_MS: u64 = 1_735_689_600_000;
/// An id may be this far ahead of the reader's clock.
pub const AHEAD_MS_MAX: u64 = 24 * 3600 * 1000;

const MS_BITS: u32 = 41;
const MS_SHIFT: u32 = 22;
const SHARD_SHIFT: u32 = 12;
const ZONE_SHIFT: u32 = 8;

/// A 63-bit id; in JSON a string, because JavaScript rounds numbers above 2^53.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id(pub u64);

impl Id {
    /// Puts an id together. `None`: a time before 2024 or beyond 2093, a global shard, no such zone.
    pub fn new(ms_since_1970: u64, shard: Shard, zone: Zone, counter: u8) -> Option<Id> {
        let ms = ms_since_1970.checked_sub(BEGIN_MS)?;
        if ms >> MS_BITS != 0 || usize::from(shard.0) >= SHARDS || usize::from(zone.0) >= ZONES {
            return None;
        }
        Some(Id(ms << MS_SHIFT
            | u64::from(shard.0) << SHARD_SHIFT
            | u64::from(zone.0) << ZONE_SHIFT
            | u64::from(counter)))
    }

    /// The logical partition that its row lives in.
    pub fn shard(self) -> Shard {
        Shard((self.0 >> SHARD_SHIFT) as u16 & (SHARDS as u16 - 1))
    }

    /// Who issued it, not who owns it; 15 is nobody.
    pub fn zone(self) -> Zone {
        Zone((self.0 >> ZONE_SHIFT) as u8 & 0xf)
    }

    /// When it was issued, in milliseconds since 1970.
    pub fn ms(self) -> u64 {
        (self.0 >> MS_SHIFT) + BEGIN_MS
    }

    /// The number among the ids of one millisecond, shard and zone.
    pub fn counter(self) -> u8 {
        self.0 as u8
    }

    /// Could it be one of ours: issued between 2025 and a day from now, by a zone that exists?
    pub fn is_plausible(self, now_ms: u64, zone_exists: impl FnOnce(Zone) -> bool) -> bool {
        self.0 >> 63 == 0
            && (FIRST_MS..=now_ms.saturating_add(AHEAD_MS_MAX)).contains(&self.ms())
            && zone_exists(self.zone())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_780_000_000_000;

    #[test]
    fn an_id_gives_back_what_was_put_in() {
        for (ms, shard, zone, counter) in
            [(BEGIN_MS, 0, 0, 0), (NOW_MS, 341, 1, 7), (BEGIN_MS + (1 << 41) - 1, 1023, 14, 255)]
        {
            let id = Id::new(ms, Shard(shard), Zone(zone), counter).unwrap();
            assert_eq!((id.ms(), id.shard(), id.zone(), id.counter()), (ms, Shard(shard), Zone(zone), counter));
            assert!(id.0 < 1 << 63);
        }
    }

    #[test]
    fn the_bits_of_an_id_are_frozen() {
        let id = Id::new(NOW_MS, Shard(341), Zone(1), 7).unwrap();
        assert_eq!(id.0, (NOW_MS - BEGIN_MS) * 4_194_304 + 341 * 4096 + 256 + 7);
        assert_eq!(id.to_string(), "318485246772596999");
    }

    #[test]
    fn an_id_out_of_range_is_not_made() {
        assert_eq!(Id::new(BEGIN_MS - 1, Shard(0), Zone(0), 0), None);
        assert_eq!(Id::new(BEGIN_MS + (1 << 41), Shard(0), Zone(0), 0), None);
        assert_eq!(Id::new(NOW_MS, Shard(1024), Zone(0), 0), None);
        assert_eq!(Id::new(NOW_MS, Shard(0), Zone(15), 0), None);
    }

    #[test]
    fn ids_grow_with_time() {
        let at = |ms, counter| Id::new(ms, Shard(1023), Zone(14), counter).unwrap();
        assert!(at(NOW_MS, 255) < Id::new(NOW_MS + 1, Shard(0), Zone(0), 0).unwrap());
        assert!(at(NOW_MS, 1) < at(NOW_MS, 2));
    }

    #[test]
    fn an_id_counts_as_ours_only_with_a_plausible_time_and_a_known_zone() {
        let known = |z: Zone| z.0 < 2;
        let at = |ms, zone| Id::new(ms, Shard(5), Zone(zone), 0).unwrap();
        assert!(at(NOW_MS, 1).is_plausible(NOW_MS, known));
        assert!(at(NOW_MS + AHEAD_MS_MAX, 1).is_plausible(NOW_MS, known));
        assert!(!at(NOW_MS + AHEAD_MS_MAX + 1, 1).is_plausible(NOW_MS, known), "from the future");
        assert!(!at(NOW_MS, 2).is_plausible(NOW_MS, known), "no such zone");
        assert!(!at(FIRST_MS - 1, 0).is_plausible(NOW_MS, known), "before anything was minted");
        assert!(!Id(at(NOW_MS, 1).0 | 1 << 63).is_plausible(NOW_MS, known), "64 bits");
        for foreign in [0, 1, 156_427_001, 9_999_999_999, 20_260_101_123_456_789, u64::MAX] {
            assert!(!Id(foreign).is_plausible(NOW_MS, |_| true), "{foreign}");
        }
    }
}
