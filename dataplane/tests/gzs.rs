//! The real Global Zone Service as a process: its pages over HTTP, its tokens, its store over kills, and what it does with maps it did not make.

mod process_kit;

use process_kit::{Dir, PATIENCE, Running, addresses, map, within_or};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use shardmap::map::Map;
use shardmap::{Shard, Zone};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Callers and their roles; the token of each is made of its name.
const CALLERS: [(&str, &str); 4] = [("nodes", "node"), ("eyes", "read"), ("alice", "operate"), ("root", "admin")];
/// What the demo's map gives to zone sh.
const SHANGHAI: u16 = 341;
/// As in the service.
const BODY_BYTES_MAX: usize = 4 << 20;

fn token(name: &str) -> String {
    format!("the-token-of-{name}")
}

/// An answer, with its body as bytes.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}: {text}", self.status))
    }

    /// The error of a Fault: every answer that is no good has one.
    fn error(&self) -> String {
        assert!(self.head.contains("content-type: application/json"), "{} {:?}", self.head, self.body);
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no Fault: {}", self.json())).to_owned()
    }
}

/// One request on a connection of its own.
fn send(at: SocketAddr, line: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head =
        format!("{line} HTTP/1.1\r\nhost: gzs\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| io::Error::other("no whole head"))?;
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no HTTP: {head}")))?;
    Ok(Answer { status, head, body: answer.split_off(end + 4) })
}

/// A service, its store and its configuration.
struct Gzs {
    running: Option<Running>,
    at: SocketAddr,
    dir: Dir,
}

impl Gzs {
    /// Begun and heard.
    fn start(name: &str) -> Gzs {
        let mut gzs = Gzs::configured(name);
        gzs.again(&[]);
        gzs
    }

    /// Not begun yet.
    fn configured(name: &str) -> Gzs {
        let dir = Dir::new(name);
        let [at] = addresses();
        for file in ["china.toml", "china-provinces.geojson"] {
            fs::copy(map().with_file_name(file), dir.join(file)).unwrap();
        }
        let mut text = format!(
            "[gzs]\ndata_dir = \"data\"\nlisten = \"{at}\"\nmap = \"china.toml\"\ncool_down_s = 0\nmove_limit_ms = 3600000\n"
        );
        for (name, role) in CALLERS {
            fs::write(dir.join(name), token(name) + "\n").unwrap();
            text += &format!("[[token]]\nname = \"{name}\"\nrole = \"{role}\"\nfile = \"{name}\"\n");
        }
        fs::write(dir.join("gzs.toml"), text).unwrap();
        Gzs { running: None, at, dir }
    }

    /// The program, which says what it says to the file `said`.
    fn begin(&self, more: &[&str]) -> Running {
        let said = File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_ezone"));
        program.args(["gzs", "--config"]).arg(self.dir.join("gzs.toml")).args(more);
        Running(program.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
    }

    /// Begins it, again perhaps, and waits until it is heard.
    fn again(&mut self, more: &[&str]) {
        let mut running = self.begin(more);
        self.within("the service is heard", || {
            if let Some(end) = running.0.try_wait().unwrap() {
                panic!("it ended with {end}: {}", self.dir.said());
            }
            send(self.at, "GET /healthz", "", b"").ok().filter(|a| a.status == 200)
        });
        self.running = Some(running);
    }

    /// Killed in the middle of whatever it does, and begun again with the same store.
    fn kill(&mut self) {
        self.running.take().unwrap().kill();
        self.again(&[]);
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    /// `who`: a caller's name; empty: nobody.
    fn ask(&self, who: &str, line: &str, body: &[u8]) -> Answer {
        let shown = if who.is_empty() { String::new() } else { format!("authorization: Bearer {}\r\n", token(who)) };
        send(self.at, line, &shown, body).unwrap_or_else(|e| panic!("{line}: {e}\n{}", self.dir.said()))
    }

    fn post(&self, who: &str, path: &str, body: &Value) -> Answer {
        self.ask(who, &format!("POST {path}"), body.to_string().as_bytes())
    }

    fn map(&self, query: &str) -> Answer {
        self.ask("nodes", &format!("GET /v1/map{query}"), b"")
    }

    /// The newest map, whole.
    fn newest(&self) -> Map {
        let answer = self.map("");
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        Map::decode(&answer.body).unwrap()
    }

    fn state(&self) -> Value {
        self.ask("eyes", "GET /v1/state", b"").json()
    }

    /// A new map.
    fn unlock(&self) -> Answer {
        self.post("root", "/v1/ops", &json!({"kind": "unlock", "shards": [SHANGHAI], "by": "li", "why": "a test"}))
    }

    /// A node tells how it is: what it is asked then.
    fn tell(&self, zone: &str, epoch: u64, part: Value) -> Value {
        let mut told = json!({"name": "host", "zone": zone, "begun_ms": 1, "map_epoch": epoch});
        told.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        let answer = self.post("nodes", "/v1/nodes", &told);
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// All four nodes of two zones tell: what the log of zone bj is asked.
    fn all_tell(&self, epoch: u64, reports: &Value) -> Value {
        for zone in ["bj", "sh"] {
            self.tell(zone, epoch, router());
        }
        self.tell("sh", epoch, log(&json!([])));
        self.tell("bj", epoch, log(reports))
    }

    fn signal(&self, signal: Signal) {
        let id = self.running.as_ref().unwrap().id();
        kill_process(Pid::from_raw(id as i32).unwrap(), signal).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn router() -> Value {
    json!({"router": {"in_flight_unsettled": 0, "holding": 0, "held_ms_max": 0, "requests": 0}})
}

fn log(reports: &Value) -> Value {
    let streams = json!([{"durable": 10, "applied": {"bj": 10, "sh": 10}}]);
    let quiet = json!({"read_only": false, "ledger": 0, "parked": 0, "store_full": false});
    let mut log = quiet.as_object().unwrap().clone();
    log.extend([("streams".to_owned(), streams), ("reports".to_owned(), reports.clone())]);
    json!({"log": log})
}

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// The successor in which nothing has changed but its number.
fn next(map: &Map) -> Map {
    let entry = map.history(Shard(SHANGHAI)).unwrap().unlock(map.epoch().next()).unwrap();
    map.with_entries(vec![(Shard(SHANGHAI), entry)]).unwrap()
}

// ---- what must hold ------------------------------------------------------------------------------------------------------

#[test]
fn the_first_map_is_the_files_and_from_then_on_it_is_the_stores() {
    let mut gzs = Gzs::start("first");
    let first = gzs.newest();
    assert_eq!((first.epoch().0, first.shards().count()), (1, 34));
    let file = gzs.file("china.toml");
    let text = fs::read_to_string(&file).unwrap();
    let other = text.replace("default_shard = 121", "default_shard = 132");
    assert_ne!(text, other);
    fs::write(&file, other).unwrap();
    gzs.kill();
    assert_eq!(gzs.newest().digest(), first.digest());
    fs::write(&file, "no map at all").unwrap();
    gzs.kill();
    assert_eq!(gzs.newest().digest(), first.digest());
    assert_eq!(gzs.running.take().unwrap().term(), 0, "{}", gzs.dir.said());
}

#[test]
fn a_second_service_with_the_same_store_ends_and_says_why() {
    let gzs = Gzs::start("second");
    let mut second = gzs.begin(&[]);
    assert_eq!(second.ended().code(), Some(1), "{}", gzs.dir.said());
    assert!(gzs.dir.said().contains("gzs.db: another Global Zone Service has it open"), "{}", gzs.dir.said());
    assert_eq!(gzs.unlock().status, 200, "the first goes on");
}

#[test]
fn who_may_do_what_is_told_by_tokens_and_the_audit_names_their_owners() {
    let gzs = Gzs::start("tokens");
    let (moved, unlock) =
        (json!({"kind": "move", "shards": [SHANGHAI], "to": "bj"}), json!({"kind": "unlock", "shards": [SHANGHAI]}));
    let forced = json!({"kind": "move", "shards": [SHANGHAI], "to": "bj", "force": true});
    let told = json!({"name": "host", "zone": "bj", "begun_ms": 1, "map_epoch": 1, "router": router()["router"]});
    let tried = |who: &str, line: &str, body: &Value, expected: u16| {
        let answer = gzs.ask(who, line, body.to_string().as_bytes());
        assert_eq!(answer.status, expected, "{who}: {line} {body}: {}", String::from_utf8_lossy(&answer.body));
        if expected == 401 {
            assert!(answer.head.contains("www-authenticate: bearer") && answer.error().contains("no token"));
        }
        if expected == 403 {
            assert!(answer.error().contains("role"), "{}", answer.error());
        }
    };
    let pages = ["/v1/map", "/v1/state", "/v1/fences", "/v1/ops", "/v1/ops/1", "/v1/audit", "/metrics"];
    for line in pages.map(|p| format!("GET {p}")).iter().chain(&["POST /v1/ops/1/abort".into()]) {
        tried("", line, &json!(""), 401);
        tried("a stranger", line, &json!(""), 401);
    }
    // Before he has sent it.
    let mut stranger = TcpStream::connect(gzs.at).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    stranger.write_all(b"POST /v1/ops HTTP/1.1\r\nhost: gzs\r\ncontent-length: 16000000\r\n\r\n").unwrap();
    let mut head = [0; 12];
    stranger.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 401");
    for (line, body) in [("POST /v1/ops", &moved), ("POST /v1/nodes", &told)] {
        tried("", line, body, 401);
        tried("eyes", line, body, 403);
    }
    for line in ["GET /v1/state", "GET /v1/fences", "GET /v1/ops", "GET /v1/audit"] {
        tried("nodes", line, &json!(""), 403);
        tried("eyes", line, &json!(""), 200);
    }
    tried("nodes", "POST /v1/nodes", &told, 200);
    tried("root", "POST /v1/nodes", &told, 403);
    tried("nodes", "GET /v1/map", &json!(""), 200);
    tried("nodes", "POST /v1/ops", &moved, 403);
    tried("eyes", "POST /v1/ops/1/abort", &json!(""), 403);
    tried("alice", "POST /v1/ops", &forced, 403);
    tried("alice", "POST /v1/ops", &unlock, 403);
    let fences = json!({"geojson": gzs.ask("eyes", "GET /v1/fences", b"").json()});
    tried("", "POST /v1/fences/preview", &fences, 401);
    tried("nodes", "POST /v1/fences/preview", &fences, 403);
    tried("eyes", "POST /v1/fences/preview", &fences, 200);
    tried("eyes", "POST /v1/fences/preview", &json!({"geojson": {"type": "Point"}}), 400);
    tried("alice", "POST /v1/ops", &json!({"kind": "remove_zone", "zone": "sh"}), 403);
    tried("eyes", "POST /v1/ops", &json!({"kind": "add_zone", "zone": "gz"}), 403);
    tried("eyes", "POST /v1/ops", &json!({"kind": "add_global", "name": "users", "zone": "sh"}), 403);
    tried("alice", "POST /v1/ops", &moved, 409); // the preflight: no log is heard
    assert_eq!(gzs.newest().epoch().0, 1, "nobody has changed anything");
    assert_eq!(gzs.unlock().json()["by"], "root (li)", "a name that one gives oneself stands behind the token's");
    let audit = gzs.ask("eyes", "GET /v1/audit?after=1", b"").json();
    assert_eq!((&audit[0]["epoch"], &audit[0]["by"]), (&json!(2), &json!("root (li)")), "{audit}");
}

#[test]
fn changed_tokens_are_taken_at_a_sighup_and_bad_ones_change_nothing() {
    let gzs = Gzs::start("changed");
    let status =
        |token: &str| send(gzs.at, "GET /v1/ops", &format!("authorization: Bearer {token}\r\n"), b"").unwrap().status;
    fs::write(gzs.file("eyes"), "quite another token").unwrap();
    gzs.signal(Signal::HUP);
    gzs.within("the new token is taken", || (status("quite another token") == 200).then_some(()));
    assert_eq!((status(&token("eyes")), status(&token("alice"))), (401, 200));
    fs::write(gzs.file("alice"), "a third token, which is long enough").unwrap();
    fs::write(gzs.file("eyes"), "short").unwrap();
    gzs.signal(Signal::HUP);
    gzs.within("the fault is told", || gzs.dir.said().contains("tokens are as they were").then_some(()));
    assert!(gzs.dir.said().contains("a token of 5 bytes, expected at least 16"), "{}", gzs.dir.said());
    assert_eq!((status("quite another token"), status(&token("alice")), status("short")), (200, 200, 401));
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    let gzs = Gzs::start("nonsense");
    let said = |body: &[u8], expected: &str| {
        let answer = gzs.ask("nodes", "POST /v1/nodes", body);
        assert_eq!(answer.status, 400, "{}", answer.error());
        assert!(answer.error().contains(expected), "{}", answer.error());
    };
    said(b"nonsense", "not what a node tells: expected ident");
    said(b"\xff\xfe", "not what a node tells");
    said(&b"[".repeat(100_000), "not what a node tells");
    let told = |zone: &str| json!({"name": "host", "zone": zone, "begun_ms": 1, "map_epoch": 1});
    said(told("bj").to_string().as_bytes(), "expected one of `router` and `log`");
    let mut stranger = told("xx");
    stranger["router"] = router()["router"].clone();
    said(stranger.to_string().as_bytes(), "zone \"xx\" is not on the map, which has: bj, sh");
    let fences = gzs.ask("eyes", "POST /v1/fences/preview", &vec![b' '; BODY_BYTES_MAX + 1]);
    assert!(fences.status == 400 && fences.error().contains("not fences"), "{}", fences.error());
    let fences = gzs.ask("eyes", "POST /v1/fences/preview", &vec![b' '; (16 << 20) + 1]);
    assert!(fences.status == 413 && fences.error().contains("one with fences 16777216"), "{}", fences.error());
    let wrong =
        gzs.post("eyes", "/v1/fences/preview", &json!({"geojson": {"type": "FeatureCollection", "features": []}}));
    assert!(
        wrong.status == 400 && wrong.json()["reasons"][0].as_str().unwrap().contains("no features"),
        "{}",
        wrong.json()
    );
    let many = vec![b' '; BODY_BYTES_MAX + 1];
    let much = gzs.ask("nodes", "POST /v1/nodes", &many);
    assert!(much.status == 413 && much.error().contains("at most 4194304 bytes"), "{}", much.error());
    for (line, status, expected) in [
        ("GET /v1/audit?after=-1", 400, "after: invalid digit"),
        ("GET /v1/ops?all=perhaps", 400, "all: "),
        ("GET /v1/ops/abc", 404, "no operation abc"),
        ("DELETE /v1/ops", 405, "not by this method"),
    ] {
        let answer = gzs.ask("eyes", line, b"");
        assert!(answer.status == status && answer.error().contains(expected), "{line}: {}", answer.error());
    }
    let operation = gzs.post("alice", "/v1/ops", &json!({"kind": "dance"}));
    assert!(operation.status == 400 && operation.error().contains("unknown variant `dance`"), "{}", operation.error());
    let digest = gzs.map("?after=1&digest=xyz");
    assert!(digest.status == 400 && digest.error().contains("64 hexadecimal digits"));
    let unknown = gzs.ask("eyes", "GET /v1/ops/7", b"");
    assert!(unknown.status == 404 && unknown.error().contains("no operation 7"));
    let page = gzs.ask("", "GET /v2/nothing", b"");
    assert!(page.status == 404 && page.error().contains("/openapi.json names all"));
    assert_eq!(gzs.state()["stopped"], Value::Null, "it goes on");
}

#[test]
fn the_console_and_the_description_are_shown_to_everybody_under_a_strict_policy() {
    let gzs = Gzs::start("pages");
    let pages = [
        ("/", "text/html; charset=utf-8", "<!doctype html"),
        ("/console.js", "text/javascript; charset=utf-8", "v1/state"),
        ("/console.css", "text/css; charset=utf-8", "{"),
        ("/openapi.json", "application/json", "\"openapi\": \"3.1.0\""),
    ];
    for (path, kind, part) in pages {
        let answer = gzs.ask("", &format!("GET {path}"), b"");
        assert_eq!(answer.status, 200, "{path}");
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.to_lowercase().contains(part), "{path}: {part} is not in {text}");
        for header in [
            format!("content-type: {kind}\r\n"),
            "content-security-policy: default-src 'none'; script-src 'self';".into(),
            "x-content-type-options: nosniff".into(),
        ] {
            assert!((answer.head.clone() + "\r\n").contains(&header), "{path}: {header} is not in {}", answer.head);
        }
    }
}

#[test]
fn a_poll_waits_for_the_next_map_and_no_longer_than_it_said() {
    let gzs = Gzs::start("poll");
    let none = gzs.map("?after=1&wait_ms=1");
    assert!(none.status == 204 && none.body.is_empty());
    std::thread::scope(|all| {
        let polls = [(); 3].map(|()| all.spawn(|| gzs.map("?after=1&wait_ms=60000")));
        gzs.within("the polls wait", || {
            let metrics = gzs.ask("eyes", "GET /metrics", b"");
            String::from_utf8(metrics.body).unwrap().contains("\nezone_gzs_subscribers 3\n").then_some(())
        });
        assert_eq!(gzs.unlock().status, 200);
        for poll in polls {
            let answer = poll.join().unwrap();
            assert_eq!((answer.status, Map::decode(&answer.body).unwrap().epoch().0), (200, 2));
        }
    });
}

#[test]
fn a_move_goes_to_its_end_though_the_service_is_killed_at_each_step() {
    let mut gzs = Gzs::start("move");
    let shard = Shard(SHANGHAI);
    let (bj, sh) = (Zone(0), Zone(1));
    assert_eq!(gzs.newest().owner(shard), Some(sh));
    let asked = json!({"kind": "move", "shards": [SHANGHAI], "to": "bj", "why": "lighter"});
    // A telling is worth a second: on a busy machine one more is needed.
    let begun = gzs.within("the preflight has nothing against it", || {
        gzs.all_tell(1, &json!([]));
        let answer = gzs.post("alice", "/v1/ops", &asked);
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!((&begun["id"], &begun["shards"], &begun["by"]), (&json!(1), &json!([SHANGHAI]), &json!("alice")));
    gzs.kill();
    gzs.within("the map says moving", || {
        let epoch = gzs.newest().epoch().0;
        gzs.all_tell(epoch, &json!([]));
        (gzs.newest().epoch().0 == 2).then_some(())
    });
    let moving = gzs.newest();
    let view = moving.view(shard).unwrap();
    assert_eq!((view.owner, view.to), (Some(sh), Some(bj)));
    gzs.kill();
    assert_eq!(gzs.newest().digest(), moving.digest());
    let ask = gzs.all_tell(2, &json!([]));
    assert_eq!(ask["asks"], json!([{"map_epoch": 2, "shards": [SHANGHAI], "take_over": false}]), "{ask}");
    assert_eq!(gzs.ask("eyes", "GET /v1/ops/1", b"").json()["ways"][0]["state"], "on_its_way");
    gzs.kill();
    let applied = json!({"0": 10, "1": 10});
    let report = json!([{"shard": SHANGHAI, "map_epoch": 2, "take_over": false, "fence_seq": 7, "applied": applied}]);
    // One that has just begun does not know yet who is there.
    gzs.within("the map names the new owner", || {
        gzs.all_tell(2, &report);
        (gzs.newest().epoch().0 == 3).then_some(())
    });
    gzs.kill();
    let given = gzs.newest();
    assert_eq!((given.epoch().0, given.owner(shard), given.previous()), (3, Some(bj), moving.digest()));
    gzs.within("it has ended", || (gzs.ask("eyes", "GET /v1/ops/1", b"").json()["state"] == "done").then_some(()));
    gzs.kill();
    let op = gzs.ask("eyes", "GET /v1/ops/1", b"").json();
    let way = json!([{"shard": SHANGHAI, "from": "sh", "to": "bj", "state": "given", "epoch": 3}]);
    assert_eq!((&op["state"], &op["ways"]), (&json!("done"), &way), "{op}");
    assert_eq!(gzs.ask("eyes", "GET /v1/ops", b"").json(), json!([]), "nothing is under way");
    assert_eq!(gzs.newest().digest(), given.digest());
    let audit = gzs.ask("eyes", "GET /v1/audit?after=1", b"").json();
    let told: Vec<_> = audit.as_array().unwrap().iter().map(|a| (&a["epoch"], &a["by"], &a["op"])).collect();
    let (alice, one) = (json!("alice"), json!(1));
    assert_eq!(told, [(&json!(2), &alice, &one), (&json!(3), &alice, &one)], "{audit}");
}

#[test]
fn a_newer_map_than_its_own_stops_it_until_that_map_is_adopted() {
    let mut gzs = Gzs::start("stopped");
    let first = gzs.newest();
    let newest = next(&next(&first));
    let shown = format!("authorization: Bearer {}\r\nx-ezone-node: log of zone sh\r\n", token("nodes"));
    let answer = send(gzs.at, "GET /v1/map?after=3&wait_ms=60000", &shown, b"").unwrap();
    assert_eq!(answer.status, 409);
    let why = "log of zone sh goes by map 3, the newest here is 1: this store is an old backup";
    assert!(answer.error().contains(why) && answer.error().contains("--adopt FILE"), "{}", answer.error());
    assert!(gzs.dir.said().contains(why), "{}", gzs.dir.said());
    assert!(gzs.map("").status == 409 && gzs.map("").error().contains(why));
    let refused = gzs.unlock();
    assert!(refused.status == 409 && refused.error().contains(why), "{}", refused.error());
    let ready = gzs.ask("", "GET /readyz", b"");
    assert!(ready.status == 503 && ready.error().contains(why));
    assert!(gzs.state()["stopped"].as_str().unwrap().contains(why));
    assert_eq!(gzs.ask("", "GET /healthz", b"").status, 200);
    assert_eq!(gzs.running.take().unwrap().term(), 0);
    fs::write(gzs.file("newest.map"), newest.encode()).unwrap();
    fs::write(gzs.file("first.map"), first.encode()).unwrap();
    fs::write(gzs.file("nonsense.map"), "a map").unwrap();
    for (file, why) in [("nonsense.map", "expected a node's DATA_DIR/log.map"), ("first.map", "map 1")] {
        let path = gzs.file(file);
        assert_eq!(gzs.begin(&["--adopt", path.to_str().unwrap()]).ended().code(), Some(2), "{}", gzs.dir.said());
        let told = gzs.dir.said();
        let line = told.lines().rfind(|l| l.contains("--adopt /")).unwrap();
        assert!(line.contains(file) && line.contains(why), "{line}");
    }
    let path = gzs.file("newest.map");
    gzs.again(&["--adopt", path.to_str().unwrap()]);
    assert_eq!(gzs.newest().digest(), newest.digest());
    assert_eq!(gzs.map(&format!("?after=3&digest={}", hex(newest.digest()))).status, 204);
    assert_eq!((gzs.ask("", "GET /readyz", b"").status, &gzs.state()["stopped"]), (200, &Value::Null));
    assert_eq!(gzs.unlock().status, 200);
    gzs.kill();
    assert_eq!(gzs.newest().epoch().0, 4, "adopted once, it is the store's");
}

#[test]
fn who_has_the_fences_gets_the_next_map_without_them() {
    let mut gzs = Gzs::start("small");
    let first = gzs.newest();
    let have = format!("?after=1&digest={}", hex(first.digest()));
    assert_eq!(gzs.unlock().status, 200);
    let small = gzs.map(&have);
    assert_eq!(small.status, 200);
    assert!(Map::decode(&small.body).is_err(), "it has fences");
    let second = Map::decode_after(&small.body, &first).unwrap();
    assert_eq!((second.epoch().0, second.previous()), (2, first.digest()));
    assert_eq!(gzs.newest().digest(), second.digest());
    assert!(Map::decode(&gzs.map("?after=1").body).is_ok(), "who shows no digest gets all of it");
    gzs.kill();
    assert!(Map::decode(&gzs.map(&have).body).is_ok(), "what was before this process is not vouched for");
    // A map of which nothing is known is another than the one that was made here.
    let made_up = gzs.map(&format!("?after=1&digest={}", "5a".repeat(32)));
    assert!(made_up.status == 409 && made_up.error().contains("goes by another map 1"), "{}", made_up.status);
    assert_eq!((gzs.ask("", "GET /healthz", b"").status, gzs.map(&have).status), (200, 409));
}
