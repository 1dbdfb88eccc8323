//! Speaks with the Global Zone Service as an operator does: asks for its state, begins operations and waits for their end.

use super::reach::{self, Asked, LEADER, Urls};
use gzs::api::{AuditView, Fault, FencesAsk, FencesPreview, OpAsk, OpView, State, What};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one may take for which fences are judged.
const JUDGED: Duration = Duration::from_secs(120);
/// The longest answer: the fences of two million points take half of it, as much as a thousand operations of hundreds of shards.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// So long there may be no leader, of several services: a lease of etcd's least and what an election takes, twice.
const ELECTION: Duration = Duration::from_secs(6);
/// How often an operation's end is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// One service, and who asks it.
#[derive(Clone, Debug)]
pub struct GzsClient {
    urls: Arc<Urls>,
    token: Option<String>,
    http: reqwest::Client,
}

/// Why there is no answer that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// Nobody can tell whether it heard what it was asked.
    #[error("the Global Zone Service at {url} cannot be reached: {why}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What was seen.
        why: String,
    },
    /// It said no.
    #[error("{}", told(*.status, .fault))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// In its words.
        fault: Fault,
    },
    /// What answers there is no such service.
    #[error("{url} answered {status} with {seen}; expected the API of a Global Zone Service: is this its address?")]
    Garbled {
        /// Who answered.
        url: String,
        /// How.
        status: u16,
        /// What was seen.
        seen: String,
    },
    /// An operation has not ended within the time that was given.
    #[error("operation {} has not ended within {limit_ms} ms; it {}: {}", .op.id, .op.state, .op.says)]
    Slow {
        /// As it was seen last.
        op: Box<OpView>,
        /// The time.
        limit_ms: u128,
    },
}

fn told(status: u16, fault: &Fault) -> String {
    let mut text = match status {
        401 => format!("{} (a bearer token is needed)", fault.error),
        _ => fault.error.clone(),
    };
    fault.reasons.iter().for_each(|r| text += &format!("\n  {r}"));
    text
}

impl GzsClient {
    /// Asks the service at `url`, or that which leads of several with a comma in between, with a bearer token where it wants one.
    pub fn new(url: &str, token: Option<String>) -> Result<GzsClient, String> {
        GzsClient::believing(url, token, None)
    }

    /// Likewise; `ca`: the authorities that sign its certificate.
    pub fn believing(url: &str, token: Option<String>, ca: Option<&Path>) -> Result<GzsClient, String> {
        let http = reach::client(url, ca, PATIENCE)?;
        let urls = url.split(',').map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        Ok(GzsClient { urls: Arc::new(Urls::new(urls)), token, http })
    }

    /// Everything at a glance.
    pub async fn state(&self) -> Result<State, Denied> {
        self.get("/v1/state").await
    }

    /// Operations: those under way, or ended ones too.
    pub async fn ops(&self, all: bool) -> Result<Vec<OpView>, Denied> {
        self.get(&format!("/v1/ops?all={all}")).await
    }

    /// One operation.
    pub async fn op(&self, id: u64) -> Result<OpView, Denied> {
        self.get(&format!("/v1/ops/{id}")).await
    }

    /// Begins one.
    pub async fn begin(&self, ask: &OpAsk) -> Result<OpView, Denied> {
        let judged = matches!(ask.what, What::Fences { .. });
        self.post("/v1/ops", ask, if judged { JUDGED } else { PATIENCE }).await
    }

    /// The fences of the newest map, as GeoJSON.
    pub async fn fences(&self) -> Result<Value, Denied> {
        self.get("/v1/fences").await
    }

    /// What new fences would change.
    pub async fn preview(&self, ask: &FencesAsk) -> Result<FencesPreview, Denied> {
        self.post("/v1/fences/preview", ask, JUDGED).await
    }

