//! One log core: its streams, their gate and log, the mirrors of other zones; takes maps and reports positions.
//!
//! Everything here runs on one executor, so state is shared by `Rc` and never locked. A task never holds a `RefCell` over an
//! await. `asks` answers routers, `feed` hands logs to the keeper.

use super::keeper::{Applied, Job, Reported};
use super::line::LineFigures;
use super::mirror::Mirror;
use super::node::{Options, Peer, Told};
use super::scans::Scans;
use super::seed::Hold;
use super::signal::{Budget, Signal};
use super::stream::{self, Durable, StreamLog};
use super::{now, now_ms};
use crate::gate::Gate;
use crate::hearers::Hearers;
use crate::lease::Lease;
use crate::link;
use crate::log;
use crate::owners::stream_of;
use crate::record::Record;
use crate::seed::Plan;
use crate::watch::Watches;
use bytes::Bytes;
use futures_channel::mpsc::UnboundedSender;
use futures_channel::oneshot;
use glommio::timer::sleep;
use shardmap::map::Map;
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// How long a keeper that ended has to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How soon room for a FENCE is looked for again.
const FENCE_RETRY: Duration = Duration::from_millis(100);

/// One log core.
pub(super) struct Core {
    pub options: Arc<Options>,
    pub streams: Vec<Rc<Stream>>,
    /// The newest map that is stored and acted on.
    pub map: RefCell<Arc<Map>>,
    /// There is a newer map, or the core stops.
    pub map_changed: Signal,
    /// The newest map that the GZS has named since this start.
    pub gzs: Cell<Option<MapEpoch>>,
    /// How many leases have come.
    pub leases: Cell<u64>,
    /// Or the map has changed.
    pub leases_changed: Signal,
    pub stopping: Cell<bool>,
    /// A store of this core has no room: nothing is applied, and no row can be told.
    pub store_full: Cell<bool>,
    /// The volume is tight, and nothing may be let go, since a shard is on its way.
    pub holds_back: Cell<bool>,
    /// How many asks have come.
    pub asked: Cell<u64>,
    /// Writes that may wait for another zone at once.
    pub confirming: Rc<Budget>,
    /// Readers of changes that may wait at once.
    pub readers: Rc<Budget>,
    /// Routers that tell how this zone stands to its shards.
    pub hearers: RefCell<Hearers>,
    /// One has told, or is gone.
    pub heard: Signal,
    /// What this zone may do with some shard has changed.
    pub stands_changed: Signal,
    /// How many routers have connected: their numbers.
    pub routers: Cell<u64>,
    pub jobs: Sender<Job>,
    /// Why the log can no longer keep its promises; the first one ends the core.
    pub faults: UnboundedSender<String>,
    pub tell: Box<dyn Fn(Told)>,
}

/// One stream of this zone, and its namesakes of the others.
pub(super) struct Stream {
    pub zone: Zone,
    pub number: u32,
    pub term: u64,
    pub log: StreamLog,
    /// Shards of which a FENCE is decided and not durable: of how many.
    pub fencing: RefCell<BTreeMap<Shard, u32>>,
    pub gate: RefCell<Gate>,
    pub mirrors: BTreeMap<Zone, Mirror>,
    /// For each zone's log: what is applied, or up to where it is in the keeper's hands. Never less than what a reader can have
    /// seen, and exact while nothing is under way.
    pub fed: RefCell<Positions>,
    /// For each zone's log: up to where it is applied.
    pub applied: RefCell<Positions>,
    /// The same, but for what is parked and what follows it: a cut never goes below this, so it is this that others are told.
    pub settled: RefCell<Positions>,
    /// The same, as far as no power cut takes it back: what lets segments go.
    pub kept: RefCell<Positions>,
    /// Of `applied` or `settled`.
    pub applied_changed: Signal,
    pub links: RefCell<BTreeMap<Zone, Link>>,
    /// A link has heard of its peer.
    pub links_changed: Signal,
    /// What nobody will want of the own log: every peer has it applied, and no cut below it can come.
    pub everywhere: Cell<u64>,
    /// What the own log keeps for peers that are being seeded.
    pub holds: RefCell<BTreeMap<Zone, Hold>>,
    /// How many snapshots of the own log have been lent: whoever waits in a gap tries again. `applied_changed` tells.
    pub seeded: Cell<u64>,
    /// Mirrors that a snapshot has given, whose gap is still to be recorded.
    pub unrecorded: RefCell<Vec<Plan>>,
    /// Scans under way, or of which the rest is not kept.
    pub scans: RefCell<Scans>,
    pub scans_changed: Signal,
    /// Rows that are being looked up, while the log goes on.
    pub watches: RefCell<Watches>,
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
    /// How the line is used.
    pub line: LineFigures,
}

impl Stream {
    /// The own log, and each mirror that there is.
    pub fn logs(&self) -> impl Iterator<Item = (Zone, StreamLog)> {
        let mirrors = self.mirrors.iter().filter_map(|(zone, mirror)| Some((*zone, mirror.log()?)));
        std::iter::once((self.zone, self.log.clone())).chain(mirrors)
    }
}

