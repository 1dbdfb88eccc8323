//! Finds the logs at a path: a data directory, a stream's directory, or one segment file.

use replog::segment::seq_of_name;
use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// `DATA/zone/log/stream`: so deep are directories searched for logs.
const DEPTH_MAX: usize = 4;
/// So many directories are looked into: a path that was mistyped is no reason to read a whole disk.
const SEARCH_MAX: usize = 10_000;

static UNREAD: AtomicBool = AtomicBool::new(false);

/// Was there a directory that may not be looked into? It may hold logs; it was told.
pub fn some_unread() -> bool {
    UNREAD.load(Ordering::Relaxed)
}

/// A stream's directory, and the one file that was asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Where its files are.
    pub dir: PathBuf,
    /// The segment that was named, if one was.
    pub only: Option<String>,
}

impl Place {
    /// What it is called in what is printed.
    pub fn name(&self) -> String {
        self.dir.display().to_string()
    }

    /// Was this file asked for?
    pub fn wants(&self, file: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == file)
    }
}

/// The logs at a path, in order.
pub fn places(path: &Path) -> io::Result<Vec<Place>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let meta = std::fs::metadata(path).map_err(named)?;
    if !meta.is_dir() {
        return segment(path, &meta).map(|place| vec![place]);
    }
    let mut search = Search::default();
    search.look(path, &meta, DEPTH_MAX).map_err(named)?;
    let mut found = search.found;
    found.sort();
    if found.is_empty() {
        let text = format!(
            "{}: no log here, nor up to {DEPTH_MAX} directories below: a log is a directory with files like {}",
            path.display(),
            replog::segment::file_name(1)
        );
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(found.into_iter().map(|dir| Place { dir, only: None }).collect())
}

/// The logs at several paths, each once.
pub fn all_places(paths: &[PathBuf]) -> io::Result<Vec<Place>> {
    let mut all = Vec::new();
    for path in paths {
        for place in places(path)? {
            if !all.contains(&place) {
                all.push(place);
            }
        }
    }
    Ok(all)
}

/// The one log at a path, for commands that take no more.
pub fn one_place(path: &Path) -> io::Result<Place> {
    let mut all = places(path)?;
    match (all.pop(), all.len()) {
        (Some(place), 0) => Ok(place),
        (_, more) => {
            let text = format!("{}: {} logs are here; name the directory of one of them", path.display(), more + 1);
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

fn segment(path: &Path, meta: &Metadata) -> io::Result<Place> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let refuse = |why: &str| {
        let text =
            format!("{}: {why}; a segment is a file with a name like {}", path.display(), "0".repeat(19) + "1.rlog");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    };
    if !meta.is_file() {
        return refuse("neither a directory nor a file");
    }
    if seq_of_name(&name).is_none() {
        return refuse("not a segment");
    }
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    Ok(Place { dir, only: Some(name) })
}

/// A search through directories. Links are followed, since a log may lie on a disk of its own; each directory counts once.
#[derive(Default)]
struct Search {
    found: Vec<PathBuf>,
    seen: HashSet<(u64, u64)>,
}

impl Search {
    fn look(&mut self, path: &Path, meta: &Metadata, depth: usize) -> io::Result<()> {
        if !self.seen.insert((meta.dev(), meta.ino())) {
            return Ok(());
        }
        if self.seen.len() > SEARCH_MAX {
            let text = format!("more than {SEARCH_MAX} directories below it; name the data directory");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut below = Vec::new();
        let mut is_log = false;
        for entry in std::fs::read_dir(path)? {
            let name = entry?.file_name();
            let text = name.to_string_lossy();
            is_log |= seq_of_name(&text).is_some() || text == "LOCK" || text.starts_with("CHECKPOINT.");
            if !is_log && depth > 0 && text != "quarantine" {
                below.push(path.join(&name));
            }
        }
        if is_log {
            self.found.push(path.to_owned());
            return Ok(());
        }
        below.sort();
        for path in below {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if !meta.is_dir() {
                continue;
            }
            match self.look(&path, &meta, depth - 1) {
                // What may not be read is told; what can be read beside it is shown.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    UNREAD.store(true, Ordering::Relaxed);
                    eprintln!("ezctl log: {}: {e}", path.display())
                }
                other => other?,
            }
        }
        Ok(())
    }
}
