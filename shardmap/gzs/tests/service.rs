//! The service as a machine: preflight, silence, a restored backup, a move from its ask to its end.

mod kit;

use gzs::api::{OpAsk, ShardTold, What};
use gzs::change::Mark;
use gzs::service::{Refused, Settings};
use gzs::store::Store;
use gzs::store::memory::Memory;
use kit::{NAMES, all_tell, ask, drain, keep, log, router, service, settings};
use shardmap::ownership::Kind;
use shardmap::{Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};

const T: u64 = 1_000_000;

fn moving(shards: &[u16], to: &str) -> What {
    What::Move { shards: shards.to_vec(), to: to.into() }
}

fn reasons(refused: Refused) -> String {
    match refused {
        Refused::Preflight(reasons) => reasons.join("\n"),
        Refused::Ask(why) | Refused::State(why) => panic!("not the preflight: {why}"),
        Refused::Unknown(id) => panic!("no operation {id}"),
    }
}

#[test]
fn a_move_goes_from_its_ask_to_its_end() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
    keep(&mut s, &mut store, change);
    drain(&mut s, &mut store, T + 1);
    assert_eq!(s.map().view(Shard(0)).unwrap().kind, Kind::Moving);
    let asked = s.on_told(log("sh", 2), T + 2).unwrap();
    assert_eq!((asked.asks.len(), asked.asks[0].shards.clone(), asked.asks[0].take_over), (1, vec![0], false));
    // The target is ready, one router has not taken the map yet.
    let mut told = log("sh", 2);
    let applied = [(0, 12), (1, 10), (2, 10)].into();
    let report = ShardTold { shard: 0, map_epoch: 2, take_over: false, fence_seq: Some(12), applied };
    told.log.as_mut().unwrap().reports.push(report);
    s.on_told(told, T + 3).unwrap();
    for zone in ["bj", "sh"] {
        s.on_told(router(zone, 2), T + 3).unwrap();
    }
    drain(&mut s, &mut store, T + 4);
    let waits = &s.ops(false)[0].says;
    assert_eq!(waits, "router host of zone gz goes by map 1, not yet by 2");
    s.on_told(router("gz", 2), T + 5).unwrap();
    drain(&mut s, &mut store, T + 5);
    assert_eq!((s.map().owner(Shard(0)), s.map().epoch().0), (Some(Zone(1)), 3));
    let op = &s.ops(true)[0];
    assert_eq!((op.state.as_str(), op.shards[0].state.as_str(), op.shards[0].epoch), ("done", "given", 3));
    let audit = store.audit(1, 10).unwrap();
    assert_eq!(audit.iter().map(|a| a.epoch).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(audit[1].changes, ["shard 0: bj since 1, moving to sh -> sh since 3"]);
    assert_eq!((audit[1].by.as_str(), audit[1].op), ("someone", Some(op.id)));
}

#[test]
fn a_move_that_takes_too_long_is_given_back_and_can_be_resumed() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
    keep(&mut s, &mut store, change);
    all_tell(&mut s, &mut store, &NAMES, T + 100);
    for ms in (200..2500).step_by(100) {
        all_tell(&mut s, &mut store, &NAMES, T + ms);
    }
    assert_eq!(s.map().view(Shard(0)).unwrap().kind, Kind::Moving);
    all_tell(&mut s, &mut store, &NAMES, T + 2500);
    let op = &s.ops(true)[0];
    assert_eq!((op.state.as_str(), op.shards[0].state.as_str()), ("gave_up", "returned"));
    assert!(op.says.contains("it took longer than 2500 ms: zone sh has not told yet"), "{}", op.says);
    assert_eq!(s.map().owner(Shard(0)), Some(Zone(0)));
    let change = s.resume(op.id, T + 2600).unwrap();
    keep(&mut s, &mut store, change);
    all_tell(&mut s, &mut store, &NAMES, T + 2600);
    assert_eq!(s.map().view(Shard(0)).unwrap().kind, Kind::Moving);
    let change = s.abort(1, "someone else", T + 2700).unwrap();
    keep(&mut s, &mut store, change);
    assert_eq!((s.ops(true)[0].state.as_str(), s.map().owner(Shard(0))), ("aborted", Some(Zone(0))));
    let last = store.audit(0, 100).unwrap().pop().unwrap();
    assert_eq!((last.by.as_str(), last.epoch), ("someone else", s.map().epoch().0), "who gave it back, not who began");
    assert!(matches!(s.abort(1, "x", T + 2800), Err(Refused::State(_))), "it has ended");
    assert!(matches!(s.abort(1, &"x".repeat(5000), T + 2800), Err(Refused::Ask(_))), "a name too long");
    assert!(matches!(s.begin(&ask(moving(&[0; 5000], "sh")), T + 2800), Err(Refused::Ask(_))), "shards without end");
}

