//! Zones that come and go: what is waited for, what is refused, what stays.

mod kit;

use gzs::api::{LogTold, NodeTold, OpAsk, What};
use gzs::change::{Change, Mark};
use gzs::service::{Refused, Service};
use gzs::store::Store;
use gzs::store::memory::Memory;
use kit::{NAMES, all_tell, ask, drain, log, router, service, settings};
use shardmap::{Shard, Zone};

const T: u64 = 1_000_000;

fn started() -> (Memory, Service) {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    (store, s)
}

fn add() -> OpAsk {
    ask(What::AddZone { zone: "cd".into() })
}

fn remove(zone: &str) -> OpAsk {
    ask(What::RemoveZone { zone: zone.into() })
}

fn put(service: &mut Service, store: &mut Memory, change: Change) {
    store.commit(&change).unwrap();
    service.on_stored(change);
}

fn said(refused: Result<Change, Refused>) -> String {
    match refused.unwrap_err() {
        Refused::State(why) | Refused::Ask(why) => why,
        Refused::Preflight(reasons) => format!("preflight: {}", reasons.join("\n")),
        Refused::Unknown(id) => panic!("no operation {id}"),
    }
}

/// Zone cd's log, which has applied so much of each other one.
fn new_log(applied: u64) -> NodeTold {
    let mut told = log("cd", 2);
    told.log.iter_mut().flat_map(|l: &mut LogTold| &mut l.streams).for_each(|s| {
        s.applied.values_mut().for_each(|seq| *seq = applied);
    });
    told
}

#[test]
fn a_new_zone_is_on_the_map_at_once_and_is_waited_for_until_it_has_all() {
    let (mut store, mut s) = started();
    let change = s.begin(&add(), T).unwrap();
    put(&mut s, &mut store, change);
    drain(&mut s, &mut store, T);
    assert_eq!((s.map().epoch().0, s.map().zone_named("cd")), (2, Some(Zone(3))));
    assert!(s.ops(false)[0].says.contains("give every other zone's nodes [zones.cd]"), "{:?}", s.ops(false));
    // However long it takes.
    for ms in (100..10_000).step_by(100) {
        all_tell(&mut s, &mut store, &NAMES, T + ms);
    }
    s.on_told(new_log(7), T + 10_000).unwrap();
    all_tell(&mut s, &mut store, &NAMES, T + 10_000);
    let says = &s.ops(false)[0].says;
    assert!(says.contains("lacks 3 records") && says.contains("POST /seed"), "{says}");
    s.on_told(new_log(10), T + 10_100).unwrap();
    drain(&mut s, &mut store, T + 10_100);
    let op = &s.ops(true)[0];
    assert_eq!((op.state.as_str(), s.map().epoch().0), ("done", 2));
    // From now on it is a zone as any other.
    all_tell(&mut s, &mut store, &NAMES, T + 10_200);
    s.on_told(new_log(10), T + 10_200).unwrap();
    s.on_told(router("cd", 2), T + 10_200).unwrap();
    assert!(s.begin(&ask(What::Move { shards: vec![0], to: "cd".into() }), T + 10_200).is_ok());
    assert_eq!(store.audit(1, 10).unwrap()[0].changes, ["zone 3: added, cd"]);
}

#[test]
fn a_zone_that_is_not_waited_for_any_more_stays_until_it_is_removed() {
    let (mut store, mut s) = started();
    let change = s.begin(&add(), T).unwrap();
    put(&mut s, &mut store, change);
    let change = s.abort(1, "someone", T + 10).unwrap();
    put(&mut s, &mut store, change);
    assert_eq!((s.ops(true)[0].state.as_str(), s.map().zones().len()), ("aborted", 4));
    all_tell(&mut s, &mut store, &NAMES, T + 20);
    let change = s.begin(&remove("cd"), T + 20).unwrap();
    put(&mut s, &mut store, change);
    assert_eq!((s.ops(true)[0].state.as_str(), s.map().zones().len(), s.map().gone().len()), ("done", 3, 1));
    assert!(s.ops(true)[0].says.contains("without [zones.cd]"));
    all_tell(&mut s, &mut store, &NAMES, T + 30);
    assert!(said(s.begin(&add(), T + 30)).contains("share a name"), "its mirrors lie under that name");
    assert!(s.on_told(log("cd", 3), T + 30).is_err(), "it is no zone of this cluster");
}

