//! Walks a log from its oldest segment to its newest, a batch at a time, and goes on behind whatever cannot be read.
//!
//! It trusts what each batch says of itself, so that damage in one place hides nothing in another. Memory: a window of one
//! segment, and the names of all.

use super::files::Files;
use super::place::Place;
use replog::Hlc;
use replog::batch::{Batch, Fault};
use replog::limits::BLOCK;
use replog::open::{Storage, Walk};
use replog::segment::{self, FIRST_POS, Header, seq_of_name};
use replog::uring::dir::is_live;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

/// A batch that is being written is looked at again so often before it is called damaged.
const LIVE_TRIES: u32 = 10;
const LIVE_WAIT: Duration = Duration::from_millis(20);

/// What is found on the way.
#[derive(Clone, Debug)]
pub enum Item {
    /// A segment whose header holds begins.
    Segment(Header),
    /// An intact batch and where it lies.
    Batch { batch: Batch, pos: u64 },
    /// Nothing intact from `pos` to `to`, though there must be.
    Damage { file: String, pos: u64, to: u64, fault: Fault },
    /// Behind the last intact batch of all lies something that is no batch: torn, or being written.
    Tail { file: String, pos: u64, fault: Fault },
    /// A batch that does not continue the one before it.
    Break { file: String, pos: u64, expected_seq: u64, seen_seq: u64 },
    /// A file that is left out, and why.
    LeftOut { file: String, why: String },
    /// A segment went while it was read: retention took it.
    Retired { file: String },
}

/// Where to begin: what is surely before it is not read.
#[derive(Clone, Copy, Default, Debug)]
pub struct Start {
    /// The first seq that is wanted.
    pub seq: u64,
    /// The first HLC that is wanted.
    pub hlc: Hlc,
}

/// The walk.
pub struct Scan {
    files: Files,
    place: Place,
    start: Start,
    names: VecDeque<(String, u64)>,
    segment: Option<Segment>,
    pending: VecDeque<Item>,
    /// The seq and chain that continue what was read.
    next: Option<(u64, u32)>,
    /// Something was of a newer format.
    newer: bool,
    /// The first seqs of segments that are not read.
    skip: BTreeSet<u64>,
}

struct Segment {
    name: String,
    header: Header,
    walk: Walk,
    pos: u64,
    end: u64,
    /// Its successor says where it ends.
    bounded: bool,
}

impl Scan {
    /// Over all that is listed now.
    pub fn new(mut files: Files, place: &Place, start: Start) -> io::Result<Scan> {
        let names = files.segments()?.into();
        let (segment, pending) = (None, VecDeque::new());
        Ok(Scan {
            files,
            place: place.clone(),
            start,
            names,
            segment,
            pending,
            next: None,
            newer: false,
            skip: BTreeSet::new(),
        })
    }

    /// Leaves out the segments that begin with these seqs.
    pub fn skipping(mut self, first_seqs: BTreeSet<u64>) -> Scan {
        self.skip = first_seqs;
        self
    }

    /// Was something of a newer format met?
    pub fn newer(&self) -> bool {
        self.newer
    }

