//! A stream or a mirror on a glommio executor: carries out the orders of its [`Log`] and wakes those who wait.
//!
//! A [`StreamLog`] is a handle that any task of its executor may clone. Each order runs as a task of its own; when it is done it
//! reports to the machine and drains the next orders. One more task keeps the machine's deadlines.

mod disk;
mod error;
mod mend;
mod prepare;
mod reader;
mod scrub;
mod waiter;

pub use error::Error;
pub use scrub::{Damage, Scrub, Scrubbed};
pub use waiter::Durable;

use super::dir;
use super::{lag, now_ns};
use crate::batch::Batch;
use crate::log::{Config, Failed, Log, Opened, Order};
use crate::open::{Floor, Torn, Verdict};
use crate::record::Record;
use disk::Current;
use glommio::io::DmaFile;
use hdrhistogram::Histogram;
use prepare::{Prepared, prepare};
use reader::bounded;
use shardmap::Zone;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use waiter::{Waiter, Waiting};

/// A file that says that damage was read: the next open reads everything.
const DAMAGED: &str = "DAMAGED";
/// How much is zeroed, or read back, at a time.
const CHUNK: usize = 512 * 1024;
/// The machine is looked at no less often, so that no deadline is missed that an append has set meanwhile: the idle marker
/// follows after as long at least. Whoever runs an executor ends the sleeps that glommio should not have begun.
const TICK: Duration = Duration::from_nanos(crate::limits::MARKER_AFTER_NS);

/// Which log to open, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The zone that writes the stream.
    pub zone: Zone,
    /// The stream's number in that zone.
    pub stream: u32,
    /// Written here, or a copy.
    pub kind: Kind,
    /// Length of a segment file.
    pub segment_bytes: u64,
    /// What the store and the peers know to be durable.
    pub floor: Floor,
    /// How sealed segments are read again.
    pub scrub: Scrub,
}

/// Written here, or a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// This node writes it.
    Origin,
    /// A copy; the incarnation is what the origin said, if it has said so yet.
    Mirror(Option<u128>),
}

/// A handle on one log; clones share it.
#[derive(Clone)]
pub struct StreamLog {
    shared: Rc<Shared>,
}

struct Shared {
    dir: PathBuf,
    started: (Instant, u64),
    state: RefCell<State>,
}

struct State {
    log: Log,
    current: Option<Rc<Current>>,
    /// The durable batches of late, oldest first, without a gap.
    recent: VecDeque<Batch>,
    recent_bytes: usize,
    waiters: Vec<Rc<Waiter>>,
    /// How often appends were taken back for want of room.
    refusals: u64,
    /// More has become durable than those who wait for it were told.
    untold: bool,
    reader: Option<(String, Rc<DmaFile>)>,
    last_failure: String,
    /// What has failed since the last segment was begun, and how: it is told once.
    said: BTreeSet<(&'static str, Option<i32>)>,
    scrubbed: Scrubbed,
    /// Of a mirror: microseconds from the append of a record at its origin until it was durable here.
    lag_us: Option<Histogram<u64>>,
    /// What the first segment's making came to.
    begun: Option<Result<(), Failed>>,
    lock: Option<File>,
}

impl StreamLog {
    /// Opens or creates the log in `dir`: reads it, judges it, quarantines a torn end, begins a new segment.
    pub async fn open(dir: &Path, options: Options) -> Result<(StreamLog, Opened, Option<Torn>), Error> {
        // glommio opens a directory by an absolute path alone.
        let dir = std::path::absolute(dir).map_err(|source| Error::Io { dir: dir.to_owned(), source })?;
        let Prepared { lock, found, spares, random } = {
            let dir = dir.clone();
            glommio::executor().spawn_blocking(move || prepare(&dir, options)).await?
        };
        // glommio reads the first block of the first file that it opens on a device to learn whether the device can be
        // polled, and remembers that for the process. A new, empty file answers wrongly: each later read fails then.
        let probe = async { DmaFile::open(dir.join("LOCK")).await?.close().await };
        probe.await.map_err(|e| Error::Io { dir: dir.clone(), source: e.into() })?;
        let torn = if let Verdict::Torn(torn) = &found.verdict { Some(torn.clone()) } else { None };
        let before = found.segments.last().filter(|s| !s.is_empty()).map(|s| (s.name.clone(), s.used_bytes()));
        let log_uuid = if let Kind::Mirror(Some(uuid)) = options.kind { uuid } else { random };
        let mirror = options.kind != Kind::Origin;
        let Options { zone, stream, segment_bytes, .. } = options;
        let salt = (random >> 64) as u64 ^ random as u64 ^ now_ns();
        let (log, opened) =
            Log::recovered(Config { zone, stream, mirror, segment_bytes }, found, &spares, log_uuid, salt);
        let state = State {
            log,
            current: None,
            recent: VecDeque::new(),
            recent_bytes: 0,
            waiters: Vec::new(),
            refusals: 0,
            untold: false,
            reader: None,
            last_failure: String::new(),
            said: BTreeSet::new(),
            scrubbed: Scrubbed::default(),
            lag_us: mirror.then(lag::histogram),
            begun: None,
            lock: Some(lock),
        };
        let shared = Rc::new(Shared { dir, started: (Instant::now(), now_ns()), state: RefCell::new(state) });
        shared.begin_first(segment_bytes).await?;
        if let Some((name, len)) = before {
            let dir = shared.dir.clone();
            let trimmed = glommio::executor().spawn_blocking(move || dir::trim(&dir, &name, len)).await;
            trimmed.map_err(|source| shared.io(source))?;
        }
        glommio::spawn_local(keep_time(Rc::downgrade(&shared))).detach();
        glommio::spawn_local(scrub::run(Rc::downgrade(&shared), options.scrub)).detach();
        Ok((StreamLog { shared }, opened, torn))
    }

