//! The port: what a router core and a log core say to each other over one Unix socket, many operations to a send.
//!
//! ```text
//! u32 length of what follows | u8 kind | u64 correlation | the kind's fields
//! ```
//!
//! Little endian; strings and bytes are `u32 length | bytes`. Each side writes whatever is ready in one go and reads
//! messages out of whatever arrived. Answers come in any order and carry the correlation number of their request.

use crate::Version;
use crate::changes::{Told, Wish, get_told, get_wish, put_told, put_wish};
use crate::commit::{
    Commit, Committed, Token, get_commit, get_committed, get_version, put_commit, put_committed, put_version,
};
use crate::stand::{Standing, get_standing, put_standing};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::{MapEpoch, Shard, Zone};

/// The longest message either side accepts: values of 1 MiB, and room for the fields of a commit with as many steps as there may be.
pub const MESSAGE_MAX: usize = 1024 * 1024 + 128 * 1024;

/// What a router core asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Append one write; answered when it is durable here.
    Write {
        /// The shard that the router found.
        shard: Shard,
        /// The map it found it in; a log with an older map waits for that one, bounded.
        map_epoch: MapEpoch,
        /// The table.
        table: Bytes,
        /// The row; `None`: mint an id.
        key: Option<Bytes>,
        /// The row's value; `None`: delete it.
        value: Option<Bytes>,
    },
    /// Read one row, not older than the last write that this log acknowledged.
    Read {
        /// The shard that the router found.
        shard: Shard,
        /// The map it found it in.
        map_epoch: MapEpoch,
        /// The table.
        table: Bytes,
        /// The row.
        key: Bytes,
        /// From this zone's copy, whoever owns the shard.
        local: bool,
    },
    /// Read one row, not older than a write that somebody tells of.
    ReadAfter {
        /// The shard that the router found.
        shard: Shard,
        /// The map it found it in.
        map_epoch: MapEpoch,
        /// The table.
        table: Bytes,
        /// The row.
        key: Bytes,
        /// From this zone's copy, whoever owns the shard.
        local: bool,
        /// Where that write is.
        after: Token,
        /// How long to wait until it is applied here.
        wait_ms: u32,
    },
    /// Tell what follows in the logs, as far as it is applied here.
    Changes(Wish),
    /// Tell how this zone stands to the shards of this core, when that is not as at revision `known` any more. Whoever asks has told its readers
    /// all up to there.
    Standing {
        /// What it has told; 0: nothing yet.
        known: u64,
        /// How long to wait for something else; 0: whoever asks does not listen from now on.
        wait_ms: u32,
    },
    /// Make several writes, or one under a condition; answered when it is durable here, or as it says.
    Commit(Commit),
}

impl Ask {
    /// The shard that it is about; of changes, one of the first stream that they are asked of; of standing, none.
    pub fn shard(&self) -> Shard {
        match self {
            Ask::Write { shard, .. } | Ask::Read { shard, .. } | Ask::ReadAfter { shard, .. } => *shard,
            Ask::Commit(commit) => commit.shard,
            Ask::Standing { .. } => Shard(0),
            Ask::Changes(wish) => Shard(wish.after.iter().flatten().next().map_or(0, |t| t.stream as u16)),
        }
    }
}

/// What a log core answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Durable here.
    Written {
        /// The row's key, minted or as asked.
        key: Bytes,
        /// Its version.
        version: Version,
        /// Where it is in the zone's stream.
        seq: u64,
    },
    /// The row.
    Row {
        /// Its version.
        version: Version,
        /// Its value.
        value: Bytes,
    },
    /// There is no such row.
    Absent,
    /// Nothing was done.
    Refused(Refused),
    /// A commit is durable.
    Committed(Committed),
    /// What follows in the logs.
    Changes(Told),
    /// How this zone stands to the shards of this core.
    Standing(Standing),
}

