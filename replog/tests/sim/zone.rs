//! One zone of the simulation: gate, log, links, applier and store, with what is on disk apart from what a crash takes.

use crate::disk::{Block, Blocks, Disk, Lost, last_seq};
use crate::world::{Broken, Fail, Rng};
use bytes::Bytes;
use replog::apply::Applier;
use replog::batch::Origin;
use replog::commit::confirms;
use replog::gate::{Decision, Gate, Row, Start, Write};
use replog::lease::Now;
use replog::link::{Compress, Log, Mirror, Order, Place, Receiver, Sender};
use replog::owners::Owners;
use replog::store::{Change, Changes, Scan, Store};
use replog::{Batch, Hlc, Op, Record};
use shardmap::ownership::{History, Kind};
use shardmap::{MapEpoch, OwnerEpoch, Shard, Zone};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// A map of shards and nothing else; on a link it is its epoch, looked up among the maps that the GZS has issued.
#[derive(Clone, Debug)]
pub struct SimMap {
    pub epoch: MapEpoch,
    pub shards: BTreeMap<Shard, History>,
}

impl Owners for SimMap {
    fn epoch(&self) -> MapEpoch {
        self.epoch
    }
    fn history(&self, shard: Shard) -> Option<&History> {
        self.shards.get(&shard)
    }
    fn each(&self, visit: &mut dyn FnMut(Shard, &History)) {
        self.shards.iter().for_each(|(shard, history)| visit(*shard, history));
    }
}

/// What a crash takes.
pub struct Live {
    pub gate: Gate,
    pub applier: Applier,
    pub senders: Vec<Sender>,
    pub receivers: Vec<Receiver>,
    /// Records that wait for a batch, batches that wait for their flush, by zone: the own log's and the mirrors'.
    pub collect: Vec<Record>,
    pub written: Vec<Blocks>,
    /// By peer that is being seeded: the last seq that may go of the own log, and until what the peer has applied.
    pub holds: BTreeMap<usize, (u64, Option<u64>)>,
    /// By zone: a scan of which a part is not kept, and up to where the rest was looked through.
    pub looked: Vec<(Option<Scan>, u64)>,
}

pub struct Node {
    pub id: Zone,
    pub zones: usize,
    pub disk: Disk,
    pub live: Option<Live>,
    pub skew_ms: i64,
    pub broken: Broken,
    /// The newest map that the zone ever acted on.
    pub acted: MapEpoch,
}

/// A record that was appended, for the checks and for the acknowledgement.
pub struct Appended {
    pub record: Record,
    pub seq: u64,
}

impl Node {
    pub fn new(id: Zone, zones: usize, first: &Arc<SimMap>, broken: Broken) -> Node {
        let disk = Disk::new(zones, first.epoch);
        Node { id, zones, disk, live: None, skew_ms: 0, broken, acted: first.epoch }
    }

    pub fn me(&self) -> usize {
        usize::from(self.id.0)
    }

