//! How control reaches the cores, and how they reach each other: a slot for the newest map and settings, a post box with an
//! eventfd for each core.

use super::Listener;
use crate::router::{Routes, Settings, Shared, Side};
use socket2::Socket;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// Accepted connections that wait for a core at once: beyond that the core that accepted them keeps them.
const HANDED_MAX: usize = 1024;

/// A core's end: its own box, and the way to the others'.
pub struct Waker {
    own: usize,
    boxes: Arc<[PostBox]>,
}

/// Control's end.
pub struct Control {
    shared: Arc<Shared>,
    boxes: Arc<[PostBox]>,
    /// Maps that a core may still go by: the last handle of one is dropped here, so that no router core ever frees a map.
    maps: Mutex<Vec<Arc<dyn Routes>>>,
}

/// What control and the other cores leave for one core.
struct PostBox {
    bell: File,
    left: Mutex<Left>,
    /// Connections ever handed to this core; written under the lock.
    handed: AtomicU64,
    /// Of them, those that it has taken up: it alone writes this.
    taken: AtomicU64,
    /// Its clients' connections: it alone writes this.
    clients: AtomicU64,
}

/// The contents of a box. Locked after a wake-up or for a connection that is handed over, never for a request.
#[derive(Default)]
pub(super) struct Left {
    pub changes: Vec<Change>,
    pub handed: Vec<Handed>,
    /// The core has ended: nothing is taken out any more.
    ended: bool,
}

/// A change of what a core listens at.
pub(super) enum Change {
    /// Listen here too.
    Add(Listener),
    /// Accept what is in the queue here, then close it.
    Close(SocketAddr, Side),
    /// The same for all.
    CloseAll,
    /// Stop accepting: another process has the same sockets.
    LeaveAll,
}

/// A connection that another core accepted.
pub(super) struct Handed {
    pub socket: Socket,
    pub side: Side,
}

/// Control's end and, for each core, its own.
pub fn control(shared: Arc<Shared>) -> io::Result<(Control, Vec<Waker>)> {
    let boxes: Arc<[PostBox]> = (0..shared.cores()).map(|_| PostBox::new()).collect::<io::Result<_>>()?;
    let wakers = (0..boxes.len()).map(|own| Waker { own, boxes: boxes.clone() }).collect();
    Ok((Control { shared, boxes, maps: Mutex::default() }, wakers))
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

    /// Gives more listeners to core `core`.
    pub fn listen(&self, core: usize, listeners: Vec<Listener>) {
        self.boxes[core].left().changes.extend(listeners.into_iter().map(Change::Add));
        self.boxes[core].ring();
    }

    /// Lets every core end its listener at `at`, with no connection lost that a client takes for established.
    pub fn close(&self, at: SocketAddr, side: Side) {
        self.boxes.iter().for_each(|b| b.left().changes.push(Change::Close(at, side)));
        self.wake();
    }

    /// Lets every core close its listeners, finish what it is serving and return.
    pub fn stop(&self) {
        self.end(|| Change::CloseAll);
    }

    /// The same when another process accepts from the same sockets already: they are left alone.
    pub fn hand_over(&self) {
        self.end(|| Change::LeaveAll);
    }

    /// What the cores have counted, and whether they have adopted a map.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn end(&self, how: impl Fn() -> Change) {
        self.boxes.iter().for_each(|b| b.left().changes.push(how()));
        self.shared.set_stop();
        self.wake();
    }

    fn wake(&self) {
        self.boxes.iter().for_each(PostBox::ring);
    }
}

impl PostBox {
    fn new() -> io::Result<PostBox> {
        // SAFETY: eventfd takes no pointer; the descriptor that it returns is new and owned by nobody else.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: see above: `fd` is open and ours.
        let bell = unsafe { File::from_raw_fd(fd) };
        let (handed, taken, clients) = Default::default();
        Ok(PostBox { bell, left: Mutex::default(), handed, taken, clients })
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().expect("no holder of this lock can panic: it moves sockets")
    }

    fn ring(&self) {
        // A full counter means that the core has been woken and has not looked yet: nothing is lost.
        let _ = (&self.bell).write(&1u64.to_ne_bytes());
    }
}

impl Waker {
    pub(super) fn fd(&self) -> RawFd {
        self.boxes[self.own].bell.as_raw_fd()
    }

    /// What was left since the last look.
    pub(super) fn take(&self) -> Left {
        let mut left = self.boxes[self.own].left();
        Left { changes: std::mem::take(&mut left.changes), handed: std::mem::take(&mut left.handed), ended: false }
    }

    /// This core is about to end: false if connections were handed to it that it has to serve first.
    pub(super) fn end(&self) -> bool {
        let mut left = self.boxes[self.own].left();
        left.ended = left.handed.is_empty();
        left.ended
    }

    /// Shows the other cores how many clients this one has, and how many of the handed connections are among them.
    pub(super) fn show(&self, clients: u64, taken: u64) {
        let own = &self.boxes[self.own];
        own.taken.store(taken, Relaxed);
        own.clients.store(clients, Relaxed);
    }

    /// How many cores there are.
    pub(super) fn cores(&self) -> usize {
        self.boxes.len()
    }

    /// The clients of core `core`, those among them that wait in its box.
    pub(super) fn clients(&self, core: usize) -> u64 {
        let other = &self.boxes[core];
        let taken = other.taken.load(Relaxed);
        other.clients.load(Relaxed) + other.handed.load(Relaxed).saturating_sub(taken)
    }

    /// Hands a connection to core `to`; it comes back if that core has ended or does not keep up.
    pub(super) fn hand(&self, to: usize, connection: Handed) -> Result<(), Handed> {
        let other = &self.boxes[to];
        let mut left = other.left();
        if left.ended || left.handed.len() >= HANDED_MAX {
            return Err(connection);
        }
        left.handed.push(connection);
        other.handed.store(other.handed.load(Relaxed) + 1, Relaxed);
        let first = left.handed.len() == 1;
        drop(left);
        if first {
            other.ring();
        }
        Ok(())
    }
}
