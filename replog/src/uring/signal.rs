//! Wakes every task of an executor that waits for something to advance.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Tasks that wait. Belongs to one executor.
#[derive(Debug, Default)]
pub(super) struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Lets everyone look again.
    pub fn notify(&self) {
        // Taken out first: a woken task may wait again at once.
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Ends when `look` gives something; looks at once and after each `notify`.
    pub async fn wait<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match look() {
            Some(found) => Poll::Ready(found),
            None => {
                self.waiting.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}
