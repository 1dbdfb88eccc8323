//! What was applied, told in order to whoever asks: an ask names positions, an answer brings what follows them.
//!
//! ```text
//! ask (positions, table) ──▶ records of each zone's log up to its applied position, in the order of each log ──▶ new positions
//! ```
//!
//! The reader keeps the positions, not the log: a reader that does not ask holds nothing, and nobody waits for one.
//!
//! A job that is to do its work for each change in exactly one zone asks in each zone for that zone's own log (`Wish::zone`). An acknowledged
//! write is in one zone's log, at one place, for ever: so one zone tells it, however its shard moves meanwhile and however far the job is
//! behind, and after a take-over the lost zone's job goes on from its token when the zone is back. Who owns the shard at the moment of
//! telling would not do: of a write that the old owner's job has not reached when its shard moves, and the new owner's job has passed,
//! neither would be told.

use crate::commit::{Token, get_version, put_version};
use crate::port::{Malformed, get_bytes, get_option, get_u8, get_u32, get_u64, put_bytes, put_option};
use crate::{Op, Record, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::{Shard, Zone};

/// Bytes of records in one answer, or one record.
pub const ANSWER_BYTES: usize = 128 * 1024;
/// Positions in one ask or answer: every stream of every zone.
pub const POSITIONS_MAX: usize = 4096;

/// What a reader of changes asks of one log core.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// After which places, for each zone's log of each stream of this core; a log that is not named is told from its beginning.
    /// `None`: from now on.
    pub after: Option<Vec<Token>>,
    /// Of this table alone.
    pub table: Option<Bytes>,
    /// Out of this zone's log alone: what was written there, whoever owns the shard now.
    pub zone: Option<Zone>,
    /// With the rows' values.
    pub values: bool,
    /// How long to wait for a change before saying that there is none.
    pub wait_ms: u32,
}

/// What follows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// In the order of each log.
    pub changes: Vec<Change>,
    /// Of every log of this core: where to go on.
    pub after: Vec<Token>,
}

/// One write or delete that was applied here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Its table.
    pub table: Bytes,
    /// Its key.
    pub key: Bytes,
    /// Its version; the row has it, or a higher one.
    pub version: Version,
    /// Its place in that zone's log.
    pub seq: u64,
    /// Its shard.
    pub shard: Shard,
    /// It deletes the row.
    pub deleted: bool,
    /// The value, if it was asked for and there is one.
    pub value: Option<Bytes>,
}

impl Wish {
    /// What this record is to whoever wishes; `None`: nothing.
    pub fn change(&self, zone: Zone, stream: u32, seq: u64, record: &Record) -> Option<Change> {
        let deleted = match record.op {
            Op::Put => false,
            Op::Delete => true,
            Op::Answer | Op::Fence | Op::Marker | Op::Gap => return None,
        };
        // Tables of the log's own are nobody's business.
        if record.table.starts_with(b".") || self.table.as_ref().is_some_and(|t| *t != record.table) {
            return None;
        }
        let Record { table, key, shard, owner_epoch, hlc, .. } = record.clone();
        let value = (self.values && !deleted).then(|| record.value.clone());
        Some(Change { table, key, version: Version { owner_epoch, hlc, zone, stream }, seq, shard, deleted, value })
    }
}

impl Change {
    /// Bytes that it takes in an answer, about.
    pub fn weight(&self) -> usize {
        64 + self.table.len() + self.key.len() + self.value.as_ref().map_or(0, Bytes::len)
    }
}

pub(crate) fn put_wish(out: &mut BytesMut, wish: &Wish) {
    put_option(out, wish.table.as_ref());
    out.put_u8(wish.zone.map_or(u8::MAX, |z| z.0));
    out.put_u8(u8::from(wish.values));
    out.put_u32_le(wish.wait_ms);
    out.put_u8(u8::from(wish.after.is_some()));
    put_tokens(out, wish.after.as_deref().unwrap_or_default());
}

