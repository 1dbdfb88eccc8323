//! The service at a glance, for people and programs.

use super::{AUDIT_SHOWN, Service};
use crate::api::{OpView, ShardState, State, UnknownRange, ZoneState};
use crate::limits::{LIVE_MS, OPS_SHOWN_MAX};
use crate::nodes::owned;
use crate::op::{At, Op};
use shardmap::map::ZoneInfo;
use shardmap::ownership::Kind;
use shardmap::{Shard, Zone};

/// Ended operations that the state shows.
const ENDED_SHOWN: usize = 50;

impl Service {
    /// Everything at a glance.
    pub fn state(&self, now_ms: u64) -> State {
        let map = &self.map;
        let edges = ZoneInfo { id: Zone(u8::MAX), name: "none".into() };
        let mut zones: Vec<ZoneState> = map.zones().iter().map(|z| self.zone(z, now_ms)).collect();
        let edges = ZoneState { id: None, state: "up".into(), ..self.zone(&edges, now_ms) };
        zones.extend(Some(edges).filter(|e| !e.nodes.is_empty()));
        State {
            cluster: self.settings.cluster.clone(),
            epoch: map.epoch().0,
            digest: hex(&map.digest()),
            fences_digest: hex(&map.fences_digest()),
            now_ms,
            stopped: self.stopped.clone(),
            zones,
            shards: map.shards().map(|(shard, _)| self.shard(shard, now_ms)).collect(),
            ops: self.ops_shown(true, ENDED_SHOWN),
            audit: self.audit.iter().rev().take(AUDIT_SHOWN).cloned().collect(),
        }
    }

    /// Operations under way; with `all`, those that have ended too, the newest first.
    pub fn ops(&self, all: bool) -> Vec<OpView> {
        self.ops_shown(all, OPS_SHOWN_MAX)
    }

    /// An operation as it is shown.
    pub fn op_view(&self, op: &Op) -> OpView {
        op.view(&self.map, self.waits.get(&op.id).map_or("", String::as_str))
    }

    fn ops_shown(&self, all: bool, ended_max: usize) -> Vec<OpView> {
        let running = self.ops.values().rev().filter(|op| op.is_running());
        let ended = self.ops.values().rev().filter(|op| all && !op.is_running()).take(ended_max);
        running.chain(ended).map(|op| self.op_view(op)).collect()
    }

    fn zone(&self, zone: &ZoneInfo, now_ms: u64) -> ZoneState {
        let lost = self.lost().contains(&zone.id);
        let state = match self.nodes.silent_ms(&zone.name, now_ms) {
            _ if lost => "lost",
            None => "unheard",
            Some(ms) if ms < LIVE_MS => "up",
            Some(_) => "silent",
        };
        let told = self.nodes.log_told(&zone.name).and_then(|t| t.log.as_ref());
        ZoneState {
            name: zone.name.clone(),
            id: Some(zone.id.0),
            state: state.into(),
            owns: owned(&self.map, zone.id) as u64,
            read_only: told.is_some_and(|t| t.read_only),
            ledger: told.map_or(0, |t| t.ledger),
            parked: told.map_or(0, |t| t.parked),
            lacks: self.nodes.lacks(&zone.name, &self.map),
            unknown: if lost { self.unknown(zone.id) } else { vec![] },
            nodes: self.nodes.states(&zone.name, now_ms),
        }
    }

    fn shard(&self, shard: Shard, now_ms: u64) -> ShardState {
        let Some(v) = self.map.view(shard) else { return ShardState::default() };
        let kind = match v.kind {
            Kind::Own => "own",
            Kind::Moving => "moving",
            Kind::Lost => "lost",
            Kind::Unlock => "unlock",
        };
        let name = |z: Zone| self.map.zone_name(z).to_owned();
        ShardState {
            shard: shard.0,
            kind: kind.into(),
            owner: v.owner.map(name),
            owner_epoch: v.owner_epoch.0,
            to: v.to.map(name),
            epoch: v.epoch.0,
            global: self.map.global_name(shard).map(str::to_owned),
            granted_ms: self.leases.left_ms(shard, now_ms),
        }
    }

    /// By stream: what the lost zone had told to be durable, beyond every cut that a new owner reported.
    fn unknown(&self, zone: Zone) -> Vec<UnknownRange> {
        let Some(op) = self.ops.values().rev().find(|op| op.lost() == Some(zone)) else { return vec![] };
        let streams = op.told_durable.len() as u32;
        let cut = |stream: u32| {
            let shards = op.shares.iter().filter(|s| u32::from(s.shard) % streams == stream);
            // Those of this take-over: an earlier one's cuts are of long ago.
            let cuts = shards.filter_map(|s| {
                let At::Given(epoch) = s.at else { return None };
                let history = self.map.history(Shard(s.shard))?;
                history.entries().iter().find(|e| e.epoch.0 == epoch)?.cut.get(zone)
            });
            cuts.min()
        };
        let all = op.told_durable.iter().enumerate().filter_map(|(at, last)| {
            let (stream, first) = (at as u32, cut(at as u32)?.saturating_add(1));
            (first <= *last).then_some(UnknownRange { stream, first, last: *last })
        });
        all.collect()
    }
}

/// Bytes as people write them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes as people have written them.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| (*b as char).to_digit(16).map(|d| d as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
}
