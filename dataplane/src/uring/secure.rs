//! The driver's sockets that speak TLS: bytes pass through a session between the ring and the core.
//!
//! ```text
//!   ring ── received ──▶ session ── plaintext ──▶ core
//!   ring ◀── buffer ──── session ◀── plaintext ── core (lent until its last byte is sent)
//! ```
//!
//! The session has bytes of its own to send: handshakes, alerts, tickets. One send is under way at a time, so they and the
//! core's follow each other in order. A plain socket has no [`Secure`] and passes all of this by one branch.

use super::drive::{Driver, sock};
use crate::router::{ConnId, Now, Side};
use crate::tls::{Fault, Reason, Session, TlsId};
use std::net::SocketAddr;

/// Buffers of ciphertext that are kept for the next send: they belong to the core's thread, not to a connection, so that an idle
/// connection has none.
const SPARES_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 128 * 1024;

/// The TLS half of a socket.
pub(super) struct Secure {
    session: Session,
    outgoing: bool,
    /// What the core has handed out, until its last byte is sent ..
    plain: Vec<u8>,
    lent: bool,
    /// .. and whether it is in the buffer that is being sent.
    sealed: bool,
    /// Nothing more is read: its end has been told.
    over: bool,
    /// Our half ends once everything is sent.
    ending: bool,
    shut: bool,
}

/// What all sessions of a core use in turn.
#[derive(Default)]
pub(super) struct Shelf {
    /// Plaintext on its way to the core; empty in between.
    plain: Vec<u8>,
    spares: Vec<Vec<u8>>,
    /// When a fault of a connection that we made was last told.
    told_ms: Option<u64>,
}

impl Secure {
    fn new(session: Session, outgoing: bool) -> Box<Secure> {
        let plain = Vec::new();
        Box::new(Secure {
            session,
            outgoing,
            plain,
            lent: false,
            sealed: false,
            over: false,
            ending: false,
            shut: false,
        })
    }

    /// Puts what is to be sent into `out`.
    fn fill(&mut self, out: &mut Vec<u8>) {
        if self.lent && !self.sealed {
            self.session.seal(&self.plain, out);
            self.sealed = true;
        }
        self.session.take(out);
    }

    /// What the core lent, once it is sent.
    fn done(&mut self) -> Option<Vec<u8>> {
        let done = self.lent && self.sealed;
        (self.lent, self.sealed) = (self.lent && !done, false);
        done.then(|| std::mem::take(&mut self.plain))
    }
}

impl Shelf {
    fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        if self.spares.len() < SPARES_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            self.spares.push(buffer);
        }
    }
}

impl Driver {
    /// An accepted connection is to speak TLS.
    pub(super) fn guard(&mut self, id: ConnId, side: Side, now: Now) {
        let config = match side {
            Side::Client | Side::TlsClient => self.settings.tls.clients(),
            Side::Peer | Side::TlsPeer => self.settings.tls.peers(),
        };
        let unprepared = || Fault::new(Reason::Unprepared, "no certificate is configured for this listener");
        match config.ok_or_else(unprepared).and_then(Session::incoming) {
            Ok(session) => {
                if let Some(sock) = sock(&mut self.socks, id) {
                    sock.secure = Some(Secure::new(session, false));
                }
                self.core.on_handshake(id, now);
            }
            Err(fault) => self.core.on_insecure(id, fault.reason, now),
        }
    }

    /// A session for a connection to `addr` that is still to be made.
    pub(super) fn session_to(&self, addr: SocketAddr, tls: TlsId) -> Result<Box<Secure>, Fault> {
        let how = self.settings.tls.outgoing(tls);
        let how =
            how.ok_or_else(|| Fault::new(Reason::Unprepared, "the settings no longer say how to speak TLS to it"))?;
        Ok(Secure::new(Session::outgoing(how, addr.ip())?, true))
    }

    /// Received: buffer `buffer`, of which `len` bytes count. The caller gives it back.
    pub(super) fn open(&mut self, id: ConnId, buffer: u16, len: usize, now: Now) {
        let Driver { socks, core, buffers, shelf, .. } = self;
        let Some(secure) = sock(socks, id).and_then(|s| s.secure.as_deref_mut()).filter(|s| !s.over) else { return };
        let mut plain = std::mem::take(&mut shelf.plain);
        let progress = secure.session.on_bytes(buffers.bytes(buffer, len), &mut plain);
        match progress {
            Ok(progress) => {
                secure.over = progress.ended;
                if progress.established {
                    core.on_secured(id, secure.session.is_resumed(), now);
                    if secure.outgoing {
                        core.on_connected(id, now);
                    }
                }
                if !plain.is_empty() {
                    core.on_bytes(id, &plain, now);
                }
                if progress.ended {
                    core.on_end(id, false, now);
                    self.pause(id);
                }
                self.flush(id);
            }
            Err(fault) => self.fail(id, fault, now),
        }
        plain.clear();
        self.shelf.plain = plain;
    }

