//! `ezctl log ls`: streams and mirrors, their segments, and what each is. Of sealed segments only header and footer are read.

use super::judge::{Judged, judge};
use super::place::Place;
use super::progress::Progress;
use super::text;
use replog::open::{Depth, Segment};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Lists each log.
pub fn run(out: &mut impl Write, places: &[Place], as_json: bool) -> io::Result<u8> {
    let mut code = 0;
    for place in places {
        let judged = match judge(place, Depth::Needed, Progress::none()) {
            Ok(judged) => judged,
            Err(e) => {
                out.flush()?;
                eprintln!("ezctl log: {e}");
                code = 2; // the others are listed all the same
                continue;
            }
        };
        let segments = judged.found.segments.iter().filter(|s| place.wants(&s.name));
        if as_json {
            writeln!(out, "{}", object(place, &judged, segments.map(segment).collect()))?;
        } else {
            table(out, place, &judged, &segments.collect::<Vec<_>>())?;
        }
    }
    Ok(code)
}

fn object(place: &Place, judged: &Judged, segments: Vec<Value>) -> Value {
    let found = &judged.found;
    let header = found.segments.last().map(|s| &s.header);
    let bytes: u64 = found.segments.iter().map(|s| s.file_len).sum();
    json!({"log": place.name(), "zone": header.map(|h| h.zone.0), "stream": header.map(|h| h.stream),
        "log_uuid": header.map(|h| format!("{:032x}", h.log_uuid)), "term": found.term,
        "first_seq": found.segments.first().map(|s| s.header.first_seq), "last_seq": found.last_seq,
        "checkpoint_seq": found.checkpoint.map(|c| c.durable_seq),
        "first_kept_seq": found.checkpoint.map(|c| c.first_kept.max(1)), "expired": found.expired, "last_hlc": found.last_hlc.to_string(),
        "last_time": text::wall(found.last_hlc.ms()), "file_bytes": bytes, "live": judged.live, "verdict": judged.word,
        "why": judged.why, "segments": segments})
}

fn segment(s: &Segment) -> Value {
    json!({"file": s.name, "number": s.header.number, "first_seq": s.header.first_seq, "last_seq": s.last_seq,
        "records": s.last_seq + 1 - s.header.first_seq, "end": s.end, "file_bytes": s.file_len, "term": s.header.term,
        "begun": s.header.created.to_string(), "recycled": s.header.recycled, "sealed": s.footer.is_some(),
        "digest": s.footer.as_ref().map(|f| text::hex(&f.digest))})
}

fn table(out: &mut impl Write, place: &Place, judged: &Judged, segments: &[&Segment]) -> io::Result<()> {
    let found = &judged.found;
    let header = found.segments.last().map(|s| &s.header);
    let whose = header.map_or(String::new(), |h| format!("  zone {} stream {} term {}", h.zone, h.stream, found.term));
    writeln!(out, "{}{whose}  last seq {}  {}", place.name(), found.last_seq, judged.word)?;
    if !segments.is_empty() {
        let heads = ("file", "first", "last", "records", "used", "bytes");
        let (file, first, last, records, used, bytes) = heads;
        writeln!(out, "  {file:<25} {first:>12} {last:>12} {records:>10} {used:>12} {bytes:>12}  begun")?;
    }
    for s in segments {
        let (first, sealed) = (s.header.first_seq, if s.footer.is_some() { "  sealed" } else { "" });
        let records = s.last_seq + 1 - first;
        let row = format!("{first:>12} {:>12} {records:>10} {:>12} {:>12}", s.last_seq, s.end, s.file_len);
        let begun = if s.header.created.0 == 0 { "-".to_owned() } else { text::wall(s.header.created.ms()) };
        writeln!(out, "  {} {row}  {begun}{sealed}", s.name)?;
    }
    for name in &found.expired {
        writeln!(out, "  {name} is not kept any more; the next open removes it")?;
    }
    if !judged.why.is_empty() {
        writeln!(out, "  {}", judged.why)?;
    }
    Ok(())
}
