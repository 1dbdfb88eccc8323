//! A copy of another zone's log: takes its batches in order, waits for room, and says when what it took is lost.
//!
//! ```text
//! Receiver ──take──▶ queue ──write──▶ log (durable)        a link's end changes nothing of this
//! ```
//!
//! What the receiver has accepted is either on its way here or the mirror has *broken off*: then the next connection begins with
//! a new receiver, from what is durable.

use super::seed::settle;
use super::signal::Signal;
use super::stream::{self, Durable, Kind, StreamLog};
use crate::link::{self, Receiver, Stop};
use crate::seed::Plan;
use crate::{Batch, log};
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::MapEpoch;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How soon a mirror that is busy, or not settled, is looked at again if nothing became durable.
const LOOK: Duration = Duration::from_millis(10);
/// How soon one that had no room is tried again.
const ROOM_LOOK: Duration = Duration::from_millis(500);
/// Connections that are ended for what came on them are told at most so often.
pub(super) const FAULTS_TOLD_US: u64 = 10_000_000;

/// It exists from the first HELLO on, which names the incarnation that it is a copy of.
pub(super) struct Mirror {
    dir: PathBuf,
    options: stream::Options,
    log: RefCell<Option<StreamLog>>,
    created: Signal,
    opening: Cell<bool>,
    closed: Cell<bool>,
    /// Batches that wait to be written; bounded by the receiver's credit.
    queue: RefCell<VecDeque<(u128, Batch)>>,
    queued: Signal,
    /// How often it broke off.
    breaks: Cell<u64>,
    /// The receiver outlives its connections, but not a break.
    receiver: RefCell<Option<(u64, Rc<RefCell<Receiver>>)>>,
    connections: Cell<u64>,
    /// Every zone has the origin's log up to here, as the origin says.
    everywhere: Cell<u64>,
    /// A snapshot is being taken: the link is held off.
    held_off: Cell<bool>,
    /// It is about to be replaced: whoever feeds from it leaves it alone.
    paused: Cell<bool>,
    feeding: Cell<bool>,
    /// Why the origin's link could not go on, last.
    stopped: Cell<Option<Stop>>,
    /// Connections of the origin's that this side ended, although the link may go on; and when that was told last.
    faults: Cell<(u64, Option<u64>)>,
    /// The map at which the other survivors were last asked for what they have of it.
    completed: Cell<MapEpoch>,
}

