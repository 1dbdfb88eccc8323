//! `ezctl zone`: how each zone is, emptying and refilling one, taking over a lost one, and what it took with it. By the Global Zone Service.

use crate::conflicts;
use crate::service::{self, Asking, At, Limit, Not, json, say, shown, table};
use clap::{Args, Subcommand};
use gzs::api::{NodeState, State, What, ZoneState};
use serde_json::json;
use std::net::SocketAddr;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// Show the zones and their nodes: exit 0 if every one is up, 1 if one is not or the service is stopped
    #[command(after_help = "\
States: up; silent (its log was not heard for a while); unheard (never since the service began); lost (its shards were taken over, and
it has not got them back). `lacks`: records that are durable in another zone and not applied here. `map`: the one that a node goes by.

Example: ezctl zone status --gzs http://127.0.0.1:7300")]
    Status(Status),
    /// Move all shards of a zone to the others. Waits for the end
    #[command(
        after_help = "Exit 0: done. 1: it is not. 2: wrong input.\n\nExample: ezctl zone evacuate sh --why \"new disks\""
    )]
    Evacuate(Evacuate),
    /// Move back to a zone what an evacuation or a take-over took from it. Waits for the end
    #[command(after_help = "Exit 0: done. 1: it is not. 2: wrong input.\n\nExample: ezctl zone restore sh")]
    Restore(Restore),
    /// Give a lost zone's shards to survivors. Waits for the end
    #[command(after_help = "\
For a zone that does not answer: what it wrote and nobody else has is not there until it is back (`ezctl zone unknown`), and rows that
this may concern are locked. It does not give up by itself, and goes on until a survivor has the shards. To empty a zone that is alive,
evacuate it. Exit 0: done. 1: it is not. 2: wrong input.

Example: ezctl zone take-over sh --to bj")]
    TakeOver(TakeOver),
    /// Put a new zone on the map, and wait until its log has all that the others have
    #[command(after_help = "\
It owns nothing until shards are moved there. Once it is on the map: every other zone's nodes get [zones.NAME] in their configuration and are
started again, one zone after the other (links are made at the start only); then NAME's nodes are started, with all others in [zones].
What the others have let go of their logs comes by a snapshot: where the new log's /status names a gap, `POST /seed?zone=Z&stream=N` there.
The operation has no limit; `ezctl op show` says what it waits for. Exit 0: done. 1: it is not, or not yet. 2: wrong input.

Example: ezctl zone add gz --why \"the third region\"")]
    Add(Add),
    /// Take a zone off the map that owns nothing and is stopped for good. Needs the role admin
    #[command(after_help = "\
Its number and name stay its own: ids that it issued are found as before. Afterwards the other logs are started again without [zones.NAME].
Exit 0: done. 1: it is not. 2: wrong input.

Example: ezctl zone remove gz --why \"the lease has ended\"")]
    Remove(Add),
    /// What a lost zone had written and nobody else has: exit 0 if there is none known, 1 if there is, or if nobody can tell yet
    #[command(after_help = "\
While it is away, by range, as far as the zone told before it was lost: it may have written more. Once it is back, by name: every zone's log lists
the same, so any will do for --admin. With --json one object of the zone, then one of each record.

Example: ezctl zone unknown sh
         ezctl zone unknown sh --admin 127.0.0.1:8083")]
    Unknown(Unknown),
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    at: At,
    /// This one; default: all
    zone: Option<String>,
}

#[derive(Args)]
pub struct Which {
    #[command(flatten)]
    at: At,
    /// The zone's name
    zone: String,
}

#[derive(Args)]
pub struct Unknown {
    #[command(flatten)]
    which: Which,
    /// The admin address of a log, which names what is in doubt
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

#[derive(Args)]
pub struct Evacuate {
    #[command(flatten)]
    which: Which,
    /// All of them to this zone; default: spread over the others, the emptiest first
    #[arg(long, value_name = "ZONE")]
    to: Option<String>,
    #[command(flatten)]
    asking: Asking,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args)]
