//! Our link over `ezbench wan` beside what people use: iperf3 for the pipe, MariaDB's replication for the lag.
//!
//! Goodput is that of a backlog, written while the link is cut: then the pipe is measured, not who fills it. The first second does not
//! count, for either side. Lags are those of commits at a steady rate, before and across a cut.

mod apply;
mod lag;
mod maria;
mod report;
mod zones;

use crate::wan::{self, Rate, Side, Stack, Wan};
use crate::{locate, sys};
use lag::Mark;
use maria::Maria;
use report::{Follow, Report};
use serde_json::Value;
use shardmap::map::Map;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use zones::{Load, Zones};

const RECORD_BYTES: usize = 4096;
/// What does not count of each transfer, as with `iperf3 -O 1`.
const WARMUP_S: f64 = 1.0;
const APPLIED_MAX: Duration = Duration::from_secs(60);
/// Of each commit in the latency phase, about.
const ROW_BYTES: usize = 300;

#[derive(clap::Args)]
#[command(after_help = "\
Needs root. iperf3 and mariadb-server come from Debian (apt-get install iperf3 mariadb-server); what is missing is left out, and named.
Exit code 2: wrong usage, or something did not run.

Example: ezbench ship --json")]
pub struct Args {
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each transfer of iperf3 and, at the link's rate, of ours
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    #[arg(long, default_value_t = 15.0)]
    each_way_ms: f64,
    /// Bits a second
    #[arg(long, default_value = "1gbit", value_parser = wan::rate)]
    rate: Rate,
    /// Chances of loss at which goodput is measured
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.001])]
    loss: Vec<f64>,
    /// Chance of loss while lags are measured
    #[arg(long, default_value_t = 0.0)]
    steady_loss: f64,
    /// Commits of rows a second in the latency phase
    #[arg(long, default_value_t = 5000.0)]
    rows_per_s: f64,
    /// Seconds of steady rate before the cut
    #[arg(long, default_value_t = 15.0)]
    steady_s: f64,
    #[arg(long, default_value_t = 60.0)]
    cut_s: f64,
    /// Most of a sending socket's buffer, of all sides
    #[arg(long, default_value_t = 16)]
    send_buffer_mib: u32,
    /// Congestion control of all sides
    #[arg(long, default_value = "bbr")]
    congestion: String,
    /// What is measured, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Phase::Goodput, Phase::Ours, Phase::Mariadb, Phase::Compress, Phase::Apply])]
    phases: Vec<Phase>,
    /// Our program; beside this one by default
    #[arg(long)]
    ours: Option<PathBuf>,
    #[arg(long, default_value = "shardmap/data/china.toml")]
    map: String,
    /// Where the logs and databases are, and are removed at the end
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// A few seconds, without MariaDB: shows that everything runs; its figures mean nothing
    #[arg(long)]
    tiny: bool,
    /// The last line is one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Phase {
    /// A backlog, ours and iperf3 in turn
    Goodput,
    /// Our lags, before and across a cut
    Ours,
    /// Those of MariaDB's replication
    Mariadb,
    /// Bytes on the line of the same rows with `compress = "never"` and `"always"`
    Compress,
    /// The applier alone, into SQLite
    Apply,
}

pub fn run(mut args: Args) -> ExitCode {
    if args.tiny {
        (args.rounds, args.seconds, args.steady_s, args.cut_s) = (1, 2.0, 1.5, 4.0);
    }
    match measure(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("ezbench ship: {fault}");
            ExitCode::from(2)
        }
    }
}

