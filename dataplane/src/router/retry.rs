//! Second attempts: when a request may be tried once more, within its policy and its cluster's budget.

use super::cluster::Outcome;
use super::conn::{ConnId, Phase, Stage};
use super::store::Place;
use super::told::target;
use super::{Core, policy};

/// Why an attempt came to nothing, without a byte of an answer for the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// No connection was made.
    Connect,
    /// A connection that was kept ended before the request was sent.
    Unsent,
    /// A connection that was kept ended after it was sent: most likely the other side had closed it before.
    Kept,
    /// A new connection ended after it was sent.
    Reset,
    /// The attempt took too long.
    Late,
    /// An answer with this status, which counts as none.
    Status(u16),
}

impl Lost {
    /// Nothing was done: any request may be sent again. Otherwise only one that may be done twice (RFC 9110 §9.2.2).
    fn nothing_done(self) -> bool {
        matches!(self, Lost::Connect | Lost::Unsent)
    }

    fn allowed(self, retry: &policy::Retry) -> bool {
        match self {
            Lost::Connect => retry.on_connect,
            Lost::Reset => retry.on_reset,
            Lost::Late => retry.try_ms_max > 0,
            Lost::Status(status) => retry.statuses.has(status),
            Lost::Unsent | Lost::Kept => true,
        }
    }
}

impl Core {
    /// What an answer's status says of the endpoint. `true`: it counts as none, and the request is on its way once more.
    pub(super) fn judge_answer(&mut self, id: ConnId, client: ConnId, status: u16) -> bool {
        let Some((io, u)) = self.upstream(id) else { return false };
        // The attempt was in time; from here on the client's patience counts.
        io.deadline = u64::MAX;
        let (pool, asked_us) = (u.target, u.asked_us);
        let us = (asked_us > 0).then(|| self.now.us.saturating_sub(asked_us));
        let said = if self.is_of_a_store(pool, client, status) { 200 } else { status };
        self.to.outcome(pool, Outcome::Answer { status: said, us }, self.now);
        let again = status >= 500 && self.may_try_again(client, Lost::Status(status));
        if again {
            self.leave(id);
            self.try_again(client, pool);
        }
        again
    }

    /// Is it another zone's log that waits for what does not come: the confirmation by one more zone, a write that is to be applied? Its
    /// router has done its part, and each router of that zone would answer so.
    fn is_of_a_store(&mut self, pool: usize, client: ConnId, status: u16) -> bool {
        if status != 504 || !self.to.pools[pool].peer {
            return false;
        }
        let head = self.client(client).map(|(_, c)| target(&c.head)).unwrap_or_default();
        std::str::from_utf8(head).is_ok_and(|path| Place::of(path).is_some())
    }

    /// When an attempt that begins now at `pool` has taken too long.
    pub(super) fn try_deadline(&mut self, pool: usize) -> u64 {
        match self.to.clusters[self.to.pools[pool].cluster].policy.retry.try_ms_max {
            0 => u64::MAX,
            ms => {
                self.look_by(self.now.ms + ms);
                self.now.ms + ms
            }
        }
    }

    /// Is a connection kept that has answered so many requests?
    pub(super) fn keeps(&self, pool: usize, served: u64) -> bool {
        let p = &self.to.pools[pool];
        let rules = &self.to.clusters[p.cluster].policy.pool;
        let idle_max = if rules.idle_max == 0 { self.limits.pool_idle_max } else { rules.idle_max };
        p.live && p.idle.len() < idle_max && (rules.requests_max == 0 || served < rules.requests_max)
    }

    /// How long a kept connection may be idle.
    pub(super) fn idle_ms(&self, pool: usize) -> u64 {
        match self.to.clusters[self.to.pools[pool].cluster].policy.pool.idle_ms_max {
            0 => self.limits.upstream_idle_ms,
            ms => ms,
        }
    }

    /// Is the request tried once more? Then it is on its way when this returns.
    pub(super) fn tried_again(&mut self, client: ConnId, pool: usize, lost: Lost) -> bool {
        let may = self.may_try_again(client, lost);
        if may {
            self.try_again(client, pool);
        }
        may
    }

    fn try_again(&mut self, client: ConnId, pool: usize) {
        let Some(e) = self.exchange(client) else { return };
        (e.stage, e.tried) = (Stage::New, Some(pool));
        e.retries_lost += 1;
        e.retrying = true;
        self.counts.retried_lost += 1;
        self.again(client);
    }

    /// May it be, by its kind, its policy and its budget? If so, it is counted.
    fn may_try_again(&mut self, client: ConnId, lost: Lost) -> bool {
        let Some((_, c)) = self.client(client) else { return false };
        let (whole, idempotent) = (c.kept_whole, c.about.idempotent);
        let Some(e) = &c.exchange else { return false };
        let (attempts, retrying, answered) = (e.retries_lost + 1, e.retrying, e.answered);
        let Some(cluster) = e.admitted else { return false };
        let retry = self.to.clusters[cluster].policy.retry;
        let legal = whole && !answered && (idempotent || lost.nothing_done());
        if !legal || attempts >= retry.attempts_max || !lost.allowed(&retry) {
            return false;
        }
        let cheap = lost.nothing_done() || lost == Lost::Kept;
        let paid = self.to.clusters[cluster].budget.retry(cheap, retrying);
        let shown = self.to.shows(cluster);
        if paid {
            shown.retries.add(1)
        } else {
            shown.retries_refused.add(1)
        }
        paid
    }

    /// An attempt has taken as long as one may. What is still being sent goes on; a request that may not be tried again waits
    /// for this answer as long as for any.
    pub(super) fn upstream_late(&mut self, id: ConnId) {
        let Some((_, u)) = self.upstream(id) else { return };
        let (client, pool) = (u.client, u.target);
        let Some(client) = client else { return self.upstream_close(id) };
        let try_ms = self.to.clusters[self.to.pools[pool].cluster].policy.retry.try_ms_max;
        let sending = self.client(client).is_some_and(|(_, c)| c.phase == Phase::Body);
        if sending || try_ms == 0 {
            let next = self.now.ms + try_ms.max(1000);
            if let Some((io, _)) = self.upstream(id) {
                io.deadline = next;
            }
            return self.look_by(next);
        }
        self.to.outcome(pool, Outcome::Late, self.now);
        if self.may_try_again(client, Lost::Late) {
            self.upstream_close(id);
            self.try_again(client, pool);
        }
    }

    /// The client's patience has ended while an endpoint owed the answer.
    pub(super) fn owed(&mut self, client: ConnId, up: ConnId) {
        let slow_client = self.client(client).is_some_and(|(io, _)| !io.out.is_empty());
        let Some((_, u)) = self.upstream(up).filter(|_| !slow_client) else { return };
        let pool = u.target;
        self.to.outcome(pool, Outcome::Late, self.now);
    }
}
