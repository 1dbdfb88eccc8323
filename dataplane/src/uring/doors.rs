//! The listeners of one core: which have to be armed, which are ending and how far they are; which core is to take a
//! connection.
//!
//! ```text
//!   armed ─ close ─▶ quiet: no new handshakes, accepts go on ─ QUIET_MS ─▶ cancelled ─▶ the queue is emptied ─▶ closed
//!     └──── leave ─────────────────────────────────────────────────────────▶ cancelled ─▶ dropped: another has the socket
//! ```

use super::{Listener, wake::Change};
use crate::router::Side;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// How long handshakes that were begun before a listener's end may take.
const QUIET_MS: u64 = 200;
/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE_MS: u64 = 100;
/// How soon to look again while a listener waits for one of the above.
const LOOK_MS: u64 = 25;
/// So many connections more than another core's are no imbalance.
const SLACK: u64 = 8;

/// The listeners; a place is used again once its listener is gone and no accept on it is under way.
pub(super) struct Doors {
    doors: Vec<Option<Door>>,
    unarmed_until_ms: u64,
    /// Some are not simply armed.
    restless: bool,
}

struct Door {
    listener: Listener,
    armed: bool,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    No,
    Quiet { until_ms: u64 },
    Closing,
    Leave,
    Leaving,
}

/// What the driver has to do.
pub(super) enum Step {
    /// Accept on this descriptor, under this number.
    Arm(usize, RawFd),
    /// Cancel the accept of this number.
    Cancel(usize),
    /// Take what is left in the queue, then drop it.
    Empty(Listener),
}

impl Doors {
    pub fn new(listeners: Vec<Listener>) -> Doors {
        let mut doors = Doors { doors: Vec::new(), unarmed_until_ms: 0, restless: false };
        listeners.into_iter().for_each(|l| doors.add(l));
        doors
    }

    pub fn change(&mut self, change: Change, now_ms: u64) {
        match change {
            Change::Add(listener) => self.add(listener),
            Change::Close(at, side) => {
                self.end(|l| l.side() == side && l.local_addr().is_ok_and(|own| own == at), now_ms, false);
            }
            Change::CloseAll => self.end(|_| true, now_ms, false),
            Change::LeaveAll => self.end(|_| true, now_ms, true),
        }
    }

    /// For whom listener `number` listens.
    pub fn side(&self, number: usize) -> Side {
        self.doors[number].as_ref().expect("a place is kept while an accept on it is under way").listener.side()
    }

    /// Accepts wait a while: the next one would fail as the last one did.
    pub fn pause(&mut self, now_ms: u64) {
        self.unarmed_until_ms = now_ms + ACCEPT_PAUSE_MS;
    }

    /// The accept of listener `number` has ended.
    pub fn disarmed(&mut self, number: usize) {
        if let Some(door) = &mut self.doors[number] {
            door.armed = false;
        }
        self.restless = true;
    }

    /// How long the driver may wait at most because of these listeners.
    pub fn wait_ms(&self) -> Option<u64> {
        self.restless.then_some(LOOK_MS)
    }

    pub fn is_empty(&self) -> bool {
        self.doors.iter().all(Option::is_none)
    }

    /// What has to be done now.
    pub fn steps(&mut self, now_ms: u64) -> Vec<Step> {
        if !self.restless {
            return Vec::new();
        }
        let may_arm = now_ms >= self.unarmed_until_ms;
        let mut steps = Vec::new();
        for number in 0..self.doors.len() {
            let Some(door) = &mut self.doors[number] else { continue };
            let fd = door.listener.as_fd().as_raw_fd();
            match (door.end, door.armed) {
                (End::Quiet { until_ms }, true) if now_ms >= until_ms => {
                    door.end = End::Closing;
                    steps.push(Step::Cancel(number));
                }
                (End::Leave, true) => {
                    door.end = End::Leaving;
                    steps.push(Step::Cancel(number));
                }
                (End::Closing, false) => steps.extend(self.doors[number].take().map(|d| Step::Empty(d.listener))),
                (End::Quiet { until_ms }, false) if now_ms >= until_ms => {
                    steps.extend(self.doors[number].take().map(|d| Step::Empty(d.listener)));
                }
                (End::Leave | End::Leaving, false) => self.doors[number] = None,
                (End::No | End::Quiet { .. }, false) if may_arm => {
                    door.armed = true;
                    steps.push(Step::Arm(number, fd));
                }
                (End::No | End::Quiet { .. } | End::Closing | End::Leaving, _) => {}
            }
        }
        self.restless = self.doors.iter().flatten().any(|d| d.end != End::No || !d.armed);
        steps
    }

