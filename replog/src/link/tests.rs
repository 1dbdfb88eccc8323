//! Frames in golden bytes and under fire, and both machines over connections that delay, cut and lose.

use super::pack::Unpacker;
use super::*;
use crate::batch::Origin;
use crate::{Hlc, Record};

const UUID: u128 = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }
}

fn place() -> Place {
    Place { cluster: Bytes::from_static(b"c"), origin: Zone(0), peer: Zone(1), stream: 0, streams: 4 }
}

fn batch(first_seq: u64, prev_chain: u32, term: u64, records: u64) -> Batch {
    let origin = Origin { stream: 0, zone: Zone(0), term, log_uuid_lo: UUID as u64 };
    let records: Vec<_> = (0..records).map(|i| Record::marker(Hlc(first_seq + i))).collect();
    Batch::build(&origin, first_seq, prev_chain, 0, &records)
}

fn logged(batches: &[Batch], term: u64) -> Log {
    let (durable, chain) = batches.last().map_or((0, 0), |b| (b.last_seq(), b.chain));
    Log { log_uuid: UUID, term, first_kept: 1, durable, chain, hlc: Hlc(durable) }
}

fn mirrored(batches: &[Batch]) -> Mirror {
    let (durable, chain) = batches.last().map_or((0, 0), |b| (b.last_seq(), b.chain));
    let term = batches.iter().map(|b| b.term).max().unwrap_or(0);
    Mirror { log_uuid: (!batches.is_empty()).then_some(UUID), durable, chain, term }
}

fn sender(log: Log) -> Sender {
    Sender::new(place(), log, MapEpoch(1), Bytes::from_static(b"map1"))
}

/// Every other one packs all that it sends.
fn packing(log: Log, seed: u64) -> Sender {
    sender(log).with_compress(if seed.is_multiple_of(2) { Compress::Always } else { Compress::Auto })
}

fn receiver(mirror: Mirror) -> Receiver {
    Receiver::new(place(), mirror, 0, MapEpoch(1), Bytes::from_static(b"map1"))
}

fn welcome(codecs: u8) -> Welcome {
    Welcome { durable: 1, chain: 2, applied: 3, term: 4, map_epoch: MapEpoch(5), credit: 6, codecs }
}

fn frames() -> Vec<Frame> {
    let hello = Hello {
        cluster: Bytes::from_static(b"cluster"),
        origin: Zone(0),
        peer: Zone(1),
        stream: 2,
        streams: 4,
        log_uuid: UUID,
        term: 3,
        map_epoch: MapEpoch(5),
        first_kept: 6,
        durable: 7,
        codecs: 0,
    };
    let stop = |why| Frame::Stop(Stop { why, seen: 8, expected: 9 });
    let mut all = vec![
        Frame::Hello(hello),
        Frame::Welcome(welcome(0)),
        Frame::Welcome(welcome(5)),
        Frame::Data { sent_us: 1, batch: batch(1, 0, 1, 2).bytes },
        Frame::Ack(Ack { durable: 1, applied: 2, map_epoch: MapEpoch(3), credit: 4, echo_us: 5 }),
        Frame::Beat { sent_us: 1, durable: 2, hlc: Hlc(3), everywhere: 4 },
        Frame::Map(MapEpoch(9), Bytes::from_static(b"map")),
    ];
    let cluster = Bytes::from_static(b"c");
    let ask = Ask { cluster, origin: Zone(1), peer: Zone(2), stream: 3, streams: 4, seq: 5 };
    all.extend([
        Frame::Ask(ask.clone()),
        Frame::Seed(SeedAsk { asker: Zone(3), ask }),
        Frame::Part(Bytes::from_static(b"part")),
        Frame::Pack { sent_us: 1, pack: packed(&[batch(1, 0, 1, 2), batch(3, 0, 1, 9)], Codec::Zstd) },
        Frame::Pack { sent_us: 1, pack: packed(&[batch(1, 0, 1, 2)], Codec::None) },
    ]);
    all.push(Frame::Held(Held { log_uuid: 1 << 100 | 2, first_kept: 3, durable: 4, chain: 5, batches: 6 }));
    all.extend([Why::Foreign, Why::Incarnation, Why::Diverged, Why::Gap, Why::Fenced, Why::Garbled].map(stop));
    all
}

