//! `ls`, `dump`, `stat`, `verify` and `find` on logs that are whole or damaged.

use super::ezctl;
use super::writer::{Temp, Writer, mirror, order, orders, record};
use replog::Op;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const FIRST: &str = "00000000000000000001.rlog";

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_whole_log_is_listed_dumped_and_verified() {
    let data = Temp::new("whole");
    orders(&data.join("log/0"), 40);
    let (code, out, _) = ezctl(&["verify"], &[&data.0]);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("log/0: clean, 3 segments, 40 batches, last seq 40"), "{out}");
    let (code, out, _) = ezctl(&["ls"], &[&data.0]);
    assert!(code == 0 && out.contains("zone 1 stream 0 term 1  last seq 40  clean"), "{out}");
    assert_eq!(out.matches("sealed").count(), 2, "{out}");
    let (_, out, _) = ezctl(&["dump", "--from", "3", "--to", "30", "--shard", "1", "--limit", "2"], &[&data.0]);
    let line = |n| format!("{n} {n}.0 put shard 1 epoch 1 orders {n} {{\"dish\":\"mapo tofu\"}}\n");
    assert_eq!(out, line(3) + &line(5));
    let (_, out, _) = ezctl(&["dump", "--json", "--from", "40"], &[&data.join("log/0")]);
    assert!(out.contains(r#""key":"40""#) && out.lines().count() == 1, "{out}");
}

#[test]
fn records_are_picked_by_hlc_time_key_op_and_origin() {
    let data = Temp::new("pick");
    orders(&data.0, 40);
    let lines = |args: &[&str]| {
        let (code, out, err) = ezctl(&[&["dump"], args].concat(), &[&data.0]);
        assert_eq!((code, &err[..]), (0, ""), "{args:?}");
        out.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect::<Vec<u64>>()
    };
    assert_eq!(lines(&["--from", "38.0"]), [38, 39, 40]);
    assert_eq!(lines(&["--from", "38.1", "--to", "39.0"]), [39]);
    assert_eq!(lines(&["--from", "1970-01-01T00:00:00.037Z", "--to", "@0.038"]), [37, 38]);
    assert_eq!(lines(&["--key", "17"]), [17]);
    assert_eq!(lines(&["--key-hex", "3137"]), [17]);
    assert_eq!(lines(&["--op", "delete"]), [0u64; 0]);
    assert_eq!(lines(&["--origin", "1/0", "--limit", "1"]), [1]);
    assert_eq!(lines(&["--origin", "2"]), [0u64; 0]);
    let (code, _, err) = ezctl(&["dump", "--from", "yesterday"], &[&data.0]);
    assert!(code == 2 && err.contains("2026-11-21T12:00:00Z"), "{err}");
}

#[test]
fn keys_and_values_that_are_no_text_come_back_byte_for_byte() {
    let data = Temp::new("bytes");
    let mut log = Writer::open(&data.0, false, 4 * 1024 * 1024);
    log.append(vec![
        record(Op::Put, 1, "t", b"\xff\x00", b"a\nb\x1b[31m"),
        record(Op::Delete, 1, "t", "键".as_bytes(), b""),
    ]);
    log.append(vec![record(Op::Put, 2, "t", b"big", &vec![b'x'; 1024 * 1024])]);
    let (_, out, _) = ezctl(&["dump"], &[&data.0]);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].ends_with(r"t \xff\x00 a\nb\x1b[31m") && lines[1].ends_with("t 键 -"), "{out}");
    assert!(lines[2].ends_with("x.. (1048576 bytes)") && lines[2].len() < 700, "{}", lines[2].len());
    let (_, out, _) = ezctl(&["dump", "--json"], &[&data.0]);
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&lines[0]["key_hex"], &lines[0]["value"]), (&"ff00".into(), &"a\nb\u{1b}[31m".into()));
    assert_eq!(lines[2]["value"].as_str().unwrap().len(), 1024 * 1024);
    let (_, out, _) = ezctl(&["dump", "--hex", "--limit", "1"], &[&data.0]);
    assert!(out.ends_with("t ff00 610a621b5b33316d\n"), "{out}");
    assert_eq!(ezctl(&["find", "--key-hex", "ff00"], &[&data.0]).0, 0);
}

