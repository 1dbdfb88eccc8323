//! Reads a request's head: where it ends, what body follows, and whether the connection stays open.

use crate::body::Body;
use crate::token::{BYTES_HEADER, TOKEN_HEADER, Token};

/// A head that is not whole after so many bytes is refused.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 100;

/// What the backend needs to know of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub used: usize,
    pub body: Body,
    pub keep_alive: bool,
    /// The answer must have no body.
    pub is_head: bool,
    /// The client holds its body back until it sees `100 Continue`.
    pub wants_continue: bool,
    /// Its token, if it carries one: the answer has to show it.
    pub token: Option<Token>,
    /// How long its body was when it was made.
    pub made_bytes: Option<u64>,
}

/// The head at the start of `bytes`; `None` if it is not whole yet; else the status to refuse it with.
pub fn parse(bytes: &[u8]) -> Result<Option<Head>, u16> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(431),
        Err(_) => return Err(400),
    };
    let mut head = Head {
        used,
        body: Body::Length(0),
        keep_alive: request.version == Some(1),
        is_head: request.method == Some("HEAD"),
        wants_continue: false,
        token: None,
        made_bytes: None,
    };
    let mut length = None;
    let mut chunked = false;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = digits(header.value).ok_or(400u16)?;
            if length.is_some_and(|seen| seen != value) {
                return Err(400);
            }
            length = Some(value);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(501);
            }
            chunked = true;
        } else if header.name.eq_ignore_ascii_case("connection") {
            head.keep_alive |= names(header.value, "keep-alive");
            head.keep_alive &= !names(header.value, "close");
        } else if header.name.eq_ignore_ascii_case("expect") {
            head.wants_continue = header.value.eq_ignore_ascii_case(b"100-continue");
        } else if header.name.eq_ignore_ascii_case(TOKEN_HEADER) {
            head.token = Token::read(header.value);
        } else if header.name.eq_ignore_ascii_case(BYTES_HEADER) {
            head.made_bytes = digits(header.value);
        }
    }
    head.body = match (chunked, length) {
        (true, Some(_)) => return Err(400), // RFC 9112 §6.3: a sign of smuggling; a backend that hides it helps nobody
        (true, None) => Body::CHUNKED,
        (false, length) => Body::Length(length.unwrap_or(0)),
    };
    Ok(Some(head))
}

/// A number of decimal digits and nothing else.
pub fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a comma-separated list names `token`.
pub fn names(list: &[u8], token: &str) -> bool {
    list.split(|b| *b == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, expected: Result<(Body, bool), u16>) {
        let bytes = format!("{head}\r\n\r\n");
        let seen = parse(bytes.as_bytes()).map(|h| h.map(|h| (h.body, h.keep_alive)));
        assert_eq!(seen, expected.map(Some), "{head}");
    }

    #[test]
    fn a_head_says_its_body_and_whether_the_connection_stays() {
        check("GET / HTTP/1.1", Ok((Body::Length(0), true)));
        check("GET / HTTP/1.0", Ok((Body::Length(0), false)));
        check("GET / HTTP/1.0\r\nConnection: Keep-Alive", Ok((Body::Length(0), true)));
        check("GET / HTTP/1.1\r\nConnection: x, Close", Ok((Body::Length(0), false)));
        check("POST / HTTP/1.1\r\nContent-Length: 12", Ok((Body::Length(12), true)));
        check("POST / HTTP/1.1\r\nTransfer-Encoding: Chunked", Ok((Body::CHUNKED, true)));
    }

    #[test]
    fn framing_that_two_readers_could_take_differently_is_refused() {
        check("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", Err(400));
        check("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2", Err(400));
        check("POST / HTTP/1.1\r\nContent-Length: +1", Err(400));
        check("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999", Err(400));
        check("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", Err(501));
        check("nonsense", Err(400));
    }

    #[test]
    fn a_head_that_never_ends_is_refused_at_the_limit() {
        let mut bytes = b"GET / HTTP/1.1\r\nA: ".to_vec();
        assert_eq!(parse(&bytes), Ok(None));
        bytes.resize(HEAD_BYTES_MAX, b'x');
        assert_eq!(parse(&bytes), Err(431));
    }
}
