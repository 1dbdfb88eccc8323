//! `ezone log`: control of a node's log. Maps in, links accepted, status and reports out.

use super::doors::Doors;
use super::links::{self, Refused};
use super::maps::{self, Kept, News};
use super::metrics::Page;
use super::reach::Reach;
use super::report::{KeptLog, LogStatus, Report, ReportAsk as StatusAsk, ShardReport, StreamStatus};
use super::secrets::LOOK_EVERY;
use super::signals::{Asked, Signals};
use super::steer::Steer;
use super::tell::{self, Look};
use super::visit::Visitors;
use super::{Failed, agree, conflicts, lag, machine, notify, runtime, seed, steer, wall_ms};
use crate::config::{Config, Kind, Layout, Log, MapSource};
use crate::uring;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use gzs::api::{LeaseTold, LogTold, NodeAsked, NodeTold, ReportAsk, ShardTold, StreamTold};
use replog::lease::Lease;
use replog::retain::{Policy, WORTH};
use replog::uring::ZoneLag;
use replog::uring::line::Line;
use replog::uring::node::{self, CoreFigures, LogFigures, Node, Options, Peer, Told};
use replog::uring::stream::Scrub;
use shardmap::map::Map;
use shardmap::{OwnerEpoch, Shard, Zone};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Runs the log until it is asked to stop or can no longer keep its promises.
pub fn run(config: &Config, stop_with_stdin: bool) -> Result<(), Failed> {
    let mut config = config.clone();
    uring::check().map_err(|e| e.to_string())?;
    let _agreed = agree::on_log_cores(&mut config)?;
    let Some(log) = &config.log else { return Err(Failed::Input("this configuration has no [log]".into())) };
    machine::locked_memory(log.cores.len())?;
    clock_ahead()?;
    // Before anything starts a thread: all of them take it over.
    settle(&config.layout);
    runtime()?.block_on(serve(&config, log, stop_with_stdin))
}

/// For drills: by so many milliseconds this log takes the wall clock for later than it is.
const CLOCK_AHEAD: &str = "EZONE_CLOCK_AHEAD_MS";

fn clock_ahead() -> Result<(), Failed> {
    let Some(told) = std::env::var_os(CLOCK_AHEAD) else { return Ok(()) };
    let ms = told.to_str().and_then(|text| text.parse::<u32>().ok());
    let ms = ms.ok_or_else(|| Failed::Input(format!("{CLOCK_AHEAD} is {told:?}, expected whole milliseconds")))?;
    replog::uring::set_clock_ahead(ms.into());
    tracing::warn!(
        "this log's clock is {ms} ms ahead of the machine's, as {CLOCK_AHEAD} says: for drills, never in use"
    );
    Ok(())
}

/// Keeps out of the router's way, as the layout says.
fn settle(layout: &Layout) {
    let done = match layout.kind {
        Kind::Split => uring::keep_to(&layout.home),
        Kind::Shared => uring::give_way(),
        Kind::Lists | Kind::Alone => Ok(()),
    };
    if let Err(e) = done {
        tracing::warn!("the log cannot keep out of the router's way ({e}); {}", layout.sentence());
    }
    layout.warning.iter().for_each(|w| tracing::warn!("{w}"));
    tracing::info!("{}", layout.sentence());
}

/// What the admin pages show.
#[derive(Clone)]
pub struct Shown {
    pub(super) node: Arc<Node>,
    map: Arc<Mutex<Arc<Map>>>,
    zone: Zone,
    layout: Arc<str>,
    /// Connections that were closed because no HELLO came.
    refused: Arc<Refused>,
    pub(super) steer: Arc<Steer>,
}

