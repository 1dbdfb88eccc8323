//! Says what was measured, to people and to programs.

use super::figures::{Figures, Spread, What, Who};
use super::loads::Rates;
use super::rig::Rig;
use super::ship::Shipped;
use super::swap::Swapped;
use super::{Router, peers, targets};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;

/// One run.
pub struct Report {
    pub figures: Figures,
    pub errors: Vec<String>,
    /// Of the fixed-rate phase.
    pub rates: Rates,
    pub swapped: Option<Swapped>,
    /// With the log on another core, and on the same.
    pub shipped: [Option<Shipped>; 2],
    rounds: usize,
    seconds: f64,
    tiny: bool,
    /// What was not run, and why.
    pub absent: Vec<String>,
    versions: BTreeMap<&'static str, String>,
    logged: BTreeMap<Who, (u64, u64)>,
    load_average: [String; 2],
}

impl Report {
    pub fn new(args: &Router, who: &[Who], absent: Vec<String>) -> Report {
        let peers = who.iter().filter(|w| matches!(w, Who::Ours | Who::Nginx | Who::Haproxy));
        Report {
            figures: Figures::default(),
            errors: vec![],
            rates: Rates::new(),
            swapped: None,
            shipped: [None; 2],
            rounds: args.rounds(),
            seconds: args.seconds(),
            tiny: args.tiny,
            absent,
            versions: peers.map(|w| (w.name(), peers::version(*w, &args.ours))).collect(),
            logged: BTreeMap::new(),
            load_average: [load_average(), String::new()],
        }
    }

    /// What the rig has seen.
    pub fn take(&mut self, rig: Rig) {
        (self.errors, self.logged) = (rig.errors, rig.logged);
        self.load_average[1] = load_average();
    }

    pub fn print(&self) {
        for (who, version) in &self.versions {
            println!("{who}: {version}");
        }
        for why in &self.absent {
            println!("NOT RUN: {why}");
        }
        let [before, after] = &self.load_average;
        println!("{} rounds of {} s; load average {before} before, {after} after", self.rounds, self.seconds);
        if self.tiny {
            println!("tiny: shows that everything runs; the figures mean nothing");
        }
        for (at, rate) in &self.rates {
            println!("fixed rate at {at} connections: {rate} requests/s, half of nginx's maximum");
        }
        if let Some(s) = &self.swapped {
            println!(
                "maps: {} fences and {} placed ids, {} bytes, one every {} ms at {} requests/s; {} published while \
                 measured, {} taken by the router",
                s.fences, s.shops, s.map_bytes, s.every_ms, s.rate, s.published, s.taken
            );
        }
        for (s, place) in self.shipped.iter().zip(["another core", "the router's core"]) {
            let Some(s) = s else { continue };
            println!(
                "log on {place}: {:.0} records/s of 1 KiB durable, {:.0} records/s durable in the other zone, beside \
                 {} requests/s",
                s.written as f64 / s.seconds,
                s.mirrored as f64 / s.seconds,
                s.rate
            );
        }
        for (who, (lines, answers)) in &self.logged {
            println!("access log of {}: {:.2} % of requests", who.name(), 100.0 * *lines as f64 / *answers as f64);
        }
        What::ALL.iter().for_each(|what| self.table(*what));
        println!("\n| target | limit | seen (middle half) | met |\n|---|---|---|---|");
        for t in targets::all(&self.figures) {
            let (sign, seen) = (if t.at_least { ">=" } else { "<=" }, shown_ratio(t.seen));
            println!("| {} | {sign} {:.2} | {seen} | {} |", t.name, t.limit, self.verdict(t.met()));
        }
        self.errors.iter().for_each(|e| println!("\nERRORS {e}"));
    }

