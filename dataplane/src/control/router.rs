//! `ezone router`: control of a node's router. Maps in, status and metrics out; the cores do the rest.

use super::access;
use super::admin::{self, Shown};
use super::assemble::{self, Live};
use super::maps::{self, Kept, News};
use super::{Failed, asked_to_stop, data_dir, runtime};
use crate::config::{self, Config};
use crate::router::{Routes, Settings, Shared, Side};
use crate::uring::{self, Control, Listener, Waker};
use shardmap::map::Map;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// How long cores may take to finish what they serve when the router stops.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Runs the router until it is asked to stop or a core fails.
pub fn run(config: &Config, stop_with_stdin: bool) -> Result<(), Failed> {
    let Some(router) = &config.router else { return Err(Failed::Input("this configuration has no [router]".into())) };
    uring::check().map_err(|e| e.to_string())?;
    data_dir(&config.node.data_dir)?;
    runtime()?.block_on(serve(config, router, stop_with_stdin))
}

async fn serve(config: &Config, router: &config::Router, stop_with_stdin: bool) -> Result<(), Failed> {
    let admin = match router.admin {
        Some(at) => Some(TcpListener::bind(at).await.map_err(|e| taken("admin", at, &e))?),
        None => None,
    };
    let listeners = listeners(router)?;
    let kept = Kept::open(config.node.data_dir.join("router.map"))?;
    let (news, mut newer) = mpsc::unbounded_channel();
    // From here on: without a map this waits for ever, and must hear all the same that it is to end.
    let stop = asked_to_stop(stop_with_stdin);
    tokio::pin!(stop);
    let first = tokio::select! {
        first = maps::first(&config.map, &kept, news, &mut newer) => first?,
        stopped = &mut stop => return Ok(stopped?),
    };
    let mut live = Live::new(router.cores.len());
    let settings = Arc::new(assemble::settings(config, router, &first, &mut live).map_err(Failed::Input)?);
    let shared = Arc::new(Shared::new(router.cores.len()));
    let (control, wakers) = uring::control(shared.clone()).map_err(|e| format!("waking the cores: {e}"))?;
    hand(&control, &first);
    let start = |log| access::Writer::start(log, &shared).map_err(Failed::Input);
    let access = config.access_log.as_ref().map(start).transpose()?;
    let (ended, mut end) = mpsc::unbounded_channel();
    let cores = start_cores(router, &settings, listeners, wakers, &shared, &ended)?;
    tracing::info!("zone {}: routing on {:?}, map {}", settings.name(settings.zone), router.listen, first.epoch());
    let shown = Shown {
        zone: settings.name(settings.zone).to_owned(),
        shared,
        access: access.as_ref().map(|a| a.figures().clone()),
    };
    if let Some(admin) = admin {
        tokio::spawn(async move { axum::serve(admin, admin::pages(shown)).await });
    }
    loop {
        tokio::select! {
            stopped = &mut stop => {
                stopped?;
                control.stop();
                return Ok(drained(cores).await?);
            }
            Some(why) = end.recv() => return Err(Failed::Fault(why)),
            Some(news) = newer.recv() => match news {
                News::Map(map) => hand(&control, &map),
                News::Reached(_) => {}
            },
        }
    }
}

fn hand(control: &Control, map: &Arc<Map>) {
    let routes: Arc<dyn Routes> = map.clone();
    control.set_map(&routes);
}

/// One set of listeners for each core, sharing its ports with the others.
fn listeners(router: &config::Router) -> Result<Vec<Vec<Listener>>, String> {
    let all = [("listen", &router.listen, Side::Client), ("peer_listen", &router.peer_listen, Side::Peer)];
    for (key, addresses, _) in &all {
        for at in *addresses {
            // A port that cores share could also be shared with a stranger: one plain bind tells whether anyone is there.
            std::net::TcpListener::bind(at).map_err(|e| taken(key, *at, &e))?;
        }
    }
    let one_core = || {
        let each = all.iter().flat_map(|(key, addresses, side)| addresses.iter().map(move |at| (key, *at, *side)));
        each.map(|(key, at, side)| uring::listen(at, side).map_err(|e| taken(key, at, &e))).collect()
    };
    router.cores.iter().map(|_| one_core()).collect()
}

fn start_cores(
    router: &config::Router,
    settings: &Arc<Settings>,
    listeners: Vec<Vec<Listener>>,
    wakers: Vec<Waker>,
    shared: &Arc<Shared>,
    ended: &mpsc::UnboundedSender<String>,
) -> Result<Vec<JoinHandle<()>>, String> {
    let mut threads = vec![];
    for (number, (listeners, waker)) in listeners.into_iter().zip(wakers).enumerate() {
        let (settings, shared, ended) = (settings.clone(), shared.clone(), ended.clone());
        let pinned = core_affinity::CoreId { id: router.cores[number] };
        let body = move || {
            if !core_affinity::set_for_current(pinned) {
                tracing::warn!("router core {number} cannot be pinned to core {}: it runs where it may", pinned.id);
            }
            if let Err(e) = uring::run(number, settings, listeners, waker, shared) {
                let _ = ended.send(format!("router core {number}: {e}"));
            }
        };
        let thread = std::thread::Builder::new().name(format!("router-{number}")).spawn(body);
        threads.push(thread.map_err(|e| format!("router core {number}: {e}"))?);
    }
    Ok(threads)
}

/// Waits until every core has finished what it was serving.
async fn drained(cores: Vec<JoinHandle<()>>) -> Result<(), String> {
    let deadline = Instant::now() + DRAIN_MAX;
    while !cores.iter().all(JoinHandle::is_finished) {
        if Instant::now() > deadline {
            return Err(format!("connections were still served {} s after the stop", DRAIN_MAX.as_secs()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn taken(key: &str, at: SocketAddr, e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("[router] {key} = {at}: another process listens there (`ss -ltnp` names it)")
        }
        _ => format!("[router] {key} = {at}: {e}"),
    }
}
