//! What the router itself says: short JSON that tells why, and the clean-up before it.

use super::Core;
use super::conn::{ConnId, Phase, Stage};
use crate::http::{Fault, write};
use serde_json::{Map, Value};

/// The end of a request that never reached its shard's owner.
pub(super) const TRY_LATER: [(&str, &str); 1] = [("retry-after", "1")];

impl Core {
    /// Answers what the client sent wrong, and ends the connection: what follows cannot be trusted to be a request.
    pub(super) fn refuse(&mut self, id: ConnId, fault: &Fault) {
        if let Some((_, c)) = self.client(id) {
            c.about.keep_alive = false;
            c.about.http11 = true;
        }
        self.fail(id, fault.status, fault.error, &fault.seen, fault.expected);
        self.end_client(id);
    }

    /// Answers with an error.
    pub(super) fn fail(&mut self, id: ConnId, status: u16, error: &'static str, seen: &str, expected: &str) {
        self.fail_with(id, status, &[], error, seen, expected);
    }

    /// Answers with an error and some fields; empty texts are left out.
    pub(super) fn fail_with(
        &mut self,
        id: ConnId,
        status: u16,
        fields: &[(&str, &str)],
        error: &'static str,
        seen: &str,
        expected: &str,
    ) {
        let texts = [("error", error), ("seen", seen), ("expected", expected)];
        let body: Map<String, Value> = texts
            .iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(k, text)| (k.to_string(), (*text).into()))
            .collect();
        self.answer_why(id, status, fields, Value::Object(body).to_string().as_bytes(), Some(error));
    }

    /// Answers with JSON. If an answer has begun, its connection is broken off instead: nothing else would be honest.
    pub(super) fn answer(&mut self, id: ConnId, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        self.answer_why(id, status, fields, body, None);
    }

    fn answer_why(
        &mut self,
        id: ConnId,
        status: u16,
        fields: &[(&str, &str)],
        body: &[u8],
        reason: Option<&'static str>,
    ) {
        self.detach(id);
        let Some((_, c)) = self.client(id) else { return };
        if c.exchange.as_ref().is_some_and(|e| e.answered && e.feed.is_some()) {
            return self.feed_ends(id, reason.unwrap_or("the answer ends"));
        }
        if c.exchange.as_ref().is_some_and(|e| e.answered && e.watcher.is_some()) {
            return self.watcher_ends(id, reason.unwrap_or("the answer ends"));
        }
        if c.exchange.as_ref().is_some_and(|e| e.answered) {
            self.breaks(id, reason);
            return self.break_off(id);
        }
        if c.exchange.is_none() && c.phase == Phase::Body {
            // Answered before its end, and what is left of it is late or malformed: nobody waits for a second answer.
            return self.end_client(id);
        }
        self.counts.answered(status);
        self.answers(id, status, reason);
        let name = std::mem::take(&mut self.name);
        let (map, stopping) = (self.counts.map_epoch, self.stopping);
        let Some((io, c)) = self.client(id) else { return };
        // It waits for `100 Continue` and may or may not send its body now: what follows could not be told apart.
        c.about.keep_alive &= !c.about.expects && !stopping;
        let out = &mut io.out;
        write::status_line(out, status, write::reason(status));
        out.extend_from_slice(b"content-type: application/json\r\n");
        write::number_field(out, "content-length: ", body.len() as u64);
        let (shard, epoch) = c.exchange.as_ref().map_or((None, 0), |e| (e.shard, e.epoch.0));
        stamp(out, &name, shard.map(|s| s.0), if epoch == 0 { map } else { epoch });
        for (field, value) in fields {
            for part in [field, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        if !c.about.keep_alive {
            out.extend_from_slice(b"connection: close\r\n");
        } else if !c.about.http11 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !c.about.is_head && status != 304 {
            out.extend_from_slice(body);
        }
        self.name = name;
        self.finish(id);
    }

    /// Frees what the request being served holds elsewhere: an upstream connection, a place among the held, an ask.
    pub(super) fn detach(&mut self, id: ConnId) {
        self.give_back(id);
        let Some((_, c)) = self.client(id) else { return };
        let Some(e) = &mut c.exchange else { return };
        match std::mem::replace(&mut e.stage, Stage::New) {
            Stage::New | Stage::Gather => {}
            Stage::Held => {
                let bytes = std::mem::take(&mut e.held_bytes);
                self.unhold(bytes, None);
                self.hold_ends(id);
            }
            Stage::Queued(cluster, _) => self.unqueue(cluster),
            Stage::Upstream(up) => self.upstream_close(up),
            Stage::Port(corr) => self.ports.forget(corr),
        }
    }
}

/// The fields `x-ezone*`: who served, which shard, by which map.
pub(super) fn stamp(out: &mut Vec<u8>, zone: &str, shard: Option<u16>, epoch: u64) {
    out.extend_from_slice(b"x-ezone: ");
    out.extend_from_slice(zone.as_bytes());
    out.extend_from_slice(b"\r\n");
    if let Some(s) = shard {
        write::number_field(out, "x-ezone-shard: ", u64::from(s));
    }
    write::number_field(out, "x-ezone-epoch: ", epoch);
}
