//! One router core in front of one upstream, for measurements: `router_bench LISTEN UPSTREAM [--map]`.
//!
//! `--map` looks each request's `x-shard` up in a table map whose shards all belong to this zone.

use dataplane::router::{Found, Routes, Service, Settings, Shared, Side, Tagged};
use dataplane::uring;
use shardmap::ownership::Entry;
use shardmap::{MapEpoch, Shard, Zone};
use std::sync::Arc;

struct Table(Entry);

impl Routes for Table {
    fn epoch(&self) -> MapEpoch {
        MapEpoch(1)
    }
    fn route(&self, tag: Option<&[u8]>, _: Option<&[u8]>, _: bool, _: u64) -> Option<Found> {
        let by = if tag.is_some() { Tagged::Shop } else { Tagged::Default };
        Some(Found { shard: Shard(7), by, malformed: 0 })
    }
    fn view(&self, _: Shard) -> Option<&Entry> {
        Some(&self.0)
    }
    fn unsettled(&self) -> Vec<Shard> {
        vec![]
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, listen, upstream, rest @ ..] = args.as_slice() else {
        return Err("usage: router_bench LISTEN UPSTREAM [--map]".into());
    };
    let settings = Settings {
        zone: Some(Zone(0)),
        zone_names: vec![(Zone(0), "bj".into())],
        services: vec![Service::new("/", &[upstream.parse()?])],
        map_lookup: rest.iter().any(|a| a == "--map"),
        ..Settings::default()
    };
    let shared = Arc::new(Shared::new(1));
    let (control, mut wakers) = uring::control(shared.clone())?;
    let map: Arc<dyn Routes> = Arc::new(Table(Entry::first(Zone(0), MapEpoch(1))));
    control.set_map(&map);
    let listener = uring::listen(listen.parse()?, Side::Client)?;
    let waker = wakers.pop().ok_or("one core has one waker")?;
    Ok(uring::run(0, Arc::new(settings), vec![listener], waker, shared)?)
}
