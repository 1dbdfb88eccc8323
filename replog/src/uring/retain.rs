//! Lets logs and mirrors go, each second: as far as everyone has them, or as the volume needs the room.

use super::core::{Core, Stream};
use super::keeper::Job;
use super::stream::StreamLog;
use crate::retain::{Known, Volume, release};
use glommio::timer::sleep;
use shardmap::Zone;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at every log of this core until it stops.
pub(super) async fn run(core: Rc<Core>) {
    let dir = core.options.data_dir.clone();
    let mut said = false;
    while !core.stopping.get() {
        sleep(LOOK).await; // nobody waits for this task to end: it goes with its executor
        let dir = dir.clone();
        match glommio::executor().spawn_blocking(move || used(&dir)).await {
            Ok((used, free_bytes)) => {
                said = false;
                let logs = core.streams.iter().flat_map(|s| s.logs());
                let log_bytes = logs.map(|(_, log)| log.with(|l| l.kept_bytes())).sum();
                let volume = Volume { used, free_bytes, log_bytes };
                // A map with a new cut has logs looked through from there on. It names what its reporter had applied: no less than what
                // all have said to have applied before they heard of the move. So nothing goes while a shard is on its way.
                let unsettled = core.unsettled();
                hold_back(&core, unsettled > 0 && volume.is_tight(core.options.retain), unsettled, volume);
                if unsettled == 0 {
                    for stream in &core.streams {
                        settle(&core, stream).await;
                        look(&core, stream, volume);
                    }
                }
            }
            Err(e) if !said => {
                tracing::warn!(
                    "{}: {e}; no segment is let go while the volume cannot be asked",
                    core.options.data_dir.display()
                );
                said = true;
            }
            Err(_) => {}
        }
    }
}

/// Has what is applied made durable, where a segment could go then that must not yet: a power cut takes transactions of the store back,
/// and the log has to bring them again.
async fn settle(core: &Core, stream: &Stream) {
    let waits = |zone, log: &StreamLog| {
        let oldest = log.with(|l| l.oldest_sealed());
        oldest.is_some_and(|seq| seq > stream.kept_seq(zone) && seq <= stream.applied_seq(zone))
    };
    if stream.logs().any(|(zone, log)| waits(zone, &log)) {
        let number = stream.number;
        if let Some(kept) = core.ask(|done| Job::Settle { stream: number, done }).await {
            *stream.kept.borrow_mut() = kept;
        }
    }
}

/// Says once that the volume fills up with what would go if no shard were on its way, and once that it is over.
fn hold_back(core: &Core, holds: bool, unsettled: u64, volume: Volume) {
    if core.holds_back.replace(holds) == holds {
        return;
    }
    let dir = core.options.data_dir.display();
    if holds {
        tracing::error!(
            "{dir}: the volume is {:.0} % full, {} MiB are free, {} MiB are logs, and none of it is let go: {unsettled} shards are on \
             their way to another owner, or have none, and their new map may have these logs looked through. Finish or abort the \
             moves and take-overs, or make room; when the volume is full, writes are refused until there is some",
            volume.used * 100.0,
            volume.free_bytes >> 20,
            volume.log_bytes >> 20
        );
    } else {
        tracing::info!("{dir}: nothing holds segments back any more");
    }
}

/// The share of its volume that is used, as `df` counts it, and the bytes that are free for us.
fn used(path: &Path) -> std::io::Result<(f64, u64)> {
    let v = rustix::fs::statvfs(path)?;
    let used = v.f_blocks.saturating_sub(v.f_bfree) as f64;
    let all = used + v.f_bavail as f64;
    Ok((if all > 0.0 { used / all } else { 0.0 }, v.f_bavail.saturating_mul(v.f_frsize)))
}

fn look(core: &Core, stream: &Stream, volume: Volume) {
    // A peer that has a newer map may know of a cut that this log must still be looked through for.
    let newest = stream.links.borrow().values().filter_map(|l| l.map_epoch).max();
    if newest.is_some_and(|epoch| epoch > core.epoch()) {
        return;
    }
    let applied = stream.applied_by_all(&core.options.peers);
    stream.everywhere.set(applied.unwrap_or(0));
    let_go(core, stream, &stream.log, stream.zone, applied, seeded(stream), volume);
    for (zone, mirror) in &stream.mirrors {
        if let Some(log) = mirror.log() {
            // Of a zone whose log no third one mirrors, what is applied here is needed by nobody.
            let others = (core.options.peers.len() > 1).then(|| mirror.everywhere());
            let_go(core, stream, &log, *zone, others, None, volume);
        }
    }
}

/// What peers that are being seeded will ask for: the last seq below it.
fn seeded(stream: &Stream) -> Option<u64> {
    let applied =
        |zone| stream.links.borrow().get(&zone).filter(|l| l.map_epoch.is_some()).map_or(0, |l| l.applied_seq);
    let now = Instant::now();
    let mut holds = stream.holds.borrow_mut();
    holds.retain(|zone, hold| hold.seq(applied(*zone), now).is_some());
    holds.iter().filter_map(|(zone, hold)| hold.seq(applied(*zone), now)).min()
}

fn let_go(
    core: &Core,
    stream: &Stream,
    log: &StreamLog,
    zone: Zone,
    peers: Option<u64>,
    seeded: Option<u64>,
    volume: Volume,
) {
    let kept = log.with(|l| l.first_kept());
    // What a scan wants and is not there any more is not held: only an operator ends that.
    let scan = stream.scans.borrow().get(zone).filter(|s| s.to >= kept).map(|s| s.from.max(kept));
    let Some(oldest) = log.with(|l| l.oldest_sealed()) else { return };
    let known = Known { applied: stream.kept_seq(zone), scan, seeded, peers, oldest, volume };
    let release = release(core.options.retain, known);
    log.release(release.below, release.keep_bytes);
    if release.leaves_behind {
        tracing::error!(
            "stream {} of zone {zone}: the volume is {:.0} % full, {} MiB are free, {} MiB are logs; seq up to {oldest} go, and some \
             zone has applied no more than {}: if nobody else keeps them, it has a gap now. Make room, or raise [log] \
             peers_until; then POST /seed at that zone's log",
            stream.number,
            volume.used * 100.0,
            volume.free_bytes >> 20,
            volume.log_bytes >> 20,
            peers.unwrap_or(0)
        );
    }
}
