//! `/ownership` and `/ownership/stream` of the router's core without sockets: what readers are told, when the log is told that they were, and
//! who is cut off.

mod router_table;
mod router_world;

use bytes::BytesMut;
use dataplane::router::{ConnId, Limits, Settings};
use replog::port::{Answer, Ask, Refused, put_answer, take_ask};
use replog::stand::{May, Stand, Standing};
use router_table::Table;
use router_world::{BJ, SH, World, body_of, settings, status_of};
use serde_json::{Value, json};
use shardmap::ownership::Kind;
use shardmap::{MapEpoch, OwnerEpoch, Shard, Zone};

/// A shard of the log core; its zone is bj.
fn stand(shard: u16, kind: Kind, owner: Option<Zone>, epoch: u64, may: May) -> Stand {
    let (owner_epoch, to) = (OwnerEpoch(epoch), (kind == Kind::Moving).then_some(SH));
    let own_epoch = if owner == Some(BJ) { owner_epoch } else { OwnerEpoch(1) };
    Stand { shard: Shard(shard), kind, owner, owner_epoch, to, may, own_epoch, lease_ms: 0 }
}

fn ours(shard: u16, epoch: u64) -> Stand {
    stand(shard, Kind::Own, Some(BJ), epoch, May::Writes)
}

fn theirs(shard: u16, epoch: u64) -> Stand {
    stand(shard, Kind::Own, Some(SH), epoch, May::Nothing)
}

fn standing(revision: u64, map: u64, stands: &[Stand]) -> Answer {
    Answer::Standing(Standing { revision, map_epoch: MapEpoch(map), stands: stands.to_vec() })
}

/// A core of zone bj with its log cores, whom the test plays.
struct Node {
    w: World,
    /// Their connections, as they were made.
    ports: Vec<ConnId>,
}

impl Node {
    fn new() -> Node {
        Node::of(Limits::default(), 1)
    }

    fn of(limits: Limits, cores: usize) -> Node {
        let log_ports = vec!["log".into(); cores];
        Node { w: World::of(Settings { log_ports, streams: cores as u32, ..settings(limits) }), ports: vec![] }
    }

