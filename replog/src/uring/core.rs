//! One log core: its streams, their gate and log, the mirrors of other zones, and what routers ask over the port.
//!
//! Everything here runs on one executor, so state is shared by `Rc` and never locked. A task never holds a `RefCell` over an
//! await.

use super::keeper::{Applied, Job, Reported};
use super::node::{Options, Told};
use super::now_ms;
use super::signal::Signal;
use super::stream::{self, Kind, StreamLog};
use crate::apply::Wait;
use crate::gate::{Decision, Gate, Row, Write};
use crate::link::{self, Receiver};
use crate::log;
use crate::owners::stream_of;
use crate::port::{Answer, Ask, Refused};
use crate::record::Record;
use crate::store::Scan;
use bytes::Bytes;
use futures_channel::oneshot;
use glommio::timer::sleep;
use shardmap::map::Map;
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How long a write may wait for the map that its router knows.
const MAP_WAIT: Duration = Duration::from_secs(2);
/// How much of a log one apply takes.
const APPLY_BYTES: usize = 1 << 20;
/// How often a log that waits for a map or a take-over is tried again.
const WAIT_LOOK: Duration = Duration::from_millis(5);

/// One log core.
pub(super) struct Core {
    pub options: Arc<Options>,
    pub streams: Vec<Rc<Stream>>,
    pub map: RefCell<Arc<Map>>,
    pub map_changed: Signal,
    pub jobs: Sender<Job>,
    pub tell: Box<dyn Fn(Told)>,
}

/// One stream of this zone, and its namesakes of the others.
pub(super) struct Stream {
    pub zone: Zone,
    pub number: u32,
    pub term: u64,
    pub log: StreamLog,
    pub gate: RefCell<Gate>,
    pub mirrors: BTreeMap<Zone, Mirror>,
    /// For each zone's log: up to where it was handed to the keeper. At least what is applied.
    pub fed: RefCell<Positions>,
    /// For each zone's log: up to where it is applied.
    pub applied: RefCell<Positions>,
    pub applied_changed: Signal,
    pub links: RefCell<BTreeMap<Zone, Link>>,
    /// Scans under way; the task that feeds that log does them first.
    pub scans: RefCell<BTreeMap<Zone, Scan>>,
    pub scans_changed: Signal,
    pub receivers: RefCell<BTreeMap<Zone, Rc<RefCell<Receiver>>>>,
    /// Of the newest connection from each zone.
    pub generations: RefCell<BTreeMap<Zone, u64>>,
}

/// What this core knows of one outgoing link.
#[derive(Clone, Debug)]
pub struct Link {
    /// What it is doing, or why it stopped.
    pub state: String,
    /// The last seq that is durable there.
    pub durable_seq: u64,
    /// The last seq that is applied there.
    pub applied_seq: u64,
    /// The map that the other side has named since this start; `None` while the link is down.
    pub map_epoch: Option<MapEpoch>,
}

impl Core {
    /// The stream of `shard`, if this core has it.
    pub fn stream_of(&self, shard: Shard) -> Option<&Rc<Stream>> {
        let number = stream_of(shard, self.options.streams);
        self.streams.iter().find(|s| s.number == number)
    }

    /// Answers one ask; it ends when there is an answer.
    pub async fn answer(&self, ask: Ask) -> Answer {
        match ask {
            Ask::Write { shard, map_epoch, table, key, value } => {
                self.write(Write { shard, map_epoch, table, key, value }).await
            }
            Ask::Read { shard, map_epoch, table, key, local } => self.read(shard, map_epoch, table, key, local).await,
        }
    }

    async fn write(&self, write: Write) -> Answer {
        let Some(stream) = self.stream_of(write.shard) else { return elsewhere(write.shard) };
        let (mut row, deadline) = (Row::Unknown, now_ms() + MAP_WAIT.as_millis() as u64);
        loop {
            let decision = stream.gate.borrow_mut().write(&write, row, now_ms());
            match decision {
                Decision::Append(record) => return stream.append(record).await,
                Decision::NeedRow => {
                    let key = write.key.clone().unwrap_or_default();
                    row = match self.row(stream, write.table.clone(), key).await {
                        Some(found) => found.map_or(Row::Absent, |r| Row::At(r.version.owner_epoch)),
                        None => return failed("the store does not answer"),
                    }
                }
                Decision::WaitMap if now_ms() >= deadline => return self.behind(),
                Decision::WaitMap => self.next_map().await,
                Decision::Refused(why) => return Answer::Refused(why),
            }
        }
    }

