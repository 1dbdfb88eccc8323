//! What changed between two maps, and whether one may follow the other.

use crate::map::{Map, Refused};
use crate::ownership::{Entry, Illegal, Kind};
use crate::types::{MapEpoch, Shard};
use std::collections::BTreeMap;
use std::fmt;

/// One difference between two maps, as a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// What it is about: `epoch`, `zone`, `global`, `shard`, `fence`, `default` or `exceptions`.
    pub of: &'static str,
    /// The number or name of that thing; empty for the map's own.
    pub name: String,
    /// What was and what is.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "{}: {}", self.of, self.what)
        } else {
            write!(f, "{} {}: {}", self.of, self.name, self.what)
        }
    }
}

/// Why a map may not follow another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IllegalStep {
    /// The number must be one higher.
    Epoch {
        /// The number that may follow.
        expected: MapEpoch,
        /// The number seen.
        seen: MapEpoch,
    },
    /// The new map does not name this one's digest as its predecessor's.
    Predecessor,
    /// A shard's ownerships break the contract, or it is gone, or names an unknown zone.
    Shard(Refused),
    /// A shard got its new entries under another number than the new map's.
    EntryEpoch(Shard),
    /// A zone of this number was renamed, or dropped instead of removed, though ids and logs carry the number; or removed with a shard.
    Zone(u8),
    /// A global service was renamed or dropped, though clients know its name.
    Global(String),
    /// The new fences take land from this shard for one of another zone, and the map before did not hold it: two zones could write
    /// for one place at a time.
    Fences(Shard),
    /// The place of ids that were issued elsewhere, or the default shard, changed: that moves rows between shards.
    Placed,
}

impl fmt::Display for IllegalStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IllegalStep::Epoch { expected, seen } => write!(f, "map epoch {seen}, expected {expected}"),
            IllegalStep::Predecessor => f.write_str("it does not name the earlier map's digest as its predecessor's"),
            IllegalStep::Shard(why) => why.fmt(f),
            IllegalStep::EntryEpoch(s) => write!(f, "shard {s}: its newest entry is not of the new map's epoch"),
            IllegalStep::Global(name) => {
                write!(f, "global service \"{name}\" was renamed or dropped; clients ask for it by name")
            }
            IllegalStep::Zone(z) => {
                write!(f, "zone {z} was renamed, dropped, or removed with a shard; ids and logs carry its number")
            }
            IllegalStep::Fences(s) => write!(
                f,
                "the fences take land from shard {s} for one of another zone: it must be held by the map before, and given back by this one"
            ),
            IllegalStep::Placed => {
                f.write_str("exceptions or the default shard changed: that moves rows between shards")
            }
        }
    }
}

impl Map {
    /// May `next` follow this map at once? All reasons against it are given together. A zone or a shard may be added, a zone that
    /// owns nothing removed;
    /// a foreign id may be placed that was not; fences may change where the shards that give land to another zone were held.
    pub fn may_become(&self, next: &Map) -> Result<(), Vec<IllegalStep>> {
        let mut against = Vec::new();
        if next.epoch() != self.epoch().next() {
            against.push(IllegalStep::Epoch { expected: self.epoch().next(), seen: next.epoch() });
        }
        if next.previous() != self.digest() {
            against.push(IllegalStep::Predecessor);
        }
        for (shard, before) in self.shards() {
            let Some(after) = next.history(shard) else {
                against.push(IllegalStep::Shard(Refused::UnknownShard(shard)));
                continue;
            };
            match before.may_become(after) {
                Err(why) => against.push(IllegalStep::Shard(Refused::Illegal(shard, why))),
                Ok(()) if before.view() == after.view() || after.view().epoch == next.epoch() => {}
                Ok(()) => against.push(IllegalStep::EntryEpoch(shard)),
            }
        }
        for (shard, after) in next.shards().filter(|(s, _)| self.history(*s).is_none()) {
            let first = after.entries() == [Entry::first(after.view().owner.unwrap_or(crate::Zone(0)), next.epoch())];
            if !first {
                against.push(IllegalStep::Shard(Refused::Illegal(shard, Illegal::Rewritten)));
            }
        }
        let kept =
            |z: &&crate::map::ZoneInfo| next.zones().contains(z) || (next.gone().contains(z) && !next.uses(z.id));
        against.extend(self.zones().iter().filter(|z| !kept(z)).map(|z| IllegalStep::Zone(z.id.0)));
        against.extend(self.gone().iter().filter(|z| !next.gone().contains(z)).map(|z| IllegalStep::Zone(z.id.0)));
        let gone = self.globals().iter().filter(|(name, shard)| next.global_named(name.as_bytes()) != Some(*shard));
        against.extend(gone.map(|(name, _)| IllegalStep::Global(name.clone())));
        if self.fences_digest != next.fences_digest {
            let gives = crate::edit::preview(self, next.fences()).gives;
            let held = |shard: Shard| {
                let (was, is) = (self.view(shard)?, next.view(shard)?);
                Some(was.kind == Kind::Moving && is.epoch == next.epoch() && is.owner == was.owner)
            };
            let needed = crate::edit::holds(self, &gives).into_keys();
            against.extend(needed.filter(|shard| held(*shard) != Some(true)).map(IllegalStep::Fences));
        }
        let kept = |a: &[(u64, Shard)], b: &[(u64, Shard)]| a.iter().all(|placed| b.binary_search(placed).is_ok());
        let (was, is) = (self.exceptions(), next.exceptions());
        if self.default != next.default || !kept(&was.orders, &is.orders) || !kept(&was.shops, &is.shops) {
            against.push(IllegalStep::Placed);
        }
        if against.is_empty() { Ok(()) } else { Err(against) }
    }

