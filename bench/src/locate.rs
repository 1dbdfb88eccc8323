//! Lookup of places beside `geo` + `rstar`, on the same points in the same run.
//!
//! How it is measured: a clock that takes 20 to 30 ns to read cannot time one lookup, so a repeat is a batch of 16
//! lookups of one point, each fed from the one before (so that they cannot overlap), timed as a whole, less the cost of
//! an empty batch measured the same way; the two peers take turns point by point. A point's figure is the median of 31
//! repeats; the percentiles are over points. Repeats of one point find its cell in the cache, so a second figure comes
//! from passes over all points in a shuffled order, one lookup each: what a router sees that does other work meanwhile.

use geo::{Contains, Coord, LineString, MultiPolygon, Polygon};
use rstar::{AABB, RTree, RTreeObject};
use serde_json::json;
use shardmap::fence::{Fence, How};
use shardmap::map::Map;
use shardmap::metric;
use shardmap::point::Point;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const BATCH: u32 = 16;
const PASSES: usize = 5;

#[derive(clap::Args)]
#[command(
    after_help = "Example: ezbench locate --map shardmap/data/china.toml --places shardmap/data/china-places.csv"
)]
pub struct Args {
    /// The map file
    #[arg(long, default_value = "shardmap/data/china.toml")]
    map: PathBuf,
    /// Places, CSV with the columns name,lat,lng,..
    #[arg(long, default_value = "shardmap/data/china-places.csv")]
    places: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// A few hundred points and 3 repeats: shows that it runs, measures nothing
    #[arg(long)]
    tiny: bool,
}

pub fn run(args: Args) -> ExitCode {
    let input = read_map(&args.map).and_then(|map| Ok((map, read_places(&args.places)?)));
    let (map, mut places) = match input {
        Ok(input) => input,
        Err(what) => {
            eprintln!("ezbench: {what}");
            return ExitCode::from(2);
        }
    };
    let repeats = if args.tiny { 3 } else { 31 };
    if args.tiny {
        places.truncate(300);
    }
    let report = measure(&map, &places, repeats);
    if args.json {
        println!("{}", report.json())
    } else {
        report.print()
    }
    ExitCode::from(u8::from(report.differing > 0))
}

/// A map file, and the fences beside it.
pub fn read_map(path: &Path) -> Result<Map, String> {
    let text = |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let dir = path.parent().unwrap_or(Path::new(""));
    Map::from_toml(&text(path)?, |name| text(&dir.join(name))).map(|(map, _)| map).map_err(|problems| {
        let lines: Vec<String> =
            problems.iter().map(|p| p.clone().in_file(&path.display().to_string()).to_string()).collect();
        lines.join("\n")
    })
}

fn read_places(path: &Path) -> Result<Vec<Point>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let place = |line: &str| {
        let mut columns = line.rsplit(',').skip(1); // a name may hold a comma, the numbers cannot
        let (lng, lat) = (columns.next()?, columns.next()?);
        Point::parse(&format!("{lng},{lat}"))
    };
    let lines = text.lines().enumerate().skip(1).filter(|(_, line)| !line.is_empty());
    let places: Result<Vec<Point>, String> = lines
        .map(|(n, line)| place(line).ok_or_else(|| format!("{}:{}: {line:?} is no place", path.display(), n + 1)))
        .collect();
    places.and_then(|p| if p.is_empty() { Err(format!("{}: no places", path.display())) } else { Ok(p) })
}

/// The peer: an R-tree over the fences' boxes, then `geo`'s point-in-polygon, in the order of the fences.
struct Peer(RTree<Area>);

struct Area {
    index: usize,
    shape: MultiPolygon<f64>,
    bounds: AABB<[f64; 2]>,
}

impl RTreeObject for Area {
    type Envelope = AABB<[f64; 2]>;
    fn envelope(&self) -> Self::Envelope {
        self.bounds
    }
}

impl Peer {
    fn new(fences: &[Fence]) -> Peer {
        Peer(RTree::bulk_load(fences.iter().enumerate().map(|(index, fence)| Area::new(index, fence)).collect()))
    }

    fn locate(&self, p: Coord<f64>) -> Option<usize> {
        let near = self.0.locate_in_envelope_intersecting(&AABB::from_point([p.x, p.y]));
        near.filter(|area| area.shape.contains(&p)).map(|area| area.index).min()
    }
}

