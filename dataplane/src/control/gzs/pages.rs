//! The service's HTTP: shapes and routes are in `gzs::api`.

use super::auth::{Barred, Caller};
use super::desk::{Denied, Desk, Leader};
use crate::control::metrics::Page;
use crate::control::reach::LEADER;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use gzs::api::{Fault, FencesAsk, NodeTold, OpAsk, Role, What};
use gzs::fences;
use gzs::limits::TEXT_BYTES_MAX;
use gzs::service::{Refused, unhex};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use shardmap::geojson;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::Semaphore;

/// The longest that a poll for a map waits.
const WAIT_MS_MAX: u64 = 60_000;
/// A body: a log with 1,024 streams of 15 zones tells half of it.
const BODY_BYTES_MAX: usize = 4 << 20;
/// A body with fences: 600,000 points, as maps are drawn.
const FENCES_BYTES_MAX: usize = 16 << 20;
/// Fences that are judged at a time: each takes a processor for a moment.
static JUDGING: Semaphore = Semaphore::const_new(1);
/// Changes of one answer.
const AUDIT_MAX: usize = 1000;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const CONSOLE: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("../../../../shardmap/gzs/console/index.html")),
    ("/console.js", "text/javascript; charset=utf-8", include_str!("../../../../shardmap/gzs/console/console.js")),
    ("/console.css", "text/css; charset=utf-8", include_str!("../../../../shardmap/gzs/console/console.css")),
    ("/openapi.json", "application/json", include_str!("../../../../shardmap/gzs/openapi.json")),
];

type Shared = State<Arc<Desk>>;
type Asked<T> = Result<Query<T>, QueryRejection>;
type Body = Result<Bytes, BytesRejection>;

/// Every page.
pub fn pages(desk: Arc<Desk>) -> Router {
    let mut pages = Router::new()
        .route("/v1/map", get(map))
        .route("/v1/nodes", post(nodes))
        .route("/v1/state", get(state))
        .route("/v1/fences", get(fences_page))
        .route("/v1/fences/preview", post(preview).layer(DefaultBodyLimit::max(FENCES_BYTES_MAX)))
        .route("/v1/ops", get(ops).post(begin).layer(DefaultBodyLimit::max(FENCES_BYTES_MAX)))
        .route("/v1/ops/{id}", get(op))
        .route("/v1/ops/{id}/abort", post(abort))
        .route("/v1/ops/{id}/resume", post(resume))
        .route("/v1/audit", get(audit))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .method_not_allowed_fallback(async || {
            fault(StatusCode::METHOD_NOT_ALLOWED, "not by this method; /openapi.json names all")
        })
        .fallback(async || fault(StatusCode::NOT_FOUND, "there is no such page; /openapi.json names all"));
    for (path, kind, text) in CONSOLE {
        pages = pages.route(path, get(async move || shown(kind, text)));
    }
    let pages = pages.layer(from_fn_with_state(desk.clone(), by_the_known));
    let pages = pages.layer(from_fn_with_state(desk.clone(), by_the_leader));
    pages.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(desk)
}

/// What a stranger sends is not read, however long: he is told so at once.
async fn by_the_known(State(desk): Shared, request: Request, next: Next) -> Response {
    if request.method() == Method::POST
        && let Err(answer) = desk.caller(request.headers(), &[Role::Node, Role::Read])
    {
        return *answer;
    }
    next.run(request).await
}

/// Of several services one leads: the others say where it is, and send a browser there.
async fn by_the_leader(State(desk): Shared, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if desk.leads() || !(path.starts_with("/v1/") || path == "/readyz" || path == "/") {
        return next.run(request).await;
    }
    match (&*desk.leader().borrow(), path) {
        (Leader::Elsewhere(Some(who)), "/") => Redirect::temporary(&who.url).into_response(),
        (Leader::Elsewhere(_) | Leader::Here, _) => desk.standby(),
    }
}

