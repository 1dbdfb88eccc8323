//! Decides a commit: several writes of one shard under their conditions, once for each idempotency key.

use super::{Gate, Write};
use crate::commit::{ANSWERS, Commit, First, Made, ONCE_KEY_MAX, Once, STEPS_MAX, Seen, Step, answer_key};
use crate::lease::Now;
use crate::limits::APPEND_BYTES_MAX;
use crate::port::Refused;
use crate::watch::RowKey;
use crate::{Hlc, Op, Record, Version};
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};
use std::collections::HashSet;

/// What the driver knows of the rows that a commit is about: the newest of the appended, not yet applied, and the store's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    /// Of each step that names a key; `Absent` for the others.
    pub rows: Vec<Seen>,
    /// The first answer to its idempotency key.
    pub once: Option<Found>,
}

/// A row of `ANSWERS`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its version.
    pub version: Version,
    /// Its place in the log of that zone.
    pub seq: u64,
    /// Its value.
    pub value: Bytes,
}

/// What becomes of a commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ruling {
    /// Append these, one transaction; acknowledge when durable.
    Append(Vec<Record>),
    /// Look the rows up and ask again.
    NeedRows,
    /// The router knows a newer map: ask again when it has been stored, or refuse as `Behind` after a limit.
    WaitMap,
    /// Its ownership of the global service is new and no lease has come yet: ask again when one has, or refuse like this after a limit.
    WaitLease(Refused),
    /// Nothing is done.
    Refused(Refused),
    /// It was done before: its first answer.
    Again(Vec<Made>),
}

impl Commit {
    /// The rows that it may have to be judged by: each step's, and its first answer. A step that mints an id has none.
    pub fn rows(&self) -> Vec<RowKey> {
        let steps = self.steps.iter().filter_map(|s| Some((s.table.clone(), s.key.clone()?)));
        let once = self.once.iter().map(|o| (Bytes::from_static(ANSWERS), answer_key(self.shard, &o.key)));
        steps.chain(once).collect()
    }
}

impl Gate {
    /// The ownership under which this zone may write a shard now, if it needs no lease for it or has one.
    pub fn may_write(&self, shard: Shard) -> Option<OwnerEpoch> {
        let history = self.map.history(shard)?;
        history.may_write(self.zone, self.own_fence(shard), self.read_only).ok()
    }

    /// Decides a commit; `known` is what the store and the log say of its rows, if they were asked.
    pub fn commit(&mut self, ask: &Commit, known: Option<&Known>, now: impl Into<Now>) -> Ruling {
        if let Some(why) = self.malformed_commit(ask) {
            return Ruling::Refused(Refused::Invalid(why.into()));
        }
        self.ruled(ask, known, now.into())
    }

    /// First answers are kept for this long.
    pub fn keep_answers_for(&mut self, ms: u64) {
        self.answers_kept_ms = ms;
    }

    /// First answers that were given before this are no longer kept: by the stream's own clock, which never goes back.
    pub fn forgotten_below(&self, now_ms: u64) -> Hlc {
        Hlc::new(self.mint.newest().ms().max(now_ms).saturating_sub(self.answers_kept_ms), 0)
    }

    /// Decides the removal of first answers: a commit of the log's own, which no client can ask for.
    pub fn forget(&mut self, ask: &Commit, known: Option<&Known>, now: impl Into<Now>) -> Ruling {
        self.ruled(ask, known, now.into())
    }

