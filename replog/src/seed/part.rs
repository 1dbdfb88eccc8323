//! The bytes of a snapshot's parts.
//!
//! ```text
//! u8 kind | what the kind holds, once (head, end, refusal) or again and again (rows, entries, FENCEs) to the end of the part
//! ```
//!
//! Little endian. FORMAT.md has the fields. Strings are bounded before they are believed, numbers that SQLite compares are below 2^63.

use super::Fault;
use crate::limits::{KEY_MAX, TABLE_MAX, VALUE_MAX};
use crate::owners::{get_positions, put_positions};
use crate::store::{Entry, Fence, Row, Scan};
use crate::{Hlc, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::{MapEpoch, OwnerEpoch, Shard, ZONES, Zone};

/// The longest part: one row with the longest value, or a good many shorter ones.
pub const PART_MAX: usize = 1024 * 1024 + 4096;
/// The version of the parts.
const VERSION: u16 = 2;
/// A refusal is cut to this length.
const REFUSED_MAX: usize = 1024;
/// A zone has fences of so many shards at most: shards are numbered by 16 bits.
pub(super) const FENCES_MAX: usize = 1 << 16;
/// The fixed fields of a row.
pub(super) const ROW_MIN: usize = 1 + 1 + 2 + 4 + 8 + 8 + 8 + 1 + 2 + 4;
/// No FENCE is longer.
pub(super) const MOST: usize = 2048;
const _: () = assert!(MOST > 32 + 9 * ZONES);

pub(super) const HEAD: u8 = 1;
pub(super) const ROWS: u8 = 2;
pub(super) const ENTRIES: u8 = 3;
pub(super) const FENCES: u8 = 4;
pub(super) const END: u8 = 5;
const REFUSED: u8 = 6;

/// Which log a snapshot is of, and up to where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// The log's incarnation.
    pub log_uuid: u128,
    /// Everything up to this seq, the end of a batch, is in the snapshot; the mirror begins behind it.
    pub seq: u64,
    /// The chain at that seq.
    pub chain: u32,
    /// The writer's term.
    pub term: u64,
    /// The map that the origin's store went by.
    pub map_epoch: MapEpoch,
    /// What the origin itself could not look through any more for a cut: its ledger may lack some of it.
    pub unseen: Option<Scan>,
}

/// What must have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct End {
    /// Rows.
    pub rows: u64,
    /// Entries of the ledger.
    pub entries: u64,
    /// FENCEs.
    pub fences: u64,
    /// BLAKE3 over each earlier part, a `u64` of its length before it.
    pub digest: [u8; 32],
}

/// One part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// The first.
    Head(Head),
    /// Rows: table, key, row.
    Rows(Vec<(Bytes, Bytes, Row)>),
    /// Entries of the ledger.
    Entries(Vec<Entry>),
    /// FENCEs of the origin.
    Fences(Vec<(Shard, Fence)>),
    /// The last.
    End(End),
    /// There is none, or no more of it.
    Refused(String),
}

impl Part {
    /// Reads a part; its strings share the memory of `from`.
    pub fn read(mut from: Bytes) -> Result<Part, Fault> {
        if from.len() > PART_MAX {
            return Err(Fault::Malformed("too long"));
        }
        let from = &mut from;
        let part = match get(from, 1)?.get_u8() {
            HEAD => Part::Head(head(from)?),
            ROWS => Part::Rows(all(from, row)?),
            ENTRIES => Part::Entries(all(from, entry)?),
            FENCES => Part::Fences(all(from, fence)?),
            END => {
                let mut f = get(from, 56)?;
                let (rows, entries, fences) = (f.get_u64_le(), f.get_u64_le(), f.get_u64_le());
                let mut digest = [0; 32];
                f.copy_to_slice(&mut digest);
                Part::End(End { rows, entries, fences, digest })
            }
            REFUSED => {
                let text = from.split_to(from.len().min(REFUSED_MAX));
                Part::Refused(String::from_utf8_lossy(&text).into_owned())
            }
            _ => return Err(Fault::Malformed("an unknown kind")),
        };
        if from.is_empty() { Ok(part) } else { Err(Fault::Malformed("bytes behind its fields")) }
    }
}

pub(super) fn put_head(out: &mut BytesMut, h: &Head) {
    out.put_u8(HEAD);
    out.put_u16_le(VERSION);
    out.put_u128_le(h.log_uuid);
    out.put_u64_le(h.seq);
    out.put_u32_le(h.chain);
    out.put_u64_le(h.term);
    out.put_u64_le(h.map_epoch.0);
    let unseen = h.unseen.unwrap_or(Scan { from: 0, to: 0 });
    out.put_u64_le(unseen.from);
    out.put_u64_le(unseen.to);
}

fn head(from: &mut Bytes) -> Result<Head, Fault> {
    if get(from, 2)?.get_u16_le() != VERSION {
        return Err(Fault::Malformed("of another version: run the same version on both sides"));
    }
    let mut f = get(from, 60)?;
    let (log_uuid, seq, chain) = (f.get_u128_le(), f.get_u64_le(), f.get_u32_le());
    let (term, map_epoch) = (f.get_u64_le(), MapEpoch(f.get_u64_le()));
    let (first, last) = (f.get_u64_le(), f.get_u64_le());
    let unseen = (last > 0).then_some(Scan { from: first, to: last });
    let fits = unseen.is_none_or(|s| 0 < s.from && s.from <= s.to && s.to <= seq);
    if seq == 0 || seq > i64::MAX as u64 || !fits || unseen.is_none() && first > 0 {
        return Err(Fault::Malformed("positions that cannot be"));
    }
    Ok(Head { log_uuid, seq, chain, term, map_epoch, unseen })
}

