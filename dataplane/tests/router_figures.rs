//! What a router core measures of its requests: times, statuses, zones, holds, and clients that are gone.

mod router_table;
mod router_world;

use dataplane::router::access::{self, Access, Ended, Record};
use dataplane::router::figures::{CoreFigures, ServiceFigures, group_name};
use dataplane::router::{Limits, Settings};
use router_table::Table;
use router_world::{BJ, GET, SH, World, status_of};
use std::sync::Arc;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";

fn of(w: &World, service: &str) -> Arc<ServiceFigures> {
    w.core.figures().services.iter().find(|s| s.name == service).expect("a service of the test").clone()
}

fn core(w: &World) -> Arc<CoreFigures> {
    w.core.figures().core.clone()
}

fn statuses(s: &ServiceFigures) -> Vec<(u16, u64)> {
    s.statuses.given().collect()
}

impl World {
    fn later(&mut self, us: u64) {
        self.now.us += us;
    }
}

#[test]
fn own_time_is_the_whole_without_the_wait_for_the_upstream() {
    let mut w = World::new();
    let client = w.client();
    let (first, rest) = GET.split_at(20);
    w.give(client, first);
    w.later(3);
    w.give(client, rest);
    let up = w.last_connect();
    w.later(1000);
    w.give(up, OK);
    w.later(5);
    w.stuck.push(client);
    w.give(up, "body");
    assert_eq!(of(&w, "/a").request.reading().count(), 0, "its last byte is not sent yet");
    w.later(7);
    let buffer = b"all that was taken".to_vec();
    w.core.on_sent(client, buffer, true, w.now);
    let s = of(&w, "/a");
    let times = [&s.request, &s.own, &s.upstream].map(|h| (h.reading().count(), h.reading().sum_us()));
    assert_eq!(times, [(1, 1015), (1, 15), (1, 1000)]);
    assert_eq!(statuses(&s), [(200, 1)]);
    assert_eq!(core(&w).bytes_in.get(), GET.len() as u64);
}

#[test]
fn the_time_to_connect_is_the_upstreams() {
    let mut w = World::new();
    w.slow_connects = true;
    let client = w.client();
    w.give(client, GET);
    let up = w.last_connect();
    w.later(500);
    w.core.on_connected(up, w.now);
    w.run();
    w.later(100);
    w.give(up, "HTTP/1.1 204 No Content\r\n\r\n");
    let s = of(&w, "/a");
    assert_eq!((s.upstream.reading().sum_us(), s.own.reading().sum_us()), (600, 0));
}

#[test]
fn a_hold_is_measured_and_is_nobodys_time() {
    let mut w = World::with(Limits { hold_ms_max: 60_000, ..Limits::default() });
    w.map(Table::new(2, &[(1, BJ), (2, SH)]).moving(1, SH));
    let client = w.client();
    w.give(client, GET);
    w.later(40_000);
    w.map(Table::new(3, &[(1, BJ), (2, SH)]));
    w.later(10);
    w.give(w.last_connect(), format!("{OK}body"));
    assert_eq!(core(&w).held.reading().sum_us(), 40_000);
    let s = of(&w, "/a");
    let sums = [&s.request, &s.own, &s.upstream].map(|h| h.reading().sum_us());
    assert_eq!(sums, [40_010, 0, 10]);
}

