//! A fence edit before it is made: which places would change their shard, and with it perhaps the zone that serves them.
//!
//! New fences move people between shards, so an edit is judged before anyone hears of it. [`preview`] says which pairs of shards give and
//! take, how much land, and where; [`holds`] says which shards must be written by nobody at the moment of the edit: those that give land
//! to a shard of another zone. Otherwise two routers, one with the old fences and one with the new, would have two zones write for
//! one place. A shard that takes need not be held: what it gets was the giving one's alone until then.

mod area;

use crate::fence::{Fence, Fences};
use crate::map::Map;
use crate::point::Point;
use crate::types::{Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "text")]
mod text;
#[cfg(feature = "text")]
pub use text::read;

/// Places that a preview shows of each pair of shards.
pub const SAMPLES_MAX: usize = 5;

/// What new fences would change.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Preview {
    /// Names that are new.
    pub added: Vec<String>,
    /// Names that are gone.
    pub removed: Vec<String>,
    /// Those with another shape or another shard.
    pub changed: Vec<String>,
    /// Those that stay stand in another order: overlaps up to `sliver_m` go by the new one.
    pub is_reordered: bool,
    /// Land that goes from one shard to another, the largest first.
    pub gives: Vec<Give>,
    /// Shards that have fences now and would have none: nothing new would be placed in them.
    pub bare: Vec<Shard>,
    /// The side of the squares that borders were followed with, in metres to the north; land that is narrower may be missing.
    pub resolution_m: f64,
}

/// Land that goes from one shard to another.
#[derive(Clone, PartialEq, Debug)]
pub struct Give {
    /// Whose it is; `None`: nobody's, its requests are refused unless something else places them.
    pub from: Option<Shard>,
    /// Whose it will be.
    pub to: Option<Shard>,
    /// How much, in square kilometres on a sphere of radius 6,371.0088 km.
    pub km2: f64,
    /// Places in it, those in the widest stretches first; at most [`SAMPLES_MAX`].
    pub samples: Vec<Point>,
}

/// What `fences` in place of the map's would change.
pub fn preview(map: &Map, fences: &Fences) -> Preview {
    let (was, is) = (by_name(map.fences()), by_name(fences));
    let only = |a: &BTreeMap<&str, &Fence>, b: &BTreeMap<&str, &Fence>| -> Vec<String> {
        a.keys().filter(|name| !b.contains_key(*name)).map(|name| (*name).to_owned()).collect()
    };
    let differs =
        |(name, before): (&&str, &&Fence)| is.get(name).filter(|after| after != &before).map(|_| (*name).to_owned());
    let kept = |fences: &Fences, others: &BTreeMap<&str, &Fence>| -> Vec<String> {
        let names = fences.list().iter().map(|f| &f.name);
        names.filter(|name| others.contains_key(name.as_str())).cloned().collect()
    };
    let shards = |fences: &Fences| -> BTreeSet<Shard> { fences.list().iter().map(|f| f.shard).collect() };
    let (gives, resolution_m) = area::gives(map, fences);
    Preview {
        added: only(&is, &was),
        removed: only(&was, &is),
        changed: was.iter().filter_map(differs).collect(),
        is_reordered: kept(map.fences(), &is) != kept(fences, &was),
        gives,
        bare: shards(map.fences()).difference(&shards(fences)).copied().collect(),
        resolution_m,
    }
}

/// The shards that must be held while the map gets these fences, each with the zone that gets most of what it gives away: those that
/// give land to a shard of another zone, by the owners of `map`. A shard without an owner counts as another zone's.
pub fn holds(map: &Map, gives: &[Give]) -> BTreeMap<Shard, Option<Zone>> {
    let mut most: BTreeMap<Shard, (f64, Option<Zone>)> = BTreeMap::new();
    for give in gives {
        let (Some(from), Some(to)) = (give.from, give.to) else { continue };
        let (here, there) = (map.owner(from), map.owner(to));
        if here == there && here.is_some() {
            continue;
        }
        let seen = most.entry(from).or_insert((0.0, None));
        if there.is_some() && (seen.1.is_none() || give.km2 > seen.0) {
            *seen = (give.km2, there);
        }
    }
    most.into_iter().map(|(shard, (_, zone))| (shard, zone)).collect()
}

/// The shard of a place by `fences`, and by the map's default where they have none.
pub fn shard_at(map: &Map, fences: &Fences, p: Point) -> Option<Shard> {
    fences.locate(p).map_or(map.default_shard(), |(fence, _)| Some(fence.shard))
}

fn by_name(fences: &Fences) -> BTreeMap<&str, &Fence> {
    fences.list().iter().map(|f| (f.name.as_str(), f)).collect()
}
