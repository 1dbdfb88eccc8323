//! Drives links: a sender for each stream and peer zone, which connects, and a receiver for each connection that came in.

use super::connection::Connection;
use super::core::{Core, Link, Stream, shipped};
use super::line::LineFigures;
use super::mirror::{FAULTS_TOLD_US, Mirror};
use super::node::{Adopted, Peer, Told};
use super::now_us;
use super::secure::Session;
use super::stream::{self, StreamLog};
use crate::Batch;
use crate::link::{Codec, Log, Order, Pack, Packer, Place, Receiver, Sender, Why};
use bytes::{Bytes, BytesMut};
use futures_lite::future::or;
use glommio::net::TcpStream;
use glommio::task::JoinHandle;
use glommio::timer::sleep;
use shardmap::{MapEpoch, Zone};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Pause before the first new attempt to connect, doubled after each that failed.
const RECONNECT: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// A peer that does not answer is asked again after this long; the system's own patience is minutes.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A peer that has a gap is asked again after this long, or once it has been lent a snapshot: an operator ends it there.
const GAP_RETRY: Duration = Duration::from_secs(5);
/// How soon an operator's word about a link that stopped is noticed.
const CLEARED_LOOK: Duration = Duration::from_millis(200);
/// How much of the log is read at a time.
const SHIP_BYTES: usize = 1 << 20;
/// With less than this at hand the next is read, while this is sent.
const AHEAD_BYTES: usize = SHIP_BYTES / 2;
/// So little is packed at once: some 50 us.
const PACK_HERE_BYTES: usize = 16 << 10;
/// How much is given to the connection at a time.
const SEND_BYTES: usize = 256 << 10;

