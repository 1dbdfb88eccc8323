//! The thread that applies: owns the appliers and stores of one log core's streams, so that SQLite never blocks the core.
//!
//! Jobs are done in the order in which they were sent: a read that follows an apply sees what it applied. A store without room
//! holds up what is to be stored, in its order; reads are refused meanwhile, and figures are told all the same.

mod job;
mod ledger;

pub(super) use job::{Applied, Job, News, NoRoom};
pub use job::{Figures, Reported};
pub use ledger::{Asked, Conflict};

use super::lag::ZoneLag;
use super::now_ns;
use super::sqlite::Sqlite;
use crate::apply::{Applier, Seed, Unseeded, Wait};
use crate::batch::Batch;
use crate::record::Record;
use crate::store::{Change, Changes, Digests, Failed, Store};
use futures_channel::mpsc::UnboundedSender;
use futures_channel::oneshot::Sender;
use shardmap::{Positions, Shard, Zone};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often a full disk is looked at again.
const ROOM_LOOK: Duration = Duration::from_millis(500);
/// How often parked records are tried again.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// One stream's applier and store.
pub(super) struct Kept {
    pub stream: u32,
    pub applier: Applier,
    pub store: Sqlite,
    /// Entries of the ledger, once counted.
    pub ledger: Option<u64>,
    /// What is applied and stored: the applier is ahead while a store has no room.
    pub stored: Positions,
    /// For each zone's tombstones: from where they are looked at next.
    pub looked: BTreeMap<Zone, u64>,
    /// How many answers have spoken of scans.
    answers: u64,
}

pub(super) struct Keeper {
    zone: Zone,
    kept: Vec<Kept>,
    jobs: Receiver<Job>,
    /// What came while there was no room, in its order.
    later: VecDeque<Job>,
    news: UnboundedSender<News>,
    lag: BTreeMap<Zone, ZoneLag>,
    /// Tombstones that were dropped since the start.
    collected: u64,
    retry_at: Instant,
}

/// Why a keeper ends.
enum End {
    /// Memory and disk may differ: the process has to stop.
    Fault(String),
    /// It was asked to; whoever asked waits here.
    Asked(Sender<()>),
    /// The core is gone.
    Gone,
}

impl From<String> for End {
    fn from(why: String) -> End {
        End::Fault(why)
    }
}

impl Kept {
    /// The applier and the store that it began with.
    pub fn new(stream: u32, applier: Applier, store: Sqlite) -> Kept {
        Kept {
            stream,
            stored: applier.positions().clone(),
            applier,
            store,
            ledger: None,
            looked: BTreeMap::new(),
            answers: 0,
        }
    }
}

impl Keeper {
    pub fn new(zone: Zone, kept: Vec<Kept>, jobs: Receiver<Job>, news: UnboundedSender<News>) -> Keeper {
        let retry_at = Instant::now() + RETRY_EVERY;
        Keeper { zone, kept, jobs, later: VecDeque::new(), news, lag: BTreeMap::new(), collected: 0, retry_at }
    }

    /// Does jobs until the last one, or until the core is gone.
    pub fn run(mut self) -> Result<(), String> {
        let end = loop {
            if let Err(end) = self.step() {
                break end;
            }
        };
        drop(self);
        match end {
            End::Fault(why) => Err(why),
            End::Gone => Ok(()),
            End::Asked(done) => {
                let _ = done.send(()); // whoever stops the node may have given up
                Ok(())
            }
        }
    }

