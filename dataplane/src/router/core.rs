//! The tables of one router core, and the calls of its driver: what happened goes in, orders come out.

use super::access::{Batch, Sampler};
use super::admit::ShardBuckets;
use super::cluster::Destinations;
use super::conn::{Client, Conn, ConnId, Io, Kind, UpPhase, Upstream};
use super::figures::Figures;
use super::hold::Holds;
use super::ownership::Ownership;
use super::store::Ports;
use super::{Counts, Limits, Routes, Settings};
use crate::tls::{Reason, TlsId};
use shardmap::Shard;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

/// Deadlines are looked at no more often than this, and met by no less.
const SWEEP_MS: u64 = 50;

/// Buffers above this size are given back to the allocator when they are empty.
const BUFFER_KEPT_BYTES: usize = 64 * 1024;

/// The time, as an argument.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Now {
    /// Milliseconds of a clock that never steps.
    pub ms: u64,
    /// Microseconds of the same clock, never 0 once it runs: for figures only, read once for each batch of completions.
    pub us: u64,
    /// Milliseconds since 1970: only to judge whether an id is plausible.
    pub wall_ms: u64,
}

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Anyone.
    Client,
    /// A router of another zone, or an edge: trusted.
    Peer,
    /// Anyone, by TLS.
    TlsClient,
    /// A router of another zone, or an edge, that proves it by its certificate.
    TlsPeer,
}

impl Side {
    /// Is what they say of themselves believed?
    pub fn is_peer(self) -> bool {
        match self {
            Side::Client | Side::TlsClient => false,
            Side::Peer | Side::TlsPeer => true,
        }
    }

    /// Do they have to speak TLS?
    pub fn is_tls(self) -> bool {
        match self {
            Side::Client | Side::Peer => false,
            Side::TlsClient | Side::TlsPeer => true,
        }
    }
}

/// Where to connect to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// An upstream or a peer.
    Tcp(SocketAddr),
    /// The same, by TLS of this kind.
    Tls(SocketAddr, TlsId),
    /// The log port with this index in `Settings::log_ports`.
    Port(usize),
}

/// What the driver has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Connect, then `on_connected` or `on_failed`.
    Connect(ConnId, Target),
    /// `take_out`, send all of it, then `on_sent`.
    Send(ConnId),
    /// Stop reading.
    Pause(ConnId),
    /// Read again.
    Resume(ConnId),
    /// Close the sending half.
    Shutdown(ConnId),
    /// Close; when no operation of it is under way, `on_closed`.
    Close(ConnId),
    /// Likewise, and so that the other side sees it break off (RST).
    Reset(ConnId),
}

/// One router core.
pub struct Core {
    pub(super) settings: Arc<Settings>,
    pub(super) limits: Limits,
    pub(super) name: String,
    pub(super) conns: Vec<Conn>,
    free: Vec<u32>,
    pub(super) orders: VecDeque<Order>,
    ready: VecDeque<ConnId>,
    pub(super) to: Destinations,
    pub(super) shard_buckets: ShardBuckets,
    pub(super) ports: Ports,
    pub(super) holds: Holds,
    pub(super) owned: Ownership,
    pub(super) map: Option<Arc<dyn Routes>>,
    unsettled: Vec<Shard>,
    in_flight: Vec<u32>,
    pub(super) counts: Counts,
    pub(super) figures: Figures,
    pub(super) access: Batch,
    pub(super) sampler: Sampler,
    /// Bytes of all buffers.
    pub(super) memory_bytes: usize,
    /// Where the names of traces come from.
    pub(super) seed: u64,
    pub(super) now: Now,
    next_sweep_ms: u64,
    pub(super) stopping: bool,
    /// Handshakes of clients that are under way.
    pub(super) handshaking: usize,
}

impl Core {
    /// A core without a map: until one arrives, requests that need it are held.
    pub fn new(settings: Arc<Settings>) -> Core {
        Core::numbered(0, 1, settings)
    }

