//! The binary form of a map: what is handed to routers and logs, stored, and digested.
//!
//! ```text
//! magic "EZMAP\0" | version u16 | digest 32 | head length u32 | head | fences 1, length u32, bytes  or  fences 0
//! head    epoch u64, previous 32, fences digest 32, default u16 (65535: none)
//!         zones      count u32 { number u8, plus 128 if it was removed, name }
//!         histories  count u32 { shard u16, entries u32 { entry } }
//!         orders     count u32 { id u64, shard u16 }      shops: the same
//!         globals    count u32, at least 1 { shard u16, name }, by shard        (version 2 only)
//! entry   epoch u64, kind u8, owner u8, to u8, lost u8 (255: none), owner epoch u64, lost epoch u64,
//!         cut: zones u16 (a bit each), seq u64 for each
//! fences  near m u32, sliver m u32, count u32 { name, shard u16, rings u32 { points u32 { lng i32, lat i32 } } }
//! name    length u16, UTF-8
//! ```
//! Version 2 adds the names of global services. A map without any is written as version 1, as it always was: maps on disks and
//! their digests stay what they are, and a program that knows version 1 alone reads every map that it can act on.
//!
//! Little endian. The digest is BLAKE3 over the head; the head holds the fences' own digest, so a map whose fences are
//! unchanged can travel without them and still be checked whole.

use crate::fence::{Fence, Fences, limits};
use crate::map::{Exceptions, Map, Parts, SHARDS_ALL, ZoneInfo, has_or_gets};
use crate::ownership::{Entry, History, Kind};
use crate::point::Point;
use crate::types::{MapEpoch, OwnerEpoch, Positions, Shard, ZONES, Zone};
pub use crate::wire::Malformed;
use crate::wire::{Reader, put_count, put_name};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The first bytes of a binary map.
pub const MAGIC: &[u8; 6] = b"EZMAP\0";
const VERSION: u16 = 1;
const VERSION_GLOBALS: u16 = 2;
const NO_SHARD: u16 = u16::MAX;
const NO_ZONE: u8 = u8::MAX;
/// A zone that was removed.
const GONE: u8 = 128;

impl Map {
    /// The map as bytes, whole.
    pub fn encode(&self) -> Vec<u8> {
        let fences = fences_bytes(&self.fences);
        let mut out = self.encode_without_fences();
        *out.last_mut().expect("the form without fences ends with a zero") = 1;
        put_count(&mut out, fences.len());
        out.extend(fences);
        out
    }

    /// The map as bytes for those who have its fences already, in another map.
    pub fn encode_without_fences(&self) -> Vec<u8> {
        let head = self.head();
        let mut out = Vec::with_capacity(head.len() + 64);
        out.extend(MAGIC);
        let version = if self.globals.is_empty() { VERSION } else { VERSION_GLOBALS };
        out.extend(version.to_le_bytes());
        out.extend(self.digest);
        put_count(&mut out, head.len());
        out.extend(head);
        out.push(0);
        out
    }

    /// A map from bytes that may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Map, Malformed> {
        decode(bytes, None)
    }

    /// As [`Map::decode`], with the fences of `known` where they are the same: that spares building the index, and is
    /// the only way to read a map that travels without its fences.
    pub fn decode_after(bytes: &[u8], known: &Map) -> Result<Map, Malformed> {
        decode(bytes, Some(known))
    }

    /// This map, of whose zones these were removed; `None`: one of them has a shard, or none would be left.
    fn with_gone(mut self, gone: &[Zone]) -> Option<Map> {
        if gone.is_empty() {
            return Some(self);
        }
        let (gone, zones): (Vec<ZoneInfo>, _) = self.zones.iter().cloned().partition(|z| gone.contains(&z.id));
        let used = |zone: Zone| self.shards().any(|(_, history)| has_or_gets(history.view(), zone));
        if zones.is_empty() || gone.iter().any(|z| used(z.id)) {
            return None;
        }
        (self.zones, self.gone) = (zones.into(), gone.into());
        self.digest = self.compute_digest();
        Some(self)
    }

    pub(crate) fn compute_digest(&self) -> [u8; 32] {
        *blake3::hash(&self.head()).as_bytes()
    }

    fn head(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.epoch.0.to_le_bytes());
        out.extend(self.previous);
        out.extend(self.fences_digest);
        out.extend(self.default.map_or(NO_SHARD, |s| s.0).to_le_bytes());
        let mut zones: Vec<(u8, &ZoneInfo)> = self.zones.iter().map(|z| (0, z)).collect();
        zones.extend(self.gone.iter().map(|z| (GONE, z)));
        zones.sort_by_key(|(_, z)| z.id);
        put_count(&mut out, zones.len());
        for (gone, zone) in zones {
            out.push(zone.id.0 | gone);
            put_name(&mut out, &zone.name);
        }
        put_count(&mut out, self.shards().count());
        for (shard, history) in self.shards() {
            out.extend(shard.0.to_le_bytes());
            put_count(&mut out, history.entries().len());
            history.entries().iter().for_each(|entry| put_entry(&mut out, entry));
        }
        for placed in [&self.exceptions.orders, &self.exceptions.shops] {
            put_count(&mut out, placed.len());
            for (id, shard) in placed {
                out.extend(id.to_le_bytes());
                out.extend(shard.0.to_le_bytes());
            }
        }
        if !self.globals.is_empty() {
            put_globals(&mut out, &self.globals);
        }
        out
    }
}

