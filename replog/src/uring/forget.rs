//! Removes first answers to idempotency keys that are no longer kept, each in the zone that owns its shard.
//!
//! A removal is a delete in the log like any other, under the condition that the answer is still the old one: so all copies let go of the
//! same answers, and one that was given anew meanwhile stays.

use super::core::{Core, Stream};
use super::keeper::Job;
use super::now_ms;
use crate::Hlc;
use crate::Version;
use crate::commit::{ANSWERS, Commit, Condition, Step};
use bytes::Bytes;
use glommio::timer::sleep;
use shardmap::{MapEpoch, Shard};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// How often old answers are looked for, at most: a quarter of the time that they are kept.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How many are removed at a time.
const PIECE: usize = 64;

/// Looks for old answers for ever.
pub(super) async fn run(core: Rc<Core>) {
    let every = LOOK_EVERY.min(Duration::from_millis(core.options.answers_kept_ms / 4)).max(Duration::from_millis(10));
    while !core.stopping.get() {
        sleep(every).await;
        for stream in &core.streams {
            core.forget(stream).await;
        }
    }
}

impl Core {
    /// Removes what is old of one stream. What another zone owns is passed over: it does the same.
    async fn forget(&self, stream: &Rc<Stream>) {
        let (number, mut from) = (stream.number, Hlc(0));
        while !self.stopping.get() && !self.store_full.get() {
            let below = stream.gate.borrow().forgotten_below(now_ms());
            let asked = self.ask(|done| Job::Answers { stream: number, from, below, most: PIECE, done }).await;
            let Some(found) = asked.filter(|found| !found.is_empty()) else { return };
            from = found.last().map_or(below, |(.., version)| Hlc(version.hlc.0 + 1));
            let mut by_shard: BTreeMap<Shard, Vec<Step>> = BTreeMap::new();
            for (shard, key, version) in found {
                if stream.gate.borrow().may_write(shard).is_some() {
                    by_shard.entry(shard).or_default().push(removal(key, version));
                }
            }
            for (shard, steps) in by_shard {
                // What is refused, for want of room or since one of them was given anew, is old the next time, too.
                let ask = Commit { shard, map_epoch: MapEpoch(0), steps, once: None, remote_ms: None };
                self.make(ask, true).await;
            }
        }
    }
}

fn removal(key: Bytes, version: Version) -> Step {
    Step { table: Bytes::from_static(ANSWERS), key: Some(key), value: None, only: Condition::At(version) }
}
