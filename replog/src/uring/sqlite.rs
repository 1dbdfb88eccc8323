//! Keeps what a zone has applied of one stream in one SQLite database file.
//!
//! WAL with `synchronous=NORMAL`: a power cut may take the last transactions back, whole, and the logs bring them again, since the
//! positions are part of them. What may not be taken back (a map, a report of positions) is committed with
//! `synchronous=FULL`, which makes everything before it durable as well.

mod answers;
mod snapshot;

pub use snapshot::Snapshot;

use crate::owners::{get_positions, put_positions};
use crate::store::{
    Change, Changes, Entry, Failed, Fence, Parked, RESOLVED, Report, Row, Scan, State, Store, VisitRow,
};
use crate::{Hlc, Op, Record, Version};
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};
use shardmap::{MapEpoch, OwnerEpoch, Positions, Shard, Zone};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

/// `user_version` of the database: another schema gets another number. Schema 1, which had no images in its ledger and no index of
/// tombstones, is brought up to date when it is opened.
const SCHEMA: i64 = 2;
/// "ezon": tells a stranger's database from ours.
const APPLICATION: i64 = 0x657a_6f6e;

const TABLES: &str = "
create table rows (tab blob, key blob, value blob, deleted int, owner_epoch int, hlc int, zone int, stream int, shard int,
    seq int, primary key (tab, key)) without rowid;
create table ledger (zone int, seq int, shard int, tab blob, key blob, value blob, deleted int, owner_epoch int, hlc int,
    stream int, primary key (zone, seq)) without rowid;
create table parked (zone int, seq int, unit int, op int, trans int, shard int, owner_epoch int, hlc int, tab blob, key blob,
    value blob, primary key (zone, seq)) without rowid;
create table fences (zone int, shard int, epoch int, seq int, positions blob, primary key (zone, shard)) without rowid;
create table applied (zone int primary key, seq int);
create table scans (zone int primary key, first int, last int);
create table reports (shard int primary key, lost int, epoch int);
create table map (one int primary key check (one = 1), epoch int, bytes blob);
";
const TOMBSTONES: &str = "create index tombstones on rows (zone, seq) where deleted = 1;";
const FROM_1: &str = "
alter table ledger add column value blob not null default x'';
alter table ledger add column deleted int not null default 0;
alter table ledger add column owner_epoch int not null default 0;
alter table ledger add column hlc int not null default 0;
alter table ledger add column stream int not null default 0;
";

const PUT_ROW: &str = "
insert into rows values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) on conflict (tab, key) do update set
    value = excluded.value, deleted = excluded.deleted, owner_epoch = excluded.owner_epoch, hlc = excluded.hlc,
    zone = excluded.zone, stream = excluded.stream, shard = excluded.shard, seq = excluded.seq
where (excluded.owner_epoch, excluded.hlc, excluded.zone, excluded.stream)
    > (rows.owner_epoch, rows.hlc, rows.zone, rows.stream)";
const ROW: &str = "value, deleted, owner_epoch, hlc, zone, stream, shard, seq";
const LEDGER: &str = "select tab, key, value, deleted, owner_epoch, hlc, zone, stream, shard, seq from ledger";

/// The store of one stream.
#[derive(Debug)]
pub struct Sqlite {
    db: Connection,
    /// What the connection's `synchronous` is set to.
    full: bool,
}

impl Sqlite {
    /// Opens the database file, or creates it. A database of another program or schema is refused, not touched.
    pub fn open(path: &Path) -> Result<Sqlite, Failed> {
        let said = |e: rusqlite::Error| Failed::Broken(format!("{}: {e}", path.display()));
        let mut db = Connection::open(path).map_err(said)?;
        let seen: (i64, i64, i64) =
            (|| Ok((pragma(&db, "application_id")?, pragma(&db, "user_version")?, pragma(&db, "schema_version")?)))()
                .map_err(said)?;
        match seen {
            (APPLICATION, SCHEMA, _) => {}
            (0, 0, 0) => create(&mut db).map_err(said)?,
            (APPLICATION, 1, _) => bring_up(&mut db).map_err(said)?,
            (APPLICATION, other, _) => {
                let text = format!("{}: schema {other}, this program knows schema {SCHEMA}", path.display());
                return Err(Failed::Broken(text));
            }
            _ => return Err(Failed::Broken(format!("{}: not a database of ezone; move it away", path.display()))),
        }
        db.pragma_update(None, "journal_mode", "wal").map_err(said)?;
        db.pragma_update(None, "synchronous", "normal").map_err(said)?;
        db.set_prepared_statement_cache_capacity(64);
        answers::index(&db).map_err(said)?;
        Ok(Sqlite { db, full: false })
    }

