//! The log of a node: starts its cores and keepers, and is what control talks to.
//!
//! ```text
//! control ──Command──▶ core (glommio, pinned) ──Job──▶ keeper (thread: appliers, SQLite)
//!                        ▲ port: routers            links: other zones' cores
//! ```

use super::boot::{self, Running};
use super::borrow::{Copy, Survey};
use super::core::Link;
use super::keeper::{Asked, Conflict, Figures, Reported};
use super::line::Line;
use super::open;
use super::seed::{self, Party, SeedFigures, Seeds, Way};
use super::stream::{Scrub, Scrubbed};
use crate::lease::Lease;
use crate::link::{Frame, take};
use crate::owners::stream_of;
use crate::port::{Answer, Ask, Refused};
use crate::store::Digests;
use bytes::{Bytes, BytesMut};
use futures_channel::oneshot;
use hdrhistogram::Histogram;
use rustls::ServerConnection;
use shardmap::map::Map;
use shardmap::{MapEpoch, Positions, Shard, Zone};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// How sealed segments are read again.
    pub scrub: Scrub,
    /// How far back logs and mirrors are kept.
    pub retain: crate::retain::Policy,
    /// One log core is pinned to each.
    pub cores: Vec<usize>,
    /// The Unix socket of each log core.
    pub ports: Vec<PathBuf>,
    /// The other zones: what they are called and where their logs listen.
    pub peers: Vec<Peer>,
    /// How links use the lines to them.
    pub line: Line,
    /// Take writes without having reached the GZS or every other zone.
    pub start_alone: bool,
    /// How long first answers to idempotency keys are kept: `commit::ANSWER_KEPT_MS`.
    pub answers_kept_ms: u64,
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
    /// The store holds a map that the one given cannot follow.
    #[error("the store in {path} has map {stored}, the one given is {given}: {why}")]
    Map {
        /// The store's file.
        path: PathBuf,
        /// The store's map.
        stored: MapEpoch,
        /// The other.
        given: MapEpoch,
        /// What that means.
        why: &'static str,
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
    /// Of the own log (this zone) and of each mirror.
    pub logs: BTreeMap<Zone, LogFigures>,
    /// Applied positions.
    pub applied: Positions,
    /// Durable positions of other zones' logs.
    pub mirrored: Positions,
    /// Outgoing links.
    pub links: BTreeMap<Zone, Link>,
    /// Of other zones' logs (and this one's) that need an operator: what is to be done.
    pub incoming: BTreeMap<Zone, String>,
    /// Snapshots: lent to a zone, or taken from it.
    pub seeds: BTreeMap<(Way, Zone), SeedFigures>,
}

/// What a log or mirror takes on disk, and what reading it again has shown.
#[derive(Clone, Debug)]
pub struct LogFigures {
    /// The first seq that is kept.
    pub first_kept: u64,
    /// Bytes of its segments.
    pub kept_bytes: u64,
    /// Is there no room for another segment?
    pub is_full: bool,
    /// What the scrub has seen.
    pub scrubbed: Scrubbed,
    /// Of a mirror: microseconds from the append of a record at its origin until it was durable here.
    pub lag_us: Option<Histogram<u64>>,
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
    /// Shards that are on their way to another owner, or have none: while there is one, no segment is let go.
    pub unsettled: u64,
    /// There is one, and the volume is so full that segments would go.
    pub holds_back: bool,
    /// How often a write went on before every router had told its readers of the ownership.
    pub untold: u64,
    /// Of its stores.
    pub kept: Figures,
}

/// What the other zones have of this one's logs: whatever they have was acknowledged here. Nobody is asked for logs that are not.
fn survey(options: &Options) -> Survey {
    if !options.data_dir.join("log").exists() {
        return Survey::default();
    }
    Survey::of(&options.copies(options.zone, 0))
}

