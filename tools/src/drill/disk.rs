//! The drill of a zone whose disk is full.

use super::scene::{Scene, THERE, ms};
use super::stage::{BROKEN, PATIENCE};
use dataplane::sandbox::volume::Volume;
use std::time::{Duration, Instant};

/// How long it stays full.
const WHILE: Duration = Duration::from_secs(2);
/// Of a row's value: segments have 4 MiB.
const LARGE_BYTES: usize = 200_000;

pub async fn full(scene: &mut Scene<'_>) -> Result<(), String> {
    let from = Instant::now();
    let zone = scene.stage.name(BROKEN);
    let taken = volume(scene)?.fill(0).map_err(|e| format!("filling {zone}'s disk: {e}"))?;
    scene.step(format!("{zone}'s disk is full: {} MiB of something else", taken >> 20));
    // Segments are made ahead: rows that are large use them up.
    let body = format!("{{\"large\":\"{}\"}}", "x".repeat(LARGE_BYTES));
    let refused = loop {
        let answer = scene.put(BROKEN, "large", THERE, &body).await?;
        if !(200..300).contains(&answer.status) {
            break format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body).trim());
        }
        if from.elapsed() >= PATIENCE {
            return Err(format!("{zone} takes {LARGE_BYTES} bytes again and again although its disk is full"));
        }
    };
    scene.figure("refused_ms", ms(from.elapsed()));
    scene.step(format!("{zone} refuses a write after {:.0} ms: {refused}", ms(from.elapsed())));
    let status = scene.stage.log(BROKEN).await?;
    let log_full = status.streams.iter().any(|s| s.logs.values().any(|l| l.is_full));
    let seen = format!("store full: {}, log full: {log_full}", status.store_full);
    scene.check("the zone says that its disk is full", status.store_full || log_full, seen);
    scene.flow(WHILE).await?;
    volume(scene)?.empty().map_err(|e| format!("emptying {zone}'s disk: {e}"))?;
    let emptied = Instant::now();
    scene.step("there is room again");
    scene.stage.ready().await?;
    scene.serves().await?;
    scene.figure("writes_again_ms", ms(emptied.elapsed()));
    scene.step(format!("{zone} takes writes again {:.0} ms later", ms(emptied.elapsed())));
    let shards = scene.shards_of(BROKEN);
    scene.outage(from, Instant::now(), move |_, shard| shard.is_none_or(|s| shards.contains(&s.0)));
    Ok(())
}

fn volume<'a>(scene: &'a Scene<'_>) -> Result<&'a Volume, String> {
    scene.stage.cluster.zones[BROKEN].volume.as_ref().ok_or_else(|| "the zone's place is not limited".into())
}
