//! What `ezctl op`, `shard` and `zone` share: they reach the Global Zone Service, begin operations there and wait for their end.
//!
//! Exit codes: 0 it is done, or shown; 1 the answer is "no": refused by what is there, ended otherwise, not ended in time; 2 wrong
//! input: what there is not, a token that may not, or no service that answers.

use crate::map::Fault as Wrong;
use clap::Args;
use dataplane::config::file;
use dataplane::control;
use dataplane::control::gzs_client::{Denied, GzsClient};
use gzs::api::{Fault, OpAsk, OpView, ShareView, What};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;
use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Bytes of a token's file.
const TOKEN_BYTES_MAX: u64 = 4096;
/// How often an operation is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// An end is waited for so long at least ..
const WAIT_S: u64 = 600;
/// .. and so much longer than the operation's own limit, since giving back takes its time too.
const BEYOND_S: u64 = 60;
/// Shards that a line names.
const NAMED_MAX: usize = 6;

#[derive(Args)]
pub struct At {
    /// Where the Global Zone Service is, such as http://127.0.0.1:7300; several, with commas in between: the one that leads is asked; default:
    /// EZONE_GZS of the environment
    #[arg(long, value_name = "URL")]
    pub gzs: Option<String>,
    /// The file with the token that is shown to it; default: EZONE_TOKEN_FILE of the environment, else none
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authorities that sign its certificate; default: those that this machine trusts
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// One JSON object to a line; of a refusal `error` and `reasons`
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Asking {
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
    /// Begin although the preflight speaks against it: its reasons are recorded. Needs the role admin
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Args)]
pub struct Wait {
    /// Do not wait for the end: exit 0 once it has begun
    #[arg(long, conflicts_with = "wait_s")]
    no_wait: bool,
    /// Wait no longer than this: the operation goes on; default: its own limit and a minute, at least 600
    #[arg(long, value_name = "N")]
    wait_s: Option<u64>,
}

#[derive(Args)]
pub struct Limit {
    /// The operation gives up after so long and gives back what has not arrived; default: the service's move_limit_ms
    #[arg(long, value_name = "N")]
    pub limit_ms: Option<u64>,
}

/// Why something is not as it was asked for.
pub enum Not {
    /// The service said no, in its words.
    Refused {
        status: u16,
        fault: Fault,
    },
    /// The answer is "no".
    No(String),
    Wrong(Wrong),
}

impl From<Wrong> for Not {
    fn from(wrong: Wrong) -> Not {
        Not::Wrong(wrong)
    }
}

impl From<io::Error> for Not {
    fn from(e: io::Error) -> Not {
        Not::Wrong(e.into())
    }
}

impl From<Denied> for Not {
    fn from(denied: Denied) -> Not {
        match denied {
            Denied::Refused { status, fault } => Not::Refused { status, fault },
            Denied::Unreachable { .. } | Denied::Garbled { .. } => Not::wrong(denied.to_string()),
            Denied::Slow { .. } => Not::No(denied.to_string()),
        }
    }
}

impl Asking {
    /// For what is done at once, and has nothing to overrule.
    pub fn plainly(why: &str) -> Asking {
        Asking { why: why.into(), force: false, wait: Wait { no_wait: false, wait_s: None } }
    }
}

impl Not {
    pub fn wrong(what: impl Into<String>) -> Not {
        Not::Wrong(Wrong::Input(what.into()))
    }

    /// Says it; the exit code.
    fn tell(self, as_json: bool) -> ExitCode {
        match self {
            Not::Wrong(wrong) => wrong.tell(),
            Not::No(why) => {
                eprintln!("ezctl: {}", shown(&why));
                ExitCode::from(1)
            }
            Not::Refused { status, fault } => {
                eprint!("ezctl: {}", refusal(status, &fault));
                match if as_json { json(&fault) } else { Ok(()) } {
                    Ok(()) => ExitCode::from(code(status)),
                    Err(wrong) => wrong.tell(),
                }
            }
        }
    }
}