/// Why nothing was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// 421: this zone does not own the shard, or a FENCE of its own stands.
    NotOwner {
        /// The log's map.
        map_epoch: MapEpoch,
        /// The owner in it, if there is one.
        owner: Option<Zone>,
    },
    /// 503: the log has restarted and does not know yet what it owns.
    ReadOnly,
    /// 423: the row is in doubt until a lost zone returns.
    Locked,
    /// 503: the map that the router spoke of did not arrive in time.
    Behind {
        /// The log's map.
        map_epoch: MapEpoch,
    },
    /// 507: no room for a log record.
    Full,
    /// 503: too many appends wait.
    Busy,
    /// 400 or 413: what the client sent cannot be a record.
    Invalid(Bytes),
    /// 500: the log or the store failed.
    Failed(Bytes),
    /// 412: the row of this step is not as its condition says.
    Unmet {
        /// Which step.
        step: u16,
        /// The row's version; `None`: there is no such row.
        seen: Option<Version>,
    },
    /// 422: the idempotency key was used with another request.
    Reused,
    /// 501: no other zone is configured that could confirm a write.
    NoPeer,
    /// 504: the write that the read is to follow is not applied here yet.
    NotYet {
        /// The last of that zone's log that is.
        applied: u64,
    },
    /// 503: this zone owns the global service and has no lease of it now.
    Unleased {
        /// Its shard.
        shard: Shard,
        /// How long ago the last one ended, in milliseconds; `None`: there was none under this ownership since the log's start.
        ended_ms: Option<u64>,
    },
    /// 410: what follows this place is no longer kept.
    Forgotten {
        /// The place.
        after: Token,
        /// The first of that log that is kept.
        first: u64,
    },
}

/// A message that cannot be read: the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Longer than `MESSAGE_MAX`.
    #[error("a message of {0} bytes on the port, at most {MESSAGE_MAX}")]
    TooLong(usize),
    /// An unknown kind.
    #[error("unknown message kind {0} on the port: router and log are of different versions")]
    Kind(u8),
    /// Fields beyond the end of the message, or bytes after them.
    #[error("a message on the port whose fields do not fill it exactly")]
    Fields,
}

/// Appends `ask` to `out`.
pub fn put_ask(out: &mut BytesMut, corr: u64, ask: &Ask) {
    message(out, corr, |out| match ask {
        Ask::Write { shard, map_epoch, table, key, value } => {
            put_place(out, 1, *shard, *map_epoch);
            put_bytes(out, table);
            put_option(out, key.as_ref());
            put_option(out, value.as_ref());
        }
        Ask::Read { shard, map_epoch, table, key, local } => {
            put_place(out, 2, *shard, *map_epoch);
            put_bytes(out, table);
            put_bytes(out, key);
            out.put_u8(u8::from(*local));
        }
        Ask::ReadAfter { shard, map_epoch, table, key, local, after, wait_ms } => {
            put_place(out, 4, *shard, *map_epoch);
            put_bytes(out, table);
            put_bytes(out, key);
            out.put_u8(u8::from(*local));
            out.put_u8(after.zone.0);
            out.put_u32_le(after.stream);
            out.put_u64_le(after.seq);
            out.put_u32_le(*wait_ms);
        }
        Ask::Changes(wish) => {
            out[4] = 5;
            put_wish(out, wish);
        }
        Ask::Standing { known, wait_ms } => {
            out[4] = 6;
            out.put_u64_le(*known);
            out.put_u32_le(*wait_ms);
        }
        Ask::Commit(commit) => {
            put_place(out, 3, commit.shard, commit.map_epoch);
            put_commit(out, commit);
        }
    });
}

