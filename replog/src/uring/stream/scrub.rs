//! Reads sealed segments again in the background, at a bounded rate: damage at rest is to be found while a copy can still mend it.

use super::reader::Batches;
use super::{Error, Shared};
use crate::limits::BLOCK;
use crate::open::Segment;
use crate::segment::{Digest, Footer, Header};
use glommio::io::DmaFile;
use glommio::timer::sleep;
use std::cmp::max;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

/// How often what was sealed is read again, and how fast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scrub {
    /// Bytes a second; 0: never.
    pub bytes_per_s: u64,
    /// A pass begins so long after the one before it began, or at its end.
    pub every: Duration,
}

impl Scrub {
    /// None at all.
    pub const NEVER: Scrub = Scrub { bytes_per_s: 0, every: Duration::from_secs(24 * 3600) };
}

/// What the scrub has seen since the log was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scrubbed {
    /// Whole passes.
    pub passes: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Sealed segments that failed when they were read last.
    pub damaged: Vec<Damage>,
    /// Sealed segments that were damaged and are whole again, mended while the log ran.
    pub mended: u64,
}

/// A sealed segment that fails its checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Its file.
    pub file: String,
    /// The first seq that it was to hold.
    pub first_seq: u64,
    /// What was seen.
    pub why: String,
}

/// How soon a closed log is noticed, at most.
const NAP: Duration = Duration::from_millis(200);

/// Goes on until nobody holds the log any more, or it is closed.
pub(super) async fn run(shared: Weak<Shared>, scrub: Scrub) {
    if scrub.bytes_per_s == 0 {
        return;
    }
    loop {
        let began = Instant::now();
        let mut number = 0;
        loop {
            let Some(shared) = shared.upgrade().filter(|s| s.is_open()) else { return };
            let Some(segment) = shared.sealed_after(number) else { break };
            number = segment.header.number;
            let outcome = shared.check(&segment, scrub.bytes_per_s).await;
            shared.scrubbed(&segment, outcome);
        }
        match shared.upgrade() {
            Some(shared) => shared.state.borrow_mut().scrubbed.passes += 1,
            None => return,
        }
        // Nobody waits for this task to end: it goes with its executor. A pass over nothing must not spin.
        sleep(scrub.every.saturating_sub(began.elapsed()).max(NAP)).await;
    }
}

impl Shared {
    fn is_open(&self) -> bool {
        self.state.borrow().lock.is_some()
    }

    /// The next sealed segment behind the one with this number; the one that is written is none.
    fn sealed_after(&self, number: u64) -> Option<Segment> {
        self.state.borrow().log.sealed().find(|s| s.header.number > number).cloned()
    }

    /// Reads a segment whole, at a steady pace.
    async fn check(&self, segment: &Segment, bytes_per_s: u64) -> Result<(), Error> {
        let file = DmaFile::open(self.dir.join(&segment.name)).await.map_err(|e| self.io(e.into()))?;
        let file = Rc::new(file);
        let mut done = self.check_blocks(segment, &file).await;
        if done.is_ok() {
            done = self.check_batches(segment, file.clone(), bytes_per_s).await;
        }
        let closed = file.close_rc().await.map_err(|e| self.io(e.into()));
        done.and(closed.map(drop))
    }

    /// Are header and footer what they were?
    async fn check_blocks(&self, segment: &Segment, file: &DmaFile) -> Result<(), Error> {
        let damaged = |pos, what| Err(Error::Block { file: segment.name.clone(), pos, what });
        let header = file.read_at(0, BLOCK).await.map_err(|e| self.io(e.into()))?;
        if Header::parse(&header).as_ref() != Ok(&segment.header) {
            return damaged(0, "header");
        }
        let Some(sealed) = &segment.footer else { return Ok(()) };
        let footer = file.read_at(segment.end, BLOCK).await.map_err(|e| self.io(e.into()))?;
        if Footer::parse(&footer).as_ref() != Ok(sealed) { damaged(segment.end, "footer") } else { Ok(()) }
    }

    async fn check_batches(&self, segment: &Segment, file: Rc<DmaFile>, bytes_per_s: u64) -> Result<(), Error> {
        let mut batches = Batches::of(segment, file, crate::segment::FIRST_POS);
        let (began, mut digest) = (Instant::now(), Digest::default());
        let (mut next_seq, mut chain) = (segment.header.first_seq, segment.header.prev_chain);
        while let Some((pos, batch)) = batches.next(self).await? {
            if (batch.first_seq, batch.prev_chain) != (next_seq, chain) {
                return Err(Error::Unlinked { file: segment.name.clone(), pos, seq: next_seq });
            }
            (next_seq, chain) = (batch.last_seq() + 1, batch.chain);
            digest.add(&batch);
            self.state.borrow_mut().scrubbed.bytes += batch.disk_len() as u64;
            let due = Duration::from_micros(max(pos, 1) * 1_000_000 / bytes_per_s);
            while self.is_open() && began.elapsed() < due {
                sleep(NAP.min(due.saturating_sub(began.elapsed()))).await;
            }
            if !self.is_open() {
                return Ok(());
            }
        }
        let sealed = segment.footer.as_ref().is_none_or(|f| f.digest == digest.finish());
        if next_seq != segment.last_seq + 1 || !sealed {
            return Err(Error::Unlinked { file: segment.name.clone(), pos: batches.pos, seq: next_seq });
        }
        Ok(())
    }

    fn scrubbed(&self, segment: &Segment, outcome: Result<(), Error>) {
        let mut state = self.state.borrow_mut();
        let is_kept = state.log.sealed().any(|s| s.header.number == segment.header.number);
        let was = state.scrubbed.damaged.iter().position(|d| d.file == segment.name);
        let was = was.map(|at| state.scrubbed.damaged.remove(at));
        // What was retired while it was read may hold anything by now.
        if let (Err(why), true) = (outcome, is_kept) {
            if was.is_none() {
                tracing::error!(
                    "{}: {why}, found by the scrub; seq {} to {} are in that segment. Nothing was changed yet: the node mends it with \
                     another zone's copy, while it runs if it can, and at its next start",
                    self.dir.display(),
                    segment.header.first_seq,
                    segment.last_seq
                );
            }
            self.mark_damaged(&why);
            let (file, first_seq) = (segment.name.clone(), segment.header.first_seq);
            state.scrubbed.damaged.push(Damage { file, first_seq, why: why.to_string() });
        }
    }
}
