//! Beginning, aborting and resuming operations: what can be asked for, and what speaks against it.
//!
//! Two kinds of "no". An ask that makes no sense, or is against the contract of ownership, is refused whatever anyone says. Reasons of the
//! **preflight** (lag, nodes that are not heard, room at the target, open conflicts, something that was moved a moment ago) are
//! refused too, unless the ask says `force`; then they stand in the record.

use super::{GRACE_MS, Service};
use crate::api::{OpAsk, What};
use crate::change::Change;
use crate::fences::Prepared;
use crate::limits::{RUNNING_MAX, TEXT_BYTES_MAX};
use crate::nodes::{Seen, owned};
use crate::op::{At, Decision, End, Facts, Op, Share};
use serde_json::Value;
use shardmap::map::{Map, SHARDS_ALL, ZoneInfo};
use shardmap::names::is_word;
use shardmap::ownership::{Entry, History, Illegal, Kind};
use shardmap::{Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};

/// Why an operation does not begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The ask names what there is not, or says nothing.
    Ask(String),
    /// What is there does not allow it.
    State(String),
    /// The preflight: each reason. `force` goes on nevertheless.
    Preflight(Vec<String>),
    /// There is no such operation.
    Unknown(u64),
}

impl Service {
    /// The change with which an operation begins.
    pub fn begin(&self, ask: &OpAsk, now_ms: u64) -> Result<Change, Refused> {
        self.begin_with(ask, None, now_ms)
    }

    /// As [`Service::begin`], for a fence edit, whose fences were judged before.
    pub fn begin_edit(&self, ask: &OpAsk, fences: &Prepared, now_ms: u64) -> Result<Change, Refused> {
        self.begin_with(ask, Some(fences), now_ms)
    }

    fn begin_with(&self, ask: &OpAsk, fences: Option<&Prepared>, now_ms: u64) -> Result<Change, Refused> {
        if let Some(why) = &self.stopped {
            return Err(Refused::State(why.clone()));
        }
        if let What::Move { shards, .. } | What::Unlock { shards } = &ask.what
            && shards.len() > SHARDS_ALL
        {
            return Err(Refused::Ask(format!("{} shards, there are at most {SHARDS_ALL}", shards.len())));
        }
        if ask.by.len() > TEXT_BYTES_MAX || ask.why.len() > TEXT_BYTES_MAX {
            return Err(Refused::Ask(format!("`by` and `why` have at most {TEXT_BYTES_MAX} bytes")));
        }
        if self.ops.values().filter(|op| op.is_running()).count() >= RUNNING_MAX {
            return Err(Refused::State(format!("{RUNNING_MAX} operations are under way already")));
        }
        let shares = match (&ask.what, fences) {
            (What::Fences { from_epoch, .. }, Some(fences)) => self.held(*from_epoch, fences)?,
            _ => self.shares(&ask.what, now_ms)?,
        };
        let reasons = self.preflight(&ask.what, &shares, now_ms);
        if !reasons.is_empty() && !ask.force {
            return Err(Refused::Preflight(reasons));
        }
        let op = Op {
            id: self.ops.keys().next_back().map_or(1, |id| id + 1),
            revision: 1,
            what: shown(&ask.what),
            by: ask.by.clone(),
            why: ask.why.clone(),
            forced: reasons,
            begun_ms: now_ms,
            since_ms: now_ms,
            limit_ms: ask.limit_ms.unwrap_or(self.settings.move_limit_ms),
            ended: None,
            because: String::new(),
            shares,
            told_durable: vec![],
            edit: fences.map(|f| f.edit(&self.map)),
        };
        match &ask.what {
            What::Move { .. } | What::Evacuate { .. } | What::Restore { .. } | What::Fences { .. } => {
                Ok(self.change(&op, None, op.clone(), "", now_ms))
            }
            What::TakeOver { zone, .. } => self.declare_lost(op, zone, now_ms),
            What::Unlock { shards } => self.unlock(op, shards, now_ms),
            What::AddZone { zone } => self.add_zone(op, zone, now_ms),
            What::RemoveZone { zone } => self.remove_zone(op, zone, now_ms),
            What::AddGlobal { name, zone } => self.add_global(op, name, zone, now_ms),
        }
    }

