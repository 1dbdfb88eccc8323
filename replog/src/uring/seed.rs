//! Seeding: an origin lends a snapshot of what it has applied of its own log, a peer in a gap takes it, by an operator's word.
//!
//! ```text
//! operator ─▶ peer: thread `seed-s`                                  origin: thread `lend-s`
//!               core: Begin (the link is held off)
//!               ── ASK ─▶ ◀─ HELD: is it a gap?
//!               ── SEED ───────────────────────────────────────────▶  a read transaction; core: Hold (segments stay)
//!               ◀────────────── PARTs, into a file, until END ──────
//!               store's thread: Merge, part by part (BEATs go out)      holds on until this connection ends, then a little longer
//!               core: Finish (`place`)                               core: Unhold; the link is tried again at once
//! ```
//!
//! Both threads are started by control, not by a core, so that they run where control may run; the cores only answer them.

mod lend;
mod place;
mod take;

pub(super) use lend::lend;
use place::spool;
pub(super) use place::{record_left, settle};
pub(super) use take::{origin_copy, take};

use super::core::{Core, Stream};
use super::keeper::Job;
use super::node;
use super::stream::StreamLog;
use crate::apply::{Seed, Unseeded};
use crate::seed::Plan;
use crate::store::Scan;
use crate::{Hlc, link};
use futures_channel::mpsc::UnboundedSender;
use futures_channel::oneshot;
use futures_lite::future::block_on;
use shardmap::{MapEpoch, Zone};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Snapshots that one node lends, or takes, at the same time.
const SEEDS_MAX: usize = 2;
/// Neither side waits longer for the other's next bytes, or for it to take some.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// The origin keeps what follows a snapshot this much longer than the connection that it went over: the link begins meanwhile.
const HOLD_AFTER: Duration = Duration::from_secs(600);
/// How long an origin may take to have applied what a peer has already, and to end what stands in the way.
const READY_WAIT: Duration = Duration::from_secs(10);

/// Lent or taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// To another zone.
    Lent,
    /// From another zone.
    Taken,
}

/// One seeding, the newest of its kind, stream and zone.
#[derive(Clone, Debug, Default)]
pub struct SeedFigures {
    /// What it is doing, or how it ended.
    pub state: String,
    /// Is it under way?
    pub is_running: bool,
    /// Rows so far.
    pub rows: u64,
    /// Bytes so far.
    pub bytes: u64,
    /// How many ended well since the start.
    pub done: u64,
    /// How many failed.
    pub failed: u64,
}

/// By way, zone and stream.
type All = BTreeMap<(Way, Zone, u32), SeedFigures>;

/// The seedings of a node; clones share them.
#[derive(Clone, Default)]
pub(super) struct Seeds {
    all: Arc<Mutex<All>>,
    stopping: Arc<AtomicBool>,
}

impl Seeds {
    /// Begins one; it counts until its `Running` is dropped.
    pub fn begin(&self, way: Way, zone: Zone, stream: u32) -> Result<Running, String> {
        let mut all = self.lock();
        let same = |(w, s): &(&(Way, Zone, u32), &SeedFigures)| w.0 == way && s.is_running;
        if all.iter().filter(same).count() >= SEEDS_MAX {
            return Err(format!("{SEEDS_MAX} snapshots are under way at this node already: wait until one is done"));
        }
        let figures = all.entry((way, zone, stream)).or_default();
        if figures.is_running {
            return Err("a snapshot of this stream is under way already".into());
        }
        let (done, failed) = (figures.done, figures.failed);
        *figures =
            SeedFigures { state: "seeding: it begins".into(), is_running: true, done, failed, ..Default::default() };
        Ok(Running { seeds: self.clone(), key: (way, zone, stream) })
    }

    /// What there is of a stream.
    pub fn of(&self, way: Way, stream: u32) -> BTreeMap<Zone, SeedFigures> {
        let all = self.lock();
        all.iter().filter(|((w, _, s), _)| (*w, *s) == (way, stream)).map(|((_, z, _), f)| (*z, f.clone())).collect()
    }

    /// The node stops: whoever is at it gives up at the next part.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().expect("no one panics while holding it")
    }
}

/// One seeding that is under way.
pub(super) struct Running {
    seeds: Seeds,
    key: (Way, Zone, u32),
}

impl Running {
    /// Says how far it is; an error if the node stops.
    pub fn progress(&self, what: &str, rows: u64, bytes: u64) -> Result<(), String> {
        self.with(|f| {
            f.state = format!("seeding: {what}: {rows} rows, {} MB", bytes / 1_000_000);
            (f.rows, f.bytes) = (rows, bytes);
        });
        if self.seeds.is_stopping() { Err("the node stops".into()) } else { Ok(()) }
    }

