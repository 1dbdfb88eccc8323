//! Commits: conditions, whole transactions, idempotency keys, across maps.

use super::super::Decision;
use super::super::tests::{A, B, NOW_MS, S, first, gate, moving, taken_over, then};
use super::*;
use crate::commit::{ANSWER_KEPT_MS, Condition};
use bytes::Bytes;
use shardmap::{MapEpoch, Positions, Zone};
use std::sync::Arc;

fn step(key: &'static str, only: Condition) -> Step {
    Step { table: "t".into(), key: Some(key.into()), value: Some("v".into()), only }
}

fn ask(epoch: u64, steps: Vec<Step>) -> Commit {
    Commit { shard: S, map_epoch: MapEpoch(epoch), steps, once: None, remote_ms: None }
}

fn once(digest: u8) -> Option<Once> {
    Some(Once { key: "k".into(), digest: [digest; 16] })
}

fn version(zone: Zone, hlc: u64) -> Version {
    Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(hlc), zone, stream: 0 }
}

fn known(rows: &[Seen]) -> Known {
    Known { rows: rows.to_vec(), once: None }
}

fn appended(ruling: Ruling) -> Vec<Record> {
    match ruling {
        Ruling::Append(records) => records,
        other => panic!("expected an append, got {other:?}"),
    }
}

#[test]
fn a_condition_wants_the_row_and_is_refused_with_the_version_that_is_there() {
    let mut a = gate(A, &first());
    let (v1, v2) = (version(A, 5), version(A, 6));
    let commit = ask(1, vec![step("free", Condition::Any), step("k", Condition::At(v1))]);
    assert_eq!(a.commit(&commit, None, NOW_MS), Ruling::NeedRows);
    let unmet = |seen| Ruling::Refused(Refused::Unmet { step: 1, seen });
    assert_eq!(a.commit(&commit, Some(&known(&[Seen::Absent, Seen::Row(v2)])), NOW_MS), unmet(Some(v2)));
    assert_eq!(a.commit(&commit, Some(&known(&[Seen::Absent, Seen::Gone(v1)])), NOW_MS), unmet(None));
    let records = appended(a.commit(&commit, Some(&known(&[Seen::Row(v2), Seen::Row(v1)])), NOW_MS));
    assert_eq!(records.iter().map(|r| (r.op, r.transaction)).collect::<Vec<_>>(), [(Op::Put, 0), (Op::Put, 0)]);
    assert!(records[0].hlc < records[1].hlc, "each row has a version of its own");
    let plain = ask(1, vec![step("a", Condition::Any), step("b", Condition::Any)]);
    assert_eq!(appended(a.commit(&plain, None, NOW_MS)).len(), 2, "nobody looks up what needs no judgement");
}

#[test]
fn a_commit_is_refused_whole_where_a_write_is() {
    let mut b = gate(B, &first());
    let commit = ask(1, vec![step("k", Condition::Any)]);
    let not_owner = |map, owner| Ruling::Refused(Refused::NotOwner { map_epoch: MapEpoch(map), owner: Some(owner) });
    assert_eq!(b.commit(&commit, None, NOW_MS), not_owner(1, A));
    assert_eq!(b.commit(&ask(2, vec![step("k", Condition::Any)]), None, NOW_MS), Ruling::WaitMap);
    let mut a = gate(A, &first());
    a.on_map(Arc::new(moving()), &Positions::default(), NOW_MS).unwrap();
    assert_eq!(a.commit(&commit, None, NOW_MS), not_owner(2, B), "a FENCE bars it");
    assert_eq!(a.may_write(S), None);
    let mut b = gate(B, &taken_over());
    let two = ask(3, vec![step("new", Condition::Any), step("old", Condition::Any)]);
    assert_eq!(b.commit(&two, None, NOW_MS), Ruling::NeedRows);
    let rows = known(&[Seen::Absent, Seen::Row(version(A, 5))]);
    assert_eq!(b.commit(&two, Some(&rows), NOW_MS), Ruling::Refused(Refused::Locked));
    assert_eq!(
        b.commit(&two, Some(&known(&[Seen::Absent, Seen::Gone(version(A, 5))])), NOW_MS),
        Ruling::Refused(Refused::Locked)
    );
    appended(b.commit(&two, Some(&known(&[Seen::Absent; 2])), NOW_MS));
}

