//! Frames of a link: what must hold for any bytes.
#![no_main]

#[path = "../../tests/fuzz/checks.rs"]
#[allow(dead_code, reason = "each target uses one of them")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::frame(bytes));
