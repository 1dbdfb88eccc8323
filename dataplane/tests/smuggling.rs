//! Requests and answers made to be read in two ways: each whole, split at every byte, and byte by byte, through the real core.
//!
//! A hostile client's request is refused, its connection ends, and nothing of it reaches the upstream but, where the fault
//! lies in the body, a request that is visibly not whole on a connection that is closed. What is lenient (an empty line before a head,
//! leading zeros) reaches the upstream in one form only, which is written down here. A hostile upstream's answer becomes
//! a 502 or a broken connection, and no byte of it becomes the answer to another request.

mod router_table;
mod router_world;

use dataplane::router::{ConnId, Limits};
use router_world::{GET, World, status_of};

/// What must become of a hostile request.
#[derive(Clone, Copy)]
enum Fate {
    /// This status; the upstream is not even connected to.
    Refused(u16),
    /// This status; what the upstream has seen is not a whole request, and its connection is closed.
    Broken(u16),
    /// It is one request and nothing else, and reaches the upstream as these fields and this body (before `x-ezone..`).
    Passed(&'static str, &'static str),
}
use Fate::{Broken, Passed, Refused};

/// Every way to cut `raw`: whole, in two at each place, and byte by byte.
fn cuts(raw: &[u8]) -> Vec<Vec<&[u8]>> {
    let in_two = (1..raw.len()).map(|at| vec![&raw[..at], &raw[at..]]);
    [vec![raw]].into_iter().chain(in_two).chain([raw.chunks(1).collect()]).collect()
}

fn shown(raw: &[u8]) -> String {
    let cut = &raw[..raw.len().min(300)];
    cut.escape_ascii().to_string()
}

/// `POST /a` with these lines and this body, and a second request that must never be one.
fn post(fields: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n{fields}\r\n{body}GET /smuggled HTTP/1.1\r\nHost: h\r\n\
         x-shard: shopid=1\r\n\r\n"
    )
    .into_bytes()
}

fn chunked(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn with_byte(before: &str, byte: u8, after: &str) -> Vec<u8> {
    [before.as_bytes(), &[byte], after.as_bytes()].concat()
}

fn from_client(name: &str, raw: &[u8], fate: Fate) {
    for cut in cuts(raw) {
        let mut w = World::new();
        let c = w.client();
        cut.iter().for_each(|part| w.give(c, part));
        let at = || format!("{name}, first cut after {} bytes of {}", cut[0].len(), shown(raw));
        match fate {
            Refused(status) | Broken(status) => refused(&mut w, c, status, matches!(fate, Refused(_)), &at()),
            Passed(fields, body) => {
                let up = w.connects.first().unwrap_or_else(|| panic!("{}: nothing went upstream", at())).0;
                let sent = w.took(up);
                let expected = format!("{fields}x-ezone: bj\r\nx-ezone-shard: 1\r\nx-ezone-epoch: 1\r\n\r\n");
                let (head, rest) = sent.split_at(sent.find("\r\n\r\n").map_or(0, |i| i + 4));
                assert_eq!((head, unchunked(rest).as_str()), (expected.as_str(), body), "{}", at());
                assert_eq!(w.connects.len(), 1, "{}", at());
            }
        }
    }
}

/// Data of a chunked body that ends right; any other body as it is.
fn unchunked(body: &str) -> String {
    let Some(lines) = body.strip_suffix("0\r\n\r\n") else { return body.to_string() };
    lines.split("\r\n").skip(1).step_by(2).collect()
}

fn refused(w: &mut World, c: ConnId, status: u16, untouched: bool, at: &str) {
    // Whatever follows on the connection is not a request any more.
    w.give(c, GET);
    let answer = w.took(c);
    assert_eq!(status_of(&answer), status, "{at}: {answer:?}");
    assert_eq!(answer.matches("connection: close").count(), 1, "{at}: {answer:?}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{at}: {answer:?}");
    assert!(w.shut.contains(&c) || w.closed.contains(&c), "{at}: the connection stays");
    if untouched {
        assert!(w.connects.is_empty(), "{at}: something went upstream");
    }
    for (up, _) in w.connects.clone() {
        let sent = w.took(up);
        assert!(w.closed.contains(&up), "{at}: the upstream's connection stays: {sent:?}");
        assert!(!sent.ends_with("0\r\n\r\n") && !sent.contains("smuggled"), "{at}: upstream saw {sent:?}");
    }
    assert_eq!(w.counts().in_flight, 0, "{at}");
}

#[test]
fn a_body_framed_in_two_ways_is_refused() {
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Content-Length: 0\r\ntransfer-encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\ncontent-length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5,\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: \"5\"\r\n",
        "Content-Length: \r\n",
        "Content-Length: 18446744073709551621\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Content-Length: five\r\n",
        "Content-Length : 5\r\n",
        "Content-Length\t: 5\r\n",
        "Content-Length: 5\r\n Transfer-Encoding: chunked\r\n",
        "Content_Length: 5\r\nContent-Length: 5\r\nContent-Length: 0\r\n",
    ] {
        from_client("two framings", &post(fields, "0\r\n\r\n"), Refused(400));
    }
}

