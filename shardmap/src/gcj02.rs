//! From GCJ-02, the datum of maps published in China, to WGS 84.
//!
//! Source of the offset: `googollee/eviltransform` (go/transform.go, Krasovsky 1940 ellipsoid). The way back takes the
//! offset off again and again until it fits (its `GCJtoWGSExact` bisects; both end at the same place). Points outside its bounds of China are the same in
//! both. Floats and their trigonometry are used here, where a map is made, once: what is handed out is whole numbers.

use std::f64::consts::PI;

const AXIS_M: f64 = 6_378_245.0;
const ECCENTRICITY2: f64 = 0.006_693_421_622_965_943;
/// The offset changes slowly, so each step gains two or three digits; ten reach 1e-7 with room to spare.
const STEPS: usize = 10;

/// Longitude and latitude in degrees, WGS 84, of a GCJ-02 place.
pub fn to_wgs84(lng: f64, lat: f64) -> (f64, f64) {
    let (mut x, mut y) = (lng, lat);
    for _ in 0..STEPS {
        let (gx, gy) = from_wgs84(x, y);
        (x, y) = (x + lng - gx, y + lat - gy);
    }
    (x, y)
}

/// The published direction: WGS 84 to GCJ-02.
pub fn from_wgs84(lng: f64, lat: f64) -> (f64, f64) {
    if !(72.004..=137.8347).contains(&lng) || !(0.8293..=55.8271).contains(&lat) {
        return (lng, lat);
    }
    let (east_m, north_m) = offset_m(lng - 105.0, lat - 35.0);
    let sin = lat.to_radians().sin();
    let magic = 1.0 - ECCENTRICITY2 * sin * sin;
    let north = north_m.to_degrees() / (AXIS_M * (1.0 - ECCENTRICITY2) / (magic * magic.sqrt()));
    let east = east_m.to_degrees() / (AXIS_M / magic.sqrt() * lat.to_radians().cos());
    (lng + east, lat + north)
}

fn offset_m(x: f64, y: f64) -> (f64, f64) {
    let wave = |amplitude: f64, angle: f64| amplitude * (angle * PI).sin();
    let common = wave(20.0, 6.0 * x) + wave(20.0, 2.0 * x);
    let east = common + wave(20.0, x) + wave(40.0, x / 3.0) + wave(150.0, x / 12.0) + wave(300.0, x / 30.0);
    let north = common + wave(20.0, y) + wave(40.0, y / 3.0) + wave(160.0, y / 12.0) + wave(320.0, y / 30.0);
    let root = x.abs().sqrt();
    (
        300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * root + east * 2.0 / 3.0,
        -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * root + north * 2.0 / 3.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_the_same_place_to_a_centimetre() {
        for lng in (740..1370).step_by(7) {
            for lat in (100..550).step_by(7) {
                let (x, y) = (f64::from(lng) / 10.0, f64::from(lat) / 10.0);
                let (gx, gy) = from_wgs84(x, y);
                let (bx, by) = to_wgs84(gx, gy);
                assert!((bx - x).abs() < 1e-7 && (by - y).abs() < 1e-7, "{x},{y} came back as {bx},{by}");
            }
        }
    }

    /// Shanghai, Shenzhen, Beijing, from eviltransform's own tests.
    #[test]
    fn the_published_pairs_agree() {
        for (wgs, gcj) in [
            ((121.527_210_6, 31.177_427_6), (121.531_541_859_215, 31.175_303_983_645_97)),
            ((113.912_316, 22.543_847), (113.917_176_480_836_3, 22.540_796_131_694_766)),
            ((116.377_817, 39.911_954), (116.384_047_224_556_57, 39.913_345_455_360_69)),
        ] {
            let (lng, lat) = from_wgs84(wgs.0, wgs.1);
            assert!((lng - gcj.0).abs() < 1e-7 && (lat - gcj.1).abs() < 1e-7, "{wgs:?} became {lng},{lat}");
        }
    }

    #[test]
    fn chinas_shift_is_hundreds_of_metres_and_elsewhere_there_is_none() {
        let (lng, lat) = from_wgs84(116.391, 39.907);
        let north_m = (lat - 39.907) * 111_195.0;
        let east_m = (lng - 116.391) * 111_195.0 * 0.767;
        assert!((300.0..1000.0).contains(&north_m.hypot(east_m)), "{north_m} {east_m}");
        assert_eq!(to_wgs84(2.35, 48.85), (2.35, 48.85));
    }
}