    /// The socket has ended, or broken (`reset`), under its session.
    pub(super) fn cut(&mut self, id: ConnId, reset: bool, now: Now) {
        let Some(secure) = sock(&mut self.socks, id).and_then(|s| s.secure.as_deref_mut()) else { return };
        if std::mem::replace(&mut secure.over, true) {
            return;
        }
        match (secure.session.is_established(), reset) {
            (false, _) => {
                self.fail(id, Fault::new(Reason::Gone, "the connection was closed during the handshake"), now)
            }
            (true, true) => self.core.on_end(id, true, now),
            (true, false) => self.core.on_cut(id, now),
        }
    }

    fn fail(&mut self, id: ConnId, fault: Fault, now: Now) {
        if let Some(secure) = sock(&mut self.socks, id).and_then(|s| s.secure.as_deref_mut()) {
            secure.over = true;
            if secure.outgoing {
                self.tell(&fault, now);
            }
        }
        self.last_words(id);
        self.core.on_insecure(id, fault.reason, now);
    }

    /// A peer or an upstream that cannot be spoken to is worth a line; each attempt of each request is not.
    pub(super) fn tell(&mut self, fault: &Fault, now: Now) {
        if self.shelf.told_ms.is_none_or(|at| now.ms >= at + 1000) {
            self.shelf.told_ms = Some(now.ms);
            tracing::warn!("TLS to an upstream or another router failed ({}): {fault}", fault.reason.name());
        }
    }

    /// What the core has handed out; it is lent until it is sent.
    pub(super) fn hand_over(&mut self, id: ConnId, plain: Vec<u8>, now: Now) {
        let Some(secure) = sock(&mut self.socks, id).and_then(|s| s.secure.as_deref_mut()) else { return };
        if plain.is_empty() {
            return self.core.on_sent(id, plain, true, now);
        }
        (secure.plain, secure.lent, secure.sealed) = (plain, true, false);
        self.flush(id);
    }

    /// Sends what waits, if nothing is being sent; then ends our half, if that is wanted.
    pub(super) fn flush(&mut self, id: ConnId) {
        let Some(sock) = sock(&mut self.socks, id).filter(|s| !s.sending && !s.closing) else { return };
        let Some(secure) = sock.secure.as_deref_mut() else { return };
        let mut out = self.shelf.spare();
        secure.fill(&mut out);
        if !out.is_empty() {
            (sock.buffer, sock.sent) = (out, 0);
            return self.send(id);
        }
        self.shelf.keep(out);
        if secure.ending
            && !std::mem::replace(&mut secure.shut, true)
            && let Some(socket) = &sock.socket
        {
            // It fails only if the other side is gone already, which the receive tells.
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }

    /// The buffer in the socket's slot is sent, or (not `ok`) cannot be.
    pub(super) fn sealed_sent(&mut self, id: ConnId, ok: bool, now: Now) {
        let Some(sock) = sock(&mut self.socks, id) else { return };
        self.shelf.keep(std::mem::take(&mut sock.buffer));
        let closing = sock.closing;
        let done = sock.secure.as_deref_mut().and_then(Secure::done);
        if let Some(plain) = done.filter(|_| !closing) {
            self.core.on_sent(id, plain, ok, now);
        }
        self.flush(id);
        self.end_if_done(id);
    }

    /// Our half ends: says so, then closes it.
    pub(super) fn end(&mut self, id: ConnId) {
        if let Some(secure) = sock(&mut self.socks, id).and_then(|s| s.secure.as_deref_mut()) {
            secure.ending = true;
            secure.session.end();
            self.flush(id);
        }
    }

    /// A connection that we made is closed: says so, if that can be done at once. Towards a client nothing is said: an
    /// answer that was cut must not look whole.
    pub(super) fn part(&mut self, id: ConnId) {
        let Some(secure) = sock(&mut self.socks, id).and_then(|s| s.secure.as_deref_mut()) else { return };
        if secure.outgoing && secure.session.is_established() && !secure.over && !secure.ending {
            secure.session.end();
            self.last_words(id);
        }
    }

    /// An alert before the end: sent at once or not at all.
    fn last_words(&mut self, id: ConnId) {
        let Some(sock) = sock(&mut self.socks, id).filter(|s| !s.sending) else { return };
        let (Some(secure), Some(socket)) = (sock.secure.as_deref_mut(), &sock.socket) else { return };
        let mut out = self.shelf.spare();
        secure.session.take(&mut out);
        if !out.is_empty() {
            let _ = socket.send_with_flags(&out, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        }
        self.shelf.keep(out);
    }
}