    /// The applied positions in the database file of a node that may be at work: it is only read, and nothing is put beside it.
    pub fn applied(path: &Path) -> Result<Positions, Failed> {
        let said = |e: rusqlite::Error| Failed::Broken(format!("{}: {e}", path.display()));
        let beside = |end: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            std::fs::metadata(name).map_or(0, |m| m.len())
        };
        // Without its index a write-ahead log can be read only by making one, which would be ours in the node's directory.
        let alone = beside("-shm") == 0;
        if alone && beside("-wal") > 0 {
            let text = format!("{}: closed by a crash; start the node once, then it can be read", path.display());
            return Err(Failed::Broken(text));
        }
        let text = path.to_str().ok_or_else(|| Failed::Broken(format!("{}: not a UTF-8 path", path.display())))?;
        let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let uri = format!("file:{escaped}?mode=ro{}", if alone { "&immutable=1" } else { "" });
        let db = Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI);
        let db = Sqlite { db: db.map_err(said)?, full: false };
        db.db.busy_timeout(Duration::from_secs(1)).map_err(said)?;
        if pragma(&db.db, "application_id").map_err(said)? != APPLICATION {
            return Err(Failed::Broken(format!("{}: not a database of ezone", path.display())));
        }
        let mut applied = Positions::default();
        let each = db.each("select zone, seq from applied", |r| {
            applied.set(Zone(r.get(0)?), unsigned(r.get(1)?));
            Ok(())
        });
        each.map_err(said).map(|()| applied)
    }

    /// How many conflicts somebody has resolved.
    pub(super) fn resolved(&self) -> Result<u64, Failed> {
        let sql = "select count(*) from rows where tab = ?1 and not deleted";
        let count =
            self.db.prepare_cached(sql).and_then(|mut asked| asked.query_row([RESOLVED], |r| r.get::<_, i64>(0)));
        count.map(unsigned).map_err(failed)
    }

    /// The first `most` entries of the ledger behind `after`, by (zone, seq).
    pub(super) fn ledger_from(&self, after: Option<(Zone, u64)>, most: usize) -> Result<Vec<Entry>, Failed> {
        let (zone, seq) = after.map_or((-1, 0), |(zone, seq)| (i64::from(zone.0), signed(seq)));
        let all = || {
            let sql = format!("{LEDGER} where (zone, seq) > (?1, ?2) order by zone, seq limit ?3");
            let mut statement = self.db.prepare_cached(&sql)?;
            statement.query_map(params![zone, seq, most as i64], entry)?.collect()
        };
        let all: rusqlite::Result<Vec<Entry>> = all();
        all.map_err(failed)
    }

    /// As if the disk were full beyond so many pages of 4 KiB.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) {
        self.db.pragma_update(None, "max_page_count", pages).unwrap();
    }

    fn write(&mut self, changes: &Changes) -> rusqlite::Result<()> {
        if self.full != changes.durable {
            self.db.pragma_update(None, "synchronous", if changes.durable { "full" } else { "normal" })?;
            self.full = changes.durable;
        }
        let tx = self.db.transaction()?;
        for change in &changes.list {
            put(&tx, change)?;
        }
        tx.commit()
    }

    fn read_state(&self) -> rusqlite::Result<State> {
        let mut state = State::default();
        self.each("select zone, seq from applied", |r| {
            state.applied.set(Zone(r.get(0)?), unsigned(r.get(1)?));
            Ok(())
        })?;
        self.each("select epoch, bytes from map", |r| {
            state.map = Some((MapEpoch(unsigned(r.get(0)?)), bytes(r, 1)?));
            Ok(())
        })?;
        self.each("select zone, seq, unit, op, trans, shard, owner_epoch, hlc, tab, key, value from parked", |r| {
            state.parked.push(parked(r)?);
            Ok(())
        })?;
        self.each("select zone, shard, epoch, seq, positions from fences", |r| {
            let positions = get_positions(&bytes(r, 4)?).ok_or(rusqlite::Error::InvalidQuery)?;
            let fence = Fence { epoch: OwnerEpoch(unsigned(r.get(2)?)), seq: unsigned(r.get(3)?), positions };
            state.fences.insert((Zone(r.get(0)?), Shard(r.get(1)?)), fence);
            Ok(())
        })?;
        self.each("select zone, first, last from scans", |r| {
            state.scans.insert(Zone(r.get(0)?), Scan { from: unsigned(r.get(1)?), to: unsigned(r.get(2)?) });
            Ok(())
        })?;
        self.each("select shard, lost, epoch from reports", |r| {
            let report = Report { lost: Zone(r.get(1)?), epoch: MapEpoch(unsigned(r.get(2)?)) };
            state.reports.insert(Shard(r.get(0)?), report);
            Ok(())
        })?;
        Ok(state)
    }

    fn each(
        &self,
        sql: &str,
        mut visit: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            visit(row)?;
        }
        Ok(())
    }
}

