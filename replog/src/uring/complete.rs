//! Completes a mirror from the other survivors' while its origin is lost, or silent: what one has and another lacks, verbatim.
//!
//! ```text
//! this zone ── ASK (origin's log, seq) ──▶ another survivor        again until it has no more
//!           ◀─ HELD, DATA, DATA ──────────                          ──▶ mirror
//! ```
//!
//! A survivor reports its positions for a lost shard once it has asked every other one that can be reached and has got what they have. One that
//! cannot be reached is passed over: what it has beyond is tail, and listed.

use super::borrow::{Copy, Lender};
use super::core::{Core, Stream};
use super::link;
use super::mirror::Mirror;
use crate::Batch;
use crate::link::Held;
use futures_lite::future::or;
use glommio::timer::sleep;
use shardmap::Zone;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How often the others are asked about an origin that is silent.
const LOOK: Duration = Duration::from_secs(1);
/// The same while a take-over waits for it.
const LOST_LOOK: Duration = Duration::from_millis(50);
/// Who does not answer within this is passed over.
const PATIENCE: Duration = Duration::from_secs(1);

/// What has come of asking one survivor.
enum Asked {
    /// It has no more than is here.
    Whole,
    /// It cannot be asked, or what it has does not fit.
    Not(String),
}

/// Completes this zone's mirror of `origin`'s `stream` for as long as the core lives.
pub(super) async fn run(core: Rc<Core>, stream: Rc<Stream>, origin: Zone) {
    let Some(mirror) = stream.mirrors.get(&origin) else { return };
    let copies = core.options.copies(origin, stream.number);
    let others: Vec<Copy> = copies.into_iter().filter(|c| c.peer != origin).collect();
    let mut said = vec![String::new(); others.len()];
    while !core.stopping.get() && !others.is_empty() {
        let (epoch, lost) = (core.epoch(), core.is_lost(stream.number, origin));
        let busy = mirror.is_held_off() || mirror.is_paused(); // a snapshot takes the log's place
        if !busy && (lost || !mirror.is_live()) {
            for (copy, said) in others.iter().zip(&mut said) {
                note(&core, &stream, mirror, copy, said).await;
            }
            mirror.on_completed(epoch);
        }
        let due = lost && mirror.completed() < core.epoch();
        or(core.map_beyond(epoch), sleep(if due { LOST_LOOK } else { LOOK })).await;
    }
}

/// Asks one survivor; why it could not be is said once.
async fn note(core: &Rc<Core>, stream: &Rc<Stream>, mirror: &Mirror, copy: &Copy, said: &mut String) {
    let before = mirror.taken_seq();
    match ask(core, stream, mirror, copy).await {
        Asked::Whole => said.clear(),
        Asked::Not(why) if why == *said => {}
        Asked::Not(why) => {
            tracing::warn!(
                "stream {}: zone {} at {} cannot be asked for what it has of zone {}'s log: {why}",
                stream.number,
                copy.peer,
                copy.link,
                copy.origin
            );
            *said = why;
        }
    }
    let after = mirror.taken_seq();
    if after > before {
        let (number, peer, origin) = (stream.number, copy.peer, copy.origin);
        tracing::info!("stream {number}: seq {} to {after} of zone {origin}'s log came from zone {peer}", before + 1);
    }
}

async fn ask(core: &Rc<Core>, stream: &Rc<Stream>, mirror: &Mirror, copy: &Copy) -> Asked {
    let receiver = link::receiver(core, stream, mirror, copy.origin).await;
    let mut lender = None;
    while !core.stopping.get() {
        let (to, from) = (copy.clone(), receiver.borrow().accepted() + 1);
        let answer = glommio::executor().spawn_blocking(move || lend(lender.take(), to, from)).await;
        let (next, held, batches) = match answer {
            Ok(answer) => answer,
            Err(e) => return Asked::Not(e.to_string()),
        };
        lender = Some(next);
        if held.log_uuid == 0 || held.durable < from {
            return Asked::Whole;
        }
        if from < held.first_kept {
            return Asked::Not(format!("its log begins with seq {}, {from} is wanted", held.first_kept));
        }
        for batch in batches {
            match receiver.borrow_mut().on_lent(held.log_uuid, batch) {
                Ok(Some(batch)) => mirror.take(held.log_uuid, batch),
                Ok(None) => break,
                Err(stop) => return Asked::Not(stop.to_string()),
            }
        }
        // The origin may be back, or the mirror full: then it goes on another time.
        if receiver.borrow().accepted() < from || !mirror.settled(PATIENCE).await {
            return Asked::Not(format!("seq {from} could not be taken"));
        }
        receiver.borrow_mut().on_durable(mirror.durable_seq());
    }
    Asked::Whole
}

/// One question, with plain blocking calls.
fn lend(lender: Option<Lender>, to: Copy, from: u64) -> io::Result<(Lender, Held, Vec<Batch>)> {
    let mut lender = match lender {
        Some(lender) => lender,
        None => Lender::connect(to, PATIENCE)?,
    };
    let (held, batches) = lender.from(from)?;
    Ok((lender, held, batches))
}
