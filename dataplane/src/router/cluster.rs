//! Endpoints that stand for one another: a service of this zone, or another zone's routers. Who may be sent to, how loaded
//! each is, what its answers say of it, and its kept connections.

use super::balance::{Candidate, Choice, Rng, hash};
use super::bucket::Bucket;
use super::budget::Budget;
use super::conn::ConnId;
use super::eject::{self, By, Record};
use super::figures::{Figures, NO_SERVICE};
use super::policy::{Balance, Policy};
use super::queue::Queue;
use super::service::Endpoint;
use super::shown::{OfService, ServiceShown};
use super::{Now, Settings, Target};
use crate::tls::TlsId;
use shardmap::ZONES;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// A slow start has so many steps, and begins with one.
const RAMP_STEPS: u64 = 20;
/// A weight of 1, so that shares of it are whole numbers.
const WEIGHT_ONE: u32 = 100;

/// Everything that a core may send to.
pub(super) struct Destinations {
    /// A pool keeps its place while a connection of it is open; places of settings that went are used again.
    pub pools: Vec<Pool>,
    /// Their places stay, for requests under way name them.
    pub clusters: Vec<Cluster>,
    /// A connection to some endpoint begins with its client's address.
    pub tells_addresses: bool,
    /// Clusters where someone who waits may go on.
    pub freed: Vec<usize>,
    routes: Vec<Route>,
    peers: [Option<usize>; ZONES],
    rng: Rng,
    core: usize,
    cores: u32,
}

/// One endpoint, as this core knows it.
pub(super) struct Pool {
    pub cluster: usize,
    pub endpoint: Endpoint,
    /// Another zone's router.
    pub peer: bool,
    /// Newest last: the newest is used, so that the oldest can go.
    pub idle: Vec<ConnId>,
    /// Connections of it in the core's table, idle ones among them.
    pub open: usize,
    /// The present settings name it.
    pub live: bool,
    /// While settings are renewed: those before named it.
    stays: bool,
    /// Requests that wait for its answer.
    pub active: u32,
    pub record: Record,
    /// When its slow start began; 0: it has its whole share.
    since_ms: u64,
}

impl Pool {
    fn key(&self) -> Key {
        key(self.cluster, &self.endpoint)
    }

    /// Someone goes by it, or did until the settings that are being renewed.
    fn is_used(&self) -> bool {
        self.live || self.stays || self.open > 0 || self.active > 0
    }

    /// Where a new connection of it goes.
    pub fn target(&self) -> Target {
        match self.endpoint.tls {
            Some(tls) => Target::Tls(self.endpoint.addr, tls),
            None => Target::Tcp(self.endpoint.addr),
        }
    }
}

/// What tells pools apart. What a connection has begun with cannot be changed: others are of another pool.
type Key = (usize, SocketAddr, Option<TlsId>, bool);

fn key(cluster: usize, e: &Endpoint) -> Key {
    (cluster, e.addr, e.tls, e.proxy_protocol)
}

/// While settings are renewed: where each pool is, and which places nobody needs.
struct Places {
    known: HashMap<Key, usize>,
    unused: Vec<usize>,
}

impl Places {
    fn of(pools: &[Pool]) -> Places {
        let unused = |(_, p): &(usize, &Pool)| !p.is_used();
        Places {
            known: pools.iter().enumerate().map(|(at, p)| (p.key(), at)).collect(),
            unused: pools.iter().enumerate().filter(unused).map(|(at, _)| at).rev().collect(),
        }
    }

    /// A place that nobody has taken meanwhile either.
    fn unused(&mut self, pools: &[Pool]) -> Option<usize> {
        while let Some(at) = self.unused.pop() {
            if !pools[at].is_used() {
                return Some(at);
            }
        }
        None
    }
}

