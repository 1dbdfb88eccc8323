//! The conflict ledger over HTTP, with real processes: a zone is lost with writes that nobody had, taken over, and comes back.

mod pair_kit;
mod process_kit;

use pair_kit::gzs::Gzs;
use pair_kit::{BJ, Pair, SH, SHARDS, ezctl};
use serde_json::{Value, json};
use shardmap::{MapEpoch, Shard, Zone};

const LINES: &str = "cores = [0]\nstreams = 2\nsegment_mib = 1";
/// The lost shards, of both streams.
const LOST: [Shard; 2] = [SHARDS[BJ], Shard(132)];

/// sh takes over what bj, which is down, owned; as the GZS does it.
fn take_over(pair: &Pair, gzs: &Gzs, to: Zone) {
    let none = gzs.next(&LOST, |_, h, e| h.declare_lost(Zone(1 - to.0), e).map(|entry| entry.unwrap()));
    let ask = json!({ "map_epoch": none.epoch().0, "shards": LOST.map(|s| s.0), "take_over": true }).to_string();
    let report = pair.within("the survivor has reported", || {
        let report = pair.json(SH, "POST", "/report", &ask, 200);
        let ready = report["shards"].as_array()?.iter().filter(|s| s["ready"] == true).count();
        (ready == LOST.len()).then_some(report)
    });
    let cut = |shard: Shard| {
        let of = report["shards"].as_array().unwrap().iter().find(|s| s["shard"] == shard.0).unwrap();
        let all = of["applied"].as_object().unwrap().iter();
        all.map(|(zone, seq)| (Zone(zone.parse().unwrap()), seq.as_u64().unwrap())).collect()
    };
    gzs.next(&LOST, |s, h, e| h.finish_take_over(to, &cut(s), e));
}

/// What a zone lists, without what may be asked for anew at any time.
fn listed(pair: &Pair, at: usize, query: &str) -> Vec<Value> {
    let page = pair.json(at, "GET", &format!("/conflicts{query}"), "", 200);
    page["conflicts"].as_array().unwrap().clone()
}

fn resolve(pair: &Pair, at: usize, id: &str, keep: &str, status: u16) -> Value {
    let word = json!({ "id": id, "keep": keep, "by": "ana", "note": "asked the shop" });
    pair.json(at, "POST", "/conflicts/resolve", &word.to_string(), status)
}