#[test]
fn a_repeated_request_gets_the_first_answer_also_from_the_next_owner() {
    let mut a = gate(A, &first());
    let mint = Step { key: None, ..step("", Condition::Any) };
    let commit = Commit { once: once(1), ..ask(1, vec![mint, step("k", Condition::Absent)]) };
    assert_eq!(a.commit(&commit, None, NOW_MS), Ruling::NeedRows);
    let records = appended(a.commit(&commit, Some(&known(&[Seen::Absent; 2])), NOW_MS));
    let answer = records.last().unwrap();
    assert_eq!((answer.op, &answer.table[..], records.len()), (Op::Answer, ANSWERS, 3));
    assert_eq!(commit.rows().last(), Some(&(answer.table.clone(), answer.key.clone())), "it is looked for where it is");
    let made = version(A, 0);
    let found = Found { version: Version { hlc: answer.hlc, ..made }, seq: 12, value: answer.value.clone() };
    // The row of the condition is there by now: that does not matter any more.
    let later = Known { rows: vec![Seen::Absent, Seen::Row(made)], once: Some(found) };
    let map = then(&moving(), |h, e| h.commit_move(13, &[(A, 13)].into_iter().collect(), e).unwrap());
    let mut b = gate(B, &map);
    for (gate, epoch) in [(&mut a, 1), (&mut b, 3)] {
        let repeated = Commit { map_epoch: MapEpoch(epoch), ..commit.clone() };
        let Ruling::Again(rows) = gate.commit(&repeated, Some(&later), NOW_MS + 5) else { panic!("not replayed") };
        assert_eq!(rows.iter().map(|r| r.seq).collect::<Vec<_>>(), [10, 11]);
        assert_eq!((&rows[0].key, rows[0].version.hlc), (&records[0].key, records[0].hlc));
        assert_eq!(rows[0].version.zone, A, "who wrote it, not who tells it");
        let other = Commit { once: once(2), ..repeated };
        assert_eq!(gate.commit(&other, Some(&later), NOW_MS + 5), Ruling::Refused(Refused::Reused));
    }
    assert!(matches!(a.commit(&commit, Some(&later), NOW_MS + ANSWER_KEPT_MS), Ruling::Again(_)), "kept for a day");
    let Ruling::Refused(Refused::Unmet { step: 1, .. }) = a.commit(&commit, Some(&later), NOW_MS + ANSWER_KEPT_MS + 2)
    else {
        panic!("an answer that is no longer kept counted")
    };
}

#[test]
fn what_cannot_be_a_transaction_is_refused_with_what_was_seen() {
    let mut a = gate(A, &first());
    let big = |key| Step { value: Some(vec![0; 800_000].into()), ..step(key, Condition::Any) };
    let long: Bytes = vec![b'k'; 256].into();
    let minted = Step { key: None, ..step("", Condition::Absent) };
    let cases = [
        (ask(1, vec![]), "0 operations, at least 1 and at most 128"),
        (ask(1, vec![step("k", Condition::Any); 129]), "129 operations, at least 1 and at most 128"),
        (ask(1, vec![step("k", Condition::Any); 2]), "operation 1: the same row as in an earlier operation"),
        (ask(1, vec![minted]), "operation 0: a condition on a row whose id is still to be minted"),
        (ask(1, vec![big("a"), big("b"), big("c")]), "a transaction of 2400"),
        (
            Commit { once: Some(Once { key: long, digest: [0; 16] }), ..ask(1, vec![step("k", Condition::Any)]) },
            "an idempotency key of 256 bytes, at least 1 and at most 255",
        ),
        (
            ask(1, vec![Step { table: ".answers".into(), ..step("k", Condition::Any) }]),
            "a table whose name begins with a point is the log's own",
        ),
    ];
    for (commit, why) in cases {
        let Ruling::Refused(Refused::Invalid(said)) = a.commit(&commit, None, NOW_MS) else { panic!("{why}") };
        assert!(said.starts_with(why.as_bytes()), "{said:?}, expected {why}");
    }
    let write =
        Write { shard: S, map_epoch: MapEpoch(1), table: ".answers".into(), key: Some("k".into()), value: None };
    assert!(matches!(a.write(&write, super::super::Row::Unknown, NOW_MS), Decision::Refused(Refused::Invalid(_))));
}
