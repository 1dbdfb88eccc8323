//! `ezone run`: starts a node's router and log as processes of their own, and starts again what ends.

use crate::config::Config;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// A process that lived this long is started again at once.
const HEALTHY: Duration = Duration::from_secs(10);
/// The longest pause before a start.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a process may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT, then stops the router first and the log last.
pub fn run(file: &Path, config: &Config) -> Result<(), String> {
    super::runtime()?.block_on(watch(file, config))
}

async fn watch(file: &Path, config: &Config) -> Result<(), String> {
    let mut log = match config.log {
        Some(_) => Some(Watched::start("log", file)?),
        None => None,
    };
    let mut router = match config.router {
        Some(_) => Some(Watched::start("router", file)?),
        None => None,
    };
    let stop = super::asked_to_stop(false);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            stopped = &mut stop => {
                stopped?;
                break;
            }
            end = ended(&mut log) => end?,
            end = ended(&mut router) => end?,
        }
    }
    for part in [router, log].into_iter().flatten() {
        part.stop().await;
    }
    Ok(())
}

struct Watched {
    name: &'static str,
    command: Command,
    child: Child,
    since: Instant,
    pause: Duration,
}

impl Watched {
    fn start(name: &'static str, file: &Path) -> Result<Watched, String> {
        let program = std::env::current_exe().map_err(|e| format!("the path of this program: {e}"))?;
        let mut command = Command::new(program);
        // Standard input ties the part to this process: it ends with it, however it ends.
        command.args([name, "--stop-with-stdin", "--config"]).arg(file).stdin(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().map_err(|e| format!("ezone {name} cannot be started: {e}"))?;
        Ok(Watched { name, command, child, since: Instant::now(), pause: Duration::ZERO })
    }

    /// Waits for its end, then starts it again, after a pause that doubles while it ends soon.
    async fn ended(&mut self) -> Result<(), String> {
        let status = self.child.wait().await.map_err(|e| format!("ezone {}: {e}", self.name))?;
        if status.code() == Some(2) {
            return Err(format!("ezone {} ended with wrong usage or input; see above", self.name));
        }
        self.pause = if self.since.elapsed() > HEALTHY { Duration::ZERO } else { next_pause(self.pause) };
        tracing::error!("ezone {} ended ({status}); starting it again in {} ms", self.name, self.pause.as_millis());
        tokio::time::sleep(self.pause).await;
        self.child = self.command.spawn().map_err(|e| format!("ezone {} cannot be started: {e}", self.name))?;
        self.since = Instant::now();
        Ok(())
    }

    async fn stop(mut self) {
        super::terminate(&self.child);
        if tokio::time::timeout(STOP, self.child.wait()).await.is_err() {
            tracing::error!("ezone {} did not end within {} s of SIGTERM; killing it", self.name, STOP.as_secs());
            let _ = self.child.kill().await;
        }
    }
}

async fn ended(part: &mut Option<Watched>) -> Result<(), String> {
    match part {
        Some(part) => part.ended().await,
        None => std::future::pending().await,
    }
}

fn next_pause(last: Duration) -> Duration {
    (last * 2).clamp(Duration::from_millis(100), PAUSE_MAX)
}
