//! One change: what a batch is made of.

use crate::Hlc;
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Sets a row.
    Put,
    /// Deletes a row.
    Delete,
    /// "This zone writes this shard no more below `owner_epoch`"; the value is the writer's applied positions.
    Fence,
    /// Nothing: carries a batch header (local durable position, clock) forward.
    Marker,
    /// A range that an operator gave up.
    Gap,
    /// The first answer to an idempotency key.
    Answer,
}

/// A record; its seq is its place in its batch, added to the batch's first seq.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it does.
    pub op: Op,
    /// Number of its transaction within the batch: records with the same number apply together or not at all.
    pub transaction: u32,
    /// Its shard.
    pub shard: Shard,
    /// The ownership under which it was written; of a FENCE: its epoch.
    pub owner_epoch: OwnerEpoch,
    /// When the writer's stream wrote it.
    pub hlc: Hlc,
    /// The row's table.
    pub table: Bytes,
    /// The row's key.
    pub key: Bytes,
    /// The row's value.
    pub value: Bytes,
}
