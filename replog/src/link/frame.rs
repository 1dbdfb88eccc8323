//! The frames of a link and their bytes.
//!
//! ```text
//! u32 length of what follows the crc | u32 crc of it | u8 version | u8 kind | the kind's fields
//! ```
//!
//! Little endian. A frame whose length, checksum or fields do not hold ends the connection; a batch inside has its own checksums.

use super::pack::PACK_RAW_MAX;
use super::{Codec, Pack, Stop, Why};
use crate::Hlc;
use crate::limits::BATCH_MAX;
use crate::seed::PART_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::{MapEpoch, Zone};

/// The version of the frames.
pub const VERSION: u8 = 1;
/// The longest frame.
pub const FRAME_MAX: usize = 8 * 1024 * 1024;
/// The longest map that a link carries; a longer one travels by the GZS alone.
pub const MAP_MAX: usize = FRAME_MAX - 64;
const CLUSTER_MAX: usize = 64;
const _: () =
    assert!(BATCH_MAX + 64 <= FRAME_MAX && PACK_RAW_MAX + 64 <= FRAME_MAX, "a batch fits a frame, and so does a pack");

/// The origin introduces its log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The cluster's name.
    pub cluster: Bytes,
    /// The zone whose log it is.
    pub origin: Zone,
    /// The zone that it means to reach.
    pub peer: Zone,
    /// The stream.
    pub stream: u32,
    /// The number of streams.
    pub streams: u32,
    /// The log's incarnation.
    pub log_uuid: u128,
    /// The writer's term.
    pub term: u64,
    /// Its map.
    pub map_epoch: MapEpoch,
    /// The first seq that it still keeps.
    pub first_kept: u64,
    /// The last that is durable.
    pub durable: u64,
    /// Bits of the codecs that it can send in PACK; 0: it sends no PACK.
    pub codecs: u8,
}

/// The mirror says where to go on: the only truth for resuming.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The last seq that is durable in the mirror.
    pub durable: u64,
    /// The chain at that seq.
    pub chain: u32,
    /// The last that is applied.
    pub applied: u64,
    /// The highest term seen.
    pub term: u64,
    /// Its map.
    pub map_epoch: MapEpoch,
    /// Bytes that may be unacknowledged.
    pub credit: u64,
    /// Bits of the codecs that it takes in PACK, of those that HELLO named; 0: none, as of peers that do not know them.
    pub codecs: u8,
}

/// How far the mirror is; cumulative.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The last seq that is durable in the mirror.
    pub durable: u64,
    /// The last that is applied.
    pub applied: u64,
    /// Its map.
    pub map_epoch: MapEpoch,
    /// Bytes that may be unacknowledged.
    pub credit: u64,
    /// `sent_us` of the newest DATA or BEAT that had arrived.
    pub echo_us: u64,
}

/// Asks for a copy of a log: what the one asked has of it, and batches of it. The first frame of a connection, or behind an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The cluster's name.
    pub cluster: Bytes,
    /// The zone whose log it is.
    pub origin: Zone,
    /// The zone that is asked.
    pub peer: Zone,
    /// The stream.
    pub stream: u32,
    /// The number of streams.
    pub streams: u32,
    /// The batch that holds it is wanted, and those behind it; 0: none.
    pub seq: u64,
}

/// Asks the origin for a snapshot of what it has applied of its own log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeedAsk {
    /// The zone that is to be seeded.
    pub asker: Zone,
    /// Which log; `seq` is the least that the snapshot must hold.
    pub ask: Ask,
}

/// What the one asked has of a log; so many DATA follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The incarnation; 0: it has nothing of this log.
    pub log_uuid: u128,
    /// The first seq that it keeps.
    pub first_kept: u64,
    /// The last that is durable there.
    pub durable: u64,
    /// The chain at that seq.
    pub chain: u32,
    /// How many DATA follow.
    pub batches: u32,
}

/// What travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Opens.
    Hello(Hello),
    /// Answers.
    Welcome(Welcome),
    /// A batch, verbatim.
    Data {
        /// The sender's clock.
        sent_us: u64,
        /// Header, page table, body.
        batch: Bytes,
    },
    /// Several batches.
    Pack {
        /// The sender's clock.
        sent_us: u64,
        /// What it holds.
        pack: Pack,
    },
    /// Answers DATA, PACK and BEAT.
    Ack(Ack),
    /// Nothing to send, or news of `everywhere`: so that lag is known without traffic.
    Beat {
        /// The sender's clock.
        sent_us: u64,
        /// The last seq that is durable at the origin.
        durable: u64,
        /// The HLC there.
        hlc: Hlc,
        /// Every peer of the origin has it applied up to here: nobody will want it of a mirror.
        everywhere: u64,
    },
    /// A newer map.
    Map(MapEpoch, Bytes),
    /// The link cannot go on.
    Stop(Stop),
    /// Asks for a copy.
    Ask(Ask),
    /// Answers it.
    Held(Held),
    /// Asks for a snapshot. The first frame of a connection.
    Seed(SeedAsk),
    /// Answers it: one part of a snapshot (`crate::seed`).
    Part(Bytes),
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// A length that no frame has.
    #[error("a frame of {0} bytes, 2 to {FRAME_MAX} expected")]
    Length(usize),
    /// The checksum does not hold.
    #[error("a frame that fails its checksum")]
    Crc,
    /// Another version.
    #[error("a frame of version {0}, this program speaks version {VERSION}")]
    Version(u8),
    /// An unknown kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Fields that do not fill the frame exactly, or are out of range.
    #[error("a frame whose fields do not hold")]
    Fields,
}

