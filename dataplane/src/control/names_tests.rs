//! Names and their answers, without a resolver and with a clock of its own.

use super::*;
use crate::config::Family;

const RULES: Dns = Dns { every_ms: 10_000, wait_ms_max: 0, addresses_max: 4, family: Family::Any };

fn name(host: &str) -> Name {
    Name { host: host.into(), port: 80 }
}

fn of(hosts: &[&str]) -> BTreeSet<Name> {
    hosts.iter().map(|h| name(h)).collect()
}

fn ips(list: &str) -> Vec<IpAddr> {
    list.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

/// Gives the one name that is due this answer.
fn answered(names: &mut Names, now_ms: &mut u64, answer: Answer) -> Option<Told> {
    *now_ms = (*now_ms).max(names.deadline_ms().expect("there is a next one"));
    let asked = names.next_ask(*now_ms).expect("it is due");
    names.on_answer(&asked, answer, *now_ms, 7)
}

fn shown(names: &Names, host: &str) -> String {
    names.addresses(&name(host)).iter().map(|a| a.ip().to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn an_answer_is_taken_in_order_each_address_once_and_no_more_than_may_be() {
    for (answer, rules, expected, left_out) in [
        ("10.0.0.2 10.0.0.1 10.0.0.2", RULES, "10.0.0.1 10.0.0.2", 0),
        ("::1 127.0.0.1", RULES, "127.0.0.1 ::1", 0),
        ("::ffff:10.0.0.1 10.0.0.1", RULES, "10.0.0.1", 0),
        ("::1 127.0.0.1", Dns { family: Family::V4, ..RULES }, "127.0.0.1", 0),
        ("::1 127.0.0.1", Dns { family: Family::V6, ..RULES }, "::1", 0),
        ("0.0.0.0 10.0.0.1 :: 224.0.0.1", RULES, "10.0.0.1", 0),
        ("10.0.0.6 10.0.0.5 10.0.0.4 10.0.0.3 10.0.0.2 10.0.0.1", RULES, "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4", 2),
    ] {
        let (mut names, mut now_ms) = (Names::new(rules, 1), 0);
        names.add(of(&["a"]), 0);
        let told = answered(&mut names, &mut now_ms, Ok(ips(answer)));
        assert!(matches!(told, Some(Told::Changed(_, _, n)) if n == left_out), "{answer}");
        assert_eq!(shown(&names, "a"), expected, "{answer}");
        assert_eq!(names.addresses(&name("a"))[0].port(), 80);
    }
}

#[test]
fn a_change_is_told_once_and_another_order_is_none() {
    let (mut names, mut now_ms) = (Names::new(RULES, 1), 0);
    names.add(of(&["a"]), 0);
    assert!(answered(&mut names, &mut now_ms, Ok(ips("10.0.0.1 10.0.0.2"))).is_some());
    assert_eq!(answered(&mut names, &mut now_ms, Ok(ips("10.0.0.2 10.0.0.1"))), None);
    let told = answered(&mut names, &mut now_ms, Ok(ips("10.0.0.3")));
    assert_eq!(told, Some(Told::Changed(name("a"), vec!["10.0.0.3:80".parse().unwrap()], 0)));
}

#[test]
fn a_failure_or_an_empty_answer_keeps_what_was_known_and_is_told_when_it_begins_and_ends() {
    let (mut names, mut now_ms) = (Names::new(RULES, 1), 0);
    names.add(of(&["a"]), 0);
    answered(&mut names, &mut now_ms, Ok(ips("10.0.0.1")));
    let told = answered(&mut names, &mut now_ms, Err("no such name".into()));
    assert_eq!(told, Some(Told::Failing(name("a"), "no such name".into())));
    for bad in [Err("timed out".into()), Ok(vec![]), Ok(ips("0.0.0.0"))] {
        assert_eq!(answered(&mut names, &mut now_ms, bad), None, "once");
        assert_eq!(shown(&names, "a"), "10.0.0.1");
    }
    let known = names.known().next().unwrap().1.clone();
    assert_eq!((known.good, known.failed), (1, 4));
    assert_eq!(known.failing.unwrap(), "none of 1 addresses can be used, such as 0.0.0.0");
    assert_eq!(answered(&mut names, &mut now_ms, Ok(ips("10.0.0.1"))), Some(Told::Back(name("a"))));
    answered(&mut names, &mut now_ms, Err("no such name".into()));
    let told = answered(&mut names, &mut now_ms, Ok(ips("10.0.0.2")));
    assert!(matches!(told, Some(Told::Changed(..))) && names.missing(&of(&["a"])).is_empty());
}

#[test]
fn a_name_is_asked_for_at_its_interval_and_sooner_as_long_as_it_has_no_address() {
    for seed in 0..50 {
        let (mut names, mut now_ms) = (Names::new(RULES, seed), 1000);
        names.add(of(&["a"]), now_ms);
        assert_eq!(names.deadline_ms(), Some(1000), "at once");
        assert_eq!(
            names.missing(&of(&["a", "b"])),
            ["a:80 has no address: no answer yet", "b:80 has no address: no answer yet"]
        );
        assert!(!names.all_tried(&of(&["a"])));
        answered(&mut names, &mut now_ms, Err("no such name".into()));
        assert!(names.all_tried(&of(&["a"])));
        assert_eq!(names.missing(&of(&["a"])), ["a:80 has no address: no such name"]);
        assert_eq!(names.deadline_ms(), Some(now_ms + AGAIN_MS), "SEED={seed}");
        answered(&mut names, &mut now_ms, Ok(ips("10.0.0.1")));
        let wait_ms = names.deadline_ms().unwrap() - now_ms;
        assert!((9000..=11_000).contains(&wait_ms), "SEED={seed}: {wait_ms}");
        answered(&mut names, &mut now_ms, Err("no such name".into()));
        let wait_ms = names.deadline_ms().unwrap() - now_ms;
        assert!((9000..=11_000).contains(&wait_ms), "it has one: no hurry. SEED={seed}: {wait_ms}");
    }
}

#[test]
fn who_stays_keeps_its_addresses_and_who_goes_is_forgotten() {
    let (mut names, mut now_ms) = (Names::new(RULES, 1), 0);
    names.add(of(&["a"]), 0);
    answered(&mut names, &mut now_ms, Ok(ips("10.0.0.1")));
    names.renew(RULES, of(&["a", "b"]), now_ms);
    assert_eq!(shown(&names, "a"), "10.0.0.1");
    assert_eq!(names.next_ask(now_ms), Some(name("b")), "only what is new is asked for");
    names.renew(Dns { family: Family::V6, ..RULES }, of(&["a"]), now_ms);
    assert_eq!(names.next_ask(now_ms), Some(name("a")), "by new rules it may have others");
    assert_eq!(names.on_answer(&name("b"), Ok(ips("10.0.0.9")), now_ms, 7), None, "nobody asks for it any more");
    names.renew(RULES, of(&["b"]), now_ms);
    assert_eq!(names.on_answer(&name("a"), Ok(ips("10.0.0.9")), now_ms, 7), None);
    assert_eq!((names.under_way, shown(&names, "b").as_str()), (0, ""));
}

#[test]
fn no_more_lookups_are_under_way_than_may_be() {
    let hosts: Vec<String> = (0..UNDER_WAY_MAX + 5).map(|n| format!("n{n}")).collect();
    let mut names = Names::new(RULES, 1);
    names.add(hosts.iter().map(|h| name(h)).collect(), 0);
    let asked: Vec<_> = std::iter::from_fn(|| names.next_ask(0)).collect();
    assert_eq!((asked.len(), names.deadline_ms()), (UNDER_WAY_MAX, None), "full: nothing to wake for");
    names.on_answer(&asked[0], Ok(ips("10.0.0.1")), 0, 7);
    assert!(names.next_ask(0).is_some_and(|n| !asked.contains(&n)));
}
