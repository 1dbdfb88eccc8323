//! A simulated disk and file system, as bad as real ones.
//!
//! ```text
//! write: in the queue -> done: in the device's cache, seen by reads -> flushed: on the platter
//! ```
//!
//! A power cut keeps, loses or tears (512-byte sectors) each write by itself that no flush had covered, and keeps the changes of
//! names up to any one of them that no flush of the directory had covered, in their order, as a journalling file system does. A
//! killed process loses nothing that was done; what was in the queue lands, lands in part, lands later, or never. A failed flush
//! leaves some of its writes on the platter and all of them seen and clean: no later flush writes them; nor can a later flush of that
//! segment be relied on. A lying disk reports each flush as done and does nothing.

mod driver;
pub mod rng;
pub mod world;

use bytes::Bytes;
use replog::open::Storage;
use rng::Rng;
use std::collections::BTreeMap;
use std::io;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// A write that no flush has covered.
#[derive(Clone)]
struct Write {
    id: u64,
    pos: usize,
    bytes: Bytes,
    done: bool,
}

#[derive(Clone, Default)]
struct File {
    seen: Vec<u8>,
    platter: Vec<u8>,
    open: Vec<Write>,
    /// It was cut to this length, which a power cut may undo.
    cut: Option<usize>,
    /// A write or a flush of it has failed: a later flush is reported as done, and keeps what it covers by chance.
    failed: bool,
}

type Names = BTreeMap<String, usize>;

/// Files by number, and their names.
#[derive(Clone, Default)]
pub struct Disk {
    files: Vec<File>,
    names: Names,
    durable: Names,
    /// The names after each change that no flush of the directory has covered.
    journal: Vec<Names>,
    /// Reports flushes as done and does nothing.
    pub lies: bool,
}

impl File {
    /// What was written is called clean, and is on the platter by chance.
    fn wash(&mut self, rng: &mut Rng) {
        for write in self.take(|w| w.done) {
            torn(&mut self.platter, &write, rng);
        }
    }

    fn take(&mut self, done: impl Fn(&Write) -> bool) -> Vec<Write> {
        let (taken, open) = std::mem::take(&mut self.open).into_iter().partition(|w| done(w));
        self.open = open;
        taken
    }
}

/// Copies what fits.
fn copy(file: &mut [u8], pos: usize, bytes: &[u8]) {
    let (from, to) = (pos.min(file.len()), (pos + bytes.len()).min(file.len()));
    file[from..to].copy_from_slice(&bytes[..to - from]);
}

/// All of a write, nothing, or some of its sectors.
fn torn(file: &mut [u8], write: &Write, rng: &mut Rng) {
    let fate = rng.below(3);
    for (at, sector) in write.bytes.chunks(SECTOR).enumerate() {
        if fate == 0 || fate == 1 && rng.one_in(2) {
            copy(file, write.pos + at * SECTOR, sector);
        }
    }
}

impl Disk {
    // ---- what a process does ------------------------------------------------------------------------------------------

    /// A new file, written and flushed; its name is not durable yet.
    pub fn create(&mut self, name: &str, content: Vec<u8>) -> usize {
        self.files.push(File { seen: content.clone(), platter: content, ..File::default() });
        self.change(|names, number| {
            names.insert(name.to_owned(), number);
        });
        self.files.len() - 1
    }

    /// The file of this name, made if there is none.
    pub fn open(&mut self, name: &str, len: usize) -> usize {
        self.names.get(name).copied().unwrap_or_else(|| self.create(name, vec![0; len]))
    }

    /// What a file holds that was used before: blocks of any earlier file, at any distance from where they were.
    pub fn recycled(&self, len: usize, rng: &mut Rng) -> Vec<u8> {
        let mut content = vec![0; len];
        if self.files.is_empty() {
            return content;
        }
        let from = &self.files[rng.below(self.files.len() as u64) as usize].seen;
        let blocks = (from.len() / BLOCK).max(1);
        let shift = if rng.one_in(2) { 0 } else { rng.below(blocks as u64) as usize };
        for (at, block) in content.chunks_mut(BLOCK).enumerate() {
            let source = (at + shift) % blocks * BLOCK;
            block.copy_from_slice(from.get(source..source + BLOCK).unwrap_or(&[0; BLOCK]));
        }
        content
    }

    pub fn write(&mut self, file: usize, id: u64, pos: u64, bytes: Bytes) {
        self.files[file].open.push(Write { id, pos: pos as usize, bytes, done: false });
    }

    /// A write has reached the device's cache.
    pub fn done(&mut self, file: usize, id: u64) {
        let File { seen, open, .. } = &mut self.files[file];
        // The newest: a killed process may have left one of the same name in the queue.
        if let Some(write) = open.iter_mut().rev().find(|w| w.id == id && !w.done) {
            write.done = true;
            copy(seen, write.pos, &write.bytes);
        }
    }

    /// A write has failed, or was short: some of it is there.
    pub fn failed_write(&mut self, file: usize, id: u64, rng: &mut Rng) {
        let file = &mut self.files[file];
        for write in file.take(|w| w.id == id) {
            let kept = rng.below(write.bytes.len() as u64 / SECTOR as u64 + 1) as usize * SECTOR;
            copy(&mut file.seen, write.pos, &write.bytes[..kept]);
            file.open.push(Write { bytes: write.bytes.slice(..kept), done: true, ..write });
        }
    }

    /// The writes that a flush covers which is submitted now: those that are done.
    pub fn covered(&self, file: usize) -> Vec<u64> {
        self.files[file].open.iter().filter(|w| w.done).map(|w| w.id).collect()
    }