    /// It has ended.
    pub fn end(self, outcome: &Result<String, String>) {
        self.with(|f| {
            f.is_running = false;
            match outcome {
                Ok(text) => (f.done, f.state) = (f.done + 1, text.clone()),
                Err(why) => (f.failed, f.state) = (f.failed + 1, format!("seeding failed: {why}")),
            }
        });
    }

    fn with(&self, change: impl FnOnce(&mut SeedFigures)) {
        change(self.seeds.lock().entry(self.key).or_default());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let panicked = |f: &mut SeedFigures| {
            f.failed += 1;
            f.state = "seeding failed: its thread panicked; the message is in the log".into();
        };
        self.with(|f| {
            if std::mem::take(&mut f.is_running) {
                panicked(f)
            }
        });
    }
}

/// What both threads need of the node.
#[derive(Clone)]
pub(super) struct Party {
    pub options: Arc<node::Options>,
    pub seeds: Seeds,
    pub core: UnboundedSender<node::Command>,
}

impl Party {
    /// Asks the core, and waits; an error if it is gone.
    fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command) -> Result<T, String> {
        let (done, answer) = oneshot::channel();
        let gone = || "the log core is gone".to_owned();
        self.core.unbounded_send(node::Command::Seed(command(done))).map_err(|_| gone())?;
        block_on(answer).unwrap_or_else(|_| Err(gone()))
    }

    /// Tells the core; one that is gone need not know.
    fn tell(&self, command: Command) {
        let _ = self.core.unbounded_send(node::Command::Seed(command));
    }
}

/// What the threads ask of a core.
pub(super) enum Command {
    /// Keep what follows `seq` of the own log, the last that a snapshot holds; for `peer`.
    Hold { stream: u32, peer: Zone, seq: u64, scan: Option<Scan>, done: oneshot::Sender<Result<Lent, String>> },
    /// The connection has ended; `sent`: the peer has all of it.
    Unhold { stream: u32, peer: Zone, sent: bool },
    /// Hold the link of `zone`'s log off, and say what there is of it.
    Begin { stream: u32, zone: Zone, done: oneshot::Sender<Result<Begun, String>> },
    /// Rows and ledger are stored: take the mirror's place.
    Finish { plan: Plan, seed: Seed, newest: Hlc, done: oneshot::Sender<Result<(), String>> },
    /// It is over, well or not: the link may begin.
    Over { stream: u32, zone: Zone },
}

/// Which log a snapshot is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    log_uuid: u128,
    term: u64,
    seq: u64,
    chain: u32,
}

/// What a peer has of a log before it is seeded.
pub(super) struct Begun {
    mirror: link::Mirror,
    first_kept: u64,
    applied: u64,
    scan: Option<Scan>,
    map_epoch: MapEpoch,
    dir: PathBuf,
    jobs: Sender<Job>,
}

/// What an own log keeps for a peer that is being seeded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    seq: u64,
    /// Until when, or until the peer has applied this seq; `None`: as long as the snapshot is on its way.
    until: Option<(Instant, u64)>,
}

impl Hold {
    /// The last seq that may go, if it still counts: not once the peer has caught up, or its time is over. A volume that is full
    /// would else take what the peer is just about to ask for.
    pub fn seq(&self, applied: u64, now: Instant) -> Option<u64> {
        match self.until {
            None => Some(self.seq),
            Some((until, target)) => (now < until && applied < target).then_some(self.seq.max(applied)),
        }
    }
}

/// Carries out what a thread asks; whoever asked may be gone.
pub(super) async fn carry_out(core: &Rc<Core>, command: Command) {
    match command {
        Command::Hold { stream, peer, seq, scan, done } => {
            let lent = match core.numbered(stream) {
                Ok(stream) => hold(core, stream, peer, seq, scan).await,
                Err(why) => Err(why),
            };
            let _ = done.send(lent);
        }
        Command::Unhold { stream, peer, sent } => {
            if let Ok(stream) = core.numbered(stream) {
                unhold(stream, peer, sent);
            }
        }
        Command::Begin { stream, zone, done } => {
            let begun = match core.numbered(stream) {
                Ok(stream) => begin(core, stream, zone).await,
                Err(why) => Err(why),
            };
            let _ = done.send(begun);
        }
        Command::Finish { plan, seed, newest, done } => {
            let _ = done.send(place::finish(core, plan, seed, newest).await);
        }
        Command::Over { stream, zone } => {
            let mirror = core.numbered(stream).ok().and_then(|s| s.mirrors.get(&zone));
            mirror.into_iter().for_each(|m| m.hold_off(false));
        }
    }
}

