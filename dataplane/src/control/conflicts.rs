//! `GET /conflicts` and `POST /conflicts/resolve` of a log: what was written on the wrong side of a change of owner, beside what
//! became of it, and an operator's word on it.
//!
//! An entry's id is `STREAM/ZONE/SEQ`, the place in that zone's log. A resolution is a row of the reserved table `.resolved`, written by the
//! shard's owner and replicated as any row: every zone shows the same.

use super::log::Shown;
use super::said;
use super::wall_ms;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use replog::commit::{Commit, Condition, Step};
use replog::port::{Answer, Ask, Refused};
use replog::store::{Entry, RESOLVED, Row, conflict_key};
use replog::uring::{Asked, Conflict};
use serde::Deserialize;
use serde_json::{Value, json};
use shardmap::Zone;
use shardmap::map::Map;
use shardmap::ownership::Kind;

/// Entries in one answer, at most and if nothing is said.
const MOST: usize = 1000;
const USUAL: usize = 100;
/// Entries that are asked for at a time: what is applied waits behind it, and each costs two lookups.
const PIECE: usize = 100;
/// Entries looked at for one answer that leaves settled ones out.
const LOOK_MOST: usize = 20_000;
/// Values in a list are cut to this; `?id=` shows them whole.
const SHORT_BYTES: usize = 120;

/// The pages.
pub fn routes() -> Router<Shown> {
    Router::new()
        .route(
            "/conflicts",
            get(async |State(s): State<Shown>, Query(q): Query<Vec<(String, String)>>| list(&s, &q).await),
        )
        .route("/conflicts/resolve", post(async |State(s): State<Shown>, body: Bytes| resolve(&s, &body).await))
}

/// The place of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Id {
    stream: u32,
    zone: Zone,
    seq: u64,
}

impl Id {
    fn of(text: &str, map: &Map) -> Result<Id, String> {
        let expected =
            || format!("{text:?} is no entry's id, expected STREAM/ZONE/SEQ, as `0/{}/17`", map.zones()[0].name);
        let mut parts = text.split('/');
        let (Some(stream), Some(zone), Some(seq), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(expected());
        };
        let zone = map.zone_named(zone).ok_or_else(|| format!("zone {zone:?} of {text:?} is not in the map"))?;
        let (Ok(stream), Ok(seq)) = (stream.parse(), seq.parse()) else { return Err(expected()) };
        Ok(Id { stream, zone, seq })
    }

    fn text(self, map: &Map) -> String {
        format!("{}/{}/{}", self.stream, map.zone_name(self.zone), self.seq)
    }
}

/// What of the ledger is wanted.
struct Wanted {
    after: Option<Id>,
    one: Option<Id>,
    most: usize,
    /// Settled ones too.
    all: bool,
}

fn wanted(map: &Map, query: &[(String, String)]) -> Result<Wanted, String> {
    let mut wanted = Wanted { after: None, one: None, most: USUAL, all: false };
    for (name, value) in query {
        match name.as_str() {
            "after" => wanted.after = Some(Id::of(value, map)?),
            "id" => wanted.one = Some(Id::of(value, map)?),
            "limit" => {
                let most = value.parse().ok().filter(|n| (1..=MOST).contains(n));
                wanted.most = most.ok_or_else(|| format!("limit={value}, expected 1 to {MOST}"))?;
            }
            "state" if value == "all" => wanted.all = true,
            "state" if value == "open" => wanted.all = false,
            "state" => return Err(format!("state={value}, expected open or all")),
            other => return Err(format!("unknown parameter {other:?}, expected after, id, limit, state")),
        }
    }
    Ok(wanted)
}

