//! Several endpoints behind one core: who is chosen, who is left out, what is tried again, who waits and who is refused.

mod router_table;
mod router_world;

use dataplane::router::policy::{Balance, Eject, HashBy, Policy, Pooling, Retry, Statuses};
use dataplane::router::{ConnId, Endpoint, Limits, Peer, Rate, Service, Settings, ShardRates, Target};
use router_table::Table;
use router_world::{BJ, GET, SH, World, addr, settings, status_of};
use shardmap::Shard;
use std::collections::HashSet;
use std::sync::Arc;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Service /a at the ports 11, 12, ..
fn service(endpoints: u16, policy: Policy) -> Service {
    let at: Vec<_> = (11..11 + endpoints).map(addr).collect();
    Service { policy, ..Service::new("/a", &at) }
}

fn of(service: Service) -> Settings {
    Settings { services: vec![service], ..settings(Limits::default()) }
}

fn world(endpoints: u16, policy: Policy) -> World {
    World::of(of(service(endpoints, policy)))
}

fn port_of(w: &World, up: ConnId) -> u16 {
    match w.connects.iter().find(|(id, _)| *id == up).expect("it was connected").1 {
        Target::Tcp(at) => at.port(),
        other => panic!("{other:?}"),
    }
}

/// Upstream connections that were sent something since it was last asked, and are not closed.
fn asked(w: &mut World) -> Vec<ConnId> {
    let ups: Vec<_> = w.connects.iter().map(|c| c.0).filter(|id| !w.closed.contains(id)).collect();
    ups.into_iter().filter(|id| w.sent.remove(id).is_some()).collect()
}

