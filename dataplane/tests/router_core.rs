//! The router's core without sockets: what goes in, what comes out, wherever the bytes are split.

mod router_table;
mod router_world;

use dataplane::router::{ConnId, Limits, Service, Settings, Target};
use replog::commit::{Committed, Condition, Held, Made, Token};
use replog::port::{Answer, Ask, Refused, put_answer, take_ask};
use replog::{Hlc, Version};
use router_table::Table;
use router_world::{BJ, GET, SH, World, addr, body_of, settings, status_of};
use shardmap::{MapEpoch, OwnerEpoch, Shard};
use std::sync::Arc;

#[test]
fn a_request_and_its_answer_are_the_same_wherever_they_are_split() {
    let request = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nX-Ezone-Hop: 1\r\nConnection: x-one\r\nx-one: 1\r\n\
                   Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nx-check: 1\r\n\r\n";
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx-ezone: liar\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello";
    for at in 0..=request.len().max(answer.len()) {
        let mut w = World::new();
        let c = w.client();
        let (first, second) = request.split_at(at.min(request.len()));
        w.give(c, first);
        w.give(c, second);
        let up = w.last_connect();
        let sent = w.took(up);
        let (head, body) = sent.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            head,
            "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\ntransfer-encoding: chunked\r\nx-ezone: bj\r\n\
             x-ezone-shard: 1\r\nx-ezone-epoch: 1"
        );
        let data = body.strip_suffix("0\r\nx-check: 1\r\n\r\n").unwrap_or_else(|| panic!("{body:?}"));
        let data: String = data.split("\r\n").collect::<Vec<_>>().chunks(2).filter_map(|c| c.get(1)).copied().collect();
        assert_eq!(data, "abcde", "split at {at}: {body:?}");
        let (first, second) = answer.split_at(at.min(answer.len()));
        w.give(up, first);
        w.give(up, second);
        assert_eq!(
            w.took(c),
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-ezone: bj\r\nx-ezone-shard: 1\r\n\
             x-ezone-epoch: 1\r\n\r\nhello",
            "split at {at}"
        );
        w.give(c, GET);
        assert_eq!(w.connects.len(), 1, "the connection was not kept, split at {at}");
        assert_eq!(w.counts().in_flight, 1);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, [GET, &GET.replace("/a", "/a2"), &GET.replace("/a", "/nothing")].concat());
    let up = w.last_connect();
    assert!(w.took(up).starts_with("GET /a HTTP"));
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1");
    assert!(w.took(up).starts_with("GET /a2 HTTP"));
    w.give(up, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n2\r\n0\r\n\r\n");
    let all = w.took(c);
    let at = |part| all.find(part).unwrap_or_else(|| panic!("{part:?} in {all:?}"));
    assert!(at("\r\n\r\n1HTTP/1.1 200") < at("1\r\n2\r\n0\r\n\r\nHTTP/1.1 404"));
}

#[test]
fn a_request_that_could_be_read_in_two_ways_is_answered_400_and_the_connection_ends() {
    let bad = [
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /a HTTP/1.1\nHost: h\n\n",
        "GET /a HTTP/1.1\r\nHost : h\r\n\r\n",
        "\x16\x03\x01\x02\n",
    ];
    for raw in bad {
        let mut w = World::new();
        let c = w.client();
        w.give(c, raw);
        w.give(c, GET);
        let answer = w.took(c);
        assert_eq!(status_of(&answer), 400, "{raw:?}: {answer}");
        assert!(answer.contains("connection: close") && body_of(&answer).starts_with("{\"error\":"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 4").count(), 1, "{answer}");
        assert_eq!(w.shut, [c], "{raw:?}");
        w.end(c, false);
        assert!(w.closed.contains(&c));
        assert_eq!(w.counts().in_flight, 0);
    }
}

#[test]
fn a_request_of_another_zone_goes_one_hop_and_no_further() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET.replace("shopid=1", "shopid=2").replace("Host: h", "Host: h\r\nx-ezone-hop: 1\r\nx-ezone-shard: 1"));
    assert_eq!(w.connects[0].1, Target::Tcp(([127, 0, 0, 1], 2).into()));
    let up = w.last_connect();
    let sent = w.took(up);
    assert!(sent.contains("x-ezone-hop: 1\r\nx-ezone: bj\r\nx-ezone-shard: 2\r\nx-ezone-epoch: 1\r\n"), "{sent}");
    w.give(
        up,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nx-ezone: sh\r\nx-ezone-epoch: 1\r\nx-ezone-version: 1.2.3.4\r\n\r\n",
    );
    let answer = w.took(c);
    assert!(
        answer.contains("x-ezone: sh\r\nx-ezone-shard: 2\r\nx-ezone-epoch: 1\r\nx-ezone-version: 1.2.3.4"),
        "{answer}"
    );

    let p = w.peer();
    w.give(p, "GET /a HTTP/1.1\r\nHost: h\r\nx-ezone-hop: 1\r\nx-ezone-shard: 2\r\nx-ezone-epoch: 1\r\n\r\n");
    let answer = w.took(p);
    assert_eq!(status_of(&answer), 421);
    assert!(answer.contains("x-ezone-epoch: 1\r\n") && answer.contains("x-ezone-owner: 1\r\n"), "{answer}");
    assert_eq!(w.connects.len(), 1);
}

