//! What every phase needs: backends, one proxy at a time on its core, and a measured load on it.

use super::figures::Who;
use super::peers::{self, Places, Running, Sink};
use crate::load::{self, Plan};
use crate::manner::Options;
use crate::outcome::Outcome;
use crate::schedule::Pace;
use crate::script::{Body, Script};
use crate::serve::Server;
use crate::target::Url;
use core_affinity::CoreId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Why there are no figures when a signal came.
pub const INTERRUPTED: &str = "interrupted";
/// How long a proxy may take until it answers; reading a map of a million ids is part of it.
const START_MAX: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);
/// What a client sends besides its tag. The last one is not a client's to say: each proxy removes it.
const HEADERS: [&str; 3] = ["user-agent: ezbench", "accept: */*", "x-ezone: nobody"];

/// The machine, as it is divided.
pub struct Rig {
    /// How ours is started.
    pub ours: String,
    pub proxy_core: CoreId,
    /// Of the load, the backends, and whatever else is not a proxy.
    pub load_core: CoreId,
    pub dir: PathBuf,
    pub stop: OwnedFd,
    sink: Sink,
    backends: BTreeMap<usize, SocketAddr>,
    /// Loads that saw errors, and what they saw.
    pub errors: Vec<String>,
    /// Lines logged and answers given, of each proxy.
    pub logged: BTreeMap<Who, (u64, u64)>,
}

/// A proxy that answers.
pub struct Under {
    pub who: Who,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub running: Running,
    answers: u64,
}

/// One load.
#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub pace: Pace,
    pub connections: usize,
    pub warmup_s: f64,
    pub seconds: f64,
    /// Tags, of which each request takes one.
    pub tags: &'a [String],
}

/// What it measured.
pub struct Sample {
    pub cpu_us: f64,
    pub outcome: Outcome,
}

impl Sample {
    /// In microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.outcome.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

impl Rig {
    /// Starts a backend for each size of body; they serve until this process ends.
    pub fn new(ours: &str, cores: [CoreId; 2], dir: &Path, stop: OwnedFd, bodies: &[usize]) -> Result<Rig, String> {
        let mut backends = BTreeMap::new();
        for bytes in bodies {
            let listener = Server::listen(([127, 0, 0, 1], 0).into()).map_err(|e| format!("the backend: {e}"))?;
            backends.insert(*bytes, listener.local_addr().map_err(|e| e.to_string())?);
            let options = Options { body_bytes: (*bytes, *bytes), ..Options::default() };
            let (stop, core) = (stop.try_clone().map_err(|e| e.to_string())?, cores[1]);
            thread::spawn(move || {
                core_affinity::set_for_current(core);
                Server::new(listener, options, 0, &stop).and_then(|mut s| s.run(None))
            });
        }
        core_affinity::set_for_current(cores[1]);
        Ok(Rig {
            ours: ours.to_owned(),
            proxy_core: cores[0],
            load_core: cores[1],
            dir: dir.to_owned(),
            stop,
            sink: Sink::new()?,
            backends,
            errors: vec![],
            logged: BTreeMap::new(),
        })
    }

    /// Starts `who` in front of the backend with bodies of `bytes`, and waits until it answers.
    pub fn start(&mut self, who: Who, bytes: usize, map: &str, cores: &[CoreId]) -> Result<Under, String> {
        let failed = |why: String| if why == INTERRUPTED { why } else { format!("{}: {why}", who.name()) };
        let places = Places {
            listen: peers::free_address()?,
            admin: peers::free_address()?,
            upstream: *self.backends.get(&bytes).ok_or("no backend of that size")?,
            sink: self.sink.address()?,
            dir: &self.dir,
            core: self.proxy_core.id,
            map,
            ours: &self.ours,
        };
        let command = peers::prepare(who, &places).map_err(failed)?;
        let said = self.dir.join(format!("{}.said", who.name().replace(' ', "-")));
        let running = Running::start(&command, cores, &said, false).map_err(failed)?;
        let mut under = Under { who, listen: places.listen, admin: places.admin, running, answers: 0 };
        self.await_answer(&mut under)
            .map_err(|e| failed(if e == INTERRUPTED { e } else { format!("`{command}`: {e}") }))?;
        Ok(under)
    }

