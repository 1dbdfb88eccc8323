//! `ezbench`: load drivers and comparisons.

mod answer;
mod append;
mod body;
mod compare;
mod http;
mod idle;
mod load;
mod locate;
mod manner;
mod outcome;
mod place;
mod random;
mod request;
mod schedule;
mod script;
mod serve;
mod ship;
mod sys;
mod target;
mod token;
mod upstream;
mod wan;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Load drivers and comparisons: figures with the peer beside them.
///
/// Exit code 0: fine. 1: the answer is "no" (errors were seen). 2: wrong usage or input.
#[derive(Parser)]
#[command(version, propagate_version = true, after_help = "Example: ezbench locate")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open-loop HTTP load with latency from the time a request was due
    Http(http::Args),
    /// A backend for benchmarks
    Upstream(upstream::Args),
    /// Point-to-shard lookup beside geo + rstar
    Locate(locate::Args),
    /// Ours and its peers in the same run
    Compare(compare::Args),
    /// The link beside iperf3, and MariaDB's replication, over a WAN on this machine
    Ship(ship::Args),
    /// A WAN between two network namespaces, for any program
    Wan(wan::Args),
    /// The log beside fio and other durable logs
    Append(append::Args),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Http(args) => http::run(args),
        Command::Upstream(args) => upstream::run(args),
        Command::Locate(args) => locate::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Append(args) => append::run(args),
        Command::Ship(args) => ship::run(args),
        Command::Wan(args) => wan::run(args),
    }
}
