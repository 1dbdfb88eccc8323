//! The applier over the memory store: versions, waits, parking, FENCEs, tails, reports.

use super::*;
use crate::Hlc;
use crate::owners::put_positions;
use crate::store::{Memory, Store};

const NOW_MS: u64 = 1_790_000_000_000;
const A: Zone = Zone(0);
const B: Zone = Zone(1);
const C: Zone = Zone(2);
const S: Shard = Shard(4);

#[derive(Debug, Clone)]
struct OneShard(MapEpoch, History);

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

fn then(map: &OneShard, step: impl Fn(&History, MapEpoch) -> Ownership) -> OneShard {
    let epoch = map.0.next();
    OneShard(epoch, map.1.with(step(&map.1, epoch)).unwrap())
}

fn first() -> OneShard {
    OneShard(MapEpoch(1), History::new(A, MapEpoch(1)))
}

/// An applier with its store: what a zone is to this file.
struct Side {
    applier: Applier,
    store: Memory,
}

impl Side {
    fn new(zone: Zone) -> Side {
        Side::of_stream(zone, 0, 1)
    }
    fn of_stream(zone: Zone, stream: u32, streams: u32) -> Side {
        let applier = Applier::new(zone, stream, streams, Arc::new(first()), State::default());
        let mut side = Side { applier, store: Memory::default() };
        side.map(&first());
        side
    }
    fn apply(&mut self, zone: Zone, batch: &[(u64, Record)]) -> Option<Wait> {
        let (changes, wait) = self.applier.apply(zone, batch, NOW_MS).unwrap();
        self.store.commit(&changes).unwrap();
        self.check();
        wait
    }
    fn map(&mut self, map: &OneShard) {
        let changes = self.applier.on_map(Arc::new(map.clone()), Bytes::new());
        assert!(changes.durable);
        self.store.commit(&changes).unwrap();
        self.check();
    }
    /// A restart at any moment continues with what the store holds.
    fn check(&mut self) {
        let Applier { zone, stream, streams, .. } = self.applier;
        let map = Arc::clone(&self.applier.map);
        let again = Applier::new(zone, stream, streams, map, self.store.state().unwrap());
        assert_eq!(again.state, self.applier.state);
        assert_eq!(again.parked_keys, self.applier.parked_keys);
    }
    fn value(&self, key: &str) -> Option<(Bytes, bool)> {
        self.store.row(b"t", key.as_bytes()).unwrap().map(|r| (r.value, r.deleted))
    }
}

fn put(seq: u64, key: &str, epoch: u64, ms: u64) -> (u64, Record) {
    let (table, key) = (Bytes::from_static(b"t"), Bytes::copy_from_slice(key.as_bytes()));
    let (transaction, owner_epoch, hlc) = (seq as u32, OwnerEpoch(epoch), Hlc::new(ms, seq as u16));
    let value = Bytes::from(format!("v{seq}"));
    (seq, Record { op: Op::Put, transaction, shard: S, owner_epoch, hlc, table, key, value })
}

fn fence(seq: u64, epoch: u64, positions: &[(Zone, u64)]) -> (u64, Record) {
    let value = put_positions(&positions.iter().copied().collect());
    (seq, Record { op: Op::Fence, key: Bytes::new(), table: Bytes::new(), value, ..put(seq, "", epoch, NOW_MS).1 })
}

#[test]
fn dedup_never_loses_a_failed_head_positions_are_contiguous_and_each_applies_once() {
    let mut b = Side::new(B);
    let log = [put(1, "x", 1, NOW_MS), put(2, "y", 1, NOW_MS), put(3, "x", 1, NOW_MS)];
    b.apply(A, &log[..2]);
    b.apply(A, &log);
    assert_eq!((b.applier.applied(A), b.value("x").unwrap().0), (3, Bytes::from("v3")));
    let skipped = b.applier.apply(A, &[put(5, "x", 1, NOW_MS)], NOW_MS).unwrap_err();
    assert_eq!(skipped, Unfit::Skipped { zone: A, seen: 5, expected: 4 });
}

#[test]
fn the_appliers_clock_is_never_in_a_version_and_the_higher_version_is_the_row() {
    let mut b = Side::new(B);
    b.apply(A, &[put(1, "x", 1, NOW_MS - 99)]);
    let row = b.store.row(b"t", b"x").unwrap().unwrap();
    let version = Version { owner_epoch: OwnerEpoch(1), hlc: Hlc::new(NOW_MS - 99, 1), zone: A, stream: 0 };
    assert_eq!((row.version, row.seq), (version, 1));
    b.apply(C, &[put(1, "x", 0, NOW_MS)]);
    assert_eq!(b.value("x").unwrap().0, Bytes::from("v1"), "a later clock under an earlier ownership loses");
}

