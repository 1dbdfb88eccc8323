//! Who is there: what routers and logs have told, and since when nothing was heard of them.
//!
//! Nodes tell; the service asks nobody. So it needs no way into a zone, and silence is simply that nothing came. Nothing here is stored:
//! after a restart of the service every node tells again within a moment.

use crate::api::{NodeState, NodeTold, ShardTold, StreamTold};
use crate::leases::Leases;
use crate::limits::{
    BEHIND_MS, FORGET_MS, GATHER_MS, LIVE_MS, NODES_MAX, STREAMS_MAX, TARGET_SILENT_MS, TELL_MS, TEXT_BYTES_MAX,
    TOLD_KEPT,
};
use crate::op::Facts;
use shardmap::map::Map;
use shardmap::{MapEpoch, Shard, Zone};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A node's place: its zone's name, what it is, its own name.
type Key = (String, Part, String);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Part {
    Log,
    Router,
}

/// Every node that was heard of.
#[derive(Default, Debug)]
pub struct Nodes {
    by: BTreeMap<Key, Node>,
}

#[derive(Debug)]
struct Node {
    told: NodeTold,
    heard_ms: u64,
    /// Of a log: when it told, and what was durable in each stream then; oldest first.
    past: VecDeque<(u64, Vec<u64>)>,
    /// Of a router: requests a second, lately.
    rate: f64,
}

impl Nodes {
    /// A node has told how it is. Refused: what no node of this cluster can be.
    pub fn on_told(&mut self, told: NodeTold, map: &Map, now_ms: u64) -> Result<(), String> {
        let part = match (&told.router, &told.log) {
            (Some(_), None) => Part::Router,
            (None, Some(_)) => Part::Log,
            (_, _) => return Err("a node is a router or a log: expected one of `router` and `log`".into()),
        };
        if told.name.is_empty() || told.name.len() > TEXT_BYTES_MAX {
            return Err(format!("a node's name of {} bytes, expected 1 to {TEXT_BYTES_MAX}", told.name.len()));
        }
        if map.zone_named(&told.zone).is_none() && !(told.zone == "none" && part == Part::Router) {
            let known: Vec<&str> = map.zones().iter().map(|z| z.name.as_str()).collect();
            return Err(format!("zone \"{}\" is not on the map, which has: {}", told.zone, known.join(", ")));
        }
        let (streams, reports) = told.log.as_ref().map_or((0, 0), |l| (l.streams.len(), l.reports.len()));
        if streams > STREAMS_MAX || reports > shardmap::map::SHARDS_ALL {
            return Err(format!("{streams} streams and {reports} reports: no log has so many"));
        }
        self.by.retain(|_, n| now_ms.saturating_sub(n.heard_ms) < FORGET_MS);
        let key = (told.zone.clone(), part, told.name.clone());
        if !self.by.contains_key(&key) && self.by.len() >= NODES_MAX {
            return Err(format!("{NODES_MAX} nodes are known already"));
        }
        match self.by.get_mut(&key) {
            // A predecessor that drains while its successor serves: the successor speaks for the place.
            Some(node) if told.begun_ms < node.told.begun_ms && now_ms.saturating_sub(node.heard_ms) < LIVE_MS => {}
            Some(node) => node.hear(told, now_ms),
            None => {
                self.by.insert(key, Node::new(told, now_ms));
            }
        }
        Ok(())
    }

    /// The zone's log that told last.
    fn log<'a>(&'a self, zone: &'a str) -> Option<&'a Node> {
        self.of(zone, Part::Log).max_by_key(|n| n.heard_ms)
    }

    fn of<'a>(&'a self, zone: &'a str, part: Part) -> impl Iterator<Item = &'a Node> {
        self.by.iter().filter(move |((z, p, _), _)| z == zone && *p == part).map(|(_, n)| n)
    }

    /// How long ago `zone`'s log was heard; `None`: never.
    pub fn silent_ms(&self, zone: &str, now_ms: u64) -> Option<u64> {
        self.log(zone).map(|n| now_ms.saturating_sub(n.heard_ms))
    }

