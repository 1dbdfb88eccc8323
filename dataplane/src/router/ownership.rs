//! `GET /ownership` and `GET /ownership/stream`: which shards this zone may write now, for services and their jobs.
//!
//! ```text
//! {"event":"state","zone":"bj","map_epoch":12,"shards":[{"shard":341,"owner":"bj","owner_epoch":7,"kind":"own","to":null,"writes":true},..]}
//! {"event":"block","shard":341,"owner_epoch":7,"map_epoch":13}     this zone stops: the map says moving, lost, or another owner
//! {"event":"lose","shard":341,"owner_epoch":7,"map_epoch":14}      it has stopped
//! {"event":"gain","shard":341,"owner_epoch":16,"map_epoch":16}     it begins, under a new ownership
//! {"event":"beat","map_epoch":16}                                  after each newer map, and at least every 5 s
//! {"error":".."}                                                   the last line, if the router ends the answer
//! ```
//!
//! The log is asked, not the router's map: it takes maps by itself, and it alone refuses. A core that has readers listens to each log core
//! with one ask that waits there for a change; it tells its readers and then asks again, which says that it has told them.
//!
//! **What is promised, and why it holds.** It concerns what the record store of this zone takes, by whichever router core.
//! - `gain` comes before the first write under that ownership: the log lets none begin until each router core that listens has asked again
//!   (`replog::hearers`), and a core hands its readers' bytes to the kernel before that ask. Two limits: a core that does not ask within 250 ms
//!   is not waited for (`ezone_ownership_untold_total`), and to a reader that has not taken what it was sent before, nothing is handed.
//! - `lose` comes after the last write under that ownership: the map names another owner or none, and the FENCE, behind which the log takes
//!   nothing, is durable, and with it all before it. Only answers may still be on their way. Before a planned move ends, routers have also
//!   confirmed that no request of the shard is in flight, to services neither; a take-over waits for nobody.
//! - No event is missed: a stream begins with the state, and whoever comes again gets that first. A reader that is slow is told the events
//!   between what it knows and what is so now. Each ownership is gained, blocked and lost in this order, each once.
//! - A service with a store of its own goes by `x-ezone-epoch` of its requests: `state` and `beat` name the map of which everything has
//!   been told, and once that is as new, so have been all events that the request could depend on. Routers take maps by themselves
//!   too, so a request may come a moment before.
//!
//! A global service (a shard from 1024 on) is told with its name and what is left of this zone's lease: `"global":"users","lease_ms":2400`; 0: it
//! has none. Without one `writes` is false. A lease that ends and comes again under the same ownership is told as `block` and `gain` when it
//! is seen, which may be half a second late.
//!
//! `writes` is about ownership alone: a row that is in doubt after a take-over is refused all the same (423), and so is what a full volume has
//! no room for. A gain costs the first write of that ownership one round trip on the port while somebody reads, and nothing otherwise.
//!
//! If the log ends or does not answer, so do the streams: until it is back nothing is written, and a new stream says so (`"writes":false`).
//! At an edge, which has no log, the router's map is told; nothing is written there. A zone's router without a log of its own answers 404: it
//! cannot know.

use super::Core;
use super::answer::{TRY_LATER, stamp};
use super::balance::hash;
use super::conn::{ConnId, Phase};
use super::owned::{self, All};
use super::store::Shape;
use crate::http::{Fault, Request, parse_request, slots, write};
use replog::port::{Answer, Ask};
use replog::stand::{May, Stand, Standing};
use shardmap::map::SHARDS_ALL;
use shardmap::{OwnerEpoch, Shard};
use std::sync::Arc;

/// How long a reader hears nothing at most.
const BEAT_MS: u64 = 5000;
/// How long a reader may take one send before the log is told that what follows was told, without it.
const HAND_MS: u64 = 50;
const SILENT: &str = "the zone's log does not answer";
const GONE: &str = "the zone's log cannot be reached";

/// What this core knows of how the zone stands, and whom it tells.
#[derive(Default)]
pub(super) struct Ownership {
    /// One for each log core; without a log one, which the map fills.
    views: Vec<View>,
    readers: Vec<ConnId>,
}

