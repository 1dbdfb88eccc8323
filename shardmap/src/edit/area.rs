//! How much land goes from which shard to which: squares that are halved until both maps have one answer for all of a square.
//!
//! ```text
//! +-------+---+---+    a square that no border comes near enough to matter has one answer in each map: its middle's
//! |       | /B|   |    a square that no changed border comes near, and that is in nothing that changed, is left out
//! |   A   +/--+   |    else it is parted in four, down to the finest side; there the middle answers for all of it
//! |       |   |   |
//! +-------+---+---+
//! ```
//! How far a border matters is proved with distances: within a square whose middle is `d` from an edge, no place is nearer to it than `d`
//! less half the diagonal. Longitudes shrink by the cosine of the place that asks (`metric`), so what must be small is measured with the
//! greatest cosine within the square, and what must be large with the least.
//!
//! A square's area is that of a part of a spherical zone (Archimedes): R^2 · (east - west) · (sin north - sin south).

use super::{Give, SAMPLES_MAX, shard_at};
use crate::fence::{Edge, Fence, Fences, How};
use crate::grid::Bounds;
use crate::map::Map;
use crate::metric::{cos_q30, distance2, metres};
use crate::point::{LAT_MAX_E7, LNG_MAX_E7, Point};
use crate::types::Shard;
use std::collections::BTreeMap;

/// The finest squares have sides of 1,024 units, 11.4 m: narrower than the default `sliver_m`.
const FINEST_SHIFT: u32 = 10;
/// Squares that are looked at; with more of them, the finest are made coarser.
const SQUARES_MAX: usize = 1 << 22;
/// Squares of the finest that are looked at for each that a changed border runs through: its neighbours, and what they are parts of.
const SQUARES_PER_STEP: u64 = 6;
/// Sides that are asked in the time that a square takes.
const SIDES_PER_SQUARE: usize = 1024;
/// Bands of latitude for sides that changed, and in how many of them a side is, on average.
const BANDS_MAX: i64 = 1024;
const BANDS_PER_SIDE: usize = 8;
/// The sphere of `metric`.
const RADIUS_KM: f64 = 6371.0088;

/// A side of a fence, of the map, of the new fences, or of both.
struct Side {
    edge: Edge,
    shard: Shard,
    was: bool,
    is: bool,
    /// Sides of one fence that changed have one number; others none.
    group: Option<u32>,
}

/// A square: its south-west corner, and the sides that may matter to places in it.
struct Square {
    west: i64,
    south: i64,
    shift: u32,
    sides: Vec<u32>,
}

/// What is found: by pair of shards.
#[derive(Default)]
struct Found {
    by: BTreeMap<(Option<Shard>, Option<Shard>), Land>,
}

/// So much, and places in its largest squares, each with their size.
#[derive(Default)]
struct Land {
    km2: f64,
    places: Vec<(u32, Point)>,
}

/// The land that changes, the largest first, and the side of the finest squares in metres.
pub(super) fn gives(map: &Map, fences: &Fences) -> (Vec<Give>, f64) {
    let sides = sides(map.fences(), fences);
    let (changed, mut finest) = (Changed::new(&sides), begin_with(&sides));
    loop {
        if let Some(found) = Look::new(map, fences, &sides, &changed, finest).all() {
            return (found.told(), metres(1 << finest));
        }
        finest += 1;
    }
}

/// The finest squares with which the changed borders can be followed to their ends.
fn begin_with(sides: &[Side]) -> u32 {
    let length = |s: &Side| {
        let (a, b) = (s.edge.lo, s.edge.hi);
        u64::from(a.lng_e7.abs_diff(b.lng_e7).max(a.lat_e7.abs_diff(b.lat_e7)))
    };
    let all: u64 = sides.iter().filter(|s| s.group.is_some()).map(length).sum();
    let fits = |shift: &u32| (all >> shift) * SQUARES_PER_STEP <= SQUARES_MAX as u64;
    (FINEST_SHIFT..u32::BITS).find(fits).unwrap_or(u32::BITS - 1)
}

