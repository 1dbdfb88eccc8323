//! Zones that are added and removed.
//!
//! A new zone is on the map before anything else knows of it, since nodes refuse a configuration that names a zone the map does not have;
//! it owns nothing, so nobody goes by it yet. The operation goes on until its log has all that the others have; then ordinary moves
//! give it shards. A zone that is removed stays known by its number and name (`Map::gone`): ids that it issued are ours, histories and cuts
//! name its log, and mirrors lie under its name, so neither is ever used again.

use super::{Refused, Service};
use crate::change::{Change, Mark};
use crate::op::{End, Op};
use shardmap::ownership::Kind;
use shardmap::{Shard, Zone, map, names};

/// Bytes of a zone's name, as certificates allow them.
const NAME_BYTES_MAX: usize = 64;

impl Service {
    /// May it be removed, whoever insists? Else what is to be done first.
    pub(super) fn may_go(&self, name: &str, now_ms: u64) -> Result<(), Refused> {
        let zone = self.zone_named(name)?;
        self.map.without_zone(zone).map_err(|e| Refused::State(e.to_string()))?;
        if self.nodes.is_heard(name, now_ms) {
            return Err(Refused::State(format!("a node of zone {name} was heard a moment ago: stop its nodes first")));
        }
        let concerned = |op: &&Op| {
            let moves = op.shares.iter().any(|s| s.is_open() && (Zone(s.from) == zone || Zone(s.to) == zone));
            op.is_running() && (moves || op.lost() == Some(zone))
        };
        if let Some(op) = self.ops.values().find(concerned) {
            return Err(Refused::State(format!("operation {} concerns zone {name}: wait for it, or abort it", op.id)));
        }
        // Seen from any zone but the lost one.
        let other = self.map.zones().iter().map(|z| z.id).find(|z| *z != zone).unwrap_or(zone);
        let locked = |(shard, history): (Shard, &shardmap::ownership::History)| {
            history.locks(other).any(|lock| lock.lost == zone).then_some(shard.0.to_string())
        };
        let locked: Vec<String> = self.map.shards().filter_map(locked).collect();
        if !locked.is_empty() {
            return Err(Refused::State(format!(
                "rows of shards {0} may be locked until zone {name} is back: `ezctl shard unlock {0}` opens them for good",
                locked.join(" ")
            )));
        }
        Ok(())
    }

    /// May a zone be added? What a removed one wrote stands in its own log, which nobody ships any more: a new zone would lack it.
    pub(super) fn may_come(&self, name: &str) -> Result<(), Refused> {
        is_name(name)?;
        let wrote = |zone: Zone| {
            let owned = |e: &shardmap::ownership::Entry| e.owner == Some(zone) && e.kind == Kind::Own;
            self.map.shards().find(|(_, h)| h.entries().iter().any(owned)).map(|(shard, _)| shard)
        };
        match self.map.gone().iter().find_map(|z| Some((z, wrote(z.id)?))) {
            None => Ok(()),
            Some((gone, shard)) => Err(Refused::State(format!(
                "zone {} was removed and had written shard {shard}: nobody ships its log any more, and a new zone would lack what it wrote",
                gone.name
            ))),
        }
    }

    /// Reasons of the preflight: what it wrote is not everywhere, as far as it told.
    pub(super) fn lacked_of(&self, name: &str) -> Vec<String> {
        let others = self.map.zones().iter().filter(|z| z.name != name);
        let lacks = others.filter_map(|z| {
            let n = *self.nodes.lacks(&z.name, &self.map).get(name)?;
            (n > 0).then(|| format!("zone {} lacks {n} records that zone {name} has told to have", z.name))
        });
        lacks.collect()
    }

    /// A reason of the preflight: something is to be brought back to it.
    pub(super) fn is_home(&self, name: &str) -> Option<String> {
        let shards = self.at_home(self.map.zone_named(name)?);
        let named: Vec<String> = shards.iter().take(10).map(|s| s.to_string()).collect();
        (!shards.is_empty()).then(|| {
            format!(
                "{} shards are to be brought back to zone {name} (`ezctl zone restore`): {}",
                shards.len(),
                named.join(", ")
            )
        })
    }

    fn at_home(&self, zone: Zone) -> Vec<Shard> {
        self.marks.iter().filter(|(_, mark)| mark.home() == Some(zone)).map(|(shard, _)| *shard).collect()
    }

    pub(super) fn add_zone(&self, op: Op, name: &str, now_ms: u64) -> Result<Change, Refused> {
        let map = self.map.with_zone(name).map_err(of_map)?;
        Ok(self.change(&op, Some(map), op.clone(), "a zone is added", now_ms))
    }

    pub(super) fn remove_zone(&self, mut op: Op, name: &str, now_ms: u64) -> Result<Change, Refused> {
        let zone = self.zone_named(name)?;
        let map = self.map.without_zone(zone).map_err(of_map)?;
        let told = "start the other zones' logs again without [zones.{}], so that they keep nothing for it any more";
        (op.ended, op.because) = (Some((now_ms, End::Done)), told.replace("{}", name));
        let mut change = self.change(&op, Some(map), op.clone(), "a zone is removed", now_ms);
        let nowhere = |shard: Shard| {
            let given_ms = self.marks.get(&shard).map_or(0, |mark| mark.given_ms);
            (shard, Mark { given_ms, ..Mark::default() })
        };
        change.marks.extend(self.at_home(zone).into_iter().map(nowhere));
        Ok(change)
    }
}

fn of_map(why: map::Refused) -> Refused {
    Refused::State(why.to_string())
}

/// A name that certificates, directories and pages can have.
fn is_name(name: &str) -> Result<(), Refused> {
    if names::is_segment(name, NAME_BYTES_MAX) {
        return Ok(());
    }
    let seen: String = name.chars().take(NAME_BYTES_MAX).collect();
    Err(Refused::Ask(format!("zone \"{seen}\"; expected 1 to {NAME_BYTES_MAX} letters, digits, `.`, `-`, `_`")))
}
