//! Finds the core that a disk interrupts: what is written from there is answered without waking another core.

use std::fs;
use std::io::Write;
use std::path::Path;

/// Written to see who is interrupted, a block at a time.
const WRITES: usize = 64;

/// The core that got the most device interrupts while a file in `dir` was written; 0 if none stands out.
pub fn core_of_disk(dir: &Path) -> Result<usize, String> {
    let path = dir.join("interrupts.data");
    let io = |e: std::io::Error| format!("{}: {e}", path.display());
    let before = count(&fs::read_to_string("/proc/interrupts").unwrap_or_default());
    let mut file = fs::File::create(&path).map_err(io)?;
    for _ in 0..WRITES {
        file.write_all(&[0; 4096]).and_then(|()| file.sync_data()).map_err(io)?;
    }
    let after = count(&fs::read_to_string("/proc/interrupts").unwrap_or_default());
    fs::remove_file(&path).map_err(io)?;
    let more = after.iter().zip(&before).map(|(a, b)| a.saturating_sub(*b)).enumerate();
    Ok(more.max_by_key(|(_, n)| *n).filter(|(_, n)| *n > 0).map_or(0, |(core, _)| core))
}

/// Interrupts of devices by core: the numbered lines; the others are the kernel's own.
fn count(text: &str) -> Vec<u64> {
    let cores = text.lines().next().map_or(0, |l| l.split_whitespace().count());
    let mut all = vec![0; cores];
    for line in text.lines().skip(1) {
        let mut words = line.split_whitespace();
        let device = words.next().is_some_and(|w| w.trim_end_matches(':').parse::<u32>().is_ok());
        if device {
            all.iter_mut().zip(words).for_each(|(sum, word)| *sum += word.parse::<u64>().unwrap_or(0));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_lines_count_and_each_core_for_itself() {
        let text = "      CPU0   CPU1\n 28:  3  4  PCI-MSIX 0-edge virtio0\n 31:  1  50  PCI\nLOC: 900 900 Local timer\nERR: 0\n";
        assert_eq!(count(text), [4, 54]);
        assert!(count("").is_empty());
    }
}
