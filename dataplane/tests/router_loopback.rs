//! Two routers on their own rings, over loopback, with a backend and a log port made of plain threads.

mod router_table;

use bytes::{Bytes, BytesMut};
use dataplane::router::{Peer, Routes, Service, Settings, Shared, Side};
use dataplane::uring::{self, Control};
use replog::port::{Answer, Ask, put_answer, take_ask};
use replog::{Hlc, Version};
use router_table::Table;
use shardmap::{OwnerEpoch, Zone};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

const BJ: Zone = Zone(0);
const SH: Zone = Zone(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// One zone's router on a thread of its own.
struct Router {
    control: Control,
    client: SocketAddr,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Router {
    fn start(
        zone: Zone,
        name: &str,
        peer_listener: uring::Listener,
        peers: Vec<(Zone, SocketAddr)>,
        ports: Vec<PathBuf>,
    ) -> Router {
        let backend = backend(name);
        let settings = Settings {
            zone: Some(zone),
            zone_names: vec![(BJ, "bj".into()), (SH, "sh".into())],
            peers: peers.into_iter().map(|(zone, at)| Peer::new(zone, &[at])).collect(),
            log_ports: ports,
            services: vec![Service::new("/", &[backend])],
            ..Settings::default()
        };
        let shared = Arc::new(Shared::new(1));
        let (control, mut wakers) = uring::control(shared.clone()).unwrap();
        let listener = uring::listen("127.0.0.1:0".parse().unwrap(), Side::Client).unwrap();
        let client = listener.local_addr().unwrap();
        let waker = wakers.pop().unwrap();
        let listeners = vec![listener, peer_listener];
        let thread = Some(spawn(move || uring::run(0, Arc::new(settings), listeners, waker, shared)));
        Router { control, client, thread }
    }

    fn map(&self, table: Table) {
        let map: Arc<dyn Routes> = Arc::new(table);
        let epoch = map.epoch().0;
        self.control.set_map(&map);
        wait_for("the map to be adopted", || self.control.shared().total().map_epoch >= epoch);
    }

    fn stop(mut self) {
        self.control.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "waited too long for {what}");
        sleep(Duration::from_millis(2));
    }
}

/// Two zones: shard 1 is bj's, shard 2 is sh's.
fn zones(name: &str) -> (Router, Router) {
    let listen = || uring::listen("127.0.0.1:0".parse().unwrap(), Side::Peer).unwrap();
    let (bj_peer, sh_peer) = (listen(), listen());
    let (bj_at, sh_at) = (bj_peer.local_addr().unwrap(), sh_peer.local_addr().unwrap());
    let ports = [log_port(&format!("{name}-bj"), BJ), log_port(&format!("{name}-sh"), SH)];
    let bj = Router::start(BJ, "bj", bj_peer, vec![(SH, sh_at)], vec![ports[0].clone()]);
    let sh = Router::start(SH, "sh", sh_peer, vec![(BJ, bj_at)], vec![ports[1].clone()]);
    for router in [&bj, &sh] {
        router.map(Table::new(1, &[(1, BJ), (2, SH)]));
    }
    (bj, sh)
}

/// Answers each request with its zone's name, the length of its body, and the body: chunked if the path says so.
fn backend(zone: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, zone) = (listener.local_addr().unwrap(), zone.to_string());
    spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, zone) = (stream.unwrap(), zone.clone());
            spawn(move || while serve(&mut stream, &zone).is_some() {});
        }
    });
    addr
}

