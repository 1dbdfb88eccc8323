//! Several Global Zone Services over one etcd, with two zones under load: leaders are killed, and stopped for a while, in the middle of moves,
//! and etcd itself goes away. Needs Debian's `etcd-server`: `cargo test -p dataplane --test gzs_etcd -- --ignored`.

mod process_kit;

use dataplane::control::gzs_client::GzsClient;
use gzs::api::{OpAsk, What};
use process_kit::{Dir, Running, addresses, http, map, within_or};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

const ZONES: [&str; 2] = ["bj", "sh"];
const SERVICES: usize = 3;
/// Of bj at first; a place in it.
const SHARD: (u16, &str) = (121, "loc=116.40,39.90");
const MOVES: usize = 6;

struct World {
    etcd: Option<Running>,
    services: Vec<Option<Running>>,
    /// One that was stopped, and answers nobody.
    asleep: Option<usize>,
    nodes: Vec<Running>,
    at: [SocketAddr; 15],
    dir: Dir,
}

impl World {
    fn start() -> World {
        let mut world = World {
            etcd: None,
            services: (0..SERVICES).map(|_| None).collect(),
            asleep: None,
            nodes: vec![],
            at: addresses(),
            dir: Dir::new("world"),
        };
        world.start_etcd();
        for n in 0..SERVICES {
            world.configure(n);
            world.start_service(n);
        }
        world.leader();
        for (i, zone) in ZONES.iter().enumerate() {
            let (own, far, other) = (&world.at[i * 5..], &world.at[(1 - i) * 5..], ZONES[1 - i]);
            let gzs: Vec<String> = (0..SERVICES).map(|n| format!("\"{}\"", world.url(n))).collect();
            let text = format!(
                "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n[map]\ngzs = [{}]\n\
                 [router]\nlisten = [\"{}\"]\npeer_listen = [\"{}\"]\nadmin = \"{}\"\ncores = [0]\n\
                 [log]\nlisten = \"{}\"\nadmin = \"{}\"\ncores = [0]\nstreams = 1\nsegment_mib = 1\n\
                 [zones.{other}]\nrouter = \"{}\"\nlink = \"{}\"\n[limits]\nhold_ms_max = 60000\nanswer_ms_max = 60000\n",
                gzs.join(", "),
                own[0],
                own[1],
                own[2],
                own[3],
                own[4],
                far[1],
                far[3],
            );
            let config = world.dir.join(format!("{zone}.toml"));
            fs::write(&config, text).unwrap();
            for program in ["log", "router"] {
                let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
                command.args([program, "--config"]).arg(&config);
                let node = world.run(command);
                world.nodes.push(node);
            }
        }
        world
    }

