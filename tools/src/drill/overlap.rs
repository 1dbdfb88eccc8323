//! The drill of operations that overlap: shards move from and to a zone while it is killed and taken over.

use super::lost::{kill, taken};
use super::planned::BUSY;
use super::scene::Scene;
use super::stage::{BROKEN, PATIENCE, WHOLE};
use gzs::api::What;
use shardmap::Shard;
use std::time::{Duration, Instant};

/// Beijing: owned by zone `WHOLE`, and busy.
const OTHER: u16 = 121;
/// The zone is killed so long after the moves began: before anything is sealed, while orders are held, when new owners are named.
const AFTER_MS: [u64; 3] = [5, 40, 75];
const WHILE: Duration = Duration::from_secs(1);

pub async fn taken_over_in_mid_move(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.takes_over = true;
    for after_ms in AFTER_MS.into_iter().cycle().take(scene.rounds(AFTER_MS.len() as u32) as usize) {
        once(scene, after_ms).await?;
    }
    Ok(())
}

async fn once(scene: &mut Scene<'_>, after_ms: u64) -> Result<(), String> {
    let (whole, broken) = (scene.stage.name(WHOLE).to_owned(), scene.stage.name(BROKEN).to_owned());
    let before = scene.stage.owns(BROKEN).await?;
    let away = scene.begun(&What::Move { shards: vec![BUSY], to: whole }).await?;
    let here = scene.begun(&What::Move { shards: vec![OTHER], to: broken.clone() }).await?;
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    let killed = Instant::now();
    kill(scene).await;
    scene.op(What::TakeOver { zone: broken.clone(), to: None }).await?;
    for (op, what) in [(away, format!("shard {BUSY} from {broken}")), (here, format!("shard {OTHER} to {broken}"))] {
        let op = scene.stage.gzs.ended(op.id, PATIENCE).await.map_err(|e| format!("the move of {what}: {e}"))?;
        let (given, done) = (op.shards.iter().all(|s| s.state == "given"), op.state == "done");
        scene.step(format!("{after_ms} ms into the move of {what}: {} {}", op.state, op.says));
        scene.check(
            &format!("the move of {what} is done, or says that it is not"),
            done == given && done == op.says.is_empty(),
            format!("{}; {}", op.state, op.shards.iter().map(|s| s.state.as_str()).collect::<Vec<_>>().join(", ")),
        );
    }
    taken(scene, killed).await?;
    // What was on its way to the lost zone was held, or sent there, until it had an owner again.
    scene.outage(killed, Instant::now(), |_, shard| shard == Some(Shard(OTHER)));
    let left = scene.stage.gzs.ops(false).await.map_err(|e| e.to_string())?;
    scene.check("no operation is left running", left.is_empty(), left.len().to_string());
    scene.flow(WHILE).await?;

    scene.stage.cluster.zones[BROKEN].start().map_err(|e| e.to_string())?;
    scene.stage.ready().await?;
    scene.driver.set_router_up(BROKEN, true);
    scene.op(What::Restore { zone: broken.clone() }).await?;
    // A shard that was moved before the zone fell was not taken from it.
    scene.stage.all_home().await?;
    let after = scene.stage.owns(BROKEN).await?;
    scene.check(&format!("{broken} owns again what it owned"), after == before, format!("{after} of {before} shards"));
    scene.flow(WHILE).await
}
