//! Carries a repair out: damaged segments are written anew beside themselves, checked, and put in their own place.
//!
//! ```text
//! copy + patches -> <name>.tmp, flushed -> the log as it would be is examined -> the damaged file is kept in quarantine/
//!     -> renamed into place -> directory flushed
//! ```
//!
//! A crash at any point leaves the damaged file or the repaired one under the segment's name, and no third state. The next open
//! removes what is left of `*.tmp`.

use super::dir::{Dir, sync_dir};
use crate::open::{Floor, Storage};
use crate::repair::{Plan, Rebuilt, Refusal, Source, plan};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Names that are tried for a damaged file in the quarantine.
const QUARANTINE_MAX: u32 = 10_000;
/// How much is copied at a time.
const PIECE_BYTES: usize = 1024 * 1024;

/// Why a repair was not carried out. The log is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{path}: {why}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: io::Error,
    },
    /// It cannot be done, or the source has changed its mind since it was planned.
    #[error("{0}")]
    Refused(Refusal),
    /// Whoever asked for it has changed his mind before anything was put in place.
    #[error("interrupted; nothing was changed")]
    Stopped,
    /// The log with the repaired copies would still need a repair.
    #[error("the repaired copies do not make a whole log; nothing was changed: {0}")]
    Unsound(String),
}

/// A segment that was repaired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repaired {
    /// Its file.
    pub name: String,
    /// Where the damaged one is kept; `None`: there was none.
    pub kept: Option<PathBuf>,
}

