//! A third zone is added to two real ones under load: its nodes are started, it gets all that was written before and since, and then a shard.

mod process_kit;

use dataplane::control::gzs_client::GzsClient;
use dataplane::sandbox::client::{Client, Response};
use dataplane::sandbox::pages::Pages;
use dataplane::sandbox::process::Process;
use gzs::api::{OpAsk, OpView, What};
use process_kit::{Dir, PATIENCE, addresses, map};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["bj", "sh", "gz"];
const GZ: usize = 2;
/// Beijing, whose shard the third zone gets; and Shanghai.
const PLACES: [&str; 2] = ["loc=116.40,39.90", "loc=121.47,31.23"];
const MOVED: u16 = 121;
const LOOK: Duration = Duration::from_millis(20);

/// Clients of the router, other routers, the router's pages, other logs, the log's pages.
type Ports = [SocketAddr; 5];

struct Zone {
    log: Process,
    router: Process,
    ports: Ports,
}

struct Zones {
    zones: Vec<Zone>,
    _service: Process,
    gzs: GzsClient,
    pages: Pages,
    dir: Dir,
}

impl Zones {
    fn start(dir: Dir) -> Zones {
        let at: [SocketAddr; 16] = addresses();
        let service = service(&dir, at[15]);
        let ports: Vec<Ports> = at[..15].chunks(5).map(|p| p.try_into().unwrap()).collect();
        let zone = |i: usize| {
            let [client, peer, router_admin, link, log_admin] = ports[i];
            let process = |part: &str, listens: &[SocketAddr]| {
                let config = dir.join(format!("{}.toml", NAMES[i]));
                let name = format!("{part} of {}", NAMES[i]);
                Process::new(name, Path::new(env!("CARGO_BIN_EXE_ezone")), part, &config, dir.join("said"))
                    .listening(listens)
            };
            let (log, router) = (process("log", &[link, log_admin]), process("router", &[client, peer, router_admin]));
            Zone { log, router, ports: ports[i] }
        };
        let zones = (0..NAMES.len()).map(zone).collect();
        let gzs = GzsClient::new(&format!("http://{}", at[15]), None).unwrap();
        Zones { zones, _service: service, gzs, pages: Pages::new().unwrap(), dir }
    }

    /// The configuration of zone `i` in a system of the first `zones` zones.
    fn configure(&self, i: usize, zones: usize, gzs: SocketAddr) {
        let [client, peer, router_admin, link, log_admin] = self.zones[i].ports;
        let mut text = format!(
            "[node]\nzone = \"{0}\"\ndata_dir = \"{0}\"\n[map]\ngzs = \"http://{gzs}\"\n\
             [router]\nlisten = [\"{client}\"]\npeer_listen = [\"{peer}\"]\nadmin = \"{router_admin}\"\ncores = [0]\n\
             [log]\nlisten = \"{link}\"\nadmin = \"{log_admin}\"\ncores = [0]\nstreams = 2\nsegment_mib = 1\n",
            NAMES[i]
        );
        for other in (0..zones).filter(|other| *other != i) {
            let ports = self.zones[other].ports;
            text += &format!("[zones.{}]\nrouter = \"{}\"\nlink = \"{}\"\n", NAMES[other], ports[1], ports[3]);
        }
        fs::write(self.dir.join(format!("{}.toml", NAMES[i])), text).unwrap();
    }

    async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let late = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(Instant::now() < late, "{what}: not in time\n{}", self.dir.said());
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn writable(&self, i: usize) {
        let at = self.zones[i].ports[4];
        self.until("the log takes writes", async || self.pages.log(at).await.filter(|s| !s.read_only)).await;
    }

    async fn begin(&self, what: What) -> OpView {
        let ask = OpAsk { what, by: "li".into(), why: "a test".into(), force: false, limit_ms: Some(120_000) };
        self.until("the preflight has nothing against it", async || self.gzs.begin(&ask).await.ok()).await
    }
}

fn service(dir: &Path, listen: SocketAddr) -> Process {
    for file in ["china.toml", "china-provinces.geojson"] {
        fs::copy(map().with_file_name(file), dir.join(file)).unwrap();
    }
    let text = format!("[gzs]\ndata_dir = \"service\"\nlisten = \"{listen}\"\nmap = \"china.toml\"\ncool_down_s = 0\n");
    fs::write(dir.join("gzs.toml"), text).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_ezone"));
    let mut service = Process::new("service".into(), program, "gzs", &dir.join("gzs.toml"), dir.join("said"));
    service.start().unwrap();
    service
}

async fn ask(at: SocketAddr, request: &str) -> std::io::Result<Response> {
    Client::connect(at).await?.ask(request.as_bytes()).await
}

/// Places an order: its id, if it was acknowledged, and who served it.
async fn order(at: SocketAddr, place: &str) -> Option<(String, String)> {
    let request =
        format!("POST /records/orders HTTP/1.1\r\nhost: x\r\nx-shard: {place}\r\ncontent-length: 2\r\n\r\n{{}}");
    let answer = ask(at, &request).await.ok().filter(|a| (200..300).contains(&a.status))?;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    Some((body["id"].as_str()?.to_owned(), answer.zone?))
}

