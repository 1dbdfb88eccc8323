//! The same tests for every store: compare-and-set, whole or not at all, durable.
//!
//! Those on etcd need Debian's `etcd-server`: `cargo test -p gzs --test store -- --ignored`.

mod kit;

use gzs::api::{AuditView, What};
use gzs::change::{Change, Grant, Unstored};
use gzs::limits::OPS_SHOWN_MAX;
use gzs::op::{End, Op};
use gzs::store::Store;
use gzs::store::etcd::{Election, Etcd, Gateway, Standing, Who};
use gzs::store::memory::Memory;
use gzs::store::sqlite::Sqlite;
use kit::etcd::Server;
use kit::{NAMES, all_tell, ask, first_audit, service, settings};
use shardmap::map::Map;
use shardmap::{MapEpoch, Shard};
use std::path::PathBuf;

const T: u64 = 1_000_000;

fn dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ezone-gzs-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// An operation that begins, and its first step, made from the first map.
fn two_steps(store: &mut impl Store) -> (Change, Change) {
    let mut s = service(store, settings(), T);
    all_tell(&mut s, store, &NAMES, T);
    let begin = s.begin(&ask(What::Move { shards: vec![0], to: "sh".into() }), T).unwrap();
    s.on_stored(begin.clone());
    (begin, s.next_change(T).unwrap())
}

