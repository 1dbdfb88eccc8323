//! Fields about a request's way: who asked, by which protocol and host, through whom, and in which trace.
//!
//! Each is left as the client sent it, replaced, or appended to, as configured. What a trusted peer sends is left: its router
//! has seen the client and written them already; only `via` grows with each hop. The client's address is formatted once for
//! each connection.

use super::Core;
use super::conn::{Client, ConnId, Phase};
use crate::http::head::Fieldset;
use crate::http::{Request, proxy};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};

/// What becomes of a field that says where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// As the client sent it.
    #[default]
    Off,
    /// Ours; what the client sent is dropped.
    Set,
    /// What the client sent, and ours after it.
    Append,
}

/// What becomes of a field that has one value.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Own {
    /// As the client sent it.
    #[default]
    Off,
    /// Ours; what the client sent is dropped.
    Set,
}

/// Which fields about its way a request gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Forwarding {
    /// `x-forwarded-for`: the client's address.
    pub x_forwarded_for: Way,
    /// `x-forwarded-proto`: `http` or `https`.
    pub x_forwarded_proto: Own,
    /// `x-forwarded-host`: the `host` that the client named.
    pub x_forwarded_host: Own,
    /// RFC 7239: all three.
    pub forwarded: Way,
    /// RFC 9110 §7.6.3: the protocol and a name of ours, appended.
    pub via: bool,
    /// W3C Trace Context: a valid `traceparent` passes, another is replaced, a missing one made.
    pub trace: bool,
}

impl Forwarding {
    /// Is a client's address needed?
    pub fn needs_address(&self) -> bool {
        self.x_forwarded_for != Way::Off || self.forwarded != Way::Off
    }
}

/// A client's address, as text.
#[derive(Default)]
pub(super) struct Origin {
    pub addr: Option<SocketAddr>,
    /// Without port; empty: not known.
    text: Box<str>,
}

impl Origin {
    pub fn new(addr: SocketAddr) -> Origin {
        Origin { addr: Some(addr), text: addr.ip().to_canonical().to_string().into() }
    }

    fn text(&self) -> &str {
        if self.text.is_empty() { "unknown" } else { &self.text }
    }
}

impl Core {
    /// Is it worth the driver's while to look up where a client comes from?
    pub fn wants_addresses(&self) -> bool {
        self.settings.forwarding.needs_address() || self.settings.access.is_some() || self.to.tells_addresses
    }

    /// Where an accepted connection comes from.
    pub fn on_address(&mut self, id: ConnId, addr: SocketAddr) {
        if let Some((_, c)) = self.client(id) {
            c.from = Origin::new(addr);
        }
    }

    /// A balancer's connection: its header must come first, within the time of a head.
    pub(super) fn expect_proxy(&mut self, id: ConnId) {
        let late = self.now.ms + self.limits.head_ms;
        if let Some((io, c)) = self.client(id) {
            c.phase = Phase::Proxy;
            io.deadline = late;
        }
    }