impl Store for Sqlite {
    fn commit(&mut self, changes: &Changes) -> Result<(), Failed> {
        if changes.is_empty() { Ok(()) } else { self.write(changes).map_err(failed) }
    }

    fn row(&self, table: &[u8], key: &[u8]) -> Result<Option<Row>, Failed> {
        let sql = format!("select {ROW} from rows where tab = ?1 and key = ?2");
        let found = self.db.prepare_cached(&sql).and_then(|mut s| s.query_row((table, key), |r| row(r, 0)).optional());
        found.map_err(failed)
    }

    fn state(&self) -> Result<State, Failed> {
        self.read_state().map_err(failed)
    }

    fn rows(&self, visit: VisitRow<'_>) -> Result<(), Failed> {
        let each = self.each(&format!("select tab, key, {ROW} from rows order by tab, key"), |r| {
            visit(r.get_ref(0)?.as_blob()?, r.get_ref(1)?.as_blob()?, &row(r, 2)?);
            Ok(())
        });
        each.map_err(failed)
    }

    fn ledger(&self, visit: &mut dyn FnMut(&Entry)) -> Result<(), Failed> {
        let each = self.each(&format!("{LEDGER} order by zone, seq"), |r| {
            visit(&entry(r)?);
            Ok(())
        });
        each.map_err(failed)
    }

    fn tombstones(
        &self,
        zone: Zone,
        seqs: RangeInclusive<u64>,
        most: usize,
        visit: VisitRow<'_>,
    ) -> Result<(), Failed> {
        let sql = format!(
            "select tab, key, {ROW} from rows where deleted = 1 and zone = ?1 and seq between ?2 and ?3 order by seq limit ?4"
        );
        let mut each = || {
            let mut statement = self.db.prepare_cached(&sql)?;
            let (from, to) = (signed(*seqs.start()), signed((*seqs.end()).min(i64::MAX as u64)));
            let mut rows = statement.query(params![zone.0, from, to, most as i64])?;
            while let Some(r) = rows.next()? {
                visit(r.get_ref(0)?.as_blob()?, r.get_ref(1)?.as_blob()?, &row(r, 2)?);
            }
            Ok(())
        };
        each().map_err(failed)
    }
}

fn create(db: &mut Connection) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(TABLES)?;
    tx.execute_batch(TOMBSTONES)?;
    tx.pragma_update(None, "application_id", APPLICATION)?;
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.commit()
}

/// From schema 1: entries of its ledger have no image; it is shown as unknown.
fn bring_up(db: &mut Connection) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    tx.execute_batch(FROM_1)?;
    tx.execute_batch(TOMBSTONES)?;
    tx.pragma_update(None, "user_version", SCHEMA)?;
    tx.commit()
}

fn pragma(db: &Connection, name: &str) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, name, |r| r.get(0))
}

