//! All that is needed to route, and each shard's ownerships: immutable, numbered, and chained to its predecessor by digest.

use crate::fence::{Fence, Fences, How, limits};
use crate::id::Id;
use crate::names;
use crate::ownership::{Entry, History, Illegal, Kind};
use crate::point::Point;
use crate::problem::Problem;
use crate::tag::Tag;
use crate::types::{MapEpoch, SHARDS, Shard, ZONES, Zone};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Shards of all kinds: 0..1024 on the map, the rest global services.
pub const SHARDS_ALL: usize = 4096;
/// Foreign ids of each kind that a map may place.
pub const EXCEPTIONS_MAX: usize = 4_000_000;

/// A map. Cloning copies a few handles: fences, exceptions and histories are shared.
#[derive(Clone, Debug)]
pub struct Map {
    pub(crate) epoch: MapEpoch,
    pub(crate) digest: [u8; 32],
    pub(crate) previous: [u8; 32],
    pub(crate) default: Option<Shard>,
    pub(crate) zones: Arc<[ZoneInfo]>,
    /// Zones that were removed: ids, logs and histories carry their numbers for ever.
    pub(crate) gone: Arc<[ZoneInfo]>,
    /// By number; only those that the map knows.
    pub(crate) histories: Vec<Option<Arc<History>>>,
    pub(crate) exceptions: Arc<Exceptions>,
    /// What global services are called, by name.
    pub(crate) globals: Arc<[(String, Shard)]>,
    pub(crate) fences: Arc<Fences>,
    pub(crate) fences_digest: [u8; 32],
}

/// A zone's number and name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZoneInfo {
    /// What ids, logs and entries carry.
    pub id: Zone,
    /// What people say.
    pub name: String,
}

/// Foreign ids that a map places, each kind sorted by id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exceptions {
    /// Order ids (`eosid`).
    pub orders: Vec<(u64, Shard)>,
    /// Shop ids (`shopid`).
    pub shops: Vec<(u64, Shard)>,
}

/// What a map is made of, before it is judged as a whole.
#[derive(Debug)]
pub struct Parts {
    /// Its number, at least 1.
    pub epoch: MapEpoch,
    /// The digest of its predecessor; zeros: it is the first.
    pub previous: [u8; 32],
    /// Where points go that are in and near no fence.
    pub default: Option<Shard>,
    /// At most 15, numbers and names unique.
    pub zones: Vec<ZoneInfo>,
    /// Each shard's ownerships.
    pub histories: BTreeMap<Shard, History>,
    /// In any order.
    pub exceptions: Exceptions,
    /// What each shard from 1024 on is called: a global service.
    pub globals: BTreeMap<Shard, String>,
    /// With their index.
    pub fences: Arc<Fences>,
}

/// Where a tag leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The shard; the map has a history of it.
    pub shard: Shard,
    /// What decided.
    pub by: By,
}

/// What decided a route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum By {
    /// A trusted peer said so.
    ShardId,
    /// The name of a global service.
    Global,
    /// The order's id.
    Order,
    /// The shop's id.
    Shop,
    /// The fence that the location is in.
    Inside,
    /// The fence nearest to the location.
    Near,
    /// Nothing: the map's default shard.
    Default,
}

/// Where a point is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Located<'a> {
    /// The fence it is in, or the nearest.
    pub fence: Option<&'a Fence>,
    /// That fence's shard, or the default.
    pub shard: Option<Shard>,
    /// How it was found.
    pub how: How,
}

/// Why a change of a map was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// A change must change something, and each shard once.
    Entries(&'static str),
    /// The entry's epoch is not the new map's.
    Epoch {
        /// The new map's.
        expected: MapEpoch,
        /// The entry's.
        seen: MapEpoch,
    },
    /// The map has no such shard.
    UnknownShard(Shard),
    /// The map has no such zone.
    UnknownZone(Zone),
    /// The step is against the contract of ownership.
    Illegal(Shard, Illegal),
    /// A zone cannot be added, or removed: why.
    Zone(String),
    /// A global service cannot be added: why.
    Global(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Entries(what) => f.write_str(what),
            Refused::Epoch { expected, seen } => write!(f, "an entry of epoch {seen}, the new map has {expected}"),
            Refused::UnknownShard(s) => write!(f, "shard {s} is not on the map"),
            Refused::UnknownZone(z) => write!(f, "zone {z} is not on the map"),
            Refused::Illegal(s, why) => write!(f, "shard {s}: {why}"),
            Refused::Zone(why) | Refused::Global(why) => f.write_str(why),
        }
    }
}
impl std::error::Error for Refused {}

