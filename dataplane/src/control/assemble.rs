//! Settings out of all that decides them: the configuration, the map, and what is shown. The one place where they are made,
//! at the start and at every change.

use super::probe::Prober;
use super::secrets::Secrets;
use super::upstreams::Drain;
use crate::config::{self, Config};
use crate::router::shown::{EndpointShown, ServiceShown};
use crate::router::{Endpoint, Peer, Service, Settings};
use crate::tls::TlsId;
use shardmap::map::Map;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// What is known beside the configuration and the map, and outlives both.
pub struct Live {
    /// The number of router cores.
    cores: usize,
    /// Certificates and keys.
    pub secrets: Secrets,
    /// Who is healthy, by active checks.
    pub prober: Prober,
    services: HashMap<String, Arc<ServiceShown>>,
    endpoints: HashMap<(String, SocketAddr), Arc<EndpointShown>>,
    /// Endpoints to which an operator lets nothing new go, by service.
    drained: HashSet<(String, SocketAddr)>,
}

impl Live {
    /// Nothing is known yet.
    pub fn new(cores: usize) -> Live {
        Live {
            cores,
            secrets: Secrets::default(),
            prober: Prober::new(),
            services: HashMap::new(),
            endpoints: HashMap::new(),
            drained: HashSet::new(),
        }
    }

    /// An operator's word. `true`: it changes the settings.
    pub fn drain(&mut self, word: Drain) -> bool {
        let key = (word.service, word.at);
        if word.on { self.drained.insert(key) } else { self.drained.remove(&key) }
    }

    fn service(&mut self, name: &str) -> Arc<ServiceShown> {
        let cores = self.cores;
        self.services.entry(name.into()).or_insert_with(|| Arc::new(ServiceShown::new(cores))).clone()
    }

    fn endpoint(&mut self, service: &str, e: &config::Endpoint, tls: Option<TlsId>, checked: bool) -> Endpoint {
        let (cores, key) = (self.cores, (service.to_owned(), e.at));
        let draining = self.drained.contains(&key);
        let healthy = !checked || self.prober.is_healthy(&key);
        let shown = self.endpoints.entry(key).or_insert_with(|| Arc::new(EndpointShown::new(cores)));
        Endpoint { tls, weight: e.weight, healthy, draining, shown: shown.clone(), ..Endpoint::new(e.at) }
    }

    /// Forgets what nobody shows any more.
    fn prune(&mut self) {
        self.services.retain(|_, shown| Arc::strong_count(shown) > 1);
        self.endpoints.retain(|_, shown| Arc::strong_count(shown) > 1);
    }
}

/// The settings of a router, or why the configuration does not fit the map.
pub fn settings(config: &Config, router: &config::Router, map: &Map, live: &mut Live) -> Result<Settings, String> {
    // First: all that can be wrong with files is told before anything is made of the rest.
    let tls = live.secrets.contexts(config)?;
    let mut peers = vec![];
    for peer in config.zones.iter().filter(|p| !p.routers.is_empty()) {
        let zone = map.zone_named(&peer.name).ok_or_else(|| format!("[zones.{}] is not in the map", peer.name))?;
        let name = format!("zone:{}", peer.name);
        let to = live.secrets.to_zone(config, &peer.name);
        let endpoints = peer.routers.iter().map(|e| live.endpoint(&name, e, to, peer.probe.is_some())).collect();
        peers.push(Peer { shown: live.service(&name), name, endpoints, ..Peer::new(zone, &[]) });
    }
    let of_zone = |s: &config::Service| {
        let to = live.secrets.to_upstream(s.tls.as_ref());
        let begins = |e| Endpoint { proxy_protocol: s.proxy_protocol, ..e };
        let endpoints = s.endpoints.iter().map(|e| begins(live.endpoint(&s.name, e, to, s.probe.is_some()))).collect();
        let (name, policy, shown) = (s.name.clone(), s.policy, live.service(&s.name));
        Service { name, endpoints, policy, shown, ..Service::new(&s.prefix, &[]) }
    };
    let services = config.services.iter().map(of_zone).collect();
    let settings = Settings {
        zone: config.zone_in(map)?,
        zone_names: map.zones().iter().map(|z| (z.id, z.name.clone())).collect(),
        listen: router.listen.clone(),
        proxy_protocol: router.proxy_protocol,
        peer_listen: router.peer_listen.clone(),
        peers,
        log_ports: config.log.iter().flat_map(|l| 0..l.cores.len()).map(|i| config.port_path(i)).collect(),
        streams: config.log.as_ref().map_or(1, |l| l.streams),
        services,
        tls,
        access: config.access_log.as_ref().map(|l| l.which),
        shard_rates: config.shard_rates.clone(),
        cores: u32::try_from(live.cores).unwrap_or(u32::MAX),
        limits: config.limits.of_core(),
        forwarding: config.forwarding,
        map_lookup: true,
    };
    live.prune();
    Ok(settings)
}
