//! What the machines ask of a map, and the positions that a FENCE carries; the map itself is `shardmap`'s.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::map::Map;
use shardmap::ownership::History;
use shardmap::{MapEpoch, Positions, Shard, ZONES, Zone};
use std::fmt::Debug;

/// A map, as far as the log needs it.
pub trait Owners: Debug + Send + Sync {
    /// Its number.
    fn epoch(&self) -> MapEpoch;
    /// A shard's ownerships; `None`: the map does not know this shard.
    fn history(&self, shard: Shard) -> Option<&History>;
    /// Visits every shard in order.
    fn each(&self, visit: &mut dyn FnMut(Shard, &History));
}

impl Owners for Map {
    fn epoch(&self) -> MapEpoch {
        Map::epoch(self)
    }
    fn history(&self, shard: Shard) -> Option<&History> {
        Map::history(self, shard)
    }
    fn each(&self, visit: &mut dyn FnMut(Shard, &History)) {
        self.shards().for_each(|(shard, history)| visit(shard, history));
    }
}

/// The stream that orders everything about `shard`, the same in every zone of the cluster.
pub fn stream_of(shard: Shard, streams: u32) -> u32 {
    u32::from(shard.0) % streams
}

/// A FENCE's value: `u8 count`, then for each zone `u8 zone | u64 seq`, little endian, zones rising.
pub fn put_positions(positions: &Positions) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + 9 * ZONES);
    out.put_u8(positions.iter().count() as u8);
    for (zone, seq) in positions.iter() {
        out.put_u8(zone.0);
        out.put_u64_le(seq);
    }
    out.freeze()
}

/// Reads what `put_positions` wrote; `None` if it is anything else.
pub fn get_positions(mut from: &[u8]) -> Option<Positions> {
    let count = from.try_get_u8().ok()?;
    let mut positions = Positions::default();
    let mut above = None;
    for _ in 0..count {
        let zone = from.try_get_u8().ok().filter(|z| usize::from(*z) < ZONES && above.is_none_or(|a| *z > a))?;
        positions.set(Zone(zone), from.try_get_u64_le().ok()?);
        above = Some(zone);
    }
    from.is_empty().then_some(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_as_they_were_put_and_nothing_else_is_taken() {
        let positions: Positions = [(Zone(0), 7), (Zone(14), u64::MAX)].into_iter().collect();
        let bytes = put_positions(&positions);
        assert_eq!(get_positions(&bytes), Some(positions));
        assert_eq!(get_positions(&put_positions(&Positions::default())), Some(Positions::default()));
        for bad in [&bytes[..5], &[], &[1, 15, 0, 0, 0, 0, 0, 0, 0, 0], &[0, 0]] {
            assert_eq!(get_positions(bad), None, "{bad:?}");
        }
    }
}
