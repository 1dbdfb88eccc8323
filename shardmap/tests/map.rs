//! Routing, the chain of maps, and their bytes.

use shardmap::fence::{Fence, Fences};
use shardmap::id::Id;
use shardmap::map::{By, Exceptions, Map, Parts, Refused, ZoneInfo};
use shardmap::ownership::History;
use shardmap::point::Point;
use shardmap::step::IllegalStep;
use shardmap::tag::Tag;
use shardmap::{MapEpoch, Shard, Zone};
use std::sync::Arc;

#[path = "../src/random.rs"]
#[allow(dead_code)]
mod random;
use random::Random;

const NOW_MS: u64 = 1_780_000_000_000;

fn parts() -> Parts {
    let ring = |w: i32, e: i32| {
        let p = |x, y| Point { lng_e7: x * 10_000_000, lat_e7: y * 10_000_000 };
        vec![p(w, 0), p(e, 0), p(e, 1), p(w, 1)]
    };
    let fence = |name: &str, shard, w, e| Fence { name: name.into(), shard: Shard(shard), rings: vec![ring(w, e)] };
    let fences = Fences::new(vec![fence("A", 1, 0, 1), fence("B", 2, 1, 2)], 10_000, 20).unwrap();
    let zone = |id, name: &str| ZoneInfo { id: Zone(id), name: name.into() };
    let histories = [(1, 0), (2, 1), (3, 0)].map(|(s, z)| (Shard(s), History::new(Zone(z), MapEpoch(1))));
    Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: Some(Shard(3)),
        zones: vec![zone(0, "bj"), zone(1, "sh")],
        histories: histories.into(),
        exceptions: Exceptions { orders: vec![(77, Shard(1))], shops: vec![(156_427_001, Shard(2))] },
        globals: Default::default(),
        fences: Arc::new(fences),
    }
}

fn map() -> Map {
    Map::from_parts(parts()).unwrap()
}

fn check(tag: &str, trusted: bool, expected: (u16, By)) {
    let route = map().route(&Tag::parse(tag.as_bytes()), trusted, NOW_MS).unwrap();
    assert_eq!((route.shard.0, route.by), expected, "{tag}");
}

fn ours(ms: u64, shard: u16, zone: u8) -> u64 {
    Id::new(ms, Shard(shard), Zone(zone), 9).unwrap().0
}

/// PITFALLS: location must never override an order; a forged `shardid` must not get past.
#[test]
fn a_location_never_overrides_an_order_and_a_forged_shardid_does_not_count() {
    let order = ours(NOW_MS, 2, 0);
    check(&format!("loc=0.5,0.5;eosid={order}"), false, (2, By::Order));
    check(&format!("shardid=3;loc=0.5,0.5;eosid={order};shopid=156427001"), true, (3, By::ShardId));
    check(&format!("shardid=3;loc=0.5,0.5;eosid={order}"), false, (2, By::Order));
    check("shardid=900;loc=0.5,0.5", true, (1, By::Inside));
}

#[test]
fn shop_then_location_then_default_decide() {
    check("shopid=156427001;loc=0.5,0.5", false, (2, By::Shop));
    check("shopid=156427002;loc=0.5,0.5", false, (1, By::Inside));
    check("eosid=77;loc=1.5,0.5", false, (1, By::Order));
    check("loc=1.5,1.01", false, (2, By::Near));
    check("loc=50,50", false, (3, By::Default));
    check("", false, (3, By::Default));
    check("shopid=x;loc=,;eosid", false, (3, By::Default));
}

/// PITFALLS: an id tells who issued it, not who owns it now.
#[test]
fn an_id_gives_its_shard_whoever_issued_it_and_only_if_it_can_be_ours() {
    check(&format!("eosid={};loc=0.5,0.5", ours(NOW_MS, 2, 0)), false, (2, By::Order));
    check(&format!("eosid={};loc=0.5,0.5", ours(NOW_MS + 2 * 86_400_000, 2, 0)), false, (1, By::Inside));
    check(&format!("eosid={};loc=0.5,0.5", ours(NOW_MS, 2, 5)), false, (1, By::Inside));
    check(&format!("eosid={};loc=0.5,0.5", ours(NOW_MS, 900, 0)), false, (1, By::Inside));
}

