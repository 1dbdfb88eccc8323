//! One TLS connection as a filter: what was received goes in and plaintext comes out; plaintext goes in and what is to be
//! sent comes out. Bounded: it keeps at most one record that has not come whole, and what it has to say itself.

use super::context::Outgoing;
use super::fault::{Fault, Reason};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, HandshakeKind, ServerConfig, ServerConnection};
use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::sync::Arc;

/// What the other side may send before its handshake is done: a chain of certificates and a margin.
pub const HANDSHAKE_BYTES_MAX: usize = 32 * 1024;
/// Plaintext is encrypted in pieces of this size, RFC 8446 §5.1: the largest record.
const RECORD_BYTES: usize = 16 * 1024;
/// What a client that speaks plain HTTP to this port is told.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 74\r\n\
connection: close\r\n\r\n{\"error\":\"plain HTTP at a port that speaks TLS\",\"expected\":\"an https URL\"}";

/// One connection.
pub struct Session {
    tls: Connection,
    established: bool,
    /// The other side has said that it ends.
    ended: bool,
    /// Received before the handshake was done.
    early_bytes: usize,
    /// Goes out in place of an alert.
    instead: &'static [u8],
}

/// What has changed by what was received.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The handshake has just been done.
    pub established: bool,
    /// The other side has just said that it sends nothing more (close_notify).
    pub ended: bool,
}

impl Session {
    /// With someone who connects to us.
    pub fn incoming(config: &Arc<ServerConfig>) -> Result<Session, Fault> {
        Ok(Session::new(ServerConnection::new(config.clone())?.into()))
    }

    /// With someone at `ip`, to whom we connect. There is something to send at once.
    pub fn outgoing(how: &Outgoing, ip: IpAddr) -> Result<Session, Fault> {
        let name = how.name.clone().unwrap_or_else(|| ServerName::IpAddress(ip.into()));
        Ok(Session::new(ClientConnection::new(how.config.clone(), name)?.into()))
    }

    fn new(mut tls: Connection) -> Session {
        // What waits to be encrypted is bounded by who hands it over, all at once; a second bound would only cut it.
        tls.set_buffer_limit(None);
        Session { tls, established: false, ended: false, early_bytes: 0, instead: b"" }
    }

    /// Takes what was received; puts what it says behind `plain`, at most a record (16 KiB) more than came.
    ///
    /// After a fault nothing more is to be handed in; there may be an alert to `take`.
    pub fn on_bytes(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<Progress, Fault> {
        let mut progress = Progress::default();
        if !self.established {
            self.look_at(bytes)?;
        }
        while !bytes.is_empty() && !self.ended {
            let taken = self.tls.read_tls(&mut bytes).map_err(|e| Fault::new(Reason::Broken, e.to_string()))?;
            let state = self.tls.process_new_packets()?;
            if !self.established && !self.tls.is_handshaking() {
                self.established = true;
                progress.established = true;
            }
            if state.peer_has_closed() {
                self.ended = true;
                progress.ended = true;
            }
            self.read(state.plaintext_bytes_to_read(), plain);
            // A deframer that takes nothing is full of a record that it will never like.
            if taken == 0 && !self.ended {
                return Err(Fault::new(Reason::Broken, "a record that never ends"));
            }
        }
        Ok(progress)
    }

    fn look_at(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.early_bytes == 0
            && bytes.first().is_some_and(u8::is_ascii_uppercase)
            && matches!(self.tls, Connection::Server(_))
        {
            self.instead = PLAIN_HTTP;
            return Err(Fault::new(
                Reason::NotTls,
                "plain HTTP, or another protocol of words, at a port that speaks TLS",
            ));
        }
        self.early_bytes += bytes.len();
        if self.early_bytes > HANDSHAKE_BYTES_MAX {
            let seen = self.early_bytes;
            return Err(Fault::new(
                Reason::TooLong,
                format!("a handshake of {seen} bytes, at most {HANDSHAKE_BYTES_MAX}"),
            ));
        }
        Ok(())
    }

    fn read(&mut self, mut left: usize, plain: &mut Vec<u8>) {
        let mut reader = self.tls.reader();
        while left > 0 {
            let Ok(chunk) = reader.fill_buf() else { return };
            let n = chunk.len().min(left);
            if n == 0 {
                return;
            }
            plain.extend_from_slice(&chunk[..n]);
            reader.consume(n);
            left -= n;
        }
    }

    /// Encrypts all of `plain` behind `out`. The handshake must be done.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        assert!(self.established, "plaintext is handed over only after the handshake");
        for piece in plain.chunks(RECORD_BYTES) {
            // It refuses only what is over its limit, and it has none; after a fatal alert it takes everything silently.
            let _ = self.tls.writer().write(piece);
            self.take(out);
        }
    }

    /// Puts what it has to say itself behind `out`: its side of a handshake, alerts, tickets.
    pub fn take(&mut self, out: &mut Vec<u8>) {
        if !self.instead.is_empty() {
            return out.extend_from_slice(std::mem::take(&mut self.instead));
        }
        while self.tls.wants_write() {
            // A Vec takes everything.
            if self.tls.write_tls(out).is_err() {
                return;
            }
        }
    }

    /// Says that nothing more will be sent: an alert to `take`.
    pub fn end(&mut self) {
        self.tls.send_close_notify();
    }

    /// Is the handshake done?
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// Has the other side said that it sends nothing more? An end of the connection before that may be someone's cut.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Was the handshake a short one, by a ticket?
    pub fn is_resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Such as `TLSv1_3`, for a person.
    pub fn version(&self) -> Option<String> {
        self.tls.protocol_version().map(|v| format!("{v:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_says_its_own_length() {
        let text = std::str::from_utf8(PLAIN_HTTP).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
