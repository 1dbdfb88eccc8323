//! A stream's directory through plain blocking calls: what happens once, at open, and what tools read.

use crate::limits::{BLOCK, SPARES};
use crate::open::{Storage, Torn};
use crate::segment::Checkpoint;
use crate::segment::{Header, seq_of_name};
use bytes::Bytes;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Reads a stream's directory.
pub struct Dir {
    path: PathBuf,
    /// The file read last.
    open: Option<(String, File)>,
}

impl Dir {
    /// Of this directory; nothing is opened yet.
    pub fn new(path: &Path) -> Dir {
        Dir { path: path.to_owned(), open: None }
    }
}

impl Storage for Dir {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let (Ok(name), true) = (entry.file_name().into_string(), entry.file_type()?.is_file()) else { continue };
            match entry.metadata() {
                Ok(meta) => all.push((name, meta.len())),
                // Tools list directories whose writer lets segments go meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        if self.open.as_ref().is_none_or(|(of, _)| of != name) {
            self.open = Some((name.to_owned(), File::open(self.path.join(name))?));
        }
        let (_, file) = self.open.as_ref().expect("opened above");
        let mut bytes = vec![0; len];
        let mut read = 0;
        while read < len {
            match file.read_at(&mut bytes[read..], pos + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(read);
        Ok(bytes.into())
    }
}

/// Is the file that is open here the one that lies there now? Not if it was removed, renamed or replaced since.
pub fn is_still(open: &File, path: &Path) -> bool {
    match (open.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

/// Removes a file that need not be there.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Takes the directory for this process, as long as the file lives; `None`: another process has it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("LOCK"))?;
    match file.try_lock() {
        Ok(()) => {
            // A whole block, on the device: `StreamLog::open` probes with it what the device can do.
            let mut text = format!("process {}", std::process::id()).into_bytes();
            text.resize(BLOCK, b'\n');
            file.write_all_at(&text, 0)?;
            file.sync_all()?;
            Ok(Some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Is a writer at work on this directory? Asks the kernel's list, so that it never stands in a writer's way.
pub fn is_live(path: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(path.join("LOCK")) else { return false };
    let inode = format!(":{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|l| l.contains("FLOCK") && l.split_whitespace().any(|word| word.ends_with(&inode)))
}

/// Makes durable what is about to be read as durable: a killed writer may have left it in the device's cache. Removes what a
/// crash left half made. Returns the spares of `segment_bytes` that may be used.
pub fn settle(path: &Path, segment_bytes: u64) -> io::Result<Vec<u64>> {
    let mut dir = Dir::new(path);
    let mut spares = Vec::new();
    for (name, len) in dir.list()? {
        let spare = name.strip_prefix("reserve-").and_then(|n| n.strip_suffix(".tmp")).and_then(|id| id.parse().ok());
        match spare {
            Some(id) if len == segment_bytes && spares.len() < SPARES => spares.push(id),
            _ if name.ends_with(".tmp") => std::fs::remove_file(path.join(&name))?,
            _ => {}
        }
    }
    let names: Vec<String> = dir.list()?.into_iter().map(|(name, _)| name).collect();
    // A checkpoint too: segments that it no longer expects are removed, and it must not come back as an older one.
    let newest = names.iter().filter(|n| n.ends_with(".rlog")).max();
    let checkpoints = names.iter().filter(|n| Checkpoint::NAMES.contains(&n.as_str()));
    for name in newest.into_iter().chain(checkpoints) {
        File::open(path.join(name))?.sync_all()?;
    }
    sync_dir(path)?;
    Ok(spares)
}

/// The incarnation of the log in a directory, as the first header that can be read says.
pub fn incarnation(path: &Path) -> Option<u128> {
    let mut dir = Dir::new(path);
    let mut names: Vec<String> = dir.list().ok()?.into_iter().map(|(name, _)| name).collect();
    names.sort();
    let segments = names.iter().filter(|n| seq_of_name(n).is_some());
    segments.filter_map(|n| Header::parse(&dir.read(n, 0, BLOCK).ok()?).ok()).map(|h| h.log_uuid).next()
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Keeps a copy of a torn end for those who want to look at it.
pub fn quarantine(path: &Path, torn: &Torn) -> io::Result<PathBuf> {
    let dir = path.join("quarantine");
    std::fs::create_dir_all(&dir)?;
    let bytes = Dir::new(path).read(&torn.file, torn.pos, torn.len as usize)?;
    let copy = dir.join(format!("{}.at-{}", torn.file, torn.pos));
    std::fs::write(&copy, &bytes)?;
    File::open(&copy)?.sync_all()?;
    sync_dir(&dir)?;
    Ok(copy)
}

/// Gives back what a segment reserved beyond its end, once its successor is durable.
pub fn trim(path: &Path, name: &str, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path.join(name))?;
    if file.metadata()?.len() > len { file.set_len(len) } else { Ok(()) }
}

/// A number that nobody can guess or repeat.
pub fn random() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}
