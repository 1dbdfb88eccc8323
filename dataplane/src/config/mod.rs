//! Reads a node's configuration once: raw, unknown keys refused, then checked, all problems reported together.
//!
//! The annotated example is `dataplane/ezone.example.toml`; a test loads it.

mod access;
mod check;
mod dns;
mod endpoint;
pub mod file;
mod forwarded;
mod gzs;
mod layout;
mod limits;
mod log;
mod machine;
mod name;
mod node;
mod place;
mod policy;
mod probe;
mod router;
mod service;
mod tls;
mod zones;

pub use access::{AccessFormat, AccessLog};
pub use dns::{Dns, Family};
pub use endpoint::{ENDPOINTS_MAX, Endpoint};
pub use gzs::{EtcdConfig, GzsConfig, StoreAt, TokenFile};
pub use layout::{Kind, Layout, Mode, Said};
pub use limits::Limits;
pub use log::Log;
pub use machine::{Cpu, Machine};
pub use name::{Name, Place};
pub use node::{GzsAt, MapSource, Node};
pub use probe::{Probe, ProbeKind};
pub use router::Router;
pub use service::Service;
pub use tls::{ClusterFiles, KeyFiles, UpstreamTls};
pub use zones::Peer;

use crate::router::ShardRates;
use access::RawAccess;
use check::{Check, line_of};
use dns::RawDns;
use forwarded::RawForwarded;
use limits::RawLimits;
use log::RawLog;
use node::{RawMap, RawNode};
use place::RawLayout;
use policy::RawRates;
use router::RawRouter;
use serde::Deserialize;
use service::RawService;
use shardmap::Zone;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use tls::{RawCluster, RawPair};
use toml::Spanned;
use zones::RawPeer;

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// Where maps come from.
    pub map: MapSource,
    /// The router, if this node runs one.
    pub router: Option<Router>,
    /// The log, if this node runs one.
    pub log: Option<Log>,
    /// Which cores serve what.
    pub layout: Layout,
    /// The other zones.
    pub zones: Vec<Peer>,
    /// What this zone's requests are forwarded to.
    pub services: Vec<Service>,
    /// What the router writes down of requests, if it does.
    pub access_log: Option<AccessLog>,
    /// What the router accepts.
    pub limits: Limits,
    /// Requests a second of each shard.
    pub shard_rates: ShardRates,
    /// What requests that are sent on say of where they come from.
    pub forwarding: crate::router::forward::Forwarding,
    /// Certificates that are shown to clients, chosen by the name that they ask for, else the first.
    pub tls: Vec<KeyFiles>,
    /// What makes this node a member of its cluster: routers then trust each other by certificates.
    pub cluster: Option<ClusterFiles>,
    /// How names in endpoints become addresses.
    pub dns: Dns,
}

/// All that is wrong with a configuration.
#[derive(Debug)]
pub struct Problems {
    file: String,
    found: Vec<(usize, String)>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (line, what)) in self.found.iter().enumerate() {
            let end = if i + 1 < self.found.len() { "\n" } else { "" };
            match line {
                0 => write!(f, "{}: {what}{end}", self.file)?,
                _ => write!(f, "{}:{line}: {what}{end}", self.file)?,
            }
        }
        Ok(())
    }
}
impl std::error::Error for Problems {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    node: RawNode,
    map: Spanned<RawMap>,
    router: Option<RawRouter>,
    log: Option<RawLog>,
    #[serde(default)]
    layout: RawLayout,
    #[serde(default)]
    zones: BTreeMap<String, Spanned<RawPeer>>,
    #[serde(default)]
    service: Vec<Spanned<RawService>>,
    access_log: Option<RawAccess>,
    #[serde(default = "limits::default_limits")]
    limits: RawLimits,
    #[serde(default)]
    rates: RawRates,
    #[serde(default)]
    forwarded: RawForwarded,
    #[serde(default)]
    tls: Vec<Spanned<RawPair>>,
    cluster: Option<Spanned<RawCluster>>,
    dns: Option<Spanned<RawDns>>,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Config, Problems> {
        let file = path.display().to_string();
        match file::read_text(path, FILE_BYTES_MAX) {
            Ok(text) => Config::parse(&file, &text),
            Err(e) => Err(Problems { file, found: vec![(0, format!("cannot be read: {e}"))] }),
        }
    }

    /// Checks `text`, which came from `file`, for this machine.
    pub fn parse(file: &str, text: &str) -> Result<Config, Problems> {
        Config::parse_for(&Machine::here(), file, text)
    }

