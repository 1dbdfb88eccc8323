//! Asks the kernel for what std does not offer: epoll, signals as a descriptor, limits and clock ticks.
//!
//! The only file of this crate with `unsafe`, but for `net` below it; every block is one system call on memory that it borrows for
//! the call alone.

pub mod net;

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Wake when bytes, an end or an error can be read.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Wake when bytes can be written.
pub const WRITE: u32 = libc::EPOLLOUT as u32;

/// Events taken from the kernel in one call.
const EVENTS_MAX: usize = 256;

/// Level-triggered epoll: an event is told again until what caused it is gone.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    pub fn new() -> io::Result<Poller> {
        // SAFETY: no memory is passed; the result is checked.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Poller { epoll: owned(fd), events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }

    /// Starts watching. Closing the descriptor ends it.
    pub fn add(&self, fd: &impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    pub fn modify(&self, fd: &impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    fn control(&self, op: i32, fd: &impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open for the call (owned and borrowed); `event` outlives it.
        check(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &mut event) }).map(drop)
    }

    /// Waits until something happens or `timeout` is over (`None`: for ever); puts the tokens into `ready`.
    /// Nanosecond timeouts (epoll_pwait2), because a due time in whole milliseconds would be the driver's own lateness.
    pub fn wait(&mut self, ready: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        ready.clear();
        let spec = timeout.map(|t| libc::timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos() as i64 });
        let spec_ptr = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` has room for EVENTS_MAX entries and `spec` lives until the end of this function; no signal
        // mask is passed (null, size ignored).
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as i32,
                spec_ptr,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        ready.extend(self.events[..n as usize].iter().map(|e| e.u64));
        Ok(())
    }
}

/// Blocks SIGTERM and SIGINT in this thread, and those it starts later, and returns a descriptor that becomes readable
/// when one arrives. Nobody reads it, so that every thread's poller sees it. (std's `Command` clears the mask again.)
pub fn stop_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data for which all zeros is a value; sigemptyset sets it up before use, and each call
    // borrows it only while it runs.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        check(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)).map(owned)
    }
}

/// Raises the soft limit of open descriptors to the hard one; a refusal shows later as an error of `accept` or `socket`.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Lets this thread's timers fire on time: by default the kernel may be 50 us late to save wake-ups.
pub fn exact_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes a number, no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Sends SIGTERM to a process that this program started.
pub fn terminate(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // SAFETY: no memory is passed; the caller has not yet waited for `pid`, so it is still ours.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Lets `command` run on these cores alone; `last`: at the lowest ordinary priority.
pub fn run_on(command: &mut Command, cores: impl Iterator<Item = usize>, last: bool) {
    // SAFETY: cpu_set_t is plain data for which all zeros is the empty set; CPU_SET checks its bounds.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cores.for_each(|core| libc::CPU_SET(core, &mut set));
        set
    };
    let limit = move || {
        // SAFETY: `set` is owned by this closure; the call is one that may be made between fork and exec.
        check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) })?;
        // SAFETY: no memory is passed.
        if last { check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }).map(drop) } else { Ok(()) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(limit) };
}

/// This thread runs only when no other wants its core: what it does then takes no time from what is measured.
pub fn run_last() -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: `none` outlives the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &none) }).map(drop)
}

/// This thread runs before all others that are not as urgent: a link that waits for a core is late for everybody.
pub fn run_first() -> io::Result<()> {
    let urgent = libc::sched_param { sched_priority: 1 };
    // SAFETY: `urgent` outlives the call.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &urgent) }).map(drop)
}

/// Time on a processor of this thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    usage(libc::RUSAGE_THREAD).0
}

/// Time on a processor of this process and all its threads, those that have ended too, in nanoseconds.
pub fn cpu_ns() -> u64 {
    usage(libc::RUSAGE_SELF).0
}

/// The same of all children that have been waited for.
pub fn children_cpu_ns() -> u64 {
    usage(libc::RUSAGE_CHILDREN).0
}

/// The most memory that this process has had at once.
pub fn peak_bytes() -> u64 {
    usage(libc::RUSAGE_SELF).1
}

fn usage(who: i32) -> (u64, u64) {
    // SAFETY: rusage is plain data for which all zeros is a value; the call borrows it only while it runs.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    };
    let ns = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1_000;
    (ns(usage.ru_utime) + ns(usage.ru_stime), usage.ru_maxrss as u64 * 1024)
}

/// Takes a file's pages out of the page cache, so that it is read from the disk.
pub fn forget(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for the call.
    match unsafe { libc::posix_fadvise(file.as_fd().as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

pub fn is_root() -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::geteuid() == 0 }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with a descriptor that a system call has just made and nobody else holds.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
