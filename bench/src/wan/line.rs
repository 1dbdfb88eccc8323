//! One direction of the link: packets and the time go in, packets come out when they are due.
//!
//! ```text
//!   packet ─▶ cut? ─▶ queue full? ─▶ serialised at the rate ─▶ lost? corrupted? ─▶ delay + jitter ─▶ cut? ─▶ due
//! ```
//!
//! All of it counts segments, as a wire would carry them: a super-packet of 44 segments that loses one leaves as two pieces, and
//! TCP sees one hole of one segment. Dropping the whole would be one loss of 44 in a row, which no TCP takes for what it is. A piece
//! arrives when its last byte would; so that this distorts no slow link, no piece takes longer than `PIECE_NS` to send.

use super::cut::Cuts;
use super::packet::{self, Shape};
use crate::random::Random;
use std::collections::VecDeque;

/// How long sending one piece may take at the link's rate, unless it is a single segment.
pub const PIECE_NS: u64 = 500_000;
/// Bytes of packets that one direction holds, on their way and queued; what comes beyond counts as a full queue.
pub const HELD_BYTES_MAX: usize = 256 << 20;
/// What the memory of a packet counts at least.
const HELD_BYTES_MIN: usize = 256;

/// What the link does to what it carries. Chances are those of a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Bits a second of IP packets, their heads included; `None`: as fast as it comes.
    pub rate_bits_per_s: Option<u64>,
    pub delay_ns: u64,
    /// Each packet is up to so much later, by chance, but never overtaken.
    pub jitter_ns: u64,
    pub loss: f64,
    pub corrupt: f64,
    /// What waits for the rate at once.
    pub queue_bytes: u64,
}

/// What has happened so far. Bytes are those of IP packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Put on the wire: the later loss included.
    pub sent_segments: u64,
    pub sent_bytes: u64,
    pub delivered_segments: u64,
    pub delivered_bytes: u64,
    /// Segments lost by chance, in a full queue, and in cuts.
    pub lost: u64,
    pub overflowed: u64,
    pub cut: u64,
    pub corrupted: u64,
}

/// A packet on its way.
struct Flight {
    due_ns: u64,
    segments: u64,
    wire_bytes: u64,
    packet: Vec<u8>,
}

/// One direction.
pub struct Line {
    settings: Settings,
    pub cuts: Cuts,
    random: Random,
    /// When the last byte that was taken has left.
    free_at_ns: u64,
    last_due_ns: u64,
    flights: VecDeque<Flight>,
    held_bytes: usize,
    pub counters: Counters,
}

/// Neighbouring segments that go on together.
#[derive(Clone, Copy)]
struct Run {
    from: usize,
    to: usize,
    wire_bytes: u64,
    begun_ns: u64,
    left_ns: u64,
}

