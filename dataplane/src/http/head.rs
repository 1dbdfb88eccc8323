//! Judges request and response heads: what they say of body and connection, and which fields must not travel on.
//!
//! A head that two readers could read differently is refused (RFC 9112 §11): nothing here repairs or guesses.

use super::survey::survey;
use super::{Body, Fault, target};
use httparse::Header;
use std::mem::MaybeUninit;

/// Fields in one head; a bit of [`Fieldset`] stands for each.
pub const FIELDS_MAX: usize = 128;

/// A set of a head's fields, by their places.
pub type Fieldset = u128;

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
    /// The client takes trailers: `te: trailers`.
    pub trailers: bool,
    /// The protocols that the client would like to change to, if it may: a GET without a body whose `connection` names
    /// `upgrade`, and none of them HTTP/2.
    pub upgrade: Option<&'b [u8]>,
    /// The `host`; `None`: an HTTP/1.0 request without.
    pub host: Option<&'b [u8]>,
    /// Fields about the request's way: `via`, `forwarded`, `x-forwarded-*`, `traceparent`, `tracestate`.
    pub way: Fieldset,
    /// The tag in `x-shard`.
    pub tag: Option<&'b [u8]>,
    /// The protected fields, to be believed only from a trusted peer.
    pub ezone: Ezone<'b>,
    /// What a record store has to obey.
    pub wants: Wants<'b>,
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
    /// The protocol that a 101 changes to: `upgrade`, if `connection` names it.
    pub upgrade: Option<&'b [u8]>,
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
    /// `x-ezone-read: primary`.
    pub read_primary: bool,
    /// `x-ezone-version`: of a record.
    pub version: Option<&'b [u8]>,
    /// `x-ezone-token`: where a write is.
    pub token: Option<&'b [u8]>,
    /// `x-ezone-owner` is there: a router says with it that it has not done the request and who may.
    pub owner: bool,
    /// `x-ezone-outcome`: `unknown`, if a write may or may not have happened.
    pub outcome: Option<&'b [u8]>,
}

/// Fields that a record store has to obey.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Wants<'b> {
    /// `if-match`.
    pub if_match: Option<&'b [u8]>,
    /// `if-none-match`.
    pub if_none_match: Option<&'b [u8]>,
    /// `idempotency-key`.
    pub once: Option<&'b [u8]>,
    /// `x-ezone-ack`.
    pub ack: Option<&'b [u8]>,
    /// `x-ezone-after`.
    pub after: Option<&'b [u8]>,
    /// One of these came more than once: which of them counts is nobody's guess.
    pub twice: Option<&'b str>,
}

/// The fields of a head and which of them stay behind.
#[derive(Debug)]
struct Fields<'s, 'b> {
    all: &'s [Header<'b>],
    dropped: Fieldset,
}

impl<'b> Request<'_, 'b> {
    /// The fields that travel on.
    pub fn fields(&self) -> impl Iterator<Item = &Header<'b>> {
        self.fields.without(0)
    }

    /// The fields that travel on, but for some.
    pub fn fields_without(&self, some: Fieldset) -> impl Iterator<Item = &Header<'b>> {
        self.fields.without(some)
    }

    /// The fields about the request's way that travel on unless the router says otherwise, each with its place in the set.
    pub fn way(&self) -> impl Iterator<Item = (Fieldset, &Header<'b>)> {
        let all = self.fields.all.iter().enumerate().map(|(i, h)| (1 << i, h));
        all.filter(|(bit, _)| self.way & !self.fields.dropped & bit != 0)
    }
}

impl<'b> Response<'_, 'b> {
    /// The fields that travel on.
    pub fn fields(&self) -> impl Iterator<Item = &Header<'b>> {
        self.fields.without(0)
    }
}

impl<'b> Fields<'_, 'b> {
    fn without(&self, some: Fieldset) -> impl Iterator<Item = &Header<'b>> {
        let dropped = self.dropped | some;
        self.all.iter().enumerate().filter(move |(i, _)| dropped >> i & 1 == 0).map(|(_, h)| h)
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
        if !buf[..head_bytes_max].contains(&b'\n') {
            return Err(Fault {
                status: 414,
                ..Fault::bad("first line too long", seen, "a line within head_bytes_max")
            });
        }
        return Err(Fault { status: 431, ..Fault::bad("head too long", seen, "a head within head_bytes_max") });
    }
    *scanned = buf.len();
    Ok(None)
}