#[test]
fn a_hop_at_a_newer_map_waits_for_that_map_and_then_is_served_or_refused() {
    let mut w = World::new();
    let p = w.peer();
    let hop = "GET /a HTTP/1.1\r\nHost: h\r\nx-ezone-hop: 1\r\nx-ezone-shard: 2\r\nx-ezone-epoch: 3\r\n\r\n";
    w.give(p, hop);
    assert_eq!((w.took(p), w.counts().holding), (String::new(), 1));
    w.map(Table::new(2, &[(1, BJ), (2, SH)]));
    assert_eq!(w.took(p), "");
    w.map(Table::new(3, &[(1, BJ), (2, BJ)]));
    assert_eq!(w.connects.len(), 1);
    let p2 = w.peer();
    w.give(p2, hop.replace("epoch: 3", "epoch: 9"));
    w.pass(5200);
    let answer = w.took(p2);
    assert!(status_of(&answer) == 503 && answer.contains("retry-after"), "{answer}");
}

#[test]
fn requests_for_a_moving_shard_are_held_and_released_in_order_to_the_new_owner() {
    let mut w = World::new();
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).moving(1, SH));
    let clients: Vec<_> = (0..5).map(|_| w.client()).collect();
    for (i, c) in clients.iter().enumerate() {
        w.give(*c, GET.replace("/a", &format!("/a{i}")));
    }
    assert_eq!((w.counts().holding, w.connects.len(), w.counts().in_flight_moving), (5, 0, 0));
    w.pass(300);
    w.map(Table::new(3, &[(1, SH), (2, SH)]));
    assert_eq!((w.counts().holding, w.connects.len()), (0, 5));
    assert!(w.counts().held_ms_max >= 300);
    for (i, (up, target)) in w.connects.clone().into_iter().enumerate() {
        assert_eq!(target, Target::Tcp(([127, 0, 0, 1], 2).into()));
        assert!(w.took(up).starts_with(&format!("GET /a{i} ")));
    }
}

#[test]
fn holds_are_bounded_in_time_and_number_and_say_so() {
    let mut w = World::with(Limits { hold_count_max: 2, hold_ms_max: 1000, ..Limits::default() });
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).lost(1, BJ));
    let (a, b, c) = (w.client(), w.client(), w.client());
    w.give(a, GET);
    w.give(b, GET);
    w.give(c, GET);
    let full = w.took(c);
    assert!(status_of(&full) == 503 && full.contains("retry-after: 1") && full.contains("too many"), "{full}");
    w.end(b, true);
    w.give(c, GET);
    assert_eq!(w.counts().holding, 2);
    w.pass(1200);
    for id in [a, c] {
        let late = w.took(id);
        assert!(status_of(&late) == 503 && late.contains("no owner yet"), "{late}");
    }
    assert_eq!(w.counts().holding, 0);
}

#[test]
fn a_held_body_stays_in_the_socket_and_follows_on_release() {
    let mut w = World::new();
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).moving(1, SH));
    let c = w.client();
    w.give(c, "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(w.paused, [c]);
    w.map(Table::new(3, &[(1, BJ), (2, SH)]));
    assert!(w.paused.is_empty());
    w.give(c, "world");
    let up = w.last_connect();
    assert!(w.took(up).ends_with("\r\n\r\nhelloworld"));
}

#[test]
fn a_421_of_a_peer_is_tried_again_once_with_the_newer_map_and_the_body_it_still_holds() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=2\r\nContent-Length: 5\r\n\r\nhello");
    let up = w.last_connect();
    w.took(up);
    let refused =
        "HTTP/1.1 421 Misdirected Request\r\nx-ezone-owner: 0\r\nx-ezone-epoch: 4\r\nContent-Length: 2\r\n\r\n{}";
    w.give(up, refused);
    assert_eq!((w.counts().holding, w.took(c)), (1, String::new()));
    w.map(Table::new(3, &[(1, BJ), (2, BJ)]));
    assert_eq!(w.counts().holding, 1, "map 3 is older than the one that was named");
    w.map(Table::new(4, &[(1, BJ), (2, BJ)]));
    let own = w.last_connect();
    assert_ne!(own, up);
    assert!(w.took(own).ends_with("\r\n\r\nhello"));
    w.give(own, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 200);
    assert_eq!((w.counts().retried_421, w.counts().in_flight), (1, 0));
}

