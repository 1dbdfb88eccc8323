//! `ezctl`: inspect and operate.

mod log;
mod map;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Inspect and operate ezone: maps, logs.
///
/// Exit code 0: fine. 1: the answer is "no" (a check failed). 2: wrong usage or input.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check, compare and ask a map
    #[command(subcommand)]
    Map(map::Command),
    /// Look into a log
    #[command(subcommand)]
    Log(log::Command),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Map(command) => map::run(command),
        Command::Log(command) => log::run(command),
    }
}
