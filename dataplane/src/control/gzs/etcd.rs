//! Reaches etcd: one question at a time, by the first member that answers. For threads that may wait.

use crate::config::EtcdConfig;
use crate::control::reach::{self, client_as, root_cause};
use gzs::store::etcd::Gateway;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The longest answer: everything that a service keeps, in base64.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// The members of one etcd.
pub struct Http {
    runtime: Runtime,
    http: reqwest::Client,
    members: Vec<String>,
    /// The one that answered last.
    at: usize,
}

struct Unanswered {
    why: String,
    unsent: bool,
}

impl From<reqwest::Error> for Unanswered {
    fn from(e: reqwest::Error) -> Unanswered {
        Unanswered { why: root_cause(&e), unsent: e.is_connect() }
    }
}

impl Http {
    /// No answer may take longer than `patience`, of each member.
    pub fn new(config: &EtcdConfig, patience: Duration) -> Result<Http, String> {
        let first = config.endpoints.first().map_or("", String::as_str);
        let http = client_as(first, config.ca.as_deref(), config.identity.as_ref(), patience)?;
        Ok(Http { runtime: crate::control::runtime()?, http, members: config.endpoints.clone(), at: 0 })
    }

    async fn ask(&self, path: &str, body: &str) -> Result<(u16, String), Unanswered> {
        let url = format!("{}{path}", self.members[self.at]);
        let ask = self.http.post(&url).header("content-type", "application/json").body(body.to_owned());
        let mut answer = ask.send().await?;
        let status = answer.status().as_u16();
        match reach::body(&mut answer, ANSWER_BYTES_MAX).await? {
            Some(body) => Ok((status, String::from_utf8_lossy(&body).into_owned())),
            None => {
                Err(Unanswered { why: format!("it answers with more than {ANSWER_BYTES_MAX} bytes"), unsent: false })
            }
        }
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
                    why = format!("{}: {}", self.members[self.at], e.why);
                    self.turn();
                    // What was sent may have been done: only who asked knows whether it may be done twice.
                    if !e.unsent {
                        return Err(why);
                    }
                }
            }
        }
        Err(why)
    }
}
