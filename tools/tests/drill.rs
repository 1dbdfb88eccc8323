//! `ezctl drill` as a person or a script meets it: with a sandbox of the real programs.

mod program;

use program::ezone;
use serde_json::Value;
use std::process::{Command, Output};

fn ezctl(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_ezctl")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn every_drill_is_listed_with_a_sentence() {
    let (code, out, _) = ezctl(&["drill", "list"]);
    assert_eq!((code, out.lines().count()), (0, 17), "{out}");
    assert!(out.lines().all(|l| l.ends_with('.')) && out.contains("zone-cut-off "), "{out}");
}

#[test]
fn what_cannot_be_run_is_refused_with_what_to_do() {
    let check = |args: &[&str], expected: &str| {
        let (code, out, err) = ezctl(args);
        assert!(code == 2 && err.contains(expected), "{args:?}: {code}\n{out}{err}");
    };
    check(&["drill", "run", "lunch", "--sandbox"], "there is no drill \"lunch\"; there are planned-move, ");
    check(&["drill", "run", "planned-move"], "add --sandbox");
    check(&["drill", "run", "all", "--sandbox", "--ezone", "/nowhere/ezone"], "/nowhere/ezone is not there: build it");
    check(&["drill", "run", "all", "--sandbox", "--zones", "5"], "5 is not in 2..=4");
}

#[test]
fn two_short_drills_pass_on_a_sandbox_and_are_reported() {
    let (ezone, dir) = (ezone(), std::env::temp_dir().join(format!("ezone-drill-test-{}", std::process::id())));
    let (ezone, reports) = (ezone.to_str().unwrap(), dir.to_str().unwrap());
    let names = ["planned-move", "router-killed"];
    let options =
        ["--sandbox", "--orders-per-s", "100", "--rounds", "1", "--json", "--report", reports, "--ezone", ezone];
    let (code, out, err) = ezctl(&[&["drill", "run"], &names[..], &options[..]].concat());
    let told: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((code, &told["failed"]), (0, &0.into()), "{out}{err}");
    for (name, drill) in names.iter().zip(told["drills"].as_array().unwrap()) {
        assert_eq!((&drill["drill"], &drill["verdict"]), (&(*name).into(), &"passed".into()), "{drill}");
        let orders = &drill["orders"];
        assert!(orders["acknowledged"].as_u64().unwrap() > 50, "{orders}");
        let zero = ["lost", "doubled", "unasked", "failed"].map(|what| &orders[what]);
        assert_eq!(zero, [&0, &0, &0, &0].map(|n: &i32| Value::from(*n)).each_ref(), "{orders}");
        let markdown = std::fs::read_to_string(dir.join(format!("{name}.md"))).unwrap();
        assert!(markdown.starts_with(&format!("# Drill {name}: passed\n")), "{markdown}");
        assert!(drill["checks"].as_array().unwrap().iter().all(|c| c["holds"] == true), "{drill}");
    }
    // What the drill names as its outage was one: it costs something, and it is counted.
    assert!(told["drills"][1]["orders"]["failed_in_outage"].as_u64().unwrap() > 0, "{out}");
    std::fs::remove_dir_all(dir).unwrap();
}
