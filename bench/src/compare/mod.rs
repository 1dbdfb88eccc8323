//! Puts the router and its peers side by side: the same backend and load, round by round, each proxy alone on its core.

pub mod figures;
mod gzs;
mod loads;
pub mod page;
pub mod peers;
mod plot;
mod report;
mod rig;
mod ship;
mod swap;
mod targets;

use crate::schedule::Pace;
use crate::{sys, upstream};
use figures::Who;
use report::Report;
pub use report::{load_average, shown, shown_ratio};
use rig::{INTERRUPTED, Load, Rig};
use ship::Layout;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
pub use targets::{Target, spread};

#[derive(clap::Args)]
#[command(after_help = "Example: ezbench compare router --plot cpu.svg")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The router beside nginx and haproxy, in front of the same backend
    Router(Router),
}

#[derive(clap::Args)]
#[command(after_help = "\
Each proxy runs alone on one core, load and backend on the other, round by round in an order that changes. Ours and
nginx run twice a round: what they differ from themselves is the noise. Ratios are taken within a round.
Their configurations: bench/peers. What is not installed is installed when root, else left out, and the report says so.
Exit code 1: a load saw errors. 2: wrong usage, a proxy that does not answer, or a signal.

Example: ezbench compare router --rounds 9 --ours 'target/release/ezone router --config {config}' --plot cpu.svg --json")]
struct Router {
    /// Phases to run; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    phase: Vec<Phase>,
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of each load in each round, after a warm-up that does not count
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Numbers of connections
    #[arg(long, value_delimiter = ',', default_values_t = [8, 64, 512])]
    connections: Vec<usize>,
    /// How ours is started; {config}, {listen} and {upstream} are filled in
    #[arg(long, default_value = "ezone router --config {config}")]
    ours: String,
    /// Map that ours routes by, but for the phase that swaps maps
    #[arg(long, default_value = "shardmap/data/china.toml")]
    map: String,
    /// Core of the proxy
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// Core of backends and load
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Leave out the peers
    #[arg(long)]
    ours_only: bool,
    /// One round of a fraction of a second: shows that everything runs; its figures mean nothing
    #[arg(long)]
    tiny: bool,
    /// Draw CPU per request by connections into this SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// The last line is one JSON object
    #[arg(long)]
    json: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Phase {
    /// CPU per request and requests a second, as fast as answers come
    Closed,
    /// Latencies at a fixed rate: half of nginx's maximum
    Fixed,
    /// Bodies of 64 KiB and 1 MiB: bytes for a second of processor time
    Bodies,
    /// A map of a million ids swapped every second, ours alone
    Swap,
    /// The log of the same node at full speed on the other core, ours alone
    LogSplit,
    /// The same on the router's core, at the lowest priority
    LogShared,
}

impl Phase {
    const ALL: [Phase; 6] =
        [Phase::Closed, Phase::Fixed, Phase::Bodies, Phase::Swap, Phase::LogSplit, Phase::LogShared];

    /// It looks into the router, or starts a log beside it: nothing stands in for `ezone`.
    fn needs_a_router(self) -> bool {
        match self {
            Phase::Closed | Phase::Fixed | Phase::Bodies => false,
            Phase::Swap | Phase::LogSplit | Phase::LogShared => true,
        }
    }
}

pub fn run(args: Args) -> ExitCode {
    let What::Router(args) = args.what;
    match compare(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(fault) => {
            eprintln!("ezbench compare: {fault}");
            ExitCode::from(2)
        }
    }
}

impl Router {
    fn rounds(&self) -> usize {
        if self.tiny { 1 } else { self.rounds }
    }

    fn seconds(&self) -> f64 {
        if self.tiny { 0.25 } else { self.seconds }
    }

    fn load(&self, pace: Pace, connections: usize) -> Load<'static> {
        let warmup_s = if self.tiny { 0.1 } else { 0.4 };
        Load { pace, connections, warmup_s, seconds: self.seconds(), tags: &[] }
    }

