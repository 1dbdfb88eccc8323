//! Which routers have told their readers how this zone stands to its shards: nothing is written under a new ownership before all of them have.
//!
//! ```text
//! log     a change: revision 8 ──▶ answer (8) ──▶                       ◀── ask (known 8) ── everybody knows: write
//! router                               its readers are told, then asks again
//! ```
//!
//! A router that asks for what follows revision 8 has told everything up to there. One that does not ask again in time is waited for no
//! longer, and counted: readers must not hold orders up. It never looks at a clock.

use shardmap::map::SHARDS_ALL;
use shardmap::{OwnerEpoch, Shard};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a router may take to tell its readers and to ask again, and how long a write waits for that at most.
pub const TELL_WAIT: Duration = Duration::from_millis(250);

/// The routers that listen, and what all of them have told.
#[derive(Debug)]
pub struct Hearers {
    revision: u64,
    routers: BTreeMap<u64, Router>,
    /// For each shard, the ownership of this zone that was told of.
    told: Vec<OwnerEpoch>,
    /// It was looked at since the last change, and no more has to be: so that a write costs no look at the map.
    fresh: Vec<bool>,
    untold: u64,
}

#[derive(Debug)]
struct Router {
    /// Its readers know everything up to here.
    known: u64,
    /// When it has to have asked again; `None`: its ask waits here.
    asks_by: Option<Instant>,
}

impl Default for Hearers {
    fn default() -> Hearers {
        let (told, fresh) = (vec![OwnerEpoch(0); SHARDS_ALL], vec![false; SHARDS_ALL]);
        Hearers { revision: 1, routers: BTreeMap::new(), told, fresh, untold: 0 }
    }
}

impl Hearers {
    /// How often something has changed; never 0.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How often a write went on before every router had told its readers.
    pub fn untold(&self) -> u64 {
        self.untold
    }

    /// What this zone may do with some shard has changed.
    pub fn on_change(&mut self) {
        self.revision += 1;
        self.fresh.fill(false);
    }

    /// A router asks for what follows revision `known`, and has told all up to there; `stays`: it is to be waited for from now on.
    pub fn on_ask(&mut self, router: u64, known: u64, stays: bool) {
        if stays {
            self.routers.insert(router, Router { known, asks_by: None });
        } else {
            self.routers.remove(&router);
        }
    }

    /// It has been answered.
    pub fn on_answer(&mut self, router: u64, now: Instant) {
        if let Some(r) = self.routers.get_mut(&router) {
            r.asks_by = Some(now + TELL_WAIT);
        }
    }

    /// Its connection has ended.
    pub fn on_gone(&mut self, router: u64) {
        self.routers.remove(&router);
    }

    /// Was everything up to `revision` told by every router that listens? One whose time is over does not listen any more.
    pub fn is_told(&mut self, revision: u64, now: Instant) -> bool {
        let (mut told, mut late) = (true, 0);
        self.routers.retain(|_, r| {
            let over = r.asks_by.is_some_and(|by| now >= by);
            late += u64::from(over && r.known < revision);
            told &= over || r.known >= revision;
            !over
        });
        self.untold += late;
        told
    }

    /// Has nothing changed since the ownership of `shard` was last looked at?
    pub fn is_fresh(&self, shard: Shard) -> bool {
        self.fresh.get(usize::from(shard.0)).is_some_and(|fresh| *fresh)
    }

    /// Was this ownership told of?
    pub fn knows(&mut self, shard: Shard, epoch: OwnerEpoch) -> bool {
        let at = usize::from(shard.0);
        let knows = self.told.get(at) == Some(&epoch);
        if let Some(fresh) = self.fresh.get_mut(at) {
            *fresh = knows;
        }
        knows
    }

    /// It was, or is not waited for any more (`late`).
    pub fn on_told(&mut self, shard: Shard, epoch: OwnerEpoch, late: bool) {
        self.untold += u64::from(late);
        if let Some(told) = self.told.get_mut(usize::from(shard.0)) {
            *told = epoch;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Shard = Shard(7);
    const E: OwnerEpoch = OwnerEpoch(3);

    #[test]
    fn a_revision_is_told_once_every_router_that_listens_has_asked_for_what_follows_it() {
        let (mut h, now) = (Hearers::default(), Instant::now());
        assert!(h.is_told(h.revision(), now), "nobody listens");
        h.on_ask(1, 1, true);
        h.on_ask(2, 1, true);
        assert!(h.is_told(1, now));
        h.on_change();
        assert!(!h.is_told(2, now));
        [1, 2].iter().for_each(|r| h.on_answer(*r, now));
        h.on_ask(1, 2, true);
        assert!(!h.is_told(2, now), "one of two");
        h.on_ask(2, 2, true);
        assert!(h.is_told(2, now) && h.untold() == 0);
    }

    #[test]
    fn who_leaves_who_is_gone_and_who_is_late_is_waited_for_no_longer_and_only_the_last_is_counted() {
        let (mut h, now) = (Hearers::default(), Instant::now());
        (1..=3).for_each(|r| h.on_ask(r, 1, true));
        h.on_change();
        (1..=3).for_each(|r| h.on_answer(r, now));
        h.on_gone(1);
        h.on_ask(2, 2, false);
        assert!(!h.is_told(2, now + TELL_WAIT / 2));
        assert!(h.is_told(2, now + TELL_WAIT), "it has had its time");
        assert_eq!(h.untold(), 1);
        h.on_change();
        assert!(h.is_told(3, now + TELL_WAIT) && h.untold() == 1, "nor a second time");
        h.on_ask(3, 3, true);
        h.on_change();
        assert!(!h.is_told(4, now + 9 * TELL_WAIT), "until it asks again; an ask that waits here is not late");
    }

    #[test]
    fn an_ownership_is_looked_at_once_after_each_change() {
        let mut h = Hearers::default();
        assert!(!h.is_fresh(S) && !h.knows(S, E));
        h.on_told(S, E, false);
        assert!(h.knows(S, E) && h.is_fresh(S));
        h.on_change();
        assert!(!h.is_fresh(S) && h.knows(S, E) && h.is_fresh(S), "another shard's change");
        h.on_change();
        assert!(!h.knows(S, OwnerEpoch(5)) && !h.is_fresh(S), "another ownership");
        assert!(!h.is_fresh(Shard(u16::MAX)) && !h.knows(Shard(u16::MAX), E), "no shard of a log");
    }
}
