//! The log of a node: starts its cores and keepers, and is what control talks to.
//!
//! ```text
//! control ──Command──▶ core (glommio, pinned) ──Job──▶ keeper (thread: appliers, SQLite)
//!                        ▲ port: routers            links: other zones' cores
//! ```

use super::core::{Core, Link, Mirror, Stream};
use super::keeper::{Figures, Job, Keeper, Kept, Reported};
use super::signal::Signal;
use super::sqlite::Sqlite;
use super::stream::{self, Kind, StreamLog};
use super::{dir, link, now_ms, port};
use crate::apply::Applier;
use crate::gate::{Gate, Start};
use crate::open::Floor;
use crate::store::{Digests, Store};
use bytes::Bytes;
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_lite::StreamExt;
use glommio::{LocalExecutorBuilder, Placement};
use shardmap::map::Map;
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

/// How often a core looks for commands; also what ends a sleep that glommio should not have begun.
const TICK: Duration = Duration::from_millis(1);

/// What a node's log is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Links between different clusters are refused.
    pub cluster: String,
    /// This zone.
    pub zone: Zone,
    /// Below it lie `log/`, `mirror/` and `store/`.
    pub data_dir: PathBuf,
    /// The number of streams of every zone.
    pub streams: u32,
    /// The size of a segment.
    pub segment_bytes: u64,
    /// One log core is pinned to each.
    pub cores: Vec<usize>,
    /// The Unix socket of each log core.
    pub ports: Vec<PathBuf>,
    /// The other zones: what they are called and where their logs listen.
    pub peers: Vec<Peer>,
    /// Take writes without having reached the GZS or every other zone.
    pub start_alone: bool,
}

/// Another zone.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its number.
    pub zone: Zone,
    /// Its name in the map: mirrors are kept under it.
    pub name: String,
    /// Its log's address.
    pub link: SocketAddr,
}

/// What a node says to control, from any thread.
#[derive(Debug)]
pub enum Told {
    /// The log can no longer keep its promises: the process has to end.
    Fault(String),
    /// Another zone has sent this map: to be checked, stored, and handed to `on_map` if it is newer.
    Map(Bytes),
}

/// A log that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A thread or an executor could not be started.
    #[error("log core {core}: {why}")]
    Core {
        /// Which.
        core: usize,
        /// Why.
        why: String,
    },
    /// A store could not be opened.
    #[error("{path}: {why}")]
    Store {
        /// Its file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The data directory was created with another number of streams.
    #[error(
        "the data directory has {has} streams, the configuration says {asked}: the number is fixed when it is created"
    )]
    Streams {
        /// In the directory.
        has: u32,
        /// In the configuration.
        asked: u32,
    },
}

/// One stream's part of a status.
#[derive(Clone, Debug)]
pub struct StreamFigures {
    /// Its number.
    pub stream: u32,
    /// The incarnation of its writer.
    pub term: u64,
    /// The last seq that is durable here.
    pub durable_seq: u64,
    /// Applied positions.
    pub applied: Positions,
    /// Durable positions of other zones' logs.
    pub mirrored: Positions,
    /// Outgoing links.
    pub links: BTreeMap<Zone, Link>,
}

/// One core's part of a status.
#[derive(Clone, Debug)]
pub struct CoreFigures {
    /// The map it goes by.
    pub map_epoch: MapEpoch,
    /// Does any of its streams refuse writes because it restarted?
    pub read_only: bool,
    /// Its streams.
    pub streams: Vec<StreamFigures>,
    /// Of its stores.
    pub kept: Figures,
}

/// A connection of another zone's log: its first bytes were read to learn which stream it is for.
pub struct Adopted {
    /// The stream.
    pub stream: u32,
    /// The zone whose log it brings.
    pub origin: Zone,
    /// The connection.
    pub socket: TcpStream,
    /// What was read.
    pub read: Vec<u8>,
}

