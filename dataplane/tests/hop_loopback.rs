//! One router on its own ring, over loopback: where clients come from, and a tunnel with more bytes than any buffer holds.

mod router_table;

use dataplane::router::forward::{Forwarding, Own, Way};
use dataplane::router::{Routes, Service, Settings, Shared, Side};
use dataplane::uring::{self, Control};
use router_table::Table;
use shardmap::Zone;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

const BJ: Zone = Zone(0);
const PATIENCE: Duration = Duration::from_secs(30);
const UPGRADE: &str = "GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

struct Router {
    control: Control,
    at: SocketAddr,
    thread: JoinHandle<std::io::Result<()>>,
}

/// A router before `backend`, behind a balancer if `proxy_protocol`.
fn router(backend: SocketAddr, proxy_protocol: bool) -> Router {
    let forwarding =
        Forwarding { x_forwarded_for: Way::Set, x_forwarded_proto: Own::Set, trace: true, ..Forwarding::default() };
    let services = vec![Service::new("/", &[backend])];
    let settings = Settings { zone: Some(BJ), services, forwarding, proxy_protocol, ..Settings::default() };
    let shared = Arc::new(Shared::new(1));
    let (control, mut wakers) = uring::control(shared.clone()).unwrap();
    let listener = uring::listen("127.0.0.1:0".parse().unwrap(), Side::Client).unwrap();
    let (at, waker) = (listener.local_addr().unwrap(), wakers.pop().unwrap());
    let thread = spawn(move || uring::run(0, Arc::new(settings), vec![listener], waker, shared));
    let map: Arc<dyn Routes> = Arc::new(Table::new(1, &[(1, BJ)]));
    control.set_map(&map);
    Router { control, at, thread }
}

impl Router {
    fn stop(self) {
        self.control.stop();
        self.thread.join().unwrap().unwrap();
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn head(stream: &mut TcpStream) -> String {
    let mut got = vec![];
    let mut byte = [0];
    while !got.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "an end after {:?}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

/// One connection: its head is the answer's body.
fn mirror() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let thread = spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let asked = head(&mut stream);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{asked}", asked.len()).unwrap();
    });
    (at, thread)
}

#[test]
fn an_upstream_learns_where_a_client_comes_from_by_its_socket_or_by_its_balancer() {
    for (proxy_protocol, before, from) in
        [(false, "", "127.0.0.1"), (true, "PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n", "192.0.2.7")]
    {
        let (backend, thread) = mirror();
        let router = router(backend, proxy_protocol);
        let mut stream = connect(router.at);
        write!(stream, "{before}GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nX-Forwarded-For: liar\r\n\r\n")
            .unwrap();
        let answer = head(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let asked = head(&mut stream);
        assert!(asked.contains(&format!("x-forwarded-for: {from}\r\nx-forwarded-proto: http\r\n")), "{asked}");
        assert!(asked.contains("traceparent: 00-") && !asked.contains("liar"), "{asked}");
        thread.join().unwrap();
        drop(stream);
        router.stop();
    }
}

#[test]
fn a_tunnel_carries_more_than_any_buffer_both_ways_and_ends_one_half_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    // Echoes all that comes until its end, then says so, and ends too.
    let echo = spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        assert!(head(&mut stream).contains("upgrade: echo\r\n"));
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let mut buffer = [0; 65_536];
        while let n @ 1.. = stream.read(&mut buffer).unwrap() {
            stream.write_all(&buffer[..n]).unwrap();
        }
        stream.write_all(b"end").unwrap();
    });
    let router = router(backend, false);
    let mut stream = connect(router.at);
    stream.write_all(UPGRADE.as_bytes()).unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 101"));
    let data: Vec<u8> = (0..4_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut writes = stream.try_clone().unwrap();
    let sent = data.clone();
    let writer = spawn(move || {
        writes.write_all(&sent).unwrap();
        writes.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = vec![];
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), data.len() + 3);
    assert!(got[..data.len()] == data && got.ends_with(b"end"));
    writer.join().unwrap();
    echo.join().unwrap();
    let until = Instant::now() + PATIENCE;
    while router.control.shared().total().connections > 0 {
        assert!(Instant::now() < until, "a tunnel that is over leaves a connection behind");
        sleep(Duration::from_millis(5));
    }
    router.stop();
}
