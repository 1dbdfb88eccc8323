//! Our two logs, one at each end of the link: started, written to, looked at, ended.

use super::lag::Mark;
use crate::compare::page;
use crate::sys;
use crate::wan::{Side, Wan};
use bytes::{Bytes, BytesMut};
use replog::port::{Answer, Ask, Refused, put_ask, take_answer};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde_json::Value;
use shardmap::{MapEpoch, Shard, Zone};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const NAMES: [&str; 2] = ["bj", "sh"];
/// A shard of bj in the map of the demo, and its epoch.
pub const SHARD: Shard = Shard(121);
const EPOCH: MapEpoch = MapEpoch(1);
/// bj is the first zone of that map.
const ORIGIN: Zone = Zone(0);
const START_MAX: Duration = Duration::from_secs(60);
/// Asks under way at once.
const WINDOW: usize = 1024;
/// Rows that are written in turn.
pub const KEYS: u64 = 100_000;

pub struct Zones {
    children: Vec<Child>,
    dir: PathBuf,
}

/// A program that ends with this.
impl Drop for Zones {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill().and_then(|()| child.wait());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What is written: how much, and how fast.
#[derive(Clone, Copy)]
pub struct Load {
    pub value_bytes: usize,
    /// Random bytes, which nothing makes shorter; otherwise JSON.
    pub random: bool,
    /// `None`: as fast as the log answers.
    pub per_s: Option<f64>,
}

impl Zones {
    pub fn start(
        wan: &Wan,
        ezone: &str,
        map: &str,
        [congestion, compress]: [&str; 2],
        dir: &Path,
    ) -> Result<Zones, String> {
        let mut zones = Zones { children: vec![], dir: dir.to_owned() };
        let map = fs::canonicalize(map).map_err(|e| format!("--map {map}: {e}"))?;
        for (i, side) in wan.sides.iter().enumerate() {
            let data = dir.join(NAMES[i]);
            fs::create_dir_all(&data).map_err(|e| format!("{}: {e}", data.display()))?;
            let text = format!(
                "[node]\nzone = \"{}\"\ndata_dir = {:?}\n[map]\nfile = {:?}\n[log]\nlisten = \"{}:7000\"\nadmin = \"127.0.0.1:7001\"\n\
                 allow_plain_links = true\ncongestion = \"{congestion}\"\ncompress = \"{compress}\"\ncores = [{i}]\nstreams = 1\n[zones.{}]\nrouter = \"127.0.0.1:9\"\nlink = \"{}:7000\"\n",
                NAMES[i],
                data.display().to_string(),
                map.display().to_string(),
                side.address,
                NAMES[1 - i],
                wan.sides[1 - i].address
            );
            let (config, said) = (data.join("node.toml"), data.join("said"));
            let out = fs::write(&config, text).and_then(|()| File::create(&said)).map_err(|e| e.to_string())?;
            let mut command = Command::new(ezone);
            command.args(["log", "--config"]).arg(&config).stdin(Stdio::null());
            command.stdout(out.try_clone().map_err(|e| e.to_string())?).stderr(out);
            side.hold(&mut command).map_err(|e| e.to_string())?;
            zones.children.push(command.spawn().map_err(|e| format!("{ezone}: {e}"))?);
        }
        let (until, mut writer) = (Instant::now() + START_MAX, None);
        while Instant::now() < until && writer.is_none() {
            // A few only: the other zone's figures of its lag begin with these.
            writer = zones.writer(Load { value_bytes: 100, random: false, per_s: Some(500.0) }).ok();
            for (child, name) in zones.children.iter_mut().zip(NAMES) {
                if let Ok(Some(status)) = child.try_wait() {
                    let said = fs::read_to_string(dir.join(name).join("said")).unwrap_or_default();
                    return Err(format!("the log of {name} ended ({status}): {said}"));
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        let said = || fs::read_to_string(dir.join("bj/said")).unwrap_or_default();
        let mut writer = writer.ok_or_else(|| format!("the log does not start: {}", said()))?;
        while Instant::now() < until {
            writer.write_for(Duration::from_millis(20))?;
            if look(&wan.sides[1], "/status").is_ok_and(|s| s.durable > 0) {
                return Ok(zones);
            }
        }
        Err(format!("the log ships nothing to the other zone: {}", said()))
    }

    pub fn writer(&self, load: Load) -> Result<Writer, String> {
        let port = self.dir.join("bj/port-0.sock");
        let stream = UnixStream::connect(&port).map_err(|e| format!("{}: {e}", port.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(1))).map_err(|e| e.to_string())?;
        Ok(Writer { stream, load, next: 0, under_way: 0, committed: vec![], begun: None })
    }
}

pub struct Writer {
    stream: UnixStream,
    load: Load,
    next: u64,
    under_way: usize,
    /// When the answers came, and the last seq in each piece of them.
    pub committed: Vec<Mark>,
    begun: Option<Instant>,
}

impl Writer {
    /// The moment from which `committed` counts.
    pub fn begin(&mut self, at: Instant) {
        self.begun = Some(at);
        self.committed.clear();
    }

    /// Writes for so long, and waits until all of it has been answered.
    pub fn write_for(&mut self, time: Duration) -> Result<(), String> {
        let (from, first) = (Instant::now(), self.next);
        let begun = *self.begun.get_or_insert(from);
        let (mut out, mut seen, mut part) = (BytesMut::new(), BytesMut::new(), vec![0; 64 << 10]);
        loop {
            let ended = from.elapsed() >= time;
            if ended && self.under_way == 0 {
                return Ok(());
            }
            let due = self.load.per_s.map_or(u64::MAX, |rate| first + (from.elapsed().as_secs_f64() * rate) as u64);
            while !ended && self.under_way < WINDOW && self.next < due {
                put_ask(&mut out, self.next, &self.ask());
                (self.next, self.under_way) = (self.next + 1, self.under_way + 1);
            }
            self.stream.write_all(&out).map_err(|e| format!("the port: {e}"))?;
            out.clear();
            match self.stream.read(&mut part) {
                Ok(0) => return Err("the log closed the port".into()),
                Ok(n) => seen.extend_from_slice(&part[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(e) => return Err(format!("the port: {e}")),
            }
            let at_ms = begun.elapsed().as_secs_f64() * 1e3;
            while let Some((_, answer)) = take_answer(&mut seen).map_err(|e| e.to_string())? {
                self.under_way -= 1;
                match answer {
                    Answer::Written { seq, .. } => self.committed.push(Mark { at_ms, upto: seq }),
                    Answer::Refused(Refused::Busy) => {} // its own bound; another number is written
                    other => return Err(format!("the log answers {other:?}")),
                }
            }
        }
    }

    fn ask(&self) -> Ask {
        let number = self.next;
        let value =
            if self.load.random { noise(number, self.load.value_bytes) } else { order(number, self.load.value_bytes) };
        let key = Some(Bytes::from(format!("row-{}", number % KEYS)));
        Ask::Write { shard: SHARD, map_epoch: EPOCH, table: Bytes::from_static(b"orders"), key, value: Some(value) }
    }
}

fn noise(seed: u64, bytes: usize) -> Bytes {
    let mut random = crate::random::Random(seed);
    let words = (0..bytes.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes());
    words.take(bytes).collect()
}

/// An order as a shop's system would store it, of about so many bytes.
pub fn order(number: u64, bytes: usize) -> Bytes {
    let mut random = crate::random::Random(number);
    let mut text = format!(
        "{{\"order\":\"{number:012}\",\"customer\":\"c{:08}\",\"status\":\"paid\",\"currency\":\"CNY\",\"lines\":[",
        random.below(100_000_000)
    );
    while text.len() + 90 < bytes {
        let (sku, quantity, cents) = (random.below(50_000), 1 + random.below(4), random.below(100_000));
        text += &format!(
            "{{\"sku\":\"sku-{sku:06}\",\"quantity\":{quantity},\"price_cents\":{cents},\"warehouse\":\"bj-03\"}},"
        );
    }
    text += "{}]}";
    Bytes::from(text)
}

/// How far one zone has bj's log, at one moment.
#[derive(Clone, Copy)]
pub struct There {
    pub durable: u64,
    pub applied: u64,
}

/// Asks the log at this end; only in a thread that may stay there, or from one of its own.
pub fn look(side: &Side, path: &str) -> Result<There, String> {
    thread::scope(|scope| {
        let ask = || {
            side.enter().map_err(|e| e.to_string())?;
            look_here(path)
        };
        scope.spawn(ask).join().expect("looking does not panic")
    })
}

fn look_here(path: &str) -> Result<There, String> {
    let status = page_here(path)?;
    let stream = &status["streams"][0];
    let seq = |of: &str| stream[of]["bj"].as_u64().unwrap_or(0);
    Ok(There { durable: seq("mirrored"), applied: seq("applied") })
}

fn page_here(path: &str) -> Result<Value, String> {
    page::fetch(SocketAddr::from(([127, 0, 0, 1], 7001)), path)
}

/// What the log at this end has measured itself, of every record since it began: milliseconds from the append at the origin until
/// durable here, p50 and p99.
pub fn durable_lag(side: &Side) -> Result<[f64; 2], String> {
    let ask = || side.enter().map_err(|e| e.to_string()).and_then(|()| page_here("/lag"));
    let lag = thread::scope(|scope| scope.spawn(ask).join().expect("looking does not panic"))?;
    let ms = |name: &str| lag["bj"]["durable"][name].as_f64().map(|us| us / 1e3);
    ms("p50_us").zip(ms("p99_us")).map(|(p50, p99)| [p50, p99]).ok_or_else(|| format!("no lag in {lag}"))
}

/// Durable positions at b over time, until it is ended. Each look costs the log a page, so there are not many.
pub fn watch_log(side: &Side, begun: Instant, ended: &AtomicBool) -> Result<Vec<Mark>, String> {
    side.enter().map_err(|e| e.to_string())?;
    watch(begun, ended, Duration::from_millis(20), || look_here("/status").map(|there| there.durable))
}

/// Visible positions at b over time, until it is ended: a query each millisecond, as MariaDB gets it.
pub fn watch_store(dir: &Path, begun: Instant, ended: &AtomicBool) -> Result<Vec<Mark>, String> {
    sys::exact_timers();
    let path = dir.join(NAMES[1]).join("store/0.db");
    let said = |e: rusqlite::Error| format!("{}: {e}", path.display());
    let db = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(said)?;
    let mut query = db.prepare("select seq from applied where zone = ?").map_err(said)?;
    watch(begun, ended, Duration::from_millis(1), || {
        let seq: Option<u64> = query.query_row([ORIGIN.0], |row| row.get(0)).optional().map_err(said)?;
        Ok(seq.unwrap_or(0))
    })
}

/// Looks until it is ended.
pub fn watch(
    begun: Instant,
    ended: &AtomicBool,
    every: Duration,
    mut look: impl FnMut() -> Result<u64, String>,
) -> Result<Vec<Mark>, String> {
    let mut seen = vec![];
    while !ended.load(Ordering::Relaxed) {
        let upto = look()?;
        seen.push(Mark { at_ms: begun.elapsed().as_secs_f64() * 1e3, upto });
        thread::sleep(every);
    }
    Ok(seen)
}