#[test]
fn damage_is_named_and_what_is_intact_is_still_dumped() {
    let data = Temp::new("damaged");
    orders(&data.join("log/0"), 20);
    let name = data.join("log/0").join(FIRST);
    overwrite(&name, 3 * 4096 + 140, b"?");
    let (code, out, _) = ezctl(&["verify"], &[&data.0]);
    assert!(code == 2 && out.contains("corrupt") && out.contains("byte 12288, seq 3: page 0"), "{out}");
    let (code, out, err) = ezctl(&["dump"], &[&name]);
    assert!(code == 0 && out.lines().count() == 13, "{out}");
    assert!(err.contains("byte 12288") && err.contains("up to byte 16384") && err.lines().count() == 1, "{err}");
    std::fs::remove_file(&name).unwrap();
    overwrite(&data.join("log/0/00000000000000000015.rlog"), 4096, &[0; 4096]);
    let (code, out, err) = ezctl(&["dump", "--from", "1"], &[&data.0]);
    assert!(code == 0 && out.lines().count() == 5 && out.starts_with("16 "), "{out}{err}");
}

#[test]
fn a_torn_end_is_exit_code_1_and_usage_2() {
    let data = Temp::new("torn");
    orders(&data.join("log/0"), 5);
    overwrite(&data.join("log/0").join(FIRST), 6 * 4096, b"RLB1 half");
    let (code, out, _) = ezctl(&["verify", "--json"], &[&data.0]);
    assert!(code == 1 && out.contains(r#""verdict":"torn""#), "{out}");
    let (code, out, err) = ezctl(&["dump"], &[&data.0]);
    assert!(code == 0 && out.lines().count() == 5 && err.contains("the log ends here"), "{err}");
    assert_eq!(ezctl(&["verify"], &[&data.join("nowhere")]).0, 2);
    assert_eq!(ezctl(&["dump", "--from", "x"], &[&data.0]).0, 2);
}

#[test]
fn a_newer_format_is_said_to_be_one() {
    let data = Temp::new("newer");
    orders(&data.0, 3);
    // Version 2 in the segment's header, its checksum made to fit.
    let mut block = std::fs::read(data.join(FIRST)).unwrap()[..4096].to_vec();
    block[12] = 2;
    let crc = crc(&block[12..]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    overwrite(&data.join(FIRST), 0, &block);
    let (code, out, _) = ezctl(&["verify"], &[&data.0]);
    assert!(code == 2 && out.contains("format version 2, this program knows 1"), "{out}");
    let (code, _, err) = ezctl(&["dump"], &[&data.0]);
    assert!(code == 2 && err.contains("format version 2, this program knows 1: use a newer ezctl"), "{err}");
}

/// CRC-32/IEEE, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0u32, |crc, b| (0..8).fold(crc ^ u32::from(*b), |c, _| c >> 1 ^ (0xedb8_8320 & (c & 1).wrapping_neg())))
}

#[test]
fn stat_counts_by_table_op_shard_and_hour() {
    let data = Temp::new("stat");
    let mut log = Writer::open(&data.0, false, 64 * 1024);
    for n in 0..10 {
        log.append(vec![record(Op::Put, n * 3_600_000, "orders", b"k", b"0123456789")]);
        log.append(vec![record(Op::Delete, n * 3_600_000 + 1, "dishes", b"k", b"")]);
    }
    let (code, out, _) = ezctl(&["stat", "--json"], &[&data.0]);
    let stat: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &stat["records"], &stat["batches"]), (0, &20.into(), &20.into()), "{out}");
    assert_eq!(stat["by_hour"].as_array().unwrap().len(), 10, "{out}");
    assert_eq!(stat["by_hour"][3]["hour"], "1970-01-01T03:00:00Z", "{out}");
    assert_eq!(stat["by_op"][1]["records"], 10, "{out}");
    assert_eq!(
        (&stat["by_table"][0]["table"], &stat["by_table"][0]["records"]),
        (&"dishes".into(), &10.into()),
        "{out}"
    );
    assert_eq!(
        (&stat["commit_interval_ns"]["count"], &stat["batch_bytes"]["max"]),
        (&19.into(), &4096.into()),
        "{out}"
    );
    let (_, out, _) = ezctl(&["stat", "--table", "orders", "--from", "11"], &[&data.0]);
    assert!(out.contains("5 records in 5 batches") && out.contains("orders") && !out.contains("dishes"), "{out}");
}

