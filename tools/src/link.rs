//! `ezctl link`: the links of a log to the other zones: how they are, and an operator's word about them. By the log's admin address.

use crate::admin;
use crate::map::Fault;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// List the links: exit 0 if all are live, 1 if not
    #[command(after_help = "\
States: live; paused (by `pause`); connecting; stopped, with why and two numbers, until `clear` or what it says is done; or why it waits.
`lag`: records durable here and not there / not applied there. `ratio`: bytes of the log by bytes on the line.

Example: ezctl link ls --admin 127.0.0.1:8092")]
    Ls(Ls),
    /// Ship nothing more to a zone; maps and beats go on. Holds over restarts
    #[command(after_help = "Example: ezctl link pause --admin 127.0.0.1:8092 --zone sh --stream 2")]
    Pause(Which),
    /// Ship again what was paused
    #[command(after_help = "Example: ezctl link resume --admin 127.0.0.1:8092 --zone sh")]
    Resume(Which),
    /// Ship no faster than this to a zone, all streams together; `off` ends it. Holds over restarts; limits of the configuration hold as well
    #[command(after_help = "Example: ezctl link throttle --admin 127.0.0.1:8092 --zone sh 200mbit")]
    Throttle(Throttle),
    /// Ask a peer again whose link had stopped (diverged, gap, fenced, incarnation, foreign), once the reason is gone
    #[command(
        after_help = "It never skips anything: a link that finds the same again stops again.\n\nExample: ezctl link clear --admin 127.0.0.1:8092 --zone sh"
    )]
    Clear(Which),
}

#[derive(Args)]
pub struct Ls {
    /// The admin address of a log
    #[arg(long, value_name = "ADDRESS")]
    admin: SocketAddr,
    /// As the log says it: one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Which {
    /// The admin address of a log
    #[arg(long, value_name = "ADDRESS")]
    admin: SocketAddr,
    /// The zone at the other end
    #[arg(long)]
    zone: String,
    /// One stream; default: all
    #[arg(long)]
    stream: Option<u32>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Throttle {
    /// The admin address of a log
    #[arg(long, value_name = "ADDRESS")]
    admin: SocketAddr,
    /// The zone at the other end
    #[arg(long)]
    zone: String,
    /// Such as 200mbit, 500kbit, 1gbit, bytes a second such as 25000000, or off
    rate: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Ls(ls) => list(&ls),
        Command::Pause(w) => word(w.admin, "pause", &w.zone, w.stream, None, w.json),
        Command::Resume(w) => word(w.admin, "resume", &w.zone, w.stream, None, w.json),
        Command::Clear(w) => word(w.admin, "clear", &w.zone, w.stream, None, w.json),
        Command::Throttle(t) => word(t.admin, "throttle", &t.zone, None, Some(&t.rate), t.json),
    };
    done.unwrap_or_else(|fault| fault.tell())
}

fn word(
    at: SocketAddr,
    what: &str,
    zone: &str,
    stream: Option<u32>,
    rate: Option<&str>,
    as_json: bool,
) -> Result<ExitCode, Fault> {
    for part in [Some(zone), rate].into_iter().flatten() {
        // They stand in a URL as they are.
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return Err(Fault::Input(format!("\"{part}\": expected letters, digits, dots, dashes, underscores")));
        }
    }
    let mut path = format!("/links/{what}?zone={zone}");
    stream.into_iter().for_each(|s| path += &format!("&stream={s}"));
    rate.into_iter().for_each(|r| path += &format!("&rate={r}"));
    let answer = admin::of_log(at, Some(""), &path)?;
    let text = answer["state"].as_str().unwrap_or_default();
    say(&if as_json { format!("{answer}\n") } else { format!("{text}\n") })?;
    Ok(ExitCode::SUCCESS)
}