/// What is asked wrongly, by whoever asks, is 2; what is there and does not allow it is 1.
fn code(status: u16) -> u8 {
    if [400, 401, 403, 404].contains(&status) { 2 } else { 1 }
}

/// A refusal as a person reads it: a preflight's reasons a line each, and how to overrule them.
fn refusal(status: u16, fault: &Fault) -> String {
    let mut text = shown(&fault.error) + "\n";
    fault.reasons.iter().for_each(|r| text += &format!("  {}\n", shown(r)));
    if !fault.reasons.is_empty() && status == 409 {
        text += "nothing was begun; --force begins nevertheless (role admin), and the reasons are recorded\n";
    }
    if status == 401 {
        text += "--token-file FILE or EZONE_TOKEN_FILE names the file with your token\n";
    }
    text
}

/// Asks the service at `at`: the exit code.
pub fn with(at: &At, what: impl AsyncFnOnce(&GzsClient) -> Result<ExitCode, Not>) -> ExitCode {
    let ask = || {
        let client = client(at).map_err(Not::wrong)?;
        control::runtime().map_err(Not::wrong)?.block_on(what(&client))
    };
    ask().unwrap_or_else(|not| not.tell(at.json))
}

/// The service at `at`.
pub fn client(at: &At) -> Result<GzsClient, String> {
    let said = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
    let url = at.gzs.clone().or_else(|| said("EZONE_GZS"));
    let url = url.ok_or("no Global Zone Service is named: expected --gzs URL, or EZONE_GZS in the environment")?;
    let is_url = |url: &str| ["http://", "https://"].iter().any(|scheme| url.trim().starts_with(scheme));
    if let Some(wrong) = url.split(',').find(|url| !is_url(url)) {
        return Err(format!("--gzs {wrong}: expected http://HOST:PORT or https://HOST:PORT"));
    }
    let token_file = at.token_file.clone().or_else(|| said("EZONE_TOKEN_FILE").map(PathBuf::from));
    let token = token_file.as_deref().map(token).transpose()?;
    GzsClient::believing(&url, token, at.ca.as_deref())
}

fn token(path: &Path) -> Result<String, String> {
    let text = file::read_text(path, TOKEN_BYTES_MAX).map_err(|e| format!("--token-file {}: {e}", path.display()))?;
    match text.trim() {
        "" => Err(format!("--token-file {}: it is empty, expected a token", path.display())),
        token => Ok(token.into()),
    }
}

