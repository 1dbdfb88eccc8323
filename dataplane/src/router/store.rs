//! The record store of this zone, over the port: what a path means, the asks in flight, and their answers as HTTP.

use super::Core;
use super::answer::TRY_LATER;
use super::conn::{ConnId, Kind, Phase, PortConn, Stage};
use super::{Order, Target};
use crate::http::{Body, Request};
use bytes::{Bytes, BytesMut};
use replog::Version;
use replog::port::{Answer, Ask, Refused, put_ask, take_answer};
use serde_json::json;
use shardmap::{MapEpoch, Shard};
use std::borrow::Cow;

/// The longest key.
const KEY_BYTES_MAX: usize = 512;
/// Waiting bytes on one port, beyond which asks are refused.
const PORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Between attempts to reach a port.
const BACKOFF_MS_MIN: u64 = 20;
const BACKOFF_MS_MAX: u64 = 1000;

/// What a path under `/records/` names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place<'p> {
    pub table: &'p str,
    /// As sent: percent-encoded.
    pub key: Option<&'p str>,
}

impl<'p> Place<'p> {
    pub const PREFIX: &'static str = "/records/";

    pub fn of(path: &'p str) -> Option<Place<'p>> {
        let rest = path.strip_prefix(Place::PREFIX)?;
        let rest = rest.split('?').next().unwrap_or(rest);
        Some(match rest.split_once('/') {
            Some((table, key)) => Place { table, key: Some(key) },
            None => Place { table: rest, key: None },
        })
    }

    fn table_is_legal(&self) -> bool {
        (1..=64).contains(&self.table.len())
            && self.table.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    }
}

/// The key in `raw`, percent-decoded; `None`: not a key.
fn decode_key(raw: &str) -> Option<Cow<'_, [u8]>> {
    let mut out = Cow::Borrowed(raw.as_bytes());
    if raw.contains('%') {
        let (bytes, mut decoded, mut at) = (raw.as_bytes(), Vec::with_capacity(raw.len()), 0);
        while let Some(&b) = bytes.get(at) {
            if b == b'%' {
                let hex = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
                decoded.push(u8::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+'))?);
                at += 3;
            } else {
                decoded.push(b);
                at += 1;
            }
        }
        out = Cow::Owned(decoded);
    }
    (1..=KEY_BYTES_MAX).contains(&out.len()).then_some(out)
}

/// The ports of this node's log cores, and what was asked there.
pub(super) struct Ports {
    list: Vec<Port>,
    asks: Vec<Slot>,
    free: Vec<u32>,
    scratch: BytesMut,
}

#[derive(Default)]
struct Port {
    conn: Option<ConnId>,
    up: bool,
    backoff_ms: u64,
    retry_at_ms: u64,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    ask: Option<Pending>,
}

struct Pending {
    /// `None`: the client has gone; the shard's request is in flight all the same.
    client: Option<ConnId>,
    shard: Shard,
    port: usize,
    write: bool,
    minted: bool,
}

impl Ports {
    pub fn new(ports: usize) -> Ports {
        let list = (0..ports).map(|_| Port::default()).collect();
        Ports { list, asks: Vec::new(), free: Vec::new(), scratch: BytesMut::new() }
    }

    /// Nobody waits for this answer any more.
    pub fn forget(&mut self, corr: u64) {
        let Some(slot) = self.asks.get_mut(corr as u32 as usize) else { return };
        if slot.generation == (corr >> 32) as u32
            && let Some(pending) = &mut slot.ask
        {
            pending.client = None;
        }
    }

