//! `ezctl log find`: the history of one key over streams and mirrors, in the order of its HLCs.

use super::files::Files;
use super::pick::Pick;
use super::place::Place;
use super::scan::{Item, Scan};
use super::text;
use clap::Args;
use replog::batch::Batch;
use replog::{Op, Record, Version};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Records of one key that are held, since they have to be sorted; the newest are kept.
const HELD_MAX: usize = 10_000;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    pick: Pick,
    /// Keys and values in hexadecimal
    #[arg(long)]
    hex: bool,
}

/// What one record is, wherever a copy of it lies: HLC, zone, stream, incarnation, seq. Ordered as history.
type Id = (u64, u8, u32, u64, u64);

struct Hit {
    batch: Batch,
    record: Record,
    /// The logs that hold it.
    logs: Vec<usize>,
}

/// Prints what was done to the key.
pub fn run(out: &mut impl Write, places: &[Place], options: &Options, as_json: bool) -> io::Result<u8> {
    let pick = &options.pick;
    if pick.key.is_none() && pick.key_hex.is_none() {
        let text = "which key? --key TEXT or --key-hex DIGITS";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let (mut hits, mut dropped, mut newer) = (BTreeMap::new(), 0u64, false);
    for (at, place) in places.iter().enumerate() {
        let mut scan = Scan::new(Files::new(&place.dir), place, pick.start())?;
        while let Some(item) = scan.next()? {
            match &item {
                Item::Batch { batch, .. } if pick.is_past(batch) => break,
                Item::Batch { batch, .. } if pick.may(batch) => dropped += keep(&mut hits, batch, pick, at),
                other => {
                    if let Some(trouble) = other.trouble() {
                        eprintln!("ezctl log: {}/{trouble}", place.name());
                    }
                }
            }
        }
        newer |= scan.newer();
    }
    if dropped > 0 {
        eprintln!("ezctl log: {dropped} older records are left out: at most {HELD_MAX} are shown; --to takes you back");
    }
    print(out, places, &hits, options, as_json)?;
    Ok(if newer { 2 } else { u8::from(hits.is_empty()) })
}

/// Takes the wanted records of a batch; returns how many older ones had to go.
fn keep(hits: &mut BTreeMap<Id, Hit>, batch: &Batch, pick: &Pick, place: usize) -> u64 {
    let mut dropped = 0;
    for (seq, record) in batch.iter().flatten().filter(|(seq, r)| pick.wants(*seq, r)) {
        let id = (record.hlc.0, batch.zone.0, batch.stream, batch.log_uuid_lo, seq);
        // Neither the batch's bytes nor the memory that the record shares with them is held.
        let hit = hits.entry(id).or_insert_with(|| {
            let own = |b: &[u8]| b.to_vec().into();
            let (table, key, value) = (own(&record.table), own(&record.key), own(&record.value));
            let batch = Batch { bytes: Default::default(), ..batch.clone() };
            Hit { batch, record: Record { table, key, value, ..record }, logs: Vec::new() }
        });
        if !hit.logs.contains(&place) {
            hit.logs.push(place);
        }
        if hits.len() > HELD_MAX {
            hits.pop_first();
            dropped += 1;
        }
    }
    dropped
}

fn print(
    out: &mut impl Write,
    places: &[Place],
    hits: &BTreeMap<Id, Hit>,
    options: &Options,
    as_json: bool,
) -> io::Result<()> {
    let winners = winners(hits);
    for (id, hit) in hits {
        let (seq, record) = (id.4, &hit.record);
        let wins = winners.get(&record.table[..]) == Some(id);
        if as_json {
            let first = hit.logs.first().map_or(String::new(), |at| places[*at].name());
            let mut line = text::object(&first, &hit.batch, seq, record, options.hex);
            line["logs"] = json!(hit.logs.iter().map(|at| places[*at].name()).collect::<Vec<_>>());
            line["wins"] = wins.into();
            writeln!(out, "{line}")?;
            continue;
        }
        let at = text::wall(record.hlc.ms());
        let of = format!("zone {} stream {}", hit.batch.zone, hit.batch.stream);
        let wins = if wins { "  <- wins" } else { "" };
        writeln!(out, "{at} {of} seq {}{wins}", text::columns(seq, record, options.hex))?;
        for log in &hit.logs {
            writeln!(out, "    {}", places[*log].name())?;
        }
    }
    Ok(())
}

/// Of each table, the record with the highest version: what the row is once all of this is applied.
fn winners(hits: &BTreeMap<Id, Hit>) -> BTreeMap<&[u8], Id> {
    let mut newest: BTreeMap<&[u8], (Version, Id)> = BTreeMap::new();
    for (id, hit) in hits {
        let r = &hit.record;
        let (zone, stream) = (hit.batch.zone, hit.batch.stream);
        let version = Version { owner_epoch: r.owner_epoch, hlc: r.hlc, zone, stream };
        let is_row = matches!(r.op, Op::Put | Op::Delete);
        if is_row && newest.get(&r.table[..]).is_none_or(|(had, _)| *had < version) {
            newest.insert(&r.table, (version, *id));
        }
    }
    newest.into_iter().map(|(table, (_, id))| (table, id)).collect()
}
