//! The peer's side: asks its origin for a snapshot, keeps it in a file until all of it has come, then has it stored part by part.

use super::super::borrow::{Copy, Lender};
use super::super::keeper::Job;
use super::super::now_ms;
use super::{Begun, Command, Party, Running, SILENT_MAX};
use crate::apply::Seed;
use crate::link::{Ask, Frame, Held, SeedAsk};
use crate::seed::{Head, PART_MAX, Plan, Taken, Taker, Taking, Whole};
use crate::store::Changes;
use bytes::Bytes;
use futures_channel::oneshot;
use futures_lite::future::block_on;
use shardmap::Zone;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The origin hears this often that what it sent is being stored.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Seeds this zone's copy of `origin`'s stream; `begun` hears at once whether it begins. Blocks: on a thread of its own.
pub fn take(party: &Party, copy: Copy, running: Running, begun: oneshot::Sender<Result<String, String>>) {
    let (stream, zone) = (copy.stream, copy.origin);
    let mut begun = Some(begun);
    tracing::warn!("stream {stream}: an operator has it seeded anew from zone {zone}");
    let work = || work(party, copy, &running, &mut begun);
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("its thread panicked".into()));
    party.tell(Command::Over { stream, zone });
    match &outcome {
        Ok(text) => tracing::warn!("stream {stream} of zone {zone}: {text}"),
        Err(why) => tracing::error!("stream {stream} of zone {zone}: seeding failed: {why}"),
    }
    if let (Some(begun), Err(why)) = (begun, &outcome) {
        let _ = begun.send(Err(why.clone())); // whoever asked may have gone
    }
    running.end(&outcome);
}

fn work(
    party: &Party,
    copy: Copy,
    running: &Running,
    told: &mut Option<oneshot::Sender<Result<String, String>>>,
) -> Result<String, String> {
    let (own, stream, zone) = (party.options.zone, copy.stream, copy.origin);
    let begun = party.ask(|done| Command::Begin { stream, zone, done })?;
    let held = connect(copy.clone())?.held().map_err(|e| format!("zone {zone}: {e}"))?;
    if let Some(why) = why_not(&begun, &held) {
        return Err(why);
    }
    let taking = Taking { own, stream, streams: copy.streams };
    let mut seeding = Seeding { running, begun: &begun, taking, lender: connect(copy.clone())? };
    let Copy { cluster, peer, streams, .. } = copy;
    let seq = begun.mirror.durable.max(begun.applied);
    let ask = Ask { cluster: Bytes::from(cluster), origin: zone, peer, stream, streams, seq };
    seeding.lender.send(&Frame::Seed(SeedAsk { asker: own, ask })).map_err(|e| format!("zone {zone}: {e}"))?;
    let spool = Spool(super::spool(&begun.dir));
    let whole = seeding.fetch(&spool.0, &held, told)?;
    seeding.store(&spool.0)?;
    drop(spool);
    let Head { log_uuid, seq, chain, term, map_epoch, unseen } = whole.head;
    let plan = Plan { zone, stream, log_uuid, from: begun.mirror.durable + 1, seq, chain, term };
    let seed = Seed { zone, seq, map_epoch, fences: whole.fences, unseen };
    party.ask(|done| Command::Finish { plan, seed, newest: whole.newest, done })?;
    Ok(format!("seeded: seq {} to {seq} came as a snapshot; the log goes on behind it", plan.from))
}

fn connect(copy: Copy) -> Result<Lender, String> {
    let zone = copy.peer;
    Lender::connect(copy, SILENT_MAX).map_err(|e| format!("zone {zone} cannot be reached: {e}"))
}

/// Why there is nothing to seed, or not by this origin; `None`: it may be.
fn why_not(begun: &Begun, held: &Held) -> Option<String> {
    let Begun { mirror, first_kept, scan, .. } = begun;
    if held.log_uuid == 0 {
        return Some("the origin has no such log".into());
    }
    if mirror.log_uuid.is_some_and(|known| known != held.log_uuid) {
        return Some(
            "the origin's log was rebuilt: its seqs mean other records now, and a snapshot would make the old ones' cuts and ledger \
             wrong; restore the origin's own log"
                .into(),
        );
    }
    if mirror.durable > held.durable {
        let (here, there) = (mirror.durable, held.durable);
        return Some(format!(
            "seq {here} is durable here, the origin ends with {there}: the logs differ, compare them first"
        ));
    }
    let in_gap = mirror.durable + 1 < held.first_kept;
    let unseen = scan.is_some_and(|s| s.from < *first_kept);
    if in_gap || unseen {
        return None;
    }
    let (next, first) = (mirror.durable + 1, held.first_kept);
    Some(format!(
        "there is no gap: seq {next} comes next here, the origin keeps what is from {first} on, and the link brings it"
    ))
}

