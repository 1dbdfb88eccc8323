//! A router gives way to its successor, or goes on when that does not come up.

use super::{Answer, Running};
use crate::control::{run, upgrade};
use std::os::unix::net::UnixStream;
use std::time::Instant;

impl Running {
    /// Has a successor started: by `ezone run` if that watches this process, else by this process itself.
    pub(super) fn upgrade(&mut self) -> Answer {
        if self.giving || self.successor.is_some() {
            return Answer::Busy;
        }
        let started = match run::watcher() {
            Some(watcher) => run::ask_for_upgrade(watcher),
            None => upgrade::start().map(|child| {
                self.asks_by = Instant::now() + upgrade::ASK_WAIT;
                self.successor = Some(child);
            }),
        };
        match started {
            Ok(()) => Answer::Started,
            Err(why) => {
                self.not_upgraded(format!("no successor could be started: {why}"));
                Answer::Refused { problems: vec![why] }
            }
        }
    }

    /// A successor of our own is ended, and its end is what is told.
    pub(super) fn not_taken(&mut self, why: String) {
        self.giving = false;
        match &mut self.successor {
            Some(successor) => {
                tracing::error!("the successor did not take over: {why}");
                let _ = successor.start_kill(); // it may have ended by itself
            }
            None => self.not_upgraded(format!("the successor did not take over: {why}")),
        }
    }

    pub(super) fn not_upgraded(&mut self, why: String) {
        self.giving = false;
        tracing::error!("upgrade failed, this router goes on: {why}");
        self.life.upgraded(Some(why));
    }

    /// Gives the listeners to whoever asked, on a thread of its own: the other may take its time.
    pub(super) fn give(&mut self, stream: UnixStream) {
        if self.giving {
            return tracing::warn!("a second successor asked for the listeners while a first one takes them: refused");
        }
        let gave = self.gave.0.clone();
        match upgrade::parcel(self.held.all(), self.admin.as_ref()) {
            Ok(parcel) => {
                self.giving = true;
                std::thread::spawn(move || drop(gave.send(upgrade::give(stream, parcel))));
            }
            Err(e) => self.not_upgraded(format!("the listeners could not be given: {e}")),
        }
    }
}
