//! TLS as a filter of bytes: ciphertext in, plaintext and ciphertext out. No socket, no file, no thread.
//!
//! ```text
//!   received ──▶ Session::on_bytes ──▶ plaintext ──▶ core
//!   sent     ◀── Session::seal     ◀── plaintext ◀── core
//! ```
//!
//! `session` is the filter, `context` holds what sessions of a kind have in common, `certificates` reads and judges PEM
//! files, `identity` says which member of a cluster a certificate names, `authority` makes certificates, `fault` names
//! what can go wrong. rustls does the cryptography; the only clock is the one that it judges certificates by, and that is
//! an argument. Nothing here knows the router: links between logs may use it as it is.

pub mod authority;
pub mod certificates;
pub mod context;
pub mod fault;
pub mod identity;
pub mod session;

pub use certificates::{Pair, Roots};
pub use context::{Cluster, Contexts, Makers, Outgoing, TlsId};
pub use fault::{Fault, Reason};
pub use identity::Identity;
pub use session::{Progress, Session};
