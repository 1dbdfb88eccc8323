//! A batch: one group commit, with the same bytes on the writer's disk, on the wire and in every mirror.
//!
//! ```text
//! | 128-byte header | page_crc[n] | records ...          | zeros |     n blocks of 4 KiB
//! |<------ hdr_len ----------->|<---- body_len ---->|
//! |<----------- what travels: `Batch::bytes` ------>|
//! ```
//!
//! Bytes 4..16 of the header belong to the disk they lie on (`place` writes them, they travel as zeros); everything else is
//! fixed when the batch is built. FORMAT.md has each offset.

mod inspect;

pub use inspect::Inspected;

use crate::Hlc;
use crate::limits::{BATCH_MAX, BLOCK, HEAD_MAX, HEADER};
use crate::record::{self, Record, View};
use bytes::{BufMut, Bytes, BytesMut};
use shardmap::{OwnerEpoch, Shard, ZONES, Zone};

/// `RLB1`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RLB1");
const VERSION: u8 = 1;

/// A batch whose checksums have been verified or made here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// The stream it belongs to, among its zone's.
    pub stream: u32,
    /// The zone that wrote it.
    pub zone: Zone,
    /// The seq of its first record.
    pub first_seq: u64,
    /// How many records it holds; at least one.
    pub records: u32,
    /// The writer's incarnation.
    pub term: u64,
    /// `chain` of the batch before; 0 at the first batch of a stream.
    pub prev_chain: u32,
    /// Its own header_crc, which covers the page table and so every byte: what the next batch names.
    pub chain: u32,
    /// The lowest HLC of its records.
    pub first_hlc: Hlc,
    /// The highest HLC of its records.
    pub last_hlc: Hlc,
    /// The writer's wall clock when it was built.
    pub append_ns: u64,
    /// Low half of the stream's log_uuid: a batch of another incarnation never fits.
    pub log_uuid_lo: u64,
    /// Header, page table and body, padding left out: what travels.
    pub bytes: Bytes,
}

/// What is the same in each batch of a writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The stream's number.
    pub stream: u32,
    /// The writing zone.
    pub zone: Zone,
    /// The writer's incarnation.
    pub term: u64,
    /// Low half of the log_uuid.
    pub log_uuid_lo: u64,
}

/// The 12 bytes that a disk adds to a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// CRC over where the batch was meant to lie.
    pub place_crc: u32,
    /// The highest seq known durable on this disk when the batch was placed.
    pub local_durable_seq: u64,
}

/// Batches as they are to lie on a disk, each behind the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// What travels, and where it lies.
    parts: Vec<(Bytes, Stamp)>,
}

/// Why bytes are not a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// Fewer or more bytes than the header says.
    #[error("a batch of {seen} bytes, its header says {expected}")]
    Length {
        /// Bytes at hand.
        seen: usize,
        /// Bytes that the header asks for.
        expected: usize,
    },
    /// Not the beginning of a batch.
    #[error("no batch begins here: {0:#010x} in place of the magic number RLB1")]
    Magic(u32),
    /// The header's own checksum does not hold; nothing else in it is believed.
    #[error("the header's checksum is {seen:#010x}, expected {expected:#010x}")]
    Header {
        /// Computed.
        seen: u32,
        /// Stored.
        expected: u32,
    },
    /// A version, codec or flag of a newer program.
    #[error("{what} {seen}, this program knows {known}")]
    Newer {
        /// What it is.
        what: &'static str,
        /// The header's.
        seen: u32,
        /// The highest known here.
        known: u8,
    },
    /// A field that contradicts another or its range.
    #[error("the header's {0} cannot be")]
    Field(&'static str),
    /// A page's checksum does not hold.
    #[error("page {0} fails its checksum")]
    Page(u32),
    /// The checksums hold, the records do not: the writer's fault.
    #[error("record {at} of the batch: {why}")]
    Record {
        /// Its place in the batch, from 0.
        at: u32,
        /// What is wrong.
        why: record::Malformed,
    },
    /// The batch was written for another place: a block of an earlier use of the file, or a misdirected write.
    #[error("the batch was written for another place")]
    Place,
}

