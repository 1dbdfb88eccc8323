//! `ezctl log diff`: are two copies of a stream the same? Sealed segments by their footers' digests, the rest batch by batch.

use super::files::Files;
use super::place::Place;
use super::scan::{Item, Scan, Start};
use super::text;
use clap::Args;
use replog::Record;
use replog::batch::Batch;
use replog::limits::BLOCK;
use replog::open::Storage;
use replog::segment::{Footer, Header, seq_of_name};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

#[derive(Args)]
pub struct Options {
    /// Compare only seqs that both hold: a mirror may be behind, a copy may keep less
    #[arg(long)]
    common: bool,
    /// Read sealed segments too, whatever their footers say
    #[arg(long)]
    whole: bool,
    /// At most so many differing records are shown
    #[arg(long, default_value_t = 10)]
    limit: usize,
    /// Keys and values in hexadecimal
    #[arg(long)]
    hex: bool,
    /// JSON lines: the differing records, then what was found
    #[arg(long)]
    json: bool,
}

/// What was found so far.
#[derive(Default)]
struct Outcome {
    segments_by_digest: u64,
    batches: u64,
    /// Seqs that one side alone holds: whose, from, to.
    only: Vec<(&'static str, u64, u64)>,
    differs: Option<(Batch, Batch)>,
    why: String,
    troubles: u64,
}

/// The batches of one side, in order.
struct Side<'a> {
    place: &'a Place,
    scan: Scan,
    batch: Option<Batch>,
    /// The last seq read.
    after: u64,
    troubles: u64,
}

