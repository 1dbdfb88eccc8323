//! Reads and writes fences as GeoJSON (RFC 7946): a FeatureCollection of Polygons and MultiPolygons with a name each.

use crate::fence::{Fence, limits};
use crate::gcj02;
use crate::nest;
use crate::point::Point;
use crate::problem::Problem;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the coordinates in a file mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datum {
    /// As GPS has it.
    Wgs84,
    /// As maps published in China have it; converted on reading.
    Gcj02,
}

/// A feature's name and rings (outer rings and holes alike, closing points left out).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// What the name property says.
    pub name: String,
    /// What the property `shard` says, unjudged: a map file names its shards elsewhere, new fences name them here.
    pub shard: Value,
    /// As [`crate::fence::Fence::rings`].
    pub rings: Vec<Vec<Point>>,
}

/// The features of a file in their order, and all that is wrong with it.
pub fn read(text: &str, name_property: &str, datum: Datum) -> (Vec<Shape>, Vec<Problem>) {
    match serde_json::from_str::<Value>(text) {
        Ok(root) => read_value(&root, name_property, datum),
        Err(e) => (Vec::new(), vec![Problem::new(format!("not JSON: {e}")).at_line(e.line())]),
    }
}

/// As [`read`], of what is no longer text.
pub fn read_value(root: &Value, name_property: &str, datum: Datum) -> (Vec<Shape>, Vec<Problem>) {
    let mut reader = Reader { datum, feature: String::new(), problems: Vec::new() };
    let shapes = reader.collection(root, name_property);
    (shapes, reader.problems)
}

/// Fences as GeoJSON that [`read`] takes: WGS 84, with the properties `name` and `shard`, each hole in its own polygon.
pub fn write(fences: &[Fence]) -> Value {
    let features: Vec<Value> = fences.iter().map(feature).collect();
    json!({"type": "FeatureCollection", "features": features})
}

fn feature(fence: &Fence) -> Value {
    let degrees = |e7: i32| f64::from(e7) / 1e7;
    let written = |ring: &Vec<Point>| {
        let closed = ring.iter().chain(ring.first());
        closed.map(|p| [degrees(p.lng_e7), degrees(p.lat_e7)]).collect::<Vec<_>>()
    };
    let polygons = nest::polygons(&fence.rings);
    let mut polygons: Vec<Vec<_>> =
        polygons.into_iter().map(|rings| rings.into_iter().map(written).collect()).collect();
    let geometry = match polygons.pop() {
        Some(only) if polygons.is_empty() => json!({"type": "Polygon", "coordinates": only}),
        last => {
            polygons.extend(last);
            json!({"type": "MultiPolygon", "coordinates": polygons})
        }
    };
    json!({"type": "Feature", "properties": {"name": fence.name, "shard": fence.shard.0}, "geometry": geometry})
}

struct Reader {
    datum: Datum,
    feature: String,
    problems: Vec<Problem>,
}

impl Reader {
    fn wrong(&mut self, place: Option<Point>, what: String) {
        let feature = (!self.feature.is_empty()).then(|| self.feature.clone());
        self.problems.push(Problem { feature, place, what, ..Problem::default() });
    }

    fn collection(&mut self, root: &Value, name_property: &str) -> Vec<Shape> {
        if let Some(crs) = root.get("crs").and_then(|c| c.pointer("/properties/name")).and_then(Value::as_str)
            && !crs.ends_with("CRS84")
            && !crs.ends_with("EPSG::4326")
        {
            self.wrong(None, format!("the file says its coordinates are {crs}; RFC 7946 knows WGS 84 only"));
        }
        let features = root.get("features").and_then(Value::as_array);
        let (Some("FeatureCollection"), Some(features)) = (root.get("type").and_then(Value::as_str), features) else {
            self.wrong(None, "not a GeoJSON FeatureCollection with features".into());
            return Vec::new();
        };
        let mut seen = BTreeMap::new();
        let mut shapes = Vec::new();
        for (n, feature) in features.iter().enumerate() {
            self.feature = format!("#{}", n + 1);
            let Some(name) = self.name(feature, name_property) else { continue };
            self.feature.clone_from(&name);
            if let Some(first) = seen.insert(name.clone(), n + 1) {
                self.wrong(None, format!("features #{first} and #{} have the same name", n + 1));
            }
            let rings = self.rings(feature.get("geometry"));
            let shard = feature.pointer("/properties/shard").cloned().unwrap_or_default();
            shapes.push(Shape { name, shard, rings });
        }
        self.feature.clear();
        if features.is_empty() {
            self.wrong(None, "no features; a map has at least one fence".into());
        }
        shapes
    }

