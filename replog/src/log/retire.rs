//! Files that a log has done with, and files that wait to become segments.
//!
//! ```text
//! sealed, nobody needs it -> leaving -> a checkpoint says so, twice -> retired: a spare, or removed -> the next segment
//! ```
//!
//! The checkpoint goes first, into both of its files: whichever is read at open, a segment that is gone was not expected.

use super::{Failed, Log, Order, Phase, Spare};
use crate::limits::{FULL_RETRY_NS, SPARES};
use crate::open::Segment;
use crate::segment::Header;
use std::collections::VecDeque;

/// Files of a segment's length that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Spares {
    ready: VecDeque<Spare>,
    /// The one that is being filled with zeros.
    pub making: Option<u64>,
    /// There was no room for one; look again then.
    pub retry: Option<u64>,
    newest_id: u64,
}

impl Spares {
    /// Those that an earlier run left.
    pub fn of(ids: &[u64]) -> Spares {
        let ready = ids.iter().take(SPARES).map(|id| Spare { id: *id, recycled: true }).collect();
        Spares { ready, newest_id: ids.iter().copied().max().unwrap_or(0), ..Spares::default() }
    }

    pub fn take(&mut self) -> Option<Spare> {
        self.ready.pop_front()
    }

    fn new_id(&mut self) -> u64 {
        self.newest_id += 1;
        self.newest_id
    }
}

/// What goes, in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Retiring {
    /// Segments below this seq may go, beyond so many bytes that are kept for those who look back.
    below: u64,
    keep_bytes: u64,
    /// Something has changed since it was last looked who may go.
    unseen: bool,
    leaving: VecDeque<Segment>,
    /// The first seq that each of the two checkpoint files is known to keep, or a lower one.
    said: [u64; 2],
    /// A checkpoint could not be written: the next one is tried when its time comes.
    paused: bool,
    /// The one that is going, and the spare that it becomes.
    going: Option<Option<u64>>,
}

impl Retiring {
    /// A segment was begun: the oldest may be one too many now.
    pub fn on_segment(&mut self) {
        self.unseen = true;
    }

    pub fn is_busy(&self) -> bool {
        self.going.is_some()
    }

    /// Has a checkpoint to be written before the next one goes?
    pub fn wants_checkpoint(&self) -> bool {
        !self.paused && self.is_unsaid()
    }

    fn is_unsaid(&self) -> bool {
        self.leaving.front().is_some_and(|s| self.said[0].min(self.said[1]) <= s.last_seq)
    }

    /// A checkpoint was written into this one of the two files, or not: then what it said before may stand there still.
    pub fn on_checkpoint(&mut self, file: usize, first_kept: Option<u64>) {
        self.paused = first_kept.is_none();
        if let Some(first_kept) = first_kept {
            self.said[file] = first_kept;
        }
    }
}

impl Log {
    /// Nobody needs what is below `seq` any more: sealed segments below it may go, oldest first, but for the newest `keep_bytes` of
    /// them. Takes back what an earlier call allowed, as far as nothing has gone.
    pub fn release(&mut self, seq: u64, keep_bytes: u64) {
        (self.retiring.below, self.retiring.keep_bytes) = (seq.min(self.durable_seq + 1), keep_bytes);
        self.retiring.unseen = true;
    }

    /// Segments that are not written any more, oldest first.
    pub fn sealed(&self) -> impl Iterator<Item = &Segment> {
        let current = matches!(self.phase, Phase::Writing | Phase::Sealing);
        let count = self.segments.len() - usize::from(current && !self.segments.is_empty());
        self.segments[..count].iter()
    }

    /// A segment by its file, and the header of the one behind it; `None`: it is not kept, or the last.
    pub fn followed(&self, file: &str) -> Option<(&Segment, &Header)> {
        let at = self.segments.iter().position(|s| s.name == file)?;
        Some((&self.segments[at], &self.segments.get(at + 1)?.header))
    }

    /// The last seq of the oldest segment that may go at all; `None`: there is but one.
    pub fn oldest_sealed(&self) -> Option<u64> {
        (self.segments.len() > 1).then(|| self.segments[0].last_seq)
    }

    /// Bytes of the files of all segments.
    pub fn kept_bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.file_len).sum()
    }

    /// The next segment that goes: its seqs are below what was released, and both checkpoints say that it is not kept.
    pub(super) fn retire(&mut self, now_ns: u64) -> Option<Order> {
        if self.retiring.is_busy() || self.closing {
            return None;
        }
        self.leave();
        if self.retiring.is_unsaid() {
            return self.write_checkpoint(now_ns);
        }
        let segment = self.retiring.leaving.pop_front()?;
        // One that is being zeroed does not count: else each that retires would come too late, and zeroing would never end.
        // One without a footer was left by a crash or by an error: nobody knows whether its file can be relied on.
        let useful = segment.footer.is_some()
            && segment.file_len == self.config.segment_bytes
            && self.spares.ready.len() < SPARES;
        let spare = useful.then(|| self.spares.new_id());
        self.retiring.going = Some(spare);
        Some(Order::Retire { name: segment.name, spare })
    }

    /// Takes segments out of the log that nobody needs. The newest stays, whatever it holds: its successor follows it.
    fn leave(&mut self) {
        if !std::mem::take(&mut self.retiring.unseen) {
            return; // each append asks: to add up all segments is too much then
        }
        let mut kept: u64 = self.kept_bytes();
        while self.segments.len() > 1 {
            let oldest = &self.segments[0];
            let allowed = kept - oldest.file_len >= self.retiring.keep_bytes;
            if oldest.last_seq >= self.retiring.below || !allowed {
                return;
            }
            kept -= oldest.file_len;
            self.retiring.leaving.push_back(self.segments.remove(0));
        }
    }

    /// The segment is gone, or not: then the next open removes it.
    pub fn on_retired(&mut self, result: Result<(), Failed>) {
        let spare = self.retiring.going.take().flatten();
        if let (Ok(()), Some(id)) = (result, spare) {
            self.spares.ready.push_back(Spare { id, recycled: true });
        }
        self.check();
    }

    /// Is the next segment to be begun with the spare that is being made?
    pub(super) fn awaits_spare(&self) -> bool {
        self.spares.making.is_some() && self.spares.ready.is_empty() && self.header.size == self.config.segment_bytes
    }

    /// Spares that are there, or on their way.
    pub(super) fn spare_count(&self) -> usize {
        let coming = usize::from(self.spares.making.is_some());
        self.spares.ready.len() + coming + usize::from(self.retiring.going.flatten().is_some())
    }

    /// One spare is made while the second quarter of a segment is written, another in its second half; what retires saves the work.
    pub(super) fn make_spare(&mut self, now_ns: u64) -> Option<Order> {
        let wanted = (self.pos * 4 / self.header.size).min(SPARES as u64) as usize;
        let may = self.phase == Phase::Writing && !self.closing && self.spares.making.is_none();
        if !may || self.spare_count() >= wanted || self.spares.retry.is_some_and(|at| at > now_ns) {
            return None;
        }
        let id = self.spares.new_id();
        (self.spares.making, self.spares.retry) = (Some(id), None);
        Some(Order::Spare { id, bytes: self.config.segment_bytes })
    }

    /// The spare is ready, or not.
    pub fn on_spare(&mut self, result: Result<(), Failed>, now_ns: u64) {
        let Some(id) = self.spares.making.take() else { return };
        match result {
            Ok(()) => self.spares.ready.push_back(Spare { id, recycled: false }),
            Err(_) => self.spares.retry = Some(now_ns + FULL_RETRY_NS),
        }
        self.check();
    }
}
