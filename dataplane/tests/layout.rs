//! Which cores serve what, as the kernel sees it: real processes, their threads' masks and priorities.

mod process_kit;

use process_kit::{Dir, Running, addresses, http, map, within};
use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

/// A node of zone bj with a map that never changes; gone at the end with its processes.
struct Node {
    started: Vec<Running>,
    dir: Dir,
    ports: [SocketAddr; 4],
}

impl Node {
    fn new(name: &str, layout: &str) -> Node {
        let node = Node { started: vec![], dir: Dir::new(name), ports: addresses() };
        node.write(layout, "", "");
        node
    }

    fn write(&self, layout: &str, router: &str, log: &str) {
        let [listen, router_admin, link, log_admin] = self.ports;
        let text = format!(
            "[node]\nzone = \"bj\"\ndata_dir = \"data\"\n[map]\nfile = \"{}\"\n{layout}\n\
             [router]\nlisten = [\"{listen}\"]\nadmin = \"{router_admin}\"\n{router}\n\
             [log]\nlisten = \"{link}\"\nadmin = \"{log_admin}\"\nstreams = 2\nsegment_mib = 1\n{log}\n",
            map().display()
        );
        fs::write(self.dir.join("node.toml"), text).unwrap();
    }

    fn ezone(&self, program: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.arg(program).arg("--config").arg(self.dir.join("node.toml"));
        command
    }

    /// Starts a program; its place among those that were started.
    fn start(&mut self, program: &str) -> usize {
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = self.ezone(program);
        let child = command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
        self.started.push(Running(child));
        self.started.len() - 1
    }

    fn term(&mut self, which: usize) {
        self.started[which].ask_to_end();
        let status = self.started[which].ended();
        assert!(status.success(), "{status}: {}", self.said());
    }

    fn said(&self) -> String {
        self.dir.said()
    }

    /// Waits until records can be written, whichever stream they are of.
    fn ready(&self) {
        for at in ["116.40,39.90", "116.30,39.98", "117.20,39.13", "116.46,39.92"] {
            within(&format!("the node takes writes: {}", self.said()), || self.post(at));
        }
    }

    /// Writes a record of the shard at `loc`; its id.
    fn post(&self, loc: &str) -> Option<String> {
        let request = format!(
            "POST /records/orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-shard: loc={loc}\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        let (status, body) = http(self.ports[0], &request).ok()?;
        let json: serde_json::Value = serde_json::from_str(&body).ok()?;
        (status == 201).then(|| json["id"].as_str().unwrap().to_owned())
    }

    fn record(&self, id: &str) -> Option<u16> {
        let request = format!("GET /records/orders/{id} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        http(self.ports[0], &request).ok().map(|(status, _)| status)
    }

    fn status(&self, admin: usize) -> serde_json::Value {
        within("the status", || {
            let answer = http(self.ports[admin], "GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            serde_json::from_str(&answer.ok()?.1).ok()
        })
    }

    /// The processes that `ezone run` has started: router and log.
    fn parts(&self) -> [u32; 2] {
        let run = self.started[0].id();
        let children = fs::read_to_string(format!("/proc/{run}/task/{run}/children")).unwrap();
        let named = |part: &str| {
            let is = |pid: &u32| {
                let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                args.split('\0').nth(1) == Some(part)
            };
            children.split_whitespace().map(|p| p.parse().unwrap()).find(is).unwrap_or_else(|| panic!("no {part}"))
        };
        [named("router"), named("log")]
    }
}

/// A thread as the kernel tells of it.
#[derive(Debug)]
struct Thread {
    cores: String,
    nice: i32,
    policy: u32,
}

/// The threads of a process by name, but for those that the kernel itself runs for its rings.
fn threads(pid: u32) -> BTreeMap<String, Thread> {
    let read = |task: fs::DirEntry| {
        let text = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        let (stat, status) = (text("stat")?, text("status")?);
        // proc_pid_stat(5): what follows the name begins with field 3; nice is field 19, policy 41.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let cores = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        let thread = Thread { cores, nice: fields[16].parse().ok()?, policy: fields[38].parse().ok()? };
        Some((format!("{}/{}", text("comm")?.trim(), task.file_name().display()), thread))
    };
    let all = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(|t| read(t.ok()?));
    all.filter(|(name, _)| !name.starts_with("iou-")).collect()
}

fn named<'t>(threads: &'t BTreeMap<String, Thread>, name: &str) -> &'t Thread {
    // An executor's number is behind the name that it was given: `log-0-1`.
    let is = |n: &str| n == name || n.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    let found = threads.iter().find(|(n, _)| n.split('/').next().is_some_and(is));
    found.unwrap_or_else(|| panic!("no thread {name}: {threads:?}")).1
}

fn cores_here() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap().iter().map(|c| c.id).collect()
}

