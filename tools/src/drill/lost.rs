//! Drills of zones that are lost, or thought to be: killed, cut off, restarted while they are cut off, gone for good.

use super::planned::restore;
use super::scene::{Scene, THERE, ms};
use super::stage::{BROKEN, PATIENCE, WHOLE, until, usual};
use dataplane::sandbox::cluster::ServiceSettings;
use dataplane::sandbox::pages::Listed;
use dataplane::sandbox::report::Order;
use dataplane::sandbox::wan::{Lines, Side};
use gzs::api::What;
use shardmap::Shard;
use std::time::{Duration, Instant};

/// The silence after which a zone is taken over, where that is tried.
const SILENCE_MS: u64 = 1000;
/// How long a data centre goes on whose lines go first.
const ALONE: Duration = Duration::from_millis(300);
const WHILE: Duration = Duration::from_secs(2);
/// Rows that both sides write while one is cut off.
const CONTESTED: usize = 10;

pub async fn zone_killed(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.takes_over = true;
    let before = scene.stage.owns(BROKEN).await?;
    scene.stage.set_service(ServiceSettings { silence_ms: SILENCE_MS, ..usual() }).await?;
    let gzs = scene.stage.gzs.clone();
    let heard = async || gzs.state().await.is_ok_and(|s| s.zones.iter().all(|z| z.state == "up" || z.id.is_none()));
    until("the service hears of every zone", heard).await?;
    scene.step(format!("a zone that is silent for {SILENCE_MS} ms is taken over from now on"));
    let from = Instant::now();
    kill(scene).await;
    let taken = taken(scene, from).await?;
    scene.figure("taken_over_after_the_silence_ms", (taken - SILENCE_MS as f64).max(0.0));
    // By a command only again: a machine that is loaded may be silent for so long, too.
    scene.stage.set_service(usual()).await?;
    scene.flow(WHILE).await?;
    unknown(scene).await?;
    scene.note_what_others_have(BROKEN, from)?;
    returns(scene, before).await
}

pub async fn data_centre_lost(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.takes_over = true;
    scene.note("a data centre whose disks are gone for good: it has to be taken out of the configuration by hand");
    let before = scene.stage.owns(BROKEN).await?;
    let from = Instant::now();
    scene.stage.cluster.wan.cut(Lines::Of(Side::Zone(BROKEN)));
    scene.step("its lines are cut; it acknowledges orders that nobody else gets");
    scene.flow(ALONE).await?;
    let killed = Instant::now();
    kill(scene).await;
    scene.stage.cluster.wan.heal(Lines::All);
    scene.flow(WHILE / 2).await?;
    let zone = scene.stage.name(BROKEN).to_owned();
    scene.op(What::TakeOver { zone, to: None }).await?;
    taken(scene, from).await?;
    scene.flow(WHILE * 2).await?;
    let entered = scene.stage.owns(BROKEN).await?;
    scene.note_what_others_have(BROKEN, killed)?;
    scene.check("the others own everything", entered == 0, format!("{entered} shards are still the lost zone's"));
    returns(scene, before).await
}

/// Every process of the zone, at once; clients enter elsewhere.
pub async fn kill(scene: &mut Scene<'_>) {
    scene.driver.set_router_up(BROKEN, false);
    scene.stage.cluster.zones[BROKEN].kill().await;
    scene.step(format!("every process of {} is killed", scene.stage.name(BROKEN)));
}

/// Waits until survivors own everything and go by it; until then, orders of the zone may fail. Milliseconds since `from`.
pub async fn taken(scene: &mut Scene<'_>, from: Instant) -> Result<f64, String> {
    let name = scene.stage.name(BROKEN);
    let gzs = scene.stage.gzs.clone();
    let mut epoch = 0;
    until("others own what the zone owned", async || {
        let Ok(state) = gzs.state().await else { return false };
        epoch = state.epoch;
        state.shards.iter().all(|s| s.kind == "own" && s.owner.as_deref().is_some_and(|o| o != name))
    })
    .await?;
    let survivors: Vec<usize> = (0..scene.stage.cluster.zones.len()).filter(|z| *z != BROKEN).collect();
    scene.stage.by_map(&survivors, epoch).await?;
    let took = ms(from.elapsed());
    // Another one each time: of an earlier drill it might be in doubt.
    let key = format!("after-the-loss-{epoch}");
    let new = scene.put(WHOLE, &key, THERE, "{}").await?;
    scene.check(
        "a new row of the lost zone's shards is taken elsewhere",
        (200..300).contains(&new.status),
        new.status.to_string(),
    );
    scene.outage(from, Instant::now(), scene.of_zone(BROKEN));
    scene.figure("taken_over_ms", took);
    scene.figure("new_row_taken_ms", ms(from.elapsed()));
    scene.step(format!("{name}'s shards are owned by others, {took:.0} ms after the fault, map {epoch}"));
    Ok(took)
}

