//! Asks another zone's node for its copy of a log, with plain blocking calls: before a log is opened, or to mend one.

use super::dir::random;
use super::repair::{Repaired, repair};
use super::secure::{Socket, Towards};
use crate::batch::Batch;
use crate::link::{Ask, Frame, Held, put, take};
use crate::open::Floor;
use crate::repair::{Identity, Source};
use bytes::{Bytes, BytesMut};
use shardmap::Zone;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Before a log is opened: who is not there, or does not answer, within this vouches for nothing. It may be starting too, and wait for
/// this node.
const SURVEY_MAX: Duration = Duration::from_secs(1);
/// A repair is given up when a lender falls silent for this long.
pub(super) const REPAIR_MAX: Duration = Duration::from_secs(10);

/// Which copy of which log.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The cluster's name.
    pub cluster: String,
    /// The zone whose log it is.
    pub origin: Zone,
    /// The zone that is asked, and where its log listens.
    pub peer: Zone,
    /// Its log's address.
    pub link: SocketAddr,
    /// The stream.
    pub stream: u32,
    /// The number of streams.
    pub streams: u32,
    /// How TLS is spoken to it; `None`: it is not.
    pub towards: Option<Arc<Towards>>,
}

/// A connection to a node that has a copy.
pub struct Lender {
    copy: Copy,
    socket: Socket,
    inbox: BytesMut,
    /// What came with the last answer and was not wanted yet.
    ahead: VecDeque<Batch>,
}

impl Lender {
    /// Connects; each step may take `patience`.
    pub fn connect(copy: Copy, patience: Duration) -> io::Result<Lender> {
        let socket = Socket::connect(copy.towards.as_deref(), copy.peer, copy.link, patience)?;
        Ok(Lender { copy, socket, inbox: BytesMut::new(), ahead: VecDeque::new() })
    }

    /// What it has of the log; an incarnation of 0: nothing.
    pub fn held(&mut self) -> io::Result<Held> {
        self.ask(0).map(|(held, _)| held)
    }

    /// What it has of the log, and batches from `seq` on.
    pub(super) fn from(&mut self, seq: u64) -> io::Result<(Held, Vec<Batch>)> {
        self.ask(seq).map(|(held, batches)| (held, batches.into()))
    }

    fn ask(&mut self, seq: u64) -> io::Result<(Held, VecDeque<Batch>)> {
        let Copy { cluster, origin, peer, stream, streams, .. } = &self.copy;
        let cluster = Bytes::copy_from_slice(cluster.as_bytes());
        let ask = Ask { cluster, origin: *origin, peer: *peer, stream: *stream, streams: *streams, seq };
        self.send(&Frame::Ask(ask))?;
        let held = match self.frame()? {
            Frame::Held(held) => held,
            Frame::Stop(stop) => return Err(io::Error::other(stop.to_string())),
            _ => return Err(io::Error::other("what came is no answer to an ASK")),
        };
        let mut batches = VecDeque::new();
        for _ in 0..held.batches {
            let Frame::Data { batch, .. } = self.frame()? else {
                return Err(io::Error::other("fewer batches came than the answer named"));
            };
            batches.push_back(Batch::parse(batch).map_err(|fault| io::Error::other(fault.to_string()))?);
        }
        Ok((held, batches))
    }