/// The new fences give what was refused to another shard, whose newest entry happens to be as old.
#[test]
fn a_request_that_was_refused_goes_by_the_new_fences_whatever_the_epoch_of_its_new_shards_entry() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET.replace("shopid=1", "shopid=2"));
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 421 No\r\nx-ezone-owner: 1\r\nx-ezone-epoch: 2\r\nContent-Length: 0\r\n\r\n");
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).entry(1, BJ, 1).moving(2, BJ));
    assert_eq!(w.counts().holding, 1);
    w.map(Table::new(3, &[(1, BJ), (2, SH)]).entry(1, BJ, 1).goes(2, 1));
    assert_eq!(w.counts().holding, 0);
    let own = w.last_connect();
    assert_ne!(own, up);
    w.give(own, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 200);
}

#[test]
fn retrying_on_a_wrong_zone_is_bounded_and_does_not_loop() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET.replace("shopid=1", "shopid=2"));
    let refused = |epoch: u64| {
        format!("HTTP/1.1 421 No\r\nx-ezone-owner: 1\r\nx-ezone-epoch: {epoch}\r\nContent-Length: 0\r\n\r\n")
    };
    let up = w.last_connect();
    w.give(up, refused(2));
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).entry(2, SH, 2));
    let up = w.last_connect();
    w.give(up, refused(3));
    let answer = w.took(c);
    assert!(status_of(&answer) == 503 && answer.contains("nothing was done"), "{answer}");
    assert_eq!(w.counts().retried_421, 1);
}

#[test]
fn a_body_that_is_no_longer_held_is_not_replayed_after_a_421() {
    let mut w = World::new();
    let c = w.client();
    let size = 100_000;
    w.give(c, format!("POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=2\r\nContent-Length: {size}\r\n\r\n"));
    for _ in 0..100 {
        w.give(c, vec![b'x'; size / 100]);
    }
    let up = w.last_connect();
    assert_eq!(body_of(&w.took(up)).len(), size);
    w.give(up, "HTTP/1.1 421 No\r\nx-ezone-owner: 0\r\nx-ezone-epoch: 2\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 503);
}

#[test]
fn a_pooled_connection_that_was_closed_is_replaced_once_and_only_where_nothing_is_done_twice() {
    for (method, status) in [("GET", 0), ("PUT", 0), ("POST", 502)] {
        let mut w = World::new();
        let c = w.client();
        w.give(c, GET);
        let up = w.last_connect();
        w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        w.took(c);
        w.give(c, GET.replace("GET", method));
        w.end(up, true);
        let answer = w.took(c);
        assert_eq!(status_of(&answer), status, "{method}: {answer}");
        assert_eq!(w.connects.len(), if status == 0 { 2 } else { 1 }, "{method}");
        assert_eq!(answer.contains("x-ezone-outcome: unknown"), status == 502);
        if status == 0 {
            let fresh = w.last_connect();
            w.end(fresh, true);
            assert_eq!(status_of(&w.took(c)), 502, "a second loss is not tried again");
        }
        assert_eq!(w.counts().in_flight, 0);
    }
}

/// PITFALLS: a kept-alive connection that the other side closed shows as an end of file, as a reset, or as a failed write.
#[test]
fn a_pooled_connection_that_was_closed_gives_no_502_however_it_shows() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for shows in ["end of file", "reset", "failed write", "end while idle", "reset while idle"] {
        let mut w = World::new();
        let c = w.client();
        w.give(c, GET);
        let up = w.last_connect();
        w.give(up, ok);
        w.took(c);
        if shows.ends_with("idle") {
            w.end(up, shows.starts_with("reset"));
            w.give(c, GET);
        } else {
            w.stuck.push(up);
            w.give(c, GET);
            assert_eq!(w.connects.len(), 1, "the pooled connection was taken");
            w.core.on_sent(up, vec![], shows != "failed write", w.now);
            w.end(up, shows != "end of file");
        }
        assert_eq!((w.connects.len(), w.took(c).as_str()), (2, ""), "{shows}");
        let fresh = w.last_connect();
        w.give(fresh, ok);
        assert_eq!(status_of(&w.took(c)), 200, "{shows}");
        assert_eq!(w.counts().in_flight, 0, "{shows}");
    }
}

/// PITFALLS: idle limits below the upstream's.
#[test]
fn a_pooled_connection_is_closed_at_our_idle_limit_and_not_used_after_it() {
    let mut w = World::with(Limits { upstream_idle_ms: 1000, ..Limits::default() });
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    w.pass(600);
    assert!(!w.closed.contains(&up));
    w.pass(600);
    assert!(w.closed.contains(&up));
    w.give(c, GET);
    assert_eq!(w.connects.len(), 2);
}

