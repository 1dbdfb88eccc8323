//! `ezctl op`: the operations of the Global Zone Service: which there are, how far they are, and an operator's word about them.

use crate::service::{self, At, Not, Wait, clock, given, json, say, sentence, shown, table, task};
use clap::{Args, Subcommand};
use dataplane::control::gzs_client::GzsClient;
use gzs::api::{AuditView, OpView};
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// List the operations that are under way
    #[command(after_help = "\
`given`: shards that have their new owner / all of the operation. States: running, done, aborted, gave_up.

Example: ezctl op list --all --gzs http://127.0.0.1:7300")]
    List(List),
    /// Show one operation: who, why, what it waits for, and each shard's way
    #[command(after_help = "\
Ways: waiting, on_its_way (the map says moving, or no owner), given, returned, replaced (another operation changed the shard).

Example: ezctl op show 7")]
    Show(Which),
    /// Give back what has not arrived: exit 0 if it is aborted
    #[command(after_help = "Shards that have their new owner stay there: move them back.\n\nExample: ezctl op abort 7")]
    Abort(Which),
    /// Begin again what an operation that gave up, or was aborted, has given back; waits for the end
    #[command(after_help = "Exit 0: it is done. 1: it is not.\n\nExample: ezctl op resume 7")]
    Resume(Waited),
    /// Wait for an operation's end
    #[command(
        after_help = "Exit 0: it is done. 1: it ended otherwise, or not in time.\n\nExample: ezctl op wait 7 --wait-s 30"
    )]
    Wait(Waited),
    /// Every change of the map: which, when, by whom, why
    #[command(after_help = "At most 1,000 at a time: go on with --after.\n\nExample: ezctl op audit --after 120")]
    Audit(Audit),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    at: At,
    /// Those that have ended too, the newest first; at most 1,000
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
pub struct Which {
    #[command(flatten)]
    at: At,
    /// The operation's number
    id: u64,
}

#[derive(Args)]
pub struct Waited {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    at: At,
    /// Changes after this map
    #[arg(long, value_name = "EPOCH", default_value_t = 0)]
    after: u64,
}

pub fn run(command: Command) -> ExitCode {
    match command {
        Command::List(l) => service::with(&l.at, async |client| list(client, &l).await),
        Command::Show(w) => service::with(&w.at, async |client| {
            let op = client.op(w.id).await?;
            if w.at.json {
                json(&op)?
            } else {
                say(&page(&op))?
            }
            Ok(ExitCode::SUCCESS)
        }),
        Command::Abort(w) => service::with(&w.at, async |client| {
            let op = client.abort(w.id, &service::by()).await?;
            if w.at.json {
                json(&op)?
            } else {
                say(&format!("{}\n", sentence(&op)))?
            }
            Ok(ExitCode::from(u8::from(op.state != "aborted")))
        }),
        Command::Resume(w) => service::with(&w.which.at, async |client| {
            let op = client.resume(w.which.id).await?;
            service::finish(client, op, &w.wait, w.which.at.json).await
        }),
        Command::Wait(w) => service::with(&w.which.at, async |client| {
            let op = client.op(w.which.id).await?;
            service::finish(client, op, &w.wait, w.which.at.json).await
        }),
        Command::Audit(a) => service::with(&a.at, async |client| audit(client, &a).await),
    }
}

