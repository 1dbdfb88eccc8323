//! One zone, as far as the service can see it: a log that takes maps when it hears of them, writes, fences, applies and tells.
//!
//! What it leaves out: rows, conflicts and locks, which the model of the ownership rules has (`shardmap/tests/ownership`).

use gzs::api::{LeaseTold, LogTold, NodeTold, ReportAsk, RouterTold, ShardTold, StreamTold};
use shardmap::map::Map;
use shardmap::ownership::Kind;
use shardmap::{OwnerEpoch, Shard, Zone};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A record of a log.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub shard: Shard,
    pub fence: Option<OwnerEpoch>,
}

#[derive(Clone, Debug)]
pub struct ZoneSim {
    pub id: Zone,
    pub map: Arc<Map>,
    pub log: Vec<Record>,
    /// By zone: how much of its log is applied here.
    pub applied: Vec<usize>,
    pub asks: Vec<ReportAsk>,
    /// Of global services: the ownership that a lease is for, and its end by this zone's own clock.
    leases: BTreeMap<Shard, (u64, u64)>,
    /// How fast that clock goes, in thousandths of what it should.
    pub rate: u64,
    /// Positions that were reported for a lost zone's shard: nothing of that log is applied until a map answers.
    frozen: BTreeMap<Shard, Zone>,
    /// Requests that its router has under way, and the epoch at which each was begun.
    pub flying: Vec<(Shard, u64)>,
    pub router_epoch: u64,
    pub begun_ms: u64,
    pub alive: bool,
    /// It hears and is heard by the service.
    pub reached: bool,
}

impl ZoneSim {
    pub fn new(id: Zone, zones: usize, map: Arc<Map>) -> ZoneSim {
        ZoneSim {
            id,
            map,
            log: vec![],
            applied: vec![0; zones],
            asks: vec![],
            leases: BTreeMap::new(),
            rate: 1000,
            frozen: BTreeMap::new(),
            flying: vec![],
            router_epoch: 1,
            begun_ms: 0,
            alive: true,
            reached: true,
        }
    }

    pub fn take_map(&mut self, map: &Arc<Map>) {
        if map.epoch() > self.map.epoch() {
            self.map = map.clone();
            let map = &self.map;
            self.frozen.retain(|shard, lost| map.history(*shard).is_some_and(|h| h.is_lost_by(*lost)));
        }
        self.fence_if_due();
    }

    pub fn own_fence(&self, shard: Shard) -> OwnerEpoch {
        let mine = self.log.iter().filter(|r| r.shard == shard).filter_map(|r| r.fence);
        mine.max().unwrap_or_default()
    }

    fn fence_if_due(&mut self) {
        let due: Vec<Record> = self
            .map
            .shards()
            .filter_map(|(shard, h)| Some(Record { shard, fence: Some(h.fence_due(self.id, self.own_fence(shard))?) }))
            .collect();
        self.log.extend(due);
        self.applied[usize::from(self.id.0)] = self.log.len();
    }

    /// Milliseconds of this zone's clock, which knows nothing of other clocks.
    pub fn clock_ms(&self, now_ms: u64) -> u64 {
        now_ms * self.rate / 1000
    }

    /// The answer to what it sent at `sent_ms` by its clock.
    pub fn leased(&mut self, leases: &[LeaseTold], sent_ms: u64) {
        for lease in leases {
            let (new, known) = ((lease.owner_epoch, sent_ms + lease.lease_ms), self.leases.entry(Shard(lease.shard)));
            let known = known.or_insert(new);
            *known = new.max(*known);
        }
    }

    /// Its log is another process: what was not stored is gone.
    pub fn restarts(&mut self, now_ms: u64) {
        self.begun_ms = now_ms;
        self.flying.clear();
        self.leases.clear();
        self.asks.clear();
    }

    /// As the gate of a log judges it.
    pub fn may_write(&self, shard: Shard, now_ms: u64) -> bool {
        let Some(history) = self.map.history(shard) else { return false };
        let Ok(epoch) = history.may_write(self.id, self.own_fence(shard), false) else { return false };
        let lease = self.leases.get(&shard).filter(|(of, until)| *of == epoch.0 && self.clock_ms(now_ms) < *until);
        !shard.is_global() || lease.is_some()
    }

    /// A write, if it may.
    pub fn write(&mut self, shard: Shard, now_ms: u64) -> bool {
        if !self.may_write(shard, now_ms) {
            return false;
        }
        self.log.push(Record { shard, fence: None });
        self.applied[usize::from(self.id.0)] = self.log.len();
        true
    }

    pub fn apply(&mut self, from: Zone, has: usize, most: usize) {
        if self.frozen.values().any(|lost| *lost == from) {
            return;
        }
        let at = &mut self.applied[usize::from(from.0)];
        *at = (*at + most).min(has).max(*at);
    }

    pub fn told(&mut self, logs: &[Vec<Record>]) -> NodeTold {
        let asks = self.asks.clone();
        let reports = asks.iter().flat_map(|ask| ask.shards.iter().filter_map(|s| self.report(Shard(*s), ask, logs)));
        let reports: Vec<(ShardTold, Option<Zone>)> = reports.collect();
        self.frozen.extend(reports.iter().filter_map(|(told, lost)| Some((Shard(told.shard), (*lost)?))));
        let reports = reports.into_iter().map(|(told, _)| told).collect();
        let applied = self.applied.iter().enumerate().map(|(z, n)| (name(Zone(z as u8)), *n as u64)).collect();
        let stream = StreamTold { durable: self.log.len() as u64, applied };
        NodeTold {
            name: "log".into(),
            zone: name(self.id),
            begun_ms: self.begun_ms,
            map_epoch: self.map.epoch().0,
            log: Some(LogTold { streams: vec![stream], reports, ..LogTold::default() }),
            ..NodeTold::default()
        }
    }

    fn report(&self, shard: Shard, ask: &ReportAsk, logs: &[Vec<Record>]) -> Option<(ShardTold, Option<Zone>)> {
        if self.map.epoch().0 < ask.map_epoch {
            return None;
        }
        let history = self.map.history(shard)?;
        let (view, mut fence_seq, mut froze) = (history.view(), None, None);
        if ask.take_over {
            let (lost, _) = view.lost.filter(|_| view.kind == Kind::Lost)?;
            froze = Some(lost);
        } else {
            let (from, wanted) = (view.owner?, history.move_fence()?);
            let log = &logs[usize::from(from.0)][..self.applied[usize::from(from.0)]];
            let at = log.iter().position(|r| r.shard == shard && r.fence.is_some_and(|e| e >= wanted))?;
            fence_seq = Some(at as u64 + 1);
        }
        let applied = self.applied.iter().enumerate().map(|(z, n)| (z as u8, *n as u64)).collect();
        let map_epoch = self.map.epoch().0;
        Some((ShardTold { shard: shard.0, map_epoch, take_over: ask.take_over, fence_seq, applied }, froze))
    }

    pub fn router_told(&mut self) -> NodeTold {
        let map = &self.map;
        let unsettled = |shard: Shard| map.view(shard).is_some_and(|v| v.kind.is_unsettled());
        let flying = self.flying.iter().filter(|(s, begun)| *begun < self.router_epoch && unsettled(*s)).count();
        NodeTold {
            name: "router".into(),
            zone: name(self.id),
            begun_ms: self.begun_ms,
            map_epoch: self.router_epoch,
            router: Some(RouterTold { in_flight_unsettled: flying as u64, ..RouterTold::default() }),
            ..NodeTold::default()
        }
    }
}

pub fn name(zone: Zone) -> String {
    format!("z{}", zone.0)
}
