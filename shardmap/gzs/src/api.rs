//! What the Global Zone Service and those who speak with it say to each other: the shapes of its JSON.
//!
//! ```text
//! GET  /v1/map?after=N&digest=HEX&wait_ms=M    the newest map, binary (`shardmap::codec`); 204: none newer within the wait
//! POST /v1/nodes           NodeTold -> NodeAsked       a router or a log says how it is, and hears what it is asked
//! GET  /v1/state           State                       everything at a glance: what the console shows
//! GET  /v1/fences          GeoJSON; properties `name`, `shard`
//! POST /v1/fences/preview  FencesAsk -> FencesPreview  what new fences would change; 400 Fault with `reasons`: what is wrong with them
//! GET  /v1/ops?all=BOOL    [OpView]                    those under way; all: ended ones too, the newest first, at most 1,000
//! POST /v1/ops             OpAsk -> OpView             begins one; 409 Fault with `reasons` when the preflight refuses it
//! GET  /v1/ops/ID          OpView
//! POST /v1/ops/ID/abort    OpView                      before its point of no return, else 409
//! POST /v1/ops/ID/resume   OpView                      an operation that gave up begins again what it had not done
//! GET  /v1/audit?after=N   [AuditView]                 every change of the map: who, when, why, and what it changed
//! GET  /openapi.json                                   this, for programs
//! ```
//! Every error is a [`Fault`]. Times are milliseconds since 1970 unless the name says otherwise; epochs are numbers of maps.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a caller may do; each role may do what those before it may, but for `Node`, which speaks for a node and may do nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Maps, and telling how it is.
    Node,
    /// Everything that changes nothing.
    Read,
    /// Operations.
    Operate,
    /// What cannot be taken back: forced operations, unlocking, forgetting.
    Admin,
}

/// `POST /v1/nodes`: how a node is. A router's and a log's process tell for themselves.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodeTold {
    /// Its name, unique among those of its kind: the host's, unless the configuration says another.
    pub name: String,
    /// Its zone's name; `none`: an edge.
    pub zone: String,
    /// When its process began: two that tell the same name with another beginning are told apart.
    pub begun_ms: u64,
    /// The oldest map that any of its cores goes by.
    pub map_epoch: u64,
    /// A router's part.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub router: Option<RouterTold>,
    /// A log's part.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<LogTold>,
}

/// What a router tells.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RouterTold {
    /// Attempts under way, begun under an older map, for shards that have no settled owner in the present one.
    pub in_flight_unsettled: u64,
    /// Requests that wait for their shard.
    pub holding: u64,
    /// The longest that one has waited, since the start.
    pub held_ms_max: u64,
    /// Requests answered, since the start.
    pub requests: u64,
}

/// What a log tells.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LogTold {
    /// It restarted and does not know yet what it owns.
    pub read_only: bool,
    /// Entries in the conflict ledger.
    pub ledger: u64,
    /// Those of them that nobody has resolved.
    #[serde(default)]
    pub open: u64,
    /// Records that could not be applied yet.
    pub parked: u64,
    /// A store has no room.
    pub store_full: bool,
    /// One for each stream, in order.
    pub streams: Vec<StreamTold>,
    /// Answers to what it was asked, for each shard that it can speak for.
    #[serde(default)]
    pub reports: Vec<ShardTold>,
}

/// One stream of a log.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StreamTold {
    /// The last seq that is durable here.
    pub durable: u64,
    /// By zone: the last seq of its log that is applied here.
    pub applied: BTreeMap<String, u64>,
}

/// What a zone has of one shard, for the map's writer: see `OWNERSHIP`, moves and take-overs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ShardTold {
    /// The shard.
    pub shard: u16,
    /// The map that the answer goes by.
    pub map_epoch: u64,
    /// It answers an ask of a take-over.
    pub take_over: bool,
    /// Of a move: the seq of the source's FENCE, which is applied here with all that it carries.
    pub fence_seq: Option<u64>,
    /// By the zone's number: the last seq below which everything is applied and nothing of the shard is parked.
    pub applied: BTreeMap<u8, u64>,
}

/// The answer to [`NodeTold`].
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodeAsked {
    /// The newest map.
    pub map_epoch: u64,
    /// What the node is to report of: it tells as soon as it can.
    pub asks: Vec<ReportAsk>,
    /// Tell again after this time at the latest, in milliseconds.
    pub tell_ms: u64,
    /// Leases of global services that its zone owns, each from the moment at which this telling was sent.
    #[serde(default)]
    pub leases: Vec<LeaseTold>,
}

/// A log may write a global service of its zone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LeaseTold {
    /// The global service's shard.
    pub shard: u16,
    /// The ownership that it is for; under another one it is worth nothing.
    pub owner_epoch: u64,
    /// For so long, in milliseconds, from the moment at which the telling was sent that this answers.
    pub lease_ms: u64,
}