    fn run(&self, mut command: Command) -> Running {
        let said = File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        Running(command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
    }

    fn start_etcd(&mut self) {
        let [client, peer] = [self.at[13], self.at[14]].map(|at| format!("http://{at}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.dir.join("etcd")).arg(format!("--initial-cluster=default={peer}"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        let log = File::options().create(true).append(true).open(self.dir.join("etcd.said")).unwrap();
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("etcd is installed (Debian: apt-get install etcd-server)");
        self.etcd = Some(Running(child));
        self.within("etcd answers", || {
            let ask = "GET /health HTTP/1.1\r\nhost: e\r\nconnection: close\r\n\r\n";
            http(self.at[13], ask).ok().filter(|(status, _)| *status == 200)
        });
    }

    fn url(&self, n: usize) -> String {
        format!("http://{}", self.at[10 + n])
    }

    fn configure(&self, n: usize) {
        let text = format!(
            "[gzs]\nlisten = \"{}\"\nmap = \"{}\"\ncool_down_s = 0\nmove_limit_ms = 3600000\n\
             [etcd]\nendpoints = [\"http://{}\"]\nname = \"gzs-{n}\"\n",
            self.at[10 + n],
            map().display(),
            self.at[13]
        );
        fs::write(self.dir.join(format!("gzs-{n}.toml")), text).unwrap();
    }

    fn start_service(&mut self, n: usize) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args(["gzs", "--config"]).arg(self.dir.join(format!("gzs-{n}.toml")));
        self.services[n] = Some(self.run(command));
    }

    fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), look)
    }

    fn page(&self, n: usize, path: &str) -> Option<(u16, String)> {
        http(self.at[10 + n], &format!("GET {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n")).ok()
    }

    fn leads(&self, n: usize) -> bool {
        self.page(n, "/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// The service that leads, once one does.
    fn leader(&self) -> usize {
        self.within("one service leads", || (0..SERVICES).find(|n| self.asleep != Some(*n) && self.leads(*n)))
    }

    fn signal(&self, n: usize, signal: Signal) {
        let pid = self.services[n].as_ref().unwrap().id();
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    /// Every record of a zone's table, by id.
    fn record(&self, zone: usize, id: &str) -> Option<String> {
        let ask =
            format!("GET /records/orders/{id} HTTP/1.1\r\nhost: x\r\nx-ezone-read: local\r\nconnection: close\r\n\r\n");
        http(self.at[zone * 5], &ask).ok().filter(|(status, _)| *status == 200).map(|(_, body)| body)
    }
}

/// Writes orders for the shard, at both routers in turn, until it is told to stop: what was acknowledged, by id, and what was not.
fn load(
    routers: [SocketAddr; 2],
    stop: std::sync::Arc<AtomicBool>,
) -> JoinHandle<(BTreeMap<String, String>, Vec<String>)> {
    spawn(move || {
        let (mut acknowledged, mut failed) = (BTreeMap::new(), vec![]);
        for n in 0u64.. {
            if stop.load(Relaxed) {
                break;
            }
            let body = format!("{{\"n\":{n}}}");
            let ask = format!(
                "POST /records/orders HTTP/1.1\r\nhost: x\r\nx-shard: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                SHARD.1,
                body.len()
            );
            match http(routers[(n % 2) as usize], &ask) {
                Ok((201, answer)) => {
                    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
                    acknowledged.insert(answer["id"].as_str().unwrap().to_owned(), body);
                }
                Ok((status, answer)) => failed.push(format!("{n}: {status} {answer}")),
                Err(e) => failed.push(format!("{n}: {e}")),
            }
            sleep(Duration::from_millis(5));
        }
        (acknowledged, failed)
    })
}

fn moving(to: &str) -> OpAsk {
    let what = What::Move { shards: vec![SHARD.0], to: to.into() };
    OpAsk { what, by: "test".into(), why: "leaders die".into(), force: false, limit_ms: None }
}

#[tokio::test]
#[ignore = "needs etcd (Debian: apt-get install etcd-server)"]
async fn moves_go_to_their_end_though_leaders_are_killed_and_stopped_and_etcd_goes_away() {
    let mut world = World::start();
    let urls: Vec<String> = (0..SERVICES).map(|n| world.url(n)).collect();
    let client = GzsClient::new(&urls.join(","), None).unwrap();
    let routers = [world.at[0], world.at[5]];
    let ready = "POST /records/orders HTTP/1.1\r\nhost: x\r\nx-shard: loc=116.40,39.90\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    for at in routers {
        world.within("the zones take orders", || http(at, ready).ok().filter(|(status, _)| *status == 201));
    }
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let load = load(routers, stop.clone());
    for n in 0..MOVES {
        let to = ZONES[(n + 1) % 2];
        let (begun, leader) = (begin(&world, &client, to).await, world.leader());
        // Three ways of going away: at once, asleep and back again, asked to end.
        match n % 3 {
            0 => world.services[leader].as_mut().unwrap().kill(),
            1 => {
                world.signal(leader, Signal::STOP);
                world.asleep = Some(leader);
            }
            _ => world.signal(leader, Signal::TERM),
        }
        let ended = client.ended(begun, process_kit::PATIENCE).await.unwrap();
        assert_eq!(ended.state, "done", "{ended:?}\n{}", world.dir.said());
        if n % 3 == 1 {
            let next = world.leader();
            assert_ne!(next, leader);
            world.signal(leader, Signal::CONT);
            world.asleep = None;
            world.within("the one that slept stands by", || {
                world.page(leader, "/readyz").filter(|(status, said)| *status == 503 && said.contains(&world.url(next)))
            });
            assert!(world.leads(next));
        } else {
            world.services[leader].as_mut().unwrap().ended();
            world.start_service(leader);
        }
    }
    // Those that were started again need etcd to begin.
    for n in 0..SERVICES {
        world.within("it is heard", || world.page(n, "/healthz"));
    }
    // Without etcd nobody leads, and orders are taken all the same.
    world.etcd.take().unwrap().kill();
    world.within("nobody leads", || (0..SERVICES).all(|n| !world.leads(n)).then_some(()));
    let (status, said) = world.page(0, "/v1/state").unwrap();
    assert!(status == 503 && said.contains("no leader is known"), "{status} {said}");
    assert!(world.within("an order", || http(routers[1], ready).ok()).0 == 201);
    world.start_etcd();
    world.leader();
    let last = begin(&world, &client, ZONES[1]).await;
    assert_eq!(client.ended(last, process_kit::PATIENCE).await.unwrap().state, "done");
    stop.store(true, Relaxed);
    let (acknowledged, failed) = load.join().unwrap();
    assert!(failed.is_empty(), "{failed:?}\n{}", world.dir.said());
    assert!(acknowledged.len() > 100, "{} orders", acknowledged.len());
    println!("{} orders over {} moves, none failed", acknowledged.len(), MOVES + 1);
    for zone in 0..ZONES.len() {
        for (id, body) in &acknowledged {
            assert_eq!(world.within("an order is in both zones", || world.record(zone, id)), *body);
        }
    }
    let audit = client.audit(0).await.unwrap();
    let epochs: Vec<u64> = audit.iter().map(|a| a.epoch).collect();
    assert_eq!(epochs, (1..=epochs.len() as u64).collect::<Vec<_>>(), "each map was made once");
}

/// Begins a move; whoever leads may have to hear the nodes first.
async fn begin(world: &World, client: &GzsClient, to: &str) -> u64 {
    let until = std::time::Instant::now() + process_kit::PATIENCE;
    loop {
        match client.begin(&moving(to)).await {
            Ok(op) => return op.id,
            Err(why) => assert!(std::time::Instant::now() < until, "{why}\n{}", world.dir.said()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