pub(super) struct Cluster {
    pub name: String,
    pub policy: Policy,
    pub budget: Budget,
    pub queue: Queue,
    pub bucket: Bucket,
    pub shown: Arc<ServiceShown>,
    peer: bool,
    live: bool,
    /// While settings are renewed: those before named it.
    stays: bool,
    members: Vec<usize>,
    choice: Choice,
    /// When the open endpoints change by themselves.
    change_at_ms: u64,
    judge_at_ms: u64,
    panic: bool,
}

struct Route {
    name: String,
    prefix: String,
    cluster: usize,
    /// Its place in the figures.
    place: u16,
}

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// An answer's head; after so many microseconds, if it is known.
    Answer { status: u16, us: Option<u64> },
    /// No connection.
    Connect,
    /// No answer, half an answer, or nonsense.
    Lost,
    /// No answer in time.
    Late,
}

/// What a choice gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Chosen {
    Pool(usize),
    /// All have as many connections as they may.
    Full,
    /// None may be used.
    None,
}

impl Destinations {
    /// For core `core` of `cores`.
    pub fn new(core: usize, cores: u32, seed: u64) -> Destinations {
        Destinations {
            pools: Vec::new(),
            clusters: Vec::new(),
            tells_addresses: false,
            freed: Vec::new(),
            routes: Vec::new(),
            peers: [None; ZONES],
            rng: Rng::new(seed),
            core,
            cores,
        }
    }

    /// Goes by `settings` from now on. Pools of endpoints that stay keep their connections; the idle ones of the others are
    /// given back, to be closed.
    pub fn renew(&mut self, settings: &Settings, now_ms: u64) -> Vec<ConnId> {
        self.cores = settings.cores;
        self.pools.iter_mut().for_each(|p| p.stays = std::mem::take(&mut p.live));
        self.clusters.iter_mut().for_each(|c| c.stays = std::mem::take(&mut c.live));
        let mut places = Places::of(&self.pools);
        self.routes.clear();
        for s in &settings.services {
            let cluster = self.cluster(&s.name, false, &s.policy, &s.shown, now_ms);
            self.fill(cluster, &s.endpoints, &mut places, now_ms);
            self.routes.push(Route { name: s.name.clone(), prefix: s.prefix.clone(), cluster, place: NO_SERVICE });
        }
        self.tells_addresses = self.pools.iter().any(|p| p.live && p.endpoint.proxy_protocol);
        self.routes.sort_by_key(|s| std::cmp::Reverse(s.prefix.len()));
        self.peers = [None; ZONES];
        for p in &settings.peers {
            let cluster = self.cluster(&p.name, true, &p.policy, &p.shown, now_ms);
            self.fill(cluster, &p.endpoints, &mut places, now_ms);
            if let Some(peer) = self.peers.get_mut(p.zone.0 as usize) {
                *peer = Some(cluster);
            }
        }
        for gone in (0..self.clusters.len()).filter(|c| !self.clusters[*c].live).collect::<Vec<_>>() {
            self.fill(gone, &[], &mut places, now_ms);
        }
        self.freed = (0..self.clusters.len()).collect();
        self.pools.iter_mut().filter(|p| !p.live).flat_map(|p| std::mem::take(&mut p.idle)).collect()
    }

    /// Says where each service counts.
    pub fn place(&mut self, figures: &Figures) {
        self.routes.iter_mut().for_each(|s| s.place = figures.place(&s.name));
    }