/// What a log is to report of, once it goes by that map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReportAsk {
    /// The map that says moving, or no owner.
    pub map_epoch: u64,
    /// These shards.
    pub shards: Vec<u16>,
    /// The zone is to own them after a loss: from its report on it applies nothing of the lost zone's log until a map answers.
    pub take_over: bool,
}

/// `POST /v1/ops`: an operation to begin.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OpAsk {
    /// What.
    #[serde(flatten)]
    pub what: What,
    /// Who asks: told by the token where there are tokens.
    #[serde(default)]
    pub by: String,
    /// Why, for the audit.
    #[serde(default)]
    pub why: String,
    /// Begin although the preflight has reasons against it. Recorded; needs the role `admin`.
    #[serde(default)]
    pub force: bool,
    /// Give up after so long, in milliseconds; default: the service's.
    #[serde(default)]
    pub limit_ms: Option<u64>,
}

/// The kinds of operations. Zones by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// Some shards to one zone.
    Move {
        /// Which.
        shards: Vec<u16>,
        /// Where to.
        to: String,
    },
    /// All shards of a zone to the others.
    Evacuate {
        /// Which zone.
        zone: String,
        /// Where to; none named: spread over the others, the emptiest first.
        #[serde(default)]
        to: Option<String>,
    },
    /// To a zone what an evacuation or a take-over took from it.
    Restore {
        /// Which zone.
        zone: String,
    },
    /// A lost zone's shards to survivors.
    TakeOver {
        /// The zone that is lost.
        zone: String,
        /// Where to; none named: spread over the survivors.
        #[serde(default)]
        to: Option<String>,
    },
    /// Opens the locks of every take-over of these shards so far.
    Unlock {
        /// Which.
        shards: Vec<u16>,
    },
    /// One more zone, which owns nothing: done when its log is heard and has all that the others have.
    AddZone {
        /// Its name.
        zone: String,
    },
    /// A zone less: one that owns nothing and is not heard any more. Its name and its number stay its own.
    RemoveZone {
        /// Which zone.
        zone: String,
    },
    /// One more global service. Clients know it by its name: it stays.
    AddGlobal {
        /// What it is called: 1 to 64 of a-z, 0-9 and _.
        name: String,
        /// The zone that owns it at first.
        zone: String,
    },
    /// Other fences.
    Fences {
        /// The map that the preview was made of: refused if its fences are no longer those of today.
        from_epoch: u64,
        /// All fences, as [`FencesAsk`] has them; of an operation that is shown: none.
        #[serde(default, skip_serializing_if = "Value::is_null")]
        geojson: Value,
        /// As [`FencesAsk`] has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        datum: Option<String>,
    },
}

/// `POST /v1/fences/preview`: fences that might be the map's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct FencesAsk {
    /// A FeatureCollection of all fences, in the order that settles overlaps: each with the property `name`, and `shard` unless a fence of
    /// that name has one already.
    pub geojson: Value,
    /// What its coordinates mean: `WGS84` or `GCJ-02`; default: WGS84.
    #[serde(default)]
    pub datum: Option<String>,
    /// Places of which it is to be told whether they change their shard.
    #[serde(default)]
    pub towns: Vec<Town>,
}

/// A named place.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Town {
    /// Its name.
    pub name: String,
    /// Degrees east, WGS 84.
    pub lng: f64,
    /// Degrees north.
    pub lat: f64,
}

/// What new fences would change.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct FencesPreview {
    /// The map that they were compared with: what `fences` is to begin from.
    pub from_epoch: u64,
    /// What is legal and worth knowing, a sentence each.
    pub notes: Vec<String>,
    /// Names of fences that are new ..
    pub added: Vec<String>,
    /// .. that are gone ..
    pub removed: Vec<String>,
    /// .. and that have another shape or shard.
    pub changed: Vec<String>,
    /// Land that changes its shard, the largest first.
    pub gives: Vec<GiveView>,
    /// Shards that would have no fence any more.
    pub bare: Vec<u16>,
    /// Shards whose requests wait while the edit is made, since they give land to a shard of another zone.
    pub held: Vec<u16>,
    /// Of the towns that were named, those that change their shard.
    pub towns: Vec<TownView>,
    /// Land that is narrower than this, in metres, may be missing.
    pub resolution_m: f64,
}

/// Land that goes from one shard to another.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct GiveView {
    /// Whose it is; none: nobody's.
    pub from: Option<u16>,
    /// Whose it will be.
    pub to: Option<u16>,
    /// The owner of the one, by name ..
    pub from_zone: Option<String>,
    /// .. and of the other.
    pub to_zone: Option<String>,
    /// Do these differ?
    pub changes_zone: bool,
    /// How much, in square kilometres.
    pub km2: f64,
    /// Some places in it, `lng,lat`, at most 5.
    pub samples: Vec<String>,
    /// How many of the towns that were named.
    pub towns: u64,
}

