//! `repair`: from a mirror, from an origin, and not from anything else.

use super::ezctl;
use super::writer::{Temp, Writer, mirror, order, orders};
use replog::uring::dir::lock;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECOND: &str = "00000000000000000015.rlog";

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// All segments of a directory, by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let list = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = list.filter(|n| n.ends_with(".rlog") || n.ends_with(".tmp")).collect();
    names.sort();
    names.into_iter().map(|n| (n.clone(), std::fs::read(dir.join(n)).unwrap())).collect()
}

#[test]
fn a_damaged_origin_is_put_back_from_its_mirror_byte_for_byte() {
    let data = Temp::new("repair");
    let (origin, copy) = (data.join("log/0"), data.join("mirror/east-0"));
    mirror(&copy, &orders(&origin, 40));
    let whole = files(&origin);
    let name = origin.join(SECOND);
    overwrite(&name, 16, b"?"); // its header
    overwrite(&name, 3 * 4096, &[0xee; 2 * 4096]); // two batches, stamps and all
    overwrite(&name, 7 * 4096 + 5, b"?"); // a stamp
    let damaged = files(&origin);
    let from = ["--from", copy.to_str().unwrap()];
    let (code, out, err) = ezctl(&[&["repair"], &from[..]].concat(), &[&origin]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("byte 12288, 4096 bytes: batch of seq 17 to 17 (its local_durable_seq is lost"), "{out}");
    assert!(out.contains("byte 28676, 12 bytes: stamp of the batch of seq 21\n"), "{out}");
    assert!(out.contains("nothing was changed: --yes carries it out"), "{out}");
    assert!(files(&origin) == damaged);
    let (code, out, err) = ezctl(&[&["repair", "--yes", "--json"], &from[..]].concat(), &[&origin]);
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &line["done"][0]["file"]), (0, &SECOND.into()), "{out}{err}");
    let mut mended = files(&origin);
    // Of the two batches whose stamps are lost, the stamps may differ; nothing else.
    for at in [3 * 4096, 4 * 4096] {
        mended[1].1[at + 4..at + 16].copy_from_slice(&whole[1].1[at + 4..at + 16]);
    }
    assert!(mended == whole);
    assert_eq!(std::fs::read(origin.join("quarantine").join(format!("{SECOND}.damaged-1"))).unwrap(), damaged[1].1);
    assert_eq!(ezctl(&["verify"], &[&origin]).0, 0);
    let (code, out, _) = ezctl(&[&["repair", "--yes"], &from[..]].concat(), &[&origin]);
    assert!(code == 0 && out.contains("nothing to repair"), "{out}");
    Writer::open(&origin, false, 64 * 1024).append(vec![order(41)]);
}

#[test]
fn a_missing_segment_of_a_mirror_comes_back_from_its_origin() {
    let data = Temp::new("missing");
    let (origin, copy) = (data.join("log/0"), data.join("mirror/east-0"));
    mirror(&copy, &orders(&origin, 40));
    std::fs::remove_file(copy.join("00000000000000000009.rlog")).unwrap();
    assert_eq!(ezctl(&["verify"], &[&copy]).0, 3);
    let (code, out, _) = ezctl(&["repair", "--yes", "--from", origin.to_str().unwrap()], &[&copy]);
    assert!(code == 0 && out.contains("made anew"), "{out}");
    assert_eq!(ezctl(&["verify"], &[&copy]).0, 0);
    assert_eq!(ezctl(&["diff"], &[&origin, &copy]).0, 0);
}

#[test]
fn an_origin_that_lost_its_end_gets_back_what_its_mirror_has_and_a_mirror_that_is_behind_lacks_nothing() {
    let data = Temp::new("end");
    let (origin, copy) = (data.join("log/0"), data.join("mirror/east-0"));
    let mut log = orders(&origin, 20);
    mirror(&copy, &log);
    overwrite(&origin.join(SECOND), 5 * 4096, &[0; 4 * 4096]);
    // Nobody here knows of them: the log looks shorter, and clean.
    assert_eq!(ezctl(&["verify"], &[&origin]).0, 0);
    let (code, out, _) = ezctl(&["repair", "--yes", "--from", copy.to_str().unwrap()], &[&origin]);
    assert!(code == 0 && out.contains("seq 19 to 19") && out.contains("seq 20 to 20"), "{out}");
    assert_eq!(ezctl(&["diff"], &[&origin, &copy]).0, 0);
    (21..=25).for_each(|n| log.append(vec![order(n)]));
    let (code, out, _) = ezctl(&["repair", "--from", origin.to_str().unwrap()], &[&copy]);
    assert!(code == 0 && out.contains("nothing to repair"), "{out}");
}

