//! Which way a commit is the sooner durable: by a write and then a flush, or by a write that flushes itself.
//!
//! The second saves a turn of the executor, but its flush is ordered by a kernel thread of the same processor, which waits where
//! others keep that busy. So both ways are timed, and the one that does worse is tried now and then.

/// Every so many commits go the other way.
const TRY_EVERY: u32 = 64;
/// A commit that took longer counts as this long: one stall of the disk must not decide.
const TOOK_NS_MAX: u64 = 10_000_000;

/// How long commits took of late, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    apart_ns: u64,
    through_ns: u64,
    chosen: u32,
}

impl Ways {
    /// Is the next write to flush itself?
    pub fn choose(&mut self) -> bool {
        self.chosen = (self.chosen + 1) % TRY_EVERY;
        (self.through_ns <= self.apart_ns || self.apart_ns == 0) != (self.chosen == 0)
    }

    /// A commit took so long, from its place in the segment to its flush.
    pub fn took(&mut self, through: bool, ns: u64) {
        let way = if through { &mut self.through_ns } else { &mut self.apart_ns };
        let ns = ns.min(TOOK_NS_MAX);
        *way = if *way == 0 { ns } else { (*way * 7 + ns) / 8 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 640 commits flush themselves.
    fn through(ways: &mut Ways, through_ns: u64, apart_ns: u64) -> u32 {
        let mut count = 0;
        for _ in 0..640 {
            let through = ways.choose();
            count += u32::from(through);
            ways.took(through, if through { through_ns } else { apart_ns });
        }
        count
    }

    #[test]
    fn the_sooner_way_is_taken_and_the_other_one_tried_now_and_then() {
        let mut ways = Ways::default();
        assert_eq!(through(&mut ways, 200_000, 300_000), 630);
        assert!((10..90).contains(&through(&mut ways, 3_000_000, 300_000)), "a processor that others keep busy");
        let back = (0..10).map(|_| through(&mut ways, 200_000, 300_000)).last();
        assert_eq!(back, Some(630), "once it is idle again");
    }
}