/// Every side of both, those that both have once. A fence with another shard is another fence, and with another reach all are.
fn sides(was: &Fences, is: &Fences) -> Vec<Side> {
    let (before, after) = (super::by_name(was), super::by_name(is));
    let same_reach = (was.near_m(), was.sliver_m()) == (is.near_m(), is.sliver_m());
    let same = |a: &Fence, b: &Fence| a.shard == b.shard && same_reach;
    let (mut all, mut groups) = (vec![], 0);
    for (name, fence) in before.iter().map(|(name, fence)| (*name, *fence)) {
        match after.get(name).copied().filter(|f| same(f, fence)) {
            Some(same) if same.rings == fence.rings => {
                all.extend(fence.edges().map(|edge| side(edge, fence, true, true, None)));
            }
            Some(other) => both(fence, other, groups, &mut all),
            None => all.extend(fence.edges().map(|edge| side(edge, fence, true, false, Some(groups)))),
        }
        groups += 1;
    }
    for fence in after.values().filter(|f| before.get(f.name.as_str()).is_none_or(|b| !same(b, f))) {
        all.extend(fence.edges().map(|edge| side(edge, fence, false, true, Some(groups))));
        groups += 1;
    }
    all
}

fn side(edge: Edge, fence: &Fence, was: bool, is: bool, group: Option<u32>) -> Side {
    Side { edge, shard: fence.shard, was, is, group }
}

/// The sides of a fence that got another shape: those that it has kept have not changed.
fn both(before: &Fence, after: &Fence, group: u32, all: &mut Vec<Side>) {
    let mut counts: BTreeMap<(Point, Point), [i32; 2]> = BTreeMap::new();
    for (n, fence) in [before, after].into_iter().enumerate() {
        fence.edges().for_each(|e| counts.entry((e.lo.min(e.hi), e.lo.max(e.hi))).or_default()[n] += 1);
    }
    for ((a, b), [was, is]) in counts {
        let edge = Edge::new(a, b);
        for n in 0..was.max(is) {
            let (was, is) = (n < was, n < is);
            all.push(side(edge, before, was, is, Some(group).filter(|_| was != is)));
        }
    }
}

/// Sides that changed, with the numbers of their fences; by bands of latitude, so that a place asks few of them.
struct Changed<'a> {
    all: Vec<(u32, &'a Side)>,
    south: i64,
    shift: u32,
    bands: Vec<Vec<u32>>,
}

impl<'a> Changed<'a> {
    fn new(sides: &'a [Side]) -> Changed<'a> {
        let all: Vec<(u32, &Side)> = sides.iter().filter_map(|s| Some((s.group?, s))).collect();
        let lat = |p: Point| i64::from(p.lat_e7);
        let south = all.iter().map(|(_, s)| lat(s.edge.lo)).min().unwrap_or(0);
        let north = all.iter().map(|(_, s)| lat(s.edge.hi)).max().unwrap_or(0);
        let span = |s: &Side, shift: u32| {
            ((lat(s.edge.lo) - south) >> shift) as usize..=((lat(s.edge.hi) - south) >> shift) as usize
        };
        let mut shift = (0..u32::BITS).find(|shift| (north - south) >> shift < BANDS_MAX).unwrap_or(u32::BITS - 1);
        while all.iter().map(|(_, s)| span(s, shift).count()).sum::<usize>() > all.len().saturating_mul(BANDS_PER_SIDE)
        {
            shift += 1;
        }
        let mut bands = vec![Vec::new(); ((north - south) >> shift) as usize + 1];
        for (n, (_, side)) in all.iter().enumerate() {
            bands[span(side, shift)].iter_mut().for_each(|band| band.push(n as u32));
        }
        Changed { all, south, shift, bands }
    }

    /// Those that a place's latitude may meet.
    fn beside(&self, place: Point) -> &[u32] {
        let up = i64::from(place.lat_e7) - self.south;
        let band = usize::try_from(up >> self.shift).ok().and_then(|at| self.bands.get(at));
        band.map_or(&[], Vec::as_slice)
    }
}

struct Look<'a> {
    map: &'a Map,
    fences: &'a Fences,
    sides: &'a [Side],
    changed: &'a Changed<'a>,
    /// How far from a border a place in no fence may be to go to it, in units.
    reach: u64,
    finest: u32,
    left: usize,
    found: Found,
}

