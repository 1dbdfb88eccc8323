//! `ezone gzs`: the Global Zone Service as a program. It opens the store, lets nodes and people in, and hands out each map once it is stored.

mod auth;
mod desk;
mod elect;
mod etcd;
mod pages;
mod tls;

use super::maps::from_file;
use super::notify;
use super::signals::{Asked, Signals};
use super::visit::Visitors;
use super::{Failed, data_dir, runtime};
use crate::config::{GzsConfig, StoreAt, file};
use auth::Callers;
use desk::{Desk, Issued};
use elect::Candidate;
use gzs::api::AuditView;
use gzs::change::{Held, Unstored};
use gzs::store::Store;
use gzs::store::etcd::Etcd;
use gzs::store::sqlite::Sqlite;
use shardmap::map::Map;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;

/// A map that is adopted, whole.
const MAP_BYTES_MAX: u64 = 64 << 20;
/// How long etcd may take to answer.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// Nodes and people at once: each node keeps two connections.
const VISITORS_MAX: usize = 8192;

/// Runs the service until it is asked to stop; `adopt`: a map file of a node, from which it goes on.
pub fn run(config: &GzsConfig, adopt: Option<&Path>, stop_with_stdin: bool) -> Result<(), Failed> {
    let mut store: Box<dyn Store + Send> = match &config.store {
        StoreAt::Dir(dir) => {
            data_dir(dir)?;
            Box::new(Sqlite::open(&dir.join("gzs.db")).map_err(unstored)?)
        }
        StoreAt::Etcd(at) => {
            let http = etcd::Http::new(at, STORE_PATIENCE).map_err(Failed::Input)?;
            let mut etcd = Etcd::new(http, &at.prefix);
            answers(&mut etcd)?;
            Box::new(etcd)
        }
    };
    if let Some(file) = adopt {
        take_up(file, &mut store)?;
    }
    let held = begin(config, &mut store)?;
    let callers = Callers::read(&config.tokens).map_err(Failed::Input)?;
    let alone = matches!(config.store, StoreAt::Dir(_));
    let (desk, keeper) = Desk::new(held, store, config.settings.clone(), callers, alone).map_err(unstored)?;
    let standing = match &config.store {
        StoreAt::Dir(_) => None,
        StoreAt::Etcd(at) => Some(Candidate::new(at).map_err(Failed::Input)?),
    };
    let (kept, stop) = (desk.clone(), Arc::new(AtomicBool::new(false)));
    let threads = Threads { keeper: move || keeper.run(&kept), standing, stop };
    runtime()?.block_on(serve(config, &desk, threads, stop_with_stdin))
}

fn unstored(why: Unstored) -> Failed {
    match why {
        Unstored::Foreign(why) => Failed::Input(why),
        Unstored::Failed(why) => Failed::Fault(why),
        Unstored::Overtaken { .. } => Failed::Fault(why.to_string()),
    }
}

/// Ends when it does: hosts come up in any order.
fn answers(etcd: &mut impl Store) -> Result<(), Failed> {
    let mut told = false;
    loop {
        match etcd.audit(u64::MAX - 1, 1) {
            Err(Unstored::Failed(why)) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!("waiting: {why}");
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            asked => return asked.map(drop).map_err(unstored),
        }
    }
}

/// An empty store gets the configuration's map; one that holds a map goes on with that, whatever the file says.
fn begin(config: &GzsConfig, store: &mut impl Store) -> Result<Held, Failed> {
    if let Some(held) = store.load().map_err(unstored)? {
        tracing::info!("the store holds map {}", held.map.epoch());
        return Ok(held);
    }
    let map = from_file(&config.map).map_err(Failed::Input)?;
    match store.adopt(&map, &audit(&map, format!("the first map: {}", config.map.display()))) {
        Err(Unstored::Overtaken { holds, .. }) => tracing::info!("another service began with {holds}"),
        stored => stored.map_err(unstored)?,
    }
    store.load().map_err(unstored)?.ok_or_else(|| Failed::Fault("the store is empty again".into()))
}