    fn add(&mut self, listener: Listener) {
        let door = Some(Door { listener, armed: false, end: End::No });
        match self.doors.iter().position(Option::is_none) {
            Some(free) => self.doors[free] = door,
            None => self.doors.push(door),
        }
        self.restless = true;
    }

    fn end(&mut self, which: impl Fn(&Listener) -> bool, now_ms: u64, leave: bool) {
        for door in self.doors.iter_mut().flatten().filter(|d| d.end == End::No && which(&d.listener)) {
            if leave {
                door.end = End::Leave;
            } else {
                if let Err(e) = door.listener.quench() {
                    tracing::warn!("a listener that ends goes on answering handshakes until it is closed: {e}");
                }
                door.end = End::Quiet { until_ms: now_ms + QUIET_MS };
            }
            self.restless = true;
        }
    }
}

/// Will the next accept fail too? Not where one connection is at fault, which was gone before it was accepted
/// (accept(2)): who waits behind it must not wait for that. Whoever forbids one (EPERM) may forbid all.
pub(super) fn is_lasting(errno: i32) -> bool {
    let of_one = [
        libc::ECONNABORTED,
        libc::EPROTO,
        libc::EINTR,
        libc::EAGAIN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::ENETDOWN,
        libc::ETIMEDOUT,
    ];
    !of_one.contains(&errno)
}

/// Which core is to take a connection that this one, with `own` clients, has accepted; `None`: this one. The kernel spreads
/// by a hash of addresses; a core gives away what makes it a quarter heavier than the lightest.
pub(super) fn lighter(own: u64, others: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    if own <= SLACK {
        return None;
    }
    let (core, least) = others.min_by_key(|(_, clients)| *clients)?;
    (own > least + least / 4 + SLACK).then_some(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_all_arrive_at_one_core_are_spread() {
        for cores in [2usize, 3, 8] {
            let mut clients = vec![0u64; cores];
            for _ in 0..1000 {
                let to = lighter(clients[0], clients.iter().copied().enumerate().skip(1)).unwrap_or(0);
                clients[to] += 1;
            }
            let most = *clients.iter().max().unwrap();
            assert!(most * cores as u64 <= 1000 * 5 / 4 + 10 * cores as u64, "{clients:?}");
        }
    }

    #[test]
    fn accepts_pause_for_want_of_descriptors_or_memory_and_not_for_one_connection() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EINVAL, libc::EBADF, libc::EPERM] {
            assert!(is_lasting(errno), "{}", std::io::Error::from_raw_os_error(errno));
        }
        for errno in [libc::ECONNABORTED, libc::EPROTO, libc::ENETDOWN, libc::EINTR] {
            assert!(!is_lasting(errno), "{}", std::io::Error::from_raw_os_error(errno));
        }
    }

    #[test]
    fn an_even_spread_and_few_connections_are_left_alone() {
        assert_eq!(lighter(8, [(1, 0)].into_iter()), None);
        assert_eq!(lighter(500, [(1, 450)].into_iter()), None);
        assert_eq!(lighter(500, [].into_iter()), None, "there is no other core");
        assert_eq!(lighter(500, [(1, 300), (2, 200)].into_iter()), Some(2));
    }
}