    /// Opens what is on disk: FENCEs are replayed before anything is appended.
    pub fn start(&mut self, maps: &[Arc<SimMap>], now_ms: u64) -> Result<(), Fail> {
        let state = self.disk.store.state().unwrap();
        let epoch = state.map.as_ref().expect("stored at the beginning").0;
        if epoch < self.acted {
            return Err(Fail(format!("7: {} went back from map {} to {epoch}", self.id, self.acted)));
        }
        let map: Arc<dyn Owners> = maps[epoch.0 as usize - 1].clone();
        self.disk.term += 1;
        let applier = Applier::new(self.id, 0, 1, Arc::clone(&map), state);
        let own = self.disk.held(self.me());
        let mut fences: Vec<_> = applier.own_fences().collect();
        let records = own.iter().flat_map(|b| &b.records);
        let beyond = records.filter(|(seq, r)| *seq > applier.applied(self.id) && r.op == Op::Fence);
        fences.extend(beyond.map(|(_, r)| (r.shard, r.owner_epoch)));
        let newest = own.last().map_or(Hlc(0), |b| b.batch.last_hlc);
        let fences_applied = applier.fences().collect();
        let gate = Gate::new(Start { zone: self.id, stream: 0, streams: 1, map, fences, fences_applied, newest });
        let bytes = map_bytes(epoch);
        let senders = (0..self.zones).map(|p| self.sender(p, epoch, &bytes)).collect();
        let receivers = (0..self.zones).map(|o| self.receiver(o, &applier, epoch, &bytes)).collect();
        let written = (0..self.zones).map(|_| vec![]).collect();
        self.live = Some(Live {
            gate,
            applier,
            senders,
            receivers,
            collect: vec![],
            written,
            holds: BTreeMap::new(),
            looked: vec![(None, 0); self.zones],
        });
        if self.broken == Broken::WritableAtStart {
            self.live.as_mut().expect("up").gate.start_alone();
        }
        self.fences_due(now_ms);
        self.record_gaps(now_ms);
        self.freeze_links();
        Ok(())
    }

    fn sender(&self, peer: usize, epoch: MapEpoch, bytes: &Bytes) -> Sender {
        let own = &self.disk.logs[self.me()];
        let chain = own.last().map_or(0, |b| b.batch.chain);
        let (log_uuid, term) = (u128::from(self.id.0) + 1, self.disk.term);
        let log = Log {
            log_uuid,
            term,
            first_kept: self.disk.first_kept(self.me()),
            durable: last_seq(own),
            chain,
            hlc: Hlc(0),
        };
        // Every other link packs all that it sends.
        let wish = if peer.is_multiple_of(2) { Compress::Always } else { Compress::Auto };
        Sender::new(place(self.me(), peer), log, epoch, bytes.clone()).with_compress(wish)
    }

    fn receiver(&self, origin: usize, applier: &Applier, epoch: MapEpoch, bytes: &Bytes) -> Receiver {
        let blocks = &self.disk.logs[origin];
        let mirror = Mirror {
            log_uuid: (!blocks.is_empty()).then_some(origin as u128 + 1),
            durable: last_seq(blocks),
            chain: blocks.last().map_or(0, |b| b.batch.chain),
            term: blocks.last().map_or(0, |b| b.batch.term),
        };
        Receiver::new(place(origin, self.me()), mirror, self.told(applier, Zone(origin as u8)), epoch, bytes.clone())
    }

    /// How much of a log this zone says to have applied, so that others may let it go.
    fn told(&self, applier: &Applier, zone: Zone) -> u64 {
        if self.broken == Broken::ParkedLetGo { applier.applied(zone) } else { applier.settled(zone) }
    }

    /// Nothing of what is live is left.
    pub fn crash(&mut self, rng: &mut Rng) -> Lost {
        self.live.take().map(|live| self.disk.crash(live.written, rng)).unwrap_or_default()
    }

    /// One write: what was appended, if it was.
    pub fn write(&mut self, ask: &Write, now_ms: u64) -> Option<Appended> {
        let row = self.row(ask.key.as_ref().expect("the simulation names its keys"));
        let (broken, id) = (self.broken, self.id);
        let live = self.live.as_mut()?;
        // Leases are simulated where they are granted: `shardmap/gzs/tests/sim`.
        let now = Now { wall_ms: now_ms, steady_ms: now_ms };
        let decision = match live.gate.write(ask, Row::Unknown, now) {
            Decision::NeedRow if broken == Broken::NoLocks => live.gate.write(ask, Row::Absent, now),
            Decision::NeedRow => live.gate.write(ask, row.map_or(Row::Absent, Row::At), now),
            other => other,
        };
        let record = match decision {
            Decision::Append(record) => record,
            Decision::NeedRow => panic!("asked with the row"),
            Decision::Refused(_) if broken == Broken::NoFenceCheck && !live.gate.is_read_only() => {
                let view = live.gate.map().history(ask.shard)?.view().clone();
                let mine = view.owner == Some(id) && view.kind == Kind::Moving;
                let (table, key, value) = (ask.table.clone(), ask.key.clone()?, ask.value.clone()?);
                let (hlc, owner_epoch) = (live.gate.tick(now_ms), view.owner_epoch);
                let record =
                    Record { op: Op::Put, transaction: 0, shard: ask.shard, owner_epoch, hlc, table, key, value };
                mine.then_some(record)?
            }
            Decision::WaitMap | Decision::WaitLease(_) | Decision::Refused(_) => return None,
        };
        Some(Appended { seq: self.append(record.clone()), record })
    }

