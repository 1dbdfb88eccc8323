//! Two zones, each with a core, upstreams and a log; clients; a map that changes; and what goes wrong between them.

use super::client::{Client, Faults};
use super::ledger::Ledger;
use super::machine::{Machine, Wish};
use super::net::{End, Link};
use super::rng::Rng;
use super::store::Store;
use super::upstream::Upstream;
use dataplane::router::{ConnId, Found, Limits, Now, Peer, Routes, Service, Settings, Side, Tagged, Target};
use shardmap::ownership::{Entry, Kind};
use shardmap::{MapEpoch, Shard, Zone};
use std::net::SocketAddr;
use std::sync::Arc;

const ZONES: [Zone; 2] = [Zone(0), Zone(1)];
const SHARDS: usize = 4;
const CLIENTS_MAX: usize = 10;
const PEER_PORT: u16 = 900;

/// Shop `n` is in shard `n`.
#[derive(Clone)]
struct Map {
    epoch: u64,
    shards: Vec<Entry>,
}

impl Routes for Map {
    fn epoch(&self) -> MapEpoch {
        MapEpoch(self.epoch)
    }
    fn route(&self, tag: Option<&[u8]>, _: Option<&[u8]>, _: bool, _: u64) -> Option<Found> {
        let shop = std::str::from_utf8(tag?).ok()?.strip_prefix("shopid=")?;
        Some(Found { shard: Shard(shop.parse().ok()?), by: Tagged::Shop, malformed: 0 })
    }
    fn view(&self, shard: Shard) -> Option<&Entry> {
        self.shards.get((shard.0 as usize).checked_sub(1)?)
    }
    fn unsettled(&self) -> Vec<Shard> {
        let moving = |e: &Entry| matches!(e.kind, Kind::Moving | Kind::Lost);
        (1..).zip(&self.shards).filter(|(_, e)| moving(e)).map(|(s, _)| Shard(s)).collect()
    }
}

pub struct World {
    pub rng: Rng,
    now: Now,
    faults: Faults,
    calm: bool,
    machines: Vec<Machine>,
    links: Vec<Link>,
    clients: Vec<Client>,
    upstreams: Vec<Upstream>,
    stores: Vec<Store>,
    ledger: Ledger,
    maps: Vec<Arc<Map>>,
    /// Endpoints that refuse connections.
    down: Vec<usize>,
    quiet: bool,
}

fn addr(port: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port as u16))
}

/// Ports: 10, 11, 13 honest and 12 a liar in the first zone; 20 to 23 so in the second.
fn settings(zone: usize, limits: Limits, app: &[usize]) -> Settings {
    let base = 10 * (zone + 1);
    let service =
        |prefix: &str, ports: &[usize]| Service::new(prefix, &ports.iter().map(|p| addr(base + p)).collect::<Vec<_>>());
    Settings {
        zone: Some(ZONES[zone]),
        zone_names: vec![(ZONES[0], "bj".into()), (ZONES[1], "sh".into())],
        peers: vec![Peer::new(ZONES[1 - zone], &[addr(usize::from(PEER_PORT) + 1 - zone)])],
        log_ports: vec!["log".into()],
        services: vec![service("/app/", app), service("/lie/", &[2])],
        limits,
        ..Settings::default()
    }
}

/// Small limits, so that each is reached.
fn limits(calm: bool, rng: &mut Rng) -> Limits {
    let small = Limits {
        head_bytes_max: 1024,
        record_bytes_max: 3000,
        kept_bytes_max: 1500,
        buffer_bytes_max: *rng.pick(&[700, 2000, 5000]),
        connections_max: 40,
        pool_idle_max: *rng.pick(&[1, 2, 8]),
        asks_max: *rng.pick(&[2, 64]),
        hold_ms_max: 300,
        hold_count_max: *rng.pick(&[2, 50]),
        hold_bytes_max: *rng.pick(&[2000, 100_000]),
        connect_ms: 100,
        answer_ms: 400,
        read_ms: 300,
        idle_ms: 500,
        upstream_idle_ms: 250,
        linger_ms: 50,
        drain_idle_ms: 100,
        ..Limits::default()
    };
    if !calm {
        return small;
    }
    Limits {
        connections_max: 1000,
        asks_max: 64,
        hold_count_max: 50,
        hold_bytes_max: 100_000,
        ..Limits {
            buffer_bytes_max: small.buffer_bytes_max,
            head_bytes_max: 1024,
            kept_bytes_max: 1500,
            ..Limits::default()
        }
    }
}

