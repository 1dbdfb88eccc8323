//! Segments that nobody needs, and a shard that is on its way.

use crate::cluster::{A, B, Cluster, Site, next};
use replog::retain::Policy;
use replog::uring::node::CoreFigures;
use replog::uring::stream::Scrub;
use shardmap::Shard;
use std::thread::sleep;
use std::time::Duration;

/// On a volume that is always called full.
const TIGHT: Policy = Policy { keep_bytes: 0, peers_until: 0.0, worth: 0.0 };

fn first_kept(site: &Site) -> u64 {
    let cores = site.figures();
    let stream = cores.iter().flat_map(|c| &c.streams).find(|s| s.stream == 0).unwrap();
    stream.logs[&A].first_kept
}

#[test]
fn nothing_is_let_go_while_a_shard_is_on_its_way_however_full_the_volume_and_that_is_told() {
    let (cluster, map) = Cluster::with("hold", Scrub::NEVER, TIGHT);
    let all = |so: fn(&CoreFigures) -> bool| cluster.sites().iter().all(|s| s.figures().iter().all(so));
    assert!(all(|c| c.unsettled == 0 && !c.holds_back));
    let moved = [Shard(1)];
    let moving = next(&map, &moved, |_, h, e| h.begin_move(B, e));
    cluster.on_map(&moving);
    cluster.wait("it is told", || all(|c| c.unsettled == 1 && c.holds_back));
    for i in 0..200 {
        cluster.a.put(Shard(0), moving.epoch(), &format!("k{i}"), &"x".repeat(20_000)).unwrap();
    }
    assert_eq!(cluster.compare(), 0);
    sleep(Duration::from_millis(2500)); // it is looked at each second
    assert_eq!(cluster.sites().map(first_kept), [1, 1], "something went");
    let settled = next(&moving, &moved, |_, h, e| h.abort(e));
    cluster.on_map(&settled);
    cluster.wait("it is over", || all(|c| c.unsettled == 0 && !c.holds_back));
    cluster.wait("what nobody needs goes", || cluster.sites().iter().all(|s| first_kept(s) > 1));
    assert_eq!(cluster.compare(), 0);
}
