//! A disk that is slow makes larger batches, not a longer queue of small ones; one that fails keeps no log from closing.

use bytes::Bytes;
use replog::limits::FLIGHT_MAX;
use replog::log::{Config, Failed, Log, Order};
use replog::open::{Depth, Floor, Storage, examine};
use replog::{Hlc, Record};
use shardmap::Zone;
use std::io;

const MS: u64 = 1_000_000;

/// A directory without a file.
struct Empty;

impl Storage for Empty {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }

    fn read(&mut self, name: &str, _: u64, _: usize) -> io::Result<Bytes> {
        panic!("nothing is listed, {name} is read")
    }
}

#[test]
fn what_comes_while_a_flush_takes_long_is_written_in_few_batches() {
    let config = Config { zone: Zone(1), stream: 0, mirror: false, segment_bytes: 64 << 20 };
    let found = examine(&mut Empty, Floor::default(), Depth::Whole).unwrap();
    let (mut log, _) = Log::recovered(config, found, &[], 1, 1);
    let (mut writes, mut flush) = (0, None);
    for ms in 1..=500u64 {
        if ms <= 200 {
            log.append(vec![Record::marker(Hlc::new(ms, 0))], ms * MS).unwrap();
        }
        if ms % 100 == 0 {
            flush.take().into_iter().for_each(|id| drop(log.on_synced(id, Ok(()), ms * MS)));
        }
        while let Some(order) = log.next_order(ms * MS) {
            match order {
                Order::Begin { .. } => log.on_segment(Ok(()), ms * MS),
                Order::Write { id, .. } => {
                    writes += 1;
                    log.on_written(id, Ok(()));
                }
                Order::Sync { id } => flush = Some(id),
                _ => {}
            }
        }
        if log.durable_seq() >= 200 {
            assert!(writes <= 3 * FLIGHT_MAX, "{writes} batches for 200 records and three flushes");
            return;
        }
    }
    panic!("{} of 200 records are durable after 500 ms and five flushes", log.durable_seq());
}

#[test]
fn a_checkpoint_that_cannot_be_written_does_not_keep_a_log_from_closing() {
    let config = Config { zone: Zone(1), stream: 0, mirror: false, segment_bytes: 64 << 20 };
    let found = examine(&mut Empty, Floor::default(), Depth::Whole).unwrap();
    let (mut log, _) = Log::recovered(config, found, &[], 1, 1);
    let mut tried = 0;
    for ms in 1..=5000u64 {
        if ms == 10 {
            log.append(vec![Record::marker(Hlc::new(ms, 0))], ms * MS).unwrap();
        }
        if ms == 2500 {
            assert_eq!(tried, 2, "it is tried again after a second, not at once");
            log.close();
        }
        let mut orders = 0;
        while let Some(order) = log.next_order(ms * MS) {
            orders += 1;
            assert!(orders < 20, "it orders for ever");
            match order {
                Order::Begin { .. } => log.on_segment(Ok(()), ms * MS),
                Order::Write { id, .. } => log.on_written(id, Ok(())),
                Order::Sync { id } => drop(log.on_synced(id, Ok(()), ms * MS)),
                Order::Checkpoint { .. } => {
                    tried += 1;
                    log.on_checkpoint(Err(Failed::Io), ms * MS);
                }
                other => panic!("{other:?}"),
            }
        }
        if log.is_closed() {
            return;
        }
    }
    panic!("it is not closed after 2.5 s");
}