#[test]
fn frames_come_back_however_they_are_split() {
    let mut all = BytesMut::new();
    frames().iter().for_each(|f| put(&mut all, f));
    for step in [1, 5, 64, 1 << 20] {
        let (mut inbox, mut got) = (BytesMut::new(), vec![]);
        for part in all.chunks(step) {
            inbox.extend_from_slice(part);
            while let Some(frame) = take(&mut inbox).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, frames());
    }
}

#[test]
fn the_bytes_of_a_frame_are_frozen() {
    let mut out = BytesMut::new();
    put(&mut out, &Frame::Beat { sent_us: 1, durable: 0x0203, hlc: Hlc(4), everywhere: 5 });
    let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, "22000000abd3485001050100000000000000030200000000000004000000000000000500000000000000");
}

/// One of each kind, as `FORMAT.md` shows them.
#[test]
fn the_bytes_of_every_frame_are_those_of_the_format() {
    let batch = batch(1, 0, 1, 1);
    let mut seen = vec![];
    for frame in frames() {
        let mut out = BytesMut::new();
        put(&mut out, &frame);
        let kind = out[9];
        if !seen.iter().any(|(k, _)| *k == kind) {
            let hex: String = out[10..].iter().map(|b| format!("{b:02x}")).collect();
            seen.push((kind, hex));
        }
    }
    seen.sort();
    let format = include_str!("../../FORMAT.md");
    let lines =
        seen.iter().filter(|(kind, _)| ![3, 12].contains(kind)).map(|(kind, hex)| format!("    {kind:>2} {hex}\n"));
    let missing: String = lines.filter(|line| !format.contains(line)).collect();
    assert!(missing.is_empty(), "FORMAT.md has not these lines:\n{missing}");
    // What zstd makes may differ from release to release: the frame around it is frozen, and what it holds.
    let pack = packed(std::slice::from_ref(&batch), Codec::None);
    let mut out = BytesMut::new();
    put(&mut out, &Frame::Pack { sent_us: 1, pack });
    let len = batch.bytes.len() as u32;
    let head: Vec<u8> = [&1u64.to_le_bytes()[..], &[0], &(len + 4).to_le_bytes(), &len.to_le_bytes()].concat();
    assert_eq!((&out[8..10], &out[10..27], &out[27..]), (&[1, 12][..], &head[..], &batch.bytes[..]));
}

/// The first pack of a connection.
fn packed(batches: &[Batch], codec: Codec) -> Pack {
    Packer::default().pack(batches, codec)
}

/// An order as a service would write it.
fn order(i: u64) -> Record {
    let value = format!(
        "{{\"id\":\"bj-{:016x}\",\"shop\":{},\"courier\":null,\"status\":\"placed\",\"lng\":116.{:05},\"lat\":39.{:05},\
         \"items\":[{{\"dish\":\"noodles\",\"count\":{},\"price\":{}}}],\"note\":\"\",\"placed_at\":\"2026-03-01T12:{:02}:{:02}Z\"}}",
        i.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        i * 7919 % 9000,
        i * 104_729 % 100_000,
        i * 1_299_709 % 100_000,
        i % 4 + 1,
        1200 + i * 37 % 4000,
        i / 60 % 60,
        i % 60
    );
    let (table, key) = (Bytes::from_static(b"orders"), Bytes::from(format!("bj-{i:016x}")));
    let owner_epoch = shardmap::OwnerEpoch(1);
    let (shard, hlc) = (shardmap::Shard(7), Hlc(i + 1));
    Record { op: crate::Op::Put, transaction: 0, shard, owner_epoch, hlc, table, key, value: value.into() }
}

/// Batches of JSON orders, `each` in one.
fn orders(batches: u64, each: u64) -> Vec<Batch> {
    let origin = Origin { stream: 0, zone: Zone(0), term: 9, log_uuid_lo: UUID as u64 };
    let (mut all, mut chain): (Vec<Batch>, u32) = (vec![], 0);
    for b in 0..batches {
        let records: Vec<_> = (b * each..(b + 1) * each).map(order).collect();
        all.push(Batch::build(&origin, b * each + 1, chain, 0, &records));
        chain = all.last().unwrap().chain;
    }
    all
}

#[test]
fn orders_shrink_to_a_third_and_the_mirror_has_the_same_bytes() {
    let log = orders(200, 20);
    let mut p = Pair::new(log.clone(), vec![]);
    p.s = sender(logged(&log, 9)).with_compress(Compress::Always);
    p.connect();
    p.settle();
    assert!(p.mirror == log, "{} of {} batches", p.mirror.len(), log.len());
    let Shipped { log_bytes, line_bytes, packs } = p.s.shipped();
    assert_eq!(log_bytes, log.iter().map(|b| b.bytes.len() as u64).sum::<u64>());
    assert!(
        line_bytes * 3 < log_bytes && (1..10).contains(&packs),
        "{line_bytes} bytes for {log_bytes} in {packs} packs"
    );
}

