//! Several writes of one shard that are made together: their conditions, their idempotency key, and the first answer to that.
//!
//! ```text
//! Commit: steps ──▶ one transaction of the log: put, delete, .., answer     answer: a row of `ANSWERS`, replicated as any other
//! ```
//!
//! A row of `ANSWERS` has the key `u16 shard, big endian | idempotency key` and this value, little endian: `u8 1 | 16 bytes digest of
//! the request | u16 rows | for each: u64 HLC, u16 length, key`. Its place in the log gives the rows' places: they are right before
//! it, in their order.

use crate::port::{Malformed, get_bytes, get_option, get_u8, get_u32, get_u64, put_bytes, put_option};
use crate::{Hlc, Version};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::{MapEpoch, OwnerEpoch, Shard, Zone};
use std::fmt;

/// The table of first answers; no client can name it.
pub const ANSWERS: &[u8] = b".answers";
/// Steps of one commit.
pub const STEPS_MAX: usize = 128;
/// Bytes of an idempotency key.
pub const ONCE_KEY_MAX: usize = 255;
/// A first answer is kept for this long at least, by the clock of its stream.
pub const ANSWER_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// Writes of one shard that are made together or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// The shard that the router found.
    pub shard: Shard,
    /// The map it found it in.
    pub map_epoch: MapEpoch,
    /// What is to be written; no row twice.
    pub steps: Vec<Step>,
    /// Do it once, however often it is asked.
    pub once: Option<Once>,
    /// Acknowledge when one more zone has it durable, or say after so many milliseconds that none has.
    pub remote_ms: Option<u32>,
}

/// One write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// The table.
    pub table: Bytes,
    /// The row; `None`: mint an id.
    pub key: Option<Bytes>,
    /// The row's value; `None`: delete it.
    pub value: Option<Bytes>,
    /// What must hold of the row as it is.
    pub only: Condition,
}

/// What must hold of a row before it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is none: `If-None-Match: *`.
    Absent,
    /// There is one: `If-Match: *`.
    Present,
    /// It has this version: `If-Match: "v"`.
    At(Version),
}

/// An idempotency key, and what it was sent with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Once {
    /// The key; the same key in another shard is another key.
    pub key: Bytes,
    /// Of method, path and body.
    pub digest: [u8; 16],
}

/// A row as a condition sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// There is none, and never was.
    Absent,
    /// It is there.
    Row(Version),
    /// It was deleted.
    Gone(Version),
}

/// What was written: an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Each step's row, in their order.
    pub rows: Vec<Made>,
    /// It was done before, for the same idempotency key.
    pub replayed: bool,
    /// Who has it durable.
    pub held: Held,
}

/// A row that was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// Its key, minted or as asked.
    pub key: Bytes,
    /// Its version.
    pub version: Version,
    /// Where it is in the zone's stream.
    pub seq: u64,
}

/// Who has a commit durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    /// This zone; more was not asked for.
    Here,
    /// One more zone.
    Elsewhere,
    /// This zone alone, as far as is known after the wait; and how each link stands.
    Late(Bytes),
    /// This zone, whose lease of the global service has ended before it could say so: whether the write stands is not known, since
    /// another zone may have taken over without it.
    Unleased,
}

/// A first answer, as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct First {
    /// Of the request that it answered.
    pub digest: [u8; 16],
    /// Each row's key and HLC.
    pub rows: Vec<(Bytes, Hlc)>,
}

impl Seen {
    /// The version, if there is a row.
    pub fn version(self) -> Option<Version> {
        match self {
            Seen::Row(version) => Some(version),
            Seen::Absent | Seen::Gone(_) => None,
        }
    }

    /// The ownership under which it was written or deleted.
    pub fn owner_epoch(self) -> Option<OwnerEpoch> {
        match self {
            Seen::Row(v) | Seen::Gone(v) => Some(v.owner_epoch),
            Seen::Absent => None,
        }
    }
}

impl Condition {
    /// Does it hold of this row?
    pub fn holds(self, seen: Seen) -> bool {
        match self {
            Condition::Any => true,
            Condition::Absent => seen.version().is_none(),
            Condition::Present => seen.version().is_some(),
            Condition::At(version) => seen.version() == Some(version),
        }
    }
}

/// Does another zone, which has everything up to `durable_seq` durable and goes by the map `its_map`, confirm what was written at
/// `seq`? Not by a map that this zone does not have yet: the shard may be another's there, and the write in doubt.
pub fn confirms(durable_seq: u64, its_map: Option<MapEpoch>, seq: u64, map: MapEpoch) -> bool {
    durable_seq >= seq && its_map.is_some_and(|its| its <= map)
}

/// The key of a first answer in `ANSWERS`.
pub fn answer_key(shard: Shard, once: &Bytes) -> Bytes {
    let mut key = BytesMut::with_capacity(2 + once.len());
    key.put_u16(shard.0);
    key.put_slice(once);
    key.freeze()
}

