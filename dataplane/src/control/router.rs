//! `ezone router`: control of a node's router. Maps in, status and metrics out; its life from the first listener to the last
//! answer. The cores do the rest.

mod leave;
mod renew;
mod succeed;

use super::access;
use super::admin::{self, Shown};
use super::assemble::{self, Live};
use super::health::Change;
use super::life::{self, Answer, Command, Doing, Life};
use super::listen::{Held, taken};
use super::maps::{self, Kept, News};
use super::names::Told;
use super::probe;
use super::reach::Reach;
use super::reload::{self, Place};
use super::secrets;
use super::signals::{Asked, Signals};
use super::tell::{self, Look};
use super::upgrade::{self, Heirs, Taken};
use super::upstreams::{Drain, Upstreams};
use super::visit::Visitors;
use super::{Failed, agree, data_dir, machine, notify, runtime};
use crate::config::{self, Config};
use crate::router::{Routes, Settings, Shared};
use crate::uring::{self, Control, Listener, Waker};
use gzs::api::{NodeTold, ReportAsk, RouterTold};
use shardmap::map::Map;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};

/// What cores may take beyond the time to drain until their threads have ended.
const END_WAIT: Duration = Duration::from_secs(5);
/// Changes of endpoints that come within so long are made together: settings that are made anew cost each core a moment.
const TOGETHER: Duration = Duration::from_millis(50);
/// How long the admin pages may take to end the answer that they are giving.
const PAGES_WAIT: Duration = Duration::from_secs(1);

/// How it is started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Read again at a reload.
    pub file: &'a Path,
    /// End with standard input.
    pub stop_with_stdin: bool,
    /// Take the listeners over from the router that runs with this data directory, which then ends.
    pub take_over: bool,
}

/// Runs the router until it is asked to stop, a successor has taken over, or a core fails.
pub fn run(config: &Config, start: Start) -> Result<(), Failed> {
    let mut config = config.clone();
    uring::check().map_err(|e| e.to_string())?;
    let _agreed = if config.router.is_some() { agree::on_log_cores(&mut config)? } else { None };
    let Some(router) = &config.router else { return Err(Failed::Input("this configuration has no [router]".into())) };
    data_dir(&config.node.data_dir)?;
    config.layout.warning.iter().for_each(|w| tracing::warn!("{w}"));
    let clients = config.limits.connections_max * router.cores.len() as u64;
    machine::descriptors(2 * clients).into_iter().for_each(|w| tracing::warn!("{w}"));
    let runtime = runtime()?;
    let ended = runtime.block_on(serve(&config, router, start));
    runtime.shutdown_background(); // a resolver that does not answer keeps nobody from ending
    ended
}

