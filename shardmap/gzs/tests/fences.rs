//! A fence edit from its preview to its end: what is held, what is refused, what the record keeps.

mod kit;

use gzs::api::{FencesAsk, OpAsk, ShardTold, Town, What};
use gzs::fences::{Prepared, prepare};
use gzs::op::Op;
use gzs::service::{Refused, Service};
use gzs::store::Store;
use gzs::store::memory::Memory;
use kit::{NAMES, all_tell, ask, awake, drain, first_audit, log, router, settings};
use serde_json::{Value, json};
use shardmap::ownership::Kind;
use shardmap::{Shard, Zone};

const T: u64 = 1_000_000;

/// Six strips from west to east, for shards 0 to 5, whose borders are `cuts`: hundredths of a degree.
fn strips(cuts: [u64; 7]) -> Value {
    let strip = |shard: usize| {
        let (w, e) = (cuts[shard] as f64 / 100.0, cuts[shard + 1] as f64 / 100.0);
        let ring = [[w, 0.0], [e, 0.0], [e, 0.01], [w, 0.01], [w, 0.0]];
        json!({"type": "Feature", "properties": {"name": format!("S{shard}"), "shard": shard},
            "geometry": {"type": "Polygon", "coordinates": [ring]}})
    };
    json!({"type": "FeatureCollection", "features": (0..6).map(strip).collect::<Vec<_>>()})
}

const FIRST: [u64; 7] = [0, 2, 4, 6, 8, 10, 12];
/// Shard 0 (bj) gives to shard 1 (sh); shard 5 (gz) gives to shard 4 (sh).
const NEXT: [u64; 7] = [0, 1, 4, 6, 8, 11, 12];

/// A service whose map, number 2, has the first strips.
fn fenced(store: &mut Memory) -> Service {
    let map = kit::map();
    let (fences, _) = shardmap::edit::read(&map, &strips(FIRST), shardmap::geojson::Datum::Wgs84)
        .map_err(|e| e[0].to_string())
        .unwrap();
    store.adopt(&map.with_fences(fences, vec![]).unwrap(), &first_audit()).unwrap();
    let mut service = again(store, T);
    all_tell(&mut service, store, &NAMES, T);
    service
}

fn again(store: &mut Memory, now_ms: u64) -> Service {
    awake(Service::new(store.load().unwrap().unwrap(), vec![], settings(), now_ms - 1200), now_ms)
}

fn edit(from_epoch: u64) -> OpAsk {
    ask(What::Fences { from_epoch, geojson: strips(NEXT), datum: None })
}

fn prepared(service: &Service, cuts: [u64; 7]) -> Prepared {
    prepare(service.map(), &strips(cuts), None).unwrap()
}

fn begin(service: &mut Service, store: &mut Memory, now_ms: u64) {
    let change = service.begin_edit(&edit(2), &prepared(service, NEXT), now_ms).unwrap();
    store.commit(&change).unwrap();
    service.on_stored(change);
    drain(service, store, now_ms);
}

/// The targets have all of what is held, and every router goes by `epoch`.
fn all_hold(service: &mut Service, store: &mut Memory, epoch: u64, now_ms: u64) {
    let applied = || [(0, 12), (1, 12), (2, 12)].into();
    let report =
        |shard| ShardTold { shard, map_epoch: epoch, take_over: false, fence_seq: Some(12), applied: applied() };
    let mut told = log("sh", epoch);
    told.log.as_mut().unwrap().reports = vec![report(0), report(5)];
    service.on_told(told, now_ms).unwrap();
    NAMES.iter().for_each(|zone| drop(service.on_told(router(zone, epoch), now_ms).unwrap()));
    drain(service, store, now_ms);
}

