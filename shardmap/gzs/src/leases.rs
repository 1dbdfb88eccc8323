//! Leases of global services: which zone may write a shard from 1024 on without hearing of this service again, and how long nobody else may.
//!
//! ```text
//! lease     what a log is told, from the moment at which it asked; it asks again several times before its end
//! grant     what the store holds, half a lease longer, written before anything is told and again before it runs out
//!
//!  grant stored ├────────────────────────────────────────────────┤ until here no take-over names another owner
//!  lease told      ├───────────────────────────────┤
//!                  └ asked: any time at which the grant has more than a lease, and a tenth for clocks that differ, to run
//! ```
//!
//! Three rules, each of which the simulation breaks to see that it is needed: a grant is stored before a lease is told; a take-over waits
//! for the end of the grant; and who has just read the store, at a start or since another service changed it, waits for as long as a grant
//! lasts, counted from then, since when it was stored is known by another process's clock. A planned move waits for nothing: the FENCE ends
//! the writing. With the map that names a new owner its grant is stored, too: had another service prolonged the old one meanwhile, the
//! store refuses both.

use crate::api::LeaseTold;
use crate::change::Grant;
use shardmap::map::Map;
use shardmap::ownership::Entry;
use shardmap::{Shard, Zone};
use std::collections::BTreeMap;

/// The grants, and what follows from them.
#[derive(Debug)]
pub struct Leases {
    /// How long a lease is.
    lease_ms: u64,
    /// When the store was read; `None`: it has been, and no clock was looked at since.
    read_ms: Option<u64>,
    known: BTreeMap<Shard, Known>,
}

#[derive(Debug)]
struct Known {
    grant: Grant,
    /// Until then nobody else may be named; `None`: as long as it lasts from when the store was read.
    ends_ms: Option<u64>,
    /// Until then this process may let leases run: it has stored the grant itself.
    own_ms: u64,
}

impl Leases {
    /// By what the store holds.
    pub fn new(held: Vec<(Shard, Grant)>, lease_ms: u64) -> Leases {
        let mut leases = Leases { lease_ms, read_ms: None, known: BTreeMap::new() };
        leases.reload(held);
        leases
    }

    /// The store was read again.
    pub fn reload(&mut self, held: Vec<(Shard, Grant)>) {
        let known = |(shard, grant)| (shard, Known { grant, ends_ms: None, own_ms: 0 });
        self.known = held.into_iter().map(known).collect();
        self.read_ms = None;
    }

    /// Time passes: what was read is dated.
    pub fn wake(&mut self, now_ms: u64) {
        self.read_ms.get_or_insert(now_ms);
    }

    /// How often a log that owns a global service has to tell at least.
    pub fn tell_ms(&self) -> u64 {
        (self.lease_ms / 3).max(1)
    }

    /// Grants to be stored: new ones, and those that run out while their zone is live.
    pub fn due(&self, map: &Map, live: impl Fn(Zone) -> bool, now_ms: u64) -> Vec<(Shard, Grant)> {
        let each = map.globals().iter().filter_map(|(_, shard)| {
            let view = map.view(*shard)?;
            let zone = view.owner.filter(|z| live(*z))?;
            let runs = self.own(*shard, view).is_some_and(|until| until >= now_ms + self.lease_ms * 5 / 4);
            (!runs).then(|| (*shard, self.grant(*shard, zone, view.owner_epoch.0, now_ms)))
        });
        each.collect()
    }

    /// The grant of `zone` for this ownership, from now on. It never ends before one that it takes the place of: that one may have been of a
    /// service whose leases are longer, and they run.
    pub fn grant(&self, shard: Shard, zone: Zone, owner_epoch: u64, now_ms: u64) -> Grant {
        let revision = self.known.get(&shard).map_or(0, |k| k.grant.revision) + 1;
        let until_ms = (now_ms + self.lasts_ms()).max(self.ends_ms(shard).unwrap_or(0));
        Grant { revision, zone: zone.0, owner_epoch, until_ms, lasts_ms: until_ms - now_ms }
    }

    /// These are stored.
    pub fn on_stored(&mut self, grants: &[(Shard, Grant)]) {
        for (shard, grant) in grants {
            let before = self.ends_ms(*shard);
            let ends_ms = Some(before.map_or(grant.until_ms, |ends| ends.max(grant.until_ms)));
            self.known.insert(*shard, Known { grant: *grant, ends_ms, own_ms: grant.until_ms });
        }
    }

    /// What a log of `zone` is told that has just asked, and whether it lacks something that it will get in a moment.
    pub fn told(&self, map: &Map, zone: Zone, now_ms: u64) -> (Vec<LeaseTold>, bool) {
        let (mut told, mut lacks) = (vec![], false);
        for (_, shard) in map.globals() {
            let Some(view) = map.view(*shard).filter(|v| v.owner == Some(zone)) else { continue };
            if self.own(*shard, view).is_some_and(|until| until >= now_ms + self.lease_ms * 11 / 10) {
                let (shard, owner_epoch, lease_ms) = (shard.0, view.owner_epoch.0, self.lease_ms);
                told.push(LeaseTold { shard, owner_epoch, lease_ms });
            } else {
                lacks = true;
            }
        }
        (told, lacks)
    }

    /// May another zone be named, as far as leases are concerned? Else for how many milliseconds not.
    pub fn ended(&self, shard: Shard, now_ms: u64) -> Result<(), u64> {
        let Some(read_ms) = self.read_ms else { return Err(self.lasts_ms()) };
        // What this process does not know of, another may have granted before it read the store.
        let ends_ms = self.ends_ms(shard).unwrap_or(0).max(read_ms + self.lasts_ms());
        if now_ms >= ends_ms { Ok(()) } else { Err(ends_ms - now_ms) }
    }

    /// What is left of the grant of `shard`, in milliseconds.
    pub fn left_ms(&self, shard: Shard, now_ms: u64) -> u64 {
        self.ends_ms(shard).unwrap_or(0).saturating_sub(now_ms)
    }

    fn ends_ms(&self, shard: Shard) -> Option<u64> {
        let known = self.known.get(&shard)?;
        known.ends_ms.or(Some(self.read_ms? + known.grant.lasts_ms))
    }

    /// Until when this process may let leases of the present ownership run.
    fn own(&self, shard: Shard, view: &Entry) -> Option<u64> {
        let known = self.known.get(&shard)?;
        let same = Some(Zone(known.grant.zone)) == view.owner && known.grant.owner_epoch == view.owner_epoch.0;
        same.then_some(known.own_ms)
    }

    fn lasts_ms(&self) -> u64 {
        self.lease_ms * 3 / 2
    }
}