    /// Core `number` of several, which chooses by the random numbers of `seed`.
    pub fn numbered(number: usize, seed: u64, settings: Arc<Settings>) -> Core {
        let mut to = Destinations::new(number, settings.cores, seed);
        to.renew(&settings, 0);
        let mut shard_buckets = ShardBuckets::default();
        shard_buckets.renew(&settings.shard_rates);
        let figures = Figures::new(&settings);
        to.place(&figures);
        Core {
            limits: settings.limits,
            name: settings.name(settings.zone).to_string(),
            conns: Vec::new(),
            free: Vec::new(),
            orders: VecDeque::new(),
            ready: VecDeque::new(),
            to,
            shard_buckets,
            ports: Ports::new(settings.log_ports.len()),
            holds: Holds::default(),
            owned: Ownership::default(),
            map: None,
            unsettled: Vec::new(),
            in_flight: vec![0; 1 << 16],
            counts: Counts::default(),
            figures,
            access: Batch::default(),
            sampler: Sampler::default(),
            memory_bytes: 0,
            seed: 0,
            now: Now::default(),
            next_sweep_ms: 0,
            stopping: false,
            handshaking: 0,
            settings,
        }
    }

    /// Random bits from outside, so that no two cores name their traces alike.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    // ---- what happened --------------------------------------------------------------------------------------------

    /// Someone connected; `None`: there is no room, close it.
    pub fn on_accept(&mut self, side: Side, now: Now) -> Option<ConnId> {
        self.now = now;
        let full = self.counts.clients >= self.limits.clients_max as u64 || self.is_short();
        let new = || Kind::Client(Box::new(Client::new(side.is_peer())));
        let Some(id) = Some(()).filter(|()| !full).and_then(|()| self.add(new())) else {
            self.counts.refused += 1;
            return None;
        };
        let io = &mut self.conns[id.index as usize].io;
        io.open = true;
        io.deadline = now.ms + self.limits.idle_ms;
        self.counts.accepted += 1;
        self.counts.clients += 1;
        if self.settings.proxy_protocol && side == Side::Client {
            self.expect_proxy(id);
        }
        if self.stopping {
            self.last_chance(id);
        }
        Some(id)
    }

    /// A connection that was ordered is made.
    pub fn on_connected(&mut self, id: ConnId, now: Now) {
        self.now = now;
        let Some(conn) = self.conn(id) else { return };
        conn.io.open = true;
        conn.io.deadline = u64::MAX;
        match &mut conn.kind {
            Kind::Upstream(up) => {
                up.phase = UpPhase::Head;
                let pool = up.target;
                let late = self.try_deadline(pool);
                if let Some((io, _)) = self.upstream(id) {
                    io.deadline = late;
                }
            }
            Kind::Port(port) => {
                let port = port.port;
                self.port_up(port);
            }
            Kind::Client(_) | Kind::Free => {}
        }
        self.send(id);
    }

    /// A connection that was ordered could not be made.
    pub fn on_failed(&mut self, id: ConnId, now: Now) {
        self.now = now;
        match self.conn(id).map(|c| &c.kind) {
            Some(Kind::Upstream(_)) => self.upstream_lost(id),
            Some(Kind::Port(p)) => {
                let port = p.port;
                self.port_lost(id, port);
            }
            Some(Kind::Client(_) | Kind::Free) | None => {}
        }
        self.settle();
    }

    /// Bytes arrived.
    pub fn on_bytes(&mut self, id: ConnId, bytes: &[u8], now: Now) {
        self.now = now;
        self.read(id, bytes);
        self.settle();
    }

