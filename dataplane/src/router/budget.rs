//! How many second attempts a cluster's requests may have: on by default, so that a failing upstream is not stormed.
//!
//! Two rules, and a second attempt needs one of them. At most `percent` of the requests under way, those that wait among
//! them, are in a second attempt (or `count_min`). Where the first attempt did nothing, or may be done twice and was lost on
//! a connection that had been kept, a balance may be spent, to which each new request pays `percent` of an attempt: many
//! kept connections that are closed at once do not become errors, and in the long run it is `percent` all the same.

/// The balance holds so many attempts.
const BALANCE_MAX: u64 = 1000;
/// And begins with so many.
const BALANCE_FIRST: u64 = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Budget {
    percent: u64,
    count_min: u64,
    /// Requests under way: sent, queued behind a limit, or tried again.
    pub active: u64,
    /// Of these, in a second attempt.
    pub retrying: u64,
    /// In hundredths of an attempt.
    balance: u64,
}

impl Budget {
    pub fn new(percent: u32, count_min: u32) -> Budget {
        let mut b = Budget { percent: 0, count_min: 0, active: 0, retrying: 0, balance: BALANCE_FIRST * 100 };
        b.renew(percent, count_min);
        b
    }

    /// Goes by other numbers from now on.
    pub fn renew(&mut self, percent: u32, count_min: u32) {
        (self.percent, self.count_min) = (percent.into(), count_min.into());
        if percent == 0 {
            self.balance = 0;
        }
    }

    /// A request begins.
    pub fn begin(&mut self) {
        self.active += 1;
        self.balance = (self.balance + self.percent).min(BALANCE_MAX * 100);
    }

    /// May it be tried once more? `cheap`: see above. `again`: it is in a second attempt already, and counted.
    pub fn retry(&mut self, cheap: bool, again: bool) -> bool {
        let others = self.retrying - u64::from(again);
        if others < self.count_min.max(self.active * self.percent / 100) {
            self.retrying = others + 1;
            return true;
        }
        let paid = cheap && self.balance >= 100;
        if paid {
            self.balance -= 100;
            self.retrying = others + 1;
        }
        paid
    }

    /// A request ends.
    pub fn end(&mut self, retrying: bool) {
        self.active -= 1;
        self.retrying -= u64::from(retrying);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_attempts_are_a_share_of_what_is_under_way_and_count_while_they_wait() {
        let mut b = Budget::new(20, 3);
        (0..10).for_each(|_| b.begin());
        assert_eq!((0..9).filter(|_| b.retry(false, false)).count(), 3, "count_min");
        (0..90).for_each(|_| b.begin());
        assert_eq!((0..99).filter(|_| b.retry(false, false)).count(), 17, "20 of 100, three of them wait already");
        assert!(b.retry(false, true), "a third attempt takes the place of its second");
        b.end(true);
        assert!(!b.retry(false, false), "19 are under way, and 20 % of 99 is 19");
        b.begin();
        assert!(b.retry(false, false));
        (0..100).for_each(|i| b.end(i < 20));
        assert_eq!((b.active, b.retrying), (0, 0));
    }

    #[test]
    fn the_balance_pays_for_bursts_and_is_filled_by_new_requests() {
        let mut b = Budget::new(20, 0);
        assert_eq!((0..500).filter(|_| b.retry(true, false)).count(), 100);
        b.retrying = 0;
        for _ in 0..50 {
            b.begin();
            b.end(false);
        }
        assert_eq!((0..50).filter(|_| b.retry(true, false)).count(), 10, "20 % of 50");
        assert!(!Budget::new(20, 0).retry(false, false));
        assert!(!Budget::new(0, 0).retry(true, false), "0 is none");
    }
}
