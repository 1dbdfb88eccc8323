//! Looks up the names in endpoints: at the start, before a reload that names new ones, and all the time in the background.
//!
//! It asks the system's resolver (`getaddrinfo`), as every other program on this host does: with its hosts file, its search
//! list, its caches. That does not tell for how long an answer holds, hence the interval of `[dns]`. Its calls block, so each
//! waits on a thread of the runtime's; `names` bounds how many.

use super::names::{Answer, Known, Names, Told};
use crate::config::{Config, Dns, Name};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

/// A lookup that takes longer has failed.
const LOOKUP_MAX: Duration = Duration::from_secs(30);

/// What is known of each name, for the pages.
pub type Directory = Arc<Mutex<BTreeMap<Name, Known>>>;

/// How a name is looked up.
pub type Lookup = Arc<dyn Fn(Name) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Names and who asks for them.
pub struct Resolver {
    names: Names,
    lookup: Lookup,
    under_way: JoinSet<Answer>,
    /// Which name a task asks for.
    asked: HashMap<tokio::task::Id, Name>,
    began: Instant,
    directory: Directory,
    told: VecDeque<Told>,
}

/// The system's resolver.
pub fn system() -> Lookup {
    Arc::new(|name: Name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.host.as_str(), name.port)).await;
            found.map(|all| all.map(|a| a.ip()).collect()).map_err(|e| e.to_string())
        })
    })
}

impl Resolver {
    /// With no name to ask for.
    pub fn new(lookup: Lookup) -> Resolver {
        let seed = super::wall_ms() ^ u64::from(std::process::id()) << 32;
        let rules = Dns { every_ms: 10_000, wait_ms_max: 0, addresses_max: 1, family: crate::config::Family::Any };
        Resolver {
            names: Names::new(rules, seed),
            lookup,
            under_way: JoinSet::new(),
            asked: HashMap::new(),
            began: Instant::now(),
            directory: Directory::default(),
            told: VecDeque::new(),
        }
    }

    /// What the pages show.
    pub fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// The addresses of `name`.
    pub fn addresses(&self, name: &Name) -> &[SocketAddr] {
        self.names.addresses(name)
    }

    /// Asks for these and no others from now on.
    pub fn renew(&mut self, config: &Config) {
        self.names.renew(config.dns, config.names(), self.now_ms());
        self.show();
    }

    /// Asks for these too, and waits for the first answers within a limit, while the others go on. Those that have no address
    /// after that, with the reason. What else is to be told comes from `next`.
    pub async fn learn(&mut self, names: BTreeSet<Name>, wait_ms_max: u64) -> Vec<String> {
        self.names.add(names.clone(), self.now_ms());
        let all = async {
            while !self.names.all_tried(&names) {
                let told = self.ask().await;
                self.told.push_back(told);
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms_max), all).await; // who is missing is told
        self.names.missing(&names)
    }

    /// Asks until something is to be told. May be dropped at any time, and called again.
    pub async fn next(&mut self) -> Told {
        match self.told.pop_front() {
            Some(told) => told,
            None => self.ask().await,
        }
    }

    async fn ask(&mut self) -> Told {
        loop {
            while let Some(name) = self.names.next_ask(self.now_ms()) {
                let answer = (self.lookup)(name.clone());
                let late = || Err(format!("no answer within {} s", LOOKUP_MAX.as_secs()));
                let bounded = async move { tokio::time::timeout(LOOKUP_MAX, answer).await.unwrap_or_else(|_| late()) };
                let task = self.under_way.spawn(bounded);
                self.asked.insert(task.id(), name);
            }
            let wake = self.names.deadline_ms().map(|at| self.began + Duration::from_millis(at));
            tokio::select! {
                Some(ended) = self.under_way.join_next_with_id() => {
                    if let Some(told) = self.ended(ended) {
                        return told;
                    }
                }
                () = tokio::time::sleep_until(wake.unwrap_or(self.began)), if wake.is_some() => {}
                else => pending().await,
            }
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Answer), JoinError>) -> Option<Told> {
        let (id, answer) = ended.unwrap_or_else(|e| (e.id(), Err(format!("the lookup failed by itself: {e}"))));
        let name = self.asked.remove(&id).expect("each task was written down when it began");
        let told = self.names.on_answer(&name, answer, self.now_ms(), super::wall_ms());
        self.show();
        told
    }

    fn show(&self) {
        let all = self.names.known().map(|(n, k)| (n.clone(), k.clone())).collect();
        *self.directory.lock().expect("no holder of this lock can panic: it moves values") = all;
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

/// Says it. True: endpoints have changed.
pub fn tell(told: &Told) -> bool {
    match told {
        Told::Changed(name, addresses, left_out) => {
            let more = if *left_out > 0 { format!(", and {left_out} more than are taken") } else { String::new() };
            tracing::info!("{name} is at {addresses:?}{more}");
            true
        }
        Told::Failing(name, why) => {
            tracing::warn!("{name} cannot be looked up, what it had stays in use: {why}");
            false
        }
        Told::Back(name) => {
            tracing::info!("{name} can be looked up again, at the same addresses");
            false
        }
    }
}

/// What is wrong with the names of a configuration now.
pub fn check(config: &Config) -> Result<Vec<String>, String> {
    let runtime = super::runtime()?;
    let missing = runtime.block_on(async {
        let mut resolver = Resolver::new(system());
        resolver.renew(config);
        resolver.learn(config.names(), config.dns.wait_ms_max).await
    });
    runtime.shutdown_background(); // who still waits for a resolver is not waited for
    Ok(missing)
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
