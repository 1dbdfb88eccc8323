//! What an operator sees of a running router: its pages and its access log, as a process shows them.

mod process_kit;

use process_kit::{Dir, PATIENCE, Running, addresses, backend, http, map, within_or};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A router of zone bj with a map that never changes and one service whose upstream answers everything.
struct Router {
    process: Running,
    dir: Dir,
    client: SocketAddr,
    admin: SocketAddr,
}

impl Router {
    fn start(name: &str) -> Router {
        Router::with(name, "0", "")
    }

    /// On these cores, with more said of its service.
    fn with(name: &str, cores: &str, service: &str) -> Router {
        let dir = Dir::new(name);
        let [client, admin] = addresses();
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"data\"\n[map]\nfile = \"{}\"\n\
             [router]\nlisten = [\"{client}\"]\nadmin = \"{admin}\"\ncores = [{cores}]\n\
             [[service]]\nprefix = \"/api/\"\nendpoints = [\"{}\"]\n{service}\n[access_log]\npath = \"access.log\"\n",
            map().display(),
            upstream(),
        );
        let config = dir.join("ezone.toml");
        fs::write(&config, text).unwrap();
        let said = fs::File::create(dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args(["router", "--stop-with-stdin", "--config"]).arg(&config).stdin(Stdio::piped());
        let process = Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap());
        let router = Router { process, dir, client, admin };
        router.within("the router is ready", || router.page("/readyz").ok().filter(|(s, _)| *s == 200));
        router
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    fn ask(&self, path: &str) -> (u16, String) {
        ask(
            self.client,
            "GET",
            path,
            &format!("x-shard: loc=116.40,39.90\r\ntraceparent: 00-{}-00f067aa0ba902b7-01\r\n", "4b".repeat(16)),
        )
        .unwrap()
    }

    fn page(&self, path: &str) -> std::io::Result<(u16, String)> {
        ask(self.admin, "GET", path, "")
    }

    /// Waits until the file has a line with `part`.
    fn logged(&self, file: &str, part: &str) -> String {
        self.within(part, || {
            let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            text.lines().find(|l| l.contains(part)).map(String::from)
        })
    }
}

/// Answers each request of each connection with 200 and four bytes, but those for a path that ends in `never`.
fn upstream() -> SocketAddr {
    let fine = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine";
    backend(move |head| (!head.contains("/never ")).then(|| fine.into()))
}

fn ask(at: SocketAddr, method: &str, path: &str, fields: &str) -> std::io::Result<(u16, String)> {
    http(at, &format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n"))
}

#[test]
fn requests_are_in_the_log_and_on_the_page_and_a_moved_log_is_opened_anew() {
    let router = Router::start("log");
    assert_eq!(router.ask("/api/one?q=1"), (200, "fine".into()));
    assert_eq!(router.ask("/nowhere").0, 404);
    let line = router.logged("access.log", "\"GET /api/one?q=1\" 200");
    assert!(line.starts_with("127.0.0.1:"), "{line}");
    assert!(line.ends_with(&format!(" trace={}", "4b".repeat(16))), "{line}");
    assert!(line.contains("service=\"/api/\" zone=bj shard=121 epoch=1 retries=0 end=ok"), "{line}");
    let line = router.logged("access.log", "\"GET /nowhere\" 404");
    assert!(line.contains("end=refused why=\"no service for this path\""), "{line}");
    fs::rename(router.dir.join("access.log"), router.dir.join("access.log.1")).unwrap();
    assert_eq!(ask(router.admin, "POST", "/reopen", "content-length: 0\r\n").unwrap().0, 200);
    router.within("the log is opened anew", || fs::metadata(router.dir.join("access.log")).ok());
    assert_eq!(router.ask("/api/two").0, 200);
    router.logged("access.log", "\"GET /api/two\" 200");
    let (status, page) = router.page("/metrics").unwrap();
    assert_eq!(status, 200);
    for line in [
        "ezone_requests_total{service=\"/api/\",status=\"200\"} 2",
        "ezone_requests_total{service=\"none\",status=\"404\"} 1",
        "ezone_zone_requests_total{zone=\"bj\",class=\"2xx\"} 2",
        "ezone_shard_requests_total{shards=\"64-127\",class=\"2xx\"} 2",
        "ezone_router_own_seconds_count{service=\"/api/\"} 2",
        "ezone_access_log_lines_total 3",
        "ezone_access_log_dropped_total{at=\"core\"} 0",
        "ezone_map_epoch{core=\"0\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} not in:\n{page}");
    }
    assert!(page.contains("ezone_core_cpu_seconds_total{core=\"0\"} "), "{page}");
}