/// What a square's sides say.
struct Distances {
    /// Half the square's diagonal, at most.
    half: u64,
    /// By side, in the order of the square's: at least and at most, from the middle.
    by: Vec<(u64, u64)>,
}

impl<'a> Look<'a> {
    fn new(map: &'a Map, fences: &'a Fences, sides: &'a [Side], changed: &'a Changed<'a>, finest: u32) -> Look<'a> {
        let reach = map.fences().reach().max(fences.reach());
        Look { map, fences, sides, changed, reach, finest, left: SQUARES_MAX, found: Found::default() }
    }

    /// `None`: more squares than are looked at.
    fn all(mut self) -> Option<Found> {
        let changed = self.changed.all.iter().flat_map(|(_, s)| [s.edge.lo, s.edge.hi]);
        let Some(bounds) = Bounds::of(changed).map(|b| b.wider(self.reach)) else { return Some(self.found) };
        let (west, south) = (i64::from(bounds.west), i64::from(bounds.south));
        let across = (i64::from(bounds.east) - west).max(i64::from(bounds.north) - south) as u64 + 1;
        let shift = across.next_power_of_two().trailing_zeros().max(self.finest);
        let mut open = vec![Square { west, south, shift, sides: (0..self.sides.len() as u32).collect() }];
        while let Some(square) = open.pop() {
            self.left = self.left.checked_sub(1)?;
            let apart = square.west > i64::from(bounds.east) || square.south > i64::from(bounds.north);
            if !apart {
                self.look(square, &mut open);
            }
        }
        Some(self.found)
    }

    fn look(&mut self, mut square: Square, open: &mut Vec<Square>) {
        let distances = self.keep_near(&mut square);
        let middle = square.middle();
        if self.is_unchanged(&square, middle) {
            return;
        }
        let settled = |was: bool| self.is_uniform(&square, &distances, middle, was);
        if square.shift <= self.finest || settled(true) && settled(false) {
            self.count(&square, middle);
            return;
        }
        let (shift, side) = (square.shift - 1, 1i64 << (square.shift - 1));
        for (x, y) in [(0, 0), (side, 0), (0, side), (side, side)] {
            open.push(Square { west: square.west + x, south: square.south + y, shift, sides: square.sides.clone() });
        }
    }

    /// Leaves out of the square's sides what can be nearest to none of its places, nor cross it.
    fn keep_near(&self, square: &mut Square) -> Distances {
        let (middle, (cos_min, cos_max)) = (square.middle(), square.cosines());
        let half = (1u64 << (square.shift - 1)) as i64 + 1;
        let x = (half * cos_max) >> 30;
        let half = (x.unsigned_abs().pow(2) + half.unsigned_abs().pow(2)).isqrt() + 16;
        let between = |n: &u32| {
            let edge = &self.sides[*n as usize].edge;
            (distance2(middle, edge, cos_min).isqrt(), distance2(middle, edge, cos_max).isqrt() + 16)
        };
        let mut by: Vec<(u64, u64)> = square.sides.iter().map(between).collect();
        let nearest = |was: bool| {
            let ours = square.sides.iter().zip(&by).filter(|(n, _)| self.sides[**n as usize].counts(was));
            ours.map(|(_, (_, most))| most + half).min().unwrap_or(0).min(self.reach) + half
        };
        let limits = (nearest(true), nearest(false));
        let matters = |n: u32, least: u64| {
            let side = &self.sides[n as usize];
            side.was && least <= limits.0 || side.is && least <= limits.1
        };
        let kept: Vec<bool> = square.sides.iter().zip(&by).map(|(n, (least, _))| matters(*n, *least)).collect();
        let mut keep = kept.iter();
        square.sides.retain(|_| *keep.next().expect("one for each"));
        let mut keep = kept.iter();
        by.retain(|_| *keep.next().expect("one for each"));
        Distances { half, by }
    }

    /// Does no changed side matter here, and is the square in none of what a fence got or lost?
    fn is_unchanged(&mut self, square: &Square, middle: Point) -> bool {
        if square.sides.iter().any(|n| self.sides[*n as usize].group.is_some()) {
            return false;
        }
        let mut odd: BTreeMap<u32, bool> = BTreeMap::new();
        let beside = self.changed.beside(middle);
        // Where so many are asked that it takes longer than looking at a square does, that counts.
        self.left = self.left.saturating_sub(beside.len() / SIDES_PER_SQUARE);
        for (group, side) in beside.iter().map(|n| &self.changed.all[*n as usize]) {
            if side.edge.is_east_of(middle) {
                *odd.entry(*group).or_default() ^= true;
            }
        }
        !odd.values().any(|odd| *odd)
    }

    /// Has every place of the square the middle's answer, by the map's fences or by the new ones?
    fn is_uniform(&self, square: &Square, distances: &Distances, middle: Point, was: bool) -> bool {
        let half = distances.half;
        let all = square.sides.iter().zip(&distances.by).map(|(n, d)| (&self.sides[*n as usize], *d));
        let ours = || all.clone().filter(|(side, _)| side.counts(was));
        let least = ours().map(|(_, (least, _))| least).min().unwrap_or(u64::MAX);
        if least <= half {
            return false;
        }
        let fences = if was { self.map.fences() } else { self.fences };
        match fences.locate(middle) {
            Some((_, How::Inside)) => true,
            Some((fence, _)) => {
                let (mine, others) = (|s: &Side| s.shard == fence.shard, |s: &Side| s.shard != fence.shard);
                let most = ours().filter(|(s, _)| mine(s)).map(|(_, (_, most))| most).min().unwrap_or(u64::MAX / 2);
                let rival = ours().filter(|(s, _)| others(s)).map(|(_, (least, _))| least).min().unwrap_or(u64::MAX);
                most + 2 * half < rival && most + half < self.reach
            }
            None => least > self.reach + half,
        }
    }

    fn count(&mut self, square: &Square, middle: Point) {
        let (from, to) = (shard_at(self.map, self.map.fences(), middle), shard_at(self.map, self.fences, middle));
        if from != to {
            let Land { km2, places } = self.found.by.entry((from, to)).or_default();
            *km2 += square.km2();
            let at = places.partition_point(|(shift, _)| *shift >= square.shift);
            if at < SAMPLES_MAX {
                places.insert(at, (square.shift, middle));
                places.truncate(SAMPLES_MAX);
            }
        }
    }
}

impl Side {
    fn counts(&self, was: bool) -> bool {
        if was { self.was } else { self.is }
    }
}

impl Square {
    fn middle(&self) -> Point {
        let half = 1i64 << (self.shift - 1);
        let within = |v: i64, max: i32| v.clamp(-i64::from(max), i64::from(max)) as i32;
        Point { lng_e7: within(self.west + half, LNG_MAX_E7), lat_e7: within(self.south + half, LAT_MAX_E7) }
    }

