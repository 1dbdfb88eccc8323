//! TLS between logs as an operator meets it: real processes, certificates that change under them, and everybody who must not get in.

mod process_kit;

use bytes::{Bytes, BytesMut};
use dataplane::tls::authority::{Made, Period};
use dataplane::tls::{Cluster, Identity, Makers, Pair, Roots};
use process_kit::{Dir, Running, addresses, http, map, within_or};
use replog::link::{Ask, Frame, Hello, put};
use replog::port::{self, Answer};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use shardmap::{MapEpoch, Shard, Zone};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const BJ: &str = "bj";
const SH: &str = "sh";

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Two zones; `secure` of them speak TLS.
struct World {
    running: Vec<Running>,
    ca: Made,
    ports: [SocketAddr; 4],
    dir: Dir,
}

impl World {
    fn new(name: &str) -> World {
        let ca = Made::authority("ezone", Period::days(now_s(), 100)).unwrap();
        World { running: vec![], ca, ports: addresses(), dir: Dir::new(name) }
    }

    fn link(&self, zone: &str) -> SocketAddr {
        self.ports[if zone == BJ { 0 } else { 2 }]
    }

    fn admin(&self, zone: &str) -> SocketAddr {
        self.ports[if zone == BJ { 1 } else { 3 }]
    }

    /// Puts a certificate of `who` where the node of `zone` reads its own.
    fn certify(&self, zone: &str, who: &str, ca: &Made) {
        let made = ca.member(&Identity::Zone(who.into()), Period::days(now_s(), 90)).unwrap();
        fs::write(self.dir.join("ca.pem"), &self.ca.certificate).unwrap();
        fs::write(self.dir.join(format!("{zone}.key")), &made.key).unwrap();
        fs::write(self.dir.join(format!("{zone}.pem")), &made.certificate).unwrap();
    }

    /// Starts the log of `zone`, whose configuration says that `other` listens at `at`.
    fn start(&mut self, zone: &str, other: &str, at: SocketAddr, secure: bool) {
        let cluster = format!("[cluster]\nca = \"ca.pem\"\ncertificate = \"{zone}.pem\"\nkey = \"{zone}.key\"\n");
        let (link, admin, map) = (self.link(zone), self.admin(zone), map());
        let text = format!(
            "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n[map]\nfile = \"{}\"\n[log]\nlisten = \"{link}\"\nadmin = \"{admin}\"\n\
             cores = [0]\nstreams = 1\nsegment_mib = 1\n[zones.{other}]\nrouter = \"127.0.0.1:9\"\nlink = \"{at}\"\n{}",
            map.display(),
            if secure { &cluster } else { "" }
        );
        let config = self.dir.join(format!("{zone}.toml"));
        fs::write(&config, text).unwrap();
        let said = fs::File::options().create(true).append(true).open(self.dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args(["log", "--config"]).arg(config).stdin(Stdio::null());
        self.running.push(Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()));
        self.within("the log answers", || self.status(zone));
    }