    /// Was `zone`'s log heard a moment ago?
    pub fn is_live(&self, zone: &str, now_ms: u64) -> bool {
        self.silent_ms(zone, now_ms).is_some_and(|ms| ms < LIVE_MS)
    }

    /// What `zone`'s log told last.
    pub fn log_told<'a>(&'a self, zone: &'a str) -> Option<&'a NodeTold> {
        self.log(zone).map(|n| &n.told)
    }

    /// What was durable in each stream of `zone`, as far as it told.
    pub fn durable(&self, zone: &str) -> Vec<u64> {
        self.log(zone).map_or_else(Vec::new, |n| n.durable())
    }

    /// Requests a second that the routers of `zone` answer lately.
    pub fn rate(&self, zone: &str) -> f64 {
        self.of(zone, Part::Router).map(|n| n.rate).sum()
    }

    /// By other zone: how many records that are durable there `zone` has not applied, as both told last.
    pub fn lacks(&self, zone: &str, map: &Map) -> BTreeMap<String, u64> {
        let Some(here) = self.log(zone) else { return BTreeMap::new() };
        let others = map.zones().iter().filter(|z| z.name != zone);
        others.filter_map(|z| Some((z.name.clone(), here.behind(&z.name, &self.log(&z.name)?.durable())))).collect()
    }

    /// Nodes that are known and were not heard a moment ago, or go by an older map than they should by now, since it was issued at
    /// `issued_ms`: a sentence each.
    pub fn stale(&self, map: &Map, issued_ms: u64, now_ms: u64, but: &BTreeSet<String>) -> Vec<String> {
        let has_come = now_ms.saturating_sub(issued_ms) >= LIVE_MS;
        let known = self.by.iter().filter(|((zone, ..), _)| !but.contains(zone));
        let told = known.filter_map(|((zone, part, name), n)| {
            let what = if *part == Part::Log { "log" } else { "router" };
            let ago = now_ms.saturating_sub(n.heard_ms);
            if ago >= LIVE_MS {
                let epoch = n.told.map_epoch;
                return Some(format!(
                    "{what} {name} of zone {zone} was last heard {:.1} s ago, at map {epoch}",
                    ago as f64 / 1000.0
                ));
            }
            (has_come && n.told.map_epoch < map.epoch().0).then(|| {
                format!("{what} {name} of zone {zone} goes by map {}, the newest is {}", n.told.map_epoch, map.epoch())
            })
        });
        told.collect()
    }

    /// Forgets the nodes of zones that are not on the map any more.
    pub fn keep(&mut self, map: &Map) {
        self.by.retain(|(zone, ..), _| zone == "none" || map.zone_named(zone).is_some());
    }

    /// Was any node of `zone` heard a moment ago?
    pub fn is_heard(&self, zone: &str, now_ms: u64) -> bool {
        let mut all = self.by.iter().filter(|((z, ..), _)| z == zone);
        all.any(|(_, node)| now_ms.saturating_sub(node.heard_ms) < LIVE_MS)
    }

    /// Every node of `zone`, for the state.
    pub fn states(&self, zone: &str, now_ms: u64) -> Vec<NodeState> {
        let all = self.by.iter().filter(|((z, ..), _)| z == zone);
        let state = |((_, part, name), n): (&Key, &Node)| NodeState {
            name: name.clone(),
            kind: if *part == Part::Log { "log" } else { "router" }.into(),
            heard_ms_ago: now_ms.saturating_sub(n.heard_ms),
            map_epoch: n.told.map_epoch,
            holding: n.told.router.as_ref().map_or(0, |r| r.holding),
        };
        all.map(state).collect()
    }

    /// The zones that have no log that was heard a moment ago.
    pub fn not_live(&self, map: &Map, now_ms: u64) -> BTreeSet<String> {
        map.zones().iter().filter(|z| !self.is_live(&z.name, now_ms)).map(|z| z.name.clone()).collect()
    }
}