    /// The least and the greatest cosine of its latitudes.
    fn cosines(&self) -> (i64, i64) {
        let north = self.south + (1 << self.shift);
        let cos = |lat: i64| cos_q30(lat.clamp(-i64::from(LAT_MAX_E7), i64::from(LAT_MAX_E7)) as i32);
        let (a, b) = (cos(self.south), cos(north));
        (a.min(b), if self.south <= 0 && north >= 0 { 1 << 30 } else { a.max(b) })
    }

    fn km2(&self) -> f64 {
        let side = 1i64 << self.shift;
        let radians = |e7: i64| (e7 as f64 / 1e7).to_radians();
        let sin = |lat: i64| radians(lat.clamp(-i64::from(LAT_MAX_E7), i64::from(LAT_MAX_E7))).sin();
        RADIUS_KM * RADIUS_KM * radians(side) * (sin(self.south + side) - sin(self.south))
    }
}

impl Found {
    fn told(self) -> Vec<Give> {
        let give = |((from, to), land): (_, Land)| Give {
            from,
            to,
            km2: land.km2,
            samples: land.places.into_iter().map(|(_, p)| p).collect(),
        };
        let mut gives: Vec<Give> = self.by.into_iter().map(give).collect();
        gives.sort_by(|a, b| b.km2.total_cmp(&a.km2));
        gives
    }
}
