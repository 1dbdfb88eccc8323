//! What the cores show about a service and its endpoints: counters with one writer each, read by control.
//!
//! They hang off [`Settings`](super::Settings) in `Arc`s. Control uses the same ones again for the same service and address,
//! so that a reload does not set them back.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that one core writes and anyone reads: a plain load and a plain store, never a read-modify-write.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the core that owns it may.
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Takes away; only the core that owns it may.
    pub fn sub(&self, n: u64) {
        self.set(self.get().wrapping_sub(n));
    }

    /// Only the core that owns it may.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The newest value, perhaps a moment old.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One value for each core. None shares a cache line with another's: two lines, because they are fetched in pairs.
#[derive(Debug)]
pub struct PerCore<T>(Box<[Line<T>]>);

#[derive(Default, Debug)]
#[repr(align(128))]
struct Line<T>(T);

impl<T: Default> PerCore<T> {
    /// For so many cores; at least one.
    pub fn new(cores: usize) -> PerCore<T> {
        PerCore((0..cores.max(1)).map(|_| Line::default()).collect())
    }

    /// The value of `core`. A core beyond the number that was asked for writes to the last one's: figures, not memory, suffer.
    pub fn of(&self, core: usize) -> &T {
        &self.0[core.min(self.0.len() - 1)].0
    }

    /// Every core's.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }

    /// One figure over all cores.
    pub fn sum(&self, of: impl Fn(&T) -> u64) -> u64 {
        self.all().map(of).sum()
    }
}

/// Two shown values are the same only if they are one.
impl<T> PartialEq for PerCore<T> {
    fn eq(&self, other: &PerCore<T>) -> bool {
        std::ptr::eq(self, other)
    }
}
impl<T> Eq for PerCore<T> {}

/// What a core shows about a service, or about the routers of a zone.
#[derive(Default, Debug)]
pub struct OfService {
    /// Requests under way: sent, or being tried again.
    pub active: Counter,
    /// Requests that wait for a place under a limit.
    pub waiting: Counter,
    /// Requests that had to wait, since the start.
    pub queued: Counter,
    /// Requests that were refused because too many waited, or waited too long, since the start.
    pub queue_refused: Counter,
    /// Requests refused by a rate, since the start.
    pub limited: Counter,
    /// Second attempts, since the start.
    pub retries: Counter,
    /// Second attempts that the budget refused, since the start.
    pub retries_refused: Counter,
    /// Endpoints that are healthy, not ejected and not draining.
    pub usable: Counter,
    /// 1: too few are usable, so all are used.
    pub panic: Counter,
    /// Requests sent so, since the start.
    pub panicked: Counter,
    /// Ejections that the cap did not allow, since the start.
    pub ejections_refused: Counter,
}

/// What a core shows about an endpoint.
#[derive(Default, Debug)]
pub struct OfEndpoint {
    /// Requests sent to it.
    pub requests: Counter,
    /// Requests that wait for its answer now.
    pub active: Counter,
    /// Connections open now.
    pub open: Counter,
    /// Of these, kept and idle.
    pub idle: Counter,
    /// From a request on its way to the answer's head, in microseconds: an eighth of each new one.
    pub latency_us: Counter,
    /// Connects that failed, since the start.
    pub connect_failures: Counter,
    /// Connections that ended in the middle of an exchange, or answers that cannot be read, since the start.
    pub resets: Counter,
    /// Answers that did not come in time, since the start.
    pub timeouts: Counter,
    /// Answers with a status that counts as a failure, since the start.
    pub bad_statuses: Counter,
    /// Ejections, since the start.
    pub ejections: Counter,
    /// 1: it is ejected.
    pub ejected: Counter,
    /// By which rule the last time: an index of [`By::NAMES`](super::eject::By::NAMES).
    pub ejected_by: Counter,
    /// Until when, the last time, in milliseconds since 1970.
    pub ejected_until_wall_ms: Counter,
    /// 1: it starts slowly.
    pub ramping: Counter,
}

/// A service, by core.
pub type ServiceShown = PerCore<OfService>;
/// An endpoint, by core.
pub type EndpointShown = PerCore<OfEndpoint>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_share_no_cache_line_and_are_summed() {
        let shown = ServiceShown::new(3);
        let at = |core| std::ptr::from_ref(shown.of(core)) as usize;
        assert!(at(1) - at(0) >= 128 && at(2) - at(1) >= 128 && at(0) % 128 == 0);
        (0..3).for_each(|core| shown.of(core).retries.add(core as u64 + 1));
        shown.of(0).retries.sub(1);
        assert_eq!(shown.sum(|s| s.retries.get()), 5);
        assert_eq!(at(7), at(2), "no core writes beyond the end");
    }
}