pub(super) enum Command {
    Map(Arc<Map>),
    Gzs(MapEpoch),
    Adopt(Adopted),
    Report { shards: Vec<Shard>, take_over: bool, done: oneshot::Sender<Vec<Reported>> },
    Figures(oneshot::Sender<CoreFigures>),
    Digests(oneshot::Sender<Vec<Digests>>),
    Stop(oneshot::Sender<()>),
}

/// The running log.
pub struct Node {
    cores: Vec<Sender<Command>>,
    streams: u32,
}

impl Node {
    /// Opens every stream and store, then serves.
    pub fn start(options: Options, map: Arc<Map>, tell: impl Fn(Told) + Clone + Send + 'static) -> Result<Node, Error> {
        check_streams(&options)?;
        let options = Arc::new(options);
        let (mut cores, mut ready) = (vec![], vec![]);
        for index in 0..options.cores.len() {
            let (commands, inbox) = channel();
            let (jobs, todo) = channel();
            let own = (0..options.streams).filter(|s| *s as usize % options.cores.len() == index);
            let kept = own.map(|stream| open_store(&options, stream, &map)).collect::<Result<Vec<_>, _>>()?;
            let begins = kept.iter().map(Begin::of).collect();
            let (started, wait) = channel();
            let why = |why: String| Error::Core { core: index, why };
            let (core_tell, keeper_tell) = (tell.clone(), tell.clone());
            spawn_keeper(index, Keeper::new(options.zone, kept), todo, keeper_tell).map_err(why)?;
            let boot = Boot { index, options: options.clone(), map: map.clone(), jobs, inbox, begins, started };
            // At the lowest latency glommio's queues lose wake-ups when the executor goes idle, so the default one is used.
            LocalExecutorBuilder::new(Placement::Fixed(options.cores[index]))
                .name(&format!("log-{index}"))
                .preempt_timer(Duration::from_millis(10))
                .io_memory(4 << 20)
                .spawn(move || async move {
                    if let Err(why) = boot.run(core_tell.clone()).await {
                        core_tell(Told::Fault(why));
                    }
                })
                .map_err(|e| why(format!("its executor cannot be started: {e}")))?;
            cores.push(commands);
            ready.push((index, wait));
        }
        for (core, wait) in ready {
            let outcome = wait.recv().unwrap_or_else(|_| Err("it ended while it opened its streams".into()));
            outcome.map_err(|why| Error::Core { core, why })?;
        }
        Ok(Node { cores, streams: options.streams })
    }

    /// A newer map, which is durable.
    pub fn on_map(&self, map: &Arc<Map>) {
        self.each(|| Command::Map(map.clone()));
    }

    /// The GZS has answered that `epoch` is its newest map.
    pub fn on_gzs(&self, epoch: MapEpoch) {
        self.each(|| Command::Gzs(epoch));
    }

    /// Hands a connection of another zone's log to the core that has its stream.
    pub fn adopt(&self, adopted: Adopted) {
        if adopted.stream < self.streams {
            let core = adopted.stream as usize % self.cores.len();
            let _ = self.cores[core].send(Command::Adopt(adopted)); // a core that is gone has reported its fault
        }
    }

    /// What this zone has of `shards`.
    pub async fn report(&self, shards: &[Shard], take_over: bool) -> Vec<Reported> {
        let ask = |done| Command::Report { shards: shards.to_vec(), take_over, done };
        self.all(ask).await.into_iter().flatten().collect()
    }

    /// Figures of every core.
    pub async fn figures(&self) -> Vec<CoreFigures> {
        self.all(Command::Figures).await
    }

    /// Digests of every stream.
    pub async fn digests(&self) -> Vec<Digests> {
        self.all(Command::Digests).await.into_iter().flatten().collect()
    }

    /// Ends every stream with a marker; nothing is accepted afterwards.
    pub async fn stop(&self) {
        self.all(Command::Stop).await;
    }

