//! The blocks around the batches of a segment file: its header, its footer, and the checkpoint beside it.
//!
//! Each is one block of 4 KiB whose checksum at 8..12 covers all that follows it.

use crate::Hlc;
use crate::batch::{Batch, u32_at, u64_at};
use crate::limits::{BLOCK, HEADER, SEGMENT_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use shardmap::{ZONES, Zone};

const HEADER_MAGIC: &[u8; 8] = b"RLGSEG1\0";
const FOOTER_MAGIC: &[u8; 8] = b"RLGEND1\0";
const CHECKPOINT_MAGIC: &[u8; 8] = b"RLGCKP1\0";
const VERSION: u16 = 1;
/// Where the first batch of a segment lies.
pub const FIRST_POS: u64 = BLOCK as u64;

/// The first block of a segment; durable before its first batch is written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// The zone that writes the stream.
    pub zone: Zone,
    /// The stream's number.
    pub stream: u32,
    /// The stream's incarnation: random when the stream is created.
    pub log_uuid: u128,
    /// 1, 2, ..: a missing segment is seen.
    pub number: u64,
    /// The seq of its first record, once there is one.
    pub first_seq: u64,
    /// The highest term when it was begun.
    pub term: u64,
    /// Random at each use of the file: exposes blocks of an earlier use.
    pub salt: u64,
    /// `chain` of the last batch before this segment; 0 if there is none.
    pub prev_chain: u32,
    /// Where the segment before ends: bytes beyond are ignored. 0 if there is none.
    pub prev_end: u64,
    /// Length of the file when it was begun.
    pub size: u64,
    /// The newest HLC when it was begun.
    pub created: Hlc,
    /// The file held an earlier segment: what lies behind the last batch may be a block of that one.
    pub recycled: bool,
    /// The segment before was sealed: where it ends there must be its footer. Logs of before this was written do not say so.
    pub prev_sealed: bool,
}

/// The last block of a sealed segment, right behind its last batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The segment's salt: a footer of an earlier use of the file does not fit.
    pub salt: u64,
    /// The seq of its last record.
    pub last_seq: u64,
    /// How many records it holds.
    pub records: u64,
    /// The lowest HLC in it.
    pub first_hlc: Hlc,
    /// The highest HLC in it.
    pub last_hlc: Hlc,
    /// BLAKE3 over header_crc and page table of each batch in order: two sites compare segments by 32 bytes.
    pub digest: [u8; 32],
}

/// What `CHECKPOINT.a` and `CHECKPOINT.b` say, written in turn: the one with the higher generation counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Rises by one with each write.
    pub generation: u64,
    /// The stream's incarnation.
    pub log_uuid: u128,
    /// Everything up to here was durable when it was written.
    pub durable_seq: u64,
    /// The term of the writer.
    pub term: u64,
    /// The first seq that is kept; what is below may be gone. 0 or 1: everything is.
    pub first_kept: u64,
}

/// Why a block is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Too few bytes.
    #[error("{0} bytes where a block of 4,096 should be")]
    Short(usize),
    /// It begins with other bytes.
    #[error("the block has another magic number")]
    Magic,
    /// Its checksum does not hold.
    #[error("the block's checksum does not hold")]
    Crc,
    /// A version or block size of a newer program.
    #[error("format version {0}, this program knows 1")]
    Version(u16),
    /// A field that cannot be.
    #[error("the block's {0} cannot be")]
    Field(&'static str),
}

impl Header {
    /// The block.
    pub fn encode(&self) -> Bytes {
        block(HEADER_MAGIC, |b| {
            b.put_u16_le(VERSION);
            b.put_u16_le(self.zone.0.into());
            b.put_u32_le(BLOCK as u32);
            b.put_u32_le(self.stream);
            b.put_u128_le(self.log_uuid);
            b.put_u64_le(self.number);
            b.put_u64_le(self.first_seq);
            b.put_u64_le(self.term);
            b.put_u64_le(self.salt);
            b.put_u64_le(self.first_seq - 1); // last seq of the segment before
            b.put_u32_le(self.prev_chain);
            b.put_u32_le(self.recycled.into());
            b.put_u64_le(self.prev_end);
            b.put_u64_le(self.size);
            b.put_u64_le(self.created.0);
            b.put_u32_le(self.prev_sealed.into());
        })
    }

