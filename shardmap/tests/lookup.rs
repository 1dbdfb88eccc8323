//! The index agrees with walking every edge, everywhere that matters; and, off the borders, with the `geo` crate.
#![cfg(feature = "text")]

use geo::{Contains, Coord, LineString, MultiPolygon, Polygon};
use shardmap::fence::{Edge, Fence, Fences, How};
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::metric;
use shardmap::ownership::History;
use shardmap::point::Point;
use shardmap::tag::Tag;
use shardmap::{MapEpoch, Shard, Zone};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

#[path = "../src/random.rs"]
mod random;
use random::Random;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/");

static MAP: LazyLock<Map> = LazyLock::new(|| {
    let load = |name: &str| std::fs::read_to_string(format!("{DATA}{name}")).map_err(|e| e.to_string());
    Map::from_toml(&load("china.toml").unwrap(), load).unwrap().0
});

fn places() -> Vec<Point> {
    let text = std::fs::read_to_string(format!("{DATA}china-places.csv")).unwrap();
    let place = |line: &str| {
        let mut columns = line.rsplit(',');
        let (lng, lat) = (columns.nth(1)?, columns.next()?);
        Point::parse(&format!("{lng},{lat}"))
    };
    text.lines().skip(1).map(|line| place(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

fn name(found: Option<(&Fence, How)>) -> (&str, How) {
    found.map_or(("-", How::None), |(fence, how)| (&fence.name, how))
}

fn check(fences: &Fences, p: Point) {
    assert_eq!(name(fences.locate(p)), name(fences.locate_by_walking(p)), "at {p}");
}

fn around(p: Point) -> impl Iterator<Item = Point> {
    (-1..=1).flat_map(move |x| (-1..=1).filter_map(move |y| Point::new(p.lng_e7 + x, p.lat_e7 + y)))
}

#[test]
fn every_place_is_where_walking_finds_it() {
    let all = places();
    assert_eq!(all.len(), 14_789);
    all.iter().for_each(|p| check(MAP.fences(), *p));
}

#[test]
fn every_vertex_and_the_points_beside_it_are_where_walking_finds_them() {
    for vertex in MAP.fences().list().iter().flat_map(|f| &f.rings).flatten() {
        around(*vertex).for_each(|p| check(MAP.fences(), p));
    }
}

#[test]
fn points_on_edges_and_beside_them_are_where_walking_finds_them() {
    for (a, b) in MAP.fences().list().iter().flat_map(Fence::sides) {
        let middle = Point {
            lng_e7: ((i64::from(a.lng_e7) + i64::from(b.lng_e7)) / 2) as i32,
            lat_e7: ((i64::from(a.lat_e7) + i64::from(b.lat_e7)) / 2) as i32,
        };
        around(middle).for_each(|p| check(MAP.fences(), p));
    }
}

/// Walking all edges a million times takes minutes: of each fence only the edges are asked that pass through the point's
/// band of latitude (no other can be crossed), and how near the nearest is only for one point in 64.
#[test]
fn a_million_random_points_are_where_walking_finds_them() {
    let bands: Vec<Bands> = MAP.fences().list().iter().map(Bands::new).collect();
    let (mut inside, mut near) = (0, 0);
    for seed in 0..1_000_000 {
        let p = some_point(&mut Random(seed));
        let found = MAP.fences().locate(p).filter(|(_, how)| *how == How::Inside);
        let walked = bands.iter().find(|b| b.contains(p)).map(|b| b.name);
        assert_eq!(found.map(|(fence, _)| fence.name.as_str()), walked, "SEED={seed} at {p}");
        inside += u32::from(walked.is_some());
        if walked.is_none() && seed % 64 == 0 {
            near += 1;
            check(MAP.fences(), p);
        }
    }
    assert!(inside > 300_000 && near > 3_000, "{inside} inside, {near} asked for the nearest");
}

fn some_point(random: &mut Random) -> Point {
    Point::new(random.between(730_000_000, 1_355_000_000), random.between(175_000_000, 540_000_000)).unwrap()
}

/// The edges of a fence by bands of 2^18 units (2.9 km) of latitude, each in every band that it touches.
struct Bands<'a> {
    name: &'a str,
    edges: HashMap<i32, Vec<Edge>>,
}

impl<'a> Bands<'a> {
    fn new(fence: &'a Fence) -> Bands<'a> {
        let mut edges: HashMap<i32, Vec<Edge>> = HashMap::new();
        for e in fence.edges() {
            (e.lo.lat_e7 >> 18..=e.hi.lat_e7 >> 18).for_each(|band| edges.entry(band).or_default().push(e));
        }
        Bands { name: &fence.name, edges }
    }

    fn contains(&self, p: Point) -> bool {
        let here = self.edges.get(&(p.lat_e7 >> 18)).into_iter().flatten();
        here.filter(|e| e.is_east_of(p)).count() % 2 == 1
    }
}

/// `geo` computes in floats and calls no border point inside, so points within 5 cm of a border are left out.
#[test]
fn off_the_borders_the_geo_crate_agrees() {
    let shapes: Vec<MultiPolygon> = MAP.fences().list().iter().map(shape).collect();
    let mut random = Random(3);
    let some = (0..5_000).map(|_| some_point(&mut random));
    let mut asked = 0;
    for p in places().into_iter().chain(some) {
        let cos = metric::cos_q30(p.lat_e7);
        let at = Coord { x: f64::from(p.lng_e7) / 1e7, y: f64::from(p.lat_e7) / 1e7 };
        let theirs = shapes.iter().position(|shape| shape.contains(&at));
        let ours = MAP.fences().locate(p).filter(|(_, how)| *how == How::Inside);
        let theirs = theirs.map(|n| MAP.fences().list()[n].name.as_str());
        if ours.map(|(fence, _)| fence.name.as_str()) != theirs {
            let border = MAP.fences().list().iter().flat_map(Fence::edges).map(|e| metric::distance2(p, &e, cos)).min();
            assert!(border.unwrap() <= 25, "at {p}: geo says {theirs:?}");
        }
        asked += 1;
    }
    assert_eq!(asked, 19_789);
}

/// A ring inside another is its hole, and one inside a hole an island again.
fn shape(fence: &Fence) -> MultiPolygon {
    let coord = |p: &Point| Coord { x: f64::from(p.lng_e7) / 1e7, y: f64::from(p.lat_e7) / 1e7 };
    let lines: Vec<LineString> = fence.rings.iter().map(|r| LineString::from_iter(r.iter().map(coord))).collect();
    let alone = |n: usize| Polygon::new(lines[n].clone(), vec![]);
    let around = |n: usize| (0..lines.len()).filter(|m| *m != n && alone(*m).contains(&lines[n].0[0])).collect();
    let around: Vec<Vec<usize>> = (0..lines.len()).map(around).collect();
    let is_hole = |n: usize, of: usize| around[n].contains(&of) && around[n].len() == around[of].len() + 1;
    let holes = |of: usize| (0..lines.len()).filter(|n| is_hole(*n, of)).map(|n| lines[n].clone()).collect();
    let outer = (0..lines.len()).filter(|n| around[*n].len().is_multiple_of(2));
    outer.map(|n| Polygon::new(lines[n].clone(), holes(n))).collect()
}

/// PITFALLS: large route tables; linear route scans. As many fences and a million placed ids: a lookup that scanned them
/// would make this test 10^10 steps long.
#[test]
fn a_map_of_as_many_fences_as_are_allowed_answers_without_scanning_them() {
    const SIDE: i32 = 128;
    let cell = 100_000;
    let p = |x: i32, y: i32| Point { lng_e7: x * cell, lat_e7: y * cell };
    let fence = |n: i32| {
        let (x, y) = (n % SIDE, n / SIDE);
        let rings = vec![vec![p(x, y), p(x + 1, y), p(x + 1, y + 1), p(x, y + 1)]];
        Fence { name: n.to_string(), shard: Shard((n % 1024) as u16), rings }
    };
    let fences = Fences::new((0..SIDE * SIDE).map(fence).collect(), 0, 20).unwrap();
    assert_eq!(fences.list().len(), shardmap::fence::limits::FENCES_MAX);
    assert_eq!(shardmap::check::fences(&fences).problems, []);
    let mut random = Random(5);
    for _ in 0..1_000_000 {
        let at = Point { lng_e7: random.between(0, SIDE * cell - 1), lat_e7: random.between(0, SIDE * cell - 1) };
        let (found, how) = fences.locate(at).unwrap();
        let expected = at.lat_e7 / cell * SIDE + at.lng_e7 / cell;
        assert!(how == How::Inside && found.shard.0 == (expected % 1024) as u16, "at {at}: {}", found.name);
    }
    let shops = (0..1_000_000).map(|n| (n * 3, Shard((n % 1024) as u16))).collect();
    let histories = (0..1024).map(|s| (Shard(s), History::new(Zone(0), MapEpoch(1)))).collect();
    let parts = Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: None,
        zones: vec![ZoneInfo { id: Zone(0), name: "bj".into() }],
        histories,
        exceptions: Exceptions { orders: vec![], shops },
        globals: Default::default(),
        fences: Arc::new(fences),
    };
    let map = Map::from_parts(parts).unwrap();
    let route =
        |shop: u64| map.route(&Tag { shop: Some(shop), ..Tag::default() }, false, 0).map(|r| u64::from(r.shard.0));
    for _ in 0..100_000 {
        let n = random.below(1_000_000);
        assert_eq!((route(n * 3), route(n * 3 + 1)), (Some(n % 1024), None));
    }
}