fn shown(kind: &'static str, text: &'static str) -> Response {
    let nosniff = HeaderName::from_static("x-content-type-options");
    let policy = header::CONTENT_SECURITY_POLICY;
    ([(header::CONTENT_TYPE, kind), (policy, POLICY), (nosniff, "nosniff")], text).into_response()
}

fn fault(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(Fault { error: error.into(), reasons: vec![] })).into_response()
}

impl Desk {
    /// The caller, if one of these roles is his or lies below it; else the answer.
    fn caller(&self, headers: &HeaderMap, needs: &[Role]) -> Result<Caller, Box<Response>> {
        self.callers().admit(headers, needs).map_err(|barred| {
            self.counts.refused.fetch_add(1, Relaxed);
            let told = |role: Role| json!(role).as_str().unwrap_or_default().to_owned();
            Box::new(match barred {
                Barred::Unknown => {
                    let mut answer =
                        fault(StatusCode::UNAUTHORIZED, "no token that is known: expected `authorization: Bearer ..`");
                    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                    answer
                }
                Barred::Role { has, needs } => fault(
                    StatusCode::FORBIDDEN,
                    format!("this token has the role {}, expected {}", told(has), told(needs)),
                ),
            })
        })
    }

    /// What a service answers that does not lead.
    fn standby(&self) -> Response {
        let who = match &*self.leader().borrow() {
            Leader::Elsewhere(Some(who)) if !who.url.is_empty() => Some(who.clone()),
            Leader::Elsewhere(_) | Leader::Here => None,
        };
        let why = match &who {
            Some(who) => format!("this service stands by: {} leads, at {}", who.name, who.url),
            None => {
                "this service stands by, and no leader is known: one is elected within seconds, if etcd can be reached"
                    .into()
            }
        };
        let mut answer = fault(StatusCode::SERVICE_UNAVAILABLE, why);
        let url = who.and_then(|who| HeaderValue::from_str(&who.url).ok());
        answer.headers_mut().insert(LEADER, url.unwrap_or(HeaderValue::from_static("")));
        answer
    }

    /// The JSON in a body.
    fn read<T: DeserializeOwned>(&self, body: Body, what: &str) -> Result<T, Box<Response>> {
        let body = body.map_err(|e| {
            self.counts.refused.fetch_add(1, Relaxed);
            let most = format!("a body has at most {BODY_BYTES_MAX} bytes, one with fences {FENCES_BYTES_MAX}");
            Box::new(fault(e.status(), format!("{}; {most}", e.body_text())))
        })?;
        serde_json::from_slice(&body).map_err(|e| Box::new(self.wrong(format!("not {what}: {e}"))))
    }

    fn wrong_fences(&self, reasons: Vec<String>) -> Response {
        self.counts.refused.fetch_add(1, Relaxed);
        let error = "these fences cannot be the map's".to_owned();
        (StatusCode::BAD_REQUEST, Json(Fault { error, reasons })).into_response()
    }

    fn wrong(&self, error: impl Into<String>) -> Response {
        self.counts.refused.fetch_add(1, Relaxed);
        fault(StatusCode::BAD_REQUEST, error)
    }
}

#[derive(Deserialize)]
struct Poll {
    #[serde(default)]
    after: u64,
    digest: Option<String>,
    #[serde(default)]
    wait_ms: u64,
}