    /// The change that aborts an operation.
    pub fn abort(&self, id: u64, by: &str, now_ms: u64) -> Result<Change, Refused> {
        if by.len() > TEXT_BYTES_MAX {
            return Err(Refused::Ask(format!("`by` has at most {TEXT_BYTES_MAX} bytes")));
        }
        let op = self.ops.get(&id).ok_or(Refused::Unknown(id))?;
        if let Some(why) = &self.stopped {
            return Err(Refused::State(why.clone()));
        }
        match op.abort(&self.map, now_ms, by).map_err(Refused::State)? {
            Decision::Store(step) => {
                let mut change = self.change(op, step.map, step.op, step.why, now_ms);
                // It is who aborts that gives back, not who began.
                change.audit.iter_mut().for_each(|entry| entry.by = by.to_owned());
                Ok(change)
            }
            Decision::Wait(why) => Err(Refused::State(why)),
            Decision::Ended => Err(Refused::State(format!("operation {id} has ended"))),
        }
    }

    /// The change that takes an operation up again.
    pub fn resume(&self, id: u64, now_ms: u64) -> Result<Change, Refused> {
        let op = self.ops.get(&id).ok_or(Refused::Unknown(id))?;
        if let Some(why) = &self.stopped {
            return Err(Refused::State(why.clone()));
        }
        let next = op.resume(&self.map, now_ms).map_err(Refused::State)?;
        let open: Vec<Share> = next.shares.iter().filter(|s| s.is_open()).copied().collect();
        self.free(&open)?;
        Ok(self.change(op, None, next, "", now_ms))
    }

    /// A zone that was silent for too long, if others are heard: the change that declares it lost.
    pub(super) fn silent_zone(&self, now_ms: u64) -> Option<Change> {
        let silence = self.settings.silence_ms;
        if silence == 0 {
            return None;
        }
        // While this service heard nobody, nobody was silent.
        let awake = now_ms.saturating_sub(self.awake_ms.max(self.deaf_ms));
        let (lost, losing) = (self.lost(), self.losing());
        // One that was taken over in part is left to people until it was heard again.
        let gone = |zone: Zone| losing.contains(&zone) || (lost.contains(&zone) && !self.was_back(zone, now_ms));
        for zone in self.map.zones().iter().filter(|z| !gone(z.id) && owned(&self.map, z.id) > 0) {
            let (silent, enough) = match self.nodes.silent_ms(&zone.name, now_ms) {
                Some(ms) => (ms.min(awake), silence),
                None => (awake, silence + GRACE_MS),
            };
            let others = self.map.zones().iter().any(|z| z.id != zone.id && self.nodes.is_live(&z.name, now_ms));
            if silent < enough || !others || self.was_back_recently(zone.id, now_ms) {
                continue;
            }
            let ask = OpAsk {
                what: What::TakeOver { zone: zone.name.clone(), to: None },
                by: "ezone gzs".into(),
                why: format!("its log was silent for {silent} ms, at most {silence} by silence_ms"),
                force: true,
                limit_ms: None,
            };
            if let Ok(change) = self.begin(&ask, now_ms) {
                return Some(change);
            }
        }
        None
    }

    /// A map that was adopted from a node may hold shards for moves that this store knows nothing of: the change that gives them back.
    pub(super) fn orphans(&self, now_ms: u64) -> Option<Change> {
        let next = self.map.epoch().next();
        let orphan = |shard: Shard, history: &History| history.view().kind == Kind::Moving && !self.is_held(shard);
        let back = |shard: Shard, history: &History| orphan(shard, history).then(|| history.abort(next)).transpose();
        let map = self.with(back).ok()??;
        let why = "moves that no operation knows of are given back".to_owned();
        let audit = Some(self.audited(&map, "ezone gzs", why, None, now_ms));
        let from_epoch = self.map.epoch().0;
        Some(Change { from_epoch, map: Some(map), op: None, marks: vec![], grants: vec![], audit })
    }

    /// Is it on its way by an operation?
    fn is_held(&self, shard: Shard) -> bool {
        let has = |op: &Op| op.shares.iter().any(|s| s.is_open() && s.shard == shard.0);
        self.ops.values().any(|op| op.is_running() && has(op))
    }

