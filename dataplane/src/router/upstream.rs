//! The other side of an exchange: pooled connections to upstreams and peers, and their answers on the way to the client.

use super::answer::stamp;
use super::cluster::Outcome;
use super::conn::{ConnId, Io, Kind, Phase, Stage, UpPhase, Upstream};
use super::retry::Lost;
use super::{Core, Order};
use crate::http::{Body, Piece, Request, Response, parse_response, proxy, scan, slots, trailer, write};
use shardmap::MapEpoch;

impl Core {
    /// Sends the request to a connection of `pool`: head, and as much of its body as has come.
    pub(super) fn send_to(&mut self, id: ConnId, r: &Request<'_, '_>, pool: usize) {
        let fresh = self.exchange(id).is_some_and(|e| e.retries_lost > 0);
        self.asks(id, self.to.pools[pool].endpoint.addr);
        let begins = self.to.pools[pool].endpoint.proxy_protocol;
        let pooled = if fresh || begins { None } else { self.pooled(pool) };
        if pooled.is_none() {
            self.wait_begins(id);
        }
        let Some(up) = pooled.or_else(|| self.connect(pool)) else {
            let seen = format!("{} connections", self.limits.connections_max);
            return self.fail(id, 503, "no room for another connection", &seen, "fewer than connections_max");
        };
        let patience = self.now.ms + self.limits.answer_ms;
        let Some((io, _)) = self.upstream(up) else { return };
        let mut out = std::mem::take(&mut io.out);
        io.taken = false;
        let Some((io, c)) = self.client(id) else { return };
        let Some(e) = c.exchange.as_mut() else { return };
        io.deadline = patience;
        e.stage = Stage::Upstream(up);
        let (shard, epoch, expects) = (e.shard, e.epoch.0, c.about.expects);
        if begins {
            let from = c.from.addr;
            proxy::write(&mut out, from, self.to.pools[pool].endpoint.addr);
        }
        self.forwarded_head(&mut out, r, (id, pool, expects), shard.map(|s| s.0), epoch);
        let Some((_, c)) = self.client(id) else { return };
        write::piece(&mut out, &c.kept, c.about.chunked);
        if c.about.chunked && c.body.is_done() {
            write::last_chunk(&mut out, &c.trailers);
        }
        let asked_us = if c.body.is_done() { self.now.us } else { 0 };
        let try_at = self.try_deadline(pool);
        let Some((io, u)) = self.upstream(up) else { return };
        io.out = out;
        u.asked_us = asked_us;
        (u.client, u.shard, u.scanned, u.interims) = (Some(id), shard, 0, 0);
        if u.phase == UpPhase::Idle {
            u.phase = UpPhase::Head;
            io.deadline = try_at;
        }
        self.to.begins(pool);
        self.depart(shard);
        self.send(up);
    }

    fn forwarded_head(
        &mut self,
        out: &mut Vec<u8>,
        r: &Request<'_, '_>,
        (id, pool, expects): (ConnId, usize, bool),
        shard: Option<u16>,
        epoch: u64,
    ) {
        let trusted = self.client(id).is_some_and(|(_, c)| c.trusted);
        write::request(out, r, self.replaced(r, trusted));
        match r.body {
            Body::Length(n) => write::number_field(out, "content-length: ", n),
            Body::Chunked(_) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Body::Done | Body::UntilClose => {}
        }
        self.way_fields(out, r, id);
        self.hop_fields(out, r, expects, pool);
        if self.to.pools[pool].peer {
            out.extend_from_slice(b"x-ezone-hop: 1\r\n");
            for (name, value) in [("x-ezone-ack: ", r.wants.ack), ("x-ezone-after: ", r.wants.after)] {
                value.into_iter().for_each(|v| write::field(out, name, v));
            }
        }
        stamp(out, &self.name, shard, epoch);
        out.extend_from_slice(b"\r\n");
    }

    fn pooled(&mut self, pool: usize) -> Option<ConnId> {
        while let Some(up) = self.to.pools[pool].idle.pop() {
            if self.upstream(up).is_some_and(|(io, _)| !io.eof) {
                return Some(up);
            }
        }
        None
    }

    fn connect(&mut self, pool: usize) -> Option<ConnId> {
        let up = self.add(Kind::Upstream(Upstream {
            target: pool,
            client: None,
            phase: UpPhase::Connecting,
            scanned: 0,
            body: Body::Done,
            trailers: Vec::new(),
            interims: 0,
            chunk_out: false,
            keep_alive: false,
            served: 0,
            shard: None,
            asked_us: 0,
        }))?;
        self.to.pools[pool].open += 1;
        self.to.shows_connections(pool);
        let deadline = self.now.ms + self.limits.connect_ms;
        self.upstream(up)?.0.deadline = deadline;
        self.orders.push_back(Order::Connect(up, self.to.pools[pool].target()));
        Some(up)
    }

