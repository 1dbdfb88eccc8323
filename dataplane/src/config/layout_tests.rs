use super::*;

/// `cores` physical cores with `threads` each, numbered as Linux does: all first threads, then all second ones; over `nodes`
/// packages with a NUMA node each.
fn machine(cores: usize, threads: usize, nodes: usize) -> Machine {
    let of =
        |id: usize| Cpu { id, core: id % cores, package: id % cores * nodes / cores, node: id % cores * nodes / cores };
    Machine { cpus: (0..cores * threads).map(of).collect(), quota: None }
}

fn only(machine: Machine, allowed: &[usize]) -> Machine {
    Machine { cpus: machine.cpus.into_iter().filter(|c| allowed.contains(&c.id)).collect(), ..machine }
}

const BOTH: Parts = Parts { router: true, streams: Some(4) };

fn said(mode: Mode, router: Option<&[usize]>, log: Option<&[usize]>) -> Said {
    Said { mode, router: router.map(<[usize]>::to_vec), log: log.map(<[usize]>::to_vec) }
}

#[track_caller]
fn check(machine: &Machine, mode: Mode, expected: &str) -> Layout {
    let layout = place(machine, &said(mode, None, None), BOTH).unwrap();
    assert!(layout.sentence().starts_with(expected), "{}\nexpected {expected}", layout.sentence());
    assert!(!layout.router.is_empty() && !layout.log.is_empty());
    if layout.kind == Kind::Split {
        assert!(layout.router.iter().all(|c| !layout.home.contains(c)), "{layout:?}");
        assert!(layout.log.iter().all(|c| layout.home.contains(c)), "{layout:?}");
        assert_eq!(layout.router.len() + layout.home.len(), machine.within_quota().len(), "no core is forgotten");
    }
    layout
}

#[test]
fn auto_shares_a_small_machine_and_splits_a_larger_one() {
    for (machine, expected) in [
        (machine(1, 1, 1), "shared: router on core 0, log on core 0 at lower priority; auto: 1 core, split from 4 on"),
        (machine(2, 1, 1), "shared: router on cores 0-1, log on cores 0-1 at lower priority; auto: 2 cores, split"),
        (machine(3, 1, 1), "shared: router on cores 0-2, log on cores 0-2"),
        (machine(4, 1, 1), "split: router on cores 0-2, log on core 3; auto: 1 core of 4"),
        // Threads of physical core 3.
        (
            machine(4, 2, 1),
            "split: router on cores 0-2,4-6, log on cores 3,7; auto: 2 cores of 8, no physical core shared",
        ),
        (machine(16, 1, 1), "split: router on cores 0-11, log on cores 12-15; auto: 4 cores of 16"),
    ] {
        assert_eq!(check(&machine, Mode::Auto, expected).warning, None);
    }
}

#[test]
fn split_keeps_most_for_the_router_and_physical_cores_whole_where_it_can() {
    check(&machine(2, 1, 1), Mode::Split, "split: router on core 0, log on core 1; mode = \"split\": 1 core of 2");
    check(&machine(3, 1, 1), Mode::Split, "split: router on cores 0-1, log on core 2;");
    // A whole physical core of two would be half the machine.
    let expected = "split: router on cores 0-2, log on core 3; mode = \"split\": 1 core of 4, which shares its physical core \
        with the router's 1";
    check(&machine(2, 2, 1), Mode::Split, expected);
    check(&machine(1, 2, 1), Mode::Split, "split: router on core 0, log on core 1;");
    check(&machine(3, 2, 1), Mode::Split, "split: router on cores 0-1,3-4, log on cores 2,5;");
}

#[test]
fn split_on_one_core_is_shared_and_says_so() {
    let layout = check(&machine(1, 1, 1), Mode::Split, "shared: router on core 0, log on core 0");
    assert!(layout.warning.unwrap().contains("needs two cores"));
}

