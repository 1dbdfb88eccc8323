//! The log of a node: where it listens, its streams and segments.

use super::Layout;
use super::check::Check;
use serde::Deserialize;
use std::net::SocketAddr;
use toml::Spanned;

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) listen: Spanned<String>,
    pub(super) admin: Spanned<String>,
    pub(super) cores: Option<Spanned<Vec<usize>>>,
    #[serde(default = "default_streams")]
    pub(super) streams: Spanned<u32>,
    #[serde(default = "default_segment")]
    pub(super) segment_mib: Spanned<u64>,
    #[serde(default)]
    pub(super) start_alone: bool,
    #[serde(default)]
    pub(super) allow_plain_links: bool,
}

fn default_streams() -> Spanned<u32> {
    Spanned::new(0..0, 4)
}
fn default_segment() -> Spanned<u64> {
    Spanned::new(0..0, 64)
}

impl Check<'_> {
    pub(super) fn log(&mut self, raw: RawLog, layout: &Layout) -> Option<Log> {
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
        let cores = layout.log.clone();
        Some(Log { listen, admin, cores, streams, segment_bytes: mib << 20, start_alone: raw.start_alone })
    }
}
