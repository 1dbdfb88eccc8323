//! Checks a batch where it lies, without a copy of it: for those who read a whole log and keep none of it.

use super::{Batch, Fault, Lengths, Stamp, page_crc, u32_at};
use crate::limits::{BLOCK, HEADER};
use crate::record::{Malformed, Op, View};
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};

/// A batch that was checked where it lies.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Its fields; `bytes` is empty.
    pub batch: Batch,
    /// How long it is.
    pub lengths: Lengths,
    /// What the disk added to it.
    pub stamp: Stamp,
    /// The FENCEs in it: whose, and from which epoch on.
    pub fences: Vec<(Shard, OwnerEpoch)>,
    /// All of it, as it lies there.
    pub disk: Bytes,
}

impl Batch {
    /// Verifies what [`Batch::read`] verifies, in the same order and with the same faults, in one pass and without a copy.
    pub fn inspect(disk: &Bytes, salt: u64, pos: u64) -> Result<Inspected, Fault> {
        let (lengths, stamp) = Batch::frame(disk, salt, pos)?;
        let batch = Batch::fields(disk)?;
        let body = &disk[lengths.head..lengths.travel];
        for page in 0..lengths.disk / BLOCK {
            if page_crc(body, lengths.head, page) != u32_at(disk, HEADER + 4 * page) {
                return Err(Fault::Page(page as u32));
            }
        }
        let fences = fences(&batch, body)?;
        Ok(Inspected { batch, lengths, stamp, fences, disk: disk.slice(..lengths.disk) })
    }
}

/// Walks through the records, each of which must hold.
fn fences(batch: &Batch, mut body: &[u8]) -> Result<Vec<(Shard, OwnerEpoch)>, Fault> {
    let mut fences = Vec::new();
    for at in 0..batch.records {
        let record = View::take(&mut body, batch.first_hlc).map_err(|why| Fault::Record { at, why })?;
        if record.hlc > batch.last_hlc {
            return Err(Fault::Record { at, why: Malformed::Range("HLC") });
        }
        if record.op == Op::Fence {
            fences.push((record.shard, record.owner_epoch));
        }
    }
    if body.is_empty() { Ok(fences) } else { Err(Fault::Field("number of records")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Origin, place_crc};
    use crate::{Hlc, Record};
    use bytes::BytesMut;
    use shardmap::Zone;

    fn disk() -> BytesMut {
        let origin = Origin { stream: 2, zone: Zone(1), term: 3, log_uuid_lo: 4 };
        let fence = Record {
            op: Op::Fence,
            transaction: 0,
            shard: Shard(9),
            owner_epoch: OwnerEpoch(7),
            hlc: Hlc(5),
            table: Bytes::new(),
            key: Bytes::new(),
            value: Bytes::from_static(&[0]),
        };
        let put = Record {
            op: Op::Put,
            table: "orders".into(),
            key: "1".into(),
            value: vec![7; 4_200].into(),
            ..fence.clone()
        };
        Batch::build(&origin, 10, 0xfeed, 99, &[fence, put]).place(5, 8192, 9)
    }

    #[test]
    fn it_sees_what_a_read_sees() {
        let bytes = disk().freeze();
        let (batch, stamp) = Batch::read(&bytes, 5, 8192).unwrap();
        let seen = Batch::inspect(&bytes, 5, 8192).unwrap();
        assert_eq!((seen.stamp, seen.lengths.disk, &seen.disk), (stamp, bytes.len(), &bytes));
        assert_eq!(seen.fences, [(Shard(9), OwnerEpoch(7))]);
        assert_eq!(seen.batch, Batch { bytes: Bytes::new(), ..batch });
    }

    #[test]
    fn it_calls_every_flipped_bit_and_every_cut_what_a_read_calls_it() {
        let whole = disk();
        let same = |bytes: BytesMut, what: &str| {
            let bytes = bytes.freeze();
            let (read, seen) = (Batch::read(&bytes, 5, 8192), Batch::inspect(&bytes, 5, 8192));
            assert_eq!(read.err(), seen.err(), "{what}");
        };
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            same(bytes, &format!("bit {bit}"));
        }
        for len in (0..whole.len()).step_by(61) {
            same(BytesMut::from(&whole[..len]), &format!("{len} bytes"));
        }
        // A record that cannot be, under checksums that hold.
        let mut bytes = whole.clone();
        let head = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
        bytes[head] = 0xee;
        let page = page_crc(&bytes[head..][..u32_at(&bytes, 40) as usize], head, 0);
        bytes[HEADER..HEADER + 4].copy_from_slice(&page.to_le_bytes());
        let crc = crc32fast::hash(&bytes[20..head]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        let place = place_crc(5, 8192, 9, crc);
        bytes[4..8].copy_from_slice(&place.to_le_bytes());
        assert!(matches!(Batch::inspect(&bytes.clone().freeze(), 5, 8192), Err(Fault::Record { at: 0, .. })));
        same(bytes, "a forged record");
    }
}
