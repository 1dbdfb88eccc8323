//! The ring and its provided buffers, and what to say where io_uring is missing or forbidden.

use io_uring::{IoUring, types};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::sync::atomic::{AtomicU16, Ordering::Release};

const BUFFER_BYTES: usize = 8192;
/// The group of the only buffer ring.
pub(super) const GROUP: u16 = 0;

/// How large a ring is; each a power of two. With small ones a test reaches what else takes thousands of connections.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries that can be submitted at once.
    pub entries: u32,
    /// Completions that can wait, at least as many as entries; the kernel keeps more aside. They may outnumber submissions:
    /// multishot requests and closes.
    pub completions: u32,
    /// Provided buffers, of 8 KiB; at most 32768.
    pub buffers: u16,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { entries: 1024, completions: 8192, buffers: 512 }
    }
}

/// Can a router run here? The error says what is in the way.
pub fn check() -> io::Result<()> {
    let sizes = Sizes::default();
    let ring = open(sizes)?;
    Buffers::new(&ring, sizes.buffers).map(drop)
}

/// A ring for the thread that calls: nobody else may submit to it.
pub(super) fn open(sizes: Sizes) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_cqsize(sizes.completions);
    builder.build(sizes.entries).map_err(|e| explain(e, disabled()))
}

fn disabled() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().map(|s| s.trim().to_string())
}

/// Says which of the reasons for `e` it is and what to do.
fn explain(e: io::Error, disabled: Option<String>) -> io::Error {
    let why = match (e.raw_os_error(), disabled.as_deref()) {
        (Some(libc::ENOSYS), _) => {
            "this kernel has no io_uring, or a container's seccomp filter hides it: Linux 6.1 or \
             newer is needed, in Docker `--security-opt seccomp=unconfined` or a profile that allows io_uring_*"
        }
        (Some(libc::EPERM), Some("1" | "2")) => "io_uring is disabled: `sysctl kernel.io_uring_disabled=0` allows it",
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring is forbidden here, most often by a container's seccomp filter: \
             in Docker `--security-opt seccomp=unconfined` or a profile that allows io_uring_*"
        }
        (Some(libc::EINVAL), _) => "this kernel's io_uring is too old: Linux 6.1 or newer is needed (DEFER_TASKRUN)",
        (Some(libc::ENOMEM), _) => "too little locked memory for the ring: raise `ulimit -l` (memlock)",
        _ => "io_uring cannot be set up",
    };
    io::Error::new(e.kind(), format!("{why} ({e})"))
}

/// The ring of provided buffers: the kernel takes one for each receive, and the driver gives it back at once.
pub(super) struct Buffers {
    ring: *mut types::BufRingEntry,
    data: Vec<u8>,
    /// How many there are: a power of two.
    count: u16,
    tail: u16,
}

impl Buffers {
    pub fn new(ring: &IoUring, count: u16) -> io::Result<Buffers> {
        assert!(count.is_power_of_two() && count <= 1 << 15, "{count} buffers: a power of two up to 32768");
        // SAFETY: the layout is not of size zero. Alignment of a page is what the kernel asks for.
        let memory = unsafe { alloc_zeroed(Buffers::layout(count)) }.cast::<types::BufRingEntry>();
        if memory.is_null() {
            return Err(io::Error::other("no memory for the ring of buffers"));
        }
        let mut buffers = Buffers { ring: memory, data: vec![0; usize::from(count) * BUFFER_BYTES], count, tail: 0 };
        // SAFETY: `memory` holds `count` entries, is aligned to a page, and lives as long as `Buffers`, which the driver keeps
        // until its ring is dropped.
        unsafe { ring.submitter().register_buf_ring_with_flags(memory as u64, count, GROUP, 0) }
            .map_err(|e| explain(e, disabled()))?;
        (0..count).for_each(|id| buffers.give(id));
        buffers.publish();
        Ok(buffers)
    }

    fn layout(count: u16) -> Layout {
        Layout::from_size_align(usize::from(count) * size_of::<types::BufRingEntry>(), 4096)
            .expect("a page is a power of two and the size is far from the limit")
    }

    /// The first `len` bytes of buffer `id`, which the kernel has filled and does not touch until it is given back.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        let id = usize::from(id);
        assert!(id < usize::from(self.count), "the kernel gave back buffer {id} of {}", self.count);
        // SAFETY: the assertion keeps the buffer within `data`; the kernel has handed it over and writes to others only.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().add(id * BUFFER_BYTES), len.min(BUFFER_BYTES)) }
    }

    /// Gives buffer `id` back; the kernel sees it after `publish`.
    pub fn give(&mut self, id: u16) {
        let slot = usize::from(self.tail & (self.count - 1));
        let addr = self.data.as_ptr() as u64 + u64::from(id) * BUFFER_BYTES as u64;
        // SAFETY: `slot` < `count`, so the entry lies within the allocation, which nobody else in this process refers to. The
        // kernel reads only entries before the published tail, and this one is not. The entry's `resv` field, which of entry 0
        // is the tail itself, is not written.
        unsafe {
            let entry = &mut *self.ring.add(slot);
            entry.set_addr(addr);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was given back.
    pub fn publish(&mut self) {
        // SAFETY: the tail lies in entry 0 as the kernel defines it, is aligned, and is shared with the kernel alone, which
        // reads it with acquire ordering.
        unsafe { (*types::BufRingEntry::tail(self.ring).cast::<AtomicU16>()).store(self.tail, Release) };
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the driver drops its ring, and with it the kernel's use, first.
        unsafe { dealloc(self.ring.cast(), Buffers::layout(self.count)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_forbidden_ring_is_explained() {
        let text = |code, disabled: Option<&str>| {
            explain(io::Error::from_raw_os_error(code), disabled.map(str::to_string)).to_string()
        };
        assert!(text(libc::ENOSYS, None).contains("no io_uring"));
        assert!(text(libc::EPERM, Some("2")).contains("kernel.io_uring_disabled=0"));
        assert!(text(libc::EPERM, Some("0")).contains("seccomp"));
        assert!(text(libc::ENOMEM, None).contains("memlock"));
    }

    #[test]
    fn a_ring_can_be_opened_and_dropped_here() {
        check().unwrap();
    }
}
