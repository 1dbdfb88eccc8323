//! What tasks of one executor wait for: something that advances (`Signal`), or a share of something bounded (`Budget`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Tasks that wait, in the order in which they came. A wait that is given up leaves nothing behind.
#[derive(Debug, Default)]
pub(super) struct Signal {
    waiting: RefCell<BTreeMap<u64, Waker>>,
    next: Cell<u64>,
}

impl Signal {
    /// Lets everyone look again.
    pub fn notify(&self) {
        // Taken out first: a woken task may wait again at once.
        for waker in self.waiting.take().into_values() {
            waker.wake();
        }
    }

    /// Lets the first one look again; it must not be given up before it has looked.
    fn notify_first(&self) {
        let first = self.waiting.borrow_mut().pop_first();
        first.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Ends when `look` gives something; looks at once and after each `notify`.
    pub async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        let place = Place { signal: self, number: self.next.replace(self.next.get() + 1) };
        poll_fn(|cx| match look() {
            Some(found) => Poll::Ready(found),
            None => {
                self.waiting.borrow_mut().insert(place.number, cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// A task's place among those that wait.
struct Place<'a> {
    signal: &'a Signal,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.signal.waiting.borrow_mut().remove(&self.number);
    }
}

/// So many shares, and no more, are out at a time.
#[derive(Debug)]
pub(super) struct Budget {
    left: Cell<usize>,
    returned: Signal,
}

impl Budget {
    pub fn of(shares: usize) -> Rc<Budget> {
        Rc::new(Budget { left: Cell::new(shares), returned: Signal::default() })
    }

    /// Some shares, if there are so many.
    pub fn try_take(self: &Rc<Self>, shares: usize) -> Option<Share> {
        let left = self.left.get().checked_sub(shares)?;
        self.left.set(left);
        Some(Share { of: self.clone(), shares })
    }

    /// One share, when there is one; whoever waits must go on waiting.
    pub async fn take(self: &Rc<Self>) -> Share {
        self.returned.wait(|| self.try_take(1)).await
    }
}

/// Shares of a budget; they return to it when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Rc<Budget>,
    shares: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.left.set(self.of.left.get() + self.shares);
        self.of.returned.notify_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::{block_on, or, poll_once, ready};

    #[test]
    fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let signal = Signal::default();
        for _ in 0..1000 {
            block_on(or(signal.wait(|| None::<()>), ready(())));
        }
        assert_eq!(signal.waiting.borrow().len(), 0);
    }

    #[test]
    fn a_notify_between_two_looks_is_not_lost() {
        let (signal, value) = (Signal::default(), Cell::new(0));
        block_on(async {
            let mut wait = Box::pin(signal.wait(|| (value.get() == 2).then_some(())));
            assert!(poll_once(&mut wait).await.is_none());
            value.set(1);
            signal.notify();
            assert!(poll_once(&mut wait).await.is_none());
            value.set(2);
            signal.notify();
            assert!(poll_once(&mut wait).await.is_some());
        });
    }

    #[test]
    fn no_more_shares_are_out_than_there_are_and_each_that_returns_lets_one_go_on() {
        let budget = Budget::of(2);
        block_on(async {
            let (one, two) = (budget.take().await, budget.take().await);
            let (mut third, mut fourth) = (Box::pin(budget.take()), Box::pin(budget.take()));
            assert!(poll_once(&mut third).await.is_none() && poll_once(&mut fourth).await.is_none());
            drop(one);
            let third = poll_once(&mut third).await.expect("a share has returned");
            assert!(poll_once(&mut fourth).await.is_none());
            drop((two, third));
            assert!(poll_once(&mut fourth).await.is_some());
            assert!(budget.try_take(3).is_none());
        });
    }
}
