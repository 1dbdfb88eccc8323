//! Ships durable batches of one stream to one peer zone, in order, from wherever the peer says it is.
//!
//! ```text
//! applied <= acked <= sent <= durable       (of this log; the first two at the peer)
//! ```
//!
//! It never skips: a peer that needs what is not kept, or holds other bytes, stops the link. It never sends what is not durable
//! here, and it never makes a writer wait: without credit the log just grows.

use super::pace::Bucket;
use super::pack::{CODECS, Codec, PACK_BYTES, Pack, RAW_BYTES_MIN};
use super::squeeze::{Compress, Squeeze};
use super::{Ack, BEAT_AFTER_US, Frame, Hello, ODD, Order, Place, SILENT_MAX_US, Stop, Welcome, Why, Wire};
use crate::{Batch, Hlc};
use bytes::Bytes;
use shardmap::MapEpoch;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// The log that is shipped, as its open found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Log {
    /// Its incarnation.
    pub log_uuid: u128,
    /// Its writer's term.
    pub term: u64,
    /// The first seq that is kept.
    pub first_kept: u64,
    /// The last that is durable; 0: none.
    pub durable: u64,
    /// The chain at that seq; 0 at seq 0.
    pub chain: u32,
    /// The HLC at that seq.
    pub hlc: Hlc,
}

/// What a sender has shipped since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Shipped {
    /// Bytes of batches.
    pub log_bytes: u64,
    /// Bytes of the frames that carried them.
    pub line_bytes: u64,
    /// How many of these frames held several batches, or were compressed.
    pub packs: u64,
}

/// The origin's end of a link.
#[derive(Debug)]
pub struct Sender {
    place: Place,
    log: Log,
    wire: Wire,
    /// The peer has answered on this connection.
    welcomed: bool,
    applied: u64,
    acked: u64,
    sent: u64,
    /// The chain at `sent`: what the next batch must name.
    sent_chain: u32,
    reading: bool,
    /// Last seq and bytes of each batch that is not acknowledged.
    flight: VecDeque<(u64, u64)>,
    flight_bytes: u64,
    credit: u64,
    /// Of each frame that carries batches and is not acknowledged: its last seq and its bytes.
    frames: VecDeque<(u64, u64)>,
    /// What the peer takes in PACK.
    codecs: u8,
    /// Batches that wait to be packed, their bytes, and how they are to be packed.
    gathered: Vec<Batch>,
    gathered_bytes: usize,
    codec: Codec,
    /// A pack is being made of the batches up to this seq.
    packing: Option<u64>,
    squeeze: Squeeze,
    /// What all links to this peer may send.
    bucket: Arc<Mutex<Bucket>>,
    /// An operator's word: no DATA and no PACK; maps and BEATs go on.
    paused: bool,
    /// What a record of this log takes, about.
    record_bytes: u64,
    shipped: Shipped,
    round_trip_us: Option<u64>,
    /// Every peer has the log applied up to here, and what was said of it, and when.
    everywhere: u64,
    said_everywhere: u64,
    beat_us: u64,
}

/// A link that is never idle says this often what every zone has.
const NEWS_AFTER_US: u64 = 1_000_000;

impl Sender {
    /// A sender without a connection.
    pub fn new(place: Place, log: Log, map_epoch: MapEpoch, map: Bytes) -> Sender {
        Sender {
            place,
            log,
            wire: Wire::new(map_epoch, map),
            welcomed: false,
            applied: 0,
            acked: 0,
            sent: 0,
            sent_chain: 0,
            reading: false,
            flight: VecDeque::new(),
            flight_bytes: 0,
            credit: 0,
            frames: VecDeque::new(),
            codecs: 0,
            gathered: Vec::new(),
            gathered_bytes: 0,
            codec: Codec::None,
            packing: None,
            squeeze: Squeeze::new(Compress::Auto),
            bucket: Arc::default(),
            paused: false,
            record_bytes: 0,
            shipped: Shipped::default(),
            round_trip_us: None,
            everywhere: 0,
            said_everywhere: 0,
            beat_us: 0,
        }
    }

    /// The same, which gathers and compresses as an operator wants it.
    pub fn with_compress(self, wish: Compress) -> Sender {
        Sender { squeeze: Squeeze::new(wish), ..self }
    }