impl Core {
    /// The stream of `shard`, if this core has it.
    pub fn stream_of(&self, shard: Shard) -> Option<&Rc<Stream>> {
        let number = stream_of(shard, self.options.streams);
        self.streams.iter().find(|s| s.number == number)
    }

    /// The stream with this number, if this core has it.
    pub fn numbered(&self, number: u32) -> Result<&Rc<Stream>, String> {
        let none = || format!("stream {number} is not this core's");
        self.streams.iter().find(|s| s.number == number).ok_or_else(none)
    }

    /// A number that changes while there is something to do.
    pub fn activity(&self) -> u64 {
        let of = |s: &Rc<Stream>| {
            let fed: u64 = s.fed.borrow().iter().map(|(_, seq)| seq).sum();
            let taken: u64 = s.mirrors.values().map(Mirror::taken_seq).sum();
            fed + taken + s.log.with(|l| l.next_seq())
        };
        self.asked.get() + self.streams.iter().map(of).sum::<u64>()
    }

    /// Sends the keeper a job; `None`: it is gone, which ends the process.
    pub async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Option<T> {
        let (done, answer) = oneshot::channel();
        let answered = match self.jobs.send(job(done)) {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        if answered.is_none() {
            sleep(LAST_WORDS).await; // the keeper says why it ended; whoever asked here knows less
        }
        answered
    }

    /// A newer map: stored, then acted on. The FENCEs that it asks for are appended before anything else is.
    pub async fn on_map(self: &Rc<Self>, map: Arc<Map>) -> Result<(), String> {
        if map.epoch() <= self.epoch() {
            return Ok(());
        }
        let (sent, bytes) = (map.clone(), Bytes::from(map.encode()));
        let stored = self.ask(|done| Job::Map { map: sent, bytes, done }).await;
        let scans = stored.ok_or("the keeper is gone")?;
        // From here to the end nothing is awaited: no write, no DATA and no report can come between.
        *self.map.borrow_mut() = map.clone();
        for stream in &self.streams {
            let fed = stream.fed.borrow().clone();
            let due = stream.gate.borrow_mut().on_map(map.clone(), &fed, now_ms()).map_err(|e| e.to_string())?;
            self.fence(stream, due);
            if let Some(epoch) = self.gzs.get() {
                stream.gate.borrow_mut().on_gzs(epoch);
            }
            for (zone, mirror) in &stream.mirrors {
                mirror.freeze(self.is_lost(stream.number, *zone));
            }
        }
        for (stream, number, all) in scans {
            if let Some(stream) = self.streams.iter().find(|s| s.number == stream) {
                stream.scans.borrow_mut().on_all(number, &all);
                stream.scans_changed.notify();
            }
        }
        self.stands_change();
        self.map_changed.notify();
        self.leases_changed.notify();
        Ok(())
    }

    /// Appends FENCEs, the first time at once. They bar writes from the moment they were decided, so that they may wait for room.
    fn fence(self: &Rc<Self>, stream: &Rc<Stream>, due: Vec<Record>) {
        if !due.is_empty() {
            let begun = stream.log.begin_append(due.clone());
            let (core, stream) = (self.clone(), stream.clone());
            let shards: Vec<Shard> = due.iter().map(|r| r.shard).collect();
            stream.fencing(&shards);
            glommio::spawn_local(async move {
                let done = stream.fenced(due, begun).await;
                if done.is_ok() {
                    stream.fences_durable(&shards);
                    core.stands_change();
                }
                core.watch(done);
            })
            .detach();
        }
    }

    /// The epoch of the map that this core goes by.
    pub fn epoch(&self) -> MapEpoch {
        self.map.borrow().epoch()
    }

    /// Ends when there is a map beyond `epoch`, or when the core stops.
    pub async fn map_beyond(&self, epoch: MapEpoch) {
        self.map_changed.wait(|| (self.stopping.get() || self.epoch() > epoch).then_some(())).await;
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

    /// How many shards are on their way to another owner, or lost without a new one?
    pub fn unsettled(&self) -> u64 {
        self.map.borrow().unsettled().count() as u64
    }

    /// Says something to control.
    pub fn tell(&self, what: Told) {
        (self.tell)(what);
    }

    /// A task of this core is done; a failure ends the core, unless that is what it is doing.
    pub fn watch(&self, done: Result<(), String>) {
        if let Err(why) = done
            && !self.stopping.get()
        {
            let _ = self.faults.unbounded_send(why); // the first one ended the core
        }
    }

    /// Ends the core when `log` has failed for good: nothing more would be acknowledged, or mirrored.
    pub async fn watch_log(&self, log: StreamLog, what: &str) {
        if let Err(why @ stream::Error::Stopped { .. }) = log.wait_durable(u64::MAX).await {
            self.watch(Err(format!("{what}: {why}")));
        }
    }

    /// The GZS has answered that `epoch` is its newest; that map may still be on its way through the keeper.
    pub fn on_gzs(&self, epoch: MapEpoch) {
        self.gzs.set(self.gzs.get().max(Some(epoch)));
        let mut opened = false;
        for stream in &self.streams {
            let was = stream.gate.borrow().is_read_only();
            stream.gate.borrow_mut().on_gzs(epoch);
            opened |= was && !stream.gate.borrow().is_read_only();
        }
        if opened {
            self.stands_change();
        }
    }

    /// Leases of global services were granted: those of this core's count from now on.
    pub fn on_leases(&self, leases: &[Lease]) {
        let mut gained = false;
        for lease in leases {
            let Some(stream) = self.stream_of(lease.shard) else { continue };
            let writes = || stream.gate.borrow().writes(lease.shard, now());
            let before = writes();
            stream.gate.borrow_mut().on_lease(*lease);
            gained |= before != writes();
            self.leases.set(self.leases.get() + 1);
        }
        if gained {
            self.stands_change();
        }
        self.leases_changed.notify();
    }

    /// What the map's writer wants to know of `shards`: an answer for each that this core has.
    pub async fn report(&self, shards: &[Shard], take_over: bool) -> Vec<Reported> {
        let mut all = vec![];
        for stream in &self.streams {
            let own = shards.iter().copied().filter(|s| stream_of(*s, self.options.streams) == stream.number);
            let (asked, not): (Vec<Shard>, Vec<Shard>) =
                own.partition(|s| !take_over || self.has_all_of_lost(stream, *s));
            all.extend(not.into_iter().map(|shard| Reported { shard, fence_seq: None, applied: None }));
            if !asked.is_empty() {
                let number = stream.number;
                let reported = self.ask(|done| Job::Report { stream: number, shards: asked, take_over, done }).await;
                all.extend(reported.unwrap_or_default());
            }
        }
        all
    }

    /// Has this zone, which takes writes, applied all that it has taken of the lost owner's log, and that the other survivors have of it? (It
    /// takes no more from its owner: `freeze`.)
    fn has_all_of_lost(&self, stream: &Stream, shard: Shard) -> bool {
        let map = self.map.borrow();
        let Some(view) = map.history(shard).map(|h| h.view()) else { return false };
        let Some((zone, mirror)) = view.lost.and_then(|(zone, _)| Some((zone, stream.mirrors.get(&zone)?))) else {
            return false;
        };
        // With two zones there is nobody to ask.
        let asked = self.options.peers.len() == 1 || mirror.completed() >= view.epoch;
        asked && !stream.gate.borrow().is_read_only() && stream.applied_seq(zone) >= mirror.taken_seq()
    }
}

impl Stream {
    /// Ends when FENCEs, or a gap's record, whose append was begun are durable. Without room they wait; each time they get a new HLC, since other
    /// shards' records may have been appended meanwhile.
    pub async fn fenced(
        &self,
        mut due: Vec<Record>,
        mut begun: Result<(u64, Durable), stream::Error>,
    ) -> Result<(), String> {
        loop {
            let done = match begun {
                Ok((_, durable)) => durable.await.map(drop),
                Err(why) => Err(why),
            };
            match done {
                Ok(()) => return Ok(()),
                Err(stream::Error::Refused(log::Refused::Full | log::Refused::Busy)) => {}
                Err(why) => {
                    return Err(format!("stream {}: a FENCE or a gap's record cannot be appended: {why}", self.number));
                }
            }
            sleep(FENCE_RETRY).await;
            for fence in &mut due {
                fence.hlc = self.gate.borrow_mut().tick(now_ms());
            }
            begun = self.log.begin_append(due.clone());
        }
    }

    /// What every peer has applied of the own log, as far as they have said since this start; `None`: there is no peer.
    pub fn applied_by_all(&self, peers: &[Peer]) -> Option<u64> {
        let links = self.links.borrow();
        peers.iter().map(|p| links.get(&p.zone).map_or(0, |l| l.applied_seq)).min()
    }

    pub fn fed_seq(&self, zone: Zone) -> u64 {
        self.fed.borrow().get(zone).unwrap_or(0)
    }

    pub fn applied_seq(&self, zone: Zone) -> u64 {
        self.applied.borrow().get(zone).unwrap_or(0)
    }

    pub fn settled_seq(&self, zone: Zone) -> u64 {
        self.settled.borrow().get(zone).unwrap_or(0)
    }

    pub fn kept_seq(&self, zone: Zone) -> u64 {
        self.kept.borrow().get(zone).unwrap_or(0)
    }

    /// The piece of `zone`'s log that ends with `seq` is about to be handed to the keeper.
    pub fn on_fed(&self, zone: Zone, seq: u64) {
        let above = self.fed_seq(zone).max(seq);
        self.fed.borrow_mut().set(zone, above);
        self.applied_changed.notify();
    }

    /// The keeper has answered; nothing of `zone`'s log is in its hands.
    pub fn on_applied(&self, zone: Zone, done: &Applied) {
        self.applied.borrow_mut().set(zone, done.seq);
        self.settled.borrow_mut().set(zone, done.settled);
        self.fed.borrow_mut().set(zone, done.seq);
        self.scans.borrow_mut().on_one(done.number, zone, done.scan);
        self.applied_changed.notify();
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