/// How long a batch is: all that may be known before its body is at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lengths {
    /// Header and page table.
    pub head: usize,
    /// What travels.
    pub travel: usize,
    /// What it takes on disk.
    pub disk: usize,
}

impl Lengths {
    fn of_body(body_len: usize) -> Lengths {
        // n blocks hold the header, n checksums and the body: 4096 n >= 128 + 4 n + body.
        let n = (HEADER + body_len).div_ceil(BLOCK - 4);
        let head = HEADER + 4 * n;
        Lengths { head, travel: head + body_len, disk: n * BLOCK }
    }

    /// Reads the lengths out of a header whose checksum holds. `bytes` begins with the batch and has at least
    /// `min(HEAD_MAX, all there is)` bytes.
    pub fn of_head(bytes: &[u8]) -> Result<Lengths, Fault> {
        if bytes.len() < HEADER {
            return Err(Fault::Length { seen: bytes.len(), expected: HEADER });
        }
        if u32_at(bytes, 0) != MAGIC {
            return Err(Fault::Magic(u32_at(bytes, 0)));
        }
        let head = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
        if !(HEADER + 4..=HEAD_MAX).contains(&head) {
            return Err(Fault::Field("length"));
        }
        if bytes.len() < head {
            return Err(Fault::Length { seen: bytes.len(), expected: head });
        }
        let (seen, expected) = (crc32fast::hash(&bytes[20..head]), u32_at(bytes, 16));
        if seen != expected {
            return Err(Fault::Header { seen, expected });
        }
        let lengths = Lengths::of_body(u32_at(bytes, 40) as usize);
        if lengths.head != head || lengths.disk > BATCH_MAX {
            return Err(Fault::Field("body length"));
        }
        Ok(lengths)
    }
}

impl Placed {
    /// Whole blocks.
    pub fn disk_len(&self) -> usize {
        self.parts.iter().map(|(bytes, _)| bytes.len().next_multiple_of(BLOCK)).sum()
    }

    /// Puts what was placed behind this in the same write.
    pub fn then(&mut self, next: Placed) {
        self.parts.extend(next.parts);
    }

    /// Fills `out`, which has `disk_len` bytes, whatever it held.
    pub fn copy_to(&self, out: &mut [u8]) {
        assert_eq!(out.len(), self.disk_len(), "the caller has asked for the length");
        let mut rest = out;
        for (bytes, stamp) in &self.parts {
            let (blocks, behind) = rest.split_at_mut(bytes.len().next_multiple_of(BLOCK));
            let (batch, padding) = blocks.split_at_mut(bytes.len());
            batch.copy_from_slice(bytes);
            batch[4..8].copy_from_slice(&stamp.place_crc.to_le_bytes());
            batch[8..16].copy_from_slice(&stamp.local_durable_seq.to_le_bytes());
            padding.fill(0);
            rest = behind;
        }
    }

    /// All of it.
    pub fn to_bytes(&self) -> BytesMut {
        let mut out = BytesMut::zeroed(self.disk_len());
        self.copy_to(&mut out);
        out
    }
}