    /// Aborts one before its point of no return; `by`: who, for the record.
    pub async fn abort(&self, id: u64, by: &str) -> Result<OpView, Denied> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '+' };
        let by: String = by.chars().map(plain).collect();
        self.ask(Method::POST, &format!("/v1/ops/{id}/abort?by={by}"), None, PATIENCE).await
    }

    /// Lets one that gave up begin again what it had not done.
    pub async fn resume(&self, id: u64) -> Result<OpView, Denied> {
        self.ask(Method::POST, &format!("/v1/ops/{id}/resume"), None, PATIENCE).await
    }

    /// Changes of the map after an epoch.
    pub async fn audit(&self, after: u64) -> Result<Vec<AuditView>, Denied> {
        self.get(&format!("/v1/audit?after={after}")).await
    }

    /// Waits for an operation's end, over restarts of the service; how it ended is for the caller to judge.
    pub async fn ended(&self, id: u64, limit: Duration) -> Result<OpView, Denied> {
        let until = Instant::now() + limit;
        loop {
            let seen = self.op(id).await;
            let late = Instant::now() >= until;
            match seen {
                Ok(op) if op.state != "running" => return Ok(op),
                Ok(op) if late => return Err(Denied::Slow { op: Box::new(op), limit_ms: limit.as_millis() }),
                // 503: another service is about to lead, or its store does not answer.
                Err(Denied::Unreachable { .. } | Denied::Refused { status: 503, .. }) | Ok(_) if !late => {}
                Err(why) => return Err(why),
                Ok(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Denied> {
        self.ask(Method::GET, path, None, PATIENCE).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, limit: Duration) -> Result<T, Denied> {
        let body = serde_json::to_vec(body).map_err(|e| unreachable(&self.urls.now().1, &e))?;
        self.ask(Method::POST, path, Some(&body), limit).await
    }

    /// Of several services, those that stand by and those that cannot be reached were asked for nothing: another one is, until one leads.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        json: Option<&[u8]>,
        limit: Duration,
    ) -> Result<T, Denied> {
        let until = Instant::now() + if self.urls.count() > 1 { ELECTION } else { Duration::ZERO };
        let mut tried = 0;
        loop {
            let (at, url) = self.urls.now();
            let asked = Asked { method: method.clone(), path, json: json.map(<[u8]>::to_vec) };
            let sent = reach::request(&self.http, &url, asked, self.token.as_deref()).timeout(limit).send().await;
            let leader = match &sent {
                Ok(answer) => answer.headers().get(LEADER).map(|url| url.to_str().unwrap_or_default()),
                Err(e) => e.is_connect().then_some(""),
            };
            let again = leader.is_some() && Instant::now() < until;
            if leader.is_some() || sent.is_err() {
                self.urls.turn(at, leader.unwrap_or_default());
            }
            if !again {
                return self.answer(&url, sent.map_err(|e| unreachable(&url, &e))?).await;
            }
            tried += 1;
            if tried % self.urls.count() == 0 {
                tokio::time::sleep(LOOK * 5).await;
            }
        }
    }

    async fn answer<T: DeserializeOwned>(&self, url: &str, mut answer: reqwest::Response) -> Result<T, Denied> {
        let status = answer.status().as_u16();
        let garbled = |seen: String| Denied::Garbled { url: url.to_owned(), status, seen };
        let body = reach::body(&mut answer, ANSWER_BYTES_MAX).await.map_err(|e| unreachable(url, &e))?;
        let body = body.ok_or_else(|| garbled(format!("more than {ANSWER_BYTES_MAX} bytes")))?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(|e| garbled(format!("what is not its JSON ({e})")));
        }
        match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => Err(Denied::Refused { status, fault }),
            Err(_) => Err(garbled(format!("{} bytes that say no reason", body.len()))),
        }
    }
}

