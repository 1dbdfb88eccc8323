//! What stands between a request and its answer: the fields of this hop, and 1xx answers on their way to the client.

use super::Core;
use super::conn::{ConnId, Phase};
use crate::http::{Request, Response, write};

impl Core {
    /// The fields that RFC 9110 §7.6.1 makes ours to write: what we ask of the next hop, and for how long.
    pub(super) fn hop_fields(&self, out: &mut Vec<u8>, r: &Request<'_, '_>, expects: bool, pool: usize) {
        if r.host.is_none() {
            // HTTP/1.0 may do without; what we send is HTTP/1.1.
            out.extend_from_slice(format!("host: {}\r\n", self.to.pools[pool].endpoint.addr).as_bytes());
        }
        if expects {
            out.extend_from_slice(b"expect: 100-continue\r\n");
        }
        match (r.upgrade, r.trailers) {
            (None, false) => {}
            (None, true) => out.extend_from_slice(b"te: trailers\r\nconnection: te\r\n"),
            (Some(protocols), _) => {
                for part in [b"connection: upgrade\r\nupgrade: ", protocols, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
        }
    }

    /// A 1xx answer other than 101: passed on to who can read it (RFC 9110 §15.2), bounded in number.
    pub(super) fn interim(&mut self, id: ConnId, r: &Response<'_, '_>) {
        let (patience, late) = (self.now.ms + self.limits.answer_ms, self.now.ms + self.limits.read_ms);
        let most = self.limits.interim_max;
        let Some((_, u)) = self.upstream(id) else { return };
        u.interims += 1;
        let (client, seen) = (u.client, u.interims);
        if seen > most {
            return self.bad_answer(id, "too many 1xx answers");
        }
        let Some((io, c)) = client.and_then(|c| self.client(c)) else { return };
        io.deadline = if c.phase == Phase::Body { late } else { patience };
        if r.status == 100 {
            c.about.expects = false;
        }
        if !c.about.http11 || (r.status == 100 && c.about.continued) {
            return;
        }
        write::response(&mut io.out, r);
        io.out.extend_from_slice(b"\r\n");
        if let Some(client) = client {
            self.send(client);
        }
    }

    /// Does the client of this exchange have as much unsent as it may?
    pub(super) fn client_is_full(&mut self, id: ConnId) -> bool {
        let high = self.buffer_max();
        let client = self.upstream(id).and_then(|(_, u)| u.client);
        client.and_then(|c| self.client(c)).is_some_and(|(io, _)| io.out.len() > high)
    }
}