fn state(refused: Result<gzs::change::Change, Refused>) -> String {
    match refused.unwrap_err() {
        Refused::State(why) | Refused::Ask(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_gives_land_to_another_zone_is_held_until_the_fences_are_new_and_is_given_back_with_them() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    begin(&mut s, &mut store, T + 1);
    let held = |s: &Service, shard| s.map().view(Shard(shard)).map(|v| (v.kind, v.owner, v.to)).unwrap();
    assert_eq!(held(&s, 0), (Kind::Moving, Some(Zone(0)), Some(Zone(1))));
    assert_eq!(held(&s, 5), (Kind::Moving, Some(Zone(2)), Some(Zone(1))));
    assert_eq!(s.map().unsettled().count(), 2, "nothing else is held");
    let before = s.map().fences_digest();
    // It dies; what it knew is in the record.
    let mut s = again(&mut store, T + 2);
    assert_eq!(s.on_told(log("sh", 3), T + 2).unwrap().asks[0].shards, [0, 5]);
    for zone in ["bj", "gz"] {
        s.on_told(router(zone, 3), T + 2).unwrap();
    }
    s.on_told(router("sh", 2), T + 2).unwrap();
    drain(&mut s, &mut store, T + 3);
    assert_eq!((s.map().epoch().0, s.map().fences_digest()), (3, before), "a router goes by the old map");
    all_hold(&mut s, &mut store, 3, T + 4);
    assert_eq!((s.map().epoch().0, s.map().fences().list()[0].rings[0][1].lng_e7), (4, 100_000));
    assert_eq!(
        (held(&s, 0).0, s.map().owner(Shard(0)), s.map().owner(Shard(5))),
        (Kind::Own, Some(Zone(0)), Some(Zone(2)))
    );
    let op = &s.ops(true)[0];
    assert_eq!((op.state.as_str(), op.shards[0].state.as_str(), op.shards[0].epoch), ("done", "returned", 4));
    assert!(op.says.starts_with("0 fences added, 0 removed, 4 changed: 2.4"), "{}", op.says);
    assert!(s.op(1).unwrap().edit.as_ref().unwrap().fences.is_none(), "they are the map's now");
    let audit = store.audit(3, 10).unwrap().remove(0);
    let told = audit.changes.join("\n");
    assert!(
        told.contains("shard 0: bj since 1, moving to sh -> bj since 4") && told.contains("fence S0: shard 0"),
        "{told}"
    );
    assert_eq!((audit.why.as_str(), audit.by.as_str()), ("the fences are changed; a test", "someone"));
}

#[test]
fn an_edit_that_takes_too_long_or_is_aborted_changes_no_fence() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    let before = s.map().fences_digest();
    begin(&mut s, &mut store, T + 1);
    for ms in (100..2700).step_by(100) {
        all_tell(&mut s, &mut store, &NAMES, T + ms);
    }
    let op = &s.ops(true)[0];
    assert!(op.state == "gave_up" && op.says.contains("it took longer than 2500 ms"), "{op:?}");
    assert_eq!((s.map().unsettled().count(), s.map().fences_digest()), (0, before));
    assert!(state(s.resume(1, T + 2700)).contains("begin a new one"));
    begin(&mut s, &mut store, T + 2700);
    let change = s.abort(2, "someone else", T + 2800).unwrap();
    store.commit(&change).unwrap();
    s.on_stored(change);
    let op = &s.ops(true)[0];
    assert_eq!((op.state.as_str(), s.map().unsettled().count(), s.map().fences_digest()), ("aborted", 0, before));
}

#[test]
fn an_edit_within_a_zone_holds_nothing() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    // S0 gets S3's land and the other way round: both are zone bj's.
    let mut geojson = strips(FIRST);
    geojson["features"][0]["properties"]["shard"] = json!(3);
    geojson["features"][3]["properties"]["shard"] = json!(0);
    let fences = prepare(s.map(), &geojson, None).unwrap();
    let change = s.begin_edit(&edit(2), &fences, T + 1).unwrap();
    store.commit(&change).unwrap();
    s.on_stored(change);
    drain(&mut s, &mut store, T + 1);
    assert_eq!((s.map().epoch().0, s.ops(true)[0].state.as_str()), (3, "done"));
    assert_eq!(s.map().fences().list()[0].shard, Shard(3));
}

