//! Goes through a log segment by segment: which are to be read, and what each means for the whole.

use super::content::{Content, Ending, Task};
use super::{Corrupt, Depth, Floor, FooterLost, Found, Gap, Segment, Stale, Storage, Torn, Verdict, Why, Witness};
use crate::Hlc;
use crate::limits::{BLOCK, TORN_BYTES_MAX};
use crate::segment::{Checkpoint, Fault, Footer, Header, file_name, seq_of_name};
use std::collections::BTreeMap;
use std::io;

/// An examination under way: `next`, then `take` what was read, until there is nothing more.
pub struct Course {
    found: Found,
    floor: Floor,
    depth: Depth,
    /// The first seq that the checkpoint keeps; without a checkpoint nobody knows whether anything was before the first segment.
    kept: Option<u64>,
    segments: Vec<(String, u64, Result<Header, Fault>)>,
    at: usize,
    ended: bool,
}

impl Course {
    /// Lists the directory and reads the checkpoints and all headers.
    pub fn survey(files: &mut impl Storage, floor: Floor, depth: Depth) -> io::Result<Course> {
        let mut listed = files.list()?;
        listed.sort();
        let checkpoints = read_checkpoints(files, &listed)?;
        let mut found = Found::nothing(checkpoints.iter().copied().max_by_key(|c| c.generation));
        listed.retain(|(name, _)| seq_of_name(name).is_some());
        let kept = found.checkpoint.map(|c| c.first_kept.max(1));
        // Either checkpoint may be lost later, and the other must not expect what is gone: both have to say so.
        found.expired = expired(&mut listed, checkpoints.iter().map(|c| c.first_kept).min().unwrap_or(0));
        let mut segments = Vec::with_capacity(listed.len());
        for (name, file_len) in listed {
            let header = Header::parse(&files.read(&name, 0, BLOCK)?);
            segments.push((name, file_len, header));
        }
        Ok(Course { found, floor, depth, kept, segments, at: 0, ended: false })
    }

    /// What `next` will ask for, in its order, if every byte is to be read and all is well.
    pub fn tasks(&self) -> Vec<Task> {
        (0..self.segments.len()).map_while(|at| self.task(at)).collect()
    }

    /// The next segment to read; `None`: the verdict is known. Segments that need not be read are passed over.
    pub fn next(&mut self, files: &mut impl Storage) -> io::Result<Option<Task>> {
        while !self.ended && self.at < self.segments.len() {
            let at = self.at;
            self.at += 1;
            let (name, file_len, header) = &self.segments[at];
            let header = match header {
                Ok(header) => header,
                Err(fault) => {
                    self.found.verdict = self.found.corrupt_at(name, 0, Why::Header(*fault));
                    break;
                }
            };
            if self.found.segments.is_empty() {
                // What was before the first segment kept is known by its header alone.
                self.found.last_seq = self.kept.unwrap_or(u64::MAX).min(header.first_seq) - 1;
                self.found.chain = header.prev_chain;
            }
            if let Err(verdict) = self.found.link_header(name, header) {
                self.found.verdict = verdict;
                break;
            }
            let next = self.segments.get(at + 1);
            if let Some((next, _, Err(fault))) = next {
                self.found.last_seq = seq_of_name(next).map_or(0, |s| s - 1);
                self.found.verdict = self.found.corrupt_at(next, 0, Why::Header(*fault));
                break;
            }
            let next = next.and_then(|(_, _, header)| header.as_ref().ok());
            let passed = self.depth == Depth::Needed
                && self.found.pass_over(files, name, *file_len, header, next, self.floor)?;
            if !passed {
                return Ok(self.task(at));
            }
        }
        self.ended = true;
        Ok(None)
    }

    /// What was read of the segment that `next` gave.
    pub fn take(&mut self, content: Content) {
        self.found.verdict = self.found.take(content, self.floor);
        self.ended = !self.found.verdict.is_sound();
    }

