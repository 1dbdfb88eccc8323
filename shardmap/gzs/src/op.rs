//! One operation: shards on their way from one zone to another, step by step.
//!
//! ```text
//!              the target is fresh            routers hold, its report is here
//!   Waiting ───────────────────▶ OnItsWay ─────────────────────────────────────▶ Given
//!      │  a map says moving        │  │                                  the map names the new owner: no way back
//!      │                           │  └──── another operation changed the shard ──▶ Replaced
//!      └──────── abort, or too slow ┴──────────────────────────────────────────────▶ Returned
//! ```
//!
//! A fence edit goes the same way up to `OnItsWay`, and then gives every shard back: see `op/edit.rs`.
//!
//! A take-over begins at `OnItsWay` (its map says "no owner") and never gives up: its shards' old owner is gone. All that an
//! operation knows is in the record and in the map, so whoever reads both goes on with it: [`Op::decide`] is asked again and again
//! and either waits or names the one change that comes next. It holds no clock, and reaches nobody.

mod edit;

use crate::api::{OpView, ReportAsk, ShardTold, ShareView, What};
use serde::{Deserialize, Serialize};
use shardmap::map::Map;
use shardmap::ownership::{Entry, Illegal, Kind};
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::collections::BTreeMap;

pub use edit::Edit;

/// Shards that are named in a sentence.
const NAMED_MAX: usize = 8;

/// An operation, as it is stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Op {
    /// Rises by one with each.
    pub id: u64,
    /// How often the record was changed: what a store compares before it sets.
    pub revision: u64,
    /// What was asked.
    pub what: What,
    /// Who asked.
    pub by: String,
    /// Why.
    pub why: String,
    /// The reasons of the preflight against which it was begun.
    pub forced: Vec<String>,
    /// When it was begun.
    pub begun_ms: u64,
    /// When it was begun or resumed last: its limit counts from there.
    pub since_ms: u64,
    /// It gives up after so long.
    pub limit_ms: u64,
    /// When and how it ended.
    pub ended: Option<(u64, End)>,
    /// What the record says of why it ended; empty: as it should.
    pub because: String,
    /// Each shard's way.
    pub shares: Vec<Share>,
    /// Of a take-over: by stream, the last seq that the lost zone had told to be durable.
    pub told_durable: Vec<u64>,
    /// Of a fence edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<Edit>,
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum End {
    /// Every shard is where it was to go.
    Done,
    /// By an operator.
    Aborted,
    /// It took too long, or another operation changed a shard: what was not done was given back, or is as that other one made it.
    GaveUp,
}

/// One shard's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// The shard's number.
    pub shard: u16,
    /// Its owner before, by number.
    pub from: u8,
    /// Its owner after.
    pub to: u8,
    /// How far it is.
    pub at: At,
}

/// How far a shard is; each with the map epoch that made it so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum At {
    /// Nothing was changed yet.
    Waiting,
    /// The map says moving, or no owner.
    OnItsWay(u64),
    /// The map names the new owner.
    Given(u64),
    /// The map gave it back; 0: it never left.
    Returned(u64),
    /// Another operation changed it.
    Replaced(u64),
}

/// What an operation goes by, besides itself and the map.
pub trait Facts {
    /// Does every live router go by `epoch` or a newer map, with nothing in flight for shards without a settled owner? Else one that
    /// does not, in words.
    fn routers_hold(&self, epoch: MapEpoch) -> Result<(), String>;
    /// Is `zone` up, writable, and so little behind every other zone that clients would hardly wait for it? Else what it lacks.
    fn fresh(&self, zone: Zone) -> Result<(), String>;
    /// What `zone` has told of `shard` under map `epoch`.
    fn told(&self, zone: Zone, shard: Shard, epoch: MapEpoch, take_over: bool) -> Option<&ShardTold>;
    /// Has every lease of the global service in `shard` ended, as far as anyone may have been told? Else what is waited for.
    fn unleased(&self, shard: Shard) -> Result<(), String>;
    /// Is `zone`, which is new, up, and has it all that the others have? Else what it lacks, and what people can do.
    fn joined(&self, zone: Zone) -> Result<(), String>;
    /// Another zone for shards of a take-over whose target is itself lost; `None`: as it was.
    fn instead_of(&self, zone: Zone, lost: Zone) -> Option<Zone>;
}

