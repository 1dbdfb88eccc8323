//! The configuration of `ezone gzs`, in a file of its own: it lives outside of every zone.
//!
//! The annotated example is `dataplane/gzs.example.toml`; a test loads it.

use super::check::{Check, line_of};
use super::node::has_host;
use super::{FILE_BYTES_MAX, KeyFiles, Machine, Problems, file};
use gzs::api::Role;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Callers that a service knows.
const TOKENS_MAX: usize = 1000;
/// What etcd grants at least, as it comes from Debian.
const LEASE_S: u64 = 2;
const LEASE_S_MAX: u64 = 60;
const PREFIX_BYTES_MAX: usize = 200;
/// Hours that anything may take.
const TIME_MS_MAX: u64 = 24 * 3600 * 1000;
/// Shorter leases end between two tellings of a busy node ..
const LEASE_MS_MIN: u64 = 3 * gzs::limits::TELL_MS;
/// .. and for as long as a longer one, a lost zone's global services could not be taken over.
const LEASE_MS_MAX: u64 = 5 * 60 * 1000;

/// A Global Zone Service's configuration, checked.
#[derive(Clone, Debug)]
pub struct GzsConfig {
    /// Where its store lies.
    pub store: StoreAt,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The first map, as text: read when the store is empty.
    pub map: PathBuf,
    /// What it shows, for TLS; `None`: it speaks plainly.
    pub tls: Option<KeyFiles>,
    /// Who may do what; none: everybody may do everything, on loopback.
    pub tokens: Vec<TokenFile>,
    /// What the service goes by.
    pub settings: gzs::service::Settings,
}

/// Where a store lies.
#[derive(Clone, Debug)]
pub enum StoreAt {
    /// In this directory, as SQLite: one service has it.
    Dir(PathBuf),
    /// In etcd: several services share it, and one leads.
    Etcd(EtcdConfig),
}

/// An etcd, and this service among those that share it.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// `http://` or `https://`, host and port of each member.
    pub endpoints: Vec<String>,
    /// Every key begins with it.
    pub prefix: String,
    /// What this service is called.
    pub name: String,
    /// Where nodes and people reach this one.
    pub url: String,
    /// A leader that was not heard for so long is one no more.
    pub lease_s: u64,
    /// Who signs the members' certificates.
    pub ca: Option<PathBuf>,
    /// What is shown to them.
    pub identity: Option<KeyFiles>,
}

/// A caller: who shows what is in the file is this one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenFile {
    /// Who, for the audit.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// Where the token is.
    pub file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    gzs: RawGzs,
    #[serde(default)]
    token: Vec<Spanned<RawToken>>,
    tls: Option<RawTls>,
    #[serde(default)]
    zones: BTreeMap<String, RawZone>,
    etcd: Option<Spanned<RawEtcd>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEtcd {
    endpoints: Vec<String>,
    prefix: Option<String>,
    name: Option<String>,
    url: Option<String>,
    lease_s: Option<u64>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGzs {
    data_dir: Option<Spanned<PathBuf>>,
    listen: Spanned<String>,
    #[serde(default = "default_cluster")]
    cluster: String,
    map: PathBuf,
    #[serde(default)]
    silence_ms: Option<Spanned<u64>>,
    #[serde(default)]
    cool_down_s: Option<Spanned<u64>>,
    #[serde(default)]
    move_limit_ms: Option<Spanned<u64>>,
    #[serde(default)]
    lease_ms: Option<Spanned<u64>>,
    #[serde(default)]
    allow_plain: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    name: String,
    role: Role,
    file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawZone {
    requests_per_s_max: Option<f64>,
}

fn default_cluster() -> String {
    "ezone".into()
}

impl GzsConfig {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<GzsConfig, Problems> {
        let file = path.display().to_string();
        match file::read_text(path, FILE_BYTES_MAX) {
            Ok(text) => GzsConfig::parse(&file, &text),
            Err(e) => Err(Problems { file, found: vec![(0, format!("cannot be read: {e}"))] }),
        }
    }

    /// Checks `text`, which came from `file`.
    pub fn parse(file: &str, text: &str) -> Result<GzsConfig, Problems> {
        let raw: Raw = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |s| line_of(text, s.start));
            Problems { file: file.into(), found: vec![(line, e.message().to_string())] }
        })?;
        let base = Path::new(file).parent().unwrap_or(Path::new(""));
        let machine = Machine::here();
        let mut check = Check { base, text, machine: &machine, found: vec![], own: vec![] };
        let config = check.gzs(raw);
        check.found.sort();
        match (config, check.found.is_empty()) {
            (Some(config), true) => Ok(config),
            (_, _) => Err(Problems { file: file.into(), found: check.found }),
        }
    }
}

