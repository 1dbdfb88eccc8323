//! One zone, as far as the service can see it: a log that takes maps when it hears of them, writes, fences, applies and tells.
//!
//! What it leaves out: rows, conflicts and locks, which the model of the ownership rules has (`shardmap/tests/ownership`).

use gzs::api::{LogTold, NodeTold, ReportAsk, RouterTold, ShardTold, StreamTold};
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

    /// A write, if it may.
    pub fn write(&mut self, shard: Shard) -> bool {
        let Some(history) = self.map.history(shard) else { return false };
        if history.may_write(self.id, self.own_fence(shard), false).is_err() {
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
