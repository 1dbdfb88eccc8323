//! The origin's side: reads the store at one moment, and sends it to whoever asked, as fast as that one takes it.

use super::super::node::Adopted;
use super::super::now_us;
use super::super::secure::Socket;
use super::super::sqlite::Snapshot;
use super::{Command, Lent, Party, READY_WAIT, Running, SILENT_MAX, Way};
use crate::apply::Unseeded;
use crate::link::{Ask, Frame, SeedAsk, put};
use crate::seed::{Head, Packer, refusal};
use crate::store::State;
use bytes::{Bytes, BytesMut};
use shardmap::map::Map;
use shardmap::{MapEpoch, Zone};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// How soon an origin that is not ready looks again.
const LOOK: Duration = Duration::from_millis(50);

/// Answers one SEED, to the end of its connection. Blocks: on a thread of its own.
pub fn lend(party: &Party, adopted: Adopted, seed: &SeedAsk) {
    let (ask, stream, peer) = (&seed.ask, seed.ask.stream, seed.asker);
    let mut lending = Lending { party, ask, socket: Socket::adopted(adopted.socket, adopted.tls) };
    let outcome = match lending.begin(peer) {
        Ok(running) => {
            tracing::warn!("stream {stream}: zone {peer} asks for a snapshot, to be seeded");
            let sent = lending.run(&running, peer);
            // It is not known yet whether the peer has stored it: the link will tell.
            let sent = sent.map(|(seq, rows)| format!("lent: {rows} rows, up to seq {seq}"));
            running.end(&sent);
            sent
        }
        Err(why) => Err(why),
    };
    match outcome {
        Ok(text) => tracing::warn!("stream {stream}: {text}"),
        Err(why) => {
            tracing::error!("stream {stream}: no snapshot is lent: {why}");
            let _ = lending.send(&Frame::Part(refusal(&why))); // who is gone need not hear it
        }
    }
}

struct Lending<'a> {
    party: &'a Party,
    ask: &'a Ask,
    socket: Socket,
}

/// Segments stay for the peer; however this thread ends, they do not stay for ever.
struct Holding<'a> {
    party: &'a Party,
    stream: u32,
    peer: Zone,
    sent: bool,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let Holding { stream, peer, sent, .. } = *self;
        self.party.tell(Command::Unhold { stream, peer, sent });
    }
}

/// A snapshot that may be lent.
struct Ready {
    snapshot: Snapshot,
    state: State,
    map_epoch: MapEpoch,
    lent: Lent,
}