impl Check<'_> {
    fn gzs(&mut self, raw: Raw) -> Option<GzsConfig> {
        let g = &raw.gzs;
        let listen = self.own_address(&g.listen);
        let store = self.store(&raw, listen);
        if let Some(at) = listen.filter(|at| !at.ip().is_loopback()) {
            if raw.token.is_empty() {
                self.say(
                    &g.listen,
                    format!("listen = \"{at}\" beyond loopback without [[token]]: anybody could move shards"),
                );
            }
            if raw.tls.is_none() && !g.allow_plain {
                let why = "beyond loopback without [tls]: tokens would travel in the clear; say allow_plain = true if the line is safe";
                self.say(&g.listen, format!("listen = \"{at}\" {why}"));
            }
        }
        let mut ms = |raw: &Option<Spanned<u64>>, key: &str, default: u64, factor: u64| {
            let Some(seen) = raw else { return default };
            let value = seen.get_ref().saturating_mul(factor);
            if value > TIME_MS_MAX {
                self.say(seen, format!("{key} = {}: expected at most {}", seen.get_ref(), TIME_MS_MAX / factor));
            }
            value
        };
        let silence_ms = ms(&g.silence_ms, "silence_ms", 0, 1);
        let cool_down_ms = ms(&g.cool_down_s, "cool_down_s", 60_000, 1000);
        let move_limit_ms = ms(&g.move_limit_ms, "move_limit_ms", 2500, 1);
        let lease_ms = ms(&g.lease_ms, "lease_ms", 3000, 1);
        if let Some(seen) = g.lease_ms.as_ref().filter(|_| !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&lease_ms)) {
            self.say(seen, format!("lease_ms = {lease_ms}: expected {LEASE_MS_MIN} to {LEASE_MS_MAX}"));
        }
        if let Some(seen) = g.silence_ms.as_ref().filter(|_| silence_ms > 0 && silence_ms < gzs::limits::LIVE_MS) {
            let least = gzs::limits::LIVE_MS;
            self.say(
                seen,
                format!(
                    "silence_ms = {silence_ms}: expected 0 (never) or at least {least}: nodes tell every {} ms, and may be late",
                    gzs::limits::TELL_MS
                ),
            );
        }
        if let Some(over) = raw.token.get(TOKENS_MAX) {
            self.say(over, format!("{} tokens, at most {TOKENS_MAX}", raw.token.len()));
        }
        let mut tokens: Vec<TokenFile> = vec![];
        for token in &raw.token {
            let RawToken { name, role, file } = token.get_ref();
            if name.is_empty() || tokens.iter().any(|t| t.name == *name) {
                self.say(token, format!("name = \"{name}\": each token has a name of its own, for the audit"));
            }
            tokens.push(TokenFile { name: name.clone(), role: *role, file: self.path(file) });
        }
        let rates = raw.zones.iter().filter_map(|(name, z)| Some((name.clone(), z.requests_per_s_max?)));
        Some(GzsConfig {
            store: store?,
            listen: listen?,
            map: self.path(&g.map),
            tls: raw.tls.map(|t| KeyFiles { certificate: self.path(&t.certificate), key: self.path(&t.key) }),
            tokens,
            settings: gzs::service::Settings {
                cluster: g.cluster.clone(),
                silence_ms,
                cool_down_ms,
                move_limit_ms,
                requests_per_s_max: rates.collect(),
                lease_ms,
            },
        })
    }
}

