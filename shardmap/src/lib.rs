//! Where does this key live? Fences, ids, tags, the map, and the ownership of shards. Pure: no clock, file, socket or thread.

pub mod ownership;
pub mod types;

pub use types::{MapEpoch, OwnerEpoch, Positions, SHARDS, Shard, ZONES, Zone};