async fn serve(config: &Config, log: &Log, stop_with_stdin: bool) -> Result<(), Failed> {
    let admin = TcpListener::bind(log.admin).await.map_err(|e| taken("admin", log.admin, &e))?;
    let link_listener = TcpListener::bind(log.listen).await.map_err(|e| taken("listen", log.listen, &e))?;
    let kept = Kept::open(config.node.data_dir.join("log.map"))?;
    let (news, mut newer) = mpsc::unbounded_channel();
    // From here on: without a map this waits for ever, and must hear all the same that it is to end.
    let mut signals = Signals::new(stop_with_stdin)?;
    let who = told_by(config);
    let first = tokio::select! {
        first = maps::first(&config.map, &who, &kept, news, &mut newer) => first?,
        () = signals.stop() => return Ok(()),
    };
    let zone = config.zone_in(&first).map_err(Failed::Input)?;
    let zone = zone.ok_or_else(|| Failed::Input("an edge (zone = \"none\") has no log".into()))?;
    let (telling, mut told) = mpsc::unbounded_channel();
    let tell = move |what| drop(telling.send(what));
    let doors = Doors::open(config, &first).map_err(Failed::Input)?.map(Arc::new);
    let steer = Arc::new(Steer::open(config, &first, log.streams).map_err(Failed::Input)?);
    let mut options = options(config, log, zone, &first, doors.as_deref()).map_err(Failed::Input)?;
    options.line.controls = steer.controls();
    let started = Node::start(options, first.clone(), tell);
    let node = Arc::new(started.map_err(|e| match e {
        node::Error::Streams { .. } => Failed::Input(e.to_string()),
        node::Error::Core { .. } | node::Error::Store { .. } | node::Error::Map { .. } => Failed::Fault(e.to_string()),
    })?);
    if matches!(config.map, MapSource::File(_)) {
        node.on_gzs(first.epoch()); // the map never changes: nobody else can own what it gives to this zone
    }
    tracing::info!(
        "zone {}: log open, map {}, links on {} ({})",
        first.zone_name(zone),
        first.epoch(),
        log.listen,
        if doors.is_some() { "TLS" } else { "plain" }
    );
    let layout = config.layout.sentence().into();
    let refused = Arc::default();
    let shown =
        Shown { node: node.clone(), map: Arc::new(Mutex::new(first)), zone, layout, refused, steer: steer.clone() };
    let (newest, maps) = watch::channel(kept.epoch().0);
    if let MapSource::Gzs(at) = &config.map {
        let reach = Reach::new(at, &who, tell::PATIENCE).map_err(Failed::Input)?;
        tokio::spawn(tell::tell(
            reach,
            Telling { shown: shown.clone(), begun_ms: wall_ms(), made: Mutex::default() },
            maps,
        ));
    }
    tokio::spawn(links::accept(link_listener, node.clone(), doors.clone(), shown.refused.clone()));
    let mut files = tokio::time::interval(LOOK_EVERY);
    let pages = pages(shown.clone());
    notify::tell(notify::READY);
    tokio::spawn(async move { axum::serve(Visitors::new(admin), pages).await });
    loop {
        tokio::select! {
            asked = signals.next() => match asked {
                Asked::Stop => {
                    notify::tell(notify::STOPPING);
                    return tokio::select! {
                        () = node.stop() => Ok(()),
                        // A core that fails now never says that it has stopped.
                        why = fault(&mut told) => Err(Failed::Fault(why)),
                    };
                }
                Asked::Reload | Asked::Upgrade => {
                    doors.iter().for_each(|doors| doors.look());
                    tracing::info!("the log reads its configuration at its start only; changed certificates are read in any case");
                }
            },
            Some(what) = told.recv() => match what {
                Told::Fault(why) => return Err(Failed::Fault(why)),
                Told::Map(bytes) => {
                    shown.take_from_peer(&bytes, &kept);
                    newest.send_replace(kept.epoch().0);
                }
            },
            Some(news) = newer.recv() => {
                shown.take(news);
                newest.send_replace(kept.epoch().0);
            }
            _ = files.tick() => {
                doors.iter().for_each(|doors| doors.look());
                steer.steer();
            }
        }
    }
}

/// How the service names this log.
fn told_by(config: &Config) -> String {
    format!("log {} of zone {}", tell::host(), config.node.zone.as_deref().unwrap_or("none"))
}

/// What this log tells the map's writer.
struct Telling {
    shown: Shown,
    begun_ms: u64,
    /// Reports that were made, by the ask's map, shard, and whether it is for a take-over: each is made durable, and is made once.
    made: Mutex<BTreeMap<(u64, u16, bool), ShardTold>>,
}

