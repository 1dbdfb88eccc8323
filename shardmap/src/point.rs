//! A place as two whole numbers of 1e-7 degrees: no float takes part in routing after parsing.

use std::fmt;

/// Longitude and latitude in whole 1e-7 degrees (about 1.1 cm), WGS 84.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Point {
    /// East of Greenwich, -1.8e9..=1.8e9.
    pub lng_e7: i32,
    /// North of the equator, -9e8..=9e8.
    pub lat_e7: i32,
}

/// 180 degrees.
pub const LNG_MAX_E7: i32 = 1_800_000_000;
/// 90 degrees.
pub const LAT_MAX_E7: i32 = 900_000_000;
/// Digits after the point that count; further ones round.
const DECIMALS: usize = 7;

impl Point {
    /// A point, if it is on the globe.
    pub fn new(lng_e7: i32, lat_e7: i32) -> Option<Point> {
        let p = Point { lng_e7, lat_e7 };
        p.on_globe().then_some(p)
    }

    /// From degrees, rounded to the nearest 1e-7; `None` for NaN, infinities and what is not on the globe.
    pub fn from_degrees(lng: f64, lat: f64) -> Option<Point> {
        if !(lng.abs() <= 180.0 && lat.abs() <= 90.0) {
            return None;
        }
        Point::new((lng * 1e7).round() as i32, (lat * 1e7).round() as i32)
    }

    /// Reads `lng,lat` in decimal degrees, blanks around each allowed: `121.52669,31.2302`.
    pub fn parse(text: &str) -> Option<Point> {
        Point::parse_bytes(text.as_bytes())
    }

    /// As [`Point::parse`], from bytes that may be anything.
    pub fn parse_bytes(text: &[u8]) -> Option<Point> {
        let comma = text.iter().position(|b| *b == b',')?;
        let lng = degrees_e7(text[..comma].trim_ascii())?;
        let lat = degrees_e7(text[comma + 1..].trim_ascii())?;
        Point::new(i32::try_from(lng).ok()?, i32::try_from(lat).ok()?)
    }

    /// Is it within ±180, ±90 degrees?
    pub fn on_globe(self) -> bool {
        (-LNG_MAX_E7..=LNG_MAX_E7).contains(&self.lng_e7) && (-LAT_MAX_E7..=LAT_MAX_E7).contains(&self.lat_e7)
    }
}

/// Sign, digits, at most one point: no exponent, no float.
fn degrees_e7(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let point = digits.iter().position(|b| *b == b'.');
    let (whole, fraction) = match point {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &digits[..0]),
    };
    if whole.is_empty() || whole.len() > 4 || point.is_some() && fraction.is_empty() {
        return None;
    }
    if !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |b| i64::from(b - b'0'));
    let mut e7 = whole.iter().fold(0, |n, b| n * 10 + i64::from(b - b'0'));
    for at in 0..DECIMALS {
        e7 = e7 * 10 + digit(at);
    }
    e7 += i64::from(digit(DECIMALS) >= 5);
    Some(if negative { -e7 } else { e7 })
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        degrees(self.lng_e7, f)?;
        f.write_str(",")?;
        degrees(self.lat_e7, f)
    }
}

/// Writes without trailing zeros, so that what is printed reads back as the same point.
fn degrees(e7: i32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if e7 < 0 { "-" } else { "" };
    let (whole, mut rest, mut width) = (e7.unsigned_abs() / 10_000_000, e7.unsigned_abs() % 10_000_000, DECIMALS);
    if rest == 0 {
        return write!(f, "{sign}{whole}");
    }
    while rest.is_multiple_of(10) {
        rest /= 10;
        width -= 1;
    }
    write!(f, "{sign}{whole}.{rest:0width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(i32, i32)>) {
        assert_eq!(Point::parse(text).map(|p| (p.lng_e7, p.lat_e7)), expected, "{text}");
    }

    #[test]
    fn decimal_degrees_become_whole_ten_millionths() {
        check("121.52669,31.2302", Some((1_215_266_900, 312_302_000)));
        check(" -0.0000001 , +90 ", Some((-1, 900_000_000)));
        check("180,-90", Some((1_800_000_000, -900_000_000)));
        check("0.00000004,0.00000005", Some((0, 1)));
    }

    #[test]
    fn what_is_not_a_place_is_refused() {
        for text in [
            "",
            ",",
            "1",
            "1,",
            ",1",
            "1,2,3",
            "180.0000001,0",
            "0,90.1",
            "NaN,0",
            "inf,0",
            "1e2,3",
            "1.,2",
            ".5,2",
            "--1,2",
            "1 2,3",
            "99999999999999999999,1",
            "0x1,2",
            "1.2.3,4",
            "１,2",
            "-,-",
            "+,1",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_printed_point_reads_back_as_itself() {
        for p in [(0, 0), (1, -1), (-1_800_000_000, 900_000_000), (1_215_266_900, 312_302_001), (10, 100)] {
            let p = Point { lng_e7: p.0, lat_e7: p.1 };
            assert_eq!(Point::parse(&p.to_string()), Some(p));
        }
    }

    #[test]
    fn degrees_as_floats_round_and_reject_what_is_no_number() {
        assert_eq!(Point::from_degrees(121.52669, 31.2302), Point::new(1_215_266_900, 312_302_000));
        for (lng, lat) in [(f64::NAN, 0.0), (0.0, f64::NAN), (f64::INFINITY, 0.0), (180.1, 0.0), (0.0, -90.1)] {
            assert_eq!(Point::from_degrees(lng, lat), None);
        }
    }
}