/// As an operator sees it: what it was asked for has not come to pass.
#[test]
fn a_move_that_another_operation_overtakes_is_not_called_done() {
    for (lost, owner) in [("sh", "bj"), ("bj", "nobody")] {
        let mut store = Memory::default();
        let mut s = service(&mut store, settings(), T);
        all_tell(&mut s, &mut store, &NAMES, T);
        let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
        keep(&mut s, &mut store, change);
        drain(&mut s, &mut store, T + 1);
        let what = What::TakeOver { zone: lost.into(), to: Some("gz".into()) };
        let change = s.begin(&OpAsk { force: true, ..ask(what) }, T + 2).unwrap();
        keep(&mut s, &mut store, change);
        drain(&mut s, &mut store, T + 3);
        let ops = s.ops(true);
        let op = ops.iter().find(|op| op.id == 1).unwrap();
        assert_eq!((op.state.as_str(), op.shards[0].state.as_str()), ("gave_up", "replaced"), "{lost}");
        let says = format!("another operation changed shard 0, which is {owner}'s now");
        assert_eq!(op.says, says, "{lost} is lost");
    }
}

#[test]
fn the_preflight_says_every_reason_and_is_overruled_on_the_record() {
    let mut store = Memory::default();
    let rates = [("sh".to_owned(), 100.0)].into();
    let mut s = service(&mut store, Settings { requests_per_s_max: rates, ..settings() }, T);
    all_tell(&mut s, &mut store, &["bj", "sh"], T);
    s.on_told(log("gz", 1), T - 5000).unwrap();
    let mut busy = router("bj", 1);
    busy.router.as_mut().unwrap().requests = 5000;
    s.on_told(busy, T + 900).unwrap();
    let mut told = log("bj", 1);
    told.log.as_mut().unwrap().open = 3;
    s.on_told(told, T + 900).unwrap();
    s.on_told(log("sh", 1), T + 900).unwrap();
    s.on_told(router("sh", 1), T + 900).unwrap();
    let said = reasons(s.begin(&ask(moving(&[0, 3], "sh")), T + 900).unwrap_err());
    for part in [
        "log host of zone gz was last heard 5.9 s ago, at map 1",
        "3 conflicts are open in zone bj",
        "it can answer 100",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    let forced = gzs::api::OpAsk { force: true, ..ask(moving(&[0, 3], "sh")) };
    let op = s.begin(&forced, T + 900).unwrap().op.unwrap();
    assert_eq!(op.forced.len(), 3, "{:?}", op.forced);
}

#[test]
fn a_service_that_has_just_begun_knows_not_yet_which_routers_there_are() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
    keep(&mut s, &mut store, change);
    drain(&mut s, &mut store, T + 1);
    // It dies; the next one hears the target before any router.
    let mut s = gzs::service::Service::new(store.load().unwrap().unwrap(), vec![], settings(), T + 100);
    let mut told = log("sh", 2);
    let applied = [(0, 12), (1, 10), (2, 10)].into();
    let report = ShardTold { shard: 0, map_epoch: 2, take_over: false, fence_seq: Some(12), applied };
    told.log.as_mut().unwrap().reports.push(report);
    s.on_told(told, T + 110).unwrap();
    drain(&mut s, &mut store, T + 110);
    assert_eq!(s.map().view(Shard(0)).unwrap().kind, Kind::Moving);
    s.on_told(router("bj", 1), T + 400).unwrap();
    drain(&mut s, &mut store, T + 400);
    drain(&mut s, &mut store, T + 600);
    assert_eq!(s.ops(false)[0].says, "router host of zone bj goes by map 1, not yet by 2");
    s.on_told(router("bj", 2), T + 610).unwrap();
    drain(&mut s, &mut store, T + 610);
    assert_eq!(s.map().owner(Shard(0)), Some(Zone(1)));
}