/// Appends a frame.
pub fn put(out: &mut BytesMut, frame: &Frame) {
    let mut f = out.split_off(out.len());
    f.put_u64_le(0);
    f.put_u8(VERSION);
    f.put_u8(kind(frame));
    fields(&mut f, frame);
    let (len, crc) = (f.len() as u32 - 8, crc32fast::hash(&f[8..]));
    assert!(len as usize <= FRAME_MAX, "the sender bounds what it puts into a frame");
    f[..4].copy_from_slice(&len.to_le_bytes());
    f[4..8].copy_from_slice(&crc.to_le_bytes());
    out.unsplit(f);
}

/// Takes one whole frame off the front of `from`, or `None` while it is not whole.
pub fn take(from: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some(head) = from.first_chunk::<8>() else { return Ok(None) };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if !(2..=FRAME_MAX).contains(&len) {
        return Err(Malformed::Length(len));
    }
    if from.len() < 8 + len {
        return Ok(None);
    }
    from.advance(8);
    let mut f = from.split_to(len).freeze();
    if crc32fast::hash(&f) != crc {
        return Err(Malformed::Crc);
    }
    let (version, kind) = (f.get_u8(), f.get_u8());
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let frame = read(kind, &mut f)?;
    if f.is_empty() { Ok(Some(frame)) } else { Err(Malformed::Fields) }
}

fn kind(frame: &Frame) -> u8 {
    match frame {
        Frame::Hello(_) => 1,
        Frame::Welcome(_) => 2,
        Frame::Data { .. } => 3,
        Frame::Ack(_) => 4,
        Frame::Beat { .. } => 5,
        Frame::Map(..) => 6,
        Frame::Stop(_) => 7,
        Frame::Ask(_) => 8,
        Frame::Held(_) => 9,
        Frame::Seed(_) => 10,
        Frame::Part(_) => 11,
        Frame::Pack { .. } => 12,
    }
}

fn fields(f: &mut BytesMut, frame: &Frame) {
    let mut put = |numbers: &[u64]| numbers.iter().for_each(|n| f.put_u64_le(*n));
    match frame {
        Frame::Hello(h) => {
            put(&[h.log_uuid as u64, (h.log_uuid >> 64) as u64, h.term, h.map_epoch.0, h.first_kept, h.durable]);
            f.put_u32_le(h.stream);
            f.put_u32_le(h.streams);
            f.put_slice(&[h.origin.0, h.peer.0, h.codecs]);
            f.put_slice(&h.cluster);
        }
        Frame::Welcome(w) => {
            put(&[w.durable, w.chain.into(), w.applied, w.term, w.map_epoch.0, w.credit]);
            // A sender of before PACK refuses a longer WELCOME; it names no codecs, and is told none.
            if w.codecs != 0 {
                f.put_u8(w.codecs);
            }
        }
        Frame::Data { sent_us, batch } => {
            put(&[*sent_us]);
            f.put_slice(batch);
        }
        Frame::Ack(a) => put(&[a.durable, a.applied, a.map_epoch.0, a.credit, a.echo_us]),
        Frame::Beat { sent_us, durable, hlc, everywhere } => put(&[*sent_us, *durable, hlc.0, *everywhere]),
        Frame::Map(epoch, map) => {
            put(&[epoch.0]);
            f.put_slice(map);
        }
        Frame::Stop(s) => put(&[code(s.why), s.seen, s.expected]),
        Frame::Ask(a) => put_ask(f, a),
        Frame::Seed(s) => {
            f.put_u8(s.asker.0);
            put_ask(f, &s.ask);
        }
        Frame::Held(h) => {
            put(&[h.log_uuid as u64, (h.log_uuid >> 64) as u64, h.first_kept, h.durable]);
            f.put_u32_le(h.chain);
            f.put_u32_le(h.batches);
        }
        Frame::Part(part) => f.put_slice(part),
        Frame::Pack { sent_us, pack } => {
            put(&[*sent_us]);
            f.put_u8(pack.codec.number());
            f.put_u32_le(pack.raw_len);
            f.put_slice(&pack.packed);
        }
    }
}

