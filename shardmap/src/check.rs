//! Do the fences make sense? Every fault with its fence and place, all together.
//!
//! How the width of an overlap is measured: walk along the border of one fence; wherever it lies within the other, it is
//! as deep in as it is far from the other's border. The greatest depth, over both borders, is the width. A stretch of
//! border is halved until its ends prove that nothing between them is deeper than the map's `sliver_m`, or it is half
//! a metre long. Overlaps whose outlines coincide have no such stretch, so one point in the middle of each ring is
//! asked as well. Widths up to `sliver_m` are settled by the order of the fences and noted; so are gaps up to that
//! width, measured from the corners of the fences (wider ones may well be meant); their points go to the nearest fence,
//! those in the exact middle to the first in order.

use crate::fence::{Edge, Fence, Fences, How, ring_sides};
use crate::grid::Bounds;
use crate::metric::{cos_q30, distance2, metres, units};
use crate::point::Point;
use crate::problem::{Note, Problem};

/// A ring that crosses itself this often is named this often, no more.
const CROSSINGS_TOLD_MAX: usize = 10;
/// Half a metre, in units: stretches of border are not halved further.
const STRETCH_MIN: u64 = 45;
/// Widths below 5 cm are the rounding of the coordinates, not worth a note.
const NOTED_MIN: i64 = 5;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// A map with these is refused.
    pub problems: Vec<Problem>,
    /// Legal, and worth knowing.
    pub notes: Vec<Note>,
}

/// Looks at every fence, and at every pair that is close.
pub fn fences(fences: &Fences) -> Found {
    let mut found = Found::default();
    for fence in fences.list() {
        found.problems.extend(self_crossings(fence));
    }
    let width = units(fences.sliver_m());
    let shapes: Vec<Shape> = fences.list().iter().filter_map(Shape::new).collect();
    for (n, a) in shapes.iter().enumerate() {
        for b in shapes[n + 1..].iter().filter(|b| a.bounds.wider(width).meets(&b.bounds)) {
            compare(fences, a, b, width, &mut found);
        }
    }
    found
}

/// A fence with what is asked of it over and over.
struct Shape<'a> {
    fence: &'a Fence,
    bounds: Bounds,
    edges: Vec<(Edge, Bounds)>,
}

