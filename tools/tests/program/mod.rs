//! The other program that the tests of `ezctl` need.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `ezone`, beside `ezctl`: built now if it is not as its sources are, since no test of this package makes cargo build it.
pub fn ezone() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_ezctl")).with_file_name("ezone");
    let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
    let args = ["build", "--quiet", "-p", "dataplane", "--bin", "ezone"];
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(args).args(profile);
    // What cargo says to a test of the package under test would make build scripts that look at it run again, each time anew.
    let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_"];
    let names = std::env::vars().map(|(name, _)| name).filter(|name| ours.iter().any(|o| name.starts_with(o)));
    for name in names {
        cargo.env_remove(name);
    }
    let done = cargo.status().unwrap();
    assert!(done.success() && beside.exists(), "{} is missing; cargo {}: {done}", beside.display(), args.join(" "));
    beside
}
