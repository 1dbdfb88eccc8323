//! Judges a whole trailer section: fields that say how a message is framed, routed or believed have no place in it.
//!
//! RFC 9110 §6.5.1: a sender must not put framing, routing, modifiers, authentication or content format into trailers; a
//! recipient that merges such a field lets whoever wrote the body speak as whoever wrote the head.

use super::Fault;
use super::survey::{is_disguised, is_ezone};

/// Fields of one trailer section.
const TRAILERS_MAX: usize = 32;

/// Never legal after a body. `x-ezone..`, `x-forwarded-..`, `if-..` and `proxy-..` are refused by their beginning.
const REFUSED: [&str; 32] = [
    "te",
    "age",
    "via",
    "host",
    "range",
    "vary",
    "allow",
    "cookie",
    "expect",
    "trailer",
    "upgrade",
    "x-shard",
    "location",
    "x-real-ip",
    "forwarded",
    "connection",
    "keep-alive",
    "set-cookie",
    "tracestate",
    "retry-after",
    "traceparent",
    "content-type",
    "max-forwards",
    "cache-control",
    "authorization",
    "content-range",
    "content-length",
    "idempotency-key",
    "content-encoding",
    "www-authenticate",
    "transfer-encoding",
    "authentication-info",
];

/// Checks `section`: whole lines with their CR LF, without the empty line. It may then travel on as it stands.
///
/// Errors: a malformed line, more than 32 fields, or a field that has no place here, with status 400.
pub fn check(section: &mut Vec<u8>) -> Result<(), Fault> {
    if section.is_empty() {
        return Ok(());
    }
    let mut room = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let whole = section.len();
    section.extend_from_slice(b"\r\n");
    let judged = match httparse::parse_headers(section, &mut room) {
        Ok(httparse::Status::Complete((_, fields))) => {
            let refused = fields.iter().find(|h| is_refused(h.name));
            refused
                .map(|h| Fault::bad("a field that has no place in a trailer", h.name, "a field of the content's own"))
        }
        Ok(httparse::Status::Partial) => Some(Fault::bad("malformed trailer", "half a line", "name: value")),
        Err(e) => Some(Fault::bad("malformed trailer", e.to_string(), "at most 32 lines of name: value")),
    };
    section.truncate(whole);
    judged.map_or(Ok(()), Err)
}

fn is_refused(name: &str) -> bool {
    let begins =
        |with: &str| name.len() >= with.len() && name.as_bytes()[..with.len()].eq_ignore_ascii_case(with.as_bytes());
    is_ezone(name)
        || is_disguised(name)
        || begins("x-forwarded-")
        || begins("if-")
        || begins("proxy-")
        || REFUSED.iter().any(|r| r.len() == name.len() && begins(r))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_content_pass_and_fields_that_frame_route_or_authenticate_do_not() {
        let judge = |text: &str| {
            let mut section = text.as_bytes().to_vec();
            let result = check(&mut section).map_err(|f| f.status);
            assert_eq!(section, text.as_bytes());
            result
        };
        for good in ["", "x-checksum: 1\r\n", "grpc-status: 0\r\nServer-Timing: a;dur=1\r\nETag: \"x\"\r\n", "i: 1\r\n"]
        {
            assert_eq!(judge(good), Ok(()), "{good:?}");
        }
        for name in
            REFUSED.iter().chain(&["X-Ezone", "x-ezone-hop", "X-Forwarded-For", "If-Match", "Proxy-Authorization"])
        {
            for name in [name.to_string(), name.to_uppercase()] {
                assert_eq!(judge(&format!("a: 1\r\n{name}: 1\r\n")), Err(400), "{name}");
            }
        }
        for bad in
            ["a\r\n", "a b: 1\r\n", ": 1\r\n", "a : 1\r\n", "a: \x01\r\n", "\u{e4}: 1\r\n", &"a: 1\r\n".repeat(33)]
        {
            assert_eq!(judge(bad), Err(400), "{bad:?}");
        }
    }
}
