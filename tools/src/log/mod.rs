//! `ezctl log`: look into a log, live or damaged, without changing a byte of it.

use clap::{Args, Subcommand};
use replog::batch::{Batch, Fault};
use replog::limits::BLOCK;
use replog::open::{Depth, Floor, Found, Storage, Verdict, Walk, examine};
use replog::segment::{FIRST_POS, Header, seq_of_name};
use replog::uring::dir::{Dir, is_live};
use replog::{Op, Record};
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// `DATA/zone/log/stream`: so deep are directories searched for logs.
const DEPTH_MAX: usize = 4;
/// A log that is being written is read again so often before its verdict counts.
const LIVE_TRIES: usize = 5;

#[derive(Subcommand)]
pub enum Command {
    /// List streams, mirrors and their segments
    #[command(after_help = "Example: ezctl log ls /var/lib/ezone")]
    Ls {
        #[command(flatten)]
        at: At,
    },
    /// Print records, also those around damage
    #[command(after_help = "Example: ezctl log dump /var/lib/ezone/log/0 --table orders --from 100 --limit 20 --json")]
    Dump {
        #[command(flatten)]
        at: At,
        #[command(flatten)]
        which: Which,
    },
    /// Check every byte: exit code 0 fine, 1 torn at its end (the next open mends that), 2 corrupt or wrong usage, 3 a gap
    #[command(after_help = "Example: ezctl log verify /var/lib/ezone && echo fine")]
    Verify {
        #[command(flatten)]
        at: At,
    },
}

#[derive(Args)]
pub struct At {
    /// A node's data directory, a stream's directory, or one segment file
    path: PathBuf,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Which {
    /// The first seq
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// The last seq
    #[arg(long, default_value_t = u64::MAX)]
    to: u64,
    /// At most so many records
    #[arg(long, default_value_t = u64::MAX)]
    limit: u64,
    /// Of this table
    #[arg(long)]
    table: Option<String>,
    /// Of this shard
    #[arg(long)]
    shard: Option<u16>,
}

/// A stream's directory, and the one file that was asked for.
struct Place {
    dir: PathBuf,
    only: Option<String>,
}

pub fn run(command: Command) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = match command {
        Command::Ls { at } => places(&at.path).and_then(|p| ls(&mut out, &p, at.json)),
        Command::Dump { at, which } => places(&at.path).and_then(|p| dump(&mut out, &p, &which, at.json)),
        Command::Verify { at } => places(&at.path).and_then(|p| verify(&mut out, &p, at.json)),
    };
    match done.and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        // The reader of the pipe has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("ezctl log: {e}");
            ExitCode::from(2)
        }
    }
}

