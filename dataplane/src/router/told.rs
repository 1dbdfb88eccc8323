//! What the log answered, as HTTP: rows, versions, places, and why nothing was done.

use super::Core;
use super::answer::TRY_LATER;
use super::conn::ConnId;
use super::store::Shape;
use super::want::names;
use crate::http::{parse_request, slots};
use bytes::Bytes;
use replog::Version;
use replog::commit::{Committed, Held, Made, Token};
use replog::port::{Answer, Refused};
use serde_json::{Value, json};
use shardmap::{MapEpoch, Shard};

impl Core {
    /// Answers the request of `id`, which asked for something of this `shape`.
    pub(super) fn tell(&mut self, id: ConnId, shape: Shape, answer: Answer) {
        match answer {
            Answer::Written { key, version, seq } => {
                self.committed(
                    id,
                    shape,
                    &Committed { rows: vec![Made { key, version, seq }], replayed: false, held: Held::Here },
                );
            }
            Answer::Committed(done) => self.committed(id, shape, &done),
            Answer::Row { version, value } => {
                let (text, tag) = shown(version);
                let status = if self.has(id, version) { 304 } else { 200 };
                self.answer(id, status, &[("x-ezone-version", &text), ("etag", &tag)], &value);
            }
            Answer::Changes(_) => {
                self.fail(id, 500, "the zone's log or store failed", "changes", "an answer to what was asked")
            }
            Answer::Standing(_) => {
                self.fail(id, 500, "the zone's log or store failed", "standing", "an answer to what was asked")
            }
            Answer::Absent => self.fail(id, 404, "no such record", "", ""),
            Answer::Refused(why) => self.refused(id, shape, why),
        }
    }

    /// Does the client have this version already, as its `if-none-match` says?
    fn has(&mut self, id: ConnId, version: Version) -> bool {
        let Some((_, c)) = self.client(id).filter(|(_, c)| c.about.has_some) else { return false };
        let mut room = slots();
        let list = parse_request(&c.head, &mut room).ok().and_then(|r| r.wants.if_none_match);
        list.is_some_and(|list| names(list, version))
    }

    fn committed(&mut self, id: ConnId, shape: Shape, done: &Committed) {
        let Some(last) = done.rows.last() else {
            return self.fail(id, 500, "the zone's log or store failed", "a commit without a row", "");
        };
        let Made { version, seq, .. } = *last;
        let token = Token { zone: version.zone, stream: version.stream, seq }.to_string();
        let (text, tag) = shown(version);
        let location = if shape == Shape::Mint { self.location(id, &last.key) } else { String::new() };
        let mut fields = vec![("x-ezone-token", token.as_str())];
        if shape != Shape::Tx {
            fields.extend([("x-ezone-version", text.as_str()), ("etag", tag.as_str())]);
        }
        if shape == Shape::Mint {
            fields.push(("location", location.as_str()));
        }
        if done.replayed {
            fields.push(("idempotency-replayed", "true"));
        }
        let mut body = match shape {
            Shape::Tx => json!({ "rows": done.rows.iter().map(|m| row("key", m)).collect::<Vec<_>>() }),
            Shape::Mint => row("id", last),
            Shape::Write | Shape::Read | Shape::Changes | Shape::Standing | Shape::Farewell => row("key", last),
        };
        let status = match &done.held {
            Held::Late(links) => {
                // Never a silent downgrade: the write stands, here, and the client is told so.
                body["error"] = "no other zone has the write yet".into();
                body["seen"] = String::from_utf8_lossy(links).into();
                body["expected"] =
                    "one more zone within remote_ack_ms_max; the write stands in this zone and is on its way".into();
                body["durable"] = "local".into();
                504
            }
            Held::Unleased => {
                self.counts.unleased_unknown += 1;
                fields.push(("x-ezone-outcome", "unknown"));
                body["error"] =
                    "unknown: the lease of the global service ended before the write was acknowledged".into();
                body["seen"] = "the write is in this zone's log; another zone may have taken over without it".into();
                body["expected"] =
                    "a lease until then; read it with x-ezone-read: primary before writing it again".into();
                body["durable"] = "local".into();
                504
            }
            Held::Elsewhere => {
                body["durable"] = "remote".into();
                if shape == Shape::Mint { 201 } else { 200 }
            }
            Held::Here if shape == Shape::Mint => 201,
            Held::Here => 200,
        };
        self.answer(id, status, &fields, body.to_string().as_bytes());
    }

    /// Where the row with this key is to be found: below the path that it was posted to.
    fn location(&mut self, id: ConnId, key: &Bytes) -> String {
        let path = self.client(id).map(|(_, c)| target(&c.head)).unwrap_or_default();
        let path = path.split(|b| *b == b'?').next().unwrap_or_default();
        format!("{}/{}", String::from_utf8_lossy(path), String::from_utf8_lossy(key))
    }

