//! Places orders at real towns at a given rate, whatever the answers, and keeps what became of each.
//!
//! Open loop: an order is due at its time, and its latency counts from then, so that a stall of the system shows in every order
//! that was due meanwhile. A thread of its own keeps the time, because the runtime's timers are rounded up to a millisecond.

use super::client::{Client, Response};
use super::places::{Place, places};
use super::report::{Books, Order, Outcome, Report, Second};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

/// Orders of one router that wait for a connection; beyond that they are not sent.
const WAITING_MAX: usize = 16 * 1024;
/// All orders of a run; then the driver falls silent.
const ORDERS_MAX: usize = 4_000_000;
const RATE_MIN: f64 = 0.001;
const RATE_MAX: f64 = 1e6;
/// How soon the timekeeper notices a new rate or the end.
const REST: Duration = Duration::from_millis(10);

/// Whom a driver asks, and how often.
pub struct DriverOptions {
    /// The routers: where they listen, and the name of the zone that each belongs to.
    pub routers: Vec<(SocketAddr, String)>,
    /// Connections to each router: as many orders can be under way there.
    pub connections: usize,
    /// Orders a second.
    pub rate: f64,
    /// Fixes the sequence of places.
    pub seed: u64,
    /// After this time an order's outcome is unknown.
    pub timeout: Duration,
    /// The table that orders are written to.
    pub table: String,
    /// Stands in for DNS: the router that a client at this place is sent to.
    pub entry: Box<dyn Fn(&Place) -> usize + Send + Sync>,
}

impl DriverOptions {
    /// 64 connections to each router, a timeout of 10 s.
    pub fn new(
        routers: Vec<(SocketAddr, String)>,
        rate: f64,
        entry: Box<dyn Fn(&Place) -> usize + Send + Sync>,
    ) -> Self {
        DriverOptions {
            routers,
            connections: 64,
            rate,
            seed: 1,
            timeout: Duration::from_secs(10),
            table: "orders".into(),
            entry,
        }
    }
}

/// A stream of orders that is under way; dropped, it stops.
pub struct Driver {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

struct Shared {
    options: DriverOptions,
    stopped: AtomicBool,
    /// Bits of an `f64`.
    rate: AtomicU64,
    up: Vec<AtomicBool>,
    books: Mutex<Books>,
}

/// An order that is due.
struct Due {
    number: u64,
    at: Instant,
    place: usize,
    router: usize,
}

impl Driver {
    /// Begins at once, in phase "". Must be called within a tokio runtime.
    pub fn start(options: DriverOptions) -> Driver {
        let towns = Arc::new(places());
        let shared = Arc::new(Shared {
            stopped: AtomicBool::new(false),
            rate: AtomicU64::new(options.rate.to_bits()),
            up: options.routers.iter().map(|_| AtomicBool::new(true)).collect(),
            books: Mutex::new(Books::new(options.routers.iter().map(|r| r.1.clone()))),
            options,
        });
        let (mut workers, mut queues) = (JoinSet::new(), Vec::new());
        for _ in 0..shared.options.routers.len() {
            let (queue, due) = mpsc::channel(WAITING_MAX);
            let due = Arc::new(tokio::sync::Mutex::new(due));
            for _ in 0..shared.options.connections.max(1) {
                workers.spawn(work(Arc::clone(&shared), Arc::clone(&towns), Arc::clone(&due)));
            }
            queues.push(queue);
        }
        let clock = Arc::clone(&shared);
        thread::Builder::new()
            .name("orders".into())
            .spawn(move || keep_time(&clock, &towns, &queues))
            .expect("a process at its start has room for one more thread");
        Driver { shared, workers }
    }

    /// Whether clients are sent to this router; else they go to the next one that is up.
    pub fn set_router_up(&self, router: usize, up: bool) {
        if let Some(is) = self.shared.up.get(router) {
            is.store(up, Relaxed);
        }
    }

    /// Orders a second from now on; outside of 0.001 to 1,000,000 the driver pauses.
    pub fn set_rate(&self, rate: f64) {
        self.shared.rate.store(rate.to_bits(), Relaxed);
    }

    /// Answers from now on count for this phase.
    pub fn set_phase(&self, phase: &str) {
        self.shared.books().set_phase(phase);
    }

    /// What happened since the last call.
    pub fn snapshot(&self) -> Second {
        self.shared.books().snapshot()
    }

