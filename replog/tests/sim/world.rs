//! The world of the simulation: zones, connections, clients and a GZS; any of them does its next step at any time.
//!
//! A GZS that is killed between two steps is a step not taken yet: what it decides by is its newest map alone, and reports
//! reach it late, or never.

use crate::checks::{Acked, Truth};
use crate::zone::{Appended, Block, Node, SimMap, last_seq, map_bytes};
use bytes::Bytes;
use replog::gate::Write;
use replog::link::{Order, Pack};
use replog::store::Store;
use shardmap::ownership::{Entry, History, Illegal, Kind};
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::sync::Arc;

/// What is wrong on purpose, to see that the checks can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    Nothing,
    AckBeforeDurable,
    NoFenceCheck,
    NoPositionsInFence,
    CutIgnoresParked,
    MapNotStored,
    PositionApart,
    NoLocks,
    NoScan,
    TombstonesByAge,
    RemoteBeforePeer,
}

/// What may happen in a world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    pub zones: usize,
    /// Zones are lost, rightly or wrongly; one of them may lose its disk.
    pub losses: bool,
    /// How far clocks may be off.
    pub skews_ms: &'static [i64],
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fail(pub String);

/// Splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A connection from an origin to a peer: bytes on their way.
#[derive(Default)]
struct Conn {
    open: bool,
    barred: bool,
    to_peer: Vec<u8>,
    to_origin: Vec<u8>,
    /// Everything that this connection's origin has sent, and what an earlier one's had.
    sent: Vec<u8>,
    stale: Vec<u8>,
}

/// A zone's report on its way to the GZS.
struct Mail {
    shard: Shard,
    /// Of the map entry that it answers.
    entry: MapEpoch,
    from: Zone,
    fence_seq: Option<u64>,
    positions: Positions,
}

pub struct World {
    pub zones: usize,
    pub shards: u16,
    pub nodes: Vec<Node>,
    pub maps: Vec<Arc<SimMap>>,
    pub truth: Truth,
    pub now_us: u64,
    conns: Vec<Conn>,
    mail: Vec<Mail>,
    gzs_barred: Vec<bool>,
    /// The disks of these zones are gone.
    pub destroyed: Vec<bool>,
    /// These zones' mirrors are slow to write.
    slow: Vec<bool>,
    /// How many records were parked, tombstones dropped, batches lent by a third zone.
    pub seen: Seen,
    rng: Rng,
    broken: Broken,
    losses: bool,
    skews_ms: &'static [i64],
    waiting: Vec<(usize, Acked)>,
}

/// What has happened: a simulation in which something never does proves nothing of it.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub parked: u64,
    pub dropped: u64,
    pub lent: u64,
    pub stale: u64,
    pub destroyed: u64,
    pub confirmed: u64,
}

const BEGIN_MS: u64 = 1_790_000_000_000;

impl World {
    pub fn new(seed: u64, setting: Setting, broken: Broken) -> World {
        let (shards, Setting { zones, losses, skews_ms }) = (2, setting);
        let first = (0..shards).map(|s| (Shard(s), History::new(Zone(s as u8 % zones as u8), MapEpoch(1))));
        let first = Arc::new(SimMap { epoch: MapEpoch(1), shards: first.collect() });
        let nodes = (0..zones).map(|z| Node::new(Zone(z as u8), zones, &first, broken)).collect();
        let conns = (0..zones * zones).map(|_| Conn::default()).collect();
        let mut world = World {
            zones,
            shards,
            nodes,
            maps: vec![first],
            truth: Truth::default(),
            now_us: 1,
            conns,
            mail: vec![],
            gzs_barred: vec![false; zones],
            destroyed: vec![false; zones],
            slow: vec![false; zones],
            seen: Seen::default(),
            rng: Rng(seed),
            broken,
            losses,
            skews_ms,
            waiting: vec![],
        };
        for z in 0..zones {
            world.start(z).expect("the first start");
            world.reach_gzs(z).expect("the first start");
        }
        world
    }

