//! What `ezone demo` is made of: a WAN, a stream of orders, and the proof that none was lost or doubled.

pub mod relay;
