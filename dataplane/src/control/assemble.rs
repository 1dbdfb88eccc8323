//! Settings out of all that decides them: the configuration, the map, and what is shown. The one place where they are made,
//! at the start and at every change.

use super::dns::{self, Resolver};
use super::probe::Prober;
use super::secrets::Secrets;
use super::upstreams::Drain;
use crate::config::{self, Config, ENDPOINTS_MAX, Place};
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
    /// Where names are.
    pub resolver: Resolver,
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
            resolver: Resolver::new(dns::system()),
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

    /// Endpoints as the cores take them: of a name each address that it has; none twice; bounded.
    fn endpoints(
        &mut self,
        service: &str,
        all: Vec<(&config::Endpoint, Option<TlsId>)>,
        checked: bool,
    ) -> Vec<Endpoint> {
        let mut found: Vec<Endpoint> = vec![];
        let mut left_out = 0;
        for (e, tls) in all {
            let (name, addresses): (Option<Arc<str>>, _) = match &e.at {
                Place::Addr(at) => (None, vec![*at]),
                Place::Name(name) => (Some(name.to_string().into()), self.resolver.addresses(name).to_vec()),
            };
            for at in addresses {
                match found.iter().any(|other| other.addr == at) {
                    true => {}
                    false if found.len() >= ENDPOINTS_MAX => left_out += 1,
                    false => {
                        let one = self.endpoint(service, at, checked);
                        found.push(Endpoint { tls, weight: e.weight, name: name.clone(), ..one });
                    }
                }
            }
        }
        if left_out > 0 {
            tracing::warn!(
                "{service}: its names have {left_out} addresses more than the {ENDPOINTS_MAX} that are used"
            );
        }
        found
    }

    fn endpoint(&mut self, service: &str, at: SocketAddr, checked: bool) -> Endpoint {
        let (cores, key) = (self.cores, (service.to_owned(), at));
        let draining = self.drained.contains(&key);
        let healthy = !checked || self.prober.is_healthy(&key);
        let shown = self.endpoints.entry(key).or_insert_with(|| Arc::new(EndpointShown::new(cores)));
        Endpoint { healthy, draining, shown: shown.clone(), ..Endpoint::new(at) }
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
        let Some(zone) = Config::other_in(map, &peer.name)? else { continue };
        let name = format!("zone:{}", peer.name);
        let to = live.secrets.to_zone(config, &peer.name);
        let all = peer.routers.iter().map(|e| (e, to)).collect();
        let endpoints = live.endpoints(&name, all, peer.probe.is_some());
        peers.push(Peer { shown: live.service(&name), name, endpoints, ..Peer::new(zone, &[]) });
    }
    let of_zone = |s: &config::Service| {
        let all = s.endpoints.iter().map(|e| (e, live.secrets.to_upstream(s.tls_of(e).as_ref()))).collect();
        let begins = |e| Endpoint { proxy_protocol: s.proxy_protocol, ..e };
        let endpoints = live.endpoints(&s.name, all, s.probe.is_some()).into_iter().map(begins).collect();
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
