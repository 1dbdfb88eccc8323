//! Sealed segments that are damaged while both nodes run, and mended while they go on.

use crate::ONE;
use crate::cluster::{Cluster, Site};
use replog::retain::{Policy, WORTH};
use replog::segment::FIRST_POS;
use replog::uring::node::LogFigures;
use replog::uring::stream::Scrub;
use shardmap::Shard;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

const SCRUB: Scrub = Scrub { bytes_per_s: 1 << 30, every: Duration::from_millis(500) };

const KEPT: Policy = Policy { keep_bytes: 1 << 30, peers_until: 1.0, worth: WORTH };

/// Fills six segments of A's stream 0, and waits until B has them.
fn written(cluster: &Cluster) {
    for i in 0..300 {
        cluster.a.put(Shard(0), ONE, &format!("k{i}"), &"x".repeat(20_000)).unwrap();
    }
    assert_eq!(cluster.compare(), 0);
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<PathBuf> = names.filter(|n| n.extension().is_some_and(|e| e == "rlog")).collect();
    names.sort();
    names
}

/// Flips a bit of each of these bytes; returns the file as it was.
fn flip(name: &Path, at: &[u64]) -> Vec<u8> {
    let whole = std::fs::read(name).unwrap();
    let file = std::fs::File::options().write(true).open(name).unwrap();
    at.iter().for_each(|at| file.write_all_at(&[whole[*at as usize] ^ 0x10], *at).unwrap());
    file.sync_all().unwrap();
    whole
}

/// Where the footer of a segment lies.
fn footer(name: &Path) -> u64 {
    let bytes = std::fs::read(name).unwrap();
    let at = bytes.chunks(4096).position(|block| block.starts_with(b"RLGEND1")).expect("it was sealed");
    at as u64 * 4096
}

fn figures(site: &Site, of: &Site) -> LogFigures {
    let cores = site.figures();
    let stream = cores.iter().flat_map(|c| &c.streams).find(|s| s.stream == 0).unwrap();
    stream.logs[&of.zone].clone()
}

#[test]
fn a_log_and_a_mirror_that_are_damaged_while_they_run_are_mended_byte_for_byte_and_nothing_stops() {
    let (cluster, map) = Cluster::with("mend-live", SCRUB, KEPT);
    written(&cluster);
    let (own, mirror) = (cluster.a.log_dir(0), cluster.b.mirror_dir("a", 0));
    let (of_a, of_b) = (segments(&own), segments(&mirror));
    assert!(of_a.len() > 3 && of_b.len() > 3, "{of_a:?} {of_b:?}");
    // Header, body and footer here; body and footer there, of other seqs.
    let damages = [
        (&of_a[0], flip(&of_a[0], &[70, FIRST_POS + 300, FIRST_POS + 9_000, footer(&of_a[0]) + 60])),
        (&of_b[1], flip(&of_b[1], &[FIRST_POS + 300, footer(&of_b[1]) + 20])),
    ];
    for (name, whole) in &damages {
        cluster.wait("it is as it was", || {
            cluster.a.put(Shard(0), ONE, "meanwhile", "it goes on").unwrap();
            std::fs::read(name).is_ok_and(|now| now == *whole)
        });
    }
    cluster.wait("both say so", || {
        [figures(&cluster.a, &cluster.a), figures(&cluster.b, &cluster.a)]
            .iter()
            .all(|log| log.scrubbed.mended == 1 && log.scrubbed.damaged.is_empty())
    });
    for dir in [&own, &mirror] {
        assert_eq!(std::fs::read_dir(dir.join("quarantine")).unwrap().count(), 1, "the damaged one is kept");
        assert!(!dir.join("DAMAGED").exists(), "the next open need not read everything");
        assert!(segments(dir).len() > 3);
    }
    // What is read from the mended segment is read from the new file: a scrub finds nothing.
    let before = figures(&cluster.a, &cluster.a).scrubbed.passes;
    cluster.wait("another pass", || figures(&cluster.a, &cluster.a).scrubbed.passes > before + 1);
    assert_eq!(figures(&cluster.a, &cluster.a).scrubbed.damaged, []);
    assert_eq!(cluster.compare(), 0);
    cluster.a.stop();
    cluster.a.start(&map);
    cluster.a.node().on_gzs(map.epoch());
    cluster.wait("a takes writes again", || !cluster.a.is_read_only());
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn what_nobody_has_is_left_to_the_next_start_and_a_footer_needs_nobody() {
    let (cluster, map) = Cluster::with("mend-alone", SCRUB, KEPT);
    written(&cluster);
    cluster.b.stop();
    let dir = cluster.a.log_dir(0);
    let names = segments(&dir);
    let whole = flip(&names[0], &[FIRST_POS + 300]);
    let damaged = std::fs::read(&names[0]).unwrap();
    let sealed = flip(&names[1], &[footer(&names[1]) + 60]);
    let log = || figures(&cluster.a, &cluster.a).scrubbed;
    cluster.wait("the footer is as it was", || std::fs::read(&names[1]).is_ok_and(|now| now == sealed));
    cluster.wait("the other is found", || log().damaged.len() == 1 && log().mended == 1);
    sleep(Duration::from_secs(1)); // it is tried meanwhile
    assert!(std::fs::read(&names[0]).unwrap() == damaged && dir.join("DAMAGED").exists());
    assert_eq!(log().damaged[0].file, names[0].file_name().unwrap().to_str().unwrap());
    cluster.a.put(Shard(0), ONE, "meanwhile", "it goes on").unwrap();
    // With B there, a restart mends it.
    cluster.b.start(&map);
    cluster.b.node().on_gzs(map.epoch());
    cluster.a.stop();
    cluster.a.start(&map);
    cluster.a.node().on_gzs(map.epoch());
    assert!(std::fs::read(&names[0]).unwrap() == whole);
    cluster.wait("a takes writes again", || !cluster.a.is_read_only());
    assert_eq!(cluster.compare(), 0);
}
