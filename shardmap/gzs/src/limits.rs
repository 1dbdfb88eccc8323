//! Every bound and every time of the service, in one place.

/// Nodes that are kept in mind; more are refused.
pub const NODES_MAX: usize = 4096;
/// Streams that a log may tell of.
pub const STREAMS_MAX: usize = 1024;
/// A node that told nothing for so long is forgotten: it was taken away.
pub const FORGET_MS: u64 = 10 * 60 * 1000;
/// A node is live if it was heard so recently.
pub const LIVE_MS: u64 = 1000;
/// A target of a take-over that is silent for so long is lost itself: another zone takes its place.
pub const TARGET_SILENT_MS: u64 = 5 * LIVE_MS;
/// So long after its start the service has heard every node that is there: they try again each 200 ms.
pub const GATHER_MS: u64 = 500;
/// How often nodes tell how they are while nothing is under way ..
pub const TELL_MS: u64 = 200;
/// .. and while an operation is.
pub const TELL_SOON_MS: u64 = 20;
/// A target of a move may be behind by so much: what it lacks then, clients wait for.
pub const BEHIND_MS: u64 = 2 * TELL_MS;
/// Tellings of a log that are kept, to know where it was some time ago.
pub const TOLD_KEPT: usize = 64;
/// Operations under way at once.
pub const RUNNING_MAX: usize = 64;
/// Bytes of a name, a reason.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Towns of a preview.
pub const TOWNS_MAX: usize = 100_000;
/// Lines of an audit entry ..
pub const CHANGES_MAX: usize = 5000;
/// .. and their bytes: a store takes 1.5 MiB at once, with the operation, marks and grants of all shards.
pub const CHANGES_BYTES_MAX: usize = 256 << 10;
/// Digests of so many maps are known, to tell a restored backup or a second service.
pub const DIGESTS_MAX: usize = 4096;
/// Operations that are shown at most.
pub const OPS_SHOWN_MAX: usize = 1000;

const _: () = assert!(TELL_MS * 3 <= LIVE_MS, "a node whose telling came late twice is still live");
const _: () = assert!(BEHIND_MS < TELL_MS * TOLD_KEPT as u64, "where a log was some time ago must be known");
