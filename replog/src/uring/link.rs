//! Drives links: a sender for each stream and peer zone, which connects, and a receiver for each connection that came in.

use super::core::{Core, Link, Mirror, Stream, shipped};
use super::node::{Adopted, Peer, Told};
use super::now_us;
use super::signal::Signal;
use super::stream::{self, StreamLog};
use crate::Batch;
use crate::link::{Order, Place, Receiver, Sender};
use bytes::{Bytes, BytesMut};
use futures_lite::future::or;
use futures_lite::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use glommio::net::TcpStream;
use glommio::timer::sleep;
use shardmap::{MapEpoch, Zone};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::Duration;

/// How much is read from a connection at a time.
const READ_BYTES: usize = 256 << 10;
/// Received bytes that may wait for the machine; the connection is not read from while there are more.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Pause before the first new attempt to connect, doubled after each that failed.
const RECONNECT: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// How much of the log is read for one DATA.
const SHIP_BYTES: usize = 1 << 20;

/// A connection whose bytes a task of its own reads.
struct Connection {
    inbox: RefCell<VecDeque<Bytes>>,
    inbox_bytes: Cell<usize>,
    changed: Signal,
    ended: Cell<bool>,
    write: RefCell<Option<WriteHalf<TcpStream>>>,
}

impl Connection {
    fn new(socket: TcpStream) -> Rc<Connection> {
        let _ = socket.set_nodelay(true); // slower without, not wrong
        let (read, write) = split(socket);
        let connection = Rc::new(Connection {
            inbox: RefCell::default(),
            inbox_bytes: Cell::new(0),
            changed: Signal::default(),
            ended: Cell::new(false),
            write: RefCell::new(Some(write)),
        });
        glommio::spawn_local(reader(connection.clone(), read)).detach();
        connection
    }

    fn put(&self, bytes: Bytes) {
        self.inbox_bytes.set(self.inbox_bytes.get() + bytes.len());
        self.inbox.borrow_mut().push_back(bytes);
        self.changed.notify();
    }

    fn take(&self) -> Option<Bytes> {
        let bytes = self.inbox.borrow_mut().pop_front()?;
        self.inbox_bytes.set(self.inbox_bytes.get() - bytes.len());
        self.changed.notify();
        Some(bytes)
    }

    async fn send(&self, bytes: &[u8]) {
        // Taken out for the time of the write: no borrow lives over an await.
        let Some(mut write) = self.write.take() else { return };
        if write.write_all(bytes).await.is_err() {
            self.end();
        }
        self.write.replace(Some(write));
    }

    fn end(&self) {
        self.ended.set(true);
        self.changed.notify();
    }

    /// Closes the socket, which also ends the reader.
    async fn close(&self) {
        self.end();
        let write = self.write.take();
        if let Some(mut write) = write {
            let _ = write.close().await; // the peer may have closed it first
        }
    }

    /// Ends when there are bytes, or when the connection ended.
    async fn something(&self) {
        self.changed.wait(|| (self.ended.get() || !self.inbox.borrow().is_empty()).then_some(())).await;
    }
}

async fn reader(connection: Rc<Connection>, mut read: ReadHalf<TcpStream>) {
    let mut part = vec![0; READ_BYTES];
    while !connection.ended.get() {
        let room = || (connection.ended.get() || connection.inbox_bytes.get() < INBOX_BYTES_MAX).then_some(());
        connection.changed.wait(room).await;
        match read.read(&mut part).await {
            Ok(0) | Err(_) => break,
            Ok(n) => connection.put(Bytes::copy_from_slice(&part[..n])),
        }
    }
    connection.end();
}

