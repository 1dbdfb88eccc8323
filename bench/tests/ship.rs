//! `ezbench ship` when it cannot go on: the measuring itself is run by CI with `--tiny`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything may take: machines of tests are loaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of one test, gone at its end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("ezbench-ship-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).unwrap().next().is_none()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Namespaces need root. What cannot run says so.
fn root() -> bool {
    // The owner of this process's directory is its user.
    let mine = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("procfs is there"));
    if mine != 0 {
        println!("NOT RUN, as this user is not root: a run between two namespaces");
    }
    mine == 0
}

/// A run in which `program` takes the place of `ezone`.
fn start(dir: &Dir, program: &Path, phases: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezbench"));
    command.args(["ship", "--tiny", "--json", "--map", "../shardmap/data/china.toml", "--phases", phases]);
    command.arg("--dir").arg(&dir.0).arg("--ours").arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn assert_that_the_first_phase_is_shown_and_nothing_left(dir: &Dir, pid: u32, ended: &Output, why: &str) {
    let (said, shown) = (String::from_utf8_lossy(&ended.stderr), String::from_utf8_lossy(&ended.stdout));
    assert_eq!(ended.status.code(), Some(2), "{said}\n{shown}");
    assert!(said.contains(why), "{said}");
    let report: serde_json::Value = serde_json::from_str(shown.lines().last().unwrap_or("")).unwrap();
    assert!(report["applied"]["per_s"].as_f64().is_some_and(|n| n > 0.0), "{report}");
    assert!(dir.is_empty());
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let own = format!("ezwan-{pid}-");
    assert_eq!(names.filter(|n| n.file_name().to_string_lossy().starts_with(&own)).count(), 0);
}

#[test]
fn a_phase_that_fails_takes_no_figures_with_it() {
    if !root() {
        return;
    }
    let dir = Dir::new("fails");
    let run = start(&dir, Path::new("/bin/false"), "apply,ours");
    let (pid, ended) = (run.id(), run.wait_with_output().unwrap());
    assert_that_the_first_phase_is_shown_and_nothing_left(&dir, pid, &ended, "ended (exit status: 1)");
}

#[test]
fn a_signal_takes_no_figures_with_it() {
    if !root() {
        return;
    }
    let dir = Dir::new("signal");
    let sleeps = dir.0.join("sleeps");
    std::fs::write(&sleeps, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&sleeps, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let inner = Dir(dir.0.join("inner"));
    std::fs::create_dir(&inner.0).unwrap();
    let run = start(&inner, &sleeps, "apply,ours");
    let (pid, until) = (run.id(), Instant::now() + PATIENCE);
    let lag = |at: PathBuf| std::fs::read_dir(at).unwrap().flatten().any(|e| e.path().join("lag").exists());
    while !lag(inner.0.clone()) {
        assert!(Instant::now() < until, "the second phase has not begun");
        sleep(Duration::from_millis(10));
    }
    let kill = Command::new("kill").arg(pid.to_string()).status().unwrap();
    assert!(kill.success());
    let ended = run.wait_with_output().unwrap();
    assert_that_the_first_phase_is_shown_and_nothing_left(&inner, pid, &ended, "cut short by a signal");
}
