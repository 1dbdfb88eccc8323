//! `ezctl shard`: who owns each shard, planned moves, and opening what a take-over has locked. By the Global Zone Service.

use crate::service::{self, Asking, At, Limit, Not, json, say, table};
use clap::{Args, Subcommand};
use dataplane::control::gzs_client::GzsClient;
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

Example: ezctl shard move 341 352 --to bj --why \"sh is short of disk\"
         ezctl shard move users --to bj       # a global service, by its name")]
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
    /// The shards' numbers; a global service also by its name
    #[arg(required = true, value_name = "SHARD")]
    shards: Vec<String>,
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
    /// The shards' numbers; a global service also by its name
    #[arg(required = true, value_name = "SHARD")]
    shards: Vec<String>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

pub fn run(command: Command) -> ExitCode {
    match command {
        Command::List(l) => service::with(&l.at, async |client| list(&client.state().await?, &l)),
        Command::Move(m) => service::with(&m.at, async |client| {
            let what = What::Move { shards: named(client, &m.shards).await?, to: m.to.clone() };
            service::begin(client, what, &m.asking, m.limit.limit_ms, m.at.json).await
        }),
        Command::Unlock(u) => service::with(&u.at, async |client| {
            let what = What::Unlock { shards: named(client, &u.shards).await? };
            service::begin(client, what, &Asking::plainly(&u.why), None, u.at.json).await
        }),
    }
}

/// The numbers of what was named; the service is asked only if something is no number.
async fn named(client: &GzsClient, shards: &[String]) -> Result<Vec<u16>, Not> {
    let numbers: Option<Vec<u16>> = shards.iter().map(|s| s.parse().ok()).collect();
    match numbers {
        Some(numbers) => Ok(numbers),
        None => numbers_of(&client.state().await?.shards, shards),
    }
}

fn numbers_of(known: &[ShardState], shards: &[String]) -> Result<Vec<u16>, Not> {
    let number = |text: &String| {
        let by_name = || known.iter().find(|s| s.global.as_ref() == Some(text)).map(|s| s.shard);
        text.parse().ok().or_else(by_name).ok_or_else(|| {
            let names: Vec<&str> = known.iter().filter_map(|s| s.global.as_deref()).collect();
            let has = if names.is_empty() { "none".into() } else { names.join(", ") };
            Not::wrong(format!("\"{text}\" is neither a shard's number nor a global service; the map has: {has}"))
        })
    };
    shards.iter().map(number).collect()
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
    // Most maps have no global services, and need no column for them.
    let named = shards.iter().any(|s| s.global.is_some());
    let row = |s: &&ShardState| {
        let since = s.owner_epoch.to_string();
        let mut row = vec![s.shard.to_string(), or_none(&s.owner), since, s.kind.clone(), or_none(&s.to)];
        row.extend(named.then(|| or_none(&s.global)));
        row
    };
    let heads: &[&str] = &["shard", "owner", "since map", "kind", "to", "global service"];
    table(&heads[..heads.len() - usize::from(!named)], &shards.iter().map(row).collect::<Vec<_>>())
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
            ..ShardState::default()
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
        let named = ShardState { global: Some("users".into()), ..shard(1024, "own", Some("bj"), None) };
        assert!(rows(&[&named, &all[0]]).lines().nth(1).is_some_and(|l| l.trim_end().ends_with("users")));
    }

    #[test]
    fn a_global_service_is_named_or_numbered_and_one_that_is_not_there_is_told() {
        let known = [ShardState { shard: 1024, global: Some("users".into()), ..ShardState::default() }];
        let numbers = |texts: &[&str]| numbers_of(&known, &texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(numbers(&["341", "users"]).ok(), Some(vec![341, 1024]));
        let Err(Not::Wrong(why)) = numbers(&["341", "coupons"]) else { panic!("named nothing") };
        let crate::map::Fault::Input(why) = why else { panic!("no input") };
        assert_eq!(why, "\"coupons\" is neither a shard's number nor a global service; the map has: users");
    }
}
