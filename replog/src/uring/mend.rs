//! Mends sealed segments while the node runs: what the scrub has found damaged is written anew beside itself, with the batches of another
//! zone's copy where they are needed, checked, and put in its place.
//!
//! ```text
//! scrub: damaged -> planned (this segment alone; what is around it is known) -> <name>.tmp, flushed, checked
//!     -> the damaged file is kept in quarantine/ -> renamed into place, directory flushed -> readers open it again
//! ```
//!
//! One segment at a time in the whole process, at the scrub's rate, on a thread of its own. The segment that is written is never touched. What
//! nobody has is left to the next open, as before.

use super::borrow::{Copy, Lender, REPAIR_MAX};
use super::core::{Core, Stream};
use super::dir::Dir;
use super::repair::{Again, keep, temporary, write};
use super::stream::{Damage, StreamLog};
use crate::Batch;
use crate::limits::BLOCK;
use crate::open::{Floor, Segment, Storage, Task};
use crate::repair::{Content, Identity, Patch, Rebuilt, Source, What, plan};
use crate::segment::Header;
use bytes::Bytes;
use glommio::timer::sleep;
use shardmap::Zone;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// What could not be mended is tried again after this long.
const RETRY: Duration = Duration::from_secs(60);
/// The least rate, whatever the scrub's is.
const BYTES_PER_S_MIN: u64 = 1 << 20;

/// A segment is being mended, by any core of this process.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Whoever has it may mend; its thread gives it back when it ends, whatever became of the node.
struct Turn;

impl Turn {
    fn take() -> Option<Turn> {
        (!BUSY.swap(true, Ordering::SeqCst)).then_some(Turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::SeqCst);
    }
}

/// Looks at every log of this core until it stops.
pub(super) async fn run(core: Rc<Core>) {
    // When each was tried last.
    let mut tried: BTreeMap<PathBuf, Instant> = BTreeMap::new();
    let mut told = BTreeSet::new();
    while !core.stopping.get() {
        sleep(LOOK).await; // nobody waits for this task to end: it goes with its executor
        tried.retain(|_, at| at.elapsed() < RETRY);
        let Some((stream, zone, log, damage)) = next(&core, &tried) else { continue };
        let Some(turn) = Turn::take() else { continue };
        let name = log.dir().join(&damage.file);
        tried.insert(name.clone(), Instant::now());
        if mend(&core, &stream, zone, &log, &damage, turn, !told.contains(&name)).await {
            tried.remove(&name);
            told.remove(&name);
        } else {
            told.insert(name);
        }
    }
}

/// A damaged segment that was not tried of late.
fn next(core: &Core, tried: &BTreeMap<PathBuf, Instant>) -> Option<(Rc<Stream>, Zone, StreamLog, Damage)> {
    for stream in &core.streams {
        for (zone, log) in stream.logs() {
            let damaged = log.scrubbed().damaged;
            if let Some(damage) = damaged.into_iter().find(|d| !tried.contains_key(&log.dir().join(&d.file))) {
                return Some((stream.clone(), zone, log, damage));
            }
        }
    }
    None
}

/// False: it is still damaged, which is said if it is the first time.
async fn mend(
    core: &Core,
    stream: &Stream,
    zone: Zone,
    log: &StreamLog,
    damage: &Damage,
    turn: Turn,
    say: bool,
) -> bool {
    let Some((segment, next)) = log.sealed_before(&damage.file) else { return false };
    let (dir, copies) = (log.dir(), core.options.copies(zone, stream.number));
    let pace = Pace::new(core.options.scrub.bytes_per_s.max(BYTES_PER_S_MIN));
    let (slow, done) = (pace.clone(), Arc::new(Mutex::new(None)));
    let (job, answer) = (Job { dir: dir.clone(), segment: segment.clone(), next, copies, pace }, done.clone());
    // Not one of the executor's own: those have to be there for the log.
    thread::spawn(move || {
        let outcome = job.work();
        drop(turn);
        *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    });
    let outcome = loop {
        sleep(Duration::from_millis(20)).await;
        if core.stopping.get() {
            slow.stop.store(true, Ordering::Relaxed);
        }
        if let Some(outcome) = done.lock().unwrap_or_else(PoisonError::into_inner).take() {
            break outcome;
        }
    };
    let name = dir.join(&segment.name);
    match outcome {
        Ok(None) => log.on_whole(&segment.name, false),
        Ok(Some(made)) => match log.replace(&segment, &made.new).await {
            Ok(true) => {
                log.on_whole(&segment.name, true);
                tracing::warn!(
                    "{}: mended while running, with {}; the damaged one is {}",
                    name.display(),
                    made.with,
                    made.kept.display()
                );
            }
            // It went meanwhile: its file may be used again, also under the name that was to keep it.
            Ok(false) => drop(std::fs::remove_file(made.kept)),
            Err(e) => tracing::error!("{}: written anew, and cannot be put in place: {e}", name.display()),
        },
        Err(why) if say && !core.stopping.get() => tracing::error!(
            "{}: it cannot be mended now: {why}. It is tried again each minute; a restart, and `ezctl log repair`, try too",
            name.display()
        ),
        Err(_) => {}
    }
    !log.scrubbed().damaged.iter().any(|d| d.file == damage.file)
}

/// One segment to write anew.
struct Job {
    dir: PathBuf,
    segment: Segment,
    next: Header,
    copies: Vec<Copy>,
    pace: Pace,
}

/// A segment that was written anew and waits to be put in place.
struct Made {
    new: PathBuf,
    /// Where the damaged one is kept.
    kept: PathBuf,
    with: String,
}

