//! `ezctl map`: check, compare and ask a map.

use clap::Subcommand;
use serde_json::json;
use shardmap::codec::MAGIC;
use shardmap::map::{Located, Map};
use shardmap::point::Point;
use shardmap::problem::{Note, Problem};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const MAP_BYTES_MAX: u64 = 256 << 20;
const LINE_BYTES_MAX: u64 = 4096;
const INPUT_BYTES: usize = 64 << 10;

#[derive(Subcommand)]
pub enum Command {
    /// Say all that is wrong with a map: exit 0 if nothing is, 1 if something is
    #[command(after_help = "Example: ezctl map check --map shardmap/data/china.toml")]
    Check {
        /// A map file (TOML) or a binary map
        #[arg(long)]
        map: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say which fence, shard and zone a place belongs to, and how that was found
    #[command(
        allow_negative_numbers = true,
        after_help = "\
Prints a line `fence shard zone how` for each place; `-` stands for no fence, no shard or no owner; how is inside, near,
default or none. A fence's name may hold blanks, the other three fields never do: split from the right, or use --json.
Exit code 2: a line was no place; it is named on standard error and has no answer.

Examples: ezctl map locate --map shardmap/data/china.toml 121.52669 31.2302
          echo 121.52669,31.2302 | ezctl map locate --map shardmap/data/china.toml -"
    )]
    Locate {
        /// A map file (TOML) or a binary map
        #[arg(long)]
        map: PathBuf,
        /// Longitude and latitude in degrees, or `-`: lines of `lng,lat` from standard input
        #[arg(num_args = 1..=2, default_value = "-", value_names = ["LNG", "LAT"])]
        place: Vec<String>,
        /// A JSON object for each place
        #[arg(long)]
        json: bool,
    },
    /// Show what changed between two maps, and whether the second may follow the first: exit 1 if not
    #[command(after_help = "Example: ezctl map diff before.map after.map")]
    Diff {
        /// The earlier map
        before: PathBuf,
        /// The later map
        after: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Check { map, json } => check(&map, json),
        Command::Locate { map, place, json } => locate(&map, &place, json),
        Command::Diff { before, after, json } => diff(&before, &after, json),
    };
    done.unwrap_or_else(Fault::tell)
}

fn usage(what: &str) -> ExitCode {
    // Nothing is left to do if standard error is gone as well.
    let _ = writeln!(io::stderr(), "ezctl: {what}");
    ExitCode::from(2)
}

type Judged = Result<(Map, Vec<Note>), Vec<Problem>>;

pub(crate) enum Fault {
    Input(String),
    Io(io::Error),
}

impl Fault {
    /// Says it; the exit code.
    pub(crate) fn tell(self) -> ExitCode {
        match self {
            // Whoever reads our output has enough of it, as `head` does.
            Fault::Io(e) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Fault::Io(e) => usage(&format!("cannot write: {e}")),
            Fault::Input(what) => usage(&what),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Fault {
        Fault::Io(e)
    }
}

/// A map and what is worth knowing of it, or what is wrong with it; `Err`: there is nothing to read.
fn read(path: &Path) -> Result<Judged, Fault> {
    let bytes = read_bounded(path).map_err(|e| Fault::Input(format!("{}: {e}", path.display())))?;
    let named = |problems: Vec<Problem>| problems.into_iter().map(|p| p.in_file(&path.display().to_string())).collect();
    if bytes.starts_with(MAGIC) {
        let map = Map::decode(&bytes).map_err(|e| named(vec![Problem::new(e.to_string())]));
        return Ok(map.and_then(|map| {
            let found = shardmap::check::fences(map.fences());
            if found.problems.is_empty() { Ok((map, found.notes)) } else { Err(named(found.problems)) }
        }));
    }
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(Err(named(vec![Problem::new("neither a binary map (it begins with EZMAP) nor text")])));
    };
    let dir = path.parent().unwrap_or(Path::new(""));
    let load = |name: &str| {
        let bytes = read_bounded(&dir.join(name)).map_err(|e| e.to_string())?;
        String::from_utf8(bytes).map_err(|e| e.to_string())
    };
    Ok(Map::from_toml(&text, load).map_err(named))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, MAP_BYTES_MAX + 1), &mut bytes)?;
    if bytes.len() as u64 > MAP_BYTES_MAX {
        return Err(io::Error::other(format!("more than {MAP_BYTES_MAX} bytes, the most that a map may have")));
    }
    Ok(bytes)
}

/// For those who need a sound map: problems are wrong input.
pub(crate) fn read_sound(path: &Path) -> Result<Map, Fault> {
    match read(path)? {
        Ok((map, _)) => Ok(map),
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
            Err(Fault::Input(format!("this map cannot be used:\n{}", lines.join("\n"))))
        }
    }
}

