//! A process that appends is killed with SIGKILL at random, again and again; what it acknowledged was heard by another process, and
//! is all there afterwards, once, in order. `ROUNDS=n` for more rounds, `SEED=n` for others.
#![cfg(feature = "uring")]

#[expect(dead_code, reason = "other tests use all of it")]
mod kit;
#[path = "disk/rng.rs"]
mod rng;

use glommio::{LocalExecutorBuilder, Placement};
use kit::Temp;
use replog::limits::BLOCK;
use replog::open::{Depth, Floor, Storage, Walk, examine};
use replog::segment::{FIRST_POS, Header};
use replog::uring::dir::Dir;
use replog::uring::stream::{Kind, Options, Scrub, StreamLog};
use replog::{Op, Record};
use rng::Rng;
use shardmap::Zone;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Small, so that they are made, sealed and followed all the time.
const SEGMENT_BYTES: u64 = 16 * BLOCK as u64;
/// A child that says nothing for so long has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn put(n: u64) -> Record {
    kit::put(n, 8 + (n * 7919 % 3000) as usize)
}

/// Not a test by itself: the process that the test kills. A few tasks append side by side; each says what was acknowledged.
#[test]
fn child_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var("REPLOG_KILL_DIR") else { return };
    let floor = Floor { applied: std::env::var("REPLOG_KILL_APPLIED").unwrap().parse().unwrap(), peers: 0 };
    let scrub = Scrub { bytes_per_s: 1 << 20, every: Duration::from_millis(10) };
    let options = Options { zone: Zone(1), stream: 2, kind: Kind::Origin, segment_bytes: SEGMENT_BYTES, floor, scrub };
    let work = move || async move {
        let (log, opened, _) = StreamLog::open(Path::new(&dir), options).await.unwrap();
        // What the store has goes, but for a few segments: their files are used again.
        log.release(floor.applied + 1, 4 * SEGMENT_BYTES);
        let mut n = opened.last_hlc.0;
        loop {
            // Several appends at once, of one record and of more: groups, and several writes in flight.
            let mut waiting = Vec::new();
            for size in [1, 3, 1, 20] {
                let from = n + 1;
                n += size;
                let (first, durable) = log.begin_append((from..=n).map(put).collect()).unwrap();
                waiting.push((first, from, size, durable));
            }
            for (first, from, size, durable) in waiting {
                durable.await.unwrap();
                println!("acked {first} {from} {size}");
            }
            std::io::stdout().flush().unwrap();
        }
    };
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20);
    executor.spawn(|| async move { work().await }).unwrap().join().unwrap()
}

/// What the child acknowledges, as it comes; the end when it has ended.
fn listen(child: &mut Child) -> Receiver<(u64, u64, u64)> {
    let (tell, heard) = channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            // A line that the kill cut short tells nothing.
            let Some(rest) = line.split_once("acked ").map(|(_, rest)| rest) else { continue };
            let numbers: Vec<u64> = rest.split(' ').filter_map(|n| n.parse().ok()).collect();
            if let [first, from, size] = numbers[..] {
                let _ = tell.send((first, from, size));
            }
        }
    });
    heard
}

/// One life: killed after so many acknowledgements, and a little later, or in the middle of its open.
fn live(dir: &Path, applied: u64, rng: &mut Rng, acked: &mut BTreeMap<u64, u64>) -> u64 {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_appends_until_it_is_killed", "--nocapture"])
        .env("REPLOG_KILL_DIR", dir)
        .env("REPLOG_KILL_APPLIED", applied.to_string())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Killed(child.unwrap());
    let heard = listen(&mut child.0);
    let mut take = |(first, from, size): (u64, u64, u64)| {
        for at in 0..size {
            assert_eq!(acked.insert(first + at, from + at), None, "seq {} was acknowledged twice", first + at);
        }
    };
    let mut lines = 0;
    if !rng.one_in(4) {
        for _ in 0..1 + rng.below(200) {
            match heard.recv_timeout(PATIENCE) {
                Ok(line) => take(line),
                Err(why @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => {
                    panic!("the child acknowledges nothing: {why}")
                }
            }
            lines += 1;
        }
    }
    std::thread::sleep(Duration::from_micros(rng.below(20_000)));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    for line in heard {
        take(line);
        lines += 1;
    }
    lines
}

/// Reads the directory as it was left, without a writer, and compares; what was read is to be there for ever, acknowledged or not.
/// Returns the last seq.
fn check(dir: &Path, applied: u64, acked: &mut BTreeMap<u64, u64>) -> u64 {
    let mut files = Dir::new(dir);
    let found = examine(&mut files, Floor { applied, peers: 0 }, Depth::Whole).unwrap();
    assert!(found.verdict.is_sound(), "{}", found.verdict);
    let last = acked.keys().next_back().copied().unwrap_or(0);
    let first = found.segments.first().map_or(1, |s| s.header.first_seq);
    assert!(first <= applied + 1, "{} was needed yet, {applied} was applied", first - 1);
    let (mut seq, mut newest) = (first - 1, 0);
    for segment in &found.segments {
        let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
        let mut pos = FIRST_POS;
        while pos < segment.end {
            let (batch, _) = walk.at(&mut files, pos).unwrap().unwrap();
            for (at, record) in batch.iter().map(Result::unwrap) {
                assert_eq!(at, seq + 1, "a seq is skipped or doubled");
                seq = at;
                let n = record.hlc.0;
                if record.op == Op::Put {
                    assert!(n > newest, "{n} follows {newest}");
                    assert_eq!(record, Record { transaction: record.transaction, ..put(n) }, "seq {at}");
                    newest = n;
                }
                let was = acked.insert(at, n);
                assert!(was.is_none_or(|was| was == n), "seq {at} is {n}, it was {was:?}");
            }
            pos += batch.disk_len() as u64;
        }
    }
    assert!(seq >= last, "{last} was acknowledged, {seq} is there");
    seq
}

fn is_recycled(dir: &Path, name: &str) -> bool {
    let header = name.ends_with(".rlog").then(|| Dir::new(dir).read(name, 0, BLOCK).unwrap());
    header.is_some_and(|h| Header::parse(&h).is_ok_and(|h| h.recycled))
}

#[test]
fn nothing_acknowledged_is_lost_doubled_or_moved_by_a_hundred_kills() {
    if std::env::var("REPLOG_KILL_DIR").is_ok() {
        return; // the child runs the other one
    }
    let number = |name| std::env::var(name).ok().map(|s: String| s.parse().expect("a number"));
    let (rounds, seed): (u64, u64) = (number("ROUNDS").unwrap_or(100), number("SEED").unwrap_or(1));
    let temp = Temp::new("kills");
    std::fs::create_dir_all(&temp.0).unwrap();
    let (mut rng, mut acked, mut lines, mut last, mut applied) = (Rng::new(seed), BTreeMap::new(), 0, 0, 0);
    for round in 0..rounds {
        applied = rng.below(last + 1).max(applied);
        lines += live(&temp.0, applied, &mut rng, &mut acked);
        last = check(&temp.0, applied, &mut acked);
        assert_eq!(last, acked.len() as u64, "round {round}");
    }
    let used_again =
        Dir::new(&temp.0).list().unwrap().into_iter().filter(|(name, _)| is_recycled(&temp.0, name)).count();
    println!(
        "{rounds} kills, {lines} acknowledgements, seq {last}, {used_again} segments in files that were used before"
    );
    assert!(used_again > 0, "no file was used again");
    assert!(lines > rounds * 20, "the children hardly worked: {lines} acknowledgements in {rounds} lives");
}