/// Whatever ends it, a phase that fails or a signal: what was measured until then is shown, and nothing is left behind.
fn measure(args: Args) -> Result<(), String> {
    if !sys::is_root() {
        return Err("network namespaces and TUN devices need root".into());
    }
    if !(1..=100).contains(&args.rounds) || !(1.5..=600.0).contains(&args.seconds) {
        return Err(format!("--rounds {} --seconds {}: expected 1 to 100, and 1.5 to 600", args.rounds, args.seconds));
    }
    let map = Arc::new(locate::read_map(std::path::Path::new(&args.map))?);
    wan::sweep();
    let stop = sys::stop_signals().map_err(|e| format!("cannot watch for signals: {e}"))?;
    let dir = args.dir.join(format!("ezbench-ship-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let dir = dir.canonicalize().map_err(|e| format!("{}: {e}", dir.display()))?;
    let report = Report::new(args.each_way_ms, &args.congestion, args.send_buffer_mib, args.tiny);
    let (args, report) = (Arc::new(args), Arc::new(Mutex::new(report)));
    let measuring = {
        let (args, report, dir) = (args.clone(), report.clone(), dir.clone());
        thread::spawn(move || phases(&args, map, &dir, &report))
    };
    let ended = wait(measuring, &stop);
    // A signal leaves its servers running until this program ends, a moment from now.
    wan::leave();
    clear(&dir);
    let report = report.lock().map_err(|_| "a phase has panicked; its message is above")?;
    report.print();
    if args.json {
        println!("{}", report.to_json());
    }
    ended
}

/// After a signal a phase may be making its next directory: once it finds itself without one, it ends.
fn clear(dir: &std::path::Path) {
    for _ in 0..50 {
        let _ = std::fs::remove_dir_all(dir); // looked at below
        thread::sleep(Duration::from_millis(20));
        if !dir.exists() {
            return;
        }
    }
    eprintln!("ezbench ship: {} cannot be removed", dir.display());
}

fn wait(measuring: JoinHandle<Result<(), String>>, stop: &OwnedFd) -> Result<(), String> {
    let mut poller = sys::Poller::new().map_err(|e| format!("waiting: {e}"))?;
    poller.add(stop, 0, sys::READ).map_err(|e| format!("waiting: {e}"))?;
    let mut ready = vec![];
    while !measuring.is_finished() {
        poller.wait(&mut ready, Some(Duration::from_millis(100))).map_err(|e| format!("waiting: {e}"))?;
        if !ready.is_empty() {
            return Err("cut short by a signal: only the phases and rounds above were measured".into());
        }
    }
    measuring.join().map_err(|_| "a phase has panicked; its message is above".to_owned())?
}

fn phases(args: &Args, map: Arc<Map>, dir: &std::path::Path, report: &Mutex<Report>) -> Result<(), String> {
    let report = || report.lock().expect("whoever prints it does not panic");
    let stack = Stack::with(&args.congestion, args.send_buffer_mib);
    let wan = Wan::start(wan::plain(args.each_way_ms, args.rate), &stack, None)?;
    let ours = args.ours.clone().map_or_else(|| std::env::current_exe().map(|p| p.with_file_name("ezone")), Ok);
    let ours = ours.map_err(|e| e.to_string())?.display().to_string();
    for phase in &args.phases {
        wan.set(|s| s.loss = if *phase == Phase::Goodput { 0.0 } else { args.steady_loss });
        match phase {
            Phase::Goodput => goodputs(args, &wan, &ours, &dir.join("goodput"), report)?,
            Phase::Ours => {
                eprintln!("  lag of ours: {} s", args.steady_s + args.cut_s + after_s(args));
                let follow = follow_ours(args, &wan, &ours, &dir.join("lag"))?;
                report().follows.push(follow);
            }
            Phase::Compress => {
                for compress in ["never", "always"] {
                    eprintln!("  bytes on the line with compress = \"{compress}\"");
                    let bytes = bytes_a_row(args, &wan, &ours, compress, &dir.join(compress))?;
                    report().bytes_a_row.push((compress, bytes));
                }
            }
            Phase::Apply => {
                eprintln!("  the applier alone");
                let applied = apply::measure(map.clone(), &dir.join("apply"), args.tiny)?;
                report().applied = Some(applied);
            }
            Phase::Mariadb if args.tiny => report().absent.push("NOT RUN: MariaDB: --tiny".into()),
            Phase::Mariadb => match maria::present() {
                Err(why) => report().absent.push(why),
                Ok(version) => {
                    eprintln!("  lag of MariaDB");
                    report().maria = Some(version);
                    let follow = follow_maria(args, &wan, &dir.join("maria"))?;
                    report().follows.push(follow);
                }
            },
        }
        report().link = serde_json::to_value(wan.seen()).unwrap_or_default();
    }
    Ok(())
}

/// Each round both, in an order that changes.
fn goodputs<'a>(
    args: &Args,
    wan: &Wan,
    ours: &str,
    dir: &std::path::Path,
    report: impl Fn() -> MutexGuard<'a, Report>,
) -> Result<(), String> {
    let iperf = Command::new("iperf3").arg("--version").output().is_ok();
    if !iperf {
        report().absent.push("NOT RUN: iperf3: it is not here (apt-get install iperf3)".into());
    }
    for loss in &args.loss {
        for round in 0..args.rounds {
            wan.set(|s| s.loss = *loss);
            for turn in [round % 2, 1 - round % 2] {
                match turn {
                    0 if iperf => {
                        let seen = iperf3(args, &wan.sides)?;
                        report().put("iperf3", *loss, seen);
                    }
                    0 => {}
                    _ => {
                        let seen = transfer(args, wan, ours, dir)?;
                        report().put("ours", *loss, seen);
                    }
                }
            }
            wan.set(|s| s.loss = 0.0);
            eprintln!("  goodput at loss {loss}: round {} of {}", round + 1, args.rounds);
        }
    }
    Ok(())
}

/// Megabits a second that it received.
fn iperf3(args: &Args, sides: &[Side; 2]) -> Result<f64, String> {
    let mut server = Command::new("iperf3");
    server.arg("-s").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sides[1].hold(&mut server).map_err(|e| e.to_string())?;
    let mut server = server.spawn().map_err(|e| format!("iperf3: {e}"))?;
    let run = || {
        for _ in 0..50 {
            let mut client = Command::new("iperf3");
            client.args(["-J", "-c", &sides[1].address.to_string(), "-C", &args.congestion, "-O", "1"]);
            client.args(["-t", &args.seconds.round().to_string()]);
            sides[0].hold(&mut client).map_err(|e| e.to_string())?;
            let done = client.output().map_err(|e| format!("iperf3: {e}"))?;
            let json: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
            if let Some(bits) = json["end"]["sum_received"]["bits_per_second"].as_f64() {
                return Ok(bits / 1e6);
            }
            thread::sleep(Duration::from_millis(100)); // the server needs a moment
        }
        Err("iperf3 gives no figures".to_owned())
    };
    let seen = run();
    let _ = server.kill().and_then(|()| server.wait());
    seen
}

/// The same of ours: a backlog of records, durable at b.
fn transfer(args: &Args, wan: &Wan, ours: &str, dir: &std::path::Path) -> Result<f64, String> {
    let zones = Zones::start(wan, ours, &args.map, [&args.congestion, "auto"], dir)?;
    let bits = args.rate.0.unwrap_or(1_000_000_000) as f64;
    let records = (bits / 8.0 * (args.seconds + WARMUP_S) / RECORD_BYTES as f64) as u64;
    let (records, warmup_s) = if args.tiny { (2000, 0.0) } else { (records, WARMUP_S) };
    let mut writer = zones.writer(Load { value_bytes: RECORD_BYTES, random: true, per_s: None })?;
    wan.cut(true);
    writer.begin(Instant::now());
    while (writer.committed.len() as u64) < records {
        writer.write_for(Duration::from_millis(200))?;
    }
    let last = writer.committed.iter().map(|m| m.upto).max().unwrap_or(0);
    // What the writes leave to do at a has its own time: it would take the processor from the transfer, on a small machine.
    let until = Instant::now() + APPLIED_MAX;
    while !zones::look(&wan.sides[0], "/status").is_ok_and(|t| t.applied >= last) && Instant::now() < until {
        thread::sleep(Duration::from_millis(50));
    }
    let (begun, ended) = (Instant::now(), AtomicBool::new(false));
    let seen = thread::scope(|scope| {
        let watch = scope.spawn(|| zones::watch_log(&wan.sides[1], begun, &ended));
        wan.cut(false);
        let until = Instant::now() + Duration::from_secs_f64(args.seconds * 20.0 + 30.0);
        while Instant::now() < until && !watch.is_finished() {
            thread::sleep(Duration::from_millis(50));
            if zones::look(&wan.sides[1], "/status").is_ok_and(|t| t.durable >= last) {
                break;
            }
        }
        thread::sleep(Duration::from_millis(20));
        ended.store(true, Ordering::Relaxed);
        watch.join().expect("watching does not panic")
    })?;
    speed(&seen, last, warmup_s).ok_or_else(|| "what was written did not arrive".into())
}

/// From `warmup_s` after the first advance until all is there, or as far as it came.
fn speed(durable: &[Mark], last: u64, warmup_s: f64) -> Option<f64> {
    let first = durable.first()?.upto;
    let moved = durable.iter().find(|m| m.upto > first)?;
    let from = durable.iter().find(|m| m.at_ms >= moved.at_ms + warmup_s * 1e3)?;
    let to = durable.iter().find(|m| m.upto >= last).or(durable.last())?;
    let seconds = (to.at_ms - from.at_ms) / 1e3;
    (seconds > 0.0).then(|| (to.upto - from.upto) as f64 * RECORD_BYTES as f64 * 8.0 / 1e6 / seconds)
}

fn after_s(args: &Args) -> f64 {
    if args.tiny { 4.0 } else { 30.0 }
}

/// Cuts the link in the middle of what `write` does, right after `before`; when it healed.
fn with_cut<T: Send>(args: &Args, wan: &Wan, before: impl FnOnce(), write: impl FnOnce() -> T + Send) -> (T, Instant) {
    thread::scope(|scope| {
        let writing = scope.spawn(write);
        thread::sleep(Duration::from_secs_f64(args.steady_s));
        before();
        wan.cut(true);
        thread::sleep(Duration::from_secs_f64(args.cut_s));
        wan.cut(false);
        let healed = Instant::now();
        (writing.join().expect("writing does not panic"), healed)
    })
}

/// From a to b, headers of TCP and IP among them, of rows at the steady rate.
fn bytes_a_row(
    args: &Args,
    wan: &Wan,
    ours: &str,
    compress: &'static str,
    dir: &std::path::Path,
) -> Result<f64, String> {
    let zones = Zones::start(wan, ours, &args.map, [&args.congestion, compress], dir)?;
    let mut writer = zones.writer(Load { value_bytes: ROW_BYTES, random: false, per_s: Some(args.rows_per_s) })?;
    let before = wan.seen().a_to_b.sent_bytes;
    writer.begin(Instant::now());
    writer.write_for(Duration::from_secs_f64(args.steady_s))?;
    let rows = writer.committed.len();
    let last = writer.committed.iter().map(|m| m.upto).max().unwrap_or(0);
    let until = Instant::now() + APPLIED_MAX;
    while !zones::look(&wan.sides[1], "/status").is_ok_and(|t| t.durable >= last) {
        if Instant::now() >= until {
            return Err(format!("compress = \"{compress}\": what was written did not arrive"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok((wan.seen().a_to_b.sent_bytes - before) as f64 / rows.max(1) as f64)
}

fn follow_ours(args: &Args, wan: &Wan, ours: &str, dir: &std::path::Path) -> Result<Follow, String> {
    let zones = Zones::start(wan, ours, &args.map, [&args.congestion, "auto"], dir)?;
    let mut writer = zones.writer(Load { value_bytes: ROW_BYTES, random: false, per_s: Some(args.rows_per_s) })?;
    let (begun, ended, before) = (Instant::now(), AtomicBool::new(false), wan.seen());
    let time = Duration::from_secs_f64(args.steady_s + args.cut_s + after_s(args));
    writer.begin(begun);
    thread::scope(|scope| {
        let durable = scope.spawn(|| zones::watch_log(&wan.sides[1], begun, &ended));
        let visible = scope.spawn(|| zones::watch_store(dir, begun, &ended));
        let mut lag = Ok([0.0; 2]);
        let before_cut = || lag = zones::durable_lag(&wan.sides[1]);
        let (wrote, healed) = with_cut(args, wan, before_cut, || writer.write_for(time).map(|()| writer));
        thread::sleep(Duration::from_millis(500));
        ended.store(true, Ordering::Relaxed);
        let durable = durable.join().expect("watching does not panic")?;
        let visible = visible.join().expect("watching does not panic")?;
        let mut committed = wrote?.committed;
        committed.sort_by_key(|mark| mark.upto);
        let healed_ms = healed.duration_since(begun).as_secs_f64() * 1e3;
        let bytes = wan.seen().a_to_b.sent_bytes - before.a_to_b.sent_bytes;
        let follow = Follow::of("ours", &committed, &visible, args.steady_s, healed_ms, args.rows_per_s, bytes);
        Ok(follow.with_durable(lag?, &committed, &durable, healed_ms, report::behind(args.rows_per_s)))
    })
}

fn follow_maria(args: &Args, wan: &Wan, dir: &std::path::Path) -> Result<Follow, String> {
    let maria = Maria::start(wan, dir)?;
    let (begun, ended, before) = (Instant::now(), AtomicBool::new(false), wan.seen());
    let time = Duration::from_secs_f64(args.steady_s + args.cut_s + after_s(args));
    thread::scope(|scope| {
        let watch = scope.spawn(|| maria.watch(begun, &ended));
        let write = || maria.write_for(args.rows_per_s, ROW_BYTES, begun, time);
        let (wrote, healed) = with_cut(args, wan, || (), write);
        thread::sleep(Duration::from_millis(500));
        ended.store(true, Ordering::Relaxed);
        let applied = watch.join().expect("watching does not panic")?;
        let committed = wrote?;
        let healed_ms = healed.duration_since(begun).as_secs_f64() * 1e3;
        let bytes = wan.seen().a_to_b.sent_bytes - before.a_to_b.sent_bytes;
        Ok(Follow::of("MariaDB", &committed, &applied, args.steady_s, healed_ms, args.rows_per_s, bytes))
    })
}
