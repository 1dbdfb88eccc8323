//! Open-loop HTTP load: when each request is due is fixed before the run, and its latency counts from then.

use crate::idle::Held;
use crate::load::{self, Plan};
use crate::outcome::{Outcome, Tolerated};
use crate::schedule::Pace;
use crate::script::{self, Body, Script};
use crate::{sys, target};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

const RATE_MAX: f64 = 1_000_000.0;
const CONNECTIONS_MAX: usize = 10_000;
const PIPELINE_MAX: usize = 1000;
const IDLE_MAX: usize = 100_000;
const SECONDS_MAX: f64 = 3600.0;
const TIMEOUT_MS_MAX: u64 = 600_000;

/// How requests are sent, and how many.
#[derive(clap::Args)]
#[command(after_help = "\
Sends requests at a fixed rate and tells latencies from the time each was due, so that a stalled server shows.
Exit code 1: an error of any kind, a status of 400 or above, or a signal that cut the run short.

With --tokens each request carries a token of its own (`x-token`), and with --body-bytes a body that only this token
makes; `ezbench upstream` answers with the same token and its body. An answer, or a piece of one, that is another
request's is a mix-up: an error that nothing tolerates.

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
    /// Seed of --poisson, of tokens and of what is drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that count
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// Seconds before them that do not
    #[arg(long, default_value_t = 0.0)]
    warmup: f64,
    /// End after so many requests, if that comes before --duration
    #[arg(long)]
    requests: Option<u64>,
    /// Connections; each carries one request at a time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests that a connection carries at a time
    #[arg(long, default_value_t = 1)]
    pipeline: usize,
    /// Hold so many more connections, each of which is served once at the start and once at the end
    #[arg(long, default_value_t = 0)]
    idle: usize,
    #[arg(long, default_value = "GET")]
    method: String,
    /// `name: value`, may be repeated
    #[arg(long)]
    header: Vec<String>,
    /// A file of headers, one in a line: each request takes one at random
    #[arg(long, value_name = "FILE")]
    header_list: Option<String>,
    /// A file of paths, one in a line: each request takes one at random instead of the URL's
    #[arg(long, value_name = "FILE")]
    path_list: Option<String>,
    /// Text, or @file
    #[arg(long, default_value = "")]
    body: String,
    /// Bytes of a made body: a number, or `LEAST..MOST` to draw it for each request
    #[arg(long, conflicts_with = "body")]
    body_bytes: Option<String>,
    /// Each request carries a token, which the answer has to show
    #[arg(long)]
    tokens: bool,
    /// No errors for the exit code: statuses, connect, reset, timeout, parse, unsent
    #[arg(long, value_delimiter = ',')]
    tolerate: Vec<String>,
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
    let tolerated = Tolerated::read(&args.tolerate).map_err(|e| format!("--tolerate {e}"));
    match tolerated.and_then(|tolerated| Ok((load(&args)?, tolerated))) {
        Ok((outcome, tolerated)) => {
            let rate = (args.rate > 0.0).then_some(args.rate);
            if args.json {
                println!("{}", outcome.to_json(rate));
            } else {
                print!("{}", outcome.to_text(rate));
            }
            if outcome.is_fine_but_for(&tolerated) { ExitCode::SUCCESS } else { ExitCode::from(1) }
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
    let held = Held::open(plan.address, &plan.script, args.idle, plan.timeout)?;
    let shown = std::io::stderr().is_terminal();
    let outcome = load::drive(&plan, Some(&stop), |at, seen| {
        if shown {
            eprint!("\r{:6.1} s  {} answers ", at.as_secs_f64(), seen.answers);
        }
    });
    if shown {
        eprintln!();
    }
    let mut outcome = outcome.map_err(|e| e.to_string())?;
    let (alive, why) = held.alive();
    (outcome.held, outcome.held_alive) = (args.idle as u64, alive);
    why.iter().for_each(|why| eprintln!("ezbench http: an idle connection no longer serves: {why}"));
    Ok(outcome)
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
    within("pipeline", args.pipeline as f64, 1.0, PIPELINE_MAX as f64)?;
    within("idle", args.idle as f64, 0.0, IDLE_MAX as f64)?;
    within("timeout-ms", args.timeout_ms as f64, 1.0, TIMEOUT_MS_MAX as f64)?;
    let url = target::parse_url(&args.url)?;
    let address = target::resolve(url.authority, args.allow_remote)?;
    let pace = match (args.rate, args.poisson) {
        (0.0, true) => return Err("--poisson needs a --rate above 0".into()),
        (0.0, false) => Pace::Closed,
        (rate, true) => Pace::Poisson { rate, seed: args.seed },
        (rate, false) => Pace::Even { rate },
    };
    Ok(Plan {
        address,
        script: script(args, &url)?,
        pace,
        requests: args.requests.unwrap_or(u64::MAX),
        connections: args.connections,
        pipeline: args.pipeline,
        warmup: Duration::from_secs_f64(args.warmup),
        duration: Duration::from_secs_f64(args.duration),
        timeout: Duration::from_millis(args.timeout_ms),
    })
}

fn script(args: &Args, url: &target::Url) -> Result<Script, String> {
    let body = match &args.body_bytes {
        Some(range) => {
            let (least, most) = range_of("--body-bytes", range, script::BODY_BYTES_MAX)?;
            Body::Drawn { least, most }
        }
        None => Body::Fixed(script::load_body(&args.body)?),
    };
    let lines = |option: &str, file: &Option<String>| match file {
        Some(path) => script::load_lines(option, path),
        None => Ok(vec![]),
    };
    Ok(Script::new(&args.method, url, &args.header, body)?
        .with_choices(&lines("--header-list", &args.header_list)?)?
        .with_paths(lines("--path-list", &args.path_list)?)?
        .with_tokens(args.tokens, args.seed))
}

/// `N`, or `LEAST..MOST`.
pub fn range_of(option: &str, text: &str, most_max: usize) -> Result<(usize, usize), String> {
    let bad = || format!("{option} `{text}`: expected N or LEAST..MOST, up to {most_max}");
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (least.parse().map_err(|_| bad())?, most.parse().map_err(|_| bad())?);
    if least <= most && most <= most_max { Ok((least, most)) } else { Err(bad()) }
}