fn check(path: &Path, json: bool) -> Result<ExitCode, Fault> {
    let mut out = io::stdout().lock();
    let (sound, notes, problems) = match read(path)? {
        Ok((map, notes)) => (Some(map), notes, Vec::new()),
        Err(problems) => (None, Vec::new(), problems),
    };
    if json {
        let list = |all: &[Problem]| all.iter().map(problem_json).collect::<Vec<_>>();
        let digest = sound.as_ref().map(|m| hex(&m.digest()));
        let globals: Vec<_> = sound
            .iter()
            .flat_map(globals)
            .map(|(name, shard, zone)| json!({"name": name, "shard": shard, "zone": zone}))
            .collect();
        let answer = json!({"ok": sound.is_some(), "epoch": sound.as_ref().map(|m| m.epoch().0), "digest": digest,
            "globals": globals, "problems": list(&problems), "notes": list(&notes)});
        writeln!(out, "{answer}")?;
    } else {
        for line in problems.iter().chain(&notes) {
            writeln!(out, "{line}")?;
        }
        for (name, shard, zone) in sound.iter().flat_map(globals) {
            writeln!(out, "global service {name}: shard {shard}, {zone}")?;
        }
        match &sound {
            Some(m) => writeln!(
                out,
                "ok: epoch {}, {} fences, {} shards, {} zones, digest {}",
                m.epoch(),
                m.fences().list().len(),
                m.shards().count(),
                m.zones().len(),
                &hex(&m.digest())[..16]
            )?,
            None => writeln!(out, "refused: {} problems", problems.len())?,
        }
    }
    Ok(ExitCode::from(u8::from(sound.is_none())))
}

/// Each global service with its shard and its owner; `-`: nobody.
fn globals(map: &Map) -> Vec<(&str, u16, &str)> {
    let owner = |shard| map.owner(shard).map_or("-", |z| map.zone_name(z));
    map.globals().iter().map(|(name, shard)| (name.as_str(), shard.0, owner(*shard))).collect()
}

fn problem_json(p: &Problem) -> serde_json::Value {
    let place = p.place.map(|p| p.to_string());
    json!({"file": p.file, "line": p.line, "fence": p.feature, "place": place, "what": p.what})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn locate(path: &Path, place: &[String], json: bool) -> Result<ExitCode, Fault> {
    let point = match place {
        [one] if one == "-" => None,
        [one] => Some(one.clone()),
        both => Some(both.join(",")),
    };
    let point = point.map(|text| {
        let what =
            || Fault::Input(format!("\"{text}\" is no place; expected longitude and latitude, as 121.52669 31.2302"));
        Point::parse(&text).ok_or_else(what)
    });
    let point = point.transpose()?;
    let map = read_sound(path)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let code = match point {
        Some(p) => {
            answer(&mut out, &map, p, json)?;
            ExitCode::SUCCESS
        }
        None => locate_lines(&mut out, &map, json)?,
    };
    out.flush()?;
    Ok(code)
}

/// A line that cannot be read is named on standard error, and the rest goes on.
fn locate_lines(out: &mut impl Write, map: &Map, json: bool) -> Result<ExitCode, Fault> {
    let mut input = BufReader::with_capacity(INPUT_BYTES, io::stdin().lock());
    let (mut line, mut bad) = (Vec::new(), false);
    for number in 1u64.. {
        line.clear();
        if input.buffer().is_empty() {
            out.flush()?; // who asks line by line waits for this answer
        }
        let read = io::Read::take(&mut input, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if read as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
            input.skip_until(b'\n')?;
        }
        match Point::parse_bytes(line.trim_ascii()) {
            Some(p) => answer(out, map, p, json)?,
            None => {
                bad = true;
                let seen: String = String::from_utf8_lossy(line.trim_ascii()).chars().take(60).collect();
                let _ =
                    writeln!(io::stderr(), "ezctl: line {number}: {seen:?} is no place; expected lng,lat in degrees");
            }
        }
    }
    Ok(ExitCode::from(if bad { 2 } else { 0 }))
}

fn answer(out: &mut impl Write, map: &Map, p: Point, json: bool) -> io::Result<()> {
    let Located { fence, shard, how } = map.locate(p);
    let zone = shard.and_then(|s| map.owner(s)).map(|z| map.zone_name(z));
    let fence = fence.map(|f| f.name.as_str());
    if json {
        let place = p.to_string();
        let line =
            json!({"place": place, "fence": fence, "shard": shard.map(|s| s.0), "zone": zone, "how": how.name()});
        return writeln!(out, "{line}");
    }
    let shard = shard.map_or("-".into(), |s| s.to_string());
    writeln!(out, "{} {shard} {} {}", fence.unwrap_or("-"), zone.unwrap_or("-"), how.name())
}

fn diff(before: &Path, after: &Path, json: bool) -> Result<ExitCode, Fault> {
    let (a, b) = (read_sound(before)?, read_sound(after)?);
    let changes = a.diff(&b);
    let same = a.digest() == b.digest();
    let against = if same { Vec::new() } else { a.may_become(&b).err().unwrap_or_default() };
    let mut out = io::stdout().lock();
    if json {
        let changes: Vec<_> = changes.iter().map(|c| json!({"of": c.of, "name": c.name, "what": c.what})).collect();
        let against_text: Vec<String> = against.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "{}",
            json!({"same": same, "legal": against.is_empty(), "changes": changes, "against": against_text})
        )?;
    } else {
        for change in &changes {
            writeln!(out, "{change}")?;
        }
        for why in &against {
            writeln!(out, "illegal: {why}")?;
        }
        writeln!(
            out,
            "{}",
            if same {
                "the same map"
            } else if against.is_empty() {
                "a legal step"
            } else {
                "not a legal step"
            }
        )?;
    }
    Ok(ExitCode::from(u8::from(!against.is_empty())))
}
