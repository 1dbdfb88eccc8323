//! `ezctl conflicts`: what was written on the wrong side of a change of owner, as a running log lists it, and a word on it.

use crate::admin;
use crate::map::Fault;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Subcommand)]
pub enum Command {
    /// List what is open: exit 0 if there is nothing, 1 if there is
    #[command(after_help = "\
Every zone lists the same. An entry stays until somebody resolves it.

Example: ezctl conflicts list --admin 127.0.0.1:8083")]
    List(List),
    /// Show one entry: both images, both versions, and why it is listed
    #[command(after_help = "Example: ezctl conflicts show --admin 127.0.0.1:8083 0/sh/1234")]
    Show(Show),
    /// Say what is right: the row as it is, or what was listed, which is then written again
    #[command(after_help = "\
To be said at the log of the zone that owns the shard; it travels to the others as any write does.

Example: ezctl conflicts resolve --admin 127.0.0.1:8083 0/sh/1234 --keep listed --by ana --note \"asked the shop\"")]
    Resolve(Resolve),
}

#[derive(Args)]
pub struct At {
    /// The admin address of a log
    #[arg(long, value_name = "ADDRESS")]
    admin: SocketAddr,
    /// One JSON object to a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    at: At,
    /// Resolved ones too
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    at: At,
    /// STREAM/ZONE/SEQ, as `list` prints it
    id: String,
}

#[derive(Args)]
pub struct Resolve {
    #[command(flatten)]
    at: At,
    /// STREAM/ZONE/SEQ, as `list` prints it
    id: String,
    /// What is right
    #[arg(long)]
    keep: Keep,
    /// Who says so
    #[arg(long)]
    by: String,
    /// Why
    #[arg(long, default_value = "")]
    note: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Keep {
    /// The row as it is
    Current,
    /// What was listed
    Listed,
}

pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::List(list) => self::list(&list),
        Command::Show(show) => one(&show.at, &show.id),
        Command::Resolve(resolve) => self::resolve(&resolve),
    };
    done.unwrap_or_else(Fault::tell)
}

fn list(list: &List) -> Result<ExitCode, Fault> {
    let mut shown = Shown { json: list.at.json, count: 0 };
    each(list.at.admin, if list.all { "all" } else { "open" }, |entry| shown.show(entry))?;
    if !list.at.json {
        let (count, what) = (shown.count, if list.all { "listed" } else { "open" });
        let hint = if count == 0 { "" } else { "; `ezctl conflicts show` has both images of each" };
        writeln!(io::stdout(), "{count} {what}{hint}")?;
    }
    Ok(ExitCode::from(u8::from(shown.count > 0)))
}

/// Every entry of a log's ledger that is `state`: open or all.
pub fn each(at: SocketAddr, state: &str, mut does: impl FnMut(&Value) -> Result<(), Fault>) -> Result<(), Fault> {
    let mut after = String::new();
    loop {
        let page = admin::of_log(at, None, &format!("/conflicts?limit=1000&state={state}{after}"))?;
        page["conflicts"].as_array().into_iter().flatten().try_for_each(&mut does)?;
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", escaped(next)),
            None => return Ok(()),
        }
    }
}

/// Entries as lines, or as JSON.
pub struct Shown {
    pub json: bool,
    pub count: u64,
}

impl Shown {
    pub fn show(&mut self, entry: &Value) -> Result<(), Fault> {
        let mut out = io::stdout().lock();
        if self.count == 0 && !self.json {
            writeln!(out, "{:<20} {:>5}  {:<32} {:<10}  written", "entry", "shard", "row", "is")?;
        }
        self.count += 1;
        match self.json {
            true => writeln!(out, "{entry}")?,
            false => writeln!(out, "{}", line(entry))?,
        }
        Ok(())
    }
}

fn line(entry: &Value) -> String {
    let row = format!("{}/{}", text(&entry["table"]), text(&entry["key"]));
    let is = if entry["resolved"].is_null() { text(&entry["state"]) } else { "resolved".into() };
    let (id, shard) = (text(&entry["id"]), entry["shard"].as_u64().unwrap_or(0));
    format!("{id:<20} {shard:>5}  {row:<32} {is:<10}  {}", when(&entry["listed"]["written_ms"]))
}

fn one(at: &At, id: &str) -> Result<ExitCode, Fault> {
    let entry = admin::of_log(at.admin, None, &format!("/conflicts?id={}", escaped(id)))?;
    tell(at, &entry)
}

fn resolve(r: &Resolve) -> Result<ExitCode, Fault> {
    let keep = match r.keep {
        Keep::Current => "current",
        Keep::Listed => "listed",
    };
    let body = json!({ "id": r.id, "keep": keep, "by": r.by, "note": r.note }).to_string();
    let entry = admin::of_log(r.at.admin, Some(&body), "/conflicts/resolve")?;
    tell(&r.at, &entry)
}

fn tell(at: &At, entry: &Value) -> Result<ExitCode, Fault> {
    let mut out = io::stdout().lock();
    if at.json {
        writeln!(out, "{entry}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "entry     {} of shard {}", text(&entry["id"]), entry["shard"])?;
    writeln!(
        out,
        "row       {}/{}: what was listed is {}",
        text(&entry["table"]),
        text(&entry["key"]),
        text(&entry["state"])
    )?;
    writeln!(out, "why       {}", text(&entry["reason"]))?;
    image(&mut out, "listed ", &entry["listed"])?;
    match entry["current"].is_null() {
        true => writeln!(out, "current   there is no such row")?,
        false => image(&mut out, "current", &entry["current"])?,
    }
    match &entry["resolved"] {
        Value::Null => writeln!(out, "resolved  no"),
        by => writeln!(
            out,
            "resolved  {} kept the {} row, {} {}",
            text(&by["by"]),
            text(&by["keep"]),
            when(&by["at_ms"]),
            text(&by["note"])
        ),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn image(out: &mut impl Write, name: &str, image: &Value) -> io::Result<()> {
    let value = match (image["deleted"].as_bool(), image["value"].as_str(), image["value_hex"].as_str()) {
        (Some(true), ..) => "deleted".into(),
        (_, Some(text), _) => text.to_owned(),
        (_, None, Some(hex)) => format!("0x{hex}"),
        (_, None, None) => "unknown".into(),
    };
    let (zone, seq, epoch) = (text(&image["zone"]), &image["seq"], &image["owner_epoch"]);
    writeln!(out, "{name}   {} by zone {zone}, seq {seq}, ownership {epoch}: {value}", when(&image["written_ms"]))
}

/// A text without what would garble a terminal.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").chars().map(|c| if c.is_control() { '.' } else { c }).collect()
}

fn when(ms: &Value) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms.as_u64().unwrap_or(0)) * 1_000_000);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "?".into())
}

fn escaped(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.');
    id.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