/// A town that changes its shard.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TownView {
    /// Its name.
    pub name: String,
    /// The shard that it is in; none: nobody's.
    pub from: Option<u16>,
    /// The one that it will be in.
    pub to: Option<u16>,
}

/// An operation, as it is shown.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OpView {
    /// Its number; rises.
    pub id: u64,
    /// What was asked.
    #[serde(flatten)]
    pub what: What,
    /// Who asked.
    pub by: String,
    /// Why.
    pub why: String,
    /// It was begun against the preflight: its reasons.
    pub forced: Vec<String>,
    /// `running`, `done`, `aborted`, `gave_up`.
    pub state: String,
    /// What it waits for, or why it ended as it did; for people.
    pub says: String,
    /// When it was begun.
    pub begun_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// After so long, from its beginning or its last resumption, it gives up.
    pub limit_ms: u64,
    /// Each shard's way; `shards` are those that were asked for, where the operation names some.
    #[serde(rename = "ways")]
    pub shards: Vec<ShareView>,
}

/// One shard of an operation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShareView {
    /// The shard.
    pub shard: u16,
    /// Where from, by name.
    pub from: String,
    /// Where to.
    pub to: String,
    /// `waiting`, `on_its_way`, `given`, `returned`, `replaced`.
    pub state: String,
    /// The map that said so.
    pub epoch: u64,
}

/// `GET /v1/state`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The cluster's name.
    pub cluster: String,
    /// The newest map ..
    pub epoch: u64,
    /// .. its digest, in hex ..
    pub digest: String,
    /// .. and that of its fences: `/v1/fences` is asked again when it changes.
    pub fences_digest: String,
    /// Now, by this service's clock.
    pub now_ms: u64,
    /// Why no map is issued; none: all is well.
    pub stopped: Option<String>,
    /// Every zone of the map.
    pub zones: Vec<ZoneState>,
    /// Every shard of the map.
    pub shards: Vec<ShardState>,
    /// Those under way, then the newest that have ended; at most 50.
    pub ops: Vec<OpView>,
    /// The newest changes, newest first; at most 20.
    pub audit: Vec<AuditView>,
}

/// A zone at a glance.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ZoneState {
    /// Its name; `none`: the edges.
    pub name: String,
    /// Its number; edges have none.
    pub id: Option<u8>,
    /// `up`: its log was heard; `silent`: not for a while; `unheard`: never since this service began; `lost`: its shards were taken
    /// over, and it has not got them back.
    pub state: String,
    /// How many shards it owns.
    pub owns: u64,
    /// Its log is read-only.
    pub read_only: bool,
    /// Entries in its conflict ledger.
    pub ledger: u64,
    /// Records that it could not apply yet.
    pub parked: u64,
    /// By other zone: how many records that are durable there are not applied here.
    pub lacks: BTreeMap<String, u64>,
    /// By other zone whose records these are: of a zone that is lost, first and last seq by stream that nobody else has as far as it told.
    pub unknown: Vec<UnknownRange>,
    /// Its routers and logs.
    pub nodes: Vec<NodeState>,
}

/// Records of a lost zone that the others do not have, as far as it told before it was lost.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UnknownRange {
    /// The stream.
    pub stream: u32,
    /// The first seq that nobody else had when the shards were taken over.
    pub first: u64,
    /// The last that it told of; nobody knows of more.
    pub last: u64,
}

/// A node at a glance.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// `router` or `log`.
    pub kind: String,
    /// How long ago it told something.
    pub heard_ms_ago: u64,
    /// The map that it goes by.
    pub map_epoch: u64,
    /// A router: requests that wait for their shard.
    pub holding: u64,
}

/// A shard at a glance.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ShardState {
    /// Its number.
    pub shard: u16,
    /// `own`, `moving`, `lost`, `unlock`.
    pub kind: String,
    /// Who writes it, by name; none: nobody.
    pub owner: Option<String>,
    /// Since which epoch.
    pub owner_epoch: u64,
    /// Where a move takes it.
    pub to: Option<String>,
    /// Its newest entry's epoch.
    pub epoch: u64,
    /// What it is called: a global service; none: a shard of the map of fences.
    #[serde(default)]
    pub global: Option<String>,
    /// A global service: what is left of its owner's grant, in milliseconds. Until it has ended, no take-over names another owner.
    #[serde(default)]
    pub granted_ms: u64,
}

/// A change of the map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AuditView {
    /// The map that it made.
    pub epoch: u64,
    /// When.
    pub at_ms: u64,
    /// Who: a person, a token's name, or the service itself.
    pub by: String,
    /// Why, as it was given.
    pub why: String,
    /// The operation that it belongs to.
    pub op: Option<u64>,
    /// What changed, a line each.
    pub changes: Vec<String>,
}

/// Every error, with its status.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fault {
    /// What was seen, what was expected, what to do.
    pub error: String,
    /// Of a preflight, or of fences: each reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}
