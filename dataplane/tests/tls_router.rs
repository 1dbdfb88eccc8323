//! Routers that speak TLS on their own rings, over loopback: to clients, to each other, to upstreams.

mod router_table;
mod tls_kit;

use dataplane::router::{Counts, Endpoint, Limits, Peer, Routes, Service, Settings, Shared, Side};
use dataplane::tls::{Cluster, Contexts, Identity, Outgoing, TlsId};
use dataplane::uring::{self, Control};
use router_table::Table;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use shardmap::Zone;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};
use tls_kit::{Kit, Nobody, changed, zone};

const BJ: Zone = Zone(0);
const SH: Zone = Zone(1);
const PATIENCE: Duration = Duration::from_secs(20);
/// What towards zone sh is called; and towards upstreams.
const TO_SH: TlsId = TlsId(1);
const TO_UPSTREAM: TlsId = TlsId(2);

/// A router on a thread of its own.
struct Router {
    control: Control,
    settings: Settings,
    plain: SocketAddr,
    client: SocketAddr,
    peer: SocketAddr,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Router {
    /// Of `zone`, with listeners for clients by TLS and without, and for peers by TLS.
    fn start(settings: Settings) -> Router {
        let listen = |side| uring::listen("127.0.0.1:0".parse().unwrap(), side).unwrap();
        let listeners = vec![listen(Side::Client), listen(Side::TlsClient), listen(Side::TlsPeer)];
        let at: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let shared = Arc::new(Shared::new(1));
        let (control, mut wakers) = uring::control(shared.clone()).unwrap();
        let (waker, given) = (wakers.pop().unwrap(), Arc::new(settings.clone()));
        let thread = Some(spawn(move || uring::run(0, given, listeners, waker, shared)));
        let router = Router { control, settings, plain: at[0], client: at[1], peer: at[2], thread };
        let map: Arc<dyn Routes> = Arc::new(Table::new(1, &[(1, BJ), (2, SH)]));
        router.control.set_map(&map);
        wait_for("the map to be adopted", || router.counts().map_epoch == 1);
        router
    }

    fn counts(&self) -> Counts {
        self.control.shared().total()
    }

    /// Changes what new handshakes go by.
    fn renew(&self, tls: Contexts) {
        self.control.set_settings(&Arc::new(Settings { tls, ..self.settings.clone() }));
    }

    fn stop(mut self) {
        self.control.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn settings(of: Zone, services: Vec<Service>, peers: Vec<Peer>, tls: Contexts) -> Settings {
    Settings {
        zone: Some(of),
        zone_names: vec![(BJ, "bj".into()), (SH, "sh".into())],
        peers,
        services,
        tls,
        ..Settings::default()
    }
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "waited too long for {what}");
        sleep(Duration::from_millis(2));
    }
}

/// How a backend ends an answer.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Ends {
    /// With its length, and the connection stays.
    Framed,
    /// By the end of the connection, which is said.
    Said,
    /// By the end of the connection, which is not said: as if someone had cut it.
    Cut,
    /// With its length; then the end of the connection, which is not said.
    FramedAndCut,
}

/// Echoes what it is sent, over whatever `wrap` makes of a connection.
fn backend<S: Read + Write + Send + 'static>(
    ends: Ends,
    wrap: impl Fn(TcpStream) -> S + Send + Sync + 'static,
    end: impl Fn(&mut S) + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, wrap, end) = (listener.local_addr().unwrap(), Arc::new(wrap), Arc::new(end));
    spawn(move || {
        for stream in listener.incoming() {
            let (wrap, end) = (wrap.clone(), end.clone());
            spawn(move || {
                let mut stream = wrap(stream.unwrap());
                while let Some((head, body)) = read_message(&mut stream) {
                    let told = head.lines().find(|l| l.to_lowercase().starts_with("x-ezone-hop")).unwrap_or("no hop");
                    let framing = match ends {
                        Ends::Framed | Ends::FramedAndCut => format!("content-length: {}\r\n", body.len()),
                        Ends::Said | Ends::Cut => "connection: close\r\n".into(),
                    };
                    let answer = format!("HTTP/1.1 200 OK\r\nx-told: {told}\r\n{framing}\r\n");
                    if stream.write_all(&[answer.as_bytes(), &body].concat()).and_then(|()| stream.flush()).is_err() {
                        return;
                    }
                    match ends {
                        Ends::Framed => continue,
                        Ends::Said => return end(&mut stream),
                        Ends::Cut | Ends::FramedAndCut => return,
                    }
                }
            });
        }
    });
    addr
}

