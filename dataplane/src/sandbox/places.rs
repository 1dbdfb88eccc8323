//! The towns where the demo's orders come from.

/// `name,lat,lng,province`, from GeoNames: see the README beside it.
const CSV: &str = include_str!("../../../shardmap/data/china-places.csv");

/// A populated place.
#[derive(Clone, PartialEq, Debug)]
pub struct Place {
    /// Its name.
    pub name: &'static str,
    /// Degrees north, WGS 84.
    pub lat: f64,
    /// Degrees east, WGS 84.
    pub lng: f64,
    /// What an order from here carries: `LNG,LAT`, the digits as they are in the file.
    pub loc: String,
}

/// Every place, in the order of the file.
pub fn places() -> Vec<Place> {
    CSV.lines().skip(1).map(|line| place(line).expect("each line of our own file is name,lat,lng,province")).collect()
}

fn place(line: &'static str) -> Option<Place> {
    let mut fields = line.split(',');
    let (name, lat, lng) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Place { name, lat: lat.parse().ok()?, lng: lng.parse().ok()?, loc: format!("{lng},{lat}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_file_is_a_place_in_china() {
        let all = places();
        assert_eq!(all.len(), 14_789);
        assert!(all.iter().all(|p| (17.0..54.0).contains(&p.lat) && (73.0..136.0).contains(&p.lng)));
        assert!(all.iter().all(|p| !p.name.contains(['"', '\\'])), "names go into JSON as they are");
        assert_eq!(all[0].loc, "98.6,39.61667");
    }
}