#[test]
fn an_old_preview_another_operation_or_no_change_at_all_is_refused() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    let fences = prepared(&s, NEXT);
    assert!(state(s.begin(&edit(2), T)).contains("no fences"));
    assert!(state(s.begin_edit(&edit(1), &fences, T)).contains("make a new preview"));
    assert!(state(s.begin_edit(&edit(3), &fences, T)).contains("the newest map is 2"));
    assert!(state(s.begin_edit(&edit(2), &prepared(&s, FIRST), T)).contains("nothing would change"));
    let moved = s.begin(&ask(What::Move { shards: vec![1], to: "gz".into() }), T).unwrap();
    store.commit(&moved).unwrap();
    s.on_stored(moved);
    assert!(
        state(s.begin_edit(&edit(2), &fences, T)).contains("operation 1 is moving one of these shards"),
        "shard 1 takes"
    );
    let change = s.abort(1, "x", T).unwrap();
    store.commit(&change).unwrap();
    s.on_stored(change);
    begin(&mut s, &mut store, T + 1);
    let other = ask(What::Move { shards: vec![1], to: "gz".into() });
    assert!(state(s.begin(&other, T + 2)).contains("or the land of one"));
    assert!(state(s.begin_edit(&edit(2), &fences, T + 2)).contains("changes the fences"));
    all_hold(&mut s, &mut store, 3, T + 4);
    all_tell(&mut s, &mut store, &NAMES, T + 5);
    // What was judged by the fences of then is not what would change now.
    assert!(state(s.begin_edit(&edit(2), &prepared(&s, FIRST), T + 6)).contains("the fences of map 4"));
    assert!(state(s.begin_edit(&edit(4), &fences, T + 6)).contains("make a new preview"));
    assert!(s.begin_edit(&OpAsk { force: true, ..edit(4) }, &prepared(&s, FIRST), T + 6).is_ok());
}

#[test]
fn a_zone_that_is_lost_meanwhile_ends_the_edit() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    begin(&mut s, &mut store, T + 1);
    let lost = OpAsk { force: true, ..ask(What::TakeOver { zone: "gz".into(), to: None }) };
    let change = s.begin(&lost, T + 2).unwrap();
    store.commit(&change).unwrap();
    s.on_stored(change);
    drain(&mut s, &mut store, T + 2);
    let op = s.ops(true).into_iter().find(|op| op.id == 1).unwrap();
    assert!(op.state == "gave_up" && op.says.contains("shard 5 was changed by another operation"), "{op:?}");
    assert_eq!((s.map().owner(Shard(0)), s.map().fences().list()[0].rings[0][1].lng_e7), (Some(Zone(0)), 200_000));
}

/// Two shards of a zone exchange their land, which nobody holds; then the zone is lost, and each goes to another one.
#[test]
fn shards_that_come_apart_meanwhile_end_the_edit() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    let mut geojson = strips([0, 2, 4, 6, 8, 11, 12]);
    geojson["features"][0]["properties"]["shard"] = json!(3);
    geojson["features"][3]["properties"]["shard"] = json!(0);
    let fences = prepare(s.map(), &geojson, None).unwrap();
    let change = s.begin_edit(&edit(2), &fences, T + 1).unwrap();
    store.commit(&change).unwrap();
    s.on_stored(change);
    drain(&mut s, &mut store, T + 1);
    assert_eq!(s.map().unsettled().map(|s| s.0).collect::<Vec<_>>(), [5]);
    let lost = OpAsk { force: true, ..ask(What::TakeOver { zone: "bj".into(), to: None }) };
    let change = s.begin(&lost, T + 2).unwrap();
    let to: Vec<u8> = change.op.as_ref().unwrap().shares.iter().map(|s| s.to).collect();
    assert_eq!(to.len(), 2);
    assert_ne!(to[0], to[1], "spread");
    store.commit(&change).unwrap();
    s.on_stored(change);
    // While nobody owns them, the edit waits.
    all_hold(&mut s, &mut store, 4, T + 3);
    assert!(s.ops(false).iter().any(|op| op.id == 1 && op.says.contains("is Lost")), "{:?}", s.ops(false));
    for (zone, shard) in [("sh", 0), ("sh", 3), ("gz", 0), ("gz", 3)] {
        let mut told = log(zone, 4);
        let applied = [(0, 12), (1, 12), (2, 12)].into();
        let report = ShardTold { shard, map_epoch: 4, take_over: true, fence_seq: None, applied };
        told.log.as_mut().unwrap().reports = vec![report];
        s.on_told(told, T + 4).unwrap();
        drain(&mut s, &mut store, T + 4);
    }
    let op = s.ops(true).into_iter().find(|op| op.id == 1).unwrap();
    assert!(op.state == "gave_up" && op.says.contains("have come apart into two zones"), "{op:?}");
    assert_eq!((s.map().unsettled().count(), s.map().fences().list()[0].shard), (0, Shard(0)));
}

