//! Keep every change, ship it to the other zones, apply it there. A pure core that takes bytes and `now`, plus `uring/`.

pub mod apply;
pub mod batch;
pub mod changes;
pub mod commit;
pub mod gate;
pub mod hearers;
pub mod hlc;
pub mod lease;
pub mod limits;
pub mod link;
pub mod log;
pub mod mint;
pub mod open;
pub mod order;
pub mod owners;
pub mod port;
pub mod record;
pub mod repair;
pub mod retain;
pub mod seed;
pub mod segment;
pub mod stand;
pub mod store;
#[cfg(feature = "uring")]
pub mod uring;
pub mod version;
pub mod watch;

pub use batch::Batch;
pub use hlc::Hlc;
pub use record::{Op, Record};
pub use version::Version;
