//! Tells routers how this zone stands to its shards, and lets no write under a new ownership begin before they have passed it on.

use super::core::{Core, Stream};
use super::now;
use crate::hearers::TELL_WAIT;
use crate::port::Answer;
use crate::stand::Standing;
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::{OwnerEpoch, Shard};
use std::time::{Duration, Instant};

/// How often a router that listens is told what is left of leases.
const LEASES_TOLD: Duration = Duration::from_millis(500);

impl Core {
    /// What this zone may do with some shard may have changed.
    pub(super) fn stands_change(&self) {
        self.hearers.borrow_mut().on_change();
        self.stands_changed.notify();
    }

    /// Answers a router that has told its readers everything up to revision `known`, as soon as there is something else.
    pub(super) async fn standing(&self, router: u64, known: u64, wait_ms: u32) -> Answer {
        let mut until = Duration::from_millis(wait_ms.into());
        if self.map.borrow().globals().iter().any(|(_, shard)| self.stream_of(*shard).is_some()) {
            // What is left of leases is told with it, and must not be long ago; that one has ended is told at once.
            let left = self.stands().stands.iter().map(|s| s.lease_ms).filter(|ms| *ms > 0).min();
            until = until.min(LEASES_TOLD).min(left.map_or(LEASES_TOLD, |ms| Duration::from_millis(u64::from(ms) + 1)));
        }
        self.hearers.borrow_mut().on_ask(router, known, wait_ms > 0);
        self.heard.notify();
        let other = || (self.stopping.get() || self.hearers.borrow().revision() != known).then_some(());
        if wait_ms > 0 {
            or(self.stands_changed.wait(other), sleep(until)).await;
        }
        self.hearers.borrow_mut().on_answer(router, Instant::now());
        Answer::Standing(self.stands())
    }

    /// The connection of a router has ended: nobody waits for it.
    pub(super) fn router_gone(&self, router: u64) {
        self.hearers.borrow_mut().on_gone(router);
        self.heard.notify();
    }

    fn stands(&self) -> Standing {
        let of = |s: &std::rc::Rc<Stream>| {
            let fencing = s.fencing.borrow();
            s.gate.borrow().stands(now(), |shard| fencing.contains_key(&shard))
        };
        let mut stands: Vec<_> = self.streams.iter().flat_map(of).collect();
        stands.sort_unstable_by_key(|s| s.shard);
        Standing { revision: self.hearers.borrow().revision(), map_epoch: self.epoch(), stands }
    }

    /// Ends once every router that listens has told its readers of the ownership under which `shard` is written, or has had its time for that;
    /// at once where it is not written here. What follows without an await is judged by the same ownership.
    pub(super) async fn told_of(&self, stream: &Stream, shard: Shard) {
        if self.hearers.borrow().is_fresh(shard) {
            return;
        }
        let mut begun: Option<(OwnerEpoch, u64, Instant)> = None;
        loop {
            let Some(epoch) = stream.gate.borrow().writes(shard, now()) else { return };
            if self.hearers.borrow_mut().knows(shard, epoch) {
                return;
            }
            let now = Instant::now();
            let this = begun.filter(|(e, ..)| *e == epoch);
            let (_, revision, until) = this.unwrap_or((epoch, self.hearers.borrow().revision(), now + TELL_WAIT));
            begun = Some((epoch, revision, until));
            let told = self.hearers.borrow_mut().is_told(revision, now);
            if told || now >= until {
                self.hearers.borrow_mut().on_told(shard, epoch, !told);
                continue;
            }
            let told = || self.hearers.borrow_mut().is_told(revision, Instant::now()).then_some(());
            or(self.heard.wait(told), sleep(until - now)).await;
        }
    }
}

impl Stream {
    /// FENCEs whose append begins: of these shards writes have stopped only once they are durable.
    pub(super) fn fencing(&self, shards: &[Shard]) {
        let mut all = self.fencing.borrow_mut();
        shards.iter().for_each(|s| *all.entry(*s).or_default() += 1);
    }

    /// They are.
    pub(super) fn fences_durable(&self, shards: &[Shard]) {
        let mut all = self.fencing.borrow_mut();
        for shard in shards {
            let left = all.remove(shard).unwrap_or(1) - 1;
            if left > 0 {
                all.insert(*shard, left);
            }
        }
    }
}