#[test]
fn small_packs_are_short_too_as_they_refer_to_those_before() {
    let log = orders(200, 20);
    let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
    let (mut raw, mut line, mut alone) = (0, 0, 0);
    for batch in &log {
        let pack = packer.pack(std::slice::from_ref(batch), Codec::Zstd);
        assert_eq!(unpacker.unpack(&pack).unwrap(), std::slice::from_ref(&batch.bytes));
        (raw, line) = (raw + batch.bytes.len(), line + pack.packed.len());
        alone += packed(std::slice::from_ref(batch), Codec::Zstd).packed.len();
    }
    assert!(line * 7 < raw && line * 5 < alone * 4, "{line} bytes for {raw}, each by itself {alone}");
}

#[test]
fn a_stream_goes_on_past_its_window_around_what_was_not_compressed_and_with_what_does_not_shrink() {
    let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
    let noise = |n: u64| {
        let mut state = n;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let record = Record { value: (0..60_000).map(|_| next()).collect(), ..order(n) };
        let origin = Origin { stream: 0, zone: Zone(0), term: 9, log_uuid_lo: UUID as u64 };
        Batch::build(&origin, n, 0, 0, &[record])
    };
    for n in 1..200 {
        let batches: Vec<_> = if n % 7 == 0 { orders(4, 50) } else { vec![noise(n)] };
        let codec = if n % 5 == 0 { Codec::None } else { Codec::Zstd };
        let pack = packer.pack(&batches, codec);
        assert!(pack.codec == codec && pack.packed.len() < pack.raw_len as usize + 100);
        let all: Vec<_> = batches.iter().map(|b| b.bytes.clone()).collect();
        assert!(unpacker.unpack(&pack).unwrap() == all, "pack {n}");
    }
}

#[test]
fn a_pack_of_another_connection_is_no_pack() {
    let (mut packer, log) = (Packer::default(), orders(2, 20));
    packer.pack(&log[..1], Codec::Zstd);
    let second = packer.pack(&log[1..], Codec::Zstd);
    assert!(Unpacker::default().unpack(&second).is_err());
}

#[test]
fn a_link_that_is_behind_on_a_busy_line_gathers_and_one_that_keeps_up_does_not() {
    let log = orders(200, 20);
    for (busy, wish, packs) in
        [(true, Compress::Auto, true), (false, Compress::Auto, false), (true, Compress::Never, false)]
    {
        let mut p = Pair::new(log.clone(), vec![]);
        p.s = sender(logged(&log, 9)).with_compress(wish);
        p.connect();
        for _ in 0..10 {
            p.now += ACK_AFTER_US;
            p.s.on_line(busy, p.now);
            p.orders();
            p.deliver(|n| n);
        }
        assert_eq!((p.s.shipped().packs > 0, p.written.len()), (packs, 200), "{busy} {wish:?}");
    }
}

/// A peer of before PACK: it says nothing of codecs, and would not understand one.
#[test]
fn a_peer_that_names_no_codecs_is_sent_no_pack() {
    let log = orders(3, 20);
    let mut s = sender(logged(&log, 9)).with_compress(Compress::Always);
    s.on_connect(1);
    let mut out = BytesMut::new();
    put(
        &mut out,
        &Frame::Welcome(Welcome { durable: 0, chain: 0, applied: 0, term: 9, credit: 1 << 20, ..welcome(0) }),
    );
    assert_eq!(out.len(), 10 + 48, "as it was");
    s.on_bytes(&out, 1);
    let (mut sent, mut kinds) = (BytesMut::new(), vec![]);
    while let Some(order) = s.next_order(1) {
        match order {
            Order::Send(bytes) => sent.extend_from_slice(&bytes),
            Order::Read(seq) => {
                let found = log.iter().find(|b| b.last_seq() >= seq).unwrap();
                s.on_batch(found.clone(), 1);
            }
            other => panic!("{other:?}"),
        }
    }
    while let Some(frame) = take(&mut sent).unwrap() {
        kinds.push(matches!(frame, Frame::Data { .. }));
    }
    assert_eq!(kinds, [false, true, true, true], "HELLO and three DATA");
    // And a sender of before PACK, whose HELLO names none, hears a WELCOME as it was.
    let (mut r, mut old) = (receiver(Mirror::default()), sender(logged(&log, 9)).with_compress(Compress::Never));
    r.on_connect(1);
    old.on_connect(1);
    let Some(Order::Send(hello)) = old.next_order(1) else { panic!("no HELLO") };
    r.on_bytes(&hello, 1);
    let Some(Order::Send(answer)) = r.next_order(1) else { panic!("no WELCOME") };
    assert_eq!(answer.len(), 10 + 48);
}