#[test]
fn the_logs_cores_lie_in_one_numa_node() {
    let layout =
        check(&machine(8, 2, 2), Mode::Auto, "split: router on cores 0-5,8-13, log on cores 6-7,14-15; auto: 4");
    assert!(layout.because.ends_with(", of NUMA node 1"), "{}", layout.because);
    // More of node 0 is allowed: the log is taken from there.
    let uneven = only(machine(8, 1, 2), &[0, 1, 2, 3, 5]);
    check(&uneven, Mode::Auto, "split: router on cores 0-2,5, log on core 3;");
}

#[test]
fn a_mask_with_holes_is_obeyed() {
    let holes = only(machine(8, 2, 1), &[1, 3, 4, 11, 14]);
    // 3 and 11 are one physical core; 14 is alone, its sibling is not ours.
    let layout = check(&holes, Mode::Auto, "split: router on cores 1,3-4,11, log on core 14;");
    assert!(layout.because.contains("no physical core shared"), "{}", layout.because);
    check(&only(machine(8, 1, 1), &[6]), Mode::Auto, "shared: router on core 6, log on core 6");
}

#[test]
fn a_quota_counts_as_fewer_cores() {
    let small = Machine { quota: Some(2), ..machine(16, 2, 2) };
    let layout =
        check(&small, Mode::Auto, "shared: router on cores 0-1, log on cores 0-1 at lower priority; auto: 2 cores");
    assert!(layout.because.ends_with("; a quota leaves 2 of 32 cores"), "{}", layout.because);
    let eight = Machine { quota: Some(8), ..machine(16, 2, 2) };
    check(&eight, Mode::Auto, "split: router on cores 0-5, log on cores 6-7;");
}

#[test]
fn the_log_has_no_more_cores_than_streams_and_what_is_left_of_its_physical_cores_is_its_helpers() {
    let parts = Parts { streams: Some(1), ..BOTH };
    let layout = place(&machine(4, 2, 1), &Said::default(), parts).unwrap();
    assert_eq!((layout.log, layout.home), (vec![3], vec![3, 7]));
    let layout = place(&machine(8, 2, 1), &Said::default(), Parts { streams: Some(2), ..BOTH }).unwrap();
    assert_eq!((layout.log, layout.home), (vec![6, 7], vec![6, 7, 14, 15]), "a physical core each");
    let shared = place(&machine(3, 1, 1), &Said::default(), Parts { streams: Some(2), ..BOTH }).unwrap();
    assert_eq!((shared.router, shared.log), (vec![0, 1, 2], vec![0, 1]));
}

#[test]
fn lists_win_and_what_they_leave_open_goes_by_the_mode() {
    let eight = machine(8, 1, 1);
    for (mode, router, log, expected) in [
        (Mode::Auto, Some(&[1, 0][..]), Some(&[0][..]), "lists: router on cores 0-1, log on core 0; as listed"),
        (Mode::Split, Some(&[0, 1]), Some(&[5]), "split: router on cores 0-1, log on core 5; as listed"),
        (
            Mode::Shared,
            Some(&[0, 1]),
            Some(&[1]),
            "shared: router on cores 0-1, log on core 1 at lower priority; as listed",
        ),
        (
            Mode::Auto,
            Some(&[0, 1, 2, 3, 4]),
            None,
            "split: router on cores 0-4, log on cores 5-7; the router's as listed",
        ),
        (Mode::Auto, Some(&[0, 1, 2, 3, 4, 5, 6, 7]), None, "shared: router on cores 0-7, log on cores 0-3 at lower"),
        (Mode::Shared, Some(&[0, 1]), None, "shared: router on cores 0-1, log on cores 0-1 at lower"),
        (Mode::Auto, None, Some(&[2]), "split: router on cores 0-1,3-7, log on core 2; the log's as listed"),
        (Mode::Split, None, Some(&[0, 7]), "split: router on cores 1-6, log on cores 0,7;"),
        (Mode::Shared, None, Some(&[2]), "shared: router on cores 0-7, log on core 2 at lower priority;"),
    ] {
        let said = said(mode, router, log);
        let layout = place(&eight, &said, BOTH).unwrap();
        assert!(layout.sentence().starts_with(expected), "{}\nexpected {expected}", layout.sentence());
        assert_eq!(layout.said, said);
    }
    let listed = place(&eight, &said(Mode::Auto, Some(&[1, 0]), Some(&[0])), BOTH).unwrap();
    assert_eq!(listed.router, [1, 0], "in the order of the list");
    let quota = Machine { quota: Some(2), ..eight };
    let layout = place(&quota, &said(Mode::Auto, Some(&[0, 1, 2]), None), BOTH).unwrap();
    assert_eq!(layout.log, [3, 4, 5, 6], "who lists cores has thought of the quota");
}

