//! Exchanges beyond the plain one: trailers, 1xx, Expect, tunnels, HTTP/1.0, half-closed clients, through the real core.

mod router_table;
mod router_world;

use dataplane::router::{ConnId, Limits};
use router_world::{GET, World, status_of};

const POST: &str = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nTransfer-Encoding: chunked\r\n";
const STAMP: &str = "x-ezone: bj\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1\r\n";

/// Without the router's own fields.
fn plain(text: String) -> String {
    text.replace(STAMP, "")
}

fn asked(w: &mut World, request: &str) -> (ConnId, ConnId, String) {
    let c = w.client();
    w.give(c, request);
    let up = w.last_connect();
    let sent = w.took(up);
    (c, up, plain(sent))
}

// ---- trailers -------------------------------------------------------------------------------------------------------

#[test]
fn trailers_of_a_request_travel_on_after_the_last_chunk_and_extensions_do_not() {
    let body = "1;a=b\r\nx\r\n0;c\r\nx-check: 7\r\nx-more:\r\n\r\n";
    let request = format!("{POST}Trailer: x-check\r\n\r\n{body}{GET}");
    for at in 0..=request.len() {
        let mut w = World::new();
        let c = w.client();
        w.give(c, &request[..at]);
        w.give(c, &request[at..]);
        let up = w.last_connect();
        let sent = plain(w.took(up));
        assert!(sent.ends_with("\r\n\r\n1\r\nx\r\n0\r\nx-check: 7\r\nx-more:\r\n\r\n"), "split at {at}: {sent}");
        assert!(sent.contains("Trailer: x-check\r\n"), "{sent}");
        w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert!(w.took(up).starts_with("GET /a "), "the next request follows, split at {at}");
    }
}

#[test]
fn trailers_of_an_answer_travel_on_to_clients_that_take_them() {
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-check\r\n\r\n1;a\r\nx\r\n0\r\nx-check: 7\r\n\r\n";
    let check = |te: &str, forwarded: &str, end: &str| {
        for at in 0..=answer.len() {
            let mut w = World::new();
            let (c, up, sent) = asked(&mut w, &GET.replace("Host", &format!("{te}Host")));
            assert!(sent.ends_with(&format!("{forwarded}\r\n")), "{sent}");
            w.give(up, &answer[..at]);
            w.give(up, &answer[at..]);
            let got = w.took(c);
            assert!(got.ends_with(&format!("\r\n\r\n1\r\nx\r\n{end}")), "split at {at}: {got}");
            assert!(!w.closed.contains(&up), "the connection is kept");
        }
    };
    check("Connection: te\r\nTE: trailers\r\n", "te: trailers\r\nconnection: te\r\n", "0\r\nx-check: 7\r\n\r\n");
    check("TE: deflate;q=0.5, Trailers;q=1\r\n", "te: trailers\r\nconnection: te\r\n", "0\r\nx-check: 7\r\n\r\n");
    check("", "x-shard: shopid=1\r\n", "0\r\n\r\n");
    check("TE: gzip\r\n", "x-shard: shopid=1\r\n", "0\r\n\r\n");
}

#[test]
fn trailers_are_bounded() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, format!("{POST}\r\n0\r\n"));
    for _ in 0..200 {
        w.give(c, format!("x: {}\r\n", "y".repeat(100)));
    }
    assert_eq!(status_of(&w.took(c)), 400);
    let mut w = World::new();
    let (c, up, _) = asked(&mut w, GET);
    w.give(up, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
    for _ in 0..200 {
        w.give(up, format!("x: {}\r\n", "y".repeat(100)));
    }
    assert!(w.closed.contains(&up) && w.closed.contains(&c));
}

// ---- 1xx ------------------------------------------------------------------------------------------------------------

#[test]
fn answers_1xx_are_passed_on_to_http_1_1_and_not_to_1_0() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-one\r\nx-one: 1\r\nx-ezone: liar\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let all = format!("{early}{early}HTTP/1.1 102 Processing\r\n\r\n{last}");
    for at in 0..=all.len() {
        let mut w = World::new();
        let (c, up, _) = asked(&mut w, GET);
        w.give(up, &all[..at]);
        w.give(up, &all[at..]);
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
        let expected =
            format!("{hint}{hint}HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        assert_eq!(plain(w.took(c)), expected, "split at {at}");
        let mut w = World::new();
        let (c, up, _) = asked(&mut w, &GET.replace("1.1", "1.0"));
        w.give(up, &all[..at]);
        w.give(up, &all[at..]);
        assert!(w.took(c).starts_with("HTTP/1.1 200 OK"), "split at {at}");
    }
}