#[test]
fn a_pack_that_lies_is_refused_and_takes_no_more_memory_than_it_announced() {
    let good = packed(&orders(4, 20), Codec::Zstd);
    assert_eq!(Unpacker::default().unpack(&good).unwrap().len(), 4);
    let zeros = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(zeros.len() < 10_000, "a bomb: 64 MiB in {} bytes", zeros.len());
    let mut lying = good.packed.to_vec();
    *lying.last_mut().unwrap() ^= 1;
    let none = |raw: &[u8]| Pack { codec: Codec::None, raw_len: raw.len() as u32, packed: Bytes::copy_from_slice(raw) };
    let mut empty_batch = vec![0; 200];
    empty_batch[..4].copy_from_slice(&0u32.to_le_bytes());
    let mut long_batch = vec![0; 200];
    long_batch[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    for (pack, said) in [
        (Pack { packed: zeros.clone().into(), ..good.clone() }, "not what its codec makes"),
        (Pack { packed: zeros.into(), raw_len: pack::PACK_RAW_MAX as u32 + 1, codec: Codec::Zstd }, "expected"),
        (Pack { raw_len: good.raw_len + 1, ..good.clone() }, "not what its codec makes"),
        (Pack { raw_len: good.raw_len - 1, ..good.clone() }, "not what its codec makes"),
        (Pack { raw_len: 0, ..good.clone() }, "expected"),
        (Pack { packed: Bytes::new(), ..good.clone() }, "not what its codec makes"),
        (Pack { codec: Codec::None, ..good.clone() }, "not what its codec makes"),
        (none(&empty_batch), "do not fill it"),
        (none(&long_batch), "do not fill it"),
        (none(&[0; 127]), "expected"),
    ] {
        let why = Unpacker::default().unpack(&pack).unwrap_err().to_string();
        assert!(why.contains(said), "{why}: {said}");
        let mut p = Pair::new(vec![], vec![]);
        p.connect();
        p.settle();
        let mut bytes = BytesMut::new();
        put(&mut bytes, &Frame::Pack { sent_us: 1, pack });
        p.r.on_bytes(&bytes, p.now);
        p.orders();
        assert!(
            !p.open && p.written.is_empty() && p.r.stopped().is_none(),
            "the connection ends, and the next one begins again"
        );
    }
}

#[test]
fn hostile_bytes_never_panic_and_a_flipped_bit_ends_the_connection() {
    let mut all = BytesMut::new();
    frames().iter().for_each(|f| put(&mut all, f));
    for bit in 0..all.len() * 8 {
        let mut bad = all.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let (mut copy, mut whole) = (bad.clone(), 0);
        while let Ok(Some(_)) = take(&mut copy) {
            whole += 1;
        }
        assert!(whole < frames().len(), "bit {bit}");
        let (mut s, mut r) = (sender(logged(&[], 1)), receiver(Mirror::default()));
        s.on_connect(0);
        r.on_connect(0);
        s.on_bytes(&bad, 1);
        r.on_bytes(&bad, 1);
    }
    let mut rng = Rng(7);
    for _ in 0..20_000 {
        // Fields at random under a checksum that holds.
        let mut f: Vec<u8> = (0..rng.below(120) + 2).map(|_| rng.below(256) as u8).collect();
        (f[0], f[1]) = (frame::VERSION, rng.below(13) as u8);
        let mut bytes = (f.len() as u32).to_le_bytes().to_vec();
        bytes.extend(crc32fast::hash(&f).to_le_bytes());
        bytes.extend(&f);
        let (mut s, mut r) = (sender(logged(&[], 1)), receiver(Mirror::default()));
        s.on_connect(0);
        r.on_connect(0);
        s.on_bytes(&bytes, 1);
        r.on_bytes(&bytes, 1);
        while s.next_order(1).is_some() || r.next_order(1).is_some() {}
    }
}

/// Both ends and what lies on their disks and on the wire between them.
struct Pair {
    s: Sender,
    r: Receiver,
    log: Vec<Batch>,
    mirror: Vec<Batch>,
    written: Vec<Batch>,
    to_r: Vec<u8>,
    to_s: Vec<u8>,
    open: bool,
    packer: Packer,
    now: u64,
    maps_taken: Vec<MapEpoch>,
}

impl Pair {
    fn new(log: Vec<Batch>, mirror: Vec<Batch>) -> Pair {
        let (s, r) = (sender(logged(&log, 9)), receiver(mirrored(&mirror)));
        let (written, to_r, to_s, maps_taken) = (vec![], vec![], vec![], vec![]);
        Pair { s, r, log, mirror, written, to_r, to_s, open: false, packer: Packer::default(), now: 1, maps_taken }
    }
    fn connect(&mut self) {
        self.cut();
        self.s.on_connect(self.now);
        self.r.on_connect(self.now);
        self.open = true;
    }
    fn cut(&mut self) {
        self.s.on_disconnect();
        self.r.on_disconnect();
        (self.open, self.to_r, self.to_s, self.packer) = (false, vec![], vec![], Packer::default());
    }
    fn orders(&mut self) {
        while let Some(order) = self.s.next_order(self.now) {
            match order {
                Order::Send(b) => self.to_r.extend(b),
                Order::Read(seq) => {
                    let found = self.log.iter().find(|b| (b.first_seq..=b.last_seq()).contains(&seq));
                    self.s.on_batch(found.unwrap().clone(), self.now);
                }
                Order::Pack(batches, codec) => {
                    let pack = self.packer.pack(&batches, codec);
                    self.s.on_packed(pack, 1, self.now);
                }
                Order::Close => self.open = false,
                Order::TakeMap(epoch, map) => self.s.on_map(epoch, map, self.now),
                Order::Append(_) => panic!("a sender appends nothing"),
            }
        }
        while let Some(order) = self.r.next_order(self.now) {
            match order {
                Order::Send(b) => self.to_s.extend(b),
                Order::Append(batch) => self.written.push(batch),
                Order::Close => self.open = false,
                Order::TakeMap(epoch, map) => {
                    self.maps_taken.push(epoch);
                    self.r.on_map(epoch, map, self.now);
                }
                Order::Read(_) | Order::Pack(..) => panic!("a receiver ships nothing"),
            }
        }
    }
    fn deliver(&mut self, part: impl Fn(usize) -> usize) {
        let (n, m) = (part(self.to_r.len()), part(self.to_s.len()));
        let (to_r, to_s): (Vec<u8>, Vec<u8>) = (self.to_r.drain(..n).collect(), self.to_s.drain(..m).collect());
        self.r.on_bytes(&to_r, self.now);
        self.s.on_bytes(&to_s, self.now);
    }
    fn flush(&mut self) {
        if let Some(last) = self.written.last() {
            self.r.on_durable(last.last_seq());
        }
        self.mirror.append(&mut self.written);
    }
    /// Both ends until nothing more is to be done at once.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.now += ACK_AFTER_US;
            self.orders();
            self.deliver(|n| n);
            self.orders();
            self.flush();
        }
    }
    fn grow(&mut self, records: u64, term: u64) {
        let (seq, chain) = self.log.last().map_or((1, 0), |b| (b.last_seq() + 1, b.chain));
        self.log.push(batch(seq, chain, term, records));
        let l = logged(&self.log, term);
        self.s.on_durable(l.durable, l.chain, l.hlc);
    }
}

