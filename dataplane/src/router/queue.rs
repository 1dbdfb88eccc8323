//! Requests that wait for a place under a limit, first come, first served.

use super::conn::ConnId;
use std::collections::VecDeque;

/// A bounded queue. A request that leaves is only counted out; its place is dropped when its turn comes, or when such
/// places outnumber those who wait.
#[derive(Default)]
pub(super) struct Queue {
    places: VecDeque<(ConnId, u64)>,
    waiting: usize,
    tickets: u64,
}

impl Queue {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes a place; the ticket tells a request from a later one of the same connection. `None`: `max` wait.
    pub fn enter(&mut self, id: ConnId, max: usize, stands: impl Fn(ConnId, u64) -> bool) -> Option<u64> {
        if self.waiting >= max {
            return None;
        }
        if self.places.len() > 2 * self.waiting + 16 {
            self.places.retain(|(id, ticket)| stands(*id, *ticket));
        }
        self.tickets += 1;
        self.waiting += 1;
        self.places.push_back((id, self.tickets));
        Some(self.tickets)
    }

    /// Someone who waited does not any more.
    pub fn leave(&mut self) {
        self.waiting -= 1;
    }

    /// The first who still waits.
    pub fn next(&mut self, stands: impl Fn(ConnId, u64) -> bool) -> Option<ConnId> {
        while let Some((id, ticket)) = self.places.pop_front() {
            if stands(id, ticket) {
                self.waiting -= 1;
                return Some(id);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn conn(index: u32) -> ConnId {
        ConnId { index, generation: 0 }
    }

    #[test]
    fn first_come_first_served_without_those_who_left() {
        let mut q = Queue::default();
        let tickets: Vec<_> = (0..4).map(|i| q.enter(conn(i), 4, |_, _| true).unwrap()).collect();
        assert_eq!(q.enter(conn(9), 4, |_, _| true), None, "it is bounded");
        q.leave();
        let again = q.enter(conn(1), 4, |_, _| true).unwrap();
        let stands = |id, ticket| ticket != tickets[1] && (id != conn(1) || ticket == again);
        let order: Vec<_> = std::iter::from_fn(|| q.next(stands).map(|c| c.index)).collect();
        assert_eq!((order, q.waiting()), (vec![0, 2, 3, 1], 0), "who comes again stands at the end");
    }

    #[test]
    fn places_of_those_who_left_do_not_pile_up() {
        let mut q = Queue::default();
        let mut gone = HashSet::new();
        for i in 0..10_000 {
            let ticket = q.enter(conn(i), 8, |_, t| !gone.contains(&t)).unwrap();
            gone.insert(ticket);
            q.leave();
        }
        assert!(q.places.len() <= 20 && q.waiting() == 0);
    }
}