impl<'a> Shape<'a> {
    fn new(fence: &'a Fence) -> Option<Shape<'a>> {
        let bounds = Bounds::of(fence.rings.iter().flatten().copied())?;
        let edges = fence.edges().filter_map(|e| Some((e, Bounds::of([e.lo, e.hi].into_iter())?))).collect();
        Some(Shape { fence, bounds, edges })
    }

    fn contains(&self, p: Point) -> bool {
        self.bounds.holds(p) && self.fence.contains(p)
    }
}

impl Bounds {
    fn meets(&self, other: &Bounds) -> bool {
        self.west <= other.east && other.west <= self.east && self.south <= other.north && other.south <= self.north
    }
    fn holds(&self, p: Point) -> bool {
        (self.west..=self.east).contains(&p.lng_e7) && (self.south..=self.north).contains(&p.lat_e7)
    }
}

/// The deepest place seen of one border in the other fence, and the widest gap.
#[derive(Default)]
struct Depths {
    deep: Option<(i64, Point)>,
    gap: Option<(i64, Point)>,
}

fn compare(fences: &Fences, a: &Shape, b: &Shape, width: u64, found: &mut Found) {
    let mut depths = Depths::default();
    for (one, other) in [(a, b), (b, a)] {
        one.fence.sides().for_each(|side| depths.walk(fences, one, other, side, width));
        one.fence.rings.iter().for_each(|ring| depths.look_into(one, other, ring));
    }
    let names = (&a.fence.name, &b.fence.name);
    let told = |depth: i64| metres(depth.unsigned_abs());
    match depths.deep {
        Some((depth, place)) if depth > width as i64 => {
            let (by, sliver_m) = (told(depth), fences.sliver_m());
            let what = format!(
                "overlaps \"{}\" by {by:.1} m or more, at most sliver_m = {sliver_m}; take the part out of one of them",
                names.1
            );
            found.problems.push(Problem::new(what).of(names.0).at(place));
        }
        Some((depth, place)) if depth > NOTED_MIN => {
            let what =
                format!("overlaps \"{}\" by up to {:.1} m; it comes first and has these points", names.1, told(depth));
            found.notes.push(Note::new(what).of(names.0).at(place));
        }
        _ => {}
    }
    if let Some((gap, place)) = depths.gap.filter(|(gap, _)| *gap > NOTED_MIN) {
        let what = format!("a gap to \"{}\" of up to {:.1} m; its points go to the nearest fence", names.1, told(gap));
        found.notes.push(Note::new(what).of(names.0).at(place));
    }
}

impl Depths {
    /// Along one side of a fence, through the other.
    fn walk(&mut self, fences: &Fences, one: &Shape, other: &Shape, (from, to): (Point, Point), width: u64) {
        let side = Bounds::of([from, to].into_iter()).expect("two points have bounds");
        if !side.wider(width).meets(&other.bounds) {
            return;
        }
        let reach = apart(from, to) + 2 * width + STRETCH_MIN;
        let around = side.wider(reach);
        let local: Vec<Edge> = other.edges.iter().filter(|(_, b)| b.meets(&around)).map(|(e, _)| *e).collect();
        let start = depth(other, &local, from, reach);
        self.note_gap(fences, one, from, start.0, width);
        let mut stretches = vec![((from, start), (to, depth(other, &local, to, reach)))];
        while let Some(((s, ds), (t, dt))) = stretches.pop() {
            self.note_depth(s, ds.0);
            self.note_depth(t, dt.0);
            let far_in = ds.0.max(dt.0) > width as i64; // enough is known
            let flat = ds.0 + dt.0 + apart(s, t) as i64 <= 2 * width as i64;
            if far_in || flat || apart(s, t) <= STRETCH_MIN || along_one_edge(&local, (s, ds.1), (t, dt.1), width) {
                continue;
            }
            let m = middle(s, t);
            let dm = depth(other, &local, m, reach);
            stretches.push(((s, ds), (m, dm)));
            stretches.push(((m, dm), (t, dt)));
        }
    }

    fn note_depth(&mut self, at: Point, depth: i64) {
        if depth > 0 && self.deep.is_none_or(|(deepest, _)| depth > deepest) {
            self.deep = Some((depth, at));
        }
    }

    fn note_gap(&mut self, fences: &Fences, one: &Shape, at: Point, depth: i64, width: u64) {
        let taken = |(fence, how): (&Fence, How)| how == How::Inside && fence.name != one.fence.name;
        let gap = -depth;
        if gap > 0
            && gap <= width as i64
            && self.gap.is_none_or(|(g, _)| gap > g)
            && !fences.locate(at).is_some_and(taken)
        {
            self.gap = Some((gap, at));
        }
    }