#[test]
fn a_flood_of_1xx_is_a_502_and_a_client_that_does_not_read_stops_it() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
    let mut w = World::with(Limits { interim_max: 5, ..Limits::default() });
    let (c, up, _) = asked(&mut w, GET);
    w.give(up, early.repeat(7));
    let got = w.took(c);
    assert_eq!((got.matches("103 Early").count(), got.matches("HTTP/1.1 502").count()), (5, 1), "{got}");
    assert!(w.closed.contains(&up));

    let limits = Limits { interim_max: 1000, buffer_bytes_max: 1000, ..Limits::default() };
    let mut w = World::with(limits);
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.stuck = vec![c];
    w.give(up, early);
    for _ in 0..900 {
        w.give(up, early);
        if w.paused.contains(&up) {
            break;
        }
    }
    assert!(w.paused.contains(&up), "it is not read for ever");
}

#[test]
fn an_expectation_is_the_upstreams_to_decide() {
    let request =
        "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n";
    let mut w = World::new();
    let (c, up, sent) = asked(&mut w, request);
    assert!(sent.ends_with("content-length: 5\r\nexpect: 100-continue\r\n\r\n"), "{sent}");
    assert_eq!(w.took(c), "", "we do not answer for the upstream");
    w.give(up, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(w.took(c), "HTTP/1.1 100 Continue\r\n\r\n");
    w.give(c, "hello");
    assert_eq!(w.took(up), "hello");
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(!w.took(c).contains("connection: close"));

    // It may say no: then nobody knows whether the body will come, and the connection ends.
    let mut w = World::new();
    let (c, up, _) = asked(&mut w, request);
    w.give(up, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    let got = w.took(c);
    assert!(status_of(&got) == 417 && got.contains("connection: close\r\n"), "{got}");
    assert!(w.shut.contains(&c) && w.closed.contains(&up));

    // It may say nothing: the client is let go on after a while, once.
    let mut w = World::with(Limits { continue_ms: 500, ..Limits::default() });
    let (c, up, _) = asked(&mut w, request);
    w.pass(700);
    assert_eq!(w.took(c), "HTTP/1.1 100 Continue\r\n\r\n");
    w.give(up, "HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(w.took(c), "");
    w.give(c, "hello");
    assert_eq!(w.took(up), "hello");

    // A client that does not wait is not made to.
    let mut w = World::new();
    let (c, up, sent) = asked(&mut w, &format!("{request}hello"));
    assert!(sent.ends_with("\r\n\r\nhello"), "{sent}");
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(!w.took(c).contains("connection: close"));

    // HTTP/1.0 and requests without a body have nothing to wait for.
    for other in [request.replace("1.1", "1.0"), request.replace("h: 5", "h: 0")] {
        let (_, _, sent) = asked(&mut World::new(), &other);
        assert!(!sent.contains("xpect"), "{sent}");
    }
}

// ---- tunnels --------------------------------------------------------------------------------------------------------

const UPGRADE: &str = "GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nConnection: keep-alive, Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: a\r\n\r\n";

fn tunnel(w: &mut World) -> (ConnId, ConnId) {
    let (c, up, _) = asked(w, UPGRADE);
    w.give(up, SWITCHED);
    assert_eq!(status_of(&w.took(c)), 101);
    (c, up)
}

/// PITFALLS: bytes passed through after `Upgrade` before the 101.
#[test]
fn an_upgrade_is_passed_on_and_not_a_byte_goes_upstream_before_the_101() {
    let first = "\x01\x02GET /smuggled HTTP/1.1\r\n\r\n";
    let all = format!("{UPGRADE}{first}");
    for at in 0..=all.len() {
        let mut w = World::new();
        let c = w.client();
        w.give(c, &all[..at]);
        w.give(c, &all[at..]);
        let up = w.last_connect();
        let sent = plain(w.took(up));
        assert_eq!(
            sent,
            "GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nSec-WebSocket-Key: k\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\n\r\n",
            "split at {at}"
        );
        w.give(c, "more");
        assert_eq!(w.took(up), "", "split at {at}");
        let back = format!("{SWITCHED}\x03\x04");
        let cut = at.min(back.len());
        w.give(up, &back[..cut]);
        w.give(up, &back[cut..]);
        assert_eq!(w.took(up), format!("{first}more"), "split at {at}");
        assert_eq!(
            w.took(c),
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: a\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\n\x03\x04"
        );
        w.give(c, "HTTP/1.1 200 OK\r\n\r\n");
        w.give(up, "GET /anything\n\n");
        assert_eq!((w.took(up).as_str(), w.took(c).as_str()), ("HTTP/1.1 200 OK\r\n\r\n", "GET /anything\n\n"));
        let counts = w.counts();
        assert_eq!((counts.tunnels, counts.tunnelled, counts.in_flight), (1, 1, 0));
    }
}

#[test]
fn an_upgrade_that_is_answered_otherwise_is_a_plain_exchange() {
    let mut w = World::new();
    let (c, up, _) = asked(&mut w, &format!("{UPGRADE}{GET}"));
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    assert!(w.took(c).ends_with("\r\n\r\nno"));
    assert!(w.took(up).starts_with("GET /a "), "what followed was a request");
    assert_eq!(w.counts().tunnelled, 0);
}

#[test]
fn a_101_to_another_protocol_or_to_nobodys_question_is_a_502() {
    for (request, answer) in [
        (GET.to_string(), SWITCHED.to_string()),
        (UPGRADE.into(), SWITCHED.replace("WebSocket\r", "other\r")),
        (UPGRADE.into(), SWITCHED.replace("Upgrade: WebSocket\r\n", "")),
        (UPGRADE.into(), SWITCHED.replace("Connection: Upgrade\r\n", "")),
        (UPGRADE.into(), SWITCHED.replace("Upgrade: WebSocket", "Upgrade: WebSocket\r\nUpgrade: x")),
        // Not an upgrade as we pass it on.
        (UPGRADE.replace("websocket", "h2c"), SWITCHED.replace("WebSocket", "h2c")),
        (UPGRADE.replace("websocket", "websocket, h2c"), SWITCHED.into()),
        (UPGRADE.replace("websocket", "HTTP/2.0"), SWITCHED.replace("WebSocket", "HTTP/2.0")),
        (UPGRADE.replace("Connection: keep-alive, Upgrade\r\n", ""), SWITCHED.into()),
        (UPGRADE.replace("GET", "DELETE"), SWITCHED.into()),
        (UPGRADE.replace("1.1", "1.0"), SWITCHED.into()),
        (UPGRADE.replace("Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: websocket"), SWITCHED.into()),
        (UPGRADE.replace("\r\n\r\n", "\r\nContent-Length: 1\r\n\r\nx"), SWITCHED.into()),
    ] {
        let mut w = World::new();
        let (c, up, sent) = asked(&mut w, &request);
        assert_eq!(sent.contains("upgrade: websocket"), request == UPGRADE, "{request}: {sent}");
        w.give(up, format!("{answer}evil"));
        let got = w.took(c);
        assert!(status_of(&got) == 502 && !got.contains("evil"), "{request} {answer}: {got}");
        assert!(w.closed.contains(&up));
        assert_eq!((w.counts().tunnels, w.counts().in_flight), (0, 0));
    }
}

#[test]
fn each_half_of_a_tunnel_ends_by_itself_and_the_last_end_closes_it() {
    for client_first in [true, false] {
        let mut w = World::new();
        let (c, up) = tunnel(&mut w);
        let (a, b) = if client_first { (c, up) } else { (up, c) };
        w.give(a, "last");
        w.end(a, false);
        assert_eq!((w.took(b).as_str(), w.shut.as_slice(), w.closed.len()), ("last", [b].as_slice(), 0));
        w.give(b, "still here");
        assert_eq!(w.took(a), "still here");
        w.end(b, false);
        assert!(w.closed.contains(&c) && w.closed.contains(&up));
        assert_eq!((w.counts().tunnels, w.counts().connections), (0, 0));
    }
}

#[test]
fn a_half_that_ends_while_its_bytes_wait_ends_after_them() {
    let mut w = World::with(Limits { buffer_bytes_max: 100, ..Limits::default() });
    let (c, up) = tunnel(&mut w);
    w.stuck = vec![up];
    for _ in 0..5 {
        w.give(c, [b'x'; 60]);
    }
    w.end(c, false);
    assert!(w.shut.is_empty());
    w.stuck.clear();
    for _ in 0..10 {
        w.core.on_sent(up, Vec::new(), true, w.now);
        w.run();
    }
    assert_eq!((w.took(up).len(), w.shut.as_slice()), (300, [up].as_slice()));
}

#[test]
fn a_tunnel_holds_bounded_bytes_either_way() {
    let mut w = World::with(Limits { buffer_bytes_max: 1000, ..Limits::default() });
    let (c, up) = tunnel(&mut w);
    for (from, to) in [(c, up), (up, c)] {
        w.stuck = vec![to];
        let mut given = 0;
        while !w.paused.contains(&from) {
            w.give(from, [b'x'; 500]);
            given += 500;
            assert!(given <= 10_000, "it reads on without end");
        }
        w.stuck.clear();
        for _ in 0..20 {
            w.core.on_sent(to, Vec::new(), true, w.now);
            w.run();
        }
        assert_eq!(w.took(to).len(), given, "and nothing is lost");
        assert!(!w.paused.contains(&from));
    }
}

#[test]
fn a_broken_or_idle_tunnel_is_closed_on_both_sides() {
    for how in ["client reset", "upstream reset", "idle", "failed send"] {
        let mut w = World::with(Limits { tunnel_idle_ms: 1000, ..Limits::default() });
        let (c, up) = tunnel(&mut w);
        for _ in 0..5 {
            w.pass(600);
            w.give(if how == "idle" { up } else { c }, "alive");
        }
        assert!(w.closed.is_empty(), "{how}");
        match how {
            "client reset" => w.end(c, true),
            "upstream reset" => {
                w.end(up, true);
                assert!(w.shut.contains(&c), "what came before is still sent");
                w.end(c, false);
            }
            "idle" => w.pass(1200),
            _ => {
                w.stuck = vec![up];
                w.give(c, "lost");
                w.core.on_sent(up, Vec::new(), false, w.now);
                w.run();
            }
        }
        assert!(w.closed.contains(&c) && w.closed.contains(&up), "{how}");
        let counts = w.counts();
        assert_eq!((counts.tunnels, counts.in_flight, counts.connections), (0, 0, 0), "{how}");
    }
}

// ---- HTTP/1.0, half-closed clients, early answers --------------------------------------------------------------------

#[test]
fn http_1_0_keeps_its_connection_only_where_it_asks_and_the_end_can_be_seen() {
    let old = GET.replace("1.1", "1.0");
    let keep = old.replace("Host", "Connection: keep-alive\r\nHost");
    for (request, answer, kept) in [
        (&old, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
        (&keep, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
        (&keep, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false),
        (&keep, "HTTP/1.1 204 No Content\r\n\r\n", true),
    ] {
        let mut w = World::new();
        let (c, up, sent) = asked(&mut w, request);
        assert!(sent.starts_with("GET /a HTTP/1.1\r\n") && !sent.contains("onnection"), "{sent}");
        w.give(up, answer);
        let got = w.took(c);
        assert_eq!(got.contains("connection: keep-alive\r\n"), kept, "{got}");
        assert_eq!(w.shut.contains(&c), !kept, "{got}");
        assert!(!got.contains("chunked"), "{got}");
    }
}

#[test]
fn a_client_that_has_ended_its_half_still_gets_all_its_answers() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, [GET, &GET.replace("/a", "/a2"), &GET.replace("/a", "/a3")].concat());
    w.end(c, false);
    for n in 1..=3 {
        let up = w.last_connect();
        w.give(up, format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}"));
    }
    let got = w.took(c);
    assert_eq!(got.matches("HTTP/1.1 200").count(), 3, "{got}");
    assert!(got.ends_with("\r\n\r\n3"));
    assert!(w.closed.contains(&c), "and then the connection is closed");
}

#[test]
fn requests_before_a_refused_one_are_answered_first() {
    let mut w = World::new();
    let c = w.client();
    w.give(c, format!("{GET}{}GET /b HTTP/1.1\r\nHost : h\r\n\r\n{GET}", GET.replace("/a", "/nothing")));
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let got = w.took(c);
    let statuses: Vec<_> = got.match_indices("HTTP/1.1 ").map(|(i, _)| &got[i + 9..i + 12]).collect();
    assert_eq!(statuses, ["200", "404", "400"], "{got}");
    assert!(w.shut.contains(&c));
    assert_eq!(w.connects.len(), 1, "what followed the refused one is no request");
}

#[test]
fn a_request_answered_before_its_body_keeps_the_clients_connection_and_not_the_upstreams() {
    let mut w = World::new();
    let (c, up, _) =
        asked(&mut w, "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 10\r\n\r\nhello");
    w.give(up, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    assert!(w.took(c).ends_with("\r\n\r\nno"));
    assert!(w.closed.contains(&up), "it would take the rest of the body for a request");
    w.give(c, format!("world{GET}"));
    assert_eq!(w.connects.len(), 2);
    let up = w.last_connect();
    assert!(w.took(up).starts_with("GET /a "));
}
