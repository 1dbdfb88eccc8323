//! Opens what a node has on disk: the number of its streams, their stores, logs and mirrors.

use super::borrow::{Copy, Survey, mend};
use super::core::Stream;
use super::dir::{incarnation, lock, sync_dir};
use super::keeper::Kept;
use super::mirror::Mirror;
use super::node::{Error, Options};
use super::scans::Scans;
use super::seed;
use super::signal::Signal;
use super::sqlite::Sqlite;
use super::stream::{self, Kind, StreamLog};
use crate::apply::Applier;
use crate::gate::{Gate, Start};
use crate::log::Opened;
use crate::open::Floor;
use crate::seed::Plan;
use crate::store::Store;
use crate::watch::Watches;
use bytes::Bytes;
use shardmap::map::Map;
use shardmap::{Positions, Shard, Zone};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What a stream's gate and feeders start from: taken out of the applier before the keeper gets it.
pub(super) struct Begin {
    stream: u32,
    applied: Positions,
    settled: Positions,
    own_fences: Vec<(Shard, shardmap::OwnerEpoch)>,
    fences_applied: Vec<(Zone, Shard, shardmap::OwnerEpoch)>,
    scans: BTreeMap<Zone, crate::store::Scan>,
}

impl Begin {
    pub fn of(kept: &Kept) -> Begin {
        Begin {
            stream: kept.stream,
            applied: kept.applier.positions().clone(),
            settled: kept.settled(),
            own_fences: kept.applier.own_fences().collect(),
            fences_applied: kept.applier.fences().collect(),
            scans: kept.applier.scans().collect(),
        }
    }
}

/// One stream's store and applier, brought to `map` if it has an older one.
pub(super) fn open_store(options: &Options, stream: u32, map: &Arc<Map>) -> Result<Kept, Error> {
    let path = options.data_dir.join("store").join(format!("{stream}.db"));
    let why = |e: String| Error::Store { path: path.clone(), why: e };
    std::fs::create_dir_all(options.data_dir.join("store")).map_err(|e| why(e.to_string()))?;
    let mut store = Sqlite::open(&path).map_err(|e| why(e.to_string()))?;
    let state = store.state().map_err(|e| why(e.to_string()))?;
    // The applier compares cuts with those of the map that it had: it has to begin with that one.
    let had = match &state.map {
        Some((_, bytes)) => Arc::new(Map::decode(bytes).map_err(|e| why(format!("its map: {e}")))?),
        None => map.clone(),
    };
    let unfit = |why| Err(Error::Map { path: path.clone(), stored: had.epoch(), given: map.epoch(), why });
    if had.epoch() > map.epoch() {
        return unfit("nobody goes back an epoch; give the newer one");
    }
    if had.epoch() == map.epoch() && had.digest() != map.digest() {
        return unfit("but they differ: two GZS are at work, or one was restored");
    }
    let mut applier = Applier::new(options.zone, stream, options.streams, had, state);
    let changes = applier.on_map(map.clone(), Bytes::from(map.encode()));
    store.commit(&changes).map_err(|e| why(e.to_string()))?;
    Ok(Kept::new(stream, applier, store))
}

pub(super) async fn open_stream(
    options: &Options,
    survey: &Survey,
    map: &Arc<Map>,
    begin: Begin,
) -> Result<Stream, String> {
    let number = begin.stream;
    let log_options = |zone: Zone| stream::Options {
        zone,
        stream: number,
        kind: Kind::Origin,
        segment_bytes: options.segment_bytes,
        floor: Floor { applied: begin.applied.get(zone).unwrap_or(0), peers: 0 },
        scrub: options.scrub,
    };
    let dir = options.data_dir.join("log").join(number.to_string());
    let mut own = log_options(options.zone);
    own.floor.peers = incarnation(&dir).map_or(0, |log_uuid| survey.durable(number, log_uuid));
    let copies = |zone| options.copies(zone, number);
    let (log, opened) = open_or_mend(&dir, own, copies(options.zone)).await?;
    reaches_back(&dir, &log, begin.applied.get(options.zone))?;
    let (mut mirrors, mut unrecorded) = (BTreeMap::new(), Vec::new());
    for peer in &options.peers {
        let dir = options.data_dir.join("mirror").join(format!("{}-{number}", peer.name));
        unrecorded.extend(settle(&dir, begin.applied.get(peer.zone)).await?);
        let mirror = open_mirror(&dir, log_options(peer.zone), copies(peer.zone)).await?;
        if let Some(log) = mirror.log() {
            reaches_back(&dir, &log, begin.applied.get(peer.zone))?;
        }
        mirrors.insert(peer.zone, mirror);
    }
    let mut gate = Gate::new(Start {
        zone: options.zone,
        stream: number,
        streams: options.streams,
        map: map.clone(),
        fences: begin.own_fences.into_iter().chain(opened.fences).collect(),
        fences_applied: begin.fences_applied,
        newest: opened.last_hlc,
    });
    gate.keep_answers_for(options.answers_kept_ms);
    if options.start_alone {
        tracing::warn!("stream {number}: taking writes alone, by an operator's word");
        gate.start_alone();
    }
    Ok(Stream {
        zone: options.zone,
        number,
        term: opened.term,
        log,
        fencing: RefCell::default(),
        gate: RefCell::new(gate),
        mirrors,
        fed: RefCell::new(begin.applied.clone()),
        applied: RefCell::new(begin.applied),
        // At once: others let go what everybody has, and a log that is not written to brings nothing that would tell it later.
        settled: RefCell::new(begin.settled),
        kept: RefCell::default(),
        applied_changed: Signal::default(),
        links: RefCell::default(),
        links_changed: Signal::default(),
        everywhere: Cell::new(0),
        holds: RefCell::default(),
        seeded: Cell::new(0),
        unrecorded: RefCell::new(unrecorded),
        scans: RefCell::new(Scans::new(begin.scans)),
        scans_changed: Signal::default(),
        watches: RefCell::new(Watches::new(options.zone, number)),
    })
}

