//! The connections of a core: what is known of each, by kind, in a table whose places are used again under new generations.

use super::changes::Feed;
use super::forward::Origin;
use super::ownership::Watcher;
use super::trace::{Done, Trace};
use crate::http::Body;
use bytes::BytesMut;
use shardmap::{MapEpoch, Shard};

/// Names a connection; a place that is used again has another generation, so that old news never reaches a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId {
    /// Its place in the core's table, and in the driver's.
    pub index: u32,
    /// Which use of the place; below 2^24.
    pub generation: u32,
}

/// What every kind of connection has.
#[derive(Default)]
pub(super) struct Io {
    /// Waits to be sent; the driver holds what is being sent.
    pub out: Vec<u8>,
    /// The buffer that the driver gave back, for the next swap.
    pub spare: Vec<u8>,
    /// Received and not used yet.
    pub stash: Vec<u8>,
    /// Room of the buffer that the driver holds.
    pub flying: usize,
    /// Bytes of its buffers as last counted.
    pub weight: usize,
    /// All bytes that the driver has taken so far.
    pub taken_bytes: u64,
    /// It is connected.
    pub open: bool,
    /// The driver holds a buffer of it.
    pub sending: bool,
    /// A `Send` order waits for the driver.
    pub ordered: bool,
    /// The driver has taken bytes since `taken` was cleared: they may have been acted on.
    pub taken: bool,
    /// The driver does not read it.
    pub paused: bool,
    /// Its bytes are being looked at: what is left of them is not in `stash`.
    pub reading: bool,
    /// It waits in the core's list to be read on.
    pub ready: bool,
    /// The other side has ended.
    pub eof: bool,
    /// It ended without anyone having said so.
    pub cut: bool,
    /// It speaks TLS.
    pub secure: bool,
    /// It is a client's, and its handshake is under way.
    pub handshaking: bool,
    /// Close the sending half once `out` is sent.
    pub finishing: bool,
    /// Of a tunnel: our half is closed.
    pub shut: bool,
    /// A `Close` order was given: only `on_closed` counts from here on.
    pub closing: bool,
    /// When patience ends; `u64::MAX`: never. Set at least `Limits::shortest_ms` ahead, or tell `Core::look_by`.
    pub deadline: u64,
}

pub(super) struct Conn {
    pub generation: u32,
    pub io: Io,
    pub kind: Kind,
}

pub(super) enum Kind {
    Free,
    Client(Box<Client>),
    Upstream(Upstream),
    Port(PortConn),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The PROXY protocol's header has to come.
    Proxy,
    /// A request's head has to come.
    Head,
    /// Its body.
    Body,
    /// Its answer: nothing more is read of this connection.
    Await,
    /// Bytes go to and fro after a 101.
    Tunnel,
    /// What comes is thrown away until the client has seen our end.
    Drain,
}

pub(super) struct Client {
    /// It came in on `peer_listen`.
    pub trusted: bool,
    /// Where it comes from.
    pub from: Origin,
    /// Requests that it has asked.
    pub asked: u32,
    pub phase: Phase,
    pub scanned: usize,
    /// Empty lines before the head.
    pub blanks: u8,
    pub body: Body,
    /// The head of the request being served, for a second attempt.
    pub head: Vec<u8>,
    /// Its body so far.
    pub kept: Vec<u8>,
    /// `kept` is all of it so far.
    pub kept_whole: bool,
    /// Its trailer section so far; whole and judged once the body is done.
    pub trailers: Vec<u8>,
    pub discarded: usize,
    pub about: About,
    pub exchange: Option<Exchange>,
    /// Of the request being served.
    pub trace: Trace,
    /// Requests whose answers are written and not sent yet: one, but for pipelined ones.
    pub dones: Vec<Done>,
    /// Where the last answer ends in the bytes to the client.
    pub ended: u64,
}

/// What has to be remembered of the request being served.
#[derive(Clone, Copy, Default)]
pub(super) struct About {
    pub http11: bool,
    pub keep_alive: bool,
    pub is_head: bool,
    /// It has some version of what it asks for: `if-none-match`.
    pub has_some: bool,
    /// RFC 9110 §9.2.2: doing it twice is doing it once.
    pub idempotent: bool,
    pub chunked: bool,
    /// The client waits for a 100 before it sends its body.
    pub expects: bool,
    /// We said 100 ourselves: the upstream's is not for the client.
    pub continued: bool,
    /// The client takes trailers.
    pub trailers: bool,
    /// It asked to change to another protocol, and may.
    pub upgrade: bool,
    pub head_bytes: usize,
}