impl Batch {
    /// Makes a batch of `records`, the first of which gets `first_seq`.
    ///
    /// Precondition: there is at least one, each passes `Record::check`, and together they fit `BATCH_MAX`.
    pub fn build(origin: &Origin, first_seq: u64, prev_chain: u32, append_ns: u64, records: &[Record]) -> Batch {
        let hlcs = || records.iter().map(|r| r.hlc);
        let first_hlc = hlcs().min().expect("a batch has at least one record");
        let last_hlc = hlcs().max().expect("a batch has at least one record");
        let body_len = records.iter().map(|r| r.len(first_hlc)).sum();
        let lengths = Lengths::of_body(body_len);
        assert!(lengths.disk <= BATCH_MAX, "the log cuts a batch before it is too long");
        let transactions = 1 + records.windows(2).filter(|w| w[0].transaction != w[1].transaction).count();

        let mut out = BytesMut::with_capacity(lengths.travel);
        out.put_u32_le(MAGIC);
        out.put_bytes(0, 12); // the stamp of a disk
        out.put_u32_le(0); // header_crc, below
        out.put_u16_le(lengths.head as u16);
        out.put_u8(VERSION);
        out.put_u8(0); // codec: none
        out.put_u32_le(0); // flags
        out.put_u32_le(origin.stream);
        out.put_u16_le(origin.zone.0.into());
        out.put_u16_le(0);
        out.put_u32_le(records.len() as u32);
        out.put_u32_le(body_len as u32);
        out.put_u32_le(body_len as u32); // raw_len: the body is as it was
        out.put_u32_le(0); // raw_crc: the pages say it all while the codec is none
        out.put_u32_le(prev_chain);
        out.put_u64_le(first_seq);
        out.put_u64_le(origin.term);
        out.put_u64_le(first_hlc.0);
        out.put_u64_le(last_hlc.0);
        out.put_u64_le(append_ns);
        out.put_u32_le(transactions as u32);
        out.put_u32_le(0); // schema epoch
        out.put_u64_le(origin.log_uuid_lo);
        out.put_bytes(0, HEADER - 112);
        out.put_bytes(0, lengths.head - HEADER); // the page table, below
        records.iter().for_each(|r| r.put(&mut out, first_hlc));
        assert_eq!(out.len(), lengths.travel, "a record is as long as it said");
        let (head, body) = out.split_at_mut(lengths.head);
        for (page, slot) in head[HEADER..].chunks_exact_mut(4).enumerate() {
            slot.copy_from_slice(&page_crc(body, lengths.head, page).to_le_bytes());
        }
        let chain = crc32fast::hash(&head[20..]);
        head[16..20].copy_from_slice(&chain.to_le_bytes());
        Batch {
            stream: origin.stream,
            zone: origin.zone,
            first_seq,
            records: records.len() as u32,
            term: origin.term,
            prev_chain,
            chain,
            first_hlc,
            last_hlc,
            append_ns,
            log_uuid_lo: origin.log_uuid_lo,
            bytes: out.freeze(),
        }
    }

    /// Verifies everything that a batch says of itself: header, pages, fields, each record. `bytes` is what travelled,
    /// exactly; a disk's stamp in it is wiped.
    pub fn parse(bytes: Bytes) -> Result<Batch, Fault> {
        let lengths = Lengths::of_head(&bytes)?;
        if bytes.len() != lengths.travel {
            return Err(Fault::Length { seen: bytes.len(), expected: lengths.travel });
        }
        let batch = Batch::fields(&bytes)?;
        for page in 0..lengths.disk / BLOCK {
            if page_crc(&bytes[lengths.head..], lengths.head, page) != u32_at(&bytes, HEADER + 4 * page) {
                return Err(Fault::Page(page as u32));
            }
        }
        let batch = Batch { bytes: unstamped(bytes), ..batch };
        batch.check_records()?;
        Ok(batch)
    }

    /// Verifies a batch as it lies on disk at `pos` of a segment with this salt; `disk` begins with it.
    pub fn read(disk: &Bytes, salt: u64, pos: u64) -> Result<(Batch, Stamp), Fault> {
        let (lengths, stamp) = Batch::frame(disk, salt, pos)?;
        Ok((Batch::parse(disk.slice(..lengths.travel))?, stamp))
    }

