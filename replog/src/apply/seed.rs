//! What a snapshot stands for, taken over by an applier: everything of one log up to a seq counts as applied.
//!
//! Rows and ledger are in the store by then. What is judged here is whether the position may follow: it may not while anything that
//! a FENCE, a report or a cut depends on is under way, and the ledger that came must be one of a map that knows every cut that
//! this zone's map has of that log.

use super::Applier;
use crate::Record;
use crate::store::{Change, Changes, Fence, Scan};
use shardmap::{MapEpoch, Shard, Zone};

/// What a snapshot stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    /// The zone whose log it is.
    pub zone: Zone,
    /// Everything up to here.
    pub seq: u64,
    /// The map that the origin went by.
    pub map_epoch: MapEpoch,
    /// The origin's FENCEs.
    pub fences: Vec<(Shard, Fence)>,
    /// What the origin could not look through.
    pub unseen: Option<Scan>,
}

/// Why a snapshot may not take the place of a log. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unseeded {
    /// A shard is between two owners.
    #[error("shard {0} is on its way to another owner, or lost without a new one: wait until it is settled")]
    Unsettled(Shard),
    /// This zone has reported its positions for a lost shard: nothing of that log may be applied.
    #[error("this zone has reported its positions for the lost shard {0}: wait for the map that answers")]
    Reported(Shard),
    /// Records of that log are parked.
    #[error("{0} records of that log are parked here: wait until they are settled")]
    Parked(usize),
    /// The snapshot was taken under a newer map.
    #[error("the origin goes by map {theirs}, this zone by map {ours}: wait until it has that map")]
    Map {
        /// The origin's.
        theirs: MapEpoch,
        /// This zone's.
        ours: MapEpoch,
    },
    /// A cut that the origin's ledger did not know.
    #[error(
        "map {map} has a new cut of that log, at seq {cut} for shard {shard}, since the snapshot was taken: seed again"
    )]
    Cut {
        /// The map that brought it.
        map: MapEpoch,
        /// The shard.
        shard: Shard,
        /// Where.
        cut: u64,
    },
    /// More is applied here than the snapshot holds.
    #[error("seq {applied} is applied here, the snapshot ends with {seq}: try again")]
    Behind {
        /// Here.
        applied: u64,
        /// In the snapshot.
        seq: u64,
    },
}

impl Applier {
    /// May a snapshot of `zone`'s log be taken over at all?
    pub fn may_seed(&self, zone: Zone) -> Result<(), Unseeded> {
        if let Some(shard) = self.frozen(zone) {
            return Err(Unseeded::Reported(shard));
        }
        let mut unsettled = None;
        self.map.each(&mut |shard, history| {
            if history.view().kind.is_unsettled() {
                unsettled = unsettled.or(Some(shard));
            }
        });
        if let Some(shard) = unsettled {
            return Err(Unseeded::Unsettled(shard));
        }
        match self.state.parked.iter().filter(|p| p.zone == zone).count() {
            0 => Ok(()),
            parked => Err(Unseeded::Parked(parked)),
        }
    }

    /// Counts everything that `seed` stands for as applied; the changes must be durable before anyone acts on them.
    pub fn seed(&mut self, seed: &Seed) -> Result<Changes, Unseeded> {
        let Seed { zone, seq, map_epoch, ref fences, unseen } = *seed;
        self.may_seed(zone)?;
        if map_epoch > self.map.epoch() {
            return Err(Unseeded::Map { theirs: map_epoch, ours: self.map.epoch() });
        }
        if let Some((map, shard, cut)) = self.new_cut(zone, seq, map_epoch) {
            return Err(Unseeded::Cut { map, shard, cut });
        }
        if self.applied(zone) > seq {
            return Err(Unseeded::Behind { applied: self.applied(zone), seq });
        }
        let mut out = Changes { list: vec![], durable: true };
        for (shard, fence) in fences {
            self.keep_fence(zone, *shard, fence.clone(), &mut out);
        }
        // What was to be looked through here is in the origin's ledger, but for what the origin could not see itself.
        crate::store::put_or_remove(&mut self.state.scans, zone, unseen);
        out.list.push(Change::Scan(zone, unseen));
        self.state.applied.set(zone, seq);
        out.list.push(Change::Applied(zone, seq));
        Ok(out)
    }

    /// The next batch of a scan of which nothing below `kept` is there to be looked at: what is there is listed; behind it the scan
    /// shrinks to what is not, and stays so until a snapshot ends it.
    pub fn scan_kept(&mut self, zone: Zone, batch: &[(u64, Record)], kept: u64) -> Changes {
        let mut out = Changes::default();
        let (Some(scan), Some((last, _))) = (self.state.scans.get(&zone).copied(), batch.last()) else { return out };
        for (seq, record) in batch.iter().filter(|(seq, _)| (kept..=scan.to).contains(seq)) {
            self.list(zone, *seq, record, &mut out);
        }
        if *last >= scan.to && scan.from < kept && kept <= scan.to {
            let unseen = Scan { from: scan.from, to: kept - 1 };
            self.state.scans.insert(zone, unseen);
            out.list.push(Change::Scan(zone, Some(unseen)));
        }
        out
    }

    /// A cut of `zone`'s log below `seq` that came with a map behind `known`.
    fn new_cut(&self, zone: Zone, seq: u64, known: MapEpoch) -> Option<(MapEpoch, Shard, u64)> {
        let mut found = None;
        self.map.each(&mut |shard, history| {
            for e in self.begun(shard, history, known) {
                let cut = e.cut.get(zone).filter(|cut| *cut < seq && e.owner != Some(zone));
                found = found.or(cut.map(|cut| (e.epoch, shard, cut)));
            }
        });
        found
    }
}
