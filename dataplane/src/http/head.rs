//! Judges request and response heads: what they say of body and connection, and which fields must not travel on.
//!
//! A head that two readers could read differently is refused (RFC 9112 §11): nothing here repairs or guesses.

use super::{Body, Fault};
use httparse::Header;
use std::mem::MaybeUninit;

/// Fields in one head; a bit of `u64` stands for each.
pub const FIELDS_MAX: usize = 64;

/// Room for the fields of one head, on the caller's stack.
pub type Slots<'b> = [MaybeUninit<Header<'b>>; FIELDS_MAX];

/// Empty room for a head's fields.
pub fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// A request head that was understood.
#[derive(Debug)]
pub struct Request<'s, 'b> {
    /// The method, as sent.
    pub method: &'b str,
    /// The target: a path with its query, or `*`.
    pub path: &'b str,
    /// HTTP/1.1 rather than 1.0.
    pub http11: bool,
    /// May the connection stay after the answer?
    pub keep_alive: bool,
    /// How the body is framed.
    pub body: Body,
    /// The client waits for `100 Continue`.
    pub expects: bool,
    /// The tag in `x-shard`.
    pub tag: Option<&'b [u8]>,
    /// The protected fields, to be believed only from a trusted peer.
    pub ezone: Ezone<'b>,
    /// Conditions that a store would have to obey: `if-match`, `idempotency-key`, `x-ezone-ack`.
    pub condition: Option<&'b str>,
    fields: Fields<'s, 'b>,
}

/// A response head that was understood.
#[derive(Debug)]
pub struct Response<'s, 'b> {
    /// The status.
    pub status: u16,
    /// The reason phrase.
    pub reason: &'b str,
    /// May the connection stay?
    pub keep_alive: bool,
    /// How the body is framed (before HEAD and the statuses without a body are looked at).
    pub body: Body,
    /// The length that it names, which an answer to HEAD may name without a body.
    pub length: Option<u64>,
    /// The protected fields, to be believed only from a peer.
    pub ezone: Ezone<'b>,
    fields: Fields<'s, 'b>,
}

/// The fields `x-ezone*` of a head.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Ezone<'b> {
    /// `x-ezone`: the name of the zone that served.
    pub zone: Option<&'b [u8]>,
    /// `x-ezone-shard`.
    pub shard: Option<u16>,
    /// `x-ezone-epoch`.
    pub epoch: Option<u64>,
    /// `x-ezone-hop` is there.
    pub hop: bool,
    /// `x-ezone-read: local`.
    pub read_local: bool,
    /// `x-ezone-version`: of a record.
    pub version: Option<&'b [u8]>,
    /// `x-ezone-outcome`: `unknown`, if a write may or may not have happened.
    pub outcome: Option<&'b [u8]>,
}

/// The fields of a head and which of them stay behind.
#[derive(Debug)]
struct Fields<'s, 'b> {
    all: &'s [Header<'b>],
    dropped: u64,
}

impl<'b> Request<'_, 'b> {
    /// The fields that travel on.
    pub fn fields(&self) -> impl Iterator<Item = &Header<'b>> {
        self.fields.kept()
    }
}

impl<'b> Response<'_, 'b> {
    /// The fields that travel on.
    pub fn fields(&self) -> impl Iterator<Item = &Header<'b>> {
        self.fields.kept()
    }
}

impl<'b> Fields<'_, 'b> {
    fn kept(&self) -> impl Iterator<Item = &Header<'b>> {
        self.all.iter().enumerate().filter(|(i, _)| self.dropped >> i & 1 == 0).map(|(_, h)| h)
    }
}

