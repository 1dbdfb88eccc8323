//! What an operator asks of a running process by signals: to end, to read its configuration again, to give way to a successor.

use super::stdin_closed;
use std::pin::Pin;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// SIGTERM, SIGINT, or the end of standard input if a parent holds it open for us.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGUSR2.
    Upgrade,
}

/// Hears them from the moment it is made.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr2: Signal,
    stdin: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Signals {
    /// `with_stdin`: the end of standard input counts as SIGTERM.
    pub fn new(with_stdin: bool) -> Result<Signals, String> {
        let hear = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
        Ok(Signals {
            term: hear(SignalKind::terminate())?,
            int: hear(SignalKind::interrupt())?,
            hup: hear(SignalKind::hangup())?,
            usr2: hear(SignalKind::user_defined2())?,
            stdin: with_stdin.then(|| Box::pin(stdin_closed()) as Pin<Box<_>>),
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Asked {
        let closed = async {
            match &mut self.stdin {
                Some(closed) => closed.await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            _ = self.term.recv() => Asked::Stop,
            _ = self.int.recv() => Asked::Stop,
            _ = self.hup.recv() => Asked::Reload,
            _ = self.usr2.recv() => Asked::Upgrade,
            () = closed => {
                self.stdin = None; // it ends once
                Asked::Stop
            }
        };
        asked
    }

    /// The next time that this process is asked to end; the rest is for those who can do it.
    pub async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}
