//! Plans segments that are not there: the source's batches under new headers and stamps.

use super::{Bound, Content, Note, Patch, Planner, Rebuilt, Refusal, What};
use crate::Hlc;
use crate::limits::{BLOCK, SEGMENT_BYTES, SEGMENT_BYTES_MAX};
use crate::open::Storage;
use crate::segment::{Digest, FIRST_POS, Footer, Header};
use std::io;

/// Batches of missing segments that are held while they are planned; 100 bytes each.
const BATCHES_MAX: usize = 4_000_000;

/// What is remembered of a batch until its segment is planned.
struct Entry {
    first_seq: u64,
    last_seq: u64,
    disk_len: u64,
    prev_chain: u32,
    chain: u32,
    term: u64,
    hlcs: (Hlc, Hlc),
    /// header_crc and page table.
    digested: bytes::Bytes,
}

impl<S: Storage> Planner<'_, S> {
    /// Plans what is missing up to `next`, or up to what is known to be durable.
    pub(super) fn missing(&mut self, next: Option<Bound>) -> io::Result<()> {
        let from = self.reached.next_seq;
        let to = next.map_or(self.known, |n| n.first_seq - 1);
        match self.gather(from, to, next)? {
            Ok(entries) => match self.groups(&entries, next) {
                Ok(groups) => self.make(entries, &groups, next),
                Err(why) => self.plan.refused.push(Refusal::Misfit { from, to, why }),
            },
            Err(refusal) => self.plan.refused.push(refusal),
        }
        if let (Some(next), true) = (next, self.reached.next_seq != to + 1) {
            self.reached.jump(next.first_seq, next.prev_chain);
            self.reached.segment = None;
        }
        Ok(())
    }

    /// The source's batches from `from` to `to`; the log is followed along them, and put back.
    fn gather(&mut self, from: u64, to: u64, next: Option<Bound>) -> io::Result<Result<Vec<Entry>, Refusal>> {
        let chain = self.reached.chain;
        let mut entries: Vec<Entry> = Vec::new();
        let gathered = loop {
            let seq = self.reached.next_seq;
            if seq > to {
                let seen = self.reached.chain.unwrap_or(0);
                break match next.and_then(|n| n.prev_chain).filter(|chain| *chain != seen) {
                    Some(chain) => {
                        let (field, seen, expected) = ("chain", seen.into(), chain.into());
                        Err(Refusal::Diverged { seq, field, seen, expected })
                    }
                    None => Ok(()),
                };
            }
            match self.fetch(seq)? {
                Ok(b) if next.is_some() && b.last_seq() > to => {
                    let (field, seen) = ("last seq", b.last_seq());
                    break Err(Refusal::Diverged { seq, field, seen, expected: to });
                }
                Ok(_) if entries.len() == BATCHES_MAX => {
                    break Err(Refusal::Misfit { from, to, why: "there are too many" });
                }
                Ok(b) => {
                    let head = usize::from(u16::from_le_bytes([b.bytes[20], b.bytes[21]]));
                    let digested = [&b.bytes[16..20], &b.bytes[crate::limits::HEADER..head]].concat().into();
                    let (hlcs, disk_len) = ((b.first_hlc, b.last_hlc), b.disk_len() as u64);
                    let (first_seq, last_seq, chain, term) = (b.first_seq, b.last_seq(), b.chain, b.term);
                    let prev_chain = b.prev_chain;
                    entries.push(Entry { first_seq, last_seq, disk_len, prev_chain, chain, term, hlcs, digested });
                    (self.reached.next_seq, self.reached.chain) = (last_seq + 1, Some(chain));
                }
                Err(refusal) => break Err(refusal),
            }
        };
        (self.reached.next_seq, self.reached.chain) = (from, chain);
        Ok(gathered.map(|()| entries))
    }

    /// How many batches go into each segment. The last one ends where its successor says; the others anywhere.
    fn groups(&self, entries: &[Entry], next: Option<Bound>) -> Result<Vec<usize>, &'static str> {
        let size = self.reached.segment.map_or(SEGMENT_BYTES, |(.., size)| size);
        let mut tail = 0;
        if let Some(end) = next.and_then(|n| n.prev_end) {
            let mut left = end.checked_sub(FIRST_POS).ok_or("its successor says that nothing is before it")?;
            while left > 0 {
                let entry = entries.iter().rev().nth(tail).ok_or("they are too few")?;
                left = left.checked_sub(entry.disk_len).ok_or("they end elsewhere")?;
                tail += 1;
            }
        }
        let rest = entries.len() - tail;
        let before = self.reached.segment.map(|(number, ..)| number).or((entries[0].first_seq == 1).then_some(0));
        let mut groups = match (next, before) {
            (Some(next), Some(before)) => {
                let missing = next.number.checked_sub(before + 1).filter(|n| *n > 0).ok_or("no number is missing")?;
                let count = missing - u64::from(next.prev_end.is_some());
                let count = usize::try_from(count).ok().filter(|c| *c <= rest).ok_or("more segments than batches")?;
                if (count == 0) != (rest == 0) {
                    return Err("they are more than the missing segments held");
                }
                (0..count).map(|at| rest * (at + 1) / count - rest * at / count).collect()
            }
            (Some(_), None) | (None, _) => by_size(&entries[..rest], size),
        };
        groups.extend((tail > 0).then_some(tail));
        Ok(groups)
    }

    fn make(&mut self, entries: Vec<Entry>, groups: &[usize], next: Option<Bound>) {
        let number = match (self.reached.segment, next) {
            (Some((before, ..)), _) => before + 1,
            (None, Some(next)) if next.number > groups.len() as u64 => next.number - groups.len() as u64,
            (None, Some(_)) => {
                let (from, to) = (entries[0].first_seq, entries[entries.len() - 1].last_seq);
                self.plan.refused.push(Refusal::Misfit { from, to, why: "segment numbers begin at 1" });
                return;
            }
            (None, None) => 1,
        };
        let mut entries = &entries[..];
        for (number, count) in (number..).zip(groups) {
            let (these, rest) = entries.split_at(*count);
            entries = rest;
            self.make_one(number, these);
        }
    }

    fn make_one(&mut self, number: u64, entries: &[Entry]) {
        let used: u64 = FIRST_POS + entries.iter().map(|e| e.disk_len).sum::<u64>();
        let len = used + BLOCK as u64;
        let usual = self.reached.segment.map_or(SEGMENT_BYTES, |(.., size)| size);
        let salt = self.salt();
        let r = &mut self.reached;
        let first_seq = entries[0].first_seq;
        let header = Header {
            zone: self.identity.zone,
            stream: self.identity.stream,
            log_uuid: self.identity.log_uuid,
            number,
            first_seq,
            term: r.term.max(entries[0].term),
            salt,
            prev_chain: entries[0].prev_chain,
            prev_end: r.segment.map_or(0, |(_, end, _)| end),
            size: usual.max(len).min(SEGMENT_BYTES_MAX),
            created: r.hlc,
            recycled: false,
            prev_sealed: r.sealed,
        };
        let patch = |pos, len, what, content| Patch { pos, len, what, content, note: Some(Note::New) };
        let mut patches = vec![patch(0, BLOCK as u64, What::Header, Content::Bytes(header.encode()))];
        let (mut pos, mut digest, mut hlcs) = (FIRST_POS, Digest::default(), entries[0].hlcs);
        for e in entries {
            let content = Content::Batch { seq: e.first_seq, chain: e.chain, salt, local_durable_seq: r.durable };
            let what = What::Batch { first_seq: e.first_seq, last_seq: e.last_seq };
            patches.push(patch(pos, e.disk_len, what, content));
            pos += e.disk_len;
            digest.add_parts(&e.digested);
            hlcs = (hlcs.0.min(e.hlcs.0), hlcs.1.max(e.hlcs.1));
            r.jump(e.last_seq + 1, Some(e.chain));
            r.term = r.term.max(e.term);
            r.hlc = r.hlc.max(e.hlcs.1);
        }
        let (first_hlc, last_hlc) = hlcs;
        let records = r.next_seq - first_seq;
        let footer = Footer { salt, last_seq: r.next_seq - 1, records, first_hlc, last_hlc, digest: digest.finish() };
        patches.push(patch(pos, BLOCK as u64, What::Footer, Content::Bytes(footer.encode())));
        (r.segment, r.sealed, r.unsealed) = (Some((number, pos, header.size)), true, None);
        let name = header.file_name();
        if self.plan.files.iter().any(|f| f.name == name) {
            let (from, to, why) = (first_seq, r.next_seq - 1, "a file of garbage is in its place: move that away");
            self.plan.refused.push(Refusal::Misfit { from, to, why });
        }
        self.plan.files.push(Rebuilt { name, is_new: true, len, patches });
    }

    /// Another salt out of the random one.
    fn salt(&mut self) -> u64 {
        self.salt = self.salt.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.salt;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// As many batches as a segment of this length holds, again and again.
fn by_size(entries: &[Entry], size: u64) -> Vec<usize> {
    let mut groups = Vec::new();
    let (mut count, mut used) = (0, FIRST_POS);
    for e in entries {
        if count > 0 && used + e.disk_len + BLOCK as u64 > size {
            groups.push(std::mem::take(&mut count));
            used = FIRST_POS;
        }
        (count, used) = (count + 1, used + e.disk_len);
    }
    groups.extend((count > 0).then_some(count));
    groups
}
