//! What requests that are sent on say of where they come from, through the real core.

mod router_table;
mod router_world;

use dataplane::router::forward::{Forwarding, Own, Way};
use dataplane::router::{Limits, Settings, Side};
use router_world::{GET, World, settings};
use std::net::SocketAddr;

const STAMP: &str = "x-ezone: bj\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1\r\n\r\n";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What a request with `fields` becomes, without what every request has.
fn sent_on(forwarding: Forwarding, side: Side, from: &str, fields: &str) -> String {
    let mut w = World::of(Settings { forwarding, ..settings(Limits::default()) });
    let c = w.core.on_accept(side, w.now).unwrap();
    if let Ok(addr) = from.parse::<SocketAddr>() {
        w.core.on_address(c, addr);
    }
    w.give(c, GET.replace("x-shard", &format!("{fields}x-shard")));
    let up = w.last_connect();
    let sent = w.took(up);
    let sent = sent.strip_prefix("GET /a HTTP/1.1\r\nHost: h\r\n").unwrap_or_else(|| panic!("{sent}"));
    sent.strip_suffix(STAMP).unwrap_or_else(|| panic!("{sent}")).replace("x-shard: shopid=1\r\n", "")
}

#[test]
fn each_field_is_left_or_replaced_or_appended_to_as_configured() {
    let off = Forwarding::default();
    let came = "X-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil\r\n\
                Via: 1.0 a\r\nX-Forwarded-For: 8.8.8.8\r\n";
    let check = |forwarding, from, fields, expected: &str| {
        assert_eq!(sent_on(forwarding, Side::Client, from, fields), expected, "{forwarding:?} {fields}");
    };
    check(off, "1.2.3.4:5", "", "");
    check(off, "1.2.3.4:5", came, came);
    let set = Forwarding {
        x_forwarded_for: Way::Set,
        x_forwarded_proto: Own::Set,
        x_forwarded_host: Own::Set,
        forwarded: Way::Set,
        via: true,
        trace: false,
    };
    let ours = "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: http\r\nx-forwarded-host: h\r\n\
                forwarded: for=1.2.3.4;proto=http;host=\"h\"\r\n";
    check(set, "1.2.3.4:5", "", &format!("via: 1.1 ezone\r\n{ours}"));
    check(set, "1.2.3.4:5", came, &format!("via: 1.0 a, 1.1 ezone\r\n{ours}"));
    let append = Forwarding { x_forwarded_for: Way::Append, forwarded: Way::Append, ..off };
    check(
        append,
        "[2001:db8::1]:5",
        "X-Forwarded-For: 9.9.9.9\r\nx-forwarded-for: 8.8.8.8\r\nForwarded: for=a;by=b\r\n",
        "x-forwarded-for: 9.9.9.9, 8.8.8.8, 2001:db8::1\r\n\
         forwarded: for=a;by=b, for=\"[2001:db8::1]\";proto=http;host=\"h\"\r\n",
    );
    check(
        append,
        "[::ffff:1.2.3.4]:5",
        "",
        "x-forwarded-for: 1.2.3.4\r\nforwarded: for=1.2.3.4;proto=http;host=\"h\"\r\n",
    );
    check(append, "not known", "", "x-forwarded-for: unknown\r\nforwarded: for=unknown;proto=http;host=\"h\"\r\n");
}

#[test]
fn a_connection_field_cannot_take_them_away() {
    let append = Forwarding { x_forwarded_for: Way::Append, ..Forwarding::default() };
    let fields = "Connection: x-forwarded-for, traceparent, via, authorization, x-mine\r\nX-Forwarded-For: 9.9.9.9\r\n\
                  Via: 1.0 a\r\nAuthorization: b\r\nX-Mine: 1\r\n";
    let got = sent_on(append, Side::Client, "1.2.3.4:5", fields);
    assert_eq!(got, "Via: 1.0 a\r\nAuthorization: b\r\nx-forwarded-for: 9.9.9.9, 1.2.3.4\r\n");
}

#[test]
fn what_a_peers_router_wrote_is_left_as_it_is() {
    let set = Forwarding { x_forwarded_for: Way::Set, forwarded: Way::Set, via: true, ..Forwarding::default() };
    let hop = "x-ezone-hop: 1\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1\r\n";
    let came = "x-forwarded-for: 1.2.3.4\r\nforwarded: for=1.2.3.4\r\n";
    let got = sent_on(set, Side::Peer, "127.0.0.1:5", &format!("{hop}{came}via: 1.1 ezone\r\n"));
    assert_eq!(got, format!("{came}via: 1.1 ezone, 1.1 ezone\r\n"));
}

#[test]
fn a_valid_trace_passes_and_another_is_replaced() {
    let make = Forwarding { trace: true, ..Forwarding::default() };
    let good = format!("traceparent: {TRACE}\r\ntracestate: a=b\r\n");
    assert_eq!(sent_on(make, Side::Client, "", &good), good);
    let bad = TRACE.to_uppercase();
    for fields in [
        String::new(),
        format!("traceparent: {bad}\r\ntracestate: a=b\r\n"),
        good.replace("tracestate: a=b", &good[..68]),
    ] {
        let got = sent_on(make, Side::Client, "", &fields);
        let id = got.strip_prefix("traceparent: 00-").and_then(|g| g.strip_suffix("-00\r\n"));
        let (trace, span) = id.and_then(|i| i.split_once('-')).unwrap_or_else(|| panic!("{fields:?}: {got:?}"));
        assert_eq!((trace.len(), span.len()), (32, 16), "{got}");
    }
    assert_eq!(
        sent_on(Forwarding::default(), Side::Client, "", &format!("traceparent: {bad}\r\n")),
        format!("traceparent: {bad}\r\n")
    );
}

#[test]
fn traces_of_one_seed_differ_from_each_other_and_from_those_of_another_seed() {
    let names = |seed| {
        let forwarding = Forwarding { trace: true, ..Forwarding::default() };
        let mut w = World::of(Settings { forwarding, ..settings(Limits::default()) });
        w.core.set_seed(seed);
        let mut all = vec![];
        for _ in 0..5 {
            let c = w.client();
            w.give(c, GET);
            let up = w.last_connect();
            all.push(w.took(up).split("traceparent: ").nth(1).map(|t| t[..55].to_string()).unwrap());
        }
        all
    };
    let mut all = [names(1), names(2)].concat();
    assert_eq!(names(1), all[..5], "a seed replays");
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 10);
}