#[test]
fn what_was_moved_a_moment_ago_is_left_alone() {
    let mut store = Memory::default();
    service(&mut store, settings(), T);
    let mut held = store.load().unwrap().unwrap();
    held.marks.push((Shard(0), Mark { given_ms: T - 10_000, ..Mark::default() }));
    let mut s = gzs::service::Service::new(held, vec![], settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let said = reasons(s.begin(&ask(moving(&[0, 3], "sh")), T).unwrap_err());
    assert_eq!(said, "shard 0 was moved 10.0 s ago, less than cool_down_s = 60");
    assert!(s.begin(&ask(moving(&[3], "sh")), T).is_ok());
}

#[test]
fn what_makes_no_sense_is_refused_whoever_insists() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let check = |what: What, expected: &str| {
        let forced = gzs::api::OpAsk { force: true, ..ask(what) };
        let said = match s.begin(&forced, T).unwrap_err() {
            Refused::Ask(why) | Refused::State(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(said.contains(expected), "{said}");
    };
    check(moving(&[], "sh"), "no shard is named");
    check(moving(&[9], "sh"), "shard 9 is not on the map");
    check(moving(&[0], "xx"), "zone \"xx\" is not on the map, which has: bj, sh, gz");
    check(moving(&[1], "sh"), "zone sh owns shard 1 already");
    check(What::Restore { zone: "sh".into() }, "no evacuation or take-over has taken a shard from it");
    check(What::TakeOver { zone: "sh".into(), to: Some("sh".into()) }, "zone sh cannot take over from itself");
    check(What::Unlock { shards: vec![] }, "no shard is named");
    let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
    keep(&mut s, &mut store, change);
    assert!(
        matches!(s.begin(&ask(moving(&[0, 3], "gz")), T), Err(Refused::State(why)) if why.contains("operation 1 is moving"))
    );
}

#[test]
fn a_zone_that_is_silent_is_taken_over_by_those_who_are_not() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    for ms in (100..1500).step_by(100) {
        all_tell(&mut s, &mut store, &["bj", "gz"], T + ms);
        assert_eq!(s.map().epoch().0, 1, "after {ms} ms");
    }
    all_tell(&mut s, &mut store, &["bj", "gz"], T + 1500);
    let op = &s.ops(false)[0];
    assert_eq!(op.what, What::TakeOver { zone: "sh".into(), to: None });
    assert!(op.why.contains("silent for 1500 ms, at most 1500"), "{}", op.why);
    let to: Vec<_> = op.shards.iter().map(|s| s.to.as_str()).collect();
    assert_eq!(to, ["bj", "gz"], "spread");
    assert_eq!(s.state(T + 1500).zones[1].state, "lost");
}

#[test]
fn nobody_is_lost_while_the_service_hears_nobody_or_has_slept() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    for ms in (100..20_000).step_by(100) {
        drain(&mut s, &mut store, T + ms);
    }
    assert_eq!(s.map().epoch().0, 1, "it is the service that is cut off");
    // It was stopped for a minute; the first that it hears then is one zone.
    all_tell(&mut s, &mut store, &["bj"], T + 80_000);
    assert_eq!(s.map().epoch().0, 1, "it slept");
    for ms in (0..1500).step_by(100) {
        all_tell(&mut s, &mut store, &["bj", "sh"], T + 80_000 + ms);
    }
    assert_eq!(s.map().epoch().0, 1);
    all_tell(&mut s, &mut store, &["bj", "sh"], T + 81_500);
    assert_eq!(s.ops(false).len(), 1, "gz is silent still");
}

/// Its own line was cut, and the first that it hears when it is whole again is one zone.
#[test]
fn who_was_cut_off_itself_takes_nobody_over_when_it_hears_again() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    for ms in (100..20_000).step_by(100) {
        drain(&mut s, &mut store, T + ms);
    }
    all_tell(&mut s, &mut store, &["bj"], T + 20_000);
    all_tell(&mut s, &mut store, &["bj", "sh"], T + 20_400);
    assert!(s.ops(true).is_empty(), "the others were not silent for so long since: {:?}", s.ops(true));
    for ms in (500..1600).step_by(100) {
        all_tell(&mut s, &mut store, &["bj", "sh"], T + 20_000 + ms);
    }
    assert_eq!(s.ops(true)[0].what, What::TakeOver { zone: "gz".into(), to: None }, "gz is");
}

/// An operation, until it is done; new owners have `of_sh` records of sh's log.
fn done(s: &mut gzs::service::Service, store: &mut Memory, what: What, of_sh: u64, now_ms: u64) {
    let change = s.begin(&OpAsk { force: true, ..ask(what) }, now_ms).unwrap();
    let id = change.op.as_ref().unwrap().id;
    keep(s, store, change);
    drain(s, store, now_ms);
    reports(s, store, of_sh, now_ms);
    let op = s.ops(true).into_iter().find(|op| op.id == id).unwrap();
    assert_eq!(op.state, "done", "{op:?}");
}