/// What `POST /explain` says of a request.
fn explained(router: &Router, ask: &serde_json::Value) -> (u16, serde_json::Value) {
    let body = ask.to_string();
    let head = format!("content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    let request = format!("POST /explain HTTP/1.1\r\nhost: x\r\n{head}\r\n{body}");
    let (status, answer) = http(router.admin, &request).unwrap();
    (status, serde_json::from_str(&answer).unwrap_or_default())
}

#[test]
fn a_route_is_explained_as_the_router_would_take_it_and_nothing_of_it_is_counted() {
    let router = Router::start("explain");
    let tag = |tag: &str| serde_json::json!([["x-shard", tag]]);
    let here = serde_json::json!({"path": "/api/x", "headers": tag("shopid=999;loc=116.40,39.90")});
    let (status, a) = explained(&router, &here);
    assert_eq!(status, 200, "{a}");
    assert_eq!((&a["decision"], &a["shard"], &a["owner"]), (&"serve".into(), &121.into(), &"bj".into()), "{a}");
    assert_eq!((&a["service"], &a["kind"], &a["map_epoch"]), (&"/api/".into(), &"own".into(), &1.into()));
    assert_eq!((&a["tag"]["decided_by"], &a["tag"]["fence"]), (&"location".into(), &"Beijing".into()));
    assert!(a["tag"]["parts"][0]["verdict"].as_str().unwrap().starts_with("foreign"), "{a}");
    assert_eq!(a["endpoints"].as_array().unwrap().len(), 1);
    assert_eq!(a["endpoints"][0]["chosen"], true, "{a}");
    for (ask, decision, status, why) in [
        (
            serde_json::json!({"path": "/nowhere", "headers": tag("loc=116.40,39.90")}),
            "refuse",
            404,
            "no service for this path",
        ),
        (
            serde_json::json!({"path": "/api/x", "headers": tag("loc=121.5,31.2")}),
            "refuse",
            502,
            "no router of the owner zone is known",
        ),
        (
            serde_json::json!({"path": "/records/a/b", "method": "GET", "headers": tag("loc=116.40,39.90")}),
            "refuse",
            404,
            "no record store in this zone",
        ),
        (serde_json::json!({"path": "/ /", "headers": []}), "refuse", 400, ""),
    ] {
        let (_, a) = explained(&router, &ask);
        assert_eq!((&a["decision"], &a["answer"]["status"]), (&decision.into(), &status.into()), "{ask}: {a}");
        assert!(a["why"].as_str().unwrap().contains(why), "{ask}: {a}");
    }
    let (status, a) = explained(&router, &serde_json::json!({"path": "/a\r\nx: y"}));
    assert_eq!(status, 400, "{a}");
    let (status, body) = router.page("/explain?path=/api/x&x-shard=loc%3D116.40%2C39.90").unwrap();
    assert!(status == 200 && body.contains("\"decision\":\"serve\""), "{body}");
    let (_, page) = router.page("/metrics").unwrap();
    assert!(!page.contains("ezone_requests_total{"), "an explained request was counted:\n{page}");
}

#[test]
fn a_router_says_that_it_is_ready_and_what_it_does() {
    let router = Router::start("state");
    assert_eq!(router.ask("/api/one").0, 200);
    let ready = router.within("the router is ready", || router.page("/readyz").ok().filter(|(s, _)| *s == 200));
    assert_eq!(ready.1, "{\"missing\":[],\"ready\":true,\"warnings\":[]}");
    let status = router.within("the request is counted", || {
        let (_, text) = router.page("/status").ok()?;
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        (status["detail"]["services"]["/api/"]["requests"] == 1).then_some(status)
    });
    let detail = &status["detail"];
    assert_eq!((&status["zone"], &status["map_epoch"]), (&"bj".into(), &1.into()));
    assert_eq!((&detail["version"], &detail["cores"][0]["map_epoch"]), (&env!("CARGO_PKG_VERSION").into(), &1.into()));
    assert!(detail["map_age_s"].is_u64() && detail["cores"][0]["turns"].as_u64() > Some(0), "{detail}");
    let (status, pages) = router.page("/").unwrap();
    assert_eq!(status, 200);
    for line in pages.lines().filter(|l| l.starts_with("GET")) {
        let page = line.split_whitespace().nth(1).unwrap();
        assert_eq!(router.page(page).unwrap().0, 200, "{line}");
    }
}

/// The value of a line of the page.
fn value(page: &str, of: &str) -> f64 {
    let line = page.lines().find_map(|l| l.strip_prefix(of)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{of} not in:\n{page}")).parse().unwrap()
}

/// Processor time of the thread of a process, in seconds, as the kernel counts it.
fn ran_s(pid: u32, thread: &str) -> f64 {
    let read = |task: fs::DirEntry| {
        let is = fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == thread);
        is.then(|| fs::read_to_string(task.path().join("schedstat")).unwrap())
    };
    let found = fs::read_dir(format!("/proc/{pid}/task")).unwrap().find_map(|t| read(t.unwrap()));
    found.unwrap().split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

#[test]
fn a_cores_processor_time_is_what_the_kernel_counts_and_its_queue_what_its_loop_took() {
    let router = Router::start("cores");
    let page = || router.page("/metrics").unwrap().1;
    let cpu = |page: &str| value(page, "ezone_core_cpu_seconds_total{core=\"0\"}");
    let completions = |page: &str| value(page, "ezone_loop_completions_total{core=\"0\"}");
    let first = page();
    for _ in 0..50 {
        assert_eq!(router.ask("/api/one").0, 200);
    }
    let before = ran_s(router.process.id(), "router-0");
    let second = page();
    let after = ran_s(router.process.id(), "router-0");
    // The page gives microseconds.
    assert!(before - 2e-6 <= cpu(&second) && cpu(&second) <= after + 2e-6, "{before} {} {after}", cpu(&second));
    assert!(cpu(&second) > cpu(&first));
    assert!(value(&second, "ezone_core_run_delay_seconds_total{core=\"0\"}") >= 0.0);
    // Each request is an accept, bytes from both sides, and two sends at least.
    assert!(completions(&second) - completions(&first) >= 250.0, "{second}");
    let turns = value(&second, "ezone_loop_turns_total{core=\"0\"}");
    let fullest = value(&second, "ezone_loop_completions_max{core=\"0\"}");
    assert!(fullest >= 1.0 && completions(&second) <= fullest * turns, "{second}");
    for none in ["ezone_loop_backlog", "ezone_loop_queue_full_total", "ezone_loop_out_of_buffers_total"] {
        assert_eq!(value(&second, &format!("{none}{{core=\"0\"}}")), 0.0, "{none}");
    }
}

#[test]
fn what_waits_for_a_place_is_shown_by_core() {
    let router = Router::with("waits", "0", "[service.places]\nrequests_max = 2\nqueue_ms_max = 60000");
    let asking = || {
        let mut stream = TcpStream::connect(router.client).unwrap();
        // It ends with a reset: who only closes may still be waiting for the answer.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        stream.write_all(b"GET /api/never HTTP/1.1\r\nhost: x\r\nx-shard: loc=116.40,39.90\r\n\r\n").unwrap();
        stream
    };
    let all: Vec<TcpStream> = (0..5).map(|_| asking()).collect();
    let waiting = || value(&router.page("/metrics").unwrap().1, "ezone_waiting_requests{core=\"0\"}");
    router.within("three wait", || (waiting() == 3.0).then_some(()));
    let status: serde_json::Value = serde_json::from_str(&router.page("/status").unwrap().1).unwrap();
    let core = &status["detail"]["cores"][0];
    assert_eq!((&core["waiting"], &core["in_flight"], &core["clients"]), (&3.into(), &2.into(), &5.into()), "{core}");
    drop(all);
    router.within("nobody waits", || (waiting() == 0.0).then_some(()));
}

#[test]
fn the_spread_of_connections_over_the_cores_is_shown() {
    let cores: Vec<String> = core_affinity::get_core_ids().unwrap().iter().take(2).map(|c| c.id.to_string()).collect();
    let router = Router::with("spread", &cores.join(", "), "");
    let streams: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(router.client).unwrap()).collect();
    let clients = |detail: &serde_json::Value| {
        let each = detail["cores"].as_array().unwrap().iter().map(|c| c["clients"].as_u64().unwrap());
        each.collect::<Vec<_>>()
    };
    let detail = router.within("all are there", || {
        let mut status: serde_json::Value = serde_json::from_str(&router.page("/status").unwrap().1).unwrap();
        (clients(&status["detail"]).iter().sum::<u64>() == 400).then(|| status["detail"].take())
    });
    let clients = clients(&detail);
    assert_eq!(clients.len(), cores.len());
    let most = clients.iter().max().unwrap() * 100;
    assert_eq!(detail["busiest_core_percent"], most.div_ceil(400));
    assert!(cores.len() == 1 || most <= 60 * 400, "{clients:?}");
    let page = router.page("/metrics").unwrap().1;
    for (core, clients) in clients.iter().enumerate() {
        assert_eq!(value(&page, &format!("ezone_client_connections{{core=\"{core}\"}}")), *clients as f64);
        let given = |what: &str| value(&page, &format!("ezone_connections_{what}_over_total{{core=\"{core}\"}}"));
        assert!(given("handed") + given("taken") <= 400.0);
    }
    drop(streams);
}

#[test]
fn a_flood_at_the_admin_port_takes_no_descriptor_from_clients() {
    let router = Router::start("flood");
    let open = || fs::read_dir(format!("/proc/{}/fd", router.process.id())).unwrap().count();
    let before = open();
    let flood: Vec<_> = (0..240).map(|_| TcpStream::connect(router.admin).unwrap()).collect();
    flood.iter().for_each(|mut s| s.write_all(b"GET /metr").unwrap());
    for _ in 0..50 {
        assert_eq!(router.ask("/api/x").0, 200);
        assert!(open() < before + 200, "{} descriptors are open, {before} were", open());
    }
    drop(flood);
    assert_eq!(router.page("/healthz").unwrap().0, 200, "and it answers again");
}

/// Numbers that only look random, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len() as u64) as usize]
    }

    /// An id as a log core of `shard` would mint it now, or nearly.
    fn id(&mut self) -> u64 {
        let since = std::time::SystemTime::UNIX_EPOCH + Duration::from_millis(1_704_067_200_000);
        let ms = since.elapsed().unwrap().as_millis() as u64 - self.roll(1000);
        ms << 22 | self.roll(1024) << 12 | self.roll(16) << 8 | self.roll(256)
    }

    fn part(&mut self) -> String {
        let (lng, lat) = (70 + self.roll(70), 15 + self.roll(40));
        match self.roll(12) {
            0..=3 => format!("loc={lng}.{},{lat}.{}", self.roll(100_000), self.roll(100_000)),
            4 | 5 => format!("eosid={}", self.id()),
            6 => format!("shopid={}", self.id()),
            7 => format!("shopid={}", self.roll(1 << 31)),
            8 => format!("shardid={}", self.roll(2000)),
            9 => self
                .one(&["loc=1", "loc=,", "eosid=-1", "eosid=", "shopid=9223372036854775808", "=", "loc=500,500"])
                .into(),
            10 => self.one(&["eosid=0", "shopid=1.0", "LOC=116.4,39.9", "loc = 116.4, 39.9", "x=y", ""]).into(),
            _ => format!("loc=116.{},39.{}", self.roll(1000), self.roll(1000)),
        }
    }

    fn request(&mut self) -> (String, String, Vec<(String, String)>) {
        let method = self.one(&["GET", "GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "get", "CONNECT"]);
        let mut path: String = self
            .one(&[
                "/api/x",
                "/api/",
                "/api",
                "//api/x",
                "/api/../x",
                "/",
                "*",
                "x",
                "http://h/api/x",
                "/api/a b",
                "/records/t/",
            ])
            .into();
        if path.ends_with("t/") {
            path += &self.id().to_string();
        }
        let parts: Vec<String> = (0..self.roll(4)).map(|_| self.part()).collect();
        let mut fields = vec![("x-shard".to_string(), parts.join(";"))];
        if self.roll(6) == 0 {
            let (name, value) = [
                ("x-ezone-hop", "1"),
                ("x-ezone-shard", "7"),
                ("x-ezone-read", "local"),
                ("x-ezone-epoch", "99"),
                ("if-match", "1"),
                ("x-shard", "loc=116.4,39.9"),
                ("connection", "x-shard"),
                ("content-length", "x"),
            ][self.roll(8) as usize];
            fields.push((name.into(), value.into()));
        }
        if self.roll(10) == 0 {
            fields.remove(0);
        }
        (method.into(), path, fields)
    }
}

/// `SEED=n` replays one.
#[test]
fn what_is_explained_is_what_happens_whatever_the_request() {
    let router = Router::with("agrees", "0", "[zones.sh]\nrouter = \"127.0.0.1:9\"\n");
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut dice = Dice(seed);
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for round in 0..600 {
        let (method, path, fields) = dice.request();
        let (status, said) =
            explained(&router, &serde_json::json!({"method": method, "path": path, "headers": fields}));
        let at = format!("SEED={seed} round {round}: {method} {path} {fields:?}: {said}");
        assert_eq!(status, 200, "{at}");
        let mut stream = TcpStream::connect(router.client).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: explain\r\n{lines}\r\n").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status: u64 = answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        let shard = answer.lines().find_map(|l| l.strip_prefix("x-ezone-shard: ")).map(|s| s.parse::<u64>().unwrap());
        let decision = said["decision"].as_str().unwrap();
        *seen.entry(format!("{decision} {}", said["answer"]["status"])).or_default() += 1;
        match decision {
            "serve" => assert_eq!((status, shard), (200, said["shard"].as_u64()), "{at}\n{answer}"),
            "forward" => {
                assert_eq!((status, shard), (502, said["shard"].as_u64()), "{at}\n{answer}");
                assert_ne!(said["owner"], "bj", "{at}");
            }
            "refuse" => {
                assert_eq!(said["answer"]["status"].as_u64(), Some(status), "{at}\n{answer}");
                let body = answer.split_once("\r\n\r\n").unwrap().1;
                if method != "HEAD" {
                    let body: serde_json::Value = serde_json::from_str(body).unwrap();
                    assert_eq!(said["answer"]["body"], body, "{at}");
                }
                assert!(shard.is_none() || shard == said["shard"].as_u64(), "{at}\n{answer}");
            }
            other => panic!("{other}: {at}"),
        }
    }
    for each in ["serve null", "forward null", "refuse 400", "refuse 404", "refuse 501"] {
        assert!(seen.contains_key(each), "{each} is not among {seen:?}");
    }
}
