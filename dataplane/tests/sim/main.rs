//! The router's core under random schedules: two zones, clients and servers that stall, split, reset and lie.
//!
//! `SEED=n cargo test -p dataplane --test sim` replays one seed; `SEEDS=n` runs more of them. What is proved: each request
//! gets at most one answer, in order, and its own bytes; what may not be done twice is done at most once; what a core holds is
//! bounded; its tables agree after every step; and when everyone has gone nothing is left.

mod client;
mod ledger;
mod machine;
mod net;
mod rng;
mod store;
mod upstream;
mod wire;
mod world;

use rng::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v}: expected a whole number")))
}

/// Runs `SEED`, or `seeds` of them, and names the one that fails.
fn seeds(what: &str, seeds: u64, run: impl Fn(u64)) {
    let all = number("SEED").map_or(1..=number("SEEDS").unwrap_or(seeds), |s| s..=s);
    for seed in all {
        if let Err(why) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("{what}: SEED={seed} replays this");
            resume_unwind(why);
        }
    }
}

#[test]
fn whatever_goes_wrong_no_request_gets_anothers_bytes_and_nothing_is_left() {
    seeds("wild", 3000, |seed| World::new(Rng::new(seed), false).run(1500));
}

/// Slow readers, splits at every byte, half-closed clients, planned moves, idle upstream connections that are closed: none
/// of it may cost a client an answer.
#[test]
fn in_a_calm_world_every_request_is_answered_with_its_own_bytes() {
    seeds("calm", 1000, |seed| World::new(Rng::new(seed), true).run(1500));
}