    /// What a disk has added to a batch: it is all there, it was written for this place, and zeros follow it.
    fn frame(disk: &[u8], salt: u64, pos: u64) -> Result<(Lengths, Stamp), Fault> {
        let lengths = Lengths::of_head(disk)?;
        if disk.len() < lengths.disk {
            return Err(Fault::Length { seen: disk.len(), expected: lengths.disk });
        }
        let stamp = Stamp::of(disk);
        if stamp.place_crc != place_crc(salt, pos, stamp.local_durable_seq, u32_at(disk, 16)) {
            return Err(Fault::Place);
        }
        let padding = &disk[lengths.travel..lengths.disk];
        if padding.iter().any(|b| *b != 0) {
            return Err(Fault::Page((lengths.disk / BLOCK - 1) as u32));
        }
        Ok((lengths, stamp))
    }

    /// The bytes for a disk: stamped for `pos` of a segment with this salt, and padded to whole blocks.
    pub fn place(&self, salt: u64, pos: u64, local_durable_seq: u64) -> BytesMut {
        self.placed(salt, pos, local_durable_seq).to_bytes()
    }

    /// The same, not put together yet: a driver copies it straight to where the disk takes it from.
    pub fn placed(&self, salt: u64, pos: u64, local_durable_seq: u64) -> Placed {
        let place_crc = place_crc(salt, pos, local_durable_seq, self.chain);
        Placed { parts: vec![(self.bytes.clone(), Stamp { place_crc, local_durable_seq })] }
    }

    /// The seq of its last record.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.records) - 1
    }

    /// Bytes it takes on disk.
    pub fn disk_len(&self) -> usize {
        self.bytes.len().next_multiple_of(BLOCK)
    }

    /// Its records with their seqs. `parse` has seen each of them once, so that an error here is a fault of this program.
    pub fn iter(&self) -> impl Iterator<Item = Result<(u64, Record), Fault>> + use<> {
        let mut body = self.bytes.slice(Lengths::of_body(u32_at(&self.bytes, 40) as usize).head..);
        let (first_seq, base) = (self.first_seq, self.first_hlc);
        (0..self.records).map(move |at| {
            let record = Record::take(&mut body, base).map_err(|why| Fault::Record { at, why })?;
            Ok((first_seq + u64::from(at), record))
        })
    }

    /// The FENCEs in it: whose, and from which epoch on. A walk through a whole log asks every batch, so that nothing is allocated.
    pub fn fences(&self) -> impl Iterator<Item = (Shard, OwnerEpoch)> + '_ {
        let (mut body, base) = (self.body(), self.first_hlc);
        let records = (0..self.records).map_while(move |_| View::take(&mut body, base).ok());
        records.filter(|r| r.op == record::Op::Fence).map(|r| (r.shard, r.owner_epoch))
    }

    /// Is every record an idle marker?
    pub fn is_marker(&self) -> bool {
        self.records == 1 && self.iter().all(|r| r.is_ok_and(|(_, r)| r.op == record::Op::Marker))
    }

    /// The header of the batch as it lies on disk at `pos` of a segment with this salt, without a look at its body: the fields
    /// (`bytes` is empty), and how long it is. `disk` begins with it and has `min(HEAD_MAX, all there is)` bytes.
    pub fn head(disk: &Bytes, salt: u64, pos: u64) -> Result<(Batch, Lengths), Fault> {
        let lengths = Lengths::of_head(disk)?;
        let stamp = Stamp::of(disk);
        if stamp.place_crc != place_crc(salt, pos, stamp.local_durable_seq, u32_at(disk, 16)) {
            return Err(Fault::Place);
        }
        Ok((Batch::fields(disk)?, lengths))
    }

    /// The fields of a header whose checksum holds, without the body; for judging what a block once was.
    pub(crate) fn fields_at(head: &Bytes) -> Option<Batch> {
        Lengths::of_head(head).ok().and_then(|_| Batch::fields(head).ok())
    }

    /// The header's fields, out of bytes whose header checksum holds.
    fn fields(bytes: &Bytes) -> Result<Batch, Fault> {
        let b = &bytes[..];
        let known = [
            ("batch of format version", b[22].into(), VERSION),
            ("batch with codec", b[23].into(), 0),
            ("batch with flags", u32_at(b, 24), 0),
        ];
        if let Some((what, seen, known)) = known.into_iter().find(|(_, seen, known)| *seen != u32::from(*known)) {
            return Err(Fault::Newer { what, seen, known });
        }
        let zone = u16::from_le_bytes([b[32], b[33]]);
        let batch = Batch {
            stream: u32_at(b, 28),
            zone: Zone(zone as u8),
            first_seq: u64_at(b, 56),
            records: u32_at(b, 36),
            term: u64_at(b, 64),
            prev_chain: u32_at(b, 52),
            chain: u32_at(b, 16),
            first_hlc: Hlc(u64_at(b, 72)),
            last_hlc: Hlc(u64_at(b, 80)),
            append_ns: u64_at(b, 88),
            log_uuid_lo: u64_at(b, 104),
            bytes: Bytes::new(),
        };
        let wrong = [
            (usize::from(zone) >= ZONES, "zone"),
            (batch.records == 0, "number of records"),
            (batch.first_seq == 0, "first seq"),
            (batch.first_seq.checked_add(batch.records.into()).is_none(), "first seq"),
            (batch.first_hlc > batch.last_hlc, "HLC"),
            (u32_at(b, 44) != u32_at(b, 40), "raw length"),
            (u32_at(b, 48) != 0, "raw checksum"),
            (b[34] | b[35] != 0 || b[112..HEADER].iter().any(|x| *x != 0), "reserved bytes"),
        ];
        match wrong.into_iter().find(|(is, _)| *is) {
            Some((_, what)) => Err(Fault::Field(what)),
            None => Ok(batch),
        }
    }

    fn check_records(&self) -> Result<(), Fault> {
        let mut body = self.body();
        for at in 0..self.records {
            let record = View::take(&mut body, self.first_hlc).map_err(|why| Fault::Record { at, why })?;
            if record.hlc > self.last_hlc {
                return Err(Fault::Record { at, why: record::Malformed::Range("HLC") });
            }
        }
        if body.is_empty() { Ok(()) } else { Err(Fault::Field("number of records")) }
    }

    fn body(&self) -> &[u8] {
        &self.bytes[Lengths::of_body(u32_at(&self.bytes, 40) as usize).head..]
    }
}

