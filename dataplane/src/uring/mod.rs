//! The router's own io_uring driver: one ring, one thread, one core. The only folder that names a socket, a clock, a thread.
//!
//! ```text
//!   submit and wait ─▶ completions ─▶ core.on_*(.., now) ─▶ core.next_order() until none ─▶ entries ─┐
//!          ▲                                                                                        │
//!          └────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! `ring` sets up the ring and its buffers, `socket` makes sockets, `drive` is the loop, `secure` the sockets that speak TLS,
//! `wake` how control and the other cores reach it, `doors` its listeners,
//! `backlog` what the ring has no room for. `place` says where any thread of ours runs.

mod backlog;
mod doors;
mod drive;
mod place;
mod ring;
mod secure;
mod socket;
mod wake;

pub use drive::{run, run_sized};
pub use place::{give_way, keep_to};
pub use ring::{Sizes, check};
pub use socket::{Listener, inherited, is_free, listen};
pub use wake::{Control, Waker, control};
