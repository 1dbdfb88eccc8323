//! What a preview of new fences says, against the formula, another library's areas, and points asked one by one.
#![cfg(feature = "text")]

use geo::GeodesicArea;
use shardmap::edit::{self, Give, Preview, holds, preview, shard_at};
use shardmap::fence::{Fence, Fences};
use shardmap::geojson::{self, Datum};
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::ownership::{Entry, History};
use shardmap::point::Point;
use shardmap::step::IllegalStep;
use shardmap::{MapEpoch, Shard, Zone};
use std::collections::BTreeMap;
use std::sync::Arc;

#[path = "../src/random.rs"]
#[allow(dead_code)]
mod random;
use random::Random;

const DEGREE: f64 = 1e7;

fn fence(name: &str, shard: u16, (w, s, e, n): (f64, f64, f64, f64)) -> Fence {
    let p = |x: f64, y: f64| Point { lng_e7: (x * DEGREE) as i32, lat_e7: (y * DEGREE) as i32 };
    Fence { name: name.into(), shard: Shard(shard), rings: vec![vec![p(w, s), p(e, s), p(e, n), p(w, n)]] }
}

fn fences(list: Vec<Fence>, near_m: u32) -> Arc<Fences> {
    Arc::new(Fences::new(list, near_m, 20).unwrap())
}

/// Shards 1 and 3 are zone 0's, 2 and 4 are zone 1's, 5 is zone 2's.
fn map(list: Vec<Fence>, near_m: u32, default: Option<u16>) -> Map {
    let owners = [(1, 0), (2, 1), (3, 0), (4, 1), (5, 2)];
    Map::from_parts(Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: default.map(Shard),
        zones: (0..3).map(|z| ZoneInfo { id: Zone(z), name: format!("z{z}") }).collect(),
        histories: owners.map(|(s, z)| (Shard(s), History::new(Zone(z), MapEpoch(1)))).into(),
        exceptions: Exceptions::default(),
        globals: BTreeMap::new(),
        fences: fences(list, near_m),
    })
    .unwrap()
}

fn china() -> Map {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/data/");
    let text = std::fs::read_to_string(format!("{dir}china.toml")).unwrap();
    let load = |name: &str| std::fs::read_to_string(format!("{dir}{name}")).map_err(|e| e.to_string());
    Map::from_toml(&text, load).unwrap().0
}

/// On the sphere of the preview: a stretch of longitudes between two latitudes.
fn zone_km2((w, s, e, n): (f64, f64, f64, f64)) -> f64 {
    let sin = |lat: f64| lat.to_radians().sin();
    6371.0088f64.powi(2) * (e - w).to_radians() * (sin(n) - sin(s))
}

fn only(p: &Preview) -> &Give {
    assert_eq!(p.gives.len(), 1, "{:?}", p.gives);
    &p.gives[0]
}

fn near(seen: f64, expected: f64, part: f64) {
    assert!((seen - expected).abs() <= expected * part, "{seen} km2, expected {expected}");
}

#[test]
fn a_border_that_moves_gives_the_land_between_the_old_and_the_new_one() {
    let map = map(vec![fence("A", 1, (0.0, 0.0, 1.0, 1.0)), fence("B", 2, (1.0, 0.0, 2.0, 1.0))], 0, None);
    let new = fences(vec![fence("A", 1, (0.0, 0.0, 0.9, 1.0)), fence("B", 2, (0.9, 0.0, 2.0, 1.0))], 0);
    let p = preview(&map, &new);
    assert_eq!((p.changed.as_slice(), p.added.len(), p.removed.len()), (&["A".to_owned(), "B".to_owned()][..], 0, 0));
    let give = only(&p);
    assert_eq!((give.from, give.to), (Some(Shard(1)), Some(Shard(2))));
    near(give.km2, zone_km2((0.9, 0.0, 1.0, 1.0)), 0.001);
    assert!(p.resolution_m < 20.0 && !p.is_reordered && p.bare.is_empty(), "{p:?}");
    assert!(!give.samples.is_empty());
    for place in &give.samples {
        assert!((9_000_000..10_000_000).contains(&place.lng_e7), "{place}");
    }
    assert_eq!(holds(&map, &p.gives), [(Shard(1), Some(Zone(1)))].into());
}

