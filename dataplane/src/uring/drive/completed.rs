//! What the kernel has completed, as the core is told of it.

use super::{Driver, sock, wall_ms};
use crate::router::{ConnId, Now, Side};
use crate::uring::doors;
use crate::uring::wake::Handed;
use io_uring::cqueue;
use socket2::Socket;
use std::os::fd::FromRawFd;

impl Driver {
    pub(super) fn accepted(&mut self, listener: usize, result: i32, flags: u32, now: Now) {
        if result >= 0 {
            // SAFETY: a completed accept gives a new descriptor that nobody else owns.
            let socket = unsafe { Socket::from_raw_fd(result) };
            self.arrived(socket, self.doors.side(listener), now);
        } else if result != -libc::ECANCELED {
            self.shared.loops(self.number).accepts_failed.add(1);
            if doors::is_lasting(-result) {
                self.doors.pause(now.ms);
            }
        }
        if !cqueue::more(flags) {
            self.doors.disarmed(listener);
        }
    }

    /// A connection is served here, unless this core has clearly more of them than another.
    pub(super) fn arrived(&mut self, socket: Socket, side: Side, now: Now) {
        // At once, not once in a round: a round may accept hundreds, and the others hand theirs over by what they see.
        self.show_clients();
        let others = (0..self.waker.cores()).filter(|c| *c != self.number).map(|c| (c, self.waker.clients(c)));
        let own = self.waker.clients(self.number);
        let Some(other) = doors::lighter(own, others) else { return self.enter(socket, side, now) };
        match self.waker.hand(other, Handed { socket, side }) {
            Ok(()) => self.core.on_handed_over(),
            Err(back) => self.enter(back.socket, back.side, now),
        }
    }

    pub(super) fn enter(&mut self, socket: Socket, side: Side, now: Now) {
        if let Some(id) = self.core.on_accept(side, now) {
            if self.core.wants_addresses()
                && let Some(addr) = socket.peer_addr().ok().and_then(|a| a.as_socket())
            {
                self.core.on_address(id, addr);
            }
            self.place(id, socket);
            if side.is_tls() {
                self.guard(id, side, now);
            }
            self.arm_recv(id);
        }
    }

    pub(super) fn received(&mut self, id: ConnId, result: i32, flags: u32, now: Now) {
        let buffer = cqueue::buffer_select(flags);
        let Some(sock) = sock(&mut self.socks, id) else {
            return buffer.into_iter().for_each(|b| self.buffers.give(b));
        };
        sock.receiving = cqueue::more(flags);
        let (closing, secure) = (sock.closing, sock.secure.is_some());
        match (result, buffer) {
            (1.., Some(b)) => {
                if !closing && secure {
                    self.open(id, b, result as usize, now);
                } else if !closing {
                    self.core.on_bytes(id, self.buffers.bytes(b, result as usize), now);
                }
                self.buffers.give(b);
            }
            (_, b) => {
                b.into_iter().for_each(|b| self.buffers.give(b));
                if result == -libc::ENOBUFS {
                    self.shared.loops(self.number).out_of_buffers.add(1);
                }
                let ended = match -result {
                    0 => Some(false),
                    libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => None,
                    _ => Some(true),
                };
                if let Some(reset) = ended.filter(|_| !closing) {
                    self.want(id, false);
                    if secure {
                        self.cut(id, reset, now);
                    } else {
                        self.core.on_end(id, reset, now);
                    }
                }
            }
        }
        self.arm_recv(id);
        self.end_if_done(id);
    }

    pub(super) fn sent(&mut self, id: ConnId, result: i32, now: Now) {
        let Some(sock) = sock(&mut self.socks, id) else { return };
        sock.sending = false;
        let ok = result > 0 || sock.buffer.is_empty();
        sock.sent += result.max(0) as usize;
        if ok && sock.sent < sock.buffer.len() && !sock.closing {
            return self.send(id);
        }
        if sock.secure.is_some() {
            return self.sealed_sent(id, ok, now);
        }
        let buffer = std::mem::take(&mut sock.buffer);
        if !sock.closing {
            self.core.on_sent(id, buffer, ok, now);
        }
        self.end_if_done(id);
    }

    pub(super) fn connected(&mut self, id: ConnId, result: i32, now: Now) {
        let Some(sock) = sock(&mut self.socks, id) else { return };
        sock.connecting = None;
        let secure = sock.secure.is_some();
        if !sock.closing && result == 0 {
            if secure {
                self.core.on_reached(id);
                self.flush(id);
            } else {
                self.core.on_connected(id, now);
            }
            self.want(id, true);
            self.arm_recv(id);
        } else if !sock.closing {
            self.core.on_failed(id, now);
        }
        self.end_if_done(id);
    }

    /// Takes what control has left.
    pub(super) fn adopt(&mut self) {
        let now = self.now();
        let news = self.shared.take_news(self.number);
        if let Some(settings) = news.settings {
            self.settings = settings.clone();
            self.core.on_settings(settings, now);
            self.shared.show_settings(self.number, &self.settings, self.core.figures());
        }
        if news.access.is_some() {
            self.access = news.access;
        }
        if let Some(map) = news.map {
            self.core.on_map(map.clone(), now);
            self.shared.show_map(self.number, map, wall_ms());
        }
        let left = self.waker.take();
        left.changes.into_iter().for_each(|change| self.doors.change(change, now.ms));
        for Handed { socket, side } in left.handed {
            self.core.on_taken_over();
            self.enter(socket, side, now);
        }
        if self.shared.stopping() && self.stopping_since_ms.is_none() {
            self.stopping_since_ms = Some(now.ms);
            self.core.on_stop(now);
        }
    }
}
