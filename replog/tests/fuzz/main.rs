//! A bounded run of the fuzz targets: a corpus, mutated by a seed. `FUZZ_ROUNDS=n` makes it longer, `SEED=n` another one.
//! `replog/fuzz` has the same functions for cargo-fuzz.

mod checks;
#[path = "../disk/rng.rs"]
mod rng;

use bytes::{Bytes, BytesMut};
use replog::batch::{Batch, Origin};
use replog::link::{self, Ack, Ask, Codec, Frame, Hello, SeedAsk, Welcome};
use replog::seed::{Head, Packer, refusal};
use replog::segment::{Checkpoint, Digest, FIRST_POS, Footer, Header};
use replog::store::{Entry, Fence, Row};
use replog::{Hlc, Op, Record, Version};
use rng::Rng;
use shardmap::{MapEpoch, OwnerEpoch, Shard, Zone};

const UUID: u128 = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;
const ORIGIN: Origin = Origin { stream: 2, zone: Zone(1), term: 1, log_uuid_lo: UUID as u64 };

fn record(n: u64, len: usize) -> Record {
    Record {
        op: [Op::Put, Op::Delete, Op::Fence, Op::Gap, Op::Answer][n as usize % 5],
        transaction: n as u32,
        shard: Shard(n as u16),
        owner_epoch: OwnerEpoch(n),
        hlc: Hlc(n << 20),
        table: Bytes::from_static(b"orders"),
        key: n.to_string().into(),
        value: vec![n as u8; len].into(),
    }
}

fn records() -> Vec<Vec<u8>> {
    let all = [record(1, 0), record(70_000, 300), Record::marker(Hlc(u64::MAX)), record(4, 5000)];
    let bytes = all.iter().map(|record| {
        let mut out = BytesMut::new();
        record.put(&mut out, Hlc(0));
        out.to_vec()
    });
    bytes.collect()
}

/// Parts of snapshots, of each kind.
fn parts() -> Vec<Vec<u8>> {
    let head = Head { log_uuid: 7, seq: 99, chain: 5, term: 4, map_epoch: MapEpoch(5), unseen: None };
    let mut packer = Packer::new(&head);
    let version = |n| Version { owner_epoch: OwnerEpoch(n % 6), hlc: Hlc(n << 20), zone: Zone(0), stream: 2 };
    let row = |n: u64| Row { version: version(n), seq: n, shard: Shard(2), deleted: false, value: vec![1; 30].into() };
    let mut all: Vec<Bytes> = vec![];
    for n in 0..3 {
        all.extend(packer.row(b"orders", n.to_string().as_bytes(), &row(n)));
    }
    let entry = |seq| Entry { table: "orders".into(), key: "k".into(), row: row(seq) };
    (0..3).for_each(|seq| all.extend(packer.entry(&entry(seq))));
    let positions = [(Zone(1), 8)].into_iter().collect();
    all.extend(packer.fence(Shard(2), &Fence { epoch: OwnerEpoch(3), seq: 7, positions }));
    all.extend(packer.finish());
    all.push(refusal("why not"));
    all.iter().map(|p| p.to_vec()).collect()
}

/// Frames of a link, of each kind that carries something.
fn frames() -> Vec<Vec<u8>> {
    let batches: Vec<_> = batches().into_iter().map(|b| Batch::parse(b.into()).unwrap()).collect();
    let cluster = Bytes::from_static(b"c");
    let ask = Ask { cluster: cluster.clone(), origin: Zone(0), peer: Zone(1), stream: 0, streams: 1, seq: 9 };
    let hello = Hello {
        cluster,
        origin: Zone(0),
        peer: Zone(1),
        stream: 0,
        streams: 1,
        log_uuid: UUID,
        term: 1,
        map_epoch: MapEpoch(1),
        first_kept: 1,
        durable: 9,
        codecs: 9,
    };
    let (durable, map_epoch) = (0, MapEpoch(1));
    let all = [
        Frame::Hello(hello),
        Frame::Welcome(Welcome { durable, chain: 0, applied: 0, term: 1, map_epoch, credit: 1 << 20, codecs: 9 }),
        Frame::Data { sent_us: 1, batch: batches[0].bytes.clone() },
        Frame::Pack { sent_us: 1, pack: link::Packer::default().pack(&batches, Codec::Zstd) },
        Frame::Pack { sent_us: 1, pack: link::Packer::default().pack(&batches, Codec::None) },
        Frame::Ack(Ack { durable, applied: 0, map_epoch, credit: 9, echo_us: 1 }),
        Frame::Ask(ask.clone()),
        Frame::Seed(SeedAsk { asker: Zone(1), ask }),
        Frame::Map(MapEpoch(2), Bytes::from_static(b"map")),
    ];
    let bytes = all.iter().map(|frame| {
        let mut out = BytesMut::new();
        link::put(&mut out, frame);
        out.to_vec()
    });
    bytes.collect()
}

fn batches() -> Vec<Vec<u8>> {
    let one = Batch::build(&ORIGIN, 1, 0, 7, &[record(1, 10), record(2, 20)]);
    let long = Batch::build(&ORIGIN, 3, one.chain, 8, &[record(3, 9000)]);
    let marker = Batch::build(&ORIGIN, u64::MAX - 2, long.chain, 9, &[Record::marker(Hlc(9))]);
    [one, long, marker].iter().map(|b| b.bytes.to_vec()).collect()
}

