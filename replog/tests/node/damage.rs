//! A node whose own log is damaged while it is down, and the other zone's mirror of it.

use crate::ONE;
use crate::cluster::{A, Cluster, STREAMS};
use replog::open::{Depth, Floor, Found, Walk, examine};
use replog::segment::{Checkpoint, FIRST_POS};
use replog::uring::dir::Dir;
use shardmap::Shard;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes to every shard of A, waits until B has it all, and stops A.
fn written(cluster: &Cluster, count: u16) {
    for i in 0..count {
        cluster.a.put(Shard(i % 4), ONE, &format!("k{i}"), "what was promised").unwrap();
    }
    assert_eq!(cluster.compare(), 0);
    cluster.a.stop();
}

fn found(dir: &Path) -> Found {
    examine(&mut Dir::new(dir), Floor::default(), Depth::Whole).unwrap()
}

/// Where the batches of the last segment lie.
fn positions(dir: &Path) -> Vec<u64> {
    let found = found(dir);
    let segment = found.segments.last().unwrap();
    let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
    let (mut all, mut pos) = (Vec::new(), FIRST_POS);
    while pos < segment.end {
        all.push(pos);
        pos += walk.at(&mut Dir::new(dir), pos).unwrap().unwrap().0.disk_len() as u64;
    }
    all
}

/// As if the last two batches had never been written, and no checkpoint either.
fn forget_the_end(dir: &Path) {
    let found = found(dir);
    let (segment, positions) = (found.segments.last().unwrap(), positions(dir));
    let from = positions[positions.len() - 2];
    let file = std::fs::File::options().write(true).open(dir.join(&segment.name)).unwrap();
    file.write_all_at(&vec![0; (segment.end - from) as usize], from).unwrap();
    Checkpoint::NAMES.iter().for_each(|n| drop(std::fs::remove_file(dir.join(n))));
    let after = examine(&mut Dir::new(dir), Floor::default(), Depth::Whole).unwrap();
    assert!(after.verdict.is_sound() && after.last_seq < found.last_seq, "{:?}", after.verdict);
}

#[test]
fn what_only_a_peer_knows_to_be_durable_is_missed_at_open() {
    let (cluster, map) = Cluster::start("witness");
    written(&cluster, 40);
    let dir = cluster.a.log_dir(0);
    // The store of this zone has applied it as well: it is made to forget, so that the peer alone knows.
    std::fs::remove_dir_all(dir.parent().unwrap().parent().unwrap().join("store")).unwrap();
    forget_the_end(&dir);
    let why = cluster.a.try_start(&map).expect_err("a peer has more").to_string();
    assert!(why.contains("a peer knows seq"), "{why}");
    // Without the peer nobody knows: the log goes on from what it has.
    cluster.b.stop();
    cluster.a.start(&map);
    assert!((0..STREAMS).all(|s| cluster.a.log_dir(s).exists()));
    assert_eq!(cluster.a.zone, A);
}