impl Map {
    /// Judges the parts as a whole. All problems are reported together.
    pub fn from_parts(parts: Parts) -> Result<Map, Vec<Problem>> {
        let problems = faults(&parts);
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut histories = Vec::new();
        for (shard, history) in parts.histories {
            histories.resize(usize::from(shard.0) + 1, None);
            histories[usize::from(shard.0)] = Some(Arc::new(history));
        }
        let Exceptions { mut orders, mut shops } = parts.exceptions;
        orders.sort_unstable();
        shops.sort_unstable();
        let mut map = Map {
            epoch: parts.epoch,
            digest: [0; 32],
            previous: parts.previous,
            default: parts.default,
            zones: parts.zones.into(),
            gone: [].into(),
            histories,
            exceptions: Arc::new(Exceptions { orders, shops }),
            globals: by_name(parts.globals),
            fences_digest: crate::codec::fences_digest(&parts.fences),
            fences: parts.fences,
        };
        map.digest = map.compute_digest();
        Ok(map)
    }

    /// Its number.
    pub fn epoch(&self) -> MapEpoch {
        self.epoch
    }
    /// BLAKE3 over everything in it.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
    /// BLAKE3 over its fences alone.
    pub fn fences_digest(&self) -> [u8; 32] {
        self.fences_digest
    }
    /// The digest of the map before it; zeros: this is the first.
    pub fn previous(&self) -> [u8; 32] {
        self.previous
    }
    /// Where points go that are in and near no fence.
    pub fn default_shard(&self) -> Option<Shard> {
        self.default
    }
    /// The fences in their order.
    pub fn fences(&self) -> &Fences {
        &self.fences
    }
    /// The foreign ids that it places.
    pub fn exceptions(&self) -> &Exceptions {
        &self.exceptions
    }

    /// Where a tag leads: shard id (only from a trusted peer), global service, order, shop, location, default, in this order. A
    /// shard without a history is not a route: the next key decides. A global service that the map does not know leads nowhere: what
    /// is meant for one must not land in some shard.
    pub fn route(&self, tag: &Tag, trusted: bool, now_ms: u64) -> Option<Route> {
        let known = |shard: Shard, by| self.history(shard).map(|_| Route { shard, by });
        let told = tag.shardid.filter(|_| trusted).and_then(|shard| known(shard, By::ShardId));
        if let (None, Some(name)) = (told, tag.global) {
            return self.global_named(name).map(|shard| Route { shard, by: By::Global });
        }
        told.or_else(|| known(self.shard_of(tag.order?, &self.exceptions.orders, now_ms)?, By::Order))
            .or_else(|| known(self.shard_of(tag.shop?, &self.exceptions.shops, now_ms)?, By::Shop))
            .or_else(|| {
                let (fence, how) = self.fences.locate(tag.point?)?;
                known(fence.shard, if how == How::Near { By::Near } else { By::Inside })
            })
            .or_else(|| known(self.default?, By::Default))
    }

    /// Ours by its own bits, or one that the map places.
    fn shard_of(&self, id: u64, placed: &[(u64, Shard)], now_ms: u64) -> Option<Shard> {
        let ours = Id(id);
        if ours.is_plausible(now_ms, |z| self.has_zone(z)) && self.history(ours.shard()).is_some() {
            return Some(ours.shard());
        }
        let at = placed.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(placed[at].1)
    }