/// Ships `stream` to `peer` for ever, or until the link stops for an operator.
pub(super) async fn send(core: Rc<Core>, stream: Rc<Stream>, peer: Peer) {
    let log = shipped(&stream.log);
    let (epoch, map) = core.map_bytes();
    let mut sender = Sender::new(place(&core, &stream, core.options.zone, peer.zone), log, epoch, map);
    let mut pause = RECONNECT;
    loop {
        note(&stream, peer.zone, &sender, "connecting");
        if let Ok(socket) = TcpStream::connect(peer.link).await {
            let connection = Connection::new(socket);
            ship(&core, &stream, &peer, &mut sender, &connection).await;
            connection.close().await;
            if sender.acked() > 0 {
                pause = RECONNECT;
            }
            sender.on_disconnect();
        }
        if let Some(stop) = sender.stopped() {
            tracing::error!("stream {}: the link to zone {} stops: {stop}", stream.number, peer.name);
            return note(&stream, peer.zone, &sender, &stop.to_string());
        }
        sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

/// One connection of a sender, from HELLO to its end.
async fn ship(core: &Rc<Core>, stream: &Rc<Stream>, peer: &Peer, sender: &mut Sender, connection: &Rc<Connection>) {
    sender.on_connect(now_us());
    let mut sent_map = core.map.borrow().epoch();
    loop {
        while let Some(bytes) = connection.take() {
            sender.on_bytes(&bytes, now_us());
        }
        if core.map.borrow().epoch() > sent_map {
            let (epoch, map) = core.map_bytes();
            sent_map = epoch;
            sender.on_map(epoch, map, now_us());
        }
        let log = shipped(&stream.log);
        sender.on_durable(log.durable, log.chain, log.hlc);
        sender.on_kept(log.first_kept);
        let mut out = BytesMut::new();
        while let Some(order) = sender.next_order(now_us()) {
            match order {
                Order::Send(bytes) => out.extend_from_slice(&bytes),
                Order::Read(seq) => match stream.log.read_from(seq, SHIP_BYTES).await {
                    Ok(batches) => batches.into_iter().for_each(|b| sender.on_batch(b, now_us())),
                    Err(why) => return core.tell(Told::Fault(format!("stream {}: {why}", stream.number))),
                },
                Order::TakeMap(_, map) => core.tell(Told::Map(map)),
                Order::Close => connection.end(),
                Order::Append(_) => unreachable!("a sender has no mirror"),
            }
        }
        if !out.is_empty() {
            connection.send(&out).await;
        }
        note(stream, peer.zone, sender, if sender.live().is_some() { "live" } else { "connecting" });
        if connection.ended.get() {
            return;
        }
        let map = core.map_changed.wait(|| (core.map.borrow().epoch() > sent_map).then_some(()));
        let events = or(or(connection.something(), beyond(&stream.log, log.durable)), map);
        or(events, until(sender.deadline())).await;
    }
}

/// Receives what a connection brings into the mirror of its origin.
pub(super) async fn receive(core: Rc<Core>, adopted: Adopted) {
    let Some(stream) = core.streams.iter().find(|s| s.number == adopted.stream).cloned() else { return };
    let origin = adopted.origin;
    let Some(mirror) = stream.mirrors.get(&origin) else {
        return tracing::warn!("a link from zone {origin}, which is not among this node's [zones]; closed");
    };
    // SAFETY: the descriptor was just given up by its only owner, and this stream becomes its only owner.
    let socket = unsafe { TcpStream::from_raw_fd(adopted.socket.into_raw_fd()) };
    let connection = Connection::new(socket);
    connection.put(adopted.read.into());
    let generation = stream.next_generation(origin);
    let receiver = stream.receiver(origin, || {
        let (epoch, map) = core.map_bytes();
        let applied = stream.applied.borrow().get(origin).unwrap_or(0);
        let held = mirror.mirrored();
        Receiver::new(place(&core, &stream, origin, core.options.zone), held, applied, epoch, map)
    });
    receiver.borrow_mut().on_connect(now_us());
    let link = Incoming {
        core: &core,
        stream: &stream,
        origin,
        mirror,
        generation,
        receiver: &receiver,
        connection: &connection,
    };
    link.run().await;
    connection.close().await;
    if let Some(stop) = receiver.borrow().stopped() {
        tracing::error!("stream {}: the link from zone {origin} stops: {stop}", stream.number);
    }
}

/// One connection of a receiver.
struct Incoming<'a> {
    core: &'a Rc<Core>,
    stream: &'a Rc<Stream>,
    origin: Zone,
    mirror: &'a Mirror,
    /// A newer connection for the same log ends this one.
    generation: u64,
    receiver: &'a Rc<RefCell<Receiver>>,
    connection: &'a Rc<Connection>,
}

impl Incoming<'_> {
    async fn run(&self) {
        let mut map_epoch = MapEpoch(0);
        loop {
            if self.stream.generation(self.origin) != self.generation {
                return;
            }
            map_epoch = self.take_in(map_epoch);
            let mut out = BytesMut::new();
            loop {
                let order = self.receiver.borrow_mut().next_order(now_us());
                let Some(order) = order else { break };
                match order {
                    Order::Send(bytes) => out.extend_from_slice(&bytes),
                    Order::Append(batch) => {
                        if let Err(why) = self.append(batch).await {
                            tracing::error!("mirror of zone {}: {why}; closing the link", self.origin);
                            self.stream.forget_receiver(self.origin);
                            return;
                        }
                    }
                    Order::TakeMap(_, map) => self.core.tell(Told::Map(map)),
                    Order::Close => self.connection.end(),
                    Order::Read(_) => unreachable!("a receiver has no log to read"),
                }
            }
            if !out.is_empty() {
                self.connection.send(&out).await;
            }
            if self.connection.ended.get() {
                return;
            }
            self.wait(map_epoch).await;
        }
    }

    /// Everything that happened since the last time.
    fn take_in(&self, known: MapEpoch) -> MapEpoch {
        let mut receiver = self.receiver.borrow_mut();
        while let Some(bytes) = self.connection.take() {
            receiver.on_bytes(&bytes, now_us());
        }
        receiver.on_durable(self.mirror.durable_seq());
        receiver.on_applied(self.stream.applied.borrow().get(self.origin).unwrap_or(0));
        let epoch = self.core.map.borrow().epoch();
        if epoch > known {
            let (epoch, map) = self.core.map_bytes();
            receiver.on_map(epoch, map, now_us());
            receiver.on_frozen(self.core.is_lost(self.stream.number, self.origin));
        }
        epoch
    }

    /// Hands the batch to the mirror; that it is durable shows in the mirror's position.
    async fn append(&self, batch: Batch) -> Result<(), stream::Error> {
        let log_uuid = self.receiver.borrow().mirror().log_uuid.expect("an Append follows a HELLO, which names it");
        self.mirror.of(log_uuid).await?.begin_append_batch(batch).map(drop)
    }

    async fn wait(&self, map_epoch: MapEpoch) {
        let mirror = self.mirror;
        let (durable, applied) = (mirror.durable_seq(), self.stream.applied.borrow().get(self.origin));
        let deadline = self.receiver.borrow().deadline();
        let map = self.core.map_changed.wait(|| (self.core.map.borrow().epoch() > map_epoch).then_some(()));
        let more = || (self.stream.applied.borrow().get(self.origin) > applied).then_some(());
        let store = or(mirror.durable_beyond(durable), self.stream.applied_changed.wait(more));
        or(or(self.connection.something(), store), or(map, until(deadline))).await;
    }
}