/// One log core.
#[derive(Default)]
struct View {
    /// As it stood when it last answered; `None`: not listened to.
    standing: Option<Arc<Standing>>,
    /// What was left of each lease then, apart: it changes with every answer, and nothing else need be looked at for that.
    leases: Vec<(Shard, u32)>,
    /// When it answered.
    told_ms: u64,
    /// When it was asked for what follows; `None`: it is not.
    asked_ms: Option<u64>,
}

/// One reader.
pub(super) struct Watcher {
    /// It wants the state alone.
    once: bool,
    /// Of the shards that this zone owns.
    own: bool,
    /// What it knows.
    told: Option<All>,
    /// When it last took something, or was first sent something since it had taken all.
    took_ms: u64,
}

impl Core {
    /// Begins to tell one reader.
    pub(super) fn ownership(&mut self, id: ConnId, r: &Request<'_, '_>, once: bool) {
        let watcher = match self.watcher_of(id, r, once) {
            Ok(watcher) => watcher,
            Err(fault) => return self.fail(id, fault.status, fault.error, &fault.seen, fault.expected),
        };
        let late = self.now.ms + self.limits.answer_ms;
        let Some((io, c)) = self.client(id) else { return };
        let Some(e) = &mut c.exchange else { return };
        e.watcher = Some(Box::new(watcher));
        io.deadline = late;
        self.owned.readers.push(id);
        self.listen_when_told();
        self.tell_owned(id);
    }

    fn watcher_of(&mut self, id: ConnId, r: &Request<'_, '_>, once: bool) -> Result<Watcher, Fault> {
        let whole = self.client(id).is_some_and(|(_, c)| c.phase == Phase::Await);
        if r.method != "GET" || !whole || !(r.http11 || once) {
            let seen = format!("{}{}", r.method, if r.http11 { "" } else { " by HTTP/1.0" });
            return Err(Fault {
                status: 405,
                ..Fault::bad("method not allowed here", seen, "GET without a body; of the stream, HTTP/1.1")
            });
        }
        if self.settings.zone.is_some() && self.settings.log_ports.is_empty() {
            let fault = Fault::bad("no record store in this zone", r.path, "log_ports in the router's settings");
            return Err(Fault { status: 404, ..fault });
        }
        let mut own = false;
        let query = r.path.split_once('?').map_or("", |(_, query)| query);
        for part in query.split('&').filter(|p| !p.is_empty()) {
            match part.split_once('=').unwrap_or((part, "")) {
                ("shards", "all") => own = false,
                ("shards", "own") => own = true,
                ("shards", other) => return Err(Fault::bad("illegal shards", other, "all or own")),
                (other, _) => return Err(Fault::bad("unknown parameter", other, "shards")),
            }
        }
        self.prune_readers();
        let count = self.owned.readers.len();
        if count >= self.limits.ownership_max {
            let fault = Fault::bad("too many readers of ownership", count.to_string(), "fewer than ownership_max");
            return Err(Fault { status: 503, ..fault });
        }
        Ok(Watcher { once, own, told: None, took_ms: self.now.ms })
    }

    /// The same, once what was told is on its way to everybody who takes what it is sent.
    fn listen_when_told(&mut self) {
        let now = self.now.ms;
        let mut told = true;
        for id in self.owned.readers.clone() {
            let Some((io, c)) = self.client(id) else { continue };
            let Some(watcher) = c.exchange.as_ref().and_then(|e| e.watcher.as_ref()) else { continue };
            let until = watcher.took_ms + HAND_MS;
            if io.sending && !io.out.is_empty() && now < until {
                told = false;
                io.deadline = io.deadline.min(until);
                self.look_by(until);
            }
        }
        if told {
            self.listen();
        }
    }

