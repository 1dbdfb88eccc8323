//! Where everybody who comes meets the service: one after the other, each change stored before anyone hears of it.

use super::auth::Callers;
use axum::body::Bytes;
use gzs::api::AuditView;
use gzs::change::{Change, Held, Unstored};
use gzs::service::{Refused, Service, Settings};
use gzs::store::Store;
use gzs::store::sqlite::Sqlite;
use shardmap::map::Map;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The service, its store, and what is handed out.
pub struct Desk {
    inner: Mutex<Inner>,
    callers: Mutex<Callers>,
    maps: watch::Sender<Arc<Issued>>,
    wake: Notify,
    clock: Clock,
    /// What was counted since the start.
    pub counts: Counts,
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
    store: Sqlite,
    /// The first epoch of this process's with the fences of today: who has a map since then has them.
    fences_since: u64,
    /// It was said that the store fails.
    told: bool,
}

/// Milliseconds since 1970 that never jump: this machine's clock at the start, and what has passed since.
struct Clock(u64, Instant);

impl Clock {
    fn now_ms(&self) -> u64 {
        self.0 + self.1.elapsed().as_millis() as u64
    }
}

impl Desk {
    /// Goes on from what the store holds.
    pub fn new(held: Held, audit: Vec<AuditView>, store: Sqlite, settings: Settings, callers: Callers) -> Desk {
        let clock = Clock(super::super::wall_ms(), Instant::now());
        let fences_since = held.map.epoch().0;
        let service = Service::new(held, audit, settings, clock.now_ms());
        let (maps, _) = watch::channel(Arc::new(Issued::new(service.map().clone())));
        Desk {
            inner: Mutex::new(Inner { service, store, fences_since, told: false }),
            callers: Mutex::new(callers),
            maps,
            wake: Notify::new(),
            clock,
            counts: Counts::default(),
        }
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

    /// Who waits for a newer map.
    pub fn subscribers(&self) -> u64 {
        self.maps.receiver_count() as u64
    }

    /// Ends when there is something to do.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Something with the service; what follows from it is done at once.
    pub fn with<T>(&self, what: impl FnOnce(&mut Service, u64) -> T) -> T {
        let mut inner = self.inner();
        let done = what(&mut inner.service, self.now_ms());
        self.drain(&mut inner);
        done
    }

    /// A change that someone asked for: stored and in force, or why not.
    pub fn change<T>(
        &self,
        make: impl FnOnce(&Service, u64) -> Result<Change, Refused>,
        then: impl FnOnce(&Service, u64) -> T,
    ) -> Result<T, Denied> {
        let mut inner = self.inner();
        self.drain(&mut inner);
        let change = make(&inner.service, self.now_ms()).map_err(Denied::Refused)?;
        let op = change.op.as_ref().map_or(0, |op| op.id);
        self.store(&mut inner, change).map_err(|e| Denied::Store(e.to_string()))?;
        self.drain(&mut inner);
        Ok(then(&inner.service, op))
    }

    /// Does what is due; how long until the next.
    pub fn step(&self) -> Duration {
        let mut inner = self.inner();
        self.drain(&mut inner);
        let now = self.now_ms();
        Duration::from_millis(inner.service.deadline_ms(now).saturating_sub(now))
    }

    /// Changes after an epoch.
    pub fn audit(&self, after: u64, max: usize) -> Result<Vec<AuditView>, Unstored> {
        self.inner().store.audit(after, max)
    }

    /// The newest map's bytes for someone who has map `after` of that digest.
    pub fn bytes(&self, issued: &Issued, after: u64, knows: bool) -> Bytes {
        let has_fences = knows && after >= self.inner().fences_since;
        if has_fences { issued.small.clone() } else { issued.whole.clone() }
    }

    fn drain(&self, inner: &mut Inner) {
        if inner.service.wants_reload() && self.reload(inner).is_err() {
            return;
        }
        while let Some(change) = inner.service.next_change(self.now_ms()) {
            match self.store(inner, change) {
                Ok(()) => inner.told = false,
                Err(Unstored::Overtaken { .. }) => return,
                Err(e) => {
                    if !std::mem::replace(&mut inner.told, true) {
                        tracing::error!("a change cannot be stored, and is tried again until it is: {e}");
                    }
                    return;
                }
            }
        }
    }

    fn store(&self, inner: &mut Inner, change: Change) -> Result<(), Unstored> {
        if let Err(e) = inner.store.commit(&change) {
            self.counts.unstored.fetch_add(1, Relaxed);
            if let Unstored::Overtaken { .. } = &e {
                tracing::warn!("{e}");
                self.reload(inner)?;
            }
            return Err(e);
        }
        tell(&change);
        let before = inner.service.map().clone();
        inner.service.on_stored(change);
        self.issue(inner, &before);
        self.wake.notify_one();
        Ok(())
    }

    fn reload(&self, inner: &mut Inner) -> Result<(), Unstored> {
        let Some(held) = inner.store.load()? else { return Err(Unstored::Failed("the store is empty".into())) };
        let before = inner.service.map().clone();
        inner.service.reload(held);
        self.issue(inner, &before);
        if let Some(why) = inner.service.stopped() {
            tracing::error!("{why}");
        }
        Ok(())
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

/// Why a change did not take place.
#[derive(Debug)]
pub enum Denied {
    /// By the rules, or the preflight.
    Refused(Refused),
    /// By the store.
    Store(String),
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
    if let Some(op) = change.op.as_ref().filter(|op| !op.is_running()) {
        tracing::info!("operation {} has ended: {:?} {}", op.id, op.ended.map(|(_, end)| end), op.because);
    }
}
