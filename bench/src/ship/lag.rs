//! Turns what was committed when, and what was there when, into lags: pure, over times in milliseconds and positions that only rise.

/// At `at_ms` everything up to `upto` had happened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mark {
    pub at_ms: f64,
    pub upto: u64,
}

/// Of each commit: when it was made, and how long it took until it was seen there; what never was is left out.
pub fn lags(committed: &[Mark], there: &[Mark]) -> Vec<(f64, f64)> {
    let mut at = 0;
    let mut lags = Vec::with_capacity(committed.len());
    for mark in committed {
        while there.get(at).is_some_and(|t| t.upto < mark.upto) {
            at += 1;
        }
        let Some(seen) = there.get(at) else { break };
        lags.push((mark.at_ms, (seen.at_ms - mark.at_ms).max(0.0)));
    }
    lags
}

/// A quantile of those committed in `from_ms..to_ms`.
pub fn quantile(lags: &[(f64, f64)], from_ms: f64, to_ms: f64, q: f64) -> Option<f64> {
    let mut some: Vec<f64> = lags.iter().filter(|(at, _)| (from_ms..to_ms).contains(at)).map(|(_, lag)| *lag).collect();
    some.sort_by(f64::total_cmp);
    some.get(((some.len() as f64 * q) as usize).min(some.len().saturating_sub(1))).copied()
}

/// How long after `from_ms` what is there was first less than `behind` positions short of what had been committed.
pub fn caught_up_ms(committed: &[Mark], there: &[Mark], from_ms: f64, behind: u64) -> Option<f64> {
    let mut at = 0;
    there.iter().filter(|t| t.at_ms >= from_ms).find_map(|t| {
        while committed.get(at + 1).is_some_and(|c| c.at_ms <= t.at_ms) {
            at += 1;
        }
        (committed.get(at)?.upto <= t.upto + behind).then_some(t.at_ms - from_ms)
    })
}

/// One line for each of `rows` spans of time: its longest lag as a bar on a logarithmic scale.
pub fn plot(lags: &[(f64, f64)], rows: usize) -> Vec<String> {
    let Some(end) = lags.last().map(|(at, _)| *at) else { return vec![] };
    let span = ((end + 1.0) / rows as f64).max(1.0);
    let line = |row: usize| {
        let (from, to) = (row as f64 * span, (row + 1) as f64 * span);
        let most = quantile(lags, from, to, 1.0)?;
        let bar = "#".repeat(((most.max(1.0).log10() * 10.0) as usize).max(1));
        Some(format!("{:7.1} s {most:9.1} ms {bar}", from / 1e3))
    };
    (0..rows).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(all: &[(f64, u64)]) -> Vec<Mark> {
        all.iter().map(|(at_ms, upto)| Mark { at_ms: *at_ms, upto: *upto }).collect()
    }

    #[test]
    fn a_lag_ends_with_the_first_look_that_sees_the_commit() {
        let (committed, there) =
            (marks(&[(0.0, 1), (1.0, 2), (5.0, 3), (6.0, 4)]), marks(&[(3.0, 0), (4.0, 2), (9.0, 3)]));
        assert_eq!(lags(&committed, &there), [(0.0, 4.0), (1.0, 3.0), (5.0, 4.0)], "the last was never seen");
        assert_eq!(quantile(&lags(&committed, &there), 0.0, 5.0, 0.5), Some(4.0));
        assert_eq!(quantile(&[], 0.0, 5.0, 0.5), None);
    }

    #[test]
    fn caught_up_is_the_first_look_that_is_near_enough() {
        let committed = marks(&[(0.0, 10), (10.0, 20), (20.0, 30)]);
        let there = marks(&[(5.0, 10), (12.0, 11), (21.0, 25), (22.0, 30)]);
        assert_eq!(caught_up_ms(&committed, &there, 11.0, 0), Some(11.0));
        assert_eq!(caught_up_ms(&committed, &there, 11.0, 5), Some(10.0));
        assert_eq!(caught_up_ms(&committed, &there, 30.0, 5), None);
    }

    #[test]
    fn a_plot_has_a_line_for_each_span_that_saw_commits() {
        let lines = plot(&[(0.0, 16.0), (500.0, 1000.0), (1000.0, 17.0)], 2);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with(&"#".repeat(30)) && !lines[0].ends_with(&"#".repeat(31)), "{lines:?}");
    }
}