impl World {
    /// `calm`: only what must never hurt a client goes wrong.
    pub fn new(mut rng: Rng, calm: bool) -> World {
        let limits = limits(calm, &mut rng);
        let machines = (0..2).map(|z| Machine::new(z, Arc::new(settings(z, limits, &[0, 1])))).collect();
        let first = |s| Entry::first(ZONES[s % 2], MapEpoch(1));
        let maps = vec![Arc::new(Map { epoch: 1, shards: (0..SHARDS).map(first).collect() })];
        let faults = faults(calm, &mut rng);
        let now = Now { ms: 1000, us: 1_000_000, wall_ms: 1_790_000_000_000 };
        let mut world = World {
            rng,
            now,
            faults,
            calm,
            machines,
            links: vec![],
            clients: vec![],
            upstreams: vec![],
            stores: vec![],
            ledger: Ledger::default(),
            maps,
            down: vec![],
            quiet: false,
        };
        if calm || world.rng.below(4) > 0 {
            (0..2).for_each(|m| world.adopt(m));
        }
        world
    }

    /// So many steps, then an end in which nothing may be left.
    pub fn run(mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
        self.end();
    }

    pub fn step(&mut self) {
        if self.rng.below(100) == 0 {
            self.clients.retain(|c| !c.done);
            self.upstreams.retain(|u| !u.done);
            self.stores.retain(|s| !s.done);
        }
        match self.rng.below(20) {
            0..9 => self.machine(),
            9..12 => self.client(),
            12..16 => self.upstream(),
            16 | 17 => self.store(),
            18 => self.time(),
            _ => self.event(),
        }
    }

    fn machine(&mut self) {
        let m = self.rng.below(2);
        let open = self.machines[m].socks.len();
        if open == 0 {
            return;
        }
        let index = self.rng.below(open);
        let wish = self.machines[m].step(index, &mut self.links, self.now, &mut self.rng);
        if let Wish::Connect(id, target) = wish {
            self.connect(m, id, target);
        }
    }

    /// A connect succeeds, fails, or takes longer.
    fn connect(&mut self, m: usize, id: ConnId, target: Target) {
        if self.rng.below(3) == 0 {
            return;
        }
        let link = self.links.len();
        let rooms = [*self.rng.pick(&[150, 1000, 20_000]), *self.rng.pick(&[150, 1000, 20_000])];
        let near = End::Core(m, id);
        let failed = self.rng.chance(self.faults.connects_fail);
        let far = match target {
            _ if failed => None,
            Target::Port(_) => {
                self.stores.push(Store::new(link, ZONES[m]));
                Some(End::Store(self.stores.len() - 1))
            }
            Target::Tls(..) => panic!("nobody here speaks TLS"),
            Target::Tcp(at) if at.port() >= PEER_PORT => {
                let other = usize::from(at.port() - PEER_PORT);
                let peer =
                    self.machines[other].core.on_accept(Side::Peer, self.now).filter(|_| !self.machines[other].stopped);
                if let Some(peer) = peer {
                    self.machines[other].place(peer, Some((link, 1)), None);
                }
                peer.map(|p| End::Core(other, p))
            }
            Target::Tcp(at) if self.down.contains(&usize::from(at.port())) => None,
            Target::Tcp(at) => {
                let port = usize::from(at.port());
                self.upstreams.push(Upstream::new(link, port, port % 10 == 2));
                Some(End::Upstream(self.upstreams.len() - 1))
            }
        };
        if let Some(far) = far {
            self.links.push(Link::new([near, far], rooms));
        }
        self.machines[m].connected(id, far.map(|_| (link, 0)), self.now);
        self.machines[m].after(&mut self.links, self.now, &mut self.rng);
    }

