//! Zones, a store, services that come and go, people who ask: and what must hold after each map.

use crate::zone::{ZoneSim, name};
use gzs::api::{AuditView, LeaseTold, NodeTold, OpAsk, What};
use gzs::change::{Change, Unstored};
use gzs::limits::{LIVE_MS, TELL_SOON_MS};
use gzs::service::{Service, Settings};
use gzs::store::Store;
use gzs::store::memory::Memory;
use serde_json::{Value, json};
use shardmap::edit;
use shardmap::fence::Fences;
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::ownership::{History, Kind};
use shardmap::{MapEpoch, Shard, Zone};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

const ZONES: usize = 3;
const SHARDS: [u16; 6] = [0, 1, 2, 3, 1024, 1025];
/// So many of them have a fence.
const FENCED: usize = 4;
const LEASE_MS: u64 = 900;
/// The longest that an answer to a telling is under way: longer than what it tells is worth.
const DELAY_MS: u64 = 3000;
const STEPS: u32 = 1500;
const CALM_STEPS: u32 = 3000;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Broken {
    Nothing,
    /// The store takes what was made from an old state.
    StoreCompares,
    /// Routers say that nothing is under way though something is.
    RoutersHold,
    /// The target says that it has the FENCE before it has.
    FenceApplied,
    /// A report that was made under an older map is told as one of today.
    OldReports,
    /// A map is handed out before it is stored.
    MapFirst,
    /// A lease is told before its grant is stored.
    GrantFirst,
    /// A service that starts does not wait for what was granted before.
    WaitAtStart,
    /// A service's clock steps.
    SteadyClock,
    /// A zone counts a lease from when it came, not from when it asked.
    FromSending,
}

macro_rules! figures {
    ($($name:ident),*) => {
        #[derive(Clone, Default, Debug)]
        pub struct Figures { $(pub $name: u64),* }
        impl Figures {
            pub fn add(&mut self, other: &Figures) { $(self.$name += other.$name;)* }
            pub fn rarest(&self) -> (&'static str, u64) {
                [$((stringify!($name), self.$name)),*].into_iter().min_by_key(|f| f.1).expect("there are figures")
            }
        }
    };
}
figures!(
    moves,
    take_overs,
    alive_take_overs,
    given,
    returned,
    replaced,
    deaths,
    overtaken,
    aborts,
    resumed,
    restored,
    gave_up,
    leased_writes,
    unleased,
    globals_taken_over,
    edits,
    held_edits,
    edits_given_up
);

pub struct Rng(u64);
impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A service, and its clock: each process has its own.
struct Server {
    service: Service,
    ahead_ms: u64,
}
impl Deref for Server {
    type Target = Service;
    fn deref(&self) -> &Service {
        &self.service
    }
}
impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Service {
        &mut self.service
    }
}

/// Leases on their way to a zone.
struct Flight {
    arrives_ms: u64,
    zone: usize,
    /// When the telling was sent that they answer, by the zone's clock.
    sent_ms: u64,
    leases: Vec<LeaseTold>,
}

pub struct World {
    rng: Rng,
    now_ms: u64,
    store: Memory,
    /// Services that live: one, and now and then one that should have ended.
    services: Vec<Server>,
    flights: Vec<Flight>,
    /// Which of two services each zone reaches; 2: both.
    hears: [usize; ZONES],
    zones: Vec<ZoneSim>,
    /// Every map that was stored, by epoch: one chain.
    maps: Vec<Arc<Map>>,
    broken: Broken,
    told: bool,
    pub figures: Figures,
}

fn first_map() -> Map {
    let zone = |id| ZoneInfo { id: Zone(id), name: name(Zone(id)) };
    let histories = SHARDS.map(|s| (Shard(s), History::new(Zone((s % 3) as u8), MapEpoch(1))));
    Map::from_parts(Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: None,
        zones: (0..ZONES as u8).map(zone).collect(),
        histories: histories.into(),
        exceptions: Exceptions::default(),
        globals: [(Shard(1024), "users".into()), (Shard(1025), "coupons".into())].into(),
        fences: Arc::new(Fences::new(vec![], 0, 0).unwrap()),
    })
    .unwrap()
}