impl Look for Telling {
    async fn look(&self, asks: &[ReportAsk]) -> (NodeTold, bool) {
        let (map, cores) = (self.shown.map(), self.shown.node.figures().await);
        let epoch = cores.iter().map(|c| c.map_epoch.0).min().unwrap_or(0);
        let mut asks = asks.to_vec();
        asks.extend(
            moves_here(&map, self.shown.zone).filter(|own| !asks.iter().any(|ask| ask == own)).collect::<Vec<_>>(),
        );
        self.forget_but(&asks);
        for ask in asks.iter().filter(|ask| ask.map_epoch <= epoch) {
            self.report(ask, epoch).await;
        }
        let reports = self.made().values().cloned().collect();
        let mut streams: Vec<_> = cores.iter().flat_map(|c| &c.streams).collect();
        streams.sort_by_key(|s| s.stream);
        let name = |zone: Zone| map.zone_name(zone).to_owned();
        let streams = streams.into_iter().map(|s| StreamTold {
            durable: s.durable_seq,
            applied: s.applied.iter().map(|(z, seq)| (name(z), seq)).collect(),
        });
        let log = LogTold {
            read_only: cores.iter().any(|c| c.read_only),
            ledger: cores.iter().map(|c| c.kept.ledger).sum(),
            open: cores.iter().map(|c| c.kept.open).sum(),
            parked: cores.iter().map(|c| c.kept.parked).sum(),
            store_full: cores.iter().any(|c| c.kept.is_full),
            streams: streams.collect(),
            reports,
        };
        let told = NodeTold {
            name: tell::host(),
            zone: name(self.shown.zone),
            begun_ms: self.begun_ms,
            map_epoch: epoch,
            router: None,
            log: Some(log),
        };
        (told, map.epoch().0 > epoch || map.unsettled().next().is_some())
    }

    fn heard(&self, asked: &NodeAsked, sent_ms: u64) {
        let lease = |told: &LeaseTold| Lease {
            shard: Shard(told.shard),
            owner_epoch: OwnerEpoch(told.owner_epoch),
            until_ms: sent_ms.saturating_add(told.lease_ms),
        };
        let leases: Vec<Lease> = asked.leases.iter().map(lease).collect();
        if !leases.is_empty() {
            self.shown.node.on_leases(&leases);
        }
    }
}

impl Telling {
    fn made(&self) -> MutexGuard<'_, BTreeMap<(u64, u16, bool), ShardTold>> {
        self.made.lock().expect("no one panics while holding it")
    }

    fn forget_but(&self, asks: &[ReportAsk]) {
        let asked = |epoch: u64, shard: u16, lost: bool| {
            asks.iter().any(|a| a.map_epoch == epoch && a.take_over == lost && a.shards.contains(&shard))
        };
        self.made().retain(|(epoch, shard, lost), _| asked(*epoch, *shard, *lost));
    }

    /// Reports of what is ready and was not reported yet.
    async fn report(&self, ask: &ReportAsk, map_epoch: u64) {
        let key = |shard: u16| (ask.map_epoch, shard, ask.take_over);
        let wanted: Vec<Shard> = {
            let made = self.made();
            ask.shards.iter().filter(|s| !made.contains_key(&key(**s))).map(|s| Shard(*s)).collect()
        };
        if wanted.is_empty() {
            return;
        }
        let reported = self.shown.node.report(&wanted, ask.take_over).await;
        let ready = reported.into_iter().filter_map(|r| {
            let (shard, take_over) = (r.shard.0, ask.take_over);
            let applied = r.applied?.iter().map(|(z, seq)| (z.0, seq)).collect();
            Some((key(shard), ShardTold { shard, map_epoch, take_over, fence_seq: r.fence_seq, applied }))
        });
        self.made().extend(ready);
    }
}

/// The moves to `zone` that the map speaks of: nobody need ask for these.
fn moves_here(map: &Map, zone: Zone) -> impl Iterator<Item = ReportAsk> {
    let mut by: BTreeMap<u64, Vec<u16>> = BTreeMap::new();
    for shard in map.unsettled() {
        if let Some(view) = map.view(shard).filter(|v| v.to == Some(zone)) {
            by.entry(view.epoch.0).or_default().push(shard.0);
        }
    }
    by.into_iter().map(|(map_epoch, shards)| ReportAsk { map_epoch, shards, take_over: false })
}

/// Ends with the first fault.
async fn fault(told: &mut mpsc::UnboundedReceiver<Told>) -> String {
    loop {
        match told.recv().await {
            Some(Told::Fault(why)) => return why,
            Some(Told::Map(_)) => {}
            None => std::future::pending().await,
        }
    }
}