async fn map(State(desk): Shared, headers: HeaderMap, poll: Asked<Poll>) -> Response {
    let caller = match desk.caller(&headers, &[Role::Node, Role::Read]) {
        Ok(caller) => caller,
        Err(answer) => return *answer,
    };
    let Query(poll) = match poll {
        Ok(poll) => poll,
        Err(e) => return desk.wrong(e.body_text()),
    };
    let read = |text: &str| unhex(text).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let digest = match poll.digest.as_deref().map(read) {
        Some(None) => return desk.wrong("digest: expected 64 hexadecimal digits"),
        Some(digest) => digest,
        None => None,
    };
    let by = headers.get("x-ezone-node").and_then(|v| v.to_str().ok()).unwrap_or("a caller of /v1/map");
    let by: String = by.chars().take(TEXT_BYTES_MAX / 4).collect();
    // Who may only read cannot stop the service by what he says that he has.
    if caller.role != Role::Read && caller.role != Role::Operate {
        let wants_reload = desk.with(|service, _| {
            service.on_shown(&by, poll.after, digest);
            service.wants_reload()
        });
        // What it showed may stop the service, once the store was asked.
        if wants_reload {
            desk.settled().await;
            if desk.see(|service, _| service.wants_reload()) {
                return fault(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "a map was shown that is not known here, and the store, which may know it, does not answer: ask again; /readyz tells when it does",
                );
            }
        }
    }
    if let Some(why) = desk.see(|service, _| service.stopped().map(str::to_owned)) {
        return fault(StatusCode::CONFLICT, why);
    }
    let (mut maps, mut leader) = (desk.maps(), desk.leader());
    let newer = maps.wait_for(|issued| issued.map.epoch().0 > poll.after);
    let issued = tokio::select! {
        newer = newer => newer.ok().map(|issued| issued.clone()),
        // Whoever leads next has the next map.
        _ = leader.wait_for(|leader| *leader != Leader::Here) => return desk.standby(),
        () = tokio::time::sleep(Duration::from_millis(poll.wait_ms.min(WAIT_MS_MAX))) => None,
    };
    let Some(issued) = issued else { return StatusCode::NO_CONTENT.into_response() };
    desk.counts.maps.fetch_add(1, Relaxed);
    let bytes = desk.bytes(&issued, poll.after, digest.is_some());
    ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}

async fn nodes(State(desk): Shared, headers: HeaderMap, body: Body) -> Response {
    if let Err(answer) = desk.caller(&headers, &[Role::Node]) {
        return *answer;
    }
    let told: NodeTold = match desk.read(body, "what a node tells") {
        Ok(told) => told,
        Err(answer) => return *answer,
    };
    match desk.with(|service, now| service.on_told(told, now)) {
        Ok(asked) => {
            desk.counts.told.fetch_add(1, Relaxed);
            Json(asked).into_response()
        }
        Err(why) => desk.wrong(why),
    }
}

async fn state(State(desk): Shared, headers: HeaderMap) -> Response {
    match desk.caller(&headers, &[Role::Read]) {
        Ok(_) => Json(desk.see(|service, now| service.state(now))).into_response(),
        Err(answer) => *answer,
    }
}

async fn fences_page(State(desk): Shared, headers: HeaderMap) -> Response {
    match desk.caller(&headers, &[Role::Read]) {
        Ok(_) => Json(geojson::write(desk.newest().map.fences().list())).into_response(),
        Err(answer) => *answer,
    }
}

async fn preview(State(desk): Shared, headers: HeaderMap, body: Body) -> Response {
    if let Err(answer) = desk.caller(&headers, &[Role::Read]) {
        return *answer;
    }
    let ask: FencesAsk = match desk.read(body, "fences") {
        Ok(ask) => ask,
        Err(answer) => return *answer,
    };
    let map = desk.newest().map.clone();
    let shown = judged(move || {
        let fences = fences::prepare(&map, &ask.geojson, ask.datum.as_deref())?;
        fences.view(&map, &ask).map_err(|why| vec![why])
    });
    match shown.await {
        Ok(shown) => Json(shown).into_response(),
        Err(reasons) => desk.wrong_fences(reasons),
    }
}

/// What takes a processor for a moment is done apart, one at a time.
async fn judged<T: Send + 'static>(
    judge: impl FnOnce() -> Result<T, Vec<String>> + Send + 'static,
) -> Result<T, Vec<String>> {
    let turn = JUDGING.acquire().await;
    // With it: who asked may be gone before it is done.
    let judge = move || {
        let _turn = turn;
        judge()
    };
    let done = tokio::task::spawn_blocking(judge).await;
    done.unwrap_or_else(|e| Err(vec![format!("judging them ended: {e}")]))
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    all: bool,
}

