//! Which cores serve what: pure choice out of the machine and the configuration, with a sentence that says why.
//!
//! ```text
//!   split    router 0 1 2 4 5 6   log 3 7      the log has one core in four, whole physical ones where the router keeps most
//!   shared   router 0 1           log 0 1      the log gives way
//!   lists    as the configuration says
//! ```
//!
//! Nothing on disk goes by the number of log cores: a stream has its directory, whichever core serves it.

use super::machine::{Cpu, Machine};
use serde::Deserialize;
use std::fmt::Write;

/// With fewer cores one of the log's own would take a third of the machine, or more, from the router.
const SPLIT_CORES_MIN: usize = 4;
/// In `split` the log has one core in so many.
const CORES_PER_LOG_CORE: usize = 4;

/// What `[layout] mode` says.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By the number of cores.
    #[default]
    Auto,
    /// On different cores.
    Split,
    /// Both on each core, the log at lower priority.
    Shared,
}

/// What the configuration says: a mode, and lists, which win.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Said {
    /// `[layout] mode`.
    pub mode: Mode,
    /// `[router] cores`.
    pub router: Option<Vec<usize>>,
    /// `[log] cores`.
    pub log: Option<Vec<usize>>,
}

/// The parts that a node has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// It has a router.
    pub router: bool,
    /// It has a log, with so many streams: more cores than these would have nothing to do.
    pub streams: Option<u32>,
}

/// How the log's process stands to the router's.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The log and all its helpers stay off the router's cores.
    Split,
    /// The log gives way to the router.
    Shared,
    /// The lists alone: nobody gives way, helpers run where they may.
    #[default]
    Lists,
    /// There is one part only.
    Alone,
}

/// Which cores serve what.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Layout {
    /// What the configuration says of it.
    pub said: Said,
    /// How the parts stand to each other.
    pub kind: Kind,
    /// One router core is pinned to each.
    pub router: Vec<usize>,
    /// One log core is pinned to each.
    pub log: Vec<usize>,
    /// In `split`: where the log's other threads run, which is its cores and what is left of their physical ones.
    pub home: Vec<usize>,
    /// Why it is so.
    pub because: String,
    /// What an operator should know who asked for something else.
    pub warning: Option<String>,
}

/// Which words of the configuration contradict the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// `[router] cores`.
    Router,
    /// `[log] cores`.
    Log,
}

/// The layout of a node with these parts on this machine, or whose words contradict what.
pub fn place(machine: &Machine, said: &Said, parts: Parts) -> Result<Layout, (Blame, String)> {
    let streams = parts.streams.unwrap_or(0) as usize;
    let listed = said.router.is_some() || said.log.is_some();
    let usable = if listed { machine.cpus.clone() } else { machine.within_quota() };
    let mut layout = match (parts.router, parts.streams.is_some()) {
        (true, true) => both(&usable, said, streams)?,
        (router, log) => {
            let own = |list: &Option<Vec<usize>>| list.clone().unwrap_or_else(|| ids(&usable));
            let because = if listed { "as listed" } else { "every core that may be used" };
            Layout {
                kind: Kind::Alone,
                router: if router { own(&said.router) } else { vec![] },
                log: if log { said.log.clone().unwrap_or_else(|| first(&usable, streams)) } else { vec![] },
                because: because.into(),
                ..Layout::default()
            }
        }
    };
    if usable.len() < machine.cpus.len() {
        let _ = write!(layout.because, "; a quota leaves {} of {} cores", usable.len(), machine.cpus.len());
    }
    layout.said = said.clone();
    Ok(layout)
}

