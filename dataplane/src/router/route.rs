//! Where a request goes: tag, shard, owner; then own upstream, own record store, the owner's router, or a wait.

use super::conn::{ConnId, Exchange, Stage};
use super::figures::{FORWARD, RECORDS};
use super::store::Place;
use super::{Core, Found, Tagged};
use crate::http::Request;
use shardmap::ownership::Kind;
use shardmap::tag::Tag;
use shardmap::{Shard, Zone};

impl Core {
    /// Decides by the newest map; every path of it sends the request on, holds it, or answers it.
    pub(super) fn route(&mut self, id: ConnId, r: &Request<'_, '_>) {
        if !self.settings.map_lookup {
            return self.serve(id, r, None, None);
        }
        let place = Place::of(r.path);
        if place == Some(Place::Changes) && self.has_changes(r.path) {
            self.counts_at(id, RECORDS);
            return self.changes(id, r);
        }
        if let Some(place @ Place::Ownership { once }) = place
            && self.to.service(r.path, place.prefix_len()).is_none()
        {
            self.counts_at(id, RECORDS);
            return self.ownership(id, r, once);
        }
        let wall_ms = self.now.wall_ms;
        let Some((_, c)) = self.client(id) else { return };
        let trusted = c.trusted;
        let Some(map) = &self.map else { return self.hold(id) };
        let told =
            r.ezone.shard.filter(|_| trusted).map(|s| Found { shard: Shard(s), by: Tagged::Shard, malformed: 0 });
        let epoch = map.epoch();
        let found = match place {
            _ if told.is_some() => told,
            Some(Place::Tx) if r.tag.is_none() => match self.shard_of_keys(id, r, wall_ms) {
                Some(found) => found,
                None => return,
            },
            Some(Place::Row { key, .. }) => map.route(r.tag, key.map(str::as_bytes), trusted, wall_ms),
            Some(Place::Tx | Place::Changes | Place::Ownership { .. }) | None => {
                map.route(r.tag, None, trusted, wall_ms)
            }
        };
        let Some(found) = found else {
            self.counts.malformed_tag_parts += r.tag.map_or(0, |t| u64::from(Tag::parse(t).skipped));
            let seen = r.tag.map_or("no x-shard".into(), String::from_utf8_lossy);
            let expected = "x-shard: eosid=..;shopid=..;loc=lng,lat with at least one part that the map knows";
            return self.fail(id, 400, "the request does not say where it belongs", &seen, expected);
        };
        let shard = found.shard;
        let Some((entry, kind, owner)) =
            self.map.as_ref().and_then(|m| m.view(shard)).map(|e| (e.epoch, e.kind, e.owner))
        else {
            return self.fail(id, 400, "unknown shard", &shard.to_string(), "a shard of the map");
        };
        let Some((_, c)) = self.client(id) else { return };
        c.trace.zone = owner;
        let Some(e) = c.exchange.as_mut() else { return };
        (e.shard, e.epoch, e.entry) = (Some(shard), epoch, entry);
        e.hop = trusted && r.ezone.hop;
        let (hop, ready) = (e.hop, epoch >= e.needs && e.not_entry != Some((shard, entry)));
        let fresh = !std::mem::replace(&mut e.tagged, true);
        if fresh {
            self.counts.tagged(found.by);
            self.counts.malformed_tag_parts += u64::from(found.malformed);
            self.counts.hopped += u64::from(hop);
            if !hop && !self.within_shard_rate(id, shard) {
                return;
            }
        }
        let has_copy = !self.settings.log_ports.is_empty();
        // Of the record store only: a service below its path is served by the owner as any other.
        if let Some(p) = place.filter(|p| r.ezone.read_local || (has_copy && p.reads_copy(r, shard, hop)))
            && self.to.service(r.path, p.prefix_len()).is_none()
        {
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
        let Some(cluster) = self.to.peer(zone.0) else {
            let name = self.settings.name(Some(zone)).to_string();
            let expected = format!("[zones.{name}] router = \"..\" in this router's configuration");
            return self.fail(id, 502, "no router of the owner zone is known", &name, &expected);
        };
        self.counts.forwarded += 1;
        self.counts_at(id, FORWARD);
        self.dispatch(id, r, cluster);
    }

    /// By what this zone has.
    fn serve(&mut self, id: ConnId, r: &Request<'_, '_>, shard: Option<Shard>, place: Option<Place<'_>>) {
        let than = place.map_or(0, |p| p.prefix_len());
        match (self.to.service(r.path, than), place, shard) {
            (Some((cluster, figures)), _, _) => {
                self.counts_at(id, figures);
                self.dispatch(id, r, cluster);
            }
            (None, Some(place), Some(shard)) => {
                self.counts_at(id, RECORDS);
                self.record(id, r, place, shard);
            }
            (None, _, _) => self.fail(id, 404, "no service for this path", r.path, "a path under a configured prefix"),
        }
    }

    /// Is `/changes` this zone's own, and not a service's?
    fn has_changes(&self, path: &str) -> bool {
        !self.settings.log_ports.is_empty() && self.to.service(path, Place::Changes.prefix_len()).is_none()
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
