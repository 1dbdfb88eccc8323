//! The words that every crate shares: shards, zones, and the two epochs, which never mix by accident.

use std::fmt;

/// Shards 0..1024 live in ids and on the map; from 1024 on they are global services.
pub const SHARDS: usize = 1024;
/// At most 15 zones, numbered 0..=14; 15 stands for "none" where four bits are all there is.
pub const ZONES: usize = 15;

/// A logical partition: what moves between zones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Shard(pub u16);

/// A region's data centre, 0..=14.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Zone(pub u8);

/// The number of a map; rises by one with each change of anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MapEpoch(pub u64);

/// The map epoch at which a shard's present ownership began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OwnerEpoch(pub u64);

impl MapEpoch {
    /// The owner epoch of an ownership that begins with this map.
    pub fn begins(self) -> OwnerEpoch {
        OwnerEpoch(self.0)
    }
    /// The map that follows this one.
    pub fn next(self) -> MapEpoch {
        MapEpoch(self.0 + 1)
    }
}

impl Shard {
    /// Is it a global service: not in ids, not on the map of fences, written under a lease?
    pub fn is_global(self) -> bool {
        usize::from(self.0) >= SHARDS
    }
}

impl Zone {
    /// Every number that a zone may have.
    pub fn all() -> impl Iterator<Item = Zone> {
        (0..ZONES as u8).map(Zone)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for MapEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for OwnerEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A sequence number for each zone's log of one shard: a position below which everything is applied, or a cut.
///
/// A zone that is not named has no number: for applied positions that means "nothing", for a cut "no cut".
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Positions([Option<u64>; ZONES]);

impl Positions {
    /// The number of `zone`'s log, if it is named.
    pub fn get(&self, zone: Zone) -> Option<u64> {
        self.0.get(zone.0 as usize).copied().flatten()
    }
    /// Names `zone`'s log; a zone beyond the last is nobody's and is not kept.
    pub fn set(&mut self, zone: Zone, seq: u64) {
        if let Some(at) = self.0.get_mut(zone.0 as usize) {
            *at = Some(seq);
        }
    }
    /// Leaves `zone`'s log unnamed.
    pub fn clear(&mut self, zone: Zone) {
        if let Some(at) = self.0.get_mut(zone.0 as usize) {
            *at = None;
        }
    }
    /// The named logs in the order of their zones.
    pub fn iter(&self) -> impl Iterator<Item = (Zone, u64)> + '_ {
        self.0.iter().enumerate().filter_map(|(z, seq)| seq.map(|s| (Zone(z as u8), s)))
    }
}

impl FromIterator<(Zone, u64)> for Positions {
    fn from_iter<I: IntoIterator<Item = (Zone, u64)>>(items: I) -> Positions {
        let mut p = Positions::default();
        for (zone, seq) in items {
            p.set(zone, seq);
        }
        p
    }
}
