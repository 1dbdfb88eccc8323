//! What is said of a tag agrees with where it leads.
#![cfg(feature = "text")]

use shardmap::explain::{Verdict, by_name, explain};
use shardmap::id::Id;
use shardmap::map::{By, Map};
use shardmap::{Shard, Zone};

const NOW_MS: u64 = 1_790_000_000_000;

fn china() -> Map {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let load = |name: &str| std::fs::read_to_string(dir.join(name)).map_err(|e| e.to_string());
    Map::from_toml(&load("china.toml").unwrap(), load).unwrap().0
}

fn verdicts(tag: &str, trusted: bool) -> (Option<(u16, &'static str)>, Vec<Verdict>) {
    let e = explain(&china(), Some(tag.as_bytes()), None, trusted, NOW_MS);
    (e.route.map(|r| (r.shard.0, by_name(r.by))), e.parts.iter().map(|p| p.verdict).collect())
}

#[test]
fn each_part_is_told_why_it_counts_or_not() {
    use Verdict::*;
    let ours = Id::new(NOW_MS - 1000, Shard(341), Zone(0), 1).unwrap();
    for (tag, trusted, route, parts) in [
        ("loc=116.40,39.90", false, (121, "location"), vec![Decided]),
        ("shopid=999;loc=116.40,39.90", false, (121, "location"), vec![Foreign, Decided]),
        ("shopid=156427001;loc=116.40,39.90", false, (341, "shop"), vec![Decided, Outranked]),
        (&format!("loc=116.40,39.90;eosid={ours}"), false, (341, "order"), vec![Outranked, Decided]),
        ("shardid=341;loc=116.40,39.90", false, (121, "location"), vec![Untrusted, Decided]),
        ("shardid=341;loc=116.40,39.90", true, (341, "shardid"), vec![Decided, Outranked]),
        ("shardid=7;loc=116.40,39.90", true, (121, "location"), vec![NoSuchShard, Decided]),
        ("loc=x;user=me;eosid=-1", false, (121, "default"), vec![Malformed, Unknown, Malformed]),
        ("loc=-58.4,-34.6", false, (121, "default"), vec![Nowhere]),
        ("loc=121.5,31.2;loc=116.40,39.90", false, (341, "location"), vec![Decided, Second]),
    ] {
        assert_eq!(verdicts(tag, trusted), (Some(route), parts), "{tag}");
    }
}

#[test]
fn a_global_service_that_the_map_does_not_know_is_named_as_the_reason() {
    let found = verdicts("loc=116.40,39.90;global=users", false);
    assert_eq!(found, (None, vec![Verdict::Outranked, Verdict::NoSuchService]));
}

#[test]
fn a_records_key_counts_as_an_order_only_if_the_tag_has_none() {
    let map = china();
    let ours = Id::new(NOW_MS - 1000, Shard(341), Zone(0), 1).unwrap().to_string();
    let last = |tag: Option<&str>, key: &str| {
        let e = explain(&map, tag.map(str::as_bytes), Some(key.as_bytes()), false, NOW_MS);
        (e.route.unwrap().by, e.parts.last().unwrap().verdict)
    };
    assert_eq!(last(None, &ours), (By::Order, Verdict::Decided));
    assert_eq!(last(Some("eosid=5"), &ours), (By::Default, Verdict::Second));
    assert_eq!(last(None, "no-number"), (By::Default, Verdict::Foreign));
}

#[test]
fn the_fence_is_named_and_hostile_bytes_are_shown_printable() {
    let map = china();
    let e = explain(&map, Some(b"loc=121.5,31.2;\xff\n\"=1"), None, false, NOW_MS);
    assert_eq!(e.fence.map(|(name, how)| (name, how.name())), Some(("Shanghai".into(), "inside")));
    assert!(e.parts.iter().all(|p| p.text.bytes().all(|b| (b' '..=b'~').contains(&b))), "{:?}", e.parts);
}
