//! Hands each zone's log of a stream to the keeper, piece by piece: to be applied, and to be looked through for a new cut.

use super::core::{Core, Stream};
use super::keeper::{Applied, Job};
use super::stream::{self, StreamLog};
use crate::apply::Wait;
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::{MapEpoch, Zone};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How much of a log one job takes; reads wait behind it.
const PIECE_BYTES: usize = 256 << 10;
/// When a log that found no room for parked records is tried again.
const PARKED_RETRY: Duration = Duration::from_millis(100);

/// Until when there is no use in applying more of a log.
#[derive(Clone, Copy)]
enum Pause {
    /// There is a map beyond this one, by which the applier went.
    Map(MapEpoch),
    At(Instant),
}

/// One log, on its way to the keeper.
struct Feed {
    core: Rc<Core>,
    stream: Rc<Stream>,
    zone: Zone,
    log: StreamLog,
}

impl Core {
    /// Feeds `zone`'s log of `stream` for ever.
    pub async fn feed(self: Rc<Self>, stream: Rc<Stream>, zone: Zone) -> Result<(), String> {
        let log = match stream.mirrors.get(&zone) {
            Some(mirror) => mirror.exists().await,
            None => stream.log.clone(),
        };
        Feed { core: self, stream, zone, log }.run().await
    }
}

impl Feed {
    async fn run(&self) -> Result<(), String> {
        let (mut pause, mut scanned) = (None, false);
        while !self.core.stopping.get() {
            let (applied, durable) = (self.stream.applied_seq(self.zone), self.log.durable_seq());
            let apply = durable > applied && pause.is_none_or(|p| self.is_over(p));
            match self.scan() {
                // By turns, so that a long scan holds up neither what is new nor the reads that wait for it.
                Some(from) if !(apply && scanned) => {
                    scanned = true;
                    let kept = self.log.with(|l| l.first_kept());
                    if from < kept {
                        self.say_unseen(from, kept);
                    }
                    self.hand_over(from.max(kept), true).await?;
                }
                Some(_) | None if apply => {
                    scanned = false;
                    let done = self.hand_over(applied + 1, false).await?;
                    pause = done.wait.map(|why| pause_for(why, done.map_epoch));
                }
                Some(_) | None => self.idle(applied.max(durable), pause).await?,
            }
        }
        Ok(())
    }

    /// Where a scan goes on. What it wants and the log has not (yet): it waits for.
    fn scan(&self) -> Option<u64> {
        let from = self.stream.scans.borrow().get(&self.zone)?.from;
        (from <= self.log.durable_seq()).then_some(from)
    }

    /// Only a volume that was full takes what a cut may still ask for; said once, since the scan goes on behind it.
    fn say_unseen(&self, from: u64, kept: u64) {
        tracing::error!(
            "stream {} of zone {}: gap: seq {from} to {} were let go before they could be looked through for records behind a new \
             cut: the conflict ledger here may lack some; compare it with another zone's",
            self.stream.number,
            self.zone,
            kept - 1
        );
    }

    async fn hand_over(&self, from: u64, scan: bool) -> Result<Applied, String> {
        let (zone, stream) = (self.zone, self.stream.number);
        let batches = self.log.read_from(from, PIECE_BYTES).await.map_err(|e| self.broken(&e))?;
        let done = if scan {
            self.core.ask(|done| Job::Scan { stream, zone, batches, done }).await
        } else {
            self.stream.on_fed(zone, batches.last().map_or(0, |b| b.last_seq()));
            self.core.ask(|done| Job::Apply { stream, zone, batches, done }).await
        };
        let done = done.ok_or("the keeper is gone")?;
        self.stream.on_applied(zone, &done);
        Ok(done)
    }

    /// Ends when there may be something to do: more than `durable`, a scan, or the end of `pause`.
    async fn idle(&self, durable: u64, pause: Option<Pause>) -> Result<(), String> {
        let more = async { self.log.wait_durable(durable + 1).await.map(drop).map_err(|e| self.broken(&e)) };
        let scan = async {
            self.stream.scans_changed.wait(|| self.scan()).await;
            Ok(())
        };
        let over = async {
            match pause {
                Some(Pause::Map(epoch)) => self.core.map_beyond(epoch).await,
                Some(Pause::At(at)) => sleep(at.saturating_duration_since(Instant::now())).await,
                None => std::future::pending().await,
            }
            Ok(())
        };
        or(or(more, scan), over).await
    }

    fn is_over(&self, pause: Pause) -> bool {
        match pause {
            Pause::Map(epoch) => self.core.epoch() > epoch,
            Pause::At(at) => Instant::now() >= at,
        }
    }

    fn broken(&self, why: &stream::Error) -> String {
        format!("stream {} of zone {}: {why}", self.stream.number, self.zone)
    }
}

fn pause_for(why: Wait, map_epoch: MapEpoch) -> Pause {
    match why {
        Wait::Map(_) | Wait::Frozen(_) => Pause::Map(map_epoch),
        Wait::Parked => Pause::At(Instant::now() + PARKED_RETRY),
    }
}
