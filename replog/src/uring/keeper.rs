//! The thread that applies: owns the appliers and stores of one log core's streams, so that SQLite never blocks the core.
//!
//! Jobs are done in the order in which they were sent: a read that follows an apply sees what it applied.

use super::now_ns;
use super::sqlite::Sqlite;
use crate::apply::{Applier, Wait};
use crate::batch::Batch;
use crate::record::Record;
use crate::store::{Change, Changes, Digests, Failed, Row, Scan, Store};
use bytes::Bytes;
use futures_channel::mpsc::UnboundedSender;
use futures_channel::oneshot::Sender;
use hdrhistogram::Histogram;
use shardmap::map::Map;
use shardmap::{MapEpoch, OwnerEpoch, Positions, Shard, Zone};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often a full disk is looked at again.
const ROOM_LOOK: Duration = Duration::from_millis(500);
/// How often parked records are tried again.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// What a log core asks of its keeper.
pub(super) enum Job {
    /// Apply what follows of a zone's log.
    Apply { stream: u32, zone: Zone, batches: Vec<Batch>, done: Sender<Applied> },
    /// Look a piece of a log through for tail records.
    Scan { stream: u32, zone: Zone, batches: Vec<Batch>, done: Sender<Applied> },
    /// Read one row.
    Read { stream: u32, table: Bytes, key: Bytes, done: Sender<Option<Row>> },
    /// Store a newer map; the answer is what has to be looked through.
    Map { map: Arc<Map>, bytes: Bytes, done: Sender<Vec<(u32, Zone, Scan)>> },
    /// What this zone has of some shards.
    Report { stream: u32, shards: Vec<Shard>, take_over: bool, done: Sender<Vec<Reported>> },
    /// Figures of all streams.
    Figures { done: Sender<Figures> },
    /// Digests of all streams, in their order.
    Digests { done: Sender<Vec<Digests>> },
    /// Close the stores; the last job.
    Close { done: Sender<()> },
}

/// The FENCEs of a stream that count as applied. All of this news takes one way, so that it arrives in order.
pub(super) struct Fences {
    pub stream: u32,
    pub all: Vec<(Zone, Shard, OwnerEpoch)>,
}

/// What an apply or a scan led to.
#[derive(Debug)]
pub(super) struct Applied {
    /// The last seq of that log that is applied.
    pub seq: u64,
    /// Why it stopped before the end, if it did.
    pub wait: Option<Wait>,
    /// What is left to look through of that log.
    pub scan: Option<Scan>,
    /// The map that the applier went by.
    pub map_epoch: MapEpoch,
}

/// What this zone has of one shard.
#[derive(Clone, Debug)]
pub struct Reported {
    /// The shard.
    pub shard: Shard,
    /// Of a move: the seq of the source's FENCE once all that it carries is applied here.
    pub fence_seq: Option<u64>,
    /// Applied positions, or `None` while the zone has not caught up.
    pub applied: Option<Positions>,
}

/// Figures of a core's streams.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Applied positions, for each stream of the core.
    pub applied: Vec<(u32, Positions)>,
    /// Parked records.
    pub parked: u64,
    /// Entries of the ledger.
    pub ledger: u64,
    /// Microseconds from the commit of another zone's record there until it was visible here.
    pub lag_us: Histogram<u64>,
}

/// One stream's applier and store.
pub(super) struct Kept {
    pub stream: u32,
    pub applier: Applier,
    pub store: Sqlite,
    /// Entries of the ledger, once counted.
    pub ledger: Option<u64>,
}

pub(super) struct Keeper {
    zone: Zone,
    kept: Vec<Kept>,
    fences: UnboundedSender<Fences>,
    lag_us: Histogram<u64>,
    retry_at: Instant,
}

impl Keeper {
    pub fn new(zone: Zone, kept: Vec<Kept>, fences: UnboundedSender<Fences>) -> Keeper {
        let lag_us = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("these bounds are legal");
        Keeper { zone, kept, fences, lag_us, retry_at: Instant::now() + RETRY_EVERY }
    }

