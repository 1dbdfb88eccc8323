//! How links use the lines between zones: the socket's options, and what a link shows of itself.

use super::secure::Towards;
use crate::link::pace::Bucket;
use crate::link::{Compress, Sender, Shipped, Stop};
use shardmap::Zone;
use socket2::SockRef;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the kernel may hold that it has not sent yet. Bytes beyond are kept here, where a map or a BEAT is not stuck behind them for long: at
/// 1 Gb/s this is 4 ms, and a writer that is told late still finds some of it left.
const UNSENT_BYTES: u32 = 512 << 10;
/// What was sent and stays without any acknowledgement of TCP for so long ends the connection. The link's own silence is shorter, but it is
/// noticed by who runs; this is noticed by the kernel.
const USER_TIMEOUT: Duration = Duration::from_secs(6);
/// The congestion control of a link that keeps up. BBR, which fills a lossy line, sends four packets a round trip for 200 ms every ten
/// seconds (PROBE_RTT): what is written meanwhile waits. A link with little to send has no use for it.
const CALM: &str = "cubic";
/// More than this that its socket has not sent, and a link may be behind: 0.5 ms of a 1 Gb/s line.
const UNSENT_FEW: usize = 64 << 10;
/// A link for which that holds so long is behind.
const BEHIND_AFTER_US: u64 = 100_000;
/// One for which it has not held so long keeps up.
const CALM_AFTER_US: u64 = 2_000_000;
/// If it falls behind soon after, on a line that loses too much for CUBIC, it waits twice as long the next time, up to this.
const CALM_AFTER_US_MAX: u64 = 300_000_000;
/// Linux: the longest name of a congestion control.
pub const CONGESTION_NAME_MAX: usize = 15;

/// How links use the lines between zones.
#[derive(Clone, Debug)]
pub struct Line {
    /// The congestion control that is asked of the kernel for links that are behind; those that keep up use CUBIC. What it has not leaves
    /// its own choice. `None`: that, always.
    pub congestion: Option<String>,
    /// Bytes of a log that may be on their way here, or not yet durable here; of each stream and zone. What bounds this node's memory.
    pub window_bytes: u64,
    /// Whether batches are gathered and compressed.
    pub compress: Compress,
    /// How TLS is spoken to the other zones' logs; `None`: it is not.
    pub towards: Option<Arc<Towards>>,
    /// What an operator wants of links; control changes it at any time.
    pub controls: Arc<Controls>,
}

/// What an operator wants of links. Links look at it several times a second.
#[derive(Default, Debug)]
pub struct Controls(Mutex<BTreeMap<Zone, Control>>);

#[derive(Default, Debug)]
struct Control {
    is_paused: bool,
    paused: BTreeSet<u32>,
    bucket: Arc<Mutex<Bucket>>,
    cleared: BTreeMap<u32, u64>,
}

impl Controls {
    /// Links to `peer` ship nothing of their logs, or do again; of one stream, or of all.
    pub fn pause(&self, peer: Zone, stream: Option<u32>, paused: bool) {
        self.with(peer, |c| match (stream, paused) {
            (None, _) => (c.is_paused, c.paused) = (paused, BTreeSet::new()),
            (Some(stream), true) => drop(c.paused.insert(stream)),
            (Some(stream), false) => drop(c.paused.remove(&stream)),
        });
    }

    /// All links to `peer` together ship so many bytes a second; `None`: as many as the line takes.
    pub fn limit(&self, peer: Zone, rate: Option<u64>) {
        let bucket = self.bucket(peer);
        let mut bucket = bucket.lock().expect("no one panics while holding it");
        if bucket.rate() != rate {
            bucket.set(rate, super::now_us());
        }
    }

    /// Something was done about what stopped the link: the peer is asked again.
    pub fn clear(&self, peer: Zone, stream: u32) {
        self.with(peer, |c| *c.cleared.entry(stream).or_default() += 1);
    }