    /// Listens to each log core as long as someone reads.
    fn listen(&mut self) {
        if self.settings.log_ports.is_empty() {
            return self.look_at_map();
        }
        self.owned.views.resize_with(self.settings.log_ports.len(), View::default);
        for port in 0..self.owned.views.len() {
            let view = &self.owned.views[port];
            if view.asked_ms.is_some() || self.owned.readers.is_empty() {
                continue;
            }
            let (known, wait_ms) = (view.standing.as_ref().map_or(0, |s| s.revision), self.beat_ms() as u32);
            if !self.ask_of_core(port, Shape::Standing, &Ask::Standing { known, wait_ms }) {
                return self.ownership_lost(GONE);
            }
            self.owned.views[port].asked_ms = Some(self.now.ms);
        }
    }

    /// Says to a log core that nobody is told any more: it waits for no word of it.
    fn listen_no_more(&mut self, port: usize) {
        let known = self.owned.views[port].standing.take().map_or(0, |s| s.revision);
        // If it cannot be said, the connection is gone, or it is waited for in vain, once.
        self.ask_of_core(port, Shape::Farewell, &Ask::Standing { known, wait_ms: 0 });
    }

    /// A log core has answered: tells everybody, then asks again.
    pub(super) fn stands(&mut self, port: usize, answer: Answer) {
        let told_ms = self.now.ms;
        let Some(view) = self.owned.views.get_mut(port) else { return };
        (view.asked_ms, view.told_ms) = (None, told_ms);
        let standing = match answer {
            Answer::Standing(mut standing) => {
                view.leases = take_leases(&mut standing);
                standing
            }
            other => {
                tracing::warn!("port {port}: asked how the zone stands to its shards, it answered {other:?}");
                return self.ownership_lost(SILENT);
            }
        };
        if view.standing.as_ref().is_none_or(|had| **had != standing) {
            view.standing = Some(Arc::new(standing));
        }
        self.tell_all();
        self.prune_readers();
        if self.owned.readers.is_empty() {
            return self.listen_no_more(port);
        }
        self.listen_when_told();
    }

    /// A log core is gone, or answers nonsense: nobody can be told anything.
    pub(super) fn ownership_lost(&mut self, why: &'static str) {
        self.owned.views.iter_mut().for_each(|v| v.standing = None);
        for id in std::mem::take(&mut self.owned.readers) {
            if self.watches(id) {
                self.fail_with(id, 503, &TRY_LATER, why, "no connection", "the log process on its socket");
            }
        }
    }

    /// The connection to a log core is gone, with what was asked there.
    pub(super) fn ownership_port_lost(&mut self, port: usize) {
        if let Some(view) = self.owned.views.get_mut(port) {
            view.asked_ms = None;
            self.ownership_lost(GONE);
        }
    }

    /// Without a log, the map says all that there is to say.
    pub(super) fn look_at_map(&mut self) {
        let Some(map) = self.map.as_ref().filter(|_| self.settings.log_ports.is_empty()) else { return };
        let stand = |shard: u16| {
            let e = map.view(Shard(shard))?;
            let (shard, own_epoch, may) = (Shard(shard), OwnerEpoch(0), May::Nothing);
            let (kind, owner, owner_epoch, to) = (e.kind, e.owner, e.owner_epoch, e.to);
            Some(Stand { shard, kind, owner, owner_epoch, to, may, own_epoch, lease_ms: 0 })
        };
        if self.owned.readers.is_empty() {
            return self.owned.views.clear();
        }
        let map_epoch = map.epoch();
        let known = self.owned.views.first().and_then(|v| v.standing.as_ref()).map(|s| s.map_epoch);
        if known != Some(map_epoch) {
            let stands = (0..SHARDS_ALL as u16).filter_map(stand).collect();
            let standing = Arc::new(Standing { revision: map_epoch.0, map_epoch, stands });
            self.owned.views = vec![View { standing: Some(standing), ..View::default() }];
            self.tell_all();
        }
    }

    fn tell_all(&mut self) {
        for id in self.owned.readers.clone() {
            self.tell_owned(id);
        }
    }

