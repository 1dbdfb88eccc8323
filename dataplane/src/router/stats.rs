//! What each core counts, and how control sees it: single-writer atomics, written by plain stores, summed when asked.

use super::figures::Figures;
use super::histogram::Single;
use super::view::Tagged;
use super::{Routes, Settings};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of one core.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counts {
            /// How many counters there are.
            pub const LEN: usize = [$(stringify!($name)),*].len();
            /// Their names, in the order of `values`.
            pub const NAMES: [&'static str; Counts::LEN] = [$(stringify!($name)),*];
            /// Their values, in the order of `NAMES`.
            pub fn values(&self) -> [u64; Counts::LEN] {
                [$(self.$name),*]
            }
            fn from_values(values: [u64; Counts::LEN]) -> Counts {
                let [$($name),*] = values;
                Counts { $($name),* }
            }
        }
    };
}

counts! {
    /// Connections accepted.
    accepted,
    /// Connections open now, both sides.
    connections,
    /// Clients' connections open now.
    clients,
    /// Connections accepted here and handed to a core with fewer.
    handed_over,
    /// Connections that another core accepted and handed to this one.
    taken_over,
    /// Clients that were still served when the time to drain was over.
    cut_off,
    /// Readers of changes that were cut off because they did not take what they were sent.
    changes_cut,
    /// Readers that are told how this zone stands to its shards, now.
    ownership_streams,
    /// Those among them that were cut off because they did not take what they were sent.
    ownership_cut,
    /// Answers 1xx to 3xx.
    answered_2xx_3xx,
    /// Answers 4xx.
    answered_4xx,
    /// Answers 5xx.
    answered_5xx,
    /// Requests routed by `shardid` of a peer.
    by_shard,
    /// By order id.
    by_order,
    /// Requests tagged with a global service.
    by_global,
    /// By shop id.
    by_shop,
    /// By location.
    by_location,
    /// By the map's default.
    by_default,
    /// Writes, and reads at the owner, of a global service that were refused for want of a lease.
    unleased,
    /// Writes of a global service whose lease ended before they were acknowledged.
    unleased_unknown,
    /// Parts of tags that could not be read.
    malformed_tag_parts,
    /// Requests sent on to another zone's router.
    forwarded,
    /// Requests that came from one.
    hopped,
    /// Requests that were held.
    held,
    /// Requests held now.
    holding,
    /// The longest hold so far.
    held_ms_max,
    /// Second attempts after a 421.
    retried_421,
    /// Requests refused because their shard's rate is used up.
    shard_limited,
    /// Second attempts after a pooled connection or a connect failed.
    retried_lost,
    /// Connections that were closed at once: too many clients, or too much memory in use.
    refused,
    /// Requests that got 503 because too much memory was in use.
    short_of_memory,
    /// Bytes of all buffers.
    memory_bytes,
    /// Connections closed because their PROXY header was malformed or did not come.
    proxy_malformed,
    /// Tunnels open now.
    tunnels,
    /// Tunnels opened by a 101.
    tunnelled,
    /// Requests in flight on shards that the core's map calls moving or ownerless.
    in_flight_moving,
    /// Requests in flight.
    in_flight,
    /// TLS handshakes done, in either direction.
    tls_handshakes,
    /// Those among them that were resumed by a ticket.
    tls_resumed,
    /// TLS handshakes or sessions that failed: what came was not TLS.
    tls_failed_not_tls,
    /// TLS handshakes or sessions that failed: nothing in common to speak.
    tls_failed_incompatible,
    /// TLS handshakes or sessions that failed: no certificate was shown.
    tls_failed_no_certificate,
    /// TLS handshakes or sessions that failed: the certificate is not of a trusted authority.
    tls_failed_untrusted,
    /// TLS handshakes or sessions that failed: the certificate is not valid now.
    tls_failed_expired,
    /// TLS handshakes or sessions that failed: the certificate is of someone else.
    tls_failed_wrong_identity,
    /// TLS handshakes or sessions that failed: the other side refused us.
    tls_failed_refused,
    /// TLS handshakes or sessions that failed: the other side broke the protocol.
    tls_failed_broken,
    /// TLS handshakes or sessions that failed: too many bytes.
    tls_failed_too_long,
    /// TLS handshakes or sessions that failed: too much time.
    tls_failed_late,
    /// TLS handshakes or sessions that failed: the connection was closed.
    tls_failed_gone,
    /// TLS handshakes or sessions that failed: too many were under way.
    tls_failed_crowded,
    /// TLS handshakes or sessions that failed: no certificate of ours is configured.
    tls_failed_unprepared,
    /// The map that the core has adopted; 0: none yet.
    map_epoch,
}

