//! `reader.py`, which was written from FORMAT.md alone, and this crate read the same in the same files.

mod files;

use files::{BLOCK, Files, Writer, record};
use replog::open::Verdict;
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str, files: &Files) -> Temp {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("reader-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        for (name, bytes) in &files.0 {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        Temp(dir)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Exit code, records and verdict of the Python reader.
fn python(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader.py");
    let mut python = Command::new("python3");
    let out = python.arg("-B").arg(reader).arg(dir).args(args).output();
    let out = out.expect("python3 runs the second reader: apt-get install python3");
    let text = |b| String::from_utf8(b).unwrap();
    (out.status.code().expect("no signal"), text(out.stdout), text(out.stderr))
}

/// The same line as the reader prints.
fn line(seq: u64, r: &Record) -> String {
    let op = r.op.name();
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (table, key, value) = (hex(&r.table), hex(&r.key), hex(&r.value));
    format!(
        "{{\"seq\": {seq}, \"op\": \"{op}\", \"transaction\": {}, \"shard\": {}, \"owner_epoch\": {}, \"hlc\": {}, \
         \"table\": \"{table}\", \"key\": \"{key}\", \"value\": \"{value}\"}}\n",
        r.transaction, r.shard.0, r.owner_epoch.0, r.hlc.0
    )
}

fn rust(files: &Files) -> String {
    let batches = files.clone().batches();
    batches.iter().flat_map(|b| b.iter()).map(|r| r.unwrap()).map(|(seq, r)| line(seq, &r)).collect()
}

/// Both read the same, and both call it the same.
fn agree(name: &str, files: &Files) {
    let dir = Temp::new(name, files);
    let (code, out, verdict) = python(&dir.0, &[]);
    let found = files.clone().found();
    let expected = match found.verdict {
        Verdict::Clean | Verdict::Stale(_) if !found.footers_lost.is_empty() => (2, "corrupt"),
        Verdict::Empty => (0, "empty"),
        Verdict::Clean => (0, "clean"),
        Verdict::Stale(_) => (0, "stale"),
        Verdict::Torn(_) => (1, "torn"),
        Verdict::Corrupt(_) => (2, "corrupt"),
        Verdict::Gap(_) => (3, "gap"),
    };
    assert!(code == expected.0 && verdict.starts_with(expected.1), "{name}: {verdict}, expected {}", found.verdict);
    if found.verdict.is_sound() {
        assert!(out == rust(files), "{name}: they read different records");
    }
}

/// Records with every op, limits of every field, and several transactions in one batch.
fn odd(hlc: u64) -> Vec<Record> {
    let ops = [Op::Put, Op::Delete, Op::Fence, Op::Gap, Op::Answer, Op::Marker];
    let one = |(n, op): (usize, Op)| Record {
        op,
        transaction: n as u32 / 2,
        shard: Shard(if n == 0 { u16::MAX } else { n as u16 }),
        owner_epoch: OwnerEpoch(if n == 1 { u64::MAX } else { 128 }),
        hlc: Hlc(Hlc::new(hlc, 0).0 + 200 * n as u64),
        table: vec![b't'; if n == 2 { 128 } else { 0 }].into(),
        key: vec![0xff; if n == 3 { 1024 } else { 1 }].into(),
        value: vec![n as u8; 10 * n].into(),
    };
    ops.into_iter().enumerate().map(one).collect()
}

/// Several lives and segments, records of every kind, values up to the limit.
fn origin() -> Files {
    let mut files = Files::default();
    let mut now = 1;
    for life in 0..3 {
        let mut writer = Writer::open(files, false, 300, 0xabc + life, now);
        for size in [1, 100, 3960, 4000, 8000, 100_000] {
            let hlc = writer.now();
            writer.append(odd(hlc));
            writer.append(vec![record(hlc + 1, size), record(hlc + 1, size / 2)]);
        }
        let hlc = writer.now();
        writer.append(vec![record(hlc, 1024 * 1024)]);
        writer.append(vec![record(hlc, 0)]);
        // The idle marker.
        (0..100).for_each(|_| writer.drain());
        writer.append(vec![record(writer.now(), 5)]);
        (now, files) = (writer.now() + 1, writer.files);
    }
    files
}

#[test]
fn both_read_the_same_records_of_an_origin_and_of_its_mirror() {
    let mut origin = origin();
    let batches = origin.batches();
    assert!(origin.segments().len() >= 6 && batches.iter().any(|b| b.is_marker()));
    agree("origin", &origin);
    let mut mirror = Writer::open(Files::default(), true, 500, 99, 1);
    batches.iter().for_each(|b| mirror.copy(b));
    assert!(mirror.files.segments() != origin.segments());
    agree("mirror", &mirror.files);
    agree("empty", &Files::default());
}

/// A log whose newest segments lie in files that were segments before.
fn recycled() -> Files {
    let mut writer = Writer::open(Files::default(), false, 6, 7, 1);
    for n in 0..40 {
        let now = writer.now();
        writer.append(vec![record(now, 100 + n)]);
        writer.log.release(writer.log.durable_seq(), 0);
        // Checkpoints are written once a second: a segment goes after one has said so.
        (0..300).for_each(|_| writer.drain());
    }
    writer.files
}

#[test]
fn both_read_the_same_where_segments_were_let_go_and_their_files_used_again() {
    let mut files = recycled();
    let found = files.found();
    assert!(found.segments.iter().any(|s| s.header.recycled), "no file was used again");
    assert!(found.segments[0].header.first_seq > 1, "nothing was let go");
    agree("recycled", &files);
}

#[test]
fn both_call_damage_the_same() {
    let mut whole = recycled();
    let segments = whole.found().segments;
    let seed: u64 = std::env::var("SEED").map_or(3, |s| s.parse().unwrap());
    let rounds = if std::env::var("SEED").is_ok() { 1 } else { 20 };
    for round in 0..rounds {
        let mut x = (seed + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 11) % n
        };
        let mut files = whole.clone();
        let s = &segments[below(segments.len() as u64) as usize];
        let at = below(s.used_bytes());
        match below(4) {
            0 => files.0.get_mut(&s.name).unwrap()[at as usize] ^= 1 << below(8),
            1 => files.put(&s.name, at / 512 * 512, &[0; 512]),
            2 => files.0.get_mut(&s.name).unwrap().truncate(at as usize),
            _ => drop(files.0.remove(&s.name)),
        }
        let dir = Temp::new(&format!("damage-{round}"), &files);
        let (code, _, verdict) = python(&dir.0, &["--quiet"]);
        let found = files.found();
        let expected = match found.verdict {
            Verdict::Clean | Verdict::Stale(_) if !found.footers_lost.is_empty() => 2,
            Verdict::Empty | Verdict::Clean | Verdict::Stale(_) => 0,
            Verdict::Torn(_) => 1,
            Verdict::Corrupt(_) => 2,
            Verdict::Gap(_) => 3,
        };
        let said = files.found().verdict;
        assert_eq!(code, expected, "SEED={} {} at {at}: {verdict}, {said}", seed + round, s.name);
    }
}

#[test]
fn a_flipped_bit_is_found() {
    let mut files = origin();
    let name = files.segments().remove(0);
    files.0.get_mut(&name).unwrap()[2 * BLOCK as usize + 300] ^= 4;
    let dir = Temp::new("flip", &files);
    let (code, _, verdict) = python(&dir.0, &["--quiet"]);
    assert!(code == 2 && verdict.starts_with("corrupt") && verdict.contains("page"), "{verdict}");
    let (code, _, usage) = python(Path::new("--help"), &[]);
    assert!(code == 2 && usage.contains("reader.py DIR"), "{usage}");
}
