//! `ezctl log`: check, compare and ask a map.

use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {}

pub fn run(command: Command) -> ExitCode {
    let _ = command;
    ExitCode::from(2)
}