/// A request from its head to the end of its answer.
pub(super) struct Exchange {
    pub stage: Stage,
    pub shard: Option<Shard>,
    /// The map of the newest attempt.
    pub epoch: MapEpoch,
    /// What that map's newest entry of the shard was.
    pub entry: MapEpoch,
    /// From another zone's router: never sent on, never tried twice here.
    pub hop: bool,
    /// A map of at least this epoch is needed for the next attempt ..
    pub needs: MapEpoch,
    /// .. and another entry than this one of this shard: with other fences it may be another shard's.
    pub not_entry: Option<(Shard, MapEpoch)>,
    pub retries_421: u8,
    /// Attempts that came to nothing.
    pub retries_lost: u8,
    /// The pool of the last one.
    pub tried: Option<usize>,
    /// The cluster in which it has a place.
    pub admitted: Option<usize>,
    /// Of that cluster's requests, it is one in a second attempt.
    pub retrying: bool,
    /// A rate has been asked.
    pub charged: bool,
    /// Bytes of the answer have been written.
    pub answered: bool,
    pub held_since: Option<u64>,
    pub held_bytes: usize,
    /// Counted once in the statistics of tags.
    pub tagged: bool,
    /// It reads changes.
    pub feed: Option<Box<Feed>>,
    /// It is told how this zone stands to its shards.
    pub watcher: Option<Box<Watcher>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Not dispatched.
    New,
    /// Waits for a map.
    Held,
    /// Waits for a place in this cluster, with this ticket.
    Queued(usize, u64),
    /// A record's body is being read.
    Gather,
    Upstream(ConnId),
    /// Asked over the port, with this correlation number.
    Port(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum UpPhase {
    Connecting,
    Idle,
    Head,
    Body,
    Tunnel,
}

pub(super) struct Upstream {
    pub target: usize,
    pub client: Option<ConnId>,
    pub phase: UpPhase,
    pub scanned: usize,
    pub body: Body,
    /// The answer's trailer section so far.
    pub trailers: Vec<u8>,
    /// 1xx answers to the request being served.
    pub interims: u32,
    /// The client gets it chunked.
    pub chunk_out: bool,
    pub keep_alive: bool,
    /// Requests that it has answered.
    pub served: u64,
    /// Counted in flight under this shard.
    pub shard: Option<Shard>,
    /// When the whole request was on its way; 0: its body had not come by then.
    pub asked_us: u64,
}

#[derive(Default)]
pub(super) struct PortConn {
    pub port: usize,
    pub input: BytesMut,
}

impl Kind {
    /// The body of a request that waits stays in the socket.
    pub fn is_held_with_body(&self) -> bool {
        let Kind::Client(c) = self else { return false };
        let waits = |stage| matches!(stage, Stage::Held | Stage::Queued(..));
        c.phase == Phase::Body && c.exchange.as_ref().is_some_and(|e| waits(e.stage))
    }
}

impl Client {
    pub fn new(trusted: bool) -> Client {
        Client {
            trusted,
            from: Origin::default(),
            asked: 0,
            phase: Phase::Head,
            scanned: 0,
            blanks: 0,
            body: Body::Done,
            head: Vec::new(),
            kept: Vec::new(),
            kept_whole: true,
            trailers: Vec::new(),
            discarded: 0,
            about: About::default(),
            exchange: None,
            trace: Trace::default(),
            dones: Vec::new(),
            ended: 0,
        }
    }
}

impl Exchange {
    pub fn new() -> Exchange {
        Exchange {
            stage: Stage::New,
            shard: None,
            epoch: MapEpoch(0),
            entry: MapEpoch(0),
            hop: false,
            needs: MapEpoch(0),
            not_entry: None,
            retries_421: 0,
            retries_lost: 0,
            tried: None,
            admitted: None,
            retrying: false,
            charged: false,
            answered: false,
            held_since: None,
            held_bytes: 0,
            tagged: false,
            feed: None,
            watcher: None,
        }
    }
}
