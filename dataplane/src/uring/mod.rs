//! The router's own io_uring driver: one ring, one thread, one core. The only folder that names a socket, a clock, a thread.
//!
//! ```text
//!   submit and wait ─▶ completions ─▶ core.on_*(.., now) ─▶ core.next_order() until none ─▶ entries ─┐
//!          ▲                                                                                        │
//!          └────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! `ring` sets up the ring and its buffers, `socket` makes sockets, `drive` is the loop, `secure` the sockets that speak TLS,
//! `wake` how control and the other cores reach it, `doors` its listeners.

mod doors;
mod drive;
mod ring;
mod secure;
mod socket;
mod wake;

pub use drive::run;
pub use ring::check;
pub use socket::{Listener, inherited, is_free, listen};
pub use wake::{Control, Waker, control};
