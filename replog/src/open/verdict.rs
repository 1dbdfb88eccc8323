//! What an examined log is: whole, torn, stale at its end, corrupt, or with a gap.

use crate::{batch, segment};
use std::fmt;

/// Who knows that a seq was durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// A checkpoint file.
    Checkpoint,
    /// The local_durable_seq of an intact batch, or the footer of the segment.
    Segment,
    /// The store.
    Store,
    /// A peer's mirror.
    Peer,
}

/// Is a log whole?
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is no segment and no trace of one.
    Empty,
    /// Every batch is intact.
    Clean,
    /// The same; behind the last one lies what an earlier use of the file left there.
    Stale(Stale),
    /// Intact but for bytes at its end that were never acknowledged.
    Torn(Torn),
    /// Something that was acknowledged is damaged.
    Corrupt(Corrupt),
    /// Something that was acknowledged is missing.
    Gap(Gap),
}

impl Verdict {
    /// May a writer go on behind what was found? Not if something that was acknowledged is damaged or missing.
    pub fn is_sound(&self) -> bool {
        match self {
            Verdict::Empty | Verdict::Clean | Verdict::Stale(_) | Verdict::Torn(_) => true,
            Verdict::Corrupt(_) | Verdict::Gap(_) => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Empty => f.write_str("empty"),
            Verdict::Clean => f.write_str("clean"),
            Verdict::Stale(stale) => stale.fmt(f),
            Verdict::Torn(torn) => torn.fmt(f),
            Verdict::Corrupt(corrupt) => corrupt.fmt(f),
            Verdict::Gap(gap) => gap.fmt(f),
        }
    }
}

/// The end of a log in a file that was used before.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("clean: {file} ends at byte {pos}, seq {seq}; blocks of an earlier use of the file follow")]
pub struct Stale {
    /// The last segment.
    pub file: String,
    /// Where its last batch ends.
    pub pos: u64,
    /// The seq that comes next.
    pub seq: u64,
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

/// Seqs that must be there and are not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("gap: seq {from} to {to} are missing before {file}; nothing was changed")]
pub struct Gap {
    /// The first missing one.
    pub from: u64,
    /// The last missing one.
    pub to: u64,
    /// The segment behind the gap, or the name that a segment there would have.
    pub file: String,
}

/// The footer of a sealed segment is damaged or lost. Every batch of the segment is intact, so that nothing is missing but a way to
/// compare it, and to pass over it, without reading it; a repair makes the same footer again, out of the batches.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file} at byte {pos}: the segment was sealed, and its footer is damaged or lost; its batches are whole")]
pub struct FooterLost {
    /// The segment.
    pub file: String,
    /// Where the footer must be.
    pub pos: u64,
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
    /// The batches hold, and are not those that the footer's digest was made of.
    Digest,
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
                    Witness::Segment => "the segment itself",
                    Witness::Store => "the store",
                    Witness::Peer => "a peer",
                };
                write!(f, "{fault}, and {by} knows seq {durable} to be durable")
            }
            Why::Header(fault) => write!(f, "segment header: {fault}"),
            Why::Digest => write!(f, "the batches are not those that the segment's footer was made of"),
            Why::Link(field) => write!(f, "{field} does not continue what is before it"),
        }
    }
}
