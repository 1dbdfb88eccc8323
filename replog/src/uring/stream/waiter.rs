//! Those who wait until what they appended, or want to read, is durable.

use super::{Error, Shared, State};
use crate::log::Refused;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Someone who waits for a seq to be durable.
pub(super) struct Waiter {
    pub(super) seq: u64,
    /// An appender: its seq may be taken back.
    pub(super) appended: bool,
    state: Cell<Waiting>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    Yes,
    Durable,
    TakenBack,
    Stopped,
    Closed,
}

/// Resolves when what was appended is durable.
#[must_use = "an append is acknowledged when this resolves"]
pub struct Durable {
    pub(super) shared: Rc<Shared>,
    pub(super) waiter: Rc<Waiter>,
}

impl Waiter {
    pub(super) fn new(seq: u64, appended: bool, state: Waiting) -> Waiter {
        Waiter { seq, appended, state: Cell::new(state), waker: RefCell::new(None) }
    }
}

impl Future for Durable {
    type Output = Result<u64, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.waiter.state.get() {
            Waiting::Yes => {
                *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            Waiting::Durable => Poll::Ready(Ok(self.waiter.seq)),
            Waiting::TakenBack => Poll::Ready(Err(Refused::Full.into())),
            Waiting::Closed => Poll::Ready(Err(Refused::Closed.into())),
            Waiting::Stopped => Poll::Ready(Err(self.shared.stopped())),
        }
    }
}

impl State {
    /// Tells those whose records are durable; first of all, whatever else there is to be told.
    pub(super) fn tell_durable(&mut self) {
        let durable = self.log.durable_seq();
        self.wake(Waiting::Durable, |w| w.seq <= durable);
    }

    pub(super) fn wake(&mut self, to: Waiting, which: impl Fn(&Waiter) -> bool) {
        self.waiters.retain(|w| {
            let woken = which(w);
            if woken {
                w.state.set(to);
                w.waker.borrow_mut().take().into_iter().for_each(Waker::wake);
            }
            // A waiter that nobody holds any more has gone away.
            !woken && Rc::strong_count(w) > 1
        });
    }
}
