//! Awareness for services in two real zones: a shard moves, each zone's stream says so, and each job is told the changes of its own zone.

mod pair_kit;
mod process_kit;

use pair_kit::gzs::Gzs;
use process_kit::{Dir, PATIENCE, Running, addresses, http, read_head, within_or};
use serde_json::{Value, json};
use shardmap::{Shard, Zone};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

const NAMES: [&str; 2] = ["bj", "sh"];
const BJ: usize = 0;
const SH: usize = 1;
/// The shard that moves, of bj at first, and one of each zone that stays.
const MOVED: (Shard, &str) = (Shard(121), "loc=116.40,39.90");
const STAY: [&str; 2] = ["loc=117.20,39.13", "loc=121.47,31.23"];

/// Both zones, each a router and a log.
struct Zones {
    logs: [Option<Running>; 2],
    _routers: Vec<Running>,
    routers: [SocketAddr; 2],
    router_admins: [SocketAddr; 2],
    log_admins: [SocketAddr; 2],
    gzs: Gzs,
    dir: Dir,
}

impl Zones {
    fn start(name: &str) -> Zones {
        let (gzs, dir, at): (_, _, [_; 10]) = (Gzs::start(), Dir::new(name), addresses());
        let pair = |i: usize| [at[i], at[5 + i]];
        let (routers, router_admins, log_admins) = (pair(0), pair(2), pair(4));
        let mut zones = Zones { logs: [None, None], _routers: vec![], routers, router_admins, log_admins, gzs, dir };
        for (i, zone) in NAMES.into_iter().enumerate() {
            let (other, own, far) = (NAMES[1 - i], &at[i * 5..], &at[(1 - i) * 5..]);
            let text = format!(
                "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n[map]\ngzs = \"http://{}\"\n\
                 [router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\ncores = [0]\n\
                 [log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 1\nsegment_mib = 1\n\
                 [zones.{other}]\nrouter = \"{}\"\nlink = \"{}\"\n",
                zones.gzs.at, own[0], own[1], own[2], own[3], own[4], far[1], far[3],
            );
            fs::write(zones.dir.join(format!("{zone}.toml")), text).unwrap();
            zones.start_log(i);
            let router = zones.run("router", i);
            zones._routers.push(router);
        }
        zones
    }

    fn run(&self, program: &str, at: usize) -> Running {
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args([program, "--config"]).arg(self.dir.join(format!("{}.toml", NAMES[at]))).stdin(Stdio::null());
        Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
    }

    fn start_log(&mut self, at: usize) {
        self.logs[at] = Some(self.run("log", at));
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    /// An answer of this status, sooner or later.
    fn ask(&self, at: SocketAddr, method: &str, path: &str, tag: &str, body: &str, status: u16) -> String {
        let (tag, len) = (if tag.is_empty() { String::new() } else { format!("x-shard: {tag}\r\n") }, body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{tag}content-length: {len}\r\n\r\n");
        self.within(path, || http(at, &(head.clone() + body)).ok().filter(|(s, _)| *s == status)).1
    }

    fn put(&self, at: usize, place: &str, key: &str) {
        self.ask(self.routers[at], "PUT", &format!("/records/orders/{key}"), place, "x", 200);
    }

    fn ownership(&self, at: usize, query: &str) -> Value {
        serde_json::from_str(&self.ask(self.routers[at], "GET", &format!("/ownership{query}"), "", "", 200)).unwrap()
    }

    fn reader(&self, at: usize, path: &str) -> Reader {
        self.within(path, || {
            let mut stream = TcpStream::connect(self.routers[at]).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").ok()?;
            let head = read_head(&mut stream)?;
            head.starts_with("HTTP/1.1 200 ").then(|| Reader(BufReader::new(stream)))
        })
    }

    /// Moves the shard to a zone, as the GZS does it.
    fn move_to(&self, to: usize) -> u64 {
        let zone = self.gzs.newest().zone_named(NAMES[to]).unwrap();
        let moving = self.gzs.next(&[MOVED.0], |_, h, e| h.begin_move(zone, e));
        let ask = json!({ "map_epoch": moving.epoch().0, "shards": [MOVED.0.0], "take_over": false }).to_string();
        let report = self.within("the target has caught up", || {
            let text = self.ask(self.log_admins[to], "POST", "/report", "", &ask, 200);
            let report: Value = serde_json::from_str(&text).ok()?;
            (report["shards"][0]["ready"] == true).then_some(report)
        });
        let of = &report["shards"][0];
        let applied = of["applied"].as_object().unwrap().iter();
        let applied = applied.map(|(zone, seq)| (Zone(zone.parse().unwrap()), seq.as_u64().unwrap())).collect();
        let fence = of["fence_seq"].as_u64().unwrap();
        self.gzs.next(&[MOVED.0], |_, h, e| h.commit_move(fence, &applied, e)).epoch().0
    }

    fn metric(&self, at: SocketAddr, name: &str) -> u64 {
        let page = self.ask(at, "GET", "/metrics", "", "", 200);
        let of = |l: &str| l.starts_with(name).then(|| l.rsplit(' ').next()?.parse::<f64>().ok()).flatten();
        page.lines().find_map(of).unwrap_or_else(|| panic!("no {name}: {page}")) as u64
    }
}

/// Lines of an answer that comes in chunks of whole lines.
struct Reader(BufReader<TcpStream>);

impl Reader {
    fn line(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the answer ends");
            // Between them lie the lengths of chunks and empty lines.
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            }
        }
    }