impl Shown {
    #[cfg(test)]
    pub(super) fn of(node: Arc<Node>, map: Arc<Map>, zone: Zone) -> Shown {
        let steer = Arc::default();
        Shown { node, map: Arc::new(Mutex::new(map)), zone, layout: "".into(), refused: Arc::default(), steer }
    }

    fn take(&self, news: News) {
        match news {
            News::Map(newer) => {
                self.node.on_map(&newer);
                *self.map.lock().expect("no one panics while holding it") = newer;
            }
            News::Reached(epoch) => self.node.on_gzs(epoch),
        }
    }

    fn take_from_peer(&self, bytes: &[u8], kept: &Kept) {
        match kept.take(bytes) {
            Ok(Some(map)) => self.take(News::Map(map)),
            Ok(None) => {}
            Err(why) => tracing::error!("from another zone: {why}"),
        }
    }

    pub(super) fn map(&self) -> Arc<Map> {
        self.map.lock().expect("no one panics while holding it").clone()
    }
}

fn options(config: &Config, log: &Log, zone: Zone, map: &Map, doors: Option<&Doors>) -> Result<Options, String> {
    let mut peers = vec![];
    for peer in &config.zones {
        let Some(link) = peer.link else { continue };
        let Some(zone) = Config::other_in(map, &peer.name)? else { continue };
        peers.push(Peer { zone, name: peer.name.clone(), link });
    }
    Ok(Options {
        cluster: config.node.cluster.clone(),
        zone,
        data_dir: config.node.data_dir.clone(),
        streams: log.streams,
        segment_bytes: log.segment_bytes,
        retain: Policy { keep_bytes: log.keep_bytes, peers_until: log.peers_until, worth: WORTH },
        scrub: Scrub { bytes_per_s: log.scrub_bytes_per_s, every: Duration::from_secs(3600 * log.scrub_every_h) },
        cores: log.cores.clone(),
        ports: (0..log.cores.len()).map(|i| config.port_path(i)).collect(),
        peers,
        line: Line {
            congestion: log.congestion.clone(),
            window_bytes: log.window_bytes,
            compress: log.compress,
            towards: doors.map(Doors::towards),
            ..Line::default()
        },
        start_alone: log.start_alone,
        answers_kept_ms: replog::commit::ANSWER_KEPT_MS,
    })
}

fn pages(shown: Shown) -> Router {
    Router::new()
        .route("/status", get(async |State(s): State<Shown>| Json(status(&s).await)))
        .route("/report", post(report))
        .route("/digest", get(digest))
        .route("/metrics", get(async |State(s): State<Shown>| metrics(&status(&s).await)))
        .route("/healthz", get(async || "ok\n"))
        .merge(seed::routes())
        .merge(conflicts::routes())
        .merge(steer::routes())
        .merge(lag::routes())
        .with_state(shown)
}

/// Taken as bytes: whoever asks need not name a content type.
async fn report(State(shown): State<Shown>, body: Bytes) -> Response {
    let ask: StatusAsk = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(e) => {
            return (StatusCode::BAD_REQUEST, format!("{{\"error\":\"not a report's question: {e}\"}}\n"))
                .into_response();
        }
    };
    let shards: Vec<Shard> = ask.shards.iter().map(|s| Shard(*s)).collect();
    let epoch = shown.node.figures().await.iter().map(|c| c.map_epoch.0).min().unwrap_or(0);
    if epoch < ask.map_epoch {
        return Json(Report { map_epoch: epoch, shards: vec![] }).into_response();
    }
    let reported = shown.node.report(&shards, ask.take_over).await;
    let shards = reported.into_iter().map(|r| ShardReport {
        shard: r.shard.0,
        ready: r.applied.is_some(),
        fence_seq: r.fence_seq,
        applied: r.applied.iter().flat_map(|p| p.iter()).map(|(z, seq)| (z.0, seq)).collect(),
    });
    Json(Report { map_epoch: epoch, shards: shards.collect() }).into_response()
}

/// One line for each stream: equal lines in two zones, equal copies.
async fn digest(State(shown): State<Shown>) -> String {
    let hex = |d: &[u8; 32]| d.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let all = shown.node.digests().await;
    all.iter().map(|d| format!("rows {} ledger {}\n", hex(&d.rows), hex(&d.ledger))).collect()
}

