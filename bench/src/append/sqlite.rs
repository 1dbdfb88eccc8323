//! SQLite as a log: WAL, synchronous=FULL, each append a transaction. One connection: it takes one writer at a time anyway.

use super::{threads, worker};
use bytes::Bytes;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Mutex;

/// The version that is built in.
pub fn version() -> String {
    format!("SQLite {}", rusqlite::version())
}

/// Answers loads on a database in `dir`.
pub fn serve(dir: &Path) -> Result<(), String> {
    let db = Mutex::new(open(&dir.join("peer.db")).map_err(|e| e.to_string())?);
    worker::answer_all(|ask| {
        threads::drive(ask, 1, |_, pairs| {
            let mut db = db.lock().map_err(|_| "a writer has panicked")?;
            insert(&mut db, &pairs).map_err(|e| e.to_string())
        })
    })
}

fn insert(db: &mut Connection, pairs: &[(Bytes, Bytes)]) -> rusqlite::Result<()> {
    let all = db.transaction()?;
    let mut one = all.prepare_cached("INSERT INTO log (key, value) VALUES (?1, ?2)")?;
    for (key, value) in pairs {
        one.execute((&key[..], &value[..]))?;
    }
    drop(one);
    all.commit()
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, key BLOB, value BLOB) STRICT")?;
    Ok(db)
}
