//! What the rounds measured, and what can be said of it: medians, and ratios that are taken within a round.

use std::collections::BTreeMap;

/// Who is measured. Each proxy is measured twice a round where it can be: the two differ by nothing but noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Ours,
    OursAgain,
    Nginx,
    NginxAgain,
    Haproxy,
    /// Ours, while something else goes on: a map a second, or a log at full speed.
    OursDisturbed,
}

impl Who {
    pub const ALL: [Who; 6] =
        [Who::Ours, Who::OursAgain, Who::Nginx, Who::NginxAgain, Who::Haproxy, Who::OursDisturbed];

    pub fn name(self) -> &'static str {
        match self {
            Who::Ours => "ours",
            Who::OursAgain => "ours again",
            Who::Nginx => "nginx",
            Who::NginxAgain => "nginx again",
            Who::Haproxy => "haproxy",
            Who::OursDisturbed => "ours disturbed",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    CpuUs,
    PerS,
    /// Of a closed loop: from sent to whole answer.
    ServiceP99Us,
    P50Us,
    P99Us,
    P999Us,
    BytesPerCpuS,
    /// With maps swapped, or not, at the same rate.
    SwapP50Us,
    SwapP99Us,
    SwapP999Us,
    /// With the log shipping or not, on another core.
    SplitCpuUs,
    SplitOwnP99Us,
    /// The same on one core.
    SharedCpuUs,
    SharedOwnP99Us,
}

impl What {
    pub const ALL: [What; 14] = [
        What::CpuUs,
        What::PerS,
        What::ServiceP99Us,
        What::P50Us,
        What::P99Us,
        What::P999Us,
        What::BytesPerCpuS,
        What::SwapP50Us,
        What::SwapP99Us,
        What::SwapP999Us,
        What::SplitCpuUs,
        What::SplitOwnP99Us,
        What::SharedCpuUs,
        What::SharedOwnP99Us,
    ];

    /// As it is called in JSON.
    pub fn key(self) -> &'static str {
        match self {
            What::CpuUs => "cpu_us_per_request",
            What::PerS => "requests_per_s",
            What::ServiceP99Us => "closed_loop_p99_us",
            What::P50Us => "p50_us",
            What::P99Us => "p99_us",
            What::P999Us => "p999_us",
            What::BytesPerCpuS => "bytes_per_cpu_s",
            What::SwapP50Us => "swap_p50_us",
            What::SwapP99Us => "swap_p99_us",
            What::SwapP999Us => "swap_p999_us",
            What::SplitCpuUs => "log_split_cpu_us_per_request",
            What::SplitOwnP99Us => "log_split_own_p99_us",
            What::SharedCpuUs => "log_shared_cpu_us_per_request",
            What::SharedOwnP99Us => "log_shared_own_p99_us",
        }
    }

    /// As it is called in a table.
    pub fn title(self) -> &'static str {
        match self {
            What::CpuUs => "CPU us / request",
            What::PerS => "requests/s",
            What::ServiceP99Us => "p99 us, closed loop",
            What::P50Us => "p50 us, fixed rate",
            What::P99Us => "p99 us, fixed rate",
            What::P999Us => "p99.9 us, fixed rate",
            What::BytesPerCpuS => "MB / CPU second",
            What::SwapP50Us => "p50 us, maps swapped",
            What::SwapP99Us => "p99 us, maps swapped",
            What::SwapP999Us => "p99.9 us, maps swapped",
            What::SplitCpuUs => "CPU us / request, log on another core",
            What::SplitOwnP99Us => "own p99 us, log on another core",
            What::SharedCpuUs => "CPU us / request, log on the same core",
            What::SharedOwnP99Us => "own p99 us, log on the same core",
        }
    }
}

/// A figure's place: what, at how many connections or bytes, of whom.
type Key = (What, u64, Who);