    pub(super) fn is_paused(&self, peer: Zone, stream: u32) -> bool {
        self.with(peer, |c| c.is_paused || c.paused.contains(&stream))
    }

    pub(super) fn bucket(&self, peer: Zone) -> Arc<Mutex<Bucket>> {
        self.with(peer, |c| c.bucket.clone())
    }

    /// How often it was cleared.
    pub(super) fn cleared(&self, peer: Zone, stream: u32) -> u64 {
        self.with(peer, |c| c.cleared.get(&stream).copied().unwrap_or(0))
    }

    fn with<T>(&self, peer: Zone, change: impl FnOnce(&mut Control) -> T) -> T {
        change(self.0.lock().expect("no one panics while holding it").entry(peer).or_default())
    }
}

impl Default for Line {
    fn default() -> Line {
        Line {
            congestion: Some("bbr".into()),
            window_bytes: crate::link::CREDIT_BYTES,
            compress: Compress::Auto,
            towards: None,
            controls: Arc::default(),
        }
    }
}

/// What is known of a link's line; since the start.
#[derive(Clone, Debug, Default)]
pub struct LineFigures {
    /// Connections that were made.
    pub connects: u64,
    /// Attempts that failed: nobody there, a handshake that was refused, a session that broke.
    pub failures: u64,
    /// The congestion control that is in use; empty: no connection.
    pub congestion: String,
    /// It ships nothing, by an operator's word.
    pub is_paused: bool,
    /// Why it cannot go on, until an operator clears it.
    pub stopped: Option<Stop>,
    /// What was shipped.
    pub shipped: Shipped,
    /// Bytes that are not acknowledged, and how many the peer allows.
    pub flight_bytes: u64,
    /// See there.
    pub credit_bytes: u64,
    /// From sending to the answer, the newest.
    pub round_trip_us: Option<u64>,
    /// Bytes a second that the line takes, measured while it was the bottleneck.
    pub line_rate: Option<u64>,
}

impl LineFigures {
    /// With what the sender knows.
    pub(super) fn of(&self, sender: &Sender) -> LineFigures {
        let (flight_bytes, credit_bytes) = sender.credit();
        let (shipped, round_trip_us, line_rate) = (sender.shipped(), sender.round_trip_us(), sender.line_rate());
        let stopped = sender.stopped();
        LineFigures { stopped, shipped, flight_bytes, credit_bytes, round_trip_us, line_rate, ..self.clone() }
    }
}

/// Sets what a link's socket needs. What the kernel does not know is left as it is: the link works, slower. `SO_SNDBUF` and `SO_RCVBUF`
/// are left alone: setting one ends the kernel's tuning of it.
pub(super) fn tune(socket: &impl AsFd) {
    let s = SockRef::from(socket);
    let _ = s.set_tcp_nodelay(true);
    let _ = s.set_tcp_notsent_lowat(UNSENT_BYTES);
    let _ = s.set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// Asks for the congestion control of a link that is behind, or keeps up; what is in use then.
pub(super) fn choose(socket: &impl AsFd, line: &Line, behind: bool) -> String {
    let s = SockRef::from(socket);
    if let Some(name) = &line.congestion {
        let name = if behind { name } else { CALM };
        let _ = s.set_tcp_congestion(name.as_bytes()); // what is in use is read back, and shown
    }
    let name = s.tcp_congestion().unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

/// Does the socket have more to send than what is about to go?
pub(super) fn has_much(socket: &impl AsFd) -> bool {
    let mut unsent: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel writes one int, which lives here.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCOUTQNSD, &raw mut unsent) };
    done == 0 && unsent as usize > UNSENT_FEW
}

/// Linux, `<linux/sockios.h>`: bytes that a TCP socket has not sent yet (tcp(7)).
const SIOCOUTQNSD: libc::Ioctl = 0x894B;

/// Whether a link is behind, by what its socket has left to send: pure.
pub(super) struct Gear {
    behind: bool,
    /// Since when it has been the other way without a break.
    other_us: Option<u64>,
    calm_after_us: u64,
    /// When it last began to keep up.
    calm_us: u64,
}

