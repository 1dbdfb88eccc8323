//! Commits on real nodes: conditions that race, transactions, idempotency keys, before and after a move.

use crate::cluster::{A, B, Cluster, Site, put};
use crate::{ONE, move_shards, shards};
use bytes::Bytes;
use replog::Version;
use replog::commit::{Commit, Committed, Condition, Held, Made, Once, Step, Token};
use replog::port::{Answer, Ask, Refused};
use shardmap::{MapEpoch, Shard};

pub fn step(key: &str, value: Option<&str>, only: Condition) -> Step {
    let (key, value) = (Some(Bytes::from(key.to_owned())), value.map(|v| Bytes::from(v.to_owned())));
    Step { table: "orders".into(), key, value, only }
}

pub fn commit(shard: Shard, map_epoch: MapEpoch, steps: Vec<Step>) -> Commit {
    Commit { shard, map_epoch, steps, once: None, remote_ms: None }
}

fn one(shard: Shard, map_epoch: MapEpoch, key: &str, value: &str, only: Condition) -> Ask {
    Ask::Commit(commit(shard, map_epoch, vec![step(key, Some(value), only)]))
}

pub fn committed(answer: Answer) -> Committed {
    match answer {
        Answer::Committed(done) => done,
        other => panic!("a commit was answered {other:?}"),
    }
}

fn version(answer: Answer) -> Version {
    committed(answer).rows[0].version
}

fn unmet(seen: Option<Version>) -> Answer {
    Answer::Refused(Refused::Unmet { step: 0, seen })
}

pub fn once(key: &str, digest: u8) -> Option<Once> {
    Some(Once { key: Bytes::from(key.to_owned()), digest: [digest; 16] })
}