async fn list(shown: &Shown, query: &[(String, String)]) -> Response {
    let map = shown.map();
    let wanted = match wanted(&map, query) {
        Ok(wanted) => wanted,
        Err(why) => return said(StatusCode::BAD_REQUEST, &json!({ "error": why })),
    };
    if let Some(id) = wanted.one {
        return match one(shown, id).await {
            Some(found) => said(StatusCode::OK, &describe(&map, id.stream, &found, usize::MAX)),
            None => said(StatusCode::NOT_FOUND, &json!({ "error": none_such(&map, id) })),
        };
    }
    let (mut stream, mut after) = wanted.after.map_or((0, None), |id| (id.stream, Some((id.zone, id.seq))));
    let (mut found, mut looked, mut next) = (vec![], 0, None);
    // Streams that are not there end it.
    while let Some(piece) = shown.node.conflicts(stream, Asked { after, most: PIECE }).await {
        let last = piece.len() < PIECE;
        for conflict in piece {
            let row = &conflict.listed.row;
            after = Some((row.version.zone, row.seq));
            looked += 1;
            if wanted.all || conflict.resolved.is_none() {
                found.push(describe(&map, stream, &conflict, SHORT_BYTES));
            }
            if found.len() == wanted.most || looked == LOOK_MOST {
                next = Some(Id { stream, zone: row.version.zone, seq: row.seq }.text(&map));
                return said(StatusCode::OK, &json!({ "conflicts": found, "next": next }));
            }
        }
        if last {
            (stream, after) = (stream + 1, None);
        }
    }
    said(StatusCode::OK, &json!({ "conflicts": found, "next": next }))
}

async fn one(shown: &Shown, id: Id) -> Option<Conflict> {
    let after = id.seq.checked_sub(1).map(|seq| (id.zone, seq));
    let found = shown.node.conflicts(id.stream, Asked { after, most: 1 }).await?.into_iter().next()?;
    let row = &found.listed.row;
    ((row.version.zone, row.seq) == (id.zone, id.seq)).then_some(found)
}

fn none_such(map: &Map, id: Id) -> String {
    format!("{} is not in the conflict ledger of this zone; GET /conflicts?state=all lists what is", id.text(map))
}

/// One entry, values cut to `most` bytes.
fn describe(map: &Map, stream: u32, conflict: &Conflict, most: usize) -> Value {
    let Conflict { listed: Entry { table, key, row }, now, resolved } = conflict;
    let (zone, seq) = (row.version.zone, row.seq);
    let now = now.as_ref().filter(|r| !r.deleted || (r.version.zone, r.seq) == (zone, seq));
    let state = match now {
        Some(r) if (r.version.zone, r.seq) == (zone, seq) => "visible",
        Some(_) => "superseded",
        None => "gone",
    };
    let resolved = resolved.as_ref().and_then(|v| serde_json::from_slice::<Value>(v).ok());
    json!({
        "id": Id { stream, zone, seq }.text(map),
        "shard": row.shard.0,
        "table": String::from_utf8_lossy(table),
        "key": String::from_utf8_lossy(key),
        "state": state,
        "listed": image(map, row, most),
        "current": now.map(|r| image(map, r, most)),
        "reason": reason(map, row),
        "resolved": resolved,
    })
}

fn image(map: &Map, row: &Row, most: usize) -> Value {
    let v = &row.version;
    let cut = &row.value[..row.value.len().min(most)];
    let (name, value) = match std::str::from_utf8(&row.value) {
        Ok(text) => ("value", text.chars().take(most).collect::<String>()),
        Err(_) => ("value_hex", cut.iter().map(|b| format!("{b:02x}")).collect()),
    };
    let mut image = json!({
        "zone": map.zone_name(v.zone), "seq": row.seq, "owner_epoch": v.owner_epoch.0, "hlc": v.hlc.0,
        "written_ms": v.hlc.ms(), "deleted": row.deleted, "bytes": row.value.len(),
    });
    if !row.deleted {
        image[name] = value.into();
    }
    image
}

/// Why it is listed: behind which cut it was written.
fn reason(map: &Map, row: &Row) -> String {
    let (zone, written) = (row.version.zone, row.version.owner_epoch);
    let entries = map.history(row.shard).map(|h| h.entries()).unwrap_or_default();
    let mut later = entries.iter().filter(|e| e.kind == Kind::Own && e.owner_epoch > written && e.owner != Some(zone));
    let whose = map.zone_name(zone);
    match later.find_map(|e| Some((e, e.cut.get(zone).filter(|cut| row.seq > *cut)?))) {
        Some((e, cut)) => format!(
            "zone {whose} wrote it under its ownership {written} of shard {}, behind seq {cut}, which is all that zone {} had of that log \
             when it took the shard over at epoch {}",
            row.shard,
            e.owner.map_or("nobody", |z| map.zone_name(z)),
            e.owner_epoch
        ),
        None => format!("zone {whose} wrote it under an ownership ({written}) that the map names no more"),
    }
}