#[test]
fn a_map_without_default_has_no_route_for_what_says_nothing() {
    let map = Map::from_parts(Parts { default: None, ..parts() }).unwrap();
    assert_eq!(map.route(&Tag::parse(b"shopid=5"), false, NOW_MS), None);
}

#[test]
fn a_move_is_a_chain_of_legal_maps_that_survive_their_bytes() {
    let first = map();
    let moving = first.history(Shard(1)).unwrap().begin_move(Zone(1), MapEpoch(2)).unwrap();
    let second = first.with_entries(vec![(Shard(1), moving)]).unwrap();
    assert_eq!((second.epoch(), second.previous()), (MapEpoch(2), first.digest()));
    assert_eq!(first.may_become(&second), Ok(()));
    assert!(second.may_become(&first).is_err());
    let applied = [(Zone(0), 40)].into_iter().collect();
    let done = second.history(Shard(1)).unwrap().commit_move(40, &applied, MapEpoch(3)).unwrap();
    let third = second.with_entries(vec![(Shard(1), done)]).unwrap();
    assert_eq!(third.owner(Shard(1)), Some(Zone(1)));
    let changes: Vec<String> = first.diff(&third).iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["epoch: 1 -> 3", "shard 1: bj since 1 -> sh since 3"]);
    assert!(first.may_become(&third).unwrap_err().contains(&IllegalStep::Predecessor));
    for map in [&first, &second, &third] {
        let back = Map::decode(&map.encode()).unwrap();
        assert_eq!((back.digest(), back.encode()), (map.digest(), map.encode()));
        assert_eq!(Map::decode_after(&map.encode_without_fences(), &first).unwrap().encode(), map.encode());
        assert!(Map::decode(&map.encode_without_fences()).is_err());
    }
}

#[test]
fn a_successor_with_a_wrong_entry_is_refused() {
    let first = map();
    let history = first.history(Shard(1)).unwrap();
    let at = |epoch| history.begin_move(Zone(1), MapEpoch(epoch)).unwrap();
    let refused = |entries| first.with_entries(entries).unwrap_err();
    assert!(matches!(refused(vec![]), Refused::Entries(_)));
    assert!(matches!(refused(vec![(Shard(1), at(3))]), Refused::Epoch { .. }));
    assert_eq!(refused(vec![(Shard(9), at(2))]), Refused::UnknownShard(Shard(9)));
    assert!(matches!(refused(vec![(Shard(1), at(2)), (Shard(1), at(2))]), Refused::Entries(_)));
    let nowhere = history.begin_move(Zone(5), MapEpoch(2)).unwrap();
    assert_eq!(refused(vec![(Shard(1), nowhere)]), Refused::UnknownZone(Zone(5)));
}

/// PITFALLS: a fence edit moves people between shards: it is a shard move, not a file edit.
#[test]
fn an_edit_of_fences_or_of_a_placed_id_is_no_legal_step() {
    let first = map();
    let edited = |edit: fn(&mut Parts)| {
        let mut parts = Parts { epoch: MapEpoch(2), previous: first.digest(), ..parts() };
        edit(&mut parts);
        first.may_become(&Map::from_parts(parts).unwrap())
    };
    assert_eq!(edited(|_| ()), Ok(()));
    assert_eq!(
        edited(|p| p.fences = Arc::new(Fences::new(vec![], 0, 20).unwrap())),
        Err(vec![IllegalStep::Fences(Shard(2))])
    );
    assert_eq!(edited(|p| p.exceptions.shops.clear()), Err(vec![IllegalStep::Placed]));
    assert_eq!(edited(|p| p.exceptions.shops.push((5, Shard(1)))), Ok(()));
    assert_eq!(edited(|p| p.default = None), Err(vec![IllegalStep::Placed]));
    assert_eq!(edited(|p| p.zones[1].name = "gz".into()), Err(vec![IllegalStep::Zone(1)]));
}

fn with_globals() -> Map {
    let mut parts = parts();
    for (shard, name, zone) in [(1025, "coupons", 1), (1024, "users", 0)] {
        parts.histories.insert(Shard(shard), History::new(Zone(zone), MapEpoch(1)));
        parts.globals.insert(Shard(shard), name.into());
    }
    Map::from_parts(parts).unwrap()
}

