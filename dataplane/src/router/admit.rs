//! Lets requests in to a cluster of endpoints: rates, places, the queue for a place; then to one of its endpoints.

use super::Core;
use super::answer::TRY_LATER;
use super::balance::{hash, mix};
use super::bucket::{Bucket, Rate};
use super::cluster::Chosen;
use super::conn::{Conn, ConnId, Kind, Stage};
use super::policy::HashBy;
use crate::http::Request;
use shardmap::Shard;

/// Requests a second for each shard, of the whole process.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct ShardRates {
    /// Of each shard that is not named.
    pub each: Option<Rate>,
    /// Of single ones.
    pub own: Vec<(Shard, Rate)>,
}

/// A core's buckets of all shards; empty while there is no rate.
#[derive(Default)]
pub(super) struct ShardBuckets(Vec<(Option<Rate>, Bucket)>);

impl ShardBuckets {
    /// Goes by other rates; what a bucket holds stays.
    pub fn renew(&mut self, rates: &ShardRates) {
        if *rates == ShardRates::default() {
            return self.0 = Vec::new();
        }
        self.0.resize(1 << 16, (None, Bucket::default()));
        self.0.iter_mut().for_each(|(rate, _)| *rate = rates.each);
        for (shard, rate) in &rates.own {
            self.0[shard.0 as usize].0 = Some(*rate);
        }
    }

    fn take(&mut self, shard: Shard, cores: u32, now_ms: u64) -> Result<(), (Rate, u64)> {
        let Some((Some(rate), bucket)) = self.0.get_mut(shard.0 as usize) else { return Ok(()) };
        bucket.take(*rate, cores, now_ms).map_err(|wait_ms| (*rate, wait_ms))
    }
}

impl Core {
    /// Sends the request to an endpoint of `cluster`, lets it wait for a place, or refuses it.
    pub(super) fn dispatch(&mut self, id: ConnId, r: &Request<'_, '_>, cluster: usize) {
        if !self.admit(id, cluster) {
            return;
        }
        let Some(e) = self.exchange(id) else { return };
        let (avoid, shard) = (e.tried, e.shard);
        let hash = self.to.hash_by(cluster).map_or(0, |by| key(by, r.tag, shard));
        match self.to.choose(cluster, hash, avoid, self.now.ms) {
            Chosen::Pool(pool) => self.send_to(id, r, pool),
            Chosen::Full => {
                self.give_back(id);
                self.enqueue(id, cluster);
            }
            Chosen::None => {
                let seen = format!("{}: 0 usable", self.to.clusters[cluster].name);
                let expected = "one that is healthy and not draining; nothing was done";
                self.fail_with(id, 503, &TRY_LATER, "no endpoint of the service can be used", &seen, expected);
            }
        }
    }

    /// Is a place of `cluster` the request's? If not it waits, or was answered.
    fn admit(&mut self, id: ConnId, cluster: usize) -> bool {
        let Some(e) = self.exchange(id) else { return false };
        if e.admitted == Some(cluster) {
            return true;
        }
        let charged = std::mem::replace(&mut e.charged, true);
        self.give_back(id);
        let cores = self.to.cores();
        let c = &mut self.to.clusters[cluster];
        if let Some(rate) = c.policy.rate.filter(|_| !charged)
            && let Err(wait_ms) = c.bucket.take(rate, cores, self.now.ms)
        {
            self.to.shows(cluster).limited.add(1);
            self.too_many(id, "the service's rate is used up", rate, wait_ms);
            return false;
        }
        let full = c.policy.requests_max > 0 && c.budget.active as usize >= c.policy.requests_max;
        if full || c.queue.waiting() > 0 {
            self.enqueue(id, cluster);
            return false;
        }
        self.take_place(id, cluster);
        true
    }

    fn take_place(&mut self, id: ConnId, cluster: usize) {
        if let Some(e) = self.exchange(id) {
            e.admitted = Some(cluster);
            let c = &mut self.to.clusters[cluster];
            c.budget.begin();
            let active = c.budget.active;
            self.to.shows(cluster).active.set(active);
        }
    }

    /// Gives the request's place back.
    pub(super) fn give_back(&mut self, id: ConnId) {
        let Some(e) = self.exchange(id) else { return };
        let Some(cluster) = e.admitted.take() else { return };
        let retrying = std::mem::take(&mut e.retrying);
        let c = &mut self.to.clusters[cluster];
        c.budget.end(retrying);
        let active = c.budget.active;
        self.to.shows(cluster).active.set(active);
        self.to.free(cluster);
    }

