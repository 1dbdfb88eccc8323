//! What one core shows of the requests that it has answered: by service, by zone, by group of shards; how long they took.
//!
//! Allocated when a service is first named, never for a request. The number of series is bounded: services are those of the
//! configuration and three of our own, zones at most 15, groups of shards 18.

use super::Settings;
use super::histogram::{Histogram, Single, singles};
use super::trace::{Done, Outcome};
use shardmap::{SHARDS, Shard, ZONES, Zone};
use std::sync::Arc;

/// Statuses that are counted each: 100 to 999.
const STATUSES: usize = 900;
/// Status classes: 1xx to 5xx, and beyond.
pub const CLASSES: usize = 6;
/// Shards that are counted together.
pub const GROUP_SHARDS: usize = 64;
/// Groups of local shards, one of all global ones, one of requests without a shard.
pub const GROUPS: usize = SHARDS / GROUP_SHARDS + 2;

/// The place of requests that were answered before a service was found for them.
pub(super) const NO_SERVICE: u16 = 0;
/// Of those that went to the record store.
pub(super) const RECORDS: u16 = 1;
/// Of those that went to another zone's router.
pub(super) const FORWARD: u16 = 2;
/// What the places of our own are called; no service of a configuration may have such a name.
pub const OWN_NAMES: [&str; 3] = ["none", "records", "forward"];

/// Answers by status.
#[derive(Debug)]
pub struct Statuses(Box<[Single]>);

impl Default for Statuses {
    fn default() -> Statuses {
        Statuses(singles(STATUSES))
    }
}

impl Statuses {
    fn add(&self, status: u16) {
        self.0[usize::from(status).saturating_sub(100).min(STATUSES - 1)].add(1);
    }

    /// Each status that was given, and how often.
    pub fn given(&self) -> impl Iterator<Item = (u16, u64)> {
        let all = self.0.iter().enumerate().map(|(i, n)| (i as u16 + 100, n.get()));
        all.filter(|(_, n)| *n > 0)
    }
}

/// What one core shows of one service.
#[derive(Debug)]
pub struct ServiceFigures {
    /// A service's name, or `none`, `records`, `forward`.
    pub name: String,
    /// Answers by status.
    pub statuses: Statuses,
    /// From the first byte in to the last byte out.
    pub request: Histogram,
    /// That, without the waits for an upstream and for a map.
    pub own: Histogram,
    /// From the request on its way to the first byte of the answer; requests that went to an upstream only.
    pub upstream: Histogram,
}

/// What one core shows of all its requests.
#[derive(Debug)]
pub struct CoreFigures {
    /// By the zone that the map named: `zone * CLASSES + class`; the last zone stands for none.
    zones: Box<[Single]>,
    /// By the group of the shard: `group * CLASSES + class`.
    groups: Box<[Single]>,
    /// Answers that this router gave itself because something was wrong.
    pub refused: Statuses,
    /// How long requests that were held have waited.
    pub held: Histogram,
    /// Clients that were gone before their answer was.
    pub client_aborts: Single,
    /// Answers that had begun and could not be ended.
    pub broken_answers: Single,
    /// Bytes of requests that were served: heads, and bodies as decoded.
    pub bytes_in: Single,
    /// Bytes of their answers.
    pub bytes_out: Single,
}

impl Default for CoreFigures {
    fn default() -> CoreFigures {
        CoreFigures {
            zones: singles((ZONES + 1) * CLASSES),
            groups: singles(GROUPS * CLASSES),
            refused: Statuses::default(),
            held: Histogram::default(),
            client_aborts: Single::default(),
            broken_answers: Single::default(),
            bytes_in: Single::default(),
            bytes_out: Single::default(),
        }
    }
}

impl CoreFigures {
    /// Requests by zone (`None`: none was named) and class of status (`1` to `5`, `6` for what is beyond), where there are any.
    pub fn by_zone(&self) -> impl Iterator<Item = (Option<Zone>, usize, u64)> {
        given(&self.zones).map(|(z, class, n)| ((z < ZONES).then_some(Zone(z as u8)), class, n))
    }

    /// Requests by group of shards and class of status, where there are any.
    pub fn by_group(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        given(&self.groups)
    }
}

fn given(table: &[Single]) -> impl Iterator<Item = (usize, usize, u64)> {
    let all = table.iter().enumerate().map(|(i, n)| (i / CLASSES, i % CLASSES + 1, n.get()));
    all.filter(|(_, _, n)| *n > 0)
}

/// What the shards of a group are called: `0-63`, .., `global`, `none`.
pub fn group_name(group: usize) -> String {
    match group.checked_sub(SHARDS / GROUP_SHARDS) {
        None => format!("{}-{}", group * GROUP_SHARDS, (group + 1) * GROUP_SHARDS - 1),
        Some(0) => "global".into(),
        Some(_) => "none".into(),
    }
}

fn group_of(shard: Option<Shard>) -> usize {
    shard.map_or(GROUPS - 1, |s| usize::from(s.0).min(SHARDS) / GROUP_SHARDS)
}

