//! The same tests for every store: compare-and-set, whole or not at all, durable.

mod kit;

use gzs::api::What;
use gzs::change::{Change, Grant, Unstored};
use gzs::store::Store;
use gzs::store::memory::Memory;
use gzs::store::sqlite::Sqlite;
use kit::{NAMES, all_tell, ask, first_audit, service, settings};
use shardmap::Shard;
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
