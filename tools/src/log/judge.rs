//! Judges a log as its next open would, and says it in one word, a sentence and an exit code.

use super::crew::Crew;
use super::files::Files;
use super::place::Place;
use super::progress::Progress;
use replog::open::{Depth, Floor, Found, Verdict, examine};
use replog::segment::seq_of_name;
use replog::uring::dir::is_live;
use std::io;
use std::time::Duration;

/// A log that is being written is read again so often before its verdict counts.
const LIVE_TRIES: usize = 20;
const LIVE_WAIT: Duration = Duration::from_millis(50);

/// What a log is.
pub struct Judged {
    /// What was read.
    pub found: Found,
    /// A writer is at work on it.
    pub live: bool,
    /// One word.
    pub word: &'static str,
    /// What is wrong; empty if nothing is.
    pub why: String,
    /// The exit code of `verify`.
    pub code: u8,
}

/// Reads a log and judges it, every byte of it or no more than its next open must read; one that is being written may look torn
/// for a moment, and lose a segment to retention.
pub fn judge(place: &Place, depth: Depth, progress: Progress) -> io::Result<Judged> {
    let mut crew = Crew::new(&place.dir, progress);
    let mut look = || match depth {
        Depth::Whole => crew.examine(),
        Depth::Needed => needed(place),
    };
    for _ in 1..LIVE_TRIES {
        let live = is_live(&place.dir);
        match look() {
            Ok(found) if !live || is_fine(&found) => {
                return Ok(said(found, live));
            }
            Err(e) if !live && e.kind() != io::ErrorKind::NotFound => return Err(named(place, e)),
            Ok(_) | Err(_) => std::thread::sleep(LIVE_WAIT),
        }
    }
    look().map(|found| said(found, is_live(&place.dir))).map_err(|e| named(place, e))
}

/// Sealed segments are passed over as if a store had applied them; that they are there is told by the newest one's name.
fn needed(place: &Place) -> io::Result<Found> {
    let mut files = Files::new(&place.dir);
    let newest = files.segments()?.last().and_then(|(name, _)| seq_of_name(name));
    let applied = newest.map_or(0, |first| first.saturating_sub(1));
    examine(&mut files, Floor { applied, peers: 0 }, Depth::Needed)
}

fn named(place: &Place, e: io::Error) -> io::Error {
    let (text, dir) = (e.to_string(), place.dir.display().to_string());
    if text.contains(&dir) { e } else { io::Error::new(e.kind(), format!("{dir}: {text}")) }
}

fn is_fine(found: &Found) -> bool {
    matches!(found.verdict, Verdict::Clean | Verdict::Stale(_)) && found.footers_lost.is_empty()
}

fn said(found: Found, live: bool) -> Judged {
    let (word, why, code) = match &found.verdict {
        Verdict::Corrupt(corrupt) => ("corrupt", corrupt.to_string(), 2),
        Verdict::Gap(gap) => ("gap", gap.to_string(), 3),
        // Nothing is missing, and the next open takes it; but bytes at rest have changed, and a repair has something to do.
        _ if !found.footers_lost.is_empty() => ("corrupt", footers(&found), 2),
        Verdict::Empty => ("empty", String::new(), 0),
        Verdict::Clean | Verdict::Stale(_) if live => ("live", String::new(), 0),
        Verdict::Clean => ("clean", String::new(), 0),
        Verdict::Stale(stale) => ("clean", stale.to_string(), 0),
        Verdict::Torn(torn) if live => ("live", format!("being written: {torn}"), 0),
        Verdict::Torn(torn) => ("torn", torn.to_string(), 1),
    };
    Judged { found, live, word, why, code }
}

fn footers(found: &Found) -> String {
    let all = &found.footers_lost;
    let more = if all.len() > 1 { format!("; and {} more like it", all.len() - 1) } else { String::new() };
    all.first().map_or(String::new(), |first| format!("{first}{more}; `ezctl log repair` makes it again"))
}