    /// The other side has ended its half, or (`reset`) the connection broke.
    pub fn on_end(&mut self, id: ConnId, reset: bool, now: Now) {
        self.now = now;
        let Some(conn) = self.conn(id) else { return };
        conn.io.eof = true;
        if reset {
            conn.io.stash.clear();
        }
        match &conn.kind {
            Kind::Client(_) if reset => self.client_gone(id),
            Kind::Client(_) | Kind::Upstream(_) if !conn.io.stash.is_empty() => self.ready(id),
            Kind::Client(_) => self.client_end(id),
            Kind::Upstream(_) => self.upstream_end(id, reset),
            Kind::Port(p) => {
                let port = p.port;
                self.port_lost(id, port);
            }
            Kind::Free => {}
        }
        self.settle();
    }

    /// What the driver is to send, after an `Order::Send`.
    pub fn take_out(&mut self, id: ConnId) -> Vec<u8> {
        let Some(conn) = self.conn(id) else { return Vec::new() };
        conn.io.ordered = false;
        conn.io.sending = true;
        conn.io.taken = true;
        conn.io.taken_bytes += conn.io.out.len() as u64;
        conn.io.flying = conn.io.out.capacity();
        let spare = std::mem::take(&mut conn.io.spare);
        std::mem::replace(&mut conn.io.out, spare)
    }

    /// What was taken is sent; the buffer comes back. Not `ok`: it could not be; `on_end` follows when all is read.
    pub fn on_sent(&mut self, id: ConnId, mut buffer: Vec<u8>, ok: bool, now: Now) {
        self.now = now;
        let low = self.limits.buffer_bytes_max / 4;
        let Some(conn) = self.conn(id) else { return };
        (conn.io.sending, conn.io.flying) = (false, 0);
        if buffer.capacity() <= BUFFER_KEPT_BYTES {
            buffer.clear();
            conn.io.spare = buffer;
        }
        self.weigh(id);
        let Some(conn) = self.conn(id) else { return };
        if !ok {
            conn.io.open = false;
            conn.io.out.clear();
            if matches!(conn.kind, Kind::Client(_)) {
                // Nobody is left to answer. Its end may have been read before, or told to this send: nothing else would tell.
                self.client_gone(id);
            } else {
                // An answer may have come before: reading it tells the end. A tunnel's may have been read before.
                self.tunnel_close(id);
            }
            return self.settle();
        }
        let (drained, finishing) = (conn.io.out.len() <= low, conn.io.finishing && conn.io.out.is_empty());
        let other = match &conn.kind {
            Kind::Client(c) => c.exchange.as_ref().and_then(|e| match e.stage {
                super::conn::Stage::Upstream(up) => Some(up),
                _ => None,
            }),
            Kind::Upstream(up) => up.client,
            Kind::Port(_) | Kind::Free => None,
        };
        let own_stash = !conn.io.stash.is_empty();
        match &conn.kind {
            Kind::Client(c) if !c.dones.is_empty() => self.sent_answers(id),
            Kind::Upstream(_) => other.into_iter().for_each(|client| self.wait_begins(client)),
            Kind::Client(_) | Kind::Port(_) | Kind::Free => {}
        }
        if finishing {
            self.shut(id);
        } else {
            self.send(id);
        }
        if drained && own_stash {
            self.ready(id);
        }
        if drained && !finishing && self.rests_between_changes(id) {
            self.feed_on(id);
        }
        if !finishing {
            self.watcher_took(id, drained);
        }
        if let Some(other) = other.filter(|_| drained)
            && self.conn(other).is_some_and(|c| !c.io.stash.is_empty())
        {
            self.ready(other);
        }
        self.settle();
    }

