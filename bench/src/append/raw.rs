//! A plain loop of pwrite and fdatasync with O_DIRECT: what fio does, but each commit is timed as a whole from when it was due.

use super::sample::{Ask, Sample};
use super::{threads, worker};
use replog::limits::BLOCK;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const FILE_BYTES: u64 = 64 << 20;

/// Answers loads over a file in `dir`.
pub fn serve(dir: &Path) -> Result<(), String> {
    let path = dir.join("raw.data");
    let io = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(&path).map_err(io)?;
    // Laid out as fio's file is: a commit allocates nothing, and nothing of it is in the page cache.
    let chunk = 1 << 20;
    aligned(chunk, |zeros| (0..FILE_BYTES).step_by(chunk).try_for_each(|at| file.write_all_at(zeros, at)))
        .map_err(io)?;
    file.sync_all().map_err(io)?;
    worker::answer_all(|ask| run(&file, ask))
}

fn run(file: &File, ask: &Ask) -> Result<Sample, String> {
    let len = ask.record_bytes.next_multiple_of(BLOCK);
    let at = AtomicU64::new(0);
    aligned(len, |block| {
        threads::drive(ask, 1, |_, _| {
            let pos = at.fetch_add(len as u64, Ordering::Relaxed) % (FILE_BYTES / len as u64 * len as u64);
            file.write_all_at(block, pos).and_then(|()| file.sync_data()).map_err(|e| e.to_string())
        })
    })
}

/// Gives `work` so many bytes as O_DIRECT wants them: a piece of a longer vector that begins at a block.
fn aligned<T>(len: usize, work: impl FnOnce(&[u8]) -> T) -> T {
    let memory = vec![0; len + BLOCK];
    let begin = memory.as_ptr().align_offset(BLOCK);
    work(&memory[begin..begin + len])
}
