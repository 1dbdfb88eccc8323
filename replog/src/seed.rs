//! Brings a peer that fell into a gap up by a snapshot: what its origin's store holds of one stream, in parts that fill frames.
//!
//! ```text
//! HEAD (which log, up to which seq)   ROWS, ROWS, ..   ENTRIES, ..   FENCES   END (counts, digest)      or REFUSED, at any point
//! ```
//!
//! A [`Packer`] makes parts out of what it is given in order; a [`Taker`] judges what arrives and hands out what is to be stored. What
//! a snapshot is worth is known at its END alone: the position and the FENCEs, which say that nothing is missing, are stored
//! behind it (`plan` has the steps). The rows before it do no harm: the higher version is the row, whoever brought it.

mod part;
mod plan;
#[cfg(test)]
mod tests;

pub use part::{End, Head, PART_MAX, Part, put_gap, read_gap};
pub use plan::{Plan, Prepared, Seen, Step, next_step};

use crate::Hlc;
use crate::apply::AHEAD_MAX_MS;
use crate::owners::stream_of;
use crate::store::{Change, Entry, Fence, Row};
use bytes::{BufMut, Bytes, BytesMut};
use part::{FENCES_MAX, MOST, ROW_MIN};
use shardmap::{MapEpoch, Shard, Zone};

/// A part is closed when it holds this much: as much as one job of the store's thread takes, behind which reads wait.
pub const PART_BYTES: usize = 256 << 10;

/// Why a snapshot is not taken. What was stored of it is right by itself, and says nothing of what is missing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// A part whose fields do not fill it, or are out of range.
    #[error("a part of the snapshot that cannot be read: {0}")]
    Malformed(&'static str),
    /// Parts, or what is in them, in another order.
    #[error("the snapshot's {0} came out of order")]
    Order(&'static str),
    /// What belongs to another stream.
    #[error("the snapshot holds shard {shard} of stream {stream}, which is not the one asked for")]
    Foreign {
        /// The shard.
        shard: Shard,
        /// The stream that it was written in.
        stream: u32,
    },
    /// A row of an ownership that the snapshot's own map does not hold.
    #[error("the snapshot holds a row of owner epoch {seen}, its map is {map}")]
    Epoch {
        /// The row's.
        seen: u64,
        /// The head's map.
        map: MapEpoch,
    },
    /// A row from the future, which a log's record would be parked for.
    #[error(
        "the snapshot holds a row written {ahead_ms} ms after this zone's clock, at most {AHEAD_MAX_MS}: correct the clocks"
    )]
    Ahead {
        /// By so much.
        ahead_ms: u64,
    },
    /// The end names other counts or another digest than what came.
    #[error("the snapshot's end does not fit what came: {0}")]
    End(&'static str),
    /// The origin says why it gives none.
    #[error("the origin refuses: {0}")]
    Refused(String),
}

/// Makes parts: rows by (table, key), then entries by (zone, seq), then FENCEs by shard, then the end.
pub struct Packer {
    out: BytesMut,
    digest: blake3::Hasher,
    end: End,
}

impl Packer {
    /// Begins with the head; its part is the first that `full` gives.
    pub fn new(head: &Head) -> Packer {
        let mut packer = Packer { out: BytesMut::new(), digest: blake3::Hasher::new(), end: End::default() };
        part::put_head(&mut packer.out, head);
        packer
    }

    /// Adds a row; returns the part that had no room for it.
    pub fn row(&mut self, table: &[u8], key: &[u8], row: &Row) -> Option<Bytes> {
        self.end.rows += 1;
        let full = self.turn(part::ROWS, ROW_MIN + table.len() + key.len() + row.value.len());
        part::put_row(&mut self.out, table, key, row);
        full
    }

    /// Adds an entry of the ledger; returns the part that had no room for it.
    pub fn entry(&mut self, entry: &Entry) -> Option<Bytes> {
        self.end.entries += 1;
        let Entry { table, key, row } = entry;
        let full = self.turn(part::ENTRIES, ROW_MIN + table.len() + key.len() + row.value.len());
        part::put_row(&mut self.out, table, key, row);
        full
    }