    /// Uses as many bytes as the client has room for.
    pub(super) fn pump_upstream(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let (mut at, peer) = (0, self.is_to_peer(id));
        let head_bytes_max = self.limits.head_bytes_max(peer);
        loop {
            let Some((_, u)) = self.upstream(id) else { return bytes.len() };
            let rest = &bytes[at..];
            if u.interims > 0 && u.phase == UpPhase::Head && self.client_is_full(id) {
                return at;
            }
            let Some((io, u)) = self.upstream(id) else { return bytes.len() };
            let taken = io.taken;
            match u.phase {
                UpPhase::Connecting | UpPhase::Idle if rest.is_empty() => return at,
                // Nobody asked for these bytes: whoever came next would take them for an answer.
                UpPhase::Connecting | UpPhase::Idle => {
                    self.upstream_close(id);
                    return bytes.len();
                }
                UpPhase::Head if rest.is_empty() => return at,
                // Not a byte of the request has been sent: it was not asked for either. Servers say 408 to who is idle.
                UpPhase::Head if !taken => {
                    self.spoke_first(id);
                    return bytes.len();
                }
                UpPhase::Tunnel => return at + self.back(id, rest),
                UpPhase::Head => match scan(rest, &mut u.scanned, head_bytes_max) {
                    Ok(None) => return at,
                    Ok(Some(n)) => {
                        u.scanned = 0;
                        at += n;
                        self.answer_head(id, &rest[..n]);
                    }
                    Err(fault) => self.bad_answer(id, fault.error),
                },
                UpPhase::Body => match self.answer_body(id, rest) {
                    Some(n) if n > 0 => at += n,
                    Some(_) => return at,
                    None => {}
                },
            }
        }
    }

    /// Is the other side a router of ours?
    fn is_to_peer(&mut self, id: ConnId) -> bool {
        let pool = self.upstream(id).map(|(_, u)| u.target);
        pool.is_some_and(|pool| self.to.pools[pool].peer)
    }

    fn answer_head(&mut self, id: ConnId, raw: &[u8]) {
        let peer = self.is_to_peer(id);
        let mut room = slots();
        let r = match parse_response(raw, &mut room[..self.limits.fields_max(peer)]) {
            Ok(r) if r.status == 101 => return self.switch(id, &r),
            Ok(r) if r.status < 200 => return self.interim(id, &r),
            Ok(r) => r,
            Err(fault) => return self.bad_answer(id, fault.error),
        };
        let Some((_, u)) = self.upstream(id) else { return };
        let client = u.client;
        client.into_iter().for_each(|c| self.wait_ends(c));
        let Some((_, u)) = self.upstream(id) else { return };
        (u.keep_alive, u.body, u.phase) = (r.keep_alive, r.body, UpPhase::Body);
        u.trailers.clear();
        let Some(client) = client else { return self.upstream_close(id) };
        let bodiless = matches!(r.status, 204 | 304) || self.client(client).is_some_and(|(_, c)| c.about.is_head);
        if let Some((_, u)) = self.upstream(id).filter(|_| bodiless) {
            u.body = Body::Done;
        }
        // The peer's own word that nothing was done; a 421 of one of its upstreams, which names no owner, proves nothing.
        if let (421, true, true, Some(named)) = (r.status, peer, r.ezone.owner, r.ezone.epoch) {
            self.leave(id);
            return self.wrong_zone(client, MapEpoch(named));
        }
        if self.judge_answer(id, client, r.status) {
            return;
        }
        self.counts.answered(r.status);
        self.answers(client, r.status, None);
        self.write_head(id, client, &r, peer);
    }

    /// Writes an answer's head to the client, re-framed.
    fn write_head(&mut self, id: ConnId, client: ConnId, r: &Response<'_, '_>, peer: bool) {
        let patience = self.now.ms + self.limits.answer_ms;
        let stopping = self.stopping;
        let Some((io, c)) = self.client(client) else { return };
        let Some(e) = c.exchange.as_mut() else { return };
        io.deadline = patience;
        e.answered = true;
        let (shard, epoch) = (e.shard.map(|s| s.0), e.epoch.0);
        let bodiless = c.about.is_head || matches!(r.status, 204 | 304);
        let chunk_out = !bodiless && c.about.http11 && matches!(r.body, Body::Chunked(_) | Body::UntilClose);
        let until_close = !bodiless && !chunk_out && r.length.is_none();
        // A client that still waits for a 100 may or may not send its body now: what follows could not be told apart.
        c.about.keep_alive &= !until_close && !stopping && !c.about.expects;
        let (keep_alive, http11) = (c.about.keep_alive, c.about.http11);
        let mut out = std::mem::take(&mut io.out);
        write::response(&mut out, r);
        match r.length {
            Some(n) if r.status != 204 => write::number_field(&mut out, "content-length: ", n),
            Some(_) | None if chunk_out => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Some(_) | None => {}
        }
        match r.ezone.zone.filter(|_| peer).and_then(|z| std::str::from_utf8(z).ok()) {
            Some(zone) => stamp(&mut out, zone, shard, r.ezone.epoch.unwrap_or(epoch)),
            None => stamp(&mut out, &self.name, shard, epoch),
        }
        let kept = [
            ("x-ezone-version: ", r.ezone.version),
            ("x-ezone-token: ", r.ezone.token),
            ("x-ezone-outcome: ", r.ezone.outcome),
        ];
        for (name, value) in kept {
            value.into_iter().filter(|_| peer).for_each(|v| write::field(&mut out, name, v));
        }
        if !keep_alive {
            out.extend_from_slice(b"connection: close\r\n");
        } else if !http11 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if let Some((io, _)) = self.client(client) {
            io.out = out;
        }
        if let Some((_, u)) = self.upstream(id) {
            u.chunk_out = chunk_out;
        }
        self.send(client);
    }

