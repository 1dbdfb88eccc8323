//! `GET /changes`: what is applied in this zone, as lines of JSON, in the order of each log, at the reader's own pace.
//!
//! ```text
//! {"table":"orders","key":"17","version":"1.5.0.2","zone":"bj","stream":2,"seq":40,"shard":2,"deleted":false,"value":{..}}
//! {"token":"0.2.40,1.2.7"}                                 after each group of changes, and at least every 5 s
//! {"error":"..","token":".."}                              the last line, if the router ends the answer
//! ```
//!
//! `zone=own` (or a zone's name) tells what was written in that zone alone, whoever owns the shard now: jobs that ask so, each in its zone and
//! each going on from its own token, are told each acknowledged write in exactly one zone, over moves and take-overs (`replog::changes`
//! says why). Not promised: an order between zones. Of a row whose shard has moved the new owner's job may be told of a later write before
//! the old owner's job is told of an earlier one; versions say which is later.
//!
//! The log is asked for more only when the reader has taken what came before: a slow one holds nothing but its own place. One log core
//! is asked at a time, by turns.

use super::Core;
use super::answer::stamp;
use super::conn::{ConnId, Kind, Phase, Stage};
use super::store::{Shape, decode, is_table};
use crate::http::{Fault, Request, write};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use replog::changes::{Change, POSITIONS_MAX, Told, Wish};
use replog::commit::Token;
use replog::port::{Answer, Ask, Refused};
use serde_json::json;
use serde_json::value::RawValue;
use shardmap::Zone;

/// The zone whose router is asked, whatever it is called: jobs are the same everywhere.
const OWN: &str = "own";
/// How long a reader hears nothing at most.
const HEARTBEAT_MS: u64 = 5000;
/// How long one of several log cores is waited for before the next is asked.
const TURN_MS: u64 = 25;

/// One reader of changes.
pub(super) struct Feed {
    table: Option<Bytes>,
    /// Out of this zone's log alone.
    zone: Option<Zone>,
    values: bool,
    /// Where each log is told up to.
    after: Vec<Token>,
    /// Which ports have said where their logs are.
    begun: Vec<bool>,
    /// Whose turn it is.
    port: usize,
    /// When the last token was written.
    told_ms: Option<u64>,
}

impl Core {
    /// Begins to tell changes.
    pub(super) fn changes(&mut self, id: ConnId, r: &Request<'_, '_>) {
        let feed = match self.feed_of(id, r) {
            Ok(feed) => feed,
            Err(fault) => return self.fail(id, fault.status, fault.error, &fault.seen, fault.expected),
        };
        if let Some(e) = self.exchange(id) {
            e.feed = Some(Box::new(feed));
            self.feed_on(id);
        }
    }

