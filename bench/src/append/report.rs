//! Says what was measured, to people and to programs.

use super::Args;
use super::figures::{Figures, What, Who};
use super::targets;
use crate::compare::Target;
use crate::compare::figures::Spread;
use crate::compare::{load_average, shown, shown_ratio, spread};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One run.
pub struct Report {
    pub figures: Figures,
    /// What was not measured, and why.
    pub absent: Vec<String>,
    /// Of each program beside ours.
    pub versions: BTreeMap<&'static str, String>,
    /// What has to be known to read the figures.
    pub notes: Vec<String>,
    rounds: usize,
    tiny: bool,
    load_average: [String; 2],
}

impl Report {
    pub fn new(args: &Args) -> Report {
        Report {
            figures: Figures::default(),
            absent: vec![],
            versions: BTreeMap::new(),
            notes: vec![],
            rounds: args.rounds(),
            tiny: args.tiny,
            load_average: [load_average(), String::new()],
        }
    }

    pub fn done(&mut self) {
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
        println!("{} rounds; load average {before} before, {after} after", self.rounds);
        if self.tiny {
            println!("tiny: shows that everything runs; the figures mean nothing");
        }
        self.notes.iter().for_each(|note| println!("{note}"));
        self.figures.whats().into_iter().for_each(|what| self.table(what));
        println!("\n| target | limit | seen (middle half) | |\n|---|---|---|---|");
        for t in targets::all(&self.figures) {
            let sign = if t.at_least { ">=" } else { "<=" };
            println!("| {} | {sign} {} | {} | {} |", t.name, shown(t.limit), seen(t.seen), self.verdict(&t));
        }
    }

    fn verdict(&self, target: &Target) -> &'static str {
        match (self.tiny, target.met()) {
            (_, None) => "NOT MEASURED",
            (true, Some(_)) => "-",
            (false, Some(true)) => "met",
            (false, Some(false)) => "**missed**",
        }
    }

    fn table(&self, what: What) {
        let (_, title, unit) = what.words();
        println!("\n| {title} | median (middle half) | to fio | ours to it |\n|---|---|---|---|");
        for who in Who::ALL {
            let Some(s) = self.figures.of(what, who) else { continue };
            let to = |a, b| if a == b { "-".into() } else { shown_ratio(self.figures.ratio(what, a, b)) };
            let [median, q25, q75] = [s.median, s.q25, s.q75].map(|v| shown(v / unit));
            println!("| {} | {median} ({q25}..{q75}) | {} | {} |", who.name(), to(who, Who::Fio), to(Who::Ours, who));
        }
        if let Some(noise) = self.figures.noise(what) {
            println!("\nA/A: {}, noise {:.1} %", shown_ratio(Some(noise)), 100.0 * noise.off_one());
        }
    }

    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        for what in self.figures.whats() {
            let mut one = Map::new();
            for who in Who::ALL {
                let Some(seen) = self.figures.of(what, who) else { continue };
                let to = |other| self.figures.ratio(what, Who::Ours, other).filter(|_| other != Who::Ours);
                let value = json!({ "seen": spread(&seen), "ours_to_it": to(who).map(|s| spread(&s)) });
                one.insert(who.name().into(), value);
            }
            if let Some(noise) = self.figures.noise(what) {
                one.insert("a_a_spread".into(), spread(&noise));
            }
            all.insert(what.words().0, Value::Object(one));
        }
        json!({
            "figures": all,
            "targets": targets::all(&self.figures).iter().map(Target::to_json).collect::<Vec<_>>(),
            "versions": self.versions,
            "not_run": self.absent,
            "notes": self.notes,
            "rounds": self.rounds,
            "tiny": self.tiny,
            "load_average": self.load_average,
        })
    }
}

/// A ratio with three digits, a large number without.
fn seen(spread: Option<Spread>) -> String {
    match spread {
        Some(s) if s.median >= 100.0 => format!("{} ({}..{})", shown(s.median), shown(s.q25), shown(s.q75)),
        other => shown_ratio(other),
    }
}
