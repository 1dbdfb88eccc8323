//! Reads batches of one segment, a window at a time, and tells what lies behind the last one.

use super::Storage;
use crate::batch::{self, Batch, Inspected, Stamp};
use crate::limits::{BATCH_MAX, BLOCK, HEAD_MAX};
use crate::segment::{self, Footer};
use bytes::Bytes;
use std::io;

/// How much is read at a time.
const WINDOW: usize = BATCH_MAX;

/// Reads batches of one segment, a window at a time.
pub struct Walk {
    name: String,
    salt: u64,
    limit: u64,
    window: Bytes,
    window_pos: u64,
}

impl Walk {
    /// Over the bytes below `limit` of the file `name`.
    pub fn new(name: &str, salt: u64, limit: u64) -> Walk {
        Walk { name: name.to_owned(), salt, limit, window: Bytes::new(), window_pos: 0 }
    }

    /// The batch at `pos`, if an intact one is there.
    pub fn at(&mut self, files: &mut impl Storage, pos: u64) -> io::Result<Result<(Batch, Stamp), batch::Fault>> {
        let head = self.bytes(files, pos, HEAD_MAX)?;
        let lengths = match batch::Lengths::of_head(&head) {
            Ok(lengths) => lengths,
            Err(fault) => return Ok(Err(fault)),
        };
        let disk = self.bytes(files, pos, lengths.disk)?;
        Ok(Batch::read(&disk, self.salt, pos).map(|(mut batch, stamp)| {
            // A batch that is kept must not keep the whole window in memory; taking a stamp off has copied it already.
            if stamp == (Stamp { place_crc: 0, local_durable_seq: 0 }) {
                batch.bytes = Bytes::copy_from_slice(&batch.bytes);
            }
            (batch, stamp)
        }))
    }

    /// The same, checked where it lies: for those who keep none of it.
    pub fn inspect(&mut self, files: &mut impl Storage, pos: u64) -> io::Result<Result<Inspected, batch::Fault>> {
        let head = self.bytes(files, pos, HEAD_MAX)?;
        let lengths = match batch::Lengths::of_head(&head) {
            Ok(lengths) => lengths,
            Err(fault) => return Ok(Err(fault)),
        };
        drop(head); // nothing may hold the window that is left behind: its memory is used again
        let disk = self.bytes(files, pos, lengths.disk)?;
        Ok(Batch::inspect(&disk, self.salt, pos))
    }

    /// The footer at `pos`, where the last batch ends, if one is there.
    pub(super) fn footer(&mut self, files: &mut impl Storage, pos: u64) -> io::Result<Result<Footer, segment::Fault>> {
        let inside = pos.checked_sub(self.window_pos).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            self.window.get(from..from + BLOCK)
        });
        match inside {
            Some(block) => Ok(Footer::parse(block)),
            None => files.read(&self.name, pos, BLOCK).map(|block| Footer::parse(&block)),
        }
    }

    /// Up to `len` bytes at `pos`; fewer at the limit.
    fn bytes(&mut self, files: &mut impl Storage, pos: u64, len: usize) -> io::Result<Bytes> {
        let len = len.min(usize::try_from(self.limit.saturating_sub(pos)).unwrap_or(usize::MAX));
        let inside = pos >= self.window_pos && pos + len as u64 <= self.window_pos + self.window.len() as u64;
        if !inside {
            // One block more than may be a batch: the footer, which else costs a read of its own.
            let left = self.limit.saturating_add(BLOCK as u64).saturating_sub(pos);
            let want = WINDOW.max(len).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.window = files.read(&self.name, pos, want)?;
            self.window_pos = pos;
        }
        let from = (pos - self.window_pos) as usize;
        Ok(self.window.slice(from.min(self.window.len())..(from + len).min(self.window.len())))
    }
}

/// What lies behind the last intact batch of the last segment.
#[derive(Clone, Default, Debug)]
pub(super) struct Behind {
    /// Bytes up to the last one that is not zero.
    pub len: u64,
    /// The first thing there is a batch that continues the log, by its own words.
    pub continues: bool,
    /// The first thing there is a batch that was written for elsewhere.
    pub foreign: bool,
    /// Something there was written for its place in this use of the file.
    pub own: bool,
    /// The highest seq that batches and footers there know to be durable.
    pub known: u64,
}

impl Behind {
    /// Looks at each block from `pos` on, behind a log that ends with `last_seq` and `chain`.
    pub fn look(files: &mut impl Storage, walk: &mut Walk, pos: u64, last_seq: u64, chain: u32) -> io::Result<Behind> {
        let mut behind = Behind::default();
        let mut at = pos;
        while at < walk.limit {
            let block = walk.bytes(files, at, BLOCK)?;
            if block.is_empty() {
                break;
            }
            if let Some(last) = block.iter().rposition(|b| *b != 0) {
                behind.len = at + last as u64 + 1 - pos;
                let head = walk.bytes(files, at, HEAD_MAX)?;
                behind.judge(&head, walk.salt, at);
                if let (true, Some(b)) = (at == pos, Batch::fields_at(&head)) {
                    behind.continues = b.first_seq == last_seq + 1 && b.prev_chain == chain;
                    behind.foreign = !behind.continues;
                }
            }
            at += BLOCK as u64;
        }
        Ok(behind)
    }

    /// A stamp that holds for this salt and place is believed, whatever became of the batch's body.
    fn judge(&mut self, head: &[u8], salt: u64, at: u64) {
        let footer = Footer::parse(head).ok().filter(|f| f.salt == salt).map(|f| f.last_seq);
        let stamp = batch::stamp_at(head, salt, at).map(|s| s.local_durable_seq);
        if let Some(known) = footer.or(stamp) {
            (self.own, self.known) = (true, self.known.max(known));
        }
    }
}
