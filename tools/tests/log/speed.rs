//! Measures `verify` and `dump` over a large log beside a plain read of the same files, with cold caches.
//!
//! `cargo test --release -p tools --test log -- --ignored --nocapture speed` as root; `GIB=n` for another size.

use super::ezctl;
use super::writer::{Temp, Writer, record};
use replog::Op;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// Records of 200 bytes in batches of 256 KiB, in segments of 64 MiB.
fn large(dir: &Path, bytes: u64) {
    let mut log = Writer::open(dir, false, 64 << 20);
    log.keeps = false;
    let mut n = 0u64;
    let mut x = 1u64;
    while n * 232 < bytes {
        let mut next = || {
            n += 1;
            let mut value = [0; 200];
            value.chunks_mut(8).for_each(|c| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                c.copy_from_slice(&x.to_le_bytes());
            });
            record(Op::Put, 1_700_000_000_000 + n / 100, "orders", n.to_string().as_bytes(), &value)
        };
        log.append((0..1130).map(|_| next()).collect());
    }
}

/// Takes the files out of the page cache.
fn cool(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let file = File::open(entry.unwrap().path()).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

fn read_plainly(dir: &Path) -> u64 {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let mut block = vec![0; 1 << 20];
    let mut total = 0;
    for name in names {
        let mut file = File::open(name).unwrap();
        fadvise(&file, 0, None, Advice::Sequential).unwrap();
        while let Ok(n @ 1..) = file.read(&mut block) {
            total += n as u64;
        }
    }
    total
}

#[test]
#[ignore = "writes gigabytes; prints figures, asserts none"]
fn speed_of_verify_beside_a_plain_read() {
    let gib: u64 = std::env::var("GIB").map_or(2, |n| n.parse().unwrap());
    let data = Temp::new("speed");
    large(&data.0, gib << 30);
    let timed = |what: &str, cold: bool, run: &dyn Fn()| {
        if cold {
            cool(&data.0);
        }
        let begin = Instant::now();
        run();
        let (seconds, heat) = (begin.elapsed().as_secs_f64(), if cold { "cold" } else { "hot" });
        println!("{what:<28} {heat:<5} {:>7.2} s {:>7.2} GB/s", seconds, (gib << 30) as f64 / 1e9 / seconds);
    };
    for cold in [true, true, false, false] {
        timed("plain read", cold, &|| assert!(read_plainly(&data.0) >= gib << 30));
        timed("ezctl log verify", cold, &|| assert_eq!(ezctl(&["verify"], &[&data.0]).0, 0));
    }
    timed("ezctl log ls", true, &|| assert_eq!(ezctl(&["ls"], &[&data.0]).0, 0));
    timed("ezctl log stat", true, &|| assert_eq!(ezctl(&["stat"], &[&data.0]).0, 0));
    timed("ezctl log find", true, &|| assert_eq!(ezctl(&["find", "--key", "777"], &[&data.0]).0, 0));
}
