//! The phases whose ceiling is fio: sustained commits, small records, one append at a time.

use super::figures::{What, Who};
use super::fio::{Job, Work};
use super::sample::{Ask, Load, Sample};
use super::worker::{Kind, Worker};
use super::{Bench, Phase, order};

/// A durable commit of the sustained phase, as it lies on disk.
pub const COMMIT_BYTES: u64 = 256 * 1024;
/// A record of the small phase, and of the latency phase.
const SMALL_BYTES: usize = 200;
const LATENCY_BYTES: usize = 300;
const LATENCY_RATE: f64 = 1000.0;
/// Nothing that is measured by bytes takes longer.
const SECONDS_MAX: f64 = 3600.0;
/// What is written into fresh segments, to show what zeroing costs.
const FRESH_BYTES: u64 = 512 << 20;
const PAIRS: [Who; 4] = [Who::Ours, Who::Fio, Who::OursAgain, Who::FioAgain];

/// A record that fills `COMMIT_BYTES` together with its batch's header and page table.
pub fn commit_record_bytes() -> usize {
    let pages = COMMIT_BYTES as usize / replog::limits::BLOCK;
    COMMIT_BYTES as usize - replog::limits::HEADER - 4 * pages
}

fn is_ours(who: Who) -> bool {
    matches!(who, Who::Ours | Who::OursAgain)
}

/// Durable commits of 256 KiB, so many under way.
pub fn sustained(bench: &mut Bench) -> Result<(), String> {
    let (bytes, depth) = (bench.args.sustained_bytes(), bench.args.depth);
    let load = Load::Closed { writers: depth, records: 1 };
    let ask = Ask { load, record_bytes: commit_record_bytes(), seconds: SECONDS_MAX, bytes };
    let mut worker = bench.worker(Kind::Ours, "sustained")?;
    let warm = Ask { bytes: 16 * bench.args.segment_bytes(), ..ask };
    worker.run(&warm)?;
    let mut written = 0;
    for round in 0..bench.args.rounds() {
        for who in order(&PAIRS, round) {
            let sample = if is_ours(who) {
                worker.run(&ask)?
            } else {
                let job = Job { work: Work::Commit, block_bytes: COMMIT_BYTES, depth, seconds: 0.0, bytes, rate: 0 };
                let Some(fio) = &bench.fio else { continue };
                fio.run(&job)?
            };
            bench.put(What::SustainedBytesPerS, who, round, sample.bytes_per_s());
            bench.put(What::SustainedCpuMsPerGb, who, round, sample.cpu_ns as f64 / 1e6 / (sample.bytes as f64 / 1e9));
            if is_ours(who) {
                written += sample.bytes;
                bench.put(What::PeakBytes, who, round, sample.peak_bytes as f64);
            }
        }
        bench.said(Phase::Sustained, round);
    }
    bench.remove(worker, "sustained")?;
    bench.report.notes.push(format!("sustained: {:.1} GB of ours, {depth} commits under way", written as f64 / 1e9));
    fresh(bench, &ask)
}

/// The same where no segment was there before: each is zeroed first.
fn fresh(bench: &mut Bench, ask: &Ask) -> Result<(), String> {
    for round in 0..bench.args.rounds().min(3) {
        let mut worker = bench.worker(Kind::OursKept, "fresh")?;
        let sample = worker.run(&Ask { bytes: FRESH_BYTES.min(ask.bytes), ..*ask })?;
        bench.put(What::FreshBytesPerS, Who::Ours, round, sample.bytes_per_s());
        bench.remove(worker, "fresh")?;
    }
    Ok(())
}