async fn status(shown: &Shown) -> LogStatus {
    let (map, cores) = (shown.map(), shown.node.figures().await);
    let lags = lag::merged(&cores);
    let mut all = ZoneLag::default();
    lags.values().for_each(|lag| all.add(lag));
    let mut streams: Vec<StreamStatus> = cores.iter().flat_map(|c| stream_statuses(c, &map, &shown.steer)).collect();
    streams.sort_by_key(|s| s.stream);
    LogStatus {
        zone: map.zone_name(shown.zone).to_owned(),
        map_epoch: cores.iter().map(|c| c.map_epoch.0).min().unwrap_or(0),
        read_only: cores.iter().any(|c| c.read_only),
        streams,
        ledger: cores.iter().map(|c| c.kept.ledger).sum(),
        parked: cores.iter().map(|c| c.kept.parked).sum(),
        tombstones_dropped: cores.iter().map(|c| c.kept.collected).sum(),
        store_full: cores.iter().any(|c| c.kept.is_full),
        // Every core goes by the same map.
        unsettled: cores.iter().map(|c| c.unsettled).max().unwrap_or(0),
        holds_back: cores.iter().any(|c| c.holds_back),
        ownership_untold: cores.iter().map(|c| c.untold).sum(),
        lag: lag::of(&all.us),
        lag_zones: lags.iter().map(|(zone, lag)| (map.zone_name(*zone).to_owned(), lag::of(&lag.us))).collect(),
        durable_lag_zones: lag::merged_durable(&cores)
            .iter()
            .map(|(zone, us)| (map.zone_name(*zone).to_owned(), lag::of(us)))
            .collect(),
        links_refused: shown.refused.count(),
        layout: shown.layout.to_string(),
    }
}

fn stream_statuses<'a>(
    core: &'a CoreFigures,
    map: &'a Map,
    steer: &'a Steer,
) -> impl Iterator<Item = StreamStatus> + 'a {
    let name = |zone: Zone| map.zone_name(zone).to_owned();
    core.streams.iter().map(move |s| StreamStatus {
        stream: s.stream,
        term: s.term,
        durable_seq: s.durable_seq,
        logs: s.logs.iter().map(|(z, l)| (name(*z), kept(l))).collect(),
        applied: s.applied.iter().map(|(z, seq)| (name(z), seq)).collect(),
        mirrored: s.mirrored.iter().map(|(z, seq)| (name(z), seq)).collect(),
        incoming: s.incoming.iter().map(|(z, why)| (name(*z), why.clone())).collect(),
        seeds: seed::statuses(s, name),
        links: s
            .links
            .iter()
            .map(|(z, l)| {
                let zone = name(*z);
                let rate_max = steer.rate_now(&zone);
                (zone, steer::status(l, s.durable_seq, rate_max))
            })
            .collect(),
    })
}

/// Each link of each stream.
pub(super) async fn links(shown: &Shown) -> serde_json::Value {
    let status = status(shown).await;
    let one = |s: &StreamStatus| serde_json::json!({"stream": s.stream, "durable_seq": s.durable_seq, "links": s.links, "incoming": s.incoming});
    serde_json::json!({"zone": status.zone, "streams": status.streams.iter().map(one).collect::<Vec<_>>()})
}

fn kept(log: &LogFigures) -> KeptLog {
    let damaged = log.scrubbed.damaged.iter().map(|d| format!("{} from seq {}: {}", d.file, d.first_seq, d.why));
    KeptLog {
        first_kept: log.first_kept,
        kept_bytes: log.kept_bytes,
        is_full: log.is_full,
        scrub_passes: log.scrubbed.passes,
        scrubbed_bytes: log.scrubbed.bytes,
        damaged: damaged.collect(),
        mended: log.scrubbed.mended,
    }
}