/// Each shard has a strip of land of its own; where they meet is up to `cuts`, in 11 m, from the west.
fn strips(cuts: &[u64]) -> Value {
    let strip = |(shard, ends): (usize, &[u64])| {
        let (w, e) = (ends[0] as f64 * 1024e-7, ends[1] as f64 * 1024e-7);
        let ring = [[w, 0.0], [e, 0.0], [e, 4096e-7], [w, 4096e-7], [w, 0.0]];
        json!({"type": "Feature", "properties": {"name": format!("S{shard}"), "shard": shard},
            "geometry": {"type": "Polygon", "coordinates": [ring]}})
    };
    let features: Vec<Value> = cuts.windows(2).enumerate().map(strip).collect();
    json!({"type": "FeatureCollection", "features": features})
}

/// Services of one cluster may be configured differently for a while.
fn settings(begins_ms: u64) -> Settings {
    Settings {
        cluster: "sim".into(),
        silence_ms: 1500,
        cool_down_ms: 200,
        move_limit_ms: 3000,
        requests_per_s_max: BTreeMap::new(),
        lease_ms: if begins_ms.is_multiple_of(4) { 3 * LEASE_MS } else { LEASE_MS },
    }
}

impl World {
    pub fn new(seed: u64, broken: Broken, told: bool) -> World {
        let (map, mut store) = (first_map(), Memory::default());
        store.adopt(&map, &AuditView { epoch: 1, ..AuditView::default() }).unwrap();
        let map = Arc::new(map);
        let (mut rng, figures) = (Rng(seed), Figures::default());
        let mut zones: Vec<_> = (0..ZONES as u8).map(|z| ZoneSim::new(Zone(z), ZONES, map.clone())).collect();
        zones.iter_mut().for_each(|z| z.rate = 960 + rng.below(80));
        let now_ms = 1_000_000;
        World {
            rng,
            now_ms,
            store,
            services: vec![],
            flights: vec![],
            hears: [2; ZONES],
            zones,
            maps: vec![map],
            broken,
            told,
            figures,
        }
    }