    /// Where a point is. Allocates nothing.
    pub fn locate(&self, p: Point) -> Located<'_> {
        match self.fences.locate(p) {
            Some((fence, how)) => Located { fence: Some(fence), shard: Some(fence.shard), how },
            None => {
                let how = if self.default.is_some() { How::Default } else { How::None };
                Located { fence: None, shard: self.default, how }
            }
        }
    }

    /// A shard's ownerships.
    pub fn history(&self, shard: Shard) -> Option<&History> {
        self.histories.get(usize::from(shard.0))?.as_deref()
    }
    /// What the map says of a shard now.
    pub fn view(&self, shard: Shard) -> Option<&Entry> {
        self.history(shard).map(History::view)
    }
    /// Who owns a shard now; `None` also while a take-over is under way.
    pub fn owner(&self, shard: Shard) -> Option<Zone> {
        self.view(shard)?.owner
    }
    /// All shards of the map, in order.
    pub fn shards(&self) -> impl Iterator<Item = (Shard, &History)> {
        self.histories.iter().enumerate().filter_map(|(n, h)| Some((Shard(n as u16), h.as_deref()?)))
    }

    /// Those that are on their way to another owner, or lost without a new one, in order.
    pub fn unsettled(&self) -> impl Iterator<Item = Shard> {
        self.shards().filter(|(_, history)| history.view().kind.is_unsettled()).map(|(shard, _)| shard)
    }

    /// The global services by name, each with its shard.
    pub fn globals(&self) -> &[(String, Shard)] {
        &self.globals
    }
    /// The shard of the global service of a name.
    pub fn global_named(&self, name: &[u8]) -> Option<Shard> {
        let at = self.globals.binary_search_by(|(n, _)| n.as_bytes().cmp(name)).ok()?;
        Some(self.globals[at].1)
    }
    /// What the global service in `shard` is called.
    pub fn global_name(&self, shard: Shard) -> Option<&str> {
        self.globals.iter().find(|(_, s)| *s == shard).map(|(name, _)| name.as_str())
    }

    /// All zones, in the order of their numbers.
    pub fn zones(&self) -> &[ZoneInfo] {
        &self.zones
    }
    /// Zones that were removed, in the order of their numbers, which are never used again.
    pub fn gone(&self) -> &[ZoneInfo] {
        &self.gone
    }
    /// Is there a zone of this number, or was there one? Its ids are ours for ever.
    pub fn has_zone(&self, zone: Zone) -> bool {
        self.all_zones().any(|z| z.id == zone)
    }
    fn all_zones(&self) -> impl Iterator<Item = &ZoneInfo> {
        self.zones.iter().chain(self.gone.iter())
    }
    /// The zone of a name.
    pub fn zone_named(&self, name: &str) -> Option<Zone> {
        self.zones.iter().find(|z| z.name == name).map(|z| z.id)
    }
    /// The name of a zone; `?` if the map does not know it.
    pub fn zone_name(&self, zone: Zone) -> &str {
        self.all_zones().find(|z| z.id == zone).map_or("?", |z| &z.name)
    }

    /// The successor: this map with one more entry for each of some shards. Every entry must be a legal step and carry
    /// the new map's epoch.
    pub fn with_entries(&self, entries: Vec<(Shard, Entry)>) -> Result<Map, Refused> {
        if entries.is_empty() {
            return Err(Refused::Entries("no entry: a map's number rises only when something changes"));
        }
        self.successor(entries, |_| {})
    }

    /// As [`Map::with_entries`], with other fences, and perhaps no entry. Which shards such a step needs entries for is told by
    /// [`crate::edit::holds`], and judged by [`Map::may_become`].
    pub fn with_fences(&self, fences: Arc<Fences>, entries: Vec<(Shard, Entry)>) -> Result<Map, Refused> {
        let known = |shard: Shard| usize::from(shard.0) < SHARDS && self.history(shard).is_some();
        if let Some(fence) = fences.list().iter().find(|f| !known(f.shard)) {
            return Err(Refused::UnknownShard(fence.shard));
        }
        let digest = crate::codec::fences_digest(&fences);
        if digest == self.fences_digest {
            return Err(Refused::Entries("the same fences: a map's number rises only when something changes"));
        }
        self.successor(entries, |next| (next.fences, next.fences_digest) = (fences, digest))
    }

    /// The shard that a new global service of this name would have: the first that the map does not know.
    pub fn place_global(&self, name: &str) -> Result<Shard, Refused> {
        if !names::is_word(name) {
            let seen: String = name.chars().take(names::WORD_BYTES_MAX).collect();
            return Err(Refused::Global(format!("global service \"{seen}\"; expected 1 to 64 of a-z, 0-9 and _")));
        }
        if let Some(shard) = self.global_named(name.as_bytes()) {
            return Err(Refused::Global(format!("global service \"{name}\" is on the map already: shard {shard}")));
        }
        let mut free = (SHARDS..SHARDS_ALL).map(|n| Shard(n as u16)).filter(|shard| self.history(*shard).is_none());
        let none = || Refused::Global(format!("shards {SHARDS} to {} are taken: no number is left", SHARDS_ALL - 1));
        free.next().ok_or_else(none)
    }

    /// As [`Map::with_entries`], with one more global service, which `zone` owns.
    pub fn with_global(&self, name: &str, zone: Zone) -> Result<Map, Refused> {
        let shard = self.place_global(name)?;
        let history = History::new(zone, self.epoch.next());
        self.zones_known(history.view())?;
        self.successor(vec![], |next| {
            let at = usize::from(shard.0);
            next.histories.resize(next.histories.len().max(at + 1), None);
            next.histories[at] = Some(Arc::new(history));
            let known = next.globals.iter().map(|(name, shard)| (*shard, name.clone()));
            next.globals = by_name(known.chain([(shard, name.to_owned())]).collect());
        })
    }

    /// As [`Map::with_entries`], with one more zone, which owns nothing; its number was never another's.
    pub fn with_zone(&self, name: &str) -> Result<Map, Refused> {
        let id = Zone::all().find(|z| !self.has_zone(*z));
        let none = || Refused::Zone(format!("{ZONES} zones are on the map, or were: no number is left"));
        let zone = ZoneInfo { id: id.ok_or_else(none)?, name: name.to_owned() };
        let mut all: Vec<ZoneInfo> = self.all_zones().cloned().chain([zone.clone()]).collect();
        let mut faults = Vec::new();
        zone_faults(&all, &mut |problem: Problem| faults.push(problem.what));
        if !faults.is_empty() {
            return Err(Refused::Zone(faults.join("; ")));
        }
        all.retain(|z| self.zones.contains(z) || *z == zone);
        all.sort_by_key(|z| z.id);
        self.successor(vec![], |next| next.zones = all.into())
    }

    /// As [`Map::with_entries`], without a zone that owns nothing and is to get nothing. Its number and its name stay its own.
    pub fn without_zone(&self, zone: Zone) -> Result<Map, Refused> {
        let Some(removed) = self.zones.iter().find(|z| z.id == zone) else { return Err(Refused::UnknownZone(zone)) };
        if let Some((shard, _)) = self.shards().find(|(_, history)| has_or_gets(history.view(), zone)) {
            return Err(Refused::Zone(format!(
                "zone {} has shard {shard}, or is to get it: move it away first",
                removed.name
            )));
        }
        if self.zones.len() == 1 {
            return Err(Refused::Zone(format!("zone {} is the only one; a map has at least one", removed.name)));
        }
        let mut gone: Vec<ZoneInfo> = self.gone.iter().chain([removed]).cloned().collect();
        gone.sort_by_key(|z| z.id);
        let zones: Vec<ZoneInfo> = self.zones.iter().filter(|z| z.id != zone).cloned().collect();
        self.successor(vec![], |next| (next.zones, next.gone) = (zones.into(), gone.into()))
    }

    fn successor(&self, entries: Vec<(Shard, Entry)>, change: impl FnOnce(&mut Map)) -> Result<Map, Refused> {
        let mut next = self.clone();
        next.epoch = self.epoch.next();
        next.previous = self.digest;
        for (shard, entry) in entries {
            self.zones_known(&entry)?;
            let before = self.history(shard).ok_or(Refused::UnknownShard(shard))?;
            if entry.epoch != next.epoch {
                return Err(Refused::Epoch { expected: next.epoch, seen: entry.epoch });
            }
            let slot = next.histories[usize::from(shard.0)].as_mut().expect("it has a history, asked above");
            if slot.view().epoch == next.epoch {
                return Err(Refused::Entries("two entries for one shard"));
            }
            let after = before.with(entry).map_err(|why| Refused::Illegal(shard, why))?;
            before.may_become(&after).map_err(|why| Refused::Illegal(shard, why))?;
            *slot = Arc::new(after);
        }
        change(&mut next);
        next.digest = next.compute_digest();
        Ok(next)
    }

    fn zones_known(&self, entry: &Entry) -> Result<(), Refused> {
        if let Some(gone) = self.gone.iter().find(|z| has_or_gets(entry, z.id)) {
            return Err(Refused::UnknownZone(gone.id));
        }
        match entry_zones(entry).find(|z| !self.has_zone(*z)) {
            Some(zone) => Err(Refused::UnknownZone(zone)),
            None => Ok(()),
        }
    }
}