pub(super) fn put_row(out: &mut BytesMut, table: &[u8], key: &[u8], row: &Row) {
    let v = &row.version;
    out.put_u8(row.deleted.into());
    out.put_u8(v.zone.0);
    out.put_u16_le(row.shard.0);
    out.put_u32_le(v.stream);
    out.put_u64_le(v.owner_epoch.0);
    out.put_u64_le(v.hlc.0);
    out.put_u64_le(row.seq);
    put_name(out, table, key);
    out.put_u32_le(row.value.len() as u32);
    out.put_slice(&row.value);
}

fn row(from: &mut Bytes) -> Result<(Bytes, Bytes, Row), Fault> {
    let mut f = get(from, 32)?;
    let (deleted, zone, shard, stream) = (f.get_u8(), f.get_u8(), Shard(f.get_u16_le()), f.get_u32_le());
    let (owner_epoch, hlc, seq) = (f.get_u64_le(), f.get_u64_le(), f.get_u64_le());
    if deleted > 1 || [owner_epoch, hlc, seq].iter().any(|n| *n > i64::MAX as u64) {
        return Err(Fault::Malformed("a row's numbers"));
    }
    let (table, key) = name(from)?;
    let value = string(from, 4, VALUE_MAX)?;
    let version = Version { owner_epoch: OwnerEpoch(owner_epoch), hlc: Hlc(hlc), zone: zone_of(zone)?, stream };
    Ok((table, key, Row { version, seq, shard, deleted: deleted == 1, value }))
}

fn entry(from: &mut Bytes) -> Result<Entry, Fault> {
    row(from).map(|(table, key, row)| Entry { table, key, row })
}

pub(super) fn put_fence(out: &mut BytesMut, shard: Shard, fence: &Fence) {
    let positions = put_positions(&fence.positions);
    out.put_u16_le(shard.0);
    out.put_u64_le(fence.epoch.0);
    out.put_u64_le(fence.seq);
    out.put_u8(positions.len() as u8);
    out.put_slice(&positions);
}

fn fence(from: &mut Bytes) -> Result<(Shard, Fence), Fault> {
    let mut f = get(from, 18)?;
    let (shard, epoch, seq) = (Shard(f.get_u16_le()), OwnerEpoch(f.get_u64_le()), f.get_u64_le());
    let positions = get_positions(&string(from, 1, 1 + 9 * ZONES)?).ok_or(Fault::Malformed("a FENCE's positions"))?;
    Ok((shard, Fence { epoch, seq, positions }))
}

pub(super) fn put_end(out: &mut BytesMut, end: &End) {
    out.put_u8(END);
    [end.rows, end.entries, end.fences].iter().for_each(|n| out.put_u64_le(*n));
    out.put_slice(&end.digest);
}

pub(super) fn put_refused(out: &mut BytesMut, why: &str) {
    out.put_u8(REFUSED);
    out.put_slice(&why.as_bytes()[..why.len().min(REFUSED_MAX)]);
}

fn put_name(out: &mut BytesMut, table: &[u8], key: &[u8]) {
    out.put_u8(table.len() as u8);
    out.put_slice(table);
    out.put_u16_le(key.len() as u16);
    out.put_slice(key);
}

fn name(from: &mut Bytes) -> Result<(Bytes, Bytes), Fault> {
    Ok((string(from, 1, TABLE_MAX)?, string(from, 2, KEY_MAX)?))
}

/// Bytes behind a length of `width` bytes.
fn string(from: &mut Bytes, width: usize, max: usize) -> Result<Bytes, Fault> {
    let len = get(from, width)?.get_uint_le(width) as usize;
    if len > max { Err(Fault::Malformed("a string that is too long")) } else { get(from, len) }
}

fn zone_of(zone: u8) -> Result<Zone, Fault> {
    if usize::from(zone) < ZONES { Ok(Zone(zone)) } else { Err(Fault::Malformed("a zone that cannot be")) }
}

fn get(from: &mut Bytes, len: usize) -> Result<Bytes, Fault> {
    if from.len() < len { Err(Fault::Malformed("fields beyond its end")) } else { Ok(from.split_to(len)) }
}

/// Everything that a part holds; an empty one says nothing, and nobody sends it.
fn all<T>(from: &mut Bytes, one: impl Fn(&mut Bytes) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    let mut list = Vec::new();
    while list.is_empty() || !from.is_empty() {
        list.push(one(from)?);
    }
    Ok(list)
}

/// The value of a `gap` record: which seqs of whose log this zone has not mirrored one by one, since a snapshot stood in for them.
pub fn put_gap(zone: Zone, log_uuid: u128, from: u64, to: u64) -> Bytes {
    Bytes::from(format!("zone={} log={log_uuid:032x} from={from} to={to}", zone.0))
}

/// Reads what `put_gap` wrote; `None` if it is anything else.
pub fn read_gap(value: &[u8]) -> Option<(Zone, u128, u64, u64)> {
    let mut words = std::str::from_utf8(value).ok()?.split(' ');
    let mut word = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
    let (zone, log) = (word("zone")?.parse().ok()?, u128::from_str_radix(word("log")?, 16).ok()?);
    let (from, to) = (word("from")?.parse().ok()?, word("to")?.parse().ok()?);
    words.next().is_none().then_some((Zone(zone), log, from, to))
}
