//! A global service in two real zones under a real Global Zone Service: who writes it when the service is gone, when the zone is, and over a
//! planned move.

mod process_kit;

use process_kit::{Dir, PATIENCE, Running, addresses, map, within_or};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

const NAMES: [&str; 2] = ["bj", "sh"];
const BJ: usize = 0;
const SH: usize = 1;
const USERS: u16 = 1024;
/// The tag of the global service, and those of a place of each zone.
const GLOBAL: &str = "global=users";
const PLACES: [&str; 2] = ["loc=116.40,39.90", "loc=121.47,31.23"];
/// Short enough to wait for its end ..
const LEASE_MS: u64 = 3000;
/// .. and so long that no loaded machine is too slow to renew it.
const LONG_LEASE_MS: u64 = 300_000;
/// One cluster at a time: two cores are all there are.
static ONE: Mutex<()> = Mutex::new(());

/// The service and both zones, each a router and a log. A field before `dir`: processes end before their directory goes.
struct Zones {
    gzs: Option<Running>,
    logs: [Option<Running>; 2],
    routers: [Option<Running>; 2],
    gzs_at: SocketAddr,
    at: [SocketAddr; 2],
    dir: Dir,
    _one: MutexGuard<'static, ()>,
}

/// What a router has answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// The zone that has answered.
    fn zone(&self) -> &str {
        self.head.lines().find_map(|l| l.strip_prefix("x-ezone: ")).unwrap_or_default()
    }
}

