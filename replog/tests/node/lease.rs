//! A global service on real nodes: written under a lease, refused without one, and in doubt where it ended before the answer.

use crate::ONE;
use crate::cluster::{A, B, Cluster, Site, put};
use crate::commit::{commit, once, step};
use replog::commit::{Commit, Condition, Held, Token};
use replog::lease::Lease;
use replog::port::{Answer, Ask, Refused};
use replog::uring::steady_ms;
use shardmap::fence::Fences;
use shardmap::map::{Map, Parts};
use shardmap::ownership::History;
use shardmap::{MapEpoch, OwnerEpoch, Shard};
use std::sync::Arc;

const USERS: Shard = Shard(1024);
const TWO: MapEpoch = MapEpoch(2);

/// The next map: with a global service of zone a.
fn with_users(map: &Map) -> Arc<Map> {
    let mut histories: std::collections::BTreeMap<_, _> = map.shards().map(|(s, h)| (s, h.clone())).collect();
    histories.insert(USERS, History::new(A, TWO));
    let f = map.fences();
    let next = Map::from_parts(Parts {
        epoch: TWO,
        previous: map.digest(),
        default: map.default_shard(),
        zones: map.zones().to_vec(),
        histories,
        exceptions: map.exceptions().clone(),
        globals: [(USERS, "users".to_owned())].into(),
        fences: Arc::new(Fences::new(f.list().to_vec(), f.near_m(), f.sliver_m()).unwrap()),
    });
    let next = next.unwrap();
    assert_eq!(map.may_become(&next), Ok(()));
    Arc::new(next)
}

fn start(name: &str) -> Cluster {
    let (cluster, map) = Cluster::start(name);
    cluster.on_map(&with_users(&map));
    cluster
}

fn lease(site: &Site, ms: u64) {
    let lease = Lease { shard: USERS, owner_epoch: OwnerEpoch(2), until_ms: steady_ms() + ms };
    site.node().on_leases(&[lease]);
}

fn write(site: &Site, key: &str) -> Answer {
    site.ask(&put(USERS, TWO, key, b"v".to_vec()))
}

#[test]
fn a_global_service_waits_for_its_first_lease_and_is_refused_after_its_last() {
    let cluster = start("lease");
    let none = Refused::Unleased { shard: USERS, ended_ms: None };
    assert_eq!(write(&cluster.a, "k"), Answer::Refused(none), "it has waited, and none has come");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| write(&cluster.a, "k"));
        lease(&cluster.a, 3_600_000);
        let answer = waiting.join().unwrap();
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
    });
    let elsewhere = write(&cluster.b, "k");
    assert!(matches!(elsewhere, Answer::Refused(Refused::NotOwner { owner: Some(A), .. })), "{elsewhere:?}");
    cluster.wait("b has it", || {
        let read = Ask::Read { shard: USERS, map_epoch: TWO, table: "orders".into(), key: "k".into(), local: true };
        matches!(cluster.b.ask(&read), Answer::Row { .. })
    });
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_write_whose_lease_ends_before_its_answer_is_neither_done_nor_refused() {
    let cluster = start("lease-ends");
    cluster.b.stop();
    // It waits for a zone that is not there, and meanwhile the lease ends. On a loaded machine it may end sooner: then once more.
    let mut ask = commit(USERS, TWO, vec![step("k", Some("v"), Condition::Any)]);
    ask.remote_ms = Some(2000);
    for _ in 0..50 {
        lease(&cluster.a, 1000);
        match cluster.a.ask(&Ask::Commit(ask.clone())) {
            Answer::Committed(done) => {
                assert_eq!(done.held, Held::Unleased);
                let refused = write(&cluster.a, "k");
                assert!(
                    matches!(refused, Answer::Refused(Refused::Unleased { ended_ms: Some(_), .. })),
                    "nothing is written without one: {refused:?}"
                );
                return;
            }
            Answer::Refused(Refused::Unleased { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("the lease ended before the append, 50 times");
}

/// The client tries again by its key, and waits for another zone: what it is told then is as uncertain as the first answer would be.
#[test]
fn a_commit_that_is_told_again_after_the_lease_has_ended_is_neither_done_nor_refused() {
    let cluster = start("lease-again");
    cluster.b.stop();
    let mut ask = commit(USERS, TWO, vec![step("k", Some("v"), Condition::Any)]);
    ask.once = once("k-1", 1);
    let again = Commit { remote_ms: Some(2000), ..ask.clone() };
    for _ in 0..50 {
        lease(&cluster.a, 1000);
        match (cluster.a.ask(&Ask::Commit(ask.clone())), cluster.a.ask(&Ask::Commit(again.clone()))) {
            (Answer::Committed(_), Answer::Committed(done)) => {
                assert_eq!((done.replayed, done.held), (true, Held::Unleased));
                return;
            }
            // On a loaded machine it may end sooner.
            (
                Answer::Committed(_) | Answer::Refused(Refused::Unleased { .. }),
                Answer::Refused(Refused::Unleased { .. }),
            ) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("the lease ended too early, 50 times");
}

#[test]
fn a_read_at_the_owner_whose_lease_ends_while_it_waits_tells_no_row() {
    let cluster = start("lease-read");
    lease(&cluster.a, 3_600_000);
    assert!(matches!(write(&cluster.a, "k"), Answer::Written { .. }));
    let Answer::Written { seq, .. } = cluster.b.ask(&put(Shard(4), ONE, "other", b"v".to_vec())) else {
        panic!("not written")
    };
    // Under another ownership the lease is a short one; the read waits for writes of the other zone, which come later
    // (and for more of them than the log appends by itself).
    let map = with_users_again(&cluster);
    let until_ms = steady_ms() + 1500;
    cluster.a.node().on_leases(&[Lease { shard: USERS, owner_epoch: OwnerEpoch(map.0), until_ms }]);
    let after = Token { zone: B, stream: 0, seq: seq + 20 };
    let (table, key) = ("orders".into(), "k".into());
    let read = Ask::ReadAfter { shard: USERS, map_epoch: map, table, key, local: false, after, wait_ms: 60_000 };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cluster.a.ask(&read));
        while steady_ms() < until_ms {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for _ in 0..20 {
            assert!(matches!(cluster.b.ask(&put(Shard(4), ONE, "other", b"w".to_vec())), Answer::Written { .. }));
        }
        let answer = waiting.join().unwrap();
        assert!(matches!(answer, Answer::Refused(Refused::Unleased { ended_ms: Some(_), .. })), "{answer:?}");
    });
}

/// A move of the global service that is given up: its owner begins anew.
fn with_users_again(cluster: &Cluster) -> MapEpoch {
    let map = with_users(&crate::cluster::first_map());
    let moving = crate::next(&map, &[USERS], |_, h, e| h.begin_move(B, e));
    cluster.on_map(&moving);
    let back = crate::next(&moving, &[USERS], |_, h, e| h.abort(e));
    cluster.on_map(&back);
    cluster.wait("a has the map", || cluster.a.map_epoch() >= back.epoch());
    back.epoch()
}