/// All that one core shows.
#[derive(Clone, Default, Debug)]
pub struct Figures {
    /// Of all its requests.
    pub core: Arc<CoreFigures>,
    /// Of each service.
    pub services: Vec<Arc<ServiceFigures>>,
    /// Places whose service the present settings name.
    live: Vec<bool>,
}

impl Figures {
    pub(super) fn new(settings: &Settings) -> Figures {
        let mut figures = Figures::default();
        for name in OWN_NAMES {
            figures.put(name);
        }
        figures.renew(settings);
        figures
    }

    /// Goes by `settings`: a service that stays goes on counting; the place of one that went is used again a reload later, so
    /// that a request under way counts where it began.
    pub(super) fn renew(&mut self, settings: &Settings) {
        let before = std::mem::take(&mut self.live);
        let named = |f: &ServiceFigures| settings.services.iter().any(|s| s.name == f.name);
        self.live = self.services.iter().enumerate().map(|(i, f)| i < OWN_NAMES.len() || named(f)).collect();
        for service in &settings.services {
            if self.place(&service.name) != NO_SERVICE {
                continue;
            }
            match (0..self.live.len()).find(|i| !self.live[*i] && !before[*i]) {
                Some(free) => (self.services[free], self.live[free]) = (new(&service.name), true),
                None => self.put(&service.name),
            }
        }
    }

    /// The place of the service of that name; `NO_SERVICE`: there is none.
    pub(super) fn place(&self, name: &str) -> u16 {
        self.services.iter().position(|f| f.name == name).map_or(NO_SERVICE, |i| i as u16)
    }

    fn put(&mut self, name: &str) {
        self.services.push(new(name));
        self.live.push(true);
    }

    /// A request is over.
    pub(super) fn record(&self, done: &Done, whole_us: u64) {
        let class = (usize::from(done.status) / 100).clamp(1, CLASSES) - 1;
        let core = &self.core;
        core.zones[done.zone.map_or(ZONES, |z| usize::from(z.0).min(ZONES)) * CLASSES + class].add(1);
        core.groups[group_of(done.shard) * CLASSES + class].add(1);
        core.bytes_in.add(done.bytes_in);
        core.bytes_out.add(done.bytes_out);
        if done.reason.is_some() {
            core.refused.add(done.status);
        }
        if done.held_us > 0 {
            core.held.record(done.held_us);
        }
        match done.outcome {
            Outcome::Answered => {}
            Outcome::ClientGone => core.client_aborts.add(1),
            Outcome::Broken => core.broken_answers.add(1),
        }
        let Some(of) = self.services.get(usize::from(done.service)) else { return };
        of.statuses.add(done.status);
        of.request.record(whole_us);
        of.own.record(whole_us.saturating_sub(done.upstream_us.unwrap_or(0) + done.held_us));
        if let Some(us) = done.upstream_us {
            of.upstream.record(us);
        }
    }
}

fn new(name: &str) -> Arc<ServiceFigures> {
    Arc::new(ServiceFigures {
        name: name.into(),
        statuses: Statuses::default(),
        request: Histogram::default(),
        own: Histogram::default(),
        upstream: Histogram::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_fall_into_sixteen_groups_one_of_all_global_ones_and_one_of_none() {
        let name = |shard: Option<u16>| group_name(group_of(shard.map(Shard)));
        assert_eq!((name(Some(0)), name(Some(63)), name(Some(64))), ("0-63".into(), "0-63".into(), "64-127".into()));
        assert_eq!(
            (name(Some(1023)), name(Some(1024)), name(Some(u16::MAX))),
            ("960-1023".into(), "global".into(), "global".into())
        );
        assert_eq!(name(None), "none");
    }

    #[test]
    fn a_status_beyond_all_is_counted_and_never_out_of_bounds() {
        let statuses = Statuses::default();
        [0, 99, 100, 200, 200, 999, u16::MAX].into_iter().for_each(|s| statuses.add(s));
        assert_eq!(statuses.given().collect::<Vec<_>>(), [(100, 3), (200, 2), (999, 2)]);
    }

    #[test]
    fn a_service_keeps_its_figures_over_a_reload_and_a_place_is_used_again_one_reload_after_it_was_left() {
        let settings = |prefixes: &[&str]| Settings {
            services: prefixes.iter().map(|p| super::super::Service::new(p, &[])).collect(),
            ..Settings::default()
        };
        let mut figures = Figures::new(&settings(&["/a", "/b"]));
        let a = figures.services[usize::from(figures.place("/a"))].clone();
        figures.renew(&settings(&["/c", "/a"]));
        assert!(Arc::ptr_eq(&a, &figures.services[usize::from(figures.place("/a"))]));
        assert_eq!((figures.place("/b"), figures.place("/c")), (4, 5), "the place of /b may be in use");
        figures.renew(&settings(&["/c", "/a", "/d"]));
        assert_eq!((figures.place("/d"), figures.place("/b"), figures.services.len()), (4, NO_SERVICE, 6));
    }
}
