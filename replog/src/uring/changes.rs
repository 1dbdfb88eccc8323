//! Tells changes out of the logs, up to what is applied: whoever asks is told at their own pace, and the applier waits for nobody.

use super::core::{Core, Stream};
use super::stream::{self, StreamLog};
use crate::changes::{ANSWER_BYTES, Told, Wish};
use crate::commit::Token;
use crate::port::{Answer, Refused};
use bytes::Bytes;
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::Zone;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// How much of a log is read at a time.
const PIECE_BYTES: usize = 256 << 10;
/// Readers that may wait on one log core at once; more are refused as busy.
pub(super) const READERS_MAX: usize = 256;
/// What comes at once is told at once; and a log that is just being replaced by a snapshot is not looked for all the time.
const GATHER: Duration = Duration::from_millis(1);

/// Why no more is told.
enum End {
    /// It is enough for one answer.
    Enough,
    Refused(Refused),
}

impl Core {
    /// What follows the positions of `wish`, as soon as there is something.
    pub(super) async fn changes(&self, wish: Wish) -> Answer {
        let Some(_place) = self.readers.try_take(1) else { return Answer::Refused(Refused::Busy) };
        if let Some(why) = self.knows_not(wish.after.as_deref().unwrap_or_default()) {
            return Answer::Refused(Refused::Invalid(why.into()));
        }
        let until = Instant::now() + Duration::from_millis(wish.wait_ms.into());
        let mut told = Told { changes: vec![], after: self.begin(&wish) };
        // Whoever begins now is told at once where that is.
        let begins = wish.after.is_none();
        loop {
            let before = told.after.clone();
            match self.collect(&wish, &mut told, until).await {
                Ok(()) | Err(End::Enough) => {}
                Err(End::Refused(why)) => return Answer::Refused(why),
            }
            if begins || !told.changes.is_empty() || self.is_late(until) {
                return Answer::Changes(told);
            }
            if told.after == before {
                let left = until.saturating_duration_since(Instant::now());
                or(self.more_than(&told.after), sleep(left)).await;
                sleep(GATHER).await;
            }
        }
    }

    /// Does a place belong to a log that is not told here?
    fn knows_not(&self, after: &[Token]) -> Option<String> {
        let known = |t: &&Token| {
            let stream = self.streams.iter().find(|s| s.number == t.stream);
            stream.is_some_and(|s| t.zone == s.zone || s.mirrors.contains_key(&t.zone))
        };
        if let Some(odd) = after.iter().find(|t| !known(t)) {
            return Some(format!("{odd}: this zone tells of no stream {} of zone {}", odd.stream, odd.zone));
        }
        // Another zone may have told of places that are not here yet, but of this zone's own log only of what is durable here: who waited for
        // a place behind that would in silence not be told of all that comes before.
        after.iter().find_map(|t| {
            let own = self.streams.iter().find(|s| s.number == t.stream && s.zone == t.zone)?;
            let end = own.log.durable_seq();
            (t.seq > end).then(|| format!("{t}: this zone's own log of stream {} ends at seq {end}", t.stream))
        })
    }

    /// The place of every log of this core that is wished for: as named, the beginning, or now.
    fn begin(&self, wish: &Wish) -> Vec<Token> {
        let after = wish.after.as_deref();
        let mut all = vec![];
        for stream in &self.streams {
            let zones = std::iter::once(stream.zone).chain(stream.mirrors.keys().copied());
            for zone in zones.filter(|z| wish.zone.is_none_or(|wanted| wanted == *z)) {
                let named = |t: &&Token| (t.zone, t.stream) == (zone, stream.number);
                let seq = match after {
                    None => stream.applied_seq(zone),
                    Some(all) => all.iter().find(named).map_or(0, |t| t.seq),
                };
                all.push(Token { zone, stream: stream.number, seq });
            }
        }
        all
    }

    /// Takes what there is of each log, by turns: a piece of one, then of the next.
    async fn collect(&self, wish: &Wish, told: &mut Told, until: Instant) -> Result<(), End> {
        let mut weight = 0;
        for at in 0..told.after.len() {
            let token = told.after[at];
            let Some(stream) = self.streams.iter().find(|s| s.number == token.stream) else { continue };
            let Some(log) = stream.log_of(token.zone) else { continue };
            told.after[at].seq = stream.tell(&log, wish, token, told, &mut weight).await?;
            if weight >= ANSWER_BYTES || self.is_late(until) {
                // The next answer begins with the log that would have been next.
                told.after.rotate_left(at + 1);
                return Err(End::Enough);
            }
        }
        Ok(())
    }

    /// Ends when something beyond `after` is applied.
    async fn more_than(&self, after: &[Token]) {
        let mut waits: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = vec![];
        for stream in &self.streams {
            let of: Vec<Token> = after.iter().copied().filter(|t| t.stream == stream.number).collect();
            let more = move || of.iter().any(|t| stream.applied_seq(t.zone) > t.seq).then_some(());
            waits.push(Box::pin(stream.applied_changed.wait(more)));
        }
        poll_fn(|cx| {
            let any = waits.iter_mut().any(|w| w.as_mut().poll(cx).is_ready());
            if any { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Stream {
    /// The own log, or the copy of another zone's.
    fn log_of(&self, zone: Zone) -> Option<StreamLog> {
        if zone == self.zone { Some(self.log.clone()) } else { self.mirrors.get(&zone)?.log() }
    }

    /// Tells the next piece of one log; returns up to where.
    async fn tell(
        self: &Rc<Self>,
        log: &StreamLog,
        wish: &Wish,
        after: Token,
        told: &mut Told,
        weight: &mut usize,
    ) -> Result<u64, End> {
        let applied = self.applied_seq(after.zone);
        if applied <= after.seq {
            return Ok(after.seq);
        }
        let batches = match log.read_from(after.seq + 1, PIECE_BYTES).await {
            Ok(batches) => batches,
            Err(stream::Error::NotKept { first, .. }) => {
                return Err(End::Refused(Refused::Forgotten { after, first }));
            }
            Err(why) => return Err(End::Refused(Refused::Failed(Bytes::from(why.to_string())))),
        };
        let mut last = after.seq;
        for batch in &batches {
            for record in batch.iter() {
                let (seq, record) = record.map_err(|e| End::Refused(Refused::Failed(Bytes::from(e.to_string()))))?;
                if seq <= last {
                    continue;
                }
                if seq > applied {
                    return Ok(last);
                }
                if let Some(change) = wish.change(after.zone, after.stream, seq, &record) {
                    let next = *weight + change.weight();
                    if *weight > 0 && next > ANSWER_BYTES {
                        *weight = ANSWER_BYTES;
                        return Ok(last);
                    }
                    *weight = next;
                    told.changes.push(change);
                }
                last = seq;
            }
        }
        Ok(last)
    }
}
