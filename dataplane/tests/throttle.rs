//! Live links under an operator's word, with real processes: paused, resumed, throttled, and what goes on meanwhile.

mod pair_kit;
mod process_kit;

use pair_kit::{BJ, Pair, SH, SHARDS};
use process_kit::PATIENCE;
use serde_json::Value;
use shardmap::Shard;
use std::time::{Duration, Instant};

/// Two streams: what is shipped is as long as what was written.
const LINES: &str = "cores = [0]\nstreams = 2\nsegment_mib = 1\ncompress = \"never\"";
/// bj's of stream 0; `SHARDS` are of stream 1.
const EVEN: Shard = Shard(132);

fn start(name: &str) -> Pair {
    let mut pair = Pair::new(name, LINES);
    [BJ, SH].into_iter().for_each(|at| pair.start(at));
    pair
}

fn say(pair: &Pair, what: &str) {
    pair.json(BJ, "POST", &format!("/links/{what}"), "", 200);
}

fn shipped(link: &Value) -> u64 {
    link["line_bytes"].as_u64().unwrap()
}

fn now(pair: &Pair, stream: usize) -> Value {
    pair.link(BJ, stream, "a link", |_| true)
}

#[test]
fn a_paused_link_ships_nothing_while_the_others_go_on_and_after_a_restart_until_it_is_resumed() {
    let mut pair = start("paused");
    pair.write(BJ, SHARDS[BJ], 0..20, |k| format!("{k}"));
    pair.agree(2);
    say(&pair, "pause?zone=sh&stream=1");
    pair.link(BJ, 1, "it is paused", |l| l["state"] == "paused" && l["paused"] == true && l["flight_bytes"] == 0);
    let before = shipped(&now(&pair, 1));
    let at_sh = |pair: &Pair| pair.status(SH)["streams"][1]["mirrored"]["bj"].as_u64().unwrap();
    let had = at_sh(&pair);
    pair.write(BJ, SHARDS[BJ], 20..120, |k| format!("{k}"));
    // The other stream, and the other direction of the same one, go on.
    pair.write(BJ, EVEN, 0..100, |k| format!("{k}"));
    pair.write(SH, SHARDS[SH], 0..100, |k| format!("{k}"));
    pair.within("the others go on", || (pair.has_all(BJ, 0) && pair.has_all(SH, 1)).then_some(()));
    let link = now(&pair, 1);
    assert!(link["durable_lag"].as_u64() >= Some(100) && link["state"] == "paused", "{link}");
    assert_eq!((shipped(&link), at_sh(&pair)), (before, had), "{link}");
    let (_, metrics) = pair.ask(BJ, "GET", "/metrics", "");
    assert!(metrics.contains("ezone_link_paused{stream=\"1\",zone=\"sh\"} 1"), "{metrics}");
    assert!(metrics.contains("ezone_link_paused{stream=\"0\",zone=\"sh\"} 0"), "{metrics}");
    // A restart of either side changes nothing of it.
    pair.stop(BJ);
    pair.start(BJ);
    pair.stop(SH);
    pair.start(SH);
    pair.link(BJ, 1, "it is paused still", |l| l["state"] == "paused");
    pair.write(BJ, SHARDS[BJ], 120..150, |k| format!("{k}"));
    pair.write(BJ, EVEN, 100..150, |k| format!("{k}"));
    pair.within("the other goes on", || pair.has_all(BJ, 0).then_some(()));
    // A paused link that is asked for by an operator's clear stays paused.
    say(&pair, "clear?zone=sh");
    let link = pair.link(BJ, 1, "it is paused", |l| l["state"] == "paused");
    assert_eq!((shipped(&link), at_sh(&pair)), (0, had), "{link}");
    assert_eq!(pair.read(SH, SHARDS[BJ], 20), None);
    say(&pair, "resume?zone=sh&stream=1");
    pair.agree(2);
    pair.link(BJ, 1, "it is live", |l| l["state"] == "live" && l["paused"] == false);
    assert_eq!(pair.read(SH, SHARDS[BJ], 149).as_deref(), Some("149"));
}

#[test]
fn all_links_to_a_zone_together_keep_to_the_rate_that_an_operator_has_named_until_it_is_taken_back() {
    const RATE: u64 = 200_000;
    let pair = start("throttled");
    pair.write(BJ, SHARDS[BJ], 0..20, |k| format!("{k}"));
    pair.agree(2);
    say(&pair, &format!("throttle?zone=sh&rate={RATE}"));
    (0..2).for_each(|s| drop(pair.link(BJ, s, "the rate is shown", |l| l["rate_max"] == RATE)));
    let both = |pair: &Pair| shipped(&now(pair, 0)) + shipped(&now(pair, 1));
    let (begun, before) = (Instant::now(), both(&pair));
    let value = |k: u64| format!("{k}/").repeat(2000);
    pair.write(BJ, SHARDS[BJ], 1000..1400, value);
    pair.write(BJ, EVEN, 1000..1400, value);
    let written = begun.elapsed();
    // For a few seconds: each look may find at most what the rate gives, a bucket, and the last frame of each link.
    let mut bytes = 0;
    while begun.elapsed() < written + Duration::from_secs(4) || bytes == 0 {
        bytes = both(&pair) - before;
        let most = RATE * begun.elapsed().as_millis() as u64 / 1000 + RATE / 10 + (4 << 20);
        assert!(bytes <= most, "{bytes} bytes after {:?}, at most {most}", begun.elapsed());
        assert!(begun.elapsed() < PATIENCE, "it goes on, slowly");
        std::thread::sleep(Duration::from_millis(50));
    }
    // No write was held up for it, and what is written at the other zone comes at its own pace.
    pair.write(SH, SHARDS[SH], 0..100, value);
    pair.within("the other direction is not throttled", || pair.has_all(SH, 1).then_some(()));
    say(&pair, "throttle?zone=sh&rate=off");
    (0..2).for_each(|s| drop(pair.link(BJ, s, "no rate is shown", |l| l["rate_max"].is_null())));
    pair.agree(2);
}