    fn cluster(&mut self, name: &str, peer: bool, policy: &Policy, shown: &Arc<ServiceShown>, now_ms: u64) -> usize {
        let known = self.clusters.iter().position(|c| c.peer == peer && c.name == name);
        let unused = |c: &Cluster| !c.live && !c.stays && c.budget.active == 0 && c.queue.waiting() == 0;
        let is_free =
            |i: &usize| unused(&self.clusters[*i]) && self.pools.iter().all(|p| p.cluster != *i || p.open == 0);
        let at = known.or_else(|| (0..self.clusters.len()).find(is_free)).unwrap_or(self.clusters.len());
        let (policy, shown) = (*policy, shown.clone());
        if known.is_none() {
            let new = Cluster {
                name: name.into(),
                budget: Budget::new(policy.retry.percent, policy.retry.count_min),
                queue: Queue::default(),
                bucket: Bucket::default(),
                choice: Choice::default(),
                judge_at_ms: now_ms + policy.eject.interval_ms,
                policy,
                shown,
                peer,
                live: true,
                stays: false,
                members: Vec::new(),
                change_at_ms: u64::MAX,
                panic: false,
            };
            if at == self.clusters.len() {
                self.clusters.push(new);
            } else {
                self.clusters[at] = new;
            }
            return at;
        }
        let c = &mut self.clusters[at];
        (c.live, c.policy, c.shown) = (true, policy, shown);
        c.judge_at_ms = c.judge_at_ms.min(now_ms + policy.eject.interval_ms);
        c.budget.renew(policy.retry.percent, policy.retry.count_min);
        at
    }

    fn fill(&mut self, cluster: usize, endpoints: &[Endpoint], places: &mut Places, now_ms: u64) {
        // Where all are new, none has to start slowly: there is nobody else to take the load.
        let others = !self.clusters[cluster].members.is_empty();
        let since_ms = if others { now_ms } else { 0 };
        let members: Vec<_> = endpoints.iter().map(|e| self.pool(cluster, e, places, since_ms)).collect();
        let name = |p: &Pool| hash(p.endpoint.addr.to_string().as_bytes());
        let candidate = |p: &usize| {
            let pool = &self.pools[*p];
            Candidate { pool: *p, weight: pool.endpoint.weight.max(1) * WEIGHT_ONE, name: name(pool) }
        };
        let all = members.iter().map(candidate).collect();
        let c = &mut self.clusters[cluster];
        c.members = members;
        c.choice.set(c.policy.balance, all);
        self.refresh(cluster, now_ms);
    }

    /// The place of the endpoint's pool, made if there is none.
    fn pool(&mut self, cluster: usize, e: &Endpoint, places: &mut Places, since_ms: u64) -> usize {
        let same = places.known.get(&key(cluster, e)).copied().filter(|at| self.pools[*at].key() == key(cluster, e));
        let peer = self.clusters[cluster].peer;
        if let Some(at) = same.filter(|at| self.pools[*at].is_used()) {
            let p = &mut self.pools[at];
            if !p.stays || e.healthy && !p.endpoint.healthy || !e.draining && p.endpoint.draining {
                p.since_ms = since_ms;
            }
            (p.endpoint, p.live) = (e.clone(), true);
            return at;
        }
        let at = same.or_else(|| places.unused(&self.pools)).unwrap_or(self.pools.len());
        let new = Pool {
            cluster,
            endpoint: e.clone(),
            peer,
            idle: Vec::new(),
            open: 0,
            live: true,
            stays: false,
            active: 0,
            record: Record::new(),
            since_ms,
        };
        if at == self.pools.len() {
            self.pools.push(new);
        } else {
            self.pools[at] = new;
        }
        at
    }