fn taken_over(s: &mut gzs::service::Service, store: &mut Memory, zone: &str, to: &str, now_ms: u64) {
    done(s, store, What::TakeOver { zone: zone.into(), to: Some(to.into()) }, 10, now_ms);
}

/// Each zone reports what it is asked for.
fn reports(s: &mut gzs::service::Service, store: &mut Memory, of_sh: u64, now_ms: u64) {
    let epoch = s.map().epoch().0;
    for zone in NAMES {
        let asked = s.on_told(log(zone, epoch), now_ms).unwrap();
        let mut told = log(zone, epoch);
        for ask in &asked.asks {
            let (map_epoch, take_over) = (ask.map_epoch, ask.take_over);
            let fence_seq = (!take_over).then_some(12);
            let applied: BTreeMap<u8, u64> = [(0, 12), (1, of_sh), (2, 12)].into();
            let report =
                |shard: &u16| ShardTold { shard: *shard, map_epoch, take_over, fence_seq, applied: applied.clone() };
            told.log.as_mut().unwrap().reports.extend(ask.shards.iter().map(report));
        }
        s.on_told(told, now_ms).unwrap();
        s.on_told(router(zone, epoch), now_ms).unwrap();
    }
    drain(s, store, now_ms);
}

/// The store is lost in the middle of a move and of a take-over, and a node's map is adopted: nobody knows of either operation.
#[test]
fn what_an_adopted_map_holds_for_operations_that_are_lost_gets_an_owner_again() {
    let first = kit::map();
    let epoch = first.epoch().next();
    let moving = (Shard(0), first.history(Shard(0)).unwrap().begin_move(Zone(1), epoch).unwrap());
    let lost = [2, 5].map(Shard).map(|s| (s, first.history(s).unwrap().declare_lost(Zone(2), epoch).unwrap().unwrap()));
    // With more of the lost zone's to take, and without.
    for (entries, to, owner) in [(vec![moving, lost[0].clone()], "sh", Zone(1)), (lost.into(), "bj", Zone(0))] {
        let moves = entries.len() == 2 && entries[0].0 == Shard(0);
        let mut store = Memory::default();
        store.adopt(&first.with_entries(entries).unwrap(), &kit::first_audit()).unwrap();
        let held = store.load().unwrap().unwrap();
        let mut s = gzs::service::Service::new(held, vec![], Settings { silence_ms: 0, ..settings() }, T);
        for ms in (0..2000).step_by(100) {
            all_tell(&mut s, &mut store, &["bj", "sh"], T + ms);
        }
        assert_eq!((s.map().owner(Shard(0)), s.map().epoch().0), (Some(Zone(0)), if moves { 3 } else { 2 }), "once");
        assert!(s.map().view(Shard(0)).is_some_and(|v| !v.kind.is_unsettled()), "it is given back");
        let last = store.audit(0, 10).unwrap().pop().unwrap();
        assert_eq!(last.why == "moves that no operation knows of are given back", moves);
        taken_over(&mut s, &mut store, "gz", to, T + 2000);
        assert_eq!([2, 5].map(|shard| s.map().owner(Shard(shard))), [Some(owner); 2]);
    }
}

/// sh took bj over; bj is back, and nobody has restored it yet, when the others fall.
#[test]
fn a_zone_that_is_back_and_not_restored_takes_over_where_there_is_no_other() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    taken_over(&mut s, &mut store, "bj", "sh", T);
    for ms in (100..4000).step_by(100) {
        all_tell(&mut s, &mut store, &["bj"], T + ms);
    }
    let ops = s.ops(true);
    let to = |zone: &str| {
        let is = |what: &What| matches!(what, What::TakeOver { zone: z, .. } if z == zone);
        let op = ops.iter().find(|op| is(&op.what)).unwrap_or_else(|| panic!("{zone} is not taken over: {ops:?}"));
        op.shards.iter().map(|s| s.to.clone()).collect::<BTreeSet<_>>()
    };
    assert_eq!((to("sh"), to("gz")), (["bj".to_owned()].into(), ["bj".to_owned()].into()));
}

