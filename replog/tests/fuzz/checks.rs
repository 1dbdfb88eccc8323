//! What must hold for any bytes from a disk or a peer; the fuzz targets and the bounded run in the tests call the same functions.
//!
//! Each is tried as it is, and once more with every checksum made to fit: what a program with a fault, or someone with intent, has
//! written. Then a check of a field is all that stands between the bytes and a wrong answer.

use bytes::{Bytes, BytesMut};
use replog::limits::{BATCH_MAX, BLOCK, HEADER, KEY_MAX, TABLE_MAX, VALUE_MAX};
use replog::link::pack::{PACK_RAW_MAX, Unpacker};
use replog::link::{self, Frame, Log, Mirror, Order, Place, Receiver, Sender};
use replog::open::{Depth, Floor, Storage, Verdict, Walk, examine};
use replog::seed::{Head, Packer, Taken, Taker, Taking};
use replog::segment::{Checkpoint, FIRST_POS, Footer, Header};
use replog::store::Change;
use replog::{Batch, Hlc, Record};
use shardmap::{MapEpoch, Zone};
use std::collections::BTreeMap;
use std::io;

/// The names that a fuzzed directory can have.
pub const NAMES: [&str; 8] = [
    "00000000000000000001.rlog",
    "00000000000000000004.rlog",
    "00000000000000000006.rlog",
    "18446744073709551615.rlog",
    "CHECKPOINT.a",
    "CHECKPOINT.b",
    "reserve-1.tmp",
    "00000000000000000000.rlog",
];
/// A fuzzed file is no longer than this.
const FILE_BYTES_MAX: usize = 16 * BLOCK;

