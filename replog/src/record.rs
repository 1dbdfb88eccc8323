//! One change: what a batch is made of, and its bytes.
//!
//! ```text
//! u8 op | transaction | shard | owner epoch | HLC - the batch's first HLC | table | key | value
//! ```
//!
//! Numbers are varints in their one shortest form; strings are a varint length and that many bytes.

use crate::Hlc;
use crate::limits::{KEY_MAX, TABLE_MAX, VALUE_MAX};
use bytes::{BufMut, Bytes};
use shardmap::{OwnerEpoch, Shard};

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Sets a row.
    Put,
    /// Deletes a row.
    Delete,
    /// "This zone writes this shard no more below `owner_epoch`"; the value is the writer's applied positions.
    Fence,
    /// Nothing: carries a batch header (local durable position, clock) forward.
    Marker,
    /// A range that an operator gave up.
    Gap,
    /// The first answer to an idempotency key.
    Answer,
}

/// A record; its seq is its place in its batch, added to the batch's first seq.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it does.
    pub op: Op,
    /// Number of its transaction within the batch: records with the same number apply together or not at all.
    pub transaction: u32,
    /// Its shard.
    pub shard: Shard,
    /// The ownership under which it was written; of a FENCE: its epoch.
    pub owner_epoch: OwnerEpoch,
    /// When the writer's stream wrote it.
    pub hlc: Hlc,
    /// The row's table.
    pub table: Bytes,
    /// The row's key.
    pub key: Bytes,
    /// The row's value.
    pub value: Bytes,
}

/// Why bytes are not a record, or a record cannot be bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// An op that this version does not know: never skipped.
    #[error("unknown op {0}")]
    Op(u8),
    /// The record goes on where its batch ends.
    #[error("the record is cut off")]
    Short,
    /// A number that its field cannot hold.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A string longer than its field allows.
    #[error("{what} of {len} bytes, at most {max}")]
    Long {
        /// The field.
        what: &'static str,
        /// What was seen.
        len: u64,
        /// What is allowed.
        max: usize,
    },
}

impl Op {
    /// Its number on disk and on the wire.
    pub fn code(self) -> u8 {
        match self {
            Op::Put => 1,
            Op::Delete => 2,
            Op::Fence => 3,
            Op::Marker => 4,
            Op::Gap => 5,
            Op::Answer => 6,
        }
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Delete => "delete",
            Op::Fence => "fence",
            Op::Marker => "marker",
            Op::Gap => "gap",
            Op::Answer => "answer",
        }
    }

    /// The op of a number.
    pub fn from_code(code: u8) -> Result<Op, Malformed> {
        Ok(match code {
            1 => Op::Put,
            2 => Op::Delete,
            3 => Op::Fence,
            4 => Op::Marker,
            5 => Op::Gap,
            6 => Op::Answer,
            other => return Err(Malformed::Op(other)),
        })
    }
}

impl Record {
    /// A record of nothing, which carries a clock forward.
    pub fn marker(hlc: Hlc) -> Record {
        let (table, key, value) = (Bytes::new(), Bytes::new(), Bytes::new());
        Record { op: Op::Marker, transaction: 0, shard: Shard(0), owner_epoch: OwnerEpoch(0), hlc, table, key, value }
    }

    /// Is each string as long as its field allows?
    pub fn check(&self) -> Result<(), Malformed> {
        long("table", self.table.len() as u64, TABLE_MAX)?;
        long("key", self.key.len() as u64, KEY_MAX)?;
        long("value", self.value.len() as u64, VALUE_MAX)
    }

    /// Appends the record to a batch whose first HLC is `base`.
    ///
    /// Precondition: `check` is fine and `base <= self.hlc`.
    pub fn put(&self, out: &mut impl BufMut, base: Hlc) {
        out.put_u8(self.op.code());
        put_varint(out, self.transaction.into());
        put_varint(out, self.shard.0.into());
        put_varint(out, self.owner_epoch.0);
        put_varint(out, self.hlc.0 - base.0);
        for field in [&self.table, &self.key, &self.value] {
            put_varint(out, field.len() as u64);
            out.put_slice(field);
        }
    }

    /// Bytes that `put` takes, at most: exact but for the HLC delta, which counts as its longest.
    pub fn len_max(&self) -> usize {
        self.len_with(10)
    }

    /// Bytes that `put` takes.
    pub fn len(&self, base: Hlc) -> usize {
        self.len_with(varint_len(self.hlc.0 - base.0))
    }

    fn len_with(&self, delta_len: usize) -> usize {
        let strings = [&self.table, &self.key, &self.value];
        let numbers = [self.transaction.into(), self.shard.0.into(), self.owner_epoch.0];
        let strings: usize = strings.iter().map(|s| varint_len(s.len() as u64) + s.len()).sum();
        1 + numbers.into_iter().map(varint_len).sum::<usize>() + delta_len + strings
    }

    /// Takes one record off the front of `from`; its strings share the memory of `from`.
    pub fn take(from: &mut Bytes, base: Hlc) -> Result<Record, Malformed> {
        let whole = from.clone();
        let mut rest = &whole[..];
        let view = View::take(&mut rest, base)?;
        let own = |field: &[u8]| whole.slice_ref(field);
        let View { op, transaction, shard, owner_epoch, hlc, .. } = view;
        let (table, key, value) = (own(view.table), own(view.key), own(view.value));
        *from = whole.slice(whole.len() - rest.len()..);
        Ok(Record { op, transaction, shard, owner_epoch, hlc, table, key, value })
    }
}

