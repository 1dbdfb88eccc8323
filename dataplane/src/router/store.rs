//! The record store of this zone, over the port: what a path means, the asks in flight, and their answers as HTTP.

use super::Core;
use super::answer::TRY_LATER;
use super::conn::{ConnId, Kind, Phase, PortConn, Stage};
use super::want::{Wanted, after};
use super::{Found, Tagged, tx};
use super::{Order, Target};
use crate::http::{Body, Fault, Request};
use bytes::{Bytes, BytesMut};
use replog::commit::{Commit, Condition, Step};
use replog::port::{Answer, Ask, put_ask, take_answer};
use shardmap::{MapEpoch, Shard};
use std::borrow::Cow;

/// The longest key.
pub(super) const KEY_BYTES_MAX: usize = 512;
/// Waiting bytes on one port, beyond which asks are refused.
const PORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Between attempts to reach a port.
const BACKOFF_MS_MIN: u64 = 20;
const BACKOFF_MS_MAX: u64 = 1000;

/// What a path of the record store names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place<'p> {
    /// Under `/records/`.
    Row {
        table: &'p str,
        /// As sent: percent-encoded.
        key: Option<&'p str>,
    },
    /// `/tx`: several rows, which the body names.
    Tx,
    /// `/changes`: what is applied in this zone, whoever owns it.
    Changes,
    /// `/ownership`, and `/ownership/stream`: which shards this zone may write.
    Ownership { once: bool },
}

impl<'p> Place<'p> {
    const RECORDS: &'static str = "/records/";
    const TX: &'static str = "/tx";
    const CHANGES: &'static str = "/changes";
    const OWNERSHIP: &'static str = "/ownership";
    const OWNERSHIP_STREAM: &'static str = "/ownership/stream";

    pub fn of(path: &'p str) -> Option<Place<'p>> {
        let path = path.split('?').next().unwrap_or(path);
        if path == Place::TX {
            return Some(Place::Tx);
        }
        if path == Place::CHANGES {
            return Some(Place::Changes);
        }
        if path == Place::OWNERSHIP || path == Place::OWNERSHIP_STREAM {
            return Some(Place::Ownership { once: path == Place::OWNERSHIP });
        }
        let rest = path.strip_prefix(Place::RECORDS)?;
        Some(match rest.split_once('/') {
            Some((table, key)) => Place::Row { table, key: Some(key) },
            None => Place::Row { table: rest, key: None },
        })
    }

    /// Is this a read of a global service that is answered from the zone's own copy? Unless its owner is asked for: by the client, or by
    /// another router, which has no copy or was asked so.
    pub fn reads_copy(self, r: &Request<'_, '_>, shard: Shard, hop: bool) -> bool {
        let row = matches!(self, Place::Row { key: Some(_), .. }) && matches!(r.method, "GET" | "HEAD");
        row && shard.is_global() && !r.ezone.read_primary && !hop
    }

    /// A service with a longer prefix than this has the path.
    pub fn prefix_len(self) -> usize {
        match self {
            Place::Row { .. } => Place::RECORDS.len(),
            Place::Tx => Place::TX.len(),
            Place::Changes => Place::CHANGES.len(),
            Place::Ownership { once: true } => Place::OWNERSHIP.len(),
            Place::Ownership { once: false } => Place::OWNERSHIP_STREAM.len(),
        }
    }
}

pub(super) use shardmap::names::is_word as is_table;

/// The key in `raw`, percent-decoded; `None`: not a key.
fn decode_key(raw: &str) -> Option<Cow<'_, [u8]>> {
    decode(raw).filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()))
}

/// `raw`, percent-decoded.
pub(super) fn decode(raw: &str) -> Option<Cow<'_, [u8]>> {
    if !raw.contains('%') {
        return Some(Cow::Borrowed(raw.as_bytes()));
    }
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
    Some(Cow::Owned(decoded))
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
    shard: Option<Shard>,
    port: usize,
    shape: Shape,
}

