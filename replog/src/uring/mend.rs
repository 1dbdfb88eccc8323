//! Carries out the plan of a repair: each segment is written anew beside the damaged one, which is kept, and takes its place when it is
//! whole and durable.
//!
//! ```text
//! copy of the segment, patched -> mending.tmp, flushed -> the damaged one goes to quarantine/ -> renamed into place, flushed
//! ```
//!
//! A crash in between leaves the damaged file, or a missing one whose bytes are in the quarantine: a later repair ends it.

use super::dir::{Dir, sync_dir};
use crate::open::Storage;
use crate::repair::{Plan, Rebuilt, Refusal, Source};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How much is copied at a time.
const CHUNK: usize = 1 << 20;
/// A segment in the mending; an open removes what a crash left of it.
const MENDING: &str = "mending.tmp";

/// Why a repair was not carried out, or not to its end: what was done by then stays, and is right.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source no longer gives what was planned with, or the plan says that it cannot be done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The operating system says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
}

/// Writes the segments of `plan` in `dir`; returns where the damaged ones were put.
///
/// Precondition: no other process writes the directory: the caller has its LOCK.
pub fn carry_out(dir: &Path, plan: &Plan, mut source: Option<&mut (dyn Source + '_)>) -> Result<Vec<PathBuf>, Error> {
    if let Some(refusal) = plan.refused.first() {
        return Err(refusal.clone().into());
    }
    let mut kept = Vec::new();
    for file in &plan.files {
        let made = dir.join(MENDING);
        let written = write(dir, &made, file, &mut source);
        if let Err(why) = written {
            let _ = std::fs::remove_file(&made); // half made it only takes room
            return Err(why);
        }
        let place = dir.join(&file.name);
        if !file.is_new {
            kept.push(set_aside(dir, &file.name).map_err(|source| Error::Io { path: place.clone(), source })?);
        }
        let moved = std::fs::rename(&made, &place).and_then(|()| sync_dir(dir));
        moved.map_err(|source| Error::Io { path: place, source })?;
    }
    Ok(kept)
}

/// The mended copy, durable under its passing name.
fn write(dir: &Path, made: &Path, file: &Rebuilt, source: &mut Option<&mut (dyn Source + '_)>) -> Result<(), Error> {
    let io = |source| Error::Io { path: made.to_owned(), source };
    let out = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(made).map_err(io)?;
    if !file.is_new {
        copy(dir, &file.name, &out).map_err(io)?;
    }
    out.set_len(file.len).map_err(io)?;
    for patch in &file.patches {
        let bytes = match source {
            Some(source) => patch.bytes(Some(&mut **source)),
            None => patch.bytes(None),
        };
        out.write_all_at(&bytes.map_err(io)??, patch.pos).map_err(io)?;
    }
    out.sync_all().map_err(io)
}

fn copy(dir: &Path, name: &str, out: &File) -> io::Result<()> {
    let (mut files, mut pos) = (Dir::new(dir), 0);
    loop {
        let bytes = files.read(name, pos, CHUNK)?;
        if bytes.is_empty() {
            return Ok(());
        }
        out.write_all_at(&bytes, pos)?;
        pos += bytes.len() as u64;
    }
}

/// The damaged file, under a name that no later one takes.
fn set_aside(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let quarantine = dir.join("quarantine");
    std::fs::create_dir_all(&quarantine)?;
    let free = (1..).map(|n| quarantine.join(format!("{name}.damaged-{n}"))).find(|p| !p.exists());
    let to = free.expect("there is always a next number");
    // A second name, not a move: the damaged file stays where it is until the mended one takes its place.
    std::fs::hard_link(dir.join(name), &to)?;
    sync_dir(&quarantine)?;
    sync_dir(dir)?;
    Ok(to)
}
