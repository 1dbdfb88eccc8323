//! Runs fio on the same file system: the ceiling that ours is held against.

use super::sample::Sample;
use crate::compare::peers::install;
use crate::sys;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One job over a file that exists, with O_DIRECT.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Job {
    pub work: Work,
    pub block_bytes: u64,
    /// Operations under way at once.
    pub depth: usize,
    pub seconds: f64,
    /// It ends after so many bytes; 0: after the time.
    pub bytes: u64,
    /// Operations a second; 0: as fast as it goes.
    pub rate: u64,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Writes, each with an fdatasync.
    Commit,
    /// Reads from the beginning to the end.
    Read,
}

/// fio, and the file that it writes over.
pub struct Fio {
    file: PathBuf,
    bytes: u64,
    /// Processor time of a run that does next to nothing: it is in each run, and no part of what is measured.
    start_ns: u64,
    core: usize,
}

/// Is there an fio? Installs it where that is allowed.
pub fn present() -> Result<String, String> {
    let version = || {
        let said = Command::new("fio").arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    };
    if let Some(version) = version() {
        return Ok(version);
    }
    install(&["fio"]).map_err(|e| format!("no fio ({e}): `apt-get install -y fio` brings it"))?;
    version().ok_or_else(|| "fio was installed and does not start".into())
}

impl Fio {
    /// Writes a file of `bytes` in `dir`, so that no job has to allocate. Jobs run on `core`, as the log does.
    pub fn new(dir: &Path, bytes: u64, core: usize) -> Result<Fio, String> {
        let mut fio = Fio { file: dir.join("fio.data"), bytes, start_ns: 0, core };
        let lay = ["--rw=write", "--bs=1m", "--ioengine=psync", "--end_fsync=1"].map(str::to_owned);
        fio.start(&lay)?;
        let nothing = Job { work: Work::Commit, block_bytes: 4096, depth: 1, seconds: 0.0, bytes: 4096, rate: 0 };
        fio.start_ns = fio.run(&nothing)?.cpu_ns;
        Ok(fio)
    }

    pub fn run(&self, job: &Job) -> Result<Sample, String> {
        let before = sys::children_cpu_ns();
        let said = self.start(&job.words())?;
        let mut sample = parse(&said, job.work)?;
        sample.cpu_ns = (sys::children_cpu_ns() - before).saturating_sub(self.start_ns);
        Ok(sample)
    }

    fn start(&self, words: &[String]) -> Result<Value, String> {
        let mut command = Command::new("fio");
        command.args(["--name=ceiling", "--direct=1", "--output-format=json", "--thread=1"]);
        command.arg(format!("--filename={}", self.file.display())).arg(format!("--size={}", self.bytes));
        command.arg(format!("--cpus_allowed={}", self.core)).args(words);
        let out = command.output().map_err(|e| format!("fio: {e}"))?;
        let text = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            return Err(format!("fio: {}: {text}{}", out.status, String::from_utf8_lossy(&out.stderr)));
        }
        // Warnings may come before the JSON.
        let begin = text.find('{').ok_or_else(|| format!("fio says no JSON: {text}"))?;
        serde_json::from_str(&text[begin..]).map_err(|e| format!("fio's JSON: {e}"))
    }
}

impl Job {
    fn words(&self) -> Vec<String> {
        let mut words = match self.work {
            Work::Commit => vec!["--rw=write".to_owned(), "--fdatasync=1".to_owned()],
            Work::Read => vec!["--rw=read".to_owned()],
        };
        words.push(format!("--bs={}", self.block_bytes));
        // With one operation at a time the plain system calls are the shortest way; they are what fio is fastest with.
        match self.depth {
            1 => words.push("--ioengine=psync".to_owned()),
            depth => words.extend(["--ioengine=io_uring".to_owned(), format!("--iodepth={depth}")]),
        }
        if self.rate > 0 {
            words.push(format!("--rate_iops={}", self.rate));
        }
        match self.bytes {
            0 => words.extend(["--time_based=1".to_owned(), format!("--runtime={}ms", self.seconds * 1e3)]),
            bytes => words.push(format!("--io_size={bytes}")),
        }
        words
    }
}

/// What a job's JSON says. fio times the write and its fdatasync apart; a commit is both. The median of the sum is taken as the
/// sum of the medians, its p99 as the larger p99 with the other's median: no more than it was, so that ours is not flattered.
fn parse(said: &Value, work: Work) -> Result<Sample, String> {
    let job = &said["jobs"][0];
    if job["error"].as_i64() != Some(0) {
        return Err(format!("fio saw error {}", job["error"]));
    }
    let of = match work {
        Work::Commit => &job["write"],
        Work::Read => &job["read"],
    };
    let number = |v: &Value, what: &str| v.as_f64().ok_or_else(|| format!("fio's JSON has no {what}"));
    let bytes = number(&of["io_bytes"], "io_bytes")?;
    let percentile = |v: &Value, p: &str| v["percentile"][p].as_f64().unwrap_or(0.0) / 1e3;
    let (write, sync) = (&of["clat_ns"], &job["sync"]["lat_ns"]);
    let both = |p| {
        let [w, s] = [write, sync].map(|v| (percentile(v, p), percentile(v, "50.000000")));
        (w.0 + s.1).max(w.1 + s.0)
    };
    let operations = number(&of["total_ios"], "total_ios")?;
    Ok(Sample {
        seconds: number(&of["runtime"], "runtime")? / 1e3,
        records: operations as u64,
        bytes: bytes as u64,
        commits: operations as u64,
        p50_us: both("50.000000"),
        p99_us: both("99.000000"),
        p999_us: both("99.900000"),
        ..Sample::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_a_write_and_its_flush() {
        let lat = |p50: u64, p99: u64| serde_json::json!({ "percentile": { "50.000000": p50, "99.000000": p99 } });
        let said = serde_json::json!({ "jobs": [{ "error": 0,
            "write": { "io_bytes": 8192, "total_ios": 2, "runtime": 500, "clat_ns": lat(60_000, 500_000) },
            "sync": { "lat_ns": lat(120_000, 300_000) } }] });
        let seen = parse(&said, Work::Commit).unwrap();
        assert_eq!((seen.commits, seen.bytes, seen.seconds), (2, 8192, 0.5));
        assert_eq!((seen.p50_us, seen.p99_us), (180.0, 620.0));
        let failed = serde_json::json!({ "jobs": [{ "error": 28 }] });
        assert_eq!(parse(&failed, Work::Commit), Err("fio saw error 28".into()));
        assert!(parse(&serde_json::json!({}), Work::Commit).is_err());
    }

    #[test]
    fn a_job_is_said_in_fios_words() {
        let job = Job { work: Work::Commit, block_bytes: 4096, depth: 1, seconds: 0.5, bytes: 0, rate: 1000 };
        let words = job.words().join(" ");
        assert_eq!(
            words,
            "--rw=write --fdatasync=1 --bs=4096 --ioengine=psync --rate_iops=1000 --time_based=1 --runtime=500ms"
        );
        let job = Job { depth: 4, bytes: 1 << 30, rate: 0, ..job };
        assert!(job.words().join(" ").ends_with("--ioengine=io_uring --iodepth=4 --io_size=1073741824"));
    }
}