#[test]
fn an_update_that_is_older_than_the_delete_does_not_resurrect_the_row() {
    let mut b = Side::new(B);
    let delete = Record { op: Op::Delete, value: Bytes::new(), ..put(1, "x", 1, NOW_MS).1 };
    b.apply(A, &[(1, delete)]);
    b.apply(C, &[put(1, "x", 1, NOW_MS - 1)]);
    assert_eq!(b.value("x"), Some((Bytes::new(), true)));
}

#[test]
fn a_record_of_an_ownership_that_the_map_does_not_hold_waits_and_a_fence_does_not() {
    let mut b = Side::new(B);
    let log = [fence(1, 3, &[]), put(2, "x", 3, NOW_MS), put(3, "y", 1, NOW_MS)];
    assert_eq!(b.apply(A, &log), Some(Wait::Map(OwnerEpoch(3))));
    assert_eq!(b.applier.applied(A), 1);
    let moving = then(&first(), |h, e| h.begin_move(B, e).unwrap());
    b.map(&then(&moving, |h, e| h.abort(e).unwrap()));
    assert_eq!(b.apply(A, &log), None);
    assert_eq!(b.applier.applied(A), 3);
}

#[test]
fn one_event_from_the_future_parks_and_its_row_queues_behind_it_and_its_transaction_stays_whole() {
    let mut b = Side::new(B);
    let future = NOW_MS + AHEAD_MAX_MS + 1;
    let (mut with, mut pair) = (put(2, "y", 1, NOW_MS), put(1, "x", 1, future));
    (with.1.transaction, pair.1.transaction) = (7, 7);
    b.apply(A, &[pair, with, put(3, "y", 1, NOW_MS), put(4, "z", 1, NOW_MS), fence(5, 3, &[])]);
    assert_eq!((b.applier.applied(A), b.applier.parked()), (5, 3));
    assert_eq!((b.value("x"), b.value("y")), (None, None));
    assert_eq!(b.value("z").unwrap().0, Bytes::from("v4"));
    assert_eq!(b.applier.fences().collect::<Vec<_>>(), [(A, S, OwnerEpoch(0))], "a FENCE waits for what is parked");
    assert!(b.applier.retry(NOW_MS).is_empty());
    let settled = b.applier.retry(future - AHEAD_MAX_MS);
    b.store.commit(&settled).unwrap();
    b.check();
    assert_eq!((b.value("x").unwrap().0, b.value("y").unwrap().0), (Bytes::from("v1"), Bytes::from("v3")));
    assert_eq!(b.applier.fences().collect::<Vec<_>>(), [(A, S, OwnerEpoch(3))]);
}

#[test]
fn a_graceful_take_over_leaks_no_last_transactions_the_target_waits_for_all_positions_of_the_fence() {
    let mut b = Side::new(B);
    b.map(&then(&first(), |h, e| h.begin_move(B, e).unwrap()));
    assert_eq!(b.applier.caught_up(S), None);
    b.apply(A, &[put(1, "x", 1, NOW_MS), fence(2, 3, &[(C, 1), (B, 9)])]);
    assert_eq!(b.applier.caught_up(S), None, "C's log is not here yet");
    b.apply(C, &[put(1, "x", 0, NOW_MS)]);
    assert_eq!(b.applier.caught_up(S), Some((2, [(A, 2), (C, 1)].into_iter().collect())));
}

#[test]
fn what_a_lost_zone_wrote_beyond_the_cut_is_in_the_same_list_everywhere() {
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let log = [put(1, "x", 1, NOW_MS), put(2, "x", 1, NOW_MS), put(3, "y", 1, NOW_MS), fence(4, 3, &[])];
    let (mut a, mut b) = (Side::new(A), Side::new(B));
    b.apply(A, &log[..1]);
    b.map(&lost);
    let (cut, changes) = b.applier.report(S).unwrap();
    b.store.commit(&changes).unwrap();
    b.check();
    assert_eq!((cut.get(A), changes.durable), (Some(1), true));
    assert_eq!(b.apply(A, &log), Some(Wait::Frozen(S)), "43 seconds of partition: nothing more until the map answers");
    let taken = then(&lost, |h, e| h.finish_take_over(B, &cut, e).unwrap());
    b.map(&taken);
    b.apply(B, &[put(1, "x", 3, NOW_MS - 5)]);
    assert_eq!(b.apply(A, &log), None);
    // A was alive: it applied its own writes before it heard, so it finds the tail by reading its log again.
    a.apply(A, &log);
    a.map(&taken);
    let scans: Vec<_> = a.applier.scans().collect();
    assert_eq!(scans, [(A, Scan { from: 2, to: 4 })]);
    for batch in [&log[1..3], &log[2..]] {
        let changes = a.applier.scan(A, batch);
        a.store.commit(&changes).unwrap();
        a.check();
    }
    assert_eq!(a.applier.scans().count(), 0);
    a.apply(B, &[put(1, "x", 3, NOW_MS - 5)]);
    assert_eq!(a.store.listed().into_iter().collect::<Vec<_>>(), [(A, 2), (A, 3)]);
    assert_eq!(a.store.digests(), b.store.digests());
    assert_eq!(b.value("x").unwrap().0, Bytes::from("v1"), "B's, though its clock is behind");
}