/// What comes next.
#[derive(Debug)]
pub enum Decision {
    /// Nothing, until a fact, the map or the time changes: why, in words.
    Wait(String),
    /// This is to be stored.
    Store(Box<Step>),
    /// It has ended.
    Ended,
}

/// A step of an operation: map and record change both together, or neither.
#[derive(Debug)]
pub struct Step {
    /// The next map, if it changes.
    pub map: Option<Map>,
    /// The record as it is then.
    pub op: Op,
    /// What it does, for the audit.
    pub why: &'static str,
}

impl Decision {
    fn store(map: Option<Map>, op: Op, why: &'static str) -> Decision {
        Decision::Store(Box::new(Step { map, op, why }))
    }
}

impl Share {
    fn id(&self) -> Shard {
        Shard(self.shard)
    }
    /// Is it still this operation's?
    pub fn is_open(&self) -> bool {
        matches!(self.at, At::Waiting | At::OnItsWay(_))
    }
}

impl Op {
    /// Is it a take-over, and of which zone?
    pub fn lost(&self) -> Option<Zone> {
        match self.what {
            What::TakeOver { .. } => self.shares.first().map(|s| Zone(s.from)),
            What::Move { .. } | What::Evacuate { .. } | What::Restore { .. } | What::Unlock { .. } => None,
            What::Fences { .. } | What::AddZone { .. } | What::RemoveZone { .. } | What::AddGlobal { .. } => None,
        }
    }

    /// Has it shards to bring on their way, or to their end?
    pub fn is_running(&self) -> bool {
        self.ended.is_none()
    }

    /// When time alone makes it change.
    pub fn deadline_ms(&self) -> Option<u64> {
        let waits_for_people = matches!(self.what, What::AddZone { .. });
        (self.is_running() && self.lost().is_none() && !waits_for_people)
            .then(|| self.since_ms.saturating_add(self.limit_ms))
    }

    /// What the targets are to be asked under `map`: a zone and its ask.
    pub fn asks(&self, map: &Map) -> Vec<(Zone, ReportAsk)> {
        let mut by: BTreeMap<(Zone, u64), Vec<u16>> = BTreeMap::new();
        for share in self.shares.iter().filter(|_| self.is_running()) {
            if let At::OnItsWay(epoch) = share.at
                && map.view(share.id()).is_some_and(|v| v.epoch.0 == epoch)
            {
                by.entry((Zone(share.to), epoch)).or_default().push(share.shard);
            }
        }
        let take_over = self.lost().is_some();
        by.into_iter().map(|((zone, map_epoch), shards)| (zone, ReportAsk { map_epoch, shards, take_over })).collect()
    }