    pub fn append(&mut self, record: Record) -> u64 {
        let me = self.me();
        let durable = last_seq(&self.disk.logs[me]);
        let live = self.live.as_mut().expect("up");
        live.collect.push(record);
        durable.max(last_seq(&live.written[me])) + live.collect.len() as u64
    }

    /// Closes the batch that collects.
    pub fn write_batch(&mut self, rng: &mut Rng) {
        let (me, term) = (self.me(), self.disk.term);
        let tail = self.disk.logs[me].last().map(|b| (b.batch.last_seq(), b.batch.chain));
        let Some(live) = self.live.as_mut().filter(|l| !l.collect.is_empty()) else { return };
        let tail = live.written[me].last().map(|b| (b.batch.last_seq(), b.batch.chain)).or(tail).unwrap_or((0, 0));
        let mut records = std::mem::take(&mut live.collect);
        for at in 1..records.len() {
            let (before, r) = (records[at - 1].clone(), &mut records[at]);
            let joined = rng.below(3) == 0 && is_row(&before) && is_row(r);
            let one = joined && (before.shard, before.owner_epoch) == (r.shard, r.owner_epoch);
            r.transaction = before.transaction + u32::from(!one);
        }
        let origin = Origin { stream: 0, zone: self.id, term, log_uuid_lo: u64::from(self.id.0) + 1 };
        live.written[me].push(Block::of(Batch::build(&origin, tail.0 + 1, tail.1, 0, &records)));
    }

    /// One flush of the own log (`of` is this zone) or of a mirror.
    pub fn flush(&mut self, of: usize) {
        let me = self.me();
        let Some(live) = self.live.as_mut().filter(|l| !l.written[of].is_empty()) else { return };
        let gaps = live.written[of].iter().flat_map(|b| &b.records).filter(|(_, r)| r.op == Op::Gap && of == me);
        gaps.for_each(|(_, gap)| self.disk.unrecorded.retain(|value| *value != gap.value));
        self.disk.logs[of].append(&mut live.written[of]);
        let last = &self.disk.logs[of].last().expect("just appended").batch;
        if of != me {
            return live.receivers[of].on_durable(last.last_seq());
        }
        for sender in &mut live.senders {
            sender.on_durable(last.last_seq(), last.chain, last.last_hlc);
        }
    }

    /// Applies the next batch of a log, or what is parked, or looks through a log for a new cut.
    pub fn apply(&mut self, of: usize, now_ms: u64) -> Result<(), Fail> {
        let zone = Zone(of as u8);
        let Some(live) = self.live.as_mut() else { return Ok(()) };
        let next = live.applier.applied(zone) + 1;
        let block = self.disk.held(of).iter().find(|b| b.batch.last_seq() >= next).cloned();
        let mut all = vec![live.applier.retry(now_ms)];
        if let Some(block) = block {
            all.push(live.applier.apply(zone, &block.records, now_ms).map_err(|e| Fail(e.to_string()))?.0);
        }
        all.extend(self.look_through(of));
        for changes in all {
            self.commit(&changes)?;
        }
        self.after_apply(zone);
        Ok(())
    }

