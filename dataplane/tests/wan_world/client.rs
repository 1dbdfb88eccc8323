//! Writes to one zone's log over its Unix port, each key once, and remembers what was acknowledged.

use crate::process_kit::within;
use bytes::{Bytes, BytesMut};
use replog::port::{Answer, Ask, Refused, put_ask, take_answer};
use shardmap::{MapEpoch, Shard};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const TABLE: Bytes = Bytes::from_static(b"wan");
const EPOCH: MapEpoch = MapEpoch(1);
/// Asks under way at once.
const WINDOW: usize = 512;

/// What a zone acknowledged: for each number, its seq.
pub type Acked = BTreeMap<u64, u64>;

/// The key of a zone's `number`-th write.
pub fn key(zone: &str, number: u64) -> String {
    format!("{zone}-{number}")
}

/// The value of that write: its own key, over and over, so that no other value is it.
pub fn value(zone: &str, number: u64, bytes: usize) -> Bytes {
    let key = key(zone, number) + "/";
    key.bytes().cycle().take(bytes).collect()
}

/// Writes at a rate until it is ended, through restarts of the log.
pub struct Writer {
    ended: Arc<AtomicBool>,
    acked: Arc<Mutex<Acked>>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

#[derive(Clone)]
pub struct Load {
    pub zone: &'static str,
    pub shard: Shard,
    pub per_s: u64,
    pub value_bytes: usize,
}

impl Writer {
    pub fn start(port: PathBuf, load: Load) -> Writer {
        let (ended, acked, count) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Acked>>::default(), Arc::default());
        let shared = (Arc::clone(&ended), Arc::clone(&acked), Arc::clone(&count));
        let thread = thread::spawn(move || {
            let (ended, acked, count) = shared;
            let mut next = 0;
            while !ended.load(Relaxed) {
                // The log may be about to start, or may just have been killed: what was asked and not answered is nobody's promise.
                let lost =
                    UnixStream::connect(&port).and_then(|s| write_on(s, &load, &mut next, &ended, &acked, &count));
                if lost.is_err() {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Writer { ended, acked, count, thread }
    }

    /// How many were acknowledged so far.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Waits until so many more are acknowledged.
    pub fn await_more(&self, more: u64) {
        let until = self.count() + more;
        within("the zone acknowledges writes", || (self.count() >= until).then_some(()));
    }

    pub fn end(self) -> Acked {
        self.ended.store(true, Relaxed);
        self.thread.join().unwrap();
        Arc::into_inner(self.acked).unwrap().into_inner().unwrap()
    }
}

fn write_on(
    mut stream: UnixStream,
    load: &Load,
    next: &mut u64,
    ended: &AtomicBool,
    acked: &Mutex<Acked>,
    count: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let (begun, first) = (Instant::now(), *next);
    let (mut out, mut seen, mut part, mut under_way) = (BytesMut::new(), BytesMut::new(), vec![0; 1 << 16], 0);
    let mut last_look = None;
    loop {
        if ended.load(Relaxed) && last_look.is_none() {
            last_look = Some(Instant::now());
        }
        // What is under way at the end may still be answered; what never is was nobody's promise.
        if under_way == 0 && last_look.is_some() || last_look.is_some_and(|at| at.elapsed() > Duration::from_secs(5)) {
            return Ok(());
        }
        let due = first + (begun.elapsed().as_secs_f64() * load.per_s as f64) as u64;
        while last_look.is_none() && under_way < WINDOW && *next < due {
            let (key, value) = (key(load.zone, *next).into(), value(load.zone, *next, load.value_bytes));
            let (table, key, value) = (TABLE, Some(key), Some(value));
            put_ask(&mut out, *next, &Ask::Write { shard: load.shard, map_epoch: EPOCH, table, key, value });
            (*next, under_way) = (*next + 1, under_way + 1);
        }
        stream.write_all(&out)?;
        out.clear();
        match stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => seen.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        while let Some((number, answer)) = take_answer(&mut seen).map_err(std::io::Error::other)? {
            under_way -= 1;
            match answer {
                Answer::Written { seq, .. } => {
                    acked.lock().unwrap().insert(number, seq);
                    count.fetch_add(1, Relaxed);
                }
                Answer::Refused(Refused::Busy | Refused::ReadOnly) => {} // said plainly: not written
                other => panic!("{}: {other:?}", load.zone),
            }
        }
    }
}

/// The rows of these writes as a zone's copy has them; fails at the first that is not as it was written.
pub fn read_all(port: &Path, load: &Load, numbers: &[u64]) {
    let mut stream = UnixStream::connect(port).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (mut seen, mut part) = (BytesMut::new(), vec![0; 1 << 16]);
    for some in numbers.chunks(WINDOW) {
        let mut out = BytesMut::new();
        for number in some {
            let key = key(load.zone, *number).into();
            put_ask(
                &mut out,
                *number,
                &Ask::Read { shard: load.shard, map_epoch: EPOCH, table: TABLE, key, local: true },
            );
        }
        stream.write_all(&out).unwrap();
        let mut left = some.len();
        while left > 0 {
            while let Some((number, answer)) = take_answer(&mut seen).unwrap() {
                let Answer::Row { value: row, .. } = answer else {
                    panic!("{} of {}: {answer:?}", key(load.zone, number), port.display())
                };
                assert!(row == value(load.zone, number, load.value_bytes), "{}: {row:?}", key(load.zone, number));
                left -= 1;
            }
            if left > 0 {
                let n = stream.read(&mut part).unwrap();
                assert!(n > 0, "the log closed the port");
                seen.extend_from_slice(&part[..n]);
            }
        }
    }
}
