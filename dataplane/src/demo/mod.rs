//! What `ezone demo` is made of: a WAN, a stream of orders, and the proof that none was lost or doubled.

pub mod client;
pub mod orders;
pub mod places;
pub mod proof;
pub mod relay;
pub mod report;
pub mod rows;