fn put(b: &mut [u8], at: usize, crc: u32) {
    b[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A frame of a link: what is taken is put back as it came, a pack takes no more room than a pack may, and neither end of a link panics.
pub fn frame(bytes: &[u8]) {
    taken(bytes);
    if bytes.len() < 10 {
        return;
    }
    let mut fitting = bytes.to_vec();
    let crc = crc32fast::hash(&fitting[8..]);
    let len = fitting.len() as u32 - 8;
    put(&mut fitting, 0, len);
    put(&mut fitting, 4, crc);
    fitting[8] = 1;
    let crc = crc32fast::hash(&fitting[8..]);
    put(&mut fitting, 4, crc);
    taken(&fitting);
    hear(&fitting);
}

fn taken(bytes: &[u8]) {
    let (mut left, mut unpacker) = (BytesMut::from(bytes), Unpacker::default());
    while let Ok(Some(frame)) = link::take(&mut left) {
        if let Frame::Pack { pack, .. } = &frame
            && let Ok(batches) = unpacker.unpack(pack)
        {
            let len: usize = batches.iter().map(|b| b.len() + 4).sum();
            assert!(len == pack.raw_len as usize && len <= PACK_RAW_MAX);
        }
        let (mut again, mut same) = (BytesMut::new(), BytesMut::new());
        link::put(&mut again, &frame);
        same.extend_from_slice(&again);
        assert_eq!(link::take(&mut same).unwrap(), Some(frame));
        let begin = bytes.len() - left.len() - again.len();
        assert_eq!(again, bytes[begin..begin + again.len()]);
    }
}

/// Both ends hear it behind what opens a connection.
fn hear(bytes: &[u8]) {
    let place = Place { cluster: Bytes::from_static(b"c"), origin: Zone(0), peer: Zone(1), stream: 0, streams: 1 };
    let log = Log { log_uuid: 7, term: 1, first_kept: 1, durable: 0, chain: 0, hlc: Hlc(0) };
    let mut sender = Sender::new(place.clone(), log, MapEpoch(1), Bytes::new());
    let mut receiver = Receiver::new(place, Mirror::default(), 0, MapEpoch(1), Bytes::new());
    sender.on_connect(1);
    receiver.on_connect(1);
    while let Some(order) = sender.next_order(1) {
        if let Order::Send(hello) = order {
            receiver.on_bytes(&hello, 1);
        }
    }
    while let Some(order) = receiver.next_order(1) {
        if let Order::Send(welcome) = order {
            sender.on_bytes(&welcome, 1);
        }
    }
    sender.on_bytes(bytes, 2);
    receiver.on_bytes(bytes, 2);
    while sender.next_order(2).is_some() {}
    while receiver.next_order(2).is_some() {}
}

/// Makes the checksum of a header, footer or checkpoint fit.
fn reseal_block(block: &mut [u8]) {
    if block.len() >= BLOCK {
        let crc = crc32fast::hash(&block[12..BLOCK]);
        put(block, 8, crc);
    }
}

/// Makes the page table, header_crc and place_crc of a batch fit.
fn reseal_batch(batch: &mut [u8], salt: u64, pos: u64) {
    if batch.len() < HEADER {
        return;
    }
    let head = usize::from(u16::from_le_bytes([batch[20], batch[21]]));
    if head < HEADER || head > batch.len() {
        return;
    }
    for page in 0..(head - HEADER) / 4 {
        let (from, to) = ((page * BLOCK).max(head), ((page + 1) * BLOCK).max(head));
        let mut padded = batch[from.min(batch.len())..to.min(batch.len())].to_vec();
        padded.resize(to - from, 0);
        put(batch, HEADER + 4 * page, crc32fast::hash(&padded));
    }
    let crc = crc32fast::hash(&batch[20..head]);
    put(batch, 16, crc);
    let mut place = crc32fast::Hasher::new();
    place.update(&salt.to_le_bytes());
    place.update(&pos.to_le_bytes());
    place.update(&batch[8..16]);
    place.update(&crc.to_le_bytes());
    put(batch, 4, place.finalize());
}

/// Makes every checksum of a file fit.
fn reseal_file(file: &mut [u8]) {
    let salt = file.get(64..72).map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
    for pos in (0..file.len()).step_by(BLOCK) {
        match &file[pos..] {
            [b'R', b'L', b'G', ..] => reseal_block(&mut file[pos..]),
            [b'R', b'L', b'B', b'1', ..] => reseal_batch(&mut file[pos..], salt, pos as u64),
            _ => {}
        }
    }
}

fn twice(bytes: &[u8], reseal: impl Fn(&mut [u8]), check: impl Fn(&[u8])) {
    check(bytes);
    let mut forged = bytes.to_vec();
    reseal(&mut forged);
    check(&forged);
}

/// A block beside the batches is refused, or means the same when it is written again.
pub fn header(bytes: &[u8]) {
    twice(bytes, reseal_block, |bytes| {
        if let Ok(header) = Header::parse(bytes) {
            assert_eq!(Header::parse(&header.encode()), Ok(header));
        }
        if let Ok(footer) = Footer::parse(bytes) {
            assert_eq!(Footer::parse(&footer.encode()), Ok(footer));
        }
        if let Ok(checkpoint) = Checkpoint::parse(bytes) {
            assert_eq!(Checkpoint::parse(&checkpoint.encode()), Ok(checkpoint));
        }
    });
}

/// A record is refused, or these are the only bytes that it has.
pub fn record(bytes: &[u8]) {
    let whole = Bytes::copy_from_slice(bytes);
    let mut rest = whole.clone();
    let Ok(record) = Record::take(&mut rest, Hlc(0)) else { return };
    assert_eq!(record.check(), Ok(()));
    let mut again = Vec::new();
    record.put(&mut again, Hlc(0));
    assert_eq!(again[..], whole[..whole.len() - rest.len()]);
    assert!(again.len() <= record.len_max());
}

/// A batch is refused, or all that it says of itself is so, and a disk gives it back.
pub fn batch(bytes: &[u8]) {
    twice(
        bytes,
        |b| reseal_batch(b, 0, 0),
        |bytes| {
            let Ok(batch) = Batch::parse(Bytes::copy_from_slice(bytes)) else { return };
            let records: Vec<(u64, Record)> = batch.iter().map(|r| r.expect("parse has seen each record")).collect();
            assert_eq!(records.len(), batch.records as usize);
            assert!(records.iter().map(|(seq, _)| *seq).eq(batch.first_seq..=batch.last_seq()));
            assert!(records.iter().all(|(_, r)| (batch.first_hlc..=batch.last_hlc).contains(&r.hlc)));
            assert!(batch.disk_len() <= BATCH_MAX && batch.bytes.len() <= batch.disk_len());
            let placed = batch.place(7, 4096, 3).freeze();
            assert_eq!(Batch::read(&placed, 7, 4096).expect("what was placed is read").0, batch);
            assert!(Batch::read(&placed, 8, 4096).is_err() && Batch::read(&placed, 7, 8192).is_err());
        },
    );
}

/// A head of stream 2 of 4, behind which any part may come.
fn head() -> Head {
    Head { log_uuid: 7, seq: 99, chain: 5, term: 4, map_epoch: MapEpoch(5), unseen: None }
}

/// A part of a snapshot is refused, or what it brings is bounded, of the stream that was asked for, and no end that was not counted.
pub fn part(bytes: &[u8]) {
    let mut taker = Taker::new(Taking { own: Zone(1), stream: 2, streams: 4 });
    for part in Packer::new(&head()).finish().into_iter().take(1).chain([Bytes::copy_from_slice(bytes)]) {
        match taker.on_part(part, 1_790_000_000_000) {
            Err(_) => return,
            Ok(Taken::Head(seen)) => assert_eq!(seen, head()),
            Ok(Taken::Kept) => {}
            Ok(Taken::Whole(whole)) => assert!(whole.fences.is_empty() && whole.newest == Hlc(0)),
            Ok(Taken::Store(list)) => list.iter().for_each(stored),
        }
    }
}

fn stored(change: &Change) {
    match change {
        Change::Row { table, key, row } => {
            assert!(table.len() <= TABLE_MAX && key.len() <= KEY_MAX && row.value.len() <= VALUE_MAX);
            assert!(row.version.stream == 2 && row.shard.0 % 4 == 2 && row.version.owner_epoch.0 <= 5);
        }
        Change::List(e) => assert!(e.row.shard.0 % 4 == 2 && e.table.len() <= TABLE_MAX && e.key.len() <= KEY_MAX),
        other => panic!("a part of a snapshot stores {other:?}"),
    }
}

/// A directory out of bytes: for each file a name, its length in units of 64 bytes, and what is in it.
#[derive(Clone, PartialEq, Debug)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn of(mut bytes: &[u8]) -> Files {
        let mut files = BTreeMap::new();
        while let [name, low, high, rest @ ..] = bytes {
            let len = usize::from(u16::from_le_bytes([*low, *high])) * 64;
            let (content, after) = rest.split_at(len.min(FILE_BYTES_MAX).min(rest.len()));
            files.insert(NAMES[usize::from(*name) % NAMES.len()].to_owned(), content.to_vec());
            bytes = after;
        }
        Files(files)
    }
}

