//! Where everybody who comes meets the service. What changes it goes, one after the other, through the **keeper**, a thread that owns the
//! store: each change is stored before anyone hears of it, and nobody who only looks waits for a disk, or for etcd.

use super::auth::Callers;
use super::elect::Hears;
use axum::body::Bytes;
use gzs::api::AuditView;
use gzs::change::{Change, Held, Unstored};
use gzs::op::End;
use gzs::service::{Refused, Service, Settings};
use gzs::store::Store;
use gzs::store::etcd::Who;
use replog::uring::steady_ms;
use shardmap::map::Map;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Changes that a new leader shows from the start.
const AUDIT_SHOWN: u64 = 20;
/// How often the keeper looks though nobody woke it.
const LOOK: Duration = Duration::from_millis(100);

/// The service, and what is handed out.
pub struct Desk {
    inner: Mutex<Inner>,
    keeper: Sender<Work>,
    /// The keeper was woken and has not looked yet: once is enough.
    woken: AtomicBool,
    callers: Mutex<Callers>,
    maps: watch::Sender<Arc<Issued>>,
    leader: watch::Sender<Leader>,
    /// What the election said last.
    election: Mutex<Option<Elected>>,
    /// By the steady clock: what may have ended is no leadership, whether the election was heard of or not.
    leads_until_ms: AtomicU64,
    clock: Clock,
    /// What was counted since the start.
    pub counts: Counts,
}

/// Who leads, of the services that share a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leader {
    /// This one: all that comes is answered here.
    Here,
    /// Another one, if one is known.
    Elsewhere(Option<Who>),
}

/// How the election stands for this service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elected {
    /// It leads, with this token.
    This(i64),
    /// Another one does, or nobody.
    Other(Option<Who>),
}

type Make = Box<dyn FnOnce(&Service, u64) -> Result<Change, Refused> + Send>;

/// What the keeper is asked for.
enum Work {
    /// Something has happened: is there a change to store?
    Look,
    /// Likewise, and someone waits until that is done.
    Settle(oneshot::Sender<()>),
    /// A change that a person asked for; the operation's number.
    Change(Make, oneshot::Sender<Result<u64, Denied>>),
    Audit {
        after: u64,
        max: usize,
        found: oneshot::Sender<Result<Vec<AuditView>, Unstored>>,
    },
    Elected(Elected),
    Stop,
}

/// A map as it is handed out: encoded once, however many ask.
pub struct Issued {
    /// It.
    pub map: Arc<Map>,
    /// Its bytes.
    pub whole: Bytes,
    /// For those who have its fences.
    pub small: Bytes,
}

/// What was counted since the start.
#[derive(Default)]
pub struct Counts {
    /// Tellings of nodes that were taken.
    pub told: AtomicU64,
    /// Requests that were refused: unknown callers, roles, nonsense.
    pub refused: AtomicU64,
    /// Maps that were handed out.
    pub maps: AtomicU64,
    /// Changes that the store could not take.
    pub unstored: AtomicU64,
}

struct Inner {
    service: Service,
    /// The first epoch of this process's with the fences of today: who has a map since then has them.
    fences_since: u64,
}

/// Milliseconds since 1970 that never jump: this machine's clock at the start, and what has passed since, in which the machine may have slept.
struct Clock {
    begun_ms: u64,
    steady_ms: u64,
}

impl Clock {
    fn now_ms(&self) -> u64 {
        self.begun_ms + steady_ms().saturating_sub(self.steady_ms)
    }
}

/// What a keeper is made of.
pub struct Keeper {
    store: Box<dyn Store + Send>,
    settings: Settings,
    asked: Receiver<Work>,
    /// It was said that the store fails.
    told: bool,
}

