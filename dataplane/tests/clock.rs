//! A log whose clock is ahead, for drills: told in its environment, said aloud, and refused where it is no number.

mod process_kit;

use process_kit::{Dir, Running, addresses, map, within};
use std::fs::{self, File};
use std::process::{Command, Stdio};

const AHEAD: &str = "EZONE_CLOCK_AHEAD_MS";

/// `ezone log` of a zone of its own, with this in its environment; what it says goes into `said`.
fn log(dir: &Dir, ahead: &str) -> Running {
    let [listen, admin] = addresses();
    let text = format!(
        "[node]\nzone = \"bj\"\ndata_dir = \"bj\"\n[map]\nfile = \"{}\"\n[log]\nlisten = \"{listen}\"\nadmin = \"{admin}\"\ncores = [0]\n",
        map().display()
    );
    fs::write(dir.join("node.toml"), text).unwrap();
    let said = File::create(dir.join("said")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
    command.args(["log", "--config"]).arg(dir.join("node.toml")).env(AHEAD, ahead).stdin(Stdio::null());
    Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
}

#[test]
fn a_clock_that_is_ahead_is_said_and_what_is_no_number_is_refused() {
    let dir = Dir::new("clock");
    let mut refused = log(&dir, "soon");
    assert_eq!(refused.ended().code(), Some(2), "{}", dir.said());
    assert!(dir.said().contains("EZONE_CLOCK_AHEAD_MS is \"soon\", expected whole milliseconds"), "{}", dir.said());
    let mut ahead = log(&dir, "300");
    within("the log says how its clock is", || {
        dir.said().contains("clock is 300 ms ahead of the machine's").then_some(())
    });
    within("the log is open", || dir.said().contains("log open").then_some(()));
    assert_eq!(ahead.term(), 0, "{}", dir.said());
}