    fn step(&mut self) -> Result<(), End> {
        let wait = self.retry_at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            self.retry()?;
        }
        if let Some(job) = self.later.pop_front() {
            return self.job(job);
        }
        match self.jobs.recv_timeout(wait) {
            Ok(job) => self.job(job),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => Err(End::Gone),
        }
    }

    /// Tries parked records again. What they held back may count now: locks open without another record.
    fn retry(&mut self) -> Result<(), End> {
        self.retry_at = Instant::now() + RETRY_EVERY;
        for at in 0..self.kept.len() {
            if self.kept[at].applier.parked() == 0 {
                continue;
            }
            let changes = self.kept[at].applier.retry(now_ns() / 1_000_000);
            if !changes.is_empty() {
                self.commit(at, &changes)?;
                self.kept[at].tell_fences(&self.news);
                let (stream, all) = (self.kept[at].stream, Box::new(self.kept[at].settled()));
                let _ = self.news.unbounded_send(News::Settled { stream, all }); // the core may be gone
            }
        }
        Ok(())
    }

    /// What is stored may be taken back by a power cut until this: a commit that is flushed makes everything before it durable.
    fn settle(&mut self, at: usize) -> Result<Positions, End> {
        let applied = self.kept[at].applier.positions();
        let list = applied.iter().map(|(zone, seq)| Change::Applied(zone, seq)).collect();
        self.commit(at, &Changes { list, durable: true })?;
        Ok(self.kept[at].settled())
    }

    /// Stores `changes`. A full disk holds up applying on this core; the log goes on as long as it has segments. Nothing is skipped.
    fn commit(&mut self, at: usize, changes: &Changes) -> Result<(), End> {
        let mut waits = false;
        loop {
            match self.kept[at].commit(changes) {
                Err(Failed::Broken(why)) => return Err(End::Fault(why)),
                Err(Failed::Full(why)) => {
                    if !waits {
                        let stream = self.kept[at].stream;
                        tracing::error!(
                            "stream {stream}: {why}; applying waits until there is room, rows are not told"
                        );
                        let _ = self.news.unbounded_send(News::Room(false)); // the core may be gone
                    }
                    waits = true;
                    self.without_room()?;
                }
                Ok(()) => {
                    if waits {
                        tracing::info!("stream {}: there is room again", self.kept[at].stream);
                        let _ = self.news.unbounded_send(News::Room(true)); // the core may be gone
                    }
                    return Ok(());
                }
            }
        }
    }

    /// What can be done without room, until it is time to look for some.
    fn without_room(&mut self) -> Result<(), End> {
        let until = Instant::now() + ROOM_LOOK;
        loop {
            match self.jobs.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Job::Figures { done }) => {
                    let _ = done.send(self.figures(true)?); // whoever asked may be gone
                }
                Ok(Job::Read { done, .. }) => {
                    let _ = done.send(Err(NoRoom)); // whoever asked may be gone
                }
                Ok(Job::Answers { done, .. }) => {
                    let _ = done.send(vec![]); // nothing could be removed anyway
                }
                // What is not stored is in the logs.
                Ok(Job::Close { done }) => return Err(End::Asked(done)),
                Ok(Job::Digests { done }) => {
                    let _ = done.send(self.digests()?); // whoever asked may be gone
                }
                Ok(Job::Conflicts { stream, asked, done }) => {
                    let _ = done.send(self.conflicts(stream, asked)?); // whoever asked may be gone
                }
                // There may be more of them another time.
                Ok(Job::Collect { done, .. }) => drop(done.send(false)),
                // Nothing more is durable; whoever asked hears nothing, and asks again.
                Ok(Job::Settle { .. }) => {}
                Ok(
                    job @ (Job::Apply { .. }
                    | Job::Scan { .. }
                    | Job::MaySeed { .. }
                    | Job::Merge { .. }
                    | Job::Seed { .. }
                    | Job::Map { .. }
                    | Job::Report { .. }),
                ) => self.later.push_back(job),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(End::Gone),
            }
        }
    }

    /// Whoever asked may be gone: that an answer finds nobody is no fault.
    fn job(&mut self, job: Job) -> Result<(), End> {
        match job {
            Job::Apply { stream, zone, batches, done } => {
                let applied = self.apply(stream, zone, &batches)?;
                let _ = done.send(applied);
            }
            Job::Scan { stream, zone, batches, kept, done } => {
                let at = self.at(stream)?;
                let mut all = Changes::default();
                for batch in &batches {
                    all.list.extend(self.kept[at].look(zone, &records(batch)?, kept).list);
                }
                self.commit(at, &all)?;
                let _ = done.send(self.kept[at].applied(zone, None));
            }
            Job::MaySeed { stream, zone, done } => {
                let applier = &self.kept[self.at(stream)?].applier;
                let _ = done.send(applier.may_seed(zone).map(|()| applier.map_epoch()));
            }
            Job::Merge { stream, changes, done } => {
                let at = self.at(stream)?;
                self.commit(at, &changes)?;
                let _ = done.send(());
            }
            Job::Seed { stream, seed, done } => {
                let seeded = self.seed(stream, &seed)?;
                let _ = done.send(seeded);
            }
            Job::Read { stream, table, key, done } => {
                let at = self.at(stream)?;
                let row = self.kept[at].store.row(&table, &key).map_err(|e| e.to_string())?;
                let _ = done.send(Ok(row));
            }
            Job::Answers { stream, from, below, most, done } => {
                let at = self.at(stream)?;
                let found = self.kept[at].store.answers(from, below, most).map_err(|e| e.to_string())?;
                let _ = done.send(found);
            }
            Job::Map { map, bytes, done } => {
                for at in 0..self.kept.len() {
                    let changes = self.kept[at].applier.on_map(map.clone(), bytes.clone());
                    self.commit(at, &changes)?;
                }
                let scans = self.kept.iter_mut().map(|k| (k.stream, k.next_answer(), k.applier.scans().collect()));
                let _ = done.send(scans.collect());
            }
            Job::Report { stream, shards, take_over, done } => {
                let reported = self.report(stream, &shards, take_over)?;
                let _ = done.send(reported);
            }
            Job::Figures { done } => {
                let figures = self.figures(false)?;
                let _ = done.send(figures);
            }
            Job::Collect { stream, everywhere, done } => {
                let more = self.collect(stream, &everywhere)?;
                let _ = done.send(more);
            }
            Job::Settle { stream, done } => {
                let at = self.at(stream)?;
                let settled = self.settle(at)?;
                let _ = done.send(settled);
            }
            Job::Conflicts { stream, asked, done } => {
                let found = self.conflicts(stream, asked)?;
                let _ = done.send(found);
            }
            Job::Digests { done } => {
                let digests = self.digests()?;
                let _ = done.send(digests);
            }
            Job::Close { done } => return Err(End::Asked(done)),
        }
        Ok(())
    }

    fn apply(&mut self, stream: u32, zone: Zone, batches: &[Batch]) -> Result<Applied, End> {
        let own = zone == self.zone;
        let at = self.at(stream)?;
        let k = &mut self.kept[at];
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
        self.commit(at, &all)?;
        let applied = self.kept[at].applied(zone, wait);
        if fences {
            self.kept[at].tell_fences(&self.news);
        }
        if !own {
            let new = batches.iter().filter(|b| b.last_seq() > before && b.last_seq() <= applied.seq);
            self.lag.entry(zone).or_default().on_applied(zone, new, &all.list, now_ns());
        }
        Ok(applied)
    }

    fn digests(&self) -> Result<Vec<Digests>, String> {
        self.kept.iter().map(|k| k.store.digests().map_err(|e| e.to_string())).collect()
    }

    fn seed(&mut self, stream: u32, seed: &Seed) -> Result<Result<Applied, Unseeded>, End> {
        let at = self.at(stream)?;
        let changes = match self.kept[at].applier.seed(seed) {
            Ok(changes) => changes,
            Err(why) => return Ok(Err(why)),
        };
        self.commit(at, &changes)?;
        self.kept[at].tell_fences(&self.news);
        Ok(Ok(self.kept[at].applied(seed.zone, None)))
    }

    fn figures(&mut self, is_full: bool) -> Result<Figures, String> {
        let (mut ledger, mut open) = (0, 0);
        for k in &mut self.kept {
            let listed = k.listed()?;
            let resolved = if listed == 0 { 0 } else { k.store.resolved().map_err(|e| e.to_string())? };
            ledger += listed;
            open += listed.saturating_sub(resolved);
        }
        Ok(Figures {
            applied: self.kept.iter().map(|k| (k.stream, k.stored.clone())).collect(),
            parked: self.kept.iter().map(|k| k.applier.parked() as u64).sum(),
            ledger,
            open,
            collected: self.collected,
            is_full,
            lag: self.lag.clone(),
        })
    }

    fn report(&mut self, stream: u32, shards: &[Shard], take_over: bool) -> Result<Vec<Reported>, End> {
        let (at, mut all) = (self.at(stream)?, vec![]);
        for shard in shards {
            all.push(if take_over {
                let reported = self.kept[at].applier.report(*shard);
                if let Some((_, changes)) = &reported {
                    self.commit(at, changes)?;
                }
                Reported { shard: *shard, fence_seq: None, applied: reported.map(|(cut, _)| cut) }
            } else {
                let (fence_seq, applied) = self.kept[at].applier.caught_up(*shard).unzip();
                Reported { shard: *shard, fence_seq, applied }
            });
        }
        Ok(all)
    }

    fn at(&self, stream: u32) -> Result<usize, String> {
        let at = self.kept.iter().position(|k| k.stream == stream);
        at.ok_or_else(|| format!("stream {stream} is not this core's"))
    }
}

