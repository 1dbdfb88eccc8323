//! Upstreams as an operator meets them: two that fall ill, die and come back under clients that count errors, and some that have
//! names. Real processes and sockets.

mod process_kit;

use process_kit::{Dir, Running, addresses, map, read_head, within};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// An upstream that can be ill (its page of health says 503), and that can die: its listener and all its connections go.
struct Upstream {
    at: SocketAddr,
    ill: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    dead: Arc<AtomicBool>,
    runs: Option<JoinHandle<()>>,
}

impl Upstream {
    fn new() -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut new = Upstream { at, ill: Arc::default(), served: Arc::default(), dead: Arc::default(), runs: None };
        new.serve(listener);
        new
    }

    fn serve(&mut self, listener: TcpListener) {
        let (ill, served, dead) = (self.ill.clone(), self.served.clone(), Arc::new(AtomicBool::new(false)));
        self.dead = dead.clone();
        self.runs = Some(spawn(move || {
            let mut open: Vec<TcpStream> = vec![];
            for stream in listener.incoming() {
                if dead.load(Relaxed) {
                    break;
                }
                let Ok(mut stream) = stream else { continue };
                open.extend(stream.try_clone());
                let (ill, served) = (ill.clone(), served.clone());
                spawn(move || {
                    while let Some(head) = read_head(&mut stream) {
                        let is_check = head.starts_with("GET /up ");
                        let status = if is_check && ill.load(Relaxed) { "503 Ill" } else { "200 OK" };
                        served.fetch_add(u64::from(!is_check), Relaxed);
                        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(listener);
            open.iter().for_each(|s| drop(s.shutdown(std::net::Shutdown::Both)));
        }));
    }

    fn die(&mut self) {
        self.dead.store(true, Relaxed);
        drop(TcpStream::connect(self.at)); // wakes the thread that accepts
        self.runs.take().unwrap().join().unwrap();
    }

    fn come_back(&mut self) {
        let listener = within("its port is free", || TcpListener::bind(self.at).ok());
        self.serve(listener);
    }

    fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }
}

/// A router of zone bj, gone at the end with its directory.
struct Router {
    child: Option<Running>,
    dir: Dir,
    at: SocketAddr,
    admin: SocketAddr,
}

impl Router {
    fn new(name: &str) -> Router {
        let [at, admin] = addresses();
        Router { child: None, dir: Dir::new(name), at, admin }
    }

    fn write(&self, service: &str) {
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"data\"\n[map]\nfile = \"{}\"\n[router]\nlisten = [\"{}\"]\n\
             admin = \"{}\"\ncores = [0]\n[[service]]\nname = \"s\"\nprefix = \"/\"\n{service}",
            map().display(),
            self.at,
            self.admin
        );
        fs::write(self.dir.join("node.toml"), text).unwrap();
    }

    fn start(&mut self) {
        let said = fs::File::create(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.arg("router").arg("--config").arg(self.dir.join("node.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        self.child = Some(Running(command.spawn().unwrap()));
        within("the router is ready", || self.page("GET", "/readyz").starts_with("HTTP/1.1 200").then_some(()));
    }

    fn page(&self, method: &str, path: &str) -> String {
        let mut answer = String::new();
        let asked = TcpStream::connect(self.admin).and_then(|mut stream| {
            stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())?;
            stream.read_to_string(&mut answer)
        });
        asked.map_or(String::new(), |_| answer)
    }

    /// What `/upstreams` says of an endpoint.
    fn endpoint(&self, at: SocketAddr) -> serde_json::Value {
        let page = self.page("GET", "/upstreams");
        let body = page.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let all: serde_json::Value = serde_json::from_str(body).unwrap();
        let found = all["services"][0]["endpoints"].as_array().unwrap().iter().find(|e| e["address"] == at.to_string());
        found.cloned().unwrap_or_default()
    }

    fn wait_for(&self, at: SocketAddr, states: &[&str]) -> serde_json::Value {
        within(&format!("{at} is one of {states:?}"), || {
            let e = self.endpoint(at);
            states.contains(&e["state"].as_str().unwrap_or_default()).then_some(e)
        })
    }

    fn said(&self) -> String {
        self.dir.said()
    }
}

/// Clients that ask until they are stopped: answers with 200, and all else that they saw.
struct Clients {
    good: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Clients {
    fn start(at: SocketAddr) -> Clients {
        let (good, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let one = |_| {
            let (good, stop) = (good.clone(), stop.clone());
            spawn(move || {
                let (mut stream, mut bad) = (TcpStream::connect(at).unwrap(), vec![]);
                while !stop.load(Relaxed) && bad.len() < 10 {
                    let sent = stream.write_all(b"GET /x HTTP/1.1\r\nhost: h\r\nx-shard: loc=116.40,39.90\r\n\r\n");
                    match read_head(&mut stream) {
                        Some(head) if head.starts_with("HTTP/1.1 200") => drop(good.fetch_add(1, Relaxed)),
                        other => bad.push(format!("{sent:?} {other:?}")),
                    }
                    sleep(Duration::from_millis(2));
                }
                bad
            })
        };
        let threads = (0..3).map(one).collect();
        Clients { good, stop, threads }
    }

    /// Waits for so many more good answers.
    fn go_on(&self, more: u64) {
        let until = self.good.load(Relaxed) + more;
        within("clients are answered", || {
            let stuck = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!stuck, "a client has given up after too many errors");
            (self.good.load(Relaxed) >= until).then_some(())
        });
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    }
}

#[test]
fn an_upstream_that_is_ill_or_dies_is_left_out_and_used_again_when_it_is_back_and_no_client_sees_an_error() {
    let (one, mut two) = (Upstream::new(), Upstream::new());
    let mut router = Router::new("checks");
    // Nothing but the checks may take it out; they may take their time on a loaded machine.
    let service = format!(
        "endpoints = [\"{}\", \"{}\"]\neject = {{ percent_max = 0 }}\nbalance = {{ slow_start_ms = 60000 }}\n",
        one.at, two.at
    );
    let check = "check = { path = \"/up\", every_ms = 100, timeout_ms = 60000, rise = 2, fall = 2 }\n";
    router.write(&format!("{service}{check}"));
    router.start();
    let clients = Clients::start(router.at);
    within("both serve", || (one.served() > 0 && two.served() > 0).then_some(()));
    // The first check decides alone: it is over before anything happens.
    within("it was checked", || router.endpoint(two.at)["check"]["last"].is_object().then_some(()));
    router.wait_for(two.at, &["healthy"]);

    two.ill.store(true, Relaxed);
    let seen = router.wait_for(two.at, &["unhealthy"]);
    assert_eq!((&seen["check"]["last"]["outcome"], &seen["check"]["last"]["why"]), (&"status".into(), &"503".into()));
    // What was under way when the core heard of it may still arrive.
    within("it is left alone", || {
        let before = two.served();
        clients.go_on(20);
        (two.served() == before).then_some(())
    });
    two.ill.store(false, Relaxed);
    router.wait_for(two.at, &["slow start"]);
    within("it serves again", || (two.served() > 0).then_some(()));

    two.die();
    let seen = router.wait_for(two.at, &["unhealthy"]);
    assert_eq!(seen["check"]["last"]["outcome"], "connect", "{seen}");
    clients.go_on(50);
    let (before, before_one) = (two.served(), one.served());
    two.come_back();
    let seen = router.wait_for(two.at, &["slow start"]);
    assert!(seen["check"]["last"]["in_a_row"].as_u64() >= Some(2), "{seen}");
    within("it serves again", || (two.served() > before).then_some(()));
    clients.go_on(300);
    let (got, got_one) = (two.served() - before, one.served() - before_one);
    assert!(got < got_one, "slowly: {got} of {}", got + got_one);

    let page = router.page("GET", "/metrics");
    for name in ["ezone_upstream_healthy{service=\"s\",", "ezone_upstream_checks_total{service=\"s\","] {
        assert!(page.contains(&format!("{name}endpoint=\"{}\"", two.at)), "{name} not in:\n{page}");
    }
    two.die();
    router.wait_for(two.at, &["unhealthy"]);
    // Whoever is not checked any more is healthy, for all we know.
    router.write(&service);
    assert!(router.page("POST", "/reload").starts_with("HTTP/1.1 200"), "{}", router.said());
    let seen = router.wait_for(two.at, &["healthy", "slow start"]);
    assert_eq!(seen["check"], serde_json::Value::Null);
    router.write(&format!("{service}{check}"));
    assert!(router.page("POST", "/reload").starts_with("HTTP/1.1 200"), "{}", router.said());
    router.wait_for(two.at, &["unhealthy"]);
    clients.go_on(50);
    assert_eq!(clients.end(), Vec::<String>::new(), "{}", router.said());
    let said = router.said();
    assert!(said.contains(&format!("{} of s is unhealthy: status (503), 2 in a row", two.at)), "{said}");
    assert!(
        said.contains(&format!("{} of s is unhealthy: connect (Connection refused (os error 111)), 1", two.at)),
        "{said}"
    );
}

/// A GET of `path` with a connection of its own: the status.
fn ask(at: SocketAddr, path: &str) -> u16 {
    let mut stream = TcpStream::connect(at).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: h\r\nx-shard: loc=116.40,39.90\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let answer = read_head(&mut stream).unwrap_or_default();
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0)
}

#[test]
fn upstreams_have_names_and_one_that_nobody_knows_keeps_no_router_from_starting_and_no_bad_file_from_being_refused() {
    let upstream = Upstream::new();
    let mut router = Router::new("names");
    let named = |host: &str| format!("endpoints = [\"{host}:{}\"]\n", upstream.at.port());
    let lost = "[[service]]\nprefix = \"/lost\"\nendpoints = [\"nobody.invalid:80\"]\n";
    router.write(&format!("{}check = {{ path = \"/up\", timeout_ms = 60000 }}\n{lost}", named("LocalHost")));
    let config = router.dir.join("node.toml");
    let checked = Command::new(env!("CARGO_BIN_EXE_ezone")).arg("check").arg("--config").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && said.contains("warning: nobody.invalid:80 has no address: "), "{said}");
    assert!(!said.contains("localhost"), "{said}");

    router.start();
    let ready = router.page("GET", "/readyz");
    assert!(ready.contains("\"ready\":true") && ready.contains("nobody.invalid:80 has no address: "), "{ready}");
    // Where localhost is ::1 too nobody listens there: the second attempt is at the other address.
    assert_eq!((ask(router.at, "/x"), ask(router.at, "/lost")), (200, 503));
    let of = |router: &Router| router.endpoint(upstream.at)["name"].clone();
    assert_eq!(of(&router), format!("localhost:{}", upstream.at.port()));
    within("it is checked where it is", || router.endpoint(upstream.at)["check"]["last"].is_object().then_some(()));
    let page = router.page("GET", "/metrics");
    assert!(page.contains("ezone_dns_addresses{name=\"nobody.invalid:80\"} 0"), "{page}");

    // What it started without is no reason to refuse a file; a name that is new and that nobody knows is.
    router.write(&format!("{}{lost}", named("localhost")));
    assert!(router.page("POST", "/reload").starts_with("HTTP/1.1 200"), "{}", router.said());
    router.write(&named("nowhere.invalid"));
    for ask in ["/check", "/reload"] {
        let refused = router.page("POST", ask);
        assert!(refused.starts_with("HTTP/1.1 422") && refused.contains("nowhere.invalid:"), "{refused}");
    }
    assert_eq!(ask(router.at, "/x"), 200, "nothing is changed");
    assert!(!router.page("GET", "/upstreams").contains("nowhere"));

    router.write(&format!("endpoints = [\"{}\"]\n", upstream.at));
    assert!(router.page("POST", "/reload").starts_with("HTTP/1.1 200"), "{}", router.said());
    assert_eq!((of(&router), ask(router.at, "/x")), (serde_json::Value::Null, 200));
    assert!(router.page("GET", "/upstreams").contains("\"names\":[]"));
}
