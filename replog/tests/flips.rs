//! The bit-flip matrix: one bit changed in each field of each structure of a log that was stopped cleanly, and what an open says.
//!
//! | where | verdict |
//! |---|---|
//! | segment header, any bit of its block | corrupt, at that file |
//! | batch: any bit of its header, page table, body, padding | corrupt, at that batch |
//! | the last batch, when the store, the peers and both checkpoints know nothing of it, and no batch follows | torn: the one exception |
//! | footer | named, if a successor says that the segment was sealed: what was acknowledged is not in it |
//! | one checkpoint, or both | the other counts, or none: it is a help, not a promise |
//!
//! The file is as it was: neither the open nor the verdict cuts, repairs or renames anything.
#![cfg(feature = "uring")]

#[allow(dead_code, reason = "each test uses a part of it")]
mod disk;
#[expect(dead_code, reason = "other tests use all of it")]
mod kit;

use disk::Disk;
use kit::{Temp, run};
use replog::Record;
use replog::limits::{BLOCK, HEADER};
use replog::open::{Depth, Floor, FooterLost, Found, Storage, Verdict, Walk, Why, examine};
use replog::repair::{Content, What, plan};
use replog::segment::{Checkpoint, FIRST_POS, Footer, Header};
use replog::uring::dir::Dir;
use replog::uring::stream::{Error, Kind, Options, Scrub, StreamLog};
use shardmap::Zone;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const OPTIONS: Options = Options {
    zone: Zone(1),
    stream: 2,
    kind: Kind::Origin,
    segment_bytes: 12 * BLOCK as u64,
    floor: Floor { applied: 0, peers: 0 },
    scrub: Scrub::NEVER,
};

/// FORMAT.md "Segment header".
const SEGMENT_FIELDS: [(&str, Range<usize>); 19] = [
    ("magic", 0..8),
    ("crc", 8..12),
    ("version", 12..14),
    ("zone", 14..16),
    ("block size", 16..20),
    ("stream", 20..24),
    ("log_uuid", 24..40),
    ("number", 40..48),
    ("first seq", 48..56),
    ("term", 56..64),
    ("salt", 64..72),
    ("last seq before", 72..80),
    ("chain before", 80..84),
    ("flags", 84..88),
    ("end before", 88..96),
    ("length", 96..104),
    ("HLC", 104..112),
    ("seal before", 112..116),
    ("zeros", 116..BLOCK),
];

/// FORMAT.md "Batch".
const BATCH_FIELDS: [(&str, Range<usize>); 27] = [
    ("magic", 0..4),
    ("place_crc", 4..8),
    ("local_durable_seq", 8..16),
    ("header_crc", 16..20),
    ("hdr_len", 20..22),
    ("version", 22..23),
    ("codec", 23..24),
    ("flags", 24..28),
    ("stream", 28..32),
    ("zone", 32..34),
    ("reserved", 34..36),
    ("records", 36..40),
    ("body_len", 40..44),
    ("raw_len", 44..48),
    ("raw_crc", 48..52),
    ("prev_chain", 52..56),
    ("first seq", 56..64),
    ("term", 64..72),
    ("lowest HLC", 72..80),
    ("highest HLC", 80..88),
    ("append time", 88..92),
    ("append time, high", 92..96),
    ("transactions", 96..100),
    ("schema epoch", 100..104),
    ("log_uuid", 104..112),
    ("zeros", 112..120),
    ("more zeros", 120..128),
];

/// One in five takes three blocks.
fn put(n: u64) -> Record {
    kit::put(n, if n.is_multiple_of(5) { 9000 } else { 300 })
}

/// Several segments, each sealed but the last, cleanly stopped, on a real disk.
fn write(dir: &Path) {
    let dir = dir.to_owned();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        for n in 1..30 {
            log.append(vec![put(n)]).await.unwrap();
        }
        log.close().await.unwrap();
    });
}

