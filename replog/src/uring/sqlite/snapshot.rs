//! Reads a stream's database as it is at one moment, beside the thread that writes it: a read transaction on a connection of its own.
//!
//! The write-ahead log grows for as long as one lives, so whoever holds one gives it up when nobody takes what it reads.

use super::{APPLICATION, LEDGER, ROW, SCHEMA, Sqlite, entry, failed, pragma, row};
use crate::store::{Entry, Failed, Row, State};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// Called with table, key and row; `false`: enough.
type WhileRow<'a> = &'a mut dyn FnMut(&[u8], &[u8], &Row) -> bool;

/// Everything that was committed when it was begun, and nothing that came later.
pub struct Snapshot {
    db: Sqlite,
}

impl Snapshot {
    /// Begins one, of a database that the node has open.
    pub fn begin(path: &Path) -> Result<Snapshot, Failed> {
        let said = |e: rusqlite::Error| Failed::Broken(format!("{}: {e}", path.display()));
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(said)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(said)?;
        let seen = (|| Ok((pragma(&db, "application_id")?, pragma(&db, "user_version")?)))()
            .map_err(|e: rusqlite::Error| said(e))?;
        if seen != (APPLICATION, SCHEMA) {
            return Err(Failed::Broken(format!("{}: not a database of this version", path.display())));
        }
        // The transaction begins with its first read, which follows at once: all of it sees one moment.
        db.execute_batch("begin; select count(*) from applied").map_err(said)?;
        Ok(Snapshot { db: Sqlite { db, full: false } })
    }

    /// Everything but rows and ledger.
    pub fn state(&self) -> Result<State, Failed> {
        self.db.read_state().map_err(failed)
    }

    /// Visits rows by (table, key) until one visit says no.
    pub fn rows(&self, visit: WhileRow<'_>) -> Result<(), Failed> {
        let sql = format!("select tab, key, {ROW} from rows order by tab, key");
        let each = self.db.each(&sql, |r| on(visit(r.get_ref(0)?.as_blob()?, r.get_ref(1)?.as_blob()?, &row(r, 2)?)));
        ended(each)
    }

    /// Visits the ledger by (zone, seq) until one visit says no.
    pub fn ledger(&self, visit: &mut dyn FnMut(&Entry) -> bool) -> Result<(), Failed> {
        let each = self.db.each(&format!("{LEDGER} order by zone, seq"), |r| on(visit(&entry(r)?)));
        ended(each)
    }
}

fn on(goes_on: bool) -> rusqlite::Result<()> {
    if goes_on { Ok(()) } else { Err(rusqlite::Error::QueryReturnedNoRows) }
}

/// A visit that said no is no failure: whoever said it knows why.
fn ended(each: rusqlite::Result<()>) -> Result<(), Failed> {
    match each {
        Ok(()) | Err(rusqlite::Error::QueryReturnedNoRows) => Ok(()),
        Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Err(Failed::Broken(format!("busy: {e}"))),
        Err(e) => Err(failed(e)),
    }
}
