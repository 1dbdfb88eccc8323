//! A router core in a test: its clock, and a driver that keeps what it was ordered.
#![allow(dead_code, reason = "each test program uses some of it")]

use super::router_table::Table;
use dataplane::router::{ConnId, Core, Limits, Now, Order, Peer, Service, Settings, Side, Target};
use shardmap::Zone;
use std::collections::HashMap;
use std::sync::Arc;

pub const BJ: Zone = Zone(0);
pub const SH: Zone = Zone(1);
/// Two shards: 1 is bj's, 2 is sh's. The core is in bj.
pub const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\r\n";

pub fn addr(port: u16) -> std::net::SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Zone bj: one service at /a, a record store, and the router of sh.
pub fn settings(limits: Limits) -> Settings {
    Settings {
        zone: Some(BJ),
        zone_names: vec![(BJ, "bj".into()), (SH, "sh".into())],
        peers: vec![Peer::new(SH, &[addr(2)])],
        log_ports: vec!["log".into()],
        services: vec![Service::new("/a", &[addr(1)])],
        limits,
        ..Settings::default()
    }
}

/// A core, its clock, and a driver that keeps what it was ordered.
pub struct World {
    pub core: Core,
    pub now: Now,
    pub sent: HashMap<ConnId, Vec<u8>>,
    pub connects: Vec<(ConnId, Target)>,
    pub closed: Vec<ConnId>,
    pub paused: Vec<ConnId>,
    pub shut: Vec<ConnId>,
    /// Of these the other side saw that it broke off.
    pub reset: Vec<ConnId>,
    /// Connects wait for the test.
    pub slow_connects: bool,
    /// Sends wait for the test.
    pub stuck: Vec<ConnId>,
}

impl World {
    pub fn new() -> World {
        World::with(Limits::default())
    }

    pub fn with(limits: Limits) -> World {
        World::of(settings(limits))
    }

    pub fn of(settings: Settings) -> World {
        let mut world = World {
            core: Core::new(Arc::new(settings)),
            now: Now { ms: 1000, us: 1_000_000, wall_ms: 1_790_000_000_000 },
            sent: HashMap::new(),
            connects: vec![],
            closed: vec![],
            paused: vec![],
            shut: vec![],
            reset: vec![],
            slow_connects: false,
            stuck: vec![],
        };
        world.map(Table::new(1, &[(1, BJ), (2, SH)]));
        world
    }

    pub fn map(&mut self, table: Table) {
        self.core.on_map(Arc::new(table), self.now);
        self.run();
    }

    pub fn client(&mut self) -> ConnId {
        self.core.on_accept(Side::Client, self.now).unwrap()
    }

    pub fn peer(&mut self) -> ConnId {
        self.core.on_accept(Side::Peer, self.now).unwrap()
    }

    pub fn give(&mut self, id: ConnId, bytes: impl AsRef<[u8]>) {
        self.core.on_bytes(id, bytes.as_ref(), self.now);
        self.run();
    }

    pub fn end(&mut self, id: ConnId, reset: bool) {
        self.core.on_end(id, reset, self.now);
        self.run();
    }

    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(60) {
            self.now.ms += 60;
            self.now.us += 60_000;
            self.core.on_timer(self.now);
            self.run();
        }
    }

    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let Some(order) = self.core.next_order() else { return };
            match order {
                Order::Connect(id, target) => {
                    self.connects.push((id, target));
                    if !self.slow_connects {
                        self.core.on_connected(id, self.now);
                    }
                }
                Order::Send(id) => {
                    let out = self.core.take_out(id);
                    self.sent.entry(id).or_default().extend_from_slice(&out);
                    if !self.stuck.contains(&id) {
                        self.core.on_sent(id, out, true, self.now);
                    }
                }
                Order::Pause(id) => self.paused.push(id),
                Order::Resume(id) => self.paused.retain(|p| *p != id),
                Order::Shutdown(id) => self.shut.push(id),
                Order::Close(id) | Order::Reset(id) => {
                    if matches!(order, Order::Reset(_)) {
                        self.reset.push(id);
                    }
                    self.closed.push(id);
                    self.core.on_closed(id);
                }
            }
        }
        panic!("the core gives orders without end");
    }

    pub fn took(&mut self, id: ConnId) -> String {
        String::from_utf8(self.sent.remove(&id).unwrap_or_default()).unwrap()
    }

    pub fn last_connect(&self) -> ConnId {
        self.connects.last().expect("a connect was ordered").0
    }

    pub fn counts(&mut self) -> dataplane::router::Counts {
        *self.core.counts()
    }
}

pub fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub fn status_of(answer: &str) -> u16 {
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0)
}
