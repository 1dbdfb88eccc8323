//! The applier alone, on one thread: batches as a mirror has them, decided by version and stored in SQLite, as fast as it goes.

use super::ROW_BYTES;
use super::zones::{KEYS, SHARD, order};
use crate::sys;
use bytes::Bytes;
use replog::apply::Applier;
use replog::batch::Origin;
use replog::store::{Changes, State, Store};
use replog::uring::sqlite::Sqlite;
use replog::{Batch, Hlc, Op, Record};
use shardmap::map::Map;
use shardmap::{OwnerEpoch, Zone};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

const RECORDS: u64 = 400_000;
/// Of a batch of 5,000 records a second, about.
const BATCH_RECORDS: u64 = 6;
/// What is read of a mirror at a time, and stored in one transaction.
const PIECE_BYTES: usize = 256 << 10;
const ORIGIN: Origin = Origin { stream: 0, zone: Zone(0), term: 1, log_uuid_lo: 1 };

/// Records a second, and a second of processor time.
pub struct Applied {
    pub per_s: f64,
    pub per_cpu_s: f64,
}

pub fn measure(map: Arc<Map>, dir: &Path, tiny: bool) -> Result<Applied, String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let batches = batches(if tiny { 10_000 } else { RECORDS });
    let mut store = Sqlite::open(&dir.join("apply.db")).map_err(|e| e.to_string())?;
    let mut applier = Applier::new(Zone(1), 0, 1, map, State::default());
    let (began, cpu) = (Instant::now(), sys::thread_cpu_ns());
    let mut at = 0;
    while at < batches.len() {
        let (mut changes, mut bytes) = (Changes::default(), 0);
        while let Some(batch) = batches.get(at).filter(|b| bytes == 0 || bytes + b.bytes.len() <= PIECE_BYTES) {
            let records: Result<Vec<_>, _> = batch.iter().collect();
            let records = records.map_err(|e| e.to_string())?;
            let (some, wait) = applier.apply(ORIGIN.zone, &records, now_ms()).map_err(|e| e.to_string())?;
            if wait.is_some() {
                return Err(format!("the applier waits: {wait:?}"));
            }
            changes.list.extend(some.list);
            (at, bytes) = (at + 1, bytes + batch.bytes.len());
        }
        store.commit(&changes).map_err(|e| e.to_string())?;
    }
    let (s, cpu_s) = (began.elapsed().as_secs_f64(), (sys::thread_cpu_ns() - cpu) as f64 / 1e9);
    let count = applier.applied(ORIGIN.zone) as f64;
    Ok(Applied { per_s: count / s, per_cpu_s: count / cpu_s })
}

fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_millis() as u64)
}

fn batches(records: u64) -> Vec<Batch> {
    let (mut all, mut chain, ms) = (vec![], 0, now_ms());
    for first in (1..=records).step_by(BATCH_RECORDS as usize) {
        let of = |seq: u64| Record {
            op: Op::Put,
            transaction: (seq - first) as u32,
            shard: SHARD,
            owner_epoch: OwnerEpoch(1),
            hlc: Hlc(Hlc::new(ms, 0).0 + seq),
            table: Bytes::from_static(b"orders"),
            key: Bytes::from(format!("row-{}", seq % KEYS)),
            value: order(seq, ROW_BYTES),
        };
        let records: Vec<_> = (first..(first + BATCH_RECORDS).min(records + 1)).map(of).collect();
        let batch = Batch::build(&ORIGIN, first, chain, ms * 1_000_000, &records);
        chain = batch.chain;
        all.push(batch);
    }
    all
}
