//! A small system of zones, logs and a map's writer, in which every ownership decision is made by `shardmap::ownership`.
//!
//! What it leaves out: an append, its flush and its acknowledgement are one step, and so are shipping and applying (a cut link
//! is a delivery that has not happened yet); a clock is the seq of its log; a step of the map's writer is atomic. A request in
//! flight with an old map is a write tried at any zone at any time.

mod acts;
mod check;

use shardmap::ownership::{Entry, History, Kind};
use shardmap::{MapEpoch, OwnerEpoch, Positions, Zone};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::rc::Rc;

pub const ZONES_MAX: usize = 3;
pub const KEYS_MAX: usize = 2;

/// Rules that live outside `ownership`, in those who call it; each is switched off once, to see that the checks notice.
///
/// Two more are followed without a switch, because no run within these bounds needs them: the freeze of a lost zone's streams
/// between report and map, and a move's cut that names other logs than the source's.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A record is applied only by a zone whose map has reached the record's owner epoch.
    pub wait_for_map: bool,
    /// A reported cut stops before the first parked record of the shard.
    pub parked_cut: bool,
    /// The target of a move must have every position that the FENCE carries.
    pub fence_positions: bool,
    /// A zone stops at its own FENCE.
    pub obey_fence: bool,
    /// A map is stored before it is acted on, so that a restart keeps it.
    pub store_map: bool,
    /// A survivor reports only after it has stored the map that says "no owner".
    pub report_after_map: bool,
    /// The map's writer compares before it sets.
    pub compare_and_set: bool,
    /// A write to a locked row is refused.
    pub obey_locks: bool,
}

pub const CONTRACT: Rules = Rules {
    wait_for_map: true,
    parked_cut: true,
    fence_positions: true,
    obey_fence: true,
    store_map: true,
    report_after_map: true,
    compare_and_set: true,
    obey_locks: true,
};

/// How often each thing that the system does not do by itself may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    pub writes: u8,
    pub moves: u8,
    pub losses: u8,
    pub aborts: u8,
    pub crashes: u8,
    pub alone: u8,
    pub unlocks: u8,
    pub parks: u8,
    pub bumps: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Rec {
    /// A FENCE; `owner_epoch` is then its epoch, and `carries` its writer's applied positions.
    fence: bool,
    shard: usize,
    key: usize,
    token: u8,
    owner_epoch: OwnerEpoch,
    carries: [u64; ZONES_MAX],
    /// Tokens of the same key that the writer's zone knew.
    knew: u32,
}

/// Owner epoch, seq (which stands for the clock), zone.
type Version = (OwnerEpoch, u64, usize);

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Node {
    log: Vec<Rec>,
    applied: [u64; ZONES_MAX],
    parked: Vec<(usize, u64)>,
    rows: [Option<Version>; KEYS_MAX],
    map: usize,
    /// The newest map that was ever acted on here.
    acted_on: usize,
    read_only: bool,
    alone: bool,
}

#[derive(Debug)]
struct Map {
    digest: u64,
    shards: Vec<History>,
}

