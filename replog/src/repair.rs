//! Finds what is damaged in a log and plans copies of its segments that are as they were, with the help of another copy.
//!
//! ```text
//! a batch               the same bytes are in every copy: fetched by seq, checked, and linked on both sides of the hole
//! a stamp (4..16)       of this disk alone: kept, or found again by its own checksum, or the lowest that is true
//! padding, a footer     follow from the batches
//! a segment's header    follows from its neighbours; what does not is settled by its checksum and by the batches' stamps
//! a missing segment     the source's batches under a new header and new stamps
//! ```
//!
//! A plan changes nothing. Nothing is planned that the source contradicts; a damaged end that nobody knows to be durable is left
//! to the next open, which calls it torn.

mod header;
mod missing;
mod plan;
mod segment;
mod source;
mod stamp;

pub use plan::{Content, Note, Patch, Plan, Rebuilt, Refusal, What};
pub use source::{Directory, Source};

use crate::open::{Floor, Storage};
use crate::segment::{Checkpoint, Header, seq_of_name};
use crate::{Hlc, limits::BLOCK, segment::Fault};
use shardmap::Zone;
use std::collections::VecDeque;
use std::io;

/// Ends of batches that are remembered: a stamp names one of the last few.
const ENDS_MAX: usize = 256;

/// Whose log it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The zone that writes the stream.
    pub zone: Zone,
    /// The stream's number.
    pub stream: u32,
    /// Its incarnation.
    pub log_uuid: u128,
}

/// A segment file as it was listed.
struct Slot {
    name: String,
    first_seq: u64,
    file_len: u64,
    header: Result<Header, Fault>,
    /// Its header's number, or the likeliest if the header is damaged.
    number: u64,
}

/// What is known of the segment behind those that are missing.
#[derive(Clone, Copy)]
struct Bound {
    first_seq: u64,
    number: u64,
    /// The chain of the last missing batch, and where the last missing segment ends; `None` if its header is damaged.
    prev_chain: Option<u32>,
    prev_end: Option<u64>,
}

impl Bound {
    fn of(h: &Header) -> Bound {
        let (prev_chain, prev_end) = (Some(h.prev_chain), Some(h.prev_end));
        Bound { first_seq: h.first_seq, number: h.number, prev_chain, prev_end }
    }
}

/// How far the log was followed.
struct Reached {
    next_seq: u64,
    /// `None`: behind a hole that could not be filled.
    chain: Option<u32>,
    term: u64,
    hlc: Hlc,
    /// The highest local_durable_seq of a stamp.
    durable: u64,
    /// The last seqs of the batches before.
    ends: VecDeque<u64>,
    /// Number, end and length of the segment before.
    segment: Option<(u64, u64, u64)>,
    /// It has a footer, or is to get one.
    sealed: bool,
    /// If it has none: the segment as it would be with one.
    unsealed: Option<Rebuilt>,
}

/// Makes a plan.
struct Planner<'a, S> {
    files: &'a mut S,
    source: Option<&'a mut (dyn Source + 'a)>,
    identity: Identity,
    /// What checkpoint, store and peers know to be durable.
    known: u64,
    /// Nothing below is kept.
    kept: Option<u64>,
    reached: Reached,
    salt: u64,
    plan: Plan,
}

/// Examines the log whole and plans its repair from `source`; without one, only what needs none. `salt` is random. An error is one
/// of reading; what cannot be repaired is in the plan.
pub fn plan<'a, S: Storage>(
    files: &'a mut S,
    mut source: Option<&'a mut (dyn Source + 'a)>,
    floor: Floor,
    salt: u64,
) -> io::Result<Plan> {
    let (slots, checkpoint) = list(files)?;
    let of_source = match &mut source {
        Some(source) => source.identity()?,
        None => None,
    };
    let Some(identity) = identify(&slots, checkpoint, of_source) else {
        let known = checkpoint.map_or(0, |c| c.durable_seq).max(floor.applied).max(floor.peers);
        let lost = !slots.is_empty() || known > 0;
        let refused = if lost { vec![Refusal::Nameless] } else { Vec::new() };
        return Ok(Plan { files: Vec::new(), refused });
    };
    let of_log = checkpoint.filter(|c| c.log_uuid == identity.log_uuid);
    let mut planner = Planner {
        files,
        source,
        identity,
        known: of_log.map_or(0, |c| c.durable_seq).max(floor.applied).max(floor.peers),
        kept: of_log.map(|c| c.first_kept.max(1)),
        reached: Reached::nothing(),
        salt,
        plan: Plan::default(),
    };
    planner.segments(slots)?;
    Ok(planner.plan)
}