    /// Its shard's rate is asked, once, by the router that the client reached.
    pub(super) fn within_shard_rate(&mut self, id: ConnId, shard: Shard) -> bool {
        let Err((rate, wait_ms)) = self.shard_buckets.take(shard, self.to.cores(), self.now.ms) else { return true };
        self.counts.shard_limited += 1;
        self.too_many(id, "the shard's rate is used up", rate, wait_ms);
        false
    }

    fn too_many(&mut self, id: ConnId, why: &'static str, rate: Rate, wait_ms: u64) {
        let after_s = wait_ms.div_ceil(1000).max(1).to_string();
        let expected = format!("{} requests a second, {} at once; nothing was done", rate.per_s, rate.burst);
        self.fail_with(id, 429, &[("retry-after", &after_s)], why, "", &expected);
    }

    // ---- the queue for a place --------------------------------------------------------------------------------------

    fn enqueue(&mut self, id: ConnId, cluster: usize) {
        let conns = &self.conns;
        let c = &mut self.to.clusters[cluster];
        let (max, late) = (c.policy.queue_max, self.now.ms + c.policy.queue_ms_max);
        let place = c.queue.enter(id, max, |id, ticket| waits(conns, id, ticket));
        let waiting = c.queue.waiting();
        let Some(ticket) = place else {
            self.to.shows(cluster).queue_refused.add(1);
            let seen = format!("{waiting} requests wait");
            let why = "too many requests wait for the service";
            return self.fail_with(id, 503, &TRY_LATER, why, &seen, "fewer than queue_max; nothing was done");
        };
        let shown = self.to.shows(cluster);
        shown.queued.add(1);
        shown.waiting.set(waiting as u64);
        let Some((io, c)) = self.client(id) else { return };
        let Some(e) = &mut c.exchange else { return };
        e.stage = Stage::Queued(cluster, ticket);
        io.deadline = late;
        self.look_by(late);
        self.ready(id);
    }

    /// A request waits no longer: it was answered, or its client is gone.
    pub(super) fn unqueue(&mut self, cluster: usize) {
        self.to.clusters[cluster].queue.leave();
        self.shows_waiting(cluster);
        self.to.free(cluster);
    }

    fn shows_waiting(&mut self, cluster: usize) {
        let waiting = self.to.clusters[cluster].queue.waiting();
        self.to.shows(cluster).waiting.set(waiting as u64);
    }

    /// It has waited long enough.
    pub(super) fn queue_over(&mut self, id: ConnId, cluster: usize) {
        self.to.shows(cluster).queue_refused.add(1);
        let limit = self.to.clusters[cluster].policy.queue_ms_max;
        let seen = format!("{limit} ms without a place");
        let why = "the service has no place for the request";
        self.fail_with(id, 503, &TRY_LATER, why, &seen, "a place within queue_ms_max; nothing was done");
    }

    /// Lets those go on who wait where a place has become free. `true`: somebody did.
    pub(super) fn admit_waiting(&mut self) -> bool {
        let mut any = false;
        while let Some(cluster) = self.to.freed.pop() {
            while self.to.room(cluster) {
                let conns = &self.conns;
                let next = self.to.clusters[cluster].queue.next(|id, ticket| waits(conns, id, ticket));
                let Some(id) = next else { break };
                any = true;
                self.shows_waiting(cluster);
                if let Some(e) = self.exchange(id) {
                    e.stage = Stage::New;
                }
                self.take_place(id, cluster);
                self.again(id);
            }
        }
        any
    }
}

/// Does the request with this ticket still wait?
fn waits(conns: &[Conn], id: ConnId, ticket: u64) -> bool {
    let Some(conn) = conns.get(id.index as usize).filter(|c| c.generation == id.generation && !c.io.closing) else {
        return false;
    };
    match &conn.kind {
        Kind::Client(c) => matches!(c.exchange.as_ref().map(|e| e.stage), Some(Stage::Queued(_, t)) if t == ticket),
        Kind::Free | Kind::Upstream(_) | Kind::Port(_) => false,
    }
}

/// What a consistent hash goes by: the same on every core and node.
fn key(by: HashBy, tag: Option<&[u8]>, shard: Option<Shard>) -> u64 {
    let of_shard = || mix(shard.map_or(0, |s| u64::from(s.0) + 1));
    match by {
        HashBy::Shard => of_shard(),
        HashBy::Tag => tag.map_or_else(of_shard, hash),
    }
}
