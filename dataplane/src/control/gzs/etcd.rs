//! Reaches etcd: one question at a time, by the first member that answers. For threads that may wait.

use crate::config::EtcdConfig;
use crate::control::reach::{client_as, root_cause};
use gzs::store::etcd::Gateway;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The members of one etcd.
pub struct Http {
    runtime: Runtime,
    http: reqwest::Client,
    members: Vec<String>,
    /// The one that answered last.
    at: usize,
}

impl Http {
    /// No answer may take longer than `patience`, of each member.
    pub fn new(config: &EtcdConfig, patience: Duration) -> Result<Http, String> {
        let first = config.endpoints.first().map_or("", String::as_str);
        let http = client_as(first, config.ca.as_deref(), config.identity.as_ref(), patience)?;
        Ok(Http { runtime: crate::control::runtime()?, http, members: config.endpoints.clone(), at: 0 })
    }

    async fn ask(&self, path: &str, body: &str) -> Result<(u16, String), reqwest::Error> {
        let url = format!("{}{path}", self.members[self.at]);
        let answer =
            self.http.post(&url).header("content-type", "application/json").body(body.to_owned()).send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.text().await?))
    }

    fn turn(&mut self) {
        self.at = (self.at + 1) % self.members.len();
    }
}

impl Gateway for Http {
    fn post(&mut self, path: &str, body: &str) -> Result<(u16, String), String> {
        let mut why = String::from("no member is named");
        for _ in 0..self.members.len() {
            match self.runtime.block_on(self.ask(path, body)) {
                Ok((status, answer)) => {
                    // A member that has no leader, or ends, says 503: another one may know better the next time.
                    if status == 503 {
                        self.turn();
                    }
                    return Ok((status, answer));
                }
                Err(e) => {
                    why = format!("{}: {}", self.members[self.at], root_cause(&e));
                    self.turn();
                    // What was sent may have been done: only who asked knows whether it may be done twice.
                    if !e.is_connect() {
                        return Err(why);
                    }
                }
            }
        }
        Err(why)
    }
}
