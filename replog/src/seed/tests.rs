//! Snapshots packed and taken: whole, in any size of parts, and never when a bit, a part or an order is wrong.

use super::*;
use crate::store::{Memory, Scan, Store};
use crate::{Version, store::Changes};
use shardmap::{OwnerEpoch, Positions};

const NOW_MS: u64 = 1_790_000_000_000;
const TAKING: Taking = Taking { own: Zone(1), stream: 2, streams: 4 };

fn head() -> Head {
    let unseen = Some(Scan { from: 3, to: 9 });
    Head { log_uuid: 9 << 90 | 7, seq: 99, chain: 0xabcd, term: 4, map_epoch: MapEpoch(5), unseen }
}

fn row(n: u64, len: usize) -> Row {
    let version = Version { owner_epoch: OwnerEpoch(n % 6), hlc: Hlc::new(NOW_MS, n as u16), zone: Zone(0), stream: 2 };
    Row {
        version,
        seq: n,
        shard: Shard(2 + 4 * (n % 9) as u16),
        deleted: n.is_multiple_of(7),
        value: vec![n as u8; len].into(),
    }
}

fn fence(seq: u64) -> Fence {
    let positions: Positions = [(Zone(1), 8), (Zone(14), u64::MAX)].into_iter().collect();
    Fence { epoch: OwnerEpoch(3), seq, positions }
}

fn entry(zone: u8, seq: u64) -> Entry {
    let mut row = row(seq, 9);
    (row.version.zone, row.shard) = (Zone(zone), Shard(2));
    Entry { table: "orders".into(), key: format!("k{seq}").into(), row }
}

/// A snapshot of `rows` rows of up to `len` bytes, its parts in order.
fn parts(rows: u64, len: usize) -> Vec<Bytes> {
    let mut packer = Packer::new(&head());
    let mut all = vec![];
    for n in 0..rows {
        all.extend(packer.row(b"orders", format!("{n:06}").as_bytes(), &row(n, (n as usize * 37) % (len + 1))));
    }
    for seq in 0..20 {
        all.extend(packer.entry(&entry(0, seq)));
    }
    all.extend(packer.entry(&entry(3, 1)));
    all.extend(packer.fence(Shard(2), &fence(7)));
    all.extend(packer.fence(Shard(6), &fence(8)));
    all.extend(packer.finish());
    all
}

/// Takes parts into a store; what came last.
fn take_all(parts: &[Bytes]) -> Result<(Memory, Option<Taken>), Fault> {
    let (mut store, mut taker, mut last) = (Memory::default(), Taker::new(TAKING), None);
    for part in parts {
        let taken = taker.on_part(part.clone(), NOW_MS)?;
        if let Taken::Store(list) = &taken {
            store.commit(&Changes { list: list.clone(), durable: false }).unwrap();
        }
        last = Some(taken);
    }
    Ok((store, last))
}

fn refused(part: &[u8]) -> Fault {
    Part::read(Bytes::copy_from_slice(part)).expect_err("it is no part")
}

#[test]
fn what_is_packed_is_taken_whole_and_in_bounded_parts() {
    for (rows, len) in [(0, 0), (5, 10), (3000, 900), (4, 1 << 20)] {
        let parts = parts(rows, len);
        assert!(parts.iter().all(|p| p.len() <= PART_MAX));
        assert!(parts.iter().filter(|p| p.len() > PART_BYTES).count() <= 4, "only a long row fills more than a part");
        let (store, last) = take_all(&parts).unwrap();
        let fences = vec![(Shard(2), fence(7)), (Shard(6), fence(8))];
        let newest = (0..rows).map(|n| row(n, 0).version.hlc).max().unwrap_or_default();
        assert_eq!(last, Some(Taken::Whole(Whole { head: head(), fences, newest })));
        let mut seen = 0;
        store
            .rows(&mut |_, key, r| {
                let n = seen;
                assert_eq!((key, r), (format!("{n:06}").as_bytes(), &row(n, (n as usize * 37) % (len + 1))));
                seen += 1;
            })
            .unwrap();
        assert_eq!((seen, store.listed().len()), (rows, 21));
    }
}