/// One request of a new client, answered by whoever is asked, after so many ms; the port.
fn round(w: &mut World, answer: impl Fn(u16) -> (&'static str, u64)) -> (u16, u16) {
    round_of(w, GET, answer)
}

fn round_of(w: &mut World, request: &str, answer: impl Fn(u16) -> (&'static str, u64)) -> (u16, u16) {
    let c = w.client();
    w.give(c, request);
    let up = asked(w)[0];
    let port = port_of(w, up);
    let (answer, ms) = answer(port);
    (w.now.ms, w.now.us) = (w.now.ms + ms, w.now.us + ms * 1000);
    w.give(up, answer);
    let status = status_of(&w.took(c));
    w.end(c, true);
    (port, status)
}

fn shares(w: &mut World, rounds: usize) -> [usize; 3] {
    let mut got = [0; 3];
    (0..rounds).for_each(|_| got[usize::from(round(w, |_| (OK, 1)).0) - 11] += 1);
    got
}

#[test]
fn requests_are_spread_by_weight_whichever_way_is_asked_for() {
    for balance in [Balance::LeastRequest, Balance::RoundRobin] {
        let mut s = service(3, Policy { balance, ..Policy::default() });
        s.endpoints[2].weight = 2;
        let got = shares(&mut World::of(of(s)), 400);
        assert!(
            got[0].abs_diff(100) < 40 && got[1].abs_diff(100) < 40 && got[2].abs_diff(200) < 40,
            "{balance:?} {got:?}"
        );
    }
}

#[test]
fn the_less_loaded_of_two_is_chosen() {
    let mut w = world(2, Policy::default());
    let clients: Vec<_> = (0..10).map(|_| w.client()).collect();
    clients.iter().for_each(|c| w.give(*c, GET));
    let ports: Vec<_> = w.connects.iter().map(|c| port_of(&w, c.0)).collect();
    assert_eq!(ports.iter().filter(|p| **p == 11).count(), 5, "{ports:?}");
}

#[test]
fn a_hash_sends_a_shard_to_the_same_endpoint_and_moves_it_only_if_that_goes() {
    let policy = Policy { balance: Balance::Hash(HashBy::Shard), ..Policy::default() };
    let ports = |s: Service| -> Vec<u16> {
        let mut w = World::of(of(s));
        let shards: Vec<_> = (1..=60).map(|shard| (shard, BJ)).collect();
        w.map(Table::new(2, &shards));
        let one = |shard: usize, w: &mut World| {
            let c = w.client();
            w.give(c, GET.replace("shopid=1", &format!("shopid={shard}")));
            let up = asked(w)[0];
            w.give(up, OK);
            port_of(w, up)
        };
        let first: Vec<_> = (1..=60).map(|shard| one(shard, &mut w)).collect();
        assert_eq!(first, (1..=60).map(|shard| one(shard, &mut w)).collect::<Vec<_>>());
        first
    };
    let mut without = service(3, policy);
    without.endpoints[1].healthy = false;
    let (all, rest) = (ports(service(3, policy)), ports(without));
    assert!([11, 12, 13].iter().all(|p| all.contains(p)) && !rest.contains(&12));
    assert!(all.iter().zip(&rest).all(|(a, b)| a == b || *a == 12), "only what had to move has moved");
}

#[test]
fn what_is_unhealthy_or_draining_gets_nothing_new_and_what_is_under_way_goes_on() {
    let mut s = service(3, Policy::default());
    let mut w = World::of(of(s.clone()));
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    let port = port_of(&w, up);
    s.endpoints[usize::from(port) - 11].draining = true;
    w.core.on_settings(Arc::new(of(s.clone())), w.now);
    w.run();
    w.took(up);
    assert!((0..50).all(|_| round(&mut w, |_| (OK, 1)).0 != port), "nothing new");
    w.give(up, OK);
    assert_eq!(status_of(&w.took(c)), 200, "what is under way goes on");
    s.endpoints[usize::from(port) - 11].draining = false;
    let other = 11 + (usize::from(port) - 10) % 3;
    s.endpoints[other - 11].healthy = false;
    w.core.on_settings(Arc::new(of(s.clone())), w.now);
    assert!((0..50).all(|_| usize::from(round(&mut w, |_| (OK, 1)).0) != other));
    for e in &mut s.endpoints {
        (e.healthy, e.draining) = (false, false);
    }
    let shown = s.shown.clone();
    w.core.on_settings(Arc::new(of(s.clone())), w.now);
    assert_eq!(round(&mut w, |_| (OK, 1)).1, 200, "all are down: all are used");
    assert!(shown.sum(|s| s.panic.get()) == 1 && shown.sum(|s| s.panicked.get()) == 1);
    s.policy.panic_percent = 0;
    w.core.on_settings(Arc::new(of(s)), w.now);
    let c = w.client();
    w.give(c, GET);
    let answer = w.took(c);
    assert!(status_of(&answer) == 503 && answer.contains("retry-after") && answer.contains("no endpoint"), "{answer}");
}

#[test]
fn an_endpoint_that_fails_is_ejected_and_comes_back_slowly() {
    let s = service(3, Policy::default());
    let shown: Vec<_> = s.endpoints.iter().map(|e| e.shown.clone()).collect();
    let mut w = World::of(of(s));
    let bad = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    let fails = |port| if port == 12 { (bad, 1) } else { (OK, 1) };
    let failed = (0..100).filter(|_| round(&mut w, fails).1 == 503).count();
    assert_eq!(failed, 5, "five in a row, then it is out");
    assert_eq!((shown[1].of(0).ejections.get(), shown[1].of(0).ejected.get()), (1, 1));
    assert!(shown[1].of(0).ejected_until_wall_ms.get() > w.now.wall_ms);
    w.pass(10_200);
    let got = shares(&mut w, 100);
    assert!((1..20).contains(&got[1]), "slowly: {got:?}");
    assert_eq!((shown[1].of(0).ejected.get(), shown[1].of(0).ramping.get()), (0, 1));
    w.pass(10_200);
    let got = shares(&mut w, 300);
    assert!(got[1] > 60, "it has its share again: {got:?}");
}

#[test]
fn new_settings_change_nothing_about_endpoints_that_they_do_not_change() {
    let policy = Policy { balance: Balance::RoundRobin, slow_start_ms: 10_000, ..Policy::default() };
    let mut s = service(3, policy);
    let mut w = World::of(of(s.clone()));
    w.slow_connects = true;
    // Port 11 refuses until it is ejected; the others close each connection, so that none of them has any.
    let refuse = |w: &mut World| {
        let c = w.client();
        w.give(c, GET);
        for _ in 0..2 {
            let up = w.last_connect();
            if w.closed.contains(&up) {
                break;
            }
            if port_of(w, up) == 11 {
                w.core.on_failed(up, w.now);
                w.run();
            } else {
                w.core.on_connected(up, w.now);
                w.run();
                w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        }
        w.end(c, true);
    };
    (0..60).for_each(|_| refuse(&mut w));
    let shown = |s: &Service, i: usize| {
        let e = s.endpoints[i].shown.of(0);
        (e.ejected.get(), e.ramping.get(), e.open.get())
    };
    assert_eq!([0, 1, 2].map(|i| shown(&s, i)), [(1, 0, 0), (0, 0, 0), (0, 0, 0)]);
    s.endpoints[2].healthy = false;
    w.core.on_settings(Arc::new(of(s.clone())), w.now);
    w.run();
    assert_eq!([0, 1].map(|i| shown(&s, i)), [(1, 0, 0), (0, 0, 0)], "ejected as before, and in full as before");
    s.endpoints[2].healthy = true;
    w.core.on_settings(Arc::new(of(s.clone())), w.now);
    w.run();
    let now = [0, 1, 2].map(|i| shown(&s, i));
    assert_eq!(now, [(1, 0, 0), (0, 0, 0), (0, 1, 0)], "only what has come back starts slowly");
    s.endpoints.insert(0, Endpoint::new(addr(10)));
    w.core.on_settings(Arc::new(of(s.clone())), w.now);
    w.run();
    let now = [0, 1, 2].map(|i| shown(&s, i));
    assert_eq!(now, [(0, 1, 0), (1, 0, 0), (0, 0, 0)], "a new one takes nobody's place");
}

#[test]
fn a_new_service_takes_no_others_place_whatever_its_own_in_the_list() {
    let rate = Some(Rate { per_s: 1, burst: 2 });
    let s = service(1, Policy { rate, ..Policy::default() });
    let mut all = of(s);
    let mut w = World::of(all.clone());
    let closing = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    (0..2).for_each(|_| assert_eq!(round(&mut w, |_| (closing, 0)).1, 200));
    all.services.insert(0, Service::new("/new", &[addr(11), addr(12)]));
    w.core.on_settings(Arc::new(all), w.now);
    w.run();
    let c = w.client();
    w.give(c, GET);
    assert_eq!(status_of(&w.took(c)), 429, "it has used its rate up, whoever came before it");
}

#[test]
fn no_more_is_ejected_than_the_cap_allows() {
    let s = service(3, Policy::default());
    let (shown, of_service): (Vec<_>, _) = (s.endpoints.iter().map(|e| e.shown.clone()).collect(), s.shown.clone());
    let mut w = World::of(of(s));
    let bad = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    (0..100).for_each(|_| assert!(round(&mut w, |_| (bad, 1)).1 == 503));
    assert_eq!(shown.iter().map(|s| s.of(0).ejections.get()).sum::<u64>(), 1, "50 % of three is one");
    assert!(of_service.of(0).ejections_refused.get() > 0);
    let mut w = world(1, Policy::default());
    assert!((0..50).all(|_| round(&mut w, |_| (bad, 1)) == (11, 503)), "the only one is never ejected");
}

#[test]
fn a_slow_200_is_a_fault() {
    let s = service(3, Policy::default());
    let shown: Vec<_> = s.endpoints.iter().map(|e| e.shown.clone()).collect();
    let mut w = World::of(of(s));
    (0..200).for_each(|_| assert!(round(&mut w, |port| (OK, if port == 13 { 400 } else { 10 })).1 == 200));
    let out: Vec<_> = shown.iter().map(|s| s.of(0).ejections.get()).collect();
    assert!(out[0] == 0 && out[1] == 0 && out[2] > 0, "{out:?}");
    assert_eq!(shown[2].of(0).ejected_by.get(), 2, "by latency");
}

#[test]
fn a_connect_that_fails_is_made_to_another_endpoint() {
    let mut w = world(3, Policy::default());
    w.slow_connects = true;
    for _ in 0..20 {
        let c = w.client();
        w.give(c, GET.replace("GET", "POST"));
        let first = w.last_connect();
        w.core.on_failed(first, w.now);
        w.run();
        let second = w.last_connect();
        assert_ne!(port_of(&w, first), port_of(&w, second));
        w.core.on_connected(second, w.now);
        w.run();
        w.give(second, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(status_of(&w.took(c)), 200);
        w.end(c, true);
    }
}

#[test]
fn the_budget_bounds_second_attempts_and_counts_those_that_wait() {
    let retry = Retry { percent: 20, count_min: 1, on_reset: true, ..Retry::default() };
    let s = service(2, Policy { retry, ..Policy::default() });
    let shown = s.shown.clone();
    let mut w = World::of(of(s));
    let clients: Vec<_> = (0..20).map(|_| w.client()).collect();
    clients.iter().for_each(|c| w.give(*c, GET));
    let ups: Vec<_> = asked(&mut w);
    ups.iter().for_each(|up| w.end(*up, true));
    let failed = clients.iter().filter(|c| status_of(&w.took(**c)) == 502).count();
    assert_eq!((failed, asked(&mut w).len()), (16, 4), "20 % of 20, then of those that are left");
    assert_eq!((shown.of(0).retries.get(), shown.of(0).retries_refused.get()), (4, 16));
}

#[test]
fn an_answer_that_counts_as_none_is_asked_of_another_endpoint_once_and_only_where_nothing_is_done_twice() {
    let retry = Retry { statuses: Statuses::of(&[503]), ..Retry::default() };
    let bad = "HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno";
    for (method, tries) in [("GET", 2), ("POST", 1)] {
        let mut w = world(2, Policy { retry, ..Policy::default() });
        let c = w.client();
        w.give(c, GET.replace("GET", method));
        let first = w.last_connect();
        w.give(first, bad);
        assert_eq!(w.connects.len(), tries);
        if tries == 2 {
            assert_eq!(w.took(c), "", "no byte of the refused answer");
            let second = w.last_connect();
            assert_ne!(port_of(&w, first), port_of(&w, second));
            w.give(second, bad);
        }
        assert_eq!(status_of(&w.took(c)), 503, "{method}");
        assert_eq!(w.counts().in_flight, 0);
    }
}

#[test]
fn an_attempt_that_takes_too_long_is_made_again_elsewhere() {
    let retry = Retry { try_ms_max: 300, ..Retry::default() };
    let mut w = world(2, Policy { retry, ..Policy::default() });
    let (c, p) = (w.client(), w.client());
    w.give(c, GET);
    let first = w.last_connect();
    w.give(p, GET.replace("GET", "POST"));
    let other = w.last_connect();
    w.pass(420);
    assert!(w.closed.contains(&first) && !w.closed.contains(&other), "a POST is not done twice");
    let second = w.last_connect();
    assert_ne!(port_of(&w, first), port_of(&w, second));
    w.give(second, OK);
    w.give(other, OK);
    assert_eq!((status_of(&w.took(c)), status_of(&w.took(p))), (200, 200));
}

#[test]
fn beyond_its_places_requests_wait_in_order_and_beyond_the_queue_they_are_refused() {
    let policy = Policy { requests_max: 1, queue_max: 3, queue_ms_max: 5000, ..Policy::default() };
    let s = service(1, policy);
    let shown = s.shown.clone();
    let mut w = World::of(of(s));
    let clients: Vec<_> = (0..5).map(|_| w.client()).collect();
    for (i, c) in clients.iter().enumerate() {
        w.give(*c, GET.replace("/a", &format!("/a{i}")));
    }
    let refused = w.took(clients[4]);
    assert!(status_of(&refused) == 503 && refused.contains("retry-after: 1"), "{refused}");
    assert_eq!((w.connects.len(), shown.of(0).waiting.get(), shown.of(0).active.get()), (1, 3, 1));
    w.end(clients[2], true);
    assert_eq!(shown.of(0).waiting.get(), 2, "who goes away waits no longer");
    let up = w.last_connect();
    for path in ["/a0 ", "/a1 ", "/a3 "] {
        let sent = w.took(up);
        assert!(sent.starts_with(&format!("GET {path}")) && sent.matches("GET ").count() == 1, "{path}: {sent}");
        w.give(up, OK);
    }
    assert_eq!([0, 1, 3].map(|i| status_of(&w.took(clients[i]))), [200; 3]);
    assert_eq!((shown.of(0).active.get(), shown.of(0).waiting.get(), w.counts().in_flight), (0, 0, 0));
}

#[test]
fn a_request_waits_for_a_place_no_longer_than_it_may_and_a_later_one_of_its_connection_queues_anew() {
    let policy = Policy { requests_max: 1, queue_max: 9, queue_ms_max: 500, ..Policy::default() };
    let mut w = world(1, policy);
    let (a, b, c) = (w.client(), w.client(), w.client());
    w.give(a, GET);
    w.give(b, GET);
    w.pass(300);
    w.give(c, GET.replace("/a", "/ac"));
    w.pass(300);
    let late = w.took(b);
    assert!(status_of(&late) == 503 && late.contains("no place"), "{late}");
    w.give(b, GET.replace("/a", "/ab"));
    let up = w.last_connect();
    w.took(up);
    w.give(up, OK);
    assert!(w.took(up).starts_with("GET /ac "), "its old place is not the new request's");
    w.give(up, OK);
    assert!(w.took(up).starts_with("GET /ab "));
}

#[test]
fn a_queued_body_stays_in_the_socket() {
    let mut w = world(1, Policy { requests_max: 1, ..Policy::default() });
    let (a, b) = (w.client(), w.client());
    w.give(a, GET);
    w.give(b, "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(w.paused, [b]);
    let up = w.last_connect();
    w.took(up);
    w.give(up, OK);
    assert!(w.paused.is_empty());
    w.give(b, "world");
    assert!(w.took(up).ends_with("\r\n\r\nhelloworld"));
}

#[test]
fn connections_to_an_endpoint_are_bounded_and_requests_wait_for_one() {
    let pool = Pooling { connections_max: 1, requests_max: 3, ..Pooling::default() };
    let mut w = world(2, Policy { pool, ..Policy::default() });
    let clients: Vec<_> = (0..3).map(|_| w.client()).collect();
    clients.iter().for_each(|c| w.give(*c, GET));
    assert_eq!(w.connects.len(), 2);
    let ups = asked(&mut w);
    w.give(ups[0], OK);
    assert_eq!(asked(&mut w), [ups[0]], "the third goes on the first that is free");
    w.give(ups[0], OK);
    assert_eq!(clients.iter().filter(|c| status_of(&w.took(**c)) == 200).count(), 2);
    w.give(clients[0], GET);
    assert_eq!(w.connects.len(), 2);
    let c = w.client();
    w.give(c, GET);
    let all = asked(&mut w);
    assert_eq!(all, [ups[0]]);
    w.give(ups[0], OK);
    assert!(w.closed.contains(&ups[0]), "after its third request");
    assert_eq!(w.connects.len(), 3, "and who waits gets the place");
}

#[test]
fn rates_of_a_service_and_of_a_shard_are_kept_with_429_and_retry_after() {
    let mut s = service(1, Policy { rate: Some(Rate { per_s: 2, burst: 3 }), ..Policy::default() });
    let ask = |w: &mut World| {
        let c = w.client();
        w.give(c, GET);
        asked(w).into_iter().for_each(|up| w.give(up, OK));
        let answer = w.took(c);
        w.end(c, true);
        (status_of(&answer), answer.contains("retry-after: 1"))
    };
    let mut w = World::of(of(s.clone()));
    assert_eq!([(); 5].map(|()| ask(&mut w).0), [200, 200, 200, 429, 429]);
    assert!(ask(&mut w).1);
    w.pass(540);
    assert_eq!([(); 2].map(|()| ask(&mut w).0), [200, 429]);

    s.policy.rate = None;
    let own = vec![(Shard(1), Rate { per_s: 1, burst: 2 })];
    let shard_rates = ShardRates { each: Some(Rate { per_s: 1, burst: 1 }), own };
    let mut w = World::of(Settings { shard_rates, ..of(s) });
    assert_eq!([(); 3].map(|()| ask(&mut w).0), [200, 200, 429]);
    assert_eq!(w.counts().shard_limited, 1);
    let c = w.client();
    w.give(c, GET.replace("shopid=1", "shopid=2"));
    w.give(c, "");
    let d = w.client();
    w.give(d, GET.replace("shopid=1", "shopid=2"));
    assert_eq!((status_of(&w.took(c)), status_of(&w.took(d))), (0, 429), "each shard has its own");
}

#[test]
fn the_routers_of_another_zone_are_a_cluster_too() {
    let mut w =
        World::of(Settings { peers: vec![Peer::new(SH, &[addr(21), addr(22)])], ..settings(Limits::default()) });
    w.slow_connects = true;
    let c = w.client();
    w.give(c, GET.replace("shopid=1", "shopid=2"));
    let first = w.last_connect();
    w.core.on_failed(first, w.now);
    w.run();
    let second = w.last_connect();
    let mut ports = [port_of(&w, first), port_of(&w, second)];
    ports.sort_unstable();
    assert_eq!(ports, [21, 22]);
    w.core.on_connected(second, w.now);
    w.run();
    assert!(w.took(second).contains("x-ezone-hop: 1"));
}

/// `x-ezone-ack: remote` while that zone is alone: each of its routers says so, and none is to be blamed.
#[test]
fn another_zones_store_that_waits_in_vain_ejects_no_router() {
    let late = "HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n";
    let down = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\nx-shard: shopid=2\r\n\r\n");
    for (path, answer, ejected) in
        [("/records/t/k", late, 0), ("/records/t/k?a", late, 0), ("/records/t/k", down, 1), ("/a", late, 1)]
    {
        let peer = Peer::new(SH, &[addr(21), addr(22)]);
        let shown: Vec<_> = peer.endpoints.iter().map(|e| e.shown.clone()).collect();
        let mut w = World::of(Settings { peers: vec![peer], ..settings(Limits::default()) });
        for _ in 0..40 {
            round_of(&mut w, &get(path), |_| (answer, 1));
        }
        let out: u64 = shown.iter().map(|s| s.of(0).ejections.get()).sum();
        assert_eq!(out, ejected, "{path}: {answer}");
    }
}

/// By the service's own patience, not by everyone's.
#[test]
fn a_kept_connection_rests_after_a_second_however_long_it_may_be_idle() {
    for idle_ms_max in [5_000, 0, 600_000] {
        let policy = Policy { pool: Pooling { idle_ms_max, ..Pooling::default() }, ..Policy::default() };
        let mut w = World::of(of(service(1, policy)));
        let c = w.client();
        w.give(c, GET.replace("x-shard", &format!("x-long: {}\r\nx-shard", "y".repeat(3000))));
        let up = w.last_connect();
        w.give(up, OK);
        w.end(c, true);
        w.pass(600);
        let busy = w.counts().memory_bytes;
        assert!(busy > 3000, "{idle_ms_max}: {busy} bytes: it has rested too soon");
        w.pass(3000);
        assert!(
            !w.closed.contains(&up) && w.counts().memory_bytes < 100,
            "{idle_ms_max}: {} bytes",
            w.counts().memory_bytes
        );
    }
}

/// Endpoints that fail, stall and come back, settings that change, clients that go: no place is lost and none is leaked.
#[test]
fn places_are_given_back_whatever_happens() {
    for seed in 1..150u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % n
        };
        let policy = Policy {
            requests_max: 4,
            queue_max: 4,
            queue_ms_max: 700,
            pool: Pooling { connections_max: 2, ..Pooling::default() },
            retry: Retry { statuses: Statuses::of(&[503]), try_ms_max: 400, count_min: 1, ..Retry::default() },
            eject: Eject { failures: 2, eject_ms: 500, ..Eject::default() },
            ..Policy::default()
        };
        let s = service(3, policy);
        let shown = s.shown.clone();
        let endpoints: Vec<Endpoint> = s.endpoints.clone();
        let mut w = World::of(of(s.clone()));
        w.slow_connects = true;
        let mut clients: Vec<_> = (0..10).map(|_| w.client()).collect();
        let mut made = HashSet::new();
        let answers = [
            OK,
            "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
            "x",
        ];
        for _ in 0..120 {
            let c = clients[next(10) as usize];
            let ups: Vec<_> = w.connects.iter().map(|u| u.0).filter(|u| !w.closed.contains(u)).collect();
            match next(12) {
                0..4 => w.give(c, GET),
                4 if next(4) == 0 => {
                    w.end(c, next(2) == 0);
                    clients.retain(|k| *k != c);
                    clients.push(w.client());
                }
                5 if next(4) == 0 => {
                    let mut other = s.clone();
                    other.endpoints.iter_mut().for_each(|e| (e.healthy, e.draining) = (next(3) > 0, next(5) == 0));
                    other.endpoints.truncate(1 + next(3) as usize);
                    w.core.on_settings(Arc::new(of(other)), w.now);
                    w.run();
                }
                6 => w.pass(next(500)),
                _ if ups.is_empty() => {}
                n => {
                    let up = ups[next(ups.len() as u64) as usize];
                    match n {
                        // The driver tells of a connect once, and of bytes only after it.
                        7 if !made.contains(&up) => w.core.on_failed(up, w.now),
                        _ if !made.contains(&up) => {
                            made.insert(up);
                            w.core.on_connected(up, w.now);
                        }
                        9 => w.core.on_end(up, next(2) == 0, w.now),
                        _ => w.core.on_bytes(up, answers[next(4) as usize].as_bytes(), w.now),
                    }
                    w.run();
                }
            }
            w.core.audit().unwrap_or_else(|wrong| panic!("SEED={seed}: {wrong}"));
        }
        w.pass(40_000);
        clients.iter().for_each(|c| w.end(*c, true));
        for up in w.connects.clone() {
            w.end(up.0, true);
        }
        w.pass(2000);
        let of_service = shown.of(0);
        assert_eq!((of_service.active.get(), of_service.waiting.get(), w.counts().in_flight), (0, 0, 0), "SEED={seed}");
        assert!(endpoints.iter().all(|e| e.shown.of(0).active.get() == 0), "SEED={seed}");
        assert_eq!(w.counts().connections, 0, "SEED={seed}");
    }
}
