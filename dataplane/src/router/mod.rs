//! Takes each request to the zone that owns its shard: own upstream, own record store, or the owner's router, one hop away.
//!
//! ```text
//!                 ┌ Plain upstream (pooled)         421, moving, lost
//!  bytes ─▶ head ─┼ record store (the port)        ┌──────▼──────┐
//!           route └ the owner zone's router (hop) ─┤ held, bounded│─▶ routed again, once
//!                                                  └─────────────┘
//! ```
//!
//! A pure core: bytes, `now` and maps go in; bytes and [`Order`]s come out. It never names a socket, a clock or a thread.
//! One attempt at a request sees one map. Files: `core` the tables and the driver's calls, `client` a client's side of an
//! exchange, `route` where it goes, `admit` who may go there, `cluster` the endpoints, of which `balance` chooses, which
//! `eject` judges and `retry` tries again, `upstream` the other side, `interim` 1xx answers, `tunnel` what follows a 101,
//! `forward` what is told of the client, `memory` what all may hold, `store` the record store, `ownership` which shards are
//! written here, `hold` the waiting, `secure`
//! what a core knows of TLS, `answer` what the router itself says, `trace` what a request took, `access` what the log is
//! told, `figures`, `histogram` and `stats` what is shown of it.

pub mod access;
mod admit;
mod answer;
mod audit;
mod balance;
mod bucket;
mod budget;
mod changes;
mod client;
mod cluster;
mod conn;
mod core;
mod drain;
mod eject;
pub mod figures;
pub mod forward;
pub mod histogram;
mod hold;
mod interim;
mod memory;
mod owned;
mod ownership;
pub mod policy;
mod queue;
mod rest;
mod retry;
mod route;
mod secure;
pub mod service;
pub mod settings;
pub mod shown;
pub mod stats;
mod store;
mod told;
mod trace;
pub mod trial;
mod tunnel;
mod tx;
mod upstream;
pub mod view;
mod want;

pub use admit::ShardRates;
pub use audit::Footprint;
pub use bucket::Rate;
pub use conn::ConnId;
pub use core::{Core, Now, Order, Side, Target};
pub use eject::By as EjectedBy;
pub use service::{Endpoint, Peer, Service};
pub use settings::{HOP_FIELDS, Limits, Settings};
pub use stats::{Counts, Shared};
pub use view::{Found, Routes, Tagged};
