//! ^C in the middle: exit code 130 soon, no half line, a clean terminal, and no repair that is half in place.

use super::ezctl;
use super::writer::{Temp, Writer, mirror, order, orders};
use replog::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A log whose newest segment is 4 GiB of nothing: to verify it takes seconds.
fn endless(dir: &Path) {
    orders(dir, 20);
    let newest = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "rlog"));
    let file = File::options().write(true).open(newest.max().unwrap()).unwrap();
    file.set_len(SEGMENT_BYTES_MAX).unwrap();
}

/// A process that has begun to watch for signals.
fn start(args: &[&str], paths: &[&Path]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezctl"));
    command.arg("log").args(args).args(paths).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let watches = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).map(|m| u64::from_str_radix(m.trim(), 16));
        caught.is_some_and(|mask| mask.is_ok_and(|mask| mask & 1 << (2 - 1) != 0)) // SIGINT is 2
    };
    while child.try_wait().unwrap().is_none() && !watches(child.id()) {
        thread::sleep(Duration::from_millis(1));
    }
    child
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_long_check_ends_soon_and_says_nothing_false() {
    let data = Temp::new("long");
    endless(&data.0);
    let mut child = start(&["verify", "--json"], &[&data.0]);
    thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "it was to take long");
    let began = Instant::now();
    interrupt(&child);
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), &*out.stdout), (Some(130), &b""[..]));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn json_lines_are_whole_up_to_the_last_one() {
    let data = Temp::new("lines");
    let mut log = Writer::open(&data.0, false, 4 << 20);
    log.keeps = false;
    (0..300).for_each(|n| log.append((1..100).map(|m| order(n * 100 + m)).collect()));
    let mut lines = 0;
    for round in 0..6 {
        let mut child = start(&["dump", "--json", "--follow"], &[&data.0]);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        for _ in 0..round * 400 + 1 {
            line.clear();
            out.read_line(&mut line).unwrap();
        }
        interrupt(&child);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(rest.is_empty() || rest.ends_with('\n'), "{:.300}", rest.lines().last().unwrap_or_default());
        for line in rest.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            lines += 1;
        }
    }
    assert!(lines > 0, "nothing was under way at any of the signals");
}

#[test]
fn the_bar_is_taken_off_the_terminal() {
    let data = Temp::new("terminal");
    endless(&data.0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/log/terminal.py");
    let out = Command::new("python3")
        .arg(script)
        .args([env!("CARGO_BIN_EXE_ezctl"), "log", "verify"])
        .arg(&data.0)
        .output()
        .unwrap();
    let seen = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(130), "{seen}");
    // Behind the last drawing the line is cleared, and nothing is drawn again.
    let cleared = seen.rfind("\u{1b}[2K").expect("the line is cleared");
    assert!(seen.rfind(" left").is_some_and(|drawn| drawn < cleared), "{seen:?}");
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|f| f.file_type().unwrap().is_file());
    let named = files.map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap()));
    named.filter(|(name, _)| name != "LOCK").collect()
}

#[test]
fn an_interrupted_repair_leaves_the_log_as_it_was_or_whole() {
    let data = Temp::new("half");
    let (own, copy) = (data.join("log/0"), data.join("mirror/one-0"));
    let mut log = Writer::open(&own, false, SEGMENT_BYTES_MIN);
    (1..=400).for_each(|n| log.append(vec![order(n)]));
    mirror(&copy, &log);
    drop(log);
    let whole = contents(&own);
    for name in whole.keys().filter(|n| n.ends_with(".rlog")) {
        File::options().write(true).open(own.join(name)).unwrap().write_all_at(b"damage", 4096 + 150).unwrap();
    }
    let damaged = contents(&own);
    let (mut interrupted, mut delay) = (0, Duration::from_millis(5));
    loop {
        let child = start(&["repair", "--yes", "--from", copy.to_str().unwrap()], &[&own]);
        thread::sleep(delay);
        interrupt(&child);
        let out = child.wait_with_output().unwrap();
        let now = contents(&own);
        if now == whole {
            break;
        }
        assert!(now == damaged, "something is half done: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(130), "{}", String::from_utf8_lossy(&out.stderr));
        interrupted += 1;
        delay = delay * 3 / 2;
    }
    assert!(interrupted > 0);
    assert_eq!(ezctl(&["verify"], &[&own]).0, 0);
}
