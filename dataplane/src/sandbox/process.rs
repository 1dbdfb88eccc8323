//! One process of the sandbox: started, killed, stopped in its tracks, started again; what it says goes into a file.

use crate::control;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a process may take to end when it is asked to.
const END: Duration = Duration::from_secs(20);
/// How often it is looked whether a killed one's addresses are free.
const LOOK: Duration = Duration::from_millis(2);
/// Of what a fallen process said, so many lines are shown.
const LAST_LINES: usize = 8;

/// A program with its configuration, whether it runs or not. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    /// `log of zone sh`, for messages.
    pub name: String,
    program: PathBuf,
    args: Vec<String>,
    said: PathBuf,
    /// Where it listens: free again before it counts as ended.
    listens: Vec<SocketAddr>,
    /// Added to the environment at the next start.
    env: BTreeMap<String, String>,
    child: Option<Child>,
    paused: bool,
}

impl Process {
    /// `program part --stop-with-stdin --config FILE`; nothing runs yet.
    pub fn new(name: String, program: &Path, part: &str, config: &Path, said: PathBuf) -> Process {
        let config = config.display().to_string();
        let args = [part, "--stop-with-stdin", "--config", &config].map(str::to_owned).to_vec();
        Process {
            name,
            program: program.into(),
            args,
            said,
            listens: vec![],
            env: BTreeMap::new(),
            child: None,
            paused: false,
        }
    }

    /// The same, which listens at these addresses.
    pub fn listening(self, listens: &[SocketAddr]) -> Process {
        Process { listens: listens.to_vec(), ..self }
    }

    /// Starts it; one that runs already goes on.
    pub fn start(&mut self) -> io::Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let said = File::options().create(true).append(true).open(&self.said)?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(&self.env)
            // Its standard input ends when we do: it then ends as well.
            .stdin(Stdio::piped())
            .stdout(said.try_clone()?)
            .stderr(said)
            .kill_on_drop(true)
            .spawn()?;
        (self.child, self.paused) = (Some(child), false);
        Ok(())
    }

    /// Its environment from the next start on: a value, or none any more.
    pub fn set_env(&mut self, name: &str, value: Option<String>) {
        match value {
            Some(value) => self.env.insert(name.into(), value),
            None => self.env.remove(name),
        };
    }

    /// Was anything added to its environment?
    pub fn has_env(&self) -> bool {
        !self.env.is_empty()
    }

    /// Is it meant to run?
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Is it stopped in its tracks?
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// SIGKILL, without waiting for its end.
    pub fn start_kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.start_kill(); // it may have ended by itself: the result is the same
        }
    }

    /// SIGKILL, and waits for its end.
    pub async fn kill(&mut self) {
        self.start_kill();
        if let Some(mut child) = self.child.take() {
            let _ = child.wait().await;
            self.freed().await;
        }
    }

    /// The kernel takes a killed process's ring apart a moment after its end, and with it the listeners that the ring held: who starts it
    /// again at once would find its addresses taken.
    async fn freed(&self) {
        let until = Instant::now() + END;
        while self.listens.iter().any(|at| TcpListener::bind(at).is_err()) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks it to end and waits; one that does not is killed.
    pub async fn stop(&mut self) {
        self.resume();
        let Some(mut child) = self.child.take() else { return };
        control::terminate(&child);
        if tokio::time::timeout(END, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
        self.freed().await;
    }

    /// SIGSTOP: it holds its connections and answers nothing.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.paused = self.child.is_some();
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.signal(Signal::CONT);
        }
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id).and_then(|id| Pid::from_raw(id as i32));
        if let Some(pid) = id {
            let _ = kill_process(pid, signal); // it may have ended by itself
        }
    }

    /// How it ended although nobody stopped it, with the last lines it said.
    pub fn fallen(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        let from = said.lines().count().saturating_sub(LAST_LINES);
        let last: Vec<&str> = said.lines().skip(from).collect();
        Some(format!("the {} ended ({status}); it said last:\n  {}", self.name, last.join("\n  ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that takes a process's arguments for its own.
    fn shell(name: &str, script: &str) -> (Process, PathBuf) {
        let dir = std::env::temp_dir().join(format!("ezone-process-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut process = Process::new("shell".into(), Path::new("/bin/sh"), "x", Path::new("y"), dir.join("said"));
        process.args = vec!["-c".into(), script.into()];
        (process, dir)
    }
    async fn said(dir: &Path, what: &str) {
        for _ in 0..6000 {
            if fs::read_to_string(dir.join("said")).unwrap_or_default() == what {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}, expected {what:?}", fs::read_to_string(dir.join("said")));
    }

    #[tokio::test]
    async fn its_environment_holds_from_the_next_start_on() {
        let (mut p, dir) = shell("env", "echo ${DRILLED:-nothing}; read x");
        p.set_env("DRILLED", Some("300".into()));
        p.start().unwrap();
        said(&dir, "300\n").await;
        p.set_env("DRILLED", None);
        assert!(!p.has_env());
        p.kill().await;
        p.start().unwrap();
        said(&dir, "300\nnothing\n").await;
        p.stop().await;
        assert!(!p.is_started());
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn one_that_ended_by_itself_is_told_with_what_it_said() {
        let (mut p, dir) = shell("fallen", "echo out of luck; exit 3");
        p.start().unwrap();
        for _ in 0..6000 {
            if let Some(why) = p.fallen() {
                assert!(why.contains("exit status: 3") && why.ends_with("\n  out of luck"), "{why}");
                fs::remove_dir_all(dir).unwrap();
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("its end was not seen");
    }

    #[tokio::test]
    async fn a_paused_process_says_nothing_and_is_killed_and_stopped_like_any() {
        let (mut p, dir) = shell("paused", "while read x; do echo $x; done");
        p.start().unwrap();
        p.pause();
        assert!(p.is_paused());
        p.stop().await;
        assert!(!p.is_started() && !p.is_paused());
        p.start().unwrap();
        p.pause();
        p.kill().await;
        assert!(p.fallen().is_none(), "it was killed by us");
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn one_that_is_killed_has_ended_only_when_its_addresses_are_free() {
        let (p, dir) = shell("freed", "read x");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut p = p.listening(&[at]);
        p.start().unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(LOOK * 20).await;
            drop(listener);
        });
        p.kill().await;
        TcpListener::bind(at).expect("nobody listens there any more");
        fs::remove_dir_all(dir).unwrap();
    }
}
