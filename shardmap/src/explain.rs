//! Why a tag leads where it does: which of its parts decided, and what became of each other. For people, never on the order path.
//!
//! It asks [`Map::route`] for the whole tag and then for each part alone, so it cannot differ from what routes.

use crate::fence::How;
use crate::map::{By, Map, Route};
use crate::tag::Tag;
use crate::types::Shard;

/// Where a tag leads, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explained {
    /// `None`: nowhere, and the map has no default.
    pub route: Option<Route>,
    /// The tag's parts in their order; a record's key, if there was one, last.
    pub parts: Vec<Part>,
    /// The fence of the location, and how it was found, whether or not the location decided.
    pub fence: Option<(String, How)>,
}

/// What became of one part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// As it was sent, at most 120 characters, printable.
    pub text: String,
    /// Where it would lead alone.
    pub shard: Option<Shard>,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a part of a tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// The route is by this part.
    Decided,
    /// It leads somewhere, but a part of a higher rank decided.
    Outranked,
    /// It could not be read.
    Malformed,
    /// A part of the same kind came before.
    Second,
    /// Its key is nobody's here.
    Unknown,
    /// A shard by number counts only from a trusted peer.
    Untrusted,
    /// The map has no such shard.
    NoSuchShard,
    /// The map has no global service of this name: the request leads nowhere.
    NoSuchService,
    /// The id is not ours by its bits, and the map does not place it.
    Foreign,
    /// The place is in no fence and near none.
    Nowhere,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Decided => "decided",
            Verdict::Outranked => "outranked: shardid > global > eosid > shopid > loc > default",
            Verdict::Malformed => "malformed: skipped and counted",
            Verdict::Second => "a second part of its kind: the first counts",
            Verdict::Unknown => "passed over: not a key of ours",
            Verdict::Untrusted => "ignored: a shard by number counts only from a trusted peer",
            Verdict::NoSuchShard => "ignored: the map has no such shard",
            Verdict::NoSuchService => "unknown: the map has no global service of this name, and nothing else decides",
            Verdict::Foreign => "foreign: not an id of ours, and the map does not place it",
            Verdict::Nowhere => "nowhere: in no fence and near none",
        }
    }
}

/// What decided, in a word.
pub fn by_name(by: By) -> &'static str {
    match by {
        By::ShardId => "shardid",
        By::Global => "global",
        By::Order => "order",
        By::Shop => "shop",
        By::Inside | By::Near => "location",
        By::Default => "default",
    }
}

/// Explains the tag in `header`; `key` is a record's key, which counts as order id if the tag has none.
pub fn explain(map: &Map, header: Option<&[u8]>, key: Option<&[u8]>, trusted: bool, now_ms: u64) -> Explained {
    let mut whole = header.map(Tag::parse).unwrap_or_default();
    let key_id = key.and_then(|k| std::str::from_utf8(k).ok()?.parse().ok());
    let by_key = whole.order.is_none() && key_id.is_some();
    if by_key {
        whole.order = key_id;
    }
    let route = map.route(&whole, trusted, now_ms);
    let alone = |tag: Tag| map.route(&tag, trusted, now_ms).filter(|r| r.by != By::Default);
    let mut seen = Tag::default();
    let mut parts = vec![];
    for text in header.unwrap_or_default().split(|b| *b == b';').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty()) {
        let tag = Tag::parse(text);
        let verdict = fate(&tag, &mut seen).unwrap_or_else(|| judge(&tag, alone(tag), route, trusted));
        parts.push(Part { text: shown(text), shard: alone(tag).map(|r| r.shard), verdict });
    }
    if let Some(key) = key {
        let tag = Tag { order: key_id, ..Tag::default() };
        let verdict = match (key_id, by_key) {
            (None, _) => Verdict::Foreign,
            (Some(_), false) => Verdict::Second,
            (Some(_), true) => judge(&tag, alone(tag), route, trusted),
        };
        parts.push(Part { text: format!("key {}", shown(key)), shard: alone(tag).map(|r| r.shard), verdict });
    }
    let fence = whole.point.map(|p| map.locate(p)).and_then(|l| Some((l.fence?.name.clone(), l.how)));
    Explained { route, parts, fence }
}

/// What is to be said of a part before the map is asked; `seen` holds the parts before it.
fn fate<'t>(tag: &Tag<'t>, seen: &mut Tag<'t>) -> Option<Verdict> {
    if tag.skipped > 0 {
        return Some(Verdict::Malformed);
    }
    let mut first = false;
    let mut second = false;
    let mut note = |has: bool, had: bool| {
        first |= has && !had;
        second |= has && had;
    };
    note(tag.shardid.is_some(), seen.shardid.is_some());
    note(tag.global.is_some(), seen.global.is_some());
    note(tag.order.is_some(), seen.order.is_some());
    note(tag.shop.is_some(), seen.shop.is_some());
    note(tag.point.is_some(), seen.point.is_some());
    seen.shardid = seen.shardid.or(tag.shardid);
    seen.global = seen.global.or(tag.global);
    seen.order = seen.order.or(tag.order);
    seen.shop = seen.shop.or(tag.shop);
    seen.point = seen.point.or(tag.point);
    match (first, second) {
        (true, _) => None,
        (false, true) => Some(Verdict::Second),
        (false, false) => Some(Verdict::Unknown),
    }
}

/// What a part that could be read came to; `alone` is where it leads by itself.
fn judge(tag: &Tag, alone: Option<Route>, route: Option<Route>, trusted: bool) -> Verdict {
    match alone {
        Some(alone) if route == Some(alone) => Verdict::Decided,
        Some(_) => Verdict::Outranked,
        None if tag.shardid.is_some() && !trusted => Verdict::Untrusted,
        None if tag.shardid.is_some() => Verdict::NoSuchShard,
        None if tag.global.is_some() => Verdict::NoSuchService,
        None if tag.point.is_some() => Verdict::Nowhere,
        None => Verdict::Foreign,
    }
}

fn shown(text: &[u8]) -> String {
    text.iter().take(120).flat_map(|b| std::ascii::escape_default(*b)).map(char::from).collect()
}
