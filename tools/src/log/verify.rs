//! `ezctl log verify`: every byte of each log, and the verdict that its next open would come to.

use super::files::Files;
use super::judge::judge;
use super::place::Place;
use super::progress::Progress;
use super::scan::{Scan, Start};
use replog::open::Depth;
use serde_json::json;
use std::io::{self, Write};

/// Places of damage that are told of one log, at most.
const DAMAGE_MAX: usize = 1000;

/// Checks each log; the worst exit code counts.
pub fn run(out: &mut impl Write, places: &[Place], as_json: bool) -> io::Result<u8> {
    let mut worst = 0;
    for place in places {
        let total = Files::new(&place.dir).segments()?.iter().map(|(_, len)| len).sum();
        let progress = Progress::of(&place.name(), total);
        let ender = progress.ender();
        let judged = judge(place, Depth::Whole, progress)?;
        drop(ender);
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
    }
    Ok(worst)
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
