//! The tail matrix: what an open says of a last batch that a crash, or worse, left truncated, zeroed, garbled or older.
//!
//! Four batches of five blocks are at the log's end, written one after the other, or side by side: then none of them knows that
//! another was durable. Each is damaged at each of its sectors in each way. If nobody knows that it was durable the log ends before
//! it, and the verdict is the one of `expected`; if the store, a peer, a checkpoint or a later batch knows, the verdict is corrupt.
//! Each log that may go on takes 1,000 records and is read again: a torn header must not swallow them.

#[allow(dead_code, reason = "each test uses a part of it")]
mod disk;

use bytes::Bytes;
use disk::Disk;
use disk::rng::Rng;
use disk::world::{Faults, MS, UUID, World, batches};
use replog::batch::{Batch, Origin};
use replog::open::{Corrupt, Why};
use replog::open::{Depth, Floor, Found, Verdict, Witness, examine};
use replog::segment::{Checkpoint, FIRST_POS, Header};
use replog::{Hlc, Op, Record};
use shardmap::{OwnerEpoch, Shard, Zone};

const NAME: &str = "00000000000000000001.rlog";
const ORIGIN: Origin = Origin { stream: 2, zone: Zone(1), term: 1, log_uuid_lo: UUID as u64 };
const BATCHES: usize = 8;
/// Blocks of a batch; the last one holds padding alone but for its first bytes.
const BLOCKS: usize = 5;
const LEN: usize = BLOCKS * 4096;
const SECTORS: usize = LEN / 512;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Damage {
    /// The file ends here.
    Truncated,
    /// Zeros from here to the end of the batch.
    Zeroed,
    /// This sector holds anything.
    Garbled,
    /// From here to the end of the batch an older batch lies there yet.
    OlderFrom,
    /// Up to here an older batch lies there yet.
    OlderTo,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Expected {
    /// The same bytes as before.
    Whole,
    Clean,
    Stale,
    Torn,
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug)]
struct Case {
    damage: Damage,
    sector: usize,
    /// Which of the last four.
    victim: usize,
    /// The last four were under way together.
    together: bool,
    /// The file was used before: old blocks follow in place of zeros.
    recycled: bool,
}

impl Case {
    /// The verdict if nobody knows that the batch was durable, in the order in which the questions are asked.
    fn expected(&self, changed: bool) -> Expected {
        let last = self.victim == 3;
        match (self.damage, self.sector) {
            _ if !changed => Expected::Whole,
            // Nothing of it is there, nor of any behind it.
            (Damage::Truncated, 0) => Expected::Clean,
            (Damage::Zeroed, 0) if last && !self.recycled => Expected::Clean,
            // Old blocks behind, in a file whose header announces them, and nothing of this use.
            (Damage::Zeroed | Damage::Garbled, 0) if last && self.recycled => Expected::Stale,
            // A header that was written for elsewhere lies there, of an earlier use or misdirected, and nothing of this use.
            (Damage::OlderFrom, 0) | (Damage::OlderTo, _) if last => Expected::Stale,
            // Something that was meant for this place, now, is there in part, or behind it.
            (Damage::Truncated | Damage::Zeroed | Damage::Garbled | Damage::OlderFrom | Damage::OlderTo, _) => {
                Expected::Torn
            }
        }
    }
}

/// A batch of `BLOCKS` blocks, or of one.
fn batch(first_seq: u64, chain: u32, blocks: usize) -> Batch {
    let mut value = first_seq.to_le_bytes().to_vec();
    value.resize((blocks - 1) * 4096 + 40, first_seq as u8);
    let record = Record {
        op: Op::Put,
        transaction: 0,
        shard: Shard(3),
        owner_epoch: OwnerEpoch(1),
        hlc: Hlc(first_seq),
        table: Bytes::from_static(b"orders"),
        key: Bytes::from_static(b"k"),
        value: value.into(),
    };
    Batch::build(&ORIGIN, first_seq, chain, 0, &[record])
}

/// The log's only segment, whole, and what an older batch at the place of the last four looks like.
fn segment(together: bool, recycled: bool) -> (Vec<u8>, Vec<u8>) {
    let size = FIRST_POS as usize + (BATCHES + 2) * LEN;
    let salt = 77;
    let header = Header {
        zone: Zone(1),
        stream: 2,
        log_uuid: UUID,
        number: 1,
        first_seq: 1,
        term: 1,
        salt,
        prev_chain: 0,
        prev_end: 0,
        size: size as u64,
        created: Hlc(0),
        recycled,
        prev_sealed: false,
    };
    let (mut file, mut chain) = (header.encode().to_vec(), 0);
    for seq in 1..=BATCHES as u64 {
        let batch = batch(seq, chain, BLOCKS);
        chain = batch.chain;
        let durable = if together { (seq - 1).min(BATCHES as u64 - 4) } else { seq - 1 };
        file.extend_from_slice(&batch.place(salt, file.len() as u64, durable));
    }
    // An earlier use of the file, with another salt; its batches were as long, and its seqs others.
    let older = |at: usize| batch(1000 + at as u64, 5, BLOCKS).place(66, at as u64, 999).to_vec();
    if recycled {
        while file.len() < size {
            file.extend_from_slice(&older(file.len()));
        }
        file.truncate(size);
    }
    file.resize(size, 0);
    (file, older(FIRST_POS as usize + BATCHES * LEN))
}

