//! Reads a node's configuration once: raw, unknown keys refused, then checked, all problems reported together.
//!
//! The annotated example is `dataplane/ezone.example.toml`; a test loads it.

use serde::Deserialize;
use shardmap::Zone;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Bytes of a cluster's name: it travels in every HELLO.
const CLUSTER_BYTES_MAX: usize = 255;
/// What the kernel takes for a Unix socket's path is 107 bytes; `/port-1023.sock` is the longest name in the directory.
const DATA_DIR_BYTES_MAX: usize = 107 - "/port-1023.sock".len();

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
    /// The other zones.
    pub zones: Vec<Peer>,
    /// What this zone's requests are forwarded to.
    pub services: Vec<Service>,
    /// What the router accepts.
    pub limits: Limits,
}

/// This node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The name of its zone, as in the map; `None` for an edge.
    pub zone: Option<String>,
    /// The cluster's name: links between clusters are refused.
    pub cluster: String,
    /// Where it keeps its log, its store and its last map.
    pub data_dir: PathBuf,
}

/// Where maps come from.
#[derive(Clone, Debug)]
pub enum MapSource {
    /// A map file that never changes.
    File(PathBuf),
    /// A Global Zone Service, by URL.
    Gzs(String),
}

/// The router's part.
#[derive(Clone, Debug)]
pub struct Router {
    /// Clients connect here.
    pub listen: Vec<SocketAddr>,
    /// Routers of other zones connect here; what they say is trusted.
    pub peer_listen: Vec<SocketAddr>,
    /// Status and metrics.
    pub admin: Option<SocketAddr>,
    /// One router core is pinned to each.
    pub cores: Vec<usize>,
}

/// The log's part.
#[derive(Clone, Debug)]
pub struct Log {
    /// Logs of other zones connect here.
    pub listen: SocketAddr,
    /// Status, reports and metrics.
    pub admin: SocketAddr,
    /// One log core is pinned to each.
    pub cores: Vec<usize>,
    /// The number of streams, the same in every zone, fixed when the data directory is created.
    pub streams: u32,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// Take writes without having reached the GZS or every other zone: an operator's word, recorded.
    pub start_alone: bool,
}

/// Another zone.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name, as in the map.
    pub name: String,
    /// Its routers' `peer_listen`.
    pub router: Option<SocketAddr>,
    /// Its log's `listen`.
    pub link: Option<SocketAddr>,
}

/// A plain upstream of this zone.
#[derive(Clone, Debug)]
pub struct Service {
    /// Paths that begin with this; the longest prefix wins.
    pub prefix: String,
    /// Where it runs.
    pub endpoints: Vec<SocketAddr>,
}

