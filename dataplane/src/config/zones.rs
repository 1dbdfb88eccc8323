//! The other zones: how their routers and logs are reached.

use super::check::Check;
use super::endpoint::Endpoint;
use super::probe::{Probe, RawProbe};
use serde::Deserialize;
use std::net::SocketAddr;
use toml::{Spanned, Value};

/// Another zone.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name, as in the map.
    pub name: String,
    /// Its routers' `peer_listen`.
    pub routers: Vec<Endpoint>,
    /// Its log's `listen`.
    pub link: Option<SocketAddr>,
    /// How its routers are checked; `None`: they are not.
    pub probe: Option<Probe>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    pub(super) router: Option<Spanned<Value>>,
    pub(super) link: Option<Spanned<String>>,
    check: Option<Spanned<RawProbe>>,
}

impl Check<'_> {
    pub(super) fn peer(&mut self, name: String, own: &str, raw: Spanned<RawPeer>) -> Peer {
        if name == own {
            self.say(&raw, format!("[zones.{name}] is this node's own zone: list the others"));
        }
        let raw = raw.into_inner();
        let routers = raw.router.map(|r| self.endpoints(&r, &name)).unwrap_or_default();
        let probe = raw.check.map(|c| self.probe(c, true));
        Peer { routers, link: raw.link.and_then(|a| self.address(&a)), probe, name }
    }
}
