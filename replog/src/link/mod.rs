//! Ships one stream to one peer zone over one connection: the words that sender and receiver share.
//!
//! ```text
//! origin                                   peer
//!   Sender ──── HELLO ────────────────────▶ Receiver        MAP: from whoever has the newer one, at any time
//!          ◀─── WELCOME (durable, chain) ──                 STOP: why this link cannot go on; for an operator
//!          ──── DATA, DATA, BEAT ─────────▶ ──▶ mirror
//!          ◀─── ACK (durable, applied) ────
//! ```
//!
//! Both are machines: bytes and `now_us` in, orders out. They know one connection at a time; `on_connect` forgets the one before.

mod frame;
pub mod pace;
pub mod pack;
mod receiver;
mod sender;
mod squeeze;

pub use frame::{Ack, Ask, FRAME_MAX, Frame, Held, Hello, MAP_MAX, Malformed, SeedAsk, Welcome, put, take};
pub use pack::{Codec, Pack, Packer};
pub use receiver::{Mirror, Receiver};
pub use sender::{Log, Sender, Shipped};
pub use squeeze::Compress;

use crate::Batch;
use bytes::{Bytes, BytesMut};
use shardmap::{MapEpoch, Zone};
use std::fmt;

/// A BEAT follows this long after the last frame.
pub const BEAT_AFTER_US: u64 = 100_000;
/// A connection on which nothing was heard for this long is given up.
pub const SILENT_MAX_US: u64 = 3_000_000;
/// ACKs are at least this far apart.
pub const ACK_AFTER_US: u64 = 1_000;
/// Bytes that may be on their way or not yet durable at the receiver; four times the 3.75 MB of a 1 Gb/s line at 30 ms.
pub const CREDIT_BYTES: u64 = 16 * 1024 * 1024;

/// Which end of which stream this is. Both sides must agree on all of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The cluster's name.
    pub cluster: Bytes,
    /// The zone whose log it is.
    pub origin: Zone,
    /// The zone that mirrors it.
    pub peer: Zone,
    /// The stream.
    pub stream: u32,
    /// How many streams the data directory has; another number would put shards into other streams.
    pub streams: u32,
}

/// What the driver has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// Write these bytes to the connection.
    Send(Bytes),
    /// Sender: read the batch that begins with this seq and hand it to `on_batch`.
    Read(u64),
    /// Sender: make a pack of these batches with this connection's own `Packer`, and hand it to `on_packed` with what it cost; nothing else is
    /// asked for meanwhile.
    Pack(Vec<Batch>, Codec),
    /// Receiver: append this batch to the mirror; `on_durable` when it is.
    Append(Batch),
    /// The other side has this newer map: check it, store it, hand it to everyone.
    TakeMap(MapEpoch, Bytes),
    /// Close the connection; if `stopped()` says nothing, connect again after a pause.
    Close,
}

/// Why a link cannot go on. None of these heals itself by skipping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Another cluster, zone, stream or number of streams.
    Foreign,
    /// The mirror belongs to another incarnation of the origin's log, which was rebuilt.
    Incarnation,
    /// The two logs hold different bytes at the same seq.
    Diverged,
    /// What the peer needs is no longer kept.
    Gap,
    /// A newer writer of this log has been seen: this one must not write.
    Fenced,
    /// What came is no frame of this version.
    Garbled,
}

/// A stop, and the two numbers that show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    /// Why.
    pub why: Why,
    /// What was seen.
    pub seen: u64,
    /// What was expected.
    pub expected: u64,
}

impl Why {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Why::Foreign => "foreign",
            Why::Incarnation => "incarnation",
            Why::Diverged => "diverged",
            Why::Gap => "gap",
            Why::Fenced => "fenced",
            Why::Garbled => "garbled",
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stop { why, seen, expected } = self;
        match why {
            Why::Foreign => write!(
                f,
                "the peer is of another cluster, zone, stream or number of streams ({seen}, expected {expected}): correct the configuration"
            ),
            Why::Incarnation => write!(
                f,
                "the origin's log was rebuilt (log {seen:#x}, the mirror holds {expected:#x}): restore \
                 the origin's own log; a snapshot does not make up for it, since its seqs mean other records now"
            ),
            Why::Diverged => write!(
                f,
                "the logs differ ({seen:#x}, expected {expected:#x}): compare the origin's own log with the mirror of it at the peer (`ezctl log diff`), restore \
                 the wrong one from a copy, then `ezctl link clear`"
            ),
            Why::Gap => write!(
                f,
                "gap: seq {seen} is wanted, the log begins with {expected}: at the peer have this stream seeded from a snapshot (`POST /seed` \
                 on its log's admin address), or restore its data directory from a copy that reaches so far"
            ),
            Why::Fenced => {
                write!(f, "the writer has term {seen}, term {expected} has been seen: stop the older writer")
            }
            Why::Garbled => write!(
                f,
                "what came is no frame of this version (code {seen}): check that both sides run the same version"
            ),
        }
    }
}

/// Of a frame whose turn it is not.
const ODD: &str = "a frame that does not come at this point of a link";