fn unreachable(url: &str, why: &dyn std::error::Error) -> Denied {
    let mut text = why.to_string();
    // reqwest keeps what happened in the sources of its errors.
    let mut source = why.source();
    while let Some(deeper) = source {
        text += &format!(": {deeper}");
        source = deeper.source();
    }
    Denied::Unreachable { url: url.to_owned(), why: text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::Path;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, post};
    use gzs::api::What;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    fn view(id: u64, state: &str) -> OpView {
        OpView {
            id,
            what: What::Move { shards: vec![341], to: "bj".into() },
            by: String::new(),
            why: String::new(),
            forced: vec![],
            state: state.into(),
            says: "waits for sh".into(),
            begun_ms: 1,
            ended_ms: None,
            limit_ms: 2500,
            shards: vec![],
        }
    }

    /// A service whose operation ends at the third look.
    async fn service() -> GzsClient {
        let looks = Arc::new(AtomicU64::new(0));
        let op = async move |Path(id): Path<u64>| match id {
            7 => (
                StatusCode::OK,
                serde_json::to_string(&view(7, ["running", "done"][usize::from(looks.fetch_add(1, Relaxed) >= 2)]))
                    .unwrap(),
            ),
            8 => (StatusCode::OK, serde_json::to_string(&view(8, "running")).unwrap()),
            _ => (StatusCode::NOT_FOUND, r#"{"error":"no operation 9"}"#.into()),
        };
        let begin = async |headers: HeaderMap, body: String| {
            let ask: OpAsk = serde_json::from_str(&body).unwrap();
            let known = headers.get("authorization").is_some_and(|v| v == "Bearer s3cret");
            match ask.what {
                _ if !known => (StatusCode::UNAUTHORIZED, r#"{"error":"who are you?"}"#.to_owned()),
                What::Move { .. } => (StatusCode::OK, serde_json::to_string(&view(7, "running")).unwrap()),
                _ => (StatusCode::CONFLICT, r#"{"error":"not now","reasons":["sh lags","bj is silent"]}"#.to_owned()),
            }
        };
        let app = Router::new()
            .route("/v1/ops/{id}", get(op))
            .route("/v1/ops", post(begin))
            .route("/v1/state", get(async || "what?"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        GzsClient::new(&url, Some("s3cret".into())).unwrap()
    }

    fn ask(what: What) -> OpAsk {
        OpAsk { what, by: "me".into(), why: "test".into(), force: false, limit_ms: None }
    }

    #[tokio::test]
    async fn an_operation_is_begun_and_waited_for_with_the_token() {
        let client = service().await;
        let begun = client.begin(&ask(What::Move { shards: vec![341], to: "bj".into() })).await.unwrap();
        assert_eq!((begun.id, begun.state.as_str()), (7, "running"));
        assert_eq!(client.ended(7, Duration::from_secs(60)).await.unwrap().state, "done");
        let stranger = GzsClient { token: None, ..client };
        let denied = stranger.begin(&ask(What::Restore { zone: "sh".into() })).await.unwrap_err();
        assert_eq!(denied.to_string(), "who are you? (a bearer token is needed)");
    }

    #[tokio::test]
    async fn each_way_of_not_answering_is_told_apart() {
        let client = service().await;
        let refused = client.begin(&ask(What::Restore { zone: "sh".into() })).await.unwrap_err();
        assert_eq!(refused.to_string(), "not now\n  sh lags\n  bj is silent");
        assert!(matches!(client.op(9).await, Err(Denied::Refused { status: 404, .. })));
        assert!(matches!(client.state().await, Err(Denied::Garbled { status: 200, .. })));
        let slow = client.ended(8, Duration::from_millis(1)).await.unwrap_err();
        assert!(slow.to_string().starts_with("operation 8 has not ended within 1 ms; it running"), "{slow}");
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = GzsClient::new(&format!("http://{nobody}"), None).unwrap();
        assert!(matches!(client.ended(7, Duration::from_millis(1)).await, Err(Denied::Unreachable { .. })));
    }
}
