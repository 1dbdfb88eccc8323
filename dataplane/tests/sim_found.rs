//! What the simulation has found, each as the shortest test that shows it.

mod router_table;
mod router_world;

use dataplane::router::Limits;
use router_table::Table;
use router_world::{BJ, GET, World, body_of, status_of};

fn post(length: usize) -> String {
    GET.replace("GET", "POST").replace("Host", &format!("Content-Length: {length}\r\nHost"))
}

/// The other router still waited for the rest of a body: it took the next client's request for that, and answered it never.
/// The end of a client that closes while its answer is on the way shows only in a send that fails: its end was read before, or
/// the failed send was told what a receive would have been.
#[test]
fn a_client_that_can_be_sent_nothing_any_more_is_gone_with_its_request() {
    for (ended, whole) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut w = World::new();
        let c = w.client();
        w.give(c, GET);
        let up = w.last_connect();
        if ended {
            w.end(c, false);
        }
        assert!(!w.closed.contains(&c), "who has ended its half may wait for the answer");
        w.stuck.push(c);
        let length = if whole { 4 } else { 400_000 };
        w.give(up, format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nsome"));
        w.core.on_sent(c, Vec::new(), false, w.now);
        w.run();
        assert!(w.closed.contains(&c), "ended {ended}, whole {whole}: the client is gone");
        assert!(whole || w.closed.contains(&up), "ended {ended}: nobody wants the rest of the answer");
        let counts = w.counts();
        assert_eq!((counts.clients, counts.in_flight), (0, 0), "ended {ended}, whole {whole}");
    }
}

#[test]
fn a_connection_whose_peer_said_421_before_the_end_of_a_body_serves_nobody_else() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, post(10).replace("shopid=1", "shopid=2") + "half.");
    let peer = w.last_connect();
    w.give(peer, "HTTP/1.1 421 No\r\nx-ezone-owner: 0\r\nx-ezone-epoch: 2\r\nContent-Length: 0\r\n\r\n");
    assert!(w.closed.contains(&peer), "it went into the pool in the middle of a request");
    w.map(Table::new(2, &[(1, BJ), (2, BJ)]));
    w.give(c, "whole");
    let own = w.last_connect();
    assert!(w.took(own).ends_with("half.whole"));
}

/// The peer adds its own epoch to each answer, so an upstream's 421 looked like the peer's word that nothing was done.
#[test]
fn a_421_that_a_peers_upstream_gave_is_not_tried_again() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, post(0).replace("shopid=1", "shopid=2"));
    let peer = w.last_connect();
    w.give(peer, "HTTP/1.1 421 Misdirected\r\nx-ezone: sh\r\nx-ezone-epoch: 9\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((status_of(&w.took(c)), w.counts().retried_421, w.counts().holding), (421, 0, 0));
}

#[test]
fn a_body_that_comes_late_after_its_answer_gets_no_second_answer() {
    let mut w = World::with(Limits { read_ms: 500, idle_ms: 500, ..Limits::default() });
    for rest in ["", "zz\r\n"] {
        let c = w.client();
        w.give(
            c,
            GET.replace("GET", "POST").replace("/a", "/zzz").replace("Host", "Transfer-Encoding: chunked\r\nHost"),
        );
        assert_eq!(status_of(&w.took(c)), 404);
        w.give(c, rest);
        w.pass(600);
        assert_eq!(w.took(c), "", "after {rest:?}");
        assert!(w.shut.contains(&c));
    }
}

#[test]
fn a_client_that_has_ended_its_half_is_answered_though_its_request_waits_for_a_slow_upstream() {
    let mut w = World::with(Limits { buffer_bytes_max: 1000, ..Limits::default() });
    let c = w.client();
    w.slow_connects = true;
    w.give(c, post(3000) + &"x".repeat(1500));
    w.give(c, "x".repeat(1500));
    w.end(c, false);
    let up = w.last_connect();
    assert!(!w.closed.contains(&c), "it was given up with a part of its body unread");
    w.core.on_connected(up, w.now);
    w.run();
    assert_eq!(body_of(&w.took(up)).len(), 3000);
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 200);
}

