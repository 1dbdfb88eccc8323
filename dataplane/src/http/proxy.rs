//! The PROXY protocol, versions 1 and 2, as of the specification of 2020: where a connection that a load balancer made comes from.
//!
//! It is the first thing on a connection, before any TLS. Version 1 is a line of at most 107 bytes; version 2 is binary:
//! ```text
//!  0            12    13       14      16
//!  ├─ signature ─┼ 2|c ┼ family ┼ length ┼ source, destination address, source, destination port, TLVs ..
//! ```
//! What is read must be there whole before it counts; TLVs are skipped.

use super::Fault;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version 1: 107 bytes with CR LF (specification, section 2.1).
const LINE_BYTES_MAX: usize = 107;
/// Version 2: addresses and TLVs; some balancers sign, so the specification's 536 are not enough.
const BLOCK_BYTES_MAX: usize = 4096;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads a header at the start of `from`: its length and the client's address, which a health check (`LOCAL`, `UNKNOWN`, a
/// family that is not the internet's) does not have. `None`: it is not there whole.
pub fn parse(from: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
    let begins = |with: &[u8]| from[..from.len().min(with.len())] == with[..from.len().min(with.len())];
    if begins(SIGNATURE) {
        return if from.len() < 16 { Ok(None) } else { block(from) };
    }
    if begins(b"PROXY ") {
        return line(from);
    }
    Err(bad("no PROXY header", from))
}

fn bad(error: &'static str, seen: &[u8]) -> Fault {
    Fault::bad(error, &seen[..seen.len().min(32)], "a header of the PROXY protocol, version 1 or 2")
}

/// Version 1, which begins with `PROXY `.
fn line(from: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
    let seen = &from[..from.len().min(LINE_BYTES_MAX)];
    let Some(lf) = memchr::memchr(b'\n', seen) else {
        return if seen.len() < LINE_BYTES_MAX { Ok(None) } else { Err(bad("PROXY line too long", from)) };
    };
    let text = from[..lf].strip_suffix(b"\r").and_then(|l| std::str::from_utf8(l).ok());
    let malformed = || bad("malformed PROXY line", from);
    let words: Vec<_> = text.ok_or_else(malformed)?.split(' ').collect();
    let source = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, port, to] => {
            let address = |text: &str| -> Option<IpAddr> {
                match family {
                    "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                    _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
                }
            };
            address(destination).zip(number(to)).ok_or_else(malformed)?;
            let (ip, port) = address(source).zip(number(port)).ok_or_else(malformed)?;
            Some(SocketAddr::new(ip, port))
        }
        _ => return Err(malformed()),
    };
    Ok(Some((lf + 1, source)))
}

/// A port: digits without a sign or a leading zero.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// Version 2, of which 16 bytes are there.
fn block(from: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
    let length = usize::from(u16::from_be_bytes([from[14], from[15]]));
    if length > BLOCK_BYTES_MAX {
        return Err(bad("PROXY header too long", from));
    }
    let local = match from[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(bad("unknown version or command of PROXY", from)),
    };
    let needs = match from[13] {
        0x11 => 12,
        0x21 => 36,
        // UDP, Unix sockets and what is not named: addresses that mean nothing here.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => 0,
        _ if local => 0,
        _ => return Err(bad("unknown address family of PROXY", from)),
    };
    if !local && length < needs {
        return Err(bad("PROXY addresses cut short", from));
    }
    let Some(body) = from.get(16..16 + length) else { return Ok(None) };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let source = match needs {
        12 if !local => {
            let ip: [u8; 4] = body[..4].try_into().expect("the length was checked");
            Some(SocketAddr::new(Ipv4Addr::from(ip).into(), port(8)))
        }
        36 if !local => {
            let ip: [u8; 16] = body[..16].try_into().expect("the length was checked");
            Some(SocketAddr::new(Ipv6Addr::from(ip).into(), port(32)))
        }
        _ => None,
    };
    Ok(Some((16 + length, source)))
}