fn by_name(globals: BTreeMap<Shard, String>) -> Arc<[(String, Shard)]> {
    let mut all: Vec<(String, Shard)> = globals.into_iter().map(|(shard, name)| (name, shard)).collect();
    all.sort();
    all.into()
}

/// Does a zone own a shard by this entry, is it to get it, or was it lost with it and nobody has it yet?
pub(crate) fn has_or_gets(entry: &Entry, zone: Zone) -> bool {
    let lost = entry.lost.filter(|_| entry.kind == Kind::Lost).map(|(zone, _)| zone);
    [entry.owner, entry.to, lost].contains(&Some(zone))
}

/// Every zone that an entry names.
fn entry_zones(entry: &Entry) -> impl Iterator<Item = Zone> + '_ {
    let named = [entry.owner, entry.to, entry.lost.map(|(z, _)| z)];
    named.into_iter().flatten().chain(entry.cut.iter().map(|(z, _)| z))
}

/// What is wrong with the parts, taken together.
fn faults(parts: &Parts) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut wrong = |problem| found.push(problem);
    if parts.epoch.0 == 0 {
        wrong(Problem::new("epoch 0; the first map has epoch 1"));
    }
    zone_faults(&parts.zones, &mut wrong);
    let zone_known = |zone: Zone| parts.zones.iter().any(|z| z.id == zone);
    for (shard, history) in &parts.histories {
        if usize::from(shard.0) >= SHARDS_ALL {
            wrong(Problem::new(format!("shard {shard}; the last possible is {}", SHARDS_ALL - 1)));
        }
        if history.view().epoch > parts.epoch {
            wrong(Problem::new(format!("shard {shard} has an entry newer than the map's epoch {}", parts.epoch)));
        }
        for zone in history.entries().iter().flat_map(entry_zones).filter(|z| !zone_known(*z)) {
            wrong(Problem::new(format!("shard {shard} names zone {zone}, which the map does not have")));
        }
    }
    global_faults(parts, &mut wrong);
    let local = |shard: Shard| usize::from(shard.0) < SHARDS && parts.histories.contains_key(&shard);
    if let Some(shard) = parts.default.filter(|s| !local(*s)) {
        wrong(Problem::new(format!("the default shard {shard} has no owner, or is not within 0..{SHARDS}")));
    }
    for fence in parts.fences.list().iter().filter(|f| !local(f.shard)) {
        let what = format!("unknown shard {}: it has no owner, or is not within 0..{SHARDS}", fence.shard);
        wrong(Problem::new(what).of(&fence.name));
    }
    exception_faults("order", &parts.exceptions.orders, &local, &mut wrong);
    exception_faults("shop", &parts.exceptions.shops, &local, &mut wrong);
    found
}