/// By then the log may have let go what it had to keep for the cut of before: the zone said for ever that it lacked something.
#[test]
fn an_abort_asks_for_no_log_to_be_looked_through_again() {
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let taken = then(&lost, |h, e| h.finish_take_over(B, &[(A, 1)].into_iter().collect(), e).unwrap());
    let moving = then(&taken, |h, e| h.begin_move(C, e).unwrap());
    let back = then(&moving, |h, e| h.abort(e).unwrap());
    let log = [put(1, "x", 1, NOW_MS), put(2, "x", 1, NOW_MS), fence(3, 3, &[])];
    let (mut a, mut late) = (Side::new(A), Side::new(A));
    a.apply(A, &log);
    late.apply(A, &log);
    a.map(&taken);
    let changes = a.applier.scan(A, &log);
    a.store.commit(&changes).unwrap();
    assert_eq!(a.applier.scans().count(), 0);
    a.map(&back);
    assert_eq!(a.applier.scans().count(), 0, "the cut is the one of before");
    late.map(&back);
    assert_eq!(late.applier.scans().collect::<Vec<_>>(), [(A, Scan { from: 2, to: 3 })], "who did not know it looks");
}

/// It counts in another log: this one was looked through from an arbitrary place, and said to lack what it never had to keep.
#[test]
fn a_cut_of_another_streams_shard_asks_nothing_of_this_stream() {
    let (mut own, mut other) = (Side::of_stream(A, 0, 2), Side::of_stream(A, 1, 2));
    let log = [put(1, "x", 1, NOW_MS), put(2, "y", 1, NOW_MS)];
    own.apply(A, &log);
    other.apply(A, &log);
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let taken = then(&lost, |h, e| h.finish_take_over(B, &[(A, 1)].into_iter().collect(), e).unwrap());
    own.map(&taken);
    other.map(&taken);
    assert_eq!(own.applier.scans().collect::<Vec<_>>(), [(A, Scan { from: 2, to: 2 })], "shard 4 is in stream 0 of 2");
    assert_eq!(other.applier.scans().count(), 0);
}

#[test]
fn a_cut_stops_before_what_is_parked() {
    let mut b = Side::new(B);
    b.apply(A, &[put(1, "x", 1, NOW_MS), put(2, "y", 1, NOW_MS + 9999), put(3, "z", 1, NOW_MS)]);
    b.map(&then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap()));
    assert_eq!(b.applier.report(S).unwrap().0.get(A), Some(1));
    assert!(Side::new(B).applier.report(S).is_none(), "the map says nothing of a loss");
}

#[test]
fn a_cut_names_every_earlier_owners_log_even_one_of_which_nothing_has_come() {
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let taken = then(&lost, |h, e| h.finish_take_over(B, &[(A, 9)].into_iter().collect(), e).unwrap());
    let mut c = Side::new(C);
    c.map(&then(&taken, |h, e| h.declare_lost(B, e).unwrap().unwrap()));
    assert_eq!(c.applier.report(S).unwrap().0, [(A, 0), (B, 0)].into_iter().collect());
    let moving = then(&taken, |h, e| h.begin_move(C, e).unwrap());
    let mut c = Side::new(C);
    c.map(&moving);
    c.apply(B, &[fence(1, moving.0.0 + 1, &[])]);
    assert_eq!(c.applier.caught_up(S), Some((1, [(A, 0), (B, 1)].into_iter().collect())));
}

#[test]
fn a_fence_that_carries_no_positions_stops_that_log() {
    let mut b = Side::new(B);
    let bad = Record { value: Bytes::from_static(b"?"), ..fence(1, 3, &[]).1 };
    assert_eq!(b.applier.apply(A, &[(1, bad)], NOW_MS).unwrap_err(), Unfit::Fence { zone: A, seq: 1 });
}