    /// `file = ".."`, as a configuration names it.
    fn map_source(&self) -> Result<String, String> {
        let path = fs::canonicalize(&self.map).map_err(|e| format!("--map {}: {e}", self.map))?;
        Ok(format!("file = {:?}", path.display().to_string()))
    }

    fn phases(&self) -> Vec<Phase> {
        let wanted = |p: &Phase| self.phase.is_empty() || self.phase.contains(p);
        Phase::ALL.into_iter().filter(wanted).collect()
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=1000).contains(&self.rounds) {
            return Err(format!("--rounds {}: expected 1 to 1000", self.rounds));
        }
        if !(0.1..=600.0).contains(&self.seconds) {
            return Err(format!("--seconds {}: expected 0.1 to 600", self.seconds));
        }
        match self.connections.iter().find(|n| !(1..=4000).contains(*n)) {
            Some(bad) => Err(format!("--connections {bad}: expected 1 to 4000")),
            None if self.connections.is_empty() => Err("--connections: expected at least one number".into()),
            None => Ok(()),
        }
    }
}

fn compare(args: &Router) -> Result<bool, String> {
    args.check()?;
    let cores = upstream::pick_cores(&[args.proxy_core, args.load_core])?;
    sys::raise_open_files();
    sys::exact_timers();
    let stop = sys::stop_signals().map_err(|e| e.to_string())?;
    let dir = std::env::temp_dir().join(format!("ezbench-compare-{}", std::process::id()));
    fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let bodies = [loads::SMALL, loads::LARGE[0].0, loads::LARGE[1].0];
    let result = Rig::new(&args.ours, [cores[0], cores[1]], &dir, stop, &bodies).and_then(|rig| measure(rig, args));
    match &result {
        Err(fault) if fault != INTERRUPTED => eprintln!("what the proxies said is in {}", dir.display()),
        Ok(_) | Err(_) => drop(fs::remove_dir_all(&dir)),
    }
    let report = result?;
    report.print();
    if let Some(path) = &args.plot {
        plot::cpu(&report, path)?;
    }
    if args.json {
        println!("{}", report.to_json());
    }
    Ok(report.errors.is_empty())
}

fn measure(mut rig: Rig, args: &Router) -> Result<Report, String> {
    let (mut who, absent) = match args.ours_only {
        true => (vec![Who::Ours, Who::OursAgain], vec!["nginx and haproxy: --ours-only".to_owned()]),
        false => peers::present(),
    };
    if args.tiny {
        who.retain(|w| !matches!(w, Who::OursAgain | Who::NginxAgain));
    }
    let mut report = Report::new(args, &who, absent);
    for phase in args.phases() {
        if phase.needs_a_router() && !args.ours.contains(" router ") {
            report.absent.push(format!("phase {phase:?}: `{}` is no `ezone router`", args.ours));
            continue;
        }
        eprintln!("phase {phase:?}");
        let figures = &mut report.figures;
        match phase {
            Phase::Closed => loads::closed(&mut rig, args, &who, figures)?,
            Phase::Fixed => report.rates = loads::fixed(&mut rig, args, &who, figures)?,
            Phase::Bodies => loads::bodies(&mut rig, args, &who, figures)?,
            Phase::Swap => report.swapped = Some(swap::maps(&mut rig, args, &who, figures)?),
            Phase::LogSplit => report.shipped[0] = Some(ship::log(&mut rig, args, &who, figures, Layout::Split)?),
            Phase::LogShared => report.shipped[1] = Some(ship::log(&mut rig, args, &who, figures, Layout::Shared)?),
        }
    }
    report.take(rig);
    Ok(report)
}

/// Whom a round begins with changes, and so does who comes after whom.
fn order(who: &[Who], round: usize) -> Vec<Who> {
    let mut turned: Vec<Who> = (0..who.len()).map(|i| who[(i + round) % who.len()]).collect();
    if round % 2 == 1 {
        turned.reverse();
    }
    turned
}
