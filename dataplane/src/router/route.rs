//! Where a request goes: tag, shard, owner; then own upstream, own record store, the owner's router, or a wait.

use super::conn::{ConnId, Exchange, Stage};
use super::figures::{FORWARD, Figures, NO_SERVICE, RECORDS};
use super::store::Place;
use super::{Core, Found, Settings, Tagged, Target};
use crate::http::Request;
use crate::tls::TlsId;
use shardmap::ownership::Kind;
use shardmap::tag::Tag;
use shardmap::{Shard, ZONES, Zone};
use std::net::SocketAddr;

/// The pools that a core may send to, and who may be reached by them.
#[derive(Default)]
pub(super) struct Destinations {
    /// A pool keeps its place while a connection of it is open; places of settings that went are used again.
    pub pools: Vec<Pool>,
    services: Vec<Route>,
    peers: [Option<usize>; ZONES],
}

/// Connections to one address.
pub(super) struct Pool {
    pub addr: SocketAddr,
    /// Another zone's router.
    pub peer: bool,
    /// How TLS is spoken to it, if it is.
    pub tls: Option<TlsId>,
    /// Newest last: the newest is used, so that the oldest can go.
    pub idle: Vec<ConnId>,
    /// Connections of it in the core's table, idle ones among them.
    pub open: usize,
    /// The present settings name it.
    pub live: bool,
}

impl Pool {
    /// Where a new connection of it goes.
    pub fn target(&self) -> Target {
        match self.tls {
            Some(tls) => Target::Tls(self.addr, tls),
            None => Target::Tcp(self.addr),
        }
    }
}

struct Route {
    name: String,
    prefix: String,
    pools: Vec<usize>,
    next: usize,
    /// Its place in the figures.
    place: u16,
}

impl Destinations {
    /// Goes by `settings` from now on. Pools of addresses that stay keep their connections; the idle ones of the others are
    /// given back, to be closed.
    pub fn renew(&mut self, settings: &Settings) -> Vec<ConnId> {
        self.pools.iter_mut().for_each(|p| p.live = false);
        let mut services: Vec<Route> = Vec::new();
        for s in &settings.services {
            let pools = s.endpoints.iter().map(|e| self.pool(e.addr, false, e.tls)).collect();
            services.push(Route { name: s.name.clone(), prefix: s.prefix.clone(), pools, next: 0, place: NO_SERVICE });
        }
        services.sort_by_key(|s| std::cmp::Reverse(s.prefix.len()));
        self.services = services;
        self.peers = [None; ZONES];
        for peer in &settings.peers {
            let pool = peer.endpoints.first().map(|e| self.pool(e.addr, true, e.tls));
            if let Some(p) = self.peers.get_mut(peer.zone.0 as usize) {
                *p = pool;
            }
        }
        self.pools.iter_mut().filter(|p| !p.live).flat_map(|p| std::mem::take(&mut p.idle)).collect()
    }

    /// Says where each service counts.
    pub fn place(&mut self, figures: &Figures) {
        self.services.iter_mut().for_each(|s| s.place = figures.place(&s.name));
    }

    /// The place of the pool for `addr`, made if there is none.
    fn pool(&mut self, addr: SocketAddr, peer: bool, tls: Option<TlsId>) -> usize {
        let same = |p: &Pool| (p.addr, p.peer, p.tls) == (addr, peer, tls);
        let known = self.pools.iter().position(|p| same(p) && (p.live || p.open > 0));
        let at = known.or_else(|| self.pools.iter().position(|p| !p.live && p.open == 0)).unwrap_or(self.pools.len());
        if known.is_none() {
            let new = Pool { addr, peer, tls, idle: Vec::new(), open: 0, live: true };
            if at == self.pools.len() {
                self.pools.push(new);
            } else {
                self.pools[at] = new;
            }
        }
        self.pools[at].live = true;
        at
    }

    /// The next endpoint of the service with the longest prefix of `path` that is longer than `than`, and where it counts.
    fn service(&mut self, path: &str, than: usize) -> Option<(usize, u16)> {
        let route = self.services.iter_mut().find(|s| path.starts_with(&s.prefix))?;
        if route.prefix.len() <= than || route.pools.is_empty() {
            return None;
        }
        route.next = (route.next + 1) % route.pools.len();
        Some((route.pools[route.next], route.place))
    }
}

