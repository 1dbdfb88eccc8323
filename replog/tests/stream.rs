//! The log on a real disk and a real ring: append, roll, read back, reopen, be killed.
#![cfg(feature = "uring")]

mod kit;

use kit::{OPTIONS, Temp, put, run};
use replog::batch::{Batch, Origin};
use replog::open::Floor;
use replog::uring::dir::is_live;
use replog::uring::stream::{Error, Kind, Options, StreamLog};
use replog::{Op, Record};
use shardmap::Zone;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

async fn read_all(log: &StreamLog) -> Vec<(u64, Record)> {
    let (mut seq, mut all) = (1, Vec::new());
    loop {
        let batches = log.read_from(seq, 256 * 1024).await.unwrap();
        let Some(last) = batches.last() else { return all };
        seq = last.last_seq() + 1;
        all.extend(batches.iter().flat_map(Batch::iter).map(Result::unwrap));
    }
}

fn puts(all: &[(u64, Record)]) -> Vec<u64> {
    all.iter().filter(|(_, r)| r.op == Op::Put).map(|(_, r)| r.hlc.0).collect()
}

#[test]
fn what_was_acknowledged_is_read_back_across_segments_and_opens() {
    let temp = Temp::new("roll");
    let dir = temp.0.clone();
    run(move || async move {
        let mut n = 0;
        for life in 1..=3 {
            let (log, opened, torn) = StreamLog::open(&dir, OPTIONS).await.unwrap();
            assert_eq!((opened.term, torn), (life, None));
            let appends = (0..400).map(|i| {
                n += 1;
                log.begin_append(vec![put(n, 8 + 97 * i)]).unwrap()
            });
            let appends: Vec<_> = appends.collect();
            for (first, durable) in appends {
                assert_eq!(durable.await.unwrap(), first);
            }
            assert_eq!(puts(&read_all(&log).await), (1..=n).collect::<Vec<_>>());
            log.close().await.unwrap();
        }
        let segments = std::fs::read_dir(&dir)
            .unwrap()
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().ends_with(".rlog"));
        assert!(segments.count() > 9, "it has rolled");
    });
}

/// PITFALLS: page-cache write-back of a neighbour raised fdatasync from 1 to 20 ms. Where the file system has no O_DIRECT
/// (tmpfs) there is nothing to write back, and nothing to see here.
#[test]
fn segments_are_written_past_the_page_cache() {
    let temp = Temp::new("direct");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        log.append(vec![put(1, 8)]).await.unwrap();
        let probe = dir.join("probe");
        let direct =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(O_DIRECT).open(probe);
        if direct.is_ok() {
            let flags = open_segments(&dir.canonicalize().unwrap()); // the kernel names files by where they are
            assert!(!flags.is_empty() && flags.iter().any(|f| f & O_DIRECT != 0), "{flags:?}");
        }
        log.close().await.unwrap();
    });
}

const O_DIRECT: i32 = libc::O_DIRECT;

/// The flags of this process's descriptors of segments in `dir` (proc(5)).
fn open_segments(dir: &Path) -> Vec<i32> {
    let is_segment = |path: &Path| path.starts_with(dir) && path.extension().is_some_and(|e| e == "rlog");
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let ours = fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| is_segment(&path)));
    ours.filter_map(|fd| {
        let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd.file_name())).ok()?;
        i32::from_str_radix(info.lines().find_map(|l| l.strip_prefix("flags:"))?.trim(), 8).ok()
    })
    .collect()
}

#[test]
fn an_idle_log_writes_one_marker_and_then_nothing() {
    let temp = Temp::new("marker");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        assert_eq!(log.append(vec![put(1, 8)]).await.unwrap(), 1);
        assert_eq!(log.wait_durable(2).await.unwrap(), 2);
        glommio::timer::sleep(std::time::Duration::from_millis(250)).await;
        assert_eq!(log.durable_seq(), 2);
        assert_eq!(read_all(&log).await[1].1.op, Op::Marker);
        log.close().await.unwrap();
    });
}

#[test]
fn a_mirror_takes_the_origins_batches_verbatim_and_only_in_order() {
    let temp = Temp::new("mirror");
    let dir = temp.0.clone();
    run(move || async move {
        let unknown = StreamLog::open(&dir, Options { kind: Kind::Mirror(None), ..OPTIONS }).await;
        assert!(matches!(unknown, Err(Error::NoMirror(_))));
        let options = Options { kind: Kind::Mirror(Some(77)), ..OPTIONS };
        let (log, opened, _) = StreamLog::open(&dir, options).await.unwrap();
        assert_eq!(opened.log_uuid, 77);
        let origin = Origin { stream: 2, zone: Zone(1), term: 1, log_uuid_lo: 77 };
        let one = Batch::build(&origin, 1, 0, 0, &[put(1, 8), put(2, 8)]);
        let two = Batch::build(&origin, 3, one.chain, 0, &[put(3, 8)]);
        assert!(matches!(log.append_batch(two.clone()).await, Err(Error::Refused(_))));
        assert_eq!(log.append_batch(one.clone()).await.unwrap(), 2);
        assert_eq!(log.append_batch(two.clone()).await.unwrap(), 3);
        log.close().await.unwrap();
        let (log, opened, _) = StreamLog::open(&dir, Options { kind: Kind::Mirror(None), ..OPTIONS }).await.unwrap();
        assert_eq!((opened.durable_seq, opened.chain, opened.log_uuid), (3, two.chain, 77));
        assert_eq!(log.read_from(1, 1 << 20).await.unwrap(), [one, two]);
        log.close().await.unwrap();
        let other = StreamLog::open(&dir, Options { kind: Kind::Mirror(Some(78)), ..OPTIONS }).await;
        assert!(matches!(other, Err(Error::Foreign { .. })));
    });
}

