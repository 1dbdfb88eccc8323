//! What can happen next in a `World`.

use super::{Act, World, zone};
use shardmap::MapEpoch;
use shardmap::ownership::{Entry, History, Kind};

impl World {
    /// All that can happen now; the flag marks what a healed system does by itself.
    pub fn acts(&self) -> Vec<(Act, bool)> {
        let mut out = Vec::new();
        for z in 0..self.zones {
            self.zone_acts(z, &mut out);
            self.map_acts(z, &mut out);
        }
        for shard in 0..self.shards() {
            self.shard_acts(shard, &mut out);
        }
        if self.left.bumps > 0 {
            out.push((Act::Bump, false));
        }
        out
    }

    fn zone_acts(&self, z: usize, out: &mut Vec<(Act, bool)>) {
        for key in 0..self.keys {
            let open = self.writes_at(z, key % self.shards()).is_some();
            if self.left.writes > 0 && open && !(self.rules.obey_locks && self.locked(z, key)) {
                out.push((Act::Write { zone: z, key }, false));
            }
        }
        for shard in 0..self.shards() {
            if self.view(z, shard).fence_due(zone(z), self.own_fence(z, shard)).is_some() {
                out.push((Act::Fence { zone: z, shard }, true));
            }
        }
        for from in (0..self.zones).filter(|&o| self.may_apply(z, o)) {
            let r = self.rec(from, self.nodes[z].applied[from] + 1);
            let queue = !r.fence && self.nodes[z].parked.iter().any(|&(o, seq)| self.rec(o, seq).key == r.key);
            if !queue {
                out.push((Act::Apply { zone: z, from }, true));
            }
            if queue || (!r.fence && self.left.parks > 0) {
                out.push((Act::Park { zone: z, from, queue }, queue));
            }
        }
        let parked = &self.nodes[z].parked;
        for at in 0..parked.len() {
            let key = |p: &(usize, u64)| self.rec(p.0, p.1).key;
            if parked[..at].iter().all(|p| key(p) != key(&parked[at])) {
                out.push((Act::Settle { zone: z, at }, true));
            }
        }
    }

    fn map_acts(&self, z: usize, out: &mut Vec<(Act, bool)>) {
        out.extend((self.nodes[z].map + 1..self.maps.len()).map(|map| (Act::Learn { zone: z, map }, true)));
        if self.nodes[z].read_only {
            out.push((Act::AskWriter { zone: z }, true));
            out.push((Act::AskPeers { zone: z }, false));
            if self.left.alone > 0 {
                out.push((Act::Alone { zone: z }, false));
            }
        } else if self.left.crashes > 0 {
            out.push((Act::Crash { zone: z }, false));
        }
        if self.left.losses > 0 && self.newest().shards.iter().any(|h| h.view().owner == Some(zone(z))) {
            out.push((Act::Lose { zone: z }, false));
        }
    }

    fn shard_acts(&self, shard: usize, out: &mut Vec<(Act, bool)>) {
        let (history, left) = (&self.newest().shards[shard], &self.left);
        let v = history.view();
        match v.kind {
            Kind::Own | Kind::Unlock => {
                let others = (0..self.zones).filter(|&to| left.moves > 0 && v.owner != Some(zone(to)));
                out.extend(others.map(|to| (Act::Move { shard, to }, false)));
                if left.unlocks > 0 && v.lost.is_some() {
                    out.push((Act::Unlock { shard }, false));
                }
                if left.aborts > 0 && self.late_abort(history).is_some() {
                    out.push((Act::LateAbort { shard }, false));
                }
            }
            Kind::Moving if self.caught_up(shard).is_some() => out.push((Act::Commit { shard }, true)),
            Kind::Lost if self.reports[shard].is_some() => out.push((Act::Finish { shard }, true)),
            Kind::Lost => {
                let stored = |z: usize| !self.rules.report_after_map || self.nodes[z].map as u64 >= v.epoch.0;
                let able = |&z: &usize| Some(zone(z)) != v.lost.map(|l| l.0) && !self.nodes[z].read_only && stored(z);
                out.extend((0..self.zones).filter(able).map(|zone| (Act::Report { shard, zone }, true)));
            }
            Kind::Moving => {}
        }
        if left.aborts > 0 && matches!(v.kind, Kind::Moving | Kind::Lost) {
            out.push((Act::Abort { shard }, false));
        }
    }

    /// The seq of the source's FENCE, once the target of the move has caught up.
    pub(super) fn caught_up(&self, shard: usize) -> Option<u64> {
        let history = &self.newest().shards[shard];
        let (v, from_epoch) = (history.view(), history.move_fence()?);
        let (from, to) = (v.owner?.0 as usize, v.to?.0 as usize);
        let (seq, _) = self.fences(to, from, shard).find(|f| f.1 >= from_epoch)?;
        let (has, wants) = (&self.nodes[to].applied, &self.rec(from, seq).carries);
        let behind = (0..self.zones).any(|o| o != to && o != from && has[o] < wants[o]);
        (!behind || !self.rules.fence_positions).then_some(seq)
    }

    /// An abort by someone who has not seen that the move was committed.
    pub(super) fn late_abort(&self, history: &History) -> Option<Entry> {
        let [.., before, last] = history.entries() else { return None };
        if before.kind != Kind::Moving || last.kind != Kind::Own || last.owner == before.owner {
            return None;
        }
        let stale = History::from_entries(history.entries()[..history.entries().len() - 1].to_vec()).unwrap();
        let entry = stale.abort(MapEpoch(self.maps.len() as u64)).unwrap();
        let taken = history.with(entry.clone()).is_ok_and(|next| history.may_become(&next).is_ok());
        (taken || !self.rules.compare_and_set).then_some(entry)
    }
}