/// What it lost the first time has come since: only what it told beyond the last cuts is nowhere else. And nobody waits for that.
#[test]
fn what_is_unknown_counts_from_the_last_loss_and_holds_up_no_move_of_others() {
    let mut store = Memory::default();
    let mut s = service(&mut store, Settings { silence_ms: 0, ..settings() }, T);
    all_tell(&mut s, &mut store, &NAMES, T);
    taken_over(&mut s, &mut store, "sh", "bj", T);
    all_tell(&mut s, &mut store, &NAMES, T + 100);
    done(&mut s, &mut store, What::Restore { zone: "sh".into() }, 12, T + 200);
    for ms in (300..1000).step_by(100) {
        all_tell(&mut s, &mut store, &NAMES, T + ms);
    }
    let mut told = log("sh", s.map().epoch().0);
    told.log.as_mut().unwrap().streams[0].durable = 25;
    s.on_told(told, T + 1000).unwrap();
    done(&mut s, &mut store, What::TakeOver { zone: "sh".into(), to: Some("bj".into()) }, 17, T + 1000);
    let unknown = |s: &gzs::service::Service, now_ms| {
        let sh = &s.state(now_ms).zones[1];
        sh.unknown.iter().map(|u| (u.stream, u.first, u.last)).collect::<Vec<_>>()
    };
    assert_eq!(unknown(&s, T + 1000), [(0, 18, 25)]);
    for ms in (1100..3000).step_by(100) {
        all_tell(&mut s, &mut store, &["bj", "gz"], T + ms);
    }
    let change = s.begin(&OpAsk { force: true, ..ask(moving(&[0], "gz")) }, T + 3000).unwrap();
    keep(&mut s, &mut store, change);
    drain(&mut s, &mut store, T + 3000);
    assert_eq!(s.map().view(Shard(0)).unwrap().kind, Kind::Moving, "{:?}", s.ops(false));
}

/// The shards of bj are at sh since an evacuation, and sh is lost: that takes nothing away from bj, which is well.
#[test]
fn a_zone_whose_shards_were_evacuated_is_not_lost_with_the_zone_that_had_them() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let mut held = store.load().unwrap().unwrap();
    let home = Mark { home: Some(0), ..Mark::default() };
    held.marks = [1, 4].map(|shard| (Shard(shard), home)).into();
    s.reload(held);
    taken_over(&mut s, &mut store, "sh", "gz", T + 100);
    assert_eq!(s.state(T + 100).zones[0].state, "up");
}

/// The target of a take-over falls, too, and owned nothing before.
#[test]
fn a_take_over_whose_target_is_silent_goes_to_another_zone() {
    let mut store = Memory::default();
    let mut s = service(&mut store, Settings { silence_ms: 0, ..settings() }, T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let what = What::TakeOver { zone: "sh".into(), to: Some("gz".into()) };
    let change = s.begin(&OpAsk { force: true, ..ask(what) }, T).unwrap();
    keep(&mut s, &mut store, change);
    for ms in (100..7000).step_by(100) {
        all_tell(&mut s, &mut store, &["bj"], T + ms);
    }
    assert!(s.ops(false)[0].shards.iter().all(|share| share.to == "bj"), "{:?}", s.ops(false)[0]);
}

#[test]
fn a_service_restored_from_a_backup_stops_issuing_and_says_why() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    s.on_told(router("gz", 7), T).unwrap();
    assert!(s.wants_reload() && s.next_change(T).is_none(), "first the store is asked");
    s.reload(store.load().unwrap().unwrap());
    let why = s.stopped().unwrap().to_owned();
    assert!(why.starts_with("host of zone gz goes by map 7, the newest here is 1"), "{why}");
    assert!(matches!(s.begin(&ask(moving(&[0], "sh")), T), Err(Refused::State(said)) if said == why));
    assert_eq!(s.state(T).stopped, Some(why));
    // The same number, another map.
    let mut s = service(&mut store, settings(), T);
    s.on_shown("a node", 1, Some([9; 32]));
    s.reload(store.load().unwrap().unwrap());
    assert!(s.stopped().unwrap().contains("another map 1"));
    let mut s = service(&mut store, settings(), T);
    s.on_shown("a node", 1, Some(kit::map().digest()));
    s.on_shown("a node without a map", 0, Some([0; 32]));
    assert!(!s.wants_reload() && s.stopped().is_none());
}

#[test]
fn strangers_and_nonsense_are_refused() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    let mut check = |told: gzs::api::NodeTold, expected: &str| {
        let said = s.on_told(told, T).unwrap_err();
        assert!(said.contains(expected), "{said}");
    };
    check(log("xx", 1), "zone \"xx\" is not on the map");
    check(log("none", 1), "zone \"none\"");
    check(gzs::api::NodeTold { log: None, ..log("bj", 1) }, "expected one of");
    check(gzs::api::NodeTold { name: String::new(), ..log("bj", 1) }, "name of 0 bytes");
    let mut many = log("bj", 1);
    many.log.as_mut().unwrap().streams = vec![Default::default(); 1025];
    check(many, "1025 streams");
    for n in 0..gzs::limits::NODES_MAX {
        let mut told = router("none", 1);
        told.name = n.to_string();
        s.on_told(told, T).unwrap();
    }
    assert!(s.on_told(router("bj", 1), T).unwrap_err().contains("4096 nodes are known already"));
    s.on_told(router("bj", 1), T + gzs::limits::FORGET_MS).unwrap();
}