/// What an operator says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    id: String,
    keep: Keep,
    by: String,
    #[serde(default)]
    note: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Keep {
    /// The row stays as it is.
    Current,
    /// What was listed is written again, as a new write of the shard's owner.
    Listed,
}

/// 200: done, and on its way to the other zones; 421: ask the owner's log; 404, 400, 409, 503: the error says why nothing was done.
async fn resolve(shown: &Shown, body: &[u8]) -> Response {
    let map = shown.map();
    let wrong = |status, why: String| said(status, &json!({ "error": why }));
    let ask: Resolve = match serde_json::from_slice(body) {
        Ok(ask) => ask,
        Err(e) => {
            let expected = r#"expected {"id": "0/sh/17", "keep": "current" or "listed", "by": "who"}"#;
            return wrong(StatusCode::BAD_REQUEST, format!("{e}; {expected}"));
        }
    };
    if ask.by.is_empty() || ask.by.len() + ask.note.len() > 4096 {
        return wrong(
            StatusCode::BAD_REQUEST,
            "\"by\" is who decides: 1 byte at least, with \"note\" 4096 at most".into(),
        );
    }
    let id = match Id::of(&ask.id, &map) {
        Ok(id) => id,
        Err(why) => return wrong(StatusCode::BAD_REQUEST, why),
    };
    let Some(found) = one(shown, id).await else { return wrong(StatusCode::NOT_FOUND, none_such(&map, id)) };
    if let Some(before) = &found.resolved {
        let why = format!("{} is resolved already: {}", ask.id, String::from_utf8_lossy(before));
        return wrong(StatusCode::CONFLICT, why);
    }
    let row = &found.listed.row;
    // One transaction: the image, if it is to be the row, and the word; of two operators one is first.
    let (table, key) = (found.listed.table.clone(), Some(found.listed.key.clone()));
    let image = (!row.deleted).then(|| row.value.clone());
    let again = (ask.keep == Keep::Listed).then(|| Step { table, key, value: image, only: Condition::Any });
    let keep = if ask.keep == Keep::Listed { "listed" } else { "current" };
    let word = json!({ "keep": keep, "by": ask.by, "note": ask.note, "at_ms": wall_ms() }).to_string();
    let (key, value) = (Some(conflict_key(id.zone, id.seq)), Some(Bytes::from(word)));
    let mark = Step { table: Bytes::from_static(RESOLVED), key, value, only: Condition::Absent };
    let steps = again.into_iter().chain([mark]).collect();
    let commit = Commit { shard: row.shard, map_epoch: map.epoch(), steps, once: None, remote_ms: None };
    match shown.node.ask(Ask::Commit(commit)).await {
        Answer::Committed(_) => {}
        Answer::Refused(why) => return refused(&map, &why),
        other => return wrong(StatusCode::INTERNAL_SERVER_ERROR, format!("the write was answered {other:?}")),
    }
    let done = one(shown, id).await.unwrap_or(found);
    said(StatusCode::OK, &describe(&map, id.stream, &done, usize::MAX))
}

fn refused(map: &Map, why: &Refused) -> Response {
    let (status, text) = match why {
        Refused::NotOwner { owner, .. } => (
            StatusCode::MISDIRECTED_REQUEST,
            match owner {
                Some(zone) => format!("zone {} owns the shard: resolve it at that zone's log", map.zone_name(*zone)),
                None => "nobody owns the shard now: wait until a move or a take-over is over".into(),
            },
        ),
        Refused::Locked => {
            (StatusCode::LOCKED, "the row is locked until the lost zone is back, or an operator unlocks it".into())
        }
        Refused::Unmet { .. } => (StatusCode::CONFLICT, "somebody has resolved it meanwhile".into()),
        other => (StatusCode::SERVICE_UNAVAILABLE, format!("nothing was done: {other:?}; try again")),
    };
    said(status, &json!({ "error": text }))
}

#[cfg(test)]
#[path = "conflicts_tests.rs"]
mod tests;
