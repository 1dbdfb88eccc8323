//! Paths and files that nobody would make on purpose.

use super::ezctl;
use super::writer::{Temp, orders};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const COMMANDS: [&[&str]; 6] = [&["ls"], &["dump"], &["stat"], &["verify"], &["find", "--key", "1"], &["lag"]];

/// Every command ends by itself with an exit code that it names, says why if it is 2, and does not panic.
fn none_panics(path: &Path) {
    for args in COMMANDS {
        for json in [&[][..], &["--json"]] {
            let (code, _, err) = ezctl(&[args, json].concat(), &[path]);
            assert!((0..=3).contains(&code) && !err.contains("panicked"), "{args:?} {}: {code} {err}", path.display());
        }
    }
    let (code, _, err) = ezctl(&["diff"], &[path, path]);
    assert!((0..=2).contains(&code) && !err.contains("panicked"), "diff {}: {code} {err}", path.display());
}

#[test]
fn garbage_and_empty_and_cut_files_are_told_apart_from_logs() {
    let data = Temp::new("garbage");
    orders(&data.0, 40);
    let mut x = 1u64;
    let garbage: Vec<u8> = (0..70_000)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 33) as u8
        })
        .collect();
    std::fs::write(data.join("00000000000000000029.rlog"), &garbage).unwrap();
    std::fs::write(data.join("CHECKPOINT.a"), &garbage[..100]).unwrap();
    std::fs::write(data.join("CHECKPOINT.b"), b"").unwrap();
    std::fs::write(data.join("00000000000000000099.rlog"), b"").unwrap();
    none_panics(&data.0);
    let (code, out, err) = ezctl(&["dump"], &[&data.0]);
    assert!(code == 0 && out.lines().count() >= 14 && err.contains("00000000000000000099.rlog"), "{out}{err}");
    assert_eq!(ezctl(&["verify"], &[&data.0]).0, 2);
    // A first batch of every length that a cut can leave.
    let file = File::options().write(true).open(data.join("00000000000000000015.rlog")).unwrap();
    for len in [0, 1, 4095, 4096, 4097, 4200, 8191] {
        file.set_len(len).unwrap();
        none_panics(&data.0);
    }
}

