//! The sandbox's first map: China's provinces, spread over two, three or four zones, and where clients of a place are sent.

use super::places::Place;
use shardmap::map::Map;

/// The zones that there can be, in the order of their numbers in the map.
pub const ZONES: [&str; 4] = ["bj", "sh", "gz", "cd"];

const TEXT: &str = include_str!("../../../shardmap/data/china.toml");
/// The fences' file, as the map's text names it.
pub const FENCES_FILE: &str = "china-provinces.geojson";
/// What is in it.
pub const FENCES: &str = include_str!("../../../shardmap/data/china-provinces.geojson");

/// Which shards the third and the fourth zone take from the second, where they exist; its own are those of `china.toml`.
const SOUTH: [u16; 7] = [473, 484, 495, 506, 781, 891, 902];
const WEST: [u16; 6] = [550, 561, 572, 583, 594, 462];

/// Roughly where the zones are, degrees north and east.
const CENTRES: [(f64, f64); 4] = [(39.9, 116.4), (31.2, 121.5), (23.1, 113.3), (30.6, 104.1)];

/// The global service of a map that has one: its number and its name. The second zone owns it.
pub const GLOBAL: (u16, &str) = (1024, "users");

/// The text of a map of so many zones, 2 to 4, with a global service or without.
pub fn text(zones: usize, global: bool) -> String {
    let mut text = String::with_capacity(TEXT.len() + 200);
    for line in TEXT.lines() {
        text += &match shard_of(line).and_then(|shard| taker(shard, zones)) {
            Some(zone) => line.replacen("zone = \"sh\"", &format!("zone = \"{zone}\""), 1),
            None => line.to_owned(),
        };
        text.push('\n');
        if line.starts_with("sh = 1") {
            let more = ZONES.iter().enumerate().take(zones).skip(2);
            more.for_each(|(number, name)| text += &format!("{name} = {number}\n"));
        }
    }
    if global {
        text += &format!("\n[[global]]\nid = {}\nname = \"{}\"\nzone = \"{}\"\n", GLOBAL.0, GLOBAL.1, ZONES[1]);
    }
    text
}

/// The same, read.
pub fn map(zones: usize, global: bool) -> Result<Map, String> {
    let told = |p: Vec<_>| p.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    Map::from_toml(&text(zones, global), |_| Ok(FENCES.to_owned())).map(|(map, _)| map).map_err(told)
}

fn shard_of(line: &str) -> Option<u16> {
    line.trim_start().strip_prefix("{ id = ")?.split(',').next()?.parse().ok()
}

fn taker(shard: u16, zones: usize) -> Option<&'static str> {
    match zones {
        4.. if WEST.contains(&shard) => Some(ZONES[3]),
        3.. if SOUTH.contains(&shard) => Some(ZONES[2]),
        _ => None,
    }
}

/// Stands in for DNS: the zone that is thought nearest to a place. Fences know better.
pub fn nearest(place: &Place, zones: usize) -> usize {
    let far = |(lat, lng): (f64, f64)| {
        // A degree of longitude is about 0.83 of one of latitude here.
        let (north, east) = (place.lat - lat, (place.lng - lng) * 0.83);
        north * north + east * east
    };
    let near = |a: &usize, b: &usize| far(CENTRES[*a]).total_cmp(&far(CENTRES[*b]));
    (0..zones.clamp(1, CENTRES.len())).min_by(near).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::places::places;
    use super::*;
    use shardmap::{Shard, Zone};

    #[test]
    fn each_zone_of_two_to_four_owns_shards_and_has_clients_near() {
        for zones in 2..=4 {
            let map = map(zones, false).unwrap();
            let names: Vec<_> = map.zones().iter().map(|z| z.name.clone()).collect();
            assert_eq!(names, ZONES[..zones]);
            assert_eq!(map.shards().count(), 34);
            let towns = places();
            for zone in 0..zones {
                let owned = map.shards().filter(|(_, h)| h.view().owner == Some(Zone(zone as u8))).count();
                assert!(owned >= 6, "zone {zone} of {zones} owns {owned}");
                assert!(towns.iter().filter(|p| nearest(p, zones) == zone).count() > 500);
            }
        }
    }

    #[test]
    fn two_zones_are_the_map_as_it_is() {
        assert_eq!(text(2, false), TEXT);
    }

    #[test]
    fn a_global_service_is_the_second_zones() {
        let map = map(3, true).unwrap();
        assert_eq!(map.shards().count(), 35);
        assert_eq!(
            (map.global_named(GLOBAL.1.as_bytes()), map.owner(Shard(GLOBAL.0))),
            (Some(Shard(GLOBAL.0)), Some(Zone(1)))
        );
    }
}
