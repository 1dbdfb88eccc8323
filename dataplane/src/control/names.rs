//! The addresses of names in endpoints: when each name is asked for next, and what an answer changes. Pure: `dns` asks.
//!
//! | answer | addresses | told |
//! |---|---|---|
//! | others than before | these | once |
//! | the same, in whatever order | as they are | - |
//! | none, or a failure | as they are: what worked may work on | when it begins, and when it ends |
//!
//! Answers come without the time for which they hold (the system's resolver does not tell it), so a name is asked for at an
//! interval; one that has no address yet, each second.

use crate::config::{Dns, Name};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Lookups under way at once: each may keep a thread waiting.
pub const UNDER_WAY_MAX: usize = 32;
/// From a failure to the next question, for a name without an address.
const AGAIN_MS: u64 = 1000;

/// What a lookup gave: addresses, or why there are none.
pub type Answer = Result<Vec<IpAddr>, String>;

/// What is known of a name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Known {
    /// In order, each once.
    pub addresses: Vec<SocketAddr>,
    /// Why the last lookup gave none; `None`: it gave some, or there was none yet.
    pub failing: Option<String>,
    /// Lookups that gave addresses.
    pub good: u64,
    /// Lookups that gave none.
    pub failed: u64,
    /// Of the last answer, so many were left out because they are more than may be.
    pub left_out: usize,
    /// When the addresses last changed, in milliseconds since 1970.
    pub changed_wall_ms: u64,
}

/// What an answer has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// The name has these addresses now, so many more than are taken.
    Changed(Name, Vec<SocketAddr>, usize),
    /// It has none any more; what it had stays in use.
    Failing(Name, String),
    /// It has the same again.
    Back(Name),
}

struct State {
    known: Known,
    due_ms: u64,
    under_way: bool,
}

/// Every name that is asked for.
pub struct Names {
    rules: Dns,
    all: BTreeMap<Name, State>,
    under_way: usize,
    random: u64,
}

impl Names {
    /// None yet. `seed` decides the jitter.
    pub fn new(rules: Dns, seed: u64) -> Names {
        Names { rules, all: BTreeMap::new(), under_way: 0, random: seed | 1 }
    }

    /// These are asked for too, if they are new at once.
    pub fn add(&mut self, names: BTreeSet<Name>, now_ms: u64) {
        for name in names {
            let new = || State { known: Known::default(), due_ms: now_ms, under_way: false };
            self.all.entry(name).or_insert_with(new);
        }
    }

    /// These and no others are asked for from now on, by these rules.
    pub fn renew(&mut self, rules: Dns, names: BTreeSet<Name>, now_ms: u64) {
        self.all.retain(|name, _| names.contains(name));
        if self.rules != rules {
            self.rules = rules;
            self.all.values_mut().for_each(|s| s.due_ms = now_ms);
        }
        self.add(names, now_ms);
    }

    /// What is known of everyone.
    pub fn known(&self) -> impl Iterator<Item = (&Name, &Known)> {
        self.all.iter().map(|(name, s)| (name, &s.known))
    }

    /// The addresses of `name`.
    pub fn addresses(&self, name: &Name) -> &[SocketAddr] {
        self.all.get(name).map_or(&[], |s| s.known.addresses.as_slice())
    }

    /// Those of `names` without an address, with the reason.
    pub fn missing(&self, names: &BTreeSet<Name>) -> Vec<String> {
        let without = |name: &&Name| self.addresses(name).is_empty();
        names.iter().filter(without).map(|name| without_address(name, self.all.get(name).map(|s| &s.known))).collect()
    }

    /// Have all of `names` been answered at least once, for better or worse?
    pub fn all_tried(&self, names: &BTreeSet<Name>) -> bool {
        names.iter().filter_map(|n| self.all.get(n)).all(|s| s.known.good + s.known.failed > 0)
    }

    /// When there is something to ask again; `None`: when a lookup under way has ended, or never.
    pub fn deadline_ms(&self) -> Option<u64> {
        let waiting = || self.all.values().filter(|s| !s.under_way).map(|s| s.due_ms).min();
        if self.under_way < UNDER_WAY_MAX { waiting() } else { None }
    }

    /// A name to be asked for now: of those that are due, the one that has waited longest.
    pub fn next_ask(&mut self, now_ms: u64) -> Option<Name> {
        if self.under_way >= UNDER_WAY_MAX {
            return None;
        }
        let due = self.all.iter_mut().filter(|(_, s)| !s.under_way && s.due_ms <= now_ms);
        let (name, state) = due.min_by_key(|(_, s)| s.due_ms)?;
        state.under_way = true;
        self.under_way += 1;
        Some(name.clone())
    }

    /// A lookup has ended.
    pub fn on_answer(&mut self, name: &Name, answer: Answer, now_ms: u64, wall_ms: u64) -> Option<Told> {
        self.under_way -= 1;
        let (rules, jitter_ms) = (self.rules, self.below(self.rules.every_ms / 5 + 1));
        let every_ms = rules.every_ms - rules.every_ms / 10 + jitter_ms;
        let State { known, due_ms, under_way } = self.all.get_mut(name)?;
        *under_way = false;
        *due_ms = now_ms + every_ms;
        match answer.and_then(|ips| usable(&ips, name.port, &rules)) {
            Ok((addresses, left_out)) => {
                known.good += 1;
                let was_failing = known.failing.take().is_some();
                if addresses == known.addresses {
                    return was_failing.then(|| Told::Back(name.clone()));
                }
                (known.addresses, known.left_out, known.changed_wall_ms) = (addresses, left_out, wall_ms);
                Some(Told::Changed(name.clone(), known.addresses.clone(), left_out))
            }
            Err(why) => {
                known.failed += 1;
                if known.addresses.is_empty() {
                    *due_ms = now_ms + every_ms.min(AGAIN_MS);
                }
                let is_new = known.failing.replace(why.clone()).is_none();
                is_new.then(|| Told::Failing(name.clone(), why))
            }
        }
    }

    /// A number below `end` (xorshift64, Marsaglia 2003).
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end.max(1)
    }
}

/// What is said of a name without an address.
pub fn without_address(name: &Name, known: Option<&Known>) -> String {
    let why = known.and_then(|k| k.failing.as_deref()).unwrap_or("no answer yet");
    format!("{name} has no address: {why}")
}

/// In order, each once, bounded; and how many are beyond the bound. Nobody can be reached at an unspecified address, or is
/// meant by a multicast one: lists of blocked names answer so.
fn usable(ips: &[IpAddr], port: u16, rules: &Dns) -> Result<(Vec<SocketAddr>, usize), String> {
    let meant = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast() && rules.family.takes(*ip);
    let all: BTreeSet<IpAddr> = ips.iter().map(IpAddr::to_canonical).filter(meant).collect();
    if all.is_empty() {
        return Err(match ips.len() {
            0 => "an empty answer".into(),
            n => format!("none of {n} addresses can be used, such as {}", ips[0]),
        });
    }
    let left_out = all.len().saturating_sub(rules.addresses_max);
    Ok((all.into_iter().take(rules.addresses_max).map(|ip| SocketAddr::new(ip, port)).collect(), left_out))
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