fn list(ls: &Ls) -> Result<ExitCode, Fault> {
    let answer = admin::of_log(ls.admin, None, "/links")?;
    let (text, all_live) = table(&answer);
    say(&if ls.json { format!("{answer}\n") } else { text })?;
    Ok(if all_live { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The links as a person reads them; are all of them live?
fn table(answer: &Value) -> (String, bool) {
    let head = [
        "zone",
        "stream",
        "state",
        "durable",
        "lag",
        "rtt ms",
        "shipped MB",
        "ratio",
        "in flight KB",
        "limit MB/s",
        "by",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let (mut notes, mut all_live) = (String::new(), true);
    let number = |v: &Value| v.as_u64().unwrap_or(0);
    for stream in answer["streams"].as_array().into_iter().flatten() {
        for (zone, l) in stream["links"].as_object().into_iter().flatten() {
            let state = l["state"].as_str().unwrap_or_default();
            all_live &= state == "live";
            let stop = &l["stopped"];
            let word = match stop["why"].as_str() {
                Some(why) => {
                    format!("stopped: {why} ({}, expected {})", number(&stop["seen"]), number(&stop["expected"]))
                }
                None if ["live", "paused", "connecting"].contains(&state) => state.to_owned(),
                None => "waits".into(),
            };
            if !["live", "paused", "connecting"].contains(&state) {
                notes += &format!("zone {zone}, stream {}: {state}\n", stream["stream"]);
            }
            let (log, line) = (number(&l["log_bytes"]), number(&l["line_bytes"]));
            let lag = format!("{}/{}", number(&l["durable_lag"]), number(&l["applied_lag"]));
            let trip = l["round_trip_us"].as_u64().map_or("-".into(), |us| format!("{:.1}", us as f64 / 1000.0));
            let limit = l["rate_max"].as_u64().map_or("-".into(), |r| format!("{:.3}", r as f64 / 1e6));
            rows.push(vec![
                zone.clone(),
                stream["stream"].to_string(),
                word,
                number(&l["durable_seq"]).to_string(),
                lag,
                trip,
                format!("{:.1}", log as f64 / 1e6),
                if line == 0 { "-".into() } else { format!("{:.2}", log as f64 / line as f64) },
                (number(&l["flight_bytes"]) / 1000).to_string(),
                limit,
                l["congestion"].as_str().unwrap_or_default().to_owned(),
            ]);
        }
        for (zone, why) in stream["incoming"].as_object().into_iter().flatten() {
            all_live = false;
            notes += &format!("from zone {zone}, stream {}: {}\n", stream["stream"], why.as_str().unwrap_or_default());
        }
    }
    let widths: Vec<usize> =
        (0..head.len()).map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    let line = |r: &Vec<String>| {
        let cells: Vec<_> = r.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    (rows.iter().map(line).collect::<String>() + &notes, all_live)
}

fn say(text: &str) -> Result<(), Fault> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Fault::Input(e.to_string())),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_says_what_stands_still_and_why() {
        let link = |state: &str, stopped: Value| {
            json!({"state": state, "durable_seq": 7, "durable_lag": 2, "applied_lag": 3, "round_trip_us": 30_400, "log_bytes": 9_000_000,
                "line_bytes": 3_000_000, "flight_bytes": 5000, "rate_max": 25_000_000, "congestion": "bbr", "stopped": stopped})
        };
        let live = json!({"zone": "bj", "streams": [{"stream": 0, "links": {"sh": link("live", Value::Null)}, "incoming": {}}]});
        let (text, all_live) = table(&live);
        assert!(all_live && text.lines().count() == 2, "{text}");
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["sh", "0", "live", "7", "2/3", "30.4", "9.0", "3.00", "5", "25.000", "bbr"]);
        let stop = json!({"why": "gap", "seen": 4, "expected": 9});
        let stopped = json!({"streams": [{"stream": 1, "links": {"sh": link("gap: seq 4 is wanted", stop)}, "incoming": {"gz": "diverged"}}]});
        let (text, all_live) = table(&stopped);
        assert!(!all_live && text.contains("stopped: gap (4, expected 9)"), "{text}");
        assert!(text.contains("zone sh, stream 1: gap: seq 4 is wanted\nfrom zone gz, stream 1: diverged\n"), "{text}");
    }
}
