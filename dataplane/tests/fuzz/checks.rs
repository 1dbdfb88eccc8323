//! What must hold for any bytes from outside; the fuzz targets and the bounded run in the tests call the same functions.

use dataplane::config::Config;
use dataplane::http::{Body, Piece, parse_request, parse_response, scan, slots};

const HEAD_BYTES_MAX: usize = 8192;
/// Fields of one hop, and those that only a router writes.
const NEVER_SENT_ON: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "content-length",
    "x-ezone",
    "x-ezone-hop",
];

/// The end of a head lies at the same place however it is split.
fn head(bytes: &[u8]) -> Option<&[u8]> {
    let whole = scan(bytes, &mut 0, HEAD_BYTES_MAX);
    let (mut scanned, half) = (0, bytes.len() / 2);
    let first = scan(&bytes[..half], &mut scanned, HEAD_BYTES_MAX);
    let split = if let Ok(None) = first { scan(bytes, &mut scanned, HEAD_BYTES_MAX) } else { first };
    let end = |r: &Result<Option<usize>, _>| r.as_ref().ok().copied();
    assert_eq!(end(&whole), end(&split), "split at {half}");
    whole.ok().flatten().map(|n| &bytes[..n])
}

fn travels(name: &str, value: &[u8]) {
    assert!(!value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "{name}");
    assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':'), "{name:?}");
    assert!(!NEVER_SENT_ON.iter().any(|n| name.eq_ignore_ascii_case(n)), "{name}");
}

/// A request head is refused, or what travels on of it is clean.
pub fn request(bytes: &[u8]) {
    let Some(raw) = head(bytes) else { return };
    let mut room = slots();
    let Ok(r) = parse_request(raw, &mut room) else { return };
    assert!(!r.path.bytes().any(|b| b <= b' ' || b == 0x7f) && r.method.bytes().all(|b| b.is_ascii_graphic()));
    assert!(!matches!(r.body, Body::UntilClose), "a request that ends with the connection");
    r.fields().for_each(|h| travels(h.name, h.value));
}

/// An answer's head is refused, or what travels on of it is clean.
pub fn response(bytes: &[u8]) {
    let Some(raw) = head(bytes) else { return };
    let mut room = slots();
    let Ok(r) = parse_response(raw, &mut room) else { return };
    assert!((100..1000).contains(&r.status) && !r.reason.contains(['\r', '\n']));
    assert!(!r.keep_alive || r.body != Body::UntilClose || matches!(r.status, 204 | 304));
    r.fields().for_each(|h| travels(h.name, h.value));
}

/// Payload and length of a chunked body, read in parts of `step` bytes; `None`: malformed or not whole.
fn decode(bytes: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut data, mut used) = (Body::chunked(), vec![], 0);
    let mut end = step.min(bytes.len());
    loop {
        let (n, piece) = body.next(&bytes[used..end]).ok()?;
        let from = used;
        used += n;
        match piece {
            Piece::Data(range) => data.extend_from_slice(&bytes[from + range.start..from + range.end]),
            Piece::End => return Some((data, used)),
            Piece::More if end == bytes.len() => return None,
            Piece::More | Piece::Trailer(_) => {}
        }
        if used == end {
            if end == bytes.len() && !body.is_done() {
                return None;
            }
            end = (end + step).min(bytes.len());
        }
    }
}

/// A chunked body is the same in whatever parts it comes.
pub fn chunked(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len().max(1));
    for step in [1, 3, 7] {
        assert_eq!(whole, decode(bytes, step), "in steps of {step}");
    }
}

/// A configuration is understood, or all that is wrong with it is said.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(problems) = Config::parse("fuzz.toml", text)
    {
        assert!(!problems.to_string().is_empty());
    }
}