#[derive(Clone, Debug)]
pub struct World {
    rules: Rules,
    zones: usize,
    keys: usize,
    nodes: Vec<Node>,
    /// Every map so far; its index is its epoch.
    maps: Rc<Vec<Rc<Map>>>,
    /// For each shard, who has reported for the take-over that is under way, and what.
    reports: Vec<Option<(usize, Positions)>>,
    left: Budget,
    broken: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub enum Act {
    Write { zone: usize, key: usize },
    Fence { zone: usize, shard: usize },
    Apply { zone: usize, from: usize },
    Park { zone: usize, from: usize, queue: bool },
    Settle { zone: usize, at: usize },
    Learn { zone: usize, map: usize },
    Crash { zone: usize },
    AskWriter { zone: usize },
    AskPeers { zone: usize },
    Alone { zone: usize },
    Lose { zone: usize },
    Move { shard: usize, to: usize },
    Commit { shard: usize },
    Abort { shard: usize },
    LateAbort { shard: usize },
    Report { shard: usize, zone: usize },
    Finish { shard: usize },
    Unlock { shard: usize },
    Bump,
}

fn zone(z: usize) -> Zone {
    Zone(z as u8)
}

impl World {
    pub fn new(rules: Rules, zones: usize, shards: usize, keys: usize, left: Budget) -> World {
        assert!(zones <= ZONES_MAX && keys <= KEYS_MAX && left.writes <= 32);
        let shards = vec![History::new(zone(0), MapEpoch(0)); shards];
        World {
            rules,
            zones,
            keys,
            nodes: vec![Node::default(); zones],
            reports: vec![None; shards.len()],
            maps: Rc::new(vec![Rc::new(Map { digest: 0, shards })]),
            left,
            broken: None,
        }
    }

    /// The same for equal states, and with 64 bits seldom for others.
    pub fn digest(&self) -> u64 {
        let mut h = DefaultHasher::new();
        (&self.nodes, &self.reports, self.left, self.broken, self.maps.len(), self.newest().digest).hash(&mut h);
        h.finish()
    }

    fn newest(&self) -> &Map {
        self.maps.last().expect("map 0 is always there")
    }
    fn view(&self, z: usize, shard: usize) -> &History {
        &self.maps[self.nodes[z].map].shards[shard]
    }
    fn shards(&self) -> usize {
        self.reports.len()
    }
    fn rec(&self, z: usize, seq: u64) -> &Rec {
        &self.nodes[z].log[seq as usize - 1]
    }
    fn own_fence(&self, z: usize, shard: usize) -> OwnerEpoch {
        let fences = self.nodes[z].log.iter().filter(|r| r.fence && r.shard == shard);
        fences.map(|r| r.owner_epoch).max().unwrap_or_default()
    }
    fn writes_at(&self, z: usize, shard: usize) -> Option<OwnerEpoch> {
        let fence = if self.rules.obey_fence { self.own_fence(z, shard) } else { OwnerEpoch(0) };
        self.view(z, shard).may_write(zone(z), fence, self.nodes[z].read_only).ok()
    }
    fn parked_of(&self, z: usize, shard: usize) -> impl Iterator<Item = &(usize, u64)> {
        self.nodes[z].parked.iter().filter(move |&&(o, seq)| self.rec(o, seq).shard == shard)
    }
    /// The FENCEs of `from` for a shard that `z` has applied with nothing of the shard parked: seq and epoch.
    fn fences(&self, z: usize, from: usize, shard: usize) -> impl Iterator<Item = (u64, OwnerEpoch)> + '_ {
        let clear = self.parked_of(z, shard).next().is_none();
        let seqs = 1..=if clear { self.nodes[z].applied[from] } else { 0 };
        seqs.map(move |seq| (seq, self.rec(from, seq)))
            .filter(move |(_, r)| r.fence && r.shard == shard)
            .map(|(seq, r)| (seq, r.owner_epoch))
    }
    fn locked(&self, z: usize, key: usize) -> bool {
        let shard = key % self.shards();
        let highest = |of: Zone| self.fences(z, of.0 as usize, shard).map(|f| f.1).max().unwrap_or_default();
        self.nodes[z].rows[key].is_some_and(|row| self.view(z, shard).locked(zone(z), row.0, highest))
    }
    fn applied(&self, z: usize) -> Positions {
        (0..self.zones).map(|o| (zone(o), self.nodes[z].applied[o])).collect()
    }
    fn may_apply(&self, z: usize, from: usize) -> bool {
        let next = self.nodes[z].applied[from] + 1;
        let there = from != z && next <= self.nodes[from].log.len() as u64;
        let frozen =
            |s: usize| self.reports[s].as_ref().is_some_and(|r| r.0 == z) && self.view(z, s).is_lost_by(zone(from));
        let waits = |r: &Rec| !r.fence && r.owner_epoch.0 > self.nodes[z].map as u64;
        there && !(self.rules.wait_for_map && waits(self.rec(from, next))) && !(0..self.shards()).any(frozen)
    }

