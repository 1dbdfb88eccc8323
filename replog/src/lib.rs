//! Keep every change, ship it to the other zones, apply it there. A pure core that takes bytes and `now`, plus `uring/`.

pub mod batch;
pub mod hlc;
pub mod limits;
pub mod log;
pub mod open;
pub mod order;
pub mod port;
pub mod record;
pub mod segment;
#[cfg(feature = "uring")]
pub mod uring;
pub mod version;

pub use batch::Batch;
pub use hlc::Hlc;
pub use record::{Op, Record};
pub use version::Version;
