//! The router's figures as pages: `/metrics` for Prometheus, `/histograms` with every bucket for those who compare quantiles.
//!
//! Series are bounded: services are those of the configuration, zones at most 15, shards are shown in 18 groups, cores in one
//! series each. Exact statuses are shown only by service, and only those that were given.

use super::access;
use super::admin::Shown;
use super::metrics::{Kind, Page};
use super::state::STARTED;
use super::threads;
use super::upstreams;
use crate::router::figures::{ServiceFigures, group_name};
use crate::router::histogram::{Histogram, Reading};
use crate::router::stats::Adopted;
use crate::router::{Counts, Shared};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::UNIX_EPOCH;

/// `/metrics` and `/histograms`.
pub fn routes() -> Router<Shown> {
    let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Router::new()
        .route(
            "/metrics",
            get(async move |State(s): State<Shown>| {
                (text, metrics(&s.shared, s.access.as_deref()) + &upstreams::metrics(&s.upstreams))
            }),
        )
        .route("/histograms", get(async |State(s): State<Shown>| Json(histograms(&s.shared))))
}

/// How a counter of a core is shown: the name of its field, then metric, label, help.
type As = (&'static str, Kind, &'static str, Option<(&'static str, &'static str)>, &'static str);

use Kind::{Counter, Gauge};

/// A field that is not here is shown as `ezone_core_<field>`, untyped.
const SHOWN_AS: [As; 49] = [
    ("accepted", Counter, "ezone_connections_accepted_total", None, "Connections accepted"),
    ("connections", Gauge, "ezone_connections", None, "Connections open now, both sides"),
    ("clients", Gauge, "ezone_client_connections", None, "Clients' connections open now: their spread over the cores"),
    ("handed_over", Counter, "ezone_connections_handed_over_total", None, "Accepted and given to a core with fewer"),
    ("taken_over", Counter, "ezone_connections_taken_over_total", None, "Accepted by another core and served here"),
    ("cut_off", Counter, "ezone_connections_cut_off_total", None, "Clients cut off when the time to drain was over"),
    ("shard_limited", Counter, "ezone_shard_limited_total", None, "Requests beyond their shard's rate"),
    ("by_shard", Counter, "ezone_tagged_requests_total", Some(("by", "shard")), TAGGED),
    ("by_global", Counter, "ezone_tagged_requests_total", Some(("by", "global")), TAGGED),
    ("by_order", Counter, "ezone_tagged_requests_total", Some(("by", "order")), TAGGED),
    ("by_shop", Counter, "ezone_tagged_requests_total", Some(("by", "shop")), TAGGED),
    ("by_location", Counter, "ezone_tagged_requests_total", Some(("by", "location")), TAGGED),
    ("by_default", Counter, "ezone_tagged_requests_total", Some(("by", "default")), TAGGED),
    ("unleased", Counter, "ezone_unleased_requests_total", Some(("outcome", "refused")), UNLEASED),
    ("unleased_unknown", Counter, "ezone_unleased_requests_total", Some(("outcome", "unknown")), UNLEASED),
    ("forwarded", Counter, "ezone_forwarded_requests_total", None, "Requests sent on to another zone's router"),
    ("hopped", Counter, "ezone_hop_requests_total", None, "Requests that came from another zone's router"),
    ("held", Counter, "ezone_held_requests_total", None, "Requests that were held"),
    ("holding", Gauge, "ezone_holding_requests", None, "Requests held now"),
    ("retried_421", Counter, "ezone_second_attempts_total", Some(("why", "misdirected")), SECOND),
    ("retried_lost", Counter, "ezone_second_attempts_total", Some(("why", "connection_lost")), SECOND),
    ("in_flight", Gauge, "ezone_in_flight_requests", None, "Requests in flight"),
    (
        "in_flight_moving",
        Gauge,
        "ezone_in_flight_unsettled_requests",
        None,
        "Requests in flight on moving or ownerless shards",
    ),
    (
        "changes_cut",
        Counter,
        "ezone_changes_cut_total",
        None,
        "Readers of changes cut off because they did not take what they were sent",
    ),
    ("ownership_streams", Gauge, "ezone_ownership_streams", None, "Readers of /ownership/stream now"),
    (
        "ownership_cut",
        Counter,
        "ezone_ownership_cut_total",
        None,
        "Readers of /ownership/stream cut off because they did not take what they were sent",
    ),
    ("proxy_malformed", Counter, "ezone_proxy_malformed_total", None, "Connections without a PROXY header as expected"),
    ("tunnels", Gauge, "ezone_tunnels", None, "Tunnels open now"),
    ("tunnelled", Counter, "ezone_tunnels_total", None, "Tunnels opened by a 101"),
    ("refused", Counter, "ezone_connections_refused_total", None, "Connections closed at once for want of room"),
    ("short_of_memory", Counter, "ezone_short_of_memory_total", None, "Requests that got 503 for want of memory"),
    ("memory_bytes", Gauge, "ezone_buffers_bytes", None, "Bytes of all buffers"),
    ("map_epoch", Gauge, "ezone_map_epoch", None, "The map that the core has adopted; 0: none yet"),
    ("malformed_tag_parts", Counter, "ezone_malformed_tag_parts_total", None, "Parts of tags that could not be read"),
    ("tls_handshakes", Counter, "ezone_tls_handshakes_total", None, "TLS handshakes done, in either direction"),
    ("tls_resumed", Counter, "ezone_tls_resumed_total", None, "TLS handshakes that were resumed by a ticket"),
    ("tls_failed_not_tls", Counter, "ezone_tls_failures_total", Some(("reason", "not_tls")), TLS_FAILED),
    ("tls_failed_incompatible", Counter, "ezone_tls_failures_total", Some(("reason", "incompatible")), TLS_FAILED),
    ("tls_failed_no_certificate", Counter, "ezone_tls_failures_total", Some(("reason", "no_certificate")), TLS_FAILED),
    ("tls_failed_untrusted", Counter, "ezone_tls_failures_total", Some(("reason", "untrusted")), TLS_FAILED),
    ("tls_failed_expired", Counter, "ezone_tls_failures_total", Some(("reason", "expired")), TLS_FAILED),
    ("tls_failed_wrong_identity", Counter, "ezone_tls_failures_total", Some(("reason", "wrong_identity")), TLS_FAILED),
    ("tls_failed_refused", Counter, "ezone_tls_failures_total", Some(("reason", "refused")), TLS_FAILED),
    ("tls_failed_broken", Counter, "ezone_tls_failures_total", Some(("reason", "broken")), TLS_FAILED),
    ("tls_failed_too_long", Counter, "ezone_tls_failures_total", Some(("reason", "too_long")), TLS_FAILED),
    ("tls_failed_late", Counter, "ezone_tls_failures_total", Some(("reason", "late")), TLS_FAILED),
    ("tls_failed_gone", Counter, "ezone_tls_failures_total", Some(("reason", "gone")), TLS_FAILED),
    ("tls_failed_crowded", Counter, "ezone_tls_failures_total", Some(("reason", "crowded")), TLS_FAILED),
    ("tls_failed_unprepared", Counter, "ezone_tls_failures_total", Some(("reason", "unprepared")), TLS_FAILED),
];
const TLS_FAILED: &str = "TLS handshakes and sessions that failed, by reason";
const UNLEASED: &str = "Requests of a global service at its owner, which had no lease";
const TAGGED: &str = "Requests by the part of their tag that decided";
const SECOND: &str = "Requests sent a second time, by reason";
/// Shown by others: answers by service and status, the longest hold in seconds.
const ELSEWHERE: [&str; 4] = ["answered_2xx_3xx", "answered_4xx", "answered_5xx", "held_ms_max"];

/// The page for Prometheus.
pub fn metrics(shared: &Shared, access: Option<&access::Figures>) -> String {
    let mut page = Page::default();
    process(&mut page);
    if let Some(log) = access {
        log_of_requests(&mut page, shared, log);
    }
    let adopted: Vec<Adopted> = (0..shared.cores()).map(|c| shared.adopted(c)).collect();
    for (core, adopted) in adopted.iter().enumerate() {
        of_core(&mut page, shared, core, adopted);
    }
    if let Some(settings) = adopted.first().and_then(|a| a.settings.as_ref()) {
        super::secrets::show(&mut page, &settings.tls);
    }
    requests(&mut page, &adopted);
    times(&mut page, &adopted);
    page.text()
}

fn process(page: &mut Page) {
    let us = STARTED.1.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.labelled("ezone_build_info", "The version that runs; always 1", &version, 1);
    page.seconds(Gauge, "process_start_time_seconds", "When this process began, in seconds since 1970", &[], us);
    if let Some(n) = threads::open_descriptors() {
        page.gauge("process_open_fds", "Descriptors that are open", n);
    }
    for thread in threads::threads() {
        let Some(core) = thread.name.strip_prefix("router-") else { continue };
        let label = [("core", core)];
        page.seconds(
            Counter,
            "ezone_core_cpu_seconds_total",
            "Processor time of the core's thread",
            &label,
            thread.ran_us,
        );
        let help = "Time that the core's thread was ready to run and another ran";
        page.seconds(Counter, "ezone_core_run_delay_seconds_total", help, &label, thread.waited_us);
    }
}

fn log_of_requests(page: &mut Page, shared: &Shared, log: &access::Figures) {
    page.counter("ezone_access_log_lines_total", "Lines that are in the access log", &[], log.written.load(Relaxed));
    let by_core = (0..shared.cores()).map(|c| shared.loops(c).access_dropped.get()).sum();
    for (place, n) in [("core", by_core), ("disk", log.lost.load(Relaxed))] {
        let help = "Lines that found no room on their way to the access log, or on its disk";
        page.counter("ezone_access_log_dropped_total", help, &[("at", place)], n);
    }
}

fn of_core(page: &mut Page, shared: &Shared, core: usize, adopted: &Adopted) {
    let (counts, number) = (shared.counts(core), core.to_string());
    let core_label = ("core", number.as_str());
    for (field, value) in Counts::NAMES.into_iter().zip(counts.values()) {
        match SHOWN_AS.iter().find(|(name, ..)| *name == field) {
            Some((_, kind, name, label, help)) => {
                let labels: Vec<_> = [Some(core_label), *label].into_iter().flatten().collect();
                page.put(*kind, name, help, &labels, value);
            }
            None if ELSEWHERE.contains(&field) => {}
            None => page.put(Kind::Untyped, &format!("ezone_core_{field}"), "Of a router core", &[core_label], value),
        }
    }
    let label = [core_label];
    page.seconds(Gauge, "ezone_hold_longest_seconds", "The longest hold so far", &label, counts.held_ms_max * 1000);
    if adopted.map_wall_ms > 0 {
        let now_ms = super::wall_ms();
        let age_us = now_ms.saturating_sub(adopted.map_wall_ms) * 1000;
        page.seconds(Gauge, "ezone_map_age_seconds", "Since when the core goes by its map", &label, age_us);
    }
    let waiting = adopted.waiting(core);
    page.labelled("ezone_waiting_requests", "Requests that wait for a place under a service's limit", &label, waiting);
    let loops = shared.loops(core);
    for (kind, name, help, value) in [
        (Counter, "ezone_loop_turns_total", "Rounds of the core's loop", &loops.turns),
        (
            Counter,
            "ezone_loop_completions_total",
            "Completions that the rounds took; by turns: the queue's depth",
            &loops.completions,
        ),
        (Gauge, "ezone_loop_completions_max", "Completions of the fullest round", &loops.completions_max),
        (Counter, "ezone_loop_out_of_buffers_total", "Receives armed again for want of buffers", &loops.out_of_buffers),
        (
            Counter,
            "ezone_loop_overflows_total",
            "Rounds that found more completions than there is room for",
            &loops.overflows,
        ),
        (
            Counter,
            "ezone_accept_failures_total",
            "Accepts that failed; most often no descriptor is left",
            &loops.accepts_failed,
        ),
        (Counter, "ezone_loop_queue_full_total", "Entries that found the submission queue full", &loops.queue_full),
        (Gauge, "ezone_loop_backlog", "Entries that wait for the submission queue", &loops.backlog),
    ] {
        page.put(kind, name, help, &label, value.get());
    }
    let f = &adopted.figures.core;
    for (name, help, value) in [
        ("ezone_client_aborts_total", "Clients that were gone before their answer was sent", &f.client_aborts),
        ("ezone_broken_answers_total", "Answers that had begun and were broken off", &f.broken_answers),
        ("ezone_request_bytes_total", "Bytes of requests: heads, and bodies as decoded", &f.bytes_in),
        ("ezone_answer_bytes_total", "Bytes of answers", &f.bytes_out),
    ] {
        page.counter(name, help, &label, value.get());
    }
}

/// Requests by service and status, zone, group of shards, and those that were refused; all cores together.
fn requests(page: &mut Page, adopted: &[Adopted]) {
    let (mut by_status, mut by_zone, mut by_group, mut refused) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for a in adopted {
        for s in &a.figures.services {
            s.statuses.given().for_each(|(status, n)| *by_status.entry((s.name.clone(), status)).or_insert(0) += n);
        }
        let zone_name = |zone| a.settings.as_ref().map_or("none", |s| s.name(zone)).to_string();
        let core = &a.figures.core;
        core.by_zone().for_each(|(z, class, n)| *by_zone.entry((zone_name(z), class)).or_insert(0) += n);
        core.by_group().for_each(|(g, class, n)| *by_group.entry((g, class)).or_insert(0) += n);
        core.refused.given().for_each(|(status, n)| *refused.entry(status).or_insert(0) += n);
    }
    for ((service, status), n) in by_status {
        let labels = [("service", service.as_str()), ("status", &status.to_string())];
        page.counter(
            "ezone_requests_total",
            "Requests that are over, by service and status; 499: the client was gone",
            &labels,
            n,
        );
    }
    for ((zone, class), n) in by_zone {
        let labels = [("zone", zone.as_str()), ("class", &class_name(class))];
        page.counter("ezone_zone_requests_total", "Requests by the zone that the map named", &labels, n);
    }
    for ((group, class), n) in by_group {
        let labels = [("shards", group_name(group)), ("class", class_name(class))];
        let labels = labels.each_ref().map(|(k, v)| (*k, v.as_str()));
        page.counter("ezone_shard_requests_total", "Requests by group of 64 shards", &labels, n);
    }
    for (status, n) in refused {
        let labels = [("status", &*status.to_string())];
        page.counter(
            "ezone_refused_requests_total",
            "Requests that the router itself answered with an error",
            &labels,
            n,
        );
    }
}

fn class_name(class: usize) -> String {
    if class <= 5 { format!("{class}xx") } else { "other".into() }
}

type Of = fn(&ServiceFigures) -> &Histogram;
const TIMES: [(&str, &str, Of); 3] = [
    ("ezone_request_seconds", "From a request's first byte in to its answer's last byte out", |s| &s.request),
    ("ezone_router_own_seconds", "That, without the waits for an upstream and for a map", |s| &s.own),
    ("ezone_upstream_seconds", "From a request sent to the first byte of its answer", |s| &s.upstream),
];

fn times(page: &mut Page, adopted: &[Adopted]) {
    for (name, help, of) in TIMES {
        for (service, times) in by_service(adopted, of) {
            page.histogram(name, help, &[("service", &service)], &times);
        }
    }
    page.histogram("ezone_hold_seconds", "How long held requests have waited", &[], &held(adopted));
}

fn by_service(adopted: &[Adopted], of: Of) -> BTreeMap<String, Reading> {
    let mut all: BTreeMap<String, Reading> = BTreeMap::new();
    for s in adopted.iter().flat_map(|a| &a.figures.services) {
        all.entry(s.name.clone()).or_default().merge(&of(s).reading());
    }
    all
}

/// Of each service: its name, whole times, and the router's own part of them.
pub fn latencies(adopted: &[Adopted]) -> Vec<(String, Reading, Reading)> {
    let own = by_service(adopted, |s| &s.own);
    by_service(adopted, |s| &s.request)
        .into_iter()
        .zip(own)
        .map(|((name, whole), (_, own))| (name, whole, own))
        .collect()
}

fn held(adopted: &[Adopted]) -> Reading {
    let mut all = Reading::default();
    adopted.iter().for_each(|a| all.merge(&a.figures.core.held.reading()));
    all
}

/// Every bucket since the start: `{name: {service: {count, sum_us, p50_us, p99_us, p999_us, buckets: [[ends_at_us, n], ..]}}}`.
/// Whoever wants quantiles of a stretch of time takes the page twice and subtracts the buckets.
fn histograms(shared: &Shared) -> Value {
    let adopted: Vec<Adopted> = (0..shared.cores()).map(|c| shared.adopted(c)).collect();
    let mut all: BTreeMap<&str, BTreeMap<String, Value>> = BTreeMap::new();
    for (name, _, of) in TIMES {
        let each = by_service(&adopted, of).into_iter().map(|(service, r)| (service, in_full(&r)));
        all.insert(name, each.collect());
    }
    all.insert("ezone_hold_seconds", [("all".to_string(), in_full(&held(&adopted)))].into());
    json!(all)
}

fn in_full(r: &Reading) -> Value {
    json!({
        "count": r.count(), "sum_us": r.sum_us(),
        "p50_us": r.quantile_us(0.5), "p99_us": r.quantile_us(0.99), "p999_us": r.quantile_us(0.999),
        "buckets": r.buckets().collect::<Vec<_>>(),
    })
}

#[cfg(test)]
#[path = "figures_tests.rs"]
mod tests;