#[test]
fn land_that_is_nobodys_is_told_and_the_default_gives_what_a_new_fence_takes() {
    let a = || fence("A", 1, (0.0, 0.0, 1.0, 1.0));
    let c = fence("C", 4, (3.0, 0.0, 3.5, 0.5));
    let p = preview(&map(vec![a()], 0, None), &fences(vec![a(), c.clone()], 0));
    assert_eq!((only(&p).from, only(&p).to, p.added.as_slice()), (None, Some(Shard(4)), &["C".to_owned()][..]));
    let with_default = map(vec![a()], 0, Some(3));
    let p = preview(&with_default, &fences(vec![a(), c], 0));
    assert_eq!((only(&p).from, only(&p).to), (Some(Shard(3)), Some(Shard(4))));
    near(only(&p).km2, zone_km2((3.0, 0.0, 3.5, 0.5)), 0.002);
    let p = preview(&with_default, &fences(vec![], 0));
    assert_eq!((only(&p).from, only(&p).to, p.bare.as_slice()), (Some(Shard(1)), Some(Shard(3)), &[Shard(1)][..]));
    assert_eq!(holds(&with_default, &p.gives), BTreeMap::new(), "both are zone 0's");
}

#[test]
fn a_fence_may_lie_in_the_middle_of_another_and_what_is_near_goes_with_it() {
    let map = map(vec![fence("A", 1, (0.0, 0.0, 1.0, 1.0))], 10_000, None);
    let p = preview(&map, &fences(vec![fence("A", 5, (0.0, 0.0, 1.0, 1.0))], 10_000));
    // What is within 10 km of the fence: four sides, and four quarters of a circle.
    let (side, reach) = (111.195, 10.0);
    let around = 3.999 * side * reach + std::f64::consts::PI * reach * reach;
    near(only(&p).km2, zone_km2((0.0, 0.0, 1.0, 1.0)) + around, 0.002);
    let hole = Fence {
        rings: [fence("", 1, (0.0, 0.0, 1.0, 1.0)), fence("", 1, (0.4, 0.4, 0.6, 0.6))]
            .map(|f| f.rings[0].clone())
            .into(),
        ..fence("A", 1, (0.0, 0.0, 1.0, 1.0))
    };
    let p = preview(&map, &fences(vec![hole, fence("I", 3, (0.4, 0.4, 0.6, 0.6))], 10_000));
    assert_eq!((only(&p).from, only(&p).to), (Some(Shard(1)), Some(Shard(3))));
    near(only(&p).km2, zone_km2((0.4, 0.4, 0.6, 0.6)), 0.002);
}

#[test]
fn what_changes_nothing_gives_nothing() {
    let list = vec![fence("A", 1, (0.0, 0.0, 1.0, 1.0)), fence("B", 2, (1.0, 0.0, 2.0, 1.0))];
    let map = map(list.clone(), 100, None);
    assert_eq!(
        preview(&map, map.fences()),
        Preview { resolution_m: preview(&map, map.fences()).resolution_m, ..Preview::default() }
    );
    let mut renamed = list.clone();
    renamed[0].name = "Z".into();
    let p = preview(&map, &fences(renamed, 100));
    assert_eq!(
        (p.gives.len(), p.added.as_slice(), p.removed.as_slice()),
        (0, &["Z".to_owned()][..], &["A".to_owned()][..])
    );
    let reversed: Vec<Fence> = list.into_iter().rev().collect();
    let p = preview(&map, &fences(reversed, 100));
    assert!(p.is_reordered && p.gives.is_empty() && p.changed.is_empty(), "{p:?}");
}

/// An inland one: what is near the sea would go with it, and is in no polygon.
#[test]
fn a_real_province_that_changes_its_shard_gives_its_own_area() {
    let map = china();
    let mut list = map.fences().list().to_vec();
    let province = list.iter_mut().find(|f| f.name == "Ningxia").unwrap();
    let to_geo =
        |ring: &Vec<Point>| ring.iter().map(|p| (f64::from(p.lng_e7) / DEGREE, f64::from(p.lat_e7) / DEGREE)).collect();
    let rings: Vec<geo::LineString> = province.rings.iter().map(to_geo).collect();
    // On the ellipsoid.
    let expected = geo::Polygon::new(rings[0].clone(), vec![]).geodesic_area_signed().abs() / 1e6;
    assert_eq!(rings.len(), 1, "one ring, or this formula is not enough");
    province.shard = Shard(671);
    let p = preview(&map, &Fences::new(list, map.fences().near_m(), map.fences().sliver_m()).unwrap());
    assert_eq!((p.changed.as_slice(), p.bare.as_slice()), (&["Ningxia".to_owned()][..], &[Shard(704)][..]));
    assert_eq!((only(&p).from, only(&p).to), (Some(Shard(704)), Some(Shard(671))));
    near(only(&p).km2, expected, 0.01);
    assert_eq!(holds(&map, &p.gives), BTreeMap::new(), "both are the north's");
}