async fn serve(config: &Config, router: &config::Router, start: Start<'_>) -> Result<(), Failed> {
    let mut signals = Signals::new(start.stop_with_stdin)?;
    let mut predecessor = if start.take_over { Some(upgrade::take(&config.node.data_dir)?) } else { None };
    let admin = admin_listener(router, predecessor.as_mut())?;
    let wanted = reload::listened(config);
    let inherited = predecessor.as_mut().map(|p| std::mem::take(&mut p.listeners));
    let mut held = Held::default();
    let bound = held.bind(router.cores.len(), &wanted, inherited.unwrap_or_else(|| activated(&wanted)))?;
    let kept = Kept::open(config.node.data_dir.join("router.map"))?;
    let (news, mut newer) = mpsc::unbounded_channel();
    // Without a map this waits for ever, and must hear all the same that it is to end.
    let who = told_by(config);
    let first = tokio::select! {
        first = maps::first(&config.map, &who, &kept, news, &mut newer) => first?,
        () = signals.stop() => return Ok(()),
    };
    let mut live = Live::new(router.cores.len());
    live.resolver.renew(config);
    let missing = tokio::select! {
        missing = live.resolver.learn(config.names(), config.dns.wait_ms_max) => missing,
        () = signals.stop() => return Ok(()),
    };
    missing.iter().for_each(|m| tracing::warn!("{m}: the router starts without it"));
    let settings = Arc::new(assemble::settings(config, router, &first, &mut live).map_err(Failed::Input)?);
    let shared = Arc::new(Shared::new(router.cores.len()));
    let (control, wakers) = uring::control(shared.clone()).map_err(|e| format!("waking the cores: {e}"))?;
    hand(&control, &first);
    let start_log = |log| access::Writer::start(log, &shared).map_err(Failed::Input);
    let access = config.access_log.as_ref().map(start_log).transpose()?;
    let (ended, end) = mpsc::unbounded_channel();
    let cores = start_cores(router, &settings, bound.cores, wakers, &shared, &ended)?;
    let (asking, commands) = mpsc::unbounded_channel();
    let life = Arc::new(Life::new(asking, config.layout.sentence()));
    let zone = settings.name(settings.zone).to_owned();
    tracing::info!("zone {zone}: routing on {:?}, map {}", router.listen, first.epoch());
    let (upstreams, drains) = Upstreams::new(settings.clone());
    let upstreams = upstreams.with_reports(live.prober.reports()).with_names(live.resolver.directory());
    live.prober.renew(probe::plan(config, &settings));
    let shown = Shown {
        zone,
        shared,
        access: access.as_ref().map(|a| a.figures().clone()),
        life: life.clone(),
        upstreams: upstreams.clone(),
    };
    let (newest, maps) = watch::channel(first.epoch().0);
    if let config::MapSource::Gzs(at) = &config.map {
        let reach = Reach::new(at, &who, tell::PATIENCE).map_err(Failed::Input)?;
        let telling = Telling {
            zone: shown.zone.clone(),
            shared: shown.shared.clone(),
            begun_ms: super::wall_ms(),
            newest: maps.clone(),
        };
        tokio::spawn(tell::tell(reach, telling, maps));
    }
    let pages = Pages::start(admin.as_ref(), shown)?;
    close_unwanted(&control, bound.unwanted);
    if let Some(predecessor) = predecessor {
        let let_go = tokio::task::spawn_blocking(|| predecessor.ready()).await;
        if let Err(why) = let_go.unwrap_or_else(|e| Err(e.to_string())) {
            control.hand_over();
            drained(&cores, Duration::from_millis(settings.limits.drain_ms) + END_WAIT).await;
            return Err(Failed::Fault(why));
        }
        tracing::info!("took the listeners over from the router before this one");
    }
    let heirs = Heirs::open(&config.node.data_dir).map_err(|e| format!("where successors ask: {e}"))?;
    life.set(Doing::Serving);
    notify::tell(notify::READY);
    let running = Running {
        file: start.file.to_owned(),
        config: config.clone(),
        map: first,
        newest,
        live,
        upstreams,
        drains,
        control,
        held,
        cores,
        life,
        files: tokio::time::interval(secrets::LOOK_EVERY),
        pages,
        admin,
        _access: access,
        signals,
        commands,
        newer,
        end,
        heirs,
        gave: mpsc::unbounded_channel(),
        giving: false,
        successor: None,
        asks_by: Instant::now(),
    };
    running.run().await
}

/// How the service names this router.
fn told_by(config: &Config) -> String {
    format!("router {} of zone {}", tell::host(), config.node.zone.as_deref().unwrap_or("none"))
}

/// What this router tells the map's writer.
struct Telling {
    zone: String,
    shared: Arc<Shared>,
    begun_ms: u64,
    /// The newest map that was handed to the cores.
    newest: watch::Receiver<u64>,
}

impl Look for Telling {
    async fn look(&self, _: &[ReportAsk]) -> (NodeTold, bool) {
        let c = self.shared.total();
        let router = RouterTold {
            in_flight_unsettled: c.in_flight_moving,
            holding: c.holding,
            held_ms_max: c.held_ms_max,
            requests: c.answered_2xx_3xx + c.answered_4xx + c.answered_5xx,
        };
        let told = NodeTold {
            name: tell::host(),
            zone: self.zone.clone(),
            begun_ms: self.begun_ms,
            map_epoch: c.map_epoch,
            router: Some(router),
            log: None,
        };
        (told, c.in_flight_moving > 0 || c.holding > 0 || c.map_epoch < *self.newest.borrow())
    }
}