/// Opens a log. Damage or a gap is mended with another zone's copy, if one can be reached that has what is needed.
async fn open_or_mend(dir: &Path, options: stream::Options, copies: Vec<Copy>) -> Result<(StreamLog, Opened), String> {
    let why = match StreamLog::open(dir, options).await {
        Ok((log, opened, _)) => return Ok((log, opened)),
        Err(why) => why,
    };
    mended(dir, &why, options.floor, copies).await?;
    let (log, opened, _) = StreamLog::open(dir, options).await.map_err(|e| e.to_string())?;
    Ok((log, opened))
}

async fn open_mirror(dir: &Path, options: stream::Options, copies: Vec<Copy>) -> Result<Mirror, String> {
    let why = match Mirror::open(dir.to_owned(), options).await {
        Ok(mirror) => return Ok(mirror),
        Err(why) => why,
    };
    mended(dir, &why, options.floor, copies).await?;
    Mirror::open(dir.to_owned(), options).await.map_err(|e| e.to_string())
}

/// Ends what a crash has left of a seeding: in the gap as before, or with the snapshot in its place.
async fn settle(dir: &Path, applied: Option<u64>) -> Result<Option<Plan>, String> {
    let own = dir.to_owned();
    let settled = glommio::executor().spawn_blocking(move || seed::settle(&own, applied.unwrap_or(0))).await;
    settled.map_err(|e| format!("{}: what was left of a seeding: {e}", dir.display()))
}

/// Mends what kept a log from being opened, or says why not.
async fn mended(dir: &Path, why: &stream::Error, floor: Floor, copies: Vec<Copy>) -> Result<(), String> {
    let can_be = matches!(why, stream::Error::Corrupt { .. } | stream::Error::Gap { .. });
    if !can_be || copies.is_empty() {
        return Err(why.to_string());
    }
    tracing::error!("{why}");
    let own = dir.to_owned();
    let mend = move || match lock(&own) {
        Ok(Some(_held)) => mend(&own, floor, &copies),
        Ok(None) => Err("another process has taken the directory".into()),
        Err(e) => Err(e.to_string()),
    };
    glommio::executor().spawn_blocking(mend).await.map_err(|reasons| format!("{why}; {reasons}"))
}

/// A store that was restored from long ago lacks what its log no longer keeps: nothing may be skipped in silence.
fn reaches_back(dir: &Path, log: &StreamLog, applied: Option<u64>) -> Result<(), String> {
    let (first, applied) = (log.with(|l| l.first_kept()), applied.unwrap_or(0));
    if first <= applied + 1 {
        return Ok(());
    }
    Err(format!(
        "{}: gap: the store has applied up to seq {applied}, the log begins with {first}. The store is older than the log, as after \
         a restore: restore a newer store, or, of a mirror, move this directory away, start, and seed the stream (POST /seed)",
        dir.display()
    ))
}

/// The number of streams is written down, durably, when the directory is created, and must be the same ever after.
pub(super) fn check_streams(options: &Options) -> Result<(), Error> {
    let path = options.data_dir.join("STREAMS");
    let why = |e: std::io::Error| Error::Store { path: path.clone(), why: e.to_string() };
    std::fs::create_dir_all(&options.data_dir).map_err(why)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(has) if has == options.streams => Ok(()),
            Ok(has) => Err(Error::Streams { has, asked: options.streams }),
            Err(_) => {
                Err(Error::Store { path: path.clone(), why: format!("\"{}\" is no number of streams", text.trim()) })
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let new = path.with_extension("new");
            let mut file = std::fs::File::create(&new).map_err(why)?;
            file.write_all(format!("{}\n", options.streams).as_bytes()).and_then(|()| file.sync_all()).map_err(why)?;
            std::fs::rename(&new, &path).and_then(|()| sync_dir(&options.data_dir)).map_err(why)
        }
        Err(e) => Err(why(e)),
    }
}