/// Ships `stream` to `peer` for ever, or until the link stops for an operator.
pub(super) async fn send(core: Rc<Core>, stream: Rc<Stream>, peer: Peer) {
    let log = shipped(&stream.log);
    let (epoch, map) = core.map_bytes();
    let sender = Sender::new(place(&core, &stream, core.options.zone, peer.zone), log, epoch, map);
    let controls = core.options.line.controls.clone();
    let sender = sender.with_bucket(controls.bucket(peer.zone));
    let mut sender = sender.with_compress(core.options.line.compress);
    let (mut pause, mut damaged): (_, Option<String>) = (RECONNECT, None);
    let mut figures = LineFigures::default();
    while !core.stopping.get() {
        figures.is_paused = controls.is_paused(peer.zone, stream.number);
        note(&core, &stream, peer.zone, &sender, damaged.as_deref().unwrap_or("connecting"), &figures);
        let connected = connect(&core, &peer).await;
        if let Err(why) = &connected {
            figures.failures += 1;
            tell(&stream, &peer, &mut damaged, why);
        }
        if let Ok(connection) = connected {
            let mut link = Outgoing {
                core: &core,
                stream: &stream,
                peer: &peer,
                sender: &mut sender,
                connection,
                packer: Packer::default(),
                ahead: Ahead::default(),
                waits: damaged.as_deref().unwrap_or("connecting"),
                damaged: None,
            };
            figures.connects += 1;
            let was_live = link.run(&figures).await;
            link.connection.close().await;
            let found = link.damaged.take().or(link.connection.fault());
            // It is told, but changes no pause: a line that was cut is to be tried as soon as it may be there again.
            let found_out = sender.fault().map(str::to_owned);
            figures.failures += u64::from(found.is_some() || found_out.is_some());
            pause = match &found {
                Some(_) => RECONNECT_MAX,
                None if was_live => RECONNECT,
                None => pause,
            };
            // Nothing is skipped: it is tried again until it is mended, and writers are served all the same.
            match found.as_ref().or(found_out.as_ref()) {
                Some(why) => tell(&stream, &peer, &mut damaged, why),
                None => damaged = None,
            }
            sender.on_disconnect();
        }
        if let Some(stop) = sender.stopped() {
            let text = stop.to_string();
            if damaged.as_ref() != Some(&text) {
                tracing::error!("stream {}: the link to zone {} stops: {stop}", stream.number, peer.name);
            }
            note(&core, &stream, peer.zone, &sender, &text, &figures);
            let (lent, cleared) = (stream.seeded.get(), controls.cleared(peer.zone, stream.number));
            let word = async {
                while !core.stopping.get() && controls.cleared(peer.zone, stream.number) == cleared {
                    sleep(CLEARED_LOOK).await;
                }
            };
            if stop.why == Why::Gap {
                let seeded = stream.applied_changed.wait(|| (stream.seeded.get() > lent).then_some(()));
                or(or(seeded, sleep(GAP_RETRY)), word).await;
            } else {
                word.await; // nothing but an operator's word ends it
                tracing::warn!(
                    "stream {}: the link to zone {} is cleared: it is asked again",
                    stream.number,
                    peer.name
                );
            }
            sender.try_again();
            damaged = Some(text);
            continue;
        }
        sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

/// A connection to the peer, behind its TLS handshake if there is one. The error says why there is none.
async fn connect(core: &Core, peer: &Peer) -> Result<Rc<Connection>, String> {
    let line = &core.options.line;
    let socket = TcpStream::connect_timeout(peer.link, CONNECT_MAX).await;
    let mut socket = socket.map_err(|e| format!("{} cannot be reached: {e}", peer.link))?;
    let tls = match &line.towards {
        Some(towards) => Some(Session::begin(towards, peer.zone, peer.link, &mut socket).await?),
        None => None,
    };
    Ok(Connection::new(socket, line, tls))
}

/// Said once, shown all the time.
fn tell(stream: &Stream, peer: &Peer, waits: &mut Option<String>, why: &str) {
    if waits.as_deref() != Some(why) {
        tracing::error!("stream {}: the link to zone {} waits: {why}", stream.number, peer.name);
        *waits = Some(why.to_owned());
    }
}

/// One connection of a sender.
struct Outgoing<'a> {
    core: &'a Rc<Core>,
    stream: &'a Rc<Stream>,
    peer: &'a Peer,
    sender: &'a mut Sender,
    connection: Rc<Connection>,
    packer: Packer,
    /// Batches that were read with the one asked for, or meanwhile: the next ones.
    ahead: Ahead,
    /// What is shown until the peer answers.
    waits: &'a str,
    /// What is to be sent is damaged here.
    damaged: Option<String>,
}

impl Outgoing<'_> {
    /// From HELLO to the end; did the peer answer?
    async fn run(&mut self, figures: &LineFigures) -> bool {
        // HELLO says what there is now: a peer that was seeded meanwhile may have more than an earlier connection knew of.
        self.on_log(shipped(&self.stream.log));
        self.sender.on_connect(now_us());
        let (mut sent_map, mut was_live) = (self.core.epoch(), false);
        while !self.core.stopping.get() {
            sent_map = self.take_in(sent_map);
            let durable = self.stream.log.durable_seq();
            let whole = match self.carry_out().await {
                Ok(whole) => whole,
                // It was let go meanwhile: the next HELLO says what is kept.
                Err(stream::Error::NotKept { .. }) => break,
                Err(why @ stream::Error::Damaged { .. }) => {
                    self.damaged = Some(format!(
                        "{why}; the scrub mends a sealed segment with another zone's copy while the node runs, a restart any"
                    ));
                    break;
                }
                Err(why) => {
                    self.core.watch(Err(format!("stream {}: {why}", self.stream.number)));
                    break;
                }
            };
            let live = self.sender.live().is_some();
            was_live |= live;
            let is_paused = self.core.options.line.controls.is_paused(self.peer.zone, self.stream.number);
            let state = match (live, is_paused) {
                (true, false) => "live",
                (true, true) => "paused",
                (false, _) => self.waits,
            };
            let congestion = self.connection.congestion();
            note(
                self.core,
                self.stream,
                self.peer.zone,
                self.sender,
                state,
                &LineFigures { is_paused, congestion, ..figures.clone() },
            );
            if self.connection.has_ended() {
                break;
            }
            if !self.connection.has_room() {
                // Acknowledgements are heard meanwhile; who neither takes bytes nor says anything ends the connection.
                or(self.connection.room(), self.connection.something()).await;
            } else if whole {
                self.wait(durable, sent_map).await;
            }
        }
        was_live
    }

    /// Everything that happened since the last time.
    fn take_in(&mut self, sent_map: MapEpoch) -> MapEpoch {
        // First what is durable here: a WELCOME may name batches that reached the peer by way of a third zone.
        self.on_log(shipped(&self.stream.log));
        while let Some(bytes) = self.connection.take() {
            self.sender.on_bytes(&bytes, now_us());
        }
        let epoch = self.core.epoch();
        if epoch > sent_map {
            let (epoch, map) = self.core.map_bytes();
            self.sender.on_map(epoch, map, now_us());
        }
        let controls = &self.core.options.line.controls;
        self.sender.on_pause(controls.is_paused(self.peer.zone, self.stream.number));
        self.sender.on_line(self.connection.is_busy(), now_us());
        self.sender.on_everywhere(self.stream.everywhere.get());
        epoch
    }

    fn on_log(&mut self, log: Log) {
        self.sender.on_durable(log.durable, log.chain, log.hlc);
        self.sender.on_kept(log.first_kept);
    }

    /// Does what the machine orders, up to a send's worth, if there is room for it. Is that all?
    async fn carry_out(&mut self) -> Result<bool, stream::Error> {
        let (mut out, mut closes) = (BytesMut::new(), false);
        while self.connection.has_room()
            && out.len() < SEND_BYTES
            && let Some(order) = self.sender.next_order(now_us())
        {
            match order {
                Order::Send(bytes) => out.extend_from_slice(&bytes),
                Order::Read(seq) => {
                    if let Some(batch) = self.ahead.batch_at(&self.stream.log, seq).await? {
                        self.sender.on_batch(batch, now_us());
                    }
                }
                Order::Pack(batches, codec) => {
                    let (packer, pack, cost_us) = packed(std::mem::take(&mut self.packer), batches, codec).await;
                    self.packer = packer;
                    self.sender.on_packed(pack, cost_us, now_us());
                }
                Order::TakeMap(_, map) => self.core.tell(Told::Map(map)),
                Order::Close => closes = true,
                Order::Append(_) => unreachable!("a sender has no mirror"),
            }
        }
        let whole = out.len() < SEND_BYTES;
        self.connection.send(out.freeze());
        if closes {
            self.connection.end();
        }
        Ok(whole)
    }

    async fn wait(&self, durable: u64, sent_map: MapEpoch) {
        let events = or(self.connection.something(), beyond(&self.stream.log, durable));
        let news = or(self.core.map_beyond(sent_map), until(self.sender.deadline()));
        or(events, news).await;
    }
}

