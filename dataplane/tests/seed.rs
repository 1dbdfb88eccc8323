//! `POST /seed` of a log, with real processes of two zones: what is asked for wrongly, where there is no gap, and one that is ended over TLS.

mod pair_kit;
mod process_kit;

use pair_kit::{BJ, Pair, SH, SHARDS, copy};
use process_kit::{Dir, Running, addresses, http, map, within};
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};

#[test]
fn a_seeding_that_is_asked_for_wrongly_or_in_vain_is_refused_with_the_reason() {
    let (dir, port) = (Dir::new("two"), addresses::<4>());
    let mut started = vec![];
    for (i, (zone, other)) in [("bj", "sh"), ("sh", "bj")].into_iter().enumerate() {
        let (link, admin, far) = (port[2 * i], port[2 * i + 1], port[2 - 2 * i]);
        let text = format!(
            "[node]\nzone = \"{zone}\"\ndata_dir = \"{zone}\"\n[map]\nfile = \"{}\"\n[log]\nlisten = \"{link}\"\nadmin = \"{admin}\"\n\
             cores = [0]\nstreams = 1\nsegment_mib = 1\n[zones.{other}]\nrouter = \"127.0.0.1:9\"\nlink = \"{far}\"\n",
            map().display()
        );
        let config = dir.join(format!("{zone}.toml"));
        fs::write(&config, text).unwrap();
        let said = fs::File::options().create(true).append(true).open(dir.join("said")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ezone"));
        command.args(["log", "--config"]).arg(config).stdin(Stdio::null());
        started.push(Running(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap()));
    }
    let ask = |method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        within(&format!("the log answers: {}", dir.said()), || http(port[1], &request).ok())
    };
    let refused = |query: &str, status: u16, why: &str| {
        let (seen, body) = ask("POST", &format!("/seed{query}"));
        assert!(seen == status && body.contains(why), "{query}: {seen} {body}");
    };
    within("the other zone's log is there", || {
        http(port[3], "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()
    });
    refused("", 400, "zone=NAME");
    refused("?zone=sh", 400, "zone=NAME");
    refused("?zone=xx&stream=0", 400, "not in the map");
    refused("?zone=sh&stream=zero", 400, "no stream's number");
    refused("?zone=sh&stream=0&force=1", 400, "unknown parameter");
    refused("?zone=sh&stream=1", 409, "streams 0 to 0");
    refused("?zone=bj&stream=0", 409, "not among this node's [zones]");
    refused("?zone=sh&stream=0", 409, "there is no gap");
    let (_, status) = ask("GET", "/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let seed = &status["streams"][0]["seeds"][0];
    assert!(seed["way"] == "taken" && seed["zone"] == "sh" && seed["failed"] == 1, "{seed}");
    assert!(seed["state"].as_str().unwrap().contains("there is no gap"), "{seed}");
    let (_, metrics) = ask("GET", "/metrics");
    assert!(metrics.contains("ezone_log_seeds_failed{stream=\"0\",zone=\"sh\",way=\"taken\"} 1"), "{metrics}");
}

#[test]
fn a_zone_that_came_back_with_a_copy_from_before_what_is_kept_is_seeded_over_tls_and_follows_again() {
    let mut pair = Pair::new("tls", "cores = [0]\nstreams = 1\nsegment_mib = 1\nkeep_mib = 0").over_tls();
    [BJ, SH].into_iter().for_each(|at| pair.start(at));
    pair.write(BJ, SHARDS[BJ], 0..50, |k| format!("{k}"));
    pair.agree(1);
    pair.stop(SH);
    let kept = pair.dir.join("sh.kept");
    copy(&pair.data(SH), &kept);
    pair.start(SH);
    let value = |k: u64| format!("{k}/").repeat(5000);
    let had = pair.write(BJ, SHARDS[BJ], 50..60, value);
    pair.write(BJ, SHARDS[BJ], 60..300, value);
    pair.agree(1);
    pair.within("bj lets go what both have", || {
        (pair.status(BJ)["streams"][0]["logs"]["bj"]["first_kept"].as_u64()? > had).then_some(())
    });
    pair.stop(SH);
    fs::rename(pair.data(SH), pair.dir.join("sh.lost")).unwrap();
    copy(&kept, &pair.data(SH));
    pair.start(SH);
    let link = pair.link(BJ, 0, "it is a gap", |l| l["stopped"]["why"] == "gap");
    assert!(link["state"].as_str().unwrap().contains("POST /seed"), "{link}");
    let incoming = |pair: &Pair| pair.status(SH)["streams"][0]["incoming"]["bj"].clone();
    assert!(incoming(&pair).as_str().is_some_and(|why| why.contains("gap")), "{}", incoming(&pair));
    pair.write(BJ, SHARDS[BJ], 300..310, value); // nobody waits for it
    let begun = pair.json(SH, "POST", "/seed?zone=bj&stream=0", "", 202);
    assert!(begun["state"].as_str().unwrap().contains("seeding begins"), "{begun}");
    let seed = pair.within("it is seeded", || {
        let seed = pair.status(SH)["streams"][0]["seeds"][0].clone();
        assert_ne!(seed["failed"], 1, "{seed}");
        (seed["done"] == 1).then_some(seed)
    });
    assert!(seed["rows"].as_u64() >= Some(300) && seed["way"] == "taken", "{seed}");
    pair.link(BJ, 0, "the link is live", |l| l["state"] == "live");
    pair.write(BJ, SHARDS[BJ], 310..320, value);
    pair.agree(1);
    for key in [60, 299, 305, 319] {
        assert_eq!(pair.read(SH, SHARDS[BJ], key), Some(value(key)));
    }
    assert!(incoming(&pair).is_null() && pair.dir.said().contains("(TLS)"));
    assert_eq!([BJ, SH].map(|at| pair.status(at)["links_refused"].clone()), [0, 0].map(Value::from));
}
