//! A fence edit in two real zones with their service, under load: land goes to the other zone, and nobody sees more than a delay.

mod process_kit;

use dataplane::control::gzs_client::GzsClient;
use dataplane::sandbox::client::{Client, Response};
use dataplane::sandbox::cluster::{Cluster, Plan, ServiceSettings};
use dataplane::sandbox::pages::Pages;
use dataplane::sandbox::watch;
use gzs::api::{FencesAsk, OpAsk, What};
use process_kit::{Dir, PATIENCE};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// In the middle of what shard 407 gets of Jiangsu, whose shard 352 is zone sh's; 407 is zone bj's.
const GOES: &str = "loc=119.5,33.2";
/// In the rest of Jiangsu, and in the zone that gets the land.
const STAY: [&str; 2] = ["loc=118.8,32.06", "loc=117,36.65"];
const GIVES: u16 = 352;
const GETS: u16 = 407;
/// Orders of each client before the edit, and after it.
const ORDERS: u64 = 150;

/// One order: the number of things that had happened when it was sent, and when it was answered.
struct Order {
    place: &'static str,
    sent: u64,
    answered: u64,
    status: u16,
    zone: String,
    id: String,
}

#[derive(Default)]
struct Load {
    stamp: AtomicU64,
    count: AtomicU64,
    stop: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

/// One client of one router, which places one order after the other.
async fn client(load: Arc<Load>, router: SocketAddr, place: &'static str) {
    let mut client = Client::connect(router).await.unwrap();
    let body = "{\"dish\":\"noodles\"}";
    let text = format!(
        "POST /records/orders HTTP/1.1\r\nhost: x\r\nx-shard: {place}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    while !load.stop.load(SeqCst) {
        let sent = load.stamp.fetch_add(1, SeqCst);
        let answer = client.ask(text.as_bytes()).await.unwrap_or_else(|e| panic!("{place} at {router}: {e}"));
        let answered = load.stamp.fetch_add(1, SeqCst);
        let Response { status, zone, body, .. } = answer;
        let id = serde_json::from_slice::<Value>(&body).ok().and_then(|v| Some(v["id"].as_str()?.to_owned()));
        let (zone, id) = (zone.unwrap_or_default(), id.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()));
        load.orders.lock().unwrap().push(Order { place, sent, answered, status, zone, id });
        load.count.fetch_add(1, SeqCst);
    }
}

