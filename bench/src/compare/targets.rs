//! What the router is to reach beside its peers, and whether it did.

use super::figures::{Figures, Spread, What, Who};
use serde_json::{Value, json};

/// How much more p99 may be while maps are swapped, beyond the noise.
const SWAP_MORE: f64 = 0.05;

/// One promise.
pub struct Target {
    pub name: String,
    pub limit: f64,
    /// The ratio must not be below the limit, instead of not above it.
    pub at_least: bool,
    /// `None`: not measured.
    pub seen: Option<Spread>,
}

impl Target {
    pub fn met(&self) -> Option<bool> {
        let seen = self.seen?.median;
        Some(if self.at_least { seen >= self.limit } else { seen <= self.limit })
    }

    pub fn to_json(&self) -> Value {
        json!({ "name": self.name, "limit": self.limit, "at_least": self.at_least, "met": self.met(),
            "seen": self.seen.map(|s| spread(&s)) })
    }
}

pub fn spread(s: &Spread) -> Value {
    json!({ "median": s.median, "q25": s.q25, "q75": s.q75, "low": s.low, "high": s.high })
}

/// All of them, measured or not.
pub fn all(figures: &Figures) -> Vec<Target> {
    let ratio = |what, at, to| figures.ratio(what, at, Who::Ours, to);
    let mut targets = vec![];
    let mut put = |name: String, limit, at_least, seen| targets.push(Target { name, limit, at_least, seen });
    for (to, at, limit) in
        [(Who::Nginx, 64, 0.80), (Who::Haproxy, 64, 0.75), (Who::Nginx, 8, 0.87), (Who::Nginx, 512, 0.62)]
    {
        let name = format!("CPU per request at {at} connections, ours to {}", to.name());
        put(name, limit, false, ratio(What::CpuUs, at, to));
    }
    let places = match figures.places(What::P99Us) {
        all if all.is_empty() => vec![64],
        all => all,
    };
    for (what, at) in places.iter().flat_map(|at| [(What::P99Us, *at), (What::P999Us, *at)]) {
        let limit = 1.0 + figures.noise(what, at).map_or(0.0, |n| n.off_one());
        put(format!("{} at {at} connections, ours to nginx", what.title()), limit, false, ratio(what, at, Who::Nginx));
    }
    for (name, at) in [("64 KiB", 64 << 10), ("1 MiB", 1 << 20)] {
        let name = format!("bytes per CPU second, bodies of {name}, ours to nginx");
        put(name, 1.0, true, ratio(What::BytesPerCpuS, at, Who::Nginx));
    }
    let limit = 1.0 + SWAP_MORE + figures.noise(What::SwapP99Us, 64).map_or(0.0, |n| n.off_one());
    let seen = figures.ratio(What::SwapP99Us, 64, Who::OursDisturbed, Who::Ours);
    put("p99 at a fixed rate while maps are swapped, to p99 while not".into(), limit, false, seen);
    for (what, limit) in
        [(What::SplitCpuUs, 1.2), (What::SplitOwnP99Us, 1.2), (What::SharedCpuUs, 2.0), (What::SharedOwnP99Us, 2.0)]
    {
        let seen = figures.ratio(what, 64, Who::OursDisturbed, Who::Ours);
        put(format!("{}, shipping at full speed to idle", what.title()), limit, false, seen);
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let mut figures = Figures::default();
        for round in 0..3 {
            figures.put(What::CpuUs, 64, Who::Ours, round, 7.0);
            figures.put(What::CpuUs, 64, Who::Nginx, round, 10.0);
            figures.put(What::BytesPerCpuS, 1 << 20, Who::Ours, round, 1.0);
            figures.put(What::BytesPerCpuS, 1 << 20, Who::Nginx, round, 2.0);
            // Nginx differs from itself by 10 %, and ours by as much from nginx: no more than noise.
            for (who, value) in [(Who::Nginx, 100.0), (Who::NginxAgain, 110.0), (Who::Ours, 110.0)] {
                figures.put(What::P99Us, 64, who, round, value);
            }
        }
        let all = all(&figures);
        let met = |name: &str| all.iter().find(|t| t.name.starts_with(name)).unwrap().met();
        assert_eq!(met("CPU per request at 64 connections, ours to nginx"), Some(true));
        assert_eq!(met("CPU per request at 64 connections, ours to haproxy"), None);
        assert_eq!(met("bytes per CPU second, bodies of 1 MiB"), Some(false));
        assert_eq!(met("p99 us, fixed rate at 64"), Some(true));
    }
}