/// Writes a version 2 header: `source` has asked, or nobody in particular (`LOCAL`). `destination` is made to be of the same
/// family: where it is not, it is left unspecified.
pub fn write(out: &mut Vec<u8>, source: Option<SocketAddr>, destination: SocketAddr) {
    out.extend_from_slice(SIGNATURE);
    let Some(source) = source else { return out.extend_from_slice(&[0x20, 0, 0, 0]) };
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), to) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&if let IpAddr::V4(to) = to { to.octets() } else { [0; 4] });
        }
        (IpAddr::V6(from), to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&if let IpAddr::V6(to) = to { to.octets() } else { [0; 16] });
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same wherever it is split: not there until it is whole, then this.
    fn check(raw: &[u8], expected: Option<&str>) {
        for at in 0..raw.len() {
            assert_eq!(parse(&raw[..at]), Ok(None), "{} cut after {at}", raw.escape_ascii());
        }
        for after in [&b""[..], b"GET / HTTP/1.1\r\n"] {
            let whole = [raw, after].concat();
            let expected = expected.map(|e| e.parse().unwrap());
            assert_eq!(parse(&whole), Ok(Some((raw.len(), expected))), "{}", raw.escape_ascii());
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        [SIGNATURE, &[command, family][..], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    const FOUR: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

    #[test]
    fn headers_of_both_versions_are_read_wherever_they_are_split() {
        check(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255:65535"));
        check(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", Some("192.168.0.1:56324"));
        let six = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        check(format!("PROXY TCP6 {six} {six} 65535 65535\r\n").as_bytes(), Some(&format!("[{six}]:65535")));
        check(b"PROXY UNKNOWN\r\n", None);
        check(format!("PROXY UNKNOWN {six} {six} 65535 65535\r\n").as_bytes(), None);
        check(&v2(0x21, 0x11, &FOUR), Some("192.0.2.1:56324"));
        check(&v2(0x21, 0x11, &[&FOUR[..], &[4, 0, 1, 0]].concat()), Some("192.0.2.1:56324"));
        let mut six = [0u8; 36];
        (six[0], six[1], six[15], six[32], six[33]) = (0x20, 0x01, 1, 0xdc, 0x04);
        check(&v2(0x21, 0x21, &six), Some("[2001::1]:56324"));
        check(&v2(0x20, 0x00, &[]), None);
        check(&v2(0x20, 0x11, &FOUR), None);
        check(&v2(0x21, 0x00, &[]), None);
        check(&v2(0x21, 0x31, &[0; 216]), None);
    }

    #[test]
    fn what_is_malformed_is_refused_as_soon_as_it_can_be_known() {
        let bad: [&[u8]; 22] = [
            b"GET / HTTP/1.1\r\n",
            b"PROXY\r\n",
            b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n",
            b"PROXY TCP4 1.2.3.400 1.2.3.4 1 1\r\n",
            b"PROXY TCP4 ::1 ::1 1 1\r\n",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n",
            b"proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
            b"PROXY TCP4 \xff 1.2.3.4 1 1\r\n",
            b"\r\n\r\n\0\r\nQUIX",
            &v2(0x11, 0x11, &FOUR),
            &v2(0x22, 0x11, &FOUR),
            &v2(0x21, 0x41, &FOUR),
            &v2(0x21, 0x11, &FOUR[..11]),
            &v2(0x21, 0x21, &FOUR),
            &v2(0x21, 0x11, &[0; 4097]),
        ];
        for raw in bad {
            assert_eq!(parse(raw).map_err(|f| f.status), Err(400), "{}", raw.escape_ascii());
        }
        assert!(parse(&[b"PROXY ".as_slice(), &[b'x'; 100]].concat()).unwrap().is_none());
        assert!(parse(&[b"PROXY ".as_slice(), &[b'x'; 101]].concat()).is_err());
    }

    #[test]
    fn what_is_written_is_what_the_specification_says_and_is_read_back() {
        let wrote = |source: Option<&str>, destination: &str| {
            let mut out = vec![];
            write(&mut out, source.map(|s| s.parse().unwrap()), destination.parse().unwrap());
            out
        };
        assert_eq!(wrote(Some("192.0.2.1:56324"), "198.51.100.2:443"), v2(0x21, 0x11, &FOUR));
        assert_eq!(wrote(Some("[::ffff:192.0.2.1]:56324"), "198.51.100.2:443"), v2(0x21, 0x11, &FOUR));
        assert_eq!(wrote(None, "198.51.100.2:443"), v2(0x20, 0, &[]));
        for source in ["192.0.2.1:56324", "[2001:db8::1]:1"] {
            for destination in ["198.51.100.2:443", "[::1]:443"] {
                let out = wrote(Some(source), destination);
                assert_eq!(parse(&out), Ok(Some((out.len(), Some(source.parse().unwrap())))));
            }
        }
    }
}