    /// Checks `text`, which came from `file`, for a node on `machine`.
    pub fn parse_for(machine: &Machine, file: &str, text: &str) -> Result<Config, Problems> {
        let raw: Raw = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |s| line_of(text, s.start));
            Problems { file: file.into(), found: vec![(line, e.message().to_string())] }
        })?;
        let base = Path::new(file).parent().unwrap_or(Path::new(""));
        let mut check = Check { base, text, machine, found: vec![], own: vec![] };
        let config = check.config(raw);
        check.found.sort();
        match (config, check.found.is_empty()) {
            (Some(config), true) => Ok(config),
            (_, _) => Err(Problems { file: file.into(), found: check.found }),
        }
    }

    /// Goes by the layout of `old`, which is in effect: the machine may have changed since.
    pub fn placed_like(&mut self, old: &Config) {
        self.layout = old.layout.clone();
        self.router.iter_mut().for_each(|r| r.cores.clone_from(&old.layout.router));
        self.log.iter_mut().for_each(|l| l.cores.clone_from(&old.layout.log));
    }

    /// The other zone of that name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.zones.iter().find(|p| p.name == name)
    }

    /// Every name in endpoints.
    pub fn names(&self) -> BTreeSet<Name> {
        let all = self.services.iter().flat_map(|s| &s.endpoints).chain(self.zones.iter().flat_map(|z| &z.routers));
        let named = |e: &Endpoint| match &e.at {
            Place::Name(name) => Some(name.clone()),
            Place::Addr(_) => None,
        };
        all.filter_map(named).collect()
    }

    /// The Unix socket of log core `index`.
    pub fn port_path(&self, index: usize) -> PathBuf {
        self.node.data_dir.join(format!("port-{index}.sock"))
    }

    /// The zone of `[zones.NAME]` in `map`; `None`: it was removed from the map, and is passed over.
    pub fn other_in(map: &shardmap::map::Map, name: &str) -> Result<Option<Zone>, String> {
        match map.zone_named(name) {
            Some(zone) => Ok(Some(zone)),
            None if map.gone().iter().any(|z| z.name == name) => {
                tracing::warn!("[zones.{name}] was removed from the map: it is passed over, and can be left out");
                Ok(None)
            }
            None => Err(format!("[zones.{name}] is not in the map: `ezctl zone add {name}` puts a new zone there")),
        }
    }

    /// This node's zone in `map`, or why it has none.
    pub fn zone_in(&self, map: &shardmap::map::Map) -> Result<Option<Zone>, String> {
        let Some(name) = &self.node.zone else { return Ok(None) };
        let zone = map.zone_named(name);
        let known = || map.zones().iter().map(|z| z.name.as_str()).collect::<Vec<_>>().join(", ");
        zone.map(Some)
            .ok_or_else(|| format!("zone \"{name}\" of this configuration is not in the map, which has: {}", known()))
    }
}

/// More is no configuration.
const FILE_BYTES_MAX: u64 = 16 << 20;

