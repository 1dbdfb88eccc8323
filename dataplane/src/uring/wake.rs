//! How control reaches the cores: a slot for the newest map, a flag to stop, and an eventfd for each core.

use crate::router::{Routes, Settings, Shared};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, Mutex};

/// Wakes one core.
pub struct Waker(File);

/// Control's end.
pub struct Control {
    shared: Arc<Shared>,
    wakers: Vec<Waker>,
    /// Maps that a core may still go by: the last handle of one is dropped here, so that no router core ever frees a map.
    maps: Mutex<Vec<Arc<dyn Routes>>>,
}

/// Control's end and, for each core, the eventfd that its ring reads.
pub fn control(shared: Arc<Shared>) -> io::Result<(Control, Vec<Waker>)> {
    let (mut wakers, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..shared.cores() {
        // SAFETY: eventfd takes no pointer; the descriptor that it returns is new and owned by nobody else.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: see above: `fd` is open and ours.
        let file = unsafe { File::from_raw_fd(fd) };
        ends.push(Waker(file.try_clone()?));
        wakers.push(Waker(file));
    }
    Ok((Control { shared, wakers, maps: Mutex::default() }, ends))
}

impl Control {
    /// Hands `map` to every core, which adopts it before it looks at its next request.
    pub fn set_map(&self, map: &Arc<dyn Routes>) {
        let mut maps = self.maps.lock().expect("no holder of this lock can panic: it drops maps");
        maps.retain(|m| Arc::strong_count(m) > 1);
        maps.push(map.clone());
        self.shared.leave_map(map);
        self.wake();
    }

    /// Hands `settings` to every core: what begins from then on goes by them.
    pub fn set_settings(&self, settings: &Arc<Settings>) {
        self.shared.leave_settings(settings);
        self.wake();
    }

    /// Lets every core finish what it is serving and return.
    pub fn stop(&self) {
        self.shared.set_stop();
        self.wake();
    }

    /// What the cores have counted, and whether they have adopted a map.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn wake(&self) {
        for waker in &self.wakers {
            // A full counter means that it has been woken and has not looked yet: nothing is lost.
            let _ = (&waker.0).write(&1u64.to_ne_bytes());
        }
    }
}

impl Waker {
    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