fn some_log(n: usize, term: u64) -> Vec<Batch> {
    let mut pair = Pair::new(vec![], vec![]);
    (0..n).for_each(|i| pair.grow(i as u64 % 3 + 1, term));
    pair.log
}

#[test]
fn a_link_that_loses_delays_and_cuts_delivers_every_batch_once_and_in_order() {
    for seed in 0..300 {
        let (mut rng, mut p, mut term) = (Rng(seed), Pair::new(vec![], vec![]), 9);
        p.s = packing(logged(&[], 9), seed);
        for _ in 0..120 {
            p.now += rng.below(3000);
            match rng.below(14) {
                0 | 1 => p.grow(rng.below(4) + 1, term),
                2 if !p.open => p.connect(),
                3 if rng.below(4) == 0 => p.cut(),
                4 => p.flush(),
                5 if rng.below(5) == 0 => {
                    // The peer crashes: what it had not flushed is gone.
                    p.cut();
                    p.written.clear();
                    p.r = receiver(mirrored(&p.mirror));
                }
                6 if rng.below(5) == 0 => {
                    p.cut();
                    term += 1;
                    p.s = packing(logged(&p.log, term), seed);
                }
                7 => p.deliver(|n| n / 2),
                8 => p.deliver(|n| n),
                _ => p.orders(),
            }
            assert_eq!(p.log[..p.mirror.len()], p.mirror[..], "SEED={seed}");
            assert!(p.s.acked() <= p.mirror.last().map_or(0, Batch::last_seq), "SEED={seed}");
            assert_eq!((p.s.stopped(), p.r.stopped(), p.r.refused()), (None, None, None), "SEED={seed}");
        }
        p.connect();
        p.settle();
        assert_eq!((p.s.stopped(), p.r.stopped(), p.r.refused(), p.open), (None, None, None, true), "SEED={seed}");
        assert!(p.log == p.mirror, "SEED={seed}: {} batches of {}", p.mirror.len(), p.log.len());
        assert_eq!(p.s.acked(), p.log.last().map_or(0, Batch::last_seq), "SEED={seed}");
    }
}

