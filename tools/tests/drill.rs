//! `ezctl drill` as a person or a script meets it: with a sandbox of the real programs.

mod program;

use dataplane::sandbox::cluster::{Cluster, Plan, ServiceSettings};
use program::ezone;
use serde_json::Value;
use std::process::{Command, Output, Stdio};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

fn ezctl(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_ezctl")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn every_drill_is_listed_with_a_sentence() {
    let (code, out, _) = ezctl(&["drill", "list"]);
    assert_eq!((code, out.lines().count()), (0, 19), "{out}");
    assert!(out.lines().all(|l| l.ends_with('.')) && out.contains("zone-cut-off "), "{out}");
}

#[test]
fn what_cannot_be_run_is_refused_with_what_to_do() {
    let check = |args: &[&str], expected: &str| {
        let (code, out, err) = ezctl(args);
        assert!(code == 2 && err.contains(expected), "{args:?}: {code}\n{out}{err}");
    };
    check(&["drill", "run", "lunch", "--sandbox"], "there is no drill \"lunch\"; there are planned-move, ");
    check(&["drill", "run", "planned-move"], "on what? --sandbox starts one; --gzs URL with a --router of each zone");
    check(&["drill", "run", "all", "--sandbox", "--ezone", "/nowhere/ezone"], "/nowhere/ezone is not there: build it");
    check(&["drill", "run", "all", "--sandbox", "--zones", "5"], "5 is not in 2..=4");
}