pub(crate) fn get_wish(m: &mut Bytes) -> Result<Wish, Malformed> {
    let (table, zone) = (get_option(m)?, Some(get_u8(m)?).filter(|z| *z != u8::MAX).map(Zone));
    let (values, wait_ms) = (get_u8(m)? != 0, get_u32(m)?);
    let given = get_u8(m)? != 0;
    let after = get_tokens(m)?;
    Ok(Wish { after: given.then_some(after), table, zone, values, wait_ms })
}

pub(crate) fn put_told(out: &mut BytesMut, told: &Told) {
    put_tokens(out, &told.after);
    out.put_u32_le(told.changes.len() as u32);
    for c in &told.changes {
        put_bytes(out, &c.table);
        put_bytes(out, &c.key);
        put_version(out, &c.version);
        out.put_u64_le(c.seq);
        out.put_u16_le(c.shard.0);
        out.put_u8(u8::from(c.deleted));
        put_option(out, c.value.as_ref());
    }
}

pub(crate) fn get_told(m: &mut Bytes) -> Result<Told, Malformed> {
    let after = get_tokens(m)?;
    let count = get_u32(m)?;
    let mut changes = vec![];
    for _ in 0..count {
        let (table, key, version, seq) = (get_bytes(m)?, get_bytes(m)?, get_version(m)?, get_u64(m)?);
        let shard = Shard(m.try_get_u16_le().map_err(|_| Malformed::Fields)?);
        let (deleted, value) = (get_u8(m)? != 0, get_option(m)?);
        changes.push(Change { table, key, version, seq, shard, deleted, value });
    }
    Ok(Told { changes, after })
}

fn put_tokens(out: &mut BytesMut, tokens: &[Token]) {
    out.put_u16_le(tokens.len() as u16);
    for t in tokens {
        out.put_u8(t.zone.0);
        out.put_u32_le(t.stream);
        out.put_u64_le(t.seq);
    }
}

fn get_tokens(m: &mut Bytes) -> Result<Vec<Token>, Malformed> {
    let count = m.try_get_u16_le().map_err(|_| Malformed::Fields)?;
    let one = |m: &mut Bytes| Ok(Token { zone: Zone(get_u8(m)?), stream: get_u32(m)?, seq: get_u64(m)? });
    (0..count).map(|_| one(m)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hlc;
    use shardmap::OwnerEpoch;

    fn record(op: Op, table: &'static str) -> Record {
        let (shard, owner_epoch, hlc) = (Shard(4), OwnerEpoch(2), Hlc(9));
        Record { op, transaction: 0, shard, owner_epoch, hlc, table: table.into(), key: "k".into(), value: "v".into() }
    }

    #[test]
    fn rows_are_told_and_what_is_the_logs_own_is_not() {
        let wish = |table: Option<&'static str>, values| Wish {
            after: None,
            table: table.map(Bytes::from),
            zone: None,
            values,
            wait_ms: 0,
        };
        let told =
            |wish: &Wish, op, table| wish.change(Zone(1), 3, 7, &record(op, table)).map(|c| (c.deleted, c.value));
        assert_eq!(told(&wish(None, true), Op::Put, "t"), Some((false, Some("v".into()))));
        assert_eq!(told(&wish(None, false), Op::Put, "t"), Some((false, None)));
        assert_eq!(told(&wish(Some("t"), true), Op::Delete, "t"), Some((true, None)));
        assert_eq!(told(&wish(Some("u"), true), Op::Put, "t"), None);
        for op in [Op::Answer, Op::Fence, Op::Marker, Op::Gap] {
            assert_eq!(told(&wish(None, true), op, "t"), None, "{op:?}");
        }
        assert_eq!(told(&wish(None, true), Op::Delete, ".answers"), None);
        let change = wish(None, true).change(Zone(1), 3, 7, &record(Op::Put, "t")).unwrap();
        assert_eq!((change.version.zone, change.version.stream, change.seq, change.shard), (Zone(1), 3, 7, Shard(4)));
    }
}
