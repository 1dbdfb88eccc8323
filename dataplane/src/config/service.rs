//! Services: what requests of this zone are forwarded to.

use super::check::Check;
use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

/// A plain upstream of this zone.
#[derive(Clone, Debug)]
pub struct Service {
    /// Paths that begin with this; the longest prefix wins.
    pub prefix: String,
    /// Where it runs.
    pub endpoints: Vec<SocketAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) prefix: String,
    pub(super) endpoints: Spanned<Vec<String>>,
}

impl Check<'_> {
    pub(super) fn service(&mut self, raw: Spanned<RawService>) -> Service {
        if !raw.get_ref().prefix.starts_with('/') {
            self.say(&raw, format!("prefix = \"{}\": expected a path that begins with /", raw.get_ref().prefix));
        }
        let raw = raw.into_inner();
        let endpoints = self.addresses(&raw.endpoints).unwrap_or_default();
        if endpoints.is_empty() {
            self.say(&raw.endpoints, "a service needs at least one endpoint");
        }
        Service { prefix: raw.prefix, endpoints }
    }
}
