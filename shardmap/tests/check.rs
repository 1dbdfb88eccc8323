//! Maps with faults: each is refused with its fence and place, all together, and nothing panics.
#![cfg(feature = "text")]

use shardmap::fence::How;
use shardmap::map::Map;
use shardmap::point::Point;
use shardmap::problem::{Note, Problem};

#[path = "../src/random.rs"]
#[allow(dead_code)]
mod random;
use random::Random;

const MAP: &str = r#"
epoch = 1
shards = [
  { id = 1, zone = "bj", fences = ["A"] },
  { id = 2, zone = "sh", fences = ["B"] },
]
[zones]
bj = 0
sh = 1
[fences]
file = "f.geojson"
datum = "WGS84"
name = "name"
near_m = 0
"#;

fn feature(name: &str, rings: &str) -> String {
    format!(
        r#"{{"type":"Feature","properties":{{"name":"{name}"}},"geometry":{{"type":"Polygon","coordinates":{rings}}}}}"#
    )
}

fn collection(features: &[String]) -> String {
    format!(r#"{{"type":"FeatureCollection","features":[{}]}}"#, features.join(","))
}

/// A box from its corners in degrees.
fn boxed(w: f64, s: f64, e: f64, n: f64) -> String {
    format!("[[[{w},{s}],[{e},{s}],[{e},{n}],[{w},{n}],[{w},{s}]]]")
}

fn read(map: &str, fences: &str) -> Result<(Map, Vec<Note>), Vec<Problem>> {
    Map::from_toml(map, |name| if name == "f.geojson" { Ok(fences.to_owned()) } else { Err("no such file".into()) })
}

fn two(a: &str, b: &str) -> String {
    collection(&[feature("A", a), feature("B", b)])
}

fn problems(map: &str, fences: &str) -> String {
    let found = read(map, fences).expect_err("this map has a fault");
    found.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

fn check(map: &str, fences: &str, expected: &[&str]) {
    let seen = problems(map, fences);
    for part in expected {
        assert!(seen.contains(part), "expected {part:?} in:\n{seen}");
    }
}

fn sound() -> String {
    two(&boxed(0.0, 0.0, 1.0, 1.0), &boxed(1.0, 0.0, 2.0, 1.0))
}

#[test]
fn a_point_on_a_shared_border_is_in_exactly_one_fence() {
    let (map, notes) = read(MAP, &sound()).unwrap();
    assert_eq!(notes, []);
    let p = Point::parse("1,0.5").unwrap();
    let list = map.fences().list();
    assert_eq!(list.iter().filter(|f| f.contains(p)).count(), 1);
    assert_eq!((map.locate(p).fence.unwrap().name.as_str(), map.locate(p).how), ("B", How::Inside));
}

#[test]
fn a_wide_overlap_is_refused_with_both_fences_and_a_place() {
    // 0.0003 degrees are 33 m.
    let fences = two(&boxed(0.0, 0.0, 1.0003, 1.0), &boxed(1.0, 0.0, 2.0, 1.0));
    check(MAP, &fences, &["f.geojson: fence \"A\" at ", "overlaps \"B\" by 3"]);
}

#[test]
fn a_sliver_of_overlap_is_settled_by_order_and_noted() {
    // 0.0001 degrees are 11 m.
    let (map, notes) = read(MAP, &two(&boxed(0.0, 0.0, 1.0001, 1.0), &boxed(1.0, 0.0, 2.0, 1.0))).unwrap();
    assert!(notes[0].to_string().contains("overlaps \"B\" by up to 11.1 m"), "{notes:?}");
    assert_eq!(map.locate(Point::parse("1.00005,0.5").unwrap()).fence.unwrap().name, "A");
}

/// `near_m` is 0 in this map: a gap no wider than a sliver leaves no point without a fence all the same.
#[test]
fn a_thin_gap_is_noted_and_its_points_go_to_the_nearest_fence_in_the_middle_to_the_first() {
    let (map, notes) = read(MAP, &two(&boxed(0.0, 0.0, 0.9999, 1.0), &boxed(1.0, 0.0, 2.0, 1.0))).unwrap();
    assert!(notes[0].to_string().contains("a gap to \"B\" of up to 11.1 m"), "{notes:?}");
    located(&map, "0.99992,0.5", ("A", How::Near));
    located(&map, "0.99995,0.5", ("A", How::Near));
    located(&map, "0.9999501,0.5", ("B", How::Near));
    located(&map, "0.99998,0.5", ("B", How::Near));
    located(&map, "3,0.5", ("-", How::None));
    let (map, _) = read(MAP, &two(&boxed(1.0, 0.0, 2.0, 1.0), &boxed(0.0, 0.0, 0.9999, 1.0))).unwrap();
    located(&map, "0.99995,0.5", ("A", How::Near));
}

/// By the index, and by walking every edge.
fn located(map: &Map, place: &str, expected: (&str, How)) {
    let p = Point::parse(place).unwrap();
    let name = |found: Option<(&shardmap::fence::Fence, How)>| {
        found.map_or(("-".to_owned(), How::None), |(fence, how)| (fence.name.clone(), how))
    };
    let expected = (expected.0.to_owned(), expected.1);
    assert_eq!(name(map.fences().locate(p)), expected, "at {place}");
    assert_eq!(name(map.fences().locate_by_walking(p)), expected, "at {place} by walking");
}

fn multi(name: &str, polygons: &str) -> String {
    feature(name, polygons).replace("\"Polygon\"", "\"MultiPolygon\"")
}

/// A box of whole degrees as a ring.
fn ring(w: i32, s: i32, e: i32, n: i32) -> String {
    format!("[[{w},{s}],[{e},{s}],[{e},{n}],[{w},{n}],[{w},{s}]]")
}

#[test]
fn a_fence_is_the_union_of_its_polygons_each_without_its_holes() {
    let (land, lake, island) = (ring(0, 0, 9, 9), ring(1, 1, 8, 8), ring(3, 3, 6, 6));
    let pond = ring(4, 4, 5, 5);
    let a = multi("A", &format!("[[{land},{lake}],[{island},{pond}],[{}]]", ring(9, 9, 11, 11)));
    let (map, notes) = read(MAP, &collection(&[a, feature("B", &boxed(30.0, 0.0, 31.0, 1.0))])).unwrap();
    assert_eq!(notes, []);
    for (place, how) in [
        ("0.5,0.5", How::Inside),
        ("2,2", How::None),
        ("3.5,3.5", How::Inside),
        ("4.5,4.5", How::None),
        ("10,10", How::Inside),
        ("20,20", How::None),
    ] {
        located(&map, place, (if how == How::Inside { "A" } else { "-" }, how));
    }
}

#[test]
fn a_polygon_inside_another_of_its_fence_and_a_stray_hole_are_refused() {
    let (outer, inner, within) = (ring(0, 0, 9, 9), ring(1, 1, 8, 8), ring(3, 3, 6, 6));
    let b = feature("B", &boxed(30.0, 0.0, 31.0, 1.0));
    let refused = |polygons: String, what| check(MAP, &collection(&[multi("A", &polygons), b.clone()]), &[what]);
    refused(format!("[[{outer}],[{inner}]]"), "fence \"A\" at 1,1: polygon #2 lies inside polygon #1");
    refused(format!("[[{inner},{outer}]]"), "a hole of polygon #1 lies outside");
    refused(format!("[[{outer},{inner},{within}]]"), "fence \"A\" at 3,3: a hole of polygon #1 lies inside another");
}

#[test]
fn fences_that_coincide_lie_one_in_the_other_or_cross_are_refused() {
    let a = boxed(0.0, 0.0, 1.0, 1.0);
    for b in [
        a.clone(),
        boxed(0.2, 0.2, 0.8, 0.8),
        boxed(-1.0, -1.0, 2.0, 2.0),
        boxed(0.4, -1.0, 0.6, 2.0),
        boxed(0.0, 0.0, 0.5, 1.0),
    ] {
        check(MAP, &two(&a, &b), &["overlaps \"B\""]);
    }
}

#[test]
fn a_hole_may_hold_another_fence() {
    let a = "[[[0,0],[1,0],[1,1],[0,1],[0,0]],[[0.2,0.2],[0.2,0.8],[0.8,0.8],[0.8,0.2],[0.2,0.2]]]";
    let (map, notes) = read(MAP, &two(a, &boxed(0.2, 0.2, 0.8, 0.8))).unwrap();
    assert_eq!(notes, []);
    assert_eq!(map.locate(Point::parse("0.5,0.5").unwrap()).fence.unwrap().name, "B");
}

#[test]
fn a_ring_that_crosses_itself_is_refused() {
    let bow = "[[[0,0],[1,1],[1,0],[0,1],[0,0]]]";
    check(MAP, &two(bow, &boxed(3.0, 0.0, 4.0, 1.0)), &["fence \"A\" at 0.5,0.5: crosses itself"]);
    let spike = "[[[0,0],[1,0],[1,1],[1,0.5],[1,2],[0,0]]]";
    check(MAP, &two(spike, &boxed(3.0, 0.0, 4.0, 1.0)), &["runs along itself"]);
}

#[test]
fn all_faults_of_both_files_are_reported_together() {
    let map = MAP
        .replace("zone = \"sh\", fences = [\"B\"]", "zone = \"gz\", fences = [\"B\", \"Nowhere\"]")
        .replace("datum = \"WGS84\"", "datum = \"BD-09\"");
    let fences = collection(&[
        feature("A", "[[[0,0],[1,0],[1,1],[0,1]]]"),
        feature("A", &boxed(5.0, 0.0, 6.0, 1.0)),
        feature("B", "[[[0,0],[181,0],[1,1],[0,0]]]"),
        feature("C", "[[[\"NaN\",0],[1,0],[1,1],[0,0]]]"),
        r#"{"type":"Feature","properties":{},"geometry":null}"#.into(),
    ]);
    check(
        &map,
        &fences,
        &[
            "map:5: shard 2 is given to the unknown zone \"gz\"",
            "map:5: shard 2 names \"Nowhere\", no fence of f.geojson",
            "map:12: datum \"BD-09\"; expected \"WGS84\" or \"GCJ-02\"",
            "f.geojson: fence \"A\" at 0,0: unclosed ring",
            "f.geojson: fence \"A\": features #1 and #2 have the same name",
            "f.geojson: fence \"B\": out of range: longitude 181",
            "f.geojson: fence \"C\": a position [\"NaN\",0]",
            "f.geojson: fence \"C\": no shard",
            "f.geojson: fence \"#5\": no property \"name\"",
        ],
    );
}

#[test]
fn an_unknown_shard_a_wrong_exception_and_a_missing_file_are_named() {
    check(&format!("default_shard = 9\n{MAP}"), &sound(), &["the default shard 9 has no owner"]);
    check(
        &format!("{MAP}[exceptions.shops]\n\"x\" = 1\n\"5\" = 77\n"),
        &sound(),
        &["map:16: exception \"x\"", "shop 5 is placed in the unknown shard 77"],
    );
    check(&MAP.replace("id = 2", "id = 1024"), &sound(), &["fence \"B\": unknown shard 1024"]);
    check(
        &MAP.replace("f.geojson", "g.geojson"),
        &sound(),
        &["map:11: the fence file g.geojson cannot be read: no such file"],
    );
    check(&MAP.replace("sh = 1", "sh = 0"), &sound(), &["share a name or number"]);
    check(&MAP.replace("sh = 1", "sh = 15"), &sound(), &["at most 14"]);
    check(&MAP.replace("near_m", "nearby_m"), &sound(), &["map:14: unknown field `nearby_m`"]);
    check(MAP, "{\"type\":", &["f.geojson:1: not JSON"]);
    check(MAP, &sound().replace("[1,0]", "[NaN,0]"), &["f.geojson:1: not JSON"]);
}

/// PITFALLS: China's maps are often GCJ-02, hundreds of metres off WGS 84: the datum belongs in the map file.
#[test]
fn the_datum_in_the_map_file_moves_a_gcj02_fence_by_hundreds_of_metres() {
    let fences = two(&boxed(116.0, 39.0, 117.0, 40.0), &boxed(121.0, 31.0, 122.0, 32.0));
    let (wgs, _) = read(MAP, &fences).unwrap();
    let (gcj, _) = read(&MAP.replace("WGS84", "GCJ-02"), &fences).unwrap();
    for (a, b) in wgs.fences().list().iter().zip(gcj.fences().list()) {
        let (a, b) = (a.rings[0][0], b.rings[0][0]);
        let edge = shardmap::fence::Edge::new(b, b);
        let m = shardmap::metric::metres(
            shardmap::metric::distance2(a, &edge, shardmap::metric::cos_q30(a.lat_e7)).isqrt(),
        );
        assert!((300.0..1000.0).contains(&m), "{m}");
    }
}

#[test]
fn damaged_texts_never_panic() {
    let fences = sound();
    let mut random = Random(11);
    for seed in 0..3_000 {
        let mut damage = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                match random.below(3) {
                    0 => bytes[at] = b"0159-.e[]{},\"= \n"[random.below(16) as usize],
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (map, fences) =
            if seed % 2 == 0 { (damage(MAP), fences.clone()) } else { (MAP.to_owned(), damage(&fences)) };
        if let Err(problems) = read(&map, &fences) {
            assert!(!problems.is_empty());
        }
    }
}
