//! `ezbench append --tiny`, whole: each phase runs, and what cannot be measured here is named.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that is gone when this is.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn dir(name: &str) -> Dir {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("append-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the target directory can be written");
    Dir(dir)
}

fn append(dir: &Dir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezbench"));
    command.args(["append", "--dir"]).arg(dir.0.join("made")).args(args);
    command.output().expect("ezbench was built with this test")
}

#[test]
fn every_phase_runs_and_what_is_not_measured_is_named() {
    let dir = dir("tiny");
    let run = append(&dir, &["--tiny", "--json"]);
    let (text, said) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert_eq!(run.status.code(), Some(0), "{said}\n{text}");
    let last = text.lines().last().unwrap_or_else(|| panic!("no report: {said}"));
    let json: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
    let seen = |figure: &str, who: &str| json["figures"][figure][who]["seen"]["median"].as_f64().unwrap_or(0.0);
    let measured = |figure: &str, who: &str| assert!(seen(figure, who) > 0.0, "{figure} of {who}: {json}");
    for figure in [
        "sustained_bytes_per_s",
        "sustained_cpu_ms_per_gb",
        "fresh_bytes_per_s",
        "small_commits_per_s",
        "small_records_per_s",
        "batched_records_per_s",
        "p50_us",
        "p99_us",
        "peer_records_per_s",
        "open_bytes_per_s",
        "peak_bytes",
    ] {
        measured(figure, "ours");
    }
    measured("p50_us", "raw loop");
    measured("peer_records_per_s", "SQLite");
    measured("peer_p99_us_sqlite", "ours");
    let absent: Vec<&str> = json["not_run"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for (who, word, figure) in [
        ("fio", "fio", "sustained_bytes_per_s"),
        ("raft-engine", "raft-engine", "peer_records_per_s"),
        ("NATS JetStream", "NATS", "peer_records_per_s"),
    ] {
        let named = absent.iter().any(|why| why.contains(word));
        assert_ne!(seen(figure, who) > 0.0, named, "{who} is measured or named, not both: {json}");
    }
    absent.iter().for_each(|why| println!("NOT RUN: {why}"));
    let left = std::fs::read_dir(dir.0.join("made")).expect("it is made, and still there");
    assert_eq!(left.count(), 0, "what was written is removed");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_written() {
    let dir = dir("usage");
    for (args, why) in [(["--rounds", "0"], "--rounds 0: expected 1 to 1000"), (["--depth", "65"], "--depth 65")] {
        let run = append(&dir, &args);
        assert_eq!(run.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&run.stderr).contains(why), "{run:?}");
    }
    assert_eq!(std::fs::read_dir(&dir.0).expect("it is still there").count(), 0);
}
