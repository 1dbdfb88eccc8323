//! Carries out a log's orders on the simulated disk, one step at a time: a crash may come between any two.

use super::world::{World, Writer, mark};
use bytes::Bytes;
use replog::Batch;
use replog::log::{Failed, Order};
use replog::segment::{Checkpoint, Header, seq_of_name};

/// Names of writes that the log does not number.
const HEADER_ID: u64 = u64::MAX;
const FOOTER_ID: u64 = u64::MAX - 1;
const CHECKPOINT_ID: u64 = u64::MAX - 2;
/// The first segment in the making, and a spare in the making.
const FIRST: &str = "first.tmp";
const MAKING: &str = "making.tmp";

/// A spare's file.
pub(super) fn spare_name(id: u64) -> String {
    format!("reserve-{id}.tmp")
}

/// What an order to begin a segment says.
struct Begin {
    name: String,
    header: Bytes,
    bytes: u64,
    spare: Option<u64>,
}

/// An order under way: the next of its steps, the file that it is about, and the writes that its flush covers.
pub(super) struct Pending {
    order: Order,
    step: u32,
    file: usize,
    covers: Vec<u64>,
}

impl World {
    pub(super) fn submit(&mut self, w: &mut Writer, order: Order) {
        let (mut file, mut covers) = (w.file, Vec::new());
        match &order {
            Order::Write { id, pos, bytes, .. } => self.disk.write(file, *id, *pos, bytes.to_bytes().freeze()),
            Order::Seal { pos, bytes } => self.disk.write(file, FOOTER_ID, *pos, bytes.clone()),
            Order::Sync { .. } => covers = self.disk.covered(file),
            Order::Checkpoint { name, bytes } => {
                file = self.disk.open(name, bytes.len());
                self.disk.write(file, CHECKPOINT_ID, 0, bytes.clone());
            }
            Order::Retire { name, .. } => self.check_retired(name),
            Order::Begin { .. } | Order::Spare { .. } | Order::Refuse { .. } | Order::Stop => {}
        }
        w.pending.push(Pending { order, step: 0, file, covers });
    }

    pub(super) fn advance(&mut self, w: &mut Writer, mut p: Pending) {
        let fails = self.faults.io && self.rng.one_in(150);
        let full = self.faults.full && self.rng.one_in(5);
        self.seen.failures += u64::from(fails);
        match p.order {
            Order::Begin { ref name, ref header, bytes, spare } => match p.step {
                0 if full => w.log.on_segment(Err(Failed::Full), self.now),
                4 if fails => w.log.on_segment(Err(Failed::Io), self.now),
                step => {
                    let begin = Begin { name: name.clone(), header: header.clone(), bytes, spare };
                    match self.begin(&mut p, step, begin) {
                        Err(why) => w.log.on_segment(Err(why), self.now),
                        Ok(false) => w.pending.push(Pending { step: step + 1, ..p }),
                        Ok(true) => self.begun(w, p.file),
                    }
                }
            },
            Order::Spare { .. } if full => w.log.on_spare(Err(Failed::Full), self.now),
            Order::Spare { id, bytes } => match p.step {
                0 => {
                    self.disk.create(MAKING, vec![0; bytes as usize]);
                    w.pending.push(Pending { step: 1, ..p });
                }
                _ => {
                    let there = self.disk.rename(MAKING, &spare_name(id));
                    w.log.on_spare(if there { Ok(()) } else { Err(Failed::Io) }, self.now);
                }
            },
            Order::Retire { ref name, spare } => match p.step {
                0 => {
                    match spare {
                        Some(id) => drop(self.disk.rename(name, &spare_name(id))),
                        None => self.disk.remove(name),
                    }
                    w.pending.push(Pending { step: 1, ..p });
                }
                _ if fails => w.log.on_retired(Err(Failed::Io)),
                _ => {
                    self.disk.sync_names();
                    w.log.on_retired(Ok(()));
                }
            },
            Order::Write { id, .. } if fails => {
                match p.step {
                    0 => self.disk.failed_write(p.file, id, &mut self.rng),
                    _ => self.disk.failed_sync(p.file, &mut self.rng),
                }
                self.disk.fail(p.file);
                let why = if self.rng.one_in(2) { Failed::Full } else { Failed::Io };
                assert!(w.log.on_written(id, Err(why), self.now).is_empty());
            }
            Order::Write { id, through: true, .. } if p.step == 0 => {
                self.disk.done(p.file, id);
                w.pending.push(Pending { step: 1, ..p });
            }
            Order::Write { id, through, .. } => {
                self.seen.through += u64::from(through);
                match through {
                    true => self.disk.sync(p.file, &[id], &mut self.rng),
                    false => self.disk.done(p.file, id),
                }
                for batch in w.log.on_written(id, Ok(()), self.now) {
                    self.acknowledge(w, &batch);
                }
            }
            Order::Sync { id } if fails => {
                self.disk.failed_sync(p.file, &mut self.rng);
                self.disk.fail(p.file);
                assert!(w.log.on_synced(id, Err(Failed::Io), self.now).is_empty());
            }
            Order::Sync { id } => {
                self.seen.flushes += 1;
                self.disk.sync(p.file, &p.covers, &mut self.rng);
                for batch in w.log.on_synced(id, Ok(()), self.now) {
                    self.acknowledge(w, &batch);
                }
            }
            Order::Seal { .. } => match p.step {
                0 => {
                    self.disk.done(p.file, FOOTER_ID);
                    w.pending.push(Pending { step: 1, ..p });
                }
                _ => {
                    self.disk.sync(p.file, &[FOOTER_ID], &mut self.rng);
                    w.log.on_sealed(Ok(()));
                }
            },
            Order::Checkpoint { .. } => match p.step {
                0 => {
                    self.disk.done(p.file, CHECKPOINT_ID);
                    w.pending.push(Pending { step: 1, ..p });
                }
                _ if fails => {
                    self.disk.failed_sync(p.file, &mut self.rng);
                    w.log.on_checkpoint(Err(Failed::Io), self.now);
                }
                _ => {
                    self.disk.sync(p.file, &[CHECKPOINT_ID], &mut self.rng);
                    w.log.on_checkpoint(Ok(()), self.now);
                }
            },
            Order::Refuse { .. } | Order::Stop => unreachable!("handled where it was drained"),
        }
    }