impl Core {
    /// Decides by the newest map; every path of it sends the request on, holds it, or answers it.
    pub(super) fn route(&mut self, id: ConnId, r: &Request<'_, '_>) {
        if !self.settings.map_lookup {
            return self.serve(id, r, None, None);
        }
        let place = Place::of(r.path);
        if place.is_some() && r.condition.is_some() {
            let seen = r.condition.unwrap_or("");
            return self.fail(
                id,
                501,
                "a condition that the record store does not know yet",
                seen,
                "a plain read or write",
            );
        }
        let wall_ms = self.now.wall_ms;
        let Some((_, c)) = self.client(id) else { return };
        let trusted = c.trusted;
        let Some(map) = &self.map else { return self.hold(id) };
        let key = place.as_ref().and_then(|p| p.key).map(str::as_bytes);
        let told =
            r.ezone.shard.filter(|_| trusted).map(|s| Found { shard: Shard(s), by: Tagged::Shard, malformed: 0 });
        let epoch = map.epoch();
        let Some(found) = told.or_else(|| map.route(r.tag, key, trusted, wall_ms)) else {
            self.counts.malformed_tag_parts += r.tag.map_or(0, |t| u64::from(Tag::parse(t).skipped));
            let seen = r.tag.map_or("no x-shard".into(), String::from_utf8_lossy);
            let expected = "x-shard: eosid=..;shopid=..;loc=lng,lat with at least one part that the map knows";
            return self.fail(id, 400, "the request does not say where it belongs", &seen, expected);
        };
        let shard = found.shard;
        let Some((entry, kind, owner)) = map.view(shard).map(|e| (e.epoch, e.kind, e.owner)) else {
            return self.fail(id, 400, "unknown shard", &shard.to_string(), "a shard of the map");
        };
        let Some((_, c)) = self.client(id) else { return };
        c.trace.zone = owner;
        let Some(e) = c.exchange.as_mut() else { return };
        (e.shard, e.epoch, e.entry) = (Some(shard), epoch, entry);
        e.hop = trusted && r.ezone.hop;
        let (hop, ready) = (e.hop, epoch >= e.needs && e.not_entry != Some(entry));
        let fresh = !std::mem::replace(&mut e.tagged, true);
        if fresh {
            self.counts.tagged(found.by);
            self.counts.malformed_tag_parts += u64::from(found.malformed);
            self.counts.hopped += u64::from(hop);
        }
        if r.ezone.read_local && place.is_some() {
            return self.serve(id, r, Some(shard), place);
        }
        let settled = matches!(kind, Kind::Own | Kind::Unlock);
        let mine = owner.is_some() && owner == self.settings.zone;
        if hop {
            return if r.ezone.epoch.is_some_and(|named| named > epoch.0) {
                self.hold(id)
            } else if settled && mine {
                self.serve(id, r, Some(shard), place)
            } else {
                self.misdirected(id, epoch.0, owner.filter(|_| settled))
            };
        }
        match owner {
            Some(_) if !settled || !ready => self.hold(id),
            None => self.hold(id),
            Some(_) if mine => self.serve(id, r, Some(shard), place),
            Some(zone) => self.forward(id, r, zone),
        }
    }

    /// 421: nothing was done, and who owns the shard as far as this zone knows.
    pub(super) fn misdirected(&mut self, id: ConnId, epoch: u64, owner: Option<Zone>) {
        if let Some(e) = self.client(id).and_then(|(_, c)| c.exchange.as_mut()) {
            e.epoch = shardmap::MapEpoch(epoch);
        }
        let owner = owner.map_or("none".into(), |z| z.to_string());
        let fields = [("x-ezone-owner", owner.as_str())];
        self.fail_with(
            id,
            421,
            &fields,
            "this zone does not own the shard",
            &format!("map epoch {epoch}"),
            "its owner",
        );
    }

    fn forward(&mut self, id: ConnId, r: &Request<'_, '_>, zone: Zone) {
        let Some(pool) = self.to.peers.get(zone.0 as usize).copied().flatten() else {
            let name = self.settings.name(Some(zone)).to_string();
            return self.fail(id, 502, "no router of the owner zone is known", &name, "an address for it in peers");
        };
        self.counts.forwarded += 1;
        self.counts_at(id, FORWARD);
        self.dispatch(id, r, pool);
    }

    /// By what this zone has.
    fn serve(&mut self, id: ConnId, r: &Request<'_, '_>, shard: Option<Shard>, place: Option<Place<'_>>) {
        let than = if place.is_some() { Place::PREFIX.len() } else { 0 };
        match (self.to.service(r.path, than), place, shard) {
            (Some((pool, figures)), _, _) => {
                self.counts_at(id, figures);
                self.dispatch(id, r, pool);
            }
            (None, Some(place), Some(shard)) => {
                self.counts_at(id, RECORDS);
                self.record(id, r, place, shard);
            }
            (None, _, _) => self.fail(id, 404, "no service for this path", r.path, "a path under a configured prefix"),
        }
    }

    /// The request counts under the service at `place` of the figures.
    fn counts_at(&mut self, id: ConnId, place: u16) {
        if let Some((_, c)) = self.client(id) {
            c.trace.service = place;
        }
    }

    /// The state of the request being served.
    pub(super) fn exchange(&mut self, id: ConnId) -> Option<&mut Exchange> {
        self.client(id).and_then(|(_, c)| c.exchange.as_mut())
    }

    /// Does the request of `id` stand at `stage`?
    pub(super) fn stands_at(&mut self, id: ConnId, stage: Stage) -> bool {
        self.exchange(id).is_some_and(|e| e.stage == stage)
    }
}