    /// The same, which sends no faster than `bucket` gives, together with whoever has it too.
    pub fn with_bucket(self, bucket: Arc<Mutex<Bucket>>) -> Sender {
        Sender { bucket, ..self }
    }

    /// No more of the log is sent, or it is again.
    pub fn on_pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// A connection to the peer.
    pub fn on_connect(&mut self, now_us: u64) {
        self.on_disconnect();
        self.wire.connect(now_us);
        if self.wire.up {
            let (p, l) = (&self.place, &self.log);
            let hello = Hello {
                cluster: p.cluster.clone(),
                origin: p.origin,
                peer: p.peer,
                stream: p.stream,
                streams: p.streams,
                log_uuid: l.log_uuid,
                term: l.term,
                map_epoch: self.wire.map_epoch,
                first_kept: l.first_kept,
                durable: l.durable,
                codecs: if self.squeeze.wish == Compress::Never { 0 } else { CODECS },
            };
            self.wire.say(&Frame::Hello(hello), now_us);
        }
    }

    /// The connection ended.
    pub fn on_disconnect(&mut self) {
        self.wire.disconnect();
        (self.welcomed, self.reading, self.flight_bytes, self.said_everywhere) = (false, false, 0, 0);
        (self.codecs, self.gathered_bytes, self.packing) = (0, 0, None);
        self.flight.clear();
        self.frames.clear();
        self.gathered.clear();
        self.squeeze.on_connect();
    }

    /// Bytes from the peer.
    pub fn on_bytes(&mut self, bytes: &[u8], now_us: u64) {
        self.wire.gather(bytes);
        while let Some(frame) = self.wire.take(now_us) {
            match frame {
                Frame::Welcome(w) if !self.welcomed => self.on_welcome(&w, now_us),
                Frame::Ack(a) if self.welcomed => self.on_ack(&a, now_us),
                Frame::Map(epoch, map) => self.wire.on_map_frame(epoch, map, now_us),
                Frame::Stop(stop) => {
                    self.wire.stopped = Some(stop);
                    self.wire.close();
                }
                Frame::Hello(_) | Frame::Welcome(_) | Frame::Data { .. } | Frame::Pack { .. } => self.wire.fail(ODD),
                Frame::Ack(_) | Frame::Beat { .. } => self.wire.fail(ODD),
                // They have connections of their own.
                Frame::Ask(_) | Frame::Held(_) | Frame::Seed(_) | Frame::Part(_) => self.wire.fail(ODD),
            }
        }
        self.check();
    }

    /// The log is durable up to `seq`, with this chain and HLC there.
    pub fn on_durable(&mut self, seq: u64, chain: u32, hlc: Hlc) {
        assert!(seq >= self.log.durable, "durable {} goes back to {seq}", self.log.durable);
        (self.log.durable, self.log.chain, self.log.hlc) = (seq, chain, hlc);
    }

    /// Segments were dropped: the log now begins with `seq`.
    pub fn on_kept(&mut self, seq: u64) {
        self.log.first_kept = seq;
    }

    /// Every peer has the log applied up to `seq`.
    pub fn on_everywhere(&mut self, seq: u64) {
        self.everywhere = self.everywhere.max(seq);
    }

    /// The batch that `Order::Read` asked for. One that comes late, after a new connection, is passed over.
    pub fn on_batch(&mut self, batch: Batch, now_us: u64) {
        let last = batch.last_seq();
        if !self.reading || batch.first_seq > self.sent + 1 || last <= self.sent {
            return;
        }
        assert!(last <= self.log.durable, "batch up to {last}, durable is {}", self.log.durable);
        self.reading = false;
        if batch.first_seq != self.sent + 1 || batch.prev_chain != self.sent_chain {
            self.wire.stop(Why::Diverged, self.sent_chain.into(), batch.prev_chain.into(), now_us);
            return;
        }
        let bytes = batch.bytes.len() as u64;
        self.record_bytes = (7 * self.record_bytes + bytes / (last - self.sent)) / 8 + 1;
        (self.sent, self.sent_chain) = (last, batch.chain);
        self.flight.push_back((last, bytes));
        self.flight_bytes += bytes;
        self.ship(batch, now_us);
        self.check();
    }