async fn ops(State(desk): Shared, headers: HeaderMap, which: Asked<Which>) -> Response {
    if let Err(answer) = desk.caller(&headers, &[Role::Read]) {
        return *answer;
    }
    match which {
        Ok(Query(which)) => Json(desk.see(|service, _| service.ops(which.all))).into_response(),
        Err(e) => desk.wrong(e.body_text()),
    }
}

async fn op(State(desk): Shared, headers: HeaderMap, Path(id): Path<String>) -> Response {
    if let Err(answer) = desk.caller(&headers, &[Role::Read]) {
        return *answer;
    }
    let Ok(id) = id.parse() else { return unknown(&id) };
    let found = desk.see(|service, _| service.op(id).map(|op| service.op_view(op)));
    found.map_or_else(|| unknown(&id.to_string()), |view| Json(view).into_response())
}

fn unknown(id: &str) -> Response {
    let id: String = id.chars().take(20).collect();
    fault(StatusCode::NOT_FOUND, format!("no operation {id}; `ezctl op list --all` lists them"))
}

async fn begin(State(desk): Shared, headers: HeaderMap, body: Body) -> Response {
    let caller = match desk.caller(&headers, &[Role::Operate]) {
        Ok(caller) => caller,
        Err(answer) => return *answer,
    };
    let mut ask: OpAsk = match desk.read(body, "an operation") {
        Ok(ask) => ask,
        Err(answer) => return *answer,
    };
    let final_word = match &ask.what {
        What::Unlock { .. } => Some("unlock"),
        What::RemoveZone { .. } => Some("remove_zone"),
        _ => None,
    };
    if (ask.force || final_word.is_some()) && caller.role < Role::Admin {
        let what = final_word.filter(|_| !ask.force).unwrap_or("force");
        return fault(StatusCode::FORBIDDEN, format!("{what} needs the role admin"));
    }
    ask.by = named(&caller, &ask.by);
    if let What::Fences { .. } = &ask.what {
        return begin_edit(&desk, ask).await;
    }
    answer(&desk, desk.change(move |service, now| service.begin(&ask, now), view).await)
}

async fn begin_edit(desk: &Desk, ask: OpAsk) -> Response {
    let map = desk.newest().map.clone();
    let prepared = judged(move || match &ask.what {
        What::Fences { geojson, datum, .. } => Ok((fences::prepare(&map, geojson, datum.as_deref())?, ask)),
        other => Err(vec![format!("{other:?} is no fence edit")]),
    });
    match prepared.await {
        Ok((fences, ask)) => {
            answer(desk, desk.change(move |service, now| service.begin_edit(&ask, &fences, now), view).await)
        }
        Err(reasons) => desk.wrong_fences(reasons),
    }
}

/// Who asks, as the audit says it: the token's name, which cannot be chosen, before the one that he gave himself.
fn named(caller: &Caller, by: &str) -> String {
    match (caller.name.as_str(), by) {
        ("", "") => "someone".into(),
        ("", by) => by.to_owned(),
        (name, "") => name.to_owned(),
        (name, by) => format!("{name} ({by})"),
    }
}

#[derive(Deserialize)]
struct By {
    #[serde(default)]
    by: String,
}

async fn abort(State(desk): Shared, headers: HeaderMap, Path(id): Path<String>, by: Asked<By>) -> Response {
    let Ok(id) = id.parse() else { return unknown(&id) };
    let by = match by {
        Ok(Query(by)) => by,
        Err(e) => return desk.wrong(e.body_text()),
    };
    match desk.caller(&headers, &[Role::Operate]) {
        Ok(caller) => {
            let by = named(&caller, &by.by);
            answer(&desk, desk.change(move |service, now| service.abort(id, &by, now), view).await)
        }
        Err(answer) => *answer,
    }
}

async fn resume(State(desk): Shared, headers: HeaderMap, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse() else { return unknown(&id) };
    match desk.caller(&headers, &[Role::Operate]) {
        Ok(_) => answer(&desk, desk.change(move |service, now| service.resume(id, now), view).await),
        Err(answer) => *answer,
    }
}