    /// Did an operation give this zone its shards back a moment ago? Then a person decides: it may be flapping.
    fn was_back_recently(&self, zone: Zone, now_ms: u64) -> bool {
        let back = |op: &&Op| matches!(op.what, What::Restore { .. }) && op.shares.iter().any(|s| Zone(s.to) == zone);
        let ended = self.ops.values().filter(back).filter_map(|op| op.ended).map(|(at, _)| at).max();
        ended.is_some_and(|at| now_ms.saturating_sub(at) < self.settings.cool_down_ms)
    }

    /// What is to go where. Refused: what makes no sense.
    fn shares(&self, what: &What, now_ms: u64) -> Result<Vec<Share>, Refused> {
        let all = |zone: Zone| self.map.shards().filter(move |(_, h)| h.view().owner == Some(zone)).map(|(s, _)| s);
        match what {
            What::Move { shards, to } => {
                let to = self.zone_named(to)?;
                let shards: BTreeSet<Shard> = shards.iter().map(|s| Shard(*s)).collect();
                if shards.is_empty() {
                    return Err(Refused::Ask("no shard is named".into()));
                }
                self.to_one(shards.into_iter(), to)
            }
            What::Evacuate { zone, to: Some(to) } => {
                let (zone, to) = (self.zone_named(zone)?, self.zone_named(to)?);
                self.to_one(all(zone), to).and_then(|s| some(s, "the zone owns no shard: there is nothing to evacuate"))
            }
            What::Evacuate { zone, to: None } => {
                let zone = self.zone_named(zone)?;
                let shares = self.spread(all(zone), zone, now_ms)?;
                self.free(&shares)?;
                some(shares, "the zone owns no shard: there is nothing to evacuate")
            }
            What::Restore { zone } => {
                let zone = self.zone_named(zone)?;
                let home =
                    |(shard, mark): (&Shard, &crate::change::Mark)| (mark.home() == Some(zone)).then_some(*shard);
                let away: Vec<Shard> =
                    self.marks.iter().filter_map(home).filter(|s| self.map.owner(*s) != Some(zone)).collect();
                let shares = self.to_one(away.into_iter(), zone)?;
                some(shares, "no evacuation or take-over has taken a shard from it that it has not got back")
            }
            What::TakeOver { zone, to } => {
                let zone = self.zone_named(zone)?;
                let under_way = self.ops.values().any(|op| op.is_running() && op.lost() == Some(zone));
                if under_way {
                    return Err(Refused::State("a take-over of this zone is under way".into()));
                }
                // What was on its way to it goes back by itself; what is its own needs a new owner, and so does what is nobody's: by a map
                // that was adopted in the middle of a take-over.
                let is_nobodys = |(shard, h): (Shard, &History)| {
                    let was_its = h.view().kind == Kind::Lost && h.view().lost.is_some_and(|(lost, _)| lost == zone);
                    (was_its && !self.is_held(shard)).then_some(shard)
                };
                let all = all(zone).chain(self.map.shards().filter_map(is_nobodys));
                match to {
                    Some(to) if self.zone_named(to)? == zone => {
                        Err(Refused::Ask(format!("zone {to} cannot take over from itself")))
                    }
                    Some(to) => Ok(self.survivor(all, zone, self.zone_named(to)?)),
                    None => self.spread(all, zone, now_ms),
                }
            }
            What::Unlock { shards } if shards.is_empty() => Err(Refused::Ask("no shard is named".into())),
            What::Unlock { .. } => Ok(vec![]),
            What::AddZone { zone } => self.may_come(zone).map(|()| vec![]),
            What::RemoveZone { zone } => self.may_go(zone, now_ms).map(|()| vec![]),
            What::AddGlobal { name, zone } => self.may_have(name, zone).map(|_| vec![]),
            What::Fences { .. } => Err(Refused::Ask("no fences that were judged: expected `geojson`".into())),
        }
    }

    /// The shards that a fence edit holds.
    fn held(&self, from_epoch: u64, fences: &Prepared) -> Result<Vec<Share>, Refused> {
        let map = &*self.map;
        if from_epoch > map.epoch().0 {
            return Err(Refused::Ask(format!("from_epoch {from_epoch}, the newest map is {}", map.epoch())));
        }
        if from_epoch < self.fences_since || fences.before != map.fences_digest() {
            return Err(Refused::State(format!(
                "the fences of map {} may be others than those of map {from_epoch}, which the preview was made of: make a new preview",
                self.fences_since
            )));
        }
        if fences.is_the_same(map) {
            return Err(Refused::State("these are the map's fences already: nothing would change".into()));
        }
        if let Some(op) = self.ops.values().find(|op| op.is_running() && op.edit.is_some()) {
            return Err(Refused::State(format!("operation {} changes the fences: wait for it, or abort it", op.id)));
        }
        let edit = fences.edit(map);
        for shard in edit.pairs.iter().flat_map(|(from, to)| [Shard(*from), Shard(*to)]) {
            self.free_shard(shard)?;
        }
        let mut shares = vec![];
        for (shard, zone) in fences.holds(map) {
            let nobody = || Refused::State(format!("nobody owns the shards that get land of shard {shard}"));
            shares.extend(self.to_one([shard].into_iter(), zone.ok_or_else(nobody)?)?);
        }
        Ok(shares)
    }