/// Makes a pack, and says what it cost. Much is packed by another thread: commits of this core's streams do not wait for it.
async fn packed(mut packer: Packer, batches: Vec<Batch>, codec: Codec) -> (Packer, Pack, u64) {
    let bytes: usize = batches.iter().map(|b| b.bytes.len()).sum();
    let work = move || {
        let began = Instant::now();
        let pack = packer.pack(&batches, codec);
        (packer, pack, began.elapsed().as_micros() as u64)
    };
    if codec == Codec::None || bytes < PACK_HERE_BYTES {
        work()
    } else {
        glommio::executor().spawn_blocking(work).await
    }
}

/// The next batches of a log: the disk is read while what was read before is sent.
#[derive(Default)]
struct Ahead {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// A read that is under way; it goes on to its end, whoever waits for it.
    reading: Option<JoinHandle<Result<Vec<Batch>, stream::Error>>>,
}

impl Ahead {
    /// The batch that holds `seq`; `None`: it is not durable yet.
    async fn batch_at(&mut self, log: &StreamLog, seq: u64) -> Result<Option<Batch>, stream::Error> {
        if !self.begins_with(seq)
            && let Some(reading) = self.reading.take()
        {
            self.take(reading.await.unwrap_or_else(|| Ok(vec![]))?);
        }
        if !self.begins_with(seq) {
            (self.batches, self.bytes) = (VecDeque::new(), 0);
            self.take(log.read_from(seq, SHIP_BYTES).await?);
        }
        let batch = self.batches.pop_front();
        self.bytes -= batch.as_ref().map_or(0, |b| b.bytes.len());
        self.read_on(log);
        Ok(batch)
    }

