//! A keeper over a real database, fed by hand.

use super::*;
use crate::batch::Origin;
use crate::owners::put_positions;
use crate::store::State;
use crate::{Hlc, Op};
use bytes::Bytes;
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use futures_channel::oneshot::channel;
use futures_lite::future::block_on;
use shardmap::fence::Fences;
use shardmap::map::Map;
use shardmap::map::{Exceptions, Parts, ZoneInfo};
use shardmap::ownership::History;
use shardmap::{MapEpoch, OwnerEpoch};
use std::path::Path;
use std::sync::Arc;

const A: Zone = Zone(0);
const B: Zone = Zone(1);

fn map() -> Arc<Map> {
    let zone = |id, name: &str| ZoneInfo { id: Zone(id), name: name.into() };
    let parts = Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: Some(Shard(0)),
        zones: vec![zone(0, "a"), zone(1, "b")],
        histories: [(Shard(0), History::new(A, MapEpoch(1)))].into(),
        exceptions: Exceptions { orders: vec![], shops: vec![] },
        globals: Default::default(),
        fences: Arc::new(Fences::new(vec![], 10_000, 20).unwrap()),
    };
    Arc::new(Map::from_parts(parts).unwrap())
}

fn record(op: Op, epoch: u64, ms: u64, value: Bytes) -> Record {
    let text = if op == Op::Fence { &b""[..] } else { b"k" };
    let (table, key) = (Bytes::from_static(text), Bytes::from_static(text));
    let (shard, owner_epoch, hlc) = (Shard(0), OwnerEpoch(epoch), Hlc::new(ms, 0));
    Record { op, transaction: u32::from(op == Op::Fence), shard, owner_epoch, hlc, table, key, value }
}

#[test]
fn a_lock_opens_when_what_was_parked_is_settled_though_nothing_more_arrives() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/keeper-{}.db", std::process::id()));
    let store = Sqlite::open(&path).unwrap();
    let applier = Applier::new(B, 0, 1, map(), State::default());
    let ((settled, mut fences), (jobs, todo)) = (unbounded(), std::sync::mpsc::channel());
    let keeper = Keeper::new(B, vec![Kept::new(0, applier, store)], todo, settled);
    let thread = std::thread::spawn(move || keeper.run());
    // A's clock is 800 ms ahead: its write is parked, and the FENCE behind it does not count yet.
    let ahead = now_ns() / 1_000_000 + 800;
    let all = [
        record(Op::Put, 1, ahead, Bytes::from_static(b"v")),
        record(Op::Fence, 3, ahead, put_positions(&Positions::default())),
    ];
    let batch = Batch::build(&Origin { stream: 0, zone: A, term: 1, log_uuid_lo: 7 }, 1, 0, 0, &all);
    let (done, answer) = channel();
    jobs.send(Job::Apply { stream: 0, zone: A, batches: vec![batch], done }).unwrap();
    let answer = block_on(answer).unwrap();
    assert_eq!((answer.seq, answer.settled), (2, 0), "a cut would go below what is parked");
    let settle = || {
        let (done, answer) = channel();
        jobs.send(Job::Settle { stream: 0, done }).unwrap();
        block_on(answer).unwrap()
    };
    let upto = |seq| [(A, seq)].into_iter().collect::<Positions>();
    assert_eq!(settle(), upto(0), "nor may its log be let go");
    let mut news = || block_on(futures_lite::StreamExt::next(&mut fences)).unwrap();
    let of = |epoch| News::Fences { stream: 0, all: vec![(A, Shard(0), OwnerEpoch(epoch))] };
    assert_eq!(news(), of(0));
    assert_eq!(news(), of(3), "told by itself, once the record is settled");
    assert_eq!(news(), News::Settled { stream: 0, all: upto(2).into() });
    assert_eq!(settle(), upto(2));
    let (done, closed) = channel();
    jobs.send(Job::Close { done }).unwrap();
    block_on(closed).unwrap();
    assert_eq!(thread.join().unwrap(), Ok(()));
    remove(&path);
}

fn remove(path: &Path) {
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display())); // a clean close leaves one of them
    }
}

/// What ends within a minute, or the test has failed.
fn soon<T: Send + 'static>(what: impl Future<Output = T> + Send + 'static) -> T {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(done.send(block_on(what))));
    wait.recv_timeout(Duration::from_secs(60)).expect("nothing came within 60 s")
}

fn told(news: &mut UnboundedReceiver<News>) -> Option<News> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match news.try_recv() {
            Ok(told) => return Some(told),
            Err(_) => assert!(Instant::now() < until, "nothing was told within 60 s"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The operator's page hung with the store, a read waited until its client gave up, and a stop until the process was killed.
#[test]
fn a_store_without_room_tells_so_and_goes_on_when_there_is_some() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/keeper-full-{}.db", std::process::id()));
    let store = Sqlite::open(&path).unwrap();
    store.limit_pages(65);
    let ((settled, mut news), (jobs, todo)) = (unbounded(), std::sync::mpsc::channel());
    let kept = Kept::new(0, Applier::new(B, 0, 1, map(), State::default()), store);
    let keeper = Keeper::new(B, vec![kept], todo, settled);
    let thread = std::thread::spawn(move || keeper.run());
    let big = |seq: u64| {
        let value = Bytes::from(vec![seq as u8; 40 << 10]);
        let key = Bytes::from(seq.to_string());
        let put = Record { key, ..record(Op::Put, 1, now_ns() / 1_000_000, value) };
        Batch::build(&Origin { stream: 0, zone: A, term: 1, log_uuid_lo: 7 }, seq, 0, 0, &[put])
    };
    let apply = |seq| {
        let (done, answer) = channel();
        jobs.send(Job::Apply { stream: 0, zone: A, batches: vec![big(seq)], done }).unwrap();
        answer
    };
    let read = |key: &'static str| {
        let (done, answer) = channel();
        let (table, key) = (Bytes::from_static(b"k"), Bytes::from_static(key.as_bytes()));
        jobs.send(Job::Read { stream: 0, table, key, done }).unwrap();
        soon(answer).unwrap().map(|row| row.is_some())
    };
    let figures = || {
        let (done, answer) = channel();
        jobs.send(Job::Figures { done }).unwrap();
        let figures = soon(answer).unwrap();
        (figures.is_full, figures.applied[0].1.get(A))
    };
    for seq in 1..=5 {
        assert_eq!(soon(apply(seq)).unwrap().seq, seq);
    }
    assert_eq!((read("5"), figures()), (Ok(true), (false, Some(5))));
    let stuck = apply(6);
    assert_eq!(told(&mut news), Some(News::Room(false)));
    let behind = apply(7);
    assert_eq!((read("5"), figures()), (Err(NoRoom), (true, Some(5))), "what is stored, not what is to be");
    // Someone makes room.
    rusqlite::Connection::open(&path).unwrap().execute("delete from rows where key < x'34'", []).unwrap();
    assert_eq!((soon(stuck).unwrap().seq, soon(behind).unwrap().seq), (6, 7), "in their order");
    assert_eq!(told(&mut news), Some(News::Room(true)));
    assert_eq!((read("7"), figures()), (Ok(true), (false, Some(7))));
    let never = (apply(8), apply(9), apply(10));
    assert_eq!(told(&mut news), Some(News::Room(false)));
    let (done, closed) = channel();
    jobs.send(Job::Close { done }).unwrap();
    soon(closed).unwrap();
    assert_eq!((thread.join().unwrap(), soon(never.2).is_err()), (Ok(()), true), "the logs bring them again");
    remove(&path);
}