fn seed_of(seq: u64, map_epoch: u64) -> Seed {
    let positions: Positions = [(C, 9)].into_iter().collect();
    let fences = vec![(S, Fence { epoch: OwnerEpoch(3), seq: seq - 1, positions })];
    Seed { zone: A, seq, map_epoch: MapEpoch(map_epoch), fences, unseen: None }
}

impl Side {
    fn seed(&mut self, seed: &Seed) -> Result<(), Unseeded> {
        let changes = self.applier.seed(seed)?;
        assert!(changes.durable, "what comes behind it acts on it");
        self.store.commit(&changes).unwrap();
        self.check();
        Ok(())
    }
}

#[test]
fn a_snapshot_moves_one_position_brings_the_origins_fences_and_the_log_goes_on_behind_it() {
    let mut b = Side::new(B);
    b.apply(A, &[put(1, "x", 1, NOW_MS)]);
    b.apply(C, &[put(1, "y", 0, NOW_MS)]);
    assert_eq!(b.seed(&seed_of(50, 1)), Ok(()));
    assert_eq!((b.applier.applied(A), b.applier.applied(C)), (50, 1));
    assert_eq!(b.applier.fences().collect::<Vec<_>>(), [(A, S, OwnerEpoch(3))]);
    b.apply(A, &[put(51, "x", 1, NOW_MS)]);
    assert_eq!((b.applier.applied(A), b.value("x").unwrap().0), (51, Bytes::from("v51")));
    assert_eq!(b.seed(&seed_of(50, 1)), Err(Unseeded::Behind { applied: 51, seq: 50 }));
}

#[test]
fn a_snapshot_waits_while_a_shard_is_unsettled_or_reported_or_something_of_that_log_is_parked() {
    let mut b = Side::new(B);
    b.map(&then(&first(), |h, e| h.begin_move(B, e).unwrap()));
    assert_eq!(b.seed(&seed_of(50, 1)), Err(Unseeded::Unsettled(S)));
    let (mut b, lost) = (Side::new(B), then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap()));
    b.map(&lost);
    assert_eq!(b.seed(&seed_of(50, 1)), Err(Unseeded::Unsettled(S)));
    b.applier.report(S).unwrap();
    assert_eq!(b.applier.seed(&seed_of(50, 1)), Err(Unseeded::Reported(S)));
    let mut b = Side::new(B);
    b.apply(A, &[put(1, "x", 1, NOW_MS + 9999)]);
    assert_eq!(b.seed(&seed_of(50, 1)), Err(Unseeded::Parked(1)));
    assert_eq!(b.seed(&Seed { zone: C, ..seed_of(50, 1) }), Ok(()), "what another log has parked is no matter");
    let mut b = Side::new(B);
    assert_eq!(b.seed(&seed_of(50, 2)), Err(Unseeded::Map { theirs: MapEpoch(2), ours: MapEpoch(1) }));
    assert_eq!(b.applier.applied(A), 0, "nothing was changed");
}

#[test]
fn a_cut_that_the_origins_ledger_did_not_know_refuses_the_snapshot_and_one_that_it_knew_does_not() {
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let taken = then(&lost, |h, e| h.finish_take_over(B, &[(A, 20)].into_iter().collect(), e).unwrap());
    let mut b = Side::new(B);
    b.apply(A, &[put(1, "x", 1, NOW_MS)]);
    b.map(&taken);
    let new = Unseeded::Cut { map: MapEpoch(3), shard: S, cut: 20 };
    assert_eq!(b.seed(&seed_of(50, 2)), Err(new));
    assert_eq!(b.seed(&seed_of(20, 2)), Ok(()), "the snapshot ends at the cut: nothing of it is tail");
    assert_eq!(b.seed(&seed_of(50, 3)), Ok(()));
}