/// PITFALLS: pull, one batch per round trip.
#[test]
fn the_origin_pushes_all_that_the_credit_allows_without_waiting_for_an_acknowledgement() {
    let mut p = Pair::new(some_log(30, 9), vec![]);
    p.connect();
    for _ in 0..5 {
        p.now += ACK_AFTER_US;
        p.orders();
        p.deliver(|n| n);
    }
    // Nothing was flushed over there, so nothing was acknowledged.
    assert_eq!((p.written.len(), p.s.acked()), (30, 0));
}

#[test]
fn resuming_after_a_long_cut_sends_only_what_is_missing() {
    let log = some_log(30, 9);
    let mut p = Pair::new(log.clone(), log[..20].to_vec());
    p.connect();
    p.settle();
    assert_eq!((p.mirror.len(), p.r.origin().0), (30, log[29].last_seq()));
    assert!(p.s.round_trip_us().is_some() && p.s.live() == Some(MapEpoch(1)) && p.r.live() == Some(MapEpoch(1)));
}

#[test]
fn a_purged_range_is_a_gap_and_is_never_skipped_in_silence() {
    let log = some_log(9, 9);
    let mut p = Pair::new(log.clone(), log[..2].to_vec());
    p.s.on_kept(log[4].first_seq);
    p.connect();
    p.settle();
    let stop = Stop { why: Why::Gap, seen: log[2].first_seq, expected: log[4].first_seq };
    assert_eq!((p.s.stopped(), p.r.stopped(), p.mirror.len()), (Some(stop), Some(stop), 2));
    p.connect();
    p.settle();
    assert_eq!(p.mirror.len(), 2, "it stays stopped");
}

#[test]
fn logs_that_differ_at_one_seq_stop_the_link_wherever_the_peer_is() {
    for (ours, theirs) in [(4, 4), (6, 4), (2, 4)] {
        let mut p = Pair::new(some_log(ours, 9), some_log(theirs, 8));
        p.connect();
        p.settle();
        assert_eq!(p.s.stopped().map(|s| s.why), Some(Why::Diverged), "{ours} {theirs}");
        assert_eq!(p.mirror.len(), theirs);
    }
}

#[test]
fn a_writer_of_a_lower_term_is_fenced_and_a_rebuilt_zone_is_another_incarnation() {
    let log = some_log(3, 9);
    let mut p = Pair::new(log.clone(), log.clone());
    p.s = sender(logged(&log, 8));
    p.connect();
    p.settle();
    assert_eq!(p.s.stopped(), Some(Stop { why: Why::Fenced, seen: 8, expected: 9 }));
    p.s = sender(Log { log_uuid: 5, ..logged(&log, 10) });
    p.connect();
    p.settle();
    assert_eq!(p.s.stopped().map(|s| s.why), Some(Why::Incarnation));
    p.s = sender(logged(&log, 10));
    p.connect();
    p.settle();
    assert_eq!((p.s.stopped(), p.r.stopped()), (None, None), "the right writer is not shut out by the wrong ones");
}

#[test]
fn a_peer_with_another_number_of_streams_or_of_another_cluster_is_refused() {
    for place in [
        Place { streams: 8, ..place() },
        Place { cluster: Bytes::from_static(b"d"), ..place() },
        Place { stream: 1, ..place() },
        Place { origin: Zone(3), ..place() },
        Place { peer: Zone(3), ..place() },
    ] {
        let mut p = Pair::new(some_log(1, 9), vec![]);
        p.s = Sender::new(place, logged(&p.log, 9), MapEpoch(1), Bytes::new());
        p.connect();
        p.settle();
        assert_eq!((p.s.stopped().map(|s| s.why), p.mirror.len()), (Some(Why::Foreign), 0));
    }
}

