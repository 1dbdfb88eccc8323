//! Measures `verify` and others over a large log beside a raw read of the same files, in turns, past the page cache or with a cold one.
//!
//! `cargo test --release -p tools --test log -- --ignored --nocapture speed` as root; `GIB=n` for another size.

use super::ezctl;
use super::writer::{Temp, Writer, record};
use replog::Op;
use replog::open::Storage;
use replog::uring::direct::Direct;
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Reads all of it with O_DIRECT, a MiB at a time, `readers` files side by side: what the disk gives, as `dd iflag=direct` sees it.
fn read_directly(dir: &Path, readers: usize) -> u64 {
    let mut names: Vec<_> = Direct::new(dir).list().unwrap().into_iter().collect();
    names.sort();
    let next = AtomicUsize::new(0);
    let read = || {
        let (mut files, mut total) = (Direct::new(dir), 0);
        while let Some((name, len)) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            for pos in (0..*len).step_by(1 << 20) {
                total += files.read(name, pos, 1 << 20).unwrap().len() as u64;
            }
        }
        total
    };
    std::thread::scope(|s| {
        (0..readers).map(|_| s.spawn(read)).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).sum()
    })
}

/// Seconds of processor time that ended children have taken, and this process itself: user, system.
fn cpu() -> [f64; 4] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<f64> = stat.rsplit(')').next().unwrap().split(' ').filter_map(|n| n.parse().ok()).collect();
    [12, 13, 10, 11].map(|at| fields[at] / 100.0) // cutime, cstime, utime, stime, behind the state; ticks of 10 ms
}

#[test]
#[ignore = "writes gigabytes; prints figures, asserts none"]
fn speed_of_verify_beside_a_raw_read() {
    let gib: u64 = std::env::var("GIB").map_or(2, |n| n.parse().unwrap());
    let data = Temp::new("speed");
    large(&data.0, gib << 30);
    let gb = (gib << 30) as f64 / 1e9;
    let timed = |what: &str, run: &dyn Fn()| {
        cool(&data.0);
        let (begin, before) = (Instant::now(), cpu());
        run();
        let (seconds, after) = (begin.elapsed().as_secs_f64(), cpu());
        let [cuser, csystem, user, system] = [0, 1, 2, 3].map(|at| (after[at] - before[at]) * 1000.0 / gb);
        let (user, system) = (cuser + user, csystem + system);
        println!(
            "{what:<28} {seconds:>6.2} s {:>6.2} GB/s  CPU ms/GB: user {user:>4.0} system {system:>4.0}",
            gb / seconds
        );
    };
    for _ in 0..3 {
        timed("raw read, O_DIRECT, 1 reader", &|| assert!(read_directly(&data.0, 1) >= gib << 30));
        timed("raw read, O_DIRECT, 4", &|| assert!(read_directly(&data.0, 4) >= gib << 30));
        timed("ezctl log verify", &|| assert_eq!(ezctl(&["verify"], &[&data.0]).0, 0));
    }
    timed("ezctl log ls", &|| assert_eq!(ezctl(&["ls"], &[&data.0]).0, 0));
    timed("ezctl log stat", &|| assert_eq!(ezctl(&["stat"], &[&data.0]).0, 0));
    timed("ezctl log find", &|| assert_eq!(ezctl(&["find", "--key", "777"], &[&data.0]).0, 0));
}