/// Values by place and round. A round in which a place was not measured has none.
#[derive(Debug, Default)]
pub struct Figures {
    rows: BTreeMap<Key, BTreeMap<usize, f64>>,
}

/// The spread of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub q25: f64,
    pub q75: f64,
    pub high: f64,
}

impl Figures {
    pub fn put(&mut self, what: What, at: u64, who: Who, round: usize, value: f64) {
        self.rows.entry((what, at, who)).or_default().insert(round, value);
    }

    /// Every `at` of `what`, in order.
    pub fn places(&self, what: What) -> Vec<u64> {
        let mut all: Vec<u64> = self.rows.keys().filter(|k| k.0 == what).map(|k| k.1).collect();
        all.dedup();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn of(&self, what: What, at: u64, who: Who) -> Option<Spread> {
        Spread::of(self.rows.get(&(what, at, who))?.values().copied().collect())
    }

    /// `who` to `to`, each ratio of one round.
    pub fn ratios(&self, what: What, at: u64, who: Who, to: Who) -> Vec<f64> {
        let (Some(these), Some(those)) = (self.rows.get(&(what, at, who)), self.rows.get(&(what, at, to))) else {
            return vec![];
        };
        these.iter().filter_map(|(round, v)| Some(v / those.get(round)?)).filter(|r| r.is_finite()).collect()
    }

    pub fn ratio(&self, what: What, at: u64, who: Who, to: Who) -> Option<Spread> {
        Spread::of(self.ratios(what, at, who, to))
    }

    /// The A/A spread: what a proxy differs from itself, as ratios of both pairs that ran twice.
    pub fn noise(&self, what: What, at: u64) -> Option<Spread> {
        let mut all = self.ratios(what, at, Who::OursAgain, Who::Ours);
        all.extend(self.ratios(what, at, Who::NginxAgain, Who::Nginx));
        Spread::of(all)
    }
}

impl Spread {
    /// `None` of no values.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let at = |q: f64| {
            let place = q * (values.len() - 1) as f64;
            let (below, part) = (place as usize, place.fract());
            let above = values[(below + 1).min(values.len() - 1)];
            values[below] + (above - values[below]) * part
        };
        Some(Spread { median: at(0.5), low, q25: at(0.25), q75: at(0.75), high })
    }

    /// How far from 1 the middle half of some ratios lies: 0.03 means 3 %.
    pub fn off_one(&self) -> f64 {
        (self.q75 - 1.0).abs().max((1.0 - self.q25).abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_median_and_quartiles_of_its_values() {
        let spread = |v: &[f64]| Spread::of(v.to_vec()).unwrap();
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, q25: 1.5, q75: 2.5, high: 3.0 });
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(spread(&[7.0]), Spread { median: 7.0, low: 7.0, q25: 7.0, q75: 7.0, high: 7.0 });
        assert_eq!(Spread::of(vec![]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_noise_is_a_proxy_beside_itself() {
        let mut figures = Figures::default();
        // The machine is twice as slow in round 1: the ratios do not see it.
        for (round, slow) in [(0, 1.0), (1, 2.0), (2, 1.0)] {
            figures.put(What::CpuUs, 64, Who::Nginx, round, 20.0 * slow);
            figures.put(What::CpuUs, 64, Who::NginxAgain, round, 21.0 * slow);
            figures.put(What::CpuUs, 64, Who::Ours, round, 15.0 * slow);
        }
        figures.put(What::CpuUs, 64, Who::Ours, 3, 99.0); // the others failed in round 3
        let ratio = figures.ratio(What::CpuUs, 64, Who::Ours, Who::Nginx).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (0.75, 0.75, 0.75));
        assert!((figures.noise(What::CpuUs, 64).unwrap().off_one() - 0.05).abs() < 1e-9);
        assert_eq!(figures.ratio(What::CpuUs, 8, Who::Ours, Who::Nginx), None);
        assert_eq!(figures.places(What::CpuUs), [64]);
    }
}