fn plain_backend() -> SocketAddr {
    backend(Ends::Framed, |s| s, |_| {})
}

fn tls_backend(config: Arc<ServerConfig>, ends: Ends) -> SocketAddr {
    backend(
        ends,
        move |s| StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), s),
        |s: &mut StreamOwned<ServerConnection, TcpStream>| {
            s.conn.send_close_notify();
            let _ = s.flush();
        },
    )
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn tls(to: SocketAddr, how: &Outgoing) -> Tls {
    tls_with(to, how.config.clone())
}

fn tls_with(to: SocketAddr, config: Arc<ClientConfig>) -> Tls {
    StreamOwned::new(ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap(), connect(to))
}

/// One message; `None`: the connection ended before it was whole.
fn read_message(stream: &mut impl Read) -> Option<(String, Vec<u8>)> {
    let head = read_until(stream, b"\r\n\r\n")?;
    let lower = head.to_lowercase();
    if lower.contains("transfer-encoding: chunked") {
        let mut body = vec![];
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
    let length = lower.split("content-length: ").nth(1).map_or("0", |l| l.split("\r\n").next().unwrap());
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

fn read_until(stream: &mut impl Read, end: &[u8]) -> Option<String> {
    let (mut out, mut byte) = (vec![], [0u8; 1]);
    while !out.ends_with(end) {
        stream.read_exact(&mut byte).ok()?;
        out.push(byte[0]);
    }
    String::from_utf8(out).ok()
}

/// Asks for `shop`'s shard; bodies are small enough for the socket's buffers, so that nobody waits for anybody.
fn ask(stream: &mut (impl Read + Write), shop: u16, body: &[u8]) -> Option<(String, Vec<u8>)> {
    ask_with(stream, shop, "", body)
}

fn ask_with(stream: &mut (impl Read + Write), shop: u16, more: &str, body: &[u8]) -> Option<(String, Vec<u8>)> {
    let length = body.len();
    let head =
        format!("POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid={shop}\r\n{more}Content-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).and_then(|()| stream.flush()).ok()?;
    read_message(stream)
}

/// A router of bj with a plain backend, for clients by TLS.
fn for_clients(kit: &Kit, limits: Limits) -> Router {
    let services = vec![Service::new("/", &[plain_backend()])];
    let tls = Contexts::new(Some(kit.listener()), None, []);
    Router::start(Settings { limits, ..settings(BJ, services, vec![], tls) })
}

fn endpoint(addr: SocketAddr, tls: TlsId) -> Endpoint {
    Endpoint { tls: Some(tls), ..Endpoint::new(addr) }
}

/// A service that is reached by TLS.
fn secure_service(addr: SocketAddr) -> Service {
    Service { endpoints: vec![endpoint(addr, TO_UPSTREAM)], ..Service::new("/", &[]) }
}

fn to_upstream(kit: &Kit, tls: Option<Outgoing>) -> Contexts {
    Contexts::new(None, None, [(TO_UPSTREAM, tls.unwrap_or_else(|| kit.client()))])
}

#[test]
fn clients_are_served_by_tls_as_they_are_without() {
    let kit = Kit::new();
    let router = for_clients(&kit, Limits::default());
    let mut stream = tls(router.client, &kit.client());
    for size in [0, 1, 100, 16_384, 60_000] {
        let body: Vec<u8> = (0..size as u32).map(|i| (i % 251) as u8).collect();
        let (head, got) = ask(&mut stream, 1, &body).unwrap_or_else(|| panic!("no answer for {size} bytes"));
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-ezone: bj\r\n"), "{head}");
        assert!(got == body, "{} bytes of {size}", got.len());
    }
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    // Half of the connection may end before the answer: it is said, and then the answer comes all the same.
    stream.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\r\n").unwrap();
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    assert!(read_message(&mut stream).unwrap().0.starts_with("HTTP/1.1 200"));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the router's end is said too: anything else were an error here");
    let counts = router.counts();
    assert_eq!((counts.tls_handshakes, counts.tls_resumed, counts.tls_failed_gone), (1, 0, 0));
    assert!(ask(&mut connect(router.plain), 1, b"x").is_some(), "the plain listener is there as well");
    router.stop();
}

#[test]
fn a_body_of_four_mebibytes_comes_back_whole_to_a_client_that_reads_late() {
    let kit = Kit::new();
    let router = for_clients(&kit, Limits::default());
    let body: Arc<Vec<u8>> = Arc::new((0..4_000_000u32).map(|i| (i % 241) as u8).collect());
    let mut stream = tls(router.client, &kit.client());
    let head = format!("POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    // One connection cannot be read and written by two threads with StreamOwned: write while there is room, then read.
    let (mut sent, mut got) = (0, vec![]);
    stream.sock.set_nonblocking(true).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut chunk = vec![0; 50_000];
    let expected = body.len();
    let mut answered = None;
    while answered.is_none_or(|at: usize| got.len() < at + expected) {
        assert!(Instant::now() < until, "{sent} sent, {} came back", got.len());
        match stream.write(&body[sent..(sent + 10_000).min(expected)]) {
            Ok(n) => sent += n,
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
        match stream.read(&mut chunk) {
            Ok(n) => got.extend_from_slice(&chunk[..n]),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
        let _ = stream.flush();
        if answered.is_none() {
            answered = got.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        }
    }
    assert!(got[answered.unwrap()..] == body[..]);
    router.stop();
}

#[test]
fn handshakes_that_fail_are_told_apart_and_leave_nothing() {
    let kit = Kit::new();
    let router = for_clients(&kit, Limits::default());
    // Plain HTTP is answered in plain words.
    let mut stream = connect(router.client);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let (head, body) = read_message(&mut stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 400") && String::from_utf8(body).unwrap().contains("https"), "{head}");
    // Garbage, a client that trusts nobody we know, one that speaks another protocol, one that leaves.
    let mut stream = connect(router.client);
    stream.write_all(&[0x80; 300]).unwrap();
    let _ = stream.read(&mut [0; 100]);
    let other = Kit::new();
    let mut stranger = tls(router.client, &other.client());
    assert!(stranger.write_all(b"x").and_then(|()| stranger.flush()).is_err());
    let mut h2 = tls(router.client, &changed(&kit.client(), |c| c.alpn_protocols = vec![b"h2".to_vec()]));
    assert!(h2.write_all(b"x").is_err());
    drop((stranger, h2, connect(router.client)));
    let seen = || {
        let c = router.counts();
        [c.tls_failed_not_tls, c.tls_failed_refused, c.tls_failed_incompatible, c.tls_failed_gone]
    };
    wait_for("four kinds of failures", || seen() == [2, 1, 1, 1]);
    wait_for("no connection to be left", || router.counts().connections == 0);
    assert!(ask(&mut tls(router.client, &kit.client()), 1, b"x").is_some(), "the core still serves");
    router.stop();
}

#[test]
fn handshakes_that_never_end_are_bounded_in_number_and_time() {
    let kit = Kit::new();
    let limits = Limits { tls_handshakes_max: 20, tls_handshake_ms: 1500, ..Limits::default() };
    let router = for_clients(&kit, limits);
    let mut silent: Vec<_> = (0..60).map(|_| connect(router.client)).collect();
    // Some send half of a hello, a byte at a time.
    for stream in &mut silent[..10] {
        let _ = stream.write_all(&[22, 3, 1, 2]);
    }
    wait_for("the rest to be refused", || router.counts().tls_failed_crowded == 40);
    wait_for("those to be closed", || router.counts().connections <= 20);
    wait_for("patience to end", || router.counts().tls_failed_late == 20);
    wait_for("no connection to be left", || router.counts().connections == 0);
    for (i, stream) in silent.iter_mut().enumerate() {
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "connection {i} was not closed");
    }
    assert!(ask(&mut tls(router.client, &kit.client()), 1, b"x").is_some(), "there is room again");
    router.stop();
}

#[test]
fn a_client_that_is_done_with_its_handshake_may_think_longer_than_that() {
    let kit = Kit::new();
    let router = for_clients(&kit, Limits { tls_handshake_ms: 300, ..Limits::default() });
    let mut stream = tls(router.client, &kit.client());
    assert!(ask(&mut stream, 1, b"x").is_some());
    let mut second = tls(router.client, &kit.client());
    second.conn.complete_io(&mut second.sock).unwrap();
    sleep(Duration::from_millis(900));
    assert!(ask(&mut second, 1, b"x").is_some() && ask(&mut stream, 1, b"x").is_some());
    assert_eq!(router.counts().tls_failed_late, 0);
    router.stop();
}

#[test]
fn a_new_certificate_under_load_loses_no_request() {
    let kit = Kit::new();
    let router = for_clients(&kit, Limits::default());
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (at, client) = (router.client, kit.client());
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (stop, served, client) = (stop.clone(), served.clone(), client.clone());
            spawn(move || {
                let mut kept = tls(at, &client);
                while !stop.load(Relaxed) {
                    // One connection lives on, one is made anew: by a ticket (n < 2) or in full.
                    let full = changed(&client, |c| c.resumption = rustls::client::Resumption::disabled());
                    let mut fresh = tls(at, if n < 2 { &client } else { &full });
                    for stream in [&mut kept, &mut fresh] {
                        let (head, body) = ask(stream, 1, b"order").expect("an answer");
                        assert!(head.starts_with("HTTP/1.1 200") && body == b"order", "{head}");
                        served.fetch_add(1, Relaxed);
                    }
                }
            })
        })
        .collect();
    let mut seen: Vec<Vec<u8>> = vec![];
    for round in 0..12 {
        router.renew(Contexts::new(Some(kit.listener()), None, []));
        let before = served.load(Relaxed);
        wait_for("requests under this certificate", || served.load(Relaxed) > before + 20);
        let full = changed(&client, |c| c.resumption = rustls::client::Resumption::disabled());
        let mut stream = tls(at, &full);
        ask(&mut stream, 1, b"x").unwrap();
        let certificate = stream.conn.peer_certificates().unwrap()[0].to_vec();
        assert!(!seen.contains(&certificate), "round {round}: the old certificate is still shown");
        seen.push(certificate);
    }
    stop.store(true, Relaxed);
    clients.into_iter().for_each(|c| c.join().unwrap());
    let counts = router.counts();
    assert!(counts.tls_resumed > 0 && counts.tls_handshakes > counts.tls_resumed);
    assert_eq!(counts.answered_4xx + counts.answered_5xx, 0);
    router.stop();
}

// ---- upstreams ------------------------------------------------------------------------------------------------------

#[test]
fn an_upstream_is_reached_by_tls_and_its_connection_is_used_again() {
    let kit = Kit::new();
    let at = tls_backend(kit.listener(), Ends::Framed);
    let router = Router::start(settings(BJ, vec![secure_service(at)], vec![], to_upstream(&kit, None)));
    let mut stream = connect(router.plain);
    for _ in 0..20 {
        let (head, body) = ask(&mut stream, 1, b"payment").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && body == b"payment", "{head}");
    }
    assert_eq!(router.counts().tls_handshakes, 1);
    // The present certificate of the router changes nothing for a connection that is there.
    router.renew(to_upstream(&kit, None));
    assert!(ask(&mut stream, 1, b"more").is_some());
    assert_eq!(router.counts().tls_handshakes, 1);
    router.stop();
}

#[test]
fn an_upstream_that_cannot_prove_who_it_is_gets_no_byte() {
    let kit = Kit::new();
    let other = Kit::new();
    let strange = tls_backend(other.listener(), Ends::Framed);
    let named = kit.makers.clients(&[kit.server_pair(&["other.example.com"])]).unwrap();
    let misnamed = tls_backend(named, Ends::Framed);
    for (at, of) in [
        (strange, (|c| c.tls_failed_untrusted) as fn(&Counts) -> u64),
        (misnamed, |c| c.tls_failed_wrong_identity),
        (plain_backend(), |c| c.tls_failed_late),
    ] {
        let router = Router::start(settings(BJ, vec![secure_service(at)], vec![], to_upstream(&kit, None)));
        let (head, _) = ask(&mut connect(router.plain), 1, b"secret").unwrap();
        assert!(head.starts_with("HTTP/1.1 502") || head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(of(&router.counts()) >= 1, "{:?}", router.counts());
        router.stop();
    }
    // Settings that name a kind of TLS which they do not describe.
    let at = tls_backend(kit.listener(), Ends::Framed);
    let router = Router::start(settings(BJ, vec![secure_service(at)], vec![], Contexts::default()));
    let (head, _) = ask(&mut connect(router.plain), 1, b"secret").unwrap();
    assert!(head.starts_with("HTTP/1.1 502") || head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(router.counts().tls_failed_unprepared >= 1);
    router.stop();
}

#[test]
fn an_answer_that_ends_with_its_connection_is_whole_only_if_the_end_was_said() {
    let kit = Kit::new();
    let body = vec![b'x'; 5000];
    for (ends, whole) in [(Ends::Said, true), (Ends::Cut, false), (Ends::FramedAndCut, true)] {
        let at = tls_backend(kit.listener(), ends);
        let router = Router::start(settings(BJ, vec![secure_service(at)], vec![], to_upstream(&kit, None)));
        for _ in 0..3 {
            let got = ask(&mut connect(router.plain), 1, &body);
            let got_whole = got.is_some_and(|(head, b)| head.starts_with("HTTP/1.1 200") && b == body);
            assert_eq!(got_whole, whole, "{ends:?}");
        }
        router.stop();
    }
}

// ---- between routers ------------------------------------------------------------------------------------------------

fn member_contexts(kit: &Kit, own: &Cluster, outgoing: Option<&Identity>) -> Contexts {
    let outgoing = outgoing.map(|who| (TO_SH, kit.makers.towards(own, who.clone()).unwrap()));
    Contexts::new(Some(kit.listener()), Some(kit.makers.peers(own).unwrap()), outgoing)
}

/// Routers of bj and sh; bj reaches sh by TLS and expects `meant` there, where `shown` has its certificate.
fn two_zones(kit: &Kit, meant: &Identity, shown: &Cluster) -> (Router, Router) {
    let service = || vec![Service::new("/", &[plain_backend()])];
    let sh = Router::start(settings(SH, service(), vec![], member_contexts(kit, shown, None)));
    let to_sh = Peer { endpoints: vec![endpoint(sh.peer, TO_SH)], ..Peer::new(SH, &[]) };
    let tls = member_contexts(kit, &kit.member(zone("bj")), Some(meant));
    let bj = Router::start(settings(BJ, service(), vec![to_sh], tls));
    (bj, sh)
}

#[test]
fn a_request_reaches_the_other_zone_by_mutual_tls_and_its_hop_is_trusted() {
    let kit = Kit::new();
    let (bj, sh) = two_zones(&kit, &zone("sh"), &kit.member(zone("sh")));
    let mut stream = tls(bj.client, &kit.client());
    for _ in 0..10 {
        let (head, body) = ask(&mut stream, 2, b"order").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("x-ezone: sh\r\n") && body == b"order", "{head}");
    }
    let (bj_counts, sh_counts) = (bj.counts(), sh.counts());
    assert_eq!((bj_counts.forwarded, sh_counts.hopped), (10, 10), "sh trusts what bj says of the hop");
    assert_eq!(sh_counts.tls_handshakes, 1, "one connection for ten requests");
    bj.stop();
    sh.stop();
}

#[test]
fn a_router_of_another_zone_than_meant_is_not_spoken_to() {
    let kit = Kit::new();
    // sh's address answers with the certificate of bj; then with one of another authority.
    for (shown, of) in [
        (kit.member(zone("bj")), (|c| c.tls_failed_wrong_identity) as fn(&Counts) -> u64),
        (kit.member_by(zone("sh"), &Kit::new().ca), |c| c.tls_failed_untrusted),
    ] {
        let (bj, sh) = two_zones(&kit, &zone("sh"), &shown);
        let (head, _) = ask(&mut connect(bj.plain), 2, b"order").unwrap();
        assert!(head.starts_with("HTTP/1.1 502") || head.starts_with("HTTP/1.1 503"), "{head}");
        assert!(of(&bj.counts()) >= 1 && sh.counts().tls_handshakes == 0 && sh.counts().hopped == 0);
        bj.stop();
        sh.stop();
    }
}

#[test]
fn whoever_cannot_prove_to_be_a_member_is_refused_at_the_peers_port() {
    let kit = Kit::new();
    let (bj, sh) = two_zones(&kit, &zone("sh"), &kit.member(zone("sh")));
    let naked = changed(&kit.makers.towards(&kit.member(zone("bj")), zone("sh")).unwrap(), |c| {
        c.client_auth_cert_resolver = Arc::new(Nobody);
    });
    let strange = kit.makers.towards(&kit.member_by(zone("bj"), &Kit::new().ca), zone("sh")).unwrap();
    let unknown = kit.makers.towards(&kit.member(zone("gz")), zone("sh")).unwrap();
    for how in [naked, strange, unknown] {
        let mut stream = tls(sh.peer, &how);
        assert_eq!(ask_with(&mut stream, 2, "x-ezone-hop: 1\r\nx-ezone-shard: 2\r\n", b"x"), None);
    }
    // Plain HTTP neither: not even an answer that helps.
    let mut stream = connect(sh.peer);
    let head = ask_with(&mut stream, 2, "x-ezone-hop: 1\r\n", b"x").map_or(String::new(), |(head, _)| head);
    assert!(!head.contains(" 200 "), "{head}");
    let counts = sh.counts();
    assert_eq!(
        (counts.tls_failed_no_certificate, counts.tls_failed_untrusted, counts.tls_failed_wrong_identity),
        (1, 1, 1)
    );
    assert_eq!((counts.hopped, counts.answered_2xx_3xx, counts.tls_handshakes), (0, 0, 0));
    // A client's listener trusts nobody, whatever certificate it holds and whatever it says.
    let mut stream = tls(sh.client, &kit.client());
    let (head, _) = ask_with(&mut stream, 2, "x-ezone-hop: 1\r\n", b"x").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && sh.counts().hopped == 0, "{head}");
    bj.stop();
    sh.stop();
}

#[test]
fn an_edge_is_trusted_by_its_certificate() {
    let kit = Kit::new();
    let (bj, sh) = two_zones(&kit, &zone("sh"), &kit.member(zone("sh")));
    let edge = kit.makers.towards(&kit.member(Identity::Edge), zone("sh")).unwrap();
    let mut stream = tls(sh.peer, &edge);
    let (head, _) = ask_with(&mut stream, 2, "x-ezone-hop: 1\r\n", b"x").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(sh.counts().hopped, 1);
    bj.stop();
    sh.stop();
}