/// What the router accepts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a request or response head.
    pub head_bytes_max: usize,
    /// Bytes of a record's value.
    pub record_bytes_max: usize,
    /// Connections of clients on one core.
    pub connections_max: usize,
    /// How long a request may wait for a shard that is moving.
    pub hold_ms_max: u64,
    /// How many requests may wait so on one core.
    pub hold_count_max: usize,
    /// How long an upstream may take to connect.
    pub connect_ms_max: u64,
    /// How long an upstream may take to answer.
    pub answer_ms_max: u64,
    /// How long a client's connection may be idle.
    pub idle_ms_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes_max: 8192,
            record_bytes_max: 1024 * 1024,
            connections_max: 10_000,
            hold_ms_max: 5_000,
            hold_count_max: 10_000,
            connect_ms_max: 1_000,
            answer_ms_max: 30_000,
            idle_ms_max: 60_000,
        }
    }
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
    zones: BTreeMap<String, Spanned<RawPeer>>,
    #[serde(default)]
    service: Vec<Spanned<RawService>>,
    #[serde(default = "default_limits")]
    limits: Spanned<Limits>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    zone: Spanned<String>,
    #[serde(default = "default_cluster")]
    cluster: Spanned<String>,
    data_dir: Spanned<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMap {
    file: Option<PathBuf>,
    gzs: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRouter {
    listen: Spanned<Vec<String>>,
    #[serde(default)]
    peer_listen: Option<Spanned<Vec<String>>>,
    admin: Option<Spanned<String>>,
    cores: Option<Spanned<Vec<usize>>>,
    #[serde(default)]
    allow_plain_peers: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    listen: Spanned<String>,
    admin: Spanned<String>,
    cores: Option<Spanned<Vec<usize>>>,
    #[serde(default = "default_streams")]
    streams: Spanned<u32>,
    #[serde(default = "default_segment")]
    segment_mib: Spanned<u64>,
    #[serde(default)]
    start_alone: bool,
    #[serde(default)]
    allow_plain_links: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    router: Option<Spanned<String>>,
    link: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    prefix: String,
    endpoints: Spanned<Vec<String>>,
}

fn default_cluster() -> Spanned<String> {
    Spanned::new(0..0, "ezone".into())
}
fn default_limits() -> Spanned<Limits> {
    Spanned::new(0..0, Limits::default())
}
fn default_streams() -> Spanned<u32> {
    Spanned::new(0..0, 4)
}
fn default_segment() -> Spanned<u64> {
    Spanned::new(0..0, 64)
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Config, Problems> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&file, &text),
            Err(e) => Err(Problems { file, found: vec![(0, format!("cannot be read: {e}"))] }),
        }
    }

    /// Checks `text`, which came from `file`.
    pub fn parse(file: &str, text: &str) -> Result<Config, Problems> {
        let raw: Raw = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(0, |s| line_of(text, s.start));
            Problems { file: file.into(), found: vec![(line, e.message().to_string())] }
        })?;
        let mut check = Check { text, found: vec![], own: vec![] };
        let config = check.config(raw);
        check.found.sort();
        match (config, check.found.is_empty()) {
            (Some(config), true) => Ok(config),
            (_, _) => Err(Problems { file: file.into(), found: check.found }),
        }
    }

    /// The other zone of that name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.zones.iter().find(|p| p.name == name)
    }

    /// The Unix socket of log core `index`.
    pub fn port_path(&self, index: usize) -> PathBuf {
        self.node.data_dir.join(format!("port-{index}.sock"))
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

struct Check<'a> {
    text: &'a str,
    found: Vec<(usize, String)>,
    /// Line and address of each listener of this node.
    own: Vec<(usize, SocketAddr)>,
}

