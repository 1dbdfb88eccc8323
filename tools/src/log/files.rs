//! Reads a stream's directory for a tool: asks the kernel to read ahead, counts what was read, and notices when a segment is
//! retired or used again under it.

use super::progress::Progress;
use bytes::{Bytes, BytesMut};
use replog::open::Storage;
use replog::uring::dir::{self, Dir};
use rustix::fs::{Advice, fadvise};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// So far ahead of what is read the kernel is asked to read, while what was read is checked.
const AHEAD: u64 = 16 * 1024 * 1024;

/// From this length on memory is used again.
const LARGE: usize = 1024 * 1024;

/// A directory of segments, read in order.
pub struct Files {
    path: PathBuf,
    open: Option<Open>,
    progress: Progress,
    /// The last two large reads: their memory is used again once nobody holds it, which spares the kernel's page faults.
    lent: VecDeque<Bytes>,
}

struct Open {
    name: String,
    file: File,
    asked_to: u64,
}

impl Files {
    /// Of this directory; nothing is opened yet.
    pub fn new(path: &Path) -> Files {
        Files { path: path.to_owned(), open: None, progress: Progress::none(), lent: VecDeque::new() }
    }

    /// Tells `progress` what is read.
    pub fn with_progress(mut self, progress: Progress) -> Files {
        self.progress = progress;
        self
    }

    /// The segments' names and lengths, in order.
    pub fn segments(&mut self) -> io::Result<Vec<(String, u64)>> {
        let mut all = self.list()?;
        all.retain(|(name, _)| replog::segment::seq_of_name(name).is_some());
        all.sort();
        Ok(all)
    }

    /// Was the file of this name removed, renamed or replaced since it was opened here?
    pub fn is_gone(&self, name: &str) -> bool {
        let Some(open) = self.open.as_ref().filter(|o| o.name == name) else { return !self.path.join(name).exists() };
        !dir::is_still(&open.file, &self.path.join(name))
    }

    /// Opens the file again at the next read.
    pub fn forget(&mut self) {
        self.open = None;
    }

    fn open(&mut self, name: &str) -> io::Result<&mut Open> {
        if self.open.as_ref().is_none_or(|o| o.name != name) {
            let path = self.path.join(name);
            let file = File::open(&path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
            let _ = fadvise(&file, 0, None, Advice::Sequential); // a help, not a need
            self.open = Some(Open { name: name.to_owned(), file, asked_to: 0 });
        }
        Ok(self.open.as_mut().expect("opened above"))
    }
}

impl Storage for Files {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Dir::new(&self.path).list().map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let path = self.path.join(name);
        let mut bytes = memory(&mut self.lent, len);
        let open = self.open(name)?;
        let to = pos + len as u64;
        if len > 64 * 1024 && to + AHEAD / 2 > open.asked_to {
            let from = open.asked_to.max(to);
            let _ = fadvise(&open.file, from, NonZeroU64::new(to + AHEAD - from), Advice::WillNeed);
            open.asked_to = to + AHEAD;
        }
        let mut read = 0;
        while read < len {
            match open.file.read_at(&mut bytes[read..], pos + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io::Error::new(e.kind(), format!("{} at byte {pos}: {e}", path.display()))),
            }
        }
        if len >= LARGE {
            // What was read is read once: a live node's pages are not to give way to it.
            let _ = fadvise(&open.file, pos, NonZeroU64::new(read as u64), Advice::DontNeed);
        }
        bytes.truncate(read);
        self.progress.at(name, pos + read as u64);
        let bytes = bytes.freeze();
        if len >= LARGE {
            self.lent.push_back(bytes.clone());
        }
        Ok(bytes)
    }
}

/// `len` bytes to read into.
fn memory(lent: &mut VecDeque<Bytes>, len: usize) -> BytesMut {
    let again = if len >= LARGE && lent.len() >= 2 { lent.pop_front() } else { None };
    let mut bytes = again.and_then(|b| b.try_into_mut().ok()).unwrap_or_default();
    bytes.resize(len, 0);
    bytes
}