    /// The pack that `Order::Pack` asked for, and what it cost. One that comes late, after a new connection, is passed over.
    pub fn on_packed(&mut self, pack: Pack, cost_us: u64, now_us: u64) {
        let Some(last) = self.packing.take() else { return };
        let (raw, packed) = (u64::from(pack.raw_len), pack.packed.len() as u64);
        if self.codec == Codec::Zstd {
            self.squeeze.on_packed(raw, packed, cost_us, now_us);
        }
        self.say_batches(&Frame::Pack { sent_us: now_us, pack }, last, now_us);
        self.shipped.packs += 1;
    }

    /// Do bytes that were sent wait for the line?
    pub fn on_line(&mut self, is_busy: bool, now_us: u64) {
        self.squeeze.on_line(is_busy, now_us);
    }

    /// Sends a batch by itself, or puts it with those that are gathered.
    fn ship(&mut self, batch: Batch, now_us: u64) {
        if self.gathered.is_empty() {
            let behind = (self.log.durable - self.sent) * self.record_bytes + batch.bytes.len() as u64;
            let chosen = self.squeeze.choose(behind, now_us).filter(|_| self.codecs & Codec::None.bit() != 0);
            let alone = self.sent == self.log.durable && batch.bytes.len() < RAW_BYTES_MIN;
            let Some(codec) = chosen.filter(|_| !alone) else {
                let last = batch.last_seq();
                self.shipped.log_bytes += batch.bytes.len() as u64;
                return self.say_batches(&Frame::Data { sent_us: now_us, batch: batch.bytes }, last, now_us);
            };
            self.codec = if self.codecs & codec.bit() != 0 { codec } else { Codec::None };
        }
        self.shipped.log_bytes += batch.bytes.len() as u64;
        self.gathered_bytes += batch.bytes.len() + 4;
        self.gathered.push(batch);
    }

    fn say_batches(&mut self, frame: &Frame, last: u64, now_us: u64) {
        let bytes = self.wire.say(frame, now_us);
        self.shipped.line_bytes += bytes;
        self.bucket.lock().expect("no one panics while holding it").take(bytes, now_us);
        self.frames.push_back((last, bytes));
    }

    /// A newer map is stored here.
    pub fn on_map(&mut self, epoch: MapEpoch, map: Bytes, now_us: u64) {
        self.wire.on_map(epoch, map, now_us);
    }

    /// What to do next; `None`: wait for an event, or until `deadline`.
    pub fn next_order(&mut self, now_us: u64) -> Option<Order> {
        self.wire.check_silence(now_us);
        if let Some(order) = self.wire.orders.pop_front() {
            return Some(order);
        }
        if !self.wire.up || !self.welcomed || self.packing.is_some() {
            return None;
        }
        let rests = self.sent == self.log.durable || !self.has_credit() || self.paused;
        let is_throttled = self.ready_us(now_us).is_some();
        let whole = self.gathered_bytes >= PACK_BYTES || rests || is_throttled;
        if !self.gathered.is_empty() && !self.reading && whole {
            self.gathered_bytes = 0;
            self.packing = Some(self.sent);
            return Some(Order::Pack(std::mem::take(&mut self.gathered), self.codec));
        }
        if !rests && !is_throttled && !self.reading {
            if self.sent + 1 < self.log.first_kept {
                self.wire.stop(Why::Gap, self.sent + 1, self.log.first_kept, now_us);
                return self.wire.orders.pop_front();
            }
            self.reading = true;
            return Some(Order::Read(self.sent + 1));
        }
        let news = self.everywhere > self.said_everywhere && now_us >= self.beat_us + NEWS_AFTER_US;
        if now_us >= self.wire.said_us + BEAT_AFTER_US || news {
            let (log, everywhere) = (&self.log, self.everywhere);
            let beat = Frame::Beat { sent_us: now_us, durable: log.durable, hlc: log.hlc, everywhere };
            self.wire.say(&beat, now_us);
            (self.beat_us, self.said_everywhere) = (now_us, everywhere);
        }
        self.wire.orders.pop_front()
    }

