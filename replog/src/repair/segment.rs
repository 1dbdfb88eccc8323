//! Follows the batches of one segment, fills its holes, and checks its footer.

use super::stamp;
use super::{Content, Note, Patch, Planner, Rebuilt, Refusal, Slot, What};
use crate::Hlc;
use crate::batch::{Batch, Fault, Lengths, Stamp, stamp_at};
use crate::limits::{BLOCK, HEAD_MAX};
use crate::open::{Storage, Walk};
use crate::segment::{Digest, FIRST_POS, Footer, Header};
use bytes::Bytes;
use std::io;

/// A segment that is being followed.
struct Way<'a> {
    slot: &'a Slot,
    header: &'a Header,
    walk: Walk,
    pos: u64,
    /// Where and with which seq its successor says that it ends: the next seq, and the position if that can be told.
    until: Option<(u64, Option<u64>)>,
    /// The chain that its successor names.
    next_chain: Option<u32>,
    /// Its successor says that it was sealed.
    sealed: bool,
    /// It is the newest: what checkpoint, store and peers know must be in it.
    newest: bool,
    digest: Digest,
    hlcs: Option<(Hlc, Hlc)>,
    /// What the blocks behind the first hole know to be durable, once they were asked.
    inside: Option<u64>,
    /// Every batch is known, so that the footer is.
    whole: bool,
}