fn serve(stream: &mut TcpStream, zone: &str) -> Option<()> {
    let (head, body) = read_message(stream)?;
    let mut answer = format!("HTTP/1.1 200 OK\r\nx-backend: {zone}\r\n").into_bytes();
    if head.contains("/chunked") {
        answer.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
        for part in body.chunks(10_000) {
            answer.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            answer.extend_from_slice(part);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
    } else {
        answer.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        answer.extend_from_slice(&body);
    }
    stream.write_all(&answer).ok()
}

/// A log core that keeps rows in memory.
fn log_port(name: &str, zone: Zone) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ezone-router-{}-{name}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    spawn(move || {
        let (mut rows, mut seq) = (HashMap::<Bytes, (Version, Bytes)>::new(), 0);
        for stream in listener.incoming() {
            let (mut stream, mut input, mut chunk) = (stream.unwrap(), BytesMut::new(), [0u8; 4096]);
            while let Ok(n @ 1..) = stream.read(&mut chunk) {
                input.extend_from_slice(&chunk[..n]);
                let mut out = BytesMut::new();
                while let Some((corr, ask)) = take_ask(&mut input).unwrap() {
                    let answer = match ask {
                        Ask::Write { key, value, .. } => {
                            seq += 1;
                            let key = key.unwrap_or_else(|| seq.to_string().into());
                            let version = Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(seq), zone, stream: 0 };
                            rows.insert(key.clone(), (version, value.unwrap_or_default()));
                            Answer::Written { key, version, seq }
                        }
                        Ask::Read { key, .. } => match rows.get(&key) {
                            Some((version, value)) => Answer::Row { version: *version, value: value.clone() },
                            None => Answer::Absent,
                        },
                        other @ (Ask::ReadAfter { .. } | Ask::Commit(_) | Ask::Changes(_) | Ask::Standing { .. }) => {
                            panic!("not asked for here: {other:?}")
                        }
                    };
                    put_answer(&mut out, corr, &answer);
                }
                stream.write_all(&out).unwrap();
            }
        }
    });
    path
}

/// One message: its head and its body, decoded; `None` at the end of the connection.
fn read_message(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let head = read_until(stream, b"\r\n\r\n")?;
    let lower = head.to_lowercase();
    let mut body = vec![];
    if !lower.contains("transfer-encoding: chunked") {
        let length = lower.split("content-length: ").nth(1).map_or("0", |l| l.split("\r\n").next().unwrap());
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).ok()?;
        return Some((head, body));
    }
    loop {
        let size = usize::from_str_radix(read_until(stream, b"\r\n")?.trim(), 16).unwrap();
        let mut data = vec![0; size + 2];
        stream.read_exact(&mut data).ok()?;
        body.extend_from_slice(&data[..size]);
        if size == 0 {
            return Some((head, body));
        }
    }
}

fn read_until(stream: &mut TcpStream, end: &[u8]) -> Option<String> {
    let (mut out, mut byte) = (vec![], [0u8; 1]);
    while !out.ends_with(end) {
        stream.read_exact(&mut byte).ok()?;
        out.push(byte[0]);
    }
    String::from_utf8(out).ok()
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, line: &str, shop: u16, body: &[u8]) -> (String, Vec<u8>) {
    let head =
        format!("{line} HTTP/1.1\r\nHost: h\r\nx-shard: shopid={shop}\r\nContent-Length: {}\r\n\r\n", body.len());
    let (mut half, whole) = (stream.try_clone().unwrap(), [head.as_bytes(), body].concat());
    let writer = spawn(move || half.write_all(&whole));
    let answer =
        read_message(stream).unwrap_or_else(|| panic!("no answer to {line} of shop {shop}, {} bytes", body.len()));
    writer.join().unwrap().unwrap();
    answer
}

#[test]
fn each_request_is_served_by_its_shards_zone_and_bodies_pass_whole_both_ways() {
    let (bj, sh) = zones("serve");
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    for (router, shop, zone) in [(&bj, 1, "bj"), (&bj, 2, "sh"), (&sh, 1, "bj"), (&sh, 2, "sh")] {
        let mut stream = connect(router.client);
        for (path, body) in [("/a", &b"small"[..]), ("/chunked", &big), ("/length", &big), ("/chunked", b"")] {
            let (head, got) = ask(&mut stream, &format!("POST {path}"), shop, body);
            assert!(head.contains(&format!("x-backend: {zone}\r\n")), "{head}");
            assert!(head.contains(&format!("x-ezone: {zone}\r\nx-ezone-shard: {shop}\r\n")), "{head}");
            assert!(got == body, "{path} at {zone}: {} bytes of {}", got.len(), body.len());
        }
    }
    assert_eq!(bj.control.shared().total().forwarded, 4);
    bj.stop();
    sh.stop();
}

