//! A page of figures in the text format that Prometheus reads (version 0.0.4).
//!
//! Names follow its conventions: base units (seconds, bytes), `_total` for what only rises. A time is given in microseconds
//! and written in seconds.

use crate::router::histogram::Reading;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The bounds of every histogram, in microseconds. The buckets below them are met within 3.2 %: `router::histogram`.
const BOUNDS_US: [u64; 21] = [
    10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// What a name is, to Prometheus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
    /// Nobody has said which.
    Untyped,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Untyped => "untyped",
        }
    }
}

/// Figures under their names; each name is described once, however many labels it has.
#[derive(Debug, Default)]
pub struct Page {
    figures: BTreeMap<String, (Kind, String, String)>,
}

impl Page {
    /// A figure that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.put(Kind::Gauge, name, help, &[], value);
    }

    /// A figure that only rises.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.put(Kind::Counter, name, help, labels, value);
    }

    /// A gauge of one among several.
    pub fn labelled(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.put(Kind::Gauge, name, help, labels, value);
    }

    /// A figure of any kind but a histogram.
    pub fn put(&mut self, kind: Kind, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.line(kind, name, help, "", labels, &value.to_string());
    }

    /// A time, in seconds, of any kind but a histogram.
    pub fn seconds(&mut self, kind: Kind, name: &str, help: &str, labels: &[(&str, &str)], us: u64) {
        self.line(kind, name, help, "", labels, &in_seconds(us));
    }

    /// A histogram of times: buckets with fixed bounds, sum and count.
    pub fn histogram(&mut self, name: &str, help: &str, labels: &[(&str, &str)], times: &Reading) {
        let mut bucket = |le: &str, n: u64| {
            let labels: Vec<_> = labels.iter().copied().chain([("le", le)]).collect();
            self.line(Kind::Histogram, name, help, "_bucket", &labels, &n.to_string());
        };
        for us in BOUNDS_US {
            bucket(&in_seconds(us), times.at_most(us));
        }
        let count = times.count();
        bucket("+Inf", count);
        self.line(Kind::Histogram, name, help, "_sum", labels, &in_seconds(times.sum_us()));
        self.line(Kind::Histogram, name, help, "_count", labels, &count.to_string());
    }

    /// The page.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, (kind, help, lines)) in &self.figures {
            let kind = kind.name();
            write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}").expect("a String takes it");
        }
        out
    }

    fn line(&mut self, kind: Kind, name: &str, help: &str, part: &str, labels: &[(&str, &str)], value: &str) {
        let new = || (kind, help.replace('\\', "\\\\").replace('\n', "\\n"), String::new());
        let (_, _, lines) = self.figures.entry(name.to_string()).or_insert_with(new);
        let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let inside: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let labels = if inside.is_empty() { String::new() } else { format!("{{{}}}", inside.join(",")) };
        writeln!(lines, "{name}{part}{labels} {value}").expect("a String takes it");
    }
}

/// Microseconds as seconds, without a digit more than it needs.
fn in_seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::histogram::Histogram;

    #[test]
    fn a_name_is_described_once_and_labels_are_escaped() {
        let mut page = Page::default();
        page.counter("n", "Things", &[("k", "a\"b")], 1);
        page.counter("n", "Things", &[("k", "c")], 2);
        assert_eq!(page.text(), "# HELP n Things\n# TYPE n counter\nn{k=\"a\\\"b\"} 1\nn{k=\"c\"} 2\n");
    }

    #[test]
    fn times_are_written_in_seconds_and_buckets_count_all_below() {
        let texts = [0, 1, 10, 1_000_000, 1_500_000, 60_000_000].map(in_seconds);
        assert_eq!(texts, ["0", "0.000001", "0.00001", "1", "1.5", "60"]);
        let h = Histogram::default();
        [5, 20, 200, 70_000_000].into_iter().for_each(|us| h.record(us));
        let mut page = Page::default();
        page.histogram("t", "Times", &[("s", "a")], &h.reading());
        let text = page.text();
        for line in [
            "# TYPE t histogram",
            "t_bucket{s=\"a\",le=\"0.00001\"} 1",
            "t_bucket{s=\"a\",le=\"0.00025\"} 3",
            "t_bucket{s=\"a\",le=\"60\"} 3",
            "t_bucket{s=\"a\",le=\"+Inf\"} 4",
            "t_sum{s=\"a\"} 70.000225",
            "t_count{s=\"a\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in:\n{text}");
        }
    }
}
