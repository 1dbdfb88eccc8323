//! The pages over a real log of one zone, whose shard is lost and comes back.

use super::*;
use replog::retain::{Policy, WORTH};
use replog::uring::node::{Node, Options};
use replog::uring::stream::Scrub;
use shardmap::fence::Fences;
use shardmap::map::{Exceptions, Parts, ZoneInfo};
use shardmap::ownership::{Entry as Step, History, Illegal};
use shardmap::{MapEpoch, Positions, Shard};
use std::path::Path;
use std::sync::Arc;

const A: Zone = Zone(0);
const B: Zone = Zone(1);
const S: Shard = Shard(0);

fn first() -> Map {
    let zone = |id, name: &str| ZoneInfo { id: Zone(id), name: name.into() };
    Map::from_parts(Parts {
        epoch: MapEpoch(1),
        previous: [0; 32],
        default: Some(S),
        zones: vec![zone(0, "a"), zone(1, "b")],
        histories: [(S, History::new(A, MapEpoch(1)))].into(),
        exceptions: Exceptions { orders: vec![], shops: vec![] },
        globals: Default::default(),
        fences: Arc::new(Fences::new(vec![], 10_000, 20).unwrap()),
    })
    .unwrap()
}

fn next(map: &Map, step: impl Fn(&History, MapEpoch) -> Result<Step, Illegal>) -> Arc<Map> {
    let entry = step(map.history(S).unwrap(), map.epoch().next()).unwrap();
    Arc::new(map.with_entries([(S, entry)].into()).unwrap())
}

async fn put(node: &Node, map: &Map, key: &'static str, value: &'static [u8]) {
    let (table, key) = (Bytes::from_static(b"orders"), Some(Bytes::from_static(key.as_bytes())));
    let ask = Ask::Write { shard: S, map_epoch: map.epoch(), table, key, value: Some(Bytes::from_static(value)) };
    let answer = node.ask(ask).await;
    assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
}

async fn json_of(answer: Response) -> (u16, Value) {
    let status = answer.status().as_u16();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

async fn listed(shown: &Shown, query: &[(&str, &str)]) -> (u16, Value) {
    let query: Vec<_> = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    json_of(list(shown, &query).await).await
}

async fn said(shown: &Shown, word: Value) -> (u16, Value) {
    json_of(resolve(shown, word.to_string().as_bytes()).await).await
}

#[tokio::test]
async fn what_a_lost_zone_wrote_behind_the_cut_is_listed_shown_and_resolved() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/conflicts-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let options = Options {
        cluster: "test".into(),
        zone: A,
        data_dir: dir.clone(),
        streams: 1,
        segment_bytes: 1 << 20,
        scrub: Scrub::NEVER,
        retain: Policy { keep_bytes: 0, peers_until: 1.0, worth: WORTH },
        cores: vec![0],
        ports: vec![std::env::temp_dir().join(format!("ezone-conflicts-{}", std::process::id()))],
        peers: vec![],
        line: replog::uring::line::Line::default(),
        start_alone: true,
        answers_kept_ms: replog::commit::ANSWER_KEPT_MS,
    };
    let port = options.ports[0].clone();
    let map = Arc::new(first());
    let node = Arc::new(Node::start(options, map.clone(), |_| {}).unwrap());
    node.on_gzs(map.epoch());
    put(&node, &map, "x", b"known").await;
    put(&node, &map, "x", b"{\"tail\":1}").await;
    put(&node, &map, "y", b"\xff\x00").await;
    // B takes the shard over, having applied one record of A's; then A has it again.
    let lost = next(&map, |h, e| h.declare_lost(A, e).map(Option::unwrap));
    let taken = next(&lost, |h, e| h.finish_take_over(B, &Positions::from_iter([(A, 1)]), e));
    for map in [&lost, &taken] {
        node.on_map(map);
    }
    let shown = Shown::of(node.clone(), taken.clone(), A);
    let begun = std::time::Instant::now();
    let open = loop {
        let (status, open) = listed(&shown, &[]).await;
        assert!(status == 200 && begun.elapsed().as_secs() < 20, "{open}");
        if open["conflicts"].as_array().unwrap().len() == 2 {
            break open;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!((&open["conflicts"][0]["id"], &open["conflicts"][1]["id"]), (&json!("0/a/2"), &json!("0/a/3")));
    let (status, one) = listed(&shown, &[("id", "0/a/2")]).await;
    assert_eq!((status, &one["state"], &one["listed"]["value"]), (200, &json!("visible"), &json!("{\"tail\":1}")));
    assert!(one["reason"].as_str().unwrap().contains("behind seq 1, which is all that zone b had"), "{one}");
    assert_eq!(listed(&shown, &[("id", "0/a/3")]).await.1["listed"]["value_hex"], "ff00");
    // A page at a time.
    let (_, page) = listed(&shown, &[("limit", "1")]).await;
    assert_eq!((page["conflicts"].as_array().unwrap().len(), &page["next"]), (1, &json!("0/a/2")));
    let (_, page) = listed(&shown, &[("limit", "1"), ("after", "0/a/2")]).await;
    assert_eq!(page["conflicts"][0]["id"], "0/a/3");
    // What cannot be, and what is not there.
    for (query, wanted) in [
        (("id", "0/a"), 400),
        (("id", "0/zz/1"), 400),
        (("limit", "0"), 400),
        (("x", "y"), 400),
        (("id", "0/a/1"), 404),
    ] {
        assert_eq!(listed(&shown, &[query]).await.0, wanted, "{query:?}");
    }
    let word = json!({ "id": "0/a/2", "keep": "listed", "by": "ana", "note": "asked the shop" });
    let (status, why) = said(&shown, word.clone()).await;
    assert_eq!((status, why["error"].as_str().unwrap()), (421, "zone b owns the shard: resolve it at that zone's log"));
    for wrong in [
        json!({}),
        json!({ "id": "0/a/2", "keep": "both", "by": "ana" }),
        json!({ "id": "0/a/2", "keep": "listed", "by": "" }),
    ] {
        assert_eq!(said(&shown, wrong).await.0, 400);
    }
    assert_eq!(said(&shown, json!({ "id": "0/a/9", "keep": "listed", "by": "ana" })).await.0, 404);
    let moving = next(&taken, |h, e| h.begin_move(A, e));
    let home = next(&moving, |h, e| h.commit_move(1, &Positions::from_iter([(A, 9), (B, 1)]), e));
    for map in [&moving, &home] {
        node.on_map(map);
    }
    let shown = Shown::of(node.clone(), home.clone(), A);
    put(&node, &home, "x", b"the survivor's").await;
    assert_eq!(listed(&shown, &[("id", "0/a/2")]).await.1["state"], "superseded");
    let (status, done) = said(&shown, word.clone()).await;
    assert_eq!(
        (status, &done["resolved"]["by"], &done["current"]["value"]),
        (200, &json!("ana"), &json!("{\"tail\":1}"))
    );
    assert_eq!(said(&shown, word).await.0, 409, "it is resolved already");
    assert_eq!(listed(&shown, &[]).await.1["conflicts"].as_array().unwrap().len(), 1);
    assert_eq!(listed(&shown, &[("state", "all")]).await.1["conflicts"].as_array().unwrap().len(), 2);
    node.stop().await;
    let _ = std::fs::remove_dir_all(&dir);
    let _ = std::fs::remove_file(port);
}
