//! `ezctl drill`: breaks a system on purpose, under load, and says whether it kept what it promises. On a sandbox that it starts itself, or, as far as
//! clients are promised not to notice, on a running system (`live`).
//!
//! Each drill is preflight, act, assert, restore, report. It asserts what is lost, doubled, failed and identical, never a time: times are
//! reported. What may fail is named: an outage is a span of time and the orders that it concerns, and every other order has to succeed.

mod clock;
mod disk;
mod global;
mod live;
mod lost;
mod overlap;
mod parts;
mod planned;
mod report;
mod scene;
mod service;
mod stage;
mod wan;
mod which;

use crate::map::Fault;
use crate::service::{self as gzs_service, At};
use clap::{Args, Subcommand};
use dataplane::control;
use live::{Harmless, Live};
use report::{Report, Verdict};
use stage::{Setting, Stage};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use which::Which;

/// Orders a second, unless someone says otherwise.
const SANDBOX_ORDERS_PER_S: u32 = 200;
const LIVE_ORDERS_PER_S: u32 = 20;

#[derive(Subcommand)]
pub enum Command {
    /// Run drills: exit 0 if every one that ran has passed, 1 if one failed
    #[command(after_help = "\
The sandbox is two to four zones, a Global Zone Service and an emulated WAN between them, of real processes on this host, gone at the end.
A drill that this host cannot run (disk-full takes root) says NOT RUN and why.
On a running system (--gzs) planned-move and evacuate-restore can be run: with orders of their own, in a table of their own, which are deleted; shards
go home at the end, and at ^C. Everything else breaks things, and is for a sandbox.

Examples: ezctl drill run planned-move zone-killed --sandbox
          ezctl drill run gzs-killed-in-mid-move --sandbox --rounds 1000 --orders-per-s 1000
          ezctl drill run all --sandbox --zones 3 --orders-per-s 500 --report drills
          ezctl drill run planned-move --gzs URL --router bj=10.1.0.1:8080 --router sh=10.2.0.1:8080 --shard 341")]
    Run(Box<Run>),
    /// Every drill and what it does
    #[command(after_help = "Example: ezctl drill list")]
    List,
}

#[derive(Args)]
pub struct Run {
    /// Drills by name (`ezctl drill list`), or all
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// On a sandbox that is started for it
    #[arg(long, conflicts_with_all = ["gzs", "routers"])]
    sandbox: bool,
    #[command(flatten)]
    at: At,
    /// On a running system: a router of each zone, where the drill's orders enter
    #[arg(long = "router", value_name = "ZONE=HOST:PORT", value_parser = router)]
    routers: Vec<(String, SocketAddr)>,
    /// On a running system: the shard that planned-move moves there and back
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// On a running system: the zone that evacuate-restore evacuates
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Zones of the sandbox
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=4))]
    zones: u8,
    /// Orders a second, through all routers together; default: 200 on a sandbox, 20 on a running system
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    orders_per_s: Option<u32>,
    /// How often planned-move, gzs-killed-in-mid-move and taken-over-in-mid-move repeat what they do; default: a few times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// One way of the WAN, in milliseconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=500))]
    each_way_ms: u32,
    /// Write NAME.md and NAME.json of each drill here, and what the processes of one that failed have said
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// The program `ezone`; default: the one beside this program
    #[arg(long, value_name = "FILE")]
    ezone: Option<PathBuf>,
}

pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Run(options) => drills(&options),
        Command::List => list(),
    };
    done.unwrap_or_else(|fault| fault.tell())
}

fn list() -> Result<ExitCode, Fault> {
    let width = Which::ALL.iter().map(|w| w.name().len()).max().unwrap_or(0);
    Which::ALL.iter().for_each(|w| say(&format!("{:<width$}  {}\n", w.name(), w.about())));
    Ok(ExitCode::SUCCESS)
}

