//! Certificates and keys on this machine: read when the router starts, at each reload, and when their files have changed.
//!
//! A new file that is no good changes nothing: handshakes go on with what was read before, and what is wrong is said. Files
//! change one after the other, so a pair that does not fit is looked at once more before anyone is told.

use super::metrics::Page;
use crate::config::{ClusterFiles, Config, KeyFiles, UpstreamTls, file};
use crate::tls::certificates::{FILE_BYTES_MAX, Validity};
use crate::tls::context::Expiry;
use crate::tls::{Cluster, Contexts, Identity, Makers, Outgoing, Pair, Roots, TlsId};
use rustls::ServerConfig;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Readings of changed files that were refused, since the start.
pub static REFUSED: AtomicU64 = AtomicU64::new(0);

/// What the configuration names, and what was found there.
#[derive(Default)]
pub struct Secrets {
    makers: Option<Makers>,
    /// The files as they were when `made` was made.
    read: BTreeMap<PathBuf, Vec<u8>>,
    /// Changed files that were no good when they were last looked at.
    refused: Option<BTreeMap<PathBuf, Vec<u8>>>,
    /// What was said of them.
    told: bool,
    made: Option<(Named, Contexts)>,
    /// The files are to be read again.
    stale: bool,
    ids: HashMap<Kind, TlsId>,
}

/// What connections of one kind have in common.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Zone(String),
    Upstream(UpstreamTls),
}

/// All that a configuration says of TLS.
#[derive(Clone, PartialEq, Eq, Default)]
struct Named {
    tls: Vec<KeyFiles>,
    cluster: Option<(String, ClusterFiles)>,
    own: Option<String>,
    zones: Vec<String>,
    upstreams: Vec<UpstreamTls>,
}

/// Files that were read, and what is wrong with them.
struct Reading<'a> {
    files: &'a BTreeMap<PathBuf, Vec<u8>>,
    /// As they were before; a certificate that has ended is no good in the place of another.
    before: Option<&'a BTreeMap<PathBuf, Vec<u8>>>,
    makers: &'a Makers,
    now_s: u64,
    problems: Vec<String>,
    warnings: Vec<String>,
    expiries: Vec<Expiry>,
}

impl Secrets {
    /// What new handshakes are to go by. The files are read if `config` names others than before, or after `read_again`.
    /// The error says all that is wrong with them, a line each; then nothing has changed.
    pub fn contexts(&mut self, config: &Config) -> Result<Contexts, String> {
        let named = Named::new(config);
        let stale = std::mem::take(&mut self.stale);
        match &self.made {
            _ if named.is_empty() => return Ok(Contexts::default()),
            Some((same, contexts)) if *same == named && !stale => return Ok(contexts.clone()),
            Some(_) | None => {}
        }
        let (contexts, warnings) = self.make(config, read_all(&named)?, None)?;
        warnings.iter().for_each(|w| tracing::warn!("{w}"));
        Ok(contexts)
    }

    /// The next `contexts` reads the files again.
    pub fn read_again(&mut self) {
        self.stale = true;
    }

    /// What is wrong with the files that `config` names, and what is not quite right.
    pub fn check(config: &Config) -> Result<Vec<String>, String> {
        let named = Named::new(config);
        if named.is_empty() {
            return Ok(vec![]);
        }
        Secrets::default().make(config, read_all(&named)?, None).map(|(_, warnings)| warnings)
    }

    /// Are new handshakes to go by something else than what is `in_effect`? Then the next `contexts` says by what. True if the
    /// files have changed and are good.
    pub fn changed(&mut self, config: &Config, in_effect: Option<&Contexts>) -> bool {
        let named = Named::new(config);
        let Some((_, made)) = &self.made else { return false };
        if in_effect.is_some_and(|c| c != made) {
            return true;
        }
        let found = read_all(&named);
        if found.as_ref().is_ok_and(|f| *f == self.read) {
            (self.refused, self.told) = (None, false);
            return false;
        }
        if found.is_err() && self.refused.take().is_some() {
            self.told = false; // files that cannot be read are another fault than the one before
        }
        let judged = found.and_then(|files| {
            let same = self.refused.as_ref() == Some(&files);
            self.told &= same; // and other files than those that were told of may have another
            self.refused = Some(files.clone());
            Secrets::default().make(config, files, Some(&self.read)).map_err(|e| if same { e } else { String::new() })
        });
        match judged {
            Ok(_) => {
                (self.refused, self.told, self.stale) = (None, false, true);
                true
            }
            // A second look at the same: it is not that someone is still writing.
            Err(why) if !why.is_empty() && !std::mem::replace(&mut self.told, true) => {
                REFUSED.fetch_add(1, Relaxed);
                tracing::error!("changed certificates are refused, those read before stay in use:\n{why}");
                false
            }
            Err(_) => false,
        }
    }