    async fn read(&self, shard: Shard, map_epoch: MapEpoch, table: Bytes, key: Bytes, local: bool) -> Answer {
        let Some(stream) = self.stream_of(shard) else { return elsewhere(shard) };
        let deadline = now_ms() + MAP_WAIT.as_millis() as u64;
        loop {
            let decision = stream.gate.borrow().read(shard, map_epoch, local);
            match decision {
                None => break,
                Some(Decision::WaitMap) if now_ms() >= deadline => return self.behind(),
                Some(Decision::WaitMap) => self.next_map().await,
                Some(Decision::Refused(why)) => return Answer::Refused(why),
                Some(Decision::Append(_) | Decision::NeedRow) => return failed("a read was judged as a write"),
            }
        }
        match self.row(stream, table, key).await {
            Some(Some(row)) if !row.deleted => Answer::Row { version: row.version, value: row.value },
            Some(_) => Answer::Absent,
            None => failed("the store does not answer"),
        }
    }

    /// The row as of every write that was acknowledged before this call.
    async fn row(&self, stream: &Stream, table: Bytes, key: Bytes) -> Option<Option<crate::store::Row>> {
        let target = stream.log.durable_seq();
        let own = self.options.zone;
        stream.applied_changed.wait(|| (stream.fed_seq(own) >= target).then_some(())).await;
        self.ask(|done| Job::Read { stream: stream.number, table, key, done }).await
    }

    /// Ends when there is another map, or after a moment.
    async fn next_map(&self) {
        let epoch = self.map.borrow().epoch();
        let changed = self.map_changed.wait(|| (self.map.borrow().epoch() > epoch).then_some(()));
        futures_lite::future::or(changed, async { sleep(WAIT_LOOK).await }).await;
    }

    fn behind(&self) -> Answer {
        Answer::Refused(Refused::Behind { map_epoch: self.map.borrow().epoch() })
    }