    fn client(&mut self) {
        let alive = self.clients.iter().filter(|c| !c.done).count();
        if alive < CLIENTS_MAX && !self.quiet && self.rng.below(12) == 0 {
            return self.arrive();
        }
        if !self.clients.is_empty() {
            let i = self.rng.below(self.clients.len());
            let client = &mut self.clients[i];
            let link = &mut self.links[client.link];
            client.step(link, &mut self.ledger, &mut self.rng, &self.faults, self.quiet);
        }
    }

    fn arrive(&mut self) {
        let m = self.rng.below(2);
        if self.machines[m].stopped {
            return;
        }
        let Some(id) = self.machines[m].core.on_accept(Side::Client, self.now) else { return };
        let link = self.links.len();
        let rooms = [*self.rng.pick(&[150, 1000, 20_000]), *self.rng.pick(&[150, 1000, 20_000])];
        self.links.push(Link::new([End::Client(self.clients.len()), End::Core(m, id)], rooms));
        self.machines[m].place(id, Some((link, 1)), None);
        self.clients.push(Client::new(link, self.calm, &mut self.rng));
        self.machines[m].after(&mut self.links, self.now, &mut self.rng);
    }

    fn upstream(&mut self) {
        if !self.upstreams.is_empty() {
            let i = self.rng.below(self.upstreams.len());
            let up = &mut self.upstreams[i];
            up.step(&mut self.links[up.link], &mut self.ledger, &mut self.rng, &self.faults);
        }
    }

    fn store(&mut self) {
        if !self.stores.is_empty() {
            let i = self.rng.below(self.stores.len());
            let newest = self.maps.len() as u64;
            let store = &mut self.stores[i];
            store.step(&mut self.links[store.link], &mut self.ledger, &mut self.rng, &self.faults, newest);
        }
    }

    fn time(&mut self) {
        let ms = if self.rng.chance(self.faults.jumps) { self.rng.below(400) } else { self.rng.below(5) };
        self.pass(ms as u64);
    }

    fn pass(&mut self, ms: u64) {
        self.now.ms += ms;
        self.now.us += ms * 1000;
        for m in &mut self.machines {
            if m.core.deadline().is_some_and(|at| at <= self.now.ms) {
                m.core.on_timer(self.now);
                m.orders(&mut self.links, self.now, &mut self.rng);
            }
        }
    }

    fn event(&mut self) {
        let m = self.rng.below(2);
        match self.rng.below(8) {
            0 | 1 => self.adopt(m),
            2 if self.rng.chance(self.faults.moves) => self.turn(),
            3 if self.rng.chance(self.faults.network_resets) && !self.links.is_empty() => {
                let i = self.rng.below(self.links.len());
                let link = &mut self.links[i];
                link.broken = true;
                link.pipes.iter_mut().for_each(|p| p.reset = true);
            }
            4 if self.rng.chance(self.faults.connects_fail) => self.flap(),
            5 if self.rng.chance(self.faults.stops) && !self.quiet => {
                self.machines[m].stop(&mut self.links, self.now, &mut self.rng);
            }
            6 if self.rng.chance(self.faults.reloads) => self.reload(m),
            _ => {}
        }
    }

    /// Other settings: endpoints come and go.
    fn reload(&mut self, m: usize) {
        let app = *self.rng.pick(&[&[0, 1][..], &[0], &[1], &[1, 0, 3], &[3]]);
        let machine = &mut self.machines[m];
        machine.core.on_settings(Arc::new(settings(m, machine.limits, app)), self.now);
        machine.orders(&mut self.links, self.now, &mut self.rng);
    }

    /// The next map: a shard begins to move, arrives, is lost, or comes back.
    fn turn(&mut self) {
        let mut map = Map::clone(self.maps.last().expect("there is a first map"));
        map.epoch += 1;
        let epoch = MapEpoch(map.epoch);
        let losses = self.faults.losses > 0;
        let e = &mut map.shards[self.rng.below(SHARDS)];
        match e.kind {
            Kind::Own | Kind::Unlock if losses && self.rng.below(2) == 0 => {
                (e.lost, e.kind) = (e.owner.map(|z| (z, e.owner_epoch)), Kind::Lost);
                (e.owner, e.epoch) = (None, epoch);
            }
            Kind::Own | Kind::Unlock => {
                e.to = e.owner.map(|z| ZONES[1 - z.0 as usize]);
                (e.kind, e.epoch) = (Kind::Moving, epoch);
            }
            Kind::Moving => *e = Entry::first(e.to.expect("a move has a target"), epoch),
            _ => *e = Entry::first(*self.rng.pick(&ZONES), epoch),
        }
        self.maps.push(Arc::new(map));
    }

