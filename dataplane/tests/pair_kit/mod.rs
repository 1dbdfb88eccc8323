//! Two zones' logs as real processes on loopback, started, stopped and asked as an operator does, and written to over their Unix ports.
#![allow(dead_code, reason = "each test program uses some of it")]

pub mod gzs;

use crate::process_kit::{Dir, Running, addresses, http, map, within_or};
use bytes::{Bytes, BytesMut};
use dataplane::tls::Identity;
use dataplane::tls::authority::{Made, Period};
use replog::port::{Answer, Ask, Refused, put_ask, take_answer};
use serde_json::Value;
use shardmap::{MapEpoch, Shard};
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const BJ: usize = 0;
pub const SH: usize = 1;
pub const NAMES: [&str; 2] = ["bj", "sh"];
/// A shard of each zone in the map that never changes, and so the stream, if there are two: 1 for both.
pub const SHARDS: [Shard; 2] = [Shard(121), Shard(341)];
/// One pair at a time: two cores are all there are.
static ONE: Mutex<()> = Mutex::new(());
/// Asks under way at once.
const WINDOW: usize = 256;

/// Both zones. A field before `dir`: processes end before their directory goes.
pub struct Pair {
    logs: [Option<Running>; 2],
    pub links: [SocketAddr; 2],
    pub admins: [SocketAddr; 2],
    /// What `[map]` says.
    map: String,
    /// Lines of `[log]`, such as the number of streams.
    pub log_lines: String,
    ca: Option<Made>,
    pub dir: Dir,
    _one: MutexGuard<'static, ()>,
}

impl Pair {
    /// Nothing runs yet.
    pub fn new(name: &str, log_lines: &str) -> Pair {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        let at: [_; 4] = addresses();
        let map = format!("file = \"{}\"", map().display());
        let (links, admins, dir) = ([at[0], at[1]], [at[2], at[3]], Dir::new(name));
        Pair { logs: [None, None], links, admins, map, log_lines: log_lines.into(), ca: None, dir, _one: one }
    }

    /// The same, which goes by the maps of a GZS.
    pub fn of_gzs(self, gzs: SocketAddr) -> Pair {
        Pair { map: format!("gzs = \"http://{gzs}\""), ..self }
    }

    /// The same, whose links speak TLS.
    pub fn over_tls(mut self) -> Pair {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ca = Made::authority("ezone", Period::days(now_s, 100)).unwrap();
        fs::write(self.dir.join("ca.pem"), &ca.certificate).unwrap();
        for zone in NAMES {
            let made = ca.member(&Identity::Zone(zone.into()), Period::days(now_s, 90)).unwrap();
            fs::write(self.dir.join(format!("{zone}.key")), &made.key).unwrap();
            fs::write(self.dir.join(format!("{zone}.pem")), &made.certificate).unwrap();
        }
        self.ca = Some(ca);
        self
    }

    /// Where a zone keeps everything.
    pub fn data(&self, at: usize) -> PathBuf {
        self.dir.join(NAMES[at])
    }

