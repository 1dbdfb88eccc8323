//! After a 101: bytes to and fro between a client and an upstream, with back-pressure, half-closes and an idle limit.
//!
//! Not a byte of the client's after its head goes upstream before the 101 (PITFALLS: pingora's CVE of 2026): until then the
//! client is in `Phase::Await`, which uses nothing. What the tunnel carries is no business of ours, nor is its shard: a
//! move does not wait for it, for a store checks for itself.

use super::Core;
use super::conn::{ConnId, Phase, Stage, UpPhase};
use crate::http::head::tokens;
use crate::http::{Response, parse_request, slots, write};

impl Core {
    /// The upstream says 101: a tunnel if the client asked for that protocol, a 502 if not.
    pub(super) fn switch(&mut self, id: ConnId, r: &Response<'_, '_>) {
        let idle = self.now.ms + self.limits.tunnel_idle_ms;
        let Some((_, u)) = self.upstream(id) else { return };
        let Some(client) = u.client else { return self.upstream_close(id) };
        let Some(protocol) = r.upgrade.filter(|p| self.asked_for(client, p)) else {
            return self.bad_answer(id, "an upgrade that was not asked for");
        };
        let Some((io, c)) = self.client(client) else { return };
        io.deadline = idle;
        c.phase = Phase::Tunnel;
        c.about.keep_alive = false;
        if let Some(e) = &mut c.exchange {
            e.answered = true;
        }
        write::response(&mut io.out, r);
        for part in [b"connection: upgrade\r\nupgrade: ", protocol, b"\r\n\r\n"] {
            io.out.extend_from_slice(part);
        }
        let Some((_, u)) = self.upstream(id) else { return };
        u.phase = UpPhase::Tunnel;
        let shard = u.shard.take();
        self.arrive(shard);
        self.counts.answered(r.status);
        self.judge_answer(id, client, r.status);
        // For the figures the request is over here: what a tunnel lasts is no latency.
        self.wait_ends(client);
        self.answers(client, r.status, None);
        self.answer_written(client);
        self.counts.tunnelled += 1;
        self.counts.tunnels += 1;
        self.send(client);
        // What the client has sent since may go now.
        self.ready(client);
    }

    fn asked_for(&mut self, client: ConnId, protocol: &[u8]) -> bool {
        let Some((_, c)) = self.client(client).filter(|(_, c)| c.about.upgrade) else { return false };
        let mut room = slots();
        let asked = parse_request(&c.head, &mut room).ok().and_then(|r| r.upgrade);
        let among = |one: &[u8]| asked.is_some_and(|all| tokens(all).any(|a| a.eq_ignore_ascii_case(one)));
        tokens(protocol).count() > 0 && tokens(protocol).all(among)
    }

    /// The client's bytes on their way up: how many there was room for.
    pub(super) fn through(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        match self.partner(id) {
            Some(up) => self.carry(id, up, bytes),
            None => bytes.len(),
        }
    }

    /// The upstream's bytes on their way back: how many there was room for.
    pub(super) fn back(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        match self.partner(id) {
            Some(client) => self.carry(client, client, bytes),
            None => bytes.len(),
        }
    }

    /// Puts `bytes` where they go; `client` is whose deadline the tunnel lives by.
    fn carry(&mut self, client: ConnId, to: ConnId, bytes: &[u8]) -> usize {
        let (idle, high) = (self.now.ms + self.limits.tunnel_idle_ms, self.buffer_max());
        if bytes.is_empty() {
            return 0;
        }
        if let Some((io, _)) = self.client(client) {
            io.deadline = idle;
        }
        let Some(conn) = self.conn(to) else { return bytes.len() };
        let n = bytes.len().min(high.saturating_sub(conn.io.out.len()));
        conn.io.out.extend_from_slice(&bytes[..n]);
        self.send(to);
        n
    }

    /// The other end of a tunnel.
    fn partner(&mut self, id: ConnId) -> Option<ConnId> {
        if let Some((_, u)) = self.upstream(id) {
            return u.client.filter(|_| u.phase == UpPhase::Tunnel);
        }
        let (_, c) = self.client(id).filter(|(_, c)| c.phase == Phase::Tunnel)?;
        match c.exchange.as_ref()?.stage {
            Stage::Upstream(up) => Some(up),
            Stage::New | Stage::Held | Stage::Queued(..) | Stage::Gather | Stage::Port(_) => None,
        }
    }

    /// One side has ended its half: so does the other's, once all that came has been sent on.
    pub(super) fn tunnel_half(&mut self, from: ConnId) {
        let ended = self.conn(from).is_some_and(|c| c.io.stash.is_empty());
        let Some(to) = self.partner(from).filter(|_| ended) else { return };
        let Some(conn) = self.conn(to).filter(|c| !c.io.shut) else { return };
        conn.io.finishing = true;
        if conn.io.out.is_empty() && !conn.io.sending {
            self.tunnel_shut(to);
        }
    }

    /// Closes our half towards `to`, and the tunnel if that was the second; false: `to` is no end of a tunnel.
    pub(super) fn tunnel_shut(&mut self, to: ConnId) -> bool {
        let Some(from) = self.partner(to) else { return false };
        let both = self.conn(from).is_some_and(|c| c.io.shut);
        let Some(conn) = self.conn(to) else { return false };
        (conn.io.finishing, conn.io.shut) = (false, true);
        if both {
            self.tunnel_close(to);
        } else {
            self.orders.push_back(super::Order::Shutdown(to));
        }
        true
    }

    /// Closes both ends now; false: `id` is no end of a tunnel.
    pub(super) fn tunnel_close(&mut self, id: ConnId) -> bool {
        let Some(other) = self.partner(id) else { return false };
        let (client, up) = if self.client(id).is_some() { (id, other) } else { (other, id) };
        self.tunnel_ended(client, up);
        self.close(client);
        true
    }

    /// The upstream's connection broke: the client still gets what came before.
    pub(super) fn tunnel_broken(&mut self, up: ConnId) {
        let Some(client) = self.partner(up) else { return };
        self.tunnel_ended(client, up);
        self.end_client(client);
    }

    /// Nothing has come from either side for too long.
    pub(super) fn tunnel_late(&mut self, client: ConnId) {
        self.tunnel_close(client);
    }

    fn tunnel_ended(&mut self, client: ConnId, up: ConnId) {
        self.counts.tunnels -= 1;
        self.give_back(client);
        if let Some((_, c)) = self.client(client) {
            c.exchange = None;
        }
        if let Some((_, u)) = self.upstream(up)
            && u.client.take().is_some()
        {
            let pool = u.target;
            self.to.ends(pool);
        }
        self.close(up);
    }
}