impl Check<'_> {
    fn config(&mut self, raw: Raw) -> Option<Config> {
        let edge = raw.node.zone.get_ref() == "none";
        let map = self.map(&raw.map);
        self.node(&raw.node);
        self.limits(&raw.limits);
        let tls = self.pairs(raw.tls, raw.router.as_ref().and_then(|r| r.tls_listen.as_ref()));
        let cluster = raw.cluster.as_ref().map(|c| {
            let own = (!edge).then(|| raw.node.zone.get_ref().clone());
            self.cluster(c, raw.node.cluster.get_ref(), raw.zones.keys().cloned().chain(own))
        });
        let layout = self.layout(&raw.layout, raw.router.as_ref(), raw.log.as_ref());
        let router = raw.router.map(|r| self.router(r, cluster.is_some(), &layout));
        let log = raw.log.map(|l| self.log(l, cluster.is_some(), &layout));
        self.told_apart();
        if edge && log.is_some() {
            self.say(&raw.node.zone, "an edge (zone = \"none\") stores nothing: remove [log], or name the zone");
        }
        if router.is_none() && log.is_none() {
            self.say(&raw.node.zone, "neither [router] nor [log]: this node would do nothing");
        }
        let zones = raw.zones.into_iter().map(|(name, p)| self.peer(name, raw.node.zone.get_ref(), p)).collect();
        let services: Vec<_> = raw.service.into_iter().map(|s| self.service(s, raw.node.zone.get_ref())).collect();
        self.services_told_apart(&services);
        let shard_rates = self.shard_rates(raw.rates);
        let services = services.into_iter().map(|(_, s)| s).collect();
        let node = Node {
            zone: (!edge).then(|| raw.node.zone.into_inner()),
            cluster: raw.node.cluster.into_inner(),
            data_dir: self.path(raw.node.data_dir.get_ref()),
        };
        Some(Config {
            node,
            map: map?,
            router: router.map(|r| r.unwrap_or_else(Router::none)),
            log: log.flatten(),
            layout,
            zones,
            services,
            access_log: raw.access_log.map(|a| self.access(a)),
            limits: raw.limits.into_inner(),
            shard_rates,
            forwarding: raw.forwarded.of_core(),
            tls,
            cluster,
            dns: self.dns(raw.dns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n";

    fn problems(text: &str) -> String {
        Config::parse("f.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_a_configuration() {
        let text = include_str!("../../ezone.example.toml");
        let c = Config::parse("ezone.example.toml", text).unwrap();
        assert_eq!(c.node.zone.as_deref(), Some("bj"));
        assert!(c.router.is_some() && c.log.is_some());
    }

    #[test]
    fn what_is_no_file_of_a_sensible_size_is_refused_unread() {
        let dir = std::env::temp_dir().join(format!("ezone-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let check = |name: &str, expected: &str| {
            let said = Config::load(&dir.join(name)).unwrap_err().to_string();
            assert!(said.contains(expected), "{name}: {said}");
        };
        check("missing", "No such file");
        check(".", "cannot be read: is a directory");
        std::fs::File::create(dir.join("huge")).unwrap().set_len(3 << 30).unwrap();
        check("huge", "3221225472 bytes; expected a file of at most 16777216 bytes");
        std::os::unix::fs::symlink("/dev/zero", dir.join("zero")).unwrap();
        check("zero", "no regular file");
        let fifo = dir.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        check("fifo", "no regular file");
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        check("loop", "Too many levels");
        std::fs::write(dir.join("bytes"), [0xff, 0, 0x80]).unwrap();
        check("bytes", "valid UTF-8");
        std::fs::write(dir.join("good"), GOOD).unwrap();
        std::os::unix::fs::symlink("good", dir.join("link")).unwrap();
        assert!(Config::load(&dir.join("link")).is_ok());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        assert!(problems(&GOOD.replace("data_dir", "data_dri")).starts_with("f.toml:3: unknown field `data_dri`"));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let text = GOOD.replace("http:", "ftp:")
            + "cores = [99]\npeer_listen = [\"10.0.0.1:1\", \"nonsense\"]\n[[service]]\nprefix = \"x\"\nendpoints = []\n";
        let said = problems(&text);
        for part in ["f.toml:4: gzs", "\"nonsense\"", "prefix = \"x\"", "at least one endpoint"] {
            assert!(said.contains(part), "{part} not in:\n{said}");
        }
    }

    #[test]
    fn plain_peers_beyond_loopback_need_a_word() {
        let text = GOOD.to_string() + "peer_listen = [\"10.0.0.1:1\"]\n";
        assert!(problems(&text).contains("allow_plain_peers"));
        assert!(Config::parse("f", &(text + "allow_plain_peers = true\n")).is_ok());
    }

    #[test]
    fn listeners_are_told_apart_and_their_ports_are_named() {
        let text = GOOD.to_string() + "admin = \"127.0.0.1:8080\"\n";
        assert_eq!(problems(&text), "f.toml:8: 127.0.0.1:8080 is listened at already by line 7");
        assert!(problems(&GOOD.replace("8080", "0")).starts_with("f.toml:7: 127.0.0.1:0: nobody could find"));
        assert!(problems(&GOOD.replace("[\"127.0.0.1:8080\"]", "[]")).contains("f.toml:7: listen is empty"));
    }

    #[test]
    fn values_that_no_node_could_run_with_are_refused_with_what_is_expected() {
        for (from, to, said) in [
            ("http://127.0.0.1:1", "http://", "f.toml:4: gzs = \"http://\": expected http:// or https:// and a host"),
            ("\"d\"", "\"\"", "f.toml:3: data_dir is empty"),
            ("\"d\"", &format!("\"/{}\"", "d".repeat(92)), "f.toml:3: data_dir is a path of 93 bytes, at most 92"),
            ("data_dir", "cluster = \"\"\ndata_dir", "f.toml:3: a cluster's name of 0 bytes: expected 1 to 255"),
            ("[router]", "[limits]\nhead_bytes_max = 0\n[router]", "[limits] head_bytes_max = 0: expected 256 to"),
            ("[router]", "[limits]\nrecord_bytes_max = 1048577\n[router]", "expected 1 to 1048576"),
            ("[router]", "[router]\ncores = [0, 0]", "f.toml:7: core 0 is named twice"),
        ] {
            let text = GOOD.replace(from, to);
            assert!(problems(&text).contains(said), "{said:?} not in:\n{}", problems(&text));
        }
    }

    #[test]
    fn paths_are_relative_to_the_file_that_names_them() {
        let text = GOOD.replace("gzs = \"http://127.0.0.1:1\"", "file = \"maps/china.toml\"");
        let c = Config::parse("/etc/ezone/node.toml", &text).unwrap();
        assert_eq!(c.node.data_dir, Path::new("/etc/ezone/d"));
        assert!(matches!(&c.map, MapSource::File(f) if f == Path::new("/etc/ezone/maps/china.toml")));
        let absolute = Config::parse("/etc/ezone/node.toml", &GOOD.replace("\"d\"", "\"/var/d\"")).unwrap();
        assert_eq!(absolute.node.data_dir, Path::new("/var/d"));
        assert_eq!(
            Config::parse("node.toml", GOOD).unwrap().node.data_dir,
            Path::new("d"),
            "as it is started beside it"
        );
    }

    #[test]
    fn a_service_has_a_name_and_the_endpoints_of_its_own_zone() {
        let check = |service: &str, name: &str, expected: &[(&str, u32)]| {
            let c = Config::parse("f", &format!("{GOOD}[[service]]\nprefix = \"/a\"\n{service}\n")).unwrap();
            let s = &c.services[0];
            let found: Vec<_> = s.endpoints.iter().map(|e| (e.at.to_string(), e.weight)).collect();
            let expected: Vec<_> = expected.iter().map(|(a, w)| (a.to_string(), *w)).collect();
            assert_eq!((s.name.as_str(), found), (name, expected), "{service}");
        };
        check("endpoints = [\"[::1]:3\"]", "/a", &[("[::1]:3", 1)]);
        let list = "endpoints = [\"1.1.1.1:3\", { addr = \"1.1.1.2:3\", weight = 5 }, { addr = \"1.1.1.3:3\", zone = \"sh\" }]";
        check(&format!("name = \"api\"\n{list}"), "api", &[("1.1.1.1:3", 1), ("1.1.1.2:3", 5)]);
        check("endpoints.sh = [\"1.1.1.1:3\"]\nendpoints.bj = [\"1.1.1.2:3\"]", "/a", &[("1.1.1.2:3", 1)]);
        check("endpoints.sh = [\"1.1.1.1:3\"]", "/a", &[]);
        let names = "endpoints = [\"A.internal:3\", { addr = \"b.internal:3\", weight = 2 }]";
        check(names, "/a", &[("a.internal:3", 1), ("b.internal:3", 2)]);
    }

    #[test]
    fn services_and_endpoints_that_make_no_sense_are_refused() {
        for (service, said) in [
            ("endpoints = [7]", "an endpoint is \"address:port\", \"name:port\""),
            ("endpoints = [{ addr = \"1.1.1.1:3\", wait = 1 }]", "an endpoint: unknown field `wait`"),
            ("endpoints = [{ addr = \"1.1.1.1:3\", weight = 0 }]", "weight = 0 of 1.1.1.1:3: expected 1 to 1000"),
            ("endpoints = [\"1.1.1.1:3\", \"1.1.1.1:3\"]", "1.1.1.1:3 is named twice"),
            ("endpoints = [\"a.b:3\", \"A.b:3\"]", "a.b:3 is named twice"),
            ("endpoints = [\"1.1.1:3\"]", "\"1.1.1:3\": expected an address or a name, and a port"),
            ("endpoints.sh = []", "at least one endpoint"),
            (
                "endpoints = [\"1.1.1.1:3\"]\n[[service]]\nprefix = \"/b\"\nname = \"/a\"\nendpoints = [\"1.1.1.1:4\"]",
                "two services are called \"/a\"",
            ),
            (
                "endpoints = [\"1.1.1.1:3\"]\n[[service]]\nprefix = \"/a\"\nname = \"b\"\nendpoints = [\"1.1.1.1:4\"]",
                "two services have the prefix \"/a\"",
            ),
            (
                "endpoints = [\"1.1.1.1:3\"]\ntls = true\nproxy_protocol = true",
                "a PROXY header in front of TLS is not written",
            ),
            ("name = \"zone:sh\"\nendpoints = [\"1.1.1.1:3\"]", "name = \"zone:sh\": expected 1 to 64"),
        ] {
            let said_all = problems(&format!("{GOOD}[[service]]\nprefix = \"/a\"\n{service}\n"));
            assert!(said_all.contains(said), "{said:?} not in:\n{said_all}");
        }
    }

    #[test]
    fn another_zone_has_one_router_or_several() {
        let routers = |value: &str| {
            let c = Config::parse("f", &format!("{GOOD}[zones.sh]\nrouter = {value}\n")).unwrap();
            c.zones[0].routers.iter().map(|e| e.at.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(routers("\"1.1.1.1:3\""), ["1.1.1.1:3"]);
        assert_eq!(routers("[\"1.1.1.1:3\", \"r.sh.internal:4\"]"), ["1.1.1.1:3", "r.sh.internal:4"]);
    }

    #[test]
    fn an_edge_stores_nothing() {
        let log = "[log]\nlisten = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\n";
        assert!(problems(&(GOOD.replace("\"bj\"", "\"none\"") + log)).contains("stores nothing"));
    }
}