#[test]
fn a_global_service_is_found_by_its_name_and_one_that_is_not_there_leads_nowhere() {
    let map = with_globals();
    let route = |tag: &str, trusted| map.route(&Tag::parse(tag.as_bytes()), trusted, NOW_MS).map(|r| (r.shard.0, r.by));
    assert_eq!(route("loc=0.5,0.5;global=users", false), Some((1024, By::Global)));
    assert_eq!(route(&format!("eosid={};global=coupons", ours(NOW_MS, 2, 0)), false), Some((1025, By::Global)));
    assert_eq!(route("global=nobody;loc=0.5,0.5", false), None, "not the location's shard, nor the default one");
    assert_eq!(route("shardid=3;global=users", true), Some((3, By::ShardId)));
    assert_eq!((map.global_name(Shard(1025)), map.global_name(Shard(1026))), (Some("coupons"), None));
}

#[test]
fn a_map_with_global_services_survives_its_bytes_and_one_without_is_written_as_it_always_was() {
    let map = with_globals();
    let bytes = map.encode();
    assert_eq!(&bytes[..8], b"EZMAP\0\x02\0");
    let back = Map::decode(&bytes).unwrap();
    assert_eq!((back.digest(), back.globals(), back.encode()), (map.digest(), map.globals(), bytes.clone()));
    assert_eq!((bytes.len(), &blake3_hex(&bytes)[..16]), (GLOBALS_GOLDEN_LEN, GLOBALS_GOLDEN_HASH));
    let mut old = bytes;
    old[6] = 1;
    assert!(Map::decode(&old).is_err(), "names in a map of version 1");
    let mut new = self::map().encode();
    assert_eq!(new[6], 1);
    new[6] = 2;
    assert!(Map::decode(&new).is_err(), "version 2 without names");
}

const GLOBALS_GOLDEN_LEN: usize = 475;
const GLOBALS_GOLDEN_HASH: &str = "8e091a4dda478186";

#[test]
fn global_services_without_owner_name_or_place_are_refused_together() {
    let mut parts = parts();
    for (shard, name) in [(1024, "users"), (1025, "users"), (1026, "Users"), (3, "low"), (4096, "high")] {
        parts.globals.insert(Shard(shard), name.into());
    }
    parts.histories.insert(Shard(1026), History::new(Zone(0), MapEpoch(1)));
    let said: Vec<String> = Map::from_parts(parts).unwrap_err().iter().map(ToString::to_string).collect();
    for part in [
        "global service \"users\", shard 1024, has no owner",
        "shards 1024 and 1025 are both called \"users\"",
        "shard 1026 is called \"Users\"; expected 1 to 64 of a-z, 0-9 and _",
        "global service \"low\" is shard 3; expected 1024 to 4095",
        "global service \"high\" is shard 4096; expected 1024 to 4095",
    ] {
        assert!(said.iter().any(|s| s.contains(part)), "{part}: {said:?}");
    }
}

#[test]
fn a_global_service_may_be_added_and_never_renamed_or_dropped() {
    let (first, full) = (map(), with_globals());
    let next = |edit: fn(&mut Parts)| {
        let histories = full.shards().map(|(s, h)| (s, h.clone())).collect();
        let globals = full.globals().iter().map(|(n, s)| (*s, n.clone())).collect();
        let mut parts = Parts { epoch: MapEpoch(2), previous: full.digest(), histories, globals, ..parts() };
        edit(&mut parts);
        full.may_become(&Map::from_parts(parts).unwrap())
    };
    assert_eq!(next(|_| ()), Ok(()));
    let renamed = next(|p| drop(p.globals.insert(Shard(1024), "people".into())));
    assert_eq!(renamed, Err(vec![IllegalStep::Global("users".into())]));
    let mut parts = Parts { epoch: MapEpoch(2), previous: first.digest(), ..parts() };
    parts.histories.insert(Shard(1024), History::new(Zone(0), MapEpoch(2)));
    parts.globals.insert(Shard(1024), "users".into());
    let added = Map::from_parts(parts).unwrap();
    assert_eq!(first.may_become(&added), Ok(()));
    let told: Vec<String> = first.diff(&added).iter().map(ToString::to_string).collect();
    assert_eq!(told[1..], ["global users: added, shard 1024", "shard 1024: added, bj since 2"]);
}

