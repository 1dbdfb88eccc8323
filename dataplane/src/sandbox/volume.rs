//! A place of limited size for a zone's data: a tmpfs mount, which only root can make. Unmounted when it is dropped.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What fills it, so that it can be emptied again.
const FILLER: &str = "filler";
const PIECE_BYTES: usize = 64 << 10;

/// A mounted directory.
#[derive(Debug)]
pub struct Volume {
    at: PathBuf,
}

impl Volume {
    /// Can there be one on this host? Else why not.
    pub fn is_possible() -> Result<(), String> {
        let at = std::env::temp_dir().join(format!("ezone-volume-trial-{}", std::process::id()));
        fs::create_dir_all(&at).map_err(|e| format!("{}: {e}", at.display()))?;
        let tried = Volume::mount(&at, 1).map(drop);
        let _ = fs::remove_dir(&at); // an empty directory for temporary things
        tried
    }

    /// Mounts `mib` MiB at `at`, an empty directory; else says why it cannot.
    pub fn mount(at: &Path, mib: u64) -> Result<Volume, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a place of limited size takes a mount, which takes root".into());
        }
        let size = format!("size={mib}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "ezone-sandbox"]).arg(at).output();
        match done {
            Ok(done) if done.status.success() => Ok(Volume { at: at.into() }),
            Ok(done) => Err(format!("mount -t tmpfs: {}", String::from_utf8_lossy(&done.stderr).trim())),
            Err(e) => Err(format!("mount: {e}")),
        }
    }

    /// Takes all that is free but for `left` bytes; how many it took.
    pub fn fill(&self, left: u64) -> io::Result<u64> {
        let mut file = fs::File::options().create(true).append(true).open(self.at.join(FILLER))?;
        let (piece, mut taken) = (vec![0u8; PIECE_BYTES], 0);
        loop {
            let disk = rustix::fs::statvfs(&self.at)?;
            let room = (disk.f_bavail * disk.f_frsize).saturating_sub(left);
            let bytes = piece.len().min(usize::try_from(room).unwrap_or(piece.len()));
            if bytes == 0 {
                return Ok(taken);
            }
            match file.write(&piece[..bytes]) {
                Ok(n) => taken += n as u64,
                // Somebody else was faster: it is full, which is what was wanted.
                Err(e) if e.kind() == io::ErrorKind::StorageFull => return Ok(taken),
                Err(e) => return Err(e),
            }
        }
    }

    /// Gives back what `fill` took.
    pub fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.at.join(FILLER)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a process that was killed a moment ago may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_filled_and_emptied_again() {
        let at = std::env::temp_dir().join(format!("ezone-volume-{}", std::process::id()));
        fs::create_dir_all(&at).unwrap();
        match Volume::mount(&at, 2) {
            Ok(volume) => {
                assert!(volume.fill(0).unwrap() > 1 << 20);
                let full = fs::write(at.join("one"), vec![1; 100_000]).unwrap_err();
                assert_eq!(full.kind(), io::ErrorKind::StorageFull);
                volume.empty().unwrap();
                fs::write(at.join("one"), vec![1; 100_000]).unwrap();
            }
            Err(why) => eprintln!("NOT RUN: {why}"),
        }
        fs::remove_dir_all(&at).unwrap();
    }
}