fn metrics(status: &LogStatus) -> String {
    let mut page = Page::default();
    page.gauge("ezone_log_map_epoch", "The map that the log goes by", status.map_epoch);
    page.gauge("ezone_log_read_only", "1: restarted, and does not know yet what it owns", u64::from(status.read_only));
    page.gauge("ezone_store_full", "1: a record store has no room; nothing is applied", u64::from(status.store_full));
    let help = "Writes that began before every router had told its readers of /ownership/stream that this zone writes the shard";
    page.counter("ezone_ownership_untold_total", help, &[], status.ownership_untold);
    page.counter(
        "ezone_links_refused_total",
        "Connections from other logs, or strangers, that were closed before a HELLO was understood",
        &[],
        status.links_refused,
    );
    page.gauge("ezone_log_ledger_entries", "Entries in the conflict ledger", status.ledger);
    let help = "Tombstones that were dropped since every zone had applied them";
    page.counter("ezone_log_tombstones_dropped_total", help, &[], status.tombstones_dropped);
    page.gauge("ezone_log_parked_records", "Records that could not be applied yet", status.parked);
    let help = "Shards on their way to another owner, or without one: no segment is let go while there is one";
    page.gauge("ezone_log_unsettled_shards", help, status.unsettled);
    let help =
        "1: the volume is as full as [log] peers_until says, and nothing is let go, since shards are on their way";
    page.gauge("ezone_log_holds_back", help, u64::from(status.holds_back));
    for s in &status.streams {
        let stream = s.stream.to_string();
        page.labelled("ezone_log_durable_seq", "Last durable seq of a stream", &[("stream", &stream)], s.durable_seq);
        for (zone, log) in &s.logs {
            kept_metrics(&mut page, &[("stream", stream.as_str()), ("zone", zone)], log);
        }
        for (zone, seq) in &s.applied {
            let labels = [("stream", stream.as_str()), ("zone", zone)];
            page.labelled("ezone_log_applied_seq", "Last applied seq of a zone's stream", &labels, *seq);
        }
        for (zone, seq) in &s.mirrored {
            let labels = [("stream", stream.as_str()), ("zone", zone)];
            page.labelled(
                "ezone_log_mirrored_seq",
                "Last seq of another zone's stream that is durable here",
                &labels,
                *seq,
            );
        }
        seed::metrics(&mut page, s);
        steer::metrics(&mut page, s);
        for (zone, link) in &s.links {
            let labels = [("stream", stream.as_str()), ("zone", zone), ("state", &link.state)];
            page.labelled(
                "ezone_link_durable_seq",
                "Last seq of a stream that is durable in another zone",
                &labels,
                link.durable_seq,
            );
        }
    }
    page.gauge("ezone_log_lag_p50_us", "Median of commit there to visible here, microseconds", status.lag.p50_us);
    page.gauge(
        "ezone_log_lag_p99_us",
        "99th percentile of commit there to visible here, microseconds",
        status.lag.p99_us,
    );
    let durable = ("ezone_durable_lag_us", "Append there to durable here, by zone", &status.durable_lag_zones);
    let visible =
        ("ezone_apply_lag_us", "Append there to visible here, by zone; of each shard: /lag", &status.lag_zones);
    for (name, help, zones) in [durable, visible] {
        for (zone, lag) in zones {
            for (quantile, us) in [("0.5", lag.p50_us), ("0.99", lag.p99_us), ("1", lag.max_us)] {
                page.labelled(name, help, &[("zone", zone.as_str()), ("quantile", quantile)], us);
            }
        }
    }
    page.text()
}

fn kept_metrics(page: &mut Page, labels: &[(&str, &str)], log: &KeptLog) {
    let all = [
        ("ezone_log_first_kept_seq", "The first seq of a zone's stream that is kept here", log.first_kept),
        ("ezone_log_kept_bytes", "Bytes of the segments of a zone's stream here", log.kept_bytes),
        ("ezone_log_full", "1: there is no room for another segment; appends are refused", u64::from(log.is_full)),
        ("ezone_log_scrubbed_bytes", "Bytes of sealed segments read again since the start", log.scrubbed_bytes),
        (
            "ezone_log_damaged_segments",
            "Sealed segments that failed when they were read again",
            log.damaged.len() as u64,
        ),
        (
            "ezone_log_mended_segments",
            "Sealed segments that were mended since the start, while the log ran",
            log.mended,
        ),
    ];
    for (name, help, value) in all {
        page.labelled(name, help, labels, value);
    }
}

fn taken(key: &str, at: std::net::SocketAddr, e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("[log] {key} = {at}: another process listens there (`ss -ltnp` names it)")
        }
        _ => format!("[log] {key} = {at}: {e}"),
    }
}
