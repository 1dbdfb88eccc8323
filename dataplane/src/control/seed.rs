//! `POST /seed?zone=NAME&stream=N` of a log: an operator has this zone's copy of another zone's stream brought up by a snapshot.

use super::log::Shown;
use super::metrics::Page;
use super::report::{SeedStatus, StreamStatus};
use super::said;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use replog::uring::node::StreamFigures;
use replog::uring::{SeedFigures, Way};
use serde_json::json;
use shardmap::Zone;
use shardmap::map::Map;

/// The page.
pub fn routes() -> Router<Shown> {
    Router::new()
        .route("/seed", post(async |State(s): State<Shown>, Query(q): Query<Vec<(String, String)>>| seed(&s, &q).await))
}

/// 202: it has begun, `GET /status` tells how it goes on; 409: why it does not; 400: what was asked for is not there.
async fn seed(shown: &Shown, query: &[(String, String)]) -> Response {
    let (zone, stream) = match asked(&shown.map(), query) {
        Ok(asked) => asked,
        Err(why) => return said(StatusCode::BAD_REQUEST, &json!({ "error": why })),
    };
    match shown.node.seed(zone, stream).await {
        Ok(text) => said(StatusCode::ACCEPTED, &json!({ "state": text })),
        Err(why) => said(StatusCode::CONFLICT, &json!({ "error": why })),
    }
}

fn asked(map: &Map, query: &[(String, String)]) -> Result<(Zone, u32), String> {
    let usage = "expected /seed?zone=NAME&stream=N, of the zone whose log is in a gap here";
    let (mut zone, mut stream) = (None, None);
    for (name, value) in query {
        match name.as_str() {
            "zone" => {
                zone =
                    Some(map.zone_named(value).ok_or_else(|| format!("zone \"{value}\" is not in the map; {usage}"))?)
            }
            "stream" => {
                stream = Some(value.parse().map_err(|_| format!("\"{value}\" is no stream's number; {usage}"))?)
            }
            other => return Err(format!("unknown parameter \"{other}\"; {usage}")),
        }
    }
    zone.zip(stream).ok_or_else(|| usage.to_owned())
}

/// The seedings of one stream.
pub fn statuses(figures: &StreamFigures, name: impl Fn(Zone) -> String) -> Vec<SeedStatus> {
    let one = |((way, zone), f): (&(Way, Zone), &SeedFigures)| SeedStatus {
        way: match way {
            Way::Lent => "lent",
            Way::Taken => "taken",
        }
        .into(),
        zone: name(*zone),
        state: f.state.clone(),
        is_running: f.is_running,
        rows: f.rows,
        bytes: f.bytes,
        done: f.done,
        failed: f.failed,
    };
    figures.seeds.iter().map(one).collect()
}

/// What an operator has to know of one stream.
pub fn metrics(page: &mut Page, stream: &StreamStatus) {
    let number = stream.stream.to_string();
    for zone in stream.incoming.keys() {
        let labels = [("stream", number.as_str()), ("zone", zone)];
        page.labelled(
            "ezone_log_needs_operator",
            "1: another zone's log cannot go on here; /status says why",
            &labels,
            1,
        );
    }
    for s in &stream.seeds {
        let labels = [("stream", number.as_str()), ("zone", &s.zone), ("way", &s.way)];
        let all = [
            ("ezone_log_seed_running", "1: a snapshot is under way", u64::from(s.is_running)),
            ("ezone_log_seed_rows", "Rows of the newest snapshot so far", s.rows),
            ("ezone_log_seed_bytes", "Bytes of the newest snapshot so far", s.bytes),
            ("ezone_log_seeds_done", "Snapshots that ended well since the start", s.done),
            ("ezone_log_seeds_failed", "Snapshots that failed since the start", s.failed),
        ];
        all.into_iter().for_each(|(name, help, value)| page.labelled(name, help, &labels, value));
    }
}
