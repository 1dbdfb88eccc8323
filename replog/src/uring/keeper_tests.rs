//! A keeper over a real database, fed by hand.

use super::*;
use crate::batch::Origin;
use crate::owners::put_positions;
use crate::store::State;
use crate::{Hlc, Op};
use futures_channel::mpsc::unbounded;
use futures_channel::oneshot::channel;
use futures_lite::future::block_on;
use shardmap::fence::Fences;
use shardmap::map::{Exceptions, Parts, ZoneInfo};
use shardmap::ownership::History;
use std::path::Path;

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
    let keeper = Keeper::new(B, vec![Kept { stream: 0, applier, store, ledger: None }], settled);
    let thread = std::thread::spawn(move || keeper.run(&todo));
    // A's clock is 800 ms ahead: its write is parked, and the FENCE behind it does not count yet.
    let ahead = now_ns() / 1_000_000 + 800;
    let all = [
        record(Op::Put, 1, ahead, Bytes::from_static(b"v")),
        record(Op::Fence, 3, ahead, put_positions(&Positions::default())),
    ];
    let batch = Batch::build(&Origin { stream: 0, zone: A, term: 1, log_uuid_lo: 7 }, 1, 0, 0, &all);
    let (done, answer) = channel();
    jobs.send(Job::Apply { stream: 0, zone: A, batches: vec![batch], done }).unwrap();
    assert_eq!(block_on(answer).unwrap().seq, 2);
    let mut news = || block_on(futures_lite::StreamExt::next(&mut fences)).unwrap().all;
    assert_eq!(news(), [(A, Shard(0), OwnerEpoch(0))]);
    assert_eq!(news(), [(A, Shard(0), OwnerEpoch(3))], "told by itself, once the record is settled");
    let (done, closed) = channel();
    jobs.send(Job::Close { done }).unwrap();
    block_on(closed).unwrap();
    assert_eq!(thread.join().unwrap(), Ok(()));
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", path.display())); // a clean close leaves one of them
    }
}
