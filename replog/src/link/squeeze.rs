//! Whether to gather and compress: the line's measured rate against what compressing costs and brings.
//!
//! ```text
//!            behind by more than a quarter of the line's product, and what was sent waits for the line
//!   single ───────────────────────────────────────────────────────────────────────────────────────────▶ gathered
//!          ◀─────────────────────────────────────────────────────────────────────────────────────────
//!            caught up for CALM_US
//! ```
//!
//! What is gathered is compressed if that is worth it: min(rate x ratio, speed of zstd) well above the rate alone. The rate is measured while bytes
//! wait for the line, and only then: else it is not the line that is measured. Times and sizes come in, a decision comes out.

use super::pack::Codec;

/// What was behind has to be caught up for so long before batches travel one by one again.
const CALM_US: u64 = 200_000;
/// Where the line has not been the bottleneck for so long, what is known of its rate is out of date.
const STALE_US: u64 = 5_000_000;
/// Rates are measured over at least so long, and over a round trip.
const SPAN_US: u64 = 20_000;
/// A round trip older than this does not count as the shortest any more.
const ROUND_TRIP_US: u64 = 10_000_000;
/// Behind by less is never behind: the frames of a few batches.
const BEHIND_BYTES_MIN: u64 = 64 * 1024;
/// Compressing begins where it brings so many percent of what travels without, and ends where it brings less than the other: what is
/// measured is noisy.
const BEGIN_PERCENT: u128 = 130;
const END_PERCENT: u128 = 110;
/// Where it was not worth it, it is tried again with one pack after so long: what is written may shrink better now.
const TRY_AFTER_US: u64 = 5_000_000;

/// What an operator wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compress {
    /// When the line is the bottleneck.
    #[default]
    Auto,
    /// All that is worth a frame.
    Always,
    /// Nothing.
    Never,
}

/// The state of the decision, for one sender.
#[derive(Clone, Debug)]
pub(super) struct Squeeze {
    pub wish: Compress,
    gathers: bool,
    compresses: bool,
    /// Since then nothing was behind.
    calm_us: Option<u64>,
    /// Bytes wait for the line; and when they did last.
    is_busy: bool,
    busy_us: u64,
    /// Acknowledged bytes of the line a second.
    rate: Option<u64>,
    /// The stretch that is being measured: since when, and bytes acknowledged since.
    span: Option<(u64, u64)>,
    /// The shortest round trip, and when it was.
    round_trip: Option<(u64, u64)>,
    /// What zstd does: bytes in a second of its own time, and bytes that come of 1024.
    speed: Option<u64>,
    of_1024: Option<u64>,
    /// When that was learnt.
    learnt_us: u64,
}

impl Squeeze {
    /// Nothing is known yet.
    pub fn new(wish: Compress) -> Squeeze {
        Squeeze {
            wish,
            gathers: false,
            compresses: false,
            calm_us: None,
            is_busy: false,
            busy_us: 0,
            rate: None,
            span: None,
            round_trip: None,
            speed: None,
            of_1024: None,
            learnt_us: 0,
        }
    }

    /// Another connection: the line may be another one. What zstd does stays known.
    pub fn on_connect(&mut self) {
        let Squeeze { speed, of_1024, learnt_us, .. } = *self;
        *self = Squeeze { speed, of_1024, learnt_us, ..Squeeze::new(self.wish) };
    }

    /// Do bytes that were sent wait for the line?
    pub fn on_line(&mut self, is_busy: bool, now_us: u64) {
        self.is_busy = is_busy;
        if is_busy {
            self.busy_us = now_us;
            self.span.get_or_insert((now_us, 0));
        } else {
            self.span = None; // it is not the line that is measured
            if now_us > self.busy_us + STALE_US {
                self.rate = None;
            }
        }
    }

    /// How the next batches are to travel, with `behind_bytes` of the log durable and not sent; `None`: each by itself.
    pub fn choose(&mut self, behind_bytes: u64, now_us: u64) -> Option<Codec> {
        match self.wish {
            Compress::Never => return None,
            Compress::Always => return Some(Codec::Zstd),
            Compress::Auto => {}
        }
        if behind_bytes > self.behind_max() && self.is_busy {
            (self.gathers, self.calm_us) = (true, None);
        } else if behind_bytes > self.behind_max() / 4 {
            self.calm_us = None;
        } else {
            let since = *self.calm_us.get_or_insert(now_us);
            self.gathers &= now_us < since + CALM_US;
        }
        self.compresses = self.gathers && self.is_worth(now_us);
        let codec = if self.compresses { Codec::Zstd } else { Codec::None };
        self.gathers.then_some(codec)
    }

    /// zstd has made `packed` bytes of `raw` in `cost_us`.
    pub fn on_packed(&mut self, raw: u64, packed: u64, cost_us: u64, now_us: u64) {
        let smooth = |known: Option<u64>, new: u64| known.map_or(new, |k| (3 * k + new) / 4);
        self.speed = Some(smooth(self.speed, raw * 1_000_000 / cost_us.max(1)));
        self.of_1024 = Some(smooth(self.of_1024, (packed * 1024 / raw.max(1)).max(1)));
        self.learnt_us = now_us;
    }

    /// The peer has acknowledged so many bytes of the line.
    pub fn on_acked(&mut self, bytes: u64, now_us: u64) {
        let Some((since, sum)) = &mut self.span else { return };
        *sum += bytes;
        let took = now_us.saturating_sub(*since);
        if took >= SPAN_US.max(self.round_trip.map_or(0, |(us, _)| us)) {
            let rate = *sum * 1_000_000 / took.max(1);
            self.rate = Some(self.rate.map_or(rate, |known| (known + rate) / 2));
            self.span = Some((now_us, 0));
        }
    }

