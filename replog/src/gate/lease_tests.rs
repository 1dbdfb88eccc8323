//! Global services: accepted under a lease of the present ownership alone, by the clock that never steps.

use super::tests::{A, B, NOW_MS, gate as gate_of};
use super::*;
use crate::commit::{Condition, Step};
use crate::lease::Lease;

const G: Shard = Shard(1024);

#[derive(Debug, Clone)]
struct Global(MapEpoch, History);

impl Owners for Global {
    fn epoch(&self) -> MapEpoch {
        self.0
    }
    fn history(&self, shard: Shard) -> Option<&History> {
        (shard == G).then_some(&self.1)
    }
    fn each(&self, visit: &mut dyn FnMut(Shard, &History)) {
        visit(G, &self.1);
    }
}

fn first() -> Global {
    Global(MapEpoch(1), History::new(A, MapEpoch(1)))
}

fn gate(zone: Zone, map: Global) -> Gate {
    let mut gate = gate_of(zone, &super::tests::first());
    gate.on_map(Arc::new(map), &Positions::default(), NOW_MS).unwrap();
    gate
}

/// The wall stands still: it says nothing of leases.
fn at(steady_ms: u64) -> Now {
    Now { wall_ms: NOW_MS, steady_ms }
}

fn lease(owner_epoch: u64, until_ms: u64) -> Lease {
    Lease { shard: G, owner_epoch: OwnerEpoch(owner_epoch), until_ms }
}

fn put(epoch: u64) -> Write {
    let (table, key) = (Bytes::from_static(b"t"), Some(Bytes::from_static(b"k")));
    Write { shard: G, map_epoch: MapEpoch(epoch), table, key, value: Some(Bytes::from_static(b"v")) }
}

fn unleased(ended_ms: Option<u64>) -> Refused {
    Refused::Unleased { shard: G, ended_ms }
}

#[test]
fn a_global_service_is_written_while_the_lease_lasts_and_refused_with_since_when_afterwards() {
    let mut g = gate(A, first());
    assert_eq!(g.write(&put(1), Row::Unknown, at(5)), Decision::WaitLease(unleased(None)), "one may be on its way");
    assert_eq!((g.writes(G, at(5)), g.stands(at(5), |_| false)[0].may), (None, May::Halted));
    g.on_lease(lease(1, 1000));
    assert!(matches!(g.write(&put(1), Row::Unknown, at(999)), Decision::Append(r) if r.shard == G));
    let stand = g.stands(at(400), |_| false)[0];
    assert_eq!((g.writes(G, at(999)), stand.may, stand.lease_ms), (Some(OwnerEpoch(1)), May::Writes, 600));
    assert_eq!(g.write(&put(1), Row::Unknown, at(1000)), Decision::Refused(unleased(Some(0))));
    assert_eq!(g.write(&put(1), Row::Unknown, at(61_000)), Decision::Refused(unleased(Some(60_000))), "it slept");
    assert_eq!((g.writes(G, at(1000)), g.stands(at(1000), |_| false)[0].lease_ms), (None, 0));
    g.on_lease(lease(1, 70_000));
    assert!(matches!(g.write(&put(1), Row::Unknown, at(61_000)), Decision::Append(_)));
}

#[test]
fn a_commit_and_a_read_at_the_owner_need_the_lease_too_and_a_local_read_does_not() {
    let mut g = gate(A, first());
    let step = Step { table: "t".into(), key: Some("k".into()), value: Some("v".into()), only: Condition::Any };
    let ask =
        crate::commit::Commit { shard: G, map_epoch: MapEpoch(1), steps: vec![step], once: None, remote_ms: None };
    assert_eq!(g.commit(&ask, None, at(5)), Ruling::WaitLease(unleased(None)));
    assert_eq!(g.read(G, MapEpoch(1), false, at(5)), Some(Decision::WaitLease(unleased(None))));
    g.on_lease(lease(1, 1000));
    assert!(matches!(g.commit(&ask, None, at(5)), Ruling::Append(_)));
    assert_eq!(g.read(G, MapEpoch(1), false, at(5)), None);
    assert_eq!(g.commit(&ask, None, at(1000)), Ruling::Refused(unleased(Some(0))));
    assert_eq!(g.forget(&ask, None, at(1000)), Ruling::Refused(unleased(Some(0))));
    assert_eq!(g.read(G, MapEpoch(1), false, at(1000)), Some(Decision::Refused(unleased(Some(0)))));
    assert_eq!(g.read(G, MapEpoch(1), true, at(1000)), None);
}

#[test]
fn what_was_written_is_covered_when_it_is_acknowledged_or_nobody_can_say() {
    let mut g = gate(A, first());
    g.on_lease(lease(1, 1000));
    assert!(g.lease_stands(G, OwnerEpoch(1), at(999)));
    assert!(!g.lease_stands(G, OwnerEpoch(1), at(1000)));
    assert!(g.lease_stands(Shard(4), OwnerEpoch(1), at(1000)), "a shard of the map needs none");
}

#[test]
fn a_lease_is_of_one_ownership_and_neither_another_zone_nor_a_fenced_one_writes_by_it() {
    let then = |map: &Global, step: &dyn Fn(&History, MapEpoch) -> shardmap::ownership::Entry| {
        let epoch = map.0.next();
        Global(epoch, map.1.with(step(&map.1, epoch)).unwrap())
    };
    let moving = then(&first(), &|h, e| h.begin_move(B, e).unwrap());
    let moved = then(&moving, &|h, e| h.commit_move(1, &[(A, 1)].into_iter().collect(), e).unwrap());
    let mut a = gate(A, first());
    a.on_lease(lease(1, 1000));
    assert_eq!(a.on_map(Arc::new(moving), &Positions::default(), NOW_MS).unwrap().len(), 1, "its FENCE");
    assert!(matches!(a.write(&put(2), Row::Unknown, at(5)), Decision::Refused(Refused::NotOwner { .. })));
    // Its lease runs, and who asks has an older map: behind the FENCE another zone may have written.
    let read = a.read(G, MapEpoch(1), false, at(5));
    assert!(matches!(read, Some(Decision::Refused(Refused::NotOwner { owner: Some(B), .. }))), "{read:?}");
    assert_eq!(a.read(G, MapEpoch(1), true, at(5)), None, "this zone's own copy");
    let mut b = gate(B, moved.clone());
    b.on_lease(lease(1, 1000));
    assert_eq!(b.write(&put(3), Row::Unknown, at(5)), Decision::WaitLease(unleased(None)), "of another's ownership");
    b.on_lease(lease(3, 1000));
    assert!(matches!(b.write(&put(3), Row::Unknown, at(5)), Decision::Append(_)));
    let mut back = gate(A, moved);
    back.on_lease(lease(3, 1000));
    assert!(matches!(back.write(&put(3), Row::Unknown, at(5)), Decision::Refused(Refused::NotOwner { .. })));
}

#[test]
fn no_id_is_minted_for_a_global_service() {
    let mut g = gate(A, first());
    g.on_lease(lease(1, 1000));
    let Decision::Refused(Refused::Invalid(why)) = g.write(&Write { key: None, ..put(1) }, Row::Unknown, at(5)) else {
        panic!("minted")
    };
    assert!(why.starts_with(b"an id to be minted for a global service"), "{why:?}");
}
