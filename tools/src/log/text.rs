//! How records and numbers are printed: as columns for people, as JSON for programs.

use replog::Record;
use replog::batch::Batch;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A column shows no more of a value; JSON has all of it.
const SHOWN_MAX: usize = 512;

/// One line of columns.
pub fn columns(seq: u64, r: &Record, as_hex: bool) -> String {
    let (op, epoch) = (r.op.name(), r.owner_epoch);
    let (table, key, value) = (word(&r.table, false), word(&r.key, as_hex), word(&r.value, as_hex));
    format!("{seq} {} {op} shard {} epoch {epoch} {table} {key} {value}", r.hlc, r.shard)
}

/// The same, and all there is to know, as JSON. What is no text comes in hexadecimal, under a name that says so.
pub fn object(log: &str, batch: &Batch, seq: u64, r: &Record, as_hex: bool) -> Value {
    let mut line = json!({"log": log, "seq": seq, "hlc": r.hlc.to_string(), "time": wall(r.hlc.ms()),
        "op": r.op.name(), "transaction": r.transaction, "shard": r.shard.0, "owner_epoch": r.owner_epoch.0,
        "zone": batch.zone.0, "stream": batch.stream, "term": batch.term});
    for (name, bytes, as_hex) in [("table", &r.table, false), ("key", &r.key, as_hex), ("value", &r.value, as_hex)] {
        match std::str::from_utf8(bytes) {
            Ok(text) if !as_hex => line[name] = text.into(),
            Ok(_) | Err(_) => line[format!("{name}_hex")] = hex(bytes).into(),
        }
    }
    line
}

/// What a terminal may show as it is; other bytes escaped; a dash for nothing.
pub fn word(bytes: &[u8], as_hex: bool) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    let mut shown = &bytes[..bytes.len().min(SHOWN_MAX)];
    // A character that the limit cuts in two is left out, not escaped.
    while shown.len() < bytes.len() && bytes[shown.len()] & 0xc0 == 0x80 && shown.len() > SHOWN_MAX - 4 {
        shown = &shown[..shown.len() - 1];
    }
    let text = if as_hex { hex(shown) } else { plain(shown) };
    if shown.len() < bytes.len() { format!("{text}.. ({} bytes)", bytes.len()) } else { text }
}

/// Text without control characters as it is; anything else escaped.
pub fn plain(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(s) if !s.chars().any(char::is_control) => s.to_owned(),
        Ok(_) | Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        write!(text, "{b:02x}").expect("a string takes everything");
    }
    text
}

/// Milliseconds since 1970 as RFC 3339; of a time that has no such form: as seconds.
pub fn wall(ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    time.ok().and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| format!("@{}.{:03}", ms / 1000, ms % 1000))
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let Some(unit) = (0..units.len()).rev().find(|u| n >= 1 << (10 * (u + 1))) else { return format!("{n} B") };
    format!("{:.1} {}", n as f64 / (1u64 << (10 * (unit + 1))) as f64, units[unit])
}

/// Nanoseconds for people.
pub fn span(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_never_gets_control_characters_and_long_values_are_cut_at_a_character() {
        assert_eq!(word(b"", false), "-");
        assert_eq!(word("豆腐".as_bytes(), false), "豆腐");
        assert_eq!(word(b"a\x1b[2J", false), "a\\x1b[2J");
        assert_eq!(word(b"\xff", false), "\\xff");
        assert_eq!(word(b"\xff", true), "ff");
        let long = word("豆".repeat(400).as_bytes(), false);
        assert_eq!(long, format!("{}.. (1200 bytes)", "豆".repeat(170)));
        assert!(word(&[0xbf; 2000], true).starts_with(&"bf".repeat(508)));
    }

    #[test]
    fn times_and_sizes_are_for_people() {
        assert_eq!(wall(1_700_000_000_250), "2023-11-14T22:13:20.25Z");
        assert_eq!(wall(u64::MAX >> 16), "@281474976710.655");
        assert_eq!(
            (bytes(12), bytes(1536), bytes(u64::MAX)),
            ("12 B".into(), "1.5 KiB".into(), "16777216.0 TiB".into())
        );
        assert_eq!((span(5), span(1500), span(2_000_000), span(3_100_000_000)).2, "2.0 ms");
    }
}