/// Whatever is drawn, a place that changes its shard belongs to a pair that is told, and the areas are those that points estimate.
#[test]
fn places_asked_one_by_one_agree_with_the_preview() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let near_m = [0, 2_000][(seed % 2) as usize];
        let lay = |random: &mut Random| -> Vec<Fence> {
            let cut = |random: &mut Random, from: f64| from + random.below(100) as f64 / 1000.0;
            let (x, y, gap) = (cut(random, 0.1), cut(random, 0.1), random.below(3) as f64 / 100.0);
            let mut all = vec![
                fence("A", 1, (0.0, 0.0, x, y)),
                fence("B", 2, (x + gap, 0.0, 0.3, y)),
                fence("C", 3, (0.0, y, x, 0.3)),
                fence("D", 5, (x, y + gap, 0.3, 0.3)),
            ];
            if random.below(3) == 0 {
                all.remove(random.below(4) as usize);
            }
            all
        };
        let map = map(lay(&mut random), near_m, Some(4).filter(|_| seed % 3 == 0));
        let new = fences(lay(&mut random), near_m);
        let p = preview(&map, &new);
        let told: BTreeMap<_, f64> = p.gives.iter().map(|g| ((g.from, g.to), g.km2)).collect();
        let mut counted: BTreeMap<(Option<Shard>, Option<Shard>), f64> = BTreeMap::new();
        let (tries, field) = (60_000, (-0.05, -0.05, 0.35, 0.35));
        for _ in 0..tries {
            let place =
                Point { lng_e7: random.between(-500_000, 3_500_000), lat_e7: random.between(-500_000, 3_500_000) };
            let pair = (shard_at(&map, map.fences(), place), shard_at(&map, &new, place));
            if pair.0 != pair.1 {
                *counted.entry(pair).or_default() += zone_km2(field) / f64::from(tries);
                assert!(told.contains_key(&pair), "seed {seed}: {place} goes {pair:?}, told: {told:?}");
            }
        }
        for (pair, km2) in &told {
            let seen = counted.get(pair).copied().unwrap_or_default();
            assert!((seen - km2).abs() < 2.0 + km2 / 10.0, "seed {seed}: {pair:?} {km2} km2, points say {seen}");
        }
        for give in &p.gives {
            for place in &give.samples {
                assert_eq!((shard_at(&map, map.fences(), *place), shard_at(&map, &new, *place)), (give.from, give.to));
            }
        }
    }
}

#[test]
fn a_shard_that_gives_to_another_zone_must_be_held_by_the_map_before() {
    let map = map(vec![fence("A", 1, (0.0, 0.0, 1.0, 1.0)), fence("B", 2, (1.0, 0.0, 2.0, 1.0))], 0, None);
    let new = fences(vec![fence("A", 1, (0.0, 0.0, 0.9, 1.0)), fence("B", 2, (0.9, 0.0, 2.0, 1.0))], 0);
    let at_once = map.with_fences(new.clone(), vec![]).unwrap();
    assert_eq!(map.may_become(&at_once), Err(vec![IllegalStep::Fences(Shard(1))]));
    let moving = map.history(Shard(1)).unwrap().begin_move(Zone(1), MapEpoch(2)).unwrap();
    let held = map.with_entries(vec![(Shard(1), moving)]).unwrap();
    let still_held = held.with_fences(new.clone(), vec![]).unwrap();
    assert_eq!(held.may_become(&still_held), Err(vec![IllegalStep::Fences(Shard(1))]));
    let back: Entry = held.history(Shard(1)).unwrap().abort(MapEpoch(3)).unwrap();
    let edited = held.with_fences(new.clone(), vec![(Shard(1), back)]).unwrap();
    assert_eq!(held.may_become(&edited), Ok(()));
    assert_eq!(
        (edited.epoch(), edited.previous(), edited.owner(Shard(1))),
        (MapEpoch(3), held.digest(), Some(Zone(0)))
    );
    assert_eq!(Map::decode(&edited.encode()).unwrap().digest(), edited.digest());
    assert!(edited.with_fences(new, vec![]).is_err(), "the same fences");
    assert!(edited.with_fences(fences(vec![fence("X", 9, (0.0, 0.0, 1.0, 1.0))], 0), vec![]).is_err(), "no such shard");
}

