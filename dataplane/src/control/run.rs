//! `ezone run`: starts a node's router and log as processes of their own, starts again what ends, and follows the router to
//! its successors.

use super::notify::{self, Ear};
use super::signals::{Asked, Signals};
use super::{Failed, data_dir, program};
use crate::config::Config;
use rustix::process::{Pid, Signal, getppid, kill_process};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A process that lived this long is started again at once.
const HEALTHY: Duration = Duration::from_secs(10);
/// The longest pause before a start.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a process may take to end after SIGTERM, beyond the time that it may drain.
const STOP: Duration = Duration::from_secs(15);
/// How long a successor may take until it has taken over: more than it gives itself.
const TAKE_OVER: Duration = Duration::from_secs(90);
/// Tells a process who starts its successors.
const WATCHED_BY: &str = "EZONE_WATCHED_BY";

/// The process that watches this one, if there is one.
pub fn watcher() -> Option<Pid> {
    let named = std::env::var(WATCHED_BY).ok()?.parse().ok().and_then(Pid::from_raw)?;
    getppid().filter(|parent| *parent == named)
}

/// Asks it to start a successor.
pub fn ask_for_upgrade(watcher: Pid) -> Result<(), String> {
    kill_process(watcher, Signal::USR2).map_err(|e| format!("ezone run (process {}): {e}", watcher.as_raw_nonzero()))
}

/// Runs until SIGTERM or SIGINT, then stops the router first and the log last. SIGHUP and SIGUSR2 are the router's.
pub fn run(file: &Path, config: &Config) -> Result<(), Failed> {
    data_dir(&config.node.data_dir)?;
    super::runtime()?.block_on(watch_node(file, config))
}

async fn watch_node(file: &Path, config: &Config) -> Result<(), Failed> {
    let mut signals = Signals::new(false)?;
    let drain = config.limits.of_core().drain_ms + config.router.as_ref().map_or(0, |r| r.drain_delay_ms);
    let start = |name, stop| {
        let how = How { name, file: file.to_owned(), data_dir: config.node.data_dir.clone(), stop };
        Part::start(Arc::new(how))
    };
    let mut log = config.log.as_ref().map(|_| start("log", STOP));
    let mut router = config.router.as_ref().map(|_| start("router", STOP + Duration::from_millis(drain)));
    let mut ready = Box::pin(all_ready([&router, &log].into_iter().flatten().map(|p| p.ready.clone()).collect()));
    let mut told = false;
    let ended = loop {
        tokio::select! {
            () = &mut ready, if !told => {
                told = true;
                notify::tell(notify::READY);
            }
            asked = signals.next() => match (asked, &router) {
                (Asked::Stop, _) => break Ok(()),
                (Asked::Reload | Asked::Upgrade, Some(router)) => router.ask(asked),
                (Asked::Reload | Asked::Upgrade, None) => tracing::warn!("{asked:?} is for a router; this node has none"),
            },
            why = given_up(&mut log) => break Err(why),
            why = given_up(&mut router) => break Err(why),
        }
    };
    notify::tell(notify::STOPPING);
    let stopping = async {
        for part in [router, log].into_iter().flatten() {
            part.stop().await;
        }
    };
    tokio::select! {
        () = stopping => {}
        () = signals.stop() => tracing::warn!("asked again to stop: what still runs is killed"),
    }
    ended
}

/// Ends when every part has been ready.
async fn all_ready(parts: Vec<watch::Receiver<bool>>) {
    for mut part in parts {
        if part.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await; // it is not watched any more
        }
    }
}

/// How a part is started and stopped.
struct How {
    name: &'static str,
    file: PathBuf,
    data_dir: PathBuf,
    stop: Duration,
}

/// One part of the node and the task that keeps it running.
struct Part {
    asks: mpsc::UnboundedSender<Asked>,
    ready: watch::Receiver<bool>,
    /// Dropped to stop it.
    stop: watch::Sender<()>,
    /// Ends before it is told to only when starting again cannot help.
    kept: JoinHandle<Result<(), Failed>>,
}

impl Part {
    fn start(how: Arc<How>) -> Part {
        let (stop, stopped) = watch::channel(());
        let (asks, asked) = mpsc::unbounded_channel();
        let (is_ready, ready) = watch::channel(false);
        // A task of its own: what happens to one part never interrupts the pause of the other.
        Part { asks, ready, stop, kept: tokio::spawn(keep(how, asked, is_ready, stopped)) }
    }

    fn ask(&self, what: Asked) {
        let _ = self.asks.send(what); // nobody listens once it has ended
    }

    async fn stop(self) {
        drop(self.stop);
        if !self.kept.is_finished() {
            let _ = self.kept.await; // it was told to end: that it did is all there is to know
        }
    }
}

async fn given_up(part: &mut Option<Part>) -> Failed {
    let Some(part) = part else { return std::future::pending().await };
    match (&mut part.kept).await {
        Ok(Err(why)) => why,
        Ok(Ok(())) | Err(_) => Failed::Fault("a part of this node is not watched any more".into()),
    }
}