/// Looks for the end of a head: the length of the head with its empty line, or `None` while it is not there. `scanned` keeps
/// how far earlier calls have looked. An empty line at the very start is a head of 2 bytes, for the caller to skip.
pub fn scan(buf: &[u8], scanned: &mut usize, head_bytes_max: usize) -> Result<Option<usize>, Fault> {
    for lf in memchr::memchr_iter(b'\n', &buf[*scanned..]).map(|i| i + *scanned) {
        if lf >= head_bytes_max {
            break;
        }
        if lf == 0 || buf[lf - 1] != b'\r' {
            return Err(Fault::bad("bare LF in the head", &buf[..=lf], "lines that end in CR LF"));
        }
        if lf == 1 || buf[lf - 2] == b'\n' {
            return Ok(Some(lf + 1));
        }
    }
    if buf.len() > head_bytes_max {
        let seen = format!("more than {head_bytes_max} bytes");
        return Err(Fault { status: 431, ..Fault::bad("head too long", seen, "a head within head_bytes_max") });
    }
    *scanned = buf.len();
    Ok(None)
}

/// Judges the request head `raw`, which ends with its empty line.
pub fn parse_request<'s, 'b>(raw: &'b [u8], room: &'s mut Slots<'b>) -> Result<Request<'s, 'b>, Fault> {
    let mut r = httparse::Request::new(&mut []);
    match r.parse_with_uninit_headers(raw, room) {
        Ok(httparse::Status::Complete(n)) if n == raw.len() => {}
        Ok(_) => return Err(Fault::bad("malformed head", raw, "one head up to its empty line")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Fault { status: 431, ..Fault::bad("too many fields", "more than 64", "at most 64 fields") });
        }
        Err(e) => return Err(Fault::bad("malformed head", e.to_string(), "a request head as in RFC 9112")),
    }
    let (Some(method), Some(path), Some(minor)) = (r.method, r.path, r.version) else {
        return Err(Fault::bad("malformed head", raw, "method, target and version"));
    };
    if !(path.starts_with('/') || (path == "*" && method == "OPTIONS")) || !path.is_ascii() || path.contains('#') {
        return Err(Fault::bad("unsupported request target", path, "a path of ASCII that starts with '/'"));
    }
    let http11 = minor == 1;
    let seen = survey(r.headers)?;
    if seen.hosts != 1 && (http11 || seen.hosts > 1) {
        return Err(Fault::bad("not exactly one host field", seen.hosts.to_string(), "one host field"));
    }
    let body = match (seen.coded, seen.length) {
        (false, None) => Body::Done,
        (false, Some(n)) => Body::Length(n),
        (true, None) if http11 => Body::chunked(),
        (true, None) => return Err(Fault::bad("transfer-encoding in HTTP/1.0", "", "content-length or HTTP/1.1")),
        (true, Some(_)) => return Err(both()),
    };
    Ok(Request {
        method,
        path,
        http11,
        keep_alive: if http11 { !seen.close } else { seen.keep && !seen.close },
        body,
        expects: seen.expects && http11 && !matches!(body, Body::Done | Body::Length(0)),
        tag: seen.tag,
        ezone: seen.ezone,
        condition: seen.condition,
        fields: Fields { all: r.headers, dropped: seen.dropped },
    })
}

/// Judges the response head `raw`, which ends with its empty line.
pub fn parse_response<'s, 'b>(raw: &'b [u8], room: &'s mut Slots<'b>) -> Result<Response<'s, 'b>, Fault> {
    let mut r = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut r, raw, room) {
        Ok(httparse::Status::Complete(n)) if n == raw.len() => {}
        Ok(_) => return Err(Fault::bad("malformed response head", raw, "one head up to its empty line")),
        Err(e) => return Err(Fault::bad("malformed response head", e.to_string(), "a response head as in RFC 9112")),
    }
    let (Some(status), Some(minor)) = (r.code, r.version) else {
        return Err(Fault::bad("malformed response head", raw, "version and status"));
    };
    if !(100..600).contains(&status) {
        return Err(Fault::bad("malformed status", status.to_string(), "a status from 100 to 599"));
    }
    let seen = survey(r.headers)?;
    let claims_body = seen.coded || seen.length.is_some_and(|n| n > 0);
    if status < 200 && claims_body {
        return Err(Fault::bad("a body in a 1xx answer", status.to_string(), "none, as in RFC 9112 §6.3"));
    }
    let body = match (seen.coded, seen.length) {
        (false, None) => Body::UntilClose,
        (false, Some(n)) => Body::Length(n),
        (true, None) if minor == 1 => Body::chunked(),
        (true, _) => return Err(both()),
    };
    Ok(Response {
        status,
        reason: r.reason.unwrap_or(""),
        // A 204 that claims a body may send one, later.
        keep_alive: !(status == 204 && claims_body)
            && (body != Body::UntilClose || matches!(status, 204 | 304))
            && if minor == 1 { !seen.close } else { seen.keep && !seen.close },
        body,
        length: seen.length,
        ezone: seen.ezone,
        fields: Fields { all: r.headers, dropped: seen.dropped },
    })
}

