//! TLS: which certificates are shown to whom, and whose are believed. Files are named here and read by whoever uses them.

use super::Config;
use super::check::Check;
use crate::router::Side;
use crate::tls::{context, identity};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::{Spanned, Value};

/// Pairs of one node.
const PAIRS_MAX: usize = 1000;

/// A certificate, with the chain that leads to its authority, and its key: PEM files.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KeyFiles {
    /// The certificate, its own first.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// This node as a member of its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterFiles {
    /// The authorities that sign the members' certificates.
    pub ca: PathBuf,
    /// This node's own.
    pub own: KeyFiles,
}

/// How a service is reached by TLS.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct UpstreamTls {
    /// The authorities that sign its certificate; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// Whose certificate is expected; `None`: that of the endpoint's address.
    pub server_name: Option<String>,
    /// What is shown to it, if it asks.
    pub own: Option<KeyFiles>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPair {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpstream {
    ca: Option<PathBuf>,
    server_name: Option<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Config {
    /// Where the router listens, with the key that says so.
    pub fn listens(&self) -> Vec<(&'static str, SocketAddr, Side)> {
        let Some(router) = &self.router else { return vec![] };
        let peers = if self.cluster.is_some() { Side::TlsPeer } else { Side::Peer };
        let all = [
            ("listen", &router.listen, Side::Client),
            ("tls_listen", &router.tls_listen, Side::TlsClient),
            ("peer_listen", &router.peer_listen, peers),
        ];
        all.into_iter().flat_map(|(key, at, side)| at.iter().map(move |at| (key, *at, side))).collect()
    }
}

impl Check<'_> {
    pub(super) fn pairs(
        &mut self,
        raw: Vec<Spanned<RawPair>>,
        tls_listen: Option<&Spanned<Vec<String>>>,
    ) -> Vec<KeyFiles> {
        let listens = tls_listen.is_some_and(|l| !l.get_ref().is_empty());
        match (raw.first(), tls_listen) {
            (None, Some(list)) if listens => {
                self.say(list, "tls_listen needs a certificate: add [[tls]] with certificate and key");
            }
            (Some(first), _) if !listens => {
                self.say(first, "[[tls]] is shown at tls_listen, which [router] does not name");
            }
            (Some(_) | None, _) => {}
        }
        if let Some(over) = raw.get(PAIRS_MAX) {
            self.say(over, format!("{} certificates, at most {PAIRS_MAX}", raw.len()));
        }
        let of = |p: Spanned<RawPair>| self.key_files(&p.get_ref().certificate, &p.get_ref().key);
        raw.into_iter().map(of).collect()
    }

    fn key_files(&self, certificate: &Path, key: &Path) -> KeyFiles {
        KeyFiles { certificate: self.path(certificate), key: self.path(key) }
    }

    /// The names of cluster and zones stand in certificates, which allow less than a map.
    pub(super) fn cluster(
        &mut self,
        raw: &Spanned<RawCluster>,
        cluster: &str,
        zones: impl Iterator<Item = String>,
    ) -> ClusterFiles {
        if !identity::is_cluster(cluster) {
            let expected = "lower-case letters, digits, dots, dashes, underscores";
            self.say(raw, format!("[node] cluster = \"{cluster}\" cannot stand in a certificate: expected {expected}"));
        }
        for zone in zones.filter(|z| !identity::is_zone(z)) {
            let expected = "letters, digits, dots, dashes, underscores";
            self.say(raw, format!("zone \"{zone}\" cannot stand in a certificate: expected {expected}"));
        }
        let files = raw.get_ref();
        ClusterFiles { ca: self.path(&files.ca), own: self.key_files(&files.certificate, &files.key) }
    }

    /// `tls = true`, or a table that says more.
    pub(super) fn upstream_tls(&mut self, raw: &Spanned<Value>) -> Option<UpstreamTls> {
        let table = match raw.get_ref() {
            Value::Boolean(true) => RawUpstream { ca: None, server_name: None, certificate: None, key: None },
            Value::Boolean(false) => return None,
            Value::Table(_) => match raw.get_ref().clone().try_into::<RawUpstream>() {
                Ok(table) => table,
                Err(e) => return self.none(raw, format!("tls: {}", e.message())),
            },
            other => {
                let seen = other.type_str();
                return self
                    .none(raw, format!("tls is true, or {{ ca = \"..\", server_name = \"..\" }}, seen: {seen}"));
            }
        };
        if let Some(Err(why)) = table.server_name.as_deref().map(context::server_name) {
            self.say(raw, format!("server_name = {why}"));
        }
        let own = match (&table.certificate, &table.key) {
            (Some(certificate), Some(key)) => Some(self.key_files(certificate, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return self.none(raw, "certificate and key belong together"),
        };
        Some(UpstreamTls { ca: table.ca.map(|ca| self.path(&ca)), server_name: table.server_name, own })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = []\n\
        tls_listen = [\"0.0.0.0:8443\"]\npeer_listen = [\"10.0.0.1:8081\"]\n[[tls]]\ncertificate = \"a.pem\"\nkey = \"a.key\"\n\
        [cluster]\nca = \"ca.pem\"\ncertificate = \"/tls/bj.pem\"\nkey = \"/tls/bj.key\"\n\
        [[service]]\nprefix = \"/\"\nendpoints = [\"127.0.0.1:1\"]\ntls = true\n";

    fn problems(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        Config::parse("f.toml", &GOOD.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn who_is_listened_to_by_tls_is_said_with_each_address() {
        let c = Config::parse("/etc/f.toml", GOOD).unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let tls = ("tls_listen", at("0.0.0.0:8443"), Side::TlsClient);
        assert_eq!(c.listens(), [tls, ("peer_listen", at("10.0.0.1:8081"), Side::TlsPeer)]);
        assert_eq!(c.tls[0].key, Path::new("/etc/a.key"), "relative to the file that names it");
        assert_eq!(c.cluster.unwrap().own.key, Path::new("/tls/bj.key"));
        let all = UpstreamTls { ca: None, server_name: None, own: None };
        assert_eq!(c.services[0].tls, Some(all));
        let plain = GOOD.replace("10.0.0.1", "127.0.0.1").replace("[cluster]", "[zones.sh]\n[limits]\n");
        let plain = plain.replace("ca = \"ca.pem\"\ncertificate = \"/tls/bj.pem\"\nkey = \"/tls/bj.key\"\n", "");
        assert_eq!(Config::parse("f", &plain).unwrap().listens()[1].2, Side::Peer);
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        for (from, to, said) in [
            ("tls_listen = [\"0.0.0.0:8443\"]", "", "[[tls]] is shown at tls_listen, which [router] does not name"),
            ("tls_listen = [\"0.0.0.0:8443\"]", "", "f.toml:7: listen is empty"),
            ("[[tls]]\ncertificate = \"a.pem\"\nkey = \"a.key\"\n", "", "f.toml:8: tls_listen needs a certificate"),
            ("key = \"a.key\"", "", "missing field `key`"),
            ("ca = \"ca.pem\"", "", "missing field `ca`"),
            (
                "data_dir",
                "cluster = \"My Cluster\"\ndata_dir",
                "[node] cluster = \"My Cluster\" cannot stand in a certif",
            ),
            ("[cluster]", "[zones.\"s h\"]\n[cluster]", "zone \"s h\" cannot stand in a certificate"),
            ("peer_listen", "allow_plain_peers = true\npeer_listen", "allow_plain_peers has no meaning with [cluster]"),
            ("tls_listen", "proxy_protocol = true\ntls_listen", "a PROXY header in front of TLS is not read yet"),
            ("tls = true", "tls = \"yes\"", "tls is true, or { ca"),
            ("tls = true", "tls = { server_name = \"a b\" }", "server_name = \"a b\": expected a DNS name"),
            ("tls = true", "tls = { certificate = \"x\" }", "certificate and key belong together"),
            ("tls = true", "tls = { sni = \"x\" }", "unknown field `sni`"),
        ] {
            let seen = problems(from, to);
            assert!(seen.contains(said), "{said:?} not in:\n{seen}");
        }
    }
}
