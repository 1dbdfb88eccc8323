//! Each bound of the router core: what it gives to whom passes it, and that neither a slow client nor a slow upstream costs more
//! memory than the bounds say.

mod router_table;
mod router_world;

use dataplane::router::{ConnId, Limits, Side};
use router_world::{GET, World, status_of};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn post(length: usize) -> String {
    format!("POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: {length}\r\n\r\n")
}

/// Everything that is stuck moves again.
fn unstick(w: &mut World, ids: &[ConnId]) {
    w.stuck.clear();
    for _ in 0..2000 {
        ids.iter().for_each(|id| w.core.on_sent(*id, Vec::new(), true, w.now));
        w.run();
    }
}

#[test]
fn a_body_above_its_limit_is_413_by_its_length_or_once_it_is_seen() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let mut w = World::with(limits);
    let c = w.client();
    w.give(c, post(1001));
    assert_eq!((status_of(&w.took(c)), w.connects.len()), (413, 0), "nothing of it went on");
    assert!(w.shut.contains(&c));

    let mut w = World::with(limits);
    let c = w.client();
    w.give(c, post(1000).replace("Content-Length: 1000", "Transfer-Encoding: chunked"));
    for _ in 0..10 {
        w.give(c, format!("64\r\n{}\r\n", "x".repeat(100)));
    }
    let up = w.last_connect();
    assert!(w.closed.is_empty());
    w.give(c, "1\r\nx\r\n0\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 413);
    assert!(w.closed.contains(&up) && !w.took(up).ends_with("0\r\n\r\n"), "the upstream sees that it is not whole");

    let mut w = World::with(limits);
    let c = w.client();
    w.give(c, post(1000) + &"x".repeat(1000));
    let up = w.last_connect();
    w.give(up, OK);
    assert_eq!(status_of(&w.took(c)), 200, "the limit itself is legal");
}

#[test]
fn a_head_that_does_not_end_in_time_is_408_however_it_trickles() {
    let mut w = World::with(Limits { head_ms: 1000, idle_ms: 60_000, ..Limits::default() });
    let c = w.client();
    for b in GET.as_bytes().chunks(1).take(20) {
        w.give(c, b);
        w.pass(100);
    }
    assert_eq!(status_of(&w.took(c)), 408, "each byte buys no more time");
    assert!(w.shut.contains(&c) && w.connects.is_empty());
}

#[test]
fn a_body_that_stops_is_408_and_one_that_the_upstream_does_not_take_is_504() {
    let limits = Limits { read_ms: 1000, answer_ms: 60_000, ..Limits::default() };
    let mut w = World::with(limits);
    let c = w.client();
    w.give(c, post(10) + "hello");
    let up = w.last_connect();
    for _ in 0..3 {
        w.pass(700);
        w.give(c, "x");
    }
    assert!(w.closed.is_empty(), "it moves");
    w.pass(1200);
    assert_eq!(status_of(&w.took(c)), 408);
    assert!(w.closed.contains(&up));

    let mut w = World::with(limits);
    let c = w.client();
    w.give(c, post(1_000_000));
    let up = w.last_connect();
    w.stuck = vec![up];
    while !w.paused.contains(&c) {
        w.give(c, [b'x'; 8192]);
    }
    w.pass(1200);
    let got = w.took(c);
    assert!(status_of(&got) == 504 && got.contains("x-ezone-outcome: unknown"), "{got}");
}

#[test]
fn an_answer_that_does_not_come_is_504_and_an_upstream_that_cannot_be_reached_502() {
    let mut w = World::with(Limits { answer_ms: 1000, ..Limits::default() });
    let c = w.client();
    w.give(c, GET);
    w.pass(1200);
    assert_eq!(status_of(&w.took(c)), 504);
    let mut w = World::with(Limits { connect_ms: 500, ..Limits::default() });
    w.slow_connects = true;
    let c = w.client();
    w.give(c, GET);
    w.pass(3000);
    assert_eq!(status_of(&w.took(c)), 502);
    assert_eq!(w.counts().in_flight, 0);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let mut w = World::with(Limits { idle_ms: 1000, ..Limits::default() });
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.give(up, OK);
    w.took(c);
    w.pass(700);
    assert!(!w.closed.contains(&c));
    w.pass(500);
    assert!(w.closed.contains(&c) && w.took(c).is_empty());
}

#[test]
fn the_last_request_of_a_connection_is_told_so() {
    let mut w = World::with(Limits { requests_max: 3, ..Limits::default() });
    let c = w.client();
    for n in 1..=3 {
        w.give(c, GET);
        let up = w.last_connect();
        w.give(up, OK);
        assert_eq!(w.took(c).contains("connection: close\r\n"), n == 3, "request {n}");
    }
    assert!(w.shut.contains(&c));
}

#[test]
fn clients_above_their_number_are_closed_and_counted() {
    let mut w = World::with(Limits { clients_max: 2, ..Limits::default() });
    let (a, _b) = (w.client(), w.client());
    assert_eq!(w.core.on_accept(Side::Client, w.now), None);
    assert_eq!(w.counts().refused, 1);
    w.give(a, GET);
    assert_eq!(w.connects.len(), 1, "a full house is still served");
    w.end(a, true);
    assert!(w.core.on_accept(Side::Client, w.now).is_some(), "and has room again");
}