    /// Reads the header: bytes used, 0 if more have to come, `None` if the connection ends.
    pub(super) fn proxied(&mut self, id: ConnId, bytes: &[u8]) -> Option<usize> {
        let idle = self.now.ms + self.limits.idle_ms;
        let (n, source) = match proxy::parse(bytes) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Some(0),
            Err(_) => {
                self.bad_proxy(id);
                return None;
            }
        };
        let (io, c) = self.client(id)?;
        c.phase = Phase::Head;
        io.deadline = idle;
        if let Some(addr) = source {
            c.from = Origin::new(addr);
        }
        Some(n)
    }

    /// No header, or none in time: whoever connects past the balancer is not served, and an answer would help a scanner only.
    pub(super) fn bad_proxy(&mut self, id: ConnId) {
        self.counts.proxy_malformed += 1;
        self.close(id);
    }

    /// The fields of `r` that stay behind because we write our own.
    pub(super) fn replaced(&self, r: &Request<'_, '_>, trusted: bool) -> Fieldset {
        if r.way == 0 {
            return 0;
        }
        let f = &self.settings.forwarding;
        let bad_trace = f.trace && trace_of(r).is_none();
        let mut replaced = 0;
        for (bit, h) in r.way() {
            let ours = match h.name.len() {
                3 => f.via,
                9 => f.forwarded != Way::Off && !trusted,
                10 | 11 => bad_trace,
                15 => f.x_forwarded_for != Way::Off && !trusted,
                16 => f.x_forwarded_host != Own::Off && !trusted,
                _ => f.x_forwarded_proto != Own::Off && !trusted,
            };
            replaced |= if ours { bit } else { 0 };
        }
        replaced
    }

    /// Our own fields about the way of `r`, which came from `client`.
    pub(super) fn way_fields(&mut self, out: &mut Vec<u8>, r: &Request<'_, '_>, client: ConnId) {
        let f = self.settings.forwarding;
        let mut id = if self.settings.access.is_some() { trace_of(r).map(trace_id) } else { None };
        if f.trace && trace_of(r).is_none() {
            let (a, b, c) = (self.random(), self.random(), self.random() | 1);
            out.extend_from_slice(format!("traceparent: 00-{a:016x}{b:016x}-{c:016x}-00\r\n").as_bytes());
            id = Some(u128::from(a) << 64 | u128::from(b));
        }
        if let (Some(id), Some((_, c))) = (id, self.client(client)) {
            c.trace.id = id.to_be_bytes();
        }
        if f.via {
            listed(out, r, "via", true);
            out.extend_from_slice(if r.http11 { b"1.1 ezone\r\n" } else { b"1.0 ezone\r\n" });
        }
        let Some((io, c)) = self.client(client).filter(|(_, c)| !c.trusted) else { return };
        let secure = io.secure;
        if f.x_forwarded_for != Way::Off {
            listed(out, r, "x-forwarded-for", f.x_forwarded_for == Way::Append);
            for part in [c.from.text(), "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        let proto = if secure { "https" } else { "http" };
        if f.x_forwarded_proto == Own::Set {
            for part in ["x-forwarded-proto: ", proto, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        if let Some(host) = r.host.filter(|_| f.x_forwarded_host == Own::Set) {
            for part in [b"x-forwarded-host: ", host, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        if f.forwarded != Way::Off {
            listed(out, r, "forwarded", f.forwarded == Way::Append);
            forwarded(out, c, proto, r.host);
        }
    }

    /// The next of a sequence that only looks random: names of traces need no more.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// `name: `, and if `append` what the request has of it, each followed by a comma.
fn listed(out: &mut Vec<u8>, r: &Request<'_, '_>, name: &str, append: bool) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for (_, h) in r.way().filter(|(_, h)| append && h.name.eq_ignore_ascii_case(name) && !h.value.is_empty()) {
        out.extend_from_slice(h.value);
        out.extend_from_slice(b", ");
    }
}

/// One element of RFC 7239 §4.
fn forwarded(out: &mut Vec<u8>, c: &Client, proto: &str, host: Option<&[u8]>) {
    let six = c.from.addr.is_some_and(|a| matches!(a.ip().to_canonical(), IpAddr::V6(_)));
    let (open, close) = if six { ("\"[", "]\"") } else { ("", "") };
    for part in ["for=", open, c.from.text(), close, ";proto=", proto] {
        out.extend_from_slice(part.as_bytes());
    }
    if let Some(host) = host {
        // A host that was judged has neither quotes nor backslashes.
        for part in [b";host=\"", host, b"\""] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The only `traceparent` of `r`, if it is valid (W3C Trace Context, level 1, §3.2).
fn trace_of<'r>(r: &'r Request<'_, '_>) -> Option<&'r [u8]> {
    let mut all = r.way().filter(|(_, h)| h.name.eq_ignore_ascii_case("traceparent")).map(|(_, h)| h.value);
    let one = all.next().filter(|v| is_trace(v))?;
    all.next().is_none().then_some(one)
}

/// The trace's id in a valid `traceparent`.
fn trace_id(v: &[u8]) -> u128 {
    let digit = |b: &u8| u128::from(char::from(*b).to_digit(16).unwrap_or(0));
    v[3..35].iter().fold(0, |id, b| id << 4 | digit(b))
}

fn is_trace(v: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let some = |part: &[u8]| hex(part) && part.iter().any(|b| *b != b'0');
    v.len() >= 55
        && v[2] == b'-'
        && v[35] == b'-'
        && v[52] == b'-'
        && hex(&v[..2])
        && &v[..2] != b"ff"
        && some(&v[3..35])
        && some(&v[36..52])
        && hex(&v[53..55])
        && (v.len() == 55 || (&v[..2] != b"00" && v[55] == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_valid_as_the_w3c_says() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for (text, valid) in [
            (good.to_string(), true),
            (good.replace("00-0af", "cc-0af") + "-what", true),
            (good.to_string() + "-what", false),
            (good.to_string() + "x", false),
            (good.replace("00-0af", "ff-0af"), false),
            (good.to_uppercase(), false),
            (good.replace("b7ad6b7169203331", "0000000000000000"), false),
            (good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), false),
            (good.replace("-01", "-0g"), false),
            (good[..54].to_string(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_trace(text.as_bytes()), valid, "{text}");
        }
    }
}