/// Frozen: a change of the format must show here.
#[test]
fn the_bytes_of_a_map_are_frozen() {
    let bytes = map().encode();
    assert_eq!(&bytes[..8], b"EZMAP\0\x01\0");
    assert_eq!((bytes.len(), &blake3_hex(&bytes)[..16]), (GOLDEN_LEN, GOLDEN_HASH));
}

const GOLDEN_LEN: usize = 379;
const GOLDEN_HASH: &str = "df5d92c561846012";

fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The digests are made right again, so that the damage gets past them. `SEEDS=20000` tries more.
#[test]
fn hostile_bytes_never_panic_and_every_plain_damage_is_noticed() {
    for good in [map().encode(), with_globals().encode()] {
        damage(&good);
    }
}

fn damage(good: &[u8]) {
    let head_len = u32::from_le_bytes(good[40..44].try_into().unwrap()) as usize;
    let fences_at = 44 + head_len + 5;
    let seeds = std::env::var("SEEDS").map_or(500, |s| s.parse().expect("SEEDS is a number"));
    for seed in 0..seeds {
        let mut random = Random(seed);
        let mut bad = good.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(bad.len() as u64) as usize;
            bad[at] = random.next() as u8;
        }
        assert!(bad == good || Map::decode(&bad).is_err(), "SEED={seed}");
        let fences = *blake3::hash(&bad[fences_at..]).as_bytes();
        bad[44 + 40..44 + 72].copy_from_slice(&fences);
        let head = *blake3::hash(&bad[44..44 + head_len]).as_bytes();
        bad[8..40].copy_from_slice(&head);
        if let Ok(map) = Map::decode(&bad) {
            map.locate(Point { lng_e7: 5_000_000, lat_e7: 5_000_000 });
            assert_eq!(Map::decode(&map.encode()).unwrap().digest(), map.digest(), "SEED={seed}");
        }
        let cut = random.below(good.len() as u64) as usize;
        assert!(Map::decode(&good[..cut]).is_err(), "SEED={seed}");
        let noise: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        assert!(Map::decode(&noise).is_err(), "SEED={seed}");
    }
}

#[test]
fn a_global_service_is_added_under_the_first_free_number_and_may_follow() {
    let first = map();
    let second = first.with_global("users", Zone(1)).unwrap();
    let third = second.with_global("coupons", Zone(0)).unwrap();
    assert_eq!((first.may_become(&second), second.may_become(&third)), (Ok(()), Ok(())));
    for (name, shard, zone) in [("users", Shard(1024), Zone(1)), ("coupons", Shard(1025), Zone(0))] {
        assert_eq!((third.global_named(name.as_bytes()), third.owner(shard)), (Some(shard), Some(zone)));
        let tag = format!("global={name}");
        assert_eq!(third.route(&Tag::parse(tag.as_bytes()), false, NOW_MS).unwrap().shard, shard);
    }
    let back = Map::decode(&third.encode()).unwrap();
    assert_eq!((back.digest(), back.encode(), back.globals()), (third.digest(), third.encode(), third.globals()));
    let refused = |map: &Map, name: &str, zone: u8| map.with_global(name, Zone(zone)).unwrap_err().to_string();
    assert!(refused(&third, "users", 0).contains("on the map already: shard 1024"));
    assert!(refused(&third, "Users", 0).contains("expected 1 to 64"));
    assert!(refused(&third, "more", 7).contains("zone 7 is not on the map"));
    let full = (1026..4096).fold(third, |map, n| map.with_global(&format!("g{n}"), Zone(0)).unwrap());
    assert!(refused(&full, "one_more", 0).contains("no number is left"));
}

