//! Links that must not go on, with real processes: what an operator sees, that nothing heals itself by skipping, and how it is ended.

mod pair_kit;
mod process_kit;

use pair_kit::{BJ, NAMES, Pair, SH, SHARDS, copy, ezctl};
use serde_json::Value;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

const LINES: &str = "cores = [0]\nstreams = 1\nsegment_mib = 1";

/// Two zones with the same rows; what both directories were then is kept.
fn apart(name: &str) -> Pair {
    let mut pair = Pair::new(name, LINES);
    [BJ, SH].into_iter().for_each(|at| pair.start(at));
    pair.write(BJ, SHARDS[BJ], 0..100, |k| format!("bj {k}"));
    pair.write(SH, SHARDS[SH], 0..100, |k| format!("sh {k}"));
    pair.agree(1);
    for at in [BJ, SH] {
        pair.stop(at);
        copy(&pair.data(at), &kept(&pair, at));
    }
    pair
}

fn kept(pair: &Pair, at: usize) -> std::path::PathBuf {
    pair.dir.join(format!("{}.kept", NAMES[at]))
}

/// Puts back what was kept; what was there is kept aside.
fn put_back(pair: &Pair, at: usize, aside: &str) {
    fs::rename(pair.data(at), pair.dir.join(aside)).unwrap();
    copy(&kept(pair, at), &pair.data(at));
}

/// The link of bj to sh, once it has stopped.
fn stopped(pair: &Pair, why: &str) -> Value {
    let link = pair.link(BJ, 0, "the link stops", |l| l["stopped"].is_object());
    assert_eq!(link["stopped"]["why"], why, "{link}");
    assert_eq!(link["state"], link["stopped"]["text"], "the state says why: {link}");
    link
}

fn operator(pair: &Pair, what: &[&str]) -> (i32, String, String) {
    let admin = pair.admins[BJ].to_string();
    let (link, rest) = (["link", what[0], "--admin", &admin], &what[1..]);
    ezctl(&[&link[..], rest].concat())
}

/// Says `clear` while the reason is still there: the peer is asked once, and the link stops again.
fn clear_in_vain(pair: &Pair, why: &str) {
    let before = stopped(pair, why)["connects"].as_u64().unwrap();
    let (code, out, err) = operator(pair, &["clear", "--zone", "sh"]);
    assert!(code == 0 && out.contains("ask again"), "{code} {out} {err}");
    pair.link(BJ, 0, "the peer was asked again", |l| l["connects"].as_u64() > Some(before) && l["stopped"].is_object());
    assert_eq!(stopped(pair, why)["connects"].as_u64(), Some(before + 1), "once, for one word");
}

