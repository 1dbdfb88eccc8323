//! `ezctl log` on logs that are whole, torn, corrupt, live, hostile, or not there.

mod compare;
mod hostile;
mod interrupt;
mod live;
mod look;
mod many;
mod repair;
mod speed;
mod writer;

use std::path::Path;
use std::process::Command;

/// Exit code, standard output, standard error of `ezctl log`; a signal is no exit code.
fn ezctl(args: &[&str], paths: &[&Path]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_ezctl")).arg("log").args(args).args(paths).output().unwrap();
    let text = |b| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}
