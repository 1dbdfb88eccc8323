//! The end of a core: what is being served is finished, and nobody who keeps to the protocol notices.
//!
//! A connection without a request is not closed at once: its client may be sending one, which would be lost. It may ask once
//! more within `drain_idle_ms`; that answer says `Connection: close`.

use super::Core;
use super::conn::{Conn, ConnId, Kind, Phase};
use super::core::Now;

impl Core {
    /// From now on every answer is the last one of its connection.
    pub fn on_stop(&mut self, now: Now) {
        self.now = now;
        self.stopping = true;
        for index in 0..self.conns.len() {
            let id = ConnId { index: index as u32, generation: self.conns[index].generation };
            let Some((_, c)) = self.client(id) else { continue };
            match &c.exchange {
                // Its head has been sent and has not said that it is the last: the next one will.
                Some(e) if e.answered => {}
                Some(_) => c.about.keep_alive = false,
                None => self.last_chance(id),
            }
        }
    }

    /// An idle connection of a stopping core: it may ask once more, soon.
    pub(super) fn last_chance(&mut self, id: ConnId) {
        let until = self.now.ms + self.limits.drain_idle_ms;
        if let Some((io, c)) = self.client(id)
            && c.phase == Phase::Head
            && io.stash.is_empty()
        {
            io.deadline = io.deadline.min(until);
            self.look_by(until);
        }
    }

    /// Is any client connected?
    pub fn busy(&self) -> bool {
        self.counts.clients > 0
    }

    /// Clients connected.
    pub fn clients(&self) -> u64 {
        self.counts.clients
    }

    /// The time to drain is over: counts whom it cuts off in the middle of something.
    pub fn on_cut_off(&mut self) {
        let cut = |conn: &&Conn| match &conn.kind {
            Kind::Client(c) => c.exchange.is_some() || conn.io.sending,
            Kind::Upstream(_) | Kind::Port(_) | Kind::Free => false,
        };
        self.counts.cut_off = self.conns.iter().filter(cut).count() as u64;
    }

    /// A connection was accepted and is another core's.
    pub fn on_handed_over(&mut self) {
        self.counts.handed_over += 1;
    }

    /// A connection comes from another core; `on_accept` follows.
    pub fn on_taken_over(&mut self) {
        self.counts.taken_over += 1;
    }

    /// How many came from other cores.
    pub fn taken_over(&self) -> u64 {
        self.counts.taken_over
    }
}