impl Stamp {
    /// The stamp of a batch as it lies on disk.
    pub fn of(disk: &[u8]) -> Stamp {
        Stamp { place_crc: u32_at(disk, 4), local_durable_seq: u64_at(disk, 8) }
    }
}

/// CRC of one disk block's share of the body and of the zeros behind it; the header's share is under header_crc.
fn page_crc(body: &[u8], head: usize, page: usize) -> u32 {
    let (from, to) = ((page * BLOCK).max(head), ((page + 1) * BLOCK).max(head));
    let (from, to) = (from - head, to - head);
    let held = &body[from.min(body.len())..to.min(body.len())];
    let mut crc = crc32fast::Hasher::new();
    crc.update(held);
    crc.update(&[0; BLOCK][..to - from - held.len()]);
    crc.finalize()
}

/// The stamp of a batch that was written at `pos` of a segment with this salt, if the header and the stamp hold; whatever became of
/// its body. `head` begins with the batch and has at least `min(HEAD_MAX, all there is)` bytes.
pub fn stamp_at(head: &[u8], salt: u64, pos: u64) -> Option<Stamp> {
    Lengths::of_head(head).ok()?;
    let stamp = Stamp::of(head);
    (stamp.place_crc == place_crc(salt, pos, stamp.local_durable_seq, u32_at(head, 16))).then_some(stamp)
}