fn behaves(store: &mut impl Store) {
    assert!(store.load().unwrap().is_none());
    let (begin, step) = two_steps(store);
    assert!(
        matches!(store.adopt(&kit::map(), &first_audit()), Err(Unstored::Overtaken { .. })),
        "only into an empty one"
    );
    assert!(matches!(store.commit(&step), Err(Unstored::Overtaken { .. })), "the operation is not there yet");
    assert_eq!(store.load().unwrap().unwrap().map.epoch().0, 1, "neither map nor operation");
    store.commit(&begin).unwrap();
    assert!(matches!(store.commit(&begin), Err(Unstored::Overtaken { .. })), "twice");
    store.commit(&step).unwrap();
    assert!(matches!(store.commit(&step), Err(Unstored::Overtaken { .. })), "made from an old map");
    let held = store.load().unwrap().unwrap();
    assert_eq!(
        (held.map.digest(), held.ops[0].clone()),
        (step.map.as_ref().unwrap().digest(), step.op.clone().unwrap())
    );
    assert!(held.digests.contains(&(2, held.map.digest())) && held.digests.contains(&(1, kit::map().digest())));
    grants_behave(store, 2);
    let audit = store.audit(0, 10).unwrap();
    assert_eq!(audit.iter().map(|a| a.epoch).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(store.audit(1, 10).unwrap(), audit[1..]);
    assert_eq!(store.audit(0, 1).unwrap(), audit[..1]);
}

/// A grant is prolonged by who knows the last one, and by nobody else; what comes with it is stored with it, or not.
fn grants_behave(store: &mut impl Store, from_epoch: u64) {
    let grant = |revision, zone| Grant { revision, zone, owner_epoch: 1, until_ms: T + revision, lasts_ms: 4500 };
    let change = |shard, grant| Change {
        from_epoch,
        map: None,
        op: None,
        marks: vec![],
        grants: vec![(Shard(1024), grant), (Shard(shard), Grant { revision: 1, ..grant })],
        audit: None,
    };
    store.commit(&change(1025, grant(1, 0))).unwrap();
    assert!(matches!(store.commit(&change(1026, grant(1, 1))), Err(Unstored::Overtaken { .. })), "by another service");
    assert!(matches!(store.commit(&change(1026, grant(3, 1))), Err(Unstored::Overtaken { .. })), "one was missed");
    let late = Change { from_epoch: from_epoch - 1, ..change(1026, grant(2, 0)) };
    assert!(matches!(store.commit(&late), Err(Unstored::Overtaken { .. })), "under an older map");
    store.commit(&change(1027, grant(2, 0))).unwrap();
    let mut held = store.load().unwrap().unwrap().grants;
    held.sort_by_key(|(shard, _)| *shard);
    assert_eq!(held.iter().map(|(s, g)| (s.0, g.revision)).collect::<Vec<_>>(), [(1024, 2), (1025, 1), (1027, 1)]);
    assert_eq!(held[0].1, grant(2, 0));
}

/// A store of before there were leases has none, and goes on.
#[test]
fn a_store_of_schema_1_gets_room_for_grants() {
    let dir = dir("schema");
    let path = dir.join("gzs.db");
    Sqlite::open(&path).unwrap().adopt(&kit::map(), &first_audit()).unwrap();
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch("drop table grants; pragma user_version = 1").unwrap();
    drop(old);
    let mut store = Sqlite::open(&path).unwrap();
    assert_eq!(store.load().unwrap().unwrap().map.epoch().0, 1);
    grants_behave(&mut store, 1);
    drop(store);
    assert_eq!(Sqlite::open(&path).unwrap().load().unwrap().unwrap().grants.len(), 3);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn memory_behaves() {
    behaves(&mut Memory::default());
}

#[test]
fn sqlite_behaves_and_keeps_it() {
    let dir = dir("behaves");
    let path = dir.join("gzs.db");
    behaves(&mut Sqlite::open(&path).unwrap());
    let held = Sqlite::open(&path).unwrap().load().unwrap().unwrap();
    assert_eq!((held.map.epoch().0, held.ops.len()), (2, 1));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
#[ignore = "needs etcd (Debian: apt-get install etcd-server)"]
fn etcd_behaves_and_keeps_it() {
    let server = Server::start(dir("etcd"));
    behaves(&mut Etcd::new(server.gateway(), "ezone/a/"));
    let held = Etcd::new(server.gateway(), "ezone/a/").load().unwrap().unwrap();
    assert_eq!((held.map.epoch().0, held.ops.len()), (2, 1));
    assert!(Etcd::new(server.gateway(), "ezone/b/").load().unwrap().is_none(), "another cluster's");
}

#[test]
#[ignore = "needs etcd (Debian: apt-get install etcd-server)"]
fn one_leads_and_what_an_old_leader_stores_is_refused() {
    let server = Server::start(dir("leads"));
    let mut etcd = server.gateway();
    let who = |name: &str| Who { name: name.into(), url: format!("http://{name}") };
    let (a, b) = (Election::new("ezone/", who("a"), 60), Election::new("ezone/", who("b"), 60));
    let Standing::Leads { lease, token } = a.stand(&mut etcd).unwrap() else { panic!("nobody leads") };
    assert_eq!(b.stand(&mut etcd).unwrap(), Standing::Follows(who("a")));
    let revision = a.renew(&mut etcd, lease).unwrap().unwrap();
    assert!(revision >= token);
    a.compact(&mut etcd, revision).unwrap();
    let (mut first, mut second) = (Etcd::new(server.gateway(), "ezone/"), Etcd::new(server.gateway(), "ezone/"));
    first.lead(token);
    let (begin, step) = two_steps(&mut first);
    first.commit(&begin).unwrap();
    // Its lease ends; it does not know.
    a.resign(&mut etcd, lease).unwrap();
    assert_eq!(a.renew(&mut etcd, lease).unwrap(), None);
    let denied = first.commit(&step).unwrap_err();
    assert!(denied.to_string().contains("no leader"), "{denied}");
    let Standing::Leads { token: newer, .. } = b.stand(&mut etcd).unwrap() else { panic!("b does not lead") };
    assert!(newer > token);
    second.lead(newer);
    assert!(matches!(first.commit(&step), Err(Unstored::Overtaken { .. })));
    assert_eq!(second.load().unwrap().unwrap().map.epoch().0, 1, "nothing of it is there");
    second.commit(&step).unwrap();
    assert_eq!(a.leader(&mut etcd).unwrap(), Some(who("b")));
}

/// A map larger than what etcd takes in one request, whose fences change; and more operations than are shown.
#[test]
#[ignore = "needs etcd (Debian: apt-get install etcd-server)"]
fn etcd_holds_large_maps_and_forgets_what_is_old() {
    let server = Server::start(dir("large"));
    let mut store = Etcd::new(server.gateway(), "ezone/");
    let Standing::Leads { token, .. } =
        Election::new("ezone/", Who::default(), 60).stand(&mut server.gateway()).unwrap()
    else {
        panic!("nobody leads")
    };
    store.lead(token);
    let large = |epoch, orders: u64| {
        let mut parts = kit::parts(&[]);
        parts.epoch = MapEpoch(epoch);
        parts.exceptions.orders = (0..orders).map(|id| (id, Shard(1))).collect();
        Map::from_parts(parts).unwrap()
    };
    for (epoch, orders) in [(5, 400_000), (6, 5)] {
        store.adopt(&large(epoch, orders), &AuditView { epoch, ..first_audit() }).unwrap();
        let held = Etcd::new(server.gateway(), "ezone/").load().unwrap().unwrap();
        assert_eq!(held.map.digest(), large(epoch, orders).digest());
    }
    let all = server.gateway().post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","keys_only":true}"#).unwrap().1;
    // head, epoch, leader, one part of map and base, and audit and digest of two maps.
    assert!(all.contains(r#""count":"9""#), "{all}");
    let begin = {
        let mut s = service(&mut store, settings(), T);
        all_tell(&mut s, &mut store, &NAMES, T);
        s.begin(&ask(What::Move { shards: vec![0], to: "sh".into() }), T).unwrap()
    };
    let ended =
        |id| Change { op: begin.op.clone().map(|op| Op { id, ended: Some((T, End::Aborted)), ..op }), ..begin.clone() };
    // An operation that is larger than what etcd takes at once, and small again.
    let revision = |revision, why: &str| {
        let why = why.repeat(3 << 20);
        let op = begin.op.clone().map(|op| Op { id: 5000, revision, why, ..op });
        Change { op, ..begin.clone() }
    };
    let keys =
        || server.gateway().post("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","keys_only":true}"#).unwrap().1;
    let few = keys().len();
    for (nth, why) in [(1, "a"), (2, "b"), (3, "")] {
        store.commit(&revision(nth, why)).unwrap();
        let held = store.load().unwrap().unwrap();
        assert_eq!(held.ops.iter().find(|op| op.id == 5000), revision(nth, why).op.as_ref());
    }
    assert!(keys().len() < few + 200, "its parts are gone");
    store
        .commit(&Change { op: revision(4, "").op.map(|op| Op { ended: Some((T, End::Done)), ..op }), ..begin.clone() })
        .unwrap();
    for id in 1..=OPS_SHOWN_MAX as u64 + 10 {
        store.commit(&ended(id)).unwrap();
    }
    let held = store.load().unwrap().unwrap();
    assert_eq!((held.ops.len(), held.ops[0].id), (OPS_SHOWN_MAX, 12));
    assert_eq!(Etcd::new(server.gateway(), "ezone/").load().unwrap().unwrap().ops.len(), OPS_SHOWN_MAX);
}

#[test]
fn a_second_service_is_kept_out_and_a_stranger_is_refused() {
    let dir = dir("second");
    let path = dir.join("gzs.db");
    let first = Sqlite::open(&path).unwrap();
    let said = Sqlite::open(&path).err().unwrap().to_string();
    assert!(said.contains("another Global Zone Service has it open"), "{said}");
    drop(first);
    assert!(Sqlite::open(&path).is_ok());
    std::fs::write(dir.join("text"), "no database at all, but long enough to be looked at as one ".repeat(40)).unwrap();
    assert!(matches!(Sqlite::open(&dir.join("text")), Err(Unstored::Foreign(_))));
    rusqlite::Connection::open(dir.join("other")).unwrap().execute_batch("create table t (x)").unwrap();
    let said = Sqlite::open(&dir.join("other")).err().unwrap().to_string();
    assert!(said.contains("a database of another program"), "{said}");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    assert!(Sqlite::open(&path).err().unwrap().to_string().contains("schema 9, this program knows schema 2"));
    std::fs::remove_dir_all(dir).unwrap();
}
