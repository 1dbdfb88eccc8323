//! Who this node is and where its maps come from.

use super::check::Check;
use serde::Deserialize;
use std::path::PathBuf;
use toml::Spanned;

/// Bytes of a cluster's name: it travels in every HELLO.
const CLUSTER_BYTES_MAX: usize = 255;
/// What the kernel takes for a Unix socket's path is 107 bytes; `/port-1023.sock` is the longest name in the directory.
const DATA_DIR_BYTES_MAX: usize = 107 - "/port-1023.sock".len();

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
    /// A Global Zone Service.
    Gzs(GzsAt),
}

/// Where a Global Zone Service is, and what is shown to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GzsAt {
    /// `http://host:port` or `https://host:port`, without a path; several: one of them leads.
    pub urls: Vec<String>,
    /// The file with this node's token; `None`: it wants none.
    pub token_file: Option<PathBuf>,
    /// The authorities that sign its certificate; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNode {
    pub(super) zone: Spanned<String>,
    #[serde(default = "default_cluster")]
    pub(super) cluster: Spanned<String>,
    pub(super) data_dir: Spanned<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMap {
    pub(super) file: Option<PathBuf>,
    pub(super) gzs: Option<OneOrMore>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) ca: Option<PathBuf>,
}

/// `gzs = ".."`, or `gzs = ["..", ".."]`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(&self) -> Vec<&str> {
        match self {
            OneOrMore::One(url) => vec![url],
            OneOrMore::More(urls) => urls.iter().map(String::as_str).collect(),
        }
    }
}

fn default_cluster() -> Spanned<String> {
    Spanned::new(0..0, "ezone".into())
}

impl Check<'_> {
    pub(super) fn map(&mut self, raw: &Spanned<RawMap>) -> Option<MapSource> {
        match (&raw.get_ref().file, &raw.get_ref().gzs) {
            (Some(file), None) => Some(MapSource::File(self.path(file))),
            (None, Some(gzs)) => {
                let urls = gzs.all();
                if let Some(url) = urls.iter().find(|url| !has_host(url)) {
                    let expected = "expected http:// or https:// and a host, such as http://127.0.0.1:7300";
                    return self.none(raw, format!("gzs = \"{url}\": {expected}"));
                }
                let plain = urls.iter().filter(|url| url.starts_with("http://")).count();
                if urls.is_empty() || (plain > 0 && plain < urls.len()) {
                    return self.none(raw, "gzs: expected at least one service, all by http:// or all by https://");
                }
                let (token_file, ca) = (raw.get_ref().token_file.as_deref(), raw.get_ref().ca.as_deref());
                if ca.is_some() && plain > 0 {
                    self.say(raw, "ca is for https://, and gzs is http://");
                }
                let path = |p: Option<&std::path::Path>| p.map(|p| self.path(p));
                let urls = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
                Some(MapSource::Gzs(GzsAt { urls, token_file: path(token_file), ca: path(ca) }))
            }
            (Some(_), Some(_)) => self.none(raw, "both file and gzs: a map has one source"),
            (None, None) => self.none(raw, "expected file = \"..\" (a map that never changes) or gzs = \"http://..\""),
        }
    }

    pub(super) fn node(&mut self, raw: &RawNode) {
        let (cluster, dir) = (raw.cluster.get_ref(), raw.data_dir.get_ref());
        if !(1..=CLUSTER_BYTES_MAX).contains(&cluster.len()) {
            let seen = cluster.len();
            self.say(&raw.cluster, format!("a cluster's name of {seen} bytes: expected 1 to {CLUSTER_BYTES_MAX}"));
        }
        // The router reaches the log by a Unix socket in this directory; absolute, so that both mean the same one.
        let path = std::path::absolute(self.path(dir)).unwrap_or_default();
        let bytes = path.as_os_str().len();
        if dir.as_os_str().is_empty() {
            self.say(&raw.data_dir, "data_dir is empty: expected a directory");
        } else if bytes > DATA_DIR_BYTES_MAX {
            self.say(
                &raw.data_dir,
                format!("data_dir is a path of {bytes} bytes, at most {DATA_DIR_BYTES_MAX}: a Unix socket lies in it"),
            );
        }
    }
}

/// Does `url` begin with `http://` or `https://` and a host?
pub(super) fn has_host(url: &str) -> bool {
    url.strip_prefix("http://")
        .or(url.strip_prefix("https://"))
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':', '?', '#']))
}