    /// Tells one reader what it does not know yet, if it takes what it is told.
    pub(super) fn tell_owned(&mut self, id: ConnId) {
        let views = self.owned.views.iter().map(|v| v.standing.clone());
        let Some(all) = views.collect::<Option<All>>().filter(|all| !all.is_empty()) else { return };
        let high = self.buffer_max();
        let Some((io, _)) = self.client(id) else { return };
        let room = io.out.len() <= high;
        let Some(watcher) = self.exchange(id).and_then(|e| e.watcher.as_ref()) else { return };
        match &watcher.told {
            None if watcher.once => self.answer_state(id, &all),
            None => self.begin_stream(id, all),
            Some(_) if !room => {}
            Some(old) => {
                let mut lines = owned::between(old, &all);
                if owned::epoch(old) != owned::epoch(&all) {
                    lines.extend(owned::beat(&all));
                }
                self.write_owned(id, &lines, Some(all));
            }
        }
    }

    fn answer_state(&mut self, id: ConnId, all: &All) {
        let own = self.exchange(id).and_then(|e| e.watcher.take()).is_some_and(|w| w.own);
        let body = self.state_of(all, own).to_string();
        let epoch = owned::epoch(all);
        if let Some(e) = self.exchange(id) {
            e.epoch = epoch;
        }
        let tag = format!("\"{epoch}-{:016x}\"", hash(body.as_bytes()));
        let status = if self.has_state(id, &tag) { 304 } else { 200 };
        self.answer(id, status, &[("etag", &tag), ("cache-control", "no-cache")], body.as_bytes());
    }

    /// The state as JSON; leases have run on since the log told of them.
    fn state_of(&self, all: &All, own: bool) -> serde_json::Value {
        let left = |shard: Shard| {
            let of = |v: &View| {
                let (_, ms) = v.leases.iter().find(|(s, _)| *s == shard)?;
                Some(u64::from(*ms).saturating_sub(self.now.ms.saturating_sub(v.told_ms)))
            };
            self.owned.views.iter().find_map(of).unwrap_or(0)
        };
        let name = |shard| self.map.as_ref().and_then(|m| m.whole()?.global_name(shard)).map(str::to_owned);
        owned::state(all, own, &self.settings, left, name)
    }

    /// Does the client have this state already, as its `if-none-match` says?
    fn has_state(&mut self, id: ConnId, tag: &str) -> bool {
        let Some((_, c)) = self.client(id).filter(|(_, c)| c.about.has_some) else { return false };
        let mut room = slots();
        let list = parse_request(&c.head, &mut room).ok().and_then(|r| r.wants.if_none_match);
        let same = |t: &[u8]| t == b"*" || t.strip_prefix(b"W/").unwrap_or(t) == tag.as_bytes();
        list.is_some_and(|list| list.split(|b| *b == b',').map(<[u8]>::trim_ascii).any(same))
    }

    fn begin_stream(&mut self, id: ConnId, all: All) {
        let own = self.exchange(id).and_then(|e| e.watcher.as_ref()).is_some_and(|w| w.own);
        let mut state = self.state_of(&all, own);
        state["event"] = "state".into();
        self.counts.answered(200);
        self.answers(id, 200, None);
        let name = std::mem::take(&mut self.name);
        if let Some((io, c)) = self.client(id) {
            c.about.keep_alive = false;
            if let Some(e) = &mut c.exchange {
                e.answered = true;
            }
            write::status_line(&mut io.out, 200, write::reason(200));
            io.out.extend_from_slice(
                b"content-type: application/x-ndjson\r\ncache-control: no-store\r\ntransfer-encoding: chunked\r\n",
            );
            stamp(&mut io.out, &name, None, owned::epoch(&all).0);
            io.out.extend_from_slice(b"connection: close\r\n\r\n");
        }
        self.name = name;
        self.write_owned(id, format!("{state}\n").as_bytes(), Some(all));
    }

    /// Writes lines to a reader that knows `told` from now on.
    fn write_owned(&mut self, id: ConnId, lines: &[u8], told: Option<All>) {
        let (now, beat_ms) = (self.now.ms, self.beat_ms());
        let Some((io, c)) = self.client(id) else { return };
        let Some(watcher) = c.exchange.as_mut().and_then(|e| e.watcher.as_mut()) else { return };
        if told.is_some() {
            watcher.told = told;
        }
        if lines.is_empty() {
            return;
        }
        if io.out.is_empty() && !io.sending {
            watcher.took_ms = now;
        }
        write::piece(&mut io.out, lines, true);
        io.deadline = now + beat_ms;
        self.look_by(now + beat_ms);
        self.send(id);
    }