    /// Does a zone own a shard, or is it to get one?
    fn uses(&self, zone: crate::Zone) -> bool {
        self.shards().any(|(_, history)| crate::map::has_or_gets(history.view(), zone))
    }

    /// What differs in `next`, in the order epoch, default, zones, global services, shards, fences, exceptions.
    pub fn diff(&self, next: &Map) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut say = |of, name: String, was: Option<String>, is: Option<String>| {
            let what = match (was, is) {
                (Some(was), Some(is)) if was != is => format!("{was} -> {is}"),
                (None, Some(is)) => format!("added, {is}"),
                (Some(was), None) => format!("removed, was {was}"),
                _ => return,
            };
            changes.push(Change { of, name, what });
        };
        say("epoch", String::new(), Some(self.epoch().to_string()), Some(next.epoch().to_string()));
        say("default", String::new(), self.default.map(|s| s.to_string()), next.default.map(|s| s.to_string()));
        let zones = |map: &Map| by_name(map.zones().iter().map(|z| (z.id, z.name.clone())));
        pairs(&zones(self), &zones(next), |z, was, is| say("zone", z.to_string(), was.cloned(), is.cloned()));
        let globals = |map: &Map| by_name(map.globals().iter().map(|(name, s)| (name.clone(), format!("shard {s}"))));
        pairs(&globals(self), &globals(next), |n, was, is| say("global", n.clone(), was.cloned(), is.cloned()));
        let shards = |map: &Map| by_name(map.shards().map(|(s, h)| (s, map.told(h.view()))));
        pairs(&shards(self), &shards(next), |s, was, is| say("shard", s.to_string(), was.cloned(), is.cloned()));
        if self.fences_digest != next.fences_digest {
            let fences =
                |map: &Map| by_name(map.fences().list().iter().map(|f| (f.name.clone(), (f.shard, f.rings.clone()))));
            let told = |f: &(Shard, Vec<Vec<crate::point::Point>>)| {
                let points: usize = f.1.iter().map(Vec::len).sum();
                let shape = blake3::hash(format!("{:?}", f.1).as_bytes()).to_hex();
                format!("shard {}, {points} points, shape {}", f.0, &shape[..8])
            };
            pairs(&fences(self), &fences(next), |name, was, is| {
                say("fence", name.clone(), was.map(told), is.map(told))
            });
            let order = |map: &Map| map.fences().list().iter().map(|f| f.name.clone()).collect::<Vec<_>>().join(", ");
            let settings =
                |map: &Map| format!("near {} m, sliver {} m", map.fences().near_m(), map.fences().sliver_m());
            say("fences", String::new(), Some(settings(self)), Some(settings(next)));
            say("fences in order", String::new(), Some(order(self)), Some(order(next)));
        }
        let (was, is) = (self.exceptions(), next.exceptions());
        // Of millions, a step of an operation changes none.
        if std::ptr::eq(was, is) {
            return changes;
        }
        for (of, was, is) in [("order id", &was.orders, &is.orders), ("shop id", &was.shops, &is.shops)] {
            let placed = |list: &[(u64, Shard)]| by_name(list.iter().map(|(id, s)| (*id, format!("shard {s}"))));
            pairs(&placed(was), &placed(is), |id, was, is| say(of, id.to_string(), was.cloned(), is.cloned()));
        }
        changes
    }

    /// An entry in words.
    fn told(&self, e: &Entry) -> String {
        let name = |z: Option<crate::Zone>| z.map_or("nobody", |z| self.zone_name(z)).to_owned();
        let owner = name(e.owner);
        match e.kind {
            Kind::Own => format!("{owner} since {}", e.owner_epoch),
            Kind::Unlock => format!("{owner} since {}, unlocked at {}", e.owner_epoch, e.epoch),
            Kind::Moving => format!("{owner} since {}, moving to {}", e.owner_epoch, name(e.to)),
            Kind::Lost => format!("nobody, {} lost it at {}", name(e.lost.map(|(z, _)| z)), e.epoch),
        }
    }
}

fn by_name<K: Ord, V>(items: impl Iterator<Item = (K, V)>) -> BTreeMap<K, V> {
    items.collect()
}

/// Every key of either side with what each has.
fn pairs<K: Ord, V>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>, mut say: impl FnMut(&K, Option<&V>, Option<&V>)) {
    for (key, was) in a {
        say(key, Some(was), b.get(key));
    }
    for (key, is) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
        say(key, None, Some(is));
    }
}