    /// Takes records in order; at once, without waiting. Returns the seq of the first, and a future that resolves to the seq of the
    /// last when all are durable.
    pub fn begin_append(&self, records: Vec<Record>) -> Result<(u64, Durable), Error> {
        let count = records.len() as u64;
        let now = self.shared.now();
        let first = self.shared.state.borrow_mut().log.append(records, now)?;
        Ok((first, self.appended(first + count - 1, now)))
    }

    /// Appends records; resolves to the seq of the first when all are durable.
    pub async fn append(&self, records: Vec<Record>) -> Result<u64, Error> {
        let (first, durable) = self.begin_append(records)?;
        durable.await?;
        Ok(first)
    }

    /// Takes the origin's next batch, at once, without waiting: what a mirror's receiver calls for each batch of a read.
    pub fn begin_append_batch(&self, batch: Batch) -> Result<Durable, Error> {
        let last = self.shared.state.borrow_mut().log.append_batch(batch)?;
        Ok(self.appended(last, self.shared.now()))
    }

    /// Appends the origin's next batch; resolves to its last seq when it is durable.
    pub async fn append_batch(&self, batch: Batch) -> Result<u64, Error> {
        self.begin_append_batch(batch)?.await
    }

    /// Resolves when everything up to `seq` is durable, to the durable seq.
    pub async fn wait_durable(&self, seq: u64) -> Result<u64, Error> {
        if self.durable_seq() < seq {
            self.wait(seq, false).await?;
        }
        Ok(self.durable_seq())
    }

    /// Resolves when everything up to `seq`, which is appended, is durable, or was taken back for want of room: `Refused::Full`.
    pub async fn settled(&self, seq: u64) -> Result<(), Error> {
        if self.durable_seq() < seq {
            self.wait(seq, true).await?;
        }
        Ok(())
    }

    /// Everything up to this seq is durable here.
    pub fn durable_seq(&self) -> u64 {
        self.shared.state.borrow().log.durable_seq()
    }

    /// Runs `ask` on the machine, for its other positions.
    pub fn with<T>(&self, ask: impl FnOnce(&Log) -> T) -> T {
        ask(&self.shared.state.borrow().log)
    }

    /// How often appends were taken back: as long as this stays, what was appended is in the log, in its order.
    pub fn refusals(&self) -> u64 {
        self.shared.state.borrow().refusals
    }

    /// What the scrub has seen.
    pub fn scrubbed(&self) -> Scrubbed {
        self.shared.state.borrow().scrubbed.clone()
    }

    /// Of a mirror: microseconds from the append of a record at its origin until it was durable here, since it was opened.
    pub fn lag_us(&self) -> Option<Histogram<u64>> {
        self.shared.state.borrow().lag_us.clone()
    }

    /// Nobody needs what is below `seq`, but for the newest `keep_bytes`: see `Log::release`.
    pub fn release(&self, seq: u64, keep_bytes: u64) {
        self.shared.state.borrow_mut().log.release(seq, keep_bytes);
        self.shared.pump();
    }

    /// Durable batches, in order, the first of which holds `seq`; at least one, if `seq` is durable, and no more than `max_bytes` or
    /// one. None at all: `seq` is not durable yet.
    pub async fn read_from(&self, seq: u64, max_bytes: usize) -> Result<Vec<Batch>, Error> {
        {
            let state = self.shared.state.borrow();
            if seq > state.log.durable_seq() {
                return Ok(Vec::new());
            }
            let first = state.log.first_kept();
            if seq < first {
                return Err(Error::NotKept { wanted: seq, first });
            }
            if state.recent.front().is_some_and(|b| b.first_seq <= seq) {
                let from = state.recent.partition_point(|b| b.last_seq() < seq);
                return Ok(bounded(state.recent.range(from..).cloned(), max_bytes));
            }
        }
        self.shared.read_disk(seq, max_bytes).await
    }