    /// Places no more orders, waits for those under way (at most twice the timeout) and tells all.
    pub async fn stop(mut self) -> Report {
        self.shared.stopped.store(true, Relaxed);
        while self.workers.join_next().await.is_some() {}
        self.shared.books().close()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("nobody panics with the books in hand")
    }
    /// The first router that is up, from this one on; this one if none is.
    fn alive(&self, from: usize) -> usize {
        let n = self.up.len();
        (0..n).map(|i| (from + i) % n).find(|&r| self.up[r].load(Relaxed)).unwrap_or(from % n.max(1))
    }
}

/// Puts each order into its router's queue when it is due; ends, and closes the queues, when the driver stops.
fn keep_time(shared: &Shared, towns: &[Place], queues: &[Sender<Due>]) {
    let (mut at, mut number, mut dice) = (Instant::now(), 0, shared.options.seed);
    while !shared.stopped.load(Relaxed) && number < ORDERS_MAX as u64 && !queues.is_empty() {
        let rate = f64::from_bits(shared.rate.load(Relaxed));
        if !(RATE_MIN..=RATE_MAX).contains(&rate) {
            thread::sleep(REST);
            at = Instant::now();
            continue;
        }
        let gap = Duration::from_secs_f64(1.0 / rate);
        at = at.min(Instant::now() + gap); // the rate has risen since this one was planned
        let wait = at.saturating_duration_since(Instant::now());
        if wait > REST {
            thread::sleep(REST);
            continue;
        }
        if wait > Duration::from_micros(50) {
            thread::sleep(wait);
        }
        let place = (next(&mut dice) % towns.len() as u64) as usize;
        let router = shared.alive((shared.options.entry)(&towns[place]));
        let due = Due { number, at, place, router };
        if let Err(full) = queues[router].try_send(due) {
            let due = full.into_inner();
            shared.books().enter(order(shared, &due));
        }
        number += 1;
        at += gap;
    }
}

/// splitmix64
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn order(shared: &Shared, due: &Due) -> Order {
    Order {
        token: format!("{:x}-{}", shared.options.seed, due.number),
        due: due.at,
        place: due.place,
        sent: None,
        answered: None,
        router: due.router,
        zone: None,
        status: None,
        id: None,
        outcome: Outcome::NotSent,
    }
}

/// One client: sends the orders of a queue, one after the other, each to its router.
async fn work(shared: Arc<Shared>, towns: Arc<Vec<Place>>, queue: Arc<tokio::sync::Mutex<Receiver<Due>>>) {
    let routers = &shared.options.routers;
    let mut clients: Vec<Option<Client>> = routers.iter().map(|_| None).collect();
    loop {
        let Some(mut due) = queue.lock().await.recv().await else { return };
        due.router = shared.alive(due.router);
        let mut order = order(&shared, &due);
        if due.at.elapsed() < shared.options.timeout {
            let request = request(&shared.options.table, &order.token, &towns[due.place], due.number);
            send(&mut order, &mut clients[due.router], routers[due.router].0, &request, shared.options.timeout).await;
        }
        shared.books().enter(order);
    }
}

async fn send(order: &mut Order, client: &mut Option<Client>, to: SocketAddr, request: &[u8], timeout: Duration) {
    if !client.as_ref().is_some_and(Client::is_open) {
        *client = tokio::time::timeout(timeout, Client::connect(to)).await.ok().and_then(Result::ok);
    }
    let Some(open) = client else { return };
    order.sent = Some(Instant::now());
    match tokio::time::timeout(timeout, open.ask(request)).await {
        Ok(Ok(response)) => answered(order, response),
        Ok(Err(_)) | Err(_) => {
            order.outcome = Outcome::Unknown;
            *client = None;
        }
    }
}

fn answered(order: &mut Order, response: Response) {
    order.answered = Some(Instant::now());
    order.outcome = match response.status {
        _ if response.unknown => Outcome::Unknown,
        200..300 => Outcome::Acknowledged,
        status => Outcome::Refused(status),
    };
    let json: Option<serde_json::Value> = serde_json::from_slice(&response.body).ok();
    order.id = json.and_then(|v| Some(v.get("id")?.as_str()?.to_owned()));
    (order.status, order.zone) = (Some(response.status), response.zone);
}

fn request(table: &str, token: &str, place: &Place, number: u64) -> Vec<u8> {
    let mut body = String::with_capacity(400);
    let Place { name, lat, lng, loc } = place;
    let cents = 1200 + number % 3000;
    write!(
        body,
        r#"{{"token":"{token}","place":"{name}","lng":{lng},"lat":{lat},"items":[{{"dish":"dan dan noodles","count":1,"cents":{cents}}},{{"dish":"mapo tofu","count":2,"cents":2400}},{{"dish":"steamed rice","count":2,"cents":300}}],"courier":"nearest","note":"leave it at the gate, ring twice, no onions please"}}"#
    )
    .expect("a String takes everything");
    let bytes = body.len();
    format!(
        "POST /records/{table} HTTP/1.1\r\nhost: demo\r\nx-shard: loc={loc}\r\ncontent-type: application/json\r\n\
         content-length: {bytes}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