/// Takes one whole `Ask` off the front of `from`, or `None` while it is not whole.
pub fn take_ask(from: &mut BytesMut) -> Result<Option<(u64, Ask)>, Malformed> {
    let Some((kind, corr, mut m)) = take(from)? else { return Ok(None) };
    let m = &mut m;
    let ask = match kind {
        1 => {
            let (shard, map_epoch) = get_place(m)?;
            Ask::Write { shard, map_epoch, table: get_bytes(m)?, key: get_option(m)?, value: get_option(m)? }
        }
        2 => {
            let (shard, map_epoch) = get_place(m)?;
            Ask::Read { shard, map_epoch, table: get_bytes(m)?, key: get_bytes(m)?, local: get_u8(m)? != 0 }
        }
        3 => {
            let (shard, map_epoch) = get_place(m)?;
            Ask::Commit(get_commit(shard, map_epoch, m)?)
        }
        4 => {
            let (shard, map_epoch) = get_place(m)?;
            let (table, key, local) = (get_bytes(m)?, get_bytes(m)?, get_u8(m)? != 0);
            let after = Token { zone: Zone(get_u8(m)?), stream: get_u32(m)?, seq: get_u64(m)? };
            Ask::ReadAfter { shard, map_epoch, table, key, local, after, wait_ms: get_u32(m)? }
        }
        5 => Ask::Changes(get_wish(m)?),
        6 => Ask::Standing { known: get_u64(m)?, wait_ms: get_u32(m)? },
        other => return Err(Malformed::Kind(other)),
    };
    if m.is_empty() { Ok(Some((corr, ask))) } else { Err(Malformed::Fields) }
}

/// Appends `answer` to `out`.
pub fn put_answer(out: &mut BytesMut, corr: u64, answer: &Answer) {
    message(out, corr, |out| match answer {
        Answer::Written { key, version, seq } => {
            out[4] = 1;
            put_version(out, version);
            out.put_u64_le(*seq);
            put_bytes(out, key);
        }
        Answer::Row { version, value } => {
            out[4] = 2;
            put_version(out, version);
            put_bytes(out, value);
        }
        Answer::Absent => out[4] = 3,
        Answer::Refused(why) => {
            out[4] = 4;
            put_refused(out, why);
        }
        Answer::Committed(done) => {
            out[4] = 5;
            put_committed(out, done);
        }
        Answer::Changes(told) => {
            out[4] = 6;
            put_told(out, told);
        }
        Answer::Standing(all) => {
            out[4] = 7;
            put_standing(out, all);
        }
    });
}

/// Takes one whole `Answer` off the front of `from`, or `None` while it is not whole.
pub fn take_answer(from: &mut BytesMut) -> Result<Option<(u64, Answer)>, Malformed> {
    let Some((kind, corr, mut m)) = take(from)? else { return Ok(None) };
    let m = &mut m;
    let answer = match kind {
        1 => {
            let (version, seq) = (get_version(m)?, get_u64(m)?);
            Answer::Written { key: get_bytes(m)?, version, seq }
        }
        2 => Answer::Row { version: get_version(m)?, value: get_bytes(m)? },
        3 => Answer::Absent,
        4 => Answer::Refused(get_refused(m)?),
        5 => Answer::Committed(get_committed(m)?),
        6 => Answer::Changes(get_told(m)?),
        7 => Answer::Standing(get_standing(m)?),
        other => return Err(Malformed::Kind(other)),
    };
    if m.is_empty() { Ok(Some((corr, answer))) } else { Err(Malformed::Fields) }
}

fn put_refused(out: &mut BytesMut, why: &Refused) {
    match why {
        Refused::NotOwner { map_epoch, owner } => {
            out.put_u8(1);
            out.put_u64_le(map_epoch.0);
            out.put_u8(owner.map_or(u8::MAX, |z| z.0));
        }
        Refused::ReadOnly => out.put_u8(2),
        Refused::Locked => out.put_u8(3),
        Refused::Behind { map_epoch } => {
            out.put_u8(4);
            out.put_u64_le(map_epoch.0);
        }
        Refused::Full => out.put_u8(5),
        Refused::Busy => out.put_u8(6),
        Refused::Invalid(text) => {
            out.put_u8(7);
            put_bytes(out, text);
        }
        Refused::Failed(text) => {
            out.put_u8(8);
            put_bytes(out, text);
        }
        Refused::Unmet { step, seen } => {
            out.put_u8(9);
            out.put_u16_le(*step);
            out.put_u8(u8::from(seen.is_some()));
            if let Some(version) = seen {
                put_version(out, version);
            }
        }
        Refused::Reused => out.put_u8(10),
        Refused::NoPeer => out.put_u8(11),
        Refused::NotYet { applied } => {
            out.put_u8(12);
            out.put_u64_le(*applied);
        }
        Refused::Unleased { shard, ended_ms } => {
            out.put_u8(14);
            out.put_u16_le(shard.0);
            out.put_u64_le(ended_ms.unwrap_or(u64::MAX));
        }
        Refused::Forgotten { after, first } => {
            out.put_u8(13);
            out.put_u8(after.zone.0);
            out.put_u32_le(after.stream);
            out.put_u64_le(after.seq);
            out.put_u64_le(*first);
        }
    }
}