fn both(usable: &[Cpu], said: &Said, streams: usize) -> Result<Layout, (Blame, String)> {
    match (&said.router, &said.log) {
        (Some(router), Some(log)) => lists(said.mode, router, log),
        (Some(router), None) => beside_router(usable, said.mode, router, streams),
        (None, Some(log)) => beside_log(usable, said.mode, log),
        (None, None) => Ok(match said.mode {
            Mode::Auto if usable.len() < SPLIT_CORES_MIN => {
                let why = format!("auto: {}, split from {SPLIT_CORES_MIN} on", count(usable.len(), "core"));
                shared(ids(usable), first(usable, streams), &why)
            }
            Mode::Auto => split(usable, streams, "auto"),
            Mode::Split if usable.len() == 1 => {
                let warning = "mode = \"split\" needs two cores and this process may use one: shared instead";
                Layout { warning: Some(warning.into()), ..shared(ids(usable), first(usable, streams), "one core") }
            }
            Mode::Split => split(usable, streams, "mode = \"split\""),
            Mode::Shared => shared(ids(usable), first(usable, streams), "mode = \"shared\""),
        }),
    }
}

/// Both are listed: the mode must not say otherwise.
fn lists(mode: Mode, router: &[usize], log: &[usize]) -> Result<Layout, (Blame, String)> {
    let common: Vec<usize> = router.iter().copied().filter(|c| log.contains(c)).collect();
    match mode {
        Mode::Auto => {
            let because = "as listed".into();
            Ok(Layout { router: router.into(), log: log.into(), because, ..Layout::default() })
        }
        Mode::Split if common.is_empty() => Ok(apart(router.into(), log.into(), log.into(), "as listed".into())),
        Mode::Split => Err((Blame::Log, format!("mode = \"split\", and [router] cores has {} too", ranges(&common)))),
        Mode::Shared if common.is_empty() => {
            Err((Blame::Log, "mode = \"shared\", and [router] cores has none of them".into()))
        }
        Mode::Shared => Ok(shared(router.into(), log.into(), "as listed")),
    }
}

/// The router's cores are listed; the log has what is left.
fn beside_router(usable: &[Cpu], mode: Mode, router: &[usize], streams: usize) -> Result<Layout, (Blame, String)> {
    let rest: Vec<Cpu> = usable.iter().filter(|c| !router.contains(&c.id)).copied().collect();
    let because = "the router's as listed".to_owned();
    match mode {
        Mode::Auto | Mode::Split if !rest.is_empty() => {
            let log = first(&rest, streams);
            Ok(apart(router.into(), log, ids(&rest), because))
        }
        Mode::Split => Err((Blame::Router, "mode = \"split\", and these are all cores: the log needs one".into())),
        Mode::Auto | Mode::Shared => {
            Ok(shared(router.into(), router.iter().copied().take(streams.max(1)).collect(), &because))
        }
    }
}

/// The log's cores are listed; the router has what is left.
fn beside_log(usable: &[Cpu], mode: Mode, log: &[usize]) -> Result<Layout, (Blame, String)> {
    let rest: Vec<usize> = ids(usable).into_iter().filter(|id| !log.contains(id)).collect();
    let because = "the log's as listed".to_owned();
    match mode {
        Mode::Auto | Mode::Split if !rest.is_empty() => Ok(apart(rest, log.into(), log.into(), because)),
        Mode::Split => Err((Blame::Log, "mode = \"split\", and these are all cores: the router needs one".into())),
        Mode::Auto | Mode::Shared => Ok(shared(ids(usable), log.into(), &because)),
    }
}

fn shared(router: Vec<usize>, log: Vec<usize>, because: &str) -> Layout {
    Layout { kind: Kind::Shared, router, log, because: because.into(), ..Layout::default() }
}

fn apart(router: Vec<usize>, log: Vec<usize>, home: Vec<usize>, because: String) -> Layout {
    Layout { kind: Kind::Split, router, log, home, because, ..Layout::default() }
}

