//! Keys and values to write: random bytes, so that nobody gains by compressing them.

use crate::random::Random;
use bytes::Bytes;
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard};

/// The table of every record.
pub const TABLE: &[u8] = b"orders";
const KEY_BYTES: usize = 16;
/// What a record of ours has besides its value: op, numbers, table, key, lengths.
const OVERHEAD: usize = 1 + 1 + 1 + 1 + 2 + 1 + TABLE.len() + 1 + KEY_BYTES;
const POOL_BYTES: usize = 4 << 20;

/// Random bytes of which keys and values are pieces.
pub struct Data {
    pool: Bytes,
    value_bytes: usize,
    at: usize,
}

impl Data {
    /// Records that take `record_bytes` each in our encoding, within a byte or two.
    pub fn new(record_bytes: usize, seed: u64) -> Data {
        let mut random = Random(seed);
        let pool: Vec<u8> = (0..POOL_BYTES / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
        let lengths = if record_bytes < 16_384 { 2 } else { 3 };
        let value_bytes = record_bytes.saturating_sub(OVERHEAD + lengths).min(replog::limits::VALUE_MAX);
        Data { pool: pool.into(), value_bytes, at: 0 }
    }

    /// The next key and value.
    pub fn pair(&mut self) -> (Bytes, Bytes) {
        self.at += 64;
        if self.at + KEY_BYTES + self.value_bytes > self.pool.len() {
            self.at = self.at % 61 + 1;
        }
        let (key, value) = (self.at, self.at + KEY_BYTES);
        (self.pool.slice(key..value), self.pool.slice(value..value + self.value_bytes))
    }

    /// The next record.
    pub fn record(&mut self, transaction: u32, hlc: Hlc) -> Record {
        let (key, value) = self.pair();
        let table = Bytes::from_static(TABLE);
        Record { op: Op::Put, transaction, shard: Shard(1), owner_epoch: OwnerEpoch(1), hlc, table, key, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_what_was_asked_for() {
        for bytes in [200, 300, 4096, 262_000] {
            let mut data = Data::new(bytes, 1);
            for _ in 0..100_000 / (bytes / 100) {
                let mut out = Vec::new();
                data.record(0, Hlc(300)).put(&mut out, Hlc(0));
                assert_eq!(out.len(), bytes);
            }
        }
    }

    #[test]
    fn pieces_differ() {
        let mut data = Data::new(300, 1);
        let all: std::collections::BTreeSet<Bytes> = (0..1000).map(|_| data.pair().0).collect();
        assert_eq!(all.len(), 1000);
    }
}