    /// Reads on in an answer's body: bytes used, 0 if it has to wait, `None` to look again.
    fn answer_body(&mut self, id: ConnId, from: &[u8]) -> Option<usize> {
        let high = self.buffer_max();
        let patience = self.now.ms + self.limits.answer_ms;
        let (_, u) = self.upstream(id)?;
        let (client, chunk_out) = (u.client, u.chunk_out);
        // With no bytes left over nothing would call again: the end of a body must be seen at once.
        let room = |io: &Io| from.is_empty() || io.out.len() <= high;
        if client.and_then(|c| self.client(c)).is_some_and(|(io, _)| !room(io)) {
            return Some(0);
        }
        let (_, u) = self.upstream(id)?;
        match u.body.next(from) {
            Ok((n, Piece::Data(range))) => {
                if let Some((io, _)) = client.and_then(|c| self.client(c)) {
                    io.deadline = patience;
                    write::piece(&mut io.out, &from[range], chunk_out);
                }
                if let Some(c) = client {
                    self.send(c);
                }
                Some(n)
            }
            Ok((n, Piece::Trailer(range))) => {
                u.trailers.extend_from_slice(&from[range]);
                Some(n)
            }
            Ok((n, Piece::More)) => Some(n),
            Ok((n, Piece::End)) => {
                if let Err(fault) = trailer::check(&mut u.trailers) {
                    self.bad_answer(id, fault.error);
                    return None;
                }
                self.answer_done(id, n == from.len());
                Some(n).filter(|n| *n > 0)
            }
            Err(fault) => {
                self.bad_answer(id, fault.error);
                None
            }
        }
    }

    /// An answer is whole. `clean`: nothing came after it.
    fn answer_done(&mut self, id: ConnId, clean: bool) {
        let Some((_, u)) = self.upstream(id) else { return };
        let (client, pool, chunk_out) = (u.client.take(), u.target, u.chunk_out);
        let trailers = std::mem::take(&mut u.trailers);
        let shard = u.shard.take();
        u.served += 1;
        let served = u.served;
        let keep = u.keep_alive && clean;
        if client.is_some() {
            self.arrive(shard);
            self.to.ends(pool);
        }
        let (coming, bodied) = client
            .and_then(|c| self.client(c))
            .map_or((false, false), |(_, c)| (c.phase == Phase::Body, c.trace.body_bytes > 0));
        // What is left of a body might be taken for the next request.
        let sent = |io: &Io| io.out.is_empty() && !(bodied && io.sending);
        let asked_whole = !coming && self.upstream(id).is_some_and(|(io, _)| sent(io));
        let room = self.keeps(pool, served);
        let own = self.to.pools[pool].endpoint.proxy_protocol; // it has begun with the address of this client
        let keep = keep && asked_whole && room && !own && !self.stopping;
        let idle_until = self.now.ms + self.idle_ms(pool);
        match self.upstream(id) {
            Some((io, u)) if keep && !io.eof => {
                u.phase = UpPhase::Idle;
                io.deadline = idle_until;
                self.look_by(idle_until);
                self.to.pools[pool].idle.push(id);
                self.to.free(self.to.pools[pool].cluster);
            }
            _ => self.close(id),
        }
        self.to.shows_connections(pool);
        let Some(client) = client else { return };
        if let Some((io, c)) = self.client(client) {
            if chunk_out {
                write::last_chunk(&mut io.out, if c.about.trailers { &trailers } else { &[] });
            }
            if let Some(e) = &mut c.exchange {
                e.stage = Stage::New;
            }
        }
        self.finish(client);
    }

