//! Where does this key live? Fences, ids, tags, the map, and the ownership of shards. Pure: no clock, file, socket or thread.

pub mod check;
pub mod codec;
pub mod edit;
pub mod explain;
pub mod fence;
#[cfg(feature = "text")]
pub mod gcj02;
#[cfg(feature = "text")]
pub mod geojson;
pub mod grid;
pub mod id;
pub mod map;
pub mod metric;
pub mod names;
mod near;
#[cfg(feature = "text")]
mod nest;
pub mod ownership;
pub mod point;
pub mod problem;
pub mod step;
pub mod tag;
#[cfg(feature = "text")]
mod text;
pub mod types;

#[cfg(test)]
#[allow(dead_code)] // shared with the tests in `tests/`
mod random;
mod wire;

pub use types::{MapEpoch, OwnerEpoch, Positions, SHARDS, Shard, ZONES, Zone};
