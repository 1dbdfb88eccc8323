//! The log of a node: where it listens, its streams and segments.

use super::Layout;
use super::check::Check;
use replog::link::{CREDIT_BYTES, Compress};
use replog::uring::line::CONGESTION_NAME_MAX;
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
    /// Bytes of sealed segments that each log keeps for those who look back.
    pub keep_bytes: u64,
    /// The share of the volume up to which a peer that is behind holds the log back.
    pub peers_until: f64,
    /// How fast sealed segments are read again; 0: never.
    pub scrub_bytes_per_s: u64,
    /// Hours from one such pass to the next.
    pub scrub_every_h: u64,
    /// Links speak no TLS: there is no [cluster], or an operator's word.
    pub plain_links: bool,
    /// The congestion control that is asked of the kernel for links that are behind; `None`: the kernel's own choice, always.
    pub congestion: Option<String>,
    /// Whether links gather and compress.
    pub compress: Compress,
    /// Bytes that may be on their way here, or not yet durable here, of each stream and zone.
    pub window_bytes: u64,
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
    #[serde(default = "default_keep")]
    pub(super) keep_mib: Spanned<u64>,
    #[serde(default = "default_peers_until")]
    pub(super) peers_until: Spanned<f64>,
    #[serde(default = "default_scrub")]
    pub(super) scrub_mib_per_s: Spanned<u64>,
    #[serde(default = "default_scrub_every")]
    pub(super) scrub_every_h: Spanned<u64>,
    #[serde(default = "default_congestion")]
    pub(super) congestion: Spanned<String>,
    #[serde(default = "default_compress")]
    pub(super) compress: Spanned<String>,
    #[serde(default = "default_window")]
    pub(super) window_mib: Spanned<u64>,
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
fn default_keep() -> Spanned<u64> {
    Spanned::new(0..0, 512)
}
fn default_peers_until() -> Spanned<f64> {
    Spanned::new(0..0, 0.7)
}
fn default_scrub() -> Spanned<u64> {
    Spanned::new(0..0, 8)
}
fn default_scrub_every() -> Spanned<u64> {
    Spanned::new(0..0, 24)
}
fn default_congestion() -> Spanned<String> {
    Spanned::new(0..0, "bbr".into())
}
fn default_compress() -> Spanned<String> {
    Spanned::new(0..0, "auto".into())
}
fn default_window() -> Spanned<u64> {
    Spanned::new(0..0, CREDIT_BYTES >> 20)
}

impl Check<'_> {
    pub(super) fn log(&mut self, raw: RawLog, in_cluster: bool, layout: &Layout) -> Option<Log> {
        let (listen, admin) = (self.own_address(&raw.listen)?, self.own_address(&raw.admin)?);
        if !listen.ip().is_loopback() && !in_cluster && !raw.allow_plain_links {
            self.say(&raw.listen, format!("{listen} is not on loopback and has no TLS: whoever reaches it can send and read logs. Add [cluster] with certificates; or put it on a private network and say allow_plain_links = true"));
        }
        let (streams, mib) = (*raw.streams.get_ref(), *raw.segment_mib.get_ref());
        if !(1..=1024).contains(&streams) {
            self.say(&raw.streams, format!("streams = {streams}: expected 1 to 1024"));
        }
        if !(1..=4096).contains(&mib) {
            self.say(&raw.segment_mib, format!("segment_mib = {mib}: expected 1 to 4096"));
        }
        let (keep_mib, peers_until) = (*raw.keep_mib.get_ref(), *raw.peers_until.get_ref());
        let (scrub_mib, scrub_every_h) = (*raw.scrub_mib_per_s.get_ref(), *raw.scrub_every_h.get_ref());
        if keep_mib > 1 << 24 {
            self.say(&raw.keep_mib, format!("keep_mib = {keep_mib}: expected 0 to {} (16 TiB)", 1 << 24));
        }
        if !(0.05..=0.98).contains(&peers_until) {
            self.say(
                &raw.peers_until,
                format!("peers_until = {peers_until}: expected a share of the volume, 0.05 to 0.98"),
            );
        }
        if scrub_mib > 4096 {
            self.say(&raw.scrub_mib_per_s, format!("scrub_mib_per_s = {scrub_mib}: expected 0 (never) to 4096"));
        }
        if !(1..=8760).contains(&scrub_every_h) {
            self.say(&raw.scrub_every_h, format!("scrub_every_h = {scrub_every_h}: expected 1 to 8760"));
        }
        let (congestion, window_mib) = (raw.congestion.get_ref().clone(), *raw.window_mib.get_ref());
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if congestion.len() > CONGESTION_NAME_MAX || !congestion.bytes().all(is_name) {
            self.say(&raw.congestion, format!("congestion = \"{congestion}\": expected a name of the kernel's such as \"bbr\" or \"cubic\", or \"\" for the kernel's own choice"));
        }
        if !(1..=1024).contains(&window_mib) {
            self.say(&raw.window_mib, format!("window_mib = {window_mib}: expected 1 to 1024"));
        }
        let compress = match raw.compress.get_ref().as_str() {
            "auto" => Compress::Auto,
            "always" => Compress::Always,
            "never" => Compress::Never,
            other => {
                let what = format!("compress = \"{other}\": expected \"auto\", \"always\" or \"never\"");
                self.none(&raw.compress, what)?
            }
        };
        Some(Log {
            listen,
            admin,
            cores: layout.log.clone(),
            streams,
            segment_bytes: mib << 20,
            keep_bytes: keep_mib << 20,
            peers_until,
            scrub_bytes_per_s: scrub_mib << 20,
            scrub_every_h,
            plain_links: raw.allow_plain_links || !in_cluster,
            congestion: (!congestion.is_empty()).then_some(congestion),
            compress,
            window_bytes: window_mib << 20,
            start_alone: raw.start_alone,
        })
    }
}