#[test]
fn a_request_that_was_not_sent_is_tried_once_more_whatever_its_method() {
    let mut w = World::new();
    w.slow_connects = true;
    let c = w.client();
    w.give(c, "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 2\r\n\r\nhi");
    for (tries, status) in [(1, 0), (2, 502)] {
        assert_eq!(w.connects.len(), tries);
        let up = w.last_connect();
        w.core.on_failed(up, w.now);
        w.run();
        let answer = w.took(c);
        assert_eq!(status_of(&answer), status);
        assert!(status == 0 || answer.contains("nothing was done"));
    }
    let c = w.client();
    w.give(c, GET);
    w.pass(2500);
    assert_eq!(status_of(&w.took(c)), 502, "a connect that never ends is given up");
}

#[test]
fn an_answer_that_breaks_off_breaks_the_clients_connection_off() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    w.end(up, false);
    assert!(w.took(c).ends_with("half"));
    assert!(w.closed.contains(&c) && !w.shut.contains(&c));
}

#[test]
fn an_answer_that_breaks_off_in_its_head_is_a_502_at_once_and_is_not_asked_for_again() {
    for method in ["GET", "POST"] {
        for reset in [false, true] {
            let mut w = World::new();
            let c = w.client();
            w.give(c, GET.replace("GET", method));
            let up = w.last_connect();
            w.took(up);
            w.give(up, "HTTP/1.1 200 OK\r\nContent-Le");
            w.end(up, reset);
            assert_eq!(status_of(&w.took(c)), 502, "{method}, reset {reset}");
            assert_eq!((w.connects.len(), w.counts().in_flight), (1, 0), "{method}, reset {reset}");
        }
    }
}

#[test]
fn the_fast_side_is_not_read_while_the_slow_sides_buffer_is_full() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.stuck = vec![c];
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    let mut given = 0;
    while !w.paused.contains(&up) {
        w.give(up, [b'x'; 8192]);
        given += 8192;
        assert!(given < 1_000_000, "the core gathers without bound");
    }
    w.stuck.clear();
    for _ in 0..100 {
        w.core.on_sent(c, Vec::new(), true, w.now);
        w.run();
    }
    assert!(w.paused.is_empty());
    assert_eq!(body_of(&w.took(c)).len(), given);

    let c = w.client();
    w.stuck = vec![];
    w.slow_connects = true;
    w.give(c, "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 1000000000\r\n\r\n");
    let mut given = 0;
    while !w.paused.contains(&c) {
        w.give(c, [b'x'; 8192]);
        given += 8192;
        assert!(given < 1_000_000, "the core gathers without bound");
    }
}

#[test]
fn the_end_of_a_body_is_seen_though_the_slow_sides_buffer_is_full() {
    let mut w = World::new();
    let c = w.client();
    w.stuck = vec![c];
    w.give(c, GET);
    let up = w.last_connect();
    let size = 3 * 70_000;
    w.give(up, format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
    w.give(up, vec![b'x'; size / 3]);
    w.core.on_sent(c, Vec::new(), true, w.now);
    w.run();
    w.give(up, vec![b'x'; size / 3 * 2]);
    assert_eq!(w.counts().in_flight, 0);
    w.stuck.clear();
    w.core.on_sent(c, Vec::new(), true, w.now);
    w.run();
    w.give(c, GET);
    assert_eq!((w.connects.len(), w.counts().in_flight), (1, 1));
}

#[test]
fn head_and_statuses_without_a_body_and_http_1_0_are_framed_right() {
    let check = |request: &str, answer: &str, expected: &str, ended: bool| {
        let mut w = World::new();
        let c = w.client();
        w.give(c, request);
        let up = w.last_connect();
        w.give(up, answer);
        w.end(up, false);
        let got = w.took(c);
        let plain = got.replace("x-ezone: bj\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1\r\n", "");
        assert_eq!(plain, expected, "{request:?} {answer:?}");
        assert_eq!(w.shut == [c], ended, "{request:?} {answer:?}");
    };
    let head = GET.replace("GET", "HEAD");
    let old = GET.replace("1.1", "1.0");
    let with_length = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n";
    check(&head, with_length, with_length, false);
    check(GET, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", false);
    check(
        GET,
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n",
        false,
    );
    check(
        GET,
        "HTTP/1.0 200 OK\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        false,
    );
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    check(&old, chunked, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc", true);
    let close = GET.replace("Host", "Connection: close\r\nHost");
    check(
        &close,
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        true,
    );
}

#[test]
fn bytes_after_an_upgrade_that_the_upstream_invents_are_not_passed_on() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET.replace("Host", "Connection: upgrade\r\nUpgrade: websocket\r\nHost"));
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 101 Switching Protocols\r\n\r\nGET /evil HTTP/1.1\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 502);
    assert!(w.closed.contains(&up));
}

#[test]
fn slow_clients_and_silent_upstreams_are_given_up() {
    let mut w = World::with(Limits { head_ms: 500, answer_ms: 500, idle_ms: 1000, ..Limits::default() });
    let (idle, slow, waits) = (w.client(), w.client(), w.client());
    w.give(slow, &GET[..20]);
    w.give(waits, GET);
    w.pass(700);
    assert_eq!((status_of(&w.took(slow)), status_of(&w.took(waits))), (408, 504));
    w.pass(2000);
    assert!([idle, slow].iter().all(|c| w.closed.contains(c)));
    assert_eq!(w.counts().in_flight, 0);
}

