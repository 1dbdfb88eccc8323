//! Puts the log beside fio on the same file system, and beside other durable logs, round by round.

mod beside;
mod data;
mod figures;
mod fio;
mod irq;
mod nats;
mod open;
mod ours;
mod phases;
mod raft;
mod raw;
mod report;
mod sample;
mod sqlite;
mod targets;
mod threads;
mod worker;

use figures::{What, Who};
use fio::Fio;
use report::Report;
use sample::{Ask, Load};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use worker::{Kind, Worker};

#[derive(clap::Args)]
#[command(after_help = "\
Every figure has fio's beside it, measured in the same round on the same file system with O_DIRECT; ours and fio run twice a
round: what they differ from themselves is the noise. Ratios are taken within a round. Ours is one log core (a glommio
executor, pinned) with every writer on it, in a process of its own. fio and nats-server are installed from Debian when
missing and root, else left out, and the report says so; raft-engine needs `cargo build -p bench --features raft-engine`.
Exit code 0: measured, whether targets were met or not. 2: wrong usage, or something failed.

Example: ezbench append --dir /var/lib/ezone --json")]
pub struct Args {
    /// Phases to run; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    phase: Vec<Phase>,
    /// Where logs and files are written, in a directory that is removed at the end: the disk to measure
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each load in each round, but for the sustained phase
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Written by ours in the sustained phase, all rounds together
    #[arg(long, default_value_t = 20.0)]
    gigabytes: f64,
    /// Commits of 256 KiB under way in the sustained phase, ours and fio's
    #[arg(long, default_value_t = 4)]
    depth: usize,
    /// Writers of the closed loops
    #[arg(long, default_value_t = 256)]
    writers: usize,
    /// Records of an append where several are allowed
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Written before the crash in the open phase
    #[arg(long, default_value_t = 2.0)]
    open_gigabytes: f64,
    /// Core of the log and of fio; the one that the disk interrupts by default. raft-engine and NATS may use all
    #[arg(long)]
    core: Option<usize>,
    /// NATS server, 2.10 or later
    #[arg(long, default_value = "nats-server")]
    nats_server: String,
    /// One round of a fraction of a second: shows that everything runs; its figures mean nothing
    #[arg(long)]
    tiny: bool,
    /// The last line is one JSON object
    #[arg(long)]
    json: bool,
    /// Answer loads on stdin instead: what this program starts
    #[arg(long, hide = true, value_enum)]
    worker: Option<Kind>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Phase {
    /// Durable commits of 256 KiB on recycled segments beside fio's writes of 256 KiB, each with an fdatasync
    Sustained,
    /// Records of 200 bytes from many writers, one and several an append, beside fio's writes of our mean batch
    Small,
    /// One durable append of 300 bytes at 1,000/s beside fio's 4 KiB write + fdatasync at that rate
    Latency,
    /// SQLite, raft-engine and NATS JetStream, each fully durable, at the same loads
    Peers,
    /// The log opened after a crash beside fio's sequential read
    Open,
}

impl Phase {
    const ALL: [Phase; 5] = [Phase::Sustained, Phase::Small, Phase::Latency, Phase::Peers, Phase::Open];
}

pub fn run(args: Args) -> ExitCode {
    let result = match args.worker {
        Some(kind) => worker::run(kind, &args.dir, args.core.unwrap_or(0), args.segment_bytes()),
        None => measure(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("ezbench append: {fault}");
            ExitCode::from(2)
        }
    }
}

impl Args {
    fn rounds(&self) -> usize {
        if self.tiny { 1 } else { self.rounds }
    }

    fn seconds(&self) -> f64 {
        if self.tiny { 0.2 } else { self.seconds }
    }

    /// Written by ours in each half of a sustained round.
    fn sustained_bytes(&self) -> u64 {
        let all = if self.tiny { 0.02 } else { self.gigabytes };
        (all * 1e9 / self.rounds() as f64 / 2.0) as u64
    }

    fn open_bytes(&self) -> u64 {
        (if self.tiny { 0.02 } else { self.open_gigabytes } * 1e9) as u64
    }

    fn segment_bytes(&self) -> u64 {
        if self.tiny { 4 << 20 } else { replog::limits::SEGMENT_BYTES }
    }

