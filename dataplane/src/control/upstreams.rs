//! `GET /upstreams`: each service and endpoint as the cores see it; `POST /upstreams/{service}/{endpoint}/drain`, `undrain`.

use super::admin::Shown;
use super::dns::Directory;
use super::health::{Outcome, Report};
use super::metrics::Page;
use super::names::{Known, without_address};
use super::probe::Reports;
use crate::config::Name;
use crate::router::shown::{EndpointShown, OfEndpoint, OfService, ServiceShown};
use crate::router::{EjectedBy, Endpoint, Settings};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// An operator's word about an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drain {
    /// The service.
    pub service: String,
    /// The endpoint.
    pub at: SocketAddr,
    /// Drain it, or use it again.
    pub on: bool,
}

/// What the pages share with the router's control loop: the present settings, and a way to ask for a drain.
#[derive(Clone)]
pub struct Upstreams {
    settings: Arc<Mutex<Arc<Settings>>>,
    reports: Reports,
    names: Directory,
    drains: mpsc::UnboundedSender<Drain>,
}

impl Upstreams {
    /// Shows `settings`; drains that are asked for come out of the receiver.
    pub fn new(settings: Arc<Settings>) -> (Upstreams, mpsc::UnboundedReceiver<Drain>) {
        let (drains, asked) = mpsc::unbounded_channel();
        let (reports, names) = (Reports::default(), Directory::default());
        (Upstreams { settings: Arc::new(Mutex::new(settings)), reports, names, drains }, asked)
    }

    /// With what active checks find.
    pub fn with_reports(self, reports: Reports) -> Upstreams {
        Upstreams { reports, ..self }
    }

    /// With what is known of names.
    pub fn with_names(self, names: Directory) -> Upstreams {
        Upstreams { names, ..self }
    }

    fn names(&self) -> Vec<(Name, Known)> {
        let all = self.names.lock().expect("no holder of this lock can panic: it moves values");
        all.iter().map(|(n, k)| (n.clone(), k.clone())).collect()
    }

    /// The names that have no address, with the reason: their endpoints are not there.
    pub fn without_address(&self) -> Vec<String> {
        let all = self.names();
        all.iter().filter(|(_, k)| k.addresses.is_empty()).map(|(n, k)| without_address(n, Some(k))).collect()
    }

    fn report(&self, service: &str, at: SocketAddr) -> Option<Report> {
        let reports = self.reports.lock().expect("no holder of this lock can panic: it moves values");
        reports.get(&(service.to_owned(), at)).cloned()
    }

    /// Shows these from now on.
    pub fn show(&self, settings: &Arc<Settings>) {
        *self.settings.lock().expect("no holder of this lock can panic: it moves a pointer") = settings.clone();
    }

    fn settings(&self) -> Arc<Settings> {
        self.settings.lock().expect("no holder of this lock can panic: it moves a pointer").clone()
    }
}

/// The routes of this file.
pub fn routes() -> Router<Shown> {
    Router::new()
        .route("/upstreams", get(async |State(s): State<Shown>| Json(page(&s.upstreams, super::wall_ms()))))
        .route("/upstreams/{service}/{endpoint}/drain", post(async |s, p| drain(s, p, true)))
        .route("/upstreams/{service}/{endpoint}/undrain", post(async |s, p| drain(s, p, false)))
}

/// 202: the cores are told. What is under way there goes on.
fn drain(
    State(shown): State<Shown>,
    Path((service, endpoint)): Path<(String, String)>,
    on: bool,
) -> (StatusCode, Json<Value>) {
    let settings = shown.upstreams.settings();
    let found = clusters(&settings).into_iter().find(|c| c.name == service);
    let Some(cluster) = found else {
        let known: Vec<_> = clusters(&settings).iter().map(|c| c.name.to_owned()).collect();
        return (
            StatusCode::NOT_FOUND,
            Json(json!({ "error": "no such service", "seen": service, "expected": known })),
        );
    };
    let Some(at) = cluster.endpoints.iter().map(|e| e.addr).find(|at| at.to_string() == endpoint) else {
        let known: Vec<_> = cluster.endpoints.iter().map(|e| e.addr.to_string()).collect();
        let error = "no such endpoint of the service";
        return (StatusCode::NOT_FOUND, Json(json!({ "error": error, "seen": endpoint, "expected": known })));
    };
    match shown.upstreams.drains.send(Drain { service, at, on }) {
        Ok(()) => (StatusCode::ACCEPTED, Json(json!({ "draining": on }))),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "the router is stopping" }))),
    }
}

