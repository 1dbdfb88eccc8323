//! The writer of one stream, or of one mirror: takes records or batches, orders writes and flushes, says what is durable.
//!
//! ```text
//! append -> collecting -> cut into a batch -> queue -> placed in the segment, in flight -> written -> flushed -> durable
//! ```
//!
//! It does no I/O: a driver drains `next_order`, carries each order out, and reports with `on_*`. Orders of one log may run side by
//! side; the log itself never orders a flush before it has seen the writes that the flush is to cover. A write may flush itself.

mod append;
mod decide;
mod reports;
mod retire;
mod ways;

pub use crate::order::{Config, Failed, Opened, Order, Refused, Spare};

use crate::Hlc;
use crate::batch::{Batch, Origin};
use crate::limits::{CUT_AFTER_NS, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SPARES};
use crate::open::{Found, Segment};
use crate::record::Record;
use crate::segment::{Checkpoint, Digest, FIRST_POS, Header};
use retire::{Retiring, Spares};
use std::collections::VecDeque;
use ways::Ways;

/// Batches that have their place in the current segment, and are written together.
#[derive(Clone, Debug)]
struct Flight {
    /// One at least.
    batches: Vec<Batch>,
    id: u64,
    /// Of the first.
    pos: u64,
    placed_ns: u64,
    /// Its write flushes it.
    through: bool,
    written: bool,
    /// Acknowledged when all before it are.
    flushed: bool,
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
    placed_bytes: u64,
    next_id: u64,
    /// The flush under way: its id and the last seq that it covers.
    syncing: Option<(u64, u64)>,
    /// How many records were acknowledged last: those who were told run while the next batch is on its way.
    told: usize,
    ways: Ways,
    phase: Phase,
    header: Header,
    digest: Digest,
    /// Lowest and highest HLC of the current segment.
    hlcs: Option<(Hlc, Hlc)>,
    pos: u64,
    /// All segments, the current one last; durable batches only.
    segments: Vec<Segment>,
    spares: Spares,
    retiring: Retiring,
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
    /// `spares` are files of a segment's length that an earlier run left; what they hold does not matter.
    ///
    /// Precondition: the verdict is sound, and what was found is of this zone and stream.
    pub fn recovered(config: Config, found: Found, spares: &[u64], log_uuid: u128, salt: u64) -> (Log, Opened) {
        assert!(found.verdict.is_sound(), "the driver has looked at the verdict");
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
        let (number, prev_end, prev_sealed) = match last {
            None => (1, 0, false),
            Some(s) if s.is_empty() => (s.header.number, s.header.prev_end, s.header.prev_sealed),
            Some(s) => (s.header.number + 1, s.end, s.footer.is_some()),
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
            recycled: false, // decided when it is begun
            prev_sealed,
        };
        let checkpoint = Checkpoint {
            generation: found.checkpoint.map_or(0, |c| c.generation),
            log_uuid,
            durable_seq: found.last_seq,
            term,
            first_kept: found.checkpoint.map_or(0, |c| c.first_kept),
        };
        let mut segments = found.segments;
        if segments.last().is_some_and(Segment::is_empty) {
            segments.pop();
        }
        if let Some(last) = segments.last_mut() {
            // The driver cuts it off there once its successor is durable.
            last.file_len = last.file_len.min(last.used_bytes());
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
            placed_bytes: 0,
            next_id: 0,
            syncing: None,
            told: 0,
            ways: Ways::default(),
            phase: Phase::Wanted,
            header,
            digest: Digest::default(),
            hlcs: None,
            pos: FIRST_POS,
            segments,
            spares: Spares::of(spares),
            retiring: Retiring::default(),
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
    /// The first seq that is kept, or the first of the segment to come.
    pub fn first_kept(&self) -> u64 {
        self.segments.first().map_or(self.header.first_seq, |s| s.header.first_seq)
    }
    /// The chain before the first seq that is kept.
    pub fn chain_before_kept(&self) -> u32 {
        self.segments.first().map_or(self.chain_at_end(), |s| s.header.prev_chain)
    }
    /// Has it failed twice?
    pub fn is_stopped(&self) -> bool {
        self.phase == Phase::Stopped
    }
    /// Does the next segment wait for a spare that is being made?
    pub fn is_waiting(&self) -> bool {
        self.phase == Phase::Wanted
    }
    /// Has it been told to close?
    pub fn is_closing(&self) -> bool {
        self.closing
    }
    /// Bytes of batches that were given a place since it was opened.
    pub fn bytes_placed(&self) -> u64 {
        self.placed_bytes
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
        let mark = segment.marks.partition_point(|(first, _)| *first <= seq).checked_sub(1);
        Some((segment, mark.map_or(FIRST_POS, |mark| segment.marks[mark].1)))
    }

    /// A reader has seen where a batch of this segment lies: what `locate` did not know of one that open passed over.
    pub fn learn(&mut self, number: u64, first_seq: u64, pos: u64) {
        if let Some(segment) = self.segments.iter_mut().find(|s| s.header.number == number) {
            segment.mark(first_seq, pos);
        }
    }

    /// When `next_order` may have something new to say though nothing was reported.
    pub fn deadline(&self) -> Option<u64> {
        let writing = self.phase == Phase::Writing;
        let cut =
            (writing && self.may_cut() && !self.collecting.is_empty()).then_some(self.collecting_since + CUT_AFTER_NS);
        let retry = if let Phase::Full(at) = self.phase { Some(at) } else { None };
        let spare = self.spares.retry.filter(|_| writing);
        let checkpoint = self.checkpoint_at.filter(|_| !self.checkpoint_busy);
        let marker = self.marker_due.filter(|_| writing && self.is_idle());
        [cut, retry, spare, checkpoint, marker].into_iter().flatten().min()
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
        assert!(self.spare_count() <= SPARES + 1);
        // A mirror that catches up has thousands of batches in its queue: looked through in tests and simulations only.
        if cfg!(debug_assertions) {
            let mut seq = self.durable_seq + 1;
            for batch in self.flight.iter().flat_map(|f| &f.batches).chain(&self.queue) {
                assert_eq!(batch.first_seq, seq, "batches follow each other");
                seq = batch.last_seq() + 1;
            }
            assert_eq!(seq + self.collecting.len() as u64, self.next_seq, "no seq is skipped");
        }
    }
}

impl Flight {
    fn last_seq(&self) -> u64 {
        self.batches.last().expect("one at least").last_seq()
    }
}
