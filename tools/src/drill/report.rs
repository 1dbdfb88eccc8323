//! What a drill did, what it found and how long things took: as text, Markdown and JSON.

use super::which::Which;
use dataplane::sandbox::proof::Proof;
use dataplane::sandbox::tally::Tally;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{fs, io};

/// How a drill ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Passed,
    Failed,
    /// This host cannot run it.
    NotRun,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::NotRun => "NOT RUN",
        }
    }
}

/// Something that was done or seen.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Milliseconds after the load began.
    pub at_ms: u64,
    pub what: String,
}

/// Something that has to hold.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub what: String,
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

/// The orders of a drill.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Orders {
    pub sent: u64,
    pub acknowledged: u64,
    pub lost: u64,
    pub doubled: u64,
    pub unasked: u64,
    pub failed: u64,
    pub failed_in_outage: u64,
    pub unanswered: u64,
    /// Outside of outages, from the time an order was due; entered where its shard was served ..
    pub own_zone_ms: Spread,
    /// .. and elsewhere.
    pub other_zone_ms: Spread,
}

/// Median, 99th percentile and the longest, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// Of microseconds.
    pub fn of(us: &hdrhistogram::Histogram<u64>) -> Spread {
        let ms = |us: u64| us as f64 / 1000.0;
        Spread { p50: ms(us.value_at_quantile(0.5)), p99: ms(us.value_at_quantile(0.99)), max: ms(us.max()) }
    }
}

impl Orders {
    pub fn of(tally: &Tally, proof: &Proof) -> Orders {
        Orders {
            sent: tally.sent,
            acknowledged: tally.acknowledged,
            lost: proof.lost as u64,
            doubled: proof.doubled as u64,
            unasked: (proof.unasked + proof.refused_present) as u64,
            failed: tally.failed,
            failed_in_outage: tally.failed_in_outage,
            unanswered: tally.unanswered,
            own_zone_ms: Spread::of(&tally.own_us),
            other_zone_ms: Spread::of(&tally.cross_us),
        }
    }
}

/// A drill's report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub drill: &'static str,
    pub about: &'static str,
    pub verdict: Verdict,
    /// Why it failed or was not run.
    pub why: Vec<String>,
    pub zones: usize,
    pub orders_per_s: u32,
    /// One way of the sandbox's WAN; none: on a running system.
    pub each_way_ms: Option<u32>,
    /// Everything, from the preflight to the end of the restoring.
    pub took_ms: u64,
    pub steps: Vec<Step>,
    pub checks: Vec<Check>,
    pub orders: Orders,
    /// Times in milliseconds, and counts, as they are named.
    pub figures: BTreeMap<String, f64>,
    /// What the drill does not cover.
    pub notes: Vec<String>,
    /// The sandbox is as it was before.
    pub restored: bool,
}

impl Report {
    /// Of a drill that has not begun: failed, until it is known to have passed.
    pub fn new(which: Which, zones: usize, orders_per_s: u32, each_way_ms: Option<u32>) -> Report {
        Report {
            drill: which.name(),
            about: which.about(),
            verdict: Verdict::Failed,
            why: vec![],
            zones,
            orders_per_s,
            each_way_ms,
            took_ms: 0,
            steps: vec![],
            checks: vec![],
            orders: Orders::default(),
            figures: BTreeMap::new(),
            notes: vec![],
            restored: false,
        }
    }

