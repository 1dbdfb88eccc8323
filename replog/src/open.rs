//! Reads a stream's directory and says what it is: whole, torn at its end, or corrupt. It changes nothing.
//!
//! ```text
//! sealed segments   each batch must be intact up to where the successor's header says that it ends
//! last segment      walk to the first batch, seq X, that fails a check:
//!     X <= a seq that anyone knows to be durable      corrupt: refuse, touch nothing
//!     else, zeros or blocks of an earlier use behind  clean
//!     else                                            torn: what is behind was never acknowledged
//! ```

use crate::Hlc;
use crate::batch::{self, Batch, Stamp};
use crate::limits::{BATCH_MAX, BLOCK, HEAD_MAX, SEGMENT_BYTES_MAX};
use crate::record::Op;
use crate::segment::{self, Checkpoint, FIRST_POS, Footer, Header, seq_of_name};
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};
use std::collections::BTreeMap;
use std::{fmt, io};

/// How much is read at a time.
const WINDOW: usize = BATCH_MAX;
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

/// Who knows that a seq was durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// A checkpoint file.
    Checkpoint,
    /// The local_durable_seq of an intact batch.
    Batch,
    /// The store.
    Store,
    /// A peer's mirror.
    Peer,
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
    /// How many batches it holds.
    pub batches: u64,
    /// Its footer, if it was sealed.
    pub footer: Option<Footer>,
    /// Seq and position of some of its batches, in order, the first among them.
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
    /// The highest FENCE of each shard.
    pub fences: BTreeMap<Shard, OwnerEpoch>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
}

/// Is a log whole?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is no segment and no trace of one.
    Empty,
    /// Every batch is intact.
    Clean,
    /// Intact but for bytes at its end that were never acknowledged.
    Torn(Torn),
    /// Something that was acknowledged is damaged or missing.
    Corrupt(Corrupt),
}

/// The end of a log that a crash left half written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("torn: {file} at byte {pos}, seq {seq}: {fault}; {len} bytes there were never acknowledged")]
pub struct Torn {
    /// The last segment.
    pub file: String,
    /// From here on.
    pub pos: u64,
    /// So many bytes.
    pub len: u64,
    /// The seq that would have been there.
    pub seq: u64,
    /// What is wrong with the first batch there.
    pub fault: batch::Fault,
}

/// Where and why a log is corrupt.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("corrupt: {file} at byte {pos}, seq {seq}: {why}; nothing was changed")]
pub struct Corrupt {
    /// The segment.
    pub file: String,
    /// Where in it.
    pub pos: u64,
    /// The first seq that cannot be read.
    pub seq: u64,
    /// What was seen.
    pub why: Why,
}

/// What makes a log corrupt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// A batch that must be there fails a check.
    Batch(batch::Fault),
    /// The same, and who knows that it was durable.
    Known {
        /// What is wrong with it.
        fault: batch::Fault,
        /// The highest seq known durable.
        durable: u64,
        /// By whom.
        by: Witness,
    },
    /// A segment's header cannot be read.
    Header(segment::Fault),
    /// A segment is missing: this number was expected.
    Missing(u64),
    /// A batch or a header does not continue what is before it; the word names the field.
    Link(&'static str),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Batch(fault) => fault.fmt(f),
            Why::Known { fault, durable, by } => {
                let by = match by {
                    Witness::Checkpoint => "the checkpoint",
                    Witness::Batch => "an intact batch",
                    Witness::Store => "the store",
                    Witness::Peer => "a peer",
                };
                write!(f, "{fault}, and {by} knows seq {durable} to be durable")
            }
            Why::Header(fault) => write!(f, "segment header: {fault}"),
            Why::Missing(number) => write!(f, "gap: segment {number} is missing"),
            Why::Link(field) => write!(f, "{field} does not continue what is before it"),
        }
    }
}

/// Reads batches of one segment, a window at a time.
pub struct Walk {
    name: String,
    salt: u64,
    limit: u64,
    window: Bytes,
    window_pos: u64,
}

impl Walk {
    /// Over the bytes below `limit` of the file `name`.
    pub fn new(name: &str, salt: u64, limit: u64) -> Walk {
        Walk { name: name.to_owned(), salt, limit, window: Bytes::new(), window_pos: 0 }
    }

    /// The batch at `pos`, if an intact one is there.
    pub fn at(&mut self, files: &mut impl Storage, pos: u64) -> io::Result<Result<(Batch, Stamp), batch::Fault>> {
        let head = self.bytes(files, pos, HEAD_MAX)?;
        let lengths = match batch::Lengths::of_head(&head) {
            Ok(lengths) => lengths,
            Err(fault) => return Ok(Err(fault)),
        };
        let disk = self.bytes(files, pos, lengths.disk)?;
        // A batch that is kept must not keep the whole window in memory.
        Ok(Batch::read(&Bytes::copy_from_slice(&disk), self.salt, pos))
    }