/// The opposite of `Files::of`: for a corpus.
#[allow(dead_code, reason = "a fuzz target gets its corpus as files")]
pub fn directory_of(files: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        assert!(content.len().is_multiple_of(64) && content.len() <= FILE_BYTES_MAX);
        bytes.push(*name as u8);
        bytes.extend_from_slice(&((content.len() / 64) as u16).to_le_bytes());
        bytes.extend_from_slice(content);
    }
    bytes
}

impl Storage for Files {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.0.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect())
    }
    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let file = &self.0[name];
        let from = usize::try_from(pos).map_or(file.len(), |pos| pos.min(file.len()));
        Ok(Bytes::copy_from_slice(&file[from..from.saturating_add(len).min(file.len())]))
    }
}

/// A directory is judged; a verdict that lets a writer go on is one that a reader can rely on.
pub fn directory(bytes: &[u8]) {
    judged(Files::of(bytes));
    let mut forged = Files::of(bytes);
    forged.0.values_mut().for_each(|file| reseal_file(file));
    judged(forged);
}

fn judged(mut files: Files) {
    for floor in [Floor::default(), Floor { applied: 5, peers: 0 }, Floor { applied: 0, peers: u64::MAX }] {
        let needed = examine(&mut files, floor, Depth::Needed).expect("memory is read without an error");
        let found = examine(&mut files, floor, Depth::Whole).expect("memory is read without an error");
        assert!(!found.verdict.to_string().is_empty());
        if !found.verdict.is_sound() {
            continue;
        }
        assert!(needed.verdict.is_sound(), "{} though {}", needed.verdict, found.verdict);
        assert_eq!((needed.last_seq, needed.chain), (found.last_seq, found.chain));
        assert!(found.last_seq >= floor.applied.max(floor.peers), "{} below {floor:?}", found.last_seq);
        assert!(found.verdict != Verdict::Empty || found.segments.is_empty());
        let mut next = found.segments.first().map_or(found.last_seq + 1, |s| s.header.first_seq);
        for segment in &found.segments {
            let mut walk = Walk::new(&segment.name, segment.header.salt, segment.end);
            let mut pos = FIRST_POS;
            while pos < segment.end {
                let (batch, _) = walk.at(&mut files, pos).expect("memory").expect("the verdict says that it is intact");
                assert_eq!(batch.first_seq, next, "seqs are skipped");
                next = batch.last_seq() + 1;
                pos += batch.disk_len() as u64;
            }
        }
        assert_eq!(next, found.last_seq + 1);
    }
    planned(files);
}

/// A repair is planned without panic, and changes nothing.
fn planned(mut files: Files) {
    let before = files.clone();
    replog::repair::plan(&mut files, None, Floor::default(), 1).expect("memory is read without an error");
    assert!(files == before);
}
