//! A map as a table, for the router's tests: shop `n` is in shard `n`.
#![allow(dead_code, reason = "each test program uses some of it")]

use dataplane::router::{Found, Routes, Tagged};
use shardmap::ownership::{Entry, Kind};
use shardmap::{MapEpoch, Shard, Zone};

/// Shards and what the map says of them.
pub struct Table {
    epoch: u64,
    shards: Vec<(u16, Entry)>,
    goes: Option<(u16, u16)>,
}

impl Table {
    /// Each shard's owner. An entry's epoch is that of the map at which its owner last differed: the owner's number serves.
    pub fn new(epoch: u64, owners: &[(u16, Zone)]) -> Table {
        let entry =
            |z: &Zone| Entry::first(*z, MapEpoch(if epoch == 1 { 1 } else { epoch.min(1 + u64::from(z.0 + 1)) }));
        Table { epoch, shards: owners.iter().map(|(s, z)| (*s, entry(z))).collect(), goes: None }
    }
    /// With an entry of another epoch.
    pub fn entry(mut self, shard: u16, owner: Zone, epoch: u64) -> Table {
        *self.of(shard) = Entry::first(owner, MapEpoch(epoch));
        self
    }
    /// With a shop that belongs to another shard than that of its number.
    pub fn goes(mut self, shop: u16, shard: u16) -> Table {
        self.goes = Some((shop, shard));
        self
    }
    /// With a shard that is moving.
    pub fn moving(mut self, shard: u16, to: Zone) -> Table {
        let epoch = MapEpoch(self.epoch);
        let e = self.of(shard);
        (e.kind, e.to, e.epoch) = (Kind::Moving, Some(to), epoch);
        self
    }
    /// With a shard that has no owner.
    pub fn lost(mut self, shard: u16, zone: Zone) -> Table {
        let epoch = MapEpoch(self.epoch);
        let e = self.of(shard);
        (e.kind, e.owner, e.epoch, e.lost) = (Kind::Lost, None, epoch, Some((zone, e.owner_epoch)));
        self
    }
    fn of(&mut self, shard: u16) -> &mut Entry {
        &mut self.shards.iter_mut().find(|(s, _)| *s == shard).expect("the test names a shard of its table").1
    }
}

impl Routes for Table {
    fn epoch(&self) -> MapEpoch {
        MapEpoch(self.epoch)
    }
    fn route(&self, tag: Option<&[u8]>, _: Option<&[u8]>, _: bool, _: u64) -> Option<Found> {
        let shop = std::str::from_utf8(tag?).ok()?.strip_prefix("shopid=")?;
        let shop = shop.parse().ok()?;
        let shard = self.goes.filter(|(from, _)| *from == shop).map_or(shop, |(_, to)| to);
        Some(Found { shard: Shard(shard), by: Tagged::Shop, malformed: 0 })
    }
    fn view(&self, shard: Shard) -> Option<&Entry> {
        self.shards.iter().find(|(s, _)| *s == shard.0).map(|(_, e)| e)
    }
    fn unsettled(&self) -> Vec<Shard> {
        let moving = |e: &Entry| matches!(e.kind, Kind::Moving | Kind::Lost);
        self.shards.iter().filter(|(_, e)| moving(e)).map(|(s, _)| Shard(*s)).collect()
    }
}
