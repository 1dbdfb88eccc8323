//! One drill under load: what it did, what it expects to fail, and what is looked at when it is over.

use super::report::{Check, Orders, Report, Spread, Step, Verdict};
use super::stage::{PATIENCE, Setting, Stage, WHOLE};
use super::which::{Kind, Which};
use dataplane::control::gzs_client::Denied;
use dataplane::sandbox::chart;
use dataplane::sandbox::client::{Client, Response};
use dataplane::sandbox::orders::{Driver, DriverOptions};
use dataplane::sandbox::pages::Listed;
use dataplane::sandbox::places::Place;
use dataplane::sandbox::proof::{Proof, prove};
use dataplane::sandbox::report::{Order, Outcome, Report as Told};
use dataplane::sandbox::tally::{Outage, Tally, histogram};
use dataplane::sandbox::volume::Volume;
use dataplane::sandbox::{rows, wan};
use gzs::api::{OpView, What};
use shardmap::Shard;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long orders flow before and after what a drill does.
const CALM: Duration = Duration::from_millis(700);
/// How often an operation is begun before a drill gives up: on a loaded machine one is aborted now and then, which fails no order.
const ATTEMPTS: u32 = 4;
/// How often the processes are looked at while orders flow.
const LOOK: Duration = Duration::from_millis(100);
/// A place in Shanghai, whose shard zone `BROKEN` owns.
pub const THERE: &str = "121.47,31.23";
/// Steps in a report.
const STEPS_MAX: usize = 200;
/// Of a list in a report, so many are named.
const NAMED_MAX: usize = 5;

/// A drill that is under way.
pub struct Scene<'a> {
    pub stage: &'a mut Stage,
    pub driver: Driver,
    table: String,
    orders_per_s: u32,
    rounds: Option<u32>,
    begun: Instant,
    steps: Vec<Step>,
    checks: Vec<Check>,
    figures: BTreeMap<String, f64>,
    notes: Vec<String>,
    outages: Vec<Outage>,
    ledger_before: u64,
    /// The drill takes a zone over: the ledger may grow.
    pub takes_over: bool,
    /// Shards that were moved by a plan: their orders' times are shown apart.
    moved: BTreeSet<u16>,
    /// When the first of them began to.
    first_move: Option<Instant>,
    /// Orders that this zone acknowledged in this span are all in every ledger.
    pub listed: Option<(usize, Instant, Instant)>,
    /// A zone that was killed at this moment, and the orders that the others had when it was gone: the rest is in every ledger, no other.
    pub had: Option<(usize, Instant, BTreeSet<String>)>,
}

/// Runs a drill on `stage`, or on a new one where that is none or another kind.
pub async fn run(which: Which, setting: &Setting, stage: &mut Option<Stage>) -> Report {
    let begun = Instant::now();
    let mut report = Report::new(which, setting.zones, setting.orders_per_s, Some(setting.each_way_ms));
    if setting.kind == Kind::Limited
        && let Err(why) = Volume::is_possible()
    {
        // What was there before is as it was.
        (report.verdict, report.restored) = (Verdict::NotRun, true);
        report.why.push(why);
        return report;
    }
    match preflight(setting, stage).await {
        Ok(()) => played(which, setting, stage, &mut report).await,
        Err(why) => report.why.push(format!("preflight: {why}")),
    }
    report.took_ms = begun.elapsed().as_millis() as u64;
    report
}

/// A sandbox on which nothing is broken.
async fn preflight(setting: &Setting, stage: &mut Option<Stage>) -> Result<(), String> {
    if let Some(mut other) = stage.take_if(|s| s.kind != setting.kind) {
        other.stop().await;
    }
    let stage = match stage {
        Some(stage) => stage,
        None => stage.insert(Stage::start(setting)?),
    };
    stage.start_service().await?;
    stage.ready().await?;
    stage.quiet().await
}