/// Every file but the lock, which says who holds it.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|f| f.file_type().unwrap().is_file());
    let named = files.map(|f| (f.file_name().into_string().unwrap(), std::fs::read(f.path()).unwrap()));
    named.filter(|(name, _)| name != "LOCK").collect()
}

fn in_memory(dir: &Path) -> Disk {
    let mut disk = Disk::default();
    for (name, bytes) in contents(dir) {
        disk.create(&name, bytes);
    }
    disk
}

/// A batch's file, position, first seq, bytes on disk, bytes that travel, length of its header.
#[derive(Clone, Debug)]
struct Place {
    file: String,
    pos: u64,
    seq: u64,
    disk: usize,
    travel: usize,
    head: usize,
}

fn places(disk: &mut Disk) -> Vec<Place> {
    let found = judge(disk, Floor::default());
    assert_eq!(found.verdict, Verdict::Clean);
    let mut all = Vec::new();
    for segment in &found.segments {
        let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
        let mut pos = FIRST_POS;
        while pos < segment.end {
            let (batch, _) = walk.at(disk, pos).unwrap().unwrap();
            let (file, seq, travel) = (segment.name.clone(), batch.first_seq, batch.bytes.len());
            let head = usize::from(u16::from_le_bytes([batch.bytes[20], batch.bytes[21]]));
            all.push(Place { file, pos, seq, disk: batch.disk_len(), travel, head });
            pos += batch.disk_len() as u64;
        }
    }
    all
}

/// Every part of a batch; of what is long, one bit of some bytes.
fn bits_of(place: &Place) -> Vec<(&'static str, u64)> {
    let mut bits = Vec::new();
    for (field, range) in BATCH_FIELDS {
        bits.extend((range.start * 8..range.end * 8).map(|bit| (field, bit as u64)));
    }
    bits.extend((HEADER * 8..place.head * 8).map(|bit| ("page table", bit as u64)));
    bits.extend((place.head..place.travel).step_by(37).map(|byte| ("body", byte as u64 * 8 + byte as u64 % 8)));
    bits.extend((place.travel..place.disk).step_by(101).map(|byte| ("padding", byte as u64 * 8 + byte as u64 % 8)));
    bits.into_iter().map(|(field, bit)| (field, place.pos * 8 + bit)).collect()
}

fn judge(disk: &mut Disk, floor: Floor) -> Found {
    examine(disk, floor, Depth::Whole).unwrap()
}

fn flipped(disk: &Disk, file: &str, bit: u64) -> Disk {
    let mut disk = disk.clone();
    disk.flip(file, bit);
    disk
}

#[test]
fn any_bit_of_an_acknowledged_batch_is_corrupt_at_that_batch() {
    let temp = Temp::new("flips-batch");
    write(&temp.0);
    let mut disk = in_memory(&temp.0);
    let places = places(&mut disk);
    let long = places.iter().position(|p| p.disk > BLOCK).expect("a batch of several blocks");
    let newest = places.last().unwrap().file.clone();
    let begins = places.iter().position(|p| p.file == newest).unwrap();
    let sealed = places.iter().filter(|p| p.file != newest).count();
    for at in [0, long, sealed - 1, begins, places.len() - 1] {
        let place = &places[at];
        for (field, bit) in bits_of(place) {
            let verdict = judge(&mut flipped(&disk, &place.file, bit), Floor::default()).verdict;
            let there = matches!(&verdict, Verdict::Corrupt(c) if (&c.file, c.pos, c.seq) == (&place.file, place.pos, place.seq));
            assert!(there, "{field}, bit {bit} of {place:?}: {verdict:?}");
        }
    }
}

