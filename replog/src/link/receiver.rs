//! Receives one stream of another zone into its mirror: in order, verified, and never further than its bytes agree.
//!
//! ```text
//! applied <= durable <= accepted             (of the origin's log, here)
//! ```
//!
//! Accepts `accepted + 1` only. What is lower is a duplicate and must agree; what is higher ends the connection, and the
//! next one starts from what is durable. While its origin is lost, it takes no DATA, but maps still travel both ways.

use super::pack::{CODECS, Unpacker};
use super::{
    ACK_AFTER_US, Ack, CREDIT_BYTES, Frame, Hello, ODD, Order, Pack, Place, SILENT_MAX_US, Stop, Welcome, Why, Wire,
};
use crate::limits::BATCH_MAX;
use crate::{Batch, Hlc};
use bytes::Bytes;
use shardmap::MapEpoch;
use std::collections::VecDeque;

/// The mirror, as its open found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mirror {
    /// The incarnation that it mirrors; `None`: it is empty.
    pub log_uuid: Option<u128>,
    /// The last seq that is durable.
    pub durable: u64,
    /// The chain at that seq.
    pub chain: u32,
    /// The highest term in it.
    pub term: u64,
}

/// The peer's end of a link.
#[derive(Debug)]
pub struct Receiver {
    place: Place,
    mirror: Mirror,
    wire: Wire,
    /// The term of the writer at the other end of this connection.
    hello_term: Option<u64>,
    /// The last seq that this connection has brought or was told of: what an earlier one brought is not acknowledged before it
    /// has come again and agreed.
    brought: u64,
    applied: u64,
    accepted: u64,
    accepted_chain: u32,
    accepted_term: u64,
    /// Last seq, chain and bytes of each batch that is accepted and not durable.
    pending: VecDeque<(u64, u32, u64)>,
    pending_bytes: u64,
    origin_durable: u64,
    origin_hlc: Hlc,
    everywhere: u64,
    echo_us: u64,
    unpacker: Unpacker,
    ack_due: bool,
    acked_us: u64,
    /// Bytes that may be unacknowledged.
    window_bytes: u64,
    frozen: bool,
    /// DATA was passed over while frozen: the connection has to start again.
    passed_over: bool,
}

impl Receiver {
    /// A receiver without a connection; `applied` is the store's position in this log.
    pub fn new(place: Place, mirror: Mirror, applied: u64, map_epoch: MapEpoch, map: Bytes) -> Receiver {
        Receiver {
            place,
            mirror,
            wire: Wire::new(map_epoch, map),
            hello_term: None,
            brought: 0,
            applied,
            accepted: mirror.durable,
            accepted_chain: mirror.chain,
            accepted_term: mirror.term,
            pending: VecDeque::new(),
            pending_bytes: 0,
            origin_durable: 0,
            origin_hlc: Hlc::default(),
            everywhere: 0,
            echo_us: 0,
            unpacker: Unpacker::default(),
            ack_due: false,
            acked_us: 0,
            window_bytes: CREDIT_BYTES,
            frozen: false,
            passed_over: false,
        }
    }

    /// The same with another bound of what is on its way here or not yet durable here.
    pub fn with_window(self, bytes: u64) -> Receiver {
        Receiver { window_bytes: bytes, ..self }
    }

    /// A connection from the origin.
    pub fn on_connect(&mut self, now_us: u64) {
        self.on_disconnect();
        self.wire.connect(now_us);
    }

    /// The connection ended; what was accepted stays accepted.
    pub fn on_disconnect(&mut self) {
        self.wire.disconnect();
        (self.hello_term, self.ack_due, self.passed_over) = (None, false, false);
        self.unpacker = Unpacker::default();
    }