#[test]
fn a_zone_that_is_removed_while_it_is_waited_for_ends_the_waiting() {
    let (mut store, mut s) = started();
    let change = s.begin(&add(), T).unwrap();
    put(&mut s, &mut store, change);
    all_tell(&mut s, &mut store, &NAMES, T + 20);
    let change = s.begin(&remove("cd"), T + 20).unwrap();
    put(&mut s, &mut store, change);
    drain(&mut s, &mut store, T + 20);
    let op = s.ops(true).into_iter().find(|op| op.id == 1).unwrap();
    assert!(op.state == "gave_up" && op.says.contains("removed again"), "{op:?}");
}

#[test]
fn names_that_no_zone_can_have_are_refused() {
    let (_, s) = started();
    for (zone, part) in [
        ("", "expected 1 to 64"),
        ("a b", "expected"),
        ("..", "expected"),
        ("bj", "share a name"),
        ("edge", "names no zone"),
    ] {
        let why = said(s.begin(&ask(What::AddZone { zone: zone.into() }), T));
        assert!(why.contains(part), "{zone}: {why}");
    }
}

#[test]
fn a_zone_that_is_used_heard_lost_or_somebodys_home_is_not_removed() {
    let (mut store, mut s) = started();
    assert!(said(s.begin(&remove("gz"), T)).contains("zone gz has shard 2"));
    assert!(said(s.begin(&remove("xx"), T)).contains("is not on the map"));
    // Its shards are taken over.
    let lost = OpAsk { force: true, ..ask(What::TakeOver { zone: "gz".into(), to: Some("bj".into()) }) };
    let change = s.begin(&lost, T).unwrap();
    put(&mut s, &mut store, change);
    assert!(said(s.begin(&remove("gz"), T + 2000)).contains("zone gz has shard 2"), "nobody else has it yet");
    let mut told = log("bj", 2);
    let report = |shard| gzs::api::ShardTold {
        shard,
        map_epoch: 2,
        take_over: true,
        fence_seq: None,
        applied: [(0, 5), (1, 5), (2, 5)].into(),
    };
    told.log.as_mut().unwrap().reports = vec![report(2), report(5)];
    s.on_told(told, T + 10).unwrap();
    drain(&mut s, &mut store, T + 10);
    assert_eq!(s.map().owner(Shard(2)), Some(Zone(0)));
    assert!(said(s.begin(&remove("gz"), T + 500)).contains("was heard a moment ago"));
    all_tell(&mut s, &mut store, &["bj", "sh"], T + 2000);
    assert!(said(s.begin(&remove("gz"), T + 2000)).contains("`ezctl shard unlock 2 5`"));
    let change = s.begin(&ask(What::Unlock { shards: vec![2, 5] }), T + 2000).unwrap();
    put(&mut s, &mut store, change);
    all_tell(&mut s, &mut store, &["bj", "sh"], T + 2010);
    let why = said(s.begin(&remove("gz"), T + 2010));
    assert_eq!(why, "preflight: 2 shards are to be brought back to zone gz (`ezctl zone restore`): 2, 5");
    let mut behind = log("sh", 4);
    behind.log.as_mut().unwrap().streams[0].applied.insert("gz".into(), 6);
    s.on_told(behind, T + 2010).unwrap();
    let why = said(s.begin(&remove("gz"), T + 2010));
    assert!(why.contains("zone sh lacks 4 records that zone gz has told to have"), "{why}");
    let change = s.begin(&OpAsk { force: true, ..remove("gz") }, T + 2010).unwrap();
    assert_eq!(change.marks, [2, 5].map(|s| (Shard(s), Mark { given_ms: T + 10, ..Mark::default() })));
    put(&mut s, &mut store, change);
    assert!(s.state(T + 2020).zones.iter().all(|z| z.name != "gz"));
    // Nobody waits for its nodes: an operation among the others begins.
    all_tell(&mut s, &mut store, &["bj", "sh"], T + 62_100);
    let moved = s.begin(&ask(What::Move { shards: vec![2], to: "sh".into() }), T + 62_100);
    assert!(moved.is_ok(), "{}", said(moved));
    let why = said(s.begin(&add(), T + 62_100));
    assert!(why.contains("zone gz was removed and had written shard 2"), "{why}");
}
