//! A stream or a mirror on a glommio executor: carries out the orders of its [`Log`] and wakes those who wait.
//!
//! A [`StreamLog`] is a handle that any task of its executor may clone. Each order runs as a task of its own; when it is done it
//! reports to the machine and drains the next orders. One more task keeps the machine's deadlines.

use super::dir;
use crate::batch::{self, Batch, Lengths};
use crate::limits::{HEAD_MAX, RECENT_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::log::{Config, Failed, Log, Opened, Order, Refused};
use crate::open::{Corrupt, Floor, Found, Torn, Verdict, examine};
use crate::record::Record;
use crate::segment::FIRST_POS;
use bytes::Bytes;
use glommio::GlommioError;
use glommio::io::{DmaFile, OpenOptions};
use shardmap::Zone;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The reserve segment's name until it is used, and that of a segment being made.
const RESERVE: &str = "reserve.tmp";
const MAKING: &str = "making.tmp";
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
}

/// Written here, or a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// This node writes it.
    Origin,
    /// A copy; the incarnation is what the origin said, if it has said so yet.
    Mirror(Option<u128>),
}

/// Why a log cannot be opened, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory.
    #[error("{0} is in use by another process; stop it, or choose another data directory")]
    InUse(PathBuf),
    /// Something acknowledged is damaged: the stream is refused.
    #[error(
        "{dir}: {verdict}. The stream stays closed so that no damage spreads; repair from a peer is not in this version: \
         restore the directory, or move it away to begin the stream anew"
    )]
    Corrupt {
        /// The stream's directory.
        dir: PathBuf,
        /// Where and why.
        verdict: Box<Corrupt>,
    },
    /// The directory holds another stream.
    #[error("{dir} holds zone {zone} stream {stream} of incarnation {log_uuid:032x}, not the one asked for")]
    Foreign {
        /// The stream's directory.
        dir: PathBuf,
        /// What is there.
        zone: Zone,
        /// What is there.
        stream: u32,
        /// What is there.
        log_uuid: u128,
    },
    /// A mirror that does not exist yet, and whose incarnation is not known.
    #[error("{0} holds no mirror yet")]
    NoMirror(PathBuf),
    /// A segment length that cannot be.
    #[error("segments of {0} bytes: whole blocks of 4,096, from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}")]
    SegmentBytes(u64),
    /// No room for a segment of this length.
    #[error("no room for a segment of {bytes} bytes in {dir}")]
    NoRoom {
        /// The stream's directory.
        dir: PathBuf,
        /// The segment's length.
        bytes: u64,
    },
    /// The append was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The log failed twice and has stopped; what was not acknowledged may or may not be there.
    #[error("the log in {dir} has stopped: {why}")]
    Stopped {
        /// The stream's directory.
        dir: PathBuf,
        /// The last failure.
        why: String,
    },
    /// A seq below the first one kept.
    #[error("seq {wanted} is no longer kept, the first is {first}")]
    NotKept {
        /// What was asked for.
        wanted: u64,
        /// What there is.
        first: u64,
    },
    /// A batch that was durable cannot be read back.
    #[error("{file} at byte {pos}: {fault}")]
    Damaged {
        /// The segment.
        file: String,
        /// Where.
        pos: u64,
        /// What is wrong.
        fault: batch::Fault,
    },
    /// The operating system says no.
    #[error("{dir}: {source}")]
    Io {
        /// The stream's directory.
        dir: PathBuf,
        /// Its words.
        source: io::Error,
    },
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
    first_kept: u64,
    current: Option<Rc<DmaFile>>,
    /// The durable batches of late, oldest first, without a gap.
    recent: VecDeque<Batch>,
    recent_bytes: usize,
    waiters: Vec<Rc<Waiter>>,
    reader: Option<(String, Rc<DmaFile>)>,
    last_failure: String,
    /// What the first segment's making came to.
    begun: Option<Result<(), Failed>>,
    lock: Option<File>,
}

/// Someone who waits for a seq to be durable.
struct Waiter {
    seq: u64,
    /// An appender: its seq may be taken back.
    appended: bool,
    state: Cell<Waiting>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Yes,
    Durable,
    TakenBack,
    Stopped,
    Closed,
}

/// Resolves when what was appended is durable.
#[must_use = "an append is acknowledged when this resolves"]
pub struct Durable {
    shared: Rc<Shared>,
    waiter: Rc<Waiter>,
}

