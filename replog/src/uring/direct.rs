//! Reads a stream's directory past the page cache: whoever checks a whole log must not push out what a live node keeps there.

use super::dir::{self, Dir};
use crate::limits::BLOCK;
use crate::open::Storage;
use bytes::{Buf, Bytes, BytesMut};
use rustix::fs::{Advice, fadvise};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// From this length on memory is used again.
const LARGE: usize = 64 * 1024;

/// A directory of segments, each read with O_DIRECT; where the file system has none, what was read is given back to the kernel.
pub struct Direct {
    path: PathBuf,
    open: Option<Open>,
    /// The last two large reads: their memory is used again once nobody holds it, which spares the kernel's page faults.
    lent: VecDeque<Bytes>,
}

struct Open {
    name: String,
    file: File,
    is_direct: bool,
}

impl Direct {
    /// Of this directory; nothing is opened yet.
    pub fn new(path: &Path) -> Direct {
        Direct { path: path.to_owned(), open: None, lent: VecDeque::new() }
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

    fn open(&mut self, name: &str) -> io::Result<&Open> {
        if self.open.as_ref().is_none_or(|o| o.name != name) {
            let path = self.path.join(name);
            let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
            let (file, is_direct) = match direct {
                Ok(file) => (file, true),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (File::open(&path)?, false),
                Err(e) => return Err(e),
            };
            self.open = Some(Open { name: name.to_owned(), file, is_direct });
        }
        Ok(self.open.as_ref().expect("opened above"))
    }
}

impl Storage for Direct {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Dir::new(&self.path).list()
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let path = self.path.join(name);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{} at byte {pos}: {e}", path.display()));
        // Whole blocks of the disk around what is wanted.
        let from = pos - pos % BLOCK as u64;
        let skip = (pos - from) as usize;
        let mut bytes = memory(&mut self.lent, (skip + len).next_multiple_of(BLOCK));
        let open = self.open(name).map_err(named)?;
        let mut read = 0;
        while read < bytes.len() {
            match open.file.read_at(&mut bytes[read..], from + read as u64) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(named(e)),
            }
            if !read.is_multiple_of(BLOCK) {
                break; // the file's end
            }
        }
        if !open.is_direct {
            let _ = fadvise(&open.file, from, NonZeroU64::new(read as u64), Advice::DontNeed); // a help, not a need
        }
        bytes.truncate(read);
        let bytes = bytes.freeze();
        if len >= LARGE {
            self.lent.push_back(bytes.clone());
        }
        Ok(bytes.slice(skip.min(read)..(skip + len).min(read)))
    }
}

/// `len` bytes to read into, that begin at a whole block of memory as the disk wants it.
fn memory(lent: &mut VecDeque<Bytes>, len: usize) -> BytesMut {
    let again = if len >= LARGE && lent.len() >= 2 { lent.pop_front() } else { None };
    if let Some(mut bytes) = again.and_then(|b| b.try_into_mut().ok())
        && bytes.capacity() >= len
        && bytes.as_ptr().align_offset(BLOCK) == 0
    {
        bytes.resize(len, 0);
        return bytes;
    }
    let mut bytes = BytesMut::zeroed(len + BLOCK);
    bytes.advance(bytes.as_ptr().align_offset(BLOCK));
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_a_plain_read_reads_at_any_place_and_uses_its_memory_again() {
        let dir = std::env::current_dir().unwrap().join(format!("../target/tmp/direct-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let whole: Vec<u8> = (0..300_001u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(dir.join("a"), &whole).unwrap();
        let mut files = Direct::new(&dir);
        for (pos, len) in
            [(0, 4096), (1, 10), (4095, 2), (8192, 200_000), (100_000, 200_001), (299_000, 9_000), (0, 300_001)]
        {
            let expected = &whole[pos..(pos + len).min(whole.len())];
            assert_eq!(files.read("a", pos as u64, len).unwrap(), expected, "{pos} {len}");
        }
        assert_eq!(files.read("a", 400_000, 10).unwrap().len(), 0);
        for at in 0..20 {
            let seen = files.read("a", at * 4096, LARGE).unwrap();
            assert_eq!(seen, whole[at as usize * 4096..][..LARGE]);
        }
        assert!(files.lent.len() <= 2, "{}", files.lent.len());
        assert!(!files.is_gone("a") && files.is_gone("b"));
        std::fs::rename(dir.join("a"), dir.join("b")).unwrap();
        assert!(files.is_gone("a"));
        assert!(files.read("c", 0, 1).unwrap_err().to_string().contains("/c at byte 0"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