    /// The next batch of a scan; what it wants and the log keeps no more is left, and what is behind is looked through.
    fn look_through(&mut self, of: usize) -> Option<Changes> {
        let (zone, live) = (Zone(of as u8), self.live.as_mut().expect("up"));
        let (_, scan) = live.applier.scans().find(|(z, _)| *z == zone).filter(|_| self.broken != Broken::NoScan)?;
        let kept = self.disk.first_kept(of);
        if live.looked[of].0 != Some(scan) {
            live.looked[of] = (Some(scan), kept);
        }
        let from = if scan.from >= kept { scan.from } else { live.looked[of].1.max(kept) };
        let found = self.disk.held(of).iter().find(|b| b.batch.last_seq() >= from).filter(|_| from <= scan.to)?;
        live.looked[of].1 = found.batch.last_seq() + 1;
        let whole = scan.from >= kept;
        let changes = if whole {
            live.applier.scan(zone, &found.records)
        } else {
            live.applier.scan_kept(zone, &found.records, kept)
        };
        // What has shrunk to what is not kept is noticed at once: a cut that comes next may ask for all of it again.
        let left = live.applier.scans().find(|(z, _)| *z == zone).map(|(_, scan)| scan);
        if left != live.looked[of].0 {
            live.looked[of] = (left, kept);
        }
        Some(changes)
    }

    /// How many records wait.
    pub fn parked(&self) -> usize {
        self.live.as_ref().map_or(0, |l| l.applier.parked())
    }

    /// Drops the tombstones of `of`'s log that may go; how many?
    pub fn collect(&mut self, of: usize) -> Result<usize, Fail> {
        let (zone, me) = (Zone(of as u8), self.me());
        let Some(live) = &self.live else { return Ok(0) };
        let seq = if of == me { self.everywhere() } else { live.receivers[of].everywhere() };
        let mut found = vec![];
        let keep = &mut |table: &[u8], key: &[u8], row: &replog::store::Row| {
            found.push((Bytes::copy_from_slice(table), Bytes::copy_from_slice(key), row.clone()));
        };
        self.disk.store.tombstones(zone, 0..=seq, 100, keep).map_err(|e| Fail(e.to_string()))?;
        let mut changes = live.applier.collect(&found, &[(zone, seq)].into_iter().collect());
        if self.broken == Broken::TombstonesByAge {
            let all = found.into_iter();
            changes.list = all.map(|(table, key, row)| Change::Drop { table, key, version: row.version }).collect();
        }
        self.commit(&changes)?;
        Ok(changes.list.len())
    }

    /// What every other zone has said to have applied of the own log.
    pub fn everywhere(&self) -> u64 {
        let me = self.me();
        let senders = self.live.iter().flat_map(|l| l.senders.iter().enumerate());
        senders.filter(|(p, _)| *p != me).map(|(_, s)| s.applied()).min().unwrap_or(0)
    }

    /// For each link, whether its zone confirms a seq of the own log.
    pub fn confirmed(&self) -> Vec<impl Fn(u64) -> bool + use<>> {
        let (me, live) = (self.me(), self.live.iter());
        let senders = live.flat_map(|l| l.senders.iter().map(|s| (s.acked(), s.live(), l.gate.map().epoch())));
        let peers = senders.enumerate().filter(|(p, _)| *p != me).map(|(_, of)| of);
        peers.map(|(acked, its_map, map)| move |seq| confirms(acked, its_map, seq, map)).collect()
    }

    /// What the links say of it.
    pub fn tell_everywhere(&mut self) {
        let seq = self.everywhere();
        self.live.iter_mut().flat_map(|l| &mut l.senders).for_each(|s| s.on_everywhere(seq));
    }