    /// A point in the middle of a ring that the other fence has too, though no border shows it.
    fn look_into(&mut self, one: &Shape, other: &Shape, ring: &[Point]) {
        let Some(p) = middle_of(one, ring).filter(|p| other.contains(*p)) else { return };
        let border = |shape: &Shape| {
            let cos = cos_q30(p.lat_e7);
            shape.edges.iter().map(|(e, _)| distance2(p, e, cos)).min().unwrap_or(0).isqrt() as i64
        };
        self.note_depth(p, border(one).min(border(other)));
    }
}

/// How deep a point is in a fence (below zero: how far outside), known up to `reach`; and which edge is nearest.
fn depth(other: &Shape, local: &[Edge], p: Point, reach: u64) -> (i64, usize) {
    let cos = cos_q30(p.lat_e7);
    let nearest = local.iter().enumerate().map(|(n, e)| (distance2(p, e, cos), n)).min();
    let (far, n) = nearest.map_or((reach, usize::MAX), |(d2, n)| (d2.isqrt().min(reach), n));
    (if other.contains(p) { far as i64 } else { -(far as i64) }, n)
}

/// Are both ends close to one and the same edge? Then so is all between them: a segment is convex.
fn along_one_edge(local: &[Edge], (s, at_s): (Point, usize), (t, at_t): (Point, usize), width: u64) -> bool {
    let close = |p: Point, edge: &Edge| distance2(p, edge, cos_q30(p.lat_e7)) <= width * width;
    [at_s, at_t].iter().filter_map(|n| local.get(*n)).any(|edge| close(s, edge) && close(t, edge))
}

fn apart(a: Point, b: Point) -> u64 {
    distance2(a, &Edge { lo: b, hi: b }, cos_q30(a.lat_e7)).isqrt()
}

fn middle(a: Point, b: Point) -> Point {
    let half = |a: i32, b: i32| ((i64::from(a) + i64::from(b)) / 2) as i32;
    Point { lng_e7: half(a.lng_e7, b.lng_e7), lat_e7: half(a.lat_e7, b.lat_e7) }
}

/// The middle of the widest stretch of the fence at the ring's middle latitude.
fn middle_of(shape: &Shape, ring: &[Point]) -> Option<Point> {
    let bounds = Bounds::of(ring.iter().copied())?;
    let lat = i64::from(bounds.south).midpoint(i64::from(bounds.north));
    let crossing = |(a, b): (Point, Point)| {
        let e = Edge::new(a, b);
        let (lo, hi) = (i64::from(e.lo.lat_e7), i64::from(e.hi.lat_e7));
        let run = i128::from(e.hi.lng_e7) - i128::from(e.lo.lng_e7);
        (lo <= lat && lat < hi)
            .then(|| i64::from(e.lo.lng_e7) + (run * i128::from(lat - lo) / i128::from(hi - lo)) as i64)
    };
    let mut lngs: Vec<i64> = ring_sides(ring).filter_map(crossing).collect();
    lngs.sort_unstable();
    let widest = lngs.chunks_exact(2).max_by_key(|pair| pair[1] - pair[0])?;
    let p = Point { lng_e7: widest[0].midpoint(widest[1]) as i32, lat_e7: lat as i32 };
    shape.contains(p).then_some(p)
}

/// Every place where two sides of a fence cross or lie on each other; that they touch is allowed.
fn self_crossings(fence: &Fence) -> Vec<Problem> {
    let mut sides: Vec<((Point, Point), Bounds)> =
        fence.sides().filter_map(|s| Some((s, Bounds::of([s.0, s.1].into_iter())?))).collect();
    sides.sort_by_key(|(_, b)| b.west);
    let mut found = Vec::new();
    for (n, (one, bounds)) in sides.iter().enumerate() {
        let close = sides[n + 1..].iter().take_while(|(_, b)| b.west <= bounds.east).filter(|(_, b)| b.meets(bounds));
        for (other, _) in close {
            if let Some(place) = crossing(*one, *other) {
                found.push(Problem::new("crosses itself, or runs along itself").of(&fence.name).at(place));
            }
            if found.len() == CROSSINGS_TOLD_MAX {
                return found;
            }
        }
    }
    found
}

fn crossing((a, b): (Point, Point), (c, d): (Point, Point)) -> Option<Point> {
    let turn = |a: Point, b: Point, c: Point| {
        let (x, y) = (|p: Point| i128::from(p.lng_e7), |p: Point| i128::from(p.lat_e7));
        ((x(b) - x(a)) * (y(c) - y(a)) - (y(b) - y(a)) * (x(c) - x(a))).signum()
    };
    let (c1, d1, a1, b1) = (turn(a, b, c), turn(a, b, d), turn(c, d, a), turn(c, d, b));
    if c1 * d1 < 0 && a1 * b1 < 0 {
        // Both ends of each are on opposite sides of the other; where exactly is only for the message.
        let line = Edge::new(a, b);
        let mut ends = (c, d);
        for _ in 0..32 {
            let m = middle(ends.0, ends.1);
            if turn(line.lo, line.hi, m) * turn(line.lo, line.hi, ends.0) > 0 { ends.0 = m } else { ends.1 = m }
        }
        return Some(ends.1);
    }
    if [c1, d1, a1, b1] != [0; 4] {
        return None;
    }
    // All on one line: do they share more than a point?
    let ((a, b), (c, d)) = ((a.min(b), a.max(b)), (c.min(d), c.max(d)));
    let (from, to) = (a.max(c), b.min(d));
    (from < to).then_some(from)
}
