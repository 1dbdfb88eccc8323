//! What a router core asks of a map. `shardmap`'s map answers it in production, a table in the tests.

use shardmap::map::{By, Map};
use shardmap::ownership::Entry;
use shardmap::tag::Tag;
use shardmap::{MapEpoch, Shard};

/// By what a request was routed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tagged {
    /// `shardid` of a trusted peer.
    Shard,
    /// The name of a global service.
    Global,
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
    /// Parts of the tag that could not be read.
    pub malformed: u32,
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
    /// The map itself, to explain a route; `None`: a test's table.
    fn whole(&self) -> Option<&Map> {
        None
    }
}

impl Routes for Map {
    fn epoch(&self) -> MapEpoch {
        Map::epoch(self)
    }

    fn route(&self, tag: Option<&[u8]>, key: Option<&[u8]>, trusted: bool, wall_ms: u64) -> Option<Found> {
        let mut tag = tag.map(Tag::parse).unwrap_or_default();
        if tag.order.is_none() {
            tag.order = key.and_then(|k| std::str::from_utf8(k).ok()?.parse().ok());
        }
        let found = Map::route(self, &tag, trusted, wall_ms)?;
        let by = match found.by {
            By::ShardId => Tagged::Shard,
            By::Global => Tagged::Global,
            By::Order => Tagged::Order,
            By::Shop => Tagged::Shop,
            By::Inside | By::Near => Tagged::Location,
            By::Default => Tagged::Default,
        };
        Some(Found { shard: found.shard, by, malformed: tag.skipped })
    }

    fn view(&self, shard: Shard) -> Option<&Entry> {
        Map::view(self, shard)
    }

    fn unsettled(&self) -> Vec<Shard> {
        Map::unsettled(self).collect()
    }

    fn whole(&self) -> Option<&Map> {
        Some(self)
    }
}
