//! `ezctl log repair`: puts damaged segments back as they were, out of another copy of the stream.

use super::files::Files;
use super::interrupt;
use super::lag::{Role, store_of};
use super::place::Place;
use super::text;
use clap::Args;
use replog::open::Floor;
use replog::repair::{Directory, Patch, Plan, Rebuilt, Source, plan};
use replog::uring::dir::{is_live, lock, random};
use replog::uring::repair::{Repaired, carry_out};
use replog::uring::sqlite::Sqlite;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;

/// Places of one segment that are listed; the rest is counted.
const SHOWN_MAX: usize = 20;

#[derive(Args)]
pub struct Options {
    /// Another copy of the stream: a mirror of it, or the origin of a mirror
    #[arg(long)]
    pub from: PathBuf,
    /// What the damaged one is: the zone's own log, which must have all that a mirror was given, or a mirror, which may be behind; asked for
    /// where directories named log/ and mirror/ do not tell
    #[arg(long = "as", value_enum)]
    pub kind: Option<Kind>,
    /// Carry it out; without this, only what would be done is said
    #[arg(long)]
    pub yes: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// What a directory is to its stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// The log of the zone that writes the stream
    Own,
    /// A copy in another zone
    Mirror,
}

/// Plans, prints the plan, and carries it out if that was asked for.
pub fn run(out: &mut impl Write, place: &Place, from: &Place, options: &Options) -> io::Result<u8> {
    if same_directory(place, from) {
        return Err(refuse(format!("{}: a log cannot be repaired from itself", place.name())));
    }
    let locked = if options.yes { Some(take(place)?) } else { None };
    let mut source = Directory::new(Files::new(&from.dir));
    let floor = floor(place, from, &mut source, options.kind)?;
    let salt = random()? as u64;
    let made = plan(&mut Files::new(&place.dir), Some(&mut source), floor, salt)?;
    let carries_out = options.yes && made.is_possible() && !made.is_empty();
    // From here on a signal is obeyed where nothing is half done.
    let hold = carries_out.then(interrupt::Hold::new);
    let done = match carries_out {
        true => Some(carry_out(&place.dir, &made, &mut source, floor, &interrupt::came)),
        false => None,
    };
    drop(locked);
    if let Some(Err(why)) = done {
        if interrupt::came() {
            eprintln!("ezctl log: {why}");
        }
        drop(hold);
        return Err(refuse(why.to_string()));
    }
    let done = done.and_then(Result::ok);
    let code = if !made.is_possible() { 2 } else { u8::from(!made.is_empty() && done.is_none()) };
    if options.json {
        writeln!(out, "{}", object(place, from, &made, done.as_deref(), code))?;
    } else {
        tell(out, place, from, &made, done.as_deref())?;
    }
    out.flush()?; // what was done is told, whatever signal came meanwhile
    drop(hold);
    Ok(code)
}

fn take(place: &Place) -> io::Result<std::fs::File> {
    lock(&place.dir)?.ok_or_else(|| refuse(format!("{}: a writer has it; stop its node first", place.name())))
}

fn refuse(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn same_directory(a: &Place, b: &Place) -> bool {
    match (std::fs::canonicalize(&a.dir), std::fs::canonicalize(&b.dir)) {
        (Ok(a), Ok(b)) => a == b,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

/// What must be there: what the node's store has applied, and, of an origin, what its mirror was given.
fn floor(place: &Place, from: &Place, source: &mut Directory<Files>, said: Option<Kind>) -> io::Result<Floor> {
    let mut floor = Floor::default();
    let Some(identity) = source.identity()? else { return Ok(floor) };
    if let Some(db) = store_of(place, identity.stream) {
        match Sqlite::applied(&db) {
            Ok(applied) => floor.applied = applied.get(identity.zone).unwrap_or(0),
            Err(e) => eprintln!("ezctl log: {e}; what it has applied is not known"),
        }
    }
    // An origin ships only what is durable there; a mirror that is behind its origin has lost nothing.
    let last = source.last_seq()?;
    match said.or(kind_of(place, from)) {
        Some(Kind::Own) => floor.peers = last,
        Some(Kind::Mirror) => {}
        None => {
            let own = Directory::new(Files::new(&place.dir)).last_seq()?;
            if own < last {
                return Err(refuse(format!(
                    "{}: it ends with seq {own}, {} with seq {last}. Has the first lost its end, being the zone's own log, or is it a mirror \
                     that is behind? Nothing in it tells: say --as own, to have its end put back too, or --as mirror",
                    place.name(),
                    from.name()
                )));
            }
        }
    }
    Ok(floor)
}

/// By the names of the directories that both are in: a stream has one log of its own, all others are mirrors of it.
fn kind_of(place: &Place, from: &Place) -> Option<Kind> {
    match (Role::of(place), Role::of(from)) {
        (Role::Origin, _) => Some(Kind::Own),
        (Role::Mirror, _) | (Role::Copy, Role::Origin) => Some(Kind::Mirror),
        (Role::Copy, Role::Mirror | Role::Copy) => None,
    }
}

fn tell(out: &mut impl Write, place: &Place, from: &Place, made: &Plan, done: Option<&[Repaired]>) -> io::Result<()> {
    if made.is_empty() {
        return writeln!(out, "{}: nothing to repair", place.name());
    }
    writeln!(out, "{}: from {}", place.name(), from.name())?;
    for file in &made.files {
        let how = if file.is_new { "made anew" } else { "written anew" };
        writeln!(out, "  {}: {how}, {}, {} places", file.name, text::bytes(file.len), file.patches.len())?;
        for patch in file.patches.iter().take(SHOWN_MAX) {
            let note = patch.note.map_or(String::new(), |note| format!(" ({note})"));
            writeln!(out, "    byte {}, {} bytes: {}{note}", patch.pos, patch.len, patch.what)?;
        }
        if file.patches.len() > SHOWN_MAX {
            writeln!(out, "    and {} more; --json has them", file.patches.len() - SHOWN_MAX)?;
        }
    }
    for refusal in &made.refused {
        writeln!(out, "  cannot be repaired: {refusal}")?;
    }
    let live = if is_live(&place.dir) { "; a writer is at work, so that some of it may only look damaged" } else { "" };
    match done {
        Some(done) => {
            for repaired in done {
                let kept =
                    repaired.kept.as_ref().map_or(String::new(), |k| format!("; the damaged one is {}", k.display()));
                writeln!(out, "  {} is in place{kept}", repaired.name)?;
            }
            Ok(())
        }
        None if made.is_possible() => writeln!(out, "nothing was changed: --yes carries it out{live}"),
        None => writeln!(out, "nothing was changed{live}"),
    }
}

fn object(place: &Place, from: &Place, made: &Plan, done: Option<&[Repaired]>, code: u8) -> Value {
    let patch = |p: &Patch| json!({"pos": p.pos, "bytes": p.len, "what": p.what.to_string(), "note": p.note.map(|n| n.to_string())});
    let file = |f: &Rebuilt| {
        json!({"file": f.name, "new": f.is_new, "file_bytes": f.len,
            "places": f.patches.iter().map(patch).collect::<Vec<_>>()})
    };
    let kept = |r: &Repaired| json!({"file": r.name, "kept": r.kept.as_ref().map(|k| k.display().to_string())});
    json!({"log": place.name(), "from": from.name(), "files": made.files.iter().map(file).collect::<Vec<_>>(),
        "refused": made.refused.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "done": done.map(|d| d.iter().map(kept).collect::<Vec<_>>()), "exit_code": code})
}
