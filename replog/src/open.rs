//! Reads a stream's directory and says what it is: whole, torn or stale at its end, corrupt, or with a gap. It changes nothing.
//!
//! ```text
//! sealed segments   each batch must be intact up to where the successor's header says that it ends
//! last segment      walk to the first batch, seq X, that fails a check:
//!     X <= a seq that anyone knows to be durable      corrupt: refuse, touch nothing
//!     else, zeros or the footer behind                clean
//!     else, blocks of an earlier use of the file      stale: as good as clean
//!     else                                            torn: what is behind was never acknowledged
//! a segment or the end is missing                     gap: refuse, touch nothing
//! ```

mod content;
mod course;
mod verdict;
mod walk;

pub use content::{Content, Task};
pub use course::Course;
pub use verdict::{Corrupt, FooterLost, Gap, Stale, Torn, Verdict, Why, Witness};
pub use walk::Walk;

use crate::Hlc;
use crate::batch::Batch;
use crate::limits::BLOCK;
use crate::segment::{Checkpoint, FIRST_POS, Footer, Header};
use bytes::Bytes;
use shardmap::{OwnerEpoch, Shard};
use std::collections::BTreeMap;
use std::io;

/// A reader's index has an entry for each of so many bytes of a segment.
const MARK_EVERY: u64 = 256 * 1024;

/// A stream's directory, as far as reading goes.
pub trait Storage {
    /// Names and lengths of its files.
    fn list(&mut self) -> io::Result<Vec<(String, u64)>>;
    /// `len` bytes of a file from `pos` on; fewer only at its end.
    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes>;
}

/// What others know to be durable; a log that ends below it has lost something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// The store's durable applied position in this stream.
    pub applied: u64,
    /// The highest durable seq of any peer that could be asked.
    pub peers: u64,
}

/// How much is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// Every byte.
    Whole,
    /// What a writer needs to go on: of sealed segments that the store has applied, header and footer; the rest whole.
    Needed,
}

/// A segment as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its file.
    pub name: String,
    /// Its first block.
    pub header: Header,
    /// Length of the file.
    pub file_len: u64,
    /// Where its last batch ends.
    pub end: u64,
    /// The seq of its last record; one below its first seq if it has none.
    pub last_seq: u64,
    /// How many batches were read in it: all of them, unless `Depth` passed it over.
    pub batches: u64,
    /// Its footer, if it was sealed.
    pub footer: Option<Footer>,
    /// Seq and position of some of its batches, in order; the first among them if it was read.
    pub marks: Vec<(u64, u64)>,
}

/// What a stream's directory holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The segments, oldest first; the one that a verdict of corrupt names is the last.
    pub segments: Vec<Segment>,
    /// Is it whole?
    pub verdict: Verdict,
    /// The last seq of the intact part.
    pub last_seq: u64,
    /// The chain there.
    pub chain: u32,
    /// The newest HLC.
    pub last_hlc: Hlc,
    /// The highest term.
    pub term: u64,
    /// The highest FENCE of each shard in what was read; the store knows those in what was passed over.
    pub fences: BTreeMap<Shard, OwnerEpoch>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Segments below the first seq that both checkpoints keep: a crash kept them from going. An open removes them.
    pub expired: Vec<String>,
    /// Of the segments that were read, those whose footer is not there though they were sealed. The verdict does not depend on them.
    pub footers_lost: Vec<FooterLost>,
}

/// Reads the whole directory, as deep as asked. An error is one of reading; everything that is wrong with what was read is in the
/// verdict.
pub fn examine(files: &mut impl Storage, floor: Floor, depth: Depth) -> io::Result<Found> {
    let mut course = Course::survey(files, floor, depth)?;
    while let Some(task) = course.next(files)? {
        course.take(task.read(files)?);
    }
    Ok(course.finish())
}

impl Segment {
    /// A segment of which nothing but the header is known.
    pub fn begun(name: &str, file_len: u64, header: Header) -> Segment {
        Segment {
            name: name.to_owned(),
            last_seq: header.first_seq - 1,
            header,
            file_len,
            end: FIRST_POS,
            batches: 0,
            footer: None,
            marks: Vec::new(),
        }
    }

    /// Does it hold no batch?
    pub fn is_empty(&self) -> bool {
        self.last_seq + 1 == self.header.first_seq
    }

    /// Bytes up to the end of its last batch, or of its footer.
    pub fn used_bytes(&self) -> u64 {
        self.end + if self.footer.is_some() { BLOCK as u64 } else { 0 }
    }

    /// Counts a batch at `pos` in.
    pub fn took(&mut self, batch: &Batch, pos: u64) {
        self.mark(batch.first_seq, pos);
        self.last_seq = batch.last_seq();
        self.end = pos + batch.disk_len() as u64;
        self.batches += 1;
    }

    /// Remembers where a batch lies, if it is far enough behind the one remembered last.
    pub fn mark(&mut self, first_seq: u64, pos: u64) {
        if self.marks.last().is_none_or(|(_, at)| pos >= at + MARK_EVERY) {
            self.marks.push((first_seq, pos));
        }
    }
}