#[test]
fn requests_are_counted_by_zone_and_by_group_of_shards() {
    let mut w = World::new();
    w.map(Table::new(2, &[(1, BJ), (2, SH), (100, BJ), (1024, BJ)]));
    let client = w.client();
    for shop in [1, 2, 100, 1024] {
        w.give(client, GET.replace("shopid=1\r", &format!("shopid={shop}\r")));
        let up = w.connects.iter().rev().find(|(_, t)| {
            let peer = dataplane::router::Target::Tcp(router_world::addr(2));
            (*t == peer) == (shop == 2)
        });
        w.give(up.expect("it went there").0, format!("{OK}body"));
    }
    w.give(client, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
    let zones: Vec<_> = core(&w).by_zone().collect();
    assert_eq!(zones, [(Some(BJ), 2, 3), (Some(SH), 2, 1), (None, 4, 1)]);
    let groups: Vec<_> = core(&w).by_group().map(|(g, class, n)| (group_name(g), class, n)).collect();
    let named = |name: &str, class, n| (name.to_string(), class, n);
    assert_eq!(groups, [named("0-63", 2, 2), named("64-127", 2, 1), named("global", 2, 1), named("none", 4, 1)]);
    assert_eq!(statuses(&of(&w, "forward")), [(200, 1)]);
    assert_eq!((statuses(&of(&w, "/a")), statuses(&of(&w, "none"))), (vec![(200, 3)], vec![(400, 1)]));
    assert_eq!(core(&w).refused.given().collect::<Vec<_>>(), [(400, 1)]);
}

#[test]
fn pipelined_requests_are_measured_each() {
    let mut w = World::new();
    let client = w.client();
    w.stuck.push(client);
    let one = GET.replace("GET /a", "GET /nowhere");
    w.give(client, one.repeat(3));
    w.later(30);
    assert_eq!(of(&w, "none").request.reading().count(), 0);
    w.core.on_sent(client, vec![], true, w.now);
    w.run();
    w.core.on_sent(client, vec![], true, w.now);
    let s = of(&w, "none");
    assert_eq!((statuses(&s), s.own.reading().sum_us()), (vec![(404, 3)], 90));
    assert_eq!(core(&w).bytes_out.get(), w.sent[&client].len() as u64);
    assert_eq!(core(&w).bytes_in.get(), 3 * one.len() as u64);
}

#[test]
fn a_client_that_goes_before_its_answer_is_counted_as_499_and_one_that_goes_in_the_middle_by_its_status() {
    let mut w = World::new();
    let early = w.client();
    w.give(early, GET);
    w.end(early, true);
    let late = w.client();
    w.give(late, GET);
    w.give(w.last_connect(), OK);
    w.end(late, true);
    let unsent = w.client();
    w.stuck.push(unsent);
    w.give(unsent, GET);
    w.give(w.last_connect(), format!("{OK}body"));
    w.end(unsent, true);
    assert_eq!(statuses(&of(&w, "/a")), [(200, 2), (499, 1)]);
    assert_eq!((core(&w).client_aborts.get(), core(&w).broken_answers.get()), (3, 0));
}

#[test]
fn an_answer_that_its_upstream_breaks_off_is_counted_as_broken_and_not_as_the_clients_doing() {
    let mut w = World::new();
    let client = w.client();
    w.give(client, GET);
    let up = w.last_connect();
    w.give(up, OK);
    w.end(up, true);
    assert_eq!(statuses(&of(&w, "/a")), [(200, 1)]);
    assert_eq!((core(&w).client_aborts.get(), core(&w).broken_answers.get()), (0, 1));
}

#[test]
fn a_head_that_nobody_understands_is_counted_and_an_idle_client_that_leaves_is_not() {
    let mut w = World::new();
    let idle = w.client();
    w.end(idle, false);
    let client = w.client();
    w.give(client, "GET / HTTP/1.1\nHost: h\n\n");
    assert_eq!(status_of(&w.took(client)), 400);
    w.pass(6000);
    assert_eq!(statuses(&of(&w, "none")), [(400, 1)]);
    assert_eq!(core(&w).client_aborts.get(), 0);
}

/// What the access log is told, in order.
fn logged(w: &mut World) -> Vec<Record> {
    let batch = w.core.access();
    if batch.is_empty() {
        return vec![];
    }
    let bytes = batch.sealed(5, 7).to_vec();
    batch.clear(false);
    let mut rest = bytes.as_slice();
    let (wall_us, us, mut records) = access::batch(&mut rest).unwrap();
    assert_eq!((wall_us, us, rest.len()), (5, 7, 0));
    let all = std::iter::from_fn(|| access::take(&mut records)).collect();
    assert!(records.is_empty(), "a record that cannot be read: {records:?}");
    all
}

fn with_log(sample: u64) -> World {
    let access = Some(Access { sample, min_status_always: 500, query: false });
    World::of(Settings { access, ..router_world::settings(Limits::default()) })
}

#[test]
fn the_log_is_told_what_was_asked_and_what_became_of_it() {
    let mut w = with_log(access::SAMPLE_ALL);
    let client = w.client();
    w.give(client, GET.replace("/a ", "/a/b?secret=1 "));
    w.later(900);
    w.give(w.last_connect(), format!("{OK}body"));
    let all = logged(&mut w);
    let bytes_out = w.sent[&client].len() as u64;
    let [r] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((r.method.as_slice(), r.path.as_slice(), r.status), (&b"GET"[..], &b"/a/b"[..], 200));
    assert_eq!((r.whole_us, r.upstream_us, r.held_us, r.bytes_out), (900, Some(900), 0, bytes_out));
    assert_eq!((r.shard, r.zone, r.epoch, r.retries), (Some(1), Some(BJ.0), 1, 0));
    assert_eq!((r.ended, r.upstream), (Ended::Ok, Some(router_world::addr(1))));
}

#[test]
fn pipelined_requests_are_logged_each_with_its_own_path() {
    let mut w = with_log(access::SAMPLE_ALL);
    let client = w.client();
    w.stuck.push(client);
    let all: String = ["/x1", "/x2", "/x3"].map(|p| GET.replace("/a ", &format!("{p} "))).concat();
    w.give(client, all + "GET / HTTP/1.1\nbare");
    for _ in 0..2 {
        w.core.on_sent(client, vec![], true, w.now);
        w.run();
    }
    let all = logged(&mut w);
    let paths: Vec<_> =
        all.iter().map(|r| (String::from_utf8_lossy(&r.path).into_owned(), r.status, r.ended)).collect();
    let line = |path: &str, status| (path.to_string(), status, Ended::Refused);
    assert_eq!(paths, [line("/x1", 404), line("/x2", 404), line("/x3", 404), line("", 400)]);
    assert_eq!(all[3].reason, b"bare LF in the head");
}

#[test]
fn errors_are_logged_whatever_the_sample_and_endings_are_told_apart() {
    let mut w = with_log(0);
    let client = w.client();
    w.give(client, GET);
    w.give(w.last_connect(), format!("{OK}body"));
    w.give(client, GET);
    w.give(w.last_connect(), "nonsense\r\n\r\n");
    assert_eq!(logged(&mut w).iter().map(|r| (r.status, r.ended)).collect::<Vec<_>>(), [(502, Ended::Refused)]);
    let mut w = with_log(access::SAMPLE_ALL);
    let gone = w.client();
    w.give(gone, GET);
    w.end(gone, true);
    let broken = w.client();
    w.give(broken, GET);
    w.give(w.last_connect(), OK);
    w.end(w.last_connect(), true);
    let ends: Vec<_> = logged(&mut w).iter().map(|r| (r.status, r.ended, r.path.clone())).collect();
    assert_eq!(ends, [(499, Ended::ClientGone, b"/a".to_vec()), (200, Ended::UpstreamLost, b"/a".to_vec())]);
}

#[test]
fn records_that_nobody_takes_are_dropped_and_counted_and_memory_stays_bounded() {
    let mut w = with_log(access::SAMPLE_ALL);
    let client = w.client();
    let long = GET.replace("/a ", &format!("/{} ", "x".repeat(2000)));
    for _ in 0..1000 {
        w.give(client, &long);
    }
    let batch = w.core.access();
    let (bytes, dropped) = (batch.sealed(0, 0).len(), batch.dropped);
    assert!(dropped > 500 && bytes < access::BATCH_BYTES_MAX + 2 * access::PATH_BYTES_MAX, "{dropped} {bytes}");
    assert_eq!(logged(&mut w).len() as u64, 1000 - dropped);
}

#[test]
fn without_a_log_nothing_is_recorded() {
    let mut w = World::new();
    let client = w.client();
    w.give(client, "GET / HTTP/1.1\nbare");
    assert!(w.core.access().is_empty());
}

#[test]
fn a_tunnel_is_one_request_that_is_over_with_its_101() {
    let mut w = with_log(access::SAMPLE_ALL);
    let client = w.client();
    w.give(client, GET.replace("\r\n\r\n", "\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n"));
    let up = w.last_connect();
    w.later(50);
    w.give(up, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
    w.later(5000);
    w.give(up, "hello");
    w.end(up, true);
    w.end(client, true);
    w.pass(60);
    assert_eq!(statuses(&of(&w, "/a")), [(101, 1)]);
    assert_eq!((of(&w, "/a").request.reading().sum_us(), core(&w).client_aborts.get()), (50, 0));
    assert_eq!(logged(&mut w).len(), 1);
}
