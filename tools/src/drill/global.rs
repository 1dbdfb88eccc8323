//! The drill of a global service: one zone writes it under a lease, and never do two at a time.

use super::lost::{entered_there_for_others, taken_while_cut};
use super::planned::restore;
use super::scene::{Scene, ms};
use super::stage::{BROKEN, PATIENCE, WHOLE};
use dataplane::sandbox::chart::GLOBAL;
use dataplane::sandbox::client::Client;
use dataplane::sandbox::rows;
use dataplane::sandbox::wan::{Lines, Side};
use gzs::api::What;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Between two writes of one client.
const EACH: Duration = Duration::from_millis(10);
const BETWEEN: Duration = Duration::from_millis(500);
const WHILE: Duration = Duration::from_secs(1);

/// One write of a key that nobody else writes, and what became of it.
struct Write {
    key: String,
    /// The status, and the zone that answered; `None`: nobody knows whether it was done.
    answer: Option<(u16, Option<String>)>,
    sent: Instant,
    answered: Instant,
}

impl Write {
    fn by(&self) -> Option<&str> {
        let (status, zone) = self.answer.as_ref()?;
        (200..300).contains(status).then(|| zone.as_deref().unwrap_or_default())
    }
}

/// Clients of the global service: one at each zone's router, a write after the other.
struct Clients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Write>>>,
}

impl Clients {
    fn start(scene: &Scene<'_>) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let zones = 0..scene.stage.cluster.zones.len();
        let tasks = zones.map(|z| tokio::spawn(write(scene.stage.client(z), scene.stage.name(z), stop.clone())));
        Clients { tasks: tasks.collect(), stop }
    }

    async fn stop(self) -> Result<Vec<Write>, String> {
        self.stop.store(true, Relaxed);
        let mut all = vec![];
        for task in self.tasks {
            all.extend(task.await.map_err(|e| format!("a client of the global service: {e}"))?);
        }
        Ok(all)
    }
}

async fn write(at: SocketAddr, name: &'static str, stop: Arc<AtomicBool>) -> Vec<Write> {
    let mut all = vec![];
    while !stop.load(Relaxed) {
        let (key, sent) = (format!("{name}-{}", all.len()), Instant::now());
        let request = format!(
            "PUT /records/{table}/{key} HTTP/1.1\r\nhost: drill\r\nx-shard: global={table}\r\ncontent-length: {}\r\n\r\n{key}",
            key.len(),
            table = GLOBAL.1
        );
        let asked = async { Client::connect(at).await?.ask(request.as_bytes()).await };
        let answer = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) if !answer.unknown => Some((answer.status, answer.zone)),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        };
        all.push(Write { key, answer, sent, answered: Instant::now() });
        tokio::time::sleep(EACH).await;
    }
    all
}

pub async fn global_service(scene: &mut Scene<'_>) -> Result<(), String> {
    scene.takes_over = true;
    let clients = Clients::start(scene);
    let acted = act(scene).await;
    let written = clients.stop().await?;
    let cut = acted?;
    scene.pause_load().await;
    scene.stage.quiet().await?;
    judge(scene, &written, &cut)
}

/// From when the owner was cut off until every link was live again.
struct Cut {
    from: Instant,
    to: Instant,
}

async fn act(scene: &mut Scene<'_>) -> Result<Cut, String> {
    let (name, before) = (scene.stage.name(BROKEN).to_owned(), scene.stage.owns(BROKEN).await?);
    for to in [WHOLE, BROKEN] {
        scene.flow(BETWEEN).await?;
        scene.op(What::Move { shards: vec![GLOBAL.0], to: scene.stage.name(to).into() }).await?;
    }
    scene.flow(BETWEEN).await?;
    let from = Instant::now();
    scene.stage.cluster.wan.cut(Lines::Of(Side::Zone(BROKEN)));
    scene.step(format!("{name}, which owns {}, is cut off from everyone; clients near it still enter there", GLOBAL.1));
    scene.op(What::TakeOver { zone: name.clone(), to: None }).await?;
    let (homes, owned) = (scene.shards_of(BROKEN), taken_while_cut(scene, from).await?);
    scene.outage(from, owned, move |order, shard| order.router != BROKEN && shard.is_none_or(|s| homes.contains(&s.0)));
    scene.flow(WHILE).await?;
    scene.stage.cluster.wan.heal(Lines::All);
    scene.stage.ready().await?;
    scene.outage(from, Instant::now(), entered_there_for_others(scene));
    let to = Instant::now();
    scene.step(format!("healed; every link is live {:.0} ms after the cut", ms(from.elapsed())));
    restore(scene, before).await?;
    scene.flow(BETWEEN).await?;
    Ok(Cut { from, to })
}

fn judge(scene: &mut Scene<'_>, written: &[Write], cut: &Cut) -> Result<(), String> {
    let name = scene.stage.name(BROKEN);
    let during = |w: &&Write| w.answered >= cut.from && w.sent < cut.to;
    let failed: Vec<&str> = written.iter().filter(|w| !during(w) && w.by().is_none()).map(|w| w.key.as_str()).collect();
    scene.check(
        "no write of the global service failed while it moved, or after it was back",
        failed.is_empty(),
        format!("{} of {}: {:?}", failed.len(), written.len(), failed.iter().take(5).collect::<Vec<_>>()),
    );
    let cut_off = || written.iter().filter(during);
    let last = cut_off().filter(|w| w.by() == Some(name)).filter(|w| w.answered < cut.to).map(|w| w.answered).max();
    let first = cut_off().filter(|w| w.by().is_some_and(|by| by != name)).map(|w| w.answered).min();
    let (Some(last), Some(first)) = (last, first) else {
        let seen = format!("the owner wrote after the cut: {}, a successor: {}", last.is_some(), first.is_some());
        scene.check("both the owner and its successor wrote it", false, seen);
        return Ok(());
    };
    scene.figure("last_write_of_the_cut_off_owner_ms", ms(last - cut.from));
    scene.figure("first_write_of_its_successor_ms", ms(first - cut.from));
    scene.check(
        "the cut-off owner wrote no more when its successor began",
        last < first,
        format!("{:.0} ms and {:.0} ms after the cut", ms(last - cut.from), ms(first - cut.from)),
    );
    let refused = cut_off().filter(|w| w.answer.as_ref().is_some_and(|(status, _)| *status == 503)).count();
    scene.check("without a lease it refused", refused > 0, format!("{refused} writes"));
    for zone in 0..scene.stage.cluster.zones.len() {
        let name = scene.stage.name(zone);
        let rows = rows::rows(&scene.stage.cluster.zones[zone].data, GLOBAL.1);
        let rows: BTreeMap<Vec<u8>, Vec<u8>> =
            rows.map_err(|e| format!("the store of {name}: {e}"))?.into_iter().collect();
        let has = |w: &Write| rows.get(w.key.as_bytes()).is_some_and(|value| value == w.key.as_bytes());
        let lost = written.iter().filter(|w| w.by().is_some() && !has(w)).count();
        let unasked = written.iter().filter(|w| w.by().is_none() && w.answer.is_some() && has(w)).count();
        scene.check(
            &format!("{name}: each acknowledged write is there, and none that was refused"),
            lost + unasked == 0,
            format!("{lost} lost, {unasked} unasked; {} rows", rows.len()),
        );
    }
    Ok(())
}
