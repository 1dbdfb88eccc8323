//! `ezctl drill`: breaks a system on purpose, under load, and says whether it kept what it promises. On a sandbox that it starts itself.
//!
//! Each drill is preflight, act, assert, restore, report. It asserts what is lost, doubled, failed and identical, never a time: times are
//! reported. What may fail is named: an outage is a span of time and the orders that it concerns, and every other order has to succeed.

mod clock;
mod disk;
mod lost;
mod parts;
mod planned;
mod report;
mod scene;
mod service;
mod stage;
mod wan;
mod which;

use crate::map::Fault;
use clap::{Args, Subcommand};
use dataplane::control;
use report::{Report, Verdict};
use stage::{Setting, Stage};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use which::Which;

#[derive(Subcommand)]
pub enum Command {
    /// Run drills: exit 0 if every one that ran has passed, 1 if one failed
    #[command(after_help = "\
The sandbox is two to four zones, a Global Zone Service and an emulated WAN between them, of real processes on this host, gone at the end.
A drill that this host cannot run (disk-full takes root) says NOT RUN and why.

Examples: ezctl drill run planned-move zone-killed --sandbox
          ezctl drill run gzs-killed-in-mid-move --sandbox --rounds 1000 --orders-per-s 1000
          ezctl drill run all --sandbox --zones 3 --orders-per-s 500 --report drills")]
    Run(Run),
    /// Every drill and what it does
    #[command(after_help = "Example: ezctl drill list")]
    List,
}

#[derive(Args)]
pub struct Run {
    /// Drills by name (`ezctl drill list`), or all
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// On a sandbox that is started for it: the only place for drills so far
    #[arg(long)]
    sandbox: bool,
    /// Zones of the sandbox
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=4))]
    zones: u8,
    /// Orders a second, through all routers together
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    orders_per_s: u32,
    /// How often planned-move and gzs-killed-in-mid-move repeat what they do; default: a few times
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// One way of the WAN, in milliseconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=500))]
    each_way_ms: u32,
    /// Print one JSON object at the end, and nothing else
    #[arg(long)]
    json: bool,
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
    if !options.sandbox {
        let why = "drills run on a sandbox only so far: add --sandbox. Nothing was done to any running system";
        return Err(Fault::Input(why.into()));
    }
    let program = ezone(options.ezone.as_deref()).map_err(Fault::Input)?;
    if let Some(dir) = &options.report {
        std::fs::create_dir_all(dir).map_err(|e| Fault::Input(format!("--report {}: {e}", dir.display())))?;
    }
    let done = control::runtime().map_err(Fault::Input)?.block_on(async {
        tokio::select! {
            reports = all(options, &program, &which) => reports,
            _ = control::asked_to_stop(false) => Err("stopped: the sandbox is gone, nothing is judged".into()),
        }
    });
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
    if options.json {
        say(&format!("{all}\n"));
    } else {
        say(&report::table(&reports));
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
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
            orders_per_s: options.orders_per_s,
            each_way_ms: options.each_way_ms,
            limited: which.is_limited(),
            rounds: options.rounds,
            number,
        };
        let tell = |text: &str| {
            if !options.json {
                say(text);
            }
        };
        tell(&format!("{} ..\n", which.name()));
        let report = scene::run(*which, &setting, &mut stage).await;
        if let Some(dir) = &options.report {
            report.write(dir).map_err(|e| format!("--report {}: {e}", dir.display()))?;
            if let (Verdict::Failed, Some(stage)) = (report.verdict, &stage) {
                stage.keep_said(&dir.join(format!("{}-said", which.name())));
            }
        }
        tell(&report.text());
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
