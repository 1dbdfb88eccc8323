//! `ezbench compare router --tiny`, whole, with the router of this very source: the test's own process stands in for `ezone`.
//!
//! It has no harness, so that it can be started as `compare router --config F` and `compare log --config F`.

use dataplane::config::Config;
use dataplane::control;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Set for whatever the comparison starts: if that were to run the tests again, processes would multiply without end.
const STARTED_BY_IT: &str = "EZBENCH_COMPARE_TEST";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["router", "--config", file] => {
            let start = control::router::Start { file: Path::new(file), stop_with_stdin: false, take_over: false };
            ezone(file, |c| control::router::run(c, start))
        }
        ["log", "--config", file] => ezone(file, |c| control::log::run(c, false)),
        ["--list", ..] => ExitCode::SUCCESS,
        ["--version"] => {
            println!("ezone {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        other if std::env::var_os(STARTED_BY_IT).is_some() => {
            eprintln!("the test's own process was started with {other:?}, which no router or log is");
            ExitCode::from(2)
        }
        _ => {
            every_phase_runs_without_an_error();
            what_cannot_be_run_is_named_and_no_error();
            println!("test result: ok. compare: 2 passed");
            ExitCode::SUCCESS
        }
    }
}

fn ezone(file: &str, run: impl Fn(&Config) -> Result<(), control::Failed>) -> ExitCode {
    let config = Config::load(Path::new(file)).map_err(|e| e.to_string());
    let said = |e: control::Failed| match e {
        control::Failed::Input(why) | control::Failed::Fault(why) => why,
    };
    match config.and_then(|c| run(&c).map_err(said)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::from(2)
        }
    }
}

/// What `ezbench compare router --tiny` printed, and its JSON.
fn compare(ours: &str, args: &[&str]) -> (String, Value) {
    let run = Command::new(env!("CARGO_BIN_EXE_ezbench"))
        .env(STARTED_BY_IT, "1")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")) // where the map is, as the README's command has it
        .args(["compare", "router", "--tiny", "--json", "--connections", "4,16", "--ours", ours])
        .args(["--proxy-core", "0", "--load-core", "0"]) // the machine may have one core only
        .args(args)
        .output()
        .expect("ezbench was built with this test");
    let said = String::from_utf8_lossy(&run.stderr);
    let text = String::from_utf8(run.stdout).expect("a report is text");
    assert_eq!(run.status.code(), Some(0), "{said}\n{text}");
    let last = text.lines().last().unwrap_or_else(|| panic!("no report: {said}"));
    let json = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"));
    (text, json)
}

fn every_phase_runs_without_an_error() {
    let ours =
        format!("{} router --config {{config}}", std::env::current_exe().expect("this process has a file").display());
    let plot = Plot(std::env::temp_dir().join(format!("ezbench-plot-{}.svg", std::process::id())));
    let (text, seen) = compare(&ours, &["--plot", &plot.0.display().to_string()]);
    let number = |value: &Value| assert!(value.as_f64().is_some_and(|v| v > 0.0), "{value} in {seen}");
    for at in ["4", "16"] {
        for key in ["cpu_us_per_request", "requests_per_s", "p99_us", "p999_us"] {
            number(&seen[key]["ours"][at]);
        }
    }
    number(&seen["bytes_per_cpu_s"]["ours"]["1048576"]);
    number(&seen["swap_p99_us"]["ours disturbed"]["64"]);
    number(&seen["swapped"]["taken"]);
    for layout in ["split", "shared"] {
        number(&seen[format!("log_{layout}_cpu_us_per_request")]["ours disturbed"]["64"]);
        number(&seen[format!("log_{layout}_own_p99_us")]["ours disturbed"]["64"]);
        number(&seen[format!("shipped_{layout}")]["written_per_s"]);
    }
    let absent = seen["not_run"].as_array().expect("it says what was not run");
    for (name, path) in [("nginx", "/usr/sbin/nginx"), ("haproxy", "/usr/sbin/haproxy")] {
        match Path::new(path).exists() {
            true => number(&seen["cpu_us_per_request"][name]["4"]),
            false => assert!(absent.iter().any(|why| why.as_str().is_some_and(|w| w.contains(path))), "{seen}"),
        }
    }
    absent.iter().for_each(|why| println!("NOT RUN: {why}"));
    assert!(text.contains("| target | limit |"), "{text}");
    let drawn = std::fs::read_to_string(&plot.0).expect("a plot was asked for");
    assert!(drawn.starts_with("<svg") && drawn.contains("ours"), "{drawn}");
}

fn what_cannot_be_run_is_named_and_no_error() {
    // The backend itself stands in for the router: nothing looks into it, and it has no log.
    let ours = format!("{} upstream --seconds 60 --listen {{listen}}", env!("CARGO_BIN_EXE_ezbench"));
    let (text, seen) = compare(&ours, &["--ours-only", "--phase", "closed,swap,log-split"]);
    assert!(text.contains("NOT RUN: phase Swap") && text.contains("NOT RUN: phase LogSplit"), "{text}");
    assert!(seen["targets"].as_array().is_some_and(|all| all.iter().all(|t| t["met"].is_null())), "{seen}");
}

/// A file that is gone when this is.
struct Plot(PathBuf);

impl Drop for Plot {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
