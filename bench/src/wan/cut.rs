//! Says when the link is cut: ranges of time from the start, and a switch by hand.

use std::str::FromStr;

/// A range of time in which nothing passes, in nanoseconds from the start: `from <= t < to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub from_ns: u64,
    pub to_ns: u64,
}

impl FromStr for Cut {
    type Err = String;

    /// `10s-40s`, `500ms-2s`.
    fn from_str(text: &str) -> Result<Cut, String> {
        let wrong = || format!("{text:?}: expected a range such as 10s-40s or 500ms-2s");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let cut = Cut { from_ns: nanoseconds(from).ok_or_else(wrong)?, to_ns: nanoseconds(to).ok_or_else(wrong)? };
        if cut.from_ns < cut.to_ns { Ok(cut) } else { Err(format!("{text:?}: it ends before it begins")) }
    }
}

/// `40s`, `1.5s` or `500ms`; a day at most.
fn nanoseconds(text: &str) -> Option<u64> {
    let (number, unit_ns) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e6),
        None => (text.strip_suffix('s')?, 1e9),
    };
    let ns = number.parse::<f64>().ok()? * unit_ns;
    (0.0..=86_400e9).contains(&ns).then_some(ns as u64)
}

/// All that cuts a link.
#[derive(Debug, Clone, Default)]
pub struct Cuts {
    pub scheduled: Vec<Cut>,
    pub by_hand: bool,
}

impl Cuts {
    pub fn holds_at(&self, ns: u64) -> bool {
        self.by_hand || self.scheduled.iter().any(|c| (c.from_ns..c.to_ns).contains(&ns))
    }

    /// When nothing that is scheduled cuts any more, `ns` or later.
    pub fn over_at(&self, ns: u64) -> u64 {
        let mut at = ns;
        // One cut may begin where another ends: each turn passes one of them.
        while let Some(cut) = self.scheduled.iter().find(|c| (c.from_ns..c.to_ns).contains(&at)) {
            at = cut.to_ns;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_in_seconds_and_milliseconds() {
        let cut = |text: &str| text.parse::<Cut>().map(|c| (c.from_ns / 1_000_000, c.to_ns / 1_000_000));
        assert_eq!(cut("10s-40s"), Ok((10_000, 40_000)));
        assert_eq!(cut("500ms-1.5s"), Ok((500, 1_500)));
        for wrong in ["", "10s", "10-40", "40s-10s", "5s-5s", "-1s-2s", "NaNs-2s", "1s-1e9s"] {
            assert!(cut(wrong).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_cut_holds_from_its_begin_to_just_before_its_end() {
        let mut cuts = Cuts { scheduled: vec!["1s-2s".parse().unwrap(), "2s-3s".parse().unwrap()], by_hand: false };
        let held = [0, 999_999_999, 1_000_000_000, 2_999_999_999, 3_000_000_000].map(|ns| cuts.holds_at(ns));
        assert_eq!(held, [false, false, true, true, false]);
        assert_eq!(cuts.over_at(1_500_000_000), 3_000_000_000, "the second begins where the first ends");
        assert_eq!(cuts.over_at(5), 5);
        cuts.by_hand = true;
        assert!(cuts.holds_at(0));
    }
}