impl Area {
    /// Rings lie one in another or apart: one inside another is its hole, and one inside a hole an island again.
    fn new(index: usize, fence: &Fence) -> Area {
        let line = |ring: &Vec<Point>| LineString::from_iter(ring.iter().map(|p| degrees(*p)));
        let all: Vec<LineString<f64>> = fence.rings.iter().map(line).collect();
        let alone = |n: usize| Polygon::new(all[n].clone(), vec![]);
        let around = |n: usize| (0..all.len()).filter(|m| *m != n && alone(*m).contains(&all[n].0[0])).collect();
        let around: Vec<Vec<usize>> = (0..all.len()).map(around).collect();
        let is_hole = |n: usize, of: usize| around[n].contains(&of) && around[n].len() == around[of].len() + 1;
        let holes = |of: usize| (0..all.len()).filter(|n| is_hole(*n, of)).map(|n| all[n].clone()).collect();
        let outer = (0..all.len()).filter(|n| around[*n].len().is_multiple_of(2));
        let polygons = outer.map(|n| Polygon::new(all[n].clone(), holes(n)));
        let shape = MultiPolygon::from_iter(polygons);
        let corners: Vec<[f64; 2]> = fence.rings.iter().flatten().map(|p| degrees(*p)).map(|c| [c.x, c.y]).collect();
        Area { index, shape, bounds: AABB::from_points(&corners) }
    }
}

fn degrees(p: Point) -> Coord<f64> {
    Coord { x: f64::from(p.lng_e7) / 1e7, y: f64::from(p.lat_e7) / 1e7 }
}

struct Report {
    points: usize,
    repeats: usize,
    ours: Figures,
    peers: Figures,
    empty_ns: f64,
    /// Points on which the two disagree: off the borders (a fault), and on one (the peer calls no border point inside).
    differing: usize,
    on_border: usize,
    how: [usize; 4],
}

struct Figures {
    p50_ns: f64,
    p99_ns: f64,
    pass_ns: f64,
}

fn measure(map: &Map, places: &[Point], repeats: usize) -> Report {
    let peer = Peer::new(map.fences().list());
    let empty_ns = median((0..1001).map(|_| batch_ns(|_| 0)).collect());
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for p in places {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let c = degrees(*p);
        for _ in 0..repeats {
            a.push(batch_ns(|n| answer(map, Point { lng_e7: p.lng_e7 ^ n, ..*p })));
            b.push(batch_ns(|n| peer.locate(Coord { x: c.x + f64::from(n), ..c }).map_or(0, |i| i as u32)));
        }
        ours.push((median(a) - empty_ns).max(0.0) / f64::from(BATCH));
        peers.push((median(b) - empty_ns).max(0.0) / f64::from(BATCH));
    }
    let order = shuffled(places);
    let (mut pass_a, mut pass_b) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        pass_a.push(pass_ns(&order, |p| answer(map, p)));
        pass_b.push(pass_ns(&order, |p| peer.locate(degrees(p)).map_or(0, |i| i as u32)));
    }
    let mut how = [0; 4];
    places.iter().for_each(|p| how[map.locate(*p).how as usize] += 1);
    let differs = |p: &&Point| inside(map, **p) != peer.locate(degrees(**p));
    let (on_border, differing): (Vec<Point>, Vec<Point>) =
        places.iter().filter(differs).copied().partition(|p| is_on_border(map, *p));
    Report {
        points: places.len(),
        repeats,
        ours: Figures::of(ours, median(pass_a)),
        peers: Figures::of(peers, median(pass_b)),
        empty_ns: empty_ns / f64::from(BATCH),
        differing: differing.len(),
        on_border: on_border.len(),
        how,
    }
}

fn answer(map: &Map, p: Point) -> u32 {
    map.locate(p).shard.map_or(0, |s| u32::from(s.0))
}

/// The fence that a point is in, by number: the peer knows no "near".
fn inside(map: &Map, p: Point) -> Option<usize> {
    let found = map.locate(p);
    let fence = found.fence.filter(|_| found.how == How::Inside)?;
    map.fences().list().iter().position(|f| f.name == fence.name)
}

