//! Reads durable batches back: those of late out of memory, older ones out of their segment.

use super::{CHUNK, Error, Shared, State};
use crate::batch::{Batch, Lengths};
use crate::limits::{HEAD_MAX, RECENT_BYTES};
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

impl Shared {
    /// Batches from `seq` on out of the segment that holds it.
    pub(super) async fn read_disk(&self, seq: u64, max_bytes: usize) -> Result<Vec<Batch>, Error> {
        let (name, salt, number, mut pos, end) = {
            let state = self.state.borrow();
            let (segment, pos) = state.log.locate(seq).ok_or_else(|| state.not_kept(seq))?;
            (segment.name.clone(), segment.header.salt, segment.header.number, pos, segment.end)
        };
        // It may have been retired meanwhile, and hold another segment by now: then whatever is read is no fault.
        let fault = |e: Error| {
            let state = self.state.borrow();
            if seq < state.log.first_kept() { state.not_kept(seq) } else { e }
        };
        let file = self.reader(&name).await.map_err(|e| fault(self.io(e.into())))?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        let mut window = Bytes::new();
        while pos < end && bytes < max_bytes.max(1) {
            let left = (end - pos) as usize;
            if window.len() < HEAD_MAX.min(left) {
                window = self.read(&file, pos, CHUNK.min(left)).await?;
            }
            let damaged = |why| fault(Error::Damaged { file: name.clone(), pos, fault: why });
            let disk = Lengths::of_head(&window).map_err(damaged)?.disk;
            if window.len() < disk {
                window = self.read(&file, pos, disk.max(CHUNK).min(left)).await?;
            }
            // A batch that is kept must not keep the whole window in memory.
            let own = Bytes::copy_from_slice(&window[..disk.min(window.len())]);
            let (batch, _) = Batch::read(&own, salt, pos).map_err(damaged)?;
            window = window.slice(disk..);
            self.state.borrow_mut().log.learn(number, batch.first_seq, pos);
            pos += disk as u64;
            if batch.last_seq() >= seq {
                bytes += batch.bytes.len();
                batches.push(batch);
            }
        }
        Ok(bounded(batches.into_iter(), max_bytes))
    }

    pub(super) async fn read(&self, file: &DmaFile, pos: u64, len: usize) -> Result<Bytes, Error> {
        let read = file.read_at(pos, len).await.map_err(|e| self.io(e.into()))?;
        Ok(Bytes::copy_from_slice(&read))
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