    /// It has taken something; if that is enough, it is told what has happened meanwhile.
    pub(super) fn watcher_took(&mut self, id: ConnId, drained: bool) {
        let (now, beat_ms) = (self.now.ms, self.beat_ms());
        let Some((io, c)) = self.client(id) else { return };
        let Some(watcher) = c.exchange.as_mut().and_then(|e| e.watcher.as_mut()) else { return };
        watcher.took_ms = now;
        if drained && watcher.told.is_some() {
            io.deadline = now + beat_ms;
            self.look_by(now + beat_ms);
            self.tell_owned(id);
        }
        self.listen_when_told();
    }

    /// Is it told how the zone stands?
    pub(super) fn watches(&mut self, id: ConnId) -> bool {
        self.exchange(id).is_some_and(|e| e.watcher.is_some())
    }

    /// Its time has come: a beat, or the end of the log's patience or of its own.
    pub(super) fn watcher_due(&mut self, id: ConnId) {
        self.listen();
        let (now, answer_ms, silent) = (self.now.ms, self.limits.answer_ms, self.is_log_silent());
        let Some((io, c)) = self.client(id) else { return };
        let Some(watcher) = c.exchange.as_ref().and_then(|e| e.watcher.as_ref()) else { return };
        let (waits, late_ms) = (io.sending || !io.out.is_empty(), watcher.took_ms + answer_ms);
        let Some(all) = watcher.told.clone() else {
            return self.fail_with(
                id,
                503,
                &TRY_LATER,
                SILENT,
                "no answer in answer_ms_max",
                "an answer of each log core",
            );
        };
        if waits && now >= late_ms {
            self.counts.ownership_cut += 1;
            return self.watcher_ends(id, "the reader is too slow: it has not taken in answer_ms_max what was sent");
        }
        if waits {
            io.deadline = late_ms;
            return self.look_by(late_ms);
        }
        if silent || self.stopping {
            return self.watcher_ends(id, if silent { SILENT } else { "the router ends" });
        }
        self.write_owned(id, &owned::beat(&all), None);
    }

    /// The last line says why.
    pub(super) fn watcher_ends(&mut self, id: ConnId, error: &str) {
        self.detach(id);
        let Some((io, c)) = self.client(id) else { return };
        if c.exchange.as_mut().and_then(|e| e.watcher.take()).is_none() {
            return;
        }
        let line = format!("{}\n", serde_json::json!({ "error": error }));
        write::piece(&mut io.out, line.as_bytes(), true);
        write::last_chunk(&mut io.out, &[]);
        self.finish(id);
    }

    /// How many streams are open.
    pub(super) fn ownership_streams(&self) -> u64 {
        self.owned.readers.iter().filter(|id| self.reads_owned(**id)).count() as u64
    }

    fn prune_readers(&mut self) {
        let mut readers = std::mem::take(&mut self.owned.readers);
        readers.retain(|id| self.reads_owned(*id));
        self.owned.readers = readers;
    }

    fn reads_owned(&self, id: ConnId) -> bool {
        self.client_of(id).and_then(|c| c.exchange.as_ref()).is_some_and(|e| e.watcher.is_some())
    }

    fn is_log_silent(&self) -> bool {
        let patience = self.beat_ms() + self.limits.answer_ms;
        self.owned.views.iter().any(|v| v.asked_ms.is_some_and(|then| self.now.ms >= then + patience))
    }

    fn beat_ms(&self) -> u64 {
        BEAT_MS.min(self.limits.answer_ms / 2).max(1)
    }
}

/// What is left of leases, taken out of what a log core has told.
fn take_leases(standing: &mut Standing) -> Vec<(Shard, u32)> {
    let leased = standing.stands.iter_mut().filter(|s| s.lease_ms > 0);
    leased.map(|s| (s.shard, std::mem::take(&mut s.lease_ms))).collect()
}