fn hand(control: &Control, map: &Arc<Map>) {
    let routes: Arc<dyn Routes> = map.clone();
    control.set_map(&routes);
}

fn admin_listener(router: &config::Router, from: Option<&mut Taken>) -> Result<Option<std::net::TcpListener>, String> {
    let Some(at) = router.admin else { return Ok(None) };
    let inherited = from.and_then(|t| t.admin.take()).filter(|a| a.local_addr().is_ok_and(|own| own == at));
    let listener = inherited.map_or_else(|| std::net::TcpListener::bind(at), Ok).map_err(|e| taken("admin", at, &e))?;
    listener.set_nonblocking(true).map_err(|e| taken("admin", at, &e))?;
    Ok(Some(listener))
}

/// The listeners that systemd opened for this process (sd_listen_fds(3)), as the configuration names them.
fn activated(wanted: &[Place]) -> Vec<Listener> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return vec![];
    }
    let side = |at| wanted.iter().find(|p| p.at == at).map(|p| p.side);
    let mut all = vec![];
    for fd in (3..=i32::MAX).take(number("LISTEN_FDS").unwrap_or(0) as usize) {
        match uring::inherited(fd, side) {
            Ok(listener) => all.push(listener),
            Err(e) => tracing::warn!("descriptor {fd} of LISTEN_FDS is not used: {e}"),
        }
    }
    all
}

/// The cores go by a newer map.
fn adopt(control: &Control, newest: &mut Arc<Map>, news: News) {
    match news {
        News::Map(map) => {
            hand(control, &map);
            *newest = map;
        }
        News::Reached(_) => {}
    }
}

/// What a predecessor listened at and this configuration does not name: accepted until it is empty, then closed.
fn close_unwanted(control: &Control, unwanted: Vec<Listener>) {
    let addresses: Vec<_> = unwanted.iter().filter_map(|l| Some((l.local_addr().ok()?, l.side()))).collect();
    control.listen(0, unwanted);
    addresses.into_iter().for_each(|(at, side)| control.close(at, side));
}

