//! Walks through the states of a `World`: all of them within a bound, or many at random.

use crate::world::{Act, Budget, Rules, World};
use std::collections::HashMap;

/// A sequence of numbers that a seed fixes: splitmix64.
pub struct Dice(u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Visits states breadth-first, at most `states_max`; says what broke, with the shortest way there, or how many it visited.
pub fn breadth_first(start: World, states_max: usize) -> Result<usize, String> {
    let mut came: HashMap<u64, (u64, Option<Act>)> = HashMap::from([(start.digest(), (0, None))]);
    let mut level = vec![start];
    while !level.is_empty() && came.len() < states_max {
        let mut next = Vec::new();
        for world in level {
            let acts = world.acts();
            let quiet = !acts.iter().any(|a| a.1);
            world.check(quiet).map_err(|what| format!("{what}\n{}", way(&came, world.digest())))?;
            let here = world.digest();
            for (act, _) in acts {
                let mut after = world.clone();
                after.act(act);
                came.entry(after.digest()).or_insert_with(|| {
                    next.push(after);
                    (here, Some(act))
                });
            }
        }
        level = next;
    }
    Ok(came.len())
}

fn way(came: &HashMap<u64, (u64, Option<Act>)>, mut at: u64) -> String {
    let mut steps = Vec::new();
    while let Some((before, Some(act))) = came.get(&at) {
        steps.push(format!("  {act:?}"));
        at = *before;
    }
    steps.reverse();
    steps.join("\n")
}

/// One run: up to `steps` steps of any kind, then only what a healed system does by itself, until it is quiet.
pub fn random(seed: u64, rules: Rules, steps: usize, most: Budget) -> Result<(), String> {
    let mut dice = Dice(seed);
    let (zones, shards) = (2 + dice.below(2), 1 + dice.below(2));
    let mut world = World::new(rules, zones, shards, 2, most);
    let mut trail = Vec::new();
    for step in 0.. {
        let mut acts = world.acts();
        let quiet = !acts.iter().any(|a| a.1);
        world.check(quiet).map_err(|what| format!("SEED={seed}: {what}\n{}", trail.join("\n")))?;
        if step >= steps {
            acts.retain(|a| a.1);
        }
        if acts.is_empty() {
            break;
        }
        // Every other step prefers progress: else the operations of a run start, but seldom end.
        let some: Vec<_> = acts.iter().filter(|a| a.1).collect();
        let act = if some.is_empty() || dice.below(2) == 0 {
            acts[dice.below(acts.len())].0
        } else {
            some[dice.below(some.len())].0
        };
        trail.push(format!("  {act:?}"));
        world.act(act);
    }
    Ok(())
}