/// Small records from many writers.
pub fn small(bench: &mut Bench) -> Result<(), String> {
    let mut worker = bench.worker(Kind::Ours, "small")?;
    let (writers, batch) = (bench.args.writers, bench.args.batch);
    let single = bench.args.ask(Load::Closed { writers, records: 1 }, SMALL_BYTES);
    let batched = bench.args.ask(Load::Closed { writers, records: batch }, SMALL_BYTES);
    worker.run(&Ask { seconds: single.seconds / 2.0, ..single })?;
    for round in 0..bench.args.rounds() {
        for (ours, fio) in [(Who::Ours, Who::Fio), (Who::OursAgain, Who::FioAgain)] {
            let sample = worker.run(&single)?;
            one_an_append(bench, ours, round, &sample);
            let Some(ceiling) = &bench.fio else { continue };
            let block_bytes = sample.block_bytes();
            let job = Job { work: Work::Commit, block_bytes, depth: 1, seconds: single.seconds, bytes: 0, rate: 0 };
            let sample = ceiling.run(&job)?;
            bench.put(What::SmallCommitsPerS, fio, round, sample.commits_per_s());
            bench.put(What::SmallCpuUsPerCommit, fio, round, sample.cpu_ns as f64 / 1e3 / sample.commits as f64);
        }
        let sample = worker.run(&batched)?;
        bench.put(What::BatchedRecordsPerS, Who::Ours, round, sample.records_per_s());
        bench.put(What::BatchedCpuMsPerThousand, Who::Ours, round, cpu_per_thousand(&sample));
        bench.said(Phase::Small, round);
    }
    bench.report.notes.push(format!(
        "small: records of {SMALL_BYTES} bytes, {writers} writers on the log's core, each waits for its append; one or {batch} \
         records an append"
    ));
    bench.remove(worker, "small")
}

fn one_an_append(bench: &mut Bench, who: Who, round: usize, sample: &Sample) {
    bench.put(What::SmallCommitsPerS, who, round, sample.commits_per_s());
    bench.put(What::SmallCpuUsPerCommit, who, round, sample.cpu_ns as f64 / 1e3 / sample.commits as f64);
    bench.put(What::SmallBatchBytes, who, round, sample.block_bytes() as f64);
    bench.put(What::SmallRecordsPerS, who, round, sample.records_per_s());
    bench.put(What::SmallCpuMsPerThousand, who, round, cpu_per_thousand(sample));
}

/// Milliseconds on a processor for 1,000 records.
pub fn cpu_per_thousand(sample: &Sample) -> f64 {
    sample.cpu_ns as f64 / 1e6 / (sample.records as f64 / 1e3)
}

/// One durable append at a time, at a fixed rate.
pub fn latency(bench: &mut Bench) -> Result<(), String> {
    let ask = bench.args.ask(Load::Even { rate: LATENCY_RATE }, LATENCY_BYTES);
    let mut workers = [bench.worker(Kind::Ours, "latency")?, bench.worker(Kind::Raw, "raw")?];
    for worker in &mut workers {
        worker.run(&Ask { seconds: ask.seconds / 2.0, ..ask })?;
    }
    let all = [&PAIRS[..], &[Who::Raw]].concat();
    for round in 0..bench.args.rounds() {
        for who in order(&all, round) {
            let Some(sample) = one_latency(bench, &mut workers, &ask, who)? else { continue };
            bench.put(What::P50Us, who, round, sample.p50_us);
            bench.put(What::P99Us, who, round, sample.p99_us);
            bench.put(What::P999Us, who, round, sample.p999_us);
            bench.put(What::LatencyCpuUsPerCommit, who, round, sample.cpu_ns as f64 / 1e3 / sample.records as f64);
            if is_ours(who) || who == Who::Raw {
                bench.put(What::LateUs, who, round, sample.late_p99_us);
            }
        }
        bench.said(Phase::Latency, round);
    }
    bench.report.notes.push(
        "latency: ours and the raw loop count from when an append was due; fio counts from when it began, write and fdatasync \
         apart: its p50 is the sum of both, its p99 the larger of both with the other's p50 (less than it was)"
            .into(),
    );
    let [ours, raw] = workers;
    bench.remove(ours, "latency")?;
    bench.remove(raw, "raw")
}

fn one_latency(bench: &Bench, workers: &mut [Worker; 2], ask: &Ask, who: Who) -> Result<Option<Sample>, String> {
    Ok(Some(match who {
        Who::Ours | Who::OursAgain => workers[0].run(ask)?,
        Who::Raw => workers[1].run(ask)?,
        Who::Fio | Who::FioAgain => {
            let rate = LATENCY_RATE as u64;
            let job = Job { work: Work::Commit, block_bytes: 4096, depth: 1, seconds: ask.seconds, bytes: 0, rate };
            let Some(fio) = &bench.fio else { return Ok(None) };
            fio.run(&job)?
        }
        Who::Sqlite | Who::RaftEngine | Who::Nats => return Ok(None),
    }))
}