fn place(core: &Core, stream: &Stream, origin: Zone, peer: Zone) -> Place {
    let cluster = Bytes::from(core.options.cluster.clone());
    Place { cluster, origin, peer, stream: stream.number, streams: core.options.streams }
}

/// What the status shows, and what may end read-only.
fn note(stream: &Stream, peer: Zone, sender: &Sender, state: &str) {
    let link = Link {
        state: state.to_owned(),
        durable_seq: sender.acked(),
        applied_seq: sender.applied(),
        map_epoch: sender.live(),
    };
    stream.links.borrow_mut().insert(peer, link);
    if stream.gate.borrow().is_read_only() {
        let links = stream.links.borrow();
        let live: Vec<_> = links.iter().filter_map(|(zone, l)| l.map_epoch.map(|epoch| (*zone, epoch))).collect();
        stream.gate.borrow_mut().on_links(&live);
    }
}

/// Ends when more than `seq` is durable; never, once the log has failed: its writers hear why.
async fn beyond(log: &StreamLog, seq: u64) {
    if log.wait_durable(seq + 1).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Ends at `deadline_us`; never, without one.
async fn until(deadline_us: Option<u64>) {
    match deadline_us {
        Some(at) => sleep(Duration::from_micros(at.saturating_sub(now_us()).max(200))).await,
        None => std::future::pending().await,
    }
}
