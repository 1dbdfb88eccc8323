//! What an operator does to links: `GET /links`, `POST /links/pause`, `/links/resume`, `/links/throttle`, `/links/clear` of a log.
//!
//! What was paused or throttled stays so over a restart: it is kept in `links.json` of the data directory. The limits by time of day are the
//! configuration's; of both the lower one holds.

use super::durable::replace;
use super::log::Shown;
use super::metrics::{Kind, Page};
use super::report::{LinkStatus, StopStatus, StreamStatus};
use super::said;
use crate::config::{Config, file};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use replog::link::pace::{Limit, parse_rate, rate_at};
use replog::uring::Link;
use replog::uring::line::Controls;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shardmap::Zone;
use shardmap::map::Map;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A word for each stream of each zone: more is no such file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// An operator's words, and what carries them to the links.
#[derive(Default)]
pub struct Steer {
    path: PathBuf,
    streams: u32,
    peers: BTreeMap<String, (Zone, Vec<Limit>)>,
    kept: Mutex<BTreeMap<String, Kept>>,
    controls: Arc<Controls>,
}

/// What is kept of one zone.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// All its streams are paused.
    #[serde(default)]
    paused: bool,
    /// These are.
    #[serde(default)]
    paused_streams: BTreeSet<u32>,
    /// Bytes a second.
    #[serde(default)]
    rate: Option<u64>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Pause,
    Resume,
    Throttle,
    Clear,
}

