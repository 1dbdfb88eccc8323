//! New fences on their way to the map: judged, previewed, and kept in an operation's record.
//!
//! Judging takes a moment (every pair of fences is compared, borders are followed), so it is done on a map at hand, apart from the service,
//! which then asks only whether that map's fences are still those of today.

use crate::api::{FencesAsk, FencesPreview, GiveView, Town, TownView};
use crate::limits::TOWNS_MAX;
use crate::service::{hex, unhex};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use shardmap::edit::{self, Give, Preview};
use shardmap::fence::Fences;
use shardmap::geojson::Datum;
use shardmap::map::Map;
use shardmap::point::Point;
use shardmap::problem::{Note, Problem};
use shardmap::{Shard, Zone};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Problems that an answer names.
const PROBLEMS_MAX: usize = 100;

/// Fences in an operation's record: as hexadecimal text there, with their index here.
#[derive(Clone, Debug)]
pub struct NewFences(Arc<Fences>);

impl NewFences {
    /// Them.
    pub fn get(&self) -> Arc<Fences> {
        self.0.clone()
    }
}

impl PartialEq for NewFences {
    fn eq(&self, other: &NewFences) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.encode() == other.0.encode()
    }
}

impl Serialize for NewFences {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex(&self.0.encode()))
    }
}

impl<'de> Deserialize<'de> for NewFences {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<NewFences, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = unhex(&text).ok_or_else(|| serde::de::Error::custom("fences: expected hexadecimal digits"))?;
        let fences = Fences::decode(&bytes).map_err(|e| serde::de::Error::custom(format!("fences: {e}")))?;
        Ok(NewFences(Arc::new(fences)))
    }
}

/// New fences that were judged against a map.
pub struct Prepared {
    /// Of the fences that they were judged against.
    pub before: [u8; 32],
    fences: Arc<Fences>,
    notes: Vec<Note>,
    preview: Preview,
}

/// Judges the fences in `geojson` against `map`: all that is wrong with them, a sentence each.
pub fn prepare(map: &Map, geojson: &Value, datum: Option<&str>) -> Result<Prepared, Vec<String>> {
    let datum = match datum {
        None | Some("WGS84") => Datum::Wgs84,
        Some("GCJ-02") => Datum::Gcj02,
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            return Err(vec![format!("datum \"{other}\"; expected \"WGS84\" or \"GCJ-02\"")]);
        }
    };
    let (fences, notes) = edit::read(map, geojson, datum).map_err(|problems| told(&problems))?;
    let preview = edit::preview(map, &fences);
    Ok(Prepared { before: map.fences_digest(), fences, notes, preview })
}

fn told(problems: &[Problem]) -> Vec<String> {
    let named = |p: &Problem| p.clone().in_file("fences").to_string();
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    problems.iter().take(PROBLEMS_MAX).map(named).chain(more).collect()
}

impl Prepared {
    /// Is nothing else than what is there?
    pub fn is_the_same(&self, map: &Map) -> bool {
        self.fences.encode() == map.fences().encode()
    }

    /// The shards that must be held, each with the zone that gets most of its land.
    pub fn holds(&self, map: &Map) -> BTreeMap<Shard, Option<Zone>> {
        edit::holds(map, &self.preview.gives)
    }

    /// For an operation's record.
    pub fn edit(&self, map: &Map) -> crate::op::Edit {
        let pair = |g: &Give| Some((g.from?.0, g.to?.0));
        let pairs: Vec<(u16, u16)> = self.preview.gives.iter().filter_map(pair).collect();
        let all: f64 = self.preview.gives.iter().map(|g| g.km2).sum();
        let zones = |g: &&Give| zone(map, g.from) != zone(map, g.to);
        let away: f64 = self.preview.gives.iter().filter(zones).map(|g| g.km2).sum();
        let p = &self.preview;
        let told = format!(
            "{} fences added, {} removed, {} changed: {all:.3} km2 change their shard, {away:.3} of them their zone",
            p.added.len(),
            p.removed.len(),
            p.changed.len()
        );
        crate::op::Edit { fences: Some(NewFences(self.fences.clone())), pairs, told }
    }

    /// As it is shown, with what becomes of `towns`.
    pub fn view(&self, map: &Map, ask: &FencesAsk) -> Result<FencesPreview, String> {
        let towns = self.towns(map, &ask.towns)?;
        let p = &self.preview;
        let mut notes: Vec<String> = told(&self.notes);
        if p.is_reordered {
            notes.push("fences that stay stand in another order: overlaps up to sliver_m go by the new one".into());
        }
        let give = |g: &Give| GiveView {
            from: g.from.map(|s| s.0),
            to: g.to.map(|s| s.0),
            from_zone: zone(map, g.from).map(|z| map.zone_name(z).to_owned()),
            to_zone: zone(map, g.to).map(|z| map.zone_name(z).to_owned()),
            changes_zone: zone(map, g.from) != zone(map, g.to),
            km2: g.km2,
            samples: g.samples.iter().map(Point::to_string).collect(),
            towns: towns.iter().filter(|t| (t.from, t.to) == (g.from.map(|s| s.0), g.to.map(|s| s.0))).count() as u64,
        };
        Ok(FencesPreview {
            from_epoch: map.epoch().0,
            notes,
            added: p.added.clone(),
            removed: p.removed.clone(),
            changed: p.changed.clone(),
            gives: p.gives.iter().map(give).collect(),
            bare: p.bare.iter().map(|s| s.0).collect(),
            held: self.holds(map).keys().map(|s| s.0).collect(),
            towns,
            resolution_m: p.resolution_m,
        })
    }

    fn towns(&self, map: &Map, towns: &[Town]) -> Result<Vec<TownView>, String> {
        if towns.len() > TOWNS_MAX {
            return Err(format!("{} towns, at most {TOWNS_MAX}", towns.len()));
        }
        let mut changed = vec![];
        for town in towns {
            let place = Point::from_degrees(town.lng, town.lat);
            let place = place
                .ok_or_else(|| format!("town \"{}\" at {},{} is not on the globe", town.name, town.lng, town.lat))?;
            let (was, is) = (at(map, map.fences(), place), at(map, &self.fences, place));
            if was != is {
                changed.push(TownView { name: town.name.clone(), from: was, to: is });
            }
        }
        Ok(changed)
    }
}

fn zone(map: &Map, shard: Option<Shard>) -> Option<Zone> {
    map.owner(shard?)
}

fn at(map: &Map, fences: &Fences, place: Point) -> Option<u16> {
    edit::shard_at(map, fences, place).map(|s| s.0)
}