    fn ask(&mut self, request: &str) -> ConnId {
        let id = self.w.client();
        self.w.give(id, format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n"));
        self.ports = self.w.connects.iter().map(|c| c.0).collect();
        id
    }

    /// What a log core was asked since the last look: what was told, and for how long it listens.
    fn asked(&mut self, port: usize) -> Vec<(u64, u32)> {
        self.asks(port).into_iter().map(|(_, known, wait_ms)| (known, wait_ms)).collect()
    }

    fn asks(&mut self, port: usize) -> Vec<(u64, u64, u32)> {
        let mut sent = BytesMut::from(&self.w.sent.remove(&self.ports[port]).unwrap_or_default()[..]);
        let mut all = vec![];
        while let Some((corr, ask)) = take_ask(&mut sent).unwrap() {
            match ask {
                Ask::Standing { known, wait_ms } => all.push((corr, known, wait_ms)),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    /// The log core was asked once, having told `known`; it answers.
    fn answers(&mut self, port: usize, known: u64, answer: &Answer) {
        let asks = self.asks(port);
        assert_eq!(asks.iter().map(|a| (a.1, a.2 > 0)).collect::<Vec<_>>(), [(known, true)]);
        let mut out = BytesMut::new();
        put_answer(&mut out, asks[0].0, answer);
        let port = self.ports[port];
        self.w.give(port, &out);
    }

    /// The lines that a reader was sent, without the head.
    fn lines(&mut self, id: ConnId) -> Vec<Value> {
        let sent = self.w.took(id);
        sent.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

fn event(event: &str, shard: u16, owner_epoch: u64, map_epoch: u64) -> Value {
    json!({ "event": event, "shard": shard, "owner_epoch": owner_epoch, "map_epoch": map_epoch })
}

fn beat(map_epoch: u64) -> Value {
    json!({ "event": "beat", "map_epoch": map_epoch })
}

#[test]
fn a_stream_begins_with_the_state_and_goes_on_with_what_happens() {
    let mut n = Node::new();
    let c = n.ask("GET /ownership/stream");
    assert_eq!(n.w.took(c), "", "nothing is known yet");
    n.answers(0, 0, &standing(1, 1, &[ours(1, 1), theirs(2, 1)]));
    let head = n.w.took(c);
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("x-ezone: bj\r\nx-ezone-epoch: 1\r\n"), "{head}");
    let line: Value = serde_json::from_str(head.lines().find(|l| l.starts_with('{')).unwrap()).unwrap();
    let shards = json!([
        { "shard": 1, "owner": "bj", "owner_epoch": 1, "kind": "own", "to": null, "writes": true },
        { "shard": 2, "owner": "sh", "owner_epoch": 1, "kind": "own", "to": null, "writes": false },
    ]);
    assert_eq!(line, json!({ "event": "state", "zone": "bj", "map_epoch": 1, "shards": shards }));
    // It moves away; the FENCE is durable before the map names the other.
    n.answers(0, 1, &standing(2, 2, &[stand(1, Kind::Moving, Some(BJ), 1, May::Halted), theirs(2, 1)]));
    assert_eq!(n.lines(c), [event("block", 1, 1, 2), beat(2)]);
    n.answers(0, 2, &standing(3, 2, &[stand(1, Kind::Moving, Some(BJ), 1, May::Halted), theirs(2, 1)]));
    assert_eq!(n.lines(c), [Value::Null; 0], "nothing happened to anyone");
    n.answers(0, 3, &standing(4, 3, &[theirs(1, 3), ours(2, 3)]));
    assert_eq!(n.lines(c), [event("lose", 1, 1, 3), event("gain", 2, 3, 3), beat(3)]);
    // A map that changes nothing for this zone is told all the same: requests may name it.
    n.answers(0, 4, &standing(5, 4, &[theirs(1, 3), ours(2, 3)]));
    assert_eq!(n.lines(c), [beat(4)]);
    n.w.pass(5100);
    assert_eq!(n.lines(c), [beat(4)], "silence is told too");
    assert_eq!((n.w.counts().ownership_streams, n.w.counts().ownership_cut), (1, 0));
    // Who comes later begins with what is so now, without another ask.
    let later = n.ask("GET /ownership/stream?shards=own");
    let lines = n.lines(later);
    assert_eq!(lines[0]["shards"].as_array().unwrap().len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["shards"][0]["shard"], &lines[0]["map_epoch"]), (&json!(2), &json!(4)));
    n.w.end(c, true);
    assert_eq!(n.w.counts().ownership_streams, 1);
}

#[test]
fn the_log_is_told_that_readers_were_told_only_once_their_bytes_were_handed_over() {
    let mut n = Node::new();
    let c = n.ask("GET /ownership/stream");
    n.answers(0, 0, &standing(1, 1, &[theirs(2, 1)]));
    n.w.took(c);
    // The log's own bytes are ordered before the reader's: the ask goes behind them all the same.
    let record = n.w.client();
    let read = "GET /records/t/k HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\r\n";
    let (corr, ..) = n.asks(0)[0];
    n.w.core.on_bytes(record, read.as_bytes(), n.w.now);
    let mut out = BytesMut::new();
    put_answer(&mut out, corr, &standing(2, 2, &[ours(2, 2)]));
    n.w.core.on_bytes(n.ports[0], &out, n.w.now);
    let mut sends = vec![];
    while let Some(order) = n.w.core.next_order() {
        if let dataplane::router::Order::Send(id) = order {
            sends.push(id);
            let bytes = n.w.core.take_out(id);
            n.w.sent.entry(id).or_default().extend_from_slice(&bytes);
            // Its end is told later.
        }
    }
    assert_eq!(sends, [c, n.ports[0]], "the reader first");
    let mut sent = BytesMut::from(&n.w.sent.remove(&n.ports[0]).unwrap()[..]);
    assert!(matches!(take_ask(&mut sent), Ok(Some((_, Ask::Read { .. })))));
    let Ok(Some((corr, Ask::Standing { known: 2, .. }))) = take_ask(&mut sent) else { panic!("it was told") };
    n.w.core.on_sent(n.ports[0], vec![], true, n.w.now);
    assert_eq!(n.lines(c), [event("gain", 2, 2, 2), beat(2)]);
    // What comes while that send is under way waits behind it, and so does the word to the log.
    let mut out = BytesMut::new();
    put_answer(&mut out, corr, &standing(3, 3, &[stand(2, Kind::Moving, Some(BJ), 2, May::Halted)]));
    n.w.give(n.ports[0], &out);
    assert_eq!((n.lines(c).len(), n.asked(0).len()), (0, 0));
    n.w.core.on_sent(c, vec![], true, n.w.now);
    n.w.run();
    assert_eq!(n.lines(c), [event("block", 2, 2, 3), beat(3)]);
    assert_eq!(n.asked(0), [(3, 5000)]);
}

#[test]
fn the_state_alone_is_an_answer_with_a_tag_and_the_log_hears_that_nobody_listens() {
    let mut n = Node::new();
    let mut tags = vec![];
    for (revision, may) in [(1, May::Halted), (2, May::Writes), (3, May::Writes)] {
        let c = n.ask("GET /ownership?shards=own");
        n.answers(0, 0, &standing(revision, 7, &[stand(1, Kind::Own, Some(BJ), 5, may), theirs(2, 1)]));
        let answer = n.w.took(c);
        assert!(status_of(&answer) == 200 && answer.contains("x-ezone-epoch: 7\r\n"), "{answer}");
        let body: Value = serde_json::from_str(body_of(&answer)).unwrap();
        let shard = json!({
            "shard": 1, "owner": "bj", "owner_epoch": 5, "kind": "own", "to": null, "writes": may == May::Writes,
        });
        assert_eq!(body, json!({ "zone": "bj", "map_epoch": 7, "shards": [shard] }));
        tags.push(answer.lines().find_map(|l| l.strip_prefix("etag: ")).unwrap().to_owned());
        assert_eq!(n.asked(0), [(revision, 0)], "it does not wait for this core's word");
        assert_eq!(n.w.counts().ownership_streams, 0);
    }
    assert!(tags[0] != tags[1] && tags[1] == tags[2], "{tags:?}");
    let c = n.w.client();
    n.w.give(c, format!("GET /ownership?shards=own HTTP/1.1\r\nHost: h\r\nif-none-match: \"x\", {}\r\n\r\n", tags[2]));
    n.answers(0, 0, &standing(4, 7, &[ours(1, 5), theirs(2, 1)]));
    let answer = n.w.took(c);
    assert!(status_of(&answer) == 304 && body_of(&answer).is_empty(), "{answer}");
}

#[test]
fn of_several_log_cores_the_oldest_map_is_named_and_all_have_to_answer() {
    let mut n = Node::of(Limits::default(), 2);
    let c = n.ask("GET /ownership/stream");
    n.answers(0, 0, &standing(1, 1, &[ours(2, 1)]));
    assert_eq!(n.w.took(c), "", "the other core's shards are not known");
    n.answers(1, 0, &standing(1, 1, &[ours(1, 1)]));
    let state = n.lines(c).remove(0);
    assert_eq!((&state["shards"][0]["shard"], &state["shards"][1]["shard"]), (&json!(1), &json!(2)), "in their order");
    n.answers(1, 1, &standing(2, 2, &[theirs(1, 2)]));
    assert_eq!(n.lines(c), [event("block", 1, 1, 2), event("lose", 1, 1, 2)], "the map is not told whole");
    n.answers(0, 1, &standing(2, 2, &[ours(2, 1)]));
    assert_eq!(n.lines(c), [beat(2)]);
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off_and_holds_nobody_up() {
    let limits = Limits { answer_ms: 2000, buffer_bytes_max: 4096, ..Limits::default() };
    let mut n = Node::of(limits, 1);
    let (stuck, good) = (n.ask("GET /ownership/stream"), n.ask("GET /ownership/stream"));
    let shards: Vec<u16> = (0..100).collect();
    let all = |epoch: u64| -> Vec<Stand> { shards.iter().map(|s| ours(*s, epoch)).collect() };
    n.w.stuck.push(stuck);
    n.answers(0, 0, &standing(1, 1, &all(1)));
    let first = n.w.took(stuck).len();
    let mut told = 0;
    for revision in 2..50 {
        n.w.pass(60);
        n.answers(0, revision - 1, &standing(revision, revision, &all(revision)));
        told += n.lines(good).len();
    }
    assert!(first > 0 && told >= 48 * 300, "{told} lines: of each shard block, lose, gain");
    assert_eq!(n.w.counts().ownership_cut, 1);
    assert_eq!(n.w.counts().ownership_streams, 1);
    // What waits for it is one answer of the log beyond its buffer, however much happened.
    let waiting = n.w.core.audit().unwrap().out_bytes_max;
    assert!(waiting < 4096 + 64 * 1024, "{waiting} bytes wait for who takes nothing");
}

#[test]
fn a_slow_reader_is_told_the_events_between_what_it_knows_and_what_is_so() {
    let mut n = Node::of(Limits { buffer_bytes_max: 4096, ..Limits::default() }, 1);
    let c = n.ask("GET /ownership/stream");
    let all = |epoch: u64| -> Vec<Stand> { (0..100).map(|s| ours(s, epoch)).collect() };
    n.w.stuck.push(c);
    n.answers(0, 0, &standing(1, 1, &all(1)));
    n.w.took(c);
    for revision in 2..6 {
        n.w.pass(60);
        n.answers(0, revision - 1, &standing(revision, revision, &all(revision)));
    }
    n.w.stuck.clear();
    n.w.core.on_sent(c, vec![], true, n.w.now);
    n.w.run();
    let lines = n.lines(c);
    let of = |shard: u16| -> Vec<_> {
        let own = lines.iter().filter(|l| l["shard"] == shard);
        own.map(|l| (l["event"].as_str().unwrap().to_owned(), l["owner_epoch"].as_u64().unwrap())).collect()
    };
    let [first, last] = [of(0), of(99)];
    assert_eq!(first, last);
    let event = |name: &str, epoch| (name.to_owned(), epoch);
    let step = |from, to| [event("block", from), event("lose", from), event("gain", to)];
    assert_eq!(first, [step(1, 2), step(2, 5)].concat(), "the ownerships that came and went meanwhile are left out");
    assert_eq!(lines.last(), Some(&beat(5)));
}

#[test]
fn without_the_log_streams_end_and_nobody_is_told_what_may_not_be_so() {
    let mut n = Node::new();
    let c = n.ask("GET /ownership/stream");
    n.answers(0, 0, &standing(1, 1, &[ours(1, 1)]));
    n.w.took(c);
    let port = n.ports[0];
    n.w.end(port, true);
    let last = n.w.took(c);
    assert!(last.contains("{\"error\":\"the zone's log cannot be reached\"}") && last.ends_with("0\r\n\r\n"), "{last}");
    assert_eq!(n.w.counts().ownership_streams, 0);
    n.w.slow_connects = true;
    for request in ["GET /ownership", "GET /ownership/stream"] {
        let c = n.ask(request);
        let port = n.w.last_connect();
        n.w.core.on_failed(port, n.w.now);
        n.w.run();
        let answer = n.w.took(c);
        assert!(status_of(&answer) == 503 && answer.contains("retry-after: 1"), "{request}: {answer}");
        n.w.pass(2000);
    }
    // It is there and says nothing, or that it is busy.
    n.w.slow_connects = false;
    let silent = n.ask("GET /ownership/stream");
    n.w.pass(Limits::default().answer_ms + 100);
    assert_eq!(status_of(&n.w.took(silent)), 503);
    let mut n = Node::new();
    let busy = n.ask("GET /ownership");
    n.answers(0, 0, &Answer::Refused(Refused::Busy));
    assert_eq!(status_of(&n.w.took(busy)), 503);
    // It falls silent later.
    let mut n = Node::of(Limits { answer_ms: 2000, ..Limits::default() }, 1);
    let c = n.ask("GET /ownership/stream");
    n.answers(0, 0, &standing(1, 1, &[ours(1, 1)]));
    n.w.pass(8000);
    let lines = n.lines(c);
    assert_eq!(lines.last().unwrap()["error"], "the zone's log does not answer", "{lines:?}");
}

#[test]
fn an_edge_tells_the_map_and_that_it_writes_nothing() {
    let mut w = World::of(Settings { zone: None, log_ports: vec![], ..settings(Limits::default()) });
    let ask = |w: &mut World, path: &str| {
        let c = w.client();
        w.give(c, format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        c
    };
    let c = ask(&mut w, "/ownership");
    let answer = w.took(c);
    let body: Value = serde_json::from_str(body_of(&answer)).unwrap();
    assert_eq!((&body["zone"], &body["map_epoch"]), (&json!("none"), &json!(1)));
    let owners: Vec<_> = body["shards"].as_array().unwrap().iter().map(|s| (&s["owner"], &s["writes"])).collect();
    assert_eq!(owners, [(&json!("bj"), &json!(false)), (&json!("sh"), &json!(false))]);
    let stream = ask(&mut w, "/ownership/stream");
    assert!(w.took(stream).contains("\"event\":\"state\""));
    w.map(Table::new(2, &[(1, SH), (2, SH)]));
    let lines = w.took(stream);
    assert!(lines.contains("{\"event\":\"beat\",\"map_epoch\":2}") && !lines.contains("lose"), "{lines}");
    let c = ask(&mut w, "/ownership?shards=own");
    let answer = w.took(c);
    assert!(answer.contains("x-ezone-epoch: 2\r\n") && body_of(&answer).contains("\"shards\":[]"), "{answer}");
}

#[test]
fn what_cannot_be_told_is_refused_with_what_was_expected() {
    let mut n = Node::of(Limits { ownership_max: 1, ..Limits::default() }, 1);
    for (request, status, expected) in [
        ("GET /ownership?shards=mine", 400, "all or own"),
        ("GET /ownership/stream?from=3", 400, "unknown parameter"),
        ("PUT /ownership", 405, "GET without a body"),
        ("HEAD /ownership/stream", 405, ""),
    ] {
        let c = n.ask(request);
        let answer = n.w.took(c);
        assert!(status_of(&answer) == status && answer.contains(expected), "{request}: {answer}");
    }
    n.ask("GET /ownership/stream");
    let c = n.ask("GET /ownership/stream");
    let answer = n.w.took(c);
    assert!(status_of(&answer) == 503 && answer.contains("ownership_max"), "{answer}");
    let mut w = World::of(Settings { log_ports: vec![], ..settings(Limits::default()) });
    let c = w.client();
    w.give(c, "GET /ownership HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(status_of(&w.took(c)), 404, "a zone's router without its log cannot tell");
}

/// A global service of this zone, of whose lease so much is left.
fn leased(epoch: u64, may: May, lease_ms: u32) -> Stand {
    Stand { lease_ms, ..stand(1024, Kind::Own, Some(BJ), epoch, may) }
}

#[test]
fn what_is_left_of_a_lease_is_told_in_the_state_runs_on_and_is_no_event_until_it_ends() {
    let mut n = Node::new();
    let c = n.ask("GET /ownership/stream");
    n.answers(0, 0, &standing(1, 1, &[ours(1, 1), leased(1, May::Writes, 3000)]));
    let of = |state: &Value| {
        let shard = state["shards"].as_array().unwrap().iter().find(|s| s["shard"] == 1024).unwrap().clone();
        (shard["lease_ms"].as_u64().unwrap(), shard["writes"].as_bool().unwrap())
    };
    let state = n.lines(c).remove(0);
    assert_eq!(of(&state), (3000, true));
    assert!(state["shards"][0].get("lease_ms").is_none(), "a shard of the map has none: {state}");
    n.w.pass(400);
    let alone = |n: &mut Node| {
        let c = n.ask("GET /ownership");
        of(&serde_json::from_str(body_of(&n.w.took(c))).unwrap())
    };
    let (left_ms, writes) = alone(&mut n);
    assert!((2500..=2600).contains(&left_ms) && writes, "{left_ms}");
    n.answers(0, 1, &standing(1, 1, &[ours(1, 1), leased(1, May::Writes, 2900)]));
    assert_eq!(n.lines(c), [] as [Value; 0], "renewed: nothing has happened");
    assert_eq!(alone(&mut n), (2900, true));
    n.w.pass(2900);
    assert_eq!(alone(&mut n), (0, false), "before the log says so");
    n.answers(0, 1, &standing(1, 1, &[ours(1, 1), leased(1, May::Halted, 0)]));
    assert_eq!(n.lines(c), [event("block", 1024, 1, 1)]);
}
