//! What a worker is asked to do, and what it saw: one JSON line each way.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// How appends follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Load {
    /// So many writers, each with one append under way at any time, of so many records.
    Closed { writers: usize, records: usize },
    /// One record at a time, due at fixed times, whatever the log does: what waits counts as latency.
    Even { rate: f64 },
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    pub load: Load,
    /// A record as ours encodes it, all in all; a peer gets the same key and value in its own way.
    pub record_bytes: usize,
    /// It ends after this ...
    pub seconds: f64,
    /// ... or after so many bytes of records; 0: no such limit.
    pub bytes: u64,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub seconds: f64,
    /// Durable records, and bytes of them.
    pub records: u64,
    pub bytes: u64,
    /// Flushes seen, or transactions; 0: it does not tell.
    pub commits: u64,
    /// On a processor, kernel workers of the same process included.
    pub cpu_ns: u64,
    /// From due (or begun, in a closed loop) to durable.
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// How late the driver itself was.
    pub late_p99_us: f64,
    /// The most memory of the process so far.
    pub peak_bytes: u64,
}

impl Sample {
    pub fn records_per_s(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    pub fn commits_per_s(&self) -> f64 {
        self.commits as f64 / self.seconds
    }

    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Bytes of a flush as they lie on disk: records, header and page table, in whole blocks.
    pub fn block_bytes(&self) -> u64 {
        const BLOCK: u64 = replog::limits::BLOCK as u64;
        let body = self.bytes / self.commits.max(1) + replog::limits::HEADER as u64;
        body.div_ceil(BLOCK - 4) * BLOCK
    }
}

/// Latencies in nanoseconds.
pub struct Times(Histogram<u64>);

impl Times {
    pub fn new() -> Times {
        Times(Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are in range"))
    }

    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub fn add(&mut self, other: &Times) {
        self.0.add(&other.0).expect("the bounds are the same");
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// In microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Fills in the latencies of a sample.
    pub fn tell(&self, sample: &mut Sample) {
        sample.p50_us = self.quantile_us(0.5);
        sample.p99_us = self.quantile_us(0.99);
        sample.p999_us = self.quantile_us(0.999);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_counted_in_whole_blocks_with_header_and_page_table() {
        let of = |bytes| Sample { bytes, commits: 1, ..Sample::default() }.block_bytes();
        assert_eq!((of(1), of(4092 - 128), of(4092 - 127)), (4096, 4096, 8192));
        assert_eq!(of(256 * 1024 - 128 - 4 * 64), 256 * 1024);
        assert_eq!(Sample { bytes: 40_960, ..Sample::default() }.block_bytes(), 45_056);
    }

    #[test]
    fn an_ask_survives_the_way_to_a_worker() {
        for load in [Load::Closed { writers: 4, records: 2 }, Load::Even { rate: 1e3 }] {
            let ask = Ask { load, record_bytes: 200, seconds: 0.5, bytes: 0 };
            assert_eq!(serde_json::from_str::<Ask>(&serde_json::to_string(&ask).unwrap()).unwrap(), ask);
        }
    }
}