async fn list(client: &GzsClient, l: &List) -> Result<ExitCode, Not> {
    let ops = client.ops(l.all).await?;
    if !l.at.json {
        say(&rows(&ops, l.all))?;
    }
    for op in ops.iter().filter(|_| l.at.json) {
        json(op)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn audit(client: &GzsClient, a: &Audit) -> Result<ExitCode, Not> {
    let all = client.audit(a.after).await?;
    if !a.at.json {
        say(&changes(&all))?;
    }
    for change in all.iter().filter(|_| a.at.json) {
        json(change)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Operations as a person reads them.
fn rows(ops: &[OpView], all: bool) -> String {
    if ops.is_empty() {
        return if all { "no operation\n" } else { "no operation is under way; --all lists ended ones\n" }.into();
    }
    let row = |op: &OpView| {
        let took = op.ended_ms.map_or("-".into(), |ms| ms.saturating_sub(op.begun_ms).to_string());
        vec![
            op.id.to_string(),
            task(&op.what),
            op.state.clone(),
            given(op),
            clock(op.begun_ms),
            took,
            op.by.clone(),
            op.says.clone(),
        ]
    };
    let head = ["id", "what", "state", "given", "begun", "took ms", "by", "waits, or why"];
    table(&head, &ops.iter().map(row).collect::<Vec<_>>())
}

/// One operation with each shard's way.
fn page(op: &OpView) -> String {
    let mut text = sentence(op) + "\n";
    text += &format!("begun {} by {}, limit {} ms\n", clock(op.begun_ms), shown(&op.by), op.limit_ms);
    if !op.why.is_empty() {
        text += &format!("why: {}\n", shown(&op.why));
    }
    op.forced.iter().for_each(|reason| text += &format!("forced, although {}\n", shown(reason)));
    let way = |s: &gzs::api::ShareView| {
        let epoch = if s.epoch == 0 { "-".into() } else { s.epoch.to_string() };
        vec![s.shard.to_string(), s.from.clone(), s.to.clone(), s.state.clone(), epoch]
    };
    if !op.shards.is_empty() {
        text += "\n";
        text += &table(&["shard", "from", "to", "state", "map"], &op.shards.iter().map(way).collect::<Vec<_>>());
    }
    text
}

fn changes(all: &[AuditView]) -> String {
    let mut text = String::new();
    for a in all {
        let op = a.op.map_or(String::new(), |op| format!(", operation {op}"));
        text += &format!("map {}  {}  {}{op}: {}\n", a.epoch, clock(a.at_ms), shown(&a.by), shown(&a.why));
        a.changes.iter().for_each(|change| text += &format!("  {}\n", shown(change)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::op;
    use gzs::api::What;

    #[test]
    fn a_list_says_how_far_each_is_and_what_it_waits_for() {
        let moved = What::Move { shards: vec![341, 352], to: "bj".into() };
        let ops = [op(8, moved.clone(), "running", "zone bj's log is not heard"), op(7, moved, "gave_up", "too slow")];
        let text = rows(&ops, true);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() == 3 && lines[0].starts_with("id  what "), "{text}");
        let words: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(words[..9], ["8", "move", "341,352", "to", "bj", "running", "1/2", "2023-11-14T22:13:20Z", "-"]);
        assert!(
            lines[2].contains(" gave_up ") && lines[2].contains(" 52 ") && lines[2].ends_with(" too slow"),
            "{text}"
        );
        assert!(rows(&[], false).contains("--all"));
    }

    #[test]
    fn a_page_shows_each_shards_way_and_what_was_overruled() {
        let text = page(&op(8, What::Restore { zone: "bj".into() }, "running", "sh"));
        assert!(
            text.contains("by ana@host, limit 5000 ms\nwhy: a test\nforced, although zone bj's log is not"),
            "{text}"
        );
        let last: Vec<_> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["352", "sh", "bj", "on_its_way", "6"]);
    }

    #[test]
    fn a_change_of_the_map_is_told_with_who_and_why() {
        let change = AuditView {
            epoch: 7,
            at_ms: 1_700_000_000_000,
            by: "ana\u{7}".into(),
            why: "a test".into(),
            op: Some(3),
            changes: vec!["shard 341: sh -> bj".into()],
        };
        let expected = "map 7  2023-11-14T22:13:20Z  ana?, operation 3: a test\n  shard 341: sh -> bj\n";
        assert_eq!(changes(&[change]), expected);
    }
}