    /// A flush of these writes is done.
    pub fn sync(&mut self, file: usize, ids: &[u64], rng: &mut Rng) {
        if !self.lies {
            let file = &mut self.files[file];
            if file.failed {
                return file.wash(rng);
            }
            for write in file.take(|w| w.done && ids.contains(&w.id)) {
                copy(&mut file.platter, write.pos, &write.bytes);
            }
        }
    }

    /// A flush has failed: its writes are seen, and clean, and on the platter by chance.
    pub fn failed_sync(&mut self, file: usize, rng: &mut Rng) {
        self.files[file].wash(rng);
    }

    /// Nobody is to touch this file any more: a flush that succeeds after one that failed has lost data.
    pub fn fail(&mut self, file: usize) {
        self.files[file].failed = true;
    }

    /// Is what reads see below `end` on the platter?
    pub fn is_safe(&self, name: &str, end: u64) -> bool {
        let file = &self.files[self.names[name]];
        let below = |bytes: &[u8]| bytes.len().min(end as usize);
        self.lies || file.seen[..below(&file.seen)] == file.platter[..below(&file.platter)]
    }

    pub fn platter(&self, name: &str) -> Option<&[u8]> {
        self.names.get(name).map(|file| &self.files[*file].platter[..])
    }

    /// `false`: there is no file of that name.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let there = self.names.contains_key(from);
        self.change(|names, _| {
            names.remove(from).map(|file| names.insert(to.to_owned(), file));
        });
        there
    }

    pub fn remove(&mut self, name: &str) {
        self.change(|names, _| {
            names.remove(name);
        });
    }

    pub fn sync_names(&mut self) {
        if !self.lies {
            self.durable = self.names.clone();
            self.journal.clear();
        }
    }

    pub fn truncate(&mut self, name: &str, len: u64) {
        let file = &mut self.files[self.names[name]];
        if file.seen.len() as u64 > len {
            file.seen.truncate(len as usize);
            file.cut = Some(len as usize);
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Names, usize)) {
        change(&mut self.names, self.files.len().wrapping_sub(1));
        self.journal.push(self.names.clone());
    }

    // ---- what befalls it ----------------------------------------------------------------------------------------------

    /// The process is gone; its writes in the queue may land yet, see `land`.
    pub fn kill(&mut self, rng: &mut Rng) {
        for file in &mut self.files {
            for write in file.take(|w| !w.done) {
                for (at, sector) in write.bytes.chunks(SECTOR).enumerate().filter(|_| rng.one_in(2)) {
                    let (pos, bytes) = (write.pos + at * SECTOR, Bytes::copy_from_slice(sector));
                    copy(&mut file.seen, pos, sector);
                    file.open.push(Write { pos, bytes, done: true, id: write.id });
                }
                match rng.below(3) {
                    0 => {}
                    1 => file.open.push(write),
                    _ => {
                        copy(&mut file.seen, write.pos, &write.bytes);
                        file.open.push(Write { done: true, ..write });
                    }
                }
            }
        }
    }

    /// What a killed process left in the queue lands.
    pub fn land(&mut self) {
        for file in &mut self.files {
            for write in file.open.iter_mut().filter(|w| !w.done) {
                write.done = true;
                copy(&mut file.seen, write.pos, &write.bytes);
            }
        }
    }

    /// Everything that no flush has covered is at risk.
    pub fn cut_power(&mut self, rng: &mut Rng) {
        for file in &mut self.files {
            for write in file.take(|_| true) {
                torn(&mut file.platter, &write, rng);
            }
            if let Some(len) = file.cut.take()
                && rng.one_in(2)
            {
                file.platter.truncate(len);
            }
            file.seen.clone_from(&file.platter);
        }
        let kept = rng.below(self.journal.len() as u64 + 1) as usize;
        if kept > 0 {
            self.durable = self.journal.swap_remove(kept - 1);
        }
        self.journal.clear();
        self.names = self.durable.clone();
    }

    /// A bit of a file changes by itself.
    pub fn rot(&mut self, rng: &mut Rng) {
        let names = self.names();
        if let Some(name) = names.get(rng.below(names.len() as u64) as usize) {
            let bits = self.len(name) * 8;
            self.flip(name, rng.below(bits));
        }
    }

    // ---- for tests that change bytes ----------------------------------------------------------------------------------

    pub fn put(&mut self, name: &str, pos: u64, bytes: &[u8]) {
        let file = &mut self.files[self.names[name]];
        copy(&mut file.seen, pos as usize, bytes);
        copy(&mut file.platter, pos as usize, bytes);
    }
    pub fn zero(&mut self, name: &str, pos: u64, len: u64) {
        self.put(name, pos, &vec![0; len as usize]);
    }
    pub fn flip(&mut self, name: &str, bit: u64) {
        let byte = self.bytes(name)[bit as usize / 8] ^ 1 << (bit % 8);
        self.put(name, bit / 8, &[byte]);
    }
    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.files[self.names[name]].seen
    }
    pub fn len(&self, name: &str) -> u64 {
        self.bytes(name).len() as u64
    }
    pub fn name_of(&self, file: usize) -> String {
        self.names.iter().find(|(_, f)| **f == file).map_or(String::new(), |(name, _)| name.clone())
    }
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
    pub fn segments(&self) -> Vec<String> {
        self.names.keys().filter(|n| n.ends_with(".rlog")).cloned().collect()
    }
}

impl Storage for Disk {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.names.iter().map(|(name, file)| (name.clone(), self.files[*file].seen.len() as u64)).collect())
    }
    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let file = self.bytes(name);
        let from = (pos as usize).min(file.len());
        Ok(Bytes::copy_from_slice(&file[from..(from + len).min(file.len())]))
    }
}