impl Mirror {
    /// Opens the copy in `dir`, if there is one.
    pub async fn open(dir: PathBuf, options: stream::Options) -> Result<Mirror, stream::Error> {
        let log = match StreamLog::open(&dir, stream::Options { kind: Kind::Mirror(None), ..options }).await {
            Ok((log, ..)) => Some(log),
            Err(stream::Error::NoMirror(_)) => None,
            Err(e) => return Err(e),
        };
        Ok(Mirror {
            dir,
            options,
            log: RefCell::new(log),
            created: Signal::default(),
            opening: Cell::new(false),
            closed: Cell::new(false),
            queue: RefCell::default(),
            queued: Signal::default(),
            breaks: Cell::new(0),
            receiver: RefCell::default(),
            connections: Cell::new(0),
            everywhere: Cell::new(0),
            held_off: Cell::new(false),
            paused: Cell::new(false),
            feeding: Cell::new(false),
            stopped: Cell::new(None),
            faults: Cell::new((0, None)),
            completed: Cell::new(MapEpoch(0)),
        })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The copy, if there is one.
    pub fn log(&self) -> Option<StreamLog> {
        self.log.borrow().clone()
    }

    /// Ends when there is one that stays.
    pub async fn exists(&self) -> StreamLog {
        self.created.wait(|| if self.paused.get() { None } else { self.log() }).await
    }

    /// Holds the link off, or lets it begin again.
    pub fn hold_off(&self, held_off: bool) {
        self.held_off.set(held_off);
        self.connect(); // whoever is connected is not the newest any more
        self.forget_receiver();
        self.queued.notify();
    }

    /// Is the link held off?
    pub fn is_held_off(&self) -> bool {
        self.held_off.get()
    }

    /// Ends when all that was taken is durable, or, with `false`, after `patience`.
    pub async fn settled(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.taken_seq() > self.durable_seq() && Instant::now() < until {
            sleep(LOOK).await;
        }
        self.taken_seq() == self.durable_seq()
    }

    /// Ends when nobody feeds from it; nobody does until `go_on`, or until it has been replaced.
    pub async fn pause(&self) {
        self.paused.set(true);
        self.created.notify();
        self.created.wait(|| (!self.feeding.get()).then_some(())).await;
    }

    /// It stays as it is.
    pub fn go_on(&self) {
        self.paused.set(false);
        self.created.notify();
    }

    /// Is it to be left alone?
    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// Ends when it is to be left alone.
    pub async fn paused(&self) {
        self.created.wait(|| self.paused.get().then_some(())).await;
    }

    /// Somebody feeds from it, or does not any more.
    pub fn on_feeding(&self, feeding: bool) {
        self.feeding.set(feeding);
        self.created.notify();
    }

    /// Why the origin's link could not go on, last; `None`: it did.
    pub fn stopped(&self) -> Option<Stop> {
        self.stopped.get()
    }

    /// The origin's link cannot go on, or does.
    pub fn on_stopped(&self, stop: Option<Stop>) {
        self.stopped.set(stop);
    }

    /// A connection was ended for what came on it. Returns how many were so far, if it is time to tell it.
    pub fn on_fault(&self, now_us: u64) -> Option<u64> {
        let (count, told_us) = (self.faults.get().0 + 1, self.faults.get().1);
        let tells = told_us.is_none_or(|at| now_us >= at + FAULTS_TOLD_US);
        self.faults.set((count, if tells { Some(now_us) } else { told_us }));
        tells.then_some(count)
    }

    /// Puts what was prepared in its place; it is what `plan` says, durably committed in the store. Returns the plan that is to be recorded.
    ///
    /// Precondition: it is paused, and nothing is queued.
    pub async fn replace(&self, plan: Plan) -> Result<Option<Plan>, String> {
        self.opening.set(true);
        let done = self.put_in_place(plan).await;
        self.opening.set(false);
        self.stopped.set(None);
        self.go_on();
        done
    }

    async fn put_in_place(&self, plan: Plan) -> Result<Option<Plan>, String> {
        let old = self.log.take();
        if let Some(old) = old {
            let _ = old.close().await; // one that failed goes as well
        }
        let dir = self.dir.clone();
        let settled = glommio::executor().spawn_blocking(move || settle(&dir, plan.seq)).await;
        let left = settled.map_err(|e| e.to_string())?;
        let (mut options, kind) = (self.options, Kind::Mirror(Some(plan.log_uuid)));
        options.floor.applied = plan.seq;
        let opened = StreamLog::open(&self.dir, stream::Options { kind, ..options }).await;
        let (log, ..) = opened.map_err(|e| e.to_string())?;
        self.log.replace(Some(log));
        Ok(left)
    }

    /// The last seq that is durable in it.
    pub fn durable_seq(&self) -> u64 {
        self.log().map_or(0, |log| log.durable_seq())
    }

    /// The last seq that was taken, durable or not.
    pub fn taken_seq(&self) -> u64 {
        let queued = self.queue.borrow().back().map(|(_, batch)| batch.last_seq());
        queued.unwrap_or_else(|| self.log().map_or(0, |log| log.with(|l| l.next_seq() - 1)))
    }

    /// Ends when more than `seq` is durable in it; never, once it has failed: `write` tells.
    pub async fn durable_beyond(&self, seq: u64) {
        if self.exists().await.wait_durable(seq + 1).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What every zone has of this log, as far as its origin has said.
    pub fn everywhere(&self) -> u64 {
        self.everywhere.get()
    }

    /// The origin says what every zone has.
    pub fn on_everywhere(&self, seq: u64) {
        self.everywhere.set(self.everywhere.get().max(seq));
    }

    /// How often what was taken was lost.
    pub fn breaks(&self) -> u64 {
        self.breaks.get()
    }

    /// A new connection: its number. Only the newest one uses the receiver.
    pub fn connect(&self) -> u64 {
        self.connections.set(self.connections.get() + 1);
        self.connections.get()
    }

    /// The number of the newest connection.
    pub fn connection(&self) -> u64 {
        self.connections.get()
    }

    /// The receiver of this log; a new one if there is none, or after a break, once everything that was taken is settled.
    pub async fn receiver(&self, new: impl FnOnce(link::Mirror) -> Receiver) -> Rc<RefCell<Receiver>> {
        if let Some((breaks, receiver)) = &*self.receiver.borrow()
            && *breaks == self.breaks.get()
        {
            return receiver.clone();
        }
        while self.taken_seq() > self.durable_seq() {
            or(self.durable_beyond(self.durable_seq()), async { sleep(LOOK).await }).await;
        }
        let receiver = Rc::new(RefCell::new(new(self.mirrored())));
        *self.receiver.borrow_mut() = Some((self.breaks.get(), receiver.clone()));
        receiver
    }

    /// The next connection gets a new receiver, which judges anew.
    pub fn forget_receiver(&self) {
        self.receiver.take();
    }

    /// Does the origin's loss keep DATA out? In force from this moment on, before any report.
    pub fn freeze(&self, frozen: bool) {
        if let Some((_, receiver)) = &*self.receiver.borrow() {
            receiver.borrow_mut().on_frozen(frozen);
        }
    }

    /// Is the origin there?
    pub fn is_live(&self) -> bool {
        self.receiver.borrow().as_ref().is_some_and(|(_, receiver)| receiver.borrow().live().is_some())
    }

    /// The map at which the other survivors were last asked for what they have of it.
    pub fn completed(&self) -> MapEpoch {
        self.completed.get()
    }

    /// They were asked, since this map.
    pub fn on_completed(&self, since: MapEpoch) {
        self.completed.set(since);
    }

    /// Takes the next batch of the incarnation `log_uuid`.
    pub fn take(&self, log_uuid: u128, batch: Batch) {
        self.queue.borrow_mut().push_back((log_uuid, batch));
        self.queued.notify();
    }

    /// Writes what was taken, for ever; ends when the log has failed for good.
    pub async fn write(&self) -> stream::Error {
        let mut newest: Option<Durable> = None;
        loop {
            let queued = self.queued.wait(|| self.queue.borrow().front().cloned());
            let lost = async {
                match newest.as_mut() {
                    Some(durable) => durable.await.err(),
                    None => std::future::pending().await,
                }
            };
            let next = or(async { Ok(queued.await) }, async { Err(lost.await) }).await;
            let done = match next {
                Ok((log_uuid, batch)) => self.append(log_uuid, batch).await.map(Some),
                Err(None) => Ok(None),
                Err(Some(why)) => Err(why),
            };
            match done {
                Ok(durable) => newest = durable,
                Err(why @ (stream::Error::Stopped { .. } | stream::Error::Refused(log::Refused::Closed))) => {
                    return why;
                }
                Err(why) => {
                    tracing::error!("{}: {why}; the link begins again from what is durable", self.dir.display());
                    (newest, _) = (None, self.queue.borrow_mut().clear());
                    self.breaks.set(self.breaks.get() + 1);
                    self.queued.notify();
                }
            }
        }
    }

    /// Closes it, if it is there; one that is being made is closed when it is.
    pub async fn close(&self) -> Result<(), stream::Error> {
        self.closed.set(true);
        self.created.wait(|| (!self.opening.get()).then_some(())).await;
        match self.log() {
            Some(log) => log.close().await,
            None => Ok(()),
        }
    }

    /// Ends when it breaks off again.
    pub async fn breaks_beyond(&self, breaks: u64) {
        self.queued.wait(|| (self.breaks.get() > breaks).then_some(())).await;
    }

    /// Appends the first of the queue; waits while too much waits for the disk, or there is no room: the sender has no more credit
    /// then, and keeps what follows.
    async fn append(&self, log_uuid: u128, batch: Batch) -> Result<Durable, stream::Error> {
        let log = self.of(log_uuid).await?;
        let mut is_full = false;
        loop {
            match log.begin_append_batch(batch.clone()) {
                Err(stream::Error::Refused(log::Refused::Busy)) => {
                    let more = async { drop(log.wait_durable(log.durable_seq() + 1).await) };
                    or(more, async { sleep(LOOK).await }).await;
                }
                Err(why @ stream::Error::Refused(log::Refused::Full)) => {
                    if !is_full {
                        tracing::error!("{}: {why}; what was received waits in memory", self.dir.display());
                    }
                    is_full = true;
                    sleep(ROOM_LOOK).await;
                }
                Ok(durable) => {
                    if is_full {
                        tracing::info!("{}: there is room again", self.dir.display());
                    }
                    self.queue.borrow_mut().pop_front();
                    return Ok(durable);
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// The copy; made now if it is not there yet.
    async fn of(&self, log_uuid: u128) -> Result<StreamLog, stream::Error> {
        if let Some(log) = self.log() {
            return Ok(log);
        }
        if self.closed.get() {
            return Err(log::Refused::Closed.into());
        }
        let options = stream::Options { kind: Kind::Mirror(Some(log_uuid)), ..self.options };
        self.opening.set(true);
        let opened = StreamLog::open(&self.dir, options).await;
        self.opening.set(false);
        let opened = opened.map(|(log, ..)| *self.log.borrow_mut() = Some(log));
        self.created.notify();
        opened.map(|()| self.log().expect("it was just opened"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Origin;
    use crate::open::Floor;
    use crate::{Hlc, Record};
    use glommio::{LocalExecutorBuilder, Placement};
    use shardmap::Zone;

    #[test]
    fn a_backlog_of_small_batches_waits_for_the_disk_and_is_not_refused() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = dir.join(format!("../target/mirror-{}/0", std::process::id()));
        let above = dir.parent().unwrap().to_owned();
        let work = move || async move {
            let (zone, floor) = (Zone(1), Floor { applied: 0, peers: 0 });
            let kind = Kind::Mirror(None);
            let scrub = stream::Scrub::NEVER;
            let options = stream::Options { zone, stream: 0, kind, segment_bytes: 16 << 20, floor, scrub };
            let mirror = Rc::new(Mirror::open(dir, options).await.unwrap());
            let origin = Origin { stream: 0, zone, term: 1, log_uuid_lo: 7 };
            // A block each: more than may wait for the disk, though all of it is far less than a link's credit.
            let (count, mut chain) = (crate::limits::PENDING_BYTES_MAX as u64 / 4096 + 1000, 0);
            for seq in 1..=count {
                let batch = Batch::build(&origin, seq, chain, 0, &[Record::marker(Hlc(seq))]);
                chain = batch.chain;
                mirror.take(7, batch);
            }
            assert_eq!((mirror.taken_seq(), mirror.durable_seq()), (count, 0));
            let writer = mirror.clone();
            glommio::spawn_local(async move { writer.write().await }).detach();
            let mut durable = 0;
            while durable < count && mirror.breaks() == 0 {
                or(mirror.durable_beyond(durable), mirror.breaks_beyond(0)).await;
                durable = mirror.durable_seq();
            }
            assert_eq!((mirror.taken_seq(), durable, mirror.breaks()), (count, count, 0));
            // A batch that does not follow breaks it off; what is durable stays.
            mirror.take(7, Batch::build(&origin, count + 5, chain, 0, &[Record::marker(Hlc(count + 5))]));
            mirror.breaks_beyond(0).await;
            assert_eq!((mirror.taken_seq(), mirror.durable_seq()), (count, count));
            mirror.close().await.unwrap();
        };
        let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20).spawn(work).unwrap();
        executor.join().unwrap();
        std::fs::remove_dir_all(above).unwrap();
    }
}
