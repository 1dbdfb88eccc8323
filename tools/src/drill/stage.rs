//! The sandbox that drills run on: started, brought back to what it was, and stopped; what several drills want to know of it.

use super::which::Kind;
use dataplane::control::gzs_client::{Denied, GzsClient};
use dataplane::control::report::LogStatus;
use dataplane::sandbox::chart;
use dataplane::sandbox::cluster::{Cluster, Plan, ServiceSettings};
use dataplane::sandbox::pages::Pages;
use dataplane::sandbox::places::{Place, places};
use dataplane::sandbox::wan::Lines;
use dataplane::sandbox::watch;
use gzs::api::{OpAsk, OpView, State, What};
use shardmap::Shard;
use shardmap::point::Point;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long anything may take that has to come to pass: machines of tests are loaded.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// A planned move that takes longer is aborted: less than the 5 s for which routers hold a request.
const MOVE_LIMIT_MS: u64 = 2500;
/// What a limited place holds: the segments of four streams, stores, and some room.
const LIMITED_MIB: u64 = 160;

/// The zone that is broken, and the first of those that are not.
pub const BROKEN: usize = 1;
pub const WHOLE: usize = 0;

/// What a drill is to run on.
pub struct Setting {
    pub program: PathBuf,
    pub zones: usize,
    pub orders_per_s: u32,
    pub each_way_ms: u32,
    pub kind: Kind,
    /// How often what a drill repeats is done; none: as often as the drill thinks enough.
    pub rounds: Option<u32>,
    /// The drill's number: its orders' tokens are its own.
    pub number: usize,
}

impl Setting {
    pub fn one_way(&self) -> Duration {
        Duration::from_millis(self.each_way_ms.into())
    }
}

/// A sandbox. Dropped, its processes are killed and its directory goes.
pub struct Stage {
    pub cluster: Cluster,
    pub gzs: GzsClient,
    pub pages: Pages,
    /// The shard of each place, and the zone that owns it when nothing is broken.
    shards: Vec<Option<Shard>>,
    home: BTreeMap<u16, usize>,
    pub kind: Kind,
    settings: ServiceSettings,
    one_way: Duration,
    _root: Root,
}

/// A directory that goes.
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a temporary directory: whoever cleans it gets the rest
    }
}

/// What a service is told unless a drill wants something else: it takes nothing over by itself, since a loaded machine is silent at times.
pub fn usual() -> ServiceSettings {
    ServiceSettings { silence_ms: 0, move_limit_ms: MOVE_LIMIT_MS }
}

impl Stage {
    /// Starts everything; does not wait for it.
    pub fn start(setting: &Setting) -> Result<Stage, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("ezone-drill-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let root = Root(std::env::temp_dir().join(name));
        fs::create_dir_all(&root.0).map_err(|e| format!("{}: {e}", root.0.display()))?;
        let map = chart::map(setting.zones, setting.kind == Kind::Global)?;
        let plan = Plan {
            root: root.0.clone(),
            program: setting.program.clone(),
            zones: setting.zones,
            one_way: setting.one_way(),
            service: usual(),
            global: setting.kind == Kind::Global,
            limited: (setting.kind == Kind::Limited).then_some((BROKEN, LIMITED_MIB)),
        };
        let cluster = Cluster::of(&plan).map_err(|e| e.to_string())?;
        let gzs = GzsClient::new(&format!("http://{}", cluster.service.listen), None)?;
        let shard_of = |p: &Place| Point::parse(&p.loc).and_then(|point| map.locate(point).shard);
        let owner = |(shard, history): (Shard, &shardmap::ownership::History)| {
            history.view().owner.map(|zone| (shard.0, usize::from(zone.0)))
        };
        Ok(Stage {
            gzs,
            pages: Pages::new()?,
            shards: places().iter().map(shard_of).collect(),
            home: map.shards().filter_map(owner).collect(),
            kind: setting.kind,
            settings: usual(),
            one_way: setting.one_way(),
            cluster,
            _root: root,
        })
    }

    /// The shard of a place, by its number.
    pub fn shard_of(&self, place: usize) -> Option<Shard> {
        self.shards.get(place).copied().flatten()
    }