/// At least two cores. The log's lie together: of one NUMA node as far as it goes, the one with most cores, and there at the
/// end, since the first ones are where machines send their interrupts.
fn split(usable: &[Cpu], streams: usize, mode: &str) -> Layout {
    let wanted = (usable.len() / CORES_PER_LOG_CORE).max(1);
    let mut home: Vec<Cpu> = vec![];
    for physical in for_log(usable) {
        let most_is_left = (home.len() + physical.len()) * 2 < usable.len();
        if home.len() < wanted && most_is_left {
            home.extend(physical);
        }
    }
    if home.is_empty() {
        // Every physical core is half the machine, or more: one thread of one is taken out.
        home.extend(for_log(usable).first().and_then(|threads| threads.last()));
    }
    let router: Vec<usize> = ids(usable).into_iter().filter(|id| home.iter().all(|h| h.id != *id)).collect();
    let mut because = format!("{mode}: {} of {}", count(home.len(), "core"), usable.len());
    let sibling = usable.iter().find(|c| router.contains(&c.id) && home.iter().any(|h| h.core == c.core));
    match sibling {
        Some(c) => drop(write!(because, ", which shares its physical core with the router's {}", c.id)),
        None if usable.iter().any(|c| usable.iter().any(|o| o.core == c.core && o.id != c.id)) => {
            because += ", no physical core shared with the router"
        }
        None => {}
    }
    let mut nodes: Vec<usize> = home.iter().map(|c| c.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if usable.iter().any(|c| c.node != usable[0].node) {
        let _ = write!(because, ", of NUMA node {}", ranges(&nodes));
    }
    home.sort_unstable_by_key(|c| c.id);
    // One thread of each physical core first.
    let mut threads = home.clone();
    threads.sort_by_key(|c| (home.iter().filter(|h| h.core == c.core && h.id < c.id).count(), c.id));
    apart(router, first(&threads, streams), ids(&home), because)
}

/// Physical cores in the order in which the log takes them.
fn for_log(usable: &[Cpu]) -> Vec<Vec<Cpu>> {
    let size = |node: usize| usable.iter().filter(|c| c.node == node).count();
    let mut all = usable.to_vec();
    all.sort_by_key(|c| (size(c.node), c.node, c.package, c.core, c.id));
    let mut groups: Vec<Vec<Cpu>> = all.chunk_by(|a, b| a.core == b.core).map(<[Cpu]>::to_vec).collect();
    groups.reverse();
    groups
}

fn ids(cpus: &[Cpu]) -> Vec<usize> {
    cpus.iter().map(|c| c.id).collect()
}

/// At most as many as there are streams, in order of their numbers.
fn first(cpus: &[Cpu], streams: usize) -> Vec<usize> {
    let mut first: Vec<usize> = cpus.iter().map(|c| c.id).take(streams.max(1)).collect();
    first.sort_unstable();
    first
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `0-2,5`: as the kernel writes lists of processors.
pub fn ranges(cores: &[usize]) -> String {
    let mut sorted = cores.to_vec();
    sorted.sort_unstable();
    let runs = sorted.chunk_by(|a, b| a + 1 == *b);
    let run = |r: &[usize]| match r {
        [one] => one.to_string(),
        r => format!("{}-{}", r[0], r[r.len() - 1]),
    };
    runs.map(run).collect::<Vec<_>>().join(",")
}

impl Layout {
    /// `split: router on cores 0-2, log on core 3; auto: ..`.
    pub fn sentence(&self) -> String {
        let on = |name: &str, cores: &[usize]| match cores {
            [] => None,
            [one] => Some(format!("{name} on core {one}")),
            some => Some(format!("{name} on cores {}", ranges(some))),
        };
        let parts: Vec<String> = [on("router", &self.router), on("log", &self.log)].into_iter().flatten().collect();
        let kind = match self.kind {
            Kind::Split => "split: ",
            Kind::Shared => "shared: ",
            Kind::Lists => "lists: ",
            Kind::Alone => "",
        };
        let gives_way = if self.kind == Kind::Shared { " at lower priority" } else { "" };
        format!("{kind}{}{gives_way}; {}", parts.join(", "), self.because)
    }

    /// The log keeps the number of cores that it has, whatever was chosen here: the chosen ones, then again from the first on.
    pub fn keep(&mut self, number: usize) {
        self.log = self.log.iter().copied().cycle().take(number).collect();
        let _ = write!(self.because, "; the log keeps its {} until the node is restarted", count(number, "core"));
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
