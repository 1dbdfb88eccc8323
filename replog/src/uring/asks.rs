//! Answers what routers ask: judges by the gate, appends or reads, and says nothing at all where it cannot know.

use super::commit::Appended;
use super::core::{Core, Stream};
use super::keeper::{Job, NoRoom};
use super::now;
use super::signal::{Budget, Share};
use super::stream;
use crate::commit::{Committed, Held, Made, Token};
use crate::gate::{Decision, Row, Write};
use crate::log;
use crate::port::{Answer, Ask, Refused};
use crate::record::Record;
use crate::store;
use crate::watch::RowKey;
use bytes::Bytes;
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::{MapEpoch, Shard};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long a write or a read may wait for the map that its router knows: less than the 5 s for which routers hold requests, and as long as
/// a node may need to find the service that leads when another one froze.
pub(super) const MAP_WAIT: Duration = Duration::from_secs(4);

impl Core {
    /// Answers one ask of a router; it ends when there is an answer. A row that was read holds its share of `rows`.
    pub async fn answer(&self, ask: Ask, router: u64, rows: &Rc<Budget>) -> (Answer, Option<Share>) {
        self.asked.set(self.asked.get() + 1);
        match ask {
            Ask::Write { shard, map_epoch, table, key, value } => {
                (self.write(Write { shard, map_epoch, table, key, value }).await, None)
            }
            Ask::Commit(commit) => (self.commit(commit).await, None),
            Ask::Changes(wish) => (self.changes(wish).await, None),
            Ask::Standing { known, wait_ms } => (self.standing(router, known, wait_ms).await, None),
            Ask::Read { shard, map_epoch, table, key, local } => {
                self.read((shard, map_epoch, local), None, (table, key), rows).await
            }
            Ask::ReadAfter { shard, map_epoch, table, key, local, after, wait_ms } => {
                self.read((shard, map_epoch, local), Some((after, wait_ms)), (table, key), rows).await
            }
        }
    }

    async fn read(
        &self,
        (shard, map_epoch, local): (Shard, MapEpoch, bool),
        after: Option<(Token, u32)>,
        (table, key): RowKey,
        rows: &Rc<Budget>,
    ) -> (Answer, Option<Share>) {
        let stream = match self.readable(shard, map_epoch, local).await {
            Ok(stream) => stream,
            Err(answer) => return (answer, None),
        };
        if let Some((token, wait_ms)) = after
            && let Err(why) = self.is_applied(stream, token, Duration::from_millis(wait_ms.into())).await
        {
            return (Answer::Refused(why), None);
        }
        let share = rows.take().await;
        let answer = match self.row(stream, table, key).await {
            Some(Ok(Some(row))) if !row.deleted => Answer::Row { version: row.version, value: row.value },
            Some(Ok(_)) => Answer::Absent,
            Some(Err(NoRoom)) => Answer::Refused(Refused::Full),
            None => failed("the store does not answer"),
        };
        // Of a global service the owner's word counts only if the lease has lasted until now: another zone may have written since.
        let doubt = shard.is_global().then(|| stream.gate.borrow().read(shard, map_epoch, local, now())).flatten();
        let answer = match doubt {
            Some(Decision::Refused(why) | Decision::WaitLease(why)) => Answer::Refused(why),
            Some(Decision::WaitMap) => self.behind(),
            Some(Decision::Append(_) | Decision::NeedRow) | None => answer,
        };
        (answer, Some(share))
    }

    /// Waits, no longer than `limit`, until what `token` stands for is applied here.
    async fn is_applied(&self, stream: &Stream, token: Token, limit: Duration) -> Result<(), Refused> {
        let Token { zone, stream: number, seq } = token;
        if number != stream.number {
            let why = format!(
                "a token of stream {number}, and a record of stream {}: one says nothing of the other",
                stream.number
            );
            return Err(Refused::Invalid(why.into()));
        }
        if zone != stream.zone && !stream.mirrors.contains_key(&zone) {
            return Err(Refused::Invalid(format!("a token of zone {zone}, whose log this zone does not get").into()));
        }
        let there = stream.applied_changed.wait(|| (stream.applied_seq(zone) >= seq).then_some(true));
        let late = async {
            sleep(limit).await;
            false
        };
        if or(there, late).await { Ok(()) } else { Err(Refused::NotYet { applied: stream.applied_seq(zone) }) }
    }

    async fn write(&self, write: Write) -> Answer {
        let Some(stream) = self.stream_of(write.shard) else { return elsewhere(write.shard) };
        let (mut row, deadline) = (Row::Unknown, Instant::now() + MAP_WAIT);
        loop {
            self.told_of(stream, write.shard).await;
            let decision = stream.gate.borrow_mut().write(&write, row, now());
            match decision {
                Decision::Append(record) => return stream.append(record).await,
                Decision::NeedRow => {
                    // What becomes of the row until the gate is asked again comes after this write: the gate judges by the row that
                    // was there, under the map that is there then.
                    let key = write.key.clone().unwrap_or_default();
                    row = match self.row(stream, write.table.clone(), key).await {
                        Some(Ok(found)) => found.map_or(Row::Absent, |r| Row::At(r.version.owner_epoch)),
                        Some(Err(NoRoom)) => return Answer::Refused(Refused::Full),
                        None => return failed("the store does not answer"),
                    }
                }
                Decision::WaitMap if self.is_late(deadline) => return self.behind(),
                Decision::WaitMap => {
                    self.next_map(deadline).await;
                    row = Row::Unknown;
                }
                Decision::WaitLease(why) if self.is_late(deadline) => return Answer::Refused(why),
                Decision::WaitLease(_) => {
                    self.next_lease(deadline).await;
                    // Another zone may have owned the shard, and written the row, meanwhile.
                    row = Row::Unknown;
                }
                Decision::Refused(why) => return Answer::Refused(why),
            }
        }
    }

