//! The Global Zone Service's core: the map's only writer. Who owns what changes here, one compare-and-set at a time, and every change is
//! written down with who and why before anyone hears of it.
//!
//! Pure but for `store/`: no clock, socket or thread. The program that serves it is `ezone gzs` (`dataplane/src/control/gzs/`).

pub mod api;
pub mod change;
pub mod fences;
pub mod leases;
pub mod limits;
pub mod nodes;
pub mod op;
pub mod service;
pub mod store;
