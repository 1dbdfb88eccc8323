//! Shows on a terminal how far a long check is: bytes, rate, time left. Nothing is shown elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};

const STYLE: &str = "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left";

/// A bar on standard error, or nothing. Clones draw the same bar, each for a reader of its own.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    counted: Counted,
}

/// How far one reader has come in a file, so that what it reads twice counts once.
#[derive(Clone, Default)]
struct Counted {
    file: String,
    pos: u64,
}

impl Counted {
    /// Bytes that are new.
    fn at(&mut self, file: &str, pos: u64) -> u64 {
        if self.file != file {
            (self.file, self.pos) = (file.to_owned(), 0);
        }
        let more = pos.saturating_sub(self.pos);
        self.pos = self.pos.max(pos);
        more
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
        super::interrupt::drawn(&bar); // before the first thing that draws it
        bar.set_style(ProgressStyle::with_template(STYLE).expect("a test has read it").progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        Progress { bar, ..Progress::none() }
    }

    /// `file` was read up to byte `pos`.
    pub fn at(&mut self, file: &str, pos: u64) {
        if !self.bar.is_hidden() {
            let more = self.counted.at(file, pos);
            // A log that is written while it is read may be longer by now.
            let left = self.bar.length().unwrap_or(u64::MAX).saturating_sub(self.bar.position());
            self.bar.inc(more.min(left));
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
        assert_eq!(reads.map(|(file, pos)| counted.at(file, pos)), [10, 0, 2, 4]);
    }
}