    /// Sends one frame.
    pub(super) fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let mut out = BytesMut::new();
        put(&mut out, frame);
        self.socket.write_all(&out)
    }

    /// The next frame that comes.
    pub(super) fn frame(&mut self) -> io::Result<Frame> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            if let Some(frame) = take(&mut self.inbox).map_err(|e| io::Error::other(e.to_string()))? {
                return Ok(frame);
            }
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.inbox.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Source for Lender {
    fn batch_at(&mut self, seq: u64) -> io::Result<Option<Batch>> {
        while self.ahead.front().is_some_and(|b| b.last_seq() < seq) {
            self.ahead.pop_front();
        }
        if self.ahead.front().is_none_or(|b| b.first_seq > seq) {
            self.ahead = self.ask(seq)?.1;
        }
        let (origin, stream) = (self.copy.origin, self.copy.stream);
        let fits = |b: &Batch| (b.first_seq..=b.last_seq()).contains(&seq) && (b.zone, b.stream) == (origin, stream);
        Ok(self.ahead.front().filter(|b| fits(b)).cloned())
    }

    fn identity(&mut self) -> io::Result<Option<Identity>> {
        let held = self.held()?;
        let (zone, stream) = (self.copy.origin, self.copy.stream);
        Ok((held.log_uuid != 0).then_some(Identity { zone, stream, log_uuid: held.log_uuid }))
    }
}

/// Mends the log in `dir` with what `copies` can give, the first that can give all of it; else says of each why it cannot, and has changed
/// nothing.
///
/// Precondition: no other process writes the directory.
pub fn mend(dir: &Path, floor: Floor, copies: &[Copy]) -> Result<(), String> {
    let mut reasons = Vec::new();
    for copy in copies {
        let whose = format!("zone {} at {}", copy.peer, copy.link);
        match mend_from(dir, floor, copy.clone()) {
            Ok(done) => {
                for Repaired { name, kept } in done {
                    tracing::warn!(
                        "{}: {name} was mended by {whose}; the damaged one is kept: {kept:?}",
                        dir.display()
                    );
                }
                return Ok(());
            }
            Err(why) => reasons.push(format!("{whose} cannot mend it: {why}")),
        }
    }
    Err(reasons.join("; "))
}

fn mend_from(dir: &Path, floor: Floor, copy: Copy) -> Result<Vec<Repaired>, String> {
    let mut lender = Lender::connect(copy, REPAIR_MAX).map_err(|e| e.to_string())?;
    let salt = random().map_err(|e| e.to_string())? as u64;
    let (_, done) = repair(dir, &mut lender, floor, salt).map_err(|e| e.to_string())?;
    if done.is_empty() { Err("it finds nothing to mend".into()) } else { Ok(done) }
}

/// What the peers that could be reached have of this zone's streams.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    held: BTreeMap<u32, Vec<(Zone, Held)>>,
}

impl Survey {
    /// Asks every one of `peers` at the same time, for each of its streams. One that is not there, or falls silent,
    /// costs `SURVEY_MAX`.
    pub fn of(peers: &[Copy]) -> Survey {
        let asked: Vec<_> = peers.iter().cloned().map(|copy| std::thread::spawn(move || survey(copy))).collect();
        let mut all = Survey::default();
        for thread in asked {
            for (stream, peer, held) in thread.join().unwrap_or_default() {
                all.held.entry(stream).or_default().push((peer, held));
            }
        }
        all
    }

    /// The highest durable seq that any peer has of the incarnation `log_uuid` of a stream; 0: nobody has any, or could be asked.
    pub fn durable(&self, stream: u32, log_uuid: u128) -> u64 {
        let held = self.held.get(&stream).into_iter().flatten();
        held.filter(|(_, h)| h.log_uuid == log_uuid).map(|(_, h)| h.durable).max().unwrap_or(0)
    }
}

/// What one peer says of each stream, until it says nothing more.
fn survey(copy: Copy) -> Vec<(u32, Zone, Held)> {
    let (peer, link, streams) = (copy.peer, copy.link, copy.streams);
    let mut all = Vec::new();
    for stream in 0..streams {
        // Each on a connection of its own: a stream's core answers for that stream.
        let asked = Lender::connect(Copy { stream, ..copy.clone() }, SURVEY_MAX).and_then(|mut l| l.held());
        match asked {
            Ok(held) => all.push((stream, peer, held)),
            Err(e) => {
                tracing::info!("zone {peer} at {link} cannot be asked what it has of stream {stream}: {e}");
                return all;
            }
        }
    }
    all
}
