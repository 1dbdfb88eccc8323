//! `ezctl op`, `shard` and `zone` as an operator meets them: with a Global Zone Service that no node has told anything.

mod program;

use program::ezone;
use serde_json::Value;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Exit code, standard output, standard error; `gzs`: what the environment names.
fn ezctl(gzs: &str, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ezctl"));
    command.args(args).env("EZONE_GZS", gzs).env_remove("EZONE_TOKEN_FILE");
    let Output { status, stdout, stderr } = command.env_remove("SUDO_USER").env("USER", "ana").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A service with the demo's map, alone. It ends with the test.
struct Service {
    child: Child,
    url: String,
    dir: PathBuf,
}

impl Service {
    fn start(name: &str) -> Service {
        let program = ezone();
        let dir = std::env::temp_dir().join(format!("ezone-operate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data/china.toml");
        // Free a moment ago: whoever takes it meanwhile makes the service end, and the next port is tried.
        let until = Instant::now() + PATIENCE;
        loop {
            let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let (data, map) = (dir.join("data"), map.display());
            let text = format!(
                "[gzs]\ndata_dir = \"{}\"\nlisten = \"{at}\"\ncluster = \"demo\"\nmap = \"{map}\"\n",
                data.display()
            );
            std::fs::write(dir.join("gzs.toml"), text).unwrap();
            let mut command = Command::new(&program);
            command.args(["gzs", "--stop-with-stdin", "--config"]).arg(dir.join("gzs.toml"));
            let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            while child.try_wait().unwrap().is_none() && TcpStream::connect(at).is_err() && Instant::now() < until {
                sleep(Duration::from_millis(20));
            }
            if child.try_wait().unwrap().is_none() && Instant::now() < until {
                return Service { child, url: format!("http://{at}"), dir };
            }
            let _ = child.kill();
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            child.wait().unwrap();
            assert!(Instant::now() < until, "the service does not start: {said}");
        }
    }

    fn check(&self, args: &[&str], code: i32, expected: &[&str]) -> String {
        let (seen, out, err) = ezctl(&self.url, args);
        let all = format!("{out}{err}");
        assert!(
            seen == code && expected.iter().all(|e| all.contains(e)),
            "{args:?}: {seen}, {expected:?}\n{out}--\n{err}"
        );
        out
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_cluster_of_no_nodes_is_told_as_it_is_and_forced_moves_give_up() {
    let service = Service::start("alone");
    service.check(&["zone", "status"], 1, &["cluster demo, map 1", "bj    unheard  15", "sh    unheard  19"]);
    service.check(&["zone", "status", "sh"], 1, &["unheard"]);
    service.check(&["shard", "list", "--zone", "sh"], 0, &["341    sh     1          own"]);
    service.check(&["zone", "unknown", "sh"], 1, &["zone sh is unheard", "were not taken over"]);
    service.check(&["op", "list", "--all"], 0, &["no operation\n"]);

    let refused = ["the preflight speaks against it", "\n  zone bj's log is not heard\n", "--force"];
    service.check(&["shard", "move", "341", "--to", "bj"], 1, &refused);
    let out = service.check(&["shard", "move", "341", "--to", "bj", "--json"], 1, &["--force"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["reasons"][0], "zone bj's log is not heard", "{told}");
    service.check(&["op", "list", "--all"], 0, &["no operation\n"]);

    let forced = ["shard", "move", "341", "--to", "bj", "--force", "--limit-ms", "50", "--why", "a test", "--json"];
    let out = service.check(&forced, 1, &["begun although zone bj's log is not heard"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["state"], &told["id"]), (&"gave_up".into(), &1.into()), "{told}");
    assert!(told["by"].as_str().unwrap().starts_with("ana@"), "{told}");
    service.check(&["op", "list", "--all"], 0, &["move 341 to bj", "gave_up", "0/1", "ana@"]);
    service.check(&["op", "list"], 0, &["no operation is under way"]);
    service.check(&["op", "show", "1"], 0, &["why: a test", "forced, although", "returned"]);
    service.check(&["op", "wait", "1"], 1, &["gave_up", "it took longer than 50 ms"]);
    service.check(&["op", "abort", "1"], 1, &["nothing to abort"]);
    service.check(&["op", "resume", "1"], 1, &["gave_up"]);
}

#[test]
fn a_global_service_is_added_under_a_name_that_stays() {
    let service = Service::start("global");
    let add = ["global", "add", "users", "--zone", "sh", "--why", "accounts", "--force"];
    service.check(&add, 0, &["operation 1: add global service users in sh: done"]);
    service.check(&["shard", "list", "--zone", "sh"], 0, &["users", "1024"]);
    service.check(&["op", "audit"], 0, &["global users: added, shard 1024", "accounts"]);
    service.check(&add, 1, &["\"users\" is on the map already: shard 1024"]);
    service.check(&["global", "add", "Users", "--zone", "sh"], 2, &["expected 1 to 64 of a-z, 0-9 and _"]);
    service.check(&["global", "add", "more", "--zone", "gz"], 2, &["zone \"gz\" is not on the map, which has: bj, sh"]);
}

#[test]
fn an_operation_goes_on_without_the_one_who_began_it_until_it_is_aborted() {
    let service = Service::start("abort");
    let long = ["--force", "--limit-ms", "600000"];
    service.check(&[&["shard", "move", "341", "--to", "bj", "--no-wait"], &long[..]].concat(), 0, &["running"]);
    service.check(&["op", "wait", "1", "--wait-s", "2"], 1, &["running still after 2 s", "zone bj's log is not heard"]);
    service.check(&["shard", "move", "341", "--to", "bj", "--force"], 1, &["operation 1 is moving one of these"]);
    service.check(&["op", "list"], 0, &["move 341 to bj", "running"]);
    service.check(&["op", "abort", "1"], 0, &["aborted by ana@"]);
    let lost = ["zone", "take-over", "sh", "--to", "bj", "--force", "--wait-s", "0"];
    service.check(&["shard", "unlock", "341", "--why", "it will not return"], 0, &["operation 2: unlock 341: done"]);
    service.check(&["op", "audit"], 0, &["map 1 ", "the first map", "map 2 ", "it will not return", "operation 2"]);
    service.check(&lost, 1, &["operation 3 is running still", "zone bj has not told yet"]);
    service.check(&["zone", "status"], 1, &["sh    lost     0"]);
    service.check(&["zone", "unknown", "sh"], 1, &["zone sh is being taken over"]);
}

#[test]
fn what_is_asked_wrongly_is_2_and_says_what_was_expected() {
    let service = Service::start("wrong");
    service.check(&["shard", "move", "341", "--to", "xx"], 2, &["zone \"xx\" is not on the map, which has: bj, sh"]);
    service.check(&["shard", "move", "7", "--to", "bj"], 2, &["shard 7 is not on the map"]);
    let none = ["\"users\" is neither a shard's number nor a global service; the map has: none"];
    service.check(&["shard", "move", "341", "users", "--to", "bj"], 2, &none);
    service.check(&["shard", "list", "--zone", "xx"], 2, &["zone \"xx\" is not on the map"]);
    service.check(&["zone", "status", "xx"], 2, &["zone \"xx\" is not on the map"]);
    service.check(&["zone", "unknown", "xx"], 2, &["zone \"xx\" is not on the map"]);
    for what in ["evacuate", "restore", "take-over"] {
        service.check(&["zone", what, "xx"], 2, &["zone \"xx\" is not on the map"]);
    }
    service.check(&["op", "show", "9"], 2, &["no operation 9"]);
    service.check(&["zone", "status", "--token-file", "/nowhere/token"], 2, &["--token-file /nowhere/token: "]);
    service.check(&["zone", "status", "--gzs", "somewhere:1"], 2, &["expected http://HOST:PORT"]);
    // These make sense, and what is there does not allow them.
    service.check(&["zone", "restore", "sh"], 1, &["that it has not got back"]);
    service.check(&["zone", "evacuate", "sh"], 1, &["no other zone is heard"]);
}

#[test]
fn without_a_service_there_is_no_answer() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let check = |gzs: &str, args: &[&str], expected: &str| {
        let (code, out, err) = ezctl(gzs, args);
        assert!(code == 2 && out.is_empty() && err.contains(expected), "{args:?}: {code}\n{out}{err}");
    };
    let url = format!("http://{nobody}");
    check(&url, &["zone", "status"], "cannot be reached");
    check(&url, &["op", "wait", "1"], "cannot be reached");
    check(&url, &["shard", "move", "341", "--to", "bj"], "whether it heard this");
    check("", &["zone", "status"], "expected --gzs URL, or EZONE_GZS");
}

#[test]
fn every_command_has_an_example() {
    let all: [(&str, &[&str]); 3] = [
        ("op", &["list", "show", "abort", "resume", "wait", "audit"]),
        ("shard", &["list", "move", "unlock"]),
        ("zone", &["status", "evacuate", "restore", "take-over", "unknown"]),
    ];
    for (group, commands) in all {
        for command in commands {
            let (code, out, _) = ezctl("", &[group, command, "--help"]);
            assert!(
                code == 0 && out.contains(&format!("Example: ezctl {group} {command} ")),
                "{group} {command}: {out}"
            );
        }
    }
}

#[test]
fn fences_are_exported_previewed_and_changed_and_zones_come_and_go() {
    let service = Service::start("fences");
    let file = |name: &str, text: &str| {
        let path = service.dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let today = service.check(&["fence", "export"], 0, &["\"name\":\"Tianjin\",\"shard\":132"]);
    let same = file("same.geojson", &today);
    service.check(&["fence", "preview", &same], 0, &["compared with map 1", "no land changes its shard"]);
    // Both are zone bj's.
    let next = today.replace("\"name\":\"Tianjin\",\"shard\":132", "\"name\":\"Tianjin\",\"shard\":121");
    let new = file("new.geojson", &next);
    let places = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shardmap/data/china-places.csv").display().to_string();
    let expected = [
        "fences changed: Tianjin\n",
        "\n132   bj    121  bj",
        "without a fence then: shards 132",
        "nobody waits",
        "towns that change",
    ];
    service.check(&["fence", "preview", &new, "--towns", &places], 0, &expected);
    service.check(&["fence", "apply", &new, "--from", "2"], 2, &["the newest map is 1"]);
    service.check(
        &["fence", "apply", &new, "--from", "1", "--why", "a test"],
        0,
        &["change the fences of map 1: done", "1 changed"],
    );
    service.check(&["fence", "export"], 0, &["\"name\":\"Tianjin\",\"shard\":121"]);
    service.check(&["op", "audit"], 0, &["the fences are changed; a test", "fence Tianjin: shard 132"]);
    service.check(&["fence", "apply", &new, "--from", "1"], 1, &["make a new preview"]);
    // Shanghai's land would be zone bj's: no log is heard that could hold it.
    let far = file(
        "far.geojson",
        &next.replace("\"name\":\"Shanghai\",\"shard\":341", "\"name\":\"Shanghai\",\"shard\":121"),
    );
    service.check(&["fence", "preview", &far], 0, &["held for a moment: shards 341"]);
    service.check(&["fence", "apply", &far, "--from", "2"], 1, &["zone bj's log is not heard"]);
    let wrong = file("wrong.geojson", &next.replace("\"shard\":121", "\"shard\":122"));
    service.check(&["fence", "preview", &wrong], 1, &["unknown shard 122"]);
    service.check(&["fence", "preview", "nowhere.geojson"], 2, &["nowhere.geojson"]);
    service.check(&["fence", "preview", &same, "--datum", "Mars"], 1, &["expected \"WGS84\" or \"GCJ-02\""]);

    service.check(&["zone", "add", "gz", "--no-wait"], 0, &["add zone gz: running"]);
    service.check(&["zone", "status", "gz"], 1, &["gz    unheard  0"]);
    service.check(&["zone", "add", "gz"], 1, &["share a name"]);
    service.check(&["op", "abort", "2"], 0, &["aborted", "`ezctl zone remove gz`"]);
    service.check(&["zone", "remove", "sh"], 1, &["zone sh has shard 341"]);
    service.check(&["zone", "remove", "gz", "--why", "a test"], 0, &["remove zone gz: done", "without [zones.gz]"]);
    service.check(&["zone", "remove", "gz"], 2, &["is not on the map"]);
}