fn damaged(case: Case) -> (Vec<u8>, bool) {
    let (whole, older) = segment(case.together, case.recycled);
    let mut file = whole.clone();
    let pos = FIRST_POS as usize + (BATCHES - 4 + case.victim) * LEN;
    let at = case.sector * 512;
    match case.damage {
        Damage::Truncated => file.truncate(pos + at),
        Damage::Zeroed => file[pos + at..pos + LEN].fill(0),
        Damage::Garbled => {
            let mut rng = Rng::new(at as u64);
            file[pos + at..pos + at + 512].fill_with(|| rng.next() as u8 | 1);
        }
        Damage::OlderFrom => file[pos + at..pos + LEN].copy_from_slice(&older[at..]),
        Damage::OlderTo => file[pos..pos + at].copy_from_slice(&older[..at]),
    }
    let changed = file != whole;
    (file, changed)
}

fn disk(file: Vec<u8>) -> Disk {
    let mut disk = Disk::default();
    disk.create(NAME, file);
    disk
}

fn judge(disk: &mut Disk, floor: Floor) -> Found {
    examine(disk, floor, Depth::Whole).unwrap()
}

/// 1,000 records behind what was found, and another open: they are there, and what was before them.
fn goes_on(disk: Disk, found: Found, case: Case) {
    let mut world = World::new(1, Faults::default());
    (world.config.mirror, world.retains, world.disk) = (false, None, disk);
    world.config.segment_bytes = 64 * 4096;
    let before = found.last_seq;
    let mut w = world.resume(found);
    for _ in 0..10 {
        let records = (0..100).map(|_| world.small()).collect();
        world.now += MS;
        assert!(world.append(&mut w, records));
        world.carry_out(&mut w, |_, _, _| {});
    }
    let again = judge(&mut world.disk, Floor { applied: before + 1000, peers: 0 });
    assert!(again.verdict.is_sound(), "{case:?}: {}", again.verdict);
    let read: u64 = batches(&mut world.disk, &again).unwrap().iter().map(|b| u64::from(b.records)).sum();
    assert!(read == again.last_seq && read >= before + 1000, "{case:?}: {read} records");
}

fn check(case: Case) {
    let (file, changed) = damaged(case);
    let expected = case.expected(changed);
    let seq = (BATCHES - 4 + case.victim) as u64 + 1;
    let mut disk = disk(file);
    let found = judge(&mut disk, Floor::default());
    let corrupt = |verdict: &Verdict, who: Witness| {
        let known = matches!(verdict, Verdict::Corrupt(Corrupt { seq: at, why: Why::Known { by, .. }, .. })
            if *at == seq && *by == who);
        assert!(known, "{case:?}, {who:?} knows: {verdict:?}");
    };
    // A later batch that was written when this one was durable says so, unless it is gone too.
    if !case.together && case.victim < 3 && case.damage != Damage::Truncated && changed {
        return corrupt(&found.verdict, Witness::Segment);
    }
    let seen = match &found.verdict {
        Verdict::Clean if found.last_seq == BATCHES as u64 => Expected::Whole,
        Verdict::Clean => Expected::Clean,
        Verdict::Stale(_) if found.last_seq == BATCHES as u64 => Expected::Whole,
        Verdict::Stale(_) => Expected::Stale,
        Verdict::Torn(torn) => {
            assert_eq!((torn.pos, torn.seq), (FIRST_POS + (seq - 1) * LEN as u64, seq), "{case:?}");
            Expected::Torn
        }
        verdict @ (Verdict::Empty | Verdict::Corrupt(_) | Verdict::Gap(_)) => panic!("{case:?}: {verdict:?}"),
    };
    assert_eq!(seen, expected, "{case:?}: {:?}", found.verdict);
    if expected != Expected::Whole {
        assert_eq!(found.last_seq, seq - 1, "{case:?}");
        corrupt(&judge(&mut disk, Floor { applied: seq, peers: 0 }).verdict, Witness::Store);
        corrupt(&judge(&mut disk, Floor { applied: 0, peers: seq }).verdict, Witness::Peer);
        let checkpoint = Checkpoint { generation: 1, log_uuid: UUID, durable_seq: seq, term: 1, first_kept: 0 };
        let mut with = disk.clone();
        with.create(Checkpoint::NAMES[1], checkpoint.encode().to_vec());
        corrupt(&judge(&mut with, Floor::default()).verdict, Witness::Checkpoint);
    }
    goes_on(disk, found, case);
}

fn matrix(together: bool, victims: impl Iterator<Item = usize> + Clone) {
    for damage in [Damage::Truncated, Damage::Zeroed, Damage::Garbled, Damage::OlderFrom, Damage::OlderTo] {
        for (sector, victim) in (0..SECTORS).flat_map(|s| victims.clone().map(move |v| (s, v))) {
            for recycled in [false, true] {
                check(Case { damage, sector, victim, together, recycled });
            }
        }
    }
}

#[test]
fn a_last_batch_damaged_at_any_sector_is_the_end_of_the_log_only_if_nobody_knows_of_it() {
    matrix(false, 3..4);
}

#[test]
fn so_is_each_of_four_batches_that_were_written_side_by_side() {
    matrix(true, 0..4);
}

#[test]
fn a_batch_that_a_later_one_knows_to_be_durable_is_corrupt_however_it_was_damaged() {
    matrix(false, 0..3);
}
