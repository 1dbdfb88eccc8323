//! Gives a snapshot the mirror's place: carries out the steps of `seed::plan` with files, while the node runs and when it starts.

use super::super::core::{Core, Stream};
use super::super::dir::{Dir, random, remove_if_there, sync_dir};
use super::super::keeper::Job;
use super::super::now_ms;
use crate::apply::Seed;
use crate::limits::SEGMENT_BYTES_MIN;
use crate::open::Storage;
use crate::seed::{Plan, Prepared, Seen, Step, next_step, put_gap};
use crate::segment::{Checkpoint, Header};
use crate::{Hlc, Op, Record};
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Names that are tried for an old mirror in the quarantine.
const KEPT_MAX: u32 = 1000;

/// The directory that is prepared beside the mirror in `dir`.
fn prepared(dir: &Path) -> PathBuf {
    beside(dir, "")
}

/// The file in which a snapshot waits until all of it has come.
pub fn spool(dir: &Path) -> PathBuf {
    beside(dir, ".parts")
}

fn beside(dir: &Path, end: &str) -> PathBuf {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    dir.with_file_name(format!(".seed-{name}{end}"))
}

/// Everything that may be done for the mirror in `dir` without a log; `applied` is what the store has, durably. Returns the plan that
/// has its place and no `gap` record yet. A crash at any point leaves what the next call goes on with.
pub fn settle(dir: &Path, applied: u64) -> io::Result<Option<Plan>> {
    let above = dir.parent().unwrap_or(Path::new("."));
    remove_if_there(&spool(dir))?;
    loop {
        let seen = look(dir, applied)?;
        match next_step(&seen) {
            None => return Ok(None),
            Some(Step::Record(plan)) => return Ok(Some(plan)),
            Some(Step::Discard) => discard(&prepared(dir))?,
            Some(Step::Keep(seq)) => {
                let kept = keep(dir, seq)?;
                tracing::warn!("{}: the mirror of before is kept: {}", dir.display(), kept.display());
            }
            Some(Step::Place) => {
                fs::rename(prepared(dir), dir)?;
                sync_dir(above)?;
            }
        }
    }
}

fn look(dir: &Path, applied: u64) -> io::Result<Seen> {
    let new = prepared(dir);
    let prepared = match (new.try_exists()?, plan_in(&new)?) {
        (false, _) => Prepared::No,
        (true, None) => Prepared::Half,
        (true, Some(plan)) => Prepared::Whole(plan),
    };
    Ok(Seen { prepared, mirror: dir.try_exists()?, placed: plan_in(dir)?, applied })
}