    /// Up to `len` bytes at `pos`; fewer at the limit.
    fn bytes(&mut self, files: &mut impl Storage, pos: u64, len: usize) -> io::Result<Bytes> {
        let len = len.min(usize::try_from(self.limit.saturating_sub(pos)).unwrap_or(usize::MAX));
        let inside = pos >= self.window_pos && pos + len as u64 <= self.window_pos + self.window.len() as u64;
        if !inside {
            let want = WINDOW.max(len).min((self.limit.saturating_sub(pos)) as usize);
            self.window = files.read(&self.name, pos, want)?;
            self.window_pos = pos;
        }
        let from = (pos - self.window_pos) as usize;
        Ok(self.window.slice(from.min(self.window.len())..(from + len).min(self.window.len())))
    }
}

/// Reads the whole directory. An error is one of reading; everything that is wrong with what was read is in the verdict.
pub fn examine(files: &mut impl Storage, floor: Floor) -> io::Result<Found> {
    let mut listed = files.list()?;
    listed.sort();
    let checkpoint = read_checkpoint(files, &listed)?;
    listed.retain(|(name, _)| seq_of_name(name).is_some());
    let mut found = Found {
        segments: Vec::new(),
        verdict: Verdict::Empty,
        last_seq: 0,
        chain: 0,
        last_hlc: Hlc(0),
        term: 0,
        fences: BTreeMap::new(),
        checkpoint,
    };
    let mut headers = Vec::new();
    for (name, file_len) in listed {
        let block = files.read(&name, 0, BLOCK)?;
        headers.push((name, file_len, Header::parse(&block)));
    }
    for at in 0..headers.len() {
        let (name, file_len, header) = &headers[at];
        let header = match link_header(&found, name, header) {
            Ok(header) => header,
            Err(why) => return Ok(found.corrupt(name.clone(), 0, why)),
        };
        let end = match headers.get(at + 1) {
            Some((_, _, Ok(next))) => Some(next.prev_end),
            Some((next, _, Err(fault))) => {
                let (next, fault) = (next.clone(), *fault);
                found.last_seq = seq_of_name(&next).map_or(0, |s| s - 1);
                return Ok(found.corrupt(next, 0, Why::Header(fault)));
            }
            None => None,
        };
        if found.segments.is_empty() {
            // What was before the first segment kept is known by its header alone.
            (found.last_seq, found.chain) = (header.first_seq - 1, header.prev_chain);
        }
        found.term = found.term.max(header.term);
        found.last_hlc = found.last_hlc.max(header.created);
        let verdict = found.read_segment(files, name, *file_len, header, end, floor)?;
        found.verdict = verdict;
        if matches!(found.verdict, Verdict::Corrupt(_)) {
            return Ok(found);
        }
    }
    if let (true, Some((durable, by))) = (found.segments.is_empty(), found.known(floor)) {
        let fault = batch::Fault::Length { seen: 0, expected: BLOCK };
        return Ok(found.corrupt(segment::file_name(1), 0, Why::Known { fault, durable, by }));
    }
    Ok(found)
}

