//! What the kernel says of this process: processor time of each thread, open descriptors. Read when asked, from `/proc/self`.

use std::fs;

/// One thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Thread {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// How long it has run, in microseconds.
    pub ran_us: u64,
    /// How long it was ready to run while others ran, in microseconds.
    pub waited_us: u64,
}

/// The threads of this process, by name; those that have ended meanwhile are left out, and all where `/proc` is not there.
pub fn threads() -> Vec<Thread> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return vec![] };
    let read = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?.trim().to_string();
        let (ran_us, waited_us) = times(&fs::read_to_string(task.path().join("schedstat")).ok()?)?;
        Some(Thread { name, ran_us, waited_us })
    };
    let mut all: Vec<Thread> = tasks.filter_map(|t| read(t.ok()?)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// `ran waited slices`, the first two in nanoseconds.
fn times(schedstat: &str) -> Option<(u64, u64)> {
    let mut fields = schedstat.split_whitespace().map(|f| f.parse::<u64>().ok());
    Some((fields.next()?? / 1000, fields.next()?? / 1000))
}

/// How many descriptors are open; `None`: `/proc` is not there.
pub fn open_descriptors() -> Option<u64> {
    // One of them is the directory that is read.
    fs::read_dir("/proc/self/fd").ok().map(|d| (d.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_and_nonsense_is_not() {
        assert_eq!(times("1234567 89000 12\n"), Some((1234, 89)));
        assert_eq!((times(""), times("1"), times("a b")), (None, None, None));
    }

    #[test]
    fn this_thread_is_found_by_its_name() {
        let name = "found-by-name";
        let look = move || threads().into_iter().find(|t| t.name == name);
        let seen = std::thread::Builder::new().name(name.into()).spawn(look).unwrap().join().unwrap();
        assert!(seen.is_some(), "{:?}", threads());
        assert!(open_descriptors().is_some_and(|n| n >= 3));
    }
}