impl<'a> Side<'a> {
    fn new(place: &'a Place, skip: BTreeSet<u64>) -> io::Result<Side<'a>> {
        let scan = Scan::new(Files::new(&place.dir), place, Start::default())?.skipping(skip);
        let mut side = Side { place, scan, batch: None, after: 0, troubles: 0 };
        side.next()?;
        Ok(side)
    }

    /// The first and the last seq that it has, in segments that were skipped too.
    fn kept(&self, segments: &BTreeMap<u64, Seal>) -> (u64, u64) {
        let sealed = segments.values().filter_map(|s| s.footer.as_ref()).map(|f| f.last_seq).max();
        (segments.keys().next().copied().unwrap_or(1), self.after.max(sealed.unwrap_or(0)))
    }

    fn next(&mut self) -> io::Result<()> {
        self.after = self.batch.take().map_or(self.after, |b| b.last_seq());
        while let Some(item) = self.scan.next()? {
            match item {
                Item::Batch { batch, .. } => {
                    self.batch = Some(batch);
                    return Ok(());
                }
                other => {
                    if let Some(trouble) = other.trouble() {
                        self.troubles += u64::from(!other.is_retired());
                        eprintln!("ezctl log: {}/{trouble}", self.place.name());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Compares two logs.
pub fn run(out: &mut impl Write, a: &Place, b: &Place, options: &Options) -> io::Result<u8> {
    let (of_a, of_b) = (segments(a)?, segments(b)?);
    let mut outcome = Outcome::default();
    if let Some(why) = strangers(&of_a, &of_b) {
        outcome.why = why;
        return tell(out, a, b, options, &outcome);
    }
    let skip: BTreeSet<u64> = match options.whole {
        true => BTreeSet::new(),
        false => of_a.iter().filter(|(first, s)| s.same(of_b.get(first))).map(|(first, _)| *first).collect(),
    };
    outcome.segments_by_digest = skip.len() as u64;
    let (mut left, mut right) = (Side::new(a, skip.clone())?, Side::new(b, skip)?);
    compare(&mut left, &mut right, &mut outcome)?;
    outcome.troubles = left.troubles + right.troubles;
    if options.common {
        outcome.forget_age([left.kept(&of_a), right.kept(&of_b)]);
    }
    tell(out, a, b, options, &outcome)
}

fn compare(left: &mut Side<'_>, right: &mut Side<'_>, outcome: &mut Outcome) -> io::Result<()> {
    loop {
        match (&left.batch, &right.batch) {
            (None, None) => return Ok(()),
            (Some(a), Some(b)) if a.first_seq == b.first_seq => {
                if a.chain != b.chain {
                    outcome.why = format!("they differ in the batch of seq {}", a.first_seq);
                    outcome.differs = Some((a.clone(), b.clone()));
                    return Ok(());
                }
                outcome.batches += 1;
                left.next()?;
                right.next()?;
            }
            (Some(a), Some(b)) if a.first_seq <= b.last_seq() && b.first_seq <= a.last_seq() => {
                let (a_first, b_first) = (a.first_seq, b.first_seq);
                outcome.why = format!("their batches begin at other seqs: {a_first} and {b_first}");
                outcome.differs = Some((a.clone(), b.clone()));
                return Ok(());
            }
            (Some(a), Some(b)) if a.first_seq < b.first_seq => {
                outcome.alone("a", a);
                left.next()?;
            }
            (Some(a), None) => {
                outcome.alone("a", a);
                left.next()?;
            }
            (None | Some(_), Some(b)) => {
                outcome.alone("b", b);
                right.next()?;
            }
        }
    }
}

impl Outcome {
    fn alone(&mut self, whose: &'static str, batch: &Batch) {
        match self.only.last_mut() {
            Some((of, _, to)) if *of == whose && *to + 1 == batch.first_seq => *to = batch.last_seq(),
            _ => self.only.push((whose, batch.first_seq, batch.last_seq())),
        }
    }

    /// Leaves out what one side alone holds because the other keeps less, or is behind: `kept` are the first and last seq of
    /// `a` and of `b`.
    fn forget_age(&mut self, kept: [(u64, u64); 2]) {
        self.only.retain(|(whose, from, to)| {
            let (first, last) = if *whose == "a" { kept[1] } else { kept[0] };
            *to >= first && *from <= last
        });
    }
}

struct Seal {
    header: Header,
    footer: Option<Footer>,
}

impl Seal {
    fn same(&self, other: Option<&Seal>) -> bool {
        match (&self.footer, other.and_then(|o| o.footer.as_ref())) {
            (Some(a), Some(b)) => (a.last_seq, a.records, a.digest) == (b.last_seq, b.records, b.digest),
            (Some(_) | None, Some(_) | None) => false,
        }
    }
}

/// The readable headers of a log, and the footers of the segments before each.
fn segments(place: &Place) -> io::Result<BTreeMap<u64, Seal>> {
    let mut files = Files::new(&place.dir);
    let mut all: BTreeMap<u64, Seal> = BTreeMap::new();
    let mut before: Option<(String, Header)> = None;
    for (name, _) in files.segments()? {
        let header = kept(files.read(&name, 0, BLOCK))?.and_then(|block| Header::parse(&block).ok());
        // Under another name: the file was used again since it was opened.
        let Some(header) = header.filter(|h| seq_of_name(&name) == Some(h.first_seq)) else {
            before = None;
            continue;
        };
        if let Some((file, of)) = before.filter(|(_, of)| of.number + 1 == header.number) {
            let footer = kept(files.read(&file, header.prev_end, BLOCK))?.and_then(|block| Footer::parse(&block).ok());
            let footer = footer.filter(|f| f.salt == of.salt && f.last_seq + 1 == header.first_seq);
            all.entry(of.first_seq).and_modify(|s| s.footer = footer);
        }
        all.insert(header.first_seq, Seal { header: header.clone(), footer: None });
        before = Some((name, header));
    }
    Ok(all)
}

/// What was read; `None`: the file went meanwhile, since nobody needs it any more.
fn kept<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Why the two are no copies of one stream.
fn strangers(a: &BTreeMap<u64, Seal>, b: &BTreeMap<u64, Seal>) -> Option<String> {
    let (a, b) = (&a.values().next_back()?.header, &b.values().next_back()?.header);
    if (a.zone, a.stream) != (b.zone, b.stream) {
        return Some(format!(
            "they are other streams: zone {} stream {}, and zone {} stream {}",
            a.zone, a.stream, b.zone, b.stream
        ));
    }
    let other = a.log_uuid != b.log_uuid;
    other.then(|| format!("they are other incarnations: log_uuid {:032x} and {:032x}", a.log_uuid, b.log_uuid))
}

fn tell(out: &mut impl Write, a: &Place, b: &Place, options: &Options, outcome: &Outcome) -> io::Result<u8> {
    let mut shown = Vec::new();
    if let Some((left, right)) = &outcome.differs {
        shown = records(left, right, options.limit);
        if !options.json {
            writeln!(out, "{}", outcome.why)?;
            headers(out, left, right)?;
        }
        for (seq, l, r) in &shown {
            show(out, a, b, options, (left, right), (*seq, l.as_ref(), r.as_ref()))?;
        }
    }
    let same = outcome.why.is_empty() && outcome.only.is_empty() && outcome.troubles == 0;
    if options.json {
        let ranges = |whose| {
            outcome.only.iter().filter(|o| o.0 == whose).map(|(_, from, to)| json!([from, to])).collect::<Vec<_>>()
        };
        let line = json!({"a": a.name(), "b": b.name(), "same": same, "why": outcome.why,
            "differs_at_seq": outcome.differs.as_ref().map(|(a, b)| a.first_seq.max(b.first_seq)),
            "only_a": ranges("a"), "only_b": ranges("b"), "segments_by_digest": outcome.segments_by_digest,
            "batches": outcome.batches, "troubles": outcome.troubles, "records_shown": shown.len()});
        writeln!(out, "{line}")?;
        return Ok(u8::from(!same));
    }
    for (whose, from, to) in &outcome.only {
        writeln!(out, "only {whose} holds seqs {from} to {to}")?;
    }
    if outcome.differs.is_none() && !outcome.why.is_empty() {
        writeln!(out, "{}", outcome.why)?;
    }
    let verdict = if same { "the same" } else { "they differ" };
    let (segments, batches) = (outcome.segments_by_digest, outcome.batches);
    writeln!(out, "{verdict}: {segments} segments by their digests, {batches} batches one by one")?;
    Ok(u8::from(!same))
}

/// What two batches of the same seq say differently of themselves.
fn headers(out: &mut impl Write, a: &Batch, b: &Batch) -> io::Result<()> {
    let fields = [
        ("first seq", a.first_seq, b.first_seq),
        ("records", a.records.into(), b.records.into()),
        ("term", a.term, b.term),
        ("chain before", a.prev_chain.into(), b.prev_chain.into()),
        ("header_crc", a.chain.into(), b.chain.into()),
        ("append time, ns", a.append_ns, b.append_ns),
    ];
    for (name, a, b) in fields.into_iter().filter(|(_, a, b)| a != b) {
        writeln!(out, "  {name}: {a} in a, {b} in b")?;
    }
    Ok(())
}

type Pair = (u64, Option<Record>, Option<Record>);

/// The records of two batches that are not the same on both sides.
fn records(a: &Batch, b: &Batch, limit: usize) -> Vec<Pair> {
    let (mut left, mut right) = (a.iter().flatten().peekable(), b.iter().flatten().peekable());
    let mut all = Vec::new();
    while all.len() < limit {
        let seqs = [left.peek().map(|r| r.0), right.peek().map(|r| r.0)];
        let Some(seq) = seqs.into_iter().flatten().min() else { break };
        let l = left.next_if(|r| r.0 == seq).map(|r| r.1);
        let r = right.next_if(|r| r.0 == seq).map(|r| r.1);
        if l != r {
            all.push((seq, l, r));
        }
    }
    all
}

fn show(
    out: &mut impl Write,
    a: &Place,
    b: &Place,
    options: &Options,
    batches: (&Batch, &Batch),
    (seq, l, r): (u64, Option<&Record>, Option<&Record>),
) -> io::Result<()> {
    if options.json {
        let side = |place: &Place, batch, record: Option<&Record>| -> Value {
            record.map_or(Value::Null, |r| text::object(&place.name(), batch, seq, r, options.hex))
        };
        return writeln!(out, "{}", json!({"seq": seq, "in_a": side(a, batches.0, l), "in_b": side(b, batches.1, r)}));
    }
    let line = |record: &Record| text::columns(seq, record, options.hex);
    l.map_or(Ok(()), |r| writeln!(out, "- {}", line(r)))?;
    r.map_or(Ok(()), |r| writeln!(out, "+ {}", line(r)))
}