impl Counts {
    pub(crate) fn answered(&mut self, status: u16) {
        match status {
            ..400 => self.answered_2xx_3xx += 1,
            400..500 => self.answered_4xx += 1,
            500.. => self.answered_5xx += 1,
        }
    }

    pub(crate) fn tagged(&mut self, by: Tagged) {
        match by {
            Tagged::Shard => self.by_shard += 1,
            Tagged::Order => self.by_order += 1,
            Tagged::Global => self.by_global += 1,
            Tagged::Shop => self.by_shop += 1,
            Tagged::Location => self.by_location += 1,
            Tagged::Default => self.by_default += 1,
        }
    }
}

/// What control leaves for a core: of each kind only the newest counts.
#[derive(Default)]
pub(crate) struct News {
    pub map: Option<Arc<dyn Routes>>,
    pub settings: Option<Arc<Settings>>,
    pub access: Option<rtrb::Producer<u8>>,
}

/// What a core goes by.
#[derive(Clone, Default)]
pub struct Adopted {
    /// Where it counts its requests: live, read at any time.
    pub figures: Figures,
    /// Its settings.
    pub settings: Option<Arc<Settings>>,
    /// Its map.
    pub map: Option<Arc<dyn Routes>>,
    /// Since when, in milliseconds since 1970; 0: it has none.
    pub map_wall_ms: u64,
}

impl Adopted {
    /// Requests that wait at core `core`, whose this is, for a place under a service's limit.
    pub fn waiting(&self, core: usize) -> u64 {
        let of = |s: &Arc<Settings>| {
            let shown = s.services.iter().map(|s| &s.shown).chain(s.peers.iter().map(|p| &p.shown));
            shown.map(|shown| shown.of(core).waiting.get()).sum()
        };
        self.settings.as_ref().map_or(0, of)
    }
}

/// How the loop of a core turns; written by its driver alone.
#[derive(Default)]
pub struct Loops {
    /// Rounds: submit, wait, complete.
    pub turns: Single,
    /// Completions in all rounds.
    pub completions: Single,
    /// Completions of the fullest round.
    pub completions_max: Single,
    /// Receives that the kernel ended because no buffer was left; each is armed again.
    pub out_of_buffers: Single,
    /// Rounds that found more completions than the ring has room for; the kernel kept them.
    pub overflows: Single,
    /// Accepts that failed: for want of descriptors or memory, or because one connection was at fault.
    pub accepts_failed: Single,
    /// Entries that found the submission queue full and waited.
    pub queue_full: Single,
    /// Entries that wait so now.
    pub backlog: Single,
    /// Records that found no room on their way to the access log.
    pub access_dropped: Single,
}

/// What control and one core share; of its own cache lines, so that no core slows another.
#[repr(align(128))]
pub struct Slot {
    counts: [AtomicU64; Counts::LEN],
    /// What the core has not fetched yet. Locked by the core only after a wake-up, never for a request.
    news: Mutex<News>,
    /// What the core goes by: locked by it only when it starts or takes something else.
    adopted: Mutex<Adopted>,
    /// How its loop turns.
    loops: Loops,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            news: Mutex::default(),
            adopted: Mutex::default(),
            loops: Loops::default(),
        }
    }
}

impl Slot {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("no holder of this lock can panic: it moves pointers")
    }
    fn adopted(&self) -> MutexGuard<'_, Adopted> {
        self.adopted.lock().expect("no holder of this lock can panic: it clones pointers")
    }
}

/// What control and the cores share.
pub struct Shared {
    slots: Vec<Slot>,
    stop: AtomicBool,
}

