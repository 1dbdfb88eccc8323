//! Two real zones over a bad WAN: blackouts, losses, flipped bits, a receiver that is slow, and one that is killed over and over. After
//! each: nothing lost, doubled or reordered, equal copies, each acknowledged write in both zones.
//!
//! `EZONE_WAN_BLACKOUT_S` (8), `EZONE_WAN_KILLS` (10): longer runs, as in `EZONE_WAN_BLACKOUT_S=30 EZONE_WAN_KILLS=100`. Uses `ezbench` and
//! `ezctl` beside `ezone`; where they are there already, they are taken as they are.

mod process_kit;
mod wan_world;

use rustix::process::Signal;
use std::thread::sleep;
use std::time::Duration;
use wan_world::{BJ, SH, World, is_root};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

#[test]
fn a_blackout_holds_nobody_up_and_loses_nothing() {
    if !is_root("a blackout between two namespaces") {
        return;
    }
    let mut world = World::namespaces("blackout", &["--each-way-ms", "15", "--rate", "1gbit"]);
    world.write(BJ, 500, 300);
    world.write(SH, 500, 300);
    world.writer(BJ).await_more(300);
    world.wan.order("cut");
    let before = [BJ, SH].map(|i| world.seqs(i).1);
    sleep(Duration::from_secs(number("EZONE_WAN_BLACKOUT_S", 8)));
    // Each zone goes on alone, whatever the WAN does.
    [BJ, SH].into_iter().for_each(|i| world.writer(i).await_more(300));
    let during = [BJ, SH].map(|i| world.seqs(i).1);
    assert!((0..2).all(|i| during[i] <= before[i] + 100), "{before:?} to {during:?}: that came through a cut WAN");
    assert!(world.wan.counted("cut") > 0, "the logs did not even try");
    world.wan.order("heal");
    let end = world.settle();
    assert!(end.acknowledged > 1000, "{} writes", end.acknowledged);
}

#[test]
fn one_in_a_hundred_segments_lost_loses_no_write() {
    if !is_root("losses between two namespaces") {
        return;
    }
    let mut world = World::namespaces("loss", &["--each-way-ms", "15", "--jitter-ms", "5", "--loss", "0.01"]);
    world.write(BJ, 800, 1000);
    world.write(SH, 400, 1000);
    world.writer(BJ).await_more(3000);
    let lost = world.wan.counted("lost");
    assert!(lost > 0, "nothing was lost");
    let end = world.settle();
    assert!(end.acknowledged > 4000, "{} writes, {lost} segments lost", end.acknowledged);
}

#[test]
fn flipped_bits_are_never_written() {
    let mut world = World::relayed("corrupt", &["--each-way-ms", "2", "--rate", "none"]);
    world.write(BJ, 1000, 1000);
    world.write(SH, 500, 1000);
    world.writer(BJ).await_more(500);
    world.wan.order("corrupt 0.002");
    world.writer(BJ).await_more(5000);
    let flipped = world.wan.counted("corrupted");
    assert!(flipped > 5, "{flipped} bits were flipped");
    world.wan.order("corrupt 0");
    let end = world.settle();
    assert!(end.connects > 1, "a connection with a flipped bit goes on: {}", end.said);
}

#[test]
fn a_slow_receiver_holds_no_writer_up_and_gets_all() {
    let mut world = World::relayed("slow", &["--each-way-ms", "5", "--rate", "16mbit"]);
    world.write(BJ, 1000, 4000);
    world.write(SH, 100, 300);
    world.writer(BJ).await_more(2000);
    // Twice the link's rate is written: it is behind. Then it stands still, for longer than a connection's patience.
    let (own, there) = world.seqs(BJ);
    assert!(own > there, "{own} written, {there} there: the link is not the slow part");
    world.signal(SH, Signal::STOP);
    world.writer(BJ).await_more(500);
    sleep(Duration::from_secs(4));
    world.writer(BJ).await_more(500);
    world.signal(SH, Signal::CONT);
    world.writer(SH).await_more(50);
    world.wan.order("rate none");
    let end = world.settle();
    assert!(end.acknowledged > 3000, "{} writes", end.acknowledged);
}

#[test]
fn a_receiver_that_is_killed_over_and_over_misses_and_doubles_nothing() {
    let mut world = World::relayed("kills", &["--each-way-ms", "5", "--rate", "none"]);
    world.write(BJ, 1000, 500);
    world.write(SH, 200, 300);
    for round in 0..number("EZONE_WAN_KILLS", 10) {
        let before = world.seqs(BJ).1;
        world.kill(SH);
        // Not always at the same place.
        sleep(Duration::from_millis(round * 37 % 200));
        world.spawn(SH);
        process_kit::within("the receiver goes on", || (world.seqs(BJ).1 > before + 50).then_some(()));
        world.writer(SH).await_more(1);
    }
    let end = world.settle();
    assert!(end.acknowledged > 1000, "{} writes", end.acknowledged);
}
