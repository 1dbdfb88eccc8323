//! The router of a node: where it listens and on which cores.

use super::Layout;
use super::check::Check;
use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

/// A load balancer looks within seconds.
const DRAIN_DELAY_MS_MAX: u64 = 600_000;

/// The router's part.
#[derive(Clone, Debug)]
pub struct Router {
    /// Clients connect here.
    pub listen: Vec<SocketAddr>,
    /// Clients come through a balancer that speaks the PROXY protocol.
    pub proxy_protocol: bool,
    /// Clients connect here by TLS.
    pub tls_listen: Vec<SocketAddr>,
    /// Routers of other zones connect here; what they say is trusted.
    pub peer_listen: Vec<SocketAddr>,
    /// Status and metrics.
    pub admin: Option<SocketAddr>,
    /// One router core is pinned to each.
    pub cores: Vec<usize>,
    /// How long it goes on as ever after `/readyz` says 503 at its end.
    pub drain_delay_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRouter {
    pub(super) listen: Spanned<Vec<String>>,
    pub(super) tls_listen: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub(super) proxy_protocol: bool,
    #[serde(default)]
    pub(super) peer_listen: Option<Spanned<Vec<String>>>,
    pub(super) admin: Option<Spanned<String>>,
    pub(super) cores: Option<Spanned<Vec<usize>>>,
    #[serde(default)]
    pub(super) allow_plain_peers: bool,
    pub(super) drain_delay_ms: Option<Spanned<u64>>,
}

impl Check<'_> {
    pub(super) fn router(&mut self, raw: RawRouter, in_cluster: bool, layout: &Layout) -> Option<Router> {
        let listen = self.own_addresses(&raw.listen)?;
        let tls_listen = match &raw.tls_listen {
            Some(list) => self.own_addresses(list)?,
            None => vec![],
        };
        if listen.is_empty() && tls_listen.is_empty() {
            self.say(&raw.listen, "listen is empty: expected at least one address, or tls_listen");
        }
        let peer_listen = match &raw.peer_listen {
            Some(list) => self.own_addresses(list)?,
            None => vec![],
        };
        if raw.proxy_protocol
            && let Some(list) = raw.tls_listen.as_ref().filter(|_| !tls_listen.is_empty())
        {
            self.say(list, "tls_listen and proxy_protocol: a PROXY header in front of TLS is not read yet");
        }
        if in_cluster && raw.allow_plain_peers {
            let what = "allow_plain_peers has no meaning with [cluster]: routers show each other certificates";
            self.say(&raw.listen, what);
        }
        if let (Some(list), false) = (&raw.peer_listen, raw.allow_plain_peers || in_cluster) {
            for at in peer_listen.iter().filter(|a| !a.ip().is_loopback()) {
                self.say(list, format!("peer_listen {at} is not on loopback and has no TLS: whoever reaches it is trusted. Add [cluster] with certificates; or put it on a private network and say allow_plain_peers = true"));
            }
        }
        let admin = match &raw.admin {
            Some(a) => Some(self.own_address(a)?),
            None => None,
        };
        let drain_delay_ms = raw.drain_delay_ms.as_ref().map_or(0, |d| *d.get_ref());
        if let Some(delay) = raw.drain_delay_ms.filter(|d| *d.get_ref() > DRAIN_DELAY_MS_MAX) {
            self.say(&delay, format!("drain_delay_ms = {drain_delay_ms}: expected 0 to {DRAIN_DELAY_MS_MAX}"));
        }
        Some(Router {
            listen,
            tls_listen,
            proxy_protocol: raw.proxy_protocol,
            peer_listen,
            admin,
            cores: layout.router.clone(),
            drain_delay_ms,
        })
    }
}

impl Router {
    /// Stands for a router whose part was refused; the problems keep the configuration from being used.
    pub(super) fn none() -> Router {
        Router {
            listen: vec![],
            tls_listen: vec![],
            proxy_protocol: false,
            peer_listen: vec![],
            admin: None,
            cores: vec![],
            drain_delay_ms: 0,
        }
    }
}
