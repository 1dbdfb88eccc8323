//! Chooses one of several endpoints: least-request of two random choices, weighted turns, or a consistent hash. Pure; a
//! choice allocates nothing, and all that is costly happens when the set of open endpoints changes.
//!
//! The hash is weighted rendezvous over a table of slots: each slot goes to the endpoint that wins its draw. A ring with
//! 100 points for each endpoint spreads by 10 %, and Maglev's table moves slots of endpoints that stay; here an endpoint
//! that goes moves its own slots and no others, and a choice is one look into the table.

use super::policy::Balance;

/// Slots of the hash: with 8 endpoints each has 512 of them, give or take 4 %.
const SLOTS: usize = 4096;

/// Small and seeded: a schedule can be replayed. xorshift64*, Vigna 2016, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled".
pub(super) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(mix(seed) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`, which is not 0; the bias is below n / 2^32.
    pub fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// Spreads the bits of `x`: the finalizer of MurmurHash3.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// The same number for the same bytes, on every core and every node.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut h = bytes.len() as u64;
    for part in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        h = mix(h ^ u64::from_le_bytes(word));
    }
    h
}

/// An endpoint that may be chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Candidate {
    /// What the caller knows it by.
    pub pool: usize,
    /// Its share.
    pub weight: u32,
    /// Names it in the hash, on every core and node.
    pub name: u64,
}

/// The open endpoints of a cluster, ready to be chosen from.
#[derive(Default)]
pub(super) struct Choice {
    by: Balance,
    all: Vec<Candidate>,
    open: Vec<Candidate>,
    /// Sum of the weights up to each, it among them; empty: all are the same.
    upto: Vec<u32>,
    /// Smooth turns: what each has saved up.
    turns: Vec<i64>,
    next: usize,
    /// Each slot's endpoint if all were open, and now: places in `all`.
    base: Vec<u16>,
    slots: Vec<u16>,
}

impl Choice {
    /// Other endpoints, or another way.
    pub fn set(&mut self, by: Balance, all: Vec<Candidate>) {
        if self.by == by && self.all == all {
            return;
        }
        (self.by, self.all) = (by, all);
        self.base.clear();
        if matches!(by, Balance::Hash(_)) && self.all.len() > 1 {
            let all = &self.all;
            self.base = (0..SLOTS).map(|slot| winner(all, |_| true, slot)).collect();
        }
    }

    /// Which of them are open, with their weights at this time.
    pub fn open(&mut self, open: Vec<Candidate>) {
        let even = open.windows(2).all(|w| w[0].weight == w[1].weight);
        self.upto.clear();
        if !even {
            let mut sum = 0;
            self.upto.extend(open.iter().map(|c| {
                sum += c.weight;
                sum
            }));
        }
        if self.open.len() != open.len() {
            self.turns = vec![0; open.len()];
        }
        self.open = open;
        let (all, open) = (&self.all, &self.open);
        let up = |c: &Candidate| open.iter().any(|o| o.pool == c.pool);
        self.slots.clear();
        self.slots.extend(self.base.iter().enumerate().map(|(slot, base)| match &all[*base as usize] {
            stays if up(stays) => *base,
            _ => winner(all, up, slot),
        }));
    }

    /// Every one, open or not.
    pub fn all(&self) -> &[Candidate] {
        &self.all
    }

    /// The open ones.
    pub fn candidates(&self) -> &[Candidate] {
        &self.open
    }

    /// One of the open ones; `avoid` only if there is no other. `None`: none is open.
    pub fn pick(
        &mut self,
        rng: &mut Rng,
        hash: u64,
        avoid: Option<usize>,
        load: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        match self.open.as_slice() {
            [] => return None,
            [one] => return Some(one.pool),
            _ => {}
        }
        let picked = match self.by {
            Balance::LeastRequest => self.lesser(rng, &load),
            Balance::RoundRobin => self.turn(),
            Balance::Hash(_) => self.all[self.slots[(hash >> 32) as usize % SLOTS] as usize].pool,
        };
        if avoid != Some(picked) {
            return Some(picked);
        }
        let others = self.open.iter().filter(|c| c.pool != picked);
        match self.by {
            Balance::LeastRequest | Balance::RoundRobin => others.min_by_key(|c| load(c.pool)).map(|c| c.pool),
            Balance::Hash(_) => {
                let slot = (hash >> 32) as usize % SLOTS;
                let other = |c: &Candidate| c.pool != picked && self.open.iter().any(|o| o.pool == c.pool);
                Some(self.all[winner(&self.all, other, slot) as usize].pool)
            }
        }
    }

    /// Two at random, by weight; the one that is less loaded for its weight.
    fn lesser(&self, rng: &mut Rng, load: impl Fn(usize) -> u32) -> usize {
        let n = self.open.len() as u32;
        let a = match self.upto.last() {
            None => rng.below(n) as usize,
            Some(sum) => {
                let at = rng.below(*sum);
                self.upto.partition_point(|upto| *upto <= at)
            }
        };
        let b = rng.below(n - 1) as usize;
        let (a, b) = (&self.open[a], &self.open[b + usize::from(b >= a)]);
        // Equal: the first, which was drawn by weight.
        let of = |c: &Candidate, other: &Candidate| u64::from(load(c.pool)) * u64::from(other.weight);
        if of(b, a) < of(a, b) { b.pool } else { a.pool }
    }

    /// Smooth weighted turns: who has saved most goes, and pays what all have earned.
    fn turn(&mut self) -> usize {
        let Some(sum) = self.upto.last() else {
            self.next = (self.next + 1) % self.open.len();
            return self.open[self.next].pool;
        };
        let mut best = 0;
        for (i, c) in self.open.iter().enumerate() {
            self.turns[i] += i64::from(c.weight);
            if self.turns[i] > self.turns[best] {
                best = i;
            }
        }
        self.turns[best] -= i64::from(*sum);
        self.open[best].pool
    }
}

/// Who wins `slot` among those of `all` that are `up`: the smallest -ln(u) / weight, u its own draw (Schindelhauer and
/// Schomaker 2005, "Weighted distributed hash tables"). With none up it is the first.
fn winner(all: &[Candidate], up: impl Fn(&Candidate) -> bool, slot: usize) -> u16 {
    let cost = |c: &Candidate| {
        let draw = mix(c.name ^ mix(slot as u64 + 1)) >> 11;
        -((draw + 1) as f64 / (1u64 << 53) as f64).ln() / f64::from(c.weight)
    };
    let among = all.iter().enumerate().filter(|(_, c)| up(c));
    among.min_by(|a, b| cost(a.1).total_cmp(&cost(b.1))).map_or(0, |(i, _)| i as u16)
}

#[cfg(test)]
mod tests {
    use super::super::policy::HashBy;
    use super::*;

    fn choice(by: Balance, weights: &[u32]) -> Choice {
        let all: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(pool, weight)| Candidate { pool, weight: *weight, name: mix(pool as u64 + 99) })
            .collect();
        let mut c = Choice::default();
        c.set(by, all.clone());
        c.open(all);
        c
    }

    fn shares(c: &mut Choice, rounds: usize, load: &[u32]) -> Vec<usize> {
        let mut rng = Rng::new(7);
        let mut got = vec![0; load.len()];
        for i in 0..rounds {
            got[c.pick(&mut rng, mix(i as u64), None, |p| load[p]).unwrap()] += 1;
        }
        got
    }

    #[test]
    fn turns_follow_the_weights_exactly_and_smoothly() {
        let mut c = choice(Balance::RoundRobin, &[5, 1, 1]);
        let mut rng = Rng::new(1);
        let order: Vec<_> = (0..7).map(|_| c.pick(&mut rng, 0, None, |_| 0).unwrap()).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(shares(&mut choice(Balance::RoundRobin, &[1, 1, 1]), 300, &[0; 3]), [100, 100, 100]);
    }

    #[test]
    fn of_two_choices_the_less_loaded_for_its_weight_is_taken() {
        let near = |got: &[usize], expected: &[usize]| {
            assert!(got.iter().zip(expected).all(|(g, e)| g.abs_diff(*e) <= 150), "{got:?} {expected:?}");
        };
        near(&shares(&mut choice(Balance::LeastRequest, &[1, 1, 1]), 3000, &[4, 4, 4]), &[1000, 1000, 1000]);
        near(&shares(&mut choice(Balance::LeastRequest, &[1, 2, 3]), 6000, &[0, 0, 0]), &[1000, 2000, 3000]);
        assert_eq!(shares(&mut choice(Balance::LeastRequest, &[1, 1]), 100, &[9, 1]), [0, 100]);
        assert_eq!(shares(&mut choice(Balance::LeastRequest, &[1, 10]), 100, &[1, 9]), [0, 100]);
        assert_eq!(shares(&mut choice(Balance::LeastRequest, &[1, 1, 1]), 100, &[9, 1, 1])[0], 0);
    }

    #[test]
    fn a_hash_follows_the_weights_and_only_what_has_to_move_moves() {
        let by = Balance::Hash(HashBy::Shard);
        let got = shares(&mut choice(by, &[1, 2, 5]), 80_000, &[0; 3]);
        for (g, e) in got.iter().zip([10_000usize, 20_000, 50_000]) {
            assert!(g.abs_diff(e) < e / 8, "{got:?}");
        }
        let mut c = choice(by, &[1, 1, 1, 1]);
        let before = c.slots.clone();
        c.open(c.all[..3].to_vec());
        let moved = before.iter().zip(&c.slots).filter(|(a, b)| a != b);
        assert!(moved.clone().all(|(a, _)| *a == 3) && !c.slots.contains(&3), "only the slots of the one that went");
        assert_eq!(moved.count(), before.iter().filter(|s| **s == 3).count());
        c.open(c.all.clone());
        assert_eq!(c.slots, before, "they come back to it");
        let more = choice(by, &[1, 1, 1, 1, 1]);
        let moved: Vec<_> = before.iter().zip(&more.slots).filter(|(a, b)| a != b).collect();
        assert!(moved.iter().all(|(_, b)| **b == 4), "a new one takes from the others, who exchange nothing");
        assert!((700..950).contains(&moved.len()), "{}", moved.len());
    }

    #[test]
    fn the_one_to_avoid_is_taken_only_if_there_is_no_other() {
        for by in [Balance::LeastRequest, Balance::RoundRobin, Balance::Hash(HashBy::Tag)] {
            let mut c = choice(by, &[1, 1, 3]);
            let mut rng = Rng::new(3);
            for i in 0..500 {
                assert_ne!(c.pick(&mut rng, mix(i), Some(2), |_| 0), Some(2), "{by:?}");
            }
            c.open(c.all[2..].to_vec());
            assert_eq!(c.pick(&mut rng, 1, Some(2), |_| 0), Some(2), "{by:?}");
            c.open(vec![]);
            assert_eq!(c.pick(&mut rng, 1, None, |_| 0), None, "{by:?}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_numbers_and_all_of_a_range() {
        let draw = |seed| {
            let mut r = Rng::new(seed);
            (0..200).map(|_| r.below(7)).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert!((0..7).all(|n| draw(5).contains(&n)));
        assert_ne!(hash(b"shopid=1"), hash(b"shopid=2"));
    }
}
