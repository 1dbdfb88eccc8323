//! Request targets and hosts: what names an authority legally, and absolute targets made into paths (RFC 9112 §3.2).

use super::Fault;
use super::head::slots;
use httparse::Header;

/// Is it `host [":" port]` as in RFC 9110 §7.2, and not empty? Names, IPv4 addresses, and IPv6 addresses in brackets.
pub fn is_host(value: &[u8]) -> bool {
    let (host, rest) = match value.first() {
        Some(b'[') => match value.iter().position(|b| *b == b']') {
            Some(end) => (&value[1..end], &value[end + 1..]),
            None => return false,
        },
        Some(_) => value.split_at(value.iter().position(|b| *b == b':').unwrap_or(value.len())),
        None => return false,
    };
    let legal = match value[0] {
        b'[' => host.len() >= 2 && host.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')),
        _ => !host.is_empty() && host.iter().all(|b| OF_NAME[*b as usize]),
    };
    let port = match rest {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    legal && port && value.len() <= HOST_BYTES_MAX
}

/// A name of 255 bytes (RFC 3986 §3.2.2, after the DNS), and a port.
const HOST_BYTES_MAX: usize = 255 + ":65535".len();

/// RFC 3986 §3.2.2: unreserved, sub-delims, and `%`.
static OF_NAME: [bool; 256] = {
    let (mut table, mut b) = ([false; 256], 0);
    while b < 256 {
        table[b] = matches!(b as u8, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'%')
            || matches!(b as u8, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        b += 1;
    }
    table
};

/// Does the request head begin with a method and a path? Everything else is rare and goes through `to_origin`.
pub fn is_origin(head: &[u8]) -> bool {
    memchr::memchr(b' ', head).is_some_and(|space| head.get(space + 1) == Some(&b'/'))
}

/// Writes a head whose target is `http://authority/path` anew: the path as its target, the authority as its only `host`, which
/// RFC 9112 §3.2.2 asks for whatever `host` said. A target of `*` stays.
///
/// Errors: 501 for CONNECT, 400 for every other form, for user names in the authority, and for a `host` missing or twice.
pub fn to_origin(head: &mut Vec<u8>) -> Result<(), Fault> {
    let mut room = slots();
    let mut r = httparse::Request::new(&mut []);
    if !matches!(r.parse_with_uninit_headers(head, &mut room), Ok(httparse::Status::Complete(n)) if n == head.len()) {
        // `parse_request` says what is wrong with it.
        return Ok(());
    }
    let (Some(method), Some(target), Some(minor)) = (r.method, r.path, r.version) else { return Ok(()) };
    if method == "CONNECT" {
        return Err(connect(target));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(());
    }
    let bad = || Fault::bad("unsupported request target", target, "a path that starts with '/', or http://host/path");
    let (authority, path) = absolute(target).ok_or_else(bad)?;
    let hosts = r.headers.iter().filter(|h| is_host_field(h)).count();
    if target.contains('#') || !is_host(authority.as_bytes()) || hosts > 1 || (hosts == 0 && minor == 1) {
        return Err(bad());
    }
    if r.headers.iter().any(|h| is_host_field(h) && !h.value.is_empty() && !is_host(h.value)) {
        return Err(bad());
    }
    let mut out = Vec::with_capacity(head.len() + 16);
    let star = path.is_empty() && method == "OPTIONS";
    let slash = if path.starts_with('/') || star { "" } else { "/" };
    let version = if minor == 1 { " HTTP/1.1\r\nhost: " } else { " HTTP/1.0\r\nhost: " };
    for part in [method, " ", slash, if star { "*" } else { path }, version, authority, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for h in r.headers.iter().filter(|h| !is_host_field(h)) {
        for part in [h.name.as_bytes(), b": ", h.value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
    *head = out;
    Ok(())
}

/// What is wrong with CONNECT.
pub(super) fn connect(target: &str) -> Fault {
    let expected = "a request for a resource: this is no forward proxy";
    Fault { status: 501, ..Fault::bad("CONNECT is refused", target, expected) }
}

fn is_host_field(h: &Header<'_>) -> bool {
    h.name.eq_ignore_ascii_case("host")
}

/// Authority and path of `http://authority/path?query`.
fn absolute(target: &str) -> Option<(&str, &str)> {
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|s| target.len() >= s.len() && target.as_bytes()[..s.len()].eq_ignore_ascii_case(s.as_bytes()))?;
    let rest = &target[scheme.len()..];
    Some(rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for good in
            ["a", "a.b-c_d", "1.2.3.4:80", "[::1]", "[::1]:8080", "[::ffff:1.2.3.4]", "a:", "xn--a", "%41", "a:65535"]
        {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            ":80",
            "a b",
            "a:80:80",
            "a:b",
            "a@b",
            "user:pw@h",
            "a/b",
            "a?b",
            "a#b",
            "[::1",
            "::1",
            "[::1]x",
            "[g::]",
            "a\tb",
            "a,b c",
            "http://a",
            "\u{e4}",
            "a\\b",
            "<a>",
            "a\0",
            "[]",
            "a:123456",
            "a[",
            "\"a\"",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn an_absolute_target_becomes_a_path_and_its_authority_the_host() {
        let check = |raw: &str, expected: Result<&str, u16>| {
            let mut head = raw.as_bytes().to_vec();
            let got = to_origin(&mut head).map(|()| String::from_utf8(head).unwrap()).map_err(|f| f.status);
            assert_eq!(got.as_deref().map_err(|e| *e), expected, "{raw:?}");
        };
        check(
            "GET http://a:1/b?c HTTP/1.1\r\nX: 1\r\nHost: z\r\nY: 2\r\n\r\n",
            Ok("GET /b?c HTTP/1.1\r\nhost: a:1\r\nX: 1\r\nY: 2\r\n\r\n"),
        );
        check("GET HTTPS://a HTTP/1.1\r\nHost: a\r\n\r\n", Ok("GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        check("GET http://a?b HTTP/1.0\r\n\r\n", Ok("GET /?b HTTP/1.0\r\nhost: a\r\n\r\n"));
        check("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", Ok("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"));
        check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Ok("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"));
        check("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", Err(501));
        for bad in ["*", "a", "a:80", "ftp://a/", "http:///a", "http://", "http://u@a/", "http:/a", "http://a#b"] {
            check(&format!("GET {bad} HTTP/1.1\r\nHost: a\r\n\r\n"), Err(400));
        }
        check("GET http://a/ HTTP/1.1\r\n\r\n", Err(400));
        check("GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Err(400));
        check("GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n", Err(400));
    }
}
