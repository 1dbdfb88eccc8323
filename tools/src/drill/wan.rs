//! Drills of the WAN: slow, cut with a reset, and silent.

use super::planned::move_busy;
use super::scene::{Scene, ms};
use super::stage::{BROKEN, WHOLE};
use dataplane::sandbox::wan::Lines;
use std::time::{Duration, Instant};

/// So many times slower.
const SLOWER: u32 = 10;
const WHILE: Duration = Duration::from_secs(2);

pub async fn slow(scene: &mut Scene<'_>) -> Result<(), String> {
    let usual = scene.stage.one_way();
    let slow = usual.max(Duration::from_millis(5)) * SLOWER;
    scene.stage.cluster.wan.set_one_way(Lines::All, slow);
    scene.step(format!("the WAN takes {} ms each way, before {} ms", slow.as_millis(), usual.as_millis()));
    scene.flow(WHILE).await?;
    move_busy(scene, WHOLE).await?;
    move_busy(scene, BROKEN).await?;
    scene.stage.cluster.wan.set_one_way(Lines::All, usual);
    scene.step("the WAN is as it was");
    scene.flow(WHILE / 2).await
}

pub async fn cut(scene: &mut Scene<'_>) -> Result<(), String> {
    for silent in [false, true] {
        let from = Instant::now();
        let wan = &scene.stage.cluster.wan;
        if silent {
            wan.silence(Lines::Zones)
        } else {
            wan.cut(Lines::Zones)
        }
        let how = if silent { "silent: nothing arrives, nobody is told" } else { "cut: every connection is reset" };
        scene.step(format!("the lines between zones are {how}"));
        scene.flow(WHILE).await?;
        scene.stage.cluster.wan.heal(Lines::Zones);
        let healed = Instant::now();
        scene.stage.ready().await?;
        let took = ms(healed.elapsed());
        scene.figure(if silent { "links_live_after_silence_ms" } else { "links_live_after_cut_ms" }, took);
        scene.step(format!("healed; every link is live after {took:.0} ms"));
        scene.outage(from, Instant::now(), scene.crossing());
        scene.flow(WHILE / 4).await?;
    }
    let owners = scene.stage.owns(BROKEN).await?;
    let home = scene.shards_of(BROKEN).len();
    scene.check("no owner has changed", owners == home, format!("{owners} of {home} shards"));
    Ok(())
}
