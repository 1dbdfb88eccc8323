//! HTTP/1.1 as bytes: heads judged and re-framed, bodies decoded piece by piece. No socket, no clock, no allocation per head.

pub mod body;
pub mod head;
pub mod proxy;
mod survey;
pub mod target;
pub mod trailer;
pub mod write;

pub use body::{Body, Piece};
pub use head::{Request, Response, Slots, parse_request, parse_response, scan, slots};

/// What is wrong with what the other side sent, and the status that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The status that a client gets.
    pub status: u16,
    /// What is wrong.
    pub error: &'static str,
    /// What was seen.
    pub seen: String,
    /// What was expected.
    pub expected: &'static str,
}

impl Fault {
    /// A 400.
    pub fn bad(error: &'static str, seen: impl AsRef<[u8]>, expected: &'static str) -> Fault {
        Fault { status: 400, error, seen: shown(seen.as_ref()), expected }
    }
}

/// At most 80 bytes of what was seen, printable.
fn shown(seen: &[u8]) -> String {
    let cut = &seen[..seen.len().min(80)];
    cut.iter().flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect()
}
