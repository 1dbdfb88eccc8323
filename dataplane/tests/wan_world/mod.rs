//! Two zones as real `ezone log` processes with an `ezbench wan` between them, and what must hold once all is healed and quiet.

pub mod client;

use crate::process_kit::{Dir, Running, addresses, http, map, within, within_or};
use client::{Load, Writer, read_all};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use shardmap::Shard;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;

pub const BJ: usize = 0;
pub const SH: usize = 1;
const NAMES: [&str; 2] = ["bj", "sh"];
const SHARDS: [Shard; 2] = [Shard(121), Shard(341)];

/// One at a time: two cores are all there are.
static ONE: Mutex<()> = Mutex::new(());

/// Is this process root? Without, there are no namespaces, and that is said.
pub fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("NOT RUN, as network namespaces need root: {what}");
    }
    root
}

/// A program of another package of this workspace, built beside `ezone`; where it is not there yet, it is built now.
fn program(package: &str, name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_ezone")).with_file_name(name);
    if !beside.exists() {
        let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
        let args = ["build", "--quiet", "-p", package, "--bin", name];
        let done = Command::new(env!("CARGO")).args(args).args(profile).status().unwrap();
        assert!(done.success() && beside.exists(), "cargo build -p {package} --bin {name}: {done}");
    }
    beside
}

/// The emulator: orders go in, one answer comes out for each. Its end takes namespaces and devices along.
pub struct Wan {
    child: Child,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Wan {
    fn start(args: &[&str]) -> (Wan, Value) {
        let mut command = Command::new(program("bench", "ezbench"));
        command.args(["wan", "--json"]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, out) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut wan = Wan { child, stdin, out };
        let made = wan.said();
        (wan, made)
    }

    fn said(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("ezbench wan said {line:?}: {e}"))
    }

    pub fn order(&mut self, line: &str) -> Value {
        writeln!(self.stdin, "{line}").unwrap();
        let answer = self.said();
        assert!(answer["error"].is_null(), "{line}: {answer}");
        answer
    }