/// So many orders more.
async fn more(load: &Load, orders: u64) {
    let (until, late) = (load.count.load(SeqCst) + orders, Instant::now() + PATIENCE);
    while load.count.load(SeqCst) < until {
        assert!(Instant::now() < late, "{} orders, expected {until}", load.count.load(SeqCst));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Today's fences, with a hole in Jiangsu that is a fence of shard 407.
fn edited(mut fences: Value) -> Value {
    let square = json!([[119.4, 33.1], [119.6, 33.1], [119.6, 33.3], [119.4, 33.3], [119.4, 33.1]]);
    let features = fences["features"].as_array_mut().unwrap();
    let jiangsu = features.iter_mut().find(|f| f["properties"]["name"] == "Jiangsu").unwrap();
    assert_eq!(jiangsu["geometry"]["type"], "MultiPolygon");
    let polygons = jiangsu["geometry"]["coordinates"].as_array_mut().unwrap();
    let mainland = polygons.iter_mut().max_by_key(|p| p[0].as_array().map_or(0, Vec::len)).unwrap();
    mainland.as_array_mut().unwrap().push(square.clone());
    features.push(json!({"type": "Feature", "properties": {"name": "Baoying", "shard": GETS},
        "geometry": {"type": "Polygon", "coordinates": [square]}}));
    fences
}

async fn begin(gzs: &GzsClient, from_epoch: u64, geojson: &Value) -> gzs::api::OpView {
    let what = What::Fences { from_epoch, geojson: geojson.clone(), datum: None };
    let ask = OpAsk { what, by: "li".into(), why: "a bridge".into(), force: false, limit_ms: Some(120_000) };
    let late = Instant::now() + PATIENCE;
    loop {
        // A preflight on a busy machine may find a node that was not heard for a moment.
        match gzs.begin(&ask).await {
            Ok(op) => return op,
            Err(e) => assert!(Instant::now() < late, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn read(router: SocketAddr, id: &str) -> Response {
    let text = format!("GET /records/orders/{id} HTTP/1.1\r\nhost: x\r\n\r\n");
    Client::connect(router).await.unwrap().ask(text.as_bytes()).await.unwrap()
}

#[test]
fn land_goes_to_another_zone_under_load_and_no_order_fails_or_is_written_at_two_zones_at_a_time() {
    let dir = Dir::new("edit");
    let runtime = dataplane::control::runtime().unwrap();
    runtime.block_on(under_load(dir.to_path_buf()));
}

async fn under_load(root: PathBuf) {
    let service = ServiceSettings { silence_ms: 0, move_limit_ms: 120_000 };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_ezone"));
    let plan =
        Plan { root, program, zones: 2, one_way: Duration::from_millis(2), service, global: false, limited: None };
    let (mut cluster, pages) = (Cluster::of(&plan).unwrap(), Pages::new().unwrap());
    watch::ready(&mut cluster, &pages, 1, PATIENCE).await.unwrap();
    let routers: Vec<SocketAddr> = cluster.zones.iter().map(|z| z.ports.client).collect();
    let gzs = GzsClient::new(&format!("http://{}", cluster.service.listen), None).unwrap();

    let load = Arc::new(Load::default());
    let places = [GOES, GOES, STAY[0], STAY[1]];
    let each = places.iter().flat_map(|place| routers.iter().map(|router| (*router, *place)));
    let clients: Vec<_> = each.map(|(router, place)| tokio::spawn(client(load.clone(), router, place))).collect();
    more(&load, ORDERS * 8).await;

    let new = edited(gzs.fences().await.unwrap());
    let preview = gzs.preview(&FencesAsk { geojson: new.clone(), ..FencesAsk::default() }).await.unwrap();
    let give = &preview.gives[0];
    assert_eq!(
        (preview.gives.len(), give.from, give.to, preview.held.as_slice()),
        (1, Some(GIVES), Some(GETS), &[GIVES][..])
    );
    assert!(give.changes_zone && (400.0..430.0).contains(&give.km2), "{give:?}");
    let op = begin(&gzs, preview.from_epoch, &new).await;
    let op = gzs.ended(op.id, PATIENCE).await.unwrap();
    assert_eq!(op.state, "done", "{}", op.says);
    let changed = load.stamp.load(SeqCst);
    let epoch = gzs.state().await.unwrap().epoch;
    watch::ready(&mut cluster, &pages, epoch, PATIENCE).await.unwrap();
    let known = load.stamp.load(SeqCst);
    more(&load, ORDERS * 8).await;
    load.stop.store(true, SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    let orders = std::mem::take(&mut *load.orders.lock().unwrap());
    check(&orders, changed, known);
    for order in orders.iter().filter(|o| o.answered < changed).step_by(25) {
        for router in &routers {
            let row = read(*router, &order.id).await;
            assert_eq!((row.status, row.zone.as_deref()), (200, Some(order.zone.as_str())), "{} by its id", order.id);
        }
    }
    watch::quiet(&mut cluster, &pages, PATIENCE).await.unwrap();
    cluster.stop().await;
}

/// `changed`: the fences are new; `known`: every router goes by them.
fn check(orders: &[Order], changed: u64, known: u64) {
    for order in orders {
        assert!((200..300).contains(&order.status), "{} {}: {}", order.place, order.status, order.id);
        let owner = match order.place {
            GOES if order.sent > known => "bj",
            GOES => order.zone.as_str(),
            place if place == STAY[0] => "sh",
            _ => "bj",
        };
        assert_eq!(order.zone, owner, "{} sent at {}, all know at {known}", order.place, order.sent);
    }
    let of = |zone: &'static str| orders.iter().filter(move |o| o.place == GOES && o.zone == zone);
    let first = of("bj").map(|o| o.answered).min().expect("bj gets the land");
    assert!(of("sh").count() > 0 && of("sh").all(|o| o.sent < changed), "until then it is sh's");
    let late: Vec<u64> = of("sh").map(|o| o.sent).filter(|sent| *sent > first).collect();
    assert!(late.is_empty(), "sent at {late:?} and written at sh, though bj had answered one of that place at {first}");
}