impl Desk {
    /// Goes on from what the store holds; the keeper is to be run by a thread of its own. `alone`: no other service shares the store.
    pub fn new(
        held: Held,
        mut store: Box<dyn Store + Send>,
        settings: Settings,
        callers: Callers,
        alone: bool,
    ) -> Result<(Arc<Desk>, Keeper), Unstored> {
        let clock = Clock { begun_ms: super::super::wall_ms(), steady_ms: steady_ms() };
        let fences_since = held.map.epoch().0;
        let service = begun(held, &mut store, &settings, clock.now_ms())?;
        let (maps, _) = watch::channel(Arc::new(Issued::new(service.map().clone())));
        let (leader, _) = watch::channel(if alone { Leader::Here } else { Leader::Elsewhere(None) });
        let (keeper, asked) = channel();
        let inner = Mutex::new(Inner { service, fences_since });
        let callers = Mutex::new(callers);
        let woken = AtomicBool::new(false);
        let (election, counts) = (Mutex::new(None), Counts::default());
        let leads_until_ms = AtomicU64::new(if alone { u64::MAX } else { 0 });
        let desk = Desk { inner, keeper, woken, callers, maps, leader, election, leads_until_ms, clock, counts };
        Ok((Arc::new(desk), Keeper { store, settings, asked, told: false }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no one panics while holding it")
    }

    /// Who may come in.
    pub fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().expect("no one panics while holding it")
    }

    /// Others may come in from now on.
    pub fn admit(&self, callers: Callers) {
        *self.callers() = callers;
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The newest map.
    pub fn newest(&self) -> Arc<Issued> {
        self.maps.borrow().clone()
    }

    /// Hears of each newer map.
    pub fn maps(&self) -> watch::Receiver<Arc<Issued>> {
        self.maps.subscribe()
    }

    /// Who leads, and each change of that.
    pub fn leader(&self) -> watch::Receiver<Leader> {
        self.leader.subscribe()
    }

    /// Who waits for a newer map.
    pub fn subscribers(&self) -> u64 {
        self.maps.receiver_count() as u64
    }

    /// Something with the service; the keeper looks at once what follows from it.
    pub fn with<T>(&self, what: impl FnOnce(&mut Service, u64) -> T) -> T {
        let done = what(&mut self.inner().service, self.now_ms());
        if !self.woken.swap(true, Relaxed) {
            self.ask(Work::Look);
        }
        done
    }

    /// Looks at the service, and changes nothing.
    pub fn see<T>(&self, what: impl FnOnce(&Service, u64) -> T) -> T {
        what(&self.inner().service, self.now_ms())
    }

    /// Ends when everything that follows from what was said so far is stored.
    pub async fn settled(&self) {
        let (done, ended) = oneshot::channel();
        self.ask(Work::Settle(done));
        drop(ended.await); // a keeper that is gone has nothing to store
    }

    /// A change that someone asks for: stored and in force, or why not.
    pub async fn change<T>(
        &self,
        make: impl FnOnce(&Service, u64) -> Result<Change, Refused> + Send + 'static,
        then: impl FnOnce(&Service, u64) -> T,
    ) -> Result<T, Denied> {
        let (done, stored) = oneshot::channel();
        self.ask(Work::Change(Box::new(make), done));
        let op = stored.await.map_err(|_| Denied::Store("the service is ending".into()))??;
        Ok(then(&self.inner().service, op))
    }

    /// Changes after an epoch.
    pub async fn audit(&self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored> {
        let (found, all) = oneshot::channel();
        self.ask(Work::Audit { after, max, found });
        all.await.map_err(|_| Unstored::Failed("the service is ending".into()))?
    }

    /// Does this service lead, now?
    pub fn leads(&self) -> bool {
        *self.leader.borrow() == Leader::Here && steady_ms() < self.leads_until_ms.load(Relaxed)
    }

    /// The keeper ends.
    pub fn stop(&self) {
        self.ask(Work::Stop);
    }

    fn ask(&self, work: Work) {
        drop(self.keeper.send(work)); // it has ended: whoever waits hears that
    }

    fn led_by(&self, leader: Leader) {
        self.leader.send_if_modified(|before| {
            let other = *before != leader;
            *before = leader;
            other
        });
    }

    /// The newest map's bytes for someone who has map `after` of that digest.
    pub fn bytes(&self, issued: &Issued, after: u64, knows: bool) -> Bytes {
        let has_fences = knows && after >= self.inner().fences_since;
        if has_fences { issued.small.clone() } else { issued.whole.clone() }
    }

    fn issue(&self, inner: &mut Inner, before: &Map) {
        let map = inner.service.map();
        if map.epoch() == before.epoch() {
            return;
        }
        if map.fences_digest() != before.fences_digest() {
            inner.fences_since = map.epoch().0;
        }
        self.maps.send_replace(Arc::new(Issued::new(map.clone())));
    }
}

impl Hears for Desk {
    fn elected(&self, how: Elected) {
        *self.election.lock().expect("no one panics while holding it") = Some(how.clone());
        // What is no leader any more says so at once, whatever the keeper is at.
        if let Elected::Other(who) = &how {
            self.led_by(Leader::Elsewhere(who.clone()));
        }
        self.ask(Work::Elected(how));
    }

    fn leads_until(&self, steady_ms: u64) {
        self.leads_until_ms.store(steady_ms, Relaxed);
    }
}

fn begun(held: Held, store: &mut impl Store, settings: &Settings, now_ms: u64) -> Result<Service, Unstored> {
    let from = held.map.epoch().0.saturating_sub(AUDIT_SHOWN);
    let shown = store.audit(from, AUDIT_SHOWN as usize)?;
    Ok(Service::new(held, shown, settings.clone(), now_ms))
}

impl Keeper {
    /// Keeps until it is told to stop.
    pub fn run(mut self, desk: &Desk) {
        let mut leads = *desk.leader.borrow() == Leader::Here;
        // Elected, and not led yet.
        let mut token = None;
        loop {
            if let Some(won) = token
                && self.lead(desk, won)
            {
                (leads, token) = (true, None);
            }
            if leads {
                self.drain(desk);
            }
            let due = desk.inner().service.deadline_ms(desk.now_ms()).saturating_sub(desk.now_ms());
            let work = match self.asked.recv_timeout(Duration::from_millis(due).min(LOOK)) {
                Ok(work) => work,
                Err(RecvTimeoutError::Timeout) => Work::Look,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            desk.woken.store(false, Relaxed);
            match work {
                Work::Look => {}
                Work::Settle(done) => {
                    if leads {
                        self.drain(desk);
                    }
                    let _ = done.send(()); // nobody waits any more
                }
                Work::Change(make, done) => {
                    let stored = if leads { self.make(desk, make) } else { Err(Denied::Standby) };
                    drop(done.send(stored)); // nobody waits any more: it is in the audit
                }
                Work::Audit { after, max, found } => drop(found.send(self.store.audit(after, max))), // likewise
                Work::Elected(Elected::This(won)) => (leads, token) = (false, Some(won)),
                Work::Elected(Elected::Other(who)) => {
                    (leads, token) = (false, None);
                    // Said before, and perhaps unsaid meanwhile by an election that was heard of earlier.
                    desk.led_by(Leader::Elsewhere(who));
                }
                Work::Stop => return,
            }
        }
    }

    /// Comes to lead; false: it has to be tried again.
    fn lead(&mut self, desk: &Desk, token: i64) -> bool {
        self.store.lead(token);
        match self.take_over(desk) {
            Ok(()) => {
                let epoch = desk.newest().map.epoch();
                tracing::info!("this service leads now, elected at revision {token}, with map {epoch}");
                self.told = false;
                // Unless something else was heard of meanwhile, which is next.
                let newest = desk.election.lock().expect("no one panics while holding it");
                if *newest == Some(Elected::This(token)) {
                    desk.led_by(Leader::Here);
                }
                true
            }
            Err(why) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::error!("elected, and the store cannot be read: {why}; tried again");
                }
                false
            }
        }
    }

    /// Begins anew from what the store holds: what the leader before knew of nodes is not known here.
    fn take_over(&mut self, desk: &Desk) -> Result<(), Unstored> {
        let held = self.store.load()?.ok_or_else(empty)?;
        let service = begun(held, &mut self.store, &self.settings, desk.now_ms())?;
        let mut inner = desk.inner();
        let before = std::mem::replace(&mut inner.service, service).map().clone();
        desk.issue(&mut inner, &before);
        // Fences that were changed and changed back meanwhile are not known here.
        inner.fences_since = inner.service.map().epoch().0;
        Ok(())
    }

    fn make(&mut self, desk: &Desk, make: Make) -> Result<u64, Denied> {
        self.drain(desk);
        let change = make(&desk.inner().service, desk.now_ms()).map_err(Denied::Refused)?;
        let op = change.op.clone();
        if let Err(e) = self.store(desk, change) {
            // Its answer may have been lost, and not what was asked for.
            let stored =
                self.reload(desk).is_ok() && op.as_ref().is_some_and(|op| desk.inner().service.op(op.id) == Some(op));
            if !stored {
                return Err(Denied::Store(e.to_string()));
            }
        }
        self.drain(desk);
        Ok(op.map_or(0, |op| op.id))
    }

    fn drain(&mut self, desk: &Desk) {
        if desk.inner().service.wants_reload() && self.reload(desk).is_err() {
            return;
        }
        // Where the store is slow, grants are due again as soon as they are stored: others want something of this thread, too.
        let mut granted = false;
        loop {
            let next = desk.inner().service.next_change(desk.now_ms());
            let Some(change) = next.filter(|change| !(granted && change.is_grants_alone())) else { return };
            granted |= change.is_grants_alone();
            match self.store(desk, change) {
                Ok(()) => self.told = false,
                Err(Unstored::Overtaken { .. }) => return,
                Err(e) => {
                    if !std::mem::replace(&mut self.told, true) {
                        tracing::error!("a change cannot be stored, and is tried again until it is: {e}");
                    }
                    return;
                }
            }
        }
    }

    fn store(&mut self, desk: &Desk, change: Change) -> Result<(), Unstored> {
        if let Err(e) = self.store.commit(&change) {
            desk.counts.unstored.fetch_add(1, Relaxed);
            if let Unstored::Overtaken { .. } = &e {
                tracing::warn!("{e}");
                self.reload(desk)?;
            }
            return Err(e);
        }
        tell(&change);
        let mut inner = desk.inner();
        let before = inner.service.map().clone();
        inner.service.on_stored(change);
        desk.issue(&mut inner, &before);
        Ok(())
    }

    fn reload(&mut self, desk: &Desk) -> Result<(), Unstored> {
        let held = self.store.load()?.ok_or_else(empty)?;
        let mut inner = desk.inner();
        let before = inner.service.map().clone();
        inner.service.reload(held);
        desk.issue(&mut inner, &before);
        if let Some(why) = inner.service.stopped() {
            tracing::error!("{why}");
        }
        Ok(())
    }
}

fn empty() -> Unstored {
    Unstored::Failed("the store is empty".into())
}

/// Why a change did not take place.
#[derive(Debug)]
pub enum Denied {
    /// By the rules, or the preflight.
    Refused(Refused),
    /// By the store.
    Store(String),
    /// Another service leads.
    Standby,
}

/// Each change of the map is said once, where the service runs.
fn tell(change: &Change) {
    if let Some(audit) = &change.audit {
        let (n, first) = (audit.changes.len(), audit.changes.first().map_or("", String::as_str));
        tracing::info!(
            "map {}, by {}: {}: {n} changes: {first}{}",
            audit.epoch,
            audit.by,
            audit.why,
            if n > 1 { ", .." } else { "" }
        );
    }
    if let Some((op, (_, end))) = change.op.as_ref().and_then(|op| Some((op, op.ended?))) {
        let how = match end {
            End::Done => "is done",
            End::Aborted => "was aborted",
            End::GaveUp => "gave up",
        };
        let because = if op.because.is_empty() { String::new() } else { format!(": {}", op.because) };
        tracing::info!("operation {} {how}{because}", op.id);
    }
}