impl Lending<'_> {
    /// Is it this zone's own log that is asked for, by a zone that is known?
    fn begin(&mut self, asker: Zone) -> Result<Running, String> {
        let (o, a) = (&self.party.options, self.ask);
        let s = self.socket.tcp();
        let io = |e: std::io::Error| e.to_string();
        s.set_nonblocking(false).and_then(|()| s.set_write_timeout(Some(SILENT_MAX))).map_err(io)?;
        s.set_read_timeout(Some(SILENT_MAX)).and_then(|()| s.set_nodelay(true)).map_err(io)?;
        let own = (o.cluster.as_bytes(), o.zone, o.zone, o.streams);
        if (&a.cluster[..], a.origin, a.peer, a.streams) != own || a.stream >= o.streams {
            return Err(
                "the asker is of another cluster, or asks for another zone's log, or has another number of streams"
                    .into(),
            );
        }
        if !o.peers.iter().any(|p| p.zone == asker) {
            return Err(format!("zone {asker} is not among this node's [zones]"));
        }
        self.party.seeds.begin(Way::Lent, asker, a.stream)
    }

    /// Sends everything; returns up to which seq, and how many rows.
    fn run(&mut self, running: &Running, peer: Zone) -> Result<(u64, u64), String> {
        let ready = self.ready(peer)?;
        let mut holding = Holding { party: self.party, stream: self.ask.stream, peer, sent: false };
        let sent = self.send_all(running, ready);
        holding.sent = sent.is_ok();
        if holding.sent {
            self.await_end();
        }
        sent
    }

    /// Waits until the store has what the peer has, and nothing stands in the way; bounded.
    fn ready(&self, peer: Zone) -> Result<Ready, String> {
        let began = Instant::now();
        loop {
            match self.try_ready(peer) {
                Err(_) if began.elapsed() < READY_WAIT => std::thread::sleep(LOOK),
                other => return other,
            }
        }
    }

    fn try_ready(&self, peer: Zone) -> Result<Ready, String> {
        let (own, stream) = (self.party.options.zone, self.ask.stream);
        let path = self.party.options.data_dir.join("store").join(format!("{stream}.db"));
        let snapshot = Snapshot::begin(&path).map_err(|e| e.to_string())?;
        let state = snapshot.state().map_err(|e| e.to_string())?;
        let (applied, least) = (state.applied.get(own).unwrap_or(0), self.ask.seq);
        if applied < least || applied == 0 {
            return Err(format!("the origin has applied its own log up to seq {applied}, the peer has seq {least}"));
        }
        let (map_epoch, bytes) = state.map.clone().ok_or("the origin's store has no map")?;
        let map = Map::decode(&bytes).map_err(|e| format!("the map in the origin's store: {e}"))?;
        if let Some(shard) = map.unsettled().next() {
            return Err(Unseeded::Unsettled(shard).to_string());
        }
        let scan = state.scans.get(&own).copied();
        let lent = self.party.ask(|done| Command::Hold { stream, peer, seq: applied, scan, done })?;
        if lent.seq < least {
            self.party.tell(Command::Unhold { stream, peer, sent: false });
            return Err(format!("the origin's snapshot would end with seq {}, the peer has seq {least}", lent.seq));
        }
        Ok(Ready { snapshot, state, map_epoch, lent })
    }

    fn send_all(&mut self, running: &Running, ready: Ready) -> Result<(u64, u64), String> {
        let Ready { snapshot, state, map_epoch, lent: Lent { log_uuid, term, seq, chain } } = ready;
        let own = self.party.options.zone;
        let unseen = state.scans.get(&own).copied();
        let mut packer = Packer::new(&Head { log_uuid, seq, chain, term, map_epoch, unseen });
        let (mut rows, mut bytes, mut failed) = (0, 0, None);
        let mut ship = |part: Option<Bytes>, rows: u64| {
            let (Some(part), None) = (part, &failed) else { return failed.is_none() };
            bytes += part.len() as u64;
            let sent = running.progress("lending", rows, bytes).and_then(|()| self.send(&Frame::Part(part)));
            failed = sent.err();
            failed.is_none()
        };
        let read = snapshot.rows(&mut |table, key, row| {
            rows += 1;
            ship(packer.row(table, key, row), rows)
        });
        let read = read.and_then(|()| snapshot.ledger(&mut |entry| ship(packer.entry(entry), rows)));
        read.map_err(|e| e.to_string())?;
        // Of other zones' FENCEs the peer knows what it has applied itself: they say that all before them is there.
        for ((_, shard), fence) in state.fences.iter().filter(|((zone, _), _)| *zone == own) {
            ship(packer.fence(*shard, fence), rows);
        }
        for part in packer.finish() {
            if !ship(Some(part), rows) {
                break;
            }
        }
        match failed {
            Some(why) => Err(why),
            None => Ok((seq, rows)),
        }
    }

    fn send(&mut self, frame: &Frame) -> Result<(), String> {
        let mut out = BytesMut::new();
        put(&mut out, frame);
        self.socket.write_all(&out).map_err(|e| format!("the peer takes nothing more: {e}"))
    }

    /// Ends when the peer closes, falls silent, or the node stops: it stores what it has got meanwhile.
    fn await_end(&mut self) {
        let mut part = [0; 4096];
        let began = now_us();
        loop {
            match self.socket.read(&mut part) {
                Ok(0) => break,
                Ok(_) if !self.party.seeds.is_stopping() => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        tracing::info!("stream {}: the peer took {} ms to store it", self.ask.stream, (now_us() - began) / 1000);
    }
}
