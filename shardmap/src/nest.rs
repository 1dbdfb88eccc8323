//! Do a feature's rings lie as GeoJSON means them: each hole in its own polygon, no polygon inside another's land?
//!
//! A fence counts crossings of all its rings alike, which is a polygon less its holes, and the union of the polygons, only
//! if every outer ring lies in an even number of other rings and every hole directly in its own outer ring. What lies
//! otherwise would change land into a hole, or a hole into land, without a word; so it is refused. Rings that cross or
//! run along each other are left to `check`.

use crate::fence::{Edge, ring_sides};
use crate::grid::Bounds;
use crate::point::Point;
use crate::problem::Problem;

/// A feature with more rings in wrong places is named this often, no more.
const TOLD_MAX: usize = 10;

/// One ring of one polygon of a feature.
struct Ring<'a> {
    /// From 0.
    polygon: usize,
    is_outer: bool,
    points: &'a [Point],
    bounds: Bounds,
}

/// Every ring in a wrong place. `polygons`: for each its rings, the outer one first, closing points left out.
pub(crate) fn misplaced(polygons: &[Vec<Vec<Point>>]) -> Vec<Problem> {
    let rings: Vec<Ring> = polygons.iter().enumerate().flat_map(|(n, polygon)| Ring::of(n, polygon)).collect();
    let around: Vec<Vec<usize>> = rings.iter().map(|ring| ring.is_inside(&rings)).collect();
    let wrong = |n: usize| wrong(&rings, &around, n).map(|what| Problem::new(what).at(rings[n].points[0]));
    (0..rings.len()).filter_map(wrong).take(TOLD_MAX).collect()
}

/// A fence's rings as polygons: each outer ring with the holes that lie directly in it.
pub(crate) fn polygons(all: &[Vec<Point>]) -> Vec<Vec<&Vec<Point>>> {
    let rings: Vec<Ring> =
        all.iter().enumerate().flat_map(|(n, ring)| Ring::of(n, std::slice::from_ref(ring))).collect();
    let around: Vec<Vec<usize>> = rings.iter().map(|ring| ring.is_inside(&rings)).collect();
    let depth = |n: usize| around[n].len();
    let is_hole_of = |of: usize, n: usize| depth(n) == depth(of) + 1 && around[n].contains(&of);
    let mut found = Vec::new();
    for of in (0..rings.len()).filter(|n| depth(*n) % 2 == 0) {
        let parts = std::iter::once(of).chain((0..rings.len()).filter(|n| is_hole_of(of, *n)));
        found.push(parts.map(|n| &all[rings[n].polygon]).collect());
    }
    found
}

/// What is wrong with the place of ring `n`; `around`: for each ring the numbers of those that hold it.
fn wrong(rings: &[Ring], around: &[Vec<usize>], n: usize) -> Option<String> {
    let depth = |n: &usize| around[*n].len();
    let polygon = rings[n].polygon;
    let number = polygon + 1;
    if rings[n].is_outer {
        let nearest = around[n].iter().max_by_key(|of| depth(of)).filter(|_| depth(&n) % 2 == 1)?;
        let other = rings[*nearest].polygon;
        let what =
            format!("polygon #{number} lies inside polygon #{}; leave it out, or make it a hole of that", other + 1);
        return (other != polygon).then_some(what); // inside its own hole: the hole is named
    }
    match around[n].iter().find(|of| rings[**of].is_outer && rings[**of].polygon == polygon) {
        None => Some(format!("a hole of polygon #{number} lies outside that polygon's outer ring")),
        Some(own) if depth(own) + 1 == depth(&n) => None,
        Some(_) => Some(format!("a hole of polygon #{number} lies inside another of its holes; leave it out")),
    }
}

