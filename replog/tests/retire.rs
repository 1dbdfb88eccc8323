//! Segments that nobody needs go, are used again, and take nothing with them; sealed ones are read again in the background.
#![cfg(feature = "uring")]

mod kit;

use kit::{OPTIONS, Temp, put, run};
use replog::open::{Depth, Floor, Verdict, examine};
use replog::segment::Header;
use replog::uring::dir::Dir;
use replog::uring::stream::{Error, Options, Scrub, StreamLog};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Appends `count` records of 100,000 bytes, one batch each: about ten to a segment of 1 MiB.
async fn fill(log: &StreamLog, from: u64, count: u64) {
    for n in from..from + count {
        log.append(vec![put(n, 100_000)]).await.unwrap();
    }
}

fn names(dir: &Path, end: &str) -> Vec<String> {
    let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = all.filter(|n| n.ends_with(end)).collect();
    names.sort();
    names
}

/// Does its header say that the file held another segment before?
fn is_recycled(path: &Path) -> bool {
    let mut block = [0; 4096];
    let read = std::fs::File::open(path).and_then(|f| f.read_exact_at(&mut block, 0));
    read.is_ok() && Header::parse(&block).is_ok_and(|h| h.recycled) // it may be gone by now
}

/// Waits until `done`, at most 20 s.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        glommio::timer::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s");
}

#[test]
fn what_is_released_goes_and_its_files_become_the_next_segments() {
    let temp = Temp::new("retire");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        fill(&log, 1, 100).await;
        let before = names(&dir, ".rlog").len();
        assert!(before > 8, "{before}");
        log.release(51, 0);
        until(|| names(&dir, ".rlog").len() <= 6).await;
        let first = log.with(|l| l.first_kept());
        assert!((40..=51).contains(&first), "{first}: whole segments below 51 go");
        until(|| names(&dir, "00000000000000000001.rlog").is_empty()).await;
        assert!(names(&dir, ".tmp").iter().filter(|n| n.starts_with("reserve-")).count() <= 3);
        let gone = log.read_from(1, 1000).await;
        assert!(matches!(gone, Err(Error::NotKept { wanted: 1, first: f }) if f == first), "{gone:?}");
        assert_eq!(log.read_from(first, 1000).await.unwrap()[0].first_seq, first);
        // As the log goes on, files go round: nothing is made anew, and what is read is what was written.
        let mut round = 0;
        while round < 10 || !names(&dir, ".rlog").iter().any(|n| is_recycled(&dir.join(n))) {
            fill(&log, 101 + 20 * round, 20).await;
            log.release(log.durable_seq(), 0);
            round += 1;
            assert!(round < 200, "no segment is used again");
        }
        until(|| names(&dir, ".rlog").len() <= 3).await;
        let inodes = names(&dir, "").len();
        assert!(inodes <= 3 + 3 + 4, "{:?}", names(&dir, ""));
        let (kept, last) = (log.with(|l| l.first_kept()), log.durable_seq());
        log.close().await.unwrap();
        drop(log);
        let found = examine(&mut Dir::new(&dir), Floor::default(), Depth::Whole).unwrap();
        assert!(found.verdict.is_sound(), "{:?}", found.verdict);
        let (log, opened, torn) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        assert_eq!((opened.first_seq, torn), (kept, None));
        assert!(opened.durable_seq >= last);
        fill(&log, 10_000, 30).await;
        let mut seq = kept;
        while let Some(last) = log.read_from(seq, 1 << 20).await.unwrap().last() {
            seq = last.last_seq() + 1;
        }
        assert!(seq > opened.durable_seq + 30, "{seq}");
        log.close().await.unwrap();
    });
}

#[test]
fn the_newest_bytes_are_kept_for_those_who_look_back() {
    let temp = Temp::new("keep");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        fill(&log, 1, 60).await;
        let all = log.with(|l| l.kept_bytes());
        log.release(61, 3 << 20);
        until(|| log.with(|l| l.kept_bytes()) < all).await;
        glommio::timer::sleep(Duration::from_millis(50)).await;
        let kept = log.with(|l| l.kept_bytes());
        assert!((3 << 20..5 << 20).contains(&kept), "{kept}");
        log.release(61, 0);
        until(|| log.with(|l| l.kept_bytes()) <= 2 << 20).await;
        log.close().await.unwrap();
    });
}

