//! Logs that let go of what nobody needs, or of more on a volume that fills up, and the seeding of a zone that fell into a gap by that.

use crate::disk::{Blocks, last_seq};
use crate::world::{Broken, Fail, World};
use bytes::Bytes;
use replog::apply::Seed;
use replog::link::Why;
use replog::retain::{Known, Policy, Volume, WORTH, release};
use replog::seed::{Head, Taken, Taker, Taking, Whole};
use replog::store::{Change, Changes, Scan, Store};
use shardmap::Zone;

/// A snapshot that has come whole and is not stored yet.
pub struct Spool {
    pub from: usize,
    pub to: usize,
    parts: Vec<Bytes>,
    /// The log that it stands for, as the observer knows it.
    stands_for: Blocks,
    /// The first seq that the mirror lacked.
    lacked: u64,
}

impl World {
    /// A zone lets go what it may of a log, its own or a mirror.
    pub fn purge(&mut self, z: usize, of: usize) {
        let tight = self.fills_up && !self.destroyed.contains(&true) && self.rng.one_in(2);
        let keep_bytes = 4 * self.rng.below(2);
        let node = &self.nodes[z];
        let (Some(live), Some(oldest)) = (&node.live, node.disk.oldest_sealed(of)) else { return };
        let mut settled = live.senders.iter().filter_map(|s| s.live()).all(|epoch| epoch <= live.gate.map().epoch());
        live.gate.map().each(&mut |_, h| settled &= !h.view().kind.is_unsettled());
        if !settled {
            return;
        }
        let first_kept = node.disk.first_kept(of);
        let scan = live.applier.scans().find(|(zone, s)| usize::from(zone.0) == of && s.to >= first_kept);
        let blind = self.broken == Broken::PurgeUndurable;
        let zone = Zone(of as u8);
        let applied = if blind { live.applier.settled(zone) } else { node.disk.durably_settled(zone) };
        let known = Known {
            applied,
            scan: scan.map(|(_, s)| s.from.max(first_kept)),
            seeded: (z == of).then(|| node.held_for_seeds()).flatten(),
            peers: if z == of {
                Some(node.everywhere())
            } else {
                (self.zones > 2).then(|| live.receivers[of].everywhere())
            },
            oldest,
            volume: Volume { used: if tight { 0.9 } else { 0.5 }, free_bytes: 1, log_bytes: 1 },
        };
        let release = release(Policy { keep_bytes, peers_until: 0.7, worth: WORTH }, known);
        self.left_behind |= release.leaves_behind;
        self.seen.purged += self.nodes[z].let_go(of, release.below, release.keep_bytes as usize);
    }

    /// Does `to` lack something of `from`'s log that `from` does not keep, or that `to` cannot look through any more?
    fn needs_seed(&self, to: usize, from: usize) -> bool {
        let is_of = |zone: Zone| usize::from(zone.0) == from;
        self.is_in_gap(to, from) || self.unseen_at(to).any(|(zone, _)| is_of(zone))
    }

    fn is_in_gap(&self, to: usize, from: usize) -> bool {
        last_seq(&self.nodes[to].disk.logs[from]) + 1 < self.nodes[from].disk.first_kept(from)
    }

    /// What a zone has to look through and does not keep.
    fn unseen_at(&self, z: usize) -> impl Iterator<Item = (Zone, Scan)> {
        let disk = &self.nodes[z].disk;
        let scans = disk.store.state().expect("memory").scans.into_iter();
        scans.filter(|(zone, s)| s.from < disk.first_kept(usize::from(zone.0)))
    }

    /// An operator has `to` ask for a snapshot of `from`'s log; it comes whole, or not at all.
    pub fn ask_snapshot(&mut self, to: usize, from: usize) {
        let both = self.nodes[to].live.is_some() && self.nodes[from].live.is_some();
        let barred =
            self.conns[from * self.zones + to].barred || self.spools.iter().any(|s| (s.from, s.to) == (from, to));
        if to == from || !both || barred || !self.needs_seed(to, from) {
            return;
        }
        self.nodes[to].flush(from);
        let taker = &self.nodes[to];
        let live = taker.live.as_ref().expect("up");
        let (mine, zone) = (last_seq(&taker.disk.logs[from]), Zone(from as u8));
        let least = mine.max(live.applier.applied(zone));
        if live.applier.may_seed(zone).is_err() || mine > last_seq(&self.nodes[from].disk.logs[from]) {
            return;
        }
        let no_ledger = self.broken == Broken::SeedWithoutLedger;
        if let Some((parts, stands_for)) = self.nodes[from].lend_snapshot(to, least, no_ledger) {
            self.spools.push(Spool { from, to, parts, stands_for, lacked: mine + 1 });
        }
    }

    /// A snapshot that has come is stored, part by part, and takes the mirror's place; a crash may come between any two steps.
    pub fn store_snapshot(&mut self) -> Result<(), Fail> {
        let at = self.rng.below(self.spools.len() as u64) as usize;
        let spool = self.spools.swap_remove(at);
        let (from, to) = (spool.from, spool.to);
        let taken = match self.judge(&spool) {
            Some((lists, whole)) => self.take_snapshot(spool, lists, whole)?,
            None => false, // a clock, or a map that is not here yet: it is asked for again
        };
        self.nodes[from].unhold(to, taken);
        self.seen.seeded += u64::from(taken);
        Ok(())
    }

