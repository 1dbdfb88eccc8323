//! What is left to look through of each zone's log for a new cut, as the keeper said last.
//!
//! Its answers may be heard in another order than it gave them: each has a number. An answer of before a map, heard after that map's, would
//! else take the new scan away: nothing would be looked through until the next batch of that log, and retention could let it go meanwhile.

use crate::store::Scan;
use shardmap::Zone;
use std::collections::BTreeMap;

/// One stream's.
pub(super) struct Scans {
    /// With the number of the answer that said so.
    heard: BTreeMap<Zone, (u64, Option<Scan>)>,
}

impl Scans {
    /// As the store has them.
    pub fn new(stored: BTreeMap<Zone, Scan>) -> Scans {
        Scans { heard: stored.into_iter().map(|(zone, scan)| (zone, (0, Some(scan)))).collect() }
    }

    /// The keeper's answer `number` speaks of `zone`'s log alone.
    pub fn on_one(&mut self, number: u64, zone: Zone, scan: Option<Scan>) {
        let known = self.heard.entry(zone).or_default();
        if number >= known.0 {
            *known = (number, scan);
        }
    }

    /// The keeper's answer `number` speaks of all logs: of those that are not in `all` there is nothing to look through.
    pub fn on_all(&mut self, number: u64, all: &BTreeMap<Zone, Scan>) {
        let zones: Vec<Zone> = self.heard.keys().chain(all.keys()).copied().collect();
        for zone in zones {
            self.on_one(number, zone, all.get(&zone).copied());
        }
    }

    /// What is left of `zone`'s log.
    pub fn get(&self, zone: Zone) -> Option<Scan> {
        self.heard.get(&zone).and_then(|(_, scan)| *scan)
    }

    /// All that is left.
    pub fn iter(&self) -> impl Iterator<Item = (Zone, Scan)> {
        self.heard.iter().filter_map(|(zone, (_, scan))| Some((*zone, (*scan)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_heard_late_takes_nothing_away_and_brings_nothing_back() {
        let (a, b, scan) = (Zone(0), Zone(1), |from| Scan { from, to: 9 });
        let mut scans = Scans::new([(a, scan(1))].into());
        // 1: the applier looked, 2: a map gave another scan; heard the other way round.
        scans.on_all(2, &[(a, scan(3)), (b, scan(4))].into());
        scans.on_one(1, a, None);
        assert_eq!(scans.iter().collect::<Vec<_>>(), [(a, scan(3)), (b, scan(4))]);
        // 3: a map, 4: b is done; heard the other way round.
        scans.on_one(4, b, None);
        scans.on_all(3, &[(b, scan(4))].into());
        assert_eq!((scans.get(a), scans.get(b)), (None, None));
    }
}