fn both() -> Fault {
    Fault::bad("content-length and transfer-encoding", "both", "one of them, transfer-encoding in HTTP/1.1 only")
}

/// What the fields of one head say.
#[derive(Default)]
struct Survey<'b> {
    dropped: u64,
    hosts: u32,
    length: Option<u64>,
    coded: bool,
    close: bool,
    keep: bool,
    expects: bool,
    tag: Option<&'b [u8]>,
    ezone: Ezone<'b>,
    condition: Option<&'b str>,
    /// `connection` fields that name something beside `close` and `keep-alive`.
    nominating: u64,
}

fn survey<'b>(all: &[Header<'b>]) -> Result<Survey<'b>, Fault> {
    let mut s = Survey::default();
    for (i, h) in all.iter().enumerate() {
        if s.field(h.name, h.value, i)? {
            s.dropped |= 1 << i;
        }
    }
    for (i, h) in all.iter().enumerate() {
        if s.nominating >> i & 1 == 1 {
            s.nominate(all, h.value);
        }
    }
    Ok(s)
}

impl<'b> Survey<'b> {
    /// Takes note of one field; true if it stays behind.
    fn field(&mut self, name: &'b str, value: &'b [u8], index: usize) -> Result<bool, Fault> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => return Ok(true),
            4 if is("host") => self.hosts += 1,
            6 if is("expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    let fault = Fault::bad("unknown expectation", value, "100-continue");
                    return Err(Fault { status: 417, ..fault });
                }
                self.expects = true;
                return Ok(true);
            }
            7 if is("x-shard") && self.tag.replace(value).is_some() => {
                return Err(Fault::bad("several x-shard fields", value, "one tag"));
            }
            7 if is("upgrade") || is("trailer") => return Ok(true),
            8 if is("if-match") => self.condition = Some(name),
            10 if is("connection") => {
                self.connection(value, index);
                return Ok(true);
            }
            10 if is("keep-alive") => return Ok(true),
            14 if is("content-length") => {
                let n =
                    length(value).ok_or_else(|| Fault::bad("malformed content-length", value, "one whole number"))?;
                if self.length.replace(n).is_some() {
                    return Err(Fault::bad("several content-length fields", value, "one content-length"));
                }
                return Ok(true);
            }
            15 if is("idempotency-key") => self.condition = Some(name),
            16 if is("proxy-connection") => return Ok(true),
            17 if is("transfer-encoding") => {
                if self.coded || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::bad("unsupported transfer-encoding", value, "chunked, once"));
                }
                self.coded = true;
                return Ok(true);
            }
            _ => {}
        }
        if is_ezone(name) {
            self.protected(name, value)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn connection(&mut self, value: &[u8], index: usize) {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep = true;
            } else {
                self.nominating |= 1 << index;
            }
        }
    }

    fn protected(&mut self, name: &'b str, value: &'b [u8]) -> Result<(), Fault> {
        let bad = || Fault::bad("malformed x-ezone field", value, "a whole number");
        let e = &mut self.ezone;
        match name[7..].to_ascii_lowercase().as_str() {
            "" => e.zone = Some(value),
            "-shard" => e.shard = Some(length(value).and_then(|n| u16::try_from(n).ok()).ok_or_else(bad)?),
            "-epoch" => e.epoch = Some(length(value).ok_or_else(bad)?),
            "-hop" => e.hop = true,
            "-read" => e.read_local = value.eq_ignore_ascii_case(b"local"),
            "-version" => e.version = Some(value),
            "-outcome" => e.outcome = Some(value),
            "-ack" => self.condition = Some(name),
            _ => {}
        }
        Ok(())
    }

    /// Drops the fields that a `connection` field names, but for those that it has no say in.
    fn nominate(&mut self, all: &[Header<'_>], value: &[u8]) {
        for token in tokens(value) {
            for (i, h) in all.iter().enumerate() {
                let safe = ["host", "x-shard", "content-length", "transfer-encoding"];
                if h.name.as_bytes().eq_ignore_ascii_case(token) && !safe.iter().any(|s| h.name.eq_ignore_ascii_case(s))
                {
                    self.dropped |= 1 << i;
                }
            }
        }
    }
}