pub struct Restore {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    asking: Asking,
    #[command(flatten)]
    limit: Limit,
}

#[derive(Args)]
pub struct Add {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Args)]
pub struct TakeOver {
    #[command(flatten)]
    which: Which,
    /// All of them to this zone; default: spread over the survivors
    #[arg(long, value_name = "ZONE")]
    to: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(command: Command) -> ExitCode {
    match command {
        Command::Status(s) => service::with(&s.at, async |client| status(&client.state().await?, &s)),
        Command::Evacuate(e) => {
            let what = What::Evacuate { zone: e.which.zone, to: e.to };
            begin(&e.which.at, what, &e.asking, e.limit.limit_ms)
        }
        Command::Restore(r) => begin(&r.which.at, What::Restore { zone: r.which.zone }, &r.asking, r.limit.limit_ms),
        Command::TakeOver(t) => {
            let what = What::TakeOver { zone: t.which.zone, to: t.to };
            begin(&t.which.at, what, &t.asking, None)
        }
        Command::Add(a) => begin(&a.which.at, What::AddZone { zone: a.which.zone }, &a.asking, None),
        Command::Remove(r) => begin(&r.which.at, What::RemoveZone { zone: r.which.zone }, &r.asking, None),
        Command::Unknown(u) => service::with(&u.which.at, async |client| unknown(&client.state().await?, &u)),
    }
}

fn begin(at: &At, what: What, asking: &Asking, limit_ms: Option<u64>) -> ExitCode {
    service::with(at, async |client| service::begin(client, what, asking, limit_ms, at.json).await)
}

/// The zone of that name.
pub fn known<'a>(state: &'a State, name: &str) -> Result<&'a ZoneState, Not> {
    state.zones.iter().find(|z| z.name == name).ok_or_else(|| {
        let names: Vec<&str> = state.zones.iter().map(|z| z.name.as_str()).collect();
        Not::wrong(format!("zone \"{name}\" is not on the map, which has: {}", names.join(", ")))
    })
}

fn status(state: &State, s: &Status) -> Result<ExitCode, Not> {
    let zones = match &s.zone {
        None => state.zones.iter().collect(),
        Some(name) => vec![known(state, name)?],
    };
    if s.at.json {
        let (cluster, epoch, stopped) = (&state.cluster, state.epoch, &state.stopped);
        json(&json!({"cluster": cluster, "epoch": epoch, "stopped": stopped, "zones": zones}))?;
    } else {
        say(&page(state, &zones))?;
    }
    let fine = state.stopped.is_none() && zones.iter().all(|z| z.state == "up");
    Ok(ExitCode::from(u8::from(!fine)))
}

fn page(state: &State, zones: &[&ZoneState]) -> String {
    let mut text = format!("cluster {}, map {}\n", shown(&state.cluster), state.epoch);
    if let Some(why) = &state.stopped {
        text += &format!("STOPPED, no map is issued: {}\n", shown(why));
    }
    let head = ["zone", "state", "shards", "lacks", "ledger", "parked", "read-only", "nodes"];
    text += &(String::from("\n") + &table(&head, &zones.iter().map(|z| zone(z)).collect::<Vec<_>>()));
    let nodes = zones.iter().flat_map(|z| z.nodes.iter().map(|n| node(&z.name, n)));
    let nodes: Vec<_> = nodes.collect();
    if !nodes.is_empty() {
        text += "\n";
        text += &table(&["zone", "node", "kind", "map", "heard s ago", "holding"], &nodes);
    }
    text
}

