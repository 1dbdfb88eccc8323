//! What hostile clients and upstreams have been seen to try beyond the framing of one message: bytes at the wrong moment, fields
//! that only some readers take for ours, and messages that cost more to read than to send.

mod router_table;
mod router_world;

use dataplane::router::forward::{Own, Way};
use dataplane::router::{ConnId, Limits, Service, Side, Target};
use router_world::{GET, World, addr, body_of, settings, status_of};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
const POST: &str = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n";

fn asked(w: &mut World, request: impl AsRef<[u8]>) -> (ConnId, ConnId) {
    let c = w.client();
    w.give(c, request);
    (c, w.last_connect())
}

/// A connection to the upstream that has served once and is idle.
fn idle(w: &mut World) -> ConnId {
    let (c, up) = asked(w, GET);
    w.give(up, OK);
    assert!(w.took(c).ends_with("good"));
    w.end(c, false);
    w.took(up);
    up
}

// ---- bytes at the wrong moment --------------------------------------------------------------------------------------

/// Servers say `408` on a connection that idles too long: it may come just when the next request has been given to it.
#[test]
fn what_an_upstream_says_before_a_request_was_sent_answers_no_request() {
    for stale in [EVIL, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\nConnection: close\r\n\r\nevil", "evil"] {
        for request in [GET.to_string(), format!("{POST}Content-Length: 2\r\n\r\nhi")] {
            let mut w = World::new();
            let up = idle(&mut w);
            let c = w.client();
            // Both arrive in one batch of the driver: the request stands in its buffer, and not a byte of it has been taken.
            w.core.on_bytes(c, request.as_bytes(), w.now);
            w.core.on_bytes(up, stale.as_bytes(), w.now);
            w.run();
            assert!(w.closed.contains(&up), "{stale:?}");
            assert_eq!(
                (w.took(up).as_str(), w.connects.len()),
                ("", 2),
                "nothing was sent there, so it may go elsewhere"
            );
            let up = w.last_connect();
            w.give(up, OK);
            let got = w.took(c);
            assert!(status_of(&got) == 200 && body_of(&got) == "good", "{stale:?}: {got:?}");
            assert_eq!(w.counts().in_flight, 0);
        }
    }
    // A new connection whose other side speaks first (another protocol, or a lie) answers nobody either.
    let mut w = World::new();
    w.slow_connects = true;
    let (c, up) = asked(&mut w, GET);
    w.core.on_connected(up, w.now);
    w.core.on_bytes(up, EVIL.as_bytes(), w.now);
    w.run();
    assert!(w.closed.contains(&up));
    assert!(!w.took(c).contains("evil"));
}

/// "CL.0": an upstream that answers without having read the body may take it for the next request.
#[test]
fn a_connection_whose_upstream_has_answered_before_it_took_the_body_serves_nobody_else() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, format!("{POST}Content-Length: 50000\r\n\r\n"));
    let up = w.last_connect();
    w.stuck = vec![up];
    for _ in 0..50 {
        w.give(c, [b'x'; 1000]);
    }
    w.give(up, OK);
    assert!(body_of(&w.took(c)).ends_with("good"));
    assert!(w.closed.contains(&up), "the rest of a body waits in front of whatever comes next");
}

#[test]
fn the_refusal_of_what_follows_a_head_request_has_a_body_of_the_length_that_it_names() {
    let whole = |got: &str| {
        let length: usize =
            got.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        assert_eq!(body_of(got).len(), length, "{got}");
    };
    let mut w = World::with(Limits { head_ms: 1000, ..Limits::default() });
    for then in ["GET /a HTTP/1.1\r\nHost : h\r\n\r\n", "GET /a HTTP/1.1\r\n"] {
        let (c, up) = asked(&mut w, GET.replace("GET", "HEAD"));
        w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        w.took(c);
        w.give(c, then);
        w.pass(1500);
        let got = w.took(c);
        assert!(matches!(status_of(&got), 400 | 408), "{got}");
        whole(&got);
    }
}

// ---- fields that only some readers take for ours --------------------------------------------------------------------

