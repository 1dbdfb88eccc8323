//! What became of a log's orders: what is durable, what has to be written again, and where the log goes on.

use super::{Failed, Flight, Log, Phase};
use crate::batch::Batch;
use crate::limits::{BLOCK, CHECKPOINT_AFTER_NS, FULL_RETRY_NS, MARKER_AFTER_NS};
use crate::open::Segment;
use crate::segment::{Digest, FIRST_POS};

impl Log {
    /// The segment was begun, or not.
    pub fn on_segment(&mut self, result: Result<(), Failed>, now_ns: u64) {
        match result {
            Ok(()) => {
                self.phase = Phase::Writing;
                self.pos = FIRST_POS;
                self.digest = Digest::default();
                self.hlcs = None;
                let (name, bytes) = (self.header.file_name(), self.header.size);
                self.segments.push(Segment::begun(&name, bytes, self.header.clone()));
                self.retiring.on_segment();
            }
            Err(Failed::Full) if self.unclear_to <= self.durable_seq => {
                self.phase = Phase::Full(now_ns + FULL_RETRY_NS);
                self.take_back();
            }
            Err(Failed::Full | Failed::Io) => self.phase = Phase::Stopped,
        }
        self.check();
    }

    /// A write is done; one that flushes itself is durable by it. Returns the batches that are acknowledged now, in order.
    pub fn on_written(&mut self, id: u64, result: Result<(), Failed>, now_ns: u64) -> Vec<Batch> {
        let Some(flight) = self.flight.iter_mut().find(|f| f.id == id) else { return Vec::new() };
        match result {
            Ok(()) => (flight.written, flight.flushed) = (true, flight.through),
            Err(_) => self.poisoned(),
        }
        self.acknowledge(now_ns)
    }

    /// A flush is done. Returns the batches that are acknowledged now, in order.
    pub fn on_synced(&mut self, id: u64, result: Result<(), Failed>, now_ns: u64) -> Vec<Batch> {
        let Some((_, covered)) = self.syncing.filter(|(syncing, _)| *syncing == id) else { return Vec::new() };
        self.syncing = None;
        match result {
            Ok(()) => self.flight.iter_mut().filter(|f| f.last_seq() <= covered).for_each(|f| f.flushed = true),
            Err(_) => self.poisoned(),
        }
        self.acknowledge(now_ns)
    }

    /// What is flushed, and all before it, is durable.
    fn acknowledge(&mut self, now_ns: u64) -> Vec<Batch> {
        let mut done = Vec::new();
        while self.phase != Phase::Stopped && self.flight.front().is_some_and(|f| f.flushed) {
            let flight = self.flight.pop_front().expect("its front was just seen");
            self.ways.took(flight.through, now_ns.saturating_sub(flight.placed_ns));
            self.settle(&flight, now_ns);
            done.extend(flight.batches);
        }
        if !done.is_empty() {
            self.told = done.iter().map(|b| b.records as usize).sum();
            self.checkpoint_at = self.checkpoint_at.or(Some(now_ns + CHECKPOINT_AFTER_NS));
        }
        self.check();
        done
    }

    /// The footer was written, or not: the successor's header says where the segment ends. A file that failed is never used again, and
    /// what has no footer never is.
    pub fn on_sealed(&mut self, result: Result<(), Failed>) {
        if let (Err(_), Some(segment)) = (result, self.segments.last_mut()) {
            segment.footer = None;
        }
        self.next_segment(self.pos);
        self.check();
    }

    /// The checkpoint was written, or not: it is a help, not a promise; but what nobody needs goes only once one says so.
    pub fn on_checkpoint(&mut self, result: Result<(), Failed>, now_ns: u64) {
        self.checkpoint_busy = false;
        let file = (self.checkpoint.generation % 2) as usize;
        self.retiring.on_checkpoint(file, result.ok().map(|()| self.checkpoint.first_kept));
        if result.is_err() && !self.closing {
            self.checkpoint_at = Some(now_ns + CHECKPOINT_AFTER_NS); // a log that closes does without
        }
        self.check();
    }

    pub(super) fn settle(&mut self, flight: &Flight, now_ns: u64) {
        let mut pos = flight.pos;
        for batch in &flight.batches {
            self.durable_seq = batch.last_seq();
            self.durable_chain = batch.chain;
            self.pending_bytes -= batch.disk_len();
            self.digest.add(batch);
            let (first, last) = self.hlcs.unwrap_or((batch.first_hlc, batch.last_hlc));
            self.hlcs = Some((first.min(batch.first_hlc), last.max(batch.last_hlc)));
            self.segments.last_mut().expect("the current segment").took(batch, pos);
            self.marker_due = (!self.config.mirror && !batch.is_marker()).then_some(now_ns + MARKER_AFTER_NS);
            pos += batch.disk_len() as u64;
        }
    }

    /// A write or a flush failed: the file is never touched again; what it held unacknowledged goes into a new one.
    pub(super) fn poisoned(&mut self) {
        self.failures += 1;
        self.syncing = None;
        if self.failures > 1 {
            self.phase = Phase::Stopped;
            return;
        }
        let end = self.flight.front().map_or(self.pos, |f| f.pos);
        self.unclear_to = self.flight.back().map_or(self.durable_seq, Flight::last_seq);
        while let Some(flight) = self.flight.pop_back() {
            flight.batches.into_iter().rev().for_each(|b| self.queue.push_front(b));
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.file_len = end; // what is behind counts no more, and such a file is never used again
        }
        self.next_segment(end);
    }

    /// The segment ends at `end`; another has to be begun behind the durable seq.
    pub(super) fn next_segment(&mut self, end: u64) {
        let empty = self.segments.last().is_some_and(Segment::is_empty);
        if empty {
            // It is replaced by one of its own number and name, which follows the same predecessor.
            self.segments.pop();
        } else {
            self.header.number += 1;
            self.header.prev_end = end;
            self.header.prev_sealed = self.segments.last().is_some_and(|s| s.footer.is_some());
        }
        self.pos = FIRST_POS;
        self.header.first_seq = self.durable_seq + 1;
        self.header.prev_chain = self.durable_chain;
        self.header.salt = self.salts.next();
        self.header.term = self.origin.term;
        self.header.created = self.newest_hlc;
        let longest = self.queue.iter().map(Batch::disk_len).max().unwrap_or(0) as u64;
        self.header.size = self.config.segment_bytes.max(longest + 2 * BLOCK as u64);
        self.phase = Phase::Wanted;
    }

    /// Nothing beyond the durable seq was ever written: forget it, and have those told who wait for it.
    pub(super) fn take_back(&mut self) {
        assert!(self.flight.is_empty(), "a segment is begun when all of the one before is durable");
        self.queue.clear();
        self.collecting.clear();
        (self.collecting_bytes, self.transactions, self.pending_bytes) = (0, 0, 0);
        self.next_seq = self.durable_seq + 1;
        self.chain = self.durable_chain;
        self.refuse_from = Some(self.next_seq);
    }
}
