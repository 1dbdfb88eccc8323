//! Where a schedule comes from: a seed, or the bytes of a fuzzer, which are used up first.

use std::collections::VecDeque;

/// Numbers that decide what happens next.
pub struct Rng {
    state: u64,
    script: VecDeque<u8>,
}

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Rng {
        Rng { state: (seed ^ 0x51_7cc1_b727_220a).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, script: VecDeque::new() }
    }

    /// Decided by `script`, and once it is used up by a fixed seed.
    #[allow(dead_code, reason = "the fuzz crate uses it")]
    pub fn script(script: &[u8]) -> Rng {
        Rng { script: script.iter().copied().collect(), ..Rng::new(1) }
    }

    /// Is the script used up? (A seed's always is.)
    #[allow(dead_code, reason = "the fuzz crate uses it")]
    pub fn over(&self) -> bool {
        self.script.is_empty()
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        if let Some(first) = self.script.pop_front() {
            let second = if n > 256 { self.script.pop_front().unwrap_or(0) } else { 0 };
            return (usize::from(first) | usize::from(second) << 8) % n;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, of_1000: usize) -> bool {
        of_1000 > 0 && self.below(1000) < of_1000
    }

    /// 1 to `small` or, less often, 1 to `large`: how much is read, written or framed in one go.
    pub fn piece(&mut self, small: usize, large: usize) -> usize {
        let most = if self.below(3) == 0 { small } else { large };
        1 + self.below(most)
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