    /// The next step.
    pub fn decide(&self, map: &Map, facts: &impl Facts, now_ms: u64) -> Decision {
        if !self.is_running() {
            return Decision::Ended;
        }
        if let Some(op) = self.overtaken(map).or_else(|| self.with_other_targets(facts)) {
            return Decision::store(None, op, "");
        }
        if let Some(edit) = &self.edit {
            return self.decide_edit(edit, map, facts, now_ms);
        }
        if let What::AddZone { zone } = &self.what {
            return match map.zone_named(zone).map(|zone| facts.joined(zone)) {
                Some(Ok(())) => Decision::store(None, self.end(now_ms, End::Done, ""), ""),
                Some(Err(waits)) => Decision::Wait(waits),
                None => Decision::store(None, self.end(now_ms, End::GaveUp, "the zone was removed again"), ""),
            };
        }
        let waits = match self.ready(map, facts) {
            Ok(given) => return self.publish(map, given, "the new owner has caught up"),
            Err(waits) => waits,
        };
        if self.shares.iter().all(|s| !s.is_open()) {
            let op = match self.elsewhere(map) {
                None => self.end(now_ms, End::Done, ""),
                Some(because) => self.end(now_ms, End::GaveUp, &because),
            };
            return Decision::store(None, op, "");
        }
        let begins = self.shares.iter().any(|s| s.at == At::Waiting);
        let lacks = if begins { self.targets().find_map(|zone| facts.fresh(zone).err()) } else { None };
        let waits = lacks.clone().unwrap_or(waits);
        if self.deadline_ms().is_some_and(|end| now_ms >= end) {
            let because = format!("it took longer than {} ms: {waits}", self.limit_ms);
            return self.give_back(map, now_ms, End::GaveUp, &because);
        }
        if begins && lacks.is_none() { self.begin_moves(map) } else { Decision::Wait(waits) }
    }

    /// Gives back what has not arrived: the only way back, and only before the new owner is named.
    pub fn abort(&self, map: &Map, now_ms: u64, by: &str) -> Result<Decision, String> {
        if !self.is_running() {
            return Err(format!("operation {} has ended: there is nothing to abort", self.id));
        }
        if let What::AddZone { zone } = &self.what {
            let because =
                format!("aborted by {by}: zone {zone} stays on the map; `ezctl zone remove {zone}` takes it off");
            return Ok(self.give_back(map, now_ms, End::Aborted, &because));
        }
        if self.edit.is_none() && self.shares.iter().all(|s| !s.is_open()) {
            return Err(format!(
                "operation {}: every shard has its new owner already; move them back instead",
                self.id
            ));
        }
        Ok(self.overtaken(map).unwrap_or_else(|| self.clone()).give_back(
            map,
            now_ms,
            End::Aborted,
            &format!("aborted by {by}"),
        ))
    }

    /// Takes up again what an operation that gave up, or was aborted, has given back.
    pub fn resume(&self, map: &Map, now_ms: u64) -> Result<Op, String> {
        if self.is_running() {
            return Err(format!("operation {} is running", self.id));
        }
        if self.lost().is_some() {
            return Err(format!("operation {} was a take-over: begin a new one, the zone may be back", self.id));
        }
        if self.edit.is_some() {
            return Err(format!("operation {} was a fence edit, whose fences are not kept: begin a new one", self.id));
        }
        let settled =
            |s: &Share| map.view(s.id()).is_some_and(|v| !v.kind.is_unsettled() && v.owner == Some(Zone(s.from)));
        let mut op = self.changed();
        for share in op.shares.iter_mut().filter(|s| matches!(s.at, At::Returned(_)) && settled(s)) {
            share.at = At::Waiting;
        }
        if op.shares.iter().all(|s| !s.is_open()) {
            return Err(format!(
                "operation {} has nothing left to do: no shard that it gave back is where it was",
                self.id
            ));
        }
        (op.ended, op.since_ms, op.because) = (None, now_ms, String::new());
        Ok(op)
    }

    /// As it is shown.
    pub fn view(&self, map: &Map, waits: &str) -> OpView {
        let name = |zone: u8| map.zone_name(Zone(zone)).to_owned();
        let share = |s: &Share| {
            let (state, epoch) = match s.at {
                At::Waiting => ("waiting", 0),
                At::OnItsWay(e) => ("on_its_way", e),
                At::Given(e) => ("given", e),
                At::Returned(e) => ("returned", e),
                At::Replaced(e) => ("replaced", e),
            };
            ShareView { shard: s.shard, from: name(s.from), to: name(s.to), state: state.into(), epoch }
        };
        let state = match self.ended {
            None => "running",
            Some((_, End::Done)) => "done",
            Some((_, End::Aborted)) => "aborted",
            Some((_, End::GaveUp)) => "gave_up",
        };
        OpView {
            id: self.id,
            what: self.what.clone(),
            by: self.by.clone(),
            why: self.why.clone(),
            forced: self.forced.clone(),
            state: state.into(),
            says: if self.is_running() { waits.to_owned() } else { self.because.clone() },
            begun_ms: self.begun_ms,
            ended_ms: self.ended.map(|(at, _)| at),
            limit_ms: self.limit_ms,
            shards: self.shares.iter().map(share).collect(),
        }
    }