/// Judges the request head `raw`, which ends with its empty line and has at most as many fields as there is `room` for. Its
/// target is a path, or `*`: other forms go through `target::to_origin` first.
pub fn parse_request<'s, 'b>(raw: &'b [u8], room: &'s mut [MaybeUninit<Header<'b>>]) -> Result<Request<'s, 'b>, Fault> {
    let fields_max = room.len();
    let mut r = httparse::Request::new(&mut []);
    match r.parse_with_uninit_headers(raw, room) {
        Ok(httparse::Status::Complete(n)) if n == raw.len() => {}
        Ok(_) => return Err(Fault::bad("malformed head", raw, "one head up to its empty line")),
        Err(httparse::Error::TooManyHeaders) => {
            let seen = format!("more than {fields_max}");
            return Err(Fault { status: 431, ..Fault::bad("too many fields", seen, "fields within fields_max") });
        }
        Err(e) => return Err(Fault::bad("malformed head", e.to_string(), "a request head as in RFC 9112")),
    }
    let (Some(method), Some(path), Some(minor)) = (r.method, r.path, r.version) else {
        return Err(Fault::bad("malformed head", raw, "method, target and version"));
    };
    if !(path.starts_with('/') || (path == "*" && method == "OPTIONS")) || !path.is_ascii() || path.contains('#') {
        return Err(Fault::bad("unsupported request target", path, "a path of ASCII that starts with '/'"));
    }
    if method == "CONNECT" {
        return Err(target::connect(path));
    }
    let http11 = minor == 1;
    let mut seen = survey(r.headers)?;
    if seen.hosts != 1 && (http11 || seen.hosts > 1) {
        return Err(Fault::bad("not exactly one host field", seen.hosts.to_string(), "one host field"));
    }
    if let Some(host) = seen.host
        && !target::is_host(host)
        && !(host.is_empty() && path == "*")
    {
        return Err(Fault::bad("malformed host", host, "a name or an address, and perhaps a port"));
    }
    let body = match (seen.coded, seen.length) {
        (false, None) => Body::Done,
        (false, Some(n)) => Body::Length(n),
        (true, None) if http11 => Body::chunked(),
        (true, None) => return Err(Fault::bad("transfer-encoding in HTTP/1.0", "", "content-length or HTTP/1.1")),
        (true, Some(_)) => return Err(both()),
    };
    seen.settle();
    let bodiless = matches!(body, Body::Done | Body::Length(0));
    Ok(Request {
        method,
        path,
        http11,
        keep_alive: if http11 { !seen.close } else { seen.keep && !seen.close },
        body,
        expects: seen.expects && http11 && !bodiless,
        trailers: seen.trailers && http11,
        upgrade: seen.upgrade().filter(|names| http11 && method == "GET" && bodiless && !names_http2(names)),
        host: seen.host,
        way: seen.way,
        tag: seen.tag,
        ezone: seen.ezone,
        wants: seen.wants,
        fields: Fields { all: r.headers, dropped: seen.dropped },
    })
}

/// Judges the response head `raw`, which ends with its empty line.
pub fn parse_response<'s, 'b>(
    raw: &'b [u8],
    room: &'s mut [MaybeUninit<Header<'b>>],
) -> Result<Response<'s, 'b>, Fault> {
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
    let mut seen = survey(r.headers)?;
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
    seen.settle();
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
        upgrade: seen.upgrade(),
        fields: Fields { all: r.headers, dropped: seen.dropped },
    })
}

/// HTTP/2 is never passed on as an upgrade: what follows would be requests that nobody judged.
fn names_http2(protocols: &[u8]) -> bool {
    let begins = |p: &[u8], with: &[u8]| p.len() >= with.len() && p[..with.len()].eq_ignore_ascii_case(with);
    tokens(protocols).any(|p| begins(p, b"h2") || begins(p, b"http"))
}

fn both() -> Fault {
    Fault::bad("content-length and transfer-encoding", "both", "one of them, transfer-encoding in HTTP/1.1 only")
}

/// The elements of a comma-separated list.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(|t| t.trim_ascii()).filter(|t| !t.is_empty())
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
            ("CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", 501),
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
        assert_eq!(scan(&long, &mut 0, 8192).unwrap_err().status, 414);
    }
}