#[test]
fn the_newer_map_travels_from_whichever_side_has_it() {
    let mut p = Pair::new(vec![], vec![]);
    p.s.on_map(MapEpoch(2), Bytes::from_static(b"map2"), p.now);
    p.connect();
    p.settle();
    assert_eq!(p.maps_taken, [MapEpoch(2)]);
    p.s.on_map(MapEpoch(3), Bytes::from_static(b"map3"), p.now);
    p.settle();
    assert_eq!(p.maps_taken, [MapEpoch(2), MapEpoch(3)]);
    p.r.on_map(MapEpoch(5), Bytes::from_static(b"map5"), p.now);
    p.settle();
    assert_eq!(p.s.live(), Some(MapEpoch(5)));
}

#[test]
fn while_its_origin_is_lost_a_mirror_takes_no_data_and_then_goes_on_where_it_was() {
    let mut p = Pair::new(some_log(2, 9), vec![]);
    p.connect();
    p.settle();
    p.r.on_frozen(true);
    (0..3).for_each(|_| p.grow(2, 9));
    p.settle();
    assert_eq!((p.mirror.len(), p.open), (2, true));
    p.r.on_frozen(false);
    p.settle();
    assert!(!p.open, "what was passed over has to be sent again");
    p.connect();
    p.settle();
    assert_eq!(p.mirror, p.log);
}

#[test]
fn a_hello_that_is_overtaken_by_what_a_third_zone_lends_is_no_divergence() {
    let log = some_log(4, 1);
    let mut pair = Pair::new(log[..2].to_vec(), vec![]);
    pair.connect();
    pair.orders(); // HELLO is on its way, and names two batches
    for batch in &log[2..] {
        pair.log.push(batch.clone());
        pair.s.on_durable(batch.last_seq(), batch.chain, Hlc(batch.last_seq()));
    }
    for batch in &log {
        let lent = pair.r.on_lent(UUID, batch.clone()).unwrap().expect("it follows");
        pair.mirror.push(lent);
        pair.r.on_durable(batch.last_seq());
    }
    assert_eq!(pair.r.on_lent(UUID, log[0].clone()), Ok(None), "it is here already");
    pair.settle();
    assert_eq!((pair.s.stopped(), pair.r.stopped(), pair.s.acked()), (None, None, log[3].last_seq()));
    let other = batch(log[3].last_seq() + 1, log[3].chain ^ 1, 1, 1);
    let why = pair.r.on_lent(UUID, other).unwrap_err().why;
    assert_eq!(why, Why::Diverged, "what does not fit is not taken, wherever it comes from");
    let rebuilt = batch(log[3].last_seq() + 1, log[3].chain, 1, 1);
    assert_eq!(pair.r.on_lent(UUID + 1, rebuilt).unwrap_err().why, Why::Incarnation);
}

#[test]
fn an_idle_link_beats_and_a_silent_one_is_given_up() {
    let mut p = Pair::new(vec![], vec![]);
    p.connect();
    p.settle();
    for _ in 0..100 {
        p.now = p.s.deadline().unwrap().min(p.r.deadline().unwrap()).max(p.now + 1);
        p.orders();
        p.deliver(|n| n);
    }
    assert!(p.open && p.now > SILENT_MAX_US, "beats keep it open: {}", p.now);
    assert_eq!((p.s.fault(), p.r.fault()), (None, None));
    p.now += SILENT_MAX_US;
    p.orders();
    assert!(!p.open && p.s.live().is_none());
    assert!(p.s.fault().is_some_and(|why| why.starts_with("nothing was heard for 3 s")), "{:?}", p.s.fault());
    p.connect();
    p.settle();
    assert_eq!((p.s.fault(), p.r.fault()), (None, None), "the next connection begins anew");
}

