//! `ezctl route`: where a request would go, and why, as a running router says it, or by a map alone.

use crate::admin;
use crate::map::{Fault, read_sound};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shardmap::explain::{by_name, explain};
use shardmap::ownership::Kind;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Subcommand)]
pub enum Command {
    /// Say where a request would go, and why: exit 0 if it would be routed, 1 if refused or held
    #[command(after_help = "\
Asks a running router, which answers out of the code that routes; or, with --map, a map alone: then only the tag, the shard
and its owner are explained.

Examples: ezctl route explain --admin 127.0.0.1:8082 --path /api/x --header \"x-shard: loc=121.52669,31.2302\"
          ezctl route explain --map shardmap/data/china.toml --header \"x-shard: shopid=156427001;loc=121.5,31.2\"")]
    Explain(Explain),
}

#[derive(Args)]
pub struct Explain {
    /// The admin address of a router
    #[arg(long, value_name = "ADDRESS", conflicts_with = "map", required_unless_present = "map")]
    admin: Option<SocketAddr>,
    /// A map file (TOML) or a binary map
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// The path that is asked for
    #[arg(long, default_value = "/")]
    path: String,
    /// The method
    #[arg(long, default_value = "GET")]
    method: String,
    /// A header: `name: value`; may be given several times
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// As if another zone's router had sent it: trusted
    #[arg(long)]
    peer: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> ExitCode {
    let Command::Explain(ask) = command;
    match explained(&ask).and_then(|answer| show(&answer, ask.json)) {
        Ok(code) => code,
        Err(fault) => fault.tell(),
    }
}

fn explained(ask: &Explain) -> Result<Value, Fault> {
    let mut headers = vec![];
    for header in &ask.headers {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| Fault::Input(format!("--header {header:?}: expected `name: value`")))?;
        headers.push((name.trim(), value.trim()));
    }
    match (&ask.admin, &ask.map) {
        (Some(admin), _) => {
            let body = json!({"method": ask.method, "path": ask.path, "headers": headers, "peer": ask.peer});
            of_router(*admin, &body.to_string())
        }
        (None, Some(map)) => of_map(map, &headers, ask),
        (None, None) => Err(Fault::Input("expected --admin or --map".into())),
    }
}

fn of_map(path: &Path, headers: &[(&str, &str)], ask: &Explain) -> Result<Value, Fault> {
    let map = read_sound(path)?;
    let header = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-shard")).map(|(_, v)| v.as_bytes());
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let tag = explain(&map, header, None, ask.peer, now_ms);
    let entry = tag.route.and_then(|r| map.view(r.shard));
    let (kind, settled) = match entry.map(|e| e.kind) {
        Some(Kind::Own) => (Some("own"), true),
        Some(Kind::Unlock) => (Some("unlock"), true),
        Some(Kind::Moving) => (Some("moving"), false),
        Some(Kind::Lost) => (Some("lost"), false),
        None => (None, false),
    };
    let decision = match (entry, settled) {
        (None, _) => "refuse",
        (Some(_), false) => "hold",
        (Some(_), true) => "route",
    };
    let part = |p: &shardmap::explain::Part| json!({"text": p.text, "shard": p.shard.map(|s| s.0), "verdict": p.verdict.name()});
    let name = |zone: Option<shardmap::Zone>| zone.map(|z| map.zone_name(z).to_string());
    Ok(json!({
        "map_epoch": map.epoch().0,
        "tag": {
            "decided_by": tag.route.map(|r| by_name(r.by)),
            "parts": tag.parts.iter().map(part).collect::<Vec<_>>(),
            "fence": tag.fence.as_ref().map(|(name, _)| name),
            "how": tag.fence.as_ref().map(|(_, how)| how.name()),
        },
        "shard": tag.route.map(|r| r.shard.0),
        "owner": entry.and_then(|e| name(e.owner)),
        "kind": kind,
        "moving_to": entry.and_then(|e| name(e.to)),
        "decision": decision,
        "why": "by the map alone; --admin asks a router also for service and endpoint",
    }))
}

/// Asks the router's admin page.
fn of_router(at: SocketAddr, body: &str) -> Result<Value, Fault> {
    let wrong = |what: String| Fault::Input(format!("the router at {at}: {what}"));
    let (status, answer) = admin::post(at, "/explain", body).map_err(|e| wrong(e.to_string()))?;
    let value: Value =
        serde_json::from_str(&answer).map_err(|_| wrong(format!("answered {status} and no JSON: {answer:?}")))?;
    match status {
        200 => Ok(value),
        _ => Err(wrong(format!("{status}: {}", value["error"].as_str().unwrap_or("no reason given")))),
    }
}

/// Prints the answer; 0: the request would be routed.
fn show(answer: &Value, json: bool) -> Result<ExitCode, Fault> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{answer}")?;
    } else {
        write!(out, "{}", in_words(answer))?;
    }
    let routed = matches!(answer["decision"].as_str(), Some("serve" | "records" | "forward" | "route"));
    Ok(ExitCode::from(u8::from(!routed)))
}

fn in_words(a: &Value) -> String {
    let text = |v: &Value| match v {
        Value::Null => "-".to_string(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let mut out = format!("decision  {}: {}\n", text(&a["decision"]), text(&a["why"]));
    let (tag, moving) = (&a["tag"], &a["moving_to"]);
    out += &format!("shard     {} by {}\n", text(&a["shard"]), text(&tag["decided_by"]));
    let to = if moving.is_null() { String::new() } else { format!(", moving to {}", text(moving)) };
    out +=
        &format!("owner     {} ({}{to}), map epoch {}\n", text(&a["owner"]), text(&a["kind"]), text(&a["map_epoch"]));
    for part in tag["parts"].as_array().into_iter().flatten() {
        let leads = if part["shard"].is_null() { String::new() } else { format!(", shard {}", part["shard"]) };
        out += &format!("tag       {}{leads}: {}\n", text(&part["text"]), text(&part["verdict"]));
    }
    if !tag["fence"].is_null() {
        out += &format!("fence     {} ({})\n", text(&tag["fence"]), text(&tag["how"]));
    }
    if !a["service"].is_null() {
        out += &format!("service   {}\n", text(&a["service"]));
    }
    for e in a["endpoints"].as_array().into_iter().flatten() {
        let mut states = vec![format!("weight {}", text(&e["weight"]))];
        let is = |key: &str| e[key] == true;
        states.push(if is("healthy") { "healthy" } else { "unhealthy" }.into());
        states.extend(["draining", "tls", "chosen"].iter().filter(|k| is(k)).map(|k| k.to_string()));
        out += &format!("endpoint  {} {}\n", text(&e["at"]), states.join(", "));
    }
    if !a["answer"].is_null() {
        out += &format!("answer    {} {}\n", text(&a["answer"]["status"]), a["answer"]["body"]);
    }
    out
}
