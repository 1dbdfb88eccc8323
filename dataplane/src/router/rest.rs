//! Connections that rest give their buffers back: ten thousand idle ones must not keep what their largest request needed.

use super::Core;
use super::conn::{Conn, ConnId, Io, Kind, Phase, UpPhase};

/// Idle for so long, a connection rests. A busy one keeps its buffers from request to request.
const REST_MS: u64 = 1000;

impl Core {
    /// Frees the buffers of the connection at `index` if nothing has happened to it for `REST_MS`.
    pub(super) fn rest(&mut self, index: usize) {
        let patience_ms = match &self.conns[index].kind {
            Kind::Upstream(u) => self.idle_ms(u.target),
            Kind::Client(_) | Kind::Port(_) | Kind::Free => self.limits.idle_ms,
        };
        if self.conns[index].rest(patience_ms, self.now.ms) {
            self.weigh(ConnId { index: index as u32, generation: self.conns[index].generation });
        }
    }
}

impl Conn {
    /// Since when is told by the deadline, which was set `patience_ms` ahead when idleness began. True: it holds less than
    /// before.
    fn rest(&mut self, patience_ms: u64, now_ms: u64) -> bool {
        let rested = |io: &Io| {
            io.out.is_empty() && io.stash.is_empty() && !io.sending && io.deadline + REST_MS <= now_ms + patience_ms
        };
        match &mut self.kind {
            Kind::Client(c) if c.phase == Phase::Head && c.exchange.is_none() && rested(&self.io) => {
                (c.head, c.kept, c.trailers) = (Vec::new(), Vec::new(), Vec::new());
            }
            Kind::Upstream(u) if u.phase == UpPhase::Idle && rested(&self.io) => {}
            Kind::Client(_) | Kind::Upstream(_) | Kind::Port(_) | Kind::Free => return false,
        }
        (self.io.out, self.io.spare, self.io.stash) = (Vec::new(), Vec::new(), Vec::new());
        self.io.weight > 0
    }
}