/// What was asked, as far as its answer depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Read,
    /// One row, by its key.
    Write,
    /// One row whose id is minted.
    Mint,
    Tx,
    Changes,
    /// Of the core itself: how this zone stands to its shards.
    Standing,
    /// Of the core itself: that it does not listen any more.
    Farewell,
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
    /// Serves what is at `place`: reads its body if it has to, then asks the log core of its shard.
    pub(super) fn record(&mut self, id: ConnId, r: &Request<'_, '_>, place: Place<'_>, shard: Shard) {
        if self.settings.log_ports.is_empty() {
            return self.fail(id, 404, "no record store in this zone", r.path, "log_ports in the router's settings");
        }
        let asked = match place {
            Place::Row { table, key } => {
                let hop = self.exchange(id).is_some_and(|e| e.hop);
                self.row(id, r, (table, key), shard, r.ezone.read_local || place.reads_copy(r, shard, hop))
            }
            Place::Tx => self.tx(id, r, shard),
            Place::Changes => return self.changes(id, r),
            Place::Ownership { once } => return self.ownership(id, r, once),
        };
        match asked {
            Ok(Some((shape, ask))) => self.ask(id, shard, shape, &ask),
            // It waits for its body, or was answered.
            Ok(None) => {}
            Err(fault) => self.fail(id, fault.status, fault.error, &fault.seen, fault.expected),
        }
    }

    /// One row: what is asked of the log; `None`: not yet, or it was answered.
    fn row(
        &mut self,
        id: ConnId,
        r: &Request<'_, '_>,
        (table, key): (&str, Option<&str>),
        shard: Shard,
        local: bool,
    ) -> Result<Option<(Shape, Ask)>, Fault> {
        if !is_table(table) {
            return Err(Fault::bad("illegal table name", table, "1 to 64 of a-z, 0-9 and _"));
        }
        let key = match key.map(decode_key) {
            Some(None) => return Err(Fault::bad("illegal key", r.path, "1 to 512 bytes after percent-decoding")),
            Some(Some(key)) => Some(Bytes::copy_from_slice(&key)),
            None => None,
        };
        let table = Bytes::copy_from_slice(table.as_bytes());
        let (shape, value) = match (r.method, &key) {
            ("GET" | "HEAD", Some(_)) => (Shape::Read, None),
            ("PUT" | "DELETE", Some(_)) | ("POST", None) if local => return Err(method(r, "GET or HEAD")),
            ("DELETE", Some(_)) => (Shape::Write, None),
            ("PUT", Some(_)) => (Shape::Write, Some(())),
            ("POST", None) => (Shape::Mint, Some(())),
            (_, Some(_)) => return Err(method(r, "GET, HEAD, PUT or DELETE of /records/{table}/{key}")),
            (_, None) => return Err(method(r, "POST to /records/{table}")),
        };
        let value = match value {
            None => None,
            Some(()) => match self.gathered(id, r) {
                Some(value) => Some(value),
                None => return Ok(None),
            },
        };
        let Some(map_epoch) = self.exchange(id).map(|e| e.epoch) else { return Ok(None) };
        if let Some(key) = key.clone().filter(|_| shape == Shape::Read) {
            let ask = match after(&r.wants)? {
                None => Ask::Read { shard, map_epoch, table, key, local },
                Some(after) => {
                    let wait_ms = u32::try_from(self.limits.after_ms).unwrap_or(u32::MAX);
                    Ask::ReadAfter { shard, map_epoch, table, key, local, after, wait_ms }
                }
            };
            return Ok(Some((shape, ask)));
        }
        let wanted = Wanted::of(r, value.as_deref().unwrap_or_default())?;
        if shape == Shape::Mint && wanted.only != Condition::Any {
            return Err(Fault::bad("a condition on a row that is new", "POST", "PUT of /records/{table}/{key}"));
        }
        if wanted.is_plain() {
            return Ok(Some((shape, Ask::Write { shard, map_epoch, table, key, value })));
        }
        let steps = vec![Step { table, key, value, only: wanted.only }];
        Ok(Some((shape, self.commit(id, shard, steps, wanted))))
    }

    /// Several rows.
    fn tx(&mut self, id: ConnId, r: &Request<'_, '_>, shard: Shard) -> Result<Option<(Shape, Ask)>, Fault> {
        if r.method != "POST" || r.ezone.read_local {
            return Err(method(r, "POST to /tx"));
        }
        let Some(body) = self.gathered(id, r) else { return Ok(None) };
        let wanted = Wanted::of(r, &body)?;
        if wanted.only != Condition::Any {
            return Err(Fault::bad("a condition on a whole transaction", "POST /tx", "if_match in its operations"));
        }
        let steps = tx::steps(&body)?;
        for (at, step) in steps.iter().enumerate() {
            let key = step.key.as_deref();
            // A key of a global service may look like an id and says nothing.
            let by_key = self.shard_of_key(key, self.now.wall_ms).map(|f| f.shard).filter(|_| !shard.is_global());
            if let Some(other) = by_key.filter(|s| *s != shard) {
                let seen = format!("shard {shard}; operation {at}: shard {other}");
                return Err(Fault::bad("operations of several shards", seen, "one shard in a transaction"));
            }
        }
        Ok(Some((Shape::Tx, self.commit(id, shard, steps, wanted))))
    }

    fn commit(&mut self, id: ConnId, shard: Shard, steps: Vec<Step>, wanted: Wanted) -> Ask {
        let map_epoch = self.exchange(id).map_or(MapEpoch(0), |e| e.epoch);
        let remote_ms = wanted.remote.then_some(u32::try_from(self.limits.remote_ack_ms).unwrap_or(u32::MAX - 1));
        Ask::Commit(Commit { shard, map_epoch, steps, once: wanted.once, remote_ms })
    }

    /// Where a transaction without a tag belongs: by the first of its keys that is an id. `None`: it waits for its body, or was answered.
    pub(super) fn shard_of_keys(&mut self, id: ConnId, r: &Request<'_, '_>, wall_ms: u64) -> Option<Option<Found>> {
        if r.method != "POST" {
            let fault = method(r, "POST to /tx");
            self.fail(id, fault.status, fault.error, &fault.seen, fault.expected);
            return None;
        }
        let body = self.gathered(id, r)?;
        match tx::steps(&body) {
            Ok(steps) => {
                let by_key = steps.iter().find_map(|s| self.shard_of_key(s.key.as_deref(), wall_ms));
                Some(by_key.or_else(|| self.map.as_ref()?.route(None, None, false, wall_ms)))
            }
            Err(fault) => {
                self.fail(id, fault.status, fault.error, &fault.seen, fault.expected);
                None
            }
        }
    }

    /// The shard that a key says itself, if it is an id.
    fn shard_of_key(&self, key: Option<&[u8]>, wall_ms: u64) -> Option<Found> {
        self.map.as_ref()?.route(None, Some(key?), false, wall_ms).filter(|f| f.by == Tagged::Order)
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

    fn ask(&mut self, id: ConnId, shard: Shard, shape: Shape, ask: &Ask) {
        let ports = self.settings.log_ports.len();
        let port = (u32::from(shard.0) % self.settings.streams.max(1)) as usize % ports;
        self.ask_at(id, Some(shard), port, shape, ask);
    }

    /// Asks one log core.
    pub(super) fn ask_at(&mut self, id: ConnId, shard: Option<Shard>, port: usize, shape: Shape, ask: &Ask) {
        let Some(conn) = self.port(port) else {
            let expected = "the log process on its socket; nothing was done";
            return self.fail_with(id, 503, &TRY_LATER, "the zone's log cannot be reached", "no connection", expected);
        };
        let room = self.conn(conn).is_some_and(|c| c.io.out.len() < PORT_BYTES_MAX);
        let pending = Pending { client: Some(id), shard, port, shape };
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
        self.put(conn, corr, ask);
        self.depart(shard);
        self.wait_begins(id);
        self.send(conn);
    }

    /// Asks one log core for this core itself; false: it cannot be asked now.
    pub(super) fn ask_of_core(&mut self, port: usize, shape: Shape, ask: &Ask) -> bool {
        let Some(conn) = self.port(port) else { return false };
        let room = self.conn(conn).is_some_and(|c| c.io.out.len() < PORT_BYTES_MAX);
        let pending = Pending { client: None, shard: None, port, shape };
        let Some(corr) = room.then(|| self.ports.put(pending, self.limits.asks_max)).flatten() else { return false };
        self.put(conn, corr, ask);
        self.depart(None);
        // It says that everybody was told: what carries it follows what was ordered for them.
        self.orders.retain(|o| *o != Order::Send(conn));
        if let Some(c) = self.conn(conn) {
            c.io.ordered = false;
        }
        self.send(conn);
        true
    }

    fn put(&mut self, conn: ConnId, corr: u64, ask: &Ask) {
        let mut scratch = std::mem::take(&mut self.ports.scratch);
        scratch.clear();
        put_ask(&mut scratch, corr, ask);
        if let Some(c) = self.conn(conn) {
            c.io.out.extend_from_slice(&scratch);
        }
        self.ports.scratch = scratch;
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
            self.arrive(pending.shard);
            let Some(client) = pending.client.filter(|_| self.stands_for(pending.client, corr)) else { continue };
            self.wait_ends(client);
            if pending.shape == Shape::Changes {
                self.fail(
                    client,
                    503,
                    "the zone's log cannot be reached",
                    "no connection",
                    "the log process on its socket",
                );
                continue;
            }
            let write = pending.shape != Shape::Read;
            self.lost_ask(client, write && was_up, write);
        }
        self.ownership_port_lost(port);
    }

    fn stands_for(&mut self, client: Option<ConnId>, corr: u64) -> bool {
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
        self.arrive(pending.shard);
        match pending.shape {
            Shape::Standing => return self.stands(pending.port, answer),
            Shape::Farewell => return,
            Shape::Read | Shape::Write | Shape::Mint | Shape::Tx | Shape::Changes => {}
        }
        let Some(id) = pending.client.filter(|_| self.stands_for(pending.client, corr)) else { return };
        self.wait_ends(id);
        if let Some(e) = self.exchange(id) {
            e.stage = Stage::New;
        }
        match pending.shape {
            Shape::Changes => self.fed(id, answer),
            shape @ (Shape::Read | Shape::Write | Shape::Mint | Shape::Tx | Shape::Standing | Shape::Farewell) => {
                self.tell(id, shape, answer);
            }
        }
    }
}

fn method(r: &Request<'_, '_>, expected: &'static str) -> Fault {
    Fault { status: 405, ..Fault::bad("method not allowed here", r.method, expected) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_table_and_a_key() {
        let row = |table, key| Some(Place::Row { table, key });
        assert_eq!(Place::of("/records/orders/17?x=1"), row("orders", Some("17")));
        assert_eq!(Place::of("/records/orders"), row("orders", None));
        assert_eq!(Place::of("/records/a/b/c"), row("a", Some("b/c")));
        assert_eq!((Place::of("/tx"), Place::of("/tx?a=/b")), (Some(Place::Tx), Some(Place::Tx)));
        assert_eq!(Place::of("/changes?table=t"), Some(Place::Changes));
        assert_eq!(Place::of("/ownership?shards=own"), Some(Place::Ownership { once: true }));
        assert_eq!(Place::of("/ownership/stream"), Some(Place::Ownership { once: false }));
        for none in ["/record", "/changes/", "/ownership/", "/ownership/x", "/tx/", "/txs", "/", "/a/tx"] {
            assert_eq!(Place::of(none), None);
        }
        assert!(is_table("a_1") && !is_table("A") && !is_table("") && !is_table(".answers"));
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
