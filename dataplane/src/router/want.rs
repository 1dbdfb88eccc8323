//! What a request asks of the record store beside its write or read: conditions, a key to do it once, who has to have it.

use crate::http::head::Wants;
use crate::http::{Fault, Request};
use bytes::Bytes;
use replog::Version;
use replog::commit::{Condition, ONCE_KEY_MAX, Once, Token};

/// An `etag`, or `*`, as `if-match` may say it.
const EXPECTED: &str = "* or one version in quotes, as etag shows it";

/// What a write asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub only: Condition,
    pub once: Option<Once>,
    pub remote: bool,
}

impl Wanted {
    /// Of the request `r`, whose whole body is `body`.
    pub fn of(r: &Request<'_, '_>, body: &[u8]) -> Result<Wanted, Fault> {
        let wants = &r.wants;
        if let Some(name) = wants.twice {
            return Err(Fault::bad("a field that came twice", name, "one of it"));
        }
        if wants.after.is_some() {
            return Err(Fault::bad("x-ezone-after on a write", r.method, "a GET or HEAD"));
        }
        let remote = match wants.ack {
            None | Some(b"local") => false,
            Some(b"remote") => true,
            Some(other) => return Err(Fault::bad("unknown x-ezone-ack", other, "local or remote")),
        };
        let once = wants.once.map(|key| once(key, r, body)).transpose()?;
        Ok(Wanted { only: condition(wants)?, once, remote })
    }

    /// A write that asks for nothing more.
    pub fn is_plain(&self) -> bool {
        self.only == Condition::Any && self.once.is_none() && !self.remote
    }
}

/// The write that a read is to follow; a fault if it asks for what only a write can have.
pub(super) fn after(wants: &Wants<'_>) -> Result<Option<Token>, Fault> {
    let bad = [("if-match", wants.if_match), ("x-ezone-ack", wants.ack)];
    for (name, value) in bad {
        if let Some(value) = value {
            return Err(Fault::bad(
                "a field that only a write may have",
                format!("{name}: {}", text(value)),
                "a plain read",
            ));
        }
    }
    match wants.twice {
        Some(name) => Err(Fault::bad("a field that came twice", name, "one of it")),
        None => {
            let bad = |v| Fault::bad("malformed x-ezone-after", v, "zone.stream.seq, as x-ezone-token shows it");
            wants.after.map(|v| Token::parse(v).ok_or_else(|| bad(v))).transpose()
        }
    }
}

fn condition(wants: &Wants<'_>) -> Result<Condition, Fault> {
    match (wants.if_match, wants.if_none_match) {
        (None, None) => Ok(Condition::Any),
        (Some(b"*"), None) => Ok(Condition::Present),
        (Some(tag), None) => {
            version_of(tag).map(Condition::At).ok_or_else(|| Fault::bad("malformed if-match", tag, EXPECTED))
        }
        (None, Some(b"*")) => Ok(Condition::Absent),
        (None, Some(other)) => Err(Fault::bad("an if-none-match that a write cannot have", other, "*")),
        (Some(_), Some(_)) => Err(Fault::bad("if-match and if-none-match", "both", "one of them")),
    }
}

/// The version in an entity tag: a strong one, which is all that we give.
pub(super) fn version_of(tag: &[u8]) -> Option<Version> {
    Version::parse(tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?)
}

/// Does `if-none-match` of a read name this version? A tag that is none of ours names nothing; a weak one is as good (RFC 9110, 13.1.2).
pub(super) fn names(list: &[u8], version: Version) -> bool {
    let strong = |tag: &'_ [u8]| version_of(tag.strip_prefix(b"W/").unwrap_or(tag)) == Some(version);
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|tag| tag == b"*" || strong(tag))
}

