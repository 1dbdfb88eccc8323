//! Which endpoints are healthy, by active checks: when each is checked next, and what a row of good or bad ones means. Pure:
//! `probe` asks, this judges.
//!
//! ```text
//!   new ── good ──▶ healthy ── `fall` bad in a row ──▶ unhealthy
//!    │               ▲                                  │
//!    └──── bad ──────┼──────────────────────────────▶ unhealthy
//!                    └──────── `rise` good in a row ────┘
//! ```
//! A new endpoint is used at once and its first check, which comes at once, decides alone: nothing is held up at a start, and
//! what is down is not used for the time of `fall` checks. New rules for an endpoint keep the verdict and begin a new row.

use crate::config::Probe;
use crate::tls::Outgoing;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Checks under way at once, of all endpoints.
pub const UNDER_WAY_MAX: usize = 256;
/// First checks are spread over so long.
const SOON_MS: u64 = 200;
/// Bytes of what is said of a check.
const WHY_BYTES_MAX: usize = 200;

/// An endpoint: its service, or `zone:` and a zone's name, and its address.
pub type Key = (String, SocketAddr);

/// How one endpoint is to be checked.
#[derive(Clone)]
pub struct Wanted {
    /// By what rules.
    pub probe: Probe,
    /// Where.
    pub to: SocketAddr,
    /// The `host` of a GET.
    pub host: String,
    /// Begins with a PROXY header of nobody in particular.
    pub proxy_protocol: bool,
    /// By TLS.
    pub tls: Option<Outgoing>,
}

impl Wanted {
    fn same_rules(&self, other: &Wanted) -> bool {
        let rules = |w: &Wanted| (w.probe.clone(), w.to, w.host.clone(), w.proxy_protocol, w.tls.is_some());
        rules(self) == rules(other)
    }
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As it should.
    Good,
    /// No connection, or it broke off.
    Connect,
    /// Not in time.
    Late,
    /// No TLS session.
    Tls,
    /// Another status than those that are good.
    Status,
    /// No HTTP.
    Malformed,
}

impl Outcome {
    /// Every outcome, with its name in figures.
    pub const ALL: [(Outcome, &'static str); 6] = [
        (Outcome::Good, "good"),
        (Outcome::Connect, "connect"),
        (Outcome::Late, "late"),
        (Outcome::Tls, "tls"),
        (Outcome::Status, "status"),
        (Outcome::Malformed, "malformed"),
    ];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        Outcome::ALL[self as usize].1
    }
}

/// What a check has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// How it ended.
    pub outcome: Outcome,
    /// What was seen, for a person.
    pub why: String,
}

impl Seen {
    /// Of anything that is said, so much is kept.
    pub fn new(outcome: Outcome, why: impl Into<String>) -> Seen {
        let mut why = why.into();
        why.truncate((0..=WHY_BYTES_MAX.min(why.len())).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0));
        Seen { outcome, why }
    }
}

/// What is known of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The verdict.
    pub healthy: bool,
    /// Checks in a row that ended like the last one, good or bad.
    pub in_a_row: u32,
    /// Checks that ended so, by `Outcome::ALL`.
    pub counts: [u64; 6],
    /// The last check, and when it ended, in milliseconds since 1970.
    pub last: Option<(Seen, u64)>,
    /// When the verdict last changed, in milliseconds since 1970; 0: never.
    pub changed_wall_ms: u64,
}

/// A verdict that has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Whose.
    pub key: Key,
    /// The verdict.
    pub healthy: bool,
    /// For a person.
    pub why: String,
}

/// A check that is to be made now.
pub struct Ask {
    /// Of whom; comes back with what was seen.
    pub key: Key,
    /// By which rules; comes back too.
    pub round: u64,
    /// How.
    pub wanted: Arc<Wanted>,
}

struct State {
    wanted: Arc<Wanted>,
    /// Changes with the rules: what an older check finds says nothing any more.
    round: u64,
    due_ms: u64,
    under_way: bool,
    report: Report,
}

/// Every endpoint that is checked.
pub struct Checks {
    all: BTreeMap<Key, State>,
    under_way: usize,
    rounds: u64,
    random: u64,
}

impl Checks {
    /// None yet. `seed` decides the jitter.
    pub fn new(seed: u64) -> Checks {
        Checks { all: BTreeMap::new(), under_way: 0, rounds: 0, random: seed | 1 }
    }