#[test]
fn a_repair_is_refused_while_a_writer_is_there_and_from_a_source_that_does_not_fit() {
    let data = Temp::new("refused");
    let (origin, copy, other) = (data.join("log/0"), data.join("mirror/east-0"), data.join("other"));
    mirror(&copy, &orders(&origin, 40));
    let mut diverged = orders(&other, 16);
    let mut record = order(17);
    record.value = "other".into();
    diverged.append(vec![record]);
    (18..=40).for_each(|n| diverged.append(vec![order(n)]));
    overwrite(&origin.join(SECOND), 3 * 4096 + 150, b"?");
    let damaged = files(&origin);
    let repair = |from: &Path| ezctl(&["repair", "--yes", "--from", from.to_str().unwrap()], &[&origin]);
    let (code, out, err) = repair(&other);
    assert!(code == 2 && out.contains("seq 17: the source has diverged: its header_crc"), "{out}{err}");
    let (code, _, err) = repair(&origin);
    assert!(code == 2 && err.contains("from itself"), "{err}");
    let held = lock(&origin).unwrap().unwrap();
    let (code, _, err) = repair(&copy);
    assert!(code == 2 && err.contains("a writer has it; stop its node first"), "{err}");
    drop(held);
    assert!(files(&origin) == damaged);
    assert_eq!(repair(&copy).0, 0);
    assert_eq!(ezctl(&["verify"], &[&origin]).0, 0);
}

#[test]
fn where_the_directories_names_do_not_tell_what_is_behind_it_asks() {
    let data = Temp::new("kind");
    let (origin, copy, elsewhere) = (data.join("log/0"), data.join("mirror/east-0"), data.join("backup/east-0"));
    let mut log = orders(&origin, 20);
    mirror(&elsewhere, &log);
    (21..=25).for_each(|n| log.append(vec![order(n)]));
    mirror(&copy, &log);
    overwrite(&elsewhere.join("00000000000000000009.rlog"), 3 * 4096 + 150, b"?");
    let before = files(&elsewhere);
    let repair = |args: &[&str], from: &Path| {
        let from = ["--from", from.to_str().unwrap()];
        ezctl(&[&["repair"], args, &from[..]].concat(), &[&elsewhere])
    };
    // It is behind, and damaged too.
    let (code, _, err) = repair(&["--yes"], &copy);
    assert!(code == 2 && err.contains("say --as own") && err.contains("ends with seq 20"), "{err}");
    assert!(files(&elsewhere) == before);
    let (code, out, _) = repair(&["--as", "own"], &copy);
    assert!(code == 1 && out.contains("seq 25 to 25"), "{out}");
    let (code, out, _) = repair(&["--as", "mirror"], &copy);
    assert!(code == 1 && out.contains("seq 11 to 11") && !out.contains("seq 21 to"), "{out}");
    // Out of the zone's own log: what it mends is a mirror.
    let (code, out, _) = repair(&["--yes"], &origin);
    assert!(code == 0 && !out.contains("seq 21 to"), "{out}");
    assert_eq!(ezctl(&["diff", "--common"], &[&origin, &elsewhere]).0, 0);
    // What is not behind needs no answer.
    overwrite(&elsewhere.join("00000000000000000009.rlog"), 3 * 4096 + 150, b"?");
    let (code, out, err) = ezctl(&["repair", "--yes", "--from", elsewhere.to_str().unwrap()], &[&elsewhere]);
    assert!(code == 2, "{out}{err}");
    assert_eq!(repair(&["--as", "mirror", "--yes"], &copy).0, 0);
    assert_eq!(ezctl(&["verify"], &[&elsewhere]).0, 0);
}
