//! Several batches in one frame, compressed where that is worth it.
//!
//! ```text
//! batches ──gather──▶ u32 length | batch | u32 length | batch ..  ──codec──▶ PACK          the batches inside are verbatim
//! ```
//!
//! Whoever takes one allocates what it announces, which is limited, and nothing beyond: what would not fit is refused.

use crate::batch::Batch;
use crate::limits::{BATCH_MAX, HEADER};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// Batches are gathered until they take so much.
pub const PACK_BYTES: usize = 1 << 20;
/// What a PACK holds at most, unpacked: what is gathered, and the longest batch behind it.
pub const PACK_RAW_MAX: usize = PACK_BYTES + BATCH_MAX + 4;
/// The level of zstd: more costs more than a line gives back.
const LEVEL: i32 = 1;
/// A shorter batch than this by itself is not worth a frame that says more about it.
pub const RAW_BYTES_MIN: usize = 512;
const _: () = assert!(PACK_RAW_MAX > PACK_BYTES);

thread_local! {
    static SQUEEZER: RefCell<Squeezer> = const { RefCell::new(Squeezer { compressor: None, decompressor: None }) };
}

/// What zstd works with, kept by each thread: to make it costs more than a small pack.
struct Squeezer {
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
}

impl Squeezer {
    fn squeeze(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        if self.compressor.is_none() {
            self.compressor = Compressor::new(LEVEL).ok();
        }
        self.compressor.as_mut()?.compress(raw).ok()
    }

    /// At most `len` bytes.
    fn swell(&mut self, packed: &[u8], len: usize) -> Option<Vec<u8>> {
        if self.decompressor.is_none() {
            self.decompressor = Decompressor::new().ok();
        }
        self.decompressor.as_mut()?.decompress(packed, len).ok()
    }
}

/// How what is in a PACK is written. The numbers are those of the batch header's codec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// As it is.
    None,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Zstd => 2,
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
pub const CODECS: u8 = 1 << 0 | 1 << 2;

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

impl Pack {
    /// Packs `batches`. What does not shrink travels as it is.
    pub fn of(batches: &[Batch], codec: Codec) -> Pack {
        let raw_len = batches.iter().map(|b| b.bytes.len() + 4).sum();
        assert!(raw_len <= PACK_RAW_MAX, "the sender bounds what it gathers");
        let mut raw = BytesMut::with_capacity(raw_len);
        for batch in batches {
            raw.put_u32_le(batch.bytes.len() as u32);
            raw.put_slice(&batch.bytes);
        }
        let raw = raw.freeze();
        let made = match codec {
            Codec::None => None,
            // It fails only where there is no memory for its tables.
            Codec::Zstd => SQUEEZER.with_borrow_mut(|z| z.squeeze(&raw)).filter(|packed| packed.len() < raw_len),
        };
        let (codec, packed) = made.map_or((Codec::None, raw), |packed| (codec, Bytes::from(packed)));
        Pack { codec, raw_len: raw_len as u32, packed }
    }

    /// The batches inside, in order, each as it was put in; what they say is for others to judge.
    pub fn unpack(&self) -> Result<Vec<Bytes>, Unpackable> {
        let raw_len = self.raw_len as usize;
        if !(HEADER..=PACK_RAW_MAX).contains(&raw_len) {
            return Err(Unpackable::Length(raw_len));
        }
        let mut raw = match self.codec {
            Codec::None => self.packed.clone(),
            // The buffer is as long as was announced; a frame that holds more does not fit, and is refused before anything grows.
            Codec::Zstd => match SQUEEZER.with_borrow_mut(|z| z.swell(&self.packed, raw_len)) {
                Some(raw) => Bytes::from(raw),
                None => return Err(Unpackable::Garbled(raw_len)),
            },
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
}
