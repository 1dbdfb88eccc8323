//! A store in one SQLite file, for one service: each change is one transaction, flushed before it is answered.
//!
//! It is a store of this program by its `application_id` ("ezgz") and its schema's version. A second process is kept out by the file's
//! exclusive lock, which ends with the process that holds it.

use super::Store;
use crate::api::AuditView;
use crate::change::{Change, Grant, Held, Mark, Unstored};
use crate::limits::{DIGESTS_MAX, OPS_SHOWN_MAX};
use crate::op::Op;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use shardmap::Shard;
use shardmap::map::Map;
use std::path::Path;

/// "ezgz"
const APPLICATION: i64 = 0x657a_677a;
const SCHEMA: i64 = 2;

const TABLES: &str = "
create table map (only_one integer primary key check (only_one = 1), epoch integer not null, bytes blob not null);
create table ops (id integer primary key, revision integer not null, running integer not null, json text not null);
create index ops_running on ops (running) where running;
create table marks (shard integer primary key, json text not null);
create table audit (epoch integer primary key, digest blob not null, json text not null);
";
/// Since schema 2: a program that knows schema 1 alone would name new owners without waiting for what was granted.
const GRANTS: &str = "create table grants (shard integer primary key, revision integer not null, json text not null);";

/// An open store.
pub struct Sqlite {
    db: Connection,
}

impl Sqlite {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: &Path) -> Result<Sqlite, Unstored> {
        let told = |e: rusqlite::Error| match e.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => {
                Unstored::Failed(format!("{}: another Global Zone Service has it open", path.display()))
            }
            Some(rusqlite::ErrorCode::NotADatabase) => Unstored::Foreign(format!("{}: {e}", path.display())),
            Some(_) | None => Unstored::Failed(format!("{}: {e}", path.display())),
        };
        let db = Connection::open(path).map_err(told)?;
        // Held from the first transaction to the end of the process.
        db.pragma_update(None, "locking_mode", "exclusive").map_err(told)?;
        db.pragma_update(None, "synchronous", "full").map_err(told)?;
        let id: i64 = db.query_row("pragma application_id", [], |r| r.get(0)).map_err(told)?;
        let tables: i64 = db.query_row("select count(*) from sqlite_schema", [], |r| r.get(0)).map_err(told)?;
        if id == 0 && tables == 0 {
            let make = format!(
                "begin exclusive; {TABLES}{GRANTS} pragma application_id = {APPLICATION}; pragma user_version = {SCHEMA}; commit;"
            );
            db.execute_batch(&make).map_err(told)?;
        } else {
            db.execute_batch("begin exclusive; commit").map_err(told)?;
        }
        let id: i64 = db.query_row("pragma application_id", [], |r| r.get(0)).map_err(told)?;
        let mut schema: i64 = db.query_row("pragma user_version", [], |r| r.get(0)).map_err(told)?;
        if id == APPLICATION && schema == 1 {
            let more = format!("begin exclusive; {GRANTS} pragma user_version = {SCHEMA}; commit;");
            db.execute_batch(&more).map_err(told)?;
            schema = SCHEMA;
        }
        if id != APPLICATION {
            let what = "a database of another program: name another data_dir";
            return Err(Unstored::Foreign(format!("{}: {what}", path.display())));
        }
        if schema != SCHEMA {
            let what = format!("schema {schema}, this program knows schema {SCHEMA}");
            return Err(Unstored::Foreign(format!("{}: {what}", path.display())));
        }
        Ok(Sqlite { db })
    }
}