fn put(tx: &Transaction<'_>, change: &Change) -> rusqlite::Result<()> {
    let run = |sql: &str, p: &[&dyn rusqlite::ToSql]| tx.prepare_cached(sql)?.execute(p).map(|_| ());
    match change {
        Change::Row { table, key, row: r } => {
            let v = &r.version;
            let (epoch, hlc, seq) = (signed(v.owner_epoch.0), signed(v.hlc.0), signed(r.seq));
            let (table, key, value) = (&table[..], &key[..], &r.value[..]);
            run(PUT_ROW, params![table, key, value, r.deleted, epoch, hlc, v.zone.0, v.stream, r.shard.0, seq])
        }
        Change::Drop { table, key, version: v } => {
            let sql = "delete from rows where tab = ?1 and key = ?2 and deleted = 1
                and (owner_epoch, hlc, zone, stream) = (?3, ?4, ?5, ?6)";
            run(sql, params![&table[..], &key[..], signed(v.owner_epoch.0), signed(v.hlc.0), v.zone.0, v.stream])
        }
        Change::List(e) => put_entry(tx, e),
        Change::Park(p) => put_parked(tx, p),
        Change::Unpark(zone, seq) => {
            run("delete from parked where zone = ?1 and seq = ?2", params![zone.0, signed(*seq)])
        }
        Change::Fence(zone, shard, f) => {
            let (epoch, seq, positions) = (signed(f.epoch.0), signed(f.seq), put_positions(&f.positions));
            let sql = "insert or replace into fences values (?1, ?2, ?3, ?4, ?5)";
            run(sql, params![zone.0, shard.0, epoch, seq, &positions[..]])
        }
        Change::Applied(zone, seq) => {
            run("insert or replace into applied values (?1, ?2)", params![zone.0, signed(*seq)])
        }
        Change::Map(epoch, bytes) => {
            run("insert or replace into map values (1, ?1, ?2)", params![signed(epoch.0), &bytes[..]])
        }
        Change::Scan(zone, Some(s)) => {
            let sql = "insert or replace into scans values (?1, ?2, ?3)";
            run(sql, params![zone.0, signed(s.from), signed(s.to)])
        }
        Change::Scan(zone, None) => run("delete from scans where zone = ?1", params![zone.0]),
        Change::Report(shard, Some(r)) => {
            let sql = "insert or replace into reports values (?1, ?2, ?3)";
            run(sql, params![shard.0, r.lost.0, signed(r.epoch.0)])
        }
        Change::Report(shard, None) => run("delete from reports where shard = ?1", params![shard.0]),
    }
}

fn put_entry(tx: &Transaction<'_>, e: &Entry) -> rusqlite::Result<()> {
    let sql = "insert into ledger (zone, seq, shard, tab, key, value, deleted, owner_epoch, hlc, stream)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) on conflict do nothing";
    let (r, v) = (&e.row, &e.row.version);
    let (epoch, hlc) = (signed(v.owner_epoch.0), signed(v.hlc.0));
    let (table, key, value) = (&e.table[..], &e.key[..], &r.value[..]);
    tx.prepare_cached(sql)?
        .execute(params![v.zone.0, signed(r.seq), r.shard.0, table, key, value, r.deleted, epoch, hlc, v.stream])
        .map(drop)
}

fn entry(r: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { table: bytes(r, 0)?, key: bytes(r, 1)?, row: row(r, 2)? })
}

fn put_parked(tx: &Transaction<'_>, p: &Parked) -> rusqlite::Result<()> {
    let r = &p.record;
    let mut statement =
        tx.prepare_cached("insert into parked values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?;
    statement.execute(params![
        p.zone.0,
        signed(p.seq),
        signed(p.unit),
        r.op.code(),
        r.transaction,
        r.shard.0,
        signed(r.owner_epoch.0),
        signed(r.hlc.0),
        &r.table[..],
        &r.key[..],
        &r.value[..]
    ])?;
    Ok(())
}

fn parked(r: &rusqlite::Row<'_>) -> rusqlite::Result<Parked> {
    let record = Record {
        op: Op::from_code(r.get(3)?).map_err(|_| rusqlite::Error::InvalidQuery)?,
        transaction: r.get(4)?,
        shard: Shard(r.get(5)?),
        owner_epoch: OwnerEpoch(unsigned(r.get(6)?)),
        hlc: Hlc(unsigned(r.get(7)?)),
        table: bytes(r, 8)?,
        key: bytes(r, 9)?,
        value: bytes(r, 10)?,
    };
    Ok(Parked { zone: Zone(r.get(0)?), seq: unsigned(r.get(1)?), unit: unsigned(r.get(2)?), record })
}

fn row(r: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Row> {
    let version = Version {
        owner_epoch: OwnerEpoch(unsigned(r.get(at + 2)?)),
        hlc: Hlc(unsigned(r.get(at + 3)?)),
        zone: Zone(r.get(at + 4)?),
        stream: r.get(at + 5)?,
    };
    let (value, deleted, shard, seq) = (bytes(r, at)?, r.get(at + 1)?, Shard(r.get(at + 6)?), unsigned(r.get(at + 7)?));
    Ok(Row { version, seq, shard, deleted, value })
}

fn bytes(r: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(r.get_ref(at)?.as_blob()?))
}

/// SQLite's integers are signed. A row's numbers are below 2^63: an owner epoch or an HLC beyond waits or is parked, and a
/// parked record's numbers are not compared by SQLite.
fn signed(n: u64) -> i64 {
    n as i64
}

fn unsigned(n: i64) -> u64 {
    n as u64
}

fn failed(e: rusqlite::Error) -> Failed {
    match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Failed::Full(e.to_string()),
        _ => Failed::Broken(e.to_string()),
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
