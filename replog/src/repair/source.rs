//! Where the bytes for a repair come from: another directory, or whatever else can give a batch by its seq.

use super::Identity;
use crate::batch::{Batch, Fault};
use crate::limits::BLOCK;
use crate::open::{Storage, Walk};
use crate::segment::{FIRST_POS, Header, seq_of_name};
use std::io;

/// Another copy of the same stream.
pub trait Source {
    /// The batch that holds `seq`, verified; `None`: it is not there, or damaged there too.
    fn batch_at(&mut self, seq: u64) -> io::Result<Option<Batch>>;
    /// Whose log it is; `None`: it does not know.
    fn identity(&mut self) -> io::Result<Option<Identity>>;
}

/// A directory with segments of the same stream: a mirror, or the origin of one.
pub struct Directory<S> {
    files: S,
    names: Option<Vec<(u64, String)>>,
    at: Option<Cursor>,
}

struct Cursor {
    name: String,
    walk: Walk,
    pos: u64,
    /// Batches before this seq are behind.
    seq: u64,
}

impl<S: Storage> Directory<S> {
    /// Reads `files`; it may be damaged itself.
    pub fn new(files: S) -> Directory<S> {
        Directory { files, names: None, at: None }
    }

    /// The seq of the last batch that can be read in its newest segment that can be.
    pub fn last_seq(&mut self) -> io::Result<u64> {
        for (first, name) in self.names()?.to_vec().into_iter().rev() {
            let Ok(header) = Header::parse(&self.files.read(&name, 0, BLOCK)?) else { continue };
            let mut walk = Walk::new(&name, header.salt, crate::limits::SEGMENT_BYTES_MAX);
            let (mut pos, mut last) = (FIRST_POS, first.saturating_sub(1));
            while let Ok((batch, _)) = walk.at(&mut self.files, pos)? {
                pos += batch.disk_len() as u64;
                last = batch.last_seq();
            }
            return Ok(last);
        }
        Ok(0)
    }

    fn names(&mut self) -> io::Result<&[(u64, String)]> {
        if self.names.is_none() {
            let listed = self.files.list()?.into_iter();
            let mut names: Vec<_> = listed.filter_map(|(name, _)| Some((seq_of_name(&name)?, name))).collect();
            names.sort();
            self.names = Some(names);
        }
        Ok(self.names.as_deref().unwrap_or_default())
    }

    /// A cursor at or before `seq`, in the segment that must hold it.
    fn cursor(&mut self, seq: u64) -> io::Result<Option<Cursor>> {
        let names = self.names()?;
        let Some(at) = names.partition_point(|(first, _)| *first <= seq).checked_sub(1) else { return Ok(None) };
        let (first, name) = names[at].clone();
        if let Some(cursor) = self.at.take().filter(|c| c.name == name && c.seq <= seq) {
            return Ok(Some(cursor));
        }
        let header = Header::parse(&self.files.read(&name, 0, BLOCK)?).ok();
        Ok(header.filter(|h| h.first_seq == first).map(|h| {
            let walk = Walk::new(&name, h.salt, crate::limits::SEGMENT_BYTES_MAX);
            Cursor { name, walk, pos: FIRST_POS, seq: first }
        }))
    }
}

impl<S: Storage> Source for Directory<S> {
    fn batch_at(&mut self, seq: u64) -> io::Result<Option<Batch>> {
        let Some(mut cursor) = self.cursor(seq)? else { return Ok(None) };
        loop {
            match cursor.walk.at(&mut self.files, cursor.pos)? {
                Ok((batch, _)) if batch.last_seq() < seq => {
                    cursor.pos += batch.disk_len() as u64;
                    cursor.seq = batch.last_seq() + 1;
                }
                Ok((batch, _)) => {
                    let found = batch.first_seq <= seq;
                    self.at = Some(cursor);
                    return Ok(found.then_some(batch));
                }
                // Damaged here too, or the end: what is behind may still be wanted.
                Err(Fault::Length { .. }) => return Ok(None),
                Err(_) => cursor.pos += BLOCK as u64,
            }
        }
    }

    fn identity(&mut self) -> io::Result<Option<Identity>> {
        for (_, name) in self.names()?.to_vec() {
            if let Ok(h) = Header::parse(&self.files.read(&name, 0, BLOCK)?) {
                return Ok(Some(Identity { zone: h.zone, stream: h.stream, log_uuid: h.log_uuid }));
            }
        }
        Ok(None)
    }
}
