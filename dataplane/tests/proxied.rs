//! Clients behind a balancer that speaks the PROXY protocol, through the real core.

mod router_table;
mod router_world;

use dataplane::router::forward::{Forwarding, Way};
use dataplane::router::{Limits, Settings, Side};
use router_world::{GET, World, settings};

const V1: &[u8] = b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\0\x50";

fn world() -> World {
    let forwarding = Forwarding { x_forwarded_for: Way::Set, ..Forwarding::default() };
    let limits = Limits { head_ms: 1000, ..Limits::default() };
    World::of(Settings { forwarding, proxy_protocol: true, ..settings(limits) })
}

#[test]
fn the_header_comes_first_and_its_address_is_the_clients_wherever_it_is_split() {
    for (header, from) in [
        (V1, "1.2.3.4"),
        (V2, "1.2.3.4"),
        (b"PROXY UNKNOWN\r\n", "9.9.9.9"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "9.9.9.9"),
    ] {
        let all = [header, GET.as_bytes(), GET.as_bytes()].concat();
        for at in 0..=all.len() {
            let mut w = world();
            let c = w.client();
            w.core.on_address(c, "9.9.9.9:1".parse().unwrap());
            w.give(c, &all[..at]);
            w.give(c, &all[at..]);
            for _ in 0..2 {
                let up = w.last_connect();
                let sent = w.took(up);
                assert!(sent.contains(&format!("x-forwarded-for: {from}\r\n")), "split at {at}: {sent}");
                w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
            assert_eq!(w.counts().proxy_malformed, 0);
        }
    }
}

#[test]
fn a_connection_that_does_not_begin_with_it_is_closed_without_a_word_and_counted() {
    let twice = [V1, V1, GET.as_bytes()].concat();
    for raw in
        [GET.as_bytes(), b"\x16\x03\x01\x02\x00", b"PROXY TCP4 1.2.3.4\r\n", &[b"PROXY ", &[b'x'; 200][..]].concat()]
    {
        for step in [1, raw.len()] {
            let mut w = world();
            let c = w.client();
            raw.chunks(step).for_each(|part| w.give(c, part));
            assert!(w.closed.contains(&c) && w.connects.is_empty() && w.took(c).is_empty());
            assert_eq!((w.counts().proxy_malformed, w.counts().connections), (1, 0));
        }
    }
    let mut w = world();
    let c = w.client();
    w.give(c, twice);
    assert!(w.took(c).starts_with("HTTP/1.1 400") && w.connects.is_empty(), "a second one is no request");
    for ends in [true, false] {
        let mut w = world();
        let c = w.client();
        w.give(c, &V1[..10]);
        if ends {
            w.end(c, false);
        } else {
            w.pass(1200);
        }
        assert!(w.closed.contains(&c));
        assert_eq!(w.counts().proxy_malformed, 1);
    }
}

#[test]
fn a_peer_speaks_for_itself() {
    let mut w = world();
    let p = w.core.on_accept(Side::Peer, w.now).unwrap();
    w.give(p, GET.replace("x-shard", "x-ezone-hop: 1\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1\r\nx-shard"));
    assert_eq!(w.connects.len(), 1);
}

/// Zone bj, whose service wants to know of each request's client.
fn begun(with: bool) -> Settings {
    let mut s = settings(Limits::default());
    s.services[0].endpoints[0].proxy_protocol = with;
    s
}

/// What an upstream at port 1 is to read first on a connection for a client at 1.2.3.4:1000.
fn header_of_client() -> Vec<u8> {
    let mut header = V2.to_vec();
    header[20..24].copy_from_slice(&[127, 0, 0, 1]);
    header[26..28].copy_from_slice(&1u16.to_be_bytes());
    header
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn an_upstream_that_asks_for_it_gets_a_header_of_each_requests_own_client_on_a_connection_of_its_own() {
    let mut w = World::of(begun(true));
    assert!(w.core.wants_addresses() && !World::of(begun(false)).core.wants_addresses());
    let (a, b) = (w.client(), w.client());
    w.core.on_address(a, "1.2.3.4:1000".parse().unwrap());
    for (n, (c, header)) in [(a, &header_of_client()[..]), (a, &header_of_client()), (b, LOCAL)].into_iter().enumerate()
    {
        w.give(c, GET);
        assert_eq!(w.connects.len(), n + 1, "no two requests share a connection");
        let up = w.last_connect();
        let sent = w.sent.remove(&up).unwrap();
        let head = sent.windows(7).position(|at| at == b"GET /a ").unwrap();
        assert_eq!(sent[..head].escape_ascii().to_string(), header.escape_ascii().to_string());
        w.give(up, OK);
        assert!(w.took(c).starts_with("HTTP/1.1 200") && w.closed.contains(&up));
    }
}

#[test]
fn a_second_attempt_says_again_whose_request_it_is() {
    let mut w = World::of(begun(true));
    let c = w.client();
    w.core.on_address(c, "1.2.3.4:1000".parse().unwrap());
    w.give(c, GET);
    for _ in 0..2 {
        let up = w.last_connect();
        assert!(w.sent.remove(&up).unwrap().starts_with(&header_of_client()));
        w.end(up, true);
    }
    assert_eq!((w.connects.len(), router_world::status_of(&w.took(c))), (2, 502));
}

#[test]
fn a_connection_that_began_with_a_header_is_not_kept_when_a_reload_does_without() {
    for (before, after) in [(true, false), (false, true)] {
        let mut w = World::of(begun(before));
        let c = w.client();
        w.give(c, GET);
        let first = w.last_connect();
        w.core.on_settings(std::sync::Arc::new(begun(after)), w.now);
        w.run();
        w.give(first, OK);
        assert!(w.took(c).starts_with("HTTP/1.1 200") && w.closed.contains(&first));
        w.give(c, GET);
        let second = w.last_connect();
        assert_ne!(first, second);
        assert_eq!(w.sent[&second].starts_with(LOCAL), after);
    }
}