pub(crate) fn place_crc(salt: u64, pos: u64, local_durable_seq: u64, header_crc: u32) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in [salt, pos, local_durable_seq] {
        crc.update(&part.to_le_bytes());
    }
    crc.update(&header_crc.to_le_bytes());
    crc.finalize()
}

fn unstamped(bytes: Bytes) -> Bytes {
    if bytes[4..16].iter().all(|b| *b == 0) {
        return bytes;
    }
    let mut own = BytesMut::from(&bytes[..]);
    own[4..16].fill(0);
    own.freeze()
}

/// A little-endian `u32`; the caller has seen that the bytes are there.
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*b[at..].first_chunk().expect("the caller has checked the length"))
}

/// A little-endian `u64`; the caller has seen that the bytes are there.
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*b[at..].first_chunk().expect("the caller has checked the length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { stream: 2, zone: Zone(1), term: 3, log_uuid_lo: 0x0807_0605_0403_0201 };

    fn put(value: Vec<u8>) -> Record {
        let (table, key, value) = (Bytes::from_static(b"orders"), Bytes::from_static(b"42"), value.into());
        let hlc = Hlc::new(1_700_000_000_000, 0);
        Record {
            op: record::Op::Put,
            transaction: 0,
            shard: Shard(300),
            owner_epoch: OwnerEpoch(7),
            hlc,
            table,
            key,
            value,
        }
    }

    fn batch(bytes: usize) -> Batch {
        Batch::build(&ORIGIN, 10, 0xfeed, 99, &[put(vec![b'x'; bytes]), Record::marker(Hlc::new(1_700_000_000_000, 1))])
    }

    #[test]
    fn the_bytes_of_a_batch_are_frozen() {
        let hex: String = batch(3).bytes.iter().map(|b| format!("{b:02x}")).collect();
        let golden = concat!(
            "524c4231000000000000000000000000",                 // RLB1, a disk's stamp
            "f3cb56e9",                                         // header_crc
            "84000100000000000200000001000000", // hdr_len 132, version 1, no codec, no flags, stream 2, zone 1
            "02000000",                         // records
            "1c0000001c00000000000000",         // body_len, raw_len, raw_crc
            "edfe00000a000000000000000300000000000000", // prev_chain, first seq, term
            "00000068e5cf8b0101000068e5cf8b01", // first and last HLC
            "63000000000000000100000000000000", // append time, transactions, schema epoch
            "010203040506070800000000000000000000000000000000", // log_uuid, reserved
            "c03ba11d",                         // the one page
            "0100ac020700066f726465727302343203787878", // the order
            "0400000001000000",                 // the marker
        );
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_batch_of_any_length_survives_travel_and_disk() {
        // Around the lengths where a block more is taken, and where the page table outgrows the first block.
        for bytes in (3900..4120).chain(1_048_000..1_048_010) {
            let b = batch(bytes);
            assert_eq!(Batch::parse(b.bytes.clone()).as_ref(), Ok(&b), "{bytes}");
            let disk = b.place(5, 8192, 9).freeze();
            assert_eq!(disk.len(), b.disk_len());
            let (read, stamp) = Batch::read(&disk, 5, 8192).unwrap();
            assert_eq!((&read, stamp.local_durable_seq), (&b, 9), "{bytes}");
        }
        let whole: Vec<Record> = (0..3).map(|_| put(vec![7; 1024 * 1024])).collect();
        let b = Batch::build(&ORIGIN, 1, 0, 0, &whole);
        assert_eq!(Batch::parse(b.bytes.clone()), Ok(b));
    }

    #[test]
    fn records_come_back_with_their_seqs() {
        let all: Vec<_> = batch(3).iter().map(Result::unwrap).collect();
        assert_eq!(all[0], (10, put(b"xxx".to_vec())));
        assert_eq!((all[1].0, all[1].1.op), (11, record::Op::Marker));
        assert_eq!((batch(3).last_seq(), batch(3).is_marker()), (11, false));
        let fence = Record { op: record::Op::Fence, shard: Shard(9), ..put(Vec::new()) };
        let fenced = Batch::build(&ORIGIN, 1, 0, 0, &[put(Vec::new()), fence, put(vec![3])]);
        assert_eq!(fenced.fences().collect::<Vec<_>>(), [(Shard(9), OwnerEpoch(7))]);
        assert_eq!(batch(3).fences().count(), 0);
    }

    #[test]
    fn every_flipped_bit_is_found_on_disk_and_on_the_wire() {
        let b = batch(3);
        for bit in 0..b.bytes.len() * 8 {
            let mut bytes = BytesMut::from(&b.bytes[..]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let stamp = (32..128).contains(&bit); // what a disk adds, wiped when a batch is taken off it
            assert_eq!(Batch::parse(bytes.freeze()).is_ok(), stamp, "bit {bit}");
        }
        let disk = b.place(5, 8192, 9);
        for bit in 0..disk.len() * 8 {
            let mut bytes = disk.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::read(&bytes.freeze(), 5, 8192).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_at_another_place_or_of_another_use_of_the_file_is_not_taken() {
        let disk = batch(3).place(5, 8192, 9).freeze();
        assert_eq!(Batch::read(&disk, 6, 8192).unwrap_err(), Fault::Place);
        assert_eq!(Batch::read(&disk, 5, 4096).unwrap_err(), Fault::Place);
    }

    /// A batch with bytes changed by `change` and its header's checksum made to fit again.
    fn forged(change: impl FnOnce(&mut [u8])) -> Result<Batch, Fault> {
        let mut bytes = BytesMut::from(&batch(3).bytes[..]);
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes[20..132]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        Batch::parse(bytes.freeze())
    }

    #[test]
    fn a_forged_header_is_refused_field_by_field() {
        assert!(matches!(forged(|b| b[22] = 2), Err(Fault::Newer { seen: 2, known: 1, .. })));
        assert!(matches!(forged(|b| b[23] = 1), Err(Fault::Newer { what: "batch with codec", seen: 1, .. })));
        assert!(matches!(forged(|b| b[24] = 1), Err(Fault::Newer { what: "batch with flags", seen: 1, .. })));
        assert_eq!(forged(|b| b[32] = 15), Err(Fault::Field("zone")));
        assert_eq!(forged(|b| b[33] = 1), Err(Fault::Field("zone")));
        assert_eq!(forged(|b| b[36..40].fill(0)), Err(Fault::Field("number of records")));
        assert_eq!(forged(|b| b[36] = 1), Err(Fault::Field("number of records")));
        assert!(matches!(forged(|b| b[36] = 3), Err(Fault::Record { at: 2, .. })));
        assert_eq!(forged(|b| b[56..64].fill(0)), Err(Fault::Field("first seq")));
        assert_eq!(forged(|b| b[56..64].fill(0xff)), Err(Fault::Field("first seq")));
        assert_eq!(forged(|b| b[72..80].fill(0xff)), Err(Fault::Field("HLC")));
        assert!(matches!(forged(|b| b[40] += 1), Err(Fault::Length { .. })));
        assert_eq!(forged(|b| b[40..44].fill(0xff)), Err(Fault::Field("body length")));
    }

    #[test]
    fn random_bytes_are_refused_and_never_panic() {
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        for round in 0..20_000 {
            let mut bytes = BytesMut::from(&batch(40).bytes[..]);
            for _ in 0..round % 5 + 1 {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let at = x as usize % bytes.len();
                bytes[at] = (x >> 32) as u8;
            }
            bytes.truncate(bytes.len() - (x >> 40) as usize % 3 * 40);
            if round % 2 == 0 && bytes.len() > 132 {
                let crc = crc32fast::hash(&bytes[20..132]);
                bytes[16..20].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(batch) = Batch::parse(bytes.freeze()) {
                assert!(batch.iter().all(|r| r.is_ok()));
            }
        }
    }
}
