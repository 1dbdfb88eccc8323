//! Finds lost stamps and lost salts again, by the checksums that were made of them.
//!
//! place_crc is a CRC of salt, position, local_durable_seq and header_crc. Where one of them is lost and the others are at hand,
//! likely values can be tried. A CRC is linear, so that a salt that fits can also be computed: 32 bits of it follow from the other
//! 32, and all stamps that hold for the old salt hold for that one too.

use super::Note;
use crate::batch::{Batch, Lengths, Stamp, place_crc};
use crate::limits::{BLOCK, HEAD_MAX};
use crate::open::Storage;
use crate::segment::FIRST_POS;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;

/// Batches that are asked about a salt.
const SAMPLES_MAX: usize = 64;

/// The stamp of a batch whose header_crc is `chain`, as it was or as good as: `seen` is what lies there, `durable` the highest
/// local_durable_seq before it, `ends` the last seqs of the batches before.
pub fn mend(seen: Stamp, salt: u64, pos: u64, chain: u32, durable: u64, ends: &VecDeque<u64>) -> (u64, Option<Note>) {
    let holds = |seq| place_crc(salt, pos, seq, chain) == seen.place_crc;
    if holds(seen.local_durable_seq) {
        return (seen.local_durable_seq, None);
    }
    let mut plausible = ends.iter().copied().filter(|end| *end >= durable).chain([durable]);
    if let Some(found) = plausible.clone().find(|seq| holds(*seq)) {
        return (found, None);
    }
    // A block of zeros says nothing; any other number that may be true, is.
    let blank = seen == Stamp { place_crc: 0, local_durable_seq: 0 };
    match !blank && plausible.any(|seq| seq == seen.local_durable_seq) {
        true => (seen.local_durable_seq, None),
        false => (durable, Some(Note::DurableLost(durable))),
    }
}

/// A stamp that lies somewhere with the header_crc that it was made of.
#[derive(Clone, Copy)]
struct Sample {
    pos: u64,
    chain: u32,
    stamp: Stamp,
}

impl Sample {
    fn holds(&self, salt: u64) -> bool {
        place_crc(salt, self.pos, self.stamp.local_durable_seq, self.chain) == self.stamp.place_crc
    }

    /// The salt with this upper half for which the stamp holds.
    fn solve(&self, high: u64) -> u64 {
        let crc = |salt| place_crc(salt, self.pos, self.stamp.local_durable_seq, self.chain);
        let base = crc(high << 32);
        // Rows of a linear system over bits: what each bit of the salt changes, and which bit that is.
        let mut rows: Vec<(u32, u32)> = (0..32).map(|i| (crc(high << 32 | 1 << i) ^ base, 1 << i)).collect();
        let (mut wanted, mut low) = (self.stamp.place_crc ^ base, 0u32);
        for bit in (0..32).rev() {
            let Some(at) = rows.iter().position(|(change, _)| change >> bit & 1 == 1) else { continue };
            let (change, of) = rows.swap_remove(at);
            rows.iter_mut().filter(|r| r.0 >> bit & 1 == 1).for_each(|r| *r = (r.0 ^ change, r.1 ^ of));
            if wanted >> bit & 1 == 1 {
                (wanted, low) = (wanted ^ change, low ^ of);
            }
        }
        high << 32 | u64::from(low)
    }
}

/// The salt of a segment whose header is damaged: the one that is `stored`, that of its `footer`, one that differs from the stored one
/// in a bit, or one that fits as well. The seqs of its batches are `from` to `to`.
pub fn salt(
    files: &mut impl Storage,
    name: &str,
    stored: u64,
    footer: Option<u64>,
    (from, to): (u64, u64),
    file_len: u64,
) -> io::Result<(u64, Option<Note>)> {
    let samples = samples(files, name, (from, to), file_len)?;
    let votes = |salt: u64| samples.iter().filter(|s| s.holds(salt)).count();
    if samples.is_empty() {
        return Ok((footer.unwrap_or(stored), None));
    }
    let flipped = (0..64).map(|bit| stored ^ 1 << bit);
    let known = footer.into_iter().chain([stored]).chain(flipped).max_by_key(|salt| (votes(*salt), *salt == stored));
    let known = known.filter(|salt| votes(*salt) > 0);
    if let Some(salt) = known {
        return Ok((salt, None));
    }
    let solved = samples.iter().map(|s| s.solve(stored >> 32)).max_by_key(|salt| votes(*salt));
    Ok((solved.unwrap_or(stored), Some(Note::SaltLost)))
}

fn samples(files: &mut impl Storage, name: &str, seqs: (u64, u64), file_len: u64) -> io::Result<Vec<Sample>> {
    let mut all = Vec::new();
    let mut pos = FIRST_POS;
    while pos < file_len && all.len() < SAMPLES_MAX {
        let head: Bytes = files.read(name, pos, HEAD_MAX)?;
        let lengths = Lengths::of_head(&head);
        let fields = Batch::fields_at(&head).filter(|b| (seqs.0..=seqs.1).contains(&b.first_seq));
        if let Some(b) = fields {
            all.push(Sample { pos, chain: b.chain, stamp: Stamp::of(&head) });
        }
        pos += lengths.map_or(BLOCK, |l| l.disk) as u64;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(salt: u64, pos: u64, seq: u64, chain: u32) -> Sample {
        let stamp = Stamp { place_crc: place_crc(salt, pos, seq, chain), local_durable_seq: seq };
        Sample { pos, chain, stamp }
    }

    #[test]
    fn a_salt_that_is_solved_for_one_stamp_holds_for_all() {
        let salt = 0x0123_4567_89ab_cdef;
        let all = [sample(salt, 4096, 0, 7), sample(salt, 8192, 3, 0xffff_ffff), sample(salt, 1 << 20, 9, 1)];
        for high in [0, 1, salt >> 32, 0xffff_ffff] {
            let solved = all[0].solve(high);
            assert_eq!(solved >> 32, high);
            assert!(all.iter().all(|s| s.holds(solved)), "{high}");
        }
        assert_eq!(all[1].solve(salt >> 32), salt);
    }

    #[test]
    fn a_stamp_is_found_again_from_either_half() {
        let (salt, pos, chain) = (5, 8192, 0xfeed);
        let whole = sample(salt, pos, 40, chain).stamp;
        let ends = VecDeque::from([10, 20, 30, 40, 50]);
        let check = |seen, expected| assert_eq!(mend(seen, salt, pos, chain, 30, &ends), expected);
        check(whole, (40, None));
        check(Stamp { local_durable_seq: 41, ..whole }, (40, None));
        check(Stamp { place_crc: 1, ..whole }, (40, None));
        check(Stamp { place_crc: 1, local_durable_seq: 41 }, (30, Some(Note::DurableLost(30))));
        check(Stamp { place_crc: 0, local_durable_seq: 0 }, (30, Some(Note::DurableLost(30))));
    }
}