/// One client, until it is told to stop; what is not acknowledged while a log is restarted is nobody's.
async fn load(at: SocketAddr, place: &'static str, stop: Arc<AtomicBool>, ids: Arc<Mutex<Vec<String>>>) {
    while !stop.load(SeqCst) {
        match order(at, place).await {
            Some((id, _)) => ids.lock().unwrap().push(id),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The third zone gives its shard back and is removed: a node whose configuration names it still starts, and what it wrote is there.
async fn removed(zones: &mut Zones, id: &str) {
    let op = zones.begin(What::Move { shards: vec![MOVED], to: NAMES[0].into() }).await;
    let op = zones.gzs.ended(op.id, PATIENCE).await.unwrap_or_else(|e| panic!("{e}\n{}", zones.dir.said()));
    assert_eq!(op.state, "done", "{}", op.says);
    zones.zones[GZ].router.stop().await;
    zones.zones[GZ].log.stop().await;
    let op = zones.begin(What::RemoveZone { zone: NAMES[GZ].into() }).await;
    assert_eq!(op.state, "done", "{}", op.says);
    zones.zones[0].router.stop().await;
    zones.zones[0].log.stop().await;
    zones.zones[0].log.start().unwrap();
    zones.zones[0].router.start().unwrap();
    zones.writable(0).await;
    for i in 0..GZ {
        let at = zones.zones[i].ports[0];
        let (_, owner) = zones.until("orders without the third zone", async || order(at, PLACES[0]).await).await;
        assert_eq!(owner, NAMES[0]);
        let read = format!("GET /records/orders/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
        let answer = ask(at, &read).await.unwrap();
        assert_eq!((answer.status, answer.zone.as_deref()), (200, Some(NAMES[0])), "the third zone issued this id");
    }
    // The shard's history names the log of the third zone: both know still how far they had applied it.
    for to in [NAMES[1], NAMES[0]] {
        let op = zones.begin(What::Move { shards: vec![MOVED], to: to.into() }).await;
        let op = zones.gzs.ended(op.id, PATIENCE).await.unwrap_or_else(|e| panic!("{e}\n{}", zones.dir.said()));
        assert_eq!(op.state, "done", "{to}: {}", op.says);
    }
    assert!(
        zones.dir.said().contains("[zones.gz] was removed from the map: it is passed over"),
        "{}",
        zones.dir.said()
    );
}

#[test]
fn a_third_zone_is_added_under_load_gets_every_row_and_then_a_shard() {
    let runtime = dataplane::control::runtime().unwrap();
    runtime.block_on(added(Dir::new("added")));
}

async fn added(dir: Dir) {
    let mut zones = Zones::start(dir);
    let gzs_at: SocketAddr =
        fs::read_to_string(zones.dir.join("gzs.toml")).unwrap().split('"').nth(3).unwrap().parse().unwrap();
    for i in 0..GZ {
        zones.configure(i, GZ, gzs_at);
        zones.zones[i].log.start().unwrap();
        zones.zones[i].router.start().unwrap();
    }
    let routers: Vec<SocketAddr> = zones.zones.iter().map(|z| z.ports[0]).collect();
    let (stop, ids) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(vec![])));
    for place in PLACES {
        zones.until("orders are taken", async || order(routers[0], place).await).await;
    }
    let clients: Vec<_> = (0..GZ)
        .flat_map(|i| PLACES.map(|place| tokio::spawn(load(routers[i], place, stop.clone(), ids.clone()))))
        .collect();
    let more = async |zones: &Zones| {
        let until = ids.lock().unwrap().len() + 100;
        zones.until("more orders", async || (ids.lock().unwrap().len() >= until).then_some(())).await;
    };
    more(&zones).await;

    // First the map: a node refuses a configuration with a zone that the map does not have.
    let op = zones.begin(What::AddZone { zone: NAMES[GZ].into() }).await;
    let tells = "give every other zone's nodes [zones.gz]";
    zones.until("it says what to do", async || zones.gzs.op(op.id).await.ok().filter(|o| o.says.contains(tells))).await;
    more(&zones).await;
    for i in 0..GZ {
        zones.configure(i, NAMES.len(), gzs_at);
        zones.zones[i].router.stop().await;
        zones.zones[i].log.stop().await;
        zones.zones[i].log.start().unwrap();
        zones.zones[i].router.start().unwrap();
        zones.writable(i).await;
    }
    assert_eq!(zones.gzs.op(op.id).await.unwrap().state, "running");
    zones.configure(GZ, NAMES.len(), gzs_at);
    zones.zones[GZ].log.start().unwrap();
    zones.zones[GZ].router.start().unwrap();
    let op = zones.gzs.ended(op.id, PATIENCE).await.unwrap_or_else(|e| panic!("{e}\n{}", zones.dir.said()));
    assert_eq!(op.state, "done", "{}", op.says);
    more(&zones).await;

    // Then an ordinary move.
    let op = zones.begin(What::Move { shards: vec![MOVED], to: NAMES[GZ].into() }).await;
    let op = zones.gzs.ended(op.id, PATIENCE).await.unwrap_or_else(|e| panic!("{e}\n{}", zones.dir.said()));
    assert_eq!(op.state, "done", "{}", op.says);
    let mut issued = String::new();
    for router in &routers {
        let (id, owner) = zones.until("an order at the new owner", async || order(*router, PLACES[0]).await).await;
        assert_eq!(owner, NAMES[GZ]);
        issued.clone_from(&id);
        ids.lock().unwrap().push(id);
    }
    stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let ids = ids.lock().unwrap().clone();
    for id in &ids {
        let read = format!("GET /records/orders/{id} HTTP/1.1\r\nhost: x\r\nx-ezone-read: local\r\n\r\n");
        let found = async || ask(routers[GZ], &read).await.ok().filter(|a| a.status == 200);
        zones.until(&format!("order {id} in the new zone's own copy"), found).await;
    }
    removed(&mut zones, &issued).await;
    for zone in zones.zones.iter_mut().rev() {
        zone.router.stop().await;
        zone.log.stop().await;
    }
}
