//! Says when each request is due, in nanoseconds from the start: fixed before the run, whatever the server does.

use crate::random::Random;

/// How the due times lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Every 1/rate seconds, computed from the index, so that nothing drifts.
    Even { rate: f64 },
    /// Independent gaps with a mean of 1/rate seconds, as from many users who do not know of each other.
    Poisson { rate: f64, seed: u64 },
    /// Closed loop: a request is due the moment a connection is free.
    Closed,
}

/// The due times in order. What is due and not yet sent waits here: a queue of any length in no memory.
#[derive(Debug)]
pub struct Schedule {
    pace: Pace,
    index: u64,
    random: Random,
    /// No request after so many.
    most: u64,
    next_ns: f64,
    end_ns: u64,
}

impl Schedule {
    /// Requests until `end_ns`, and not more than `most`.
    pub fn new(pace: Pace, end_ns: u64, most: u64) -> Schedule {
        let seed = if let Pace::Poisson { seed, .. } = pace { seed } else { 0 };
        let mut schedule = Schedule { pace, index: 0, random: Random(seed), most, next_ns: 0.0, end_ns };
        if let Pace::Poisson { .. } = pace {
            schedule.advance();
            schedule.index = 0;
        }
        schedule
    }

    /// When the next request is due; `None` when all have been taken. In a closed loop: now, until the end.
    pub fn peek(&self, now_ns: u64) -> Option<u64> {
        let due = match self.pace {
            Pace::Closed => now_ns,
            Pace::Even { .. } | Pace::Poisson { .. } => self.next_ns as u64,
        };
        (due < self.end_ns && self.index < self.most).then_some(due)
    }

    /// The number of the request that `peek` tells of.
    pub fn number(&self) -> u64 {
        self.index
    }

    /// Takes the request that `peek` told of.
    pub fn advance(&mut self) {
        self.index += 1;
        self.next_ns = match self.pace {
            Pace::Even { rate } => self.index as f64 * 1e9 / rate,
            Pace::Poisson { rate, .. } => self.next_ns - (1.0 - self.random.fraction()).ln() * 1e9 / rate,
            Pace::Closed => 0.0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pace: Pace, end_ns: u64) -> Vec<u64> {
        let mut schedule = Schedule::new(pace, end_ns, u64::MAX);
        let mut due = Vec::new();
        while let Some(at) = schedule.peek(0) {
            due.push(at);
            schedule.advance();
        }
        due
    }

    #[test]
    fn an_even_schedule_starts_at_zero_and_does_not_drift() {
        assert_eq!(all(Pace::Even { rate: 4.0 }, 1_000_000_000), [0, 250_000_000, 500_000_000, 750_000_000]);
        let due = all(Pace::Even { rate: 3000.0 }, 100_000_000_000);
        assert_eq!(due.len(), 300_000);
        assert!(due.iter().enumerate().all(|(i, at)| at.abs_diff(i as u64 * 1_000_000 / 3) <= 1));
        assert_eq!(all(Pace::Even { rate: 0.5 }, 4_000_000_000), [0, 2_000_000_000]);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        for seed in 1..20 {
            let due = all(Pace::Poisson { rate: 1000.0, seed }, 20_000_000_000);
            let off = (due.len() as f64 - 20_000.0) / 20_000f64.sqrt();
            assert!(off.abs() < 5.0, "SEED={seed}: {} requests, expected about 20000", due.len());
            let gaps: Vec<f64> = due.windows(2).map(|w| (w[1] - w[0]) as f64 / 1e6).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
            assert!((deviation / mean - 1.0).abs() < 0.05, "SEED={seed}: deviation {deviation} of mean {mean}");
        }
        let same = |seed| all(Pace::Poisson { rate: 1000.0, seed }, 1_000_000_000);
        assert_eq!(same(7), same(7));
        assert_ne!(same(7), same(8));
    }

    #[test]
    fn a_closed_loop_is_due_now_until_the_end() {
        let mut schedule = Schedule::new(Pace::Closed, 100, 3);
        schedule.advance();
        assert_eq!(schedule.peek(99), Some(99));
        assert_eq!(schedule.peek(100), None);
    }

    #[test]
    fn a_schedule_ends_after_the_given_number() {
        let mut schedule = Schedule::new(Pace::Closed, u64::MAX, 2);
        assert_eq!((schedule.number(), schedule.peek(5)), (0, Some(5)));
        schedule.advance();
        schedule.advance();
        assert_eq!((schedule.number(), schedule.peek(5)), (2, None));
    }
}