fn feature(name: &str, more: &str, (w, e): (f64, f64)) -> String {
    format!(
        r#"{{"type":"Feature","properties":{{"name":"{name}"{more}}},"geometry":{{"type":"Polygon","coordinates":[[[{w},0],[{e},0],[{e},1],[{w},1],[{w},0]]]}}}}"#
    )
}

fn asked(features: &[String]) -> Result<Arc<Fences>, String> {
    let map = map(vec![fence("A", 1, (0.0, 0.0, 1.0, 1.0)), fence("B", 2, (1.0, 0.0, 2.0, 1.0))], 50, None);
    let text = format!(r#"{{"type":"FeatureCollection","features":[{}]}}"#, features.join(","));
    match edit::read(&map, &serde_json::from_str(&text).unwrap(), Datum::Wgs84) {
        Ok((fences, _)) => Ok(fences),
        Err(problems) => Err(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
    }
}

#[test]
fn new_fences_are_read_by_the_map_files_rules_and_keep_their_shards() {
    let fences = asked(&[
        feature("B", "", (1.0, 2.0)),
        feature("A", r#","shard":5"#, (0.0, 1.0)),
        feature("N", r#","shard":4"#, (2.0, 3.0)),
    ])
    .unwrap();
    let told: Vec<_> = fences.list().iter().map(|f| (f.name.as_str(), f.shard.0)).collect();
    assert_eq!((told, fences.near_m(), fences.sliver_m()), (vec![("B", 2), ("A", 5), ("N", 4)], 50, 20));
    let all = asked(&[
        feature("N", "", (2.0, 3.0)),
        feature("A", r#","shard":9"#, (0.0, 1.0)),
        feature("C", r#","shard":"4""#, (4.0, 5.0)),
        feature("D", r#","shard":1024"#, (6.0, 7.0)),
        feature("E", r#","shard":1"#, (8.0, 9.0)),
        feature("F", r#","shard":1"#, (8.5, 9.5)),
    ]);
    let said = all.unwrap_err();
    for part in [
        "\"N\": no fence of the map has this name",
        "\"A\": unknown shard 9",
        "\"C\": shard \"4\"; expected a whole number, 0 to 1023",
        "\"D\": shard 1024",
        "overlaps \"F\"",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
}

#[test]
fn fences_that_are_written_are_read_back_as_they_were() {
    let map = china();
    let back = edit::read(&map, &geojson::write(map.fences().list()), Datum::Wgs84);
    let (fences, _) = back.unwrap_or_else(|problems| panic!("{problems:?}"));
    let sorted = |f: &Fence| {
        let mut rings = f.rings.clone();
        rings.sort();
        (f.name.clone(), f.shard, rings)
    };
    let (was, is): (Vec<_>, Vec<_>) =
        (map.fences().list().iter().map(sorted).collect(), fences.list().iter().map(sorted).collect());
    assert_eq!(was, is);
    let square = |at: f64, side: f64| fence("", 1, (at, at, at + side, at + side)).rings.remove(0);
    // Land with a lake that has an island, and land apart from it, in any order.
    let rings = vec![square(0.4, 0.1), square(2.0, 0.5), square(0.0, 1.0), square(0.2, 0.6)];
    let land = Fence { rings: rings.clone(), ..fence("A", 1, (0.0, 0.0, 1.0, 1.0)) };
    let written = geojson::write(&[land]);
    assert_eq!(written["features"][0]["geometry"]["coordinates"].as_array().map(Vec::len), Some(3), "{written}");
    let small = self::map(vec![fence("A", 1, (0.0, 0.0, 1.0, 1.0))], 0, None);
    let (fences, _) = edit::read(&small, &written, Datum::Wgs84).unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut expected = rings;
    expected.sort();
    assert_eq!(sorted(&fences.list()[0]).2, expected);
}
