//! Requests that wait for a map: bounded in time, number and bytes, released in the order in which they came.

use super::Core;
use super::answer::TRY_LATER;
use super::conn::{ConnId, Stage};
use shardmap::MapEpoch;
use std::collections::VecDeque;

/// Who waits.
#[derive(Default)]
pub(super) struct Holds {
    queue: VecDeque<ConnId>,
    bytes: usize,
    count: usize,
}

impl Holds {
    /// Drops places of requests that are gone once they outnumber those that wait.
    pub fn prune(&mut self) {
        if self.count == 0 {
            self.queue.clear();
        }
    }

    /// How many are held, and of how many bytes.
    pub fn held(&self) -> (usize, usize) {
        (self.count, self.bytes)
    }
}

impl Core {
    /// Holds a request until a map says where it belongs.
    pub(super) fn hold(&mut self, id: ConnId) {
        self.give_back(id);
        let (limits, now) = (self.limits, self.now.ms);
        let (count, bytes) = (self.holds.count, self.holds.bytes);
        let Some((io, c)) = self.client(id) else { return };
        let own = c.about.head_bytes + c.kept.len();
        let Some(e) = &mut c.exchange else { return };
        let since = *e.held_since.get_or_insert(now);
        let late = now >= since + limits.hold_ms_max;
        if late || count >= limits.hold_count_max || bytes + own > limits.hold_bytes_max {
            let seen = format!("{count} requests of {bytes} bytes held");
            let why = if late { "the shard has had no owner for too long" } else { "too many requests are held" };
            return self.fail_with(
                id,
                503,
                &TRY_LATER,
                why,
                &seen,
                "the shard's owner in a newer map; nothing was done",
            );
        }
        let first = since == now && e.stage != Stage::Held;
        e.stage = Stage::Held;
        e.held_bytes = own;
        io.deadline = since + limits.hold_ms_max;
        self.counts.held += u64::from(first);
        self.counts.holding += 1;
        self.hold_begins(id);
        self.holds.count += 1;
        self.holds.bytes += own;
        self.holds.queue.push_back(id);
        // Held for a second time, it may be over sooner than the shortest patience.
        self.look_by(since + limits.hold_ms_max);
        self.ready(id);
    }

    /// A newer map: everyone who waits is routed again.
    pub(super) fn release(&mut self) {
        let mut waiting = std::mem::take(&mut self.holds.queue);
        for id in waiting.drain(..) {
            let Some((io, c)) = self.client(id) else { continue };
            let Some(e) = c.exchange.as_mut().filter(|e| e.stage == Stage::Held) else { continue };
            e.stage = Stage::New;
            let (bytes, since) = (std::mem::take(&mut e.held_bytes), e.held_since);
            io.deadline = u64::MAX;
            self.unhold(bytes, since);
            self.hold_ends(id);
            self.again(id);
            self.ready(id);
        }
    }

    /// One request less is held.
    pub(super) fn unhold(&mut self, bytes: usize, since: Option<u64>) {
        self.counts.holding -= 1;
        self.holds.count -= 1;
        self.holds.bytes -= bytes;
        let held_ms = since.map_or(0, |s| self.now.ms - s);
        self.counts.held_ms_max = self.counts.held_ms_max.max(held_ms);
    }

    /// It has waited long enough.
    pub(super) fn hold_over(&mut self, id: ConnId) {
        let limit = self.limits.hold_ms_max;
        self.counts.held_ms_max = self.counts.held_ms_max.max(limit);
        let seen = format!("held for {limit} ms at map epoch {}", self.counts.map_epoch);
        self.fail_with(id, 503, &TRY_LATER, "the shard has no owner yet", &seen, "an owner; nothing was done");
    }

    /// A store refused with 421: nothing was done. Tries again once, with a map of at least `named` that says something else.
    pub(super) fn wrong_zone(&mut self, id: ConnId, named: MapEpoch) {
        let Some((_, c)) = self.client(id) else { return };
        let kept = c.kept_whole;
        let Some(e) = &mut c.exchange else { return };
        e.stage = Stage::New;
        if e.retries_421 > 0 || !kept {
            let why =
                if kept { "the shard's owner changed twice" } else { "the shard's owner changed under a long body" };
            let seen = format!("421 at map epoch {named}");
            return self.fail_with(id, 503, &TRY_LATER, why, &seen, "a settled owner; nothing was done, send it again");
        }
        e.retries_421 += 1;
        e.needs = named;
        e.not_entry = e.shard.map(|shard| (shard, e.entry));
        self.counts.retried_421 += 1;
        self.again(id);
    }
}