#[test]
fn two_short_drills_pass_on_a_sandbox_and_are_reported() {
    let (ezone, dir) = (ezone(), std::env::temp_dir().join(format!("ezone-drill-test-{}", std::process::id())));
    let (ezone, reports) = (ezone.to_str().unwrap(), dir.to_str().unwrap());
    let names = ["planned-move", "router-killed"];
    let options =
        ["--sandbox", "--orders-per-s", "100", "--rounds", "1", "--json", "--report", reports, "--ezone", ezone];
    let (code, out, err) = ezctl(&[&["drill", "run"], &names[..], &options[..]].concat());
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((code, &told["failed"]), (0, &0.into()), "{out}{err}");
    for (name, drill) in names.iter().zip(told["drills"].as_array().unwrap()) {
        assert_eq!((&drill["drill"], &drill["verdict"]), (&(*name).into(), &"passed".into()), "{drill}");
        let orders = &drill["orders"];
        assert!(orders["acknowledged"].as_u64().unwrap() > 50, "{orders}");
        let zero = ["lost", "doubled", "unasked", "failed"].map(|what| &orders[what]);
        assert_eq!(zero, [&0, &0, &0, &0].map(|n: &i32| Value::from(*n)).each_ref(), "{orders}");
        let markdown = std::fs::read_to_string(dir.join(format!("{name}.md"))).unwrap();
        assert!(markdown.starts_with(&format!("# Drill {name}: passed\n")), "{markdown}");
        assert!(drill["checks"].as_array().unwrap().iter().all(|c| c["holds"] == true), "{drill}");
    }
    // What the drill names as its outage was one: it costs something, and it is counted.
    assert!(told["drills"][1]["orders"]["failed_in_outage"].as_u64().unwrap() > 0, "{out}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// A system that runs for as long as the test: two zones, a service, and a WAN, which a thread of its own carries.
struct Running {
    gzs: String,
    routers: Vec<String>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start() -> Running {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel();
        let program = ezone();
        let thread = spawn(move || {
            let root = std::env::temp_dir().join(format!("ezone-drill-live-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            std::fs::create_dir_all(&root).unwrap();
            let service = ServiceSettings { silence_ms: 0, move_limit_ms: 2500 };
            let one_way = Duration::from_millis(5);
            let plan = Plan { root: root.clone(), program, zones: 2, one_way, service, global: false, limited: None };
            dataplane::control::runtime().unwrap().block_on(async {
                let mut cluster = Cluster::of(&plan).unwrap();
                let routers = cluster.zones.iter().map(|z| format!("{}={}", z.name, z.ports.client)).collect();
                tell.send((format!("http://{}", cluster.service.listen), routers)).unwrap();
                let _ = ended.await;
                cluster.stop().await;
            });
            let _ = std::fs::remove_dir_all(&root);
        });
        let (gzs, routers) = told.recv().unwrap();
        Running { gzs, routers, end: Some(end), thread: Some(thread) }
    }

    /// What names it to `ezctl drill run`.
    fn named(&self) -> Vec<String> {
        let routers = self.routers.iter().flat_map(|router| ["--router".to_owned(), router.clone()]);
        ["--gzs".to_owned(), self.gzs.clone()].into_iter().chain(routers).collect()
    }

    fn owns(&self, zone: &str) -> usize {
        let (code, out, err) = ezctl(&["shard", "list", "--zone", zone, "--gzs", &self.gzs, "--json"]);
        assert_eq!(code, 0, "{err}");
        out.lines().count()
    }

    /// A drill once everything is up.
    fn drill(&self, args: &[&str]) -> (i32, Value) {
        let named = self.named();
        let all: Vec<&str> = args.iter().copied().chain(named.iter().map(String::as_str)).collect();
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let (code, out, err) = ezctl(&[&["drill", "run", "--json"], &all[..]].concat());
            let told: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
            let early = told["drills"][0]["why"][0].as_str().is_some_and(|why| why.starts_with("preflight: "));
            if !early || Instant::now() >= until {
                return (code, told);
            }
            sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.end.take());
        drop(self.thread.take().map(JoinHandle::join)); // a panic of it was seen before
    }
}

#[test]
fn a_running_system_is_drilled_without_a_failed_order_and_is_as_it_was_afterwards() {
    let system = Running::start();
    let names = ["planned-move", "evacuate-restore", "--shard", "341", "--zone", "sh", "--orders-per-s", "60"];
    let (code, told) = system.drill(&names);
    assert_eq!((code, told["drills"].as_array().unwrap().len()), (0, 2), "{told:#}");
    for drill in told["drills"].as_array().unwrap() {
        assert_eq!((&drill["verdict"], &drill["restored"]), (&"passed".into(), &true.into()), "{drill:#}");
        assert!(drill["orders"]["acknowledged"].as_u64().unwrap() > 50, "{drill:#}");
        assert_eq!(drill["notes"].as_array().unwrap().len(), 1, "every order was deleted: {drill:#}");
    }
    assert_eq!(told["drills"][0]["steps"].as_array().unwrap().len(), 2, "there and back: {told:#}");
    assert_eq!((system.owns("sh"), system.owns("bj")), (19, 15));

    // What breaks things, and what is not there, is refused before anything is done.
    let named = system.named();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    let check = |args: &[&str], code: i32, expected: &str| {
        let (seen, out, err) = ezctl(&[&["drill", "run"], args, &named[..]].concat());
        assert!(seen == code && (out.clone() + &err).contains(expected), "{args:?}: {seen}\n{out}{err}");
    };
    check(&["zone-killed"], 2, "zone-killed breaks things: it is for a sandbox (--sandbox). Nothing was done");
    check(&["planned-move"], 1, "which shard? --shard N names one");
    check(&["evacuate-restore", "--zone", "xx"], 1, "is not on the map, or owns nothing");
    check(&["planned-move", "--shard", "341", "--router", "xx=127.0.0.1:1"], 1, "preflight: the router at 127.0.0.1:1");

    // Interrupted at any moment, it brings the shards home first.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezctl"));
    command.args(["drill", "run", "planned-move", "--shard", "341", "--rounds", "1000", "--orders-per-s", "20"]);
    let mut child = command.args(&named).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while system.owns("sh") == 19 {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "the shard does not move");
        sleep(Duration::from_millis(20));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    assert!(status.code() == Some(1) && text.contains("stopped by a signal"), "{status} {text}");
    assert!(!text.contains("restore:") && text.contains("ok    no acknowledged order is lost: 0"), "{text}");
    assert_eq!((system.owns("sh"), system.owns("bj")), (19, 15));
}