/// The admin pages while they are served.
struct Pages {
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Pages {
    fn start(admin: Option<&std::net::TcpListener>, shown: Shown) -> Result<Option<Pages>, String> {
        let Some(admin) = admin else { return Ok(None) };
        let own = admin.try_clone().and_then(TcpListener::from_std).map_err(|e| format!("admin: {e}"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(async move {
            let until = async move { drop(stopped.await) };
            let _ = axum::serve(Visitors::new(own), admin::pages(shown)).with_graceful_shutdown(until).await;
        });
        Ok(Some(Pages { stop, served }))
    }

    /// Lets the answers that are being given end.
    async fn stop(self) {
        drop(self.stop);
        let _ = tokio::time::timeout(PAGES_WAIT, self.served).await;
    }
}

type Gave = Result<UnixStream, String>;

/// A router that serves.
struct Running {
    file: PathBuf,
    /// What it goes by.
    config: Config,
    map: Arc<Map>,
    /// Its epoch, for who tells of it.
    newest: watch::Sender<u64>,
    live: Live,
    /// What the pages show of what requests are sent to.
    upstreams: Upstreams,
    drains: mpsc::UnboundedReceiver<Drain>,
    control: Control,
    held: Held,
    cores: Vec<JoinHandle<()>>,
    life: Arc<Life>,
    /// When certificates are looked at.
    files: tokio::time::Interval,
    pages: Option<Pages>,
    admin: Option<std::net::TcpListener>,
    /// Ends with what it has to write when this is dropped.
    _access: Option<access::Writer>,
    signals: Signals,
    commands: mpsc::UnboundedReceiver<life::Asked>,
    newer: mpsc::UnboundedReceiver<News>,
    end: mpsc::UnboundedReceiver<String>,
    heirs: Heirs,
    gave: (mpsc::UnboundedSender<Gave>, mpsc::UnboundedReceiver<Gave>),
    /// The listeners are being given to a successor.
    giving: bool,
    /// It, if this process started it.
    successor: Option<Child>,
    /// When it has to have asked for them.
    asks_by: Instant,
}

enum Event {
    Asked(Asked),
    Command(life::Asked),
    News(News),
    Drain(Drain),
    Health(Change),
    Name(Told),
    LookAtFiles,
    CoreFailed(String),
    Heir(UnixStream),
    Gave(Gave),
    SuccessorEnded(String),
    SuccessorSilent,
}

/// Why it drains.
#[derive(Clone, Copy)]
enum Leaving {
    Stopped,
    HandedOver,
}

type Addresses = Vec<SocketAddr>;

impl Running {
    async fn next(&mut self) -> Event {
        // One that has asked is given its time by `upgrade::give`.
        let asks_by = (self.successor.is_some() && !self.giving).then_some(self.asks_by);
        let silent = async {
            match asks_by {
                Some(by) => tokio::time::sleep_until(by.into()).await,
                None => std::future::pending().await,
            }
        };
        // While the listeners are given, the end of the connection tells first; then the process's own says why.
        let successor = async {
            match self.successor.as_mut().filter(|_| !self.giving) {
                Some(child) => child.wait().await.map_or_else(|e| e.to_string(), |status| status.to_string()),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            asked = self.signals.next() => Event::Asked(asked),
            Some(command) = self.commands.recv() => Event::Command(command),
            Some(news) = self.newer.recv() => Event::News(news),
            Some(word) = self.drains.recv() => Event::Drain(word),
            change = self.live.prober.next() => Event::Health(change),
            told = self.live.resolver.next() => Event::Name(told),
            _ = self.files.tick() => Event::LookAtFiles,
            Some(why) = self.end.recv() => Event::CoreFailed(why),
            heir = self.heirs.next() => Event::Heir(heir),
            Some(gave) = self.gave.1.recv() => Event::Gave(gave),
            ended = successor => Event::SuccessorEnded(ended),
            () = silent => Event::SuccessorSilent,
        }
    }

    async fn run(mut self) -> Result<(), Failed> {
        loop {
            match self.next().await {
                Event::Asked(Asked::Stop) => return self.leave(Leaving::Stopped).await,
                Event::Asked(Asked::Reload) => drop(self.reload().await),
                Event::Asked(Asked::Upgrade) => drop(self.upgrade()),
                Event::Command((command, answer)) => {
                    let done = match command {
                        Command::Reload => self.reload().await,
                        Command::Check => self.look_through().await,
                        Command::Upgrade => self.upgrade(),
                    };
                    let _ = answer.send(done); // whoever asked may have gone
                }
                Event::News(news) => {
                    adopt(&self.control, &mut self.map, news);
                    self.newest.send_replace(self.map.epoch().0);
                }
                Event::Drain(word) => self.drain(word),
                Event::Health(change) => self.judged(change).await,
                Event::Name(told) => self.named(&told).await,
                Event::LookAtFiles => self.look_at_files(),
                Event::CoreFailed(why) => return Err(Failed::Fault(why)),
                Event::Heir(stream) => self.give(stream),
                Event::Gave(Ok(stream)) => match upgrade::let_go(stream) {
                    Ok(()) => return self.leave(Leaving::HandedOver).await,
                    Err(e) => self.not_taken(format!("it was ready and is gone: {e}")),
                },
                Event::Gave(Err(why)) => self.not_taken(why),
                Event::SuccessorSilent => {
                    self.asks_by += upgrade::ASK_WAIT; // it is killed, and its end tells
                    self.not_taken(format!("it did not ask for the listeners within {:?}", upgrade::ASK_WAIT));
                }
                Event::SuccessorEnded(status) => {
                    self.successor = None;
                    self.not_upgraded(format!("the successor ended ({status}); what it said is above"));
                }
            }
        }
    }
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

/// Waits until every core has finished what it was serving; false: not within the limit.
async fn drained(cores: &[JoinHandle<()>], limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !cores.iter().all(JoinHandle::is_finished) {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}
