//! Drills of the Global Zone Service: orders do not need it, and what it had begun it finishes.

use super::planned::{BUSY, move_busy};
use super::scene::{Scene, ms};
use super::stage::{BROKEN, PATIENCE, WHOLE};
use dataplane::control::gzs_client::Denied;
use gzs::api::What;
use std::time::Duration;

/// How long it is away.
const AWAY: Duration = Duration::from_secs(2);
/// In so many moves it is killed, unless more are asked for.
const MOVES: u32 = 8;
/// .. so long after their beginning, the first of them; then at random below the last: a move takes some 50 to 100 ms.
const KILLS_AFTER_MS: [u64; 8] = [0, 5, 15, 25, 35, 50, 70, 100];
/// How long it is away in the middle of a move: routers hold requests for 5 s.
const GONE: Duration = Duration::from_millis(300);

pub async fn down(scene: &mut Scene<'_>) -> Result<(), String> {
    kill(scene).await;
    scene.step("the Global Zone Service is killed");
    scene.flow(AWAY).await?;
    let what = What::Move { shards: vec![BUSY], to: scene.stage.name(WHOLE).into() };
    let refused = scene.stage.begin(&what).await;
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
    let (mut done, mut other, mut dice) = (0, 0, 1);
    for round in 0..scene.rounds(MOVES) as usize {
        let after_ms = KILLS_AFTER_MS.get(round).copied().unwrap_or_else(|| next(&mut dice) % 100);
        // Away from where it is: a move that ended otherwise has left it there.
        let whole = scene.stage.name(WHOLE);
        let is_there = owner(scene).await? == whole;
        let to = if is_there { scene.stage.name(BROKEN) } else { whole }.to_owned();
        let begun = scene.begun(&What::Move { shards: vec![BUSY], to: to.clone() }).await?;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        kill(scene).await;
        tokio::time::sleep(GONE).await;
        start(scene).await?;
        let op = scene.stage.gzs.ended(begun.id, PATIENCE).await.map_err(|e| e.to_string())?;
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
        if op.state == "done" { done += 1 } else { other += 1 }
    }
    let left = scene.stage.gzs.ops(false).await.map_err(|e| e.to_string())?;
    let seen = format!("{} are; {done} were done, {other} ended otherwise", left.len());
    scene.check("no operation is left running", left.is_empty(), seen);
    if owner(scene).await? == scene.stage.name(WHOLE) { move_busy(scene, BROKEN).await } else { Ok(()) }
}

/// A number that looks random, the same ones each time: xorshift.
fn next(dice: &mut u64) -> u64 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice
}

async fn owner(scene: &Scene<'_>) -> Result<String, String> {
    let state = scene.stage.state().await?;
    let shard = state.shards.into_iter().find(|s| s.shard == BUSY);
    Ok(shard.and_then(|s| s.owner).unwrap_or_default())
}

async fn kill(scene: &mut Scene<'_>) {
    scene.stage.cluster.service.process.kill().await;
}

async fn start(scene: &mut Scene<'_>) -> Result<(), String> {
    let took = scene.stage.start_service().await?;
    scene.figure("service_start_ms", ms(took));
    Ok(())
}