    fn each(&self, command: impl Fn() -> Command) {
        for core in &self.cores {
            let _ = core.send(command()); // a core that is gone has reported its fault
        }
    }

    async fn all<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut answers = vec![];
        for core in &self.cores {
            let (done, answer) = oneshot::channel();
            if core.send(command(done)).is_ok() {
                answers.push(answer);
            }
        }
        let mut all = vec![];
        for answer in answers {
            all.extend(answer.await.ok());
        }
        all
    }
}

/// What a stream's gate and feeders start from: taken out of the applier before the keeper gets it.
struct Begin {
    stream: u32,
    applied: Positions,
    own_fences: Vec<(Shard, shardmap::OwnerEpoch)>,
    fences_applied: Vec<(Zone, Shard, shardmap::OwnerEpoch)>,
    scans: BTreeMap<Zone, crate::store::Scan>,
}

impl Begin {
    fn of(kept: &Kept) -> Begin {
        Begin {
            stream: kept.stream,
            applied: kept.applier.positions().clone(),
            own_fences: kept.applier.own_fences().collect(),
            fences_applied: kept.applier.fences().collect(),
            scans: kept.applier.scans().collect(),
        }
    }
}

/// Everything that a core's executor starts with.
struct Boot {
    index: usize,
    options: Arc<Options>,
    map: Arc<Map>,
    jobs: Sender<Job>,
    inbox: Receiver<Command>,
    begins: Vec<Begin>,
    started: Sender<Result<(), String>>,
}

impl Boot {
    /// Opens the core's streams, says so, and serves until it is told to stop.
    async fn run(self, tell: impl Fn(Told) + 'static) -> Result<(), String> {
        let Boot { index, options, map, jobs, inbox, begins, started } = self;
        let mut streams = vec![];
        for begin in begins {
            match open_stream(&options, &map, begin).await {
                Ok(stream) => streams.push(Rc::new(stream)),
                Err(why) => {
                    let _ = started.send(Err(why)); // the caller reports it
                    return Ok(());
                }
            }
        }
        let core = Rc::new(Core {
            options: options.clone(),
            streams,
            map: RefCell::new(map),
            map_changed: Signal::default(),
            jobs,
            tell: Box::new(tell),
        });
        for stream in &core.streams {
            let due = stream.gate.borrow_mut().fences_due(&stream.fed.borrow().clone(), now_ms());
            if !due.is_empty() {
                stream.log.append(due).await.map_err(|e| format!("a FENCE cannot be appended: {e}"))?;
            }
        }
        let server = match port::bind(&options.ports[index]) {
            Ok(server) => server,
            Err(why) => {
                let _ = started.send(Err(why));
                return Ok(());
            }
        };
        let (faults, fault) = unbounded();
        let faults = Faults(faults);
        port::serve(core.clone(), server);
        for stream in &core.streams {
            let zones = core.options.peers.iter().map(|p| p.zone).chain([core.options.zone]);
            for zone in zones {
                let (fed, faults) = (core.clone().feed(stream.clone(), zone), faults.clone());
                glommio::spawn_local(async move { faults.watch(fed.await) }).detach();
            }
            for peer in &core.options.peers {
                glommio::spawn_local(link::send(core.clone(), stream.clone(), peer.clone())).detach();
            }
        }
        let _ = started.send(Ok(())); // nobody waits any more: then nobody will command either
        serve(core, inbox, faults, fault).await
    }
}

/// Where a core's tasks say that the log can no longer keep its promises.
#[derive(Clone)]
struct Faults(UnboundedSender<String>);

impl Faults {
    fn watch(&self, done: Result<(), String>) {
        if let Err(why) = done {
            let _ = self.0.unbounded_send(why); // the first one ended the core
        }
    }
}

