//! A node's router and log agree on the number of log cores: `data_dir/log.cores` says it, and it changes only while neither of
//! them runs.
//!
//! A shard's stream is served by log core `stream mod number`. What is on disk does not go by that number, but a router that goes
//! by another one than the log asks cores that do not have the stream. Each may be started alone, again, or as a successor, from
//! a configuration that was edited meanwhile, on a machine that was changed meanwhile: the number that is in use wins then.

use super::{Failed, data_dir};
use crate::config::Config;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// More are no log's: there are at most so many streams.
const CORES_MAX: usize = 1024;
/// What is longer is not ours.
const NOTE_BYTES_MAX: u64 = 64;

/// Makes `config` go by the number in use. As long as the answer is kept, the number stays; `None`: there is no log.
pub fn on_log_cores(config: &mut Config) -> Result<Option<File>, Failed> {
    let Some(log) = &mut config.log else { return Ok(None) };
    data_dir(&config.node.data_dir)?;
    let path = config.node.data_dir.join("log.cores");
    let wanted = log.cores.len();
    let (held, number) = hold(&path, wanted).map_err(|e| format!("{}: {e}", path.display()))?;
    if number != wanted {
        config.layout.keep(number);
        log.cores.clone_from(&config.layout.log);
        tracing::warn!(
            "the log of this node has {number} core(s) and this configuration would give it {wanted}: it keeps its number \
             until router and log have both ended; restart the node to change it"
        );
    }
    Ok(Some(held))
}

/// The number that `path` says from now on, as long as the file is held: `wanted`, unless another process holds it.
fn hold(path: &Path, wanted: usize) -> io::Result<(File, usize)> {
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => note(&mut file, wanted)?,
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(e)) => return Err(e),
    }
    // One lock does not become the other in one step: whoever comes between has written, and that is what counts then.
    while let Err(e) = file.lock_shared() {
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    match text.trim().parse() {
        Ok(number) if (1..=CORES_MAX).contains(&number) => Ok((file, number)),
        Ok(_) | Err(_) => {
            Err(io::Error::other(format!("\"{}\": expected a number of cores, 1 to {CORES_MAX}", text.trim())))
        }
    }
}

/// Writes the number, unless it is there: a node must start on a full disk.
fn note(file: &mut File, wanted: usize) -> io::Result<()> {
    let (mut held, wanted) = (Vec::new(), format!("{wanted}\n"));
    file.take(NOTE_BYTES_MAX).read_to_end(&mut held)?;
    if held != wanted.as_bytes() {
        file.rewind()?;
        file.write_all(wanted.as_bytes())?;
        file.set_len(wanted.len() as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_written_again() {
        let path = std::env::temp_dir().join(format!("ezone-agree-full-{}", std::process::id()));
        drop(hold(&path, 12).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "12\n");
        let mut closed = File::open(&path).unwrap();
        note(&mut closed, 12).unwrap();
        assert!(note(&mut closed, 3).is_err(), "this one cannot write");
        drop(hold(&path, 3).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_number_stays_as_long_as_one_goes_by_it_and_changes_when_none_does() {
        let path = std::env::temp_dir().join(format!("ezone-agree-{}", std::process::id()));
        let (router, number) = hold(&path, 2).unwrap();
        assert_eq!(number, 2);
        let (log, number) = hold(&path, 3).unwrap();
        assert_eq!(number, 2, "the router has begun with it");
        drop(router);
        assert_eq!(hold(&path, 1).unwrap().1, 2, "the log goes on");
        drop(log);
        assert_eq!(hold(&path, 3).unwrap().1, 3);
        std::fs::write(&path, "nonsense").unwrap();
        let (held, number) = hold(&path, 1).unwrap();
        assert_eq!(number, 1, "nobody goes by nonsense");
        std::fs::write(&path, "0").unwrap();
        assert!(hold(&path, 1).unwrap_err().to_string().starts_with("\"0\": expected a number of cores, 1 to 1024"));
        drop(held);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn of_those_who_start_together_all_go_by_one_number() {
        let path = std::env::temp_dir().join(format!("ezone-agree-together-{}", std::process::id()));
        for _ in 0..50 {
            let all: Vec<_> = (1..=8)
                .map(|wanted| {
                    let path = path.clone();
                    std::thread::spawn(move || hold(&path, wanted).unwrap())
                })
                .collect();
            let all: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
            assert!(all.iter().all(|(_, number)| *number == all[0].1), "{all:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
