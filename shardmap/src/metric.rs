//! Distances in whole numbers: the same on every machine.
//!
//! A unit is 1e-7 degree of latitude, 1.112 cm on a sphere of radius 6,371,008.8 m. Longitudes are shrunk by the cosine
//! of the latitude of the point that asks, read off a table and interpolated (within 4e-5 of the true cosine): for the
//! distances of a fence's neighbourhood that is within 1 % of the great circle. The antimeridian is a wall.

use crate::fence::Edge;
use crate::point::Point;

const Q: u32 = 30;
const DEGREE_E7: u32 = 10_000_000;
/// 2^30 times the cosine of 0..=90 degrees.
static COS: [i64; 91] = cosines();

/// Taylor's series in 60-bit fixed point: more digits than the table keeps.
const fn cosines() -> [i64; 91] {
    const PI_Q60: i128 = 3_622_009_729_038_561_421;
    let mut table = [0; 91];
    let mut degree = 0;
    while degree < 90 {
        let x = PI_Q60 * degree as i128 / 180;
        let x2 = (x * x) >> 60;
        let (mut sum, mut term, mut n) = (1i128 << 60, 1i128 << 60, 1);
        while n < 40 {
            term = -((term * x2) >> 60) / (n * (n + 1));
            sum += term;
            n += 2;
        }
        table[degree] = (sum >> (60 - Q)) as i64;
        degree += 1;
    }
    table
}

/// 2^30 times the cosine of a latitude.
pub fn cos_q30(lat_e7: i32) -> i64 {
    let lat = lat_e7.unsigned_abs();
    let degree = ((lat / DEGREE_E7) as usize).min(89);
    let (here, next) = (COS[degree], COS[degree + 1]);
    let part = i64::from(lat) - degree as i64 * i64::from(DEGREE_E7);
    here + (next - here) * part / i64::from(DEGREE_E7)
}

/// Metres in units.
pub fn units(metres: u32) -> u64 {
    u64::from(metres) * 8_993_204 / 100_000
}

/// Units in metres.
pub fn metres(units: u64) -> f64 {
    units as f64 / 89.93204
}

/// The square of the distance in units from a point to an edge; `cos_q30` shrinks longitudes.
#[inline]
pub fn distance2(p: Point, edge: &Edge, cos_q30: i64) -> u64 {
    // Divided, not shifted: a shift rounds to the west, and what is as near to the east would look nearer.
    let x = |q: Point| (i64::from(q.lng_e7) - i64::from(p.lng_e7)) * cos_q30 / (1 << Q);
    let y = |q: Point| i64::from(q.lat_e7) - i64::from(p.lat_e7);
    let (ax, ay) = (x(edge.lo), y(edge.lo));
    let (dx, dy) = (x(edge.hi) - ax, y(edge.hi) - ay);
    let len2 = dx.unsigned_abs().pow(2) + dy.unsigned_abs().pow(2);
    let dot = -(i128::from(ax) * i128::from(dx) + i128::from(ay) * i128::from(dy));
    let (fx, fy) = if dot <= 0 {
        (ax, ay)
    } else if dot >= i128::from(len2) {
        (ax + dx, ay + dy)
    } else {
        let shift = 33u32.saturating_sub(len2.leading_zeros());
        let t = ((dot >> shift) as i64 * (1 << Q)) / (len2 >> shift).max(1) as i64;
        (ax + dx * t / (1 << Q), ay + dy * t / (1 << Q))
    };
    fx.unsigned_abs().pow(2) + fy.unsigned_abs().pow(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(lng: f64, lat: f64) -> Point {
        Point::from_degrees(lng, lat).unwrap()
    }

    #[test]
    fn the_cosine_is_that_of_the_sphere() {
        for lat in (-900..=900).map(|d| f64::from(d) / 10.0) {
            let seen = cos_q30((lat * 1e7) as i32) as f64 / f64::from(1 << Q);
            assert!((seen - lat.to_radians().cos()).abs() < 4e-5, "{lat}: {seen}");
        }
    }

    #[test]
    fn a_distance_is_the_great_circles_to_one_percent() {
        let shanghai = point(121.47, 31.23);
        for (to, expected_m) in [(point(121.57, 31.23), 9_508.0), (point(121.47, 31.33), 11_119.5)] {
            let d2 = distance2(shanghai, &Edge::new(to, to), cos_q30(shanghai.lat_e7));
            let seen = metres(d2.isqrt());
            assert!((seen - expected_m).abs() < expected_m / 100.0, "{seen}");
        }
    }

    #[test]
    fn the_nearest_place_of_an_edge_may_be_its_middle_or_an_end() {
        let edge = Edge::new(point(0.0, 0.0), point(1.0, 0.0));
        let check = |lng, lat, expected| assert_eq!(distance2(point(lng, lat), &edge, 1 << Q), expected);
        check(0.5, 0.1, 1_000_000 * 1_000_000);
        check(-0.1, 0.0, 1_000_000 * 1_000_000);
        check(1.0, 0.1, 1_000_000 * 1_000_000);
        let on_it = distance2(point(0.3, 0.0), &edge, 1 << Q);
        assert!(on_it <= 1, "a point on the edge is a unit off at most, by rounding: {on_it}");
    }

    #[test]
    fn the_farthest_corners_of_the_globe_do_not_overflow() {
        let corner = |x, y| Point { lng_e7: x * 1_800_000_000, lat_e7: y * 900_000_000 };
        let edge = Edge::new(corner(1, 1), corner(1, -1));
        assert_eq!(distance2(corner(-1, 0), &edge, 1 << Q), 3_600_000_000 * 3_600_000_000);
        let edge = Edge::new(corner(1, 1), corner(-1, -1));
        distance2(corner(-1, 1), &edge, 1 << Q);
    }
}