/// What the lost zone had told of and nobody has.
async fn unknown(scene: &mut Scene<'_>) -> Result<(), String> {
    let state = scene.stage.state().await?;
    let name = scene.stage.name(BROKEN);
    let zone =
        state.zones.iter().find(|z| z.name == name).ok_or_else(|| format!("the service knows no zone {name}"))?;
    let records: u64 = zone.unknown.iter().map(|u| (u.last + 1).saturating_sub(u.first)).sum();
    scene.figure("unknown_records_told_of", records as f64);
    Ok(())
}

/// The zone starts again, ships its tail, and gets its shards back.
async fn returns(scene: &mut Scene<'_>, before: usize) -> Result<(), String> {
    let started = Instant::now();
    scene.stage.cluster.zones[BROKEN].start().map_err(|e| e.to_string())?;
    scene.stage.ready().await?;
    scene.step(format!("{} is back {:.0} ms after its start", scene.stage.name(BROKEN), ms(started.elapsed())));
    scene.driver.set_router_up(BROKEN, true);
    restore(scene, before).await?;
    scene.figure("back_with_its_shards_ms", ms(started.elapsed()));
    Ok(())
}

pub async fn zone_cut_off(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.takes_over = true;
    let (name, before) = (scene.stage.name(BROKEN).to_owned(), scene.stage.owns(BROKEN).await?);
    let old = scene.put(BROKEN, "old", THERE, r#"{"by":"before"}"#).await?;
    scene.check("a row is written before the cut", (200..300).contains(&old.status), old.status.to_string());
    // It is known everywhere before the cut.
    scene.flow(WHILE / 4).await?;
    let from = Instant::now();
    scene.stage.cluster.wan.cut(Lines::Of(Side::Zone(BROKEN)));
    scene.step(format!("{name} is cut off from everyone; clients near it still enter there"));
    // Orders of its shards that enter elsewhere fail until others own them; those that enter there and belong elsewhere, until it heals.
    scene.op(What::TakeOver { zone: name.clone(), to: None }).await?;
    let (homes, owned) = (scene.shards_of(BROKEN), taken_while_cut(scene, from).await?);
    scene.outage(from, owned, move |order, shard| order.router != BROKEN && shard.is_none_or(|s| homes.contains(&s.0)));
    contest(scene).await?;
    scene.flow(WHILE).await?;
    let healed = Instant::now();
    scene.stage.cluster.wan.heal(Lines::All);
    scene.listed = Some((BROKEN, from, healed));
    scene.step("healed");
    scene.stage.ready().await?;
    scene.outage(from, Instant::now(), entered_there_for_others(scene));
    scene.figure("healed_ms", ms(healed.elapsed()));
    scene
        .step(format!("every link is live {:.0} ms later; {name} ships what it wrote meanwhile", ms(healed.elapsed())));
    locks_open(scene).await?;
    restore(scene, before).await?;
    settled(scene).await
}

/// Orders that enter at the cut-off zone and belong to another.
pub fn entered_there_for_others(scene: &Scene<'_>) -> impl Fn(&Order, Option<Shard>) -> bool + use<> {
    let homes = scene.shards_of(BROKEN);
    move |order, shard| order.router == BROKEN && shard.is_none_or(|s| !homes.contains(&s.0))
}

/// As `taken`, of a zone that is alive: its own clients go on.
pub async fn taken_while_cut(scene: &mut Scene<'_>, from: Instant) -> Result<Instant, String> {
    let epoch = scene.stage.state().await?.epoch;
    let survivors: Vec<usize> = (0..scene.stage.cluster.zones.len()).filter(|z| *z != BROKEN).collect();
    scene.stage.by_map(&survivors, epoch).await?;
    scene.figure("taken_over_ms", ms(from.elapsed()));
    Ok(Instant::now())
}

/// Both sides write the same new rows; the survivors' writes to a row of before are refused.
async fn contest(scene: &mut Scene<'_>) -> Result<(), String> {
    let locked = scene.put(WHOLE, "old", THERE, r#"{"by":"survivors"}"#).await?;
    scene.check("a row in doubt is locked", locked.status == 423, locked.status.to_string());
    let mut refused = vec![];
    for number in 0..CONTESTED {
        for (zone, who) in [(WHOLE, "survivors"), (BROKEN, "cut off")] {
            let body = format!(r#"{{"by":"{who}"}}"#);
            let answer = scene.put(zone, &format!("contested-{number}"), THERE, &body).await?;
            if !(200..300).contains(&answer.status) {
                refused.push(format!("{number} at {who}: {}", answer.status));
            }
        }
    }
    scene.check(
        "both sides write the same new rows",
        refused.is_empty(),
        format!("{CONTESTED} rows; refused: {refused:?}"),
    );
    Ok(())
}

/// The lock opens once the zone has shipped all that it wrote.
async fn locks_open(scene: &mut Scene<'_>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = scene.put(WHOLE, "old", THERE, r#"{"by":"after"}"#).await?;
        if (200..300).contains(&answer.status) || Instant::now() >= end {
            let opened = (200..300).contains(&answer.status);
            scene.check("the lock opens once the zone is back", opened, answer.status.to_string());
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Each contested row is the successor's, and what the cut-off zone wrote there is listed in every zone.
async fn settled(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.pause_load().await;
    scene.stage.quiet().await?;
    for zone in 0..scene.stage.cluster.zones.len() {
        let at = scene.stage.cluster.zones[zone].ports.log_admin;
        let ledger = scene.stage.pages.conflicts(at).await?;
        let lost = |l: &&Listed| l.table == "rows" && l.key.starts_with("contested-");
        let listed: Vec<_> = ledger.iter().filter(lost).collect();
        let superseded = listed.iter().filter(|l| l.state == "superseded").count();
        let name = scene.stage.name(zone);
        scene.check(
            &format!("{name}: each write that a successor's stands over is listed"),
            superseded >= CONTESTED,
            format!("{superseded} of {CONTESTED}"),
        );
    }
    Ok(())
}

pub async fn restarted_while_cut_off(scene: &mut Scene<'_>) -> Result<(), String> {
    let name = scene.stage.name(BROKEN).to_owned();
    let from = Instant::now();
    scene.stage.cluster.wan.cut(Lines::Of(Side::Zone(BROKEN)));
    scene.step(format!("{name} is cut off from everyone"));
    scene.flow(WHILE / 4).await?;
    scene.stage.cluster.zones[BROKEN].kill().await;
    scene.stage.cluster.zones[BROKEN].start().map_err(|e| e.to_string())?;
    let restarted = Instant::now();
    scene.step("its processes are killed and started again");
    let log = scene.stage.log(BROKEN).await?;
    scene.check("its log is read-only: it cannot know what it owns", log.read_only, log.read_only.to_string());
    scene.flow(WHILE).await?;
    let answer = scene.put(BROKEN, "restarted", THERE, "{}").await;
    let refused = answer.as_ref().is_ok_and(|a| a.status >= 500 || a.status == 423 || a.status == 421);
    scene.check("it refuses a write", refused, answer.map_or_else(|e| e, |a| a.status.to_string()));
    let still = scene.stage.log(BROKEN).await?;
    scene.check("it is read-only until it is reached", still.read_only, still.read_only.to_string());
    scene.figure("read_only_ms", ms(restarted.elapsed()));
    scene.stage.cluster.wan.heal(Lines::All);
    let healed = Instant::now();
    scene.stage.ready().await?;
    scene.serves().await?;
    scene.outage(from, Instant::now(), scene.of_zone(BROKEN));
    scene.figure("healed_ms", ms(healed.elapsed()));
    scene.step(format!("healed; it takes writes again {:.0} ms later", ms(healed.elapsed())));
    let (owns, home) = (scene.stage.owns(BROKEN).await?, scene.shards_of(BROKEN).len());
    scene.check("no owner has changed", owns == home, format!("{owns} of {home} shards"));
    Ok(())
}
