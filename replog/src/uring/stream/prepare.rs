//! What an open does with blocking calls: directory, lock, reading, verdict.

use super::{Error, Kind, Options};
use crate::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::open::{Found, Verdict, examine};
use crate::segment::FIRST_POS;
use crate::uring::dir;
use std::fs::File;
use std::path::Path;

/// What an open does with blocking calls: directory, lock, reading, verdict.
pub(super) fn prepare(dir: &Path, options: Options) -> Result<(File, Found, u128), Error> {
    let io = |source| Error::Io { dir: dir.to_owned(), source };
    let range = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if !range.contains(&options.segment_bytes) || !options.segment_bytes.is_multiple_of(FIRST_POS) {
        return Err(Error::SegmentBytes(options.segment_bytes));
    }
    if options.kind == Kind::Mirror(None) && !dir.exists() {
        return Err(Error::NoMirror(dir.to_owned()));
    }
    std::fs::create_dir_all(dir).map_err(io)?;
    if let Some(above) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        dir::sync_dir(above).map_err(io)?;
    }
    let lock = dir::lock(dir).map_err(io)?.ok_or_else(|| Error::InUse(dir.to_owned()))?;
    dir::settle(dir).map_err(io)?;
    let found = examine(&mut dir::Dir::new(dir), options.floor).map_err(io)?;
    match &found.verdict {
        Verdict::Corrupt(verdict) => {
            return Err(Error::Corrupt { dir: dir.to_owned(), verdict: Box::new(verdict.clone()) });
        }
        Verdict::Empty if options.kind == Kind::Mirror(None) => return Err(Error::NoMirror(dir.to_owned())),
        Verdict::Torn(torn) => {
            let copy = dir::quarantine(dir, torn).map_err(io)?;
            tracing::warn!("{torn}; copied to {}", copy.display());
        }
        Verdict::Empty | Verdict::Clean => {}
    }
    if let Some(h) = found.segments.last().map(|s| &s.header) {
        let other = matches!(options.kind, Kind::Mirror(Some(uuid)) if uuid != h.log_uuid);
        if other || h.zone != options.zone || h.stream != options.stream {
            let (dir, zone, stream, log_uuid) = (dir.to_owned(), h.zone, h.stream, h.log_uuid);
            return Err(Error::Foreign { dir, zone, stream, log_uuid });
        }
    }
    Ok((lock, found, dir::random().map_err(io)?))
}