    /// How TLS is spoken to the routers of `zone`.
    pub fn to_zone(&mut self, config: &Config, zone: &str) -> Option<TlsId> {
        config.cluster.as_ref().map(|_| self.id(Kind::Zone(zone.into())))
    }

    /// How TLS is spoken to an upstream.
    pub fn to_upstream(&mut self, tls: Option<&UpstreamTls>) -> Option<TlsId> {
        tls.map(|tls| self.id(Kind::Upstream(tls.clone())))
    }

    /// The same kind has the same number for as long as this process runs, and no other kind ever has it.
    fn id(&mut self, kind: Kind) -> TlsId {
        let next = TlsId(u32::try_from(self.ids.len()).expect("reloads do not make four billion kinds"));
        *self.ids.entry(kind).or_insert(next)
    }

    fn make(
        &mut self,
        config: &Config,
        files: BTreeMap<PathBuf, Vec<u8>>,
        before: Option<&BTreeMap<PathBuf, Vec<u8>>>,
    ) -> Result<(Contexts, Vec<String>), String> {
        let makers = match self.makers.take() {
            Some(makers) => makers,
            None => Makers::new()?,
        };
        let now_s = super::wall_ms() / 1000;
        let (problems, warnings, expiries) = (vec![], vec![], vec![]);
        let mut r = Reading { files: &files, before, makers: &makers, now_s, problems, warnings, expiries };
        let clients = r.clients(&config.tls);
        let cluster = r.cluster(config);
        let (peers, zones) = r.members(config, cluster.as_ref());
        let mut kinds: Vec<(Kind, Outgoing)> = zones;
        for tls in config.services.iter().flat_map(|s| s.tls_ways()) {
            let kind = Kind::Upstream(tls.clone());
            if !kinds.iter().any(|(k, _)| *k == kind) {
                kinds.extend(r.upstream(&tls).map(|o| (kind, o)));
            }
        }
        let (problems, warnings, mut expiries) = (r.problems, r.warnings, r.expiries);
        expiries.sort();
        expiries.dedup();
        self.makers = Some(makers);
        if !problems.is_empty() {
            return Err(problems.join("\n"));
        }
        let outgoing: Vec<_> = kinds.into_iter().map(|(kind, how)| (self.id(kind), how)).collect();
        let contexts = Contexts::new(clients, peers, outgoing).with_expiries(expiries);
        self.made = Some((Named::new(config), contexts.clone()));
        self.read = files;
        Ok((contexts, warnings))
    }
}

