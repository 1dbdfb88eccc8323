//! What the log machine and its driver say to each other: orders, failures, refusals.

use crate::Hlc;
use crate::batch::Placed;
use crate::limits::{APPEND_BYTES_MAX, PENDING_BYTES_MAX};
use crate::record;
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard, Zone};
use std::collections::BTreeMap;

/// Whose log it is, and how large its files are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The zone that writes the stream.
    pub zone: Zone,
    /// The stream's number in that zone.
    pub stream: u32,
    /// A copy of another zone's stream: batches come whole, no term is begun, no marker written.
    pub mirror: bool,
    /// Length of a segment file.
    pub segment_bytes: u64,
}

/// A file of a segment's length that waits to become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spare {
    /// Names it.
    pub id: u64,
    /// It was a segment before; else it is all zeros.
    pub recycled: bool,
}

/// What was found when the stream was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The stream's incarnation.
    pub log_uuid: u128,
    /// The term of this writer; of a mirror: the highest term in it.
    pub term: u64,
    /// The first seq that is kept here.
    pub first_seq: u64,
    /// The last seq.
    pub durable_seq: u64,
    /// The chain there.
    pub chain: u32,
    /// The newest HLC: a clock must start above it.
    pub last_hlc: Hlc,
    /// The highest FENCE of each shard: they stand before any append is taken.
    pub fences: BTreeMap<Shard, OwnerEpoch>,
}

/// What the driver has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Begin a segment: a file of `bytes` with `header` as its first block, durable, renamed to `name` (over a file of that name),
    /// the directory durable; then `on_segment`. The file is the spare named, or one of zeros.
    Begin {
        /// The file's name.
        name: String,
        /// Its first block.
        header: Bytes,
        /// Its length.
        bytes: u64,
        /// The spare to take; a new file of zeros if there is none.
        spare: Option<u64>,
    },
    /// Make a spare in the background: a durable file of zeros of this length; then `on_spare`.
    Spare {
        /// Names it.
        id: u64,
        /// Its length.
        bytes: u64,
    },
    /// Let a segment go whose seqs nobody needs: keep the file as the spare named, or remove it; then `on_retired`.
    Retire {
        /// The segment's file.
        name: String,
        /// The spare that it becomes.
        spare: Option<u64>,
    },
    /// Write into the current segment, then `on_written`.
    Write {
        /// Names the write in `on_written`.
        id: u64,
        /// Where.
        pos: u64,
        /// Whole blocks.
        bytes: Placed,
        /// It is done when it is flushed as well, as a write with O_DSYNC is: nothing else is flushed by it.
        through: bool,
    },
    /// Flush the current segment, then `on_synced`.
    Sync {
        /// Names the flush in `on_synced`.
        id: u64,
    },
    /// Write the footer into the current segment, flush it, then `on_sealed`.
    Seal {
        /// Where.
        pos: u64,
        /// The footer.
        bytes: Bytes,
    },
    /// Write this block over the file and flush it; then `on_checkpoint`.
    Checkpoint {
        /// The file.
        name: &'static str,
        /// Its only block.
        bytes: Bytes,
    },
    /// Tell those who wait for `from_seq` or a later one that there is no room; the seqs will be given out again.
    Refuse {
        /// The first seq that is taken back.
        from_seq: u64,
    },
    /// Stop the process: a second failure; nothing more is acknowledged.
    Stop,
}

/// How a file operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failed {
    /// No space on the device, or a quota.
    Full,
    /// Anything else.
    Io,
}

/// Why an append was refused. Nothing was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The disk has no room for another segment.
    #[error("no room on the log's disk; appends resume by themselves when there is")]
    Full,
    /// Too much waits for the disk.
    #[error("more than {PENDING_BYTES_MAX} bytes wait for the log's disk")]
    Busy,
    /// The log is closing, or has failed twice.
    #[error("the log is closed")]
    Closed,
    /// A record that cannot be one.
    #[error("{0}")]
    Invalid(record::Malformed),
    /// An append without a record, or with more than a batch may hold.
    #[error("an append of {0} bytes, at least a record and at most {APPEND_BYTES_MAX}")]
    Length(usize),
    /// A record's HLC is below one that the stream already holds.
    #[error("HLC {seen} in a stream that has {newest}")]
    Hlc {
        /// The record's.
        seen: Hlc,
        /// The stream's.
        newest: Hlc,
    },
    /// A mirrored batch with another seq than the next one.
    #[error("a batch with first seq {seen}, expected {expected}")]
    Seq {
        /// The batch's.
        seen: u64,
        /// The mirror's next.
        expected: u64,
    },
    /// A mirrored batch that names another predecessor: the copies have diverged.
    #[error("a batch whose chain is {seen:#010x}, expected {expected:#010x}: this copy and its origin have diverged")]
    Chain {
        /// What the batch names.
        seen: u32,
        /// What is here.
        expected: u32,
    },
    /// A mirrored batch of a lower term than one already here.
    #[error("a batch of term {seen}, the mirror has seen {newest}")]
    Term {
        /// The batch's.
        seen: u64,
        /// The mirror's.
        newest: u64,
    },
    /// A mirrored batch of another zone, stream or incarnation.
    #[error("a batch of another zone, stream or incarnation")]
    Foreign,
    /// Records given to a mirror, or a batch given to an origin.
    #[error("a mirror takes batches, an origin records")]
    Kind,
}