impl Store for Sqlite {
    fn load(&mut self) -> Result<Option<Held>, Unstored> {
        let tx = self.db.transaction()?;
        let bytes: Option<Vec<u8>> = tx.query_row("select bytes from map", [], |r| r.get(0)).optional()?;
        let Some(bytes) = bytes else { return Ok(None) };
        let map = Map::decode(&bytes).map_err(|e| Unstored::Foreign(format!("the stored map: {e}")))?;
        let shown = "select json from ops where running union all
            select json from (select id, json from ops where not running order by id desc limit ?1)";
        let ops = rows(&tx, shown, OPS_SHOWN_MAX as i64, |r| r.get::<_, String>(0))?;
        let ops = ops.iter().map(|json| read(json)).collect::<Result<Vec<Op>, _>>()?;
        let marks =
            rows(&tx, "select shard, json from marks where ?1", 1, |r| Ok((r.get(0)?, r.get::<_, String>(1)?)))?;
        let marks = marks.iter().map(|(s, json)| Ok((Shard(*s), read(json)?))).collect::<Result<Vec<_>, Unstored>>()?;
        let grants =
            rows(&tx, "select shard, json from grants where ?1", 1, |r| Ok((r.get(0)?, r.get::<_, String>(1)?)))?;
        let grants =
            grants.iter().map(|(s, json)| Ok((Shard(*s), read(json)?))).collect::<Result<Vec<_>, Unstored>>()?;
        let newest = "select epoch, digest from audit order by epoch desc limit ?1";
        let digests =
            rows(&tx, newest, DIGESTS_MAX as i64, |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, [u8; 32]>(1)?)))?;
        Ok(Some(Held { map, ops, marks, grants, digests }))
    }

    fn adopt(&mut self, map: &Map, audit: &AuditView) -> Result<(), Unstored> {
        let tx = self.db.transaction()?;
        let holds = epoch(&tx)?;
        if map.epoch().0 <= holds {
            let expected = format!("one older than {}", map.epoch());
            return Err(Unstored::Overtaken { holds: format!("map {holds}"), expected });
        }
        put_map(&tx, map, audit)?;
        Ok(tx.commit()?)
    }

    fn commit(&mut self, change: &Change) -> Result<(), Unstored> {
        let tx = self.db.transaction()?;
        let holds = epoch(&tx)?;
        if holds != change.from_epoch {
            let expected = format!("map {}", change.from_epoch);
            return Err(Unstored::Overtaken { holds: format!("map {holds}"), expected });
        }
        if let Some(op) = &change.op {
            put_op(&tx, op)?;
        }
        if let (Some(map), Some(audit)) = (&change.map, &change.audit) {
            put_map(&tx, map, audit)?;
        }
        for (shard, grant) in &change.grants {
            put_grant(&tx, *shard, grant)?;
        }
        for (shard, mark) in &change.marks {
            put_mark(&tx, *shard, mark)?;
        }
        Ok(tx.commit()?)
    }

    fn audit(&mut self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored> {
        let tx = self.db.transaction()?;
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        let sql = format!("select json from audit where epoch > {after} order by epoch limit ?1");
        let all = rows(&tx, &sql, max, |r| r.get::<_, String>(0))?;
        all.iter().map(|json| read(json)).collect()
    }
}

fn rows<T>(
    tx: &Transaction<'_>,
    sql: &str,
    first: i64,
    row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Unstored> {
    let mut asked = tx.prepare_cached(sql)?;
    let found = asked.query_map([first], row)?.collect::<rusqlite::Result<Vec<T>>>()?;
    Ok(found)
}

fn epoch(tx: &Transaction<'_>) -> Result<u64, Unstored> {
    let found: Option<i64> = tx.query_row("select epoch from map", [], |r| r.get(0)).optional()?;
    Ok(found.unwrap_or(0) as u64)
}

fn put_map(tx: &Transaction<'_>, map: &Map, audit: &AuditView) -> Result<(), Unstored> {
    let epoch = map.epoch().0 as i64;
    tx.execute("insert or replace into map values (1, ?1, ?2)", params![epoch, map.encode()])?;
    tx.execute("insert into audit values (?1, ?2, ?3)", params![epoch, map.digest(), written(audit)?])?;
    Ok(())
}

fn put_op(tx: &Transaction<'_>, op: &Op) -> Result<(), Unstored> {
    let id = op.id as i64;
    let found = tx.query_row("select revision from ops where id = ?1", [id], |r| r.get::<_, i64>(0)).optional()?;
    let holds = found.unwrap_or(0) as u64;
    if holds + 1 != op.revision {
        let of = |revision: u64| format!("operation {id} at revision {revision}");
        return Err(Unstored::Overtaken { holds: of(holds), expected: of(op.revision.saturating_sub(1)) });
    }
    let sql = "insert or replace into ops values (?1, ?2, ?3, ?4)";
    tx.execute(sql, params![id, op.revision as i64, op.is_running(), written(op)?])?;
    Ok(())
}

fn put_grant(tx: &Transaction<'_>, shard: Shard, grant: &Grant) -> Result<(), Unstored> {
    let asked = "select revision from grants where shard = ?1";
    let found = tx.query_row(asked, [shard.0], |r| r.get::<_, i64>(0)).optional()?;
    let holds = found.unwrap_or(0) as u64;
    if holds + 1 != grant.revision {
        let of = |revision: u64| format!("the grant of shard {shard} at revision {revision}");
        return Err(Unstored::Overtaken { holds: of(holds), expected: of(grant.revision.saturating_sub(1)) });
    }
    let sql = "insert or replace into grants values (?1, ?2, ?3)";
    tx.execute(sql, params![shard.0, grant.revision as i64, written(grant)?])?;
    Ok(())
}

fn put_mark(tx: &Transaction<'_>, shard: Shard, mark: &Mark) -> Result<(), Unstored> {
    tx.execute("insert or replace into marks values (?1, ?2)", params![shard.0, written(mark)?])?;
    Ok(())
}

fn written(what: &impl serde::Serialize) -> Result<String, Unstored> {
    serde_json::to_string(what).map_err(|e| Unstored::Failed(format!("a record that cannot be written: {e}")))
}

fn read<T: serde::de::DeserializeOwned>(json: &str) -> Result<T, Unstored> {
    serde_json::from_str(json)
        .map_err(|e| Unstored::Foreign(format!("a record that this program does not understand: {e}")))
}

impl From<rusqlite::Error> for Unstored {
    fn from(e: rusqlite::Error) -> Unstored {
        Unstored::Failed(e.to_string())
    }
}
