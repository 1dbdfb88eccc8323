//! What an open does with blocking calls: directory, lock, reading, verdict.

use super::{DAMAGED, Error, Kind, Options};
use crate::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::open::{Depth, Found, Verdict, examine};
use crate::segment::FIRST_POS;
use crate::uring::dir;
use std::fs::File;
use std::path::Path;

/// What an open does with blocking calls: directory, lock, reading, verdict.
/// A directory that was locked, read and judged.
pub(super) struct Prepared {
    pub lock: File,
    pub found: Found,
    /// Files of a segment's length that an earlier run left to be used.
    pub spares: Vec<u64>,
    pub random: u128,
}

pub(super) fn prepare(dir: &Path, options: Options) -> Result<Prepared, Error> {
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
    let spares = dir::settle(dir, options.segment_bytes).map_err(io)?;
    // What a scrub has found is mended here, or the stream stays closed.
    let (damaged, mut depth) = (dir.join(DAMAGED), Depth::Needed);
    if damaged.exists() {
        depth = Depth::Whole;
    }
    let found = examine(&mut dir::Dir::new(dir), options.floor, depth).map_err(io)?;
    match &found.verdict {
        Verdict::Corrupt(verdict) => {
            return Err(Error::Corrupt { dir: dir.to_owned(), verdict: Box::new(verdict.clone()) });
        }
        Verdict::Empty if options.kind == Kind::Mirror(None) => return Err(Error::NoMirror(dir.to_owned())),
        Verdict::Torn(torn) => {
            let copy = dir::quarantine(dir, torn).map_err(io)?;
            tracing::warn!("{torn}; copied to {}", copy.display());
        }
        Verdict::Gap(gap) => return Err(Error::Gap { dir: dir.to_owned(), gap: Box::new(gap.clone()) }),
        Verdict::Empty | Verdict::Clean | Verdict::Stale(_) => {}
    }
    if let Some(h) = found.segments.last().map(|s| &s.header) {
        let other = matches!(options.kind, Kind::Mirror(Some(uuid)) if uuid != h.log_uuid);
        if other || h.zone != options.zone || h.stream != options.stream {
            let (dir, zone, stream, log_uuid) = (dir.to_owned(), h.zone, h.stream, h.log_uuid);
            return Err(Error::Foreign { dir, zone, stream, log_uuid });
        }
    }
    if depth == Depth::Whole {
        std::fs::remove_file(&damaged).map_err(io)?;
    }
    for name in &found.expired {
        std::fs::remove_file(dir.join(name)).map_err(io)?; // a checkpoint says so, a crash kept it
    }
    Ok(Prepared { lock, found, spares, random: dir::random().map_err(io)? })
}
