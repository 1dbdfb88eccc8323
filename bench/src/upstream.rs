//! A backend for benchmarks: answers every request with the same bytes, at as little CPU as it can.

use crate::http::range_of;
use crate::manner::Options;
use crate::serve::{Served, Server};
use crate::sys;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const THREADS_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 16 << 20;
const MS_MAX: u64 = 600_000;

/// How the backend answers, and where.
#[derive(clap::Args)]
#[command(after_help = "\
Answers 200 with a body of the given size to every request, until SIGTERM, SIGINT or --seconds; its first line is
`listening on ADDR`, its last line says what it served. Keep-alive, pipelining, Content-Length and chunked bodies.
A request with `x-token` is answered with the same token and a body that only this token makes; if its own body is
another request's, with 422. A chance is of one answer, 0 to 1; an answer has one fault at most.

Examples: ezbench upstream --listen 127.0.0.1:8080 --cores 1 --body 128
          ezbench upstream --body 0..100000 --chunked --close-chance 0.1 --idle-ms 20")]
pub struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Threads, each with its own listener
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Cores to pin the threads to, in turn: `1` or `0,1`
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Bytes of each answer's body: a number, or `LEAST..MOST` to draw it for each answer
    #[arg(long, default_value = "128")]
    body: String,
    /// Chunked answers
    #[arg(long)]
    chunked: bool,
    /// Wait so long before the first byte of each answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Close each connection after so many answers; the last one says `connection: close`
    #[arg(long)]
    close_after: Option<u64>,
    /// With --close-after: close without saying so, as a server whose idle limit ran out
    #[arg(long, requires = "close_after")]
    unannounced: bool,
    /// Write answers in pieces of so many bytes, --piece-ms apart
    #[arg(long, default_value_t = 1000)]
    piece_bytes: usize,
    /// Wait so long between pieces; 0: write as fast as it goes
    #[arg(long, default_value_t = 0)]
    piece_ms: u64,
    /// End a connection that is idle after an answer, unannounced, after a random time up to this; 0: never
    #[arg(long, default_value_t = 0)]
    idle_ms: u64,
    /// Chance that the connection ends, unannounced, right after an answer
    #[arg(long, default_value_t = 0.0)]
    close_chance: f64,
    /// Chance that the connection ends in the middle of an answer
    #[arg(long, default_value_t = 0.0)]
    cut_chance: f64,
    /// Chance that an answer never comes
    #[arg(long, default_value_t = 0.0)]
    stall_chance: f64,
    /// Chance of a 503
    #[arg(long, default_value_t = 0.0)]
    error_chance: f64,
    /// Unannounced ends are resets
    #[arg(long)]
    reset: bool,
    /// Seed of all that is drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End by itself after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
}

pub fn run(args: Args) -> ExitCode {
    match serve(&args) {
        Ok(served) => {
            let Served { connections, answers, closed_idle, wrong_bodies } = served;
            let _ = writeln!(
                std::io::stdout(),
                "served {answers} answers on {connections} connections, {closed_idle} closed idle, \
                 {wrong_bodies} requests with another's body"
            );
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("ezbench upstream: {fault}");
            ExitCode::from(2)
        }
    }
}

fn serve(args: &Args) -> Result<Served, String> {
    let options = options(args)?;
    let cores = pick_cores(&args.cores)?;
    sys::raise_open_files();
    let stop = sys::stop_signals().map_err(|e| format!("cannot watch for signals: {e}"))?;
    let mut listeners = Vec::new();
    let mut address = args.listen;
    for _ in 0..args.threads {
        let listener = Server::listen(address).map_err(|e| format!("cannot listen on {address}: {e}"))?;
        address = listener.local_addr().map_err(|e| format!("no address: {e}"))?;
        listeners.push(listener);
    }
    // A reader that went away is no reason to stop serving.
    let _ = writeln!(std::io::stdout(), "listening on {address}").and_then(|()| std::io::stdout().flush());
    let until = args.seconds.map(|s| Instant::now() + Duration::from_secs(s));
    thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .into_iter()
            .enumerate()
            .map(|(at, listener)| {
                let (stop, options, cores) = (&stop, options, &cores);
                scope.spawn(move || {
                    if !cores.is_empty() {
                        core_affinity::set_for_current(cores[at % cores.len()]);
                    }
                    Server::new(listener, options, at as u64, stop).and_then(|mut server| server.run(until))
                })
            })
            .collect();
        threads.into_iter().try_fold(Served::default(), |all, thread| {
            let served = thread.join().expect("a server thread does not panic");
            served.map(|s| all.and(&s)).map_err(|e| format!("serving: {e}"))
        })
    })
}

fn options(args: &Args) -> Result<Options, String> {
    if args.threads == 0 || args.threads > THREADS_MAX {
        return Err(format!("--threads {}: expected 1 to {THREADS_MAX}", args.threads));
    }
    let times = [("delay", args.delay_ms), ("piece", args.piece_ms), ("idle", args.idle_ms)];
    if let Some((name, ms)) = times.iter().find(|(_, ms)| *ms > MS_MAX) {
        return Err(format!("--{name}-ms {ms}: expected at most {MS_MAX}"));
    }
    let chances = [
        ("close", args.close_chance),
        ("cut", args.cut_chance),
        ("stall", args.stall_chance),
        ("error", args.error_chance),
    ];
    if let Some((name, chance)) = chances.iter().find(|(_, chance)| !(0.0..=1.0).contains(chance)) {
        return Err(format!("--{name}-chance {chance}: expected 0 to 1"));
    }
    if args.piece_bytes == 0 {
        return Err("--piece-bytes 0: expected at least 1".into());
    }
    if args.close_after == Some(0) {
        return Err("--close-after 0: expected at least 1 answer".into());
    }
    Ok(Options {
        body_bytes: range_of("--body", &args.body, BODY_BYTES_MAX)?,
        chunked: args.chunked,
        delay: Duration::from_millis(args.delay_ms),
        piece_bytes: args.piece_bytes,
        piece_gap: Duration::from_millis(args.piece_ms),
        close_after: args.close_after,
        announce: !args.unannounced,
        idle: Duration::from_millis(args.idle_ms),
        close_chance: args.close_chance,
        cut_chance: args.cut_chance,
        stall_chance: args.stall_chance,
        error_chance: args.error_chance,
        reset: args.reset,
        seed: args.seed,
    })
}

/// The named cores, refused if this process may not run on one of them.
pub fn pick_cores(wanted: &[usize]) -> Result<Vec<core_affinity::CoreId>, String> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let have = core_affinity::get_core_ids().unwrap_or_default();
    let known: Vec<usize> = have.iter().map(|c| c.id).collect();
    let find = |id: &usize| {
        have.iter().copied().find(|c| c.id == *id).ok_or(format!("core {id}: this process may use the cores {known:?}"))
    };
    wanted.iter().map(find).collect()
}