    /// What another operation has changed meanwhile is no longer this one's.
    fn overtaken(&self, map: &Map) -> Option<Op> {
        let other = |s: &Share| {
            let v = map.view(s.id())?;
            match s.at {
                At::OnItsWay(mine) => (v.epoch.0 != mine).then_some(v.epoch.0),
                At::Waiting => (v.owner != Some(Zone(s.from)) || v.kind.is_unsettled()).then_some(v.epoch.0),
                At::Given(_) | At::Returned(_) | At::Replaced(_) => None,
            }
        };
        let mut op = self.changed();
        let mut any = false;
        for share in &mut op.shares {
            if let Some(epoch) = other(share) {
                (share.at, any) = (At::Replaced(epoch), true);
            }
        }
        any.then_some(op)
    }

    /// Which shards are not where they were to go, since another operation changed them.
    fn elsewhere(&self, map: &Map) -> Option<String> {
        let is_there =
            |s: &Share| map.view(s.id()).is_some_and(|v| !v.kind.is_unsettled() && v.owner == Some(Zone(s.to)));
        let away: Vec<u16> = self.shares.iter().filter(|s| !is_there(s)).map(|s| s.shard).collect();
        match away[..] {
            [] => None,
            [shard] => {
                let owner = map.view(Shard(shard)).and_then(|v| v.owner).map_or("nobody", |zone| map.zone_name(zone));
                Some(format!("another operation changed shard {shard}, which is {owner}'s now{}", self.others(1)))
            }
            _ => {
                let first: Vec<String> = away.iter().take(NAMED_MAX).map(ToString::to_string).collect();
                let more = if away.len() > NAMED_MAX { " and more" } else { "" };
                let others = self.others(away.len());
                Some(format!("other operations changed {} shards: {}{more}{others}", away.len(), first.join(", ")))
            }
        }
    }

    fn others(&self, away: usize) -> String {
        let there = self.shares.len() - away;
        if there == 0 { String::new() } else { format!("; the other {there} are where they were to go") }
    }

    /// A target that is itself lost cannot take anything over.
    fn with_other_targets(&self, facts: &impl Facts) -> Option<Op> {
        let lost = self.lost()?;
        let mut op = self.changed();
        let mut any = false;
        for share in op.shares.iter_mut().filter(|s| s.is_open()) {
            if let Some(other) = facts.instead_of(Zone(share.to), lost) {
                (share.to, any) = (other.0, true);
            }
        }
        any.then_some(op)
    }

    /// The entries that name new owners: for every shard whose turn has come. Else what is waited for.
    fn ready(&self, map: &Map, facts: &impl Facts) -> Result<Vec<(usize, Entry)>, String> {
        let next = map.epoch().next();
        let (mut given, mut waits) = (vec![], String::from("nothing"));
        for (at, share) in self.shares.iter().enumerate() {
            let At::OnItsWay(epoch) = share.at else { continue };
            match self.arrived(share, MapEpoch(epoch), map, facts, next) {
                Ok(entry) => given.push((at, entry)),
                Err(why) => waits = why,
            }
        }
        if given.is_empty() { Err(waits) } else { Ok(given) }
    }