    /// What is to be stored of a snapshot, if it may be.
    fn judge(&self, spool: &Spool) -> Option<(Vec<Vec<Change>>, Whole)> {
        let (node, now_ms) = (&self.nodes[spool.to], self.now_ms(spool.to));
        let live = node.live.as_ref()?;
        let least = last_seq(&node.disk.logs[spool.from]).max(live.applier.applied(Zone(spool.from as u8)));
        let mut taker = Taker::new(Taking { own: node.id, stream: 0, streams: 1 });
        let mut lists = vec![];
        for part in &spool.parts {
            match taker.on_part(part.clone(), now_ms).ok()? {
                Taken::Head(h) if h.map_epoch > live.gate.map().epoch() || h.seq < least => return None,
                Taken::Head(_) | Taken::Kept => {}
                Taken::Store(list) => lists.push(list),
                Taken::Whole(whole) => return Some((lists, whole)),
            }
        }
        None
    }

    /// Stores it, and has it take the mirror's place; did it?
    fn take_snapshot(&mut self, spool: Spool, lists: Vec<Vec<Change>>, whole: Whole) -> Result<bool, Fail> {
        let Spool { from, to, stands_for, lacked, .. } = spool;
        let (now_ms, first) = (self.now_ms(to), self.broken == Broken::SeedPositionFirst);
        let node = &mut self.nodes[to];
        let Head { seq, map_epoch, unseen, .. } = whole.head;
        let seed = Seed { zone: Zone(from as u8), seq, map_epoch, fences: whole.fences, unseen };
        let crash = (!self.healing && self.rng.one_in(6)).then(|| self.rng.below(lists.len() as u64 + 1) as usize);
        if first && !node.take_seed(&seed, &stands_for, lacked)? {
            return Ok(false);
        }
        for (at, list) in lists.into_iter().enumerate() {
            if crash == Some(at) {
                self.crash(to);
                return Ok(false);
            }
            node.disk.merge(&Changes { list, durable: false });
        }
        if !first && !node.take_seed(&seed, &stands_for, lacked)? {
            return Ok(false);
        }
        self.cut(from, to);
        if crash.is_some() {
            self.crash(to);
        } else {
            self.nodes[to].after_seed(from, whole.newest, now_ms);
        }
        Ok(true)
    }

    /// A link that stopped for a gap is tried again and again; for anything else it is an error here.
    pub fn on_stop(&mut self, o: usize, p: usize, stop: replog::link::Stop) -> Result<(), Fail> {
        if stop.why != Why::Gap {
            return Err(Fail(format!("link {o} to {p}: {stop}")));
        }
        self.seen.gaps += 1;
        self.cut(o, p);
        self.nodes[o].live.as_mut().expect("up").senders[p].try_again();
        self.nodes[p].judge_anew(o);
        Ok(())
    }

    /// What is left of gaps once all is well: an operator aborts the moves that wait for a seeding, and has everyone seeded.
    pub fn heal_gaps(&mut self, round: usize) -> Result<(), Fail> {
        let pairs = (0..self.zones).flat_map(|to| (0..self.zones).map(move |from| (to, from)));
        let pairs: Vec<_> =
            pairs.filter(|(to, from)| to != from && !self.destroyed[*to] && !self.destroyed[*from]).collect();
        let unseen = |from: usize| self.unseen_at(from).any(|(zone, _)| usize::from(zone.0) == from);
        // An origin that could not look through its own log can tell nobody what is in it.
        let helps =
            |(to, from): &(usize, usize)| self.is_in_gap(*to, *from) || self.needs_seed(*to, *from) && !unseen(*from);
        let needed: Vec<_> = pairs.into_iter().filter(helps).collect();
        if !needed.is_empty() && round % 10 == 9 {
            (0..self.shards).for_each(|s| self.change(|h, e| h.abort(e), shardmap::Shard(s)));
        }
        for (to, from) in needed {
            self.ask_snapshot(to, from);
        }
        while !self.spools.is_empty() {
            self.store_snapshot()?;
        }
        Ok(())
    }

    /// Would the log of a zone whose disk goes now be whole at every survivor in the end?
    pub fn is_whole_without(&self, z: usize) -> bool {
        let others = || self.alive().filter(|(o, _)| *o != z).map(|(_, n)| &n.disk);
        let longest = others().map(|d| last_seq(&d.logs[z])).max().unwrap_or(0);
        others().map(|d| last_seq(&d.logs[z])).filter(|end| *end < longest).all(|end| {
            let mut goes_on = others().filter(|d| d.first_kept(z) <= end + 1 && last_seq(&d.logs[z]) > end);
            goes_on.next().is_some()
        })
    }

    /// What zones could not look through for a cut any more.
    pub fn unseen(&self) -> Vec<(Zone, Scan)> {
        self.alive().flat_map(|(_, n)| n.disk.store.state().expect("memory").scans).collect()
    }
}
