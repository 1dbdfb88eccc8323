//! `ezctl log` on a log that is whole, torn, corrupt, or not there.

use replog::log::{Config, Log, Order};
use replog::open::{Depth, Floor, examine};
use replog::uring::dir::Dir;
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A data directory with one stream of `count` orders, written by the machine itself through plain files.
fn data(name: &str, count: u64) -> PathBuf {
    let data = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&data);
    let dir = data.join("log/0");
    std::fs::create_dir_all(&dir).unwrap();
    let found = examine(&mut Dir::new(&dir), Floor::default(), Depth::Whole).unwrap();
    let config = Config { zone: Zone(1), stream: 0, mirror: false, segment_bytes: 64 * 1024 };
    let (mut log, _) = Log::recovered(config, found, &[], 77, 5);
    let mut file = None;
    for n in 1..=count + 1 {
        while let Some(order) = log.next_order(n) {
            match order {
                Order::Begin { name, header, bytes, .. } => {
                    let new = std::fs::File::options().create_new(true).write(true).open(dir.join(name)).unwrap();
                    new.set_len(bytes).unwrap();
                    new.write_all_at(&header, 0).unwrap();
                    file = Some(new);
                    log.on_segment(Ok(()), n);
                }
                Order::Write { id, pos, bytes } => {
                    file.as_ref().unwrap().write_all_at(&bytes, pos).unwrap();
                    log.on_written(id, Ok(()));
                }
                Order::Seal { pos, bytes } => {
                    file.as_ref().unwrap().write_all_at(&bytes, pos).unwrap();
                    log.on_sealed();
                }
                Order::Sync { id } => drop(log.on_synced(id, Ok(()), n)),
                Order::Spare { .. } => log.on_spare(Ok(()), n),
                other => panic!("{other:?}"),
            }
        }
        if n <= count {
            log.append(vec![order(n)], n).unwrap();
        }
    }
    data
}

fn order(n: u64) -> Record {
    Record {
        op: Op::Put,
        transaction: 0,
        shard: Shard(n as u16 % 2),
        owner_epoch: OwnerEpoch(1),
        hlc: Hlc::new(n, 0),
        table: "orders".into(),
        key: n.to_string().into(),
        value: r#"{"dish":"mapo tofu"}"#.into(),
    }
}

fn ezctl(args: &[&str], path: &Path) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_ezctl")).arg("log").args(args).arg(path).output().unwrap();
    let text = |b| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[test]
fn a_whole_log_is_listed_dumped_and_verified() {
    let data = data("whole", 40);
    let (code, out, _) = ezctl(&["verify"], &data);
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("log/0: clean, 3 segments, 40 batches, last seq 40"), "{out}");
    let (code, out, _) = ezctl(&["ls"], &data);
    assert!(code == 0 && out.contains("zone 1 stream 0 term 1  last seq 40  clean"), "{out}");
    assert_eq!(out.matches("sealed").count(), 2, "{out}");
    let (_, out, _) = ezctl(&["dump", "--from", "3", "--to", "30", "--shard", "1", "--limit", "2"], &data);
    let line = |n| format!("{n} {n}.0 put shard 1 epoch 1 orders {n} {{\"dish\":\"mapo tofu\"}}\n");
    assert_eq!(out, line(3) + &line(5));
    let (_, out, _) = ezctl(&["dump", "--json", "--from", "40"], &data.join("log/0"));
    assert!(out.contains(r#""key":"40""#) && out.lines().count() == 1, "{out}");
    std::fs::remove_dir_all(data).unwrap();
}

#[test]
fn damage_is_named_and_what_is_intact_is_still_dumped() {
    let data = data("damaged", 20);
    let dir = data.join("log/0");
    let name = dir.join("00000000000000000001.rlog");
    let file = std::fs::File::options().write(true).open(&name).unwrap();
    file.write_all_at(b"?", 3 * 4096 + 140).unwrap();
    let (code, out, _) = ezctl(&["verify"], &data);
    assert!(code == 2 && out.contains("corrupt") && out.contains("byte 12288, seq 3: page 0"), "{out}");
    let (code, out, err) = ezctl(&["dump"], &name);
    assert!(code == 0 && out.lines().count() == 13, "{out}");
    assert!(err.contains("byte 12288") && err.lines().count() == 1, "{err}");
    std::fs::remove_dir_all(data).unwrap();
}

#[test]
fn a_torn_end_is_exit_code_1_and_usage_2() {
    let data = data("torn", 5);
    let file = std::fs::File::options().write(true).open(data.join("log/0/00000000000000000001.rlog")).unwrap();
    file.write_all_at(b"RLB1 half", 6 * 4096).unwrap();
    let (code, out, _) = ezctl(&["verify", "--json"], &data);
    assert!(code == 1 && out.contains(r#""verdict":"torn""#), "{out}");
    assert_eq!(ezctl(&["verify"], &data.join("nowhere")).0, 2);
    assert_eq!(ezctl(&["dump", "--from", "x"], &data).0, 2);
    std::fs::remove_dir_all(data).unwrap();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let data = data("head", 400);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ezctl"));
    let child = child.args(["log", "dump", "--json"]).arg(&data).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0));
    std::fs::remove_dir_all(data).unwrap();
}
