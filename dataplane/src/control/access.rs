//! Writes the access log: takes records out of the cores' rings, formats them, and appends them to a file, on a thread of its own.
//!
//! A core never waits for it: what finds its ring full is dropped there and counted, and so is what the disk does not take.
//! The file is opened anew when asked (`POST /reopen`) and when its name leads elsewhere, so logrotate needs no signal.
//!
//! ```text
//! 127.0.0.1:51234 - - [21/Nov/2026:06:38:44.123 +0000] "GET /api/x" 200 512 in=178 rt=0.001204 ut=0.001100 held=0.000000
//!    up=127.0.0.1:3000 service="/api/" zone=bj shard=341 epoch=7 retries=0 end=ok why="" trace=-
//! ```
//!
//! That is one line: client, time, request, status and bytes out stand where the common log format has them; then bytes in;
//! request, upstream and hold time in seconds (`-`: no upstream). In quoted texts all but printable ASCII, and `"` and `\`,
//! is written as `\xHH`: no client can begin a line of its own. JSON has one object to a line, with the same names in full.

use super::admin::Shown;
use crate::config::{AccessFormat, AccessLog};
use crate::router::access::{self, Record};
use crate::router::{Settings, Shared};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use rtrb::{Consumer, RingBuffer};
use serde_json::json;
use std::fmt::Write as _;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between looks at the rings.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between looks whether the file's name leads elsewhere.
const MOVED_EVERY: Duration = Duration::from_secs(1);
/// Formatted bytes that are written at once.
const WRITE_BYTES: usize = 256 * 1024;

/// What the writer shows.
#[derive(Default)]
pub struct Figures {
    /// Records that are in the file.
    pub written: AtomicU64,
    /// Records that the disk did not take.
    pub lost: AtomicU64,
    reopen: AtomicBool,
    stop: AtomicBool,
}

impl Figures {
    /// Asks for the file to be opened anew.
    pub fn reopen(&self) {
        self.reopen.store(true, Relaxed);
    }
}

/// `POST /reopen`: opens the file anew, for whoever has moved it.
pub fn routes() -> Router<Shown> {
    Router::new().route(
        "/reopen",
        post(async |State(s): State<Shown>| match &s.access {
            Some(log) => {
                log.reopen();
                (StatusCode::OK, "the access log is opened anew\n")
            }
            None => (StatusCode::NOT_FOUND, "this router has no [access_log]\n"),
        }),
    )
}

/// The log's thread, until it is dropped: then what is in the rings is written first.
pub struct Writer {
    figures: Arc<Figures>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Opens the file, leaves each core its end of a ring, and begins. The caller then wakes the cores.
    pub fn start(log: &AccessLog, shared: &Arc<Shared>) -> Result<Writer, String> {
        let file = open(&log.path).map_err(|e| format!("[access_log] path = {}: {e}", log.path.display()))?;
        let mut rings = vec![];
        for core in 0..shared.cores() {
            let (producer, consumer) = RingBuffer::new(log.buffer_bytes);
            shared.leave_access(core, producer);
            rings.push(consumer);
        }
        let figures = Arc::new(Figures::default());
        let sink =
            Sink { path: log.path.clone(), file: Some(file), torn: false, failing: false, figures: figures.clone() };
        let (shared, format) = (shared.clone(), log.format);
        let work = move || run(rings, sink, format, &shared);
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(work);
        Ok(Writer { figures, thread: Some(thread.map_err(|e| format!("the access log's thread: {e}"))?) })
    }

