//! Makes commits: looks the rows up while the log goes on, judges by the newest of store and log, appends, and waits for who has it.

use super::asks::{elsewhere, failed, refused};
use super::core::{Core, Stream};
use super::keeper::{Job, NoRoom};
use super::now;
use super::stream;
use crate::Version;
use crate::commit::{Commit, Committed, Held, Made, Seen, confirms};
use crate::gate::{Found, Known, Ruling};
use crate::log;
use crate::port::{Answer, Refused};
use crate::record::Record;
use crate::store::Row;
use crate::watch::RowKey;
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::{OwnerEpoch, Shard};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A row that is written all the time, or a shard that moves again and again, is looked up so often; then the client tries again.
const ROUNDS_MAX: u32 = 16;
/// Writes of one log core that may wait for another zone at once; more are refused as busy.
pub(super) const CONFIRMING_MAX: usize = 4096;

/// Rows of a stream that are held while they are looked up; released when this goes.
struct Hold<'a> {
    stream: &'a Stream,
    rows: Vec<RowKey>,
    /// What the log said of itself when they were taken: another number, and what is known of them is worth nothing.
    refusals: u64,
    /// And the ownership: between two of them another zone may have written.
    owner_epoch: Option<OwnerEpoch>,
    /// What the store holds, once it was asked.
    stored: Vec<Option<Row>>,
}

impl Core {
    /// Makes one commit, or says why not; ends when there is an answer.
    pub(super) async fn commit(&self, commit: Commit) -> Answer {
        self.make(commit, false).await
    }

    /// The same; `own`: of the log itself.
    pub(super) async fn make(&self, commit: Commit, own: bool) -> Answer {
        let Some(stream) = self.stream_of(commit.shard) else { return elsewhere(commit.shard) };
        // Its place among those who wait for another zone, taken before anything is done.
        let place = commit.remote_ms.map(|_| self.confirming.try_take(1));
        if commit.remote_ms.is_some() && self.options.peers.is_empty() {
            return Answer::Refused(Refused::NoPeer);
        }
        if matches!(place, Some(None)) {
            return Answer::Refused(Refused::Busy);
        }
        let limit = commit.remote_ms.map(|ms| Duration::from_millis(ms.into()));
        let deadline = Instant::now() + super::asks::MAP_WAIT;
        let mut hold: Option<Hold<'_>> = None;
        let mut rounds = 0;
        loop {
            self.told_of(stream, commit.shard).await;
            if hold.as_ref().is_some_and(|h| h.is_stale(&commit)) {
                hold = None;
            }
            let known = hold.as_ref().map(|h| h.known(&commit));
            let known_ref = known.as_ref().map(|(known, _)| known);
            let ruling = match own {
                true => stream.gate.borrow_mut().forget(&commit, known_ref, now()),
                false => stream.gate.borrow_mut().commit(&commit, known_ref, now()),
            };
            // What the ruling goes by is durable before anyone hears of it: what is taken back was never there.
            let beyond = known.as_ref().map_or(0, |(_, newest)| *newest);
            match ruling {
                Ruling::Append(records) => {
                    let appended = stream.begin(records);
                    drop(hold);
                    return self.appended(stream, commit.shard, appended, limit).await;
                }
                Ruling::NeedRows if rounds == ROUNDS_MAX => return Answer::Refused(Refused::Busy),
                Ruling::NeedRows => {
                    rounds += 1;
                    drop(hold.take());
                    let mut held = Hold::new(stream, &commit);
                    match self.stored(stream, &held.rows).await {
                        Some(Ok(stored)) => held.stored = stored,
                        Some(Err(NoRoom)) => return Answer::Refused(Refused::Full),
                        None => return failed("the store does not answer"),
                    }
                    hold = Some(held);
                }
                Ruling::WaitMap if self.is_late(deadline) => return self.behind(),
                Ruling::WaitMap => self.next_map(deadline).await,
                Ruling::WaitLease(why) if self.is_late(deadline) => return Answer::Refused(why),
                Ruling::WaitLease(_) => self.next_lease(deadline).await,
                Ruling::Again(_) | Ruling::Refused(Refused::Unmet { .. } | Refused::Reused | Refused::Locked)
                    if beyond > stream.log.durable_seq() =>
                {
                    if stream.log.wait_durable(beyond).await.is_err() {
                        return std::future::pending().await; // as with an append: the process ends
                    }
                    let stands = hold.as_ref().is_some_and(|h| !h.is_stale(&commit));
                    if stands {
                        return self.told(stream, commit.shard, ruling, limit).await;
                    }
                }
                ruling @ (Ruling::Again(_) | Ruling::Refused(_)) => {
                    return self.told(stream, commit.shard, ruling, limit).await;
                }
            }
        }
    }