    fn fio_bytes(&self) -> u64 {
        if self.tiny { 16 << 20 } else { 1 << 30 }
    }

    /// A load of this length.
    fn ask(&self, load: Load, record_bytes: usize) -> Ask {
        Ask { load, record_bytes, seconds: self.seconds(), bytes: 0 }
    }

    fn check(&self) -> Result<(), String> {
        let within = |name: &str, seen: f64, low: f64, high: f64| match seen >= low && seen <= high {
            true => Ok(()),
            false => Err(format!("--{name} {seen}: expected {low} to {high}")),
        };
        within("rounds", self.rounds as f64, 1.0, 1000.0)?;
        within("seconds", self.seconds, 0.1, 600.0)?;
        within("gigabytes", self.gigabytes, 0.01, 10_000.0)?;
        within("depth", self.depth as f64, 1.0, 64.0)?;
        within("writers", self.writers as f64, 1.0, 4096.0)?;
        within("batch", self.batch as f64, 1.0, 1000.0)?;
        within("open-gigabytes", self.open_gigabytes, 0.01, 100.0)
    }
}

/// What every phase needs.
struct Bench<'a> {
    args: &'a Args,
    dir: &'a Path,
    core: usize,
    fio: Option<Fio>,
    report: Report,
}

impl Bench<'_> {
    /// A worker with a new directory of its own.
    fn worker(&self, kind: Kind, name: &str) -> Result<Worker, String> {
        let place = self.dir.join(name);
        fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
        Worker::start(kind, &place.display().to_string(), &self.words())
    }

    /// What a worker of ours has to know.
    fn words(&self) -> Vec<String> {
        let mut words = vec!["--core".to_owned(), self.core.to_string()];
        words.extend(self.args.tiny.then(|| "--tiny".to_owned()));
        words
    }

    /// Ends a worker and removes what it wrote.
    fn remove(&self, worker: Worker, name: &str) -> Result<(), String> {
        drop(worker);
        let place = self.dir.join(name);
        fs::remove_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))
    }

    fn put(&mut self, what: What, who: Who, round: usize, value: f64) {
        self.report.figures.put(what, who, round, value);
    }

    fn said(&self, phase: Phase, round: usize) {
        eprintln!("  {phase:?}: round {} of {}", round + 1, self.args.rounds());
    }
}

fn measure(args: &Args) -> Result<(), String> {
    args.check()?;
    crate::sys::raise_open_files();
    let dir = args.dir.join(format!("ezbench-append-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let result = all_phases(args, &dir);
    fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let report = result?;
    report.print();
    if args.json {
        println!("{}", report.to_json());
    }
    Ok(())
}

fn all_phases(args: &Args, dir: &Path) -> Result<Report, String> {
    let mut report = Report::new(args);
    let core = args.core.map_or_else(|| irq::core_of_disk(dir), Ok)?;
    report.notes.push(format!(
        "core {core}: ours, fio, the raw loop and SQLite, one after the other; raft-engine and NATS may use all"
    ));
    let fio = match fio::present() {
        Ok(version) => {
            report.versions.insert("fio", version);
            Some(Fio::new(dir, args.fio_bytes(), core)?)
        }
        Err(why) => {
            report.absent.push(why);
            None
        }
    };
    let mut bench = Bench { args, dir, core, fio, report };
    for phase in Phase::ALL.into_iter().filter(|p| args.phase.is_empty() || args.phase.contains(p)) {
        match phase {
            Phase::Sustained => phases::sustained(&mut bench)?,
            Phase::Small => phases::small(&mut bench)?,
            Phase::Latency => phases::latency(&mut bench)?,
            Phase::Peers => beside::peers(&mut bench)?,
            Phase::Open => open::after_crash(&mut bench)?,
        }
    }
    bench.report.done();
    Ok(bench.report)
}

/// Whom a round begins with changes, and so does who comes after whom.
fn order<T: Copy>(all: &[T], round: usize) -> Vec<T> {
    let mut turned: Vec<T> = (0..all.len()).map(|i| all[(i + round) % all.len()]).collect();
    if round % 2 == 1 {
        turned.reverse();
    }
    turned
}
