//! Everything that names a ring, a file, a socket, a clock, a thread or a database.
//!
//! `stream` is a log on disk, `sqlite` a store; `node` puts both together with cores, keepers, the port and links.

mod asks;
mod boot;
pub mod borrow;
mod changes;
mod collect;
mod commit;
mod complete;
mod connection;
mod core;
pub mod dir;
pub mod direct;
mod feed;
mod forget;
mod keeper;
mod lag;
mod lend;
pub mod line;
mod link;
mod mend;
mod mirror;
pub mod node;
mod open;
mod port;
pub mod repair;
mod retain;
mod scans;
pub mod secure;
mod seed;
mod signal;
pub mod sqlite;
mod standing;
pub mod stream;

pub use core::Link;
pub use keeper::{Asked, Conflict, Figures, Reported};
pub use lag::{ShardLag, ZoneLag};
pub use seed::{SeedFigures, Way};

use crate::lease::Now;
use rustix::time::{ClockId, clock_gettime};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// How far the log's clock is ahead of this machine's.
static AHEAD_NS: OnceLock<u64> = OnceLock::new();

/// From now on this process's log takes the wall clock for so much later than it is: for drills, which want one zone's clock to be wrong
/// and have one machine. Says false, and changes nothing, once it was set.
pub fn set_clock_ahead(ms: u64) -> bool {
    AHEAD_NS.set(ms.saturating_mul(1_000_000)).is_ok()
}

/// The wall clock, nanoseconds since 1970; before 1970: 0. The only place where the log looks at it.
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    now.saturating_add(AHEAD_NS.get().copied().unwrap_or(0))
}

/// The wall clock in milliseconds.
fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// The clock that leases are judged by: it never steps, and goes on while this process is stopped or the machine sleeps.
pub fn steady_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Both clocks of the gate.
fn now() -> Now {
    Now { wall_ms: now_ms(), steady_ms: steady_ms() }
}

/// Microseconds of a clock that never steps, from this process's first look at it.
fn now_us() -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_micros() as u64
}
