//! `ezctl log stat`: what a log is made of, in one pass and bounded memory.

use super::files::Files;
use super::pick::Pick;
use super::place::Place;
use super::progress::Progress;
use super::scan::{Item, Scan};
use super::text::{bytes, plain, span, wall};
use hdrhistogram::Histogram;
use replog::batch::Batch;
use replog::{Hlc, Record};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Rows of one kind, at most; what comes after counts as "others".
const ROWS_MAX: usize = 10_000;
/// Rows of one kind that are shown as columns; JSON has all.
const SHOWN_MAX: usize = 20;
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];
/// Larger values count as this: 13 days in nanoseconds.
const SPREAD_MAX: u64 = 1 << 50;
const HOUR_MS: u64 = 3_600_000;
/// What does not fit `ROWS_MAX`.
const OTHERS: &str = "others";

#[derive(Clone, Copy, Default)]
struct Count {
    records: u64,
    bytes: u64,
}

/// Counts by one property of the records.
#[derive(Default)]
struct By(BTreeMap<String, Count>);

impl By {
    fn add(&mut self, name: String, len: u64) {
        let name = if self.0.len() < ROWS_MAX || self.0.contains_key(&name) { name } else { OTHERS.to_owned() };
        let count = self.0.entry(name).or_default();
        count.records += 1;
        count.bytes += len;
    }
}

/// How large something is, as percentiles.
struct Spread {
    histogram: Histogram<u64>,
    max: u64,
}

impl Spread {
    fn new() -> Spread {
        let histogram = Histogram::new_with_bounds(1, SPREAD_MAX, 3).expect("bounds and digits that it takes");
        Spread { histogram, max: 0 }
    }

    fn add(&mut self, value: u64) {
        self.histogram.saturating_record(value);
        self.max = self.max.max(value);
    }

    fn at(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile).min(self.max)
    }
}

