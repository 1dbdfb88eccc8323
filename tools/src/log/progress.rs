//! Shows on a terminal how far a long check is: bytes, rate, time left. Nothing is shown elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};

const STYLE: &str = "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";

/// A bar on standard error, or nothing.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    counted: Counted,
}

/// How much was read, where what is read twice counts once.
#[derive(Clone, Default)]
struct Counted {
    total: u64,
    file: String,
    pos: u64,
}

impl Counted {
    fn at(&mut self, file: &str, pos: u64) -> u64 {
        if self.file != file {
            (self.file, self.pos) = (file.to_owned(), 0);
        }
        self.total += pos.saturating_sub(self.pos);
        self.pos = self.pos.max(pos);
        self.total
    }
}

impl Progress {
    /// Shows nothing.
    pub fn none() -> Progress {
        Progress { bar: ProgressBar::hidden(), counted: Counted::default() }
    }

    /// Over so many bytes of what `what` names; nothing if standard error is no terminal.
    pub fn of(what: &str, total_bytes: u64) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress::none();
        }
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr_with_hz(10));
        bar.set_style(ProgressStyle::with_template(STYLE).expect("a test has read it").progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        Progress { bar, ..Progress::none() }
    }

    /// `file` was read up to byte `pos`.
    pub fn at(&mut self, file: &str, pos: u64) {
        if !self.bar.is_hidden() {
            let done = self.counted.at(file, pos);
            self.bar.set_position(done.min(self.bar.length().unwrap_or(u64::MAX)));
        }
    }

    /// Takes the bar off the terminal when it is dropped.
    pub fn ender(&self) -> Ender {
        Ender(self.bar.clone())
    }
}

/// Takes the bar off the terminal when it is dropped.
pub struct Ender(ProgressBar);

impl Drop for Ender {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_can_be_drawn() {
        assert!(ProgressStyle::with_template(STYLE).is_ok());
    }

    #[test]
    fn what_is_read_twice_counts_once() {
        let mut counted = Counted::default();
        let reads = [("a", 10), ("a", 5), ("a", 12), ("b", 4)];
        assert_eq!(reads.map(|(file, pos)| counted.at(file, pos)), [10, 10, 12, 16]);
    }
}