#[test]
fn of_conditional_writes_that_race_exactly_one_wins_each_round() {
    let (cluster, _) = Cluster::start("race");
    let shard = Shard(0);
    let mut newest = version(cluster.a.ask(&one(shard, ONE, "k", "0", Condition::Absent)));
    for round in 1..30 {
        // In one go on one connection, and from others at the same time; a plain write to another row goes between.
        let mut asks: Vec<_> =
            (0..6).map(|i| one(shard, ONE, "k", &format!("{round}/{i}"), Condition::At(newest))).collect();
        asks.insert(3, put(shard, ONE, "other", b"x".to_vec()));
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| cluster.a.ask_all(&asks))).collect();
            others.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        let won: Vec<_> =
            answers.iter().filter_map(|a| if let Answer::Committed(c) = a { Some(c) } else { None }).collect();
        assert_eq!(won.len(), 1, "round {round}: {answers:?}");
        newest = won[0].rows[0].version;
        for answer in &answers {
            let legal =
                matches!(answer, Answer::Committed(_) | Answer::Written { .. }) || *answer == unmet(Some(newest));
            assert!(legal, "the loser is told who has won: {answer:?}");
        }
    }
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_condition_sees_what_was_appended_and_not_yet_applied() {
    let (cluster, _) = Cluster::start("pending");
    let shard = Shard(2);
    // All on one connection, in one go: each is judged by the one before, whether or not that is applied.
    let asks: Vec<_> = (0..200)
        .map(|i| match i % 4 {
            0 => put(shard, ONE, "k", b"plain".to_vec()),
            1 => one(shard, ONE, "k", "there", Condition::Present),
            2 => Ask::Commit(commit(
                shard,
                ONE,
                vec![step("gone", None, Condition::Any), step("k", None, Condition::Any)],
            )),
            _ => one(shard, ONE, "k", "new", Condition::Absent),
        })
        .collect();
    let answers = cluster.a.ask_all(&asks);
    let unmet = answers.iter().filter(|a| matches!(a, Answer::Refused(Refused::Unmet { .. }))).count();
    let refused = answers.iter().filter(|a| matches!(a, Answer::Refused(_))).count();
    assert_eq!(unmet, refused, "{answers:?}");
    // A history that is one order: replay it by the versions.
    let mut done: Vec<_> = asks
        .iter()
        .zip(&answers)
        .filter_map(|(ask, a)| match a {
            Answer::Written { version, .. } => Some((version.hlc, ask)),
            Answer::Committed(c) => Some((c.rows.last().unwrap().version.hlc, ask)),
            _ => None,
        })
        .collect();
    done.sort_by_key(|(hlc, _)| *hlc);
    let mut there = false;
    for (_, ask) in done {
        if let Ask::Commit(c) = ask {
            match c.steps.last().unwrap().only {
                Condition::Present => assert!(there, "written where there was nothing"),
                Condition::Absent => assert!(!there, "written over a row"),
                Condition::Any | Condition::At(_) => {}
            }
            there = c.steps.last().unwrap().value.is_some();
        } else {
            there = true;
        }
    }
    assert_eq!(cluster.a.get(shard, "k").is_some(), there);
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_transaction_is_applied_whole_everywhere_or_not_at_all() {
    let (cluster, _) = Cluster::start("whole");
    let shard = Shard(1);
    let mint = Step { key: None, ..step("", Some("minted"), Condition::Any) };
    let steps = vec![mint, step("a", Some("1"), Condition::Any), step("b", Some("2"), Condition::Absent)];
    let done = committed(cluster.a.ask(&Ask::Commit(commit(shard, ONE, steps.clone()))));
    assert_eq!(done.rows.iter().map(|r| r.seq - done.rows[0].seq).collect::<Vec<_>>(), [0, 1, 2]);
    let id = String::from_utf8(done.rows[0].key.to_vec()).unwrap();
    let again = cluster.a.ask(&Ask::Commit(commit(shard, ONE, steps)));
    assert_eq!(again, Answer::Refused(Refused::Unmet { step: 2, seen: Some(done.rows[2].version) }));
    let gone = vec![step("a", None, Condition::At(done.rows[1].version)), step("b", Some("3"), Condition::Present)];
    committed(cluster.a.ask(&Ask::Commit(commit(shard, ONE, gone))));
    assert_eq!(cluster.compare(), 0);
    for site in cluster.sites() {
        let rows = [&id[..], "a", "b"].map(|key| site.get(shard, key));
        assert_eq!(rows, [Some("minted".into()), None, Some("3".into())], "zone {}", site.zone);
    }
}

#[test]
fn a_new_owner_knows_the_row_and_the_first_answer() {
    let (cluster, map) = Cluster::start("moved");
    let shard = Shard(0);
    let ask = |epoch, digest| {
        let mint = Step { key: None, ..step("", Some("minted"), Condition::Any) };
        let steps = vec![mint, step("k", Some("v"), Condition::Any)];
        Ask::Commit(Commit { once: once("order-1", digest), ..commit(shard, epoch, steps) })
    };
    let first = committed(cluster.a.ask(&ask(ONE, 1)));
    let version = first.rows[1].version;
    let mut map = map;
    let mut site: &Site = &cluster.a;
    for _ in 0..3 {
        site = if site.zone == A { &cluster.b } else { &cluster.a };
        map = move_shards(&cluster, &map, &shards(&[0]), site);
        let again = committed(site.ask(&ask(map.epoch(), 1)));
        assert!(again.replayed);
        assert_eq!(again.rows, first.rows, "id, version and place of the first, at zone {}", site.zone);
        assert_eq!(site.ask(&ask(map.epoch(), 2)), Answer::Refused(Refused::Reused));
        assert_eq!(site.ask(&one(shard, map.epoch(), "k", "x", Condition::Absent)), unmet(Some(version)));
        let legal = version_is(site, shard, map.epoch(), version);
        assert!(legal, "If-Match with the version that another zone gave");
    }
    assert_eq!(site.zone, B);
    assert_eq!(cluster.compare(), 0);
}

/// Does a condition on this version hold? A transaction that fails for another reason shows it and changes nothing.
fn version_is(site: &Site, shard: Shard, epoch: MapEpoch, version: Version) -> bool {
    let steps = vec![step("k", Some("x"), Condition::At(version)), step("nothing", Some("x"), Condition::Present)];
    let answer = site.ask(&Ask::Commit(commit(shard, epoch, steps)));
    answer == Answer::Refused(Refused::Unmet { step: 1, seen: None })
}

#[test]
fn a_request_that_is_repeated_while_it_is_under_way_is_done_once() {
    let (cluster, _) = Cluster::start("once");
    let shard = Shard(3);
    for round in 0..20 {
        let mint = Step { key: None, ..step("", Some("minted"), Condition::Any) };
        let ask = Ask::Commit(Commit { once: once(&format!("k{round}"), 7), ..commit(shard, ONE, vec![mint]) });
        let asks = vec![ask; 5];
        let answers: Vec<Committed> = std::thread::scope(|scope| {
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| cluster.a.ask_all(&asks))).collect();
            others.into_iter().flat_map(|t| t.join().unwrap()).map(committed).collect()
        });
        assert_eq!(answers.iter().filter(|a| !a.replayed).count(), 1);
        assert!(answers.iter().all(|a| a.rows == answers[0].rows), "{answers:?}");
    }
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn a_row_and_its_answer_survive_a_restart() {
    let (cluster, map) = Cluster::start("restart");
    let ask = Ask::Commit(Commit {
        once: once("k", 7),
        ..commit(Shard(0), ONE, vec![step("k", Some("v"), Condition::Absent)])
    });
    let first = committed(cluster.a.ask(&ask));
    cluster.a.stop();
    cluster.a.start(&map);
    cluster.a.node().on_gzs(ONE);
    cluster.wait("it takes writes", || !cluster.a.is_read_only());
    let again = committed(cluster.a.ask(&ask));
    assert!(again.replayed && again.rows == first.rows);
    let next = one(Shard(0), ONE, "k", "w", Condition::At(first.rows[0].version));
    assert!(version(cluster.a.ask(&next)) > first.rows[0].version);
    assert_eq!(cluster.compare(), 0);
}

fn remote(shard: Shard, key: &str, wait_ms: u32) -> Ask {
    Ask::Commit(Commit {
        remote_ms: Some(wait_ms),
        once: once(key, 1),
        ..commit(shard, ONE, vec![step(key, Some(key), Condition::Any)])
    })
}

