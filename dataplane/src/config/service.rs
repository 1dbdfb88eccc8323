//! Services: what requests of this zone are forwarded to.

use super::check::Check;
use super::endpoint::Endpoint;
use super::name::Place;
use super::policy::{RawBalance, RawEject, RawPlaces, RawPolicy, RawPool, RawRate, RawRetry};
use super::probe::{Probe, RawProbe};
use super::tls::UpstreamTls;
use crate::router::figures::OWN_NAMES;
use crate::router::policy::Policy;
use serde::Deserialize;
use toml::{Spanned, Value};

/// Bytes of a service's name: it stands in every line of figures.
const NAME_BYTES_MAX: usize = 64;

/// A plain upstream of this zone.
#[derive(Clone, Debug)]
pub struct Service {
    /// What it is called in figures; its prefix unless it is given a name.
    pub name: String,
    /// Paths that begin with this; the longest prefix wins.
    pub prefix: String,
    /// Each connection to it begins with a PROXY header of the client.
    pub proxy_protocol: bool,
    /// Where it runs in this node's zone.
    pub endpoints: Vec<Endpoint>,
    /// How its endpoints are treated.
    pub policy: Policy,
    /// How it is reached by TLS; `None`: without.
    pub tls: Option<UpstreamTls>,
    /// How its endpoints are checked; `None`: they are not.
    pub probe: Option<Probe>,
}

impl Service {
    /// How one of its endpoints is reached by TLS: the certificate that is expected is that of its name, unless the
    /// configuration says whose.
    pub fn tls_of(&self, e: &Endpoint) -> Option<UpstreamTls> {
        let named = match &e.at {
            Place::Name(name) => Some(name.bare().to_owned()),
            Place::Addr(_) => None,
        };
        self.tls.clone().map(|tls| UpstreamTls { server_name: tls.server_name.or(named), ..tls })
    }

    /// Every way in which an endpoint is reached by TLS; without endpoints here, how it would be.
    pub fn tls_ways(&self) -> Vec<UpstreamTls> {
        let mut all: Vec<UpstreamTls> = vec![];
        for way in self.endpoints.iter().filter_map(|e| self.tls_of(e)) {
            if !all.contains(&way) {
                all.push(way);
            }
        }
        if all.is_empty() {
            all.extend(self.tls.clone());
        }
        all
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) name: Option<String>,
    pub(super) prefix: String,
    #[serde(default)]
    pub(super) proxy_protocol: bool,
    pub(super) endpoints: Spanned<Value>,
    balance: Option<Spanned<RawBalance>>,
    places: Option<Spanned<RawPlaces>>,
    pool: Option<Spanned<RawPool>>,
    retry: Option<Spanned<RawRetry>>,
    eject: Option<Spanned<RawEject>>,
    rate: Option<Spanned<RawRate>>,
    pub(super) tls: Option<Spanned<Value>>,
    check: Option<Spanned<RawProbe>>,
}

impl Check<'_> {
    /// A service, and where it stands.
    pub(super) fn service(&mut self, raw: Spanned<RawService>, own: &str) -> (Spanned<()>, Service) {
        if !raw.get_ref().prefix.starts_with('/') {
            self.say(&raw, format!("prefix = \"{}\": expected a path that begins with /", raw.get_ref().prefix));
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
        if let Some(name) = &raw.get_ref().name
            && (!(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(legal))
        {
            self.say(&raw, format!("name = \"{name}\": expected 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9 and -_./"));
        }
        if let Some(name) = raw.get_ref().name.as_ref().filter(|n| OWN_NAMES.contains(&n.as_str())) {
            self.say(&raw, format!("name = \"{name}\": figures call requests so that went to no service of yours"));
        }
        let at = Spanned::new(raw.span(), ());
        let raw = raw.into_inner();
        let endpoints = self.endpoints(&raw.endpoints, own);
        let RawService { name, prefix, proxy_protocol, balance, places, pool, retry, eject, rate, tls, check, .. } =
            raw;
        let name = name.unwrap_or_else(|| prefix.clone());
        let policy = self.policy(RawPolicy { balance, places, pool, retry, eject, rate });
        let tls = tls.as_ref().and_then(|tls| self.upstream_tls(tls));
        if proxy_protocol && tls.is_some() {
            self.say(&at, "proxy_protocol and tls of one service: a PROXY header in front of TLS is not written yet");
        }
        (
            at,
            Service {
                name,
                prefix,
                proxy_protocol,
                endpoints,
                policy,
                tls,
                probe: check.map(|c| self.probe(c, false)),
            },
        )
    }

    pub(super) fn services_told_apart(&mut self, all: &[(Spanned<()>, Service)]) {
        for (i, (at, s)) in all.iter().enumerate() {
            if all[..i].iter().any(|(_, other)| other.name == s.name) {
                self.say(at, format!("two services are called \"{}\"", s.name));
            }
            if all[..i].iter().any(|(_, other)| other.prefix == s.prefix) {
                self.say(at, format!("two services have the prefix \"{}\": the second would never be asked", s.prefix));
            }
        }
    }
}