impl Fences {
    /// The fences as bytes, as a map has them.
    pub fn encode(&self) -> Vec<u8> {
        fences_bytes(self)
    }

    /// Fences from bytes that may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Fences, Malformed> {
        get_fences(bytes)
    }
}

/// The digest of the fences alone.
pub(crate) fn fences_digest(fences: &Fences) -> [u8; 32] {
    *blake3::hash(&fences_bytes(fences)).as_bytes()
}

fn decode(bytes: &[u8], known: Option<&Map>) -> Result<Map, Malformed> {
    let mut r = Reader::new(bytes);
    if r.array::<6>()? != *MAGIC {
        return Err(r.fault("a binary map begins with EZMAP"));
    }
    let version = r.u16()?;
    if version != VERSION && version != VERSION_GLOBALS {
        return Err(r.fault("a version that this program does not know; it knows 1 and 2"));
    }
    let digest = r.array::<32>()?;
    let head_len = r.count(1)?;
    let head = r.take(head_len)?;
    if *blake3::hash(head).as_bytes() != digest {
        return Err(r.fault("the digest is not that of the head"));
    }
    let fences_digest: [u8; 32] = head.get(40..72).and_then(|d| d.try_into().ok()).unwrap_or_default();
    let fences = fences_after_head(&mut r, fences_digest, known)?;
    r.end()?;
    let (parts, gone) = head_parts(head, version, fences)?;
    let map = Map::from_parts(parts).map_err(|_| r.fault("parts that contradict each other"))?;
    let map = map.with_gone(&gone).ok_or_else(|| r.fault("a zone that was removed has a shard"))?;
    if map.digest != digest {
        return Err(r.fault("a head that is not written in its only form"));
    }
    Ok(map)
}

fn fences_after_head(r: &mut Reader, digest: [u8; 32], known: Option<&Map>) -> Result<Arc<Fences>, Malformed> {
    let known = known.filter(|map| map.fences_digest == digest).map(|map| map.fences.clone());
    match r.u8()? {
        0 => known.ok_or_else(|| r.fault("a map without fences, and no other map at hand has them")),
        1 => {
            let len = r.count(1)?;
            let bytes = r.take(len)?;
            if *blake3::hash(bytes).as_bytes() != digest {
                return Err(r.fault("the digest is not that of the fences"));
            }
            match known {
                Some(fences) => Ok(fences),
                None => get_fences(bytes).map(Arc::new),
            }
        }
        _ => Err(r.fault("fences are there (1) or not (0)")),
    }
}

