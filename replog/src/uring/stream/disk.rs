//! Carries out the orders of a log: one file operation after the other.

use super::{CHUNK, Error, Shared, State, lag, now_ns};
use crate::batch::{Batch, Placed};
use crate::limits::ZERO_BYTES_PER_S;
use crate::log::{Failed, Order};
use glommio::GlommioError;
use glommio::io::{DmaFile, OpenOptions};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The first segment in the making, or one for which no spare was ready.
const FIRST: &str = "first.tmp";
/// A spare in the making.
const MAKING: &str = "making.tmp";

/// The file that waits as the spare `id`.
pub(super) fn spare_name(id: u64) -> String {
    format!("reserve-{id}.tmp")
}

/// How fast zeros are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// A segment waits for them.
    Now,
    /// In the background.
    WithTheLog,
}

/// The segment that is written, opened twice.
pub(super) struct Current {
    file: Rc<DmaFile>,
    /// What is written here is flushed by its write (O_DSYNC): one turn of the executor less, and the kernel flushes several at once.
    through: Rc<DmaFile>,
}

impl Current {
    pub async fn close(self: Rc<Self>) -> Result<(), GlommioError<()>> {
        let closed = self.through.clone().close_rc().await;
        self.file.clone().close_rc().await.and(closed).map(drop)
    }
}

impl State {
    /// These batches are durable; whoever waits for them is told once what was ordered next is on its way.
    fn acknowledged(&mut self, done: Vec<Batch>) {
        self.untold |= !done.is_empty();
        if let Some(us) = &mut self.lag_us {
            lag::record(us, done.iter(), now_ns());
        }
        self.remember(done);
    }
}

impl Shared {
    pub(super) async fn carry_out(&self, order: Order) {
        match order {
            Order::Begin { name, header, bytes, spare } => {
                let made = self.begin(&name, &header, bytes, spare).await;
                let result = made.map(|file| self.state.borrow_mut().current = Some(file));
                let result = result.map_err(|e| self.failed("begin a segment", e));
                let mut state = self.state.borrow_mut();
                state.begun.get_or_insert(result);
                if result.is_ok() {
                    state.said.clear();
                }
                state.log.on_segment(result, self.now());
            }
            Order::Spare { id, bytes } => {
                let result = self.make_spare(id, bytes).await.map_err(|e| self.failed("make a spare segment", e));
                if result.is_err() {
                    let _ = std::fs::remove_file(self.dir.join(MAKING)); // half made it only takes room
                }
                self.state.borrow_mut().log.on_spare(result, self.now());
            }
            Order::Retire { name, spare } => {
                let result = self.retire(&name, spare).await.map_err(|e| self.failed("retire a segment", e));
                self.state.borrow_mut().log.on_retired(result);
            }
            Order::Write { id, pos, bytes, through } => {
                let result = self.write(pos, &bytes, through).await.map_err(|e| self.failed("write", e));
                let mut state = self.state.borrow_mut();
                let done = state.log.on_written(id, result, self.now());
                state.acknowledged(done);
            }
            Order::Sync { id } => {
                let result = self.sync().await.map_err(|e| self.failed("fdatasync", e));
                let mut state = self.state.borrow_mut();
                let done = state.log.on_synced(id, result, self.now());
                state.acknowledged(done);
            }
            Order::Seal { pos, bytes } => {
                let result = self.seal(pos, &bytes).await.map_err(|e| self.failed("seal a segment", e));
                let sealed = self.state.borrow_mut().current.take();
                if let Some(current) = sealed {
                    let _ = current.close().await.map_err(|e| self.failed("close a segment", e));
                }
                self.state.borrow_mut().log.on_sealed(result);
            }
            Order::Checkpoint { name, bytes } => {
                let result = self.replace(name, &bytes).await.map_err(|e| self.failed("write a checkpoint", e));
                self.state.borrow_mut().log.on_checkpoint(result, self.now());
            }
            Order::Refuse { .. } | Order::Stop => unreachable!("pump answers these itself"),
        }
    }

    /// The first segment: an open that cannot make it has failed.
    pub(super) async fn begin_first(self: &Rc<Self>, bytes: u64) -> Result<(), Error> {
        let order = self.state.borrow_mut().log.next_order(self.now()).expect("a recovered log begins a segment first");
        self.carry_out(order).await;
        let begun = self.state.borrow().begun.expect("carried out just now");
        match begun {
            Ok(()) => Ok(()),
            Err(Failed::Full) => Err(Error::NoRoom { dir: self.dir.clone(), bytes }),
            Err(Failed::Io) => Err(self.stopped()),
        }
    }

    async fn begin(
        &self,
        name: &str,
        header: &[u8],
        bytes: u64,
        spare: Option<u64>,
    ) -> Result<Rc<Current>, GlommioError<()>> {
        // A spare loses its name before it is written to: what a killed process has under way must not land in the next one's segment.
        let moved = spare.map(|id| std::fs::rename(self.dir.join(spare_name(id)), self.dir.join(FIRST)));
        let file = match moved {
            Some(Ok(())) => write_options().dma_open(self.dir.join(FIRST)).await?,
            // Someone has tidied up: that is no reason to stop.
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            Some(Err(_)) | None => self.zeroed(FIRST, bytes, Pace::Now).await?,
        };
        write_all(&file, 0, header).await?;
        file.fdatasync().await?;
        file.rename(self.dir.join(name)).await?;
        self.sync_dir().await?;
        let through = write_options().custom_flags(libc::O_DSYNC).dma_open(self.dir.join(name)).await?;
        Ok(Rc::new(Current { file: Rc::new(file), through: Rc::new(through) }))
    }

