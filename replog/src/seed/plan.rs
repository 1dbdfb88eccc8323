//! The steps by which a snapshot takes a mirror's place, so that a crash between any two of them ends as before or as meant.
//!
//! ```text
//! rows, ledger stored  ─▶ a directory is prepared: an empty mirror behind `seq`; last its plan, in the file SEED
//!   ─▶ COMMIT: one durable transaction of the store: FENCEs, applied = seq
//!   ─▶ the old mirror is moved to quarantine/ ─▶ the prepared one gets its name ─▶ a `gap` record in the own log ─▶ SEED is removed
//! ```
//!
//! Before the commit a start throws the prepared directory away: the gap is as it was. Behind it a start goes on where the crash was:
//! what the store says to have applied is nowhere else any more. No step looks at anything but what [`Seen`] says.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use shardmap::{ZONES, Zone};

const MAGIC: &[u8; 8] = b"RLGSED1\0";
const VERSION: u16 = 1;
const LEN: usize = 8 + 4 + 2 + 2 + 4 + 16 + 8 + 8 + 4 + 8;

/// What is being done, as the file SEED says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The zone whose log it is.
    pub zone: Zone,
    /// The stream.
    pub stream: u32,
    /// The log's incarnation.
    pub log_uuid: u128,
    /// The first seq that the old mirror did not have.
    pub from: u64,
    /// The last seq that the snapshot stands for; the new mirror begins behind it.
    pub seq: u64,
    /// The chain there.
    pub chain: u32,
    /// The writer's term.
    pub term: u64,
}

impl Plan {
    /// The file in which a plan lies, in the directory that it is about.
    pub const NAME: &str = "SEED";

    /// The bytes of the file.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(LEN);
        out.put_slice(MAGIC);
        out.put_u32_le(0);
        out.put_u16_le(VERSION);
        out.put_u16_le(self.zone.0.into());
        out.put_u32_le(self.stream);
        out.put_u128_le(self.log_uuid);
        out.put_u64_le(self.from);
        out.put_u64_le(self.seq);
        out.put_u32_le(self.chain);
        out.put_u64_le(self.term);
        let crc = crc32fast::hash(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    /// Reads the file; `None`: it is not whole, or of another version.
    pub fn parse(mut b: &[u8]) -> Option<Plan> {
        if b.len() != LEN || b[..8] != *MAGIC || crc32fast::hash(&b[12..]).to_le_bytes() != b[8..12] {
            return None;
        }
        b.advance(12);
        if b.get_u16_le() != VERSION {
            return None;
        }
        let (zone, stream) = (b.get_u16_le(), b.get_u32_le());
        let (log_uuid, from, seq) = (b.get_u128_le(), b.get_u64_le(), b.get_u64_le());
        let plan =
            Plan { zone: Zone(zone as u8), stream, log_uuid, from, seq, chain: b.get_u32_le(), term: b.get_u64_le() };
        (usize::from(zone) < ZONES && seq > 0 && seq < u64::MAX).then_some(plan)
    }
}

/// The directory that is prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prepared {
    /// There is none.
    No,
    /// It is there without a plan: half made.
    Half,
    /// It is there, whole and durable.
    Whole(Plan),
}

/// What a start finds, and what the one that seeds knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The prepared directory.
    pub prepared: Prepared,
    /// Is there a directory under the mirror's name?
    pub mirror: bool,
    /// The plan that lies in it.
    pub placed: Option<Plan>,
    /// What the store has applied of the log, durably.
    pub applied: u64,
}

/// What is to be done next; each is durable before the next one begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Remove the prepared directory.
    Discard,
    /// Move the mirror to the quarantine, under a name that tells this seq.
    Keep(u64),
    /// Give the prepared directory the mirror's name.
    Place,
    /// Append a `gap` record to the own log, durably; then remove the plan from the mirror. Done twice it says the same twice.
    Record(Plan),
}

