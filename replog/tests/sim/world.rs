//! The world of the simulation: zones, connections, clients and a GZS; any of them does its next step at any time.

use crate::checks::{Acked, Truth};
use crate::disk::last_seq;
use crate::purge::Spool;
use crate::zone::{Appended, Node, SimMap};
use bytes::Bytes;
use replog::gate::Write;
use replog::link::Packer;
use shardmap::ownership::{History, Kind};
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
    MirrorBeforeFlush,
    MapTakenBack,
    PurgeUndurable,
    ParkedLetGo,
    WritableAtStart,
    SeedWithoutLedger,
    SeedPositionFirst,
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
pub struct Conn {
    pub open: bool,
    pub barred: bool,
    pub to_peer: Vec<u8>,
    pub to_origin: Vec<u8>,
    /// Everything that this connection's origin has sent, and what an earlier one's had.
    pub sent: Vec<u8>,
    pub stale: Vec<u8>,
    pub packer: Packer,
}

/// A zone's report on its way to the GZS.
pub struct Mail {
    pub shard: Shard,
    /// Of the map entry that it answers.
    pub entry: MapEpoch,
    pub from: Zone,
    pub fence_seq: Option<u64>,
    pub positions: Positions,
}

pub struct World {
    pub zones: usize,
    pub shards: u16,
    pub nodes: Vec<Node>,
    pub maps: Vec<Arc<SimMap>>,
    pub truth: Truth,
    pub now_us: u64,
    pub conns: Vec<Conn>,
    pub mail: Vec<Mail>,
    pub gzs_barred: Vec<bool>,
    /// The disks of these zones are gone.
    pub destroyed: Vec<bool>,
    /// These zones' mirrors are slow to write.
    pub slow: Vec<bool>,
    /// How many records were parked, tombstones dropped, batches lent by a third zone.
    pub seen: Seen,
    pub rng: Rng,
    pub broken: Broken,
    pub losses: bool,
    pub skews_ms: &'static [i64],
    pub waiting: Vec<(usize, Acked)>,
    /// Volumes of this world fill up; and by that, something was let go that a zone had not applied.
    pub fills_up: bool,
    pub left_behind: bool,
    /// Since its start, the zone has learnt who owns what, or an operator has answered for it.
    pub sure: Vec<bool>,
    /// Which zones have answered a zone since its start, in the order of `conns`.
    pub heard: Vec<bool>,
    pub healing: bool,
    pub spools: Vec<Spool>,
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
    pub torn: u64,
    pub spared: u64,
    pub taken_back: u64,
    pub purged: u64,
    pub gaps: u64,
    pub seeded: u64,
    /// Runs at whose end some zone could not look through all that a cut asked for.
    pub unseen: u64,
    /// Logs that ended read-only by their links alone.
    pub by_links: u64,
}

