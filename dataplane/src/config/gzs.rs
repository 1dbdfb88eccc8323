//! The configuration of `ezone gzs`, in a file of its own: it lives outside of every zone.
//!
//! The annotated example is `dataplane/gzs.example.toml`; a test loads it.

use super::check::{Check, line_of};
use super::{FILE_BYTES_MAX, KeyFiles, Machine, Problems, file};
use gzs::api::Role;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Callers that a service knows.
const TOKENS_MAX: usize = 1000;
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
    pub data_dir: PathBuf,
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGzs {
    data_dir: Spanned<PathBuf>,
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
        if g.data_dir.get_ref().as_os_str().is_empty() {
            self.say(&g.data_dir, "data_dir is empty: expected a directory");
        }
        let listen = self.own_address(&g.listen);
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
        if let Some(seen) = g.silence_ms.as_ref().filter(|_| silence_ms > 0 && silence_ms < 2 * gzs::limits::TELL_MS) {
            let least = 2 * gzs::limits::TELL_MS;
            self.say(
                seen,
                format!(
                    "silence_ms = {silence_ms}: expected 0 (never) or at least {least}: nodes tell every {} ms",
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
            data_dir: self.path(g.data_dir.get_ref()),
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
    fn silence_is_never_enough_unless_someone_says_so() {
        let c = GzsConfig::parse("f", GOOD).unwrap();
        assert_eq!((c.settings.silence_ms, c.settings.move_limit_ms, c.tokens.len()), (0, 2500, 0));
        assert!(
            problems(&(GOOD.to_owned() + "silence_ms = 300\n"))
                .contains("f.toml:5: silence_ms = 300: expected 0 (never) or at least 400")
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