/// The segments and the newest checkpoint.
fn list(files: &mut impl Storage) -> io::Result<(Vec<Slot>, Option<Checkpoint>)> {
    let mut listed = files.list()?;
    listed.sort();
    let mut slots = Vec::new();
    let mut checkpoint: Option<Checkpoint> = None;
    for (name, file_len) in listed {
        if Checkpoint::NAMES.contains(&&name[..]) {
            let read = Checkpoint::parse(&files.read(&name, 0, BLOCK)?).ok();
            checkpoint = checkpoint.into_iter().chain(read).max_by_key(|c| c.generation);
        } else if let Some(first_seq) = seq_of_name(&name) {
            let block = files.read(&name, 0, BLOCK)?;
            let header = Header::parse(&block);
            // What a damaged one says of its number is weighed against its neighbours below.
            let seen = block.get(40..48).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
            slots.push(Slot { name, first_seq, file_len, header, number: seen });
        }
    }
    // What is below the first seq kept is on its way out.
    let kept = checkpoint.map_or(0, |c| c.first_kept);
    let expired = (0..slots.len()).take_while(|at| slots.get(at + 1).is_some_and(|s| s.first_seq <= kept)).count();
    slots.drain(..expired);
    number(&mut slots);
    Ok((slots, checkpoint))
}

/// Tells the numbers of segments whose headers are damaged: between those of their neighbours, and what they say if that fits.
fn number(slots: &mut [Slot]) {
    for at in 0..slots.len() {
        let least = if at == 0 { 1 } else { slots[at - 1].number + 1 };
        let sound = slots[at..].iter().position(|s| s.header.is_ok());
        // So many follow up to one that is known; each has a number of its own.
        let most = sound.map(|n| slots[at + n].number.saturating_sub(n as u64).max(least));
        if slots[at].header.is_err() {
            let most = most.unwrap_or(least + slots.len() as u64);
            let first = at == 0 && slots[at].first_seq > 1;
            let fits = (least..=most).contains(&slots[at].number);
            slots[at].number = if fits {
                slots[at].number
            } else if first {
                most
            } else {
                least
            };
        }
    }
}

/// Whose log it is, by the first header that holds; without one, by the checkpoint and the source. Another incarnation could be
/// mistaken for this one only if nothing here names it.
fn identify(slots: &[Slot], checkpoint: Option<Checkpoint>, of_source: Option<Identity>) -> Option<Identity> {
    let header = slots.iter().find_map(|s| s.header.as_ref().ok());
    let own = header.map(|h| Identity { zone: h.zone, stream: h.stream, log_uuid: h.log_uuid });
    own.or(of_source.filter(|s| checkpoint.is_none_or(|c| c.log_uuid == s.log_uuid)))
}

impl Reached {
    fn nothing() -> Reached {
        let (chain, ends) = (Some(0), VecDeque::from([0]));
        Reached {
            next_seq: 1,
            chain,
            term: 0,
            hlc: Hlc(0),
            durable: 0,
            ends,
            segment: None,
            sealed: false,
            unsealed: None,
        }
    }

    /// Goes on from here, whatever was before.
    fn jump(&mut self, next_seq: u64, chain: Option<u32>) {
        (self.next_seq, self.chain) = (next_seq, chain);
        self.end(next_seq - 1);
    }

    fn end(&mut self, last_seq: u64) {
        if self.ends.len() == ENDS_MAX {
            self.ends.pop_front();
        }
        self.ends.push_back(last_seq);
    }
}

