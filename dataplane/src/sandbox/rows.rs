//! Reads a zone's rows straight from its SQLite files, while its log may be writing them.
//!
//! What a file is called does not matter: a store is told by its `application_id`. A read sees one state of each file; between
//! files a zone may have moved on, so an exact comparison is for a zone that is quiet.

use rusqlite::{Connection, OpenFlags};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "ezon", as the log's store writes it.
const APPLICATION: i64 = 0x657a_6f6e;
/// The schema that this reader knows; it reads by itself what the log's store wrote.
const SCHEMA: i64 = 2;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// A data directory has its stores at most this far down.
const DEPTH_MAX: usize = 3;

/// Key and value of a row.
pub type Row = (Vec<u8>, Vec<u8>);

/// Why a zone's rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The directory or a file in it.
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, io::Error),
    /// A store's database.
    #[error("{}: {}", .0.display(), .1)]
    Database(PathBuf, rusqlite::Error),
    /// A store of another version.
    #[error("{}: schema {}, this program knows schema {SCHEMA}", .0.display(), .1)]
    Schema(PathBuf, i64),
    /// There is none.
    #[error("{}: no store in this directory, expected at least one SQLite file of a zone's log", .0.display())]
    NoStore(PathBuf),
}

/// All rows of a table that a zone holds, deleted ones left out, from every store in its data directory.
pub fn rows(data_dir: &Path, table: &str) -> Result<Vec<Row>, Unreadable> {
    let mut files = Vec::new();
    find(data_dir, DEPTH_MAX, &mut files)?;
    files.sort();
    let (mut all, mut stores) = (Vec::new(), 0);
    for file in files {
        stores += usize::from(read(&file, table, &mut all)?);
    }
    if stores == 0 { Err(Unreadable::NoStore(data_dir.into())) } else { Ok(all) }
}

/// Every SQLite file in a directory and below it.
fn find(dir: &Path, depth: usize, out: &mut Vec<PathBuf>) -> Result<(), Unreadable> {
    let failed = |e| Unreadable::File(dir.into(), e);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Ok(kind) = fs::symlink_metadata(&path) else { continue }; // gone since: a log's segment, recycled
        if kind.is_dir() && depth > 0 {
            find(&path, depth - 1, out)?;
        } else if kind.is_file() && is_sqlite(&path) {
            out.push(path);
        }
    }
    Ok(())
}

fn is_sqlite(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    File::open(path).and_then(|mut f| f.read_exact(&mut start)).is_ok() && start == *MAGIC
}

/// Adds a store's rows to `out`; false for a database of another program.
fn read(file: &Path, table: &str, out: &mut Vec<Row>) -> Result<bool, Unreadable> {
    let failed = |e| Unreadable::Database(file.into(), e);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(file, flags).map_err(failed)?;
    db.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    let pragma = |name: &str| db.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).map_err(failed);
    if pragma("application_id")? != APPLICATION {
        return Ok(false);
    }
    let schema = pragma("user_version")?;
    if schema != SCHEMA {
        return Err(Unreadable::Schema(file.into(), schema));
    }
    let mut select = db.prepare("select key, value from rows where tab = ?1 and deleted = 0").map_err(failed)?;
    let found = select.query_map([table.as_bytes()], |r| Ok((r.get(0)?, r.get(1)?))).map_err(failed)?;
    for row in found {
        out.push(row.map_err(failed)?);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of this test alone, gone at its end.
    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("ezone-rows-{name}-{}", std::process::id()));
            fs::create_dir_all(dir.join("store")).unwrap();
            Dir(dir)
        }
        /// A store as the log creates it, with `orders` of these keys; it stays open.
        fn store(&self, name: &str, keys: &[&str]) -> Connection {
            let db = Connection::open(self.0.join("store").join(name)).unwrap();
            db.execute_batch(
                &format!("pragma application_id = 0x657a6f6e; pragma user_version = {SCHEMA}; pragma journal_mode = wal;
                 create table rows (tab blob, key blob, value blob, deleted int, owner_epoch int, hlc int, zone int, stream int,
                     shard int, seq int, primary key (tab, key)) without rowid;"),
            )
            .unwrap();
            keys.iter().for_each(|k| put(&db, "orders", k, 0));
            db
        }
        fn keys(&self) -> Vec<String> {
            rows(&self.0, "orders").unwrap().into_iter().map(|r| String::from_utf8(r.0).unwrap()).collect()
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
    fn put(db: &Connection, table: &str, key: &str, deleted: i64) {
        let sql = "insert into rows values (?1, ?2, ?3, ?4, 1, 1, 0, 0, 0, 1)";
        db.execute(sql, (table.as_bytes(), key.as_bytes(), b"{}".as_slice(), deleted)).unwrap();
    }

    #[test]
    fn rows_of_every_stream_are_read_while_they_are_written() {
        let dir = Dir::new("live");
        let (first, _second) = (dir.store("0.db", &["1", "2"]), dir.store("1.db", &["3"]));
        put(&first, "riders", "9", 0);
        put(&first, "orders", "8", 1);
        assert_eq!(dir.keys(), ["1", "2", "3"]);
        first.execute_batch("begin immediate").unwrap();
        put(&first, "orders", "4", 0);
        assert_eq!(dir.keys(), ["1", "2", "3"], "what is not committed is not there");
        first.execute_batch("commit").unwrap();
        assert_eq!(dir.keys(), ["1", "2", "4", "3"]);
    }

    #[test]
    fn rows_are_read_after_a_clean_end_and_what_is_not_a_store_is_left_alone() {
        let dir = Dir::new("closed");
        drop(dir.store("0.db", &["1"]));
        fs::write(dir.0.join("store/7.rlog"), b"RLGSEG1\0").unwrap();
        Connection::open(dir.0.join("other.db")).unwrap().execute_batch("create table rows (key)").unwrap();
        assert_eq!(dir.keys(), ["1"]);
    }

    #[test]
    fn a_store_as_the_log_makes_it_is_read() {
        let dir = Dir::new("real");
        drop(replog::uring::sqlite::Sqlite::open(&dir.0.join("0.db")).unwrap());
        assert_eq!(rows(&dir.0, "orders").unwrap(), []);
    }

    #[test]
    fn no_directory_no_store_and_another_schema_are_told_apart() {
        let dir = Dir::new("bad");
        assert!(matches!(rows(&dir.0.join("absent"), "orders"), Err(Unreadable::File(..))));
        assert!(matches!(rows(&dir.0, "orders"), Err(Unreadable::NoStore(_))));
        dir.store("0.db", &[]).execute_batch("pragma user_version = 3").unwrap();
        assert!(rows(&dir.0, "orders").unwrap_err().to_string().contains("schema 3, this program knows schema 2"));
    }
}