    /// Reads the first block of a file.
    pub fn parse(b: &[u8]) -> Result<Header, Fault> {
        verify(b, HEADER_MAGIC)?;
        let version = u16::from_le_bytes([b[12], b[13]]);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let zone = u16::from_le_bytes([b[14], b[15]]);
        let h = Header {
            zone: Zone(zone as u8),
            stream: u32_at(b, 20),
            log_uuid: u128_at(b, 24),
            number: u64_at(b, 40),
            first_seq: u64_at(b, 48),
            term: u64_at(b, 56),
            salt: u64_at(b, 64),
            prev_chain: u32_at(b, 80),
            prev_end: u64_at(b, 88),
            size: u64_at(b, 96),
            created: Hlc(u64_at(b, 104)),
            recycled: u32_at(b, 84) & 1 == 1,
            prev_sealed: u32_at(b, 112) & 1 == 1,
        };
        let wrong = [
            (u32_at(b, 16) != BLOCK as u32, "block size"),
            (u32_at(b, 84) > 1, "flags"),
            (usize::from(zone) >= ZONES, "zone"),
            // Nobody makes so many; whoever reads it adds to it.
            (h.number == 0 || h.number > u64::MAX / 2, "segment number"),
            (h.first_seq == 0, "first seq"),
            (u64_at(b, 72) != h.first_seq.wrapping_sub(1), "last seq of the segment before"),
            (!h.prev_end.is_multiple_of(FIRST_POS) || h.prev_end > SEGMENT_BYTES_MAX, "end of the segment before"),
            (!h.size.is_multiple_of(FIRST_POS) || h.size > SEGMENT_BYTES_MAX, "segment size"),
        ];
        wrong.into_iter().find(|(is, _)| *is).map_or(Ok(h), |(_, what)| Err(Fault::Field(what)))
    }

    /// The file's name: the seq of its first record, so that a listing is in order.
    pub fn file_name(&self) -> String {
        file_name(self.first_seq)
    }
}

/// The name of the segment file that begins with `first_seq`.
pub fn file_name(first_seq: u64) -> String {
    format!("{first_seq:020}.rlog")
}

/// The first seq that a segment's file name tells, or `None` if it is not a segment's name.
pub fn seq_of_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".rlog")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|seq| *seq > 0)
}

impl Footer {
    /// The block.
    pub fn encode(&self) -> Bytes {
        block(FOOTER_MAGIC, |b| {
            b.put_u16_le(VERSION);
            b.put_u16_le(0);
            b.put_u64_le(self.salt);
            b.put_u64_le(self.last_seq);
            b.put_u64_le(self.records);
            b.put_u64_le(self.first_hlc.0);
            b.put_u64_le(self.last_hlc.0);
            b.put_slice(&self.digest);
        })
    }

    /// Reads the block behind the last batch of a segment.
    pub fn parse(b: &[u8]) -> Result<Footer, Fault> {
        verify(b, FOOTER_MAGIC)?;
        let version = u16::from_le_bytes([b[12], b[13]]);
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        Ok(Footer {
            salt: u64_at(b, 16),
            last_seq: u64_at(b, 24),
            records: u64_at(b, 32),
            first_hlc: Hlc(u64_at(b, 40)),
            last_hlc: Hlc(u64_at(b, 48)),
            digest: *b[56..].first_chunk().expect("verify has seen a whole block"),
        })
    }
}

impl Checkpoint {
    /// The two files' names; generation `n` goes into the one at `n % 2`.
    pub const NAMES: [&str; 2] = ["CHECKPOINT.a", "CHECKPOINT.b"];

    /// The block.
    pub fn encode(&self) -> Bytes {
        block(CHECKPOINT_MAGIC, |b| {
            b.put_u16_le(VERSION);
            b.put_u16_le(0);
            b.put_u64_le(self.generation);
            b.put_u128_le(self.log_uuid);
            b.put_u64_le(self.durable_seq);
            b.put_u64_le(self.term);
            b.put_u64_le(self.first_kept);
        })
    }

    /// Reads one of the two files; a torn one is no error, the other counts then.
    pub fn parse(b: &[u8]) -> Result<Checkpoint, Fault> {
        verify(b, CHECKPOINT_MAGIC)?;
        let (generation, log_uuid) = (u64_at(b, 16), u128_at(b, 24));
        let (durable_seq, term, first_kept) = (u64_at(b, 40), u64_at(b, 48), u64_at(b, 56));
        Ok(Checkpoint { generation, log_uuid, durable_seq, term, first_kept })
    }
}

/// The digest of a footer, a batch at a time.
#[derive(Clone, Debug, Default)]
pub struct Digest(blake3::Hasher);

impl Digest {
    /// Adds the next batch: its header_crc and its page table.
    pub fn add(&mut self, batch: &Batch) {
        self.add_disk(&batch.bytes);
    }

    /// The same of a batch as it travels or lies on a disk; its header was checked.
    pub fn add_disk(&mut self, batch: &[u8]) {
        let head = usize::from(u16::from_le_bytes([batch[20], batch[21]]));
        self.0.update(&batch[16..20]);
        self.0.update(&batch[HEADER..head]);
    }

    /// Adds the next batch by its header_crc and page table, which are these bytes.
    pub(crate) fn add_parts(&mut self, parts: &[u8]) {
        self.0.update(parts);
    }