    /// Is this shard settled, and no operation's?
    fn free_shard(&self, shard: Shard) -> Result<(), Refused> {
        let kind = self.map.view(shard).map(|v| v.kind);
        if let Some(kind) = kind.filter(|k| k.is_unsettled()) {
            return Err(Refused::State(format!("shard {shard} is {kind:?}: wait for the operation that changes it")));
        }
        self.free(&[Share { shard: shard.0, from: 0, to: 0, at: At::Waiting }])
    }

    pub(super) fn zone_named(&self, name: &str) -> Result<Zone, Refused> {
        self.map.zone_named(name).ok_or_else(|| {
            let known: Vec<&str> = self.map.zones().iter().map(|z| z.name.as_str()).collect();
            Refused::Ask(format!("zone \"{name}\" is not on the map, which has: {}", known.join(", ")))
        })
    }

    /// All of them to one zone.
    fn to_one(&self, shards: impl Iterator<Item = Shard>, to: Zone) -> Result<Vec<Share>, Refused> {
        let mut shares = vec![];
        for shard in shards {
            let view = self.map.view(shard).ok_or_else(|| Refused::Ask(format!("shard {shard} is not on the map")))?;
            let Some(from) = view.owner.filter(|_| !view.kind.is_unsettled()) else {
                return Err(Refused::State(format!(
                    "shard {shard} is {:?}: wait for the operation that changes it",
                    view.kind
                )));
            };
            if from == to {
                return Err(Refused::State(format!("zone {} owns shard {shard} already", self.map.zone_name(to))));
            }
            shares.push(Share { shard: shard.0, from: from.0, to: to.0, at: At::Waiting });
        }
        self.free(&shares)?;
        Ok(shares)
    }

    fn survivor(&self, shards: impl Iterator<Item = Shard>, from: Zone, to: Zone) -> Vec<Share> {
        shards.map(|s| Share { shard: s.0, from: from.0, to: to.0, at: At::Waiting }).collect()
    }

    /// Over the other zones that are up, each shard to the one that has fewest.
    fn spread(&self, shards: impl Iterator<Item = Shard>, from: Zone, now_ms: u64) -> Result<Vec<Share>, Refused> {
        let (lost, losing) = (self.lost(), self.losing());
        let up = |z: &&ZoneInfo| z.id != from && !losing.contains(&z.id) && self.nodes.is_live(&z.name, now_ms);
        let mut has: BTreeMap<Zone, usize> =
            self.map.zones().iter().filter(up).map(|z| (z.id, owned(&self.map, z.id))).collect();
        // One that was lost and is back has much to catch up with: only if there is no other.
        if has.keys().any(|zone| !lost.contains(zone)) {
            has.retain(|zone, _| !lost.contains(zone));
        }
        let mut shares = vec![];
        for shard in shards {
            let Some(to) = has.iter().min_by_key(|(_, n)| **n).map(|(z, _)| *z) else {
                return Err(Refused::State("no other zone is heard: nobody could take its shards".into()));
            };
            *has.entry(to).or_default() += 1;
            shares.push(Share { shard: shard.0, from: from.0, to: to.0, at: At::Waiting });
        }
        Ok(shares)
    }

    /// Is none of these another operation's? One operation for each shard at a time.
    fn free(&self, shares: &[Share]) -> Result<(), Refused> {
        let has = |op: &Op, shard: u16| {
            let open = op.shares.iter().any(|s| s.is_open() && s.shard == shard);
            open || op.edit.as_ref().is_some_and(|e| e.concerns(shard))
        };
        let taken = |op: &&Op| op.is_running() && shares.iter().any(|mine| has(op, mine.shard));
        match self.ops.values().find(taken) {
            Some(op) => Err(Refused::State(format!(
                "operation {} is moving one of these shards, or the land of one: wait for it, or abort it",
                op.id
            ))),
            None => Ok(()),
        }
    }