    /// The events of the shard that moves, up to one of this name under the map of this epoch, each with its ownership.
    fn events(&mut self, last: &str, map_epoch: u64) -> Vec<(String, u64)> {
        let mut all = vec![];
        loop {
            let line = self.line();
            if line["shard"] == MOVED.0.0 {
                all.push((line["event"].as_str().unwrap().to_owned(), line["owner_epoch"].as_u64().unwrap()));
                assert!(line["map_epoch"].as_u64() <= Some(map_epoch), "{line}");
                if line["event"] == last && line["map_epoch"] == map_epoch {
                    return all;
                }
            }
        }
    }

    /// The keys of changes up to `last`, and the token behind it.
    fn keys(&mut self, last: &str) -> (Vec<String>, String) {
        let mut all: Vec<String> = vec![];
        loop {
            let line = self.line();
            match line["token"].as_str() {
                Some(token) if all.last().is_some_and(|k| k == last) => return (all, token.to_owned()),
                Some(_) => {}
                None => all.push(line["key"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()),
            }
        }
    }

    fn token(&mut self) -> String {
        self.line()["token"].as_str().unwrap().to_owned()
    }
}

fn keys(from: usize, to: usize, last: &str) -> Vec<String> {
    (from..to).map(|i| format!("k{i}")).chain([last.to_owned()]).collect()
}

#[test]
fn a_move_is_told_in_both_zones_and_each_change_is_told_by_one_zones_job() {
    let mut zones = Zones::start("move");
    for at in [BJ, SH] {
        zones.put(at, STAY[at], "first");
    }
    let own = |zones: &Zones, at: usize| {
        let state = zones.ownership(at, "?shards=own");
        assert_eq!(state["zone"], NAMES[at]);
        let shards = state["shards"].as_array().unwrap().clone();
        assert!(shards.iter().all(|s| s["owner"] == NAMES[at] && s["writes"] == true), "{shards:?}");
        shards.iter().any(|s| s["shard"] == MOVED.0.0)
    };
    zones.within("both write what they own", || {
        let writes = |at: usize| zones.ownership(at, "?shards=own")["shards"][0]["writes"] == true;
        (writes(BJ) && writes(SH)).then_some(())
    });
    assert_eq!([BJ, SH].map(|at| own(&zones, at)), [true, false]);
    let mut streams = [BJ, SH].map(|at| zones.reader(at, "/ownership/stream"));
    let first = streams.each_mut().map(|s| s.line());
    for (at, state) in first.iter().enumerate() {
        let moved = state["shards"].as_array().unwrap().iter().find(|s| s["shard"] == MOVED.0.0).unwrap();
        assert_eq!((&state["event"], &moved["owner"]), (&json!("state"), &json!("bj")), "{at}");
        assert_eq!(moved["writes"], at == BJ);
        assert_eq!(zones.metric(zones.router_admins[at], "ezone_ownership_streams"), 1);
    }
    let job = |at: usize, from: &str| zones.reader(at, &format!("/changes?table=orders&zone=own{from}"));
    let mut begun = [BJ, SH].map(|at| job(at, "").token());
    // bj's job ends in the middle of its shard's changes.
    (0..5).for_each(|i| zones.put(BJ, MOVED.1, &format!("k{i}")));
    let (told, token) = job(BJ, &format!("&from={}", begun[BJ])).keys("k4");
    assert_eq!(told, keys(0, 4, "k4"));
    begun[BJ] = token;
    (5..10).for_each(|i| zones.put(SH, MOVED.1, &format!("k{i}")));
    let moved = zones.move_to(SH);
    (10..20).for_each(|i| zones.put(BJ, MOVED.1, &format!("k{i}")));
    let event = |name: &str, epoch: u64| (name.to_owned(), epoch);
    assert_eq!(streams[BJ].events("lose", moved), [event("block", 1), event("lose", 1)]);
    assert_eq!(streams[SH].events("gain", moved), [event("gain", moved)]);
    assert_eq!([BJ, SH].map(|at| own(&zones, at)), [false, true]);
    let back = zones.move_to(BJ);
    (20..25).for_each(|i| zones.put(BJ, MOVED.1, &format!("k{i}")));
    assert_eq!(streams[SH].events("lose", back), [event("block", moved), event("lose", moved)]);
    assert_eq!(streams[BJ].events("gain", back), [event("gain", back)]);
    // Each zone's job goes on from its own token: every change is told once, in one zone.
    for at in [BJ, SH] {
        zones.put(at, STAY[at], "last");
    }
    let [at_bj, at_sh] = [BJ, SH].map(|at| job(at, &format!("&from={}", begun[at])).keys("last").0);
    assert_eq!(at_bj, [&keys(5, 10, "k20")[..], &keys(21, 25, "last")[..]].concat());
    assert_eq!(at_sh, keys(10, 20, "last"));
    let refused = zones.ask(zones.routers[BJ], "GET", "/changes?zone=gz", "", "", 400);
    assert!(refused.contains("unknown zone"), "{refused}");
    assert_eq!(zones.metric(zones.router_admins[BJ], "ezone_ownership_cut_total"), 0);
    zones.metric(zones.log_admins[SH], "ezone_ownership_untold_total"); // more than 0 on a busy machine
    // Without its log nobody is told anything; with it, the state comes first.
    zones.logs[BJ].take().unwrap().kill();
    let mut rest = String::new();
    streams[BJ].0.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("{\"error\":\"the zone's log cannot be reached\"}"), "{rest}");
    zones.start_log(BJ);
    let mut again = zones.reader(BJ, "/ownership/stream?shards=own");
    let state = again.line();
    let shards = state["shards"].as_array().unwrap();
    let shard = shards.iter().find(|s| s["shard"] == MOVED.0.0).unwrap_or_else(|| panic!("{state}"));
    if shard["writes"] == false {
        assert_eq!(again.events("gain", back), [event("gain", back)], "once it knows what it owns");
    }
}
