//! The state of a router for those who watch it: `/healthz` (the process lives), `/readyz` (it may be sent requests), the detail of
//! `/status`, and `/`, which lists the pages.

use super::admin::Shown;
use super::life::Doing;
use crate::router::Shared;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

/// When this process began, by both clocks.
pub static STARTED: LazyLock<(Instant, SystemTime)> = LazyLock::new(|| (Instant::now(), SystemTime::now()));

const PAGES: &str = "\
GET  /healthz     200: the process lives
GET  /readyz      200: it may be sent requests; 503: the JSON says what is missing
GET  /status      what it does, as JSON: the map, each core, each service
GET  /metrics     for Prometheus (text format 0.0.4)
GET  /histograms  every bucket of every time, as JSON: for quantiles of a stretch of time
GET  /explain     ?path=..&method=..&peer=true&x-shard=..: where a request would go, and why; also POST, as JSON
POST /reopen      opens the access log anew
POST /reload      reads the configuration and goes by it; a bad one changes nothing
POST /check       only says whether a reload would be refused
POST /upgrade     starts a successor that takes the listeners over
GET  /upstreams   each service and endpoint as the cores and the active checks see it
POST /upstreams/{service}/{endpoint}/drain, /undrain: nothing new goes there, until it is undone or the router ends
";

/// `/`, `/healthz` and `/readyz`.
pub fn routes() -> Router<Shown> {
    LazyLock::force(&STARTED);
    Router::new()
        .route("/", get(async || PAGES))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async |State(s): State<Shown>| readiness(&s)))
}

/// 503 as soon as a load balancer should look away.
fn readiness(shown: &Shown) -> (StatusCode, Json<Value>) {
    let mut missing = missing(&shown.shared);
    match shown.life.status().doing {
        Doing::Serving => {}
        Doing::Starting => missing.push("the router is starting".into()),
        Doing::Draining => missing.push("the router is draining".into()),
    }
    missing.dedup();
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let warnings = shown.upstreams.without_address(); // one upstream's trouble is no reason to take the others' router away
    (status, Json(json!({ "ready": missing.is_empty(), "missing": missing, "warnings": warnings })))
}

/// What keeps the router from taking requests. Its listeners are bound before these pages are served, and a core that fails
/// ends the process: what is left is told by the cores themselves.
fn missing(shared: &Shared) -> Vec<String> {
    let mut all = vec![];
    for core in 0..shared.cores() {
        let adopted = shared.adopted(core);
        if adopted.settings.is_none() {
            all.push(format!("core {core} has not started"));
        } else if adopted.map.is_none() {
            all.push(format!("core {core} has no map"));
        }
    }
    if shared.stopping() {
        all.push("the router is draining".to_string());
    }
    all
}

/// The detail of `GET /status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// Of this program.
    pub version: String,
    /// Since the start, in seconds.
    pub uptime_s: u64,
    /// Since the core that goes longest by its map adopted it, in seconds; `None`: a core has none.
    pub map_age_s: Option<u64>,
    /// The share of all clients' connections that the core with most of them has, in percent; `None`: there are no clients.
    pub busiest_core_percent: Option<u64>,
    /// Each core, in order.
    pub cores: Vec<CoreDetail>,
    /// Each service by name; of our own: `none` (answered before one was found), `records`, `forward`.
    pub services: BTreeMap<String, ServiceDetail>,
}

/// One core.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CoreDetail {
    /// The map that it goes by; 0: none.
    pub map_epoch: u64,
    /// Open now, both sides.
    pub connections: u64,
    /// Clients' open now.
    pub clients: u64,
    /// Clients' since the start: accepted here and kept, or taken over.
    pub accepted: u64,
    /// Accepted here besides, and given to a core with fewer clients.
    pub handed_over: u64,
    /// Accepted by another core and given to this one.
    pub taken_over: u64,
    /// Requests that wait for a place under a service's limit.
    pub waiting: u64,
    /// Requests under way at an upstream or the log.
    pub in_flight: u64,
    /// Requests held now.
    pub holding: u64,
    /// Rounds of its loop.
    pub turns: u64,
    /// Completions of all rounds.
    pub completions: u64,
}