/// A file that is removed in any case: what it holds is worth nothing beyond this process.
struct Spool(std::path::PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // there may be none yet; a start removes one too
    }
}

struct Seeding<'a> {
    running: &'a Running,
    begun: &'a Begun,
    taking: Taking,
    lender: Lender,
}

impl Seeding<'_> {
    /// Takes parts into the file until the end says that all of them have come.
    fn fetch(
        &mut self,
        spool: &Path,
        held: &Held,
        told: &mut Option<oneshot::Sender<Result<String, String>>>,
    ) -> Result<Whole, String> {
        let room = |e: std::io::Error| format!("{}: {e}", spool.display());
        let mut file = BufWriter::with_capacity(PART_MAX, File::create(spool).map_err(room)?);
        let mut taker = Taker::new(self.taking);
        loop {
            let part = match self.lender.frame() {
                Ok(Frame::Part(part)) => part,
                Ok(Frame::Stop(stop)) => return Err(stop.to_string()),
                Ok(_) => return Err("what came is no part of a snapshot".into()),
                Err(e) => return Err(format!("the origin sends no more: {e}")),
            };
            file.write_all(&(part.len() as u32).to_le_bytes()).and_then(|()| file.write_all(&part)).map_err(room)?;
            match taker.on_part(part, now_ms()).map_err(|e| e.to_string())? {
                Taken::Head(head) => {
                    self.judge(&head, held)?;
                    let text = format!("seeding begins: seq {} to {}", self.begun.mirror.durable + 1, head.seq);
                    told.take().into_iter().for_each(|told| drop(told.send(Ok(text.clone()))));
                }
                Taken::Store(_) | Taken::Kept => {}
                Taken::Whole(whole) => {
                    file.flush().map_err(room)?;
                    return Ok(whole);
                }
            }
            let (rows, bytes) = taker.progress();
            self.running.progress("fetching", rows, bytes)?;
        }
    }

    fn judge(&self, head: &Head, held: &Held) -> Result<(), String> {
        let Begun { mirror, applied, map_epoch, .. } = self.begun;
        if head.log_uuid != held.log_uuid {
            return Err("the snapshot is of another incarnation of the log".into());
        }
        if head.map_epoch > *map_epoch {
            let (theirs, ours) = (head.map_epoch, map_epoch);
            return Err(format!(
                "the origin goes by map {theirs}, this zone by map {ours}: wait until it has that map"
            ));
        }
        if head.seq < mirror.durable.max(*applied) {
            let (least, end) = (mirror.durable.max(*applied), head.seq);
            return Err(format!("the snapshot ends with seq {end}, this zone has seq {least} already"));
        }
        Ok(())
    }

    /// Has every part stored, each in one transaction behind which reads wait.
    fn store(&mut self, spool: &Path) -> Result<(), String> {
        let room = |e: std::io::Error| format!("{}: {e}", spool.display());
        let mut file = BufReader::with_capacity(PART_MAX, File::open(spool).map_err(room)?);
        let (mut taker, mut beat) = (Taker::new(self.taking), Instant::now());
        loop {
            let mut len = [0; 4];
            file.read_exact(&mut len).map_err(room)?;
            let mut part = vec![0; (u32::from_le_bytes(len) as usize).min(PART_MAX)];
            file.read_exact(&mut part).map_err(room)?;
            match taker.on_part(part.into(), now_ms()).map_err(|e| e.to_string())? {
                Taken::Store(list) => self.merge(Changes { list, durable: false })?,
                Taken::Head(_) | Taken::Kept => {}
                Taken::Whole(_) => return Ok(()),
            }
            let (rows, bytes) = taker.progress();
            self.running.progress("storing", rows, bytes)?;
            if beat.elapsed() >= BEAT_EVERY {
                beat = Instant::now();
                let hlc = crate::Hlc(0);
                // An origin that is gone hears nothing, and its snapshot is here all the same.
                let _ = self.lender.send(&Frame::Beat { sent_us: 0, durable: 0, hlc, everywhere: 0 });
            }
        }
    }

    fn merge(&self, changes: Changes) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let stream = self.taking.stream;
        let gone = || "the store's thread is gone".to_owned();
        self.begun.jobs.send(Job::Merge { stream, changes, done }).map_err(|_| gone())?;
        block_on(answer).map_err(|_| gone())
    }
}

/// Where the snapshot of `origin`'s stream is to be had.
pub(in super::super) fn origin_copy(copies: Vec<Copy>, origin: Zone) -> Option<Copy> {
    copies.into_iter().find(|c| c.peer == origin)
}