#[test]
fn a_transfer_encoding_that_is_not_chunked_and_only_chunked_is_refused() {
    for value in [
        "gzip, chunked",
        "chunked, gzip",
        "chunked, identity",
        "identity, chunked",
        "gzip",
        "identity",
        "chunked, chunked",
        "xchunked",
        "chunkedx",
        "x chunked",
        "chunked;q=1",
        "\"chunked\"",
        "'chunked'",
        "\u{b}chunked",
        "chunked\u{b}",
        "\u{c}chunked",
        "chun\tked",
        "chunked\u{a0}",
        ",chunked",
        "chunked,",
        "",
        "\r\n chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
    ] {
        from_client("coding", &post(&format!("Transfer-Encoding: {value}\r\n"), "0\r\n\r\n"), Refused(400));
    }
    for line in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "\tTransfer-Encoding: chunked",
        "Transfer-Encoding\r\n: chunked",
        "Transfer-Encoding\u{b}: chunked",
        "x: x\nTransfer-Encoding: chunked",
        "x: x\rTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\r\n",
    ] {
        from_client("coding's line", &post(&format!("{line}\r\n"), "0\r\n\r\n"), Refused(400));
    }
    let old = String::from_utf8(chunked("0\r\n\r\n")).unwrap().replacen("1.1", "1.0", 1);
    from_client("chunked in 1.0", old.as_bytes(), Refused(400));
    let old = old.replacen("Transfer-Encoding", "Content-Length: 5\r\nTransfer-Encoding", 1);
    from_client("both in 1.0", old.as_bytes(), Refused(400));
}