    fn feed_of(&mut self, id: ConnId, r: &Request<'_, '_>) -> Result<Feed, Fault> {
        let http11 = self.client(id).is_some_and(|(_, c)| c.about.http11 && c.phase == Phase::Await);
        if r.method != "GET" || !http11 {
            let seen = format!("{}{}", r.method, if r.http11 { "" } else { " by HTTP/1.0" });
            return Err(Fault {
                status: 405,
                ..Fault::bad("method not allowed here", seen, "GET without a body, HTTP/1.1")
            });
        }
        let ports = self.settings.log_ports.len();
        let mut feed = Feed {
            table: None,
            zone: None,
            values: false,
            after: vec![],
            begun: vec![false; ports],
            port: 0,
            told_ms: None,
        };
        let query = r.path.split_once('?').map_or("", |(_, query)| query);
        for part in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match (name, value) {
                ("table", table) if is_table(table) => feed.table = Some(Bytes::copy_from_slice(table.as_bytes())),
                ("table", other) => return Err(Fault::bad("illegal table name", other, "1 to 64 of a-z, 0-9 and _")),
                ("zone", name) => feed.zone = Some(self.zone_named(name)?),
                ("values", "true" | "1") => feed.values = true,
                ("values", "false" | "0") => feed.values = false,
                ("values", other) => return Err(Fault::bad("illegal values", other, "true or false")),
                ("from", text) => {
                    feed.after = tokens(text).ok_or_else(|| {
                        Fault::bad(
                            "malformed from",
                            text,
                            "zone.stream.seq,zone.stream.seq,.. as the last token line shows it",
                        )
                    })?;
                    feed.begun = vec![true; ports];
                }
                (other, _) => return Err(Fault::bad("unknown parameter", other, "table, zone, from or values")),
            }
        }
        let readers = |kind: &Kind| match kind {
            Kind::Client(c) => c.exchange.as_ref().is_some_and(|e| e.feed.is_some()),
            Kind::Upstream(_) | Kind::Port(_) | Kind::Free => false,
        };
        let count = self.conns.iter().filter(|c| readers(&c.kind)).count();
        if count >= self.limits.changes_max {
            let fault = Fault::bad("too many readers of changes", count.to_string(), "fewer than changes_max");
            return Err(Fault { status: 503, ..fault });
        }
        Ok(feed)
    }

    /// The zone that a reader names; `own`: this one.
    fn zone_named(&self, name: &str) -> Result<Zone, Fault> {
        let known = self.settings.zone_names.iter().find(|(_, n)| n == name).map(|(zone, _)| *zone);
        let zone = known.or(self.settings.zone.filter(|_| name == OWN));
        zone.ok_or_else(|| Fault::bad("unknown zone", name, "own, or a zone of the map"))
    }

    /// Asks for what follows, if the reader has taken what came before.
    pub(super) fn feed_on(&mut self, id: ConnId) {
        let (ports, streams) = (self.settings.log_ports.len(), self.settings.streams.max(1));
        let beat_ms = HEARTBEAT_MS.min(self.limits.answer_ms / 2);
        let Some(feed) = self.exchange(id).and_then(|e| e.feed.as_ref()) else { return };
        let port = feed.port;
        let of_port = |t: &&Token| (t.stream % streams) as usize % ports == port;
        let after = feed.begun[port].then(|| feed.after.iter().filter(of_port).copied().collect());
        let wait_ms = if ports == 1 { beat_ms } else { TURN_MS } as u32;
        let (table, zone, values) = (feed.table.clone(), feed.zone, feed.values);
        let ask = Ask::Changes(Wish { after, table, zone, values, wait_ms });
        self.ask_at(id, None, port, Shape::Changes, &ask);
    }

    /// What the log has told.
    pub(super) fn fed(&mut self, id: ConnId, answer: Answer) {
        match answer {
            Answer::Changes(told) => self.feed(id, told),
            Answer::Refused(Refused::Forgotten { after, first }) => {
                let begun = self.exchange(id).is_some_and(|e| e.answered);
                if begun {
                    return self.feed_ends(id, "the changes that follow are no longer kept");
                }
                let seen = after.to_string();
                let expected = format!(
                    "{} or later; read the rows anew, then begin without from",
                    Token { seq: first.saturating_sub(1), ..after }
                );
                self.fail(id, 410, "the changes that follow are no longer kept", &seen, &expected);
            }
            Answer::Refused(Refused::Invalid(why)) => {
                let expected = "places of this cluster's streams, as the last token line shows them";
                self.fail(id, 400, "malformed from", &String::from_utf8_lossy(&why), expected);
            }
            other => self.tell(id, Shape::Read, other),
        }
    }

    fn feed(&mut self, id: ConnId, told: Told) {
        let (now_ms, high, stopping) = (self.now.ms, self.buffer_max(), self.stopping);
        let lines: Vec<u8> = told.changes.iter().flat_map(|c| self.line(c)).collect();
        self.feed_head(id);
        let Some((io, c)) = self.client(id) else { return };
        let Some(feed) = c.exchange.as_mut().and_then(|e| e.feed.as_mut()) else { return };
        for token in &told.after {
            match feed.after.iter_mut().find(|t| (t.zone, t.stream) == (token.zone, token.stream)) {
                Some(known) => *known = *token,
                None => feed.after.push(*token),
            }
        }
        feed.begun[feed.port] = true;
        feed.port = (feed.port + 1) % feed.begun.len();
        write::piece(&mut io.out, &lines, true);
        let due = !lines.is_empty() || feed.told_ms.is_none_or(|then| now_ms >= then + HEARTBEAT_MS);
        if due && feed.begun.iter().all(|b| *b) {
            feed.told_ms = Some(now_ms);
            let line = format!("{}\n", json!({ "token": text(&feed.after) }));
            write::piece(&mut io.out, line.as_bytes(), true);
        }
        let room = io.out.len() <= high;
        self.send(id);
        if stopping {
            self.feed_ends(id, "the router ends");
        } else if room {
            self.feed_on(id);
        }
    }

    /// The head of the answer, once.
    fn feed_head(&mut self, id: ConnId) {
        if self.exchange(id).is_none_or(|e| e.answered) {
            return;
        }
        self.counts.answered(200);
        self.answers(id, 200, None);
        let name = std::mem::take(&mut self.name);
        let map = self.counts.map_epoch;
        if let Some((io, c)) = self.client(id) {
            c.about.keep_alive = false;
            if let Some(e) = &mut c.exchange {
                e.answered = true;
            }
            write::status_line(&mut io.out, 200, write::reason(200));
            io.out.extend_from_slice(
                b"content-type: application/x-ndjson\r\ncache-control: no-store\r\ntransfer-encoding: chunked\r\n",
            );
            stamp(&mut io.out, &name, None, map);
            io.out.extend_from_slice(b"connection: close\r\n\r\n");
        }
        self.name = name;
    }

    /// The last line says why, and from where to go on.
    pub(super) fn feed_ends(&mut self, id: ConnId, error: &str) {
        self.detach(id);
        let Some((io, c)) = self.client(id) else { return };
        let Some(feed) = c.exchange.as_mut().and_then(|e| e.feed.take()) else { return };
        let whole = feed.begun.iter().all(|b| *b);
        let mut line = json!({ "error": error });
        if whole {
            line["token"] = text(&feed.after).into();
        }
        write::piece(&mut io.out, format!("{line}\n").as_bytes(), true);
        write::last_chunk(&mut io.out, &[]);
        self.finish(id);
    }

    /// Does it read changes, and has it been told some?
    pub(super) fn reads_changes(&mut self, id: ConnId) -> bool {
        self.exchange(id).is_some_and(|e| e.answered && e.feed.is_some())
    }

    /// Has everything that was told been taken down, and nothing more been asked for?
    pub(super) fn rests_between_changes(&mut self, id: ConnId) -> bool {
        self.reads_changes(id) && self.stands_at(id, Stage::New)
    }

    /// The reader does not take what was told.
    pub(super) fn feed_late(&mut self, id: ConnId) {
        self.counts.changes_cut += 1;
        self.feed_ends(id, "the reader is too slow: it has not taken in answer_ms_max what was sent");
    }

    fn line(&self, change: &Change) -> Vec<u8> {
        let mut line = json!({
            "table": String::from_utf8_lossy(&change.table),
            "version": change.version.to_string(),
            "zone": self.settings.name(Some(change.version.zone)),
            "stream": change.version.stream,
            "seq": change.seq,
            "shard": change.shard.0,
            "deleted": change.deleted,
        });
        match std::str::from_utf8(&change.key) {
            Ok(key) => line["key"] = key.into(),
            Err(_) => line["key_base64"] = STANDARD.encode(&change.key).into(),
        }
        let mut raw = None;
        match change.value.as_ref().map(|v| (v, std::str::from_utf8(v))) {
            None => {}
            // As it was written; only what would end the line is told as text.
            Some((_, Ok(json))) if !json.contains(['\n', '\r']) && serde_json::from_str::<&RawValue>(json).is_ok() => {
                raw = Some(json);
            }
            Some((_, Ok(text))) => line["text"] = text.into(),
            Some((value, Err(_))) => line["base64"] = STANDARD.encode(value).into(),
        }
        let mut line = line.to_string();
        if let Some(raw) = raw {
            line.pop();
            line.push_str(",\"value\":");
            line.push_str(raw);
            line.push('}');
        }
        line.push('\n');
        line.into_bytes()
    }
}

/// Positions as a token line shows them.
fn text(after: &[Token]) -> String {
    let all: Vec<String> = after.iter().map(Token::to_string).collect();
    all.join(",")
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let text = decode(text)?;
    let all: Option<Vec<Token>> = text.split(|b| *b == b',').map(Token::parse).collect();
    let mut all = all?;
    let count = all.len();
    all.sort_by_key(|t| (t.zone, t.stream));
    all.dedup_by_key(|t| (t.zone, t.stream));
    (count <= POSITIONS_MAX && all.len() == count).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_shown_each_log_once() {
        let token = |zone, stream, seq| Token { zone: Zone(zone), stream, seq };
        let all = vec![token(0, 0, 5), token(0, 1, 0), token(3, 0, 77)];
        assert_eq!(text(&all), "0.0.5,0.1.0,3.0.77");
        assert_eq!(tokens(&text(&all)), Some(all.clone()));
        assert_eq!(tokens("0.0.5%2C0.1.0%2c3.0.77"), Some(all));
        for bad in ["", ",", "0.0.5,", "0.0.5,0.0.6", "0.0", "x", "0.0.5;0.1.0", "%"] {
            assert_eq!(tokens(bad), None, "{bad}");
        }
    }
}