    /// The next item; an error is one of reading.
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        loop {
            if let Some(item) = self.pending.pop_front() {
                return Ok(Some(item));
            }
            let Some(mut segment) = self.segment.take() else {
                match self.names.pop_front() {
                    Some((name, len)) => self.begin(name, len)?,
                    None => return Ok(None),
                }
                continue;
            };
            if segment.pos >= segment.end {
                continue;
            }
            let name = segment.name.clone();
            let read = match segment.walk.at(&mut self.files, segment.pos) {
                Ok(Ok((batch, _))) => {
                    self.link(&segment, &batch);
                    let pos = segment.pos;
                    segment.pos += batch.disk_len() as u64;
                    self.segment = Some(segment);
                    self.pending.push_back(Item::Batch { batch, pos });
                    continue;
                }
                Ok(Err(fault)) => self.fault(segment, fault),
                Err(e) => Err(e),
            };
            match read {
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.retired(name),
                other => other?,
            }
        }
    }

    /// Retention has taken it, so that nothing continues what was before it.
    fn retired(&mut self, file: String) {
        self.next = None;
        self.files.forget();
        self.pending.push_back(Item::Retired { file });
    }

    fn begin(&mut self, name: String, len: u64) -> io::Result<()> {
        let after = self.names.front().cloned();
        let before_start = after.as_ref().and_then(|(n, _)| seq_of_name(n)).is_some_and(|next| next <= self.start.seq);
        if seq_of_name(&name).is_some_and(|first| self.skip.contains(&first)) {
            self.next = None;
            return Ok(());
        }
        if before_start || !self.place.wants(&name) {
            return Ok(());
        }
        let header = match self.header(&name) {
            Ok(Some(header)) => header,
            Ok(None) => {
                self.retired(name);
                return Ok(());
            }
            Err(why) => {
                self.next = None;
                self.pending.push_back(Item::LeftOut { file: name, why });
                return Ok(());
            }
        };
        // A successor that cannot be read says nothing here; its own turn comes.
        let after = after.and_then(|(next, _)| self.header(&next).ok().flatten());
        let after = after.filter(|a| a.number == header.number + 1);
        if after.as_ref().is_some_and(|a| a.created < self.start.hlc) {
            return Ok(());
        }
        let end = after.as_ref().map_or(len, |a| a.prev_end.min(len));
        self.pending.push_back(Item::Segment(header.clone()));
        let (walk, pos, bounded) = (Walk::new(&name, header.salt, end), FIRST_POS, after.is_some());
        self.segment = Some(Segment { name, header, walk, pos, end, bounded });
        Ok(())
    }

    /// A segment's header; `None` if the file is not there any more.
    fn header(&mut self, name: &str) -> Result<Option<Header>, String> {
        match self.files.read(name, 0, BLOCK) {
            Ok(block) => match Header::parse(&block) {
                // A file that was opened under this name and used again since then has the header of another segment.
                Ok(header) if seq_of_name(name) != Some(header.first_seq) && self.files.is_gone(name) => Ok(None),
                Ok(header) => Ok(Some(header)),
                Err(_) if self.files.is_gone(name) => Ok(None),
                Err(fault) => {
                    self.newer |= matches!(fault, segment::Fault::Version(_));
                    Err(explain(&fault.to_string(), matches!(fault, segment::Fault::Version(_))))
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.kind().to_string()), // the file is named beside it
        }
    }

    fn link(&mut self, segment: &Segment, batch: &Batch) {
        let (seq, chain) = self.next.unwrap_or((batch.first_seq, batch.prev_chain));
        if (batch.first_seq, batch.prev_chain) != (seq, chain) {
            let (file, pos) = (segment.name.clone(), segment.pos);
            self.pending.push_back(Item::Break { file, pos, expected_seq: seq, seen_seq: batch.first_seq });
        }
        self.next = Some((batch.last_seq() + 1, batch.chain));
    }

    /// No intact batch is at the segment's position: goes on behind it, if there is anything.
    fn fault(&mut self, mut segment: Segment, fault: Fault) -> io::Result<()> {
        let (name, pos) = (segment.name.clone(), segment.pos);
        self.newer |= matches!(fault, Fault::Newer { .. });
        let quiet = matches!(fault, Fault::Magic(0) | Fault::Place | Fault::Length { .. }) || fault == FOOTER;
        let mut to = None;
        let mut at = pos + BLOCK as u64;
        while at < segment.end && to.is_none() {
            if segment.walk.at(&mut self.files, at)?.is_ok() {
                to = Some(at);
            }
            at += BLOCK as u64;
        }
        if to.is_none() && !segment.bounded && quiet {
            return Ok(());
        }
        if self.files.is_gone(&name) {
            self.retired(name);
            return Ok(());
        }
        if !segment.bounded && self.settles(&mut segment)? {
            self.segment = Some(segment);
            return Ok(());
        }
        match to.or(segment.bounded.then_some(segment.end)) {
            Some(to) => {
                self.next = None;
                self.pending.push_back(Item::Damage { file: name, pos, to, fault });
                self.segment = Some(Segment { pos: to, ..segment });
            }
            None => self.pending.push_back(Item::Tail { file: name, pos, fault }),
        }
        Ok(())
    }

    /// A writer may be at work on the batch: is it there a little later?
    fn settles(&mut self, segment: &mut Segment) -> io::Result<bool> {
        for _ in 0..LIVE_TRIES {
            if !is_live(&self.place.dir) {
                return Ok(false);
            }
            std::thread::sleep(LIVE_WAIT);
            segment.walk = Walk::new(&segment.name, segment.header.salt, segment.end);
            if segment.walk.at(&mut self.files, segment.pos)?.is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What a footer looks like to one who expects a batch.
const FOOTER: Fault = Fault::Magic(u32::from_le_bytes(*b"RLGE"));

/// Adds what to do to what was seen.
pub fn explain(seen: &str, newer: bool) -> String {
    if newer { format!("{seen}: use a newer ezctl") } else { seen.to_owned() }
}

impl Item {
    /// Did it go because nobody needs it any more?
    pub fn is_retired(&self) -> bool {
        matches!(self, Item::Retired { .. })
    }

    /// What is wrong, in a sentence; `None` of what is as it should be.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Item::Segment(_) | Item::Batch { .. } => None,
            Item::Damage { file, pos, to, fault } => {
                let newer = matches!(fault, Fault::Newer { .. });
                let why = explain(&fault.to_string(), newer);
                Some(format!("{file} at byte {pos}: {why}; nothing intact up to byte {to}"))
            }
            Item::Tail { file, pos, fault } => Some(format!("{file} at byte {pos}: {fault}; the log ends here")),
            Item::Break { file, pos, expected_seq, seen_seq } if expected_seq == seen_seq => {
                Some(format!("{file} at byte {pos}: the chain breaks at seq {seen_seq}"))
            }
            Item::Break { file, pos, expected_seq, seen_seq } => Some(format!(
                "{file} at byte {pos}: seq {seen_seq}, expected {expected_seq}: what is between is missing"
            )),
            Item::LeftOut { file, why } => Some(format!("{file}: {why}; the file is left out")),
            Item::Retired { file } => Some(format!("{file}: retired while it was read")),
        }
    }
}