    /// The stream to read from, if this zone may answer.
    async fn readable(&self, shard: Shard, map_epoch: MapEpoch, local: bool) -> Result<&Rc<Stream>, Answer> {
        let Some(stream) = self.stream_of(shard) else { return Err(elsewhere(shard)) };
        let deadline = Instant::now() + MAP_WAIT;
        loop {
            let decision = stream.gate.borrow().read(shard, map_epoch, local, now());
            match decision {
                None => return Ok(stream),
                Some(Decision::WaitMap) if self.is_late(deadline) => return Err(self.behind()),
                Some(Decision::WaitMap) => self.next_map(deadline).await,
                Some(Decision::WaitLease(why)) if self.is_late(deadline) => return Err(Answer::Refused(why)),
                Some(Decision::WaitLease(_)) => self.next_lease(deadline).await,
                Some(Decision::Refused(why)) => return Err(Answer::Refused(why)),
                Some(Decision::Append(_) | Decision::NeedRow) => return Err(failed("a read was judged as a write")),
            }
        }
    }

    /// The row as of every write that was acknowledged before this call; refused while a store without room holds those up.
    async fn row(&self, stream: &Stream, table: Bytes, key: Bytes) -> Option<Result<Option<store::Row>, NoRoom>> {
        let target = stream.log.durable_seq();
        let own = self.options.zone;
        // The keeper does jobs in order: what was handed over before the question is in its answer.
        let is_fed = || (stream.fed_seq(own) >= target || self.store_full.get()).then_some(());
        stream.applied_changed.wait(is_fed).await;
        if self.store_full.get() {
            return Some(Err(NoRoom));
        }
        self.ask(|done| Job::Read { stream: stream.number, table, key, done }).await
    }

    /// Ends when there is another map, or at the deadline.
    pub(super) async fn next_map(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        or(self.map_beyond(self.epoch()), async { sleep(left).await }).await;
    }

    /// Ends when a lease has come or the map has changed, or at the deadline.
    pub(super) async fn next_lease(&self, deadline: Instant) {
        let (count, epoch) = (self.leases.get(), self.epoch());
        let left = deadline.saturating_duration_since(Instant::now());
        let other = || (self.stopping.get() || self.leases.get() != count || self.epoch() > epoch).then_some(());
        or(self.leases_changed.wait(other), sleep(left)).await;
    }

    pub(super) fn is_late(&self, deadline: Instant) -> bool {
        self.stopping.get() || Instant::now() >= deadline
    }

    pub(super) fn behind(&self) -> Answer {
        Answer::Refused(Refused::Behind { map_epoch: self.epoch() })
    }
}

impl Stream {
    /// Appends one record; ends when it is durable.
    async fn append(&self, record: Record) -> Answer {
        let (shard, owner_epoch) = (record.shard, record.owner_epoch);
        let (appended, made) = match self.begin(vec![record]) {
            Ok(Appended { durable, mut rows }) => (durable, rows.pop()),
            Err(why) => return Answer::Refused(refused(&why)),
        };
        match (appended.await, made) {
            (Ok(_), Some(made)) if shard.is_global() && !self.gate.borrow().lease_stands(shard, owner_epoch, now()) => {
                Answer::Committed(Committed { rows: vec![made], replayed: false, held: Held::Unleased })
            }
            (Ok(seq), Some(Made { key, version, .. })) => Answer::Written { key, version, seq },
            (Ok(_), None) => failed("a write without a row"),
            (Err(why @ stream::Error::Refused(log::Refused::Full)), _) => Answer::Refused(refused(&why)),
            // It may be in the log or not, and a refusal would say that it is not. The process ends; the router sees that.
            (Err(_), _) => std::future::pending().await,
        }
    }
}

/// Why nothing was appended.
pub(super) fn refused(why: &stream::Error) -> Refused {
    match why {
        stream::Error::Refused(log::Refused::Full) | stream::Error::NoRoom { .. } => Refused::Full,
        // A log that closes takes no more; the client may try again in a moment, as when it is busy.
        stream::Error::Refused(log::Refused::Busy | log::Refused::Closed) => Refused::Busy,
        other => Refused::Failed(Bytes::from(other.to_string())),
    }
}

pub(super) fn elsewhere(shard: Shard) -> Answer {
    failed(&format!("shard {shard} lives on another log core: router and log disagree about their number"))
}

pub(super) fn failed(why: &str) -> Answer {
    Answer::Refused(Refused::Failed(Bytes::copy_from_slice(why.as_bytes())))
}
