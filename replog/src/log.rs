//! The writer of one stream, or of one mirror: takes records or batches, orders writes and flushes, says what is durable.
//!
//! ```text
//! append -> collecting -> cut into a batch -> queue -> placed in the segment, in flight -> written -> synced: durable
//! ```
//!
//! It does no I/O: a driver drains `next_order`, carries each order out, and reports with `on_*`. Orders of one log may run side by
//! side; the log itself never orders a flush before it has seen the writes that the flush is to cover.

pub use crate::order::{Config, Failed, Opened, Order, Refused};

use crate::Hlc;
use crate::batch::{Batch, Origin};
use crate::limits::{
    APPEND_BYTES_MAX, BLOCK, CHECKPOINT_AFTER_NS, CUT_AFTER_NS, CUT_BYTES, FLIGHT_MAX, FULL_RETRY_NS, MARKER_AFTER_NS,
    PENDING_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
};
use crate::open::{Found, Segment};
use crate::record::Record;
use crate::segment::{Checkpoint, FIRST_POS, Footer, Header};
use std::collections::VecDeque;

/// A batch that has its place in the current segment.
#[derive(Clone, Debug)]
struct Flight {
    batch: Batch,
    id: u64,
    pos: u64,
    written: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// A segment has to be begun.
    Wanted,
    /// It is being begun.
    Beginning,
    /// Batches are written.
    Writing,
    /// The footer is being written.
    Sealing,
    /// No room; try again at this time.
    Full(u64),
    /// Failed twice.
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reserve {
    None,
    Making,
    Ready,
    Retry(u64),
}

/// The machine. Positions: durable <= placed <= next - 1.
#[derive(Clone, Debug)]
pub struct Log {
    config: Config,
    origin: Origin,
    log_uuid: u128,
    salts: Salts,
    durable_seq: u64,
    durable_chain: u32,
    /// The seq that the next record gets, and the chain and HLC before it.
    next_seq: u64,
    chain: u32,
    newest_hlc: Hlc,
    collecting: Vec<Record>,
    collecting_bytes: usize,
    collecting_since: u64,
    transactions: u32,
    queue: VecDeque<Batch>,
    flight: VecDeque<Flight>,
    pending_bytes: usize,
    next_id: u64,
    /// The flush under way: its id and the last seq that it covers.
    syncing: Option<(u64, u64)>,
    phase: Phase,
    header: Header,
    digest: blake3::Hasher,
    /// Lowest and highest HLC of the current segment.
    hlcs: Option<(Hlc, Hlc)>,
    pos: u64,
    /// All segments, the current one last; durable batches only.
    segments: Vec<Segment>,
    reserve: Reserve,
    failures: u32,
    /// What a poisoned segment held unacknowledged ends here: it may yet be read there, so that it cannot be refused.
    unclear_to: u64,
    refuse_from: Option<u64>,
    stop_said: bool,
    marker_due: Option<u64>,
    closing: bool,
    checkpoint: Checkpoint,
    checkpoint_at: Option<u64>,
    checkpoint_busy: bool,
}

/// Salts of segments out of one random number.
#[derive(Clone, Copy, Debug)]
struct Salts(u64);

impl Salts {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Log {
    /// A log whose directory was found to be empty, clean or torn; it begins a new segment first. `log_uuid` is for an empty
    /// directory: random for an origin, the origin's for a mirror. `salt` is random.
    ///
    /// Precondition: the verdict is not corrupt, and what was found is of this zone and stream.
    pub fn recovered(config: Config, found: Found, log_uuid: u128, salt: u64) -> (Log, Opened) {
        assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&config.segment_bytes), "the driver has checked it");
        let last = found.segments.last();
        let log_uuid = last.map_or(log_uuid, |s| s.header.log_uuid);
        let term = if config.mirror { found.term } else { found.term + 1 };
        let opened = Opened {
            log_uuid,
            term,
            first_seq: found.segments.first().map_or(1, |s| s.header.first_seq),
            durable_seq: found.last_seq,
            chain: found.chain,
            last_hlc: found.last_hlc,
            fences: found.fences,
        };
        let mut salts = Salts(salt);
        // A segment without a batch is replaced by one of its own number, which then follows the same predecessor.
        let (number, prev_end) = match last {
            None => (1, 0),
            Some(s) if s.batches == 0 => (s.header.number, s.header.prev_end),
            Some(s) => (s.header.number + 1, s.end),
        };
        let header = Header {
            zone: config.zone,
            stream: config.stream,
            log_uuid,
            number,
            first_seq: found.last_seq + 1,
            term,
            salt: salts.next(),
            prev_chain: found.chain,
            prev_end,
            size: config.segment_bytes,
            created: found.last_hlc,
        };
        let checkpoint = Checkpoint {
            generation: found.checkpoint.map_or(0, |c| c.generation),
            log_uuid,
            durable_seq: found.last_seq,
            term,
        };
        let mut segments = found.segments;
        if segments.last().is_some_and(|s| s.batches == 0) {
            segments.pop();
        }
        let log = Log {
            config,
            origin: Origin { stream: config.stream, zone: config.zone, term, log_uuid_lo: log_uuid as u64 },
            log_uuid,
            salts,
            durable_seq: found.last_seq,
            durable_chain: found.chain,
            next_seq: found.last_seq + 1,
            chain: found.chain,
            newest_hlc: found.last_hlc,
            collecting: Vec::new(),
            collecting_bytes: 0,
            collecting_since: 0,
            transactions: 0,
            queue: VecDeque::new(),
            flight: VecDeque::new(),
            pending_bytes: 0,
            next_id: 0,
            syncing: None,
            phase: Phase::Wanted,
            header,
            digest: blake3::Hasher::new(),
            hlcs: None,
            pos: FIRST_POS,
            segments,
            reserve: Reserve::None,
            failures: 0,
            unclear_to: 0,
            refuse_from: None,
            stop_said: false,
            marker_due: None,
            closing: false,
            checkpoint,
            checkpoint_at: None,
            checkpoint_busy: false,
        };
        log.check();
        (log, opened)
    }