impl Default for Gear {
    fn default() -> Gear {
        Gear { behind: false, other_us: None, calm_after_us: CALM_AFTER_US, calm_us: 0 }
    }
}

impl Gear {
    /// Something was written; is there much left? `Some`: from now on it is behind, or keeps up.
    pub fn on_written(&mut self, much: bool, now_us: u64) -> Option<bool> {
        if much == self.behind {
            self.other_us = None;
            return None;
        }
        let since = *self.other_us.get_or_insert(now_us);
        let patience = if much { BEHIND_AFTER_US } else { self.calm_after_us };
        if now_us < since + patience {
            return None;
        }
        (self.behind, self.other_us) = (much, None);
        if !much {
            self.calm_us = now_us;
        } else if self.calm_us > 0 && now_us < self.calm_us + 10 * self.calm_after_us {
            self.calm_after_us = (2 * self.calm_after_us).min(CALM_AFTER_US_MAX);
        } else {
            self.calm_after_us = CALM_AFTER_US;
        }
        Some(much)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_links_socket_is_tuned_and_a_congestion_control_that_is_not_there_leaves_the_kernels_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let s = SockRef::from(&socket);
        let before = s.send_buffer_size().unwrap();
        tune(&socket);
        assert_eq!(s.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert_eq!((s.tcp_notsent_lowat().unwrap(), s.tcp_nodelay().unwrap()), (UNSENT_BYTES, true));
        assert_eq!(s.send_buffer_size().unwrap(), before);
        let choose = |name: Option<&str>, behind| {
            choose(&socket, &Line { congestion: name.map(str::to_owned), ..Line::default() }, behind)
        };
        let default = choose(None, true);
        assert!(!default.is_empty() && default.len() <= CONGESTION_NAME_MAX, "{default:?}");
        assert_eq!(choose(Some("no-such-control"), true), default);
        // Every kernel has it.
        assert_eq!(choose(Some("reno"), true), "reno");
        assert_ne!(choose(Some("reno"), false), "");
        assert_eq!(choose(None, false), choose(None, true));
    }

    #[test]
    fn a_link_is_behind_when_its_socket_leaves_much_for_a_while_and_keeps_up_a_while_after() {
        let mut gear = Gear::default();
        assert_eq!((gear.on_written(true, 0), gear.on_written(true, 99_999)), (None, None));
        assert_eq!((gear.on_written(false, 99_999), gear.on_written(true, 100_001)), (None, None), "it was sent");
        assert_eq!((gear.on_written(true, 200_000), gear.on_written(true, 200_001)), (None, Some(true)));
        assert_eq!((gear.on_written(true, 5_000_000), gear.on_written(false, 5_000_001)), (None, None));
        assert_eq!((gear.on_written(true, 6_000_000), gear.on_written(false, 6_000_001)), (None, None));
        assert_eq!((gear.on_written(false, 8_000_001), gear.on_written(false, 9_000_000)), (Some(false), None));
    }

    /// How long a link keeps up that falls behind so long after it began to.
    fn calm_s(gear: &mut Gear, now_us: &mut u64, behind_after_s: u64) -> u64 {
        *now_us += behind_after_s * 1_000_000;
        while gear.on_written(true, *now_us).is_none() {
            *now_us += 10_000;
        }
        let from = *now_us;
        while gear.on_written(false, *now_us).is_none() {
            *now_us += 10_000;
        }
        (*now_us - from) / 1_000_000
    }

    #[test]
    fn a_line_that_loses_too_much_is_left_to_bbr_longer_and_longer() {
        let (mut gear, mut now_us) = (Gear::default(), 0);
        let seen: Vec<u64> = [0, 1, 1, 60, 1, 1, 1, 1, 1, 1].map(|s| calm_s(&mut gear, &mut now_us, s)).into();
        assert_eq!(seen, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(calm_s(&mut gear, &mut now_us, 3001), 2, "it had been calm for long");
    }
}
