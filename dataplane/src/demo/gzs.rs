//! Stands in for the Global Zone Service: holds the map in memory, hands it out, drives moves and take-overs step by step.
//!
//! It keeps OWNERSHIP's steps and their order; what it lacks is a store: when it dies, the operation dies with it.

use crate::control::report::{LogStatus, Report, ReportAsk, RouterStatus, ShardReport, StreamStatus};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use serde::de::DeserializeOwned;
use shardmap::map::Map;
use shardmap::ownership::{Entry, History, Illegal};
use shardmap::{MapEpoch, Shard, Zone};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// How often a step looks whether it is done.
const LOOK: Duration = Duration::from_millis(3);
/// How long the target of a move may take to become fresh.
const PREFLIGHT_MAX: Duration = Duration::from_secs(10);
/// A zone is fresh when it lacks at most so many records of any other's stream: what it lacks, clients would wait for.
const FRESH_RECORDS: u64 = 64;

/// Where a zone's processes show their admin pages.
#[derive(Clone, Debug)]
pub struct ZoneAdmin {
    /// The zone.
    pub zone: Zone,
    /// Its router.
    pub router: SocketAddr,
    /// Its log.
    pub log: SocketAddr,
}

/// Why an operation did not take place.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A change that the rules refuse.
    #[error("shard {0}: {1}")]
    Illegal(Shard, Illegal),
    /// A map that is refused as a whole.
    #[error("the next map is refused: {0}")]
    Map(String),
    /// A step took too long; what was done about it.
    #[error("{step} took longer than {limit_ms} ms; {done}")]
    Slow {
        /// The step.
        step: &'static str,
        /// Its limit.
        limit_ms: u128,
        /// What was done.
        done: &'static str,
    },
}

/// The map's only writer.
pub struct Gzs {
    map: watch::Sender<Arc<Map>>,
    http: reqwest::Client,
    zones: Vec<ZoneAdmin>,
}

#[derive(serde::Deserialize)]
struct Poll {
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

impl Gzs {
    /// Serves `map` on `listener` from a task of its own.
    pub fn start(map: Map, listener: TcpListener, zones: Vec<ZoneAdmin>) -> Result<Gzs, reqwest::Error> {
        let (map, watching) = watch::channel(Arc::new(map));
        let app = Router::new().route("/v1/map", get(hand_out)).with_state(watching);
        tokio::spawn(async move { axum::serve(listener, app).await });
        let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy().build()?;
        Ok(Gzs { map, http, zones })
    }

    /// The newest map.
    pub fn map(&self) -> Arc<Map> {
        self.map.borrow().clone()
    }

