//! Connections that rest give their buffers back: ten thousand idle ones must not keep what their largest request needed.

use super::Limits;
use super::conn::{Conn, Io, Kind, Phase, UpPhase};

/// Idle for so long, a connection rests. A busy one keeps its buffers from request to request.
const REST_MS: u64 = 1000;

impl Conn {
    /// Frees the buffers if nothing has happened for `REST_MS`, which the deadline tells: it was set when idleness began.
    /// True: it holds less than before.
    pub(super) fn rest(&mut self, limits: &Limits, now_ms: u64) -> bool {
        let rested = |io: &Io, patience_ms: u64| {
            io.out.is_empty() && io.stash.is_empty() && !io.sending && io.deadline + REST_MS <= now_ms + patience_ms
        };
        match &mut self.kind {
            Kind::Client(c) if c.phase == Phase::Head && c.exchange.is_none() && rested(&self.io, limits.idle_ms) => {
                (c.head, c.kept, c.trailers) = (Vec::new(), Vec::new(), Vec::new());
            }
            Kind::Upstream(u) if u.phase == UpPhase::Idle && rested(&self.io, limits.upstream_idle_ms) => {}
            Kind::Client(_) | Kind::Upstream(_) | Kind::Port(_) | Kind::Free => return false,
        }
        (self.io.out, self.io.spare, self.io.stash) = (Vec::new(), Vec::new(), Vec::new());
        self.io.weight > 0
    }
}
