//! Drills on a running system: those that its clients are promised not to notice. Nothing is killed and no line is touched here; what
//! breaks things is for a sandbox.
//!
//! The load is orders of the drill's own, in a table of its own, placed at real towns through the routers that are named. What was acknowledged is
//! read back from every zone, by its id, and then deleted. Whatever happens, and at ^C too, each shard that the drill moved goes home.

use super::report::{Check, Orders, Report, Step, Verdict};
use super::scene;
use super::which::Which;
use dataplane::control;
use dataplane::control::gzs_client::GzsClient;
use dataplane::sandbox::client::Client;
use dataplane::sandbox::orders::{Driver, DriverOptions};
use dataplane::sandbox::places::Place;
use dataplane::sandbox::proof::prove;
use dataplane::sandbox::report::{Order, Outcome, Report as Told};
use dataplane::sandbox::tally::Tally;
use gzs::api::{OpAsk, State, What};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long an order may take to reach every zone, and a shard to get home.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// How long orders flow before, between and after what a drill does.
const CALM: Duration = Duration::from_secs(1);
/// Orders that are read back or deleted at once.
const AT_ONCE: usize = 64;

/// A system, and what to do with it.
pub struct Live {
    pub gzs: GzsClient,
    /// A router of each zone, by the zone's name.
    pub routers: Vec<(String, SocketAddr)>,
    pub orders_per_s: u32,
    pub rounds: u32,
    /// What planned-move moves.
    pub shard: Option<u16>,
    /// What evacuate-restore evacuates.
    pub zone: Option<String>,
}

/// A drill that a running system can bear.
#[derive(Clone, Copy)]
pub enum Harmless {
    PlannedMove,
    EvacuateRestore,
}

impl Harmless {
    /// `None`: that one breaks things.
    pub fn of(which: Which) -> Option<Harmless> {
        [Harmless::PlannedMove, Harmless::EvacuateRestore].into_iter().find(|harmless| harmless.which() == which)
    }

    fn which(self) -> Which {
        match self {
            Harmless::PlannedMove => Which::PlannedMove,
            Harmless::EvacuateRestore => Which::EvacuateRestore,
        }
    }
}

struct Scene<'a> {
    live: &'a Live,
    begun: Instant,
    steps: Vec<Step>,
    checks: Vec<Check>,
    figures: BTreeMap<String, f64>,
    /// Whose the shards are that the drill moves.
    home: BTreeMap<u16, String>,
}

/// Runs one; `seed` makes its orders' tokens its own.
pub async fn run(which: Harmless, live: &Live, seed: u64) -> Report {
    let begun = Instant::now();
    let mut report = Report::new(which.which(), live.routers.len(), live.orders_per_s, None);
    report.notes.push("rows that nobody asked for: what is there is read by the ids that clients were given".into());
    match preflight(which, live).await {
        Ok(home) => {
            let (steps, checks, figures) = (vec![], vec![], BTreeMap::new());
            let scene = Scene { live, begun, steps, checks, figures, home };
            scene.play(which, seed, &mut report).await;
        }
        // Nothing was done.
        Err(why) => {
            report.restored = true;
            report.why.push(format!("preflight: {why}"));
        }
    }
    report.took_ms = begun.elapsed().as_millis() as u64;
    if report.why.is_empty() && report.restored && report.checks.iter().all(|c| c.holds) {
        report.verdict = Verdict::Passed;
    }
    report
}

/// Is the system well, and is what is asked for there? Whose the shards are that are to move.
async fn preflight(which: Harmless, live: &Live) -> Result<BTreeMap<u16, String>, String> {
    let state = live.gzs.state().await.map_err(|e| e.to_string())?;
    if let Some(why) = &state.stopped {
        return Err(why.clone());
    }
    if let Some(op) = state.ops.iter().find(|op| op.state == "running") {
        return Err(format!("operation {} is under way: a drill waits until nothing is", op.id));
    }
    for zone in state.zones.iter().filter(|z| z.id.is_some()) {
        if zone.state != "up" {
            return Err(format!("zone {} is {}: a drill begins when all are up", zone.name, zone.state));
        }
        if !live.routers.iter().any(|(name, _)| *name == zone.name) {
            return Err(format!("no router of zone {} is named: --router {}=HOST:PORT", zone.name, zone.name));
        }
    }
    for (name, at) in &live.routers {
        let seen = zone_of(*at).await?;
        if seen != *name {
            return Err(format!("--router {name}={at}: that router says that it is of zone {seen}"));
        }
    }
    let owned = |pick: &dyn Fn(u16, &str) -> bool| -> BTreeMap<u16, String> {
        let settled = state.shards.iter().filter(|s| s.kind == "own" || s.kind == "unlock");
        let all = settled.filter_map(|s| Some((s.shard, s.owner.clone()?)));
        all.filter(|(shard, owner)| pick(*shard, owner)).collect()
    };
    let home = match which {
        Harmless::PlannedMove => {
            let shard = live.shard.ok_or("which shard? --shard N names one to move there and back")?;
            owned(&|s, _| s == shard)
        }
        Harmless::EvacuateRestore => {
            let zone = live.zone.as_deref().ok_or("which zone? --zone NAME names one to evacuate and restore")?;
            owned(&|_, owner| owner == zone)
        }
    };
    if home.is_empty() { Err("what is named is not on the map, or owns nothing".into()) } else { Ok(home) }
}

