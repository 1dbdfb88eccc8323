//! Hands each zone's log of a stream to the keeper, piece by piece: to be applied, and to be looked through for a new cut.

use super::core::{Core, Stream};
use super::keeper::{Applied, Job};
use super::mirror::Mirror;
use super::stream::{self, StreamLog};
use crate::apply::Wait;
use crate::batch::Batch;
use crate::store::Scan;
use futures_lite::future::{or, zip};
use glommio::timer::sleep;
use shardmap::{MapEpoch, Zone};
use std::cell::{Cell, RefCell};
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
    /// The scan of which a part is not kept, and up to where the rest was looked through.
    above: Cell<(Option<Scan>, u64)>,
    /// What is to be applied next, read while the keeper was at the piece before it.
    ahead: RefCell<Vec<Batch>>,
}

impl Core {
    /// Feeds `zone`'s log of `stream` for ever.
    pub async fn feed(self: Rc<Self>, stream: Rc<Stream>, zone: Zone) -> Result<(), String> {
        let Some(mirror) = stream.mirrors.get(&zone) else {
            let log = stream.log.clone();
            return Feed::of(self, stream.clone(), zone, log).run().await;
        };
        loop {
            let log = mirror.exists().await;
            mirror.on_feeding(true);
            let done = Feed::of(self.clone(), stream.clone(), zone, log).run().await;
            mirror.on_feeding(false);
            if !mirror.is_paused() || self.stopping.get() {
                return done;
            }
        }
    }
}

impl Feed {
    fn of(core: Rc<Core>, stream: Rc<Stream>, zone: Zone, log: StreamLog) -> Feed {
        Feed { core, stream, zone, log, above: Cell::new((None, 0)), ahead: RefCell::default() }
    }

    async fn run(&self) -> Result<(), String> {
        let (mut pause, mut scanned) = (None, false);
        while !self.core.stopping.get() && !self.is_paused() {
            let (applied, durable) = (self.stream.applied_seq(self.zone), self.log.durable_seq());
            let apply = durable > applied && pause.is_none_or(|p| self.is_over(p));
            match self.scan() {
                // By turns, so that a long scan holds up neither what is new nor the reads that wait for it.
                Some(from) if !(apply && scanned) => {
                    scanned = true;
                    self.hand_over(from, true).await?;
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

    /// Where a scan goes on. What it wants and the log has not yet, it waits for; what it wants and the log has no more, it leaves for an
    /// operator, and looks through what is behind.
    fn scan(&self) -> Option<u64> {
        let scan = self.stream.scans.borrow().get(self.zone)?;
        let kept = self.log.with(|l| l.first_kept());
        if scan.from >= kept {
            return (scan.from <= self.log.durable_seq()).then_some(scan.from);
        }
        let (of, above) = self.above.get();
        if of != Some(scan) {
            self.above.set((Some(scan), kept));
            if scan.to < kept {
                self.say_unseen(scan);
            }
            return self.scan();
        }
        let next = above.max(kept);
        (next <= scan.to && next <= self.log.durable_seq()).then_some(next)
    }

    /// Only a volume that was full takes what a cut may still ask for, or a snapshot that has stood in for it. The status shows it for
    /// as long as it is so.
    fn say_unseen(&self, scan: Scan) {
        tracing::error!(
            "stream {} of zone {}: gap: seq {} to {} are not kept here and cannot be looked through for records behind a new cut: the \
             conflict ledger here may lack some; seed this stream again from that zone (POST /seed), or compare the ledgers",
            self.stream.number,
            self.zone,
            scan.from,
            scan.to
        );
    }

    /// Is the mirror about to be replaced?
    fn is_paused(&self) -> bool {
        self.stream.mirrors.get(&self.zone).is_some_and(Mirror::is_paused)
    }

    async fn hand_over(&self, from: u64, scan: bool) -> Result<Applied, String> {
        let (zone, stream) = (self.zone, self.stream.number);
        let ahead = if scan { Vec::new() } else { self.ahead.take() };
        let batches = match ahead.first() {
            // It may begin with what was applied already: the applier passes over that.
            Some(first) if (first.first_seq..=first.last_seq()).contains(&from) => ahead,
            _ => self.log.read_from(from, PIECE_BYTES).await.map_err(|e| self.broken(&e))?,
        };
        let done = if scan {
            let kept = self.log.with(|l| l.first_kept());
            let (of, above) = self.above.get();
            self.above.set((of, batches.last().map_or(above, |b| b.last_seq() + 1)));
            self.core.ask(|done| Job::Scan { stream, zone, batches, kept, done }).await
        } else {
            let last = batches.last().map_or(0, |b| b.last_seq());
            // Who keeps up takes all that there is then, not what there was before.
            let behind = batches.iter().map(|b| b.bytes.len()).sum::<usize>() >= PIECE_BYTES / 2;
            self.stream.on_fed(zone, last);
            zip(self.core.ask(|done| Job::Apply { stream, zone, batches, done }), self.read_ahead(last, behind)).await.0
        };
        let done = done.ok_or("the keeper is gone")?;
        self.stream.on_applied(zone, &done);
        Ok(done)
    }

    /// Reads what follows `last`, if it is there; what cannot be read now is read, and told of, in its turn.
    async fn read_ahead(&self, last: u64, behind: bool) {
        if behind && self.log.durable_seq() > last {
            let next = self.log.read_from(last + 1, PIECE_BYTES).await;
            self.ahead.replace(next.unwrap_or_default());
        }
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
        let paused = async {
            match self.stream.mirrors.get(&self.zone) {
                Some(mirror) => mirror.paused().await,
                None => std::future::pending().await,
            }
            Ok(())
        };
        or(or(more, scan), or(over, paused)).await
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