    /// Makes durable what was taken, writes the last marker and a checkpoint, and lets the directory go.
    pub async fn close(&self) -> Result<(), Error> {
        self.shared.state.borrow_mut().log.close();
        self.shared.pump();
        while !self.shared.state.borrow().log.is_closed() {
            glommio::timer::sleep(Duration::from_millis(1)).await;
            self.shared.pump();
        }
        let (current, stopped) = {
            let mut state = self.shared.state.borrow_mut();
            state.tell_durable();
            state.wake(Waiting::Closed, |_| true);
            state.reader = None;
            (state.current.take(), state.log.is_stopped())
        };
        if let Some(current) = current {
            current.close().await.map_err(|e| self.shared.io(e.into()))?;
        }
        self.shared.state.borrow_mut().lock = None;
        if stopped { Err(self.shared.stopped()) } else { Ok(()) }
    }

    fn appended(&self, seq: u64, now: u64) -> Durable {
        let durable = self.wait(seq, true);
        self.shared.pump_at(now);
        durable
    }

    fn wait(&self, seq: u64, appended: bool) -> Durable {
        let mut state = self.shared.state.borrow_mut();
        let now = match state.lock {
            None => Waiting::Closed,
            Some(_) if state.log.is_stopped() => Waiting::Stopped,
            Some(_) => Waiting::Yes,
        };
        let waiter = Rc::new(Waiter::new(seq, appended, now));
        if state.waiters.len() == state.waiters.capacity() {
            // Those that were given up go before the list grows: an idle log wakes nobody, and links look at it for ever.
            state.waiters.retain(|w| Rc::strong_count(w) > 1);
        }
        state.waiters.push(waiter.clone());
        Durable { shared: self.shared.clone(), waiter }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        // Rises whatever the wall clock does: the machine's deadlines depend on it.
        self.started.1 + self.started.0.elapsed().as_nanos() as u64
    }

    /// Drains the machine's orders; each that takes time is carried out by a task of its own.
    fn pump(self: &Rc<Self>) {
        self.pump_at(self.now());
    }

    /// The same for those who know the time: reading the clock is a good part of an append.
    fn pump_at(self: &Rc<Self>, now: u64) {
        let mut ordered = false;
        loop {
            let order = self.state.borrow_mut().log.next_order(now);
            match order {
                None => break,
                Some(Order::Refuse { from_seq }) => {
                    let mut state = self.state.borrow_mut();
                    state.refusals += 1;
                    state.tell_durable();
                    state.wake(Waiting::TakenBack, |w| w.appended && w.seq >= from_seq);
                }
                Some(Order::Stop) => {
                    tracing::error!(dir = %self.dir.display(), "the log has failed twice and stops");
                    let mut state = self.state.borrow_mut();
                    state.tell_durable();
                    state.wake(Waiting::Stopped, |_| true);
                }
                Some(order) => {
                    ordered = true;
                    let shared = self.clone();
                    glommio::spawn_local(async move {
                        shared.carry_out(order).await;
                        shared.pump();
                    })
                    .detach();
                }
            }
        }
        if self.state.borrow().untold {
            self.tell_durable(ordered);
        }
    }

    /// Wakes those whose records are durable; `later`: when what was just ordered is on its way to the disk, which would else wait
    /// until each of them has run.
    fn tell_durable(self: &Rc<Self>, later: bool) {
        self.state.borrow_mut().untold = false;
        if !later {
            return self.state.borrow_mut().tell_durable();
        }
        let shared = self.clone();
        glommio::spawn_local(async move {
            glommio::timer::sleep(Duration::ZERO).await; // behind the reactor's next turn, which submits
            shared.state.borrow_mut().tell_durable();
        })
        .detach();
    }

    /// The next open is to read everything, and mend what it can. If this cannot be written, whoever reads there finds it again.
    fn mark_damaged(&self, why: &Error) {
        let _ = std::fs::write(self.dir.join(DAMAGED), format!("{why}\n"));
    }

    fn stopped(&self) -> Error {
        Error::Stopped { dir: self.dir.clone(), why: self.state.borrow().last_failure.clone() }
    }

    fn io(&self, source: io::Error) -> Error {
        Error::Io { dir: self.dir.clone(), source }
    }
}

/// Looks at the machine at its deadlines, until nobody holds the log any more.
async fn keep_time(shared: Weak<Shared>) {
    loop {
        let nap = {
            let Some(shared) = shared.upgrade() else { return };
            shared.pump();
            let state = shared.state.borrow();
            if state.lock.is_none() {
                return;
            }
            let until = state.log.deadline().map(|at| Duration::from_nanos(at.saturating_sub(shared.now())));
            until.map_or(TICK, |nap| nap.clamp(Duration::from_micros(200), TICK))
        };
        glommio::timer::sleep(nap).await;
    }
}