fn get_refused(m: &mut Bytes) -> Result<Refused, Malformed> {
    Ok(match get_u8(m)? {
        1 => Refused::NotOwner {
            map_epoch: MapEpoch(get_u64(m)?),
            owner: Some(get_u8(m)?).filter(|z| *z != u8::MAX).map(Zone),
        },
        2 => Refused::ReadOnly,
        3 => Refused::Locked,
        4 => Refused::Behind { map_epoch: MapEpoch(get_u64(m)?) },
        5 => Refused::Full,
        6 => Refused::Busy,
        7 => Refused::Invalid(get_bytes(m)?),
        8 => Refused::Failed(get_bytes(m)?),
        9 => Refused::Unmet {
            step: m.try_get_u16_le().map_err(|_| Malformed::Fields)?,
            seen: if get_u8(m)? == 0 { None } else { Some(get_version(m)?) },
        },
        10 => Refused::Reused,
        11 => Refused::NoPeer,
        12 => Refused::NotYet { applied: get_u64(m)? },
        13 => Refused::Forgotten {
            after: Token { zone: Zone(get_u8(m)?), stream: get_u32(m)?, seq: get_u64(m)? },
            first: get_u64(m)?,
        },
        14 => Refused::Unleased {
            shard: Shard(m.try_get_u16_le().map_err(|_| Malformed::Fields)?),
            ended_ms: Some(get_u64(m)?).filter(|ms| *ms != u64::MAX),
        },
        other => return Err(Malformed::Kind(other)),
    })
}

/// Writes length, a kind of 0 that `fields` sets (it sees the message from its first byte), and the correlation number.
fn message(out: &mut BytesMut, corr: u64, fields: impl FnOnce(&mut BytesMut)) {
    let mut tail = out.split_off(out.len());
    tail.put_u32_le(0);
    tail.put_u8(0);
    tail.put_u64_le(corr);
    fields(&mut tail);
    let len = tail.len() as u32 - 4;
    tail[..4].copy_from_slice(&len.to_le_bytes());
    out.unsplit(tail);
}

fn take(from: &mut BytesMut) -> Result<Option<(u8, u64, Bytes)>, Malformed> {
    let Some(head) = from.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*head) as usize;
    if len > MESSAGE_MAX {
        return Err(Malformed::TooLong(len));
    }
    if len < 9 {
        return Err(Malformed::Fields);
    }
    if from.len() < 4 + len {
        return Ok(None);
    }
    let mut m = from.split_to(4 + len).freeze();
    m.advance(4);
    let (kind, corr) = (m.get_u8(), m.get_u64_le());
    Ok(Some((kind, corr, m)))
}

fn put_place(out: &mut BytesMut, kind: u8, shard: Shard, map_epoch: MapEpoch) {
    out[4] = kind;
    out.put_u16_le(shard.0);
    out.put_u64_le(map_epoch.0);
}

fn get_place(m: &mut Bytes) -> Result<(Shard, MapEpoch), Malformed> {
    Ok((Shard(m.try_get_u16_le().map_err(|_| Malformed::Fields)?), MapEpoch(get_u64(m)?)))
}

pub(crate) fn put_bytes(out: &mut BytesMut, b: &[u8]) {
    out.put_u32_le(b.len() as u32);
    out.put_slice(b);
}

pub(crate) fn get_bytes(m: &mut Bytes) -> Result<Bytes, Malformed> {
    let len = m.try_get_u32_le().map_err(|_| Malformed::Fields)? as usize;
    if len > m.len() { Err(Malformed::Fields) } else { Ok(m.split_to(len)) }
}