fn drills(options: &Run) -> Result<ExitCode, Fault> {
    let which = Which::of(&options.names).map_err(Fault::Input)?;
    if let Some(dir) = &options.report {
        std::fs::create_dir_all(dir).map_err(|e| Fault::Input(format!("--report {}: {e}", dir.display())))?;
    }
    let runtime = control::runtime().map_err(Fault::Input)?;
    let done = if options.sandbox {
        let program = ezone(options.ezone.as_deref()).map_err(Fault::Input)?;
        runtime.block_on(async {
            tokio::select! {
                reports = all(options, &program, &which) => reports,
                _ = control::asked_to_stop(false) => Err("stopped: the sandbox is gone, nothing is judged".into()),
            }
        })
    } else {
        let (live, which) = live(options, &which).map_err(Fault::Input)?;
        runtime.block_on(on_a_running_system(options, &live, &which))
    };
    let reports = match done {
        Ok(reports) => reports,
        Err(why) => {
            eprintln!("ezctl drill: {why}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let failed = reports.iter().filter(|r| r.verdict == Verdict::Failed).count();
    let all = serde_json::json!({ "passed": failed == 0, "failed": failed, "drills": reports });
    if let Some(dir) = &options.report {
        let kept = std::fs::write(dir.join("all.json"), format!("{all}\n"));
        kept.map_err(|e| Fault::Input(format!("--report {}: {e}", dir.display())))?;
    }
    if options.at.json {
        say(&format!("{all}\n"));
    } else {
        say(&report::table(&reports));
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// What runs, and which drills are for it; nothing is done if one is not.
fn live(options: &Run, which: &[Which]) -> Result<(Live, Vec<Harmless>), String> {
    if options.at.gzs.is_none() && options.routers.is_empty() {
        return Err(
            "on what? --sandbox starts one; --gzs URL with a --router of each zone names a running system".into()
        );
    }
    let mut harmless = vec![];
    for which in which {
        match Harmless::of(*which) {
            Some(one) => harmless.push(one),
            None if options.names.iter().any(|n| n == "all") => {}
            None => {
                return Err(format!(
                    "{} breaks things: it is for a sandbox (--sandbox). Nothing was done",
                    which.name()
                ));
            }
        }
    }
    let live = Live {
        gzs: gzs_service::client(&options.at)?,
        routers: options.routers.clone(),
        orders_per_s: options.orders_per_s.unwrap_or(LIVE_ORDERS_PER_S),
        rounds: options.rounds.unwrap_or(1),
        shard: options.shard,
        zone: options.zone.clone(),
    };
    Ok((live, harmless))
}

async fn on_a_running_system(options: &Run, live: &Live, which: &[Harmless]) -> Result<Vec<Report>, String> {
    let mut reports = vec![];
    for (number, which) in which.iter().enumerate() {
        // Tokens that no earlier run has used.
        let seed = control::wall_ms() + number as u64;
        let report = live::run(*which, live, seed).await;
        told(options, &report)?;
        let stopped = !report.restored;
        reports.push(report);
        if stopped {
            break;
        }
    }
    Ok(reports)
}

fn told(options: &Run, report: &Report) -> Result<(), String> {
    if let Some(dir) = &options.report {
        report.write(dir).map_err(|e| format!("--report {}: {e}", dir.display()))?;
    }
    if !options.at.json {
        say(&report.text());
    }
    Ok(())
}

fn router(text: &str) -> Result<(String, SocketAddr), String> {
    let expected = || format!("\"{text}\": expected ZONE=HOST:PORT, such as bj=10.1.0.1:8080");
    let (zone, at) = text.split_once('=').ok_or_else(expected)?;
    let mut found = at.to_socket_addrs().map_err(|e| format!("{}: {e}", expected()))?;
    Ok((zone.to_owned(), found.next().ok_or_else(expected)?))
}

/// The program that the sandbox's processes are.
fn ezone(named: Option<&Path>) -> Result<PathBuf, String> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?.with_file_name("ezone"),
    };
    if path.is_file() {
        return path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
    }
    Err(format!("{} is not there: build it (`cargo build --bin ezone`) or name it with --ezone", path.display()))
}

/// One after the other; a stage is used again as long as the next drill can take it and it is whole.
async fn all(options: &Run, program: &Path, which: &[Which]) -> Result<Vec<Report>, String> {
    let (mut reports, mut stage): (Vec<Report>, Option<Stage>) = (vec![], None);
    for (number, which) in which.iter().enumerate() {
        let setting = Setting {
            program: program.into(),
            zones: options.zones.into(),
            orders_per_s: options.orders_per_s.unwrap_or(SANDBOX_ORDERS_PER_S),
            each_way_ms: options.each_way_ms,
            kind: which.kind(),
            rounds: options.rounds,
            number,
        };
        if !options.at.json {
            say(&format!("{} ..\n", which.name()));
        }
        let report = scene::run(*which, &setting, &mut stage).await;
        told(options, &report)?;
        if let (Some(dir), Verdict::Failed, Some(stage)) = (&options.report, report.verdict, &stage) {
            stage.keep_said(&dir.join(format!("{}-said", which.name())));
        }
        if !report.restored
            && let Some(mut broken) = stage.take()
        {
            broken.stop().await;
        }
        reports.push(report);
    }
    if let Some(mut stage) = stage {
        stage.stop().await;
    }
    Ok(reports)
}

/// A closed pipe is no reason to leave a sandbox behind.
fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