    fn await_answer(&mut self, under: &mut Under) -> Result<(), String> {
        let until = Instant::now() + START_MAX;
        let load = Load { pace: Pace::Closed, connections: 1, warmup_s: 0.0, seconds: 0.02, tags: &[] };
        loop {
            let outcome = self.drive(under, &load, |_, _| {})?;
            if outcome.is_fine() {
                return Ok(());
            }
            if under.running.has_ended() || Instant::now() > until {
                return Err(format!("it does not answer: {}", outcome.to_text(None)));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Loads `under` and measures it, without the warm-up.
    pub fn measure(&mut self, under: &mut Under, load: &Load) -> Result<Sample, String> {
        let (warmup, mut begin) = (Duration::from_secs_f64(load.warmup_s), None);
        // Processor time and answers are read at one moment: what was answered before it is not counted either.
        let process = &under.running;
        let mut first = |at: Duration, seen: &Outcome| {
            if begin.is_none() && at >= warmup {
                begin = Some((process.cpu_ns(), seen.answers));
            }
        };
        let outcome = {
            let (plan, stop) = (plan(under.listen, load)?, &self.stop);
            let sink = &mut self.sink;
            load::drive(&plan, Some(stop), |at, seen| {
                first(at, seen);
                sink.drain();
            })
            .map_err(|e| e.to_string())?
        };
        if outcome.interrupted {
            return Err(INTERRUPTED.into());
        }
        let (cpu_ns, before) = begin.ok_or("the load ended before it was warm")?;
        let (cpu_ns, answers) = (under.running.cpu_ns() - cpu_ns, outcome.answers - before);
        under.answers += outcome.answers;
        if !outcome.is_fine() {
            self.errors.push(format!(
                "{} at {} connections: {}",
                under.who.name(),
                load.connections,
                outcome.to_text(None)
            ));
        }
        if answers == 0 {
            return Err(format!("{}: no answers", under.who.name()));
        }
        Ok(Sample { cpu_us: cpu_ns as f64 / 1e3 / answers as f64, outcome })
    }

    fn drive(&mut self, under: &Under, load: &Load, tick: impl FnMut(Duration, &Outcome)) -> Result<Outcome, String> {
        let outcome = load::drive(&plan(under.listen, load)?, Some(&self.stop), tick).map_err(|e| e.to_string())?;
        if outcome.interrupted { Err(INTERRUPTED.into()) } else { Ok(outcome) }
    }

    /// Ends `under`, and looks how much it has logged.
    pub fn end(&mut self, under: Under) {
        let Under { who, running, answers, .. } = under;
        drop(running);
        if let Some(lines) = self.sink.logged(who, &self.dir) {
            let all = self.logged.entry(who).or_default();
            (all.0, all.1) = (all.0 + lines, all.1 + answers);
        }
    }
}

fn plan(address: SocketAddr, load: &Load) -> Result<Plan, String> {
    let url = Url { authority: &address.to_string(), path: "/".into() };
    let headers: Vec<String> = HEADERS.iter().map(|h| h.to_string()).collect();
    let place = ["x-shard: loc=116.40,39.90".to_owned()];
    let tags = if load.tags.is_empty() { &place } else { load.tags };
    Ok(Plan {
        address,
        script: Script::new("GET", &url, &headers, Body::Fixed(vec![]))?.with_choices(tags)?,
        pace: load.pace,
        requests: u64::MAX,
        connections: load.connections,
        pipeline: 1,
        warmup: Duration::from_secs_f64(load.warmup_s),
        duration: Duration::from_secs_f64(load.seconds),
        timeout: TIMEOUT,
    })
}