impl Node {
    fn new(told: NodeTold, now_ms: u64) -> Node {
        let mut node = Node { told: NodeTold::default(), heard_ms: now_ms, past: VecDeque::new(), rate: 0.0 };
        node.remember(&told, now_ms);
        node.told = told;
        node
    }

    fn hear(&mut self, told: NodeTold, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.heard_ms);
        if let (Some(was), Some(is)) = (&self.told.router, &told.router)
            && passed > 0
            && told.begun_ms == self.told.begun_ms
        {
            let now = is.requests.saturating_sub(was.requests) as f64 * 1000.0 / passed as f64;
            // Halves what is older than ten seconds, however often it tells.
            let weight = (passed as f64 / 14_000.0).min(1.0);
            self.rate += (now - self.rate) * weight;
        }
        if told.begun_ms != self.told.begun_ms {
            self.past.clear();
        }
        self.remember(&told, now_ms);
        (self.told, self.heard_ms) = (told, now_ms.max(self.heard_ms));
    }

    fn remember(&mut self, told: &NodeTold, now_ms: u64) {
        let Some(log) = &told.log else { return };
        // While an operation is under way logs tell more often than the past needs.
        if self.past.back().is_some_and(|(at, _)| now_ms < at + TELL_MS / 2) {
            return;
        }
        if self.past.len() == TOLD_KEPT {
            self.past.pop_front();
        }
        self.past.push_back((now_ms, log.streams.iter().map(|s| s.durable).collect()));
    }

    fn streams(&self) -> &[StreamTold] {
        self.told.log.as_ref().map_or(&[], |l| &l.streams)
    }

    fn durable(&self) -> Vec<u64> {
        self.streams().iter().map(|s| s.durable).collect()
    }

    /// What was durable so long ago; what it was first heard to have, if it was not heard so long.
    fn durable_before(&self, ms: u64, now_ms: u64) -> Vec<u64> {
        let before = self.past.iter().rev().find(|(at, _)| at + ms <= now_ms).or(self.past.front());
        before.map_or_else(Vec::new, |(_, durable)| durable.clone())
    }

    /// Of the stream in which it lacks most of `origin`'s log, how many records.
    fn behind(&self, origin: &str, durable: &[u64]) -> u64 {
        let applied = |at: usize| self.streams().get(at).and_then(|s| s.applied.get(origin)).copied().unwrap_or(0);
        durable.iter().enumerate().map(|(at, seq)| seq.saturating_sub(applied(at))).max().unwrap_or(0)
    }
}

/// What operations go by: the nodes, as they are now.
pub struct Seen<'a> {
    /// Who is there.
    pub nodes: &'a Nodes,
    /// The newest map.
    pub map: &'a Map,
    /// Now.
    pub now_ms: u64,
    /// Since when this service listens: who is there is known a moment later.
    pub awake_ms: u64,
    /// Zones whose shards are being taken over, or were and are not back.
    pub lost: &'a BTreeSet<Zone>,
    /// Those whose shards are being taken over.
    pub losing: &'a BTreeSet<Zone>,
    /// What was granted.
    pub leases: &'a Leases,
}