#[test]
fn pipes_loops_and_what_may_not_be_read_are_refused_or_left_out() {
    let data = Temp::new("paths");
    orders(&data.join("log/0"), 3);
    symlink("..", data.join("log/loop")).unwrap();
    symlink(".", data.join("self")).unwrap();
    symlink("nowhere", data.join("dangling")).unwrap();
    assert!(Command::new("mkfifo").arg(data.join("pipe")).status().unwrap().success());
    assert!(Command::new("mkfifo").arg(data.join("log/0/00000000000000000009.rlog")).status().unwrap().success());
    let (code, out, _) = ezctl(&["ls"], &[&data.0]);
    assert!(code == 0 && out.matches("last seq 3").count() == 1, "{out}");
    let (code, _, err) = ezctl(&["dump"], &[&data.join("pipe")]);
    assert!(code == 2 && err.contains("neither a directory nor a file"), "{err}");
    let (code, _, err) = ezctl(&["dump"], &[&data.join("log/0/LOCK")]);
    assert!(code == 2 && err.contains("No such file"), "{err}");
    none_panics(&data.0);
    none_panics(&data.join("pipe"));
    none_panics(Path::new("/proc/self"));
    let closed = data.join("log/closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    let (code, out, _) = ezctl(&["ls"], &[&data.0]);
    assert!(code == 0 && out.contains("last seq 3"), "{out}");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn flipped_bytes_anywhere_never_stop_a_tool() {
    let data = Temp::new("flips");
    orders(&data.0, 20);
    let name = data.join("00000000000000000001.rlog");
    let whole = std::fs::read(&name).unwrap();
    let file = File::options().write(true).open(&name).unwrap();
    let seed: u64 = std::env::var("SEED").map_or(1, |s| s.parse().unwrap());
    for round in 0..40 {
        let mut x = seed.wrapping_mul(1_000_003).wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut bytes = whole.clone();
        for _ in 0..=round % 4 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            bytes[x as usize % whole.len()] ^= (x >> 40) as u8 | 1;
        }
        file.write_all_at(&bytes, 0).unwrap();
        let (code, out, err) = ezctl(&["dump", "--json"], &[&data.0]);
        assert!(code != 101 && out.lines().count() >= 6, "SEED={seed} round {round}: {code} {err}");
        assert!((0..=3).contains(&ezctl(&["verify"], &[&data.0]).0), "SEED={seed} round {round}");
    }
}

#[test]
fn names_that_are_no_text_and_checkpoints_of_any_kind_are_passed_over() {
    let data = Temp::new("names");
    let dir = data.0.join(std::ffi::OsStr::from_bytes(b"lo\xffg"));
    orders(&dir, 20);
    std::fs::write(dir.join(std::ffi::OsStr::from_bytes(b"0000000000000000\xff001.rlog")), b"x").unwrap();
    for path in [&dir, &data.0] {
        none_panics(path);
        let (code, out, err) = ezctl(&["verify", "--json"], &[path]);
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &line["verdict"], &line["last_seq"]), (0, &"clean".into(), &20.into()), "{out}{err}");
    }
    // One that is a directory, one that is larger than any memory and of zeros, and one of garbage.
    let checkpoints = ["CHECKPOINT.a", "CHECKPOINT.b"].map(|name| dir.join(name));
    checkpoints.iter().for_each(|path| drop(std::fs::remove_file(path)));
    std::fs::create_dir(&checkpoints[0]).unwrap();
    File::create(&checkpoints[1]).unwrap().set_len(1 << 42).unwrap();
    none_panics(&dir);
    assert_eq!(ezctl(&["verify"], &[&dir]).0, 0);
    std::fs::remove_dir(&checkpoints[0]).unwrap();
    std::fs::write(&checkpoints[0], vec![0xa5; 100_000]).unwrap();
    File::options().write(true).open(&checkpoints[1]).unwrap().write_all_at(&[0xff; 8192], 0).unwrap();
    none_panics(&dir);
    assert_eq!(ezctl(&["verify"], &[&dir]).0, 0);
}

#[test]
fn a_file_that_is_cut_and_grows_while_it_is_read_is_a_verdict_not_a_fault() {
    let data = Temp::new("cuts");
    orders(&data.0, 200);
    let name = data.join("00000000000000000001.rlog");
    let whole = std::fs::read(&name).unwrap();
    let (stop, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&name).unwrap();
            for n in (0..whole.len() as u64).step_by(977).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.set_len(n).unwrap();
                file.write_all_at(&whole, 0).unwrap();
            }
        });
        for _ in 0..5 {
            let ran = std::panic::catch_unwind(|| none_panics(&data.0));
            failed.fetch_or(ran.is_err(), Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!failed.load(Ordering::Relaxed));
    std::fs::write(&name, &whole).unwrap();
    assert_eq!(ezctl(&["verify"], &[&data.0]).0, 0);
}

#[test]
fn a_log_that_cannot_be_read_is_no_reason_to_leave_out_the_next() {
    let data = Temp::new("unreadable");
    orders(&data.join("log/1"), 3);
    std::fs::create_dir(data.join("log/0")).unwrap();
    std::fs::write(data.join("log/0/00000000000000000001.rlog"), b"").unwrap();
    for args in [&["verify"][..], &["verify", "--json"], &["ls"], &["ls", "--json"]] {
        let (code, out, err) = ezctl(args, &[&data.0]);
        assert_eq!(code, if args[0] == "verify" { 2 } else { 0 }, "{out}{err}");
        assert!(out.contains("last seq 3") || out.contains(r#""last_seq":3"#), "{out}");
    }
}