    /// Works out who may be chosen, with what share, and when that changes by itself.
    fn refresh(&mut self, cluster: usize, now_ms: u64) {
        let c = &mut self.clusters[cluster];
        let slow_ms = c.policy.slow_start_ms;
        let (mut up, mut good, mut change_at_ms) = (vec![], vec![], u64::MAX);
        for (i, member) in c.members.iter().enumerate() {
            let p = &mut self.pools[*member];
            if p.record.back(now_ms) {
                p.since_ms = now_ms;
            }
            let until_ms = p.record.ejected_until_ms;
            let step = if p.since_ms == 0 { RAMP_STEPS } else { ramp(now_ms.saturating_sub(p.since_ms), slow_ms) };
            if step == RAMP_STEPS {
                p.since_ms = 0;
            } else {
                change_at_ms = change_at_ms.min(now_ms + (slow_ms / RAMP_STEPS).max(1));
            }
            if until_ms > 0 {
                change_at_ms = change_at_ms.min(until_ms);
            }
            let shown = p.endpoint.shown.of(self.core);
            shown.ramping.set(u64::from(p.since_ms > 0));
            shown.ejected.set(u64::from(until_ms > 0));
            let whole = c.choice.all()[i];
            let weight = (u64::from(whole.weight) * step / RAMP_STEPS).max(1) as u32;
            if !p.endpoint.draining {
                up.push(Candidate { weight, ..whole });
                if p.endpoint.healthy && until_ms == 0 {
                    good.push(Candidate { weight, ..whole });
                }
            }
        }
        c.panic = good.len() * 100 < up.len() * c.policy.panic_percent as usize;
        c.shown.of(self.core).panic.set(u64::from(c.panic));
        c.shown.of(self.core).usable.set(good.len() as u64);
        c.change_at_ms = change_at_ms;
        c.choice.open(if c.panic { up } else { good });
        self.free(cluster);
    }

    /// Where a request with this path goes, if a service's prefix is longer than `than`, and where it counts.
    pub fn service(&self, path: &str, than: usize) -> Option<(usize, u16)> {
        let route = self.routes.iter().find(|s| path.starts_with(&s.prefix))?;
        (route.prefix.len() > than).then_some((route.cluster, route.place))
    }

    /// The routers of zone number `zone`.
    pub fn peer(&self, zone: u8) -> Option<usize> {
        self.peers.get(zone as usize).copied().flatten()
    }

    /// How many cores share a rate.
    pub fn cores(&self) -> u32 {
        self.cores
    }

    /// What this core shows of a cluster.
    pub fn shows(&self, cluster: usize) -> &OfService {
        self.clusters[cluster].shown.of(self.core)
    }

    /// An endpoint of `cluster`, another than `avoid` if there is one.
    pub fn choose(&mut self, cluster: usize, hash: u64, avoid: Option<usize>, now_ms: u64) -> Chosen {
        if now_ms >= self.clusters[cluster].change_at_ms {
            self.refresh(cluster, now_ms);
        }
        let (c, pools) = (&mut self.clusters[cluster], &self.pools);
        let Some(picked) = c.choice.pick(&mut self.rng, hash, avoid, |p| pools[p].active) else { return Chosen::None };
        if c.panic {
            c.shown.of(self.core).panicked.add(1);
        }
        let room = |p: &usize| has_room(&pools[*p], c.policy.pool.connections_max);
        if room(&picked) {
            return Chosen::Pool(picked);
        }
        let others = c.choice.candidates().iter().map(|c| c.pool).filter(room);
        others.min_by_key(|p| pools[*p].active).map_or(Chosen::Full, Chosen::Pool)
    }

    /// May one more request of the cluster go on? Of one that went all may, to be routed anew.
    pub fn room(&self, cluster: usize) -> bool {
        let c = &self.clusters[cluster];
        let policy = &c.policy;
        let places = policy.requests_max == 0 || (c.budget.active as usize) < policy.requests_max;
        let connects = policy.pool.connections_max;
        let room = || c.choice.candidates().iter().any(|c| has_room(&self.pools[c.pool], connects));
        !c.live || places && (connects == 0 || c.choice.candidates().is_empty() || room())
    }

    /// A place or a connection of the cluster has become free.
    pub fn free(&mut self, cluster: usize) {
        if self.clusters[cluster].queue.waiting() > 0 && !self.freed.contains(&cluster) {
            self.freed.push(cluster);
        }
    }

    /// What a consistent hash goes by, if the cluster has one.
    pub fn hash_by(&self, cluster: usize) -> Option<super::policy::HashBy> {
        match self.clusters[cluster].policy.balance {
            Balance::Hash(by) => Some(by),
            Balance::LeastRequest | Balance::RoundRobin => None,
        }
    }