#[test]
fn a_mode_and_lists_that_contradict_are_refused_by_the_words_to_blame() {
    let two = machine(2, 1, 1);
    for (mode, router, log, blame, expected) in [
        (Mode::Split, Some(&[0, 1][..]), Some(&[1][..]), Blame::Log, "mode = \"split\", and [router] cores has 1 too"),
        (Mode::Shared, Some(&[0]), Some(&[1]), Blame::Log, "mode = \"shared\", and [router] cores has none of them"),
        (
            Mode::Split,
            Some(&[0, 1]),
            None,
            Blame::Router,
            "mode = \"split\", and these are all cores: the log needs one",
        ),
        (
            Mode::Split,
            None,
            Some(&[0, 1]),
            Blame::Log,
            "mode = \"split\", and these are all cores: the router needs one",
        ),
    ] {
        assert_eq!(place(&two, &said(mode, router, log), BOTH), Err((blame, expected.to_owned())));
    }
}

#[test]
fn one_part_alone_has_the_machine() {
    let eight = machine(4, 2, 1);
    let router = place(&eight, &Said::default(), Parts { router: true, streams: None }).unwrap();
    assert_eq!(router.sentence(), "router on cores 0-7; every core that may be used");
    let log = place(&eight, &Said::default(), Parts { router: false, streams: Some(3) }).unwrap();
    assert_eq!(log.sentence(), "log on cores 0-2; every core that may be used");
    let listed = place(&eight, &said(Mode::Split, Some(&[3]), None), Parts { router: true, streams: None }).unwrap();
    assert_eq!(listed.sentence(), "router on core 3; as listed");
}

#[test]
fn a_log_that_keeps_another_number_of_cores_has_its_own_first() {
    let mut layout = place(&machine(8, 1, 1), &Said::default(), BOTH).unwrap();
    layout.keep(3);
    assert_eq!(layout.log, [6, 7, 6]);
    assert!(layout.sentence().ends_with("; the log keeps its 3 cores until the node is restarted"));
    layout.keep(1);
    assert_eq!(layout.log, [6]);
}

#[test]
fn every_machine_gets_a_layout_that_uses_only_what_it_may() {
    for (cores, threads, nodes) in [(1, 1, 1), (1, 2, 1), (2, 2, 1), (5, 1, 1), (6, 2, 2), (12, 1, 3), (32, 2, 4)] {
        let whole = machine(cores, threads, nodes);
        for mask in 1u64..200 {
            let allowed: Vec<usize> = (0..cores * threads)
                .filter(|id| mask.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (id % 64) & 1 == 1)
                .collect();
            let machine = only(whole.clone(), &allowed);
            if machine.cpus.is_empty() {
                continue;
            }
            for mode in [Mode::Auto, Mode::Split, Mode::Shared] {
                let layout = check(&machine, mode, "");
                assert!(layout.router.iter().chain(&layout.log).chain(&layout.home).all(|c| allowed.contains(c)));
                assert!(layout.router.len() * 2 >= allowed.len(), "the router keeps most: {layout:?}");
            }
        }
    }
}
