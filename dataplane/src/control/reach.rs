//! How a node reaches the Global Zone Service: an HTTP client with its token and the authorities that it believes.

use crate::config::{GzsAt, file};
use crate::tls::{Makers, Roots};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const TOKEN_BYTES_MAX: u64 = 4096;
const CA_BYTES_MAX: u64 = 1 << 20;

/// A service, and who asks it.
#[derive(Clone)]
pub struct Reach {
    url: String,
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
        let http = client(&at.url, at.ca.as_deref(), patience)?;
        // Header values are visible ASCII.
        let who = who.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        Ok(Reach { url: at.url.clone(), http, token, who })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A request for a path.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url)).header("x-ezone-node", &self.who);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// An HTTP client for what is at `url`; `ca`: who signs its certificate, `None`: those that this machine trusts.
pub fn client(url: &str, ca: Option<&Path>, patience: Duration) -> Result<reqwest::Client, String> {
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
    let tls = Makers::new()?.upstream(&roots.unwrap_or_else(nobody), None, None)?;
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
