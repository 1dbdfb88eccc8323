//! Says what a log holds, then appends to it for ever and says what was acknowledged: what `tests/power` cuts the power of.
//!
//! ```text
//! appender DIRECTORY APPLIED
//! ```
//!
//! `APPLIED` stands for the store's durable position: what is below it may go. Lines, each written at once:
//!
//! ```text
//! verdict <what an open will say>
//! read <first seq> <first number> <count>     records found, each number one above the one before
//! held <last seq>
//! acked <first seq> <first number> <count>    an append that is durable
//! ```

use bytes::Bytes;
use glommio::{LocalExecutorBuilder, Placement};
use replog::limits::BLOCK;
use replog::open::{Depth, Floor, Walk, examine};
use replog::segment::FIRST_POS;
use replog::uring::dir::Dir;
use replog::uring::stream::{Kind, Options, Scrub, StreamLog};
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::cell::Cell;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

const SEGMENT_BYTES: u64 = 64 * BLOCK as u64;

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: nothing is lost by going on until the power is cut.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}

/// Record number `n`: all of it follows from the number.
fn put(n: u64) -> Record {
    let mut value = n.to_le_bytes().to_vec();
    value.resize(8 + (n * 7919 % 3000) as usize, n as u8);
    Record {
        op: Op::Put,
        transaction: 0,
        shard: Shard(n as u16 % 1024),
        owner_epoch: OwnerEpoch(1),
        hlc: Hlc(n),
        table: Bytes::from_static(b"orders"),
        key: n.to_string().into(),
        value: value.into(),
    }
}

/// Tells what is there, read as a tool would read it. Returns whether it is sound.
fn tell(dir: &Path, floor: Floor) -> Result<bool, Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    let mut files = Dir::new(dir);
    let found = examine(&mut files, floor, Depth::Whole)?;
    say(&format!("verdict {}", found.verdict));
    for segment in &found.segments {
        let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
        let mut pos = FIRST_POS;
        while pos < segment.end {
            let (batch, _) = walk.at(&mut files, pos)??;
            let mut run: Option<(u64, u64, u64)> = None;
            for record in batch.iter() {
                let (seq, record) = record?;
                let n = record.hlc.0;
                if record.op != Op::Put {
                    continue;
                }
                if record != (Record { transaction: record.transaction, ..put(n) }) {
                    return Err(format!("seq {seq} is not record {n}").into());
                }
                run = match run {
                    Some((first, from, count)) if n == from + count => Some((first, from, count + 1)),
                    Some(_) => return Err(format!("seq {seq}: {n} does not follow").into()),
                    None => Some((seq, n, 1)),
                };
            }
            if let Some((first, from, count)) = run {
                say(&format!("read {first} {from} {count}"));
            }
            pos += batch.disk_len() as u64;
        }
    }
    say(&format!("held {}", found.last_seq));
    Ok(found.verdict.is_sound())
}

async fn append(dir: PathBuf, floor: Floor) -> Result<(), String> {
    let scrub = Scrub { bytes_per_s: 1 << 20, every: Duration::from_secs(1) };
    let options = Options { zone: Zone(1), stream: 2, kind: Kind::Origin, segment_bytes: SEGMENT_BYTES, floor, scrub };
    let (log, opened, _) = StreamLog::open(&dir, options).await.map_err(|e| e.to_string())?;
    log.release(floor.applied + 1, 4 * SEGMENT_BYTES);
    let n = Rc::new(Cell::new(opened.last_hlc.0));
    // Side by side: groups of several, and several writes in flight.
    let tasks = [1, 2, 1, 20, 3, 1].map(|count| glommio::spawn_local(appends(log.clone(), n.clone(), count)));
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Appends `count` records at a time.
async fn appends(log: StreamLog, n: Rc<Cell<u64>>, count: u64) -> Result<(), String> {
    loop {
        let from = n.replace(n.get() + count) + 1;
        let (first, durable) = log.begin_append((from..from + count).map(put).collect()).map_err(|e| e.to_string())?;
        durable.await.map_err(|e| e.to_string())?;
        say(&format!("acked {first} {from} {count}"));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, applied] = &args[..] else { return Err("appender DIRECTORY APPLIED".into()) };
    let (dir, floor) = (PathBuf::from(dir), Floor { applied: applied.parse()?, peers: 0 });
    if !tell(&dir, floor)? {
        return Err("the log is refused".into());
    }
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20);
    let ended = executor.spawn(move || async move { append(dir, floor).await });
    Ok(ended.map_err(|e| e.to_string())?.join().map_err(|e| e.to_string())??)
}
