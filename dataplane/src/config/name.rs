//! Where an endpoint is: an address, or a DNS name that is looked up while the router runs.

use std::fmt;
use std::net::SocketAddr;

/// Bytes of a name, RFC 1035 §2.3.4 as text.
const NAME_BYTES_MAX: usize = 253;
/// Bytes of a part of it.
const LABEL_BYTES_MAX: usize = 63;

/// A DNS name and a port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name {
    /// In lower case. With a dot at its end it is absolute: no search list is gone through.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Name {
    /// The name as certificates and `host` have it: without the dot of an absolute one.
    pub fn bare(&self) -> &str {
        self.host.strip_suffix('.').unwrap_or(&self.host)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Where an endpoint is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Here.
    Addr(SocketAddr),
    /// At each address that this name has.
    Name(Name),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Addr(at) => at.fmt(f),
            Place::Name(name) => name.fmt(f),
        }
    }
}

/// Reads `10.0.0.1:80`, `[::1]:80` or `api.internal:80`.
pub(super) fn place(text: &str) -> Result<Place, String> {
    if let Ok(at) = text.parse() {
        return Ok(Place::Addr(at));
    }
    let expected = "an address or a name, and a port, such as 127.0.0.1:8080 or api.internal:8080";
    name(text).map(Place::Name).ok_or_else(|| format!("\"{text}\": expected {expected}"))
}

fn name(text: &str) -> Option<Name> {
    let (host, port) = text.rsplit_once(':')?;
    let plain = port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|p| plain && *p != 0)?;
    let bare = host.strip_suffix('.').unwrap_or(host);
    let label = |l: &str| {
        let legal = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=LABEL_BYTES_MAX).contains(&l.len()) && legal && !l.starts_with('-') && !l.ends_with('-')
    };
    // What ends in a number is a mistyped address: no such domain exists (RFC 3696 §2).
    let numeric = bare.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    let legal = bare.len() <= NAME_BYTES_MAX && bare.split('.').all(label) && !numeric;
    legal.then(|| Name { host: host.to_ascii_lowercase(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_at_an_address_or_at_a_name() {
        let named = |host: &str, port| Place::Name(Name { host: host.into(), port });
        for (text, expected) in [
            ("10.0.0.1:80", Place::Addr(([10, 0, 0, 1], 80).into())),
            ("[::1]:80", Place::Addr("[::1]:80".parse().unwrap())),
            ("API.Internal:8080", named("api.internal", 8080)),
            ("localhost:1", named("localhost", 1)),
            ("_x._tcp.a-b.example.:65535", named("_x._tcp.a-b.example.", 65535)),
            ("3com.example:80", named("3com.example", 80)),
        ] {
            assert_eq!(place(text), Ok(expected.clone()), "{text}");
            assert_eq!(place(&expected.to_string()), Ok(expected));
        }
        assert_eq!(Name { host: "a.b.".into(), port: 1 }.bare(), "a.b");
    }

    #[test]
    fn what_is_neither_is_refused() {
        let long = format!("{}:80", ["a"; 128].join("."));
        let label = format!("{}.a:80", "a".repeat(64));
        for text in [
            "",
            "api.internal",
            "10.0.0.1",
            "10.0.0.256:80",
            "10.0.0:80",
            "1:2",
            "::1:80",
            "a:0",
            "a:65536",
            "a:+1",
            ":80",
            ".:80",
            "a..b:80",
            "-a:80",
            "a-:80",
            "a b:80",
            "http://a:80",
            "a/b:80",
            "\u{e9}:80",
            &long,
            &label,
        ] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