/// Act, assert, restore.
async fn played(which: Which, setting: &Setting, stage: &mut Option<Stage>, report: &mut Report) {
    let Some(stage) = stage.as_mut() else { return };
    let judged = match Scene::begin(which, setting, stage).await {
        Ok(scene) => scene.play(which, report).await,
        Err(why) => Err(why),
    };
    if let Err(why) = judged {
        report.why.push(why);
    }
    let began = Instant::now();
    match stage.restore().await {
        Ok(()) => report.restored = true,
        Err(why) => report.why.push(format!("restore: {why}")),
    }
    report.figures.insert("restoring_ms".into(), ms(began.elapsed()));
    if report.why.is_empty() && report.checks.iter().all(|c| c.holds) {
        report.verdict = Verdict::Passed;
    }
}

impl<'a> Scene<'a> {
    async fn begin(which: Which, setting: &Setting, stage: &'a mut Stage) -> Result<Scene<'a>, String> {
        let ledger_before = stage.ledger().await?;
        let (routers, zones) = (routers(which, stage)?, setting.zones);
        let options = DriverOptions::new(
            routers,
            setting.orders_per_s.into(),
            Box::new(move |place: &Place| chart::nearest(place, zones)),
        );
        // A table of its own; no dashes in its name.
        let table = which.name().replace('-', "_");
        let driver =
            Driver::start(DriverOptions { seed: 0xd111 + setting.number as u64, table: table.clone(), ..options });
        Ok(Scene {
            stage,
            driver,
            table,
            orders_per_s: setting.orders_per_s,
            rounds: setting.rounds,
            begun: Instant::now(),
            steps: vec![],
            checks: vec![],
            figures: BTreeMap::new(),
            notes: vec![],
            outages: vec![],
            ledger_before,
            takes_over: false,
            moved: BTreeSet::new(),
            first_move: None,
            listed: None,
            had: None,
        })
    }

    async fn play(mut self, which: Which, report: &mut Report) -> Result<(), String> {
        let acted = async {
            self.flow(CALM).await?;
            which.act(&mut self).await?;
            self.flow(CALM).await
        }
        .await;
        self.judge(acted, report).await
    }

    /// The load ends; what is there is compared with what the driver was told.
    async fn judge(self, acted: Result<(), String>, report: &mut Report) -> Result<(), String> {
        let Scene { stage, driver, table, steps, mut checks, figures, notes, outages, .. } = self;
        let told = driver.stop().await;
        (report.steps, report.figures, report.notes) = (steps, figures, notes);
        report.checks.clone_from(&checks);
        acted?;
        stage.quiet().await?;
        let (mut copies, mut digests) = (vec![], vec![]);
        for zone in &stage.cluster.zones {
            let mut copy = rows::rows(&zone.data, &table).map_err(|e| format!("the store of {}: {e}", zone.name))?;
            copy.sort();
            copies.push((zone.name.to_owned(), copy));
            let digest = stage.pages.digest(zone.ports.log_admin).await;
            digests.push(digest.ok_or_else(|| format!("{}'s log does not answer", zone.name))?);
        }
        let tally = Tally::of(&told, &stage.names(), &outages, |place| stage.shard_of(place));
        let rows = copies[0].1.len();
        let same_rows = copies.windows(2).all(|c| c[0].1 == c[1].1);
        let same_digests = digests.windows(2).all(|d| d[0] == d[1]);
        let proof = prove(copies, &told);
        if let Some(first) = self.first_move {
            times_of_moved(stage, &told, &self.moved, first, &mut report.figures);
        }
        checks.extend(usual_checks(&tally, &proof));
        let seen = format!(
            "{rows} orders in each; equal rows: {same_rows}, equal digests of rows and ledgers: {same_digests}"
        );
        checks.push(check("copies and ledgers are identical in every zone", same_rows && same_digests, seen));
        let grown = stage.ledger().await?.saturating_sub(self.ledger_before);
        if !self.takes_over {
            checks.push(check("the conflict ledger has not grown", grown == 0, format!("{grown} more entries")));
        }
        if let Some(span) = self.listed {
            checks.extend(listed_checks(stage, &told, &table, span).await?);
        }
        if let Some(had) = self.had {
            checks.extend(unknown_checks(stage, &told, &table, had).await?);
        }
        report.figures.insert("ledger_entries".into(), grown as f64);
        (report.orders, report.checks) = (Orders::of(&tally, &proof), checks);
        Ok(())
    }

    /// How often the drill repeats what it does.
    pub fn rounds(&self, usual: u32) -> u32 {
        self.rounds.unwrap_or(usual)
    }

    /// Something was done or seen; a report shows the first ones.
    pub fn step(&mut self, what: impl Into<String>) {
        if self.steps.len() >= STEPS_MAX {
            return;
        }
        self.steps.push(Step { at_ms: self.begun.elapsed().as_millis() as u64, what: what.into() });
    }

    /// Something that has to hold.
    pub fn check(&mut self, what: &str, holds: bool, seen: impl Into<String>) {
        let (check, had) = (check(what, holds, seen.into()), self.checks.iter_mut().find(|c| c.what == what));
        match had {
            // Looked at again and again: what counts is the first time that it did not hold.
            Some(had) if had.holds => *had = check,
            Some(_) => {}
            None => self.checks.push(check),
        }
    }

    /// What the drill does not cover.
    pub fn note(&mut self, what: &str) {
        self.notes.push(what.into());
    }

    /// A number that is reported; times in milliseconds. Of several the longest.
    pub fn figure(&mut self, name: &str, value: f64) {
        let entry = self.figures.entry(name.into()).or_insert(value);
        *entry = entry.max(value);
    }

    /// Orders may fail in this span, if they are concerned.
    pub fn outage(&mut self, from: Instant, to: Instant, concerns: impl Fn(&Order, Option<Shard>) -> bool + 'static) {
        self.outages.push(Outage { from, to: Some(to), concerns: Box::new(concerns) });
    }

    /// Whose orders concern a zone that nobody reaches: those that enter there, and those of its shards.
    pub fn of_zone(&self, zone: usize) -> impl Fn(&Order, Option<Shard>) -> bool + use<> {
        let shards = self.shards_of(zone);
        move |order, shard| order.router == zone || shard.is_none_or(|s| shards.contains(&s.0))
    }

    /// Orders that enter at another zone than the one that owns their shard.
    pub fn crossing(&self) -> impl Fn(&Order, Option<Shard>) -> bool + use<> {
        let homes = self.stage.homes();
        move |order, shard| shard.and_then(|s| homes.get(&s.0).copied()) != Some(order.router)
    }

    /// A zone's shards, when nothing is broken.
    pub fn shards_of(&self, zone: usize) -> BTreeSet<u16> {
        self.stage.homes().into_iter().filter(|(_, home)| *home == zone).map(|(shard, _)| shard).collect()
    }

    /// Lets orders flow.
    pub async fn flow(&mut self, span: Duration) -> Result<(), String> {
        let end = Instant::now() + span;
        while Instant::now() < end {
            tokio::time::sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
            if let Some(why) = self.stage.cluster.fallen() {
                return Err(why);
            }
        }
        Ok(())
    }

    /// No order is placed until `load`; those under way end.
    pub async fn pause_load(&mut self) {
        self.driver.set_rate(0.0);
        tokio::time::sleep(CALM).await;
    }

    /// Orders are placed again.
    pub fn load(&mut self) {
        self.driver.set_rate(self.orders_per_s.into());
    }

    /// An operation from its beginning to its end, begun again when it was aborted.
    pub async fn op(&mut self, what: What) -> Result<OpView, String> {
        let name = told(&what);
        let mut said = String::new();
        if let What::Move { shards, .. } = &what {
            self.moved.extend(shards);
            self.first_move.get_or_insert_with(Instant::now);
        }
        for _ in 0..ATTEMPTS {
            let begun = self.begun(&what).await?;
            let op = self.stage.gzs.ended(begun.id, PATIENCE).await.map_err(|e| format!("{name}: {e}"))?;
            let took = op.ended_ms.unwrap_or(op.begun_ms).saturating_sub(op.begun_ms);
            if op.state == "done" {
                self.step(format!("{name}: done in {took} ms"));
                self.figure(&format!("{}_ms", kind(&what)), took as f64);
                return Ok(op);
            }
            said = format!("{name}: {} after {took} ms: {}", op.state, op.says);
            self.step(said.clone());
        }
        Err(format!("{said}; tried {ATTEMPTS} times"))
    }

    /// Begins an operation as soon as the preflight lets it.
    pub async fn begun(&mut self, what: &What) -> Result<OpView, String> {
        let (until, mut refused) = (Instant::now() + PATIENCE, None);
        loop {
            match self.stage.begin(what).await {
                Ok((op, forced)) => {
                    if !forced.is_empty() {
                        self.step(format!("{}: forced against: {}", told(what), forced.join("; ")));
                    }
                    return Ok(op);
                }
                Err(why) if Instant::now() >= until => return Err(format!("{}: {why}", told(what))),
                Err(why @ Denied::Refused { status: 409 | 503, .. }) => {
                    let why = why.to_string().replace("\n  ", "; ");
                    if refused.replace(why.clone()).is_none() {
                        self.step(format!("{}: not yet: {why}", told(what)));
                    }
                }
                Err(why @ (Denied::Refused { .. } | Denied::Garbled { .. } | Denied::Slow { .. })) => {
                    return Err(format!("{}: {why}", told(what)));
                }
                Err(Denied::Unreachable { .. }) => {}
            }
            tokio::time::sleep(LOOK / 4).await;
        }
    }

    /// Waits until a write of zone `BROKEN`'s is acknowledged at every zone's router; how long that took.
    pub async fn serves(&mut self) -> Result<Duration, String> {
        let begun = Instant::now();
        for zone in 0..self.stage.cluster.zones.len() {
            loop {
                let answer = self.put(zone, &format!("serves-{zone}"), THERE, "{}").await;
                match answer {
                    Ok(answer) if (200..300).contains(&answer.status) => break,
                    Ok(answer) if begun.elapsed() >= PATIENCE => {
                        let body = String::from_utf8_lossy(&answer.body).into_owned();
                        return Err(format!("zone {zone} takes no write: {} {body}", answer.status));
                    }
                    Err(why) if begun.elapsed() >= PATIENCE => return Err(why),
                    Ok(_) | Err(_) => tokio::time::sleep(LOOK / 10).await,
                }
            }
        }
        Ok(begun.elapsed())
    }

    /// Notes which orders zone `WHOLE` has while zone `zone`, which was killed at `killed`, is gone.
    pub fn note_what_others_have(&mut self, zone: usize, killed: Instant) -> Result<(), String> {
        let data = &self.stage.cluster.zones[WHOLE].data;
        let rows = rows::rows(data, &self.table).map_err(|e| format!("a survivor's store: {e}"))?;
        let keys = rows.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned());
        self.had = Some((zone, killed, keys.collect()));
        Ok(())
    }

