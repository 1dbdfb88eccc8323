//! What nodes tell the map's writer: shapes of the admin pages that it reads, as JSON.

use super::life::LifeStatus;
use serde::{Deserialize, Serialize};
use shardmap::{Positions, Zone};
use std::collections::BTreeMap;

/// `GET /status` of a router.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RouterStatus {
    /// The zone's name, `none` for an edge.
    pub zone: String,
    /// The oldest map that any core still routes by.
    pub map_epoch: u64,
    /// Attempts under way, begun under an older map, for shards that have no settled owner in the present one.
    pub in_flight_unsettled: u64,
    /// Requests that wait for their shard.
    pub holding: u64,
    /// The longest that one has waited, since the start.
    pub held_ms_max: u64,
    /// Requests that were held, since the start.
    pub held: u64,
    /// Requests sent a second time after a 421, since the start.
    pub second_attempts: u64,
    /// Requests answered, since the start.
    pub requests: u64,
    /// Requests forwarded to another zone's router, since the start.
    pub forwarded: u64,
    /// What the process is doing, and how its last reload and upgrade ended.
    #[serde(default)]
    pub life: LifeStatus,
    /// Version, uptime, each core, each service: for people.
    #[serde(default)]
    pub detail: super::state::Detail,
}

/// `GET /status` of a log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogStatus {
    /// The zone's name.
    pub zone: String,
    /// The oldest map that any log core goes by.
    pub map_epoch: u64,
    /// It restarted and does not know yet what it owns.
    pub read_only: bool,
    /// One for each stream.
    pub streams: Vec<StreamStatus>,
    /// Entries in the conflict ledger.
    pub ledger: u64,
    /// Items that could not be applied yet.
    pub parked: u64,
    /// Tombstones that were dropped since the start: every zone had applied them.
    #[serde(default)]
    pub tombstones_dropped: u64,
    /// A record store has no room: nothing is applied, and rows are not told, until there is some. The log goes on as long as it has.
    #[serde(default)]
    pub store_full: bool,
    /// Connections from other logs, or strangers, that were closed before a HELLO was understood.
    #[serde(default)]
    pub links_refused: u64,
    /// Shards on their way to another owner, or without one: no segment is let go while there is one.
    #[serde(default)]
    pub unsettled: u64,
    /// There is one, and the volume is as full as `[log] peers_until` says.
    #[serde(default)]
    pub holds_back: bool,
    /// Writes that began before every router had told its readers of `/ownership/stream`.
    #[serde(default)]
    pub ownership_untold: u64,
    /// From commit at the origin to visible here.
    pub lag: Lag,
    /// The same of each other zone's writes.
    #[serde(default)]
    pub lag_zones: BTreeMap<String, Lag>,
    /// The same of append there to durable here.
    #[serde(default)]
    pub durable_lag_zones: BTreeMap<String, Lag>,
    /// Which cores serve what, and why.
    #[serde(default)]
    pub layout: String,
}

/// One stream of a log, and its namesakes in other zones.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StreamStatus {
    /// Its number.
    pub stream: u32,
    /// The incarnation of its writer.
    pub term: u64,
    /// The last seq that is durable here.
    pub durable_seq: u64,
    /// For each zone by name: what its log (this zone's own, or a mirror) takes on disk here.
    #[serde(default)]
    pub logs: BTreeMap<String, KeptLog>,
    /// For each zone by name: the last seq of its log that is applied here.
    pub applied: BTreeMap<String, u64>,
    /// For each other zone by name: the last seq of its log that is durable here.
    pub mirrored: BTreeMap<String, u64>,
    /// For each other zone by name: the last seq of this log that is durable there, and the link's state.
    pub links: BTreeMap<String, LinkStatus>,
    /// For each zone by name whose log cannot go on here without an operator: why, and what to do.
    #[serde(default)]
    pub incoming: BTreeMap<String, String>,
    /// Snapshots since the start, the newest of each kind and zone.
    #[serde(default)]
    pub seeds: Vec<SeedStatus>,
}

/// A snapshot by which a zone that fell into a gap is brought up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SeedStatus {
    /// `lent` to `zone`, or `taken` from it.
    pub way: String,
    /// The other zone's name.
    pub zone: String,
    /// `seeding: ..` with rows and megabytes, how it ended, or why it failed.
    pub state: String,
    /// It is under way.
    pub is_running: bool,
    /// Rows so far.
    pub rows: u64,
    /// Bytes so far.
    pub bytes: u64,
    /// How many ended well since the start.
    pub done: u64,
    /// How many failed.
    pub failed: u64,
}