    /// Sends the keeper a job; `None`: it is gone, which ends the process.
    pub async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).ok()?;
        answer.await.ok()
    }

    /// A newer map, which is durable: stored, then acted on. FENCEs that it asks for are in the log when this ends.
    pub async fn on_map(&self, map: Arc<Map>) -> Result<(), String> {
        if map.epoch() <= self.map.borrow().epoch() {
            return Ok(());
        }
        let (sent, bytes) = (map.clone(), Bytes::from(map.encode()));
        let stored = self.ask(|done| Job::Map { map: sent, bytes, done }).await;
        for (number, zone, scan) in stored.ok_or("the keeper is gone")? {
            if let Some(stream) = self.streams.iter().find(|s| s.number == number) {
                stream.scans.borrow_mut().insert(zone, scan);
                stream.scans_changed.notify();
            }
        }
        *self.map.borrow_mut() = map.clone();
        let mut fences = vec![];
        for stream in &self.streams {
            // What was handed over is at least what was applied: the target of a move must have seen all that was visible here.
            let fed = stream.fed.borrow().clone();
            let due = stream.gate.borrow_mut().on_map(map.clone(), &fed, now_ms()).map_err(|e| e.to_string())?;
            if !due.is_empty() {
                // Begun at once: no write that is decided later may be appended before a FENCE.
                let (_, durable) = stream.log.begin_append(due).map_err(|e| stream.no_fence(&e))?;
                fences.push((stream, durable));
            }
        }
        self.map_changed.notify();
        for (stream, durable) in fences {
            durable.await.map_err(|e| stream.no_fence(&e))?;
        }
        Ok(())
    }

    /// The map as it travels.
    pub fn map_bytes(&self) -> (MapEpoch, Bytes) {
        let map = self.map.borrow();
        (map.epoch(), Bytes::from(map.encode()))
    }

    /// Does the map say that a shard of `stream` was lost by `origin` and has no owner yet?
    pub fn is_lost(&self, stream: u32, origin: Zone) -> bool {
        let map = self.map.borrow();
        let mut own = map.shards().filter(|(shard, _)| stream_of(*shard, self.options.streams) == stream);
        own.any(|(_, history)| history.is_lost_by(origin))
    }

    /// Says something to control.
    pub fn tell(&self, what: Told) {
        (self.tell)(what);
    }

    /// The GZS has answered that `epoch` is its newest.
    pub fn on_gzs(&self, epoch: MapEpoch) {
        for stream in &self.streams {
            stream.gate.borrow_mut().on_gzs(epoch);
        }
    }

    /// What the map's writer wants to know of `shards`.
    pub async fn report(&self, shards: &[Shard], take_over: bool) -> Vec<Reported> {
        let mut all = vec![];
        for stream in &self.streams {
            let own = shards.iter().copied().filter(|s| stream_of(*s, self.options.streams) == stream.number);
            let asked: Vec<Shard> = own.filter(|s| !take_over || self.has_all_of_lost(stream, *s)).collect();
            if !asked.is_empty() {
                let number = stream.number;
                let reported = self.ask(|done| Job::Report { stream: number, shards: asked, take_over, done }).await;
                all.extend(reported.unwrap_or_default());
            }
        }
        all
    }

    /// Has this zone, which takes writes, applied all that it has of the lost owner's log?
    fn has_all_of_lost(&self, stream: &Stream, shard: Shard) -> bool {
        let map = self.map.borrow();
        let lost = map.history(shard).and_then(|h| h.view().lost);
        lost.and_then(|(zone, _)| stream.mirrors.get(&zone).map(|m| (zone, m))).is_some_and(|(zone, mirror)| {
            let applied = stream.applied.borrow().get(zone).unwrap_or(0);
            !stream.gate.borrow().is_read_only() && applied >= mirror.durable_seq()
        })
    }

    /// Hands `zone`'s log of `stream` to the keeper, piece by piece, for ever.
    pub async fn feed(self: Rc<Self>, stream: Rc<Stream>, zone: Zone) -> Result<(), String> {
        let log = match stream.mirrors.get(&zone) {
            Some(mirror) => mirror.exists().await,
            None => stream.log.clone(),
        };
        let broken = |e: stream::Error| format!("stream {} of zone {zone}: {e}", stream.number);
        loop {
            let scan = stream.scans.borrow().get(&zone).copied();
            let from = match scan {
                Some(scan) => scan.from,
                None => {
                    let applied = stream.applied.borrow().get(zone).unwrap_or(0);
                    let scans = || stream.scans.borrow().contains_key(&zone).then_some(());
                    let scan = async {
                        stream.scans_changed.wait(scans).await;
                        Ok(())
                    };
                    let more = async { log.wait_durable(applied + 1).await.map(drop) };
                    futures_lite::future::or(more, scan).await.map_err(broken)?;
                    if scans().is_some() {
                        continue;
                    }
                    applied + 1
                }
            };
            let batches = log.read_from(from, APPLY_BYTES).await.map_err(broken)?;
            let last = batches.last().map_or(0, |b| b.last_seq());
            let number = stream.number;
            let done = if scan.is_some() {
                self.ask(|done| Job::Scan { stream: number, zone, batches, done }).await
            } else {
                stream.fed(zone, last);
                self.ask(|done| Job::Apply { stream: number, zone, batches, done }).await
            };
            let done = done.ok_or("the keeper is gone")?;
            if stream.on_applied(zone, done).is_some() {
                self.next_map().await;
            }
        }
    }
}

impl Stream {
    /// Appends one record; ends when it is durable.
    async fn append(&self, record: Record) -> Answer {
        let version =
            crate::Version { owner_epoch: record.owner_epoch, hlc: record.hlc, zone: self.zone, stream: self.number };
        let key = record.key.clone();
        match self.log.append(vec![record]).await {
            Ok(seq) => Answer::Written { key, version, seq },
            Err(e) => Answer::Refused(refused(&e)),
        }
    }

    fn no_fence(&self, why: &stream::Error) -> String {
        format!("stream {}: a FENCE cannot be appended: {why}", self.number)
    }

    /// The receiver of `origin`'s log, which outlives its connections.
    pub fn receiver(&self, origin: Zone, new: impl FnOnce() -> Receiver) -> Rc<RefCell<Receiver>> {
        self.receivers.borrow_mut().entry(origin).or_insert_with(|| Rc::new(RefCell::new(new()))).clone()
    }

    /// What it accepted did not all reach the mirror: the next connection starts from what is durable.
    pub fn forget_receiver(&self, origin: Zone) {
        self.receivers.borrow_mut().remove(&origin);
    }

    /// The newest connection of `origin`.
    pub fn generation(&self, origin: Zone) -> u64 {
        self.generations.borrow().get(&origin).copied().unwrap_or(0)
    }