/// The logs at a path.
fn places(path: &Path) -> io::Result<Vec<Place>> {
    let with_path = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    if std::fs::metadata(path).map_err(with_path)?.is_file() {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if seq_of_name(&name).is_none() {
            let text = format!("{}: not a segment; its name would be 20 digits and .rlog", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        return Ok(vec![Place { dir, only: Some(name) }]);
    }
    let mut found = Vec::new();
    search(path, DEPTH_MAX, &mut found).map_err(with_path)?;
    found.sort();
    if found.is_empty() {
        let text = format!("{}: no log here, nor up to {DEPTH_MAX} directories below", path.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(found.into_iter().map(|dir| Place { dir, only: None }).collect())
}

fn search(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let is_log = |name: &str| seq_of_name(name).is_some() || name == "LOCK" || name.starts_with("CHECKPOINT.");
    if Dir::new(path).list()?.iter().any(|(name, _)| is_log(name)) {
        found.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if depth > 0 && entry.file_type()?.is_dir() {
            search(&entry.path(), depth - 1, found)?;
        }
    }
    Ok(())
}

/// Reads a log and judges it; one that is being written may look torn for a moment.
fn read(place: &Place) -> io::Result<(Found, bool)> {
    for _ in 1..LIVE_TRIES {
        let live = is_live(&place.dir);
        match examine(&mut Dir::new(&place.dir), Floor::default(), Depth::Whole) {
            Ok(found) if !live || found.verdict == Verdict::Clean => return Ok((found, live)),
            Err(e) if !live => return Err(e),
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    examine(&mut Dir::new(&place.dir), Floor::default(), Depth::Whole).map(|found| (found, is_live(&place.dir)))
}

/// One word, a text, and the exit code of `verify`.
fn judge(found: &Found, live: bool) -> (&'static str, String, u8) {
    match &found.verdict {
        Verdict::Empty => ("empty", String::new(), 0),
        Verdict::Clean | Verdict::Stale(_) if live => ("live", String::new(), 0),
        Verdict::Clean => ("clean", String::new(), 0),
        Verdict::Stale(stale) => ("clean", stale.to_string(), 0),
        Verdict::Torn(torn) if live => ("live", format!("being written: {torn}"), 0),
        Verdict::Torn(torn) => ("torn", torn.to_string(), 1),
        Verdict::Corrupt(corrupt) => ("corrupt", corrupt.to_string(), 2),
        Verdict::Gap(gap) => ("gap", gap.to_string(), 3),
    }
}

fn ls(out: &mut impl Write, places: &[Place], as_json: bool) -> io::Result<u8> {
    for place in places {
        let (found, live) = read(place)?;
        let (verdict, why, _) = judge(&found, live);
        let mut segments =
            found.segments.iter().filter(|s| place.only.as_ref().is_none_or(|o| *o == s.name)).peekable();
        let header = found.segments.last().map(|s| &s.header);
        if as_json {
            let segments: Vec<Value> = segments
                .map(|s| {
                    json!({"file": s.name, "number": s.header.number, "first_seq": s.header.first_seq,
                        "last_seq": s.last_seq, "batches": s.batches, "end": s.end, "file_bytes": s.file_len,
                        "term": s.header.term, "sealed": s.footer.is_some()})
                })
                .collect();
            let line = json!({"log": place.dir.display().to_string(), "zone": header.map(|h| h.zone.0),
                "stream": header.map(|h| h.stream), "log_uuid": header.map(|h| format!("{:032x}", h.log_uuid)),
                "term": found.term, "first_seq": found.segments.first().map(|s| s.header.first_seq),
                "last_seq": found.last_seq, "checkpoint_seq": found.checkpoint.map(|c| c.durable_seq),
                "last_hlc": found.last_hlc.to_string(), "verdict": verdict, "why": why, "segments": segments});
            writeln!(out, "{line}")?;
            continue;
        }
        let whose =
            header.map_or(String::new(), |h| format!("  zone {} stream {} term {}", h.zone, h.stream, found.term));
        writeln!(out, "{}{whose}  last seq {}  {verdict}", place.dir.display(), found.last_seq)?;
        if segments.peek().is_some() {
            writeln!(
                out,
                "  {:<25} {:>9} {:>9} {:>8} {:>12} {:>12}",
                "file", "first", "last", "batches", "used", "bytes"
            )?;
        }
        for s in segments {
            let (first, sealed) = (s.header.first_seq, if s.footer.is_some() { "  sealed" } else { "" });
            let row = format!("{:>9} {:>9} {:>8} {:>12} {:>12}", first, s.last_seq, s.batches, s.end, s.file_len);
            writeln!(out, "  {} {row}{sealed}", s.name)?;
        }
        if !why.is_empty() {
            writeln!(out, "  {why}")?;
        }
    }
    Ok(0)
}

fn verify(out: &mut impl Write, places: &[Place], as_json: bool) -> io::Result<u8> {
    let mut worst = 0;
    for place in places {
        let (found, live) = read(place)?;
        let (verdict, why, code) = judge(&found, live);
        worst = worst.max(code);
        let log = place.dir.display().to_string();
        let batches: u64 = found.segments.iter().map(|s| s.batches).sum();
        if as_json {
            let line =
                json!({"log": log, "verdict": verdict, "why": why, "last_seq": found.last_seq, "batches": batches});
            writeln!(out, "{line}")?;
        } else {
            let segments = found.segments.len();
            writeln!(out, "{log}: {verdict}, {segments} segments, {batches} batches, last seq {}", found.last_seq)?;
            if !why.is_empty() {
                writeln!(out, "  {why}")?;
            }
        }
    }
    Ok(worst)
}

fn dump(out: &mut impl Write, places: &[Place], which: &Which, as_json: bool) -> io::Result<u8> {
    let mut left = which.limit;
    for place in places {
        if left == 0 {
            break;
        }
        let heading = (!as_json && places.len() > 1).then(|| format!("# {}\n", place.dir.display()));
        dump_log(&mut Headed { out, heading }, place, which, as_json, &mut left)?;
    }
    Ok(0)
}

/// Writes its heading before anything else, and not at all if nothing follows.
struct Headed<'a, W> {
    out: &'a mut W,
    heading: Option<String>,
}

impl<W: Write> Write for Headed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(heading) = self.heading.take() {
            self.out.write_all(heading.as_bytes())?;
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Walks each segment by itself, so that damage in one place hides nothing in another.
fn dump_log(out: &mut impl Write, place: &Place, which: &Which, as_json: bool, left: &mut u64) -> io::Result<()> {
    let mut files = Dir::new(&place.dir);
    let mut names: Vec<(String, u64)> = files.list()?.into_iter().filter(|(n, _)| seq_of_name(n).is_some()).collect();
    names.sort();
    let log = place.dir.display().to_string();
    for (at, (name, len)) in names.iter().enumerate() {
        let after = names.get(at + 1);
        let ends_before = after.and_then(|(next, _)| seq_of_name(next)).is_some_and(|next| next <= which.from);
        if ends_before || place.only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let header = match Header::parse(&files.read(name, 0, BLOCK)?) {
            Ok(header) => header,
            Err(fault) => {
                eprintln!("ezctl log: {log}/{name}: {fault}; the file is left out");
                continue;
            }
        };
        let end = match after {
            Some((next, _)) => Header::parse(&files.read(next, 0, BLOCK)?).map_or(*len, |h| h.prev_end.min(*len)),
            None => *len,
        };
        let mut walk = Walk::new(name, header.salt, end);
        let (mut pos, mut told) = (FIRST_POS, false);
        while pos < end {
            match walk.at(&mut files, pos)? {
                Ok((batch, _)) => {
                    if batch.first_seq > which.to || !dump_batch(out, &log, &batch, which, as_json, left)? {
                        return Ok(());
                    }
                    pos += batch.disk_len() as u64;
                    told = false;
                }
                Err(fault) => {
                    // Zeros and the footer are the end; anything else is worth a word, once for each run of it.
                    let expected =
                        matches!(fault, Fault::Magic(0)) || fault == Fault::Magic(u32::from_le_bytes(*b"RLGE"));
                    if !expected && !told {
                        eprintln!("ezctl log: {log}/{name} at byte {pos}: {fault}; looking for the next intact batch");
                        told = true;
                    }
                    pos += BLOCK as u64;
                }
            }
        }
    }
    Ok(())
}

/// Prints what is wanted of a batch; false when there is nothing left to print.
fn dump_batch(
    out: &mut impl Write,
    log: &str,
    batch: &Batch,
    which: &Which,
    as_json: bool,
    left: &mut u64,
) -> io::Result<bool> {
    for (seq, record) in batch.iter().flatten() {
        let in_range = (which.from..=which.to).contains(&seq);
        let of_table = which.table.as_ref().is_none_or(|t| t.as_bytes() == &record.table[..]);
        if !in_range || !of_table || which.shard.is_some_and(|s| s != record.shard.0) {
            continue;
        }
        if *left == 0 {
            return Ok(false);
        }
        *left -= 1;
        if as_json {
            writeln!(out, "{}", to_json(log, batch, seq, &record))?;
        } else {
            let (op, epoch) = (op_name(record.op), record.owner_epoch);
            let (table, key, value) = (text(&record.table), text(&record.key), text(&record.value));
            writeln!(out, "{seq} {} {op} shard {} epoch {epoch} {table} {key} {value}", record.hlc, record.shard)?;
        }
    }
    Ok(true)
}

fn to_json(log: &str, batch: &Batch, seq: u64, r: &Record) -> Value {
    let mut line = json!({"log": log, "seq": seq, "hlc": r.hlc.to_string(), "op": op_name(r.op),
        "transaction": r.transaction, "shard": r.shard.0, "owner_epoch": r.owner_epoch.0, "zone": batch.zone.0,
        "stream": batch.stream, "term": batch.term, "table": plain(&r.table), "key": plain(&r.key)});
    match std::str::from_utf8(&r.value) {
        Ok(value) => line["value"] = value.into(),
        Err(_) => line["value_hex"] = r.value.iter().map(|b| format!("{b:02x}")).collect::<String>().into(),
    }
    line
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Put => "put",
        Op::Delete => "delete",
        Op::Fence => "fence",
        Op::Marker => "marker",
        Op::Gap => "gap",
        Op::Answer => "answer",
    }
}

/// What a terminal may show as it is; other bytes escaped; a dash for nothing.
fn text(bytes: &[u8]) -> String {
    if bytes.is_empty() { "-".to_owned() } else { plain(bytes) }
}

fn plain(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(s) if !s.chars().any(char::is_control) => s.to_owned(),
        Ok(_) | Err(_) => bytes.escape_ascii().to_string(),
    }
}