pub(crate) fn put_option(out: &mut BytesMut, b: Option<&Bytes>) {
    out.put_u8(u8::from(b.is_some()));
    if let Some(b) = b {
        put_bytes(out, b);
    }
}

pub(crate) fn get_option(m: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
    match get_u8(m)? {
        0 => Ok(None),
        1 => get_bytes(m).map(Some),
        _ => Err(Malformed::Fields),
    }
}

pub(crate) fn get_u8(m: &mut Bytes) -> Result<u8, Malformed> {
    m.try_get_u8().map_err(|_| Malformed::Fields)
}

pub(crate) fn get_u32(m: &mut Bytes) -> Result<u32, Malformed> {
    m.try_get_u32_le().map_err(|_| Malformed::Fields)
}

pub(crate) fn get_u64(m: &mut Bytes) -> Result<u64, Malformed> {
    m.try_get_u64_le().map_err(|_| Malformed::Fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hlc;
    use crate::changes::Change;
    use crate::commit::{Condition, Held, Made, Once, Step};
    use crate::stand::{May, Stand};
    use shardmap::OwnerEpoch;
    use shardmap::ownership::Kind;

    fn version() -> Version {
        Version { owner_epoch: OwnerEpoch(7), hlc: Hlc::new(1_700_000_000_000, 3), zone: Zone(1), stream: 2 }
    }

    fn asks() -> Vec<Ask> {
        let (shard, map_epoch, table) = (Shard(9), MapEpoch(4), Bytes::from_static(b"orders"));
        let after = vec![Token { zone: Zone(1), stream: 3, seq: 77 }, Token { zone: Zone(0), stream: 3, seq: 0 }];
        vec![
            Ask::Write { shard, map_epoch, table: table.clone(), key: None, value: Some(Bytes::from_static(b"{}")) },
            Ask::Write { shard, map_epoch, table: table.clone(), key: Some(Bytes::from_static(b"k")), value: None },
            Ask::Read { shard, map_epoch, table: table.clone(), key: Bytes::from_static(b"k"), local: true },
            Ask::Commit(commit(shard, map_epoch, &table)),
            Ask::ReadAfter {
                shard,
                map_epoch,
                table,
                key: Bytes::from_static(b"k"),
                local: true,
                after: Token { zone: Zone(1), stream: 3, seq: 77 },
                wait_ms: 5,
            },
            Ask::Changes(Wish { after: None, table: Some("t".into()), zone: None, values: true, wait_ms: 7 }),
            Ask::Changes(Wish { after: Some(after), table: None, zone: Some(Zone(2)), values: false, wait_ms: 0 }),
            Ask::Standing { known: 7, wait_ms: 5000 },
        ]
    }

    fn commit(shard: Shard, map_epoch: MapEpoch, table: &Bytes) -> Commit {
        let step = |key: Option<&'static str>, value: Option<&'static str>, only| Step {
            table: table.clone(),
            key: key.map(Bytes::from),
            value: value.map(Bytes::from),
            only,
        };
        let steps = vec![
            step(None, Some("new"), Condition::Any),
            step(Some("a"), None, Condition::Present),
            step(Some("b"), Some("{}"), Condition::At(version())),
            step(Some("c"), Some(""), Condition::Absent),
        ];
        let once = Some(Once { key: Bytes::from_static(b"once"), digest: [3; 16] });
        Commit { shard, map_epoch, steps, once, remote_ms: Some(2000) }
    }

    fn answers() -> Vec<Answer> {
        let text = Bytes::from_static(b"why");
        let refused = [
            Refused::NotOwner { map_epoch: MapEpoch(3), owner: None },
            Refused::NotOwner { map_epoch: MapEpoch(3), owner: Some(Zone(2)) },
            Refused::ReadOnly,
            Refused::Locked,
            Refused::Behind { map_epoch: MapEpoch(1) },
            Refused::Full,
            Refused::Busy,
            Refused::Invalid(text.clone()),
            Refused::Failed(text.clone()),
            Refused::Unmet { step: 3, seen: None },
            Refused::Unmet { step: 0, seen: Some(version()) },
            Refused::Reused,
            Refused::NoPeer,
            Refused::NotYet { applied: 3 },
            Refused::Unleased { shard: Shard(1024), ended_ms: Some(7) },
            Refused::Unleased { shard: Shard(1024), ended_ms: None },
            Refused::Forgotten { after: Token { zone: Zone(1), stream: 3, seq: 77 }, first: 90 },
        ];
        let mut all = vec![
            Answer::Written { key: text.clone(), version: version(), seq: 77 },
            Answer::Row { version: version(), value: text.clone() },
            Answer::Absent,
        ];
        let rows = vec![Made { key: text.clone(), version: version(), seq: 8 }];
        let change = Change {
            table: text.clone(),
            key: text.clone(),
            version: version(),
            seq: 5,
            shard: Shard(4),
            deleted: false,
            value: Some(text.clone()),
        };
        let after = vec![Token { zone: Zone(1), stream: 3, seq: 77 }];
        all.push(Answer::Changes(Told { changes: vec![change.clone(), Change { value: None, ..change }], after }));
        let stand = |shard, kind, may, owner| Stand {
            shard: Shard(shard),
            kind,
            owner,
            owner_epoch: OwnerEpoch(7),
            to: (kind == Kind::Moving).then_some(Zone(2)),
            may,
            own_epoch: OwnerEpoch(4),
            lease_ms: u32::from(shard),
        };
        let stands = vec![
            stand(0, Kind::Own, May::Writes, Some(Zone(1))),
            stand(2, Kind::Moving, May::Halted, Some(Zone(1))),
            stand(341, Kind::Lost, May::Nothing, None),
            stand(1023, Kind::Unlock, May::Nothing, Some(Zone(0))),
        ];
        all.push(Answer::Standing(Standing { revision: 3, map_epoch: MapEpoch(12), stands }));
        for held in [Held::Here, Held::Elsewhere, Held::Late(text), Held::Unleased] {
            all.push(Answer::Committed(Committed { rows: rows.clone(), replayed: held == Held::Here, held }));
        }
        all.extend(refused.map(Answer::Refused));
        all
    }

    #[test]
    fn what_is_put_is_taken_however_it_is_split() {
        let (mut asked, mut answered) = (BytesMut::new(), BytesMut::new());
        asks().iter().enumerate().for_each(|(i, a)| put_ask(&mut asked, i as u64, a));
        answers().iter().enumerate().for_each(|(i, a)| put_answer(&mut answered, i as u64, a));
        for step in [1, 3, 7, 4096] {
            let (mut buf, mut got) = (BytesMut::new(), vec![]);
            for part in asked.chunks(step) {
                buf.put_slice(part);
                while let Some((corr, ask)) = take_ask(&mut buf).unwrap() {
                    assert_eq!(corr, got.len() as u64);
                    got.push(ask);
                }
            }
            assert_eq!(got, asks());
            let (mut buf, mut got) = (BytesMut::new(), vec![]);
            for part in answered.chunks(step) {
                buf.put_slice(part);
                while let Some((_, answer)) = take_answer(&mut buf).unwrap() {
                    got.push(answer);
                }
            }
            assert_eq!(got, answers());
        }
    }

    #[test]
    fn a_garbled_message_is_refused_and_never_panics() {
        let mut whole = BytesMut::new();
        asks().iter().for_each(|a| put_ask(&mut whole, 1, a));
        answers().iter().for_each(|a| put_answer(&mut whole, 1, a));
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = whole.clone();
                bad[at] ^= flip;
                let mut copy = bad.clone();
                while let Ok(Some(_)) = take_ask(&mut bad) {}
                while let Ok(Some(_)) = take_answer(&mut copy) {}
            }
        }
        let mut long = BytesMut::from(&(MESSAGE_MAX as u32 + 1).to_le_bytes()[..]);
        assert_eq!(take_ask(&mut long), Err(Malformed::TooLong(MESSAGE_MAX + 1)));
    }
}
