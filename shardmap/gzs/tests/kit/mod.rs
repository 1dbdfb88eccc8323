//! Maps, nodes and asks for tests.
#![allow(dead_code)] // each test program takes what it needs

pub mod etcd;

use gzs::api::{AuditView, LogTold, NodeTold, OpAsk, RouterTold, StreamTold, What};
use gzs::change::Change;
use gzs::service::{Service, Settings};
use gzs::store::Store;
use shardmap::fence::Fences;
use shardmap::map::{Exceptions, Map, Parts, ZoneInfo};
use shardmap::ownership::History;
use shardmap::{MapEpoch, Shard, Zone};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const NAMES: [&str; 3] = ["bj", "sh", "gz"];

/// Shards 0 to 5, two to each of three zones.
pub fn map() -> Map {
    Map::from_parts(parts(&[])).unwrap()
}

/// The same, with a global service of bj: shard 1024.
pub fn map_with_users() -> Map {
    Map::from_parts(parts(&[(Shard(1024), "users")])).unwrap()
}

pub fn parts(globals: &[(Shard, &str)]) -> Parts {
    let zones = NAMES.iter().enumerate().map(|(id, name)| ZoneInfo { id: Zone(id as u8), name: (*name).into() });
    Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: None,
        zones: zones.collect(),
        histories: (0..6)
            .map(|s| (Shard(s), History::new(Zone((s % 3) as u8), MapEpoch(1))))
            .chain(globals.iter().map(|(s, _)| (*s, History::new(Zone(0), MapEpoch(1)))))
            .collect(),
        exceptions: Exceptions::default(),
        globals: globals.iter().map(|(s, name)| (*s, (*name).to_owned())).collect(),
        fences: Arc::new(Fences::new(vec![], 0, 0).unwrap()),
    }
}

pub fn settings() -> Settings {
    Settings {
        cluster: "test".into(),
        silence_ms: 1500,
        cool_down_ms: 60_000,
        move_limit_ms: 2500,
        requests_per_s_max: BTreeMap::new(),
        lease_ms: 3000,
    }
}

pub fn first_audit() -> AuditView {
    AuditView { epoch: 1, by: "test".into(), ..AuditView::default() }
}

pub fn service(store: &mut impl Store, settings: Settings, now_ms: u64) -> Service {
    if store.load().unwrap().is_none() {
        store.adopt(&map(), &first_audit()).unwrap();
    }
    awake(Service::new(store.load().unwrap().unwrap(), vec![], settings, now_ms - 1200), now_ms)
}

/// It has listened for a while.
pub fn awake(mut service: Service, now_ms: u64) -> Service {
    for before in [900, 600, 300, 0] {
        assert!(service.next_change(now_ms - before).is_none());
    }
    service
}

pub fn log(zone: &str, map_epoch: u64) -> NodeTold {
    let applied = NAMES.iter().map(|n| ((*n).to_owned(), 10)).collect();
    let streams = vec![StreamTold { durable: 10, applied }];
    let log = Some(LogTold { streams, ..LogTold::default() });
    NodeTold { name: "host".into(), zone: zone.into(), map_epoch, log, ..NodeTold::default() }
}

pub fn router(zone: &str, map_epoch: u64) -> NodeTold {
    let router = Some(RouterTold::default());
    NodeTold { name: "host".into(), zone: zone.into(), map_epoch, router, ..NodeTold::default() }
}

pub fn ask(what: What) -> OpAsk {
    OpAsk { what, by: "someone".into(), why: "a test".into(), force: false, limit_ms: None }
}

/// Everything that is to be stored now is, and everybody tells that he has the newest map.
pub fn all_tell(service: &mut Service, store: &mut impl Store, zones: &[&str], now_ms: u64) {
    for zone in zones {
        let epoch = service.map().epoch().0;
        service.on_told(log(zone, epoch), now_ms).unwrap();
        service.on_told(router(zone, epoch), now_ms).unwrap();
    }
    drain(service, store, now_ms);
}

/// Stores a change.
pub fn keep(service: &mut Service, store: &mut impl Store, change: Change) {
    store.commit(&change).unwrap();
    service.on_stored(change);
}

/// Stores what comes next until nothing does.
pub fn drain(service: &mut Service, store: &mut impl Store, now_ms: u64) {
    for _ in 0..100 {
        let Some(change) = service.next_change(now_ms) else { return };
        keep(service, store, change);
    }
    panic!("it changes for ever");
}