impl Facts for Seen<'_> {
    fn routers_hold(&self, epoch: MapEpoch) -> Result<(), String> {
        if self.now_ms.saturating_sub(self.awake_ms) < GATHER_MS {
            return Err("this service began to listen a moment ago: which routers there are is not known yet".into());
        }
        let live = self.nodes.by.iter().filter(|(_, n)| self.now_ms.saturating_sub(n.heard_ms) < LIVE_MS);
        for ((zone, _, name), node) in live {
            let Some(router) = &node.told.router else { continue };
            if node.told.map_epoch < epoch.0 {
                return Err(format!(
                    "router {name} of zone {zone} goes by map {}, not yet by {epoch}",
                    node.told.map_epoch
                ));
            }
            if router.in_flight_unsettled > 0 {
                let n = router.in_flight_unsettled;
                return Err(format!(
                    "router {name} of zone {zone} has {n} requests under way for shards that are leaving"
                ));
            }
        }
        Ok(())
    }

    fn fresh(&self, zone: Zone) -> Result<(), String> {
        let name = self.map.zone_name(zone);
        let Some(log) = self.nodes.log(name).filter(|_| self.nodes.is_live(name, self.now_ms)) else {
            return Err(format!("zone {name}'s log is not heard"));
        };
        let told = log.told.log.as_ref().ok_or_else(|| format!("zone {name} told nothing of its log"))?;
        if told.read_only {
            return Err(format!("zone {name}'s log is read-only: it restarted, and does not know yet what it owns"));
        }
        if told.store_full {
            return Err(format!("zone {name}'s store has no room"));
        }
        // What a lost zone had told of may be nowhere else: nobody waits for that.
        for other in self.map.zones().iter().filter(|z| z.id != zone && !self.lost.contains(&z.id)) {
            let Some(there) = self.nodes.log(&other.name) else { continue };
            let behind = log.behind(&other.name, &there.durable_before(BEHIND_MS, self.now_ms));
            if behind > 0 {
                return Err(format!(
                    "zone {name} lacks {behind} records that zone {} had {BEHIND_MS} ms ago: clients would wait for them",
                    other.name
                ));
            }
        }
        Ok(())
    }

    fn joined(&self, zone: Zone) -> Result<(), String> {
        let name = self.map.zone_name(zone);
        if !self.nodes.is_live(name, self.now_ms) {
            return Err(format!(
                "zone {name}'s log is not heard: give every other zone's nodes [zones.{name}] and start them again, one zone after the \
                 other, then start {name}'s nodes"
            ));
        }
        let others = self.map.zones().iter().filter(|z| z.id != zone && !self.lost.contains(&z.id));
        for other in others {
            if !self.nodes.is_live(&other.name, self.now_ms) {
                return Err(format!("zone {}'s log is not heard", other.name));
            }
        }
        self.fresh(zone).map_err(|why| {
            format!(
                "{why}. If it gets no nearer: the others' logs were started without [zones.{name}], or what they have let go must be \
                 brought by a snapshot: its log's /status names a gap, `POST /seed?zone=NAME&stream=N` there ends it"
            )
        })
    }

    fn told(&self, zone: Zone, shard: Shard, epoch: MapEpoch, take_over: bool) -> Option<&ShardTold> {
        let told = self.nodes.log(self.map.zone_name(zone))?.told.log.as_ref()?;
        told.reports.iter().find(|r| r.shard == shard.0 && r.map_epoch >= epoch.0 && r.take_over == take_over)
    }

    fn unleased(&self, shard: Shard) -> Result<(), String> {
        self.leases.ended(shard, self.now_ms).map_err(|ms| {
            let name = self.map.global_name(shard).unwrap_or_default();
            format!("global service \"{name}\" (shard {shard}): the old owner may hold a lease for {ms} ms more")
        })
    }

    fn instead_of(&self, zone: Zone, lost: Zone) -> Option<Zone> {
        let silent = self.nodes.silent_ms(self.map.zone_name(zone), self.now_ms).unwrap_or(u64::MAX);
        let gone = silent.min(self.now_ms.saturating_sub(self.awake_ms)) > TARGET_SILENT_MS;
        if !gone && !self.losing.contains(&zone) {
            return None;
        }
        let live = |z: &&shardmap::map::ZoneInfo| {
            z.id != lost && z.id != zone && !self.losing.contains(&z.id) && self.nodes.is_live(&z.name, self.now_ms)
        };
        // One that was lost and is back has much to catch up with: only if there is no other.
        let all = self.map.zones().iter().filter(live).map(|z| z.id);
        all.min_by_key(|z| (self.lost.contains(z), owned(self.map, *z)))
    }
}

/// How many shards `zone` owns.
pub fn owned(map: &Map, zone: Zone) -> usize {
    map.shards().filter(|(_, h)| h.view().owner == Some(zone)).count()
}
