//! Ours alone, while the log of the same node ships to another zone as fast as it can, and while it does not.

use super::figures::{Figures, What, Who};
use super::loads::{SMALL, half_of_most};
use super::page;
use super::peers::{self, Running};
use super::rig::Rig;
use super::{Router, order};
use crate::locate;
use crate::schedule::Pace;
use bytes::{Bytes, BytesMut};
use replog::port::{Answer, Ask, put_ask, take_answer};
use shardmap::{MapEpoch, Shard};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 64;
/// Writes under way at once, and bytes of each value.
const WINDOW: usize = 512;
const VALUE_BYTES: usize = 1024;
/// Rows that are written in turn.
const KEYS: u64 = 10_000;
/// How long two logs may take to find each other and take the first write.
const START_MAX: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(50);

/// Where the log runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// On the other core, beside the load.
    Split,
    /// On the router's core, at the lowest priority.
    Shared,
}

/// What was shipped while it was measured.
#[derive(Debug, Default, Clone, Copy)]
pub struct Shipped {
    pub seconds: f64,
    /// Records durable here, and those durable in the other zone.
    pub written: u64,
    pub mirrored: u64,
    pub rate: f64,
}

/// CPU of a request and the router's own time for it: the log idle, idle again, and at full speed.
pub fn log(
    rig: &mut Rig,
    args: &Router,
    who: &[Who],
    figures: &mut Figures,
    layout: Layout,
) -> Result<Shipped, String> {
    let (cpu, own) = match layout {
        Layout::Split => (What::SplitCpuUs, What::SplitOwnP99Us),
        Layout::Shared => (What::SharedCpuUs, What::SharedOwnP99Us),
    };
    let place = Place::of(args)?;
    let mut shipped =
        Shipped { rate: (half_of_most(rig, args, who, figures, CONNECTIONS)? / 2.0).round(), ..Shipped::default() };
    for round in 0..args.rounds() {
        let zones = Zones::start(rig, args, layout)?;
        zones.await_first_write(&place)?;
        let mut under = rig.start(Who::Ours, SMALL, &args.map_source()?, &[rig.proxy_core])?;
        for who in order(&[Who::Ours, Who::OursAgain, Who::OursDisturbed], round) {
            let (before, mirrored, begun) = (own_times(under.admin)?, zones.mirrored()?, Instant::now());
            let writer = (who == Who::OursDisturbed).then(|| Writer::start(&zones.port(), place));
            let writer = writer.transpose()?;
            let sample = rig.measure(&mut under, &args.load(Pace::Even { rate: shipped.rate }, CONNECTIONS))?;
            let after = own_times(under.admin)?;
            if let Some(writer) = writer {
                shipped.seconds += begun.elapsed().as_secs_f64();
                shipped.mirrored += zones.mirrored()?.saturating_sub(mirrored);
                shipped.written += writer.end()?;
            }
            figures.put(cpu, CONNECTIONS as u64, who, round, sample.cpu_us);
            if let Some(us) = before.zip(after).and_then(|(b, a)| page::quantile_us(&b, &a, 0.99)) {
                figures.put(own, CONNECTIONS as u64, who, round, us);
            }
        }
        rig.end(under);
        eprintln!("  round {} of {}", round + 1, args.rounds());
    }
    Ok(shipped)
}

/// The router's own time: first byte in to last byte out without the wait for the upstream; `None`: it does not tell.
fn own_times(admin: SocketAddr) -> Result<Option<page::Buckets>, String> {
    Ok(page::buckets(&page::fetch(admin, "/histograms")?, "ezone_router_own_seconds"))
}

/// Where the writes go.
#[derive(Clone, Copy)]
struct Place {
    shard: Shard,
    epoch: MapEpoch,
}

impl Place {
    /// A shard of bj in the map file.
    fn of(args: &Router) -> Result<Place, String> {
        let map = locate::read_map(Path::new(&args.map))?;
        let bj = map.zone_named("bj").ok_or("the map has no zone bj")?;
        let shard = map.shards().find(|(s, _)| map.owner(*s) == Some(bj)).ok_or("zone bj owns no shard")?.0;
        Ok(Place { shard, epoch: map.epoch() })
    }
}

/// The logs of two zones, linked.
struct Zones {
    _running: [Running; 2],
    dir: PathBuf,
    /// Of the zone that is shipped to.
    admin: SocketAddr,
}

