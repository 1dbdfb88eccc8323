//! Reads durable batches back: those of late out of memory, older ones out of their segment.

use super::{CHUNK, Error, Shared, State};
use crate::batch::{self, Batch, Lengths};
use crate::limits::{HEAD_MAX, RECENT_BYTES};
use crate::open::Segment;
use bytes::Bytes;
use glommio::GlommioError;
use glommio::io::DmaFile;
use std::rc::Rc;

impl State {
    fn not_kept(&self, wanted: u64) -> Error {
        Error::NotKept { wanted, first: self.log.first_kept() }
    }

    pub(super) fn remember(&mut self, batches: Vec<Batch>) {
        for batch in batches {
            self.recent_bytes += batch.bytes.len();
            self.recent.push_back(batch);
        }
        while self.recent_bytes > RECENT_BYTES && self.recent.len() > 1 {
            self.recent_bytes -= self.recent.pop_front().map_or(0, |b| b.bytes.len());
        }
    }
}

/// The batches of one segment, one after the other, in windows of `CHUNK`.
pub(super) struct Batches {
    file: Rc<DmaFile>,
    pub name: String,
    salt: u64,
    pub pos: u64,
    end: u64,
    window: Bytes,
}

impl Batches {
    /// From `pos` to the end of what `segment` holds now.
    pub fn of(segment: &Segment, file: Rc<DmaFile>, pos: u64) -> Batches {
        let (name, salt, end) = (segment.name.clone(), segment.header.salt, segment.end);
        Batches { file, name, salt, pos, end, window: Bytes::new() }
    }

    /// The next one and where it lies; `None` at the end.
    pub async fn next(&mut self, shared: &Shared) -> Result<Option<(u64, Batch)>, Error> {
        if self.pos >= self.end {
            return Ok(None);
        }
        let left = (self.end - self.pos) as usize;
        if self.window.len() < HEAD_MAX.min(left) {
            self.fill(shared, CHUNK.min(left)).await?;
        }
        let disk = Lengths::of_head(&self.window).map_err(|fault| self.damaged(fault))?.disk;
        if self.window.len() < disk {
            self.fill(shared, disk.max(CHUNK).min(left)).await?;
        }
        // A batch that is kept must not keep the whole window in memory.
        let own = Bytes::copy_from_slice(&self.window[..disk.min(self.window.len())]);
        let (batch, _) = Batch::read(&own, self.salt, self.pos).map_err(|fault| self.damaged(fault))?;
        let pos = self.pos;
        self.window = self.window.slice(disk..);
        self.pos += disk as u64;
        Ok(Some((pos, batch)))
    }

    async fn fill(&mut self, shared: &Shared, len: usize) -> Result<(), Error> {
        let read = self.file.read_at(self.pos, len).await.map_err(|e| shared.io(e.into()))?;
        self.window = Bytes::copy_from_slice(&read);
        Ok(())
    }

    fn damaged(&self, fault: batch::Fault) -> Error {
        Error::Damaged { file: self.name.clone(), pos: self.pos, fault }
    }
}

impl Shared {
    /// Batches from `seq` on out of the segment that holds it.
    pub(super) async fn read_disk(&self, seq: u64, max_bytes: usize) -> Result<Vec<Batch>, Error> {
        let (segment, pos) = {
            let state = self.state.borrow();
            let (segment, pos) = state.log.locate(seq).ok_or_else(|| state.not_kept(seq))?;
            (segment.clone(), pos)
        };
        // It may have been retired meanwhile, and hold another segment by now: then whatever is read is no fault.
        let fault = |e: Error| {
            let state = self.state.borrow();
            if seq < state.log.first_kept() {
                return state.not_kept(seq);
            }
            if matches!(e, Error::Damaged { .. }) {
                self.mark_damaged(&e);
            }
            e
        };
        let file = self.reader(&segment.name).await.map_err(|e| fault(self.io(e.into())))?;
        let mut from = Batches::of(&segment, file, pos);
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes.max(1)
            && let Some((pos, batch)) = from.next(self).await.map_err(fault)?
        {
            self.state.borrow_mut().log.learn(segment.header.number, batch.first_seq, pos);
            if batch.last_seq() >= seq {
                bytes += batch.bytes.len();
                batches.push(batch);
            }
        }
        Ok(bounded(batches.into_iter(), max_bytes))
    }

    pub(super) async fn reader(&self, name: &str) -> Result<Rc<DmaFile>, GlommioError<()>> {
        if let Some((of, file)) = &self.state.borrow().reader
            && of == name
        {
            return Ok(file.clone());
        }
        let file = Rc::new(DmaFile::open(self.dir.join(name)).await?);
        self.state.borrow_mut().reader = Some((name.to_owned(), file.clone()));
        Ok(file)
    }
}

pub(super) fn bounded(batches: impl Iterator<Item = Batch>, max_bytes: usize) -> Vec<Batch> {
    let mut bytes = 0;
    batches
        .take_while(|b| {
            bytes += b.bytes.len();
            bytes <= max_bytes || bytes == b.bytes.len()
        })
        .collect()
}