/// What comes next; `None`: nothing is left to do.
pub fn next_step(seen: &Seen) -> Option<Step> {
    match seen.prepared {
        Prepared::Half => Some(Step::Discard),
        Prepared::Whole(plan) if seen.applied < plan.seq => Some(Step::Discard),
        Prepared::Whole(plan) if seen.mirror => Some(Step::Keep(plan.seq)),
        Prepared::Whole(_) => Some(Step::Place),
        Prepared::No => seen.placed.map(Step::Record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { zone: Zone(1), stream: 2, log_uuid: 7 << 70, from: 61, seq: 99, chain: 5, term: 3 };

    /// Both zones' disks, as far as the steps touch them. The old mirror ends with seq 60, where the store is.
    #[derive(Clone, PartialEq, Debug)]
    struct World {
        prepared: Prepared,
        /// The mirror's first seq, and the plan in it.
        mirror: Option<(u64, Option<Plan>)>,
        kept: Vec<u64>,
        applied: u64,
        recorded: u32,
    }

    impl World {
        fn seen(&self) -> Seen {
            let placed = self.mirror.and_then(|(_, plan)| plan);
            Seen { prepared: self.prepared, mirror: self.mirror.is_some(), placed, applied: self.applied }
        }

        /// The moments of a step at which the power may go: each world is one that a start can find.
        fn carry_out(&self, step: Step) -> Vec<World> {
            let then = |change: &dyn Fn(&mut World)| {
                let mut next = self.clone();
                change(&mut next);
                next
            };
            match step {
                // A directory that goes loses its plan first.
                Step::Discard => {
                    vec![then(&|w| w.prepared = Prepared::Half), then(&|w| w.prepared = Prepared::No)]
                }
                Step::Keep(_) => vec![then(&|w| w.kept.push(w.mirror.take().expect("there is one").0))],
                Step::Place => vec![then(&|w| {
                    let Prepared::Whole(plan) = w.prepared else { panic!("only a whole one is placed") };
                    (w.mirror, w.prepared) = (Some((plan.seq + 1, Some(plan))), Prepared::No);
                })],
                Step::Record(_) => {
                    let recorded = then(&|w| w.recorded += 1);
                    let mut forgotten = recorded.clone();
                    forgotten.mirror = recorded.mirror.map(|(first, _)| (first, None));
                    vec![recorded, forgotten]
                }
            }
        }

        /// Carries out what is left, as a start does.
        fn settle(mut self) -> World {
            for _ in 0..10 {
                match next_step(&self.seen()) {
                    Some(step) => self = self.carry_out(step).pop().expect("a step changes something"),
                    None => return self,
                }
            }
            panic!("it does not end: {self:?}");
        }
    }

    /// A seeding without a crash: every state of the disk, in order.
    fn moments(old: Option<(u64, Option<Plan>)>) -> Vec<World> {
        let begin = World { prepared: Prepared::No, mirror: old, kept: vec![], applied: 60, recorded: 0 };
        let half = World { prepared: Prepared::Half, ..begin.clone() };
        let whole = World { prepared: Prepared::Whole(PLAN), ..begin.clone() };
        let mut all = vec![begin, half, whole.clone(), World { applied: PLAN.seq, ..whole }];
        while let Some(step) = next_step(&all[all.len() - 1].seen()) {
            all.extend(all[all.len() - 1].carry_out(step));
        }
        all
    }

    #[test]
    fn a_crash_after_any_step_and_in_the_recovery_from_it_ends_as_before_or_as_meant() {
        for old in [Some((1, None)), None] {
            let all = moments(old);
            assert!(all.len() >= 7, "{all:?}");
            for (at, moment) in all.iter().enumerate() {
                let mut starts = vec![moment.clone()];
                // The start itself is cut off at each of its moments, and another one follows.
                let mut on = moment.clone();
                while let Some(step) = next_step(&on.seen()) {
                    starts.extend(on.carry_out(step));
                    on = starts[starts.len() - 1].clone();
                }
                for end in starts.into_iter().map(World::settle) {
                    assert_eq!((end.prepared, end.seen().placed), (Prepared::No, None), "moment {at}");
                    if moment.applied < PLAN.seq {
                        assert_eq!((end.mirror, end.applied, end.recorded), (old, 60, 0), "as before; moment {at}");
                    } else {
                        let kept: Vec<u64> = old.iter().map(|(first, _)| *first).collect();
                        assert_eq!((end.mirror, end.applied), (Some((100, None)), 99), "as meant; moment {at}");
                        assert_eq!(end.kept, kept, "the old mirror is there");
                        assert!(end.recorded >= 1, "the gap is recorded; moment {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_bytes_of_a_plan_are_frozen_and_a_flipped_bit_is_found() {
        let bytes = PLAN.encode();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let golden = concat!(
            "524c475345443100fff4af70",         // RLGSED1, crc
            "0100010002000000",                 // version, zone, stream
            "0000000000000000c001000000000000", // log_uuid
            "3d000000000000006300000000000000", // from, seq
            "050000000300000000000000",         // chain, term
        );
        assert_eq!(hex, golden);
        assert_eq!(Plan::parse(&bytes), Some(PLAN));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Plan::parse(&bad), None, "bit {bit}");
        }
        (0..bytes.len()).for_each(|len| assert_eq!(Plan::parse(&bytes[..len]), None));
    }
}