/// What both ends do alike: gather frames, exchange maps, notice silence.
#[derive(Debug)]
struct Wire {
    inbox: BytesMut,
    up: bool,
    heard_us: u64,
    said_us: u64,
    map_epoch: MapEpoch,
    map: Bytes,
    /// The map that the other side is known to have, or was sent.
    peer_map: Option<MapEpoch>,
    stopped: Option<Stop>,
    /// Why the last connection was refused; another may be fine.
    refused: Option<Stop>,
    /// Why this side ended the last connection, if that stops nothing: the next may be fine.
    fault: Option<String>,
    orders: std::collections::VecDeque<Order>,
}

impl Wire {
    fn new(map_epoch: MapEpoch, map: Bytes) -> Wire {
        Wire {
            inbox: BytesMut::new(),
            up: false,
            heard_us: 0,
            said_us: 0,
            map_epoch,
            map,
            peer_map: None,
            stopped: None,
            refused: None,
            fault: None,
            orders: Default::default(),
        }
    }

    /// A new connection; orders for the one before are void, but what was received stays received.
    fn connect(&mut self, now_us: u64) {
        self.disconnect();
        (self.up, self.heard_us, self.said_us) = (self.stopped.is_none(), now_us, now_us);
        self.fault = None;
    }

    fn disconnect(&mut self) {
        self.inbox.clear();
        self.up = false;
        self.peer_map = None;
        self.orders.retain(|o| matches!(o, Order::Append(_) | Order::TakeMap(..)));
    }

    /// Keeps bytes until their frame is whole: a frame and what the driver reads at once, at most.
    fn gather(&mut self, bytes: &[u8]) {
        if self.up {
            self.inbox.extend_from_slice(bytes);
        }
    }

    /// Returns how many bytes it takes.
    fn say(&mut self, frame: &Frame, now_us: u64) -> u64 {
        let mut out = BytesMut::new();
        put(&mut out, frame);
        self.said_us = now_us;
        let bytes = out.len() as u64;
        self.orders.push_back(Order::Send(out.freeze()));
        bytes
    }

    fn close(&mut self) {
        if self.up {
            self.up = false;
            self.inbox.clear();
            self.orders.push_back(Order::Close);
        }
    }

    /// Ends the connection for a reason that people are told; the next one begins anew.
    fn fail(&mut self, why: impl ToString) {
        if self.up {
            self.fault = Some(why.to_string());
            self.close();
        }
    }

    /// Ends a connection on which nothing has come for too long.
    fn check_silence(&mut self, now_us: u64) {
        if self.is_silent(now_us) {
            let s = SILENT_MAX_US / 1_000_000;
            self.fail(format!("nothing was heard for {s} s: is its log stopped, or the way between the zones cut?"));
        }
    }

    /// Says why, and never goes on.
    fn stop(&mut self, why: Why, seen: u64, expected: u64, now_us: u64) {
        let stop = Stop { why, seen, expected };
        self.say(&Frame::Stop(stop), now_us);
        self.stopped = Some(stop);
        self.close();
    }

    /// Refuses this connection and says why: whoever opened it is wrong, not this side.
    fn refuse(&mut self, why: Why, seen: u64, expected: u64, now_us: u64) {
        let stop = Stop { why, seen, expected };
        self.say(&Frame::Stop(stop), now_us);
        self.refused = Some(stop);
        self.close();
    }

    /// The next whole frame of what has arrived. Garbled bytes end the connection: what follows them cannot be believed.
    fn take(&mut self, now_us: u64) -> Option<Frame> {
        if !self.up {
            return None;
        }
        match take(&mut self.inbox) {
            Ok(Some(frame)) => {
                self.heard_us = now_us;
                Some(frame)
            }
            Ok(None) => None,
            Err(Malformed::Version(v)) => {
                self.refuse(Why::Garbled, v.into(), frame::VERSION.into(), now_us);
                None
            }
            Err(why) => {
                self.fail(why);
                None
            }
        }
    }

    fn on_map(&mut self, epoch: MapEpoch, map: Bytes, now_us: u64) {
        if epoch > self.map_epoch {
            (self.map_epoch, self.map) = (epoch, map);
            self.offer_map(now_us);
        }
    }

    /// The other side said that it has this map.
    fn on_peer_map(&mut self, epoch: MapEpoch, now_us: u64) {
        self.peer_map = Some(self.peer_map.map_or(epoch, |known| known.max(epoch)));
        self.offer_map(now_us);
    }

    /// Either side sends the newer map itself when the other's is older.
    fn offer_map(&mut self, now_us: u64) {
        if self.up && self.peer_map.is_some_and(|peer| peer < self.map_epoch) && self.map.len() <= MAP_MAX {
            self.peer_map = Some(self.map_epoch);
            self.say(&Frame::Map(self.map_epoch, self.map.clone()), now_us);
        }
    }

    fn on_map_frame(&mut self, epoch: MapEpoch, map: Bytes, now_us: u64) {
        self.on_peer_map(epoch, now_us);
        if epoch > self.map_epoch {
            self.orders.push_back(Order::TakeMap(epoch, map));
        }
    }

    fn is_silent(&self, now_us: u64) -> bool {
        self.up && now_us >= self.heard_us + SILENT_MAX_US
    }
}

#[cfg(test)]
mod tests;