    fn adopt(&mut self, m: usize) {
        let machine = &mut self.machines[m];
        if let Some(map) = self.maps.get(machine.map_at) {
            machine.map_at += 1;
            machine.core.on_map(map.clone(), self.now);
            machine.orders(&mut self.links, self.now, &mut self.rng);
        }
    }

    /// An endpoint dies with its connections, or is there again.
    fn flap(&mut self) {
        let port = 10 * (1 + self.rng.below(2)) + self.rng.below(2);
        if let Some(at) = self.down.iter().position(|p| *p == port) {
            self.down.swap_remove(at);
            return;
        }
        self.down.push(port);
        for up in self.upstreams.iter_mut().filter(|u| u.endpoint == port && !u.done) {
            up.leave(&mut self.links[up.link], true, &mut self.rng);
        }
    }

    /// All that was begun comes to its end: served to the last, or with nobody but the clock doing anything.
    fn end(&mut self) {
        self.quiet = true;
        if self.calm || self.rng.below(2) == 0 {
            self.settle();
        }
        for _ in 0..120 {
            self.pass(if self.calm { 1500 } else { 60 });
            self.close_closing();
        }
        for store in self.stores.iter_mut().filter(|s| !s.done) {
            store.leave(&mut self.links[store.link], &mut self.rng);
        }
        for _ in 0..2000 {
            self.machine();
        }
        self.close_closing();
        for m in &mut self.machines {
            let c = *m.core.counts();
            let left = (c.connections, c.in_flight, c.holding, c.in_flight_moving);
            assert_eq!(left, (0, 0, 0, 0), "connections, in flight, holding, moving of core {}", m.number);
        }
    }

    /// No new requests and no new faults; maps arrive; everyone reads and answers.
    fn settle(&mut self) {
        self.faults = Faults::default();
        self.down.clear();
        for _ in 0..300 {
            while self.maps.last().is_some_and(|m| m.shards.iter().any(|e| !matches!(e.kind, Kind::Own))) {
                self.turn();
            }
            while self.machines.iter().any(|m| m.map_at < self.maps.len()) {
                (0..2).for_each(|m| self.adopt(m));
            }
            for _ in 0..1500 {
                self.step();
            }
            if self.clients.iter().all(|c| c.done || c.satisfied()) {
                return;
            }
        }
        let left: Vec<_> = self.clients.iter().filter(|c| !c.done && !c.satisfied()).map(Client::shown).collect();
        assert!(!self.calm, "never answered: {left:?}");
    }

    fn close_closing(&mut self) {
        for _ in 0..3 {
            for m in 0..2 {
                for index in 0..self.machines[m].socks.len() {
                    self.machines[m].finish_if_closing(index, &mut self.links, self.now, &mut self.rng);
                }
            }
        }
    }
}

fn faults(calm: bool, rng: &mut Rng) -> Faults {
    let mut some = |often: usize| if rng.below(2) == 0 { 0 } else { 1 + rng.below(often) };
    let kind = Faults {
        half_closes: some(60),
        upstream_closes_idle: some(300),
        moves: some(300),
        reloads: some(300),
        ..Faults::default()
    };
    if calm {
        return kind;
    }
    Faults {
        client_resets: some(30),
        client_stalls: some(20),
        client_garbage: some(200),
        network_resets: some(200),
        upstream_stalls: some(20),
        upstream_resets: some(60),
        upstream_cuts: some(200),
        connects_fail: some(200),
        liars: some(2),
        store: some(200),
        losses: some(2),
        jumps: some(400),
        stops: some(20),
        ..kind
    }
}
