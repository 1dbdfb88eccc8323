//! Judges endpoints by the answers that they give, on each core for itself: repeated failures, a success rate below the
//! others', or answers that take much longer than the others' (a slow 200 is a fault). Pure.

use super::policy::Eject;

/// Buckets of the latencies: four for each power of two of microseconds, up to 2^30.
const BUCKETS: usize = 120;

/// Why an endpoint was ejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Failures in a row.
    Failures,
    /// Its success rate against the others'.
    SuccessRate,
    /// Its median latency against the others'.
    Latency,
}

impl By {
    /// As they are shown, in the order of the cases.
    pub const NAMES: [&str; 3] = ["failures in a row", "success rate", "latency"];
}

/// What is remembered of one endpoint.
pub(super) struct Record {
    /// Failures since the last success.
    in_a_row: u32,
    good: u32,
    bad: u32,
    times: [u16; BUCKETS],
    timed: u32,
    /// Of answers, in microseconds: an eighth of each new one.
    pub ewma_us: u64,
    /// Until when; 0: it is not.
    pub ejected_until_ms: u64,
    /// So often that each new time is longer; forgiven by the interval.
    pub repeats: u32,
}

impl Record {
    pub fn new() -> Record {
        Record {
            in_a_row: 0,
            good: 0,
            bad: 0,
            times: [0; BUCKETS],
            timed: 0,
            ewma_us: 0,
            ejected_until_ms: 0,
            repeats: 0,
        }
    }

    /// An answer came; after so many microseconds, where that is known.
    pub fn answered(&mut self, good: bool, us: Option<u64>) {
        if !good {
            return self.failed();
        }
        self.in_a_row = 0;
        self.good = self.good.saturating_add(1);
        let Some(us) = us else { return };
        self.ewma_us = if self.ewma_us == 0 { us.max(1) } else { self.ewma_us - self.ewma_us / 8 + us / 8 };
        let slot = &mut self.times[bucket(us)];
        if *slot < u16::MAX {
            *slot += 1;
            self.timed += 1;
        }
    }

    /// There was no answer, or one that counts as none.
    pub fn failed(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.bad = self.bad.saturating_add(1);
    }

    /// It has failed so often in a row that it is to go.
    pub fn fails(&self, rules: &Eject) -> bool {
        rules.failures > 0 && self.in_a_row >= rules.failures && self.ejected_until_ms == 0
    }

    /// Is ejected from now on.
    pub fn eject(&mut self, rules: &Eject, now_ms: u64) {
        let ms = (rules.eject_ms << self.repeats.min(16)).min(rules.eject_ms_max);
        self.repeats += 1;
        self.ejected_until_ms = now_ms + ms;
        self.forget();
    }

    /// Is back if its time is over.
    pub fn back(&mut self, now_ms: u64) -> bool {
        let over = self.ejected_until_ms != 0 && self.ejected_until_ms <= now_ms;
        if over {
            self.ejected_until_ms = 0;
            self.forget();
        }
        over
    }

    fn forget(&mut self) {
        (self.in_a_row, self.good, self.bad, self.timed) = (0, 0, 0, 0);
        self.times = [0; BUCKETS];
    }

    /// At the end of an interval: what is old counts half.
    fn age(&mut self) {
        (self.good, self.bad) = (self.good / 2, self.bad / 2);
        self.times.iter_mut().for_each(|t| *t /= 2);
        self.timed = self.times.iter().map(|t| u32::from(*t)).sum();
        if self.ejected_until_ms == 0 {
            self.repeats = self.repeats.saturating_sub(1);
        }
    }

    fn median_us(&self) -> u64 {
        let mut left = self.timed / 2;
        for (i, n) in self.times.iter().enumerate() {
            if u32::from(*n) > left {
                return lowest(i);
            }
            left -= u32::from(*n);
        }
        0
    }
}