    /// When `next_order` may have something without an event.
    pub fn deadline(&self) -> Option<u64> {
        let beat = self.wire.said_us + if self.welcomed { BEAT_AFTER_US } else { SILENT_MAX_US };
        let waits = self.welcomed && !self.paused && self.sent < self.log.durable && self.has_credit();
        let ready = waits.then(|| self.ready_us(self.wire.said_us)).flatten().unwrap_or(u64::MAX);
        self.wire.up.then(|| beat.min(self.wire.heard_us + SILENT_MAX_US).min(ready))
    }

    /// When the bucket gives something; `None`: now.
    fn ready_us(&self, now_us: u64) -> Option<u64> {
        self.bucket.lock().expect("no one panics while holding it").ready_us(now_us)
    }

    /// Is the peer answering? With which map?
    pub fn live(&self) -> Option<MapEpoch> {
        if self.welcomed && self.wire.up { self.wire.peer_map } else { None }
    }

    /// Something was done about what stopped the link: the peer is asked again.
    pub fn try_again(&mut self) {
        self.wire.stopped = None;
    }

    /// Why this side ended the last connection, although the link may go on.
    pub fn fault(&self) -> Option<&str> {
        self.wire.fault.as_deref()
    }

    /// Why the link cannot go on.
    pub fn stopped(&self) -> Option<Stop> {
        self.wire.stopped
    }

    /// The last seq that is durable at the peer, for `x-ezone-ack: remote` and for retention.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The last seq that the peer has applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// What was shipped so far.
    pub fn shipped(&self) -> Shipped {
        self.shipped
    }

    /// Bytes of the line a second, measured while it was the bottleneck; `None`: it was not, of late.
    pub fn line_rate(&self) -> Option<u64> {
        self.squeeze.rate()
    }

    /// Bytes that are not acknowledged, and how many may be.
    pub fn credit(&self) -> (u64, u64) {
        (self.flight_bytes, self.credit)
    }

    /// From sending a frame to the acknowledgement that echoed it, the newest.
    pub fn round_trip_us(&self) -> Option<u64> {
        self.round_trip_us
    }

    fn on_welcome(&mut self, w: &Welcome, now_us: u64) {
        let log = &self.log;
        if w.term > log.term {
            return self.wire.stop(Why::Fenced, log.term, w.term, now_us);
        }
        if w.durable > log.durable {
            return self.wire.stop(Why::Diverged, w.durable, log.durable, now_us);
        }
        if w.durable == log.durable && w.chain != log.chain || w.durable == 0 && w.chain != 0 {
            return self.wire.stop(Why::Diverged, w.chain.into(), log.chain.into(), now_us);
        }
        self.welcomed = true;
        (self.acked, self.sent, self.sent_chain) = (w.durable, w.durable, w.chain);
        (self.applied, self.credit, self.codecs) = (w.applied.min(w.durable), w.credit, w.codecs & CODECS);
        self.wire.on_peer_map(w.map_epoch, now_us);
    }

    fn on_ack(&mut self, a: &Ack, now_us: u64) {
        if a.durable < self.acked || a.durable > self.sent || a.applied > a.durable {
            let (seen, acked, sent) = (a.durable, self.acked, self.sent);
            let why =
                format!("an ACK of seq {seen} durable and {} applied, expected {acked} to {sent} durable", a.applied);
            return self.wire.fail(why);
        }
        (self.acked, self.applied, self.credit) = (a.durable, self.applied.max(a.applied), a.credit);
        while let Some((last, bytes)) = self.flight.front().copied().filter(|(last, _)| *last <= a.durable) {
            debug_assert!(last <= self.sent);
            self.flight_bytes -= bytes;
            self.flight.pop_front();
        }
        while let Some((_, bytes)) = self.frames.front().copied().filter(|(last, _)| *last <= a.durable) {
            self.squeeze.on_acked(bytes, now_us);
            self.frames.pop_front();
        }
        self.round_trip_us = now_us.checked_sub(a.echo_us);
        self.round_trip_us.into_iter().for_each(|us| self.squeeze.on_round_trip(us, now_us));
        self.wire.on_peer_map(a.map_epoch, now_us);
    }

    /// One batch may always be on its way, so that a small credit slows but never stops.
    fn has_credit(&self) -> bool {
        self.flight.is_empty() || self.flight_bytes < self.credit
    }

    fn check(&self) {
        assert!(self.applied <= self.acked && self.acked <= self.sent || !self.welcomed);
        assert!(self.sent <= self.log.durable || !self.welcomed);
    }
}
