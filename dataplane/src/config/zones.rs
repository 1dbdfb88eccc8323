//! The other zones: how their routers and logs are reached.

use super::check::Check;
use super::endpoint::Endpoint;
use super::probe::{Probe, RawProbe};
use replog::link::pace::{self, Limit};
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
    /// How fast this zone's log may ship to it, at which hours.
    pub limits: Vec<Limit>,
    /// How its routers are checked; `None`: they are not.
    pub probe: Option<Probe>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPeer {
    pub(super) router: Option<Spanned<Value>>,
    pub(super) link: Option<Spanned<String>>,
    check: Option<Spanned<RawProbe>>,
    #[serde(default)]
    limits: Vec<Spanned<RawLimit>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimit {
    from: String,
    to: String,
    rate: String,
    #[serde(default = "utc")]
    utc_offset: String,
}

fn utc() -> String {
    "+00:00".into()
}

impl Check<'_> {
    fn limit(&mut self, raw: &Spanned<RawLimit>) -> Option<Limit> {
        let RawLimit { from, to, rate, utc_offset } = raw.get_ref();
        let made = || {
            let (from_min, to_min) = (pace::parse_time(from)?, pace::parse_time(to)?);
            Ok(Limit { from_min, to_min, east_min: pace::parse_offset(utc_offset)?, rate: pace::parse_rate(rate)? })
        };
        match made() {
            Ok(limit) => Some(limit),
            Err::<_, String>(why) => self.none(raw, format!("limits: {why}")),
        }
    }

    pub(super) fn peer(&mut self, name: String, own: &str, raw: Spanned<RawPeer>) -> Peer {
        if name == own {
            self.say(&raw, format!("[zones.{name}] is this node's own zone: list the others"));
        }
        let raw = raw.into_inner();
        let routers = raw.router.map(|r| self.endpoints(&r, &name)).unwrap_or_default();
        let probe = raw.check.map(|c| self.probe(c, true));
        let limits = raw.limits.iter().filter_map(|l| self.limit(l)).collect();
        Peer { limits, routers, link: raw.link.and_then(|a| self.address(&a)), probe, name }
    }
}
