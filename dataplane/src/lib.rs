//! Route each request to the zone that owns it. A pure core that takes bytes and `now`, plus `uring/`, plus `control/`.

pub mod config;
pub mod control;
pub mod demo;
pub mod http;
pub mod router;
pub mod sandbox;
pub mod tls;
pub mod uring;