    /// The sum of a counter over both directions.
    pub fn counted(&mut self, name: &str) -> u64 {
        let seen = self.order("counters");
        let ways = seen.as_object().unwrap().values().filter_map(|way| way[name].as_u64());
        ways.sum()
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        // By a signal that it hears: it removes what it made.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

struct Zone {
    log: Option<Running>,
    /// Where its processes run; `None`: where the test runs.
    namespace: Option<PathBuf>,
    admin: SocketAddr,
    config: PathBuf,
    data: PathBuf,
}

/// Both zones, and the WAN between them.
pub struct World {
    zones: [Zone; 2],
    pub wan: Wan,
    writers: Vec<(Writer, Load)>,
    dir: Dir,
    _one: MutexGuard<'static, ()>,
}

impl World {
    /// Each zone in a namespace of its own.
    pub fn namespaces(name: &str, link: &[&str]) -> World {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        let (wan, made) = Wan::start(link);
        let names = ["a", "b"].map(|end| Path::new("/run/netns").join(made[end]["namespace"].as_str().unwrap()));
        let links = ["10.88.0.1:7000", "10.88.0.2:7000"].map(|at| at.parse().unwrap());
        World::start(name, one, wan, names.map(Some), links, links)
    }

    /// Both zones on loopback, with a relay in front of each one's links.
    pub fn relayed(name: &str, link: &[&str]) -> World {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        let links = addresses::<2>();
        let routes = links.map(|at| format!("--relay=127.0.0.1:0={at}"));
        let (wan, made) = Wan::start(&[&[routes[0].as_str(), routes[1].as_str()], link].concat());
        let relays = [0, 1].map(|i| made["listen"][i].as_str().unwrap().parse().unwrap());
        World::start(name, one, wan, [None, None], links, relays)
    }

    fn start(
        name: &str,
        one: MutexGuard<'static, ()>,
        wan: Wan,
        namespaces: [Option<PathBuf>; 2],
        links: [SocketAddr; 2],
        reached_at: [SocketAddr; 2],
    ) -> World {
        let (dir, admins) = (Dir::new(name), addresses::<2>());
        let mut namespaces = namespaces.into_iter();
        let zones = [BJ, SH].map(|i| {
            let data = dir.join(NAMES[i]);
            let text = format!(
                "[node]\nzone = \"{}\"\ndata_dir = \"{}\"\n[map]\nfile = \"{}\"\n[log]\nlisten = \"{}\"\nadmin = \"{}\"\n\
                 allow_plain_links = true\ncores = [0]\nstreams = 1\nsegment_mib = 4\n[zones.{}]\nrouter = \"127.0.0.1:9\"\nlink = \"{}\"\n",
                NAMES[i],
                data.display(),
                map().display(),
                links[i],
                admins[i],
                NAMES[1 - i],
                reached_at[1 - i]
            );
            let config = dir.join(format!("{}.toml", NAMES[i]));
            fs::write(&config, text).unwrap();
            Zone { log: None, namespace: namespaces.next().flatten(), admin: admins[i], config, data }
        });
        let mut world = World { zones, wan, writers: vec![], dir, _one: one };
        world.spawn(BJ);
        world.spawn(SH);
        world
    }

    /// Starts the zone's log.
    pub fn spawn(&mut self, at: usize) {
        let zone = &mut self.zones[at];
        let mut command = match &zone.namespace {
            // It becomes the program: the process is the log's.
            Some(name) => {
                let mut enter = Command::new("nsenter");
                enter.arg(format!("--net={}", name.display())).arg(env!("CARGO_BIN_EXE_ezone"));
                enter
            }
            None => Command::new(env!("CARGO_BIN_EXE_ezone")),
        };
        let said = File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        command.args(["log", "--config"]).arg(&zone.config).stdin(Stdio::null());
        zone.log = Some(Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()));
    }

    pub fn kill(&mut self, at: usize) {
        self.zones[at].log.take().unwrap().kill();
    }

    pub fn signal(&self, at: usize, signal: Signal) {
        let pid = Pid::from_raw(self.zones[at].log.as_ref().unwrap().id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn port(&self, at: usize) -> PathBuf {
        self.zones[at].data.join("port-0.sock")
    }

    /// Writes go to the zone until `settle`, so many a second.
    pub fn write(&mut self, at: usize, per_s: u64, value_bytes: usize) {
        let load = Load { zone: NAMES[at], shard: SHARDS[at], per_s, value_bytes };
        let writer = Writer::start(self.port(at), load.clone());
        writer.await_more(1);
        self.writers.push((writer, load));
    }

    pub fn writer(&self, at: usize) -> &Writer {
        &self.writers.iter().find(|(_, load)| load.zone == NAMES[at]).unwrap().0
    }

    /// The answer of a zone's admin page, asked for where the zone is.
    fn page(&self, at: usize, path: &str) -> Option<String> {
        let zone = &self.zones[at];
        let ask = || {
            // A thread that has entered a namespace stays there: so each question has its own.
            if let Some(name) = &zone.namespace {
                let name = File::open(name).ok()?;
                move_into_link_name_space(name.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
            }
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            http(zone.admin, &request).ok().filter(|(status, _)| *status == 200).map(|(_, body)| body)
        };
        thread::scope(|scope| scope.spawn(ask).join().unwrap())
    }

    pub fn status(&self, at: usize) -> Value {
        let page = within_or("the log answers", || self.dir.said(), || self.page(at, "/status"));
        serde_json::from_str(&page).unwrap()
    }

    /// The last seq of the zone's own log, and the last one that the other zone has durable.
    pub fn seqs(&self, of: usize) -> (u64, u64) {
        let seq = |v: &Value| v.as_u64().unwrap_or(0);
        let (own, there) = (self.status(of), self.status(1 - of));
        (seq(&own["streams"][0]["durable_seq"]), seq(&there["streams"][0]["mirrored"][NAMES[of]]))
    }

    /// Ends the writers, waits until both zones have all, and then looks at everything.
    pub fn settle(mut self) -> Settled {
        let acked: Vec<_> = self.writers.drain(..).map(|(writer, load)| (writer.end(), load)).collect();
        within_or("both zones have all", || self.dir.said(), || (0..2).all(|i| self.has_all(i)).then_some(()));
        let digests = [BJ, SH].map(|i| within("a digest", || self.page(i, "/digest")));
        assert!(digests[0].contains("rows") && digests[0] == digests[1], "the copies differ: {digests:?}");
        for at in [BJ, SH] {
            let status = self.status(at);
            assert!(status["streams"][0]["incoming"].as_object().unwrap().is_empty(), "a link has stopped: {status}");
            assert!(status["parked"] == 0 && status["ledger"] == 0, "{status}");
            for (acked, load) in &acked {
                let numbers: Vec<u64> = acked.keys().copied().collect();
                read_all(&self.port(at), load, &numbers);
            }
        }
        let connects = self.status(BJ)["streams"][0]["links"]["sh"]["connects"].as_u64().unwrap();
        for zone in &mut self.zones {
            assert_eq!(zone.log.take().unwrap().term(), 0, "{}", self.dir.said());
        }
        let mut acknowledged = 0;
        for (acked, load) in &acked {
            acknowledged += acked.len() as u64;
            self.check_log(load, acked);
        }
        Settled { acknowledged, connects, said: self.dir.said() }
    }

    fn has_all(&self, of: usize) -> bool {
        let (own, there) = (self.status(of), self.status(1 - of));
        let own_seq = &own["streams"][0]["durable_seq"];
        let other = &there["streams"][0];
        own_seq.as_u64().is_some()
            && own_seq == &other["mirrored"][NAMES[of]]
            && own_seq == &other["applied"][NAMES[of]]
    }

    /// The zone's own log and the other's mirror of it: every byte right, the same, each key once, and each acknowledged write at
    /// the seq that it was told.
    fn check_log(&self, load: &Load, acked: &client::Acked) {
        let at = if load.zone == NAMES[BJ] { BJ } else { SH };
        let own = self.zones[at].data.join("log/0");
        let mirror = self.zones[1 - at].data.join(format!("mirror/{}-0", load.zone));
        let (own, mirror) = (own.to_str().unwrap(), mirror.to_str().unwrap());
        ezctl(&["log", "verify", own]);
        ezctl(&["log", "verify", mirror]);
        ezctl(&["log", "diff", "--whole", own, mirror]);
        let (mut keys, mut last) = (BTreeMap::new(), 0);
        for line in ezctl(&["log", "dump", "--json", mirror]).lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let Some(seq) = record["seq"].as_u64() else { continue };
            assert!(seq > last, "seq {seq} behind {last} in {mirror}");
            last = seq;
            // A record of the log itself, such as a marker, has no key.
            if let Some(key) = record["key"].as_str().filter(|key| !key.is_empty()) {
                assert_eq!(keys.insert(key.to_owned(), seq), None, "{key} is there twice in {mirror}");
            }
        }
        for (number, seq) in acked {
            assert_eq!(keys.get(&client::key(load.zone, *number)), Some(seq), "write {number} of {}", load.zone);
        }
    }
}

/// What there was in the end.
pub struct Settled {
    pub acknowledged: u64,
    /// Connections that bj's link to sh made.
    pub connects: u64,
    /// What both logs printed.
    pub said: String,
}

/// What it prints; fails unless it ends with 0.
fn ezctl(args: &[&str]) -> String {
    let done = Command::new(program("tools", "ezctl")).args(args).output().unwrap();
    let (out, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "ezctl {args:?}: {}\n{out}\n{said}", done.status);
    out.into_owned()
}
