//! How a node reaches the Global Zone Service: an HTTP client with its token and the authorities that it believes.

use crate::config::{GzsAt, KeyFiles, file};
use crate::tls::{Makers, Pair, Roots};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

const TOKEN_BYTES_MAX: u64 = 4096;
const CA_BYTES_MAX: u64 = 1 << 20;

/// Of a service that stands by: where the one is that leads; empty: not known.
pub const LEADER: &str = "x-ezone-leader";

/// A service, or several of which one leads, and who asks.
#[derive(Clone)]
pub struct Reach {
    urls: Arc<Urls>,
    http: reqwest::Client,
    token: Option<String>,
    /// Who asks, as the service's messages name it.
    who: String,
}

impl Reach {
    /// The service at `at`; no answer may take longer than `patience`.
    pub fn new(at: &GzsAt, who: &str, patience: Duration) -> Result<Reach, String> {
        let token = match &at.token_file {
            None => None,
            Some(path) => {
                let text = file::read_text(path, TOKEN_BYTES_MAX)
                    .map_err(|e| format!("token_file {}: {e}", path.display()))?;
                Some(text.trim().to_owned())
            }
        };
        let urls = Arc::new(Urls::new(at.urls.clone()));
        let http = client(&urls.now().1, at.ca.as_deref(), patience)?;
        // Header values are visible ASCII.
        let who = who.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        Ok(Reach { urls, http, token, who })
    }

    /// Asks; an answer of a service that stands by is an error, and the next time another one is asked.
    pub async fn ask(&self, asked: Asked<'_>) -> Result<reqwest::Response, String> {
        let (at, url) = self.urls.now();
        let request = request(&self.http, &url, asked, self.token.as_deref()).header("x-ezone-node", &self.who);
        match request.send().await {
            Ok(answer) => match answer.headers().get(LEADER) {
                None => {
                    // A proxy without anybody behind it, or another program: the next one may be the one that is meant.
                    if answer.status().is_server_error() || answer.status().as_u16() == 404 {
                        self.urls.turn(at, "");
                    }
                    Ok(answer)
                }
                Some(leader) => {
                    let leader = leader.to_str().unwrap_or_default().to_owned();
                    self.urls.turn(at, &leader);
                    Err(format!(
                        "{url} stands by{}",
                        if leader.is_empty() { String::new() } else { format!(" for {leader}") }
                    ))
                }
            },
            Err(e) => {
                self.urls.turn(at, "");
                Err(format!("{url}: {}", root_cause(&e)))
            }
        }
    }
}

/// Why something failed, each reason once until it works again.
#[derive(Default)]
pub struct Said(Vec<String>);

impl Said {
    /// More reasons than this, and nothing more is said.
    const MAX: usize = 8;

    /// Is it to be said?
    pub fn is_new(&mut self, why: &str) -> bool {
        let new = self.0.len() < Said::MAX && !self.0.iter().any(|said| said == why);
        if new {
            self.0.push(why.to_owned());
        }
        new
    }
}

/// What is asked for.
pub struct Asked<'a> {
    /// How.
    pub method: reqwest::Method,
    /// Of the service.
    pub path: &'a str,
    /// What is sent.
    pub json: Option<Vec<u8>>,
}

/// A request to the service at `url`, of who has this token.
pub fn request(http: &reqwest::Client, url: &str, asked: Asked<'_>, token: Option<&str>) -> reqwest::RequestBuilder {
    let mut request = http.request(asked.method, format!("{url}{}", asked.path));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(json) = asked.json {
        request = request.header("content-type", "application/json").body(json);
    }
    request
}