impl<S: Storage> Planner<'_, S> {
    /// Follows the segment to its end.
    pub(super) fn batches(
        &mut self,
        slot: &Slot,
        header: &Header,
        next: Option<&Slot>,
        rebuilt: &mut Rebuilt,
    ) -> io::Result<()> {
        let after = next.and_then(|n| n.header.as_ref().ok());
        let until = match (next, after) {
            (Some(_), Some(after)) if after.number == header.number + 1 => {
                Some((after.first_seq, Some(after.prev_end)))
            }
            (Some(next), None) if next.number == header.number + 1 => Some((next.first_seq, None)),
            (Some(_), Some(_) | None) | (None, _) => None,
        };
        let limit = until.and_then(|(_, end)| end).unwrap_or(slot.file_len).min(slot.file_len);
        let mut way = Way {
            slot,
            header,
            walk: Walk::new(&slot.name, header.salt, limit),
            pos: FIRST_POS,
            until,
            next_chain: after.filter(|_| until.is_some()).map(|a| a.prev_chain),
            sealed: after.is_some_and(|a| until.is_some() && a.prev_sealed),
            newest: next.is_none(),
            digest: Digest::default(),
            hlcs: None,
            inside: None,
            whole: true,
        };
        while way.until.is_none_or(|(seq, _)| self.reached.next_seq < seq) {
            match way.walk.at(self.files, way.pos)? {
                Ok((batch, stamp)) => {
                    if let Some(field) = self.unlinked(&batch) {
                        let file = slot.name.clone();
                        self.plan.refused.push(Refusal::Link { file, pos: way.pos, field });
                        self.reached.chain = Some(batch.prev_chain);
                        way.whole = false;
                    }
                    self.take(&mut way, &batch, stamp.local_durable_seq);
                }
                Err(fault) if !self.fill(&mut way, rebuilt, &fault)? => break,
                Err(_) => {}
            }
        }
        self.end(&mut way, rebuilt)
    }

    /// Why a batch does not continue the log; the word names the field.
    fn unlinked(&self, batch: &Batch) -> Option<&'static str> {
        let r = &self.reached;
        let wrong = [
            (batch.first_seq != r.next_seq, "first seq"),
            (r.chain.is_some_and(|chain| batch.prev_chain != chain), "chain"),
            (batch.log_uuid_lo != self.identity.log_uuid as u64, "log_uuid"),
            ((batch.zone, batch.stream) != (self.identity.zone, self.identity.stream), "zone or stream"),
        ];
        wrong.into_iter().find(|(is, _)| *is).map(|(_, field)| field)
    }

    fn take(&mut self, way: &mut Way<'_>, batch: &Batch, durable: u64) {
        way.digest.add(batch);
        let (low, high) = way.hlcs.unwrap_or((batch.first_hlc, batch.last_hlc));
        way.hlcs = Some((low.min(batch.first_hlc), high.max(batch.last_hlc)));
        way.pos += batch.disk_len() as u64;
        let r = &mut self.reached;
        r.jump(batch.last_seq() + 1, Some(batch.chain));
        r.term = r.term.max(batch.term);
        r.hlc = r.hlc.max(batch.last_hlc);
        r.durable = r.durable.max(durable);
    }

    /// No intact batch is at the position. Plans what belongs there, or goes on behind it; false: the segment ends here.
    fn fill(&mut self, way: &mut Way<'_>, rebuilt: &mut Rebuilt, fault: &Fault) -> io::Result<bool> {
        let seq = self.reached.next_seq;
        let must = match way.until {
            Some((next, Some(_))) => next - 1,
            Some((_, None)) if self.is_sealed(way)? => seq - 1,
            Some((next, None)) => next - 1,
            None => self.known(way)?,
        };
        if must < seq {
            return Ok(false);
        }
        if let Fault::Newer { seen, .. } = fault {
            let (file, seen) = (way.slot.name.clone(), *seen as u16);
            self.plan.refused.push(Refusal::Newer { file, seen });
        } else if let Some(batch) = self.own(way, rebuilt)? {
            self.take(way, &batch.0, batch.1);
            return Ok(true);
        } else {
            match self.fetch(seq)? {
                Ok(batch) => {
                    if let Some(refusal) = self.misplaced(way, &batch)? {
                        self.plan.refused.push(refusal);
                    } else if way.until.is_none() && !way.has_room(&batch) {
                        return Ok(false);
                    } else {
                        self.put(way, rebuilt, &batch)?;
                        return Ok(true);
                    }
                }
                Err(refusal) => self.plan.refused.push(refusal),
            }
        }
        way.whole = false;
        self.skip(way)
    }

    /// The highest seq that must be in this segment, as far as its blocks from here on, and others if it is the newest, tell.
    fn known(&mut self, way: &mut Way<'_>) -> io::Result<u64> {
        let (name, salt) = (&way.slot.name, way.header.salt);
        let footer = |block: &[u8]| Footer::parse(block).ok().filter(|f| f.salt == salt).map(|f| f.last_seq);
        if self.is_sealed(way)? {
            return Ok(self.reached.next_seq - 1);
        }
        let inside = match way.inside {
            Some(inside) => inside,
            None => {
                let mut inside = self.reached.durable;
                for at in (way.pos..way.slot.file_len).step_by(BLOCK) {
                    let head = self.files.read(name, at, HEAD_MAX)?;
                    let stamp = stamp_at(&head, salt, at).map(|s| s.local_durable_seq);
                    inside = inside.max(footer(&head).or(stamp).unwrap_or(0));
                }
                *way.inside.insert(inside)
            }
        };
        Ok(if way.newest { inside.max(self.known) } else { inside })
    }

    /// Does a footer say that the segment ends here? What came after it is in another one.
    fn is_sealed(&mut self, way: &Way<'_>) -> io::Result<bool> {
        let footer = Footer::parse(&self.files.read(&way.slot.name, way.pos, BLOCK)?).ok();
        let last_seq = self.reached.next_seq - 1;
        Ok(footer.is_some_and(|f| f.salt == way.header.salt && f.last_seq == last_seq))
    }

    /// The batch that lies here, if only its stamp or the zeros behind it are damaged.
    fn own(&mut self, way: &Way<'_>, rebuilt: &mut Rebuilt) -> io::Result<Option<(Batch, u64)>> {
        let head = self.files.read(&way.slot.name, way.pos, HEAD_MAX)?;
        let Ok(lengths) = Lengths::of_head(&head) else { return Ok(None) };
        let disk: Bytes = self.files.read(&way.slot.name, way.pos, lengths.disk)?;
        if disk.len() < lengths.disk {
            return Ok(None);
        }
        let Ok(batch) = Batch::parse(disk.slice(..lengths.travel)) else { return Ok(None) };
        if self.unlinked(&batch).is_some() {
            return Ok(None);
        }
        let (pos, first_seq) = (way.pos, batch.first_seq);
        let (durable, note) = self.stamp(way, Stamp::of(&head), batch.chain);
        let placed = batch.place(way.header.salt, pos, durable).freeze();
        let parts =
            [(4..16, What::Stamp(first_seq), note), (lengths.travel..lengths.disk, What::Padding(first_seq), None)];
        for (range, what, note) in parts {
            if placed[range.clone()] != disk[range.clone()] {
                let (pos, len) = (pos + range.start as u64, range.len() as u64);
                let content = Content::Bytes(placed.slice(range));
                rebuilt.patches.push(Patch { pos, len, what, content, note });
            }
        }
        Ok(Some((batch, durable)))
    }

    fn stamp(&self, way: &Way<'_>, seen: Stamp, chain: u32) -> (u64, Option<Note>) {
        let r = &self.reached;
        stamp::mend(seen, way.header.salt, way.pos, chain, r.durable, &r.ends)
    }

    /// The source's batch of a seq that is wanted, if it continues this log.
    pub(super) fn fetch(&mut self, seq: u64) -> io::Result<Result<Batch, Refusal>> {
        let batch = match &mut self.source {
            Some(source) => source.batch_at(seq)?,
            None => None,
        };
        let Some(batch) = batch else { return Ok(Err(Refusal::Lacks { seq })) };
        let diverged = |field, seen, expected| Err(Refusal::Diverged { seq, field, seen, expected });
        Ok(match self.unlinked(&batch) {
            None => Ok(batch),
            Some("first seq") => diverged("first seq", batch.first_seq, seq),
            Some("chain") => diverged("chain", batch.prev_chain.into(), self.reached.chain.unwrap_or(0).into()),
            Some(_) => Err(Refusal::Foreign { seq }),
        })
    }

    /// Why the source's batch is not the one that was here: a header that holds says so, or it is too long.
    fn misplaced(&mut self, way: &Way<'_>, batch: &Batch) -> io::Result<Option<Refusal>> {
        let seq = batch.first_seq;
        let diverged = |field, seen, expected| Some(Refusal::Diverged { seq, field, seen, expected });
        let head = self.files.read(&way.slot.name, way.pos, HEAD_MAX)?;
        let own = stamp_at(&head, way.header.salt, way.pos).and_then(|_| Batch::fields_at(&head));
        if let Some(own) = own.filter(|own| own.chain != batch.chain) {
            return Ok(diverged("header_crc", batch.chain.into(), own.chain.into()));
        }
        let end = way.pos + batch.disk_len() as u64;
        Ok(match way.until {
            Some((next, _)) if batch.last_seq() >= next => diverged("last seq", batch.last_seq(), next - 1),
            Some((_, Some(until))) if end > until => diverged("length", batch.disk_len() as u64, until - way.pos),
            Some(_) | None => None,
        })
    }

    fn put(&mut self, way: &mut Way<'_>, rebuilt: &mut Rebuilt, batch: &Batch) -> io::Result<()> {
        let mut seen = self.files.read(&way.slot.name, way.pos, 16)?.to_vec();
        seen.resize(16, 0);
        let (local_durable_seq, note) = self.stamp(way, Stamp::of(&seen), batch.chain);
        let (first_seq, last_seq) = (batch.first_seq, batch.last_seq());
        let (seq, chain, salt) = (first_seq, batch.chain, way.header.salt);
        let content = Content::Batch { seq, chain, salt, local_durable_seq };
        let (pos, len) = (way.pos, batch.disk_len() as u64);
        rebuilt.len = rebuilt.len.max(pos + len);
        rebuilt.patches.push(Patch { pos, len, what: What::Batch { first_seq, last_seq }, content, note });
        self.take(way, batch, local_durable_seq);
        Ok(())
    }

    /// Goes on at the next intact batch, or behind the segment; false if nothing says where that is.
    fn skip(&mut self, way: &mut Way<'_>) -> io::Result<bool> {
        let limit = way.until.and_then(|(_, end)| end).unwrap_or(way.slot.file_len);
        let mut at = way.pos + BLOCK as u64;
        while at < limit {
            if let Ok((batch, _)) = way.walk.at(self.files, at)? {
                way.pos = at;
                self.reached.jump(batch.first_seq, Some(batch.prev_chain));
                return Ok(true);
            }
            at += BLOCK as u64;
        }
        if let Some((next, end)) = way.until {
            way.pos = end.unwrap_or(way.pos);
            self.reached.jump(next, way.next_chain);
        }
        Ok(false)
    }

    /// The end of the segment: does it lie where its successor says, and is the footer behind it the one of its batches?
    fn end(&mut self, way: &mut Way<'_>, rebuilt: &mut Rebuilt) -> io::Result<()> {
        let r = &self.reached;
        let (seq, file) = (r.next_seq - 1, way.slot.name.clone());
        if let (Some((_, Some(end))), true) = (way.until, way.whole) {
            let diverged = |field, seen, expected| Refusal::Diverged { seq, field, seen, expected };
            let chain = r.chain.zip(way.next_chain).filter(|(seen, expected)| seen != expected);
            if let Some((seen, expected)) = chain {
                self.plan.refused.push(diverged("chain at the end of a segment", seen.into(), expected.into()));
            } else if way.pos != end {
                self.plan.refused.push(diverged("end of a segment", way.pos, end));
            }
        }
        self.reached.segment = Some((way.header.number, way.pos, way.header.size));
        (self.reached.sealed, self.reached.unsealed) = (way.sealed, None);
        if !way.whole || seq < way.header.first_seq {
            return Ok(());
        }
        let (first_hlc, last_hlc) = way.hlcs.unwrap_or_default();
        let records = seq + 1 - way.header.first_seq;
        let digest = way.digest.finish();
        let footer = Footer { salt: way.header.salt, last_seq: seq, records, first_hlc, last_hlc, digest };
        let seen = self.files.read(&way.slot.name, way.pos, BLOCK)?;
        let parsed = Footer::parse(&seen);
        let (pos, len, content) = (way.pos, BLOCK as u64, Content::Bytes(footer.encode()));
        let patch = Patch { pos, len, what: What::Footer, content, note: None };
        match parsed {
            Ok(f) if f == footer => self.reached.sealed = true,
            Ok(f) if f.salt == footer.salt => self.plan.refused.push(Refusal::Digest { file }),
            Err(_) if way.sealed || resembles(&seen, &footer.encode()) => self.seal(rebuilt, patch),
            Ok(_) if way.sealed => self.seal(rebuilt, patch),
            // The header behind it may be damaged, and say so once it is mended.
            Ok(_) | Err(_) => {
                let len = way.slot.file_len.max(pos + len);
                self.reached.unsealed = Some(Rebuilt { name: file, is_new: false, len, patches: vec![patch] });
            }
        }
        Ok(())
    }

    fn seal(&mut self, rebuilt: &mut Rebuilt, patch: Patch) {
        rebuilt.len = rebuilt.len.max(patch.pos + patch.len);
        rebuilt.patches.push(patch);
        self.reached.sealed = true;
    }
}

impl Way<'_> {
    /// Does the batch fit the file, with a footer behind it?
    fn has_room(&self, batch: &Batch) -> bool {
        self.pos + (batch.disk_len() + BLOCK) as u64 <= self.header.size.max(self.slot.file_len)
    }
}

/// Is this block a footer that was damaged? A segment that was left by a crash has none, and what lies there is of an earlier use
/// of the file, or zeros.
fn resembles(seen: &[u8], footer: &[u8]) -> bool {
    const USED: usize = 88;
    let same = seen.iter().zip(footer).take(USED).filter(|(a, b)| a == b && **b != 0).count();
    let telling = footer[..USED].iter().filter(|b| **b != 0).count();
    same * 2 > telling
}