    /// Passes over what lies before `seq`.
    fn begins_with(&mut self, seq: u64) -> bool {
        while self.batches.front().is_some_and(|b| b.last_seq() < seq) {
            self.bytes -= self.batches.pop_front().map_or(0, |b| b.bytes.len());
        }
        self.batches.front().is_some_and(|b| b.first_seq <= seq)
    }

    fn take(&mut self, read: Vec<Batch>) {
        self.bytes += read.iter().map(|b| b.bytes.len()).sum::<usize>();
        self.batches.extend(read);
    }

    fn read_on(&mut self, log: &StreamLog) {
        let Some(next) = self.batches.back().map(|b| b.last_seq() + 1) else { return };
        if self.reading.is_none() && self.bytes < AHEAD_BYTES && next <= log.durable_seq() {
            let log = log.clone();
            let read = async move { log.read_from(next, SHIP_BYTES).await };
            self.reading = Some(glommio::spawn_local(read).detach());
        }
    }
}

/// Receives what a connection brings into the mirror of its origin.
pub(super) async fn receive(core: Rc<Core>, adopted: Adopted) {
    let (origin, number) = (adopted.origin, adopted.stream);
    let Some(stream) = core.streams.iter().find(|s| s.number == number).cloned() else {
        let streams = core.options.streams;
        return tracing::warn!("a link for stream {number} of zone {origin}, streams here: {streams}; closed");
    };
    let Some(mirror) = stream.mirrors.get(&origin) else {
        return tracing::warn!("a link from zone {origin}, which is not among this node's [zones]; closed");
    };
    if mirror.is_held_off() {
        return; // it is tried again until the snapshot has its place
    }
    // SAFETY: the descriptor was just given up by its only owner, and this stream becomes its only owner.
    let socket = unsafe { TcpStream::from_raw_fd(adopted.socket.into_raw_fd()) };
    let connection = Connection::new(socket, &core.options.line, adopted.tls.map(|tls| Session::of(*tls)));
    connection.put(adopted.read.into());
    let number = mirror.connect();
    let breaks = mirror.breaks();
    let receiver = receiver(&core, &stream, mirror, origin).await;
    let link = Incoming { core: &core, stream: &stream, origin, mirror, number, breaks, receiver, connection };
    link.run().await;
    link.connection.close().await;
}

/// The receiver of `origin`'s log, which outlives its connections.
pub(super) async fn receiver(
    core: &Rc<Core>,
    stream: &Rc<Stream>,
    mirror: &Mirror,
    origin: Zone,
) -> Rc<RefCell<Receiver>> {
    let new = |held| {
        let (epoch, map) = core.map_bytes();
        let applied = stream.settled_seq(origin);
        let place = place(core, stream, origin, core.options.zone);
        let window = core.options.line.window_bytes;
        let mut receiver = Receiver::new(place, held, applied, epoch, map).with_window(window);
        receiver.on_frozen(core.is_lost(stream.number, origin));
        receiver
    };
    mirror.receiver(new).await
}

/// One connection of a receiver.
struct Incoming<'a> {
    core: &'a Rc<Core>,
    stream: &'a Rc<Stream>,
    origin: Zone,
    mirror: &'a Mirror,
    /// A newer connection for the same log ends this one.
    number: u64,
    /// So does a break of the mirror.
    breaks: u64,
    receiver: Rc<RefCell<Receiver>>,
    connection: Rc<Connection>,
}