fn send(at: SocketAddr, line: &str, headers: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let none = || io::Error::other(format!("no HTTP: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(none)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(none)?;
    Ok(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

impl Zones {
    fn start(name: &str, lease_ms: u64) -> Zones {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        let (dir, at): (_, [_; 11]) = (Dir::new(name), addresses());
        fs::copy(map().with_file_name("china-provinces.geojson"), dir.join("china-provinces.geojson")).unwrap();
        let global = format!("[[global]]\nid = {USERS}\nname = \"users\"\nzone = \"bj\"\n");
        fs::write(dir.join("china.toml"), fs::read_to_string(map()).unwrap() + &global).unwrap();
        let text = format!(
            "[gzs]\ndata_dir = \"gzs\"\nlisten = \"{}\"\nmap = \"china.toml\"\ncool_down_s = 0\nmove_limit_ms = 3600000\n\
             lease_ms = {lease_ms}\n",
            at[10]
        );
        fs::write(dir.join("gzs.toml"), text).unwrap();
        for (i, zone) in NAMES.into_iter().enumerate() {
            let (other, own, far) = (NAMES[1 - i], &at[i * 5..], &at[(1 - i) * 5..]);
            let text = format!(
                "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n[map]\ngzs = \"http://{}\"\n\
                 [router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\ncores = [0]\n\
                 [log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 1\nsegment_mib = 1\n\
                 [zones.{other}]\nrouter = \"{}\"\nlink = \"{}\"\n",
                at[10], own[0], own[1], own[2], own[3], own[4], far[1], far[3],
            );
            fs::write(dir.join(format!("{zone}.toml")), text).unwrap();
        }
        let (logs, routers) = ([None, None], [None, None]);
        let mut zones = Zones { gzs: None, logs, routers, gzs_at: at[10], at: [at[0], at[5]], dir, _one: one };
        zones.start_gzs();
        for i in [BJ, SH] {
            zones.logs[i] = Some(zones.run("log", NAMES[i]));
            zones.routers[i] = Some(zones.run("router", NAMES[i]));
        }
        for i in [BJ, SH] {
            zones.accepted(i, GLOBAL, &format!("begins-{i}"));
            zones.accepted(i, PLACES[i], &format!("begins-{i}"));
        }
        zones
    }

    fn run(&self, program: &str, of: &str) -> Running {
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args([program, "--config"]).arg(self.dir.join(format!("{of}.toml"))).stdin(Stdio::null());
        Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
    }

    fn start_gzs(&mut self) {
        self.gzs = Some(self.run("gzs", "gzs"));
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    fn put(&self, at: usize, tag: &str, key: &str) -> Answer {
        let table = if tag == GLOBAL { "users" } else { "orders" };
        let line = format!("PUT /records/{table}/{key}");
        send(self.at[at], &line, &format!("x-shard: {tag}\r\n"), key).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Written, sooner or later.
    fn accepted(&self, at: usize, tag: &str, key: &str) -> Answer {
        self.within(&format!("{tag} {key} is written at {}", NAMES[at]), || {
            let line = format!("PUT /records/{}/{key}", if tag == GLOBAL { "users" } else { "orders" });
            send(self.at[at], &line, &format!("x-shard: {tag}\r\n"), key).ok().filter(|a| a.status == 200)
        })
    }

    fn get(&self, at: usize, key: &str, more: &str) -> Answer {
        let line = format!("GET /records/users/{key}");
        send(self.at[at], &line, &format!("x-shard: {GLOBAL}\r\n{more}"), "").unwrap()
    }

    /// How a zone stands to the global service.
    fn stands(&self, at: usize) -> Value {
        let answer = send(self.at[at], "GET /ownership", "", "").unwrap();
        let state: Value = serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        state["shards"].as_array().unwrap().iter().find(|s| s["shard"] == USERS).unwrap().clone()
    }

    fn gzs_json(&self, line: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = send(self.gzs_at, line, "content-type: application/json\r\n", &body).unwrap();
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    /// What the service says of the global service.
    fn shard(&self) -> (Value, u64) {
        let state = self.gzs_json("GET /v1/state", &Value::Null);
        let shard = state["shards"].as_array().unwrap().iter().find(|s| s["shard"] == USERS).unwrap().clone();
        (shard, state["now_ms"].as_u64().unwrap())
    }

    /// An operation, from its beginning to its end.
    fn done(&self, what: &Value) {
        let begun = self.gzs_json("POST /v1/ops", what);
        let id = begun["id"].as_u64().unwrap();
        self.within("the operation is done", || {
            let op = self.gzs_json(&format!("GET /v1/ops/{id}"), &Value::Null);
            assert!(op["state"] == "running" || op["state"] == "done", "{op}");
            (op["state"] == "done").then_some(())
        });
    }
}

#[test]
fn without_the_service_a_global_service_is_written_until_its_lease_ends_and_sharded_writes_go_on() {
    let mut zones = Zones::start("service-gone", LEASE_MS);
    // Written through either router, by the owner; read from each zone's own copy, unless the owner is asked for.
    let written = zones.accepted(SH, GLOBAL, "k1");
    assert_eq!(written.zone(), "bj", "{written:?}");
    let read = zones.within("k1 is in both zones", || Some(zones.get(SH, "k1", "")).filter(|a| a.status == 200));
    assert_eq!((read.zone(), read.body.as_str()), ("sh", "k1"));
    let primary = || Some(zones.get(SH, "k1", "x-ezone-read: primary\r\n")).filter(|a| a.status == 200);
    let read = zones.within("the owner is asked", primary);
    assert_eq!((read.status, read.zone(), read.body.as_str()), (200, "bj", "k1"));
    let unknown = send(zones.at[BJ], "PUT /records/users/k", "x-shard: global=nobody\r\n", "v").unwrap();
    assert_eq!(unknown.status, 400, "{unknown:?}");
    // Under a lease, which only the owner has.
    let bj = zones.within("bj has a lease", || Some(zones.stands(BJ)).filter(|bj| bj["writes"] == true));
    let sh = zones.stands(SH);
    assert_eq!((&bj["global"], &bj["owner"]), (&json!("users"), &json!("bj")), "{bj}");
    assert!(bj["lease_ms"].as_u64().is_some_and(|ms| (1..=LEASE_MS).contains(&ms)), "{bj}");
    assert_eq!((&sh["writes"], &sh["lease_ms"]), (&json!(false), &json!(0)), "{sh}");
    // Nobody renews it.
    zones.gzs.take().unwrap().kill();
    let (mut writes, mut sharded) = (0, 0);
    let refused = zones.within("the lease ends", || {
        for (at, place) in PLACES.into_iter().enumerate() {
            assert_eq!(zones.put(at, place, &format!("s{sharded}")).status, 200, "a sharded write needs no lease");
        }
        (writes, sharded) = (writes + 1, sharded + 1);
        let answer = zones.put(BJ, GLOBAL, &format!("w{writes}"));
        (answer.status != 200).then_some(answer)
    });
    // The one that the end met in the middle may say that it does not know; no other is written.
    let refused = if refused.status == 504 { zones.put(BJ, GLOBAL, "once-more") } else { refused };
    assert_eq!(refused.status, 503, "{refused:?}");
    for part in ["no lease of the global service", "\\\"users\\\" (shard 1024): the last one ended", "nothing was done"]
    {
        assert!(refused.body.contains(part), "{part}: {refused:?}");
    }
    assert_eq!(zones.put(SH, GLOBAL, "refused").status, 503, "through the other router");
    assert_eq!(zones.get(BJ, "k1", "x-ezone-read: primary\r\n").status, 503, "another zone may have written since");
    assert_eq!(zones.get(BJ, "k1", "").status, 200, "the zone's own copy");
    let bj = zones.stands(BJ);
    assert_eq!((&bj["owner"], &bj["writes"], &bj["lease_ms"]), (&json!("bj"), &json!(false), &json!(0)), "{bj}");
    for (at, place) in PLACES.into_iter().enumerate() {
        assert_eq!(zones.put(at, place, "last").status, 200);
    }
    zones.start_gzs();
    zones.accepted(SH, GLOBAL, "k2");
    assert_eq!(zones.get(BJ, "refused", "x-ezone-read: primary\r\n").status, 404, "what was refused was not done");
}

#[test]
fn a_global_service_that_is_added_to_a_map_in_use_is_written_and_read_in_every_zone() {
    let zones = Zones::start("added", LONG_LEASE_MS);
    let tag = "x-shard: global=coupons\r\n";
    let unknown = send(zones.at[BJ], "PUT /records/coupons/k", tag, "v").unwrap();
    assert_eq!(unknown.status, 400, "{unknown:?}");
    zones.done(&json!({ "kind": "add_global", "name": "coupons", "zone": "sh" }));
    let written = zones.within("it is written through the other zone's router", || {
        send(zones.at[BJ], "PUT /records/coupons/k", tag, "v").ok().filter(|a| a.status == 200)
    });
    assert_eq!(written.zone(), "sh", "{written:?}");
    for at in [BJ, SH] {
        let read = zones.within("it is in this zone's copy", || {
            send(zones.at[at], "GET /records/coupons/k", tag, "").ok().filter(|a| a.status == 200)
        });
        assert_eq!((read.zone(), read.body.as_str()), (NAMES[at], "v"), "{read:?}");
    }
    zones.accepted(BJ, GLOBAL, "as-before");
}

#[test]
fn a_planned_move_of_a_global_service_refuses_no_write() {
    let zones = Zones::start("moved", LONG_LEASE_MS);
    let stop = AtomicBool::new(false);
    let keys = std::thread::scope(|scope| {
        let writer = |at: usize| {
            let (zones, stop) = (&zones, &stop);
            scope.spawn(move || {
                let mut keys = vec![];
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("{}-{}", NAMES[at], keys.len());
                    let answer = zones.put(at, GLOBAL, &key);
                    assert_eq!(answer.status, 200, "{key}: {answer:?}\n{}", zones.dir.said());
                    keys.push((key, answer.zone().to_owned()));
                }
                keys
            })
        };
        let writers = [writer(BJ), writer(SH)];
        for to in [SH, BJ, SH] {
            zones.done(&json!({ "kind": "move", "shards": [USERS], "to": NAMES[to], "force": true }));
            // It is written there under a lease of its own.
            zones.within("the new owner writes", || (zones.stands(to)["writes"] == true).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
        writers.map(|w| w.join().unwrap())
    });
    for zone in NAMES {
        assert!(keys.iter().flatten().any(|(_, by)| by == zone), "{zone} has written nothing: the move met no writes");
    }
    for (key, _) in keys.iter().flatten() {
        let read = zones.get(SH, key, "x-ezone-read: primary\r\n");
        assert_eq!((read.status, &read.body), (200, key), "acknowledged, and not there");
    }
}

#[test]
fn a_lost_zones_global_service_is_taken_over_only_once_its_lease_has_ended() {
    let mut zones = Zones::start("lost", LEASE_MS);
    zones.accepted(SH, GLOBAL, "before");
    zones.within("sh has it", || (zones.get(SH, "before", "").status == 200).then_some(()));
    zones.logs[BJ].take().unwrap().kill();
    zones.routers[BJ].take().unwrap().kill();
    // Of what is granted now, nothing more is asked for: nobody is there who could.
    let (granted, killed_ms) = zones.shard();
    let ends_ms = killed_ms + granted["granted_ms"].as_u64().unwrap();
    let begun = zones.gzs_json("POST /v1/ops", &json!({ "kind": "take_over", "zone": "bj", "force": true }));
    assert_eq!(begun["state"], "running", "{begun}");
    let given = zones.within("sh owns it", || {
        let (shard, _) = zones.shard();
        (shard["owner"] == "sh").then_some(shard)
    });
    // Sharded data does not wait, and global data did.
    let audit = zones.gzs_json("GET /v1/audit", &Value::Null);
    let entry = |shard: u16| {
        let found = audit.as_array().unwrap().iter().find(|a| {
            let lines = a["changes"].as_array().unwrap();
            lines.iter().any(|l| l.as_str().unwrap().starts_with(&format!("shard {shard}: nobody")))
        });
        found.unwrap_or_else(|| panic!("shard {shard} was not given: {audit}"))
    };
    assert!(entry(USERS)["at_ms"].as_u64().unwrap() >= ends_ms, "before the lease had ended: {}", entry(USERS));
    assert!(entry(121)["epoch"].as_u64() <= entry(USERS)["epoch"].as_u64(), "{audit}");
    assert_eq!(entry(USERS)["epoch"], given["owner_epoch"]);
    let written = zones.accepted(SH, GLOBAL, "after");
    assert_eq!(written.zone(), "sh");
    assert_eq!(zones.put(SH, GLOBAL, "before").status, 423, "in doubt until bj is back");
}