#[test]
fn a_request_without_a_place_is_told_which_tag_is_expected() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = w.took(c);
    assert!(status_of(&answer) == 400 && answer.contains("x-shard: eosid="), "{answer}");
    w.give(c, GET.replace("/a", "/zzz"));
    assert_eq!(status_of(&w.took(c)), 404, "the connection stays usable");
}

// ---- the record store -----------------------------------------------------------------------------------------------

fn asked(w: &mut World, port: ConnId) -> Vec<(u64, Ask)> {
    let mut bytes = bytes::BytesMut::from(w.sent.remove(&port).unwrap_or_default().as_slice());
    std::iter::from_fn(|| take_ask(&mut bytes).unwrap()).collect()
}

fn answer(w: &mut World, port: ConnId, corr: u64, answer: Answer) {
    let mut bytes = bytes::BytesMut::new();
    put_answer(&mut bytes, corr, &answer);
    w.give(port, bytes);
}

fn version() -> Version {
    Version { owner_epoch: OwnerEpoch(1), hlc: Hlc(5), zone: BJ, stream: 0 }
}

fn put(shop: u8) -> String {
    format!("PUT /records/orders/k%31 HTTP/1.1\r\nHost: h\r\nx-shard: shopid={shop}\r\nContent-Length: 2\r\n\r\n{{}}")
}