    /// A few lines for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            let _ = writeln!(text, "  {:>6.2}s  {}", step.at_ms as f64 / 1000.0, step.what);
        }
        for check in &self.checks {
            let _ = writeln!(text, "  {}  {}: {}", if check.holds { "ok  " } else { "FAIL" }, check.what, check.seen);
        }
        self.notes.iter().for_each(|n| text += &format!("  note  {n}\n"));
        self.why.iter().for_each(|w| text += &format!("  {}  {w}\n", self.verdict.word()));
        let _ = writeln!(text, "{}: {} after {:.1} s\n", self.drill, self.verdict.word(), self.took_ms as f64 / 1000.0);
        text
    }

    /// For people who were not there.
    pub fn markdown(&self) -> String {
        let mut text = format!("# Drill {}: {}\n\n{}\n\n", self.drill, self.verdict.word(), self.about);
        let _ = writeln!(
            text,
            "{} zones, {}, {} orders/s; {:.1} s in all.\n",
            self.zones,
            self.each_way_ms.map_or("on the running system".into(), |ms| format!("{ms} ms each way")),
            self.orders_per_s,
            self.took_ms as f64 / 1000.0
        );
        self.why.iter().for_each(|w| text += &format!("**{}**: {w}\n\n", self.verdict.word()));
        self.notes.iter().for_each(|n| text += &format!("Not covered: {n}\n\n"));
        if !self.steps.is_empty() {
            text += "## What happened\n\n| s | |\n|---:|---|\n";
            self.steps
                .iter()
                .for_each(|s| text += &format!("| {:.2} | {} |\n", s.at_ms as f64 / 1000.0, cell(&s.what)));
        }
        if !self.checks.is_empty() {
            text += "\n## What has to hold\n\n| | | seen |\n|---|---|---|\n";
            let word = |c: &Check| if c.holds { "ok" } else { "**FAIL**" };
            self.checks
                .iter()
                .for_each(|c| text += &format!("| {} | {} | {} |\n", word(c), cell(&c.what), cell(&c.seen)));
        }
        let o = &self.orders;
        text += "\n## Orders\n\n| sent | acknowledged | lost | doubled | unasked | failed | failed in the outage | unanswered |\n";
        text += "|---:|---:|---:|---:|---:|---:|---:|---:|\n";
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            o.sent, o.acknowledged, o.lost, o.doubled, o.unasked, o.failed, o.failed_in_outage, o.unanswered
        );
        text += "## Times (reported, not judged)\n\n| ms | p50 | p99 | longest |\n|---|---:|---:|---:|\n";
        for (name, s) in [("order, own zone", o.own_zone_ms), ("order, other zone", o.other_zone_ms)] {
            let _ = writeln!(text, "| {name} | {:.2} | {:.2} | {:.2} |", s.p50, s.p99, s.max);
        }
        if !self.figures.is_empty() {
            text += "\n| | |\n|---|---:|\n";
            self.figures
                .iter()
                .for_each(|(name, value)| text += &format!("| {} | {value:.1} |\n", name.replace('_', " ")));
        }
        text
    }

    /// Both forms into a directory.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(format!("{}.md", self.drill)), self.markdown())?;
        let json = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
        fs::write(dir.join(format!("{}.json", self.drill)), json + "\n")
    }
}

/// A cell of a table holds no line's end and no bar.
fn cell(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}

/// All at a glance.
pub fn table(reports: &[Report]) -> String {
    let width = reports.iter().map(|r| r.drill.len()).max().unwrap_or(0).max("drill".len());
    let mut text = format!(
        "{:<width$}  {:<8} {:>7} {:>7} {:>5} {:>7} {:>7} {:>9} {:>6}\n",
        "drill", "", "s", "orders", "lost", "doubled", "failed", "in outage", "p99 ms"
    );
    for r in reports {
        let o = &r.orders;
        let _ = writeln!(
            text,
            "{:<width$}  {:<8} {:>7.1} {:>7} {:>5} {:>7} {:>7} {:>9} {:>6.1}",
            r.drill,
            r.verdict.word(),
            r.took_ms as f64 / 1000.0,
            o.acknowledged,
            o.lost,
            o.doubled,
            o.failed,
            o.failed_in_outage,
            o.own_zone_ms.p99
        );
    }
    let of = |v: Verdict| reports.iter().filter(|r| r.verdict == v).count();
    let took: u64 = reports.iter().map(|r| r.took_ms).sum();
    let _ = writeln!(
        text,
        "{} passed, {} failed, {} not run; {:.0} s in all",
        of(Verdict::Passed),
        of(Verdict::Failed),
        of(Verdict::NotRun),
        took as f64 / 1000.0
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_failed_in_every_form() {
        let report = Report {
            drill: "wan-cut",
            about: "The lines are cut.",
            verdict: Verdict::Failed,
            why: vec!["2 orders are lost".into()],
            zones: 2,
            orders_per_s: 200,
            each_way_ms: Some(15),
            took_ms: 1500,
            steps: vec![Step { at_ms: 250, what: "cut | now".into() }],
            checks: vec![Check { what: "no order is lost".into(), holds: false, seen: "2: a-1,\na-2".into() }],
            orders: Orders { lost: 2, ..Orders::default() },
            figures: [("catch_up_ms".to_owned(), 12.3)].into(),
            notes: vec!["a second storage node".into()],
            restored: true,
        };
        let (text, markdown) = (report.text(), report.markdown());
        assert!(text.contains("FAIL  no order is lost") && text.ends_with("wan-cut: FAILED after 1.5 s\n\n"), "{text}");
        assert!(markdown.contains("| **FAIL** | no order is lost | 2: a-1, a-2 |\n"), "{markdown}");
        assert!(
            markdown.contains("| 0.25 | cut / now |\n") && markdown.contains("| catch up ms | 12.3 |"),
            "{markdown}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["verdict"], &json["orders"]["lost"]), (&"failed".into(), &2.into()));
        assert!(table(&[report]).ends_with("0 passed, 1 failed, 0 not run; 2 s in all\n"));
    }
}
