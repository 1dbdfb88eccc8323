//! `ezone`: where the programs are put together. It alone prints and exits.

use clap::{Args, Parser, Subcommand};
use dataplane::config::{Config, GzsConfig};
use dataplane::{control, demo};
use std::path::PathBuf;
use std::process::ExitCode;

/// Multi-active for businesses that live by place: an edge router that sends each request to the zone that owns it, and a
/// replication log that ships every change to the other zones.
///
/// Exit code 0: fine. 1: the answer is "no", or a fault. 2: wrong usage or input.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = "Try it: ezone demo")]
struct Cli {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Two zones on this host over an emulated 30 ms WAN: orders, a move, a killed zone, and the proof
    #[command(after_help = "Example: ezone demo --orders-per-s 500 --seconds 20 --json")]
    Demo(demo::Options),
    /// A node: starts and watches its router and its log
    #[command(after_help = "Example: ezone run --config /etc/ezone.toml")]
    Run(File),
    /// The router of a node, alone
    #[command(after_help = "Example: ezone router --config /etc/ezone.toml")]
    Router(RouterArgs),
    /// The log of a node, alone
    #[command(after_help = "Example: ezone log --config /etc/ezone.toml")]
    Log(LogArgs),
    /// The Global Zone Service: the map's only writer. It lives outside of the zones
    #[command(after_help = "Example: ezone gzs --config /etc/ezone/gzs.toml")]
    Gzs(GzsArgs),
    /// Say all that is wrong with a configuration, with file and line
    #[command(after_help = "Example: ezone check --config /etc/ezone.toml")]
    Check(File),
    /// Make a cluster's authority and certificates, for tests, trials and small clusters
    #[command(subcommand, after_help = "Example: ezone cert ca --dir /etc/ezone/tls --cluster ezone")]
    Cert(control::cert::What),
}

#[derive(Args)]
struct File {
    /// The node's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Args)]
struct Part {
    #[command(flatten)]
    file: File,
    /// End when standard input does: a parent that holds it open takes this process along, however it ends
    #[arg(long)]
    stop_with_stdin: bool,
}

#[derive(Args)]
struct RouterArgs {
    #[command(flatten)]
    part: Part,
    /// Take the listeners over from the router that runs with this data directory, which drains and ends: no connection is
    /// refused. SIGUSR2 to a router, or to `ezone run`, does this with the program that then lies at the same path
    #[arg(long)]
    take_over: bool,
}

#[derive(Args)]
struct LogArgs {
    #[command(flatten)]
    part: Part,
    /// Take writes without having reached the GZS or every other zone (overrides neither a FENCE nor a stored map)
    #[arg(long)]
    start_alone: bool,
}

#[derive(Args)]
struct GzsArgs {
    #[command(flatten)]
    part: Part,
    /// Go on from this map, which is newer than the store's: a node's DATA_DIR/log.map, after the store was restored from a backup
    #[arg(long, value_name = "FILE")]
    adopt: Option<PathBuf>,
    /// Say all that is wrong with the configuration, and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    control::program::remember();
    let cli = Cli::parse();
    let level = if matches!(cli.program, Program::Demo(_)) { "warn" } else { "info" };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("EZONE_LOG").unwrap_or_else(|_| level.into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let done = match cli.program {
        Program::Demo(options) => return demo::run(options),
        Program::Check(file) => load(&file).and_then(|c| check(&file, &c)),
        Program::Cert(what) => control::cert::run(&what).map(|made| println!("{made}")).map_err(failed),
        Program::Run(file) => load(&file).and_then(|c| control::run::run(&file.config, &c).map_err(failed)),
        Program::Router(args) => load(&args.part.file).and_then(|c| {
            let (file, stop_with_stdin) = (&args.part.file.config, args.part.stop_with_stdin);
            let start = control::router::Start { file, stop_with_stdin, take_over: args.take_over };
            control::router::run(&c, start).map_err(failed)
        }),
        Program::Gzs(args) => GzsConfig::load(&args.part.file.config).map_err(|e| (2, e.to_string())).and_then(|c| {
            if args.check {
                println!("{}: fine", args.part.file.config.display());
                return Ok(());
            }
            control::gzs::run(&c, args.adopt.as_deref(), args.part.stop_with_stdin).map_err(failed)
        }),
        Program::Log(args) => load(&args.part.file).and_then(|mut c| {
            if let Some(log) = &mut c.log {
                log.start_alone |= args.start_alone;
            }
            control::log::run(&c, args.part.stop_with_stdin).map_err(failed)
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, why)) => {
            eprintln!("{why}");
            ExitCode::from(code)
        }
    }
}

fn load(file: &File) -> Result<Config, (u8, String)> {
    Config::load(&file.config).map_err(|e| (2, e.to_string()))
}

/// What a configuration names has to be good too.
fn check(file: &File, config: &Config) -> Result<(), (u8, String)> {
    let warnings = control::secrets::Secrets::check(config).map_err(|e| (2, e))?;
    let unknown = control::dns::check(config).map_err(|e| (1, e))?;
    warnings.iter().chain(&unknown).for_each(|w| println!("warning: {w}"));
    config.layout.warning.iter().for_each(|w| println!("warning: {w}"));
    println!("layout: {}", config.layout.sentence());
    println!("{}: fine", file.config.display());
    Ok(())
}

fn failed(why: control::Failed) -> (u8, String) {
    match why {
        control::Failed::Input(why) => (2, format!("ezone: {why}")),
        control::Failed::Fault(why) => (1, format!("ezone: {why}")),
    }
}