#[test]
fn find_tells_the_history_of_a_key_once_and_where_its_copies_are() {
    let data = Temp::new("find");
    let mut log = orders(&data.join("a/log/0"), 30);
    log.append(vec![record(Op::Delete, 31, "orders", b"7", b"")]);
    mirror(&data.join("b/mirror/east-0"), &log);
    let (code, out, _) = ezctl(&["find", "--key", "7", "--json"], &[&data.join("a"), &data.join("b")]);
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((code, lines.len()), (0, 2), "{out}");
    let of = |n: usize| (lines[n]["seq"].as_u64(), lines[n]["op"].as_str(), lines[n]["wins"].as_bool());
    assert_eq!((of(0), of(1)), ((Some(7), Some("put"), Some(false)), (Some(31), Some("delete"), Some(true))));
    assert_eq!(lines[0]["logs"].as_array().unwrap().len(), 2, "{out}");
    assert_eq!(ezctl(&["find", "--key", "no such key"], &[&data.0]).0, 1);
    let (code, _, err) = ezctl(&["find"], &[&data.0]);
    assert!(code == 2 && err.contains("--key"), "{err}");
}

/// Ends the process that it holds.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn follow_goes_on_over_segments_and_over_a_writer_that_died_and_came_back() {
    let data = Temp::new("follow");
    let mut log = orders(&data.0, 20);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ezctl"));
    child.args(["log", "dump", "--follow", "--from", "10", "--limit", "41"]).arg(&data.0).stdout(Stdio::piped());
    let mut child = Reaped(child.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut expect = |from: u64, to: u64| {
        for n in from..=to {
            let line = lines.next().unwrap().unwrap();
            assert!(line.starts_with(&format!("{n} ")), "{line}, expected {n}");
        }
    };
    expect(10, 20);
    (21..=40).for_each(|n| log.append(vec![order(n)]));
    expect(21, 40);
    drop(log);
    let mut log = Writer::open(&data.0, false, 64 * 1024);
    (41..=60).for_each(|n| log.append(vec![order(n)]));
    expect(41, 50);
    assert!(lines.next().is_none(), "--limit ends it");
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let data = Temp::new("head");
    orders(&data.0, 400);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ezctl"));
    let child = child.args(["log", "dump", "--json"]).arg(&data.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0));
}

#[test]
fn a_lost_footer_is_named_though_no_record_is_missing_and_any_repair_makes_it_again() {
    let data = Temp::new("footer");
    let (own, copy) = (data.join("log/0"), data.join("mirror/east-0"));
    let log = orders(&own, 40);
    mirror(&copy, &log);
    let name = own.join(FIRST);
    let whole = std::fs::read(&name).unwrap();
    let footer = whole.chunks(4096).position(|b| b.starts_with(b"RLGEND1")).unwrap() as u64 * 4096;
    overwrite(&name, footer, &[0; 4096]);
    let (code, out, err) = ezctl(&["verify"], &[&own]);
    assert!(code == 2 && out.contains("corrupt, 3 segments, 40 batches") && out.contains("footer"), "{out}{err}");
    assert!(ezctl(&["ls"], &[&own]).1.contains("its footer is damaged or lost"));
    assert_eq!(ezctl(&["dump"], &[&own]).1.lines().count(), 40);
    let (code, out, err) = ezctl(&["repair", "--yes", "--from", copy.to_str().unwrap()], &[&own]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(std::fs::read(&name).unwrap() == whole);
    assert_eq!(ezctl(&["verify"], &[&own]).0, 0);
}