    /// An answer took so long.
    pub fn on_round_trip(&mut self, us: u64, now_us: u64) {
        if self.round_trip.is_none_or(|(least, at)| us <= least || now_us >= at + ROUND_TRIP_US) {
            self.round_trip = Some((us, now_us));
        }
    }

    /// Bytes of the line a second, as measured last; `None`: the line was not the bottleneck.
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// A quarter of bandwidth times round trip.
    fn behind_max(&self) -> u64 {
        let (rate, trip) = (self.rate.unwrap_or(0), self.round_trip.map_or(0, |(us, _)| us));
        (u128::from(rate) * u128::from(trip) / 4_000_000).max(BEHIND_BYTES_MIN.into()) as u64
    }

    /// Would more of the log arrive in a second with zstd than without?
    fn is_worth(&self, now_us: u64) -> bool {
        let Some(rate) = self.rate else { return false }; // the line is measured first
        let Some((speed, of_1024)) = self.speed.zip(self.of_1024) else { return true }; // learnt by doing it once
        let (rate, speed) = (u128::from(rate), u128::from(speed));
        let packed = (rate * 1024 / u128::from(of_1024)).min(speed);
        let percent = if self.compresses { END_PERCENT } else { BEGIN_PERCENT };
        packed * 100 > rate * percent || now_us > self.learnt_us + TRY_AFTER_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sender that has `backlog` bytes to ship, a line, and a zstd, in steps of a millisecond.
    struct World {
        squeeze: Squeeze,
        rate: u64,
        speed: u64,
        ratio: u64,
        now_us: u64,
        backlog: u64,
        queue: u64,
        changes: u32,
        last: Option<Codec>,
    }

    impl World {
        fn new(rate: u64, speed: u64, ratio: u64) -> World {
            let squeeze = Squeeze::new(Compress::Auto);
            World { squeeze, rate, speed, ratio, now_us: 1, backlog: 0, queue: 0, changes: 0, last: None }
        }

        fn step(&mut self) {
            self.now_us += 1000;
            let sent = self.queue.min(self.rate / 1000);
            self.queue -= sent;
            self.squeeze.on_round_trip(30_000, self.now_us);
            self.squeeze.on_acked(sent, self.now_us);
            // What the processor can do in a millisecond, while the line has room for a megabyte.
            let mut time_us = 1000;
            while time_us > 0 && self.queue < 1 << 20 && self.backlog > 0 {
                self.squeeze.on_line(self.queue > 0, self.now_us);
                let codec = self.squeeze.choose(self.backlog, self.now_us);
                self.changes +=
                    u32::from(self.last.replace(codec.unwrap_or(Codec::None)) != Some(codec.unwrap_or(Codec::None)));
                let raw = self.backlog.min(64 << 10);
                self.backlog -= raw;
                if codec == Some(Codec::Zstd) {
                    let cost = raw * 1_000_000 / self.speed;
                    self.squeeze.on_packed(raw, raw / self.ratio, cost, self.now_us);
                    self.queue += raw / self.ratio;
                    time_us -= (cost as i64).min(time_us);
                } else {
                    self.queue += raw;
                    time_us -= 20;
                }
            }
            self.squeeze.on_line(self.queue > 0, self.now_us);
            self.squeeze.choose(self.backlog, self.now_us);
        }
    }

    const MB: u64 = 1_000_000;

    #[test]
    fn a_slow_line_is_compressed_for_and_a_fast_one_is_not() {
        for (rate, speed, ratio, compressed) in [
            (12 * MB, 400 * MB, 4, true),
            (125 * MB, 400 * MB, 4, true),
            (125 * MB, 400 * MB, 1, false),  // what does not shrink
            (1250 * MB, 400 * MB, 4, false), // the processor would be the bottleneck
            (380 * MB, 400 * MB, 4, false),  // not worth it
        ] {
            let mut w = World::new(rate, speed, ratio);
            w.backlog = 1 << 40;
            (0..1000).for_each(|_| w.step());
            let before = w.changes;
            let packed = w.last == Some(Codec::Zstd);
            assert_eq!(packed, compressed, "{rate} {speed} {ratio}: {:?}", w.squeeze);
            (0..3000).for_each(|_| w.step());
            assert!(
                w.changes - before <= 4,
                "{rate} {speed} {ratio}: it changes its mind {} times",
                w.changes - before
            );
        }
    }

    #[test]
    fn a_sender_that_keeps_up_sends_each_batch_by_itself_and_returns_to_that_when_it_has_caught_up() {
        let mut w = World::new(125 * MB, 400 * MB, 4);
        for _ in 0..2000 {
            w.backlog += 20_000; // 20 MB/s
            w.step();
        }
        assert!(!w.squeeze.gathers);
        w.backlog += 200 << 20;
        (0..200).for_each(|_| w.step());
        assert!(w.squeeze.gathers && w.backlog > 0, "{:?}", w.squeeze);
        let mut steps = 0;
        while w.squeeze.gathers {
            w.backlog += 20_000;
            w.step();
            steps += 1;
            assert!(steps < 5000, "it never comes back: {:?}", w.squeeze);
        }
    }

    #[test]
    fn an_operators_word_counts_whatever_is_measured() {
        assert_eq!(Squeeze::new(Compress::Always).choose(0, 1), Some(Codec::Zstd));
        let mut never = World::new(12 * MB, 400 * MB, 4);
        never.squeeze = Squeeze::new(Compress::Never);
        never.backlog = 1 << 40;
        (0..1000).for_each(|_| never.step());
        assert_eq!(never.squeeze.choose(1 << 40, never.now_us), None);
    }
}