#[test]
fn records_are_written_read_and_minted_over_the_port() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, put(1));
    let port = w.last_connect();
    assert_eq!(w.connects[0].1, Target::Port(0));
    let (corr, ask) = asked(&mut w, port).remove(0);
    let expected = Ask::Write {
        shard: Shard(1),
        map_epoch: MapEpoch(1),
        table: "orders".into(),
        key: Some("k1".into()),
        value: Some("{}".into()),
    };
    assert_eq!(ask, expected);
    answer(&mut w, port, corr, Answer::Written { key: "k1".into(), version: version(), seq: 9 });
    let got = w.took(c);
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("x-ezone-version: 1.5.0.0\r\n"), "{got}");
    assert_eq!(body_of(&got), r#"{"key":"k1","seq":9,"version":"1.5.0.0"}"#);

    w.give(c, "POST /records/orders HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    let (corr, _) = asked(&mut w, port).remove(0);
    answer(&mut w, port, corr, Answer::Written { key: "77".into(), version: version(), seq: 10 });
    let got = w.took(c);
    assert!(status_of(&got) == 201 && got.contains("location: /records/orders/77\r\n"), "{got}");
    assert!(body_of(&got).contains(r#""id":"77""#));

    w.give(c, "GET /records/orders/77 HTTP/1.1\r\nHost: h\r\nx-shard: shopid=2\r\nx-ezone-read: local\r\n\r\n");
    let (corr, ask) = asked(&mut w, port).remove(0);
    assert!(matches!(ask, Ask::Read { local: true, shard: Shard(2), .. }));
    answer(&mut w, port, corr, Answer::Row { version: version(), value: "{\"a\":1}".into() });
    let got = w.took(c);
    assert_eq!((status_of(&got), body_of(&got)), (200, "{\"a\":1}"));

    w.give(c, "GET /records/orders/77 HTTP/1.1\r\nHost: h\r\nx-shard: shopid=2\r\nx-ezone-read: local\r\nx-ezone-after: 0.1.9\r\n\r\n");
    let (corr, ask) = asked(&mut w, port).remove(0);
    let token = Token { zone: BJ, stream: 1, seq: 9 };
    assert!(matches!(ask, Ask::ReadAfter { local: true, after, wait_ms: 2000, .. } if after == token), "{ask:?}");
    answer(&mut w, port, corr, Answer::Refused(Refused::NotYet { applied: 7 }));
    let got = w.took(c);
    assert!(status_of(&got) == 504 && body_of(&got).contains("up to seq 7"), "{got}");

    w.give(c, "GET /records/orders/78 HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\r\n");
    let (corr, _) = asked(&mut w, port).remove(0);
    answer(&mut w, port, corr, Answer::Absent);
    assert_eq!(status_of(&w.took(c)), 404);
}

fn made(key: &'static str, seq: u64) -> Made {
    Made { key: key.into(), version: version(), seq }
}

#[test]
fn conditions_keys_and_confirmations_reach_the_log_and_its_answers_the_client() {
    let mut w = World::new();
    let c = w.client();
    let fields = "If-Match: \"1.5.0.0\"\r\nIdempotency-Key: once\r\nx-ezone-ack: remote\r\n";
    w.give(c, put(1).replace("Host: h\r\n", &format!("Host: h\r\n{fields}")));
    let port = w.last_connect();
    let (corr, ask) = asked(&mut w, port).remove(0);
    let Ask::Commit(commit) = ask else { panic!("{ask:?}") };
    assert_eq!((commit.steps[0].only, commit.remote_ms), (Condition::At(version()), Some(2000)));
    assert_eq!(&commit.once.as_ref().unwrap().key[..], b"once");
    let done = Committed { rows: vec![made("k1", 9)], replayed: true, held: Held::Elsewhere };
    answer(&mut w, port, corr, Answer::Committed(done));
    let got = w.took(c);
    for field in ["etag: \"1.5.0.0\"", "x-ezone-token: 0.0.9", "idempotency-replayed: true"] {
        assert!(got.starts_with("HTTP/1.1 200 ") && got.contains(&format!("{field}\r\n")), "{got}");
    }
    assert_eq!(body_of(&got), r#"{"durable":"remote","key":"k1","seq":9,"version":"1.5.0.0"}"#);

    w.give(c, put(1).replace("Host: h\r\n", "Host: h\r\nIf-None-Match: *\r\n"));
    let (corr, _) = asked(&mut w, port).remove(0);
    answer(&mut w, port, corr, Answer::Refused(Refused::Unmet { step: 0, seen: Some(version()) }));
    let got = w.took(c);
    assert!(status_of(&got) == 412 && got.contains("etag: \"1.5.0.0\"\r\n"), "{got}");
    assert!(body_of(&got).contains(r#""seen":"1.5.0.0""#), "{got}");

    w.give(c, "POST /records/orders HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nx-ezone-ack: remote\r\nContent-Length: 0\r\n\r\n");
    let (corr, _) = asked(&mut w, port).remove(0);
    let held = Held::Late("sh: down".into());
    answer(&mut w, port, corr, Answer::Committed(Committed { rows: vec![made("77", 10)], replayed: false, held }));
    let got = w.took(c);
    assert!(status_of(&got) == 504 && got.contains("x-ezone-token: 0.0.10\r\n"), "{got}");
    for part in [r#""durable":"local""#, r#""id":"77""#, r#""seen":"sh: down""#, r#""version":"1.5.0.0""#] {
        assert!(body_of(&got).contains(part), "never a silent downgrade: {got}");
    }
}

#[test]
fn a_transaction_goes_by_its_tag_and_is_answered_row_by_row() {
    let mut w = World::new();
    let c = w.client();
    let post = |tag: &str, body: &str| {
        format!("POST /tx HTTP/1.1\r\nHost: h\r\n{tag}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let body = r#"{"ops":[{"op":"put","table":"a","key":"k","value":[1]},{"op":"delete","table":"b","key":"k"}]}"#;
    w.give(c, post("x-shard: shopid=1\r\n", body));
    let port = w.last_connect();
    let (corr, ask) = asked(&mut w, port).remove(0);
    let Ask::Commit(commit) = ask else { panic!("{ask:?}") };
    assert_eq!((commit.shard, commit.map_epoch, commit.steps.len()), (Shard(1), MapEpoch(1), 2));
    assert_eq!(commit.steps[0].value.as_deref(), Some(&b"[1]"[..]));
    let rows = vec![made("k", 9), made("k", 10)];
    answer(&mut w, port, corr, Answer::Committed(Committed { rows, replayed: false, held: Held::Here }));
    let got = w.took(c);
    assert!(status_of(&got) == 200 && got.contains("x-ezone-token: 0.0.10\r\n") && !got.contains("etag"), "{got}");
    let rows = r#"{"rows":[{"key":"k","seq":9,"version":"1.5.0.0"},{"key":"k","seq":10,"version":"1.5.0.0"}]}"#;
    assert_eq!(body_of(&got), rows);
    w.give(c, post("", body));
    assert_eq!(status_of(&w.took(c)), 400, "no tag, and no key that says where it belongs");
    w.give(c, post("", "{}"));
    assert_eq!(status_of(&w.took(c)), 400);
    w.give(c, post("x-shard: shopid=1\r\n", body));
    let (corr, _) = asked(&mut w, port).remove(0);
    answer(&mut w, port, corr, Answer::Refused(Refused::Unmet { step: 1, seen: None }));
    let got = w.took(c);
    assert!(status_of(&got) == 412 && body_of(&got).contains("operation 1: no such record"), "{got}");
    // Another zone's: the whole body travels, whether it was read for its keys or not.
    w.give(c, post("x-shard: shopid=2\r\nx-ezone-ack: remote\r\n", body));
    let up = w.last_connect();
    let sent = w.took(up);
    assert!(
        sent.starts_with("POST /tx ") && sent.ends_with(body) && sent.contains("x-ezone-ack: remote\r\n"),
        "{sent}"
    );
}

#[test]
fn what_the_log_refuses_has_its_status_and_bad_records_are_refused_before_the_log() {
    let refusals = [
        (Refused::ReadOnly, 503),
        (Refused::Locked, 423),
        (Refused::Behind { map_epoch: MapEpoch(1) }, 503),
        (Refused::Full, 507),
        (Refused::Busy, 503),
        (Refused::Invalid("why".into()), 400),
        (Refused::Failed("why".into()), 500),
        (Refused::Unmet { step: 0, seen: None }, 412),
        (Refused::Reused, 422),
        (Refused::NoPeer, 501),
        (Refused::NotYet { applied: 3 }, 504),
    ];
    let mut w = World::new();
    let c = w.client();
    for (why, status) in refusals {
        w.give(c, put(1));
        let port = w.connects[0].0;
        let (corr, _) = asked(&mut w, port).remove(0);
        answer(&mut w, port, corr, Answer::Refused(why));
        assert_eq!(status_of(&w.took(c)), status);
    }
    let bad = [
        ("PUT /records/Orders/k", "", 400),
        ("PUT /records/orders/%zz", "", 400),
        ("PATCH /records/orders/k", "", 405),
        ("PUT /records/orders/k", "If-Match: 1\r\n", 400),
        ("PUT /records/orders/k", "x-ezone-ack: everyone\r\n", 400),
        ("PUT /records/orders/k", "Idempotency-Key: \r\n", 400),
        ("POST /records/orders", "If-None-Match: *\r\n", 400),
        ("GET /records/orders/k", "If-Match: *\r\n", 400),
        ("GET /records/orders/k", "x-ezone-ack: remote\r\n", 400),
        ("GET /records/orders/k", "x-ezone-after: 1.2\r\n", 400),
        ("PUT /records/orders/k", "x-ezone-after: 1.2.3\r\n", 400),
        ("GET /tx", "", 405),
        ("POST /tx", "x-ezone-read: local\r\n", 405),
        ("POST /tx", "If-Match: *\r\n", 400),
        ("POST /tx", "Content-Length: 1048577\r\n", 413),
        ("PUT /records/orders/k", "Content-Length: 1048577\r\n", 413),
    ];
    for (line, field, status) in bad {
        let c = w.client();
        w.give(c, format!("{line} HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n{field}\r\n"));
        assert_eq!(status_of(&w.took(c)), status, "{line} {field}");
    }
}

#[test]
fn a_write_that_the_log_refuses_as_not_its_own_goes_to_the_new_owner_and_a_hop_says_421() {
    let mut w = World::new();
    let (c, p) = (w.client(), w.peer());
    w.give(c, put(1));
    w.give(p, put(1).replace("Host: h", "Host: h\r\nx-ezone-hop: 1\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1"));
    let port = w.connects[0].0;
    for (corr, _) in asked(&mut w, port) {
        answer(&mut w, port, corr, Answer::Refused(Refused::NotOwner { map_epoch: MapEpoch(2), owner: Some(SH) }));
    }
    let hop = w.took(p);
    assert!(
        status_of(&hop) == 421 && hop.contains("x-ezone-epoch: 2\r\n") && hop.contains("x-ezone-owner: 1"),
        "{hop}"
    );
    assert_eq!(w.counts().holding, 1);
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).moving(1, SH));
    assert_eq!(w.counts().holding, 1);
    w.map(Table::new(3, &[(1, SH), (2, SH)]));
    let up = w.last_connect();
    assert!(w.took(up).ends_with("\r\n\r\n{}"));
    assert_eq!(w.counts().in_flight_moving, 0);
}

#[test]
fn a_lost_port_makes_writes_unknown_and_reads_read_again() {
    let mut w = World::new();
    let (a, b) = (w.client(), w.client());
    w.give(a, put(1));
    w.give(b, "GET /records/orders/1 HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\r\n");
    let port = w.last_connect();
    w.end(port, false);
    let got = w.took(a);
    assert!(
        status_of(&got) == 503 && got.contains("x-ezone-outcome: unknown") && got.contains("may or may not"),
        "{got}"
    );
    let port = w.last_connect();
    let asks = asked(&mut w, port);
    let [(corr, Ask::Read { .. })] = asks.as_slice() else { panic!("{asks:?}") };
    answer(&mut w, port, *corr, Answer::Absent);
    assert_eq!(status_of(&w.took(b)), 404);
    assert_eq!(w.counts().in_flight, 0);

    w.slow_connects = true;
    w.end(port, false);
    w.give(a, put(1));
    let port = w.last_connect();
    w.core.on_failed(port, w.now);
    w.run();
    let got = w.took(a);
    assert!(status_of(&got) == 503 && !got.contains("unknown") && got.contains("nothing was done"), "{got}");
    let tries = w.connects.len();
    w.give(a, put(1));
    assert_eq!((status_of(&w.took(a)), w.connects.len()), (503, tries), "it backs off");
    w.pass(100);
    w.give(a, put(1));
    assert_eq!(w.connects.len(), tries + 1);
}

#[test]
fn a_late_answer_never_reaches_another_request() {
    let mut w = World::with(Limits { answer_ms: 500, ..Limits::default() });
    let c = w.client();
    w.give(c, put(1));
    let port = w.last_connect();
    let (old, _) = asked(&mut w, port).remove(0);
    w.pass(600);
    let got = w.took(c);
    assert!(status_of(&got) == 504 && got.contains("x-ezone-outcome: unknown"), "{got}");
    assert_eq!(w.counts().in_flight, 1, "the write may still be under way: a move has to wait for it");
    w.give(c, put(1));
    answer(&mut w, port, old, Answer::Absent);
    answer(&mut w, port, old, Answer::Absent);
    assert_eq!((w.took(c), w.counts().in_flight), (String::new(), 1));
}

#[test]
fn random_bytes_in_random_pieces_never_panic_and_nothing_stays_in_flight() {
    for seed in 1..400u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % n
        };
        let mut w = World::new();
        let ids: Vec<_> = (0..3).map(|_| w.client()).collect();
        let parts = [
            GET,
            &put(1),
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            "5\r\nhello\r\n",
            "\r\n",
            "x: y\r\n",
            "\0\n",
        ];
        for _ in 0..60 {
            let mut all = ids.clone();
            all.extend(w.connects.iter().filter(|c| matches!(c.1, Target::Tcp(_))).map(|c| c.0));
            let id = all[next(all.len() as u64) as usize];
            let part = parts[next(parts.len() as u64) as usize].as_bytes();
            let cut = next(part.len() as u64 + 1) as usize;
            match next(12) {
                0 => w.end(id, next(2) == 0),
                1 => w.pass(next(4000)),
                2 => w.map(Table::new(seed + next(9), &[(1, if next(2) == 0 { BJ } else { SH }), (2, SH)])),
                3 => w.map(Table::new(seed + next(9), &[(1, BJ), (2, SH)]).moving(1, SH)),
                4..7 => w.give(id, &part[cut..]),
                _ => w.give(id, part),
            }
        }
        for id in w.connects.clone() {
            w.end(id.0, true);
        }
        ids.iter().for_each(|id| w.end(*id, true));
        w.pass(30_000);
        for id in w.connects.clone() {
            w.end(id.0, true);
        }
        let counts = w.counts();
        assert_eq!((counts.in_flight, counts.holding, counts.connections), (0, 0, 0), "SEED={seed}");
    }
}

#[test]
fn other_settings_keep_what_is_under_way_and_the_connections_of_addresses_that_stay() {
    let mut w = World::new();
    let (a, b) = (w.client(), w.client());
    w.give(a, GET);
    let first = w.last_connect();
    w.give(b, GET);
    let second = w.last_connect();
    w.give(first, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1");
    assert!(w.took(a).ends_with('1'));
    let with = |port| {
        let services = vec![Service::new("/a", &[addr(port)])];
        Arc::new(Settings { services, ..settings(Limits::default()) })
    };
    w.core.on_settings(with(1), w.now);
    w.run();
    assert!(w.closed.is_empty(), "the address stayed");
    w.core.on_settings(with(3), w.now);
    w.run();
    assert_eq!(w.closed, [first], "idle, and its address went");
    w.give(second, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2");
    assert!(w.took(b).ends_with('2'), "what is under way goes on");
    assert_eq!(w.closed, [first, second], "and is not kept");
    w.give(a, GET);
    assert_eq!(w.connects.last().unwrap().1, Target::Tcp(addr(3)));
    w.core.on_settings(with(1), w.now);
    w.run();
    w.give(b, GET);
    assert_eq!(w.connects.last().unwrap().1, Target::Tcp(addr(1)), "the place of the pool that went is used again");
    assert_eq!(w.counts().in_flight, 2);
}

#[test]
fn idle_connections_cost_a_look_at_each_shortest_patience_and_no_deadline_is_missed_for_it() {
    let limits = Limits { linger_ms: 400, connect_ms: 700, ..Limits::default() };
    let mut w = World::with(limits);
    w.slow_connects = true;
    let idle = w.client();
    w.core.on_timer(w.now);
    assert_eq!(w.core.deadline(), Some(w.now.ms + 400));
    let c = w.client();
    w.give(c, GET);
    let began = w.now.ms;
    while w.connects.len() < 2 && w.now.ms < began + 5_000 {
        w.now.ms = w.core.deadline().unwrap().max(w.now.ms + 1);
        w.core.on_timer(w.now);
        w.run();
    }
    assert!((700..=750).contains(&(w.now.ms - began)), "tried again after {} ms", w.now.ms - began);
    while !w.closed.contains(&idle) && w.now.ms < began + 100_000 {
        w.now.ms = w.core.deadline().unwrap().max(w.now.ms + 1);
        w.core.on_timer(w.now);
        w.run();
    }
    assert!((60_000..=60_050).contains(&(w.now.ms - began)), "idle for {} ms", w.now.ms - began);
}