    /// The next batch of `of`'s log from another zone's mirror; was it taken?
    pub fn lent(&mut self, of: usize, mirror: &[Rc<Block>]) -> Result<bool, Fail> {
        let Some(live) = self.live.as_mut() else { return Ok(false) };
        let next = live.receivers[of].accepted() + 1;
        let Some(block) = mirror.iter().find(|b| b.batch.first_seq == next) else { return Ok(false) };
        let lent = live.receivers[of].on_lent(of as u128 + 1, block.batch.clone());
        let lent = lent.map_err(|stop| Fail(format!("{} is lent {of}'s log: {stop}", self.id)))?;
        let taken = lent.is_some();
        live.written[of].extend(lent.map(Block::of));
        Ok(taken)
    }

    /// Bytes of a connection that is long gone: whatever they are, nothing but what follows is taken, and a receiver that they have
    /// stopped is judged anew, as the driver does.
    pub fn stale(&mut self, of: usize, bytes: &[u8], now_us: u64) {
        let Some(live) = self.live.as_mut() else { return };
        live.receivers[of].on_connect(now_us);
        live.receivers[of].on_bytes(bytes, now_us);
        while let Some(order) = live.receivers[of].next_order(now_us) {
            if let Order::Append(batch) = order {
                live.written[of].push(Block::of(batch));
            }
        }
        live.receivers[of].on_disconnect();
        if live.receivers[of].stopped().or(live.receivers[of].refused()).is_some() {
            self.judge_anew(of);
        }
    }

    /// A mirror's end of a link begins anew; what waits for its flush comes again.
    pub fn judge_anew(&mut self, of: usize) {
        let Some(live) = &self.live else { return };
        let epoch = live.gate.map().epoch();
        let again = self.receiver(of, &live.applier, epoch, &map_bytes(epoch));
        let live = self.live.as_mut().expect("up");
        live.written[of].clear();
        live.receivers[of] = again;
        self.freeze_links();
    }

    pub fn after_apply(&mut self, zone: Zone) {
        let me = self.me();
        let told = self.live.as_ref().map_or(0, |live| self.told(&live.applier, zone));
        let live = self.live.as_mut().expect("up");
        for (z, shard, epoch) in live.applier.fences() {
            live.gate.on_fence_applied(z, shard, epoch);
        }
        if usize::from(zone.0) != me {
            live.receivers[usize::from(zone.0)].on_applied(told);
        }
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), Fail> {
        let mut changes = changes.clone();
        if self.broken == Broken::PositionApart && self.disk.applied_rows().is_multiple_of(3) {
            changes.list.retain(|c| !matches!(c, Change::Applied(..)));
        }
        changes.durable &= self.broken != Broken::MapTakenBack;
        let twice = |(zone, seq)| Fail(format!("{} applied {zone}@{seq} twice", self.id));
        self.disk.commit(&changes).map_err(twice)
    }

    /// Stores a map, then acts on it, unless there is to be a crash between; is there?
    pub fn on_map(&mut self, map: &Arc<SimMap>, now: (u64, u64), crash: bool) -> Result<bool, Fail> {
        let Some(live) = self.live.as_mut() else { return Ok(false) };
        if map.epoch <= live.gate.map().epoch() {
            return Ok(false);
        }
        let owners: Arc<dyn Owners> = map.clone();
        let changes = live.applier.on_map(Arc::clone(&owners), map_bytes(map.epoch));
        if self.broken != Broken::MapNotStored {
            self.commit(&changes)?;
        }
        if crash {
            return Ok(true);
        }
        self.acted = map.epoch;
        let live = self.live.as_mut().expect("up");
        let fences = live.gate.on_map(owners, live.applier.positions(), now.0).expect("newer");
        live.senders.iter_mut().for_each(|s| s.on_map(map.epoch, map_bytes(map.epoch), now.1));
        live.receivers.iter_mut().for_each(|r| r.on_map(map.epoch, map_bytes(map.epoch), now.1));
        fences.into_iter().for_each(|f| {
            self.append(f);
        });
        self.freeze_links();
        Ok(false)
    }

