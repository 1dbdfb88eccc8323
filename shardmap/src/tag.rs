//! What a request carries to say where it belongs: `x-shard: shopid=156427001;loc=121.52669,31.2302`.

use crate::point::Point;
use crate::types::Shard;

/// The parts of a tag that could be read. Nothing in it is believed yet: the map decides what counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tag<'t> {
    /// `shardid`: a shard by number; counts only from a trusted peer.
    pub shardid: Option<Shard>,
    /// `global`: the name of a global service, which may be none; it decides alone.
    pub global: Option<&'t [u8]>,
    /// `eosid`: an order's id.
    pub order: Option<u64>,
    /// `shopid`: a shop's id.
    pub shop: Option<u64>,
    /// `loc`: a place, `lng,lat`.
    pub point: Option<Point>,
    /// Parts that could not be read, or came a second time (the first one counts).
    pub skipped: u32,
}

impl<'t> Tag<'t> {
    /// Reads a header's value. Parts end with `;`, blanks around a part, key or value do not matter, keys are in small
    /// letters. Keys of others are passed over; malformed parts are skipped and counted.
    pub fn parse(header_value: &'t [u8]) -> Tag<'t> {
        let mut tag = Tag::default();
        for part in header_value.split(|b| *b == b';') {
            tag.read(part.trim_ascii());
        }
        tag
    }

    fn read(&mut self, part: &'t [u8]) {
        if part.is_empty() {
            return;
        }
        let Some(eq) = part.iter().position(|b| *b == b'=') else { return self.skip() };
        let (key, value) = (part[..eq].trim_ascii(), part[eq + 1..].trim_ascii());
        let read = match key {
            b"global" => keep(&mut self.global, Some(value).filter(|v| !v.is_empty())),
            b"eosid" => keep(&mut self.order, id(value)),
            b"shopid" => keep(&mut self.shop, id(value)),
            b"loc" => keep(&mut self.point, Point::parse_bytes(value)),
            b"shardid" => keep(&mut self.shardid, number(value, u64::from(u16::MAX)).map(|n| Shard(n as u16))),
            _ => !key.is_empty(),
        };
        if !read {
            self.skip();
        }
    }

    fn skip(&mut self) {
        self.skipped = self.skipped.saturating_add(1);
    }
}

/// Keeps the first value; says whether there was one to keep.
fn keep<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let fresh = slot.is_none() && value.is_some();
    if fresh {
        *slot = value;
    }
    fresh
}

/// Ids are 63-bit integers.
fn id(value: &[u8]) -> Option<u64> {
    number(value, i64::MAX as u64)
}

/// Decimal digits and nothing else, at most `max`.
fn number(value: &[u8], max: u64) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = value.iter().try_fold(0u64, |n, b| n.checked_mul(10)?.checked_add(u64::from(b - b'0')))?;
    (n <= max).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn a_whole_tag_is_read() {
        let tag = Tag::parse(b"shopid=156427001; loc=121.52669,31.2302 ;eosid=42;shardid=7;");
        assert_eq!(tag.shop, Some(156_427_001));
        assert_eq!(tag.point, Point::parse("121.52669,31.2302"));
        assert_eq!((tag.order, tag.shardid, tag.skipped), (Some(42), Some(Shard(7)), 0));
    }

    #[test]
    fn malformed_parts_are_skipped_and_counted_and_the_rest_still_counts() {
        for (text, skipped) in [
            ("shopid", 1),
            ("shopid=", 1),
            ("shopid=x;loc=1", 2),
            ("=5", 1),
            ("loc=NaN,NaN", 1),
            ("loc=181,0", 1),
            ("eosid=9223372036854775808", 1),
            ("eosid=99999999999999999999999", 1),
            ("eosid=-1", 1),
            ("shardid=65536", 1),
            ("\u{0};\u{7f}", 2),
            (";;;", 0),
            ("", 0),
            ("user=someone", 0),
        ] {
            let whole = format!("{text};shopid=5");
            let tag = Tag::parse(whole.as_bytes());
            assert_eq!((tag.shop, tag.skipped), (Some(5), skipped), "{text}");
        }
    }

    #[test]
    fn a_global_service_is_named_as_it_was_sent() {
        let tag = Tag::parse(b"loc=1,2; global = users ;global=other");
        assert_eq!((tag.global, tag.skipped), (Some(&b"users"[..]), 1));
        assert_eq!(Tag::parse(b"global=").skipped, 1);
    }

    #[test]
    fn the_first_of_two_equal_keys_counts() {
        let tag = Tag::parse(b"shopid=1;shopid=2");
        assert_eq!((tag.shop, tag.skipped), (Some(1), 1));
    }

    #[test]
    fn random_bytes_never_panic_and_never_make_more_parts_than_there_are() {
        let mut random = Random(7);
        let alphabet = b"eosidhpclar=;,.-+0123456789 \x00\xff";
        for _ in 0..50_000 {
            let len = random.below(60) as usize;
            let bytes: Vec<u8> = (0..len).map(|_| alphabet[random.below(alphabet.len() as u64) as usize]).collect();
            let tag = Tag::parse(&bytes);
            assert!(tag.skipped as usize <= bytes.len());
            assert!(tag.point.is_none_or(Point::on_globe));
        }
    }
}
