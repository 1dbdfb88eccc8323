//! The version of a row, which decides what the row is when two zones wrote it: the higher one wins.

use crate::Hlc;
use shardmap::{OwnerEpoch, Zone};

/// Compared field by field, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// The ownership under which it was written: a later owner's write beats an earlier owner's.
    pub owner_epoch: OwnerEpoch,
    /// The writer's clock; never the applier's.
    pub hlc: Hlc,
    /// The zone that wrote it.
    pub zone: Zone,
    /// The stream of that zone.
    pub stream: u32,
}