/// What a log or mirror takes on disk, and what reading it again has shown.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct KeptLog {
    /// The first seq that is kept.
    pub first_kept: u64,
    /// Bytes of its segments.
    pub kept_bytes: u64,
    /// There is no room for another segment.
    pub is_full: bool,
    /// Whole passes of the scrub since the start.
    pub scrub_passes: u64,
    /// Bytes that it has read.
    pub scrubbed_bytes: u64,
    /// Segments that failed when they were read last: file, first seq, what was seen.
    pub damaged: Vec<String>,
    /// Segments that were damaged and were mended while the log ran, since the start.
    #[serde(default)]
    pub mended: u64,
}

/// One outgoing link.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LinkStatus {
    /// `connecting`, `live`, or one of `diverged`, `gap`, `fenced`, which need an operator.
    pub state: String,
    /// The last seq that is durable there.
    pub durable_seq: u64,
    /// The last seq that is applied there.
    pub applied_seq: u64,
    /// Connections that were made since the start.
    #[serde(default)]
    pub connects: u64,
    /// Attempts at one, and connections, that failed with a reason.
    #[serde(default)]
    pub failures: u64,
    /// Why it cannot go on until an operator clears it: `diverged`, `gap`, `fenced`, `incarnation`, `foreign`, `garbled`, and the two numbers.
    #[serde(default)]
    pub stopped: Option<StopStatus>,
    /// It ships nothing, by an operator's word.
    #[serde(default)]
    pub paused: bool,
    /// Bytes a second that all links to this zone may ship now; `None`: no limit.
    #[serde(default)]
    pub rate_max: Option<u64>,
    /// Records that are durable here and not there.
    #[serde(default)]
    pub durable_lag: u64,
    /// Records that are durable here and not applied there.
    #[serde(default)]
    pub applied_lag: u64,
    /// From sending to the answer, the newest.
    #[serde(default)]
    pub round_trip_us: Option<u64>,
    /// Bytes of the log that were shipped since the start, and what they took on the line: their quotient is what compressing brings.
    #[serde(default)]
    pub log_bytes: u64,
    /// See there.
    #[serde(default)]
    pub line_bytes: u64,
    /// Frames with several batches, or compressed.
    #[serde(default)]
    pub packs: u64,
    /// Bytes of the log that are not acknowledged ..
    #[serde(default)]
    pub flight_bytes: u64,
    /// .. and how many may be.
    #[serde(default)]
    pub credit_bytes: u64,
    /// Bytes a second that the line takes, measured while it was the bottleneck.
    #[serde(default)]
    pub line_rate: Option<u64>,
    /// TCP's congestion control of the newest connection, as it is now.
    #[serde(default)]
    pub congestion: String,
}

/// Why a link cannot go on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StopStatus {
    /// In one word.
    pub why: String,
    /// What was seen ..
    pub seen: u64,
    /// .. and what was expected.
    pub expected: u64,
    /// In a sentence, with what to do.
    pub text: String,
}

/// How long changes took from their commit at the origin until they were visible here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Lag {
    /// How many were measured.
    pub count: u64,
    /// Median, in microseconds.
    pub p50_us: u64,
    /// 99th percentile, in microseconds.
    pub p99_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

/// `POST /report`: what the map's writer wants to know before it commits a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportAsk {
    /// Answer when this map is stored.
    pub map_epoch: u64,
    /// About these shards.
    pub shards: Vec<u16>,
    /// `true`: a take-over; from this report on the zone applies nothing of the lost zone's log until a map names the
    /// shards' new owner.
    pub take_over: bool,
}

/// The answer to `POST /report`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The map that the zone goes by.
    pub map_epoch: u64,
    /// One for each shard that was asked about.
    pub shards: Vec<ShardReport>,
}

/// What a zone has of one shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ShardReport {
    /// The shard.
    pub shard: u16,
    /// Of a move: the source's FENCE and all that it carries is applied here, nothing is parked. Of a take-over: the zone
    /// is not read-only, has stored the map, and all that it has of the lost zone is applied.
    pub ready: bool,
    /// Of a move: the seq of that FENCE.
    pub fence_seq: Option<u64>,
    /// For each zone by number: the last seq below which everything is applied and nothing of the shard is parked.
    pub applied: BTreeMap<u8, u64>,
}

impl ShardReport {
    /// The positions as the ownership rules take them.
    pub fn positions(&self) -> Positions {
        self.applied.iter().map(|(z, seq)| (Zone(*z), *seq)).collect()
    }
}