    /// What it shows, and how it is asked to open its file anew.
    pub fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.figures.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it has said what was wrong
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn run(mut rings: Vec<Consumer<u8>>, mut sink: Sink, format: AccessFormat, shared: &Shared) {
    let (mut lines, mut looked) = (Lines { format, text: String::new(), records: 0 }, Instant::now());
    loop {
        // Read first: what was in a ring when the end was asked for is still written.
        let stop = sink.figures.stop.load(Relaxed);
        let mut idle = true;
        for (core, ring) in rings.iter_mut().enumerate() {
            idle &= !take_batches(ring, core, shared, |record, wall_us, names| {
                lines.put(record, wall_us, names);
                if lines.text.len() >= WRITE_BYTES {
                    sink.write(&mut lines);
                }
            });
        }
        sink.write(&mut lines);
        if stop {
            return;
        }
        if sink.figures.reopen.swap(false, Relaxed) || (looked.elapsed() >= MOVED_EVERY && sink.moved()) {
            sink.reopen();
        }
        if looked.elapsed() >= MOVED_EVERY {
            looked = Instant::now();
        }
        if idle {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// What numbers of a record are called.
struct Names {
    services: Vec<String>,
    settings: Option<Arc<Settings>>,
}

impl Names {
    fn service(&self, place: u16) -> &str {
        self.services.get(usize::from(place)).map_or("none", String::as_str)
    }
    fn zone(&self, zone: Option<u8>) -> &str {
        self.settings.as_ref().map_or("none", |s| s.name(zone.map(shardmap::Zone)))
    }
}

/// Gives each record that waits in `ring` to `each`, with the time of its end in microseconds since 1970; was there any?
fn take_batches(
    ring: &mut Consumer<u8>,
    core: usize,
    shared: &Shared,
    mut each: impl FnMut(&Record, u64, &Names),
) -> bool {
    let waiting = ring.slots();
    if waiting == 0 {
        return false;
    }
    let Ok(chunk) = ring.read_chunk(waiting) else { return false };
    let (first, second) = chunk.as_slices();
    let bytes = [first, second].concat();
    let adopted = shared.adopted(core);
    let names = Names {
        services: adopted.figures.services.iter().map(|s| s.name.clone()).collect(),
        settings: adopted.settings,
    };
    let mut rest = bytes.as_slice();
    while let Some((wall_us, us, mut records)) = access::batch(&mut rest) {
        while let Some(record) = access::take(&mut records) {
            let ago = us.saturating_sub(record.us);
            each(&record, wall_us.saturating_sub(ago), &names);
        }
    }
    // The core hands over whole batches.
    chunk.commit_all();
    true
}

/// Formatted records that are not written yet.
struct Lines {
    format: AccessFormat,
    text: String,
    records: u64,
}

impl Lines {
    fn put(&mut self, r: &Record, wall_us: u64, names: &Names) {
        match self.format {
            AccessFormat::Text => text(&mut self.text, r, wall_us, names),
            AccessFormat::Json => self.text.push_str(&in_json(r, wall_us, names)),
        }
        self.text.push('\n');
        self.records += 1;
    }
}

fn text(out: &mut String, r: &Record, wall_us: u64, names: &Names) {
    let address = |a: Option<std::net::SocketAddr>| a.map_or("-".into(), |a| a.to_string());
    let number = |n: Option<u16>| n.map_or("-".into(), |n| n.to_string());
    let seconds = |us: u64| format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    let _ = write!(out, "{} - - [{}] \"", address(r.client), common_time(wall_us));
    escape(out, if r.method.is_empty() { b"-" } else { &r.method });
    out.push(' ');
    escape(out, if r.path.is_empty() { b"-" } else { &r.path });
    let _ = write!(
        out,
        "\" {} {} in={} rt={} ut={} held={} up={} service=\"",
        r.status,
        r.bytes_out,
        r.bytes_in,
        seconds(r.whole_us),
        r.upstream_us.map_or("-".into(), seconds),
        seconds(r.held_us),
        address(r.upstream),
    );
    escape(out, names.service(r.service).as_bytes());
    let (zone, shard, end) = (names.zone(r.zone), number(r.shard), r.ended.name());
    let _ = write!(out, "\" zone={zone} shard={shard} epoch={} retries={} end={end} why=\"", r.epoch, r.retries);
    escape(out, &r.reason);
    let _ = write!(out, "\" trace={}", trace_id(r).as_deref().unwrap_or("-"));
}

/// `\xHH` for all but printable ASCII, and for what would end or escape a quoted text.
fn escape(out: &mut String, bytes: &[u8]) {
    for b in bytes {
        match b {
            b'"' | b'\\' => drop(write!(out, "\\x{b:02X}")),
            b' '..=b'~' => out.push(char::from(*b)),
            _ => drop(write!(out, "\\x{b:02X}")),
        }
    }
}

fn in_json(r: &Record, wall_us: u64, names: &Names) -> String {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    json!({
        "time": iso_time(wall_us), "client": r.client, "method": lossy(&r.method), "path": lossy(&r.path),
        "status": r.status, "bytes_in": r.bytes_in, "bytes_out": r.bytes_out,
        "request_us": r.whole_us, "upstream_us": r.upstream_us, "held_us": r.held_us, "upstream": r.upstream,
        "service": names.service(r.service), "zone": names.zone(r.zone), "shard": r.shard, "map_epoch": r.epoch,
        "retries": r.retries, "outcome": r.ended.name(), "reason": lossy(&r.reason), "trace_id": trace_id(r),
    })
    .to_string()
}

fn trace_id(r: &Record) -> Option<String> {
    let hex = |all: String, b: &u8| all + &format!("{b:02x}");
    (r.trace != [0; 16]).then(|| r.trace.iter().fold(String::new(), hex))
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Year, month (from 0) and day (from 1) of a number of days since 1970.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month, days + 1)
}

/// Hours, minutes, seconds and milliseconds of a day.
fn clock(wall_us: u64) -> String {
    let ms = wall_us / 1000 % 86_400_000;
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

fn iso_time(wall_us: u64) -> String {
    let (year, month, day) = date(wall_us / 86_400_000_000);
    format!("{year:04}-{:02}-{day:02}T{}Z", month + 1, clock(wall_us))
}

fn common_time(wall_us: u64) -> String {
    let (year, month, day) = date(wall_us / 86_400_000_000);
    format!("{day:02}/{}/{year:04}:{} +0000", MONTHS[month], clock(wall_us))
}

/// The file, and what goes wrong with it.
struct Sink {
    path: PathBuf,
    file: Option<File>,
    /// The last line in the file is not whole.
    torn: bool,
    /// It was said that it cannot be written.
    failing: bool,
    figures: Arc<Figures>,
}

impl Sink {
    /// Writes all of `lines`, or drops and counts them.
    fn write(&mut self, lines: &mut Lines) {
        if lines.text.is_empty() {
            return;
        }
        match self.append(&lines.text) {
            Ok(()) => {
                self.figures.written.fetch_add(lines.records, Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("access log {}: can be written again", self.path.display());
                }
            }
            Err(e) => {
                self.figures.lost.fetch_add(lines.records, Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!("access log {}: {e}; lines are dropped and counted", self.path.display());
                }
            }
        }
        lines.text.clear();
        lines.records = 0;
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(open(&self.path)?);
        }
        let file = self.file.as_mut().expect("opened above");
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(n) => {
                    rest = &rest[n..];
                    self.torn = text.as_bytes()[..text.len() - rest.len()].last() != Some(&b'\n');
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Does the file's name lead to another file than the one that is open, or to none?
    fn moved(&self) -> bool {
        let id = |m: Metadata| (m.dev(), m.ino());
        let named = std::fs::metadata(&self.path).map(id).ok();
        let have = self.file.as_ref().and_then(|f| f.metadata().map(id).ok());
        named != have
    }

    fn reopen(&mut self) {
        match open(&self.path) {
            Ok(file) => (self.file, self.torn) = (Some(file), false),
            // The old file goes on: it is better than none.
            Err(e) => tracing::warn!("access log {} cannot be opened anew: {e}", self.path.display()),
        }
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
