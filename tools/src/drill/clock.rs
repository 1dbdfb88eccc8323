//! Drills of a zone whose clock is ahead.

use super::planned::{BUSY, move_busy};
use super::scene::Scene;
use super::stage::{BROKEN, PATIENCE, WHOLE};
use gzs::api::What;
use std::time::Duration;

const WHILE: Duration = Duration::from_secs(2);

pub async fn ahead_300ms(scene: &mut Scene<'_>) -> Result<(), String> {
    ahead(scene, 300).await?;
    scene.flow(WHILE / 2).await?;
    for to in [WHOLE, BROKEN] {
        move_busy(scene, to).await?;
        scene.flow(WHILE / 4).await?;
    }
    right(scene).await
}

pub async fn ahead_5s(scene: &mut Scene<'_>) -> Result<(), String> {
    ahead(scene, 5000).await?;
    scene.flow(WHILE).await?;
    let parked = scene.stage.log(WHOLE).await?.parked;
    scene.check(
        "its writes wait in another zone until their time has come",
        parked > 0,
        format!("{parked} are parked"),
    );
    // A move away from it has to wait for them, and is given up: that must cost nobody an order.
    let what = What::Move { shards: vec![BUSY], to: scene.stage.name(WHOLE).into() };
    match scene.stage.begin(&what).await {
        Ok((op, _)) => {
            let op = scene.stage.gzs.ended(op.id, PATIENCE).await.map_err(|e| e.to_string())?;
            scene.step(format!("a move away from it: {}: {}", op.state, op.says));
        }
        Err(why) => scene.step(format!("a move away from it is refused: {why}")),
    }
    scene.flow(WHILE).await?;
    right(scene).await
}

/// Nothing is placed while the log restarts: what that costs is another drill's.
async fn ahead(scene: &mut Scene<'_>, ms: u32) -> Result<(), String> {
    scene.pause_load().await;
    scene.stage.set_clock_ahead(Some(ms)).await?;
    scene.stage.ready().await?;
    scene.step(format!("{}'s clock is {ms} ms ahead", scene.stage.name(BROKEN)));
    scene.load();
    Ok(())
}

/// The clock is set right, which is a step back: the log's own never goes back.
async fn right(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.pause_load().await;
    scene.stage.set_clock_ahead(None).await?;
    scene.stage.ready().await?;
    scene.step("its clock is right again");
    scene.load();
    scene.flow(WHILE).await
}
