//! Several batches in one frame, compressed where that is worth it.
//!
//! ```text
//! batches ──gather──▶ u32 length | batch | u32 length | batch ..  ──codec──▶ PACK          the batches inside are verbatim
//! ```
//!
//! All compressed packs of a connection are one zstd stream, flushed at the end of each: a pack of few orders is short because it refers to
//! those before it. (`ezbench ship --phases compress`: 58 bytes a row of 311; with a frame for each pack it was 134.)
//!
//! Whoever takes one allocates what it announces, which is limited, and the window once; what would not fit is refused.

use crate::batch::Batch;
use crate::limits::{BATCH_MAX, HEADER};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::{fmt, io, mem};
use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// Batches are gathered until they take so much.
pub const PACK_BYTES: usize = 1 << 20;
/// What a PACK holds at most, unpacked: what is gathered, and the longest batch behind it.
pub const PACK_RAW_MAX: usize = PACK_BYTES + BATCH_MAX + 4;
/// The level of zstd: more costs more than a line gives back.
const LEVEL: i32 = 1;
/// How far back a stream refers, as a power of two: 1 MiB at each end of a connection that compresses, and as much again for tables and what
/// is under way.
const WINDOW_LOG: u32 = 20;
/// A shorter batch than this by itself is not worth a frame that says more about it.
pub const RAW_BYTES_MIN: usize = 512;
const _: () = assert!(PACK_RAW_MAX > PACK_BYTES);

/// How what is in a PACK is written. (2 was a zstd frame for each pack: neither sent nor taken any more.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// As it is.
    None,
    /// The next piece of the connection's zstd stream.
    Zstd,
}

impl Codec {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Zstd => 3,
        }
    }

    /// The codec of a number, if this program has it.
    pub fn numbered(number: u8) -> Option<Codec> {
        [Codec::None, Codec::Zstd].into_iter().find(|c| c.number() == number)
    }

    /// Its bit in HELLO and WELCOME.
    pub fn bit(self) -> u8 {
        1 << self.number()
    }
}

/// The codecs that this program sends and takes.
pub const CODECS: u8 = 1 << 0 | 1 << 3;

/// Batches in one piece, and what became of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pack {
    /// How `packed` is written.
    pub codec: Codec,
    /// The length of what it holds.
    pub raw_len: u32,
    /// What travels.
    pub packed: Bytes,
}

/// Why what came is no pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unpackable {
    /// It says that it holds nothing, or more than a pack may.
    #[error("a pack of {0} bytes, {HEADER} to {PACK_RAW_MAX} expected")]
    Length(usize),
    /// It is not what the codec makes, or holds more or less than it says.
    #[error("a pack that is not what its codec makes of {0} bytes")]
    Garbled(usize),
    /// The lengths inside do not add up.
    #[error("a pack whose batches do not fill it")]
    Inside,
}

/// Makes the packs of one connection; a new connection has a new one.
#[derive(Default)]
pub struct Packer {
    stream: Stream,
}

#[derive(Default)]
enum Stream {
    /// Nothing was compressed yet.
    #[default]
    Unused,
    Open(Encoder<'static>),
    /// There was no memory for it: from then on packs travel as they are.
    Broken,
}

impl Packer {
    /// Packs `batches`. What was given to the stream travels compressed even where that is no shorter: later packs refer to it.
    pub fn pack(&mut self, batches: &[Batch], codec: Codec) -> Pack {
        let raw_len = batches.iter().map(|b| b.bytes.len() + 4).sum();
        assert!(raw_len <= PACK_RAW_MAX, "the sender bounds what it gathers");
        let mut raw = BytesMut::with_capacity(raw_len);
        for batch in batches {
            raw.put_u32_le(batch.bytes.len() as u32);
            raw.put_slice(&batch.bytes);
        }
        let made = match codec {
            Codec::None => None,
            Codec::Zstd => self.squeeze(&raw),
        };
        let (codec, packed) = made.map_or((Codec::None, raw.freeze()), |packed| (codec, Bytes::from(packed)));
        Pack { codec, raw_len: raw_len as u32, packed }
    }

    fn squeeze(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        let mut stream = match mem::replace(&mut self.stream, Stream::Broken) {
            Stream::Unused => encoder().ok()?,
            Stream::Open(stream) => stream,
            Stream::Broken => return None,
        };
        let packed = flushed(&mut stream, raw).ok()?;
        self.stream = Stream::Open(stream);
        Some(packed)
    }
}

fn encoder() -> io::Result<Encoder<'static>> {
    let mut encoder = Encoder::new(LEVEL)?;
    encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
    Ok(encoder)
}

/// All that there is of the stream up to the end of `raw`.
fn flushed(stream: &mut Encoder<'_>, raw: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = Vec::with_capacity(zstd::zstd_safe::compress_bound(raw.len()));
    let mut from = InBuffer::around(raw);
    loop {
        let written = packed.len();
        let mut to = OutBuffer::around_pos(&mut packed, written);
        let left = if from.pos() < raw.len() {
            stream.run(&mut from, &mut to)?;
            1 // at least the flush
        } else {
            stream.flush(&mut to)?
        };
        if left == 0 {
            return Ok(packed);
        }
        packed.reserve(left);
    }
}

/// Takes the packs of one connection, in their order; a new connection has a new one.
#[derive(Default)]
pub struct Unpacker {
    stream: Option<Decoder<'static>>,
}

impl Unpacker {
    /// The batches inside, in order, each as it was put in; what they say is for others to judge. After an error the connection's later
    /// packs mean nothing.
    pub fn unpack(&mut self, pack: &Pack) -> Result<Vec<Bytes>, Unpackable> {
        let raw_len = pack.raw_len as usize;
        if !(HEADER..=PACK_RAW_MAX).contains(&raw_len) {
            return Err(Unpackable::Length(raw_len));
        }
        let mut raw = match pack.codec {
            Codec::None => pack.packed.clone(),
            Codec::Zstd => Bytes::from(self.swell(&pack.packed, raw_len).map_err(|_| Unpackable::Garbled(raw_len))?),
        };
        if raw.len() != raw_len {
            return Err(Unpackable::Garbled(raw_len));
        }
        let mut batches = Vec::new();
        while !raw.is_empty() {
            let len = raw.try_get_u32_le().map_err(|_| Unpackable::Inside)? as usize;
            if !(HEADER..=raw.len()).contains(&len) {
                return Err(Unpackable::Inside);
            }
            batches.push(raw.split_to(len));
        }
        Ok(batches)
    }

    /// What `packed` goes on with; what is longer than `len` does not fit, and ends here before anything grows.
    fn swell(&mut self, packed: &[u8], len: usize) -> io::Result<Vec<u8>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(decoder()?),
        };
        let mut raw = Vec::with_capacity(len + 1); // who fills that as well, said too little
        let (mut from, mut to) = (InBuffer::around(packed), OutBuffer::around(&mut raw));
        while from.pos() < packed.len() {
            let before = (from.pos(), to.pos());
            stream.run(&mut from, &mut to)?;
            if (from.pos(), to.pos()) == before {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(raw)
    }
}

fn decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    Ok(decoder)
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}
