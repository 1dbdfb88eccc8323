//! Drills of the Global Zone Service: orders do not need it, and what it had begun it finishes.

use super::planned::{BUSY, move_busy};
use super::scene::{Scene, ms};
use super::stage::{BROKEN, PATIENCE, WHOLE};
use dataplane::control::gzs_client::Denied;
use gzs::api::What;
use std::time::{Duration, Instant};

/// How long it is away.
const AWAY: Duration = Duration::from_secs(2);
/// Moves in the middle of which it is killed, and after how long: a move takes some 50 ms.
const KILLS_AFTER_MS: [u64; 8] = [0, 5, 15, 25, 35, 45, 60, 80];
/// How long it is away in the middle of a move: routers hold requests for 5 s.
const GONE: Duration = Duration::from_millis(300);

pub async fn down(scene: &mut Scene<'_>) -> Result<(), String> {
    kill(scene).await?;
    scene.step("the Global Zone Service is killed");
    scene.flow(AWAY).await?;
    let what = What::Move { shards: vec![BUSY], to: scene.stage.name(WHOLE).into() };
    let refused = scene.stage.gzs.begin(&scene.stage.ask(what)).await;
    let is_told = matches!(refused, Err(Denied::Unreachable { .. }));
    scene.check(
        "a change is refused while it is down",
        is_told,
        refused.map_or_else(|e| e.to_string(), |_| "begun".into()),
    );
    start(scene).await?;
    move_busy(scene, WHOLE).await?;
    move_busy(scene, BROKEN).await
}

pub async fn killed_in_mid_move(scene: &mut Scene<'_>) -> Result<(), String> {
    let mut ends: Vec<String> = vec![];
    for (round, after_ms) in KILLS_AFTER_MS.into_iter().enumerate() {
        let to = scene.stage.name([WHOLE, BROKEN][round % 2]).to_owned();
        let op = scene.begun(&What::Move { shards: vec![BUSY], to: to.clone() }).await?;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        kill(scene).await?;
        tokio::time::sleep(GONE).await;
        start(scene).await?;
        let op = scene.stage.gzs.ended(op.id, PATIENCE).await.map_err(|e| e.to_string())?;
        let took = op.ended_ms.unwrap_or(op.begun_ms).saturating_sub(op.begun_ms);
        scene.step(format!(
            "killed {after_ms} ms after shard {BUSY} began to move to {to}; {} in {took} ms: {}",
            op.state, op.says
        ));
        scene.figure("move_with_a_kill_ms", took as f64);
        let owner = owner(scene).await?;
        let has = owner == to;
        // Done: it is there. Anything else that ended: the source has it again.
        scene.check(
            "a move that was done is done, any other has changed nothing",
            (op.state == "done") == has,
            format!("{}, owner {owner}, wanted {to}", op.state),
        );
        ends.push(op.state);
    }
    scene.check(
        "no operation is left running",
        scene.stage.gzs.ops(false).await.is_ok_and(|ops| ops.is_empty()),
        ends.join(", "),
    );
    move_busy(scene, BROKEN).await
}

async fn owner(scene: &Scene<'_>) -> Result<String, String> {
    let state = scene.stage.state().await?;
    let shard = state.shards.into_iter().find(|s| s.shard == BUSY);
    Ok(shard.and_then(|s| s.owner).unwrap_or_default())
}

async fn kill(scene: &mut Scene<'_>) -> Result<(), String> {
    let service = scene.stage.cluster.service.as_mut().ok_or("the sandbox has no service")?;
    service.process.kill().await;
    Ok(())
}

async fn start(scene: &mut Scene<'_>) -> Result<(), String> {
    let begun = Instant::now();
    let service = scene.stage.cluster.service.as_mut().ok_or("the sandbox has no service")?;
    service.process.start().map_err(|e| e.to_string())?;
    scene.stage.state().await?;
    scene.figure("service_start_ms", ms(begun.elapsed()));
    Ok(())
}
