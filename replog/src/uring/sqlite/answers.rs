//! Finds first answers to idempotency keys by their age.

use super::{Sqlite, bytes, failed, signed, unsigned};
use crate::store::Failed;
use crate::{Hlc, Version};
use bytes::Bytes;
use rusqlite::Connection;
use shardmap::{OwnerEpoch, Shard, Zone};

/// An index of them alone; the blob is `commit::ANSWERS`. A database of before it was there gets it when it is opened.
const INDEX: &str = "create index if not exists answers on rows (hlc) where tab = x'2e616e7377657273' and deleted = 0";
const OLD: &str = "
select shard, key, owner_epoch, hlc, zone, stream from rows indexed by answers
where tab = x'2e616e7377657273' and deleted = 0 and hlc >= ?1 and hlc < ?2 order by hlc limit ?3";

pub(super) fn index(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(INDEX)
}

impl Sqlite {
    /// Answers that were given at `from` or later and before `below`, the oldest first, no more than `most`.
    pub fn answers(&self, from: Hlc, below: Hlc, most: usize) -> Result<Vec<(Shard, Bytes, Version)>, Failed> {
        let read = || {
            let mut statement = self.db.prepare_cached(OLD)?;
            let mut rows = statement.query((signed(from.0), signed(below.0), most as i64))?;
            let mut all = vec![];
            while let Some(r) = rows.next()? {
                let version = Version {
                    owner_epoch: OwnerEpoch(unsigned(r.get(2)?)),
                    hlc: Hlc(unsigned(r.get(3)?)),
                    zone: Zone(r.get(4)?),
                    stream: r.get(5)?,
                };
                all.push((Shard(r.get(0)?), bytes(r, 1)?, version));
            }
            Ok(all)
        };
        read().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::ANSWERS;
    use crate::store::{Change, Changes, Row, Store};

    #[test]
    fn answers_are_found_by_age_and_nothing_else_is() {
        let dir = std::env::temp_dir().join(format!("ezone-answers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut store = Sqlite::open(&dir.join("0.db")).unwrap();
        let row = |hlc: u64, deleted| {
            let version = Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(hlc), zone: Zone(1), stream: 0 };
            Row { version, seq: hlc, shard: Shard(3), deleted, value: Bytes::from_static(b"v") }
        };
        let change = |table: &'static [u8], key: &'static str, hlc, deleted| {
            let (table, key) = (Bytes::from_static(table), Bytes::from_static(key.as_bytes()));
            Change::Row { table, key, row: row(hlc, deleted) }
        };
        let list = vec![
            change(ANSWERS, "c", 30, false),
            change(ANSWERS, "a", 10, false),
            change(ANSWERS, "b", 20, false),
            change(ANSWERS, "gone", 15, true),
            change(b"orders", "a", 12, false),
        ];
        store.commit(&Changes { list, durable: false }).unwrap();
        let found = |from: u64, below: u64, most| {
            let all = store.answers(Hlc(from), Hlc(below), most).unwrap();
            all.into_iter().map(|(_, key, v)| (String::from_utf8(key.to_vec()).unwrap(), v.hlc.0)).collect::<Vec<_>>()
        };
        assert_eq!(found(0, 30, 9), [("a".to_owned(), 10), ("b".to_owned(), 20)]);
        assert_eq!(found(0, 99, 1), [("a".to_owned(), 10)]);
        assert_eq!(found(11, 99, 9), [("b".to_owned(), 20), ("c".to_owned(), 30)]);
        drop(store);
        assert!(Sqlite::open(&dir.join("0.db")).is_ok(), "the index is there already");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
