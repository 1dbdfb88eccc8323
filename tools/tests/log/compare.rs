//! `diff` and `lag`: copies of one stream beside each other.

use super::ezctl;
use super::writer::{Temp, Writer, mirror, order, orders};
use replog::store::{Change, Changes, Store};
use replog::uring::sqlite::Sqlite;
use shardmap::Zone;
use std::fs::File;
use std::os::unix::fs::FileExt;

#[test]
fn an_origin_and_its_mirror_are_the_same_though_their_segments_end_elsewhere() {
    let data = Temp::new("same");
    let log = orders(&data.join("a"), 40);
    mirror(&data.join("b"), &log);
    let (code, out, _) = ezctl(&["diff"], &[&data.join("a"), &data.join("b")]);
    assert!(code == 0 && out.contains("0 segments by their digests, 40 batches"), "{out}");
    let mut copy = Writer::open(&data.join("c"), true, 64 * 1024);
    log.batches.iter().for_each(|b| copy.copy(b));
    let (code, out, _) = ezctl(&["diff", "--json"], &[&data.join("a"), &data.join("c")]);
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &line["same"], &line["segments_by_digest"]), (0, &true.into(), &2.into()), "{out}");
    let (code, out, _) = ezctl(&["diff", "--whole"], &[&data.join("a"), &data.join("c")]);
    assert!(code == 0 && out.contains("0 segments by their digests, 40 batches"), "{out}");
}

#[test]
fn a_mirror_that_is_behind_differs_unless_only_what_is_common_counts() {
    let data = Temp::new("behind");
    let mut log = orders(&data.join("a"), 20);
    mirror(&data.join("b"), &log);
    (21..=25).for_each(|n| log.append(vec![order(n)]));
    let (code, out, _) = ezctl(&["diff"], &[&data.join("a"), &data.join("b")]);
    assert!(code == 1 && out.contains("only a holds seqs 21 to 25"), "{out}");
    assert_eq!(ezctl(&["diff", "--common"], &[&data.join("a"), &data.join("b")]).0, 0);
    // What is missing between what both hold is a difference all the same.
    let name = data.join("b/00000000000000000001.rlog");
    File::options().write(true).open(name).unwrap().write_all_at(&[0; 4096], 8192).unwrap();
    let (code, out, _) = ezctl(&["diff", "--common"], &[&data.join("a"), &data.join("b")]);
    assert!(code == 1 && out.contains("only a holds seqs 2 to 2"), "{out}");
}

#[test]
fn the_first_differing_batch_and_its_records_are_shown() {
    let data = Temp::new("differ");
    let (mut a, mut b) = (orders(&data.join("a"), 20), orders(&data.join("b"), 20));
    a.append(vec![order(21), order(22)]);
    let mut other = order(22);
    other.value = "{}".into();
    b.append(vec![order(21), other]);
    let (code, out, _) = ezctl(&["diff"], &[&data.join("a"), &data.join("b")]);
    assert!(code == 1 && out.contains("they differ in the batch of seq 21"), "{out}");
    let minus: Vec<&str> = out.lines().filter(|l| l.starts_with("- ")).collect();
    assert!(minus.len() == 1 && minus[0].contains(" 22 {\"dish\""), "{out}");
    assert!(out.contains("\n+ 22 22.0 put shard 0 epoch 1 orders 22 {}\n"), "{out}");
    let (code, out, _) = ezctl(&["diff", "--json"], &[&data.join("a"), &data.join("b")]);
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((code, &lines[0]["in_b"]["value"], &lines[1]["differs_at_seq"]), (1, &"{}".into(), &21.into()), "{out}");
}

#[test]
fn lag_is_told_in_records_and_in_milliseconds_for_mirrors_and_stores() {
    let data = Temp::new("lag");
    let mut log = orders(&data.join("east/log/0"), 30);
    mirror(&data.join("south/mirror/east-0"), &log);
    (31..=40).for_each(|n| log.append(vec![order(n)]));
    std::fs::create_dir_all(data.join("south/store")).unwrap();
    let mut store = Sqlite::open(&data.join("south/store/0.db")).unwrap();
    store.commit(&Changes { list: vec![Change::Applied(Zone(1), 12)], durable: true }).unwrap();
    let rows = |paths: &[&std::path::Path]| {
        let (code, out, err) = ezctl(&["lag", "--json"], paths);
        assert_eq!((code, &err[..]), (0, ""), "{out}");
        let row = |l: &str| {
            let row: serde_json::Value = serde_json::from_str(l).unwrap();
            let number = |name: &str| row[name].as_i64().unwrap();
            (row["what"].as_str().unwrap().to_owned(), number("seq"), number("behind_records"), number("behind_ms"))
        };
        out.lines().map(row).collect::<Vec<_>>()
    };
    let expected = [("origin", 40, 0, 0), ("mirror", 30, 10, 10), ("applied", 12, 28, 28)];
    let expected = expected.map(|(what, seq, records, ms)| (what.to_owned(), seq, records, ms));
    assert_eq!(rows(&[&data.join("east"), &data.join("south")]), expected);
    let closed: Vec<_> = {
        drop(store);
        rows(&[&data.join("east"), &data.join("south")])
    };
    assert_eq!(closed, expected, "a store that nobody has open is read too");
    assert!(!data.join("south/store/0.db-shm").exists(), "and nothing is put beside it");
    let (_, out, _) = ezctl(&["lag"], &[&data.join("south")]);
    assert!(out.contains("its origin is not among these paths") && out.contains("behind          0 records"), "{out}");
}