    /// What was found, and the verdict.
    pub fn finish(mut self) -> Found {
        let nothing = self.found.segments.is_empty() && self.found.verdict == Verdict::Empty;
        if let (true, Some((durable, _))) = (nothing, self.found.known(self.floor)) {
            let from = self.kept.unwrap_or(1);
            self.found.verdict = Verdict::Gap(Gap { from, to: durable, file: file_name(from) });
        }
        self.found
    }

    fn task(&self, at: usize) -> Option<Task> {
        let (name, file_len, header) = self.segments.get(at)?;
        let header = header.as_ref().ok()?.clone();
        let next = match self.segments.get(at + 1) {
            Some((_, _, next)) => Some(next.as_ref().ok()?),
            None => None,
        };
        let (end, sealed) = (next.map(|n| n.prev_end), next.is_some_and(|n| n.prev_sealed));
        Some(Task { name: name.clone(), file_len: *file_len, header, end, sealed })
    }
}

/// Takes the segments off the list all of whose seqs are below `kept`: those whose successor begins at or below it.
fn expired(listed: &mut Vec<(String, u64)>, kept: u64) -> Vec<String> {
    let begins = |at: usize| listed.get(at).and_then(|(name, _)| seq_of_name(name));
    let count = (0..listed.len()).take_while(|at| begins(at + 1).is_some_and(|next| next <= kept)).count();
    listed.drain(..count).map(|(name, _)| name).collect()
}

fn read_checkpoints(files: &mut impl Storage, listed: &[(String, u64)]) -> io::Result<Vec<Checkpoint>> {
    let mut all = Vec::new();
    for name in Checkpoint::NAMES {
        if listed.iter().any(|(n, _)| n == name) {
            all.extend(Checkpoint::parse(&files.read(name, 0, BLOCK)?).ok());
        }
    }
    Ok(all)
}

impl Found {
    fn nothing(checkpoint: Option<Checkpoint>) -> Found {
        Found {
            segments: Vec::new(),
            verdict: Verdict::Empty,
            last_seq: 0,
            chain: 0,
            last_hlc: Hlc(0),
            term: 0,
            fences: BTreeMap::new(),
            checkpoint,
            expired: Vec::new(),
            footers_lost: Vec::new(),
        }
    }

    fn corrupt_at(&self, file: &str, pos: u64, why: Why) -> Verdict {
        Verdict::Corrupt(Corrupt { file: file.to_owned(), pos, seq: self.last_seq + 1, why })
    }

    /// The highest seq known to be durable without reading a batch; `None` if nobody knows of any.
    fn known(&self, floor: Floor) -> Option<(u64, Witness)> {
        let uuid = self.segments.last().map(|s| s.header.log_uuid);
        let checkpoint = self.checkpoint.filter(|c| uuid.is_none_or(|u| u == c.log_uuid)).map_or(0, |c| c.durable_seq);
        [(checkpoint, Witness::Checkpoint), (floor.applied, Witness::Store), (floor.peers, Witness::Peer)]
            .into_iter()
            .max_by_key(|(seq, _)| *seq)
            .filter(|(seq, _)| *seq > 0)
    }

    /// Does this header continue what was found so far?
    fn link_header(&self, name: &str, header: &Header) -> Result<(), Verdict> {
        if header.first_seq > self.last_seq + 1 {
            let (from, to) = (self.last_seq + 1, header.first_seq - 1);
            return Err(Verdict::Gap(Gap { from, to, file: name.to_owned() }));
        }
        let before = self.segments.last().map(|s| &s.header);
        let wrong = [
            (seq_of_name(name) != Some(header.first_seq), "the file's name"),
            (before.is_some_and(|b| header.number != b.number + 1), "segment number"),
            (before.is_some_and(|b| header.log_uuid != b.log_uuid), "log_uuid"),
            (before.is_some_and(|b| (header.zone, header.stream) != (b.zone, b.stream)), "zone or stream"),
            (before.is_some() && header.first_seq != self.last_seq + 1, "first seq"),
            (before.is_some() && header.prev_chain != self.chain, "chain"),
        ];
        match wrong.into_iter().find(|(is, _)| *is) {
            Some((_, field)) => Err(self.corrupt_at(name, 0, Why::Link(field))),
            None => Ok(()),
        }
    }

