//! Every bound of the log in one place, with the relations between them checked when it is compiled.

/// What a disk write is aligned to, and what one page checksum covers.
pub const BLOCK: usize = 4096;
/// A batch on disk, padding included.
pub const BATCH_MAX: usize = 4 * 1024 * 1024;
/// The fixed part of a batch header.
pub const HEADER: usize = 128;
/// The header with the longest page table.
pub const HEAD_MAX: usize = HEADER + 4 * (BATCH_MAX / BLOCK);
/// A table's name.
pub const TABLE_MAX: usize = 128;
/// A row's key.
pub const KEY_MAX: usize = 1024;
/// A row's value.
pub const VALUE_MAX: usize = 1024 * 1024;
/// A record in its longest encoding: op, transaction, shard, owner epoch, HLC delta, three lengths, three strings.
pub const RECORD_MAX: usize = 1 + 5 + 3 + 10 + 10 + 2 + 2 + 3 + TABLE_MAX + KEY_MAX + VALUE_MAX;
/// Records of one append: they go into one batch, whole or not at all.
pub const APPEND_BYTES_MAX: usize = BATCH_MAX / 2;

/// A collecting batch is cut when it holds this much: enough for a write of its own beside those that are under way.
pub const CUT_BYTES: usize = 128 * 1024;
/// A collecting batch is cut when its first record has waited this long.
pub const CUT_AFTER_NS: u64 = 1_000_000;
/// The idle marker follows the last commit after this long.
pub const MARKER_AFTER_NS: u64 = 50_000_000;
/// A checkpoint follows the first commit after the last checkpoint by this long.
pub const CHECKPOINT_AFTER_NS: u64 = 1_000_000_000;
/// Room on a full disk is looked for again after this long.
pub const FULL_RETRY_NS: u64 = 1_000_000_000;
/// Reserve segments that are kept ready.
pub const SPARES: usize = 2;
/// Zeros of a spare are written this fast at least, however little the log has to do.
pub const ZERO_BYTES_PER_S: u64 = 32 * 1024 * 1024;
/// A batch is flushed by its own write if neither it nor what was acknowledged last has more records than this. That flush is ordered
/// by a kernel thread of the same processor: at once if this is idle, much later if those who were just told keep it busy.
pub const THROUGH_RECORDS_MAX: usize = 16;
/// Writes side by side.
pub const FLIGHT_MAX: usize = 8;
/// Batches that wait are written together up to this length: a mirror that catches up has thousands of small ones.
pub const RUN_BYTES: usize = 1024 * 1024;
/// Bytes appended and not yet durable; beyond it an append is told `Busy`.
pub const PENDING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Durable batches kept in memory, so that a link and the applier read the end of the log without the disk.
pub const RECENT_BYTES: usize = 8 * 1024 * 1024;
/// A torn end is copied to the quarantine up to this length: what could have been on its way.
pub const TORN_BYTES_MAX: u64 = (FLIGHT_MAX * BATCH_MAX) as u64;
const _: () = assert!(RUN_BYTES <= BATCH_MAX);
/// A segment file.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// The smallest segment: its header, a block, its footer. A batch that is longer gets a segment that is longer.
pub const SEGMENT_BYTES_MIN: u64 = 3 * BLOCK as u64;
/// The largest segment that a header may claim.
pub const SEGMENT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

const _: () = assert!(HEAD_MAX <= u16::MAX as usize, "the header's length is a u16");
const _: () = assert!(BATCH_MAX.is_multiple_of(BLOCK) && SEGMENT_BYTES.is_multiple_of(BLOCK as u64));
const _: () =
    assert!(HEAD_MAX + CUT_BYTES + APPEND_BYTES_MAX < BATCH_MAX, "what is collected plus one append is a batch");
const _: () = assert!(RECORD_MAX <= APPEND_BYTES_MAX, "the longest record can be appended");
const _: () = assert!(RECORD_MAX < crate::port::MESSAGE_MAX + BLOCK, "what the port carries, a batch can hold");
const _: () = assert!(SEGMENT_BYTES >= SEGMENT_BYTES_MIN);
