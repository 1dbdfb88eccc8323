//! Reads one segment by itself: what it holds, and how it ends. So the segments of a log can be read side by side.

use super::walk::Behind;
use super::{Segment, Storage, Walk};
use crate::Hlc;
use crate::batch::{Fault, Inspected};
use crate::limits::SEGMENT_BYTES_MAX;
use crate::segment::{Digest, FIRST_POS, Header};
use shardmap::{OwnerEpoch, Shard};
use std::collections::BTreeMap;
use std::io;

/// A segment that is to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// Its file.
    pub name: String,
    /// Length of the file.
    pub file_len: u64,
    /// Its first block.
    pub header: Header,
    /// Where its successor says that it ends; `None`: it is the last one.
    pub end: Option<u64>,
    /// Its successor says that it was sealed: a footer must be there.
    pub sealed: bool,
}

/// What was read in a segment.
#[derive(Clone, Debug)]
pub struct Content {
    pub(super) segment: Segment,
    pub(super) chain: u32,
    pub(super) last_hlc: Hlc,
    pub(super) term: u64,
    pub(super) fences: BTreeMap<Shard, OwnerEpoch>,
    pub(super) ending: Ending,
    /// It was sealed, and where the footer must be there is none that fits.
    pub(super) footer_lost: bool,
}

/// How a segment ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// With its last batch, where its successor says.
    Whole,
    /// The batches hold, and are not those that the footer's digest was made of.
    Digest,
    /// With an intact batch at `pos` that does not continue the log; the word names the field.
    Unlinked { pos: u64, field: &'static str },
    /// With something at `pos` that is no intact batch, though its successor says that there is one.
    Damaged { pos: u64, fault: Fault },
    /// With something at `pos` that is no intact batch, and no successor says whether there was to be one.
    Open { pos: u64, fault: Fault, behind: Behind, known: u64 },
}

impl Task {
    /// Reads every byte of it up to its end. An error is one of reading.
    pub fn read(&self, files: &mut impl Storage) -> io::Result<Content> {
        let limit = self.end.unwrap_or(self.file_len).min(self.file_len).min(SEGMENT_BYTES_MAX);
        let mut walk = Walk::new(&self.name, self.header.salt, limit);
        let mut content = Content::begun(self);
        let (mut pos, mut known, mut digest) = (FIRST_POS, 0, Digest::default());
        let fault = loop {
            if self.end == Some(pos) {
                break None;
            }
            match walk.inspect(files, pos)? {
                Err(fault) => break Some(fault),
                Ok(seen) => {
                    if let Some(field) = content.unlinked(&seen) {
                        content.ending = Ending::Unlinked { pos, field };
                        return Ok(content);
                    }
                    known = known.max(seen.stamp.local_durable_seq);
                    digest.add_disk(&seen.disk);
                    content.take(&seen, pos);
                    pos += seen.lengths.disk as u64;
                }
            }
        };
        let footer = walk.footer(files, pos)?.ok();
        let footer = footer.filter(|f| f.salt == self.header.salt && f.last_seq == content.segment.last_seq);
        let fits = footer.as_ref().is_none_or(|f| f.digest == digest.finish());
        content.ending = match (fault, self.end) {
            _ if !fits => Ending::Digest,
            (None, _) => Ending::Whole,
            (Some(fault), Some(_)) => Ending::Damaged { pos, fault },
            (Some(fault), None) => {
                let behind = Behind::look(files, &mut walk, pos, content.segment.last_seq, content.chain)?;
                Ending::Open { pos, fault, behind, known }
            }
        };
        content.segment.footer = footer.filter(|_| fits);
        content.footer_lost =
            self.sealed && content.segment.footer.is_none() && matches!(content.ending, Ending::Whole);
        Ok(content)
    }
}

impl Content {
    fn begun(task: &Task) -> Content {
        Content {
            chain: task.header.prev_chain,
            last_hlc: task.header.created,
            term: task.header.term,
            fences: BTreeMap::new(),
            ending: Ending::Whole,
            footer_lost: false,
            segment: Segment::begun(&task.name, task.file_len, task.header.clone()),
        }
    }

    /// Is every batch in it intact and linked, up to where its successor says that it ends, and a footer there, if there must be one?
    pub fn is_whole(&self) -> bool {
        match self.ending {
            Ending::Whole => !self.footer_lost,
            Ending::Digest | Ending::Unlinked { .. } | Ending::Damaged { .. } | Ending::Open { .. } => false,
        }
    }

    /// Is it whole, and does it end as the header of the next one says?
    pub fn is_before(&self, next: &Header) -> bool {
        let of_next = (next.first_seq, next.prev_chain, next.prev_end);
        self.is_whole() && (self.segment.last_seq + 1, self.chain, self.segment.end) == of_next
    }

    /// Why a batch does not continue the log.
    fn unlinked(&self, seen: &Inspected) -> Option<&'static str> {
        let (batch, header) = (&seen.batch, &self.segment.header);
        let wrong = [
            (batch.first_seq != self.segment.last_seq + 1, "first seq"),
            (batch.prev_chain != self.chain, "chain"),
            (batch.log_uuid_lo != header.log_uuid as u64, "log_uuid"),
            (batch.zone != header.zone || batch.stream != header.stream, "zone or stream"),
        ];
        wrong.into_iter().find(|(is, _)| *is).map(|(_, field)| field)
    }

    fn take(&mut self, seen: &Inspected, pos: u64) {
        for (shard, epoch) in &seen.fences {
            let fence = self.fences.entry(*shard).or_default();
            *fence = (*epoch).max(*fence);
        }
        self.chain = seen.batch.chain;
        self.last_hlc = self.last_hlc.max(seen.batch.last_hlc);
        self.term = self.term.max(seen.batch.term);
        let s = &mut self.segment;
        s.mark(seen.batch.first_seq, pos);
        s.last_seq = seen.batch.last_seq();
        s.end = pos + seen.lengths.disk as u64;
        s.batches += 1;
    }
}
