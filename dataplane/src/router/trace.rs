//! Follows a request from its first byte in to its last byte out: when it waited, for whom, and what became of it.
//!
//! ```text
//!  first byte in      sent to the upstream    first byte of its answer      last byte out
//!       ├──── own ────────────┼──── upstream ────────────┼──────── own ───────────┤     held: neither
//! ```
//!
//! The driver reads the clock once for each batch of completions, so a request's own time runs from the batch that brought its
//! bytes to the batch that reports them sent: work on the others of a batch counts, and so do the system calls. Bytes of a
//! pipelined request count from when the answer before it was written. What waits in the kernel until the ring hands it over
//! does not count: the scheduler's delay of the thread (`ezone_core_run_delay_seconds_total`) is shown beside it.

use super::Core;
use super::access::line_of;
use super::conn::{Client, ConnId, Io, Kind, Phase};
use shardmap::{MapEpoch, Shard, Zone};
use std::net::SocketAddr;

/// What a client that was gone before the head of its answer is counted as.
const CLIENT_GONE: u16 = 499;

/// Bytes of a head that are copied for the access log: method, target and what parts them.
const LINE_BYTES_MAX: usize = 1100;

/// How a request ended.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Its answer was sent whole.
    #[default]
    Answered,
    /// The client was gone before that.
    ClientGone,
    /// An answer that had begun could not be ended.
    Broken,
}

/// The request being served.
#[derive(Clone, Copy, Default)]
pub(super) struct Trace {
    /// When its first byte was looked at; 0: none has come.
    pub began_us: u64,
    /// An upstream, a peer or the log is waited for since then; 0: none is.
    waits_from_us: u64,
    upstream_us: u64,
    went_up: bool,
    /// It is held since then; 0: it is not.
    held_from_us: u64,
    held_us: u64,
    /// Bytes of its body so far, as decoded.
    pub body_bytes: u64,
    pub status: u16,
    /// Its place in the figures.
    pub service: u16,
    /// The zone that the map named.
    pub zone: Option<Zone>,
    /// What was wrong, if the router answered by itself.
    pub reason: Option<&'static str>,
    /// The last upstream that was asked.
    pub upstream: Option<SocketAddr>,
    /// The id of its trace, kept for the access log; zeros: none.
    pub id: [u8; 16],
    outcome: Outcome,
}

/// A request whose answer is written, until it is sent.
pub(super) struct Done {
    /// Where in the bytes to its client the answer ends.
    end: u64,
    began_us: u64,
    pub status: u16,
    pub service: u16,
    pub zone: Option<Zone>,
    pub shard: Option<Shard>,
    pub epoch: MapEpoch,
    pub retries: u8,
    pub reason: Option<&'static str>,
    pub outcome: Outcome,
    /// `None`: it went to no upstream.
    pub upstream_us: Option<u64>,
    pub held_us: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub client: Option<SocketAddr>,
    pub upstream: Option<SocketAddr>,
    pub trace_id: [u8; 16],
    /// Its head was understood.
    read: bool,
    /// Its head, once another has taken its place.
    head: Option<Vec<u8>>,
}

impl Client {
    /// The request being served is over: its answer ends where the bytes written so far do.
    fn end_request(&mut self, io: &Io) {
        let t = std::mem::take(&mut self.trace);
        // What waited when a send failed was thrown away: an end never comes before the one before it.
        let end = (io.taken_bytes + io.out.len() as u64).max(self.ended);
        let e = self.exchange.as_ref();
        let done = Done {
            end,
            began_us: t.began_us,
            status: t.status,
            service: t.service,
            zone: t.zone,
            shard: e.and_then(|e| e.shard),
            epoch: e.map_or(MapEpoch(0), |e| e.epoch),
            retries: e.map_or(0, |e| e.retries_421 + e.retries_lost),
            reason: t.reason,
            outcome: t.outcome,
            upstream_us: t.went_up.then_some(t.upstream_us),
            held_us: t.held_us,
            bytes_in: t.body_bytes + if e.is_some() { self.about.head_bytes as u64 } else { 0 },
            bytes_out: end - self.ended,
            client: self.from.addr,
            upstream: t.upstream,
            trace_id: t.id,
            read: e.is_some(),
            head: None,
        };
        self.ended = end;
        if self.dones.is_empty() {
            self.dones.reserve_exact(1);
        }
        self.dones.push(done);
    }

    /// The head of the request before makes room for another: whose answer is not sent yet keeps a copy, for the access log.
    pub(super) fn keep_line(&mut self) {
        if let Some(done) = self.dones.last_mut().filter(|d| d.read && d.head.is_none()) {
            let end = self.head.len().min(LINE_BYTES_MAX);
            done.head = Some(self.head[..end].to_vec());
        }
    }
}