    fn now_ms(&self, z: usize) -> u64 {
        (BEGIN_MS + self.now_us / 1000).saturating_add_signed(self.nodes[z].skew_ms)
    }

    /// The zones that have a disk.
    pub fn alive(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(z, _)| !self.destroyed[*z])
    }

    fn newest(&self) -> &Arc<SimMap> {
        self.maps.last().expect("there is a first map")
    }

    /// One step of somebody.
    pub fn step(&mut self) -> Result<(), Fail> {
        self.now_us += self.rng.below(4000);
        let z = self.rng.below(self.zones as u64) as usize;
        let other = self.rng.below(self.zones as u64) as usize;
        match self.rng.below(46) {
            0..=9 => self.client(z)?,
            10..=12 => self.write_batch(z),
            13..=16 => self.flush(z, other),
            17..=21 => self.apply(z, other)?,
            22..=27 => self.link(z, other)?,
            28 if self.rng.one_in(2) => self.disturb(z, other),
            29..=31 => self.give_map(z)?,
            32 if self.rng.one_in(4) => self.crash(z),
            33 => self.start(z)?,
            34 => self.leave_read_only(z)?,
            35..=38 => self.gzs(z)?,
            39 if self.rng.one_in(6) => {
                self.nodes[z].skew_ms = self.skews_ms[self.rng.below(self.skews_ms.len() as u64) as usize];
            }
            40 | 41 => {
                let of = self.rng.below(self.zones as u64) as usize;
                self.lend(other, z, of)?;
            }
            42 | 43 => self.collect(z, other)?,
            44 if self.rng.one_in(8) => self.stale(z, other),
            45 if self.rng.one_in(4) => self.slow[z] = !self.slow[z],
            45 if self.losses && self.rng.one_in(120) => self.destroy(z),
            _ => {}
        }
        Ok(())
    }

    /// Everything works again; run until nothing is left to do.
    pub fn heal(&mut self) -> Result<(), Fail> {
        self.gzs_barred.fill(false);
        self.slow.fill(false);
        for z in 0..self.zones {
            self.nodes[z].skew_ms = 0;
            self.start(z)?;
        }
        self.now_us += 11_000_000;
        self.conns.iter_mut().for_each(|c| *c = Conn::default());
        for round in 0..80 {
            for z in (0..self.zones).filter(|z| self.destroyed[*z]).collect::<Vec<_>>() {
                self.declare_lost(Zone(z as u8));
            }
            if round == 40 && self.destroyed.contains(&true) {
                self.give_back();
            }
            if round == 60 && self.destroyed.contains(&true) {
                (0..self.shards).for_each(|s| self.change(|h, e| h.unlock(e), Shard(s)));
            }
            for z in 0..self.zones {
                // At last there is time for zones to say what all of them have.
                self.now_us += if round < 60 { 0 } else { 60_000 };
                self.reach_gzs(z)?;
                self.write_batch(z);
                for other in 0..self.zones {
                    self.now_us += 1100;
                    self.link(z, other)?;
                    self.flush(z, other);
                    self.apply(z, other)?;
                    self.collect(z, other)?;
                    for of in 0..self.zones {
                        self.lend(other, z, of)?;
                    }
                }
                for shard in 0..self.shards {
                    self.progress(Shard(shard), z)?;
                }
            }
            self.read_mail();
        }
        Ok(())
    }

    fn start(&mut self, z: usize) -> Result<(), Fail> {
        if self.nodes[z].live.is_some() || self.destroyed[z] {
            return Ok(());
        }
        let now_ms = self.now_ms(z);
        self.nodes[z].start(&self.maps, now_ms)
    }

    fn crash(&mut self, z: usize) {
        self.nodes[z].crash(&mut self.rng);
        self.waiting.retain(|(w, _)| *w != z);
        for other in 0..self.zones {
            self.cut(z, other);
            self.cut(other, z);
        }
    }

    /// A zone's disk is gone for good; one zone at most.
    fn destroy(&mut self, z: usize) {
        if self.destroyed.contains(&true) {
            return;
        }
        self.crash(z);
        self.destroyed[z] = true;
        self.seen.destroyed += 1;
    }

    /// What was lost by a zone that lives, and that nobody is left to take over, goes back to it.
    fn give_back(&mut self) {
        let newest = self.newest().clone();
        let lost = newest
            .shards
            .iter()
            .filter_map(|(s, h)| Some((*s, h.view().lost.filter(|_| h.view().kind == Kind::Lost)?)));
        for (shard, (zone, _)) in lost.collect::<Vec<_>>() {
            if !self.destroyed[usize::from(zone.0)] {
                self.change(|h, e| h.abort(e), shard);
            }
        }
    }

    // ---- clients --------------------------------------------------------------------------------------------------

    fn client(&mut self, z: usize) -> Result<(), Fail> {
        let shard = Shard(self.rng.below(self.shards.into()) as u16);
        let key = Bytes::from(format!("{shard}/{}", self.rng.below(2)));
        let token = self.truth.next_token();
        // A router may know any map, older than the log's or newer.
        let newest = self.newest().epoch;
        let map_epoch = if self.rng.one_in(4) { newest } else { MapEpoch(1) };
        let value = (!self.rng.one_in(4)).then(|| Bytes::copy_from_slice(&token.to_le_bytes()));
        let table = Bytes::from_static(b"t");
        let ask = Write { shard, map_epoch, table, key: Some(key.clone()), value };
        let known = self.truth.known(&self.nodes[z], &key);
        let now_ms = self.now_ms(z);
        let Some(Appended { record, seq }) = self.nodes[z].write(&ask, now_ms) else { return Ok(()) };
        self.truth.name(&record, token, Zone(z as u8), seq);
        let states: Vec<_> = self.nodes.iter().map(|n| n.disk.store.state().unwrap().applied).collect();
        // Its own zone has it in its own log.
        let has =
            |zone: Zone, seq| move |(z, a): (usize, &Positions)| z == usize::from(zone.0) || a.get(zone) >= Some(seq);
        let everyone = |zone, seq| states.iter().enumerate().all(has(zone, seq));
        self.truth.appended(&self.nodes[z], self.maps.last().expect("there is one"), &record, known, everyone)?;
        let acked = Acked { zone: Zone(z as u8), seq, token, key, remote: self.rng.one_in(3) };
        if self.broken == Broken::AckBeforeDurable {
            self.truth.acked.push(acked);
        } else {
            self.waiting.push((z, acked));
        }
        Ok(())
    }

    fn write_batch(&mut self, z: usize) {
        self.nodes[z].write_batch(&mut self.rng);
    }

    /// Tells clients of `z` what they wait for: that it is durable here, or, if they asked for that, in one more zone.
    fn acknowledge(&mut self, z: usize) {
        let durable = last_seq(&self.nodes[z].disk.logs[z]);
        let confirmed = self.nodes[z].confirmed();
        let blind = self.broken == Broken::RemoteBeforePeer;
        let is_done = |a: &Acked| a.seq <= durable && (!a.remote || blind || confirmed.iter().any(|by| by(a.seq)));
        let (done, left) = self.waiting.drain(..).partition(|(w, a)| *w == z && is_done(a));
        self.waiting = left;
        let done: Vec<(usize, Acked)> = done;
        self.seen.confirmed += done.iter().filter(|(_, a)| a.remote).count() as u64;
        self.truth.acked.extend(done.into_iter().map(|(_, a)| a));
    }

    fn flush(&mut self, z: usize, of: usize) {
        if z != of && self.slow[z] && !self.rng.one_in(12) {
            return;
        }
        self.nodes[z].flush(of);
        if z == of {
            self.acknowledge(z);
        }
    }

    fn apply(&mut self, z: usize, of: usize) -> Result<(), Fail> {
        let (now_ms, parked) = (self.now_ms(z), self.nodes[z].parked());
        self.nodes[z].apply(of, now_ms)?;
        self.seen.parked += self.nodes[z].parked().saturating_sub(parked) as u64;
        Ok(())
    }

    fn collect(&mut self, z: usize, of: usize) -> Result<(), Fail> {
        self.seen.dropped += self.nodes[z].collect(of)? as u64;
        Ok(())
    }

    // ---- links ----------------------------------------------------------------------------------------------------

    /// The connection from `o` to `p` opens, or carries something, whole or in part.
    fn link(&mut self, o: usize, p: usize) -> Result<(), Fail> {
        let at = o * self.zones + p;
        if o == p || self.conns[at].barred || self.nodes[o].live.is_none() || self.nodes[p].live.is_none() {
            return Ok(());
        }
        if !self.conns[at].open || self.rng.one_in(60) {
            self.cut(o, p);
            let conn = &mut self.conns[at];
            conn.open = true;
            if self.rng.one_in(3) {
                conn.stale = std::mem::take(&mut conn.sent);
            }
            conn.sent.clear();
            let now_us = self.now_us;
            self.nodes[o].live.as_mut().expect("up").senders[p].on_connect(now_us);
            self.nodes[p].live.as_mut().expect("up").receivers[o].on_connect(now_us);
        }
        self.orders(o, p)?;
        let part = if self.rng.one_in(4) { 2 } else { 1 };
        let conn = &mut self.conns[at];
        let to_peer: Vec<u8> = conn.to_peer.drain(..conn.to_peer.len() / part).collect();
        let to_origin: Vec<u8> = conn.to_origin.drain(..conn.to_origin.len() / part).collect();
        self.nodes[p].live.as_mut().expect("up").receivers[o].on_bytes(&to_peer, self.now_us);
        self.nodes[o].live.as_mut().expect("up").senders[p].on_bytes(&to_origin, self.now_us);
        self.orders(o, p)?;
        self.acknowledge(o);
        Ok(())
    }

    fn orders(&mut self, o: usize, p: usize) -> Result<(), Fail> {
        let (at, now_us, mut maps) = (o * self.zones + p, self.now_us, vec![]);
        let [origin, peer] = self.nodes.get_disjoint_mut([o, p]).expect("two zones");
        origin.tell_everywhere();
        let (Some(from), Some(to)) = (origin.live.as_mut(), peer.live.as_mut()) else { return Ok(()) };
        while let Some(order) = from.senders[p].next_order(now_us) {
            match order {
                Order::Send(bytes) => {
                    self.conns[at].sent.extend(&bytes);
                    self.conns[at].to_peer.extend(bytes);
                }
                Order::Read(seq) => {
                    let found = origin.disk.logs[o].iter().find(|b| b.batch.last_seq() >= seq);
                    from.senders[p].on_batch(found.expect("durable").batch.clone(), now_us);
                }
                Order::Pack(batches, codec) => from.senders[p].on_packed(Pack::of(&batches, codec), 10, now_us),
                Order::TakeMap(epoch, _) => maps.push((o, epoch)),
                Order::Close => self.conns[at].open = false,
                Order::Append(_) => return Err(Fail("a sender appends".into())),
            }
        }
        while let Some(order) = to.receivers[o].next_order(now_us) {
            match order {
                Order::Send(bytes) => self.conns[at].to_origin.extend(bytes),
                Order::Append(batch) => to.written[o].push(Block::of(batch)),
                Order::TakeMap(epoch, bytes) => {
                    assert_eq!(bytes, map_bytes(epoch));
                    maps.push((p, epoch));
                }
                Order::Close => self.conns[at].open = false,
                Order::Read(_) | Order::Pack(..) => return Err(Fail("a receiver ships".into())),
            }
        }
        let stops = [from.senders[p].stopped(), to.receivers[o].stopped(), to.receivers[o].refused()];
        if let Some(stop) = stops.into_iter().flatten().next() {
            return Err(Fail(format!("link {o} to {p}: {stop}")));
        }
        for (z, epoch) in maps {
            self.take_map(z, epoch)?;
        }
        Ok(())
    }

    fn cut(&mut self, o: usize, p: usize) {
        let conn = &mut self.conns[o * self.zones + p];
        let (barred, sent, stale) = (conn.barred, std::mem::take(&mut conn.sent), std::mem::take(&mut conn.stale));
        *conn = Conn { barred, sent, stale, ..Conn::default() };
        if let Some(live) = &mut self.nodes[o].live {
            live.senders[p].on_disconnect();
        }
        if let Some(live) = &mut self.nodes[p].live {
            live.receivers[o].on_disconnect();
        }
    }

    /// A zone gives another the next batch of its mirror of a third one's log.
    fn lend(&mut self, to: usize, from: usize, of: usize) -> Result<(), Fail> {
        if to == from || to == of || from == of || self.conns[to * self.zones + from].barred {
            return Ok(());
        }
        let [taker, lender] = self.nodes.get_disjoint_mut([to, from]).expect("two zones");
        if lender.live.is_some() && taker.lent(of, &lender.disk.logs[of])? {
            self.seen.lent += 1;
        }
        Ok(())
    }

    /// A connection that was given up long ago is heard only now, and then no more.
    fn stale(&mut self, o: usize, p: usize) {
        let at = o * self.zones + p;
        if o == p || self.nodes[p].live.is_none() || self.conns[at].stale.is_empty() {
            return;
        }
        let (stale, now_us) = (std::mem::take(&mut self.conns[at].stale), self.now_us);
        self.cut(o, p);
        self.nodes[p].stale(o, &stale, now_us);
        self.seen.stale += 1;
    }

    /// A cut, a partition that begins or ends, of a link or of the way to the GZS.
    fn disturb(&mut self, z: usize, other: usize) {
        let (at, back) = (z * self.zones + other, other * self.zones + z);
        match self.rng.below(8) {
            0 => self.cut(z, other),
            1 => {
                self.cut(z, other);
                self.cut(other, z);
                (self.conns[at].barred, self.conns[back].barred) = (true, true);
            }
            2 => self.gzs_barred[z] = true,
            3 | 4 => self.gzs_barred[z] = false,
            _ => (self.conns[at].barred, self.conns[back].barred) = (false, false),
        }
    }

    // ---- maps -----------------------------------------------------------------------------------------------------

    /// Some map newer than the zone's arrives: by long poll, late, or out of order.
    fn give_map(&mut self, z: usize) -> Result<(), Fail> {
        if self.gzs_barred[z] {
            return Ok(());
        }
        let epoch = MapEpoch(self.rng.below(self.newest().epoch.0) + 1);
        let epoch = if self.rng.one_in(2) { epoch } else { self.newest().epoch };
        self.take_map(z, epoch)
    }

    fn take_map(&mut self, z: usize, epoch: MapEpoch) -> Result<(), Fail> {
        let (map, now) = (Arc::clone(&self.maps[epoch.0 as usize - 1]), (self.now_ms(z), self.now_us));
        let crash = self.rng.one_in(25) && self.gzs_barred.iter().any(|b| *b);
        let was_up = self.nodes[z].live.is_some();
        self.nodes[z].on_map(&map, now, crash.then_some(&mut self.rng))?;
        if was_up && self.nodes[z].live.is_none() {
            self.crash(z);
        }
        Ok(())
    }

    fn leave_read_only(&mut self, z: usize) -> Result<(), Fail> {
        if !self.gzs_barred[z] && self.rng.one_in(2) {
            return self.reach_gzs(z);
        }
        let Some(live) = &mut self.nodes[z].live else { return Ok(()) };
        let links = live.senders.iter().enumerate().filter_map(|(p, s)| Some((Zone(p as u8), s.live()?)));
        let links: Vec<_> = links.collect();
        live.gate.on_links(&links);
        if self.losses && self.rng.one_in(20) {
            live.gate.start_alone();
        }
        Ok(())
    }

    fn reach_gzs(&mut self, z: usize) -> Result<(), Fail> {
        let epoch = self.newest().epoch;
        self.take_map(z, epoch)?;
        if let Some(live) = &mut self.nodes[z].live {
            live.gate.on_gzs(epoch);
        }
        Ok(())
    }

    // ---- the GZS --------------------------------------------------------------------------------------------------

    fn gzs(&mut self, z: usize) -> Result<(), Fail> {
        let (shard, zone) = (Shard(self.rng.below(self.shards.into()) as u16), Zone(z as u8));
        match self.rng.below(30) {
            0..=2 => self.change(|h, e| h.begin_move(zone, e), shard),
            3 => self.change(|h, e| h.abort(e), shard),
            4 if self.losses => self.declare_lost(zone),
            5 if self.losses && self.rng.one_in(3) => self.change(|h, e| h.unlock(e), shard),
            6..=17 => self.progress(shard, z)?,
            18 => self.issue(vec![]),
            19 if !self.mail.is_empty() => {
                let lost = self.rng.below(self.mail.len() as u64) as usize;
                self.mail.swap_remove(lost);
            }
            _ => self.read_mail(),
        }
        Ok(())
    }

    /// A zone reports what the newest entry asks of it.
    fn progress(&mut self, shard: Shard, z: usize) -> Result<(), Fail> {
        if self.gzs_barred[z] {
            return Ok(());
        }
        let from = Zone(z as u8);
        if let Some((entry, positions)) = self.nodes[z].report(shard)? {
            self.mail.push(Mail { shard, entry, from, fence_seq: None, positions });
        }
        let Some(live) = &self.nodes[z].live else { return Ok(()) };
        let caught_up = if self.broken == Broken::NoPositionsInFence {
            self.fence_alone(z, shard)
        } else {
            live.applier.caught_up(shard)
        };
        if let Some((fence_seq, positions)) = caught_up {
            let entry = live.gate.map().history(shard).expect("moving").view().epoch;
            self.mail.push(Mail { shard, entry, from, fence_seq: Some(fence_seq), positions });
        }
        Ok(())
    }

    /// What `caught_up` must not be: the FENCE is applied, whatever it carries.
    fn fence_alone(&self, z: usize, shard: Shard) -> Option<(u64, Positions)> {
        let live = self.nodes[z].live.as_ref()?;
        let history = live.gate.map().history(shard)?;
        let (from, asked) = (history.view().owner?, history.move_fence()?);
        let state = self.nodes[z].disk.store.state().unwrap();
        let fence = state.fences.get(&(from, shard)).filter(|f| f.epoch >= asked)?;
        (history.view().to == Some(Zone(z as u8))).then(|| (fence.seq, state.applied.clone()))
    }

    fn read_mail(&mut self) {
        for mail in std::mem::take(&mut self.mail) {
            let view = self.newest().shards[&mail.shard].view();
            if view.epoch != mail.entry {
                continue; // compare-and-set on the newest entry: it answers one that is past
            }
            match (view.kind, mail.fence_seq) {
                (Kind::Moving, Some(seq)) if view.to == Some(mail.from) => {
                    self.change(|h, e| h.commit_move(seq, &mail.positions, e), mail.shard);
                }
                (Kind::Lost, None) => {
                    self.change(|h, e| h.finish_take_over(mail.from, &mail.positions, e), mail.shard);
                }
                _ => {}
            }
        }
    }

    fn declare_lost(&mut self, zone: Zone) {
        let epoch = self.newest().epoch.next();
        let histories = &self.newest().shards;
        let lost = histories.iter().filter_map(|(s, h)| Some((*s, h.declare_lost(zone, epoch).ok()??)));
        let lost: Vec<_> = lost.collect();
        self.truth.losses |= lost.iter().any(|(_, e)| e.kind == Kind::Lost);
        self.issue(lost);
    }

    fn change(&mut self, step: impl Fn(&History, MapEpoch) -> Result<Entry, Illegal>, shard: Shard) {
        let newest = self.newest();
        if let Ok(entry) = step(&newest.shards[&shard], newest.epoch.next()) {
            self.issue(vec![(shard, entry)]);
        }
    }

    fn issue(&mut self, entries: Vec<(Shard, Entry)>) {
        let mut shards = self.newest().shards.clone();
        for (shard, entry) in entries {
            let next = shards[&shard].with(entry).expect("made by a transition");
            shards[&shard].may_become(&next).expect("legal");
            shards.insert(shard, next);
        }
        self.maps.push(Arc::new(SimMap { epoch: self.newest().epoch.next(), shards }));
    }
}
