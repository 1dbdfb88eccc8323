//! The database against the memory store: the same changes give the same copies.

use super::*;
use crate::store::Memory;
use shardmap::Positions;

/// A file below the target directory, gone when the test ends.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str) -> File {
        let dir = std::env::temp_dir().join(format!("ezone-sqlite-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        File(dir.join("store.db"))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

fn change(rng: &mut Rng) -> Change {
    let (zone, shard, seq) = (Zone(rng.below(3) as u8), Shard(rng.below(4) as u16), rng.below(40));
    let (table, key) = (Bytes::from_static(b"t"), Bytes::from(format!("k{}", rng.below(9))));
    let (owner_epoch, hlc) = (OwnerEpoch(rng.below(3)), Hlc(rng.below(u64::MAX / 4)));
    let value = Bytes::from(vec![rng.below(256) as u8; rng.below(5) as usize]);
    let positions: Positions = [(zone, rng.below(u64::MAX)), (Zone(9), 1)].into_iter().collect();
    let version = Version { owner_epoch, hlc, zone, stream: 1 };
    match rng.below(10) {
        0..=2 => Change::Row { table, key, row: Row { version, seq, shard, deleted: rng.below(2) == 0, value } },
        3 => {
            let version = Version { owner_epoch: OwnerEpoch(seq), hlc: Hlc(seq), zone, stream: 1 };
            let row = Row { version, seq, shard: Shard(seq as u16), deleted: seq % 2 == 0, value: key.clone() };
            Change::List(Entry { table, key: Bytes::from(format!("{zone}{seq}")), row })
        }
        4 => Change::Unpark(zone, seq),
        9 => Change::Drop { table, key, version },
        5 => Change::Fence(zone, shard, Fence { epoch: owner_epoch, seq, positions }),
        6 => Change::Applied(zone, seq),
        7 => Change::Map(MapEpoch(seq), value),
        _ if seq % 2 == 0 => Change::Scan(zone, (seq % 4 == 0).then_some(Scan { from: seq, to: 50 })),
        _ => Change::Report(shard, (seq % 4 == 1).then_some(Report { lost: zone, epoch: MapEpoch(seq) })),
    }
}

#[test]
fn a_database_and_a_memory_store_hold_the_same_after_any_changes_and_after_a_restart() {
    let (file, mut rng, mut memory) = (File::new("same"), Rng(0x1234_5678_9abc), Memory::default());
    let mut db = Sqlite::open(&file.0).unwrap();
    for round in 0..120u64 {
        let mut list: Vec<Change> = (0..rng.below(20)).map(|_| change(&mut rng)).collect();
        let record = Record { hlc: Hlc(u64::MAX), ..Record::marker(Hlc(round)) };
        list.push(Change::Park(Parked { zone: Zone(2), seq: 100 + round, unit: 100, record }));
        let changes = Changes { list, durable: round % 7 == 0 };
        memory.commit(&changes).unwrap();
        db.commit(&changes).unwrap();
        if round % 10 == 0 {
            drop(db);
            db = Sqlite::open(&file.0).unwrap();
        }
        assert_eq!(db.state().unwrap(), memory.state().unwrap());
        assert_eq!(db.digests().unwrap(), memory.digests().unwrap());
        assert_eq!(db.row(b"t", b"k3").unwrap(), memory.row(b"t", b"k3").unwrap());
    }
    assert_eq!(db.row(b"t", b"none").unwrap(), None);
}

#[test]
fn a_transaction_that_fails_in_the_middle_leaves_nothing_behind() {
    let (file, record) = (File::new("whole"), Record::marker(Hlc(1)));
    let mut db = Sqlite::open(&file.0).unwrap();
    let park = Change::Park(Parked { zone: Zone(0), seq: 1, unit: 1, record });
    let changes = Changes { list: vec![Change::Applied(Zone(0), 1), park.clone(), park], durable: false };
    assert!(db.commit(&changes).is_err(), "the same record parked twice");
    assert_eq!(db.state().unwrap(), State::default());
}

#[test]
fn another_programs_or_schemas_database_is_refused_and_not_touched() {
    let file = File::new("foreign");
    Connection::open(&file.0).unwrap().execute_batch("create table t (x); insert into t values (1)").unwrap();
    let before = std::fs::read(&file.0).unwrap();
    let why = Sqlite::open(&file.0).unwrap_err().to_string();
    assert!(why.ends_with("not a database of ezone; move it away"), "{why}");
    assert_eq!(std::fs::read(&file.0).unwrap(), before);
    let file = File::new("schema");
    drop(Sqlite::open(&file.0).unwrap());
    Connection::open(&file.0).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let why = Sqlite::open(&file.0).unwrap_err().to_string();
    assert!(why.ends_with("schema 9, this program knows schema 2"), "{why}");
    std::fs::write(&file.0, b"no database at all, but a text file that is long enough to be looked at").unwrap();
    assert!(Sqlite::open(&file.0).is_err());
}

#[test]
fn tombstones_are_found_by_their_place_and_dropped_only_at_the_version_that_was_seen() {
    let (file, mut memory) = (File::new("tombstones"), Memory::default());
    let mut db = Sqlite::open(&file.0).unwrap();
    let version = |seq| Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(seq), zone: Zone(seq as u8 % 2), stream: 1 };
    let row = |seq, deleted| Row { version: version(seq), seq, shard: Shard(1), deleted, value: Bytes::new() };
    let at = |seq: u64| (Bytes::from_static(b"t"), Bytes::from(format!("k{}", seq % 10)));
    let put = |seq, deleted| Change::Row { table: at(seq).0, key: at(seq).1, row: row(seq, deleted) };
    let drop_at = |seq| Change::Drop { table: at(seq).0, key: at(seq).1, version: version(seq) };
    let list = (0..10).map(|seq| put(seq, seq != 4)).chain([put(12, true), put(18, false)]);
    // 2 is another tombstone by now, 8 a row, 4 always was one.
    let changes = list.chain([0, 2, 4, 8].map(drop_at)).collect();
    let changes = Changes { list: changes, durable: false };
    memory.commit(&changes).unwrap();
    db.commit(&changes).unwrap();
    for store in [&db as &dyn Store, &memory] {
        let found = |seqs, most| {
            let mut all = vec![];
            store.tombstones(Zone(0), seqs, most, &mut |_, key, row| all.push((key.to_vec(), row.seq))).unwrap();
            all
        };
        assert_eq!(found(0..=u64::MAX, 9), [(b"k6".to_vec(), 6), (b"k2".to_vec(), 12)]);
        assert_eq!(found(7..=u64::MAX, 9), [(b"k2".to_vec(), 12)]);
        assert_eq!((found(0..=u64::MAX, 1).len(), found(0..=5, 9).len()), (1, 0));
        assert!(store.row(b"t", b"k4").unwrap().is_some() && store.row(b"t", b"k8").unwrap().is_some());
        assert_eq!(store.row(b"t", b"k0").unwrap(), None);
    }
    assert_eq!(db.digests().unwrap(), memory.digests().unwrap());
}

#[test]
fn a_database_of_schema_1_is_brought_up_to_date_with_all_that_it_holds() {
    let file = File::new("schema1");
    let db = Connection::open(&file.0).unwrap();
    let old = TABLES.replace(
        "value blob, deleted int, owner_epoch int, hlc int,\n    stream int, primary key (zone, seq)",
        "primary key (zone, seq)",
    );
    assert_ne!(old, TABLES);
    db.execute_batch(&old).unwrap();
    db.execute_batch("insert into ledger values (1, 7, 3, x'74', x'6b')").unwrap();
    db.execute_batch("insert into rows values (x'74', x'6b', x'', 1, 5, 6, 1, 0, 3, 7)").unwrap();
    db.pragma_update(None, "application_id", APPLICATION).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    drop(db);
    for _ in 0..2 {
        let db = Sqlite::open(&file.0).unwrap();
        let (mut listed, mut dead) = (vec![], 0);
        db.ledger(&mut |e| listed.push((e.row.version.zone, e.row.seq, e.row.shard, e.key.clone()))).unwrap();
        db.tombstones(Zone(1), 0..=u64::MAX, 9, &mut |_, _, _| dead += 1).unwrap();
        assert_eq!((listed, dead), (vec![(Zone(1), 7, Shard(3), Bytes::from_static(b"k"))], 1));
    }
}

/// Prints what a commit costs: `cargo test --release -p replog commit_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn commit_cost() {
    let (file, mut seq) = (File::new("cost"), 0u64);
    let mut db = Sqlite::open(&file.0).unwrap();
    for rows in [1u64, 10, 100, 1000] {
        let start = std::time::Instant::now();
        let rounds = 2000 / rows;
        for _ in 0..rounds {
            let list = (seq + 1..=seq + rows).map(|seq| {
                let version = Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(seq), zone: Zone(0), stream: 0 };
                let row = Row { version, seq, shard: Shard(0), deleted: false, value: Bytes::from(vec![b'x'; 300]) };
                Change::Row { table: Bytes::from_static(b"orders"), key: seq.to_string().into(), row }
            });
            let list = list.chain([Change::Applied(Zone(0), seq + rows)]).collect();
            seq += rows;
            db.commit(&Changes { list, durable: false }).unwrap();
        }
        println!("{rows} rows a commit: {:.1} us a row", start.elapsed().as_micros() as f64 / (rounds * rows) as f64);
    }
}