impl Incoming<'_> {
    async fn run(&self) {
        if self.is_over() {
            return;
        }
        self.receiver.borrow_mut().on_connect(now_us());
        let mut map_epoch = MapEpoch(0);
        while !self.is_over() {
            // Nothing is awaited until every order is carried out: what was accepted is in the mirror's queue then.
            map_epoch = self.take_in(map_epoch);
            self.carry_out();
            // A peer that takes no answers is not read from for ever.
            self.connection.room().await;
            if self.connection.has_ended() {
                return self.say_why();
            }
            self.wait(map_epoch).await;
        }
    }

    /// Must this connection leave the receiver alone?
    fn is_over(&self) -> bool {
        let newest = self.mirror.connection() == self.number && self.mirror.breaks() == self.breaks;
        !newest || self.core.stopping.get()
    }

    /// Everything that happened since the last time.
    fn take_in(&self, known: MapEpoch) -> MapEpoch {
        let mut receiver = self.receiver.borrow_mut();
        let epoch = self.core.epoch();
        if epoch > known {
            let (epoch, map) = self.core.map_bytes();
            receiver.on_map(epoch, map, now_us());
        }
        while let Some(bytes) = self.connection.take() {
            receiver.on_bytes(&bytes, now_us());
        }
        self.mirror.on_everywhere(receiver.everywhere());
        if receiver.live().is_some() {
            self.mirror.on_stopped(None);
        }
        receiver.on_durable(self.mirror.durable_seq());
        receiver.on_applied(self.stream.settled_seq(self.origin));
        epoch
    }

    /// Does what the machine orders.
    fn carry_out(&self) {
        let (mut out, mut closes, mut receiver) = (BytesMut::new(), false, self.receiver.borrow_mut());
        while let Some(order) = receiver.next_order(now_us()) {
            match order {
                Order::Send(bytes) => out.extend_from_slice(&bytes),
                Order::Append(batch) => {
                    let log_uuid = receiver.mirror().log_uuid.expect("an Append follows a HELLO, which names it");
                    self.mirror.take(log_uuid, batch);
                }
                Order::TakeMap(_, map) => self.core.tell(Told::Map(map)),
                Order::Close => closes = true,
                Order::Read(_) | Order::Pack(..) => unreachable!("a receiver has no log to ship"),
            }
        }
        self.connection.send(out.freeze());
        if closes {
            self.connection.end();
        }
    }

    async fn wait(&self, map_epoch: MapEpoch) {
        let (durable, applied) = (self.mirror.durable_seq(), self.stream.settled_seq(self.origin));
        let deadline = self.receiver.borrow().deadline();
        let more = || (self.stream.settled_seq(self.origin) > applied).then_some(());
        let store = or(self.mirror.durable_beyond(durable), self.stream.applied_changed.wait(more));
        let mirror = or(store, self.mirror.breaks_beyond(self.breaks));
        let news = or(self.core.map_beyond(map_epoch), until(deadline));
        or(or(self.connection.something(), mirror), news).await;
    }

    /// The link may not go on: the other side was told. The next connection is judged anew: that skips nothing.
    fn say_why(&self) {
        let receiver = self.receiver.borrow();
        if let Some(stop) = receiver.stopped().or(receiver.refused()) {
            // A gap is tried again and again; said once, shown all the time.
            if self.mirror.stopped() != Some(stop) {
                tracing::error!("stream {}: the link from zone {} stops: {stop}", self.stream.number, self.origin);
            }
            self.mirror.on_stopped(Some(stop));
            self.mirror.forget_receiver();
        } else if let Some(why) = receiver.fault() {
            // The origin connects again at once; a line that garbles much must not fill a disk with messages.
            if let Some(count) = self.mirror.on_fault(now_us()) {
                let (number, origin) = (self.stream.number, self.origin);
                tracing::warn!(
                    "stream {number}: a connection from zone {origin} was ended: {why}; {count} since the start, told at most every {} s",
                    FAULTS_TOLD_US / 1_000_000
                );
            }
        }
    }
}

fn place(core: &Core, stream: &Stream, origin: Zone, peer: Zone) -> Place {
    let cluster = Bytes::from(core.options.cluster.clone());
    Place { cluster, origin, peer, stream: stream.number, streams: core.options.streams }
}

/// What the status shows, and what may end read-only.
fn note(core: &Core, stream: &Stream, peer: Zone, sender: &Sender, state: &str, figures: &LineFigures) {
    let link = Link {
        state: state.to_owned(),
        durable_seq: sender.acked(),
        applied_seq: sender.applied(),
        map_epoch: sender.live(),
        line: figures.of(sender),
    };
    stream.links.borrow_mut().insert(peer, link);
    stream.links_changed.notify();
    if stream.gate.borrow().is_read_only() {
        let links = stream.links.borrow();
        let live: Vec<_> = links.iter().filter_map(|(zone, l)| l.map_epoch.map(|epoch| (*zone, epoch))).collect();
        stream.gate.borrow_mut().on_links(&live);
        if !stream.gate.borrow().is_read_only() {
            core.stands_change();
        }
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
