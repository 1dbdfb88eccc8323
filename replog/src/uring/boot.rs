//! Starts log cores, each with its keeper and one thread that sees them end; carries out what control commands.
//!
//! ```text
//! core-N (glommio, pinned)   keeper-N (appliers, SQLite)        watch-N: joins both; a panic of either is a fault, never a hang
//! ```

use super::borrow::Survey;
use super::core::{Core, Stream};
use super::keeper::{Job, Keeper, Kept, News};
use super::mirror::Mirror;
use super::node::{Command, CoreFigures, LogFigures, Options, StreamFigures, Told};
use super::open::{Begin, open_stream};
use super::signal::{Budget, Signal};
use super::stream::StreamLog;
use super::{collect, complete, forget, lend, link, now_ms, port, retain, seed};
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_lite::StreamExt;
use futures_lite::future::or;
use glommio::{LocalExecutorBuilder, Placement};
use shardmap::Zone;
use shardmap::map::Map;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// glommio may sleep with work left to run: this ends such a sleep.
const TICK: Duration = Duration::from_millis(5);
/// The same while nothing happens: each time that an executor wakes costs some 80 us.
const IDLE_TICK: Duration = Duration::from_millis(20);

/// How long an executor may take until it runs, and how many are started for one core.
const BEGIN_MAX: Duration = Duration::from_secs(2);
const EXECUTORS_MAX: usize = 5;

/// A log core that was started.
pub(super) struct Running {
    commands: UnboundedSender<Command>,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Running {
    /// A core that is gone has reported its fault.
    pub fn send(&self, command: Command) {
        let _ = self.commands.unbounded_send(command);
    }

    /// What a thread of its own talks to the core by.
    pub fn commands(&self) -> UnboundedSender<Command> {
        self.commands.clone()
    }

    /// Ends when the core's threads have ended.
    pub async fn ended(&self) {
        let ended = self.ended.lock().expect("no one panics while holding it").take();
        if let Some(ended) = ended {
            let _ = ended.await; // gone without a word: a fault was told
        }
    }
}

/// What tells how the opening went.
type Started = Receiver<Result<(), String>>;

/// Starts the threads of core `index`.
pub(super) fn start_core(
    index: usize,
    options: &Arc<Options>,
    survey: &Arc<Survey>,
    map: &Arc<Map>,
    kept: Vec<Kept>,
    tell: impl Fn(Told) + Clone + Send + 'static,
) -> Result<(Running, Started), String> {
    let ((commands, inbox), (jobs, todo), (started, wait)) = (unbounded(), channel(), channel());
    let (settled, news) = unbounded();
    let begins = kept.iter().map(Begin::of).collect();
    let (keeper, keeper_tell) = (Keeper::new(options.zone, kept, todo, settled), tell.clone());
    let keeper = thread::Builder::new()
        .name(format!("keeper-{index}"))
        .spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| keeper.run()));
            let fault = done.unwrap_or_else(|_| Err("a keeper panicked; its message is above".into()));
            fault.err().into_iter().for_each(|why| keeper_tell(Told::Fault(why)));
        })
        .map_err(|e| format!("its keeper cannot be started: {e}"))?;
    let (core_options, survey, map, core_tell) = (options.clone(), survey.clone(), map.clone(), tell.clone());
    let boot =
        move || Boot { index, options: core_options, survey, map, jobs, inbox, begins, news, started }.run(core_tell);
    let ended = start_watched(index, options.cores[index], boot, keeper, tell)?;
    Ok((Running { commands, ended: Mutex::new(Some(ended)) }, wait))
}

