//! The phase that opens a log after a crash: every byte of it is read and verified, beside fio's sequential read.

use super::figures::{What, Who};
use super::fio::{Job, Work};
use super::phases::commit_record_bytes;
use super::sample::{Ask, Load};
use super::worker::Kind;
use super::{Bench, Phase, ours};
use crate::sys;
use replog::uring::stream::StreamLog;
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

/// Commits under way while the log is written.
const DEPTH: usize = 4;

pub fn after_crash(bench: &mut Bench) -> Result<(), String> {
    let mut worker = bench.worker(Kind::OursKept, "open")?;
    let load = Load::Closed { writers: DEPTH, records: 1 };
    let bytes = bench.args.open_bytes();
    let written = worker.run(&Ask { load, record_bytes: commit_record_bytes(), seconds: 3600.0, bytes })?;
    worker.kill();
    let dir = bench.dir.join("open").join("ours");
    for round in 0..bench.args.rounds() {
        forget(&dir)?;
        let (core, segment_bytes, path) = (bench.core, bench.args.segment_bytes(), dir.clone());
        let (cpu, begun) = (sys::cpu_ns(), Instant::now());
        let (seconds, records) = ours::on_core(core, move || async move {
            let (log, opened, _) =
                StreamLog::open(&path, ours::options(segment_bytes)).await.map_err(|e| e.to_string())?;
            let seconds = begun.elapsed().as_secs_f64();
            drop(log); // as a crash would: nothing is closed, and the next round opens it again
            Ok((seconds, opened.durable_seq))
        })?;
        let cpu_ns = sys::cpu_ns() - cpu;
        if records < written.records {
            return Err(format!("{} records were acknowledged, {records} are there after the crash", written.records));
        }
        bench.put(What::OpenBytesPerS, Who::Ours, round, written.bytes as f64 / seconds);
        bench.put(What::OpenCpuMsPerGb, Who::Ours, round, cpu_ns as f64 / 1e6 / (written.bytes as f64 / 1e9));
        if let Some(fio) = &bench.fio {
            let bytes = bench.args.fio_bytes();
            let job = Job { work: Work::Read, block_bytes: 1 << 20, depth: DEPTH, seconds: 0.0, bytes, rate: 0 };
            let sample = fio.run(&job)?;
            bench.put(What::OpenBytesPerS, Who::Fio, round, sample.bytes_per_s());
        }
        bench.said(Phase::Open, round);
    }
    bench.report.notes.push(format!(
        "open: {:.2} GB in batches of up to {DEPTH} records of 256 KiB, killed, not in the page cache; every byte read, none vouched for",
        written.bytes as f64 / 1e9
    ));
    bench.remove(worker, "open")
}

/// What was read before is not in memory any more.
fn forget(dir: &Path) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_file() {
            File::open(path).and_then(|f| sys::forget(&f)).map_err(io)?;
        }
    }
    Ok(())
}
