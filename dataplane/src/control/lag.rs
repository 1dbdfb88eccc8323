//! `GET /lag` of a log: how far this zone's copy is behind each other zone's writes, and each of their shards.

use super::log::Shown;
use super::report::Lag;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use hdrhistogram::Histogram;
use replog::uring::ZoneLag;
use replog::uring::node::CoreFigures;
use serde::{Deserialize, Serialize};
use shardmap::Zone;
use shardmap::map::Map;
use std::collections::BTreeMap;

/// Of one zone's writes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ZoneStatus {
    /// From its append there until it was durable here, of every record since the start.
    #[serde(default)]
    pub durable: Lag,
    /// Until it was visible here.
    pub lag: Lag,
    /// Records of its streams that are durable here and not applied yet.
    pub unapplied: u64,
    /// Each of its shards that was written.
    pub shards: Vec<ShardStatus>,
}

/// Of one shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Which.
    pub shard: u16,
    /// Rows that were applied since the start.
    pub rows: u64,
    /// Milliseconds from the write of the newest until it was visible here.
    pub last_ms: u64,
    /// The longest since the start.
    pub max_ms: u64,
    /// When the newest was applied, in milliseconds since 1970.
    pub applied_ms: u64,
}

/// The page.
pub fn routes() -> Router<Shown> {
    Router::new().route("/lag", get(async |State(s): State<Shown>| Json(statuses(&s.node.figures().await, &s.map()))))
}

/// By the zones' names.
pub fn statuses(cores: &[CoreFigures], map: &Map) -> BTreeMap<String, ZoneStatus> {
    let (mut lags, mut durable) = (merged(cores), merged_durable(cores));
    let mut unapplied = BTreeMap::<_, u64>::new();
    for core in cores {
        for stream in &core.streams {
            for (zone, seq) in stream.mirrored.iter() {
                *unapplied.entry(zone).or_default() += seq.saturating_sub(stream.applied.get(zone).unwrap_or(0));
            }
        }
    }
    let zones = unapplied.into_iter().map(|(zone, unapplied)| {
        let lag = lags.remove(&zone).unwrap_or_default();
        let shards = lag.shards.iter().map(|(shard, l)| ShardStatus {
            shard: shard.0,
            rows: l.rows,
            last_ms: l.last_ms,
            max_ms: l.max_ms,
            applied_ms: l.applied_ms,
        });
        let durable = durable.remove(&zone).map(|us| of(&us)).unwrap_or_default();
        (map.zone_name(zone).to_owned(), ZoneStatus { durable, lag: of(&lag.us), unapplied, shards: shards.collect() })
    });
    zones.collect()
}

/// Of each zone, over all cores.
pub fn merged(cores: &[CoreFigures]) -> BTreeMap<Zone, ZoneLag> {
    let mut all = BTreeMap::<Zone, ZoneLag>::new();
    cores.iter().flat_map(|c| &c.kept.lag).for_each(|(zone, lag)| all.entry(*zone).or_default().add(lag));
    all
}

/// From the append there until durable here, of each zone, over all cores and streams.
pub fn merged_durable(cores: &[CoreFigures]) -> BTreeMap<Zone, Histogram<u64>> {
    let mut all = BTreeMap::<Zone, Histogram<u64>>::new();
    for (zone, log) in cores.iter().flat_map(|c| &c.streams).flat_map(|s| &s.logs) {
        let Some(us) = &log.lag_us else { continue };
        match all.get_mut(zone) {
            Some(sum) => sum.add(us).expect("all have the same bounds"),
            None => drop(all.insert(*zone, us.clone())),
        }
    }
    all
}

/// What is told of a histogram of microseconds.
pub fn of(us: &Histogram<u64>) -> Lag {
    Lag { count: us.len(), p50_us: us.value_at_quantile(0.5), p99_us: us.value_at_quantile(0.99), max_us: us.max() }
}
