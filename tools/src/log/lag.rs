//! `ezctl log lag`: how far mirrors and stores are behind the origins, in records and in milliseconds of HLC.

use super::files::Files;
use super::place::{Place, places};
use super::text;
use clap::Args;
use replog::Hlc;
use replog::batch::{Batch, Fault};
use replog::limits::{BLOCK, HEAD_MAX};
use replog::open::{Storage, Walk};
use replog::segment::{FIRST_POS, Header, seq_of_name};
use replog::uring::sqlite::Sqlite;
use serde_json::json;
use shardmap::Zone;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Args)]
pub struct Options {
    /// Look again every second, until interrupted
    #[arg(long, short)]
    follow: bool,
}

/// One incarnation of a zone's stream.
type Stream = (Zone, u32, u128);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Origin,
    Mirror,
    /// A directory that stands by itself.
    Copy,
}

/// A copy of a stream, and how far it has come.
struct Tail {
    place: Place,
    role: Role,
    /// The segment that was read last, its header, and where its known batches end.
    segment: Option<(String, Header, u64)>,
    last_seq: u64,
    last_hlc: Hlc,
}

/// A line of the answer.
struct Row {
    stream: Stream,
    what: &'static str,
    path: PathBuf,
    seq: u64,
    /// `None`: the HLC of that seq is not known, since no copy here holds it.
    hlc: Option<Hlc>,
}

