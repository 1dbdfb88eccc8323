//! A zone of the simulation that lends a snapshot of its log, or takes one.

use crate::disk::{Blocks, last_seq};
use crate::world::Fail;
use crate::zone::Node;
use bytes::Bytes;
use replog::apply::Seed;
use replog::seed::{Head, Packer, put_gap};
use replog::store::Store;
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};

impl Node {
    /// Makes a snapshot of what the store has of the own log, at least up to `least`, and keeps what follows it for `peer`; with the log that it
    /// stands for. `None`: it cannot be had now.
    pub fn lend_snapshot(&mut self, peer: usize, least: u64, no_ledger: bool) -> Option<(Vec<Bytes>, Blocks)> {
        let (me, state) = (self.me(), self.disk.store.state().expect("memory"));
        let live = self.live.as_mut()?;
        let mut unsettled = false;
        live.gate.map().each(&mut |_, h| unsettled |= h.view().kind.is_unsettled());
        let (applied, scan) = (state.applied.get(self.id).unwrap_or(0), state.scans.get(&self.id).copied());
        let kept = self.disk.first_kept(me);
        let mut log = self.disk.logs[me].clone();
        log.retain(|b| b.batch.last_seq() <= applied);
        let seq = last_seq(&log);
        if unsettled || seq < least || seq == 0 || scan.is_some_and(|s| s.to >= kept) || kept > seq + 1 {
            return None;
        }
        live.holds.insert(peer, (seq, None));
        let end = &log.last().expect("seq is above 0").batch;
        let (log_uuid, map_epoch) = (u128::from(self.id.0) + 1, live.gate.map().epoch());
        let head = Head { log_uuid, seq, chain: end.chain, term: self.disk.term, map_epoch, unseen: scan };
        let (mut packer, mut parts) = (Packer::new(&head), vec![]);
        let store = &self.disk.store;
        store.rows(&mut |table, key, row| parts.extend(packer.row(table, key, row))).expect("memory");
        store.ledger(&mut |entry| parts.extend(if no_ledger { None } else { packer.entry(entry) })).expect("memory");
        for ((_, shard), fence) in state.fences.iter().filter(|((zone, _), _)| *zone == self.id) {
            parts.extend(packer.fence(*shard, fence));
        }
        parts.extend(packer.finish());
        Some((parts, log))
    }

    /// The snapshot is over: what follows it stays until the peer has caught up, if the peer has it.
    pub fn unhold(&mut self, peer: usize, sent: bool) {
        let target = last_seq(&self.disk.logs[self.me()]);
        let Some(live) = &mut self.live else { return };
        match live.holds.get_mut(&peer) {
            Some(hold) if sent => hold.1 = Some(target),
            Some(_) => drop(live.holds.remove(&peer)),
            None => {}
        }
    }

    /// The last seq of the own log that may go, for peers that are being seeded.
    pub fn held_for_seeds(&self) -> Option<u64> {
        let live = self.live.as_ref()?;
        let holds = live.holds.iter().map(|(peer, hold)| (live.senders[*peer].applied(), hold));
        let stand = holds.filter(|(applied, (_, until))| until.is_none_or(|until| *applied < until));
        stand.map(|(applied, (seq, until))| if until.is_none() { *seq } else { applied.max(*seq) }).min()
    }

    /// Rows and ledger are stored: all that the snapshot stands for counts as applied, and the mirror begins behind it. Did it?
    pub fn take_seed(&mut self, seed: &Seed, log: &Blocks, lacked: u64) -> Result<bool, Fail> {
        let live = self.live.as_mut().expect("up");
        let Ok(changes) = live.applier.seed(seed) else { return Ok(false) };
        self.disk.replace(seed.zone, &changes, log.clone());
        self.disk.unrecorded.push(put_gap(seed.zone, u128::from(seed.zone.0) + 1, lacked, seed.seq));
        Ok(true)
    }

    /// The mirror has its place; `newest` is the latest that the snapshot brought.
    pub fn after_seed(&mut self, from: usize, newest: Hlc, now_ms: u64) {
        self.live.as_mut().expect("up").gate.observe(newest);
        self.judge_anew(from);
        self.after_apply(Zone(from as u8));
        self.record_gaps(now_ms);
    }

    /// Says in the own log which seqs came as snapshots; done twice it says the same twice.
    pub fn record_gaps(&mut self, now_ms: u64) {
        for value in self.disk.unrecorded.clone() {
            let hlc = self.live.as_mut().expect("up").gate.tick(now_ms);
            let (shard, owner_epoch) = (Shard(0), OwnerEpoch(0));
            let (table, key) = (Bytes::new(), Bytes::new());
            self.append(Record { op: Op::Gap, transaction: 0, shard, owner_epoch, hlc, table, key, value });
        }
    }

    /// Lets segments of a log go; how many?
    pub fn let_go(&mut self, of: usize, below: u64, keep: usize) -> u64 {
        let gone = self.disk.let_go(of, below, keep);
        let (mine, first_kept) = (of == self.me(), self.disk.first_kept(of));
        let live = self.live.iter_mut().filter(|_| mine);
        live.flat_map(|l| &mut l.senders).for_each(|s| s.on_kept(first_kept));
        gone
    }
}
