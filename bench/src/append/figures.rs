//! What the rounds measured, by figure, place and who; ratios are taken within a round.

use crate::compare::figures::Spread;
use std::collections::BTreeMap;

/// Who is measured. Ours and the ceiling run twice a round: what they differ from themselves is the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Ours,
    OursAgain,
    Fio,
    FioAgain,
    /// Write and fdatasync in a plain loop.
    Raw,
    Sqlite,
    RaftEngine,
    Nats,
}

impl Who {
    pub const ALL: [Who; 8] =
        [Who::Ours, Who::OursAgain, Who::Fio, Who::FioAgain, Who::Raw, Who::Sqlite, Who::RaftEngine, Who::Nats];

    pub fn name(self) -> &'static str {
        match self {
            Who::Ours => "ours",
            Who::OursAgain => "ours again",
            Who::Fio => "fio",
            Who::FioAgain => "fio again",
            Who::Raw => "raw loop",
            Who::Sqlite => "SQLite",
            Who::RaftEngine => "raft-engine",
            Who::Nats => "NATS JetStream",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    SustainedBytesPerS,
    SustainedCpuMsPerGb,
    FreshBytesPerS,
    SmallCommitsPerS,
    SmallCpuUsPerCommit,
    SmallBatchBytes,
    SmallRecordsPerS,
    SmallCpuMsPerThousand,
    BatchedRecordsPerS,
    BatchedCpuMsPerThousand,
    P50Us,
    P99Us,
    P999Us,
    LateUs,
    LatencyCpuUsPerCommit,
    PeerRecordsPerS,
    PeerCpuMsPerThousand,
    PeerBatchedRecordsPerS,
    /// At the same rate as SQLite, raft-engine, NATS.
    PeerP99Us(Who),
    OpenBytesPerS,
    OpenCpuMsPerGb,
    PeakBytes,
}

impl What {
    /// Its key in JSON, its title, and what a value is divided by when it is shown.
    pub fn words(self) -> (String, String, f64) {
        let (key, title, unit) = match self {
            What::SustainedBytesPerS => ("sustained_bytes_per_s", "durable 256 KiB commits, MB/s", 1e6),
            What::SustainedCpuMsPerGb => ("sustained_cpu_ms_per_gb", "the same, CPU ms / GB", 1.0),
            What::FreshBytesPerS => ("fresh_bytes_per_s", "the same into fresh segments, zeroed first, MB/s", 1e6),
            What::SmallCommitsPerS => ("small_commits_per_s", "commits/s of small records, one an append", 1.0),
            What::SmallCpuUsPerCommit => ("small_cpu_us_per_commit", "the same, CPU us / commit", 1.0),
            What::SmallBatchBytes => ("small_batch_bytes", "the same, bytes of a mean batch", 1.0),
            What::SmallRecordsPerS => ("small_records_per_s", "the same, durable records/s", 1.0),
            What::SmallCpuMsPerThousand => ("small_cpu_ms_per_1000", "the same, CPU ms / 1,000 records", 1.0),
            What::BatchedRecordsPerS => ("batched_records_per_s", "durable small records/s, several an append", 1.0),
            What::BatchedCpuMsPerThousand => ("batched_cpu_ms_per_1000", "the same, CPU ms / 1,000 records", 1.0),
            What::P50Us => ("p50_us", "one durable append at a fixed rate, p50 us", 1.0),
            What::P99Us => ("p99_us", "the same, p99 us", 1.0),
            What::P999Us => ("p999_us", "the same, p99.9 us", 1.0),
            What::LateUs => ("late_p99_us", "the same, of it the driver's own lateness, p99 us", 1.0),
            What::LatencyCpuUsPerCommit => ("latency_cpu_us_per_commit", "the same, CPU us / append", 1.0),
            What::PeerRecordsPerS => ("peer_records_per_s", "durable records/s, one an append", 1.0),
            What::PeerCpuMsPerThousand => ("peer_cpu_ms_per_1000", "the same, CPU ms / 1,000 records", 1.0),
            What::PeerBatchedRecordsPerS => ("peer_batched_records_per_s", "durable records/s, 64 an append", 1.0),
            What::PeerP99Us(who) => {
                let key = format!("peer_p99_us_{}", who.name().to_lowercase().replace([' ', '-'], "_"));
                return (key, format!("p99 us of a durable append at the same rate as {}", who.name()), 1.0);
            }
            What::OpenBytesPerS => ("open_bytes_per_s", "open after a crash, MB/s read", 1e6),
            What::OpenCpuMsPerGb => ("open_cpu_ms_per_gb", "the same, CPU ms / GB", 1.0),
            What::PeakBytes => ("peak_bytes", "most memory of the process, MiB", 1048576.0),
        };
        (key.into(), title.into(), unit)
    }
}

/// Values by what, who and round.
#[derive(Debug, Default)]
pub struct Figures {
    rows: BTreeMap<(What, Who), BTreeMap<usize, f64>>,
}

impl Figures {
    pub fn put(&mut self, what: What, who: Who, round: usize, value: f64) {
        self.rows.entry((what, who)).or_default().insert(round, value);
    }

    /// What was measured of anybody, in order.
    pub fn whats(&self) -> Vec<What> {
        let mut all: Vec<What> = self.rows.keys().map(|k| k.0).collect();
        all.dedup();
        all
    }

    pub fn of(&self, what: What, who: Who) -> Option<Spread> {
        Spread::of(self.rows.get(&(what, who))?.values().copied().collect())
    }

    /// `who` to `to`, each ratio of one round. Who ran twice counts twice.
    pub fn ratio(&self, what: What, who: Who, to: Who) -> Option<Spread> {
        let mut all = self.ratios(what, who, to);
        if (who, to) == (Who::Ours, Who::Fio) {
            all.extend(self.ratios(what, Who::OursAgain, Who::FioAgain));
        }
        Spread::of(all)
    }

    fn ratios(&self, what: What, who: Who, to: Who) -> Vec<f64> {
        let (Some(these), Some(those)) = (self.rows.get(&(what, who)), self.rows.get(&(what, to))) else {
            return vec![];
        };
        these.iter().filter_map(|(round, v)| Some(v / those.get(round)?)).filter(|r| r.is_finite()).collect()
    }

    /// What ours and fio differ from themselves.
    pub fn noise(&self, what: What) -> Option<Spread> {
        let mut all = self.ratios(what, Who::OursAgain, Who::Ours);
        all.extend(self.ratios(what, Who::FioAgain, Who::Fio));
        Spread::of(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_to_fio_takes_both_pairs_of_a_round() {
        let mut figures = Figures::default();
        for (who, value) in [(Who::Ours, 80.0), (Who::Fio, 100.0), (Who::OursAgain, 90.0), (Who::FioAgain, 90.0)] {
            figures.put(What::SustainedBytesPerS, who, 0, value);
        }
        let ratio = figures.ratio(What::SustainedBytesPerS, Who::Ours, Who::Fio).unwrap();
        assert_eq!((ratio.low, ratio.high), (0.8, 1.0));
        let noise = figures.noise(What::SustainedBytesPerS).unwrap();
        assert_eq!((noise.low, noise.high), (0.9, 1.125));
        assert_eq!(figures.ratio(What::P50Us, Who::Ours, Who::Fio), None);
    }
}
