//! What a core knows of TLS: that a connection is of no use before its handshake is done, and how handshakes end.
//!
//! A client's handshake takes a place in the core's table like any connection, so that `connections_max` bounds it; it has
//! a patience of its own, and no more than `tls_handshakes_max` are under way at once. What is sealed and opened, and
//! with which certificates, is the driver's business: a core sees plaintext only.

use super::conn::{ConnId, Kind, UpPhase};
use super::{Core, Counts, Now, Order};
use crate::tls::Reason;

impl Core {
    /// An accepted connection begins a handshake; it is closed at once if too many are under way.
    pub fn on_handshake(&mut self, id: ConnId, now: Now) {
        self.now = now;
        if self.handshaking >= self.limits.tls_handshakes_max {
            return self.on_insecure(id, Reason::Crowded, now);
        }
        let late = now.ms + self.limits.tls_handshake_ms;
        let Some(conn) = self.conn(id) else { return };
        (conn.io.handshaking, conn.io.secure) = (true, true);
        conn.io.deadline = late;
        self.handshaking += 1;
    }

    /// A connection that was ordered is made, and its handshake begins: `on_connected` comes after it.
    pub fn on_reached(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id) {
            conn.io.secure = true;
        }
    }

    /// A handshake is done, of a connection in either direction. For one that was ordered `on_connected` follows.
    pub fn on_secured(&mut self, id: ConnId, resumed: bool, now: Now) {
        self.now = now;
        self.counts.tls_handshakes += 1;
        self.counts.tls_resumed += u64::from(resumed);
        let idle = now.ms + self.limits.idle_ms;
        let Some(conn) = self.conn(id) else { return };
        conn.io.secure = true;
        if std::mem::take(&mut conn.io.handshaking) {
            conn.io.deadline = idle;
            self.handshaking -= 1;
            if self.stopping {
                self.last_chance(id);
            }
        }
    }

    /// A handshake failed, or what followed it was not what the other side can have sent.
    pub fn on_insecure(&mut self, id: ConnId, reason: Reason, now: Now) {
        self.now = now;
        self.counts.insecure(reason);
        match self.conn(id).map(|c| &c.kind) {
            Some(Kind::Client(_)) => self.client_gone(id),
            Some(Kind::Upstream(up)) if up.phase == UpPhase::Connecting => self.on_failed(id, now),
            Some(Kind::Upstream(_)) => self.on_end(id, true, now),
            Some(Kind::Port(_) | Kind::Free) | None => {}
        }
    }

    /// The connection has ended and nobody has said so: what lasts until the end of its connection is not whole.
    pub fn on_cut(&mut self, id: ConnId, now: Now) {
        if let Some(conn) = self.conn(id) {
            conn.io.cut = true;
        }
        self.on_end(id, false, now);
    }

    /// Closes a connection on which everything is said. By TLS that has to be said too, or it looks like a cut.
    pub(super) fn take_leave(&mut self, id: ConnId) {
        if self.conn(id).is_some_and(|c| c.io.secure) {
            self.orders.push_back(Order::Shutdown(id));
        }
        self.close(id);
    }

    /// A handshake took too long.
    pub(super) fn handshake_late(&mut self, id: ConnId) {
        self.counts.insecure(Reason::Late);
        self.client_gone(id);
    }
}

impl Counts {
    pub(super) fn insecure(&mut self, reason: Reason) {
        let of = match reason {
            Reason::NotTls => &mut self.tls_failed_not_tls,
            Reason::Incompatible => &mut self.tls_failed_incompatible,
            Reason::NoCertificate => &mut self.tls_failed_no_certificate,
            Reason::Untrusted => &mut self.tls_failed_untrusted,
            Reason::Expired => &mut self.tls_failed_expired,
            Reason::WrongIdentity => &mut self.tls_failed_wrong_identity,
            Reason::Refused => &mut self.tls_failed_refused,
            Reason::Broken => &mut self.tls_failed_broken,
            Reason::TooLong => &mut self.tls_failed_too_long,
            Reason::Late => &mut self.tls_failed_late,
            Reason::Gone => &mut self.tls_failed_gone,
            Reason::Crowded => &mut self.tls_failed_crowded,
            Reason::Unprepared => &mut self.tls_failed_unprepared,
        };
        *of += 1;
    }
}
