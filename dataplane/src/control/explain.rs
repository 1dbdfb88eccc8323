//! `/explain`: what this router would do with a request, and why. The router's own code decides: `shardmap::explain` asks the
//! map for each part of the tag, `router::trial` gives the request to a core that nobody drives.

use super::admin::Shown;
use crate::router::stats::Adopted;
use crate::router::trial::{Trial, Went, record_key, trial};
use crate::router::{Endpoint, Now, Settings, Side};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use shardmap::explain::{Explained, by_name, explain};
use shardmap::map::Map;
use shardmap::ownership::Kind;

/// Bytes of a request that is asked about.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// A request to be explained.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    #[serde(default = "get_method")]
    method: String,
    path: String,
    /// Names and values.
    #[serde(default)]
    headers: Vec<(String, String)>,
    /// As if another zone's router had sent it: trusted.
    #[serde(default)]
    peer: bool,
}

fn get_method() -> String {
    "GET".into()
}

/// `POST /explain` with `{"path": .., "method": .., "headers": [[name, value], ..], "peer": false}`, or
/// `GET /explain?path=..&method=..&peer=true&x-shard=..`, where every other parameter is a header.
pub fn routes() -> Router<Shown> {
    Router::new().route(
        "/explain",
        get(async |State(s): State<Shown>, Query(all): Query<Vec<(String, String)>>| answer(&s, &of_query(all)))
            .post(async |State(s): State<Shown>, Json(ask): Json<Ask>| answer(&s, &ask)),
    )
}

fn of_query(all: Vec<(String, String)>) -> Ask {
    let mut ask = Ask { method: get_method(), path: "/".into(), headers: vec![], peer: false };
    for (name, value) in all {
        match name.as_str() {
            "path" => ask.path = value,
            "method" => ask.method = value,
            "peer" => ask.peer = value == "true",
            _ => ask.headers.push((name, value)),
        }
    }
    ask
}

fn answer(shown: &Shown, ask: &Ask) -> (StatusCode, Json<Value>) {
    let adopted = shown.shared.adopted(0);
    match explained(&adopted, ask) {
        Ok(value) => (StatusCode::OK, Json(value)),
        Err((status, error)) => (status, Json(json!({ "error": error }))),
    }
}

/// The request as bytes; a name or value that would be two is refused.
fn request(ask: &Ask) -> Result<Vec<u8>, String> {
    let texts = [&ask.method, &ask.path].into_iter().chain(ask.headers.iter().flat_map(|(k, v)| [k, v]));
    if let Some(bad) = texts.clone().find(|t| t.contains(['\r', '\n', '\0'])) {
        return Err(format!("{bad:?}: a line ends within it"));
    }
    let mut out = format!("{} {} HTTP/1.1\r\n", ask.method, ask.path);
    if !ask.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        out += "host: explain\r\n";
    }
    for (name, value) in &ask.headers {
        out += &format!("{name}: {value}\r\n");
    }
    out += "\r\n";
    if out.len() > REQUEST_BYTES_MAX {
        return Err(format!("a request of {} bytes, at most {REQUEST_BYTES_MAX}", out.len()));
    }
    Ok(out.into_bytes())
}

fn explained(adopted: &Adopted, ask: &Ask) -> Result<Value, (StatusCode, String)> {
    let (Some(settings), Some(map)) = (&adopted.settings, &adopted.map) else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "the router has no map yet".into()));
    };
    let whole = map.whole().ok_or((StatusCode::NOT_IMPLEMENTED, "a map that explains nothing".into()))?;
    let request = request(ask).map_err(|e| (StatusCode::BAD_REQUEST, e))?;
    let wall_ms = super::wall_ms();
    let header = ask.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-shard")).map(|(_, v)| v.as_bytes());
    let tag = explain(whole, header, record_key(&ask.path).map(str::as_bytes), ask.peer, wall_ms);
    let side = if ask.peer { Side::Peer } else { Side::Client };
    let tried = trial(settings, map, side, &request, Now { ms: 1, us: 1000, wall_ms });
    let shard = tried.shard.or(tag.route.map(|r| r.shard));
    let entry = shard.and_then(|s| whole.view(s));
    let name = |zone: Option<shardmap::Zone>| zone.map(|z| whole.zone_name(z).to_string());
    let mut all = json!({
        "map_epoch": whole.epoch().0,
        "this_zone": settings.name(settings.zone),
        "tag": tag_json(&tag),
        "shard": shard.map(|s| s.0),
        "owner": entry.and_then(|e| name(e.owner)),
        "kind": entry.map(|e| kind_name(e.kind)),
        "moving_to": entry.and_then(|e| name(e.to)),
        "owner_epoch": entry.map(|e| e.owner_epoch.0),
        "service": tried.service,
    });
    let fields = all.as_object_mut().expect("made as an object above");
    fields.extend(decision(settings, whole, &tried, entry.and_then(|e| e.owner)));
    Ok(all)
}

fn tag_json(tag: &Explained) -> Value {
    let parts: Vec<Value> = tag
        .parts
        .iter()
        .map(|p| json!({"text": p.text, "shard": p.shard.map(|s| s.0), "verdict": p.verdict.name()}))
        .collect();
    json!({
        "decided_by": tag.route.map(|r| by_name(r.by)),
        "parts": parts,
        "fence": tag.fence.as_ref().map(|(name, _)| name),
        "how": tag.fence.as_ref().map(|(_, how)| how.name()),
    })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Own => "own",
        Kind::Moving => "moving",
        Kind::Lost => "lost",
        Kind::Unlock => "unlock",
    }
}

/// `decision`, `why`, `endpoints`, `chosen`, `answer`.
fn decision(
    settings: &Settings,
    map: &Map,
    tried: &Trial,
    owner: Option<shardmap::Zone>,
) -> serde_json::Map<String, Value> {
    let zone = owner.map_or("none", |z| map.zone_name(z));
    let forward = tried.service == "forward";
    let endpoints: &[Endpoint] = if forward {
        settings.peers.iter().find(|p| Some(p.zone) == owner).map_or(&[], |p| p.endpoints.as_slice())
    } else {
        settings.services.iter().find(|s| s.name == tried.service).map_or(&[], |s| s.endpoints.as_slice())
    };
    let state = |e: &Endpoint| {
        json!({"at": e.addr, "name": e.name.as_deref(), "weight": e.weight, "healthy": e.healthy, "draining": e.draining, "tls": e.tls.is_some(),
            "chosen": tried.went == Went::Upstream(e.addr)})
    };
    let (decision, why, answer) = match &tried.went {
        Went::Upstream(_) if forward => ("forward", format!("zone {zone} owns the shard"), None),
        Went::Upstream(_) => ("serve", format!("the service {} of this zone", tried.service), None),
        Went::Log(port) => ("records", format!("the record store: log core {port} of this zone"), None),
        Went::Held => ("hold", "the shard has no settled owner: held until a newer map, bounded".into(), None),
        Went::Waits => ("wait", "no endpoint takes it at once".into(), None),
        Went::Answered { status, body } => {
            let body: Value = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
            let error = body["error"].as_str().unwrap_or("this router answers by itself").to_string();
            ("refuse", error, Some(json!({"status": status, "body": body})))
        }
    };
    let fields = json!({
        "decision": decision, "why": why, "answer": answer,
        "endpoints": endpoints.iter().map(state).collect::<Vec<_>>(),
    });
    match fields {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    }
}