const SCHED_OTHER: u32 = 0;
const SCHED_BATCH: u32 = 3;

#[test]
fn in_shared_both_are_on_each_core_and_the_whole_log_runs_at_lower_priority() {
    let mut node = Node::new("shared", "[layout]\nmode = \"shared\"");
    node.start("run");
    node.ready();
    let [router, log] = node.parts();
    let (router, log) = (threads(router), threads(log));
    let own = rustix::process::getpriority_process(None).unwrap();
    for (number, core) in cores_here().iter().enumerate() {
        assert_eq!(named(&router, &format!("router-{number}")).cores, core.to_string());
        if number < 2 {
            assert_eq!(named(&log, &format!("log-{number}")).cores, core.to_string(), "as many as there are streams");
        }
    }
    assert!(router.values().all(|t| (t.nice, t.policy) == (own, SCHED_OTHER)), "{router:?}");
    assert!(log.values().all(|t| (t.nice, t.policy) == ((own + 10).min(19), SCHED_BATCH)), "{log:?}");
    for said in [&node.status(1)["life"]["layout"], &node.status(3)["layout"]] {
        let said = said.as_str().unwrap();
        assert!(
            said.starts_with("shared: router on core") && said.ends_with("at lower priority; mode = \"shared\""),
            "{said}"
        );
    }
    node.term(0);
}

#[test]
fn in_split_every_thread_of_the_log_stays_off_the_routers_cores() {
    let cores = cores_here();
    if cores.len() < 2 {
        return eprintln!("NOT RUN: split needs two cores, this process may use {cores:?}");
    }
    let mut node = Node::new("split", "[layout]\nmode = \"split\"");
    node.start("run");
    node.ready();
    let [router, log] = node.parts();
    let log = threads(log);
    let home = &named(&log, "keeper-0").cores;
    assert!(log.values().all(|t| t.policy == SCHED_OTHER), "{log:?}");
    assert!(log.iter().all(|(name, t)| t.cores == *home || name.starts_with("log-")), "{log:?}");
    let router = threads(router);
    let pinned: Vec<_> = router.iter().filter(|(name, _)| name.starts_with("router-")).map(|(_, t)| &t.cores).collect();
    assert!(!pinned.is_empty() && pinned.iter().all(|c| *c != home), "{pinned:?} {home}");
    let said = node.status(1)["life"]["layout"].as_str().unwrap().to_owned();
    assert!(said.starts_with("split: router on core"), "{said}");
    if cores.len() == 2 {
        let (first, last) = (cores[0].to_string(), cores[1].to_string());
        assert_eq!((pinned, home, &named(&log, "log-0").cores), (vec![&first], &last, &last));
    }
    node.term(0);
}