/// Two segments, the first sealed, with a checkpoint; the same with a stale end; and nothing at all.
fn directories() -> Vec<Vec<u8>> {
    let header = |number, first_seq, prev_chain, prev_end, recycled| Header {
        prev_sealed: number == 2,
        zone: Zone(1),
        stream: 2,
        log_uuid: UUID,
        number,
        first_seq,
        term: 1,
        salt: 10 + number,
        prev_chain,
        prev_end,
        size: 8 * FIRST_POS,
        created: Hlc(1),
        recycled,
    };
    let one = Batch::build(&ORIGIN, 1, 0, 7, &[record(1, 10), record(2, 5000)]);
    let two = Batch::build(&ORIGIN, 3, one.chain, 8, &[record(3, 9)]);
    let three = Batch::build(&ORIGIN, 4, two.chain, 9, &[record(4, 9), Record::marker(Hlc(4 << 20))]);
    let (mut sealed, mut digest) = (header(1, 1, 0, 0, false).encode().to_vec(), Digest::default());
    for (batch, durable) in [(&one, 0), (&two, 2)] {
        digest.add(batch);
        sealed.extend_from_slice(&batch.place(11, sealed.len() as u64, durable));
    }
    let end = sealed.len() as u64;
    let (first_hlc, last_hlc, digest) = (one.first_hlc, two.last_hlc, digest.finish());
    sealed.extend_from_slice(&Footer { salt: 11, last_seq: 3, records: 3, first_hlc, last_hlc, digest }.encode());
    let last = |recycled, behind: &[u8]| {
        let mut file = header(2, 4, two.chain, end, recycled).encode().to_vec();
        file.extend_from_slice(&three.place(12, FIRST_POS, 3));
        file.extend_from_slice(behind);
        file.resize(6 * FIRST_POS as usize, 0);
        file
    };
    let checkpoint = |durable_seq, first_kept| {
        Checkpoint { generation: durable_seq, log_uuid: UUID, durable_seq, term: 1, first_kept }.encode().to_vec()
    };
    let all = [
        vec![(0, sealed.clone()), (1, last(false, &[])), (4, checkpoint(4, 0)), (5, checkpoint(3, 1))],
        vec![(0, sealed.clone()), (1, last(true, &one.place(99, 3 * FIRST_POS, 9)))],
        vec![(1, last(false, &one.bytes)), (5, checkpoint(5, 4)), (6, sealed.clone())],
        vec![(0, sealed)],
        vec![],
    ];
    all.iter().map(|files| checks::directory_of(files)).collect()
}

fn blocks() -> Vec<Vec<u8>> {
    directories().iter().flat_map(|d| d[3.min(d.len())..].chunks(4096).map(<[u8]>::to_vec).take(7)).collect()
}

/// A corpus entry with some of its bytes flipped, set, dropped or exchanged for those of another; often in a field of a header.
fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut out = corpus[rng.below(corpus.len() as u64) as usize].clone();
    for _ in 0..rng.below(6) {
        if out.is_empty() {
            return out;
        }
        let block = rng.below(out.len() as u64) as usize / 4096 * 4096;
        let at = match rng.below(3) {
            // Within a header, three bytes further in a directory: each file has three before it.
            0 => block + rng.below(140) as usize,
            1 => rng.below(140) as usize,
            _ => rng.below(out.len() as u64) as usize,
        };
        let at = at.min(out.len() - 1);
        let to = (at + rng.below(12) as usize).min(out.len());
        match rng.below(7) {
            0 | 1 => out[at] ^= 1 << rng.below(8),
            2 => out[at..to].fill(if rng.one_in(2) { 0 } else { 0xff }),
            3 => drop(out.drain(at..to)),
            4 => {
                let other = &corpus[rng.below(corpus.len() as u64) as usize];
                let from = (rng.below(other.len() as u64 + 1) as usize).min(other.len());
                let len = (other.len() - from).min(if rng.one_in(2) { 12 } else { 4096 });
                let to = (at + len).min(out.len());
                out.splice(at..to, other[from..from + len].iter().copied()).for_each(drop);
            }
            5 => out[at] = rng.next() as u8,
            _ => out.truncate(at),
        }
    }
    out
}

fn run(corpus: &[Vec<u8>], rounds: u64, check: fn(&[u8])) {
    let number = |name| std::env::var(name).ok().and_then(|v: String| v.parse().ok());
    corpus.iter().for_each(|entry| check(entry));
    let mut rng = Rng::new(number("SEED").unwrap_or(1));
    for round in 0..number("FUZZ_ROUNDS").unwrap_or(rounds) {
        let bytes = mutate(corpus, &mut rng);
        if let Err(why) = std::panic::catch_unwind(|| check(&bytes)) {
            let file = std::env::temp_dir().join(format!("replog-fuzz-{}", std::process::id()));
            std::fs::write(&file, &bytes).expect("the failing bytes can be written down");
            eprintln!("round {round}; the bytes are in {}", file.display());
            std::panic::resume_unwind(why);
        }
    }
}

#[test]
fn blocks_beside_the_batches_are_refused_or_mean_one_thing() {
    run(&blocks(), 60_000, checks::header);
}

#[test]
fn records_are_refused_or_have_one_spelling() {
    run(&records(), 300_000, checks::record);
}

#[test]
fn parts_of_snapshots_are_refused_or_bring_what_may_be_stored() {
    run(&parts(), 100_000, checks::part);
}

#[test]
fn frames_of_a_link_are_refused_or_have_one_spelling_and_neither_end_is_harmed() {
    run(&frames(), 60_000, checks::frame);
}

#[test]
fn batches_are_refused_or_are_what_they_say() {
    run(&batches(), 60_000, checks::batch);
}

#[test]
fn directories_are_judged_and_a_sound_one_is_read_to_its_end() {
    run(&directories(), 12_000, checks::directory);
}
