//! A log in a process of its own, driven by one line of JSON for each load: its memory and processor time are its own.

use super::sample::{Ask, Sample};
use super::{nats, ours, raft, raw, sqlite};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Whose log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
pub enum Kind {
    /// Ours, what is behind let go and used again.
    Ours,
    /// Ours, everything kept: each segment is a new one.
    OursKept,
    /// A plain loop of pwrite and fdatasync: what fio does, but with each commit timed as a whole from when it was due.
    Raw,
    Sqlite,
    RaftEngine,
    /// The client; the server is a process of its own.
    Nats,
}

/// A worker's process; killed when dropped.
pub struct Worker {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Worker {
    /// Starts this program as a worker; `place` is its directory, or the address of a server.
    pub fn start(kind: Kind, place: &str, args: &[String]) -> Result<Worker, String> {
        let program = std::env::current_exe().map_err(|e| format!("this program's file: {e}"))?;
        let kind = clap::ValueEnum::to_possible_value(&kind).expect("no kind is left out").get_name().to_owned();
        let mut command = Command::new(program);
        command.args(["append", "--worker", &kind, "--dir", place]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("a worker cannot be started: {e}"))?;
        let asks = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Worker { child, asks, answers })
    }

    pub fn run(&mut self, ask: &Ask) -> Result<Sample, String> {
        let line = serde_json::to_string(ask).map_err(|e| e.to_string())?;
        writeln!(self.asks, "{line}").map_err(|e| format!("the worker has ended: {e}"))?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer) {
            Ok(0) => Err("the worker has ended without an answer".into()),
            Ok(_) => serde_json::from_str::<Result<Sample, String>>(&answer).map_err(|e| format!("{e}: {answer}"))?,
            Err(e) => Err(format!("the worker: {e}")),
        }
    }

    /// Ends it as a crash would: nothing is closed.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // it has ended by itself then
        let _ = self.child.wait();
    }
}

/// What a worker's process does: answers each line until there is none.
pub fn run(kind: Kind, place: &Path, core: usize, segment_bytes: u64) -> Result<(), String> {
    // What one thread drives runs where ours does; what has many may use every core.
    if matches!(kind, Kind::Raw | Kind::Sqlite) {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
    }
    match kind {
        Kind::Ours => ours::serve(place, core, segment_bytes, true),
        Kind::OursKept => ours::serve(place, core, segment_bytes, false),
        Kind::Raw => raw::serve(place),
        Kind::Sqlite => sqlite::serve(place),
        Kind::RaftEngine => raft::serve(place),
        Kind::Nats => nats::serve(place),
    }
}

/// The next load; `None`: no more.
pub fn next_ask() -> Result<Option<Ask>, String> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line).map_err(|e| e.to_string())? {
        0 => Ok(None),
        _ => serde_json::from_str(&line).map(Some).map_err(|e| format!("{e}: {line}")),
    }
}

/// Answers the load.
pub fn answer(result: &Result<Sample, String>) -> Result<(), String> {
    let line = serde_json::to_string(result).map_err(|e| e.to_string())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| e.to_string())
}

/// Answers each line with what `one` does.
pub fn answer_all(mut one: impl FnMut(&Ask) -> Result<Sample, String>) -> Result<(), String> {
    while let Some(ask) = next_ask()? {
        answer(&one(&ask))?;
    }
    Ok(())
}
