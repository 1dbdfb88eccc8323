//! Looks once at each field of a head: what it says of body, connection and route, and whether it travels on.

use super::Fault;
use super::head::{Ezone, Fieldset, Wants, tokens};
use httparse::Header;

/// What the fields of one head say.
#[derive(Default)]
pub(super) struct Survey<'b> {
    pub dropped: Fieldset,
    pub hosts: u32,
    pub host: Option<&'b [u8]>,
    pub length: Option<u64>,
    pub coded: bool,
    pub close: bool,
    pub keep: bool,
    pub expects: bool,
    pub trailers: bool,
    pub tag: Option<&'b [u8]>,
    pub ezone: Ezone<'b>,
    pub wants: Wants<'b>,
    /// Fields about the request's way.
    pub way: Fieldset,
    /// `trailer` fields.
    announced: Fieldset,
    upgrade: Option<&'b [u8]>,
    upgrades: u32,
    /// `connection` names `upgrade`.
    upgrading: bool,
    /// `connection` fields that name something beside `close`, `keep-alive`, `te` and `upgrade`.
    nominating: Fieldset,
    /// How many names that are.
    nominated: u32,
}

/// Fields that `connection` may name: each is looked for among all of the head's.
const NOMINATED_MAX: u32 = 64;

/// Fields that `connection` has no say in: they frame or route the request, prove who asks, or are the router's own.
const KEPT: [&str; 18] = [
    "via",
    "host",
    "cookie",
    "x-shard",
    "if-match",
    "x-real-ip",
    "forwarded",
    "tracestate",
    "set-cookie",
    "traceparent",
    "if-none-match",
    "authorization",
    "content-length",
    "idempotency-key",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "transfer-encoding",
];

pub(super) fn survey<'b>(all: &[Header<'b>]) -> Result<Survey<'b>, Fault> {
    let mut s = Survey::default();
    for (i, h) in all.iter().enumerate() {
        if s.field(h.name, h.value, i)? {
            s.dropped |= 1 << i;
        }
    }
    if s.nominating != 0 {
        for (i, h) in all.iter().enumerate() {
            if s.nominating >> i & 1 == 1 {
                s.nominate(all, h.value);
            }
        }
    }
    Ok(s)
}

impl<'b> Survey<'b> {
    /// Takes note of one field; true if it stays behind.
    fn field(&mut self, name: &'b str, value: &'b [u8], index: usize) -> Result<bool, Fault> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => {
                let accepts = |t: &[u8]| {
                    t.split(|b| *b == b';').next().is_some_and(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"))
                };
                self.trailers |= tokens(value).any(accepts);
                return Ok(true);
            }
            3 if is("via") => self.way |= 1 << index,
            4 if is("host") => {
                self.hosts += 1;
                self.host = Some(value);
            }
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
            7 if is("upgrade") => {
                (self.upgrade, self.upgrades) = (Some(value), self.upgrades + 1);
                return Ok(true);
            }
            7 if is("trailer") => self.announced |= 1 << index,
            8 if is("if-match") => note(&mut self.wants.if_match, name, value, &mut self.wants.twice),
            9 if is("forwarded") => self.way |= 1 << index,
            10 if is("connection") => {
                self.connection(value, index)?;
                return Ok(true);
            }
            10 if is("keep-alive") => return Ok(true),
            10 if is("tracestate") => self.way |= 1 << index,
            11 if is("traceparent") => self.way |= 1 << index,
            14 if is("content-length") => {
                let n =
                    length(value).ok_or_else(|| Fault::bad("malformed content-length", value, "one whole number"))?;
                if self.length.replace(n).is_some() {
                    return Err(Fault::bad("several content-length fields", value, "one content-length"));
                }
                return Ok(true);
            }
            15 if is("x-forwarded-for") => self.way |= 1 << index,
            13 if is("if-none-match") => note(&mut self.wants.if_none_match, name, value, &mut self.wants.twice),
            15 if is("idempotency-key") => note(&mut self.wants.once, name, value, &mut self.wants.twice),
            16 if is("x-forwarded-host") => self.way |= 1 << index,
            16 if is("proxy-connection") => return Ok(true),
            17 if is("x-forwarded-proto") => self.way |= 1 << index,
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
        Ok(is_disguised(name))
    }

    fn connection(&mut self, value: &[u8], index: usize) -> Result<(), Fault> {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrading = true;
            } else if !token.eq_ignore_ascii_case(b"te") {
                self.nominating |= 1 << index;
                self.nominated += 1;
            }
        }
        if self.nominated > NOMINATED_MAX {
            return Err(Fault::bad("connection names too many fields", self.nominated.to_string(), "at most 64"));
        }
        Ok(())
    }

    /// What `upgrade` names, if it is there once and `connection` names it.
    pub fn upgrade(&self) -> Option<&'b [u8]> {
        self.upgrade.filter(|_| self.upgrading && self.upgrades == 1)
    }

    /// After the framing is known: trailers are announced only where there can be some.
    pub fn settle(&mut self) {
        if !self.coded {
            self.dropped |= self.announced;
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
            "-read" => {
                e.read_local = value.eq_ignore_ascii_case(b"local");
                e.read_primary = value.eq_ignore_ascii_case(b"primary");
            }
            "-version" => e.version = Some(value),
            "-owner" => e.owner = true,
            "-outcome" => e.outcome = Some(value),
            "-token" => e.token = Some(value),
            "-ack" => note(&mut self.wants.ack, name, value, &mut self.wants.twice),
            "-after" => note(&mut self.wants.after, name, value, &mut self.wants.twice),
            _ => {}
        }
        Ok(())
    }

    /// Drops the fields that a `connection` field names, but for those that it has no say in.
    fn nominate(&mut self, all: &[Header<'_>], value: &[u8]) {
        for token in tokens(value) {
            for (i, h) in all.iter().enumerate() {
                if h.name.as_bytes().eq_ignore_ascii_case(token) && !KEPT.iter().any(|k| h.name.eq_ignore_ascii_case(k))
                {
                    self.dropped |= 1 << i;
                }
            }
        }
    }
}

/// Takes a field down, or that it came before.
fn note<'b>(of: &mut Option<&'b [u8]>, name: &'b str, value: &'b [u8], twice: &mut Option<&'b str>) {
    if of.replace(value).is_some() {
        *twice = Some(name);
    }
}

pub(super) fn is_ezone(name: &str) -> bool {
    name.len() >= 7 && name.as_bytes()[..7].eq_ignore_ascii_case(b"x-ezone")
}

/// Is it a field of the router's own to whoever reads `_` as `-`, as CGI and its heirs do: `x_ezone_shard`? Nobody needs one.
pub(super) fn is_disguised(name: &str) -> bool {
    const OURS: [&str; 3] = ["x-ezone", "x-forwarded-", "x-shard"];
    let begins = |with: &str| {
        let same = |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-');
        name.len() >= with.len() && name.bytes().zip(with.bytes()).all(same)
    };
    matches!(name.as_bytes().first(), Some(b'x' | b'X')) && name.contains('_') && OURS.iter().any(|o| begins(o))
}

/// A whole number of at most 18 digits and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}