impl Future for Durable {
    type Output = Result<u64, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.waiter.state.get() {
            Waiting::Yes => {
                *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            Waiting::Durable => Poll::Ready(Ok(self.waiter.seq)),
            Waiting::TakenBack => Poll::Ready(Err(Refused::Full.into())),
            Waiting::Closed => Poll::Ready(Err(Refused::Closed.into())),
            Waiting::Stopped => Poll::Ready(Err(self.shared.stopped())),
        }
    }
}

impl StreamLog {
    /// Opens or creates the log in `dir`: reads it, judges it, quarantines a torn end, begins a new segment.
    pub async fn open(dir: &Path, options: Options) -> Result<(StreamLog, Opened, Option<Torn>), Error> {
        let dir = dir.to_owned();
        let (lock, found, random) = {
            let dir = dir.clone();
            glommio::executor().spawn_blocking(move || prepare(&dir, options)).await?
        };
        // glommio reads the first block of the first file that it opens on a device to learn whether the device can be
        // polled, and remembers that for the process. A new, empty file answers wrongly: each later read fails then.
        let probe = async { DmaFile::open(dir.join("LOCK")).await?.close().await };
        probe.await.map_err(|e| Error::Io { dir: dir.clone(), source: e.into() })?;
        let torn = if let Verdict::Torn(torn) = &found.verdict { Some(torn.clone()) } else { None };
        let before = found.segments.last().filter(|s| s.batches > 0);
        let before = before.map(|s| (s.name.clone(), s.end + s.footer.as_ref().map_or(0, |_| FIRST_POS)));
        let log_uuid = if let Kind::Mirror(Some(uuid)) = options.kind { uuid } else { random };
        let mirror = options.kind != Kind::Origin;
        let Options { zone, stream, segment_bytes, .. } = options;
        let salt = (random >> 64) as u64 ^ random as u64 ^ now_ns();
        let (log, opened) = Log::recovered(Config { zone, stream, mirror, segment_bytes }, found, log_uuid, salt);
        let state = State {
            log,
            first_kept: opened.first_seq,
            current: None,
            recent: VecDeque::new(),
            recent_bytes: 0,
            waiters: Vec::new(),
            reader: None,
            last_failure: String::new(),
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
        Ok((StreamLog { shared }, opened, torn))
    }

    /// Takes records in order; at once, without waiting. Returns the seq of the first, and a future that resolves to the seq of the
    /// last when all are durable.
    pub fn begin_append(&self, records: Vec<Record>) -> Result<(u64, Durable), Error> {
        let count = records.len() as u64;
        let first = self.shared.state.borrow_mut().log.append(records, self.shared.now())?;
        Ok((first, self.appended(first + count - 1)))
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
        Ok(self.appended(last))
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

    /// Everything up to this seq is durable here.
    pub fn durable_seq(&self) -> u64 {
        self.shared.state.borrow().log.durable_seq()
    }

    /// Runs `ask` on the machine, for its other positions.
    pub fn with<T>(&self, ask: impl FnOnce(&Log) -> T) -> T {
        ask(&self.shared.state.borrow().log)
    }

    /// Durable batches, in order, the first of which holds `seq`; at least one, if `seq` is durable, and no more than `max_bytes` or
    /// one. None at all: `seq` is not durable yet.
    pub async fn read_from(&self, seq: u64, max_bytes: usize) -> Result<Vec<Batch>, Error> {
        {
            let state = self.shared.state.borrow();
            if seq > state.log.durable_seq() {
                return Ok(Vec::new());
            }
            if seq < state.first_kept {
                return Err(Error::NotKept { wanted: seq, first: state.first_kept });
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
            state.wake(Waiting::Closed, |_| true);
            state.reader = None;
            (state.current.take(), state.log.is_stopped())
        };
        if let Some(file) = current {
            file.close_rc().await.map_err(|e| self.shared.io(e.into()))?;
        }
        let _ = std::fs::remove_file(self.shared.dir.join(RESERVE)); // if it stays, the next open removes it
        self.shared.state.borrow_mut().lock = None;
        if stopped { Err(self.shared.stopped()) } else { Ok(()) }
    }

    fn appended(&self, seq: u64) -> Durable {
        let durable = self.wait(seq, true);
        self.shared.pump();
        durable
    }

    fn wait(&self, seq: u64, appended: bool) -> Durable {
        let mut state = self.shared.state.borrow_mut();
        let now = match state.lock {
            None => Waiting::Closed,
            Some(_) if state.log.is_stopped() => Waiting::Stopped,
            Some(_) => Waiting::Yes,
        };
        let waiter = Rc::new(Waiter { seq, appended, state: Cell::new(now), waker: RefCell::new(None) });
        if state.waiters.len() == state.waiters.capacity() {
            // Those that were given up go before the list grows: an idle log wakes nobody, and links look at it for ever.
            state.waiters.retain(|w| Rc::strong_count(w) > 1);
        }
        state.waiters.push(waiter.clone());
        Durable { shared: self.shared.clone(), waiter }
    }
}

impl State {
    fn wake(&mut self, to: Waiting, which: impl Fn(&Waiter) -> bool) {
        self.waiters.retain(|w| {
            let woken = which(w);
            if woken {
                w.state.set(to);
                w.waker.borrow_mut().take().into_iter().for_each(Waker::wake);
            }
            // A waiter that nobody holds any more has gone away.
            !woken && Rc::strong_count(w) > 1
        });
    }

    fn remember(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            self.recent_bytes += batch.bytes.len();
            self.recent.push_back(batch);
        }
        while self.recent_bytes > RECENT_BYTES && self.recent.len() > 1 {
            self.recent_bytes -= self.recent.pop_front().map_or(0, |b| b.bytes.len());
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        // Rises whatever the wall clock does: the machine's deadlines depend on it.
        self.started.1 + self.started.0.elapsed().as_nanos() as u64
    }

    /// Drains the machine's orders; each is carried out by a task of its own.
    fn pump(self: &Rc<Self>) {
        loop {
            let order = self.state.borrow_mut().log.next_order(self.now());
            match order {
                None => return,
                Some(Order::Refuse { from_seq }) => {
                    self.state.borrow_mut().wake(Waiting::TakenBack, |w| w.appended && w.seq >= from_seq);
                }
                Some(Order::Stop) => {
                    tracing::error!(dir = %self.dir.display(), "the log has failed twice and stops");
                    self.state.borrow_mut().wake(Waiting::Stopped, |_| true);
                }
                Some(order) => {
                    let shared = self.clone();
                    glommio::spawn_local(async move {
                        shared.carry_out(order).await;
                        shared.pump();
                    })
                    .detach();
                }
            }
        }
    }

    async fn carry_out(&self, order: Order) {
        match order {
            Order::Begin { name, header, bytes } => {
                let made = self.begin(&name, &header, bytes).await;
                let result = made.map(|file| self.state.borrow_mut().current = Some(file));
                let result = result.map_err(|e| self.failed("begin a segment", e));
                let mut state = self.state.borrow_mut();
                state.begun.get_or_insert(result);
                state.log.on_segment(result, self.now());
            }
            Order::Reserve { bytes } => {
                let made = self.zeroed(RESERVE, bytes).await;
                let result = match made {
                    Ok(file) => file.close().await.map_err(|e| self.failed("close the reserve", e)),
                    Err(e) => Err(self.failed("make a reserve segment", e)),
                };
                if result.is_err() {
                    let _ = std::fs::remove_file(self.dir.join(RESERVE)); // half made it only takes room
                }
                self.state.borrow_mut().log.on_reserve(result, self.now());
            }
            Order::Write { id, pos, bytes } => {
                let result = self.write(pos, &bytes).await.map_err(|e| self.failed("write", e));
                self.state.borrow_mut().log.on_written(id, result);
            }
            Order::Sync { id } => {
                let result = self.sync().await.map_err(|e| self.failed("fdatasync", e));
                let mut state = self.state.borrow_mut();
                let done = state.log.on_synced(id, result, self.now());
                state.remember(done);
                let durable = state.log.durable_seq();
                state.wake(Waiting::Durable, |w| w.seq <= durable);
            }
            Order::Seal { pos, bytes } => {
                let written = self.write(pos, &bytes).await;
                let result = if written.is_ok() { self.sync().await } else { written };
                let _ = result.map_err(|e| self.failed("seal a segment", e));
                let sealed = self.state.borrow_mut().current.take();
                if let Some(file) = sealed {
                    let _ = file.close_rc().await.map_err(|e| self.failed("close a segment", e));
                }
                self.state.borrow_mut().log.on_sealed();
            }
            Order::Checkpoint { name, bytes } => {
                let _ = self.replace(name, &bytes).await.map_err(|e| self.failed("write a checkpoint", e));
                self.state.borrow_mut().log.on_checkpoint();
            }
            Order::Refuse { .. } | Order::Stop => unreachable!("pump answers these itself"),
        }
    }

    /// The first segment: an open that cannot make it has failed.
    async fn begin_first(self: &Rc<Self>, bytes: u64) -> Result<(), Error> {
        let order = self.state.borrow_mut().log.next_order(self.now()).expect("a recovered log begins a segment first");
        self.carry_out(order).await;
        let begun = self.state.borrow().begun.expect("carried out just now");
        match begun {
            Ok(()) => Ok(()),
            Err(Failed::Full) => Err(Error::NoRoom { dir: self.dir.clone(), bytes }),
            Err(Failed::Io) => Err(self.stopped()),
        }
    }

    async fn begin(&self, name: &str, header: &[u8], bytes: u64) -> Result<Rc<DmaFile>, GlommioError<()>> {
        let reserve = self.dir.join(RESERVE);
        let usable = std::fs::metadata(&reserve).is_ok_and(|m| m.len() == bytes) && self.reserve_is_ready();
        let file = if usable { write_options().dma_open(&reserve).await? } else { self.zeroed(MAKING, bytes).await? };
        write_all(&file, 0, header).await?;
        file.fdatasync().await?;
        file.rename(self.dir.join(name)).await?;
        let dir = glommio::io::Directory::open(&self.dir).await?;
        dir.sync().await?;
        dir.close().await?;
        Ok(Rc::new(file))
    }

    /// The machine forgets a ready reserve when it orders a segment; a reserve that is being made is not used.
    fn reserve_is_ready(&self) -> bool {
        !self.state.borrow().log.is_reserving()
    }

    /// A file of zeros, durable but for its name.
    async fn zeroed(&self, name: &str, bytes: u64) -> Result<DmaFile, GlommioError<()>> {
        let file = write_options().create(true).truncate(true).dma_open(self.dir.join(name)).await?;
        let mut pos = 0;
        while pos < bytes {
            let len = CHUNK.min((bytes - pos) as usize);
            let mut zeros = file.alloc_dma_buffer(len);
            zeros.as_bytes_mut().fill(0);
            whole(file.write_at(zeros, pos).await?, len)?;
            pos += len as u64;
        }
        file.fdatasync().await?;
        Ok(file)
    }

    async fn write(&self, pos: u64, bytes: &[u8]) -> Result<(), GlommioError<()>> {
        let file = self.current()?;
        write_all(&file, pos, bytes).await
    }

    async fn sync(&self) -> Result<(), GlommioError<()>> {
        let file = self.current()?;
        file.fdatasync().await
    }

    fn current(&self) -> Result<Rc<DmaFile>, GlommioError<()>> {
        let none = || GlommioError::IoError(io::Error::other("no segment is open"));
        self.state.borrow().current.clone().ok_or_else(none)
    }

    async fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), GlommioError<()>> {
        let file = write_options().create(true).dma_open(self.dir.join(name)).await?;
        write_all(&file, 0, bytes).await?;
        file.fdatasync().await?;
        file.close().await
    }

    /// Batches from `seq` on out of the segment that holds it.
    async fn read_disk(&self, seq: u64, max_bytes: usize) -> Result<Vec<Batch>, Error> {
        let (name, salt, mut pos, end) = {
            let state = self.state.borrow();
            let first = state.first_kept;
            let (segment, pos) = state.log.locate(seq).ok_or(Error::NotKept { wanted: seq, first })?;
            (segment.name.clone(), segment.header.salt, pos, segment.end)
        };
        let file = self.reader(&name).await.map_err(|e| self.io(e.into()))?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        let mut window = Bytes::new();
        while pos < end && bytes < max_bytes.max(1) {
            let left = (end - pos) as usize;
            if window.len() < HEAD_MAX.min(left) {
                window = self.read(&file, pos, CHUNK.min(left)).await?;
            }
            let damaged = |fault| Error::Damaged { file: name.clone(), pos, fault };
            let disk = Lengths::of_head(&window).map_err(damaged)?.disk;
            if window.len() < disk {
                window = self.read(&file, pos, disk.max(CHUNK).min(left)).await?;
            }
            // A batch that is kept must not keep the whole window in memory.
            let own = Bytes::copy_from_slice(&window[..disk.min(window.len())]);
            let (batch, _) = Batch::read(&own, salt, pos).map_err(damaged)?;
            window = window.slice(disk..);
            pos += disk as u64;
            if batch.last_seq() >= seq {
                bytes += batch.bytes.len();
                batches.push(batch);
            }
        }
        Ok(bounded(batches.into_iter(), max_bytes))
    }

    async fn read(&self, file: &DmaFile, pos: u64, len: usize) -> Result<Bytes, Error> {
        let read = file.read_at(pos, len).await.map_err(|e| self.io(e.into()))?;
        Ok(Bytes::copy_from_slice(&read))
    }

    async fn reader(&self, name: &str) -> Result<Rc<DmaFile>, GlommioError<()>> {
        if let Some((of, file)) = &self.state.borrow().reader
            && of == name
        {
            return Ok(file.clone());
        }
        let file = Rc::new(DmaFile::open(self.dir.join(name)).await?);
        self.state.borrow_mut().reader = Some((name.to_owned(), file.clone()));
        Ok(file)
    }

    fn failed(&self, what: &str, e: GlommioError<()>) -> Failed {
        let full = matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        tracing::warn!(dir = %self.dir.display(), "cannot {what}: {e}");
        self.state.borrow_mut().last_failure = format!("cannot {what}: {e}");
        if full { Failed::Full } else { Failed::Io }
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

/// What an open does with blocking calls: directory, lock, reading, verdict.
fn prepare(dir: &Path, options: Options) -> Result<(File, Found, u128), Error> {
    let io = |source| Error::Io { dir: dir.to_owned(), source };
    let range = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if !range.contains(&options.segment_bytes) || !options.segment_bytes.is_multiple_of(FIRST_POS) {
        return Err(Error::SegmentBytes(options.segment_bytes));
    }
    if options.kind == Kind::Mirror(None) && !dir.exists() {
        return Err(Error::NoMirror(dir.to_owned()));
    }
    std::fs::create_dir_all(dir).map_err(io)?;
    if let Some(above) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        dir::sync_dir(above).map_err(io)?;
    }
    let lock = dir::lock(dir).map_err(io)?.ok_or_else(|| Error::InUse(dir.to_owned()))?;
    dir::settle(dir).map_err(io)?;
    let found = examine(&mut dir::Dir::new(dir), options.floor).map_err(io)?;
    match &found.verdict {
        Verdict::Corrupt(verdict) => {
            return Err(Error::Corrupt { dir: dir.to_owned(), verdict: Box::new(verdict.clone()) });
        }
        Verdict::Empty if options.kind == Kind::Mirror(None) => return Err(Error::NoMirror(dir.to_owned())),
        Verdict::Torn(torn) => {
            let copy = dir::quarantine(dir, torn).map_err(io)?;
            tracing::warn!("{torn}; copied to {}", copy.display());
        }
        Verdict::Empty | Verdict::Clean => {}
    }
    if let Some(h) = found.segments.last().map(|s| &s.header) {
        let other = matches!(options.kind, Kind::Mirror(Some(uuid)) if uuid != h.log_uuid);
        if other || h.zone != options.zone || h.stream != options.stream {
            let (dir, zone, stream, log_uuid) = (dir.to_owned(), h.zone, h.stream, h.log_uuid);
            return Err(Error::Foreign { dir, zone, stream, log_uuid });
        }
    }
    Ok((lock, found, dir::random().map_err(io)?))
}

fn write_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

async fn write_all(file: &DmaFile, pos: u64, bytes: &[u8]) -> Result<(), GlommioError<()>> {
    let mut own = file.alloc_dma_buffer(bytes.len());
    own.as_bytes_mut().copy_from_slice(bytes);
    whole(file.write_at(own, pos).await?, bytes.len())
}

/// A short write is what a full disk answers first.
fn whole(written: usize, len: usize) -> Result<(), GlommioError<()>> {
    if written == len { Ok(()) } else { Err(GlommioError::IoError(io::Error::from_raw_os_error(libc::ENOSPC))) }
}

fn bounded(batches: impl Iterator<Item = Batch>, max_bytes: usize) -> Vec<Batch> {
    let mut bytes = 0;
    batches
        .take_while(|b| {
            bytes += b.bytes.len();
            bytes <= max_bytes || bytes == b.bytes.len()
        })
        .collect()
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
