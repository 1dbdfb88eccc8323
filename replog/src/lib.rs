//! Keep every change, ship it to the other zones, apply it there. A pure core that takes bytes and `now`, plus `uring/`.

pub mod gate;
pub mod hlc;
pub mod mint;
pub mod owners;
pub mod port;
pub mod record;
pub mod version;

pub use hlc::Hlc;
pub use record::{Op, Record};
pub use version::Version;
