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

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The wall clock, nanoseconds since 1970; before 1970: 0.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// The wall clock in milliseconds.
fn now_ms() -> u64 {
    now_ns() / 1_000_000
}

/// Microseconds of a clock that never steps, from this process's first look at it.
fn now_us() -> u64 {
    static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_micros() as u64
}