#[test]
fn writes_that_a_lost_zone_had_alone_are_listed_alike_in_both_zones_and_settled_at_the_owner() {
    let gzs = Gzs::start();
    let mut pair = Pair::new("conflicts", LINES).of_gzs(gzs.at);
    [BJ, SH].into_iter().for_each(|at| pair.start(at));
    for shard in LOST {
        pair.write(BJ, shard, 0..20, |k| format!("both {k}"));
    }
    pair.write(SH, SHARDS[SH], 0..20, |k| format!("sh {k}"));
    pair.agree(2);
    // bj goes on alone, and is lost.
    pair.kill(SH);
    for shard in LOST {
        pair.write(BJ, shard, 10..25, |k| format!("alone {k}"));
    }
    pair.kill(BJ);
    pair.start(SH);
    let sh = gzs.newest().zone_named("sh").unwrap();
    take_over(&pair, &gzs, sh);
    let epoch = gzs.newest().epoch();
    // New rows are free; those that were there are locked until bj is back.
    pair.write_at(SH, epoch, LOST[0], 20..22, |k| format!("survivor {k}"));
    pair.start(BJ);
    pair.agree(2);
    assert_eq!([BJ, SH].map(|at| pair.status(at)["ledger"].clone()), [json!(30), json!(30)]);
    let [at_bj, at_sh] = [BJ, SH].map(|at| listed(&pair, at, ""));
    assert_eq!(at_bj, at_sh);
    assert_eq!(at_bj.len(), 30);
    let find = |shard: Shard, key: u64| {
        let key = format!("{}-{key}", shard.0);
        at_sh.iter().find(|c| c["key"] == key.as_str()).unwrap_or_else(|| panic!("{key}: {at_sh:#?}"))
    };
    let (lost, kept) = (find(LOST[0], 20), find(LOST[1], 24));
    assert!(lost["state"] == "superseded" && kept["state"] == "visible", "{lost} {kept}");
    assert_eq!((&lost["listed"]["value"], &lost["current"]["value"]), (&json!("alone 20"), &json!("survivor 20")));
    assert_eq!((&lost["listed"]["zone"], &lost["current"]["zone"]), (&json!("bj"), &json!("sh")));
    assert!(lost["reason"].as_str().unwrap().contains("when it took the shard over"), "{lost}");
    // A page at a time, over both streams, as far as it goes.
    let (mut paged, mut after) = (vec![], String::new());
    loop {
        let page = pair.json(BJ, "GET", &format!("/conflicts?limit=7{after}"), "", 200);
        paged.extend(page["conflicts"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(paged, at_bj);
    // At the other zone: 421, and nothing is done.
    let (lost, kept) = (lost["id"].as_str().unwrap(), kept["id"].as_str().unwrap());
    let why = resolve(&pair, BJ, lost, "listed", 421);
    assert!(why["error"].as_str().unwrap().contains("zone sh owns the shard"), "{why}");
    let admin = pair.admins.map(|a| a.to_string());
    let (code, _, err) =
        ezctl(&["conflicts", "resolve", lost, "--keep", "listed", "--by", "ana", "--admin", &admin[BJ]]);
    assert!(code != 0 && err.contains("zone sh owns the shard"), "{code} {err}");
    assert_eq!(listed(&pair, SH, "").len(), 30);
    // At the owner, one each way; told in both zones.
    let done = resolve(&pair, SH, lost, "listed", 200);
    assert_eq!(
        (&done["current"]["value"], &done["resolved"]["keep"]),
        (&json!("alone 20"), &json!("listed")),
        "{done}"
    );
    let (code, out, err) =
        ezctl(&["conflicts", "resolve", kept, "--keep", "current", "--by", "bo", "--admin", &admin[SH]]);
    assert_eq!(code, 0, "{out} {err}");
    resolve(&pair, SH, lost, "current", 409);
    pair.agree(2);
    for at in [BJ, SH] {
        let one = pair.json(at, "GET", &format!("/conflicts?id={lost}"), "", 200);
        assert_eq!((&one["resolved"]["by"], &one["resolved"]["note"]), (&json!("ana"), &json!("asked the shop")));
        assert_eq!(one["current"]["value"], "alone 20");
        assert_eq!(pair.json(at, "GET", &format!("/conflicts?id={kept}"), "", 200)["resolved"]["by"], "bo");
        let open = listed(&pair, at, "");
        assert!(open.len() == 28 && open.iter().all(|c| c["id"] != lost && c["id"] != kept), "{open:#?}");
        assert_eq!(pair.read_at(at, MapEpoch(epoch.0), LOST[0], 20).as_deref(), Some("alone 20"));
        assert_eq!(pair.read_at(at, MapEpoch(epoch.0), LOST[1], 24).as_deref(), Some("alone 24"));
    }
    assert_eq!(listed(&pair, BJ, "?state=all"), listed(&pair, SH, "?state=all"));
    assert_eq!(listed(&pair, BJ, "?state=all").len(), 30);
    let (code, out, _) = ezctl(&["conflicts", "list", "--admin", &admin[BJ]]);
    assert_eq!(code, 1, "some are open: {out}");
    // What was decided is there after a restart of either.
    for at in [BJ, SH] {
        pair.stop(at);
        pair.start(at);
        assert_eq!(pair.json(at, "GET", &format!("/conflicts?id={lost}"), "", 200)["resolved"]["by"], "ana");
    }
}