/// The bucket of `us`.
fn bucket(us: u64) -> usize {
    let us = us.clamp(4, (1 << 30) - 1);
    let power = 63 - us.leading_zeros() as usize;
    (power - 2) * 4 + (us >> (power - 2) & 3) as usize
}

/// The least time of a bucket, in microseconds.
fn lowest(bucket: usize) -> u64 {
    (4 + (bucket as u64 & 3)) << (bucket / 4)
}

/// May one more of `all` be ejected, of which `out` are?
pub(super) fn allowed(rules: &Eject, out: usize, all: usize) -> bool {
    all > 1 && rules.percent_max > 0 && (out == 0 || (out + 1) * 100 <= all * rules.percent_max as usize)
}

/// At the end of an interval: who of those that are not ejected stands out, worst first, and by which rule.
pub(super) fn judge(rules: &Eject, records: &mut [(usize, &mut Record)]) -> Vec<(usize, By)> {
    let mut found = vec![];
    if let Some(out) = by_rate(rules, records) {
        found.push((out, By::SuccessRate));
    }
    for out in by_latency(rules, records) {
        if found.iter().all(|(f, _)| *f != out) {
            found.push((out, By::Latency));
        }
    }
    records.iter_mut().for_each(|(_, r)| r.age());
    found
}

/// Whose successes lie furthest below the others', by at least the rule's points.
fn by_rate(rules: &Eject, records: &[(usize, &mut Record)]) -> Option<usize> {
    let enough = |r: &Record| r.good + r.bad >= rules.samples_min;
    let counted: Vec<_> = records.iter().filter(|(_, r)| enough(r)).collect();
    let rate = |good: u64, all: u64| (good * 1000).checked_div(all).unwrap_or(1000);
    let (good, all) = counted
        .iter()
        .fold((0u64, 0u64), |(g, a), (_, r)| (g + u64::from(r.good), a + u64::from(r.good) + u64::from(r.bad)));
    let below = |r: &Record| {
        let (g, a) = (u64::from(r.good), u64::from(r.good + r.bad));
        rate(good - g, all - a).saturating_sub(rate(g, a))
    };
    let worst = counted.iter().max_by_key(|(_, r)| below(r))?;
    let off = rules.success_points == 0 || counted.len() < 2;
    (!off && below(worst.1) >= u64::from(rules.success_points) * 10).then_some(worst.0)
}

