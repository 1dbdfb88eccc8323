//! What a command line says of the link, checked.

use super::cut::{Cut, Cuts};
use super::line::{Line, Settings};

/// Queue where none is asked for, at least.
const QUEUE_BYTES_MIN: u64 = 256 << 10;
const RATE_MAX: u64 = 100_000_000_000;
const MS_MAX: f64 = 60_000.0;

#[derive(clap::Args, Debug, Clone)]
pub struct Options {
    /// Delay of either direction
    #[arg(long, default_value_t = 15.0, value_name = "MS")]
    pub each_way_ms: f64,
    /// Each packet is up to so much later, by chance; none overtakes another
    #[arg(long, default_value_t = 0.0, value_name = "MS")]
    pub jitter_ms: f64,
    /// Chance of a segment of one MTU to be lost
    #[arg(long, default_value_t = 0.0, value_name = "CHANCE")]
    pub loss: f64,
    /// Chance of a segment to have one bit of its payload flipped under a right checksum
    #[arg(long, default_value_t = 0.0, value_name = "CHANCE")]
    pub corrupt: f64,
    /// Bits a second of either direction, heads of IP included: 1gbit, 200mbit, 64kbit, or none
    #[arg(long, default_value = "1gbit", value_parser = rate)]
    pub rate: Rate,
    /// What may wait for the rate [default: what a round trip holds, at least 256]
    #[arg(long, value_name = "KIB")]
    pub queue_kib: Option<u64>,
    /// Nothing passes in this time from the start, as in 10s-40s; may be given several times
    #[arg(long, value_name = "FROM-TO")]
    pub cut: Vec<Cut>,
    /// Replays losses, jitter and flipped bits (for the same packets at the same times)
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Bits a second; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// `1gbit`, `1.5mbit`, `64kbit`, `9600bit`, `none`.
pub fn rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        return Ok(Rate(None));
    }
    let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
    let found = units.iter().find_map(|(unit, each)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * each));
    match found {
        Some(bits) if (1000.0..=RATE_MAX as f64).contains(&bits) => Ok(Rate(Some(bits as u64))),
        Some(_) | None => Err(format!("{text:?}: expected 1kbit to 100gbit, as in 200mbit, or none")),
    }
}

impl Options {
    pub fn check(&self) -> Result<(), String> {
        for (name, ms) in [("each-way-ms", self.each_way_ms), ("jitter-ms", self.jitter_ms)] {
            if !(0.0..=MS_MAX).contains(&ms) {
                return Err(format!("--{name} {ms}: expected 0 to {MS_MAX}"));
            }
        }
        for (name, chance) in [("loss", self.loss), ("corrupt", self.corrupt)] {
            if !(0.0..=1.0).contains(&chance) {
                return Err(format!("--{name} {chance}: expected 0 to 1"));
            }
        }
        Ok(())
    }

    pub fn settings(&self) -> Settings {
        let round_trip_s = self.each_way_ms * 2.0 / 1e3;
        let holds = self.rate.0.map_or(0, |bits| (bits as f64 / 8.0 * round_trip_s) as u64);
        Settings {
            rate_bits_per_s: self.rate.0,
            delay_ns: (self.each_way_ms * 1e6) as u64,
            jitter_ns: (self.jitter_ms * 1e6) as u64,
            loss: self.loss,
            corrupt: self.corrupt,
            queue_bytes: self.queue_kib.map_or(holds.max(QUEUE_BYTES_MIN), |kib| kib << 10),
        }
    }

    pub fn cuts(&self) -> Cuts {
        Cuts { scheduled: self.cut.clone(), by_hand: false }
    }

    /// Both directions, each with chances of its own.
    pub fn lines(&self) -> [Line; 2] {
        [self.seed, !self.seed].map(|seed| Line::new(self.settings(), self.cuts(), seed))
    }
}

/// Both directions of a link that only delays and limits.
pub fn plain(each_way_ms: f64, rate: Rate) -> [Line; 2] {
    let (jitter_ms, loss, corrupt, queue_kib, cut, seed) = (0.0, 0.0, 0.0, None, vec![], 1);
    Options { each_way_ms, jitter_ms, loss, corrupt, rate, queue_kib, cut, seed }.lines()
}

/// Something that is changed while the link is at work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Order {
    Cut,
    Heal,
    Counters,
    Loss(f64),
    Corrupt(f64),
    EachWayMs(f64),
    Rate(Rate),
}

impl std::str::FromStr for Order {
    type Err = String;

    fn from_str(line: &str) -> Result<Order, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = |most: f64| {
            let wrong = || format!("{line:?}: expected {word} and a number from 0 to {most}");
            rest.parse::<f64>().ok().filter(|n| (0.0..=most).contains(n)).ok_or_else(wrong)
        };
        match word {
            "cut" => Ok(Order::Cut),
            "heal" => Ok(Order::Heal),
            "counters" => Ok(Order::Counters),
            "loss" => number(1.0).map(Order::Loss),
            "corrupt" => number(1.0).map(Order::Corrupt),
            "each-way-ms" => number(MS_MAX).map(Order::EachWayMs),
            "rate" => rate(rest).map(Order::Rate),
            _ => Err(format!("{line:?}: expected cut, heal, counters, loss P, corrupt P, each-way-ms N or rate R")),
        }
    }
}

impl Order {
    /// What it changes in the settings; cuts and questions change none.
    pub fn apply(self, settings: &mut Settings) {
        match self {
            Order::Cut | Order::Heal | Order::Counters => {}
            Order::Loss(chance) => settings.loss = chance,
            Order::Corrupt(chance) => settings.corrupt = chance,
            Order::EachWayMs(ms) => settings.delay_ns = (ms * 1e6) as u64,
            Order::Rate(rate) => settings.rate_bits_per_s = rate.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_unit_and_nothing_is_guessed() {
        assert_eq!(rate("1gbit"), Ok(Rate(Some(1_000_000_000))));
        assert_eq!(rate("1.5mbit"), Ok(Rate(Some(1_500_000))));
        assert_eq!(rate("none"), Ok(Rate(None)));
        for wrong in ["", "1", "1gb", "0bit", "-1gbit", "NaNgbit", "1e9gbit", "gbit"] {
            assert!(rate(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn orders_are_read_and_what_is_none_is_refused_with_what_would_be() {
        assert_eq!("loss 0.01".parse(), Ok(Order::Loss(0.01)));
        assert_eq!("rate 10mbit".parse(), Ok(Order::Rate(Rate(Some(10_000_000)))));
        for wrong in ["", "loss", "loss 2", "each-way-ms -1", "rate", "stop"] {
            let why = wrong.parse::<Order>().expect_err(wrong);
            assert!(why.contains("expected"), "{why}");
        }
    }
}