    /// A newer connection of `origin`.
    pub fn next_generation(&self, origin: Zone) -> u64 {
        let next = self.generation(origin) + 1;
        self.generations.borrow_mut().insert(origin, next);
        next
    }

    pub fn fed_seq(&self, zone: Zone) -> u64 {
        self.fed.borrow().get(zone).unwrap_or(0)
    }

    fn fed(&self, zone: Zone, seq: u64) {
        let above = self.fed_seq(zone).max(seq);
        self.fed.borrow_mut().set(zone, above);
        self.applied_changed.notify();
    }

    fn on_applied(&self, zone: Zone, done: Applied) -> Option<Wait> {
        self.applied.borrow_mut().set(zone, done.seq);
        for (zone, shard, epoch) in done.fences.into_iter().flatten() {
            self.gate.borrow_mut().on_fence_applied(zone, shard, epoch);
        }
        match done.scan {
            Some(scan) => self.scans.borrow_mut().insert(zone, scan),
            None => self.scans.borrow_mut().remove(&zone),
        };
        self.applied_changed.notify();
        done.wait
    }
}

/// What a sender knows of a log.
pub(super) fn shipped(log: &StreamLog) -> link::Log {
    log.with(|l| link::Log {
        log_uuid: l.log_uuid(),
        term: l.term(),
        first_kept: l.first_kept(),
        durable: l.durable_seq(),
        chain: l.durable_chain(),
        hlc: l.newest_hlc(),
    })
}

/// A copy of another zone's log; it exists from the first HELLO on, which names the incarnation that it is a copy of.
pub(super) struct Mirror {
    dir: PathBuf,
    options: stream::Options,
    log: RefCell<Option<StreamLog>>,
    created: Signal,
}

impl Mirror {
    /// Opens the copy in `dir`, if there is one.
    pub async fn open(dir: PathBuf, options: stream::Options) -> Result<Mirror, stream::Error> {
        let log = match StreamLog::open(&dir, stream::Options { kind: Kind::Mirror(None), ..options }).await {
            Ok((log, ..)) => Some(log),
            Err(stream::Error::NoMirror(_)) => None,
            Err(e) => return Err(e),
        };
        Ok(Mirror { dir, options, log: RefCell::new(log), created: Signal::default() })
    }

    /// The copy; made now if it is not there yet.
    pub async fn of(&self, log_uuid: u128) -> Result<StreamLog, stream::Error> {
        if let Some(log) = self.log() {
            return Ok(log);
        }
        let options = stream::Options { kind: Kind::Mirror(Some(log_uuid)), ..self.options };
        let (log, ..) = StreamLog::open(&self.dir, options).await?;
        *self.log.borrow_mut() = Some(log.clone());
        self.created.notify();
        Ok(log)
    }

    /// The copy, if there is one.
    pub fn log(&self) -> Option<StreamLog> {
        self.log.borrow().clone()
    }

    /// Ends when there is one.
    pub async fn exists(&self) -> StreamLog {
        self.created.wait(|| self.log()).await
    }

    /// The last seq that is durable in it.
    pub fn durable_seq(&self) -> u64 {
        self.log().map_or(0, |log| log.durable_seq())
    }

    /// Ends when more than `seq` is durable in it; never, once it has failed: whoever appends to it hears why.
    pub async fn durable_beyond(&self, seq: u64) {
        if self.exists().await.wait_durable(seq + 1).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What a receiver starts from.
    pub fn mirrored(&self) -> link::Mirror {
        self.log().map_or_else(link::Mirror::default, |log| {
            log.with(|l| link::Mirror {
                log_uuid: Some(l.log_uuid()),
                durable: l.durable_seq(),
                chain: l.durable_chain(),
                term: l.term(),
            })
        })
    }
}

fn refused(why: &stream::Error) -> Refused {
    match why {
        stream::Error::Refused(log::Refused::Full) | stream::Error::NoRoom { .. } => Refused::Full,
        stream::Error::Refused(log::Refused::Busy) => Refused::Busy,
        other => Refused::Failed(Bytes::from(other.to_string())),
    }
}

fn elsewhere(shard: Shard) -> Answer {
    failed(&format!("shard {shard} lives on another log core: router and log disagree about their number"))
}

fn failed(why: &str) -> Answer {
    Answer::Refused(Refused::Failed(Bytes::copy_from_slice(why.as_bytes())))
}