impl Seen {
    pub fn add(&mut self, more: Seen) {
        self.parked += more.parked;
        self.dropped += more.dropped;
        self.lent += more.lent;
        self.stale += more.stale;
        self.destroyed += more.destroyed;
        self.confirmed += more.confirmed;
        self.torn += more.torn;
        self.spared += more.spared;
        self.taken_back += more.taken_back;
        self.purged += more.purged;
        self.gaps += more.gaps;
        self.seeded += more.seeded;
        self.unseen += more.unseen;
        self.by_links += more.by_links;
    }
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
            fills_up: seed.is_multiple_of(3),
            left_behind: false,
            sure: vec![false; zones],
            heard: vec![false; zones * zones],
            healing: false,
            spools: vec![],
        };
        for z in 0..zones {
            world.start(z).expect("the first start");
            world.reach_gzs(z).expect("the first start");
        }
        world
    }

    pub fn now_ms(&self, z: usize) -> u64 {
        (BEGIN_MS + self.now_us / 1000).saturating_add_signed(self.nodes[z].skew_ms)
    }

    /// The zones that have a disk.
    pub fn alive(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes.iter().enumerate().filter(|(z, _)| !self.destroyed[*z])
    }

    pub fn newest(&self) -> &Arc<SimMap> {
        self.maps.last().expect("there is a first map")
    }

    /// One step of somebody.
    pub fn step(&mut self) -> Result<(), Fail> {
        self.now_us += self.rng.below(4000);
        let z = self.rng.below(self.zones as u64) as usize;
        let other = self.rng.below(self.zones as u64) as usize;
        match self.rng.below(50) {
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
            46 | 47 => self.purge(z, other),
            48 => (0..self.zones).for_each(|from| self.ask_snapshot(z, from)),
            49 if !self.spools.is_empty() && self.rng.one_in(3) => self.store_snapshot()?,
            _ => {}
        }
        Ok(())
    }

    /// Everything works again; run until nothing is left to do.
    pub fn heal(&mut self) -> Result<(), Fail> {
        self.healing = true;
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
            self.heal_gaps(round)?;
        }
        Ok(())
    }

    pub fn start(&mut self, z: usize) -> Result<(), Fail> {
        if self.nodes[z].live.is_some() || self.destroyed[z] {
            return Ok(());
        }
        let now_ms = self.now_ms(z);
        self.sure[z] = false;
        self.heard[z * self.zones..][..self.zones].fill(false);
        self.nodes[z].start(&self.maps, now_ms)
    }

    pub fn crash(&mut self, z: usize) {
        let lost = self.nodes[z].crash(&mut self.rng);
        self.seen.torn += lost.batches;
        self.seen.spared += lost.spared;
        self.seen.taken_back += lost.transactions;
        self.waiting.retain(|(w, _)| *w != z);
        self.spools.retain(|s| s.to != z);
        for other in 0..self.zones {
            self.cut(z, other);
            self.cut(other, z);
        }
    }

    /// A zone's disk is gone for good; one zone at most.
    pub fn destroy(&mut self, z: usize) {
        if self.destroyed.contains(&true) || !self.is_whole_without(z) {
            return;
        }
        self.crash(z);
        self.destroyed[z] = true;
        self.spools.retain(|s| s.from != z);
        self.seen.destroyed += 1;
    }

    /// What was lost by a zone that lives, and that nobody is left to take over, goes back to it.
    pub fn give_back(&mut self) {
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

    pub fn client(&mut self, z: usize) -> Result<(), Fail> {
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
        if !self.sure[z] {
            return Err(Fail(format!("11: {z} writes before it knows what it still owns")));
        }
        self.truth.name(&record, token, Zone(z as u8), seq);
        // Of what a zone had applied and a power cut took back, no other zone waits for a second time.
        let states: Vec<_> = self.nodes.iter().map(|n| n.disk.most.clone()).collect();
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

    pub fn write_batch(&mut self, z: usize) {
        self.nodes[z].write_batch(&mut self.rng);
    }

    /// Tells clients of `z` what they wait for: that it is durable here, or, if they asked for that, in one more zone.
    pub fn acknowledge(&mut self, z: usize) {
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

    pub fn flush(&mut self, z: usize, of: usize) {
        if z != of && self.slow[z] && !self.rng.one_in(12) {
            return;
        }
        self.nodes[z].flush(of);
        if z == of {
            self.acknowledge(z);
        }
    }

    pub fn apply(&mut self, z: usize, of: usize) -> Result<(), Fail> {
        let (now_ms, parked) = (self.now_ms(z), self.nodes[z].parked());
        self.nodes[z].apply(of, now_ms)?;
        self.seen.parked += self.nodes[z].parked().saturating_sub(parked) as u64;
        Ok(())
    }

    pub fn collect(&mut self, z: usize, of: usize) -> Result<(), Fail> {
        self.seen.dropped += self.nodes[z].collect(of)? as u64;
        Ok(())
    }
}