    /// Takes a sealed segment that the store has applied by its footer; false: it has to be read.
    fn pass_over(
        &mut self,
        files: &mut impl Storage,
        name: &str,
        file_len: u64,
        header: &Header,
        next: Option<&Header>,
        floor: Floor,
    ) -> io::Result<bool> {
        let Some(next) = next.filter(|n| n.first_seq - 1 <= floor.applied) else { return Ok(false) };
        let footer = Footer::parse(&files.read(name, next.prev_end, BLOCK)?).ok();
        let fits = |f: &Footer| f.salt == header.salt && f.last_seq == next.first_seq - 1;
        let Some(footer) = footer.filter(fits) else { return Ok(false) };
        (self.last_seq, self.chain) = (footer.last_seq, next.prev_chain);
        self.last_hlc = self.last_hlc.max(header.created).max(footer.last_hlc);
        self.term = self.term.max(header.term);
        let mut segment = Segment::begun(name, file_len, header.clone());
        (segment.end, segment.last_seq, segment.footer) = (next.prev_end, footer.last_seq, Some(footer));
        self.segments.push(segment);
        self.verdict = Verdict::Clean;
        Ok(true)
    }

    /// Adds what was read in the next segment, which its header has linked; the verdict so far.
    fn take(&mut self, content: Content, floor: Floor) -> Verdict {
        for (shard, epoch) in content.fences {
            let fence = self.fences.entry(shard).or_default();
            *fence = epoch.max(*fence);
        }
        (self.last_seq, self.chain) = (content.segment.last_seq, content.chain);
        self.last_hlc = self.last_hlc.max(content.last_hlc);
        self.term = self.term.max(content.term);
        let (name, sealed) = (content.segment.name.clone(), content.segment.footer.is_some());
        if content.footer_lost {
            self.footers_lost.push(FooterLost { file: name.clone(), pos: content.segment.end });
        }
        self.segments.push(content.segment);
        let (pos, fault, behind, known) = match content.ending {
            Ending::Whole => return Verdict::Clean,
            Ending::Digest => return self.corrupt_at(&name, crate::segment::FIRST_POS, Why::Digest),
            Ending::Unlinked { pos, field } => return self.corrupt_at(&name, pos, Why::Link(field)),
            Ending::Damaged { pos, fault } => return self.corrupt_at(&name, pos, Why::Batch(fault)),
            Ending::Open { pos, fault, behind, known } => (pos, fault, behind, known),
        };
        let recycled = self.segments.last().is_some_and(|s| s.header.recycled);
        let inside = Some((known.max(behind.known), Witness::Segment));
        let known = inside.into_iter().chain(self.known(floor)).max_by_key(|(seq, _)| *seq);
        let (file, seq) = (name, self.last_seq + 1);
        match known {
            // It was sealed: what came after it was in another segment.
            Some((durable, _)) if durable >= seq && sealed => {
                Verdict::Gap(Gap { from: seq, to: durable, file: file_name(seq) })
            }
            Some((durable, by)) if durable >= seq => self.corrupt_at(&file, pos, Why::Known { fault, durable, by }),
            _ if sealed || behind.len == 0 => Verdict::Clean,
            _ if !behind.own && (behind.foreign || recycled && !behind.continues) => {
                Verdict::Stale(Stale { file, pos, seq })
            }
            _ => Verdict::Torn(Torn { file, pos, len: behind.len.min(TORN_BYTES_MAX), seq, fault }),
        }
    }
}
