//! What the buffers of a core hold together, and what happens when that is too much.
//!
//! Each connection is weighed whenever something was put into its buffers. Above `memory_bytes_max` the core is short: new
//! connections are closed, new requests get 503, bodies are not kept for a second attempt, and each connection may hold
//! only `SHORT_BYTES` before its other side is no longer read. So the excess is at most that, one receive, and what a
//! head and its answer's head need, for each connection; and it shrinks, for what is being served goes on.

use super::Core;
use super::conn::{ConnId, Kind};

/// What may wait for one connection of a core that is short of memory.
const SHORT_BYTES: usize = 4096;

impl Core {
    /// Counts what `id` holds now.
    pub(super) fn weigh(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id.index as usize).filter(|c| c.generation == id.generation) else {
            return;
        };
        let io = &conn.io;
        let own = match &conn.kind {
            Kind::Client(c) => c.head.capacity() + c.kept.capacity() + c.trailers.capacity(),
            Kind::Upstream(u) => u.trailers.capacity(),
            Kind::Port(p) => p.input.capacity(),
            Kind::Free => 0,
        };
        let weight = own + io.out.capacity() + io.spare.capacity() + io.stash.capacity() + io.flying;
        self.memory_bytes = self.memory_bytes - io.weight + weight;
        conn.io.weight = weight;
    }

    /// Is too much memory in use?
    pub(super) fn is_short(&self) -> bool {
        self.memory_bytes > self.limits.memory_bytes_max
    }

    /// How much may wait for one connection before its other side is no longer read.
    pub(super) fn buffer_max(&self) -> usize {
        let most = self.limits.buffer_bytes_max;
        if self.is_short() { most.min(SHORT_BYTES) } else { most }
    }
}