    /// Parts an exchange from a connection whose answer is still to be read, and thrown away.
    pub(super) fn leave(&mut self, id: ConnId) {
        let late = self.now.ms + self.limits.linger_ms;
        let Some((_, u)) = self.upstream(id) else { return };
        let client = u.client.take();
        let asked_whole = client.and_then(|c| self.client(c)).is_none_or(|(_, c)| c.phase != Phase::Body);
        let Some((io, u)) = self.upstream(id) else { return };
        io.deadline = late;
        // The other side still waits for the rest of the body: it would take the next request for that.
        u.keep_alive &= asked_whole;
        let (shard, pool) = (u.shard.take(), u.target);
        self.arrive(shard);
        self.to.ends(pool);
    }

    /// The other side has ended.
    pub(super) fn upstream_end(&mut self, id: ConnId, reset: bool) {
        let Some((io, u)) = self.upstream(id) else { return };
        let reset = reset || io.cut;
        match (u.phase, u.body) {
            (UpPhase::Idle, _) => self.upstream_close(id),
            (UpPhase::Tunnel, _) if reset => self.tunnel_broken(id),
            (UpPhase::Tunnel, _) => self.tunnel_half(id),
            (UpPhase::Body, Body::UntilClose) if !reset => self.answer_done(id, false),
            (UpPhase::Body, Body::Done | Body::Length(_) | Body::Chunked(_) | Body::UntilClose) => {
                let (client, pool) = (u.client, u.target);
                self.upstream_close(id);
                if let Some(c) = client {
                    self.to.outcome(pool, Outcome::Lost, self.now);
                    self.broken_answer(c);
                }
            }
            (UpPhase::Connecting | UpPhase::Head, _) => self.upstream_lost(id),
        }
    }

    /// It said something before a byte of the request was sent: whatever that is, it is no answer to it.
    fn spoke_first(&mut self, id: ConnId) {
        let Some((_, u)) = self.upstream(id) else { return };
        let (pool, fresh) = (u.target, u.served == 0);
        if fresh {
            self.to.outcome(pool, Outcome::Lost, self.now);
        }
        self.upstream_lost(id);
    }

    /// No byte of an answer has come. A request that was not sent, or that may be done twice, is tried once more.
    pub(super) fn upstream_lost(&mut self, id: ConnId) {
        let Some((io, u)) = self.upstream(id) else { return };
        let (client, unsent, reused) = (u.client, !io.taken, u.served > 0);
        let (partial, connecting, pool) = (u.scanned > 0, u.phase == UpPhase::Connecting, u.target);
        self.upstream_close(id);
        let Some(client) = client else { return };
        let Some(e) = self.exchange(client) else { return };
        e.stage = Stage::New;
        let lost = match (connecting, unsent, reused) {
            (true, _, _) => Lost::Connect,
            (false, true, _) => Lost::Unsent,
            (false, false, true) => Lost::Kept,
            (false, false, false) => Lost::Reset,
        };
        // That a kept connection is closed is no fault; half an answer's head is.
        match lost {
            Lost::Connect => self.to.outcome(pool, Outcome::Connect, self.now),
            Lost::Kept if !partial => {}
            Lost::Unsent => {}
            Lost::Kept | Lost::Reset | Lost::Late | Lost::Status(_) => self.to.outcome(pool, Outcome::Lost, self.now),
        }
        if !partial && self.tried_again(client, pool, lost) {
            return;
        }
        if unsent {
            let expected = "a reachable upstream; nothing was done";
            return self.fail(client, 502, "the upstream cannot be reached", "no connection", expected);
        }
        self.broken_answer(client);
    }

    fn broken_answer(&mut self, client: ConnId) {
        let fields = [("x-ezone-outcome", "unknown")];
        let expected = "an answer; the request may or may not have been acted on";
        self.fail_with(client, 502, &fields, "the upstream closed the connection", "no whole answer", expected);
    }

    pub(super) fn bad_answer(&mut self, id: ConnId, error: &str) {
        let Some((_, u)) = self.upstream(id) else { return };
        let (client, pool) = (u.client, u.target);
        self.upstream_close(id);
        if let Some(client) = client {
            self.to.outcome(pool, Outcome::Lost, self.now);
            let fields = [("x-ezone-outcome", "unknown")];
            self.fail_with(client, 502, &fields, "the upstream's answer cannot be read", error, "HTTP/1.1");
        }
    }

    /// Closes an upstream's connection; its request, if any, is no longer in flight.
    pub(super) fn upstream_close(&mut self, id: ConnId) {
        let Some((_, u)) = self.upstream(id) else { return };
        let (had, shard, pool, idle) = (u.client.take(), u.shard.take(), u.target, u.phase == UpPhase::Idle);
        if let Some(client) = had {
            self.arrive(shard);
            self.wait_ends(client);
            self.to.ends(pool);
        }
        if idle {
            self.to.pools[pool].idle.retain(|i| *i != id);
            self.to.shows_connections(pool);
        }
        self.close(id);
    }
}
