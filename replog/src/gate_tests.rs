//! The gate's decisions over maps, FENCEs, locks and restarts.

use super::*;
use crate::owners::get_positions;

pub(super) const NOW_MS: u64 = 1_790_000_000_000;
pub(super) const A: Zone = Zone(0);
pub(super) const B: Zone = Zone(1);
pub(super) const C: Zone = Zone(2);
pub(super) const S: Shard = Shard(4);

#[derive(Debug, Clone)]
pub(super) struct OneShard(pub MapEpoch, pub History);

impl Owners for OneShard {
    fn epoch(&self) -> MapEpoch {
        self.0
    }
    fn history(&self, shard: Shard) -> Option<&History> {
        (shard == S).then_some(&self.1)
    }
    fn each(&self, visit: &mut dyn FnMut(Shard, &History)) {
        visit(S, &self.1);
    }
}

/// A map whose newest entry was made by `step`.
pub(super) fn then(map: &OneShard, step: impl Fn(&History, MapEpoch) -> shardmap::ownership::Entry) -> OneShard {
    let epoch = map.0.next();
    OneShard(epoch, map.1.with(step(&map.1, epoch)).unwrap())
}

pub(super) fn first() -> OneShard {
    OneShard(MapEpoch(1), History::new(A, MapEpoch(1)))
}

pub(super) fn gate(zone: Zone, map: &OneShard) -> Gate {
    let map: Arc<dyn Owners> = Arc::new(map.clone());
    let epoch = map.epoch();
    let mut gate = Gate::new(Start {
        zone,
        stream: 0,
        streams: 4,
        map,
        fences: vec![],
        fences_applied: vec![],
        newest: Hlc::default(),
    });
    gate.on_gzs(epoch);
    gate
}

fn put(epoch: u64) -> Write {
    let (table, key) = (Bytes::from_static(b"t"), Some(Bytes::from_static(b"k")));
    Write { shard: S, map_epoch: MapEpoch(epoch), table, key, value: Some(Bytes::from_static(b"v")) }
}

fn appended(d: Decision) -> Record {
    match d {
        Decision::Append(r) => r,
        other => panic!("expected an append, got {other:?}"),
    }
}

pub(super) fn moving() -> OneShard {
    then(&first(), |h, e| h.begin_move(B, e).unwrap())
}

pub(super) fn taken_over() -> OneShard {
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    then(&lost, |h, e| h.finish_take_over(B, &[(A, 9), (C, 1)].into_iter().collect(), e).unwrap())
}

#[test]
fn a_cached_route_is_not_a_fence_only_the_check_at_the_store_is_safe() {
    let mut b = gate(B, &first());
    let no = Decision::Refused(Refused::NotOwner { map_epoch: MapEpoch(1), owner: Some(A) });
    assert_eq!(b.write(&put(1), Row::Unknown, NOW_MS), no);
    assert_eq!(b.read(S, MapEpoch(1), false, NOW_MS), Some(no));
    assert_eq!(b.read(S, MapEpoch(1), true, NOW_MS), None);
    let r = appended(gate(A, &first()).write(&put(1), Row::Unknown, NOW_MS));
    assert_eq!((r.owner_epoch, r.op, r.hlc.ms()), (OwnerEpoch(1), Op::Put, NOW_MS));
}

#[test]
fn a_store_asked_at_a_newer_epoch_waits_for_that_map() {
    let mut a = gate(A, &first());
    assert_eq!(a.write(&put(2), Row::Unknown, NOW_MS), Decision::WaitMap);
    assert_eq!(a.read(S, MapEpoch(2), false, NOW_MS), Some(Decision::WaitMap));
}

