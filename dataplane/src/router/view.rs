//! What a router core asks of a map. `shardmap`'s map answers it in production, a table in the tests.

use shardmap::ownership::Entry;
use shardmap::{MapEpoch, Shard};

/// By what a request was routed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tagged {
    /// `shardid` of a trusted peer.
    Shard,
    /// The order id.
    Order,
    /// The shop id.
    Shop,
    /// The location.
    Location,
    /// The map's default shard.
    Default,
}

/// A request's shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The shard.
    pub shard: Shard,
    /// How it was found.
    pub by: Tagged,
}

/// An immutable map.
pub trait Routes: Send + Sync {
    /// Its number.
    fn epoch(&self) -> MapEpoch;
    /// The shard of a request with this tag; `key` is a record's key, which counts as order id if the tag has none.
    fn route(&self, tag: Option<&[u8]>, key: Option<&[u8]>, trusted: bool, wall_ms: u64) -> Option<Found>;
    /// What it says of `shard`; `None`: it knows no such shard.
    fn view(&self, shard: Shard) -> Option<&Entry>;
    /// Every shard that is moving or has no owner.
    fn unsettled(&self) -> Vec<Shard>;
}
