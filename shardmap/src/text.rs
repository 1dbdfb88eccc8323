//! Reads a map from its map file, TOML, which names the fence file, GeoJSON. Everything wrong with both is said at once.

use crate::check;
use crate::fence::{Fence, Fences, limits};
use crate::geojson::{self, Datum, Shape};
use crate::map::{Exceptions, Map, Parts, ZoneInfo};
use crate::ownership::History;
use crate::problem::{Note, Problem};
use crate::types::{MapEpoch, Shard, Zone};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapFile {
    epoch: u64,
    zones: BTreeMap<String, Spanned<u8>>,
    fences: FenceFile,
    shards: Vec<Spanned<ShardLine>>,
    default_shard: Option<Spanned<u16>>,
    /// Global services: `[[global]]` with `id`, `name` and `zone`.
    #[serde(default)]
    global: Vec<Spanned<GlobalLine>>,
    #[serde(default)]
    exceptions: ExceptionTables,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FenceFile {
    file: Spanned<String>,
    datum: Spanned<String>,
    name: String,
    #[serde(default = "sliver_m_default")]
    sliver_m: Spanned<u32>,
    near_m: Spanned<u32>,
}

fn sliver_m_default() -> Spanned<u32> {
    Spanned::new(0..0, 20)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardLine {
    id: u16,
    zone: String,
    #[serde(default)]
    fences: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GlobalLine {
    id: u16,
    name: String,
    zone: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ExceptionTables {
    #[serde(default)]
    orders: BTreeMap<String, Spanned<u16>>,
    #[serde(default)]
    shops: BTreeMap<String, Spanned<u16>>,
}

impl Map {
    /// A first map from the text of a map file; `load` gives the text of the fence file that it names. The notes tell of
    /// what is legal and worth knowing. Problems in the map file have an empty `file`: only the caller knows its name.
    pub fn from_toml(
        text: &str,
        load: impl Fn(&str) -> Result<String, String>,
    ) -> Result<(Map, Vec<Note>), Vec<Problem>> {
        let file: MapFile = toml::from_str(text).map_err(|e| {
            let problem = Problem::new(e.message());
            vec![match e.span() {
                Some(span) => problem.at_line(line_of(text, span.start)),
                None => problem,
            }]
        })?;
        Maker { text, problems: Vec::new() }.make(file, load)
    }
}

fn line_of(text: &str, at_byte: usize) -> usize {
    1 + text.as_bytes().iter().take(at_byte).filter(|b| **b == b'\n').count()
}

struct Maker<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Maker<'_> {
    fn wrong<T>(&mut self, spot: &Spanned<T>, what: impl Into<String>) {
        let line = line_of(self.text, spot.span().start);
        self.problems.push(Problem::new(what).at_line(line));
    }

    fn make(
        mut self,
        file: MapFile,
        load: impl Fn(&str) -> Result<String, String>,
    ) -> Result<(Map, Vec<Note>), Vec<Problem>> {
        let shapes = self.shapes(&file.fences, load);
        let epoch = MapEpoch(file.epoch);
        let zones: Vec<ZoneInfo> =
            file.zones.iter().map(|(name, id)| ZoneInfo { id: Zone(*id.get_ref()), name: name.clone() }).collect();
        let mut histories = self.histories(&file.shards, &zones, epoch);
        let globals = self.globals(&file.global, &zones, epoch, &mut histories);
        let default = file.default_shard.as_ref().map(|s| Shard(*s.get_ref()));
        let exceptions =
            Exceptions { orders: self.placed(&file.exceptions.orders), shops: self.placed(&file.exceptions.shops) };
        let list = self.shard_fences(shapes, &file.shards, file.fences.file.get_ref());
        let (near_m, sliver_m) = (*file.fences.near_m.get_ref(), *file.fences.sliver_m.get_ref());
        let fences = Fences::new(list, near_m, sliver_m).map_err(|problem| {
            self.problems.push(problem);
            std::mem::take(&mut self.problems)
        })?;
        let found = check::fences(&fences);
        let fence_file = file.fences.file.get_ref();
        self.problems.extend(found.problems.into_iter().map(|p| p.in_file(fence_file)));
        let mut sorted = zones;
        sorted.sort_by_key(|z| z.id);
        let fences = Arc::new(fences);
        let parts = Parts { epoch, previous: [0; 32], default, zones: sorted, histories, exceptions, globals, fences };
        match Map::from_parts(parts) {
            Ok(map) if self.problems.is_empty() => {
                Ok((map, found.notes.into_iter().map(|n| n.in_file(fence_file)).collect()))
            }
            Ok(_) => Err(self.problems),
            Err(more) => {
                self.problems.extend(more);
                Err(self.problems)
            }
        }
    }

    fn shapes(&mut self, fences: &FenceFile, load: impl Fn(&str) -> Result<String, String>) -> Vec<Shape> {
        let datum = match fences.datum.get_ref().as_str() {
            "WGS84" => Datum::Wgs84,
            "GCJ-02" => Datum::Gcj02,
            other => {
                self.wrong(&fences.datum, format!("datum \"{other}\"; expected \"WGS84\" or \"GCJ-02\""));
                Datum::Wgs84
            }
        };
        for (key, value, max) in
            [("sliver_m", &fences.sliver_m, limits::SLIVER_M_MAX), ("near_m", &fences.near_m, limits::NEAR_M_MAX)]
        {
            if *value.get_ref() > max {
                self.wrong(value, format!("{key} is {}, at most {max}", value.get_ref()));
            }
        }
        let name = fences.file.get_ref();
        match load(name) {
            Ok(text) => {
                let (shapes, problems) = geojson::read(&text, &fences.name, datum);
                self.problems.extend(problems.into_iter().map(|p| p.in_file(name)));
                shapes
            }
            Err(why) => {
                self.wrong(&fences.file, format!("the fence file {name} cannot be read: {why}"));
                Vec::new()
            }
        }
    }

    fn histories(
        &mut self,
        lines: &[Spanned<ShardLine>],
        zones: &[ZoneInfo],
        epoch: MapEpoch,
    ) -> BTreeMap<Shard, History> {
        let mut histories = BTreeMap::new();
        for spot in lines {
            let line = spot.get_ref();
            if Shard(line.id).is_global() {
                self.wrong(spot, format!("shard {} is a global service: expected [[global]] with a name", line.id));
                continue;
            }
            let Some(zone) = zones.iter().find(|z| z.name == line.zone) else {
                self.wrong(spot, format!("shard {} is given to the unknown zone \"{}\"", line.id, line.zone));
                continue;
            };
            if histories.insert(Shard(line.id), History::new(zone.id, epoch)).is_some() {
                self.wrong(spot, format!("shard {} is given to a zone twice", line.id));
            }
        }
        histories
    }

    /// The global services, which have a history each as other shards have.
    fn globals(
        &mut self,
        lines: &[Spanned<GlobalLine>],
        zones: &[ZoneInfo],
        epoch: MapEpoch,
        histories: &mut BTreeMap<Shard, History>,
    ) -> BTreeMap<Shard, String> {
        let mut globals: BTreeMap<Shard, String> = BTreeMap::new();
        for spot in lines {
            let GlobalLine { id, name, zone } = spot.get_ref();
            let Some(owner) = zones.iter().find(|z| z.name == *zone) else {
                self.wrong(spot, format!("global service \"{name}\" is given to the unknown zone \"{zone}\""));
                continue;
            };
            if let Some(other) = globals.insert(Shard(*id), name.clone()) {
                self.wrong(spot, format!("shard {id} is called \"{other}\" and \"{name}\""));
            }
            histories.entry(Shard(*id)).or_insert_with(|| History::new(owner.id, epoch));
        }
        globals
    }

    /// Gives each shape its shard; a shape that no line names, and a name that no shape has, are problems.
    fn shard_fences(&mut self, shapes: Vec<Shape>, lines: &[Spanned<ShardLine>], fence_file: &str) -> Vec<Fence> {
        let mut shard_of: BTreeMap<&str, Shard> = BTreeMap::new();
        let known: std::collections::BTreeSet<&str> = shapes.iter().map(|s| s.name.as_str()).collect();
        for line in lines.iter().map(Spanned::get_ref) {
            for name in &line.fences {
                if !known.contains(name.get_ref().as_str()) && !known.is_empty() {
                    self.wrong(
                        name,
                        format!("shard {} names \"{}\", no fence of {fence_file}", line.id, name.get_ref()),
                    );
                }
                if let Some(other) = shard_of.insert(name.get_ref(), Shard(line.id)) {
                    self.wrong(
                        name,
                        format!("fence \"{}\" is given to shards {other} and {}", name.get_ref(), line.id),
                    );
                }
            }
        }
        let mut list = Vec::new();
        for shape in &shapes {
            match shard_of.get(shape.name.as_str()) {
                Some(shard) => {
                    list.push(Fence { name: shape.name.clone(), shard: *shard, rings: shape.rings.clone() });
                }
                None => {
                    let problem = Problem::new("no shard: no line of the map file's `shards` names this fence");
                    self.problems.push(problem.of(&shape.name).in_file(fence_file));
                }
            }
        }
        list
    }

    fn placed(&mut self, table: &BTreeMap<String, Spanned<u16>>) -> Vec<(u64, Shard)> {
        let mut placed = Vec::new();
        for (key, shard) in table {
            match key.parse::<u64>() {
                Ok(id) if id <= i64::MAX as u64 => placed.push((id, Shard(*shard.get_ref()))),
                _ => self.wrong(shard, format!("exception \"{key}\"; expected an id, 0 to 2^63 - 1, in quotes")),
            }
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_map_passes_with_its_34_fences() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/data/");
        let text = std::fs::read_to_string(format!("{dir}china.toml")).unwrap();
        let load = |name: &str| std::fs::read_to_string(format!("{dir}{name}")).map_err(|e| e.to_string());
        let (map, _) = Map::from_toml(&text, load).unwrap();
        assert_eq!(map.fences().list().len(), 34);
        assert_eq!(map.shards().count(), 34);
    }

    #[test]
    fn global_services_stand_in_tables_of_their_own() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/data/");
        let text = std::fs::read_to_string(format!("{dir}china.toml")).unwrap();
        let load = |name: &str| std::fs::read_to_string(format!("{dir}{name}")).map_err(|e| e.to_string());
        let with = |more: &str| Map::from_toml(&format!("{text}\n{more}"), load);
        let users = "[[global]]\nid = 1024\nname = \"users\"\nzone = \"bj\"\n";
        let (map, _) = with(users).unwrap();
        assert_eq!((map.shards().count(), map.global_named(b"users")), (35, Some(Shard(1024))));
        let said = with(&users.replace("\"bj\"", "\"gz\"")).unwrap_err()[0].to_string();
        assert!(said.contains("global service \"users\" is given to the unknown zone \"gz\""), "{said}");
        let said = with(&format!("{users}{}", users.replace("users", "more"))).unwrap_err()[0].to_string();
        assert!(said.contains("shard 1024 is called \"users\" and \"more\""), "{said}");
        let moved = text.replacen("id = 121,", "id = 1121,", 1);
        let said = Map::from_toml(&moved, load).unwrap_err()[0].to_string();
        assert!(said.contains("shard 1121 is a global service: expected [[global]] with a name"), "{said}");
    }
}