    /// Bytes from the origin.
    pub fn on_bytes(&mut self, bytes: &[u8], now_us: u64) {
        self.wire.gather(bytes);
        while let Some(frame) = self.wire.take(now_us) {
            match frame {
                Frame::Hello(h) if self.hello_term.is_none() => self.on_hello(&h, now_us),
                Frame::Data { sent_us, batch } if self.hello_term.is_some() => self.on_data(sent_us, batch, now_us),
                Frame::Pack { sent_us, pack } if self.hello_term.is_some() => self.on_pack(sent_us, &pack, now_us),
                Frame::Beat { sent_us, durable, hlc, everywhere } if self.hello_term.is_some() => {
                    (self.origin_durable, self.origin_hlc, self.echo_us) = (durable, hlc, sent_us);
                    self.everywhere = self.everywhere.max(everywhere);
                    self.ack_due = true;
                }
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

    /// A batch of this log out of a third zone's mirror of the incarnation `log_uuid`, while the origin is lost or silent: whoever mirrors a
    /// log has a beginning of it, so what one has and another lacks is the same log. Frozen or not, the caller appends what is
    /// returned; it is acknowledged to the origin once the origin has brought it, or named it, as well. `None`: it does not follow
    /// what is here.
    pub fn on_lent(&mut self, log_uuid: u128, batch: Batch) -> Result<Option<Batch>, Stop> {
        let stop = |why, seen, expected| Err(Stop { why, seen, expected });
        if (batch.zone, batch.stream) != (self.place.origin, self.place.stream) {
            return stop(Why::Foreign, batch.zone.0.into(), self.place.origin.0.into());
        }
        let known = self.mirror.log_uuid.unwrap_or(log_uuid);
        if known != log_uuid || known as u64 != batch.log_uuid_lo {
            return stop(Why::Incarnation, batch.log_uuid_lo, known as u64);
        }
        if batch.first_seq != self.accepted + 1 || self.pending_bytes > self.window_bytes {
            return Ok(None);
        }
        if batch.prev_chain != self.accepted_chain {
            return stop(Why::Diverged, batch.prev_chain.into(), self.accepted_chain.into());
        }
        if batch.term < self.accepted_term {
            return stop(Why::Fenced, batch.term, self.accepted_term);
        }
        self.mirror.log_uuid = Some(known);
        self.mirror.term = self.mirror.term.max(batch.term);
        self.accept(&batch);
        self.check();
        Ok(Some(batch))
    }

    /// The last seq that is taken, durable or not.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The mirror is durable up to `seq`, the end of a batch.
    pub fn on_durable(&mut self, seq: u64) {
        while let Some((last, chain, bytes)) = self.pending.front().copied().filter(|(last, ..)| *last <= seq) {
            (self.mirror.durable, self.mirror.chain) = (last, chain);
            self.pending_bytes -= bytes;
            self.pending.pop_front();
            self.ack_due = true;
        }
        self.check();
    }

    /// The store has applied this log up to `seq`.
    pub fn on_applied(&mut self, seq: u64) {
        self.ack_due |= seq > self.applied;
        self.applied = self.applied.max(seq);
    }

    /// A newer map is stored here.
    pub fn on_map(&mut self, epoch: MapEpoch, map: Bytes, now_us: u64) {
        self.ack_due |= epoch > self.wire.map_epoch;
        self.wire.on_map(epoch, map, now_us);
    }

    /// Does the map say that a shard of this stream was lost by the origin and has no owner yet?
    pub fn on_frozen(&mut self, frozen: bool) {
        self.frozen = frozen;
        if !frozen && std::mem::take(&mut self.passed_over) {
            self.wire.close();
        }
    }

    /// What to do next; `None`: wait for an event, or until `deadline`.
    pub fn next_order(&mut self, now_us: u64) -> Option<Order> {
        self.wire.check_silence(now_us);
        if self.ack_is_open() && now_us >= self.acked_us + ACK_AFTER_US {
            (self.ack_due, self.acked_us) = (false, now_us);
            let durable = self.mirror.durable.min(self.brought);
            let ack = Ack {
                durable,
                applied: self.applied.min(durable),
                map_epoch: self.wire.map_epoch,
                credit: self.window_bytes,
                echo_us: self.echo_us,
            };
            self.wire.say(&Frame::Ack(ack), now_us);
        }
        self.wire.orders.pop_front()
    }

    /// When `next_order` may have something without an event.
    pub fn deadline(&self) -> Option<u64> {
        let silent = self.wire.heard_us + SILENT_MAX_US;
        let ack = if self.ack_is_open() { self.acked_us + ACK_AFTER_US } else { silent };
        self.wire.up.then(|| silent.min(ack))
    }

    /// Is the origin there? With which map?
    pub fn live(&self) -> Option<MapEpoch> {
        if self.hello_term.is_some() && self.wire.up { self.wire.peer_map } else { None }
    }

    /// Why this side ended the last connection, although the link may go on.
    pub fn fault(&self) -> Option<&str> {
        self.wire.fault.as_deref()
    }

    /// Why the link cannot go on.
    pub fn stopped(&self) -> Option<Stop> {
        self.wire.stopped
    }

    /// Why the last connection was refused: its sender is wrong, the mirror is not.
    pub fn refused(&self) -> Option<Stop> {
        self.wire.refused
    }

    /// The mirror's incarnation and durable position; the incarnation is known before the first `Append`.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The last durable seq and the HLC that the origin spoke of: with the mirror's, the lag.
    pub fn origin(&self) -> (u64, Hlc) {
        (self.origin_durable, self.origin_hlc)
    }

    /// Every zone has the origin's log applied up to here, as far as it has said.
    pub fn everywhere(&self) -> u64 {
        self.everywhere
    }

    fn on_hello(&mut self, h: &Hello, now_us: u64) {
        let p = &self.place;
        if (&h.cluster, h.origin, h.peer, h.stream) != (&p.cluster, p.origin, p.peer, p.stream) {
            return self.wire.refuse(Why::Foreign, h.origin.0.into(), p.origin.0.into(), now_us);
        }
        if h.streams != p.streams {
            return self.wire.refuse(Why::Foreign, h.streams.into(), p.streams.into(), now_us);
        }
        let known = *self.mirror.log_uuid.get_or_insert(h.log_uuid);
        if known != h.log_uuid {
            return self.wire.refuse(Why::Incarnation, h.log_uuid as u64, known as u64, now_us);
        }
        if h.term < self.mirror.term {
            return self.wire.refuse(Why::Fenced, h.term, self.mirror.term, now_us);
        }
        // A HELLO may be overtaken: what was durable there when it was sent may be less than what a third zone has lent since. Whether
        // the logs differ is for the origin to say, which knows what is durable now when WELCOME names the mirror's end.
        if self.mirror.durable + 1 < h.first_kept {
            return self.wire.stop(Why::Gap, self.mirror.durable + 1, h.first_kept, now_us);
        }
        (self.mirror.term, self.hello_term, self.origin_durable) = (h.term, Some(h.term), h.durable);
        let welcome = Welcome {
            durable: self.mirror.durable,
            chain: self.mirror.chain,
            applied: self.applied.min(self.mirror.durable),
            term: self.mirror.term,
            map_epoch: self.wire.map_epoch,
            credit: self.window_bytes,
            codecs: h.codecs & CODECS,
        };
        self.brought = self.mirror.durable;
        self.wire.say(&Frame::Welcome(welcome), now_us);
        self.wire.on_peer_map(h.map_epoch, now_us);
    }

    /// Each batch in its turn, as if it had come by itself. A pack that is not one ends the connection.
    fn on_pack(&mut self, sent_us: u64, pack: &Pack, now_us: u64) {
        match self.unpacker.unpack(pack) {
            Ok(batches) => {
                for batch in batches {
                    if self.wire.up {
                        self.on_data(sent_us, batch, now_us);
                    }
                }
            }
            Err(why) => self.wire.fail(why),
        }
    }

    fn on_data(&mut self, sent_us: u64, bytes: Bytes, now_us: u64) {
        self.echo_us = sent_us;
        if self.frozen {
            self.passed_over = true;
            return;
        }
        let batch = match Batch::parse(bytes) {
            Ok(batch) => batch,
            Err(why) => return self.wire.fail(format!("a batch that is none: {why}")),
        };
        if (batch.zone, batch.stream) != (self.place.origin, self.place.stream) {
            return self.wire.refuse(Why::Foreign, batch.zone.0.into(), self.place.origin.0.into(), now_us);
        }
        if self.mirror.log_uuid.is_some_and(|known| known as u64 != batch.log_uuid_lo) {
            let known = self.mirror.log_uuid.unwrap_or(0) as u64;
            return self.wire.refuse(Why::Incarnation, batch.log_uuid_lo, known, now_us);
        }
        if batch.last_seq() <= self.accepted {
            return self.on_duplicate(&batch, now_us);
        }
        if batch.first_seq != self.accepted + 1 {
            let (seen, expected) = (batch.first_seq, self.accepted + 1);
            return self.wire.fail(format!("a batch from seq {seen} on, expected {expected}"));
        }
        if self.pending_bytes > self.window_bytes + BATCH_MAX as u64 {
            let (seen, window) = (self.pending_bytes, self.window_bytes);
            return self
                .wire
                .fail(format!("{seen} bytes that are not durable here yet, and more, credit was {window}"));
        }
        if batch.prev_chain != self.accepted_chain {
            let (seen, expected) = (batch.prev_chain.into(), self.accepted_chain.into());
            return self.wire.stop(Why::Diverged, seen, expected, now_us);
        }
        if batch.term < self.accepted_term || self.hello_term.is_some_and(|t| batch.term > t) {
            return self.wire.refuse(Why::Fenced, batch.term, self.accepted_term, now_us);
        }
        self.brought = batch.last_seq();
        self.accept(&batch);
        self.wire.orders.push_back(Order::Append(batch));
    }

    fn accept(&mut self, batch: &Batch) {
        let (last, bytes) = (batch.last_seq(), batch.bytes.len() as u64);
        (self.accepted, self.accepted_chain, self.accepted_term) = (last, batch.chain, batch.term);
        self.origin_durable = self.origin_durable.max(last);
        self.origin_hlc = self.origin_hlc.max(batch.last_hlc);
        self.pending.push_back((last, batch.chain, bytes));
        self.pending_bytes += bytes;
    }

    /// Known already; what can be compared must agree.
    fn on_duplicate(&mut self, batch: &Batch, now_us: u64) {
        let held = [(self.mirror.durable, self.mirror.chain, 0)];
        let known = held.iter().chain(&self.pending).find(|(last, ..)| *last == batch.last_seq());
        match known {
            Some((_, chain, _)) if *chain != batch.chain => {
                self.wire.stop(Why::Diverged, batch.chain.into(), (*chain).into(), now_us);
            }
            None if batch.last_seq() > self.mirror.durable => {
                self.wire.stop(Why::Diverged, batch.last_seq(), self.accepted, now_us);
            }
            Some(_) | None => {
                self.brought = self.brought.max(batch.last_seq());
                self.ack_due = true;
            }
        }
    }

    fn ack_is_open(&self) -> bool {
        self.ack_due && self.wire.up && self.hello_term.is_some()
    }

    fn check(&self) {
        assert!(self.mirror.durable <= self.accepted);
        assert_eq!(self.pending.is_empty(), self.mirror.durable == self.accepted);
    }
}