impl First {
    /// The bytes that a row of `ANSWERS` holds.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(1);
        out.put_slice(&self.digest);
        out.put_u16_le(self.rows.len() as u16);
        for (key, hlc) in &self.rows {
            out.put_u64_le(hlc.0);
            out.put_u16_le(key.len() as u16);
            out.put_slice(key);
        }
        out.freeze()
    }

    /// Reads what `to_bytes` wrote; `None`: it is something else.
    pub fn of(mut from: Bytes) -> Option<First> {
        let from = &mut from;
        if from.try_get_u8().ok()? != 1 {
            return None;
        }
        let mut digest = [0; 16];
        from.try_copy_to_slice(&mut digest).ok()?;
        let count = usize::from(from.try_get_u16_le().ok()?);
        if count > STEPS_MAX {
            return None;
        }
        let mut rows = Vec::with_capacity(count);
        for _ in 0..count {
            let (hlc, len) = (Hlc(from.try_get_u64_le().ok()?), usize::from(from.try_get_u16_le().ok()?));
            if from.len() < len {
                return None;
            }
            rows.push((from.split_to(len), hlc));
        }
        from.is_empty().then_some(First { digest, rows })
    }

    /// What it said, by its own version and place.
    pub fn told(&self, version: Version, seq: u64) -> Vec<Made> {
        let first = seq.saturating_sub(self.rows.len() as u64);
        let each = self.rows.iter().zip(first..);
        each.map(|((key, hlc), seq)| Made { key: key.clone(), version: Version { hlc: *hlc, ..version }, seq })
            .collect()
    }
}

/// A place in a stream: what was written there, and all before it, is applied where it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// The zone that wrote.
    pub zone: Zone,
    /// Its stream.
    pub stream: u32,
    /// The place.
    pub seq: u64,
}

impl Token {
    /// `zone.stream.seq`, as it is shown; anything else is `None`.
    pub fn parse(text: &[u8]) -> Option<Token> {
        let [zone, stream, seq] = numbers(text)?;
        Some(Token { zone: Zone(zone.try_into().ok()?), stream: stream.try_into().ok()?, seq })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.zone.0, self.stream, self.seq)
    }
}

/// `owner epoch.hlc.zone.stream`: stable, and opaque to whoever holds it.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.owner_epoch.0, self.hlc.0, self.zone.0, self.stream)
    }
}

impl Version {
    /// Reads what is shown; anything else, other spellings of the same numbers too, is `None`.
    pub fn parse(text: &[u8]) -> Option<Version> {
        let [owner_epoch, hlc, zone, stream] = numbers(text)?;
        Some(Version {
            owner_epoch: OwnerEpoch(owner_epoch),
            hlc: Hlc(hlc),
            zone: Zone(zone.try_into().ok()?),
            stream: stream.try_into().ok()?,
        })
    }
}

/// `N` whole numbers with points between them.
fn numbers<const N: usize>(text: &[u8]) -> Option<[u64; N]> {
    let mut all = [0; N];
    let mut parts = text.split(|b| *b == b'.');
    for slot in &mut all {
        let part = parts.next().filter(|p| (1..=20).contains(&p.len()) && (p.len() == 1 || p[0] != b'0'))?;
        *slot = part.iter().try_fold(0u64, |n, b| {
            let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
            n.checked_mul(10)?.checked_add(digit)
        })?;
    }
    parts.next().is_none().then_some(all)
}

// ---- on the port ----------------------------------------------------------------------------------------------------

pub(crate) fn put_commit(out: &mut BytesMut, commit: &Commit) {
    out.put_u32_le(commit.remote_ms.unwrap_or(u32::MAX));
    put_option(out, commit.once.as_ref().map(|o| &o.key));
    out.put_slice(&commit.once.as_ref().map_or([0; 16], |o| o.digest));
    out.put_u16_le(commit.steps.len() as u16);
    for step in &commit.steps {
        put_bytes(out, &step.table);
        put_option(out, step.key.as_ref());
        put_option(out, step.value.as_ref());
        match step.only {
            Condition::Any => out.put_u8(0),
            Condition::Absent => out.put_u8(1),
            Condition::Present => out.put_u8(2),
            Condition::At(version) => {
                out.put_u8(3);
                put_version(out, &version);
            }
        }
    }
}

pub(crate) fn get_commit(shard: Shard, map_epoch: MapEpoch, m: &mut Bytes) -> Result<Commit, Malformed> {
    let remote_ms = Some(get_u32(m)?).filter(|ms| *ms != u32::MAX);
    let (key, mut digest) = (get_option(m)?, [0; 16]);
    m.try_copy_to_slice(&mut digest).map_err(|_| Malformed::Fields)?;
    let count = usize::from(m.try_get_u16_le().map_err(|_| Malformed::Fields)?);
    let mut steps = Vec::with_capacity(count.min(STEPS_MAX));
    for _ in 0..count {
        let (table, key, value) = (get_bytes(m)?, get_option(m)?, get_option(m)?);
        let only = match get_u8(m)? {
            0 => Condition::Any,
            1 => Condition::Absent,
            2 => Condition::Present,
            3 => Condition::At(get_version(m)?),
            _ => return Err(Malformed::Fields),
        };
        steps.push(Step { table, key, value, only });
    }
    Ok(Commit { shard, map_epoch, steps, once: key.map(|key| Once { key, digest }), remote_ms })
}