/// Runs `boot` on an executor pinned to `cpu`; a thread of its own sees that and `keeper` end, however they do.
///
/// On a busy machine glommio may sleep before it has run its first task (its preemption timer of 10 ms fires between being set and the
/// task), and then nothing ever wakes it. So another executor is started for what has not begun in time; the first that runs takes it.
fn start_watched<F: Future<Output = Result<(), String>> + 'static>(
    index: usize,
    cpu: usize,
    boot: impl FnOnce() -> F + Send + 'static,
    keeper: thread::JoinHandle<()>,
    tell: impl Fn(Told) + Send + 'static,
) -> Result<oneshot::Receiver<()>, String> {
    let (turn, (begun, began)) = (Arc::new(Mutex::new(Some(boot))), channel());
    let start = move |number: usize| {
        let (turn, begun) = (turn.clone(), begun.clone());
        let work = move || async move {
            let Some(boot) = turn.lock().expect("no one panics while holding it").take() else { return Ok(()) };
            let _ = begun.send(number); // nobody asks any more: it has been given up
            boot().await
        };
        // At the lowest latency glommio's queues lose wake-ups when the executor goes idle, so the default one is used.
        LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("log-{index}"))
            .preempt_timer(Duration::from_millis(10))
            .io_memory(4 << 20)
            .spawn(work)
    };
    let mut executors = vec![start(0).map_err(|e| format!("its executor cannot be started: {e}"))?];
    let (all, ended) = oneshot::channel();
    let watch = move || {
        let number = loop {
            match began.recv_timeout(BEGIN_MAX) {
                Ok(number) => break number,
                // Without room for another one, the first may still begin.
                Err(_) if executors.len() < EXECUTORS_MAX => executors.extend(start(executors.len())),
                Err(_) => break 0,
            }
        };
        match executors.swap_remove(number).join() {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return tell(Told::Fault(why)),
            Err(_) => return tell(Told::Fault(format!("log core {index} panicked; its message is above"))),
        }
        if keeper.join().is_ok() {
            let _ = all.send(()); // nobody need wait
        }
    };
    let watch = thread::Builder::new().name(format!("watch-{index}")).spawn(watch);
    watch.map(|_| ended).map_err(|e| format!("its watch cannot be started: {e}"))
}

/// Everything that a core's executor starts with.
struct Boot {
    index: usize,
    options: Arc<Options>,
    survey: Arc<Survey>,
    map: Arc<Map>,
    jobs: Sender<Job>,
    inbox: UnboundedReceiver<Command>,
    begins: Vec<Begin>,
    news: UnboundedReceiver<News>,
    started: Sender<Result<(), String>>,
}

impl Boot {
    /// Opens the core's streams, says so, and serves until it is told to stop.
    async fn run(self, tell: impl Fn(Told) + 'static) -> Result<(), String> {
        let Boot { index, options, survey, map, jobs, inbox, begins, news, started } = self;
        let opened = Rc::new(OnceCell::new());
        glommio::spawn_local(tick(opened.clone())).detach(); // it goes with its executor
        let mut streams = vec![];
        for begin in begins {
            match open_stream(&options, &survey, &map, begin).await {
                Ok(stream) => streams.push(Rc::new(stream)),
                Err(why) => {
                    let _ = started.send(Err(why)); // the caller reports it
                    return Ok(());
                }
            }
        }
        let (faults, fault) = unbounded();
        let core = Rc::new(Core {
            options,
            streams,
            map: RefCell::new(map),
            map_changed: Signal::default(),
            gzs: Cell::new(None),
            leases: Cell::new(0),
            leases_changed: Signal::default(),
            asked: Cell::new(0),
            confirming: Budget::of(super::commit::CONFIRMING_MAX),
            readers: Budget::of(super::changes::READERS_MAX),
            hearers: RefCell::default(),
            heard: Signal::default(),
            stands_changed: Signal::default(),
            routers: Cell::new(0),
            stopping: Cell::new(false),
            store_full: Cell::new(false),
            holds_back: Cell::new(false),
            jobs,
            faults,
            tell: Box::new(tell),
        });
        for stream in &core.streams {
            let due = stream.gate.borrow_mut().fences_due(&stream.fed.borrow().clone(), now_ms());
            if !due.is_empty() {
                let begun = stream.log.begin_append(due.clone());
                stream.fenced(due, begun).await?;
            }
        }
        match port::bind(&core.options.ports[index]) {
            Ok(server) => port::serve(core.clone(), server),
            Err(why) => {
                let _ = started.send(Err(why));
                return Ok(());
            }
        }
        for stream in &core.streams {
            let (core, stream) = (core.clone(), stream.clone());
            // It may wait for room; nobody waits for it.
            glommio::spawn_local(async move { core.watch(seed::record_left(&stream).await) }).detach();
        }
        spawn_tasks(&core, news);
        let _ = opened.set(core.clone()); // it is set once
        let _ = started.send(Ok(())); // nobody waits any more: then nobody will command either
        serve(core, inbox, fault).await
    }
}