/// CGI and its heirs read `_` in a field's name as `-`: `x_ezone_shard` is ours to them.
#[test]
fn a_protected_field_written_with_underscores_does_not_pass() {
    let fields = [
        "x_ezone_shard",
        "X_Ezone",
        "x-ezone_hop",
        "x_ezone-epoch",
        "x_shard",
        "X_SHARD",
        "x_forwarded_for",
        "x-forwarded_for",
        "X_Forwarded-For",
        "x_forwarded_proto",
        "x_forwarded_host",
    ];
    let mut w = World::new();
    let lines: String = fields.iter().map(|f| format!("{f}: evil\r\n")).collect();
    let (_, up) = asked(&mut w, GET.replace("Host", &format!("{lines}x_other: kept\r\nHost")));
    let sent = w.took(up);
    assert!(!sent.contains("evil") && sent.contains("x_other: kept\r\n"), "{sent}");
    let (c, up) = asked(&mut w, GET);
    w.give(up, format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n"));
    let got = w.took(c);
    assert!(!got.to_ascii_lowercase().contains("x_ezone") && !got.contains("x-ezone_"), "{got}");
    for name in fields {
        let mut w = World::new();
        let (c, _) = asked(&mut w, format!("{POST}Transfer-Encoding: chunked\r\n\r\n0\r\n{name}: evil\r\n\r\n"));
        assert_eq!(status_of(&w.took(c)), 400, "{name} in a trailer");
    }
}

/// A client may ask for its zone's copy of a record; it may not so get past the owner of anything else.
#[test]
fn a_local_read_is_of_records_and_no_way_around_the_owner() {
    let mut s = settings(Limits::default());
    s.services.push(Service::new("/records/orders/", &[addr(7)]));
    for method in ["GET", "PUT", "DELETE", "POST"] {
        let mut w = World::of(s.clone());
        let request =
            format!("{method} /records/orders/1 HTTP/1.1\r\nHost: h\r\nx-shard: shopid=2\r\nx-ezone-read: local\r\n");
        let (_, up) = asked(&mut w, request + "Content-Length: 0\r\n\r\n");
        let to = w.connects.last().unwrap().1;
        assert_eq!(to, Target::Tcp(addr(2)), "{method}: shard 2 is sh's, and this service is no record store");
        assert!(w.took(up).contains("x-ezone-hop"));
    }
}

// ---- messages that cost more to read than to send -------------------------------------------------------------------

#[test]
fn chunk_extensions_that_outweigh_their_data_end_the_body() {
    let chunk = format!("1;{}\r\nx\r\n", "e".repeat(200));
    let mut w = World::new();
    let (c, up) = asked(&mut w, format!("{POST}Transfer-Encoding: chunked\r\n\r\n"));
    let mut n = 0;
    while w.closed.is_empty() && n < 10_000 {
        w.give(c, &chunk);
        n += 1;
    }
    assert!(n < 100, "{n} chunks with 200 bytes of extension for each byte of data");
    assert!(status_of(&w.took(c)) == 400 && w.closed.contains(&up));

    let mut w = World::new();
    let (c, up) = asked(&mut w, GET);
    w.give(up, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..100 {
        w.give(up, &chunk);
    }
    assert!(w.closed.contains(&up) && w.closed.contains(&c));

    // Small chunks are legal, and so are extensions beside data enough (signed uploads have 85 bytes for each 64 KiB).
    for (chunk, times) in
        [("1\r\nx\r\n".to_string(), 50_000), (format!("1000;{}\r\n{}\r\n", "s".repeat(85), "x".repeat(4096)), 300)]
    {
        let mut w = World::new();
        let (c, up) = asked(&mut w, format!("{POST}Transfer-Encoding: chunked\r\n\r\n"));
        for _ in 0..times {
            w.give(c, &chunk);
        }
        w.give(c, "0\r\n\r\n");
        w.give(up, OK);
        assert_eq!(status_of(&w.took(c)), 200);
    }
}

#[test]
fn a_connection_field_nominates_only_so_many() {
    let nominating = |n: usize| GET.replace("Host", &format!("Connection: {}\r\na: 1\r\nHost", vec!["a"; n].join(",")));
    let mut w = World::new();
    let (_, up) = asked(&mut w, nominating(32));
    assert!(!w.took(up).contains("\r\na: 1"));
    let mut w = World::new();
    let c = w.client();
    w.give(c, nominating(1000));
    assert_eq!((status_of(&w.took(c)), w.connects.len()), (400, 0), "each is looked for among all the fields");
}

/// What a router adds for its peer does not make a head too large that was not.
#[test]
fn a_head_that_one_router_takes_its_peer_takes_too() {
    let limits = Limits { fields_max: 100, ..Limits::default() };
    for (name, fill) in [
        ("bytes", format!("x: {}\r\n", "y".repeat(8192 - GET.len() - "x: \r\n".len()))),
        ("fields", "x: y\r\n".repeat(98)),
    ] {
        let mut s = settings(limits);
        let f = &mut s.forwarding;
        (f.via, f.trace) = (true, true);
        f.x_forwarded_for = Way::Set;
        f.forwarded = Way::Set;
        f.x_forwarded_host = Own::Set;
        f.x_forwarded_proto = Own::Set;
        let mut edge = World::of(s.clone());
        let request = GET.replace("shopid=1", "shopid=2").replace("Host", &format!("{fill}Host"));
        let (client, up) = asked(&mut edge, &request);
        let hop = edge.took(up);
        assert!(hop.contains("x-ezone-hop"), "{name}: {hop}");
        s.zone = Some(router_world::SH);
        let mut owner = World::of(s);
        let peer = owner.core.on_accept(Side::Peer, owner.now).unwrap();
        owner.give(peer, &hop);
        let backend = owner.connects.last().unwrap_or_else(|| panic!("{name}: refused by the owner")).0;
        // And its answer: as large as one router takes it from its own upstream.
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fill}\r\n");
        owner.give(backend, answer.replace(&"y".repeat(8192 - GET.len() - 5), &"y".repeat(8192 - 50)));
        let back = owner.took(peer);
        assert_eq!(status_of(&back), 200, "{name}");
        edge.give(up, &back);
        assert_eq!(status_of(&edge.took(client)), 200, "{name}");
    }
}