fn plan_in(dir: &Path) -> io::Result<Option<Plan>> {
    match fs::read(dir.join(Plan::NAME)) {
        Ok(bytes) => Ok(Plan::parse(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes the directory: a log that ends with the plan's seq and holds nothing, as its checkpoints say; then the plan.
pub fn prepare(dir: &Path, plan: &Plan, newest: Hlc) -> io::Result<()> {
    let new = prepared(dir);
    if new.try_exists()? {
        discard(&new)?;
    }
    fs::create_dir_all(&new)?;
    let Plan { zone, stream, log_uuid, seq, chain, term, .. } = *plan;
    let header = Header {
        zone,
        stream,
        log_uuid,
        number: 1,
        first_seq: seq + 1,
        term,
        salt: random()? as u64,
        prev_chain: chain,
        prev_end: 0,
        size: SEGMENT_BYTES_MIN,
        created: newest,
        recycled: false,
        prev_sealed: false,
    };
    let mut segment = header.encode().to_vec();
    segment.resize(SEGMENT_BYTES_MIN as usize, 0);
    write(&new.join(header.file_name()), &segment)?;
    for (name, generation) in Checkpoint::NAMES.into_iter().zip([2, 1]) {
        let checkpoint = Checkpoint { generation, log_uuid, durable_seq: seq, term, first_kept: seq + 1 };
        write(&new.join(name), &checkpoint.encode())?;
    }
    sync_dir(&new)?;
    let half = new.join("plan.tmp");
    write(&half, &plan.encode())?;
    fs::rename(&half, new.join(Plan::NAME))?;
    sync_dir(&new)?;
    sync_dir(new.parent().unwrap_or(Path::new(".")))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The plan goes first: what is left then is half made, whatever a crash leaves of it.
fn discard(new: &Path) -> io::Result<()> {
    remove_if_there(&new.join(Plan::NAME))?;
    sync_dir(new)?;
    for (name, _) in Dir::new(new).list()? {
        fs::remove_file(new.join(name))?;
    }
    fs::remove_dir(new)?;
    sync_dir(new.parent().unwrap_or(Path::new(".")))
}

/// Moves the mirror out of the way, to where people may look at it.
fn keep(dir: &Path, seq: u64) -> io::Result<PathBuf> {
    let above = dir.parent().unwrap_or(Path::new("."));
    let quarantine = above.join("quarantine");
    fs::create_dir_all(&quarantine)?;
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    for n in 1..=KEPT_MAX {
        let kept = quarantine.join(format!("{name}.before-{}-{n}", seq + 1));
        if !kept.try_exists()? {
            fs::rename(dir, &kept)?;
            sync_dir(&quarantine)?;
            sync_dir(above)?;
            return Ok(kept);
        }
    }
    Err(io::Error::other(format!("{KEPT_MAX} mirrors of {name} are kept in {}; move them away", quarantine.display())))
}

/// Prepares, commits, and takes the mirror's place. An error before the commit leaves the gap as it was; behind it the process
/// has to end, and its next start goes on.
pub async fn finish(core: &Rc<Core>, plan: Plan, seed: Seed, newest: Hlc) -> Result<(), String> {
    let stream = core.numbered(plan.stream)?.clone();
    let mirror = stream.mirrors.get(&plan.zone).ok_or("there is no such mirror")?;
    let dir = mirror.dir().to_owned();
    let made = glommio::executor().spawn_blocking(move || prepare(&dir, &plan, newest)).await;
    if let Err(e) = made {
        return Err(undone(mirror.dir(), &stream, plan, e.to_string()).await);
    }
    mirror.pause().await;
    let stored = core.ask(|done| Job::Seed { stream: plan.stream, seed, done }).await;
    let applied = match stored {
        Some(Ok(applied)) => applied,
        Some(Err(why)) => {
            mirror.go_on();
            return Err(undone(mirror.dir(), &stream, plan, why.to_string()).await);
        }
        None => return Err("the keeper is gone".into()),
    };
    stream.on_applied(plan.zone, &applied);
    let placed = match mirror.replace(plan).await {
        Ok(Some(plan)) => record(&stream, mirror.dir(), plan, newest).await,
        Ok(None) => Err("the mirror has its place, and its plan is gone".into()),
        Err(why) => Err(why),
    };
    let placed =
        placed.map_err(|why| format!("stream {}: the mirror cannot take its place: {why}; start again", plan.stream));
    core.watch(placed.clone());
    placed
}

/// Nothing was committed: what was prepared goes. If it cannot, the next start sees to it.
async fn undone(dir: &Path, stream: &Stream, plan: Plan, why: String) -> String {
    let (dir, applied) = (dir.to_owned(), stream.applied_seq(plan.zone));
    match glommio::executor().spawn_blocking(move || settle(&dir, applied)).await {
        Ok(_) => why,
        Err(e) => format!("{why}; what was prepared is removed at the next start: {e}"),
    }
}

/// Records what an earlier run of the process had no time to record.
pub async fn record_left(stream: &Stream) -> Result<(), String> {
    for plan in stream.unrecorded.take() {
        if let Some(mirror) = stream.mirrors.get(&plan.zone) {
            record(stream, mirror.dir(), plan, Hlc(0)).await?;
        }
    }
    Ok(())
}

/// Says in the own log what was skipped, for all zones; then forgets the plan.
pub async fn record(stream: &Stream, dir: &Path, plan: Plan, newest: Hlc) -> Result<(), String> {
    let Plan { zone, log_uuid, from, seq, .. } = plan;
    let begun = |hlc| Record {
        op: Op::Gap,
        transaction: 0,
        shard: Shard(0),
        owner_epoch: OwnerEpoch(0),
        hlc,
        table: Bytes::new(),
        key: Bytes::new(),
        value: put_gap(zone, log_uuid, from, seq),
    };
    // No await between the time and the append: another record would have a later one.
    let record = {
        let mut gate = stream.gate.borrow_mut();
        gate.observe(newest);
        begun(gate.tick(now_ms()))
    };
    let appended = stream.log.begin_append(vec![record.clone()]);
    stream.fenced(vec![record], appended).await?;
    tracing::warn!(
        "stream {}: seq {from} to {seq} of zone {zone} came as a snapshot: recorded as a gap",
        stream.number
    );
    let dir = dir.to_owned();
    let forget = move || fs::remove_file(dir.join(Plan::NAME)).and_then(|()| sync_dir(&dir));
    glommio::executor().spawn_blocking(forget).await.map_err(|e| e.to_string())
}