impl Line {
    pub fn new(settings: Settings, cuts: Cuts, seed: u64) -> Line {
        let (flights, counters) = (VecDeque::new(), Counters::default());
        Line { settings, cuts, random: Random(seed), free_at_ns: 0, last_due_ns: 0, flights, held_bytes: 0, counters }
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// From now on; what is on its way stays as it is.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Takes a packet as the device gave it.
    pub fn on_packet(&mut self, bytes: &[u8], now_ns: u64) {
        let shape = Shape::of(bytes);
        if self.cuts.holds_at(now_ns) {
            self.counters.cut += shape.segments() as u64;
            return;
        }
        let mut run: Option<Run> = None;
        for at in 0..shape.segments() {
            let begun_ns = self.free_at_ns.max(now_ns);
            let wire_bytes = shape.wire_bytes(at) as u64;
            if !self.passes(wire_bytes, now_ns) {
                run.take().into_iter().for_each(|r| self.fly(bytes, &shape, r));
                continue;
            }
            let grown = match run.take() {
                Some(r) if self.free_at_ns - r.begun_ns <= PIECE_NS => {
                    Run { to: at + 1, wire_bytes: r.wire_bytes + wire_bytes, left_ns: self.free_at_ns, ..r }
                }
                other => {
                    other.into_iter().for_each(|r| self.fly(bytes, &shape, r));
                    Run { from: at, to: at + 1, wire_bytes, begun_ns, left_ns: self.free_at_ns }
                }
            };
            run = Some(grown);
        }
        run.into_iter().for_each(|r| self.fly(bytes, &shape, r));
    }

    /// Queues a segment, sends it, and says whether it gets through.
    fn passes(&mut self, wire_bytes: u64, now_ns: u64) -> bool {
        let begun_ns = self.free_at_ns.max(now_ns);
        let takes = |bytes: u64, rate: u64| (u128::from(bytes) * 8_000_000_000 / u128::from(rate.max(1))) as u64;
        if let Some(rate) = self.settings.rate_bits_per_s {
            // The one that is being sent waits for nothing: a queue of 0 bytes still has a wire behind it.
            if begun_ns > now_ns && begun_ns - now_ns > takes(self.settings.queue_bytes, rate) {
                self.counters.overflowed += 1;
                return false;
            }
            self.free_at_ns = begun_ns + takes(wire_bytes, rate);
        } else {
            self.free_at_ns = begun_ns;
        }
        if self.held_bytes >= HELD_BYTES_MAX {
            self.counters.overflowed += 1;
            return false;
        }
        self.counters.sent_segments += 1;
        self.counters.sent_bytes += wire_bytes;
        let lost = self.settings.loss > 0.0 && self.random.fraction() < self.settings.loss;
        self.counters.lost += u64::from(lost);
        !lost
    }

    /// Puts a run on its way.
    fn fly(&mut self, bytes: &[u8], shape: &Shape, run: Run) {
        let mut packet = packet::piece(bytes, shape, run.from, run.to);
        if self.settings.corrupt > 0.0 {
            for at in 0..run.to - run.from {
                let hit = self.random.fraction() < self.settings.corrupt;
                self.counters.corrupted += u64::from(hit && packet::flip(&mut packet, at, self.random.bits()));
            }
        }
        let late_ns = self.settings.delay_ns + self.random.below(self.settings.jitter_ns + 1);
        let due_ns = (run.left_ns + late_ns).max(self.last_due_ns);
        self.last_due_ns = due_ns;
        self.held_bytes += packet.len().max(HELD_BYTES_MIN);
        self.flights.push_back(Flight {
            due_ns,
            segments: (run.to - run.from) as u64,
            wire_bytes: run.wire_bytes,
            packet,
        });
    }

    /// The next packet that has arrived by now, and when it was due; drained until `None`.
    pub fn next(&mut self, now_ns: u64) -> Option<(u64, Vec<u8>)> {
        loop {
            self.deadline().filter(|due| *due <= now_ns)?;
            let flight = self.flights.pop_front()?;
            self.held_bytes -= flight.packet.len().max(HELD_BYTES_MIN);
            if self.cuts.holds_at(flight.due_ns) {
                self.counters.cut += flight.segments;
                continue;
            }
            self.counters.delivered_segments += flight.segments;
            self.counters.delivered_bytes += flight.wire_bytes;
            return Some((flight.due_ns, flight.packet));
        }
    }

    /// When `next` has something.
    pub fn deadline(&self) -> Option<u64> {
        self.flights.front().map(|f| f.due_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::tcp;
    use super::*;

    const MS: u64 = 1_000_000;
    const FREE: Settings = Settings {
        rate_bits_per_s: None,
        delay_ns: 15 * MS,
        jitter_ns: 0,
        loss: 0.0,
        corrupt: 0.0,
        queue_bytes: 1 << 20,
    };

    fn seeds() -> impl Iterator<Item = u64> {
        let one = std::env::var("SEED").ok().map(|s| s.parse().expect("SEED is a number"));
        one.map_or(1..21, |s| s..s + 1)
    }

    fn drained(line: &mut Line) -> Vec<(u64, Vec<u8>)> {
        std::iter::from_fn(|| line.next(u64::MAX)).collect()
    }

    #[test]
    fn a_packet_arrives_one_delay_later_and_not_before() {
        let mut line = Line::new(FREE, Cuts::default(), 1);
        line.on_packet(&tcp(b"hello", 1448), 3 * MS);
        assert_eq!(line.deadline(), Some(18 * MS));
        assert_eq!(line.next(18 * MS - 1), None);
        assert_eq!(line.next(18 * MS), Some((18 * MS, tcp(b"hello", 1448))));
        assert_eq!((line.next(u64::MAX), line.deadline(), line.held_bytes), (None, None, 0));
    }

    #[test]
    fn bytes_leave_at_the_rate_and_what_finds_the_queue_full_is_dropped() {
        // 12 Mb/s: 1,000 bytes of IP take 2/3 ms.
        let settings = Settings { rate_bits_per_s: Some(12_000_000), queue_bytes: 3000, ..FREE };
        let mut line = Line::new(settings, Cuts::default(), 1);
        for _ in 0..10 {
            line.on_packet(&tcp(&[0; 960], 1448), 0);
        }
        let due: Vec<u64> = drained(&mut line).iter().map(|(due, _)| ((due - 15 * MS) * 3 + 10) / MS).collect();
        assert_eq!(due, [2, 4, 6, 8], "in thirds of a ms");
        assert_eq!((line.counters.sent_segments, line.counters.overflowed), (4, 6));
    }

    #[test]
    fn a_slow_link_hands_a_super_packet_over_segment_by_segment_and_a_wide_one_whole() {
        for (rate, pieces) in [(10_000_000, 10), (10_000_000_000, 1)] {
            let settings = Settings { rate_bits_per_s: Some(rate), ..FREE };
            let mut line = Line::new(settings, Cuts::default(), 1);
            line.on_packet(&tcp(&[3; 14_000], 1400), 0);
            assert_eq!(drained(&mut line).len(), pieces);
            assert_eq!(line.counters.delivered_bytes, 14_000 + 10 * 40);
        }
    }

    #[test]
    fn losses_are_single_segments_as_often_as_the_chance_says() {
        for seed in seeds() {
            let mut line = Line::new(Settings { loss: 0.01, ..FREE }, Cuts::default(), seed);
            let mut payload = 0;
            for i in 0..1000 {
                line.on_packet(&tcp(&[9; 60_000], 1500), i * MS);
                payload += drained(&mut line).iter().map(|(_, p)| p.len() - 50).sum::<usize>();
            }
            let off = (line.counters.lost as f64 - 400.0) / 396f64.sqrt();
            assert!(off.abs() < 5.0, "SEED={seed}: {} of 40,000 lost, expected about 400", line.counters.lost);
            assert_eq!(payload, 60_000_000 - 1500 * line.counters.lost as usize, "SEED={seed}");
            assert_eq!(line.counters.delivered_segments + line.counters.lost, 40_000, "SEED={seed}");
        }
    }

    #[test]
    fn corrupted_segments_are_as_many_as_the_chance_says_and_one_bit_each() {
        for seed in seeds() {
            let mut line = Line::new(Settings { corrupt: 0.01, ..FREE }, Cuts::default(), seed);
            let mut bits = 0;
            for i in 0..1000 {
                line.on_packet(&tcp(&[0; 30_000], 1500), i * MS);
                let count = |p: &[u8]| p[50..].iter().map(|b| u64::from(b.count_ones())).sum::<u64>();
                bits += drained(&mut line).iter().map(|(_, p)| count(p)).sum::<u64>();
            }
            assert_eq!(bits, line.counters.corrupted, "SEED={seed}");
            assert!((100..320).contains(&bits), "SEED={seed}: {bits} of 20,000, expected about 200");
        }
    }

    #[test]
    fn jitter_delays_and_never_reorders_and_a_seed_replays() {
        let run = |seed| {
            let mut line = Line::new(Settings { jitter_ns: 5 * MS, ..FREE }, Cuts::default(), seed);
            for i in 0..500u64 {
                line.on_packet(&tcp(&i.to_be_bytes(), 1448), i * MS / 4);
            }
            drained(&mut line)
        };
        for seed in seeds() {
            let all = run(seed);
            for (i, (due, packet)) in all.iter().enumerate() {
                assert_eq!(packet[50..], (i as u64).to_be_bytes(), "SEED={seed}");
                let late = due - i as u64 * MS / 4;
                assert!((15 * MS..=20 * MS).contains(&late), "SEED={seed}: {late} ns");
            }
            assert_eq!(all, run(seed), "SEED={seed}");
        }
    }

    #[test]
    fn a_cut_takes_what_enters_and_what_would_arrive_in_it() {
        let cuts = Cuts { scheduled: vec!["100ms-200ms".parse().unwrap()], by_hand: false };
        let mut line = Line::new(FREE, cuts, 1);
        for at in [84, 86, 99, 100, 199, 200] {
            line.on_packet(&tcp(&[at as u8], 1448), at * MS);
        }
        let came: Vec<u8> = drained(&mut line).iter().map(|(_, p)| p[50]).collect();
        assert_eq!((came, line.counters.cut), (vec![84, 200], 4));
    }

    #[test]
    fn memory_is_bounded_however_much_comes() {
        let mut line = Line::new(Settings { delay_ns: 60_000 * MS, ..FREE }, Cuts::default(), 1);
        for _ in 0..5000 {
            line.on_packet(&tcp(&[0; 60_000], 1448), 0);
        }
        assert!(line.held_bytes < HELD_BYTES_MAX + (64 << 10), "{}", line.held_bytes);
        assert!(line.counters.overflowed > 0);
    }
}
