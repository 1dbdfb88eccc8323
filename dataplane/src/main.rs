//! `ezone`: where the programs are put together.

fn main() {}
