//! Makes a damaged segment header again, out of what is before and behind it.

use super::stamp;
use super::{Content, Identity, Note, Patch, Planner, Rebuilt, Refusal, Slot, What};
use crate::Hlc;
use crate::batch::{Batch, Lengths, u32_at, u64_at};
use crate::limits::{BATCH_MAX, BLOCK, SEGMENT_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::open::Storage;
use crate::segment::{FIRST_POS, Footer, Header};
use bytes::Bytes;
use std::io;

/// What a header may have been: of each field that does not follow from elsewhere, likely values, the likeliest first.
struct Likely {
    identity: Identity,
    number: u64,
    first_seq: u64,
    /// What was before it is not kept, so that nothing tells where that ended.
    is_first: bool,
    salt: Vec<u64>,
    term: Vec<u64>,
    created: Vec<Hlc>,
    size: Vec<u64>,
    recycled: Vec<bool>,
    prev_sealed: Vec<bool>,
    prev_chain: Vec<u32>,
    prev_end: Vec<u64>,
}

impl<S: Storage> Planner<'_, S> {
    /// Plans the header of this segment; `None` if it cannot be told, which the plan then says.
    pub(super) fn header(
        &mut self,
        slot: &Slot,
        next: Option<&Slot>,
        rebuilt: &mut Rebuilt,
    ) -> io::Result<Option<Header>> {
        if matches!(slot.header, Err(crate::segment::Fault::Version(_))) {
            return Ok(None);
        }
        let lost = |lost| Refusal::Header { file: slot.name.clone(), lost };
        let after = next.and_then(|n| n.header.as_ref().ok());
        if slot.first_seq != self.reached.next_seq {
            self.plan.refused.push(lost("what is missing before it"));
            return Ok(None);
        }
        let mut stored = self.files.read(&slot.name, 0, BLOCK)?.to_vec();
        stored.resize(BLOCK, 0);
        let last_seq = after.map_or(u64::MAX, |a| a.first_seq - 1);
        let footer = match after {
            Some(a) => Footer::parse(&self.files.read(&slot.name, a.prev_end, BLOCK)?).ok(),
            None => None,
        };
        let of_footer = footer.filter(|f| f.last_seq == last_seq).map(|f| f.salt);
        let (salt, note) = stamp::salt(
            self.files,
            &slot.name,
            u64_at(&stored, 64),
            of_footer,
            (slot.first_seq, last_seq),
            slot.file_len,
        )?;
        let likely = self.likely(slot, salt, &stored)?;
        let (header, proven) = likely.settle(&stored);
        let note = if proven { None } else { note.or(Some(Note::HeaderUnproven)) };
        let content = Content::Bytes(header.encode());
        rebuilt.len = rebuilt.len.max(FIRST_POS);
        rebuilt.patches.push(Patch { pos: 0, len: BLOCK as u64, what: What::Header, content, note });
        Ok(Some(header))
    }

    fn likely(&mut self, slot: &Slot, salt: u64, stored: &[u8]) -> io::Result<Likely> {
        let first = self.first_batch(slot)?;
        let number = self.reached.segment.map_or(slot.number, |(before, ..)| before + 1);
        let r = &self.reached;
        let before = r.segment;
        let terms = first.as_ref().map(|b| b.term).into_iter().chain([r.term, u64_at(stored, 56)]);
        let sizes =
            before.map(|(_, _, size)| size).into_iter().chain([u64_at(stored, 96), slot.file_len, SEGMENT_BYTES]);
        let fits = |n: &u64| (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(n) && n.is_multiple_of(FIRST_POS);
        let of_batch = first.as_ref().map(|b| b.prev_chain);
        let prev_chain = match (slot.first_seq, r.chain.filter(|_| before.is_some())) {
            (1, _) => vec![0],
            (_, Some(chain)) => vec![chain],
            (_, None) => of_batch.into_iter().chain([u32_at(stored, 80)]).collect(),
        };
        // The newest HLC that was taken then: what was taken and not yet written lies behind what is before.
        let seen = Hlc(u64_at(stored, 104));
        let plausible = seen >= r.hlc && first.as_ref().is_none_or(|b| seen <= b.last_hlc);
        let created = if plausible { vec![seen, r.hlc] } else { vec![r.hlc, seen] };
        let prev_end = match before {
            Some((_, end, _)) => vec![end],
            None if number == 1 => vec![0],
            None => vec![u64_at(stored, 88) / FIRST_POS * FIRST_POS % SEGMENT_BYTES_MAX],
        };
        Ok(Likely {
            identity: self.identity,
            number,
            first_seq: slot.first_seq,
            is_first: before.is_none() && number > 1,
            salt: vec![salt, u64_at(stored, 64)],
            term: terms.collect(),
            created,
            size: sizes.filter(fits).collect(),
            recycled: vec![stored[84] & 1 == 1, stored[84] & 1 == 0],
            prev_sealed: vec![r.sealed, !r.sealed],
            prev_chain,
            prev_end,
        })
    }

    /// The first batch of a segment, whatever its stamp says.
    fn first_batch(&mut self, slot: &Slot) -> io::Result<Option<Batch>> {
        let disk: Bytes = self.files.read(&slot.name, FIRST_POS, BATCH_MAX)?;
        let travel = Lengths::of_head(&disk).ok().map(|l| l.travel).filter(|len| *len <= disk.len());
        let batch = travel.and_then(|len| Batch::parse(disk.slice(..len)).ok());
        Ok(batch.filter(|b| b.first_seq == slot.first_seq))
    }
}

impl Likely {
    /// The header for which the stored checksum holds, and true; else the likeliest.
    fn settle(&self, stored: &[u8]) -> (Header, bool) {
        let crc = u32_at(stored, 8);
        let mut likeliest = None;
        for header in self.all() {
            // The flipped bit may be one of the checksum.
            if (crc32fast::hash(&header.encode()[12..]) ^ crc).count_ones() <= 1 {
                return (header, true);
            }
            likeliest.get_or_insert(header);
        }
        let likeliest = likeliest.expect("each field has a likely value");
        // One flipped bit in a field that nothing else tells, under a checksum that holds.
        for field in [56..64, 64..72, 84..88, 88..96, 96..104, 104..112, 112..116] {
            for bit in field.start * 8..field.end * 8 {
                let mut block = likeliest.encode().to_vec();
                block[56..72].copy_from_slice(&stored[56..72]);
                block[84..116].copy_from_slice(&stored[84..116]);
                block[bit / 8] ^= 1 << (bit % 8);
                block[8..12].copy_from_slice(&stored[8..12]);
                if let Some(header) = Header::parse(&block).ok().filter(|h| self.allows(h)) {
                    return (header, true);
                }
            }
        }
        (likeliest, false)
    }

    fn allows(&self, h: &Header) -> bool {
        self.prev_chain.contains(&h.prev_chain) && (self.is_first || self.prev_end.contains(&h.prev_end))
    }

    fn all(&self) -> impl Iterator<Item = Header> + '_ {
        let Identity { zone, stream, log_uuid } = self.identity;
        let (number, first_seq) = (self.number, self.first_seq);
        let count = |n: usize, at: &mut usize| {
            let digit = *at % n;
            *at /= n;
            digit
        };
        let fields = [
            self.salt.len(),
            self.term.len(),
            self.created.len(),
            self.size.len(),
            self.recycled.len(),
            self.prev_sealed.len(),
            self.prev_chain.len(),
            self.prev_end.len(),
        ];
        (0..fields.iter().product()).map(move |mut at| {
            let [salt, term, created, size, recycled, prev_sealed, prev_chain, prev_end] =
                fields.map(|n| count(n, &mut at));
            Header {
                zone,
                stream,
                log_uuid,
                number,
                first_seq,
                term: self.term[term],
                salt: self.salt[salt],
                prev_chain: self.prev_chain[prev_chain],
                prev_end: self.prev_end[prev_end],
                size: self.size[size],
                created: self.created[created],
                recycled: self.recycled[recycled],
                prev_sealed: self.prev_sealed[prev_sealed],
            }
        })
    }
}
