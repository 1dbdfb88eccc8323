//! `ezctl log dump`: records as columns or JSON lines, those around damage too.

use super::files::Files;
use super::follow::Follow;
use super::pick::Pick;
use super::place::Place;
use super::scan::{Item, Scan};
use super::text;
use clap::Args;
use replog::batch::Batch;
use std::io::{self, Write};
use std::time::Duration;

/// A followed log is looked at this often.
const POLL: Duration = Duration::from_millis(100);

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    pub pick: Pick,
    /// At most so many records
    #[arg(long)]
    pub limit: Option<u64>,
    /// Keys and values in hexadecimal
    #[arg(long)]
    pub hex: bool,
    /// Go on with what is appended, until interrupted
    #[arg(long, short)]
    pub follow: bool,
}

/// Prints records, and how many it still may.
pub struct Printer<'a, W> {
    out: &'a mut W,
    options: &'a Options,
    as_json: bool,
    left: u64,
    /// The log whose records were printed last, where a heading is needed.
    headed: Option<String>,
}

impl<W: Write> Printer<'_, W> {
    /// Prints what is wanted of a batch; false when there is nothing left to print of this log.
    pub fn batch(&mut self, log: &str, batch: &Batch) -> io::Result<bool> {
        let pick = &self.options.pick;
        if pick.is_past(batch) {
            return Ok(false);
        }
        if !pick.may(batch) {
            return Ok(true);
        }
        for (seq, record) in batch.iter().flatten() {
            if !self.options.pick.wants(seq, &record) {
                continue;
            }
            if self.left == 0 {
                return Ok(false);
            }
            self.left -= 1;
            if self.as_json {
                writeln!(self.out, "{}", text::object(log, batch, seq, &record, self.options.hex))?;
                continue;
            }
            if self.headed.as_ref().is_some_and(|last| last != log) {
                writeln!(self.out, "# {log}")?;
                self.headed = Some(log.to_owned());
            }
            writeln!(self.out, "{}", text::columns(seq, &record, self.options.hex))?;
        }
        Ok(self.left > 0)
    }
}

/// Prints each log after the other, then, if asked to, what is appended to any of them.
pub fn run(out: &mut impl Write, places: &[Place], options: &Options, as_json: bool) -> io::Result<u8> {
    let headed = (places.len() > 1).then(String::new);
    let mut printer = Printer { out, options, as_json, left: options.limit.unwrap_or(u64::MAX), headed };
    let mut code = 0;
    let mut follows = Vec::new();
    for place in places {
        let log = place.name();
        let mut scan = Scan::new(Files::new(&place.dir), place, options.pick.start())?;
        let mut follow = Follow::new(place);
        while let Some(item) = scan.next()? {
            follow.saw(&item);
            let go_on = match &item {
                Item::Batch { batch, .. } => printer.batch(&log, batch)?,
                // The end of a log that is followed is where its writer is at work.
                Item::Tail { .. } if options.follow => true,
                other => {
                    if let Some(trouble) = other.trouble() {
                        printer.out.flush()?;
                        eprintln!("ezctl log: {log}/{trouble}");
                    }
                    true
                }
            };
            if !go_on {
                follow.finish();
                break;
            }
        }
        code = code.max(if scan.newer() { 2 } else { 0 });
        follows.push(follow);
    }
    while options.follow && printer.left > 0 && !follows.iter().all(Follow::is_done) {
        printer.out.flush()?;
        let mut idle = true;
        for follow in &mut follows {
            let log = follow.place().name();
            follow.poll(&mut |batch| {
                idle = false;
                printer.batch(&log, batch)
            })?;
        }
        if idle {
            std::thread::sleep(POLL);
        }
    }
    Ok(code)
}