pub(crate) fn put_committed(out: &mut BytesMut, done: &Committed) {
    out.put_u8(u8::from(done.replayed));
    match &done.held {
        Held::Here => out.put_u8(0),
        Held::Elsewhere => out.put_u8(1),
        Held::Late(links) => {
            out.put_u8(2);
            put_bytes(out, links);
        }
        Held::Unleased => out.put_u8(3),
    }
    out.put_u16_le(done.rows.len() as u16);
    for row in &done.rows {
        put_version(out, &row.version);
        out.put_u64_le(row.seq);
        put_bytes(out, &row.key);
    }
}

pub(crate) fn get_committed(m: &mut Bytes) -> Result<Committed, Malformed> {
    let replayed = get_u8(m)? != 0;
    let held = match get_u8(m)? {
        0 => Held::Here,
        1 => Held::Elsewhere,
        2 => Held::Late(get_bytes(m)?),
        3 => Held::Unleased,
        _ => return Err(Malformed::Fields),
    };
    let count = usize::from(m.try_get_u16_le().map_err(|_| Malformed::Fields)?);
    let mut rows = Vec::with_capacity(count.min(STEPS_MAX));
    for _ in 0..count {
        let (version, seq) = (get_version(m)?, get_u64(m)?);
        rows.push(Made { key: get_bytes(m)?, version, seq });
    }
    Ok(Committed { rows, replayed, held })
}

pub(crate) fn put_version(out: &mut BytesMut, v: &Version) {
    out.put_u64_le(v.owner_epoch.0);
    out.put_u64_le(v.hlc.0);
    out.put_u8(v.zone.0);
    out.put_u32_le(v.stream);
}

pub(crate) fn get_version(m: &mut Bytes) -> Result<Version, Malformed> {
    Ok(Version {
        owner_epoch: OwnerEpoch(get_u64(m)?),
        hlc: Hlc(get_u64(m)?),
        zone: Zone(get_u8(m)?),
        stream: get_u32(m)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Version = Version { owner_epoch: OwnerEpoch(7), hlc: Hlc(u64::MAX), zone: Zone(3), stream: 2 };

    #[test]
    fn versions_and_tokens_are_read_as_they_are_shown_and_in_no_other_spelling() {
        assert_eq!(V.to_string(), "7.18446744073709551615.3.2");
        assert_eq!(Version::parse(V.to_string().as_bytes()), Some(V));
        let token = Token { zone: Zone(1), stream: 3, seq: 99 };
        assert_eq!(Token::parse(token.to_string().as_bytes()), Some(token));
        for bad in
            ["", "1", "1.2", "1.2.3.4", "1.2.x", "01.2.3", "1..3", "256.2.3", "1.2.18446744073709551616", "1.2.+3"]
        {
            assert_eq!(Token::parse(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["1.2.3", "1.2.3.4.5", "1.2.300.4", "1.2.3.4294967296", "*", "1.2.3.", ".1.2.3"] {
            assert_eq!(Version::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn an_acknowledgement_by_a_newer_map_does_not_count_until_this_zone_has_that_map() {
        let (one, two) = (MapEpoch(1), MapEpoch(2));
        assert!(confirms(9, Some(one), 9, one) && confirms(9, Some(one), 9, two) && confirms(9, Some(two), 9, two));
        assert!(!confirms(9, Some(two), 9, one), "a map that is not known here");
        assert!(!confirms(8, Some(one), 9, one), "not durable there");
        assert!(!confirms(9, None, 9, one), "the link is down: by which map it goes now is not known");
    }

    #[test]
    fn a_deleted_row_is_absent_to_every_condition() {
        for (only, absent, there, gone) in [
            (Condition::Any, true, true, true),
            (Condition::Absent, true, false, true),
            (Condition::Present, false, true, false),
            (Condition::At(V), false, true, false),
            (Condition::At(Version { stream: 9, ..V }), false, false, false),
        ] {
            let held = [Seen::Absent, Seen::Row(V), Seen::Gone(V)].map(|seen| only.holds(seen));
            assert_eq!(held, [absent, there, gone], "{only:?}");
        }
    }

    #[test]
    fn a_first_answer_is_read_as_it_was_stored_and_says_where_its_rows_are() {
        let first = First { digest: [9; 16], rows: vec![("a".into(), Hlc(5)), ("bb".into(), Hlc(6))] };
        let bytes = first.to_bytes();
        assert_eq!(First::of(bytes.clone()), Some(first.clone()));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "0109090909090909090909090909090909020005000000000000000100610600000000000000020062 62".replace(' ', "")
        );
        let told: Vec<_> = first.told(V, 12).into_iter().map(|m| (m.seq, m.version.hlc, m.version.zone)).collect();
        assert_eq!(told, [(10, Hlc(5), Zone(3)), (11, Hlc(6), Zone(3))]);
        for len in 0..bytes.len() {
            assert_eq!(First::of(bytes.slice(..len)), None, "{len} bytes");
        }
        assert_eq!(First::of([&bytes[..], b"x"].concat().into()), None);
    }
}