    fn refused(&mut self, id: ConnId, shape: Shape, why: Refused) {
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        match why {
            Refused::NotOwner { map_epoch, owner } => self.not_owner(id, map_epoch, owner),
            Refused::ReadOnly => {
                let error = "the zone's log has restarted and does not know yet what it owns";
                self.fail_with(id, 503, &TRY_LATER, error, "read-only", "a log that has reached the others");
            }
            Refused::Locked => self.fail(id, 423, "the record is in doubt until a lost zone returns", "locked", ""),
            Refused::Behind { map_epoch } => {
                let seen = format!("map epoch {map_epoch}");
                self.fail_with(id, 503, &TRY_LATER, "the zone's log waits for a newer map", &seen, "the router's map");
            }
            Refused::Full => {
                self.fail(id, 507, "the zone's log or its record store has no room", "", "free space on its volume")
            }
            Refused::Busy => self.fail_with(id, 503, &TRY_LATER, "too many writes wait", "", "fewer; nothing was done"),
            Refused::Invalid(why) => self.fail(id, 400, "not a legal record", &text(&why), ""),
            Refused::Failed(why) => self.fail(id, 500, "the zone's log or store failed", &text(&why), ""),
            Refused::Unmet { step, seen } => self.unmet(id, shape, step, seen),
            Refused::NoPeer => {
                let expected = "another zone in the log's configuration; nothing was done";
                self.fail(id, 501, "no other zone can confirm a write", "no peer", expected);
            }
            Refused::Unleased { shard, ended_ms } => self.unleased(id, shard, ended_ms),
            Refused::Forgotten { after, .. } => {
                self.fail(id, 410, "the changes that follow are no longer kept", &after.to_string(), "a later token");
            }
            Refused::NotYet { applied } => {
                let expected = "the write of x-ezone-after within after_ms_max";
                let seen = format!("applied up to seq {applied} of that zone's stream");
                self.fail_with(id, 504, &TRY_LATER, "that write is not applied in this zone yet", &seen, expected);
            }
            Refused::Reused => {
                let expected =
                    "the same method, path and body as with the first request that had this key; nothing was done";
                self.fail(id, 422, "the idempotency-key was used with another request", "another request", expected);
            }
        }
    }

    /// 503: the owner of a global service is not sure to be its only writer.
    fn unleased(&mut self, id: ConnId, shard: Shard, ended_ms: Option<u64>) {
        self.counts.unleased += 1;
        let name = self.map.as_ref().and_then(|m| m.whole()?.global_name(shard)).unwrap_or("?");
        let since = match ended_ms {
            Some(ms) => format!("the last one ended {ms} ms ago"),
            None => "there was none since the log started, or since the service came to this zone".into(),
        };
        let seen = format!("global service \"{name}\" (shard {shard}): {since}");
        let expected = "a lease of the Global Zone Service, which this zone's log must reach (`ezctl zone status`); nothing was done";
        self.fail_with(id, 503, &TRY_LATER, "this zone has no lease of the global service", &seen, expected);
    }

    /// 412, with the version that is there: what a client needs to decide and to try again.
    fn unmet(&mut self, id: ConnId, shape: Shape, step: u16, seen: Option<Version>) {
        let shown = seen.map(shown);
        let there = shown.as_ref().map_or("no such record", |(text, _)| text.as_str());
        let seen = if shape == Shape::Tx { format!("operation {step}: {there}") } else { there.to_owned() };
        let mut fields = vec![];
        if let Some((text, tag)) = shown.as_ref().filter(|_| shape != Shape::Tx) {
            fields.extend([("x-ezone-version", text.as_str()), ("etag", tag.as_str())]);
        }
        let expected = "a record as the condition says; nothing was done";
        self.fail_with(id, 412, &fields, "the condition does not hold", &seen, expected);
    }

    /// A hop says so to the router that sent it; at the first router it is tried again.
    fn not_owner(&mut self, id: ConnId, map_epoch: MapEpoch, owner: Option<shardmap::Zone>) {
        match self.exchange(id).map(|e| e.hop) {
            Some(true) => self.misdirected(id, map_epoch.0, owner),
            Some(false) => self.wrong_zone(id, map_epoch),
            None => {}
        }
    }
}

/// What a request asks for, by its head: path and query.
pub(super) fn target(head: &[u8]) -> &[u8] {
    head.split(|b| *b == b' ').nth(1).unwrap_or_default()
}

fn row(name: &str, made: &Made) -> Value {
    let version = made.version.to_string();
    json!({ name: String::from_utf8_lossy(&made.key), "version": version, "seq": made.seq })
}

/// A version as it is shown, and as an entity tag.
fn shown(version: Version) -> (String, String) {
    let text = version.to_string();
    let tag = format!("\"{text}\"");
    (text, tag)
}
