//! `ezctl log verify`: every byte of each log, and the verdict that its next open would come to.

use super::files::Files;
use super::judge::{Judged, judge};
use super::place::{Place, some_unread};
use super::progress::Progress;
use super::scan::{Scan, Start};
use replog::open::Depth;
use serde_json::json;
use std::io::{self, Write};

/// Places of damage that are told of one log, at most.
const DAMAGE_MAX: usize = 1000;

/// Checks each log; the worst exit code counts.
pub fn run(out: &mut impl Write, places: &[Place], as_json: bool) -> io::Result<u8> {
    let mut worst = if some_unread() { 2 } else { 0 };
    for place in places {
        let judged = match whole(place) {
            Ok(judged) => judged,
            Err(e) => {
                // The others are checked all the same.
                worst = worst.max(2);
                unreadable(out, place, &e, as_json)?;
                continue;
            }
        };
        worst = worst.max(judged.code);
        let found = &judged.found;
        let (segments, batches) = (found.segments.len(), found.segments.iter().map(|s| s.batches).sum::<u64>());
        let (log, verdict, last_seq) = (place.name(), judged.word, found.last_seq);
        let damage = if judged.code >= 2 { damage(place)? } else { Vec::new() };
        if as_json {
            let line = json!({"log": log, "verdict": verdict, "why": judged.why, "live": judged.live,
                "segments": segments, "batches": batches, "last_seq": last_seq, "damage": damage, "exit_code": judged.code});
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{log}: {verdict}, {segments} segments, {batches} batches, last seq {last_seq}")?;
            if !judged.why.is_empty() {
                writeln!(out, "  {}", judged.why)?;
            }
            for text in damage {
                writeln!(out, "  {text}")?;
            }
        }
        out.flush()?; // the next one may take long, or be interrupted
    }
    Ok(worst)
}

fn whole(place: &Place) -> io::Result<Judged> {
    let total = Files::new(&place.dir).segments()?.iter().map(|(_, len)| len).sum();
    let progress = Progress::of(&place.name(), total);
    let _ender = progress.ender();
    judge(place, Depth::Whole, progress)
}

fn unreadable(out: &mut impl Write, place: &Place, why: &io::Error, as_json: bool) -> io::Result<()> {
    let log = place.name();
    match as_json {
        true => {
            writeln!(out, "{}", json!({"log": log, "verdict": "unreadable", "why": why.to_string(), "exit_code": 2}))?
        }
        false => writeln!(out, "{log}: unreadable\n  {why}")?,
    }
    out.flush()
}

/// The verdict names the first place that is wrong; here are all of them.
fn damage(place: &Place) -> io::Result<Vec<String>> {
    let mut scan = Scan::new(Files::new(&place.dir), place, Start::default())?;
    let mut all = Vec::new();
    while let Some(item) = scan.next()? {
        if let (Some(text), true) = (item.trouble(), all.len() < DAMAGE_MAX) {
            all.push(text);
        }
    }
    Ok(all)
}
