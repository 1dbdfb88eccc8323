//! A token bucket in whole numbers: so many requests a second, so many at once.

/// A rate of the whole process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Requests a second, at least 1.
    pub per_s: u32,
    /// Requests at once, at least 1.
    pub burst: u32,
}

/// One core's share of a rate: its level counts 1 / (1000 * cores) of a request, so that nothing is lost by division.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Bucket {
    level: u64,
    seen_ms: u64,
}

impl Bucket {
    /// Takes one request's token. Each core has a `cores`-th of the rate and of the burst, but room for one request at least.
    /// Refused: milliseconds until there is a token.
    pub fn take(&mut self, rate: Rate, cores: u32, now_ms: u64) -> Result<(), u64> {
        let cost = 1000 * u64::from(cores.max(1));
        let room = (u64::from(rate.burst) * 1000).max(cost);
        // New, and so full: 0 stands for long ago.
        let earned = now_ms.saturating_sub(self.seen_ms).saturating_mul(rate.per_s.into());
        self.level = if self.seen_ms == 0 { room } else { self.level.saturating_add(earned).min(room) };
        self.seen_ms = now_ms.max(1);
        if self.level >= cost {
            self.level -= cost;
            return Ok(());
        }
        Err((cost - self.level).div_ceil(u64::from(rate.per_s.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_and_not_one_more() {
        for cores in [1, 2, 3] {
            let (rate, mut all) = (Rate { per_s: 10, burst: 6 }, 0);
            let mut buckets = vec![Bucket::default(); cores as usize];
            let mut each = |now| {
                buckets.iter_mut().map(|b| (0..50).filter(|_| b.take(rate, cores, now).is_ok()).count()).sum::<usize>()
            };
            assert_eq!(each(5000), 6, "{cores} cores");
            (1..=6000).for_each(|ms| all += each(5000 + ms));
            assert_eq!(all, 60, "{cores} cores: 10 a second for 6 s");
            assert_eq!(each(100_000), 6, "it fills up to the burst");
        }
    }

    #[test]
    fn it_says_when_to_come_again_and_time_may_stand_still() {
        let (rate, mut b) = (Rate { per_s: 4, burst: 1 }, Bucket::default());
        assert_eq!(b.take(rate, 1, 1000), Ok(()));
        assert_eq!(b.take(rate, 1, 1000), Err(250));
        assert_eq!(b.take(rate, 1, 1100), Err(150));
        assert_eq!(b.take(rate, 1, 1249), Err(1));
        assert_eq!(b.take(rate, 1, 1250), Ok(()));
        assert_eq!(b.take(rate, 1, 900), Err(250), "a clock that steps back earns nothing and loses nothing");
    }
}
