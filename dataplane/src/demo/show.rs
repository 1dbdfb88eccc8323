//! The show itself: starts everything, plays the script, prints a line a second, proves.

use super::gzs::{Gzs, ZoneAdmin};
use super::summary::Summary;
use super::{NAMES, Options, Script, tally};
use crate::control::{self, report::LogStatus};
use crate::sandbox::cluster::{Cluster, Plan, ServiceSettings};
use crate::sandbox::orders::{Driver, DriverOptions};
use crate::sandbox::places::{Place, places};
use crate::sandbox::report::{Report, Second};
use crate::sandbox::{proof, rows};
use shardmap::map::Map;
use shardmap::{Shard, Zone};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const MAP: &str = include_str!("../../../shardmap/data/china.toml");
const FENCES: &str = include_str!("../../../shardmap/data/china-provinces.geojson");

/// The stand-in for DNS: north of this latitude, `bj` is thought to be nearer. Fences know better.
const DNS_LATITUDE: f64 = 33.0;
/// How long everything may take to start, to come back, or to fall quiet.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a killed zone is silent before it is declared lost.
const SILENCE: Duration = Duration::from_millis(1000);
/// A planned move that takes longer is given up.
const MOVE_LIMIT: Duration = Duration::from_millis(2500);
/// How often a move is begun before the demo gives up.
const MOVE_ATTEMPTS: u32 = 3;
/// The zone that is killed, and the one that takes over.
const KILLED: usize = 1;
const SURVIVOR: usize = 0;

/// Runs the demo below `root`.
pub async fn run(options: &Options, root: &Path) -> Result<Summary, String> {
    let mut stage = Stage::build(options, root).await?;
    let played = tokio::select! {
        played = stage.play() => played,
        _ = control::asked_to_stop(false) => Err("stopped".into()),
    };
    let summary = match played {
        Ok(report) => stage.prove(&report).await,
        Err(why) => Err(why),
    };
    if let Ok(summary) = &summary {
        say(&summary.text(std::io::stdout().is_terminal()));
        if options.serve {
            stage.serve().await;
        }
    }
    stage.cluster.stop().await;
    summary
}

struct Stage<'a> {
    options: &'a Options,
    begun: Instant,
    gzs: Gzs,
    cluster: Cluster,
    summary: Summary,
    /// From the kill until the survivor owned everything.
    outage: Option<(Instant, Instant)>,
}