fn spawn_tasks(core: &Rc<Core>, news: UnboundedReceiver<News>) {
    let spawn = |task| glommio::spawn_local(task).detach();
    for stream in &core.streams {
        for zone in stream.mirrors.keys().copied().chain([core.options.zone]) {
            let (core, stream) = (core.clone(), stream.clone());
            spawn(Box::pin(async move { core.watch(core.clone().feed(stream, zone).await) }) as Task);
        }
        for zone in stream.mirrors.keys() {
            spawn(Box::pin(complete::run(core.clone(), stream.clone(), *zone)) as Task);
            let (core, stream, zone) = (core.clone(), stream.clone(), *zone);
            spawn(Box::pin(async move {
                let why = stream.mirrors[&zone].write().await;
                core.watch(Err(format!("the mirror of zone {zone}: {why}")));
            }));
        }
        let (own, log) = (core.clone(), stream.log.clone());
        spawn(Box::pin(async move { own.watch_log(log, "the own log").await }));
        for peer in &core.options.peers {
            spawn(Box::pin(link::send(core.clone(), stream.clone(), peer.clone())));
        }
    }
    spawn(Box::pin(hear(core.clone(), news)));
    spawn(Box::pin(forget::run(core.clone())));
    spawn(Box::pin(retain::run(core.clone())));
    spawn(Box::pin(collect::run(core.clone())));
    spawn(Box::pin(super::mend::run(core.clone())));
}

