//! What a keeper is asked, what it answers, and what it tells unasked.

use super::ledger::{Asked, Conflict};
use crate::apply::{Seed, Unseeded, Wait};
use crate::batch::Batch;
use crate::store::{Changes, Digests, Row, Scan};
use crate::uring::lag::ZoneLag;
use crate::{Hlc, Version};
use bytes::Bytes;
use futures_channel::oneshot::Sender;
use shardmap::map::Map;
use shardmap::{MapEpoch, OwnerEpoch, Positions, Shard, Zone};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a log core asks of its keeper.
pub(in crate::uring) enum Job {
    /// Apply what follows of a zone's log.
    Apply { stream: u32, zone: Zone, batches: Vec<Batch>, done: Sender<Applied> },
    /// Look a piece of a log, which keeps nothing below `kept`, through for tail records.
    Scan { stream: u32, zone: Zone, batches: Vec<Batch>, kept: u64, done: Sender<Applied> },
    /// May a snapshot take the place of a zone's log? The answer is the map that the applier goes by.
    MaySeed { stream: u32, zone: Zone, done: Sender<Result<MapEpoch, Unseeded>> },
    /// Store rows and entries of a snapshot.
    Merge { stream: u32, changes: Changes, done: Sender<()> },
    /// All of the snapshot is stored: what it stands for counts as applied, durably.
    Seed { stream: u32, seed: Seed, done: Sender<Result<Applied, Unseeded>> },
    /// Read one row.
    Read { stream: u32, table: Bytes, key: Bytes, done: Sender<Result<Option<Row>, NoRoom>> },
    /// First answers to idempotency keys, by age.
    Answers { stream: u32, from: Hlc, below: Hlc, most: usize, done: Sender<Vec<(Shard, Bytes, Version)>> },
    /// Store a newer map; the answer is what has to be looked through.
    Map { map: Arc<Map>, bytes: Bytes, done: Sender<Vec<Scanned>> },
    /// What this zone has of some shards.
    Report { stream: u32, shards: Vec<Shard>, take_over: bool, done: Sender<Vec<Reported>> },
    /// Drop tombstones that may go, by what every zone has applied of each log; the answer: are there more to look at?
    Collect { stream: u32, everywhere: Positions, done: Sender<bool> },
    /// Make durable what is stored; the answer: up to where of each zone's log that is, with nothing parked before it.
    Settle { stream: u32, done: Sender<Positions> },
    /// Entries of a stream's ledger.
    Conflicts { stream: u32, asked: Asked, done: Sender<Vec<Conflict>> },
    /// Figures of all streams.
    Figures { done: Sender<Figures> },
    /// Digests of all streams, in their order.
    Digests { done: Sender<Vec<Digests>> },
    /// Close the stores; the last job.
    Close { done: Sender<()> },
}

/// A row cannot be told: what was written before the question is not applied, and cannot be until there is room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::uring) struct NoRoom;

/// What a keeper tells its core unasked. All of it takes one way, so that it arrives in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::uring) enum News {
    /// The FENCEs of a stream that count as applied.
    Fences { stream: u32, all: Vec<(Zone, Shard, OwnerEpoch)> },
    /// Parked records were settled: up to where nothing is parked of each zone's log.
    Settled { stream: u32, all: Box<Positions> },
    /// From now on a store has, or has no, room.
    Room(bool),
}

/// A stream, the number of the answer, and all that is left to look through of its logs.
pub(in crate::uring) type Scanned = (u32, u64, BTreeMap<Zone, Scan>);

/// What an apply or a scan led to.
#[derive(Debug)]
pub(in crate::uring) struct Applied {
    /// The last seq of that log that is applied.
    pub seq: u64,
    /// The last one up to which nothing is parked either.
    pub settled: u64,
    /// Why it stopped before the end, if it did.
    pub wait: Option<Wait>,
    /// What is left to look through of that log.
    pub scan: Option<Scan>,
    /// The number of this answer among those of its stream that speak of scans.
    pub number: u64,
    /// The map that the applier went by.
    pub map_epoch: MapEpoch,
}

/// What this zone has of one shard.
#[derive(Clone, Debug)]
pub struct Reported {
    /// The shard.
    pub shard: Shard,
    /// Of a move: the seq of the source's FENCE once all that it carries is applied here.
    pub fence_seq: Option<u64>,
    /// Applied positions, or `None` while the zone has not caught up.
    pub applied: Option<Positions>,
}

/// Figures of a core's streams.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Applied positions, for each stream of the core.
    pub applied: Vec<(u32, Positions)>,
    /// Parked records.
    pub parked: u64,
    /// Entries of the ledger.
    pub ledger: u64,
    /// Those of them that nobody has resolved.
    pub open: u64,
    /// Tombstones that were dropped since the start.
    pub collected: u64,
    /// A store has no room: nothing is applied, and no row is told, until there is some.
    pub is_full: bool,
    /// How long other zones' changes took until they were visible here.
    pub lag: BTreeMap<Zone, ZoneLag>,
}