fn is_ezone(name: &str) -> bool {
    name.len() >= 7 && name.as_bytes()[..7].eq_ignore_ascii_case(b"x-ezone")
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(|t| t.trim_ascii()).filter(|t| !t.is_empty())
}

/// A whole number of at most 18 digits and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(raw: &[u8]) -> Result<String, u16> {
        let mut scanned = 0;
        let n = scan(raw, &mut scanned, 8192).map_err(|f| f.status)?.ok_or(0u16)?;
        let mut room = slots();
        let r = parse_request(&raw[..n], &mut room).map_err(|f| f.status)?;
        let kept: Vec<_> = r.fields().map(|h| h.name).collect();
        Ok(format!("{} {} {:?} keep={} {}", r.method, r.path, r.body, r.keep_alive, kept.join(",")))
    }

    #[test]
    fn a_head_that_could_be_read_in_two_ways_is_refused() {
        let bad = [
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: a\n\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\nx: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx: a\rb\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx: a\0b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx\x01: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx-shard: a\r\nx-shard: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nx-ezone-epoch: -1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
        ];
        for (raw, status) in bad {
            assert_eq!(judge(raw.as_bytes()), Err(status), "{raw:?}");
        }
    }

    #[test]
    fn fields_of_one_hop_stay_behind_and_protected_fields_cannot_be_nominated_away() {
        let check = |raw: &str, expected: &str| assert_eq!(judge(raw.as_bytes()).as_deref(), Ok(expected), "{raw:?}");
        check("GET /a?b HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n", "GET /a?b Done keep=true Host,X");
        check(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: x-one, Host, x-shard, close, Content-Length\r\nX-One: 1\r\nx-shard: t\r\n\
             Content-Length: 3\r\nTE: trailers\r\nUpgrade: h2c\r\nKeep-Alive: 5\r\nProxy-Connection: a\r\nTrailer: x\r\n\r\n",
            "POST / Length(3) keep=false Host,x-shard",
        );
        check(
            "GET / HTTP/1.1\r\nhost: a\r\nx-EZONE-hop: 1\r\nX-Ezone: bj\r\nx-ezonefoo: 1\r\n\r\n",
            "GET / Done keep=true host",
        );
        check("GET / HTTP/1.0\r\n\r\n", "GET / Done keep=false ");
        check("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET / Done keep=true ");
        check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * Done keep=true Host");
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_is_split() {
        let raw = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET";
        for at in 0..=raw.len() {
            let mut scanned = 0;
            let first = scan(&raw[..at], &mut scanned, 8192).unwrap();
            let end = if first.is_some() { first } else { scan(raw, &mut scanned, 8192).unwrap() };
            assert_eq!(end, Some(raw.len() - 3), "split at {at}");
        }
        let long = [b'a'; 9000];
        assert_eq!(scan(&long, &mut 0, 8192).unwrap_err().status, 431);
    }
}
