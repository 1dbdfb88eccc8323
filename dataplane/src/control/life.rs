//! The life of a router as its admin pages show it: what it is doing, how the last reload and upgrade ended; and the pages by
//! which an operator asks for one.

use super::admin::Shown;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot};

/// What a router is doing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// Waits for its first map.
    #[default]
    Starting,
    /// Takes connections.
    Serving,
    /// Finishes what it serves.
    Draining,
}

/// A part of `GET /status`.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct LifeStatus {
    /// What it is doing.
    pub doing: Doing,
    /// The process.
    pub pid: u32,
    /// Which cores serve what, and why.
    pub layout: String,
    /// Reloads that took effect.
    pub reloads: u64,
    /// Reloads that were refused: nothing changed.
    pub reloads_refused: u64,
    /// How the last one ended.
    pub last_reload: Option<Past>,
    /// Upgrades that failed: this process went on.
    pub upgrades_failed: u64,
    /// How the last one ended.
    pub last_upgrade: Option<Past>,
}

/// How something ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `applied`, `refused`, `failed`.
    pub outcome: String,
    /// All that was wrong.
    pub problems: Vec<String>,
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read the configuration and go by it.
    Reload,
    /// Read it, and only say whether a reload would be refused.
    Check,
    /// Start a successor.
    Upgrade,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Answer {
    /// It took effect, or (for a check) would.
    Applied {
        /// Listened at from now on.
        added: Vec<SocketAddr>,
        /// Not listened at any more.
        removed: Vec<SocketAddr>,
    },
    /// A successor is being started; `/status` says how it ends.
    Started,
    /// Nothing changed.
    Refused {
        /// All that is wrong.
        problems: Vec<String>,
    },
    /// Not now: a successor is being started, or this process ends.
    Busy,
}

/// A command and where its answer goes.
pub type Asked = (Command, oneshot::Sender<Answer>);

/// Shared by control and its pages.
pub struct Life {
    status: Mutex<LifeStatus>,
    commands: mpsc::UnboundedSender<Asked>,
}

impl Life {
    /// Commands go to `commands`.
    pub fn new(commands: mpsc::UnboundedSender<Asked>, layout: String) -> Life {
        let status = LifeStatus { pid: std::process::id(), layout, ..LifeStatus::default() };
        Life { status: Mutex::new(status), commands }
    }

    /// What is shown.
    pub fn status(&self) -> LifeStatus {
        self.lock().clone()
    }

    /// It does something else from now on.
    pub fn set(&self, doing: Doing) {
        self.lock().doing = doing;
    }

    /// How a reload ended: with these problems, or well.
    pub fn reloaded(&self, problems: &[String]) {
        let mut status = self.lock();
        *if problems.is_empty() { &mut status.reloads } else { &mut status.reloads_refused } += 1;
        status.last_reload = Some(past(if problems.is_empty() { "applied" } else { "refused" }, problems.to_vec()));
    }

    /// How an upgrade ended.
    pub fn upgraded(&self, failed: Option<String>) {
        let mut status = self.lock();
        status.upgrades_failed += u64::from(failed.is_some());
        let outcome = if failed.is_some() { "failed" } else { "applied" };
        status.last_upgrade = Some(past(outcome, failed.into_iter().collect()));
    }

    fn lock(&self) -> MutexGuard<'_, LifeStatus> {
        self.status.lock().expect("no one panics while holding it")
    }
}

fn past(outcome: &str, problems: Vec<String>) -> Past {
    let at_ms = super::wall_ms();
    Past { at_ms, outcome: outcome.into(), problems }
}

/// What can be asked for.
pub fn pages() -> Router<Shown> {
    Router::new()
        .route("/reload", post(async |State(s): State<Shown>| ask(&s, Command::Reload).await))
        .route("/check", post(async |State(s): State<Shown>| ask(&s, Command::Check).await))
        .route("/upgrade", post(async |State(s): State<Shown>| ask(&s, Command::Upgrade).await))
}

async fn ask(shown: &Shown, command: Command) -> Response {
    let (answer, wait) = oneshot::channel();
    let _ = shown.life.commands.send((command, answer)); // without a listener there is no answer either
    let answer = wait.await.unwrap_or(Answer::Busy);
    let status = match &answer {
        Answer::Applied { .. } => StatusCode::OK,
        Answer::Started => StatusCode::ACCEPTED,
        Answer::Refused { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Answer::Busy => StatusCode::CONFLICT,
    };
    (status, Json(answer)).into_response()
}