    /// Adds a FENCE of the origin; returns the part that had no room for it.
    pub fn fence(&mut self, shard: Shard, fence: &Fence) -> Option<Bytes> {
        self.end.fences += 1;
        let full = self.turn(part::FENCES, MOST);
        part::put_fence(&mut self.out, shard, fence);
        full
    }

    /// The last two parts.
    pub fn finish(mut self) -> [Bytes; 2] {
        let last = self.close();
        self.end.digest = self.digest.finalize().into();
        let mut end = BytesMut::new();
        part::put_end(&mut end, &self.end);
        [last, end.freeze()]
    }

    /// Closes the part that is being filled if it is of another kind, or if `more` bytes would make it too long.
    fn turn(&mut self, kind: u8, more: usize) -> Option<Bytes> {
        let other = self.out.first() != Some(&kind);
        let full = (other || self.out.len() + more > PART_BYTES).then(|| self.close());
        if full.is_some() {
            self.out.put_u8(kind);
        }
        full
    }

    fn close(&mut self) -> Bytes {
        let part = self.out.split().freeze();
        hash(&mut self.digest, &part);
        part
    }
}

/// Who takes a snapshot, of which log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taking {
    /// The zone that takes it.
    pub own: Zone,
    /// The stream.
    pub stream: u32,
    /// The number of streams.
    pub streams: u32,
}

/// What to do with a part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The head: judge it.
    Head(Head),
    /// Store these, in one transaction.
    Store(Vec<Change>),
    /// Nothing yet.
    Kept,
    /// All of it has come, and is what was sent.
    Whole(Whole),
}

/// What is stored last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Whole {
    /// The head.
    pub head: Head,
    /// The origin's FENCEs.
    pub fences: Vec<(Shard, Fence)>,
    /// The highest HLC of another zone's row.
    pub newest: Hlc,
}

/// Judges the parts of one snapshot in their order.
pub struct Taker {
    taking: Taking,
    head: Option<Head>,
    digest: blake3::Hasher,
    seen: End,
    /// The kind of the last part: they rise.
    kind: u8,
    row: Option<(Bytes, Bytes)>,
    entry: Option<(Zone, u64)>,
    fences: Vec<(Shard, Fence)>,
    newest: Hlc,
    bytes: u64,
}

impl Taker {
    /// Nothing has come yet.
    pub fn new(taking: Taking) -> Taker {
        Taker {
            taking,
            head: None,
            digest: blake3::Hasher::new(),
            seen: End::default(),
            kind: 0,
            row: None,
            entry: None,
            fences: Vec::new(),
            newest: Hlc(0),
            bytes: 0,
        }
    }

    /// Rows and bytes that have come.
    pub fn progress(&self) -> (u64, u64) {
        (self.seen.rows, self.bytes)
    }

    /// The next part. After a fault, or the end, there is no next one.
    pub fn on_part(&mut self, bytes: Bytes, now_ms: u64) -> Result<Taken, Fault> {
        self.bytes += bytes.len() as u64;
        let kind = bytes.first().copied().unwrap_or(0);
        let part = Part::read(bytes.clone())?;
        if let Part::Refused(why) = part {
            return Err(Fault::Refused(why));
        }
        let first = self.head.is_none();
        if first != (kind == part::HEAD) || kind < self.kind || self.kind == part::END {
            return Err(Fault::Order("parts"));
        }
        self.kind = kind;
        if kind != part::END {
            hash(&mut self.digest, &bytes);
        }
        match part {
            Part::Head(head) => {
                self.head = Some(head.clone());
                Ok(Taken::Head(head))
            }
            Part::Rows(rows) => self.rows(rows, now_ms).map(Taken::Store),
            Part::Entries(entries) => self.entries(entries).map(Taken::Store),
            Part::Fences(fences) => self.fences(fences).map(|()| Taken::Kept),
            Part::End(end) => self.end(&end),
            Part::Refused(why) => Err(Fault::Refused(why)),
        }
    }

