//! Checks of endpoints that answer, stall, lie and refuse, over loopback.

use super::*;
use crate::tls::authority::{Made, Period};
use crate::tls::{Makers, Pair, Roots};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

fn http(at: SocketAddr, timeout_ms: u64) -> Wanted {
    let kind = ProbeKind::Http { path: "/up".into(), host: None, statuses: vec![200..=399] };
    let probe = Probe { kind, every_ms: 100, timeout_ms, rise: 1, fall: 2, port: None };
    Wanted { probe, to: at, host: "api.internal".into(), proxy_protocol: false, tls: None }
}

fn tcp(at: SocketAddr) -> Wanted {
    let w = http(at, 60_000);
    Wanted { probe: Probe { kind: ProbeKind::Tcp, ..w.probe.clone() }, ..w }
}

fn run(w: &Wanted) -> Seen {
    crate::control::runtime().unwrap().block_on(check(w))
}

/// Someone who takes one connection and does this with it; what that gives comes when it is joined.
fn server<T: Send + 'static>(
    does: impl FnOnce(std::net::TcpStream) -> T + Send + 'static,
) -> (SocketAddr, std::thread::JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    (at, std::thread::spawn(move || does(listener.accept().unwrap().0)))
}

fn head(stream: &mut impl Read) -> String {
    let (mut head, mut byte) = (vec![], [0u8; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Says this in answer to a GET, in two parts.
fn says(answer: &'static [u8]) -> Seen {
    let (at, asked) = server(move |mut stream| {
        let asked = head(&mut stream);
        let (a, b) = answer.split_at(answer.len() / 2);
        // The check may end at what it has seen.
        let _ = stream.write_all(a).and_then(|()| stream.flush()).and_then(|()| stream.write_all(b));
        asked
    });
    let seen = run(&http(at, 60_000));
    let asked = asked.join().unwrap();
    assert!(asked.starts_with("GET /up HTTP/1.1\r\nhost: api.internal\r\n") && asked.contains("connection: close\r\n"));
    seen
}

#[test]
fn an_answer_is_judged_by_its_status() {
    for (answer, outcome, why) in [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..], Outcome::Good, "200"),
        (b"HTTP/1.0 204 OK\r\n\r\n", Outcome::Good, "204"),
        (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 302 Found\r\n\r\n", Outcome::Good, "302"),
        (b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n", Outcome::Status, "503"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Outcome::Status, "101"),
        (b"220 mail.example.com ESMTP\r\n\r\n", Outcome::Malformed, "malformed response head"),
        (b"HTTP/1.1 200 OK\r\n", Outcome::Connect, "closed before an answer"),
        (b"", Outcome::Connect, "closed before an answer"),
    ] {
        let seen = says(answer);
        assert_eq!((seen.outcome, seen.why.as_str()), (outcome, why), "{}", answer.escape_ascii());
    }
}

#[test]
fn an_answer_is_bounded_in_bytes_and_a_check_in_time() {
    let endless = Box::leak([b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'x'; 100_000]].concat().into_boxed_slice());
    let seen = says(endless);
    assert_eq!(seen.outcome, Outcome::Malformed, "{seen:?}");
    let interims = Box::leak(b"HTTP/1.1 103 Early\r\n\r\n".repeat(5000).into_boxed_slice());
    let seen = says(interims);
    assert!(seen.outcome == Outcome::Malformed && seen.why.starts_with("no answer in "), "{seen:?}");
    let (at, asked) = server(|mut stream| stream.read_to_end(&mut vec![]).is_ok());
    let seen = run(&http(at, 50));
    assert_eq!((seen.outcome, seen.why.as_str()), (Outcome::Late, "not within 50 ms"));
    assert!(asked.join().unwrap(), "it has let go");
}

#[test]
fn a_connection_is_enough_for_a_check_by_tcp_and_none_is_bad() {
    let (at, gone) = server(|mut stream| stream.read_to_end(&mut vec![]).unwrap());
    assert_eq!(run(&tcp(at)).outcome, Outcome::Good);
    assert_eq!(gone.join().unwrap(), 0, "nothing is said");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!((run(&tcp(closed)).outcome, run(&http(closed, 60_000)).outcome), (Outcome::Connect, Outcome::Connect));
}

#[test]
fn who_wants_a_proxy_header_gets_one_of_nobody() {
    for (probe, after) in [(http as fn(SocketAddr, u64) -> Wanted, &b"GET /up "[..]), (|at, _| tcp(at), b"")] {
        let (at, sent) = server(|mut stream| {
            let mut sent = vec![0; 16];
            stream.read_exact(&mut sent).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let _ = stream.read_to_end(&mut sent); // who is not heard out may be reset
            sent
        });
        let w = Wanted { proxy_protocol: true, ..probe(at, 60_000) };
        assert_eq!(run(&w).outcome, Outcome::Good);
        let sent = sent.join().unwrap();
        assert_eq!(proxy::parse(&sent), Ok(Some((16, None))));
        assert!(sent[16..].starts_with(after));
    }
}

#[test]
fn a_check_by_tls_is_a_session_with_whoever_is_expected() {
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let period = Period::days(now_s, 30);
    let ca = Made::authority("ezone", period).unwrap();
    let made = ca.server(&["api.internal".into()], period).unwrap();
    let makers = Makers::new().unwrap();
    let pair = Pair::read(made.certificate.as_bytes(), made.key.as_bytes(), makers.provider()).unwrap();
    let config = makers.clients(&[pair]).unwrap();
    let roots = Roots::read(ca.certificate.as_bytes()).unwrap();
    for (name, is_http, outcome) in [
        ("api.internal", true, Outcome::Good),
        ("api.internal", false, Outcome::Good),
        ("other.internal", true, Outcome::Tls),
        ("other.internal", false, Outcome::Tls),
    ] {
        let config = config.clone();
        let (at, served) = server(move |stream| {
            let tls = rustls::ServerConnection::new(config).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, stream);
            let mut all = vec![];
            if is_http && outcome == Outcome::Good {
                head(&mut stream);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
            // Without a close_notify this is an error: the end could be someone's cut.
            stream.read_to_end(&mut all).is_ok()
        });
        let plain = if is_http { http(at, 60_000) } else { tcp(at) };
        let w = Wanted { tls: Some(makers.upstream(&roots, None, Some(name)).unwrap()), ..plain };
        let seen = run(&w);
        assert_eq!(seen.outcome, outcome, "{name} {is_http} {seen:?}");
        assert_eq!(served.join().unwrap(), outcome == Outcome::Good);
    }
    // Who speaks no TLS has no session.
    let (at, _) = server(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").is_ok());
    let w = Wanted { tls: Some(makers.upstream(&roots, None, None).unwrap()), ..tcp(at) };
    assert!(matches!(run(&w).outcome, Outcome::Tls | Outcome::Connect));
}

#[test]
fn the_prober_tells_each_change_and_shows_every_check() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    crate::control::runtime().unwrap().block_on(async move {
        let mut prober = Prober::new();
        let key = ("s".to_owned(), at);
        prober.renew(vec![(key.clone(), tcp(at))]);
        let patience = Duration::from_secs(60);
        // No change to tell: it goes on for ever, and shows what it sees.
        while prober.reports().lock().unwrap()[&key].counts[0] < 2 {
            let _ = tokio::time::timeout(Duration::from_millis(20), prober.next()).await;
        }
        drop(listener);
        let change = tokio::time::timeout(patience, prober.next()).await.unwrap();
        assert!(!change.healthy && change.key == key && !prober.is_healthy(&key), "{change:?}");
        assert!(prober.reports().lock().unwrap()[&key].in_a_row == 2, "fall");
        let _again = TcpListener::bind(at).unwrap();
        let change = tokio::time::timeout(patience, prober.next()).await.unwrap();
        assert!(change.healthy && prober.is_healthy(&key), "{change:?}");
        prober.renew(vec![]);
        assert!(prober.reports().lock().unwrap().is_empty());
        assert!(tokio::time::timeout(Duration::from_millis(50), prober.next()).await.is_err());
    });
}

#[test]
fn what_is_checked_is_what_the_settings_name() {
    let text = "[node]\nzone = \"bj\"\ndata_dir = \"d\"\n[map]\ngzs = \"http://127.0.0.1:1\"\n[router]\nlisten = [\"127.0.0.1:8080\"]\n\
        [[service]]\nprefix = \"/a\"\nendpoints = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nproxy_protocol = true\ncheck = { port = 2, path = \"/up\" }\n\
        [[service]]\nprefix = \"/b\"\nendpoints = [\"127.0.0.1:1\"]\n\
        [zones.sh]\nrouter = \"127.0.0.1:3\"\ncheck = {}\n";
    let config = Config::parse("f", text).unwrap();
    let map =
        crate::control::maps::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/../shardmap/data/china.toml").as_ref());
    let mut live = crate::control::assemble::Live::new(1);
    let router = config.router.as_ref().unwrap();
    let settings = crate::control::assemble::settings(&config, router, &map.unwrap(), &mut live).unwrap();
    let all = plan(&config, &settings);
    let seen: Vec<_> =
        all.iter().map(|((name, at), w)| (name.as_str(), at.port(), w.to.port(), w.proxy_protocol)).collect();
    assert_eq!(seen, [("/a", 1, 2, false), ("/a", 2, 2, true), ("zone:sh", 3, 3, false)]);
    assert_eq!(all[0].1.host, "127.0.0.1:1", "the endpoint's, not the port that is asked");
    assert!(matches!(all[2].1.probe.kind, ProbeKind::Tcp));
}
