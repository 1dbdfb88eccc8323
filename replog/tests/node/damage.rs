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

/// Without this zone's store: else it would know as well what was durable.
fn forget_the_store(dir: &Path) {
    std::fs::remove_dir_all(dir.parent().unwrap().parent().unwrap().join("store")).unwrap();
}

/// Every row that was written is there, in both zones, and more can be written.
fn check_all(cluster: &Cluster, count: u16) {
    cluster.wait("a takes writes again", || !cluster.a.is_read_only());
    for i in 0..count {
        let row = cluster.a.get(Shard(i % 4), &format!("k{i}"));
        assert_eq!(row.as_deref(), Some("what was promised"), "k{i}");
    }
    cluster.a.put(Shard(0), ONE, "after", "it").unwrap();
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn an_end_that_was_lost_and_that_a_peer_has_comes_back_at_open() {
    let (cluster, map) = Cluster::start("witness");
    written(&cluster, 40);
    let dir = cluster.a.log_dir(0);
    let figures = cluster.b.figures();
    let there = figures.iter().flat_map(|c| &c.streams).find(|s| s.stream == 0).unwrap().mirrored.get(A).unwrap();
    forget_the_store(&dir);
    forget_the_end(&dir);
    cluster.a.start(&map);
    cluster.a.node().on_gzs(map.epoch());
    let figures = cluster.a.figures();
    let last = figures.iter().flat_map(|c| &c.streams).find(|s| s.stream == 0).unwrap().durable_seq;
    assert!(last >= there, "{last} of {there}");
    check_all(&cluster, 40);
}

#[test]
fn an_end_that_only_an_absent_peer_has_is_torn_and_the_log_goes_on() {
    let (cluster, map) = Cluster::start("alone");
    written(&cluster, 40);
    let dir = cluster.a.log_dir(0);
    forget_the_store(&dir);
    forget_the_end(&dir);
    cluster.b.stop();
    cluster.a.start(&map);
    assert!((0..STREAMS).all(|s| cluster.a.log_dir(s).exists()));
}

#[test]
fn a_damaged_log_and_a_damaged_mirror_are_mended_byte_for_byte_with_the_other_zones_copy() {
    let (cluster, map) = Cluster::start("mend");
    written(&cluster, 60);
    cluster.b.stop();
    cluster.a.start(&map); // B's mirror of A's log is damaged first, with A there to mend it
    for (site, dir) in [(&cluster.b, cluster.b.mirror_dir("a", 0)), (&cluster.a, cluster.a.log_dir(0))] {
        site.stop();
        forget_the_store(&site.log_dir(0));
        let segment = found(&dir).segments[0].clone();
        let name = dir.join(&segment.name);
        let whole = std::fs::read(&name).unwrap();
        let file = std::fs::File::options().write(true).open(&name).unwrap();
        for at in [FIRST_POS + 300, FIRST_POS + 16, FIRST_POS + 4096 + 9] {
            file.write_all_at(&[whole[at as usize] ^ 0x40], at).unwrap();
        }
        assert!(!found(&dir).verdict.is_sound());
        site.start(&map);
        let mended = std::fs::read(&name).unwrap();
        // The last segment of a log is cut off behind its end when the next one begins.
        let (same, rest) = whole.split_at(mended.len());
        assert!(mended == same && rest.iter().all(|b| *b == 0), "{} is not as it was", name.display());
        assert_eq!(std::fs::read_dir(dir.join("quarantine")).unwrap().count(), 1);
    }
    cluster.sites().iter().for_each(|s| s.node().on_gzs(map.epoch()));
    check_all(&cluster, 60);
}

#[test]
fn damage_that_nobody_can_mend_is_refused_and_nothing_is_changed() {
    let (cluster, map) = Cluster::start("refuse");
    written(&cluster, 20);
    cluster.b.stop();
    let dir = cluster.a.log_dir(0);
    let name = dir.join(&found(&dir).segments[0].name);
    let file = std::fs::File::options().write(true).open(&name).unwrap();
    file.write_all_at(b"?", FIRST_POS + 300).unwrap();
    forget_the_store(&dir);
    let before = std::fs::read(&name).unwrap();
    let why = cluster.a.try_start(&map).expect_err("it is refused").to_string();
    assert!(why.contains("corrupt") && why.contains("ezctl log repair"), "{why}");
    assert_eq!(std::fs::read(&name).unwrap(), before);
}
