//! What a repair would do, and why it cannot be done.

use super::Source;
use crate::batch::Batch;
use bytes::Bytes;
use std::{fmt, io};

/// Copies of segments that would be as they were. It is carried out whole or not at all.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The segments to write anew.
    pub files: Vec<Rebuilt>,
    /// What cannot be repaired, and why.
    pub refused: Vec<Refusal>,
}

/// A segment to write anew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebuilt {
    /// Its file.
    pub name: String,
    /// There is no file of that name; else the patches go into a copy of it.
    pub is_new: bool,
    /// Length of the file.
    pub len: u64,
    /// What is put over it, in order.
    pub patches: Vec<Patch>,
}

/// Bytes that belong at one place of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch {
    /// Where.
    pub pos: u64,
    /// How many.
    pub len: u64,
    /// What they are.
    pub what: What,
    /// The bytes, or where they are had.
    pub content: Content,
    /// What differs, or may differ, from what was there.
    pub note: Option<Note>,
}

/// What is repaired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A segment's header.
    Header,
    /// A batch, from the source.
    Batch {
        /// Its first seq.
        first_seq: u64,
        /// Its last.
        last_seq: u64,
    },
    /// The stamp of the batch that begins with this seq.
    Stamp(u64),
    /// The zeros behind the batch that begins with this seq.
    Padding(u64),
    /// A segment's footer.
    Footer,
}

/// The bytes of a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// These.
    Bytes(Bytes),
    /// The source's batch, stamped for its place.
    Batch {
        /// Its first seq.
        seq: u64,
        /// Its header_crc: what was planned with is what is written.
        chain: u32,
        /// The segment's salt.
        salt: u64,
        /// The stamp's.
        local_durable_seq: u64,
    },
}

/// Why a repaired byte may not be what it was. None of it changes what the log says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// The stamp was lost; this is the lowest local_durable_seq that is true.
    DurableLost(u64),
    /// Nothing vouches for every field of the header.
    HeaderUnproven,
    /// The salt was lost; this one fits the stamps of the segment's batches as well.
    SaltLost,
    /// The segment was missing: its header, salt and stamps are new.
    New,
}

/// Why something cannot be repaired.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no source, or it does not have the batch.
    #[error("seq {seq} is damaged or missing, and the source does not have it")]
    Lacks {
        /// The seq.
        seq: u64,
    },
    /// The source has something else.
    #[error("seq {seq}: the source has diverged: its {field} is {seen:#x}, expected {expected:#x}")]
    Diverged {
        /// The seq.
        seq: u64,
        /// What differs.
        field: &'static str,
        /// The source's.
        seen: u64,
        /// This log's.
        expected: u64,
    },
    /// The source is another incarnation, zone or stream.
    #[error("the source is another log: its batch of seq {seq} has another zone, stream or log_uuid")]
    Foreign {
        /// The seq.
        seq: u64,
    },
    /// A header or a batch that holds does not continue what is before it: not damage of a disk.
    #[error(
        "{file} at byte {pos}: {field} does not continue what is before it, though its checksums hold; look at `log diff`"
    )]
    Link {
        /// The segment.
        file: String,
        /// Where.
        pos: u64,
        /// What does not continue.
        field: &'static str,
    },
    /// A segment's header is lost, and its neighbours do not say what it was.
    #[error("{file}: its header is damaged, and {lost} cannot be told from its neighbours")]
    Header {
        /// The segment.
        file: String,
        /// What is lost.
        lost: &'static str,
    },
    /// The batches hold and are linked, the footer holds, and they contradict each other.
    #[error("{file}: footer and batches hold and contradict each other; look at `log diff`")]
    Digest {
        /// The segment.
        file: String,
    },
    /// Segments are missing, and the source's batches do not fill them.
    #[error("seq {from} to {to} are missing, and the source's batches do not fill the segments that held them: {why}")]
    Misfit {
        /// The first missing seq.
        from: u64,
        /// The last.
        to: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// A newer program wrote it.
    #[error("{file}: format version {seen}, this program knows 1: use a newer one")]
    Newer {
        /// The segment.
        file: String,
        /// The version.
        seen: u16,
    },
    /// Nothing says whose log it is.
    #[error("no header can be read, and neither checkpoint nor source says whose log it is")]
    Nameless,
}

impl Plan {
    /// Is there nothing to do?
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.refused.is_empty()
    }

    /// Can it be carried out?
    pub fn is_possible(&self) -> bool {
        self.refused.is_empty()
    }
}

impl Patch {
    /// The bytes. The source is asked again, and must give what was planned with.
    pub fn bytes(&self, source: Option<&mut dyn Source>) -> io::Result<Result<Bytes, Refusal>> {
        let (seq, chain, salt, durable) = match &self.content {
            Content::Bytes(bytes) => return Ok(Ok(bytes.clone())),
            Content::Batch { seq, chain, salt, local_durable_seq } => (*seq, *chain, *salt, *local_durable_seq),
        };
        let batch: Option<Batch> = match source {
            Some(source) => source.batch_at(seq)?,
            None => None,
        };
        Ok(match batch {
            None => Err(Refusal::Lacks { seq }),
            Some(b) if b.chain != chain => {
                let (seen, expected) = (b.chain.into(), chain.into());
                Err(Refusal::Diverged { seq, field: "header_crc", seen, expected })
            }
            Some(b) => Ok(b.place(salt, self.pos, durable).freeze()),
        })
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Header => write!(f, "header"),
            What::Batch { first_seq, last_seq } => write!(f, "batch of seq {first_seq} to {last_seq}"),
            What::Stamp(seq) => write!(f, "stamp of the batch of seq {seq}"),
            What::Padding(seq) => write!(f, "zeros behind the batch of seq {seq}"),
            What::Footer => write!(f, "footer"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::DurableLost(seq) => write!(f, "its local_durable_seq is lost; {seq} is the lowest that is true"),
            Note::HeaderUnproven => write!(f, "its checksum is lost too: time and length may not be what they were"),
            Note::SaltLost => write!(f, "its salt is lost; another that fits all stamps takes its place"),
            Note::New => write!(f, "the segment was missing: header and stamps are new"),
        }
    }
}