    // ---- what comes in ------------------------------------------------------------------------------------------------

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
        let writing = self.phase == Phase::Writing && self.reserve != Reserve::Making;
        self.phase == Phase::Stopped
            || self.closing && (writing && quiet && settled || matches!(self.phase, Phase::Full(_)))
    }

    // ---- positions ----------------------------------------------------------------------------------------------------

    /// Everything up to this seq is durable here.
    pub fn durable_seq(&self) -> u64 {
        self.durable_seq
    }
    /// The chain at the durable seq.
    pub fn durable_chain(&self) -> u32 {
        self.durable_chain
    }
    /// The seq that the next record gets.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }
    /// The chain behind the last batch that was cut or taken.
    pub fn chain_at_end(&self) -> u32 {
        self.chain
    }
    /// The newest HLC taken.
    pub fn newest_hlc(&self) -> Hlc {
        self.newest_hlc
    }
    /// The writer's term; of a mirror: the highest seen.
    pub fn term(&self) -> u64 {
        self.origin.term
    }
    /// The stream's incarnation.
    pub fn log_uuid(&self) -> u128 {
        self.log_uuid
    }
    /// Has it failed twice?
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }
    /// Is a reserve segment being made?
    pub fn is_reserving(&self) -> bool {
        self.reserve == Reserve::Making
    }
    /// Is there no room for another segment?
    pub fn is_full(&self) -> bool {
        matches!(self.phase, Phase::Full(_))
    }

    /// Where to read on to find `seq`: the segment and a position in it, at or before the batch that holds the seq. `None`: not
    /// kept, or not durable here.
    pub fn locate(&self, seq: u64) -> Option<(&Segment, u64)> {
        if seq > self.durable_seq {
            return None;
        }
        let at = self.segments.partition_point(|s| s.header.first_seq <= seq).checked_sub(1)?;
        let segment = &self.segments[at];
        let mark = segment.marks.partition_point(|(first, _)| *first <= seq).checked_sub(1)?;
        Some((segment, segment.marks[mark].1))
    }

    /// When `next_order` may have something new to say though nothing was reported.
    pub fn deadline(&self) -> Option<u64> {
        let writing = self.phase == Phase::Writing;
        let cut = (writing && !self.collecting.is_empty()).then_some(self.collecting_since + CUT_AFTER_NS);
        let retry = if let Phase::Full(at) = self.phase { Some(at) } else { None };
        let reserve = if let (true, Reserve::Retry(at)) = (writing, self.reserve) { Some(at) } else { None };
        let checkpoint = self.checkpoint_at.filter(|_| !self.checkpoint_busy);
        let marker = self.marker_due.filter(|_| writing && self.is_idle());
        [cut, retry, reserve, checkpoint, marker].into_iter().flatten().min()
    }

    // ---- orders -------------------------------------------------------------------------------------------------------

    /// The next thing to do; to be drained until `None` after each change and at each deadline.
    pub fn next_order(&mut self, now_ns: u64) -> Option<Order> {
        let order = self.decide(now_ns);
        self.check();
        order
    }

    fn decide(&mut self, now_ns: u64) -> Option<Order> {
        if let Some(from_seq) = self.refuse_from.take() {
            return Some(Order::Refuse { from_seq });
        }
        match self.phase {
            Phase::Stopped => return (!std::mem::replace(&mut self.stop_said, true)).then_some(Order::Stop),
            Phase::Full(at) if at <= now_ns && !self.closing => self.phase = Phase::Wanted,
            _ => {}
        }
        if self.phase == Phase::Wanted {
            return Some(self.begin());
        }
        self.mark_idle(now_ns);
        if self.cut_is_due(now_ns) {
            self.cut(now_ns);
        }
        self.place().or_else(|| self.sync()).or_else(|| self.reserve(now_ns)).or_else(|| self.write_checkpoint(now_ns))
    }

    fn begin(&mut self) -> Order {
        self.phase = Phase::Beginning;
        if self.reserve == Reserve::Ready && self.header.size == self.config.segment_bytes {
            self.reserve = Reserve::None;
        }
        Order::Begin { name: self.header.file_name(), header: self.header.encode(), bytes: self.header.size }
    }

    /// Puts the next batch into the segment, or seals the segment if there is no room for it.
    fn place(&mut self) -> Option<Order> {
        if self.phase != Phase::Writing || self.flight.len() >= FLIGHT_MAX {
            return None;
        }
        let len = self.queue.front()?.disk_len() as u64;
        if self.pos + len + BLOCK as u64 > self.header.size {
            return if self.flight.is_empty() { Some(self.roll()) } else { None };
        }
        let batch = self.queue.pop_front().expect("its length was just read");
        let (id, pos) = (self.id(), self.pos);
        let bytes = batch.place(self.header.salt, pos, self.durable_seq).freeze();
        self.pos += len;
        self.flight.push_back(Flight { batch, id, pos, written: false });
        Some(Order::Write { id, pos, bytes })
    }

    fn roll(&mut self) -> Order {
        if self.segments.last().is_some_and(|s| s.batches == 0) {
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
            digest: *self.digest.finalize().as_bytes(),
        };
        let bytes = footer.encode();
        self.segments.last_mut().expect("the current segment").footer = Some(footer);
        Order::Seal { pos: self.pos, bytes }
    }

    /// Flushes what has been seen written, if no flush is under way.
    fn sync(&mut self) -> Option<Order> {
        if self.syncing.is_some() || self.phase != Phase::Writing {
            return None;
        }
        let covered = self.flight.iter().take_while(|f| f.written).last()?.batch.last_seq();
        let id = self.id();
        self.syncing = Some((id, covered));
        Some(Order::Sync { id })
    }

    fn reserve(&mut self, now_ns: u64) -> Option<Order> {
        let due = match self.reserve {
            Reserve::None => true,
            Reserve::Retry(at) => at <= now_ns,
            Reserve::Making | Reserve::Ready => false,
        };
        if !due || self.phase != Phase::Writing || self.closing || self.pos < self.header.size / 2 {
            return None;
        }
        self.reserve = Reserve::Making;
        Some(Order::Reserve { bytes: self.config.segment_bytes })
    }

    fn write_checkpoint(&mut self, now_ns: u64) -> Option<Order> {
        let settled = self.closing && self.is_idle() && self.collecting.is_empty() && self.marker_due.is_none();
        let due = self.checkpoint_at.is_some_and(|at| at <= now_ns || settled);
        if self.checkpoint_busy || !due {
            return None;
        }
        self.checkpoint_at = None;
        self.checkpoint_busy = true;
        self.checkpoint.generation += 1;
        self.checkpoint.durable_seq = self.durable_seq;
        self.checkpoint.term = self.origin.term;
        let name = Checkpoint::NAMES[(self.checkpoint.generation % 2) as usize];
        Some(Order::Checkpoint { name, bytes: self.checkpoint.encode() })
    }

    /// Appends the one marker that follows the last commit.
    fn mark_idle(&mut self, now_ns: u64) {
        let due = self.marker_due.is_some_and(|at| at <= now_ns || self.closing);
        if due && self.is_idle() && self.collecting.is_empty() && self.phase == Phase::Writing {
            self.marker_due = None;
            self.transactions = 1;
            self.collecting.push(Record::marker(self.newest_hlc));
            self.next_seq += 1;
            self.cut(now_ns);
        }
    }

    fn cut_is_due(&self, now_ns: u64) -> bool {
        let ripe = self.collecting_bytes >= CUT_BYTES || self.collecting_since + CUT_AFTER_NS <= now_ns;
        !self.collecting.is_empty() && self.phase == Phase::Writing && (self.is_idle() || ripe)
    }

    /// Makes a batch of what was collected.
    fn cut(&mut self, now_ns: u64) {
        if self.collecting.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.collecting);
        (self.collecting_bytes, self.transactions) = (0, 0);
        let first_seq = self.next_seq - records.len() as u64;
        let batch = Batch::build(&self.origin, first_seq, self.chain, now_ns, &records);
        self.push(batch);
    }

    fn push(&mut self, batch: Batch) {
        self.chain = batch.chain;
        self.pending_bytes += batch.disk_len();
        self.queue.push_back(batch);
    }

    // ---- reports ------------------------------------------------------------------------------------------------------

    /// The segment was begun, or not.
    pub fn on_segment(&mut self, result: Result<(), Failed>, now_ns: u64) {
        match result {
            Ok(()) => {
                self.phase = Phase::Writing;
                self.pos = FIRST_POS;
                self.digest = blake3::Hasher::new();
                self.hlcs = None;
                self.segments.push(Segment {
                    name: self.header.file_name(),
                    header: self.header.clone(),
                    file_len: self.header.size,
                    end: FIRST_POS,
                    last_seq: self.durable_seq,
                    batches: 0,
                    footer: None,
                    marks: Vec::new(),
                });
            }
            Err(Failed::Full) if self.unclear_to <= self.durable_seq => {
                self.phase = Phase::Full(now_ns + FULL_RETRY_NS);
                self.take_back();
            }
            Err(Failed::Full | Failed::Io) => self.phase = Phase::Stopped,
        }
        self.check();
    }

    /// A write is done.
    pub fn on_written(&mut self, id: u64, result: Result<(), Failed>) {
        let Some(flight) = self.flight.iter_mut().find(|f| f.id == id) else { return };
        match result {
            Ok(()) => flight.written = true,
            Err(_) => self.poisoned(),
        }
        self.check();
    }

    /// A flush is done: what it covered is durable. Returns those batches, in order.
    pub fn on_synced(&mut self, id: u64, result: Result<(), Failed>, now_ns: u64) -> Vec<Batch> {
        let Some((_, covered)) = self.syncing.filter(|(syncing, _)| *syncing == id) else { return Vec::new() };
        self.syncing = None;
        if result.is_err() {
            self.poisoned();
            self.check();
            return Vec::new();
        }
        let mut done = Vec::new();
        while self.flight.front().is_some_and(|f| f.batch.last_seq() <= covered) {
            let flight = self.flight.pop_front().expect("its front was just seen");
            self.settle(&flight, now_ns);
            done.push(flight.batch);
        }
        self.checkpoint_at = self.checkpoint_at.or(Some(now_ns + CHECKPOINT_AFTER_NS));
        self.check();
        done
    }

    /// The footer was written, or not: the successor's header says where the segment ends.
    pub fn on_sealed(&mut self) {
        self.next_segment(self.pos);
        self.check();
    }

    /// The reserve is ready, or not.
    pub fn on_reserve(&mut self, result: Result<(), Failed>, now_ns: u64) {
        self.reserve = if result.is_ok() { Reserve::Ready } else { Reserve::Retry(now_ns + FULL_RETRY_NS) };
    }

    /// The checkpoint was written, or not: it is a help, not a promise.
    pub fn on_checkpoint(&mut self) {
        self.checkpoint_busy = false;
    }

    fn settle(&mut self, flight: &Flight, now_ns: u64) {
        let batch = &flight.batch;
        self.durable_seq = batch.last_seq();
        self.durable_chain = batch.chain;
        self.pending_bytes -= batch.disk_len();
        let head = usize::from(u16::from_le_bytes([batch.bytes[20], batch.bytes[21]]));
        self.digest.update(&batch.bytes[16..20]);
        self.digest.update(&batch.bytes[crate::limits::HEADER..head]);
        let (first, last) = self.hlcs.unwrap_or((batch.first_hlc, batch.last_hlc));
        self.hlcs = Some((first.min(batch.first_hlc), last.max(batch.last_hlc)));
        self.segments.last_mut().expect("the current segment").took(batch, flight.pos);
        self.marker_due = (!self.config.mirror && !batch.is_marker()).then_some(now_ns + MARKER_AFTER_NS);
    }

    /// A write or a flush failed: the file is never touched again; what it held unacknowledged goes into a new one.
    fn poisoned(&mut self) {
        self.failures += 1;
        self.syncing = None;
        if self.failures > 1 {
            self.phase = Phase::Stopped;
            return;
        }
        let end = self.flight.front().map_or(self.pos, |f| f.pos);
        self.unclear_to = self.flight.back().map_or(self.durable_seq, |f| f.batch.last_seq());
        while let Some(flight) = self.flight.pop_back() {
            self.queue.push_front(flight.batch);
        }
        self.next_segment(end);
    }

    /// The segment ends at `end`; another has to be begun behind the durable seq.
    fn next_segment(&mut self, end: u64) {
        let empty = self.segments.last().is_some_and(|s| s.batches == 0);
        if empty {
            // It is replaced by one of its own number and name, which follows the same predecessor.
            self.segments.pop();
        } else {
            self.header.number += 1;
            self.header.prev_end = end;
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
    fn take_back(&mut self) {
        assert!(self.flight.is_empty(), "a segment is begun when all of the one before is durable");
        self.queue.clear();
        self.collecting.clear();
        (self.collecting_bytes, self.transactions, self.pending_bytes) = (0, 0, 0);
        self.next_seq = self.durable_seq + 1;
        self.chain = self.durable_chain;
        self.refuse_from = Some(self.next_seq);
    }

    fn may_append(&self) -> Result<(), Refused> {
        match self.phase {
            Phase::Stopped => Err(Refused::Closed),
            _ if self.closing => Err(Refused::Closed),
            Phase::Full(_) => Err(Refused::Full),
            _ if self.pending_bytes + self.collecting_bytes > PENDING_BYTES_MAX => Err(Refused::Busy),
            Phase::Wanted | Phase::Beginning | Phase::Writing | Phase::Sealing => Ok(()),
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.flight.is_empty() && self.syncing.is_none()
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// What must hold after each change.
    fn check(&self) {
        assert!(self.durable_seq < self.next_seq);
        assert!(self.pos <= self.header.size);
        assert!(self.checkpoint.durable_seq <= self.durable_seq);
        let mut seq = self.durable_seq + 1;
        for batch in self.flight.iter().map(|f| &f.batch).chain(&self.queue) {
            assert_eq!(batch.first_seq, seq, "batches follow each other");
            seq = batch.last_seq() + 1;
        }
        assert_eq!(seq + self.collecting.len() as u64, self.next_seq, "no seq is skipped");
    }
}