/// Plans the repair of the log at `path` and carries it out. A plan that is empty does nothing. `salt` is random.
///
/// Precondition: the caller holds the directory's LOCK, and no machine has opened the log.
pub fn repair(
    path: &Path,
    source: &mut (dyn Source + '_),
    floor: Floor,
    salt: u64,
) -> Result<(Plan, Vec<Repaired>), Error> {
    let made = plan(&mut Dir::new(path), Some(&mut Again(source)), floor, salt).map_err(at(path))?;
    let done = carry_out(path, &made, source, floor, &|| false)?;
    Ok((made, done))
}

/// Carries a plan out, whole or not at all; gives it up when `stop` says so, until the copies are made and checked.
///
/// Precondition: the caller holds the directory's LOCK, and no machine has opened the log.
pub fn carry_out(
    path: &Path,
    made: &Plan,
    source: &mut (dyn Source + '_),
    floor: Floor,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Repaired>, Error> {
    if let Some(refusal) = made.refused.first() {
        return Err(Error::Refused(refusal.clone()));
    }
    let written = write_all(path, made, source, floor, stop).map_err(|e| if stop() { Error::Stopped } else { e });
    if written.is_err() {
        // The error counts; what cannot be removed now, the next open removes.
        made.files.iter().for_each(|f| drop(fs::remove_file(temporary(path, &f.name))));
    }
    written?;
    let mut done = Vec::new();
    for file in &made.files {
        let kept = if file.is_new { None } else { Some(keep(path, &file.name)?) };
        let place = path.join(&file.name);
        fs::rename(temporary(path, &file.name), &place).map_err(at(&place))?;
        done.push(Repaired { name: file.name.clone(), kept });
    }
    sync_dir(path).map_err(at(path))?;
    Ok(done)
}

fn write_all(
    path: &Path,
    made: &Plan,
    source: &mut (dyn Source + '_),
    floor: Floor,
    stop: &dyn Fn() -> bool,
) -> Result<(), Error> {
    for file in &made.files {
        if stop() {
            return Err(Error::Stopped);
        }
        write(path, file, source, &|_| Ok(()))?;
    }
    let copies = made.files.iter().map(|f| f.name.clone()).collect();
    let mut repaired = Overlay { dir: Dir::new(path), copies, stop };
    let left = plan(&mut repaired, Some(&mut Again(source)), floor, 0).map_err(at(path))?;
    match (left.refused.first(), left.files.first()) {
        (None, None) => Ok(()),
        (Some(refusal), _) => Err(Error::Unsound(refusal.to_string())),
        (None, Some(file)) => Err(Error::Unsound(format!("{} is still damaged", file.name))),
    }
}

/// Writes a segment anew beside itself, durable but for its name; `pace` is told of each piece before it is copied.
pub(super) fn write(
    path: &Path,
    file: &Rebuilt,
    source: &mut (dyn Source + '_),
    pace: &dyn Fn(usize) -> io::Result<()>,
) -> Result<(), Error> {
    let to = temporary(path, &file.name);
    match fs::remove_file(&to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&to)(e)),
        Ok(()) | Err(_) => {}
    }
    let new = OpenOptions::new().create_new(true).write(true).open(&to).map_err(at(&to))?;
    if !file.is_new {
        let from = path.join(&file.name);
        copy(&from, &new, pace).map_err(at(&from))?;
    }
    new.set_len(file.len).map_err(at(&to))?;
    for patch in &file.patches {
        let bytes = patch.bytes(Some(&mut Again(source))).map_err(at(&to))?.map_err(Error::Refused)?;
        new.write_all_at(&bytes, patch.pos).map_err(at(&to))?;
    }
    new.sync_all().map_err(at(&to))
}

/// Piece by piece, each on the disk before the next: no flush of the log has to wait for all of it.
fn copy(from: &Path, to: &File, pace: &dyn Fn(usize) -> io::Result<()>) -> io::Result<()> {
    let damaged = File::open(from)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut pos = 0;
    loop {
        pace(piece.len())?;
        let len = match damaged.read_at(&mut piece, pos) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        to.write_all_at(&piece[..len], pos)?;
        to.sync_data()?;
        pos += len as u64;
    }
}

/// Gives the damaged file a second name in the quarantine, so that there is no moment without one.
pub(super) fn keep(path: &Path, name: &str) -> Result<PathBuf, Error> {
    let dir = path.join("quarantine");
    fs::create_dir_all(&dir).map_err(at(&dir))?;
    for n in 1..=QUARANTINE_MAX {
        let kept = dir.join(format!("{name}.damaged-{n}"));
        match fs::hard_link(path.join(name), &kept) {
            Ok(()) => return sync_dir(&dir).map_err(at(&dir)).map(|()| kept),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at(&kept)(e)),
        }
    }
    let why = io::Error::other(format!("{QUARANTINE_MAX} damaged copies of {name} are kept; move them away"));
    Err(Error::Io { path: dir, why })
}

/// Where a segment is written anew.
pub(super) fn temporary(path: &Path, name: &str) -> PathBuf {
    path.join(format!("{name}.tmp"))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |why| Error::Io { path: path.to_owned(), why }
}

/// Lends a source for one call.
pub(super) struct Again<'a, 'b>(pub &'a mut (dyn Source + 'b));

impl Source for Again<'_, '_> {
    fn batch_at(&mut self, seq: u64) -> io::Result<Option<crate::Batch>> {
        self.0.batch_at(seq)
    }
    fn identity(&mut self) -> io::Result<Option<crate::repair::Identity>> {
        self.0.identity()
    }
}

/// The log as it would be: each repaired copy under the name that it is to get.
struct Overlay<'a> {
    dir: Dir,
    copies: BTreeSet<String>,
    /// The check reads the whole log.
    stop: &'a dyn Fn() -> bool,
}

impl Storage for Overlay<'_> {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let listed = self.dir.list()?.into_iter().filter(|(name, _)| !self.copies.contains(name));
        let own = |name: String| match name.strip_suffix(".tmp").filter(|n| self.copies.contains(*n)) {
            Some(of) => of.to_owned(),
            None => name,
        };
        Ok(listed.map(|(name, len)| (own(name), len)).collect())
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        if (self.stop)() {
            return Err(io::Error::other("interrupted"));
        }
        match self.copies.contains(name) {
            true => self.dir.read(&format!("{name}.tmp"), pos, len),
            false => self.dir.read(name, pos, len),
        }
    }
}
