//! A fence edit as an operation: hold what gives land away, then change the fences and give it back, both in one map.
//!
//! ```text
//!   Waiting ──▶ OnItsWay: the map says moving ──▶ Returned: the map has the new fences, and every shard its old owner
//! ```
//! What is to be kept from: a router with the old fences and one with the new send requests for one place to two zones, and both write.
//! So every shard that gives land to a shard of another zone ([`shardmap::edit::holds`]) is put on its way to that zone first, as in a
//! move: routers hold its requests, its owner writes no more, and the other zone has applied all that was written. At that moment nobody
//! writes for a place that is about to change its zone. The next map has the new fences and gives every held shard back to its owner, with
//! a new owner epoch, as an abort does; whoever waited goes by the new fences from then on.
//!
//! One could move the giving shards away, edit, and move them back: that is as safe, but all of a shard's clients would cross over twice,
//! for the sake of some land of it, and the target would have to bear their load. Here they are held once, and stay.
//!
//! A shard that takes land needs no hold: what it gets was the giver's alone until then. A shard that gives to several zones is held
//! towards the one that gets most; the others may lack some of its rows for a moment, which stay its own and are read at its owner anyway.
//! As with any move, a router that nobody hears of does not count: what it sends by old fences is written where these said.

use super::{At, Decision, End, Facts, Op, Share};
use crate::fences::NewFences;
use serde::{Deserialize, Serialize};
use shardmap::map::Map;
use shardmap::ownership::Entry;
use shardmap::{MapEpoch, Shard};

/// What an operation knows of its fences.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Edit {
    /// The new ones, until it has ended.
    pub fences: Option<NewFences>,
    /// Which shards give land to which.
    pub pairs: Vec<(u16, u16)>,
    /// What it changes, in words.
    pub told: String,
}

impl Edit {
    /// Has it to do with this shard?
    pub fn concerns(&self, shard: u16) -> bool {
        self.pairs.iter().any(|(from, to)| *from == shard || *to == shard)
    }

    pub(super) fn without_fences(&self) -> Edit {
        Edit { fences: None, ..self.clone() }
    }
}

impl Op {
    pub(super) fn decide_edit(&self, edit: &Edit, map: &Map, facts: &impl Facts, now_ms: u64) -> Decision {
        if let Some(share) = self.shares.iter().find(|s| !s.is_open()) {
            let because = format!("shard {} was changed by another operation: make a new preview", share.shard);
            return self.give_back(map, now_ms, End::GaveUp, &because);
        }
        if let Some((from, to)) = edit.pairs.iter().find(|(from, to)| self.would_leave(map, *from, *to)) {
            let because =
                format!("shards {from} and {to} have come apart into two zones meanwhile: make a new preview");
            return self.give_back(map, now_ms, End::GaveUp, &because);
        }
        let begins = self.shares.iter().any(|s| s.at == At::Waiting);
        let waits = if begins {
            self.targets().find_map(|zone| facts.fresh(zone).err())
        } else {
            match self.all_held(edit, map, facts) {
                Ok(entries) => return self.put_up(edit, map, entries, now_ms),
                Err(waits) => Some(waits),
            }
        };
        if self.deadline_ms().is_some_and(|end| now_ms >= end) {
            let waits = waits.unwrap_or_else(|| "nothing".into());
            let because = format!("it took longer than {} ms: {waits}", self.limit_ms);
            return self.give_back(map, now_ms, End::GaveUp, &because);
        }
        match waits {
            Some(waits) => Decision::Wait(waits),
            None => self.begin_moves(map),
        }
    }

    /// Would land leave its zone though its shard is not held? A shard that another operation has on its way, or without an owner, is
    /// waited for; one that is held here stays its owner's.
    fn would_leave(&self, map: &Map, from: u16, to: u16) -> bool {
        let settled = |shard| map.view(Shard(shard)).filter(|v| self.holds(shard) || !v.kind.is_unsettled());
        let owner = |shard| settled(shard).and_then(|v| v.owner);
        !self.holds(from) && owner(from).zip(owner(to)).is_some_and(|(from, to)| from != to)
    }

    fn holds(&self, shard: u16) -> bool {
        self.shares.iter().any(|s| s.shard == shard)
    }

    /// The entries that give every shard back, once all are held and nothing else is under way; else what is waited for.
    fn all_held(&self, edit: &Edit, map: &Map, facts: &impl Facts) -> Result<Vec<(Shard, Entry)>, String> {
        let next = map.epoch().next();
        for shard in edit.pairs.iter().flat_map(|(from, to)| [*from, *to]).filter(|shard| !self.holds(*shard)) {
            let view = map.view(Shard(shard)).ok_or_else(|| format!("shard {shard} is not on the map"))?;
            if view.kind.is_unsettled() {
                return Err(format!("shard {shard} is {:?}", view.kind));
            }
        }
        let back = |share: &Share| {
            let At::OnItsWay(epoch) = share.at else { return Err(format!("shard {} is not held", share.shard)) };
            self.arrived(share, MapEpoch(epoch), map, facts, next)?;
            let history = map.history(share.id()).ok_or_else(|| format!("shard {} is not on the map", share.shard))?;
            history.abort(next).map(|entry| (share.id(), entry)).map_err(|e| format!("shard {}: {e}", share.shard))
        };
        self.shares.iter().map(back).collect()
    }

    fn put_up(&self, edit: &Edit, map: &Map, entries: Vec<(Shard, Entry)>, now_ms: u64) -> Decision {
        let Some(fences) = &edit.fences else { return Decision::Wait("the new fences are not kept".into()) };
        match map.with_fences(fences.get(), entries) {
            Ok(next) => {
                let mut op = self.end(now_ms, End::Done, &edit.told);
                op.shares.iter_mut().for_each(|s| s.at = At::Returned(next.epoch().0));
                Decision::store(Some(next), op, "the fences are changed")
            }
            Err(e) => self.give_back(map, now_ms, End::GaveUp, &format!("the next map is refused: {e}")),
        }
    }
}