impl<S: Storage> Planner<'_, S> {
    fn segments(&mut self, slots: Vec<Slot>) -> io::Result<()> {
        match (slots.first(), self.kept) {
            (Some(first), kept) => {
                let begin = kept.unwrap_or(first.first_seq).min(first.first_seq);
                let chain = if begin == 1 { Some(0) } else { None };
                self.reached.jump(begin, chain);
            }
            (None, Some(kept)) => self.reached.jump(kept, (kept == 1).then_some(0)),
            (None, None) => {}
        }
        for at in 0..slots.len() {
            self.one(&slots[at], slots.get(at + 1))?;
        }
        if self.reached.next_seq <= self.known {
            self.missing(None)?;
        }
        Ok(())
    }

    /// One segment, and what is missing before it.
    fn one(&mut self, slot: &Slot, next: Option<&Slot>) -> io::Result<()> {
        if let Err(Fault::Version(seen)) = slot.header {
            self.plan.refused.push(Refusal::Newer { file: slot.name.clone(), seen });
        }
        let own = slot.header.as_ref().ok().filter(|h| h.first_seq == slot.first_seq);
        let before = self.reached.segment.map(|(number, ..)| number);
        let skips = own.zip(before).is_none_or(|(h, before)| h.number > before + 1);
        if slot.first_seq > self.reached.next_seq && skips {
            // If its number is only likely, at least one segment is missing all the same.
            let (first_seq, number) = (slot.first_seq, slot.number.max(before.map_or(2, |before| before + 2)));
            let damaged = Bound { first_seq, number, prev_chain: None, prev_end: None };
            self.missing(Some(own.map_or(damaged, Bound::of)))?;
        }
        let mut rebuilt = Rebuilt { name: slot.name.clone(), is_new: false, len: slot.file_len, patches: Vec::new() };
        let header = match own {
            Some(header) => header.clone(),
            None => match self.header(slot, next, &mut rebuilt)? {
                Some(header) => {
                    self.seal_before(&header);
                    header
                }
                None => {
                    self.reached.jump(next.map_or(self.reached.next_seq, |n| n.first_seq), None);
                    self.reached.segment = None;
                    return Ok(());
                }
            },
        };
        self.link(slot, &header);
        self.batches(slot, &header, next, &mut rebuilt)?;
        if !rebuilt.patches.is_empty() {
            self.plan.files.push(rebuilt);
        }
        Ok(())
    }

    /// A header that was damaged, and is known now, may say that the segment before was sealed: then that one lacks its footer.
    fn seal_before(&mut self, header: &Header) {
        let unsealed = self.reached.unsealed.take().filter(|_| header.prev_sealed && !self.reached.sealed);
        let Some(mut footer) = unsealed else { return };
        self.reached.sealed = true;
        match self.plan.files.iter_mut().find(|f| f.name == footer.name) {
            Some(file) => {
                file.len = file.len.max(footer.len);
                file.patches.append(&mut footer.patches);
            }
            None => self.plan.files.push(footer),
        }
    }

    /// A header that holds must continue what is before it; if it does not, that is no damage of a disk.
    fn link(&mut self, slot: &Slot, header: &Header) {
        let r = &self.reached;
        let before = r.segment;
        let wrong = [
            (
                (header.zone, header.stream, header.log_uuid)
                    != (self.identity.zone, self.identity.stream, self.identity.log_uuid),
                "zone, stream or log_uuid",
            ),
            (before.is_some_and(|(number, ..)| header.number != number + 1), "segment number"),
            (before.is_some_and(|(_, end, _)| header.prev_end != end), "end of the segment before"),
            (header.first_seq != r.next_seq, "first seq"),
            (r.chain.is_some_and(|chain| chain != header.prev_chain), "chain"),
        ];
        if let Some((_, field)) = wrong.into_iter().find(|(is, _)| *is) {
            let refusal = Refusal::Link { file: slot.name.clone(), pos: 0, field };
            // A hole that was refused before has said it already.
            if self.plan.refused.is_empty() {
                self.plan.refused.push(refusal);
            }
        }
        self.reached.jump(header.first_seq, Some(header.prev_chain));
        self.reached.term = self.reached.term.max(header.term);
        self.reached.hlc = self.reached.hlc.max(header.created);
    }
}
