//! Why a log cannot be opened, or an operation on it failed.

use crate::batch;
use crate::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::log::Refused;
use crate::open::{Corrupt, Gap};
use shardmap::Zone;
use std::io;
use std::path::PathBuf;

/// Why a log cannot be opened, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory.
    #[error("{0} is in use by another process; stop it, or choose another data directory")]
    InUse(PathBuf),
    /// Something acknowledged is damaged: the stream is refused.
    #[error(
        "{dir}: {verdict}. The stream stays closed so that no damage spreads: `ezctl log repair` fetches what is damaged from a mirror"
    )]
    Corrupt {
        /// The stream's directory.
        dir: PathBuf,
        /// Where and why.
        verdict: Box<Corrupt>,
    },
    /// Something acknowledged is missing: the stream is refused.
    #[error(
        "{dir}: {gap}. The stream stays closed so that nothing is skipped in silence: `ezctl log repair` fetches what is missing \
         from a mirror"
    )]
    Gap {
        /// The stream's directory.
        dir: PathBuf,
        /// What is missing.
        gap: Box<Gap>,
    },
    /// The directory holds another stream.
    #[error("{dir} holds zone {zone} stream {stream} of incarnation {log_uuid:032x}, not the one asked for")]
    Foreign {
        /// The stream's directory.
        dir: PathBuf,
        /// What is there.
        zone: Zone,
        /// What is there.
        stream: u32,
        /// What is there.
        log_uuid: u128,
    },
    /// A mirror that does not exist yet, and whose incarnation is not known.
    #[error("{0} holds no mirror yet")]
    NoMirror(PathBuf),
    /// A segment length that cannot be.
    #[error("segments of {0} bytes: whole blocks of 4,096, from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}")]
    SegmentBytes(u64),
    /// No room for a segment of this length.
    #[error("no room for a segment of {bytes} bytes in {dir}: free some on its volume")]
    NoRoom {
        /// The stream's directory.
        dir: PathBuf,
        /// The segment's length.
        bytes: u64,
    },
    /// The append was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The log failed twice and has stopped; what was not acknowledged may or may not be there.
    #[error("the log in {dir} has stopped: {why}")]
    Stopped {
        /// The stream's directory.
        dir: PathBuf,
        /// The last failure.
        why: String,
    },
    /// A seq below the first one kept.
    #[error("seq {wanted} is no longer kept, the first is {first}")]
    NotKept {
        /// What was asked for.
        wanted: u64,
        /// What there is.
        first: u64,
    },
    /// A batch that was durable cannot be read back.
    #[error("{file} at byte {pos}: {fault}")]
    Damaged {
        /// The segment.
        file: String,
        /// Where.
        pos: u64,
        /// What is wrong.
        fault: batch::Fault,
    },
    /// A segment's header or footer is not what it was.
    #[error("{file} at byte {pos}: its {what} is damaged")]
    Block {
        /// The segment.
        file: String,
        /// Where.
        pos: u64,
        /// Which of the two.
        what: &'static str,
    },
    /// A segment whose batches are intact and are not those that belong there.
    #[error(
        "{file} at byte {pos}: seq {seq} was expected here; the batches do not follow each other, or are not those of its footer"
    )]
    Unlinked {
        /// The segment.
        file: String,
        /// Where.
        pos: u64,
        /// What was expected.
        seq: u64,
    },
    /// The operating system says no.
    #[error("{dir}: {source}")]
    Io {
        /// The stream's directory.
        dir: PathBuf,
        /// Its words.
        source: io::Error,
    },
}