impl Stage<'_> {
    async fn build<'a>(options: &'a Options, root: &Path) -> Result<Stage<'a>, String> {
        let load = |_: &str| Ok(FENCES.to_owned());
        let (map, _) = Map::from_toml(MAP, load)
            .map_err(|p| p.iter().map(|p| format!("china.toml: {p}")).collect::<Vec<_>>().join("\n"))?;
        let one_way = Duration::from_millis(options.each_way_ms.into());
        say(&format!(
            "ezone: two zones on this host, {} ms apart, {} orders/s at {} towns\n",
            options.each_way_ms * 2,
            options.orders_per_s,
            places().len()
        ));
        let program = std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?;
        // The demo says itself when a zone is lost: how long that takes is part of what it shows.
        let service = ServiceSettings { silence_ms: 0, move_limit_ms: MOVE_LIMIT.as_millis() as u64 };
        let plan =
            Plan { root: root.into(), program, zones: NAMES.len(), one_way, service, global: false, limited: None };
        let mut cluster = Cluster::of(&plan).map_err(|e| format!("starting the zones: {e}"))?;
        if let Some(why) = cluster.no_room() {
            cluster.stop().await;
            return Err(why);
        }
        let admins = cluster.zones.iter().enumerate().map(|(i, z)| ZoneAdmin {
            zone: Zone(i as u8),
            router: z.ports.router_admin,
            log: z.ports.log_admin,
        });
        let gzs = Gzs::at(cluster.service.listen, map, admins.collect())?;
        let begun = Instant::now();
        let mut stage = Stage { options, begun, gzs, cluster, summary: Summary::default(), outage: None };
        if let Err(why) = stage.all_ready().await {
            stage.cluster.stop().await;
            return Err(why);
        }
        for (i, zone) in stage.cluster.zones.iter().enumerate() {
            let owned = stage.owned(i).len();
            say(&format!(
                "  {}  http://{}   owns {owned} of {} shards\n",
                zone.name,
                zone.ports.client,
                stage.gzs.map().shards().count()
            ));
        }
        say("\n");
        Ok(stage)
    }

    /// Waits until every process answers, takes writes, and every link is live.
    async fn all_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(why) = self.cluster.fallen() {
                return Err(why);
            }
            let mut waiting = vec![];
            for (i, name) in NAMES.iter().enumerate() {
                let epoch = self.gzs.map().epoch().0;
                match self.gzs.log_status(Zone(i as u8)).await {
                    None => waiting.push(format!("{name}'s log does not answer")),
                    Some(s) if s.read_only || s.map_epoch < epoch => waiting.push(format!("{name}'s log is read-only")),
                    Some(s) => waiting.extend(links_down(name, &s)),
                }
                match self.gzs.router_status(Zone(i as u8)).await {
                    None => waiting.push(format!("{name}'s router does not answer")),
                    Some(s) if s.map_epoch < epoch => waiting.push(format!("{name}'s router has no map")),
                    Some(_) => {}
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("after {} s: {}", PATIENCE.as_secs(), waiting.join(", ")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn owned(&self, zone: usize) -> Vec<Shard> {
        let map = self.gzs.map();
        map.shards().filter(|(_, h)| h.view().owner == Some(Zone(zone as u8))).map(|(s, _)| s).collect()
    }

    async fn play(&mut self) -> Result<Report, String> {
        let script = Script::of(self.options.seconds);
        let routers: Vec<(SocketAddr, String)> =
            self.cluster.zones.iter().map(|z| (z.ports.client, z.name.to_owned())).collect();
        let entry = Box::new(|p: &Place| usize::from(p.lat < DNS_LATITUDE));
        let options = DriverOptions::new(routers, self.options.orders_per_s.into(), entry);
        let driver = Driver::start(DriverOptions { seed: self.options.seed, ..options });
        self.begun = Instant::now();
        say("  time  orders/s   bj p99 ms   sh p99 ms   other zone   replication lag\n");
        let played = self.acts(&script, &driver).await;
        let report = driver.stop().await;
        played.map(|()| report)
    }

    async fn acts(&mut self, script: &Script, driver: &Driver) -> Result<(), String> {
        self.lines_until(script.move_at, driver).await?;
        self.planned_move().await?;
        self.lines_until(script.kill_at, driver).await?;
        let killed = Instant::now();
        self.act(&format!("SIGKILL to every process of zone {}", NAMES[KILLED]));
        self.measure_lag().await;
        driver.set_router_up(KILLED, false);
        self.cluster.zones[KILLED].kill().await;
        self.summary.zone_killed = NAMES[KILLED].to_owned();
        tokio::time::sleep(SILENCE).await;
        self.take_over(killed).await?;
        self.lines_until(script.return_at, driver).await?;
        self.return_of_the_lost(driver).await?;
        self.lines_until(script.end_at, driver).await
    }

    /// A planned move, begun again if it was too slow and aborted: nothing was lost by that, clients waited.
    async fn moved(&self, shards: &[Shard], to: usize) -> Result<Duration, String> {
        for _ in 1..MOVE_ATTEMPTS {
            match self.gzs.move_shards(shards, Zone(to as u8), MOVE_LIMIT).await {
                Ok(took) => return Ok(took),
                Err(why) => self.act(&format!("{why}; trying again")),
            }
        }
        self.gzs.move_shards(shards, Zone(to as u8), MOVE_LIMIT).await.map_err(|e| e.to_string())
    }

    /// Before the kill: afterwards the figures would tell how long a zone was down.
    async fn measure_lag(&mut self) {
        for i in 0..NAMES.len() {
            if let Some(status) = self.gzs.log_status(Zone(i as u8)).await {
                let s = &mut self.summary;
                s.lag_ms_p50 = s.lag_ms_p50.max(status.lag.p50_us as f64 / 1000.0);
                s.lag_ms_p99 = s.lag_ms_p99.max(status.lag.p99_us as f64 / 1000.0);
            }
        }
    }

    async fn planned_move(&mut self) -> Result<(), String> {
        let map = self.gzs.map();
        // The shard of Shanghai, which is busy, goes to the north.
        let point = shardmap::point::Point::parse("121.47,31.23").ok_or("the demo cannot read its own coordinates")?;
        let shard = map.locate(point).shard.ok_or("the demo's map knows no Shanghai")?;
        let took = self.moved(&[shard], SURVIVOR).await?;
        self.summary.shard_moved = true;
        self.summary.move_ms = ms(took);
        self.act(&format!(
            "shard {shard} (Shanghai) moved from {} to {} in {:.0} ms, map {}",
            NAMES[KILLED],
            NAMES[SURVIVOR],
            self.summary.move_ms,
            self.gzs.map().epoch()
        ));
        Ok(())
    }

    async fn take_over(&mut self, killed: Instant) -> Result<(), String> {
        let (lost, survivor) = (Zone(KILLED as u8), Zone(SURVIVOR as u8));
        let shards = self.gzs.take_over(lost, survivor, MOVE_LIMIT).await.map_err(|e| e.to_string())?;
        let epoch = self.gzs.map().epoch().0;
        // The outage ends when the survivor's router goes by the map that gives it everything.
        let deadline = Instant::now() + PATIENCE;
        while self.gzs.router_status(survivor).await.is_none_or(|s| s.map_epoch < epoch) {
            if Instant::now() > deadline {
                return Err("the survivor's router does not take the new map".into());
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        self.outage = Some((killed, Instant::now()));
        self.summary.outage_ms = ms(killed.elapsed());
        self.act(&format!(
            "{} shards of {} taken over by {}, {:.0} ms after the kill, map {epoch}",
            shards.len(),
            NAMES[KILLED],
            NAMES[SURVIVOR],
            self.summary.outage_ms
        ));
        Ok(())
    }

    /// The killed zone starts again, ships its tail, and gets its shards back by a planned move.
    async fn return_of_the_lost(&mut self, driver: &Driver) -> Result<(), String> {
        let begun = Instant::now();
        self.cluster.zones[KILLED].start().map_err(|e| format!("starting zone {}: {e}", NAMES[KILLED]))?;
        self.all_ready().await?;
        self.locks_open().await?;
        self.summary.unknown_at_takeover = self.gzs.log_status(Zone(SURVIVOR as u8)).await.map_or(0, |s| s.ledger);
        self.act(&format!(
            "zone {} is back after {:.0} ms; {} records were in doubt, all are listed",
            NAMES[KILLED],
            ms(begun.elapsed()),
            self.summary.unknown_at_takeover
        ));
        driver.set_router_up(KILLED, true);
        let (shards, took) = self.restored(KILLED).await?;
        self.summary.return_ms = ms(begun.elapsed());
        self.act(&format!("{shards} shards moved back to {} in {:.0} ms", NAMES[KILLED], ms(took)));
        Ok(())
    }

    /// Likewise for what was taken over from a zone.
    async fn restored(&self, zone: usize) -> Result<(usize, Duration), String> {
        for _ in 1..MOVE_ATTEMPTS {
            match self.gzs.restore(Zone(zone as u8), MOVE_LIMIT).await {
                Ok(done) => return Ok(done),
                Err(why) => self.act(&format!("{why}; trying again")),
            }
        }
        self.gzs.restore(Zone(zone as u8), MOVE_LIMIT).await.map_err(|e| e.to_string())
    }

    /// Waits until the survivor has applied all that the lost zone had written, FENCEs and tail.
    async fn locks_open(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (lost, survivor) = (Zone(KILLED as u8), Zone(SURVIVOR as u8));
            let both = (self.gzs.log_status(lost).await, self.gzs.log_status(survivor).await);
            if let (Some(lost), Some(survivor)) = both
                && has_applied(&survivor, &lost, NAMES[KILLED])
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("zone {}'s tail did not arrive in {} s", NAMES[KILLED], PATIENCE.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A line each second until `at` of the script.
    async fn lines_until(&mut self, at: Duration, driver: &Driver) -> Result<(), String> {
        let end = self.begun + at;
        while Instant::now() < end {
            let next = Duration::from_millis(1000 - (self.begun.elapsed().as_millis() % 1000) as u64);
            tokio::time::sleep(next.min(end.saturating_duration_since(Instant::now()))).await;
            if let Some(why) = self.cluster.fallen().or_else(|| self.cluster.no_room()) {
                return Err(why);
            }
            if self.begun.elapsed().subsec_millis() < 500 {
                let lag = self.gzs.log_status(Zone(SURVIVOR as u8)).await.map(|s| s.lag.p50_us);
                self.line(&driver.snapshot(), lag);
            }
        }
        Ok(())
    }

    fn line(&self, second: &Second, lag_us: Option<u64>) {
        let p99 = |zone: usize| match second.p99_us.get(zone) {
            Some((_, us)) if *us > 0 => format!("{:>9.2}", *us as f64 / 1000.0),
            Some(_) | None => format!("{:>9}", "-"),
        };
        let lag = lag_us.map_or("-".into(), |us| format!("{:.1} ms", us as f64 / 1000.0));
        say(&format!(
            "{:>5}s {:>9.0}   {}   {}   {:>8.1} %   {lag:>12}\n",
            self.begun.elapsed().as_secs(),
            second.orders_per_s,
            p99(0),
            p99(1),
            second.cross_zone_share * 100.0
        ));
    }

    fn act(&self, what: &str) {
        say(&format!("{:>5.1}s >> {what}\n", self.begun.elapsed().as_secs_f64()));
    }

    /// Waits until both zones have applied everything, then compares and counts.
    async fn prove(&mut self, report: &Report) -> Result<Summary, String> {
        self.quiet().await?;
        let mut s = self.summary.clone();
        for i in 0..NAMES.len() {
            let status = self.gzs.router_status(Zone(i as u8)).await.ok_or("a router does not answer at the end")?;
            s.held_ms_max = s.held_ms_max.max(status.held_ms_max);
            s.held += status.held;
        }
        let mut copies = vec![];
        for zone in &self.cluster.zones {
            let mut copy =
                rows::rows(&zone.data, "orders").map_err(|e| format!("the store of zone {}: {e}", zone.name))?;
            copy.sort();
            copies.push((zone.name.to_owned(), copy));
        }
        let mut digests = vec![];
        for i in 0..NAMES.len() {
            digests.push(self.gzs.log_digests(Zone(i as u8)).await.ok_or("a log does not answer at the end")?);
        }
        s.rows = copies[0].1.len() as u64;
        // Twice over: the keys and values by our own eyes, versions and ledger by the stores' digests.
        s.copies_identical = copies.windows(2).all(|c| c[0].1 == c[1].1) && digests.windows(2).all(|d| d[0] == d[1]);
        s.digests = digests.iter().map(|d| blake3::hash(d.as_bytes()).to_hex().to_string()).collect();
        tally::count(report, self.outage, &mut s);
        let proof = proof::prove(copies.into_iter().map(|(name, rows)| (name, rows.into_iter())), report);
        (s.lost, s.doubled) = (proof.lost as u64, proof.doubled as u64);
        s.unasked = (proof.unasked + proof.refused_present) as u64;
        s.examples =
            proof.lost_tokens.iter().map(|(token, zones)| format!("{token}, not in {}", zones.join(", "))).collect();
        s.examples.extend(proof.doubled_tokens);
        Ok(s)
    }

    async fn quiet(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut statuses = vec![];
            for i in 0..NAMES.len() {
                statuses.extend(self.gzs.log_status(Zone(i as u8)).await);
            }
            let all = statuses.len() == NAMES.len();
            let origins = || statuses.iter().zip(NAMES);
            if all && statuses.iter().all(|s| origins().all(|(o, name)| has_applied(s, o, name))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the zones did not fall quiet within {} s", PATIENCE.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn serve(&self) {
        let [bj, sh] = [0, 1].map(|i| self.cluster.zones[i].ports);
        say(&format!(
            "\nServing until Ctrl-C. Try:\n\
             \x20 curl -i -X POST http://{}/records/orders -H 'x-shard: loc=116.40,39.90' -d '{{\"dish\":\"duck\"}}'\n\
             \x20 curl -i http://{}/records/orders/ID                              # at the other zone's router: forwarded\n\
             \x20 curl -i http://{}/records/orders/ID -H 'x-ezone-read: local'     # from the other zone's own copy\n\
             \x20 curl http://{}/status ; curl http://{}/status                    # log and router of {}\n",
            bj.client, sh.client, sh.client, bj.log_admin, bj.router_admin, NAMES[0]
        ));
        let _ = control::asked_to_stop(false).await; // without signals there is nothing to wait for
    }
}

/// The first link that is not up, with what it waits for or stopped at.
fn links_down(name: &str, status: &LogStatus) -> Option<String> {
    let others = NAMES.len() - 1;
    status.streams.iter().find_map(|s| match s.links.iter().find(|(_, l)| l.state != "live") {
        Some((to, link)) => Some(format!("{name}'s link to {to}, stream {}: {}", s.stream, link.state)),
        None if s.links.len() < others => Some(format!("{name}'s links of stream {} are not up", s.stream)),
        None => None,
    })
}

/// Has `here` applied all that is durable in `origin`'s log, the zone called `name`?
fn has_applied(here: &LogStatus, origin: &LogStatus, name: &str) -> bool {
    origin.streams.iter().all(|o| {
        let here = here.streams.iter().find(|s| s.stream == o.stream);
        here.and_then(|s| s.applied.get(name).copied()).unwrap_or(0) >= o.durable_seq
    })
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// A closed pipe is no reason to stop in the middle of a proof.
pub(super) fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