/// One service, all cores together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceDetail {
    /// Requests that are over.
    pub requests: u64,
    /// Answers from 500 on.
    pub errors: u64,
    /// First byte in to last byte out, since the start: median and 99th percentile.
    pub p50_us: u64,
    /// See above.
    pub p99_us: u64,
    /// The router's own part of it: 99th percentile.
    pub own_p99_us: u64,
}

/// What `/status` tells beyond its first lines.
pub fn detail(shared: &Shared) -> Detail {
    let now_ms = super::wall_ms();
    let adopted: Vec<_> = (0..shared.cores()).map(|c| shared.adopted(c)).collect();
    let since = adopted.iter().map(|a| a.map_wall_ms).min().filter(|ms| *ms > 0);
    let core = |number| {
        let (counts, loops) = (shared.counts(number), shared.loops(number));
        CoreDetail {
            map_epoch: counts.map_epoch,
            connections: counts.connections,
            clients: counts.clients,
            accepted: counts.accepted,
            handed_over: counts.handed_over,
            taken_over: counts.taken_over,
            waiting: adopted[number].waiting(number),
            in_flight: counts.in_flight,
            holding: counts.holding,
            turns: loops.turns.get(),
            completions: loops.completions.get(),
        }
    };
    let mut services = BTreeMap::<String, ServiceDetail>::new();
    for (name, whole, own) in super::figures::latencies(&adopted) {
        let d = services.entry(name).or_default();
        (d.p50_us, d.p99_us, d.own_p99_us) = (whole.quantile_us(0.5), whole.quantile_us(0.99), own.quantile_us(0.99));
    }
    for s in adopted.iter().flat_map(|a| &a.figures.services) {
        let d = services.entry(s.name.clone()).or_default();
        d.requests += s.statuses.given().map(|(_, n)| n).sum::<u64>();
        d.errors += s.statuses.given().filter(|(status, _)| *status >= 500).map(|(_, n)| n).sum::<u64>();
    }
    Detail {
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: STARTED.0.elapsed().as_secs(),
        map_age_s: since.map(|ms| now_ms.saturating_sub(ms) / 1000),
        busiest_core_percent: busiest_percent((0..shared.cores()).map(|c| shared.counts(c).clients)),
        cores: (0..shared.cores()).map(core).collect(),
        services,
    }
}

/// The greatest part of the whole, in percent, rounded up.
fn busiest_percent(parts: impl Iterator<Item = u64> + Clone) -> Option<u64> {
    let whole: u64 = parts.clone().sum();
    parts.max().filter(|_| whole > 0).map(|most| (most * 100).div_ceil(whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::{Core, Settings};
    use std::sync::Arc;

    #[test]
    fn the_busiest_cores_share_is_of_all_clients() {
        let check = |clients: &[u64], expected| assert_eq!(busiest_percent(clients.iter().copied()), expected);
        check(&[0, 0], None);
        check(&[7], Some(100));
        check(&[601, 399], Some(61));
        check(&[250, 250, 250, 250], Some(25));
    }

    #[test]
    fn a_router_is_ready_when_each_core_has_started_and_has_a_map_and_not_when_it_drains() {
        let shared = Shared::new(2);
        assert_eq!(missing(&shared), ["core 0 has not started", "core 1 has not started"]);
        let settings = Arc::new(Settings::default());
        let core = Core::new(settings.clone());
        (0..2).for_each(|c| shared.show_settings(c, &settings, core.figures()));
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data/china.toml");
        let map = crate::control::maps::from_file(file.as_ref()).unwrap();
        shared.show_map(0, map.clone(), 1);
        assert_eq!(missing(&shared), ["core 1 has no map"]);
        assert_eq!(detail(&shared).map_age_s, None);
        shared.show_map(1, map, 1);
        assert!(missing(&shared).is_empty() && detail(&shared).map_age_s.is_some());
        shared.set_stop();
        assert_eq!(missing(&shared), ["the router is draining"]);
    }
}
