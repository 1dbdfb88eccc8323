//! What must hold of ownership: each sentence of the contract explored breadth-first in small systems and at random in larger
//! ones. `SEED=n cargo test -p shardmap --test ownership random` replays one random run, step by step.

mod explore;
mod world;

use explore::{breadth_first, random};
use world::{Budget, CONTRACT, Rules, World};

const NONE: Budget =
    Budget { writes: 0, moves: 0, losses: 0, aborts: 0, crashes: 0, alone: 0, unlocks: 0, parks: 0, bumps: 0 };
const STATES_MAX: usize = 60_000;

/// Everything that must hold is checked in every state; the budget decides which sentence is put under strain.
fn holds(zones: usize, shards: usize, left: Budget, states_min: usize) {
    match breadth_first(World::new(CONTRACT, zones, shards, shards, left), STATES_MAX) {
        Ok(states) => {
            assert!(states >= states_min, "only {states} states, expected {states_min}: the walk is too short")
        }
        Err(what) => panic!("{what}"),
    }
}

#[test]
fn an_acknowledged_write_was_accepted_by_its_epochs_owner_alone() {
    holds(2, 1, Budget { writes: 3, moves: 2, losses: 1, crashes: 1, ..NONE }, 30_000);
    holds(3, 1, Budget { writes: 2, moves: 2, losses: 1, ..NONE }, STATES_MAX);
}

#[test]
fn when_all_is_healed_and_quiet_rows_and_ledgers_are_equal() {
    holds(2, 1, Budget { writes: 3, losses: 2, parks: 1, ..NONE }, 30_000);
    holds(3, 1, Budget { writes: 2, losses: 2, parks: 1, ..NONE }, STATES_MAX);
}

#[test]
fn every_acknowledged_write_is_visible_or_superseded_or_in_every_ledger() {
    holds(2, 1, Budget { writes: 3, moves: 1, losses: 1, aborts: 1, ..NONE }, 20_000);
    holds(2, 2, Budget { writes: 2, losses: 1, parks: 1, bumps: 1, ..NONE }, 20_000);
}

#[test]
fn planned_moves_alone_leave_an_empty_ledger_and_no_locks() {
    holds(3, 1, Budget { writes: 2, moves: 2, ..NONE }, 10_000);
    holds(2, 2, Budget { writes: 2, moves: 2, aborts: 1, parks: 1, ..NONE }, STATES_MAX);
}

#[test]
fn no_write_to_a_locked_row_is_accepted_and_every_lock_opens_once_the_lost_zone_is_back() {
    holds(2, 1, Budget { writes: 3, losses: 2, moves: 1, unlocks: 1, ..NONE }, 30_000);
}

#[test]
fn commit_and_abort_never_both_take_effect_and_after_an_abort_the_source_can_write() {
    holds(2, 1, Budget { writes: 2, moves: 2, aborts: 2, losses: 1, ..NONE }, 30_000);
}

#[test]
fn a_restarted_log_never_writes_a_shard_that_it_had_fenced_or_knows_it_lost() {
    holds(2, 1, Budget { writes: 2, moves: 1, losses: 1, crashes: 2, alone: 1, ..NONE }, 30_000);
}

const MANY: Budget =
    Budget { writes: 8, moves: 2, losses: 2, aborts: 2, crashes: 2, alone: 1, unlocks: 1, parks: 2, bumps: 1 };

#[test]
fn random_runs_of_larger_systems_break_nothing() {
    let seed = std::env::var("SEED").ok().map(|s| s.parse::<u64>().expect("SEED is a number"));
    let seeds = seed.map_or(1..=20_000, |s| s..=s);
    for seed in seeds {
        if let Err(what) = random(seed, CONTRACT, 60, MANY) {
            panic!("{what}");
        }
    }
}

/// Explores a system whose callers break one rule, and expects the sentence of the contract that falls.
fn noticed(zones: usize, left: Budget, expected: &str, rule: fn(&mut Rules)) {
    let mut rules = CONTRACT;
    rule(&mut rules);
    match breadth_first(World::new(rules, zones, 1, 1, left), 200_000) {
        Ok(states) => panic!("{states} states without a rule, and nothing broke: expected {expected}"),
        Err(what) => assert!(what.starts_with(expected), "expected {expected}, seen {what}"),
    }
}

#[test]
fn applying_ahead_of_the_map_is_noticed() {
    noticed(2, Budget { writes: 2, losses: 1, ..NONE }, "3: an acknowledged", |r| r.wait_for_map = false);
}

#[test]
fn a_cut_that_ignores_what_is_parked_is_noticed() {
    noticed(2, Budget { writes: 2, losses: 1, parks: 1, ..NONE }, "3: the write", |r| r.parked_cut = false);
}

#[test]
fn a_commit_that_ignores_the_positions_of_the_fence_is_noticed() {
    noticed(3, Budget { writes: 1, moves: 2, ..NONE }, "4:", |r| r.fence_positions = false);
}

#[test]
fn writing_beyond_the_own_fence_is_noticed() {
    noticed(2, Budget { writes: 1, moves: 1, ..NONE }, "7:", |r| r.obey_fence = false);
}

#[test]
fn a_map_that_is_not_stored_is_noticed() {
    noticed(2, Budget { writes: 1, losses: 1, crashes: 1, ..NONE }, "7:", |r| r.store_map = false);
}

#[test]
fn a_report_before_the_no_owner_map_is_stored_is_noticed() {
    noticed(2, Budget { writes: 1, losses: 1, crashes: 1, ..NONE }, "7:", |r| r.report_after_map = false);
}

#[test]
fn an_abort_without_compare_and_set_is_noticed() {
    noticed(2, Budget { moves: 1, aborts: 1, ..NONE }, "6: an abort", |r| r.compare_and_set = false);
}

#[test]
fn a_write_to_a_locked_row_is_noticed() {
    noticed(2, Budget { writes: 2, losses: 1, ..NONE }, "5: a write", |r| r.obey_locks = false);
}