#[test]
fn a_move_fences_once_with_the_positions_and_an_abort_gives_the_shard_back() {
    let (mut a, map) = (gate(A, &first()), moving());
    let applied: Positions = [(A, 3), (B, 5), (C, 8)].into_iter().collect();
    let fences = a.on_map(Arc::new(map.clone()), &applied, NOW_MS).unwrap();
    assert_eq!(fences.len(), 1);
    assert_eq!((fences[0].op, fences[0].owner_epoch), (Op::Fence, OwnerEpoch(3)));
    assert_eq!(get_positions(&fences[0].value), Some([(B, 5), (C, 8)].into_iter().collect()));
    let to_b = Decision::Refused(Refused::NotOwner { map_epoch: MapEpoch(2), owner: Some(B) });
    assert_eq!(a.write(&put(2), Row::Unknown, NOW_MS), to_b);
    assert!(a.on_map(Arc::new(map.clone()), &applied, NOW_MS).unwrap().is_empty());
    let back = then(&map, |h, e| h.abort(e).unwrap());
    assert!(a.on_map(Arc::new(back), &applied, NOW_MS).unwrap().is_empty());
    assert_eq!(appended(a.write(&put(3), Row::Unknown, NOW_MS)).owner_epoch, OwnerEpoch(3));
}

#[test]
fn nobody_goes_back_an_epoch() {
    let mut a = gate(A, &moving());
    let older = a.on_map(Arc::new(first()), &Positions::default(), NOW_MS);
    assert_eq!(older.unwrap_err(), Older { stored: MapEpoch(2), offered: MapEpoch(1) });
}

#[test]
fn a_restarted_log_is_read_only_and_a_fence_stands_even_when_started_alone() {
    let start = |fences| Start {
        zone: A,
        stream: 0,
        streams: 4,
        map: Arc::new(first()),
        fences,
        fences_applied: vec![],
        newest: Hlc::new(NOW_MS + 50, 1),
    };
    let mut g = Gate::new(start(vec![]));
    assert_eq!(g.write(&put(1), Row::Unknown, NOW_MS), Decision::Refused(Refused::ReadOnly));
    g.on_gzs(MapEpoch(2));
    assert!(g.is_read_only(), "the GZS spoke of a map that is not stored here yet");
    g.on_links(&[(B, MapEpoch(2))]);
    assert!(g.is_read_only(), "a peer has a newer map");
    g.on_gzs(MapEpoch(1));
    assert_eq!(appended(g.write(&put(1), Row::Unknown, NOW_MS)).hlc, Hlc::new(NOW_MS + 51, 0));
    let mut g = Gate::new(start(vec![(S, OwnerEpoch(3))]));
    g.start_alone();
    let fenced = Decision::Refused(Refused::NotOwner { map_epoch: MapEpoch(1), owner: None });
    assert_eq!(g.write(&put(1), Row::Unknown, NOW_MS), fenced);
}

#[test]
fn live_links_end_read_only_when_they_lead_to_every_zone_that_could_own_a_shard() {
    let map: Arc<dyn Owners> = Arc::new(taken_over());
    let (fences, fences_applied) = (vec![], vec![]);
    let mut c = Gate::new(Start { zone: C, stream: 0, streams: 4, map, fences, fences_applied, newest: Hlc(0) });
    c.on_links(&[(A, MapEpoch(3))]);
    assert!(c.is_read_only());
    c.on_links(&[(A, MapEpoch(3)), (B, MapEpoch(2))]);
    assert!(!c.is_read_only());
}

#[test]
fn rows_of_an_unresolved_take_over_are_locked_and_new_rows_are_free() {
    let mut b = gate(B, &taken_over());
    assert_eq!(b.write(&put(3), Row::Unknown, NOW_MS), Decision::NeedRow);
    assert_eq!(b.write(&put(3), Row::At(OwnerEpoch(1)), NOW_MS), Decision::Refused(Refused::Locked));
    for free in [Row::Absent, Row::At(OwnerEpoch(3))] {
        appended(b.write(&put(3), free, NOW_MS));
    }
    appended(b.write(&Write { key: None, ..put(3) }, Row::Unknown, NOW_MS));
    b.on_fence_applied(A, S, OwnerEpoch(3));
    appended(b.write(&put(3), Row::Unknown, NOW_MS));
    b.on_fence_applied(A, S, OwnerEpoch(0));
    assert_eq!(b.write(&put(3), Row::Unknown, NOW_MS), Decision::NeedRow, "something of the shard is parked");
    let unlocked = then(&taken_over(), |h, e| h.unlock(e).unwrap());
    b.on_map(Arc::new(unlocked), &Positions::default(), NOW_MS).unwrap();
    appended(b.write(&put(4), Row::Unknown, NOW_MS));
}