    fn put(&mut self, pending: Pending, asks_max: usize) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.asks.len() < asks_max => {
                self.asks.push(Slot::default());
                self.asks.len() as u32 - 1
            }
            None => return None,
        };
        let slot = &mut self.asks[index as usize];
        slot.ask = Some(pending);
        Some(u64::from(slot.generation) << 32 | u64::from(index))
    }

    fn take(&mut self, corr: u64) -> Option<Pending> {
        let index = corr as u32;
        let slot = self.asks.get_mut(index as usize).filter(|s| s.generation == (corr >> 32) as u32)?;
        let pending = slot.ask.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(pending)
    }

    /// How many asks are in flight.
    pub fn asked(&self) -> usize {
        self.asks.iter().filter(|s| s.ask.is_some()).count()
    }

    /// Is `corr` in flight for `client`?
    pub fn asked_by(&self, corr: u64, client: ConnId) -> bool {
        let slot = self.asks.get(corr as u32 as usize).filter(|s| s.generation == (corr >> 32) as u32);
        slot.and_then(|s| s.ask.as_ref()).is_some_and(|p| p.client == Some(client))
    }

    /// Every ask that was made on `port`.
    fn of_port(&self, port: usize) -> Vec<u64> {
        let on = |s: &Slot| s.ask.as_ref().is_some_and(|p| p.port == port);
        let all = self.asks.iter().enumerate().filter(|(_, s)| on(s));
        all.map(|(i, s)| u64::from(s.generation) << 32 | i as u64).collect()
    }
}

impl Core {
    /// Serves a record: reads its body if it has to, then asks the log core of its shard.
    pub(super) fn record(&mut self, id: ConnId, r: &Request<'_, '_>, place: Place<'_>, shard: Shard) {
        if self.settings.log_ports.is_empty() {
            return self.fail(id, 404, "no record store in this zone", r.path, "log_ports in the router's settings");
        }
        if !place.table_is_legal() {
            return self.fail(id, 400, "illegal table name", place.table, "1 to 64 of a-z, 0-9 and _");
        }
        let key = match place.key.map(decode_key) {
            Some(None) => return self.fail(id, 400, "illegal key", r.path, "1 to 512 bytes after percent-decoding"),
            Some(Some(key)) => Some(Bytes::copy_from_slice(&key)),
            None => None,
        };
        let table = Bytes::copy_from_slice(place.table.as_bytes());
        let Some(e) = self.exchange(id) else { return };
        let map_epoch = e.epoch;
        let ask = match (r.method, key) {
            ("GET" | "HEAD", Some(key)) => Ask::Read { shard, map_epoch, table, key, local: r.ezone.read_local },
            ("DELETE", Some(_)) if r.ezone.read_local => return self.wrong_method(id, r.method, "GET or HEAD"),
            ("DELETE", key @ Some(_)) => Ask::Write { shard, map_epoch, table, key, value: None },
            ("PUT", Some(_)) | ("POST", None) if r.ezone.read_local => return self.wrong_method(id, r.method, "GET"),
            ("PUT", key @ Some(_)) | ("POST", key @ None) => {
                let Some(value) = self.gathered(id, r) else { return };
                Ask::Write { shard, map_epoch, table, key, value: Some(value) }
            }
            (_, Some(_)) => {
                return self.wrong_method(id, r.method, "GET, HEAD, PUT or DELETE of /records/{table}/{key}");
            }
            (_, None) => return self.wrong_method(id, r.method, "POST to /records/{table}"),
        };
        self.ask(id, shard, &ask);
    }

    fn wrong_method(&mut self, id: ConnId, seen: &str, expected: &str) {
        self.fail(id, 405, "method not allowed here", seen, expected);
    }

    /// The whole body, or `None` while it is being read (or too long, which was answered).
    fn gathered(&mut self, id: ConnId, r: &Request<'_, '_>) -> Option<Bytes> {
        let max = self.limits.record_bytes_max;
        if let Body::Length(n) = r.body
            && n > max as u64
        {
            self.fail(id, 413, "record too large", &format!("{n} bytes"), &format!("at most {max} bytes"));
            return None;
        }
        let late = self.now.ms + self.limits.read_ms;
        let (io, c) = self.client(id)?;
        if c.phase == Phase::Body {
            io.deadline = late;
            c.exchange.as_mut()?.stage = Stage::Gather;
            return None;
        }
        Some(Bytes::copy_from_slice(&c.kept))
    }