    /// Starts a zone's log, and waits until it answers.
    pub fn start(&mut self, at: usize) {
        let (zone, other) = (NAMES[at], NAMES[1 - at]);
        let cluster = format!("[cluster]\nca = \"ca.pem\"\ncertificate = \"{zone}.pem\"\nkey = \"{zone}.key\"\n");
        let text = format!(
            "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n[map]\n{}\n[log]\nlisten = \"{}\"\nadmin = \"{}\"\n{}\n\
             [zones.{other}]\nrouter = \"127.0.0.1:9\"\nlink = \"{}\"\n{}",
            self.map,
            self.links[at],
            self.admins[at],
            self.log_lines,
            self.links[1 - at],
            if self.ca.is_some() { &cluster } else { "" }
        );
        let config = self.dir.join(format!("{zone}.toml"));
        fs::write(&config, text).unwrap();
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args(["log", "--config"]).arg(config).stdin(Stdio::null());
        self.logs[at] = Some(Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()));
        self.status(at);
    }

    /// Ends it well.
    pub fn stop(&mut self, at: usize) {
        assert_eq!(self.logs[at].take().unwrap().term(), 0, "{}", self.dir.said());
    }

    /// How many descriptors its process has open.
    pub fn descriptors(&self, at: usize) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.logs[at].as_ref().unwrap().id())).unwrap().count()
    }

    /// Ends it as a lost machine ends.
    pub fn kill(&mut self, at: usize) {
        self.logs[at].take().unwrap().kill();
    }

    pub fn within<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        let pages = || [BJ, SH].map(|i| self.try_ask(i, "GET", "/status", "").map_or(String::new(), |(_, body)| body));
        within_or(what, || format!("{}{:#?}", self.dir.said(), pages()), look)
    }

    fn try_ask(&self, at: usize, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let len = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
        self.logs[at].as_ref()?;
        http(self.admins[at], &(head + body)).ok()
    }

    /// What a zone's admin address answers.
    pub fn ask(&self, at: usize, method: &str, path: &str, body: &str) -> (u16, String) {
        let said = || self.dir.said();
        within_or(&format!("{method} {path}"), said, || self.try_ask(at, method, path, body))
    }

    /// The same, of an answer that is JSON with this status.
    pub fn json(&self, at: usize, method: &str, path: &str, body: &str, status: u16) -> Value {
        let (seen, text) = self.ask(at, method, path, body);
        assert_eq!(seen, status, "{method} {path}: {text}\n{}", self.dir.said());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{method} {path}: {e}: {text}"))
    }

    pub fn status(&self, at: usize) -> Value {
        self.json(at, "GET", "/status", "", 200)
    }

    /// What a zone says of one stream's link to the other, once it is so.
    pub fn link(&self, at: usize, stream: usize, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        self.within(what, || {
            let link = self.json(at, "GET", "/links", "", 200)["streams"][stream]["links"][NAMES[1 - at]].clone();
            (link.is_object() && so(&link)).then_some(link)
        })
    }

    /// The other zone has all that this one has made durable of a stream, applied.
    pub fn has_all(&self, of: usize, stream: usize) -> bool {
        let (own, there) = (self.status(of), self.status(1 - of));
        // A stream without a record is nowhere.
        let seq = |v: &Value| v.as_u64().unwrap_or(0);
        let (own, there) = (&own["streams"][stream], &there["streams"][stream]);
        let all = [&there["mirrored"][NAMES[of]], &there["applied"][NAMES[of]], &own["applied"][NAMES[of]]];
        own.is_object() && all.iter().all(|v| seq(v) == seq(&own["durable_seq"]))
    }

    /// Waits until both zones have everything and hold the same rows and ledger.
    pub fn agree(&self, streams: usize) {
        self.within("both zones have all", || {
            (0..streams).all(|s| self.has_all(BJ, s) && self.has_all(SH, s)).then_some(())
        });
        self.within("both copies are equal", || {
            let [a, b] = [BJ, SH].map(|i| self.ask(i, "GET", "/digest", "").1);
            (a.contains("rows") && a == b).then_some(())
        });
    }

    /// Writes `keys` of the zone's shard, each with what `value` makes of it, as the map of `epoch` says; the last seq.
    pub fn write(
        &self,
        at: usize,
        shard: Shard,
        keys: impl Iterator<Item = u64>,
        value: impl Fn(u64) -> String,
    ) -> u64 {
        self.write_at(at, MapEpoch(1), shard, keys, value)
    }

    pub fn write_at(
        &self,
        at: usize,
        map_epoch: MapEpoch,
        shard: Shard,
        keys: impl Iterator<Item = u64>,
        value: impl Fn(u64) -> String,
    ) -> u64 {
        let (keys, mut last): (Vec<u64>, u64) = (keys.collect(), 0);
        for some in keys.chunks(WINDOW) {
            let mut left = some.to_vec();
            // A log that has just started says for a moment that it takes no writes.
            self.within("the zone takes writes", || {
                let asks = left.iter().map(|k| {
                    let (table, key, value) = ("orders".into(), Some(key_of(shard, *k)), Some(value(*k).into()));
                    (*k, Ask::Write { shard, map_epoch, table, key, value })
                });
                for (key, answer) in self.answers(at, asks)? {
                    match answer {
                        Answer::Written { seq, .. } => {
                            last = last.max(seq);
                            left.retain(|k| *k != key);
                        }
                        Answer::Refused(Refused::ReadOnly | Refused::Busy | Refused::Behind { .. }) => {}
                        other => panic!("k{key}: {other:?}"),
                    }
                }
                left.is_empty().then_some(())
            });
        }
        last
    }

    /// The row as this zone's own copy has it.
    pub fn read(&self, at: usize, shard: Shard, key: u64) -> Option<String> {
        self.read_at(at, MapEpoch(1), shard, key)
    }

    /// The same, asked by a router with the map of `map_epoch`.
    pub fn read_at(&self, at: usize, map_epoch: MapEpoch, shard: Shard, key: u64) -> Option<String> {
        let (table, key) = ("orders".into(), key_of(shard, key));
        let ask = Ask::Read { shard, map_epoch, table, key, local: true };
        match self.answers(at, std::iter::once((0, ask))).expect("it answers").remove(0).1 {
            Answer::Row { value, .. } => Some(String::from_utf8(value.to_vec()).unwrap()),
            Answer::Absent => None,
            other => panic!("{other:?}"),
        }
    }

    /// `None`: the log is not there, or went away.
    fn answers(&self, at: usize, asks: impl Iterator<Item = (u64, Ask)>) -> Option<Vec<(u64, Answer)>> {
        let mut port = UnixStream::connect(self.data(at).join("port-0.sock")).ok()?;
        port.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (mut out, mut seen, mut part) = (BytesMut::new(), BytesMut::new(), vec![0; 1 << 16]);
        let (mut wanted, mut all) = (0, vec![]);
        for (number, ask) in asks {
            put_ask(&mut out, number, &ask);
            wanted += 1;
        }
        let mut writer = port.try_clone().unwrap();
        // Many large values: the log answers while the rest is still on its way.
        let sending = std::thread::spawn(move || writer.write_all(&out));
        while all.len() < wanted {
            let n = port.read(&mut part).ok().filter(|n| *n > 0)?;
            seen.extend_from_slice(&part[..n]);
            while let Some(answer) = take_answer(&mut seen).unwrap() {
                all.push(answer);
            }
        }
        sending.join().unwrap().ok()?;
        Some(all)
    }
}

/// A row's key says whose it is: rows of a table go by their keys alone.
fn key_of(shard: Shard, key: u64) -> Bytes {
    format!("{}-{key}", shard.0).into()
}

/// Copies a directory whole.
pub fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success(), "cp -a {} {}: {done}", from.display(), to.display());
}

/// A program of another package of this workspace, built beside `ezone`; where it is not there yet, it is built now.
pub fn program(package: &str, name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_ezone")).with_file_name(name);
    if !beside.exists() {
        let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
        let args = ["build", "--quiet", "-p", package, "--bin", name];
        let done = Command::new(env!("CARGO")).args(args).args(profile).status().unwrap();
        assert!(done.success() && beside.exists(), "cargo build -p {package} --bin {name}: {done}");
    }
    beside
}

/// Exit code, what it prints, what it says of errors.
pub fn ezctl(args: &[&str]) -> (i32, String, String) {
    let done = Command::new(program("tools", "ezctl")).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.status.code().unwrap_or(-1), text(&done.stdout), text(&done.stderr))
}