    /// The digest of what was added so far.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// A block that `fields` fills from byte 12 on.
fn block(magic: &[u8; 8], fields: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut b = BytesMut::with_capacity(BLOCK);
    b.put_slice(magic);
    b.put_u32_le(0);
    fields(&mut b);
    b.resize(BLOCK, 0);
    let crc = crc32fast::hash(&b[12..]);
    b[8..12].copy_from_slice(&crc.to_le_bytes());
    b.freeze()
}

fn verify(b: &[u8], magic: &[u8; 8]) -> Result<(), Fault> {
    if b.len() < BLOCK {
        return Err(Fault::Short(b.len()));
    }
    if b[..8] != *magic {
        return Err(Fault::Magic);
    }
    if crc32fast::hash(&b[12..BLOCK]) != u32_at(b, 8) { Err(Fault::Crc) } else { Ok(()) }
}

fn u128_at(b: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(*b[at..].first_chunk().expect("verify has seen a whole block"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            zone: Zone(1),
            stream: 2,
            log_uuid: 0x100f_0e0d_0c0b_0a09_0807_0605_0403_0201,
            number: 3,
            first_seq: 1000,
            term: 4,
            salt: 5,
            prev_chain: 6,
            prev_end: 8192,
            size: 64 * 1024 * 1024,
            created: Hlc(7),
            recycled: false,
            prev_sealed: false,
        }
    }

    /// Everything but the zeros at the end.
    fn hex(b: &[u8]) -> String {
        let end = b.iter().rposition(|x| *x != 0).map_or(0, |at| at + 1);
        assert_eq!(b.len(), BLOCK);
        b[..end].iter().map(|x| format!("{x:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_a_segment_header_are_frozen() {
        let golden = concat!(
            "524c475345473100e185f174",           // RLGSEG1, crc
            "010001000010000002000000",           // version, zone, block size, stream
            "0102030405060708090a0b0c0d0e0f10",   // log_uuid
            "0300000000000000e803000000000000",   // number, first seq
            "04000000000000000500000000000000",   // term, salt
            "e7030000000000000600000000000000",   // last seq and chain of the segment before
            "0020000000000000000000040000000007", // its end, size, HLC
        );
        assert_eq!(hex(&header().encode()), golden);
        assert_eq!(header().file_name(), "00000000000000001000.rlog");
        let sealed = Header { prev_sealed: true, ..header() };
        let golden = golden.replace("e185f174", "62a41f8c") + "0000000000000001";
        assert_eq!(hex(&sealed.encode()), golden);
        assert_eq!(Header::parse(&sealed.encode()), Ok(sealed));
    }

    #[test]
    fn the_bytes_of_a_footer_are_frozen() {
        let footer =
            Footer { salt: 5, last_seq: 9, records: 8, first_hlc: Hlc(1), last_hlc: Hlc(2), digest: [0xab; 32] };
        assert_eq!(
            hex(&footer.encode()),
            "524c47454e44310009ae3b9c0100000005000000000000000900000000000000080000000000000001000000000000000200000000000000abababababababababababababababababababababababababababababababab"
        );
        assert_eq!(Footer::parse(&footer.encode()), Ok(footer));
    }

    #[test]
    fn the_bytes_of_a_checkpoint_are_frozen() {
        let checkpoint = Checkpoint { generation: 3, log_uuid: 0x0a0b, durable_seq: 77, term: 2, first_kept: 0 };
        assert_eq!(
            hex(&checkpoint.encode()),
            "524c47434b503100d826acbe0100000003000000000000000b0a00000000000000000000000000004d0000000000000002"
        );
        assert_eq!(Checkpoint::parse(&checkpoint.encode()), Ok(checkpoint));
    }

    #[test]
    fn every_flipped_bit_of_a_block_is_found() {
        let whole = header().encode();
        assert_eq!(Header::parse(&whole), Ok(header()));
        for bit in 0..BLOCK * 8 {
            let mut b = whole.to_vec();
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&b).is_err(), "bit {bit}");
        }
        assert_eq!(Header::parse(&whole[..100]), Err(Fault::Short(100)));
        assert_eq!(Footer::parse(&whole), Err(Fault::Magic));
    }

    #[test]
    fn a_forged_header_is_refused_field_by_field() {
        let forged = |change: &dyn Fn(&mut Header)| {
            let mut h = header();
            change(&mut h);
            Header::parse(&h.encode())
        };
        assert_eq!(forged(&|h| h.number = 0), Err(Fault::Field("segment number")));
        assert_eq!(forged(&|h| h.number = u64::MAX), Err(Fault::Field("segment number")));
        assert_eq!(forged(&|h| h.zone = Zone(15)), Err(Fault::Field("zone")));
        assert_eq!(forged(&|h| h.prev_end = 1), Err(Fault::Field("end of the segment before")));
        assert_eq!(forged(&|h| h.size = u64::MAX - 4095), Err(Fault::Field("segment size")));
    }

    #[test]
    fn only_a_segments_name_is_taken_for_one() {
        assert_eq!(seq_of_name("00000000000000001000.rlog"), Some(1000));
        for name in [
            "00000000000000000000.rlog",
            "1000.rlog",
            "0000000000000000100x.rlog",
            "00000000000000001000.rlog.new",
            "LOCK",
        ] {
            assert_eq!(seq_of_name(name), None, "{name}");
        }
    }
}