#[test]
fn a_preview_names_the_land_the_zones_and_the_towns() {
    let mut store = Memory::default();
    let s = fenced(&mut store);
    let town = |name: &str, lng| Town { name: name.into(), lng, lat: 0.005 };
    let towns = vec![town("west", 0.005), town("between", 0.015), town("east", 0.105), town("nowhere", 5.0)];
    let ask = FencesAsk { geojson: strips(NEXT), datum: None, towns };
    let p = prepared(&s, NEXT).view(s.map(), &ask).unwrap();
    assert_eq!((p.from_epoch, p.held.as_slice(), p.changed.len(), p.bare.len()), (2, &[0, 5][..], 4, 0));
    let give = p.gives.iter().find(|g| g.from == Some(0)).unwrap();
    assert_eq!((give.to, give.from_zone.as_deref(), give.to_zone.as_deref()), (Some(1), Some("bj"), Some("sh")));
    assert!(give.changes_zone && give.towns == 1 && (1.2..1.3).contains(&give.km2), "{give:?}");
    let told: Vec<_> = p.towns.iter().map(|t| (t.name.as_str(), t.from, t.to)).collect();
    assert_eq!(told, [("between", Some(0), Some(1)), ("east", Some(5), Some(4))]);
    let far = FencesAsk { towns: vec![Town { lng: 200.0, ..Town::default() }], ..ask };
    assert!(prepared(&s, NEXT).view(s.map(), &far).unwrap_err().contains("not on the globe"));
    let wrong = |geojson: &Value, datum| prepare(s.map(), geojson, datum).err().unwrap().join("\n");
    assert!(wrong(&strips(FIRST), Some("Mars")).contains("expected \"WGS84\" or \"GCJ-02\""));
    assert!(wrong(&strips([0, 2, 1, 6, 8, 10, 12]), None).contains("overlaps"));
    assert!(wrong(&json!({"type": "Point"}), None).contains("not a GeoJSON FeatureCollection"));
}

#[test]
fn a_record_keeps_its_fences_and_one_of_before_there_were_any_is_read() {
    let mut store = Memory::default();
    let mut s = fenced(&mut store);
    begin(&mut s, &mut store, T + 1);
    let op = s.op(1).unwrap();
    let text = serde_json::to_string(op).unwrap();
    assert_eq!(&serde_json::from_str::<Op>(&text).unwrap(), op);
    assert!(!text.contains("FeatureCollection"), "what is asked for is not kept twice");
    let damaged = text.replace("\"fences\":\"", "\"fences\":\"0");
    assert!(serde_json::from_str::<Op>(&damaged).is_err());
    let mut old: Value = serde_json::from_str(&text).unwrap();
    old.as_object_mut().unwrap().remove("edit");
    old["what"] = json!({"kind": "unlock", "shards": [1]});
    assert!(serde_json::from_value::<Op>(old).unwrap().edit.is_none());
}