    fn ask(&mut self, id: ConnId, shard: Shard, ask: &Ask) {
        let ports = self.settings.log_ports.len();
        let port = (u32::from(shard.0) % self.settings.streams.max(1)) as usize % ports;
        let (write, minted) = (matches!(ask, Ask::Write { .. }), matches!(ask, Ask::Write { key: None, .. }));
        let Some(conn) = self.port(port) else {
            let expected = "the log process on its socket; nothing was done";
            return self.fail_with(id, 503, &TRY_LATER, "the zone's log cannot be reached", "no connection", expected);
        };
        let room = self.conn(conn).is_some_and(|c| c.io.out.len() < PORT_BYTES_MAX);
        let pending = Pending { client: Some(id), shard, port, write, minted };
        let Some(corr) = room.then(|| self.ports.put(pending, self.limits.asks_max)).flatten() else {
            return self.fail_with(
                id,
                503,
                &TRY_LATER,
                "too many requests wait for the log",
                "",
                "fewer; nothing was done",
            );
        };
        let patience = self.now.ms + self.limits.answer_ms;
        if let Some((io, c)) = self.client(id) {
            io.deadline = patience;
            if let Some(e) = &mut c.exchange {
                e.stage = Stage::Port(corr);
            }
        }
        let mut scratch = std::mem::take(&mut self.ports.scratch);
        scratch.clear();
        put_ask(&mut scratch, corr, ask);
        if let Some(c) = self.conn(conn) {
            c.io.out.extend_from_slice(&scratch);
        }
        self.ports.scratch = scratch;
        self.depart(Some(shard));
        self.wait_begins(id);
        self.send(conn);
    }

    /// The connection to `port`, made if need be; `None`: it is too early to try again.
    fn port(&mut self, port: usize) -> Option<ConnId> {
        if let Some(conn) = self.ports.list[port].conn {
            return Some(conn);
        }
        if self.now.ms < self.ports.list[port].retry_at_ms {
            return None;
        }
        let conn = self.add(Kind::Port(PortConn { port, input: BytesMut::new() }))?;
        let deadline = self.now.ms + self.limits.connect_ms;
        self.conn(conn)?.io.deadline = deadline;
        self.ports.list[port].conn = Some(conn);
        self.orders.push_back(Order::Connect(conn, Target::Port(port)));
        Some(conn)
    }

    pub(super) fn port_up(&mut self, port: usize) {
        let port = &mut self.ports.list[port];
        (port.up, port.backoff_ms) = (true, 0);
    }

    /// The connection to a port is gone: what was asked there is unknown if it was a write that may have been sent, and read
    /// again if it was a read.
    pub(super) fn port_lost(&mut self, conn: ConnId, port: usize) {
        self.close(conn);
        let p = &mut self.ports.list[port];
        if p.conn != Some(conn) {
            return;
        }
        let was_up = std::mem::replace(&mut p.up, false);
        p.conn = None;
        p.backoff_ms = if was_up { 0 } else { (p.backoff_ms * 2).clamp(BACKOFF_MS_MIN, BACKOFF_MS_MAX) };
        p.retry_at_ms = self.now.ms + p.backoff_ms;
        for corr in self.ports.of_port(port) {
            let Some(pending) = self.ports.take(corr) else { continue };
            self.arrive(Some(pending.shard));
            let Some(client) = pending.client.filter(|_| self.stands(pending.client, corr)) else { continue };
            self.wait_ends(client);
            self.lost_ask(client, pending.write && was_up, pending.write);
        }
    }

    fn stands(&mut self, client: Option<ConnId>, corr: u64) -> bool {
        client.is_some_and(|c| self.stands_at(c, Stage::Port(corr)))
    }

    fn lost_ask(&mut self, client: ConnId, unknown: bool, write: bool) {
        let Some(e) = self.exchange(client) else { return };
        e.stage = Stage::New;
        if !write && e.retries_lost == 0 {
            e.retries_lost = 1;
            self.counts.retried_lost += 1;
            return self.again(client);
        }
        if unknown {
            let fields = [("x-ezone-outcome", "unknown"), TRY_LATER[0]];
            let error = "unknown: the write may or may not have happened";
            return self.fail_with(client, 503, &fields, error, "the log's connection ended", "an answer of the log");
        }
        let expected = "the log process on its socket; nothing was done";
        self.fail_with(client, 503, &TRY_LATER, "the zone's log cannot be reached", "no connection", expected);
    }