#[test]
fn a_snapshot_that_is_cut_off_or_lacks_or_doubles_or_turns_parts_is_never_whole() {
    let whole = parts(900, 900);
    for len in 0..whole.len() {
        let cut = take_all(&whole[..len]).unwrap().1;
        assert!(!matches!(cut, Some(Taken::Whole(_))), "{len} of {} parts", whole.len());
        let mut lacks = whole.clone();
        lacks.remove(len);
        let mut doubles = whole.clone();
        doubles.insert(len, whole[len].clone());
        assert!(take_all(&doubles).is_err(), "part {len} doubled");
        if len + 1 < whole.len() {
            assert!(take_all(&lacks).is_err(), "part {len} is missing");
            let mut turned = whole.clone();
            turned.swap(len, len + 1);
            assert!(take_all(&turned).is_err(), "part {len} turned");
        }
    }
}

#[test]
fn a_part_cut_off_anywhere_or_with_a_flipped_bit_is_refused_sooner_or_later() {
    let whole = parts(3, 40);
    for (at, part) in whole.iter().enumerate() {
        for len in 0..part.len() {
            let mut bad = whole.clone();
            bad[at] = part.slice(..len);
            assert!(take_all(&bad).is_err(), "part {at} cut to {len}");
        }
        for bit in 0..part.len() * 8 {
            let mut bad = whole.clone();
            let mut bytes = part.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bad[at] = bytes.into();
            assert!(take_all(&bad).is_err(), "part {at} bit {bit}");
        }
    }
}

#[test]
fn hostile_lengths_and_numbers_are_refused_before_they_are_believed() {
    assert_eq!(refused(&[]), Fault::Malformed("fields beyond its end"));
    assert_eq!(refused(&[9]), Fault::Malformed("an unknown kind"));
    assert_eq!(refused(&[2]), Fault::Malformed("fields beyond its end"));
    let mut row_part = BytesMut::from(&[part::ROWS][..]);
    part::put_row(&mut row_part, b"t", b"k", &row(1, 3));
    let forged = |at: usize, bytes: &[u8]| {
        let mut bad = row_part.to_vec();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&bad)
    };
    assert_eq!(forged(1, &[2]), Fault::Malformed("a row's numbers"));
    assert_eq!(forged(2, &[15]), Fault::Malformed("a zone that cannot be"));
    assert_eq!(forged(16, &[0xff]), Fault::Malformed("a row's numbers"), "an owner epoch of 2^63 and more");
    assert_eq!(forged(33, &[129]), Fault::Malformed("a string that is too long"));
    assert_eq!(forged(35, &[1, 4]), Fault::Malformed("a string that is too long"));
    assert_eq!(forged(38, &[1, 0, 16, 0]), Fault::Malformed("a string that is too long"));
    assert_eq!(forged(38, &[255; 4]), Fault::Malformed("a string that is too long"));
    let mut head_part = BytesMut::new();
    part::put_head(&mut head_part, &Head { seq: 0, unseen: None, ..head() });
    assert_eq!(refused(&head_part), Fault::Malformed("positions that cannot be"));
    let mut rng = 0x5eed_u64;
    for _ in 0..200_000 {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = (rng >> 33) as usize % 90;
        let mut bytes: Vec<u8> = (0..len).map(|i| (rng.rotate_left(i as u32 * 7) >> 11) as u8).collect();
        bytes.iter_mut().take(1).for_each(|kind| *kind = (rng >> 20) as u8 % 8);
        let _ = Part::read(bytes.into());
    }
}

