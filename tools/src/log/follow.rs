//! Follows a log that is being written: batches as they come, over the ends of segments, and over a writer's death and return.

use super::files::Files;
use super::place::Place;
use super::scan::Item;
use replog::batch::Batch;
use replog::limits::BLOCK;
use replog::open::{Storage, Walk};
use replog::segment::{FIRST_POS, Header, seq_of_name};
use std::io;

/// A place in a log from which it goes on.
pub struct Follow {
    place: Place,
    segment: Option<(String, Header)>,
    pos: u64,
    next_seq: u64,
    done: bool,
}

impl Follow {
    /// At the beginning; `saw` brings it to where reading has come to.
    pub fn new(place: &Place) -> Follow {
        Follow { place: place.clone(), segment: None, pos: FIRST_POS, next_seq: 1, done: false }
    }

    /// The log.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// This was read.
    pub fn saw(&mut self, item: &Item) {
        match item {
            Item::Segment(header) => self.enter(header.file_name(), header.clone()),
            Item::Batch { batch, pos } => self.took(batch, *pos),
            Item::Damage { to, .. } => self.pos = *to,
            Item::Tail { .. } | Item::Break { .. } | Item::LeftOut { .. } | Item::Retired { .. } => {}
        }
    }

    /// Gives `each` what has come; it says whether it wants more.
    pub fn poll(&mut self, each: &mut dyn FnMut(&Batch) -> io::Result<bool>) -> io::Result<()> {
        // A file that is used again under its old name has another inode: it is opened anew each time.
        let mut files = Files::new(&self.place.dir);
        while !self.done {
            self.read_on(&mut files, each)?;
            let Some((name, header)) = self.later(&mut files)? else { return Ok(()) };
            if header.first_seq > self.next_seq {
                // What was written between the two looks; after it the file is finished.
                self.read_on(&mut files, each)?;
            }
            if header.first_seq > self.next_seq && !self.done && self.segment.is_some() {
                let (log, from, to) = (self.place.name(), self.next_seq, header.first_seq - 1);
                eprintln!("ezctl log: {log}: seq {from} to {to} were let go before they could be read here");
            }
            self.enter(name, header);
        }
        Ok(())
    }

    /// Is nothing more wanted of it?
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Nothing more is wanted of it.
    pub fn finish(&mut self) {
        self.done = true;
    }

    fn read_on(&mut self, files: &mut Files, each: &mut dyn FnMut(&Batch) -> io::Result<bool>) -> io::Result<()> {
        let Some((name, header)) = self.segment.clone() else { return Ok(()) };
        let mut walk = Walk::new(&name, header.salt, u64::MAX);
        while !self.done {
            match walk.at(files, self.pos) {
                // A block that was prepared by another use of the file fails its place; one of another batch its seq.
                Ok(Ok((batch, _))) if batch.first_seq >= self.next_seq => {
                    self.done = !each(&batch)?;
                    self.took(&batch, self.pos);
                }
                Ok(Ok(_) | Err(_)) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// A later segment, if there is one: its header says that the one before is finished.
    fn later(&mut self, files: &mut Files) -> io::Result<Option<(String, Header)>> {
        let held = self.segment.as_ref().map(|(_, h)| (h.number, h.salt));
        for (name, _) in files.segments()? {
            if seq_of_name(&name).is_none_or(|first| first < self.next_seq) || !self.place.wants(&name) {
                continue;
            }
            // A file that is just being renamed or made shows itself whole at the next look.
            let Ok(block) = files.read(&name, 0, BLOCK) else { continue };
            let Ok(header) = Header::parse(&block) else { continue };
            if seq_of_name(&name) != Some(header.first_seq) {
                continue; // it was used again since it was opened
            }
            // A segment without a batch is replaced by one of its own number.
            let later = held
                .is_none_or(|(number, salt)| header.number > number || header.number == number && header.salt != salt);
            if later {
                return Ok(Some((name, header)));
            }
        }
        Ok(None)
    }

    fn enter(&mut self, name: String, header: Header) {
        self.next_seq = self.next_seq.max(header.first_seq);
        self.segment = Some((name, header));
        self.pos = FIRST_POS;
    }

    fn took(&mut self, batch: &Batch, pos: u64) {
        self.pos = pos + batch.disk_len() as u64;
        self.next_seq = batch.last_seq() + 1;
    }
}