fn take_up(path: &Path, store: &mut impl Store) -> Result<(), Failed> {
    let wrong = |e: String| Failed::Input(format!("--adopt {}: {e}", path.display()));
    let bytes = file::read(path, MAP_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
    let map =
        Map::decode(&bytes).map_err(|e| wrong(format!("{e}; expected a node's DATA_DIR/log.map or router.map")))?;
    store.adopt(&map, &audit(&map, format!("adopted from {}", path.display()))).map_err(|e| wrong(e.to_string()))?;
    tracing::warn!("map {} of {} is the map now", map.epoch(), path.display());
    Ok(())
}

fn audit(map: &Map, why: String) -> AuditView {
    AuditView { epoch: map.epoch().0, at_ms: super::wall_ms(), by: "ezone gzs".into(), why, op: None, changes: vec![] }
}

/// What waits for stores, and so runs beside the pages; begun once the address is ours.
struct Threads<K> {
    keeper: K,
    standing: Option<Candidate>,
    stop: Arc<AtomicBool>,
}

impl<K: FnOnce() + Send + 'static> Threads<K> {
    fn begin(self, desk: &Arc<Desk>) -> Result<Vec<JoinHandle<()>>, Failed> {
        let mut threads = vec![thread("store", self.keeper)?];
        if let Some(candidate) = self.standing {
            let desk = desk.clone();
            threads.push(thread("election", move || candidate.run(&self.stop, &*desk))?);
        }
        Ok(threads)
    }
}

async fn serve<K: FnOnce() + Send + 'static>(
    config: &GzsConfig,
    desk: &Arc<Desk>,
    threads: Threads<K>,
    stop_with_stdin: bool,
) -> Result<(), Failed> {
    let mut signals = Signals::new(stop_with_stdin)?;
    let shown_tls = config.tls.as_ref().map(tls::Shown::read).transpose().map_err(Failed::Input)?;
    let at = config.listen;
    let listener = TcpListener::bind(at).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("[gzs] listen = {at}: another process listens there (`ss -ltnp` names it)")
        }
        _ => format!("[gzs] listen = {at}: {e}"),
    })?;
    let stop = threads.stop.clone();
    let threads = threads.begin(desk)?;
    tracing::info!(
        "map {}: on {at} ({}, {})",
        desk.newest().map.epoch(),
        if shown_tls.is_some() { "TLS" } else { "plain" },
        if config.tokens.is_empty() { "everybody may do everything" } else { "by tokens" }
    );
    notify::tell(notify::READY);
    let visitors = Visitors::many(listener, VISITORS_MAX);
    let pages = pages::pages(desk.clone());
    match &shown_tls {
        Some(shown) => {
            let visitors = tls::Shaken::of(visitors, shown.clone()).map_err(|e| e.to_string())?;
            tokio::spawn(async move { axum::serve(visitors, pages).await });
        }
        None => drop(tokio::spawn(async move { axum::serve(visitors, pages).await })),
    }
    loop {
        match signals.next().await {
            Asked::Stop => break,
            Asked::Reload => {
                match Callers::read(&config.tokens) {
                    Ok(callers) => desk.admit(callers),
                    Err(why) => tracing::error!("tokens are as they were: {why}"),
                }
                if let (Some(shown), Some(files)) = (&shown_tls, &config.tls)
                    && let Err(why) = shown.renew(files)
                {
                    tracing::error!("the certificate is as it was: {why}");
                }
            }
            Asked::Upgrade => {
                tracing::info!(
                    "this service is upgraded by stopping it and starting the new program: nodes go on meanwhile"
                );
            }
        }
    }
    notify::tell(notify::STOPPING);
    // A leader that is stopped lets another one lead at once.
    stop.store(true, Relaxed);
    desk.stop();
    for thread in threads {
        thread.join().map_err(|_| Failed::Fault("a thread of the service has panicked".into()))?;
    }
    Ok(())
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failed> {
    let made = std::thread::Builder::new().name(name.into()).spawn(run);
    made.map_err(|e| Failed::Fault(format!("a thread \"{name}\": {e}")))
}

/// The bytes of a map, as answers.
impl Issued {
    fn new(map: Arc<Map>) -> Issued {
        let (whole, small) = (map.encode().into(), map.encode_without_fences().into());
        Issued { map, whole, small }
    }
}
