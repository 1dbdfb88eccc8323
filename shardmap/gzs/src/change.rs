//! One change of what the service holds: stored whole, or not at all.

use crate::api::AuditView;
use crate::op::Op;
use serde::{Deserialize, Serialize};
use shardmap::map::Map;
use shardmap::{Shard, Zone};

/// A change, and what it was made from: a store compares that before it sets.
#[derive(Clone, Debug)]
pub struct Change {
    /// The map that it was decided by.
    pub from_epoch: u64,
    /// The next map, if it changes.
    pub map: Option<Map>,
    /// An operation, new or changed. Its revision is one above what is stored; a new one's is 1.
    pub op: Option<Op>,
    /// What is to be remembered of shards.
    pub marks: Vec<(Shard, Mark)>,
    /// Leases of global services that may be told once this is stored. Each revision is one above what is stored; a new one's is 1.
    pub grants: Vec<(Shard, Grant)>,
    /// Of a change of the map.
    pub audit: Option<AuditView>,
}

impl Change {
    /// Does it only let leases run on?
    pub fn is_grants_alone(&self) -> bool {
        self.map.is_none() && self.op.is_none() && !self.grants.is_empty()
    }
}

/// What is remembered of a shard besides its history.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The zone that an evacuation or a take-over took it from: a restore brings it back there.
    pub home: Option<u8>,
    /// That zone was lost.
    pub lost: bool,
    /// When an operation last gave it to a zone: it is left alone for a while.
    pub given_ms: u64,
}

/// A zone may be told that it writes a global service: see [`crate::leases`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// How often the shard's grant was stored: what a store compares before it sets.
    pub revision: u64,
    /// The zone, by number.
    pub zone: u8,
    /// The ownership that it is for.
    pub owner_epoch: u64,
    /// When it ends, by the clock of the service that stored it.
    pub until_ms: u64,
    /// How long it lasts from when it was stored: whoever reads it waits that long, since the clock was another's.
    pub lasts_ms: u64,
}

impl Mark {
    /// The zone that it is to go back to.
    pub fn home(&self) -> Option<Zone> {
        self.home.map(Zone)
    }
}

/// Everything that a store holds, but for the past.
#[derive(Clone, Debug)]
pub struct Held {
    /// The newest map.
    pub map: Map,
    /// Operations: those under way, and the newest that have ended.
    pub ops: Vec<Op>,
    /// Of shards that an operation has given to a zone.
    pub marks: Vec<(Shard, Mark)>,
    /// Of global services: the newest of each.
    pub grants: Vec<(Shard, Grant)>,
    /// The digests of the newest maps by epoch, this one's among them.
    pub digests: Vec<(u64, [u8; 32])>,
}

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Unstored {
    /// Someone else changed it first: what it holds is to be read again.
    #[error(
        "the store holds {holds}, expected {expected}: another Global Zone Service has changed it; this one reads it again"
    )]
    Overtaken {
        /// What it holds.
        holds: String,
        /// What the change was made from.
        expected: String,
    },
    /// It is not a store of this program, or of another version.
    #[error("{0}")]
    Foreign(String),
    /// It cannot be read or written.
    #[error("{0}")]
    Failed(String),
}