async fn hold(core: &Core, stream: &Stream, peer: Zone, seq: u64, scan: Option<Scan>) -> Result<Lent, String> {
    if scan.is_some_and(|s| s.to >= stream.log.with(|l| l.first_kept())) {
        return Err("the origin's log is being looked through for a new cut: try again in a moment".into());
    }
    let (seq, chain) = end_at(&stream.log, seq).await?;
    // From here on nothing is awaited: what is kept now stays.
    if let Some(shard) = core.map.borrow().unsettled().next() {
        return Err(Unseeded::Unsettled(shard).to_string());
    }
    let (log_uuid, term, kept) = stream.log.with(|l| (l.log_uuid(), l.term(), l.first_kept()));
    if kept > seq + 1 {
        return Err(format!("the origin keeps nothing below seq {kept}, its snapshot ends with {seq}: try again"));
    }
    stream.holds.borrow_mut().insert(peer, Hold { seq, until: None });
    Ok(Lent { log_uuid, term, seq, chain })
}

/// The last batch that ends with `seq` or before it, and the chain there: of a log that has let go all that it had, too.
async fn end_at(log: &StreamLog, seq: u64) -> Result<(u64, u32), String> {
    let (kept, before) = log.with(|l| (l.first_kept(), l.chain_before_kept()));
    if kept == seq + 1 {
        return Ok((seq, before));
    }
    let found = log.read_from(seq, 1).await.map_err(|e| e.to_string())?;
    let batch = found.first().ok_or_else(|| format!("seq {seq} is not durable at the origin"))?;
    Ok(match batch.last_seq() == seq {
        true => (seq, batch.chain),
        false => (batch.first_seq - 1, batch.prev_chain),
    })
}

fn unhold(stream: &Stream, peer: Zone, sent: bool) {
    let mut holds = stream.holds.borrow_mut();
    match holds.get_mut(&peer) {
        Some(hold) if sent => hold.until = Some((Instant::now() + HOLD_AFTER, stream.log.durable_seq())),
        Some(_) => drop(holds.remove(&peer)),
        None => {}
    }
    stream.seeded.set(stream.seeded.get() + 1);
    stream.applied_changed.notify();
}

async fn begin(core: &Rc<Core>, stream: &Rc<Stream>, zone: Zone) -> Result<Begun, String> {
    let mirror = stream.mirrors.get(&zone).ok_or_else(|| format!("zone {zone} is not among this node's [zones]"))?;
    let number = stream.number;
    let may = core.ask(|done| Job::MaySeed { stream: number, zone, done }).await;
    let map_epoch = may.ok_or("the keeper is gone")?.map_err(|e| e.to_string())?;
    mirror.hold_off(true);
    if !mirror.settled(READY_WAIT).await {
        mirror.hold_off(false);
        return Err("the mirror has batches that cannot be made durable: see what its log says".into());
    }
    Ok(Begun {
        mirror: mirror.mirrored(),
        first_kept: mirror.log().map_or(0, |log| log.with(|l| l.first_kept())),
        applied: stream.applied_seq(zone),
        scan: stream.scans.borrow().get(zone),
        map_epoch,
        dir: mirror.dir().to_owned(),
        jobs: core.jobs.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_a_snapshot_stays_until_the_peer_has_caught_up_or_its_time_is_over() {
        let now = Instant::now();
        let later = now + HOLD_AFTER;
        let on_its_way = Hold { seq: 50, until: None };
        assert_eq!(on_its_way.seq(90, later), Some(50));
        let sent = Hold { seq: 50, until: Some((later, 80)) };
        assert_eq!([0, 50, 60, 80].map(|applied| sent.seq(applied, now)), [Some(50), Some(50), Some(60), None]);
        assert_eq!(sent.seq(60, later), None);
    }

    #[test]
    fn no_more_than_so_many_snapshots_are_under_way_and_one_that_panics_is_over() {
        let seeds = Seeds::default();
        let one = seeds.begin(Way::Lent, Zone(1), 0).map_err(drop).unwrap();
        assert!(seeds.begin(Way::Lent, Zone(1), 0).is_err_and(|why| why.contains("under way already")));
        let two = seeds.begin(Way::Lent, Zone(2), 0).map_err(drop).unwrap();
        assert!(seeds.begin(Way::Lent, Zone(3), 0).is_err_and(|why| why.contains("2 snapshots")));
        assert!(seeds.begin(Way::Taken, Zone(1), 0).is_ok(), "the other way");
        one.progress("lending", 3, 5_000_000).unwrap();
        assert_eq!(seeds.of(Way::Lent, 0)[&Zone(1)].state, "seeding: lending: 3 rows, 5 MB");
        one.end(&Ok("lent".into()));
        drop(two);
        let (of, seen) = (seeds.of(Way::Lent, 0), |f: &SeedFigures| (f.is_running, f.done, f.failed));
        assert_eq!((seen(&of[&Zone(1)]), seen(&of[&Zone(2)])), ((false, 1, 0), (false, 0, 1)));
        let three = seeds.begin(Way::Lent, Zone(1), 0).map_err(drop).unwrap();
        seeds.stop();
        assert!(three.progress("lending", 0, 0).is_err());
    }
}