impl Shared {
    /// For so many cores.
    pub fn new(cores: usize) -> Shared {
        Shared { slots: (0..cores).map(|_| Slot::default()).collect(), stop: AtomicBool::new(false) }
    }

    /// The number of cores.
    pub fn cores(&self) -> usize {
        self.slots.len()
    }

    /// Leaves `map` for every core. The caller then wakes them.
    pub(crate) fn leave_map(&self, map: &Arc<dyn Routes>) {
        self.slots.iter().for_each(|slot| slot.news().map = Some(map.clone()));
    }

    /// Leaves `settings` for every core. The caller then wakes them.
    pub(crate) fn leave_settings(&self, settings: &Arc<Settings>) {
        self.slots.iter().for_each(|slot| slot.news().settings = Some(settings.clone()));
    }

    /// Leaves `core` its end of the ring to the access log.
    pub(crate) fn leave_access(&self, core: usize, ring: rtrb::Producer<u8>) {
        self.slots[core].news().access = Some(ring);
    }

    /// What was left for `core` since it last looked.
    pub(crate) fn take_news(&self, core: usize) -> News {
        std::mem::take(&mut *self.slots[core].news())
    }

    /// Shows what `core` goes by from now on.
    pub(crate) fn show_settings(&self, core: usize, settings: &Arc<Settings>, figures: &Figures) {
        let mut adopted = self.slots[core].adopted();
        (adopted.settings, adopted.figures) = (Some(settings.clone()), figures.clone());
    }

    /// Shows the map that `core` goes by from now on.
    pub(crate) fn show_map(&self, core: usize, map: Arc<dyn Routes>, wall_ms: u64) {
        let mut adopted = self.slots[core].adopted();
        (adopted.map, adopted.map_wall_ms) = (Some(map), wall_ms);
    }

    /// What `core` goes by.
    pub fn adopted(&self, core: usize) -> Adopted {
        self.slots[core].adopted().clone()
    }

    /// How the loop of `core` turns.
    pub fn loops(&self, core: usize) -> &Loops {
        &self.slots[core].loops
    }

    pub(crate) fn set_stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Have the cores been told to stop?
    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Shows `counts` to control; `core` is the only writer of its slot.
    pub(crate) fn publish(&self, core: usize, counts: &Counts) {
        for (to, value) in self.slots[core].counts.iter().zip(counts.values()) {
            to.store(value, Relaxed);
        }
    }

    /// What `core` has counted.
    pub fn counts(&self, core: usize) -> Counts {
        Counts::from_values(std::array::from_fn(|i| self.slots[core].counts[i].load(Relaxed)))
    }

    /// All cores together: sums, but the longest hold is the longest and the map is the oldest.
    pub fn total(&self) -> Counts {
        let all: Vec<_> = (0..self.cores()).map(|c| self.counts(c)).collect();
        let mut sum = Counts::from_values(std::array::from_fn(|i| all.iter().map(|c| c.values()[i]).sum()));
        sum.held_ms_max = all.iter().map(|c| c.held_ms_max).max().unwrap_or(0);
        sum.map_epoch = all.iter().map(|c| c.map_epoch).min().unwrap_or(0);
        sum
    }

    /// Has every core adopted at least the map `epoch`, with nothing in flight on shards that are moving or ownerless in it?
    pub fn drained(&self, epoch: u64) -> bool {
        (0..self.cores()).all(|c| {
            let counts = self.counts(c);
            counts.map_epoch >= epoch && counts.in_flight_moving == 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_has_the_oldest_map_and_the_longest_hold() {
        let shared = Shared::new(2);
        shared.publish(0, &Counts { map_epoch: 7, held_ms_max: 3, forwarded: 5, ..Counts::default() });
        shared.publish(
            1,
            &Counts { map_epoch: 6, held_ms_max: 9, forwarded: 1, in_flight_moving: 1, ..Counts::default() },
        );
        let sum = shared.total();
        assert_eq!((sum.map_epoch, sum.held_ms_max, sum.forwarded), (6, 9, 6));
        assert!(!shared.drained(6));
        shared.publish(1, &Counts { map_epoch: 7, ..Counts::default() });
        assert!(shared.drained(7) && !shared.drained(8));
    }
}
