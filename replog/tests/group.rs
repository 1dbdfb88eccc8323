//! A disk that is slow makes larger batches, not a longer queue of small ones; one that fails keeps no log from closing; what is flushed
//! by its own write is acknowledged in its turn.

use bytes::Bytes;
use replog::limits::{CUT_BYTES, FLIGHT_MAX, RUN_BYTES, THROUGH_RECORDS_MAX};
use replog::log::{Config, Failed, Log, Order};
use replog::open::{Depth, Floor, Storage, examine};
use replog::segment::{Checkpoint, Header, seq_of_name};
use replog::{Batch, Hlc, Op, Record};
use shardmap::Zone;
use std::collections::BTreeMap;
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
    let (mut writes, mut flush, mut flushing) = (0, None, Vec::new());
    for ms in 1..=500u64 {
        if ms <= 200 {
            log.append(vec![Record::marker(Hlc::new(ms, 0))], ms * MS).unwrap();
        }
        if ms % 100 == 0 {
            flush.take().into_iter().for_each(|id| drop(log.on_synced(id, Ok(()), ms * MS)));
            flushing.drain(..).for_each(|id| drop(log.on_written(id, Ok(()), ms * MS)));
        }
        while let Some(order) = log.next_order(ms * MS) {
            match order {
                Order::Begin { .. } => log.on_segment(Ok(()), ms * MS),
                Order::Write { id, through, .. } => {
                    writes += 1;
                    match through {
                        true => flushing.push(id),
                        false => drop(log.on_written(id, Ok(()), ms * MS)),
                    }
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
                Order::Write { id, .. } => drop(log.on_written(id, Ok(()), ms * MS)),
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

/// A log that has begun its segment.
fn begun() -> Log {
    let config = Config { zone: Zone(1), stream: 0, mirror: false, segment_bytes: 64 << 20 };
    let found = examine(&mut Empty, Floor::default(), Depth::Whole).unwrap();
    let (mut log, _) = Log::recovered(config, found, &[], 1, 1);
    assert!(matches!(log.next_order(MS), Some(Order::Begin { .. })));
    log.on_segment(Ok(()), MS);
    log
}

/// Appends so many records, and takes the write that is ordered: its id, and whether it flushes itself.
fn write(log: &mut Log, records: usize) -> (u64, bool) {
    log.append(vec![Record::marker(Hlc::new(1, 0)); records], MS).unwrap();
    match log.next_order(MS) {
        Some(Order::Write { id, through, .. }) => (id, through),
        other => panic!("{other:?}"),
    }
}

/// Carries out a write, and the flush if it needs one; tells whether it flushed itself.
fn commit(log: &mut Log, records: usize) -> bool {
    let (id, through) = write(log, records);
    let mut done = log.on_written(id, Ok(()), MS);
    if !through {
        assert!(done.is_empty(), "acknowledged without a flush");
        let Some(Order::Sync { id }) = log.next_order(MS) else { panic!("no flush is ordered") };
        done = log.on_synced(id, Ok(()), MS);
    }
    assert_eq!(done.iter().map(|b| b.records as usize).sum::<usize>(), records);
    through
}

#[test]
fn a_write_flushes_itself_only_while_few_have_been_told_and_few_will_be() {
    let (mut log, few) = (begun(), THROUGH_RECORDS_MAX);
    let seen: Vec<bool> = [1, few, few + 1, 1, 1].into_iter().map(|records| commit(&mut log, records)).collect();
    assert_eq!(seen, [true, true, false, false, true]);
}

#[test]
fn what_flushed_itself_is_acknowledged_when_all_before_it_is() {
    let mut log = begun();
    let (first, through) = write(&mut log, THROUGH_RECORDS_MAX + 1);
    assert!(!through);
    let long = Record { op: Op::Put, value: vec![1; CUT_BYTES].into(), ..Record::marker(Hlc::new(1, 0)) };
    log.append(vec![long], MS).unwrap();
    let Some(Order::Write { id: second, through: true, .. }) = log.next_order(MS) else { panic!("it is not written") };
    assert!(log.on_written(second, Ok(()), MS).is_empty(), "acknowledged before its predecessor");
    assert!(log.next_order(MS).is_none(), "a flush that covers nothing");
    assert!(log.on_written(first, Ok(()), MS).is_empty(), "acknowledged without a flush");
    let Some(Order::Sync { id }) = log.next_order(MS) else { panic!("no flush is ordered") };
    assert_eq!(log.on_synced(id, Ok(()), MS).len(), 2);
    assert_eq!(log.durable_seq() + 1, log.next_seq());
}

#[test]
fn a_second_write_that_fails_to_flush_itself_stops_the_log_and_nothing_more_is_acknowledged() {
    let mut log = begun();
    let (id, _) = write(&mut log, 1);
    assert!(log.on_written(id, Err(Failed::Io), MS).is_empty());
    assert!(matches!(log.next_order(MS), Some(Order::Begin { .. })), "the same batch goes into a new segment");
    log.on_segment(Ok(()), MS);
    let Some(Order::Write { id, through: true, .. }) = log.next_order(MS) else { panic!("it is not written again") };
    assert!(log.on_written(id, Err(Failed::Io), MS).is_empty());
    assert!(log.is_stopped());
    assert!(log.on_written(id, Ok(()), MS).is_empty(), "acknowledged after two failures");
}

/// A mirror with so many batches of its origin to write, each with a value of `bytes`; the batches, and the salt of its segment.
fn behind(batches: usize, bytes: usize) -> (Log, Vec<Batch>, u64) {
    let mut origin = begun();
    let value: Bytes = vec![7; bytes].into();
    let mut all = vec![];
    for _ in 0..batches {
        let record = Record { op: Op::Put, value: value.clone(), ..Record::marker(Hlc::new(1, 0)) };
        origin.append(vec![record], MS).unwrap();
        let Some(Order::Write { id, through: true, .. }) = origin.next_order(MS) else { panic!("it is not written") };
        all.extend(origin.on_written(id, Ok(()), MS));
    }
    let config = Config { zone: Zone(1), stream: 0, mirror: true, segment_bytes: 64 << 20 };
    let found = examine(&mut Empty, Floor::default(), Depth::Whole).unwrap();
    let (mut mirror, _) = Log::recovered(config, found, &[], 1, 1);
    let salt = begin(&mut mirror);
    for batch in &all {
        mirror.append_batch(batch.clone()).unwrap();
    }
    (mirror, all, salt)
}

/// A segment is begun: its salt.
fn begin(log: &mut Log) -> u64 {
    let Some(Order::Begin { header, .. }) = log.next_order(MS) else { panic!("no segment is begun") };
    log.on_segment(Ok(()), MS);
    Header::parse(&header).unwrap().salt
}

#[test]
fn batches_that_wait_are_written_together_each_in_its_own_blocks_and_after_a_failure_again_in_their_order() {
    let (mut mirror, batches, mut salt) = behind(20, 100);
    let mut failed = false;
    loop {
        let Some(Order::Write { id, pos, bytes, .. }) = mirror.next_order(MS) else { panic!("nothing is written") };
        let (disk, mut at) = (bytes.to_bytes().freeze(), 0);
        assert_eq!(disk.len(), bytes.disk_len());
        for batch in &batches {
            let (read, stamp) = Batch::read(&disk.slice(at..), salt, pos + at as u64).unwrap();
            assert_eq!((&read, stamp.local_durable_seq), (batch, 0));
            at += batch.disk_len();
        }
        assert_eq!(at, disk.len());
        if failed {
            assert!(mirror.on_written(id, Ok(()), MS).is_empty(), "this many records do not flush themselves");
            let Some(Order::Sync { id }) = mirror.next_order(MS) else { panic!("no flush is ordered") };
            assert_eq!(mirror.on_synced(id, Ok(()), MS), batches);
            return assert_eq!(mirror.durable_seq(), 20);
        }
        assert!(mirror.on_written(id, Err(Failed::Io), MS).is_empty());
        (salt, failed) = (begin(&mut mirror), true);
    }
}

#[test]
fn what_is_written_together_has_a_bound() {
    let (mut mirror, batches, _) = behind(9, 300_000);
    let mut seen = vec![];
    while let Some(Order::Write { bytes, .. }) = mirror.next_order(MS) {
        assert!(bytes.disk_len() <= RUN_BYTES);
        seen.push(bytes.disk_len() / batches[0].disk_len());
    }
    assert_eq!(seen, [3, 3, 3]);
}

#[test]
fn a_segment_goes_only_when_both_checkpoint_files_say_that_it_is_not_kept() {
    let config = Config { zone: Zone(1), stream: 0, mirror: false, segment_bytes: 16 * 1024 };
    let found = examine(&mut Empty, Floor::default(), Depth::Whole).unwrap();
    let (mut log, _) = Log::recovered(config, found, &[], 1, 1);
    let (mut segments, mut said, mut tried, mut gone) = (Vec::new(), BTreeMap::new(), 0, 0);
    for ms in 1..=20_000u64 {
        let now = ms * MS;
        if ms % 100 == 0 {
            log.append(vec![Record::marker(Hlc::new(ms, 0))], now).unwrap();
            log.release(log.durable_seq(), 0);
        }
        while let Some(order) = log.next_order(now) {
            match order {
                Order::Begin { name, .. } => {
                    segments.push(name);
                    log.on_segment(Ok(()), now);
                }
                Order::Write { id, .. } => drop(log.on_written(id, Ok(()), now)),
                Order::Sync { id } => drop(log.on_synced(id, Ok(()), now)),
                Order::Seal { .. } => log.on_sealed(Ok(())),
                Order::Spare { .. } => log.on_spare(Ok(()), now),
                Order::Checkpoint { name, bytes } => {
                    tried += 1;
                    let fails = tried % 2 == 0 && tried < 12;
                    if !fails {
                        said.insert(name, Checkpoint::parse(&bytes).unwrap().first_kept);
                    }
                    log.on_checkpoint(if fails { Err(Failed::Io) } else { Ok(()) }, now);
                }
                Order::Retire { name, .. } => {
                    let next = segments.iter().filter(|s| **s > name).min().and_then(|s| seq_of_name(s)).unwrap();
                    let known = |file| said.get(file).is_some_and(|kept| *kept >= next);
                    assert!(Checkpoint::NAMES.iter().all(known), "{name} goes, and the checkpoints say {said:?}");
                    gone += 1;
                    log.on_retired(Ok(()));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(tried > 12 && gone > 10, "{tried} checkpoints, {gone} segments gone");
}
