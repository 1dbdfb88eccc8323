//! `ezctl global`: services that no place owns, of which one zone at a time writes the data. By the Global Zone Service.

use crate::service::{self, Asking, At};
use clap::{Args, Subcommand};
use gzs::api::What;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// Put a new global service on the map, with the zone that writes it
    #[command(after_help = "\
Clients name it: `x-shard: global=NAME`, from when their router goes by the new map. Its zone writes it under a lease; `ezctl shard move NAME --to ZONE`
gives it to another one, `ezctl shard list` shows it. A name stays for ever: nothing takes it off the map again.
Exit 0: done. 1: it is not. 2: wrong input.

Example: ezctl global add users --zone bj --why \"accounts\"")]
    Add(Add),
}

#[derive(Args)]
pub struct Add {
    #[command(flatten)]
    at: At,
    /// What it is called: 1 to 64 of a-z, 0-9 and _
    name: String,
    /// The zone that writes it
    #[arg(long, value_name = "ZONE")]
    zone: String,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(command: Command) -> ExitCode {
    let Command::Add(Add { at, name, zone, asking }) = command;
    service::with(&at, async |client| {
        service::begin(client, What::AddGlobal { name, zone }, &asking, None, at.json).await
    })
}