impl Found {
    fn corrupt(mut self, file: String, pos: u64, why: Why) -> Found {
        let seq = self.last_seq + 1;
        self.verdict = Verdict::Corrupt(Corrupt { file, pos, seq, why });
        self
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

    /// Walks one segment; `end` is where its successor says that it ends.
    fn read_segment(
        &mut self,
        files: &mut impl Storage,
        name: &str,
        file_len: u64,
        header: Header,
        end: Option<u64>,
        floor: Floor,
    ) -> io::Result<Verdict> {
        let limit = end.unwrap_or(file_len).min(file_len).min(SEGMENT_BYTES_MAX);
        let mut walk = Walk::new(name, header.salt, limit);
        let (first_seq, salt) = (header.first_seq, header.salt);
        let mut pos = FIRST_POS;
        let mut locally_durable = 0;
        self.segments.push(Segment {
            name: name.to_owned(),
            header,
            file_len,
            end: pos,
            last_seq: first_seq - 1,
            batches: 0,
            footer: None,
            marks: Vec::new(),
        });
        let fault = loop {
            if end == Some(pos) {
                break None;
            }
            match walk.at(files, pos)? {
                Err(fault) => break Some(fault),
                Ok((batch, stamp)) => {
                    if let Err(field) = self.link(&batch) {
                        return Ok(self.corrupt_here(name, pos, Why::Link(field)));
                    }
                    locally_durable = locally_durable.max(stamp.local_durable_seq);
                    self.take(&batch, pos);
                    pos += batch.disk_len() as u64;
                }
            }
        };
        let footer = Footer::parse(&files.read(name, pos, BLOCK)?).ok();
        let footer = footer.filter(|f| f.salt == salt && f.last_seq == self.last_seq);
        let sealed = footer.is_some();
        self.segments.last_mut().expect("pushed above").footer = footer;
        let Some(fault) = fault else { return Ok(Verdict::Clean) };
        if end.is_some() {
            return Ok(self.corrupt_here(name, pos, Why::Batch(fault)));
        }
        let behind = Behind::look(files, &mut walk, pos, self.last_seq, self.chain)?;
        let batches = Some((locally_durable.max(behind.locally_durable), Witness::Batch));
        let known = batches.into_iter().chain(self.known(floor)).max_by_key(|(seq, _)| *seq);
        match known {
            Some((durable, by)) if durable > self.last_seq => {
                Ok(self.corrupt_here(name, pos, Why::Known { fault, durable, by }))
            }
            _ if sealed || behind.stale || behind.len == 0 => Ok(Verdict::Clean),
            _ => {
                let (file, seq) = (name.to_owned(), self.last_seq + 1);
                Ok(Verdict::Torn(Torn { file, pos, len: behind.len, seq, fault }))
            }
        }
    }

    fn corrupt_here(&self, file: &str, pos: u64, why: Why) -> Verdict {
        Verdict::Corrupt(Corrupt { file: file.to_owned(), pos, seq: self.last_seq + 1, why })
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
        for (_, record) in batch.iter().flatten().filter(|(_, r)| r.op == Op::Fence) {
            let fence = self.fences.entry(record.shard).or_default();
            *fence = record.owner_epoch.max(*fence);
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
    /// Counts a batch at `pos` in.
    pub fn took(&mut self, batch: &Batch, pos: u64) {
        if self.marks.last().is_none_or(|(_, at)| pos - at >= MARK_EVERY) {
            self.marks.push((batch.first_seq, pos));
        }
        self.last_seq = batch.last_seq();
        self.end = pos + batch.disk_len() as u64;
        self.batches += 1;
    }
}

/// What lies behind the last intact batch of the last segment.
#[derive(Default)]
struct Behind {
    /// Bytes up to the last one that is not zero.
    len: u64,
    /// The first thing there is a batch of an earlier use of the file.
    stale: bool,
    /// The highest local_durable_seq of the intact batches there.
    locally_durable: u64,
}

impl Behind {
    fn look(files: &mut impl Storage, walk: &mut Walk, pos: u64, last_seq: u64, chain: u32) -> io::Result<Behind> {
        let mut behind = Behind::default();
        let mut at = pos;
        while at < walk.limit {
            let block = walk.bytes(files, at, BLOCK)?;
            if block.is_empty() {
                break;
            }
            if let Some(last) = block.iter().rposition(|b| *b != 0) {
                behind.len = at + last as u64 + 1 - pos;
                match walk.at(files, at)? {
                    Ok((_, stamp)) => behind.locally_durable = behind.locally_durable.max(stamp.local_durable_seq),
                    // Only a header that holds, written for elsewhere, and not for here by its own words, is of an
                    // earlier use: a batch of ours whose stamp was damaged continues the chain.
                    Err(batch::Fault::Place) if at == pos => {
                        let of = Batch::fields_at(&walk.bytes(files, at, HEAD_MAX)?);
                        behind.stale = of.is_some_and(|b| b.first_seq != last_seq + 1 || b.prev_chain != chain);
                    }
                    Err(_) => {}
                }
            }
            at += BLOCK as u64;
        }
        Ok(behind)
    }
}

/// Does this header continue the segments read so far?
fn link_header(found: &Found, name: &str, header: &Result<Header, segment::Fault>) -> Result<Header, Why> {
    let header = header.clone().map_err(Why::Header)?;
    if seq_of_name(name) != Some(header.first_seq) {
        return Err(Why::Link("the file's name"));
    }
    let Some(before) = found.segments.last() else { return Ok(header) };
    if header.number != before.header.number + 1 {
        return Err(Why::Missing(before.header.number + 1));
    }
    let wrong = [
        (header.log_uuid != before.header.log_uuid, "log_uuid"),
        (header.zone != before.header.zone || header.stream != before.header.stream, "zone or stream"),
        (header.first_seq != found.last_seq + 1, "first seq"),
        (header.prev_chain != found.chain, "chain"),
    ];
    wrong.into_iter().find(|(is, _)| *is).map_or(Ok(header), |(_, field)| Err(Why::Link(field)))
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