impl Options {
    /// Where copies of `origin`'s stream may be had, its own zone's first.
    pub(super) fn copies(&self, origin: Zone, stream: u32) -> Vec<Copy> {
        let (cluster, streams) = (&self.cluster, self.streams);
        let copy = |p: &Peer| Copy {
            cluster: cluster.clone(),
            origin,
            peer: p.zone,
            link: p.link,
            stream,
            streams,
            towards: self.line.towards.clone(),
        };
        let mut all: Vec<Copy> = self.peers.iter().map(copy).collect();
        all.sort_by_key(|c| c.peer != origin);
        all
    }
}

/// A connection of another zone's log: its first bytes were read to learn which stream it is for.
pub struct Adopted {
    /// It asks for a copy; else it brings its log.
    pub asks: bool,
    /// The stream.
    pub stream: u32,
    /// The zone whose log it brings.
    pub origin: Zone,
    /// The connection.
    pub socket: TcpStream,
    /// Its TLS session, of which the handshake is done and the zone's certificate was judged; `None`: it is plain.
    pub tls: Option<Box<ServerConnection>>,
    /// What was read.
    pub read: Vec<u8>,
}

pub(super) enum Command {
    Map(Arc<Map>),
    Gzs(MapEpoch),
    Leases(Vec<Lease>),
    Adopt(Adopted),
    Seed(seed::Command),
    Report { shards: Vec<Shard>, take_over: bool, done: oneshot::Sender<Vec<Reported>> },
    Figures(oneshot::Sender<CoreFigures>),
    Digests(oneshot::Sender<Vec<Digests>>),
    Ask(Ask, oneshot::Sender<Answer>),
    Conflicts { stream: u32, asked: Asked, done: oneshot::Sender<Vec<Conflict>> },
    Stop(oneshot::Sender<()>),
}

/// The running log.
pub struct Node {
    cores: Vec<Running>,
    options: Arc<Options>,
    seeds: Seeds,
}

impl Node {
    /// Opens every stream and store, then serves.
    pub fn start(options: Options, map: Arc<Map>, tell: impl Fn(Told) + Clone + Send + 'static) -> Result<Node, Error> {
        open::check_streams(&options)?;
        let survey = Arc::new(survey(&options));
        let options = Arc::new(options);
        let (mut cores, mut ready) = (vec![], vec![]);
        for index in 0..options.cores.len() {
            let own = (0..options.streams).filter(|s| *s as usize % options.cores.len() == index);
            let kept = own.map(|s| open::open_store(&options, s, &map)).collect::<Result<Vec<_>, _>>()?;
            let (core, wait) = boot::start_core(index, &options, &survey, &map, kept, tell.clone())
                .map_err(|why| Error::Core { core: index, why })?;
            cores.push(core);
            ready.push(wait);
        }
        for (core, wait) in ready.into_iter().enumerate() {
            let outcome = wait.recv().unwrap_or_else(|_| Err("it ended while it opened its streams".into()));
            outcome.map_err(|why| Error::Core { core, why })?;
        }
        Ok(Node { cores, options, seeds: Seeds::default() })
    }

    /// A newer map, which is durable.
    pub fn on_map(&self, map: &Arc<Map>) {
        self.each(|| Command::Map(map.clone()));
    }

    /// The GZS has answered that `epoch` is its newest map.
    pub fn on_gzs(&self, epoch: MapEpoch) {
        self.each(|| Command::Gzs(epoch));
    }

    /// The map's writer has granted leases of global services to this zone.
    pub fn on_leases(&self, leases: &[Lease]) {
        self.each(|| Command::Leases(leases.to_vec()));
    }

    /// Hands a connection of another zone's log to the core that has its stream. One that asks for a snapshot gets a thread.
    pub fn adopt(&self, adopted: Adopted) {
        if let Ok(Some(Frame::Seed(asked))) = take(&mut BytesMut::from(&adopted.read[..])) {
            let party = self.party(asked.ask.stream);
            let work = move || seed::lend(&party, adopted, &asked);
            if let Err(e) = std::thread::Builder::new().name("lend".into()).spawn(work) {
                tracing::error!("a snapshot cannot be lent: no thread: {e}");
            }
            return;
        }
        self.core_of(adopted.stream).send(Command::Adopt(adopted));
    }