#[test]
fn a_first_segment_that_is_missing_is_a_gap_and_one_that_was_let_go_is_not() {
    let temp = Temp::new("first");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        fill(&log, 1, 50).await;
        log.release(20, 0);
        until(|| names(&dir, "00000000000000000001.rlog").is_empty()).await;
        log.close().await.unwrap();
        drop(log);
        let first = names(&dir, ".rlog")[0].clone();
        let aside = dir.join("aside");
        std::fs::rename(dir.join(&first), &aside).unwrap();
        let why = StreamLog::open(&dir, OPTIONS).await.err().expect("it is refused");
        assert!(matches!(&why, Error::Gap { gap, .. } if gap.from < gap.to), "{why}");
        assert!(why.to_string().contains("gap: seq "), "{why}");
        // One that a crash kept, though the checkpoint lets it go, is not missed and does not stay.
        std::fs::rename(&aside, dir.join(&first)).unwrap();
        std::fs::copy(dir.join(&first), dir.join("00000000000000000001.rlog")).unwrap();
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        assert!(names(&dir, "00000000000000000001.rlog").is_empty());
        log.close().await.unwrap();
    });
}

#[test]
fn a_writers_open_reads_what_the_store_lacks_and_takes_the_rest_by_its_footers() {
    let temp = Temp::new("needed");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        fill(&log, 1, 50).await;
        log.close().await.unwrap();
        drop(log);
        // A bit that rots where the store has been: an open does not stop for it, a whole reading finds it.
        let name = dir.join(&names(&dir, ".rlog")[0]);
        let file = std::fs::File::options().read(true).write(true).open(&name).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4096 + 5000).unwrap();
        file.write_all_at(b"?", 4096 + 5000).unwrap();
        let whole = examine(&mut Dir::new(&dir), Floor::default(), Depth::Whole).unwrap();
        assert!(matches!(whole.verdict, Verdict::Corrupt(_)), "{:?}", whole.verdict);
        let floor = Floor { applied: 40, peers: 0 };
        let refused = StreamLog::open(&dir, OPTIONS).await.err().expect("the store lacks it");
        assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
        let scrub = Scrub { bytes_per_s: 1 << 30, every: Duration::from_secs(3600) };
        let (log, opened, _) = StreamLog::open(&dir, Options { floor, scrub, ..OPTIONS }).await.unwrap();
        assert_eq!(opened.durable_seq, 51);
        assert_eq!(log.read_from(45, 1).await.unwrap()[0].first_seq, 45, "a segment that open passed over is read");
        assert!(matches!(log.read_from(1, 1).await, Err(Error::Damaged { pos: 4096, .. })));
        until(|| log.scrubbed().passes > 0).await;
        let seen = log.scrubbed();
        assert!(seen.damaged.len() == 1 && seen.damaged[0].first_seq == 1 && seen.bytes > 3 << 20, "{seen:?}");
        assert!(seen.damaged[0].why.contains("at byte 4096: page 1"), "{seen:?}");
        log.close().await.unwrap();
        drop(log);
        // What the scrub has found is not passed over again, until it is mended.
        let again = Options { floor, ..OPTIONS };
        assert!(matches!(StreamLog::open(&dir, again).await, Err(Error::Corrupt { .. })));
        file.write_all_at(&byte, 4096 + 5000).unwrap();
        StreamLog::open(&dir, again).await.unwrap().0.close().await.unwrap();
        assert!(names(&dir, "DAMAGED").is_empty());
    });
}

#[test]
fn damage_that_a_reader_meets_is_not_passed_over_at_the_next_open() {
    let temp = Temp::new("met");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        fill(&log, 1, 50).await;
        log.close().await.unwrap();
        drop(log);
        let name = dir.join(&names(&dir, ".rlog")[0]);
        std::fs::File::options().write(true).open(&name).unwrap().write_all_at(b"?", 4096 + 5000).unwrap();
        let applied = Options { floor: Floor { applied: 40, peers: 0 }, ..OPTIONS };
        let (log, _, _) = StreamLog::open(&dir, applied).await.unwrap();
        assert!(matches!(log.read_from(1, 1).await, Err(Error::Damaged { pos: 4096, .. })));
        log.close().await.unwrap();
        drop(log);
        assert!(matches!(StreamLog::open(&dir, applied).await, Err(Error::Corrupt { .. })));
    });
}
