//! The demo as an operator of the Global Zone Service: asks for moves and take-overs as `ezctl` does, and waits for their end.

use crate::control::gzs_client::{Denied, GzsClient};
use crate::control::reach;
use crate::control::report::{LogStatus, RouterStatus};
use gzs::api::{OpAsk, OpView, What};
use serde::de::DeserializeOwned;
use shardmap::map::Map;
use shardmap::{MapEpoch, Shard, Zone};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How often a step looks whether it is done.
const LOOK: Duration = Duration::from_millis(3);
/// How long the preflight may have something against an operation.
const PREFLIGHT_MAX: Duration = Duration::from_secs(10);
/// What an operation may take beyond its own limit.
const END_MAX: Duration = Duration::from_secs(30);

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
    /// The service said no, or nothing.
    #[error("{0}")]
    Denied(#[from] Denied),
    /// It ended otherwise than it should.
    #[error("operation {id} {state}: {says}")]
    Ended {
        /// Its number.
        id: u64,
        /// How it ended.
        state: String,
        /// Why.
        says: String,
    },
    /// The new owner does not go by the new map.
    #[error("the log of zone {0} does not go by map {1}")]
    Behind(Zone, MapEpoch),
    /// The map cannot be had.
    #[error("the map: {0}")]
    Map(String),
}

/// The map's only writer, and what the demo knows of the map.
pub struct Gzs {
    client: GzsClient,
    url: String,
    http: reqwest::Client,
    zones: Vec<ZoneAdmin>,
    map: Mutex<Arc<Map>>,
}

impl Gzs {
    /// Speaks with the service at `at`, whose first map is `map`.
    pub fn at(at: SocketAddr, map: Map, zones: Vec<ZoneAdmin>) -> Result<Gzs, String> {
        let url = format!("http://{at}");
        let http = reach::client(&url, None, Duration::from_secs(2))?;
        Ok(Gzs { client: GzsClient::new(&url, None)?, url, http, zones, map: Mutex::new(Arc::new(map)) })
    }

    /// The map after the last operation.
    pub fn map(&self) -> Arc<Map> {
        self.map.lock().expect("no one panics while holding it").clone()
    }

    /// Moves `shards` to zone `to`; if that takes longer than `limit`, the service gives them back.
    pub async fn move_shards(&self, shards: &[Shard], to: Zone, limit: Duration) -> Result<Duration, Failed> {
        let shards = shards.iter().map(|s| s.0).collect();
        let what = What::Move { shards, to: self.map().zone_name(to).to_owned() };
        let (op, took) = self.operate(what, false, limit).await?;
        self.owns(&op, to).await?;
        Ok(took)
    }

    /// Gives `zone` what was taken over from it.
    pub async fn restore(&self, zone: Zone, limit: Duration) -> Result<(usize, Duration), Failed> {
        let what = What::Restore { zone: self.map().zone_name(zone).to_owned() };
        let (op, took) = self.operate(what, false, limit).await?;
        self.owns(&op, zone).await?;
        Ok((op.shards.len(), took))
    }

    /// Declares `lost` lost and gives what it owned to `to`.
    pub async fn take_over(&self, lost: Zone, to: Zone, limit: Duration) -> Result<Vec<Shard>, Failed> {
        let map = self.map();
        let what = What::TakeOver { zone: map.zone_name(lost).into(), to: Some(map.zone_name(to).into()) };
        let (op, _) = self.operate(what, true, limit).await?;
        self.owns(&op, to).await?;
        Ok(op.shards.iter().map(|s| Shard(s.shard)).collect())
    }

    /// Begins an operation, once the preflight has nothing against it, and waits for its end. How long it took by the service's clock.
    async fn operate(&self, what: What, force: bool, limit: Duration) -> Result<(OpView, Duration), Failed> {
        let limit_ms = Some(limit.as_millis() as u64);
        let ask = OpAsk { what, by: "ezone demo".into(), why: "the demo's script".into(), force, limit_ms };
        let until = Instant::now() + PREFLIGHT_MAX;
        let begun = loop {
            match self.client.begin(&ask).await {
                Err(Denied::Refused { fault, .. }) if !fault.reasons.is_empty() && Instant::now() < until => {}
                done => break done?,
            }
            tokio::time::sleep(LOOK * 10).await;
        };
        let op = self.client.ended(begun.id, limit + END_MAX).await?;
        self.read_map().await.map_err(Failed::Map)?;
        if op.state != "done" {
            return Err(Failed::Ended { id: op.id, state: op.state, says: op.says });
        }
        let took = op.ended_ms.unwrap_or(op.begun_ms).saturating_sub(op.begun_ms);
        Ok((op, Duration::from_millis(took)))
    }

    /// Waits until the new owner's log goes by the map that gave it the last of the shards.
    async fn owns(&self, op: &OpView, zone: Zone) -> Result<(), Failed> {
        let epoch = op.shards.iter().map(|s| s.epoch).max().unwrap_or(0);
        let until = Instant::now() + END_MAX;
        while self.log_status(zone).await.is_none_or(|s| s.map_epoch < epoch) {
            if Instant::now() > until {
                return Err(Failed::Behind(zone, MapEpoch(epoch)));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn read_map(&self) -> Result<(), String> {
        let why = |e: reqwest::Error| reach::root_cause(&e);
        let answer = self.http.get(format!("{}/v1/map?after=0", self.url)).send().await.map_err(why)?;
        let bytes = answer.bytes().await.map_err(why)?;
        let map = Map::decode(&bytes).map_err(|e| e.to_string())?;
        *self.map.lock().expect("no one panics while holding it") = Arc::new(map);
        Ok(())
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

    async fn get<T: DeserializeOwned>(&self, at: SocketAddr) -> Option<T> {
        let answer = self.http.get(format!("http://{at}/status")).send().await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    }
}