/// A slow client or a slow upstream costs bounded memory: back-pressure, both ways.
#[test]
fn a_slow_client_stops_the_upstream_and_a_slow_upstream_stops_the_client() {
    let size = 10_000_000;
    let limits = Limits { buffer_bytes_max: 10_000, kept_bytes_max: 1000, ..Limits::default() };
    for slow_client in [true, false] {
        let mut w = World::with(limits);
        let c = w.client();
        w.give(c, if slow_client { GET.into() } else { post(size) });
        let up = w.last_connect();
        let (from, to) = if slow_client { (up, c) } else { (c, up) };
        if slow_client {
            w.give(up, format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
        }
        w.took(to);
        w.stuck = vec![to];
        let (mut given, mut most) = (0, 0);
        while !w.paused.contains(&from) {
            w.give(from, [b'x'; 8192]);
            given += 8192;
            most = most.max(w.counts().memory_bytes);
            assert!(given <= 5 * limits.buffer_bytes_max, "{slow_client}: {given} bytes were read");
        }
        assert!(most <= 100_000, "{slow_client}: {most} bytes are held");
        // All of it comes through all the same.
        while given < size {
            unstick(&mut w, &[to]);
            let part = 8192.min(size - given);
            w.give(from, vec![b'x'; part]);
            given += part;
            assert!(w.counts().memory_bytes <= 100_000);
            if given > 1_000_000 {
                break;
            }
        }
        unstick(&mut w, &[to]);
        assert_eq!(w.took(to).matches('x').count(), given, "{slow_client}: bytes were lost");
    }
}

#[test]
fn a_core_short_of_memory_takes_no_more_requests_and_recovers() {
    let max = 1 << 20;
    let mut w = World::with(Limits { memory_bytes_max: max, ..Limits::default() });
    let mut served = vec![];
    // Slow clients, each with a long answer.
    while w.counts().short_of_memory == 0 {
        let Some(c) = w.core.on_accept(Side::Client, w.now) else { break };
        w.give(c, GET);
        let up = w.last_connect();
        w.took(c);
        w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        w.stuck.push(c);
        for _ in 0..20 {
            if !w.paused.contains(&up) {
                w.give(up, [b'x'; 8192]);
            }
        }
        served.push((c, up));
        assert!(served.len() < 1000, "the limit is never reached");
    }
    assert!(w.counts().memory_bytes > max as u64 && w.counts().refused > 0);
    // Those that are there get little more each, whatever their upstreams send.
    for _ in 0..100 {
        for (_, up) in &served {
            if !w.paused.contains(up) {
                w.give(*up, [b'x'; 8192]);
            }
        }
    }
    let bound = (max + served.len() * 40_000) as u64;
    assert!(w.counts().memory_bytes <= bound, "{} bytes with {} connections", w.counts().memory_bytes, served.len());
    let (gone, up) = served.pop().unwrap();
    w.end(gone, true);
    assert!(w.closed.contains(&up));
    for (c, _) in served {
        w.end(c, true);
    }
    assert!(w.counts().memory_bytes < 10_000, "{} bytes are left", w.counts().memory_bytes);
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.give(up, OK);
    assert_eq!(status_of(&w.took(c)), 200);
}

#[test]
fn a_new_request_of_a_core_short_of_memory_is_503() {
    let mut w = World::with(Limits { memory_bytes_max: 100_000, ..Limits::default() });
    let (early, slow) = (w.client(), w.client());
    w.give(slow, GET);
    let up = w.last_connect();
    w.took(slow);
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
    w.stuck.push(slow);
    while !w.paused.contains(&up) {
        w.give(up, [b'x'; 8192]);
    }
    assert!(w.counts().memory_bytes > 100_000);
    w.give(early, GET);
    let got = w.took(early);
    assert!(status_of(&got) == 503 && got.contains("retry-after") && got.contains("connection: close"), "{got}");
    assert_eq!(w.counts().short_of_memory, 1);
}

#[test]
fn bytes_of_held_requests_and_of_a_record_are_bounded() {
    let mut w = World::with(Limits { hold_bytes_max: GET.len() * 3 / 2, ..Limits::default() });
    w.map(router_table::Table::new(2, &[(1, router_world::BJ), (2, router_world::SH)]).moving(1, router_world::SH));
    let (first, second) = (w.client(), w.client());
    w.give(first, GET);
    w.give(second, GET);
    let got = w.took(second);
    assert!(
        status_of(&got) == 503 && got.contains("retry-after") && got.contains("too many requests are held"),
        "{got}"
    );
    assert_eq!((w.took(first).as_str(), w.counts().holding), ("", 1));

    for body in ["Content-Length: 11\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n"] {
        let mut w = World::with(Limits { record_bytes_max: 10, ..Limits::default() });
        let c = w.client();
        w.give(c, format!("PUT /records/t/1 HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n{body}"));
        assert_eq!(status_of(&w.took(c)), 413, "{body}");
    }
}