    /// Step 3 of a take-over.
    pub fn report(&mut self, shard: Shard) -> Result<Option<(MapEpoch, shardmap::Positions)>, Fail> {
        let Some(live) = self.live.as_mut().filter(|l| !l.gate.is_read_only()) else { return Ok(None) };
        let lost =
            live.gate.map().history(shard).and_then(|h| h.view().lost).map_or(0, |(zone, _)| usize::from(zone.0));
        if live.applier.applied(Zone(lost as u8)) < last_seq(&self.disk.logs[lost]).max(last_seq(&live.written[lost])) {
            return Ok(None); // it applies all that it has taken first
        }
        let Some((cut, changes)) = live.applier.report(shard) else { return Ok(None) };
        let epoch = live.gate.map().history(shard).expect("reported").view().epoch;
        let applied = live.applier.positions();
        let unparked = cut.iter().map(|(zone, seq)| (zone, seq.max(applied.get(zone).unwrap_or(0)))).collect();
        self.commit(&changes)?;
        let blind = self.broken == Broken::CutIgnoresParked;
        Ok(Some((epoch, if blind { unparked } else { cut })))
    }

    fn fences_due(&mut self, now_ms: u64) {
        let live = self.live.as_mut().expect("up");
        let due = live.gate.fences_due(live.applier.positions(), now_ms);
        due.into_iter().for_each(|f| {
            self.append(f);
        });
    }

    pub fn freeze_links(&mut self) {
        let live = self.live.as_mut().expect("up");
        for (o, receiver) in live.receivers.iter_mut().enumerate() {
            let mut lost = false;
            live.gate.map().each(&mut |_, h| lost |= h.is_lost_by(Zone(o as u8)));
            receiver.on_frozen(lost);
        }
    }

    /// The row's owner epoch: of what is appended and not applied, else the store's.
    fn row(&self, key: &Bytes) -> Option<OwnerEpoch> {
        let stored = self.disk.store.row(b"t", key).unwrap().map(|r| r.version.owner_epoch);
        let own = self.own_records().filter(|r| is_row(r) && r.key == key).map(|r| r.owner_epoch);
        own.chain(stored).max()
    }

    /// Everything in the own log, flushed or not.
    pub fn own_records(&self) -> impl Iterator<Item = &Record> {
        let me = self.me();
        let written = self.live.iter().flat_map(move |l| &l.written[me]);
        let blocks = self.disk.logs[me].iter().chain(written);
        blocks.flat_map(|b| b.records.iter().map(|(_, r)| r)).chain(self.live.iter().flat_map(|l| &l.collect))
    }

    /// Everything of other zones' logs that has been applied here and is not parked.
    pub fn applied_records(&self) -> Vec<(Zone, Record)> {
        let state = self.disk.store.state().unwrap();
        let parked: BTreeSet<_> = state.parked.iter().map(|p| (p.zone, p.seq)).collect();
        let mut out = vec![];
        for (o, blocks) in self.disk.logs.iter().enumerate().filter(|(o, _)| *o != self.me()) {
            let zone = Zone(o as u8);
            let applied = state.applied.get(zone).unwrap_or(0);
            let records = blocks.iter().flat_map(|b| &b.records).filter(|(seq, _)| *seq <= applied);
            let taken = records.filter(|(seq, _)| !parked.contains(&(zone, *seq)));
            out.extend(taken.map(|(_, r)| (zone, r.clone())));
        }
        out
    }
}

/// Is it a write?
pub fn is_row(record: &Record) -> bool {
    matches!(record.op, Op::Put | Op::Delete)
}

pub fn map_bytes(epoch: MapEpoch) -> Bytes {
    Bytes::copy_from_slice(&epoch.0.to_le_bytes())
}

fn place(origin: usize, peer: usize) -> Place {
    let (origin, peer) = (Zone(origin as u8), Zone(peer as u8));
    Place { cluster: Bytes::from_static(b"sim"), origin, peer, stream: 0, streams: 1 }
}
