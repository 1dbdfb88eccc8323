//! Carries out the orders of a log: one file operation after the other.

use super::waiter::Waiting;
use super::{CHUNK, Error, MAKING, RESERVE, Shared};
use crate::log::{Failed, Order};
use glommio::GlommioError;
use glommio::io::{DmaFile, OpenOptions};
use std::io;
use std::rc::Rc;

impl Shared {
    pub(super) async fn carry_out(&self, order: Order) {
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

    pub(super) async fn begin(&self, name: &str, header: &[u8], bytes: u64) -> Result<Rc<DmaFile>, GlommioError<()>> {
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
    pub(super) fn reserve_is_ready(&self) -> bool {
        !self.state.borrow().log.is_reserving()
    }

    /// A file of zeros, durable but for its name.
    pub(super) async fn zeroed(&self, name: &str, bytes: u64) -> Result<DmaFile, GlommioError<()>> {
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

    pub(super) async fn write(&self, pos: u64, bytes: &[u8]) -> Result<(), GlommioError<()>> {
        let file = self.current()?;
        write_all(&file, pos, bytes).await
    }

    pub(super) async fn sync(&self) -> Result<(), GlommioError<()>> {
        let file = self.current()?;
        file.fdatasync().await
    }

    pub(super) fn current(&self) -> Result<Rc<DmaFile>, GlommioError<()>> {
        let none = || GlommioError::IoError(io::Error::other("no segment is open"));
        self.state.borrow().current.clone().ok_or_else(none)
    }

    pub(super) async fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), GlommioError<()>> {
        let file = write_options().create(true).dma_open(self.dir.join(name)).await?;
        write_all(&file, 0, bytes).await?;
        file.fdatasync().await?;
        file.close().await
    }

    pub(super) fn failed(&self, what: &str, e: GlommioError<()>) -> Failed {
        let full = matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        tracing::warn!(dir = %self.dir.display(), "cannot {what}: {e}");
        self.state.borrow_mut().last_failure = format!("cannot {what}: {e}");
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
