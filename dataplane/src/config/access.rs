//! The access log: where it goes, in what form, and which requests are in it.

use super::check::Check;
use crate::router::access::{Access, BATCH_BYTES_MAX, SAMPLE_ALL};
use serde::Deserialize;
use std::path::PathBuf;
use toml::Spanned;

/// The smallest ring of a core: a batch must fit.
const BUFFER_KIB_MIN: usize = 2 * BATCH_BYTES_MAX / 1024;
const BUFFER_KIB_MAX: usize = 64 * 1024;

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessFormat {
    /// Near the common log format.
    #[default]
    Text,
    /// An object to a line.
    Json,
}

/// The access log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccessLog {
    /// Appended to; opened anew when it was moved.
    pub path: PathBuf,
    /// How a line looks.
    pub format: AccessFormat,
    /// Bytes of the ring between each core and the log.
    pub buffer_bytes: usize,
    /// Which requests.
    pub which: Access,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccess {
    path: Spanned<PathBuf>,
    #[serde(default)]
    format: AccessFormat,
    sample: Option<Spanned<f64>>,
    min_status_always: Option<Spanned<u16>>,
    #[serde(default = "yes")]
    query: bool,
    buffer_kib: Option<Spanned<usize>>,
}

fn yes() -> bool {
    true
}

impl Check<'_> {
    pub(super) fn access(&mut self, raw: RawAccess) -> AccessLog {
        if raw.path.get_ref().as_os_str().is_empty() {
            self.say(&raw.path, "path is empty: expected a file");
        }
        let sample = raw.sample.as_ref().map_or(1.0, |s| *s.get_ref());
        if let Some(raw) = raw.sample.as_ref().filter(|_| !(0.0..=1.0).contains(&sample)) {
            self.say(raw, format!("sample = {sample}: expected 0 to 1, such as 0.01 for one request in a hundred"));
        }
        let min_status_always = raw.min_status_always.as_ref().map_or(500, |s| *s.get_ref());
        if let Some(raw) = raw.min_status_always.as_ref().filter(|_| !(100..=1000).contains(&min_status_always)) {
            self.say(raw, format!("min_status_always = {min_status_always}: expected 100 to 1000 (1000: none)"));
        }
        let buffer_kib = raw.buffer_kib.as_ref().map_or(1024, |s| *s.get_ref());
        if let Some(raw) = raw.buffer_kib.as_ref().filter(|_| !(BUFFER_KIB_MIN..=BUFFER_KIB_MAX).contains(&buffer_kib))
        {
            self.say(raw, format!("buffer_kib = {buffer_kib}: expected {BUFFER_KIB_MIN} to {BUFFER_KIB_MAX}"));
        }
        AccessLog {
            path: self.path(raw.path.get_ref()),
            format: raw.format,
            buffer_bytes: buffer_kib.min(BUFFER_KIB_MAX) * 1024,
            which: Access { sample: (sample * SAMPLE_ALL as f64) as u64, min_status_always, query: raw.query },
        }
    }
}