impl Kept {
    fn commit(&mut self, changes: &Changes) -> Result<(), Failed> {
        if changes.list.iter().any(|c| matches!(c, Change::List(_))) {
            self.ledger = None;
        }
        if !changes.is_empty() {
            self.store.commit(changes)?;
        }
        self.stored.clone_from(self.applier.positions());
        Ok(())
    }

    /// The next piece of a scan.
    fn look(&mut self, zone: Zone, batch: &[(u64, Record)], kept: u64) -> Changes {
        let unseen = self.applier.scans().any(|(z, scan)| z == zone && scan.from < kept);
        if unseen { self.applier.scan_kept(zone, batch, kept) } else { self.applier.scan(zone, batch) }
    }

    fn next_answer(&mut self) -> u64 {
        self.answers += 1;
        self.answers
    }

    fn applied(&mut self, zone: Zone, wait: Option<Wait>) -> Applied {
        let scan = self.applier.scans().find(|(z, _)| *z == zone).map(|(_, scan)| scan);
        let (seq, settled) = (self.applier.applied(zone), self.applier.settled(zone));
        Applied { seq, settled, wait, scan, number: self.next_answer(), map_epoch: self.applier.map_epoch() }
    }

    /// Up to where nothing is parked of each zone's log.
    pub fn settled(&self) -> Positions {
        self.applier.positions().iter().map(|(zone, _)| (zone, self.applier.settled(zone))).collect()
    }

    fn tell_fences(&self, to: &UnboundedSender<News>) {
        let all = self.applier.fences().collect();
        let _ = to.unbounded_send(News::Fences { stream: self.stream, all }); // the core may be gone
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
}

fn records(batch: &Batch) -> Result<Vec<(u64, Record)>, String> {
    let all: Result<_, _> = batch.iter().collect();
    all.map_err(|e| format!("a batch that was verified before cannot be read: {e}"))
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