fn zone(z: &ZoneState) -> Vec<String> {
    let lacks: Vec<_> = z.lacks.iter().map(|(other, n)| format!("{other} {n}")).collect();
    vec![
        z.name.clone(),
        z.state.clone(),
        z.owns.to_string(),
        if lacks.is_empty() { "-".into() } else { lacks.join(", ") },
        z.ledger.to_string(),
        z.parked.to_string(),
        if z.read_only { "yes" } else { "no" }.into(),
        z.nodes.len().to_string(),
    ]
}

fn node(zone: &str, n: &NodeState) -> Vec<String> {
    let heard = format!("{:.1}", n.heard_ms_ago as f64 / 1000.0);
    let holding = if n.kind == "router" { n.holding.to_string() } else { "-".into() };
    vec![zone.into(), n.name.clone(), n.kind.clone(), n.map_epoch.to_string(), heard, holding]
}

fn unknown(state: &State, u: &Unknown) -> Result<ExitCode, Not> {
    let w = &u.which;
    let zone = known(state, &w.zone)?;
    if w.at.json {
        json(&json!({"zone": zone.name, "state": zone.state, "unknown": zone.unknown}))?;
    } else {
        say(&ranges(state, zone))?;
    }
    let is_told = match zone.state.as_str() {
        "up" => true,
        "lost" => !is_taken(state, &zone.name),
        _ => false,
    };
    let listed = match u.admin {
        Some(admin) => by_name(admin, &zone.name, w.at.json)?,
        None => 0,
    };
    Ok(ExitCode::from(u8::from(!is_told || !zone.unknown.is_empty() || listed > 0)))
}

/// What a zone wrote that nobody knew when it was taken over, and nobody has resolved yet.
fn by_name(admin: SocketAddr, zone: &str, json: bool) -> Result<u64, Not> {
    let mut shown = conflicts::Shown { json, count: 0 };
    conflicts::each(admin, "open", |entry| {
        // STREAM/ZONE/SEQ: whose log it stands in.
        let of = entry["id"].as_str().and_then(|id| id.split('/').nth(1));
        if of == Some(zone) { shown.show(entry) } else { Ok(()) }
    })
    .map_err(Not::Wrong)?;
    if !json {
        say(&match shown.count {
            0 => format!("no record of {zone} is open at {admin}\n"),
            n => format!("{n} of {zone}; `ezctl conflicts show --admin {admin} ENTRY` has both images of each\n"),
        })?;
    }
    Ok(shown.count)
}

/// Is a take-over of this zone under way?
fn is_taken(state: &State, name: &str) -> bool {
    let takes = |what: &What| matches!(what, What::TakeOver { zone, .. } if zone == name);
    state.ops.iter().any(|op| op.state == "running" && takes(&op.what))
}