#[test]
fn a_link_of_logs_that_differ_stands_still_until_an_operator_has_ended_the_difference_and_cleared_it() {
    let mut pair = apart("diverged");
    [BJ, SH].into_iter().for_each(|at| pair.start(at));
    pair.write(BJ, SHARDS[BJ], 100..150, |k| format!("lost {k}"));
    pair.agree(1);
    // bj's machine is lost and comes back with what it had before; sh cannot be asked what it has.
    [BJ, SH].into_iter().for_each(|at| pair.kill(at));
    put_back(&pair, BJ, "bj.lost");
    pair.start(BJ);
    let last = pair.write(BJ, SHARDS[BJ], 100..110, |k| format!("anew {k}"));
    pair.start(SH);
    let link = stopped(&pair, "diverged");
    assert!(link["stopped"]["text"].as_str().unwrap().contains("the logs differ"), "{link}");
    assert_ne!(link["stopped"]["seen"], link["stopped"]["expected"]);
    // Both operators see it: ls with its exit code, status and figures of either side.
    let (code, out, _) = operator(&pair, &["ls"]);
    assert!(code == 1 && out.contains("diverged"), "{code} {out}");
    let (_, metrics) = pair.ask(BJ, "GET", "/metrics", "");
    assert!(metrics.contains("ezone_link_stopped{stream=\"0\",zone=\"sh\"} 1"), "{metrics}");
    let incoming = |pair: &Pair| pair.status(SH)["streams"][0]["incoming"]["bj"].clone();
    pair.within("sh shows it", || incoming(&pair).as_str()?.contains("the logs differ").then_some(()));
    // The other direction goes on, and no byte of bj's reaches sh.
    pair.write(SH, SHARDS[SH], 100..120, |k| format!("sh {k}"));
    pair.within("sh's link to bj goes on", || pair.has_all(SH, 0).then_some(()));
    let at_sh = pair.status(SH)["streams"][0]["mirrored"]["bj"].clone();
    clear_in_vain(&pair, "diverged");
    pair.write(BJ, SHARDS[BJ], 110..200, |k| format!("anew {k}"));
    clear_in_vain(&pair, "diverged"); // longer than what sh has, and still not the same
    assert_eq!(pair.status(SH)["streams"][0]["mirrored"]["bj"], at_sh);
    assert_eq!(pair.read(SH, SHARDS[BJ], 100).as_deref(), Some("lost 100"));
    // The operators compare, as the message says, and decide for bj's new writes: sh goes back to where both were the same.
    let logs = [pair.data(BJ).join("log/0"), pair.data(SH).join("mirror/bj-0")].map(|d| d.display().to_string());
    let (code, out, err) = ezctl(&["log", "diff", &logs[0], &logs[1]]);
    assert!(code == 1, "{code} {out} {err}");
    pair.stop(SH);
    put_back(&pair, SH, "sh.lost");
    pair.start(SH);
    let before = pair.link(BJ, 0, "it is still stopped", |l| l["stopped"]["why"] == "diverged")["connects"].clone();
    pair.within("sh has its own writes back from bj's copy", || pair.has_all(SH, 0).then_some(()));
    sleep(Duration::from_secs(6)); // longer than any link's own pause
    let link = stopped(&pair, "diverged");
    assert_eq!(link["connects"], before, "nothing goes on by itself");
    let (code, out, err) = operator(&pair, &["clear", "--zone", "sh"]);
    assert!(code == 0, "{code} {out} {err}");
    pair.link(BJ, 0, "the link goes on", |l| l["state"] == "live" && l["stopped"].is_null());
    pair.agree(1);
    assert!(last > 0 && pair.status(SH)["streams"][0]["incoming"].as_object().unwrap().is_empty());
    for key in [100, 109, 199] {
        assert_eq!(pair.read(SH, SHARDS[BJ], key), Some(format!("anew {key}")));
    }
    assert_eq!(pair.read(BJ, SHARDS[SH], 119).as_deref(), Some("sh 119"), "what sh wrote meanwhile is in both");
    assert_eq!(operator(&pair, &["ls"]).0, 0);
}

#[test]
fn a_copy_from_before_is_completed_from_the_other_zone_before_it_writes_and_nothing_differs() {
    let mut pair = apart("completed");
    [BJ, SH].into_iter().for_each(|at| pair.start(at));
    pair.write(BJ, SHARDS[BJ], 100..150, |k| format!("after {k}"));
    pair.agree(1);
    pair.kill(BJ);
    put_back(&pair, BJ, "bj.lost");
    pair.start(BJ); // sh is there, and is asked
    pair.write(BJ, SHARDS[BJ], 150..160, |k| format!("after {k}"));
    pair.agree(1);
    for at in [BJ, SH] {
        for key in [99, 100, 149, 159] {
            let expected = if key < 100 { format!("bj {key}") } else { format!("after {key}") };
            assert_eq!(pair.read(at, SHARDS[BJ], key), Some(expected));
        }
    }
    pair.link(BJ, 0, "the link is live", |l| l["state"] == "live");
}

#[test]
fn a_log_that_was_begun_anew_is_refused_as_another_incarnation_until_the_origins_own_is_back() {
    let mut pair = apart("anew");
    pair.start(SH);
    fs::rename(pair.data(BJ), pair.dir.join("bj.wiped")).unwrap();
    pair.start(BJ);
    pair.write(BJ, SHARDS[BJ], 0..10, |k| format!("anew {k}"));
    let link = stopped(&pair, "incarnation");
    assert!(link["stopped"]["text"].as_str().unwrap().contains("restore the origin's own log"), "{link}");
    clear_in_vain(&pair, "incarnation");
    // A seeding does not make up for it, and says so.
    let refused = pair.json(SH, "POST", "/seed?zone=bj&stream=0", "", 409);
    assert!(refused["error"].as_str().is_some_and(|e| !e.is_empty()), "{refused}");
    pair.write(SH, SHARDS[SH], 100..120, |k| format!("sh {k}"));
    pair.within("sh's link to bj goes on", || pair.has_all(SH, 0).then_some(()));
    // The operator does what the message says.
    pair.stop(BJ);
    put_back(&pair, BJ, "bj.anew");
    pair.start(BJ);
    pair.write(BJ, SHARDS[BJ], 100..110, |k| format!("bj {k}"));
    pair.agree(1);
    assert_eq!(pair.read(SH, SHARDS[BJ], 0).as_deref(), Some("bj 0"));
    assert_eq!(pair.read(SH, SHARDS[BJ], 109).as_deref(), Some("bj 109"));
    pair.link(BJ, 0, "the link is live", |l| l["state"] == "live");
}
