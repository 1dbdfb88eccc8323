//! `POST /seed` of a log, with real processes of two zones: what is asked for wrongly, and where there is no gap.

mod process_kit;

use process_kit::{Dir, Running, addresses, http, map, within};
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
