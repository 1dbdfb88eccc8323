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
    match rng.below(9) {
        0..=2 => {
            let version = Version { owner_epoch, hlc, zone, stream: 1 };
            Change::Row { table, key, row: Row { version, seq, shard, deleted: rng.below(2) == 0, value } }
        }
        3 => {
            Change::List(Entry { zone, seq, shard: Shard(seq as u16), table, key: Bytes::from(format!("{zone}{seq}")) })
        }
        4 => Change::Unpark(zone, seq),
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
    assert!(why.ends_with("schema 9, this program knows schema 1"), "{why}");
    std::fs::write(&file.0, b"no database at all, but a text file that is long enough to be looked at").unwrap();
    assert!(Sqlite::open(&file.0).is_err());
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