    /// An attempt begins.
    pub fn begins(&mut self, pool: usize) {
        let p = &mut self.pools[pool];
        p.active += 1;
        let shown = p.endpoint.shown.of(self.core);
        shown.requests.add(1);
        shown.active.set(p.active.into());
    }

    /// It ends.
    pub fn ends(&mut self, pool: usize) {
        let p = &mut self.pools[pool];
        p.active -= 1;
        p.endpoint.shown.of(self.core).active.set(p.active.into());
    }

    /// Shows how many connections there are.
    pub fn shows_connections(&mut self, pool: usize) {
        let p = &self.pools[pool];
        let shown = p.endpoint.shown.of(self.core);
        shown.open.set(p.open as u64);
        shown.idle.set(p.idle.len() as u64);
    }

    /// What an attempt at `pool` came to.
    pub fn outcome(&mut self, pool: usize, outcome: Outcome, now: Now) {
        let (p, core) = (&mut self.pools[pool], self.core);
        if !p.live {
            return;
        }
        let cluster = p.cluster;
        let rules = self.clusters[cluster].policy.eject;
        let shown = p.endpoint.shown.of(core);
        match outcome {
            Outcome::Answer { status, us } => {
                let good = !rules.statuses.has(status);
                if !good {
                    shown.bad_statuses.add(1);
                }
                p.record.answered(good, us);
                shown.latency_us.set(p.record.ewma_us);
            }
            Outcome::Connect => shown.connect_failures.add(1),
            Outcome::Lost => shown.resets.add(1),
            Outcome::Late => shown.timeouts.add(1),
        }
        if !matches!(outcome, Outcome::Answer { .. }) {
            p.record.failed();
        }
        if p.record.fails(&rules) {
            self.eject(pool, By::Failures, now);
        }
        if now.ms >= self.clusters[cluster].judge_at_ms {
            self.judge(cluster, now);
        }
    }

    fn judge(&mut self, cluster: usize, now: Now) {
        let c = &mut self.clusters[cluster];
        let rules = c.policy.eject;
        c.judge_at_ms = now.ms + rules.interval_ms;
        let (members, pools) = (&c.members, &mut self.pools);
        let is_in = |i: usize, p: &Pool| members.contains(&i) && p.live && p.record.ejected_until_ms == 0;
        let among = pools.iter_mut().enumerate().filter(|(i, p)| is_in(*i, p));
        let mut records: Vec<_> = among.map(|(i, p)| (i, &mut p.record)).collect();
        for (pool, by) in eject::judge(&rules, &mut records) {
            self.eject(pool, by, now);
        }
    }

    /// Takes an endpoint out for a while, if so many may be out.
    fn eject(&mut self, pool: usize, by: By, now: Now) {
        let cluster = self.pools[pool].cluster;
        let c = &self.clusters[cluster];
        let rules = c.policy.eject;
        let out = c.members.iter().filter(|m| self.pools[**m].record.ejected_until_ms > 0).count();
        if !eject::allowed(&rules, out, c.members.len()) {
            return c.shown.of(self.core).ejections_refused.add(1);
        }
        let p = &mut self.pools[pool];
        p.record.eject(&rules, now.ms);
        let shown = p.endpoint.shown.of(self.core);
        shown.ejections.add(1);
        shown.ejected_by.set(by as u64);
        shown.ejected_until_wall_ms.set(now.wall_ms + p.record.ejected_until_ms - now.ms);
        self.refresh(cluster, now.ms);
    }
}

fn has_room(p: &Pool, connections_max: usize) -> bool {
    connections_max == 0 || p.open < connections_max || !p.idle.is_empty()
}

/// The step of a slow start that began so long ago.
fn ramp(for_ms: u64, slow_ms: u64) -> u64 {
    if for_ms >= slow_ms { RAMP_STEPS } else { (for_ms * RAMP_STEPS / slow_ms.max(1)).max(1) }
}
