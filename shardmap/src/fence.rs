//! Named polygons on the map, and the rule that says which one a point is in.
//!
//! A point is in a fence when a ray from it to the east crosses the fence's edges an odd number of times. An edge counts
//! if it runs from at or below the point to above it (half-open), so a point on a border that two fences share belongs
//! to exactly one of them. Where fences overlap, the first in order has the point. Whole numbers throughout, so every
//! machine gives the same answer.

use crate::grid::Grid;
use crate::metric;
use crate::point::Point;
use crate::problem::Problem;
use crate::types::Shard;

/// Limits on what a map may hold: what is beyond is refused, whoever sent it.
pub mod limits {
    /// Fences of a map.
    pub const FENCES_MAX: usize = 16_384;
    /// Points of all fences together.
    pub const POINTS_MAX: usize = 2_000_000;
    /// Bytes of a name.
    pub const NAME_BYTES_MAX: usize = 256;
    /// The farthest that a point in no fence may be from the fence that gets it.
    pub const NEAR_M_MAX: u32 = 100_000;
    /// The widest overlap that the order of fences may settle.
    pub const SLIVER_M_MAX: u32 = 1_000;
}

/// One side of a ring, as the lookup wants it: from the lower end to the upper one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// The end further south (the first of the two if level).
    pub lo: Point,
    /// The end further north.
    pub hi: Point,
}

impl Edge {
    /// The edge between two points.
    pub fn new(a: Point, b: Point) -> Edge {
        if a.lat_e7 <= b.lat_e7 { Edge { lo: a, hi: b } } else { Edge { lo: b, hi: a } }
    }

    /// Does a ray from `p` to the east cross it?
    #[inline]
    pub fn is_east_of(&self, p: Point) -> bool {
        if p.lat_e7 < self.lo.lat_e7 || p.lat_e7 >= self.hi.lat_e7 {
            return false;
        }
        // Each product is at most 3.6e9 * 1.8e9 = 6.5e18, within an i64; their difference may not be, so they are compared.
        let up = i64::from(p.lat_e7) - i64::from(self.lo.lat_e7);
        let rise = i64::from(self.hi.lat_e7) - i64::from(self.lo.lat_e7);
        let run = i64::from(self.hi.lng_e7) - i64::from(self.lo.lng_e7);
        (i64::from(p.lng_e7) - i64::from(self.lo.lng_e7)) * rise < run * up
    }
}

/// A named polygon or several, holes included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// Unique in its map.
    pub name: String,
    /// Whose data the orders placed in it are.
    pub shard: Shard,
    /// Outer rings and holes alike, the closing point left out.
    pub rings: Vec<Vec<Point>>,
}

impl Fence {
    /// Every side of every ring.
    pub fn edges(&self) -> impl Iterator<Item = Edge> + '_ {
        self.sides().map(|(a, b)| Edge::new(a, b))
    }

    /// As [`Fence::edges`], in the direction of the ring.
    pub fn sides(&self) -> impl Iterator<Item = (Point, Point)> + '_ {
        self.rings.iter().flat_map(|ring| ring_sides(ring))
    }

    /// The rule, edge by edge: what every index must agree with.
    pub fn contains(&self, p: Point) -> bool {
        self.edges().filter(|e| e.is_east_of(p)).count() % 2 == 1
    }
}

/// The sides of a ring whose closing point is left out.
pub fn ring_sides(ring: &[Point]) -> impl Iterator<Item = (Point, Point)> + '_ {
    let next = ring.iter().cycle().skip(1);
    ring.iter().zip(next).map(|(a, b)| (*a, *b))
}

/// How an answer was found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum How {
    /// The point is in the fence.
    Inside,
    /// It is in no fence; this one is the nearest, within the map's distance.
    Near,
    /// It is in and near no fence; the map has a default shard.
    Default,
    /// Nothing is known of it.
    None,
}

impl How {
    /// As it is printed and counted.
    pub fn name(self) -> &'static str {
        match self {
            How::Inside => "inside",
            How::Near => "near",
            How::Default => "default",
            How::None => "none",
        }
    }
}

/// The fences of a map in their order, with the index over them.
#[derive(Debug)]
pub struct Fences {
    list: Vec<Fence>,
    grid: Grid,
    near_m: u32,
    sliver_m: u32,
    /// How far from a fence a point may be to go to it, in units.
    reach: u64,
}

/// At least half a sliver, so that every point of a gap that is no wider than a sliver goes to one of its fences. One unit
/// more for what whole-number distances round away; nothing if neither is wanted.
fn reach(near_m: u32, sliver_m: u32) -> u64 {
    let half_sliver = if sliver_m == 0 { 0 } else { metric::units(sliver_m).div_ceil(2) + 1 };
    metric::units(near_m).max(half_sliver)
}

impl Fences {
    /// Builds the index. Refused: more than the limits allow. That the fences make sense is asked of `check`.
    pub fn new(list: Vec<Fence>, near_m: u32, sliver_m: u32) -> Result<Fences, Problem> {
        let points: usize = list.iter().flat_map(|f| &f.rings).map(Vec::len).sum();
        let bound = |what: &str, seen: usize, max: usize| {
            if seen <= max { Ok(()) } else { Err(Problem::new(format!("{seen} {what}, at most {max}"))) }
        };
        bound("fences", list.len(), limits::FENCES_MAX)?;
        bound("points", points, limits::POINTS_MAX)?;
        bound("metres for near_m", near_m as usize, limits::NEAR_M_MAX as usize)?;
        bound("metres for sliver_m", sliver_m as usize, limits::SLIVER_M_MAX as usize)?;
        if let Some(fence) = list.iter().find(|f| f.name.len() > limits::NAME_BYTES_MAX) {
            bound("bytes of a fence's name", fence.name.len(), limits::NAME_BYTES_MAX)?;
        }
        let reach = reach(near_m, sliver_m);
        let grid = Grid::new(&list, reach)?;
        Ok(Fences { list, grid, near_m, sliver_m, reach })
    }

    /// In the order that settles overlaps.
    pub fn list(&self) -> &[Fence] {
        &self.list
    }

    /// How far from a fence a point in no fence may be to count as near it. Never less than half of `sliver_m` in effect.
    pub fn near_m(&self) -> u32 {
        self.near_m
    }

    /// How far from a fence a point in no fence may be to go to it, in units.
    pub(crate) fn reach(&self) -> u64 {
        self.reach
    }

    /// The widest overlap that the order of fences settles.
    pub fn sliver_m(&self) -> u32 {
        self.sliver_m
    }

    /// The fence of a point: the one it is in (of several the first in order), or the nearest (of several equally near
    /// the first in order).
    pub fn locate(&self, p: Point) -> Option<(&Fence, How)> {
        self.grid.locate(p).map(|(fence, how)| (&self.list[fence], how))
    }

    /// As [`Fences::locate`], by asking every edge of every fence: what the index must agree with.
    pub fn locate_by_walking(&self, p: Point) -> Option<(&Fence, How)> {
        if let Some(fence) = self.list.iter().find(|f| f.contains(p)) {
            return Some((fence, How::Inside));
        }
        let (cos, limit) = (metric::cos_q30(p.lat_e7), self.reach);
        let nearest = self.list.iter().flat_map(|f| f.edges().map(move |e| (metric::distance2(p, &e, cos), f)));
        let (d2, fence) = nearest.min_by_key(|(d2, _)| *d2)?;
        (limit > 0 && d2 <= limit * limit).then_some((fence, How::Near))
    }
}