    fn verdict(&self, met: Option<bool>) -> &'static str {
        match (self.tiny, met) {
            (_, None) => "NOT MEASURED",
            (true, Some(_)) => "-",
            (false, Some(true)) => "yes",
            (false, Some(false)) => "**no**",
        }
    }

    fn table(&self, what: What) {
        let unit = if what == What::BytesPerCpuS { 1e6 } else { 1.0 };
        for at in self.figures.places(what) {
            println!("\n| {} at {at} | median (middle half) | to nginx | to ours |\n|---|---|---|---|", what.title());
            for who in Who::ALL {
                let Some(s) = self.figures.of(what, at, who) else { continue };
                let to = |other| shown_ratio(self.figures.ratio(what, at, who, other));
                let [median, q25, q75] = [s.median, s.q25, s.q75].map(|v| shown(v / unit));
                println!("| {} | {median} ({q25}..{q75}) | {} | {} |", who.name(), to(Who::Nginx), to(Who::Ours));
            }
            if let Some(noise) = self.figures.noise(what, at) {
                println!("\nA/A: {}, noise {:.1} %", shown_ratio(Some(noise)), 100.0 * noise.off_one());
            }
        }
    }

    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        for what in What::ALL.into_iter().filter(|w| !self.figures.places(*w).is_empty()) {
            all.insert(
                what.key().into(),
                self.by_who(what, |at, who| Some(json!(self.figures.of(what, at, who)?.median))),
            );
        }
        let spread_of = |what, to| {
            self.by_who(what, |at, who| {
                if who == to { None } else { Some(targets::spread(&self.figures.ratio(what, at, who, to)?)) }
            })
        };
        let mut ratios = Map::new();
        let mut noise = Map::new();
        for what in What::ALL {
            let places = self.figures.places(what);
            if places.is_empty() {
                continue;
            }
            ratios.insert(
                what.key().into(),
                json!({ "to_nginx": spread_of(what, Who::Nginx), "to_ours": spread_of(what, Who::Ours) }),
            );
            let one = |at: &u64| Some((at.to_string(), targets::spread(&self.figures.noise(what, *at)?)));
            noise.insert(what.key().into(), Value::Object(places.iter().filter_map(one).collect()));
        }
        let logged =
            self.logged.iter().map(|(w, (lines, all))| (w.name().to_owned(), json!(*lines as f64 / *all as f64)));
        all.extend([
            ("ratios".to_owned(), Value::Object(ratios)),
            ("a_a_spread".to_owned(), Value::Object(noise)),
            ("targets".to_owned(), targets::all(&self.figures).iter().map(targets::Target::to_json).collect()),
            (
                "rate_per_s".to_owned(),
                self.rates.iter().map(|(n, r)| (n.to_string(), json!(r))).collect::<Map<_, _>>().into(),
            ),
            ("logged_share".to_owned(), Value::Object(logged.collect())),
            ("versions".to_owned(), json!(self.versions)),
            ("not_run".to_owned(), json!(self.absent)),
            ("errors".to_owned(), json!(self.errors)),
            ("rounds".to_owned(), json!(self.rounds)),
            ("seconds".to_owned(), json!(self.seconds)),
            ("tiny".to_owned(), json!(self.tiny)),
            ("load_average".to_owned(), json!(self.load_average)),
        ]);
        if let Some(s) = &self.swapped {
            let value = json!({ "fences": s.fences, "placed_ids": s.shops, "map_bytes": s.map_bytes,
                "every_ms": s.every_ms, "rate_per_s": s.rate, "published": s.published, "taken": s.taken });
            all.insert("swapped".into(), value);
        }
        for (s, name) in self.shipped.iter().zip(["shipped_split", "shipped_shared"]) {
            let Some(s) = s else { continue };
            let value = json!({ "written_per_s": s.written as f64 / s.seconds,
                "mirrored_per_s": s.mirrored as f64 / s.seconds, "rate_per_s": s.rate });
            all.insert(name.into(), value);
        }
        Value::Object(all)
    }

    /// `{ who: { at: value } }`.
    fn by_who(&self, what: What, value: impl Fn(u64, Who) -> Option<Value>) -> Value {
        let places = self.figures.places(what);
        let of = |who: Who| -> Map<String, Value> {
            places.iter().filter_map(|at| Some((at.to_string(), value(*at, who)?))).collect()
        };
        let all = Who::ALL.into_iter().map(|who| (who.name().to_owned(), of(who))).filter(|(_, m)| !m.is_empty());
        Value::Object(all.map(|(name, m)| (name, Value::Object(m))).collect())
    }
}

/// A number with as many digits as say something.
pub fn shown(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A ratio and its middle half.
pub fn shown_ratio(ratio: Option<Spread>) -> String {
    ratio.map_or("-".into(), |s| format!("{:.3} ({:.3}..{:.3})", s.median, s.q25, s.q75))
}

/// Of the last minute.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
