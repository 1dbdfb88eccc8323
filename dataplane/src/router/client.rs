//! A client's side of an exchange: head, body, the next request; its end and its delays.

use super::Core;
use super::answer::TRY_LATER;
use super::conn::{About, ConnId, Exchange, Phase, Stage};
use crate::http::{Body, Fault, Piece, Request, parse_request, scan, slots, target, trailer, write};

/// Empty lines before a head that are forgiven (RFC 9112 §2.2).
const BLANKS_MAX: u8 = 4;
/// Body of a request that was answered before its end: so much is read and thrown away to keep the connection.
const DISCARD_BYTES_MAX: usize = 64 * 1024;

/// Is doing it twice doing it once (RFC 9110 §9.2.2)? Not under a condition: the second attempt would meet what the first has done.
fn is_idempotent(r: &Request<'_, '_>) -> bool {
    match r.method {
        "GET" | "HEAD" | "OPTIONS" | "TRACE" => true,
        "PUT" | "DELETE" => r.wants.if_match.is_none() && r.wants.if_none_match.is_none(),
        _ => false,
    }
}

impl Core {
    /// Uses as many bytes as can be used now.
    pub(super) fn pump_client(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let (limits, now, now_us) = (self.limits, self.now.ms, self.now.us);
            let high = self.buffer_max();
            let Some((io, c)) = self.client(id) else { return bytes.len() };
            let rest = &bytes[at..];
            match c.phase {
                Phase::Proxy if rest.is_empty() => return at,
                Phase::Proxy => match self.proxied(id, rest) {
                    Some(0) => return at,
                    Some(n) => at += n,
                    None => return bytes.len(),
                },
                Phase::Head if rest.is_empty() || io.out.len() > high => return at,
                Phase::Head => match scan(rest, &mut c.scanned, limits.head_bytes_max(c.trusted)) {
                    Ok(None) => {
                        io.deadline = io.deadline.min(now + limits.head_ms);
                        if c.trace.began_us == 0 {
                            c.trace.began_us = now_us;
                        }
                        return at;
                    }
                    Ok(Some(2)) if c.blanks < BLANKS_MAX => {
                        c.blanks += 1;
                        c.scanned = 0;
                        at += 2;
                    }
                    Ok(Some(n)) => {
                        (c.scanned, c.blanks) = (0, 0);
                        at += n;
                        self.begin(id, &rest[..n]);
                    }
                    Err(fault) => self.refuse(id, &fault),
                },
                Phase::Body => match self.body(id, rest) {
                    Some(0) => return at,
                    Some(n) => at += n,
                    None => {}
                },
                Phase::Await => return at,
                Phase::Tunnel => return at + self.through(id, rest),
                Phase::Drain => return bytes.len(),
            }
        }
    }

    /// A whole head has come.
    fn begin(&mut self, id: ConnId, raw: &[u8]) {
        let (limits, deadline) = (self.limits, self.now.ms + self.limits.answer_ms);
        let (stopping, now_us, logged) = (self.stopping, self.now.us, self.settings.access.is_some());
        let short = self.is_short();
        let Some((io, c)) = self.client(id) else { return };
        if c.trace.began_us == 0 {
            c.trace.began_us = now_us;
        }
        if logged {
            c.keep_line();
        }
        let fields_max = limits.fields_max(c.trusted);
        let mut head = std::mem::take(&mut c.head);
        head.clear();
        head.extend_from_slice(raw);
        let form = if target::is_origin(&head) { Ok(()) } else { target::to_origin(&mut head) };
        let mut room = slots();
        match form.and_then(|()| parse_request(&head, &mut room[..fields_max])) {
            Err(fault) => self.refuse(id, &fault),
            Ok(r) if r.path.len() > limits.uri_bytes_max => {
                let fault = Fault::bad("target too long", format!("{} bytes", r.path.len()), "within uri_bytes_max");
                self.refuse(id, &Fault { status: 414, ..fault });
            }
            Ok(r) => {
                io.deadline = deadline;
                c.about = About {
                    http11: r.http11,
                    keep_alive: r.keep_alive && !stopping && !short && c.asked + 1 < limits.requests_max,
                    is_head: r.method == "HEAD",
                    has_some: r.wants.if_none_match.is_some(),
                    idempotent: is_idempotent(&r),
                    chunked: matches!(r.body, Body::Chunked(_)),
                    expects: r.expects,
                    continued: false,
                    trailers: r.trailers,
                    upgrade: r.upgrade.is_some(),
                    head_bytes: head.len(),
                };
                c.body = r.body;
                c.kept.clear();
                c.trailers.clear();
                c.asked = c.asked.saturating_add(1);
                (c.kept_whole, c.discarded) = (true, 0);
                c.phase = if c.body.is_done() { Phase::Await } else { Phase::Body };
                c.exchange = Some(Exchange::new());
                match r.body {
                    _ if short => self.no_memory(id),
                    Body::Length(n) if n > limits.body_bytes_max => self.too_long(id, n),
                    Body::Done | Body::Length(_) | Body::Chunked(_) | Body::UntilClose => self.route(id, &r),
                }
            }
        }
        if let Some((_, c)) = self.client(id) {
            c.head = head;
        }
        self.go_on(id);
    }

    /// Routes the request being served once more: it was held, gathered, refused with 421, or its connection was lost.
    pub(super) fn again(&mut self, id: ConnId) {
        let Some((_, c)) = self.client(id) else { return };
        if let Some(e) = &mut c.exchange {
            e.stage = Stage::New;
        }
        let (head, trusted) = (std::mem::take(&mut c.head), c.trusted);
        let mut room = slots();
        match parse_request(&head, &mut room[..self.limits.fields_max(trusted)]) {
            Ok(r) => self.route(id, &r),
            Err(fault) => self.refuse(id, &fault),
        }
        if let Some((_, c)) = self.client(id) {
            c.head = head;
        }
        self.go_on(id);
        self.ready(id);
    }

    /// Lets the body come once there is somewhere for it to go.
    fn go_on(&mut self, id: ConnId) {
        let wait = self.now.ms + self.limits.continue_ms;
        let Some((io, c)) = self.client(id) else { return };
        match c.exchange.as_ref().map(|e| e.stage) {
            Some(Stage::Gather) if c.about.expects => self.say_continue(id),
            // The upstream decides, for a while; `client_late` goes on without it.
            Some(Stage::Upstream(_)) if c.about.expects => io.deadline = wait,
            Some(_) | None => {}
        }
    }

    /// 100 in our own name.
    pub(super) fn say_continue(&mut self, id: ConnId) {
        let late = self.now.ms + self.limits.read_ms;
        let Some((io, c)) = self.client(id) else { return };
        (c.about.expects, c.about.continued) = (false, true);
        io.deadline = late;
        io.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        self.send(id);
    }

    /// Reads on in a body: bytes used, 0 if it has to wait, `None` to look again.
    fn body(&mut self, id: ConnId, from: &[u8]) -> Option<usize> {
        let high = self.buffer_max();
        let (_, c) = self.client(id)?;
        let stage = c.exchange.as_ref().map(|e| e.stage);
        match stage {
            Some(Stage::Held | Stage::Queued(..) | Stage::New | Stage::Port(_)) => return Some(0),
            // With no bytes left over nothing would call again: the end of a body must be seen at once.
            Some(Stage::Upstream(up))
                if !from.is_empty() && self.upstream(up).is_some_and(|(io, _)| io.out.len() > high) =>
            {
                return Some(0);
            }
            Some(Stage::Gather | Stage::Upstream(_)) | None => {}
        }
        let (_, c) = self.client(id)?;
        match c.body.next(from) {
            Ok((n, Piece::Data(range))) => {
                self.deliver(id, &from[range], stage);
                Some(n)
            }
            Ok((n, Piece::Trailer(range))) => {
                c.trailers.extend_from_slice(&from[range]);
                Some(n)
            }
            Ok((n, Piece::More)) => Some(n),
            Ok((n, Piece::End)) => {
                if let Err(fault) = trailer::check(&mut c.trailers) {
                    self.refuse(id, &fault);
                    return None;
                }
                self.body_done(id, stage);
                Some(n).filter(|n| *n > 0)
            }
            Err(fault) => {
                self.refuse(id, &fault);
                None
            }
        }
    }

    fn deliver(&mut self, id: ConnId, data: &[u8], stage: Option<Stage>) {
        let (limits, short) = (self.limits, self.is_short());
        let late = self.now.ms + limits.read_ms;
        let Some((io, c)) = self.client(id) else { return };
        io.deadline = late;
        // It did not wait.
        c.about.expects = false;
        let Some(stage) = stage else {
            c.discarded += data.len();
            if c.discarded > DISCARD_BYTES_MAX {
                self.end_client(id);
            }
            return;
        };
        c.trace.body_bytes += data.len() as u64;
        let gathers = stage == Stage::Gather;
        if c.trace.body_bytes > limits.body_bytes_max {
            let seen = c.trace.body_bytes;
            return self.too_long(id, seen);
        }
        if short && gathers {
            return self.no_memory(id);
        }
        let keep_max = match gathers {
            true => limits.record_bytes_max,
            false if short => 0,
            false => limits.kept_bytes_max,
        };
        let chunked = c.about.chunked;
        if c.kept_whole && c.kept.len() + data.len() <= keep_max {
            c.kept.extend_from_slice(data);
        } else {
            c.kept_whole = false;
            c.kept = Vec::new();
        }
        match stage {
            Stage::Gather if !c.kept_whole => {
                let seen = format!("more than {keep_max} bytes");
                self.fail(id, 413, "record too large", &seen, "a value within record_bytes_max");
            }
            Stage::Upstream(up) => {
                if let Some((io, _)) = self.upstream(up) {
                    write::piece(&mut io.out, data, chunked);
                    self.send(up);
                }
            }
            Stage::New | Stage::Held | Stage::Queued(..) | Stage::Gather | Stage::Port(_) => {}
        }
    }

    fn body_done(&mut self, id: ConnId, stage: Option<Stage>) {
        let (patience, idle) = (self.limits.answer_ms, self.limits.idle_ms);
        let now = self.now.ms;
        let Some((io, c)) = self.client(id) else { return };
        c.phase = if stage.is_some() { Phase::Await } else { Phase::Head };
        io.deadline = now + if stage.is_some() { patience } else { idle };
        let chunked = c.about.chunked;
        match stage {
            Some(Stage::Upstream(up)) if chunked => {
                let trailers = std::mem::take(&mut c.trailers);
                if let Some((io, _)) = self.upstream(up) {
                    write::last_chunk(&mut io.out, &trailers);
                    self.send(up);
                }
                if let Some((_, c)) = self.client(id) {
                    c.trailers = trailers;
                }
            }
            Some(Stage::Gather) => self.again(id),
            Some(Stage::New | Stage::Held | Stage::Queued(..) | Stage::Upstream(_) | Stage::Port(_)) | None => {}
        }
    }

    fn too_long(&mut self, id: ConnId, seen: u64) {
        self.last_answer(id);
        let seen = format!("{seen} bytes or more");
        self.fail(id, 413, "the request's body is too long", &seen, "a body within body_bytes_max");
    }

    fn no_memory(&mut self, id: ConnId) {
        self.counts.short_of_memory += 1;
        self.last_answer(id);
        let seen = format!("{} bytes in use", self.memory_bytes);
        let expected = "less than memory_bytes_max; nothing was done";
        self.fail_with(id, 503, &TRY_LATER, "the router is short of memory", &seen, expected);
    }

    fn last_answer(&mut self, id: ConnId) {
        if let Some((_, c)) = self.client(id) {
            c.about.keep_alive = false;
        }
    }

    /// The answer is written whole: the next request, or the end.
    pub(super) fn finish(&mut self, id: ConnId) {
        let deadline = self.now.ms + self.limits.idle_ms;
        let (stopping, short) = (self.stopping, self.is_short());
        self.answer_written(id);
        self.give_back(id);
        let Some((io, c)) = self.client(id) else { return };
        c.exchange = None;
        // What comes next may be no request at all, and what we say to that has a body.
        c.about.is_head = false;
        if c.kept.capacity() > DISCARD_BYTES_MAX || short {
            c.kept = Vec::new();
        }
        // While its bytes are being looked at there may be more of them; whoever looks sees to the end.
        let eof = io.eof && io.stash.is_empty() && !io.reading;
        let has_more = !io.stash.is_empty() || io.paused;
        io.deadline = deadline;
        if c.body.is_done() {
            c.phase = Phase::Head;
        }
        if !c.about.keep_alive || eof {
            return self.end_client(id);
        }
        if stopping {
            self.last_chance(id);
        }
        self.send(id);
        if has_more || self.client(id).is_some_and(|(_, c)| c.phase == Phase::Body) {
            self.ready(id);
        }
    }

    /// Sends what is written, then ends the connection.
    pub(super) fn end_client(&mut self, id: ConnId) {
        let linger = self.now.ms + self.limits.linger_ms * 5;
        let Some((io, c)) = self.client(id) else { return };
        c.phase = Phase::Drain;
        io.finishing = true;
        io.deadline = linger;
        if io.out.is_empty() && !io.sending {
            self.shut(id);
        } else {
            self.send(id);
        }
    }

    /// The client has ended its half. What it sent before that and has not been looked at, because the other side is slow or
    /// a map has to come, is a request all the same.
    pub(super) fn client_end(&mut self, id: ConnId) {
        let high = self.buffer_max();
        let Some((io, c)) = self.client(id) else { return };
        match c.phase {
            Phase::Head if !io.stash.is_empty() && io.out.len() > high => {}
            Phase::Head if c.exchange.is_none() && (io.sending || !io.out.is_empty()) => self.end_client(id),
            Phase::Head if c.exchange.is_none() && io.stash.is_empty() => self.take_leave(id),
            Phase::Body if !io.stash.is_empty() => {}
            Phase::Head | Phase::Body => self.client_gone(id),
            Phase::Proxy => self.bad_proxy(id),
            Phase::Await => {}
            Phase::Tunnel => self.tunnel_half(id),
            Phase::Drain if io.sending || !io.out.is_empty() => {}
            Phase::Drain => self.close(id),
        }
    }

    /// Nobody waits for an answer any more.
    pub(super) fn client_gone(&mut self, id: ConnId) {
        if self.tunnel_close(id) {
            return;
        }
        self.detach(id);
        self.close(id);
    }

    /// Do bytes wait that the upstream does not take?
    fn is_stuck(&mut self, up: ConnId) -> bool {
        self.upstream(up).is_some_and(|(io, _)| !io.open || io.sending || !io.out.is_empty())
    }

    /// The client's patience or ours has ended.
    pub(super) fn client_late(&mut self, id: ConnId) {
        let Some((io, c)) = self.client(id) else { return };
        let partial = !io.stash.is_empty();
        let stage = c.exchange.as_ref().map(|e| e.stage);
        let answered = c.exchange.as_ref().is_some_and(|e| e.answered);
        match (c.phase, stage) {
            (Phase::Drain, _) => self.close(id),
            (Phase::Proxy, _) => self.bad_proxy(id),
            (Phase::Tunnel, _) => self.tunnel_late(id),
            (_, Some(Stage::Held)) => self.hold_over(id),
            (_, Some(Stage::Queued(cluster, _))) => self.queue_over(id, cluster),
            (Phase::Body, Some(Stage::Upstream(_))) if c.about.expects && !answered => self.say_continue(id),
            (Phase::Head, None) if !partial => self.take_leave(id),
            (Phase::Body, Some(Stage::Upstream(up))) if self.is_stuck(up) => {
                self.last_answer(id);
                let fields = [("x-ezone-outcome", "unknown")];
                self.fail_with(
                    id,
                    504,
                    &fields,
                    "the upstream does not take the request",
                    "",
                    "progress within read_ms_max",
                );
            }
            (Phase::Head | Phase::Body, _) => {
                self.last_answer(id);
                self.fail(
                    id,
                    408,
                    "the request did not come whole in time",
                    "",
                    "a head within head_ms_max, each piece of a body within read_ms_max",
                );
            }
            (Phase::Await, Some(Stage::New)) if self.reads_changes(id) => self.feed_late(id),
            (Phase::Await, Some(Stage::New)) if self.watches(id) => self.watcher_due(id),
            (Phase::Await, _) => {
                if let Some(Stage::Upstream(up)) = stage {
                    self.owed(id, up);
                }
                let fields = [("x-ezone-outcome", "unknown")];
                self.fail_with(id, 504, &fields, "no answer in time", "", "an answer within answer_ms_max");
            }
        }
    }
}
