//! The hybrid logical clock: 48 bits of milliseconds since 1970, then a 16-bit counter, in one `u64` that orders events.

use std::fmt;

/// A time that one stream gave to one record; unique and rising within the stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Hlc(pub u64);

impl Hlc {
    /// From whole milliseconds since 1970 and a counter.
    pub fn new(ms: u64, counter: u16) -> Hlc {
        Hlc(ms << 16 | u64::from(counter))
    }
    /// Milliseconds since 1970.
    pub fn ms(self) -> u64 {
        self.0 >> 16
    }
    /// The counter within the millisecond.
    pub fn counter(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.counter())
    }
}

/// Gives each event a time above every earlier one, whatever the wall clock does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    newest: Hlc,
}

impl Clock {
    /// A clock above everything that the log already holds.
    pub fn above(newest: Hlc) -> Clock {
        Clock { newest }
    }
    /// The time of an event at wall-clock `now_ms`.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.newest = Hlc(self.newest.0 + 1).max(Hlc::new(now_ms, 0));
        self.newest
    }
    /// The newest time given.
    pub fn newest(&self) -> Hlc {
        self.newest
    }
}
