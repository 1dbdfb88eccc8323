//! What requests are sent to, as a router core takes it: services of this zone, routers of others, and their endpoints.
//! Plain values, already checked by whoever read the configuration; made with `new`, so that more may be said of each later.

use super::policy::Policy;
use super::shown::{EndpointShown, ServiceShown};
use crate::tls::TlsId;
use shardmap::Zone;
use std::net::SocketAddr;
use std::sync::Arc;

/// An upstream of this zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// What it is called in figures and answers of the admin API.
    pub name: String,
    /// What the path starts with; the longest wins.
    pub prefix: String,
    /// Where it runs.
    pub endpoints: Vec<Endpoint>,
    /// How they are treated.
    pub policy: Policy,
    /// What the cores show about it.
    pub shown: Arc<ServiceShown>,
}

impl Service {
    /// Named after its prefix, with defaults for all else; for one core.
    pub fn new(prefix: &str, endpoints: &[SocketAddr]) -> Service {
        Service {
            name: prefix.into(),
            prefix: prefix.into(),
            endpoints: endpoints.iter().map(|at| Endpoint::new(*at)).collect(),
            policy: Policy::default(),
            shown: Arc::new(ServiceShown::new(1)),
        }
    }
}

/// The routers of another zone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The zone.
    pub zone: Zone,
    /// What they are called in figures: `zone:` and the zone's name.
    pub name: String,
    /// Their `peer_listen`.
    pub endpoints: Vec<Endpoint>,
    /// How they are treated.
    pub policy: Policy,
    /// What the cores show about them.
    pub shown: Arc<ServiceShown>,
}

impl Peer {
    /// With defaults; for one core.
    pub fn new(zone: Zone, endpoints: &[SocketAddr]) -> Peer {
        Peer {
            zone,
            name: format!("zone:{zone}"),
            endpoints: endpoints.iter().map(|at| Endpoint::new(*at)).collect(),
            policy: Policy::default(),
            shown: Arc::new(ServiceShown::new(1)),
        }
    }
}

/// One place where a service runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// How TLS is spoken to it; `None`: it is not.
    pub tls: Option<TlsId>,
    /// Its share, against the weights of the others; at least 1.
    pub weight: u32,
    /// What the active checks say; true without any.
    pub healthy: bool,
    /// Nothing new goes to it: an operator's word.
    pub draining: bool,
    /// A connection begins with a PROXY header, version 2, of the client whose request it carries: one request only.
    pub proxy_protocol: bool,
    /// The name that has its address, for those who look.
    pub name: Option<Arc<str>>,
    /// What the cores show about it.
    pub shown: Arc<EndpointShown>,
}

impl Endpoint {
    /// Healthy, of weight 1; for one core.
    pub fn new(addr: SocketAddr) -> Endpoint {
        Endpoint {
            addr,
            tls: None,
            weight: 1,
            healthy: true,
            draining: false,
            proxy_protocol: false,
            name: None,
            shown: Arc::new(EndpointShown::new(1)),
        }
    }
}
