//! A log that is written, sealed, recycled and retired while the tools look at it: nothing of that may look like damage.

use super::ezctl;
use super::writer::{Temp, Writer, order};
use replog::uring::dir::lock;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const SEGMENT_BYTES: u64 = 64 * 1024;

/// A writer that keeps about 20 segments, and uses the files of the others again, until it is told to stop.
fn churn(dir: &Path, stop: &AtomicBool, written: &AtomicU64) {
    std::fs::create_dir_all(dir).unwrap();
    let _lock = lock(dir).unwrap().unwrap();
    let mut log = Writer::open(dir, false, SEGMENT_BYTES);
    log.keeps = false;
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        log.append(vec![order(n)]);
        log.release(n, 20 * SEGMENT_BYTES);
        written.store(n, Ordering::Relaxed);
        if n % 50 == 0 {
            thread::sleep(Duration::from_millis(1)); // the tools run on the same processors
        }
    }
}

/// Runs `look` beside such a writer, once it has let something go.
fn beside(name: &str, look: impl FnOnce(&Path)) {
    let data = Temp::new(name);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| churn(&data.0, &stop, &written));
        while written.load(Ordering::Relaxed) < 1_000 && !writer.is_finished() {
            thread::sleep(Duration::from_millis(5));
        }
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&data.0)));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        if let Err(why) = seen {
            std::panic::resume_unwind(why);
        }
    });
    let (code, out, _) = ezctl(&["verify"], &[&data.0]);
    assert_eq!(code, 0, "{out}");
}

/// Whatever is told on standard error is that something was let go.
fn nothing_but_retired(what: &str, err: &str) {
    let other = err.lines().find(|l| !l.ends_with("retired while it was read") && !l.contains("were let go"));
    assert_eq!(other, None, "{what}");
}

#[test]
fn a_log_that_recycles_its_segments_never_looks_damaged() {
    beside("live", |dir| {
        for round in 0..12 {
            for args in [
                &["ls"][..],
                &["verify"],
                &["verify", "--json"],
                &["stat"],
                &["find", "--key", "5"],
                &["lag"],
                &["dump"],
            ] {
                let (code, out, err) = ezctl(args, &[dir]);
                let expected = if args[0] == "find" { code < 2 } else { code == 0 };
                assert!(expected, "round {round}, {args:?}: {code} {err} {out:.300}");
                nothing_but_retired(&format!("round {round}, {args:?}"), &err);
            }
            let (code, out, err) = ezctl(&["diff", "--common"], &[dir, dir]);
            assert!(code < 2 && !out.contains("they differ in") && !out.contains("other"), "{code} {out} {err}");
            nothing_but_retired("diff", &err);
        }
    });
}

#[test]
fn what_is_followed_is_in_order_and_what_was_let_go_unseen_is_told() {
    beside("live-follow", |dir| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ezctl"));
        child.args(["log", "dump", "--follow", "--limit", "30000"]).arg(dir);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut last = 0u64;
        let mut skipped = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let seq: u64 = line.split(' ').next().unwrap().parse().unwrap();
            assert!(seq > last, "{line} behind {last}");
            skipped += u64::from(last > 0 && seq > last + 1);
            last = seq;
        }
        let out = child.wait_with_output().unwrap();
        let err = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success(), "{err}");
        nothing_but_retired("dump --follow", &err);
        assert!(err.lines().count() as u64 >= skipped, "{skipped} gaps, told: {err}");
    });
}