    /// Nothing of the connection is left in the driver: its place may be used again.
    pub fn on_closed(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id.index as usize) else { return };
        if conn.generation != id.generation || matches!(conn.kind, Kind::Free) {
            return;
        }
        match &conn.kind {
            Kind::Upstream(up) => {
                let pool = up.target;
                self.to.pools[pool].open -= 1;
                self.to.shows_connections(pool);
                self.to.free(self.to.pools[pool].cluster);
            }
            Kind::Client(_) => {
                self.counts.clients -= 1;
                self.lost_answers(id.index as usize);
            }
            Kind::Port(_) | Kind::Free => {}
        }
        let conn = &mut self.conns[id.index as usize];
        self.handshaking -= usize::from(conn.io.handshaking);
        self.memory_bytes -= conn.io.weight;
        conn.kind = Kind::Free;
        conn.io = Io::default();
        conn.generation = (conn.generation + 1) & 0xff_ffff;
        self.free.push(id.index);
        if !self.to.freed.is_empty() {
            self.settle();
        }
    }

    /// A newer map: requests that waited for it are routed again, in the order in which they came.
    pub fn on_map(&mut self, map: Arc<dyn Routes>, now: Now) {
        self.now = now;
        if self.map.as_ref().is_some_and(|m| m.epoch() >= map.epoch()) {
            return;
        }
        self.counts.map_epoch = map.epoch().0;
        self.unsettled = map.unsettled();
        self.map = Some(map);
        self.look_at_map();
        self.release();
        self.settle();
    }

    /// Other settings: what begins from now on goes by them, what is under way goes on. The log's ports and the number of
    /// streams stay as they were at the start.
    pub fn on_settings(&mut self, settings: Arc<Settings>, now: Now) {
        self.now = now;
        self.limits = settings.limits;
        self.look_by(now.ms + self.limits.shortest_ms());
        self.name = settings.name(settings.zone).to_string();
        self.shard_buckets.renew(&settings.shard_rates);
        for idle in self.to.renew(&settings, now.ms) {
            self.close(idle);
        }
        self.figures.renew(&settings);
        self.to.place(&self.figures);
        self.settings = settings;
        self.settle();
    }

    /// Looks at deadlines. The next look is when the earliest comes, but no later than the shortest patience from now: no
    /// deadline that is set in between can come before that. Thousands of idle connections so cost a look a second.
    pub fn on_timer(&mut self, now: Now) {
        self.now = now;
        if now.ms < self.next_sweep_ms {
            return;
        }
        let mut next_ms = now.ms + self.limits.shortest_ms();
        for index in 0..self.conns.len() {
            let conn = &self.conns[index];
            if conn.io.closing || matches!(conn.kind, Kind::Free) {
                continue;
            }
            if conn.io.deadline <= now.ms {
                let id = ConnId { index: index as u32, generation: conn.generation };
                self.expire(id);
            } else {
                next_ms = next_ms.min(conn.io.deadline);
                self.rest(index);
            }
        }
        self.next_sweep_ms = next_ms.max(now.ms + SWEEP_MS);
        self.holds.prune();
        self.settle();
    }

    // ---- what to do -----------------------------------------------------------------------------------------------

    /// The next order; the driver asks until there is none.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// When `on_timer` wants to be called; `None`: no connection is open.
    pub fn deadline(&self) -> Option<u64> {
        (self.free.len() < self.conns.len()).then_some(self.next_sweep_ms)
    }

    /// What was counted.
    pub fn counts(&mut self) -> &Counts {
        self.counts.memory_bytes = self.memory_bytes as u64;
        self.counts.ownership_streams = self.ownership_streams();
        self.counts.connections = (self.conns.len() - self.free.len()) as u64;
        self.counts.in_flight_moving = self.unsettled.iter().map(|s| u64::from(self.in_flight[s.0 as usize])).sum();
        &self.counts
    }

    /// Records for the access log: the driver takes them, and clears them.
    pub fn access(&mut self) -> &mut Batch {
        &mut self.access
    }

    /// What is shown of its requests: the same for the life of a core, but for services that a reload names first.
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    // ---- for the other files of this core ---------------------------------------------------------------------------

    /// A connection that is neither closing nor of another generation.
    pub(super) fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.index as usize).filter(|c| c.generation == id.generation && !c.io.closing)
    }

    /// The same, to look at.
    pub(super) fn client_of(&self, id: ConnId) -> Option<&Client> {
        let conn = self.conns.get(id.index as usize).filter(|c| c.generation == id.generation && !c.io.closing)?;
        match &conn.kind {
            Kind::Client(c) => Some(c),
            Kind::Upstream(_) | Kind::Port(_) | Kind::Free => None,
        }
    }

    pub(super) fn client(&mut self, id: ConnId) -> Option<(&mut Io, &mut Client)> {
        let conn = self.conn(id)?;
        match &mut conn.kind {
            Kind::Client(c) => Some((&mut conn.io, c)),
            Kind::Upstream(_) | Kind::Port(_) | Kind::Free => None,
        }
    }

    pub(super) fn upstream(&mut self, id: ConnId) -> Option<(&mut Io, &mut Upstream)> {
        let conn = self.conn(id)?;
        match &mut conn.kind {
            Kind::Upstream(up) => Some((&mut conn.io, up)),
            Kind::Client(_) | Kind::Port(_) | Kind::Free => None,
        }
    }

    /// A new place in the table; `None`: `connections_max` are open.
    pub(super) fn add(&mut self, kind: Kind) -> Option<ConnId> {
        let io = Io { deadline: u64::MAX, ..Io::default() };
        if let Some(index) = self.free.pop() {
            let conn = &mut self.conns[index as usize];
            (conn.io, conn.kind) = (io, kind);
            return Some(ConnId { index, generation: conn.generation });
        }
        if self.conns.len() >= self.limits.connections_max {
            return None;
        }
        self.conns.push(Conn { generation: 0, io, kind });
        Some(ConnId { index: self.conns.len() as u32 - 1, generation: 0 })
    }

    /// Deadlines are looked at when `deadline` comes: for one that was set closer than the shortest patience.
    pub(super) fn look_by(&mut self, deadline: u64) {
        self.next_sweep_ms = self.next_sweep_ms.min(deadline);
    }

    /// Orders a send unless one is ordered or under way.
    pub(super) fn send(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        let io = &mut conn.io;
        if io.open && !io.sending && !io.ordered && !io.out.is_empty() {
            io.ordered = true;
            self.orders.push_back(Order::Send(id));
        }
        self.weigh(id);
    }

    /// Orders the end of the connection, now.
    pub(super) fn close(&mut self, id: ConnId) {
        self.give_back(id);
        if let Some(conn) = self.conn(id) {
            conn.io.closing = true;
            self.orders.push_back(Order::Close(id));
        }
    }

    /// Ends an answer in its middle. To a client of HTTP/1.0 an orderly end would say that it is whole (RFC 9112 §8).
    pub(super) fn break_off(&mut self, id: ConnId) {
        let looks_whole = self.client(id).is_some_and(|(_, c)| !c.about.http11);
        self.give_back(id);
        if let Some(conn) = self.conn(id) {
            conn.io.closing = true;
            self.orders.push_back(if looks_whole { Order::Reset(id) } else { Order::Close(id) });
        }
    }

    /// Everything is sent: end our half and wait, bounded, for the client's end, so that no reset destroys the answer.
    pub(super) fn shut(&mut self, id: ConnId) {
        let linger = self.now.ms + self.limits.linger_ms;
        if self.tunnel_shut(id) {
            return;
        }
        let Some(conn) = self.conn(id) else { return };
        if conn.io.eof {
            return self.take_leave(id);
        }
        conn.io.finishing = false;
        conn.io.deadline = linger;
        self.orders.push_back(Order::Shutdown(id));
    }

    /// Lets what is stashed be looked at again before the driver goes on.
    pub(super) fn ready(&mut self, id: ConnId) {
        if let Some(conn) = self.conn(id)
            && !conn.io.ready
        {
            conn.io.ready = true;
            self.ready.push_back(id);
        }
    }

    pub(super) fn depart(&mut self, shard: Option<Shard>) {
        self.counts.in_flight += 1;
        if let Some(s) = shard {
            self.in_flight[s.0 as usize] += 1;
        }
    }

    pub(super) fn arrive(&mut self, shard: Option<Shard>) {
        self.counts.in_flight -= 1;
        if let Some(s) = shard {
            self.in_flight[s.0 as usize] -= 1;
        }
    }

    /// Uses bytes of a connection, after those that it had left over; keeps what is not used, and bounds it.
    fn read(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conn(id) else { return };
        if let Kind::Port(port) = &mut conn.kind {
            port.input.extend_from_slice(bytes);
            return self.port_bytes(id);
        }
        let mut stash = std::mem::take(&mut conn.io.stash);
        conn.io.reading = true;
        if stash.is_empty() {
            let used = self.pump(id, bytes);
            if used < bytes.len() {
                stash.extend_from_slice(&bytes[used..]);
            }
        } else {
            stash.extend_from_slice(bytes);
            let used = self.pump(id, &stash);
            stash.drain(..used);
        }
        let high = self.buffer_max();
        let Some(conn) = self.conn(id) else { return };
        if stash.is_empty() && stash.capacity() > BUFFER_KEPT_BYTES {
            stash = Vec::new();
        }
        (conn.io.stash, conn.io.reading) = (stash, false);
        let full = conn.io.stash.len() >= high || conn.kind.is_held_with_body();
        if full != conn.io.paused && (full || conn.io.stash.len() <= high / 2) {
            conn.io.paused = full;
            self.orders.push_back(if full { Order::Pause(id) } else { Order::Resume(id) });
        }
        self.weigh(id);
    }

    fn pump(&mut self, id: ConnId, bytes: &[u8]) -> usize {
        match self.conn(id).map(|c| &c.kind) {
            Some(Kind::Client(_)) => self.pump_client(id, bytes),
            Some(Kind::Upstream(_)) => self.pump_upstream(id, bytes),
            Some(Kind::Port(_) | Kind::Free) | None => bytes.len(),
        }
    }

    /// Reads on where something has become possible. Each round uses up bytes or takes a connection off the list.
    fn settle(&mut self) {
        self.read_on();
        while !self.to.freed.is_empty() && self.admit_waiting() {
            self.read_on();
        }
    }

    fn read_on(&mut self) {
        while let Some(id) = self.ready.pop_front() {
            let Some(conn) = self.conn(id) else { continue };
            conn.io.ready = false;
            self.read(id, &[]);
            let Some(conn) = self.conn(id) else { continue };
            if conn.io.eof {
                match &conn.kind {
                    Kind::Client(_) => self.client_end(id),
                    // Only a body waits for room; what is left of anything else is half a head, and its end never comes.
                    Kind::Upstream(u) if conn.io.stash.is_empty() || u.phase != UpPhase::Body => {
                        self.upstream_end(id, false);
                    }
                    Kind::Upstream(_) | Kind::Port(_) | Kind::Free => {}
                }
            }
        }
    }

    fn expire(&mut self, id: ConnId) {
        let Some(conn) = self.conn(id) else { return };
        conn.io.deadline = u64::MAX;
        match &conn.kind {
            Kind::Client(_) if conn.io.handshaking => self.handshake_late(id),
            Kind::Client(_) => self.client_late(id),
            Kind::Upstream(up) if up.phase == UpPhase::Connecting => {
                if conn.io.secure {
                    self.counts.insecure(Reason::Late);
                }
                self.upstream_lost(id);
            }
            Kind::Upstream(up) if up.phase == UpPhase::Head && up.client.is_some() => self.upstream_late(id),
            Kind::Upstream(_) => self.upstream_close(id),
            Kind::Port(p) => {
                let port = p.port;
                self.port_lost(id, port);
            }
            Kind::Free => {}
        }
    }
}