    pub fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.now_ms += self.rng.below(20);
            self.happen()?;
        }
        self.tell("--- calm");
        for zone in &mut self.zones {
            (zone.alive, zone.reached) = (true, true);
        }
        for step in 0..CALM_STEPS {
            self.now_ms += TELL_SOON_MS / 2;
            self.services.truncate(1);
            self.flow();
            self.serve()?;
            if step > CALM_STEPS / 3 && step % 50 == 0 && self.is_settled() {
                return Ok(());
            }
        }
        let service = self.services.first();
        let ops = service.map(|s| s.ops(false)).unwrap_or_default();
        let unsettled: Vec<_> = self.newest().unsettled().collect();
        Err(format!("not settled: shards {unsettled:?}, operations {ops:?}, {:?}", service.and_then(|s| s.stopped())))
    }

    fn is_settled(&self) -> bool {
        self.newest().unsettled().next().is_none() && self.services.first().is_some_and(|s| s.ops(false).is_empty())
    }

    fn newest(&self) -> &Arc<Map> {
        self.maps.last().expect("there is a first")
    }

    fn tell(&self, what: &str) {
        if self.told {
            println!("{:>8} {what}", self.now_ms);
        }
    }

    /// One thing that happens.
    fn happen(&mut self) -> Result<(), String> {
        self.flow();
        let zone = self.rng.below(ZONES as u64) as usize;
        match self.rng.below(200) {
            0 => self.service_dies(),
            1 => {
                let alive = self.zones.iter().filter(|z| z.alive).count();
                if alive == ZONES {
                    self.zones[zone].alive = false;
                    self.tell(&format!("{} dies", name(Zone(zone as u8))));
                }
            }
            2 | 3 => {
                let now = self.now_ms;
                for z in self.zones.iter_mut().filter(|z| !z.alive) {
                    z.alive = true;
                    // One that was only stopped goes on as if nothing had happened.
                    if self.rng.below(2) == 0 {
                        z.restarts(now);
                    }
                }
            }
            4 => self.zones[zone].reached = false,
            5 | 6 => self.zones.iter_mut().for_each(|z| z.reached = true),
            7..=12 => self.ask()?,
            _ => {}
        }
        self.serve()
    }

    /// What it had not stored is gone.
    fn service_dies(&mut self) {
        if self.services.pop().is_some() {
            self.figures.deaths += 1;
            self.tell("a service dies");
        }
    }

    /// What flows by itself: requests, records, maps, tellings.
    fn flow(&mut self) {
        let logs: Vec<_> = self.zones.iter().map(|z| z.log.clone()).collect();
        let newest = self.newest().clone();
        for at in 0..ZONES {
            if !self.zones[at].alive {
                continue;
            }
            if self.zones[at].reached && self.rng.below(3) > 0 {
                let only = self.services.get(self.hears[at]).filter(|_| self.services.len() > 1);
                let map = only.map_or(newest.clone(), |service| service.map().clone());
                self.zones[at].take_map(&map);
            }
            if self.rng.below(2) == 0 {
                self.zones[at].router_epoch = self.zones[at].map.epoch().0;
            }
            let from = self.rng.below(ZONES as u64) as usize;
            let most = self.rng.below(6) as usize;
            self.zones[at].apply(Zone(from as u8), logs[from].len(), most);
            self.request(at);
        }
        self.heard();
    }

    /// Requests begin at a router, and end in a write at the owner that the router knew, if that one still may.
    fn request(&mut self, at: usize) {
        let shard = Shard(SHARDS[self.rng.below(SHARDS.len() as u64) as usize]);
        let zone = &mut self.zones[at];
        let held = zone.map.view(shard).is_none_or(|v| v.kind.is_unsettled());
        if !held && zone.flying.len() < 3 {
            zone.flying.push((shard, zone.router_epoch));
        }
        if self.rng.once_in(3) && !self.zones[at].flying.is_empty() {
            let (shard, _) = self.zones[at].flying.remove(0);
            if let Some(owner) = self.zones[at].map.owner(shard).filter(|o| self.zones[usize::from(o.0)].alive) {
                let done = self.zones[usize::from(owner.0)].write(shard, self.now_ms);
                self.figures.leased_writes += u64::from(done && shard.is_global());
                self.figures.unleased += u64::from(!done && shard.is_global());
            }
        }
    }

    fn heard(&mut self) {
        let logs: Vec<_> = self.zones.iter().map(|z| z.log.clone()).collect();
        for at in 0..ZONES {
            if !(self.zones[at].alive && self.zones[at].reached) || self.rng.below(3) == 0 {
                continue;
            }
            let (log, router) = (self.zones[at].told(&logs), self.zones[at].router_told());
            let (log, router) = (self.lied(log), self.lied(router));
            let sent_ms = self.zones[at].clock_ms(self.now_ms);
            let only = self.hears[at];
            let some = self.services.len() > 1 && only < 2;
            for (_, service) in self.services.iter_mut().enumerate().filter(|(n, _)| !some || *n == only) {
                let now = self.now_ms + service.ahead_ms;
                let asked = service.on_told(log.clone(), now).expect("it is a node of this cluster");
                self.zones[at].asks = asked.asks;
                let delay_ms = if self.rng.once_in(4) { DELAY_MS } else { 60 };
                let arrives_ms = self.now_ms + self.rng.below(delay_ms);
                self.flights.push(Flight { arrives_ms, zone: at, sent_ms, leases: asked.leases });
                service.on_told(router.clone(), now).expect("it is a node of this cluster");
            }
        }
        self.answered();
    }

    /// Leases arrive.
    fn answered(&mut self) {
        let now = self.now_ms;
        let (here, flying) = std::mem::take(&mut self.flights).into_iter().partition(|f| f.arrives_ms <= now);
        self.flights = flying;
        for flight in here {
            let zone = &mut self.zones[flight.zone];
            let from_answer = self.broken == Broken::FromSending;
            if zone.alive && zone.reached {
                zone.leased(&flight.leases, if from_answer { zone.clock_ms(now) } else { flight.sent_ms });
            }
        }
    }

    /// The rule of global services: at no moment may two zones write the same one.
    fn one_writer(&self) -> Result<(), String> {
        for shard in SHARDS.map(Shard).into_iter().filter(|s| s.is_global()) {
            let may = self.zones.iter().filter(|z| z.alive && z.may_write(shard, self.now_ms));
            let may: Vec<_> = may.map(|z| z.id).collect();
            if may.len() > 1 {
                return Err(format!("global shard {shard}: zones {may:?} may write it, at {}", self.now_ms));
            }
        }
        Ok(())
    }

    /// Nodes that break a rule.
    fn lied(&self, mut told: NodeTold) -> NodeTold {
        match self.broken {
            Broken::RoutersHold => {
                told.map_epoch = told.map_epoch.max(if told.router.is_some() { self.newest().epoch().0 } else { 0 });
                told.router.iter_mut().for_each(|r| r.in_flight_unsettled = 0);
            }
            Broken::FenceApplied => {
                for report in told.log.iter_mut().flat_map(|l| &mut l.reports) {
                    report.fence_seq = report.fence_seq.map(|s| s.saturating_sub(1));
                }
            }
            Broken::OldReports => {
                for report in told.log.iter_mut().flat_map(|l| &mut l.reports) {
                    report.applied.values_mut().for_each(|seq| *seq += 1);
                }
            }
            Broken::Nothing
            | Broken::StoreCompares
            | Broken::MapFirst
            | Broken::GrantFirst
            | Broken::WaitAtStart
            | Broken::SteadyClock
            | Broken::FromSending => {}
        }
        told
    }

    /// A person asks for something.
    fn ask(&mut self) -> Result<(), String> {
        let (zone, other) = (self.rng.below(3) as u8, self.rng.below(3) as u8);
        let named = |z| name(Zone(z));
        let shards: Vec<u16> = SHARDS.into_iter().filter(|_| self.rng.once_in(2)).collect();
        let alive = self.zones[usize::from(zone)].alive;
        let what = match self.rng.below(14) {
            12 | 13 => return self.ask_edit(),
            0..=3 => What::Move { shards, to: named(zone) },
            4 => What::Evacuate { zone: named(zone), to: None },
            5 | 6 => What::Restore { zone: named(zone) },
            7 => What::TakeOver { zone: named(zone), to: Some(named(other)).filter(|_| self.rng.once_in(2)) },
            8 => What::Unlock { shards },
            n => return self.change_course(n == 9),
        };
        let lost = matches!(what, What::TakeOver { .. });
        let at = self.rng.below(self.services.len().max(1) as u64) as usize;
        let limit_ms = Some(200 + self.rng.below(3000));
        let ask = OpAsk { what, by: "a person".into(), why: String::new(), force: !self.rng.once_in(3), limit_ms };
        let Some(Ok(change)) = self.services.get(at).map(|s| s.begin(&ask, self.now_ms + s.ahead_ms)) else {
            return Ok(());
        };
        self.tell(&format!("begins {:?}", ask.what));
        self.figures.alive_take_overs += u64::from(lost && alive);
        self.store(at, change)
    }

    /// A person draws other borders, and asks with a preview that may be old.
    fn ask_edit(&mut self) -> Result<(), String> {
        let mut cuts = vec![0];
        (0..FENCED).for_each(|n| cuts.push(cuts[n] + 1 + self.rng.below(3)));
        let at = self.rng.below(self.services.len().max(1) as u64) as usize;
        let (back, limit_ms) = (self.rng.below(30).saturating_sub(25), Some(200 + self.rng.below(3000)));
        let Some(service) = self.services.get(at) else { return Ok(()) };
        let from_epoch = service.map().epoch().0.saturating_sub(back);
        let fences = gzs::fences::prepare(service.map(), &strips(&cuts), None).map_err(|e| e.join("; "))?;
        let what = What::Fences { from_epoch, geojson: Value::Null, datum: None };
        let force = !self.rng.once_in(3);
        let ask = OpAsk { what, by: "a person".into(), why: String::new(), force, limit_ms };
        let Ok(change) = service.begin_edit(&ask, &fences, self.now_ms + service.ahead_ms) else { return Ok(()) };
        self.tell(&format!("begins an edit from map {from_epoch}: {cuts:?}"));
        self.store(at, change)
    }

    fn change_course(&mut self, abort: bool) -> Result<(), String> {
        let at = self.rng.below(self.services.len().max(1) as u64) as usize;
        let Some(service) = self.services.get(at) else { return Ok(()) };
        let id = 1 + self.rng.below(service.ops(true).len().max(1) as u64);
        let now = self.now_ms + service.ahead_ms;
        let changed = if abort { service.abort(id, "a person", now) } else { service.resume(id, now) };
        let Ok(change) = changed else { return Ok(()) };
        self.tell(&format!("operation {id}: {}", if abort { "abort" } else { "resume" }));
        self.figures.aborts += u64::from(abort);
        self.figures.resumed += u64::from(!abort);
        self.store(at, change)
    }

    /// Every service goes on with what it has, each as far as it gets.
    fn serve(&mut self) -> Result<(), String> {
        if self.services.is_empty() || (self.services.len() < 2 && self.rng.once_in(400)) {
            self.service_starts();
        }
        for at in (0..self.services.len()).rev() {
            if self.broken == Broken::SteadyClock && self.rng.once_in(200) {
                self.services[at].ahead_ms += 2 * LEASE_MS;
            }
            if self.services[at].wants_reload() {
                let held = self.store.load().unwrap().expect("there is a map");
                self.services[at].reload(held);
                if let Some(why) = self.services[at].stopped() {
                    return Err(format!("a service stopped: {why}"));
                }
            }
            for _ in 0..8 {
                let now = self.now_ms + self.services[at].ahead_ms;
                let Some(change) = self.services[at].next_change(now) else { break };
                if self.rng.once_in(100) {
                    break; // it is slow: another may come first
                }
                self.store(at, change)?;
                if self.services.len() <= at {
                    break;
                }
            }
        }
        if self.services.len() > 1 && self.rng.once_in(150) {
            self.services.remove(0);
        }
        self.one_writer()
    }

    fn service_starts(&mut self) {
        self.hears = self.hears.map(|_| self.rng.below(4).min(2) as usize);
        let mut held = self.store.load().unwrap().expect("there is a map");
        let ahead_ms = self.rng.below(300);
        let mut begins_ms = self.now_ms + ahead_ms;
        if self.broken == Broken::WaitAtStart {
            held.grants.iter_mut().for_each(|(_, grant)| grant.lasts_ms = 0);
            begins_ms -= 2 * LEASE_MS;
        }
        self.services.push(Server { service: Service::new(held, vec![], settings(begins_ms), begins_ms), ahead_ms });
    }

    fn store(&mut self, at: usize, change: Change) -> Result<(), String> {
        if self.broken == Broken::MapFirst
            && let Some(map) = &change.map
        {
            let map = Arc::new(map.clone());
            self.zones.iter_mut().filter(|z| z.alive && z.reached).for_each(|z| z.take_map(&map));
        }
        // It dies before it stores, or after, before it knows.
        let fate = self.rng.below(60);
        if fate == 0 {
            self.services.remove(at);
            self.figures.deaths += 1;
            return Ok(());
        }
        match self.commit(&change) {
            Ok(()) => self.stored(&change)?,
            Err(Unstored::Overtaken { .. }) => {
                self.figures.overtaken += 1;
                let held = self.store.load().unwrap().expect("there is a map");
                self.services[at].reload(held);
                return Ok(());
            }
            Err(e) => return Err(e.to_string()),
        }
        if fate == 1 {
            self.services.remove(at);
            self.figures.deaths += 1;
        } else {
            self.services[at].on_stored(change);
        }
        Ok(())
    }

    fn commit(&mut self, change: &Change) -> Result<(), Unstored> {
        if self.broken == Broken::GrantFirst {
            let alone = change.map.is_none() && change.op.is_none();
            let rest = Change { grants: vec![], ..change.clone() };
            return if alone { Ok(()) } else { self.store.commit(&rest) };
        }
        if self.broken != Broken::StoreCompares {
            return self.store.commit(change);
        }
        let mut change = change.clone();
        change.from_epoch = self.newest().epoch().0;
        change.grants.clear();
        if let Some(op) = &mut change.op {
            let held = self.store.load().unwrap().expect("there is a map");
            op.revision = held.ops.iter().find(|o| o.id == op.id).map_or(0, |o| o.revision) + 1;
        }
        self.store.commit(&change)
    }

    /// What must hold of each map that was stored, whoever made it.
    fn stored(&mut self, change: &Change) -> Result<(), String> {
        self.count(change);
        self.done_is_done(change)?;
        let Some(next) = &change.map else { return Ok(()) };
        let before = self.newest().clone();
        let told: Vec<String> = before.diff(next).iter().map(ToString::to_string).collect();
        self.tell(&format!("map {}: {}", next.epoch(), told.iter().skip(1).cloned().collect::<Vec<_>>().join("; ")));
        before.may_become(next).map_err(|e| format!("map {}: {e:?}", next.epoch()))?;
        if before.fences_digest() != next.fences_digest() {
            self.edited(&before, next)?;
        }
        for (shard, history) in next.shards() {
            let (was, is) = (before.view(shard).expect("shards stay"), history.view());
            if is.epoch != next.epoch() || was.kind != Kind::Moving || is.kind != Kind::Own || is.owner == was.owner {
                continue;
            }
            self.moved(
                shard,
                was.owner.expect("moving has one"),
                is.owner.expect("own has one"),
                history,
                was.epoch.0,
            )?;
        }
        self.maps.push(Arc::new(next.clone()));
        Ok(())
    }

    /// Where land goes to a shard of another zone, nobody writes the shard that gives it.
    fn edited(&mut self, before: &Map, next: &Map) -> Result<(), String> {
        let held = edit::holds(before, &edit::preview(before, next.fences()).gives);
        for shard in held.keys() {
            let v = before.view(*shard).expect("it is on the map");
            self.nobody_writes(*shard, v.owner.expect("moving has one"), v.to.expect("and a target"), v.epoch.0)?;
        }
        self.figures.edits += 1;
        self.figures.held_edits += u64::from(!held.is_empty());
        Ok(())
    }

    /// A shard was given from one zone to another by a planned move: nothing may be missing there, now or later.
    fn moved(&self, shard: Shard, from: Zone, to: Zone, history: &History, moving: u64) -> Result<(), String> {
        let (source, target) = (&self.zones[usize::from(from.0)], &self.zones[usize::from(to.0)]);
        self.nobody_writes(shard, from, to, moving)?;
        let cut = history.view().cut.get(from).ok_or("no cut in the source's log")?;
        if source.log.get(cut as usize - 1).is_none_or(|r| r.shard != shard || r.fence.is_none()) {
            return Err(format!("shard {shard}: the cut {cut} is not the FENCE of {from}"));
        }
        let beyond = history.view().cut.iter().find(|(z, seq)| *seq > target.applied[usize::from(z.0)] as u64);
        if let Some((z, seq)) = beyond {
            return Err(format!("shard {shard}: the cut in {z}'s log is {seq}, {to} has not applied so much"));
        }
        Ok(())
    }

    /// A shard is on its way since map `moving`: its owner has ended writing it, the target has all of that, and no router that is heard
    /// has a request for it under way.
    fn nobody_writes(&self, shard: Shard, from: Zone, to: Zone, moving: u64) -> Result<(), String> {
        let (source, target) = (&self.zones[usize::from(from.0)], &self.zones[usize::from(to.0)]);
        let applied = target.applied[usize::from(from.0)];
        let last = source.log.iter().rposition(|r| r.shard == shard && r.fence.is_none()).map_or(0, |at| at + 1);
        if last > applied {
            return Err(format!("shard {shard}: {from} wrote {last}, {to} has applied {applied} of its log"));
        }
        if source.map.history(shard).is_some_and(|h| h.may_write(from, source.own_fence(shard), false).is_ok()) {
            return Err(format!("shard {shard} is held for {to}, and {from} may still write it"));
        }
        for zone in self.zones.iter().filter(|z| z.alive && z.reached && self.heard_lately(z)) {
            let begun_before = |(s, begun): &&(Shard, u64)| *s == shard && *begun < moving;
            if let Some((_, begun)) = zone.flying.iter().find(begun_before)
                && zone.router_epoch < moving
            {
                return Err(format!("shard {shard} is given at {moving} while {} flies one of map {begun}", zone.id));
            }
        }
        Ok(())
    }

    fn heard_lately(&self, zone: &ZoneSim) -> bool {
        self.now_ms.saturating_sub(zone.begun_ms) > LIVE_MS
            && self.services.iter().all(|s| {
                let state = s.state(self.now_ms + s.ahead_ms);
                let nodes =
                    state.zones.iter().find(|z| z.id == Some(zone.id.0)).map(|z| z.nodes.clone()).unwrap_or_default();
                nodes.len() == 2 && nodes.iter().all(|n| n.heard_ms_ago < LIVE_MS)
            })
    }

    /// An operation that is called done has brought every shard to where it was to go; an edit gives them back.
    fn done_is_done(&self, change: &Change) -> Result<(), String> {
        use gzs::op::{End, Share};
        let Some(op) = change.op.as_ref().filter(|op| op.ended.is_some_and(|(_, end)| end == End::Done)) else {
            return Ok(());
        };
        let map = change.map.as_ref().unwrap_or(self.newest());
        let is_there = |s: &Share| map.owner(Shard(s.shard)) == Some(Zone(s.to));
        match op.shares.iter().find(|s| op.edit.is_none() && !is_there(s)) {
            Some(away) => Err(format!("operation {} is called done, and its shard is elsewhere: {away:?}", op.id)),
            None => Ok(()),
        }
    }

    fn count(&mut self, change: &Change) {
        use gzs::op::{At, End};
        let Some(op) = &change.op else { return };
        let f = &mut self.figures;
        if op.revision == 1 {
            f.moves += u64::from(matches!(op.what, What::Move { .. } | What::Evacuate { .. }));
            f.take_overs += u64::from(matches!(op.what, What::TakeOver { .. }));
            f.restored += u64::from(matches!(op.what, What::Restore { .. }));
        }
        let Some((_, end)) = op.ended else { return };
        f.gave_up += u64::from(end == End::GaveUp);
        f.edits_given_up += u64::from(op.edit.is_some() && end != End::Done);
        for share in &op.shares {
            match share.at {
                At::Given(_) => {
                    f.given += 1;
                    f.globals_taken_over += u64::from(op.lost().is_some() && Shard(share.shard).is_global());
                }
                At::Returned(_) => f.returned += 1,
                At::Replaced(_) => f.replaced += 1,
                At::Waiting | At::OnItsWay(_) => {}
            }
        }
    }
}
