//! The GZS of the simulation and the ways of its maps.
//!
//! A GZS that is killed between two steps is a step not taken yet: what it decides by is its newest map alone, and reports
//! reach it late, or never.

use crate::world::{Broken, Fail, Mail, World};
use crate::zone::SimMap;
use replog::store::Store;
use shardmap::ownership::{Entry, History, Illegal, Kind};
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::sync::Arc;

impl World {
    /// Some map newer than the zone's arrives: by long poll, late, or out of order.
    pub fn give_map(&mut self, z: usize) -> Result<(), Fail> {
        if self.gzs_barred[z] {
            return Ok(());
        }
        let epoch = MapEpoch(self.rng.below(self.newest().epoch.0) + 1);
        let epoch = if self.rng.one_in(2) { epoch } else { self.newest().epoch };
        self.take_map(z, epoch)
    }

    pub fn take_map(&mut self, z: usize, epoch: MapEpoch) -> Result<(), Fail> {
        let (map, now) = (Arc::clone(&self.maps[epoch.0 as usize - 1]), (self.now_ms(z), self.now_us));
        let crash = self.rng.one_in(25) && self.gzs_barred.iter().any(|b| *b);
        if self.nodes[z].on_map(&map, now, crash)? {
            self.crash(z);
        }
        Ok(())
    }

    pub fn leave_read_only(&mut self, z: usize) -> Result<(), Fail> {
        if !self.gzs_barred[z] && self.rng.one_in(2) {
            return self.reach_gzs(z);
        }
        let Some(live) = &mut self.nodes[z].live else { return Ok(()) };
        let links = live.senders.iter().enumerate().filter_map(|(p, s)| Some((Zone(p as u8), s.live()?)));
        let links: Vec<_> = links.collect();
        let waits = live.gate.is_read_only();
        live.gate.on_links(&links);
        let ends = waits && !live.gate.is_read_only();
        if self.losses && self.rng.one_in(20) {
            live.gate.start_alone();
            self.sure[z] = true;
        }
        if ends {
            // Whoever could own something has said something since this start.
            let live = self.nodes[z].live.as_ref().expect("up");
            let mut owners = vec![];
            live.gate.map().each(&mut |_, h| {
                owners.extend(h.entries().iter().flat_map(|e| [e.owner, e.to, e.lost.map(|l| l.0)]).flatten());
            });
            let mut others = owners.into_iter().map(|o| usize::from(o.0)).filter(|o| *o != z);
            self.sure[z] |= others.all(|o| self.heard[z * self.zones + o]);
            self.seen.by_links += 1;
        }
        Ok(())
    }

    pub fn reach_gzs(&mut self, z: usize) -> Result<(), Fail> {
        let epoch = self.newest().epoch;
        self.take_map(z, epoch)?;
        if let Some(live) = &mut self.nodes[z].live {
            live.gate.on_gzs(epoch);
            self.sure[z] |= live.gate.map().epoch() == epoch;
        }
        Ok(())
    }

    pub fn gzs(&mut self, z: usize) -> Result<(), Fail> {
        let (shard, zone) = (Shard(self.rng.below(self.shards.into()) as u16), Zone(z as u8));
        match self.rng.below(30) {
            0..=2 => self.change(|h, e| h.begin_move(zone, e), shard),
            3 => self.change(|h, e| h.abort(e), shard),
            4 if self.losses => self.declare_lost(zone),
            5 if self.losses && self.rng.one_in(3) => self.change(|h, e| h.unlock(e), shard),
            6..=17 => self.progress(shard, z)?,
            18 => self.issue(vec![]),
            19 if !self.mail.is_empty() => {
                let lost = self.rng.below(self.mail.len() as u64) as usize;
                self.mail.swap_remove(lost);
            }
            _ => self.read_mail(),
        }
        Ok(())
    }

    /// A zone reports what the newest entry asks of it.
    pub fn progress(&mut self, shard: Shard, z: usize) -> Result<(), Fail> {
        if self.gzs_barred[z] {
            return Ok(());
        }
        let from = Zone(z as u8);
        if let Some((entry, positions)) = self.nodes[z].report(shard)? {
            self.mail.push(Mail { shard, entry, from, fence_seq: None, positions });
        }
        let Some(live) = &self.nodes[z].live else { return Ok(()) };
        let caught_up = if self.broken == Broken::NoPositionsInFence {
            self.fence_alone(z, shard)
        } else {
            live.applier.caught_up(shard)
        };
        if let Some((fence_seq, positions)) = caught_up {
            let entry = live.gate.map().history(shard).expect("moving").view().epoch;
            self.mail.push(Mail { shard, entry, from, fence_seq: Some(fence_seq), positions });
        }
        Ok(())
    }

    /// What `caught_up` must not be: the FENCE is applied, whatever it carries.
    pub fn fence_alone(&self, z: usize, shard: Shard) -> Option<(u64, Positions)> {
        let live = self.nodes[z].live.as_ref()?;
        let history = live.gate.map().history(shard)?;
        let (from, asked) = (history.view().owner?, history.move_fence()?);
        let state = self.nodes[z].disk.store.state().unwrap();
        let fence = state.fences.get(&(from, shard)).filter(|f| f.epoch >= asked)?;
        (history.view().to == Some(Zone(z as u8))).then(|| (fence.seq, state.applied.clone()))
    }

    pub fn read_mail(&mut self) {
        for mail in std::mem::take(&mut self.mail) {
            let view = self.newest().shards[&mail.shard].view();
            if view.epoch != mail.entry {
                continue; // compare-and-set on the newest entry: it answers one that is past
            }
            match (view.kind, mail.fence_seq) {
                (Kind::Moving, Some(seq)) if view.to == Some(mail.from) => {
                    self.change(|h, e| h.commit_move(seq, &mail.positions, e), mail.shard);
                }
                (Kind::Lost, None) => {
                    self.change(|h, e| h.finish_take_over(mail.from, &mail.positions, e), mail.shard);
                }
                _ => {}
            }
        }
    }

    pub fn declare_lost(&mut self, zone: Zone) {
        let epoch = self.newest().epoch.next();
        let histories = &self.newest().shards;
        let lost = histories.iter().filter_map(|(s, h)| Some((*s, h.declare_lost(zone, epoch).ok()??)));
        let lost: Vec<_> = lost.collect();
        self.truth.losses |= lost.iter().any(|(_, e)| e.kind == Kind::Lost);
        self.issue(lost);
    }

    pub fn change(&mut self, step: impl Fn(&History, MapEpoch) -> Result<Entry, Illegal>, shard: Shard) {
        let newest = self.newest();
        if let Ok(entry) = step(&newest.shards[&shard], newest.epoch.next()) {
            self.issue(vec![(shard, entry)]);
        }
    }

    pub fn issue(&mut self, entries: Vec<(Shard, Entry)>) {
        let mut shards = self.newest().shards.clone();
        for (shard, entry) in entries {
            let next = shards[&shard].with(entry).expect("made by a transition");
            shards[&shard].may_become(&next).expect("legal");
            shards.insert(shard, next);
        }
        self.maps.push(Arc::new(SimMap { epoch: self.newest().epoch.next(), shards }));
    }
}