/// Who asks, for the audit: whoever is behind sudo, and where.
pub fn by() -> String {
    let said = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
    let user = said("SUDO_USER").or_else(|| said("USER"));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

/// Begins an operation and waits for its end, unless that is not wanted.
pub async fn begin(
    client: &GzsClient,
    what: What,
    asking: &Asking,
    limit_ms: Option<u64>,
    as_json: bool,
) -> Result<ExitCode, Not> {
    let ask = OpAsk { what, by: by(), why: asking.why.clone(), force: asking.force, limit_ms };
    let begun = client.begin(&ask).await.map_err(|denied| match denied {
        Denied::Unreachable { .. } => {
            Not::wrong(format!("{denied}; `ezctl op list --all` tells, once it is back, whether it heard this"))
        }
        Denied::Refused { .. } | Denied::Garbled { .. } | Denied::Slow { .. } => denied.into(),
    })?;
    for reason in &begun.forced {
        eprintln!("ezctl: begun although {}", shown(reason));
    }
    finish(client, begun, &asking.wait, as_json).await
}

/// Waits for an operation's end, unless that is not wanted, and says what became of it.
pub async fn finish(client: &GzsClient, op: OpView, wait: &Wait, as_json: bool) -> Result<ExitCode, Not> {
    let waits = !wait.no_wait && op.state == "running";
    let op = if waits { end(client, op, wait).await? } else { op };
    if as_json {
        json(&op)?
    } else {
        say(&format!("{}\n", sentence(&op)))?
    }
    let fine = op.state == "done" || (wait.no_wait && op.state == "running");
    Ok(ExitCode::from(u8::from(!fine)))
}

/// An operation's end, over restarts of the service. A terminal shows what is waited for.
async fn end(client: &GzsClient, mut op: OpView, wait: &Wait) -> Result<OpView, Not> {
    let (from, limit) = (Instant::now(), patience(wait, op.limit_ms));
    let shows = io::stderr().is_terminal();
    let bar = if shows { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_draw_target(if shows { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() });
    loop {
        let late = from.elapsed() >= limit;
        match client.op(op.id).await {
            Ok(seen) => op = seen,
            // It may have been started again, or another one is about to lead.
            Err(why @ (Denied::Unreachable { .. } | Denied::Refused { status: 503, .. })) if !late => {
                op.says = why.to_string();
            }
            Err(why) => return Err(why.into()),
        }
        if op.state != "running" {
            bar.finish_and_clear();
            return Ok(op);
        }
        if late {
            bar.finish_and_clear();
            let (id, says, s) = (op.id, &op.says, limit.as_secs());
            return Err(Not::No(format!(
                "operation {id} is running still after {s} s: {says}; `ezctl op wait {id}` goes on waiting"
            )));
        }
        bar.set_message(sentence(&op));
        bar.tick();
        tokio::time::sleep(LOOK).await;
    }
}

fn patience(wait: &Wait, limit_ms: u64) -> Duration {
    let its_own = (limit_ms / 1000).saturating_add(BEYOND_S);
    Duration::from_secs(wait.wait_s.unwrap_or(its_own.max(WAIT_S)))
}

/// An operation in one line.
pub fn sentence(op: &OpView) -> String {
    let mut text = format!("operation {}: {}: {}", op.id, task(&op.what), op.state);
    if let Some(ms) = op.ended_ms {
        text += &format!(" after {} ms", ms.saturating_sub(op.begun_ms));
    }
    match op.what {
        What::Fences { .. } => {}
        _ if op.shards.is_empty() => {}
        _ => text += &format!(", {} shards given", given(op)),
    }
    if !op.says.is_empty() {
        text += &format!(": {}", op.says);
    }
    shown(&text)
}

/// `GIVEN/ALL`.
pub fn given(op: &OpView) -> String {
    let is_given = |s: &&ShareView| s.state == "given";
    format!("{}/{}", op.shards.iter().filter(is_given).count(), op.shards.len())
}

/// What an operation is to do.
pub fn task(what: &What) -> String {
    let to = |to: &Option<String>| to.as_ref().map_or(String::new(), |to| format!(" to {to}"));
    match what {
        What::Move { shards, to } => format!("move {} to {to}", named(shards)),
        What::Evacuate { zone, to: target } => format!("evacuate {zone}{}", to(target)),
        What::Restore { zone } => format!("restore {zone}"),
        What::TakeOver { zone, to: target } => format!("take over {zone}{}", to(target)),
        What::Unlock { shards } => format!("unlock {}", named(shards)),
        What::AddZone { zone } => format!("add zone {zone}"),
        What::RemoveZone { zone } => format!("remove zone {zone}"),
        What::AddGlobal { name, zone } => format!("add global service {name} in {zone}"),
        What::Fences { from_epoch, .. } => format!("change the fences of map {from_epoch}"),
    }
}

fn named(shards: &[u16]) -> String {
    let some: Vec<String> = shards.iter().take(NAMED_MAX).map(u16::to_string).collect();
    let more = shards.len().saturating_sub(NAMED_MAX);
    some.join(",") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Milliseconds since 1970, in UTC.
pub fn clock(ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms / 1000) * 1_000_000_000).ok();
    at.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{ms} ms"))
}

/// Rows below their head, in columns.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|s| (*s).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(&head).chain(rows).map(|row| row.iter().map(|cell| shown(cell)).collect()).collect();
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |r: &Vec<String>| {
        let cells: Vec<_> = r.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Text that others wrote, for a terminal: it moves no cursor, and ends no line.
pub fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

pub fn say(text: &str) -> Result<(), Wrong> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// One object, on a line of its own.
pub fn json(what: &impl Serialize) -> Result<(), Wrong> {
    let text = serde_json::to_string(what).map_err(|e| Wrong::Input(format!("as JSON: {e}")))?;
    say(&(text + "\n"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn op(id: u64, what: What, state: &str, says: &str) -> OpView {
        let way = |shard: u16, state: &str, epoch: u64| {
            let (from, to) = ("sh".to_owned(), "bj".to_owned());
            ShareView { shard, from, to, state: state.into(), epoch }
        };
        OpView {
            id,
            what,
            by: "ana@host".into(),
            why: "a test".into(),
            forced: vec!["zone bj's log is not heard".into()],
            state: state.into(),
            says: says.into(),
            begun_ms: 1_700_000_000_000,
            ended_ms: (state != "running").then_some(1_700_000_000_052),
            limit_ms: 5000,
            shards: vec![way(341, "given", 7), way(352, "on_its_way", 6)],
        }
    }

    #[test]
    fn an_operation_is_a_sentence() {
        let check = |op: OpView, expected: &str| assert_eq!(sentence(&op), expected);
        let shards: Vec<u16> = (1..=8).collect();
        let moved = What::Move { shards, to: "bj".into() };
        check(
            op(7, moved, "running", "router r waits\u{1b}[2J\nwell"),
            "operation 7: move 1,2,3,4,5,6 and 2 more to bj: running, 1/2 shards given: router r waits?[2J?well",
        );
        let taken = What::TakeOver { zone: "sh".into(), to: None };
        check(op(8, taken, "done", ""), "operation 8: take over sh: done after 52 ms, 1/2 shards given");
        let away = What::Evacuate { zone: "sh".into(), to: Some("bj".into()) };
        check(
            OpView { shards: vec![], ..op(9, away, "aborted", "aborted by ana") },
            "operation 9: evacuate sh to bj: aborted after 52 ms: aborted by ana",
        );
    }

    #[test]
    fn a_refusal_says_how_to_overrule_what_can_be_overruled() {
        let preflight = Fault { error: "not now".into(), reasons: vec!["sh lags".into(), "bj is silent".into()] };
        let text = refusal(409, &preflight);
        assert!(text.starts_with("not now\n  sh lags\n  bj is silent\nnothing was begun; --force"), "{text}");
        let plain = Fault { error: "zone bj owns shard 121 already".into(), reasons: vec![] };
        assert_eq!(refusal(409, &plain), "zone bj owns shard 121 already\n");
        assert!(refusal(401, &plain).contains("--token-file"));
        assert_eq!([400, 401, 403, 404, 409, 500, 503].map(code), [2, 2, 2, 2, 1, 1, 1]);
    }

    #[test]
    fn an_end_is_waited_for_longer_than_the_operation_may_take() {
        let check = |wait_s, limit_ms, s| {
            assert_eq!(patience(&Wait { no_wait: false, wait_s }, limit_ms), Duration::from_secs(s));
        };
        check(None, 5000, 600);
        check(None, 900_000, 960);
        check(None, u64::MAX, u64::MAX / 1000 + 60);
        check(Some(3), 900_000, 3);
    }

    #[test]
    fn a_table_has_columns() {
        let text = table(&["a", "long head"], &[vec!["wider".into(), "x".into()], vec!["y\n".into(), String::new()]]);
        assert_eq!(text, "a      long head\nwider  x\ny?\n");
        assert_eq!(clock(1_700_000_000_999), "2023-11-14T22:13:20Z");
    }
}
