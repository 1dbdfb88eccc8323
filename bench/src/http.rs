//! Open-loop HTTP load: when each request is due is fixed before the run, and its latency counts from then.

use crate::load::{self, Plan};
use crate::outcome::Outcome;
use crate::schedule::Pace;
use crate::sys;
use crate::target::{self, Target};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

const RATE_MAX: f64 = 1_000_000.0;
const CONNECTIONS_MAX: usize = 10_000;
const SECONDS_MAX: f64 = 3600.0;
const TIMEOUT_MS_MAX: u64 = 600_000;

/// How requests are sent, and how many.
#[derive(clap::Args)]
#[command(after_help = "\
Sends requests at a fixed rate and tells latencies from the time each was due, so that a stalled server shows.
Exit code 1: an error of any kind, a status of 400 or above, or a signal that cut the run short.

Example: ezbench http http://127.0.0.1:8080/ --rate 1000 --duration 10 --header 'x-shard: loc=116.40,39.90'")]
pub struct Args {
    /// http://host:port/path
    url: String,
    /// Requests a second; 0: as fast as answers come (closed loop: latencies are then service times)
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Gaps as from independent users instead of even ones
    #[arg(long)]
    poisson: bool,
    /// Seed of --poisson
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that count
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// Seconds before them that do not
    #[arg(long, default_value_t = 0.0)]
    warmup: f64,
    /// Connections; each carries one request at a time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value = "GET")]
    method: String,
    /// `name: value`, may be repeated
    #[arg(long)]
    header: Vec<String>,
    /// Text, or @file
    #[arg(long, default_value = "")]
    body: String,
    /// A request without a whole answer so long after it was sent is an error
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    /// Load a machine other than this one
    #[arg(long)]
    allow_remote: bool,
    /// The last line is one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> ExitCode {
    match load(&args) {
        Ok(outcome) => {
            let rate = (args.rate > 0.0).then_some(args.rate);
            if args.json {
                println!("{}", outcome.to_json(rate));
            } else {
                print!("{}", outcome.to_text(rate));
            }
            if outcome.is_fine() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(fault) => {
            eprintln!("ezbench http: {fault}");
            ExitCode::from(2)
        }
    }
}

fn load(args: &Args) -> Result<Outcome, String> {
    let plan = plan(args)?;
    sys::raise_open_files();
    sys::exact_timers();
    let stop = sys::stop_signals().map_err(|e| format!("cannot watch for signals: {e}"))?;
    let shown = std::io::stderr().is_terminal();
    let outcome = load::drive(&plan, Some(&stop), |at, seen| {
        if shown {
            eprint!("\r{:6.1} s  {} answers ", at.as_secs_f64(), seen.answers);
        }
    });
    if shown {
        eprintln!();
    }
    outcome.map_err(|e| e.to_string())
}

fn plan(args: &Args) -> Result<Plan, String> {
    let within = |name: &str, value: f64, low: f64, high: f64| match value {
        v if v >= low && v <= high => Ok(()),
        v => Err(format!("--{name} {v}: expected {low} to {high}")),
    };
    if args.rate != 0.0 {
        within("rate", args.rate, 0.01, RATE_MAX)?;
    }
    within("duration", args.duration, 0.01, SECONDS_MAX)?;
    within("warmup", args.warmup, 0.0, SECONDS_MAX)?;
    within("connections", args.connections as f64, 1.0, CONNECTIONS_MAX as f64)?;
    within("timeout-ms", args.timeout_ms as f64, 1.0, TIMEOUT_MS_MAX as f64)?;
    let url = target::parse_url(&args.url)?;
    let body = target::load_body(&args.body)?;
    let request = target::build(&args.method, &url, &args.header, &body)?;
    let address = target::resolve(url.authority, args.allow_remote)?;
    let pace = match (args.rate, args.poisson) {
        (0.0, true) => return Err("--poisson needs a --rate above 0".into()),
        (0.0, false) => Pace::Closed,
        (rate, true) => Pace::Poisson { rate, seed: args.seed },
        (rate, false) => Pace::Even { rate },
    };
    Ok(Plan {
        target: Target { address, request, is_head: args.method == "HEAD" },
        pace,
        connections: args.connections,
        warmup: Duration::from_secs_f64(args.warmup),
        duration: Duration::from_secs_f64(args.duration),
        timeout: Duration::from_millis(args.timeout_ms),
    })
}
