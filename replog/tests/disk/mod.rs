//! A simulated disk: what was not flushed is kept, lost or torn by a crash, each write by itself.

use bytes::Bytes;
use replog::open::Storage;
use std::collections::BTreeMap;
use std::io;

/// splitmix64.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1))
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// Files as the platter has them, and the writes into the current segment that no flush has covered.
#[derive(Clone, Default)]
pub struct Disk {
    files: BTreeMap<String, Vec<u8>>,
    current: String,
    unflushed: Vec<(u64, String, u64, Bytes)>,
}

impl Disk {
    /// A new segment, durable with its name; what is under way goes on into the old file.
    pub fn begin(&mut self, name: &str, header: &[u8], bytes: u64) {
        let mut file = vec![0; bytes as usize];
        file[..header.len()].copy_from_slice(header);
        self.unflushed.retain(|(_, of, _, _)| of != name); // the old file of that name is nobody's now
        self.files.insert(name.to_owned(), file);
        self.current = name.to_owned();
    }

    pub fn write(&mut self, id: u64, pos: u64, bytes: Bytes) {
        self.unflushed.push((id, self.current.clone(), pos, bytes));
    }

    /// Flushes these writes.
    pub fn sync(&mut self, ids: &[u64]) {
        let (done, open) = std::mem::take(&mut self.unflushed).into_iter().partition(|(id, ..)| ids.contains(id));
        self.unflushed = open;
        for (_, name, pos, bytes) in done {
            self.put(&name, pos, &bytes);
        }
    }

    /// The kernel drops what it could not write: some of it may be there, none of it is dirty any more.
    pub fn failed_sync(&mut self, rng: &mut Rng) {
        self.crash(rng);
    }

    /// Each unflushed write is kept, lost, or kept in some of its sectors.
    pub fn crash(&mut self, rng: &mut Rng) {
        for (_, name, pos, bytes) in std::mem::take(&mut self.unflushed) {
            let fate = rng.below(3);
            for (at, sector) in bytes.chunks(512).enumerate() {
                if fate == 0 || fate == 1 && rng.below(2) == 0 {
                    self.put(&name, pos + 512 * at as u64, sector);
                }
            }
        }
    }

    /// What an open does first: what it is about to read must be durable.
    pub fn flush_all(&mut self) {
        let ids: Vec<u64> = self.unflushed.iter().map(|(id, ..)| *id).collect();
        self.sync(&ids);
    }

    pub fn replace(&mut self, name: &str, bytes: &[u8]) {
        self.files.insert(name.to_owned(), bytes.to_vec());
    }
    pub fn remove(&mut self, name: &str) {
        self.files.remove(name);
    }
    pub fn put(&mut self, name: &str, pos: u64, bytes: &[u8]) {
        let file = self.files.get_mut(name).expect("a file that was begun");
        let (from, to) = (pos as usize, (pos as usize + bytes.len()).min(file.len()));
        file[from..to].copy_from_slice(&bytes[..to - from]);
    }
    pub fn zero(&mut self, name: &str, pos: u64, len: u64) {
        self.put(name, pos, &vec![0; len as usize]);
    }
    pub fn flip(&mut self, name: &str, bit: u64) {
        self.files.get_mut(name).expect("a file that was begun")[bit as usize / 8] ^= 1 << (bit % 8);
    }
    pub fn len(&self, name: &str) -> u64 {
        self.files[name].len() as u64
    }
    pub fn current(&self) -> String {
        self.current.clone()
    }
    pub fn segments(&self) -> Vec<String> {
        self.files.keys().filter(|n| n.ends_with(".rlog")).cloned().collect()
    }
}

impl Storage for Disk {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.files.iter().map(|(name, file)| (name.clone(), file.len() as u64)).collect())
    }
    fn read(&mut self, name: &str, pos: u64, len: usize) -> io::Result<Bytes> {
        let file = &self.files[name];
        let from = (pos as usize).min(file.len());
        Ok(Bytes::copy_from_slice(&file[from..(from + len).min(file.len())]))
    }
}