/// Within 5 cm of a border the peer's floats, and its rule for border points, may say otherwise.
fn is_on_border(map: &Map, p: Point) -> bool {
    let cos = metric::cos_q30(p.lat_e7);
    map.fences().list().iter().flat_map(Fence::edges).any(|e| metric::distance2(p, &e, cos) <= 25)
}

/// Each lookup waits for the one before: its answer, made into a zero that the compiler cannot see through, goes into
/// the next one's point.
fn batch_ns(lookup: impl Fn(i32) -> u32) -> f64 {
    let start = Instant::now();
    let mut zero = 0;
    for _ in 0..BATCH {
        zero = (black_box(lookup(black_box(zero))) >> 31) as i32;
    }
    black_box(zero);
    start.elapsed().as_nanos() as f64
}

fn pass_ns(points: &[Point], lookup: impl Fn(Point) -> u32) -> f64 {
    let start = Instant::now();
    for p in points {
        black_box(lookup(black_box(*p)));
    }
    start.elapsed().as_nanos() as f64 / points.len() as f64
}

fn shuffled(points: &[Point]) -> Vec<Point> {
    let mut order = points.to_vec();
    let mut state = 1u64;
    for n in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(n, (state >> 33) as usize % (n + 1));
    }
    order
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

impl Figures {
    fn of(mut ns: Vec<f64>, pass_ns: f64) -> Figures {
        ns.sort_by(f64::total_cmp);
        let at = |percent: usize| ns[(ns.len() * percent / 100).min(ns.len() - 1)];
        Figures { p50_ns: at(50), p99_ns: at(99), pass_ns }
    }

    fn json(&self) -> serde_json::Value {
        json!({"p50_ns": tenth(self.p50_ns), "p99_ns": tenth(self.p99_ns), "pass_ns": tenth(self.pass_ns)})
    }
}

fn tenth(ns: f64) -> f64 {
    (ns * 10.0).round() / 10.0
}

impl Report {
    fn json(&self) -> serde_json::Value {
        let [inside, near, default, none] = self.how;
        json!({"points": self.points, "repeats": self.repeats, "ezone": self.ours.json(), "geo_rstar": self.peers.json(),
            "ratio_p50": tenth(self.peers.p50_ns / self.ours.p50_ns.max(0.1)),
            "ratio_p99": tenth(self.peers.p99_ns / self.ours.p99_ns.max(0.1)),
            "batch": BATCH, "empty_ns": tenth(self.empty_ns), "differing": self.differing, "differing_on_border": self.on_border,
            "inside": inside, "near": near, "default": default, "none": none})
    }

    fn print(&self) {
        println!("{} points, median of {} repeats each, ns per lookup", self.points, self.repeats);
        println!("                  p50      p99   one pass, shuffled");
        for (name, f) in [("ezone", &self.ours), ("geo + rstar", &self.peers)] {
            println!("{name:<12} {:>8.1} {:>8.1} {:>8.1}", f.p50_ns, f.p99_ns, f.pass_ns);
        }
        let ratio = |of: fn(&Figures) -> f64| of(&self.peers) / of(&self.ours).max(0.1);
        println!(
            "ratio        {:>8.1} {:>8.1} {:>8.1}",
            ratio(|f| f.p50_ns),
            ratio(|f| f.p99_ns),
            ratio(|f| f.pass_ns)
        );
        println!("taken off: {:.1} ns per lookup for clock and loop, from an empty batch of {BATCH}", self.empty_ns);
        let [inside, near, default, none] = self.how;
        println!("inside {inside}, near {near}, default {default}, none {none}");
        println!("{} points on which the two disagree, and {} within 5 cm of a border", self.differing, self.on_border);
        println!("(geo calls no border point inside, and knows no \"near\": it is asked for inside only)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_benchmark_runs_and_both_sides_agree() {
        let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data"));
        let map = read_map(&data.join("china.toml")).unwrap();
        let places = read_places(&data.join("china-places.csv")).unwrap();
        assert_eq!(places.len(), 14_789);
        let report = measure(&map, &places[..200], 3);
        assert_eq!((report.points, report.differing), (200, 0));
        assert_eq!(report.how.iter().sum::<usize>(), 200);
    }
}