    /// Writes a row of the table `rows` at a zone's router, as a client does who is at `loc`.
    pub async fn put(&self, zone: usize, key: &str, loc: &str, body: &str) -> Result<Response, String> {
        let at = self.stage.cluster.zones[zone].ports.client;
        let bytes = body.len();
        let request = format!(
            "PUT /records/rows/{key} HTTP/1.1\r\nhost: drill\r\nx-shard: loc={loc}\r\ncontent-type: application/json\r\n\
             content-length: {bytes}\r\n\r\n{body}"
        );
        let asked = async { Client::connect(at).await?.ask(request.as_bytes()).await };
        let answer = tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "no answer".to_owned());
        answer.and_then(|a| a.map_err(|e| e.to_string())).map_err(|e| format!("PUT {key} at zone {zone}: {e}"))
    }
}

pub fn check(what: &str, holds: bool, seen: String) -> Check {
    Check { what: what.into(), holds, seen }
}

/// What holds for every drill.
pub fn usual_checks(tally: &Tally, proof: &Proof) -> Vec<Check> {
    let lost: Vec<_> =
        proof.lost_tokens.iter().map(|(t, zones)| format!("{t} (not in {})", zones.join(", "))).collect();
    let unasked = proof.unasked + proof.refused_present;
    vec![
        check("orders were acknowledged", tally.acknowledged > 0, format!("{} of {}", tally.acknowledged, tally.sent)),
        check("no acknowledged order is lost", proof.lost == 0, some(proof.lost, &lost)),
        check("no order is doubled", proof.doubled == 0, some(proof.doubled, &proof.doubled_tokens)),
        check("no row that nobody sent, or that was refused", unasked == 0, some(unasked, &[])),
        check(
            "no order failed outside of the outage",
            tally.failed == 0,
            format!("{}; {} in the outage", some(tally.failed as usize, &tally.examples), tally.failed_in_outage),
        ),
    ]
}