#[test]
fn whoever_ends_a_connection_says_why() {
    let frame = |f: &Frame| {
        let mut out = BytesMut::new();
        put(&mut out, f);
        out
    };
    let ack = Ack { durable: 5, applied: 0, map_epoch: MapEpoch(1), credit: 1, echo_us: 0 };
    let data = |b: &Batch| frame(&Frame::Data { sent_us: 1, batch: b.bytes.clone() });
    let mut torn = data(&batch(1, 0, 1, 2)).to_vec();
    *torn.last_mut().unwrap() ^= 1;
    let bad = Frame::Data { sent_us: 1, batch: Bytes::from_static(&[7; 300]) };
    for (bytes, why) in [
        (torn, "a frame that fails its checksum"),
        (data(&batch(9, 0, 1, 2)).to_vec(), "a batch from seq 9 on, expected 1"),
        (frame(&bad).to_vec(), "a batch that is none: "),
        (frame(&Frame::Ack(ack)).to_vec(), "a frame that does not come at this point"),
    ] {
        let mut p = Pair::new(vec![], vec![]);
        p.connect();
        p.settle();
        p.r.on_bytes(&bytes, p.now);
        assert!(p.r.fault().is_some_and(|seen| seen.starts_with(why)), "{why}: {:?}", p.r.fault());
    }
    let mut p = Pair::new(some_log(2, 1), vec![]);
    p.connect();
    p.settle();
    let sent = p.log.last().unwrap().last_seq();
    p.s.on_bytes(&frame(&Frame::Ack(Ack { durable: sent + 9, ..ack })), p.now);
    let why = format!("an ACK of seq {} durable and 0 applied, expected {sent} to {sent} durable", sent + 9);
    assert_eq!(p.s.fault(), Some(why.as_str()));
}

#[test]
fn a_paused_link_ships_nothing_while_maps_and_beats_go_on() {
    let mut p = Pair::new(some_log(20, 9), vec![]);
    p.s.on_pause(true);
    p.connect();
    p.settle();
    p.s.on_map(MapEpoch(2), Bytes::from_static(b"map2"), p.now);
    for _ in 0..100 {
        p.now += BEAT_AFTER_US;
        p.orders();
        p.deliver(|n| n);
    }
    assert_eq!((p.open, p.mirror.len(), &p.maps_taken[..]), (true, 0, &[MapEpoch(2)][..]));
    assert_eq!(p.r.origin().0, p.log.last().unwrap().last_seq(), "the lag is known all the same");
    p.s.on_pause(false);
    p.settle();
    assert!(p.mirror == p.log);
}

#[test]
fn links_that_share_a_bucket_ship_no_more_than_it_gives_and_all_of_it_in_the_end() {
    let log = orders(100, 20);
    let bytes: u64 = log.iter().map(|b| b.bytes.len() as u64).sum();
    for wish in [Compress::Never, Compress::Always] {
        let bucket = std::sync::Arc::new(std::sync::Mutex::new(pace::Bucket::default()));
        let mut pairs: Vec<Pair> = (0..2).map(|_| Pair::new(log.clone(), vec![])).collect();
        for p in &mut pairs {
            p.s = sender(logged(&log, 9)).with_compress(wish).with_bucket(bucket.clone());
            p.connect();
        }
        let rate = bytes / 4;
        bucket.lock().unwrap().set(Some(rate), 1);
        let line = |pairs: &[Pair]| pairs.iter().map(|p| p.s.shipped().line_bytes).sum::<u64>();
        let mut now = 1;
        while pairs.iter().any(|p| p.mirror.len() < log.len()) {
            now += ACK_AFTER_US;
            for p in &mut pairs {
                p.now = now;
                p.orders();
                p.deliver(|n| n);
                p.flush();
            }
            // A frame may pass that is longer than what was left.
            let most = rate * now / 1_000_000 + rate / 10 + 2 * (pack::PACK_BYTES as u64);
            assert!(line(&pairs) <= most.max(bytes / 2) && now < 60_000_000, "{} at {now}", line(&pairs));
        }
        let due = line(&pairs) * 1_000_000 / rate;
        assert!(wish == Compress::Always || now * 10 > due * 9, "{now} us for what takes {due}");
    }
}

#[test]
fn a_link_that_stopped_asks_again_only_when_it_is_told_to() {
    let mut p = Pair::new(some_log(6, 9), some_log(4, 8));
    p.connect();
    p.settle();
    assert_eq!(p.s.stopped().map(|s| s.why.name()), Some("diverged"));
    // The peer's copy was repaired.
    p.r = receiver(mirrored(&p.log[..2]));
    p.mirror = p.log[..2].to_vec();
    p.connect();
    p.settle();
    assert_eq!(p.mirror.len(), 2, "nobody has said so");
    p.s.try_again();
    p.connect();
    p.settle();
    assert!(p.mirror == p.log && p.s.stopped().is_none());
}
