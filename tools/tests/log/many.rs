//! Logs of many segments: what is read side by side says the same as what is read in order.

use super::ezctl;
use super::writer::{Temp, Writer, order, orders};
use replog::limits::SEGMENT_BYTES_MIN;
use replog::open::{Depth, Floor, examine};
use replog::uring::dir::Dir;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

#[test]
fn what_is_read_side_by_side_comes_to_the_verdict_of_an_open() {
    let data = Temp::new("side");
    orders(&data.0, 300);
    let mut names: Vec<_> = std::fs::read_dir(&data.0).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|n| n.extension().is_some_and(|e| e == "rlog"));
    names.sort();
    assert!(names.len() > 15, "{}", names.len());
    let check = |expected: i32| {
        let found = examine(&mut Dir::new(&data.0), Floor::default(), Depth::Whole).unwrap();
        let (code, out, err) = ezctl(&["verify", "--json"], &[&data.0]);
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(code, expected, "{out}{err}");
        assert_eq!(line["last_seq"], found.last_seq, "{out}");
        assert_eq!(line["segments"], found.segments.len(), "{out}");
        let why = if code == 0 { String::new() } else { found.verdict.to_string() };
        assert!(line["why"] == *why, "{out} {why}");
        line["damage"].as_array().unwrap().len()
    };
    assert_eq!(check(0), 0);
    // From the newest to the oldest, so that each is the first that is damaged; all of them are listed.
    for (count, name) in names.iter().rev().enumerate() {
        let file = File::options().read(true).write(true).open(name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 + 140).unwrap();
        if byte == [0] {
            continue; // the newest may hold no batch yet
        }
        file.write_all_at(&[byte[0] ^ 1], 4096 + 140).unwrap();
        assert!(check(2) > count.saturating_sub(1), "{}", name.display());
    }
    std::fs::remove_file(&names[4]).unwrap();
    for name in &names[..4] {
        let file = File::options().read(true).write(true).open(name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 + 140).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 4096 + 140).unwrap();
    }
    check(3);
}

/// As many segments as a stream of 64 MiB a segment has after 640 GB: each command with 40 descriptors and 2 GiB of addresses.
#[test]
fn ten_thousand_segments_are_no_reason_to_run_out_of_anything() {
    let data = Temp::new("thousands");
    let (own, copy) = (data.join("log/0"), data.join("mirror/one-0"));
    let mut log = Writer::open(&own, false, SEGMENT_BYTES_MIN);
    log.keeps = false;
    (1..=10_000).for_each(|n| log.append(vec![order(n)]));
    std::fs::create_dir_all(data.join("mirror")).unwrap();
    assert!(Command::new("cp").arg("-rl").args([&own, &copy]).status().unwrap().success());
    let run = |args: &[&str], paths: &[&Path]| {
        let limits = "ulimit -n 40; ulimit -v 2097152; exec \"$@\"";
        let began = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", limits, "sh", env!("CARGO_BIN_EXE_ezctl"), "log"]).args(args).args(paths);
        let out = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        println!("{args:?}: {:?}", began.elapsed());
        let (code, out, err) = (out.status.code(), text(out.stdout), text(out.stderr));
        assert_eq!((code, &*err), (Some(0), ""), "{args:?}");
        out
    };
    assert_eq!(run(&["ls"], &[&own]).lines().filter(|l| l.contains(".rlog")).count(), 10_000);
    assert!(run(&["verify"], &[&own]).contains("clean, 10000 segments, 10000 batches, last seq 10000"));
    assert_eq!(run(&["dump", "--json"], &[&own]).lines().count(), 10_000);
    assert_eq!(run(&["dump", "--from", "9990", "--limit", "5"], &[&own]).lines().count(), 5);
    assert!(run(&["stat", "--json"], &[&own]).contains("10000"));
    assert!(run(&["find", "--key", "9999"], &[&own]).contains("9999"));
    run(&["diff"], &[&own, &copy]);
    assert!(run(&["lag"], &[&data.0]).contains("10000"));
    assert!(run(&["repair", "--from", copy.to_str().unwrap()], &[&own]).contains("nothing to repair"));
}
