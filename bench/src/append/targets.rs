//! What the log is to reach beside the disk and its peers, and whether it did.

use super::figures::{Figures, What, Who};
use crate::compare::Target;
use crate::compare::figures::Spread;

/// All of them, measured or not.
pub fn all(figures: &Figures) -> Vec<Target> {
    let fio = |what| figures.ratio(what, Who::Ours, Who::Fio);
    let mut targets = vec![];
    let mut put = |name: String, limit, at_least, seen| targets.push(Target { name, limit, at_least, seen });
    put("bandwidth of durable 256 KiB commits, ours to fio".into(), 0.85, true, fio(What::SustainedBytesPerS));
    put("commits/s of small records, ours to fio at our mean batch".into(), 0.80, true, fio(What::SmallCommitsPerS));
    let batched = figures.of(What::BatchedRecordsPerS, Who::Ours);
    put("durable small records/s on one core, several an append".into(), 500_000.0, true, batched);
    put("p50 of one durable append at 1,000/s, ours to fio".into(), 1.5, false, fio(What::P50Us));
    put("p99 of one durable append at 1,000/s, ours to fio".into(), 2.0, false, fio(What::P99Us));
    for peer in [Who::Sqlite, Who::RaftEngine, Who::Nats] {
        let rate = figures.ratio(What::PeerRecordsPerS, Who::Ours, peer);
        put(format!("durable records/s, ours to {}", peer.name()), 1.0, true, rate);
        if peer != Who::Nats {
            let rate = figures.ratio(What::PeerBatchedRecordsPerS, Who::Ours, peer);
            put(format!("durable records/s, 64 an append, ours to {}", peer.name()), 1.0, true, rate);
        }
        let p99 = figures.ratio(What::PeerP99Us(peer), Who::Ours, peer);
        put(format!("p99 at equal rate, ours to {}", peer.name()), 1.0, false, p99);
    }
    put("bytes/s of an open after a crash, to the lower of 1 GB/s and fio's read".into(), 1.0, true, open(figures));
    targets
}

/// The ceiling is the disk's speed or 1 GB/s, whichever is lower.
fn open(figures: &Figures) -> Option<Spread> {
    let (ours, fio) = (figures.of(What::OpenBytesPerS, Who::Ours)?, figures.of(What::OpenBytesPerS, Who::Fio)?);
    if fio.median >= 1e9 {
        let of = |v| v / 1e9;
        let Spread { median, low, q25, q75, high } = ours;
        return Some(Spread { median: of(median), low: of(low), q25: of(q25), q75: of(q75), high: of(high) });
    }
    figures.ratio(What::OpenBytesPerS, Who::Ours, Who::Fio)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let mut figures = Figures::default();
        for round in 0..3 {
            figures.put(What::SustainedBytesPerS, Who::Ours, round, 9e8);
            figures.put(What::SustainedBytesPerS, Who::Fio, round, 1e9);
            figures.put(What::P99Us, Who::Ours, round, 900.0);
            figures.put(What::P99Us, Who::Fio, round, 300.0);
        }
        let all = all(&figures);
        let met = |name: &str| all.iter().find(|t| t.name.starts_with(name)).unwrap().met();
        assert_eq!(met("bandwidth"), Some(true));
        assert_eq!(met("p99 of one durable append"), Some(false));
        assert_eq!(met("durable records/s, ours to SQLite"), None);
    }

    #[test]
    fn an_open_is_held_against_the_slower_of_the_disk_and_1_gb_a_second() {
        for (ours, fio, seen) in [(6e8, 5e8, 1.2), (9e8, 2e9, 0.9)] {
            let mut figures = Figures::default();
            figures.put(What::OpenBytesPerS, Who::Ours, 0, ours);
            figures.put(What::OpenBytesPerS, Who::Fio, 0, fio);
            assert_eq!(open(&figures).unwrap().median, seen);
        }
    }
}
