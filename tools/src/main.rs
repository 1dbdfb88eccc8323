//! `ezctl`: inspect and operate.

mod admin;
mod conflicts;
mod drill;
mod fence;
mod global;
mod link;
mod log;
mod map;
mod op;
mod route;
mod service;
mod shard;
mod zone;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Inspect and operate ezone: zones, shards, maps, logs.
///
/// Exit code 0: fine. 1: the answer is "no" (a check failed). 2: wrong usage or input.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = "Example: ezctl map check --map shardmap/data/china.toml")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check, compare and ask a map
    #[command(subcommand, after_help = "Example: ezctl map locate --map shardmap/data/china.toml 121.52669 31.2302")]
    Map(map::Command),
    /// Ask where a request would go
    #[command(
        subcommand,
        after_help = "Example: ezctl route explain --admin 127.0.0.1:8082 --header \"x-shard: loc=121.5,31.2\""
    )]
    Route(route::Command),
    /// What was written on the wrong side of a change of owner
    #[command(subcommand, after_help = "Example: ezctl conflicts list --admin 127.0.0.1:8083")]
    Conflicts(conflicts::Command),
    /// The links of a running log: list, pause, throttle, clear
    #[command(subcommand, after_help = "Example: ezctl link ls --admin 127.0.0.1:8092")]
    Link(link::Command),
    /// Break a system on purpose, and see whether it keeps what it promises
    #[command(subcommand, after_help = "Example: ezctl drill run planned-move zone-killed --sandbox")]
    Drill(drill::Command),
    /// The operations of the Global Zone Service: list, show, abort, resume, wait
    #[command(subcommand, after_help = "Example: ezctl op list --all --gzs http://127.0.0.1:7300")]
    Op(op::Command),
    /// Who owns each shard; move some
    #[command(subcommand, after_help = "Example: ezctl shard move 341 --to bj --gzs http://127.0.0.1:7300")]
    Shard(shard::Command),
    /// How each zone is; evacuate, restore or take over one
    #[command(subcommand, after_help = "Example: ezctl zone status --gzs http://127.0.0.1:7300")]
    Zone(zone::Command),
    /// Preview and change the fences
    #[command(subcommand, after_help = "Example: ezctl fence preview new.geojson --gzs http://127.0.0.1:7300")]
    Fence(fence::Command),
    /// Global services: add one
    #[command(subcommand, after_help = "Example: ezctl global add users --zone bj --gzs http://127.0.0.1:7300")]
    Global(global::Command),
    /// Look into a log
    #[command(subcommand, after_help = "Example: ezctl log ls /var/lib/ezone")]
    Log(log::Command),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Map(command) => map::run(command),
        Command::Route(command) => route::run(command),
        Command::Conflicts(command) => conflicts::run(command),
        Command::Link(command) => link::run(command),
        Command::Drill(command) => drill::run(command),
        Command::Op(command) => op::run(command),
        Command::Shard(command) => shard::run(command),
        Command::Zone(command) => zone::run(command),
        Command::Fence(command) => fence::run(command),
        Command::Global(command) => global::run(command),
        Command::Log(command) => log::run(command),
    }
}