impl Job {
    /// `None`: nothing is damaged (any more). First with nobody's help: footers, stamps and padding follow from the batches.
    fn work(&self) -> Result<Option<Made>, String> {
        let mut reasons = Vec::new();
        match self.with(&mut Nobody, "its own batches".into()) {
            Ok(made) => return Ok(made),
            Err(why) if self.copies.is_empty() => return Err(format!("{why}, and there is no other zone")),
            Err(_) => {}
        }
        for copy in &self.copies {
            let whose = format!("the copy of zone {} at {}", copy.peer, copy.link);
            let made = Lender::connect(copy.clone(), REPAIR_MAX).map_err(said);
            match made.and_then(|mut lender| self.with(&mut lender, whose.clone())) {
                Ok(made) => return Ok(made),
                Err(why) => reasons.push(format!("{whose}: {why}")),
            }
        }
        Err(reasons.join("; "))
    }

    fn with(&self, source: &mut (dyn Source + '_), with: String) -> Result<Option<Made>, String> {
        let mut around = Around { dir: Dir::new(&self.dir), job: self };
        let header = Dir::new(&self.dir).read(&self.segment.name, 0, BLOCK).map_err(said)?;
        let mut made = plan(&mut around, Some(&mut Again(source)), Floor::default(), 0).map_err(said)?;
        if let Some(refusal) = made.refused.first() {
            return Err(refusal.to_string());
        }
        let mut rebuilt = made.files.pop().unwrap_or_else(|| Rebuilt {
            name: self.segment.name.clone(),
            is_new: false,
            len: self.segment.used_bytes().max(header.len() as u64),
            patches: Vec::new(),
        });
        if !made.files.is_empty() || rebuilt.name != self.segment.name {
            return Err("more than this segment would have to be written".into());
        }
        if Header::parse(&header).as_ref() != Ok(&self.segment.header) {
            let content = Content::Bytes(self.segment.header.encode());
            let patch = Patch { pos: 0, len: BLOCK as u64, what: What::Header, content, note: None };
            rebuilt.patches.insert(0, patch);
        }
        rebuilt.len = rebuilt.len.max(self.segment.file_len); // a spare that it becomes is taken to be that long
        if rebuilt.patches.is_empty() {
            return Ok(None);
        }
        let new = temporary(&self.dir, &rebuilt.name);
        let written = write(&self.dir, &rebuilt, source, &|bytes| self.pace.spend(bytes)).map_err(said);
        match written.and_then(|()| self.check()).and_then(|()| keep(&self.dir, &rebuilt.name).map_err(said)) {
            Ok(kept) => Ok(Some(Made { new, kept, with })),
            Err(why) => {
                let _ = std::fs::remove_file(new); // what is left, the next open removes
                Err(why)
            }
        }
    }

    /// Is the new file the segment, and does it end as the next one says?
    fn check(&self) -> Result<(), String> {
        let mut files = Around { dir: Dir::new(&self.dir), job: self };
        let name = format!("{}.tmp", self.segment.name);
        let header = Header::parse(&files.dir.read(&name, 0, BLOCK).map_err(said)?).map_err(said)?;
        let (end, sealed) = (Some(self.next.prev_end), self.next.prev_sealed || self.segment.footer.is_some());
        let task = Task { name, file_len: self.segment.file_len, header, end, sealed };
        let content = task.read(&mut files).map_err(said)?;
        let same = task.header == self.segment.header && content.is_before(&self.next);
        if same { Ok(()) } else { Err("what was written anew is not that segment".into()) }
    }
}

fn said(e: impl Display) -> String {
    e.to_string()
}

/// The log as a repair of one segment has to see it: the segment under the header that it is known to have, and the next one's header.
struct Around<'a> {
    dir: Dir,
    job: &'a Job,
}

impl Storage for Around<'_> {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let name = &self.job.segment.name;
        let len = self.dir.list()?.into_iter().find(|(of, _)| of == name).map_or(0, |(_, len)| len);
        Ok(vec![(name.clone(), len), (self.job.next.file_name(), BLOCK as u64)])
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let (segment, next) = (&self.job.segment, &self.job.next);
        if name == segment.name && pos == 0 {
            return Ok(segment.header.encode().slice(..len.min(BLOCK)));
        }
        if name == next.file_name() {
            let block = next.encode();
            let from = (pos as usize).min(BLOCK);
            return Ok(block.slice(from..(from + len).min(BLOCK)));
        }
        self.job.pace.spend(len)?;
        self.dir.read(name, pos, len)
    }
}

/// So fast, and no further once it is to stop.
#[derive(Clone)]
struct Pace {
    bytes_per_s: u64,
    stop: Arc<AtomicBool>,
}

impl Pace {
    fn new(bytes_per_s: u64) -> Pace {
        Pace { bytes_per_s, stop: Arc::new(AtomicBool::new(false)) }
    }

    /// Takes as long as so many bytes may take.
    fn spend(&self, bytes: usize) -> io::Result<()> {
        let until = Instant::now() + Duration::from_micros(bytes as u64 * 1_000_000 / self.bytes_per_s);
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
        }
        if self.stop.load(Ordering::Relaxed) { Err(io::Error::other("the node stops")) } else { Ok(()) }
    }
}

/// Knows of no batch.
struct Nobody;

impl Source for Nobody {
    fn batch_at(&mut self, _seq: u64) -> io::Result<Option<Batch>> {
        Ok(None)
    }
    fn identity(&mut self) -> io::Result<Option<Identity>> {
        Ok(None)
    }
}