impl Core {
    /// The request has been sent to an upstream, or one is being connected to for it: the wait begins.
    pub(super) fn wait_begins(&mut self, client: ConnId) {
        let now_us = self.now.us;
        if let Some((_, c)) = self.client(client)
            && c.trace.waits_from_us == 0
            && c.trace.status == 0
        {
            (c.trace.waits_from_us, c.trace.went_up) = (now_us, true);
        }
    }

    /// The first byte of an answer has come, or none will: the wait is over.
    pub(super) fn wait_ends(&mut self, client: ConnId) {
        let now_us = self.now.us;
        if let Some((_, c)) = self.client(client) {
            let since = std::mem::take(&mut c.trace.waits_from_us);
            if since > 0 {
                c.trace.upstream_us += now_us.saturating_sub(since);
            }
        }
    }

    /// The request is held from now on.
    pub(super) fn hold_begins(&mut self, client: ConnId) {
        let now_us = self.now.us;
        if let Some((_, c)) = self.client(client) {
            c.trace.held_from_us = now_us;
        }
    }

    /// The request is held no longer.
    pub(super) fn hold_ends(&mut self, client: ConnId) {
        let now_us = self.now.us;
        if let Some((_, c)) = self.client(client) {
            let since = std::mem::take(&mut c.trace.held_from_us);
            // Also one that was over at once has been held.
            c.trace.held_us += now_us.saturating_sub(since).max(1);
        }
    }

    /// An upstream is about to be asked.
    pub(super) fn asks(&mut self, client: ConnId, upstream: SocketAddr) {
        if let Some((_, c)) = self.client(client) {
            c.trace.upstream = Some(upstream);
        }
    }

    /// The answer has a status; with a reason, it is the router's own and something was wrong.
    pub(super) fn answers(&mut self, client: ConnId, status: u16, reason: Option<&'static str>) {
        if let Some((_, c)) = self.client(client) {
            (c.trace.status, c.trace.reason) = (status, reason);
        }
    }

    /// An answer that had begun is broken off.
    pub(super) fn breaks(&mut self, client: ConnId, reason: Option<&'static str>) {
        if let Some((_, c)) = self.client(client) {
            (c.trace.outcome, c.trace.reason) = (Outcome::Broken, reason);
        }
    }

    /// The answer is written whole.
    pub(super) fn answer_written(&mut self, id: ConnId) {
        let now_us = self.now.us;
        let Some((io, c)) = self.client(id) else { return };
        if c.trace.status == 0 {
            return;
        }
        if c.trace.began_us == 0 {
            c.trace.began_us = now_us;
        }
        c.end_request(io);
        if io.out.is_empty() && !io.sending {
            self.sent_answers(id);
        }
    }

    /// All that was written to the client, so far as it was taken, is sent: the requests that ended there are over.
    pub(super) fn sent_answers(&mut self, id: ConnId) {
        let Some((io, c)) = self.client(id) else { return };
        let sent = io.taken_bytes;
        let mut dones = std::mem::take(&mut c.dones);
        let over = dones.partition_point(|d| d.end <= sent);
        let head = std::mem::take(&mut c.head);
        dones.drain(..over).for_each(|done| self.over(&done, &head));
        if let Some((_, c)) = self.client(id) {
            (c.dones, c.head) = (dones, head);
        }
    }

    /// A client's connection is gone: what was not sent whole never will be.
    pub(super) fn lost_answers(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let Kind::Client(c) = &mut conn.kind else { return };
        let unsent = c.dones.len();
        // Of a tunnel the request was over with its 101.
        if c.exchange.is_some() && c.phase != Phase::Tunnel {
            if c.trace.status == 0 {
                c.trace.status = CLIENT_GONE;
            }
            c.end_request(&conn.io);
        }
        let (mut dones, head) = (std::mem::take(&mut c.dones), std::mem::take(&mut c.head));
        for (i, done) in dones.iter_mut().enumerate() {
            if i < unsent || done.outcome == Outcome::Answered {
                done.outcome = Outcome::ClientGone;
            }
            self.over(done, &head);
        }
    }

    /// A request is over; `head` is the newest of its connection.
    fn over(&mut self, done: &Done, head: &[u8]) {
        let (us, whole_us) = (self.now.us, self.now.us.saturating_sub(done.began_us));
        self.figures.record(done, whole_us);
        let Some(access) = &self.settings.access else { return };
        if done.status >= access.min_status_always || self.sampler.draw(access) {
            let head = if done.read { done.head.as_deref().unwrap_or(head) } else { &[] };
            self.access.put(done, us, whole_us, line_of(head, access.query));
        }
    }
}
