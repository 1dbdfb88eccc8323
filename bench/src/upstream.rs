//! A backend for benchmarks: answers every request with the same bytes, at as little CPU as it can.

use crate::serve::{Options, Server};
use crate::sys;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const THREADS_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 16 << 20;

/// How the backend answers, and where.
#[derive(clap::Args)]
#[command(after_help = "\
Answers 200 with a body of the given size to every request, until SIGTERM, SIGINT or --seconds; its first line is
`listening on ADDR`. Keep-alive, pipelining, Content-Length and chunked request bodies.

Example: ezbench upstream --listen 127.0.0.1:8080 --cores 1 --body 128")]
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
    /// Bytes of each answer's body
    #[arg(long, default_value_t = 128)]
    body: usize,
    /// Wait so long before each answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Close each connection after so many answers; the last one says `connection: close`
    #[arg(long)]
    close_after: Option<u64>,
    /// With --close-after: close without saying so, as a server whose idle limit ran out
    #[arg(long, requires = "close_after")]
    unannounced: bool,
    /// End by itself after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
}

pub fn run(args: Args) -> ExitCode {
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("ezbench upstream: {fault}");
            ExitCode::from(2)
        }
    }
}

fn serve(args: &Args) -> Result<(), String> {
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
                    Server::new(listener, options, stop).and_then(|mut server| server.run(until))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().expect("a server thread does not panic"))
    })
    .map_err(|e| format!("serving: {e}"))
}

fn options(args: &Args) -> Result<Options, String> {
    if args.threads == 0 || args.threads > THREADS_MAX {
        return Err(format!("--threads {}: expected 1 to {THREADS_MAX}", args.threads));
    }
    if args.body > BODY_BYTES_MAX {
        return Err(format!("--body {}: expected at most {BODY_BYTES_MAX} bytes", args.body));
    }
    if args.delay_ms > 600_000 {
        return Err(format!("--delay-ms {}: expected at most 600000", args.delay_ms));
    }
    if args.close_after == Some(0) {
        return Err("--close-after 0: expected at least 1 answer".into());
    }
    Ok(Options {
        body_bytes: args.body,
        delay: Duration::from_millis(args.delay_ms),
        close_after: args.close_after,
        announce: !args.unannounced,
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