#[test]
fn what_a_lost_zone_had_told_beyond_every_cut_is_unknown() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let mut told = log("sh", 1);
    told.log.as_mut().unwrap().streams[0].durable = 25;
    s.on_told(told, T).unwrap();
    let change = s.begin(&OpAsk { force: true, ..ask(What::TakeOver { zone: "sh".into(), to: Some("bj".into()) }) }, T);
    let change = change.unwrap();
    keep(&mut s, &mut store, change);
    let mut told = log("bj", 2);
    let report = |shard| ShardTold {
        shard,
        map_epoch: 2,
        take_over: true,
        fence_seq: None,
        applied: [(0, 5), (1, 17), (2, 5)].into(),
    };
    told.log.as_mut().unwrap().reports = vec![report(1), report(4)];
    s.on_told(told, T + 10).unwrap();
    drain(&mut s, &mut store, T + 10);
    let sh = &s.state(T + 10).zones[1];
    assert_eq!((sh.state.as_str(), sh.owns), ("lost", 0));
    let unknown: Vec<_> = sh.unknown.iter().map(|u| (u.stream, u.first, u.last)).collect();
    assert_eq!(unknown, [(0, 18, 25)]);
    // What was taken from it is known, so that it can be brought back.
    all_tell(&mut s, &mut store, &NAMES, T + 20);
    let back = s.begin(&ask(What::Restore { zone: "sh".into() }), T + 20).unwrap().op.unwrap();
    assert_eq!(back.shares.iter().map(|s| s.shard).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_global_service_is_added_to_a_map_in_use_and_its_owner_gets_a_lease() {
    let mut store = Memory::default();
    let mut s = service(&mut store, settings(), T);
    all_tell(&mut s, &mut store, &NAMES, T);
    let add = |name: &str, zone: &str| ask(What::AddGlobal { name: name.into(), zone: zone.into() });
    for (name, zone, why) in [("Users", "bj", "expected 1 to 64 of a-z"), ("users", "nowhere", "is not on the map")] {
        let refused = s.begin(&add(name, zone), T).unwrap_err();
        assert!(matches!(&refused, Refused::Ask(said) if said.contains(why)), "{refused:?}");
    }
    for (shard, name) in [(1024, "users"), (1025, "shops")] {
        let change = s.begin(&add(name, "bj"), T).unwrap();
        keep(&mut s, &mut store, change);
        all_tell(&mut s, &mut store, &NAMES, T);
        assert_eq!((s.map().global_name(Shard(shard)), s.map().owner(Shard(shard))), (Some(name), Some(Zone(0))));
        let twice = s.begin(&add(name, "sh"), T).unwrap_err();
        assert!(matches!(&twice, Refused::State(said) if said.contains("is on the map already")), "{twice:?}");
    }
    assert!(s.ops(true).iter().all(|op| op.state == "done"));
    let audit = store.audit(1, 10).unwrap();
    assert_eq!(audit[0].changes, ["global users: added, shard 1024", "shard 1024: added, bj since 2"]);
    // As a service that starts now reads it.
    let kept = store.load().unwrap().unwrap().map;
    assert_eq!(kept.globals(), s.map().globals());
    all_tell(&mut s, &mut store, &NAMES, T + 100);
    let told: Vec<_> = leases(&mut s, T + 200).iter().map(|(shard, ..)| *shard).collect();
    assert_eq!(told, [1025, 1024], "by name");
    lost(&mut s, &mut store, T + 300);
    let late = s.begin(&add("late", "bj"), T + 400).unwrap_err();
    assert!(matches!(&late, Refused::State(said) if said.contains("zone bj is lost")), "{late:?}");
}

/// A store with a global service of bj, and a service that has listened for as long as a grant lasts.
fn with_users() -> (Memory, gzs::service::Service) {
    let mut store = Memory::default();
    store.adopt(&kit::map_with_users(), &kit::first_audit()).unwrap();
    let s = service(&mut store, settings(), T);
    (store, s)
}

/// What bj's log is told that it may write.
fn leases(s: &mut gzs::service::Service, now_ms: u64) -> Vec<(u16, u64, u64)> {
    let epoch = s.map().epoch().0;
    let asked = s.on_told(log("bj", epoch), now_ms).unwrap();
    asked.leases.iter().map(|l| (l.shard, l.owner_epoch, l.lease_ms)).collect()
}

#[test]
fn a_lease_is_told_once_its_grant_is_stored_to_the_owner_alone_and_prolonged_before_it_runs_out() {
    let (mut store, mut s) = with_users();
    assert_eq!(leases(&mut s, T), [], "nothing is stored yet");
    let change = s.next_change(T).expect("a grant");
    let (shard, grant) = change.grants[0];
    assert_eq!((shard, grant.zone, grant.owner_epoch, grant.lasts_ms), (Shard(1024), 0, 1, 4500));
    assert_eq!(leases(&mut s, T), [], "nor now");
    keep(&mut s, &mut store, change);
    assert_eq!(leases(&mut s, T + 10), [(1024, 1, 3000)]);
    assert_eq!(s.on_told(log("sh", 1), T + 10).unwrap().leases, []);
    assert_eq!(s.on_told(router("bj", 1), T + 10).unwrap().leases, [], "a router writes nothing");
    assert!(s.next_change(T + 100).is_none(), "it lasts a while");
    // Told as long as a lease, and a tenth, fits into what is stored.
    assert_eq!(leases(&mut s, T + 1200), [(1024, 1, 3000)]);
    assert_eq!(leases(&mut s, T + 1201), []);
    assert_eq!(s.next_change(T + 1201).expect("prolonged").grants[0].1.until_ms, T + 5701);
    assert!(s.next_change(T + 3000).is_none(), "not for a zone that is not heard");
}

#[test]
fn a_service_that_has_stopped_grants_nothing() {
    let (mut store, mut s) = with_users();
    leases(&mut s, T);
    drain(&mut s, &mut store, T);
    s.on_shown("a node", 9, None);
    assert_eq!(leases(&mut s, T + 10), [], "someone shows a map that was not made here");
    s.reload(store.load().unwrap().unwrap());
    assert!(s.stopped().is_some());
    assert_eq!(leases(&mut s, T + 20), []);
    assert!(s.next_change(T + 2000).is_none());
}

/// bj is lost at `now_ms`, and sh, which gets its shards, has told what it has.
fn lost(s: &mut gzs::service::Service, store: &mut Memory, now_ms: u64) {
    let what = What::TakeOver { zone: "bj".into(), to: Some("sh".into()) };
    let change = s.begin(&OpAsk { force: true, ..ask(what) }, now_ms).unwrap();
    keep(s, store, change);
    let mut told = log("sh", 2);
    let report = |shard| ShardTold {
        shard,
        map_epoch: 2,
        take_over: true,
        fence_seq: None,
        applied: [(0, 10), (1, 10), (2, 10)].into(),
    };
    told.log.as_mut().unwrap().reports = [0, 3, 1024].map(report).into();
    s.on_told(told, now_ms).unwrap();
    drain(s, store, now_ms);
}

#[test]
fn a_take_over_gives_sharded_data_at_once_and_a_global_service_when_its_grant_has_ended() {
    let (mut store, mut s) = with_users();
    leases(&mut s, T + 8000);
    drain(&mut s, &mut store, T + 8000);
    lost(&mut s, &mut store, T + 8100);
    let sh = Some(Zone(1));
    assert_eq!((s.map().owner(Shard(0)), s.map().owner(Shard(1024))), (sh, None));
    assert_eq!(leases(&mut s, T + 8200), [], "it owns nothing any more, as the map says");
    let says = s.ops(false)[0].says.clone();
    let expected = "global service \"users\" (shard 1024): the old owner may hold a lease for 4400 ms more";
    assert_eq!(says, expected);
    drain(&mut s, &mut store, T + 12_499);
    assert_eq!(s.map().owner(Shard(1024)), None);
    drain(&mut s, &mut store, T + 12_500);
    assert_eq!(s.map().owner(Shard(1024)), sh);
    let epoch = s.map().epoch().0;
    let asked = s.on_told(log("sh", epoch), T + 12_500).unwrap();
    assert_eq!(asked.leases[0].owner_epoch, epoch, "the new owner's grant was stored with the map");
}

/// A leader with another configuration, or a restart with one: leases of the old length run all the same.
#[test]
fn a_shorter_lease_takes_no_longer_grant_out_of_the_store() {
    let long = Settings { lease_ms: 60_000, ..settings() };
    let (mut store, _) = with_users();
    let held = |store: &mut Memory| store.load().unwrap().unwrap();
    let mut s = kit::awake(gzs::service::Service::new(held(&mut store), vec![], long, T - 1200), T);
    leases(&mut s, T);
    drain(&mut s, &mut store, T);
    assert_eq!(leases(&mut s, T + 100), [(1024, 1, 60_000)], "bj may write for a minute");
    let short = |store: &mut Memory, now_ms: u64| {
        kit::awake(gzs::service::Service::new(held(store), vec![], settings(), now_ms - 1200), now_ms)
    };
    let mut s = short(&mut store, T + 10_000);
    leases(&mut s, T + 10_000);
    drain(&mut s, &mut store, T + 10_000);
    let mut s = short(&mut store, T + 13_000);
    lost(&mut s, &mut store, T + 13_000);
    drain(&mut s, &mut store, T + 60_100);
    assert_eq!(s.map().owner(Shard(1024)), None, "bj's lease runs until then");
    drain(&mut s, &mut store, T + 200_000);
    assert_eq!(s.map().owner(Shard(1024)), Some(Zone(1)));
}

/// What is in the store may be an old backup: who is there shows it within a moment.
#[test]
fn who_has_just_begun_grants_and_changes_nothing_before_everyone_has_shown_his_map() {
    let (mut store, mut s) = with_users();
    all_tell(&mut s, &mut store, &NAMES, T);
    let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
    keep(&mut s, &mut store, change);
    drain(&mut s, &mut store, T);
    let held = store.load().unwrap().unwrap();
    let later = T + 60_000;
    let mut s = gzs::service::Service::new(held, vec![], settings(), later);
    leases(&mut s, later);
    assert!(s.next_change(later).is_none(), "the move is overdue, bj wants a lease");
    assert!(s.ops(false)[0].says.contains("began a moment ago"), "{:?}", s.ops(false)[0]);
    s.on_told(log("sh", 7), later + 200).unwrap();
    assert!(s.next_change(later + 10_000).is_none(), "sh goes by a map that is not known here");
    s.reload(store.load().unwrap().unwrap());
    assert!(s.stopped().is_some() && s.next_change(later + 10_000).is_none());
}

/// A grant that is due again as soon as it is stored leaves operations their turn.
#[test]
fn a_slow_store_keeps_no_operation_from_going_on() {
    let (mut store, mut s) = with_users();
    all_told(&mut s, T);
    let change = s.begin(&ask(moving(&[0], "sh")), T).unwrap();
    keep(&mut s, &mut store, change);
    let mut now_ms = T;
    for _ in 0..3 {
        now_ms += 800;
        leases(&mut s, now_ms);
        all_told(&mut s, now_ms);
        let change = s.next_change(now_ms).unwrap();
        keep(&mut s, &mut store, change);
        if s.map().view(Shard(0)).unwrap().kind == Kind::Moving {
            return;
        }
    }
    panic!("only grants were stored: {:?}", s.ops(false));
}

fn all_told(s: &mut gzs::service::Service, now_ms: u64) {
    for zone in NAMES {
        let epoch = s.map().epoch().0;
        s.on_told(log(zone, epoch), now_ms).unwrap();
        s.on_told(router(zone, epoch), now_ms).unwrap();
    }
}

#[test]
fn who_has_just_read_the_store_waits_for_as_long_as_a_grant_lasts() {
    for reload in [false, true] {
        let (mut store, mut s) = with_users();
        leases(&mut s, T);
        drain(&mut s, &mut store, T);
        // Its clock is another one: what it reads says nothing of when that ends.
        let now = if reload { T + 60_000 } else { T - 500_000 };
        let held = store.load().unwrap().unwrap();
        if reload {
            s.reload(held);
            s.on_told(log("sh", 1), now).unwrap();
        } else {
            s = service(&mut store, settings(), now + 1200);
        }
        lost(&mut s, &mut store, now + 1200);
        drain(&mut s, &mut store, now + 4499);
        assert_eq!(s.map().owner(Shard(1024)), None, "reload: {reload}");
        drain(&mut s, &mut store, now + 4500);
        assert_eq!(s.map().owner(Shard(1024)), Some(Zone(1)), "reload: {reload}");
    }
}

/// As after `--adopt`: another service may have granted what this store never held.
#[test]
fn who_finds_no_grant_in_the_store_waits_all_the_same() {
    let (mut store, mut s) = with_users();
    assert!(store.load().unwrap().unwrap().grants.is_empty());
    lost(&mut s, &mut store, T);
    drain(&mut s, &mut store, T - 1200 + 4499);
    assert_eq!(s.map().owner(Shard(1024)), None);
    drain(&mut s, &mut store, T - 1200 + 4500);
    assert_eq!(s.map().owner(Shard(1024)), Some(Zone(1)));
}
