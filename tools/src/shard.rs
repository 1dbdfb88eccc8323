//! `ezctl shard`: who owns each shard, planned moves, and opening what a take-over has locked. By the Global Zone Service.

use crate::service::{self, Asking, At, Limit, Not, json, say, table};
use clap::{Args, Subcommand};
use gzs::api::{ShardState, State, What};
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// List the shards: owner, since which map, and what is under way
    #[command(after_help = "\
Kinds: own; moving; lost (no owner yet); unlock (own, and an operator has opened its locks).

Example: ezctl shard list --zone sh --gzs http://127.0.0.1:7300")]
    List(List),
    /// Move shards to a zone: clients feel a delay, no error. Waits for the end
    #[command(after_help = "\
Exit 0: done. 1: refused by the preflight or by what is there, or it ended otherwise. 2: wrong input, or no service that answers.
Interrupting it ends the waiting, not the operation.

Example: ezctl shard move 341 352 --to bj --why \"sh is short of disk\"")]
    Move(Move),
    /// Open the locks of every take-over of these shards so far: rows that a lost zone may have changed are written again. Needs the role admin
    #[command(after_help = "\
What the lost zone wrote on such a row is then listed as a conflict once it is back.

Example: ezctl shard unlock 341 --why \"sh will not return\"")]
    Unlock(Unlock),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    at: At,
    /// Those that this zone owns, or is to get
    #[arg(long)]
    zone: Option<String>,
}

#[derive(Args)]
pub struct Move {
    #[command(flatten)]
    at: At,
    /// The shards' numbers
    #[arg(required = true, value_name = "SHARD")]
    shards: Vec<u16>,
    /// The zone that is to own them
    #[arg(long, value_name = "ZONE")]
    to: String,
    #[command(flatten)]
    asking: Asking,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args)]
pub struct Unlock {
    #[command(flatten)]
    at: At,
    /// The shards' numbers
    #[arg(required = true, value_name = "SHARD")]
    shards: Vec<u16>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

pub fn run(command: Command) -> ExitCode {
    match command {
        Command::List(l) => service::with(&l.at, async |client| list(&client.state().await?, &l)),
        Command::Move(m) => service::with(&m.at, async |client| {
            let what = What::Move { shards: m.shards.clone(), to: m.to.clone() };
            service::begin(client, what, &m.asking, m.limit.limit_ms, m.at.json).await
        }),
        Command::Unlock(u) => service::with(&u.at, async |client| {
            let what = What::Unlock { shards: u.shards.clone() };
            service::begin(client, what, &Asking::plainly(&u.why), None, u.at.json).await
        }),
    }
}

fn list(state: &State, l: &List) -> Result<ExitCode, Not> {
    if let Some(zone) = &l.zone {
        crate::zone::known(state, zone)?;
    }
    let shards: Vec<&ShardState> = state.shards.iter().filter(|s| concerns(s, l.zone.as_deref())).collect();
    if !l.at.json {
        say(&rows(&shards))?;
    }
    for shard in shards.iter().filter(|_| l.at.json) {
        json(shard)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn concerns(shard: &ShardState, zone: Option<&str>) -> bool {
    zone.is_none_or(|zone| [&shard.owner, &shard.to].into_iter().flatten().any(|z| z == zone))
}

fn rows(shards: &[&ShardState]) -> String {
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".into());
    let row = |s: &&ShardState| {
        vec![s.shard.to_string(), or_none(&s.owner), s.owner_epoch.to_string(), s.kind.clone(), or_none(&s.to)]
    };
    table(&["shard", "owner", "since map", "kind", "to"], &shards.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zones_shards_are_those_it_has_and_those_it_gets() {
        let shard = |shard, kind: &str, owner: Option<&str>, to: Option<&str>| ShardState {
            shard,
            kind: kind.into(),
            owner: owner.map(str::to_owned),
            owner_epoch: 3,
            to: to.map(str::to_owned),
            epoch: 4,
        };
        let all = [
            shard(121, "own", Some("bj"), None),
            shard(341, "moving", Some("sh"), Some("bj")),
            shard(352, "lost", None, None),
        ];
        let numbers = |zone| all.iter().filter(|s| concerns(s, zone)).map(|s| s.shard).collect::<Vec<_>>();
        assert_eq!(numbers(None), [121, 341, 352]);
        assert_eq!(numbers(Some("bj")), [121, 341]);
        assert_eq!(numbers(Some("sh")), [341]);
        let text = rows(&all.iter().collect::<Vec<_>>());
        let cells: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(cells[1], ["341", "sh", "3", "moving", "bj"]);
        assert_eq!(cells[2], ["352", "-", "3", "lost", "-"]);
    }
}