#[test]
fn lists_alone_pin_and_change_no_priority() {
    let mut node = Node::new("lists", "");
    let core = cores_here().last().copied().unwrap();
    node.write("", &format!("cores = [{core}]"), &format!("cores = [{core}]"));
    node.start("run");
    node.ready();
    let [router, log] = node.parts();
    let (router, log) = (threads(router), threads(log));
    assert_eq!(
        (&named(&router, "router-0").cores, &named(&log, "log-0").cores),
        (&core.to_string(), &core.to_string())
    );
    let own = rustix::process::getpriority_process(None).unwrap();
    assert!(router.values().chain(log.values()).all(|t| (t.nice, t.policy) == (own, SCHED_OTHER)), "{log:?}");
    node.term(0);
}

#[test]
fn the_number_of_log_cores_changes_at_a_restart_and_every_record_is_there() {
    let cores = cores_here();
    if cores.len() < 2 {
        return eprintln!("NOT RUN: two log cores need two cores, this process may use {cores:?}");
    }
    let one = format!("cores = [{}]", cores[0]);
    let two = format!("cores = [{}, {}]", cores[0], cores[1]);
    let mut node = Node::new("number", "");
    let mut written: Vec<String> = vec![];
    for log in [&one, &two, &one] {
        node.write("", &one, log);
        let run = node.start("run");
        node.ready();
        for id in &written {
            within("a record", || node.record(id).filter(|status| *status == 200));
        }
        written.extend(["116.40,39.90", "116.30,39.98", "117.20,39.13"].map(|at| node.post(at).unwrap()));
        node.term(run);
    }
    assert!(!node.said().contains("keeps its number"), "{}", node.said());
}

#[test]
fn a_log_that_is_started_again_keeps_its_number_of_cores_as_long_as_the_router_goes_by_it() {
    let cores = cores_here();
    if cores.len() < 2 {
        return eprintln!("NOT RUN: two log cores need two cores, this process may use {cores:?}");
    }
    let one = format!("cores = [{}]", cores[0]);
    let two = format!("cores = [{}, {}]", cores[0], cores[1]);
    let mut node = Node::new("keeps", "");
    node.write("", &one, &two);
    let (log, router) = (node.start("log"), node.start("router"));
    node.ready();
    node.term(log);
    node.write("", &one, &one);
    let log = node.start("log");
    node.ready();
    let said = node.status(3)["layout"].as_str().unwrap().to_owned();
    assert!(said.ends_with("; the log keeps its 2 cores until the node is restarted"), "{said}");
    assert!(node.said().contains("has 2 core(s) and this configuration would give it 1: it keeps its number"));
    // And the other way round.
    node.term(router);
    node.start("router");
    node.ready();
    let said = node.status(1)["life"]["layout"].as_str().unwrap().to_owned();
    assert!(said.ends_with("; the log keeps its 2 cores until the node is restarted"), "{said}");
    node.term(log);
}

#[test]
fn a_check_says_what_is_chosen_and_why() {
    let node = Node::new("check", "[layout]\nmode = \"shared\"");
    let out = node.ezone("check").output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(
        out.status.success()
            && said.contains("layout: shared: router on core")
            && said.contains("lower priority; mode")
    );
    node.write("[layout]\nmode = \"split\"", "cores = [0]", "cores = [0]");
    let out = node.ezone("check").output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("node.toml:") && said.contains("cores 0 against [layout] mode = \"split\""), "{said}");
    assert_eq!(out.status.code(), Some(2));
}

/// Its directory is gone, so that it can neither write its last checkpoint nor end in order.
#[test]
fn a_log_that_fails_while_it_stops_ends_all_the_same() {
    let mut node = Node::new("gone", "");
    for round in 0..3 {
        let (log, router) = (node.start("log"), node.start("router"));
        node.ready();
        for _ in 0..20 {
            node.post("116.40,39.90");
        }
        fs::remove_dir_all(node.dir.join("data")).unwrap();
        node.started[log].ask_to_end();
        within(&format!("round {round}: the log ends"), || node.started[log].0.try_wait().unwrap());
        node.started[router].kill();
        // The kernel ends the rings of a killed process behind its end, and only then are their listeners closed.
        within(&format!("round {round}: the address is free"), || TcpListener::bind(node.ports[0]).ok());
    }
}