#[test]
fn a_write_that_another_zone_is_to_have_says_when_none_has_it_and_is_there_once_the_link_is_back() {
    let (cluster, map) = Cluster::start("remote");
    let shard = Shard(0);
    assert_eq!(committed(cluster.a.ask(&remote(shard, "far", 20_000))).held, Held::Elsewhere);
    cluster.b.stop();
    let cut = committed(cluster.a.ask(&remote(shard, "near", 300)));
    let Held::Late(links) = &cut.held else { panic!("nobody else has it: {cut:?}") };
    assert!(String::from_utf8_lossy(links).starts_with("b: "), "{links:?}");
    assert_eq!(cluster.a.get(shard, "near").as_deref(), Some("near"), "it stands here");
    let again = committed(cluster.a.ask(&remote(shard, "near", 1)));
    assert!(again.replayed && matches!(again.held, Held::Late(_)), "{again:?}");
    // Whoever waits is told as soon as the other zone is back and has it.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| committed(cluster.a.ask(&remote(shard, "waits", 20_000))));
        cluster.b.start(&map);
        cluster.b.node().on_gzs(ONE);
        assert_eq!(waits.join().unwrap().held, Held::Elsewhere);
    });
    let again = committed(cluster.a.ask(&remote(shard, "near", 20_000)));
    assert!(again.replayed && again.held == Held::Elsewhere && again.rows == cut.rows);
    assert_eq!(cluster.compare(), 0);
    assert_eq!(cluster.b.get(shard, "near").as_deref(), Some("near"));
}

fn read_after(shard: Shard, key: &str, after: Token, wait_ms: u32) -> Ask {
    let (table, key) = ("orders".into(), Bytes::from(key.to_owned()));
    Ask::ReadAfter { shard, map_epoch: ONE, table, key, local: true, after, wait_ms }
}

#[test]
fn a_read_after_a_token_at_another_zone_sees_that_write_or_says_how_far_it_is() {
    let (cluster, map) = Cluster::start("token");
    let shard = Shard(1);
    let write = |value: &str| {
        let done = committed(cluster.a.ask(&one(shard, ONE, "k", value, Condition::Any)));
        let Made { version, seq, .. } = done.rows[0];
        Token { zone: version.zone, stream: version.stream, seq }
    };
    for round in 0..50 {
        let (value, token) = (round.to_string(), write(&round.to_string()));
        for site in cluster.sites() {
            let Answer::Row { value: read, .. } = site.ask(&read_after(shard, "k", token, 20_000)) else {
                panic!("no row")
            };
            assert_eq!(read, value, "zone {}", site.zone);
        }
    }
    let beyond = Token { seq: 1_000_000, ..write("last") };
    for site in cluster.sites() {
        let answer = site.ask(&read_after(shard, "k", beyond, 50));
        assert!(matches!(answer, Answer::Refused(Refused::NotYet { applied: 1.. })), "{answer:?}");
        for odd in [Token { stream: 0, ..beyond }, Token { zone: shardmap::Zone(9), ..beyond }] {
            let answer = site.ask(&read_after(shard, "k", odd, 50));
            assert!(matches!(answer, Answer::Refused(Refused::Invalid(_))), "{answer:?}");
        }
    }
    // Cut off, it is not told; back, it is.
    cluster.a.stop();
    cluster.a.start(&map);
    cluster.a.node().on_gzs(ONE);
    cluster.wait("it takes writes", || !cluster.a.is_read_only());
    let token = write("after");
    assert!(matches!(cluster.b.ask(&read_after(shard, "k", token, 20_000)), Answer::Row { .. }));
    assert_eq!(cluster.compare(), 0);
}

#[test]
fn first_answers_that_are_no_longer_kept_go_in_both_zones_and_those_that_are_stay() {
    let (cluster, map) = Cluster::start("forget");
    for site in cluster.sites() {
        site.stop();
        site.answers_kept_ms.store(3000, std::sync::atomic::Ordering::Relaxed);
        site.start(&map);
        site.node().on_gzs(ONE);
    }
    cluster.wait("both take writes", || cluster.sites().iter().all(|s| !s.is_read_only()));
    let ask = |site: &Site, shard: u16, key: &str| {
        let mint = Step { key: None, ..step("", Some("minted"), Condition::Any) };
        let once = once(key, 1);
        committed(site.ask(&Ask::Commit(Commit { once, ..commit(Shard(shard), ONE, vec![mint]) })))
    };
    for i in 0..200 {
        ask(&cluster.a, i % 4, &format!("old{i}"));
        ask(&cluster.b, 4 + i % 4, &format!("old{i}"));
    }
    // Asked for again and again, so that one of them is young whenever the old ones go.
    let first = ask(&cluster.a, 0, "old0").rows;
    cluster.wait("an answer is given anew", || ask(&cluster.a, 0, "old0").rows != first);
    cluster.wait("the old ones are gone", || {
        let counts = cluster.sites().map(|s| (0..2).map(|n| s.answers(n)).sum::<usize>());
        counts.iter().all(|c| *c <= 1)
    });
    assert_eq!(cluster.compare(), 0);
}