impl<'a> Ring<'a> {
    fn of(polygon: usize, rings: &'a [Vec<Point>]) -> impl Iterator<Item = Ring<'a>> {
        rings.iter().enumerate().filter_map(move |(at, points)| {
            let bounds = Bounds::of(points.iter().copied())?;
            Some(Ring { polygon, is_outer: at == 0, points, bounds })
        })
    }

    /// The numbers of the rings that hold all of this one; that they touch is allowed.
    fn is_inside(&self, rings: &[Ring]) -> Vec<usize> {
        let holds = |other: &Ring| !std::ptr::eq(self.points, other.points) && other.holds(self);
        rings.iter().enumerate().filter(|(_, other)| holds(other)).map(|(n, _)| n).collect()
    }

    fn holds(&self, other: &Ring) -> bool {
        let (a, b) = (&self.bounds, &other.bounds);
        let in_box = a.west <= b.west && b.east <= a.east && a.south <= b.south && b.north <= a.north;
        // A ring may hang in the other by all its corners: then the middles of its sides tell.
        let middles = || ring_sides(other.points).map(|(a, b)| middle(a, b));
        in_box && self.side(other.points.iter().copied()).or_else(|| self.side(middles())) == Some(true)
    }

    /// Are all points that are not on the ring inside it? `None`: all of them are on it.
    fn side(&self, points: impl Iterator<Item = Point>) -> Option<bool> {
        let mut seen = None;
        for p in points {
            match self.place(p) {
                Some(true) => seen = Some(true),
                Some(false) => return Some(false),
                None => {}
            }
        }
        seen
    }

    /// Inside, outside, or (`None`) on the ring.
    fn place(&self, p: Point) -> Option<bool> {
        let mut odd = false;
        for (a, b) in ring_sides(self.points) {
            if is_on(p, a, b) {
                return None;
            }
            odd ^= Edge::new(a, b).is_east_of(p);
        }
        Some(odd)
    }
}

fn is_on(p: Point, a: Point, b: Point) -> bool {
    let within = |p: i32, a: i32, b: i32| (a.min(b)..=a.max(b)).contains(&p);
    let by = |p: Point| (i128::from(p.lng_e7) - i128::from(a.lng_e7), i128::from(p.lat_e7) - i128::from(a.lat_e7));
    let ((px, py), (bx, by)) = (by(p), by(b));
    within(p.lng_e7, a.lng_e7, b.lng_e7) && within(p.lat_e7, a.lat_e7, b.lat_e7) && px * by == py * bx
}

fn middle(a: Point, b: Point) -> Point {
    Point { lng_e7: a.lng_e7.midpoint(b.lng_e7), lat_e7: a.lat_e7.midpoint(b.lat_e7) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxed(w: i32, s: i32, e: i32, n: i32) -> Vec<Point> {
        [(w, s), (e, s), (e, n), (w, n)].map(|(lng_e7, lat_e7)| Point { lng_e7, lat_e7 }).into()
    }

    fn check(polygons: &[Vec<Vec<Point>>], expected: &[&str]) {
        let seen: Vec<String> = misplaced(polygons).into_iter().map(|p| p.what).collect();
        assert_eq!(seen.len(), expected.len(), "{seen:?}");
        seen.iter().zip(expected).for_each(|(seen, part)| assert!(seen.contains(part), "{seen}"));
    }

    #[test]
    fn holes_islands_in_them_and_parts_that_touch_are_as_geojson_means_them() {
        let (land, lake, island) = (boxed(0, 0, 90, 90), boxed(10, 10, 80, 80), boxed(20, 20, 70, 70));
        check(&[vec![land.clone(), lake.clone()], vec![island.clone(), boxed(30, 30, 40, 40)]], &[]);
        check(&[vec![island], vec![land, lake]], &[]);
        let hanging = [(0, 45), (45, 0), (90, 45)].map(|(lng_e7, lat_e7)| Point { lng_e7, lat_e7 }).to_vec();
        check(&[vec![boxed(0, 0, 90, 90), hanging]], &[]);
        check(&[vec![boxed(0, 0, 10, 10)], vec![boxed(10, 10, 20, 20)]], &[]);
    }

    #[test]
    fn a_ring_that_would_change_its_meaning_is_named() {
        let (a, b, c) = (boxed(0, 0, 90, 90), boxed(10, 10, 80, 80), boxed(20, 20, 70, 70));
        check(&[vec![a.clone()], vec![b.clone()]], &["polygon #2 lies inside polygon #1"]);
        check(&[vec![b.clone()], vec![a.clone()]], &["polygon #1 lies inside polygon #2"]);
        check(&[vec![b.clone(), a.clone()]], &["lies outside"]);
        check(&[vec![a.clone(), boxed(100, 0, 110, 10)]], &["a hole of polygon #1 lies outside"]);
        check(&[vec![a.clone(), b.clone(), c.clone()]], &["inside another of its holes"]);
        check(&[vec![a, b, boxed(30, 30, 40, 40)], vec![c]], &["inside another of its holes"]);
    }
}