    /// The answer to a commit that changes nothing.
    async fn told(&self, stream: &Stream, shard: Shard, ruling: Ruling, limit: Option<Duration>) -> Answer {
        match ruling {
            Ruling::Again(rows) => {
                let held = match (rows.last(), limit) {
                    (_, None) | (None, _) => Held::Here,
                    (Some(row), Some(_)) if row.version.zone != stream.zone => Held::Elsewhere,
                    // Its answer follows right behind its rows.
                    (Some(row), Some(_)) => self.held(stream, row.seq + 1, limit).await,
                };
                // It may have waited for long: as with the first answer, who has no lease by now does not know who writes.
                let stands = !shard.is_global() || stream.gate.borrow().writes(shard, now()).is_some();
                let held = if stands { held } else { Held::Unleased };
                Answer::Committed(Committed { rows, replayed: true, held })
            }
            Ruling::Refused(why) => Answer::Refused(why),
            Ruling::Append(_) | Ruling::NeedRows | Ruling::WaitMap | Ruling::WaitLease(_) => {
                failed("a commit without a ruling")
            }
        }
    }

    async fn appended(
        &self,
        stream: &Stream,
        shard: Shard,
        appended: Result<Appended, stream::Error>,
        limit: Option<Duration>,
    ) -> Answer {
        let Appended { rows, durable } = match appended {
            Ok(appended) => appended,
            Err(why) => return Answer::Refused(refused(&why)),
        };
        match durable.await {
            Ok(last) => {
                let held = self.held(stream, last, limit).await;
                let under = |row: &Made| stream.gate.borrow().lease_stands(shard, row.version.owner_epoch, now());
                let stands = !shard.is_global() || rows.iter().all(under);
                let held = if stands { held } else { Held::Unleased };
                Answer::Committed(Committed { rows, replayed: false, held })
            }
            Err(why @ stream::Error::Refused(log::Refused::Full)) => Answer::Refused(refused(&why)),
            // It may be in the log or not, and a refusal would say that it is not. The process ends; the router sees that.
            Err(_) => std::future::pending().await,
        }
    }

    /// Who has everything up to `seq` of the own log: with a limit, waits so long for one more zone.
    async fn held(&self, stream: &Stream, seq: u64, limit: Option<Duration>) -> Held {
        let Some(limit) = limit else { return Held::Here };
        let until = Instant::now() + limit;
        loop {
            let epoch = self.epoch();
            let confirmed = || {
                let links = stream.links.borrow();
                let any = links.values().any(|l| confirms(l.durable_seq, l.map_epoch, seq, epoch));
                any.then_some(true)
            };
            let news = async {
                // A newer map here makes acknowledgements count.
                or(self.map_beyond(epoch), sleep(until.saturating_duration_since(Instant::now()))).await;
                false
            };
            if or(stream.links_changed.wait(confirmed), news).await {
                return Held::Elsewhere;
            }
            if self.is_late(until) {
                return Held::Late(self.links_of(stream, seq).into());
            }
        }
    }

