//! Entries that found the submission queue full: they wait, and whatever comes after them waits behind them.
//!
//! The order matters: the cancellation of a receive that overtook it would find nothing to cancel, and its connection would
//! stay until its peer ends it.

use std::collections::VecDeque;

/// The entries, first come, first served.
pub(super) struct Backlog<E>(VecDeque<E>);

impl<E> Backlog<E> {
    pub fn new() -> Backlog<E> {
        Backlog(VecDeque::new())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Gives `entry` to `push`, or keeps it if others wait or `push` has no room; true: it waits.
    pub fn put(&mut self, entry: E, mut push: impl FnMut(&E) -> bool) -> bool {
        let waits = !self.0.is_empty() || !push(&entry);
        if waits {
            self.0.push_back(entry);
        }
        waits
    }

    /// Gives as many to `push` as it has room for.
    pub fn drain(&mut self, mut push: impl FnMut(&E) -> bool) {
        while self.0.front().is_some_and(&mut push) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_taken_in_the_order_in_which_they_came_whenever_there_is_room() {
        let (mut backlog, mut taken, mut room) = (Backlog::new(), vec![], 0u32);
        for n in 0..1000u32 {
            room += u32::from(n % 3 == 0) * 2;
            let mut push = |e: &u32| {
                let fits = room > 0;
                if fits {
                    room -= 1;
                    taken.push(*e);
                }
                fits
            };
            if n % 5 == 0 {
                backlog.drain(&mut push);
            }
            backlog.put(n, push);
        }
        assert!(backlog.len() > 0, "it never waited: the test proves nothing");
        backlog.drain(|e| {
            taken.push(*e);
            true
        });
        assert_eq!((taken, backlog.len()), ((0..1000).collect(), 0));
    }
}