    /// The zone that owns a shard when nothing is broken.
    pub fn homes(&self) -> BTreeMap<u16, usize> {
        self.home.clone()
    }

    /// One way of the WAN, when nothing is broken.
    pub fn one_way(&self) -> Duration {
        self.one_way
    }

    /// The name of a zone.
    pub fn name(&self, zone: usize) -> &'static str {
        self.cluster.zones[zone].name
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.cluster.zones.iter().map(|z| z.name).collect()
    }

    /// What the service says of everything, once it answers.
    pub async fn state(&self) -> Result<State, String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.gzs.state().await {
                Ok(state) => return Ok(state),
                Err(why) if Instant::now() >= until => return Err(why.to_string()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// How many shards a zone owns by the newest map.
    pub async fn owns(&self, zone: usize) -> Result<usize, String> {
        let state = self.state().await?;
        let name = self.name(zone);
        Ok(state.shards.iter().filter(|s| s.kind != "lost" && s.owner.as_deref() == Some(name)).count())
    }

    /// What a zone's log says of itself, once it answers.
    pub async fn log(&self, zone: usize) -> Result<LogStatus, String> {
        let until = Instant::now() + PATIENCE;
        let at = self.cluster.zones[zone].ports.log_admin;
        loop {
            match self.pages.log(at).await {
                Some(status) => return Ok(status),
                None if Instant::now() >= until => return Err(format!("{}'s log does not answer", self.name(zone))),
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Entries in the conflict ledger of the first zone.
    pub async fn ledger(&self) -> Result<u64, String> {
        self.log(WHOLE).await.map(|s| s.ledger)
    }

    /// Waits until these zones' routers and logs go by map `epoch` or a newer one.
    pub async fn by_map(&self, zones: &[usize], epoch: u64) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        for &zone in zones {
            let ports = self.cluster.zones[zone].ports;
            loop {
                let router = self.pages.router(ports.router_admin).await.is_some_and(|s| s.map_epoch >= epoch);
                let log = self.pages.log(ports.log_admin).await.is_some_and(|s| s.map_epoch >= epoch);
                if router && log {
                    break;
                }
                if Instant::now() >= until {
                    return Err(format!(
                        "{} does not go by map {epoch} after {} s",
                        self.name(zone),
                        PATIENCE.as_secs()
                    ));
                }
                tokio::time::sleep(LOOK / 4).await;
            }
        }
        Ok(())
    }

    /// Where a zone's clients enter.
    pub fn client(&self, zone: usize) -> SocketAddr {
        self.cluster.zones[zone].ports.client
    }

    /// Waits until everything runs, goes by the newest map, and every link is live.
    pub async fn ready(&mut self) -> Result<(), String> {
        let epoch = self.state().await?.epoch;
        watch::ready(&mut self.cluster, &self.pages, epoch, PATIENCE).await
    }

    /// Waits until every zone has applied everything.
    pub async fn quiet(&mut self) -> Result<(), String> {
        watch::quiet(&mut self.cluster, &self.pages, PATIENCE).await
    }

    /// Everything as it was at the start: lines, processes, clocks, room, owners. Nothing places orders meanwhile.
    pub async fn restore(&mut self) -> Result<(), String> {
        self.cluster.wan.heal(Lines::All);
        self.cluster.wan.set_one_way(Lines::All, self.one_way);
        for zone in &mut self.cluster.zones {
            if let Some(volume) = &zone.volume {
                volume.empty().map_err(|e| format!("{}'s place: {e}", zone.name))?;
            }
        }
        self.set_clock_ahead(None).await?;
        self.set_service(usual()).await?;
        self.cluster.start_all().map_err(|e| e.to_string())?;
        self.ready().await?;
        self.all_home().await?;
        self.ready().await?;
        self.quiet().await
    }

    /// Starts the service again by other settings, if they are others.
    pub async fn set_service(&mut self, settings: ServiceSettings) -> Result<(), String> {
        if settings == self.settings {
            return Ok(());
        }
        let service = &mut self.cluster.service;
        service.configure(&settings).map_err(|e| e.to_string())?;
        service.process.stop().await;
        self.settings = settings;
        self.start_service().await.map(|_| ())
    }

    /// Starts the service, if it does not run, and waits until it answers; how long that took.
    pub async fn start_service(&mut self) -> Result<Duration, String> {
        let begun = Instant::now();
        self.cluster.service.process.start().map_err(|e| e.to_string())?;
        while self.gzs.state().await.is_err() {
            // One that does not start is told at once.
            if let Some(why) = self.cluster.service.process.fallen() {
                return Err(why);
            }
            if begun.elapsed() >= PATIENCE {
                return Err(format!("the service does not answer {} s after its start", PATIENCE.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(begun.elapsed())
    }

    /// Starts the log of zone `BROKEN` again with its clock ahead by so much, or right; nothing, if it is so.
    pub async fn set_clock_ahead(&mut self, ms: Option<u32>) -> Result<(), String> {
        let log = &mut self.cluster.zones[BROKEN].log;
        if ms.is_none() && !log.has_env() {
            return Ok(());
        }
        log.set_env("EZONE_CLOCK_AHEAD_MS", ms.map(|ms| ms.to_string()));
        log.stop().await;
        log.start().map_err(|e| e.to_string())
    }

    /// Moves each shard that is not at home back there.
    pub async fn all_home(&mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut away: BTreeMap<usize, Vec<u16>> = BTreeMap::new();
            for shard in self.state().await?.shards {
                let Some(&home) = self.home.get(&shard.shard) else { continue };
                if shard.kind == "moving" || shard.owner.as_deref() != Some(self.name(home)) {
                    away.entry(home).or_default().push(shard.shard);
                }
            }
            let Some((home, shards)) = away.into_iter().next() else { return Ok(()) };
            let what = What::Move { shards, to: self.name(home).into() };
            let said = match self.begin(&what).await {
                Ok((op, _)) => self.gzs.ended(op.id, PATIENCE).await.map(|op| op.says).map_err(|e| e.to_string()),
                Err(why) => Err(why.to_string()),
            };
            if Instant::now() >= until {
                return Err(format!("shards do not get home to {}: {}", self.name(home), said.unwrap_or_else(|e| e)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Begins an operation. What an earlier drill has listed is no reason against it: then it is forced, and the reasons are told.
    pub async fn begin(&self, what: &What) -> Result<(OpView, Vec<String>), Denied> {
        let mut ask =
            OpAsk { what: what.clone(), by: "ezctl drill".into(), why: "a drill".into(), force: false, limit_ms: None };
        match self.gzs.begin(&ask).await {
            Err(Denied::Refused { fault, .. }) if is_only_conflicts(&fault.reasons) => {
                ask.force = true;
                self.gzs.begin(&ask).await.map(|op| (op, fault.reasons))
            }
            other => other.map(|op| (op, vec![])),
        }
    }

    /// Copies what the processes have said so far into `dir`: their files go with the sandbox.
    pub fn keep_said(&self, dir: &Path) {
        let _ = fs::create_dir_all(dir);
        for home in fs::read_dir(&self._root.0).into_iter().flatten().flatten() {
            for file in fs::read_dir(home.path()).into_iter().flatten().flatten() {
                let path = file.path();
                if path.extension().is_some_and(|e| e == "out" || e == "toml") {
                    let name = format!("{}-{}", home.file_name().display(), file.file_name().display());
                    let _ = fs::copy(path, dir.join(name)); // what cannot be kept is not what failed
                }
            }
        }
    }

    /// Ends every process.
    pub async fn stop(&mut self) {
        self.cluster.wan.heal(Lines::All);
        self.cluster.stop().await;
    }
}

fn is_only_conflicts(reasons: &[String]) -> bool {
    !reasons.is_empty() && reasons.iter().all(|r| r.contains("conflicts are open"))
}

/// Looks until it is so; how long that took.
pub async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) -> Result<Duration, String> {
    let begun = Instant::now();
    while !look().await {
        if begun.elapsed() >= PATIENCE {
            return Err(format!("{what}: not within {} s", PATIENCE.as_secs()));
        }
        tokio::time::sleep(LOOK / 4).await;
    }
    Ok(begun.elapsed())
}