#[test]
fn records_are_kept_by_their_zone_wherever_they_are_written() {
    let (bj, sh) = zones("records");
    let mut stream = connect(bj.client);
    let (head, body) = ask(&mut stream, "PUT /records/orders/k1", 2, b"{\"a\":1}");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-ezone: sh\r\n"), "{head}");
    assert!(head.contains("x-ezone-version: 1.1.1.0\r\n"), "{head}");
    assert_eq!(body, br#"{"key":"k1","seq":1,"version":"1.1.1.0"}"#);
    let (head, body) = ask(&mut connect(sh.client), "GET /records/orders/k1", 2, b"");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(body, b"{\"a\":1}");
    let (head, _) = ask(&mut connect(sh.client), "GET /records/orders/k1", 1, b"");
    assert!(head.starts_with("HTTP/1.1 404") && head.contains("x-ezone: bj\r\n"), "{head}");
    let (head, _) = ask(&mut stream, "POST /records/orders", 1, b"{}");
    assert!(head.starts_with("HTTP/1.1 201") && head.contains("location: /records/orders/1\r\n"), "{head}");
    bj.stop();
    sh.stop();
}

#[test]
fn a_planned_move_shows_clients_a_delay_and_no_error() {
    let (bj, sh) = zones("move");
    let at = bj.client;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            spawn(move || {
                let mut stream = connect(at);
                (0..100).map(|_| ask(&mut stream, "POST /a", 1, b"order").0).collect::<Vec<_>>()
            })
        })
        .collect();
    wait_for("some load", || bj.control.shared().total().answered_2xx_3xx > 50);
    for router in [&sh, &bj] {
        router.map(Table::new(2, &[(1, BJ), (2, SH)]).moving(1, SH));
    }
    wait_for("the drain", || bj.control.shared().drained(2) && sh.control.shared().drained(2));
    wait_for("holds", || bj.control.shared().total().holding == 8);
    for router in [&bj, &sh] {
        router.map(Table::new(3, &[(1, SH), (2, SH)]));
    }
    let heads: Vec<_> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
    assert!(heads.iter().all(|h| h.starts_with("HTTP/1.1 200")), "{:?}", heads.iter().find(|h| !h.contains(" 200 ")));
    for zone in ["bj", "sh"] {
        assert!(heads.iter().any(|h| h.contains(&format!("x-ezone: {zone}\r\n"))));
    }
    assert_eq!(heads.len(), 800);
    bj.stop();
    sh.stop();
}

#[test]
fn a_dead_zone_and_a_dead_backend_are_answered_not_awaited() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let peer = uring::listen("127.0.0.1:0".parse().unwrap(), Side::Peer).unwrap();
    let bj = Router::start(BJ, "bj", peer, vec![(SH, gone)], vec![Path::new("/nonexistent/port").into()]);
    bj.map(Table::new(1, &[(1, BJ), (2, SH)]));
    let mut stream = connect(bj.client);
    let (head, body) = ask(&mut stream, "POST /a", 2, b"x");
    assert!(head.starts_with("HTTP/1.1 502") && body.starts_with(b"{\"error\":"), "{head}");
    let (head, _) = ask(&mut stream, "PUT /records/orders/1", 1, b"x");
    assert!(head.starts_with("HTTP/1.1 503") && !head.contains("unknown"), "{head}");
    assert!(ask(&mut stream, "GET /a", 1, b"").0.starts_with("HTTP/1.1 200"), "the core still serves");
    bj.stop();
}

#[test]
fn many_connections_come_and_go_and_none_is_left() {
    let (bj, sh) = zones("churn");
    for round in 0..20 {
        let mut streams: Vec<_> = (0..30).map(|_| connect(bj.client)).collect();
        for (i, stream) in streams.iter_mut().enumerate() {
            let body = vec![b'x'; i * 100];
            if (i + round) % 3 == 0 {
                stream
                    .write_all(b"POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 9\r\n\r\nhalf")
                    .unwrap();
            } else {
                assert_eq!(ask(stream, "POST /a", 1, &body).1, body);
            }
        }
    }
    wait_for("the clients' connections to be closed", || bj.control.shared().total().connections <= 64);
    wait_for("nothing in flight", || bj.control.shared().total().in_flight == 0);
    bj.stop();
    sh.stop();
}

/// PITFALLS: provided buffers that run out; multishot requests that end quietly. Eighty senders at once hold more than
/// the ring's 4 MiB of buffers, and every receive that ended for want of one must be armed again.
#[test]
fn more_senders_than_provided_buffers_are_all_served_whole() {
    let (bj, sh) = zones("buffers");
    let at = bj.client;
    let body: Arc<Vec<u8>> = Arc::new((0..400_000u32).map(|i| (i % 249) as u8).collect());
    let clients: Vec<_> = (0..80)
        .map(|n| {
            let body = body.clone();
            spawn(move || ask(&mut connect(at), "POST /length", 1 + n % 2, &body).1 == *body)
        })
        .collect();
    assert!(clients.into_iter().all(|c| c.join().unwrap()));
    wait_for("nothing in flight", || bj.control.shared().total().in_flight == 0);
    bj.stop();
    sh.stop();
}