    fn name(&mut self, feature: &Value, property: &str) -> Option<String> {
        let name = feature.get("properties").and_then(|p| p.get(property)).and_then(Value::as_str);
        match name {
            Some(name) if !name.is_empty() && name.len() <= limits::NAME_BYTES_MAX => return Some(name.to_owned()),
            Some(name) => self.wrong(None, format!("a name of {} bytes, 1 to {}", name.len(), limits::NAME_BYTES_MAX)),
            None => self.wrong(None, format!("no property \"{property}\" to name it by")),
        }
        None
    }

    fn rings(&mut self, geometry: Option<&Value>) -> Vec<Vec<Point>> {
        let kind = geometry.and_then(|g| g.get("type")).and_then(Value::as_str).unwrap_or("nothing");
        let coordinates = geometry.and_then(|g| g.get("coordinates")).and_then(Value::as_array);
        let polygons: Vec<&Value> = match (kind, coordinates) {
            ("Polygon", Some(_)) => geometry.and_then(|g| g.get("coordinates")).into_iter().collect(),
            ("MultiPolygon", Some(polygons)) => polygons.iter().collect(),
            _ => {
                self.wrong(None, format!("its geometry is {kind}; expected Polygon or MultiPolygon with coordinates"));
                return Vec::new();
            }
        };
        let before = self.problems.len();
        let mut kept: Vec<Vec<Vec<Point>>> = Vec::new();
        for polygon in polygons {
            match polygon.as_array() {
                Some(list) if !list.is_empty() => kept.push(list.iter().filter_map(|ring| self.ring(ring)).collect()),
                _ => self.wrong(None, "a polygon without rings".into()),
            }
        }
        if kept.iter().all(Vec::is_empty) {
            self.wrong(None, "it has no ring that can be used".into());
        }
        // Which ring is the outer one is known only if none was left out.
        if self.problems.len() == before {
            nest::misplaced(&kept).into_iter().for_each(|p| self.wrong(p.place, p.what));
        }
        kept.concat()
    }

    fn ring(&mut self, ring: &Value) -> Option<Vec<Point>> {
        let positions = ring.as_array().map(Vec::as_slice).unwrap_or_default();
        let points: Vec<Point> = positions.iter().filter_map(|p| self.position(p)).collect();
        if points.len() != positions.len() {
            return None; // each bad position has been reported
        }
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            self.wrong(None, "a ring without positions".into());
            return None;
        };
        if first != last {
            self.wrong(Some(*first), format!("unclosed ring: it begins at {first} and ends at {last}"));
            return None;
        }
        let (first, mut open) = (*first, points);
        open.dedup();
        open.pop();
        if open.len() < 3 {
            self.wrong(Some(first), format!("a ring of {} different positions, at least 3", open.len()));
            return None;
        }
        Some(open)
    }

    fn position(&mut self, position: &Value) -> Option<Point> {
        let pair = position.as_array().map(Vec::as_slice).unwrap_or_default();
        let (Some(lng), Some(lat)) = (pair.first().and_then(Value::as_f64), pair.get(1).and_then(Value::as_f64)) else {
            self.wrong(None, format!("a position {}; expected [longitude, latitude]", brief(position)));
            return None;
        };
        let (x, y) = match self.datum {
            Datum::Wgs84 => (lng, lat),
            Datum::Gcj02 => gcj02::to_wgs84(lng, lat),
        };
        let point = Point::from_degrees(x, y);
        if point.is_none() {
            let hint = if lat.abs() > 90.0 && lng.abs() <= 90.0 { "; are the two swapped?" } else { "" };
            self.wrong(None, format!("out of range: longitude {lng}, latitude {lat}; at most ±180, ±90{hint}"));
        }
        point
    }
}

/// A value as it was written, cut where it gets long.
fn brief(value: &Value) -> String {
    let text: String = value.to_string().chars().take(61).collect();
    if text.chars().count() > 60 { format!("{}..", text.chars().take(60).collect::<String>()) } else { text }
}