/// Ends sleeps for as long as the executor lives: an open that met a full disk, and a close, have slept for ever without it.
async fn tick(core: Rc<OnceCell<Rc<Core>>>) {
    let mut before = 0;
    loop {
        let now = core.get().filter(|c| !c.stopping.get()).map(|c| c.activity());
        glommio::timer::sleep(if now == Some(before) { IDLE_TICK } else { TICK }).await;
        before = now.unwrap_or(before);
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// Takes what the keeper tells, in its order: which FENCEs count as applied, whether a store has room.
async fn hear(core: Rc<Core>, mut news: UnboundedReceiver<News>) {
    while let Some(news) = news.next().await {
        match news {
            News::Fences { stream, all } => {
                for stream in core.streams.iter().filter(|s| s.number == stream) {
                    let mut gate = stream.gate.borrow_mut();
                    all.iter().for_each(|(zone, shard, epoch)| gate.on_fence_applied(*zone, *shard, *epoch));
                }
            }
            News::Settled { stream, all } => {
                for stream in core.streams.iter().filter(|s| s.number == stream) {
                    stream.settled.borrow_mut().clone_from(&all);
                    stream.applied_changed.notify();
                }
            }
            News::Room(has) => {
                core.store_full.set(!has);
                core.streams.iter().for_each(|s| s.applied_changed.notify());
            }
        }
    }
}

/// Carries out commands until the one to stop, a fault, or the end of the node.
async fn serve(
    core: Rc<Core>,
    mut inbox: UnboundedReceiver<Command>,
    mut fault: UnboundedReceiver<String>,
) -> Result<(), String> {
    // Maps are taken in order, one at a time, by a task of its own: storing one waits for the keeper.
    let (maps, mut inorder) = unbounded::<Arc<Map>>();
    let taker = core.clone();
    glommio::spawn_local(async move {
        while let Some(map) = inorder.next().await {
            taker.watch(taker.on_map(map).await);
        }
    })
    .detach();
    loop {
        match or(async { Err(fault.next().await) }, async { Ok(inbox.next().await) }).await {
            Err(why) => return Err(why.unwrap_or_else(|| "the core's tasks are gone".into())),
            Ok(Some(Command::Map(map))) => drop(maps.unbounded_send(map)), // its taker lives as long as this
            Ok(Some(Command::Stop(done))) => {
                stop(&core).await;
                let _ = done.send(());
                return Ok(());
            }
            Ok(Some(other)) => drop(glommio::spawn_local(carry_out(core.clone(), other)).detach()),
            Ok(None) => {
                core.stopping.set(true);
                core.ask(|done| Job::Close { done }).await;
                return Ok(());
            }
        }
    }
}

/// Takes no more, ends the links, then closes own logs, mirrors and, last, the stores.
async fn stop(core: &Core) {
    core.stopping.set(true);
    core.map_changed.notify();
    core.leases_changed.notify();
    core.stands_changed.notify();
    for stream in &core.streams {
        let mut closed = vec![stream.log.close().await];
        for mirror in stream.mirrors.values() {
            closed.push(mirror.close().await);
        }
        for why in closed.into_iter().filter_map(Result::err) {
            tracing::warn!("stream {}: {why}", stream.number);
        }
    }
    core.ask(|done| Job::Close { done }).await;
}

/// What may take a while; answers go to whoever asked, who may be gone.
async fn carry_out(core: Rc<Core>, command: Command) {
    match command {
        Command::Gzs(epoch) => core.on_gzs(epoch),
        Command::Leases(leases) => core.on_leases(&leases),
        Command::Seed(command) => seed::carry_out(&core, command).await,
        Command::Adopt(adopted) if adopted.asks => lend::serve(core, adopted).await,
        Command::Adopt(adopted) => link::receive(core, adopted).await,
        Command::Report { shards, take_over, done } => {
            let _ = done.send(core.report(&shards, take_over).await);
        }
        Command::Figures(done) => {
            if let Some(figures) = figures(&core).await {
                let _ = done.send(figures);
            }
        }
        Command::Ask(ask, done) => {
            let (answer, _row) = core.answer(ask, u64::MAX, &Budget::of(1)).await;
            let _ = done.send(answer);
        }
        Command::Conflicts { stream, asked, done } => {
            if let Some(found) = core.ask(|done| Job::Conflicts { stream, asked, done }).await {
                let _ = done.send(found);
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

fn log_figures(stream: &Stream) -> BTreeMap<Zone, LogFigures> {
    let figures = |log: &StreamLog| LogFigures {
        first_kept: log.with(|l| l.first_kept()),
        kept_bytes: log.with(|l| l.kept_bytes()),
        is_full: log.with(|l| l.is_full()),
        scrubbed: log.scrubbed(),
        lag_us: log.lag_us(),
    };
    stream.logs().map(|(zone, log)| (zone, figures(&log))).collect()
}

/// What an operator has to do about other zones' logs.
fn incoming(core: &Core, stream: &Stream) -> BTreeMap<Zone, String> {
    let mut all = BTreeMap::new();
    for (zone, mirror) in &stream.mirrors {
        if let Some(stop) = mirror.stopped() {
            all.insert(*zone, stop.to_string());
        }
    }
    for (zone, scan) in stream.scans.borrow().iter() {
        let own = (zone == core.options.zone).then(|| stream.log.clone());
        let log = own.or_else(|| stream.mirrors.get(&zone).and_then(Mirror::log));
        if log.is_some_and(|log| scan.from < log.with(|l| l.first_kept())) {
            let what =
                if zone == core.options.zone { "compare the ledgers of all zones" } else { "seed this stream again" };
            let text = format!(
                "unseen: seq {} to {} were not kept when a new cut asked for them: the conflict ledger may lack some; {what}",
                scan.from, scan.to
            );
            all.entry(zone).or_insert(text);
        }
    }
    all
}

async fn figures(core: &Core) -> Option<CoreFigures> {
    let kept = core.ask(|done| Job::Figures { done }).await?;
    let streams = core.streams.iter().map(|s| StreamFigures {
        stream: s.number,
        term: s.term,
        durable_seq: s.log.durable_seq(),
        logs: log_figures(s),
        applied: s.applied.borrow().clone(),
        mirrored: s.mirrors.iter().map(|(zone, mirror)| (*zone, mirror.durable_seq())).collect(),
        links: s.links.borrow().clone(),
        incoming: incoming(core, s),
        seeds: BTreeMap::new(), // the node knows them
    });
    Some(CoreFigures {
        map_epoch: core.epoch(),
        read_only: core.streams.iter().any(|s| s.gate.borrow().is_read_only()),
        streams: streams.collect(),
        unsettled: core.unsettled(),
        holds_back: core.holds_back.get(),
        untold: core.hearers.borrow().untold(),
        kept,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of<F: Future<Output = Result<(), String>> + 'static>(body: impl FnOnce() -> F + Send + 'static) -> String {
        let (telling, told) = channel();
        let keeper = thread::spawn(|| {});
        let ended = start_watched(0, 0, body, keeper, move |what| drop(telling.send(what))).unwrap();
        match told.recv_timeout(Duration::from_secs(10)).expect("a fault within 10 s") {
            Told::Fault(why) => {
                assert!(futures_lite::future::block_on(ended).is_err(), "it did not end well");
                why
            }
            Told::Map(_) => panic!("no map was sent"),
        }
    }

    #[test]
    fn a_panic_in_a_task_of_a_core_is_told_and_never_hangs() {
        let why = fault_of(|| async {
            glommio::spawn_local(async { panic!("a task panics on purpose") }).detach();
            std::future::pending().await
        });
        assert!(why.contains("log core 0 panicked"), "{why}");
    }

    #[test]
    fn a_fault_of_a_core_is_told() {
        assert_eq!(fault_of(|| async { Err("no more".to_owned()) }), "no more");
    }
}