    /// How each link stands, for people.
    fn links_of(&self, stream: &Stream, seq: u64) -> String {
        let links = stream.links.borrow();
        let each = self.options.peers.iter().map(|peer| match links.get(&peer.zone) {
            Some(l) => format!("{}: {}, has seq {} of {seq}", peer.name, l.state, l.durable_seq),
            None => format!("{}: no link since this start", peer.name),
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// What the store holds of `rows`, with every append before this call in it.
    async fn stored(&self, stream: &Stream, rows: &[RowKey]) -> Option<Result<Vec<Option<Row>>, NoRoom>> {
        let (target, own) = (stream.log.with(|l| l.next_seq()) - 1, self.options.zone);
        match stream.log.settled(target).await {
            Ok(()) => {}
            // Taken back: whoever asks has to begin again, and sees that by itself.
            Err(stream::Error::Refused(log::Refused::Full)) => return Some(Ok(vec![])),
            Err(_) => return std::future::pending().await,
        }
        let is_fed = || (stream.fed_seq(own) >= target || self.store_full.get()).then_some(());
        stream.applied_changed.wait(is_fed).await;
        if self.store_full.get() {
            return Some(Err(NoRoom));
        }
        let mut all = Vec::with_capacity(rows.len());
        for (table, key) in rows {
            let (table, key) = (table.clone(), key.clone());
            match self.ask(|done| Job::Read { stream: stream.number, table, key, done }).await? {
                Ok(row) => all.push(row),
                Err(NoRoom) => return Some(Err(NoRoom)),
            }
        }
        Some(Ok(all))
    }
}

impl<'a> Hold<'a> {
    fn new(stream: &'a Rc<Stream>, commit: &Commit) -> Hold<'a> {
        let rows = commit.rows();
        stream.watches.borrow_mut().hold(&rows);
        let owner_epoch = stream.gate.borrow().may_write(commit.shard);
        Hold { stream, rows, refusals: stream.log.refusals(), owner_epoch, stored: vec![] }
    }

    fn is_stale(&self, commit: &Commit) -> bool {
        self.refusals != self.stream.log.refusals()
            || self.owner_epoch != self.stream.gate.borrow().may_write(commit.shard)
    }

    /// What is known of each row, and the last place in the log that this goes by.
    fn known(&self, commit: &Commit) -> (Known, u64) {
        let watches = self.stream.watches.borrow();
        let (mut newest, mut each) = (0, vec![]);
        for (row, stored) in self.rows.iter().zip(&self.stored) {
            each.push(match watches.newest(row, self.refusals) {
                Some(latest) => {
                    newest = newest.max(latest.seq);
                    (latest.seen, latest.seq, latest.value.clone())
                }
                None => match stored {
                    Some(row) => {
                        let seen = if row.deleted { Seen::Gone(row.version) } else { Seen::Row(row.version) };
                        (seen, row.seq, row.value.clone())
                    }
                    None => (Seen::Absent, 0, bytes::Bytes::new()),
                },
            });
        }
        let once = commit
            .once
            .as_ref()
            .and_then(|_| each.pop())
            .and_then(|(seen, seq, value)| Some(Found { version: seen.version()?, seq, value }));
        let mut seen = each.into_iter().map(|(seen, ..)| seen);
        let rows = commit.steps.iter().map(|s| s.key.as_ref().and_then(|_| seen.next()).unwrap_or(Seen::Absent));
        (Known { rows: rows.collect(), once }, newest)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.stream.watches.borrow_mut().release(&self.rows);
    }
}

/// Records on their way to the disk.
pub(super) struct Appended {
    pub rows: Vec<Made>,
    pub durable: stream::Durable,
}

impl Stream {
    /// Appends records of one transaction; whoever looks their rows up sees them from now on.
    pub(super) fn begin(&self, records: Vec<Record>) -> Result<Appended, stream::Error> {
        let made = |record: &Record| {
            let Record { owner_epoch, hlc, .. } = *record;
            let version = Version { owner_epoch, hlc, zone: self.zone, stream: self.number };
            Made { key: record.key.clone(), version, seq: 0 }
        };
        let written = records.iter().filter(|r| r.op != crate::Op::Answer);
        let mut rows: Vec<Made> = written.map(made).collect();
        let watched = if self.watches.borrow().is_empty() { vec![] } else { records.clone() };
        let (first, durable) = self.log.begin_append(records)?;
        let refusals = self.log.refusals();
        for (record, seq) in watched.iter().zip(first..) {
            self.watches.borrow_mut().on_append(seq, record, refusals);
        }
        for (row, seq) in rows.iter_mut().zip(first..) {
            row.seq = seq;
        }
        Ok(Appended { rows, durable })
    }
}