struct Cluster<'a> {
    name: &'a str,
    shown: &'a ServiceShown,
    endpoints: &'a [Endpoint],
}

fn clusters(settings: &Settings) -> Vec<Cluster<'_>> {
    let services =
        settings.services.iter().map(|s| Cluster { name: &s.name, shown: &s.shown, endpoints: &s.endpoints });
    let peers = settings.peers.iter().map(|p| Cluster { name: &p.name, shown: &p.shown, endpoints: &p.endpoints });
    services.chain(peers).collect()
}

/// The page at this time, in milliseconds since 1970.
fn page(upstreams: &Upstreams, now_ms: u64) -> Value {
    let settings = upstreams.settings();
    let each = clusters(&settings).into_iter().map(|c| {
        let of = |e: &Endpoint| {
            let mut all = endpoint(e, now_ms);
            all["check"] = upstreams.report(c.name, e.addr).map_or(Value::Null, |r| check(&r, now_ms));
            all
        };
        let endpoints: Vec<_> = c.endpoints.iter().map(of).collect();
        let mut all = json!({ "name": c.name, "endpoints": endpoints });
        for (key, _, of, _) in SERVICE {
            all[*key] = c.shown.sum(of).into();
        }
        all
    });
    let services: Vec<_> = each.collect();
    let names: Vec<_> = upstreams.names().iter().map(|(n, k)| name(n, k)).collect();
    json!({ "services": services, "names": names })
}

/// What is known of a name.
fn name(n: &Name, k: &Known) -> Value {
    json!({ "name": n.to_string(), "addresses": k.addresses, "failing": k.failing, "good": k.good, "failed": k.failed,
        "left_out": k.left_out, "changed_wall_ms": k.changed_wall_ms })
}

/// What active checks say of an endpoint.
fn check(r: &Report, now_ms: u64) -> Value {
    let last = r.last.as_ref().map(|(seen, at_ms)| {
        json!({ "outcome": seen.outcome.name(), "why": seen.why, "in_a_row": r.in_a_row,
            "at_wall_ms": at_ms, "ago_ms": now_ms.saturating_sub(*at_ms) })
    });
    let bad = r.counts.iter().sum::<u64>() - r.counts[Outcome::Good as usize];
    json!({ "healthy": r.healthy, "changed_wall_ms": r.changed_wall_ms, "last": last,
        "good": r.counts[Outcome::Good as usize], "bad": bad })
}

fn endpoint(e: &Endpoint, now_ms: u64) -> Value {
    let s: &EndpointShown = &e.shown;
    let ejected = s.all().enumerate().filter(|(_, c)| c.ejections.get() > 0).map(|(core, c)| {
        let (until_ms, by) = (c.ejected_until_wall_ms.get(), c.ejected_by.get() as usize);
        let left_ms = if c.ejected.get() == 1 { until_ms.saturating_sub(now_ms) } else { 0 };
        let by = EjectedBy::NAMES.get(by).copied().unwrap_or("unknown");
        json!({ "core": core, "left_ms": left_ms, "by": by, "times": c.ejections.get() })
    });
    let out: Vec<_> = ejected.collect();
    let slowest = s.all().map(|c| c.latency_us.get()).max().unwrap_or(0);
    let state = match (e.draining, e.healthy, s.sum(|c| c.ejected.get()), s.sum(|c| c.ramping.get())) {
        (true, ..) => "draining",
        (false, false, ..) => "unhealthy",
        (false, true, 1.., _) => "ejected",
        (false, true, 0, 1..) => "slow start",
        (false, true, 0, 0) => "healthy",
    };
    let mut all = json!({ "address": e.addr.to_string(), "name": e.name.as_deref(), "weight": e.weight, "state": state,
        "ejected": Value::Array(out), "latency_us_max": slowest });
    for (key, _, of, _) in ENDPOINT {
        all[*key] = s.sum(of).into();
    }
    all
}