/// The parts, and which of their zones were removed.
fn head_parts(head: &[u8], version: u16, fences: Arc<Fences>) -> Result<(Parts, Vec<Zone>), Malformed> {
    let mut r = Reader::new(head);
    let (epoch, previous, _) = (MapEpoch(r.u64()?), r.array()?, r.array::<32>()?);
    let default = Some(r.u16()?).filter(|s| *s != NO_SHARD).map(Shard);
    let (mut zones, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..r.count(3)? {
        let number = r.u8()?;
        let id = Zone(number & !GONE);
        zones.push(ZoneInfo { id, name: r.name(limits::NAME_BYTES_MAX)? });
        gone.extend((number & GONE != 0).then_some(id));
        if zones.len() > ZONES {
            return Err(r.fault("more than 15 zones"));
        }
    }
    let mut histories = BTreeMap::new();
    for _ in 0..r.count(6)? {
        let shard = Shard(r.u16()?);
        let entries = (0..r.count(30)?).map(|_| get_entry(&mut r)).collect::<Result<Vec<_>, _>>()?;
        let history = History::from_entries(entries).map_err(|_| r.fault("a history that contradicts itself"))?;
        if usize::from(shard.0) >= SHARDS_ALL || histories.insert(shard, history).is_some() {
            return Err(r.fault("a shard out of range, or twice"));
        }
    }
    let exceptions = Exceptions { orders: get_placed(&mut r)?, shops: get_placed(&mut r)? };
    let globals = if version == VERSION { BTreeMap::new() } else { get_globals(&mut r)? };
    r.end()?;
    Ok((Parts { epoch, previous, default, zones, histories, exceptions, globals, fences }, gone))
}

fn put_globals(out: &mut Vec<u8>, globals: &[(String, Shard)]) {
    let by_shard: BTreeMap<Shard, &str> = globals.iter().map(|(name, shard)| (*shard, name.as_str())).collect();
    put_count(out, by_shard.len());
    for (shard, name) in by_shard {
        out.extend(shard.0.to_le_bytes());
        put_name(out, name);
    }
}

fn get_globals(r: &mut Reader) -> Result<BTreeMap<Shard, String>, Malformed> {
    let count = r.count(4)?;
    if count == 0 {
        return Err(r.fault("no global service in a map of version 2"));
    }
    (0..count).map(|_| Ok((Shard(r.u16()?), r.name(limits::NAME_BYTES_MAX)?))).collect()
}

fn get_placed(r: &mut Reader) -> Result<Vec<(u64, Shard)>, Malformed> {
    (0..r.count(10)?).map(|_| Ok((r.u64()?, Shard(r.u16()?)))).collect()
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let kind = match entry.kind {
        Kind::Own => 0,
        Kind::Moving => 1,
        Kind::Lost => 2,
        Kind::Unlock => 3,
    };
    let zone = |z: Option<Zone>| z.map_or(NO_ZONE, |z| z.0);
    out.extend(entry.epoch.0.to_le_bytes());
    out.extend([kind, zone(entry.owner), zone(entry.to), zone(entry.lost.map(|(z, _)| z))]);
    out.extend(entry.owner_epoch.0.to_le_bytes());
    out.extend(entry.lost.map_or(0, |(_, e)| e.0).to_le_bytes());
    let named = entry.cut.iter().fold(0u16, |bits, (z, _)| bits | 1 << z.0);
    out.extend(named.to_le_bytes());
    entry.cut.iter().for_each(|(_, seq)| out.extend(seq.to_le_bytes()));
}

fn get_entry(r: &mut Reader) -> Result<Entry, Malformed> {
    let epoch = MapEpoch(r.u64()?);
    let kind = match r.u8()? {
        0 => Kind::Own,
        1 => Kind::Moving,
        2 => Kind::Lost,
        3 => Kind::Unlock,
        _ => return Err(r.fault("an entry is of kind 0 to 3")),
    };
    let zones = [r.u8()?, r.u8()?, r.u8()?];
    if zones.iter().any(|z| usize::from(*z) >= ZONES && *z != NO_ZONE) {
        return Err(r.fault("a zone beyond 14"));
    }
    let [owner, to, lost] = zones.map(|z| (z != NO_ZONE).then_some(Zone(z)));
    let owner_epoch = OwnerEpoch(r.u64()?);
    let lost_epoch = OwnerEpoch(r.u64()?);
    let named = r.u16()?;
    if named >> ZONES != 0 {
        return Err(r.fault("a cut for a zone beyond 14"));
    }
    let mut cut = Positions::default();
    for zone in Zone::all().filter(|z| named >> z.0 & 1 == 1) {
        cut.set(zone, r.u64()?);
    }
    Ok(Entry { epoch, kind, owner, owner_epoch, to, lost: lost.map(|z| (z, lost_epoch)), cut })
}

fn fences_bytes(fences: &Fences) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(fences.near_m().to_le_bytes());
    out.extend(fences.sliver_m().to_le_bytes());
    put_count(&mut out, fences.list().len());
    for fence in fences.list() {
        put_name(&mut out, &fence.name);
        out.extend(fence.shard.0.to_le_bytes());
        put_count(&mut out, fence.rings.len());
        for ring in &fence.rings {
            put_count(&mut out, ring.len());
            for p in ring {
                out.extend(p.lng_e7.to_le_bytes());
                out.extend(p.lat_e7.to_le_bytes());
            }
        }
    }
    out
}

fn get_fences(bytes: &[u8]) -> Result<Fences, Malformed> {
    let mut r = Reader::new(bytes);
    let (near_m, sliver_m) = (r.u32()?, r.u32()?);
    let list = (0..r.count(8)?).map(|_| get_fence(&mut r)).collect::<Result<Vec<_>, _>>()?;
    r.end()?;
    Fences::new(list, near_m, sliver_m).map_err(|_| r.fault("fences beyond the limits"))
}

fn get_fence(r: &mut Reader) -> Result<Fence, Malformed> {
    let name = r.name(limits::NAME_BYTES_MAX)?;
    let shard = Shard(r.u16()?);
    let rings = (0..r.count(4)?).map(|_| get_ring(r)).collect::<Result<Vec<_>, _>>()?;
    Ok(Fence { name, shard, rings })
}

fn get_ring(r: &mut Reader) -> Result<Vec<Point>, Malformed> {
    let count = r.count(8)?;
    (0..count)
        .map(|_| Point::new(r.i32()?, r.i32()?).ok_or_else(|| r.fault("a point that is not on the globe")))
        .collect()
}