    fn within<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        within_or(what, || self.dir.said(), done)
    }

    fn said(&self, what: &str) {
        self.within(what, || self.dir.said().contains(what).then_some(()));
    }

    fn status(&self, zone: &str) -> Option<Value> {
        let request = "GET /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        serde_json::from_str(&http(self.admin(zone), request).ok()?.1).ok()
    }

    /// Waits until the link of `zone` to `other` says `state`.
    fn state(&self, zone: &str, other: &str, state: &str) {
        self.within(state, || {
            let status = self.status(zone)?;
            status["streams"][0]["links"][other]["state"].as_str()?.contains(state).then_some(())
        });
    }

    fn refused(&self, zone: &str) -> u64 {
        self.status(zone).unwrap()["links_refused"].as_u64().unwrap()
    }

    /// Writes one record at `zone`, of whatever shard it owns.
    fn write(&self, zone: &str) {
        let mut port = UnixStream::connect(self.dir.join(zone).join("port-0.sock")).unwrap();
        for shard in 0..2000 {
            let (table, key, value) = ("orders".into(), Some(Bytes::from("k")), Some(Bytes::from("v")));
            let (mut out, mut from) = (BytesMut::new(), BytesMut::new());
            port::put_ask(
                &mut out,
                1,
                &port::Ask::Write { shard: Shard(shard), map_epoch: MapEpoch(1), table, key, value },
            );
            port.write_all(&out).unwrap();
            let answer = loop {
                let mut part = [0; 4096];
                let n = port.read(&mut part).unwrap();
                assert!(n > 0, "the port was closed");
                from.extend_from_slice(&part[..n]);
                if let Some((_, answer)) = port::take_answer(&mut from).unwrap() {
                    break answer;
                }
            };
            if matches!(answer, Answer::Written { .. }) {
                return;
            }
        }
        panic!("zone {zone} takes no write");
    }

    /// Does `to` have all that `from` has made durable, more than `least`?
    fn has_all(&self, from: &str, to: &str, least: u64) -> Option<u64> {
        let durable = self.status(from)?["streams"][0]["durable_seq"].as_u64()?;
        let mirrored = self.status(to)?["streams"][0]["mirrored"][from].as_u64()?;
        (mirrored >= durable && durable > least).then_some(durable)
    }

    /// A client as `who`, certified by `ca` for `period`, that speaks `alpn` and believes whoever is of zone bj.
    fn client(&self, who: Identity, ca: &Made, period: Period, alpn: &str) -> ClientConfig {
        let made = ca.member(&who, period).unwrap();
        let pair = Pair::read(made.certificate.as_bytes(), made.key.as_bytes(), &default_provider()).unwrap();
        let roots = Roots::read(self.ca.certificate.as_bytes()).unwrap();
        let cluster = Cluster { name: "ezone".into(), own: who, roots, pair, known: vec![] };
        let how = Makers::new().unwrap().towards(&cluster, Identity::Zone(BJ.into())).unwrap();
        let mut config = (*how.config).clone();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config
    }

    /// Sends `first` to bj's log in a session that `config` makes; what comes back before the end of the connection.
    fn knock(&self, config: ClientConfig, first: &Frame) -> (Vec<u8>, Option<Vec<u8>>) {
        let socket = TcpStream::connect(self.link(BJ)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        World::knock_by(socket, config, first)
    }

    /// The same, by a connection to bj that there is.
    fn knock_by(socket: impl Read + Write, config: ClientConfig, first: &Frame) -> (Vec<u8>, Option<Vec<u8>>) {
        let tls = ClientConnection::new(Arc::new(config), "bj".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        let (mut out, mut back) = (BytesMut::new(), vec![]);
        put(&mut out, first);
        let mut part = [0; 4096];
        // Whoever is not let in sees an error or an end, at one step or another.
        if stream.write_all(&out).is_ok() && stream.flush().is_ok() {
            while let Ok(n @ 1..) = stream.read(&mut part) {
                back.extend_from_slice(&part[..n]);
                if back.len() > 20 {
                    break;
                }
            }
        }
        let shown = stream.conn.peer_certificates().map(|all| all[0].to_vec());
        (back, shown)
    }
}

/// A connection that brings what is written in pieces, as a path with a small MTU, or a loss between two segments, does.
struct Pieces(TcpStream, usize);

impl Write for Pieces {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(2));
        self.0.write(&from[..from.len().min(self.1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Pieces {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

fn hello(origin: u8) -> Frame {
    Frame::Hello(Hello {
        cluster: Bytes::from_static(b"ezone"),
        origin: Zone(origin),
        peer: Zone(0),
        stream: 0,
        streams: 1,
        log_uuid: 7,
        term: 1,
        map_epoch: MapEpoch(1),
        first_kept: 1,
        durable: 0,
        codecs: 0,
    })
}

fn ask(origin: u8, peer: u8) -> Frame {
    let cluster = Bytes::from_static(b"ezone");
    Frame::Ask(Ask { cluster, origin: Zone(origin), peer: Zone(peer), stream: 0, streams: 1, seq: 0 })
}

#[test]
fn logs_speak_tls_and_go_by_certificates_that_change_under_them() {
    let mut w = World::new("life");
    w.certify(BJ, BJ, &w.ca);
    w.certify(SH, SH, &w.ca);
    let (bj, sh) = (w.link(BJ), w.link(SH));
    w.start(BJ, SH, sh, true);
    w.start(SH, BJ, bj, true);
    w.state(BJ, SH, "live");
    w.state(SH, BJ, "live");
    w.write(BJ);
    let had = w.within("what bj wrote is in sh", || w.has_all(BJ, SH, 0));
    w.said("(TLS)");
    // A copy is lent over TLS as well: sh asks at its start what bj has of its log.
    let valid = Period::days(now_s(), 1);
    let member = |who: &str| w.client(Identity::Zone(who.into()), &w.ca, valid, "ezone-link/1");
    let (answer, first) = w.knock(member(SH), &ask(0, 0));
    assert!(answer.len() > 20 && answer[9] == 9, "HELD: {answer:?}");
    // Another certificate is shown as soon as its files are there, and what is under way goes on.
    w.certify(BJ, BJ, &w.ca);
    w.within("the new certificate is shown", || (w.knock(member(SH), &ask(0, 0)).1 != first).then_some(()));
    // One that is no good changes nothing.
    fs::write(w.dir.join("bj.pem"), "no certificate").unwrap();
    w.said("changed certificates are refused");
    w.write(BJ);
    w.within("and the link is there all the time", || w.has_all(BJ, SH, had));
    assert_eq!(w.status(SH).unwrap()["links_refused"], 0);
}

#[test]
fn who_must_not_get_in_is_refused_with_the_reason_and_counted() {
    let mut w = World::new("strangers");
    w.certify(BJ, BJ, &w.ca);
    let own = w.link(BJ);
    // Its configuration leads it to itself where it means sh.
    w.start(BJ, SH, own, true);
    w.state(BJ, SH, "the certificate is of zone bj, expected zone sh");
    // Who is refused by a log that connects hears why, by its alert, and that is the only word its operator gets.
    w.said("received fatal alert");
    let valid = Period::days(now_s(), 1);
    let ended = Period::days(now_s() - 5 * 86_400, 1);
    let other = Made::authority("ezone", valid).unwrap();
    let zone = |name: &str| Identity::Zone(name.into());
    let alpn = "ezone-link/1";
    let all = [
        (w.client(zone(SH), &w.ca, valid, alpn), hello(0), "it speaks as zone 0: a certificate names one zone"),
        (w.client(zone(SH), &w.ca, ended, alpn), hello(1), "expired"),
        (w.client(zone(SH), &other, valid, alpn), hello(1), "BadSignature"),
        (w.client(zone("gz"), &w.ca, valid, alpn), hello(1), "zone gz, which this configuration does not know"),
        (w.client(Identity::Edge, &w.ca, valid, alpn), hello(1), "of an edge, which has no log"),
        (w.client(zone(SH), &w.ca, valid, "http/1.1"), hello(1), "known protocol"),
    ];
    for (config, first, why) in all {
        let before = w.refused(BJ);
        // What is refused is told once a second: it is knocked until it is the one that is told.
        w.within(why, || {
            let (answer, _) = w.knock(config.clone(), &first);
            assert!(answer.is_empty(), "{why}: {answer:?}");
            w.dir.said().to_lowercase().contains(&why.to_lowercase()).then_some(())
        });
        assert!(w.refused(BJ) > before, "{why}");
    }
    // Plain into TLS, words, silence, and a handshake that drips.
    let mut out = BytesMut::new();
    put(&mut out, &hello(1));
    for (bytes, why) in
        [(&out[..], "no TLS at a port that speaks TLS"), (b"GET / HTTP/1.1\r\n\r\n", "no TLS at a port")]
    {
        w.within(why, || {
            let mut socket = TcpStream::connect(own).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let _ = socket.write_all(bytes);
            let mut rest = vec![];
            let _ = socket.read_to_end(&mut rest);
            w.dir.said().contains(why).then_some(())
        });
    }
    let before = w.refused(BJ);
    let mut silent: Vec<_> = (0..20).map(|_| TcpStream::connect(own).unwrap()).collect();
    silent.iter_mut().for_each(|s| drop(s.write_all(&[22, 3, 1])));
    for socket in &mut silent {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut rest = vec![];
        assert!(socket.read_to_end(&mut rest).is_ok_and(|n| n < 100), "the connection is ended, in bounded time");
    }
    assert!(w.refused(BJ) >= before + 20, "each of them is counted");
}

#[test]
fn a_handshake_is_heard_out_however_tcp_cuts_it() {
    let mut w = World::new("pieces");
    w.certify(BJ, BJ, &w.ca);
    let nowhere = w.link(SH);
    w.start(BJ, SH, nowhere, true);
    let zone = Identity::Zone(SH.into());
    let config = w.client(zone, &w.ca, Period::days(now_s(), 1), "ezone-link/1");
    for bytes in [1, 7, 100, 700] {
        let socket = TcpStream::connect(w.link(BJ)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.set_nodelay(true).unwrap();
        let (answer, shown) = World::knock_by(Pieces(socket, bytes), config.clone(), &ask(0, 0));
        assert!(shown.is_some() && answer.len() > 20 && answer[9] == 9, "HELD, {bytes} at a time: {answer:?}");
    }
    assert_eq!(w.refused(BJ), 0, "{}", w.dir.said());
}

#[test]
fn a_side_that_speaks_tls_and_one_that_does_not_both_say_so() {
    let mut w = World::new("mixed");
    w.certify(BJ, BJ, &w.ca);
    let (bj, sh) = (w.link(BJ), w.link(SH));
    w.start(BJ, SH, sh, true);
    w.start(SH, BJ, bj, false);
    w.state(SH, BJ, "the peer speaks TLS and this node does not");
    w.state(BJ, SH, "the connection ended in its TLS handshake");
    w.said("TLS at a port that speaks none");
    w.said("no TLS at a port that speaks TLS");
}
