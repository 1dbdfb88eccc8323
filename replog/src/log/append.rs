//! What a log is given: records or batches, collected and cut; and the one marker that follows the last commit.

use super::{Log, Phase, Refused};
use crate::batch::Batch;
use crate::limits::{APPEND_BYTES_MAX, CUT_AFTER_NS, CUT_BYTES, FLIGHT_MAX, PENDING_BYTES_MAX};
use crate::record::Record;

impl Log {
    /// Takes records that are to be durable together, in order; their seqs begin with the one returned. Records of this
    /// append that follow each other with the same transaction number stay one transaction.
    pub fn append(&mut self, mut records: Vec<Record>, now_ns: u64) -> Result<u64, Refused> {
        if self.config.mirror {
            return Err(Refused::Kind);
        }
        self.may_append()?;
        let bytes: usize = records.iter().map(Record::len_max).sum();
        if records.is_empty() || bytes > APPEND_BYTES_MAX {
            return Err(Refused::Length(bytes));
        }
        let mut newest = self.newest_hlc;
        for record in &records {
            record.check().map_err(Refused::Invalid)?;
            if record.hlc < newest {
                return Err(Refused::Hlc { seen: record.hlc, newest });
            }
            newest = record.hlc;
        }
        if self.collecting_bytes + bytes > CUT_BYTES {
            self.cut(now_ns);
        }
        let mut last = None;
        for record in &mut records {
            if last.replace(record.transaction) != Some(record.transaction) {
                self.transactions += 1;
            }
            record.transaction = self.transactions - 1;
        }
        if self.collecting.is_empty() {
            self.collecting_since = now_ns;
        }
        let first_seq = self.next_seq;
        self.next_seq += records.len() as u64;
        self.newest_hlc = newest;
        self.collecting.append(&mut records);
        self.collecting_bytes += bytes;
        self.check();
        Ok(first_seq)
    }

    /// Takes the next batch of the origin, verbatim; `parse` has verified it.
    pub fn append_batch(&mut self, batch: Batch) -> Result<u64, Refused> {
        if !self.config.mirror {
            return Err(Refused::Kind);
        }
        self.may_append()?;
        let of = (batch.zone, batch.stream, batch.log_uuid_lo);
        if of != (self.origin.zone, self.origin.stream, self.origin.log_uuid_lo) {
            return Err(Refused::Foreign);
        }
        if batch.first_seq != self.next_seq {
            return Err(Refused::Seq { seen: batch.first_seq, expected: self.next_seq });
        }
        if batch.prev_chain != self.chain {
            return Err(Refused::Chain { seen: batch.prev_chain, expected: self.chain });
        }
        if batch.term < self.origin.term {
            return Err(Refused::Term { seen: batch.term, newest: self.origin.term });
        }
        self.next_seq = batch.last_seq() + 1;
        self.newest_hlc = self.newest_hlc.max(batch.last_hlc);
        self.origin.term = batch.term;
        self.push(batch);
        self.check();
        Ok(self.next_seq - 1)
    }

    /// No more appends; what was taken is made durable, then a marker and a checkpoint. Done when `is_closed`.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Nothing is left to do after `close`, or nothing can be done any more.
    pub fn is_closed(&self) -> bool {
        let quiet = self.is_idle() && self.collecting.is_empty() && self.marker_due.is_none();
        let settled = self.checkpoint.durable_seq == self.durable_seq && !self.checkpoint_busy;
        let writing = self.phase == Phase::Writing && self.spares.making.is_none() && !self.retiring.is_busy();
        self.phase == Phase::Stopped
            || self.closing && (writing && quiet && settled || matches!(self.phase, Phase::Full(_)))
    }

    /// Appends the one marker that follows the last commit.
    pub(super) fn mark_idle(&mut self, now_ns: u64) {
        let due = self.marker_due.is_some_and(|at| at <= now_ns || self.closing);
        if due && self.is_idle() && self.collecting.is_empty() && self.phase == Phase::Writing {
            self.marker_due = None;
            self.transactions = 1;
            self.collecting.push(Record::marker(self.newest_hlc));
            self.next_seq += 1;
            self.cut(now_ns);
        }
    }

    pub(super) fn cut_is_due(&self, now_ns: u64) -> bool {
        let ripe =
            self.collecting_bytes >= CUT_BYTES || self.may_cut() && self.collecting_since + CUT_AFTER_NS <= now_ns;
        !self.collecting.is_empty() && self.phase == Phase::Writing && (self.is_idle() || ripe)
    }

    /// Would a batch be written at once? Else what comes is better collected: many small batches that queue would each wait for
    /// a place beside those under way, and what waits would never become less.
    pub(super) fn may_cut(&self) -> bool {
        self.queue.is_empty() && self.flight.len() < FLIGHT_MAX
    }

    /// Makes a batch of what was collected.
    pub(super) fn cut(&mut self, now_ns: u64) {
        if self.collecting.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.collecting);
        (self.collecting_bytes, self.transactions) = (0, 0);
        let first_seq = self.next_seq - records.len() as u64;
        let batch = Batch::build(&self.origin, first_seq, self.chain, now_ns, &records);
        self.push(batch);
    }

    pub(super) fn push(&mut self, batch: Batch) {
        self.chain = batch.chain;
        self.pending_bytes += batch.disk_len();
        self.queue.push_back(batch);
    }

    pub(super) fn may_append(&self) -> Result<(), Refused> {
        match self.phase {
            Phase::Stopped => Err(Refused::Closed),
            _ if self.closing => Err(Refused::Closed),
            Phase::Full(_) => Err(Refused::Full),
            _ if self.pending_bytes + self.collecting_bytes > PENDING_BYTES_MAX => Err(Refused::Busy),
            Phase::Wanted | Phase::Beginning | Phase::Writing | Phase::Sealing => Ok(()),
        }
    }
}