#[test]
fn what_is_not_kept_below_a_new_cut_is_left_to_be_seen_and_a_snapshot_of_a_ledger_that_has_it_ends_it() {
    let log: Vec<_> = (1..=9).map(|seq| put(seq, "x", 1, NOW_MS)).collect();
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let taken = then(&lost, |h, e| h.finish_take_over(B, &[(A, 2)].into_iter().collect(), e).unwrap());
    let mut c = Side::new(C);
    c.apply(A, &log);
    c.map(&taken);
    // Seqs up to 5 are gone: 3 to 5 are tail, and nobody sees them here.
    let scan = |c: &mut Side, from: usize, to: usize| {
        let changes = c.applier.scan_kept(A, &log[from - 1..to], 6);
        c.store.commit(&changes).unwrap();
        c.check();
        c.applier.scans().map(|(_, scan)| scan).next()
    };
    assert_eq!(scan(&mut c, 6, 7), Some(Scan { from: 3, to: 9 }), "half of what is there");
    assert_eq!(scan(&mut c, 8, 9), Some(Scan { from: 3, to: 5 }));
    assert_eq!(c.store.listed().into_iter().map(|(_, seq)| seq).collect::<Vec<_>>(), [6, 7, 8, 9]);
    let unseen = Some(Scan { from: 3, to: 4 });
    c.seed(&Seed { unseen, ..seed_of(9, 3) }).unwrap();
    assert_eq!(c.applier.scans().collect::<Vec<_>>(), [(A, Scan { from: 3, to: 4 })], "the origin lacks these too");
    c.seed(&seed_of(9, 3)).unwrap();
    assert_eq!(c.applier.scans().count(), 0);
}

/// Drops what may go of the tombstones that `side` holds of `zone`; returns how many went.
fn collect(side: &mut Side, zone: Zone, everywhere: u64) -> usize {
    let mut all = vec![];
    let keep = &mut |table: &[u8], key: &[u8], row: &Row| {
        all.push((Bytes::copy_from_slice(table), Bytes::copy_from_slice(key), row.clone()));
    };
    side.store.tombstones(zone, 0..=u64::MAX, 100, keep).unwrap();
    let changes = side.applier.collect(&all, &[(zone, everywhere)].into_iter().collect());
    side.store.commit(&changes).unwrap();
    changes.list.len()
}

fn delete(seq: u64, key: &str, epoch: u64, ms: u64) -> (u64, Record) {
    (seq, Record { op: Op::Delete, value: Bytes::new(), ..put(seq, key, epoch, ms).1 })
}

#[test]
fn a_tombstone_goes_when_every_zone_has_applied_it_and_never_by_age() {
    let mut b = Side::new(B);
    b.apply(A, &[put(1, "x", 1, NOW_MS), delete(2, "x", 1, NOW_MS), delete(3, "y", 1, 5)]);
    assert_eq!(collect(&mut b, A, 1), 0);
    assert_eq!(collect(&mut b, A, 2), 1);
    assert_eq!((b.value("x"), b.value("y")), (None, Some((Bytes::new(), true))));
    assert_eq!(collect(&mut b, A, 3), 1);
}

#[test]
fn a_tombstone_stays_while_an_earlier_owner_may_still_bring_an_older_write() {
    // A moves the shard to B, which deletes; C hears of B's delete before it has A's write.
    let moving = then(&first(), |h, e| h.begin_move(B, e).unwrap());
    let moved = then(&moving, |h, e| h.commit_move(2, &[(A, 2)].into_iter().collect(), e).unwrap());
    let mut c = Side::new(C);
    c.map(&moving);
    c.map(&moved);
    c.apply(B, &[delete(1, "x", moved.0.0, NOW_MS)]);
    assert_eq!(collect(&mut c, B, 1), 0, "A's log may hold anything up to its FENCE");
    c.apply(A, &[put(1, "x", 1, NOW_MS - 9)]);
    assert_eq!((c.value("x"), collect(&mut c, B, 1)), (Some((Bytes::new(), true)), 0));
    c.apply(A, &[fence(2, moving.0.0 + 1, &[])]);
    assert_eq!((collect(&mut c, B, 1), c.value("x")), (1, None));
}

#[test]
fn a_tombstone_stays_while_something_of_its_shard_is_parked_or_a_take_over_is_unresolved() {
    let mut b = Side::new(B);
    b.apply(A, &[delete(1, "x", 1, NOW_MS), put(2, "y", 1, NOW_MS + 9000)]);
    assert_eq!((b.applier.parked(), collect(&mut b, A, 2)), (1, 0));
    let changes = b.applier.retry(NOW_MS + 9000);
    b.store.commit(&changes).unwrap();
    let lost = then(&first(), |h, e| h.declare_lost(A, e).unwrap().unwrap());
    let taken = then(&lost, |h, e| h.finish_take_over(B, &[(A, 2)].into_iter().collect(), e).unwrap());
    b.map(&lost);
    b.map(&taken);
    assert_eq!(collect(&mut b, A, 2), 0, "its row is locked");
    b.apply(A, &[fence(3, 2, &[])]);
    assert_eq!(collect(&mut b, A, 3), 1);
}
