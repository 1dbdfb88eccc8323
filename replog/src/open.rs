//! Reads a stream's directory and says what it is: whole, torn or stale at its end, corrupt, or with a gap. It changes nothing.
//!
//! ```text
//! sealed segments   each batch must be intact up to where the successor's header says that it ends
//! last segment      walk to the first batch, seq X, that fails a check:
//!     X <= a seq that anyone knows to be durable      corrupt: refuse, touch nothing
//!     else, zeros or the footer behind                clean
//!     else, blocks of an earlier use of the file      stale: as good as clean
//!     else                                            torn: what is behind was never acknowledged
//! a segment or the end is missing                     gap: refuse, touch nothing
//! ```

mod verdict;
mod walk;

pub use verdict::{Corrupt, Gap, Stale, Torn, Verdict, Why, Witness};
pub use walk::Walk;

use crate::Hlc;
use crate::batch::Batch;
use crate::limits::{BLOCK, SEGMENT_BYTES_MAX, TORN_BYTES_MAX};
use crate::segment::{Checkpoint, Digest, FIRST_POS, Footer, Header, file_name, seq_of_name};
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};
use std::collections::BTreeMap;
use std::io;
use walk::Behind;

/// A reader's index has an entry for each of so many bytes of a segment.
const MARK_EVERY: u64 = 256 * 1024;

/// A stream's directory, as far as reading goes.
pub trait Storage {
    /// Names and lengths of its files.
    fn list(&mut self) -> io::Result<Vec<(String, u64)>>;
    /// `len` bytes of a file from `pos` on; fewer only at its end.
    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes>;
}

/// What others know to be durable; a log that ends below it has lost something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// The store's durable applied position in this stream.
    pub applied: u64,
    /// The highest durable seq of any peer that could be asked.
    pub peers: u64,
}

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Every byte.
    Whole,
    /// What a writer needs to go on: of sealed segments that the store has applied, header and footer; the rest whole.
    Needed,
}

/// A segment as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its file.
    pub name: String,
    /// Its first block.
    pub header: Header,
    /// Length of the file.
    pub file_len: u64,
    /// Where its last batch ends.
    pub end: u64,
    /// The seq of its last record; one below its first seq if it has none.
    pub last_seq: u64,
    /// How many batches were read in it: all of them, unless `Depth` passed it over.
    pub batches: u64,
    /// Its footer, if it was sealed.
    pub footer: Option<Footer>,
    /// Seq and position of some of its batches, in order; the first among them if it was read.
    pub marks: Vec<(u64, u64)>,
}

/// What a stream's directory holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The segments, oldest first; the one that a verdict of corrupt names is the last.
    pub segments: Vec<Segment>,
    /// Is it whole?
    pub verdict: Verdict,
    /// The last seq of the intact part.
    pub last_seq: u64,
    /// The chain there.
    pub chain: u32,
    /// The newest HLC.
    pub last_hlc: Hlc,
    /// The highest term.
    pub term: u64,
    /// The highest FENCE of each shard in what was read; the store knows those in what was passed over.
    pub fences: BTreeMap<Shard, OwnerEpoch>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Segments below the first seq that the checkpoint keeps: a crash kept them from going. An open removes them.
    pub expired: Vec<String>,
}