/// Starts the part, waits for its end, and starts it again after a pause that doubles while it ends soon.
async fn keep(
    how: Arc<How>,
    mut asked: mpsc::UnboundedReceiver<Asked>,
    ready: watch::Sender<bool>,
    mut stop: watch::Receiver<()>,
) -> Result<(), Failed> {
    let (mut pause, mut reloading) = (Duration::ZERO, false);
    loop {
        let (mut running, since) = (Running::start(how.clone(), false)?, Instant::now());
        let status = loop {
            tokio::select! {
                status = running.child.wait() => break status.map_err(|e| format!("ezone {}: {e}", how.name))?,
                said = running.ear.next() => reloading = heard(&said, reloading, &ready),
                Some(what) = asked.recv() => match what {
                    Asked::Reload => running.signal(Signal::HUP),
                    Asked::Upgrade => running = running.upgrade(&mut stop).await,
                    Asked::Stop => {}
                },
                _ = stop.changed() => {
                    running.stop().await;
                    return Ok(());
                }
            }
        };
        if status.code() == Some(2) {
            return Err(Failed::Input(format!("ezone {} ended with wrong usage or input; see above", how.name)));
        }
        pause = if since.elapsed() > HEALTHY { Duration::ZERO } else { next_pause(pause) };
        tracing::error!("ezone {} ended ({status}); starting it again in {} ms", how.name, pause.as_millis());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.changed() => return Ok(()),
        }
    }
}

/// Passes on what a part says of itself: that it is ready, and that it reads its configuration.
fn heard(said: &str, reloading: bool, ready: &watch::Sender<bool>) -> bool {
    if said.starts_with("RELOADING=1") {
        notify::tell(said);
        return true;
    }
    let is_ready = said.lines().any(|line| line == notify::READY);
    if is_ready && reloading {
        notify::tell(notify::READY);
    }
    if is_ready {
        let _ = ready.send(true); // who waited for it may have seen it already
    }
    reloading && !is_ready
}

struct Running {
    how: Arc<How>,
    child: Child,
    ear: Ear,
    /// Ties the process to this one: its standard input ends when we do, however we end. Kept apart from the child, whose
    /// `wait` would close it.
    tie: Option<ChildStdin>,
}

impl Running {
    fn start(how: Arc<How>, take_over: bool) -> Result<Running, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = how.name;
        let ear = Ear::open(&how.data_dir, NUMBER.fetch_add(1, Relaxed));
        let ear = ear.map_err(|e| format!("where ezone {name} says that it is ready: {e}"))?;
        let mut command = Command::new(program::path());
        command.arg(name).args(take_over.then_some("--take-over")).args(["--stop-with-stdin", "--config"]);
        command.arg(&how.file).stdin(Stdio::piped()).kill_on_drop(true);
        command.env(notify::SOCKET, ear.path()).env(WATCHED_BY, std::process::id().to_string());
        let mut child = command.spawn().map_err(|e| format!("ezone {name} cannot be started: {e}"))?;
        Ok(Running { how, ear, tie: child.stdin.take(), child })
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process(pid, signal); // it may have ended by itself
        }
    }

    /// Starts a successor and watches that from now on; if it does not come up, this one goes on.
    async fn upgrade(mut self, stop: &mut watch::Receiver<()>) -> Running {
        let name = self.how.name;
        let mut next = match Running::start(self.how.clone(), true) {
            Ok(next) => next,
            Err(why) => {
                tracing::error!("upgrade failed, ezone {name} goes on: {why}");
                return self;
            }
        };
        let failed = tokio::select! {
            () = next.ear.ready() => None,
            _ = stop.changed() => Some("this node is to stop".into()),
            status = next.child.wait() => Some(status.map_or_else(|e| e.to_string(), ended)),
            () = tokio::time::sleep(TAKE_OVER) => Some(format!("it was not ready within {} s", TAKE_OVER.as_secs())),
        };
        if let Some(why) = failed {
            tracing::error!("upgrade failed, ezone {name} goes on: the successor: {why}");
            return self; // and the other is killed, if it still runs
        }
        tracing::info!("ezone {name}: process {:?} has taken over from {:?}", next.child.id(), self.child.id());
        tokio::spawn(async move {
            // It drains within its own limit.
            if tokio::time::timeout(self.how.stop, self.child.wait()).await.is_err() {
                tracing::error!(
                    "ezone {name} did not end within {} s of its successor; killing it",
                    self.how.stop.as_secs()
                );
                let _ = self.child.kill().await;
            }
            drop(self.tie.take());
        });
        next
    }

    async fn stop(mut self) {
        let (name, limit) = (self.how.name, self.how.stop);
        super::terminate(&self.child);
        if tokio::time::timeout(limit, self.child.wait()).await.is_err() {
            tracing::error!("ezone {name} did not end within {} s of SIGTERM; killing it", limit.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

fn ended(status: ExitStatus) -> String {
    format!("it ended ({status}); what it said is above")
}

fn next_pause(last: Duration) -> Duration {
    (last * 2).clamp(Duration::from_millis(100), PAUSE_MAX)
}