    /// A spare has its name only when it is whole.
    async fn make_spare(&self, id: u64, bytes: u64) -> Result<(), GlommioError<()>> {
        let file = self.zeroed(MAKING, bytes, Pace::WithTheLog).await?;
        file.rename(self.dir.join(spare_name(id))).await?;
        file.close().await
    }

    async fn retire(&self, name: &str, spare: Option<u64>) -> Result<(), GlommioError<()>> {
        {
            let mut state = self.state.borrow_mut();
            if state.reader.as_ref().is_some_and(|(of, _)| of == name) {
                state.reader = None; // what it read from is no longer what it was
            }
        }
        let (from, to) = (self.dir.join(name), spare.map(|id| self.dir.join(spare_name(id))));
        // Removing a large file may take the file system a while.
        let moved = glommio::executor().spawn_blocking(move || match to {
            Some(to) => std::fs::rename(from, to),
            None => std::fs::remove_file(from),
        });
        moved.await?;
        self.sync_dir().await
    }

    async fn sync_dir(&self) -> Result<(), GlommioError<()>> {
        let dir = glommio::io::Directory::open(&self.dir).await?;
        dir.sync().await?;
        dir.close().await
    }

    /// A file of zeros, durable but for its name.
    async fn zeroed(&self, name: &str, bytes: u64, pace: Pace) -> Result<DmaFile, GlommioError<()>> {
        let file = write_options().create(true).truncate(true).dma_open(self.dir.join(name)).await?;
        let (began, began_seq) = (Instant::now(), self.state.borrow().log.bytes_placed());
        let mut pos = 0;
        while pos < bytes {
            while pace == Pace::WithTheLog && self.is_ahead(pos, began, began_seq) {
                glommio::timer::sleep(Duration::from_millis(5)).await;
            }
            let len = CHUNK.min((bytes - pos) as usize);
            let mut zeros = file.alloc_dma_buffer(len);
            zeros.as_bytes_mut().fill(0);
            whole(file.write_at(zeros, pos).await?, len)?;
            pos += len as u64;
        }
        file.fdatasync().await?;
        Ok(file)
    }

    /// Has the background zeroed more than its share? It takes a steady little, and as much as the log itself writes, so that it is
    /// done before it is needed and commits do not queue behind it.
    fn is_ahead(&self, zeroed: u64, began: Instant, began_at: u64) -> bool {
        let state = self.state.borrow();
        let steady = began.elapsed().as_micros() as u64 * ZERO_BYTES_PER_S / 1_000_000;
        let written = state.log.bytes_placed() - began_at;
        zeroed > steady + 2 * written && !state.log.is_waiting() && !state.log.is_closing()
    }

    /// Writes into the current segment; the one copy that is made is into the memory that the disk reads.
    async fn write(&self, pos: u64, bytes: &Placed, through: bool) -> Result<(), GlommioError<()>> {
        let current = self.current()?;
        let file = if through { &current.through } else { &current.file };
        let mut own = file.alloc_dma_buffer(bytes.disk_len());
        bytes.copy_to(own.as_bytes_mut());
        whole(file.write_at(own, pos).await?, bytes.disk_len())
    }

    async fn sync(&self) -> Result<(), GlommioError<()>> {
        self.current()?.file.fdatasync().await
    }

    async fn seal(&self, pos: u64, footer: &[u8]) -> Result<(), GlommioError<()>> {
        write_all(&self.current()?.through, pos, footer).await
    }

    fn current(&self) -> Result<Rc<Current>, GlommioError<()>> {
        let none = || GlommioError::IoError(io::Error::other("no segment is open"));
        self.state.borrow().current.clone().ok_or_else(none)
    }

    pub(super) async fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), GlommioError<()>> {
        let file = write_options().create(true).dma_open(self.dir.join(name)).await?;
        write_all(&file, 0, bytes).await?;
        file.fdatasync().await?;
        file.close().await
    }

    pub(super) fn failed(&self, what: &'static str, e: GlommioError<()>) -> Failed {
        let full = matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        let mut state = self.state.borrow_mut();
        // A full disk fails the same way each second.
        if state.said.insert((what, e.raw_os_error())) {
            tracing::warn!(dir = %self.dir.display(), "cannot {what}: {e}");
        }
        state.last_failure = format!("cannot {what}: {e}");
        if full { Failed::Full } else { Failed::Io }
    }
}

pub(super) fn write_options() -> OpenOptions {
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
pub(super) fn whole(written: usize, len: usize) -> Result<(), GlommioError<()>> {
    if written == len { Ok(()) } else { Err(GlommioError::IoError(io::Error::from_raw_os_error(libc::ENOSPC))) }
}