    fn publish(&mut self, changes: &[(usize, Entry)]) {
        let mut shards = self.newest().shards.clone();
        for (shard, entry) in changes {
            let next = shards[*shard].with(entry.clone()).expect("a transition's entry follows its history");
            if shards[*shard].may_become(&next).is_err() && self.rules.compare_and_set {
                self.broken = Some("may_become refuses what a transition made");
            }
            shards[*shard] = next;
        }
        let mut h = DefaultHasher::new();
        shards.hash(&mut h);
        Rc::make_mut(&mut self.maps).push(Rc::new(Map { digest: h.finish(), shards }));
    }

    pub fn act(&mut self, act: Act) {
        let epoch = MapEpoch(self.maps.len() as u64);
        let history = |w: &World, shard: usize| w.newest().shards[shard].clone();
        match act {
            Act::Write { zone, key } => self.write(zone, key),
            Act::Fence { zone: z, shard } => {
                let due = self.view(z, shard).fence_due(zone(z), self.own_fence(z, shard));
                let owner_epoch = due.expect("offered only when due");
                let carries = self.nodes[z].applied;
                self.append(z, Rec { fence: true, shard, key: usize::MAX, token: 0, owner_epoch, carries, knew: 0 });
            }
            Act::Apply { zone, from } => self.apply(zone, from, false),
            Act::Park { zone, from, queue } => {
                self.left.parks -= u8::from(!queue);
                self.apply(zone, from, true);
            }
            Act::Settle { zone, at } => {
                let (from, seq) = self.nodes[zone].parked.remove(at);
                self.put(zone, from, seq);
            }
            Act::Learn { zone, map } => self.learn(zone, map),
            Act::Crash { zone } => {
                self.left.crashes -= 1;
                let n = &mut self.nodes[zone];
                (n.read_only, n.alone) = (true, false);
                n.map = if self.rules.store_map { n.map } else { 0 };
            }
            Act::AskWriter { zone } => {
                self.learn(zone, epoch.0 as usize - 1);
                self.nodes[zone].read_only = false;
            }
            Act::AskPeers { zone } => self.ask_peers(zone),
            Act::Alone { zone } => {
                self.left.alone -= 1;
                (self.nodes[zone].read_only, self.nodes[zone].alone) = (false, true);
            }
            Act::Lose { zone: z } => {
                self.left.losses -= 1;
                let loss = |s| history(self, s).declare_lost(zone(z), epoch).unwrap().map(|e| (s, e));
                let changes: Vec<_> = (0..self.shards()).filter_map(loss).collect();
                changes.iter().filter(|c| c.1.kind == Kind::Lost).for_each(|c| self.reports[c.0] = None);
                self.publish(&changes);
            }
            Act::Move { shard, to } => {
                self.left.moves -= 1;
                self.publish(&[(shard, history(self, shard).begin_move(zone(to), epoch).unwrap())]);
            }
            Act::Commit { shard } => self.commit(shard, epoch),
            Act::Abort { shard } => {
                self.left.aborts -= 1;
                self.reports[shard] = None;
                self.publish(&[(shard, history(self, shard).abort(epoch).unwrap())]);
            }
            Act::LateAbort { shard } => {
                self.left.aborts -= 1;
                let entry = self.late_abort(&history(self, shard)).expect("offered only when possible");
                self.publish(&[(shard, entry)]);
                self.broken = Some("6: an abort took effect after the commit of the same move");
            }
            Act::Report { shard, zone } => self.reports[shard] = Some((zone, self.cut(zone, shard))),
            Act::Finish { shard } => {
                let (z, cut) = self.reports[shard].clone().expect("offered only after a report");
                self.publish(&[(shard, history(self, shard).finish_take_over(zone(z), &cut, epoch).unwrap())]);
            }
            Act::Unlock { shard } => {
                self.left.unlocks -= 1;
                self.publish(&[(shard, history(self, shard).unlock(epoch).unwrap())]);
            }
            Act::Bump => {
                self.left.bumps -= 1;
                self.publish(&[]);
            }
        }
    }