/// Reads the whole directory, as deep as asked. An error is one of reading; everything that is wrong with what was read is in the
/// verdict.
pub fn examine(files: &mut impl Storage, floor: Floor, depth: Depth) -> io::Result<Found> {
    let mut listed = files.list()?;
    listed.sort();
    let mut found = Found::nothing(read_checkpoint(files, &listed)?);
    listed.retain(|(name, _)| seq_of_name(name).is_some());
    // Without a checkpoint nobody knows whether anything was there before the first segment.
    let kept = found.checkpoint.map(|c| c.first_kept.max(1));
    found.expired = expired(&mut listed, kept.unwrap_or(0));
    let mut headers = Vec::new();
    for (name, file_len) in listed {
        let block = files.read(&name, 0, BLOCK)?;
        headers.push((name, file_len, Header::parse(&block)));
    }
    for at in 0..headers.len() {
        let (name, file_len, header) = &headers[at];
        let header = match header {
            Ok(header) => header.clone(),
            Err(fault) => return Ok(found.corrupt(name, 0, Why::Header(*fault))),
        };
        if found.segments.is_empty() {
            // What was before the first segment kept is known by its header alone.
            found.last_seq = kept.unwrap_or(u64::MAX).min(header.first_seq) - 1;
            found.chain = header.prev_chain;
        }
        if let Err(verdict) = found.link_header(name, &header) {
            found.verdict = verdict;
            return Ok(found);
        }
        let next = match headers.get(at + 1) {
            Some((_, _, Ok(next))) => Some(next),
            Some((next, _, Err(fault))) => {
                found.last_seq = seq_of_name(next).map_or(0, |s| s - 1);
                return Ok(found.corrupt(next, 0, Why::Header(*fault)));
            }
            None => None,
        };
        found.term = found.term.max(header.term);
        found.last_hlc = found.last_hlc.max(header.created);
        if depth == Depth::Needed && found.pass_over(files, name, *file_len, &header, next, floor)? {
            continue;
        }
        found.verdict = found.read_segment(files, name, *file_len, header, next, floor)?;
        if !found.verdict.is_sound() {
            return Ok(found);
        }
    }
    if let (true, Some((durable, _))) = (found.segments.is_empty(), found.known(floor)) {
        let from = kept.unwrap_or(1);
        found.verdict = Verdict::Gap(Gap { from, to: durable, file: file_name(from) });
    }
    Ok(found)
}

/// Takes the segments off the list all of whose seqs are below `kept`: those whose successor begins at or below it.
fn expired(listed: &mut Vec<(String, u64)>, kept: u64) -> Vec<String> {
    let begins = |at: usize| listed.get(at).and_then(|(name, _)| seq_of_name(name));
    let count = (0..listed.len()).take_while(|at| begins(at + 1).is_some_and(|next| next <= kept)).count();
    listed.drain(..count).map(|(name, _)| name).collect()
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
        }
    }

    fn corrupt(mut self, file: &str, pos: u64, why: Why) -> Found {
        self.verdict = self.corrupt_at(file, pos, why);
        self
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
        self.last_hlc = self.last_hlc.max(footer.last_hlc);
        let mut segment = Segment::begun(name, file_len, header.clone());
        (segment.end, segment.last_seq, segment.footer) = (next.prev_end, footer.last_seq, Some(footer));
        self.segments.push(segment);
        self.verdict = Verdict::Clean;
        Ok(true)
    }

    /// Walks one segment; `next` says where it ends.
    fn read_segment(
        &mut self,
        files: &mut impl Storage,
        name: &str,
        file_len: u64,
        header: Header,
        next: Option<&Header>,
        floor: Floor,
    ) -> io::Result<Verdict> {
        let end = next.map(|n| n.prev_end);
        let limit = end.unwrap_or(file_len).min(file_len).min(SEGMENT_BYTES_MAX);
        let mut walk = Walk::new(name, header.salt, limit);
        let (salt, recycled) = (header.salt, header.recycled);
        let (mut pos, mut known, mut digest) = (FIRST_POS, 0, Digest::default());
        self.segments.push(Segment::begun(name, file_len, header));
        let fault = loop {
            if end == Some(pos) {
                break None;
            }
            match walk.at(files, pos)? {
                Err(fault) => break Some(fault),
                Ok((batch, stamp)) => {
                    if let Err(field) = self.link(&batch) {
                        return Ok(self.corrupt_at(name, pos, Why::Link(field)));
                    }
                    known = known.max(stamp.local_durable_seq);
                    digest.add(&batch);
                    self.take(&batch, pos);
                    pos += batch.disk_len() as u64;
                }
            }
        };
        let footer = Footer::parse(&files.read(name, pos, BLOCK)?).ok();
        let footer = footer.filter(|f| f.salt == salt && f.last_seq == self.last_seq);
        if footer.as_ref().is_some_and(|f| f.digest != digest.finish()) {
            return Ok(self.corrupt_at(name, FIRST_POS, Why::Digest));
        }
        let sealed = footer.is_some();
        self.segments.last_mut().expect("pushed above").footer = footer;
        let Some(fault) = fault else { return Ok(Verdict::Clean) };
        if end.is_some() {
            return Ok(self.corrupt_at(name, pos, Why::Batch(fault)));
        }
        let behind = Behind::look(files, &mut walk, pos, self.last_seq, self.chain)?;
        let inside = Some((known.max(behind.known), Witness::Segment));
        let known = inside.into_iter().chain(self.known(floor)).max_by_key(|(seq, _)| *seq);
        let (file, seq) = (name.to_owned(), self.last_seq + 1);
        Ok(match known {
            // It was sealed: what came after it was in another segment.
            Some((durable, _)) if durable >= seq && sealed => {
                Verdict::Gap(Gap { from: seq, to: durable, file: file_name(seq) })
            }
            Some((durable, by)) if durable >= seq => self.corrupt_at(name, pos, Why::Known { fault, durable, by }),
            _ if sealed || behind.len == 0 => Verdict::Clean,
            _ if !behind.own && (behind.foreign || recycled && !behind.continues) => {
                Verdict::Stale(Stale { file, pos, seq })
            }
            _ => Verdict::Torn(Torn { file, pos, len: behind.len.min(TORN_BYTES_MAX), seq, fault }),
        })
    }

    /// Does the batch continue the log?
    fn link(&self, batch: &Batch) -> Result<(), &'static str> {
        let header = &self.segments.last().expect("a segment is being read").header;
        let wrong = [
            (batch.first_seq != self.last_seq + 1, "first seq"),
            (batch.prev_chain != self.chain, "chain"),
            (batch.log_uuid_lo != header.log_uuid as u64, "log_uuid"),
            (batch.zone != header.zone || batch.stream != header.stream, "zone or stream"),
        ];
        wrong.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, field)| Err(field))
    }

    fn take(&mut self, batch: &Batch, pos: u64) {
        for (shard, epoch) in batch.fences() {
            let fence = self.fences.entry(shard).or_default();
            *fence = epoch.max(*fence);
        }
        self.last_seq = batch.last_seq();
        self.chain = batch.chain;
        self.last_hlc = self.last_hlc.max(batch.last_hlc);
        self.term = self.term.max(batch.term);
        let segment = self.segments.last_mut().expect("a segment is being read");
        segment.took(batch, pos);
    }
}