#[test]
fn a_directory_in_use_is_refused() {
    let temp = Temp::new("lock");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        let Err(second) = StreamLog::open(&dir, OPTIONS).await else { panic!("opened twice") };
        assert!(second.to_string().contains("in use"), "{second}");
        assert!(is_live(&dir));
        log.close().await.unwrap();
        assert!(!is_live(&dir));
        StreamLog::open(&dir, OPTIONS).await.unwrap().0.close().await.unwrap();
    });
}

#[test]
fn a_segment_length_that_cannot_be_is_refused() {
    let temp = Temp::new("length");
    let dir = temp.0.clone();
    run(move || async move {
        for segment_bytes in [0, 4096, 100_000, 1 << 40] {
            let opened = StreamLog::open(&dir, Options { segment_bytes, ..OPTIONS }).await;
            assert!(matches!(opened, Err(Error::SegmentBytes(_))), "{segment_bytes}");
        }
    });
}

#[test]
fn a_damaged_record_is_refused_with_its_place_and_nothing_is_changed() {
    let temp = Temp::new("corrupt");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        for n in 1..10 {
            log.append(vec![put(n, 100)]).await.unwrap();
        }
        log.close().await.unwrap();
        let name = dir.join("00000000000000000001.rlog");
        let file = std::fs::File::options().write(true).open(&name).unwrap();
        file.write_all_at(b"?", 4096 * 3 + 200).unwrap();
        let before = std::fs::read(&name).unwrap();
        let Err(why) = StreamLog::open(&dir, OPTIONS).await else { panic!("opened") };
        let why = why.to_string();
        assert!(why.contains("corrupt: 00000000000000000001.rlog at byte 12288, seq 3: page 0"), "{why}");
        assert_eq!(std::fs::read(&name).unwrap(), before);
    });
}

#[test]
fn a_torn_end_is_kept_aside_and_the_log_goes_on() {
    let temp = Temp::new("torn");
    let dir = temp.0.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        log.append(vec![put(1, 100)]).await.unwrap();
        log.close().await.unwrap();
        let found = replog::open::examine(
            &mut replog::uring::dir::Dir::new(&dir),
            Floor::default(),
            replog::open::Depth::Whole,
        )
        .unwrap();
        let end = found.segments[0].end;
        let file = std::fs::File::options().write(true).open(dir.join(&found.segments[0].name)).unwrap();
        file.write_all_at(b"RLB1 half a batch", end).unwrap();
        let (log, opened, torn) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        assert_eq!((torn.unwrap().pos, opened.durable_seq), (end, 2));
        assert_eq!(std::fs::read_dir(dir.join("quarantine")).unwrap().count(), 1);
        log.append(vec![put(2, 100)]).await.unwrap();
        log.close().await.unwrap();
        let (log, _, torn) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        assert_eq!((torn, puts(&read_all(&log).await)), (None, vec![1, 2]));
        log.close().await.unwrap();
    });
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn child_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var("REPLOG_CHILD_DIR") else { return };
    run(move || async move {
        let (log, opened, _) = StreamLog::open(Path::new(&dir), OPTIONS).await.unwrap();
        for n in opened.last_hlc.0 + 1..1_000_000 {
            let appends: Vec<_> = (0..3).map(|i| log.begin_append(vec![put(3 * n + i, 500)]).unwrap().1).collect();
            for durable in appends {
                let seq = durable.await.unwrap();
                println!("acked {seq} {n}");
            }
            std::io::stdout().flush().unwrap();
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let temp = Temp::new("kill");
    let mut acked = 0;
    for life in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_it_is_killed", "--nocapture"])
            .env("REPLOG_CHILD_DIR", &temp.0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let seqs = lines.filter_map(|l| l.strip_prefix("acked ")?.split(' ').next()?.parse::<u64>().ok());
        acked = seqs.take(300 + 50 * life).last().expect("the child acknowledged something");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let dir = temp.0.clone();
    let (durable, read) = run(move || async move {
        let (log, opened, _) = StreamLog::open(&dir, OPTIONS).await.unwrap();
        let read = read_all(&log).await;
        log.close().await.unwrap();
        (opened.durable_seq, read)
    });
    assert!(durable >= acked, "{acked} was acknowledged, {durable} is there");
    assert!(read.iter().map(|(seq, _)| *seq).eq(1..=durable));
}

#[test]
fn a_directory_may_be_named_from_here() {
    let dir = Path::new("../target").join(format!("stream-relative-{}", std::process::id()));
    let own = dir.clone();
    run(move || async move {
        let (log, _, _) = StreamLog::open(&own, OPTIONS).await.unwrap();
        for n in 1..30 {
            log.append(vec![put(n, 100_000)]).await.unwrap();
        }
        log.release(20, 0);
        log.close().await.unwrap();
    });
    std::fs::remove_dir_all(dir).unwrap();
}
