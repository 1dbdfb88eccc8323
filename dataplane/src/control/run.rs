//! `ezone run`: starts a node's router and log as processes of their own, and starts again what ends.

use super::Failed;
use crate::config::Config;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A process that lived this long is started again at once.
const HEALTHY: Duration = Duration::from_secs(10);
/// The longest pause before a start.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a process may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(15);

/// Runs until SIGTERM or SIGINT, then stops the router first and the log last.
pub fn run(file: &Path, config: &Config) -> Result<(), Failed> {
    super::runtime()?.block_on(watch(file, config))
}

async fn watch(file: &Path, config: &Config) -> Result<(), Failed> {
    let mut log = config.log.as_ref().map(|_| Part::start("log", file));
    let mut router = config.router.as_ref().map(|_| Part::start("router", file));
    let ended = tokio::select! {
        stopped = super::asked_to_stop(false) => stopped.map_err(Failed::Fault),
        why = given_up(&mut log) => Err(why),
        why = given_up(&mut router) => Err(why),
    };
    for part in [router, log].into_iter().flatten() {
        part.stop().await;
    }
    ended
}

/// One part of the node and the task that keeps it running.
struct Part {
    stop: oneshot::Sender<()>,
    /// Ends before it is told to only when starting again cannot help.
    kept: JoinHandle<Result<(), Failed>>,
}

impl Part {
    fn start(name: &'static str, file: &Path) -> Part {
        let (stop, stopped) = oneshot::channel();
        // A task of its own: what happens to one part never interrupts the pause of the other.
        Part { stop, kept: tokio::spawn(keep(name, file.to_owned(), stopped)) }
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
async fn keep(name: &'static str, file: PathBuf, mut stop: oneshot::Receiver<()>) -> Result<(), Failed> {
    let mut pause = Duration::ZERO;
    loop {
        let (mut running, since) = (Running::start(name, &file)?, Instant::now());
        let status = tokio::select! {
            status = running.ended() => status?,
            _ = &mut stop => {
                running.stop().await;
                return Ok(());
            }
        };
        if status.code() == Some(2) {
            return Err(Failed::Input(format!("ezone {name} ended with wrong usage or input; see above")));
        }
        pause = if since.elapsed() > HEALTHY { Duration::ZERO } else { next_pause(pause) };
        tracing::error!("ezone {name} ended ({status}); starting it again in {} ms", pause.as_millis());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stop => return Ok(()),
        }
    }
}

struct Running {
    name: &'static str,
    child: Child,
    /// Ties the process to this one: its standard input ends when we do, however we end. Kept apart from the child, whose
    /// `wait` would close it.
    _tie: Option<ChildStdin>,
}

impl Running {
    fn start(name: &'static str, file: &Path) -> Result<Running, String> {
        let program = std::env::current_exe().map_err(|e| format!("the path of this program: {e}"))?;
        let mut command = Command::new(program);
        command.args([name, "--stop-with-stdin", "--config"]).arg(file).stdin(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|e| format!("ezone {name} cannot be started: {e}"))?;
        Ok(Running { name, _tie: child.stdin.take(), child })
    }

    async fn ended(&mut self) -> Result<ExitStatus, String> {
        self.child.wait().await.map_err(|e| format!("ezone {}: {e}", self.name))
    }

    async fn stop(mut self) {
        super::terminate(&self.child);
        if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
            tracing::error!("ezone {} did not end within {} s of SIGTERM; killing it", self.name, STOP.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

fn next_pause(last: Duration) -> Duration {
    (last * 2).clamp(Duration::from_millis(100), PAUSE_MAX)
}