/// A record that lies in a batch's bytes.
pub(crate) struct View<'a> {
    pub op: Op,
    pub transaction: u32,
    pub shard: Shard,
    pub owner_epoch: OwnerEpoch,
    pub hlc: Hlc,
    pub table: &'a [u8],
    pub key: &'a [u8],
    pub value: &'a [u8],
}

impl<'a> View<'a> {
    /// Takes one record off the front of `from`.
    pub fn take(from: &mut &'a [u8], base: Hlc) -> Result<View<'a>, Malformed> {
        let op = Op::from_code(take_byte(from)?)?;
        let transaction = narrow(take_varint(from)?, "transaction")?;
        let shard = Shard(narrow(take_varint(from)?, "shard")?);
        let owner_epoch = OwnerEpoch(take_varint(from)?);
        let hlc = Hlc(base.0.checked_add(take_varint(from)?).ok_or(Malformed::Range("HLC"))?);
        let table = take_string(from, "table", TABLE_MAX)?;
        let key = take_string(from, "key", KEY_MAX)?;
        let value = take_string(from, "value", VALUE_MAX)?;
        Ok(View { op, transaction, shard, owner_epoch, hlc, table, key, value })
    }
}

fn long(what: &'static str, len: u64, max: usize) -> Result<(), Malformed> {
    if len > max as u64 { Err(Malformed::Long { what, len, max }) } else { Ok(()) }
}

fn narrow<T: TryFrom<u64>>(n: u64, what: &'static str) -> Result<T, Malformed> {
    T::try_from(n).map_err(|_| Malformed::Range(what))
}

fn take_string<'a>(from: &mut &'a [u8], what: &'static str, max: usize) -> Result<&'a [u8], Malformed> {
    let len = take_varint(from)?;
    long(what, len, max)?;
    let (taken, rest) = from.split_at_checked(len as usize).ok_or(Malformed::Short)?;
    *from = rest;
    Ok(taken)
}

fn take_byte(from: &mut &[u8]) -> Result<u8, Malformed> {
    let (first, rest) = from.split_first().ok_or(Malformed::Short)?;
    *from = rest;
    Ok(*first)
}

fn varint_len(n: u64) -> usize {
    (64 - (n | 1).leading_zeros() as usize).div_ceil(7)
}

/// Seven bits to a byte, low bits first, the top bit set on all but the last.
fn put_varint(out: &mut impl BufMut, mut n: u64) {
    while n >= 0x80 {
        out.put_u8(n as u8 | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

fn take_varint(from: &mut &[u8]) -> Result<u64, Malformed> {
    let mut n = 0u64;
    for at in 0..10 {
        let byte = take_byte(from)?;
        // The tenth byte holds the top bit alone; a last byte of zero would be a second spelling of the same number.
        if at == 9 && byte > 1 || at > 0 && byte == 0 {
            return Err(Malformed::Range("a number"));
        }
        n |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(Malformed::Range("a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn order() -> Record {
        Record {
            op: Op::Put,
            transaction: 3,
            shard: Shard(300),
            owner_epoch: OwnerEpoch(7),
            hlc: Hlc::new(1_700_000_000_000, 2),
            table: Bytes::from_static(b"orders"),
            key: Bytes::from_static(b"42"),
            value: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_frozen() {
        let mut out = BytesMut::new();
        order().put(&mut out, Hlc::new(1_700_000_000_000, 0));
        assert_eq!(out[..], *b"\x01\x03\xac\x02\x07\x02\x06orders\x0242\x02{}");
    }

    #[test]
    fn what_was_put_is_taken_and_no_byte_more() {
        for transaction in [0, 127, 128, u32::MAX] {
            let record = Record { transaction, hlc: Hlc(u64::MAX), ..order() };
            let mut out = BytesMut::new();
            record.put(&mut out, Hlc(0));
            assert_eq!(out.len(), record.len_max());
            let mut from = out.freeze();
            assert_eq!(Record::take(&mut from, Hlc(0)), Ok(record));
            assert!(from.is_empty());
        }
    }

    #[test]
    fn a_record_cut_off_anywhere_is_refused() {
        let mut out = BytesMut::new();
        order().put(&mut out, Hlc(0));
        let whole = out.freeze();
        for len in 0..whole.len() {
            assert_eq!(Record::take(&mut whole.slice(..len), Hlc(0)), Err(Malformed::Short), "{len}");
        }
    }

    #[test]
    fn a_hostile_length_is_refused_before_it_is_believed() {
        let mut from = Bytes::from_static(b"\x01\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        assert_eq!(Record::take(&mut from, Hlc(0)), Err(Malformed::Long { what: "table", len: u64::MAX, max: 128 }));
        let mut from = Bytes::from_static(b"\x01\x80\x00");
        assert_eq!(Record::take(&mut from, Hlc(0)), Err(Malformed::Range("a number")));
        let mut from = Bytes::from_static(b"\x07");
        assert_eq!(Record::take(&mut from, Hlc(0)), Err(Malformed::Op(7)));
    }
}
