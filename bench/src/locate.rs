//! Lookup beside geo and rstar.

use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> ExitCode {
    ExitCode::from(2)
}