    /// What speaks against it.
    fn preflight(&self, what: &What, shares: &[Share], now_ms: u64) -> Vec<String> {
        let map = &*self.map;
        let lost = self.lost();
        let losing = self.losing();
        let (nodes, leases) = (&self.nodes, &self.leases);
        let seen = Seen { nodes, map, now_ms, awake_ms: self.awake_ms, lost: &lost, losing: &losing, leases };
        let name = |zone: u8| map.zone_name(Zone(zone));
        let mut reasons = vec![];
        let mut away: BTreeSet<String> = lost.iter().map(|z| map.zone_name(*z).to_owned()).collect();
        match what {
            What::Unlock { .. } => return vec![],
            What::TakeOver { zone, .. } => {
                if let Some(ms) = self.nodes.silent_ms(zone, now_ms).filter(|_| self.nodes.is_live(zone, now_ms)) {
                    reasons.push(format!(
                        "zone {zone} is alive: its log was heard {ms} ms ago. What it writes until it hears of this will be in conflict; \
                         to move its shards away, evacuate it"
                    ));
                }
                away.insert(zone.clone());
            }
            What::Restore { zone } => {
                away.remove(zone);
            }
            What::AddZone { .. } | What::AddGlobal { .. } => {}
            What::RemoveZone { zone } => {
                reasons.extend(self.is_home(zone));
                reasons.extend(self.lacked_of(zone));
                away.insert(zone.clone());
            }
            What::Move { .. } | What::Evacuate { .. } | What::Fences { .. } => {
                reasons.extend(self.conflicts_open(shares));
                reasons.extend(self.moved_recently(shares, now_ms));
            }
        }
        reasons.extend(self.nodes.stale(map, self.issued_ms, now_ms, &away));
        let targets: BTreeSet<u8> = shares.iter().map(|s| s.to).collect();
        for to in targets {
            // How far it is behind is waited for; whether it is there at all is not.
            if !self.nodes.is_live(name(to), now_ms) {
                reasons.extend(seen.fresh(Zone(to)).err());
            }
            // A fence edit gives no shard away: what it holds comes back.
            if !matches!(what, What::Fences { .. }) {
                reasons.extend(self.too_much(to, shares));
            }
        }
        reasons
    }

    fn conflicts_open(&self, shares: &[Share]) -> Vec<String> {
        let zones: BTreeSet<u8> = shares.iter().flat_map(|s| [s.from, s.to]).collect();
        let open = |zone: &u8| {
            let name = self.map.zone_name(Zone(*zone));
            let n = self.nodes.log_told(name)?.log.as_ref()?.open;
            (n > 0).then(|| format!("{n} conflicts are open in zone {name}: `ezctl conflicts list`, then `resolve`"))
        };
        zones.iter().filter_map(open).collect()
    }

    fn moved_recently(&self, shares: &[Share], now_ms: u64) -> Option<String> {
        let since = |s: &Share| Some(now_ms.saturating_sub(self.marks.get(&Shard(s.shard))?.given_ms));
        let (shard, ms) = shares.iter().filter_map(|s| Some((s.shard, since(s)?))).min_by_key(|(_, ms)| *ms)?;
        let limit = self.settings.cool_down_ms;
        (ms < limit).then(|| {
            format!("shard {shard} was moved {:.1} s ago, less than cool_down_s = {}", ms as f64 / 1000.0, limit / 1000)
        })
    }

    /// Would the target have more to answer than it can?
    fn too_much(&self, to: u8, shares: &[Share]) -> Option<String> {
        let name = self.map.zone_name(Zone(to));
        let most = *self.settings.requests_per_s_max.get(name)?;
        let mut by: BTreeMap<u8, usize> = BTreeMap::new();
        shares.iter().filter(|s| s.to == to).for_each(|s| *by.entry(s.from).or_default() += 1);
        let part = |(from, n): (&u8, &usize)| {
            let all = owned(&self.map, Zone(*from)).max(1);
            self.nodes.rate(self.map.zone_name(Zone(*from))) * *n as f64 / all as f64
        };
        let (more, now) = (by.iter().map(part).sum::<f64>(), self.nodes.rate(name));
        (now + more > most).then(|| {
            format!("zone {name} answers {now:.0} requests/s and would get {more:.0} more; it can answer {most:.0} by requests_per_s_max")
        })
    }

