//! What a sandbox's processes say of themselves: their admin pages, as the operator's tools read them.

use crate::control::reach;
use crate::control::report::{LogStatus, RouterStatus};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::time::Duration;

/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Entries of a ledger that are read, at most: a drill's orders of a minute.
const CONFLICTS_MAX: usize = 100_000;

/// Reads pages.
#[derive(Clone, Debug)]
pub struct Pages {
    http: reqwest::Client,
}

/// An entry of a conflict ledger, as far as drills look at it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
pub struct Listed {
    /// `STREAM/ZONE/SEQ`.
    pub id: String,
    /// Its shard.
    pub shard: u16,
    /// The table ..
    pub table: String,
    /// .. and the key of the row.
    pub key: String,
    /// `visible`, `superseded`, `gone`.
    pub state: String,
}

#[derive(Deserialize)]
struct Ledger {
    conflicts: Vec<Listed>,
    next: Option<String>,
}

impl Pages {
    /// A reader.
    pub fn new() -> Result<Pages, String> {
        Ok(Pages { http: reach::client("http://", None, PATIENCE)? })
    }

    /// `/status` of a log, if it answers.
    pub async fn log(&self, admin: SocketAddr) -> Option<LogStatus> {
        self.json(admin, "/status").await
    }

    /// `/status` of a router, if it answers.
    pub async fn router(&self, admin: SocketAddr) -> Option<RouterStatus> {
        self.json(admin, "/status").await
    }

    /// Digests of a log's rows and ledger, a line for each stream, if it answers.
    pub async fn digest(&self, admin: SocketAddr) -> Option<String> {
        let answer = self.http.get(format!("http://{admin}/digest")).send().await.ok()?;
        answer.text().await.ok()
    }

    /// The whole conflict ledger of a log, settled entries too, in the order of their ids; fails where it is cut short.
    pub async fn conflicts(&self, admin: SocketAddr) -> Result<Vec<Listed>, String> {
        let mut all: Vec<Listed> = vec![];
        let mut after = String::new();
        while all.len() < CONFLICTS_MAX {
            let path = format!("/conflicts?state=all&limit=1000{after}");
            let page: Option<Ledger> = self.json(admin, &path).await;
            let page = page.ok_or_else(|| format!("the log at {admin} does not show its ledger"))?;
            all.extend(page.conflicts);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => {
                    all.sort();
                    return Ok(all);
                }
            }
        }
        Err(format!("the ledger at {admin} has more than {CONFLICTS_MAX} entries"))
    }

    async fn json<T: DeserializeOwned>(&self, admin: SocketAddr, path: &str) -> Option<T> {
        let answer = self.http.get(format!("http://{admin}{path}")).send().await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    }
}