/// What a zone took with it, as far as anybody can tell.
fn ranges(state: &State, zone: &ZoneState) -> String {
    let name = &zone.name;
    let named =
        "`ezctl zone unknown NAME --admin LOG` names what it had written and nobody else had, at any zone's log";
    match zone.state.as_str() {
        "lost" => {}
        "up" => return format!("zone {name} is up: nothing of it is away. After a take-over {named}\n"),
        other => {
            return format!(
                "zone {name} is {other}, and its shards were not taken over: nobody has asked yet what is missing\n"
            );
        }
    }
    if is_taken(state, name) {
        return format!("zone {name} is being taken over: what is missing is known once that is done\n");
    }
    if zone.unknown.is_empty() {
        return format!(
            "zone {name} is lost; nothing is known to be missing: the others had all that it told of, or it told this service nothing. \
             Once it is back, {named}\n"
        );
    }
    let row = |r: &gzs::api::UnknownRange| {
        let records = r.last.saturating_sub(r.first).saturating_add(1);
        vec![r.stream.to_string(), r.first.to_string(), r.last.to_string(), records.to_string()]
    };
    let rows: Vec<_> = zone.unknown.iter().map(row).collect();
    let told = "at least these records, as far as it told, are nowhere else. Once it is back";
    format!("zone {name} is lost: {told}, {named}\n\n{}", table(&["stream", "first", "last", "records"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::op;
    use gzs::api::UnknownRange;

    fn named(name: &str, state: &str) -> ZoneState {
        ZoneState { name: name.into(), state: state.into(), owns: 15, ..ZoneState::default() }
    }

    #[test]
    fn the_zones_stand_with_what_they_lack_and_the_nodes_with_their_maps() {
        let router = NodeState { name: "a".into(), kind: "router".into(), heard_ms_ago: 140, map_epoch: 6, holding: 3 };
        let log = NodeState { kind: "log".into(), ..router.clone() };
        let bj = ZoneState {
            lacks: [("gz".to_owned(), 4), ("sh".to_owned(), 0)].into(),
            read_only: true,
            nodes: vec![router, log],
            ..named("bj", "up")
        };
        let sh = named("sh", "unheard");
        let state = State { cluster: "demo".into(), epoch: 7, stopped: Some("a newer map".into()), ..State::default() };
        let text = page(&state, &[&bj, &sh]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..3], ["cluster demo, map 7", "STOPPED, no map is issued: a newer map", ""]);
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cells(lines[4]), ["bj", "up", "15", "gz", "4,", "sh", "0", "0", "0", "yes", "2"]);
        assert_eq!(cells(lines[5]), ["sh", "unheard", "15", "-", "0", "0", "no", "0"]);
        assert_eq!(cells(lines[8]), ["bj", "a", "router", "6", "0.1", "3"]);
        assert_eq!(cells(lines[9]), ["bj", "a", "log", "6", "0.1", "-"]);
    }

    #[test]
    fn what_a_lost_zone_took_with_it_is_told_as_far_as_it_is_known() {
        let mut state = State::default();
        let check = |state: &State, zone: &ZoneState, expected: &str| {
            let text = ranges(state, zone);
            assert!(text.contains(expected), "{expected}: {text}");
        };
        check(&state, &named("sh", "up"), "zone unknown NAME --admin LOG");
        check(&state, &named("sh", "silent"), "were not taken over");
        check(&state, &named("sh", "lost"), "or it told this service nothing");
        let unknown = vec![UnknownRange { stream: 2, first: 11, last: 14 }];
        let lost = ZoneState { unknown, ..named("sh", "lost") };
        check(&state, &lost, "stream  first  last  records\n2       11     14    4\n");
        state.ops = vec![op(1, What::TakeOver { zone: "sh".into(), to: None }, "running", "")];
        check(&state, &lost, "is being taken over");
    }

    /// A log whose ledger has two entries of sh and one of bj, over two pages.
    #[test]
    fn a_zone_that_is_back_has_its_records_named() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let log = std::thread::spawn(move || {
            let entry = |id: &str| json!({"id": id, "shard": 341, "table": "orders", "key": "k", "state": "visible"});
            let first = json!({"conflicts": [entry("0/sh/7"), entry("1/bj/9")], "next": "1/bj/9"});
            for page in [first, json!({"conflicts": [entry("2/sh/3")], "next": null})] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 1024];
                let n = stream.read(&mut asked).unwrap();
                assert!(asked[..n].starts_with(b"GET /conflicts?limit=1000&state=open"));
                let body = page.to_string();
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        assert_eq!(by_name(at, "sh", true).ok(), Some(2));
        log.join().unwrap();
        assert!(by_name(at, "sh", true).is_err(), "nobody listens there any more");
    }

    #[test]
    fn a_zone_that_is_not_on_the_map_is_refused_with_those_that_are() {
        let state = State { zones: vec![named("bj", "up"), named("sh", "up")], ..State::default() };
        assert!(known(&state, "sh").is_ok());
        let Err(Not::Wrong(crate::map::Fault::Input(why))) = known(&state, "gz") else { panic!("it is not there") };
        assert_eq!(why, "zone \"gz\" is not on the map, which has: bj, sh");
    }
}
