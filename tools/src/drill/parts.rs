//! Drills inside a zone: its router, its log, its entry, and all of its processes for a moment.

use super::scene::{Scene, ms};
use super::stage::BROKEN;
use dataplane::sandbox::wan::{Lines, Side};
use std::time::{Duration, Instant};

/// How long something is away.
const AWAY: Duration = Duration::from_secs(1);
/// How long clients need until they enter elsewhere.
const NOTICE: Duration = Duration::from_millis(500);

pub async fn router_killed(scene: &mut Scene<'_>) -> Result<(), String> {
    let from = Instant::now();
    scene.stage.cluster.zones[BROKEN].router.kill().await;
    scene.step("the router is killed");
    scene.flow(AWAY).await?;
    scene.stage.cluster.zones[BROKEN].router.start().map_err(|e| e.to_string())?;
    back(scene, from, "router").await
}

pub async fn log_killed(scene: &mut Scene<'_>) -> Result<(), String> {
    let from = Instant::now();
    scene.stage.cluster.zones[BROKEN].log.kill().await;
    scene.step("the log is killed");
    scene.flow(AWAY).await?;
    scene.stage.cluster.zones[BROKEN].log.start().map_err(|e| e.to_string())?;
    back(scene, from, "log").await
}

/// Waits until the zone serves again, and names what may have failed until then.
async fn back(scene: &mut Scene<'_>, from: Instant, what: &str) -> Result<(), String> {
    let started = Instant::now();
    scene.stage.ready().await?;
    let ready = ms(started.elapsed());
    scene.serves().await?;
    let took = ms(started.elapsed());
    scene.figure(&format!("{what}_ready_ms"), ready);
    scene.figure(&format!("{what}_serves_ms"), took);
    scene.step(format!(
        "the {what} is ready {ready:.0} ms after its start, and the zone serves writes after {took:.0} ms"
    ));
    scene.outage(from, Instant::now(), scene.of_zone(BROKEN));
    owners_stay(scene).await
}

/// What breaks inside a zone is no reason to take it over.
async fn owners_stay(scene: &mut Scene<'_>) -> Result<(), String> {
    let (owns, home) = (scene.stage.owns(BROKEN).await?, scene.shards_of(BROKEN).len());
    scene.check("no owner has changed", owns == home, format!("{owns} of {home} shards"));
    Ok(())
}

pub async fn entry_failure(scene: &mut Scene<'_>) -> Result<(), String> {
    let line = Lines::Between(Side::Clients, Side::Zone(BROKEN));
    let from = Instant::now();
    scene.stage.cluster.wan.cut(line);
    scene.step("clients do not reach the zone's entry any more");
    scene.flow(NOTICE).await?;
    scene.driver.set_router_up(BROKEN, false);
    scene.outage(from, Instant::now(), |order, _| order.router == BROKEN);
    scene.step("clients enter elsewhere; the zone goes on with its shards");
    scene.flow(AWAY * 2).await?;
    owners_stay(scene).await?;
    scene.stage.cluster.wan.heal(line);
    scene.driver.set_router_up(BROKEN, true);
    scene.step("the entry is reached again");
    scene.flow(AWAY).await
}

pub async fn inside_data_centre(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.note("a second storage node in each zone: until there is one, a zone whose only one is down is down with it");
    let from = Instant::now();
    scene.stage.cluster.zones[BROKEN].log.pause();
    scene.step("the log hangs (SIGSTOP)");
    scene.flow(AWAY).await?;
    scene.stage.cluster.zones[BROKEN].log.resume();
    back(scene, from, "log_after_a_hang").await?;
    let from = Instant::now();
    scene.stage.cluster.zones[BROKEN].kill().await;
    scene.step("router and log are killed, as by a power cut of the node");
    scene.flow(AWAY / 2).await?;
    scene.stage.cluster.zones[BROKEN].start().map_err(|e| e.to_string())?;
    back(scene, from, "node").await
}