/// Prints the table once, or every second.
pub fn run(out: &mut impl Write, paths: &[PathBuf], options: &Options, as_json: bool) -> io::Result<u8> {
    let mut tails = Vec::new();
    for path in paths {
        tails.extend(places(path)?.iter().map(Tail::new));
    }
    loop {
        for tail in &mut tails {
            tail.refresh()?;
        }
        let rows = rows(&tails);
        print(out, &rows, as_json)?;
        if !options.follow {
            return Ok(0);
        }
        out.flush()?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

impl Role {
    /// By the name of the directory that its directory is in.
    pub fn of(place: &Place) -> Role {
        let path = std::fs::canonicalize(&place.dir).unwrap_or_else(|_| place.dir.clone());
        match path.parent().and_then(|p| p.file_name()).and_then(|n| n.to_str()) {
            Some("log") => Role::Origin,
            Some("mirror") => Role::Mirror,
            Some(_) | None => Role::Copy,
        }
    }
}

/// The database of the node that a log or a mirror belongs to, if there is one.
pub fn store_of(place: &Place, stream: u32) -> Option<PathBuf> {
    if Role::of(place) == Role::Copy {
        return None;
    }
    let dir = std::fs::canonicalize(&place.dir).ok()?;
    let db = dir.parent()?.parent()?.join("store").join(format!("{stream}.db"));
    db.exists().then_some(db)
}

impl Tail {
    fn new(place: &Place) -> Tail {
        Tail { place: place.clone(), role: Role::of(place), segment: None, last_seq: 0, last_hlc: Hlc(0) }
    }

    fn stream(&self) -> Option<Stream> {
        self.segment.as_ref().map(|(_, h, _)| (h.zone, h.stream, h.log_uuid))
    }

    /// Reads headers from where the last look ended to the end of the newest segment that can be read.
    fn refresh(&mut self) -> io::Result<()> {
        let mut files = Files::new(&self.place.dir);
        for (name, _) in files.segments()?.into_iter().rev() {
            let header = match files.read(&name, 0, BLOCK).map(|block| Header::parse(&block)) {
                Ok(Ok(header)) if seq_of_name(&name) == Some(header.first_seq) => header,
                Ok(Ok(_)) => continue, // used again since it was opened
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // retired meanwhile
                Ok(Err(_)) | Err(_) => {
                    eprintln!("ezctl log: {}/{name}: its header cannot be read", self.place.name());
                    continue;
                }
            };
            let known = self.segment.take().filter(|(_, h, _)| *h == header);
            let mut pos = known.map_or(FIRST_POS, |(_, _, pos)| pos);
            (self.last_seq, self.last_hlc) =
                (self.last_seq.max(header.first_seq - 1), self.last_hlc.max(header.created));
            while let Ok((batch, len)) = head(&mut files, &name, header.salt, pos)? {
                (self.last_seq, self.last_hlc) = (batch.last_seq(), batch.last_hlc);
                pos += len;
            }
            self.segment = Some((name, header, pos));
            return Ok(());
        }
        Ok(())
    }

    /// The HLC of a seq, if this copy holds it.
    fn hlc_of(&self, seq: u64) -> io::Result<Option<Hlc>> {
        if seq == self.last_seq {
            return Ok(Some(self.last_hlc));
        }
        let mut files = Files::new(&self.place.dir);
        let names = files.segments()?;
        let held = names.iter().rev().find(|(name, _)| seq_of_name(name).is_some_and(|first| first <= seq));
        let Some((name, _)) = held else { return Ok(None) };
        let Ok(header) = Header::parse(&files.read(name, 0, BLOCK)?) else { return Ok(None) };
        let mut pos = FIRST_POS;
        while let Ok((batch, len)) = head(&mut files, name, header.salt, pos)? {
            if batch.last_seq() >= seq {
                let read = Walk::new(name, header.salt, u64::MAX).at(&mut files, pos)?;
                let record = read.ok().and_then(|(b, _)| b.iter().flatten().find(|(s, _)| *s == seq));
                return Ok(record.map(|(_, r)| r.hlc));
            }
            pos += len;
        }
        Ok(None)
    }
}

/// A batch's header, and how long the batch is on disk.
fn head(files: &mut Files, name: &str, salt: u64, pos: u64) -> io::Result<Result<(Batch, u64), Fault>> {
    let block = files.read(name, pos, HEAD_MAX)?;
    Ok(Batch::head(&block, salt, pos).map(|(batch, lengths)| (batch, lengths.disk as u64)))
}

fn rows(tails: &[Tail]) -> Vec<Row> {
    let mut rows = Vec::new();
    for tail in tails {
        let Some(stream) = tail.stream() else { continue };
        let what = match tail.role {
            Role::Origin => "origin",
            Role::Mirror => "mirror",
            Role::Copy => "copy",
        };
        let (path, seq, hlc) = (tail.place.dir.clone(), tail.last_seq, Some(tail.last_hlc));
        rows.push(Row { stream, what, path, seq, hlc });
        let Some(db) = store_of(&tail.place, stream.1) else { continue };
        match Sqlite::applied(&db) {
            Ok(applied) => {
                // A zone that is not named has had nothing applied.
                let seq = applied.get(stream.0).unwrap_or(0);
                let of_stream = tails.iter().filter(|t| t.stream() == Some(stream));
                let hlc = of_stream.filter_map(|t| t.hlc_of(seq).ok().flatten()).next();
                rows.push(Row { stream, what: "applied", path: db, seq, hlc });
            }
            Err(e) => eprintln!("ezctl log: {e}"),
        }
    }
    rows.sort_by_key(|r| r.stream);
    rows
}

fn print(out: &mut impl Write, rows: &[Row], as_json: bool) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let mut ahead: BTreeMap<Stream, &Row> = BTreeMap::new();
    for row in rows {
        // The origin counts; without one, the copy that has come furthest.
        let best = ahead.entry(row.stream).or_insert(row);
        if best.what != "origin" && (row.what == "origin" || row.seq > best.seq) {
            *best = row;
        }
    }
    let mut last = None;
    for row in rows {
        let best = ahead[&row.stream];
        let records = best.seq as i64 - row.seq as i64;
        let ms = row.hlc.zip(best.hlc).map(|(at, best)| best.ms() as i64 - at.ms() as i64);
        let (zone, stream, uuid) = row.stream;
        if as_json {
            let line = json!({"time": text::wall(now), "zone": zone.0, "stream": stream,
                "log_uuid": format!("{uuid:032x}"), "what": row.what, "path": row.path.display().to_string(),
                "seq": row.seq, "hlc": row.hlc.map(|h| h.to_string()), "behind_records": records, "behind_ms": ms,
                "behind_what": best.what});
            writeln!(out, "{line}")?;
            continue;
        }
        if last.replace(row.stream) != Some(row.stream) {
            let note = if best.what == "origin" { "" } else { "  (its origin is not among these paths)" };
            writeln!(out, "zone {zone} stream {stream}  {}{note}", text::wall(now))?;
        }
        let ms = ms.map_or("unknown".to_owned(), |ms| format!("{ms} ms"));
        let what = row.what;
        writeln!(
            out,
            "  {what:<8} seq {:>12}  behind {records:>10} records {ms:>10}  {}",
            row.seq,
            row.path.display()
        )?;
    }
    Ok(())
}