/// The zone that a router says it is of.
async fn zone_of(at: SocketAddr) -> Result<String, String> {
    let answer = ask(at, "GET", "/ownership", "", None).await.map_err(|e| format!("the router at {at}: {e}"))?;
    let wrong = || format!("the router at {at} answers {} to GET /ownership", answer.0);
    let json: serde_json::Value = serde_json::from_slice(&answer.1).map_err(|_| wrong())?;
    json["zone"].as_str().map(str::to_owned).ok_or_else(wrong)
}

async fn ask(
    at: SocketAddr,
    method: &str,
    path: &str,
    head: &str,
    body: Option<&[u8]>,
) -> Result<(u16, Vec<u8>), String> {
    let length = body.map_or(0, <[u8]>::len);
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nhost: drill\r\n{head}content-length: {length}\r\n\r\n").into_bytes();
    request.extend_from_slice(body.unwrap_or_default());
    let asked = async { Client::connect(at).await?.ask(&request).await };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => Ok((answer.status, answer.body)),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

impl Scene<'_> {
    async fn play(mut self, which: Harmless, seed: u64, report: &mut Report) {
        let routers: Vec<_> = self.live.routers.iter().map(|(name, at)| (*at, name.clone())).collect();
        let (count, table) = (routers.len(), which.which().name().replace('-', "_"));
        // Clients of one place enter at one router, whoever owns it.
        let entry = move |place: &Place| (place.lat + place.lng).abs() as usize % count;
        let options = DriverOptions::new(routers, self.live.orders_per_s.into(), Box::new(entry));
        let driver = Driver::start(DriverOptions { seed, table: format!("drill_{table}"), ..options });
        // Between two operations only: one that was begun is waited for, so that it is known where its shards are.
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move {
            let hung_up = async {
                match signal(SignalKind::hangup()) {
                    Ok(mut hangup) => drop(hangup.recv().await),
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = control::asked_to_stop(false) => {}
                () = hung_up => {}
            }
            let _ = stop.send(true); // nobody waits: the drill is over
        });
        report.why.extend(self.act(which, stopped).await.err());
        match self.go_home().await {
            Ok(()) => report.restored = true,
            Err(why) => report.why.push(format!("restore: {why}")),
        }
        tokio::time::sleep(CALM).await;
        let told = driver.stop().await;
        self.judge(&told, &format!("drill_{table}"), report).await;
        (report.steps, report.checks, report.figures) = (self.steps, self.checks, self.figures);
    }

    async fn act(&mut self, which: Harmless, mut stopped: watch::Receiver<bool>) -> Result<(), String> {
        calm(&mut stopped).await?;
        for _ in 0..self.live.rounds {
            match which {
                Harmless::PlannedMove => {
                    let (shard, home) = self.home.iter().next().map(|(s, z)| (*s, z.clone())).ok_or("no shard")?;
                    let away = self.live.routers.iter().map(|(name, _)| name).find(|name| **name != home);
                    let away = away.ok_or("only one zone has a router: there is nowhere to move to")?.clone();
                    for to in [away, home] {
                        self.op(What::Move { shards: vec![shard], to }).await?;
                        calm(&mut stopped).await?;
                    }
                }
                Harmless::EvacuateRestore => {
                    let zone = self.live.zone.clone().unwrap_or_default();
                    self.op(What::Evacuate { zone: zone.clone(), to: None }).await?;
                    calm(&mut stopped).await?;
                    // What it had, and not what people had evacuated before: a restore would bring that back too.
                    let shards = self.home.keys().copied().collect();
                    self.op(What::Move { shards, to: zone }).await?;
                    calm(&mut stopped).await?;
                }
            }
        }
        Ok(())
    }

    /// An operation from its beginning to its end. What was moved a moment ago was moved by this drill; everything else that a preflight says is
    /// a reason to stop.
    async fn op(&mut self, what: What) -> Result<(), String> {
        let name = scene::told(&what);
        let why = "a drill on the running system".to_owned();
        let mut ask = OpAsk { what: what.clone(), by: "ezctl drill".into(), why, force: false, limit_ms: None };
        let mut begun = self.live.gzs.begin(&ask).await;
        if let Err(control::gzs_client::Denied::Refused { fault, .. }) = &begun
            && !fault.reasons.is_empty()
            && fault.reasons.iter().all(|r| r.contains("cool_down_s"))
        {
            ask.force = true;
            begun = self.live.gzs.begin(&ask).await;
        }
        let begun = begun.map_err(|e| format!("{name}: {e}"))?;
        let op = self.live.gzs.ended(begun.id, PATIENCE).await.map_err(|e| format!("{name}: {e}"))?;
        let took = op.ended_ms.unwrap_or(op.begun_ms).saturating_sub(op.begun_ms);
        let at_ms = self.begun.elapsed().as_millis() as u64;
        if op.state != "done" {
            return Err(format!("{name}: {} after {took} ms: {}", op.state, op.says));
        }
        self.steps.push(Step { at_ms, what: format!("{name}: done in {took} ms") });
        let longest = self.figures.entry(format!("{}_ms", scene::kind(&what))).or_insert(0.0);
        *longest = longest.max(took as f64);
        Ok(())
    }

    /// Each shard that this drill may have moved goes back to its owner, and operations that it left end first.
    async fn go_home(&mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let away = match self.live.gzs.state().await {
                Ok(state) => self.away(&state),
                Err(why) => Err(why.to_string()),
            };
            let last = match away {
                Ok(None) => return Ok(()),
                Ok(Some((to, shards))) => match self.op(What::Move { shards, to }).await {
                    Ok(()) => continue,
                    Err(why) => why,
                },
                Err(why) => why,
            };
            if Instant::now() >= until {
                return Err(format!("not every shard is at home again: {last}; `ezctl shard list` tells which"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The first zone that lacks some of its shards, and these.
    fn away(&self, state: &State) -> Result<Option<(String, Vec<u16>)>, String> {
        if let Some(op) = state.ops.iter().find(|op| op.state == "running") {
            return Err(format!("operation {} is under way: {}", op.id, op.says));
        }
        let mut lacks: BTreeMap<&String, Vec<u16>> = BTreeMap::new();
        for shard in &state.shards {
            let Some(home) = self.home.get(&shard.shard) else { continue };
            if shard.kind == "moving" || shard.kind == "lost" {
                return Err(format!("shard {} is {}", shard.shard, shard.kind));
            }
            if shard.owner.as_ref() != Some(home) {
                lacks.entry(home).or_default().push(shard.shard);
            }
        }
        Ok(lacks.into_iter().next().map(|(zone, shards)| (zone.clone(), shards)))
    }

    /// Reads everything back, compares, and takes it away again.
    async fn judge(&mut self, told: &Told, table: &str, report: &mut Report) {
        let ids: Vec<&str> = told.orders.iter().filter_map(|o| o.id.as_deref().filter(|_| is_there(o))).collect();
        let mut copies = vec![];
        for (zone, at) in &self.live.routers {
            copies.push((zone.clone(), read_back(*at, table, &ids).await));
        }
        let same = copies.windows(2).all(|c| c[0].1 == c[1].1);
        let names: Vec<&str> = self.live.routers.iter().map(|(name, _)| name.as_str()).collect();
        let (tally, proof) = (Tally::of(told, &names, &[], |_| None), prove(copies, told));
        self.checks.extend(scene::usual_checks(&tally, &proof));
        self.checks.push(scene::check("copies are identical in every zone", same, format!("{} orders", ids.len())));
        report.orders = Orders::of(&tally, &proof);
        let left = delete(self.live.routers[0].1, table, &ids).await;
        if left > 0 {
            report
                .notes
                .push(format!("{left} of {} orders could not be deleted: they are in table {table}", ids.len()));
        }
    }
}

/// A while; an error if people want it to end.
async fn calm(stopped: &mut watch::Receiver<bool>) -> Result<(), String> {
    tokio::select! {
        _ = stopped.wait_for(|stopped| *stopped) => Err("stopped by a signal".into()),
        () = tokio::time::sleep(CALM) => Ok(()),
    }
}

fn is_there(order: &Order) -> bool {
    order.outcome == Outcome::Acknowledged
}

/// The rows of a zone by these ids, key and value; what does not come within the patience is not there.
async fn read_back(at: SocketAddr, table: &str, ids: &[&str]) -> Vec<(String, Vec<u8>)> {
    let until = Instant::now() + PATIENCE;
    let rows = for_each(ids, table, move |path| async move {
        loop {
            match ask(at, "GET", &path, "x-ezone-read: local\r\n", None).await {
                Ok((200, body)) => return Some((path, body)),
                Ok(_) | Err(_) if Instant::now() >= until => return None,
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    });
    rows.await.into_iter().flatten().collect()
}

/// How many are left.
async fn delete(at: SocketAddr, table: &str, ids: &[&str]) -> usize {
    let gone = for_each(ids, table, move |path| async move {
        ask(at, "DELETE", &path, "", None).await.is_ok_and(|(status, _)| (200..300).contains(&status))
    });
    gone.await.into_iter().filter(|gone| !gone).count()
}

/// Does it with the path of each record, some at once; what came of it, by path.
async fn for_each<T, F>(ids: &[&str], table: &str, does: impl Fn(String) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut done = vec![];
    for some in ids.chunks(AT_ONCE) {
        let paths = some.iter().map(|id| format!("/records/{table}/{id}"));
        let tasks: Vec<_> = paths.map(|path| tokio::spawn(does(path))).collect();
        for task in tasks {
            done.extend(task.await);
        }
    }
    done
}