impl Reading<'_> {
    fn note<T>(&mut self, made: Result<T, String>) -> Option<T> {
        made.map_err(|e| self.problems.push(e)).ok()
    }

    fn file(&self, path: &Path) -> &[u8] {
        self.files.get(path).map_or(&[], Vec::as_slice)
    }

    fn pair(&mut self, files: &KeyFiles) -> Option<Pair> {
        let pair = Pair::read(self.file(&files.certificate), self.file(&files.key), self.makers.provider());
        let (certificate, key) = (files.certificate.display(), files.key.display());
        let pair = pair.map_err(|e| match e.strip_prefix("key: ") {
            Some(why) => format!("{key}: {why} ({certificate})"),
            None => format!("{certificate}: {}", e.strip_prefix("certificate: ").unwrap_or(&e)),
        });
        let pair = self.note(pair)?;
        self.warnings.extend(pair.warnings.iter().map(|w| format!("{certificate}: {w}")));
        self.valid(&files.certificate, pair.validity);
        Some(pair)
    }

    fn roots(&mut self, path: &Path) -> Option<Roots> {
        let roots = Roots::read(self.file(path)).map_err(|e| format!("{}: {e}", path.display()));
        let roots = self.note(roots)?;
        self.valid(path, Validity { from_s: i64::MIN, until_s: roots.until_s });
        Some(roots)
    }

    fn valid(&mut self, path: &Path, validity: Validity) {
        let file = path.display().to_string();
        let is_new = self.before.is_some_and(|b| b.get(path) != self.files.get(path));
        let trouble = validity.trouble(self.now_s).map(|t| format!("{file}: {t}"));
        if is_new && !validity.holds(self.now_s) {
            self.problems.extend(trouble);
        } else {
            self.warnings.extend(trouble);
        }
        self.expiries.push(Expiry { file, until_s: validity.until_s });
    }

    fn clients(&mut self, files: &[KeyFiles]) -> Option<Arc<ServerConfig>> {
        let pairs: Vec<Pair> = files.iter().filter_map(|f| self.pair(f)).collect();
        if pairs.is_empty() {
            return None;
        }
        let made = self.makers.clients(&pairs);
        self.note(made)
    }

    fn cluster(&mut self, config: &Config) -> Option<Cluster> {
        let files = config.cluster.as_ref()?;
        let (roots, pair) = (self.roots(&files.ca), self.pair(&files.own));
        let zone = |name: &String| Identity::Zone(name.clone());
        let own = config.node.zone.as_ref().map_or(Identity::Edge, zone);
        let known = config.zones.iter().map(|z| zone(&z.name)).chain(config.node.zone.iter().map(zone));
        let known = known.chain([Identity::Edge]).collect();
        let cluster = Cluster { name: config.node.cluster.clone(), own, roots: roots?, pair: pair?, known };
        let certificate = files.own.certificate.display();
        let checked = cluster.check(self.now_s, self.makers.provider()).map_err(|e| format!("{certificate}: {e}"));
        self.note(checked)?;
        Some(cluster)
    }

    fn members(
        &mut self,
        config: &Config,
        cluster: Option<&Cluster>,
    ) -> (Option<Arc<ServerConfig>>, Vec<(Kind, Outgoing)>) {
        let Some(cluster) = cluster else { return (None, vec![]) };
        let peers = self.makers.peers(cluster);
        let peers = self.note(peers);
        let mut zones = vec![];
        for zone in &config.zones {
            let towards = self.makers.towards(cluster, Identity::Zone(zone.name.clone()));
            zones.extend(self.note(towards).map(|how| (Kind::Zone(zone.name.clone()), how)));
        }
        (peers, zones)
    }

    fn upstream(&mut self, tls: &UpstreamTls) -> Option<Outgoing> {
        let roots = match &tls.ca {
            Some(ca) => self.roots(ca),
            None => self.note(Roots::system()),
        };
        let own = match &tls.own {
            Some(files) => Some(self.pair(files)?),
            None => None,
        };
        let made = self.makers.upstream(&roots?, own.as_ref(), tls.server_name.as_deref());
        self.note(made)
    }
}

impl Named {
    fn new(config: &Config) -> Named {
        Named {
            tls: config.tls.clone(),
            cluster: config.cluster.clone().map(|c| (config.node.cluster.clone(), c)),
            own: config.node.zone.clone(),
            zones: config.zones.iter().map(|z| z.name.clone()).collect(),
            upstreams: config.services.iter().flat_map(|s| s.tls_ways()).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.tls.is_empty() && self.cluster.is_none() && self.upstreams.is_empty()
    }

    fn paths(&self) -> Vec<&Path> {
        let mut paths: Vec<&Path> = vec![];
        self.tls
            .iter()
            .chain(self.cluster.iter().map(|(_, c)| &c.own))
            .for_each(|k| paths.extend([k.certificate.as_path(), k.key.as_path()]));
        paths.extend(self.cluster.iter().map(|(_, c)| c.ca.as_path()));
        for tls in &self.upstreams {
            paths.extend(tls.ca.as_deref());
            tls.own.iter().for_each(|k| paths.extend([k.certificate.as_path(), k.key.as_path()]));
        }
        paths
    }
}

/// Every file that is named, or all that cannot be read.
fn read_all(named: &Named) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let (mut files, mut problems) = (BTreeMap::new(), vec![]);
    for path in named.paths() {
        match file::read(path, FILE_BYTES_MAX) {
            Ok(bytes) => drop(files.insert(path.to_owned(), bytes)),
            Err(e) => problems.push(format!("{}: cannot be read: {e}", path.display())),
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems.join("\n")) }
}

