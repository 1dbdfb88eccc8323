//! Drills of planned moves: nothing fails, clients wait.

use super::scene::Scene;
use super::stage::{BROKEN, WHOLE};
use gzs::api::What;
use std::time::Duration;

/// Shanghai: owned by zone `BROKEN`, and busy.
pub const BUSY: u16 = 341;
/// There and back, so often, unless more is asked for.
const ROUNDS: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(300);
/// Nobody waits for longer until something moves.
const CALM_ROUNDS_MAX: u32 = 25;

pub async fn planned_move(scene: &mut Scene<'_>) -> Result<(), String> {
    let rounds = scene.rounds(ROUNDS);
    // About as long as the moves will take: so are the times of other shards' orders compared.
    scene.flow(BETWEEN * rounds.min(CALM_ROUNDS_MAX) * 2).await?;
    for _ in 0..rounds {
        for to in [WHOLE, BROKEN] {
            move_busy(scene, to).await?;
            scene.flow(BETWEEN).await?;
        }
    }
    held(scene).await;
    Ok(())
}

/// The busy shard to a zone, which has it then.
pub async fn move_busy(scene: &mut Scene<'_>, to: usize) -> Result<(), String> {
    let to = scene.stage.name(to).to_owned();
    scene.op(What::Move { shards: vec![BUSY], to: to.clone() }).await?;
    let state = scene.stage.state().await?;
    let owner = state.shards.iter().find(|s| s.shard == BUSY).and_then(|s| s.owner.clone()).unwrap_or_default();
    scene.check(&format!("shard {BUSY} is owned by {to}"), owner == to, owner.clone());
    Ok(())
}

pub async fn evacuate_restore(scene: &mut Scene<'_>) -> Result<(), String> {
    let (zone, before) = (scene.stage.name(BROKEN).to_owned(), scene.stage.owns(BROKEN).await?);
    scene.op(What::Evacuate { zone: zone.clone(), to: None }).await?;
    let left = scene.stage.owns(BROKEN).await?;
    scene.check(&format!("{zone} owns nothing while it is evacuated"), left == 0, format!("{left} of {before} shards"));
    scene.flow(Duration::from_secs(1)).await?;
    restore(scene, before).await?;
    held(scene).await;
    Ok(())
}

/// Zone `BROKEN` gets back what it owned.
pub async fn restore(scene: &mut Scene<'_>, before: usize) -> Result<(), String> {
    let zone = scene.stage.name(BROKEN).to_owned();
    scene.op(What::Restore { zone: zone.clone() }).await?;
    let after = scene.stage.owns(BROKEN).await?;
    scene.check(&format!("{zone} owns again what it owned"), after == before, format!("{after} of {before} shards"));
    Ok(())
}

/// The longest that any router has held a request since it started.
async fn held(scene: &mut Scene<'_>) {
    for zone in 0..scene.stage.cluster.zones.len() {
        let at = scene.stage.cluster.zones[zone].ports.router_admin;
        if let Some(status) = scene.stage.pages.router(at).await {
            scene.figure("held_longest_since_the_routers_start_ms", status.held_ms_max as f64);
        }
    }
}
