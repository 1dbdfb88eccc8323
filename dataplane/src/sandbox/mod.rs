//! A cluster on this host to try things with: zones as real processes, an emulated WAN between them, a stream of orders, and the
//! proof of what became of each. The demo shows one, drills break one.

pub mod chart;
pub mod client;
pub mod cluster;
pub mod orders;
pub mod pages;
pub mod places;
pub mod process;
pub mod proof;
pub mod relay;
pub mod report;
pub mod rows;
pub mod tally;
pub mod volume;
pub mod wan;
pub mod watch;
