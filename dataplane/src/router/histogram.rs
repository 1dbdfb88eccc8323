//! Times in microseconds, counted in buckets that grow with the value: 32 to each power of two, so a bound is met within 3.2 %.
//!
//! One core writes, by plain loads and stores; anyone may read. What a reader sees may be a moment old, never torn.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Buckets to each power of two.
const SUB: u64 = 32;
const SUB_BITS: u32 = SUB.trailing_zeros();
/// Longer times count in the last bucket; 134 seconds.
const US_MAX: u64 = (1 << 27) - 1;
const LEN: usize = index(US_MAX) + 1;

/// A number that one core writes and anyone reads.
#[derive(Default, Debug)]
pub struct Single(AtomicU64);

impl Single {
    /// Adds `n`: a load and a store, so there may be one writer only.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Puts it at `n`.
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// So many numbers of one writer, all 0.
pub(crate) fn singles(len: usize) -> Box<[Single]> {
    (0..len).map(|_| Single::default()).collect()
}

/// The times of one core, by length.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Single]>,
    sum_us: Single,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: singles(LEN), sum_us: Single::default() }
    }
}

impl Histogram {
    pub(crate) fn record(&self, us: u64) {
        self.buckets[index(us.min(US_MAX))].add(1);
        self.sum_us.add(us);
    }

    /// What was recorded so far.
    pub fn reading(&self) -> Reading {
        Reading { counts: self.buckets.iter().map(Single::get).collect(), sum_us: self.sum_us.get() }
    }
}

/// What histograms stood at when they were read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    counts: Vec<u64>,
    sum_us: u64,
}

impl Default for Reading {
    fn default() -> Reading {
        Reading { counts: vec![0; LEN], sum_us: 0 }
    }
}

impl Reading {
    /// Adds another core's.
    pub fn merge(&mut self, other: &Reading) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.sum_us += other.sum_us;
    }

    /// How many times were recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// How many took at most `us`: of the bucket that holds `us`, only if it ends there.
    pub fn at_most(&self, us: u64) -> u64 {
        let buckets = self.counts.iter().enumerate();
        buckets.take_while(|(i, _)| upper(*i) <= us).map(|(_, n)| n).sum()
    }

    /// The time that a share `q` of them did not exceed, in microseconds: the end of its bucket; 0 of none.
    pub fn quantile_us(&self, q: f64) -> u64 {
        let wanted = (self.count() as f64 * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return upper(i);
            }
        }
        0
    }

    /// Each bucket that is not empty: its end in microseconds, and how many are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, n)| (upper(i), *n))
    }
}

/// The bucket of `us`: each value below 64 has its own; from there on 32 share each power of two.
const fn index(us: u64) -> usize {
    if us < 2 * SUB {
        return us as usize;
    }
    let shift = us.ilog2() - SUB_BITS;
    (shift as u64 * SUB + (us >> shift)) as usize
}

/// The longest time of a bucket.
const fn upper(index: usize) -> u64 {
    let i = index as u64;
    if i < 2 * SUB {
        return i;
    }
    let shift = i / SUB - 1;
    ((i - shift * SUB + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_lies_in_a_bucket_that_ends_at_most_a_thirtieth_above_it() {
        for us in (0..5000).chain((0..27).flat_map(|e| [(1 << e) - 1, 1 << e, (1 << e) + 1])).chain([US_MAX]) {
            let i = index(us);
            assert!(upper(i) >= us && (upper(i) - us) * 31 <= us, "{us}: bucket {i} ends at {}", upper(i));
            assert!(i == 0 || upper(i - 1) < us, "{us} belongs to the bucket before {i}");
        }
        assert_eq!(upper(LEN - 1), US_MAX);
    }

    #[test]
    fn quantiles_sums_and_bounds_are_those_of_what_was_recorded() {
        let h = Histogram::default();
        (1..=1000).for_each(|us| h.record(us));
        h.record(u64::from(u32::MAX));
        let r = h.reading();
        assert_eq!((r.count(), r.sum_us()), (1001, 500_500 + u64::from(u32::MAX)));
        assert!((500..=516).contains(&r.quantile_us(0.5)) && (990..=1023).contains(&r.quantile_us(0.99)));
        assert_eq!(r.quantile_us(1.0), US_MAX);
        assert_eq!((r.at_most(63), r.at_most(0)), (63, 0));
        assert!((968..=1000).contains(&r.at_most(1000)));
        assert_eq!(Reading::default().quantile_us(0.99), 0);
        let mut both = r.clone();
        both.merge(&r);
        assert_eq!((both.count(), both.buckets().map(|(_, n)| n).sum::<u64>()), (2002, 2002));
    }
}
