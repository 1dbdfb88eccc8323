//! Where threads run and to whom they give way. All of it holds for the thread that calls and for what it starts from then on.

use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;

/// A tenth of the time of a thread that does not give way, where both want one core.
const NICER: i32 = 10;
/// The kernel knows no more.
const NICE_MAX: i32 = 19;

/// Keeps to these cores. The kernel's own workers for files obey a control group's cpuset only.
pub fn keep_to(cores: &[usize]) -> io::Result<()> {
    let mut mask = CpuSet::new();
    cores.iter().filter(|c| **c < CpuSet::MAX_CPU).for_each(|c| mask.set(*c));
    Ok(sched_setaffinity(None, &mask)?)
}

/// Gives way to threads of the priority that it had: has a tenth of their time, and does not interrupt them when it wakes. It counts
/// among processes of one session or control group; between groups their weights decide.
pub fn give_way() -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: `none` outlives the call; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &none) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let nice = getpriority_process(None)? + NICER;
    Ok(setpriority_process(None, nice.min(NICE_MAX))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_starts_gives_way_too_and_keeps_to_the_same_cores() {
        let here = rustix::thread::sched_getaffinity(None).unwrap();
        let nice = (getpriority_process(None).unwrap() + 10).min(19).to_string();
        let first = (0..CpuSet::MAX_CPU).find(|c| here.is_set(*c)).unwrap();
        let stat = std::thread::spawn(move || {
            give_way().unwrap();
            keep_to(&[first]).unwrap();
            std::thread::spawn(|| std::fs::read_to_string("/proc/thread-self/stat").unwrap()).join().unwrap()
        });
        let stat = stat.join().unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        // proc_pid_stat(5): the state is field 3; nice, processor and policy are fields 19, 39 and 41.
        assert_eq!((fields[16], fields[36], fields[38]), (&*nice, &*first.to_string(), "3"));
        assert!(keep_to(&[]).is_err(), "nowhere to run");
    }
}