#[test]
fn any_bit_of_a_segments_header_is_corrupt_at_that_file() {
    let temp = Temp::new("flips-header");
    write(&temp.0);
    let disk = in_memory(&temp.0);
    let segments = disk.segments();
    assert!(segments.len() > 3);
    for file in [&segments[0], &segments[1], segments.last().unwrap()] {
        for (field, range) in SEGMENT_FIELDS {
            for bit in (range.start * 8..range.end * 8).step_by(if range.len() > 100 { 61 } else { 1 }) {
                let verdict = judge(&mut flipped(&disk, file, bit as u64), Floor::default()).verdict;
                let there =
                    matches!(&verdict, Verdict::Corrupt(c) if c.file == *file && matches!(c.why, Why::Header(_)));
                assert!(there, "{field}, bit {bit} of {file}: {verdict:?}");
            }
        }
    }
}

#[test]
fn a_last_batch_that_nothing_and_nobody_vouches_for_is_torn_and_else_corrupt() {
    let temp = Temp::new("flips-exception");
    write(&temp.0);
    let mut disk = in_memory(&temp.0);
    let last = places(&mut disk).pop().unwrap();
    let mut alone = disk.clone();
    Checkpoint::NAMES.iter().for_each(|name| alone.remove(name));
    for (field, bit) in bits_of(&last) {
        let mut damaged = flipped(&alone, &last.file, bit);
        let verdict = judge(&mut damaged, Floor::default()).verdict;
        assert!(matches!(&verdict, Verdict::Torn(t) if t.seq == last.seq), "{field}, bit {bit}: {verdict:?}");
        for floor in [Floor { applied: last.seq, peers: 0 }, Floor { applied: 0, peers: last.seq }] {
            let verdict = judge(&mut damaged, floor).verdict;
            assert!(matches!(verdict, Verdict::Corrupt(_)), "{field}, bit {bit}, {floor:?}: {verdict:?}");
        }
    }
}

#[test]
fn a_damaged_checkpoint_leaves_the_other_and_a_log_without_any_is_read_by_itself() {
    let temp = Temp::new("flips-checkpoint");
    write(&temp.0);
    let mut disk = in_memory(&temp.0);
    let whole = judge(&mut disk, Floor::default());
    let newest = whole.checkpoint.expect("a clean stop writes one");
    let name = Checkpoint::NAMES[(newest.generation % 2) as usize];
    for bit in (0..64 * 8).chain((64 * 8..BLOCK as u64 * 8).step_by(61)) {
        let found = judge(&mut flipped(&disk, name, bit), Floor::default());
        assert_eq!((&found.verdict, found.last_seq), (&Verdict::Clean, whole.last_seq), "bit {bit}");
        assert!(found.checkpoint.is_none_or(|c| c.generation + 1 == newest.generation), "bit {bit}");
    }
}

