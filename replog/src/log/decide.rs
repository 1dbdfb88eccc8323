//! What a log wants done next: a segment begun, batches written, a flush, a reserve, a checkpoint.

use super::{Flight, Log, Order, Phase};
use crate::limits::{BLOCK, FLIGHT_MAX, RUN_BYTES, THROUGH_RECORDS_MAX};
use crate::open::Segment;
use crate::segment::{Checkpoint, Footer};

impl Log {
    /// The next thing to do; to be drained until `None` after each change and at each deadline.
    pub fn next_order(&mut self, now_ns: u64) -> Option<Order> {
        let order = self.decide(now_ns);
        self.check();
        order
    }

    pub(super) fn decide(&mut self, now_ns: u64) -> Option<Order> {
        if let Some(from_seq) = self.refuse_from.take() {
            return Some(Order::Refuse { from_seq });
        }
        match self.phase {
            Phase::Stopped => return (!std::mem::replace(&mut self.stop_said, true)).then_some(Order::Stop),
            Phase::Full(at) if at <= now_ns && !self.closing => self.phase = Phase::Wanted,
            _ => {}
        }
        if self.phase == Phase::Wanted && !self.awaits_spare() {
            return Some(self.begin());
        }
        self.mark_idle(now_ns);
        if self.cut_is_due(now_ns) {
            self.cut(now_ns);
        }
        self.place(now_ns)
            .or_else(|| self.sync())
            .or_else(|| self.write_checkpoint(now_ns))
            .or_else(|| self.retire(now_ns))
            .or_else(|| self.make_spare(now_ns))
    }

    pub(super) fn begin(&mut self) -> Order {
        self.phase = Phase::Beginning;
        let usual = self.header.size == self.config.segment_bytes;
        let spare = if usual { self.spares.take() } else { None };
        self.header.recycled = spare.is_some_and(|s| s.recycled);
        let (name, header) = (self.header.file_name(), self.header.encode());
        Order::Begin { name, header, bytes: self.header.size, spare: spare.map(|s| s.id) }
    }

    /// Puts the next batch into the segment, and those that wait behind it; or seals the segment if there is no room for it.
    pub(super) fn place(&mut self, now_ns: u64) -> Option<Order> {
        if self.phase != Phase::Writing || self.flight.len() >= FLIGHT_MAX {
            return None;
        }
        let len = self.queue.front()?.disk_len() as u64;
        if self.pos + len + BLOCK as u64 > self.header.size {
            return if self.flight.is_empty() { Some(self.roll()) } else { None };
        }
        let batch = self.queue.pop_front().expect("its length was just read");
        let (id, pos) = (self.id(), self.pos);
        let mut bytes = batch.placed(self.header.salt, pos, self.durable_seq);
        self.pos += len;
        let mut batches = vec![batch];
        while let Some(next) = self.queue.front() {
            let len = next.disk_len();
            if bytes.disk_len() + len > RUN_BYTES || self.pos + (len + BLOCK) as u64 > self.header.size {
                break;
            }
            bytes.then(next.placed(self.header.salt, self.pos, self.durable_seq));
            self.pos += len as u64;
            batches.extend(self.queue.pop_front());
        }
        self.placed_bytes += self.pos - pos;
        let records: usize = batches.iter().map(|b| b.records as usize).sum();
        let through = self.told.max(records) <= THROUGH_RECORDS_MAX && self.ways.choose();
        self.flight.push_back(Flight { batches, id, pos, placed_ns: now_ns, through, written: false, flushed: false });
        Some(Order::Write { id, pos, bytes, through })
    }

    pub(super) fn roll(&mut self) -> Order {
        if self.segments.last().is_some_and(Segment::is_empty) {
            self.next_segment(self.pos); // the first batch is too long for a segment of the usual length
            return self.begin();
        }
        self.phase = Phase::Sealing;
        let (first_hlc, last_hlc) = self.hlcs.unwrap_or_default();
        let footer = Footer {
            salt: self.header.salt,
            last_seq: self.durable_seq,
            records: self.durable_seq + 1 - self.header.first_seq,
            first_hlc,
            last_hlc,
            digest: self.digest.finish(),
        };
        let bytes = footer.encode();
        self.segments.last_mut().expect("the current segment").footer = Some(footer);
        Order::Seal { pos: self.pos, bytes }
    }

    /// Flushes what has been seen written, if no flush is under way.
    pub(super) fn sync(&mut self) -> Option<Order> {
        if self.syncing.is_some() || self.phase != Phase::Writing {
            return None;
        }
        let covered = self.flight.iter().take_while(|f| f.written).last()?.last_seq();
        let id = self.id();
        self.syncing = Some((id, covered));
        Some(Order::Sync { id })
    }

    pub(super) fn write_checkpoint(&mut self, now_ns: u64) -> Option<Order> {
        let settled = self.closing && self.is_idle() && self.collecting.is_empty() && self.marker_due.is_none();
        let due = self.checkpoint_at.is_some_and(|at| at <= now_ns || settled) || self.retiring.wants_checkpoint();
        if self.checkpoint_busy || !due {
            return None;
        }
        self.checkpoint_at = None;
        self.checkpoint_busy = true;
        self.checkpoint.generation += 1;
        self.checkpoint.durable_seq = self.durable_seq;
        self.checkpoint.term = self.origin.term;
        self.checkpoint.first_kept = self.first_kept();
        let name = Checkpoint::NAMES[(self.checkpoint.generation % 2) as usize];
        Some(Order::Checkpoint { name, bytes: self.checkpoint.encode() })
    }
}
