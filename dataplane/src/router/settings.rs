//! What a router is told at its start: plain values, already checked by whoever read the configuration.

use super::access::Access;
use super::admit::ShardRates;
use super::forward::Forwarding;
use super::service::{Peer, Service};
use crate::http::head::FIELDS_MAX;
use crate::tls::Contexts;
use shardmap::Zone;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The settings of one router process; every core sees the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The zone that it is in; `None`: an edge, which serves nothing itself.
    pub zone: Option<Zone>,
    /// What the zones are called in answers.
    pub zone_names: Vec<(Zone, String)>,
    /// Where clients connect.
    pub listen: Vec<SocketAddr>,
    /// Clients at `listen` come through a balancer that speaks the PROXY protocol, version 1 or 2; not by TLS.
    pub proxy_protocol: bool,
    /// Where the routers of other zones and edges connect: trusted.
    pub peer_listen: Vec<SocketAddr>,
    /// The other zones' routers.
    pub peers: Vec<Peer>,
    /// The Unix sockets of this node's log cores.
    pub log_ports: Vec<PathBuf>,
    /// Streams of this zone's log; shard mod streams, mod the number of ports, is a shard's port.
    pub streams: u32,
    /// Upstreams of this zone; the longest prefix wins. `/records/` is the record store, if there are ports.
    pub services: Vec<Service>,
    /// What TLS handshakes go by.
    pub tls: Contexts,
    /// Which requests the access log has; `None`: there is no log.
    pub access: Option<Access>,
    /// Requests a second of each shard.
    pub shard_rates: ShardRates,
    /// Router cores of the process, who share each rate.
    pub cores: u32,
    /// Bounds.
    pub limits: Limits,
    /// What requests that are sent on say of where they come from.
    pub forwarding: Forwarding,
    /// Off only to measure what the lookup costs: each request goes to its service, whatever its tag.
    pub map_lookup: bool,
}

/// Every bound of a router core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// A request or response head.
    pub head_bytes_max: usize,
    /// A request's target: 414 beyond.
    pub uri_bytes_max: usize,
    /// Fields of a head, at most `http::head::FIELDS_MAX` less `HOP_FIELDS`: 431 beyond.
    pub fields_max: usize,
    /// 1xx answers to one request.
    pub interim_max: u32,
    /// How long a client that waits for a 100 waits for its upstream's before we say it ourselves.
    pub continue_ms: u64,
    /// How long a tunnel may carry nothing.
    pub tunnel_idle_ms: u64,
    /// A record's value.
    pub record_bytes_max: usize,
    /// How long a write with `x-ezone-ack: remote` waits for another zone.
    pub remote_ack_ms: u64,
    /// How long a read with `x-ezone-after` waits until that write is applied.
    pub after_ms: u64,
    /// Readers of `/changes` on one core.
    pub changes_max: usize,
    /// Readers of `/ownership/stream` on one core.
    pub ownership_max: usize,
    /// Body that is kept so that a second attempt is possible.
    pub kept_bytes_max: usize,
    /// Bytes that wait for one connection before its other side is no longer read.
    pub buffer_bytes_max: usize,
    /// A request's body: 413 beyond.
    pub body_bytes_max: u64,
    /// Clients' connections of one core: closed beyond.
    pub clients_max: usize,
    /// Requests of one client's connection: the last one's answer says that it is.
    pub requests_max: u32,
    /// Buffers of one core together: beyond it new requests get 503, new connections none, and little is read.
    pub memory_bytes_max: usize,
    /// From the first byte of a request's head to its end: 408 beyond.
    pub head_ms: u64,
    /// Connections of one core, both sides together.
    pub connections_max: usize,
    /// Idle connections kept for each upstream.
    pub pool_idle_max: usize,
    /// Asks in flight on the port.
    pub asks_max: usize,
    /// How long a request may be held.
    pub hold_ms_max: u64,
    /// How many may be held at once.
    pub hold_count_max: usize,
    /// Bytes of held requests at once.
    pub hold_bytes_max: usize,
    /// Until a connection is made.
    pub connect_ms: u64,
    /// From the last progress to an answer.
    pub answer_ms: u64,
    /// From the last progress to the end of a request's head or body.
    pub read_ms: u64,
    /// How long a client's connection may be idle.
    pub idle_ms: u64,
    /// How long an upstream's may: below the upstream's own limit.
    pub upstream_idle_ms: u64,
    /// How long a closing connection is read so that the client can see the answer.
    pub linger_ms: u64,
    /// How long a stopping core goes on serving what it serves.
    pub drain_ms: u64,
    /// How long an idle connection of a stopping core may ask once more.
    pub drain_idle_ms: u64,
    /// A client's time for a TLS handshake.
    pub tls_handshake_ms: u64,
    /// TLS handshakes of clients at once.
    pub tls_handshakes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes_max: 8192,
            uri_bytes_max: 8192,
            fields_max: 100,
            interim_max: 16,
            continue_ms: 1000,
            tunnel_idle_ms: 3_600_000,
            record_bytes_max: 1024 * 1024,
            remote_ack_ms: 2000,
            after_ms: 2000,
            changes_max: 64,
            ownership_max: 256,
            kept_bytes_max: 64 * 1024,
            buffer_bytes_max: 64 * 1024,
            body_bytes_max: 1 << 30,
            clients_max: 10_000,
            requests_max: 1_000_000,
            memory_bytes_max: 1 << 30,
            head_ms: 15_000,
            connections_max: 1 << 21,
            pool_idle_max: 1024,
            asks_max: 64 * 1024,
            hold_ms_max: 5000,
            hold_count_max: 10_000,
            hold_bytes_max: 16 * 1024 * 1024,
            connect_ms: 1000,
            answer_ms: 15_000,
            read_ms: 15_000,
            idle_ms: 60_000,
            upstream_idle_ms: 30_000,
            linger_ms: 1000,
            drain_ms: 10_000,
            drain_idle_ms: 1000,
            tls_handshake_ms: 5000,
            tls_handshakes_max: 1000,
        }
    }
}