/// A torn footer at the end is what a crash in the middle of sealing leaves: it proves nothing, and nothing that was acknowledged is in it.
/// Behind one that has a successor, the successor says that it was there.
#[test]
fn a_damaged_or_lost_footer_is_named_and_takes_no_record_with_it() {
    let temp = Temp::new("flips-footer");
    write(&temp.0);
    let mut disk = in_memory(&temp.0);
    let whole = judge(&mut disk, Floor::default());
    assert_eq!(whole.footers_lost, []);
    let sealed = &whole.segments[1];
    assert!(sealed.footer.is_some());
    let named = |damaged: &mut Disk, what: &str| {
        for depth in [Depth::Whole, Depth::Needed] {
            let found = examine(damaged, Floor { applied: whole.last_seq, peers: 0 }, depth).unwrap();
            assert_eq!((&found.verdict, found.last_seq), (&Verdict::Clean, whole.last_seq), "{what}");
            assert_eq!(found.segments[1].footer, None, "{what}");
            assert_eq!(found.footers_lost, [FooterLost { file: sealed.name.clone(), pos: sealed.end }], "{what}");
        }
        // What the batches say is what was there.
        let made = plan(damaged, None, Floor::default(), 1).unwrap();
        assert!(made.is_possible() && made.files.len() == 1, "{what}: {made:?}");
        let [patch] = &made.files[0].patches[..] else { panic!("{what}: {made:?}") };
        let was = Footer::encode(sealed.footer.as_ref().unwrap());
        assert_eq!((patch.what, patch.pos, &patch.content), (What::Footer, sealed.end, &Content::Bytes(was)), "{what}");
    };
    for bit in (0..88 * 8).chain((88 * 8..BLOCK as u64 * 8).step_by(61)) {
        named(&mut flipped(&disk, &sealed.name, sealed.end * 8 + bit), &format!("bit {bit}"));
    }
    let mut cut = disk.clone();
    let bytes = cut.read(&sealed.name, 0, sealed.end as usize).unwrap().to_vec();
    cut.create(&sealed.name, bytes.clone());
    named(&mut cut, "cut off");
    cut.create(&sealed.name, [&bytes[..], &[0; BLOCK]].concat());
    named(&mut cut, "zeros");
    let stale = Footer { salt: 1, ..sealed.footer.clone().unwrap() };
    cut.create(&sealed.name, [&bytes[..], &stale.encode()[..]].concat());
    named(&mut cut, "of an earlier use of the file");
    // A log of before headers said so: as if it had none.
    let next = &whole.segments[2];
    let silent = Header { prev_sealed: false, ..next.header.clone() }.encode();
    let rest = cut.read(&next.name, BLOCK as u64, next.file_len as usize).unwrap();
    cut.create(&next.name, [&silent[..], &rest[..]].concat());
    assert_eq!(judge(&mut cut, Floor::default()).footers_lost, []);
}

#[test]
fn what_an_open_has_passed_over_is_judged_when_it_is_read() {
    let temp = Temp::new("flips-passed");
    write(&temp.0);
    let mut disk = in_memory(&temp.0);
    let place = places(&mut disk).swap_remove(1);
    let floor = Floor { applied: 29, peers: 0 };
    for (field, bit) in bits_of(&place) {
        let mut damaged = flipped(&disk, &place.file, bit);
        let found = examine(&mut damaged, floor, Depth::Needed).unwrap();
        assert!(found.verdict.is_sound(), "{field}: the store has it all: {}", found.verdict);
        assert!(disk::world::batches(&mut damaged, &found).is_err(), "{field}, bit {bit} was read back");
        assert!(!judge(&mut damaged, floor).verdict.is_sound(), "{field}, bit {bit} was not scrubbed");
    }
}

#[test]
fn an_open_that_refuses_a_damaged_log_changes_no_byte_of_it() {
    let temp = Temp::new("flips-open");
    write(&temp.0);
    let mut disk = in_memory(&temp.0);
    let places = places(&mut disk);
    let mut damages: Vec<(&str, String, u64)> = Vec::new();
    for place in [&places[0], places.iter().find(|p| p.disk > BLOCK).unwrap(), places.last().unwrap()] {
        let mut last = "";
        let fields = bits_of(place).into_iter().filter(|(f, _)| std::mem::replace(&mut last, f) != *f);
        damages.extend(fields.map(|(field, bit)| (field, place.file.clone(), bit)));
    }
    for file in disk.segments() {
        damages.extend(SEGMENT_FIELDS.iter().map(|(field, range)| (*field, file.clone(), range.start as u64 * 8)));
    }
    assert!(damages.len() > 100);
    let dir = temp.0.clone();
    run(move || async move {
        for (field, file, bit) in damages {
            let path = dir.join(&file);
            let flip = || {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[bit as usize / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, bytes).unwrap();
            };
            flip();
            let before = contents(&dir);
            let opened = StreamLog::open(&dir, OPTIONS).await;
            assert!(matches!(opened, Err(Error::Corrupt { .. })), "{field}, bit {bit} of {file}");
            assert!(contents(&dir) == before, "{field}, bit {bit} of {file}: the open has changed something");
            flip();
        }
        let found = examine(&mut Dir::new(&dir), Floor::default(), Depth::Whole).unwrap();
        assert_eq!(found.verdict, Verdict::Clean);
    });
}