/// A number, with some of what it counts.
fn some(count: usize, which: &[String]) -> String {
    match which {
        [] => count.to_string(),
        which => format!("{count}: {}", which.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// What clients of moved shards waited, beside those of others, and those of others before anything moved.
fn times_of_moved(
    stage: &Stage,
    told: &Told,
    moved: &BTreeSet<u16>,
    first_move: Instant,
    figures: &mut BTreeMap<String, f64>,
) {
    let (mut of_moved, mut of_others, mut before) = (histogram(), histogram(), histogram());
    for order in told.orders.iter().filter(|o| o.outcome == Outcome::Acknowledged) {
        let Some(answered) = order.answered else { continue };
        let is_moved = stage.shard_of(order.place).is_some_and(|s| moved.contains(&s.0));
        let to = match is_moved {
            true if order.due < first_move => continue,
            true => &mut of_moved,
            false if order.due < first_move => &mut before,
            false => &mut of_others,
        };
        to.saturating_record(answered.duration_since(order.due).as_micros() as u64);
    }
    let all = [("moved_shards", of_moved), ("other_shards", of_others), ("other_shards_before_any_move", before)];
    for (name, times) in all {
        let times = Spread::of(&times);
        figures.insert(format!("orders_of_{name}_p99_ms"), times.p99);
        figures.insert(format!("orders_of_{name}_longest_ms"), times.max);
    }
}

/// What a zone wrote while others had taken it over is in the ledger of each zone, and the ledgers are the same.
async fn listed_checks(
    stage: &Stage,
    told: &Told,
    table: &str,
    (zone, from, to): (usize, Instant, Instant),
) -> Result<Vec<Check>, String> {
    let mut ledgers: Vec<Vec<Listed>> = vec![];
    for zone in &stage.cluster.zones {
        ledgers.push(stage.pages.conflicts(zone.ports.log_admin).await?);
    }
    let name = stage.name(zone);
    let here: BTreeSet<&str> = ledgers[0].iter().filter(|l| l.table == table).map(|l| l.key.as_str()).collect();
    let within = |o: &&Order| o.sent.is_some_and(|s| s >= from) && o.answered.is_some_and(|a| a < to);
    let by_zone = |o: &&Order| o.outcome == Outcome::Acknowledged && o.zone.as_deref() == Some(name);
    let ids = told.orders.iter().filter(by_zone).filter(within).filter_map(|o| o.id.as_deref());
    let (mut written, mut unlisted) = (0, vec![]);
    for id in ids {
        written += 1;
        if !here.contains(id) {
            unlisted.push(id.to_owned());
        }
    }
    let same = ledgers.windows(2).all(|l| l[0] == l[1]);
    Ok(vec![
        check(
            &format!("{name} went on while it was cut off"),
            written > 0,
            format!("{written} orders acknowledged there"),
        ),
        check(
            "each of them is in the ledger",
            unlisted.is_empty(),
            format!("{} are not; {} entries", some(unlisted.len(), &unlisted), ledgers[0].len()),
        ),
        check(
            "the ledger is the same in every zone, entry by entry",
            same,
            format!("{:?}", ledgers.iter().map(Vec::len).collect::<Vec<_>>()),
        ),
    ])
}

/// What a killed zone had acknowledged and nobody else had is in the ledger once it is back, and nothing that they had.
async fn unknown_checks(
    stage: &Stage,
    told: &Told,
    table: &str,
    (zone, killed, had): (usize, Instant, BTreeSet<String>),
) -> Result<Vec<Check>, String> {
    let (name, at) = (stage.name(zone), stage.cluster.zones[WHOLE].ports.log_admin);
    let of_zone = format!("/{name}/");
    let ledger = stage.pages.conflicts(at).await?;
    let entries = ledger.iter().filter(|l| l.table == table && l.id.contains(&of_zone));
    let listed: BTreeSet<&str> = entries.map(|l| l.key.as_str()).collect();
    let before = |o: &&Order| o.outcome == Outcome::Acknowledged && o.answered.is_some_and(|a| a < killed);
    let by_zone = told.orders.iter().filter(before).filter(|o| o.zone.as_deref() == Some(name));
    let unknown: Vec<&str> = by_zone.filter_map(|o| o.id.as_deref()).filter(|id| !had.contains(*id)).collect();
    let unlisted: Vec<String> = unknown.iter().filter(|id| !listed.contains(*id)).map(|id| id.to_string()).collect();
    let needless: Vec<String> = listed.iter().filter(|id| had.contains(**id)).map(|id| id.to_string()).collect();
    Ok(vec![
        check(
            &format!("each order that {name} had acknowledged and nobody else had is listed"),
            unlisted.is_empty(),
            format!("{} of {} are not; {} entries", some(unlisted.len(), &unlisted), unknown.len(), listed.len()),
        ),
        check("nothing is listed that the others had", needless.is_empty(), some(needless.len(), &needless)),
    ])
}

/// Where clients enter: for the drill that cuts them off, over lines that can be cut.
fn routers(which: Which, stage: &mut Stage) -> Result<Vec<(std::net::SocketAddr, String)>, String> {
    let mut routers = vec![];
    for zone in 0..stage.cluster.zones.len() {
        let (at, name) = (stage.cluster.zones[zone].ports.client, stage.name(zone).to_owned());
        let at = match which {
            Which::EntryFailure => {
                let way = stage.cluster.wan.add(wan::Side::Clients, wan::Side::Zone(zone), at, Duration::ZERO);
                way.map_err(|e| e.to_string())?
            }
            _ => at,
        };
        routers.push((at, name));
    }
    Ok(routers)
}

/// An operation in words.
pub fn told(what: &What) -> String {
    match what {
        What::Move { shards, to } if shards.len() == 1 => format!("shard {} to {to}", shards[0]),
        What::Move { shards, to } => format!("{} shards to {to}", shards.len()),
        What::Evacuate { zone, .. } => format!("evacuating {zone}"),
        What::Restore { zone } => format!("restoring {zone}"),
        What::TakeOver { zone, .. } => format!("taking {zone} over"),
        What::Unlock { shards } => format!("unlocking {} shards", shards.len()),
        What::Fences { .. } => "changing the fences".into(),
        What::AddZone { zone } => format!("adding {zone}"),
        What::RemoveZone { zone } => format!("removing {zone}"),
        What::AddGlobal { name, .. } => format!("adding global service {name}"),
    }
}

pub fn kind(what: &What) -> &'static str {
    match what {
        What::Move { .. } => "move",
        What::Evacuate { .. } => "evacuate",
        What::Restore { .. } => "restore",
        What::TakeOver { .. } => "take_over",
        What::Fences { .. } => "fences",
        What::AddZone { .. } => "add_zone",
        What::RemoveZone { .. } => "remove_zone",
        What::AddGlobal { .. } => "add_global",
        What::Unlock { .. } => "unlock",
    }
}

/// Milliseconds, for figures.
pub fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}
