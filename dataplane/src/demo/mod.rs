//! `ezone demo`: two zones on this host over an emulated WAN, a stream of orders, a move, a killed zone, and the proof.
//!
//! The demo is the driver, the WAN and the Global Zone Service; each zone's router and log are processes of their own.

pub mod gzs;
mod show;
pub mod summary;
mod tally;

use crate::sandbox::chart;
use crate::{control, uring};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The names of the zones, in the order of their numbers in the map.
pub const NAMES: [&str; 2] = [chart::ZONES[0], chart::ZONES[1]];

/// What `ezone demo` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Orders a second, through both routers together
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub orders_per_s: u32,
    /// How long orders are placed
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(10..=3600))]
    pub seconds: u32,
    /// Keep running afterwards, and print addresses and curl lines to try; ends with Ctrl-C
    #[arg(long)]
    pub serve: bool,
    /// Keep logs and stores here (must be empty or not exist); default: a temporary directory that is removed
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    pub json: bool,
    /// One way of the WAN, in milliseconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(0..=500))]
    pub each_way_ms: u32,
    /// Seed of the places and tokens
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs the demo; 0: everything was proved, 1: something was not, or could not run, 2: wrong input.
pub fn run(options: Options) -> ExitCode {
    let root = match Root::take(&options) {
        Ok(root) => root,
        Err(why) => {
            eprintln!("ezone demo: {why}");
            return ExitCode::from(2);
        }
    };
    let checked = uring::check().map_err(|e| e.to_string()).and_then(|()| control::machine::locked_memory(1));
    let shown = checked.and_then(|()| control::runtime()).and_then(|rt| rt.block_on(show::run(&options, &root.path)));
    match shown {
        Ok(summary) => {
            if options.json {
                show::say(&format!("{}\n", summary.json()));
            }
            ExitCode::from(u8::from(!summary.proved()))
        }
        Err(why) => {
            eprintln!("ezone demo: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The directory of the demo's data; removed at the end unless it was asked for.
struct Root {
    path: PathBuf,
    temporary: bool,
}

impl Root {
    fn take(options: &Options) -> Result<Root, String> {
        let (path, temporary) = match &options.data_dir {
            Some(path) => (path.clone(), false),
            None => (std::env::temp_dir().join(format!("ezone-demo-{}", std::process::id())), true),
        };
        let why = |e: std::io::Error| format!("data directory {}: {e}", path.display());
        std::fs::create_dir_all(&path).map_err(why)?;
        if std::fs::read_dir(&path).map_err(why)?.next().is_some() {
            return Err(format!(
                "data directory {} is not empty: the demo begins with nothing and would mix its orders with what is there; \
                 name an empty one",
                path.display()
            ));
        }
        let path = path.canonicalize().map_err(why)?;
        Ok(Root { path, temporary })
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path); // a temporary directory: whoever cleans it gets the rest
        }
    }
}

/// The moments of the show, as shares of its length.
struct Script {
    move_at: Duration,
    kill_at: Duration,
    return_at: Duration,
    end_at: Duration,
}

impl Script {
    fn of(seconds: u32) -> Script {
        let part = |share: f64| Duration::from_secs_f64(f64::from(seconds) * share);
        Script { move_at: part(0.24), kill_at: part(0.44), return_at: part(0.64), end_at: part(1.0) }
    }
}