fn once(key: &[u8], r: &Request<'_, '_>, body: &[u8]) -> Result<Once, Fault> {
    if key.is_empty() || key.len() > ONCE_KEY_MAX || !key.iter().all(|b| matches!(b, b' '..=b'~')) {
        let seen = if key.len() > ONCE_KEY_MAX { format!("{} bytes", key.len()) } else { text(key) };
        return Err(Fault::bad("malformed idempotency-key", seen, "1 to 255 visible characters of ASCII"));
    }
    let mut hasher = blake3::Hasher::new();
    for part in [r.method.as_bytes(), r.path.as_bytes(), body] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(Once { key: Bytes::copy_from_slice(key), digest })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{parse_request, slots};

    fn wanted(fields: &str) -> Result<Wanted, String> {
        wanted_of(&format!("PUT /records/t/k HTTP/1.1\r\nHost: h\r\n{fields}\r\n"), b"body")
    }

    fn wanted_of(head: &str, body: &[u8]) -> Result<Wanted, String> {
        let mut room = slots();
        let r = parse_request(head.as_bytes(), &mut room).unwrap();
        Wanted::of(&r, body).map_err(|f| format!("{} {}", f.status, f.error))
    }

    #[test]
    fn a_condition_is_one_version_or_a_star_and_nothing_else() {
        let only = |fields: &str| wanted(fields).map(|w| w.only);
        let v = Version::parse(b"1.5.0.2").unwrap();
        assert_eq!(only(""), Ok(Condition::Any));
        assert_eq!(only("If-Match: \"1.5.0.2\"\r\n"), Ok(Condition::At(v)));
        assert_eq!(only("if-match: *\r\n"), Ok(Condition::Present));
        assert_eq!(only("If-None-Match: *\r\n"), Ok(Condition::Absent));
        for bad in ["1.5.0.2", "W/\"1.5.0.2\"", "\"1.5.0.2\", \"1.6.0.2\"", "\"\"", "\"*\"", ""] {
            assert_eq!(only(&format!("If-Match: {bad}\r\n")), Err("400 malformed if-match".into()), "{bad}");
        }
        assert!(only("If-None-Match: \"1.5.0.2\"\r\n").unwrap_err().starts_with("400 an if-none-match"));
        assert!(only("If-None-Match: *\r\nIf-Match: *\r\n").unwrap_err().contains("and if-none-match"));
        assert!(only("If-Match: *\r\nIf-Match: *\r\n").unwrap_err().contains("twice"));
    }

    #[test]
    fn a_read_names_versions_that_the_client_has_among_tags_of_others() {
        let v = Version::parse(b"1.5.0.2").unwrap();
        for known in ["*", "\"1.5.0.2\"", "W/\"1.5.0.2\"", "\"1.4.0.2\" , \"1.5.0.2\"", "\"abc\",\"1.5.0.2\""] {
            assert!(names(known.as_bytes(), v), "{known}");
        }
        for other in ["", ",", "1.5.0.2", "\"1.5.0.3\"", "\"*\"", "\"abc\"", "w/\"1.5.0.2\""] {
            assert!(!names(other.as_bytes(), v), "{other}");
        }
    }

    #[test]
    fn a_key_to_do_it_once_goes_with_method_path_and_body() {
        let digest = |head: &str, body: &[u8]| {
            let w = wanted_of(&format!("{head} HTTP/1.1\r\nHost: h\r\nIdempotency-Key: k 1\r\n\r\n"), body).unwrap();
            let once = w.once.unwrap();
            assert_eq!(&once.key[..], b"k 1");
            once.digest
        };
        let one = digest("PUT /records/t/k", b"a");
        assert_eq!(one, digest("PUT /records/t/k", b"a"));
        for (head, body) in [("PUT /records/t/k", "b"), ("PUT /records/t/k2", "a"), ("DELETE /records/t/k", "a")] {
            assert_ne!(one, digest(head, body.as_bytes()), "{head} {body}");
        }
        for bad in ["", &"k".repeat(256), "k\u{e9}"] {
            assert_eq!(wanted(&format!("Idempotency-Key: {bad}\r\n")), Err("400 malformed idempotency-key".into()));
        }
        assert_eq!(wanted("x-ezone-ack: all\r\n"), Err("400 unknown x-ezone-ack".into()));
        assert!(
            wanted("x-ezone-ack: remote\r\n").unwrap().remote && wanted("x-ezone-ack: local\r\n").unwrap().is_plain()
        );
        assert!(wanted("x-ezone-after: 1.2.3\r\n").unwrap_err().contains("on a write"));
    }
}
