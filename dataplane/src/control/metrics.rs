//! A page of figures in the text format that Prometheus reads (version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;

/// Figures under their names; each name is described once, however many labels it has.
#[derive(Debug, Default)]
pub struct Page {
    figures: BTreeMap<&'static str, (Kind, &'static str, String)>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
}

impl Page {
    /// A figure that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.put(Kind::Gauge, name, help, &[], value);
    }

    /// A figure that only rises.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: u64) {
        self.put(Kind::Counter, name, help, labels, value);
    }

    /// A gauge of one among several.
    pub fn labelled(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: u64) {
        self.put(Kind::Gauge, name, help, labels, value);
    }

    /// The page.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, (kind, help, lines)) in &self.figures {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}").expect("a String takes it");
        }
        out
    }

    fn put(&mut self, kind: Kind, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: u64) {
        let (_, _, lines) = self.figures.entry(name).or_insert_with(|| (kind, help, String::new()));
        let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let inside: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escape(v))).collect();
        let labels = if inside.is_empty() { String::new() } else { format!("{{{}}}", inside.join(",")) };
        writeln!(lines, "{name}{labels} {value}").expect("a String takes it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_described_once_and_labels_are_escaped() {
        let mut page = Page::default();
        page.counter("n", "Things", &[("k", "a\"b")], 1);
        page.counter("n", "Things", &[("k", "c")], 2);
        assert_eq!(page.text(), "# HELP n Things\n# TYPE n counter\nn{k=\"a\\\"b\"} 1\nn{k=\"c\"} 2\n");
    }
}
