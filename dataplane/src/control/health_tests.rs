//! The judge of active checks, without a socket and with a clock of its own.

use super::*;
use crate::config::ProbeKind;

fn key(n: u16) -> Key {
    ("s".into(), ([127, 0, 0, 1], n).into())
}

fn wanted(rise: u32, fall: u32) -> Wanted {
    let probe = Probe { kind: ProbeKind::Tcp, every_ms: 1000, timeout_ms: 100, rise, fall, port: None };
    Wanted { probe, to: key(1).1, host: "h".into(), proxy_protocol: false, tls: None }
}

fn of(ports: std::ops::Range<u16>, rise: u32, fall: u32) -> Vec<(Key, Wanted)> {
    ports.map(|n| (key(n), wanted(rise, fall))).collect()
}

/// Checks one endpoint, good or bad as `word` says (`+`, `-`); the verdict after each, in the same letters.
fn verdicts(checks: &mut Checks, now_ms: &mut u64, word: &str) -> String {
    let each = word.bytes().map(|b| {
        *now_ms = (*now_ms).max(checks.deadline_ms().expect("there is a next one"));
        let ask = checks.next_ask(*now_ms).expect("it is due");
        let outcome = if b == b'+' { Outcome::Good } else { Outcome::Status };
        let before = checks.is_healthy(&ask.key);
        let change = checks.on_seen(&ask.key, ask.round, Seen::new(outcome, "x"), 5);
        let after = checks.is_healthy(&ask.key);
        assert_eq!(change.map(|c| c.healthy), Some(after).filter(|_| before != after), "each change is told, once");
        if after { '+' } else { '-' }
    });
    each.collect()
}

#[test]
fn so_many_in_a_row_change_the_verdict_and_the_very_first_does_alone() {
    for (rise, fall, word, expected) in [
        (2, 3, "+--+---+-++", "+++".to_string() + "+++-" + "---+"),
        (2, 3, "-", "-".into()),
        (2, 3, "-+-++", "----+".into()),
        (1, 1, "+-+-", "+-+-".into()),
        (3, 2, "--+++--", "----++-".into()),
    ] {
        let (mut checks, mut now_ms) = (Checks::new(7), 0);
        checks.renew(of(1..2, rise, fall), now_ms);
        assert!(checks.is_healthy(&key(1)), "new ones are used until their first check");
        assert_eq!(verdicts(&mut checks, &mut now_ms, word), expected, "{word} at rise {rise}, fall {fall}");
    }
}

#[test]
fn checks_come_soon_at_first_then_at_their_interval_a_tenth_earlier_or_later() {
    for seed in 0..50 {
        let (mut checks, mut now_ms) = (Checks::new(seed), 1_000_000);
        checks.renew(of(1..2, 1, 1), now_ms);
        assert!(checks.deadline_ms().unwrap() - now_ms < SOON_MS, "SEED={seed}");
        verdicts(&mut checks, &mut now_ms, "+");
        for _ in 0..20 {
            let wait_ms = checks.deadline_ms().unwrap() - now_ms;
            assert!((900..=1100).contains(&wait_ms), "SEED={seed}: {wait_ms}");
            assert!(checks.next_ask(now_ms + wait_ms - 1).is_none(), "SEED={seed}");
            verdicts(&mut checks, &mut now_ms, "+");
        }
    }
}

#[test]
fn no_more_are_under_way_than_may_be_and_everyone_has_a_turn() {
    let mut checks = Checks::new(1);
    let ports = UNDER_WAY_MAX as u16 * 2 + 1;
    checks.renew(of(0..ports, 1, 1), 0);
    let mut asked = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let round: Vec<_> = std::iter::from_fn(|| checks.next_ask(500)).collect();
        assert!(round.len() <= UNDER_WAY_MAX);
        assert_eq!(checks.deadline_ms().is_none(), round.len() == UNDER_WAY_MAX, "full: nothing to wake for");
        for ask in round {
            assert!(asked.insert(ask.key.clone()), "nobody twice before all had their turn");
            checks.on_seen(&ask.key, ask.round, Seen::new(Outcome::Good, ""), 0);
        }
    }
    assert_eq!(asked.len(), usize::from(ports));
}

#[test]
fn who_stays_keeps_its_verdict_and_who_goes_is_forgotten() {
    let (mut checks, mut now_ms) = (Checks::new(3), 0);
    checks.renew(of(1..2, 2, 2), now_ms);
    verdicts(&mut checks, &mut now_ms, "-");
    checks.renew(of(1..3, 2, 2), now_ms);
    assert!(!checks.is_healthy(&key(1)) && checks.is_healthy(&key(2)));
    checks.renew(of(1..2, 3, 3), now_ms);
    assert!(!checks.is_healthy(&key(1)), "new rules change no verdict");
    assert_eq!(verdicts(&mut checks, &mut now_ms, "+++"), "--+", "they begin a new row");
    verdicts(&mut checks, &mut now_ms, "---");
    checks.renew(vec![], now_ms);
    assert!(checks.is_healthy(&key(1)) && checks.deadline_ms().is_none() && checks.reports().next().is_none());
    checks.renew(of(1..2, 2, 2), now_ms);
    assert!(checks.is_healthy(&key(1)), "whoever comes back is new");
}

#[test]
fn what_a_check_by_old_rules_finds_says_nothing() {
    let mut checks = Checks::new(3);
    checks.renew(of(1..2, 1, 1), 0);
    let old = checks.next_ask(500).unwrap();
    checks.renew(of(1..2, 1, 2), 500);
    let new = checks.next_ask(1000).unwrap();
    assert_eq!(checks.on_seen(&old.key, old.round, Seen::new(Outcome::Late, ""), 0), None);
    assert!(checks.next_ask(1000).is_none(), "the newer one is still under way");
    assert!(checks.on_seen(&new.key, new.round, Seen::new(Outcome::Late, ""), 9).is_some_and(|c| !c.healthy));
    let report = checks.reports().next().unwrap().1.clone();
    assert_eq!((report.counts, report.changed_wall_ms), ([0, 0, 1, 0, 0, 0], 9));
    let gone = checks.next_ask(5000).unwrap();
    checks.renew(vec![], 5000);
    assert_eq!(checks.on_seen(&gone.key, gone.round, Seen::new(Outcome::Good, ""), 0), None);
    assert_eq!(checks.under_way, 0);
}

#[test]
fn what_an_endpoint_says_is_cut() {
    let long = "\u{e9}".repeat(WHY_BYTES_MAX);
    let seen = Seen::new(Outcome::Malformed, long);
    assert_eq!((seen.why.len(), seen.outcome.name()), (WHY_BYTES_MAX, "malformed"));
    for (i, (outcome, _)) in Outcome::ALL.iter().enumerate() {
        assert_eq!(*outcome as usize, i);
    }
}
