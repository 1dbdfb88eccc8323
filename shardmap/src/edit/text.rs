//! New fences as people write them: GeoJSON by the rules of the map file.

use crate::check;
use crate::fence::{Fence, Fences};
use crate::geojson::{self, Datum, Shape};
use crate::map::Map;
use crate::problem::{Note, Problem};
use crate::types::{SHARDS, Shard};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Fences for `map`, with its `near_m` and `sliver_m`, and what is worth knowing of them; or all that is wrong. A feature has the
/// property `name`, and `shard` unless a fence of that name has one in the map. The order of the features settles overlaps.
pub fn read(map: &Map, geojson: &Value, datum: Datum) -> Result<(Arc<Fences>, Vec<Note>), Vec<Problem>> {
    let (shapes, mut problems) = geojson::read_value(geojson, "name", datum);
    let known: BTreeMap<&str, Shard> = map.fences().list().iter().map(|f| (f.name.as_str(), f.shard)).collect();
    let mut list = Vec::new();
    for shape in shapes {
        match shard(&shape, known.get(shape.name.as_str()).copied(), map) {
            Ok(shard) => list.push(Fence { name: shape.name, shard, rings: shape.rings }),
            Err(what) => problems.push(Problem::new(what).of(shape.name)),
        }
    }
    let fences = match Fences::new(list, map.fences().near_m(), map.fences().sliver_m()) {
        Ok(fences) => fences,
        Err(problem) => {
            problems.push(problem);
            return Err(problems);
        }
    };
    let found = check::fences(&fences);
    problems.extend(found.problems);
    if problems.is_empty() { Ok((Arc::new(fences), found.notes)) } else { Err(problems) }
}

fn shard(shape: &Shape, known: Option<Shard>, map: &Map) -> Result<Shard, String> {
    let asked = match &shape.shard {
        Value::Null => {
            return known.ok_or_else(|| {
                "no fence of the map has this name: the property \"shard\" must say whose it is".into()
            });
        }
        other => other.as_u64().filter(|n| *n < SHARDS as u64).map(|n| Shard(n as u16)),
    };
    let shard = asked.ok_or_else(|| format!("shard {}; expected a whole number, 0 to {}", shape.shard, SHARDS - 1))?;
    match map.history(shard) {
        Some(_) => Ok(shard),
        None => Err(format!("unknown shard {shard}: the map gives it to no zone")),
    }
}