/// What a router may add to a head for its peer, at most: fields about the request's way and its own.
const HOP_BYTES: usize = 2048;
/// How many fields that are.
pub const HOP_FIELDS: usize = 16;

impl Limits {
    /// Bytes of a head; one that a router has passed on has grown since it was judged.
    pub fn head_bytes_max(&self, of_peer: bool) -> usize {
        self.head_bytes_max + if of_peer { HOP_BYTES } else { 0 }
    }

    /// Fields of a head, likewise.
    pub fn fields_max(&self, of_peer: bool) -> usize {
        (self.fields_max + if of_peer { HOP_FIELDS } else { 0 }).min(FIELDS_MAX)
    }

    /// The shortest patience: whatever deadline a core sets, it lies at least so far ahead.
    pub fn shortest_ms(&self) -> u64 {
        let all = [
            self.hold_ms_max,
            self.connect_ms,
            self.answer_ms,
            self.read_ms,
            self.head_ms,
            self.continue_ms,
            self.tunnel_idle_ms,
            self.idle_ms,
            self.upstream_idle_ms,
            self.linger_ms,
            self.tls_handshake_ms,
        ];
        all.into_iter().min().expect("the list is not empty")
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            zone: None,
            zone_names: vec![],
            listen: vec![],
            proxy_protocol: false,
            peer_listen: vec![],
            peers: vec![],
            log_ports: vec![],
            streams: 1,
            services: vec![],
            tls: Contexts::default(),
            access: None,
            shard_rates: ShardRates::default(),
            cores: 1,
            limits: Limits::default(),
            forwarding: Forwarding::default(),
            map_lookup: true,
        }
    }
}

impl Settings {
    /// What `zone` is called; an edge is called "none".
    pub fn name(&self, zone: Option<Zone>) -> &str {
        let found = self.zone_names.iter().find(|(z, _)| Some(*z) == zone);
        found.map_or("none", |(_, name)| name)
    }
}