#[test]
fn rows_of_another_stream_of_an_unknown_ownership_or_from_the_future_are_refused() {
    let with = |change: &dyn Fn(&mut Row)| {
        let mut bad = row(1, 3);
        change(&mut bad);
        let mut packer = Packer::new(&head());
        let mut all: Vec<Bytes> = packer.row(b"t", b"k", &bad).into_iter().collect();
        all.extend(packer.finish());
        take_all(&all).map(drop)
    };
    assert_eq!(with(&|_| {}), Ok(()));
    assert_eq!(with(&|r| r.shard = Shard(3)), Err(Fault::Foreign { shard: Shard(3), stream: 2 }));
    assert_eq!(with(&|r| r.version.stream = 1), Err(Fault::Foreign { shard: Shard(6), stream: 1 }));
    assert_eq!(with(&|r| r.version.owner_epoch = OwnerEpoch(6)), Err(Fault::Epoch { seen: 6, map: MapEpoch(5) }));
    let ahead = |r: &mut Row| r.version.hlc = Hlc::new(NOW_MS + AHEAD_MAX_MS + 1, 0);
    assert_eq!(with(&ahead), Err(Fault::Ahead { ahead_ms: AHEAD_MAX_MS + 1 }));
    assert_eq!(with(&|r| (ahead(r), r.version.zone = TAKING.own).1), Ok(()), "this zone's own clock");
}

#[test]
fn a_refusal_comes_as_the_origin_put_it() {
    let fault = take_all(&[refusal("seq 5 is not applied here yet")]).map(drop);
    assert_eq!(fault, Err(Fault::Refused("seq 5 is not applied here yet".into())));
    let fault = take_all(&[parts(1, 1)[0].clone(), refusal(&"x".repeat(5000))]).map(drop);
    assert_eq!(fault, Err(Fault::Refused("x".repeat(1024))));
}

#[test]
fn the_bytes_of_a_snapshot_are_frozen() {
    let mut packer = Packer::new(&head());
    let mut all = vec![];
    all.extend(packer.row(b"orders", b"42", &row(1, 2)));
    all.extend(packer.entry(&entry(0, 4)));
    all.extend(packer.fence(Shard(2), &fence(7)));
    all.extend(packer.finish());
    let hex: Vec<String> = all.iter().map(|p| p.iter().map(|b| format!("{b:02x}")).collect()).collect();
    let golden = [
        // head: version, log_uuid, seq, chain, term, map epoch, unseen from and to
        concat!(
            "01",
            "0200",
            "07000000000000000000002400000000",
            "6300000000000000",
            "cdab0000",
            "0400000000000000",
            "0500000000000000",
            "0300000000000000",
            "0900000000000000"
        ),
        // rows: deleted, zone, shard, stream, owner epoch, HLC, seq, table, key, value
        concat!(
            "02",
            "00",
            "00",
            "0600",
            "02000000",
            "0100000000000000",
            "0100006c50c4a001",
            "0100000000000000",
            "066f7264657273",
            "02003432",
            "020000000101"
        ),
        // entries: as rows
        concat!(
            "03",
            "00",
            "00",
            "0200",
            "02000000",
            "0400000000000000",
            "0400006c50c4a001",
            "0400000000000000",
            "066f7264657273",
            "02006b34",
            "09000000040404040404040404"
        ),
        // FENCEs: shard, epoch, seq, positions
        concat!(
            "04",
            "0200",
            "0300000000000000",
            "0700000000000000",
            "13",
            "02",
            "010800000000000000",
            "0effffffffffffffff"
        ),
        // end: rows, entries, FENCEs, digest
        concat!(
            "05",
            "0100000000000000",
            "0100000000000000",
            "0100000000000000",
            "f54968fea0fca608ef46c2c94112ff69e3b0215a00ab6f68eacece83d0034576"
        ),
    ];
    assert_eq!(hex, golden);
}

#[test]
fn a_gap_record_says_what_was_skipped_and_nothing_else_is_taken_for_one() {
    let value = put_gap(Zone(3), 0xab, 61, 99);
    assert_eq!(value, "zone=3 log=000000000000000000000000000000ab from=61 to=99");
    assert_eq!(read_gap(&value), Some((Zone(3), 0xab, 61, 99)));
    for bad in
        ["", "zone=3", "zone=3 log=ab from=61 to=99 ", "from=61 zone=3 log=ab to=99", "zone=300 log=ab from=1 to=2"]
    {
        assert_eq!(read_gap(bad.as_bytes()), None, "{bad}");
    }
}