    /// Moves `shards` to zone `to`; if a step takes longer than `limit`, gives them back. Begins when `to` is fresh.
    pub async fn move_shards(&self, shards: &[Shard], to: Zone, limit: Duration) -> Result<Duration, Failed> {
        if self.fresh(to, Instant::now() + PREFLIGHT_MAX).await.is_none() {
            let done = "nothing was begun: its links or its store cannot keep up";
            return Err(Failed::Slow { step: "the target's catching up", limit_ms: PREFLIGHT_MAX.as_millis(), done });
        }
        let begun = Instant::now();
        let step = |name: &str| tracing::debug!("move: {name} after {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0);
        let moving = self.publish(shards, |h, e| h.begin_move(to, e).map(Some))?;
        let held = self.routers_hold(moving, begun + limit).await;
        step("routers hold");
        let ready = self.reports(to, moving, shards, false, begun + limit).await;
        step("target has caught up");
        let (Some(()), Some(reports)) = (held, ready) else {
            self.publish(shards, |h, e| h.abort(e).map(Some))?;
            return Err(Failed::Slow { step: "the move", limit_ms: limit.as_millis(), done: "it was aborted" });
        };
        let find = |s: Shard| reports.iter().find(|r| r.shard == s.0);
        let owned = self.publish_each(shards, |shard, h, e| {
            let report = find(shard).ok_or(Illegal::NoPositions)?;
            h.commit_move(report.fence_seq.ok_or(Illegal::NoPositions)?, &report.positions(), e).map(Some)
        })?;
        self.log_has(to, owned, Instant::now() + limit).await;
        step("target goes by the new map");
        Ok(begun.elapsed())
    }

    /// Declares `lost` lost and gives what it owned to `to`.
    pub async fn take_over(&self, lost: Zone, to: Zone, limit: Duration) -> Result<Vec<Shard>, Failed> {
        let all: Vec<Shard> = self.map().shards().map(|(s, _)| s).collect();
        let none = self.publish(&all, |h, e| h.declare_lost(lost, e))?;
        let map = self.map();
        let theirs: Vec<Shard> = map.shards().filter(|(_, h)| h.is_lost_by(lost)).map(|(s, _)| s).collect();
        let deadline = Instant::now() + limit;
        let Some(reports) = self.reports(to, none, &theirs, true, deadline).await else {
            let done = "its shards have no owner until a survivor reports";
            return Err(Failed::Slow { step: "the take-over", limit_ms: limit.as_millis(), done });
        };
        let find = |s: Shard| reports.iter().find(|r| r.shard == s.0);
        let owned = self.publish_each(&theirs, |shard, h, e| {
            let report = find(shard).ok_or(Illegal::NoPositions)?;
            h.finish_take_over(to, &report.positions(), e).map(Some)
        })?;
        self.log_has(to, owned, deadline).await;
        Ok(theirs)
    }

    /// What `zone`'s log says of itself, if it answers.
    pub async fn log_status(&self, zone: Zone) -> Option<LogStatus> {
        self.get(self.admin(zone)?.log).await
    }

    /// What `zone`'s router says of itself, if it answers.
    pub async fn router_status(&self, zone: Zone) -> Option<RouterStatus> {
        self.get(self.admin(zone)?.router).await
    }

    /// Digests of `zone`'s rows and ledger, a line for each stream, if its log answers.
    pub async fn log_digests(&self, zone: Zone) -> Option<String> {
        let answer = self.http.get(format!("http://{}/digest", self.admin(zone)?.log)).send().await.ok()?;
        answer.text().await.ok()
    }

    fn admin(&self, zone: Zone) -> Option<&ZoneAdmin> {
        self.zones.iter().find(|z| z.zone == zone)
    }

    fn publish(
        &self,
        shards: &[Shard],
        step: impl Fn(&History, MapEpoch) -> Result<Option<Entry>, Illegal>,
    ) -> Result<MapEpoch, Failed> {
        self.publish_each(shards, |_, h, e| step(h, e))
    }

    /// One map in which `step` has changed every shard for which it gave an entry.
    fn publish_each(
        &self,
        shards: &[Shard],
        step: impl Fn(Shard, &History, MapEpoch) -> Result<Option<Entry>, Illegal>,
    ) -> Result<MapEpoch, Failed> {
        let map = self.map();
        let epoch = map.epoch().next();
        let mut entries = vec![];
        for shard in shards {
            let Some(history) = map.history(*shard) else { continue };
            let entry = step(*shard, history, epoch).map_err(|e| Failed::Illegal(*shard, e))?;
            entries.extend(entry.map(|e| (*shard, e)));
        }
        let next = map.with_entries(entries).map_err(|e| Failed::Map(e.to_string()))?;
        self.map.send_replace(Arc::new(next));
        Ok(epoch)
    }

    /// Waits until every router that answers goes by `epoch` and has nothing in flight for shards without a settled owner.
    async fn routers_hold(&self, epoch: MapEpoch, deadline: Instant) -> Option<()> {
        for zone in &self.zones {
            loop {
                let Some(status) = self.get::<RouterStatus>(zone.router).await else { break };
                if status.map_epoch >= epoch.0 && status.in_flight_unsettled == 0 {
                    break;
                }
                pause(deadline).await?;
            }
        }
        Some(())
    }

    /// Waits until `zone` has applied all but a few of the records that are durable in every other zone.
    async fn fresh(&self, zone: Zone, deadline: Instant) -> Option<()> {
        loop {
            let mut behind = 0;
            if let Some(here) = self.log_status(zone).await {
                for other in self.zones.iter().filter(|z| z.zone != zone) {
                    let Some(there) = self.log_status(other.zone).await else { continue };
                    behind = behind.max(there.streams.iter().map(|s| lacks(&here, s, &there.zone)).max().unwrap_or(0));
                }
                if behind <= FRESH_RECORDS {
                    return Some(());
                }
            }
            pause(deadline).await?;
        }
    }

    /// Asks `zone` about `shards` until it is ready for all of them.
    async fn reports(
        &self,
        zone: Zone,
        epoch: MapEpoch,
        shards: &[Shard],
        take_over: bool,
        deadline: Instant,
    ) -> Option<Vec<ShardReport>> {
        let log = self.admin(zone)?.log;
        let ask = ReportAsk { map_epoch: epoch.0, shards: shards.iter().map(|s| s.0).collect(), take_over };
        let body = serde_json::to_vec(&ask).ok()?;
        loop {
            let sent = self.http.post(format!("http://{log}/report")).body(body.clone()).send().await;
            let report: Option<Report> = match sent {
                Ok(answer) => answer.bytes().await.ok().and_then(|b| serde_json::from_slice(&b).ok()),
                Err(_) => None,
            };
            // A log leaves out what it cannot speak for yet: each shard that was asked about has to be there.
            let ready = |r: &Report, s: &Shard| r.shards.iter().any(|told| told.shard == s.0 && told.ready);
            if let Some(r) = report.filter(|r| r.map_epoch >= epoch.0 && shards.iter().all(|s| ready(r, s))) {
                return Some(r.shards);
            }
            pause(deadline).await?;
        }
    }

    async fn log_has(&self, zone: Zone, epoch: MapEpoch, deadline: Instant) -> Option<()> {
        loop {
            if self.log_status(zone).await.is_some_and(|s| s.map_epoch >= epoch.0) {
                return Some(());
            }
            pause(deadline).await?;
        }
    }

    async fn get<T: DeserializeOwned>(&self, at: SocketAddr) -> Option<T> {
        let answer = self.http.get(format!("http://{at}/status")).send().await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    }
}

/// How many records of `stream`, which is `origin`'s, `here` has not applied.
fn lacks(here: &LogStatus, stream: &StreamStatus, origin: &str) -> u64 {
    let own = here.streams.iter().find(|s| s.stream == stream.stream);
    stream.durable_seq.saturating_sub(own.and_then(|s| s.applied.get(origin).copied()).unwrap_or(0))
}

async fn pause(deadline: Instant) -> Option<()> {
    tokio::time::sleep(LOOK).await;
    (Instant::now() < deadline).then_some(())
}

async fn hand_out(State(mut map): State<watch::Receiver<Arc<Map>>>, Query(poll): Query<Poll>) -> Response {
    let newer = map.wait_for(|m| m.epoch().0 > poll.after);
    match tokio::time::timeout(Duration::from_millis(poll.wait_ms.min(60_000)), newer).await {
        Ok(Ok(map)) => map.encode().into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}
