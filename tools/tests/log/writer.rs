//! Writes logs and mirrors with the machine itself, through plain files.

use replog::batch::Batch;
use replog::log::{Config, Log, Order};
use replog::open::{Depth, Floor, examine};
use replog::uring::dir::Dir;
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A directory of one test, gone when the test ends.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new(name: &str) -> Temp {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("log-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Writer {
    dir: PathBuf,
    log: Log,
    file: Option<File>,
    now: u64,
    /// What became durable, in order; nothing if it is not to be kept.
    pub batches: Vec<Batch>,
    pub keeps: bool,
}

impl Writer {
    /// Zone 1, stream 0.
    pub fn open(dir: &Path, mirror: bool, segment_bytes: u64) -> Writer {
        std::fs::create_dir_all(dir).unwrap();
        let found = examine(&mut Dir::new(dir), Floor::default(), Depth::Whole).unwrap();
        let config = Config { zone: Zone(1), stream: 0, mirror, segment_bytes };
        let salt = if mirror { 1_000_003 } else { 5 } + found.segments.len() as u64;
        let (log, _) = Log::recovered(config, found, &[], 77, salt);
        let mut writer = Writer { dir: dir.to_owned(), log, file: None, now: 0, batches: Vec::new(), keeps: true };
        writer.settle();
        writer
    }

    pub fn append(&mut self, records: Vec<Record>) {
        self.log.append(records, self.now).unwrap();
        self.settle();
    }

    pub fn copy(&mut self, batch: &Batch) {
        self.log.append_batch(batch.clone()).unwrap();
        self.settle();
    }

    /// Nobody needs what is below `seq`, but for the newest `keep_bytes`.
    pub fn release(&mut self, seq: u64, keep_bytes: u64) {
        self.log.release(seq, keep_bytes);
        self.settle();
    }

    fn spare(&self, id: u64) -> PathBuf {
        self.dir.join(format!("reserve-{id}.tmp"))
    }

    /// Carries out every order there is.
    pub fn settle(&mut self) {
        self.now += 1_000;
        let now = self.now;
        while let Some(order) = self.log.next_order(now) {
            match order {
                Order::Begin { name, header, bytes, spare } => {
                    let first = self.dir.join("first.tmp");
                    let spare = spare.map(|id| self.spare(id)).filter(|path| path.exists());
                    if let Some(spare) = &spare {
                        std::fs::rename(spare, &first).unwrap();
                    }
                    let new = File::options().create(true).truncate(spare.is_none()).write(true).open(&first).unwrap();
                    new.set_len(bytes).unwrap();
                    new.write_all_at(&header, 0).unwrap();
                    std::fs::rename(&first, self.dir.join(name)).unwrap();
                    self.file = Some(new);
                    self.log.on_segment(Ok(()), now);
                }
                Order::Retire { name, spare } => {
                    match spare {
                        Some(id) => std::fs::rename(self.dir.join(name), self.spare(id)).unwrap(),
                        None => std::fs::remove_file(self.dir.join(name)).unwrap(),
                    }
                    self.log.on_retired(Ok(()));
                }
                Order::Write { id, pos, bytes, .. } => {
                    self.file.as_ref().unwrap().write_all_at(&bytes.to_bytes(), pos).unwrap();
                    let done = self.log.on_written(id, Ok(()), now);
                    self.batches.extend(done.into_iter().filter(|_| self.keeps));
                }
                Order::Seal { pos, bytes } => {
                    self.file.as_ref().unwrap().write_all_at(&bytes, pos).unwrap();
                    self.log.on_sealed(Ok(()));
                }
                Order::Checkpoint { name, bytes } => {
                    std::fs::write(self.dir.join(name), &bytes).unwrap();
                    self.log.on_checkpoint(Ok(()), now);
                }
                Order::Sync { id } => {
                    let done = self.log.on_synced(id, Ok(()), now);
                    self.batches.extend(done.into_iter().filter(|_| self.keeps));
                }
                Order::Spare { .. } => self.log.on_spare(Ok(()), now),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A stream of `count` orders in `dir`, in segments of 64 KiB.
pub fn orders(dir: &Path, count: u64) -> Writer {
    let mut writer = Writer::open(dir, false, 64 * 1024);
    for n in 1..=count {
        writer.append(vec![order(n)]);
    }
    writer
}

/// A mirror of what `origin` has made durable, in segments of another length.
pub fn mirror(dir: &Path, origin: &Writer) -> Writer {
    let mut writer = Writer::open(dir, true, 40 * 1024);
    for batch in &origin.batches {
        writer.copy(batch);
    }
    writer
}

pub fn order(n: u64) -> Record {
    let value = r#"{"dish":"mapo tofu"}"#;
    record(Op::Put, n, "orders", n.to_string().as_bytes(), value.as_bytes())
}

pub fn record(op: Op, ms: u64, table: &'static str, key: &[u8], value: &[u8]) -> Record {
    Record {
        op,
        transaction: 0,
        shard: Shard(ms as u16 % 2),
        owner_epoch: OwnerEpoch(1),
        hlc: Hlc::new(ms, 0),
        table: table.into(),
        key: key.to_vec().into(),
        value: value.to_vec().into(),
    }
}