/// Whose median is that many times the others' median, and that much longer. The worst goes first, and the rest is judged
/// without it.
fn by_latency(rules: &Eject, records: &[(usize, &mut Record)]) -> Vec<usize> {
    if rules.latency_factor == 0 {
        return vec![];
    }
    let enough = records.iter().filter(|(_, r)| r.timed >= rules.samples_min);
    let mut medians: Vec<_> = enough.map(|(i, r)| (r.median_us(), *i)).collect();
    medians.sort_unstable();
    let mut found = vec![];
    while let Some((us, worst)) = medians.pop()
        && !medians.is_empty()
    {
        let others = medians[(medians.len() - 1) / 2].0;
        if us < others * u64::from(rules.latency_factor) || us < others + rules.latency_floor_ms * 1000 {
            break;
        }
        found.push(worst);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(rules: &Eject, mut records: Vec<Record>) -> Vec<(usize, By)> {
        let mut all: Vec<_> = records.iter_mut().enumerate().collect();
        judge(rules, &mut all)
    }

    fn record(good: u32, bad: u32, us: u64) -> Record {
        let mut r = Record::new();
        (0..good).for_each(|_| r.answered(true, Some(us)));
        (0..bad).for_each(|_| r.answered(false, Some(us)));
        r
    }

    #[test]
    fn a_bucket_holds_what_lies_within_a_quarter_of_it() {
        for us in (1..5000).chain([1 << 20, 30_000_000, u64::MAX]) {
            let least = lowest(bucket(us));
            let us = us.clamp(4, (1 << 30) - 1);
            assert!(least <= us && us < least + least.div_ceil(4), "{us} in {least}");
        }
    }

    #[test]
    fn failures_in_a_row_eject_longer_each_time_and_good_intervals_forgive() {
        let rules = Eject::default();
        let mut r = Record::new();
        (0..4).for_each(|_| r.failed());
        r.answered(true, Some(1000));
        (0..4).for_each(|_| r.failed());
        assert!(!r.fails(&rules));
        r.failed();
        assert!(r.fails(&rules));
        for (now, ms) in [(1000, 10_000), (20_000, 20_000), (60_000, 40_000)] {
            r.eject(&rules, now);
            assert_eq!(r.ejected_until_ms, now + ms);
            assert!(!r.fails(&rules) && !r.back(now + ms - 1) && r.back(now + ms));
        }
        (0..20).for_each(|_| r.eject(&rules, 0));
        assert_eq!(r.ejected_until_ms, rules.eject_ms_max);
        r.back(rules.eject_ms_max);
        (0..22).for_each(|_| r.age());
        r.eject(&rules, 500_000);
        assert_eq!(r.ejected_until_ms, 520_000, "22 of 23 times are forgiven");
    }

    #[test]
    fn a_slow_200_is_a_fault_by_factor_and_by_floor() {
        let rules = Eject { latency_factor: 4, latency_floor_ms: 100, samples_min: 10, ..Eject::default() };
        let latencies = |all: &[u64]| judged(&rules, all.iter().map(|us| record(20, 0, *us)).collect());
        assert_eq!(latencies(&[10_000, 11_000, 500_000]), [(2, By::Latency)]);
        assert_eq!(latencies(&[10_000, 500_000]), [(1, By::Latency)]);
        assert_eq!(latencies(&[10_000, 600_000, 12_000, 500_000, 9_000]), [(1, By::Latency), (3, By::Latency)]);
        assert_eq!(latencies(&[1_000, 1_000, 90_000]), [], "below the floor");
        assert_eq!(latencies(&[200_000, 210_000, 600_000]), [], "below the factor");
        assert_eq!(latencies(&[500_000, 500_000, 500_000]), [], "all are slow: nobody is");
        assert_eq!(latencies(&[500_000]), []);
        let few = vec![record(20, 0, 1000), record(9, 0, 900_000)];
        assert_eq!(judged(&rules, few), [], "too few to tell");
    }

    #[test]
    fn a_success_rate_is_judged_against_the_others() {
        let rules = Eject { success_points: 30, samples_min: 10, failures: 0, ..Eject::default() };
        assert_eq!(
            judged(&rules, vec![record(90, 10, 10), record(50, 50, 10), record(95, 5, 10)]),
            [(1, By::SuccessRate)]
        );
        assert_eq!(
            judged(&rules, vec![record(50, 50, 10), record(45, 55, 10), record(55, 45, 10)]),
            [],
            "the service fails"
        );
        assert_eq!(judged(&rules, vec![record(9, 0, 10), record(0, 9, 10)]), [], "too few");
        assert_eq!(judged(&rules, vec![record(0, 99, 10)]), []);
        let off = Eject { success_points: 0, ..rules };
        assert_eq!(judged(&off, vec![record(90, 0, 10), record(0, 90, 10)]), []);
    }

    #[test]
    fn no_more_than_the_share_is_ejected_and_never_all() {
        let rules = Eject { percent_max: 50, ..Eject::default() };
        let most = |rules: &Eject, all| (0..all).take_while(|out| allowed(rules, *out, all)).count();
        assert_eq!([1, 2, 3, 4, 10].map(|all| most(&rules, all)), [0, 1, 1, 2, 5]);
        assert_eq!(most(&Eject { percent_max: 10, ..rules }, 3), 1, "one, where there are others");
        assert_eq!(most(&Eject { percent_max: 0, ..rules }, 9), 0);
    }
}