#[test]
fn lines_that_end_in_anything_but_cr_lf_are_refused() {
    let raw = |text: &str| text.as_bytes().to_vec();
    for head in [
        raw("GET /a HTTP/1.1\nHost: h\n\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\nx-shard: shopid=1\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\n\nx: 1\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\n"),
        raw("GET /a HTTP/1.1\rHost: h\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\rx-shard: shopid=1\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\r\nHost: h\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx: \r1\r\n\r\n"),
        raw("\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("\r\n\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("\rGET /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx: 1\r\n folded\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx: 1\r\n\tfolded\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\n Host: h\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\n \r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx : 1\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\n: 1\r\n\r\n"),
        raw("GET /a HTTP/1.1\r\nHost: h\r\nx y: 1\r\n\r\n"),
        raw("GET  /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("GET /a  HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("GET /a HTTP/1.1 \r\nHost: h\r\n\r\n"),
        raw(" GET /a HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("GET\t/a HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n"),
        raw("GET /a\r\nHost: h\r\n\r\n"),
        raw("GET /a\r\n\r\n"),
        raw("GET /a HTTP/2.0\r\nHost: h\r\n\r\n"),
        raw("GET /a HTTP/1.2\r\nHost: h\r\n\r\n"),
        raw("GET /a HTTP/0.9\r\nHost: h\r\n\r\n"),
        raw("GET /a HTTP/11\r\nHost: h\r\n\r\n"),
        raw("GET /a http/1.1\r\nHost: h\r\n\r\n"),
        raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        raw("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
        raw("\r\n\r\n\r\n\r\n\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n"),
    ] {
        from_client("line", &head, Refused(400));
    }
}

#[test]
fn an_illegal_byte_in_method_target_name_or_value_is_refused() {
    let controls = (0u8..0x20).chain([0x7f]);
    for b in controls.filter(|b| *b != b'\n') {
        // A tab belongs to a value; CR is in the test of lines.
        if b != b'\t' && b != b'\r' {
            from_client("value", &with_byte("GET /a HTTP/1.1\r\nHost: h\r\nx: a", b, "b\r\n\r\n"), Refused(400));
        }
        from_client("name", &with_byte("GET /a HTTP/1.1\r\nHost: h\r\nx", b, "y: 1\r\n\r\n"), Refused(400));
        from_client("target", &with_byte("GET /a", b, "b HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(400));
        from_client("method", &with_byte("GE", b, "T /a HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(400));
    }
    for b in *b"\"(),/;<=>?@[\\]{}\x80\xff" {
        from_client("name", &with_byte("GET /a HTTP/1.1\r\nHost: h\r\nx", b, "y: 1\r\n\r\n"), Refused(400));
        from_client("method", &with_byte("GE", b, "T /a HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(400));
    }
    for b in *b"#\x80\xc3\xff" {
        from_client("target", &with_byte("GET /a", b, "b HTTP/1.1\r\nHost: h\r\n\r\n"), Refused(400));
    }
    from_client("target", "GET /a\u{e4}b HTTP/1.1\r\nHost: h\r\n\r\n".as_bytes(), Refused(400));
}

#[test]
fn a_chunk_that_could_be_read_in_two_ways_breaks_the_request_off() {
    for body in [
        "\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "5 ;x\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloworld\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5;x\ny\r\nhello\r\n0\r\n\r\n",
        "5;x\ry\r\nhello\r\n0\r\n\r\n",
        "5;x\0y\r\nhello\r\n0\r\n\r\n",
        "5;x\x7fy\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffffffffffff\r\nhello",
        "0\r\n\n",
        "0\n\n",
        "0\r\n\r0",
        "0\r\nx: 1\n\r\n",
        "0\r\nx: 1\r\n folded\r\n\r\n",
        "0\r\n x: 1\r\n\r\n",
        "0\r\nx\0: 1\r\n\r\n",
        "0\r\nx: 1\0\r\n\r\n",
        "0\r\nx\r\n\r\n",
        "0\r\n: 1\r\n\r\n",
        "0\r\nx : 1\r\n\r\n",
        "0\r\nx y: 1\r\n\r\n",
    ] {
        from_client("chunk", &chunked(body), Broken(400));
    }
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(8200));
    let mut w = World::new();
    let c = w.client();
    w.give(c, chunked(&long));
    refused(&mut w, c, 400, false, "a long extension");
    let mut w = World::new();
    let c = w.client();
    w.give(c, chunked(&format!("1;{}\r\nx\r\n", "e".repeat(100)).repeat(200)));
    refused(&mut w, c, 400, false, "extensions without end");
}

/// PITFALLS: trailers that name protected fields. (Of an upstream: the test of chunks of an answer.)
#[test]
fn a_trailer_that_names_a_protected_field_breaks_the_request_off() {
    for name in [
        "Content-Length",
        "Transfer-Encoding",
        "Host",
        "X-Ezone-Shard",
        "x-ezone",
        "x-shard",
        "Connection",
        "Upgrade",
        "TE",
        "Trailer",
        "Cookie",
        "Set-Cookie",
        "Authorization",
        "Proxy-Authorization",
        "X-Forwarded-For",
        "Forwarded",
        "If-Match",
        "Content-Type",
        "Expect",
    ] {
        from_client("trailer", &chunked(&format!("5\r\nhello\r\n0\r\n{name}: 1\r\n\r\n")), Broken(400));
        from_client("trailer", &chunked(&format!("0\r\nx: 1\r\n{name}: 1\r\n\r\n")), Broken(400));
    }
}

#[test]
fn a_target_or_host_that_names_no_resource_of_ours_is_refused() {
    for (line, host, status) in [
        ("CONNECT h:443", "Host: h:443\r\n", 501),
        ("CONNECT /a", "Host: h\r\n", 501),
        ("GET *", "Host: h\r\n", 400),
        ("GET a", "Host: h\r\n", 400),
        ("GET h:80", "Host: h\r\n", 400),
        ("GET ftp://h/a", "Host: h\r\n", 400),
        ("GET http:///a", "Host: h\r\n", 400),
        ("GET http://user@h/a", "Host: h\r\n", 400),
        ("GET http://h:x/a", "Host: h\r\n", 400),
        ("GET http://h/a#b", "Host: h\r\n", 400),
        ("GET http://h/a", "", 400),
        ("GET http://h/a", "Host: h\r\nHost: h\r\n", 400),
        ("GET http://h/a", "Host: h/\r\n", 400),
        ("GET /a", "", 400),
        ("GET /a", "Host:\r\n", 400),
        ("GET /a", "Host: \t \r\n", 400),
        ("GET /a", "Host: h\r\nHost: h\r\n", 400),
        ("GET /a", "Host: h\r\nHost: i\r\n", 400),
        ("GET /a", "Host: h, i\r\n", 400),
        ("GET /a", "Host: h i\r\n", 400),
        ("GET /a", "Host: h/a\r\n", 400),
        ("GET /a", "Host: user@h\r\n", 400),
        ("GET /a", "Host: http://h\r\n", 400),
        ("GET /a", "Host: h:80:80\r\n", 400),
        ("GET /a", "Host: h:http\r\n", 400),
        ("GET /a", "Host: [::1\r\n", 400),
        ("GET /a", "Host: h\\\r\n", 400),
        ("GET /a", "Host : h\r\n", 400),
    ] {
        let raw = format!("{line} HTTP/1.1\r\n{host}x-shard: shopid=1\r\n\r\n");
        from_client("target or host", raw.as_bytes(), Refused(status));
    }
}

#[test]
fn more_fields_or_a_longer_target_than_configured_have_their_own_statuses() {
    let limits = Limits { fields_max: 10, uri_bytes_max: 100, ..Limits::default() };
    for (raw, status) in [
        (format!("GET /a HTTP/1.1\r\nHost: h\r\n{}\r\n", "x: 1\r\n".repeat(10)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(100)), 414),
    ] {
        for cut in cuts(raw.as_bytes()) {
            let mut w = World::with(limits);
            let c = w.client();
            cut.iter().for_each(|part| w.give(c, part));
            refused(&mut w, c, status, true, &raw);
        }
    }
    let mut w = World::with(limits);
    let c = w.client();
    w.give(
        c,
        format!("GET /a{} HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n{}\r\n", "a".repeat(98), "x: 1\r\n".repeat(8)),
    );
    assert_eq!(w.connects.len(), 1, "the limit itself is legal");
}

#[test]
fn what_is_lenient_reaches_the_upstream_in_one_form() {
    let head = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n";
    let whole = |fields: &str, body: &str| format!("{head}{fields}\r\n{body}").into_bytes();
    let coded = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\ntransfer-encoding: chunked\r\n";
    let sized = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\ncontent-length: 5\r\n";
    let plain = "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n";
    for (raw, fields, body) in [
        (whole("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), coded, "hello"),
        (whole("TRANSFER-ENCODING: CHUNKED\r\n", "5\r\nhello\r\n0\r\n\r\n"), coded, "hello"),
        (whole("Transfer-Encoding:chunked \t\r\n", "5\r\nhello\r\n0\r\n\r\n"), coded, "hello"),
        (whole("Transfer-Encoding: chunked\r\n", "0005;a=\"b\";c\r\nhello\r\n000\r\n\r\n"), coded, "hello"),
        (whole("Content-Length: 0005\r\n", "hello"), sized, "hello"),
        (whole("content-length:5\r\n", "hello"), sized, "hello"),
        (whole("Content_Length: 7\r\nContent-Length: 5\r\n", "hello"), "", "hello"),
        (whole("Connection: content-length, transfer-encoding\r\nContent-Length: 5\r\n", "hello"), sized, "hello"),
        (whole("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", "1\r\nx\r\n0\r\n\r\n"), coded, "x"),
        (whole("", ""), plain, ""),
        ([b"\r\n\r\n".to_vec(), whole("", "")].concat(), plain, ""),
        (
            b"POST http://i:1/a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\n\r\n".to_vec(),
            "POST /a HTTP/1.1\r\nhost: i:1\r\nx-shard: shopid=1\r\n",
            "",
        ),
        (
            b"POST /a HTTP/1.0\r\nx-shard: shopid=1\r\n\r\n".to_vec(),
            "POST /a HTTP/1.1\r\nx-shard: shopid=1\r\nhost: 127.0.0.1:1\r\n",
            "",
        ),
    ] {
        let underscore =
            "POST /a HTTP/1.1\r\nHost: h\r\nx-shard: shopid=1\r\nContent_Length: 7\r\ncontent-length: 5\r\n";
        from_client("lenient", &raw, Passed(if fields.is_empty() { underscore } else { fields }, body));
    }
}

#[test]
fn a_head_without_end_is_refused_however_slowly_it_comes() {
    let limits = Limits { head_bytes_max: 1000, ..Limits::default() };
    for (name, raw, status) in [
        ("line", [b"GET /a".as_slice(), &[b'a'; 2000]].concat(), 414),
        ("field", [b"GET /a HTTP/1.1\r\nHost: h\r\nx: ".as_slice(), &[b'a'; 2000]].concat(), 431),
        ("fields", [b"GET /a HTTP/1.1\r\nHost: h\r\n".as_slice(), &b"x: 1\r\n".repeat(300)].concat(), 431),
    ] {
        for step in [1, 7, 2000] {
            let mut w = World::with(limits);
            let c = w.client();
            raw.chunks(step).for_each(|part| w.give(c, part));
            refused(&mut w, c, status, true, name);
        }
    }
}

/// What must become of a hostile answer.
#[derive(Clone, Copy)]
enum Answer {
    /// A 502 for the client, whose connection stays; the upstream's is closed.
    BadGateway,
    /// The answer had begun: both connections are closed, and the client's answer is visibly not whole.
    CutOff,
    /// The client gets this status and this body; the upstream's connection is closed, for its next byte is nobody's.
    Closed(u16, &'static str),
}
use Answer::{BadGateway, Closed, CutOff};

fn from_upstream(name: &str, method: &str, raw: &[u8], fate: Answer) {
    for cut in cuts(raw) {
        let mut w = World::new();
        let c = w.client();
        w.give(c, GET.replace("GET", method));
        let up = w.last_connect();
        w.took(up);
        cut.iter().for_each(|part| w.give(up, part));
        let at = format!("{name}, first cut after {} bytes of {}", cut[0].len(), shown(raw));
        let got = w.took(c);
        assert!(w.closed.contains(&up), "{at}: the upstream's connection stays; the client got {got:?}");
        assert!(!got.contains("evil"), "{at}: the client got {got:?}");
        match fate {
            BadGateway => assert_eq!(status_of(&got), 502, "{at}: {got:?}"),
            CutOff => {
                assert!(w.closed.contains(&c) && !got.ends_with("0\r\n\r\n"), "{at}: {got:?}");
                assert!(got.matches("HTTP/1.1").count() <= 1, "{at}: {got:?}");
                continue;
            }
            Closed(status, body) => {
                assert_eq!(status_of(&got), status, "{at}: {got:?}");
                assert!(got.ends_with(&format!("\r\n\r\n{body}")), "{at}: {got:?}");
            }
        }
        // The next request has another connection and its own answer.
        w.give(c, GET);
        assert_eq!(w.connects.len(), 2, "{at}");
        let up = w.last_connect();
        w.give(up, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood");
        assert!(w.took(c).ends_with("\r\n\r\ngood"), "{at}");
        assert_eq!(w.counts().in_flight, 0, "{at}");
    }
}

const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

#[test]
fn an_answer_whose_head_could_be_read_in_two_ways_is_a_502() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: 1\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 4\n\n",
        "HTTP/1.1 200 OK\r\nx: 1\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: 1\rContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx\x01: 1\r\n\r\n",
        "HTTP/1.1 200 O\x00K\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 000 Low\r\n\r\n",
        "HTTP/1.1 600 High\r\n\r\n",
        "HTTP/1.1 999 High\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "<html>\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
    ] {
        from_upstream("head", "GET", format!("{head}{EVIL}").as_bytes(), BadGateway);
    }
}

#[test]
fn a_chunk_of_an_answer_that_could_be_read_in_two_ways_cuts_the_answer_off() {
    for body in [
        "zz\r\n",
        "4 \r\ngood\r\n0\r\n\r\n",
        "+4\r\ngood\r\n0\r\n\r\n",
        "0x4\r\ngood\r\n0\r\n\r\n",
        "4\ngood\r\n0\r\n\r\n",
        "4\r\ngoodX\r\n0\r\n\r\n",
        "4\r\ngood\n0\r\n\r\n",
        "10000000000000004\r\ngood\r\n0\r\n\r\n",
        "0\r\nx: 1\n\r\n",
        "0\r\n x: 1\r\n\r\n",
        "0\r\nSet-Cookie: a=evil\r\n\r\n",
        "0\r\nx-ezone: evil\r\n\r\n",
        "0\r\nContent-Length: 4\r\n\r\n",
    ] {
        let raw = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}{EVIL}");
        from_upstream("chunk", "GET", raw.as_bytes(), CutOff);
    }
}

#[test]
fn bytes_after_an_answer_without_a_body_and_answers_that_nobody_asked_for_are_thrown_away() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood";
    for (method, head, status, body) in [
        ("GET", ok, 200, "good"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 62\r\n\r\n", 304, ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 304, ""),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 62\r\n\r\n", 200, ""),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, ""),
    ] {
        from_upstream("after", method, format!("{head}{EVIL}").as_bytes(), Closed(status, body));
    }
    // A 204 that claims a body: its bytes may come later, so its connection is not kept even if they have not.
    for head in [
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n",
    ] {
        from_upstream("claims", "GET", head.as_bytes(), Closed(204, ""));
    }
}

#[test]
fn an_answer_before_any_request_ends_the_connection() {
    let mut w = World::new();
    w.slow_connects = true;
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.slow_connects = false;
    w.core.on_connected(up, w.now);
    w.run();
    w.give(up, EVIL.replace("evil", "good"));
    assert!(w.took(c).ends_with("good"));
    w.give(up, EVIL);
    assert!(w.closed.contains(&up), "an idle connection that speaks is closed");
    w.give(c, GET);
    assert_eq!(w.connects.len(), 2);
    assert_eq!(w.took(c), "");
}

#[test]
fn a_head_of_an_answer_without_end_is_a_502() {
    let limits = Limits { head_bytes_max: 1000, ..Limits::default() };
    for raw in [
        [b"HTTP/1.1 200 ".as_slice(), &[b'a'; 2000]].concat(),
        [b"HTTP/1.1 200 OK\r\nx: ".as_slice(), &[b'a'; 2000]].concat(),
        [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"x: 1\r\n".repeat(300)].concat(),
        [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"x: 1\r\n".repeat(140), b"\r\n"].concat(),
    ] {
        for step in [1, 7, 2000] {
            let mut w = World::with(limits);
            let c = w.client();
            w.give(c, GET);
            let up = w.last_connect();
            raw.chunks(step).for_each(|part| w.give(up, part));
            assert_eq!(status_of(&w.took(c)), 502);
            assert!(w.closed.contains(&up));
        }
    }
}

#[test]
fn a_field_value_cannot_split_an_answer() {
    // What the upstream echoes has no CR or LF left that could begin a line; the rest travels as one value.
    let mut w = World::new();
    let c = w.client();
    w.give(c, GET);
    let up = w.last_connect();
    w.give(up, "HTTP/1.1 302 Found\r\nLocation: /%0d%0aSet-Cookie:%20a=b\r\nContent-Length: 0\r\n\r\n");
    let got = w.took(c);
    assert!(got.contains("Location: /%0d%0aSet-Cookie:%20a=b\r\n") && !got.contains("\r\nSet-Cookie"), "{got}");
}