#[test]
fn a_zone_that_hears_many_maps_late_that_it_lost_a_shard_fences_and_stops() {
    let mut a = gate(A, &first());
    let fences = a.on_map(Arc::new(taken_over()), &Positions::default(), NOW_MS).unwrap();
    assert_eq!(fences.iter().map(|f| f.owner_epoch).collect::<Vec<_>>(), [OwnerEpoch(3)]);
    let no = Decision::Refused(Refused::NotOwner { map_epoch: MapEpoch(3), owner: Some(B) });
    assert_eq!(a.write(&put(3), Row::Unknown, NOW_MS), no);
}

#[test]
fn what_cannot_be_a_record_is_refused_with_what_was_seen() {
    let mut a = gate(A, &first());
    let cases = [
        (Write { shard: Shard(5), ..put(1) }, "shard 5 on stream 0 of 4"),
        (Write { shard: Shard(4096), ..put(1) }, "shard 4096 on stream 0 of 4"),
        (Write { table: Bytes::new(), ..put(1) }, "an empty table or key"),
        (Write { table: ".answers".into(), ..put(1) }, "a table whose name begins with a point is the log's own"),
        (Write { key: None, value: None, ..put(1) }, "a delete without a key"),
        (Write { key: Some(vec![0; 1025].into()), ..put(1) }, "key of 1025 bytes, at most 1024"),
    ];
    for (ask, why) in cases {
        assert_eq!(a.write(&ask, Row::Unknown, NOW_MS), Decision::Refused(Refused::Invalid(why.into())));
    }
}

#[test]
fn how_a_zone_stands_to_a_shard_follows_the_map_the_fence_and_the_restart() {
    let stand = |g: &Gate, fencing: bool| {
        let all = g.stands(NOW_MS, |_| fencing);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].may == May::Writes, g.writes(S, NOW_MS).is_some(), "as a write would be judged");
        (all[0].may, all[0].kind, all[0].owner_epoch.0, all[0].own_epoch.0)
    };
    let none = Positions::default();
    let (mut a, mut b) = (gate(A, &first()), gate(B, &first()));
    assert_eq!(stand(&a, false), (May::Writes, Kind::Own, 1, 1));
    assert_eq!(stand(&b, false), (May::Nothing, Kind::Own, 1, 0));
    for g in [&mut a, &mut b] {
        g.on_map(Arc::new(moving()), &none, NOW_MS).unwrap();
    }
    assert_eq!(stand(&a, true), (May::Halted, Kind::Moving, 1, 1), "the FENCE is decided");
    assert_eq!(stand(&b, false), (May::Nothing, Kind::Moving, 1, 0));
    let moved = then(&moving(), |h, e| h.commit_move(5, &[(A, 5), (B, 3)].into_iter().collect(), e).unwrap());
    for g in [&mut a, &mut b] {
        g.on_map(Arc::new(moved.clone()), &none, NOW_MS).unwrap();
    }
    assert_eq!(stand(&a, true), (May::Halted, Kind::Own, 3, 1), "another zone's; the FENCE is not durable");
    assert_eq!(stand(&a, false), (May::Nothing, Kind::Own, 3, 1));
    assert_eq!(stand(&b, false), (May::Writes, Kind::Own, 3, 3));
    let back = then(&moving(), |h, e| h.abort(e).unwrap());
    assert_eq!(stand(&gate(A, &back), false), (May::Writes, Kind::Own, 3, 3), "a new ownership");
    let (newest, fences) = (Hlc::default(), vec![]);
    let (map, fences_applied) = (Arc::new(first()), vec![]);
    let restarted = Gate::new(Start { zone: A, stream: 0, streams: 4, map, fences, fences_applied, newest });
    assert_eq!(stand(&restarted, false), (May::Halted, Kind::Own, 1, 1), "read-only");
    assert!(Gate { stream: 1, ..restarted }.stands(NOW_MS, |_| false).is_empty(), "another stream's");
}