fn view(service: &gzs::service::Service, id: u64) -> Option<gzs::api::OpView> {
    service.op(id).map(|op| service.op_view(op))
}

fn answer(desk: &Desk, done: Result<Option<gzs::api::OpView>, Denied>) -> Response {
    match done {
        Ok(Some(view)) => Json(view).into_response(),
        Ok(None) => fault(StatusCode::INTERNAL_SERVER_ERROR, "the operation is stored and not known: ask for /v1/ops"),
        Err(Denied::Refused(Refused::Ask(why))) => desk.wrong(why),
        Err(Denied::Refused(Refused::State(why))) => fault(StatusCode::CONFLICT, why),
        Err(Denied::Refused(Refused::Unknown(id))) => unknown(&id.to_string()),
        Err(Denied::Refused(Refused::Preflight(reasons))) => {
            let error = "the preflight speaks against it; an admin may force it".to_owned();
            (StatusCode::CONFLICT, Json(Fault { error, reasons })).into_response()
        }
        Err(Denied::Standby) => desk.standby(),
        Err(Denied::Store(why)) => fault(StatusCode::SERVICE_UNAVAILABLE, format!("it could not be stored: {why}")),
    }
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn audit(State(desk): Shared, headers: HeaderMap, after: Asked<After>) -> Response {
    if let Err(answer) = desk.caller(&headers, &[Role::Read]) {
        return *answer;
    }
    let Query(after) = match after {
        Ok(after) => after,
        Err(e) => return desk.wrong(e.body_text()),
    };
    match desk.audit(after.after, AUDIT_MAX).await {
        Ok(all) => Json(all).into_response(),
        Err(e) => fault(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
    }
}

async fn ready(State(desk): Shared) -> Response {
    match desk.see(|service, _| service.stopped().map(str::to_owned)) {
        None => "ready\n".into_response(),
        Some(why) => fault(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

async fn metrics(State(desk): Shared, headers: HeaderMap) -> Response {
    if let Err(answer) = desk.caller(&headers, &[Role::Read]) {
        return *answer;
    }
    let state = desk.see(|service, now| service.state(now));
    let mut page = Page::default();
    page.gauge("ezone_gzs_map_epoch", "The newest map", state.epoch);
    page.gauge(
        "ezone_gzs_stopped",
        "1: no map is issued, since someone goes by a map that was not made here",
        u64::from(state.stopped.is_some()),
    );
    page.gauge(
        "ezone_gzs_leads",
        "1: this service leads; 0: another one does, which alone knows of nodes",
        u64::from(desk.leads()),
    );
    let running = state.ops.iter().filter(|op| op.state == "running").count();
    page.gauge("ezone_gzs_operations_running", "Operations under way", running as u64);
    page.gauge("ezone_gzs_subscribers", "Polls that wait for a newer map", desk.subscribers());
    for zone in &state.zones {
        let labels = [("zone", zone.name.as_str())];
        page.labelled("ezone_gzs_zone_shards", "Shards that the zone owns", &labels, zone.owns);
        page.labelled("ezone_gzs_zone_up", "1: its log was heard a moment ago", &labels, u64::from(zone.state == "up"));
        page.labelled("ezone_gzs_zone_nodes", "Nodes that are known", &labels, zone.nodes.len() as u64);
    }
    let c = &desk.counts;
    page.counter("ezone_gzs_tellings_total", "Tellings of nodes", &[], c.told.load(Relaxed));
    page.counter("ezone_gzs_maps_total", "Maps that were handed out", &[], c.maps.load(Relaxed));
    page.counter(
        "ezone_gzs_refused_total",
        "Requests of unknown callers, without the role, or without sense",
        &[],
        c.refused.load(Relaxed),
    );
    page.counter("ezone_gzs_unstored_total", "Changes that the store did not take", &[], c.unstored.load(Relaxed));
    page.text().into_response()
}