    fn write(&mut self, z: usize, key: usize) {
        let shard = key % self.shards();
        let owner_epoch = self.writes_at(z, shard).expect("offered only when open");
        let token = self.left.writes - 1;
        self.left.writes -= 1;
        let began = |e: &&Entry| e.kind == Kind::Own && e.owner_epoch == owner_epoch;
        if self.newest().shards[shard].entries().iter().find(began).and_then(|e| e.owner) != Some(zone(z)) {
            self.broken = Some("1: a write accepted by a zone that does not own its epoch");
        }
        if self.locked(z, key) {
            self.broken = Some("5: a write to a locked row was accepted");
        }
        if self.nodes[z].rows[key].is_some_and(|row| row.0 > owner_epoch) {
            self.broken = Some("3: an acknowledged write loses to a row that its zone already held");
        }
        let knows_loss = self.maps[self.nodes[z].acted_on].shards[shard].view().owner != Some(zone(z));
        if self.own_fence(z, shard) > owner_epoch || knows_loss {
            self.broken = Some("7: a write to a shard that this log had fenced, or knows it lost");
        }
        let knew = self.known(z, key);
        self.append(z, Rec { fence: false, shard, key, token, owner_epoch, carries: [0; ZONES_MAX], knew });
    }

    fn append(&mut self, z: usize, rec: Rec) {
        self.nodes[z].log.push(rec);
        self.apply(z, z, false);
    }

    fn apply(&mut self, z: usize, from: usize, park: bool) {
        self.nodes[z].applied[from] += 1;
        let seq = self.nodes[z].applied[from];
        if park {
            self.nodes[z].parked.push((from, seq));
        } else if !self.rec(from, seq).fence {
            self.put(z, from, seq);
        }
    }

    fn put(&mut self, z: usize, from: usize, seq: u64) {
        let r = self.rec(from, seq);
        let (key, version) = (r.key, (r.owner_epoch, seq, from));
        let row = &mut self.nodes[z].rows[key];
        *row = Some(row.map_or(version, |old| old.max(version)));
    }

    fn learn(&mut self, z: usize, map: usize) {
        let n = &mut self.nodes[z];
        n.map = n.map.max(map);
        n.acted_on = n.acted_on.max(n.map);
    }

    /// Every zone has answered at one moment since the restart.
    fn ask_peers(&mut self, z: usize) {
        let newest = self.nodes.iter().map(|n| n.map).max().unwrap_or(0);
        self.learn(z, newest);
        self.nodes[z].read_only = false;
        for shard in 0..self.shards() {
            let owner = self.newest().shards[shard].view().owner;
            if self.writes_at(z, shard).is_some() && owner.is_some_and(|o| o != zone(z)) {
                self.broken = Some("7: a restarted log that reached every zone writes another's shard");
            }
        }
    }

    fn cut(&self, z: usize, shard: usize) -> Positions {
        let mut cut = self.applied(z);
        for &(from, seq) in self.parked_of(z, shard).filter(|_| self.rules.parked_cut) {
            cut.set(zone(from), cut.get(zone(from)).map_or(seq - 1, |c| c.min(seq - 1)));
        }
        cut
    }

    fn commit(&mut self, shard: usize, epoch: MapEpoch) {
        let history = self.newest().shards[shard].clone();
        let applied = self.applied(history.view().to.unwrap().0 as usize);
        let fence = self.caught_up(shard).expect("offered only when caught up");
        self.publish(&[(shard, history.commit_move(fence, &applied, epoch).unwrap())]);
    }
}