#[test]
fn a_zone_is_added_and_removed_and_its_number_name_and_ids_stay_its_own() {
    let first = map();
    let second = first.with_zone("gz").unwrap();
    assert_eq!((first.may_become(&second), second.zone_named("gz"), second.zones().len()), (Ok(()), Some(Zone(2)), 3));
    let changes: Vec<String> = first.diff(&second).iter().skip(1).map(ToString::to_string).collect();
    assert_eq!(changes, ["zone 2: added, gz"]);
    let third = second.without_zone(Zone(2)).unwrap();
    assert_eq!((second.may_become(&third), third.zone_named("gz"), third.zones().len()), (Ok(()), None, 2));
    assert_eq!((third.zone_name(Zone(2)), third.has_zone(Zone(2)), third.gone().len()), ("gz", true, 1));
    let tag = format!("eosid={};loc=0.5,0.5", ours(NOW_MS, 2, 2));
    let by = |map: &Map| map.route(&Tag::parse(tag.as_bytes()), false, NOW_MS).unwrap().by;
    assert_eq!((by(&first), by(&second), by(&third)), (By::Inside, By::Order, By::Order));
    let back = Map::decode(&third.encode()).unwrap();
    assert_eq!((back.digest(), back.encode(), back.gone()), (third.digest(), third.encode(), third.gone()));
    assert!(matches!(third.with_zone("gz"), Err(Refused::Zone(why)) if why.contains("share a name")));
    assert_eq!(third.with_zone("cd").unwrap().zone_named("cd"), Some(Zone(3)));
    let dropped = Map::from_parts(Parts { epoch: MapEpoch(4), previous: third.digest(), ..parts() }).unwrap();
    assert!(third.may_become(&dropped).unwrap_err().contains(&IllegalStep::Zone(2)));
    assert!(
        matches!(third.with_zone(""), Err(Refused::Zone(_)))
            && matches!(third.with_zone("edge"), Err(Refused::Zone(_)))
    );
    let full = (3..15).fold(third.clone(), |map, n| map.with_zone(&format!("z{n}")).unwrap());
    assert!(matches!(full.with_zone("one more"), Err(Refused::Zone(why)) if why.contains("no number is left")));
}

#[test]
fn a_zone_that_has_a_shard_or_is_to_get_one_is_not_removed_and_one_that_was_gets_none() {
    let first = map();
    assert!(matches!(first.without_zone(Zone(0)), Err(Refused::Zone(why)) if why.contains("zone bj has shard 1")));
    assert_eq!(first.without_zone(Zone(7)).unwrap_err(), Refused::UnknownZone(Zone(7)));
    let second = first.with_zone("gz").unwrap();
    let moving = second.history(Shard(1)).unwrap().begin_move(Zone(2), MapEpoch(3)).unwrap();
    let third = second.with_entries(vec![(Shard(1), moving)]).unwrap();
    assert!(matches!(third.without_zone(Zone(2)), Err(Refused::Zone(_))), "a shard is on its way to it");
    let removed = second.without_zone(Zone(2)).unwrap();
    let late = removed.history(Shard(1)).unwrap().begin_move(Zone(2), MapEpoch(4)).unwrap();
    assert_eq!(removed.with_entries(vec![(Shard(1), late)]).unwrap_err(), Refused::UnknownZone(Zone(2)));
    let alone = Map::from_parts(Parts {
        zones: vec![ZoneInfo { id: Zone(0), name: "bj".into() }],
        histories: Default::default(),
        default: None,
        exceptions: Exceptions::default(),
        fences: Arc::new(Fences::new(vec![], 0, 0).unwrap()),
        ..parts()
    });
    assert!(matches!(alone.unwrap().without_zone(Zone(0)), Err(Refused::Zone(why)) if why.contains("the only one")));
    // Bytes that say that an owner was removed are refused.
    let bytes = first.encode();
    let at = bytes.windows(5).position(|w| w == [1, 2, 0, b's', b'h']).unwrap();
    let mut hostile = bytes.clone();
    hostile[at] |= 128;
    let head = 6 + 2 + 32 + 4;
    let len = u32::from_le_bytes(hostile[head - 4..head].try_into().unwrap()) as usize;
    let digest = *blake3::hash(&hostile[head..head + len]).as_bytes();
    hostile[8..40].copy_from_slice(&digest);
    assert!(Map::decode(&hostile).unwrap_err().to_string().contains("removed"));
}
