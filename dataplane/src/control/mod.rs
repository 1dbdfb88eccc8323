//! Control work on tokio: what is not on the order path. Configuration in, maps in, status out.

pub mod access;
pub mod admin;
pub mod agree;
pub mod assemble;
pub mod cert;
pub mod conflicts;
pub mod dns;
pub mod doors;
pub mod durable;
pub mod explain;
pub mod figures;
pub mod gzs;
pub mod gzs_client;
pub mod health;
pub mod lag;
pub mod life;
mod links;
pub mod listen;
pub mod log;
pub mod machine;
pub mod maps;
pub mod metrics;
pub mod names;
pub mod notify;
pub mod probe;
pub mod program;
pub mod reach;
pub mod reload;
pub mod report;
pub mod router;
pub mod run;
pub mod secrets;
pub mod seed;
pub mod signals;
pub mod state;
mod steer;
pub mod tell;
pub mod threads;
pub mod upgrade;
pub mod upstreams;
pub mod visit;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// Why a program ended without being asked to.
#[derive(Debug)]
pub enum Failed {
    /// By what it was given: started again, it would end again.
    Input(String),
    /// By this machine, or by a fault of its own.
    Fault(String),
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed::Fault(why)
    }
}

/// Makes the data directory, with its parents, if it is not there.
pub fn data_dir(path: &Path) -> Result<(), Failed> {
    if path.exists() && !path.is_dir() {
        return Err(Failed::Input(format!("data_dir {}: expected a directory, there is a file", path.display())));
    }
    std::fs::create_dir_all(path)
        .map_err(|e| Failed::Fault(format!("data_dir {} cannot be created: {e}", path.display())))
}

/// The one thread of control.
pub fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| format!("the control thread: {e}"))
}

/// A line of JSON, as pages answer where the status tells as well.
fn said(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string() + "\n").into_response()
}

/// Milliseconds since 1970, as this machine's clock has it.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Asks a process that we started to end.
pub fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _ = kill_process(pid, Signal::TERM); // it may have ended by itself
    }
}

/// Ends when this process is asked to: SIGTERM, SIGINT, or the end of standard input if a parent holds it open for us.
pub async fn asked_to_stop(with_stdin: bool) -> Result<(), String> {
    let mut term = signal(SignalKind::terminate()).map_err(|e| format!("signals: {e}"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| format!("signals: {e}"))?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = stdin_closed(), if with_stdin => {}
    }
    Ok(())
}

/// A thread of its own reads standard input: tokio's would keep the process from ending.
async fn stdin_closed() {
    let (closed, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
}