/// What an answer brings; `None`: more than `most` bytes.
pub async fn body(answer: &mut reqwest::Response, most: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = vec![];
    while let Some(part) = answer.chunk().await? {
        if body.len() + part.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(Some(body))
}

/// Addresses of services of which one leads, as far as is known the one that is asked now.
#[derive(Debug)]
pub struct Urls {
    all: Vec<String>,
    at: AtomicUsize,
}

impl Urls {
    /// At least one.
    pub fn new(all: Vec<String>) -> Urls {
        Urls { all, at: AtomicUsize::new(0) }
    }

    /// Which is asked now.
    pub fn now(&self) -> (usize, String) {
        let at = self.at.load(Relaxed) % self.all.len().max(1);
        (at, self.all.get(at).cloned().unwrap_or_default())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The one at `failed` was of no use: from now on that at `leader` is asked if it is one of these, else the one behind it, unless someone has turned
    /// already. What is not in the configuration is not asked: it would be shown a token.
    pub fn turn(&self, failed: usize, leader: &str) {
        let leader = leader.trim_end_matches('/');
        let next = self.all.iter().position(|url| url == leader).unwrap_or((failed + 1) % self.all.len().max(1));
        let _ = self.at.compare_exchange(failed, next, Relaxed, Relaxed); // someone was faster
    }
}

/// An HTTP client for what is at `url`; `ca`: who signs its certificate, `None`: those that this machine trusts.
pub fn client(url: &str, ca: Option<&Path>, patience: Duration) -> Result<reqwest::Client, String> {
    client_as(url, ca, None, patience)
}

/// Likewise, showing a certificate of its own.
pub fn client_as(
    url: &str,
    ca: Option<&Path>,
    own: Option<&KeyFiles>,
    patience: Duration,
) -> Result<reqwest::Client, String> {
    let roots = match ca {
        _ if !url.starts_with("https://") => None,
        None => Some(Roots::system()?),
        Some(path) => {
            let wrong = |e: String| format!("ca {}: {e}", path.display());
            let bytes = file::read(path, CA_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
            Some(Roots::read(&bytes).map_err(wrong)?)
        }
    };
    // Without certificates to believe nobody's is: what speaks plainly needs none.
    let nobody = || Roots { store: Arc::new(rustls::RootCertStore::empty()), until_s: i64::MAX };
    let makers = Makers::new()?;
    let own = own.map(|files| {
        let read = |path: &Path| file::read(path, CA_BYTES_MAX).map_err(|e| format!("{}: {e}", path.display()));
        Pair::read(&read(&files.certificate)?, &read(&files.key)?, makers.provider())
    });
    let tls = makers.upstream(&roots.unwrap_or_else(nobody), own.transpose()?.as_ref(), None)?;
    let builder = reqwest::Client::builder().timeout(patience).connect_timeout(Duration::from_secs(2)).no_proxy();
    builder.use_preconfigured_tls(tls.config.as_ref().clone()).build().map_err(|e| format!("HTTP client: {e}"))
}

/// "error sending request" helps nobody: what lies below it does.
pub fn root_cause(e: &dyn std::error::Error) -> String {
    let mut cause = e;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_of_no_use_is_left_for_the_leader_or_the_next() {
        let urls = Urls::new(["a", "b", "c"].map(str::to_owned).into());
        assert_eq!(urls.now(), (0, "a".into()));
        urls.turn(0, "c/");
        assert_eq!(urls.now(), (2, "c".into()));
        urls.turn(0, "b");
        assert_eq!(urls.now(), (2, "c".into()), "someone has turned already");
        urls.turn(2, "http://nobody.knows.it");
        assert_eq!(urls.now(), (0, "a".into()));
        urls.turn(0, "");
        assert_eq!(urls.now(), (1, "b".into()));
    }

    #[tokio::test]
    async fn no_answer_is_read_beyond_its_bound() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let long = axum::Router::new().fallback(|| async { "x".repeat(100_000) });
        tokio::spawn(async move { axum::serve(listener, long).await });
        let http = client(&url, None, Duration::from_secs(10)).unwrap();
        for (most, read) in [(99_999, None), (100_000, Some(100_000))] {
            let mut answer = http.get(&url).send().await.unwrap();
            assert_eq!(body(&mut answer, most).await.unwrap().map(|b| b.len()), read, "at most {most}");
        }
    }
}
