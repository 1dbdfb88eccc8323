//! What a router core would do with a request, found out by asking one: a core of its own, with the same settings and map, whose
//! orders nobody follows. It cannot differ from what routes, and it counts nothing that is shown.

use super::service::{Endpoint, Peer, Service};
use super::shown::{EndpointShown, ServiceShown};
use super::store::Place;
use super::{Core, Now, Order, Routes, Settings, Side, Target};
use shardmap::Shard;
use std::net::SocketAddr;
use std::sync::Arc;

/// What became of the request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trial {
    /// The shard, if it got so far and no answer was given at once.
    pub shard: Option<Shard>,
    /// The service, `records`, `forward`, or `none`.
    pub service: String,
    /// Where it went.
    pub went: Went,
}

/// Where a request went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Went {
    /// To an upstream of this zone or a router of another.
    Upstream(SocketAddr),
    /// To the log core with this number.
    Log(usize),
    /// Nowhere yet: it is held until a newer map.
    Held,
    /// Nowhere yet: it waits for a place at its service.
    Waits,
    /// The router itself answered.
    Answered {
        /// With this status.
        status: u16,
        /// And this body: JSON, unless the request was HEAD.
        body: String,
    },
}

/// The key of a record that `path` names, as sent.
pub fn record_key(path: &str) -> Option<&str> {
    match Place::of(path)? {
        Place::Row { key, .. } => key,
        Place::Tx | Place::Changes | Place::Ownership { .. } => None,
    }
}

/// Gives `request`, a whole head, to a core.
pub fn trial(settings: &Settings, map: &Arc<dyn Routes>, side: Side, request: &[u8], now: Now) -> Trial {
    let mut core = Core::new(Arc::new(apart(settings)));
    core.on_map(map.clone(), now);
    let refused = Trial { shard: None, service: "none".into(), went: Went::Waits };
    let Some(client) = core.on_accept(side, now) else { return refused };
    core.on_bytes(client, request, now);
    let mut went = None;
    while let Some(order) = core.next_order() {
        match order {
            Order::Connect(_, Target::Tcp(at) | Target::Tls(at, _)) => went = Some(Went::Upstream(at)),
            Order::Connect(_, Target::Port(port)) => went = Some(Went::Log(port)),
            Order::Send(id) if id == client && went.is_none() => went = answer(&core.take_out(id)),
            Order::Send(_)
            | Order::Pause(_)
            | Order::Resume(_)
            | Order::Shutdown(_)
            | Order::Close(_)
            | Order::Reset(_) => {}
        }
    }
    let held = core.counts().holding > 0;
    let (shard, place) =
        core.client(client).map_or((None, 0), |(_, c)| (c.exchange.as_ref().and_then(|e| e.shard), c.trace.service));
    let service = core.figures().services.get(usize::from(place)).map_or("none".into(), |s| s.name.clone());
    Trial { shard, service, went: went.unwrap_or(if held { Went::Held } else { Went::Waits }) }
}

/// The same settings, showing what they count to nobody: the cores are the only writers of theirs.
fn apart(settings: &Settings) -> Settings {
    let endpoints = |all: &[Endpoint]| {
        let one = |e: &Endpoint| Endpoint { shown: Arc::new(EndpointShown::new(1)), ..e.clone() };
        all.iter().map(one).collect()
    };
    let shown = || Arc::new(ServiceShown::new(1));
    let service = |s: &Service| Service { shown: shown(), endpoints: endpoints(&s.endpoints), ..s.clone() };
    let peer = |p: &Peer| Peer { shown: shown(), endpoints: endpoints(&p.endpoints), ..p.clone() };
    Settings {
        services: settings.services.iter().map(service).collect(),
        peers: settings.peers.iter().map(peer).collect(),
        access: None,
        ..settings.clone()
    }
}

/// The final answer in what was sent; `None`: only interim ones.
fn answer(sent: &[u8]) -> Option<Went> {
    let text = String::from_utf8_lossy(sent);
    let status = text.get(9..12)?.parse().ok().filter(|s| *s >= 200)?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some(Went::Answered { status, body: body.into() })
}