    fn rows(&mut self, rows: Vec<(Bytes, Bytes, Row)>, now_ms: u64) -> Result<Vec<Change>, Fault> {
        let map = self.head.as_ref().map_or(MapEpoch(0), |h| h.map_epoch);
        let mut changes = Vec::with_capacity(rows.len());
        for (table, key, row) in rows {
            let version = row.version;
            self.belongs(row.shard, version.stream)?;
            if version.owner_epoch.0 > map.0 {
                return Err(Fault::Epoch { seen: version.owner_epoch.0, map });
            }
            // This zone's own clock is above its own rows, wherever they come from.
            if version.zone != self.taking.own {
                let ahead_ms = version.hlc.ms().saturating_sub(now_ms);
                if ahead_ms > AHEAD_MAX_MS {
                    return Err(Fault::Ahead { ahead_ms });
                }
                self.newest = self.newest.max(version.hlc);
            }
            let place = Some((table.clone(), key.clone()));
            if place <= self.row {
                return Err(Fault::Order("rows"));
            }
            self.row = place;
            self.seen.rows += 1;
            changes.push(Change::Row { table, key, row });
        }
        Ok(changes)
    }

    fn entries(&mut self, entries: Vec<Entry>) -> Result<Vec<Change>, Fault> {
        for e in &entries {
            self.belongs(e.row.shard, e.row.version.stream)?;
            let place = Some((e.row.version.zone, e.row.seq));
            if place <= self.entry {
                return Err(Fault::Order("entries of the ledger"));
            }
            self.entry = place;
            self.seen.entries += 1;
        }
        Ok(entries.into_iter().map(Change::List).collect())
    }

    fn fences(&mut self, fences: Vec<(Shard, Fence)>) -> Result<(), Fault> {
        for (shard, fence) in fences {
            self.belongs(shard, self.taking.stream)?;
            if self.fences.last().is_some_and(|(last, _)| *last >= shard) || self.fences.len() >= FENCES_MAX {
                return Err(Fault::Order("FENCEs"));
            }
            self.seen.fences += 1;
            self.fences.push((shard, fence));
        }
        Ok(())
    }

    fn end(&mut self, end: &End) -> Result<Taken, Fault> {
        self.seen.digest = self.digest.finalize().into();
        let wrong = [
            (end.rows != self.seen.rows, "rows"),
            (end.entries != self.seen.entries, "entries of the ledger"),
            (end.fences != self.seen.fences, "FENCEs"),
            (end.digest != self.seen.digest, "digest"),
        ];
        if let Some((_, what)) = wrong.into_iter().find(|(is, _)| *is) {
            return Err(Fault::End(what));
        }
        let head = self.head.clone().ok_or(Fault::Order("parts"))?;
        Ok(Taken::Whole(Whole { head, fences: std::mem::take(&mut self.fences), newest: self.newest }))
    }

    fn belongs(&self, shard: Shard, stream: u32) -> Result<(), Fault> {
        let Taking { stream: own, streams, .. } = self.taking;
        if stream == own && stream_of(shard, streams) == own { Ok(()) } else { Err(Fault::Foreign { shard, stream }) }
    }
}

fn hash(to: &mut blake3::Hasher, part: &[u8]) {
    to.update(&(part.len() as u64).to_le_bytes());
    to.update(part);
}

/// A refusal in words, as a part.
pub fn refusal(why: &str) -> Bytes {
    let mut out = BytesMut::new();
    part::put_refused(&mut out, why);
    out.freeze()
}

const _: () = assert!(PART_BYTES <= PART_MAX && MOST < PART_BYTES);
const _: () = assert!(ROW_MIN + crate::limits::RECORD_MAX < PART_MAX, "the longest row is a part");