#[test]
fn pipelined_requests_of_a_client_that_has_ended_its_half_are_answered_though_it_reads_slowly() {
    let mut w = World::with(Limits { buffer_bytes_max: 1000, ..Limits::default() });
    let c = w.client();
    w.stuck = vec![c];
    w.give(c, [GET, GET, GET].concat());
    let up = w.last_connect();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1200\r\n\r\n".to_string() + &"x".repeat(1200);
    w.give(up, &answer);
    w.end(c, false);
    for _ in 0..2 {
        assert!(!w.closed.contains(&c) && !w.shut.contains(&c));
        w.core.on_sent(c, Vec::new(), true, w.now);
        w.run();
        w.give(up, &answer);
    }
    assert_eq!(w.took(c).matches("HTTP/1.1 200").count(), 3);
}

#[test]
fn what_a_client_sent_before_it_ended_its_half_is_answered_also_after_an_answer_of_the_routers_own() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, [GET, &GET.replace("/a", "/nothing"), GET].concat());
    w.end(c, false);
    for expected in [&[200, 404][..], &[200]] {
        let up = w.last_connect();
        w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let answers = w.took(c);
        let seen: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|a| a[..3].parse::<u16>().unwrap()).collect();
        assert_eq!(seen, *expected, "{answers}");
    }
    assert!(w.closed.contains(&c));
}

#[test]
fn the_end_of_a_request_is_seen_though_the_upstreams_buffer_is_full() {
    let mut w = World::with(Limits { buffer_bytes_max: 1000, read_ms: 400, answer_ms: 900, ..Limits::default() });
    let c = w.client();
    w.give(c, post(2000));
    let up = w.last_connect();
    w.stuck = vec![up];
    w.took(up);
    w.give(c, "x".repeat(1000));
    w.give(c, "x".repeat(1000));
    w.pass(600);
    assert_eq!(w.took(c), "", "the whole request has come: it is the upstream that is late, not the client");
    w.pass(600);
    assert_eq!(status_of(&w.took(c)), 504);
}

#[test]
fn a_stop_cuts_no_answer_off_that_is_on_its_way_and_says_which_is_the_last() {
    let mut w = World::new();
    let (c, waits) = (w.client(), w.client());
    w.stuck = vec![c];
    w.give(c, GET.replace("/a", "/zzz"));
    w.give(waits, GET);
    w.core.on_stop(w.now);
    w.run();
    assert!(!w.closed.contains(&c) && !w.shut.contains(&c));
    for _attempt in 0..2 {
        let up = w.last_connect();
        w.end(up, true);
    }
    let answer = w.took(waits);
    assert!(status_of(&answer) == 502 && answer.contains("connection: close\r\n"), "{answer}");
}

#[test]
fn requests_that_come_after_a_send_has_failed_are_measured_without_a_panic() {
    let mut w = World::new();
    let c = w.client();
    w.stuck = vec![c];
    (0..2).for_each(|_| w.give(c, GET.replace("/a", "/zzz")));
    w.core.on_sent(c, Vec::new(), false, w.now);
    w.give(c, GET.replace("/a", "/zzz"));
    w.end(c, true);
    assert!(w.closed.contains(&c));
}

/// Found by reading.
#[test]
fn an_answer_that_breaks_off_does_not_look_whole_to_a_client_of_http_1_0() {
    for (version, reset) in [("1.0", true), ("1.1", false)] {
        let mut w = World::new();
        let c = w.client();
        w.give(c, GET.replace("HTTP/1.1", &format!("HTTP/{version}")));
        let up = w.last_connect();
        w.give(up, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        w.end(up, false);
        assert!(w.took(c).contains("half") && w.closed.contains(&c));
        assert_eq!(w.reset.contains(&c), reset);
    }
}

#[test]
fn a_late_100_is_not_written_into_an_answer_that_has_begun() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, post(5).replace("Host", "Expect: 100-continue\r\nHost"));
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf.");
    w.pass(60_000);
    w.give(up, "whole");
    assert!(!w.took(c).contains("100 Continue"));
}