    /// The steps of a segment's beginning; `true`: it has begun.
    fn begin(
        &mut self,
        p: &mut Pending,
        step: u32,
        Begin { name, header, bytes, spare }: Begin,
    ) -> Result<bool, Failed> {
        match (step, spare.map(spare_name)) {
            (0, None) => p.file = self.disk.create(FIRST, vec![0; bytes as usize]),
            (0, Some(spare)) => {
                if !self.disk.rename(&spare, FIRST) {
                    return Err(Failed::Io);
                }
                p.file = self.disk.open(FIRST, 0);
                let used = Header::parse(&header).expect("a header of this version").recycled;
                assert!(used || self.disk.bytes(FIRST).iter().all(|b| *b == 0), "a file that was used, called new");
                if self.rng.one_in(2) && used {
                    let blocks = self.disk.recycled(bytes as usize, &mut self.rng);
                    self.disk.put(FIRST, 0, &blocks);
                }
            }
            (1, _) => self.disk.write(p.file, HEADER_ID, 0, header),
            (2, _) => self.disk.done(p.file, HEADER_ID),
            (3, _) => self.disk.sync(p.file, &[HEADER_ID], &mut self.rng),
            (4, _) if !self.disk.rename(FIRST, &name) => return Err(Failed::Io),
            (4, _) => {}
            _ => self.disk.sync_names(),
        }
        Ok(step == 5)
    }

    /// A segment goes only if all its seqs were released, and what was released the store has.
    fn check_retired(&self, name: &str) {
        let segments = self.disk.segments();
        let next = segments.iter().find(|n| n.as_str() > name).and_then(|n| seq_of_name(n)).expect("its successor");
        assert!(next <= self.released, "{name} was let go, and seqs up to {} are needed", self.released);
        // Either checkpoint may be lost after that, and the other must not expect what is gone.
        for name in Checkpoint::NAMES {
            let said = self.disk.platter(name).and_then(|block| Checkpoint::parse(block).ok());
            assert!(said.is_none_or(|c| c.first_kept >= next) || self.disk.lies, "{name} expects what is let go");
        }
    }

    fn begun(&mut self, w: &mut Writer, file: usize) {
        w.file = file;
        w.log.on_segment(Ok(()), self.now);
        if let Some((name, len)) = w.before.take() {
            self.disk.truncate(&name, len);
        }
    }

    fn acknowledge(&mut self, w: &mut Writer, batch: &Batch) {
        for (seq, record) in batch.iter().map(Result::unwrap) {
            let twice = w.acked.insert(seq, mark(&record)).is_some() || self.acked.contains_key(&seq);
            assert!(!twice, "seq {seq} was acknowledged twice");
            self.fence(seq, &record);
        }
    }
}
