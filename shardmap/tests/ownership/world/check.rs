//! What must hold in a `World`, in the words and with the numbers of the contract.

use super::{Rec, World, zone};
use shardmap::ownership::Kind;

impl World {
    /// Tokens of a key that `z` has applied.
    pub(super) fn known(&self, z: usize, key: usize) -> u32 {
        let seen = |o: usize| (1..=self.nodes[z].applied[o]).map(move |seq| (o, seq));
        let all = (0..self.zones).flat_map(seen).filter(|p| !self.nodes[z].parked.contains(p));
        all.map(|p| self.rec(p.0, p.1)).filter(|r| !r.fence && r.key == key).fold(0, |set, r| set | 1 << r.token)
    }

    /// Tokens of every tail record that `z` has applied.
    fn ledger(&self, z: usize) -> u32 {
        let seen = |o: usize| (1..=self.nodes[z].applied[o]).map(move |seq| (o, seq, self.rec(o, seq)));
        let tail =
            |&(o, seq, r): &(usize, u64, &Rec)| !r.fence && self.view(z, r.shard).is_tail(r.owner_epoch, zone(o), seq);
        (0..self.zones).flat_map(seen).filter(tail).fold(0, |set, (.., r)| set | 1 << r.token)
    }

    /// What must hold at each step and, `quiet`, when nothing is left to happen by itself. Numbers as in the contract.
    pub fn check(&self, quiet: bool) -> Result<(), String> {
        if let Some(what) = self.broken {
            return Err(what.into());
        }
        self.check_planned()?;
        if quiet { self.check_quiet() } else { Ok(()) }
    }

    fn check_planned(&self) -> Result<(), String> {
        let losses = self.newest().shards.iter().flat_map(|h| h.entries()).any(|e| e.kind == Kind::Lost);
        if losses || self.nodes.iter().any(|n| n.alone) {
            return Ok(());
        }
        let locks = |z: usize| (0..self.shards()).any(|s| self.view(z, s).locks(zone(z)).next().is_some());
        match (0..self.zones).find(|&z| self.ledger(z) != 0 || locks(z)) {
            Some(z) => Err(format!("4: planned moves alone, but zone {z} has a ledger or locks")),
            None => Ok(()),
        }
    }

    fn check_quiet(&self) -> Result<(), String> {
        let ledgers: Vec<u32> = (0..self.zones).map(|z| self.ledger(z)).collect();
        for (o, node) in self.nodes.iter().enumerate() {
            for (seq, r) in (1..).zip(&node.log).filter(|(_, r)| !r.fence) {
                let bit = 1 << r.token;
                let visible = self.nodes.iter().all(|n| n.rows[r.key] == Some((r.owner_epoch, seq, o)));
                let known = self.nodes.iter().flat_map(|n| &n.log).any(|w| w.key == r.key && w.knew & bit != 0);
                if !visible && !known && ledgers.iter().any(|l| l & bit == 0) {
                    return Err(format!("3: the write with token {} of zone {o} was lost in silence", r.token));
                }
            }
            if node.rows != self.nodes[0].rows || ledgers[o] != ledgers[0] {
                return Err(format!("2: all is quiet, but rows or ledgers of zones 0 and {o} differ"));
            }
        }
        for (shard, history) in self.newest().shards.iter().enumerate() {
            let v = history.view();
            let Some(owner) = v.owner.filter(|_| v.kind != Kind::Moving) else {
                return Err("6: all is quiet, but an operation is stuck".into());
            };
            let owner = owner.0 as usize;
            if self.writes_at(owner, shard).is_none() {
                return Err("6: all is quiet, but the owner cannot write".into());
            }
            if (0..self.keys).any(|k| k % self.shards() == shard && self.locked(owner, k)) {
                return Err("5: the lost zone is back, but a lock does not open".into());
            }
        }
        Ok(())
    }
}