/// What a figure is called on the page, in the metrics, where it is found, and what it says; counters end in `_total`.
type Figure<T> = (&'static str, &'static str, fn(&T) -> u64, &'static str);

const SERVICE: &[Figure<OfService>] = &[
    ("active", "ezone_upstream_service_active", |s| s.active.get(), "Requests of a service under way"),
    ("waiting", "ezone_upstream_service_waiting", |s| s.waiting.get(), "Requests that wait for a place"),
    ("queued", "ezone_upstream_service_queued_total", |s| s.queued.get(), "Requests that had to wait for a place"),
    (
        "queue_refused",
        "ezone_upstream_service_queue_refused_total",
        |s| s.queue_refused.get(),
        "Requests without a place in time or in the queue",
    ),
    ("limited", "ezone_upstream_service_limited_total", |s| s.limited.get(), "Requests refused by the service's rate"),
    ("retries", "ezone_upstream_service_retries_total", |s| s.retries.get(), "Second attempts"),
    (
        "retries_refused",
        "ezone_upstream_service_retries_refused_total",
        |s| s.retries_refused.get(),
        "Second attempts that the budget refused",
    ),
    (
        "cores_in_panic",
        "ezone_upstream_service_cores_in_panic",
        |s| s.panic.get(),
        "Cores that use every endpoint because too few are usable",
    ),
    ("panicked", "ezone_upstream_service_panicked_total", |s| s.panicked.get(), "Requests sent so"),
    (
        "ejections_refused",
        "ezone_upstream_service_ejections_refused_total",
        |s| s.ejections_refused.get(),
        "Ejections that the cap did not allow",
    ),
];

const ENDPOINT: &[Figure<OfEndpoint>] = &[
    ("requests", "ezone_upstream_requests_total", |e| e.requests.get(), "Requests sent to an endpoint"),
    ("active", "ezone_upstream_active", |e| e.active.get(), "Requests that wait for an endpoint's answer"),
    ("open", "ezone_upstream_connections", |e| e.open.get(), "Connections to an endpoint"),
    ("idle", "ezone_upstream_connections_idle", |e| e.idle.get(), "Of these, idle"),
    ("connect_failures", "ezone_upstream_connect_failures_total", |e| e.connect_failures.get(), "Connects that failed"),
    ("resets", "ezone_upstream_resets_total", |e| e.resets.get(), "Exchanges that broke off"),
    ("timeouts", "ezone_upstream_timeouts_total", |e| e.timeouts.get(), "Answers that did not come in time"),
    (
        "bad_statuses",
        "ezone_upstream_bad_statuses_total",
        |e| e.bad_statuses.get(),
        "Answers with a status that counts as a failure",
    ),
    ("ejections", "ezone_upstream_ejections_total", |e| e.ejections.get(), "Ejections, by core"),
    ("cores_ejecting", "ezone_upstream_cores_ejecting", |e| e.ejected.get(), "Cores that leave an endpoint out"),
    (
        "cores_slow_starting",
        "ezone_upstream_cores_slow_starting",
        |e| e.ramping.get(),
        "Cores that give an endpoint less than its share",
    ),
];

/// The figures of every service and endpoint, in the format of the metrics page, of which they are the end.
pub fn metrics(upstreams: &Upstreams) -> String {
    let mut page = Page::default();
    let settings = upstreams.settings();
    for c in clusters(&settings) {
        let service = [("service", c.name)];
        for (_, name, of, help) in SERVICE {
            put(&mut page, name, help, &service, c.shown.sum(of));
        }
        for e in c.endpoints {
            let at = e.addr.to_string();
            let labels = [("service", c.name), ("endpoint", at.as_str())];
            put(&mut page, "ezone_upstream_healthy", "1: the active checks say so", &labels, e.healthy.into());
            put(&mut page, "ezone_upstream_draining", "1: nothing new is sent there", &labels, e.draining.into());
            for (_, name, of, help) in ENDPOINT {
                put(&mut page, name, help, &labels, e.shown.sum(of));
            }
            let counts = upstreams.report(c.name, e.addr).map(|r| r.counts);
            for ((_, outcome), n) in counts.into_iter().flat_map(|counts| Outcome::ALL.into_iter().zip(counts)) {
                let labels = [labels[0], labels[1], ("outcome", outcome)];
                page.counter("ezone_upstream_checks_total", "Active checks, by how they ended", &labels, n);
            }
        }
    }
    for (n, known) in upstreams.names() {
        let name = n.to_string();
        for (outcome, count) in [("good", known.good), ("failed", known.failed)] {
            let labels = [("name", name.as_str()), ("outcome", outcome)];
            page.counter("ezone_dns_lookups_total", "Lookups of names in endpoints, by outcome", &labels, count);
        }
        let help = "Addresses of a name in endpoints, as they are used";
        page.labelled("ezone_dns_addresses", help, &[("name", &name)], known.addresses.len() as u64);
    }
    page.text()
}

fn put(page: &mut Page, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: u64) {
    if name.ends_with("_total") {
        page.counter(name, help, labels, value);
    } else {
        page.labelled(name, help, labels, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::Service;

    #[test]
    fn the_page_says_who_is_out_why_and_for_how_long() {
        let mut service = Service::new("/a", &[([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into()]);
        service.endpoints[1].draining = true;
        let e = service.endpoints[0].shown.of(0);
        e.ejected.set(1);
        e.ejections.set(3);
        e.ejected_by.set(2);
        e.ejected_until_wall_ms.set(5000);
        e.latency_us.set(77);
        let settings = Settings { services: vec![service], ..Settings::default() };
        let page = page(&Upstreams::new(Arc::new(settings)).0, 2000);
        let of = &page["services"][0]["endpoints"];
        assert_eq!((&of[0]["state"], &of[1]["state"]), (&json!("ejected"), &json!("draining")));
        assert_eq!(of[0]["ejected"][0], json!({ "core": 0, "left_ms": 3000, "by": "latency", "times": 3 }));
        assert_eq!((&of[0]["latency_us_max"], &of[0]["address"]), (&json!(77), &json!("127.0.0.1:1")));
    }

    #[test]
    fn what_active_checks_find_is_shown_and_counted() {
        let settings =
            Settings { services: vec![Service::new("/a", &[([127, 0, 0, 1], 1).into()])], ..Settings::default() };
        let reports = Reports::default();
        let (upstreams, _) = Upstreams::new(Arc::new(settings));
        let upstreams = upstreams.with_reports(reports.clone());
        assert_eq!(page(&upstreams, 2000)["services"][0]["endpoints"][0]["check"], Value::Null);
        assert!(!metrics(&upstreams).contains("ezone_upstream_checks_total"));
        let last = Some((crate::control::health::Seen::new(Outcome::Status, "503"), 1500));
        let report = Report { healthy: false, in_a_row: 3, counts: [7, 0, 2, 0, 3, 0], last, changed_wall_ms: 1400 };
        reports.lock().unwrap().insert(("/a".into(), ([127, 0, 0, 1], 1).into()), report);
        let last = json!({ "outcome": "status", "why": "503", "in_a_row": 3, "at_wall_ms": 1500, "ago_ms": 500 });
        let all = json!({ "healthy": false, "changed_wall_ms": 1400, "last": last, "good": 7, "bad": 5 });
        assert_eq!(page(&upstreams, 2000)["services"][0]["endpoints"][0]["check"], all);
        let text = metrics(&upstreams);
        let line = "ezone_upstream_checks_total{service=\"/a\",endpoint=\"127.0.0.1:1\",outcome=\"late\"} 2";
        assert!(text.contains(line), "{line} not in:\n{text}");
    }

    #[test]
    fn every_figure_is_in_the_metrics_under_its_kind() {
        let settings =
            Settings { services: vec![Service::new("/a", &[([127, 0, 0, 1], 1).into()])], ..Settings::default() };
        let (upstreams, _) = Upstreams::new(Arc::new(settings));
        let text = metrics(&upstreams);
        for line in [
            "ezone_upstream_requests_total{service=\"/a\",endpoint=\"127.0.0.1:1\"} 0",
            "ezone_upstream_healthy{service=\"/a\",endpoint=\"127.0.0.1:1\"} 1",
            "ezone_upstream_service_active{service=\"/a\"} 0",
            "# TYPE ezone_upstream_service_retries_total counter",
            "# TYPE ezone_upstream_active gauge",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
    }
}