    fn arrived(
        &self,
        share: &Share,
        epoch: MapEpoch,
        map: &Map,
        facts: &impl Facts,
        next: MapEpoch,
    ) -> Result<Entry, String> {
        let (shard, to) = (share.id(), Zone(share.to));
        let take_over = self.lost().is_some();
        if !take_over {
            facts.routers_hold(epoch)?;
        } else if shard.is_global() {
            facts.unleased(shard)?;
        }
        let silent = || format!("zone {} has not told yet that it has all of shard {shard}", map.zone_name(to));
        let told = facts.told(to, shard, epoch, take_over).ok_or_else(silent)?;
        let history = map.history(shard).ok_or_else(|| format!("shard {shard} is not on the map"))?;
        let positions: Positions = told.applied.iter().map(|(z, seq)| (Zone(*z), *seq)).collect();
        let entry = if take_over {
            history.finish_take_over(to, &positions, next)
        } else {
            let fence = told.fence_seq.ok_or_else(silent)?;
            history.commit_move(fence, &positions, next)
        };
        entry.map_err(|e| format!("shard {shard}: {e}"))
    }

    fn begin_moves(&self, map: &Map) -> Decision {
        let next = map.epoch().next();
        let begun: Result<Vec<(usize, Entry)>, (Shard, Illegal)> = self
            .shares
            .iter()
            .enumerate()
            .filter(|(_, s)| s.at == At::Waiting)
            .map(|(at, s)| {
                let history = map.history(s.id()).ok_or((s.id(), Illegal::Rewritten))?;
                Ok((at, history.begin_move(Zone(s.to), next).map_err(|e| (s.id(), e))?))
            })
            .collect();
        match begun {
            Ok(entries) => self.publish(map, entries, "the move begins"),
            Err((shard, e)) => Decision::Wait(format!("shard {shard}: {e}")),
        }
    }

    /// Gives back every open shard, and ends.
    fn give_back(&self, map: &Map, now_ms: u64, end: End, because: &str) -> Decision {
        let next = map.epoch().next();
        let mut op = self.end(now_ms, end, because);
        let mut entries = vec![];
        for share in op.shares.iter_mut().filter(|s| s.is_open()) {
            let back = map.history(share.id()).and_then(|h| h.abort(next).ok());
            share.at = match (share.at, back) {
                (At::OnItsWay(_), Some(entry)) => {
                    entries.push((share.id(), entry));
                    At::Returned(next.0)
                }
                (_, _) => At::Returned(0),
            };
        }
        if entries.is_empty() {
            return Decision::store(None, op, "");
        }
        match map.with_entries(entries) {
            Ok(map) => Decision::store(Some(map), op, "given back"),
            Err(e) => Decision::Wait(format!("giving back: {e}")),
        }
    }

    /// One map with these entries, and the record that says so.
    fn publish(&self, map: &Map, entries: Vec<(usize, Entry)>, why: &'static str) -> Decision {
        let mut op = self.changed();
        let mut changes = vec![];
        for (at, entry) in entries {
            let share = &mut op.shares[at];
            share.at = if entry.kind == Kind::Own { At::Given(entry.epoch.0) } else { At::OnItsWay(entry.epoch.0) };
            changes.push((share.id(), entry));
        }
        match map.with_entries(changes) {
            Ok(map) => Decision::store(Some(map), op, why),
            Err(e) => Decision::Wait(format!("the next map is refused: {e}")),
        }
    }

    fn targets(&self) -> impl Iterator<Item = Zone> + '_ {
        let mut all: Vec<Zone> = self.shares.iter().filter(|s| s.is_open()).map(|s| Zone(s.to)).collect();
        all.sort();
        all.dedup();
        all.into_iter()
    }

    fn end(&self, now_ms: u64, end: End, because: &str) -> Op {
        let edit = self.edit.as_ref().map(Edit::without_fences);
        Op { ended: Some((now_ms, end)), because: because.to_owned(), edit, ..self.changed() }
    }

    fn changed(&self) -> Op {
        Op { revision: self.revision + 1, ..self.clone() }
    }
}