impl Segment {
    /// A segment of which nothing but the header is known.
    pub fn begun(name: &str, file_len: u64, header: Header) -> Segment {
        Segment {
            name: name.to_owned(),
            last_seq: header.first_seq - 1,
            header,
            file_len,
            end: FIRST_POS,
            batches: 0,
            footer: None,
            marks: Vec::new(),
        }
    }

    /// Does it hold no batch?
    pub fn is_empty(&self) -> bool {
        self.last_seq + 1 == self.header.first_seq
    }

    /// Bytes up to the end of its last batch, or of its footer.
    pub fn used_bytes(&self) -> u64 {
        self.end + if self.footer.is_some() { BLOCK as u64 } else { 0 }
    }

    /// Counts a batch at `pos` in.
    pub fn took(&mut self, batch: &Batch, pos: u64) {
        self.mark(batch.first_seq, pos);
        self.last_seq = batch.last_seq();
        self.end = pos + batch.disk_len() as u64;
        self.batches += 1;
    }

    /// Remembers where a batch lies, if it is far enough behind the one remembered last.
    pub fn mark(&mut self, first_seq: u64, pos: u64) {
        if self.marks.last().is_none_or(|(_, at)| pos >= at + MARK_EVERY) {
            self.marks.push((first_seq, pos));
        }
    }
}

fn read_checkpoint(files: &mut impl Storage, listed: &[(String, u64)]) -> io::Result<Option<Checkpoint>> {
    let mut newest: Option<Checkpoint> = None;
    for name in Checkpoint::NAMES {
        if listed.iter().any(|(n, _)| n == name) {
            let read = Checkpoint::parse(&files.read(name, 0, BLOCK)?).ok();
            newest = newest.into_iter().chain(read).max_by_key(|c| c.generation);
        }
    }
    Ok(newest)
}