    /// Does jobs until the last one, or until the core is gone; an error means that memory and disk may differ: the process has to
    /// stop.
    pub fn run(mut self, jobs: &Receiver<Job>) -> Result<(), String> {
        loop {
            let wait = self.retry_at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                self.retry()?;
            }
            match jobs.recv_timeout(wait) {
                Ok(Job::Close { done }) => {
                    drop(self);
                    let _ = done.send(()); // whoever stops the node may have given up
                    return Ok(());
                }
                Ok(job) => self.job(job)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Tries parked records again. What they held back may count now: locks open without another record.
    fn retry(&mut self) -> Result<(), String> {
        self.retry_at = Instant::now() + RETRY_EVERY;
        for k in self.kept.iter_mut().filter(|k| k.applier.parked() > 0) {
            let changes = k.applier.retry(now_ns() / 1_000_000);
            if !changes.is_empty() {
                k.commit(&changes)?;
                k.tell_fences(&self.fences);
            }
        }
        Ok(())
    }

    /// Whoever asked may be gone: that an answer finds nobody is no fault.
    fn job(&mut self, job: Job) -> Result<(), String> {
        match job {
            Job::Apply { stream, zone, batches, done } => {
                let applied = self.apply(stream, zone, &batches)?;
                let _ = done.send(applied);
            }
            Job::Scan { stream, zone, batches, done } => {
                let k = self.of(stream)?;
                let mut all = Changes::default();
                for batch in &batches {
                    all.list.extend(k.applier.scan(zone, &records(batch)?).list);
                }
                k.commit(&all)?;
                let _ = done.send(k.applied(zone, None));
            }
            Job::Read { stream, table, key, done } => {
                let row = self.of(stream)?.store.row(&table, &key).map_err(|e| e.to_string())?;
                let _ = done.send(row);
            }
            Job::Map { map, bytes, done } => {
                for k in &mut self.kept {
                    let changes = k.applier.on_map(map.clone(), bytes.clone());
                    k.commit(&changes)?;
                }
                let scans = self.kept.iter().flat_map(|k| k.applier.scans().map(|(zone, scan)| (k.stream, zone, scan)));
                let _ = done.send(scans.collect());
            }
            Job::Report { stream, shards, take_over, done } => {
                let reported = self.of(stream)?.report(&shards, take_over)?;
                let _ = done.send(reported);
            }
            Job::Figures { done } => {
                let figures = self.figures()?;
                let _ = done.send(figures);
            }
            Job::Digests { done } => {
                let all: Result<_, _> =
                    self.kept.iter().map(|k| k.store.digests().map_err(|e| e.to_string())).collect();
                let _ = done.send(all?);
            }
            Job::Close { .. } => unreachable!("`run` takes it"),
        }
        Ok(())
    }

    fn apply(&mut self, stream: u32, zone: Zone, batches: &[Batch]) -> Result<Applied, String> {
        let own = zone == self.zone;
        let k = self.of(stream)?;
        let (mut all, mut wait) = (Changes::default(), None);
        let before = k.applier.applied(zone);
        for batch in batches {
            let (changes, why) =
                k.applier.apply(zone, &records(batch)?, now_ns() / 1_000_000).map_err(|e| e.to_string())?;
            all.list.extend(changes.list);
            wait = why;
            if wait.is_some() {
                break;
            }
        }
        let fences = all.list.iter().any(|c| matches!(c, Change::Fence(..) | Change::Park(_)));
        k.commit(&all)?;
        let applied = k.applied(zone, wait);
        if fences {
            let at = self.kept.iter().find(|k| k.stream == stream);
            at.into_iter().for_each(|k| k.tell_fences(&self.fences));
        }
        if !own {
            let now = now_ns();
            let new = batches.iter().filter(|b| b.last_seq() > before && b.last_seq() <= applied.seq);
            for batch in new {
                self.lag_us.saturating_record_n(now.saturating_sub(batch.append_ns) / 1000, u64::from(batch.records));
            }
        }
        Ok(applied)
    }

    fn figures(&mut self) -> Result<Figures, String> {
        let mut ledger = 0;
        for k in &mut self.kept {
            ledger += k.listed()?;
        }
        Ok(Figures {
            applied: self.kept.iter().map(|k| (k.stream, k.applier.positions().clone())).collect(),
            parked: self.kept.iter().map(|k| k.applier.parked() as u64).sum(),
            ledger,
            lag_us: self.lag_us.clone(),
        })
    }

    fn of(&mut self, stream: u32) -> Result<&mut Kept, String> {
        self.kept.iter_mut().find(|k| k.stream == stream).ok_or_else(|| format!("stream {stream} is not this core's"))
    }
}

impl Kept {
    fn commit(&mut self, changes: &Changes) -> Result<(), String> {
        if changes.list.iter().any(|c| matches!(c, Change::List(_))) {
            self.ledger = None;
        }
        if changes.is_empty() { Ok(()) } else { self.commit_when_there_is_room(changes) }
    }

    /// A full disk holds up applying, and reading, on this core; the log goes on as long as it has segments. Nothing is skipped.
    fn commit_when_there_is_room(&mut self, changes: &Changes) -> Result<(), String> {
        let mut waiting = false;
        loop {
            match self.store.commit(changes) {
                Err(Failed::Full(why)) => {
                    if !waiting {
                        tracing::error!("stream {}: {why}; applying waits until there is room", self.stream);
                    }
                    waiting = true;
                    std::thread::sleep(ROOM_LOOK);
                }
                Err(Failed::Broken(why)) => return Err(why),
                Ok(()) => {
                    if waiting {
                        tracing::info!("stream {}: there is room again", self.stream);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn applied(&self, zone: Zone, wait: Option<Wait>) -> Applied {
        let scan = self.applier.scans().find(|(z, _)| *z == zone).map(|(_, scan)| scan);
        Applied { seq: self.applier.applied(zone), wait, scan, map_epoch: self.applier.map_epoch() }
    }

    fn tell_fences(&self, to: &UnboundedSender<Fences>) {
        let _ = to.unbounded_send(Fences { stream: self.stream, all: self.applier.fences().collect() }); // the core may be gone
    }

    /// How many entries the ledger has; counted again only when some were listed.
    fn listed(&mut self) -> Result<u64, String> {
        if self.ledger.is_none() {
            let mut count = 0;
            self.store.ledger(&mut |_| count += 1).map_err(|e| e.to_string())?;
            self.ledger = Some(count);
        }
        Ok(self.ledger.unwrap_or(0))
    }

    fn report(&mut self, shards: &[Shard], take_over: bool) -> Result<Vec<Reported>, String> {
        let mut all = vec![];
        for shard in shards {
            all.push(if take_over {
                let reported = self.applier.report(*shard);
                if let Some((_, changes)) = &reported {
                    self.commit(changes)?;
                }
                Reported { shard: *shard, fence_seq: None, applied: reported.map(|(cut, _)| cut) }
            } else {
                let (fence_seq, applied) = self.applier.caught_up(*shard).unzip();
                Reported { shard: *shard, fence_seq, applied }
            });
        }
        Ok(all)
    }
}

fn records(batch: &Batch) -> Result<Vec<(u64, Record)>, String> {
    let all: Result<_, _> = batch.iter().collect();
    all.map_err(|e| format!("a batch that was verified before cannot be read: {e}"))
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