impl Check<'_> {
    fn config(&mut self, raw: Raw) -> Option<Config> {
        let edge = raw.node.zone.get_ref() == "none";
        let map = self.map(&raw.map);
        self.node(&raw.node);
        self.limits(&raw.limits);
        let router = raw.router.map(|r| self.router(r));
        let log = raw.log.map(|l| self.log(l));
        self.told_apart();
        if edge && log.is_some() {
            self.say(&raw.node.zone, "an edge (zone = \"none\") stores nothing: remove [log], or name the zone");
        }
        if router.is_none() && log.is_none() {
            self.say(&raw.node.zone, "neither [router] nor [log]: this node would do nothing");
        }
        let zones = raw.zones.into_iter().map(|(name, p)| self.peer(name, raw.node.zone.get_ref(), p)).collect();
        let services = raw.service.into_iter().map(|s| self.service(s)).collect();
        let node = Node {
            zone: (!edge).then(|| raw.node.zone.into_inner()),
            cluster: raw.node.cluster.into_inner(),
            data_dir: raw.node.data_dir.into_inner(),
        };
        Some(Config {
            node,
            map: map?,
            router: router.map(|r| r.unwrap_or_else(Router::none)),
            log: log.flatten(),
            zones,
            services,
            limits: raw.limits.into_inner(),
        })
    }

    fn map(&mut self, raw: &Spanned<RawMap>) -> Option<MapSource> {
        match (&raw.get_ref().file, &raw.get_ref().gzs) {
            (Some(file), None) => Some(MapSource::File(file.clone())),
            (None, Some(url)) if has_host(url) => Some(MapSource::Gzs(url.trim_end_matches('/').into())),
            (None, Some(url)) => {
                self.none(raw, format!("gzs = \"{url}\": expected http:// and a host, such as http://127.0.0.1:7300"))
            }
            (Some(_), Some(_)) => self.none(raw, "both file and gzs: a map has one source"),
            (None, None) => self.none(raw, "expected file = \"..\" (a map that never changes) or gzs = \"http://..\""),
        }
    }

    fn node(&mut self, raw: &RawNode) {
        let (cluster, dir) = (raw.cluster.get_ref(), raw.data_dir.get_ref());
        if !(1..=CLUSTER_BYTES_MAX).contains(&cluster.len()) {
            let seen = cluster.len();
            self.say(&raw.cluster, format!("a cluster's name of {seen} bytes: expected 1 to {CLUSTER_BYTES_MAX}"));
        }
        // The router reaches the log by a Unix socket in this directory; absolute, so that both mean the same one.
        let path = std::path::absolute(dir).unwrap_or_default();
        let bytes = path.as_os_str().len();
        if bytes == 0 {
            self.say(&raw.data_dir, "data_dir is empty: expected a directory");
        } else if bytes > DATA_DIR_BYTES_MAX {
            self.say(
                &raw.data_dir,
                format!("data_dir is a path of {bytes} bytes, at most {DATA_DIR_BYTES_MAX}: a Unix socket lies in it"),
            );
        }
    }

    fn limits(&mut self, raw: &Spanned<Limits>) {
        let l = raw.get_ref();
        let counts = [
            ("head_bytes_max", l.head_bytes_max as u64, 256, 1 << 20),
            ("record_bytes_max", l.record_bytes_max as u64, 1, replog::limits::VALUE_MAX as u64),
            ("connections_max", l.connections_max as u64, 1, 1 << 20),
            ("hold_ms_max", l.hold_ms_max, 0, 60_000),
            ("hold_count_max", l.hold_count_max as u64, 0, 1 << 20),
            ("connect_ms_max", l.connect_ms_max, 1, 60_000),
            ("answer_ms_max", l.answer_ms_max, 1, 3_600_000),
            ("idle_ms_max", l.idle_ms_max, 1, 3_600_000),
        ];
        for (key, seen, least, most) in counts {
            if !(least..=most).contains(&seen) {
                self.say(raw, format!("[limits] {key} = {seen}: expected {least} to {most}"));
            }
        }
    }

    /// No two listeners share an address: the second would find it taken, or worse, share it.
    fn told_apart(&mut self) {
        let own = std::mem::take(&mut self.own);
        for (i, (line, at)) in own.iter().enumerate() {
            if let Some((before, _)) = own[..i].iter().find(|(_, other)| other == at) {
                self.found.push((*line, format!("{at} is listened at already by line {before}")));
            }
        }
    }

    fn router(&mut self, raw: RawRouter) -> Option<Router> {
        let listen = self.own_addresses(&raw.listen)?;
        if listen.is_empty() {
            self.say(&raw.listen, "listen is empty: expected at least one address");
        }
        let peer_listen = match &raw.peer_listen {
            Some(list) => self.own_addresses(list)?,
            None => vec![],
        };
        if let (Some(list), false) = (&raw.peer_listen, raw.allow_plain_peers) {
            for at in peer_listen.iter().filter(|a| !a.ip().is_loopback()) {
                self.say(list, format!("peer_listen {at} is not on loopback and has no TLS yet: whoever reaches it is trusted. Put it on a private network and say allow_plain_peers = true"));
            }
        }
        let admin = match &raw.admin {
            Some(a) => Some(self.own_address(a)?),
            None => None,
        };
        let cores = self.cores(raw.cores.as_ref());
        Some(Router { listen, peer_listen, admin, cores })
    }

    fn log(&mut self, raw: RawLog) -> Option<Log> {
        let (listen, admin) = (self.own_address(&raw.listen)?, self.own_address(&raw.admin)?);
        if !listen.ip().is_loopback() && !raw.allow_plain_links {
            self.say(&raw.listen, format!("{listen} is not on loopback and links have no TLS yet. Put it on a private network and say allow_plain_links = true"));
        }
        let (streams, mib) = (*raw.streams.get_ref(), *raw.segment_mib.get_ref());
        if !(1..=1024).contains(&streams) {
            self.say(&raw.streams, format!("streams = {streams}: expected 1 to 1024"));
        }
        if !(1..=4096).contains(&mib) {
            self.say(&raw.segment_mib, format!("segment_mib = {mib}: expected 1 to 4096"));
        }
        let cores = self.cores(raw.cores.as_ref());
        Some(Log { listen, admin, cores, streams, segment_bytes: mib << 20, start_alone: raw.start_alone })
    }

    fn peer(&mut self, name: String, own: &str, raw: Spanned<RawPeer>) -> Peer {
        if name == own {
            self.say(&raw, format!("[zones.{name}] is this node's own zone: list the others"));
        }
        let raw = raw.into_inner();
        Peer { router: raw.router.and_then(|a| self.address(&a)), link: raw.link.and_then(|a| self.address(&a)), name }
    }

    fn service(&mut self, raw: Spanned<RawService>) -> Service {
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

    fn cores(&mut self, raw: Option<&Spanned<Vec<usize>>>) -> Vec<usize> {
        let have = std::thread::available_parallelism().map_or(1, usize::from);
        let Some(raw) = raw else { return (0..have).collect() };
        for core in raw.get_ref().iter().filter(|c| **c >= have) {
            self.say(raw, format!("core {core}: this machine has cores 0 to {}", have - 1));
        }
        if raw.get_ref().is_empty() {
            self.say(raw, "cores is empty: expected at least one");
        }
        if let Some((_, core)) = raw.get_ref().iter().enumerate().find(|(i, c)| raw.get_ref()[..*i].contains(c)) {
            self.say(raw, format!("core {core} is named twice: one thread is pinned to each"));
        }
        raw.get_ref().clone()
    }

    fn addresses(&mut self, raw: &Spanned<Vec<String>>) -> Option<Vec<SocketAddr>> {
        let line = self.line(raw.span().start);
        let parsed: Vec<_> = raw.get_ref().iter().map(|a| parse_address(a)).collect();
        self.found.extend(parsed.iter().filter_map(|p| p.as_ref().err().map(|e| (line, e.clone()))));
        parsed.into_iter().collect::<Result<_, _>>().ok()
    }

    /// Addresses that this node listens at.
    fn own_addresses(&mut self, raw: &Spanned<Vec<String>>) -> Option<Vec<SocketAddr>> {
        let all = self.addresses(raw)?;
        all.iter().for_each(|at| self.listens(raw.span().start, *at));
        Some(all)
    }

    fn own_address(&mut self, raw: &Spanned<String>) -> Option<SocketAddr> {
        let at = self.address(raw)?;
        self.listens(raw.span().start, at);
        Some(at)
    }

    fn listens(&mut self, at: usize, address: SocketAddr) {
        let line = self.line(at);
        match address.port() {
            0 => {
                self.found.push((line, format!("{address}: nobody could find a port that the kernel chose; name one")))
            }
            _ => self.own.push((line, address)),
        }
    }

    fn address(&mut self, raw: &Spanned<String>) -> Option<SocketAddr> {
        parse_address(raw.get_ref()).map_err(|e| self.say(raw, e)).ok()
    }

    fn say<T>(&mut self, at: &Spanned<T>, what: impl Into<String>) {
        self.found.push((self.line(at.span().start), what.into()));
    }

    fn none<T, R>(&mut self, at: &Spanned<T>, what: impl Into<String>) -> Option<R> {
        self.say(at, what);
        None
    }

    fn line(&self, at: usize) -> usize {
        line_of(self.text, at)
    }
}

impl Router {
    /// Stands for a router whose part was refused; the problems keep the configuration from being used.
    fn none() -> Router {
        Router { listen: vec![], peer_listen: vec![], admin: None, cores: vec![] }
    }
}

/// Does `url` begin with `http://` and a host?
fn has_host(url: &str) -> bool {
    url.strip_prefix("http://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':', '?', '#']))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\": expected an address and a port, such as 127.0.0.1:8080"))
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
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
        let text = include_str!("../ezone.example.toml");
        let c = Config::parse("ezone.example.toml", text).unwrap();
        assert_eq!(c.node.zone.as_deref(), Some("bj"));
        assert!(c.router.is_some() && c.log.is_some());
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
            ("http://127.0.0.1:1", "http://", "f.toml:4: gzs = \"http://\": expected http:// and a host"),
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
    fn an_edge_stores_nothing() {
        let log = "[log]\nlisten = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\n";
        assert!(problems(&(GOOD.replace("\"bj\"", "\"none\"") + log)).contains("stores nothing"));
    }
}
