//! Tells the Global Zone Service how this node is, and hears what it is asked: a telling now and then, and at once when something changes
//! that an operation may wait for.
//!
//! A log need not be asked about a move to its zone: the map says so, and it reports as soon as it is ready.

use super::reach::{self, Asked, Reach, Said, root_cause};
use gzs::api::{NodeAsked, NodeTold, ReportAsk};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long one telling may take.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How often this node looks at itself while something is under way.
const LOOK: Duration = Duration::from_millis(3);
/// At least so often it tells, whatever the service says.
const TELL_MAX: Duration = Duration::from_secs(5);
/// And before it was heard once.
const TELL_FIRST: Duration = Duration::from_millis(200);
/// The longest answer: asks and leases for every shard that there can be take less than a third of it.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Tellings under way: the answer to one need not have come when there is more to tell.
const FLYING_MAX: usize = 3;

/// Looks at this node: what it tells, for these asks, and whether it expects that to change soon.
pub trait Look {
    /// See there.
    fn look(&self, asks: &[ReportAsk]) -> impl Future<Output = (NodeTold, bool)> + Send;

    /// The service has answered what was sent at `sent_ms` by the clock of leases.
    fn heard(&self, asked: &NodeAsked, sent_ms: u64) {
        let _ = (asked, sent_ms);
    }
}

/// This host's name, as the service shows it.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Tells until the task is dropped; `maps` changes with each newer map of this node's.
pub async fn tell(reach: Reach, node: impl Look, mut maps: watch::Receiver<u64>) {
    let (mut asks, mut every, mut said): (Vec<ReportAsk>, _, _) = (vec![], TELL_FIRST, Said::default());
    let (mut last, mut told_at) = (None, Instant::now());
    let mut flying = JoinSet::new();
    loop {
        let (now, busy) = node.look(&asks).await;
        let urgent = last.as_ref().is_none_or(|last| matters(last, &now));
        // One that hangs holds up the next for a while only: leases are asked for with these.
        let due = told_at.elapsed() >= if flying.is_empty() { every } else { 2 * every };
        if (urgent || due) && flying.len() < FLYING_MAX {
            flying.spawn(send(reach.clone(), now.clone()));
            (last, told_at) = (Some(now), Instant::now());
        }
        let rest = match (busy || !asks.is_empty(), flying.is_empty()) {
            (true, _) => LOOK,
            (false, true) => every.saturating_sub(told_at.elapsed()).max(LOOK),
            // A service that does not answer is no reason to look at oneself all the time.
            (false, false) => every,
        };
        tokio::select! {
            Some(done) = flying.join_next() => match done.unwrap_or_else(|e| Err(e.to_string())) {
                Ok((asked, sent_ms)) => {
                    node.heard(&asked, sent_ms);
                    every = Duration::from_millis(asked.tell_ms).clamp(LOOK, TELL_MAX);
                    (asks, said) = (asked.asks, Said::default());
                }
                Err(why) => {
                    if said.is_new(&why) {
                        tracing::warn!("the GZS does not take what this node tells: {why}");
                    }
                    // What was told may not have been heard.
                    (last, every) = (None, TELL_FIRST);
                    tokio::time::sleep(TELL_FIRST).await;
                }
            },
            _ = maps.changed() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
}

/// Is this something that an operation may wait for? Figures may wait for the next telling.
fn matters(last: &NodeTold, now: &NodeTold) -> bool {
    let calm = |n: &NodeTold| n.router.as_ref().map(|r| r.in_flight_unsettled == 0);
    let can = |n: &NodeTold| n.log.as_ref().map(|l| (l.read_only, l.store_full));
    let reports = |n: &NodeTold| n.log.as_ref().map_or(0, |l| l.reports.len());
    last.map_epoch != now.map_epoch || calm(last) != calm(now) || can(last) != can(now) || reports(last) < reports(now)
}

/// The answer, and when this was sent: before anything of it can have been heard.
async fn send(reach: Reach, told: NodeTold) -> Result<(NodeAsked, u64), String> {
    let sent_ms = replog::uring::steady_ms();
    let body = serde_json::to_vec(&told).map_err(|e| e.to_string())?;
    let asked = Asked { method: reqwest::Method::POST, path: "/v1/nodes", json: Some(body) };
    let mut answer = reach.ask(asked).await?;
    let status = answer.status().as_u16();
    let bytes = reach::body(&mut answer, ANSWER_BYTES_MAX).await.map_err(|e| root_cause(&e))?;
    let bytes = bytes.ok_or_else(|| format!("it answered {status} with more than {ANSWER_BYTES_MAX} bytes"))?;
    if status != 200 {
        let said = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        return Err(format!("it answered {status}: {said}"));
    }
    let asked = serde_json::from_slice(&bytes).map_err(|e| format!("its answer is not understood: {e}"))?;
    Ok((asked, sent_ms))
}