/// Adds what can be said of the certificates that `contexts` was made of.
pub fn show(page: &mut Page, contexts: &Contexts) {
    let help = "When a certificate ends, in seconds since 1970";
    for Expiry { file, until_s } in contexts.expiries() {
        let until_s = u64::try_from(*until_s).unwrap_or(0);
        page.labelled("ezone_certificate_expires_seconds", help, &[("file", file)], until_s);
    }
    if !contexts.expiries().is_empty() {
        let help = "Changed certificates or keys that were refused";
        page.counter("ezone_certificate_refusals_total", help, &[], REFUSED.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::authority::{Made, Period};
    use std::fs;
    use std::sync::Mutex;

    /// Tests that have files refused: these are counted for the whole process.
    static COUNTED: Mutex<()> = Mutex::new(());

    struct Dir {
        path: PathBuf,
        ca: Made,
    }

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("ezone-secrets-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            let dir = Dir { path, ca: Made::authority("ezone", Dir::days(100)).unwrap() };
            fs::write(dir.path.join("ca.pem"), &dir.ca.certificate).unwrap();
            dir.put("bj", &dir.ca.member(&Identity::Zone("bj".into()), Dir::days(90)).unwrap());
            dir.put("server", &dir.server(90));
            dir
        }
        fn days(days: u32) -> Period {
            let now_s = crate::control::wall_ms() / 1000;
            if days == 0 { Period::days(now_s - 86_400, 0) } else { Period::days(now_s, days) }
        }
        fn server(&self, days: u32) -> Made {
            self.ca.server(&["localhost".into()], Dir::days(days)).unwrap()
        }
        fn put(&self, name: &str, made: &Made) {
            fs::write(self.path.join(format!("{name}.pem")), &made.certificate).unwrap();
            fs::write(self.path.join(format!("{name}.key")), &made.key).unwrap();
        }
        fn config(&self) -> Config {
            let text = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\n\
                listen = []\ntls_listen = [\"127.0.0.1:1\"]\n[[tls]]\ncertificate = \"server.pem\"\nkey = \"server.key\"\n\
                [cluster]\nca = \"ca.pem\"\ncertificate = \"bj.pem\"\nkey = \"bj.key\"\n[zones.sh]\nrouter = \"127.0.0.1:2\"\n\
                [[service]]\nprefix = \"/\"\nendpoints = [\"127.0.0.1:3\"]\ntls = { ca = \"ca.pem\", server_name = \"localhost\" }\n";
            Config::parse(&self.path.join("f.toml").display().to_string(), text).unwrap()
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    #[test]
    fn what_the_configuration_names_is_read_and_its_ends_are_shown() {
        let dir = Dir::new("read");
        let (config, mut secrets) = (dir.config(), Secrets::default());
        let contexts = secrets.contexts(&config).unwrap();
        assert!(contexts.clients().is_some() && contexts.peers().is_some());
        let sh = secrets.to_zone(&config, "sh").unwrap();
        let upstream = secrets.to_upstream(config.services[0].tls.as_ref()).unwrap();
        assert!(sh != upstream && contexts.outgoing(sh).is_some() && contexts.outgoing(upstream).is_some());
        let mut page = Page::default();
        show(&mut page, &contexts);
        let text = page.text();
        let count = text.lines().filter(|l| l.starts_with("ezone_certificate_expires_seconds{")).count();
        assert!(count == 3 && text.contains("server.pem\"} "), "{text}");
        // Read again, the same kinds have the same names.
        assert!(secrets.contexts(&config).unwrap() == contexts, "files are not read for nothing");
        secrets.read_again();
        let again = secrets.contexts(&config).unwrap();
        assert!(again != contexts && again.outgoing(sh).is_some());
        assert_eq!(secrets.to_zone(&config, "sh"), Some(sh));
    }

    #[test]
    fn all_that_is_wrong_with_the_files_is_said_together() {
        let dir = Dir::new("wrong");
        dir.put("bj", &dir.ca.member(&Identity::Zone("sh".into()), Dir::days(9)).unwrap());
        fs::write(dir.path.join("server.key"), &dir.ca.key).unwrap();
        let said = Secrets::check(&dir.config()).unwrap_err();
        assert!(said.contains("server.key: it is not the key of this certificate"), "{said}");
        assert!(said.contains("bj.pem: the certificate is of zone sh, expected zone bj"), "{said}");
        fs::remove_file(dir.path.join("ca.pem")).unwrap();
        fs::write(dir.path.join("bj.key"), vec![b'x'; 2 << 20]).unwrap();
        let said = Secrets::default().contexts(&dir.config()).map(drop).unwrap_err();
        let large = "bj.key: cannot be read: 2097152 bytes; expected a file of at most 1048576 bytes";
        assert!(said.contains("ca.pem: cannot be read") && said.contains(large), "{said}");
    }

    #[test]
    fn a_certificate_that_has_ended_is_warned_of_at_the_start_and_refused_in_the_place_of_another() {
        let _counted = COUNTED.lock().unwrap_or_else(|e| e.into_inner());
        let dir = Dir::new("ended");
        let (config, mut secrets) = (dir.config(), Secrets::default());
        dir.put("server", &dir.server(5));
        assert!(Secrets::check(&config).unwrap()[0].contains("server.pem: ends in "));
        secrets.contexts(&config).unwrap();
        dir.put("server", &dir.server(0));
        assert!(
            !secrets.changed(&config, None) && !secrets.changed(&config, None),
            "it has ended, the one before has not"
        );
        assert!(Secrets::check(&config).unwrap()[0].contains("server.pem: has ended"));
        // One that ended by itself is in nobody's way.
        secrets.read_again();
        secrets.contexts(&config).unwrap();
        dir.put("bj", &dir.ca.member(&Identity::Zone("bj".into()), Dir::days(91)).unwrap());
        assert!(secrets.changed(&config, None));
    }

    #[test]
    fn changed_files_are_taken_once_they_are_good_and_a_bad_one_is_told_once() {
        let _counted = COUNTED.lock().unwrap_or_else(|e| e.into_inner());
        let dir = Dir::new("changed");
        let (config, mut secrets) = (dir.config(), Secrets::default());
        let first = secrets.contexts(&config).unwrap();
        assert!(!secrets.changed(&config, None));
        let before = REFUSED.load(Relaxed);
        let new = dir.server(80);
        fs::write(dir.path.join("server.pem"), &new.certificate).unwrap();
        assert!(!secrets.changed(&config, None) && REFUSED.load(Relaxed) == before, "someone may still be writing");
        (0..3).for_each(|_| assert!(!secrets.changed(&config, None)));
        assert_eq!(REFUSED.load(Relaxed), before + 1, "told at the second look, and once");
        // Who mends one fault by another must hear of that one, too.
        let look_twice = |secrets: &mut Secrets| (0..3).for_each(|_| assert!(!secrets.changed(&config, None)));
        fs::write(dir.path.join("server.pem"), "no certificate").unwrap();
        look_twice(&mut secrets);
        assert_eq!(REFUSED.load(Relaxed), before + 2, "another bad file is told as well");
        fs::remove_file(dir.path.join("server.pem")).unwrap();
        look_twice(&mut secrets);
        assert_eq!(REFUSED.load(Relaxed), before + 3, "and one that is gone");
        fs::write(dir.path.join("server.pem"), &new.certificate).unwrap();
        look_twice(&mut secrets);
        assert_eq!(REFUSED.load(Relaxed), before + 4, "and the first, which is back");
        fs::write(dir.path.join("server.key"), &new.key).unwrap();
        assert!(secrets.changed(&config, None));
        let second = secrets.contexts(&config).unwrap();
        assert!(second != first);
        assert!(
            secrets.changed(&config, Some(&first)) && !secrets.changed(&config, Some(&second)),
            "what was made is not in effect yet"
        );
        assert!(!secrets.changed(&config, None));
    }
}