    /// The map that says "no owner", and the operation that goes on from there.
    fn declare_lost(&self, mut op: Op, zone: &str, now_ms: u64) -> Result<Change, Refused> {
        let lost = self.zone_named(zone)?;
        let next = self.map.epoch().next();
        op.told_durable = self.nodes.durable(zone);
        for share in &mut op.shares {
            let view = self.map.view(Shard(share.shard)).filter(|v| v.kind == Kind::Lost);
            share.at = At::OnItsWay(view.map_or(next.0, |v| v.epoch.0));
        }
        let map = self.with(|_, history| history.declare_lost(lost, next))?;
        if map.is_none() && op.shares.is_empty() {
            return Err(Refused::State(
                "the zone owns no shard and none is on its way to it: there is nothing to take over".into(),
            ));
        }
        // A zone that owned nothing, and was a target only: what was on its way has gone back, and that is all.
        if op.shares.is_empty() {
            op.ended = Some((now_ms, End::Done));
        }
        Ok(self.change(&op, map, op.clone(), "the zone is lost", now_ms))
    }

    fn unlock(&self, mut op: Op, shards: &[u16], now_ms: u64) -> Result<Change, Refused> {
        let next = self.map.epoch().next();
        if let Some(shard) = shards.iter().find(|s| self.map.view(Shard(**s)).is_none()) {
            return Err(Refused::Ask(format!("shard {shard} is not on the map")));
        }
        let map = self.with(
            |shard, history| {
                if shards.contains(&shard.0) { history.unlock(next).map(Some) } else { Ok(None) }
            },
        )?;
        op.ended = Some((now_ms, End::Done));
        Ok(self.change(&op, map, op.clone(), "the locks of take-overs are opened", now_ms))
    }

    /// May a zone have a new global service of this name? One that is there, since nobody else may write it.
    fn may_have(&self, name: &str, zone: &str) -> Result<Zone, Refused> {
        let owner = self.zone_named(zone)?;
        if self.losing().contains(&owner) {
            return Err(Refused::State(format!("zone {zone} is lost: nobody would write the global service")));
        }
        match self.map.place_global(name) {
            Ok(_) => Ok(owner),
            Err(why) if is_word(name) => Err(Refused::State(why.to_string())),
            Err(why) => Err(Refused::Ask(why.to_string())),
        }
    }

    fn add_global(&self, mut op: Op, name: &str, zone: &str, now_ms: u64) -> Result<Change, Refused> {
        let owner = self.may_have(name, zone)?;
        let map = self.map.with_global(name, owner).map_err(|e| Refused::State(e.to_string()))?;
        op.ended = Some((now_ms, End::Done));
        Ok(self.change(&op, Some(map), op.clone(), "a global service is added", now_ms))
    }

    /// The next map, with an entry for each shard for which `step` gives one; `None`: for none.
    fn with(&self, step: impl Fn(Shard, &History) -> Result<Option<Entry>, Illegal>) -> Result<Option<Map>, Refused> {
        let mut entries = vec![];
        for (shard, history) in self.map.shards() {
            let entry = step(shard, history).map_err(|e| Refused::State(format!("shard {shard}: {e}")))?;
            entries.extend(entry.map(|e| (shard, e)));
        }
        if entries.is_empty() {
            return Ok(None);
        }
        self.map.with_entries(entries).map(Some).map_err(|e| Refused::State(e.to_string()))
    }
}

/// What was asked, as a record keeps it: fences are kept apart, until they are the map's.
fn shown(what: &What) -> What {
    match what {
        What::Fences { from_epoch, .. } => What::Fences { from_epoch: *from_epoch, geojson: Value::Null, datum: None },
        What::Move { .. } | What::Evacuate { .. } | What::Restore { .. } | What::TakeOver { .. } => what.clone(),
        What::Unlock { .. } | What::AddZone { .. } | What::RemoveZone { .. } | What::AddGlobal { .. } => what.clone(),
    }
}

fn some(shares: Vec<Share>, none: &str) -> Result<Vec<Share>, Refused> {
    if shares.is_empty() { Err(Refused::State(none.into())) } else { Ok(shares) }
}