struct Stat {
    all: Count,
    batches: u64,
    disk_bytes: u64,
    by: [(&'static str, By); 4],
    batch_bytes: Spread,
    batch_records: Spread,
    interval_ns: Spread,
    last_append_ns: Option<u64>,
    /// Lowest and highest seq and HLC counted.
    range: Option<[u64; 4]>,
    troubles: u64,
}

impl Stat {
    fn new() -> Stat {
        Stat {
            all: Count::default(),
            batches: 0,
            disk_bytes: 0,
            by: ["table", "op", "shard", "hour"].map(|name| (name, By::default())),
            batch_bytes: Spread::new(),
            batch_records: Spread::new(),
            interval_ns: Spread::new(),
            last_append_ns: None,
            range: None,
            troubles: 0,
        }
    }

    fn batch(&mut self, batch: &Batch, pick: &Pick) {
        let mut wanted = 0;
        for (seq, record) in batch.iter().flatten().filter(|(seq, r)| pick.wants(*seq, r)) {
            wanted += 1;
            self.record(seq, &record, batch.first_hlc);
        }
        if wanted == 0 {
            return;
        }
        self.batches += 1;
        self.disk_bytes += batch.disk_len() as u64;
        self.batch_bytes.add(batch.disk_len() as u64);
        self.batch_records.add(batch.records.into());
        // A clock that was set back makes no interval.
        if let Some(ns) =
            self.last_append_ns.replace(batch.append_ns).and_then(|last| batch.append_ns.checked_sub(last))
        {
            self.interval_ns.add(ns);
        }
    }

    fn record(&mut self, seq: u64, r: &Record, base: Hlc) {
        // `len_max` takes the HLC's delta for its longest, 10 bytes.
        let delta_bits = u64::BITS - ((r.hlc.0 - base.0) | 1).leading_zeros();
        let len = r.len_max() as u64 - 10 + u64::from(delta_bits.div_ceil(7));
        self.all.records += 1;
        self.all.bytes += len;
        let [first, last, low, high] = self.range.unwrap_or([seq, seq, r.hlc.0, r.hlc.0]);
        self.range = Some([first.min(seq), last.max(seq), low.min(r.hlc.0), high.max(r.hlc.0)]);
        let table = if r.table.is_empty() { "-".to_owned() } else { plain(&r.table) };
        let hour = wall(r.hlc.ms() / HOUR_MS * HOUR_MS);
        let names = [table, r.op.name().to_owned(), format!("{:>5}", r.shard.0), hour];
        self.by.iter_mut().zip(names).for_each(|((_, by), name)| by.add(name, len));
    }
}

/// Counts what is wanted of each log.
pub fn run(out: &mut impl Write, places: &[Place], pick: &Pick, as_json: bool) -> io::Result<u8> {
    let mut code = 0;
    for place in places {
        let mut files = Files::new(&place.dir);
        let total = files.segments()?.iter().filter(|(name, _)| place.wants(name)).map(|(_, len)| len).sum();
        let progress = Progress::of(&place.name(), total);
        let ender = progress.ender();
        let mut scan = Scan::new(files.with_progress(progress), place, pick.start())?;
        let mut stat = Stat::new();
        while let Some(item) = scan.next()? {
            match &item {
                Item::Batch { batch, .. } if pick.is_past(batch) => break,
                Item::Batch { batch, .. } if pick.may(batch) => stat.batch(batch, pick),
                other => {
                    if let Some(trouble) = other.trouble() {
                        stat.troubles += u64::from(!other.is_retired());
                        eprintln!("ezctl log: {}/{trouble}", place.name());
                    }
                }
            }
        }
        drop(ender);
        code = code.max(if scan.newer() { 2 } else { 0 });
        if as_json {
            writeln!(out, "{}", object(&place.name(), &stat))?;
        } else {
            table(out, &place.name(), &stat)?;
        }
    }
    Ok(code)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn percentiles(spread: &Spread) -> Value {
    let mut all = json!({"count": spread.histogram.len(), "mean": spread.histogram.mean()});
    for (name, q) in PERCENTILES {
        all[name] = spread.at(q).into();
    }
    all
}

fn object(log: &str, stat: &Stat) -> Value {
    let [first_seq, last_seq, low, high] = stat.range.unwrap_or_default();
    let mut line = json!({"log": log, "records": stat.all.records, "bytes": stat.all.bytes, "batches": stat.batches,
        "disk_bytes": stat.disk_bytes, "disk_ratio": share(stat.disk_bytes, stat.all.bytes), "first_seq": first_seq,
        "last_seq": last_seq, "first_hlc": Hlc(low).to_string(), "last_hlc": Hlc(high).to_string(),
        "batch_bytes": percentiles(&stat.batch_bytes), "batch_records": percentiles(&stat.batch_records),
        "commit_interval_ns": percentiles(&stat.interval_ns), "troubles": stat.troubles});
    for (name, by) in &stat.by {
        let row = |(value, c): (&String, &Count)| {
            json!({*name: value.trim_start(), "records": c.records, "bytes": c.bytes,
                "bytes_ratio": share(c.bytes, stat.all.bytes)})
        };
        line[format!("by_{name}")] = by.0.iter().map(row).collect();
    }
    line
}

fn table(out: &mut impl Write, log: &str, stat: &Stat) -> io::Result<()> {
    let all = stat.all;
    writeln!(out, "{log}: {} records in {} batches", all.records, stat.batches)?;
    let Some([first, last, low, high]) = stat.range else { return Ok(()) };
    writeln!(out, "  seq {first} to {last}, {} to {}", wall(low >> 16), wall(high >> 16))?;
    let ratio = share(stat.disk_bytes, all.bytes);
    writeln!(out, "  {} of records take {} on disk, {ratio:.2} times", bytes(all.bytes), bytes(stat.disk_bytes))?;
    writeln!(out, "  {:<16} {:>10} {:>10} {:>10} {:>10}", "", "p50", "p90", "p99", "max")?;
    type Shown = fn(u64) -> String;
    let rows: [(&str, &Spread, Shown); 3] = [
        ("batch bytes", &stat.batch_bytes, bytes),
        ("batch records", &stat.batch_records, |n| n.to_string()),
        ("commit interval", &stat.interval_ns, span),
    ];
    for (name, spread, shown) in rows {
        let [p50, p90, p99, max] = PERCENTILES.map(|(_, q)| shown(spread.at(q)));
        writeln!(out, "  {name:<16} {p50:>10} {p90:>10} {p99:>10} {max:>10}")?;
    }
    for (name, by) in &stat.by {
        rows_of(out, name, by, all)?;
    }
    if stat.troubles > 0 {
        writeln!(out, "  {} places could not be read; `ezctl log verify` says more", stat.troubles)?;
    }
    Ok(())
}

/// The largest first, but hours in their order.
fn rows_of(out: &mut impl Write, name: &str, by: &By, all: Count) -> io::Result<()> {
    let mut rows: Vec<_> = by.0.iter().collect();
    if name != "hour" {
        rows.sort_by_key(|(_, c)| std::cmp::Reverse(c.bytes));
    }
    writeln!(out, "  {name:<28} {:>12} {:>12} {:>7}", "records", "bytes", "ratio")?;
    for (value, c) in rows.iter().take(SHOWN_MAX) {
        let (percent, size) = (100.0 * share(c.bytes, all.bytes), bytes(c.bytes));
        writeln!(out, "  {:<28} {:>12} {size:>12} {percent:>6.1}%", value.trim_start(), c.records)?;
    }
    if rows.len() > SHOWN_MAX {
        writeln!(out, "  and {} more; --json has them", rows.len() - SHOWN_MAX)?;
    }
    Ok(())
}