    /// Answers have come.
    pub(super) fn port_bytes(&mut self, conn: ConnId) {
        let Some(Kind::Port(p)) = self.conn(conn).map(|c| &mut c.kind) else { return };
        let (port, mut input) = (p.port, std::mem::take(&mut p.input));
        loop {
            match take_answer(&mut input) {
                Ok(Some((corr, answer))) => self.answered(corr, answer),
                Ok(None) => break,
                Err(malformed) => {
                    tracing::error!("port {port}: {malformed}; the connection is made again");
                    return self.port_lost(conn, port);
                }
            }
        }
        if let Some(Kind::Port(p)) = self.conn(conn).map(|c| &mut c.kind) {
            p.input = input;
        }
    }

    fn answered(&mut self, corr: u64, answer: Answer) {
        let Some(pending) = self.ports.take(corr) else { return };
        self.arrive(Some(pending.shard));
        let Some(id) = pending.client.filter(|_| self.stands(pending.client, corr)) else { return };
        self.wait_ends(id);
        if let Some(e) = self.exchange(id) {
            e.stage = Stage::New;
        }
        match answer {
            Answer::Written { key, version, seq } => self.written(id, pending.minted, &key, version, seq),
            Answer::Row { version, value } => self.answer(id, 200, &[("x-ezone-version", &shown(version))], &value),
            Answer::Absent => self.fail(id, 404, "no such record", "", ""),
            Answer::Refused(why) => self.refused(id, why),
        }
    }

    fn written(&mut self, id: ConnId, minted: bool, key: &Bytes, version: Version, seq: u64) {
        let (key, version) = (String::from_utf8_lossy(key), shown(version));
        if !minted {
            let body = json!({ "key": key, "version": version, "seq": seq }).to_string();
            return self.answer(id, 200, &[("x-ezone-version", &version)], body.as_bytes());
        }
        let body = json!({ "id": key, "version": version, "seq": seq }).to_string();
        let Some((_, c)) = self.client(id) else { return };
        let path = c.head.split(|b| *b == b' ').nth(1).unwrap_or_default();
        let path = path.split(|b| *b == b'?').next().unwrap_or_default();
        let location = format!("{}/{key}", String::from_utf8_lossy(path));
        let fields = [("x-ezone-version", version.as_str()), ("location", location.as_str())];
        self.answer(id, 201, &fields, body.as_bytes());
    }

    fn refused(&mut self, id: ConnId, why: Refused) {
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
        }
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

/// `owner epoch.hlc.zone.stream`.
fn shown(v: Version) -> String {
    format!("{}.{}.{}.{}", v.owner_epoch, v.hlc.0, v.zone, v.stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_table_and_a_key() {
        let place = |path| Place::of(path).map(|p| (p.table, p.key));
        assert_eq!(place("/records/orders/17?x=1"), Some(("orders", Some("17"))));
        assert_eq!(place("/records/orders"), Some(("orders", None)));
        assert_eq!(place("/records/a/b/c"), Some(("a", Some("b/c"))));
        assert_eq!(place("/record"), None);
        assert!(Place { table: "a_1", key: None }.table_is_legal());
        assert!(!Place { table: "A", key: None }.table_is_legal() && !Place { table: "", key: None }.table_is_legal());
    }

    #[test]
    fn a_key_is_percent_decoded_or_refused() {
        let key = |raw: &str| decode_key(raw).map(|k| k.into_owned());
        assert_eq!(key("a%20b%2f"), Some(b"a b/".to_vec()));
        assert_eq!(key("plain"), Some(b"plain".to_vec()));
        for bad in ["", "%", "%1", "%+1", "%zz", &"k".repeat(513)] {
            assert_eq!(key(bad), None, "{bad:?}");
        }
        assert!(key(&"%41".repeat(512)).is_some());
    }
}
