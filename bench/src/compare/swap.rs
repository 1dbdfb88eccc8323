//! Ours alone, while a large map is swapped again and again, and while it is not.

use super::figures::{Figures, What, Who};
use super::gzs::{self, Gzs};
use super::loads::{SMALL, half_of_most};
use super::page;
use super::rig::{Load, Rig};
use super::{Router, order};
use crate::random::Random;
use crate::schedule::Pace;
use std::time::{Duration, Instant};

/// Tags that requests take: many enough that the map's table is not read from the nearest cache alone.
const TAGS: u64 = 4096;
const CONNECTIONS: usize = 64;

/// How long the last map may take to be taken, after the load.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was swapped, for the report.
pub struct Swapped {
    pub fences: usize,
    pub shops: usize,
    pub map_bytes: usize,
    pub every_ms: u64,
    pub rate: f64,
    /// Maps published while it was measured, and those that the router went by at the end of it.
    pub published: u64,
    pub taken: u64,
}

/// Latencies at a fixed rate: undisturbed, undisturbed again, and with a new map every second.
pub fn maps(rig: &mut Rig, args: &Router, who: &[Who], figures: &mut Figures) -> Result<Swapped, String> {
    let (fences, shops, every_ms) = if args.tiny { (100, 10_000, 100) } else { (1000, 1_000_000, 1000) };
    let map = gzs::made_map(fences, shops)?;
    let map_bytes = map.encode().len();
    let rate = half_of_most(rig, args, who, figures, CONNECTIONS)?;
    let gzs = Gzs::start(map, Duration::from_millis(every_ms))?;
    let mut random = Random(1);
    let tags: Vec<String> =
        (0..TAGS).map(|_| format!("x-shard: shopid={}", gzs::shop(random.below(shops as u64)))).collect();
    let seconds = if args.tiny { args.seconds() } else { args.seconds().max(5.0) };
    let mut swapped = Swapped { fences, shops, map_bytes, every_ms, rate, published: 0, taken: 0 };
    for round in 0..args.rounds() {
        // The router's core is pinned; its control thread, which reads maps, may run on either.
        let cores = [rig.proxy_core, rig.load_core];
        let mut under = rig.start(Who::Ours, SMALL, &gzs.source(), &cores)?;
        for who in order(&[Who::Ours, Who::OursAgain, Who::OursDisturbed], round) {
            let (before, went_by) = (gzs.epoch(), epoch(under.admin)?);
            gzs.publish(who == Who::OursDisturbed);
            let load = Load { seconds, tags: &tags, ..args.load(Pace::Even { rate }, CONNECTIONS) };
            let sample = rig.measure(&mut under, &load);
            gzs.publish(false);
            let sample = sample?;
            if who == Who::OursDisturbed {
                swapped.published += gzs.epoch() - before;
                swapped.taken += newest(under.admin, gzs.epoch())? - went_by;
            }
            let mut put = |what, q| figures.put(what, CONNECTIONS as u64, who, round, sample.latency_us(q));
            put(What::SwapP50Us, 0.5);
            put(What::SwapP99Us, 0.99);
            put(What::SwapP999Us, 0.999);
        }
        rig.end(under);
        eprintln!("  round {} of {}", round + 1, args.rounds());
    }
    Ok(swapped)
}

/// The map that the router goes by, once it has the last one that was published: a busy machine takes it after the load has ended. A router that
/// does not take it is told by what it has.
fn newest(admin: std::net::SocketAddr, published: u64) -> Result<u64, String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let seen = epoch(admin)?;
        if seen >= published || Instant::now() >= until {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The map that the router goes by.
fn epoch(admin: std::net::SocketAddr) -> Result<u64, String> {
    let status = page::fetch(admin, "/status")?;
    status["map_epoch"].as_u64().ok_or_else(|| format!("/status without a map_epoch: {status}"))
}