impl Check<'_> {
    fn store(&mut self, raw: &Raw, listen: Option<SocketAddr>) -> Option<StoreAt> {
        match (&raw.gzs.data_dir, &raw.etcd) {
            (Some(dir), None) if dir.get_ref().as_os_str().is_empty() => {
                self.none(dir, "data_dir is empty: expected a directory")
            }
            (Some(dir), None) => Some(StoreAt::Dir(self.path(dir.get_ref()))),
            (None, Some(etcd)) => self.etcd(etcd, raw, listen?).map(StoreAt::Etcd),
            (Some(dir), Some(_)) => self.none(dir, "both data_dir and [etcd]: a service has one store"),
            (None, None) => self.none(&raw.gzs.listen, "no store: expected data_dir (one service) or [etcd] (several)"),
        }
    }

    fn etcd(&mut self, spanned: &Spanned<RawEtcd>, raw: &Raw, listen: SocketAddr) -> Option<EtcdConfig> {
        let e = spanned.get_ref();
        let (expected, secure) = (
            "expected http:// or https:// and a host",
            e.endpoints.iter().filter(|u| u.starts_with("https://")).count(),
        );
        if let Some(url) = e.endpoints.iter().find(|url| !has_host(url)) {
            return self.none(spanned, format!("endpoints: \"{url}\": {expected}"));
        }
        if e.endpoints.is_empty() || (secure > 0 && secure < e.endpoints.len()) {
            return self.none(spanned, "endpoints: expected at least one, all http:// or all https://");
        }
        if secure == 0 && (e.ca.is_some() || e.certificate.is_some()) {
            self.say(spanned, "ca and certificate are for https://, and endpoints are http://");
        }
        let identity = match (&e.certificate, &e.key) {
            (Some(certificate), Some(key)) => {
                Some(KeyFiles { certificate: self.path(certificate), key: self.path(key) })
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return self.none(spanned, "certificate and key go together"),
        };
        let lease_s = e.lease_s.unwrap_or(LEASE_S);
        if !(LEASE_S..=LEASE_S_MAX).contains(&lease_s) {
            let why =
                format!("lease_s = {lease_s}: expected {LEASE_S} to {LEASE_S_MAX}; etcd's own least is {LEASE_S}");
            return self.none(spanned, why);
        }
        let scheme = if raw.tls.is_some() { "https" } else { "http" };
        let url = e.url.clone().unwrap_or_else(|| format!("{scheme}://{listen}"));
        if !has_host(&url) || (e.url.is_none() && listen.ip().is_unspecified()) {
            return self.none(
                spanned,
                format!("url = \"{url}\": expected where nodes reach this service, such as https://gzs-1:7300"),
            );
        }
        let prefix = e.prefix.clone().unwrap_or_else(|| format!("ezone/{}/", raw.gzs.cluster));
        if !prefix.ends_with('/') || prefix.len() > PREFIX_BYTES_MAX {
            let why = format!("prefix = \"{prefix}\": expected at most {PREFIX_BYTES_MAX} bytes that end with /");
            return self.none(spanned, why);
        }
        Some(EtcdConfig {
            endpoints: e.endpoints.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(),
            prefix,
            name: e.name.clone().unwrap_or_else(|| url.clone()),
            url: url.trim_end_matches('/').to_owned(),
            lease_s,
            ca: e.ca.as_deref().map(|p| self.path(p)),
            identity,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[gzs]\ndata_dir = \"d\"\nlisten = \"127.0.0.1:7300\"\nmap = \"china.toml\"\n";

    fn problems(text: &str) -> String {
        GzsConfig::parse("f.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_a_configuration() {
        let text = include_str!("../../gzs.example.toml");
        let c = GzsConfig::parse("/etc/ezone/gzs.toml", text).unwrap();
        assert_eq!((c.settings.silence_ms, c.settings.cool_down_ms), (5000, 60_000));
        assert_eq!((c.tokens.len(), c.tokens[0].role), (4, Role::Node));
        assert_eq!(c.map, Path::new("/etc/ezone/china.toml"));
        assert!(c.tls.is_some() && c.settings.requests_per_s_max.contains_key("sh"));
    }

    #[test]
    fn it_has_one_store() {
        let etcd = |more: &str| GOOD.replace("data_dir = \"d\"\n", "") + "[etcd]\n" + more;
        let one = "endpoints = [\"http://127.0.0.1:2379/\"]\n";
        let c = GzsConfig::parse("f", &etcd(one)).unwrap();
        let StoreAt::Etcd(e) = c.store else { panic!("no etcd") };
        assert_eq!(
            (e.endpoints[0].as_str(), e.prefix.as_str(), e.lease_s),
            ("http://127.0.0.1:2379", "ezone/ezone/", 2)
        );
        assert_eq!((e.url.as_str(), e.name.as_str()), ("http://127.0.0.1:7300", "http://127.0.0.1:7300"));
        for (more, said) in [
            ("endpoints = []\n", "expected at least one"),
            ("endpoints = [\"127.0.0.1:2379\"]\n", "\"127.0.0.1:2379\": expected http:// or https://"),
            ("endpoints = [\"http://a\", \"https://b\"]\n", "all http:// or all https://"),
            (&(one.to_owned() + "lease_s = 1\n"), "lease_s = 1: expected 2 to 60"),
            (&(one.to_owned() + "prefix = \"a\"\n"), "that end with /"),
            (&(one.to_owned() + "ca = \"a\"\n"), "are for https://"),
            (&(one.to_owned() + "key = \"a\"\n"), "go together"),
        ] {
            assert!(problems(&etcd(more)).contains(said), "{more}: {}", problems(&etcd(more)));
        }
        assert!(problems(&(GOOD.to_owned() + "[etcd]\n" + one)).contains("both data_dir and [etcd]"));
        assert!(problems(&GOOD.replace("data_dir = \"d\"\n", "")).contains("no store"));
    }

    #[test]
    fn silence_is_never_enough_unless_someone_says_so() {
        let c = GzsConfig::parse("f", GOOD).unwrap();
        assert_eq!((c.settings.silence_ms, c.settings.move_limit_ms, c.tokens.len()), (0, 2500, 0));
        assert!(
            problems(&(GOOD.to_owned() + "silence_ms = 300\n"))
                .contains("f.toml:5: silence_ms = 300: expected 0 (never) or at least 1000")
        );
        assert_eq!(GzsConfig::parse("f", GOOD).unwrap().settings.lease_ms, 3000);
        assert!(problems(&(GOOD.to_owned() + "lease_ms = 599\n")).contains("lease_ms = 599: expected 600 to 300000"));
        assert!(problems(&(GOOD.to_owned() + "cool_down_s = 90000\n")).contains("expected at most 86400"));
    }

    #[test]
    fn beyond_loopback_it_wants_tokens_and_tls() {
        let open = GOOD.replace("127.0.0.1", "10.0.0.1");
        let said = problems(&open);
        assert!(
            said.contains("f.toml:3: ") && said.contains("anybody could move shards") && said.contains("allow_plain"),
            "{said}"
        );
        let token = "[[token]]\nname = \"a\"\nrole = \"operate\"\nfile = \"a\"\n";
        assert!(GzsConfig::parse("f", &(open.clone() + "allow_plain = true\n" + token)).is_ok());
        assert!(GzsConfig::parse("f", &(open + token + "[tls]\ncertificate = \"c\"\nkey = \"k\"\n")).is_ok());
        assert!(problems(&(GOOD.to_owned() + token + token)).contains("each token has a name of its own"));
        assert!(problems(&(GOOD.to_owned() + &token.replace("operate", "root"))).contains("unknown variant `root`"));
    }
}
