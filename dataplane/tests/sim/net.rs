//! Connections between cores and actors: two pipes of bytes each, with what TCP can do to them.

use dataplane::router::ConnId;
use std::collections::VecDeque;

/// Who holds an end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A core, by number.
    Core(usize, ConnId),
    Client(usize),
    Upstream(usize),
    Store(usize),
    /// Closed.
    Gone,
}

/// Bytes on their way.
#[derive(Default)]
pub struct Pipe {
    pub data: VecDeque<u8>,
    /// No more will be written.
    pub fin: bool,
    /// The connection broke; what is in `data` may still be read.
    pub reset: bool,
    /// Nobody reads: writing breaks the connection.
    pub deaf: bool,
    pub room: usize,
    /// Bytes that were ever read.
    pub read: usize,
}

/// A connection: `pipes[0]` leads from `ends[0]` to `ends[1]`.
pub struct Link {
    pub ends: [End; 2],
    pub pipes: [Pipe; 2],
    /// The network broke it: what its ends see proves nothing.
    pub broken: bool,
}

impl Link {
    pub fn new(ends: [End; 2], rooms: [usize; 2]) -> Link {
        let pipe = |room| Pipe { room, ..Pipe::default() };
        Link { ends, pipes: rooms.map(pipe), broken: false }
    }

    /// Writes as much as there is room for: how much, or `None` if the connection is broken.
    pub fn write(&mut self, side: usize, bytes: &[u8]) -> Option<usize> {
        if self.pipes[1 - side].reset {
            return None;
        }
        let to = &mut self.pipes[side];
        assert!(!to.fin, "written after the end");
        if to.deaf {
            self.pipes[1 - side].reset = true;
            return Some(bytes.len());
        }
        let n = bytes.len().min(to.room.saturating_sub(to.data.len()));
        to.data.extend(&bytes[..n]);
        Some(n)
    }

    /// Takes at most `n` bytes that have come to `side`.
    pub fn read(&mut self, side: usize, n: usize) -> Vec<u8> {
        let from = &mut self.pipes[1 - side];
        let n = n.min(from.data.len());
        from.read += n;
        from.data.drain(..n).collect()
    }

    /// Closes the end `side`: unread bytes turn it into a reset, which may destroy what the other side has not read yet.
    pub fn hang_up(&mut self, side: usize, abort: bool, destroys: bool) {
        self.ends[side] = End::Gone;
        let from = &mut self.pipes[1 - side];
        let unread = !from.data.is_empty();
        from.deaf = true;
        from.data.clear();
        let to = &mut self.pipes[side];
        if unread || abort {
            to.reset = true;
            if destroys {
                to.data.clear();
            }
        } else {
            to.fin = true;
        }
    }
}