    fn ruled(&mut self, ask: &Commit, known: Option<&Known>, now: Now) -> Ruling {
        if ask.map_epoch > self.map.epoch() {
            return Ruling::WaitMap;
        }
        let owner_epoch = match self.owned(ask.shard) {
            Ok(epoch) => epoch,
            Err(why) => return Ruling::Refused(why),
        };
        match self.unleased(ask.shard, owner_epoch, now) {
            Some((why, true)) => return Ruling::WaitLease(why),
            Some((why, false)) => return Ruling::Refused(why),
            None => {}
        }
        let now_ms = now.wall_ms;
        let judged =
            ask.once.is_some() || ask.steps.iter().any(|s| s.is_judged()) || self.locks(ask.shard, OwnerEpoch(0));
        let Some(known) = known.filter(|_| judged) else {
            return if judged { Ruling::NeedRows } else { self.records(ask, owner_epoch, now_ms) };
        };
        if let (Some(once), Some(found)) = (&ask.once, &known.once)
            && let Some(ruling) = self.again(once, found, now_ms)
        {
            return ruling;
        }
        for (at, (step, seen)) in ask.steps.iter().zip(&known.rows).enumerate() {
            if seen.owner_epoch().is_some_and(|epoch| self.locks(ask.shard, epoch)) {
                return Ruling::Refused(Refused::Locked);
            }
            if !step.only.holds(*seen) {
                return Ruling::Refused(Refused::Unmet { step: at as u16, seen: seen.version() });
            }
        }
        self.records(ask, owner_epoch, now_ms)
    }

    /// The first answer, unless it is older than answers are kept.
    fn again(&self, once: &Once, found: &Found, now_ms: u64) -> Option<Ruling> {
        if found.version.hlc < self.forgotten_below(now_ms) {
            return None;
        }
        Some(match First::of(found.value.clone()) {
            Some(first) if first.digest == once.digest => Ruling::Again(first.told(found.version, found.seq)),
            Some(_) => Ruling::Refused(Refused::Reused),
            None => Ruling::Refused(Refused::Failed(Bytes::from_static(b"a stored answer that cannot be read"))),
        })
    }

    /// The records of one transaction: each step's, then the answer.
    fn records(&mut self, ask: &Commit, owner_epoch: OwnerEpoch, now_ms: u64) -> Ruling {
        let mut all = Vec::with_capacity(ask.steps.len() + 1);
        for step in &ask.steps {
            match self.row_record(&step.write(ask), owner_epoch, now_ms) {
                Some(record) => all.push(record),
                None => return Ruling::Refused(Refused::Busy),
            }
        }
        if let Some(once) = &ask.once {
            let rows = all.iter().map(|r| (r.key.clone(), r.hlc)).collect();
            let value = First { digest: once.digest, rows }.to_bytes();
            let (table, key) = (Bytes::from_static(ANSWERS), answer_key(ask.shard, &once.key));
            let (shard, hlc) = (ask.shard, self.mint.tick(now_ms));
            all.push(Record { op: Op::Answer, transaction: 0, shard, owner_epoch, hlc, table, key, value });
        }
        let bytes: usize = all.iter().map(Record::len_max).sum();
        if bytes > APPEND_BYTES_MAX {
            let why = format!("a transaction of {bytes} bytes in the log, at most {APPEND_BYTES_MAX}");
            return Ruling::Refused(Refused::Invalid(why.into()));
        }
        Ruling::Append(all)
    }

    fn malformed_commit(&self, ask: &Commit) -> Option<String> {
        if ask.steps.is_empty() || ask.steps.len() > STEPS_MAX {
            return Some(format!("{} operations, at least 1 and at most {STEPS_MAX}", ask.steps.len()));
        }
        if let Some(once) = ask.once.as_ref().filter(|o| !(1..=ONCE_KEY_MAX).contains(&o.key.len())) {
            return Some(format!(
                "an idempotency key of {} bytes, at least 1 and at most {ONCE_KEY_MAX}",
                once.key.len()
            ));
        }
        let mut rows = HashSet::new();
        for (at, step) in ask.steps.iter().enumerate() {
            if let Some(why) = self.malformed(&step.write(ask)) {
                return Some(if ask.steps.len() == 1 { why } else { format!("operation {at}: {why}") });
            }
            if let Some(key) = &step.key
                && !rows.insert((&step.table, key))
            {
                return Some(format!("operation {at}: the same row as in an earlier operation"));
            }
            if step.key.is_none() && step.is_judged() {
                return Some(format!("operation {at}: a condition on a row whose id is still to be minted"));
            }
        }
        None
    }
}

impl Step {
    /// Must its row be known?
    fn is_judged(&self) -> bool {
        self.only != crate::commit::Condition::Any
    }

    fn write(&self, of: &Commit) -> Write {
        let Step { table, key, value, only: _ } = self.clone();
        Write { shard: of.shard, map_epoch: of.map_epoch, table, key, value }
    }
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