fn read(kind: u8, f: &mut Bytes) -> Result<Frame, Malformed> {
    Ok(match kind {
        1 => Frame::Hello(hello(f)?),
        2 => Frame::Welcome(Welcome {
            durable: number(f)?,
            chain: u32::try_from(number(f)?).map_err(|_| Malformed::Fields)?,
            applied: number(f)?,
            term: number(f)?,
            map_epoch: MapEpoch(number(f)?),
            credit: number(f)?,
            codecs: codecs(f)?,
        }),
        3 => Frame::Data { sent_us: number(f)?, batch: std::mem::take(f) },
        4 => Frame::Ack(Ack {
            durable: number(f)?,
            applied: number(f)?,
            map_epoch: MapEpoch(number(f)?),
            credit: number(f)?,
            echo_us: number(f)?,
        }),
        5 => Frame::Beat { sent_us: number(f)?, durable: number(f)?, hlc: Hlc(number(f)?), everywhere: number(f)? },
        6 => Frame::Map(MapEpoch(number(f)?), std::mem::take(f)),
        7 => Frame::Stop(Stop { why: why(number(f)?)?, seen: number(f)?, expected: number(f)? }),
        8 => Frame::Ask(ask(f)?),
        9 => Frame::Held(Held {
            log_uuid: u128::from(number(f)?) | u128::from(number(f)?) << 64,
            first_kept: number(f)?,
            durable: number(f)?,
            chain: half(f)?,
            batches: half(f)?,
        }),
        10 => Frame::Seed(SeedAsk { asker: Zone(f.try_get_u8().map_err(|_| Malformed::Fields)?), ask: ask(f)? }),
        11 if f.len() <= PART_MAX => Frame::Part(std::mem::take(f)),
        11 => return Err(Malformed::Fields),
        12 => Frame::Pack { sent_us: number(f)?, pack: pack(f)? },
        other => return Err(Malformed::Kind(other)),
    })
}

fn hello(f: &mut Bytes) -> Result<Hello, Malformed> {
    let (low, high) = (number(f)?, number(f)?);
    let (term, map_epoch, first_kept, durable) = (number(f)?, MapEpoch(number(f)?), number(f)?, number(f)?);
    let (stream, streams) = (half(f)?, half(f)?);
    let mut byte = || f.try_get_u8().map_err(|_| Malformed::Fields);
    let (origin, peer, codecs) = (Zone(byte()?), Zone(byte()?), byte()?);
    if f.len() > CLUSTER_MAX {
        return Err(Malformed::Fields);
    }
    let (cluster, log_uuid) = (std::mem::take(f), u128::from(high) << 64 | u128::from(low));
    Ok(Hello { cluster, origin, peer, stream, streams, log_uuid, term, map_epoch, first_kept, durable, codecs })
}

fn put_ask(f: &mut BytesMut, a: &Ask) {
    f.put_u64_le(a.seq);
    f.put_u32_le(a.stream);
    f.put_u32_le(a.streams);
    f.put_slice(&[a.origin.0, a.peer.0]);
    f.put_slice(&a.cluster);
}

fn ask(f: &mut Bytes) -> Result<Ask, Malformed> {
    let (seq, stream, streams) = (number(f)?, half(f)?, half(f)?);
    let mut byte = || f.try_get_u8().map_err(|_| Malformed::Fields);
    let (origin, peer) = (Zone(byte()?), Zone(byte()?));
    if f.len() > CLUSTER_MAX {
        return Err(Malformed::Fields);
    }
    Ok(Ask { cluster: std::mem::take(f), origin, peer, stream, streams, seq })
}

/// None is written as nothing: one spelling of each frame.
fn codecs(f: &mut Bytes) -> Result<u8, Malformed> {
    match f.try_get_u8() {
        Ok(0) => Err(Malformed::Fields),
        Ok(codecs) => Ok(codecs),
        Err(_) => Ok(0),
    }
}

fn pack(f: &mut Bytes) -> Result<Pack, Malformed> {
    let codec = f.try_get_u8().ok().and_then(Codec::numbered).ok_or(Malformed::Fields)?;
    let raw_len = half(f)?;
    if raw_len as usize > PACK_RAW_MAX {
        return Err(Malformed::Fields);
    }
    Ok(Pack { codec, raw_len, packed: std::mem::take(f) })
}

fn number(f: &mut Bytes) -> Result<u64, Malformed> {
    f.try_get_u64_le().map_err(|_| Malformed::Fields)
}

fn half(f: &mut Bytes) -> Result<u32, Malformed> {
    f.try_get_u32_le().map_err(|_| Malformed::Fields)
}

fn code(why: Why) -> u64 {
    match why {
        Why::Foreign => 1,
        Why::Incarnation => 2,
        Why::Diverged => 3,
        Why::Gap => 4,
        Why::Fenced => 5,
        Why::Garbled => 6,
    }
}

fn why(code: u64) -> Result<Why, Malformed> {
    Ok(match code {
        1 => Why::Foreign,
        2 => Why::Incarnation,
        3 => Why::Diverged,
        4 => Why::Gap,
        5 => Why::Fenced,
        6 => Why::Garbled,
        _ => return Err(Malformed::Fields),
    })
}
