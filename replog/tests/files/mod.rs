//! A log's files in memory, and what writes them: the machine, with every order carried out at once.
#![allow(dead_code, reason = "each test takes what it needs")]

use bytes::Bytes;
use replog::batch::Batch;
use replog::log::{Config, Log, Order};
use replog::open::{Depth, Floor, Found, Storage, Walk, examine};
use replog::segment::FIRST_POS;
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};
use std::collections::BTreeMap;
use std::io;

pub const UUID: u128 = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;
pub const BLOCK: u64 = 4096;
const MS: u64 = 1_000_000;

/// Files by their names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Storage for Files {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.0.iter().map(|(name, file)| (name.clone(), file.len() as u64)).collect())
    }
    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let file = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        let from = (pos as usize).min(file.len());
        Ok(Bytes::copy_from_slice(&file[from..(from + len).min(file.len())]))
    }
}

impl Files {
    pub fn put(&mut self, name: &str, pos: u64, bytes: &[u8]) {
        let file = self.0.entry(name.to_owned()).or_default();
        file.resize(file.len().max(pos as usize + bytes.len()), 0);
        file[pos as usize..pos as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub fn segments(&self) -> Vec<String> {
        self.0.keys().filter(|n| n.ends_with(".rlog")).cloned().collect()
    }

    pub fn found(&mut self) -> Found {
        examine(self, Floor::default(), Depth::Whole).unwrap()
    }

    pub fn batches(&mut self) -> Vec<Batch> {
        let found = self.found();
        let mut all = Vec::new();
        for s in &found.segments {
            let mut walk = Walk::new(&s.name, s.header.salt, s.end);
            let mut pos = FIRST_POS;
            while pos < s.end {
                let (batch, _) = walk.at(self, pos).unwrap().unwrap();
                pos += batch.disk_len() as u64;
                all.push(batch);
            }
        }
        all
    }
}

/// A writer at work on files.
pub struct Writer {
    pub files: Files,
    pub log: Log,
    file: String,
    now: u64,
}

impl Writer {
    /// Opens the log in `files`.
    pub fn open(mut files: Files, mirror: bool, segment_blocks: u64, salt: u64, now: u64) -> Writer {
        let config = Config { zone: Zone(1), stream: 2, mirror, segment_bytes: segment_blocks * BLOCK };
        let found = files.found();
        let (log, _) = Log::recovered(config, found, &[], UUID, salt);
        let mut writer = Writer { files, log, file: String::new(), now };
        writer.drain();
        writer
    }

    pub fn append(&mut self, records: Vec<Record>) {
        self.log.append(records, self.now).unwrap();
        self.drain();
    }

    pub fn copy(&mut self, batch: &Batch) {
        self.log.append_batch(batch.clone()).unwrap();
        self.drain();
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    /// A millisecond passes, and every order is carried out.
    pub fn drain(&mut self) {
        self.now += MS;
        let now = self.now;
        while let Some(order) = self.log.next_order(now) {
            match order {
                Order::Begin { name, header, bytes, spare } => {
                    let file = spare.map(|id| self.files.0.remove(&spare_name(id)).expect("a spare that was made"));
                    let mut file = file.unwrap_or_default();
                    file.resize(bytes as usize, 0);
                    self.files.0.insert(name.clone(), file);
                    self.files.put(&name, 0, &header);
                    self.file = name;
                    self.log.on_segment(Ok(()), now);
                }
                Order::Write { id, pos, bytes, .. } => {
                    self.files.put(&self.file, pos, &bytes.to_bytes());
                    self.log.on_written(id, Ok(()), now);
                }
                Order::Seal { pos, bytes } => {
                    self.files.put(&self.file, pos, &bytes);
                    self.log.on_sealed(Ok(()));
                }
                Order::Checkpoint { name, bytes } => {
                    self.files.put(name, 0, &bytes);
                    self.log.on_checkpoint(Ok(()), now);
                }
                Order::Sync { id } => drop(self.log.on_synced(id, Ok(()), now)),
                Order::Spare { id, bytes } => {
                    self.files.0.insert(spare_name(id), vec![0; bytes as usize]);
                    self.log.on_spare(Ok(()), now);
                }
                Order::Retire { name, spare } => {
                    let file = self.files.0.remove(&name).expect("a segment that was there");
                    if let Some(id) = spare {
                        self.files.0.insert(spare_name(id), file);
                    }
                    self.log.on_retired(Ok(()));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn spare_name(id: u64) -> String {
    format!("reserve-{id}.tmp")
}

/// Writes a log, or a mirror of `mirrored`: `lives` of a writer, each of them some appends; the last one closes it.
pub fn write(mirrored: &[Batch], segment_blocks: u64, lives: &[&[usize]]) -> Files {
    let mirror = !mirrored.is_empty();
    let (mut files, mut now) = (Files::default(), 1);
    for (life, sizes) in lives.iter().enumerate() {
        let salt = 0x5a17_0000_1111 + life as u64 * 77 + segment_blocks;
        let mut writer = Writer::open(files, mirror, segment_blocks, salt, now);
        for (n, size) in sizes.iter().enumerate() {
            match mirrored.get(n) {
                Some(batch) => writer.copy(batch),
                None => writer.append(vec![record(writer.now(), *size)]),
            }
        }
        if life + 1 == lives.len() {
            writer.log.close();
            writer.drain();
        }
        (files, now) = (writer.files, writer.now);
    }
    // A spare is no part of a log.
    files.0.retain(|name, _| !name.ends_with(".tmp"));
    files
}

/// A record with a value of this length.
pub fn record(now: u64, size: usize) -> Record {
    Record {
        op: if size.is_multiple_of(7) { Op::Fence } else { Op::Put },
        transaction: 0,
        shard: Shard(3),
        owner_epoch: OwnerEpoch(1),
        hlc: Hlc::new(now, 0),
        table: "orders".into(),
        key: now.to_string().into(),
        value: (0..size).map(|n| (n as u64 * 31 + now) as u8).collect::<Vec<u8>>().into(),
    }
}