impl Steer {
    /// With what was kept. The error says what is wrong with the file.
    pub fn open(config: &Config, map: &Map, streams: u32) -> Result<Steer, String> {
        let path = config.node.data_dir.join("links.json");
        let kept = match file::read_text(&path, FILE_BYTES_MAX) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| {
                format!("{}: {e}: correct it, or remove it: then no link is paused or throttled", path.display())
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let linked = config.zones.iter().filter(|z| z.link.is_some());
        let peers =
            linked.filter_map(|z| Some((z.name.clone(), (map.zone_named(&z.name)?, z.limits.clone())))).collect();
        let steer = Steer { path, streams, peers, kept: Mutex::new(kept), controls: Arc::default() };
        steer.steer();
        Ok(steer)
    }

    /// What the links look at.
    pub fn controls(&self) -> Arc<Controls> {
        self.controls.clone()
    }

    /// Brings to the links what holds now; to be called every few seconds, since limits go by the time of day.
    pub fn steer(&self) {
        let kept = self.kept.lock().expect("no one panics while holding it");
        for (name, (zone, _)) in &self.peers {
            let of = kept.get(name).cloned().unwrap_or_default();
            self.controls.pause(*zone, None, of.paused);
            of.paused_streams.iter().for_each(|stream| self.controls.pause(*zone, Some(*stream), true));
            self.controls.limit(*zone, self.rate(name, &of));
        }
    }

    fn rate(&self, name: &str, kept: &Kept) -> Option<u64> {
        let limit = self.peers.get(name).and_then(|(_, limits)| rate_at(limits, super::wall_ms() / 1000));
        kept.rate.into_iter().chain(limit).min()
    }

    /// What all links to the zone may ship now.
    pub fn rate_now(&self, name: &str) -> Option<u64> {
        let kept = self.kept.lock().expect("no one panics while holding it").get(name).cloned();
        self.rate(name, &kept.unwrap_or_default())
    }

    fn carry_out(&self, wish: Wish, query: &[(String, String)]) -> Result<String, (StatusCode, String)> {
        let Asked { zone, stream, rate } = self.asked(wish, query).map_err(|why| (StatusCode::BAD_REQUEST, why))?;
        if wish == Wish::Clear {
            let number = self.peers[&zone].0;
            let streams = stream.map_or(0..self.streams, |s| s..s + 1);
            streams.for_each(|stream| self.controls.clear(number, stream));
            return Ok(format!("links to zone {zone} that were stopped ask again: see their state"));
        }
        self.keep(wish, &zone, stream, rate).map_err(|why| (StatusCode::INTERNAL_SERVER_ERROR, why))?;
        self.steer();
        let which = stream.map_or("all streams".to_owned(), |s| format!("stream {s}"));
        Ok(match wish {
            Wish::Pause => {
                format!("{which} to zone {zone}: paused, over restarts too, until resumed; maps and beats go on")
            }
            Wish::Resume => format!("{which} to zone {zone}: resumed"),
            Wish::Throttle | Wish::Clear => match rate {
                Some(rate) => {
                    format!("links to zone {zone} ship {rate} bytes a second together at most, over restarts too")
                }
                None => format!("links to zone {zone} are throttled no more, but for limits of the configuration"),
            },
        })
    }

    fn asked(&self, wish: Wish, query: &[(String, String)]) -> Result<Asked, String> {
        let known = || self.peers.keys().cloned().collect::<Vec<_>>().join(", ");
        let (mut zone, mut stream, mut rate) = (None, None, None);
        for (name, value) in query {
            match (name.as_str(), wish) {
                ("zone", _) if self.peers.contains_key(value) => zone = Some(value.clone()),
                ("zone", _) => return Err(format!("zone \"{value}\": this log has links to: {}", known())),
                ("stream", Wish::Pause | Wish::Resume | Wish::Clear) => match value.parse::<u32>() {
                    Ok(number) if number < self.streams => stream = Some(number),
                    Ok(_) | Err(_) => {
                        return Err(format!("stream \"{value}\": this log has the streams 0 to {}", self.streams - 1));
                    }
                },
                ("rate", Wish::Throttle) if value == "off" => rate = Some(None),
                ("rate", Wish::Throttle) => rate = Some(Some(parse_rate(value)?)),
                (other, _) => return Err(format!("unknown parameter \"{other}\"")),
            }
        }
        let zone = zone.ok_or_else(|| format!("zone=NAME is missing: this log has links to: {}", known()))?;
        if wish == Wish::Throttle && rate.is_none() {
            return Err("rate= is missing: bytes a second, such as 25000000 or 200mbit, or off".into());
        }
        Ok(Asked { zone, stream, rate: rate.flatten() })
    }

    /// Durable before it holds.
    fn keep(&self, wish: Wish, zone: &str, stream: Option<u32>, rate: Option<u64>) -> Result<(), String> {
        let mut kept = self.kept.lock().expect("no one panics while holding it");
        let mut new = kept.clone();
        let of = new.entry(zone.to_owned()).or_default();
        match (wish, stream) {
            (Wish::Pause | Wish::Resume, None) => {
                (of.paused, of.paused_streams) = (wish == Wish::Pause, BTreeSet::new())
            }
            (Wish::Pause, Some(stream)) => drop(of.paused_streams.insert(stream)),
            (Wish::Resume, Some(stream)) => {
                if std::mem::take(&mut of.paused) {
                    of.paused_streams = (0..self.streams).collect(); // of all that were paused, one goes on
                }
                of.paused_streams.remove(&stream);
            }
            (Wish::Throttle, _) => of.rate = rate,
            (Wish::Clear, _) => {}
        }
        new.retain(|_, k| *k != Kept::default());
        let text = serde_json::to_vec_pretty(&new).expect("words and numbers");
        replace(&self.path, &text).map_err(|e| format!("{}: {e}: nothing was changed", self.path.display()))?;
        *kept = new;
        Ok(())
    }
}

struct Asked {
    zone: String,
    stream: Option<u32>,
    rate: Option<u64>,
}

/// The pages.
pub fn routes() -> Router<Shown> {
    let to = |wish: Wish| {
        post(move |State(s): State<Shown>, Query(q): Query<Vec<(String, String)>>| async move {
            match s.steer.carry_out(wish, &q) {
                Ok(text) => {
                    tracing::warn!("by an operator's word: {text}");
                    said(StatusCode::OK, &json!({ "state": text }))
                }
                Err((status, why)) => said(status, &json!({ "error": why })),
            }
        })
    };
    Router::new()
        .route("/links", get(async |State(s): State<Shown>| axum::Json(super::log::links(&s).await)))
        .route("/links/pause", to(Wish::Pause))
        .route("/links/resume", to(Wish::Resume))
        .route("/links/throttle", to(Wish::Throttle))
        .route("/links/clear", to(Wish::Clear))
}

/// One link, of a stream that is durable here up to `durable_seq`.
pub fn status(link: &Link, durable_seq: u64, rate_max: Option<u64>) -> LinkStatus {
    let line = &link.line;
    let stop = |s: replog::link::Stop| StopStatus {
        why: s.why.name().into(),
        seen: s.seen,
        expected: s.expected,
        text: s.to_string(),
    };
    LinkStatus {
        state: link.state.clone(),
        durable_seq: link.durable_seq,
        applied_seq: link.applied_seq,
        connects: line.connects,
        failures: line.failures,
        stopped: line.stopped.map(stop),
        paused: line.is_paused,
        rate_max,
        durable_lag: durable_seq.saturating_sub(link.durable_seq),
        applied_lag: durable_seq.saturating_sub(link.applied_seq),
        round_trip_us: line.round_trip_us,
        log_bytes: line.shipped.log_bytes,
        line_bytes: line.shipped.line_bytes,
        packs: line.shipped.packs,
        flight_bytes: line.flight_bytes,
        credit_bytes: line.credit_bytes,
        line_rate: line.line_rate,
        congestion: line.congestion.clone(),
    }
}

/// Each link of a stream.
pub fn metrics(page: &mut Page, stream: &StreamStatus) {
    let number = stream.stream.to_string();
    for (zone, link) in &stream.links {
        let labels = [("stream", number.as_str()), ("zone", zone)];
        let gauges = [
            ("ezone_link_live", "1: the peer answers", u64::from(["live", "paused"].contains(&link.state.as_str()))),
            ("ezone_link_paused", "1: ships nothing, by an operator's word", u64::from(link.paused)),
            (
                "ezone_link_stopped",
                "1: cannot go on until an operator clears it; /links says why",
                u64::from(link.stopped.is_some()),
            ),
            (
                "ezone_link_durable_lag_records",
                "Records that are durable here and not in another zone",
                link.durable_lag,
            ),
            (
                "ezone_link_applied_lag_records",
                "Records that are durable here and not applied in another zone",
                link.applied_lag,
            ),
            ("ezone_link_flight_bytes", "Bytes of a log on their way that are not acknowledged", link.flight_bytes),
            ("ezone_link_credit_bytes", "Bytes of a log that may be on their way", link.credit_bytes),
            (
                "ezone_link_rate_max_bytes",
                "Bytes a second that all links to a zone may ship; 0: no limit",
                link.rate_max.unwrap_or(0),
            ),
        ];
        gauges.into_iter().for_each(|(name, help, value)| page.labelled(name, help, &labels, value));
        let counters = [
            ("ezone_link_log_bytes_total", "Bytes of a log that were shipped", link.log_bytes),
            (
                "ezone_link_line_bytes_total",
                "Bytes of the frames that carried them: fewer, where packs were compressed",
                link.line_bytes,
            ),
            ("ezone_link_packs_total", "Frames with several batches, or compressed", link.packs),
            ("ezone_link_connects_total", "Connections that were made", link.connects),
            ("ezone_link_failures_total", "Connections, and attempts at one, that failed with a reason", link.failures),
        ];
        counters.into_iter().for_each(|(name, help, value)| page.counter(name, help, &labels, value));
        if let Some(us) = link.round_trip_us {
            page.seconds(
                Kind::Gauge,
                "ezone_link_round_trip_seconds",
                "From sending to the answer, the newest",
                &labels,
                us,
            );
        }
    }
}