    /// These and no others are checked from now on; what is known of those that stay stays.
    pub fn renew(&mut self, wanted: Vec<(Key, Wanted)>, now_ms: u64) {
        let mut before = std::mem::take(&mut self.all);
        for (key, wanted) in wanted {
            let soon_ms = now_ms + self.below(SOON_MS.min(wanted.probe.every_ms));
            let wanted = Arc::new(wanted);
            let state = match before.remove(&key) {
                Some(state) if state.wanted.same_rules(&wanted) => State { wanted, ..state },
                Some(state) => {
                    let report = Report { in_a_row: 0, ..state.report };
                    State { wanted, round: self.round(), due_ms: soon_ms, under_way: false, report }
                }
                None => {
                    let report = Report { healthy: true, in_a_row: 0, counts: [0; 6], last: None, changed_wall_ms: 0 };
                    State { wanted, round: self.round(), due_ms: soon_ms, under_way: false, report }
                }
            };
            self.all.insert(key, state);
        }
    }

    fn round(&mut self) -> u64 {
        self.rounds += 1;
        self.rounds
    }

    /// The verdict; whoever is not checked is healthy.
    pub fn is_healthy(&self, key: &Key) -> bool {
        self.all.get(key).is_none_or(|s| s.report.healthy)
    }

    /// What is known of everyone.
    pub fn reports(&self) -> impl Iterator<Item = (&Key, &Report)> {
        self.all.iter().map(|(key, s)| (key, &s.report))
    }

    /// What is known of one.
    pub fn report(&self, key: &Key) -> Option<&Report> {
        self.all.get(key).map(|s| &s.report)
    }

    /// When there is something to ask again; `None`: when a check under way has ended, or never.
    pub fn deadline_ms(&self) -> Option<u64> {
        let waiting = || self.all.values().filter(|s| !s.under_way).map(|s| s.due_ms).min();
        if self.under_way < UNDER_WAY_MAX { waiting() } else { None }
    }

    /// A check that is due: of those, the one that has waited longest.
    pub fn next_ask(&mut self, now_ms: u64) -> Option<Ask> {
        if self.under_way >= UNDER_WAY_MAX {
            return None;
        }
        let due = self.all.iter_mut().filter(|(_, s)| !s.under_way && s.due_ms <= now_ms);
        let (key, wanted, round) = due.min_by_key(|(_, s)| s.due_ms).map(|(key, s)| {
            s.under_way = true;
            (key.clone(), s.wanted.clone(), s.round)
        })?;
        // A tenth earlier or later: checks of many routers that began together part.
        let every_ms = wanted.probe.every_ms;
        let next_ms = now_ms + every_ms - every_ms / 10 + self.below(every_ms / 5 + 1);
        self.all.get_mut(&key).expect("it was just found").due_ms = next_ms;
        self.under_way += 1;
        Some(Ask { key, round, wanted })
    }

    /// A check has ended, whatever it found.
    pub fn on_seen(&mut self, key: &Key, round: u64, seen: Seen, wall_ms: u64) -> Option<Change> {
        self.under_way -= 1;
        let s = self.all.get_mut(key).filter(|s| s.round == round)?;
        s.under_way = false;
        let (good, r) = (seen.outcome == Outcome::Good, &mut s.report);
        let first = r.last.is_none();
        let same = r.in_a_row > 0 && r.last.as_ref().is_some_and(|(l, _)| (l.outcome == Outcome::Good) == good);
        r.in_a_row = if same { r.in_a_row.saturating_add(1) } else { 1 };
        r.counts[seen.outcome as usize] += 1;
        let needed = if good { s.wanted.probe.rise } else { s.wanted.probe.fall };
        let changes = r.healthy != good && (first || r.in_a_row >= needed);
        let why = format!("{} ({}), {} in a row", seen.outcome.name(), seen.why, r.in_a_row);
        r.last = Some((seen, wall_ms));
        if !changes {
            return None;
        }
        (r.healthy, r.changed_wall_ms) = (good, wall_ms);
        Some(Change { key: key.clone(), healthy: good, why })
    }

    /// A number below `end`, 0 if that is 0 (xorshift64, Marsaglia 2003).
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end.max(1)
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