    /// Seeds this zone's copy of `origin`'s `stream` anew from a snapshot: an operator's word, for one that fell into a gap. Answers when it
    /// has begun, or why it does not; the figures tell how it goes on.
    pub async fn seed(&self, origin: Zone, stream: u32) -> Result<String, String> {
        if stream >= self.options.streams {
            return Err(format!("stream {stream}; this node has the streams 0 to {}", self.options.streams - 1));
        }
        let copy = seed::origin_copy(self.options.copies(origin, stream), origin);
        let copy = copy.ok_or_else(|| format!("zone {origin} is not among this node's [zones]"))?;
        let running = self.seeds.begin(Way::Taken, origin, stream)?;
        let (begun, answer) = oneshot::channel();
        let party = self.party(stream);
        let work = move || seed::take(&party, copy, running, begun);
        std::thread::Builder::new()
            .name(format!("seed-{stream}"))
            .spawn(work)
            .map_err(|e| format!("no thread: {e}"))?;
        answer.await.unwrap_or_else(|_| Err("it ended without a word".into()))
    }

    fn party(&self, stream: u32) -> Party {
        let core = self.core_of(stream).commands();
        Party { options: self.options.clone(), seeds: self.seeds.clone(), core }
    }

    fn core_of(&self, stream: u32) -> &Running {
        &self.cores[(stream % self.options.streams.max(1)) as usize % self.cores.len()]
    }

    /// What this zone has of `shards`.
    pub async fn report(&self, shards: &[Shard], take_over: bool) -> Vec<Reported> {
        let ask = |done| Command::Report { shards: shards.to_vec(), take_over, done };
        self.all(ask).await.into_iter().flatten().collect()
    }

    /// Figures of every core.
    pub async fn figures(&self) -> Vec<CoreFigures> {
        let mut all = self.all(Command::Figures).await;
        for stream in all.iter_mut().flat_map(|c| &mut c.streams) {
            for way in [Way::Lent, Way::Taken] {
                let seeds = self.seeds.of(way, stream.stream);
                stream.seeds.extend(seeds.into_iter().map(|(zone, figures)| ((way, zone), figures)));
            }
        }
        all
    }

    /// Digests of every stream.
    pub async fn digests(&self) -> Vec<Digests> {
        self.all(Command::Digests).await.into_iter().flatten().collect()
    }

    /// What a router may ask over the port, asked by control; a node that ends answers that it does not know.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let (done, answer) = oneshot::channel();
        self.core_of(stream_of(ask.shard(), self.options.streams)).send(Command::Ask(ask, done));
        answer.await.unwrap_or_else(|_| Answer::Refused(Refused::Failed("the node ends".into())))
    }

    /// Entries of the conflict ledger of `stream`; `None`: there is no such stream, or the node ends.
    pub async fn conflicts(&self, stream: u32, asked: Asked) -> Option<Vec<Conflict>> {
        if stream >= self.options.streams {
            return None;
        }
        let (done, answer) = oneshot::channel();
        self.core_of(stream).send(Command::Conflicts { stream, asked, done });
        answer.await.ok()
    }

    /// Takes no more, makes durable what was taken, ends every stream with a marker and a checkpoint, closes the stores. Ends when
    /// every core's threads have ended.
    pub async fn stop(&self) {
        self.seeds.stop();
        self.all(Command::Stop).await;
        for core in &self.cores {
            core.ended().await;
        }
    }

    fn each(&self, command: impl Fn() -> Command) {
        for core in &self.cores {
            core.send(command());
        }
    }

    async fn all<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut answers = vec![];
        for core in &self.cores {
            let (done, answer) = oneshot::channel();
            core.send(command(done));
            answers.push(answer);
        }
        let mut all = vec![];
        for answer in answers {
            all.extend(answer.await.ok());
        }
        all
    }
}