impl Drop for Zones {
    fn drop(&mut self) {
        // The logs may still write as they end: what is left goes with the rig's directory.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Zones {
    fn start(rig: &Rig, args: &Router, layout: Layout) -> Result<Zones, String> {
        let dir = rig.dir.join("zones");
        let _ = fs::remove_dir_all(&dir); // an earlier round's
        let links = [peers::free_address()?, peers::free_address()?];
        let admins = [peers::free_address()?, peers::free_address()?];
        let program = args.ours.split_whitespace().next().unwrap_or("ezone");
        let start = |at: usize| {
            let (name, other) = [("bj", "sh"), ("sh", "bj")][at];
            let core = if at == 0 && layout == Layout::Shared { rig.proxy_core } else { rig.load_core };
            let data = dir.join(name);
            fs::create_dir_all(&data).map_err(|e| format!("{}: {e}", data.display()))?;
            let text = format!(
                "[node]\nzone = \"{name}\"\ndata_dir = {:?}\n[map]\n{}\n[log]\nlisten = \"{}\"\nadmin = \"{}\"\n\
                 cores = [{}]\nstreams = 1\n[zones.{other}]\nlink = \"{}\"\n",
                data.display().to_string(),
                args.map_source()?,
                links[at],
                admins[at],
                core.id,
                links[1 - at]
            );
            let config = data.join("node.toml");
            fs::write(&config, text).map_err(|e| format!("{}: {e}", config.display()))?;
            let command = format!("{program} log --config {}", config.display());
            Running::start(&command, &[core], &rig.dir.join(format!("log-{name}.said")), core == rig.proxy_core)
        };
        Ok(Zones { _running: [start(0)?, start(1)?], admin: admins[1], dir: dir.clone() })
    }

    /// The Unix socket of bj's log.
    fn port(&self) -> PathBuf {
        self.dir.join("bj/port-0.sock")
    }

    fn await_first_write(&self, place: &Place) -> Result<(), String> {
        let until = Instant::now() + START_MAX;
        loop {
            let wrote = UnixStream::connect(self.port()).map_err(|e| e.to_string()).and_then(|s| write_one(s, place));
            match wrote {
                Ok(()) if self.mirrored().is_ok_and(|seq| seq > 0) => return Ok(()),
                Err(why) if Instant::now() > until => return Err(format!("the log takes no write: {why}")),
                Ok(()) if Instant::now() > until => return Err("the log ships nothing to the other zone".into()),
                Ok(()) | Err(_) => thread::sleep(RETRY),
            }
        }
    }

    /// The last record of bj's that is durable in sh.
    fn mirrored(&self) -> Result<u64, String> {
        let status = page::fetch(self.admin, "/status")?;
        status["streams"][0]["mirrored"]["bj"].as_u64().ok_or_else(|| format!("no mirror of bj in {status}"))
    }
}

fn ask(number: u64, place: &Place) -> Ask {
    Ask::Write {
        shard: place.shard,
        map_epoch: place.epoch,
        table: Bytes::from_static(b"bench"),
        key: Some(Bytes::from(format!("row-{}", number % KEYS))),
        value: Some(Bytes::from(vec![b'x'; VALUE_BYTES])),
    }
}

fn write_one(mut stream: UnixStream, place: &Place) -> Result<(), String> {
    stream.set_read_timeout(Some(START_MAX)).map_err(|e| e.to_string())?;
    let (mut out, mut seen, mut part) = (BytesMut::new(), BytesMut::new(), [0; 4096]);
    put_ask(&mut out, 0, &ask(0, place));
    stream.write_all(&out).map_err(|e| e.to_string())?;
    loop {
        match take_answer(&mut seen).map_err(|e| e.to_string())? {
            Some((_, Answer::Written { .. })) => return Ok(()),
            Some((_, other)) => return Err(format!("{other:?}")),
            None => {}
        }
        match stream.read(&mut part).map_err(|e| e.to_string())? {
            0 => return Err("it closed the port".into()),
            n => seen.extend_from_slice(&part[..n]),
        }
    }
}

/// Writes as fast as the log answers, from a thread of its own.
struct Writer {
    thread: thread::JoinHandle<Result<(), String>>,
    ended: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
}

impl Writer {
    fn start(port: &Path, place: Place) -> Result<Writer, String> {
        let stream = UnixStream::connect(port).map_err(|e| format!("{}: {e}", port.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(100))).map_err(|e| e.to_string())?;
        let (ended, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let shared = (ended.clone(), written.clone());
        let thread = thread::spawn(move || write_on(stream, &place, &shared.0, &shared.1));
        Ok(Writer { thread, ended, written })
    }

    /// Ends it; how many records became durable.
    fn end(self) -> Result<u64, String> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer does not panic")?;
        Ok(self.written.load(Ordering::Relaxed))
    }
}

fn write_on(mut stream: UnixStream, place: &Place, ended: &AtomicBool, written: &AtomicU64) -> Result<(), String> {
    let (mut out, mut seen, mut part) = (BytesMut::new(), BytesMut::new(), vec![0; 64 << 10]);
    let (mut number, mut under_way) = (0, 0);
    while !ended.load(Ordering::Relaxed) {
        while under_way < WINDOW {
            put_ask(&mut out, number, &ask(number, place));
            (number, under_way) = (number + 1, under_way + 1);
        }
        stream.write_all(&out).map_err(|e| format!("the port: {e}"))?;
        out.clear();
        match stream.read(&mut part) {
            Ok(0) => return Err("the log closed the port".into()),
            Ok(n) => seen.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(e) => return Err(format!("the port: {e}")),
        }
        while let Some((_, answer)) = take_answer(&mut seen).map_err(|e| e.to_string())? {
            under_way -= 1;
            match answer {
                Answer::Written { .. } => written.store(written.load(Ordering::Relaxed) + 1, Ordering::Relaxed),
                // Its own bound; it is asked again.
                Answer::Refused(replog::port::Refused::Busy) => {}
                other => return Err(format!("the log answers {other:?}")),
            }
        }
    }
    Ok(())
}