/// A map of format 1 may have global shards without a name: nobody can ask for these.
fn global_faults(parts: &Parts, wrong: &mut impl FnMut(Problem)) {
    let mut named: BTreeMap<&str, Shard> = BTreeMap::new();
    for (shard, name) in &parts.globals {
        if !shard.is_global() || usize::from(shard.0) >= SHARDS_ALL {
            let last = SHARDS_ALL - 1;
            wrong(Problem::new(format!("global service \"{name}\" is shard {shard}; expected {SHARDS} to {last}")));
        } else if !parts.histories.contains_key(shard) {
            wrong(Problem::new(format!("global service \"{name}\", shard {shard}, has no owner")));
        }
        if !names::is_word(name) {
            wrong(Problem::new(format!("shard {shard} is called \"{name}\"; expected 1 to 64 of a-z, 0-9 and _")));
        }
        if let Some(other) = named.insert(name, *shard) {
            wrong(Problem::new(format!("shards {other} and {shard} are both called \"{name}\"")));
        }
    }
}

fn zone_faults(zones: &[ZoneInfo], wrong: &mut impl FnMut(Problem)) {
    if zones.is_empty() {
        wrong(Problem::new("no zones; a map has at least one"));
    }
    for (n, zone) in zones.iter().enumerate() {
        if usize::from(zone.id.0) >= ZONES {
            wrong(Problem::new(format!("zone \"{}\" has number {}, at most {}", zone.name, zone.id, ZONES - 1)));
        }
        if zone.name.is_empty()
            || zone.name.len() > limits::NAME_BYTES_MAX
            || zone.name == "none"
            || zone.name == "edge"
        {
            wrong(Problem::new(format!("zone {} is called \"{}\", which names no zone", zone.id, zone.name)));
        }
        if let Some(other) = zones[..n].iter().find(|z| z.id == zone.id || z.name == zone.name) {
            let what = format!(
                "zones \"{}\" ({}) and \"{}\" ({}) share a name or number",
                other.name, other.id, zone.name, zone.id
            );
            wrong(Problem::new(what));
        }
    }
}

fn exception_faults(
    kind: &str,
    placed: &[(u64, Shard)],
    local: &impl Fn(Shard) -> bool,
    wrong: &mut impl FnMut(Problem),
) {
    if placed.len() > EXCEPTIONS_MAX {
        wrong(Problem::new(format!("{} exceptions, at most {EXCEPTIONS_MAX}", placed.len())));
    }
    let mut ids: Vec<u64> = placed.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    for pair in ids.windows(2).filter(|pair| pair[0] == pair[1]) {
        wrong(Problem::new(format!("{kind} {} is placed twice", pair[0])));
    }
    for (id, shard) in placed.iter().filter(|(_, shard)| !local(*shard)) {
        wrong(Problem::new(format!("{kind} {id} is placed in the unknown shard {shard}")));
    }
}