/// Carries out commands until the one to stop, a fault, or the end of the node.
async fn serve(
    core: Rc<Core>,
    inbox: Receiver<Command>,
    faults: Faults,
    mut fault: UnboundedReceiver<String>,
) -> Result<(), String> {
    // Maps are taken in order, one at a time, by a task of its own: storing one waits for the keeper.
    let (maps, mut inorder) = unbounded::<Arc<Map>>();
    let taker = core.clone();
    glommio::spawn_local(async move {
        while let Some(map) = inorder.next().await {
            faults.watch(taker.on_map(map).await);
        }
    })
    .detach();
    loop {
        glommio::timer::sleep(TICK).await;
        if let Ok(why) = fault.try_recv() {
            return Err(why);
        }
        loop {
            match inbox.try_recv() {
                Ok(Command::Map(map)) => drop(maps.unbounded_send(map)),
                Ok(Command::Stop(done)) => {
                    for stream in &core.streams {
                        let mirrors = stream.mirrors.values().filter_map(Mirror::log);
                        for log in mirrors.chain([stream.log.clone()]) {
                            if let Err(e) = log.close().await {
                                tracing::warn!("stream {}: {e}", stream.number);
                            }
                        }
                    }
                    let _ = done.send(());
                    return Ok(());
                }
                Ok(other) => drop(glommio::spawn_local(carry_out(core.clone(), other)).detach()),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// What may take a while; answers go to whoever asked, who may be gone.
async fn carry_out(core: Rc<Core>, command: Command) {
    match command {
        Command::Gzs(epoch) => core.on_gzs(epoch),
        Command::Adopt(adopted) => link::receive(core, adopted).await,
        Command::Report { shards, take_over, done } => {
            let _ = done.send(core.report(&shards, take_over).await);
        }
        Command::Figures(done) => {
            if let Some(figures) = figures(&core).await {
                let _ = done.send(figures);
            }
        }
        Command::Digests(done) => {
            if let Some(digests) = core.ask(|done| Job::Digests { done }).await {
                let _ = done.send(digests);
            }
        }
        Command::Map(_) | Command::Stop(_) => {} // taken by `serve`, which keeps their order
    }
}

async fn figures(core: &Core) -> Option<CoreFigures> {
    let kept = core.ask(|done| Job::Figures { done }).await?;
    let streams = core.streams.iter().map(|s| StreamFigures {
        stream: s.number,
        term: s.term,
        durable_seq: s.log.durable_seq(),
        applied: s.applied.borrow().clone(),
        mirrored: s.mirrors.iter().map(|(zone, mirror)| (*zone, mirror.durable_seq())).collect(),
        links: s.links.borrow().clone(),
    });
    Some(CoreFigures {
        map_epoch: core.map.borrow().epoch(),
        read_only: core.streams.iter().any(|s| s.gate.borrow().is_read_only()),
        streams: streams.collect(),
        kept,
    })
}

fn spawn_keeper(
    index: usize,
    keeper: Keeper,
    todo: Receiver<Job>,
    tell: impl Fn(Told) + Send + 'static,
) -> Result<(), String> {
    let body = move || {
        if let Err(why) = keeper.run(&todo) {
            tell(Told::Fault(why));
        }
    };
    let thread = std::thread::Builder::new().name(format!("keeper-{index}")).spawn(body);
    thread.map(drop).map_err(|e| format!("its keeper cannot be started: {e}"))
}

/// One stream's store and applier, brought to `map` if it has an older one.
fn open_store(options: &Options, stream: u32, map: &Arc<Map>) -> Result<Kept, Error> {
    let path = options.data_dir.join("store").join(format!("{stream}.db"));
    let why = |e: String| Error::Store { path: path.clone(), why: e };
    std::fs::create_dir_all(options.data_dir.join("store")).map_err(|e| why(e.to_string()))?;
    let mut store = Sqlite::open(&path).map_err(|e| why(e.to_string()))?;
    let state = store.state().map_err(|e| why(e.to_string()))?;
    // The applier compares cuts with those of the map that it had: it has to begin with that one.
    let had = match &state.map {
        Some((_, bytes)) => Arc::new(Map::decode(bytes).map_err(|e| why(format!("its map: {e}")))?),
        None => map.clone(),
    };
    let mut applier = Applier::new(options.zone, stream, had, state);
    let changes = applier.on_map(map.clone(), Bytes::from(map.encode()));
    store.commit(&changes).map_err(|e| why(e.to_string()))?;
    Ok(Kept { stream, applier, store })
}

async fn open_stream(options: &Options, map: &Arc<Map>, begin: Begin) -> Result<Stream, String> {
    let number = begin.stream;
    let log_options = |zone: Zone| stream::Options {
        zone,
        stream: number,
        kind: Kind::Origin,
        segment_bytes: options.segment_bytes,
        floor: Floor { applied: begin.applied.get(zone).unwrap_or(0), peers: 0 },
    };
    let dir = options.data_dir.join("log").join(number.to_string());
    let (log, opened, _) = StreamLog::open(&dir, log_options(options.zone)).await.map_err(|e| e.to_string())?;
    let mut mirrors = BTreeMap::new();
    for peer in &options.peers {
        let dir = options.data_dir.join("mirror").join(format!("{}-{number}", peer.name));
        let mirror = Mirror::open(dir, log_options(peer.zone)).await.map_err(|e| e.to_string())?;
        mirrors.insert(peer.zone, mirror);
    }
    let mut gate = Gate::new(Start {
        zone: options.zone,
        stream: number,
        streams: options.streams,
        map: map.clone(),
        fences: begin.own_fences.into_iter().chain(opened.fences).collect(),
        fences_applied: begin.fences_applied,
        newest: opened.last_hlc,
    });
    if options.start_alone {
        tracing::warn!("stream {number}: taking writes alone, by an operator's word");
        gate.start_alone();
    }
    Ok(Stream {
        zone: options.zone,
        number,
        term: opened.term,
        log,
        gate: RefCell::new(gate),
        mirrors,
        fed: RefCell::new(begin.applied.clone()),
        applied: RefCell::new(begin.applied),
        applied_changed: Signal::default(),
        links: RefCell::default(),
        scans: RefCell::new(begin.scans),
        scans_changed: Signal::default(),
        receivers: RefCell::default(),
        generations: RefCell::default(),
    })
}

/// The number of streams is written down when the directory is created, and must be the same ever after.
fn check_streams(options: &Options) -> Result<(), Error> {
    let path = options.data_dir.join("STREAMS");
    let why = |e: std::io::Error| Error::Store { path: path.clone(), why: e.to_string() };
    std::fs::create_dir_all(&options.data_dir).map_err(why)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(has) if has == options.streams => Ok(()),
            Ok(has) => Err(Error::Streams { has, asked: options.streams }),
            Err(_) => {
                Err(Error::Store { path: path.clone(), why: format!("\"{}\" is no number of streams", text.trim()) })
            }
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            // Without its file, a directory that has streams still says how many: another number would look for rows elsewhere.
            match streams_in(&options.data_dir.join("log")).map_err(why)? {
                has if has != 0 && has != options.streams => Err(Error::Streams { has, asked: options.streams }),
                _ => write_streams(options, &path).map_err(why),
            }
        }
        Err(e) => Err(why(e)),
    }
}

/// How many streams the directory at `log` holds; 0: none, or no such directory.
fn streams_in(log: &Path) -> io::Result<u32> {
    match std::fs::read_dir(log) {
        Ok(all) => all.map(|entry| entry.map(|_| 1)).sum(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

/// Whole or not at all: a volume that is full now must not keep the log from starting later.
fn write_streams(options: &Options, path: &Path) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    std::fs::write(&beside, format!("{}\n", options.streams))?;
    std::fs::File::open(&beside)?.sync_all()?;
    std::fs::rename(&beside, path)?;
    dir::sync_dir(&options.data_dir)
}
